"""What comes back from sites: checked, then summed exactly."""

from collections.abc import Mapping

import numpy as np

from common.errors import LedgerError, ProtocolError
from common.models.releases import Release
from common.privacy.events import GaussianEvent
from common.wire.messages import MAX_COUNT, Reply
from common.wire.packing import GENERATOR, unpack
from common.wire.secure_sum import Participants, unmasked_sum

REACH = 4.0
"""How far a parameter may move in one step of Adam, in learning rates: about one, and room for another machine."""


def check_release(
    site: str, reply: Reply, *, cells: int, kept: bool = False, masks: Participants | None = None
) -> GaussianEvent:
    """Refuse what cannot be added up.

    Args:
        site: its name.
        reply: its release.
        cells: of the vector.
        kept: whether the vector stays at the site, and only its event is told.
        masks: who masks the vectors; None where they come in the open.

    Raises:
        ProtocolError: not a vector of the right length, type and size, or its event does not describe it, or it was
            masked with others.
    """
    counts, fact = reply.arrays.get("counts"), reply.facts.get("event")
    whole = counts is not None and counts.dtype == np.int64 and counts.shape == (cells,)
    if masks is not None:
        if reply.facts.get("participants") != masks.digest:
            raise ProtocolError(f"site {site}: masked for other participants than the coordinator told it")
        hidden = reply.arrays.get("masked")
        whole = counts is None and hidden is not None and hidden.dtype == np.uint64 and hidden.shape == (cells,)
    fits = counts is None if kept else whole
    if not fits or not isinstance(fact, dict):
        raise ProtocolError(f"site {site}: expected {0 if kept else cells} whole numbers and an event")
    if counts is not None and len(counts) and not -MAX_COUNT <= counts.min() <= counts.max() <= MAX_COUNT:
        raise ProtocolError(f"site {site}: counts beyond what any table holds")
    try:
        event = GaussianEvent.from_dict(fact)
    except LedgerError as error:
        raise ProtocolError(f"site {site}: {error}") from None
    too_large = event.noise_stddev > MAX_COUNT or event.squared_sensitivity > MAX_COUNT**2
    if event.cells != cells or event.scale <= 0 or too_large:
        raise ProtocolError(f"site {site}: the event does not describe the vector")
    return event


def check_generator(site: str, reply: Reply, *, sent: Mapping[str, np.ndarray], reach: float) -> None:
    """Refuse a generator that the steps it was asked for cannot have made of the one that was sent.

    Args:
        site: its name.
        reply: with the parameters.
        sent: the parameters that it began with.
        reach: how far any of them can have moved.

    Raises:
        ProtocolError: other names, shapes or types, or a parameter that moved farther.
    """
    found = unpack(GENERATOR, reply.arrays)
    if {name: (array.shape, array.dtype) for name, array in found.items()} != {
        name: (array.shape, array.dtype) for name, array in sent.items()
    }:
        raise ProtocolError(f"site {site}: a generator that does not fit the study")
    if not all(bool((np.abs(found[name] - array) <= reach).all()) for name, array in sent.items()):
        raise ProtocolError(f"site {site}: a generator that moved farther than its steps can take it")


def add_up(
    replies: Mapping[str, Reply], *, cells: int, kept: bool = False, masks: Participants | None = None
) -> Release:
    """Sum the replies of all sites, in integers; of vectors that sites keep to themselves only the events are there.

    Sites share one grid (the same study), so the order of sites does not change a bit of the sum.

    Raises:
        ProtocolError: as `check_release`, or sites count in different units, or their masks do not cancel.
        TooFewSitesError: a site that masks is missing.
    """
    events: dict[str, GaussianEvent] = {}
    total = np.zeros(cells, dtype=np.int64)
    for site in sorted(replies):
        events[site] = event = check_release(site, replies[site], cells=cells, kept=kept, masks=masks)
        if event.scale != next(iter(events.values())).scale:
            raise ProtocolError(f"site {site}: counts in other units than the other sites")
        if not kept and masks is None:
            total += replies[site].arrays["counts"]
    if masks is not None:
        vectors = {site: reply.arrays["masked"] for site, reply in replies.items()}
        names = [one.site for one in masks.announcements]
        total = unmasked_sum(vectors, names, cells=cells, bound=MAX_COUNT)
    scale = next(iter(events.values())).scale
    variance = sum(event.variance for event in events.values())
    return Release(total / scale, variance, events)
