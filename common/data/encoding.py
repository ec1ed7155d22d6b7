"""From typed columns to integer codes and back.

Two levels. A *grid* of fine cells comes from the schema alone. *Bins* join cells, and are made from released, noised
one-way tables only, so that making them costs no privacy. Missing is a value of its own: the last cell of its column.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from common.data.schema import CategoricalColumn, Column, ContinuousColumn, IntegerColumn, NumericColumn, WholeColumn

_EXACT = 2**53
"""Up to here a float holds every whole number."""


@dataclass(frozen=True)
class Grid:
    """The fine cells of one column.

    `starts` (cells,) is the least value of each cell of a numeric column: int64 where values are whole numbers, float64
    else. Cell k ends where k + 1 starts, the last one at the maximum. None for a categorical column, whose cells are
    its values.
    """

    name: str
    column: Column
    starts: np.ndarray | None

    @property
    def n_values(self) -> int:
        """Cells that are not the missing one."""
        if isinstance(self.column, CategoricalColumn):
            return len(self.column.values)
        assert self.starts is not None
        return len(self.starts)

    @property
    def n_cells(self) -> int:
        """All cells, the missing one included."""
        return self.n_values + int(self.column.missing)

    @property
    def is_ordered(self) -> bool:
        """Whether neighbouring cells are neighbouring values."""
        return self.starts is not None

    @property
    def edges(self) -> np.ndarray | None:
        """Bounds of the cells of a numeric column, (cells + 1,) float64: cell k holds [edges[k], edges[k + 1]).

        The last cell of a column that holds all floats has its upper edge too. Whole numbers beyond 2^53 are rounded.
        None for a categorical column.
        """
        if isinstance(self.column, CategoricalColumn):
            return None
        assert self.starts is not None
        top, steps = self.column.max, self.column.steps
        end = float(top) if steps is None else (round(top * steps) + 1) / steps
        return np.asarray(np.append(self.starts.astype(np.float64), end))

    @property
    def lasts(self) -> np.ndarray:
        """The greatest value of each cell of a column of whole numbers, (cells,) int64."""
        assert isinstance(self.column, WholeColumn)
        assert self.starts is not None
        return np.asarray(np.append(self.starts[1:] - 1, np.int64(self.column.max)))

    def encode(self, values: pd.Series) -> np.ndarray:
        """Cell of each value, (records,) int64."""
        absent = values.isna().to_numpy()
        if isinstance(self.column, CategoricalColumn):
            codes = values.cat.codes.to_numpy().astype(np.int64)
        else:
            assert self.starts is not None
            if isinstance(self.column, ContinuousColumn):
                numbers = values.astype("float64").fillna(self.column.min).to_numpy()
            else:
                numbers = self.column.to_whole(values)
            codes = np.searchsorted(self.starts, numbers, side="right").astype(np.int64) - 1
            codes = np.clip(codes, 0, self.n_values - 1)
        codes[absent] = self.n_values
        return codes

    def decode(self, cells: np.ndarray, generator: np.random.Generator) -> pd.Series:
        """A value for each cell: the category, or a uniform draw inside the numeric cell, in the schema's dtype."""
        absent = cells == self.n_values
        if isinstance(self.column, CategoricalColumn):
            dtype = pd.CategoricalDtype(list(self.column.values))
            return pd.Series(pd.Categorical.from_codes(np.where(absent, -1, cells), dtype=dtype), name=self.name)
        assert self.starts is not None
        inside = np.where(absent, 0, cells)
        if isinstance(self.column, WholeColumn):
            return self.typed(generator.integers(self.starts[inside], self.lasts[inside], endpoint=True), absent)
        edges = self.edges
        assert edges is not None
        lower, upper = edges[inside], edges[inside + 1]
        steps = self.column.steps
        if steps is None:
            # Rounding may reach the upper edge, which belongs to the next cell. A special value's cell is one float
            # wide: the value itself, not one beside it.
            values = lower + (upper - lower) * generator.random(len(cells))
            return self.typed(np.clip(values, lower, np.nextafter(upper, -np.inf)), absent)
        drawn = generator.integers(np.rint(lower * steps).astype(np.int64), np.rint(upper * steps).astype(np.int64))
        return self.typed(drawn / steps, absent)

    def typed(self, numbers: np.ndarray, absent: np.ndarray) -> pd.Series:
        """A numeric column in the schema's dtype.

        Args:
            numbers: (rows,), int64 where the column holds whole numbers (units since the minimum where it holds
                moments), float64 else.
            absent: (rows,) bool, where a value is missing.
        """
        if isinstance(self.column, WholeColumn):
            return self.column.from_whole(numbers, absent).rename(self.name)
        return pd.Series(np.where(absent, np.nan, numbers), name=self.name)


