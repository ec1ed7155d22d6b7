"""What comes back from sites: checked, then summed exactly."""

from collections.abc import Mapping

import numpy as np

from common.errors import LedgerError, ProtocolError
from common.models.releases import Release
from common.privacy.events import GaussianEvent
from common.wire.messages import Reply
from common.wire.packing import GENERATOR, unpack

MAX_COUNT = 2**50
"""No cell of any release is larger, in a site's own whole numbers; a thousand sites' sums stay exact."""
REACH = 4.0
"""How far a parameter may move in one step of Adam, in learning rates: about one, and room for another machine."""


def check_release(site: str, reply: Reply, *, cells: int, kept: bool = False) -> GaussianEvent:
    """Refuse what cannot be added up.

    Args:
        site: its name.
        reply: its release.
        cells: of the vector.
        kept: whether the vector stays at the site, and only its event is told.

    Raises:
        ProtocolError: not a vector of the right length, type and size, or its event does not describe it.
    """
    counts, fact = reply.arrays.get("counts"), reply.facts.get("event")
    whole = counts is not None and counts.dtype == np.int64 and counts.shape == (cells,)
    fits = counts is None if kept else whole
    if not fits or not isinstance(fact, dict):
        raise ProtocolError(f"site {site}: expected {0 if kept else cells} whole numbers and an event")
    if counts is not None and len(counts) and not -MAX_COUNT <= counts.min() <= counts.max() <= MAX_COUNT:
        raise ProtocolError(f"site {site}: counts beyond what any table holds")
    try:
        event = GaussianEvent.from_dict(fact)
    except LedgerError as error:
        raise ProtocolError(f"site {site}: {error}") from None
    if event.cells != cells or event.scale <= 0:
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
    if any(bool((np.abs(found[name] - array) > reach).any()) for name, array in sent.items()):
        raise ProtocolError(f"site {site}: a generator that moved farther than its steps can take it")


def add_up(replies: Mapping[str, Reply], *, cells: int, kept: bool = False) -> Release:
    """Sum the replies of all sites, in integers; of vectors that sites keep to themselves only the events are there.

    Sites share one grid (the same study), so the order of sites does not change a bit of the sum.

    Raises:
        ProtocolError: as `check_release`, or sites count in different units.
    """
    events: dict[str, GaussianEvent] = {}
    total = np.zeros(cells, dtype=np.int64)
    for site in sorted(replies):
        events[site] = event = check_release(site, replies[site], cells=cells, kept=kept)
        if event.scale != next(iter(events.values())).scale:
            raise ProtocolError(f"site {site}: counts in other units than the other sites")
        if not kept:
            total += replies[site].arrays["counts"]
    scale = next(iter(events.values())).scale
    variance = sum((event.noise_stddev**2 + 1 / 12) / event.scale**2 for event in events.values())
    return Release(total / scale, variance, events)
