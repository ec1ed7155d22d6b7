"""Long tables that cannot be placed end in one clean line, before anything is spent; what may be is documented."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest
from threadpoolctl import threadpool_limits
from typer.testing import CliRunner, Result

from common.errors import ExitCode
from simulations.run import app

STUDY = """\
schema: privshare.study/1
name: tiny
unit: {name: person, key: person}
label: {column: outcome, positive: bad}
columns:
  age: {type: integer, min: 0, max: 99}
  outcome: {type: categorical, categories: [good, bad]}
windows: WINDOWS
privacy: {epsilon: 1, delta: 1.0e-5, holdout: 0.1}
noise: {rounds: 1}
rounds: {count: 1, trainers: 2, local_steps: 1, refine_steps: 1}
model: {latent: 4, width: 8, blocks: 1, batch: 8, max_bins: 4, channel_bins: 2}
"""
RATE = "rate: {type: integer, min: 20, max: 220, missing: true}"
MOOD = "mood: {type: categorical, categories: [calm, tense], missing: true}"
GRID = f"{{layout: grid, length: 3, step: 1, time: {{column: hour}}, channels: {{{RATE}, {MOOD}}}}}"
EVENTS = f"{{layout: events, length: 3, time: {{column: hour}}, channels: {{{RATE}, {MOOD}}}}}"
STAMPS = EVENTS.replace("{column: hour}", "{column: hour, type: timestamp}")
UNITS = 60

Change = Callable[[pd.DataFrame], pd.DataFrame]


def records() -> pd.DataFrame:
    rows = [[f"P{unit:03d}", str(20 + unit % 60), ("bad", "good", "good")[unit % 3]] for unit in range(UNITS)]
    return pd.DataFrame(rows, columns=["person", "age", "outcome"])


def series() -> pd.DataFrame:
    rows = [
        [f"P{unit:03d}", str(hour), str(60 + unit + hour), ("calm", "tense")[(unit + hour) % 2]]
        for unit in range(UNITS)
        for hour in range(3)
    ]
    return pd.DataFrame(rows, columns=["person", "hour", "rate", "mood"])


def with_cell(row: int, column: str, value: str) -> Change:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[row, column] = value
        return table

    return change


def stamped(table: pd.DataFrame, *, odd: str = "") -> pd.DataFrame:
    table["hour"] = "2026-03-29 0" + table["hour"] + ":30"
    table.loc[4, "hour"] += odd
    return table


@dataclass(frozen=True)
class Case:
    """A change of the long table, and what must be said of it. `planted` is a cell that must not be repeated."""

    code: ExitCode
    says: tuple[str, ...]
    change: Change
    windows: str = GRID
    planted: str | None = None
    records: Change = field(default=lambda table: table)


C = ExitCode
CASES = {
    "rows that are not in the order of time": Case(
        C.TIME_UNSORTED, ("hour", "unsorted: sort"), lambda table: table.iloc[[1, 0, *range(2, len(table))]]
    ),
    "a clock that jumps back": Case(C.TIME_UNSORTED, ("hour",), with_cell(5, "hour", "0.5"), EVENTS),
    "a clock that jumps ahead": Case(
        C.WINDOW_TOO_LONG, ("hour", "longer"), with_cell(5, "hour", "7777"), planted="7777"
    ),
    "a time before the window": Case(C.WINDOW_TOO_LONG, ("hour", "longer"), with_cell(3, "hour", "-4"), planted="-4"),
    "more events than the window holds": Case(
        C.WINDOW_TOO_LONG,
        ("hour", "window of 2 steps"),
        lambda table: table,
        EVENTS.replace("length: 3", "length: 2"),
    ),
    "two events at one time": Case(C.TIME_REPEATED, ("hour", "ties: keep"), with_cell(4, "hour", "0"), EVENTS),
    "two values at one time on a grid": Case(
        C.TIME_REPEATED, ("hour", "rate", "ties: keep", "combine"), with_cell(4, "hour", "0")
    ),
    "a clock that jumps ahead between events": Case(
        C.OUT_OF_BOUNDS,
        ("hour", "windows.max_gap"),
        with_cell(5, "hour", "7777"),
        EVENTS.replace("length: 3", "length: 3, max_gap: 1"),
        planted="7777",
    ),
    "a clock that was reset to 1970": Case(
        C.OUT_OF_BOUNDS,
        ("hour", "minutes", "windows.max_gap"),
        lambda table: with_cell(3, "hour", "1970-01-01 00:00")(stamped(table)),
        STAMPS,
        planted="1970",
    ),
    "a unit without a step": Case(
        C.UNIT_WITHOUT_STEPS, ("hour", "empty: allow"), lambda table: table[table["person"] != "P004"]
    ),
    "a step of a unit that is not in the first table": Case(
        C.UNIT_UNKNOWN, ("person", "first table"), with_cell(4, "person", "P999"), planted="P999"
    ),
    "a unit twice in the first table": Case(
        C.UNIT_REPEATED, ("person",), lambda table: table, records=with_cell(4, "person", "P003")
    ),
    "a window that no unit fills": Case(
        C.WINDOW_TOO_SHORT, ("windows.length=9",), lambda table: table, GRID.replace("length: 3", "length: 9")
    ),
    "a unit whose rows end too early": Case(
        C.WINDOW_TOO_SHORT,
        ("hour", "shorter: allow"),
        lambda table: table.drop(index=5),
        GRID.replace("length: 3", "length: 3, shorter: refuse"),
    ),
    "a channel that is never there": Case(
        C.CONSTANT_COLUMN, ("rate", "no unit has a value", "windows.ignore"), lambda table: table.assign(rate="")
    ),
    "a channel that is always the same": Case(
        C.CONSTANT_COLUMN,
        ("rate", "one value only", "windows.ignore"),
        lambda table: table.assign(rate="87"),
        planted="87",
    ),
    "a channel that is missing where it may not be": Case(
        C.MISSING_NOT_ALLOWED,
        ("rate", "missing: false"),
        with_cell(7, "rate", ""),
        GRID.replace("max: 220, missing: true", "max: 220"),
    ),
    "a value beyond its channel's bounds": Case(
        C.OUT_OF_BOUNDS, ("rate", "max=220"), with_cell(7, "rate", "4711"), planted="4711"
    ),
    "a category that is not listed": Case(
        C.UNLISTED_CATEGORY, ("mood",), with_cell(7, "mood", "furious"), planted="furious"
    ),
    "a step without a key": Case(C.MISSING_NOT_ALLOWED, ("person", "key is missing"), with_cell(4, "person", " ")),
    "a clock that jumps years ahead where gaps have bounds": Case(
        C.OUT_OF_BOUNDS,
        ("since", "max=600", "outside: clip"),
        lambda table: with_cell(5, "hour", "2036-03-29 02:30")(stamped(table)),
        STAMPS.replace("time:", "gap: since, time:").replace(
            RATE, f"since: {{type: integer, min: 0, max: 600, missing: true}}, {RATE}"
        ),
        planted="2036",
    ),
    "an hour that a clock without a zone shows twice": Case(
        C.TIME_UNSORTED,
        ("hour", "order of time"),
        lambda table: with_cell(4, "hour", "2026-10-25 02:59")(
            with_cell(5, "hour", "2026-10-25 02:01")(stamped(table))
        ),
        STAMPS,
        planted="02:01",
    ),
    "moments that are one in two zones": Case(
        C.TIME_REPEATED,
        ("hour", "ties: keep"),
        lambda table: with_cell(4, "hour", "2026-03-29T03:30+03:00")(
            table.assign(hour="2026-03-29T0" + table["hour"] + ":30+00:00")
        ),
        STAMPS,
        planted="+03:00",
    ),
    "a time that is empty": Case(C.MISSING_NOT_ALLOWED, ("hour",), with_cell(7, "hour", "")),
    **{
        f"a time that is {odd}": Case(C.NOT_A_TIME, ("hour", "not a number"), with_cell(7, "hour", odd), planted=odd)
        for odd in ("noon", "nan", "inf", "1e300", "12:00")
    },
    "time stamps of which one has a zone": Case(
        C.TIME_ZONE_MIXED, ("hour", "zone"), lambda table: stamped(table, odd="+01:00"), STAMPS, planted="+01:00"
    ),
    "a time stamp of a day that does not exist": Case(
        C.NOT_A_TIME,
        ("hour", "ISO 8601"),
        lambda table: with_cell(7, "hour", "2026-02-30 01:30")(stamped(table)),
        STAMPS,
        planted="2026-02-30",
    ),
    "a long table without a channel": Case(C.COLUMN_MISSING, ("rate",), lambda table: table.drop(columns="rate")),
    "a long table with another column": Case(
        C.COLUMN_UNKNOWN,
        ("column 5", "`windows.ignore`"),
        lambda table: table.assign(note="private"),
        planted="private",
    ),
    "a long table without rows": Case(C.TABLE_WITHOUT_ROWS, ("series.csv",), lambda table: table.iloc[:0]),
}
GOOD = {
    "a grid": (GRID, lambda table: table),
    "events": (EVENTS, lambda table: table),
    "units whose rows are mixed": (GRID, lambda table: table.sort_values(["hour", "person"])),
    "rows that may be sorted": (GRID.replace("length: 3", "length: 3, unsorted: sort"), lambda table: table.iloc[::-1]),
    "two values at one time that may come in any order": (
        GRID.replace("length: 3", "length: 3, ties: keep"),
        with_cell(4, "hour", "0"),
    ),
    "a step without a row": (GRID, lambda table: table.drop(index=4)),
    "events of which a unit has none": (
        EVENTS.replace("length: 3", "length: 3, empty: allow"),
        lambda table: table[table["person"] != "P004"],
    ),
    "more rows than wanted": (GRID.replace("length: 3", "length: 2, longer: last"), lambda table: table),
    "time stamps in two zones": (
        STAMPS,
        lambda table: table.assign(hour=stamped(table)["hour"] + "+01:00"),
    ),
}


def run(folder: Path, windows: str, long: pd.DataFrame, first: pd.DataFrame) -> Result:
    (folder / "study.yaml").write_text(STUDY.replace("WINDOWS", windows), encoding="utf-8")
    first.to_csv(folder / "table.csv", index=False)
    long.to_csv(folder / "series.csv", index=False)
    files = {"--study": "study.yaml", "--data": "table.csv", "--series": "series.csv", "--out": "run"}
    arguments = [part for option, name in files.items() for part in (option, str(folder / name))]
    with threadpool_limits(1):
        return CliRunner().invoke(app, [*arguments, "--sites", "2", "--threads", "1", "--json"])


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_long_table_that_cannot_be_placed_ends_in_one_line(case: Case, tmp_path: Path) -> None:
    result = run(tmp_path, case.windows, case.change(series()), case.records(records()))
    assert (result.exit_code, result.stdout) == (case.code, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert all(part in line for part in case.says), line
    assert case.planted is None or case.planted not in line
    # Nothing was begun, so nothing was spent.
    assert not list(tmp_path.glob("run/**/*"))


@pytest.mark.parametrize("name", GOOD)
def test_a_long_table_that_can_be_placed_is(name: str, tmp_path: Path) -> None:
    windows, change = GOOD[name]
    result = run(tmp_path, windows, change(series()), records())
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["windows"] is not None
    first = pd.read_csv(tmp_path / "run" / "synthetic.csv")
    long = pd.read_csv(tmp_path / "run" / "synthetic-windows.csv")
    assert list(first.columns) == ["person", "age", "outcome"]
    assert list(long.columns) == ["person", "hour", "rate", "mood"]
    assert set(long["person"]) <= set(first["person"])
    assert long["rate"].dropna().between(20, 220).all()
    assert set(long["mood"].dropna()) <= {"calm", "tense"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--study", "study.yaml", "--data", "table.csv"), ("--series", "windows")),
        (("--series", "series.csv"), ("--study", "--series")),
    ],
    ids=["a study with windows and no long table", "a long table without a study"],
)
def test_what_belongs_together_is_asked_for(
    arguments: tuple[str, ...], says: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("study.yaml").write_text(STUDY.replace("WINDOWS", GRID), encoding="utf-8")
    result = CliRunner().invoke(app, [*arguments, "--out", "run"])
    assert result.exit_code == ExitCode.USAGE
    assert all(part in result.stderr for part in says)
