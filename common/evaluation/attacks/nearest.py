"""Nearest neighbours in a space that leaves some of its coordinates out, by brute force in pieces that fit."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch

_CELLS: Final = 8_000_000
"""Distances held at a time."""
_SPARE: Final = 8
"""Candidates beyond those asked for. Products of float32 find them, and may err by a few in a million."""


def nearest(
    points: np.ndarray, queries: np.ndarray, *, most: int, left_out: Sequence[slice] = (slice(0),)
) -> np.ndarray:
    """The nearest points of each query, once for each set of coordinates that is left out.

    Guarantees: in rising order of the exact distance, and of two at one distance the first in `points` comes first
        among the candidates.

    Args:
        points: (points, dimensions) float32.
        queries: (queries, dimensions) float32.
        most: neighbours; all points where there are fewer.
        left_out: coordinates; by default once with none left out.

    Returns:
        (left_out, queries, neighbours) int64, positions in `points`.
    """
    most = min(most, len(points))
    candidates = min(most + _SPARE, len(points))
    found = np.empty((len(left_out), len(queries), most), dtype=np.int64)
    step = max(1, _CELLS // max(1, len(points)))
    for start in range(0, len(queries), step):
        part = queries[start : start + step]
        whole = _distances(points, part)
        for at, without in enumerate(left_out):
            rough = whole - _distances(points[:, without], part[:, without])
            near = np.sort(_smallest(rough, candidates), axis=1)
            apart = (points[near] - part[:, None]) ** 2  # (queries, candidates, dimensions)
            apart[:, :, without] = 0.0
            order = np.argsort(apart.sum(axis=2), axis=1, kind="stable")[:, :most]
            found[at, start : start + step] = np.take_along_axis(near, order, axis=1)
    return found


def _smallest(rows: np.ndarray, count: int) -> np.ndarray:
    """(rows, count) positions of the smallest values of each row, in any order; many times as fast as argpartition."""
    chosen = torch.topk(torch.from_numpy(rows), count, dim=1, largest=False, sorted=False)
    return chosen.indices.numpy()


def _distances(points: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """(queries, points) squared distances, less what is the same for all points."""
    return np.asarray((points**2).sum(axis=1) - 2 * queries @ points.T)
