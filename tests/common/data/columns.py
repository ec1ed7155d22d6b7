"""Columns of moments that hypothesis makes up: in every unit, with clocks that jump and clocks that do not."""

from datetime import date
from typing import Any

import numpy as np
from hypothesis import strategies as st
from pydantic import TypeAdapter

from common.data.moments import UNITS, make_clock
from common.data.schema import Column, DatetimeColumn

ZONES = (
    None,
    "UTC",
    "Europe/Berlin",
    # Its days of the jump begin at 01:00.
    "America/Sao_Paulo",
    # Half an hour off, and its clock went back at one minute past midnight.
    "America/St_Johns",
    "Asia/Kolkata",
)
_COLUMN: TypeAdapter[Column] = TypeAdapter(Column)


def moment_column(**keys: Any) -> DatetimeColumn:
    """A column of moments; keys as in a study."""
    column = _COLUMN.validate_python({"type": "datetime", **keys})
    assert isinstance(column, DatetimeColumn)
    return column


@st.composite
def moment_columns(draw: st.DrawFn, *, least_special: int = 0) -> DatetimeColumn:
    """Any column of moments that a study may have, with so many special ones at least."""
    unit, timezone = draw(st.sampled_from(list(UNITS))), draw(st.sampled_from(ZONES))
    # Before 1950 some of these clocks shift by parts of an hour.
    years = (date(1, 1, 1), date(9000, 1, 1)) if timezone is None else (date(1950, 1, 1), date(2090, 1, 1))
    first = draw(st.dates(*years)).isoformat()
    clock = make_clock(first if unit == "day" or timezone is None else f"{first}T12:00", unit, timezone)
    span = draw(st.integers(least_special + 1, 30) | st.integers(1000, 30_000))
    special = draw(st.lists(st.integers(0, span), min_size=least_special, max_size=3, unique=True))

    def written(number: int) -> str:
        return clock.written(int(clock.seconds(np.array([number]))[0]))

    return moment_column(
        unit=unit,
        timezone=timezone,
        min=written(0),
        max=written(span),
        special=[written(one) for one in special],
        cells=draw(st.sampled_from([2, 16, 128])),
        missing=draw(st.booleans()),
    )
