"""How near the tables of one and of two columns are to those of a real table, and whether they keep to the schema.

The distance of two finite samples of one population is not 0: put the distance of two real tables, cut at the same
edges, beside every figure from here. Structure of three columns and more is not seen, but for which values are missing
together; nor is leakage: a copy of the real rows has the distance 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Final

import numpy as np
import pandas as pd

from common.data.encoding import make_grid
from common.data.schema import CategoricalColumn, Column, ContinuousColumn, NumericColumn
from common.data.windows import WindowedTable
from common.study import Study

_CELLS: Final = 10
"""Numeric columns are cut at deciles."""
_OFTEN: Final = 10
"""A category is looked for if so many rows of either table should have it: none of them is then no chance, e^-10."""


@dataclass(frozen=True)
class Fidelity:
    """One synthetic table beside a real one; the label is a column like others.

    one_way_*, two_way_*: total variation distances in [0, 1]: 0 for equal tables, 1 for tables with no cell in common;
        `columns` holds the one-way distance of each column.
    missing_mean, missing_max: absolute difference of a column's shares of missing values, over columns; `missing` holds
        that of each column.
    missing_pattern: total variation distance of the sets of columns that are missing in a row.
    correlation_mean, correlation_max: absolute difference of the correlations of two numeric columns, on the schema's
        scales, of the rows that have both; over the pairs that vary in either table. Where a column is constant in one
        table its correlations are 0 there.
    rare_recall: share of the categories, over all columns, that the synthetic table holds, of those which ten rows or
        more of the real one have, and by their share in it ten rows or more of the synthetic one should.
    violations: values that the schema does not allow, see `count_violations`; must be 0. `violating` holds their number
        in each column that has any.
    Where there is nothing to compare figures are None, and `reason` says why.
    """

    one_way_mean: float | None = None
    one_way_max: float | None = None
    two_way_mean: float | None = None
    two_way_max: float | None = None
    columns: dict[str, float] = field(default_factory=dict)
    reason: str | None = None
    missing_mean: float | None = None
    missing_max: float | None = None
    missing_pattern: float | None = None
    missing: dict[str, float] = field(default_factory=dict)
    correlation_mean: float | None = None
    correlation_max: float | None = None
    rare_recall: float | None = None
    violations: int | None = None
    violating: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Coded:
    """One column of both tables as cells 0 .. n_cells - 1."""

    synthetic: np.ndarray
    real: np.ndarray
    n_cells: int


def measure_fidelity(
    synthetic: pd.DataFrame, real: pd.DataFrame, study: Study, *, edges_from: pd.DataFrame
) -> Fidelity:
    """Distances between two tables: of every column, of every pair of columns, of what is missing; and violations.

    Categories are cells. Numbers are cut at the deciles of `edges_from`, at distinct edges; a value that at least a
    tenth of its present values share is a cell of its own. Missing is a cell of its own.

    Guarantees: all but `rare_recall` and `violations`, which are of the first table, is symmetric in the first two; the
    distance of a table to itself is exactly 0; no pair is below either of its columns; the order of rows does not count
    but for rounding.
    Edge cases: a table without rows -> None and the reason; a column of `edges_from` that is all missing -> one cell;
    no two numeric columns that vary, or no category that is frequent enough -> None for these alone, and the reason.

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
    absent = [table[list(study.columns)].isna().to_numpy() for table in (synthetic, real)]  # (rows, columns)
    missing = np.abs(absent[0].mean(axis=0) - absent[1].mean(axis=0))
    correlations = _compare_correlations(synthetic, real, study)
    rare_recall = _rare_recall(coded, study)
    violating = {name: count for name, count in count_violations(synthetic, study.columns).items() if count}
    unknown = {
        "correlation: no two numeric columns vary": not len(correlations),
        f"rare_recall: no category should be {_OFTEN} times in either table": rare_recall is None,
    }
    return Fidelity(
        one_way_mean=float(np.mean(list(one_way.values()))),
        one_way_max=max(one_way.values()),
        two_way_mean=float(np.mean(two_way)),
        two_way_max=max(two_way),
        columns=one_way,
        reason="; ".join(reason for reason, holds in unknown.items() if holds) or None,
        missing_mean=float(missing.mean()),
        missing_max=float(missing.max()),
        missing_pattern=_pattern_distance(*absent),
        missing=dict(zip(study.columns, missing.tolist(), strict=True)),
        correlation_mean=float(correlations.mean()) if len(correlations) else None,
        correlation_max=float(correlations.max()) if len(correlations) else None,
        rare_recall=rare_recall,
        violations=sum(violating.values()),
        violating=violating,
    )


