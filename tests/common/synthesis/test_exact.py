"""Moments and whole numbers beyond 2^53 on demand: what is asked for is delivered exactly, in the schema's dtype."""

from datetime import UTC, date, datetime
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.data.constraints import count_row_violations
from common.data.encoding import Grid, make_grid
from common.data.schema import DatetimeColumn, IntegerColumn, parse_table
from common.data.selection import Selection, parse_condition, parse_value
from common.errors import ConditionError, StudyError
from common.synthesis.synthesizer import Synthesizer
from tests.common.data.columns import moment_column
from tests.common.synthesis.releases import make_release, study_of

FAR = 2**60
COLUMNS: dict[str, Any] = {
    "admitted": {"type": "datetime", "min": "2019-01-01", "max": "2021-12-31", "missing": True},
    "seen": {
        "type": "datetime",
        "min": "2020-10-24T00:00",
        "max": "2020-10-27T00:00",
        "unit": "hour",
        "timezone": "Europe/Berlin",
        "cells": 8,
    },
    "account": {"type": "integer", "min": FAR, "max": FAR + 9999, "cells": 16},
    "all": {"type": "integer", "min": -(2**63), "max": 2**63 - 1, "cells": 16, "missing": True},
    "ill": {"type": "categorical", "categories": ["no", "yes"]},
}
STUDY = study_of(columns=COLUMNS)
SYNTHESIZER = Synthesizer(make_release(STUDY), torch.device("cpu"))
GRIDS = {name: make_grid(name, column) for name, column in STUDY.columns.items()}
BERLIN = ZoneInfo("Europe/Berlin")


def wanted(text: str) -> Selection:
    return parse_condition(text, GRIDS.__getitem__)[1]


@pytest.mark.parametrize(
    ("text", "intervals"),
    [
        ("admitted>=2020-01-01", [(365, 1095)]),
        ("admitted>2020-01-01", [(366, 1095)]),
        ("admitted<2020-01-01T12:00", [(0, 365)]),
        ("admitted>=2020-01-01T00:00:00.1", [(366, 1095)]),
        ("admitted=2019-01-02", [(1, 1)]),
        ("admitted!=2019-01-02", [(0, 0), (2, 1095)]),
        ("admitted=2019-01-02..2019-01-04", [(1, 3)]),
        ("admitted=..0001-01-01", None),
        ("admitted<=9999-12-31", [(0, 1095)]),
        # Hours that pass: the day of the jump backward has 25.
        ("seen<2020-10-25T02:00+01:00", [(0, 26)]),
        ("seen>=2020-10-26", [(49, 73)]),
        ("seen=2020-10-25T00:00Z", [(26, 26)]),
        ("account>1152921504606846976", [(FAR + 1, FAR + 9999)]),
        ("account<=1152921504606846977", [(FAR, FAR + 1)]),
        ("account=1152921504606846979.0", [(FAR + 3, FAR + 3)]),
        ("account!=1152921504606846977", [(FAR, FAR), (FAR + 2, FAR + 9999)]),
        ("all>=9223372036854775807", [(2**63 - 1, 2**63 - 1)]),
        ("all>-1e300", [(-(2**63), 2**63 - 1)]),
        ("all!=9223372036854775807", [(-(2**63), 2**63 - 2)]),
    ],
)
def test_a_condition_on_whole_numbers_is_exact(text: str, intervals: list[tuple[int, int]] | None) -> None:
    if intervals is None:
        with pytest.raises(ConditionError, match="the column holds no such value"):
            wanted(text)
        return
    assert list(wanted(text).intervals) == intervals


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("admitted>=yesterday", "admitted: expected an ISO 8601 date"),
        ("admitted>=2020-01-01T00:00Z", "admitted: an offset from UTC is written"),
        ("seen>=2020-10-25T02:00", "shows twice; write the offset"),
        ("admitted=2019-01-02T12:00", "admitted=2019-01-02T12:00: the column holds no such value"),
        ("all>9223372036854775807", "the column holds no such value"),
        ("account=1e400", "account: expected a finite number"),
    ],
)
def test_what_cannot_be_asked_for_is_said_in_one_line(text: str, says: str) -> None:
    with pytest.raises(ConditionError) as caught:
        wanted(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (date(2020, 2, 29), "2020-02-29"),
        ((datetime(2020, 2, 29), None), "2020-02-29.."),  # noqa: DTZ001 (the column has no zone)
        (pd.Timestamp("2020-02-29"), "2020-02-29"),
        (np.datetime64("2020-02-29"), "2020-02-29"),
        ([None, date(2020, 1, 1)], None),
    ],
)
def test_moments_of_python_are_understood(value: Any, text: str | None) -> None:
    rows = SYNTHESIZER.sample(300, conditions={"admitted": value}, seed=0)
    if text is None:
        assert set(rows.admitted.dropna()) == {pd.Timestamp("2020-01-01")}
        assert rows.admitted.isna().any()
        return
    pd.testing.assert_frame_equal(rows, SYNTHESIZER.sample(300, conditions=[f"admitted={text}"], seed=0))
    assert (rows.admitted >= pd.Timestamp("2020-02-29")).all()


