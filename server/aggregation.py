"""Exact sums over sites."""

from collections.abc import Mapping

import numpy as np

from common.errors import LedgerError, ProtocolError
from common.models.releases import Release
from common.privacy.events import GaussianEvent
from common.wire.messages import Reply


def add_up(replies: Mapping[str, Reply], *, cells: int, kept: bool = False) -> Release:
    """Sum the replies of all sites, in integers; of vectors that sites keep to themselves only the events are there.

    Sites share one grid (the same study), so the order of sites does not change a bit of the sum.

    Raises:
        ProtocolError: a reply is not a vector of the right length, or its event does not describe it.
    """
    events: dict[str, GaussianEvent] = {}
    total = np.zeros(cells, dtype=np.int64)
    for site in sorted(replies):
        counts, fact = replies[site].arrays.get("counts"), replies[site].facts.get("event")
        whole = counts is not None and counts.dtype == np.int64 and counts.shape == (cells,)
        fits = counts is None if kept else whole
        if not fits or not isinstance(fact, dict):
            raise ProtocolError(f"site {site}: expected {0 if kept else cells} whole numbers and an event")
        try:
            event = GaussianEvent.from_dict(fact)
        except LedgerError as error:
            raise ProtocolError(f"site {site}: {error}") from None
        if event.cells != cells or event.scale <= 0:
            raise ProtocolError(f"site {site}: the event does not describe the vector")
        if events and event.scale != next(iter(events.values())).scale:
            raise ProtocolError(f"site {site}: counts in other units than the other sites")
        events[site] = event
        if counts is not None:
            total += counts
    scale = next(iter(events.values())).scale
    variance = sum((event.noise_stddev**2 + 1 / 12) / event.scale**2 for event in events.values())
    return Release(total / scale, variance, events)
