"""What the bench of faults says of runs, and that it measures none twice."""

import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from simulations.bench import faults
from simulations.bench.faults import (
    Cell,
    Fault,
    Side,
    end,
    fill,
    kill,
    lost_of,
    moment_of,
    read_cells,
    strike,
    table,
    tree_of,
)
from simulations.live import Processes

CELL = Cell(
    side="privshare", fault="site-killed", repetition=0, moment=0.5, struck=10.0, ended=40.0,
    steps=[5.0, 9.0, 22.5, 30.0], finished=True, lost=0, equal=True, doubled=0,
)  # fmt: skip
PLAIN = replace(CELL, side="plain", equal=None, doubled=None)


def test_recovery_is_from_the_fault_to_the_next_step() -> None:
    assert CELL.recovery == 12.5


def test_where_no_step_is_left_the_end_of_the_run_is_the_recovery() -> None:
    assert replace(CELL, struck=31.0).recovery == 9.0


def test_a_run_that_ends_without_another_step_never_recovers() -> None:
    assert replace(CELL, struck=31.0, finished=False).recovery == float("inf")


def test_the_longest_wait_is_between_steps_from_the_fault_on() -> None:
    assert CELL.longest == 12.5
    assert replace(CELL, struck=22.0).longest == 7.5
    assert replace(CELL, struck=31.0).longest == 9.0
    assert replace(CELL, finished=False).longest == float("inf")


def test_an_answer_is_lost_where_asking_again_did_not_bring_it() -> None:
    journal = [
        {"event": "answered", "request": "one_way", "sites": ["a"], "failed": {"b": "UNCONFIRMED", "c": "NO_ANSWER"}},
        {"event": "step", "step": "round"},
        {"event": "answered", "request": "one_way", "sites": ["b"], "failed": {}},
        {"event": "answered", "request": "train-1", "sites": ["a", "b", "c"], "failed": {}},
    ]
    assert lost_of(journal) == {("one_way", "c")}


def row(cells: list[Cell], fault: Fault) -> list[str]:
    (line,) = [line for line in table(cells).splitlines() if line.startswith(f"| {faults.SAID[fault]} |")]
    return [word.strip() for word in line.strip("|").split("|")]


def test_a_line_of_the_table_is_one_fault_on_both_sides() -> None:
    cells = [
        CELL,
        replace(CELL, repetition=1, struck=20.0, equal=False, doubled=2),
        replace(CELL, repetition=2, struck=29.0, ended=44.0, lost=4),
        replace(CELL, fault="none", ended=35.0),
        replace(PLAIN, lost=3),
        replace(PLAIN, repetition=1, finished=False, steps=[5.0]),
        replace(PLAIN, repetition=2, finished=False, steps=[5.0]),
    ]
    assert row(cells, Fault.SITE_KILLED)[1:] == [
        "3/3", "2/3", "2", "4", "2.5", "12.5", "7.5",
        "1/3", "3", "never", "never", "never",
    ]  # fmt: skip
    assert row(cells, Fault.NONE)[1:] == ["1/1", "1/1", "0", "0", "12.5", "12.5", "12.5", "", "", "", "", ""]


def test_the_percentile_is_of_a_run_that_was_seen() -> None:
    cells = [replace(CELL, repetition=at, steps=[10.0 + at]) for at in range(1, 5)]
    assert row(cells, Fault.SITE_KILLED)[5:7] == ["3.0", "4.0"]


def test_what_nobody_measured_has_no_line() -> None:
    assert len(table([CELL]).splitlines()) == 3


@pytest.mark.parametrize("fault", Fault)
def test_the_moments_of_a_fault_are_spread_over_the_run(fault: Fault) -> None:
    for count in (3, 8):
        first = sorted(moment_of(fault, number, seed=0)[0] for number in range(count))
        gaps = [after - before for before, after in zip(first, [*first[1:], first[0] + 1], strict=True)]
        assert max(gaps) < 2 / count
        assert 0 <= first[0] <= first[-1] < 1


def test_moments_follow_from_the_seed() -> None:
    assert moment_of(Fault.NONE, 2, seed=1) == moment_of(Fault.NONE, 2, seed=1) != moment_of(Fault.NONE, 2, seed=2)


def test_a_run_that_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    ran = []

    def run_cell(side: Side, fault: Fault, repetition: int) -> Cell:
        ran.append(repetition)
        if repetition == 2:
            raise KeyboardInterrupt
        return replace(CELL, side=side, fault=fault, repetition=repetition)

    wanted = [(Side.PLAIN, Fault.SITE_RESET, number) for number in range(4)]
    with pytest.raises(KeyboardInterrupt):
        fill(wanted, tmp_path / "out", run_cell)
    fill([one for one in wanted if one[2] != 2], tmp_path / "out", run_cell)
    assert ran == [0, 1, 2, 3]
    assert [one.repetition for one in read_cells(tmp_path / "out")] == [0, 1, 3]
    assert read_cells(tmp_path / "out")[0] == replace(CELL, side="plain", fault="site-reset")


class Coordinator:
    """A federation of one process and a database; notes what is there when it is started again."""

    coordinator = ("superlink",)

    def __init__(self, folder: Path) -> None:
        self.processes = Processes(folder)
        self.processes.processes["superlink"] = subprocess.Popen(["sleep", "60"])
        self.database = folder / "state.db"
        for name in ("state.db", "state.db-wal", "other"):
            (folder / name).touch()
        self.found: list[str] = []

    def restart(self) -> None:
        assert self.processes.processes["superlink"].wait() != 0
        self.found = sorted(path.name for path in self.database.parent.iterdir())


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (Fault.SUPERLINK_KILLED, ["other", "state.db", "state.db-wal"]),
        (Fault.SUPERLINK_ENDED, ["other", "state.db", "state.db-wal"]),
        (Fault.DATABASE_LOST, ["other"]),
    ],
)
def test_a_superlink_is_started_again_with_its_database_or_without(
    fault: Fault, found: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "_AGAIN", 0.0)
    federation = Coordinator(tmp_path)
    strike(fault, federation, None)  # type: ignore[arg-type]
    assert federation.found == found


def test_a_process_is_killed_with_all_that_it_started() -> None:
    process = subprocess.Popen(["sh", "-c", "sh -c 'sleep 60; :' & sleep 60; :"], start_new_session=True)
    while len(tree := tree_of(process.pid)) < 4:
        time.sleep(0.01)
    kill(tree)
    process.wait()
    while any(is_there(one) for one in tree):
        time.sleep(0.01)


@pytest.mark.parametrize(("deaf", "patience", "ended_by"), [(False, 30.0, "TERM"), (True, 0.5, "KILL")])
def test_a_process_that_is_told_to_end_ends_and_what_it_started_is_killed(
    deaf: bool, patience: float, ended_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "_STOP", patience)
    trap = "trap '' TERM; " if deaf else ""
    process = subprocess.Popen(["sh", "-c", f"{trap}sh -c 'sleep 60; :' & sleep 60; :"], start_new_session=True)
    while len(tree := tree_of(process.pid)) < 4:
        time.sleep(0.01)
    end(process)
    assert process.returncode == -signal.Signals[f"SIG{ended_by}"]
    while any(is_there(one) for one in tree):
        time.sleep(0.01)


def is_there(process: int) -> bool:
    status = Path(f"/proc/{process}/status")
    return status.exists() and "State:\tZ" not in status.read_text()
