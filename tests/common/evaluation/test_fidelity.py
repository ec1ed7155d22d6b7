"""Total variation distances against a slow oracle, and at the ends of their range."""

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import replace
from itertools import combinations
from random import Random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.schema import CategoricalColumn, IntegerColumn, parse_table
from common.data.windows import WindowedTable
from common.evaluation.fidelity import Fidelity, count_violations, count_window_violations, measure_fidelity
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
    there, back = (measure_fidelity(*tables, STUDY, edges_from=first) for tables in ((first, second), (second, first)))
    # Which categories of the one the other holds is not symmetric.
    assert replace(there, rare_recall=None, reason=None) == replace(back, rare_recall=None, reason=None)
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
    nothing = dict.fromkeys(STUDY.columns, 0.0)
    assert replace(measured, rare_recall=None, correlation_mean=None, correlation_max=None, reason=None) == Fidelity(
        *(0.0, 0.0, 0.0, 0.0, nothing),
        missing_mean=0.0,
        missing_max=0.0,
        missing_pattern=0.0,
        missing=nothing,
        violations=0,
    )
    assert measured.rare_recall in (None, 1.0)
    assert measured.correlation_max in (None, pytest.approx(0.0, abs=1e-9))


def test_tables_with_no_cell_in_common_have_distance_one() -> None:
    first = parse([("red", "1", "-5", "no")] * 3)
    second = parse([("blue", "50", "70.5", "yes"), ("green", "", "", "yes")])
    measured = measure_fidelity(first, second, STUDY, edges_from=first)
    distances = [measured.one_way_mean, measured.one_way_max, measured.two_way_mean, measured.two_way_max]
    assert distances == [1.0, 1.0, 1.0, 1.0]
    assert measured.columns == dict.fromkeys(STUDY.columns, 1.0)


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


# --- what is missing


def test_missing_shares_and_patterns_are_those_of_the_definition() -> None:
    full, holes = ("red", "1", "1.5", "no"), ("", "1", "", "no")
    first = parse([full, full, holes, holes])
    second = parse(
        [full, full, full, full, ("", "1", "1.5", "no"), ("", "1", "1.5", "no"), full, ("red", "", "2", "no")]
    )
    measured = measure_fidelity(first, second, STUDY, edges_from=first)
    # Shares of missing: colour 1/2 and 1/4, age 0 and 1/8, amount 1/2 and 0.
    assert measured.missing == {"colour": 0.25, "age": 0.125, "amount": 0.5, "ill": 0.0}
    assert (measured.missing_mean, measured.missing_max) == (0.875 / 4, 0.5)
    # Patterns: none 1/2 and 5/8; colour and amount 1/2 and 0; colour 0 and 2/8; age 0 and 1/8.
    assert measured.missing_pattern == 0.5


def test_missing_values_that_go_together_in_one_table_alone_show_in_the_pattern() -> None:
    together = parse([("", "", "1", "no"), ("red", "1", "1", "no")])
    apart = parse([("", "1", "1", "no"), ("red", "", "1", "no")])
    measured = measure_fidelity(together, apart, STUDY, edges_from=apart)
    assert (measured.missing_max, measured.missing_pattern) == (0.0, 1.0)


# --- correlations


def test_correlations_are_of_the_rows_that_have_both() -> None:
    first = parse([("red", age, amount, "no") for age, amount in zip("1234", "2468", strict=True)])
    second = parse([("red", age, amount, "no") for age, amount in zip("1234", "8642", strict=True)])
    torn = parse(
        [*[("red", "1", "2", "no"), ("red", "2", "4", "no")], ("red", "", "-900", "no"), ("red", "90", "", "no")]
    )
    assert measure_fidelity(first, second, STUDY, edges_from=first).correlation_max == pytest.approx(2.0)
    assert measure_fidelity(first, torn, STUDY, edges_from=first).correlation_max == pytest.approx(0.0, abs=1e-12)


def test_correlations_are_on_the_scale_of_the_schema() -> None:
    study = parse_study(
        {
            "name": "toy",
            "label": {"column": "ill", "positive": "yes"},
            "columns": {
                "dose": {"type": "continuous", "min": 0, "max": 1e6, "scale": "log"},
                "age": {"type": "integer", "min": 0, "max": 100},
                "size": {"type": "integer", "min": 0, "max": 100},
                "ill": {"type": "categorical", "categories": ["no", "yes"]},
            },
            "privacy": {"epsilon": 1, "delta": 1e-6},
        },
        source="test",
    )
    generator = np.random.default_rng(0)
    tables = []
    for sign in (1, -1):
        age, size = generator.integers(0, 100, (2, 400))
        dose = np.expm1(sign * age / 20 + 5)
        text = {"dose": dose.astype(str), "age": age.astype(str), "size": size.astype(str), "ill": ["no", "yes"] * 200}
        tables.append(parse_table(pd.DataFrame(text, dtype="str"), study.columns))
    logs = [np.log1p(table["dose"].to_numpy()) for table in tables]
    pairs = [
        [
            np.corrcoef(log, table["age"])[0, 1],
            np.corrcoef(log, table["size"])[0, 1],
            np.corrcoef(table["age"], table["size"])[0, 1],
        ]
        for log, table in zip(logs, tables, strict=True)
    ]
    expected = np.abs(np.subtract(*pairs))
    measured = measure_fidelity(*tables, study, edges_from=tables[0])
    assert measured.correlation_mean == pytest.approx(float(expected.mean()))
    assert measured.correlation_max == pytest.approx(float(expected.max()))
    assert expected.max() > 1.9


