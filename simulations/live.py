"""A live federation on this machine: `python simulations/live.py`, or `make live-demo`.

Everything is as between institutions, by the commands that people type: keys and kits, admission, a proxy, Flower's
SuperLink, a process a site with its own data, keys and policy; TLS everywhere. With the right to make network
namespaces each party is in one of its own, without a route to anywhere else. At the end all of it is stopped.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, Self

import pandas as pd
import torch
import typer
from rich.console import Console
from rich.table import Table

from client.simulated_site import unit_secret_of
from common.commands import Commands
from common.data.schema import parse_table
from common.data.windows import WindowedTable
from common.errors import ExitCode, OutputError, PrivShareError, UnreachableError
from common.evaluation.attacks.suite import Target
from common.evaluation.figures import Claim
from common.evaluation.report import Level, Subject, evaluate
from common.files import write_private
from common.study import Study
from server.checkpoints import write_json
from server.provision import FLOWER_ENVIRONMENT, LOCAL_PORT, superexec_command, superlink_command
from simulations.experiment import MEASURING, Divided, Run, Scenario, choose, divide, execute, open_folder
from simulations.federation import Engine
from simulations.run import utility_table

_BIN: Final = Path(sys.executable).parent
_PROXY_PORT: Final = 8443
_STARTED: Final = 60.0
_STOPPED: Final = 60.0
app = Commands()
err = Console(stderr=True, emoji=False)


@dataclass(frozen=True)
class Place:
    """Where a party's processes run: a network namespace, or this machine as it is.

    host: address at which the others reach it.
    namespace: its name; None for this machine's own.
    """

    host: str = "127.0.0.1"
    namespace: str | None = None

    def command(self, words: Sequence[str]) -> list[str]:
        """A command, there."""
        return [*([] if self.namespace is None else ["ip", "netns", "exec", self.namespace]), *words]


@dataclass
class Processes:
    """Processes of parties on this machine, each with a log; all of them are stopped at the end.

    folder: of everything.
    processes: by name, as they were started last.
    """

    folder: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict, kw_only=True)

    @property
    def environment(self) -> dict[str, str]:
        """Of every process: one thread each, Flower's own folder here, and nobody told of anything."""
        return {
            **os.environ,
            **FLOWER_ENVIRONMENT,
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_HOME": str(self.folder / "flwr"),
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
            "OMP_NUM_THREADS": "1",
            "PRIVSHARE_SITES": str(self.folder / "sites"),
            "PATH": f"{_BIN}{os.pathsep}{os.environ.get('PATH', '')}",
        }

    def stop(self) -> dict[str, int]:
        """Stop everything as an operator would; the exit code of each process."""
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _STOPPED
        for process in self.processes.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        return {name: process.returncode for name, process in self.processes.items()}

    def spawn(self, name: str, place: Place, words: Sequence[str], out: int | None = None) -> subprocess.Popen[bytes]:
        """Start a process, in a session of its own.

        Args:
            name: of the process, and of its log in the folder.
            place: where it runs.
            words: its command.
            out: where its output goes; by default to its log, like its errors.
        """
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(  # noqa: S603 (our own commands)
                place.command(words),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log if out is None else out,
                stderr=log,
                start_new_session=True,
            )
        return self.processes[name]

    def wait_for_port(self, name: str, place: Place, host: str, port: int) -> None:
        """Until something listens there.

        Raises:
            UnreachableError: the process ended, or does not.
        """
        probe = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 1)"
        words = place.command([sys.executable, "-c", probe, host, str(port)])
        deadline = time.monotonic() + _STARTED
        while self.processes[name].poll() is None and time.monotonic() < deadline:
            if subprocess.run(words, capture_output=True, check=False).returncode == 0:  # noqa: S603
                return
            time.sleep(0.2)
        raise UnreachableError(f"{name}: does not listen: {self.last_line(name)}")

    def last_line(self, name: str) -> str:
        """What a process said last."""
        lines = (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def __enter__(self) -> Self:
        """Everything is stopped at the end, whatever happens."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop everything."""
        self.stop()


@dataclass
class LiveFederation(Processes):
    """Parties on this machine, by the commands that people type.

    study: its file.
    tables: files of each site, "table" and perhaps "series", by its name.
    coordinator: where it runs.
    places: where each site runs.
    noise_seed: for tests of the transport; voids the guarantee.
    port: of the SuperLink; sites reach the proxy at the next one where all share a machine.
    """

    study: Path
    tables: Mapping[str, Mapping[str, Path]]
    coordinator: Place = field(default_factory=Place)
    places: Mapping[str, Place] = field(default_factory=dict)
    noise_seed: int | None = None
    port: int = LOCAL_PORT
    proxy_port: int = _PROXY_PORT

    @property
    def home(self) -> Path:
        """The coordinator's folder."""
        return self.folder / "coordinator"

    @property
    def run_folder(self) -> Path:
        """Of the run."""
        return self.folder / "run"

    def provision(self) -> None:
        """Keys, kits, enrolment, admission and approval, as people do it."""
        address = f"{self.coordinator.host}:{self.proxy_port}"
        names = [word for name in self.tables for word in ("--site", name)]
        self.do(
            "privshare", "provision", self.study, "--home", self.home, *names, "--address", address, "-o", self._kits
        )
        for name, files in self.tables.items():
            options = [word for kind, path in files.items() for word in (f"--{kind}", path)]
            self.do_at(name, "init", "--kit", self._kits / f"{name}.zip", *options)
        enrolments = [self.folder / "sites" / name / "enrolment.json" for name in self.tables]
        self.do("privshare", "admit", "--home", self.home, "--yes", *enrolments)
        for name in self.tables:
            self.do_at(name, "join", self.home / "admissions" / f"{name}.json")
            self.do_at(name, "approve", "--yes")

    def start(self) -> None:
        """The coordinator's three processes, then the sites."""
        self.start_superlink()
        self.start_superexec()
        self.start_proxy()
        for name in self.tables:
            self.start_site(name)

    def start_superlink(self) -> None:
        """Flower's server, on loopback; returns once it listens."""
        self.spawn("superlink", self.coordinator, superlink_command(self.home, self.port))
        self.wait_for_port("superlink", self.coordinator, "127.0.0.1", self.port)

    def start_superexec(self) -> None:
        """What starts the coordinator's program."""
        self.spawn("superexec", self.coordinator, superexec_command(self.home, self.port))

    def start_proxy(self) -> None:
        """What sites reach."""
        run = self.folder / "proxy"
        run.mkdir(exist_ok=True)
        listen = f"{self.coordinator.host}:{self.proxy_port}"
        done = self.do("privshare", "proxy", "--home", self.home, "--run", run, "--listen", listen, "--port", self.port)
        (run / "nginx.conf").write_text(done, encoding="utf-8")
        self.spawn("proxy", self.coordinator, [find_nginx(), "-e", "stderr", "-c", str(run / "nginx.conf")])
        self.wait_for_port("proxy", self.coordinator, self.coordinator.host, self.proxy_port)

    def start_site(self, name: str) -> None:
        """A site, in its place."""
        seed = [] if self.noise_seed is None else ["--test-noise-seed", str(self.noise_seed)]
        command = ["privshare-client", "--site", name, "--threads", "1", *seed]
        self.spawn(name, self.places.get(name, Place()), command)

    def conduct(self, *, run: str, seed: int, on_step: Callable[[dict[str, Any]], None], timeout: float = 600) -> None:
        """`privshare start`, to the published table.

        Raises:
            PrivShareError: with the code that it ended with.
        """
        command = ["privshare", "start", self.study, "--home", self.home, "--out", self.run_folder]
        options = ["--port", self.port, "--name", run, "--seed", seed, "--timeout", timeout, "--json"]
        process = self.spawn("start", self.coordinator, list(map(str, [*command, *options])), out=subprocess.PIPE)
        assert process.stdout is not None  # it is a pipe
        for line in process.stdout:
            if line.startswith(b"{"):
                on_step(json.loads(line))
        if process.wait() != 0:
            raise PrivShareError(f"privshare start: {self.last_line('start')}", ExitCode(process.returncode))

    def do(self, *words: object) -> str:
        """A command at the coordinator; what it printed.

        Raises:
            PrivShareError: it failed.
        """
        return self._do(self.coordinator, [str(word) for word in words])

    def do_at(self, name: str, *words: object) -> str:
        """A command of `privshare-client` at a site; what it printed.

        Raises:
            PrivShareError: it failed.
        """
        return self._do(self.places.get(name, Place()), ["privshare-client", "--site", name, *map(str, words)])

    @property
    def _kits(self) -> Path:
        return self.folder / "kits"

    def _do(self, place: Place, words: list[str]) -> str:
        done = subprocess.run(  # noqa: S603 (our own commands)
            place.command(words), env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise PrivShareError(f"{' '.join(words[:4])}: {done.stderr.strip()}", _code_of(done.returncode))
        return done.stdout


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody uses now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def find_nginx() -> str:
    """The proxy's program.

    Raises:
        OutputError: it is not installed.
    """
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin")
    if found is None:
        raise OutputError("nginx: not installed; on Debian: apt-get install nginx-light", ExitCode.USAGE)
    return found


@contextmanager
def namespaces(sites: Sequence[str], *, name: str = "privshare") -> Iterator[tuple[Place, dict[str, Place]]]:
    """A network namespace for the coordinator and one for each site, joined by a bridge, without any other route.

    Raises:
        OutputError: this user may not make them.
    """
    hub = f"{name}-hub"
    made = [hub, *(f"{name}-{number}" for number in range(len(sites)))]
    try:
        for one in made:
            _ip("netns", "add", one)
            _ip("-n", one, "link", "set", "lo", "up")
        _ip("-n", hub, "link", "add", "bridge", "type", "bridge")
        _ip("-n", hub, "addr", "add", "10.77.0.1/24", "dev", "bridge")
        _ip("-n", hub, "link", "set", "bridge", "up")
        places = {}
        for number, site in enumerate(sites):
            own, host = made[number + 1], f"10.77.0.{number + 10}"
            _ip("-n", hub, "link", "add", f"site{number}", "type", "veth", "peer", "name", "eth0", "netns", own)
            _ip("-n", hub, "link", "set", f"site{number}", "master", "bridge", "up")
            _ip("-n", own, "addr", "add", f"{host}/24", "dev", "eth0")
            _ip("-n", own, "link", "set", "eth0", "up")
            places[site] = Place(host, own)
        yield Place("10.77.0.1", hub), places
    finally:
        for one in made:
            subprocess.run(["ip", "netns", "del", one], capture_output=True, check=False)  # noqa: S603, S607


def _ip(*words: str) -> None:
    try:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)  # noqa: S603, S607
    except OSError as error:
        raise OutputError(f"ip: {error.strerror}") from None
    if done.returncode != 0:
        raise OutputError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def _code_of(returned: int) -> ExitCode:
    return ExitCode(returned) if returned in ExitCode._value2member_map_ else ExitCode.INTERNAL


@app.command()
def main(
    *,
    sites: Annotated[int, typer.Option(min=1, help="Number of sites.")] = 4,
    units: Annotated[int, typer.Option(min=100, help="Accounts of the simulated banks.")] = 20_000,
    seed: Annotated[int, typer.Option(min=0, help="Of splits and models; never of privacy noise.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Few steps: to see it work, not for good data.")] = False,
    isolate: Annotated[
        bool, typer.Option("--namespaces/--no-namespaces", help="Each party in a network namespace of its own.")
    ] = True,
    out: Annotated[Path | None, typer.Option(help="Folder of everything. Default: runs/live/TIME.")] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Run the same in one process too; in test mode both tables must be equal.")
    ] = False,
    test_noise_seed: Annotated[
        int | None,
        typer.Option(min=0, help="TEST MODE: noise from a seed, to compare transports. Voids the guarantee."),
    ] = None,
) -> None:
    """Provision, start, run and stop a federation of simulated banks, every party a process of its own."""
    try:
        folder = (out or Path("runs") / "live" / time.strftime("%Y%m%d-%H%M%S")).resolve()  # nginx has its own folder
        run = choose(
            scenario=Scenario.BANK,
            study=None,
            data=None,
            series=None,
            units=units,
            sites=sites,
            seed=seed,
            quick=quick,
            test_noise_seed=test_noise_seed,
            out=folder,
        )
        with ExitStack() as stack:
            results = _run(run, _places(stack, run, isolate=isolate), seed=test_noise_seed)
        show(run, *results, plain=compared(run) if compare else None)
    except PrivShareError as error:
        err.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(int(error.code)) from None
    except KeyboardInterrupt:
        err.print("interrupted: everything was stopped", markup=False, highlight=False)
        raise typer.Exit(130) from None


