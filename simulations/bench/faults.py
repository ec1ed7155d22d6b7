"""How a live federation recovers from faults, beside plain Flower: `python simulations/bench/faults.py`.

Each cell is one run of real processes on this machine that one fault hits, at a moment that its repetition fixes: of
privshare by the commands that people type, or of the application in `simulations/bench/plain_flower` by Flower's own.
A cell that was measured is kept as a file and not measured again.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYetError
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final, Protocol

import numpy as np
import torch
import typer

from common.commands import Commands, say_aside
from common.errors import PrivShareError
from common.evaluation.report import Level
from common.privacy.ledger import read_ledger
from server.checkpoints import write_json
from server.journal import read_journal
from simulations.bench.plain_federation import ROUNDS, PlainFederation
from simulations.bench.scale import descendants
from simulations.experiment import Run, Scenario, choose, divide, execute
from simulations.faulty_wire import End, Wire, wire_to
from simulations.faulty_wire import Fault as Spoiled
from simulations.federation import Engine
from simulations.live import (
    LiveFederation,
    Processes,
    Where,
    free_ports,
    live_federation,
    share_unit_secrets,
)

app = Commands()


class Side(StrEnum):
    """Whose federation it is."""

    PRIVSHARE = "privshare"
    PLAIN = "plain"


class Fault(StrEnum):
    """What happens to a run; of two sites the first is the one that is hit."""

    NONE = "none"
    SITE_KILLED = "site-killed"
    SITE_STOPPED = "site-stopped"
    SITE_RESET = "site-reset"
    SITE_CUT_OFF = "site-cut-off"
    PROGRAM_KILLED = "program-killed"
    SUPERLINK_KILLED = "superlink-killed"
    SUPERLINK_ENDED = "superlink-ended"
    DATABASE_LOST = "database-lost"
    SITE_FULL = "site-full"
    COORDINATOR_FULL = "coordinator-full"


SAID: Final[Mapping[Fault, str]] = {
    Fault.NONE: "none",
    Fault.SITE_KILLED: "a site killed (-9), started 1 s later",
    Fault.SITE_STOPPED: "a site stopped (SIGSTOP) for 20 s",
    Fault.SITE_RESET: "a site's connections reset for 15 s",
    Fault.SITE_CUT_OFF: "nothing passes to and from a site for 15 s",
    Fault.PROGRAM_KILLED: "the coordinator's program killed (-9)",
    Fault.SUPERLINK_KILLED: "the SuperLink killed (-9), started 1 s later",
    Fault.SUPERLINK_ENDED: "the SuperLink told to end (SIGTERM), started 1 s after it has",
    Fault.DATABASE_LOST: "the SuperLink killed (-9), started 1 s later without its database",
    Fault.SITE_FULL: "no file of a site can grow for 15 s; then it, and the run, are started again",
    Fault.COORDINATOR_FULL: "no file of the coordinator's program can grow for 15 s",
}
SITES: Final = ("site_01", "site_02")
_VICTIM: Final = SITES[0]
_NOISE_SEED: Final = 11
_AGAIN: Final = 1.0
"""Seconds after which what was killed is started again."""
_STOPPED_FOR: Final = 20.0
_SPOILED_FOR: Final = 15.0
_FULL_FOR: Final = 15.0
_STOP: Final = 60.0
"""Seconds that the unit of the SuperLink gives it to end."""
_ENDED: Final = 30.0
"""Seconds after which a run that a site refused has ended."""
_LIMIT: Final = 300.0
"""Seconds after a fault in which a run must end."""
_NEVER: Final = float("inf")
_LOOK: Final = 0.05
_GOLDEN: Final = 0.6180339887498949
_SMALL: Final = {
    "rounds": {"count": 6, "local_steps": 2, "refine_steps": 2},
    "model": {"width": 16, "blocks": 1, "batch": 16},
}
_UNITS: Final = 2000


@dataclass(frozen=True)
class Cell:
    """What one run came to; all times are seconds from its first word.

    moment: part of the run, by its steps, that was done when it was hit.
    struck: when it was hit.
    ended: when it had ended, well or not.
    steps: when each of its steps was done.
    finished: whether it published, or had all its rounds.
    lost: answers that it went on without.
    said: why it ended, where it did not finish.
    equal: whether its table is the one of a process; None where there is none to compare.
    doubled: charges beyond those of a run in one process; None where there is no ledger.
    """

    side: str
    fault: str
    repetition: int
    moment: float
    struck: float
    ended: float
    steps: list[float]
    finished: bool
    lost: int
    said: str = ""
    equal: bool | None = None
    doubled: int | None = None

    @property
    def recovery(self) -> float:
        """Seconds from the fault to the next step that was done, or to the end of the run; infinite without either."""
        done = [*self.steps, *([self.ended] if self.finished else [])]
        return min((at for at in done if at > self.struck), default=_NEVER) - self.struck

    @property
    def longest(self) -> float:
        """Seconds without a step done, the most from the fault on; infinite where it did not finish."""
        if not self.finished:
            return _NEVER
        later = [at for at in self.steps if at > self.struck] or [self.ended]
        return max(after - before for before, after in pairwise([self.struck, *later]))


def moment_of(fault: Fault, repetition: int, *, seed: int) -> tuple[float, float]:
    """Where a run is hit: a part of its steps, and a part of the next one, both from 0 to 1.

    Guarantees: the repetitions of a fault are spread over the run, however many there are.
    """
    first, within = np.random.default_rng([seed, list(Fault).index(fault), repetition]).random(2)
    if repetition:
        first, _ = moment_of(fault, 0, seed=seed)
    return float((first + repetition * _GOLDEN) % 1.0), float(within)


# --- federations


class Federation(Protocol):
    """A live federation of either side, as what hits it needs it."""

    @property
    def processes(self) -> Processes:
        """All of it."""
        ...

    @property
    def coordinator(self) -> tuple[str, ...]:
        """Of its processes: the SuperLink and what an operator's units bind to it."""
        ...

    @property
    def database(self) -> Path:
        """The SuperLink's; files beside it begin with its name."""
        ...

    @property
    def count(self) -> int:
        """Steps of a whole run."""
        ...

    @property
    def step(self) -> float:
        """Seconds of one, about."""
        ...

    def restart(self) -> None:
        """Start what belongs to the coordinator again."""

    def start_site(self, name: str) -> None:
        """Start a site again."""

    def conduct(self) -> None:
        """A run, to its end; raises PrivShareError where that is not the one that it should have."""

    def steps(self) -> list[float]:
        """When each step so far was done, in seconds of the epoch."""
        ...

    def outcome(self) -> dict[str, Any]:
        """Fields of a cell that are looked for once a run is over."""
        ...


