"""Singling out: does the synthetic table tell how to describe one member, and nobody else?

The first of the three criteria of the European data protection authorities. A description is formed from a synthetic
record that it alone fits, and the question is whether it fits exactly one real unit too.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from common.data.schema import CategoricalColumn
from common.data.windows import WindowedTable
from common.evaluation.attacks.residual import Residual, Tally, compare, not_measured, not_playable
from common.evaluation.figures import Population
from common.evaluation.utility import to_feature
from common.study import Study

_FEWEST_COLUMNS: Final = 3
_MOST_COLUMNS: Final = 4
_TRIES: Final = 100
"""Candidates formed for each multivariate predicate that is wanted, at most."""
_BATCH: Final = 512
_FIRST_ROWS: Final = 256
_CELLS: Final = 1_000_000
"""Cells of a column that are compared at a time."""
_LARGEST: Final = np.finfo(np.float64).max
_MISSING: Final = np.inf


def single_out(
    synthetic: WindowedTable,
    members: Population,
    controls: Population,
    study: Study,
    *,
    seed: int,
    predicates: int = 1000,
) -> dict[str, Residual]:
    """Descriptions of one synthetic record that fit exactly one unit of a set of members, and of a set of controls.

    "univariate": a value that one synthetic record alone has in a column, being missing there if one alone is, or a
    number at most the least or at least the largest. "multivariate": of a random synthetic record three or four random
    columns: its category, that it is missing, or that a number is on the record's side of its value, away from the
    median. A predicate fits a unit if it fits any of its records. Windows are not looked at.

    The smaller population is one set, the larger as many sets of as many units as it has, drawn at random; a try is a
    predicate and a set. A synthetic record that was copied from a member concerns one of the sets of members: where
    there are more of them, the residual of a try is divided by the share of all members that a set has. So it says of
    any division what it would say of a set of all members, only with less certainty.

    Guarantees: the same tables and seed give the same figures; every predicate is tried once, on both sets.
    Edge cases: a table without rows, no predicate that fits one synthetic record alone, fewer than three columns (for
        "multivariate") -> None and the reason.

    Args:
        synthetic: what the attacker holds.
        members: units that trained it.
        controls: units that did not.
        study: names the columns.
        seed: of the sets, and of the predicates that are tried.
        predicates: how many of each kind at most.

    Raises:
        ValueError: predicates is less than 1.
    Source: Article 29 Working Party 2014 (WP216), section 2.2; Giomi et al. 2023, section 4.1.
    """
    if predicates < 1:
        raise ValueError(f"predicates={predicates}: expected at least 1")
    reason = not_playable(synthetic, members, controls)
    if reason is not None:
        return dict.fromkeys(("univariate", "multivariate"), not_measured(reason))
    random = np.random.default_rng([seed, 1])
    size = min(members.count, controls.count)
    sides = [_Side(side, _sets(side.count, size, random), study) for side in (members, controls)]
    cells = _cells(synthetic, study)
    univariate = _univariate(cells, study)
    univariate = univariate.take(random.permutation(len(univariate))[:predicates])
    measured = {"univariate": _play(univariate, *sides)}
    if len(cells) < _FEWEST_COLUMNS:
        return measured | {"multivariate": not_measured("the study has fewer than three columns")}
    return measured | {"multivariate": _play(_multivariate(cells, study, random, predicates), *sides)}


@dataclass(frozen=True)
class _Predicates:
    """Each says of a record that the cells of some columns lie between bounds, both included.

    columns: (predicates, conditions) int64.
    low, high: (predicates, conditions) float64.
    """

    columns: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def __len__(self) -> int:
        return len(self.columns)

    def take(self, chosen: np.ndarray | slice) -> "_Predicates":
        return _Predicates(self.columns[chosen], self.low[chosen], self.high[chosen])

    def fit(self, cells: np.ndarray) -> np.ndarray:
        """(predicates, rows) bool."""
        fits = np.ones((len(self), cells.shape[1]), dtype=bool)
        for at in range(self.columns.shape[1]):
            values = cells[self.columns[:, at]]
            fits &= (values >= self.low[:, at, None]) & (values <= self.high[:, at, None])
        return fits


def _cells(table: WindowedTable, study: Study) -> np.ndarray:
    """(columns, rows) float64: numbers as they are, positions of categories."""
    cells = []
    for name, column in study.columns.items():
        values = table.records[name]
        read = to_feature(values, name, column) if isinstance(column, CategoricalColumn) else column.to_numbers(values)
        cells.append(np.where(np.isnan(read), _MISSING, read))
    return np.array(cells)


def _is_number(study: Study) -> np.ndarray:
    """(columns,) bool."""
    return np.array([not isinstance(column, CategoricalColumn) for column in study.columns.values()])


def _univariate(cells: np.ndarray, study: Study) -> _Predicates:
    """Every predicate of one column that fits exactly one row."""
    conditions: list[tuple[int, float, float]] = []
    for at, is_number in enumerate(_is_number(study)):
        distinct, counts = np.unique(cells[at], return_counts=True)
        alone = distinct[counts == 1]
        conditions += [(at, value, value) for value in alone]
        if is_number:
            present = distinct[distinct < _MISSING]
            conditions += [(at, -_LARGEST, least) for least in present[:1] if least in alone]
            conditions += [(at, largest, _LARGEST) for largest in present[-1:] if largest in alone]
    columns, low, high = np.array(conditions, dtype=np.float64).reshape(-1, 3).T[:, :, None]
    return _Predicates(columns.astype(np.int64), low, high)


def _multivariate(cells: np.ndarray, study: Study, random: np.random.Generator, most: int) -> _Predicates:
    """Up to `most` different predicates of three or four columns that fit exactly one row."""
    median = np.array([_median(column) for column in cells])
    found = np.empty((0, 1 + min(len(cells), _MOST_COLUMNS)), dtype=np.int64)  # a row, then columns of it
    for _ in range(0, most * _TRIES, _BATCH):
        sources = np.column_stack([random.integers(0, cells.shape[1], _BATCH), _some_columns(len(cells), random)])
        fits_one = _fit_one_row(_describe(sources, cells, median, _is_number(study)), cells)
        found = np.unique(np.vstack([found, sources[fits_one]]), axis=0)
        if len(found) >= most:
            break
    return _describe(random.permutation(found)[:most], cells, median, _is_number(study))


def _median(cells: np.ndarray) -> float:
    present = cells[cells < _MISSING]
    return float(np.median(present)) if len(present) else 0.0


def _some_columns(count: int, random: np.random.Generator) -> np.ndarray:
    """(_BATCH, 3 or 4) different columns in rising order; of four, half the rows have three and the last one twice."""
    columns = random.permuted(np.tile(np.arange(count), (_BATCH, 1)), axis=1)[:, :_MOST_COLUMNS]
    if columns.shape[1] == _MOST_COLUMNS:
        three = random.random(_BATCH) < 0.5
        columns[three, -1] = columns[three, :-1].max(axis=1)
    return np.sort(columns, axis=1)


def _describe(sources: np.ndarray, cells: np.ndarray, median: np.ndarray, is_number: np.ndarray) -> _Predicates:
    """What some columns say of a row; `sources` holds the row, then the columns."""
    columns = sources[:, 1:]
    values = cells[columns, sources[:, :1]]
    exact = ~is_number[columns] | (values == _MISSING)
    above = values >= median[columns]
    low = np.where(exact | above, values, -_LARGEST)
    high = np.where(exact | ~above, values, _LARGEST)
    return _Predicates(columns, low, high)


def _fit_one_row(predicates: _Predicates, cells: np.ndarray) -> np.ndarray:
    """Which predicates fit exactly one row, (predicates,) bool."""
    counts = np.zeros(len(predicates), dtype=np.int64)
    start, stop = 0, _FIRST_ROWS
    # Most fit many rows, and a few rows show it: the others are tried on more and more.
    while start < cells.shape[1]:
        alive = np.flatnonzero(counts <= 1)
        counts[alive] += predicates.take(alive).fit(cells[:, start:stop]).sum(axis=1)
        start, stop = stop, 8 * stop
    return np.asarray(counts == 1)


def _sets(count: int, size: int, random: np.random.Generator) -> np.ndarray:
    """Units in as many random sets of a size as there are, (sets, size) int64."""
    return random.permutation(count)[: count // size * size].reshape(-1, size)


class _Side:
    """Members or controls, in sets in which one unit is to be singled out.

    share: of all units that are in one set.
    """

    def __init__(self, population: Population, sets: np.ndarray, study: Study) -> None:
        by_unit = np.argsort(population.units, kind="stable")
        self._cells = _cells(population.table, study)[:, by_unit]
        self._first = np.unique(population.units[by_unit], return_index=True)[1]
        self._sets = sets
        self.share = sets.shape[1] / population.count

    def try_all(self, predicates: _Predicates) -> Tally:
        """Whether a predicate fits exactly one unit of a set, for all predicates and sets."""
        step = max(1, _CELLS // self._cells.shape[1])
        times = np.zeros(self._sets.size, dtype=np.int64)  # that a unit was singled out
        for start in range(0, len(predicates), step):
            fits = predicates.take(slice(start, start + step)).fit(self._cells)
            units = np.logical_or.reduceat(fits, self._first, axis=1)[:, self._sets]  # (predicates, sets, size)
            units &= units.sum(axis=2, keepdims=True) == 1
            times += units.sum(axis=0).ravel()
        won = int(times.sum())
        crowding = float((times**2).sum() / won) if won else 1.0
        return Tally(won, len(predicates) * len(self._sets), crowding)


def _play(predicates: _Predicates, members: _Side, controls: _Side) -> Residual:
    if not len(predicates):
        return not_measured("no predicate was found that fits one synthetic record alone")
    return compare(members.try_all(predicates), controls.try_all(predicates), share=members.share)
