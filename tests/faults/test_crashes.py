"""A whole site whose process dies, whose power fails or whose disk breaks at any change that it makes to a file.

What must hold after each of these faults, whatever else is lost:
  I1  nothing left without a charge that was on disk before its noise was drawn;
  I2  a request gets the same bytes for ever, and once it is sealed no noise is drawn for it;
  I3  the spends of each account sum to no more than its bound;
  I4  the ledger file is one that `read_ledger` accepts;
  I5  the ledger holds every entry that a peer witnessed;
  I6  what left was charged, and what was charged leaves in the end.
"""

import hashlib
import itertools
import json
import logging
import multiprocessing
import os
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import date
from fractions import Fraction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import yaml

from client.policy import load_site_settings, sign_policy
from client.records import parse_text, read_text
from client.replies import Replies
from client.site import Site
from common.errors import PrivShareError
from common.files import write_private
from common.models.monitor import BANDS
from common.privacy.ledger import Book, Head, read_ledger
from common.privacy.signatures import SigningKey
from common.privacy.witness import Attestation, Statement, continues, state_head
from common.study import parse_study
from common.wire.messages import Reply, Request
from common.wire.packing import pack_bins
from tests.faults.disk import Disk, Fault, Killed, image_of, make_so

KEY, PEER_KEY = (SigningKey.from_seed(bytes([number]) * 32) for number in (1, 2))
PLAIN: dict[str, Any] = {
    "schema": "privshare.study/1",
    "name": "toy",
    "unit": {"name": "patient", "key": "patient"},
    "label": {"column": "ill", "positive": "yes"},
    "columns": {
        "colour": {"type": "categorical", "categories": ["red", "green"]},
        "age": {"type": "integer", "min": 0, "max": 9, "cells": 10},
        "ill": {"type": "categorical", "categories": ["no", "yes"]},
    },
    "privacy": {"epsilon": 1, "delta": 1e-5, "holdout": 0.3},
}
STUDY = parse_study(PLAIN, source="test")
BINS = [np.arange(2), np.arange(10) // 5]
MEASURED = ("one_way", "tables", "monitor")
Handle = Callable[[bytes], bytes]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the disk asks Linux what a descriptor is of"),
]


class Peer:
    """An honest witness on another machine: its memory is never lost."""

    def __init__(self) -> None:
        self.seen: Statement | None = None
        self._length = 0

    def show(self, statement: Statement) -> None:
        """Look at a head; one that contradicts what was seen before is an error."""
        assert statement.is_by(KEY.public)
        if continues(statement, self.seen):
            self.seen = statement

    def attest(self, nonce: str) -> Attestation:
        """The newest head."""
        return Attestation.of("east", "north", self.seen, nonce).signed(PEER_KEY)

    def statement(self) -> Statement:
        """A head of its own ledger, newer each time."""
        self._length += 1
        return state_head("east", Head("e" * 64, self._length, f"{self._length:064x}"), PEER_KEY)