def test_moments_of_python_have_their_zone() -> None:
    for last in (datetime(2020, 10, 25, 2, tzinfo=BERLIN), datetime(2020, 10, 25, tzinfo=UTC)):
        rows = SYNTHESIZER.sample(500, conditions={"seen": (None, last)}, seed=0)
        assert str(rows.seen.dtype) == "datetime64[ms, Europe/Berlin]"
        assert (rows.seen <= last).all()
        assert (rows.seen == last).any()


def test_proportions_of_moments_are_delivered_to_a_row() -> None:
    asked = ["admitted=..2019-12-31:0.25,2020-01-01..:0.75", "seen=..2020-10-25T00:00:0.5,2020-10-25T01:00..:0.5"]
    rows = SYNTHESIZER.sample(400, proportions=asked, seed=0)
    assert (rows.admitted < pd.Timestamp("2020-01-01")).sum() == 100
    assert (rows.seen <= datetime(2020, 10, 25, tzinfo=BERLIN)).sum() == 200


def test_rows_have_the_dtypes_of_the_schema_with_and_without_conditions() -> None:
    for asked in ([], ["admitted>=2020-01-01", "seen!=2020-10-25", "account<1152921504606850000", "all>0"]):
        rows = SYNTHESIZER.sample(2000, conditions=asked, seed=1)
        assert [str(dtype) for dtype in rows.dtypes] == [
            "datetime64[ms]",
            "datetime64[ms, Europe/Berlin]",
            "int64",
            "Int64",
            "category",
        ]
        assert rows.account.between(FAR, FAR + 9999).all()
        # A float would hold multiples of 128 alone.
        assert rows.account.nunique() > 1000
    assert (rows.account < 1152921504606850000).all()
    assert (rows["all"] > 0).all()
    assert (rows["all"] % 1024 != 0).mean() > 0.9


