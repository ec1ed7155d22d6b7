"""Where the processor time of a federation goes: timers around functions of sites and coordinator, by what they do.

A second is counted once: what a function spends in another one that is timed counts for that one. The clock is that of
the process, so what else runs on the machine does not count.
"""

import functools
import inspect
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final
from unittest.mock import patch

import client.site
import client.vault
import server.conductor
import server.exchange
import server.learner
import server.rounds
from client.door import Door
from client.masks import Masks
from client.replies import Replies
from client.site import Site
from client.witnesses import Witnesses
from common.privacy.ledger import Ledger
from common.wire.envelopes import Answer, Order
from common.wire.messages import Reply, Request
from server.conductor import Conductor
from server.exchange import Roster
from server.journal import Journal
from server.learner import Learner
from server.rounds import Coordinator

USEFUL: Final = ("encode", "count and noise", "train at sites", "refine", "targets", "validate")
"""Counting and training; all other stages are what a federation costs beside them."""

_PLACES: Final[Mapping[str, tuple[tuple[Any, str], ...]]] = {
    "start a site": ((Site, "__init__"),),
    "encode": ((client.site, "read_records"), (client.vault.Vault, "__init__")),
    "count and noise": tuple(
        (client.vault.Vault, name) for name in ("one_way", "tables", "scores", "embedding", "gradient", "verdicts")
    ),
    "train at sites": ((client.site, "train_on_request"),),
    "refine": ((Learner, "train"), (Learner, "losses"), (Learner, "begin"), (Learner, "__init__")),
    "targets": (
        (server.rounds, "targets_from"), (server.rounds, "plan_survey"), (server.conductor, "bins_from"),
        (server.rounds, "average"), (server.rounds, "median"), (Learner, "worst_fitted"),
    ),
    "validate": (
        (server.rounds, "fit_score"), (server.rounds, "draw_bins"), (Learner, "frechet_ratio"),
        (Learner, "fakes"), (server.rounds, "judge"), (server.rounds, "improve"),
    ),
    "ledger": (
        (Ledger, "authorise"), (Ledger, "seal"), (Ledger, "charge_of"), (Ledger, "head"), (Ledger, "spent"),
        (Ledger, "hashes"), (Replies, "write"), (Site, "_ledger_facts"),
    ),
    "witnesses": (
        (Site, "_witness"), (Site, "_confirm"), (Witnesses, "require"), (Witnesses, "statement"),
        (Conductor, "_attested"), (Conductor, "_pass_on"), (Conductor, "_check_attestations"),
    ),
    "masks": ((Masks, "of"), (Site, "_agree_on_masks")),
    "check and add up": (
        (server.conductor, "add_up"), (server.conductor, "check_release"), (server.conductor, "state_units"),
        (Conductor, "_check_counts"), (server.rounds, "check_generator"), (Conductor, "_take_note"),
    ),
    "messages": (
        (Request, "encode"), (Request, "decode"), (Reply, "encode"), (Reply, "decode"), (Order, "seal"),
        (Order, "open"), (Answer, "seal"), (Answer, "open"), (Roster, "ask"), (Door, "answer"), (Site, "_bins"),
        (Coordinator, "_train_at_sites"),
    ),
    "records": ((Conductor, "_record"), (Journal, "note")),
}  # fmt: skip


class Stopwatch:
    """Processor seconds by stage; `seconds` may be read at any time."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._stack = ["rest"]
        self._since = time.process_time()

    def _turn(self) -> None:
        now = time.process_time()
        self.seconds[self._stack[-1]] += now - self._since
        self._since = now

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What runs inside counts for a stage."""
        self._turn()
        self._stack.append(name)
        try:
            yield
        finally:
            self._turn()
            self._stack.pop()

    def timed(self, name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        """A function whose time counts for a stage."""

        @functools.wraps(run)
        def timed(*arguments: Any, **named: Any) -> Any:
            with self.stage(name):
                return run(*arguments, **named)

        return timed


@contextmanager
def watch() -> Iterator[Stopwatch]:
    """Time sites and coordinator while this is open."""
    found = Stopwatch()
    with ExitStack() as stack:
        for stage, places in _PLACES.items():
            for owner, name in places:
                plain = inspect.getattr_static(owner, name)
                is_class_method = isinstance(plain, classmethod)
                timed = found.timed(stage, plain.__func__ if is_class_method else plain)
                stack.enter_context(patch.object(owner, name, classmethod(timed) if is_class_method else timed))
        yield found
