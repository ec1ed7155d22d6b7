"""Moments as numbers: on clocks that jump, at both ends of the calendar, and what is refused rather than guessed at."""

from datetime import datetime
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from common.data.moments import UNITS, make_clock
from common.data.schema import Column, DatetimeColumn, parse_table
from common.errors import ExitCode, SchemaError
from tests.common.data.columns import moment_column, moment_columns

DAY = moment_column(min="2020-01-01", max="2020-12-31")
MINUTE = moment_column(min="2020-01-01T00:00", max="2020-12-31T23:59", unit="minute")
BERLIN = moment_column(min="2020-01-01", max="2020-12-31", timezone="Europe/Berlin")
HOURS = moment_column(min="2020-01-01T00:00", max="2020-12-31T23:00", unit="hour", timezone="Europe/Berlin")


def parse(cells: list[str], rule: DatetimeColumn) -> pd.Series:
    return parse_table(pd.DataFrame({"x": cells}, dtype="str"), {"x": rule})["x"]


def numbers(cells: list[str], rule: DatetimeColumn) -> list[int]:
    return rule.to_whole(parse(cells, rule)).tolist()


def refuse(cells: list[str], rule: DatetimeColumn) -> tuple[ExitCode, str]:
    """The exit code and the line, which names the column and holds no cell."""
    with pytest.raises(SchemaError) as refused:
        parse(cells, rule)
    message = str(refused.value)
    assert message.startswith("x: ")
    assert "\n" not in message
    assert not [cell for cell in cells if cell and cell in message]
    return refused.value.code, message


# --- what is read


@pytest.mark.parametrize(
    ("rule", "cell", "number"),
    [
        (DAY, "2020-01-01", 0),
        (DAY, "2020-03-01", 60),
        (DAY, "2020-12-31T00:00:00.000000000", 365),
        (DAY, " 2020-01-02 00:00 ", 1),
        (MINUTE, "2020-01-01", 0),
        (MINUTE, "2020-01-01T01:01", 61),
        (MINUTE, "2020-01-01 01:01:00.0", 61),
        # 23 hours later comes the day after the jump forward, 25 after the one backward.
        (BERLIN, "2020-03-30", 89),
        (BERLIN, "2020-03-29T22:00Z", 89),
        (BERLIN, "2020-10-26T00:00:00+01:00", 299),
        (BERLIN, "2020-10-25T23:00:00-00:00", 299),
        (HOURS, "2020-03-29T01:00", 88 * 24 + 1),
        (HOURS, "2020-03-29T03:00", 88 * 24 + 2),
        (HOURS, "2020-10-25T02:00+02:00", 298 * 24 + 1),
        (HOURS, "2020-10-25T02:00+0100", 298 * 24 + 2),
        (HOURS, "2020-10-25T02:00+01", 298 * 24 + 2),
        (HOURS, "2020-01-01T05:30:00+05:30:00", 1),
    ],
)
def test_a_moment_is_a_number_of_units_since_the_minimum(rule: DatetimeColumn, cell: str, number: int) -> None:
    assert numbers([cell], rule) == [number]


@pytest.mark.parametrize(
    ("rule", "cell", "says"),
    [
        (DAY, "2020-1-1", "ISO 8601"),
        (DAY, "20200101", "ISO 8601"),
        (DAY, "01.02.2020", "ISO 8601"),
        (DAY, "2020-02-30", "ISO 8601"),
        (DAY, "2020-W01-1", "ISO 8601"),
        (DAY, "2020-01-01T24:00", "ISO 8601"),
        (DAY, "2020-01-01T00:00.5", "ISO 8601"),
        (DAY, "2020-06-01x", "ISO 8601"),
        (DAY, "\u0662\u0660\u0662\u0660-01-01", "ISO 8601"),
        (DAY, "43831", "ISO 8601"),
        (DAY, "2020-06-01T00:00Z", "no timezone"),
        (DAY, "2020-06-01T00:00+02:00", "no timezone"),
        (DAY, "2020-06-01T00:00:01", "not a whole day"),
        (MINUTE, "2020-06-01T00:00:00.000000001", "not a whole minute"),
        (BERLIN, "2020-06-01T00:00Z", "not a whole day"),
        (BERLIN, "2020-06-01T12:00", "not a whole day"),
        (HOURS, "2020-03-29T02:00", "leaves out"),
        (HOURS, "2020-03-29T02:59:59", "leaves out"),
        (HOURS, "2020-10-25T02:00", "shows twice; write the offset"),
        (HOURS, "2020-06-01T00:00+05:30", "not a whole hour"),
    ],
)
def test_what_is_not_exactly_a_moment_of_the_column_is_refused(rule: DatetimeColumn, cell: str, says: str) -> None:
    code, message = refuse(["2020-05-05", cell], rule)
    assert code == ExitCode.NOT_A_TIME
    assert says in message


