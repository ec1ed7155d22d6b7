"""How far a channel moves from one step to the next: a table on a public grid, which says how smooth it is.

Bins are too coarse to show it. The table is counted on fine cells, in buckets of doubling width, and released with the
one-way tables; a decoded trajectory is then made as smooth as the table says.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from common.data.encoding import Grid

_WIDEST: Final = 7
BUCKETS: Final = 2 * _WIDEST + 1
"""No change; up and down by 1, 2-3, 4-7, ... cells. For categories: the same, or another."""


def change_buckets(before: np.ndarray, after: np.ndarray, grid: Grid) -> np.ndarray:
    """Bucket of the move between two value cells, int64 in 0 .. BUCKETS - 1, the middle one for none."""
    apart = after - before
    if not grid.is_ordered:
        return np.where(apart == 0, _WIDEST, _WIDEST + 1)
    size = np.minimum(np.frexp(np.abs(apart).astype(np.float64))[1], _WIDEST)
    return np.asarray(_WIDEST + np.sign(apart) * size, dtype=np.int64)


def moves(cells: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """The moves between two steps, one after the other, that both hold a value.

    Args:
        cells: (units, steps) int64, -1 beyond a unit's last step.
        grid: of the channel.

    Returns:
        rows (moves,), the unit of each move; buckets (moves,).
    """
    there = (cells >= 0) & (cells < grid.n_values)
    rows, steps = np.nonzero(there[:, 1:] & there[:, :-1])
    return rows, change_buckets(cells[rows, steps], cells[rows, steps + 1], grid)


def smoothness(shares: np.ndarray, candidates: Sequence[np.ndarray]) -> int:
    """Which of some candidate distributions over buckets is nearest to a released one, by total variation."""
    return int(np.argmin([np.abs(shares - candidate).sum() for candidate in candidates]))
