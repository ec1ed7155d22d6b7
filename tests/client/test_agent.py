"""A running site: what it keeps, what it waits for and when it gives up."""

import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from client import agent
from client.agent import Agent
from client.health import SERVING, STOPPING, Part
from client.link import Parcel, RunOverError
from client.worker import WorkerLostError
from common.errors import ExitCode, PolicyError, ProtocolError, UnreachableError

GONE = UnreachableError("superlink: the connection is lost")
REFUSED = UnreachableError("superlink: does not let this site in", ExitCode.NOT_ADMITTED)
OVER = RunOverError("run: is over")
Step = Callable[[], Any]


def parcel(body: bytes) -> Parcel:
    return Parcel(body, None)  # type: ignore[arg-type]


@dataclass
class Script:
    """A coordinator that was written down: what each call on each link brings; after the last one the site is stopped.

    calls: in order, (name of the call, what it brings: a value, or an error to raise).
    """

    calls: list[tuple[str, Any]]
    log: list[Any] = field(default_factory=list)
    is_stopping: threading.Event = field(default_factory=threading.Event)

    def take(self, name: str, *seen: Any) -> Any:
        """The next call must be this one."""
        self.log.append((name, *seen) if seen else name)
        expected, brings = self.calls.pop(0)
        assert expected == name, self.log
        if not self.calls:
            self.is_stopping.set()
        if isinstance(brings, Exception):
            raise brings
        return brings() if callable(brings) else brings


@dataclass
class FakeLink:
    script: Script

    def open(self) -> "FakeLink":
        self.script.take("open")
        return self

    def close(self) -> None:
        self.script.log.append("close")

    def pull(self) -> Parcel | None:
        return self.script.take("pull")  # type: ignore[no-any-return]

    def push(self, found: Parcel, body: bytes) -> None:
        self.script.take("push", found.body, body)


@dataclass
class FakeWorker:
    """Answers in capitals, unless told otherwise."""

    log: list[str] = field(default_factory=list)
    lost_at: list[bytes] = field(default_factory=list)
    during: Step | None = None

    def start(self) -> None:
        self.log.append("start")

    def answer(self, envelope: bytes) -> bytes:
        self.log.append(envelope.decode())
        if self.during is not None:
            self.during()
        if envelope in self.lost_at:
            self.lost_at.remove(envelope)
            raise WorkerLostError
        return envelope.upper()

    def stop(self) -> None:
        self.log.append("stop")


@dataclass
class FakeHealth:
    told: list[tuple[str, str]] = field(default_factory=list)

    def tell(self, part: Part, state: str) -> None:
        self.told.append((part.name, state))

    def of(self, part: Part) -> list[str]:
        return [state for name, state in self.told if name == part.name]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(agent, "_QUICK", 0.0)
    monkeypatch.setattr(agent, "_IDLE", 0.0)
    monkeypatch.setattr(agent, "pauses", lambda *_: iter(lambda: 0.0, None))
    return


@dataclass
class Served:
    """What came of an agent that was served from a script."""

    script: Script
    worker: FakeWorker
    health: FakeHealth

    @property
    def pushed(self) -> list[tuple[bytes, bytes]]:
        return [call[1:] for call in self.script.log if call[0] == "push"]


def make(*calls: tuple[str, Any], worker: FakeWorker | None = None) -> tuple[Agent, Served]:
    served = Served(Script(list(calls)), worker or FakeWorker(), FakeHealth())
    made = Agent(
        lambda: FakeLink(served.script),  # type: ignore[arg-type,return-value]
        served.worker,  # type: ignore[arg-type]
        served.health,  # type: ignore[arg-type]
        site="north",
        is_stopping=served.script.is_stopping,
    )
    return made, served


def serve(*calls: tuple[str, Any], worker: FakeWorker | None = None) -> Served:
    made, served = make(*calls, worker=worker)
    made.run()
    assert served.script.calls == []
    return served


ONE, TWO = parcel(b"one"), parcel(b"two")


def test_what_comes_is_answered_one_after_the_other() -> None:
    served = serve(
        ("open", None), ("pull", ONE), ("push", None), ("pull", None), ("pull", None), ("pull", TWO), ("push", None)
    )
    assert served.pushed == [(b"one", b"ONE"), (b"two", b"TWO")]
    assert served.worker.log == ["start", "one", "two", "stop"]
    assert served.script.log[-1] == "close"


def test_an_answer_that_was_not_sent_is_kept_and_sent_first_over_the_next_connection() -> None:
    served = serve(
        *[("open", None), ("pull", ONE), ("push", GONE)],
        *[("open", GONE), ("open", None), ("push", GONE)],
        *[("open", None), ("push", None), ("pull", TWO), ("push", None)],
    )
    assert served.pushed == [(b"one", b"ONE")] * 3 + [(b"two", b"TWO")]
    # It was computed once.
    assert served.worker.log == ["start", "one", "two", "stop"]
    assert served.script.log.count("close") == 4


def test_an_answer_of_a_run_that_is_over_is_dropped() -> None:
    for first in ([("push", OVER)], [("push", GONE), ("open", None), ("push", OVER)]):
        served = serve(("open", None), ("pull", ONE), *first, ("pull", TWO), ("push", None))
        assert served.pushed[-1] == (b"two", b"TWO")
        assert served.worker.log == ["start", "one", "two", "stop"]


def test_what_is_no_message_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    fault = ProtocolError("message: not one of Flower")
    with caplog.at_level(logging.WARNING):
        served = serve(("open", None), ("pull", fault), ("pull", ONE), ("push", None))
    assert served.pushed == [(b"one", b"ONE")]
    assert caplog.messages == ["site=north event=malformed reason=message: not one of Flower"]


