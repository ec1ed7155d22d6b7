"""How text becomes typed columns, what is refused, and that a refusal says nothing of what was in a cell."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from common.data.schema import Column, check_columns, parse_table
from common.errors import ExitCode, SchemaError

_COLUMN: TypeAdapter[Column] = TypeAdapter(Column)


def column(kind: str, **keys: Any) -> Column:
    return _COLUMN.validate_python({"type": kind, **keys})


WHOLE = column("integer", min=-100, max=100)
REAL = column("continuous", min=-100, max=100)
WARD = column("categorical", categories=["north", "south"])


def text_of(**columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(columns, dtype="str")


def parse(cells: list[str], rule: Column, **options: Any) -> pd.Series:
    return parse_table(text_of(x=cells), {"x": rule}, **options)["x"]


def refuse(cells: list[str], rule: Column, **options: Any) -> ExitCode:
    """The exit code; the message names the column in one line, and no cell of the table is in it."""
    with pytest.raises(SchemaError) as refused:
        parse(cells, rule, **options)
    message = str(refused.value)
    assert message.splitlines() == [message]
    assert message.startswith("x: ")
    assert not [cell for cell in cells if len(cell.strip()) > 3 and cell.strip() in message]
    return refused.value.code


# --- dtypes and order


@pytest.mark.parametrize(
    ("rule", "cells", "dtype", "values"),
    [
        (WHOLE, ["1", "-7"], "int64", [1, -7]),
        (column("integer", min=0, max=9, missing=True), ["1", "7"], "Int64", [1, 7]),
        (column("integer", min=0, max=9, missing=True), ["1", ""], "Int64", [1, pd.NA]),
        (column("integer", min=0, max=9, missing=True), ["", ""], "Int64", [pd.NA, pd.NA]),
        (REAL, ["1", "-7.25"], "float64", [1.0, -7.25]),
        (column("continuous", min=0, max=9, missing=True), ["1", ""], "float64", [1.0, np.nan]),
        (column("continuous", min=0, max=9, missing=True), ["", ""], "float64", [np.nan, np.nan]),
    ],
)
def test_numbers_have_the_dtype_that_is_documented(
    rule: Column, cells: list[str], dtype: str, values: list[Any]
) -> None:
    parsed = parse(cells, rule)
    assert str(parsed.dtype) == dtype
    pd.testing.assert_series_equal(parsed, pd.Series(values, dtype=dtype, name="x"))


@pytest.mark.parametrize("missing", [False, True])
def test_categories_are_those_of_the_schema_in_its_order_whatever_the_table_holds(missing: bool) -> None:
    rule = column("categorical", categories=["south", "north", "east"], unlisted="other", missing=missing)
    parsed = parse(["north", "north"], rule)
    assert list(parsed.cat.categories) == ["south", "north", "east", "other"]
    assert not parsed.cat.ordered
    assert parsed.cat.codes.tolist() == [1, 1]


def test_columns_come_in_the_order_of_the_schema_behind_the_unit_key_and_the_rest_is_left_out() -> None:
    text = text_of(note=["a"], ward=["north"], pid=[" P1 "], age=["3"])
    parsed = parse_table(text, {"age": WHOLE, "ward": WARD}, unit_key="pid")
    assert list(parsed.columns) == ["pid", "age", "ward"]
    assert parsed.loc[0, "pid"] == "P1"


def test_a_table_without_rows_has_its_dtypes() -> None:
    rules = {"age": WHOLE, "dose": REAL, "ward": WARD, "old": column("integer", min=0, max=9, missing=True)}
    parsed = parse_table(text_of(age=[], dose=[], ward=[], old=[]), rules)
    assert [str(dtype) for dtype in parsed.dtypes] == ["int64", "float64", "category", "Int64"]


def test_rows_keep_their_index() -> None:
    text = text_of(x=["1", "", "3"]).set_index(pd.Index([7, 3, 5]))
    for rule in (column("integer", min=0, max=9, missing=True), column("continuous", min=0, max=9, missing=True)):
        parsed = parse_table(text, {"x": rule})
        assert parsed.index.tolist() == [7, 3, 5]
        assert parsed["x"].isna().tolist() == [False, True, False]


# --- missing


@pytest.mark.parametrize("rule", [WHOLE, REAL, WARD])
@pytest.mark.parametrize("cell", ["", "   ", "?", " ? ", "n/a"])
def test_an_empty_cell_or_a_marker_is_refused_unless_the_column_may_miss(rule: Column, cell: str) -> None:
    cells = [cell, "1" if rule is not WARD else "north"]
    assert refuse(cells, rule, missing_markers=("?", "n/a")) == ExitCode.MISSING_NOT_ALLOWED
    may = rule.model_copy(update={"missing": True})
    assert parse(cells, may, missing_markers=("?", "n/a")).isna().tolist() == [True, False]


def test_a_marker_is_the_whole_cell_and_nothing_is_one_unless_it_is_listed() -> None:
    may = column("categorical", categories=["north", "?north", "NA", "nan", "None", "null"], missing=True)
    cells = ["?north", "NA", "nan", "None", "null"]
    assert parse(cells, may, missing_markers=("?",)).tolist() == cells


def test_a_marker_that_would_be_a_number_is_missing() -> None:
    rule = column("integer", min=0, max=120, missing=True, outside="clip")
    assert parse(["999", "7"], rule, missing_markers=("999",)).isna().tolist() == [True, False]


@pytest.mark.parametrize("cell", ["", " ", "?"])
def test_a_record_without_its_unit_is_refused(cell: str) -> None:
    with pytest.raises(SchemaError, match=r"^pid: the unit key is missing") as refused:
        parse_table(text_of(pid=["P1", cell], x=["1", "2"]), {"x": WHOLE}, missing_markers=("?",), unit_key="pid")
    assert refused.value.code == ExitCode.MISSING_NOT_ALLOWED


# --- numbers


@pytest.mark.parametrize(
    ("cell", "value"),
    [("7", 7), ("7.0", 7), ("+7", 7), (" 7\t", 7), ("\u00a07", 7), ("1e1", 10), ("-0", 0), ("007", 7), ("1E+1", 10)],
)
def test_a_whole_number_may_be_written_in_several_ways(cell: str, value: int) -> None:
    assert parse([cell], WHOLE).tolist() == [value]
    assert parse([cell], REAL).tolist() == [float(value)]


@pytest.mark.parametrize(
    "cell",
    ["x", "0x10", "1_0", "\uff11", "\u0661", "1,0", "1 0", "--1", "1-", "1e", ".", "0b1", "0o7", "True", "None", "<NA>",
     "NA", "1d1", "$1", "1%", "1\x00", "\ufeff1", "½", "1/2", "[1]", "∞"],
)  # fmt: skip
def test_text_that_is_no_plain_number_is_refused(cell: str) -> None:
    for rule in (WHOLE, REAL):
        assert refuse(["1", cell, "2"], rule) == ExitCode.NOT_A_NUMBER


@pytest.mark.parametrize(
    "cell", ["nan", "NaN", "-nan", "inf", "-Inf", "+INF", "Infinity", "-infinity", "1e309", "-1e999"]
)
@pytest.mark.parametrize("outside", ["refuse", "clip"])
def test_what_is_not_finite_is_refused_even_where_values_are_clipped(cell: str, outside: str) -> None:
    for kind in ("integer", "continuous"):
        for missing in (False, True):
            rule = column(kind, min=0, max=9, outside=outside, missing=missing)
            assert refuse(["1", cell], rule) == ExitCode.NOT_FINITE


@pytest.mark.parametrize("cell", ["2.5", "1e-3", "-0.5"])
def test_a_fraction_is_no_whole_number(cell: str) -> None:
    assert refuse([cell], WHOLE) == ExitCode.NOT_A_NUMBER
    assert parse([cell], REAL).tolist() == [float(cell)]


@pytest.mark.parametrize("kind", ["integer", "continuous"])
def test_bounds_are_included_and_what_lies_beyond_is_refused_or_clipped(kind: str) -> None:
    strict, clipping = (column(kind, min=-3, max=5, outside=outside) for outside in ("refuse", "clip"))
    assert parse(["-3", "5"], strict).tolist() == [-3, 5]
    for cell in ("6", "-4", "73197319", "-1e300"):
        assert refuse(["1", cell], strict) == ExitCode.OUT_OF_BOUNDS
    assert parse(["6", "-4", "1e300", "2"], clipping).tolist() == [5, -3, 5, 2]


def test_a_value_between_the_last_float_and_a_bound_is_refused() -> None:
    assert refuse(["5.000000000000001"], column("continuous", min=0, max=5)) == ExitCode.OUT_OF_BOUNDS


FAR = [2**53, 2**53 + 1, 2**60 + 1, 2**63 - 2, 2**63 - 1]


def test_whole_numbers_are_exact_up_to_what_int64_holds() -> None:
    least, most = -(2**63), 2**63 - 1
    values = [least, least + 1, *(-far for far in FAR), 0, *FAR]
    for missing in (False, True):
        rule = column("integer", min=least, max=most, missing=missing)
        assert parse([str(value) for value in values], rule).tolist() == values
    for keys in ({"min": least - 1, "max": 0}, {"min": 0, "max": most + 1}):
        with pytest.raises(ValidationError, match="2\\^63"):
            column("integer", **keys)
    with pytest.raises(ValidationError, match="special: expected values from min to max"):
        column("integer", min=0, max=2**60, special=[2**60 + 1])


@pytest.mark.parametrize("far", FAR)
def test_bounds_are_exact_where_floats_skip_whole_numbers(far: int) -> None:
    rule = column("integer", min=7 - far, max=far - 1)
    assert parse([str(far - 1), str(7 - far)], rule).tolist() == [far - 1, 7 - far]
    for beyond in (far, far + 1, -far - 1, 2**63, 2**64, 10**30):
        assert refuse(["1", str(beyond)], rule) == ExitCode.OUT_OF_BOUNDS
    cut = rule.model_copy(update={"outside": "clip"})
    beyond = [str(far), "9" * 30, "1e300", str(-far - 1), "-" + "9" * 25]
    assert parse(beyond, cut).tolist() == [far - 1] * 3 + [7 - far] * 2


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("1e3", 1000),
        ("9007199254740993.0", 2**53 + 1),
        ("9007199254740993.", 2**53 + 1),
        ("+9007199254740993", 2**53 + 1),
        ("9.007199254740993e15", 2**53 + 1),
        ("90071992547409930e-1", 2**53 + 1),
        ("0" * 40 + "9007199254740993", 2**53 + 1),
        ("1" + "0" * 18, 10**18),
        (".5e1", 5),
        ("0e-400", 0),
    ],
)
def test_a_whole_number_is_exact_however_it_is_written(cell: str, value: int) -> None:
    assert parse([cell], column("integer", min=-(2**63), max=2**63 - 1)).tolist() == [value]


@pytest.mark.parametrize(
    ("cell", "code"),
    [
        ("9007199254740993.5", ExitCode.NOT_A_NUMBER),
        ("1.00000000000000000000000000000000000001", ExitCode.NOT_A_NUMBER),
        ("1e-400", ExitCode.NOT_A_NUMBER),
        ("1e-99999999999999999999", ExitCode.NOT_A_NUMBER),
        ("1e400", ExitCode.NOT_FINITE),
        ("9" * 5000, ExitCode.NOT_FINITE),
        ("1e999999999999", ExitCode.NOT_FINITE),
        ("1_000", ExitCode.NOT_A_NUMBER),
        ("\u0661\u0662", ExitCode.NOT_A_NUMBER),
    ],
)
def test_what_is_nearly_a_whole_number_is_none(cell: str, code: ExitCode) -> None:
    assert refuse([cell], column("integer", min=-(2**63), max=2**63 - 1)) == code


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20))
@settings(deadline=None, max_examples=50)
def test_whole_numbers_come_as_they_were_written(values: list[int]) -> None:
    rule = column("integer", min=-(2**63), max=2**63 - 1)
    assert parse([str(value) for value in values], rule).tolist() == values


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=20), st.sampled_from(["r", ".3f", ".17g", ".1e"]))
@settings(deadline=None, max_examples=100)
def test_real_numbers_are_the_nearest_floats(values: list[float], form: str) -> None:
    # A special value has a cell one float wide: a number that is read one float beside it would miss it.
    cells = [repr(value) if form == "r" else format(value, form) for value in values]
    rule = column("continuous", min=-1.5e300, max=1.5e300)
    assert parse(cells, rule).tolist() == [float(cell) for cell in cells]


# --- categories


def test_a_category_is_listed_to_the_letter() -> None:
    assert parse(["north", " south "], WARD).tolist() == ["north", "south"]
    for cell in ("North", "NORTH", "nort", "northern", "north south", "SECRET-7319"):
        assert refuse(["south", cell], WARD) == ExitCode.UNLISTED_CATEGORY


def test_an_unlisted_category_becomes_other_where_the_schema_says_so() -> None:
    rule = column("categorical", categories=["north", "south"], unlisted="other", missing=True)
    parsed = parse(["north", "SECRET-7319", "other", ""], rule)
    assert parsed.tolist()[:3] == ["north", "other", "other"]
    assert parsed.isna().tolist() == [False, False, False, True]


DISEASES = column(
    "categorical",
    groups={"circulatory": ["390-459", "785"], "diabetes": ["250"], "injury": ["E800-E999", "V1"], "none": ["-", "0"]},
)


@pytest.mark.parametrize(
    ("cell", "group"),
    [
        ("390", "circulatory"),
        ("459", "circulatory"),
        ("459.99", "circulatory"),
        ("427.31", "circulatory"),
        ("785", "circulatory"),
        ("785.4", "circulatory"),
        ("0427", "circulatory"),
        ("250", "diabetes"),
        ("250.83", "diabetes"),
        ("250.", "diabetes"),
        ("V1", "injury"),
        ("E800-E999", "injury"),
        ("-", "none"),
        ("0", "none"),
    ],
)
def test_a_code_belongs_to_the_group_whose_range_or_value_holds_it(cell: str, group: str) -> None:
    assert parse([cell], DISEASES).tolist() == [group]


@pytest.mark.parametrize(
    "cell",
    ["389", "389.99", "460", "786", "251", "249.9", "E850", "V10", "V1.2", "circulatory", "-250", "+250", "4,27",
     "\uff14\uff12\uff17", "42 7", "1e2", ".5", "400-401", "9" * 5000],
)  # fmt: skip
def test_a_code_in_no_group_is_refused_or_other(cell: str) -> None:
    assert refuse([cell], DISEASES) == ExitCode.UNLISTED_CATEGORY
    other = DISEASES.model_copy(update={"unlisted": "other"})
    assert parse([cell], other).tolist() == ["other"]


def test_groups_give_their_names_in_their_order() -> None:
    assert list(parse(["250"], DISEASES).cat.categories) == ["circulatory", "diabetes", "injury", "none"]


# --- what a refusal says


@pytest.mark.parametrize(
    ("rule", "cell"),
    [
        (WHOLE, "SECRET-7319"),
        (WHOLE, "7319.7319"),
        (WHOLE, "731973197319"),
        (WHOLE, "-inf7319"),
        (REAL, "SECRET-7319"),
        (REAL, "7319.7319"),
        (WARD, "SECRET-7319"),
        (DISEASES, "7319"),
    ],
)
def test_no_refusal_holds_a_cell(rule: Column, cell: str) -> None:
    good = {id(WARD): "north", id(DISEASES): "250"}.get(id(rule), "1")
    with pytest.raises(SchemaError) as refused:
        parse([good] * 41 + [cell], rule)
    for told in ("7319", "SECRET", "41", "42"):
        assert told not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


def test_a_column_that_is_absent_is_named_and_one_that_is_unknown_is_not() -> None:
    table = text_of(pid=["P1"], age=["1"], extra=["SECRET"])
    check_columns(table, ["pid", "age"], ["extra"])
    check_columns(table, ["pid", "age"], ["extra", "never there"])
    with pytest.raises(SchemaError, match=r"^ward: ") as missing:
        check_columns(table, ["pid", "age", "ward"], ["extra"])
    assert missing.value.code == ExitCode.COLUMN_MISSING
    with pytest.raises(SchemaError, match=r"^column 3 of the table") as unknown:
        check_columns(table, ["pid", "age"], [])
    assert unknown.value.code == ExitCode.COLUMN_UNKNOWN
    # A file without its header line has a record where the names should be.
    assert "extra" not in str(unknown.value)


def test_a_column_that_is_there_twice_is_refused() -> None:
    table = pd.DataFrame([["1", "2"]], columns=["age", "age"])
    with pytest.raises(SchemaError, match=r"^age: the column is in the table twice"):
        check_columns(table, ["age"], [])


# --- rules of the schema itself


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("integer", {"min": 0, "max": 9, "special": [10]}),
        ("integer", {"min": 0, "max": 9, "special": [-1]}),
        ("integer", {"min": 0, "max": 9, "special": [0.5]}),
        ("continuous", {"min": 0, "max": 9, "special": [9]}),
        ("continuous", {"min": 0, "max": 9, "special": [0, 0.0]}),
        ("continuous", {"min": 0, "max": float("nan")}),
        ("continuous", {"min": float("-inf"), "max": 0}),
        # Cells whose edges pass what a float holds.
        ("continuous", {"min": -1e308, "max": 1e308}),
        ("continuous", {"min": 0, "max": 1e300, "scale": "log", "scale_unit": 1e-300}),
        ("continuous", {"min": -1e300, "max": 0, "scale": "asinh", "scale_unit": 1e-300}),
        ("integer", {"min": 0, "max": 10**9, "scale": "log", "scale_unit": 1e-300}),
        # Numbers with so many decimals are not floats of their own; bounds that cannot be written are not reached.
        ("continuous", {"min": 0, "max": 1e6, "decimals": 12}),
        ("continuous", {"min": 0.1, "max": 9, "decimals": 0}),
        ("continuous", {"min": 0, "max": 0.25, "decimals": 1}),
        ("continuous", {"min": 0, "max": 9, "decimals": 1, "special": [0.25]}),
    ],
)
def test_a_column_that_cannot_be_cut_into_cells_is_refused(kind: str, keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        column(kind, **keys)
