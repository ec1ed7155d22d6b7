"""Units as points, so that there is a distance between them.

Each column weighs the same: two records that differ in a category, or of which one value is missing and the other is
not, are 1 apart in it, and two numbers at most 1. A channel of a window weighs as much as a column, its steps share it.

A public space knows the study alone: numbers lie on the schema's scale, between its bounds. A fitted one has numbers by
their rank in a reference table, so that a column whose values keep to a corner of its bounds still tells units apart.
"""

import math

import numpy as np
import pandas as pd

from common.data.encoding import make_grid
from common.data.schema import CategoricalColumn, Column
from common.data.windows import WindowedTable
from common.evaluation.windows import bounds_on_scale
from common.study import Study

_HALF = math.sqrt(0.5)


class Space:
    """Maps rows to points.

    Attributes:
        names: of the columns, then of the channels.
        slices: by name, which coordinates are a column's or a channel's.
    """

    def __init__(self, study: Study, reference: WindowedTable | None = None) -> None:
        """A space of a study; fitted where there is a reference table, public where there is none."""
        self._study = study
        self._ranks: dict[str, np.ndarray] = {}
        if reference is not None:
            for name, column in study.columns.items():
                if not isinstance(column, CategoricalColumn):
                    self._ranks[name] = _sorted(column.to_numbers(reference.records[name]))
            for at, (name, column) in enumerate(study.channels.items()):
                if not isinstance(column, CategoricalColumn):
                    self._ranks[name] = _sorted(reference.values[:, :, at])
        self.slices: dict[str, slice] = {}
        start = 0
        for name, column in study.columns.items():
            self.slices[name] = slice(start, start := start + _width(column))
        steps = study.windows.length if study.windows is not None else 0
        for name, column in study.channels.items():
            self.slices[name] = slice(start, start := start + steps * _width(column))
        self.dimensions = start

    @property
    def names(self) -> list[str]:
        """Of the columns, then of the channels."""
        return list(self.slices)

    def points(self, table: WindowedTable) -> np.ndarray:
        """(rows, dimensions) float32."""
        columns = self._study.columns
        parts = [
            self._encode(name, column, _values(table.records[name], name, column), ())
            for name, column in columns.items()
        ]
        steps = table.values.shape[1]
        there = np.arange(steps) < table.lengths[:, None]
        for at, (name, column) in enumerate(self._study.channels.items()):
            coded = self._encode(name, column, table.values[:, :, at], (steps,))
            coded *= there[:, :, None] / math.sqrt(steps)
            parts.append(coded.reshape(len(coded), -1))
        return np.concatenate(parts, axis=1)

    def _encode(self, name: str, column: Column, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """(rows, *shape, width) float32, of values (rows, *shape), NaN where missing."""
        missing = np.isnan(values)
        coded = np.zeros((len(values), *shape, _width(column)), dtype=np.float32)
        if isinstance(column, CategoricalColumn):
            size = len(column.values)
            codes = np.where(missing, size, values).astype(np.int64)
            np.put_along_axis(coded, codes[..., None], np.float32(_HALF), axis=-1)
            return coded
        if name in self._ranks:
            known = self._ranks[name]
            filled = np.nan_to_num(values)
            below, above = (np.searchsorted(known, filled, side=side) for side in ("left", "right"))
            place = (below + above) / (2 * max(1, len(known)))
        else:
            low, high = bounds_on_scale(column)
            place = (column.to_scale(np.where(missing, float(column.min), values), float(column.min)) - low) / (
                high - low
            )
        coded[..., 0] = np.where(missing, 0.5, place)
        coded[..., 1] = missing
        return coded


def _width(column: Column) -> int:
    """One coordinate a category and one for missing; of numbers the place and a mark for missing."""
    return len(column.values) + 1 if isinstance(column, CategoricalColumn) else 2


def _values(values: pd.Series, name: str, column: Column) -> np.ndarray:
    if isinstance(column, CategoricalColumn):
        return np.where(values.isna(), np.nan, make_grid(name, column).encode(values).astype(np.float64))
    return column.to_numbers(values)


def _sorted(values: np.ndarray) -> np.ndarray:
    return np.sort(values[~np.isnan(values)])