def compared(run: Run) -> float:
    """Seconds that the same run takes in one process, on one thread.

    Raises:
        PrivShareError: in test mode, the table is another one.
    """
    again = replace(run, folder=run.folder / "in-process")
    begin, ends = time.monotonic(), []

    def note(step: dict[str, Any]) -> None:
        if step["step"] == MEASURING:  # which is no part of a run
            ends.append(time.monotonic())

    engine = Engine("process", "cpu", 1, run.options.test_noise_seed)
    execute(again, engine, torch.device("cpu"), note, level=Level.BASIC, gated=False)
    tables = [(folder / "synthetic.csv").read_bytes() for folder in (run.folder / "run", again.folder)]
    if run.options.test_noise_seed is not None and tables[0] != tables[1]:
        raise PrivShareError("the live table is not the one that one process makes")
    return ends[0] - begin


@dataclass(frozen=True)
class Where:
    """Where all parties run; by default on this machine as it is."""

    coordinator: Place = field(default_factory=Place)
    sites: Mapping[str, Place] = field(default_factory=dict)


def _places(stack: ExitStack, run: Run, *, isolate: bool) -> Where:
    names = [f"site_{number + 1:02d}" for number in range(run.options.sites)]
    if not isolate:
        return Where()
    try:
        return Where(*stack.enter_context(namespaces(names)))
    except OutputError as error:
        err.print(f"no network namespaces ({error}): all parties on loopback", style="dim", markup=False)
        return Where()


