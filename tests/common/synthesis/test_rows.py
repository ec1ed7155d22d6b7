"""Rows on demand: as many as asked for of each kind, and otherwise as the generator makes them."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from common.data.windows import WindowedTable
from common.errors import ConditionError, ExitCode
from common.synthesis.draws import resample, whole_shares
from common.synthesis.latents import Latents, effective
from common.synthesis.plan import FLOOR, make_plan
from common.synthesis.release import Release
from common.synthesis.request import parse_request
from common.synthesis.rows import draw_units
from common.synthesis.synthesizer import Synthesizer
from tests.common.synthesis.releases import WINDOWS, make_release, study_of

CPU = torch.device("cpu")
RELEASE = make_release()
SYNTHESIZER = Synthesizer(RELEASE, CPU)


@pytest.fixture(scope="module")
def plain() -> pd.DataFrame:
    """Rows as the generator makes them."""
    return draw_units(RELEASE, rows=200_000, seed=5, device=CPU).records


def shares(table: pd.DataFrame, name: str) -> pd.Series:
    values = table[name]
    if name in ("pay", "dose"):
        values = pd.cut(values, 6, labels=False)
    return values.astype(str).fillna("missing").value_counts(normalize=True)


def assert_alike(table: pd.DataFrame, other: pd.DataFrame, *, but: tuple[str, ...] = (), close: float = 0.025) -> None:
    """Columns have the same distribution, but for chance; and so has the label in groups of a column."""
    for name in set(table.columns) - set(but):
        assert shares(table, name).sub(shares(other, name), fill_value=0).abs().max() < close, name


CONDITIONS: list[tuple[Any, Any]] = [
    (["age>=65"], lambda t: t.age >= 65),
    (["colour=green"], lambda t: t.colour == "green"),
    (["colour=", "ill=yes"], lambda t: t.colour.isna() & (t.ill == "yes")),
    (
        ["pay>=1.25", "age!=", "colour!=red"],
        lambda t: (t.pay >= 1.25) & t.age.notna() & t.colour.isin(["green", "=2+3", "a,b:0.5"]),
    ),
    ({"age": (None, 40), "colour": ["red", "green"]}, lambda t: (t.age <= 40) & t.colour.isin(["red", "green"])),
    ({"age": None}, lambda t: t.age.isna()),
    ({"dose": (0.2, 0.4)}, lambda t: t.dose.between(0.2, 0.4)),
]


@pytest.mark.statistical
@pytest.mark.parametrize(("conditions", "holds"), CONDITIONS)
def test_conditioned_rows_are_those_that_rejection_would_leave(
    conditions: Any, holds: Any, plain: pd.DataFrame
) -> None:
    table = SYNTHESIZER.sample(20_000, conditions=conditions, seed=1)
    assert len(table) == 20_000
    assert holds(table).fillna(False).all()
    left = plain[holds(plain).fillna(False)]
    assert len(left) > 2000
    assert_alike(table, left)
    # What hangs together still does; rows that share a latent are not independent.
    for label in ("no", "yes"):
        found, expected = (frame[frame.ill == label].pay for frame in (table, left))
        if len(expected) > 50:
            error = expected.std() * math.sqrt(1 / len(expected) + 1 / min(len(found), 1000))
            assert abs(found.mean() - expected.mean()) < 4.5 * error


def test_a_request_that_says_nothing_gives_rows_as_the_generator_makes_them(plain: pd.DataFrame) -> None:
    table = SYNTHESIZER.sample(20_000, seed=2)
    assert_alike(table, plain)
    assert (table.ill == "yes").sum() == 6000  # as was released
    assert not table.duplicated(["dose"]).any()


def test_rows_are_in_no_order_and_have_the_dtypes_of_the_schema(plain: pd.DataFrame) -> None:
    table = SYNTHESIZER.sample(2000, conditions=["age>=30", "pay>0"], proportions=["colour=red:0.5,green:0.5"], seed=3)
    assert (table.dtypes == plain.dtypes).all()
    assert list(table.columns) == list(plain.columns)
    assert abs((table.colour[:1000] == "red").mean() - 0.5) < 0.08
    unmissing = make_release(study_of(columns=study_columns(missing=False)))
    assert Synthesizer(unmissing, CPU).sample(10, conditions=["age>=30"], seed=0).age.dtype == "int64"


def study_columns(*, missing: bool) -> dict[str, Any]:
    columns: Mapping[str, Any] = {
        "age": {"type": "integer", "min": 0, "max": 90, "cells": 20, "missing": missing},
        "ill": {"type": "categorical", "categories": ["no", "yes"]},
    }
    return dict(columns)


@pytest.mark.parametrize("rows", [1, 10, 997, 20_000])
def test_one_proportion_is_delivered_to_a_row(rows: int) -> None:
    drawn = SYNTHESIZER.stream(rows, proportions=["age=..17:0.1,18..64:0.65,65..:0.25"], seed=4)
    counts = np.sum([[(units.records.age <= 17).sum(), (units.records.age >= 65).sum()] for units in drawn], axis=0)
    assert counts.tolist() == whole_shares(np.array([0.1, 0.65, 0.25]), rows)[[0, 2]].tolist()
    assert drawn.delivered()[0].delivered == counts[0] / rows
    assert [one.requested for one in drawn.delivered()] == [0.1, 0.65, 0.25]


@pytest.mark.parametrize("rows", [100, 1999])
def test_several_proportions_are_delivered_together_and_conditions_hold(rows: int) -> None:
    asked = ["ill=yes:0.5,no:0.5", "colour=red:0.2,green:0.3,=2+3:0.5", "pay=..0:0.9,0.01..:0.1"]
    table = SYNTHESIZER.sample(rows, conditions=["age>=20"], proportions=asked, seed=5)
    assert (table.age >= 20).all()
    for found, share in (
        (table.ill == "yes", 0.5),
        (table.colour == "red", 0.2),
        (table.colour == "green", 0.3),
        (table.colour == "=2+3", 0.5),
        (table.pay <= 0, 0.9),
    ):
        assert abs(found.sum() - share * rows) < 1


def test_proportions_by_name_are_the_same_as_by_text() -> None:
    by_text = SYNTHESIZER.sample(500, proportions=["colour=a,b:0.5:0.25,red:0.75"], seed=6)
    by_name = SYNTHESIZER.sample(500, proportions={"colour": {"a,b:0.5": 0.25, "red": 0.75}}, seed=6)
    pd.testing.assert_frame_equal(by_text, by_name)
    assert (by_text.colour == "a,b:0.5").sum() == 125


@pytest.mark.statistical
def test_several_proportions_keep_what_hangs_together(plain: pd.DataFrame) -> None:
    """Raking changes the shares alone: the odds ratio of two columns stays the generator's."""

    def odds(table: pd.DataFrame) -> float:
        counts = pd.crosstab(table.pay <= 0, table.ill).to_numpy().astype(float)
        return float(np.log(counts[0, 0] * counts[1, 1] / counts[0, 1] / counts[1, 0]))

    table = SYNTHESIZER.sample(40_000, proportions=["pay=..0:0.5,0.01..:0.5", "ill=yes:0.5,no:0.5"], seed=7)
    assert abs(odds(plain)) > 0.1
    assert abs(odds(table) - odds(plain)) < 0.1