@dataclass(frozen=True)
class Reference:
    """The same run in one process: its table, its steps, and what each site's ledger was charged."""

    table: bytes
    steps: int
    charges: Mapping[str, Counter[str]]


@dataclass
class Ours:
    """A federation of privshare."""

    processes: LiveFederation
    run: Run
    reference: Reference
    coordinator: tuple[str, ...] = ("superlink", "superexec")
    step: float = 1.5

    @property
    def database(self) -> Path:
        """The SuperLink's."""
        return self.processes.home / "superlink.db"

    @property
    def count(self) -> int:
        """Steps of a whole run."""
        return self.reference.steps

    def restart(self) -> None:
        """The SuperLink, and what its unit starts with it."""
        self.processes.start_superlink()
        self.processes.start_superexec()

    def start_site(self, name: str) -> None:
        """A site."""
        self.processes.start_site(name)

    def conduct(self) -> None:
        """`privshare start`, once."""
        self.processes.conduct(run=self.run.name, seed=self.run.options.seed, on_step=lambda _: None, timeout=_LIMIT)

    def steps(self) -> list[float]:
        """As the journal has them."""
        found = read_journal(self.processes.run_folder)
        return [datetime.fromisoformat(event["time"]).timestamp() for event in found if event["event"] == "step"]

    def outcome(self) -> dict[str, Any]:
        """Whether its table is the reference's, what ledgers were charged beyond it, and answers that did not come."""
        table = self.processes.run_folder / "synthetic.csv"
        beyond = (
            charges_of(self.processes.folder / "sites" / site / "ledger.jsonl") - self.reference.charges[site]
            for site in SITES
        )
        return {
            "equal": table.exists() and table.read_bytes() == self.reference.table,
            "doubled": sum(extra.total() for extra in beyond),
            "lost": len(lost_of(read_journal(self.processes.run_folder))),
        }


@dataclass
class Plain:
    """A federation of stock Flower."""

    processes: PlainFederation
    coordinator: tuple[str, ...] = ("superlink",)
    count: int = ROUNDS
    step: float = 6.0

    @property
    def database(self) -> Path:
        """The SuperLink's."""
        return self.processes.database

    def restart(self) -> None:
        """The SuperLink, on its database."""
        self.processes.start_superlink()

    def start_site(self, name: str) -> None:
        """A SuperNode."""
        self.processes.start_site(name)

    def conduct(self) -> None:
        """`flwr run`, once."""
        self.processes.conduct()

    def steps(self) -> list[float]:
        """As the application wrote them down."""
        return [one["time"] for one in self.processes.rounds()]

    def outcome(self) -> dict[str, Any]:
        """Replies that its rounds did without."""
        return {"lost": sum(len(SITES) - one["replies"] for one in self.processes.rounds())}


