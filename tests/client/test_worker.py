"""A site in a process of its own: the same answers, its refusals to open, and what is left when either side dies."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.door import Door
from client.worker import Worker, WorkerLostError, _end_with_owner
from common.errors import ExitCode, PrivShareError
from common.privacy.ledger import read_ledger
from common.privacy.noise import SeededNoise
from common.wire.envelopes import Answer, Order
from tests.client.homes import COORDINATOR, IDENTITY, Home, make_home, refused

SEED = 11


def order_for(home: Home, kind: str) -> tuple[Order, bytes]:
    body = home.ask(kind).encode()
    order = Order.of(body, study=home.study.digest(), site="north")
    return order, order.seal(body, COORDINATOR)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return make_home(tmp_path_factory.mktemp("worker") / "north")


@pytest.fixture(scope="module")
def worker(made: Home) -> Iterator[Worker]:
    """One process for the tests that leave it whole; a start takes seconds."""
    found = Worker(made.folder / "site.yaml", device="cpu", threads=1, noise_seed=SEED)
    found.start()
    yield found
    found.stop()


def test_a_worker_answers_as_the_door_in_this_process_does(worker: Worker, made: Home, tmp_path: Path) -> None:
    # Of the same site in another folder, and with the same noise.
    other = make_home(tmp_path / "north")
    door = Door(other.open(SeededNoise.of_site("north", SEED)))
    for kind in ("one_way", "tables", "train", "critic"):
        order, envelope = order_for(made, kind)
        answer, body = Answer.open(worker.answer(envelope), public=IDENTITY.public, order=order)
        assert body == Answer.open(door.answer(envelope), public=IDENTITY.public, order=order)[1]
        assert refused(body) is None
        assert (answer.site, answer.request) == ("north", f"run-1/{kind}")
    assert made.ledger.read_bytes() == other.ledger.read_bytes()


def test_a_worker_refuses_what_the_coordinator_did_not_sign(worker: Worker, made: Home) -> None:
    before = made.ledger.read_bytes()
    for envelope in (b"garbage", order_for(made, "one_way")[1][:-1]):
        assert b"UNTRUSTED" in worker.answer(envelope)
    assert made.ledger.read_bytes() == before


def test_signals_to_the_whole_group_do_not_end_a_step(worker: Worker, made: Home) -> None:
    assert worker._process is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker._process.pid or 0, number)
    order, envelope = order_for(made, "describe")
    assert refused(Answer.open(worker.answer(envelope), public=IDENTITY.public, order=order)[1]) is None


def test_a_site_that_cannot_be_opened_says_why_with_the_code_of_the_rule(home: Home) -> None:
    with (home.folder / "policy.yaml").open("a") as file:
        file.write("\n# changed\n")
    worker = Worker(home.folder / "site.yaml", device="cpu", threads=1)
    with pytest.raises(PrivShareError, match="was changed since this site signed it") as error:
        worker.start()
    assert error.value.code == ExitCode.POLICY_REFUSED
    worker.stop()


def test_a_killed_worker_is_lost_and_a_new_one_goes_on_where_it_was(home: Home) -> None:
    worker = Worker(home.folder / "site.yaml", device="cpu", threads=1)
    worker.start()
    order, envelope = order_for(home, "one_way")
    first = Answer.open(worker.answer(envelope), public=IDENTITY.public, order=order)[1]
    before = home.ledger.read_bytes()
    assert worker._process is not None
    os.kill(worker._process.pid or 0, signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(WorkerLostError):
            worker.answer(envelope)
    worker.stop()
    worker.start()
    assert Answer.open(worker.answer(envelope), public=IDENTITY.public, order=order)[1] == first
    assert home.ledger.read_bytes() == before
    worker.stop()
    with pytest.raises(WorkerLostError):
        worker.answer(envelope)
    assert [charge.event.noise for charge in home.charges] == ["csprng"]


@pytest.mark.parametrize("device", ["gpu", "cuda:999", "mps"])
def test_a_device_that_is_none_of_this_machine_is_refused_before_anything_is_answered(home: Home, device: str) -> None:
    worker = Worker(home.folder / "site.yaml", device=device, threads=1)
    with pytest.raises(PrivShareError, match=f"^device={device}: not a device of this machine") as refused:
        worker.start()
    assert refused.value.code == ExitCode.USAGE


def test_a_worker_that_was_never_started_can_be_stopped(home: Home) -> None:
    Worker(home.folder / "site.yaml", device="cpu", threads=1).stop()


def _own_and_die(settings: Path, said: Path, told: signal.Signals | None = None) -> None:
    """Start a worker, write down its number, send it a signal, and be killed."""
    worker = Worker(settings, device="cpu", threads=1)
    worker.start()
    assert worker._process is not None
    assert worker._process.pid is not None
    said.write_text(str(worker._process.pid))
    if told is not None:
        os.kill(worker._process.pid, told)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_ends_when_its_owner_dies(home: Home, tmp_path: Path) -> None:
    said = tmp_path / "pid"
    if (owner := os.fork()) == 0:
        try:
            _own_and_die(home.folder / "site.yaml", said)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(owner, 0)[1]) == -signal.SIGKILL
    assert ended(int(said.read_text()))
    assert read_ledger(home.ledger).charges == {home.study.digest(): {}}


def test_a_worker_whose_owner_is_gone_and_that_has_not_ended_yet_keeps_another_from_beginning(
    home: Home, tmp_path: Path
) -> None:
    # It may be in an answer that is charged: a second worker would make the same one anew, and the first then go on.
    said = tmp_path / "pid"
    if (owner := os.fork()) == 0:
        try:
            _own_and_die(home.folder / "site.yaml", said, signal.SIGSTOP)
        finally:
            os._exit(1)
    os.waitpid(owner, 0)
    stopped = int(said.read_text())
    another = Worker(home.folder / "site.yaml", device="cpu", threads=1)
    try:
        with pytest.raises(PrivShareError, match=r"another process runs this site$") as error:
            another.start()
        assert error.value.code == ExitCode.ALREADY_RUNNING
        another.stop()
    finally:
        os.kill(stopped, signal.SIGCONT)
    another.start()
    assert not is_running(stopped)
    another.stop()


def _compute_for_ever(said: Path) -> None:
    """A step of a worker that takes long."""
    threading.Thread(target=_end_with_owner, daemon=True).start()
    said.write_text(str(os.getpid()))
    time.sleep(600)


def test_a_worker_ends_in_the_middle_of_a_step_when_its_owner_dies(tmp_path: Path) -> None:
    said = tmp_path / "pid"
    if (owner := os.fork()) == 0:
        multiprocessing.get_context("spawn").Process(target=_compute_for_ever, args=(said,)).start()
        while not said.exists() or not said.read_text():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(owner, 0)
    assert ended(int(said.read_text()))


def ended(pid: int) -> bool:
    """Whether a process ends by itself, within a minute; it does not outlive the test."""
    deadline = time.monotonic() + 60
    while (lives := is_running(pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    if lives:
        os.kill(pid, signal.SIGKILL)
    return not lives


def is_running(pid: int) -> bool:
    """Whether a process is there and is not only waiting for somebody to ask how it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