class World:
    """One site, its peer, and what the coordinator got from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.peer = Peer()
        self.left: dict[str, tuple[str, bytes]] = {}
        self.given: set[str] = set()

    def open(self) -> Handle | None:
        """A site that starts now; None where it refuses to start."""
        raise NotImplementedError

    def draws(self) -> Counter[str]:
        """How often noise was drawn for each request."""
        raise NotImplementedError

    def survives(self, path: Path) -> bytes | None:
        """What of a file is on disk now."""
        raise NotImplementedError

    @property
    def ledger(self) -> Path:
        """In folders that the site has to make."""
        return self.folder / "kept" / "ledgers" / "ward.jsonl"

    def ask(self, handle: Handle, kind: str, name: str = "", **options: Any) -> Reply:
        """One request, whose reply is looked at as it leaves."""
        arrays = pack_bins(BINS) if kind in ("tables", "monitor") else {}
        if kind == "tables":
            arrays |= {"tables": np.arange(1), "emphasis": np.ones(1, dtype=np.int64)}
        if kind == "monitor":
            arrays["weights"] = np.linspace(-1, 1, 4 + BANDS - 1)
        request = Request(kind, STUDY.digest(), "run", name or kind, options, arrays)
        asked = request.encode()
        body = handle(asked)
        reply = Reply.decode(body)
        if reply.refused is None and kind in MEASURED:
            self._leave(request.identity, hashlib.sha256(asked).hexdigest(), body)
        if "ledger_head" in reply.facts:
            self.peer.show(Statement.from_dict(reply.facts["ledger_head"]))
        return reply

    def _leave(self, request: str, digest: str, body: bytes) -> None:
        first = self.left.setdefault(request, (digest, body))
        assert first == (digest, body), f"I2: {request} got other bytes than before"
        self.given.add(request)
        assert request in self.entries("charge"), f"I1: {request} left, and its charge is not on disk"
        seal = self.entries("seal").get(request, {}).get("reply")
        assert seal == hashlib.sha256(body).hexdigest(), f"I2: {request} left, and is not sealed on disk"

    def entries(self, kind: str) -> dict[str, dict[str, Any]]:
        """The ledger's entries of a kind that are on disk now, by request; not checked, for speed."""
        lines = (self.survives(self.ledger) or b"").splitlines(keepends=True)
        found = [json.loads(line) for line in lines if line.endswith(b"\n")]
        return {entry["request"]: entry for entry in found if entry["type"] == kind}

    def check(self) -> int:
        """The invariants, of the files as a site would find them now; the number of charges that bought nothing."""
        book = self._book()
        if (seen := self.peer.seen) is not None:
            assert book is not None, "I5: the ledger is gone, and a peer knows of it"
            assert book.hashes[0] == seen.ledger, "I5: the ledger began anew"
            assert book.hashes[seen.sequence : seen.sequence + 1] == [seen.hash], "I5: the ledger is behind"
        charges = book.charges.get(STUDY.digest(), {}) if book is not None else {}
        draws = self.draws()
        assert self.left.keys() <= charges.keys(), "I6: something left that was not charged"
        assert draws.keys() <= charges.keys(), "I1: noise was drawn for what was not charged"
        for account in ("train", "holdout"):
            events = [charge.event for charge in charges.values() if charge.event.account == account]
            spent = sum((Fraction(event.spend) for event in events), Fraction(0))
            assert not spent or (book is not None and spent <= book.bounds[STUDY.digest()]), "I3: more than there was"
        return len(charges.keys() - self.left.keys())

    def are_replies_whole(self) -> bool:
        """Whether every reply that was sealed is there."""
        seals = self.entries("seal").items()
        replies = Replies(self.folder / "state")
        return all(replies.is_whole(STUDY.digest(), request, seal["reply"]) for request, seal in seals)

    def _book(self) -> Book | None:
        """I4; None where not one entry is whole."""
        if not self.ledger.exists() or b"\n" not in self.ledger.read_bytes():
            return None
        return read_ledger(self.ledger)


@dataclass
class Noise:
    """Fresh noise that nobody can repeat; whoever made it is told of each draw before it happens."""

    tell: Callable[[str], object]
    kind: Literal["test-seed"] = "test-seed"

    def draw(self, size: int, *, noise_stddev: float, context: str) -> np.ndarray:
        """As a site's own noise."""
        self.tell(context)
        return np.rint(noise_stddev * np.random.default_rng().standard_normal(size)).astype(np.int64)

    def sample(self, size: int, *, rate: float, context: str) -> np.ndarray:
        """Not in this study."""
        raise NotImplementedError


def open_site(folder: Path, tell: Callable[[str], object]) -> Handle | None:
    """A site whose noise is fresh; None where it refuses to start."""
    settings = load_site_settings(folder / "site.yaml")
    try:
        site = Site(settings, noise=Noise(tell), device=torch.device("cpu"), today=lambda: date(2030, 5, 17))
    except PrivShareError:
        return None
    return site.handle


def make_site(folder: Path) -> None:
    """A site's files as its steward leaves them: no ledger yet, and no key that splits units."""
    folder.mkdir()
    rows = [f"p{one},{('red', 'green')[one % 2]},{one % 10},{('no', 'yes')[one % 3 > 0]}" for one in range(20)]
    (folder / "table.csv").write_text("\n".join(["patient,colour,age,ill", *rows]) + "\n")
    (folder / "study.yaml").write_text(json.dumps(PLAIN))
    paths = {"study": "study.yaml", "policy": "policy.yaml", "ledger": "kept/ledgers/ward.jsonl"}
    source = {"type": "csv", "table": str(folder / "table.csv")}
    settings = {name: str(folder / path) for name, path in {**paths, "state": "state"}.items()}
    (folder / "site.yaml").write_text(yaml.safe_dump({"site": "north", "source": source, **settings}))
    policy = {
        "schema": "privshare.policy/1",
        "site": "north",
        "asset": "ward",
        "approved": STUDY.digest(),
        "max_epsilon": 10,
        "max_delta": 0.001,
        "total_epsilon": 10,
        "total_delta": 0.001,
        "coordinator": "00" * 32,
        "peers": {"east": PEER_KEY.public},
    }
    (folder / "policy.yaml").write_text(yaml.safe_dump(policy))
    write_private(folder / "state" / "identity.pem", KEY.as_pem())
    sign_policy(folder / "policy.yaml", KEY)


