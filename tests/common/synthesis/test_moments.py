"""Means and standard deviations of columns: delivered together with all else, or refused with the request to blame."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from common.data.constraints import count_row_violations
from common.data.encoding import make_grid
from common.data.selection import everything, parse_value
from common.errors import ConditionError, ExitCode
from common.synthesis.latents import Latents
from common.synthesis.match import match_ratio
from common.synthesis.moments import Moment, Tally, parse_moments
from common.synthesis.plan import make_plan
from common.synthesis.release import OneWay
from common.synthesis.request import parse_request
from common.synthesis.structure import parts_of, powers_of, values_of
from common.synthesis.synthesizer import Synthesizer
from tests.common.synthesis.releases import WINDOWS, make_release, study_of
from tests.common.synthesis.test_structure import EACH, SUM, constrained, ordered

CPU = torch.device("cpu")
RELEASE = make_release()
SYNTHESIZER = Synthesizer(RELEASE, CPU)
ROWS = 20_000


def assert_delivered(table: pd.DataFrame, moments: dict[str, Any]) -> None:
    """Within 4 standard errors of a simple random sample of so many rows."""
    for name, asked in moments.items():
        values = table[name].dropna().to_numpy(np.float64)
        mean, stddev = asked if isinstance(asked, tuple) else (asked, None)
        assert abs(values.mean() - mean) < 4 * values.std() / math.sqrt(len(values)), name
        if stddev is not None:
            fourth = ((values - values.mean()) ** 4).mean()
            error = math.sqrt((fourth - values.var() ** 2) / len(values)) / (2 * values.std())
            assert abs(values.std() - stddev) < 4 * error, name


ASKED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"age": 50}, {}),
    ({"age": (50, 15), "pay": (1.0, 2.0), "dose": 0.4}, {}),
    ({"age": (50, 15)}, {"conditions": ["age>=20", "dose>0.5"]}),
    ({"pay": 1.0, "age": 45}, {"proportions": ["ill=yes:0.5,no:0.5"]}),
    (
        {"age": (50, 15), "pay": 1.0},
        {"conditions": ["dose>0.5"], "proportions": ["ill=yes:0.5,no:0.5", "colour=red:0.2,green:0.3,=2+3:0.5"]},
    ),
    ({"age": 40, "pay": -1.0}, {"proportions": ["age=..17:0.1,18..64:0.8,65..:0.05,:0.05"]}),
]


@pytest.mark.statistical
@pytest.mark.parametrize(("moments", "rest"), ASKED)
def test_moments_are_delivered_together_with_all_else(moments: dict[str, Any], rest: dict[str, Any]) -> None:
    drawn = SYNTHESIZER.stream(ROWS, moments=moments, seed=3, **rest)
    table = pd.concat([units.records for units in drawn], ignore_index=True)
    assert len(table) == ROWS
    assert_delivered(table, moments)
    for one in drawn.delivered():
        if one.kind == "share":
            assert one.delivered == pytest.approx(one.requested), one.group
        else:
            values = table[one.group.split()[1].split("=")[0]].dropna().to_numpy(np.float64)
            assert one.delivered == pytest.approx(values.mean() if one.kind == "mean" else values.std())
    assert {one.kind for one in drawn.delivered()} >= {"mean"}


@pytest.mark.statistical
@pytest.mark.parametrize("constraints", [EACH[0], EACH[1], EACH[3], EACH[4], EACH[-1]])
def test_moments_of_columns_that_constraints_tie_are_delivered_and_nothing_is_violated(
    constraints: list[dict[str, Any]],
) -> None:
    study = constrained(*constraints)
    synthesizer = Synthesizer(make_release(study), CPU)
    free = synthesizer.sample(5000, seed=1)
    moments = {
        name: float(free[name].mean() + shift * free[name].std())
        for name, shift in (("low", 0.4), ("high", -0.3), ("age", -0.2), ("pay", 0.2))
    }
    table = synthesizer.sample(
        ROWS, moments=moments, conditions=["dose>0.2"], proportions=["ill=yes:0.5,no:0.5"], seed=3
    )
    assert sum(count_row_violations(table, study.constraints, study.columns).values()) == 0
    assert (table.ill == "yes").sum() == ROWS // 2
    assert (table.dose > 0.2).all()
    assert_delivered(table, moments)


@pytest.mark.statistical
def test_the_rest_is_as_near_to_the_generator_as_can_be() -> None:
    """With a mean of one column, rows are the generator's weighed by exp of a line in it, and by nothing else."""
    free = SYNTHESIZER.sample(200_000, seed=5)
    table = SYNTHESIZER.sample(ROWS, moments={"pay": 1.5}, seed=3)
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        weights = np.exp(middle * free.pay)
        low, high = (middle, high) if float(np.average(free.pay, weights=weights)) < 1.5 else (low, middle)
    for name, values in (("age", free.age.fillna(-1).astype(float)), ("dose", free.dose), ("ill", free.ill == "yes")):
        own = (
            table[name].fillna(-1).astype(float)
            if name == "age"
            else table[name] == "yes"
            if name == "ill"
            else table[name]
        )
        assert abs(own.mean() - np.average(values, weights=weights)) < 5 * own.std() / math.sqrt(ROWS), name
    edges = np.linspace(-5, 5, 9)
    found, expected = np.histogram(table.pay, edges)[0] / ROWS, np.histogram(free.pay, edges, weights=weights)[0]
    assert np.abs(found - expected / expected.sum()).max() < 0.02


