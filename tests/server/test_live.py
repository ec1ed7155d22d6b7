"""The folder of a live run: what it says, how it is taken up, how it ends, and who may run it."""

import fcntl
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from client.keys import identity
from client.link import TESTED, check_flower
from common.errors import (
    CheckpointError,
    ExitCode,
    OutputError,
    PolicyError,
    PrivShareError,
    StudyError,
    UnreachableError,
)
from common.evaluation.gates import Gate, at_least
from common.study import load_study
from server import launch, live, run_folder
from server.exchange import Exchange
from server.journal import Journal
from server.launch import PROXY, prepare, proxy_config
from server.live import conduct, credentials_of
from server.provision import Roster, coordinator_key, revoke
from server.run_folder import Outcome, Start, ask, asked, hold, read_outcome, read_start, write_outcome
from tests.client.homes import STUDY, write_yaml
from tests.members import HOUR, NOW, Federation, make_members

GIVEN = {"run": "run-1", "seed": 7, "device": "cpu", "patience": 60.0, "timeout": 600.0}


@pytest.fixture
def fed(tmp_path: Path) -> Federation:
    """North and south are members."""
    return make_members(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out"


def ready(fed: Federation, folder: Path, **changes: Any) -> None:
    prepare(fed.folder / "study.yaml", fed.home, folder, **{**GIVEN, **changes})


# --- a run's folder


def test_a_folder_that_was_prepared_says_what_to_do(fed: Federation, folder: Path) -> None:
    ready(fed, folder)
    start = read_start(folder)
    assert start == Start(schema="privshare.start/1", home=fed.home.resolve(), **GIVEN)
    assert (folder / "study.lock.yaml").read_bytes() == (fed.folder / "study.yaml").read_bytes()
    assert load_study(folder / "study.lock.yaml").digest() == fed.roster.study
    assert read_outcome(folder) is None


def test_a_folder_that_is_taken_up_keeps_its_name_and_seed_and_takes_new_waiting_times(
    fed: Federation, folder: Path
) -> None:
    ready(fed, folder)
    later = {"run": "run-2", "seed": 8, "device": "cpu", "patience": 1.0, "timeout": 2.0}
    ready(fed, folder, **later)
    assert read_start(folder).model_dump(exclude={"home", "schema_version"}) == {**later, "run": "run-1", "seed": 7}


def test_a_failure_is_forgotten_when_the_run_is_taken_up_and_its_work_is_not(fed: Federation, folder: Path) -> None:
    ready(fed, folder)
    write_outcome(folder, ExitCode.NO_ANSWER, "site south: did not answer")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step-00001.safetensors").write_bytes(b"kept")
    ready(fed, folder)
    assert read_outcome(folder) is None
    assert (folder / "checkpoints" / "step-00001.safetensors").read_bytes() == b"kept"


def test_a_run_that_is_published_is_not_taken_up(fed: Federation, folder: Path) -> None:
    ready(fed, folder)
    write_outcome(folder, ExitCode.OK, "published")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(CheckpointError, match=rf"^{folder}: its run is published; choose another --out$") as error:
        ready(fed, folder)
    assert error.value.code == ExitCode.RESUME_IMPOSSIBLE
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_study_that_members_were_not_invited_to_is_refused_and_nothing_written(fed: Federation, folder: Path) -> None:
    write_yaml(fed.folder / "study.yaml", {**STUDY, "name": "another"})
    with pytest.raises(StudyError, match="not the study that this coordinator's members were invited to"):
        ready(fed, folder)
    assert not folder.exists()


@pytest.mark.parametrize("device", ["gpu", "cuda:999"])
def test_a_device_that_is_none_of_this_machine_is_refused_and_nothing_written(
    fed: Federation, folder: Path, device: str
) -> None:
    with pytest.raises(StudyError, match=f"^device={device}: not a device of this machine") as refused:
        ready(fed, folder, device=device)
    assert refused.value.code == ExitCode.USAGE
    assert not folder.exists()


def test_a_folder_of_another_study_is_refused(fed: Federation, folder: Path) -> None:
    folder.mkdir()
    write_yaml(folder / "study.lock.yaml", {**STUDY, "name": "another"})
    before = (folder / "study.lock.yaml").read_bytes()
    with pytest.raises(CheckpointError, match="holds a run of another study; choose another --out"):
        ready(fed, folder)
    assert (folder / "study.lock.yaml").read_bytes() == before
    assert not (folder / "start.json").exists()


def test_a_folder_that_cannot_be_written_is_refused(fed: Federation, folder: Path) -> None:
    folder.write_text("a file")
    with pytest.raises((OutputError, CheckpointError)):
        ready(fed, folder)


RIGHT: dict[str, Any] = {"schema": "privshare.start/1", "home": "/home", **GIVEN}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "is not the folder of a run"),
        ("", "is not the folder of a run"),
        ("{", "is not the folder of a run"),
        ("\udcff", "is not the folder of a run"),
        ("[]", ""),
        ("7", ""),
        (json.dumps({**RIGHT, "schema": "privshare.start/2"}), "schema"),
        (json.dumps({**RIGHT, "seed": -1}), "seed"),
        (json.dumps({**RIGHT, "seed": "seven"}), "seed"),
        (json.dumps({**RIGHT, "seed": 2**32}), "seed"),
        (json.dumps({**RIGHT, "run": None}), "run"),
        (json.dumps({**RIGHT, "timeout": 0}), "timeout"),
        (json.dumps({**RIGHT, "more": 1}), "more"),
        (json.dumps({name: value for name, value in RIGHT.items() if name != "home"}), "home"),
    ],
)
def test_a_start_that_is_none_is_refused_with_its_field(tmp_path: Path, text: str | None, why: str) -> None:
    if text is not None:
        (tmp_path / "start.json").write_text(text, errors="surrogateescape")
    with pytest.raises(CheckpointError) as error:
        read_start(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'start.json'}: ")
    assert why in str(error.value)
    assert error.value.code == ExitCode.RESUME_IMPOSSIBLE


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema":"privshare.outcome/1","code":"none","message":"x"}'])
def test_what_is_no_outcome_is_none(tmp_path: Path, text: str) -> None:
    assert read_outcome(tmp_path) is None
    (tmp_path / "outcome.json").write_text(text)
    assert read_outcome(tmp_path) is None


