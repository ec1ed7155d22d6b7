"""What the coordinator can know of a generator's quality for nothing: from what was released, and from the generator.

The Fréchet distance is that between two normal laws with the first two moments of the records, and of the steps of
windows, as the noised tables say and as the generator says, in a fixed public embedding of each column's and channel's
groups: position for ordered ones, indicators for the rest. What noise alone makes of it is taken off: the mean distance
of the generator from its own tables with noise of the releases' variances, drawn from a public seed.

Noise also flattens: the same difference makes less of a distance between covariances, the more noise is in one of them.
So distances can be compared with each other where they are from the same releases.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import block_diag
from sklearn.linear_model import LogisticRegression

from common.data.encoding import Grid
from common.data.queries import Coded, Family
from common.data.tables import sizes_of
from common.models.critics import Joins, expectations
from common.models.generator import Generator
from common.models.monitor import BANDS
from common.models.targets import Targets

_LATENTS = 2048
"""Latents a class from which the generator's moments are computed."""
_DRAWS = 32
"""Noises whose mean distance is taken off: the noise in that mean is small beside what the releases' own adds."""


@dataclass(frozen=True)
class Distance:
    """Of a generator from what was released, less what noise makes of it.

    value: >= 0. spread: standard deviation that the releases' noise gives it, for a generator that equals the truth.
    """

    value: float
    spread: float


def frechet_distance(
    targets: Targets,
    generator: Generator,
    grids: Sequence[Grid],
    maps: Sequence[np.ndarray],
    *,
    seed: int,
    device: torch.device,
) -> Distance | None:
    """Distance of the generator's first two moments from those of whom the releases are about.

    That of records and that of single steps of windows are added. With the same releases and seed two generators have
    the same noise, so that it hardly touches which is nearer.

    Edge cases: no pairs were measured -> None; nearer than noise alone would be -> 0.

    Args:
        targets: released so far.
        generator: on `device`.
        grids: of the record's columns, then of the channels.
        maps: from the bins of each column and channel to its groups.
        seed: of latents, and of the noises whose mean distance is taken off.
        device: where to compute.
    """
    columns, groups = len(generator.shape.sizes), targets.groups
    laws = [_Law(targets, "one_way", Family.PAIR, grids[:columns], maps[:columns], groups.records)]
    if generator.shape.sequence is not None:
        laws.append(_Law(targets, "average", Family.TOGETHER, grids[columns:], maps[columns:], groups.channels))
    laws = [law for law in laws if law.is_measured]
    if not laws:
        return None
    counts = np.maximum(targets.label_counts, 1.0)
    with torch.no_grad():
        random = torch.Generator(device=device).manual_seed(seed)
        labels = torch.arange(len(counts), device=device).repeat_interleave(_LATENTS)
        noise = torch.randn(len(labels), generator.shape.noise, generator=random, device=device)
        expected = expectations(generator(noise, labels), len(counts), Joins(groups, device))
    weights = counts / counts.sum()

    def made(name: str) -> np.ndarray:
        return np.asarray(np.tensordot(weights, expected[name].cpu().double().numpy(), axes=1))

    apart, chance = 0.0, np.zeros(_DRAWS)
    noises = torch.Generator().manual_seed(seed)
    for law in laws:
        found = law.distances(made(law.marginal), made(law.pairs), noises)
        apart, chance = apart + float(found[0]), chance + found[1:]
    return Distance(max(0.0, apart - float(chance.mean())), float(chance.std(ddof=1)))