def test_the_same_seed_gives_the_same_rows_and_none_other_ones() -> None:
    one, same, other, free, again = (
        SYNTHESIZER.sample(50, conditions=["age>=65"], seed=seed) for seed in (1, 1, 2, None, None)
    )
    pd.testing.assert_frame_equal(one, same)
    assert not one.equals(other)
    assert not free.equals(again)


def test_windows_come_with_their_records() -> None:
    study = study_of(windows=WINDOWS)
    units: WindowedTable = Synthesizer(make_release(study), CPU).sample_units(300, conditions=["age>=65"], seed=0)
    assert (units.records.age >= 65).all()
    assert units.values.shape == (300, 4, 1)
    assert units.lengths.tolist() == [4] * 300
    with pytest.raises(ConditionError, match="pulse: is a channel"):
        parse_request(study, where=["pulse>100"])


# --- what is refused


def sharp(factor: float) -> Release:
    """A generator whose every latent makes one row and no other."""
    release = make_release(seed=3)
    release.generator.heads.weight.data *= factor
    release.generator.heads.bias.data *= factor
    return release


def test_what_the_generator_hardly_makes_is_refused_and_what_it_makes_is_named() -> None:
    synthesizer = Synthesizer(sharp(40.0), CPU)
    plan = make_plan(synthesizer.release, parse_request(study_of(), where=["colour=red"]), rows=5, seed=0, device=CPU)
    assert plan.effective > FLOOR
    with pytest.raises(ConditionError) as caught:
        synthesizer.sample(
            5, conditions=["colour=red", "age=30..33", "pay=-4.90..-4.80", "dose=0.31..0.32", "ill=yes"], seed=0
        )
    assert caught.value.code is ExitCode.CONDITION_UNSUPPORTED
    assert "effective latents" in str(caught.value)
    assert "supported" in str(caught.value)


