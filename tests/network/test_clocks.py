"""A site whose clock is wrong, or put forward or back during a run: the same answer, charged once, or one clear line.

The SuperLink is real and its clock is right. What a site signs for it is dated by the site's clock; nothing else that
a site does asks what time it is, but for the day on which its policy expires and for certificates, whose tests are in
`test_link.py` (a server's), `tests/client/test_enrolment.py` (its own) and `tests/client/test_policy.py`.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode import node_auth_http_interceptor

from client import agent
from client.door import Door
from client.health import SERVING, Part
from client.keys import make_transport_key
from client.link import Link
from common.errors import ExitCode, UnreachableError
from common.wire.envelopes import Answer, Order
from common.wire.messages import Reply
from server.app import GridExchange
from tests.client.homes import COORDINATOR, IDENTITY, TODAY, Home, make_home
from tests.members import Federation, make_members
from tests.network.sites import PATIENCE, CountedNoise, Serving, hurried, settings_of, wait_for
from tests.network.superlinks import OwnNodes, SuperLink, superlink

pytestmark = [
    pytest.mark.slow,
    # Of what serves Flower's interface.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
YEAR = timedelta(days=366)
WRONG = {
    "6 s fast": timedelta(seconds=6),
    "310 s slow": timedelta(seconds=-310),
    "a year fast": YEAR,
    "a year slow": -YEAR,
}
RIGHT = timedelta(0)


@dataclass
class Clock:
    """A site's."""

    off: timedelta = RIGHT

    def now(self) -> datetime:
        """What it shows."""
        return datetime.now(UTC) + self.off


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Of what the site signs, and not of the SuperLink in the same process."""
    made = Clock()
    monkeypatch.setattr(node_auth_http_interceptor, "now", made.now)
    return made


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Of certificates that are in force now."""
    return make_members(tmp_path_factory.mktemp("federation"), now=datetime.now(UTC))


@pytest.fixture(scope="module")
def server(federation: Federation) -> Iterator[SuperLink]:
    with hurried(), superlink(federation.home) as made:
        yield made


@dataclass
class Stand:
    """A site, its node at the SuperLink, and a coordinator that asks it for one release.

    after: is called once the site has an answer, before it sends it.
    """

    home: Home
    federation: Federation
    server: SuperLink
    after: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        """Admit it."""
        self.settings = settings_of(self.home, self.federation, self.server.port)
        self.noise = CountedNoise()
        public = public_key_to_bytes(make_transport_key(self.settings.state).public_key())
        self.node = self.server.admit(public, lambda *_: None)
        body = self.home.ask("one_way").encode()
        self._order = Order.of(body, study=self.home.study.digest(), site="north")
        self._envelope = self._order.seal(body, COORDINATOR)

    def serve(self) -> Serving:
        """The site, opened anew."""
        return Serving(self.settings, Door(self.home.open(self.noise)), after=self.after)

    def wait(self) -> None:
        """Until it is connected."""
        wait_for(lambda: self.node in self.server.state.get_nodes(self.server.run))

    def ask(self) -> bytes:
        """The site's answer to the one order."""
        exchange = GridExchange(
            OwnNodes(self.server, [self.node]),
            nodes=1,
            patience=PATIENCE,
            timeout=PATIENCE,
            is_lasting=True,
        )
        exchange.sites()
        found = exchange.ask({str(self.node): self._envelope})[str(self.node)]
        return Answer.open(found, public=IDENTITY.public, order=self._order)[1]

    def check(self, first: bytes) -> None:
        """It is the one answer that there is, and was paid for once."""
        assert Reply.decode(first).refused is None
        assert self.ask() == first
        assert self.home.charged == ["run-1/one_way"]
        assert max(self.noise.draws.values()) == 1


@pytest.fixture
def stand(tmp_path: Path, federation: Federation, server: SuperLink) -> Stand:
    return Stand(make_home(tmp_path / "north"), federation, server)


@pytest.mark.parametrize("off", [timedelta(seconds=4), timedelta(seconds=-200)])
def test_a_clock_that_is_a_little_off_is_no_hindrance(stand: Stand, clock: Clock, off: timedelta) -> None:
    clock.off = off
    Link(stand.settings, is_stopping=threading.Event()).open().close()


@pytest.mark.parametrize("off", WRONG.values(), ids=WRONG)
def test_a_site_whose_clock_is_wrong_is_told_so_in_one_line_and_spends_nothing(
    stand: Stand, clock: Clock, off: timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "_REFUSED_FOR", 0.5)
    clock.off = off
    site = stand.serve()
    wait_for(lambda: site.is_over)
    assert isinstance(site.fault, UnreachableError)
    assert site.fault.code == ExitCode.NOT_ADMITTED
    assert str(site.fault).isprintable()
    assert "or its clock be wrong" in str(site.fault)
    assert not stand.home.ledger.exists() or not stand.home.sealed


@pytest.mark.parametrize("off", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("when", ["between two orders", "before an answer is sent"])
def test_a_clock_that_jumps_during_a_run_and_is_set_right_changes_no_answer(
    stand: Stand, clock: Clock, off: timedelta, when: str
) -> None:
    site_is_refused = threading.Event()

    def jump() -> None:
        if not site_is_refused.is_set():
            clock.off = off
            threading.Thread(target=mend, daemon=True).start()

    def mend() -> None:
        # Its connection is lost, and then it is not let in.
        wait_for(lambda: site.health.times[Part.CONNECTION, ExitCode.NOT_ADMITTED.name] > 1)
        site_is_refused.set()
        clock.off = RIGHT

    if when == "before an answer is sent":
        stand.after = jump
    site = stand.serve()
    stand.wait()
    first = stand.ask()
    if when == "between two orders":
        jump()
    stand.check(first)
    assert site_is_refused.is_set()
    assert site.health.last[Part.CONNECTION] == SERVING
    site.stop()
    assert (site.is_over, site.fault) == (True, None)


def test_a_clock_that_jumps_for_good_ends_a_site_which_started_again_gives_the_same_answer(
    stand: Stand, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = stand.serve()
    stand.wait()
    first = stand.ask()
    with monkeypatch.context() as hasty:
        hasty.setattr(agent, "_REFUSED_FOR", 0.5)
        clock.off = -YEAR
        wait_for(lambda: site.is_over)
    assert isinstance(site.fault, UnreachableError)
    assert site.fault.code == ExitCode.NOT_ADMITTED
    clock.off = RIGHT
    again = stand.serve()
    stand.check(first)
    again.stop()


@pytest.mark.parametrize("off", [-YEAR, YEAR])
def test_the_day_of_a_site_changes_no_byte_of_a_reply_or_a_ledger(tmp_path: Path, off: timedelta) -> None:
    replies, ledgers = [], []
    for name, day in (("right", TODAY), ("wrong", TODAY + off)):
        home = make_home(tmp_path / name)
        replies.append(home.open(today=lambda day=day: day).handle(home.ask("one_way").encode()))
        ledgers.append(home.ledger.read_bytes())
    assert Reply.decode(replies[0]).refused is None
    assert replies[0] == replies[1]
    assert ledgers[0] == ledgers[1]