def test_missing_values_are_left_out_and_stay_as_many() -> None:
    free, table = SYNTHESIZER.sample(ROWS, seed=4), SYNTHESIZER.sample(ROWS, moments={"age": 75}, seed=3)
    assert abs(table.age.isna().mean() - free.age.isna().mean()) < 4 * math.sqrt(2 * 0.25 / ROWS)
    assert 0 < table.age.isna().mean() < 1


def test_the_error_of_a_mean_is_that_of_its_bins_alone() -> None:
    """Bins are drawn evenly, so that over seeds a mean varies by what values vary within bins."""
    means = [SYNTHESIZER.sample(500, moments={"pay": 1.0}, seed=seed).pay.mean() for seed in range(24)]
    table = SYNTHESIZER.sample(500, moments={"pay": 1.0}, seed=0)
    assert abs(np.mean(means) - 1.0) < 4 * np.std(means) / math.sqrt(len(means)) + 0.005
    assert np.std(means) < 0.6 * table.pay.std() / math.sqrt(500)


@pytest.mark.parametrize("text", ["", "age=..40", "age=7", "pay=-1.25..3", "dose=0.2..0.21"])
def test_expected_values_of_a_bin_are_those_of_draws(text: str) -> None:
    name, _, value = text.partition("=") if text else ("age", "", "")
    at = list(RELEASE.study.measured).index(name)
    grid, binning = make_grid(name, RELEASE.study.measured[name]), RELEASE.binnings[at]
    selection = parse_value(value, grid, name) if value else everything(grid)
    found = powers_of(binning, selection, 2.0)
    random = np.random.default_rng(0)
    for label in (0, 1):
        for number in np.flatnonzero(parts_of(binning, selection)[label]):
            ones = np.ones(4000, dtype=np.int64)
            drawn = values_of({0: selection}, binning, number * ones, label * ones, 0 * ones, random)
            apart = drawn.to_numpy(np.float64, na_value=np.nan) - 2.0
            if np.isnan(apart).all():
                assert found[label, number].tolist() == [0, 0, 0]
                continue
            expected = [1.0, apart.mean(), (apart**2).mean()]
            error = [1e-9, apart.std() / 60, (apart**2).std() / 60]
            assert (np.abs(found[label, number] - expected) <= 5 * np.array(error) + 1e-9).all()


