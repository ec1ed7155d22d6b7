"""Exact sums over sites, and what follows from them: bins, label counts, targets. Post-processing throughout."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from common.data.binning import Binning, make_binning
from common.data.encoding import Grid
from common.data.histograms import Histogram, estimate_histograms, histogram_layout
from common.data.tables import TableLayout, all_pairs
from common.errors import LedgerError, ProtocolError
from common.models.critics import Targets, assemble
from common.privacy.events import GaussianEvent
from common.wire.messages import Reply


@dataclass(frozen=True)
class Release:
    """The sum of one noised vector over sites.

    counts: (cells,), in units.
    variance: of the noise in one cell, in units squared; the sites' variances add up, 1/12 each for the rounding too.
    events: by site, as the sites' ledgers have them.
    """

    counts: np.ndarray
    variance: float
    events: Mapping[str, GaussianEvent]


def add_up(replies: Mapping[str, Reply], *, cells: int) -> Release:
    """Sum the replies of all sites, in integers.

    Sites share one grid (the same study), so the order of sites does not change a bit of the sum.

    Raises:
        ProtocolError: a reply is not a vector of the right length, or its event does not describe it.
    """
    events: dict[str, GaussianEvent] = {}
    total = np.zeros(cells, dtype=np.int64)
    for site in sorted(replies):
        counts, fact = replies[site].arrays.get("counts"), replies[site].facts.get("event")
        if counts is None or counts.dtype != np.int64 or counts.shape != (cells,) or not isinstance(fact, dict):
            raise ProtocolError(f"site {site}: expected {cells} whole numbers and an event")
        try:
            event = GaussianEvent.from_dict(fact)
        except LedgerError as error:
            raise ProtocolError(f"site {site}: {error}") from None
        if event.cells != cells or event.scale <= 0:
            raise ProtocolError(f"site {site}: the event does not describe the vector")
        if events and event.scale != next(iter(events.values())).scale:
            raise ProtocolError(f"site {site}: counts in other units than the other sites")
        events[site] = event
        total += counts
    scale = next(iter(events.values())).scale
    variance = sum((event.noise_stddev**2 + 1 / 12) / event.scale**2 for event in events.values())
    return Release(total / scale, variance, events)


@dataclass(frozen=True)
class Bins:
    """The bins of every column, and the released histograms that they were made from."""

    binnings: tuple[Binning, ...]
    histograms: tuple[Histogram, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bins of each column."""
        return tuple(binning.n_bins for binning in self.binnings)

    @property
    def maps(self) -> list[np.ndarray]:
        """Cell to bin, of each column."""
        return [binning.bin_of for binning in self.binnings]


def bins_from(release: Release, grids: Sequence[Grid], *, classes: int, max_bins: int) -> Bins:
    """Bins of every column, from the noised one-way tables."""
    layout = histogram_layout(grids, classes)
    histograms = estimate_histograms(release.counts, layout, grids, variance=release.variance)
    binnings = tuple(
        make_binning(histogram, grid, max_bins=max_bins) for histogram, grid in zip(histograms, grids, strict=True)
    )
    return Bins(binnings, tuple(histograms))


def targets_from(bins: Bins, pairs: Release, *, classes: int) -> Targets:
    """What the statistical critic compares a generator with."""
    layout = all_pairs(bins.sizes, classes)
    one_way, variances = [], []
    for binning, histogram in zip(bins.binnings, bins.histograms, strict=True):
        joined = np.eye(binning.n_bins)[binning.bin_of]  # (cells, bins)
        one_way.append(histogram.counts @ joined)
        variances.append(np.einsum("cb,cd,db->b", joined, histogram.covariance, joined))
    return assemble(
        layout=layout,
        pair_counts=pairs.counts,
        pair_variance=np.full(layout.n_tables, pairs.variance),
        one_way=np.concatenate(one_way, axis=1),
        one_way_variance=np.concatenate(variances),
        label_counts=_label_counts(bins, layout, pairs),
    )


def _label_counts(bins: Bins, layout: TableLayout, pairs: Release) -> np.ndarray:
    """Units of each class: every released table estimates them, weighted by inverse variance; (classes,)."""
    estimates = [histogram.counts.sum(axis=1) for histogram in bins.histograms]
    variances = [float(histogram.covariance.sum()) for histogram in bins.histograms]
    for table in layout.split(pairs.counts):
        estimates.append(table.reshape(layout.classes, -1).sum(axis=1))
        variances.append(pairs.variance * table[0].size)
    counts = np.average(np.array(estimates), axis=0, weights=1 / np.array(variances))
    return np.asarray(np.maximum(counts, 1.0))