def test_a_column_that_is_constant_in_one_table_has_no_correlation_there() -> None:
    varies = parse([("red", age, amount, "no") for age, amount in zip("1234", "2468", strict=True)])
    constant = parse([("red", age, "0.3", "no") for age in "1234"])
    assert measure_fidelity(constant, varies, STUDY, edges_from=varies).correlation_max == pytest.approx(1.0)
    neither = measure_fidelity(constant, constant, STUDY, edges_from=varies)
    assert neither.correlation_mean is None
    assert neither.correlation_max is None
    assert neither.reason is not None
    assert "correlation: no two numeric columns vary" in neither.reason


# --- rare categories


def colours(**counts: int) -> pd.DataFrame:
    return parse([(name, "1", "1", "no") for name, count in counts.items() for _ in range(count)])


def test_rare_recall_counts_the_categories_that_should_be_there() -> None:
    real = colours(red=180, green=10, blue=9)
    # Red, green and the label's "no" are looked for; blue is too rare.
    for made, found in ((colours(red=199), 2 / 3), (colours(red=198, green=1), 1.0), (colours(blue=199), 1 / 3)):
        assert measure_fidelity(made, real, STUDY, edges_from=real).rare_recall == pytest.approx(found)


def test_what_a_small_table_would_hardly_hold_is_not_looked_for_in_it() -> None:
    real = colours(red=180, green=20)
    assert measure_fidelity(colours(red=99), real, STUDY, edges_from=real).rare_recall == 1.0
    assert measure_fidelity(colours(red=100), real, STUDY, edges_from=real).rare_recall == pytest.approx(2 / 3)
    few = measure_fidelity(colours(red=9), real, STUDY, edges_from=real)
    assert few.rare_recall is None
    assert few.reason is not None
    assert "rare_recall: no category should be 10 times in either table" in few.reason
    # Ten rows of a table a hundred times as long would be a chance find in the real one.
    assert measure_fidelity(colours(red=2000), colours(red=11, green=9), STUDY, edges_from=real).rare_recall == 1.0


# --- violations


def test_a_parsed_table_violates_nothing() -> None:
    measured = measure_fidelity(draw(50, 1), draw(60, 2), STUDY, edges_from=draw(50, 1))
    assert (measured.violations, measured.violating) == (0, {})
    assert count_violations(parse([("", "", "", "no")]), STUDY.columns) == dict.fromkeys(STUDY.columns, 0)


def test_each_rule_of_the_schema_is_counted_by_column() -> None:
    table = draw(6, 1)
    dtype = table["ill"].dtype
    wrong = table.assign(
        age=pd.array([1, -1, 101, 100, 0, None], dtype="Int64"),
        amount=[np.inf, 1000.0, -1000.5, np.nan, -np.inf, 0.0],
        ill=pd.Categorical(["no", None, "yes", None, None, "no"], dtype=dtype),
    )
    expected = {"colour": 0, "age": 2, "amount": 3, "ill": 3}
    assert count_violations(wrong, STUDY.columns) == expected
    measured = measure_fidelity(wrong, table, STUDY, edges_from=table)
    assert measured.violations == 8
    assert measured.violating == {"age": 2, "amount": 3, "ill": 3}
    assert measure_fidelity(table, wrong, STUDY, edges_from=table).violations == 0


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("colour", ["red"] * 5),
        ("colour", pd.Categorical(["red"] * 5, categories=["red", "green"])),
        ("colour", pd.Categorical(["pink"] * 5, categories=["red", "green", "blue", "pink"])),
        ("age", np.ones(5)),
        ("age", np.ones(5, dtype=np.int64)),
        ("amount", np.ones(5, dtype=np.float32)),
        ("amount", [1, 2, 3, 4, 5]),
    ],
)
def test_a_column_of_another_dtype_counts_in_every_row(name: str, values: object) -> None:
    wrong = draw(5, 1).assign(**{name: values})
    assert count_violations(wrong, STUDY.columns) == dict.fromkeys(STUDY.columns, 0) | {name: 5}


def test_a_column_that_is_not_there_counts_in_every_row() -> None:
    assert count_violations(draw(5, 1).drop(columns="age"), STUDY.columns)["age"] == 5
    strict = {"age": IntegerColumn(type="integer", min=0, max=9)}
    assert count_violations(pd.DataFrame({"age": pd.array([1, None], dtype="Int64")}), strict) == {"age": 2}
    assert count_violations(pd.DataFrame({"age": [1, 10]}), strict) == {"age": 1}


def test_violations_of_windows_are_counted_where_a_unit_has_steps_and_beyond() -> None:
    windowed = parse_study(
        STUDY.model_dump(mode="json", by_alias=True)
        | {
            "unit": {"name": "patient", "key": "patient"},
            "windows": {
                "layout": "events",
                "length": 3,
                "time": {"column": "minute"},
                "channels": {
                    "beats": {"type": "integer", "min": 20, "max": 220},
                    "dose": {"type": "continuous", "min": 0, "max": 5, "missing": True},
                    "ward": {"type": "categorical", "categories": ["a", "b"]},
                },
            },
        },
        source="test",
    )
    nan = np.nan
    values = np.array(
        [
            [[60, 1.5, 0], [70.5, nan, 1], [19, 5.5, 2]],
            [[nan, 5.0, 0.5], [221, -0.1, nan], [nan, nan, 0]],
        ]
    )
    table = WindowedTable(draw(2, 1), values, np.array([3, 2]))
    assert count_window_violations(table, windowed) == {"beats": 4, "dose": 2, "ward": 4}
    right = np.where([[[True], [True], [True]], [[True], [True], [False]]], [60.0, nan, 1.0], nan)
    assert count_window_violations(replace(table, values=right), windowed) == {"beats": 0, "dose": 0, "ward": 0}
    assert count_window_violations(WindowedTable.without_windows(draw(2, 1)), STUDY) == {}