def lost_of(journal: Sequence[Mapping[str, Any]]) -> set[tuple[str, str]]:
    """Requests of a run, each with the site, that were never answered; one that was asked again is not lost."""
    events = [event for event in journal if event["event"] == "answered"]
    failed = {(event["request"], site) for event in events for site in event["failed"]}
    return failed - {(event["request"], site) for event in events for site in event["sites"]}


def charges_of(ledger: Path) -> Counter[str]:
    """How often each request was charged."""
    return Counter(name for requests in read_ledger(ledger).charges.values() for name in requests)


# --- what hits them


def strike(fault: Fault, federation: Federation, wire: Wire) -> None:
    """Let a fault happen, and do what an operator or a unit does about it; returns when both are over."""
    victims = federation.processes.processes
    match fault:
        case Fault.NONE:
            pass
        case Fault.SITE_KILLED:
            kill(tree_of(victims[_VICTIM].pid))
            time.sleep(_AGAIN)
            federation.start_site(_VICTIM)
        case Fault.SITE_STOPPED:
            tree = tree_of(victims[_VICTIM].pid)
            send(tree, signal.SIGSTOP)
            time.sleep(_STOPPED_FOR)
            send(tree, signal.SIGCONT)
        case Fault.SITE_RESET | Fault.SITE_CUT_OFF:
            wire.spoil(Spoiled(end=End.RESET) if fault == Fault.SITE_RESET else Spoiled(is_held=True))
            time.sleep(_SPOILED_FOR)
            wire.mend()
        case Fault.SITE_FULL:
            fill_disk(lambda: tree_of(victims[_VICTIM].pid))
            # A site whose ledger could not be written spends nothing more until it is started anew, by a person.
            kill(tree_of(victims[_VICTIM].pid))
            federation.start_site(_VICTIM)
        case Fault.COORDINATOR_FULL:
            fill_disk(lambda: programs_of(federation.processes, federation.coordinator))
        case Fault.PROGRAM_KILLED:
            kill(programs_of(federation.processes, federation.coordinator))
        case Fault.SUPERLINK_KILLED | Fault.SUPERLINK_ENDED | Fault.DATABASE_LOST:
            strike_superlink(fault, federation)
            time.sleep(_AGAIN)
            federation.restart()


def strike_superlink(fault: Fault, federation: Federation) -> None:
    """End it, in one way of several, with what an operator's units bind to it."""
    bound = [federation.processes.processes[name] for name in federation.coordinator]
    if fault == Fault.SUPERLINK_ENDED:
        for process in reversed(bound):
            end(process)
        return
    kill([one for process in bound for one in tree_of(process.pid)])
    if fault == Fault.DATABASE_LOST:
        lose(federation.database)


def fill_disk(processes: Callable[[], Sequence[int]]) -> None:
    """For a while no write of theirs gets through, as on a full disk; what there is can be read."""
    full_until = time.time() + _FULL_FOR
    while time.time() < full_until:
        limit_files(processes(), 0)  # those that were started since, too
        time.sleep(_LOOK)
    limit_files(processes(), resource.RLIM_INFINITY)


def limit_files(processes: Sequence[int], size: int) -> None:
    """The largest size to which their files may grow, in bytes."""
    for process in processes:
        with suppress(ProcessLookupError):
            _, most = resource.prlimit(process, resource.RLIMIT_FSIZE)
            resource.prlimit(process, resource.RLIMIT_FSIZE, (min(size, most) if most >= 0 else size, most))


def lose(database: Path) -> None:
    """With the files beside it."""
    for file in database.parent.glob(f"{database.name}*"):
        file.unlink()


def programs_of(processes: Processes, starters: Sequence[str]) -> list[int]:
    """The coordinator's program, of this federation alone: what some of its processes started for Flower."""
    trees = [one for name in starters for one in tree_of(processes.processes[name].pid)]
    return [one for one in trees if "flwr-serverapp" in _command_of(one)]


def tree_of(process: int) -> list[int]:
    """A process and all that it started."""
    return [process, *descendants(process)]


def kill(processes: Sequence[int]) -> None:
    """At once."""
    send(processes, signal.SIGKILL)