def live_federation(run: Run, divided: Divided, where: Where, *, noise_seed: int | None) -> LiveFederation:
    """The parties of a run, their tables written where they read them."""
    open_folder(run)
    files = {}
    for name, texts in divided.sites.items():
        private = run.folder / "private" / name
        private.mkdir(parents=True, mode=0o700)
        files[name] = {kind: private / f"{kind}.csv" for kind in texts}
        for kind, text in texts.items():
            files[name][kind].write_text(text, encoding="utf-8")
    ports = free_ports(2) if where.coordinator.namespace is None else [LOCAL_PORT, _PROXY_PORT]
    lock = run.folder / "study.lock.yaml"
    return LiveFederation(
        run.folder, lock, files, where.coordinator, where.sites, noise_seed, port=ports[0], proxy_port=ports[1]
    )


def share_unit_secrets(run: Run, divided: Divided) -> None:
    """Have sites hold out the same units as in a simulation: in test mode the tables are compared."""
    for name in divided.sites:
        path = run.folder / "sites" / name / "state" / "site.key"
        write_private(path, unit_secret_of(name, seed=run.options.seed))


def _run(run: Run, where: Where, *, seed: int | None) -> tuple[dict[str, Any], dict[str, float], LiveFederation]:
    divided = divide(run)
    times = {"begin": time.monotonic()}
    with live_federation(run, divided, where, noise_seed=seed) as federation:
        federation.provision()
        if seed is not None:
            share_unit_secrets(run, divided)
        times["provisioned"] = time.monotonic()
        federation.start()
        times["started"] = time.monotonic()
        federation.conduct(run=run.name, seed=run.options.seed, on_step=_tell)
        times["published"] = time.monotonic()
        codes = federation.stop()
    times["stopped"] = time.monotonic()
    if bad := {name: code for name, code in codes.items() if name in divided.sites and code != 0}:
        raise PrivShareError(f"sites: did not end well: {bad}")
    privacy = run.study.privacy
    published = Target(read_published(federation.run_folder, run.study), Claim(privacy.epsilon, privacy.delta))
    evaluation = evaluate(Subject(published), divided, run.study, level=Level.BASIC, seed=run.options.seed)
    write_json(run.folder / "evaluation.json", evaluation)
    return evaluation, times, federation


