"""Bins: which fine cells are joined, decided from noised histograms alone, so that it costs no privacy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from scipy.optimize import isotonic_regression

from common.data.encoding import Grid
from common.data.histograms import Histogram

SIGNAL: Final = 2.0
"""A bin holds this many standard deviations of the noise in its own count."""
# A cell in a tail that holds this many standard deviations of its own noise is a heap, not noise.
_OWN_SIGNAL = 4.0


@dataclass(frozen=True)
class Binning:
    """How the cells of one column are joined into bins.

    bin_of: (cells,) int64, the bin of each cell, every number in 0 .. n_bins - 1 used.
    within: (classes, cells) float64, the released share of each cell in its bin per label class; sums to 1 in a bin.
    """

    bin_of: np.ndarray
    within: np.ndarray

    @property
    def n_bins(self) -> int:
        """Number of bins."""
        return int(self.bin_of.max()) + 1

    def draw_cells(self, bins: np.ndarray, labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """A cell inside each bin, drawn by the released shares of the row's label class; (rows,) int64."""
        order = np.argsort(self.bin_of, kind="stable")
        sums = np.cumsum(self.within[:, order], axis=1)
        ends = np.column_stack([np.zeros(len(sums)), sums[:, np.cumsum(np.bincount(self.bin_of)) - 1]])
        lower, upper = ends[labels, bins], ends[labels, bins + 1]
        # Rounding may reach the end, where the next bin begins.
        point = np.minimum(lower + (upper - lower) * generator.random(len(bins)), np.nextafter(upper, lower))
        places = np.empty(len(bins), dtype=np.int64)
        for label, own in enumerate(sums):
            rows = np.flatnonzero(labels == label)
            places[rows] = np.searchsorted(own, point[rows], side="right")
        return np.asarray(order[places])


def make_binning(histogram: Histogram, grid: Grid, *, max_bins: int) -> Binning:
    """Join the cells of one column until each bin carries a signal.

    An ordered column joins neighbours until a bin holds 2 standard deviations of its own noise and a fair share of the
    units, and a cell that holds more than that alone stays alone. Categories below 2 standard deviations share one bin.
    Missing is never joined to a value.

    Args:
        histogram: estimate of the column's cells, from a release.
        grid: of the column.
        max_bins: an ordered column has about this many bins at most, heavy cells aside.

    Source: algorithm notes, section 3.
    """
    values = np.arange(grid.n_values)
    bin_of = np.zeros(grid.n_cells, dtype=np.int64)
    bin_of[values] = _join_neighbours(histogram, grid, max_bins) if grid.is_ordered else _join_rare(histogram, grid)
    if grid.column.missing:
        bin_of[-1] = bin_of[values].max() + 1
    return Binning(bin_of, _shares_within(histogram, bin_of, grid))


def identity_binning(histogram: Histogram) -> Binning:
    """A bin for each cell."""
    cells = histogram.counts.shape[1]
    return Binning(np.arange(cells, dtype=np.int64), np.ones((len(histogram.counts), cells)))


def group_bins(binning: Binning, histogram: Histogram, grid: Grid, *, most: float) -> np.ndarray:
    """The group of each bin for tables of two columns, (bins,) int64, numbered from 0 without gaps.

    Neighbours of an ordered column are joined until a group holds a fair share of the units, 1 / most of all; a finer
    table would hold more noise than counts. Categories stay apart, and so does missing.
    """
    mass = np.bincount(binning.bin_of, weights=histogram.counts.sum(axis=0), minlength=binning.n_bins)
    group = np.arange(binning.n_bins, dtype=np.int64)
    if not grid.is_ordered:
        return group
    values = binning.n_bins - int(grid.column.missing)
    needed = max(float(mass[:values].sum()), 0.0) / most
    held, number = 0.0, 0
    for bin_number in range(values):
        # A heavy bin does not swallow its light neighbours.
        if bin_number and (held >= needed or held + mass[bin_number] > 1.5 * needed):
            held, number = 0.0, number + 1
        group[bin_number] = number
        held += mass[bin_number]
    group[values:] = number + 1
    return group