def test_shares_that_no_rows_could_have_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    measure = Latents.measure

    def never_both(self: Latents, numbers: Mapping[str, int]) -> tuple[float, float]:
        """As if red came with the one label alone, and green with the other."""
        return measure(self, numbers) if numbers["colour"] == numbers["ill"] else (0.0, 0.0)

    monkeypatch.setattr(Latents, "measure", never_both)
    colours = "colour=red:0.75,green:0.25"
    table = SYNTHESIZER.sample(100, proportions=[colours, "ill=no:0.75,yes:0.25"], seed=0)
    assert (table.ill[table.colour == "red"] == "no").all()
    with pytest.raises(ConditionError, match="colour, ill: these proportions cannot be met together"):
        SYNTHESIZER.sample(100, proportions=[colours, "ill=no:0.25,yes:0.75"], seed=0)


def test_a_share_that_a_condition_excludes_is_refused() -> None:
    with pytest.raises(ConditionError, match=re.escape("age=..17 is asked for, and age>=18 excludes it")):
        parse_request(study_of(), where=["age>=18"], proportions=["age=..17:0.5,18..:0.5"])


@pytest.mark.parametrize(
    ("proportions", "says"),
    [
        (["ill"], "expected a column, =, and value:share"),
        (["ill=yes"], "ill: yes: expected value:share"),
        (["ill=yes:0.3"], "ill: the shares add up to 0.3; expected 1"),
        (["ill=yes:x,no:1"], "share: expected a number from 0 to 1"),
        (["ill=yes:-1,no:2"], "share: expected a number from 0 to 1"),
        (["age=..20:0.5,20..:0.5"], "age: two groups have values in common"),
        (["ill=yes:1", "ill=yes:1"], "ill: proportions are given twice"),
        (["nobody=1:1"], "nobody: no such column; there are colour, age, pay, dose, ill"),
    ],
)
def test_proportions_that_cannot_be_are_refused_in_one_line(proportions: list[str], says: str) -> None:
    with pytest.raises(ConditionError) as caught:
        parse_request(study_of(), proportions=proportions)
    assert says in str(caught.value)


def test_conditions_that_cannot_be_are_refused() -> None:
    for where, says in (
        (["age<3", "age>5"], "age<3 and age>5: no value fulfils both"),
        ({"age": []}, "age: expected at least one value"),
        ({"age": (1, 2, 3)}, "a range: expected a tuple of two"),
    ):
        with pytest.raises(ConditionError, match=says):
            parse_request(study_of(), where=where)  # type: ignore[arg-type]
    with pytest.raises(ConditionError, match="n=0: expected from 1"):
        SYNTHESIZER.sample(0)


# --- weights


def test_resampling_takes_each_as_often_as_its_weight_says() -> None:
    weights = np.array([0.0, 0.5, 0.0, 0.2, 0.3, 0.0])
    for size in (1, 7, 100, 101):
        counts = np.bincount(resample(weights, size, np.random.default_rng(size)), minlength=6)
        assert counts.sum() == size
        assert (np.abs(counts - size * weights) < 1).all()
        assert counts[weights == 0].sum() == 0


def test_effective_latents() -> None:
    assert effective(np.ones(50)) == pytest.approx(50)
    assert effective(np.array([1.0, 0.0, 0.0])) == 1
    assert effective(np.array([3.0, 1.0])) == pytest.approx(16 / 10)
    assert effective(np.zeros(3)) == 0
