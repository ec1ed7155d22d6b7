"""One-way tables at several resolutions, and the best estimate of the fine cells from their noised release.

A heavy-tailed column spreads few units over many cells, each of which drowns in noise; a sum of k noised cells carries
k times the variance. Such columns are therefore also counted on coarser cells, four to one, and generalised least
squares joins all resolutions into one estimate with a known covariance.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.data.encoding import Grid
from common.data.schema import CategoricalColumn
from common.data.tables import TableLayout, one_way

_BRANCHING = 4
_COARSEST = 16


@dataclass(frozen=True)
class Histogram:
    """Estimated counts of the fine cells of one column.

    counts: (classes, cells), in units.
    covariance: (cells, cells), of the estimates of one class; the classes are independent.
    """

    counts: np.ndarray
    covariance: np.ndarray

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


def histogram_layout(grids: Sequence[Grid], classes: int) -> TableLayout:
    """Layout of the one-way release: every resolution of every column is a table."""
    return one_way([int(table[-1]) + 1 for grid in grids for table in resolutions(grid)], classes)


def histogram_codes(cells: np.ndarray, grids: Sequence[Grid]) -> np.ndarray:
    """Codes of each record at every resolution of every column, (records, tables) int64."""
    return np.column_stack(
        [table[cells[:, position]] for position, grid in enumerate(grids) for table in resolutions(grid)]
    )


def estimate_histograms(
    counts: np.ndarray, layout: TableLayout, grids: Sequence[Grid], *, variance: float
) -> list[Histogram]:
    """Generalised least squares over the resolutions of each column.

    Args:
        counts: (layout.n_cells,), noised counts in units.
        layout: from `histogram_layout` of the same grids.
        grids: of the columns.
        variance: of the noise in one cell.
    """
    tables = layout.split(counts)
    histograms = []
    for grid in grids:
        maps = resolutions(grid)
        design = np.concatenate([np.eye(int(table[-1]) + 1)[:, table] for table in maps])
        observed = np.concatenate([next(tables) for _ in maps], axis=1)
        inverse = np.linalg.inv(design.T @ design)
        histograms.append(Histogram(observed @ design @ inverse, variance * inverse))
    return histograms