def test_the_coordinator_believes_the_members_that_it_admitted_and_no_others(fed: Federation) -> None:
    found = credentials_of(fed.home)
    assert found.key.public == coordinator_key(fed.home).public
    assert found.sites == {site: identity(fed.settings(site).state).public for site in ("north", "south")}
    revoke(fed.home, "south", now=NOW + HOUR)
    assert set(credentials_of(fed.home).sites) == {"north"}


# --- what the program does


class Scripted:
    """An exchange of which each call fails in its own way, or finds nobody."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.fault, self.asked = fault, 0

    def sites(self) -> list[str]:
        self.asked += 1
        if self.fault is not None:
            raise self.fault
        return []

    def ask(self, bodies: Mapping[str, bytes]) -> dict[str, bytes]:
        return {}


def run(fed: Federation, folder: Path, exchange: Exchange) -> Outcome | None:
    conduct(folder, exchange, credentials_of(fed.home), read_start(folder))
    return read_outcome(folder)


@pytest.mark.parametrize(
    "fault",
    [
        PolicyError("site north: refused (BUDGET_REFUSED); its own log says why", ExitCode.BUDGET_REFUSED),
        OutputError("out: cannot be written (No space left on device)"),
        CheckpointError("sites: the run began with other sites"),
    ],
)
def test_the_error_that_ends_a_run_is_written_down_with_its_code(
    fed: Federation, folder: Path, fault: PrivShareError
) -> None:
    ready(fed, folder)
    found = run(fed, folder, Scripted(fault))
    assert found == Outcome(schema="privshare.outcome/1", code=int(fault.code), message=str(fault))


def test_a_run_that_finds_nobody_ends_with_that(fed: Federation, folder: Path) -> None:
    ready(fed, folder)
    found = run(fed, folder, Scripted())
    assert found is not None
    assert (found.code, found.message) == (ExitCode.TOO_FEW_SITES, "sites: 0 answered, 2 are needed")


def test_a_fault_of_ours_leaves_no_outcome_so_that_the_run_is_started_again(fed: Federation, folder: Path) -> None:
    ready(fed, folder)
    with pytest.raises(ZeroDivisionError):
        run(fed, folder, Scripted(ZeroDivisionError()))
    assert read_outcome(folder) is None


def test_a_study_that_was_changed_under_a_run_ends_it(fed: Federation, folder: Path) -> None:
    ready(fed, folder)
    (folder / "study.lock.yaml").write_text("schema: another\n")
    found = run(fed, folder, Scripted())
    assert found is not None
    assert found.code == ExitCode.STUDY_INVALID


def test_a_run_that_is_asked_to_stop_ends_with_a_code_of_its_own_and_goes_on_when_it_is_started_again(
    fed: Federation, folder: Path
) -> None:
    ready(fed, folder)
    ask(folder, "stop")
    exchange = Scripted()
    found = run(fed, folder, exchange)
    assert found is not None
    assert (found.code, exchange.asked) == (ExitCode.STOPPED, 0)
    assert "it goes on from here when it is started again" in found.message
    ready(fed, folder)
    assert (read_outcome(folder), asked(folder)) == (None, None)
    run(fed, folder, exchange)
    assert exchange.asked == 1


def test_a_pause_stands_when_a_run_is_started_again(fed: Federation, folder: Path) -> None:
    ready(fed, folder)
    ask(folder, "pause")
    ready(fed, folder)
    assert asked(folder) == "pause"


def told_of(superlink: Any, fed: Federation, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The steps of a run that is followed to its end, without waiting."""
    ready(fed, folder)
    monkeypatch.setattr(launch.time, "sleep", lambda _: None)
    return [step["step"] for step in launch.follow(superlink, folder, fed.roster)]