def test_the_same_seed_gives_the_same_rows_and_windows_come_with_them() -> None:
    synthesizer = Synthesizer(make_release(study_of(windows=WINDOWS)), CPU)
    one, same, other = (synthesizer.sample_units(300, moments={"age": 50}, seed=seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(one.records, same.records)
    assert np.array_equal(one.values, same.values, equal_nan=True)
    assert not one.records.equals(other.records)
    assert one.values.shape == (300, 4, 1)


def test_a_column_without_present_values_has_no_mean() -> None:
    tally = Tally(Moment("age", 3.0, 1.0))
    tally.add(pd.Series([None, None], dtype="Int64"))
    assert tally.mean is None
    assert tally.stddev is None
    tally.add(pd.Series([2, None, 4], dtype="Int64"))
    assert (tally.mean, tally.stddev) == (3.0, 1.0)


# --- what is refused, and who is to blame

BLAME: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
    ({"age": 89.9}, {}, "mean age=89.9: the generator cannot", "sd"),
    ({"age": (45, 2)}, {}, "sd age=2: the generator cannot make such rows; nearest to sd age=2: ", "mean age"),
    ({"age": 50, "pay": 4.95}, {}, "mean pay=4.95: the generator cannot", "age"),
    ({"age": 60}, {"proportions": ["age=..40:0.5,41..:0.5"]}, "it could without the proportions of age", "pay"),
    ({"age": 60.9}, {"conditions": ["age<=61", "pay>0"]}, "it could without age<=61", "pay>0"),
    ({"age": 89.9, "pay": 4.95}, {}, "each alone is too much: (mean age=89.9) and (mean pay=4.95)", "sd"),
]


@pytest.mark.parametrize(("moments", "rest", "says", "says_not"), BLAME)
def test_what_cannot_be_met_is_blamed_on_the_right_request(
    moments: dict[str, Any], rest: dict[str, Any], says: str, says_not: str
) -> None:
    with pytest.raises(ConditionError) as caught:
        SYNTHESIZER.sample(100, moments=moments, seed=0, **rest)
    assert caught.value.code == ExitCode.CONDITION_UNSUPPORTED
    assert says in str(caught.value)
    assert says_not not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_means_that_only_together_are_too_much_are_both_named() -> None:
    """Constraints keep low below high: either mean could be, not both."""
    synthesizer = Synthesizer(make_release(constrained(ordered("low", "high"))), CPU)
    assert len(synthesizer.sample(100, moments={"low": 45}, seed=0)) == 100
    assert len(synthesizer.sample(100, moments={"high": 35}, seed=0)) == 100
    with pytest.raises(ConditionError, match="mean low=45, mean high=35: the generator cannot make such rows together"):
        synthesizer.sample(100, moments={"low": 45, "high": 35}, seed=0)


def test_a_mean_that_leaves_too_few_latents_is_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.synthesis.plan._Weighed.worth", lambda *_: np.array([500.0, 40.0]))
    with pytest.raises(ConditionError) as caught:
        SYNTHESIZER.sample(100, moments={"age": 50}, proportions=["ill=yes:0.5,no:0.5"], seed=0)
    assert caught.value.code == ExitCode.CONDITION_UNSUPPORTED
    assert str(caught.value).startswith("ill=no, mean age=50: the generator hardly makes such rows (40 effective")
    assert str(caught.value).endswith("; supported without mean age=50")


def test_the_nearest_mean_is_one_that_can_be_had() -> None:
    with pytest.raises(ConditionError, match=r"nearest to mean age=89\.9: ") as caught:
        SYNTHESIZER.sample(100, moments={"age": 89.9}, seed=0)
    nearest = float(str(caught.value).split("nearest to mean age=89.9: ")[1])
    drawn = SYNTHESIZER.sample(ROWS, moments={"age": nearest - 1e-4}, seed=0)
    assert_delivered(drawn, {"age": nearest})
    with pytest.raises(ConditionError):
        SYNTHESIZER.sample(100, moments={"age": nearest + 0.1}, seed=0)


def test_too_many_groups_for_means_are_refused_in_one_line() -> None:
    columns = {name: {"type": "integer", "min": 0, "max": 59, "cells": 60} for name in ("one", "two")} | {
        "ill": {"type": "categorical", "categories": ["no", "yes"]}
    }
    asked = [
        f"{name}=" + ",".join(f"{low}..{low + 1}:{1 / 30:.12f}" for low in range(0, 60, 2)) for name in ("one", "two")
    ]
    synthesizer = Synthesizer(make_release(study_of(columns=columns)), CPU)
    with pytest.raises(ConditionError, match="too many groups or bins at once; ask for fewer"):
        synthesizer.sample(100, proportions=asked, moments={"one": 29.5}, seed=0)


@pytest.mark.parametrize(
    ("moments", "where", "says"),
    [
        (
            {"age": 91},
            [],
            "mean age=91: values that the column and the rest of the request allow have means from 0 to 90",
        ),
        ({"age": 50}, ["age>=65"], "have means from 65 to 90"),
        ({"pay": (0, 9)}, [], "sd pay=9: with this mean, expected above 0 and at most 5"),
        ({"pay": (0, 0)}, [], "sd pay=0: with this mean, expected above 0"),
        ({"colour": 1}, [], "mean colour: expected a numeric column"),
        ({"ill": 1}, [], "mean ill: expected a numeric column"),
        ({"age": "old"}, [], "mean age: expected a number"),
        ({"age": (1, 2, 3)}, [], "mean age: expected a number, or a mean and a standard deviation"),
        ({"age": math.nan}, [], "mean age: expected a number"),
        ({"age": 3}, ["age="], "mean age: the rest of the request leaves missing values alone"),
        ({"nobody": 3}, [], "nobody: no such column"),
    ],
)
def test_moments_that_cannot_be_are_refused_in_one_line(moments: Any, where: list[str], says: str) -> None:
    with pytest.raises(ConditionError) as caught:
        parse_request(study_of(), where=where, moments=moments)
    assert says in str(caught.value)
    assert caught.value.code == ExitCode.CONDITION_INVALID


def test_means_within_shares_of_groups_are_bounded_by_them() -> None:
    with pytest.raises(ConditionError, match=r"have means from 32\.5 to 55"):
        parse_request(study_of(), proportions=["age=..20:0.5,65..:0.5"], moments={"age": 60})


def test_sums_and_channels_have_no_mean_of_their_own() -> None:
    with pytest.raises(ConditionError, match="total: is computed as total = low"):
        parse_request(constrained(SUM), moments={"total": 3})
    with pytest.raises(ConditionError, match="pulse: is a channel"):
        parse_request(study_of(windows=WINDOWS), moments={"pulse": 100})


def test_texts_of_moments() -> None:
    assert parse_moments(["age=62", "a=b=2.1"], ["a=b=0.8"]) == {"age": 62.0, "a=b": (2.1, 0.8)}
    for means, stddevs, says in (
        (["age"], [], "mean age: expected a column, =, and a number"),
        (["age=old"], [], "mean age=old: expected a column"),
        (["age=1", "age=2"], [], "mean age: is given twice"),
        ([], ["age=2"], "sd age: ask for the mean of age too"),
    ):
        with pytest.raises(ConditionError, match=says):
            parse_moments(means, stddevs)


# --- columns as the released tables say


def test_matching_brings_tables_nearer_to_the_released_ones_and_keeps_classes() -> None:
    # Tables that the generator could make: those of latents to one side.
    latents = Latents(RELEASE, {}, seed=9, device=CPU, bins_of=list(RELEASE.study.measured))
    latents.grow(2**14)
    tilt = np.exp(0.6 * latents.noise[:, 0])
    tables = [1000 * np.einsum("l,ylb->yb", tilt / tilt.sum(), latents.bins(name)) for name in RELEASE.study.measured]
    counts = np.array([1000.0, 1000.0])

    def distance(weights: np.ndarray) -> float:
        shares = [
            np.einsum("yl,ylb->yb", weights / weights.sum(axis=1, keepdims=True), latents.bins(name))
            for name in RELEASE.study.measured
        ]
        return max(float(np.abs(own - table / 1000).max()) for own, table in zip(shares, tables, strict=True))

    found = []
    for stddev in (0.1, 30.0, 1e6):
        one_way = OneWay(tuple(tables), tuple(np.full(table.shape[1], stddev) for table in tables))
        release = replace(RELEASE, one_way=one_way, label_counts=counts)
        ratio = match_ratio(release, latents)
        weights = latents.weights({})
        assert (weights * ratio).sum(axis=1) == pytest.approx(weights.sum(axis=1), abs=1e-6)
        found.append(distance(weights * ratio))
    before = distance(latents.weights({}))
    assert found[0] < 0.05 * before
    assert found[0] < found[1] < found[2]
    assert found[2] == pytest.approx(before, abs=1e-4)
    one_way = OneWay(tuple(tables), tuple(np.full(table.shape[1], 0.1) for table in tables))
    synthesizer = Synthesizer(replace(RELEASE, one_way=one_way, label_counts=counts), CPU)
    table = synthesizer.sample(ROWS, match=True, proportions=["ill=yes:0.5,no:0.5"], seed=1)
    assert (table.ill == "yes").sum() == ROWS // 2
    at = list(RELEASE.study.measured).index("dose")
    cells = np.minimum((table.dose * 8).astype(int), 7)
    for label, name in enumerate(("no", "yes")):
        own = np.bincount(RELEASE.binnings[at].bin_of[cells[table.ill == name]], minlength=tables[at].shape[1])
        assert np.abs(own / own.sum() - tables[at][label] / 1000).max() < 4 * math.sqrt(0.25 / (ROWS / 2))


def test_matching_holds_constraints() -> None:
    study = constrained(*EACH[-1])
    table = Synthesizer(make_release(study), CPU).sample(500, match=True, seed=1)
    assert sum(count_row_violations(table, study.constraints, study.columns).values()) == 0
    assert (table.ill == "yes").sum() == 150


@pytest.mark.parametrize(
    ("rest", "names"),
    [
        ({"where": ["age>=30"]}, "age>=30"),
        ({"proportions": ["age=..20:0.5,21..:0.5"]}, "proportions of age"),
        ({"moments": {"age": 50}}, "mean age=50"),
    ],
)
def test_matching_goes_with_proportions_of_the_label_alone(rest: dict[str, Any], names: str) -> None:
    with pytest.raises(ConditionError, match=f"match: goes with proportions of ill alone, not with {names}"):
        parse_request(study_of(), match=True, **rest)


def test_a_plan_without_means_is_as_it_was() -> None:
    request = parse_request(study_of(), where=["age>=30"])
    plan = make_plan(RELEASE, request, rows=50, seed=0, device=CPU)
    assert not plan.bins
    assert not plan.pieces
