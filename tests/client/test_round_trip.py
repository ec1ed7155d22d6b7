"""A table that was written is read back by the same schema as it was: every dtype, as CSV and as Parquet."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from client.records import parse_text, read_series_text, read_text, read_windows
from common.data.schema import CategoricalColumn, DatetimeColumn, defused
from common.errors import ExitCode, SchemaError
from common.study import Study, parse_study
from common.synthesis.rows import draw_units, tables_of
from common.synthesis.tables import TableFile, as_csv
from tests.common.data.columns import moment_column, moment_columns
from tests.common.synthesis.releases import EVENTS, WINDOWS, make_release
from tests.common.synthesis.releases import study_of as study_with

# What a category may be made of, least of all harmless.
AWKWARD = [
    "0",
    "7",
    "=",
    "+",
    "-",
    "@",
    "'",
    '"',
    ",",
    ";",
    "\n",
    "\r\n",
    "\t",
    " ",
    "é",
    "\u0301",
    "漢",
    "\U0001f9ea",
    "NA",
]
TEXTS = (
    st.lists(st.sampled_from(AWKWARD), min_size=1, max_size=5).map("".join)
    | st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=6)
).filter(lambda text: text == text.strip())
INT64 = st.integers(-(2**63), 2**63 - 1) | st.sampled_from(
    [-(2**63), 1 - 2**63, 2**53, 2**53 + 1, 2**63 - 2, 2**63 - 1]
)
LABEL = {"type": "categorical", "categories": ["no", "yes"]}


def study_of(columns: dict[str, Any], **more: Any) -> Study:
    keys = {"name": "toy", "label": {"column": "label", "positive": "yes"}, "privacy": {"epsilon": 1, "delta": 1e-6}}
    return parse_study({**keys, "columns": {**columns, "label": LABEL}, **more}, source="test")


def there_and_back(table: pd.DataFrame, study: Study, folder: Path) -> None:
    """Write it, in two parts, as both kinds of file, and read them."""
    for ending in ("csv", "parquet"):
        with TableFile(folder / f"t.{ending}", study.columns) as file:
            for begin, end in pairwise((0, len(table) // 2, len(table))):
                file.write(table.iloc[begin:end])
    pd.testing.assert_frame_equal(parse_text(read_text(folder / "t.csv", study), study), table, check_exact=True)
    back = pq.read_table(folder / "t.parquet").to_pandas()
    pd.testing.assert_frame_equal(back, table, check_exact=True, check_categorical=False)
    for name, column in study.columns.items():
        if isinstance(column, CategoricalColumn):
            assert list(back[name].cat.categories) == list(column.values)
        else:
            assert back[name].dtype == column.dtype


def maybe(values: st.SearchStrategy[str], *, missing: bool) -> st.SearchStrategy[str]:
    return values | st.just("") if missing else values


@st.composite
def tables(draw: st.DrawFn) -> tuple[Study, pd.DataFrame]:
    """A study with a column of each type, and a table of text that it allows."""
    missing = draw(st.booleans())
    categories = draw(st.lists(TEXTS, min_size=2, max_size=5, unique=True))
    low, high = sorted(draw(st.lists(INT64, min_size=2, max_size=2, unique=True)))
    when, other = draw(moment_columns()), draw(moment_columns())
    columns = {
        "kind": {"type": "categorical", "categories": categories, "missing": missing},
        "count": {"type": "integer", "min": low, "max": high, "missing": missing},
        "real": {"type": "continuous", "min": -1e300, "max": 1e300, "missing": missing},
        "price": {"type": "continuous", "min": -1e6, "max": 1e6, "decimals": 2, "missing": missing},
        "when": when.model_dump(by_alias=True) | {"missing": missing},
        "other": other.model_dump(by_alias=True),
    }
    try:
        study = study_of(columns)
    except Exception as refused:  # noqa: BLE001 (whatever refuses it, it must be for this reason)
        assert "apostrophe" in str(refused)  # noqa: PT017
        study = study_of(columns | {"kind": {"type": "categorical", "categories": ["a", "b"], "missing": missing}})
    kind = study.columns["kind"]
    assert isinstance(kind, CategoricalColumn)

    def moments(name: str) -> st.SearchStrategy[str]:
        column = study.columns[name]
        assert isinstance(column, DatetimeColumn)
        return st.integers(0, column.max).map(
            lambda number: column.clock.written(int(column.clock.seconds(np.array([number]))[0]))
        )

    row = st.fixed_dictionaries(
        {
            "kind": maybe(st.sampled_from(kind.categories), missing=missing),
            "count": maybe((st.integers(low, high) | st.sampled_from([low, high])).map(str), missing=missing),
            "real": maybe(st.floats(-1e300, 1e300).map(repr), missing=missing),
            "price": maybe(st.integers(-(10**8), 10**8).map(lambda cents: repr(cents / 100)), missing=missing),
            "when": maybe(moments("when"), missing=missing),
            "other": maybe(moments("other"), missing=other.missing),
            "label": st.sampled_from(["no", "yes"]),
        }
    )
    return study, pd.DataFrame(draw(st.lists(row, min_size=1, max_size=6)), dtype="str")


@given(case=tables())
@settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_every_dtype_comes_back_as_it_was_written(case: tuple[Study, pd.DataFrame], tmp_path: Path) -> None:
    study, text = case
    table = parse_text(text, study)
    # What was read is what the text says.
    for name in ("count", "kind"):
        present = text[name] != ""
        assert [str(value) for value in table[name][present]] == text[name][present].tolist()
        assert table[name].isna().tolist() == (~present).tolist()
    there_and_back(table, study, tmp_path)


@given(numbers=st.lists(INT64, min_size=1, max_size=8), missing=st.booleans())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(numbers=[-(2**63), 2**63 - 1, 0, 2**53 + 1], missing=True)
def test_whole_numbers_at_the_ends_of_int64_come_back(numbers: list[int], missing: bool, tmp_path: Path) -> None:
    study = study_of({"count": {"type": "integer", "min": -(2**63), "max": 2**63 - 1, "missing": missing}})
    cells = [str(number) for number in numbers] + [""] * missing
    table = parse_text(pd.DataFrame({"count": cells, "label": "no"}, dtype="str"), study)
    assert table["count"].dropna().tolist() == numbers
    there_and_back(table, study, tmp_path)


@pytest.mark.parametrize(
    ("keys", "cells", "written"),
    [
        ({"min": "0001-01-01", "max": "9999-12-31"}, ["0001-01-01", "1969-12-31", "9999-12-31"], None),
        (
            {"min": "2020-01-01", "max": "2020-12-31", "unit": "second"},
            ["2020-06-01", "2020-06-01 01:02:03"],
            ["2020-06-01T00:00:00", "2020-06-01T01:02:03"],
        ),
        # All midnights: still moments, whatever pandas makes of them.
        ({"min": "2020-01-01", "max": "2020-12-31", "unit": "hour"}, ["2020-06-01"], ["2020-06-01T00:00:00"]),
        # Both sides of the jump forward, all three hours of the one backward.
        (
            {"min": "2020-01-01", "max": "2020-12-31", "unit": "hour", "timezone": "Europe/Berlin"},
            ["2020-03-29T01:00", "2020-03-29T03:00", "2020-10-25T00:00Z", "2020-10-25T01:00Z", "2020-10-25T03:00"],
            [
                "2020-03-29T01:00:00+01:00",
                "2020-03-29T03:00:00+02:00",
                "2020-10-25T02:00:00+02:00",
                "2020-10-25T02:00:00+01:00",
                "2020-10-25T03:00:00+01:00",
            ],
        ),
        # A day that has no midnight, and one that has two.
        (
            {"min": "2018-01-01", "max": "2018-12-31", "timezone": "America/Sao_Paulo"},
            ["2018-11-04", "2018-11-05"],
            ["2018-11-04T01:00:00-02:00", "2018-11-05T00:00:00-02:00"],
        ),
        (
            {"min": "2022-01-01", "max": "2022-12-31", "timezone": "America/Havana"},
            ["2022-11-06"],
            ["2022-11-06T00:00:00-04:00"],
        ),
        ({"min": "2020-01-01", "max": "2020-12-31", "timezone": "UTC"}, ["2020-06-01"], ["2020-06-01T00:00:00+00:00"]),
        (
            {"min": "1880-01-01", "max": "1890-12-31", "timezone": "Europe/Berlin"},
            ["1885-05-05"],
            ["1885-05-05T00:00:00+00:53:28"],
        ),
    ],
)
def test_moments_come_back_and_are_written_as_iso_8601(
    keys: dict[str, Any], cells: list[str], written: list[str] | None, tmp_path: Path
) -> None:
    study = study_of({"when": {"type": "datetime", "missing": True, **keys}})
    table = parse_text(pd.DataFrame({"when": [*cells, ""], "label": "no"}, dtype="str"), study)
    there_and_back(table, study, tmp_path)
    assert read_text(tmp_path / "t.csv", study)["when"].tolist() == [*(cells if written is None else written), ""]


FORMULAS = ["=1+2", "+cmd", "-x", "@SUM(A1)", "=", "-5", "+3.5e2", "007", "'quoted'", "a=b", '=a,"b"\nc']


def test_a_formula_gets_an_apostrophe_in_csv_which_reading_takes_off_and_parquet_has_none(tmp_path: Path) -> None:
    for unlisted in ("refuse", "other"):
        study = study_of({"kind": {"type": "categorical", "categories": FORMULAS, "unlisted": unlisted}})
        table = parse_text(pd.DataFrame({"kind": FORMULAS, "label": "no"}, dtype="str"), study)
        there_and_back(table, study, tmp_path)
        written = read_text(tmp_path / "t.csv", study)["kind"].tolist()
        assert written == [defused(text) for text in FORMULAS]
        assert written[:5] == ["'=1+2", "'+cmd", "'-x", "'@SUM(A1)", "'="]
        assert written[5:10] == FORMULAS[5:10]


def test_an_apostrophe_is_taken_off_a_formula_alone() -> None:
    study = study_of({"kind": {"type": "categorical", "categories": ["=1", "north"]}})
    text = pd.DataFrame({"kind": ["'=1", "'north"], "label": "no"}, dtype="str")
    assert parse_text(text[:1], study)["kind"].tolist() == ["=1"]
    with pytest.raises(SchemaError, match="kind: a value is not among the listed categories") as refused:
        parse_text(text, study)
    assert refused.value.code == ExitCode.UNLISTED_CATEGORY


def test_two_categories_that_a_csv_file_cannot_tell_apart_are_refused() -> None:
    with pytest.raises(Exception, match="one is another with an apostrophe"):
        study_of({"kind": {"type": "categorical", "categories": ["=1", "'=1"]}})
    with pytest.raises(ValidationError, match="one is another with an apostrophe"):
        CategoricalColumn(type="categorical", groups={"=1": ("a",), "'=1": ("b",)})


def test_a_column_that_the_schema_does_not_know_is_written_as_it_is() -> None:
    rule = moment_column(min="2020-01-01", max="2020-12-31")
    moments = rule.from_whole(np.array([0, 1]), np.array([False, True]))
    table = pd.DataFrame({"unit": ["=a", "b"], "when": moments})
    assert as_csv(table, {"when": rule}) == "unit,when\n=a,2020-01-01\nb,\n"


STAMPS = {"time": {"column": "when", "type": "timestamp"}}


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
@pytest.mark.parametrize(
    "windows",
    [
        WINDOWS,
        WINDOWS | STAMPS | {"start": "first", "step": 7.5},
        WINDOWS | STAMPS | {"start": "first", "step": 1440},
        EVENTS,
        EVENTS | STAMPS,
        EVENTS | {"ignore": ["since"]},
        EVENTS | {"ties": "refuse"},
        EVENTS | STAMPS | {"ties": "refuse"},
        {name: value for name, value in EVENTS.items() if name != "gap"} | STAMPS,
        {name: value for name, value in EVENTS.items() if name != "gap"} | {"max_gap": 0.3},
    ],
    ids=[
        "grid",
        "grid of stamps",
        "grid of days",
        "gaps",
        "gaps of stamps",
        "gaps that are ignored",
        "gaps without ties",
        "gaps of stamps without ties",
        "stamps without gaps",
        "events that are never far apart",
    ],
)
def test_a_synthetic_long_table_is_read_by_its_own_study(windows: dict[str, Any], ending: str, tmp_path: Path) -> None:
    study = study_with(windows=windows)
    units = draw_units(make_release(study), rows=60, seed=0, device=torch.device("cpu"))
    paths = []
    for name, table in tables_of(units, study).items():
        paths.append((tmp_path / name).with_suffix(ending))
        with TableFile(paths[-1], study.columns | study.channels) as file:
            file.write(table[:40])
            file.write(table[40:])
    series = read_series_text(paths[1], study)
    assert series.columns.is_unique
    values, lengths = read_windows(parse_text(read_text(paths[0], study), study), series, study)
    np.testing.assert_array_equal(values, units.values)
    assert np.array_equal(lengths, units.lengths)
