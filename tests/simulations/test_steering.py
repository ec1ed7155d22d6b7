"""A run that is paused or stopped between two steps ends as one that was left alone."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from common.errors import ExitCode, OutputError, ReleaseError, StoppedError
from server.exchange import Roster
from server.journal import read_journal
from server.run_folder import ask, asked, is_held, read_outcome, take_back
from server.snapshot import snapshot_of
from simulations.methods import Method, adapt
from tests.runs import choose_run, conduct

ALIKE = ("synthetic.csv", "generator/generator.safetensors", "certificate.json", "rounds.jsonl")
SEED = 5


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return conduct(choose_run(tmp_path_factory.mktemp("alone"), noise_seed=SEED))


def at(step: str, what: Callable[[], None]) -> Callable[[dict[str, Any]], None]:
    """Do something after the first step of a name."""
    done: list[str] = []

    def on_step(line: dict[str, Any]) -> None:
        if line["step"] == step and not done:
            done.append(step)
            what()

    return on_step


def assert_alike(folder: Path, other: Path) -> None:
    for name in ALIKE:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize("step", ["noise", "round"])
def test_a_run_that_was_stopped_goes_on_where_it_was_and_ends_as_one_that_was_not(
    tmp_path: Path, left_alone: Path, step: str
) -> None:
    run = choose_run(tmp_path, noise_seed=SEED)
    with pytest.raises(StoppedError) as error:
        conduct(run, on_step=at(step, lambda: ask(run.folder, "stop")))
    assert error.value.code == ExitCode.STOPPED
    assert read_journal(run.folder)[-1]["event"] == "stopped"
    assert (run.folder / "rounds.jsonl").read_text().splitlines()[-1].startswith(f'{{"step": "{step}"')
    assert not (run.folder / "certificate.json").exists()
    assert state_of(run.folder) == "stopped"
    states: list[str] = []
    conduct(replace(run, is_new=False), on_step=at("round", lambda: states.append(state_of(run.folder))))
    assert [*states, state_of(run.folder)] == ["running", "published"]
    assert asked(run.folder) is None
    assert_alike(run.folder, left_alone)


def test_a_run_that_was_paused_asks_nothing_meanwhile_and_ends_as_one_that_was_not(
    tmp_path: Path, left_alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = choose_run(tmp_path, noise_seed=SEED)
    times: list[float] = []
    waited: list[float] = []
    ask_sites = Roster.ask

    def timed(roster: Roster, *arguments: Any) -> Any:
        times.append(time.monotonic())
        return ask_sites(roster, *arguments)

    def go_on() -> None:
        while read_journal(run.folder)[-1]["event"] != "paused":
            time.sleep(0.02)
        waited.append(time.monotonic())
        time.sleep(0.3)
        waited.append(time.monotonic())
        take_back(run.folder)

    def pause() -> None:
        ask(run.folder, "pause")
        threading.Thread(target=go_on, daemon=True).start()

    monkeypatch.setattr(Roster, "ask", timed)
    conduct(run, on_step=at("pairs-1", pause))
    begun, over = waited
    assert times[0] < begun
    assert times[-1] > over
    assert not [moment for moment in times if begun < moment < over]
    events = [event["event"] for event in read_journal(run.folder)]
    assert events[events.index("paused") - 1 : events.index("paused") + 2] == ["step", "paused", "resumed"]
    assert_alike(run.folder, left_alone)


# --- how a simulation ends


def state_of(folder: Path) -> str:
    """As the dashboard says it."""
    return str(snapshot_of(folder, now=datetime.now(UTC))["run"]["state"])


def test_while_a_simulation_runs_nobody_else_runs_it(tmp_path: Path) -> None:
    run = choose_run(tmp_path, noise_seed=SEED)
    seen: list[str] = []

    def look() -> None:
        with pytest.raises(OutputError, match=r": another process runs it$") as error:
            conduct(replace(run, is_new=False))
        assert error.value.code == ExitCode.ALREADY_RUNNING
        assert read_outcome(run.folder) is None
        seen.append(state_of(run.folder))

    conduct(run, on_step=at("round", look))
    assert seen == ["running"]
    assert not is_held(run.folder)


def test_a_simulation_that_a_gate_stopped_has_failed_and_says_no_figure(tmp_path: Path) -> None:
    run = choose_run(tmp_path, noise_seed=SEED)
    run = replace(run, study=run.study.with_overrides(gates={"misfit": 1.001, "monitor_auc": 1.0}))
    with pytest.raises(ReleaseError):
        conduct(run, gated=True)
    found = read_outcome(run.folder)
    assert found is not None
    assert (found.code, found.message) == (ExitCode.GATE_FAILED, "not published: evaluation.json says why")
    assert state_of(run.folder) == "failed"
    # Gone on with, and let through, it has not failed any more.
    conduct(replace(run, is_new=False))
    assert state_of(run.folder) == "published"


def test_a_simulation_that_broke_off_is_run_by_nobody(tmp_path: Path) -> None:
    run = choose_run(tmp_path, noise_seed=SEED)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        conduct(run, on_step=at("round", interrupt))
    assert read_outcome(run.folder) is None
    assert state_of(run.folder) == "lost"


def test_what_is_only_compared_is_measured_and_not_published(tmp_path: Path) -> None:
    run = choose_run(tmp_path)
    method = Method.REAL
    run = replace(run, study=adapt(method, run.study), options=replace(run.options, method=method.value))
    conduct(run)
    assert state_of(run.folder) == "measured"
