"""How far the features of synthetic rows are from those of real rows that the generator did not learn from.

The features are those of `frozen`: a fixed network that saw no data. Two statistics of them:

- the Fréchet distance between normal distributions of the same means and covariances (Heusel et al. 2017). Two samples
  of one population are not at 0 but at about d^2 / 2n of their mean variance, so that it is only read beside its floor,
  two real samples of the same size, and a ceiling: real rows with every column shuffled;
- the kernel distance, squared maximum mean discrepancy with a polynomial kernel of degree three (Bińkowski et al.
  2018), whose expectation for two samples of one population is 0.

Copies of the training rows are as near as real rows are: whether rows were copied is not looked at.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from common.data.windows import WindowedTable
from common.evaluation.figures import CONFIDENCE, Figure, Population
from common.evaluation.frozen import DIMENSIONS, FrozenEmbedding
from common.evaluation.sampling import equal_rows
from common.study import Study

FEWEST: Final = 2 * DIMENSIONS
"""Rows below which covariances of so many features say nothing."""
_RESAMPLES: Final = 200
_SUBSETS: Final = 100
_SUBSET: Final = 1000
_BLOCK: Final = 100


@dataclass(frozen=True)
class KernelDistance:
    """Mean and standard deviation over subsets of rows; below 0 by chance where tables are alike.

    subset: rows of each side in a subset. Subsets overlap, so that the deviation is of one subset, not of the mean.
    """

    mean: float | None = None
    sd: float | None = None
    subset: int | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Frechet:
    """Distances of features; every one of `rows` rows against as many hold-out rows.

    embedding, sha256: the network and its weights; distances of different ones cannot be compared.
    distance: Fréchet, of synthetic rows. floor: of training rows. ceiling: of training rows with columns shuffled.
    normalised: (distance - floor) / (ceiling - floor): 0 as near as real rows, 1 as far as rows of which only the
        columns are right, each by itself; more is possible, and less than 0 by chance.
    kernel, kernel_floor, kernel_ceiling: the same of the kernel distance.
    """

    embedding: str
    sha256: str
    rows: int
    distance: Figure
    floor: Figure
    ceiling: Figure
    normalised: Figure
    kernel: KernelDistance
    kernel_floor: KernelDistance
    kernel_ceiling: KernelDistance


def measure_frechet(
    synthetic: Population | WindowedTable,
    train: Population | WindowedTable,
    holdout: Population | WindowedTable,
    study: Study,
    *,
    seed: int,
    most: int = 10_000,
) -> Frechet:
    """Fréchet and kernel distance of synthetic rows to real ones, between floor and ceiling.

    Intervals are percentiles of 200 draws of units with replacement, on all sides at once, moved so that their mean is
    the value: drawing again adds to a distance what sampling added to it before, so that unmoved ones lie too high. A
    value and its interval are those of tables of this size, as the floor is. Near the floor they are too wide, if
    anything: there a distance is a sum of squares, which vary more when drawn again.

    Guarantees: the same tables and seed give the same figures; distances are >= 0.
    Edge cases: fewer than 128 rows on a side -> None and the reason; a ceiling not above the upper end of the floor ->
    no normalised distance.

    Args:
        synthetic: rows that the generator made, each a unit; or real ones, with their units.
        train: real rows that it learned from.
        holdout: real rows that it did not learn from; with few of them, as few are taken of the others.
        study: of all three.
        seed: of the rows drawn, of the shuffling and of the resamples.
        most: rows of each at most.

    Raises:
        ValueError: `most` is not positive.
    Source: Heusel et al. 2017, equation 6; Bińkowski et al. 2018, section 4.
    """
    embedding = FrozenEmbedding(study)
    populations = equal_rows([synthetic, train, holdout], seed=seed, most=most)
    rows = len(populations[0].units)
    if rows < FEWEST:
        reason = f"fewer than {FEWEST} rows on a side"
        figure, kernel = Figure(n=rows, reason=reason), KernelDistance(reason=reason)
        return Frechet(embedding.name, embedding.sha256, rows, figure, figure, figure, figure, kernel, kernel, kernel)
    made, learnt, kept = populations
    shuffled = shuffle_columns(learnt.table, study, seed=seed)
    parts = [made, learnt, Population(shuffled, np.arange(rows)), kept]
    features = [embedding.embed(part.table) for part in parts]
    distance, floor, ceiling, normalised = _figures(features, [part.units for part in parts], seed)
    kernels = [kernel_distance(one, features[3], seed=seed) for one in features[:3]]
    return Frechet(embedding.name, embedding.sha256, rows, distance, floor, ceiling, normalised, *kernels)


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Squared distance of the normal distributions with the means and covariances of two tables of features.

    Guarantees: >= 0, and symmetric but for rounding.

    Args:
        first: (rows, features), two rows or more.
        second: (rows, features), of as many features.
    Source: Dowson and Landau 1982, equation 4; the trace of the root of a product is the nuclear norm of the product
        of the roots.
    """
    return _distance(*(_moments(features, np.ones(len(features))) for features in (first, second)))