def confirm(world: World, handle: Handle) -> None:
    """What a coordinator does before it asks for a release: heads to the peer, its word to the site."""
    described = world.ask(handle, "describe")
    if described.refused is None:
        heads = [described.facts["ledger_head"], asdict(world.peer.statement())]
        world.ask(handle, "witness", heads=heads, nonces={"east": "n"})
        world.ask(handle, "confirm", attestations=[asdict(world.peer.attest(described.facts["nonce"]))])


REQUESTS: tuple[tuple[str, str, float], ...] = (("one_way", "", 0.3), ("tables", "", 0.4), ("monitor", "", 0.5))
# A request that is repeated, another one under a name that was used, and more than there is.
ODD: tuple[tuple[str, str, float], ...] = (("tables", "", 0.4), ("tables", "one_way", 0.1), ("one_way", "greedy", 1))


def run(world: World) -> None:
    """A run, as a site that starts now answers it. Nothing here may assume that a request is granted."""
    world.given = set()
    handle = world.open()
    if handle is None:
        return
    for kind, name, share in REQUESTS:
        confirm(world, handle)
        world.ask(handle, kind, name, share=share)
    for kind, name, share in ODD:
        if name == "greedy":
            confirm(world, handle)
        reply = world.ask(handle, kind, name, share=share)
        assert reply.refused is not None or not name, "I3: a request that must be refused was answered"


def repeat(world: World) -> None:
    """The same requests to a site that starts now."""
    world.given = set()
    handle = world.open()
    if handle is None:
        return
    confirm(world, handle)
    for kind, name, share in REQUESTS:
        world.ask(handle, kind, name, share=share)


def survive(world: World) -> None:
    """What must hold after a fault, and that the site goes on."""
    world.check()
    assert world.are_replies_whole(), "a reply was sealed before it was on disk"
    before = set(world.left)
    run(world)
    assert world.check() == 0, "I6: a charge bought nothing"
    assert before <= world.given, "what left once is not given again"
    assert {f"run/{name}" for name in MEASURED} <= world.given, "the site does not go on"