def _join_neighbours(histogram: Histogram, grid: Grid, max_bins: int) -> np.ndarray:
    mass = histogram.counts.sum(axis=0)[: grid.n_values]
    everything = max(float(mass.sum()), 0.0)
    # Heavy cells (the zeros of a zero-inflated column) stand alone and do not set the size of the others.
    heavy = mass >= everything / max_bins
    fair = max(everything - float(mass[heavy].sum()), 0.0) / (2 * max_bins)
    bin_of = np.zeros(grid.n_values, dtype=np.int64)
    start = number = 0
    for cell in range(1, grid.n_values):
        so_far = slice(start, cell)
        held, needed = float(mass[so_far].sum()), SIGNAL * histogram.deviation(so_far)
        here = slice(cell, cell + 1)
        alone = bool(heavy[cell]) and mass[cell] >= SIGNAL * histogram.deviation(here)
        if held >= needed and (held >= fair or alone):
            start, number = cell, number + 1
        bin_of[cell] = number
    last = slice(start, grid.n_values)
    if number and mass[last].sum() < SIGNAL * histogram.deviation(last):
        bin_of[start:] = number - 1
    return bin_of


def _join_rare(histogram: Histogram, grid: Grid) -> np.ndarray:
    mass = histogram.counts.sum(axis=0)[: grid.n_values]
    rare = mass < SIGNAL * np.sqrt(len(histogram.counts) * np.diag(histogram.covariance)[: grid.n_values])
    if int(rare.sum()) <= 1:
        return np.arange(grid.n_values, dtype=np.int64)
    bin_of = np.cumsum(~rare) - 1
    bin_of[rare] = int((~rare).sum())
    return bin_of.astype(np.int64)


def _shares_within(histogram: Histogram, bin_of: np.ndarray, grid: Grid) -> np.ndarray:
    """Share of each cell in its bin, per class: the projection of the estimated counts on the simplex.

    A class whose mass in the bin does not carry a signal borrows the shares of all classes together. In the outermost
    bins of an ordered column the counts are taken to fall towards the bound: nothing else tells a thin tail from the
    noise of many empty cells, whose positive half would else become outliers.
    """
    classes = len(histogram.counts)
    within = np.zeros(histogram.counts.shape)
    own_noise = np.sqrt(np.diag(histogram.covariance))
    outermost = {int(bin_of[0]): 1, int(bin_of[grid.n_values - 1]): -1} if grid.is_ordered else {}
    # A single bin for all values has no side to fall to.
    outermost = outermost if len(outermost) == 2 else {}
    for number in range(int(bin_of.max()) + 1):
        inside = np.flatnonzero(bin_of == number)
        needed = SIGNAL * histogram.deviation(inside) / np.sqrt(classes)
        direction = outermost.get(number, 0)
        noise = own_noise[inside]
        together = _shares(histogram.smooth[:, inside].sum(axis=0), direction, noise * np.sqrt(classes))
        for label in range(classes):
            signal = histogram.counts[label, inside].sum() >= needed
            within[label, inside] = _shares(histogram.smooth[label, inside], direction, noise) if signal else together
    return within


def _shares(counts: np.ndarray, direction: int, noise: np.ndarray) -> np.ndarray:
    """Estimated counts as shares; rising from the first cell for direction 1, falling for -1, free for 0.

    A cell that holds a signal of its own, a heap at the bound or before it, stays as it is and bends no other.
    """
    thin = counts < _OWN_SIGNAL * noise
    if direction and thin.any():
        counts = counts.copy()
        counts[thin] = isotonic_regression(counts[thin][::direction]).x[::direction]
    return _project_to_simplex(counts)


def _project_to_simplex(counts: np.ndarray) -> np.ndarray:
    """The nearest non-negative counts with the same total (at least 1), as shares that sum to 1."""
    total = max(float(counts.sum()), 1.0)
    descending = np.sort(counts)[::-1]
    excess = (np.cumsum(descending) - total) / np.arange(1, len(counts) + 1)
    keep = int(np.flatnonzero(descending > excess)[-1])
    shares = np.maximum(counts - excess[keep], 0.0)
    return np.asarray(shares / shares.sum())


def decode_table(
    bins: np.ndarray,
    labels: np.ndarray,
    grids: Sequence[Grid],
    binnings: Sequence[Binning],
    generator: np.random.Generator,
) -> pd.DataFrame:
    """A typed table from bins, (rows, columns), and labels, (rows,): a cell of each bin, then a value of the cell."""
    return pd.DataFrame(
        {
            grid.name: grid.decode(binning.draw_cells(bins[:, position], labels, generator), generator)
            for position, (grid, binning) in enumerate(zip(grids, binnings, strict=True))
        }
    )
