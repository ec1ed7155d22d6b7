"""How far a channel moves from one value to the next: a table on a public grid, which says how smooth it is.

Bins are too coarse to show it. The table is counted on fine cells, in buckets of doubling width, and released with the
one-way tables; a decoded trajectory is then made as smooth as the table says.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from common.data.encoding import Grid

_WIDEST: Final = 7
_LEAST: Final = 1e-12
BUCKETS: Final = 2 * _WIDEST + 1
"""No change; up and down by 1, 2-3, 4-7, ... cells. For categories: the same, or another."""


def change_buckets(before: np.ndarray, after: np.ndarray, grid: Grid) -> np.ndarray:
    """Bucket of the move between two value cells, int64 in 0 .. BUCKETS - 1, the middle one for none."""
    apart = after - before
    if not grid.is_ordered:
        return np.where(apart == 0, _WIDEST, _WIDEST + 1)
    size = np.minimum(np.frexp(np.abs(apart).astype(np.float64))[1], _WIDEST)
    return np.asarray(_WIDEST + np.sign(apart) * size, dtype=np.int64)


def moves(cells: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The moves from each value to the next one of the same unit, whatever gap lies between them.

    Args:
        cells: (units, steps) int64, -1 beyond a unit's last step.
        grid: of the channel.

    Returns:
        rows (moves,), the unit of each move; buckets (moves,); number (moves,), how many moves its unit has.
    """
    rows, steps = np.nonzero((cells >= 0) & (cells < grid.n_values))
    values, follows = cells[rows, steps], rows[1:] == rows[:-1]
    moved = rows[1:][follows]
    number = np.bincount(moved, minlength=len(cells))[moved]
    return moved, change_buckets(values[:-1][follows], values[1:][follows], grid), number


def smoothness(released: np.ndarray, candidates: Sequence[np.ndarray]) -> int:
    """Which of some distributions over buckets is nearest in shape to a noised table, (buckets,); the first if none is.

    By least squares over all multiples of each, which noise moves by as much in one direction as in another.
    """
    lengths = [max(float(np.linalg.norm(candidate)), _LEAST) for candidate in candidates]
    found = [float(released @ candidate) / length for candidate, length in zip(candidates, lengths, strict=True)]
    return int(np.argmax(np.maximum(found, 0.0)))
