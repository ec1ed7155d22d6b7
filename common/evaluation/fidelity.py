"""How near the tables of one and of two columns are to those of a real table.

The distance of two finite samples of one population is not 0: put the distance of two real tables, cut at the same
edges, beside every figure from here. Structure of three columns and more is not seen, nor is leakage: a copy of the
real rows has the distance 0.
"""

from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import pandas as pd

from common.data.encoding import make_grid
from common.data.schema import CategoricalColumn
from common.study import Study

_CELLS = 10
"""Numeric columns are cut at deciles."""


@dataclass(frozen=True)
class Fidelity:
    """Total variation distances in [0, 1], label included: 0 for equal tables, 1 for tables with no cell in common.

    `columns` holds the one-way distance of each column. Where there is nothing to compare the figures are None, and
    `reason` says why.
    """

    one_way_mean: float | None = None
    one_way_max: float | None = None
    two_way_mean: float | None = None
    two_way_max: float | None = None
    columns: dict[str, float] = field(default_factory=dict)
    reason: str | None = None


@dataclass(frozen=True)
class _Coded:
    """One column of both tables as cells 0 .. n_cells - 1."""

    synthetic: np.ndarray
    real: np.ndarray
    n_cells: int


def measure_fidelity(
    synthetic: pd.DataFrame, real: pd.DataFrame, study: Study, *, edges_from: pd.DataFrame
) -> Fidelity:
    """Total variation distance between two tables: of every column, and of every pair of columns.

    Categories are cells. Numbers are cut at the deciles of `edges_from`, at distinct edges; a value that at least a
    tenth of its present values share is a cell of its own. Missing is a cell of its own.

    Guarantees: symmetric in the first two tables; the distance of a table to itself is exactly 0; no pair is below
    either of its columns; the order of rows does not count.
    Edge cases: a table without rows -> None and the reason; a column of `edges_from` that is all missing -> one cell.

    Args:
        synthetic: parsed table; for the floor, real rows in its place.
        real: parsed table to compare with.
        study: names the columns; others are not looked at.
        edges_from: real table whose deciles cut numbers; pass the same one wherever two results are compared.
    """
    for which, table in (("synthetic", synthetic), ("real", real), ("edges_from", edges_from)):
        if not len(table):
            return Fidelity(reason=f"{which}: the table has no rows")
    coded = {name: _encode(name, synthetic, real, study, edges_from) for name in study.columns}
    one_way = {name: _distance(column) for name, column in coded.items()}
    two_way = [_distance(_cross(first, second)) for first, second in combinations(coded.values(), 2)]
    return Fidelity(
        one_way_mean=float(np.mean(list(one_way.values()))),
        one_way_max=max(one_way.values()),
        two_way_mean=float(np.mean(two_way)),
        two_way_max=max(two_way),
        columns=one_way,
    )


def _encode(name: str, synthetic: pd.DataFrame, real: pd.DataFrame, study: Study, edges_from: pd.DataFrame) -> _Coded:
    column = study.columns[name]
    if isinstance(column, CategoricalColumn):
        grid = make_grid(name, column)
        return _Coded(grid.encode(synthetic[name]), grid.encode(real[name]), grid.n_values + 1)
    edges = _edges(_numbers(edges_from[name]))
    return _Coded(_cut(_numbers(synthetic[name]), edges), _cut(_numbers(real[name]), edges), len(edges) + 2)


def _numbers(values: pd.Series) -> np.ndarray:
    """(records,) float64, NaN where missing."""
    return values.to_numpy(dtype=np.float64, na_value=np.nan)


def _edges(values: np.ndarray) -> np.ndarray:
    """Distinct lower edges of all cells but the first: deciles, and both sides of each heavy value."""
    present = np.sort(values[~np.isnan(values)])
    n = len(present)
    # Decile k is the smallest value with k/10 of all values at or below it; in whole numbers no rounding moves it.
    deciles = present[(np.arange(1, _CELLS) * n + _CELLS - 1) // _CELLS - 1] if n else present
    distinct, counts = np.unique(present, return_counts=True)
    heavy = distinct[counts * _CELLS >= n]
    return np.unique(np.concatenate([deciles, heavy, np.nextafter(heavy, np.inf)]))


def _cut(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Cell of each value, (records,) int64; the last cell is missing."""
    return np.where(np.isnan(values), len(edges) + 1, np.searchsorted(edges, values, side="right"))


def _cross(first: _Coded, second: _Coded) -> _Coded:
    """The column whose cells are the pairs of cells of two columns."""
    return _Coded(
        first.synthetic * second.n_cells + second.synthetic,
        first.real * second.n_cells + second.real,
        first.n_cells * second.n_cells,
    )


def _distance(column: _Coded) -> float:
    synthetic, real = (
        np.bincount(cells, minlength=column.n_cells) / len(cells) for cells in (column.synthetic, column.real)
    )
    return float(np.abs(synthetic - real).sum() / 2)
