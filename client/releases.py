"""What a site released and kept: its own discriminators, where the study says that they stay at the sites.

Everything here was noised and charged before it was written, so training on it is post-processing like any other.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from common.data.binning import Binning
from common.data.encoding import make_grids
from common.data.histograms import estimate_histograms
from common.data.queries import catalogue
from common.data.tables import sizes_of
from common.errors import LedgerError, PolicyError
from common.files import write_durably
from common.models.releases import Bins, Measured, Release, one_way_layout, targets_from
from common.models.targets import Targets
from common.privacy.events import GaussianEvent
from common.study import Study
from common.wire.messages import Reply, Request
from common.wire.packing import shape_of, unpack_bins, unpack_groups


class OwnReleases:
    """The releases of one site, each with the request that it answered, in a folder of the site's own.

    Guarantees: one that is not sealed counts nowhere. After a crash another draw takes its place, and what follows from
    both tells more than was charged.
    """

    def __init__(self, folder: Path, study: Study, *, is_sealed: Callable[[str], bool]) -> None:
        """Use a folder; it is made when the first release is kept.

        Args:
            folder: of the releases.
            study: that they are of.
            is_sealed: whether the reply to a request of the study, by its identity, was sealed.
        """
        self._folder = folder
        self._study = study
        self._is_sealed = is_sealed

    def keep(self, request: Request, reply: Reply) -> None:
        """Write a release down.

        Raises:
            LedgerError: the disk fails.
        """
        name = hashlib.sha256(request.identity.encode()).hexdigest()
        try:
            # One that a crash left unsealed is overwritten.
            found = [int(path.name[:6]) for path in self._folder.glob(f"*-{name}.request")]
            number = found[0] if found else len(list(self._folder.glob("*.request")))
            write_durably(self._folder / f"{number:06d}-{name}.reply", reply.encode())
            # Last: without its request, a release is none.
            write_durably(self._folder / f"{number:06d}-{name}.request", request.encode())
        except OSError as error:
            raise LedgerError(f"{self._folder}: the release cannot be kept ({error.strerror})") from None

    def newest(self, request: Request, kind: str) -> tuple[Request, Reply] | None:
        """Of a request's run, the newest release of a kind, with what it answered."""
        return next((found for found in self._of_run(request, newest_first=True) if found[0].kind == kind), None)

    def label_counts(self, request: Request, bins: list[np.ndarray]) -> np.ndarray:
        """Estimated units of each class at this site, (classes,), from its own one-way tables of a request's run.

        Raises:
            PolicyError: they were not released.
        """
        found = self.newest(request, "one_way")
        if found is None:
            raise PolicyError("request.run: this site has released nothing in it")
        own, sizes = self._own_bins(_release(found[1]), bins), sizes_of(bins)
        return targets_from(own, shape_of(self._study, sizes), [np.arange(size) for size in sizes], []).label_counts

    def targets(self, request: Request, bins: list[np.ndarray]) -> Targets:
        """What this site's releases of a run say, over the bins and groups of a training request.

        Raises:
            PolicyError: nothing was released in the run, or the request's groups do not fit what was.
        """
        kept = list(self._of_run(request))
        first = [_release(reply) for asked, reply in kept if asked.kind == "one_way"]
        sizes = sizes_of(bins)
        try:
            groups = unpack_groups(request.arrays, len(bins))
        except ValueError:
            groups = []
        if not first or [len(group) for group in groups] != list(sizes) or not all(map(_is_map, groups)):
            raise PolicyError("request.group_of_bin: does not fit what this site released in the run")
        measured = [self._measured(asked, reply, bins) for asked, reply in kept if asked.kind == "tables"]
        embeddings = [_release(reply) for asked, reply in kept if asked.kind == "embedding"]
        own = self._own_bins(first[0], bins)
        return targets_from(own, shape_of(self._study, sizes), groups, measured, embeddings)

    def _of_run(self, request: Request, *, newest_first: bool = False) -> Iterator[tuple[Request, Reply]]:
        """The sealed releases of a request's run, each with what it answered."""
        for path in sorted(self._folder.glob("*.request"), reverse=newest_first):
            asked = Request.decode(path.read_bytes())
            if (asked.study, asked.run) == (request.study, request.run) and self._is_sealed(asked.identity):
                yield asked, Reply.decode(path.with_suffix(".reply").read_bytes())

    def _measured(self, asked: Request, reply: Reply, bins: list[np.ndarray]) -> Measured:
        known = catalogue(len(self._study.measured), self._study.windows)
        cells = unpack_bins(asked.arrays, len(bins))
        maps = []
        for group_of_cell, bin_of in zip(cells, bins, strict=True):
            first_cell = np.unique(bin_of, return_index=True)[1]
            maps.append(group_of_cell[first_cell])
        return Measured(
            [known[number] for number in asked.arrays["tables"]], asked.arrays["emphasis"], maps, _release(reply)
        )

    def _own_bins(self, release: Release, bins: list[np.ndarray]) -> Bins:
        """The coordinator's bins with this site's own histograms."""
        classes = len(self._study.label_values)
        grids, channels = make_grids(self._study.measured), make_grids(self._study.channels)
        histograms = estimate_histograms(
            release.counts, one_way_layout(self._study), (*grids, *channels), variance=release.variance
        )
        binnings = tuple(Binning(bin_of, np.ones((classes, len(bin_of)))) for bin_of in bins)
        return Bins(binnings, tuple(histograms), len(grids), np.zeros((0, classes, 0)))


def _is_map(group: np.ndarray) -> bool:
    """Whether a map from bins to groups numbers them from 0 without gaps, in rising order."""
    return group.dtype == np.int64 and group[0] == 0 and bool(np.isin(np.diff(group), (0, 1)).all())


def _release(reply: Reply) -> Release:
    event = GaussianEvent.from_dict(dict(reply.facts["event"]))
    return Release(reply.arrays["counts"] / event.scale, event.variance, {reply.site: event})