def count_violations(records: pd.DataFrame, columns: Mapping[str, Column]) -> dict[str, int]:
    """Values of each column that the schema does not allow: 0 of each in a table that `parse_table` would make.

    Not allowed are: a category that is not listed, a number that is infinite, beyond the bounds or not whole where the
    column is, and a missing value where none may be. A column that is not there, or has another dtype than the schema
    gives it, counts as often as there are rows.
    """
    return {name: _count_violations(records, name, column) for name, column in columns.items()}


def count_window_violations(table: WindowedTable, study: Study) -> dict[str, int]:
    """Values of each channel that the schema does not allow where a unit has a step, and all where it has none."""
    reached = np.arange(table.values.shape[1]) < table.lengths[:, None]
    counts: dict[str, int] = {}
    for at, (name, column) in enumerate(study.channels.items()):
        values = table.values[:, :, at]
        counts[name] = int(_is_wrong(values[reached], column).sum() + (~np.isnan(values[~reached])).sum())
    return counts


def _count_violations(records: pd.DataFrame, name: str, column: Column) -> int:
    if name not in records or not _has_dtype(records[name], column):
        return len(records)
    values = records[name]
    if isinstance(column, CategoricalColumn):
        # Its dtype lists the public values and no other.
        return 0 if column.missing else int(values.isna().sum())
    return int(_is_wrong(column.to_numbers(values), column).sum())


def _has_dtype(values: pd.Series, column: Column) -> bool:
    if isinstance(column, CategoricalColumn):
        return isinstance(values.dtype, pd.CategoricalDtype) and list(values.dtype.categories) == list(column.values)
    return bool(values.dtype == column.dtype)


def _is_wrong(values: np.ndarray, column: Column) -> np.ndarray:
    """Which values, (n,) float64, the schema does not allow; NaN is missing, categories are positions."""
    missing = np.isnan(values)
    if isinstance(column, CategoricalColumn):
        low, high = 0.0, len(column.values) - 1.0
    else:
        low, high = float(column.min), float(column.max)
    outside = ~missing & ~((values >= low) & (values <= high))
    is_whole = isinstance(column, ContinuousColumn) | (np.floor(values) == values)
    return np.asarray(np.where(missing, not column.missing, outside | ~is_whole))


def _compare_correlations(synthetic: pd.DataFrame, real: pd.DataFrame, study: Study) -> np.ndarray:
    """Absolute differences of correlations of the pairs of numeric columns, (pairs,)."""
    numeric = {name: column for name, column in study.columns.items() if not isinstance(column, CategoricalColumn)}
    pairs = np.triu_indices(len(numeric), k=1)
    ours, theirs = (
        pd.DataFrame({name: _on_scale(table[name], column) for name, column in numeric.items()})
        .corr()
        .to_numpy()[pairs]
        for table in (synthetic, real)
    )
    known = ~(np.isnan(ours) & np.isnan(theirs))
    return np.asarray(np.abs(np.nan_to_num(ours) - np.nan_to_num(theirs))[known])


def _on_scale(values: pd.Series, column: NumericColumn) -> np.ndarray:
    """(records,), NaN where missing; what the bounds do not allow is at the bound."""
    return column.to_scale(np.clip(column.to_numbers(values), column.min, column.max), float(column.min))


def _pattern_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Total variation distance of the rows of two tables of marks, (rows, columns) bool."""
    _, cells = np.unique(np.vstack([first, second]), axis=0, return_inverse=True)
    return _distance(_Coded(cells[: len(first)], cells[len(first) :], int(cells.max()) + 1))


def _rare_recall(coded: dict[str, _Coded], study: Study) -> float | None:
    found, expected = 0, 0
    for name, column in study.columns.items():
        if isinstance(column, CategoricalColumn):
            made, real = (
                np.bincount(cells, minlength=coded[name].n_cells)[: len(column.values)]
                for cells in (coded[name].synthetic, coded[name].real)
            )
            often = (real >= _OFTEN) & (real * len(coded[name].synthetic) >= _OFTEN * len(coded[name].real))
            found, expected = found + int((often & (made > 0)).sum()), expected + int(often.sum())
    return found / expected if expected else None


def _encode(name: str, synthetic: pd.DataFrame, real: pd.DataFrame, study: Study, edges_from: pd.DataFrame) -> _Coded:
    column = study.columns[name]
    if isinstance(column, CategoricalColumn):
        grid = make_grid(name, column)
        return _Coded(grid.encode(synthetic[name]), grid.encode(real[name]), grid.n_values + 1)
    made, real_numbers, all_numbers = (column.to_numbers(table[name]) for table in (synthetic, real, edges_from))
    edges = _edges(all_numbers)
    return _Coded(_cut(made, edges), _cut(real_numbers, edges), len(edges) + 2)


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
