"""From the bins of windows back to values that move as smoothly as the released tables of moves say.

A bin holds several fine cells. Drawing one anew in each step would make a trajectory jitter inside its bins. So a cell
is drawn by the released shares of its bin, tilted towards the channel's last cell, and the strength of the tilt is the
one with which the moves of trial windows come nearest to the released ones. It is chosen once for a release: the few
windows of a request, or those of some units alone, would say something else. While a channel stays in a bin, its
cells follow the released shares whatever the tilt. All of it is post-processing.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from common.data.binning import Binning
from common.data.changes import BUCKETS, moves, smoothness
from common.data.encoding import Grid
from common.data.schema import CategoricalColumn

_WIDTHS: Final = (np.inf, 16.0, 8.0, 4.0, 2.0, 1.0, 0.5, 0.25)
"""Candidates."""
_ITERATIONS: Final = 50
_LEAST: Final = 1e-300


def choose_width(
    path: np.ndarray,
    labels: np.ndarray,
    grid: Grid,
    binning: Binning,
    released: np.ndarray,
    generator: np.random.Generator,
) -> float:
    """How smooth a channel is inside of bins: over so many cells the tilt falls by a factor e; infinity is no tilt.

    Args:
        path: (units, steps) int64 bins of trial units, with the classes in the shares that were released.
        labels: (units,) int64.
        grid: of the channel.
        binning: of the channel.
        released: (classes, buckets), its noised table of moves.
        generator: of the draws.
    """
    if not grid.is_ordered:
        return np.inf
    candidates = []
    for width in _WIDTHS:
        cells = _draw_cells(path, labels, grid, binning, width=width, generator=generator)
        _, buckets, number = moves(cells, grid)
        shares = np.bincount(buckets, weights=1 / number, minlength=BUCKETS)
        candidates.append(shares / max(shares.sum(), 1.0))
    return float(_WIDTHS[smoothness(released.sum(axis=0), candidates)])


def decode_windows(
    bins: np.ndarray,
    labels: np.ndarray,
    grids: Sequence[Grid],
    binnings: Sequence[Binning],
    widths: Sequence[float],
    generator: np.random.Generator,
    *,
    cells: Mapping[int, np.ndarray] | None = None,
) -> np.ndarray:
    """Values of windows, (units, steps, channels) float64 as in `WindowedTable`.

    Args:
        bins: (units, steps, channels) int64, -1 beyond a unit's last step.
        labels: (units,) int64.
        grids: of the channels.
        binnings: of the channels.
        widths: of the channels, from `choose_width`.
        generator: of everything that is drawn.
        cells: (units, steps) of channels whose cells are drawn already, by their position.
    """
    values = np.full(bins.shape, np.nan)
    for position, (grid, binning, width) in enumerate(zip(grids, binnings, widths, strict=True)):
        path = bins[:, :, position]
        if cells is not None and position in cells:
            own = np.where(path >= 0, cells[position], -1)
        else:
            own = _draw_cells(path, labels, grid, binning, width=width, generator=generator)
        there = own >= 0
        values[:, :, position][there] = _to_numbers(own[there], grid, generator)
    return values


def keep_direction(values: np.ndarray, signs: Mapping[int, int]) -> np.ndarray:
    """Values whose bins never fall, or never rise, made so inside of bins: by the largest or least so far.

    Args:
        values: (units, steps, channels), NaN where missing.
        signs: 1 for a channel that never falls, -1 for one that never rises, by its position.
    """
    for at, sign in signs.items():
        own = values[:, :, at]
        extreme = (np.fmax if sign > 0 else np.fmin).accumulate(own, axis=1)
        values[:, :, at] = np.where(np.isnan(own), np.nan, extreme)
    return values


def _to_numbers(cells: np.ndarray, grid: Grid, generator: np.random.Generator) -> np.ndarray:
    decoded = grid.decode(cells, generator)
    if isinstance(grid.column, CategoricalColumn):
        return np.where(cells < grid.n_values, cells.astype(np.float64), np.nan)
    return grid.column.to_numbers(decoded)


def _draw_cells(
    path: np.ndarray,
    labels: np.ndarray,
    grid: Grid,
    binning: Binning,
    *,
    width: float,
    generator: np.random.Generator,
) -> np.ndarray:
    """A cell for each bin of a path, (units, steps) int64, -1 beyond the end.

    Args:
        path: (units, steps) int64 bins of one channel.
        labels: (units,) int64.
        grid: of the channel.
        binning: of the channel.
        width: of the tilt towards the last cell that held a value, in cells.
        generator: of the draws.
    """
    inside = [np.flatnonzero(binning.bin_of == number) for number in range(binning.n_bins)]
    most = max(map(len, inside))
    member = np.array([np.pad(cells, (0, most - len(cells)), mode="edge") for cells in inside])  # (bins, most)
    share = np.zeros((len(binning.within), binning.n_bins, most))
    for number, cells in enumerate(inside):
        share[:, number, : len(cells)] = binning.within[:, cells]
    inner = np.zeros_like(share)
    if np.isfinite(width):
        for number, cells in enumerate(inside):
            inner[:, number, : len(cells)] = _undo_tilt(binning.within[:, cells], cells, width)
    drawn = np.full(path.shape, -1, dtype=np.int64)
    last = np.full(len(path), -1, dtype=np.int64)
    for step in range(path.shape[1]):
        rows = np.flatnonzero(path[:, step] >= 0)
        cells, chance = member[path[rows, step]], share[labels[rows], path[rows, step]]  # (rows, most)
        if np.isfinite(width):
            apart = np.abs(cells - last[rows, None])
            # From the nearest cell of the bin on: far from the bin the tilt would vanish altogether.
            apart = apart - apart.min(axis=1, keepdims=True)
            stays = (last[rows] >= 0) & (binning.bin_of[last[rows]] == path[rows, step])
            chance[stays] = inner[labels[rows[stays]], path[rows[stays], step]]
            chance = np.where(last[rows, None] >= 0, chance * np.exp(-apart / width), chance)
        total = np.cumsum(chance, axis=1)
        # A tilt may leave nothing where the shares are zero nearby: then the shares alone decide.
        bare = total[:, -1] <= 0
        total[bare] = np.cumsum(share[labels[rows[bare]], path[rows[bare], step]], axis=1)
        point = generator.random(len(rows)) * total[:, -1]
        place = np.minimum((point[:, None] >= total).sum(axis=1), most - 1)
        drawn[rows, step] = cells[np.arange(len(rows)), place]
        held = drawn[rows, step] < grid.n_values
        last[rows[held]] = drawn[rows[held], step]
    return drawn


def _undo_tilt(shares: np.ndarray, cells: np.ndarray, width: float) -> np.ndarray:
    """What to tilt in the place of shares, so that a chain of tilted draws inside a bin follows the shares.

    Such a chain is reversible, and a cell's share is the product of its weight and of the sum of all tilted weights.
    Source: Marshall and Olkin 1968 (a symmetric positive matrix scaled to given row sums), by fixed-point iterations
    that go half of their way in logarithms.

    Args:
        shares: (classes, cells of the bin).
        cells: their positions.
        width: of the tilt, in cells.

    Returns:
        weights, (classes, cells of the bin).
    """
    tilt = np.exp(-np.abs(cells[:, None] - cells) / width)
    weights = np.sqrt(shares)
    for _ in range(_ITERATIONS):
        weights = np.sqrt(weights * shares / np.maximum(weights @ tilt, _LEAST))
    return np.asarray(weights)