class Followed:
    """A SuperLink whose program pauses, is resumed, makes a step and ends."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, 0
        Journal(folder).note("paused")  # of another start, which was told then

    def start(self, folder: Path, bundle: Path) -> int:
        return 1

    def is_over(self, run: int) -> bool:
        self.asked += 1
        if self.asked == 1:
            Journal(self.folder).note("paused")
        elif self.asked == 2:
            Journal(self.folder).note("resumed")
        else:
            (self.folder / "rounds.jsonl").write_text('{"step": "one_way"}\n')
            write_outcome(self.folder, ExitCode.OK, "published")
        return False


def test_whoever_follows_a_run_is_told_that_it_pauses(
    fed: Federation, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert told_of(Followed(folder), fed, folder, monkeypatch) == ["started", "paused", "resumed", "one_way"]


class Forgetful:
    """A SuperLink whose database is lost while the program runs; then the run is made to its end."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.done = folder, list[str]()

    def register(self, roster: Roster) -> None:
        self.done.append(f"registered {', '.join(roster.admitted)}")

    def start(self, folder: Path, bundle: Path) -> int:
        self.done.append("started")
        return len(self.done)

    def is_over(self, run: int) -> bool:
        if self.done.count("started") == 2:
            write_outcome(self.folder, ExitCode.OK, "published")
        return self.done.count("started") == 1