@pytest.mark.parametrize("name", ["admitted", "seen", "account", "all"])
@given(ends=st.tuples(st.floats(0, 1), st.floats(0, 1)), seed=st.integers(0, 9))
def test_what_is_drawn_is_wanted_and_in_its_cell(name: str, ends: tuple[float, float], seed: int) -> None:
    grid = GRIDS[name]
    column = grid.column
    assert isinstance(column, IntegerColumn | DatetimeColumn)
    low, high = sorted(column.min + int(end * 1000) * (column.max - column.min) // 1000 for end in ends)
    selection = Selection(grid, None, ((column.min, low), (high, column.max)), missing=False)
    cells = np.repeat(np.flatnonzero(selection.shares() > 0), 5)
    numbers = selection.draw(cells, np.random.default_rng(seed))
    assert numbers.dtype == np.int64
    drawn = grid.typed(numbers, np.zeros(len(numbers), dtype=bool))
    assert selection.holds(drawn).all()
    assert (grid.encode(drawn) == cells).all()
    assert column.to_whole(drawn).tolist() == numbers.tolist()


def shares_by_hand(selection: Selection, grid: Grid) -> list[float]:
    """Of a column with few enough numbers to look at each."""
    column = grid.column
    assert isinstance(column, IntegerColumn | DatetimeColumn)
    numbers = np.array(range(column.min, column.max + 1), dtype=np.int64)
    values = grid.typed(numbers, np.zeros(len(numbers), dtype=bool))
    cells, held = grid.encode(values), selection.holds(values)
    return [float(held[cells == cell].mean()) for cell in range(grid.n_values)]


@pytest.mark.parametrize(
    "text",
    ["admitted>=2020-05-05", "admitted!=2019-06-06", "seen=2020-10-25..2020-10-26", "account>1152921504606850000"],
)
def test_shares_of_cells_are_those_that_counting_finds(text: str) -> None:
    selection = wanted(text)
    found = selection.shares()[: selection.grid.n_values]
    assert found.tolist() == pytest.approx(shares_by_hand(selection, selection.grid))


def test_a_special_moment_is_asked_for_and_delivered() -> None:
    rule = moment_column(min="2019-01-01", max="9999-12-31", special=["9999-12-31"])
    grid = make_grid("x", rule)
    never = parse_value("9999-12-31", grid, "x")
    assert np.flatnonzero(never.shares()).tolist() == [grid.n_values - 1]
    drawn = grid.decode(np.full(3, grid.n_values - 1), np.random.default_rng(0))
    assert never.holds(drawn).all()
    assert drawn.tolist() == [datetime(9999, 12, 31)] * 3  # noqa: DTZ001 (the column has no zone)


# --- constraints


STAYS: dict[str, Any] = {
    name: {
        "type": "datetime",
        "min": "2020-10-20",
        "max": last,
        "timezone": "Europe/Berlin",
        "cells": cells,
        "missing": missing,
    }
    for name, last, cells, missing in (("admitted", "2020-10-30", 16, False), ("left", "2020-12-30", 8, True))
}
NUMBERS: dict[str, Any] = {
    name: {"type": "integer", "min": FAR, "max": FAR + 4000, "cells": 16, "missing": missing}
    for name, missing in (("first", False), ("last", True))
}
ORDERED = [
    {"kind": "ordered", "columns": ["admitted", "left"]},
    {"kind": "ordered", "columns": ["first", "last"], "strict": True},
    {"kind": "implies", "if": ["admitted>=2020-10-25"], "then": ["ill=yes"]},
]
TIED = study_of(columns={**STAYS, **NUMBERS, "ill": COLUMNS["ill"]}, constraints=ORDERED)


def test_constraints_hold_of_moments_and_of_numbers_that_floats_skip() -> None:
    release = make_release(TIED)
    synthesizer = Synthesizer(release, torch.device("cpu"))
    for rows in (
        synthesizer.sample(2000, seed=0),
        synthesizer.sample(2000, conditions=["left<=2020-11-01", "first>1152921504606847976"], seed=0),
    ):
        assert str(rows.left.dtype) == "datetime64[ms, Europe/Berlin]"
        assert (rows.left.isna() | (rows.left >= rows.admitted)).all()
        assert (rows["last"].isna() | (rows["last"] > rows["first"])).all()
        assert (rows.ill[rows.admitted >= pd.Timestamp("2020-10-25", tz="Europe/Berlin")] == "yes").all()
        assert not any(count_row_violations(rows, TIED.constraints, TIED.columns).values())


def test_violations_are_counted_exactly() -> None:
    rows = parse_table(
        pd.DataFrame(
            {
                "admitted": ["2020-10-25", "2020-10-25", "2020-10-21", "2020-10-21"],
                "left": ["2020-10-25", "2020-10-24", "", "2020-12-01"],
                # In floats all four pairs are equal.
                "first": [str(FAR), str(FAR + 1), str(FAR + 1), str(FAR)],
                "last": [str(FAR), str(FAR), str(FAR + 2), ""],
                "ill": ["yes", "no", "no", "no"],
            },
            dtype="str",
        ),
        TIED.columns,
    )
    assert list(count_row_violations(rows, TIED.constraints, TIED.columns).values()) == [1, 2, 1]


@pytest.mark.parametrize(
    ("constraint", "says"),
    [
        ({"kind": "ordered", "columns": ["admitted", "first"]}, "moments with the same min, unit and timezone"),
        ({"kind": "ordered", "columns": ["admitted", "other"]}, "moments with the same min, unit and timezone"),
        ({"kind": "sum", "total": "admitted", "parts": ["first", "left"]}, "expected numeric columns"),
    ],
)
def test_moments_of_different_clocks_are_not_compared_and_none_are_added(constraint: Any, says: str) -> None:
    other = {**STAYS["left"], "min": "2020-10-21"}
    with pytest.raises(StudyError, match=says):
        study_of(columns={**STAYS, **NUMBERS, "other": other, "ill": COLUMNS["ill"]}, constraints=[constraint])
