"""A whole round at a small site, as a coordinator conducts it, and everything that is logged meanwhile."""

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from client.site import Site
from common.privacy.mechanism import MAXIMUM_EMPHASIS
from common.privacy.noise import NoiseSource
from common.privacy.witness import Statement
from common.wire.messages import Reply
from common.wire.packing import CRITIC, GENERATOR
from common.wire.secure_sum import MaskKey
from tests.client.homes import MEASUREMENTS, PEERS, Home, attested, refused


@dataclass
class Line:
    """Between a coordinator and a site, which may restart: every request and every answer.

    A coordinator knows nothing but what it was told, so on the same answers it asks the same.
    """

    home: Home
    noise: NoiseSource
    said: list[tuple[bytes, bytes]] = field(default_factory=list)
    answers: Counter[str | None] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    site: Site = field(init=False)
    nonce: str = ""
    participants: str = ""

    def restart(self) -> None:
        """Open the site anew, and have it confirmed."""
        self.site = self.home.open(self.noise)
        facts = self.ask("describe").facts
        self.nonce = facts.get("nonce", "")
        if "mask" in facts:
            self.agree_on_masks(facts["mask"])
        self.ask("one_way", name="too early", rule="UNCONFIRMED")
        own = {"heads": [facts["ledger_head"], *map(asdict, heads(len(self.said)))], "nonces": {"east": "e" * 32}}
        self.ask("witness", options=own)
        self.confirm(facts)

    def agree_on_masks(self, own: dict[str, Any]) -> None:
        """Tell the site that it masks with its peers, whose keys are always the same."""
        keys = {peer: MaskKey.from_private(f"{seed:x}" * 64) for seed, peer in enumerate(PEERS, start=8)}
        about = {"study": own["study"], "run": own["run"]}
        said = [asdict(key.announce(peer, **about, identity=PEERS[peer])) for peer, key in keys.items()]
        self.participants = self.ask("masks", options={"announcements": [own, *said]}).facts["participants"]

    def confirm(self, facts: Mapping[str, Any]) -> None:
        """Have peers confirm the head that was stated last."""
        self.ask("confirm", options={"attestations": attested(facts, nonce=self.nonce)})

    def ask(self, kind: str, *, rule: str | None = None, **changes: Any) -> Reply:
        """Ask, and take note where the answer is of another kind than expected."""
        if self.participants and kind in MEASUREMENTS:
            changes["options"] = {"participants": self.participants, **changes.get("options", {})}
        return self.send(self.home.ask(kind, **changes).encode(), rule)

    def send(self, body: bytes, rule: str | None) -> Reply:
        """As `ask`, a body."""
        answer = self.site.handle(body)
        self.said.append((body, answer))
        self.answers[refused(answer)] += 1
        if refused(answer) != rule:
            self.faults.append(f"answer {len(self.said)}: {refused(answer)}, not {rule}")
        return Reply.decode(answer)

    def release(self, kind: str, share: float, **changes: Any) -> None:
        """Ask for a release, then have its charge confirmed."""
        self.confirm(self.ask(kind, options={"share": share}, **changes).facts)


def heads(sequence: int) -> list[Statement]:
    """What peers state of their own ledgers."""
    return [Statement(peer, "a" * 64, sequence, f"{sequence:064x}").signed(key) for peer, key in PEERS.items()]


def conduct(line: Line) -> None:
    """What a coordinator may ask in a run: every kind, repetitions, and what is refused for every reason."""
    home = line.home
    line.restart()
    if not line.participants:
        line.ask("masks", rule="POLICY_REFUSED")
    line.release("one_way", 0.35)
    line.ask("describe", name="describe-2")
    line.ask("tables", name="unconfirmed", rule="UNCONFIRMED")
    line.confirm(line.ask("describe", name="describe-3").facts)
    emphasis = {"emphasis": np.resize([1, 3, MAXIMUM_EMPHASIS], home.tables)}
    line.release("tables", 0.3, arrays=emphasis)
    line.ask("tables", options={"share": 0.3}, arrays=emphasis)
    line.ask("tables", options={"share": 0.05}, rule="POLICY_REFUSED")
    line.release("embedding", 0.1)
    line.release("critic", 0.1)
    line.ask("tables", name="beyond", options={"share": 0.5}, rule="BUDGET_REFUSED")
    line.ask("tables", name="gap", arrays={"bins.0": np.array([0, 1, 1, 3])}, rule="POLICY_REFUSED")
    one = {"tables": np.array([0]), "emphasis": np.array([MAXIMUM_EMPHASIS + 1])}
    line.ask("tables", name="emphasis", arrays=one, rule="POLICY_REFUSED")
    line.restart()
    critic = {name: array for name, array in home.ask("critic").arrays.items() if name.startswith(CRITIC)}
    # Made to overflow on some records and not on others; where it stays at the site, there is a generator that does.
    wild = {name: array * np.float32(1e30) for name, array in critic.items()}
    if home.is_local:
        sent = {name: array for name, array in home.ask("critic").arrays.items() if name.startswith(GENERATOR)}
        odd = {name: array * np.float32(1e30) for name, array in sent.items()}
        line.ask("critic", name="odd", options={"share": 0.1}, arrays=odd, rule="POLICY_REFUSED")
    line.release("critic", 0.1, name="critic-2", arrays=wild)
    line.ask("train")
    judges = 1 if home.study.windows is None else 2
    line.ask(
        "train",
        name="train-2",
        arrays=critic,
        options={"weights": [1.0] * judges, "passing": [0.8] * judges, "passed": [0.3] * judges},
    )
    line.release("monitor", 0.4)
    line.release("verdict", 0.3)
    line.release("monitor", 0.2, name="monitor-2", arrays={"weights": np.resize([1e99, -1e99], home.score_weights)})
    line.release("verdict", 0.05, name="verdict-2", arrays=wild)
    line.ask("monitor", name="overflow", arrays={"weights": np.full(home.score_weights, 1e308)}, rule="POLICY_REFUSED")
    line.ask("one_way", name="share", options={"share": 2}, rule="POLICY_REFUSED")
    line.ask("one_way", name="study", study="0f" * 32, rule="POLICY_REFUSED")
    line.send(b"noise on the line", "PROTOCOL")


RELEASES = ("one_way", "tables", "embedding", "critic", "critic-2", "monitor", "verdict", "monitor-2", "verdict-2")


class _Keeper(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextlib.contextmanager
def kept_log() -> Iterator[list[logging.LogRecord]]:
    """All that anybody logs."""
    handler, root = _Keeper(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield handler.records
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
