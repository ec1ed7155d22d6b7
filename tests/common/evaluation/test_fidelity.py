"""Total variation distances against a slow oracle, and at the ends of their range."""

from collections import Counter
from collections.abc import Callable, Hashable
from itertools import combinations
from random import Random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.schema import CategoricalColumn, parse_table
from common.evaluation.fidelity import Fidelity, measure_fidelity
from common.study import Study, parse_study

STUDY: Study = parse_study(
    {
        "name": "toy",
        "label": {"column": "ill", "positive": "yes"},
        "columns": {
            "colour": {"type": "categorical", "categories": ["red", "green", "blue"], "missing": True},
            "age": {"type": "integer", "min": 0, "max": 100, "missing": True},
            "amount": {"type": "continuous", "min": -1000, "max": 1000, "missing": True},
            "ill": {"type": "categorical", "categories": ["no", "yes"]},
        },
        "privacy": {"epsilon": 1, "delta": 1e-6},
    },
    source="test",
)

Row = tuple[str, str, str, str]


def parse(rows: list[Row]) -> pd.DataFrame:
    return parse_table(pd.DataFrame(rows, columns=list(STUDY.columns), dtype="str"), STUDY.columns)


def draw(n: int, seed: int) -> pd.DataFrame:
    """Age follows colour, amount follows age, the label follows amount."""
    generator = np.random.default_rng(seed)
    colour = generator.integers(0, 3, n)
    age = 30 * colour + generator.integers(0, 30, n)
    amount = np.round(5.0 * age + generator.normal(0, 20, n), 2)
    ill = np.where(amount > 200, "yes", "no")
    names = np.array(["red", "green", "blue"])[colour]
    return parse([tuple(map(str, row)) for row in zip(names, age, amount, ill, strict=True)])  # type: ignore[misc]


def naive_cell(name: str, reference: pd.DataFrame) -> Callable[[object], Hashable]:
    """Which cell a value is in, one value at a time, from the definition."""
    if isinstance(STUDY.columns[name], CategoricalColumn):
        return lambda value: "missing" if pd.isna(value) else str(value)  # type: ignore[call-overload]
    known = [float(value) for value in reference[name] if not pd.isna(value)]
    heavy = {value for value in known if 10 * known.count(value) >= len(known)}
    deciles = {
        min(value for value in known if 10 * sum(other <= value for other in known) >= tenth * len(known))
        for tenth in range(1, 10)
        if known
    }

    def cell(value: object) -> Hashable:
        if pd.isna(value):  # type: ignore[call-overload]
            return "missing"
        number = float(value)  # type: ignore[arg-type]
        return number in heavy, sum(edge <= number for edge in deciles | heavy)

    return cell


def naive_distance(names: tuple[str, ...], first: pd.DataFrame, second: pd.DataFrame, reference: pd.DataFrame) -> float:
    cells = [naive_cell(name, reference) for name in names]
    one, two = (
        Counter(
            tuple(cell(value) for cell, value in zip(cells, row, strict=True))
            for row in table[list(names)].itertuples(index=False)
        )
        for table in (first, second)
    )
    return sum(abs(one[key] / len(first) - two[key] / len(second)) for key in one | two) / 2


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["red", "green", "blue", ""]),
        st.one_of(st.just(""), st.integers(0, 100).map(str), st.integers(0, 4).map(str)),
        st.one_of(st.just(""), st.just("0"), st.floats(-1000, 1000, width=16).map(str)),
        st.sampled_from(["no", "yes"]),
    ),
    min_size=1,
    max_size=25,
).map(parse)


@settings(max_examples=40, deadline=None)
@given(ROWS, ROWS, ROWS)
def test_a_naive_oracle_agrees(first: pd.DataFrame, second: pd.DataFrame, reference: pd.DataFrame) -> None:
    measured = measure_fidelity(first, second, STUDY, edges_from=reference)
    one_way = {name: naive_distance((name,), first, second, reference) for name in STUDY.columns}
    two_way = [naive_distance(pair, first, second, reference) for pair in combinations(STUDY.columns, 2)]
    assert measured.columns == pytest.approx(one_way)
    assert measured.one_way_mean == pytest.approx(np.mean(list(one_way.values())))
    assert measured.one_way_max == pytest.approx(max(one_way.values()))
    assert measured.two_way_mean == pytest.approx(np.mean(two_way))
    assert measured.two_way_max == pytest.approx(max(two_way))


@settings(max_examples=20, deadline=None)
@given(ROWS, ROWS)
def test_it_is_symmetric_and_no_pair_is_below_its_columns(first: pd.DataFrame, second: pd.DataFrame) -> None:
    there = measure_fidelity(first, second, STUDY, edges_from=first)
    assert there == measure_fidelity(second, first, STUDY, edges_from=first)
    assert there.two_way_max is not None
    assert there.one_way_max is not None
    assert there.two_way_max >= there.one_way_max - 1e-12
    assert list(there.columns) == list(STUDY.columns)