def make_grid(name: str, column: Column) -> Grid:
    """The fine cells of a column, from its public schema alone."""
    if isinstance(column, CategoricalColumn):
        return Grid(name, column, None)
    minimum, top = float(column.min), float(column.max)
    if column.steps is None:
        special = np.array(column.special, dtype=np.float64)
        apart = np.concatenate([special, np.nextafter(special, np.inf)])
        starts = np.unique(np.minimum(np.concatenate([_edges(column, minimum, top), apart]), top))
        return Grid(name, column, starts[:-1])
    # Whole numbers, of steps where decimals are fixed: every cell starts at one, and the last ends after the maximum.
    # Where the scale has room for each number to have a cell of its own, it has.
    if isinstance(column, IntegerColumn) and max(abs(column.min), abs(column.max)) >= _EXACT:
        return Grid(name, column, _far_starts(column))
    low, high = round(minimum * column.steps), round(top * column.steps)
    if high - low < column.cells:
        whole = np.arange(low, high + 1)
    else:
        marks = np.rint(np.array(column.special, dtype=np.float64) * column.steps)
        between = np.clip(np.ceil(_edges(column, minimum, top)[1:-1] * column.steps), low, high)
        whole = np.unique(np.concatenate([[low], between, marks, np.minimum(marks + 1, high)]))
    return Grid(name, column, whole.astype(np.int64) if isinstance(column, WholeColumn) else whole / column.steps)


def _edges(column: NumericColumn, minimum: float, top: float) -> np.ndarray:
    """Evenly spaced on the column's scale, (cells + 1,) float64."""
    ends = column.to_scale(np.array([minimum, top]), minimum)
    edges = column.from_scale(np.linspace(ends[0], ends[1], column.cells + 1), minimum)
    edges[0], edges[-1] = minimum, top
    # Far from the centre of a bent scale, rounding puts edges beyond a bound.
    return np.asarray(np.clip(edges, minimum, top))


def _far_starts(column: IntegerColumn) -> np.ndarray:
    """Starts of the cells where a float no longer tells whole numbers apart, (cells,) int64.

    They are reckoned from the minimum on, but for the scale around 0, and rounded only where a cell is so wide that it
    does not matter.
    """
    low, high, cells = column.min, column.max, column.cells
    if high - low < cells:
        return np.array(range(low, high + 1), dtype=np.int64)
    if column.scale == "linear":
        between = [low - (low - high) * cell // cells for cell in range(1, cells)]
    else:
        origin = 0 if column.scale == "asinh" else low
        edges = _edges(column, float(low - origin), float(high - origin))[1:-1]
        between = [origin + int(edge) for edge in np.ceil(edges)]
    starts = {low, *between, *column.special, *(mark + 1 for mark in column.special)}
    return np.array(sorted(start for start in starts if low <= start <= high), dtype=np.int64)


def make_grids(columns: Mapping[str, Column]) -> tuple[Grid, ...]:
    """The grids of several columns, in order."""
    return tuple(make_grid(name, column) for name, column in columns.items())


def encode_table(table: pd.DataFrame, grids: Sequence[Grid]) -> np.ndarray:
    """Cells of a parsed table, (records, columns) int64."""
    return np.column_stack([grid.encode(table[grid.name]) for grid in grids])
