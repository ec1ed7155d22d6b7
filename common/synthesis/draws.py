"""Draws by weight."""

import numpy as np


def draw_rows(weights: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A position in each row, by its weights, (rows,) int64; weights: (rows, positions), some above 0 in each."""
    total = np.cumsum(weights, axis=1)
    point = random.random(len(weights)) * total[:, -1]
    found = (point[:, None] >= total).sum(axis=1)
    # Rounding may put a point at the very end, beyond the last position with a weight.
    last = weights.shape[1] - 1 - (weights[:, ::-1] > 0).argmax(axis=1)
    return np.asarray(np.minimum(found, last))


def resample(weights: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    """Positions drawn by weight, (size,), each as often as its share says or once more or less; in rising order.

    Source: Carpenter et al. 1999 (systematic resampling).
    """
    edges = np.cumsum(weights / weights.sum())
    points = (np.arange(size) + random.random()) / size
    return np.minimum(np.searchsorted(edges, points, side="right"), int(np.flatnonzero(weights)[-1]))


def whole_shares(counts: np.ndarray, rows: int) -> np.ndarray:
    """Whole rows of each of some shares, by largest remainder; (shares,) int64."""
    exact = counts / counts.sum() * rows
    whole = np.floor(exact).astype(np.int64)
    most = np.argsort(-(exact - whole), kind="stable")[: rows - int(whole.sum())]
    whole[most] += 1
    return np.asarray(whole)
