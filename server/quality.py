"""What the coordinator can know of a generator's quality for nothing: from what was released, and from the generator.

The Fréchet distance is that between two normal laws with the first two moments of the records, and of the steps of
windows, as the noised tables say and as the generator says, in a fixed public embedding of each column's and channel's
groups: position for ordered ones, indicators for the rest. It compares with noised tables, so it does not reach 0; its
course over the rounds is what is looked at.
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


@dataclass(frozen=True)
class _Law:
    """Whose first two moments are compared: a record's columns, or the channels in one step of a window.

    marginal, pairs: names of the tables that hold them. joins: from bins to groups, over all axes side by side.
    """

    marginal: str
    pairs: Family
    grids: Sequence[Grid]
    maps: Sequence[np.ndarray]
    joins: np.ndarray


def frechet_distance(
    targets: Targets,
    generator: Generator,
    grids: Sequence[Grid],
    maps: Sequence[np.ndarray],
    *,
    seed: int,
    device: torch.device,
) -> float | None:
    """Distance of the generator's first two moments from the released ones; None where no pairs were measured.

    That of records and that of single steps of windows are added.

    Args:
        targets: released so far.
        generator: on `device`.
        grids: of the record's columns, then of the channels.
        maps: from the bins of each column and channel to its groups.
        seed: of the latents.
        device: where to compute.
    """
    columns, groups = len(generator.shape.sizes), targets.groups
    laws = [_Law("one_way", Family.PAIR, grids[:columns], maps[:columns], groups.records)]
    if generator.shape.sequence is not None:
        laws.append(_Law("average", Family.TOGETHER, grids[columns:], maps[columns:], groups.channels))
    laws = [law for law in laws if bool((targets.tables[law.pairs].precision > 0).any())]
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

    return sum(_law_distance(law, targets, made(law.marginal), made(law.pairs)) for law in laws)


def _law_distance(law: _Law, targets: Targets, marginal: np.ndarray, pairs: np.ndarray) -> float:
    """Between what was released and the generator's tables, (bins,) and (groups, groups)."""
    released = targets.tables[law.pairs]
    sizes = sizes_of(law.maps)
    embedding = block_diag(*[_embedding(grid, size) for grid, size in zip(law.grids, sizes, strict=True)])
    axis_of = np.repeat(np.arange(len(sizes)), sizes)
    joined = np.eye(len(axis_of))[law.joins]  # (bins, groups)

    def mean(table: np.ndarray) -> np.ndarray:
        own = np.maximum(table @ joined, 0.0)
        totals = np.bincount(axis_of, weights=own)[axis_of]
        return np.asarray(own / np.where(totals > 0, totals, 1.0))

    units = np.maximum(targets.label_counts, 1.0).sum()
    moments = (
        _moments(mean(targets.tables[law.marginal].values.sum(axis=0)), released.values.sum(axis=0) / units, axis_of),
        _moments(mean(marginal), np.where(released.precision > 0, pairs, 0.0), axis_of),
    )
    return _distance(*(_embedded(one, embedding) for one in moments))


def _embedding(grid: Grid, groups: int) -> np.ndarray:
    """(groups, dimensions): values of an ordered column from 0 to 1, missing and categories each an indicator."""
    values = groups - int(grid.column.missing)
    if not grid.is_ordered or values < 2:
        return np.eye(groups)[:, 1:] if groups > 1 else np.zeros((1, 1))
    position = np.append(np.linspace(0, 1, values), [0.5] * (groups - values))
    absent = np.append(np.zeros(values), [1.0] * (groups - values))
    return np.column_stack([position, absent][: 1 + groups - values])


def _moments(mean: np.ndarray, upper: np.ndarray, axis_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and second moments of group indicators, (groups,) and (groups, groups), from upper blocks of pairs."""
    second = upper + upper.T
    same = axis_of[:, None] == axis_of[None, :]
    second[same] = np.diag(mean)[same]
    # What was not measured is taken to be independent, on both sides alike.
    unknown = (second == 0) & ~same
    return mean, np.where(unknown, np.outer(mean, mean), second)


def _embedded(moments: tuple[np.ndarray, np.ndarray], embedding: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = embedding.T @ moments[0]
    covariance = embedding.T @ moments[1] @ embedding - np.outer(mean, mean)
    return mean, (covariance + covariance.T) / 2


def _distance(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> float:
    """Fréchet distance of two normal laws; noise may leave a covariance indefinite: its negative part is dropped."""
    root = _root(first[1])
    cross = np.linalg.eigvalsh(root @ (_root(second[1]) @ _root(second[1])) @ root)
    traces = sum(float(np.maximum(np.linalg.eigvalsh(one[1]), 0).sum()) for one in (first, second))
    apart = float(((first[0] - second[0]) ** 2).sum())
    return max(0.0, apart + traces - 2 * float(np.sqrt(np.maximum(cross, 0)).sum()))


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