@settings(max_examples=20, deadline=None)
@given(ROWS, st.randoms(use_true_random=False))
def test_a_table_has_distance_zero_to_itself_in_any_order(table: pd.DataFrame, random: Random) -> None:
    order = list(range(len(table)))
    random.shuffle(order)
    measured = measure_fidelity(table.iloc[order], table, STUDY, edges_from=table)
    assert measured == Fidelity(0.0, 0.0, 0.0, 0.0, dict.fromkeys(STUDY.columns, 0.0))


def test_tables_with_no_cell_in_common_have_distance_one() -> None:
    first = parse([("red", "1", "-5", "no")] * 3)
    second = parse([("blue", "50", "70.5", "yes"), ("green", "", "", "yes")])
    measured = measure_fidelity(first, second, STUDY, edges_from=first)
    assert measured == Fidelity(1.0, 1.0, 1.0, 1.0, dict.fromkeys(STUDY.columns, 1.0))


def test_shuffled_columns_keep_one_way_tables_and_lose_two_way_ones() -> None:
    real, other = draw(2000, 1), draw(2000, 2)
    generator = np.random.default_rng(3)
    shuffled = pd.DataFrame({name: real[name].array[generator.permutation(len(real))] for name in real})
    measured = measure_fidelity(shuffled, real, STUDY, edges_from=real)
    floor = measure_fidelity(other, real, STUDY, edges_from=real)
    assert measured.one_way_max == 0
    assert measured.two_way_mean is not None
    assert floor.two_way_mean is not None
    assert measured.two_way_mean > 0.3
    assert 0 < floor.two_way_mean < 0.15


def test_a_value_that_a_tenth_shares_is_a_cell_of_its_own() -> None:
    real = parse([("red", str(age), "0", "no") for age in [7] * 10 + list(range(10, 100))])
    # Each moves one value across one edge of the cell {7}: a step below, a step above.
    for beside in (6, 8):
        moved = parse([("red", str(age), "0", "no") for age in [beside] + [7] * 9 + list(range(10, 100))])
        assert measure_fidelity(moved, real, STUDY, edges_from=real).columns["age"] == pytest.approx(0.01)


def test_the_largest_value_stands_alone_too_when_a_tenth_shares_it() -> None:
    reference = parse([("red", "0", str(amount), "no") for amount in range(10)])
    beside, largest = parse([("red", "0", "8.5", "no")]), parse([("red", "0", "9", "no")])
    assert measure_fidelity(beside, largest, STUDY, edges_from=reference).columns["amount"] == 1


def test_a_decile_begins_the_cell_that_follows_it() -> None:
    reference = parse([("red", str(age), "0", "no") for age in range(1, 101)])
    # A tenth of the reference is at or below 10, two tenths at or below 20, and so on.
    for age in range(1, 100):
        first, second = (parse([("red", str(number), "0", "no")]) for number in (age, age + 1))
        crosses = (age + 1) % 10 == 0 and age + 1 < 100
        assert measure_fidelity(first, second, STUDY, edges_from=reference).columns["age"] == crosses


def test_both_tables_are_cut_at_the_edges_of_the_reference() -> None:
    coarse = parse([("red", str(age), "0", "no") for age in range(0, 100, 10)])
    first = parse([("red", str(age), "0", "no") for age in range(11, 20)])
    second = parse([("red", "15", "0", "no")])
    assert measure_fidelity(first, second, STUDY, edges_from=coarse).columns["age"] == 0
    assert measure_fidelity(first, second, STUDY, edges_from=first).columns["age"] > 0.8


def test_missing_is_a_cell_of_its_own_in_every_type_of_column() -> None:
    full = parse([("red", "1", "1.5", "no")] * 4)
    holes = parse([("red", "1", "1.5", "no")] * 3 + [("", "", "", "no")])
    measured = measure_fidelity(holes, full, STUDY, edges_from=full)
    assert measured.columns == {"colour": 0.25, "age": 0.25, "amount": 0.25, "ill": 0.0}


def test_a_reference_column_that_is_all_missing_leaves_one_cell_for_values() -> None:
    nothing = parse([("red", "", "", "no")] * 2)
    first, second = parse([("red", "1", "1.5", "no")]), parse([("red", "99", "-7", "no")])
    assert measure_fidelity(first, second, STUDY, edges_from=nothing).one_way_max == 0
    assert measure_fidelity(first, nothing, STUDY, edges_from=nothing).columns["age"] == 1


@pytest.mark.parametrize("empty", ["synthetic", "real", "edges_from"])
def test_a_table_without_rows_gives_none_and_the_reason(empty: str) -> None:
    table = draw(5, 1)
    tables = dict.fromkeys(("synthetic", "real", "edges_from"), table) | {empty: table.iloc[:0]}
    measured = measure_fidelity(tables["synthetic"], tables["real"], STUDY, edges_from=tables["edges_from"])
    assert measured == Fidelity(reason=f"{empty}: the table has no rows")


def test_figures_are_plain_floats() -> None:
    measured = measure_fidelity(draw(50, 1), draw(60, 2), STUDY, edges_from=draw(50, 1))
    figures = [measured.one_way_mean, measured.one_way_max, measured.two_way_mean, measured.two_way_max]
    assert {type(figure) for figure in (*figures, *measured.columns.values())} == {float}
