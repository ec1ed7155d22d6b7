"""Starts a run on the coordinator's own SuperLink, and starts it again when what ran it was lost.

It speaks to the SuperLink's control interface, which listens on loopback alone: whoever reaches that runs code here.
"""

import functools
import hashlib
import json
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from common.errors import CheckpointError, ExitCode, OutputError, StudyError, UnreachableError
from common.study import load_study
from server.checkpoints import write_file, write_json
from server.journal import read_journal
from server.provision import Roster, read_roster
from server.run_folder import START_SCHEMA, asked, forget_outcome, is_held, read_outcome, read_start, take_back

DEPLOY: Final = Path(__file__).parents[1] / "deploy"
BUNDLE: Final = DEPLOY / "flower-app"
"""What a SuperLink is given to start a run: names of installed packages, and no code."""
PROXY: Final = DEPLOY / "proxy" / "nginx.conf.template"
_FILES: Final = ("pyproject.toml", "LICENSE", "README.md")
_Found = TypeVar("_Found")
_POLL = 0.5
_MOST_STARTS = 20
_UNREACHABLE_FOR = 600.0


class SuperLink:
    """The coordinator's own, by its control interface."""

    def __init__(self, port: int, ca: Path) -> None:
        """Connects to nothing yet.

        Args:
            port: on loopback.
            ca: file of the federation's certificate authority.

        Raises:
            UnreachableError: the certificate cannot be used.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.hostname_checks_common_name = False  # a name is an alternative name, or none
        try:
            context.load_verify_locations(cafile=ca)
        except (OSError, ssl.SSLError):
            raise UnreachableError(f"{ca}: not a certificate") from None
        self._where = f"127.0.0.1:{port}"
        self._client = ControlHttpClient(
            f"https://{self._where}",
            interceptors=[RuntimeVersionHttpInterceptor(component_name="CLI")],
            verify=context,
        )

    def register(self, roster: Roster) -> None:
        """Let in the keys of the members, and no others.

        Raises:
            UnreachableError: it does not answer.
        """
        wanted = {_node_key(member.transport or ""): name for name, member in roster.admitted.items()}
        known = {}
        for node in self._call(self._client.ListNodes, ListNodesRequest()).nodes_info:
            if node.status == "unregistered":
                continue
            if node.public_key in wanted:
                known[node.public_key] = node.node_id
            else:
                self._call(self._client.UnregisterNode, UnregisterNodeRequest(node_id=node.node_id))
        for key, name in wanted.items():
            if key not in known:
                self._call(self._client.RegisterNode, RegisterNodeRequest(public_key=key, name=name))

    def start(self, folder: Path, bundle: Path = BUNDLE) -> int:
        """Start the program of a run; the number that Flower gives it.

        Raises:
            OutputError: the bundle is not there.
            UnreachableError: the SuperLink does not answer, or does not start it.
        """
        try:
            body, _ = build_fab_from_files({name: (bundle / name).read_bytes() for name in _FILES})
        except OSError:
            raise OutputError(f"{bundle}: not the bundle that starts a run") from None
        asked = StartRunRequest(
            fab=fab_to_proto(Fab(hashlib.sha256(body).hexdigest(), body, {})),
            override_config=user_config_to_proto({"run": str(folder.resolve())}),
            federation="",
            app_spec="",
        )
        return int(self._call(self._client.StartRun, asked).run_id)

    def is_over(self, run: int) -> bool:
        """Whether the program of a run has ended, or is not known any more.

        Raises:
            UnreachableError: the SuperLink does not answer.
        """
        try:
            found = self._call(self._client.ListRuns, ListRunsRequest(run_id=run)).run_dict
        except _NotKnownError:  # its database is another one
            return True
        return run not in found or found[run].status.status == "finished"

    def stop(self, run: int) -> None:
        """Have Flower take a run for over whose program is; nothing, where it knows that.

        Raises:
            UnreachableError: the SuperLink does not answer.
        """
        if not self.is_over(run):
            self._call(self._client.StopRun, StopRunRequest(run_id=run))

    def _call(self, method: Callable[[Any], Any], request: Any) -> Any:
        try:
            return method(request)
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            kind = _NotKnownError if status == httpx.codes.NOT_FOUND else UnreachableError
            raise kind(f"superlink {self._where}: answers with status {status}") from None
        except (httpx.HTTPError, ssl.SSLError, OSError, ValueError, RuntimeError) as error:
            raise UnreachableError(
                f"superlink {self._where}: does not answer ({type(error).__name__}); is it running?"
            ) from None


class _NotKnownError(UnreachableError):
    """The SuperLink knows nothing of what it is asked about."""


def prepare(
    study: Path, home: Path, folder: Path, *, run: str, seed: int, device: str, patience: float, timeout: float
) -> None:
    """Make the folder of a run, or take up one that is there and has not been published.

    Args:
        study: its file.
        home: the coordinator's folder.
        folder: of the run.
        run: its name; of an old folder its own is kept.
        seed: of models, likewise.
        device: of the coordinator's training.
        patience: seconds to wait for sites to connect.
        timeout: seconds to wait for their answers.

    Raises:
        CheckpointError: the folder is of another study, or its run is published.
        OutputError: it cannot be written.
        StudyError: the study is not the one that members approved, or the device is none of this machine.
    """
    # torch takes seconds to import, and no other command of the coordinator's needs it.
    from common.models.devices import device_named  # noqa: PLC0415

    device_named(device)
    loaded = load_study(study)
    if loaded.digest() != read_roster(home).study:
        raise StudyError(f"{study}: not the study that this coordinator's members were invited to")
    lock, outcome = folder / "study.lock.yaml", read_outcome(folder)
    if lock.exists() and load_study(lock).digest() != loaded.digest():
        raise CheckpointError(f"{folder}: holds a run of another study; choose another --out")
    if outcome is not None and outcome.code == ExitCode.OK:
        raise CheckpointError(f"{folder}: its run is published; choose another --out")
    known = read_start(folder) if (folder / "start.json").exists() else None
    write_file(lock, study.read_bytes())
    start = {
        "schema": START_SCHEMA,
        "home": str(home.resolve()),
        "run": known.run if known else run,
        "seed": known.seed if known else seed,
        "device": device,
        "patience": patience,
        "timeout": timeout,
    }
    write_json(folder / "start.json", start)
    forget_outcome(folder)
    if asked(folder) == "stop":  # it was, and whoever starts it again wants it to go on
        take_back(folder)


def proxy_config(template: Path, home: Path, *, listen: str, upstream: str, run: Path) -> str:
    """The configuration of the proxy that sites reach.

    Raises:
        OutputError: the template is not there.
    """
    try:
        text = template.read_text(encoding="utf-8")
    except OSError:
        raise OutputError(f"{template}: not the template of the proxy's configuration") from None
    marks = {"@HOME@": str(home.resolve()), "@LISTEN@": listen, "@UPSTREAM@": upstream, "@RUN@": str(run.resolve())}
    for mark, value in marks.items():
        text = text.replace(mark, value)
    return text


def follow(superlink: SuperLink, folder: Path, roster: Roster, *, bundle: Path = BUNDLE) -> Iterator[dict[str, Any]]:
    """Start a run and see it through: each step as rounds.jsonl has it, and each pause, until the run has an outcome.

    What ran it may be lost, with the SuperLink or without, and with the SuperLink's database; then it is started again,
    and goes on. A program that held the run's folder and does so no more is gone: Flower notices after a minute.

    Args:
        superlink: that knows the members.
        folder: of the run.
        roster: the members, whom another database does not know.
        bundle: the program.

    Raises:
        UnreachableError: the SuperLink is gone for ten minutes, or the program ends again and again without a word.
    """
    seen, waited = 0, len(_pauses(folder))
    for start in range(_MOST_STARTS):
        if start:
            _patiently(functools.partial(superlink.register, roster))
        run = _patiently(functools.partial(superlink.start, folder, bundle))
        yield {"step": "started", "time": start + 1}
        was_held = False
        while True:
            held = is_held(folder)
            is_lost, was_held = was_held and not held, held
            is_over = _patiently(functools.partial(superlink.is_over, run))
            steps = _steps(folder)
            yield from steps[seen:]
            seen = max(seen, len(steps))
            yield from (pauses := _pauses(folder))[waited:]
            waited = len(pauses)
            if read_outcome(folder) is not None:
                return
            if is_lost:
                _patiently(functools.partial(superlink.stop, run))
            if is_lost or is_over:
                break
            time.sleep(_POLL)
        time.sleep(_POLL * 2 ** min(start, 6))
    raise UnreachableError(
        f"{folder}: its program ended {_MOST_STARTS} times without a word; see flower-superexec's log"
    )


def _patiently(call: Callable[[], _Found]) -> _Found:
    """A call, tried again while the SuperLink is gone."""
    deadline = time.monotonic() + _UNREACHABLE_FOR
    while True:
        try:
            return call()
        except UnreachableError:
            if time.monotonic() > deadline:
                raise
            time.sleep(4 * _POLL)


def _steps(folder: Path) -> list[dict[str, Any]]:
    try:
        lines = (folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return [json.loads(line) for line in lines]


def _pauses(folder: Path) -> list[dict[str, Any]]:
    """When the run was paused and went on, as steps."""
    found = [event for event in read_journal(folder) if event["event"] in ("paused", "resumed")]
    return [{"step": event["event"], "time": event["time"]} for event in found]


def _node_key(pem: str) -> bytes:
    key = load_pem_public_key(pem.encode())
    assert isinstance(key, ec.EllipticCurvePublicKey)  # membership has seen to it
    return public_key_to_bytes(key)
