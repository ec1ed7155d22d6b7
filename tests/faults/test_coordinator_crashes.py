"""A coordinator whose process dies, whose power fails or whose disk breaks at any change to a file of its run's folder.

What must hold after each of these faults, once the run was started again as often as it takes:
  R1  what is published is, byte for byte, what an undisturbed run publishes;
  R2  every site's ledger is that of an undisturbed run: nothing was charged twice;
  R3  a publication that is not whole is not taken for one: it has no certificate, and no outcome says that it is one;
  R4  what went wrong ends in an error of one line, and never in another exception;
  R5  rounds.jsonl has a line for every step.
"""

import itertools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from client.simulated_site import SiteFolder, make_site_folder
from common.errors import ExitCode, PrivShareError
from common.study import load_study
from common.verification import verify_release
from server.exchange import Exchange
from server.launch import prepare
from server.live import conduct
from server.provision import provision
from server.run_folder import ask, read_outcome, read_start
from simulations.federation import Engine, credentials_of, run_federation
from tests.faults.disk import Disk, Fault, Killed, image_of, make_so

SITES: Final = ("north", "south")
SEED: Final = 3
STUDY: Final = """\
schema: privshare.study/1
name: tiny
unit: {name: person, key: person}
label: {column: ill, positive: "1"}
columns:
  colour: {type: categorical, categories: [red, green]}
  amount: {type: integer, min: 0, max: 7, cells: 8}
  ill: {type: categorical, categories: ["0", "1"]}
privacy: {epsilon: 30, delta: 1.0e-5, holdout: 0}
noise: {rounds: 1, schedule: fixed}
rounds: {count: 1, trainers: 1, local_steps: 1, refine_steps: 1}
model: {latent: 2, width: 8, blocks: 1, batch: 8, max_bins: 4}
release: {rows: 20}
"""
GIVEN: Final[dict[str, Any]] = {"run": "tiny-1", "seed": SEED, "device": "cpu", "patience": 1.0, "timeout": 1.0}
ENGINE: Final = Engine("process", "cpu", 1, noise_seed=5)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the disk asks Linux what a descriptor is of"),
]


@dataclass
class Federation:
    """Sites in this process, whose disks never fail, and a coordinator whose run is on one that does.

    folder: of the sites and of the coordinator's home.
    sites: their folders.
    disk: of one world; what is on it is the run.
    said: what the last error that no outcome holds said.
    """

    folder: Path
    sites: list[SiteFolder]
    disk: Disk
    said: str = ""

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.disk.root / "runs" / "tiny"

    @property
    def published(self) -> dict[str, bytes]:
        """What a run leaves for others to read."""
        own = {
            "checkpoints",
            "running",
            "events.jsonl",
            "study.lock.yaml",
            "start.json",
            "request.json",
            "outcome.json",
        }
        names = {path.relative_to(self.run): body for path, body in image_of(self.run).items() if body is not None}
        return {str(name): body for name, body in names.items() if name.parts[0].removesuffix(".part") not in own}

    @property
    def ledgers(self) -> dict[str, bytes]:
        """Of all sites."""
        return {path.name: path.read_bytes() for path in sorted((self.folder / "kept" / "ledger").glob("*"))}

    @property
    def is_published(self) -> bool:
        """Whether the run has ended well."""
        outcome = read_outcome(self.run)
        return outcome is not None and outcome.code == ExitCode.OK

    def start(self, *, stop: bool = False) -> None:
        """What `privshare start` does, and the program that it starts; an error ends either.

        Args:
            stop: whether `privshare stop` is typed before the program does anything.
        """
        try:
            prepare(self.folder / "study.yaml", self.folder / "home", self.run, **GIVEN)
            if stop:
                ask(self.run, "stop")
            start, credentials = read_start(self.run), credentials_of(SITES, seed=SEED)

            def program(exchange: Exchange) -> None:
                conduct(self.run, exchange, credentials, start)

            run_federation(self.sites, program, ENGINE)
        except PrivShareError as error:
            self.said = str(error)
        assert self.said.isprintable(), "R4: not one line"

    def conduct(self) -> None:
        """A run that is stopped, and started again."""
        self.start(stop=True)
        self.start()

    def finish(self) -> None:
        """Start the run until it is published: once more after a fault, and once after a stop that it undid."""
        for _ in range(2):
            if not self.is_published:
                self.start()

    def check_publication(self) -> None:
        """R3, whatever is there."""
        if (self.run / "certificate.json").exists():
            found = {one.check for one in verify_release(self.run).findings if not one.passed}
            assert found == {"guarantee"}, "R3: a certificate of what is not there"  # noise from a seed voids that one
        else:
            assert not self.is_published, "R3: published, without a certificate"


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], AbstractContextManager[Federation]]]:
    """Makes the same federation again and again, before its run, each time on a disk of its own."""
    folder = tmp_path_factory.mktemp("federation")
    path = folder / "study.yaml"
    path.write_text(STUDY)
    provision(
        path, home=folder / "home", kits=folder / "kits", sites=SITES, address="a.example:1", now=datetime.now(UTC)
    )
    places = {"private": folder / "private", "kept": folder / "kept"}
    study = load_study(path)
    sites = [
        make_site_folder(site, path, study, {"table": table(site)}, seed=SEED, peers=set(SITES) - {site}, **places)
        for site in SITES
    ]
    first = image_of(folder / "kept")
    (folder / "disk").mkdir()

    @contextmanager
    def make() -> Iterator[Federation]:
        make_so(folder / "kept", first)
        make_so(folder / "disk", {})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", lambda _: None)  # of the sites, whose disks are others
            yield Federation(folder, sites, Disk(folder / "disk", patch))

    logging.disable(logging.WARNING)
    yield make
    logging.disable(logging.NOTSET)


