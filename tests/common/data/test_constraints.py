"""Constraints: what they say of a row, by brute force; which of them contradict; what is refused, in one line."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.automaton import DEAD, make_automata
from common.data.constraints import count_row_violations, count_step_violations, make_rules
from common.errors import ExitCode, StudyError
from common.study import Study, parse_study

COLUMNS: dict[str, Any] = {
    "low": {"type": "integer", "min": 0, "max": 4, "missing": True},
    "high": {"type": "integer", "min": 1, "max": 5},
    "top": {"type": "integer", "min": 0, "max": 9, "missing": True},
    "sex": {"type": "categorical", "categories": ["f", "m"], "missing": True},
    "ward": {"type": "categorical", "categories": ["a", "b", "c"]},
    "both": {"type": "integer", "min": 0, "max": 20, "missing": True},
    "pay": {"type": "continuous", "min": 0, "max": 9, "decimals": 1},
    "ill": {"type": "categorical", "categories": ["no", "yes"]},
}
CHANNELS: dict[str, Any] = {
    "stage": {"type": "categorical", "categories": ["one", "two", "three"], "missing": True},
    "pulse": {"type": "integer", "min": 40, "max": 200, "missing": True},
}
WINDOWS = {"layout": "grid", "length": 4, "time": {"column": "hour"}, "step": 1, "channels": CHANNELS}


def study_of(*constraints: Mapping[str, Any], windows: Mapping[str, Any] | None = None) -> Study:
    data = {
        "name": "toy",
        "unit": {"name": "person", "key": "person"},
        "label": {"column": "ill", "positive": "yes"},
        "columns": COLUMNS,
        "windows": windows,
        "constraints": list(constraints),
        "privacy": {"epsilon": 1, "delta": 1e-6},
    }
    return parse_study(data, source="study.yaml")


def implies(then: list[str], *when: str) -> dict[str, Any]:
    return {"kind": "implies", "if": list(when), "then": then}


def ordered(*names: str, strict: bool = False) -> dict[str, Any]:
    return {"kind": "ordered", "columns": list(names), "strict": strict}


def combined(names: list[str], *rows: list[str]) -> dict[str, Any]:
    return {"kind": "combinations", "columns": names, "rows": list(rows)}


def one_hot(value: str, *names: str) -> dict[str, Any]:
    return {"kind": "one_hot", "columns": list(names), "value": value}


def summed(total: str, *parts: str) -> dict[str, Any]:
    return {"kind": "sum", "total": total, "parts": list(parts)}


Row = dict[str, Any]
ROWS: list[Row] = [
    {"low": low, "high": high, "top": top, "sex": sex, "ward": ward, "ill": ill}
    for low, high, top, sex, ward, ill in itertools.product(
        [None, 0, 1, 2, 3, 4], range(1, 6), [None, 0, 3, 9], [None, "f", "m"], ["a", "b", "c"], ["no", "yes"]
    )
]
TRUTHS: list[tuple[dict[str, Any], Callable[[Row], bool]]] = [
    (implies(["sex=f"], "ward=a"), lambda r: r["ward"] != "a" or r["sex"] in ("f", None)),
    (implies(["sex=f", "sex!="], "ward=a"), lambda r: r["ward"] != "a" or r["sex"] == "f"),
    (implies(["sex!="], "ward=a"), lambda r: r["ward"] != "a" or r["sex"] is not None),
    (implies(["sex="], "ward=a"), lambda r: r["ward"] != "a" or r["sex"] is None),
    (implies(["high<=3"], "low="), lambda r: r["low"] is not None or r["high"] <= 3),
    (implies(["high>2", "ward!=b"], "low>=1", "sex=m"), lambda r: (
        not (r["low"] is not None and r["low"] >= 1 and r["sex"] == "m") or (r["high"] > 2 and r["ward"] != "b")
    )),
    (implies(["low=1..3"]), lambda r: r["low"] is None or 1 <= r["low"] <= 3),
    (ordered("low", "high"), lambda r: r["low"] is None or r["low"] <= r["high"]),
    (ordered("low", "high", strict=True), lambda r: r["low"] is None or r["low"] < r["high"]),
    (ordered("high", "low", "top"), lambda r: is_rising([r["high"], r["low"], r["top"]], strict=False)),
    (ordered("low", "high", "top", strict=True), lambda r: is_rising([r["low"], r["high"], r["top"]], strict=True)),
    (combined(["sex", "ward"], ["f", "a"], ["m", "b"]), lambda r: (
        r["sex"] is None or (r["sex"], r["ward"]) in {("f", "a"), ("m", "b")}
    )),
    (combined(["ward", "sex", "ill"], ["a", "f", "no"], ["b", "m", "yes"]), lambda r: (
        r["sex"] is None or (r["ward"], r["sex"], r["ill"]) in {("a", "f", "no"), ("b", "m", "yes")}
    )),
]  # fmt: skip


def is_rising(values: list[int | None], *, strict: bool) -> bool:
    there = [value for value in values if value is not None]
    return all(one < two if strict else one <= two for one, two in itertools.pairwise(there))


def table_of(rows: list[Row], study: Study) -> pd.DataFrame:
    table = pd.DataFrame(rows).reindex(columns=list(study.columns))
    for name, column in study.columns.items():
        if column.type == "categorical":
            table[name] = pd.Categorical(table[name], categories=list(column.values))
        else:
            table[name] = table[name].astype("float64" if column.type == "continuous" else "Int64")
    return table


def reads(study: Study, row: Row) -> bool:
    """Whether the automata of a study accept a row."""
    for automaton in make_automata(study.constraints, study.columns):
        state = 0
        for name, pieces, moves in zip(automaton.names, automaton.pieces, automaton.moves, strict=True):
            value = pd.Series([row[name]], dtype="object")
            column = study.columns[name]
            typed = table_of([row], study)[name] if column.type == "categorical" else value.astype("Int64")
            at = next(number for number, piece in enumerate(pieces) if piece.selection.holds(typed)[0])
            state = int(moves[state, at])
            if state == DEAD:
                return False
    return True


@pytest.mark.parametrize(("constraint", "holds"), TRUTHS)
def test_each_kind_says_of_every_row_what_it_should(constraint: dict[str, Any], holds: Callable[[Row], bool]) -> None:
    study = study_of(constraint)
    (rule,) = make_rules(study.constraints, study.columns)
    expected = np.array([holds(row) for row in ROWS])
    assert (rule.holds(table_of(ROWS, study)) == expected).all()
    assert count_row_violations(table_of(ROWS, study), study.constraints, study.columns) == {
        study.constraints[0].text: int((~expected).sum())
    }
    assert 0 < expected.sum() < len(ROWS)


@settings(deadline=None)
@given(st.lists(st.sampled_from([one for one, _ in TRUTHS]), min_size=1, max_size=4), st.sampled_from(ROWS))
def test_automata_read_rows_as_the_rules_do(constraints: list[dict[str, Any]], row: Row) -> None:
    truths = [holds for one, holds in TRUTHS if one in constraints]
    names = [one["columns"] for one in constraints if one["kind"] == "ordered"]
    if ["high", "low", "top"] in names and len(names) > 1:
        return  # ordered in a circle
    if not any(all(holds(every) for holds in truths) for every in ROWS):
        with pytest.raises(StudyError, match="no row fulfils"):
            study_of(*constraints)
        return
    study = study_of(*constraints)
    automata = make_automata(study.constraints, study.columns)
    tied = {name for automaton in automata for name in automaton.names}
    assert tied == {name for rule in make_rules(study.constraints, study.columns) for name in rule.names}
    holds = all(rule.holds(table_of([row], study))[0] for rule in make_rules(study.constraints, study.columns))
    # Values of one interval may be in order or not: an automaton keeps what could be.
    assert reads(study, row) or not holds
    if not any(one["kind"] == "ordered" for one in constraints):
        assert reads(study, row) == holds


def test_exactly_one_has_the_value_and_a_missing_one_has_not() -> None:
    study = study_of(one_hot("3", "low", "high", "top"))
    (rule,) = make_rules(study.constraints, study.columns)
    expected = [sum(row[name] == 3 for name in ("low", "high", "top")) == 1 for row in ROWS]
    assert rule.holds(table_of(ROWS, study)).tolist() == expected


def test_a_sum_that_is_off_is_a_violation() -> None:
    study = study_of(summed("both", "low", "high"))
    rows = [{"low": 1, "high": 2, "both": both} for both in (3, 4, None)] + [{"low": None, "high": 2, "both": None}]
    assert count_row_violations(table_of(rows, study), study.constraints, study.columns) == {"both = low + high": 2}


NAN = float("nan")
STEPS: list[tuple[dict[str, Any], list[float], list[float], bool]] = [
    ({"kind": "monotone", "channel": "stage"}, [0, NAN, 1, 1], [NAN] * 4, True),
    ({"kind": "monotone", "channel": "stage"}, [1, NAN, 0, 2], [NAN] * 4, False),
    ({"kind": "monotone", "channel": "stage", "direction": "falling"}, [2, 2, NAN, 0], [NAN] * 4, True),
    ({"kind": "monotone", "channel": "stage", "direction": "falling"}, [0, NAN, NAN, 1], [NAN] * 4, False),
    ({"kind": "monotone", "channel": "pulse"}, [NAN] * 4, [60, NAN, 60, 61], True),
    ({"kind": "monotone", "channel": "pulse"}, [NAN] * 4, [60, NAN, NAN, 59], False),
    ({"kind": "transitions", "channel": "stage", "forbidden": [["three", "one"]]}, [2, 1, 0, 0], [NAN] * 4, True),
    ({"kind": "transitions", "channel": "stage", "forbidden": [["three", "one"]]}, [2, NAN, 0, 0], [NAN] * 4, False),
]


@pytest.mark.parametrize(("constraint", "stage", "pulse", "fine"), STEPS)
def test_windows_are_looked_at_from_value_to_value(
    constraint: dict[str, Any], stage: list[float], pulse: list[float], fine: bool
) -> None:
    study = study_of(constraint, windows=WINDOWS)
    values = np.array([[*zip(stage, pulse, strict=True)]])
    counts = count_step_violations(values, study.constraints, study.channels)
    assert counts == {study.constraints[0].text: int(not fine)}


REFUSED: list[tuple[list[dict[str, Any]], str]] = [
    ([implies(["sex=f"], "floor=1")], "constraints.0: floor: no such column"),
    ([implies(["sex=x"])], "constraints.0: sex=x: no such category; there are f, m"),
    ([implies([])], "constraints.0.then: tuple should have at least 1 item"),
    ([implies(["low>=3", "low<2"])], "constraints.0: low<2: no value of low fulfils this and what is said before"),
    ([implies(["low<0"])], "constraints.0: low<0: the column holds no such value"),
    ([ordered("low", "sex")], "constraints.0: columns: sex is categorical; expected numbers"),
    ([ordered("low", "low")], "constraints.0: columns: a column is listed twice"),
    ([ordered("low", "pay")], "constraints.0: columns: expected all to be whole numbers, or all to have the same"),
    ([ordered("low", "high"), ordered("high", "low")], "constraints: columns are ordered in a circle"),
    ([combined(["sex", "ward"], ["f"])], "constraints.0: rows: expected one value a column in each"),
    ([combined(["sex", "low"], ["f", "1"])], "constraints.0: low=1: expected a category of the column"),
    ([combined(["sex", "ward"], ["f", "z"])], "constraints.0: ward=z: expected a category of the column"),
    ([one_hot("yes", "ill", "ward")], "constraints.0: ward=yes: no such category"),
    ([summed("both", "low", "sex")], "constraints.0: total, parts: expected numeric columns of `columns`"),
    ([summed("both", "low", "nothing")], "constraints.0: total, parts: expected numeric columns of `columns`"),
    ([summed("top", "low", "high", "both")], "constraints.0: total=top: the parts' bounds add up to more"),
    ([summed("high", "low", "top")], "constraints.0: total=high: the parts' bounds add up to more"),
    ([summed("both", "high", "pay")], "constraints.0: total=both: the parts have more decimals than it"),
    ([summed("both", "low", "high"), implies(["both>3"])], "constraints: both is computed as a sum"),
    ([summed("both", "low", "high"), summed("both", "top", "high")], "constraints: a column is the total of two sums"),
    ([{"kind": "monotone", "channel": "gait"}], "constraints.0: channel=gait: expected a channel of `windows`"),
    ([{"kind": "transitions", "channel": "pulse", "forbidden": [["a", "b"]]}], "expected a categorical channel"),
    ([{"kind": "transitions", "channel": "stage", "forbidden": [["a", "b"]]}], "expected pairs of categories"),
    (
        [{"kind": "monotone", "channel": "pulse"}, {"kind": "monotone", "channel": "pulse", "direction": "falling"}],
        "constraints: pulse: cannot both rise and fall",
    ),
    ([{"kind": "sums"}], "constraints.0: input tag 'sums'"),
    ([{"kind": "ordered", "column": ["low", "high"]}], "constraints.0.columns: the key is needed and is not there"),
    ([implies(["sex=f"]), implies(["sex=m", "sex!="])], "constraints: no row fulfils: sex=f; sex=m and sex!="),
    (
        [implies(["ward=a"]), implies(["high>4"], "ward=a"), ordered("high", "low"), implies(["low!="])],
        "constraints: no row fulfils: ward=a; ward=a implies high>4; high <= low; low!=",
    ),
    ([implies(["low=4"]), implies(["low!="]), ordered("low", "high", "top", strict=True), implies(["top<=5"]),
      implies(["top!="])],
     "constraints: no row fulfils: low=4; low!=; low < high < top; top<=5; top!="),
]  # fmt: skip


@pytest.mark.parametrize(("constraints", "says"), REFUSED)
def test_what_cannot_be_is_refused_in_one_line(constraints: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(StudyError) as caught:
        study_of(*constraints, windows=WINDOWS)
    assert str(caught.value).startswith("study.yaml: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.code == ExitCode.STUDY_INVALID


def test_only_those_that_contradict_each_other_are_blamed() -> None:
    with pytest.raises(StudyError, match=r"no row fulfils: high>4; high<=2$"):
        study_of(implies(["sex=f"]), implies(["high>4"]), ordered("low", "high"), implies(["high<=2"]))


def test_a_study_without_constraints_has_the_digest_that_it_had() -> None:
    assert "constraints" not in study_of().canonical()
    assert study_of(ordered("low", "high")).digest() != study_of().digest()


def test_what_is_computed_is_not_measured() -> None:
    study = study_of(summed("both", "low", "high"))
    assert "both" in study.features
    assert "both" not in study.measured
    assert list(study.measured) == [name for name in study.features if name != "both"]
