"""A site behind a wire that fails, at each step of an exchange: its answer arrives, the same for ever, charged once.

Every part but the wire is the real one: a GridExchange asks, Flower's Fleet interface carries over TLS, a Link and an
Agent bring the order to a Site with a ledger. Waits are shortened alike on both sides, so that an hour's patience is
seconds.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import pytest
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from client.door import Door
from client.keys import make_transport_key
from common.wire.envelopes import Answer, Order
from common.wire.messages import Reply
from server import app
from server.app import GridExchange
from simulations.faulty_wire import End, Fault, Way, Wire, wire_to
from tests.client.homes import COORDINATOR, IDENTITY, Home, make_home
from tests.members import Federation, make_members
from tests.network.sites import PATIENCE, CountedNoise, Serving, hurried, settings_of, wait_for
from tests.network.superlinks import OwnNodes, SuperLink, superlink

pytestmark = [
    pytest.mark.slow,
    # Of what serves Flower's interface.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
LONG = 3.5
"""Seconds that a fault lasts: longer than a site's patience, so that its connection is lost if it can be."""
UP, DOWN = frozenset({Way.UP}), frozenset({Way.DOWN})
FAULTS = {
    "latency": Fault(delay=0.1, jitter=0.1),
    "narrow": Fault(rate=4000.0),
    "drip": Fault(piece=1, delay=0.005),
    "partition": Fault(is_held=True),
    "partition to the coordinator": Fault(UP, is_held=True),
    "partition to the site": Fault(DOWN, is_held=True),
    "flapping": Fault(is_held=True, flap=0.4),
    "reset": Fault(end=End.RESET),
    "reset after some bytes": Fault(end=End.RESET, after=700),
    "half closed": Fault(end=End.HALF),
    "cut short": Fault(DOWN, end=End.CLOSED, after=60),
    "flipped bit": Fault(DOWN, is_flipped=True, after=40),
    "nobody answers": Fault(is_mute=True),
}
STEPS = (
    "before registering",
    "registered",  # from here on: the coordinator has done it, and its answer is on the way
    "before the order is pulled",
    "pull-messages",
    "pull-object",
    "confirm-message-received",
    "before the answer is pushed",
    "push-messages",
    "push-object",
    "send-node-heartbeat",
)
CALLS = {"registered": "activate-node"}
CASES = [
    (step, fault)
    for row, step in enumerate(STEPS)
    for column, fault in enumerate(FAULTS)
    if (row + column) % 3 == 0  # each fault at three or four steps, each step with four or five faults
]


@dataclass
class Outcome:
    """What a fault came to.

    bodies: of the site's answers to the one order, that were well signed.
    charged: what its ledger was charged.
    draws: the most often that noise was drawn in one context.
    has_bitten: whether the fault met anything.
    is_stopped: whether the site ended when it was told to.
    fault: what ended the site early.
    """

    bodies: list[bytes]
    charged: list[str]
    draws: int
    has_bitten: bool
    is_stopped: bool
    fault: BaseException | None


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Of certificates that are in force now."""
    return make_members(tmp_path_factory.mktemp("federation"), now=datetime.now(UTC))


@pytest.fixture(scope="module", autouse=True)
def no_long_waits() -> Iterator[None]:
    with hurried():
        yield


def try_fault(
    home: Home, server: SuperLink, federation: Federation, fault: Fault, step: str, *, lasts: float = LONG
) -> Outcome:
    """One site, one order, one fault."""
    with wire_to(server.port) as wire:
        settings = settings_of(home, federation, wire.port)
        is_armed, mender = threading.Event(), threading.Thread(target=mend, args=(wire, lasts), daemon=True)

        def bite() -> None:
            if not is_armed.is_set():
                is_armed.set()
                wire.spoil(fault)
                mender.start()

        call = CALLS.get(step, step)
        public = public_key_to_bytes(make_transport_key(settings.state).public_key())
        node = server.admit(public, lambda path, is_full: bite() if path == call and needed(path, is_full) else None)
        noise = CountedNoise()
        door = Door(home.open(noise))
        if step == "before registering":
            bite()
        site = Serving(settings, door, after=lambda: bite() if step == "before the answer is pushed" else None)
        if step not in ("before registering", "registered", "send-node-heartbeat"):
            wait_for(lambda: node in server.state.get_nodes(server.run))
        body = home.ask("one_way").encode()
        order = Order.of(body, study=home.study.digest(), site="north")
        envelope = order.seal(body, COORDINATOR)
        exchange = GridExchange(
            OwnNodes(server, [node]),
            nodes=1,
            patience=PATIENCE,
            timeout=PATIENCE,
            is_lasting=True,
        )
        if step == "before the order is pulled":
            bite()
        bodies = []
        for _ in range(2):
            exchange.sites()
            if (found := exchange.ask({str(node): envelope}).get(str(node))) is not None:
                bodies.append(Answer.open(found, public=IDENTITY.public, order=order)[1])
        if is_armed.is_set():
            mender.join()
        site.stop()
        return Outcome(
            bodies,
            home.charged,
            max(noise.draws.values(), default=0),
            wire.has_bitten.is_set(),
            site.is_over,
            site.fault,
        )


def needed(path: str, is_full: bool) -> bool:
    """Pulling is answered all the time; what matters is the answer that holds an order."""
    return is_full or path != "pull-messages"


def mend(wire: Wire, lasts: float) -> None:
    """Some seconds after its fault met something."""
    wire.has_bitten.wait(PATIENCE)
    time.sleep(lasts)
    wire.mend()


@pytest.fixture(scope="module")
def outcomes(federation: Federation, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Outcome]]:
    """Of the faults at one step, tried at the same time at as many sites: nearly all of it is waiting."""

    @cache
    def tried(step: str) -> dict[str, Outcome]:
        folder, names = tmp_path_factory.mktemp("sites"), [fault for at, fault in CASES if at == step]
        homes = {name: make_home(folder / name.replace(" ", "-")) for name in names}
        with superlink(federation.home) as server, ThreadPoolExecutor(len(names)) as pool:
            found = {
                name: pool.submit(try_fault, homes[name], server, federation, FAULTS[name], step) for name in names
            }
            return {name: future.result() for name, future in found.items()}

    return tried


@pytest.mark.parametrize(("step", "fault"), CASES)
def test_after_a_fault_of_the_wire_the_one_answer_arrives(
    outcomes: Callable[[str], dict[str, Outcome]], step: str, fault: str
) -> None:
    found = outcomes(step)[fault]
    assert found.fault is None
    assert found.has_bitten
    first, again = found.bodies
    assert Reply.decode(first).refused is None
    assert again == first
    assert found.charged == ["run-1/one_way"]
    assert found.draws == 1
    assert found.is_stopped


@pytest.mark.parametrize(
    ("step", "fault"),
    [("pull-messages", "reset"), ("pull-messages", "cut short"), ("push-messages", "reset"), ("push-object", "reset")],
)
def test_what_the_wire_took_along_comes_again_before_anybody_wonders_about_silence(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, fault: str
) -> None:
    monkeypatch.setattr(app, "_SILENT", math.inf)
    home = make_home(tmp_path / "north")
    with superlink(federation.home) as server:
        found = try_fault(home, server, federation, FAULTS[fault], step, lasts=0.1)
    assert found.has_bitten
    assert len(found.bodies) == 2
    assert found.charged == ["run-1/one_way"]
