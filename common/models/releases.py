"""From released tables to what a generator is compared with: bins, groups, targets. Post-processing throughout.

The coordinator does it with sums over sites; a site whose releases stay at home does it with its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from common.data.binning import Binning, group_bins, identity_binning, make_binning
from common.data.changes import BUCKETS
from common.data.encoding import make_grids
from common.data.histograms import Histogram, estimate_histograms, histogram_layout
from common.data.queries import Family, Query, layout_of
from common.data.tables import TableLayout, sizes_of
from common.models.critics import EMBEDDING
from common.models.generator import GeneratorShape
from common.models.targets import TargetBuilder, Targets
from common.privacy.events import GaussianEvent
from common.study import STEPS, Study

_FEWEST_GROUPS = 4
_SIGNAL_IN_CELL = 1.0
"""Standard deviations of the noise that a cell of two columns' average group holds, classes together."""


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


@dataclass(frozen=True)
class Bins:
    """The bins of every column, then of every channel, and what they were made from.

    columns: how many are of columns of the record. moves: (channels, classes, buckets), the released tables of moves, 0
    where they were not asked for.
    """

    binnings: tuple[Binning, ...]
    histograms: tuple[Histogram, ...]
    columns: int
    moves: np.ndarray

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bins of each column and channel."""
        return tuple(binning.n_bins for binning in self.binnings)

    def counts_of(self, axis: int, *, smooth: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Estimated counts of the bins of a column or channel, (classes, bins), and their variance, (bins,)."""
        binning, histogram = self.binnings[axis], self.histograms[axis]
        joined = np.eye(binning.n_bins)[binning.bin_of]  # (cells, bins)
        variance = np.einsum("cb,cd,db->b", joined, histogram.covariance, joined)
        return (histogram.smooth if smooth else histogram.counts) @ joined, variance

    @property
    def maps(self) -> list[np.ndarray]:
        """Cell to bin, of each column and channel."""
        return [binning.bin_of for binning in self.binnings]


def one_way_layout(study: Study) -> TableLayout:
    """How the tables of the one-way release lie in one vector."""
    grids, channels = make_grids(study.measured), make_grids(study.channels)
    return histogram_layout(grids, len(study.label_values), channels, moving=study.counts_moves)


def bins_from(release: Release, study: Study) -> Bins:
    """Bins of every column and channel, from the noised one-way tables."""
    classes = len(study.label_values)
    grids, channels = make_grids(study.measured), make_grids(study.channels)
    layout = one_way_layout(study)
    histograms = estimate_histograms(release.counts, layout, (*grids, *channels), variance=release.variance)
    most = [*[study.model.max_bins] * len(grids), *[study.model.channel_bins] * len(channels)]
    binnings = tuple(
        # Each number of steps is a bin: the generator needs to know it.
        identity_binning(histogram) if grid.name == STEPS else make_binning(histogram, grid, max_bins=limit)
        for histogram, grid, limit in zip(histograms, (*grids, *channels), most, strict=True)
    )
    moves = np.zeros((len(channels), classes, BUCKETS))
    if study.counts_moves:
        moves[:] = list(layout.split(release.counts))[-len(channels) :]
    return Bins(binnings, tuple(histograms), len(grids), moves)


@dataclass(frozen=True)
class Measured:
    """Some tables of the catalogue, as they were asked for and released.

    queries: of the catalogue. emphasis: (tables,) int64. maps: from the bins of each column and channel to the codes
    that the tables are over. release: the sum over sites.
    """

    queries: Sequence[Query]
    emphasis: np.ndarray
    maps: Sequence[np.ndarray]
    release: Release


def group_maps(bins: Bins, study: Study, *, stddev: float) -> list[np.ndarray]:
    """From the bins of each column and channel to groups, as fine as the noise of the tables of two axes allows.

    Args:
        bins: with the released histograms.
        study: names columns and channels.
        stddev: that one count of those tables will have.
    """
    grids = (*make_grids(study.measured), *make_grids(study.channels))
    units = max(float(np.median([histogram.counts.sum() for histogram in bins.histograms])), 1.0)
    most = max(_FEWEST_GROUPS, np.sqrt(units / (_SIGNAL_IN_CELL * stddev)))
    return [
        np.arange(binning.n_bins) if grid.name == STEPS else group_bins(binning, histogram, grid, most=most)
        for binning, histogram, grid in zip(bins.binnings, bins.histograms, grids, strict=True)
    ]


def targets_from(
    bins: Bins,
    shape: GeneratorShape,
    groups: Sequence[np.ndarray],
    measured: Sequence[Measured],
    embeddings: Sequence[Release] = (),
) -> Targets:
    """What the measured critics compare a generator with.

    Args:
        bins: with the released histograms.
        shape: of the generator.
        groups: from `group_maps`.
        measured: every release of tables.
        embeddings: every release of embeddings.
    """
    builder = TargetBuilder(shape, groups)
    estimates, variances = [], []
    for axis, histogram in enumerate(bins.histograms):
        builder.add_marginal(axis, *bins.counts_of(axis, smooth=True))
        if axis < bins.columns:
            estimates.append(histogram.counts.sum(axis=1))
            variances.append(float(histogram.covariance.sum()))
    for part in measured:
        layout = layout_of(part.queries, sizes_of(part.maps), shape.classes)
        tables = layout.split(part.release.counts)
        for query, weight, table in zip(part.queries, part.emphasis, tables, strict=True):
            counts, noise = table / weight, part.release.variance / weight**2
            builder.add_table(query, counts, noise)
            # Every unit is in one cell of a pair table: it estimates the units of each class too.
            if query.family == Family.PAIR:
                estimates.append(counts.reshape(shape.classes, -1).sum(axis=1))
                variances.append(noise * counts[0].size)
    for release in embeddings:
        builder.add_vector(EMBEDDING, release.counts.reshape(shape.classes, -1), release.variance)
    label_counts = np.average(np.array(estimates), axis=0, weights=1 / np.array(variances))
    return builder.build(np.maximum(label_counts, 1.0))