class Fragile(World):
    """A site on a disk that fails on demand."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        super().__init__(folder)
        self.disk = Disk(folder, patch)
        self._draws: Counter[str] = Counter()

    def open(self) -> Handle | None:
        """A site in this process."""
        return open_site(self.folder, self._tell)

    def draws(self) -> Counter[str]:
        """Of all sites so far."""
        return self._draws

    def survives(self, path: Path) -> bytes | None:
        """What the loss of power would leave."""
        return self.disk.on_disk(path)

    def _tell(self, context: str) -> None:
        self._draws[context] += 1
        assert context in self.entries("charge"), f"I1: noise is drawn, and the charge of {context} is not on disk"
        assert context not in self.entries("seal"), f"I2: noise is drawn for {context}, which is sealed"


@pytest.fixture
def fragile(tmp_path: Path) -> Iterator[Callable[[], AbstractContextManager[Fragile]]]:
    """Makes the same new site again and again, each time on a disk of its own."""
    folder = tmp_path / "north"
    make_site(folder)
    first, table = image_of(folder), parse_text(read_text(folder / "table.csv", STUDY), STUDY)

    @contextmanager
    def make() -> Iterator[Fragile]:
        make_so(folder, first)
        with pytest.MonkeyPatch.context() as patch:
            # Neither changes a file; there is no time to read them a thousand times.
            patch.setattr("client.site.load_study", lambda _: STUDY)
            patch.setattr("client.site.read_records", lambda *_: (table, None))
            yield Fragile(folder, patch)

    logging.disable(logging.WARNING)
    yield make
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(
    ("fault", "stride", "least"),
    [
        (Fault.KILL, 1, 100),
        (Fault.TORN, 1, 15),
        (Fault.POWER, 1, 100),
        (Fault.POWER_KEEPS_NAMES, 4, 25),
        (Fault.POWER_KEEPS_CONTENTS, 4, 25),
        (Fault.EIO, 1, 100),
        (Fault.ENOSPC, 1, 100),
    ],
)
def test_a_fault_at_any_change_to_a_file_breaks_no_promise(
    fragile: Callable[[], AbstractContextManager[Fragile]],
    fault: Fault,
    stride: int,
    least: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tried = 0
    for change in itertools.count(1, stride):
        with fragile() as world:
            world.disk.break_at(change, fault)
            try:
                run(world)
                repeat(world)
            except Killed:
                pass
            if not world.disk.was_struck:
                assert world.check() == 0
                break
            tried += 1
            world.disk.restart()
            survive(world)
            # All that was done since, after a restart on top of a fault, is on disk too.
            world.disk.lose_power()
            world.check()
            assert world.are_replies_whole(), "a reply was sealed before it was on disk"
            repeat(world)
            world.check()
            assert world.left.keys() <= world.given, "what left once is not given again"
    with capsys.disabled():
        sys.stdout.write(f"\n{fault.name}: {tried} faults ")
    # The sum of these is above 450.
    assert tried >= least


class Killing:
    """Ends this process as `kill -9` does, before its so many-th change of some kinds to a file."""

    def __init__(self, at: int) -> None:
        self._left = at
        for name in ("fsync", "replace", "link", "mkdir", "unlink"):
            setattr(os, name, self._before(getattr(os, name)))

    def _before(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        return call


def serve(connection: Connection, folder: Path, log: Path, at: int) -> None:
    """A process that is a site: requests in, replies out, until an empty request or a kill ends it."""
    draws = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    if at:
        Killing(at)
    handle = open_site(folder, lambda context: os.write(draws, f"{context}\n".encode()))
    connection.send_bytes(b"open" if handle else b"")
    while handle and (body := connection.recv_bytes()):
        connection.send_bytes(handle(body))


class Live(World):
    """A site in a process of its own, on a real disk.

    at: the change to a file before which the next process kills itself; 0: none.
    request, delay: the request of the next process, and the seconds after it, at which it is killed; 0: none.
    """

    def __init__(self, folder: Path, *, at: int = 0, request: int = 0, delay: float = 0.0) -> None:
        super().__init__(folder)
        self._log = folder.parent / "draws"
        self._at, self._request, self._delay = at, request, delay
        self._process: Any = None
        self._connection: Connection | None = None

    def open(self) -> Handle | None:
        """A new process, the last one at its end."""
        self.close()
        fork = multiprocessing.get_context("fork")
        self._connection, there = fork.Pipe()
        self._process = fork.Process(target=serve, args=(there, self.folder, self._log, self._at), daemon=True)
        with warnings.catch_warnings():
            # Newer interpreters warn of forking beside threads; this child serves and ends.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process.start()
        there.close()
        return self._handle if self._receive() else None

    def draws(self) -> Counter[str]:
        """Of all processes so far."""
        return Counter(self._log.read_text().split())

    def survives(self, path: Path) -> bytes | None:
        """What processes see: the power does not fail here."""
        return path.read_bytes() if path.exists() else None

    def heal(self) -> None:
        """Kill nothing more."""
        self._at = self._request = 0

    def close(self) -> None:
        """Nobody asks any more."""
        if self._process is not None and self._process.is_alive():
            assert self._connection is not None
            self._connection.send_bytes(b"")
            self._process.join(timeout=30)
            assert self._process.exitcode == 0

    def _handle(self, body: bytes) -> bytes:
        assert self._connection is not None
        self._request -= 1
        with suppress(BrokenPipeError):
            self._connection.send_bytes(body)
        if self._request == 0:
            self._connection.poll(self._delay)
            self._process.kill()
        return self._receive()

    def _receive(self) -> bytes:
        assert self._connection is not None
        try:
            return self._connection.recv_bytes()
        except (EOFError, OSError):
            self._process.join(timeout=30)
            assert self._process.exitcode == -signal.SIGKILL
            raise Killed from None


@pytest.mark.parametrize("at", [3, 8, 14, 22, 27, 31, 35, 39])
def test_a_real_process_that_is_killed_before_a_change_breaks_no_promise(tmp_path: Path, at: int) -> None:
    kill(Live(tmp_path / "north", at=at))


@pytest.mark.parametrize("number", range(5))
def test_a_real_process_that_is_killed_at_any_time_breaks_no_promise(tmp_path: Path, number: int) -> None:
    random = np.random.default_rng()
    request, delay = int(random.integers(1, 13)), float(random.uniform(0, 0.02))
    sys.stdout.write(f"killed {delay} s after request {request}")
    kill(Live(tmp_path / "north", request=request, delay=delay))


def kill(world: Live) -> None:
    """A run that is killed once, and what must hold afterwards."""
    make_site(world.folder)
    with pytest.raises(Killed):
        run(world)
    world.heal()
    survive(world)
    repeat(world)
    world.check()
    world.close()