def table(site: str) -> str:
    """CSV text of a site's 60 people."""
    random = np.random.default_rng(len(site))
    people = [f"{site}{at},{random.choice(['red', 'green'])},{random.integers(8)},{at % 2}" for at in range(60)]
    return "\n".join(["person,colour,amount,ill", *people]) + "\n"


@dataclass(frozen=True)
class Undisturbed:
    """What a run comes to that nothing befalls."""

    published: dict[str, bytes]
    ledgers: dict[str, bytes]
    steps: int

    def check(self, world: Federation) -> None:
        """R1, R2 and R5 of a world."""
        assert world.is_published, "the run does not go on"
        assert world.published == self.published, "R1 or R5"
        assert world.ledgers == self.ledgers, "R2"


@pytest.fixture(scope="module")
def undisturbed(make: Callable[[], AbstractContextManager[Federation]]) -> Undisturbed:
    with make() as world:
        world.conduct()
        world.disk.lose_power()
        assert world.is_published
        world.check_publication()
        steps = len((world.run / "rounds.jsonl").read_text().splitlines())
        return Undisturbed(world.published, world.ledgers, steps)


@pytest.mark.parametrize(
    ("fault", "first", "stride", "least"),
    [
        (Fault.KILL, 1, 13, 18),
        (Fault.TORN, 1, 3, 12),
        (Fault.POWER, 4, 13, 18),
        (Fault.POWER_KEEPS_NAMES, 2, 23, 10),
        (Fault.POWER_KEEPS_CONTENTS, 5, 23, 10),
        (Fault.EIO, 2, 13, 18),
        (Fault.ENOSPC, 3, 23, 10),
    ],
)
def test_a_fault_at_any_change_to_a_file_changes_nothing_that_is_published_or_charged(
    make: Callable[[], AbstractContextManager[Federation]],
    undisturbed: Undisturbed,
    fault: Fault,
    first: int,
    stride: int,
    least: int,
) -> None:
    tried = 0
    for change in itertools.count(first, stride):
        with make() as world:
            world.disk.break_at(change, fault)
            with suppress(Killed):
                world.conduct()
            if not world.disk.was_struck:
                break
            tried += 1
            world.disk.restart()
            world.check_publication()
            world.finish()
            undisturbed.check(world)
            # A kill and then the loss of power: at most its outcome was not on disk.
            world.disk.lose_power()
            world.check_publication()
            world.finish()
            undisturbed.check(world)
    # The sum of these is above 95; strides have no divisor in common with the 7 changes that write a file.
    assert tried >= least


def damage(path: Path, how: str) -> None:
    """What a disk may make of a file."""
    body = path.read_bytes()
    middle = len(body) // 2
    flipped = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
    path.write_bytes({"empty": b"", "half": body[:middle], "flipped": flipped}[how])


@pytest.mark.parametrize("how", ["empty", "half", "flipped"])
@pytest.mark.parametrize("damaged", [1, 2])
def test_a_run_whose_newest_checkpoints_are_damaged_goes_on_from_the_one_before(
    make: Callable[[], AbstractContextManager[Federation]], undisturbed: Undisturbed, how: str, damaged: int
) -> None:
    for step in range(damaged + 1, undisturbed.steps + 1):
        with make() as world:
            world.conduct()
            checkpoints = sorted((world.run / "checkpoints").iterdir())
            for path in checkpoints[step:]:
                path.unlink()
            for path in checkpoints[step - damaged : step]:
                damage(path, how)
            for name in undisturbed.published:
                (world.run / name).unlink()
            (world.run / "outcome.json").unlink()
            world.start()
            world.check_publication()
            undisturbed.check(world)


def test_a_run_none_of_whose_checkpoints_is_whole_ends_in_one_line_that_says_how_to_go_on(
    make: Callable[[], AbstractContextManager[Federation]], undisturbed: Undisturbed
) -> None:
    with make() as world:
        world.conduct()
        (world.run / "outcome.json").unlink()
        checkpoints = world.run / "checkpoints"
        for path in checkpoints.iterdir():
            damage(path, "half")
        world.start()
        outcome = read_outcome(world.run)
        assert outcome is not None
        assert outcome.code == ExitCode.RESUME_IMPOSSIBLE
        assert outcome.message == (
            f"{checkpoints}: no checkpoint is whole; delete them to begin again, which charges nothing twice"
        )
        for path in checkpoints.iterdir():
            path.unlink()
        world.start()
        undisturbed.check(world)
