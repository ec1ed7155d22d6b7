"""Units: what becomes of one never depends on another, and none weighs more than one."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.units import BoundedRecords, bound_units, unit_weight
from common.errors import ExitCode, SchemaError

SECRET = bytes(range(32))
OTHER_SECRET = bytes(range(1, 33))


def bound(table: pd.DataFrame, *, key: str | None = "unit", max_records: int = 3, **changes: Any) -> BoundedRecords:
    settled: dict[str, Any] = {"drop_surplus": True, "holdout": 0.3, "secret": SECRET, **changes}
    return bound_units(table, key=key, max_records=max_records, **settled)


def make_table(units: list[int], *, seed: int = 0, distinct: int = 3) -> pd.DataFrame:
    """Rows of these units; few distinct values, so that rows repeat within and across units."""
    random = np.random.default_rng(seed)
    rows = len(units)
    missing = random.random(rows) < 0.2
    return pd.DataFrame(
        {
            "unit": pd.Series([f"unit {unit}" for unit in units], dtype="str"),
            "colour": pd.Categorical.from_codes(
                np.where(missing, -1, random.integers(0, 2, rows)), categories=["red", "green"]
            ),
            "age": pd.Series(random.integers(0, distinct, rows)).astype("Int64").mask(missing),
            "amount": random.integers(0, distinct, rows).astype(np.float64),
        }
    )


def fate(table: pd.DataFrame, bounded: BoundedRecords, origin: np.ndarray) -> dict[int, tuple[str, int, bool]]:
    """What became of each record, by its place in the whole table: its unit, its weight and its account."""
    names = table["unit"].to_numpy()
    return {
        int(origin[row]): (names[row], int(weight), bool(held))
        for row, weight, held in zip(bounded.rows, bounded.weights, bounded.holdout, strict=True)
    }


tables = st.builds(
    make_table,
    st.lists(st.integers(0, 5), min_size=1, max_size=40),
    seed=st.integers(0, 2**32),
    distinct=st.integers(1, 4),
)


@settings(max_examples=150, deadline=None)
@given(tables, st.integers(1, 5), st.data())
def test_taking_a_unit_away_changes_nothing_for_the_others(
    table: pd.DataFrame, max_records: int, data: st.DataObject
) -> None:
    leaver = data.draw(st.sampled_from(sorted(set(table["unit"]))))
    stays = np.flatnonzero(table["unit"] != leaver)
    without = table.iloc[stays].reset_index(drop=True)
    whole = fate(table, bound(table, max_records=max_records), np.arange(len(table)))
    rest = fate(without, bound(without, max_records=max_records), stays)
    assert rest == {row: what for row, what in whole.items() if what[0] != leaver}


@settings(max_examples=60, deadline=None)
@given(tables, st.integers(1, 5), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(table: pd.DataFrame, max_records: int, random: Any) -> None:
    def contents(one: pd.DataFrame) -> Counter[tuple[Any, ...]]:
        bounded = bound(one, max_records=max_records)
        kept = one.iloc[bounded.rows].astype(str).to_numpy().tolist()
        return Counter(
            (*row, int(w), bool(h)) for row, w, h in zip(kept, bounded.weights, bounded.holdout, strict=True)
        )

    order = list(range(len(table)))
    random.shuffle(order)
    assert contents(table) == contents(table.iloc[order].reset_index(drop=True))


@settings(max_examples=100, deadline=None)
@given(tables, st.integers(1, 16))
def test_a_unit_keeps_its_bounded_number_of_records_and_weighs_one(table: pd.DataFrame, max_records: int) -> None:
    bounded = bound(table, max_records=max_records)
    assert all(array.dtype == np.int64 for array in (bounded.rows, bounded.units, bounded.weights))
    assert bounded.holdout.dtype == bool
    assert len(set(bounded.rows.tolist())) == len(bounded.rows)
    assert bounded.unit_weight == unit_weight(max_records)
    owned = table["unit"].value_counts()
    names = table["unit"].to_numpy()[bounded.rows]
    assert set(names) == set(owned.index)
    for name in owned.index:
        here = names == name
        assert here.sum() == min(owned[name], max_records)
        assert int(bounded.weights[here].sum()) == bounded.unit_weight
        assert len(set(bounded.weights[here])) == 1
        assert len(set(bounded.holdout[here])) == 1
        # One number a unit, and one unit a number.
        assert len(set(bounded.units[here])) == 1
        assert set(bounded.units[here]).isdisjoint(bounded.units[~here])


def test_a_units_weight_is_divisible_by_every_number_of_records() -> None:
    for most in range(1, 17):
        assert all(unit_weight(most) % records == 0 for records in range(1, most + 1))
    assert unit_weight(16) == 720_720


def test_membership_in_the_holdout_does_not_depend_on_a_units_records() -> None:
    units = [number % 50 for number in range(200)]
    first, second = make_table(units, seed=1), make_table(units, seed=2)
    for max_records in (1, 4):
        sides = [
            dict(zip(table["unit"].to_numpy()[bounded.rows], bounded.holdout.tolist(), strict=True))
            for table in (first, second)
            for bounded in [bound(table, max_records=max_records)]
        ]
        assert sides[0] == sides[1]


def test_without_a_key_each_record_is_a_unit_and_equal_records_are_on_one_side() -> None:
    table = make_table([0] * 300, distinct=8).drop(columns="unit")
    bounded = bound(table, key=None, max_records=1)
    assert sorted(bounded.rows.tolist()) == list(range(300))
    assert len(set(bounded.units.tolist())) == 300
    assert set(bounded.weights.tolist()) == {1} == {bounded.unit_weight}
    contents = [tuple(row) for row in table.astype(str).to_numpy()[bounded.rows].tolist()]
    sides = set(zip(contents, bounded.holdout.tolist(), strict=True))
    assert len(sides) == len(set(contents)) < 300
    assert {side for _, side in sides} == {False, True}


def test_without_a_key_taking_a_record_away_leaves_its_doubles_where_they_were() -> None:
    table = make_table([0] * 60).drop(columns="unit")
    whole = bound(table, key=None, max_records=1)
    held = dict(zip(whole.rows.tolist(), whole.holdout.tolist(), strict=True))
    for gone in range(60):
        stays = np.delete(np.arange(60), gone)
        rest = bound(table.iloc[stays].reset_index(drop=True), key=None, max_records=1)
        assert dict(zip(stays[rest.rows].tolist(), rest.holdout.tolist(), strict=True)) == {
            row: side for row, side in held.items() if row != gone
        }


def test_surplus_records_are_refused_by_column_and_rule_and_no_value_is_named() -> None:
    table = make_table([7, 7, 7, 8])
    table["unit"] = table["unit"].str.replace("unit 7", "patient-4711")
    with pytest.raises(SchemaError, match=r"^unit: .*unit\.max_records=2") as refused:
        bound(table, max_records=2, drop_surplus=False)
    assert refused.value.code == ExitCode.UNIT_REPEATED
    assert "4711" not in str(refused.value)
    assert len(bound(table, max_records=3, drop_surplus=False).rows) == 4


@pytest.mark.statistical
@pytest.mark.parametrize("holdout", [0.05, 0.3, 0.499])
def test_the_holdout_has_its_share_of_units(holdout: float) -> None:
    # Five standard errors under a fixed key; false alarm with another key 6e-7.
    units = 10_000
    margin = 5 * math.sqrt(holdout * (1 - holdout) / units)
    keyed = bound(make_table(list(range(units))), max_records=1, holdout=holdout)
    assert keyed.holdout.mean() == pytest.approx(holdout, abs=margin)
    table = pd.DataFrame({"amount": np.arange(units, dtype=np.float64)})
    assert bound(table, key=None, max_records=1, holdout=holdout).holdout.mean() == pytest.approx(holdout, abs=margin)


def test_a_larger_share_holds_out_the_same_units_and_more() -> None:
    table = make_table(list(range(500)))
    few, many = (bound(table, holdout=share).holdout for share in (0.1, 0.4))
    assert few.sum() < many.sum()
    assert not (few & ~many).any()


def test_no_share_holds_out_nobody() -> None:
    assert not bound(make_table(list(range(200))), holdout=0.0).holdout.any()


@pytest.mark.statistical
@pytest.mark.parametrize("key", ["unit", None])
def test_another_secret_makes_another_split(key: str | None) -> None:
    # Independent splits of 1000 units agree on 0.7^2 + 0.3^2 = 0.58 of them; five standard errors, false alarm 6e-7.
    table = make_table(list(range(1000)), distinct=10**6)
    first, second = (bound(table, key=key, secret=secret) for secret in (SECRET, OTHER_SECRET))
    agree = first.holdout[np.argsort(first.rows)] == second.holdout[np.argsort(second.rows)]
    assert agree.mean() == pytest.approx(0.58, abs=5 * math.sqrt(0.58 * 0.42 / 1000))


def test_another_secret_keeps_other_surplus_records() -> None:
    table = make_table([number % 20 for number in range(200)], distinct=10**6)
    first, second = (bound(table, max_records=2, secret=secret) for secret in (SECRET, OTHER_SECRET))
    assert set(first.rows) != set(second.rows)
    again = bound(table, max_records=2)
    assert first.rows.tolist() == again.rows.tolist()


@pytest.mark.parametrize("key", ["unit", None])
def test_an_empty_table_has_no_records(key: str | None) -> None:
    bounded = bound(make_table([0, 1]).iloc[:0], key=key)
    assert [len(array) for array in (bounded.rows, bounded.units, bounded.weights, bounded.holdout)] == [0, 0, 0, 0]