def kernel_distance(first: np.ndarray, second: np.ndarray, *, seed: int) -> KernelDistance:
    """Unbiased squared maximum mean discrepancy, kernel (x . y / features + 1)^3, over 100 pairs of subsets.

    A subset has 1,000 rows, or a quarter of the rows where there are fewer than 4,000.

    Edge cases: fewer than eight rows of either -> None and the reason.

    Args:
        first: (rows, features).
        second: (rows, features).
        seed: of the subsets.
    Source: Bińkowski et al. 2018, section 4; Gretton et al. 2012, lemma 6.
    """
    size = min(_SUBSET, len(first) // 4, len(second) // 4)
    if size < 2:
        return KernelDistance(reason="fewer than eight rows on a side")
    random = np.random.default_rng([seed, 42])
    found = [
        _discrepancy(random.choice(first, size, replace=False), random.choice(second, size, replace=False))
        for _ in range(_SUBSETS)
    ]
    return KernelDistance(float(np.mean(found)), float(np.std(found, ddof=1)), size)


def shuffle_columns(table: WindowedTable, study: Study, *, seed: int) -> WindowedTable:
    """The table with every column in an order of its own, so that columns are right and nothing between them is.

    Of windows each step of each channel is shuffled among the units that reach it; how many steps a unit has stays.
    """
    random = np.random.default_rng([seed, 43])
    records = table.records.copy()
    for name in study.columns:
        records[name] = records[name].array[random.permutation(len(records))]
    values = table.values.copy()
    for step in range(values.shape[1]):
        there = np.flatnonzero(table.lengths > step)
        for channel in range(values.shape[2]):
            values[there, step, channel] = values[random.permutation(there), step, channel]
    return WindowedTable(records, values, table.lengths)


@dataclass(frozen=True)
class _Moments:
    """mean (features,); root (features, features), the symmetric root of the covariance."""

    mean: np.ndarray
    root: np.ndarray


def _moments(features: np.ndarray, weights: np.ndarray) -> _Moments:
    """Of rows that count as often as their weights say."""
    total = weights.sum()
    mean = weights @ features / total
    centred = features - mean
    covariance = (centred * weights[:, None]).T @ centred / (total - 1)
    values, vectors = np.linalg.eigh(covariance)
    return _Moments(mean, (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T)


def _distance(first: _Moments, second: _Moments) -> float:
    overlap = np.linalg.svd(first.root @ second.root, compute_uv=False).sum()
    spread = (first.root**2).sum() + (second.root**2).sum() - 2 * overlap
    return float(((first.mean - second.mean) ** 2).sum() + max(spread, 0.0))


def _figures(features: list[np.ndarray], units: list[np.ndarray], seed: int) -> list[Figure]:
    """Distance, floor, ceiling and normalised, of features of synthetic, training, shuffled and hold-out rows."""

    def measure(weights: list[np.ndarray]) -> np.ndarray:
        *others, kept = [_moments(one, weight) for one, weight in zip(features, weights, strict=True)]
        return np.array([_distance(one, kept) for one in others])

    rows = len(features[0])
    values = measure([np.ones(rows)] * len(features))
    random = np.random.default_rng([seed, 44])
    drawn = np.array([measure([_draw(one, random) for one in units]) for _ in range(_RESAMPLES)])
    figures = [_figure(value, column, rows) for value, column in zip(values, drawn.T, strict=True)]
    floor_high = figures[1].high
    assert floor_high is not None
    if values[2] <= floor_high:
        reason = "columns that are shuffled are no further from the hold-out than real rows are"
        return [*figures, Figure(n=rows, reason=reason)]
    normalised = (drawn[:, 0] - drawn[:, 1]) / (drawn[:, 2] - drawn[:, 1])
    value = (values[0] - values[1]) / (values[2] - values[1])
    return [*figures, _figure(value, normalised, rows, least=-math.inf)]


def _draw(units: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """How often each row counts when units are drawn with replacement, (rows,) float64."""
    count = int(units.max()) + 1
    return np.asarray(np.bincount(random.integers(0, count, count), minlength=count)[units], dtype=np.float64)


def _figure(value: float, drawn: np.ndarray, rows: int, *, least: float = 0.0) -> Figure:
    """With the percentiles of the draws, moved so that their mean is the value."""
    tails = [50 * (1 - CONFIDENCE), 100 - 50 * (1 - CONFIDENCE)]
    low, high = np.percentile(drawn - drawn.mean() + value, tails)
    return Figure(float(value), max(float(low), least), float(high), n=rows)


def _discrepancy(first: np.ndarray, second: np.ndarray) -> float:
    size = len(first)
    within = sum(_kernel_sum(one, one) - _kernel_of_itself(one).sum() for one in (first, second))
    return float(within / (size * (size - 1)) - 2 * _kernel_sum(first, second) / size**2)


def _kernel_sum(first: np.ndarray, second: np.ndarray) -> float:
    """Over all pairs of rows; few at a time, so that they stay in the processor's cache."""
    scaled = second.T / second.shape[1]
    total = 0.0
    for start in range(0, len(first), _BLOCK):
        similar = first[start : start + _BLOCK] @ scaled + 1.0
        total += float(np.vdot(similar * similar, similar))
    return total


def _kernel_of_itself(features: np.ndarray) -> np.ndarray:
    """(rows,), of each row with itself."""
    return np.asarray(((features**2).sum(axis=1) / features.shape[1] + 1.0) ** 3)
