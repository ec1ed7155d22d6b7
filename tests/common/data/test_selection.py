"""Which values are wanted: against a look at every value that a column may hold."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.data.encoding import Grid, make_grid
from common.data.selection import Selection, disjoint, parse_condition, parse_value
from common.errors import ConditionError
from tests.common.synthesis.releases import study_of

GRIDS = {name: make_grid(name, column) for name, column in study_of().columns.items()}
AGES = range(91)


def find(name: str) -> Grid:
    return GRIDS[name]


def wanted(text: str) -> Selection:
    return parse_condition(text, find)[1]


def ages_in(selection: Selection) -> set[int]:
    held = selection.holds(pd.Series(list(AGES), dtype="Int64"))
    return {age for age, is_in in zip(AGES, held.tolist(), strict=True) if is_in}


def shares_by_hand(selection: Selection, grid: Grid) -> np.ndarray:
    """Of the age column: each age is in one cell."""
    cells = grid.encode(pd.Series(list(AGES), dtype="Int64"))
    found = np.array([np.isin(np.flatnonzero(cells == cell), list(ages_in(selection))).mean() for cell in range(20)])
    return np.append(found, float(selection.missing))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("age>=65", range(65, 91)),
        ("age>65", range(66, 91)),
        ("age > 65.5", range(66, 91)),
        ("age>=65.5", range(66, 91)),
        ("age<18", range(18)),
        ("age<=18", range(19)),
        ("age<=18.9", range(19)),
        ("age<18.1", range(19)),
        ("age=7", [7]),
        ("age!=7", [*range(7), *range(8, 91)]),
        ("age=3..6", [3, 4, 5, 6]),
        ("age=2.5..6", [3, 4, 5, 6]),
        ("age=..6", range(7)),
        ("age=85..", range(85, 91)),
        ("age=85..1000", range(85, 91)),
        ("age=", []),
        ("age!=", AGES),
    ],
)
def test_a_condition_wants_what_it_says(text: str, expected: list[int]) -> None:
    selection = wanted(text)
    assert ages_in(selection) == set(expected)
    assert selection.missing == (text == "age=")
    assert np.allclose(selection.shares(), shares_by_hand(selection, GRIDS["age"]))


def test_two_decimals_are_compared_as_they_are_written() -> None:
    pay = pd.Series([0.28, 0.29, 0.3, -5.0, 5.0])
    for text, expected in (
        ("pay<=0.29", [True, True, False, True, False]),
        ("pay<0.29", [True, False, False, True, False]),
        ("pay>=0.29", [False, True, True, False, True]),
        ("pay=0.29", [False, True, False, False, False]),
        ("pay=-5", [False, False, False, True, False]),
    ):
        assert wanted(text).holds(pay).tolist() == expected


@pytest.mark.parametrize("name", ["age", "pay", "dose"])
@given(ends=st.tuples(st.floats(0.01, 0.99), st.floats(0.01, 0.99)), seed=st.integers(0, 9))
def test_what_is_drawn_is_wanted_and_in_its_cell(name: str, ends: tuple[float, float], seed: int) -> None:
    grid = GRIDS[name]
    low, high = sorted(grid.column.min + end * (grid.column.max - grid.column.min) for end in ends)  # type: ignore[union-attr]
    selection = wanted(f"{name}<={low}").either(wanted(f"{name}>={high}"))
    cells = np.repeat(np.flatnonzero(selection.shares() > 0), 5)
    drawn = pd.Series(selection.draw(cells, np.random.default_rng(seed)))
    assert selection.holds(drawn).all()
    assert (grid.encode(drawn) == cells).all()


def test_draws_are_uniform_over_what_is_wanted_of_a_cell() -> None:
    # A cell of ages 4 to 8, of which 6 is not wanted.
    selection = wanted("age!=6")
    cell = int(GRIDS["age"].encode(pd.Series([6], dtype="Int64"))[0])
    inside = [age for age in AGES if GRIDS["age"].encode(pd.Series([age], dtype="Int64"))[0] == cell and age != 6]
    drawn = selection.draw(np.full(8000, cell), np.random.default_rng(0))
    for age in inside:
        assert abs((drawn == age).mean() - 1 / len(inside)) < 0.03


def test_joining_and_crossing() -> None:
    young, old, seven = wanted("age<18"), wanted("age>=65"), wanted("age=7")
    assert ages_in(young.either(old)) == {*range(18), *range(65, 91)}
    assert ages_in(young.either(old).both(wanted("age=10..70"))) == {*range(10, 18), *range(65, 71)}
    assert young.both(old).is_empty
    assert ages_in(young.either(seven)) == set(range(18))
    red, green = wanted("colour=red"), wanted("colour=green")
    assert red.both(green).is_empty
    assert red.either(green).shares().tolist() == [1, 1, 0, 0, 0]
    assert wanted("colour!=red").shares().tolist() == [0, 1, 1, 1, 0]
    assert wanted("colour!=").shares().tolist() == [1, 1, 1, 1, 0]
    assert disjoint([young, old, wanted("age=")])
    assert not disjoint([young, old, seven])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("age", "expected a column, one of"),
        ("age=x", "age: expected a number"),
        ("age>=nan", "age: expected a finite number"),
        ("age=91", "age=91: the column holds no such value"),
        ("age=6..5", "age=6..5: the column holds no such value"),
        ("age<0", "age<0: the column holds no such value"),
        ("age=1.5", "age=1.5: the column holds no such value"),
        ("pay=0.291", "the column holds no such value"),
        ("pay=", "pay: the column has no missing values"),
        ("colour=blue", "colour=blue: no such category; there are red, green"),
        ("colour<red", "colour<: categories have no order"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(text: str, says: str) -> None:
    with pytest.raises(ConditionError) as caught:
        wanted(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_category_may_hold_what_conditions_are_made_of() -> None:
    assert parse_value("=2+3", GRIDS["colour"], "colour").shares().tolist() == [0, 0, 1, 0, 0]
    assert wanted("colour==2+3").shares().tolist() == [0, 0, 1, 0, 0]