def test_a_superlink_that_knows_the_run_no_more_is_told_of_the_members_before_it_is_started_again(
    fed: Federation, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    superlink = Forgetful(folder)
    assert told_of(superlink, fed, folder, monkeypatch) == ["started", "started"]
    members = ", ".join(fed.roster.admitted)
    assert members
    assert superlink.done == ["started", f"registered {members}", "started"]


class Unaware:
    """A SuperLink that takes programs for alive which died holding the run's folder; the second one makes the run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.done = folder, list[str]()

    def register(self, roster: Roster) -> None:
        pass

    def start(self, folder: Path, bundle: Path) -> int:
        self.done.append("started")
        self.program = hold(folder)
        return len(self.done)

    def is_over(self, run: int) -> bool:
        if self.done == ["started"]:
            self.program.__enter__()
            self.done.append("held")
        elif self.done[-1] == "held":
            self.program.__exit__(None, None, None)
            self.done.append("died")
        elif self.done[-1] == "started":
            write_outcome(self.folder, ExitCode.OK, "published")
        return False

    def stop(self, run: int) -> None:
        self.done.append(f"stopped {run}")


def test_a_program_that_held_the_run_and_does_so_no_more_is_started_again_though_flower_takes_it_for_alive(
    fed: Federation, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    superlink = Unaware(folder)
    assert told_of(superlink, fed, folder, monkeypatch) == ["started", "started"]
    assert superlink.done == ["started", "held", "died", "stopped 1", "started"]


@pytest.mark.parametrize(("finished", "asked"), [(True, 0), (False, 1)])
def test_flower_is_told_that_a_run_is_over_where_it_does_not_know_it(
    fed: Federation, finished: bool, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    superlink, stopped = launch.SuperLink(1, fed.home / "ca.crt"), list[int]()
    monkeypatch.setattr(superlink, "is_over", lambda run: finished)
    monkeypatch.setattr(superlink._client, "StopRun", lambda request: stopped.append(request.run_id))
    superlink.stop(7)
    assert stopped == [7] * asked


@pytest.mark.parametrize(("status", "is_over"), [(404, True), (500, None), (503, None)])
def test_a_run_is_over_where_the_superlink_does_not_know_it(
    fed: Federation, status: int, is_over: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        request = httpx.Request("POST", "https://127.0.0.1:1/v1/control/list-runs")
        raise httpx.HTTPStatusError("refused", request=request, response=httpx.Response(status, request=request))

    superlink = launch.SuperLink(1, fed.home / "ca.crt")
    monkeypatch.setattr(superlink._client, "ListRuns", refuse)
    if is_over is None:
        with pytest.raises(UnreachableError, match=f"answers with status {status}"):
            superlink.is_over(7)
    else:
        assert superlink.is_over(7) is is_over


class Steps:
    """Stands for the coordinator and for what publishes, and says what was done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[Any] = []
        self.gates: list[Gate] = []
        monkeypatch.setattr(live, "Coordinator", self._coordinator)
        monkeypatch.setattr(live, "rows_to_publish", lambda trained, study: 5)
        monkeypatch.setattr(live, "release_of", lambda trained, study: trained)
        monkeypatch.setattr(live, "draw_units", self._draw)
        monkeypatch.setattr(live, "gates_of", lambda study, state: self.gates)
        monkeypatch.setattr(
            live,
            "publish",
            lambda trained, study, units, folder, *, gates, **_: self.done.append((units, folder, gates)),
        )

    def _coordinator(self, study: Any, *, run: str, seed: int, folder: Path, **_: Any) -> Any:
        self.done.append((study.digest(), run, seed, folder))

        class Trained:
            state = "state"

        class Runs:
            def run(self, exchange: Any) -> type[Trained]:
                exchange.sites()
                return Trained

        return Runs()

    def _draw(self, trained: Any, *, rows: int, seed: int, device: Any) -> tuple[Any, ...]:
        return trained.state, rows, seed, str(device)


def test_a_run_that_comes_to_its_end_is_published_and_that_is_written_down_last(
    fed: Federation, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(monkeypatch)
    ready(fed, folder)
    found = run(fed, folder, Scripted())
    assert found == Outcome(schema="privshare.outcome/1", code=0, message="published")
    assert steps.done == [(fed.roster.study, "run-1", 7, folder), (("state", 5, 7, "cpu"), folder, [])]


def test_a_gate_that_fails_ends_a_run_unpublished_and_says_so(
    fed: Federation, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(monkeypatch)
    steps.gates = [at_least("monitor_auc", 0.6, 0.7, "at least 0.7", "public")]
    ready(fed, folder)
    found = run(fed, folder, Scripted())
    assert found is not None
    assert found.code == ExitCode.GATE_FAILED
    assert found.message == "gates.monitor_auc: 0.6, expected at least 0.7; nothing was published"
    assert len(steps.done) == 1


def test_a_run_that_has_ended_is_not_run_again(fed: Federation, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch)
    ready(fed, folder)
    for code, message in ((ExitCode.NO_ANSWER, "site south: did not answer"), (ExitCode.OK, "published")):
        write_outcome(folder, code, message)
        exchange = Scripted()
        found = run(fed, folder, exchange)
        assert found is not None
        assert (found.code, found.message, exchange.asked, steps.done) == (code, message, 0, [])


def test_a_failure_to_publish_is_written_down(fed: Federation, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Steps(monkeypatch)

    def full(*_: Any, **__: Any) -> None:
        raise OutputError(f"{folder}: cannot be written (No space left on device)")

    monkeypatch.setattr(live, "publish", full)
    ready(fed, folder)
    found = run(fed, folder, Scripted())
    assert found is not None
    assert found.code == ExitCode.OUTPUT_NOT_WRITABLE


def test_a_folder_that_another_program_runs_is_waited_for_and_then_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir()
    now, slept = [0.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(run_folder.time, "sleep", sleep)
    with (folder / "running").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match=r": another process runs it$") as error, held(folder, lambda: now[0]):
            pass
        assert error.value.code == ExitCode.ALREADY_RUNNING
        assert 120 <= sum(slept) < 122

        # One that ends meanwhile is followed.
        monkeypatch.setattr(run_folder.time, "sleep", lambda seconds: fcntl.flock(file, fcntl.LOCK_UN))
        with held(folder, lambda: now[0]), pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def held(folder: Path, clock: Callable[[], float]) -> Any:
    return hold(folder, patience=120.0, clock=clock)


def test_while_a_run_is_conducted_nobody_else_conducts_it(
    fed: Federation, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_HELD", -1.0)
    ready(fed, folder)
    seen = []

    class Nosy(Scripted):
        def sites(self) -> list[str]:
            with pytest.raises(OutputError) as error:
                run(fed, folder, Scripted())
            seen.append(error.value.code)
            return []

    run(fed, folder, Nosy())
    assert seen == [ExitCode.ALREADY_RUNNING]


# --- the Flower that it runs on, and the proxy before it


@pytest.mark.parametrize("found", ["1.41.0", "1.41.7", "1.41", "1.41.0rc1", "1.41.1.dev20300517"])
def test_a_release_of_flower_that_was_tested_is_taken(found: str) -> None:
    assert TESTED == ("1.41",)
    check_flower(found)


@pytest.mark.parametrize("found", ["1.40", "1.40.9", "1.42", "1.42.0", "2.0", "2.41.0", "1.4.1", "1.410.0", "1", ""])
def test_a_release_of_flower_that_was_not_tested_is_refused(found: str) -> None:
    with pytest.raises(UnreachableError, match=r"not tested with this release of privshare; install 1\.41$") as error:
        check_flower(found)
    assert error.value.code == ExitCode.FLOWER_UNTESTED
    assert str(error.value).startswith(f"flwr {found}: ")


def test_the_proxy_s_configuration_has_no_mark_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = proxy_config(PROXY, Path("home"), listen="0.0.0.0:8443", upstream="127.0.0.1:9092", run=Path("run"))
    assert "@" not in text.replace("@named", "")
    for line in (
        f"ssl_certificate {tmp_path}/home/server.crt;",
        f"ssl_crl {tmp_path}/home/crl.pem;",
        f"pid {tmp_path}/run/nginx.pid;",
        "127.0.0.1:9092",
    ):
        assert line in " ".join(text.split())
    assert "listen 0.0.0.0:8443" in " ".join(text.split())
    known = {"@HOME@", "@LISTEN@", "@UPSTREAM@", "@RUN@"}
    assert all(mark in PROXY.read_text() for mark in known)


def test_a_template_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="not the template of the proxy's configuration"):
        proxy_config(tmp_path / "none", tmp_path, listen="a", upstream="b", run=tmp_path)
