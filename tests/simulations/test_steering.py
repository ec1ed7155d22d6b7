"""A run that is paused or stopped between two steps ends as one that was left alone."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.errors import ExitCode, StoppedError
from server.exchange import Roster
from server.journal import read_journal
from server.run_folder import ask, asked, take_back
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
    conduct(replace(run, is_new=False))
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
