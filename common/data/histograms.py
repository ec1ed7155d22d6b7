"""One-way tables at several resolutions, and the best estimate of the fine cells from their noised release.

A heavy-tailed column spreads few units over many cells, each of which drowns in noise; a sum of k noised cells carries
k times the variance. Such columns are therefore also counted on coarser cells, four to one, and generalised least
squares joins all resolutions into one estimate with a known covariance.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from common.data.changes import BUCKETS, moves
from common.data.encoding import Grid
from common.data.schema import CategoricalColumn
from common.data.tables import Hits, TableLayout, one_way

_BRANCHING = 4
_COARSEST = 16
_MOST_SMOOTHED = 512
_STRENGTHS = (0.0, *(10.0**power for power in range(-1, 7)))


@dataclass(frozen=True)
class Histogram:
    """Estimated counts of the fine cells of one column.

    counts: (classes, cells), in units; unbiased.
    covariance: (cells, cells), of the estimates of one class; the classes are independent.
    smooth: (classes, cells), the same counts nearer to the truth in sum, at the price of a bias.
    """

    counts: np.ndarray
    covariance: np.ndarray
    smooth: np.ndarray

    def deviation(self, cells: slice | np.ndarray) -> float:
        """Standard deviation of the sum of some cells over all classes."""
        block = self.covariance[cells][:, cells]
        return float(np.sqrt(len(self.counts) * block.sum()))


def resolutions(grid: Grid) -> list[np.ndarray]:
    """Maps from fine cell to counted cell, (cells,) int64 each, the identity first.

    A column that is not sparse has no other. The missing cell stays apart at every resolution.
    """
    maps = [np.arange(grid.n_cells, dtype=np.int64)]
    if isinstance(grid.column, CategoricalColumn) or not grid.column.is_sparse:
        return maps
    width = 1
    while -(-grid.n_values // width) > _COARSEST:
        width *= _BRANCHING
        joined = np.arange(grid.n_values, dtype=np.int64) // width
        maps.append(np.append(joined, joined[-1] + 1) if grid.column.missing else joined)
    return maps


def histogram_layout(
    grids: Sequence[Grid], classes: int, channels: Sequence[Grid] = (), *, moving: bool = True
) -> TableLayout:
    """Layout of the one-way release: a table for each resolution of each column and channel.

    Then, where `moving`, one of each channel's moves.
    """
    sizes = [int(table[-1]) + 1 for grid in (*grids, *channels) for table in resolutions(grid)]
    return one_way([*sizes, *[BUCKETS] * (len(channels) if moving else 0)], classes)


def histogram_codes(cells: np.ndarray, grids: Sequence[Grid]) -> np.ndarray:
    """Codes of each record at every resolution of every column, (records, tables) int64."""
    return np.column_stack(
        [table[cells[:, position]] for position, grid in enumerate(grids) for table in resolutions(grid)]
    )


def window_hits(
    cells: np.ndarray,
    labels: np.ndarray,
    channels: Sequence[Grid],
    layout: TableLayout,
    *,
    whole: int,
    moving: bool = True,
) -> Iterator[Hits]:
    """What windows add to the channels' tables of the one-way release, in the layout's order.

    Args:
        cells: (units, steps, channels) int64 fine cells, -1 beyond a unit's last step.
        labels: (units,) int64.
        channels: their grids.
        layout: from `histogram_layout`, these channels last.
        whole: grid units that a unit may add to a table; its steps, or its moves, share them equally.
        moving: as `histogram_layout` was told.
    """
    lengths = (cells[:, :, 0] >= 0).sum(axis=1)
    rows, steps = np.nonzero(cells[:, :, 0] >= 0)
    shares = whole // lengths[rows]
    moved_channels = channels if moving else ()
    number = layout.n_tables - sum(len(resolutions(grid)) for grid in channels) - len(moved_channels)
    for position, grid in enumerate(channels):
        for table in resolutions(grid):
            yield _hits(rows, labels, table[cells[rows, steps, position]], shares, layout, number)
            number += 1
    for position, grid in enumerate(moved_channels):
        moved, buckets, of_unit = moves(cells[:, :, position], grid)
        yield _hits(moved, labels, buckets, whole // of_unit, layout, number)
        number += 1


def _hits(
    rows: np.ndarray, labels: np.ndarray, codes: np.ndarray, shares: np.ndarray, layout: TableLayout, number: int
) -> Hits:
    cells = np.ravel_multi_index((labels[rows], codes), layout.shapes[number]) + layout.offsets[number]
    return Hits(rows.astype(np.int64), cells.astype(np.int64), shares.astype(np.int64))


def estimate_histograms(
    counts: np.ndarray, layout: TableLayout, grids: Sequence[Grid], *, variance: float
) -> list[Histogram]:
    """Generalised least squares over the resolutions of each column; the moves of channels are left over.

    Args:
        counts: (layout.n_cells,), noised counts in units.
        layout: from `histogram_layout` of the same grids.
        grids: of the columns, then of the channels.
        variance: of the noise in one cell.
    """
    tables = layout.split(counts)
    histograms = []
    for grid in grids:
        maps = resolutions(grid)
        design = np.concatenate([np.eye(int(table[-1]) + 1)[:, table] for table in maps])
        observed = np.concatenate([next(tables) for _ in maps], axis=1)
        inverse = np.linalg.inv(design.T @ design)
        estimate, covariance = observed @ design @ inverse, variance * inverse
        histograms.append(Histogram(estimate, covariance, _smoothed(estimate, covariance, grid)))
    return histograms


def _smoothed(counts: np.ndarray, covariance: np.ndarray, grid: Grid) -> np.ndarray:
    """Counts of neighbouring cells drawn together, as far as Stein's unbiased estimate of the risk says that it helps.

    A Whittaker smoother with second differences; its strength, one a class, is the candidate with the least estimated
    risk, none among them. Heaps and zeros so stay, while the noise of an even tail does not. Values alone: missing and
    categories have no neighbours.
    """
    smooth = counts.copy()
    cells = grid.n_values
    if not grid.is_ordered or not 3 <= cells <= _MOST_SMOOTHED:
        return smooth
    known = np.linalg.inv(covariance[:cells, :cells])
    bends = np.diff(np.eye(cells), n=2, axis=0)
    scale = np.trace(known) / cells
    maps = [np.linalg.solve(known + strength * scale * bends.T @ bends, known) for strength in _STRENGTHS]
    for own in smooth:
        values = own[:cells].copy()
        risks = []
        for linear in maps:
            left = values - linear @ values
            risks.append(left @ known @ left + 2 * np.trace(linear))
        own[:cells] = maps[int(np.argmin(risks))] @ values
    return smooth