def test_a_finer_moment_is_floored_where_the_study_says_so() -> None:
    floored = {name: rule.model_copy(update={"finer": "floor"}) for name, rule in (("day", DAY), ("zoned", BERLIN))}
    assert numbers(["2020-06-01T23:59:59.9"], floored["day"]) == numbers(["2020-06-01"], DAY)
    # The last second of the day that has 25 hours, and the first of the next.
    assert numbers(["2020-10-25T22:59:59Z", "2020-10-25T23:00:00Z"], floored["zoned"]) == [298, 299]
    assert numbers(["2020-12-31T23:59:59"], floored["zoned"]) == [365]


@pytest.mark.parametrize("rule", [DAY, BERLIN, HOURS, MINUTE])
def test_what_is_beyond_the_bounds_is_refused_or_clipped(rule: DatetimeColumn) -> None:
    cells = ["2019-12-31", "2021-01-01", "0001-01-01", "9999-12-31"]
    for cell in cells:
        code, message = refuse(["2020-05-05", cell], rule)
        assert code == ExitCode.OUT_OF_BOUNDS
        assert f"min={rule.first}, max={rule.last}" in message
    clipped = rule.model_copy(update={"outside": "clip"})
    assert numbers(cells, clipped) == [0, rule.max, 0, rule.max]


@pytest.mark.parametrize(
    ("rule", "dtype"), [(DAY, "datetime64[ms]"), (MINUTE, "datetime64[ms]"), (BERLIN, "datetime64[ms, Europe/Berlin]")]
)
@pytest.mark.parametrize("cells", [[], [""], ["", "2020-02-02"]])
def test_the_dtype_is_the_schemas_whatever_the_table_holds(rule: DatetimeColumn, dtype: str, cells: list[str]) -> None:
    parsed = parse(cells, rule.model_copy(update={"missing": True}))
    assert str(parsed.dtype) == dtype
    assert parsed.dtype == rule.dtype
    assert parsed.isna().tolist() == [not cell for cell in cells]
    if "" in cells:
        assert refuse(cells, rule)[0] == ExitCode.MISSING_NOT_ALLOWED


# --- days of a zone


@pytest.mark.parametrize(
    ("timezone", "day", "begins"),
    [
        ("Europe/Berlin", "2020-03-29", "2020-03-29T00:00:00+01:00"),
        # Midnight is skipped; it is skipped and half an hour before it too; it comes twice; it comes twice, and in
        # between is yesterday.
        ("America/Sao_Paulo", "2018-11-04", "2018-11-04T01:00:00-02:00"),
        ("America/Toronto", "1919-03-31", "1919-03-31T00:30:00-04:00"),
        ("America/Havana", "2022-11-06", "2022-11-06T00:00:00-04:00"),
        ("America/St_Johns", "2006-10-29", "2006-10-29T00:00:00-02:30"),
        # The day after the one that was left out.
        ("Pacific/Apia", "2011-12-31", "2011-12-31T00:00:00+14:00"),
        ("Europe/Berlin", "1890-01-01", "1890-01-01T00:00:00+00:53:28"),
    ],
)
def test_a_day_of_a_zone_is_its_first_moment(timezone: str, day: str, begins: str) -> None:
    clock = make_clock(day, "day", timezone)
    assert clock.written(clock.first) == begins
    assert clock.position(day) == clock.position(begins) == 0
    assert clock.numbers(clock.seconds(np.arange(4))).tolist() == [0, 1, 2, 3]


@given(moment_columns(), st.data())
def test_numbers_and_moments_are_one_to_one_and_in_order(rule: DatetimeColumn, data: st.DataObject) -> None:
    chosen = np.array(sorted(data.draw(st.sets(st.integers(0, rule.max), min_size=1, max_size=8))))
    seconds = rule.clock.seconds(chosen)
    assert (np.diff(seconds) > 0).all()
    assert rule.clock.numbers(seconds).tolist() == chosen.tolist()
    assert [rule.clock.position(rule.clock.written(one)) for one in seconds.tolist()] == chosen.tolist()