class _Law:
    """Whose first two moments are compared: a record's columns, or the channels in one step of a window.

    Marginals are (groups,), pairs (groups, groups), upper blocks alone; both in shares of all units.
    """

    def __init__(
        self,
        targets: Targets,
        marginal: str,
        pairs: Family,
        grids: Sequence[Grid],
        maps: Sequence[np.ndarray],
        joins: np.ndarray,
    ) -> None:
        """Take up what was released of it.

        Args:
            targets: released so far.
            marginal: name of the tables of one axis.
            pairs: name of those of two.
            grids: of the axes.
            maps: from the bins of each axis to its groups.
            joins: from bins to groups, over all axes side by side.
        """
        self.marginal, self.pairs = marginal, pairs
        one, two = targets.tables[marginal], targets.tables[pairs]
        self._known = two.precision > 0
        sizes = sizes_of(maps)
        self._axis_of = np.repeat(np.arange(len(sizes)), sizes)
        self._member = np.eye(len(sizes))[self._axis_of]  # (groups, axes)
        self._joined = np.eye(len(self._axis_of))[joins]  # (bins, groups)
        units = np.maximum(targets.label_counts, 1.0).sum()
        self._released = one.values.sum(axis=0) @ self._joined / units, two.values.sum(axis=0) / units
        # Classes are summed, and have noise of their own.
        scale = len(one.values) / units**2
        self._variances = _inverse(one.precision / scale) @ self._joined, _inverse(two.precision / scale)
        self._embedding = block_diag(*[_embedding(grid, size) for grid, size in zip(grids, sizes, strict=True)])

    @property
    def is_measured(self) -> bool:
        """Whether anything says how two axes go together."""
        return bool(self._known.any())

    def distances(self, bins: np.ndarray, pairs: np.ndarray, random: torch.Generator) -> np.ndarray:
        """Of a generator from the releases, then from its own tables under each noise, (1 + draws,).

        Args:
            bins: shares of the generator's rows, (bins,).
            pairs: (groups, groups).
            random: of the noises.
        """
        tables = bins @ self._joined, np.where(self._known, pairs, 0.0)
        own = self._moments(*tables)
        noises = [
            torch.randn(_DRAWS, *table.shape, generator=random, dtype=torch.float64).numpy() * np.sqrt(variance)
            for table, variance in zip(tables, self._variances, strict=True)
        ]
        noised = [self._moments(tables[0] + one, tables[1] + two) for one, two in zip(*noises, strict=True)]
        return _distances(own, [self._moments(*self._released), *noised])

    def _moments(self, marginal: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of the embedding, (dimensions,) and (dimensions, dimensions)."""
        both = pairs + pairs.T
        mean = self._mean(marginal, both @ self._member)
        same = self._axis_of[:, None] == self._axis_of
        # What was not measured is taken to be independent, on both sides alike.
        second = np.where(self._known | self._known.T, both, np.outer(mean, mean))
        second[same] = np.diag(mean)[same]
        embedded = self._embedding.T @ mean
        covariance = self._embedding.T @ second @ self._embedding - np.outer(embedded, embedded)
        return embedded, (covariance + covariance.T) / 2

    def _mean(self, marginal: np.ndarray, sums: np.ndarray) -> np.ndarray:
        """The tables of one axis and the sums of all tables of two, (groups, axes), by their precision."""
        alone, table = self._variances
        weights = np.column_stack([_inverse(alone), _inverse((table + table.T) @ self._member)])
        known = np.column_stack([marginal, sums])
        own = np.maximum((weights * known).sum(axis=1) * _inverse(weights.sum(axis=1)), 0.0)
        totals = (own @ self._member)[self._axis_of]
        return np.asarray(own / np.where(totals > 0, totals, 1.0))


def _inverse(values: np.ndarray) -> np.ndarray:
    """1 / values, 0 where they are."""
    return np.asarray(np.divide(1.0, values, out=np.zeros_like(values), where=values > 0))


def _embedding(grid: Grid, groups: int) -> np.ndarray:
    """(groups, dimensions): values of an ordered column from 0 to 1, missing and categories each an indicator."""
    values = groups - int(grid.column.missing)
    if not grid.is_ordered or values < 2:
        return np.eye(groups)[:, 1:] if groups > 1 else np.zeros((1, 1))
    position = np.append(np.linspace(0, 1, values), [0.5] * (groups - values))
    absent = np.append(np.zeros(values), [1.0] * (groups - values))
    return np.column_stack([position, absent][: 1 + groups - values])


def _distances(own: tuple[np.ndarray, np.ndarray], others: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Fréchet distance of a normal law from each of others, (others,).

    Noise may leave a covariance indefinite: its negative part is dropped.
    """
    root = _root(own[1])
    roots = [_root(covariance) for _, covariance in others]
    apart = [float(((own[0] - mean) ** 2).sum()) for mean, _ in others]
    # The trace of the root of a product is the sum of the singular values of the product of roots.
    return np.array(
        [
            max(
                0.0,
                means + (root**2).sum() + (other**2).sum() - 2 * np.linalg.svd(root @ other, compute_uv=False).sum(),
            )
            for means, other in zip(apart, roots, strict=True)
        ]
    )


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T)


def fit_score(coded: Coded, positive: np.ndarray, sizes: Sequence[int], *, seed: int) -> np.ndarray:
    """Weights of a logistic regression, (sum of sizes + BANDS - 1,): of each bin, then band edges.

    It sees the bins of a record as indicators and those of a window as shares of its steps. Bands are quantiles of the
    score over the synthetic rows, so that a good model fills all of them.

    Args:
        coded: synthetic rows in bins.
        positive: (rows,) bool.
        sizes: bins of each column, then of each channel.
        seed: of the regression.
    """
    starts, columns, rows = np.cumsum([0, *sizes]), coded.records.shape[1], np.arange(len(positive))
    design = np.zeros((len(positive), starts[-1]), dtype=np.float32)
    design[rows[:, None], coded.records + starts[:columns]] = 1.0
    if coded.windows is not None:
        there = coded.windows >= 0
        share = 1 / np.maximum(there[:, :, 0].sum(axis=1), 1)
        for at, start in enumerate(starts[columns:-1]):
            row, step = np.nonzero(there[:, :, at])
            np.add.at(design, (row, coded.windows[row, step, at] + start), share[row])
    weights = np.zeros(design.shape[1])
    if 0 < positive.sum() < len(positive):
        model = LogisticRegression(C=0.1, max_iter=200, random_state=seed).fit(design, positive)
        weights = model.coef_[0].astype(np.float64)
    edges = np.quantile(design @ weights, np.arange(1, BANDS) / BANDS)
    return np.asarray(np.concatenate([weights, edges]))
