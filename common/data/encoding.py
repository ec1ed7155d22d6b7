"""From typed columns to integer codes and back.

Two levels. A *grid* of fine cells comes from the schema alone. *Bins* join cells, and are made from released, noised
one-way tables only, so that making them costs no privacy. Missing is a value of its own: the last cell of its column.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from common.data.schema import CategoricalColumn, Column, ContinuousColumn


@dataclass(frozen=True)
class Grid:
    """The fine cells of one column.

    `edges` (cells + 1,) bounds the cells of a numeric column: cell k holds [edges[k], edges[k + 1]), the last one its
    upper edge too. None for a categorical column, whose cells are its values.
    """

    name: str
    column: Column
    edges: np.ndarray | None

    @property
    def n_values(self) -> int:
        """Cells that are not the missing one."""
        if isinstance(self.column, CategoricalColumn):
            return len(self.column.values)
        assert self.edges is not None
        return len(self.edges) - 1

    @property
    def n_cells(self) -> int:
        """All cells, the missing one included."""
        return self.n_values + int(self.column.missing)

    @property
    def is_ordered(self) -> bool:
        """Whether neighbouring cells are neighbouring values."""
        return self.edges is not None

    def encode(self, values: pd.Series) -> np.ndarray:
        """Cell of each value, (records,) int64."""
        absent = values.isna().to_numpy()
        if isinstance(self.column, CategoricalColumn):
            codes = values.cat.codes.to_numpy().astype(np.int64)
        else:
            assert self.edges is not None
            numbers = values.astype("float64").fillna(self.column.min).to_numpy()
            codes = np.searchsorted(self.edges, numbers, side="right").astype(np.int64) - 1
            codes = np.clip(codes, 0, self.n_values - 1)
        codes[absent] = self.n_values
        return codes

    def decode(self, cells: np.ndarray, generator: np.random.Generator) -> pd.Series:
        """A value for each cell: the category, or a uniform draw inside the numeric cell, in the schema's dtype."""
        absent = cells == self.n_values
        if isinstance(self.column, CategoricalColumn):
            dtype = pd.CategoricalDtype(list(self.column.values))
            return pd.Series(pd.Categorical.from_codes(np.where(absent, -1, cells), dtype=dtype), name=self.name)
        assert self.edges is not None
        inside = np.where(absent, 0, cells)
        lower, upper = self.edges[inside], self.edges[inside + 1]
        steps = self.column.steps
        if steps is None:
            # Rounding may reach the upper edge, which belongs to the next cell. A special value's cell is one float
            # wide: the value itself, not one beside it.
            values = lower + (upper - lower) * generator.random(len(cells))
            values = np.clip(values, lower, np.nextafter(upper, -np.inf))
            return pd.Series(np.where(absent, np.nan, values), name=self.name)
        drawn = generator.integers(np.rint(lower * steps).astype(np.int64), np.rint(upper * steps).astype(np.int64))
        if isinstance(self.column, ContinuousColumn):
            return pd.Series(np.where(absent, np.nan, drawn / steps), name=self.name)
        whole = pd.Series(drawn, name=self.name)
        return whole.astype("Int64").mask(absent) if self.column.missing else whole


def make_grid(name: str, column: Column) -> Grid:
    """The fine cells of a column, from its public schema alone."""
    if isinstance(column, CategoricalColumn):
        return Grid(name, column, None)
    minimum, top = float(column.min), float(column.max)
    ends = column.to_scale(np.array([minimum, top]), minimum)
    edges = column.from_scale(np.linspace(ends[0], ends[1], column.cells + 1), minimum)
    edges[0], edges[-1] = minimum, top
    # Far from the centre of a bent scale, rounding puts edges beyond a bound.
    edges = np.clip(edges, minimum, top)
    special = np.array(column.special, dtype=np.float64)
    if column.steps is None:
        apart = np.concatenate([special, np.nextafter(special, np.inf)])
        return Grid(name, column, np.unique(np.minimum(np.concatenate([edges, apart]), top)))
    # Whole numbers, of steps where decimals are fixed: every cell starts at one, and the last ends after the maximum.
    # Where the scale has room for each number to have a cell of its own, it has.
    low, high, marks = round(minimum * column.steps), round(top * column.steps), np.rint(special * column.steps)
    if high - low < column.cells:
        return Grid(name, column, np.arange(low, high + 2) / column.steps)
    starts = np.clip(np.ceil(edges[1:-1] * column.steps), low, high)
    return Grid(name, column, np.unique(np.concatenate([[low], starts, marks, marks + 1, [high + 1]])) / column.steps)


def make_grids(columns: Mapping[str, Column]) -> tuple[Grid, ...]:
    """The grids of several columns, in order."""
    return tuple(make_grid(name, column) for name, column in columns.items())


def encode_table(table: pd.DataFrame, grids: Sequence[Grid]) -> np.ndarray:
    """Cells of a parsed table, (records, columns) int64."""
    return np.column_stack([grid.encode(table[grid.name]) for grid in grids])