@given(moment_columns().filter(lambda rule: rule.timezone is not None), st.data())
def test_a_zones_calendar_is_that_of_python(rule: DatetimeColumn, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, rule.max))
    second = int(rule.clock.seconds(np.array([number]))[0])
    if rule.unit != "day":
        assert second == rule.clock.first + number * UNITS[rule.unit]
        return
    zone = ZoneInfo(str(rule.timezone))
    start, here, before = (datetime.fromtimestamp(one, tz=zone) for one in (rule.clock.first, second, second - 1))
    assert (here.date() - start.date()).days == number
    assert before.date() < here.date()


def test_a_position_between_two_units_lies_between_their_numbers() -> None:
    assert DAY.clock.position("2020-01-02T06:00") == Fraction(5, 4)
    assert 1 < BERLIN.clock.position("2020-01-02T00:00:00.1") < 2
    assert HOURS.clock.position("2020-01-01T00:30") == Fraction(1, 2)


# --- the schema


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"min": "2020-01-01T01:00"}, "min: expected a whole day"),
        ({"max": "2020-12-31T00:01", "unit": "hour"}, "max: expected a whole hour"),
        ({"max": "2020-01-01"}, "max=2020-01-01: expected > min=2020-01-01"),
        ({"max": "2019-01-01"}, "expected > min"),
        ({"min": "1.1.2020"}, "min: expected an ISO 8601 date"),
        ({"max": "2020-12-31T00:00Z"}, "max: an offset from UTC is written"),
        ({"special": ["2019-12-31"]}, "special: expected values from min to max"),
        ({"special": ["2020-05-05", "2020-05-05T00:00"]}, "special: a value is listed twice"),
        ({"timezone": "Europe/Bonn"}, "timezone: expected a zone of the IANA database"),
        ({"timezone": "../../etc/passwd"}, "timezone: expected a zone of the IANA database"),
        ({"timezone": "localtime"}, "timezone: expected a zone of the IANA database"),
        ({"timezone": "UTC", "min": "0001-01-01"}, "expected a year from 2 to 9998"),
        ({"timezone": "UTC", "max": "9999-12-31"}, "expected years from 2 to 9998"),
        ({"timezone": "Pacific/Apia", "min": "2011-01-01"}, "the zone leaves out a day"),
        ({"timezone": "Pacific/Apia", "min": "2011-12-30"}, "leaves this day out"),
        ({"timezone": "Australia/Lord_Howe", "unit": "hour"}, "shifts by a part of the unit"),
        ({"unit": "week"}, "'day', 'hour', 'minute' or 'second'"),
        ({"scale": "log"}, "Extra inputs"),
    ],
)
def test_a_column_that_cannot_be_is_refused(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        moment_column(**{"min": "2020-01-01", "max": "2020-12-31", **keys})


def test_what_a_unit_of_hours_cannot_a_smaller_one_can() -> None:
    rule = moment_column(min="2020-01-01", max="2020-12-31", unit="minute", timezone="Australia/Lord_Howe")
    assert numbers(["2020-04-05T02:00+10:30"], rule) == numbers(["2020-04-05T01:30+10:00"], rule) != [0]


@given(moment_columns(least_special=1))
def test_a_study_that_was_written_reads_the_same(rule: DatetimeColumn) -> None:
    text = rule.model_dump_json(by_alias=True)
    adapter: TypeAdapter[Column] = TypeAdapter(Column)
    again = adapter.validate_json(text)
    assert again.model_dump_json(by_alias=True) == text
    assert isinstance(again, DatetimeColumn)
    assert (again.clock, again.max, again.special) == (rule.clock, rule.max, rule.special)


def test_columns_that_mean_the_same_are_written_alike() -> None:
    one = moment_column(min="2020-01-01", max="2020-12-31T00:00", timezone="Europe/Berlin")
    other = moment_column(min="2019-12-31T23:00Z", max="2020-12-31", timezone="Europe/Berlin")
    assert one.model_dump_json(by_alias=True) == other.model_dump_json(by_alias=True)
