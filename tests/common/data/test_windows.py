"""Windows against a loop over units, rows and steps; what is refused, and that a refusal says nothing of a cell."""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.encoding import make_grids
from common.data.schema import CategoricalColumn, Column, ContinuousColumn, IntegerColumn
from common.data.windows import (
    WindowedTable,
    Windows,
    check_filled,
    encode_windows,
    long_table,
    make_windows,
    stamps_of,
    write_stamps,
)
from common.errors import ExitCode, SchemaError, StudyError
from common.study import parse_study
from common.synthesis.tables import as_csv

KEY, TIME = "pid", "when"
PULSE: dict[str, Any] = {"type": "integer", "min": 0, "max": 9, "missing": True}
DOSE: dict[str, Any] = {"type": "continuous", "min": -5, "max": 5, "missing": True}
WARD: dict[str, Any] = {"type": "categorical", "categories": ["a", "b", "c"], "missing": True}
CHANNELS: dict[str, Any] = {"pulse": PULSE, "dose": DOSE, "ward": WARD}


def layout(name: str, **keys: Any) -> Windows:
    settled: dict[str, Any] = {"layout": name, "length": 4, "time": {"column": TIME}, "channels": CHANNELS}
    return Windows.model_validate({**settled, **({"step": 1} if name == "grid" else {}), **keys})


