"""Do synthetic rows lie where real rows lie, and everywhere that they do: precision, recall, density, coverage.

Around each row of a table there is a ball that reaches to its k-th nearest row of the same table; the balls together
are where the table lies. Distances are Euclidean, of the features of `frozen`. They are exact: features are multiples
of 1 / 1024, so that a squared distance is a whole number that float64 holds, and rows that are equal are at distance 0.

Real rows do not reach 1 themselves: every figure is read beside its floor, training rows in place of synthetic ones.
Copies of real rows score better than new ones; whether rows were copied is not looked at.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from sklearn.neighbors import NearestNeighbors

from common.data.windows import WindowedTable
from common.evaluation.figures import Figure, Population, bootstrap, rate
from common.evaluation.frozen import GRID, FrozenEmbedding
from common.evaluation.sampling import equal_rows
from common.study import Study

NEIGHBOURS: Final = 5
_CHUNK_ENTRIES: Final = 2**25
"""Distances at a time: 256 MiB."""


@dataclass(frozen=True)
class Support:
    """Where one table lies beside another, the real one.

    precision: share of its rows within a ball of a real row.
    recall: share of real rows within a ball of one of its rows.
    density: mean number of real balls that its rows lie within, over k; about 1 for real rows, and above it where rows
        keep to where real ones are dense.
    coverage: share of real rows whose ball holds one of its rows.
    Intervals are those of other rows of the side that is counted, the balls as they are.
    """

    precision: Figure
    recall: Figure
    density: Figure
    coverage: Figure


@dataclass(frozen=True)
class Neighbours:
    """k-nearest neighbours of `rows` rows of each table.

    embedding, sha256: the network that makes the features, and its weights.
    synthetic: of synthetic rows, beside hold-out rows. floor: of training rows.
    """

    embedding: str
    sha256: str
    k: int
    rows: int
    synthetic: Support
    floor: Support


@dataclass(frozen=True)
class Counts:
    """What the figures of `Support` are means of.

    balls: (rows,) int64, balls of the real table that each row lies within.
    recalled, covered: (real rows,) bool, those that lie within a ball of the other table; whose ball holds a row of it.
    """

    balls: np.ndarray
    recalled: np.ndarray
    covered: np.ndarray


def measure_neighbours(
    synthetic: Population | WindowedTable,
    train: Population | WindowedTable,
    holdout: Population | WindowedTable,
    study: Study,
    *,
    seed: int,
    most: int = 10_000,
) -> Neighbours:
    """Precision, recall, density and coverage of synthetic rows, with those of training rows as their floor.

    Guarantees: the same tables and seed give the same figures; memory grows with the rows, not with their square.
    Edge cases: five rows or fewer on a side -> None and the reason.

    Args:
        synthetic: rows that the generator made, each a unit; or real ones, with their units.
        train: real rows that it learned from.
        holdout: real rows that it did not learn from; with few of them, as few are taken of the others.
        study: of all three.
        seed: of the rows drawn and of the resamples.
        most: rows of each at most; time grows with their square.

    Raises:
        ValueError: `most` is not positive.
    Source: Kynkäänniemi et al. 2019, equations 1 to 3; Naeem et al. 2020, equations 5 and 6.
    """
    embedding = FrozenEmbedding(study)
    made, learnt, kept = equal_rows([synthetic, train, holdout], seed=seed, most=most)
    rows = len(kept.units)
    if rows <= NEIGHBOURS:
        figure = Figure(n=rows, reason=f"fewer than {NEIGHBOURS + 1} rows on a side")
        nothing = Support(figure, figure, figure, figure)
        return Neighbours(embedding.name, embedding.sha256, NEIGHBOURS, rows, nothing, nothing)
    real = embedding.embed(kept.table)
    supports = [
        _support(count_neighbours(embedding.embed(part.table), real, k=NEIGHBOURS), part.units, kept.units, seed)
        for part in (made, learnt)
    ]
    return Neighbours(embedding.name, embedding.sha256, NEIGHBOURS, rows, *supports)


def count_neighbours(features: np.ndarray, real: np.ndarray, *, k: int) -> Counts:
    """Which rows lie within which balls, whose surfaces belong to them.

    Args:
        features: (rows, features), multiples of 1 / 1024; more than k rows.
        real: (real rows, features), multiples of 1 / 1024; more than k rows.
        k: the neighbour that a ball reaches to.

    Raises:
        ValueError: a table has k rows or fewer.
    """
    if k < 1 or min(len(features), len(real)) <= k:
        raise ValueError(f"{k=}: expected from 1 to one less than the rows")
    ours, theirs = np.rint(features * GRID), np.rint(real * GRID)
    our_reach, their_reach = _reach(ours, k), _reach(theirs, k)
    our_squares, their_squares = (ours**2).sum(axis=1), (theirs**2).sum(axis=1)
    balls = np.zeros(len(ours), dtype=np.int64)
    recalled, covered = np.zeros(len(theirs), dtype=bool), np.zeros(len(theirs), dtype=bool)
    step = max(1, _CHUNK_ENTRIES // len(theirs))
    for start in range(0, len(ours), step):
        rows = slice(start, start + step)
        apart = ours[rows] @ (-2.0 * theirs.T)  # (chunk, real rows), squared distances when complete
        apart += our_squares[rows, None]
        apart += their_squares
        within = apart <= their_reach
        balls[rows] = within.sum(axis=1)
        covered |= within.any(axis=0)
        recalled |= (apart <= our_reach[rows, None]).any(axis=0)
    return Counts(balls, recalled, covered)


def _reach(points: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each row's k-th nearest other row, (rows,) whole numbers."""
    distances = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(points).kneighbors()[0]
    return np.asarray(np.rint(distances[:, -1] ** 2))


def _support(counts: Counts, units: np.ndarray, real_units: np.ndarray, seed: int) -> Support:
    return Support(
        precision=_share(counts.balls > 0, units, seed),
        recall=_share(counts.recalled, real_units, seed),
        density=_mean(counts.balls / NEIGHBOURS, units, seed),
        coverage=_share(counts.covered, real_units, seed),
    )


def _share(holds: np.ndarray, units: np.ndarray, seed: int) -> Figure:
    """Rows that are units of their own have an exact interval."""
    if len(units) == int(units.max()) + 1:
        return rate(int(holds.sum()), len(holds))
    return _mean(holds, units, seed)


def _mean(values: np.ndarray, units: np.ndarray, seed: int) -> Figure:
    """Over rows, with the interval of drawing units."""
    count = int(units.max()) + 1
    total, rows = np.bincount(units, weights=values, minlength=count), np.bincount(units, minlength=count)
    return bootstrap(lambda drawn: float(total[drawn].sum() / rows[drawn].sum()), count, seed=seed)