def send(processes: Sequence[int], number: signal.Signals) -> None:
    """A signal, to those that are still there."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)


def end(process: subprocess.Popen[bytes]) -> None:
    """As a unit ends what it runs: told to; once it has, or has not in time, all that it started is killed."""
    tree = tree_of(process.pid)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP)
    kill(tree)
    process.wait()


def _command_of(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


# --- one run


def measure(
    side: Side, fault: Fault, repetition: int, federation: Federation, wire: Wire, *, moment: tuple[float, float]
) -> Cell:
    """One run that is hit once.

    Args:
        side: whose.
        fault: that hits it.
        repetition: which of the runs with this fault.
        federation: started.
        wire: between it and its first site.
        moment: as `moment_of` has it.
    """
    after = 1 + int(moment[0] * (federation.count - 1))  # steps that are done before; one is left after them
    begun = struck = ended = time.time()
    said = ""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(federation.conduct)
        try:
            while len(federation.steps()) < after and not running.done() and time.time() < begun + _LIMIT:
                time.sleep(_LOOK)
            time.sleep(moment[1] * federation.step)
            struck = time.time()
            strike(fault, federation, wire)
            if fault == Fault.SITE_FULL and _is_refused(running):
                running = pool.submit(federation.conduct)
            running.result(timeout=struck + _LIMIT - time.time())
        except NotYetError:
            said = f"not over after {_LIMIT:.0f} s"
        except PrivShareError as error:
            said = str(error)
        finally:
            ended = time.time()
            kill_all(federation.processes)  # which ends what is conducted too
    return Cell(
        side=side,
        fault=fault,
        repetition=repetition,
        moment=after / federation.count,
        struck=struck - begun,
        ended=ended - begun,
        steps=[at - begun for at in federation.steps()],
        finished=not said,
        said=said,
        **federation.outcome(),
    )


def _is_refused(running: Future[None]) -> bool:
    """Whether a run ended badly, now or soon."""
    with suppress(NotYetError):
        return isinstance(running.exception(timeout=_ENDED), PrivShareError)
    return False


def kill_all(processes: Processes) -> None:
    """Of a federation that is not needed any more."""
    going = [process for process in processes.processes.values() if process.poll() is None]
    kill([one for process in going for one in tree_of(process.pid)])
    for process in going:
        process.wait()


class Bench:
    """Makes federations, each as new.

    Sites and keys are made once; each run begins with a copy of them, in the same place, since they know where they
    are.
    """

    def __init__(self, folder: Path) -> None:
        """Nothing is made yet.

        Args:
            folder: empty.
        """
        self._folder = folder
        self._made: tuple[Run, LiveFederation, Reference] | None = None

    @contextmanager
    def federation(self, side: Side) -> Iterator[tuple[Federation, Wire]]:
        """One that is started, and the wire to its first site."""
        run, provisioned, reference = self._prepared()
        kept = self._folder / "kept"
        if side == Side.PRIVSHARE:
            shutil.rmtree(provisioned.folder)
            shutil.copytree(kept, provisioned.folder)
            live = replace(provisioned, processes={})
            with wire_to(live.proxy_port) as wire:
                settings = live.folder / "sites" / _VICTIM / "site.yaml"
                text = settings.read_text(encoding="utf-8")
                settings.write_text(text.replace(f":{live.proxy_port}", f":{wire.port}"), encoding="utf-8")
                with started(live):
                    yield Ours(live, run, reference), wire
            return
        ports = free_ports(3)
        with wire_to(ports[0]) as wire:
            plain = PlainFederation(
                Path(tempfile.mkdtemp(dir=self._folder)),
                kept / "coordinator",
                ports[0],
                dict(zip(SITES, ports[1:], strict=True)),
                {_VICTIM: wire.port},
            )
            with started(plain):
                yield Plain(plain), wire

    def _prepared(self) -> tuple[Run, LiveFederation, Reference]:
        if self._made is None:
            run = choose(
                scenario=Scenario.BANK, study=None, data=None, series=None, units=_UNITS, sites=len(SITES),
                test_noise_seed=_NOISE_SEED, out=self._folder / "live",
            )  # fmt: skip
            run = replace(run, study=run.study.with_overrides(**_SMALL))
            divided = divide(run)
            live = live_federation(run, divided, Where(), noise_seed=_NOISE_SEED)
            live.provision()
            share_unit_secrets(run, divided)
            shutil.copytree(live.folder, self._folder / "kept")
            self._made = run, live, refer(run, self._folder / "reference")
        return self._made


@contextmanager
def started(processes: LiveFederation | PlainFederation) -> Iterator[None]:
    """Processes that run; killed at the end, whatever happens."""
    try:
        processes.start()
        yield
    finally:
        kill_all(processes)


def refer(run: Run, folder: Path) -> Reference:
    """The same run in one process."""
    again = replace(run, folder=folder)
    execute(
        again,
        Engine("process", "cpu", 1, _NOISE_SEED),
        torch.device("cpu"),
        lambda _: None,
        level=Level.BASIC,
        gated=False,
    )
    steps = (folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    charges = {site: charges_of(folder / "ledger" / f"{site}.jsonl") for site in SITES}
    return Reference((folder / "synthetic.csv").read_bytes(), len(steps), charges)


# --- what came of it


def table(cells: Sequence[Cell]) -> str:
    """Markdown of all that was measured: a line a fault."""
    both = "answers lost | recovery, s: median | 95th percentile | longest wait, s: median"
    lines = [
        f"| fault | privshare: published | same table | charged twice | {both} | plain Flower: finished | {both} |",
        f"|{'---|' * 13}",
    ]
    for fault in Fault:
        ours, plain = (
            [one for one in cells if (one.side, one.fault) == (side, fault)] for side in (Side.PRIVSHARE, Side.PLAIN)
        )
        if not ours and not plain:
            continue
        columns = [
            SAID[fault],
            _share([one.finished for one in ours]),
            _share([bool(one.equal) for one in ours]),
            _sum([one.doubled or 0 for one in ours]),
            _sum([one.lost for one in ours]),
            *_times(ours),
            _share([one.finished for one in plain]),
            _sum([one.lost for one in plain]),
            *_times(plain),
        ]
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


def _share(are: Sequence[bool]) -> str:
    return f"{sum(are)}/{len(are)}" if are else ""


def _sum(numbers: Sequence[int]) -> str:
    return str(sum(numbers)) if numbers else ""


def _times(cells: Sequence[Cell]) -> tuple[str, str, str]:
    """Median and 95th percentile of recovery, and the median of the longest wait."""
    if not cells:
        return "", "", ""
    recoveries = [one.recovery for one in cells]
    # Not between two of them: with few runs the percentile is the worst of them, and may be never.
    middle, worst = (float(np.quantile(recoveries, at, method="higher")) for at in (0.5, 0.95))
    return _seconds(middle), _seconds(worst), _seconds(median(one.longest for one in cells))


def _seconds(seconds: float) -> str:
    return "never" if seconds == _NEVER else f"{seconds:.1f}"


def read_cells(folder: Path) -> list[Cell]:
    """All that was measured."""
    return [Cell(**json.loads(path.read_bytes())) for path in sorted(folder.glob("*.json"))]


def fill(wanted: Sequence[tuple[Side, Fault, int]], folder: Path, run_cell: Callable[[Side, Fault, int], Cell]) -> None:
    """Measure the cells that have no file yet, each written when it is done.

    Args:
        wanted: side, fault and repetition of each.
        folder: of the files.
        run_cell: measures one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for side, fault, repetition in wanted:
        path = folder / f"{side}-{fault}-{repetition}.json"
        if not path.exists():
            write_json(path, asdict(run_cell(side, fault, repetition)))