def read_published(folder: Path, study: Study) -> WindowedTable:
    """A published table without windows, typed."""
    text = pd.read_csv(folder / "synthetic.csv", dtype=str, keep_default_na=False)
    return WindowedTable.without_windows(parse_table(text, study.columns))


def traffic(folder: Path) -> dict[str, tuple[int, int]]:
    """Bytes that the proxy had from each site, and sent to it."""
    found: dict[str, tuple[int, int]] = {}
    for line in (folder / "proxy" / "access.log").read_text(encoding="utf-8").splitlines():
        call = json.loads(line)
        site = call["site"].removeprefix("CN=")
        before = found.get(site, (0, 0))
        found[site] = before[0] + int(call["in"]), before[1] + int(call["out"])
    return found


def _tell(step: dict[str, Any]) -> None:
    used = step.get("budget_used")
    err.print(step["step"], *([] if used is None else [f"budget used {used:.0%}"]), style="dim", markup=False)


def show(
    run: Run, evaluation: dict[str, Any], times: dict[str, float], federation: LiveFederation, *, plain: float | None
) -> None:
    """Print what a run took and sent, and what its rows are worth.

    Args:
        run: it.
        evaluation: of what it published, at the basic level at least.
        times: when each part of it ended, in seconds of one clock, in order.
        federation: its parties.
        plain: seconds of the same run in one process, if that was asked for.
    """
    rounds = run.study.rounds.count
    table = Table(title=f"{run.study.name}: {len(federation.tables)} sites, live", show_header=False)
    named = list(times)
    for before, after in pairwise(named):
        table.add_row(f"seconds until {after}", f"{times[after] - times[before]:.1f}")
    if plain is not None:
        table.add_row("seconds of the same run in one process", f"{plain:.1f}")
    for site, (received, sent) in sorted(traffic(run.folder).items()):
        table.add_row(f"{site}: kB a round, from and to", f"{received / rounds / 1e3:,.0f}, {sent / rounds / 1e3:,.0f}")
    console = Console()
    console.print(table)
    console.print(utility_table(evaluation["utility"], run.study.name))
    typer.echo(f"published {federation.run_folder / 'synthetic.csv'}, {federation.run_folder / 'certificate.json'}")


if __name__ == "__main__":
    app()
