"""What the coordinator can know of a generator's quality for nothing: from what was released, and from the generator.

The Fréchet distance is that between two normal laws with the first two moments of the records, as the noised tables
say and as the generator says, in a fixed public embedding of each column's groups: position for ordered ones,
indicators for the rest. It compares with noised tables, so it does not reach 0; its course over the rounds is what is
looked at.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.linalg import block_diag
from sklearn.linear_model import LogisticRegression

from common.data.encoding import Grid
from common.data.queries import Family
from common.models.critics import Joins, expectations
from common.models.generator import Generator
from common.models.monitor import BANDS
from common.models.targets import Targets

_LATENTS = 2048
"""Latents a class from which the generator's moments are computed."""


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

    Args:
        targets: released so far.
        generator: on `device`.
        grids: of the record's columns.
        maps: from the bins of each column to its groups.
        seed: of the latents.
        device: where to compute.
    """
    pairs = targets.tables[Family.PAIR]
    if not bool((pairs.precision > 0).any()):
        return None
    columns = len(grids)
    embedding = block_diag(*[_embedding(grid, int(group.max()) + 1) for grid, group in zip(grids, maps, strict=False)])
    counts = np.maximum(targets.label_counts, 1.0)
    joined = np.eye(embedding.shape[0])[targets.groups.records]  # (bins, groups)
    one_way = np.maximum(targets.tables["one_way"].values.sum(axis=0) @ joined, 0.0)
    column_of = np.repeat(np.arange(columns), [int(group.max()) + 1 for group in maps[:columns]])
    totals = np.bincount(column_of, weights=one_way, minlength=columns)
    released = _moments(
        one_way / np.maximum(totals, 1.0)[column_of], pairs.values.sum(axis=0) / counts.sum(), column_of
    )
    with torch.no_grad():
        random = torch.Generator(device=device).manual_seed(seed)
        labels = torch.arange(len(counts), device=device).repeat_interleave(_LATENTS)
        noise = torch.randn(len(labels), generator.shape.noise, generator=random, device=device)
        expected = expectations(generator(noise, labels), len(counts), Joins(targets.groups, device))
    weights = counts / counts.sum()
    mean = np.tensordot(weights, expected["one_way"].cpu().double().numpy(), axes=1) @ joined
    second = np.tensordot(weights, expected[Family.PAIR].cpu().double().numpy(), axes=1)
    made = _moments(mean, np.where(pairs.precision > 0, second, 0.0), column_of)
    return _distance(*(_embedded(moments, embedding) for moments in (released, made)))


def _embedding(grid: Grid, groups: int) -> np.ndarray:
    """(groups, dimensions): values of an ordered column from 0 to 1, missing and categories each an indicator."""
    values = groups - int(grid.column.missing)
    if not grid.is_ordered or values < 2:
        return np.eye(groups)[:, 1:] if groups > 1 else np.zeros((1, 1))
    position = np.append(np.linspace(0, 1, values), [0.5] * (groups - values))
    absent = np.append(np.zeros(values), [1.0] * (groups - values))
    return np.column_stack([position, absent][: 1 + groups - values])


def _moments(mean: np.ndarray, upper: np.ndarray, column_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and second moments of group indicators, (groups,) and (groups, groups), from upper blocks of pairs."""
    second = upper + upper.T
    same = column_of[:, None] == column_of[None, :]
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


def fit_score(bins: np.ndarray, positive: np.ndarray, sizes: tuple[int, ...], *, seed: int) -> np.ndarray:
    """Weights of a logistic regression on one-hot bins, (sum of sizes + BANDS - 1,): weights, then band edges.

    Bands are quantiles of the score over the synthetic rows, so that a good model fills all of them.
    """
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    design = np.zeros((len(bins), sum(sizes)), dtype=np.float32)
    design[np.arange(len(bins))[:, None], bins + starts] = 1.0
    weights = np.zeros(design.shape[1])
    if 0 < positive.sum() < len(positive):
        model = LogisticRegression(C=0.1, max_iter=200, random_state=seed).fit(design, positive)
        weights = model.coef_[0].astype(np.float64)
    edges = np.quantile(design @ weights, np.arange(1, BANDS) / BANDS)
    return np.asarray(np.concatenate([weights, edges]))