def text_of(**columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(columns, dtype="str")


def made(text: pd.DataFrame, windows: Windows, units: list[str], **options: Any) -> tuple[np.ndarray, np.ndarray]:
    return make_windows(text, windows, unit_key=KEY, units=pd.Series(units, dtype="str"), **options)


def of_one(windows: Windows, times: list[str], **channels: list[str]) -> np.ndarray:
    """The window of one unit, (steps, channels), the channels that are not given without a value."""
    rows = len(times)
    read = [name for name in windows.channels if name != windows.gap]
    cells = {name: channels.get(name, [""] * rows) for name in read}
    values, _ = made(text_of(**{KEY: ["A"] * rows, TIME: times}, **cells), windows, ["A"])
    return np.asarray(values[0])


def pulses(windows: Windows, times: list[str], cells: list[str]) -> list[float]:
    return [float(value) for value in of_one(windows, times, pulse=cells)[:, list(windows.channels).index("pulse")]]


NAN = math.nan


def alike(found: list[float], expected: list[float]) -> bool:
    return np.array_equal(found, expected, equal_nan=True)


# --- the schema


def parsed(windows: dict[str, Any], **unit: Any) -> Windows:
    study = {
        "name": "toy",
        "unit": {"key": KEY, **unit},
        "label": {"column": "ill", "positive": "yes"},
        "columns": {
            "age": {"type": "integer", "min": 0, "max": 100},
            "ill": {"type": "categorical", "categories": ["no", "yes"]},
        },
        "windows": windows,
        "privacy": {"epsilon": 1, "delta": 1e-6},
    }
    found = parse_study(study, source="test").windows
    assert found is not None
    return found


SEEN = {
    "type": "datetime",
    "min": "2020-10-24T00:00",
    "max": "2020-10-27T00:00",
    "unit": "hour",
    "timezone": "Europe/Berlin",
    "missing": True,
}
GRID: dict[str, Any] = {"layout": "grid", "length": 4, "time": {"column": TIME}, "step": 1, "channels": CHANNELS}
EVENTS: dict[str, Any] = {"layout": "events", "length": 4, "time": {"column": TIME}, "channels": CHANNELS}
STAMPS = {"column": TIME, "type": "timestamp"}


@pytest.mark.parametrize(
    ("base", "keys", "says"),
    [
        (GRID, {"gap": "pulse"}, "windows: gap: is for the other layout"),
        (EVENTS, {"step": 1}, "windows: step: is for the other layout"),
        (EVENTS, {"start": 0}, "windows: start: is for the other layout"),
        (EVENTS, {"start": "first"}, "windows: start: is for the other layout"),
        (EVENTS, {"combine": {"pulse": "mean"}}, "windows: combine: is for the other layout"),
        (GRID, {"step": None}, "windows: step: a grid needs"),
        (GRID, {"max_gap": 0.5}, "windows: max_gap: expected at least `step`"),
        (GRID, {"max_gap": 0}, "windows.max_gap"),
        (EVENTS, {"max_gap": 1e13}, "windows.max_gap"),
        (EVENTS, {"max_gap": 5, "gap": "pulse"}, "windows: max_gap: the bounds of pulse say it"),
        (GRID, {"step": 0}, "windows.step"),
        (GRID, {"step": 1e-7}, "windows.step"),
        (GRID, {"step": 1e13}, "windows.step"),
        (GRID, {"step": True}, "windows.step"),
        (GRID, {"step": math.inf}, "windows.step"),
        (GRID, {"start": "second"}, "windows.start"),
        (GRID, {"start": math.nan}, "windows.start"),
        (GRID, {"start": 1e13}, "windows.start"),
        (GRID, {"start": True}, "windows.start"),
        (GRID, {"time": STAMPS}, "windows: start: with time stamps, say `start: first`"),
        (GRID, {"time": STAMPS, "start": 0}, "windows: start: with time stamps, only `first`"),
        (GRID, {"time": {"column": "pulse"}}, "windows: time.column: the time cannot be a channel"),
        (GRID, {"time": {"column": TIME, "type": "date"}}, "windows.time.type"),
        (GRID, {"time": {"column": TIME, "zone": "UTC"}}, "windows.time.zone: unknown key"),
        (GRID, {"ignore": ["pulse"]}, "windows: ignore: pulse is used"),
        (GRID, {"ignore": [TIME]}, f"windows: ignore: {TIME} is used"),
        (GRID, {"combine": {"puls": "mean"}}, "windows: combine: puls is not a channel"),
        (GRID, {"combine": {"pulse": "sum"}}, "windows.combine.pulse"),
        (GRID, {"combine": {"ward": "mean"}}, "windows: combine: ward is categorical"),
        (GRID, {"combine": {"ward": "min"}}, "windows: combine: ward is categorical"),
        (GRID, {"combine": {"ward": "max"}}, "windows: combine: ward is categorical"),
        (EVENTS, {"gap": "since"}, "windows: gap: since is not a numeric channel"),
        (EVENTS, {"gap": "ward"}, "windows: gap: ward is not a numeric channel"),
        (
            EVENTS,
            {"gap": "pulse", "channels": {**CHANNELS, "pulse": {**PULSE, "missing": False}}},
            "windows: gap: pulse needs `missing: true`",
        ),
        (
            EVENTS,
            {"gap": "seen", "channels": {**CHANNELS, "seen": SEEN}},
            "windows: gap: seen is not a numeric channel",
        ),
        (EVENTS, {"gap": "dose"}, "windows: channels.dose.min=-5.0: expected at least 0, time does not run back"),
        (GRID, {"step": 1e12}, "windows: step: 4 of them reach beyond a time of 1e+12; take a longer unit"),
        (GRID, {"start": 1e12}, "windows: step: 4 of them reach beyond a time of 1e+12"),
        (
            EVENTS,
            {"gap": "pulse", "channels": {"pulse": {**PULSE, "max": 10**12}}},
            "windows: channels.pulse.max: 4 of them reach beyond a time of 1e+12",
        ),
        (GRID, {"start": 9e11, "step": 1e-4}, "windows: step: at such a `start` floats do not tell steps apart"),
        (GRID, {"start": -9e11, "step": 1e-4}, "windows: step: at such a `start` floats do not tell steps apart"),
        (
            GRID,
            {"channels": {**CHANNELS, "pulse": {**PULSE, "max": 2**53}}},
            "windows: channels: pulse: min, max: in a channel, expected between -2^53 and 2^53",
        ),
        (GRID, {"length": 1}, "windows.length"),
        (GRID, {"length": 257}, "windows.length"),
        (GRID, {"length": True}, "windows.length"),
        (GRID, {"channels": {}}, "windows.channels"),
        (GRID, {"channels": {f"c{number}": PULSE for number in range(65)}}, "windows.channels"),
        (GRID, {"channels": {"pulse": {**PULSE, "max": 0}}}, "windows.channels.pulse"),
        (GRID, {"layout": "steps"}, "windows.layout"),
        (GRID, {"longer": "cut"}, "windows.longer"),
        (GRID, {"shorter": "pad"}, "windows.shorter"),
        (GRID, {"empty": "drop"}, "windows.empty"),
        (GRID, {"unsorted": "keep"}, "windows.unsorted"),
        (EVENTS, {"ties": "sort"}, "windows.ties"),
        (GRID, {"lenght": 4}, "windows.lenght: unknown key; did you mean length?"),
        (GRID, {"time": {"column": "age"}}, "windows: age is a column of the first table too"),
        (GRID, {"time": {"column": KEY}}, f"windows: {KEY} is a column of the first table too"),
        (GRID, {"channels": {"age": PULSE}}, "windows: age is a column of the first table too"),
    ],
)
def test_a_rule_of_the_schema_names_its_key(base: dict[str, Any], keys: dict[str, Any], says: str) -> None:
    assert parsed(base)
    with pytest.raises(StudyError) as refused:
        parsed({**base, **keys})
    message = str(refused.value)
    assert says in message
    assert message.splitlines() == [message]
    assert refused.value.code == ExitCode.STUDY_INVALID


@pytest.mark.parametrize("key", ["layout", "length", "time", "channels"])
def test_what_every_window_needs_has_no_default(key: str) -> None:
    with pytest.raises(StudyError, match=f"windows.{key}: the key is needed"):
        parsed({name: value for name, value in GRID.items() if name != key})


@pytest.mark.parametrize(
    ("base", "keys"),
    [
        (GRID, {"start": "first"}),
        (GRID, {"start": -2.5}),
        (GRID, {"time": STAMPS, "start": "first"}),
        (GRID, {"combine": {"ward": "first", "dose": "mean", "pulse": "max"}}),
        (GRID, {"ties": "keep"}),
        (GRID, {"start": 1.7e9, "step": 0.001}),
        (GRID, {"max_gap": 1}),
        (EVENTS, {"max_gap": 0.5}),
        (GRID, {"ignore": ["note"]}),
        (GRID, {"length": 256}),
        (GRID, {"length": 2}),
        (EVENTS, {"time": STAMPS}),
        (EVENTS, {"gap": "pulse"}),
        (EVENTS, {"gap": "pulse", "ties": "keep"}),
    ],
)
def test_what_the_rules_allow_is_accepted(base: dict[str, Any], keys: dict[str, Any]) -> None:
    assert parsed({**base, **keys}).model_dump(mode="json", include=set(keys), exclude_unset=True) == keys


def test_the_two_tables_are_joined_by_a_key_with_one_row_a_unit() -> None:
    with pytest.raises(StudyError, match=r"windows: needs unit\.key"):
        parsed(GRID, key=None)
    with pytest.raises(StudyError, match=r"windows: unit\.max_records must be 1"):
        parsed(GRID, max_records=2)


@pytest.mark.parametrize("length", [2, 3, 4, 5, 6, 7, 8, 11, 24, 256])
def test_blocks_are_at_most_four_of_about_equal_length_and_cover_the_window(length: int) -> None:
    blocks = layout("grid", length=length).blocks
    steps = [step for begin, end in blocks for step in range(begin, end)]
    assert steps == list(range(length))
    widths = [end - begin for begin, end in blocks]
    assert max(widths) - min(widths) <= 1
    assert len(blocks) == (4 if length >= 8 else max(1, length // 2))


def test_only_events_that_may_end_early_have_a_number_of_steps() -> None:
    assert not layout("grid", shorter="allow", empty="allow").varies
    assert layout("events").varies
    assert layout("events", shorter="refuse", empty="allow").varies
    assert not layout("events", shorter="refuse").varies


def test_the_columns_of_the_long_table_are_the_time_and_what_is_not_computed() -> None:
    assert layout("grid").columns == (TIME, "pulse", "dose", "ward")
    assert layout("events", gap="pulse").columns == (TIME, "dose", "ward")


# --- a slow reference


@dataclass(frozen=True)
class Row:
    unit: int
    time: Fraction
    cells: dict[str, Any]


@dataclass(frozen=True)
class Case:
    windows: Windows
    units: int
    rows: list[Row]

    @property
    def names(self) -> list[str]:
        return [f"unit {number}" for number in range(self.units)]

    def text(self) -> pd.DataFrame:
        columns = {
            KEY: [f"unit {row.unit}" for row in self.rows],
            TIME: [str(float(row.time)) for row in self.rows],
        }
        for name in self.windows.columns[1:]:
            columns[name] = ["" if row.cells[name] is None else str(row.cells[name]) for row in self.rows]
        return text_of(**columns)

    def make(self) -> tuple[np.ndarray, np.ndarray]:
        return made(self.text(), self.windows, self.names)


Window = list[list[Any]]
"""Steps of channels, None where nothing is."""


def combined(rows: list[tuple[Fraction, Any]], how: str, column: Column) -> Any:
    """Of times and values, in the order of time."""
    found = [value for _, value in rows]
    if how in ("first", "last"):
        return found[0 if how == "first" else -1]
    if how in ("min", "max"):
        return min(found) if how == "min" else max(found)
    # What is said twice of one time counts once.
    once = [Fraction(value) for _, value in set(rows)]
    mean = sum(once) / len(once)
    return round(mean) if isinstance(column, IntegerColumn) else float(mean)


def is_tied(rows: list[Row], windows: Windows) -> bool:
    """Whether a value of the grid would be that of the row which comes first, or last, in the table."""
    values: dict[tuple[str, Fraction], set[Any]] = {}
    for row in rows:
        for name, cell in row.cells.items():
            if cell is not None and windows.combine.get(name, "last") in ("first", "last"):
                values.setdefault((name, row.time), set()).add(cell)
    return any(len(found) > 1 for found in values.values())


def grid_slowly(rows: list[Row], windows: Windows) -> tuple[set[ExitCode], Window]:
    codes, length = set(), windows.length
    if windows.ties == "refuse" and is_tied(rows, windows):
        codes.add(ExitCode.TIME_REPEATED)
    start = Fraction(windows.starts_at)
    if windows.start == "first" and rows:
        start = rows[0].time
    places = [math.floor((row.time - start) / Fraction(windows.step or 0)) for row in rows]
    if windows.longer == "last":
        places = [place - max(0, max(places) - (length - 1)) for place in places]
    kept = [(place, row) for place, row in zip(places, rows, strict=True) if 0 <= place < length]
    if windows.longer == "refuse" and len(kept) < len(rows):
        codes.add(ExitCode.WINDOW_TOO_LONG)
    reached = max((place + 1 for place, _ in kept), default=0)
    window: Window = []
    for step in range(length):
        window.append([])
        for name, column in windows.channels.items():
            found = [
                (row.time, row.cells[name]) for place, row in kept if place == step and row.cells[name] is not None
            ]
            if not found and not column.missing:
                codes.add(ExitCode.MISSING_NOT_ALLOWED)
            window[-1].append(combined(found, windows.combine.get(name, "last"), column) if found else None)
    return codes | extent_slowly(reached, windows), window


def extent_slowly(reached: int, windows: Windows) -> set[ExitCode]:
    codes = set()
    if windows.empty == "refuse" and reached == 0:
        codes.add(ExitCode.UNIT_WITHOUT_STEPS)
    if windows.shorter == "refuse" and reached < windows.length:
        codes.add(ExitCode.WINDOW_TOO_SHORT)
    return codes


def gap_slowly(before: Row | None, row: Row, column: Column) -> tuple[set[ExitCode], Any]:
    assert isinstance(column, IntegerColumn | ContinuousColumn)
    if before is None:
        return set(), None
    apart = row.time - before.time
    if column.outside == "clip":
        apart = min(max(apart, Fraction(column.min)), Fraction(column.max))
    codes = set() if column.min <= apart <= column.max else {ExitCode.OUT_OF_BOUNDS}
    if isinstance(column, IntegerColumn):
        return codes, math.floor(apart)
    return codes, float(apart if column.decimals is None else round(apart, column.decimals))


def events_slowly(rows: list[Row], windows: Windows) -> tuple[set[ExitCode], Window]:
    codes, length = extent_slowly(len(rows), windows), windows.length
    if windows.ties == "refuse" and any(row.time == after.time for row, after in pairwise(rows)):
        codes.add(ExitCode.TIME_REPEATED)
    if windows.longer == "refuse" and len(rows) > length:
        codes.add(ExitCode.WINDOW_TOO_LONG)
    window: Window = []
    for before, row in zip([None, *rows], rows, strict=False):
        window.append([])
        for name, column in windows.channels.items():
            if name == windows.gap:
                faults, value = gap_slowly(before, row, column)
                codes |= faults
            else:
                value = row.cells[name]
            window[-1].append(value)
    return codes, window[-length:] if windows.longer == "last" else window[:length]


def slowly(case: Case) -> tuple[set[ExitCode], np.ndarray, list[int]]:
    """What may be refused, and where nothing is, values and lengths; one unit at a time."""
    codes, windows = set(), case.windows
    values = np.full((case.units, windows.length, len(windows.channels)), np.nan)
    lengths = []
    for unit in range(case.units):
        rows = [row for row in case.rows if row.unit == unit]
        ordered = sorted(rows, key=lambda row: row.time)
        if windows.unsorted == "refuse" and [row.time for row in rows] != [row.time for row in ordered]:
            codes.add(ExitCode.TIME_UNSORTED)
        if windows.max_gap is not None and any(
            after.time - row.time > Fraction(windows.max_gap) for row, after in pairwise(ordered)
        ):
            codes.add(ExitCode.OUT_OF_BOUNDS)
        faults, window = (grid_slowly if windows.layout == "grid" else events_slowly)(ordered, windows)
        codes |= faults
        lengths.append(len(window))
        for step, cells in enumerate(window):
            for channel, (name, cell) in enumerate(zip(windows.channels, cells, strict=True)):
                if cell is not None:
                    values[unit, step, channel] = "abc".index(cell) if name == "ward" else cell
    return codes, values, lengths


# --- windows as the reference makes them

_GAPS: list[dict[str, Any]] = [
    {"type": "integer", "min": 0, "max": 4},
    {"type": "integer", "min": 1, "max": 2, "outside": "clip"},
    {"type": "continuous", "min": 0, "max": 4},
    {"type": "continuous", "min": 0.5, "max": 3, "decimals": 1, "outside": "clip"},
]
_REFUSING = ("longer", "shorter", "empty", "unsorted", "ties", "outside", "missing", "jumps")
"""What a study may refuse."""


@st.composite
def windows_of(draw: st.DrawFn, refusing: set[str]) -> Windows:
    """Any rules that refuse so much and no more."""
    keys: dict[str, Any] = {
        "length": draw(st.integers(2, 5)),
        "longer": "refuse" if "longer" in refusing else draw(st.sampled_from(["first", "last"])),
        "shorter": "refuse" if "shorter" in refusing else "allow",
        "empty": "refuse" if "empty" in refusing else "allow",
        "unsorted": "refuse" if "unsorted" in refusing else "sort",
    }
    must = {name: {**rule, "missing": "missing" not in refusing} for name, rule in CHANNELS.items()}
    keys["ties"] = "refuse" if "ties" in refusing else "keep"
    max_gap = draw(st.sampled_from([2, 2.25, 4])) if "jumps" in refusing else None
    if draw(st.booleans()):
        keys["max_gap"] = max_gap
        keys["step"] = draw(st.sampled_from([0.5, 1, 1.5, 2]))
        keys["start"] = draw(st.sampled_from([None, "first", 0, 0.25, -1.5, 2]))
        how = {name: st.sampled_from(["last", "first", "mean", "min", "max"]) for name in ("pulse", "dose")}
        how["ward"] = st.sampled_from(["last", "first"])
        keys["combine"] = draw(st.fixed_dictionaries({}, optional=how))
        return layout("grid", **keys, channels=must)
    if draw(st.booleans()):
        gap = {**draw(st.sampled_from(_GAPS)), "missing": True}
        keys["gap"] = "since"
        must = {"pulse": must["pulse"], "since": gap, "ward": must["ward"]}
        if "outside" not in refusing:
            gap["outside"] = "clip"
        return layout("events", **keys, channels=must)
    return layout("events", **keys, max_gap=max_gap, channels=must)


@st.composite
def cases(draw: st.DrawFn, *, strict: bool = False, ordered: bool = True) -> Case:
    refusing = draw(st.sets(st.sampled_from(_REFUSING), min_size=1, max_size=2)) if strict else set()
    if not ordered:
        refusing = {"ties"}
    windows, units = draw(windows_of(refusing)), draw(st.integers(1, 4))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    number = int(random.integers(0, 25))
    # Quarters: every sum, difference and quotient is what it is on paper.
    quarters = (
        random.permutation(np.arange(-8, 24))[:number] if draw(st.booleans()) else random.integers(-4, 16, number)
    )
    if draw(st.booleans()):
        quarters = np.sort(quarters)
    empty = 0.0 if "missing" in refusing else 0.3
    rows = []
    for quarter in quarters:
        cells = {
            "pulse": int(random.integers(0, 10)),
            "dose": float(random.integers(-20, 21)) / 4,
            "ward": "abc"[random.integers(0, 3)],
        }
        some = {name: None if random.random() < empty else cell for name, cell in cells.items()}
        rows.append(Row(int(random.integers(0, units)), Fraction(int(quarter), 4), some))
    return Case(windows, units, rows)


def check(case: Case) -> bool:
    """Whether the table was accepted; either way as the reference says."""
    codes, values, lengths = slowly(case)
    if codes:
        with pytest.raises(SchemaError) as refused:
            case.make()
        assert refused.value.code in codes
        return False
    found, found_lengths = case.make()
    assert found.dtype == np.float64
    assert found_lengths.dtype == np.int64
    assert found_lengths.tolist() == lengths
    np.testing.assert_allclose(found, values, rtol=1e-12)
    return True


@given(cases())
@settings(deadline=None, max_examples=200)
def test_windows_are_those_of_a_loop_over_units_rows_and_steps(case: Case) -> None:
    assert check(case)


@given(cases(strict=True))
@settings(deadline=None, max_examples=200)
def test_a_table_is_refused_where_a_loop_over_units_finds_a_fault_and_for_that_fault(case: Case) -> None:
    check(case)


@given(cases(), st.data())
@settings(deadline=None, max_examples=75)
def test_the_rows_of_one_unit_change_no_other_window(case: Case, data: st.DataObject) -> None:
    values, lengths = case.make()
    gone = data.draw(st.integers(0, case.units - 1))
    others = [unit for unit in range(case.units) if unit != gone]
    # Its rows leave, and then the unit itself.
    without_rows = replace(case, rows=[row for row in case.rows if row.unit != gone])
    fewer, fewer_lengths = without_rows.make()
    np.testing.assert_array_equal(fewer[others], values[others])
    assert np.array_equal(fewer_lengths[others], lengths[others])
    names = [without_rows.names[unit] for unit in others]
    without, without_lengths = made(without_rows.text(), case.windows, names)
    np.testing.assert_array_equal(without, values[others])
    assert np.array_equal(without_lengths, lengths[others])
    assert (fewer_lengths[gone] == 0) == (case.windows.layout == "events")
    assert np.isnan(fewer[gone]).all()


@given(cases(ordered=False), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=100)
def test_where_ties_are_refused_no_order_of_the_rows_changes_a_window_or_a_refusal(case: Case, random: Any) -> None:
    mixed = replace(case, rows=random.sample(case.rows, len(case.rows)))
    if slowly(case)[0]:
        with pytest.raises(SchemaError) as refused:
            mixed.make()
        assert refused.value.code == ExitCode.TIME_REPEATED
    else:
        np.testing.assert_allclose(mixed.make()[0], case.make()[0], rtol=1e-12)


@given(cases(), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=50)
def test_only_the_order_of_the_rows_of_one_unit_among_themselves_matters(case: Case, random: Any) -> None:
    values, lengths = case.make()
    queues = {unit: [row for row in case.rows if row.unit == unit] for unit in range(case.units)}
    turns = [row.unit for row in case.rows]
    random.shuffle(turns)
    mixed, mixed_lengths = replace(case, rows=[queues[unit].pop(0) for unit in turns]).make()
    np.testing.assert_array_equal(mixed, values)
    assert np.array_equal(mixed_lengths, lengths)


# --- the same, by example


def test_rows_of_units_may_be_mixed_and_the_units_come_in_the_order_of_the_first_table() -> None:
    text = text_of(
        **{KEY: ["B", " A ", "B", "A"], TIME: ["0", "0", "1", "2"]},
        pulse=["1", "2", "3", "4"],
        dose=[""] * 4,
        ward=["a", "b", "", "c"],
    )
    values, lengths = made(text, layout("grid", length=3, empty="allow"), ["A", "C", "B"])
    assert values[:, :, 0].tolist()[0][::2] == [2, 4]
    np.testing.assert_array_equal(values[1], np.nan)
    np.testing.assert_array_equal(values[2, :, 0], [1, 3, np.nan])
    np.testing.assert_array_equal(values[2, :, 2], [0, np.nan, np.nan])
    assert lengths.tolist() == [3, 3, 3]


@pytest.mark.parametrize(
    ("how", "expected"), [("last", 2), ("first", 7), ("mean", 4), ("min", 2), ("max", 7), (None, 2)]
)
def test_several_rows_in_one_step_become_one_value(how: str | None, expected: float) -> None:
    windows = layout("grid", length=2, combine={"pulse": how} if how else {})
    # The mean of 7, 3 and 2 is a whole number; an empty cell is no value, not even as the first or the last.
    cells = ["", "7", "3", "2", ""]
    assert alike(pulses(windows, ["0", "0.1", "0.2", "0.9", "0.95"], cells), [expected, NAN])


def test_rows_at_one_time_are_taken_in_the_order_of_the_table() -> None:
    times, cells = ["1", "0", "1", "1"], ["5", "1", "3", "4"]
    for how, expected in (("first", 5), ("last", 4)):
        windows = layout("grid", length=2, unsorted="sort", ties="keep", combine={"pulse": how})
        assert alike(pulses(windows, times, cells), [1, expected])
    assert alike(pulses(layout("events", ties="keep", unsorted="sort"), times, cells), [1, 5, 3, 4])


@pytest.mark.parametrize("how", ["first", "last", None])
@pytest.mark.parametrize("cells", [["1", "7"], ["7", "1"], ["7", "", "1"], ["7", "7", "1"]])
def test_values_at_one_time_of_which_the_tables_order_would_choose_are_refused(
    how: str | None, cells: list[str]
) -> None:
    windows = layout("grid", unsorted="sort", combine={"pulse": how} if how else {})
    with pytest.raises(SchemaError, match=rf"^{TIME}: .* different values of pulse, .* {how or 'last'} ") as refused:
        pulses(windows, ["0.5"] * len(cells), cells)
    assert refused.value.code == ExitCode.TIME_REPEATED


@pytest.mark.parametrize(
    ("how", "cells", "expected"),
    [
        *(("mean", "17", 4), ("min", "17", 1), ("max", "17", 7), ("last", "77", 7), ("first", ["", "7"], 7)),
        # Said again, a value weighs no more.
        *(("mean", "177", 4), ("mean", "717", 4), ("mean", ["7", "", "7", "1"], 4)),
    ],
)
def test_values_at_one_time_that_no_order_would_change_are_taken(how: str, cells: list[str], expected: int) -> None:
    windows = layout("grid", combine={"pulse": how})
    for ordered in (list(cells), list(cells)[::-1]):
        assert alike(pulses(windows, ["0.5"] * len(cells), ordered), [expected, NAN, NAN, NAN])


def test_values_at_different_times_of_a_step_are_told_apart_by_time_in_any_order_of_the_table() -> None:
    windows = layout("grid", unsorted="sort")
    for times, cells in ((["0.1", "0.9"], ["7", "1"]), (["0.9", "0.1"], ["1", "7"])):
        assert alike(pulses(windows, times, cells), [1, NAN, NAN, NAN])


@pytest.mark.parametrize(
    ("column", "cells", "expected"),
    [
        ({"type": "integer", "min": 0, "max": 9}, ["1", "2", "2"], 2),
        ({"type": "integer", "min": 0, "max": 9}, ["1", "1", "2"], 1),
        ({"type": "continuous", "min": 0, "max": 9, "decimals": 1}, ["0.1", "0.1", "0.3"], 0.2),
        ({"type": "continuous", "min": 0, "max": 9, "decimals": 0}, ["1", "1", "3"], 2),
        ({"type": "continuous", "min": 0, "max": 9}, ["1", "1", "3"], 5 / 3),
    ],
)
def test_a_mean_is_written_as_its_column_is(column: dict[str, Any], cells: list[str], expected: float) -> None:
    windows = layout("grid", channels={"pulse": {**column, "missing": True}}, combine={"pulse": "mean"})
    assert pulses(windows, ["0", "0.1", "0.2"], cells)[0] == expected


def test_a_step_holds_its_beginning_and_not_its_end() -> None:
    windows = layout("grid", length=3, step=2, start=1, longer="first")
    assert alike(pulses(windows, ["0.99", "1", "2.99", "3", "6.99", "7"], list("123456")), [3, 4, 5])


def test_a_grid_begins_where_the_study_says_or_at_a_units_first_row() -> None:
    times, cells = ["10.5", "11.4", "12.5"], ["1", "2", "3"]
    assert alike(pulses(layout("grid", start="first"), times, cells), [2, NAN, 3, NAN])
    assert alike(pulses(layout("grid", start=10), times, cells), [1, 2, 3, NAN])
    assert alike(pulses(layout("grid", start=10.5), times, cells), [2, NAN, 3, NAN])
    # The first row counts even where it holds no value.
    assert alike(pulses(layout("grid", start="first"), times, ["", "2", "3"]), [2, NAN, 3, NAN])
    assert alike(pulses(layout("grid", start="first"), times, ["", "", "3"]), [NAN, NAN, 3, NAN])


def test_a_longer_series_keeps_its_first_or_its_last_steps() -> None:
    times, cells = [str(number) for number in range(6)], list("123456")
    for name in ("grid", "events"):
        assert pulses(layout(name, longer="first"), times, cells) == [1, 2, 3, 4]
        assert pulses(layout(name, longer="last"), times, cells) == [3, 4, 5, 6]
    # On a grid steps are counted, not rows; and what lies before the start is outside, whatever is kept.
    assert alike(pulses(layout("grid", longer="last"), ["0", "1", "5"], list("123")), [NAN, NAN, NAN, 3])
    assert alike(pulses(layout("grid", longer="last"), ["-1", "0", "1"], list("123")), [2, 3, NAN, NAN])
    assert alike(pulses(layout("grid", longer="first"), ["-1", "0", "1"], list("123")), [2, 3, NAN, NAN])
    # The last steps of a long stay, however long: one late row moves the window away from all others.
    for max_gap in (None, 1e9):
        windows = layout("grid", longer="last", step=0.5, max_gap=max_gap)
        assert alike(pulses(windows, ["0", "1e9"], list("12")), [NAN, NAN, NAN, 2])


@pytest.mark.parametrize("name", ["grid", "events"])
@pytest.mark.parametrize("longer", ["first", "last"])
@pytest.mark.parametrize(
    "times", [["0.1", "0.3", "0.8", "1e9"], ["-1e9", "0.1", "0.3", "0.8"], ["1", "3", "5.00001", "7"]]
)
def test_rows_of_a_unit_farther_apart_than_max_gap_are_refused_wherever_they_are(
    name: str, longer: str, times: list[str]
) -> None:
    windows = layout(name, longer=longer, max_gap=2)
    with pytest.raises(SchemaError, match=rf"^{TIME}: .* more than 2 apart; .*windows\.max_gap") as refused:
        pulses(windows, times, list("1234"))
    assert refused.value.code == ExitCode.OUT_OF_BOUNDS


def test_rows_exactly_as_far_apart_as_max_gap_are_taken_and_units_are_not_compared() -> None:
    # 0.4 - 0.3 is a little more than 0.1.
    windows = layout("events", max_gap=0.1)
    assert pulses(windows, ["0.1", "0.2", "0.3", "0.4"], list("1234")) == [1, 2, 3, 4]
    text = text_of(**{KEY: ["A", "B"], TIME: ["0", "1e9"]}, pulse=["1", "2"], dose=[""] * 2, ward=[""] * 2)
    assert made(text, windows, ["A", "B"])[1].tolist() == [1, 1]


def test_a_part_of_the_windows_that_is_nobodys_is_refused() -> None:
    windows = layout("events", length=3)
    values = np.full((2, 3, 3), NAN)
    values[0, 0], values[1, 2, 0] = 1, 5
    check_filled(values, windows)
    with pytest.raises(SchemaError, match=r"^windows\.length=3: no unit has so many steps$") as short:
        check_filled(values[:1], windows)
    assert short.value.code == ExitCode.WINDOW_TOO_SHORT
    with pytest.raises(SchemaError, match=r"^dose: no unit has a value in this channel; move it to `w") as empty:
        check_filled(values[1:], windows)
    assert empty.value.code == ExitCode.CONSTANT_COLUMN
    with pytest.raises(
        SchemaError, match=r"^pulse: no unit has a value in this channel; delete it and `windows\.gap`$"
    ):
        check_filled(np.full((2, 3, 3), NAN), layout("events", length=3, gap="pulse"))
    check_filled(values[:0], windows)


def test_a_unit_has_as_many_events_as_rows_and_on_a_grid_always_all_steps() -> None:
    text = text_of(**{KEY: ["A", "A", "B"], TIME: ["0", "1", "0"]}, pulse=["1", "", "2"], dose=[""] * 3, ward=[""] * 3)
    values, lengths = made(text, layout("events", empty="allow"), ["A", "B", "C"])
    assert lengths.tolist() == [2, 1, 0]
    np.testing.assert_array_equal(values[:, :, 0], [[1, NAN, NAN, NAN], [2, NAN, NAN, NAN], [NAN] * 4])
    assert made(text, layout("grid", empty="allow"), ["A", "B", "C"])[1].tolist() == [4, 4, 4]


@pytest.mark.parametrize("name", ["grid", "events"])
def test_a_table_without_units_or_without_rows_has_windows_all_the_same(name: str) -> None:
    none = text_of(**{KEY: [], TIME: []}, pulse=[], dose=[], ward=[])
    windows = layout(name, empty="allow")
    values, lengths = made(none, windows, [])
    assert values.shape == (0, 4, 3)
    assert lengths.shape == (0,)
    values, lengths = made(none, windows, ["A"])
    assert values.shape == (1, 4, 3)
    assert np.isnan(values).all()
    assert lengths.tolist() == [4 if name == "grid" else 0]


def test_a_missing_marker_is_no_value() -> None:
    text = text_of(**{KEY: ["A", "A"], TIME: ["0", "0.5"]}, pulse=["3", "?"], dose=[" ? ", ""], ward=["?", "b"])
    values, _ = made(text, layout("grid"), ["A"], missing_markers=("?",))
    np.testing.assert_array_equal(values[0, 0], [3, NAN, 1])


def test_rows_of_any_index_are_read_by_their_place() -> None:
    text = text_of(**{KEY: ["A", "B", "A"], TIME: ["0", "0", "1"]}, pulse=["1", "2", ""], dose=[""] * 3, ward=[""] * 3)
    text.index = pd.Index([7, 3, 5])
    values, _ = made(text, layout("grid"), ["A", "B"])
    np.testing.assert_array_equal(values[:, :2, 0], [[1, NAN], [2, NAN]])


# --- the computed channel


def since(rule: dict[str, Any], **keys: Any) -> Windows:
    gap = {"min": 0, "max": 100, "missing": True, **rule}
    return layout("events", gap="since", **{"channels": {"since": gap, "pulse": PULSE}, **keys})


def gaps(windows: Windows, times: list[str]) -> list[float]:
    return [float(value) for value in of_one(windows, times)[:, 0]]


def test_the_gap_is_the_time_since_the_row_before_and_missing_for_the_first_row() -> None:
    assert alike(gaps(since({"type": "continuous"}), ["5", "7.5", "8"]), [NAN, 2.5, 0.5, NAN])
    assert alike(gaps(since({"type": "integer"}), ["5", "7.5", "11.5"]), [NAN, 2, 4, NAN])
    assert alike(gaps(since({"type": "continuous", "decimals": 0}), ["5", "7.75", "8"]), [NAN, 3, 0, NAN])


def test_the_gap_is_not_between_units() -> None:
    text = text_of(**{KEY: ["A", "B", "A", "B"], TIME: ["0", "50", "1", "70"]}, pulse=[""] * 4)
    values, _ = made(text, since({"type": "integer"}), ["A", "B"])
    np.testing.assert_array_equal(values[:, :2, 0], [[NAN, 1], [NAN, 20]])


def test_the_gap_to_a_row_that_was_dropped_is_known() -> None:
    times = [str(time) for time in (0, 1, 3, 6, 10, 15)]
    assert gaps(since({"type": "integer"}, longer="last"), times) == [2, 3, 4, 5]
    assert alike(gaps(since({"type": "integer"}, longer="first"), times), [NAN, 1, 2, 3])


def test_a_gap_outside_its_bounds_is_clipped_or_refused() -> None:
    clipping = since({"type": "integer", "min": 2, "max": 5, "outside": "clip"})
    assert alike(gaps(clipping, ["0", "1", "4", "50"]), [NAN, 2, 3, 5])
    for time in ("1", "7"):
        with pytest.raises(SchemaError, match=r"^since: .*min=2, max=5") as refused:
            gaps(since({"type": "integer", "min": 2, "max": 5}), ["0", time])
        assert refused.value.code == ExitCode.OUT_OF_BOUNDS
    assert alike(gaps(since({"type": "integer", "min": 2, "max": 5}), ["0", "2", "7"]), [NAN, 2, 5, NAN])


def test_a_window_of_nothing_but_the_gap_is_possible() -> None:
    windows = layout("events", gap="since", channels={"since": {**PULSE, "max": 100}})
    assert alike(gaps(windows, ["3", "5", "5.5"]), [NAN, 2, 0, NAN])


# --- time stamps


@st.composite
def stamped(draw: st.DrawFn) -> tuple[str, Fraction]:
    """A moment with its zone, and its minutes since 1970."""
    seconds = 15 * draw(st.integers(0, 4 * 60))
    moment = datetime(2026, 2, 28, 23, tzinfo=UTC) + timedelta(seconds=seconds)
    zone = draw(st.sampled_from([0, 0, 60, -330, 14 * 60]))
    local = moment.astimezone(timezone(timedelta(minutes=zone)))
    text = local.strftime(draw(st.sampled_from(["%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S.000"])))
    sign, hours, minutes = "-" if zone < 0 else "+", abs(zone) // 60, abs(zone) % 60
    colon = draw(st.sampled_from([":", ""]))
    ending = "Z" if zone == 0 and draw(st.booleans()) else f"{sign}{hours:02d}{colon}{minutes:02d}"
    return text + ending, Fraction(int(moment.timestamp()), 60)


@given(st.lists(st.tuples(st.sampled_from("AB"), stamped()), max_size=12), st.booleans())
@settings(deadline=None, max_examples=75)
def test_stamps_of_any_zones_are_moments_in_minutes(rows: list[tuple[str, tuple[str, Fraction]]], grid: bool) -> None:
    keys: dict[str, Any] = {"unsorted": "sort", "longer": "last", "empty": "allow"}
    if grid:
        windows = layout("grid", step=1.5, start="first", ties="keep", **keys)
    else:
        windows = since({"type": "continuous"}, ties="keep", **keys)
    cells = {name: [""] * len(rows) for name in windows.columns[1:]}
    cells["pulse"] = [str(number % 10) for number in range(len(rows))]
    units = [unit for unit, _ in rows]
    stamps = text_of(**{KEY: units, TIME: [stamp for _, (stamp, _) in rows]}, **cells)
    numbers = text_of(**{KEY: units, TIME: [str(float(minutes)) for _, (_, minutes) in rows]}, **cells)
    timed = Windows.model_validate({**windows.model_dump(exclude_unset=True), "time": STAMPS})
    found, expected = made(stamps, timed, ["A", "B"]), made(numbers, windows, ["A", "B"])
    np.testing.assert_array_equal(found[0], expected[0])
    assert np.array_equal(found[1], expected[1])


STAMPED = {"layout": "events", "length": 4, "time": STAMPS, "gap": "since"}
BY_MINUTES = Windows.model_validate(
    {**STAMPED, "channels": {"since": {"type": "continuous", "min": 0, "max": 1e6, "missing": True}}}
)


@pytest.mark.parametrize(
    ("first", "second", "minutes"),
    [
        ("2026-03-01T10:00", "2026-03-01T10:01", 1),
        ("2026-03-01 10:00", "2026-03-01T11:00:30", 60.5),
        (" 2026-03-01 10:00:00.5 ", "2026-03-01 10:01:00.500000", 1),
        ("2026-02-28T23:00", "2026-03-01T00:00", 60),
        ("2024-02-28T23:00", "2024-03-01T00:00", 60 + 24 * 60),
        # No zone, no summer time: the night in which clocks go forward has all its hours.
        ("2026-03-29T01:30", "2026-03-29T03:30", 120),
        ("2026-03-01T10:00Z", "2026-03-01T12:00+01:00", 60),
        ("2026-03-01T10:00+0200", "2026-03-01T09:00Z", 60),
        ("2026-03-01T00:30+05:30", "2026-02-28T19:01Z", 1),
        ("1969-12-31T23:59Z", "1970-01-01T00:01Z", 2),
        ("0001-01-01T00:00+14:00", "0001-01-01T00:01+14:00", 1),
        ("9999-12-31T23:58-12:00", "9999-12-31T23:59-12:00", 1),
    ],
)
def test_stamps_are_compared_as_moments(first: str, second: str, minutes: float) -> None:
    assert gaps(BY_MINUTES, [first, second])[1] == minutes
    with pytest.raises(SchemaError) as refused:
        gaps(BY_MINUTES, [second, first])
    assert refused.value.code == ExitCode.TIME_UNSORTED


@pytest.mark.parametrize(
    "stamp",
    ["2026-02-30T10:00", "2025-02-29T10:00", "2026-13-01T10:00", "2026-00-01T10:00", "2026-01-00T10:00",
     "2026-01-01T24:00", "2026-01-01T10:60", "2026-01-01T10:00:60", "0000-01-01T10:00", "2026-01-01T10:00+24:00",
     "2026-01-01", "10:00", "2026-01-01T10", "2026-1-1T10:00", "20260101T1000", "2026-W01-1T10:00", "01.02.2026 10:00",
     "2026-01-01T10:00:00.1234567", "2026-01-01T10:00:00,5", "2026-01-01T10:00z", "2026-01-01T10:00 Z",
     "2026-01-01T10:00+1", "2026-01-01T10:00 Europe/Berlin", "2026-01-01x10:00", "2026-01-01T10:00Zx", "nan", "NaT",
     "now", "1767225600", "\uff12\uff10\uff12\uff16-01-01T10:00", "2026-01-01T10:00\u2212", "SECRET-7319"],
)  # fmt: skip
def test_what_is_not_a_stamp_is_refused(stamp: str) -> None:
    zone = "+00:00" if "+" in stamp else ""
    with pytest.raises(SchemaError, match=rf"^{TIME}: a time is not an ISO 8601 date and time$") as refused:
        gaps(BY_MINUTES, [f"2025-01-01T10:00{zone}", stamp])
    assert refused.value.code == ExitCode.NOT_A_TIME


@pytest.mark.parametrize("time", ["nan", "NaN", "inf", "-Infinity", "1e300", "-1e300", "1.1e12", "x", "1,5", "0x10",
                                  "2026-01-01T10:00", "9" * 400, "<NA>", "1_0", "None"])  # fmt: skip
def test_what_is_no_number_or_too_far_away_is_no_time(time: str) -> None:
    for windows in (layout("grid", longer="first", unsorted="sort"), layout("events", longer="first", unsorted="sort")):
        with pytest.raises(SchemaError, match=rf"^{TIME}: a time is not a number between") as refused:
            pulses(windows, ["0", time, "1"], ["1", "2", "3"])
        assert refused.value.code == ExitCode.NOT_A_TIME


@pytest.mark.parametrize("time", ["1e12", "-1e12", "1e-300", "+5", " 5 ", "5.", "-0"])
def test_a_number_may_be_written_in_several_ways(time: str) -> None:
    assert alike(pulses(layout("events"), [time], ["3"]), [3, NAN, NAN, NAN])


@pytest.mark.parametrize("keys", [{"layout": "events"}, {"layout": "grid", "step": 60, "start": "first"}])
def test_stamps_half_a_century_apart_are_refused_unless_a_study_says_otherwise(keys: dict[str, Any]) -> None:
    windows = Windows.model_validate({**EVENTS, "time": STAMPS, "longer": "last", **keys})
    stamps = ["1970-01-01T00:00", "2026-07-31T10:00"]
    with pytest.raises(SchemaError, match=rf"^{TIME}: .* more than 26298000 minutes apart") as refused:
        pulses(windows, stamps, ["1", "2"])
    assert refused.value.code == ExitCode.OUT_OF_BOUNDS
    wider = Windows.model_validate({**windows.model_dump(exclude_unset=True), "max_gap": 1e8})
    assert 2 in pulses(wider, stamps, ["1", "2"])
    assert 2 in pulses(windows, ["1980-01-01T00:00", stamps[1]], ["1", "2"])


def test_where_there_is_a_gap_its_bounds_alone_say_how_far_stamps_may_be_apart() -> None:
    stamps = ["1970-01-01T00:00", "2026-07-31T10:00"]
    wide = {"type": "continuous", "min": 0, "max": 1e8, "missing": True}
    assert gaps(Windows.model_validate({**STAMPED, "channels": {"since": wide}}), stamps)[1] == 29_758_200
    clipping = {**wide, "max": 60, "outside": "clip"}
    assert gaps(Windows.model_validate({**STAMPED, "channels": {"since": clipping}}), stamps)[1] == 60


# --- refusals


@dataclass(frozen=True)
class Refusal:
    windows: Windows
    change: Callable[[pd.DataFrame], pd.DataFrame]
    code: ExitCode
    names: str
    units: tuple[str, ...] = ("unit-7319-A", "unit-7319-B")


def unchanged(text: pd.DataFrame) -> pd.DataFrame:
    return text


def cell(row: int, column: str, value: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(text: pd.DataFrame) -> pd.DataFrame:
        changed = text.copy()
        changed.loc[row, column] = value
        return changed

    return change


def without(*rows: int) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda text: text.drop(index=list(rows)).reset_index(drop=True)


BASE = text_of(
    **{KEY: ["unit-7319-A"] * 4 + ["unit-7319-B"] * 4, TIME: [f"0.{digit}7319" for digit in range(4)] * 2},
    pulse=["1", "2", "3", "4"] * 2,
    dose=["0.7319", "-1.7319"] * 4,
    ward=["a", "b", "c", "a"] * 2,
)
STRICT: dict[str, Any] = {
    "shorter": "refuse",
    "channels": {name: {**CHANNELS[name], "missing": False} for name in CHANNELS},
}
ON_GRID, IN_ORDER = layout("grid", step=0.1, **STRICT), layout("events", **STRICT)
WITH_GAP = layout("events", gap="since", channels={"since": {**DOSE, "min": 0, "max": 0.2}, **CHANNELS})
WITH_STAMPS = layout("events", time=STAMPS)


def stamps(*changed: tuple[int, str]) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(text: pd.DataFrame) -> pd.DataFrame:
        times = pd.Series([f"2026-07-31T10:0{row}:59.7319" for row in range(len(text))], dtype="str")
        for row, value in changed:
            times[row] = value
        return text.assign(**{TIME: times})

    return change


REFUSALS = {
    "a unit that the first table lacks": Refusal(
        ON_GRID, cell(0, KEY, "unit-7319-C"), ExitCode.UNIT_UNKNOWN, KEY, ("unit-7319-A", "unit-7319-B")
    ),
    "a row without its unit": Refusal(IN_ORDER, cell(0, KEY, " "), ExitCode.MISSING_NOT_ALLOWED, KEY),
    "a unit without a row on a grid": Refusal(
        ON_GRID, unchanged, ExitCode.UNIT_WITHOUT_STEPS, TIME, ("unit-7319-A", "unit-7319-B", "unit-7319-C")
    ),
    "a unit without an event": Refusal(
        IN_ORDER, unchanged, ExitCode.UNIT_WITHOUT_STEPS, TIME, ("unit-7319-A", "unit-7319-B", "unit-7319-C")
    ),
    "a unit whose rows all lie before its window": Refusal(
        layout("grid", start=7319, longer="first"), unchanged, ExitCode.UNIT_WITHOUT_STEPS, TIME
    ),
    "a row after the last step": Refusal(ON_GRID, cell(7, TIME, "0.77319"), ExitCode.WINDOW_TOO_LONG, TIME),
    "a row before the first step": Refusal(ON_GRID, cell(4, TIME, "-0.77319"), ExitCode.WINDOW_TOO_LONG, TIME),
    "an event too many": Refusal(layout("events", length=3), unchanged, ExitCode.WINDOW_TOO_LONG, TIME),
    "a grid that ends early": Refusal(ON_GRID, without(7), ExitCode.WINDOW_TOO_SHORT, TIME),
    "events that end early": Refusal(IN_ORDER, without(5), ExitCode.WINDOW_TOO_SHORT, TIME),
    "a time that is no number": Refusal(ON_GRID, cell(2, TIME, "SECRET-7319"), ExitCode.NOT_A_TIME, TIME),
    "a time that is missing": Refusal(ON_GRID, cell(2, TIME, " "), ExitCode.MISSING_NOT_ALLOWED, TIME),
    "a stamp that is missing": Refusal(WITH_STAMPS, stamps((3, "")), ExitCode.MISSING_NOT_ALLOWED, TIME),
    "a time that is not finite": Refusal(IN_ORDER, cell(2, TIME, "nan"), ExitCode.NOT_A_TIME, TIME),
    "a time that is far away": Refusal(IN_ORDER, cell(2, TIME, "7.319e300"), ExitCode.NOT_A_TIME, TIME),
    "a stamp of no day": Refusal(WITH_STAMPS, stamps((3, "2026-02-30T10:07:31")), ExitCode.NOT_A_TIME, TIME),
    "a zone among times without": Refusal(
        WITH_STAMPS, stamps((3, "2026-07-31T10:03:59.7319Z")), ExitCode.TIME_ZONE_MIXED, TIME
    ),
    "a row that is out of order": Refusal(ON_GRID, cell(1, TIME, "0.00001"), ExitCode.TIME_UNSORTED, TIME),
    "an event that is out of order": Refusal(IN_ORDER, cell(7, TIME, "0.07319"), ExitCode.TIME_UNSORTED, TIME),
    "two events at one time": Refusal(IN_ORDER, cell(7, TIME, "0.27319"), ExitCode.TIME_REPEATED, TIME),
    "two values at one time on a grid": Refusal(layout("grid"), cell(7, TIME, "0.27319"), ExitCode.TIME_REPEATED, TIME),
    "a jump of the clock on a grid": Refusal(
        layout("grid", step=0.1, max_gap=0.1, longer="last"), cell(7, TIME, "7319"), ExitCode.OUT_OF_BOUNDS, TIME
    ),
    "a jump of the clock between events": Refusal(
        layout("events", max_gap=0.1), cell(7, TIME, "7319"), ExitCode.OUT_OF_BOUNDS, TIME
    ),
    "a gap that is too long": Refusal(WITH_GAP, cell(7, TIME, "0.67319"), ExitCode.OUT_OF_BOUNDS, "since"),
    "a step without a value": Refusal(ON_GRID, cell(2, TIME, "0.18319"), ExitCode.MISSING_NOT_ALLOWED, "pulse"),
    "an empty cell": Refusal(IN_ORDER, cell(2, "dose", ""), ExitCode.MISSING_NOT_ALLOWED, "dose"),
    "a channel that is no number": Refusal(ON_GRID, cell(2, "pulse", "SECRET-7319"), ExitCode.NOT_A_NUMBER, "pulse"),
    "a channel outside its bounds": Refusal(ON_GRID, cell(2, "pulse", "7319"), ExitCode.OUT_OF_BOUNDS, "pulse"),
    "a channel that is not finite": Refusal(IN_ORDER, cell(2, "dose", "-inf"), ExitCode.NOT_FINITE, "dose"),
    "a category that is not listed": Refusal(
        IN_ORDER, cell(2, "ward", "SECRET-7319"), ExitCode.UNLISTED_CATEGORY, "ward"
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_names_the_column_and_the_rule_in_one_line_and_no_cell(name: str) -> None:
    case = REFUSALS[name]
    text = case.change(BASE)
    with pytest.raises(SchemaError) as refused:
        made(text, case.windows, list(case.units))
    assert refused.value.code == case.code
    message = str(refused.value)
    assert message.startswith(f"{case.names}: ")
    assert message.splitlines() == [message]
    assert "7319" not in message
    assert "SECRET" not in message
    assert not [cell for cell in text.to_numpy().ravel() if len(cell.strip()) > 2 and cell.strip() in message]
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


def test_the_table_that_is_changed_in_one_place_is_accepted_as_it_stands() -> None:
    units = ["unit-7319-A", "unit-7319-B"]
    for windows in (ON_GRID, IN_ORDER, WITH_GAP):
        made(BASE, windows, units)
    made(stamps()(BASE), WITH_STAMPS, units)


def test_what_would_drop_an_ambiguity_in_silence_is_refused_even_outside_the_window() -> None:
    # The rows that a shorter window drops are still checked: whether a table is accepted does not hang on them alone.
    for change in (cell(3, "pulse", "SECRET"), cell(3, TIME, "0.27319")):
        with pytest.raises(SchemaError):
            made(change(BASE), layout("events", length=2, longer="first"), ["unit-7319-A", "unit-7319-B"])


# --- cells, and the long table

TYPED: dict[str, Any] = {
    "pulse": {"type": "integer", "min": 20, "max": 220, "missing": True},
    "age": {"type": "integer", "min": 0, "max": 9},
    "temperature": {"type": "continuous", "min": 32, "max": 42, "decimals": 1, "missing": True},
    "amount": {"type": "continuous", "min": 0, "max": 1e6, "scale": "log"},
    "ward": WARD,
    "sex": {"type": "categorical", "categories": ["f", "m"]},
}


_SINCE: list[dict[str, Any]] = [
    {"type": "integer", "min": 0, "max": 2},
    {"type": "integer", "min": 1, "max": 1000},
    {"type": "continuous", "min": 0, "max": 0.3, "decimals": 1},
    {"type": "continuous", "min": 0.3, "max": 0.5, "decimals": 1},
    {"type": "continuous", "min": 0, "max": 1, "decimals": 0},
]


@st.composite
def filled(draw: st.DrawFn) -> tuple[Windows, np.ndarray, np.ndarray]:
    """Windows of typed channels with their values and lengths, as they would be made from a long table."""
    events = draw(st.booleans())
    keys: dict[str, Any] = {"length": draw(st.integers(2, 6)), "channels": TYPED, "empty": "allow"}
    gap = events and draw(st.booleans())
    if gap:
        # Many of few values, so that some are 0 and some are the greatest.
        keys["channels"] = {**TYPED, "since": {**draw(st.sampled_from(_SINCE)), "missing": True}}
        keys["gap"] = "since"
        keys["ties"] = draw(st.sampled_from(["refuse", "keep"]))
    elif events:
        keys["max_gap"] = draw(st.sampled_from([None, 90, 0.3, 0.0123456789, 1e-6]))
    else:
        keys["step"] = draw(st.sampled_from([1, 0.25, 15, 0.1, 0.000066667]))
        keys["start"] = draw(st.sampled_from([None, "first", 0, -7.5, 100, 1.7e9]))
        keys["max_gap"] = draw(st.sampled_from([None, keys["step"]]))
    if (events or keys["start"] == "first") and draw(st.booleans()):
        keys["time"] = STAMPS
    windows = layout("events" if events else "grid", **keys)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    units = draw(st.integers(0, 4))
    lengths = random.integers(0, windows.length + 1, units) if events else np.full(units, windows.length)
    values = np.full((units, windows.length, len(windows.channels)), np.nan)
    for position, grid in enumerate(make_grids(windows.channels)):
        cells = random.integers(0, grid.n_cells, (units, windows.length))
        if grid.is_ordered:
            drawn = grid.decode(cells.ravel(), random).to_numpy(dtype=np.float64, na_value=np.nan)
        else:
            drawn = np.where(cells < grid.n_values, cells.astype(np.float64), np.nan).ravel()
        values[:, :, position] = drawn.reshape(cells.shape)
        if grid.name == windows.gap:
            values[:, 0, position] = np.nan
            later = values[:, 1:, position]
            values[:, 1:, position] = np.where(np.isnan(later), grid.column.min, later)
    values[np.arange(windows.length) >= lengths[:, None]] = np.nan
    return windows, values, lengths.astype(np.int64)


@given(filled())
@settings(deadline=None, max_examples=75)
def test_cells_are_those_of_the_channels_grid_and_minus_one_beyond_the_end(
    case: tuple[Windows, np.ndarray, np.ndarray],
) -> None:
    windows, values, lengths = case
    grids = make_grids(windows.channels)
    cells = encode_windows(values, lengths, grids)
    assert cells.shape == values.shape
    assert cells.dtype == np.int64
    for unit, step, channel in np.ndindex(*values.shape):
        grid, value, found = grids[channel], values[unit, step, channel], cells[unit, step, channel]
        if step >= lengths[unit]:
            assert found == -1
        elif np.isnan(value):
            assert found == grid.n_values < grid.n_cells
        elif grid.edges is None:
            assert found == value
        else:
            assert grid.edges[found] <= value < grid.edges[found + 1]


@given(filled())
@settings(deadline=None, max_examples=75)
def test_the_long_table_is_read_back_as_the_same_windows(case: tuple[Windows, np.ndarray, np.ndarray]) -> None:
    windows, values, lengths = case
    units = [f"unit {number}" for number in range(len(lengths))]
    table = long_table(values, lengths, windows, unit_key=KEY, units=units)
    written = io.StringIO(as_csv(table, windows.channels))
    text = pd.read_csv(written, dtype=str, keep_default_na=False).fillna("")
    found, found_lengths = made(text, windows, units)
    np.testing.assert_array_equal(found, values)
    assert np.array_equal(found_lengths, lengths)


@given(filled())
@settings(deadline=None, max_examples=50)
def test_the_long_table_has_a_row_a_step_in_the_dtypes_of_the_schema(
    case: tuple[Windows, np.ndarray, np.ndarray],
) -> None:
    windows, values, lengths = case
    units = [f"unit {number}" for number in range(len(lengths))]
    table = long_table(values, lengths, windows, unit_key=KEY, units=units)
    assert list(table.columns) == [KEY, TIME, *windows.channels]
    assert table[KEY].tolist() == [unit for unit, length in zip(units, lengths, strict=True) for _ in range(length)]
    assert pd.api.types.is_string_dtype(table[KEY])
    joined = table.merge(pd.DataFrame({KEY: pd.Series(units, dtype="str")}), on=KEY, how="left", validate="many_to_one")
    assert len(joined) == len(table) == lengths.sum()
    dtypes = {"pulse": "Int64", "age": "int64", "temperature": "float64", "amount": "float64"}
    if windows.gap is not None:
        dtypes["since"] = windows.channels["since"].dtype
    for name, rule in windows.channels.items():
        if name in dtypes:
            assert str(table[name].dtype) == dtypes[name]
        else:
            assert isinstance(rule, CategoricalColumn)
            assert list(table[name].cat.categories) == list(rule.values)
    expected = []
    for unit, length in enumerate(lengths):
        time = windows.starts_at if windows.layout == "grid" else 0.0
        for step in range(length):
            if windows.gap is not None and step:
                gap = values[unit, step, list(windows.channels).index(windows.gap)]
                time += windows.least_gap if gap == 0 else gap
            elif step:
                time += windows.step or min(1, windows.max_gap or 1)
            expected.append(time)
    if windows.time.type == "timestamp":
        assert table[TIME].dtype == "datetime64[us]"
        passed = (table[TIME] - pd.Timestamp(1970, 1, 1)) / pd.Timedelta(minutes=1)
        assert passed.tolist() == pytest.approx(expected, abs=1e-8)
    else:
        assert table[TIME].tolist() == pytest.approx(expected)
        assert table[TIME].dtype == "float64" or all(time == int(time) for time in expected)
    # A file is written some units at a time.
    none = long_table(values[:0], lengths[:0], windows, unit_key=KEY, units=[])
    assert none[TIME].dtype == table[TIME].dtype


def test_times_that_are_always_whole_are_written_so() -> None:
    whole = [layout("grid", start=-3), layout("events"), since({"type": "integer"}, ties="keep")]
    whole.append(since({"type": "integer", "min": 1}))
    parts = [layout("grid", start=0.5), layout("events", max_gap=0.5), since({"type": "integer"})]
    parts.append(since({"type": "continuous"}, ties="keep"))
    assert [windows.has_whole_times for windows in whole + parts] == [True] * 4 + [False] * 4


@pytest.mark.parametrize(
    "rule",
    [
        {"type": "integer"},
        {"type": "continuous"},
        {"type": "continuous", "decimals": 1},
        {"type": "continuous", "decimals": 9},
    ],
)
@pytest.mark.parametrize("time", [{"column": TIME}, STAMPS], ids=["numbers", "stamps"])
def test_a_gap_of_zero_is_a_time_that_is_read_as_zero_where_ties_are_refused(
    time: dict[str, Any], rule: dict[str, Any]
) -> None:
    values = np.array([[[NAN], [0.0], [7.0], [0.0]]])
    for ties in ("refuse", "keep"):
        windows = since(rule, ties=ties, time=time, channels={"since": {"min": 0, "max": 100, "missing": True, **rule}})
        table = long_table(values, np.array([4]), windows, unit_key=KEY, units=["A"])
        assert table[TIME].is_unique == (ties == "refuse")
        text = pd.read_csv(io.StringIO(as_csv(table, windows.channels)), dtype=str, keep_default_na=False)
        np.testing.assert_array_equal(made(text, windows, ["A"])[0], values)


@pytest.mark.parametrize(
    ("minutes", "text"),
    [
        (0, "1970-01-01T00:00:00"),
        (90, "1970-01-01T01:30:00"),
        (1440, "1970-01-02T00:00:00"),
        (0.25, "1970-01-01T00:00:15"),
        (1 / 3, "1970-01-01T00:00:20"),
        (0.001, "1970-01-01T00:00:00.060000"),
        (4223371679, "9999-12-31T23:59:00"),
        (-60, "1969-12-31T23:00:00"),
    ],
)
def test_a_stamp_is_written_as_it_is_read(minutes: float, text: str) -> None:
    assert write_stamps(stamps_of(np.array([minutes]))).tolist() == [text]
    windows = layout("events", ties="keep", time=STAMPS, gap="since", channels=BY_MINUTES.model_dump()["channels"])
    if 0 <= minutes <= 1e6:
        assert gaps(windows, ["1970-01-01T00:00", text])[1] == pytest.approx(minutes, abs=1e-8)


@pytest.mark.parametrize(
    ("keys", "longest"),
    [
        ({"layout": "grid", "step": 1.06e9, "start": "first"}, "step"),
        ({**STAMPED, "channels": {"since": {**PULSE, "max": 1_060_000_000}}}, "channels.since.max"),
    ],
)
def test_a_window_that_could_pass_the_last_time_stamp_is_refused(keys: dict[str, Any], longest: str) -> None:
    keys = {"length": 4, "channels": CHANNELS, **keys, "time": STAMPS}
    with pytest.raises(StudyError, match=rf"windows: {longest}: 4 of them reach from 1970 beyond the year 9999$"):
        parsed(keys)
    assert parsed({**keys, "length": 3}).length == 3


def test_a_gap_that_is_missing_does_not_move_the_time() -> None:
    windows = layout("events", gap="since", longer="last", ties="keep", channels={"since": {**PULSE, "max": 100}})
    values = np.array([[[NAN], [5], [NAN], [2]], [[7], [3], [1], [2]]])
    table = long_table(values, np.array([4, 4]), windows, unit_key=KEY, units=["A", "B"])
    # A window that begins later than its unit is dated from the row before it.
    assert table[TIME].tolist() == [0, 5, 5, 7, 7, 10, 11, 13]
    assert table["since"].tolist()[4:] == [7, 3, 1, 2]


# --- units with their windows


def windowed(units: int) -> WindowedTable:
    records = pd.DataFrame(
        {"age": np.arange(units), "ill": pd.Categorical.from_codes(np.arange(units) % 2, ["n", "y"])}
    )
    return WindowedTable(records, np.arange(units * 6, dtype=float).reshape(units, 3, 2), np.arange(units))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (np.array([3, 0, 3]), [3, 0, 3]),
        (np.array([-1]), [4]),
        (np.array([True, False, True, False, False]), [0, 2]),
        (np.zeros(5, dtype=bool), []),
        (np.array([], dtype=np.int64), []),
    ],
)
def test_units_are_taken_by_position_or_by_mask_with_all_that_is_theirs(rows: np.ndarray, expected: list[int]) -> None:
    table = windowed(5)
    taken = table.take(rows)
    assert taken.records["age"].tolist() == expected
    assert taken.records.index.tolist() == list(range(len(expected)))
    assert taken.records.dtypes.equals(table.records.dtypes)
    assert np.array_equal(taken.values, table.values[expected] if expected else np.empty((0, 3, 2)))
    assert taken.lengths.tolist() == expected
    assert table.records["age"].tolist() == [0, 1, 2, 3, 4]


def test_a_table_whose_index_is_not_its_position_is_taken_by_position() -> None:
    table = windowed(3)
    shuffled = WindowedTable(table.records.set_index(pd.Index([2, 0, 1])), table.values, table.lengths)
    assert shuffled.take(np.array([0, 2])).records["age"].tolist() == [0, 2]
    assert shuffled.take(np.array([True, False, True])).records["age"].tolist() == [0, 2]


def test_records_without_windows_have_none_and_can_be_taken_too() -> None:
    table = WindowedTable.without_windows(windowed(5).records)
    assert table.values.shape == (5, 0, 0)
    assert table.lengths.tolist() == [0] * 5
    assert table.lengths.dtype == np.int64
    taken = table.take(np.array([4, 1]))
    assert taken.values.shape == (2, 0, 0)
    assert taken.records["age"].tolist() == [4, 1]


# Moments as channels


def test_moments_of_a_channel_are_units_since_their_minimum_and_come_back() -> None:
    windows = layout("grid", combine={"seen": "mean"}, channels={"seen": SEEN})
    text = pd.DataFrame(
        {
            KEY: ["A"] * 5,
            TIME: ["0", "1", "1", "2", "3"],
            # Two in one step, on both sides of the hour that is there twice.
            "seen": ["2020-10-24", "2020-10-25T02:00+02:00", "2020-10-25T03:00", "", "2020-10-27"],
        },
        dtype="str",
    )
    values, lengths = made(text, windows, ["A"])
    np.testing.assert_array_equal(values[0, :, 0], [0, 27, NAN, 73])
    (grid,) = make_grids(windows.channels)
    cells = encode_windows(values, lengths, (grid,))
    assert cells[0, :, 0].tolist() == [0, 27, grid.n_values, 73]
    table = long_table(values, lengths, windows, unit_key=KEY, units=["A"])
    assert str(table["seen"].dtype) == "datetime64[ms, Europe/Berlin]"
    written = io.StringIO(as_csv(table, windows.channels))
    again = pd.read_csv(written, dtype=str, keep_default_na=False)
    assert again["seen"].tolist()[1] == "2020-10-25T02:00:00+01:00"
    np.testing.assert_array_equal(made(again, windows, ["A"])[0], values)


# Decimals and zones


@pytest.mark.parametrize("step", [0.1, 0.2, 0.3, 0.7, 1 / 3])
def test_decimal_steps_lose_nothing(step: float) -> None:
    windows = layout("grid", length=8, step=step)
    assert pulses(windows, [f"{number * step:.12g}" for number in range(8)], list("12345678")) == list(range(1, 9))


@pytest.mark.parametrize("microseconds", [1_000, 4_000, 100_000, 1_000_000, 20_000_000])
def test_time_stamps_of_this_century_are_told_apart_by_parts_of_a_second(microseconds: int) -> None:
    step, begun = microseconds / 60e6, datetime(2026, 3, 1, 7, 59, 59, 700_000, tzinfo=UTC)
    windows = layout(
        "grid", length=9, step=step, max_gap=step, start="first", time=STAMPS, channels={"pulse": {**PULSE, "max": 99}}
    )
    for first in range(0, 3_000, 70):
        moments = [begun + timedelta(microseconds=microseconds * (first + number)) for number in range(9)]
        assert pulses(windows, [moment.isoformat() for moment in moments], list("123456789")) == list(range(1, 10))
    late = [*moments[:-1], moments[-1] + timedelta(microseconds=microseconds // 2)]
    with pytest.raises(SchemaError, match=r"windows\.max_gap"):
        pulses(windows, [moment.isoformat() for moment in late], list("123456789"))


def test_numbers_far_from_zero_are_told_apart_by_small_steps() -> None:
    windows = layout("grid", length=8, step=0.001, max_gap=0.001, start="first")
    for first in range(1_700_000_000, 1_700_000_020):
        times = [f"{first}.{number:03d}" for number in range(8)]
        assert pulses(windows, times, list("12345678")) == list(range(1, 9))


def test_a_long_table_of_decimal_steps_comes_back() -> None:
    for step, start in ((0.1, 0.3), (0.7, -0.1), (0.1, None), (0.000066667, "first")):
        time = STAMPS if start == "first" else {"column": TIME}
        channels = {"pulse": {**PULSE, "max": 99}}
        windows = layout("grid", length=24, step=step, start=start, max_gap=step, time=time, channels=channels)
        values = np.arange(24.0)[None, :, None]
        table = long_table(values, np.array([24]), windows, unit_key=KEY, units=["A"])
        text = pd.read_csv(io.StringIO(as_csv(table, windows.channels)), dtype=str, keep_default_na=False)
        np.testing.assert_array_equal(made(text, windows, ["A"])[0], values)


def test_gaps_of_decimal_times_are_within_bounds_that_they_reach() -> None:
    times = [f"{number / 10:.1f}" for number in range(0, 60, 3)]
    for rule in ({"max": 0.3}, {"min": 0.3, "max": 2}):
        found = gaps(since({"type": "continuous", **rule}, length=20), times)[1:]
        assert found == pytest.approx([0.3] * 19)
        assert all(rule.get("min", 0) <= gap <= rule["max"] for gap in found)
    with pytest.raises(SchemaError, match=r"outside min=0\.0, max=0\.3"):
        gaps(since({"type": "continuous", "max": 0.3}), ["0", "0.30001"])


def test_gaps_of_decimal_times_are_whole_where_they_should_be() -> None:
    assert alike(gaps(since({"type": "integer"}), ["3.35", "4.35", "5.35"]), [NAN, 1, 1, NAN])
    assert alike(gaps(since({"type": "integer", "min": 1, "max": 2}), ["3.35", "4.35", "5.35"]), [NAN, 1, 1, NAN])


@pytest.mark.parametrize("start", ["second", float("nan"), 1e13, True])
def test_start_is_named_as_in_the_file(start: object) -> None:
    with pytest.raises(StudyError) as refused:
        parsed({**GRID, "start": start})
    assert str(refused.value).startswith("test: windows.start=")
    assert "function" not in str(refused.value)


def test_a_zone_of_ninety_nine_minutes_is_no_time() -> None:
    with pytest.raises(SchemaError):
        gaps(BY_MINUTES, ["2025-01-01T10:00Z", "2026-01-01T00:00+05:99"])


def test_the_unit_key_cannot_be_ignored() -> None:
    with pytest.raises(StudyError):
        parsed({**GRID, "ignore": [KEY]})