@app.command()
def main(
    *,
    repetitions: Annotated[int, typer.Option(min=1, help="Runs of each side with each fault.")] = 3,
    fault: Annotated[list[Fault] | None, typer.Option(help="Some alone; repeat it.")] = None,
    side: Annotated[list[Side] | None, typer.Option(help="One alone.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the moments at which runs are hit.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of what was measured, a file a run.")] = Path("runs/faults"),
) -> None:
    """Measure what is not measured yet, a run at a time, and print the table of all that is there."""
    wanted = [(one, which, number) for number in range(repetitions) for which in fault or Fault for one in side or Side]
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        bench = Bench(Path(folder))

        def run_cell(one: Side, which: Fault, number: int) -> Cell:
            with bench.federation(one) as (federation, wire):
                moment = moment_of(which, number, seed=seed)
                cell = measure(one, which, number, federation, wire, moment=moment)
                say_aside(
                    f"{one} {which} {number}: finished {cell.finished} {cell.said}, equal {cell.equal}, "
                    f"recovery {cell.recovery:.1f} s, {cell.ended:.0f} s"
                )
                if not cell.finished or cell.equal is False:  # to see why
                    shutil.copytree(federation.processes.folder, out / f"{one}-{which}-{number}", dirs_exist_ok=True)
                return cell

        fill(wanted, out, run_cell)
    typer.echo(table(read_cells(out)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    app()