def test_a_stop_ends_after_the_running_step_and_its_answer_is_sent() -> None:
    worker = FakeWorker()
    made, served = make(("open", None), ("pull", ONE), ("push", None), ("pull", TWO), worker=worker)
    worker.during = served.script.is_stopping.set
    made.run()
    assert served.pushed == [(b"one", b"ONE")]
    assert served.script.calls == [("pull", TWO)]
    assert worker.log == ["start", "one", "stop"]
    assert served.script.log[-1] == "close"
    assert served.health.told[-2:] == [("CONNECTION", STOPPING), ("WORKER", STOPPING)]


def test_a_stop_while_nobody_is_there_ends_at_once() -> None:
    served = serve(("open", GONE), ("open", GONE))
    assert served.worker.log == ["start", "stop"]
    assert served.script.log.count("close") == 2


def test_a_stop_before_the_first_connection_connects_to_nobody() -> None:
    made, served = make(("open", None))
    served.script.is_stopping.set()
    made.run()
    assert served.script.log == []
    assert served.worker.log == ["start", "stop"]


def test_a_lost_worker_is_started_again_and_what_it_was_asked_is_answered_by_nothing() -> None:
    served = serve(
        *[("open", None), ("pull", ONE), ("push", None), ("pull", ONE), ("push", None)],
        worker=FakeWorker(lost_at=[b"one"]),
    )
    # Nothing has the coordinator ask again; the new worker answers.
    assert served.pushed == [(b"one", b""), (b"one", b"ONE")]
    assert served.worker.log == ["start", "one", "stop", "start", "one", "stop"]
    assert served.health.of(Part.WORKER) == [SERVING, "LOST", SERVING, STOPPING]


def test_how_it_goes_is_told() -> None:
    served = serve(
        *[("open", GONE), ("open", REFUSED), ("open", None), ("pull", GONE)],
        *[("open", None), ("pull", None)],
    )
    assert served.health.of(Part.CONNECTION) == [
        "UNREACHABLE",
        "NOT_ADMITTED",
        SERVING,
        "UNREACHABLE",
        SERVING,
        STOPPING,
    ]
    assert served.health.of(Part.WORKER) == [SERVING, STOPPING]


def test_the_same_reason_to_wait_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        serve(*[("open", GONE)] * 5, *[("open", REFUSED)] * 2, ("open", GONE))
    assert [line.split("reason=")[1] for line in caplog.messages] == [str(GONE), str(REFUSED), str(GONE)]


# --- who is not let in


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, as its one element."""
    now = [1000.0]
    monkeypatch.setattr(agent, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def after(clock: list[float], seconds: float, fault: UnreachableError) -> Step:
    """A call that takes so long."""

    def call() -> None:
        clock[0] += seconds
        raise fault

    return call


def test_a_site_that_is_not_let_in_asks_for_three_minutes_and_then_gives_up(clock: list[float]) -> None:
    tries = [("open", after(clock, seconds, REFUSED)) for seconds in (5, 60, 60, 59, 1.5, 1)]
    made, served = make(*tries)
    with pytest.raises(UnreachableError) as error:
        made.run()
    assert error.value is REFUSED
    # 180.5 seconds after the first refusal, which came at 1005.
    assert clock[0] == 1000 + 5 + 180.5
    assert len(served.script.calls) == 1
    assert served.worker.log == ["start", "stop"]
    assert served.health.told[-1] == ("WORKER", STOPPING)
    assert served.script.log.count("close") == 5


def test_a_site_that_is_let_in_within_three_minutes_serves(clock: list[float]) -> None:
    served = serve(
        *[("open", after(clock, 45, REFUSED)) for _ in range(5)], ("open", None), ("pull", ONE), ("push", None)
    )
    assert served.pushed == [(b"one", b"ONE")]


def test_the_three_minutes_begin_anew_when_the_coordinator_was_away_or_let_the_site_in(clock: list[float]) -> None:
    refused = [("open", after(clock, 100, REFUSED))] * 2
    served = serve(
        *refused,
        ("open", after(clock, 1, GONE)),
        *refused,
        *[("open", None), ("pull", GONE)],
        *refused,
        *[("open", None), ("pull", ONE), ("push", None)],
    )
    assert served.pushed == [(b"one", b"ONE")]


def test_a_coordinator_that_drops_this_site_at_once_is_called_less_and_less_often(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def counted(*_: float) -> Iterator[float]:
        for number in itertools.count():
            asked.append(number)
            yield 0.0

    monkeypatch.setattr(agent, "pauses", counted)
    short = [("open", None), ("pull", GONE)]
    serve(*short, *short, *short, ("open", None), ("pull", after(clock, 11, GONE)), *short, ("open", None))
    # Every connection opens at the first try, and asks for a first pause there.
    opened, dropped = [0], [0, 1, 2]
    assert asked[:6] == [*opened, dropped[0], *opened, dropped[1], *opened, dropped[2]]
    # None after the long one; then they begin anew.
    assert asked[6:9] == [*opened, *opened, dropped[0]]


def test_a_coordinator_that_is_not_there_is_waited_for_without_end(clock: list[float]) -> None:
    served = serve(*[("open", after(clock, 3600, GONE))] * 30, ("open", None), ("pull", ONE), ("push", None))
    assert served.pushed == [(b"one", b"ONE")]


def test_a_site_that_cannot_be_opened_connects_to_nobody() -> None:
    class Closed(FakeWorker):
        def start(self) -> None:
            raise PolicyError("policy: was changed")

    made, served = make(("open", None), worker=Closed())
    with pytest.raises(PolicyError, match="policy: was changed"):
        made.run()
    assert served.script.log == []
    assert served.health.told == []
