"""Windows of a table on the schema's scales, and statistics of arrays in which NaN is missing."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from common.data.schema import CategoricalColumn, Column, NumericColumn
from common.data.windows import WindowedTable


@dataclass(frozen=True)
class Windows:
    """Windows of one table.

    values: (units, steps, channels) float64, NaN where missing; numbers on the channel's scale, divided by the bound
        that is further from 0, so that no square of them overflows; positions of categories as they are.
    lengths: (units,) int64.
    """

    values: np.ndarray
    lengths: np.ndarray
    channels: Mapping[str, Column]

    @property
    def steps(self) -> int:
        """Of the longest window that there may be."""
        return int(self.values.shape[1])

    @property
    def numeric(self) -> list[int]:
        """Positions of the numeric channels."""
        columns = enumerate(self.channels.values())
        return [at for at, column in columns if not isinstance(column, CategoricalColumn)]

    @property
    def sizes(self) -> dict[int, int]:
        """Public values of each categorical channel, by its position."""
        columns = enumerate(self.channels.values())
        return {at: len(column.values) for at, column in columns if isinstance(column, CategoricalColumn)}

    @property
    def numbers(self) -> np.ndarray:
        """(units, steps, numeric channels)."""
        return self.values[:, :, self.numeric]

    def take(self, rows: np.ndarray) -> "Windows":
        """Some of the units."""
        return replace(self, values=self.values[rows], lengths=self.lengths[rows])

    def join(self, other: "Windows") -> "Windows":
        """Both, one after the other."""
        values, lengths = np.concatenate([self.values, other.values]), np.concatenate([self.lengths, other.lengths])
        return replace(self, values=values, lengths=lengths)


def read(table: WindowedTable, channels: Mapping[str, Column], which: str) -> Windows:
    """The windows of a table, numbers on the scales of their channels; `which` names it in errors.

    Raises:
        ValueError: the arrays do not have one shape.
    """
    if table.values.shape != (len(table.records), table.values.shape[1], len(channels)):
        raise ValueError(f"{which}: expected values of the units in records, and of each channel")
    if table.lengths.shape != (len(table.records),) or bool((table.lengths > table.values.shape[1]).any()):
        raise ValueError(f"{which}: expected lengths of the units in records, up to the number of steps")
    values = table.values.copy()
    for at, column in enumerate(channels.values()):
        if not isinstance(column, CategoricalColumn):
            values[:, :, at] = (
                column.to_scale(values[:, :, at], float(column.min)) / np.abs(bounds_on_scale(column)).max()
            )
    return Windows(values, table.lengths, channels)


def bounds_on_scale(column: NumericColumn) -> np.ndarray:
    """Both public bounds on the scale."""
    return column.to_scale(np.array([column.min, column.max], dtype=np.float64), float(column.min))


# Statistics of arrays in which NaN is missing; axes that are reduced stay, with length 1.


def mean_over(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Of what is present; NaN where nothing is."""
    present = ~np.isnan(values)
    total = np.where(present, values, 0.0).sum(axis=axes, keepdims=True)
    count = present.sum(axis=axes, keepdims=True)
    return divide(total, count)


def divide(dividend: np.ndarray, divisor: np.ndarray) -> np.ndarray:
    """NaN where the divisor is 0."""
    return np.asarray(np.divide(dividend, divisor, out=np.full(dividend.shape, np.nan), where=divisor > 0))


def least(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Of what is present; NaN where nothing is."""
    return np.asarray(np.fmin.reduce(values, axis=axes, keepdims=True, initial=np.nan))


def centre(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Values less their mean over the axes; exactly 0 where they do not vary, which a rounded mean would not give."""
    shifted = values - least(values, axes)
    return np.asarray(shifted - mean_over(shifted, axes))


def spread_of(numbers: np.ndarray) -> np.ndarray:
    """(channels,) standard deviation of all present values; 0 where they do not vary or there are none."""
    return np.asarray(np.nan_to_num(np.sqrt(mean_over(centre(numbers, (0, 1)) ** 2, (0, 1)))[0, 0]))
