"""What is asked of a run through its folder, and who holds it."""

import fcntl
import json
from pathlib import Path

import pytest

from common.errors import CheckpointError, ExitCode, StoppedError
from server.journal import Journal, read_journal
from server.run_folder import LOCK, ask, asked, heed, is_held, take_back


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "study.lock.yaml").write_text("name: tiny\n")
    return tmp_path


def end(folder: Path, code: int) -> None:
    (folder / "outcome.json").write_text(json.dumps({"schema": "privshare.outcome/1", "code": code, "message": "x"}))


def test_what_is_asked_stands_until_it_is_taken_back(folder: Path) -> None:
    assert asked(folder) is None
    assert take_back(folder) is None
    ask(folder, "pause")
    assert asked(folder) == "pause"
    ask(folder, "stop")
    assert asked(folder) == "stop"
    assert take_back(folder) == "stop"
    assert asked(folder) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": "privshare.request/1", "wish": "explode"}'])
def test_a_request_that_cannot_be_read_is_not_passed_over(folder: Path, text: str) -> None:
    (folder / "request.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"request\.json: not a request; delete it, and ask again$"):
        heed(folder, Journal(folder))


def test_nothing_is_asked_of_what_is_no_run_or_has_ended(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(CheckpointError, match="not the folder of a run"):
        ask(tmp_path / "none", "stop")
    for code, why in ((0, "has ended"), (54, "has ended"), (69, "is stopped; start it again")):
        end(folder, code)
        with pytest.raises(CheckpointError, match=why):
            ask(folder, "pause")
    (folder / "outcome.json").unlink()
    (folder / "certificate.json").write_text("{}")
    with pytest.raises(CheckpointError, match="has ended"):
        ask(folder, "stop")
    assert asked(folder) is None


def test_a_run_of_which_nothing_is_asked_goes_on_at_once(folder: Path) -> None:
    heed(folder, Journal(folder), sleep=lambda _: pytest.fail("waited"))
    assert read_journal(folder) == []


def test_a_pause_lasts_until_it_is_taken_back(folder: Path) -> None:
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            take_back(folder)

    ask(folder, "pause")
    heed(folder, Journal(folder), sleep=sleep)
    assert len(slept) == 3
    assert [event["event"] for event in read_journal(folder)] == ["paused", "resumed"]


def test_a_run_can_be_stopped_while_it_is_paused(folder: Path) -> None:
    ask(folder, "pause")
    with pytest.raises(StoppedError) as error:
        heed(folder, Journal(folder), sleep=lambda _: ask(folder, "stop"))
    assert error.value.code == ExitCode.STOPPED == 69
    assert [event["event"] for event in read_journal(folder)] == ["paused", "stopped"]


def test_a_run_is_held_by_whoever_conducts_it_and_looking_takes_nothing_from_them(folder: Path) -> None:
    assert not is_held(folder)
    with (folder / LOCK).open("wb") as file:
        assert not is_held(folder)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert is_held(folder)
    assert not is_held(folder)


def test_a_journal_that_a_crash_cut_short_goes_on_with_a_line_of_its_own(folder: Path) -> None:
    Journal(folder).note("opened", run="a")
    with (folder / "events.jsonl").open("ab") as file:
        file.write(b'{"time": "2026-11-29T00:00:00.0')
    Journal(folder).note("step", step="one_way")
    with (folder / "events.jsonl").open("ab") as file:
        file.write(b'[]\n{"event": "timeless"}\n{"event": 1, "time": "2026-11-29T00:00:00+00:00"}\n')
    assert [event["event"] for event in read_journal(folder)] == ["opened", "step"]
