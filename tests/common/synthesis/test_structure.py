"""Rows under constraints: none is violated, and otherwise they are those that rejection would leave."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.data.constraints import count_row_violations, count_step_violations, make_rules
from common.errors import ConditionError, ExitCode, StudyError
from common.study import Study
from common.synthesis.release import Release
from common.synthesis.rows import draw_units
from common.synthesis.synthesizer import Synthesizer
from tests.common.synthesis.releases import PLAIN, make_release, study_of

CPU = torch.device("cpu")
COLUMNS: dict[str, Any] = PLAIN["columns"] | {
    "low": {"type": "integer", "min": 0, "max": 60, "cells": 30, "missing": True},
    "high": {"type": "integer", "min": 20, "max": 90, "cells": 12},
    "first": {"type": "continuous", "min": -5, "max": 8, "decimals": 2, "cells": 9, "scale": "asinh"},
    "by_card": {"type": "categorical", "categories": ["no", "yes"]},
    "by_cash": {"type": "categorical", "categories": ["no", "yes"], "missing": True},
    "town": {"type": "categorical", "categories": ["Rome", "Bonn", "Kyiv"]},
    "total": {"type": "integer", "min": 0, "max": 200, "missing": True},
}
CHANNELS: dict[str, Any] = {
    "pulse": {"type": "integer", "min": 40, "max": 200, "cells": 12, "missing": True},
    "stage": {"type": "categorical", "categories": ["one", "two", "three"], "missing": True},
    "state": {"type": "categorical", "categories": ["well", "ill", "dead"]},
}


def constrained(*constraints: Mapping[str, Any], **more: Any) -> Study:
    return study_of(columns=COLUMNS, constraints=list(constraints), **more)


def windows_of(layout: str) -> dict[str, Any]:
    grid = {"layout": "grid", "length": 6, "time": {"column": "hour"}, "step": 1}
    events = {"layout": "events", "length": 6, "time": {"column": "hour"}}
    return {**(grid if layout == "grid" else events), "channels": CHANNELS}


def ordered(*names: str, strict: bool = False) -> dict[str, Any]:
    return {"kind": "ordered", "columns": list(names), "strict": strict}


def implies(then: list[str], *when: str) -> dict[str, Any]:
    return {"kind": "implies", "if": list(when), "then": then}


SUM = {"kind": "sum", "total": "total", "parts": ["low", "high"]}
ONE = {"kind": "one_hot", "columns": ["by_card", "by_cash"], "value": "yes"}
TOWNS = {"kind": "combinations", "columns": ["town", "colour"], "rows": [["Rome", "red"], ["Bonn", "green"],
         ["Bonn", "=2+3"], ["Kyiv", "red"]]}  # fmt: skip
EACH: list[list[dict[str, Any]]] = [
    [ordered("low", "high")],
    [ordered("low", "age", "high", strict=True)],
    [ordered("pay", "first")],
    [ordered("pay", "first", strict=True), implies(["pay>=0"], "ill=yes")],
    [implies(["age>=30", "colour!="], "ill=yes"), implies(["dose<0.3"], "colour=red", "age<=60")],
    [ONE],
    [TOWNS, ONE, ordered("low", "high"), implies(["town!=Rome"], "low>30"), SUM],
]


def releases(constraints: list[dict[str, Any]]) -> tuple[Synthesizer, Synthesizer]:
    """Of one generator, with constraints and without; a sum is left out, since it is not measured."""
    kept = [one for one in constraints if one["kind"] != "sum"]
    return tuple(  # type: ignore[return-value]
        Synthesizer(make_release(constrained(*own)), CPU) for own in (kept, [])
    )


def shares(table: pd.DataFrame, name: str) -> pd.Series:
    values = table[name]
    if name in ("pay", "dose", "first"):
        values = np.floor(values * (4 if name == "dose" else 0.5))
    elif name in ("age", "low", "high"):
        values = values // 15
    return values.astype(str).fillna("missing").value_counts(normalize=True)


@pytest.mark.statistical
@pytest.mark.parametrize("constraints", EACH)
def test_rows_are_those_that_rejection_would_leave(constraints: list[dict[str, Any]]) -> None:
    ours, without = releases(constraints)
    table, free = ours.sample(8000, seed=1), without.sample(120_000, seed=2)
    study = ours.release.study
    assert sum(count_row_violations(table, study.constraints, study.columns).values()) == 0
    # The classes keep their released shares; within each, rejection says what is left.
    assert (table.ill == "yes").sum() == 2400
    fine = np.all([rule.holds(free) for rule in make_rules(study.constraints, study.columns)], axis=0)
    assert fine.mean() < 0.95
    for label in ("no", "yes"):
        own, left = table[table.ill == label], free[fine & (free.ill == label)]
        assert len(left) > 400
        for name in COLUMNS:
            if name != "total":
                apart = shares(own, name).sub(shares(left, name), fill_value=0).abs().max()
                assert apart < 0.02 + 2.5 / np.sqrt(len(left)), (label, name)


@pytest.mark.statistical
def test_latents_count_as_far_as_their_rows_fulfil_the_constraints() -> None:
    limit = implies(["age>=75", "age!="])
    ours, without = (make_release(constrained(*own)) for own in ([limit], []))
    for release in (ours, without):
        # Sharp, so that a latent tells the other columns much.
        for parameter in release.generator.parameters():
            parameter.data *= 1.5
    table, free = (Synthesizer(one, CPU).sample(rows, seed=1) for one, rows in ((ours, 8000), (without, 150_000)))
    for label in ("no", "yes"):
        own, every = table[table.ill == label], free[free.ill == label]
        left = every[(every.age >= 75).fillna(value=False)]
        assert len(left) > 400
        apart, moved = (
            {name: float(shares(left, name).sub(shares(one, name), fill_value=0).abs().max()) for name in COLUMNS}
            for one in (own, every)
        )
        names = set(COLUMNS) - {"total", "age"}
        assert max(moved[name] for name in names) > 0.1
        assert max(apart[name] for name in names) < 0.02 + 2.5 / np.sqrt(len(left))


@pytest.mark.parametrize("constraints", EACH)
def test_published_rows_and_rows_that_were_asked_for_violate_nothing(constraints: list[dict[str, Any]]) -> None:
    release = make_release(constrained(*constraints))
    study, synthesizer = release.study, Synthesizer(release, CPU)
    published = draw_units(release, rows=3000, seed=3, device=CPU, label_counts=np.array([1.0, 1.0])).records
    assert (published.ill == "yes").sum() == 1500
    asked = synthesizer.sample(
        3000, conditions=["pay>-4", "high>=35"], proportions=["ill=no:0.5,yes:0.5", "town=Rome:0.4,Bonn:0.6"], seed=4
    )
    assert ((asked.pay > -4) & (asked.high >= 35)).all()
    assert (asked.ill == "yes").sum() == 1500
    assert (asked.town == "Rome").sum() == 1200
    for table in (published, asked):
        assert sum(count_row_violations(table, study.constraints, study.columns).values()) == 0
        assert (table.dtypes == published.dtypes).all()
        assert len(table) == 3000


def test_a_sum_is_computed_and_missing_where_a_part_is() -> None:
    table = Synthesizer(make_release(constrained(SUM)), CPU).sample(2000, seed=0)
    assert table.total.dtype == "Int64"
    assert table.total.isna().equals(table.low.isna())
    assert 0 < table.low.isna().sum() < 2000
    assert (table.total == table.low + table.high).all()
    assert list(table.columns) == list(COLUMNS)


def test_decimals_add_up_exactly() -> None:
    columns = PLAIN["columns"] | {
        "fee": {"type": "continuous", "min": 0, "max": 3, "decimals": 2, "cells": 7},
        "cost": {"type": "continuous", "min": -5, "max": 8, "decimals": 2},
    }
    cost = {"kind": "sum", "total": "cost", "parts": ["pay", "fee"]}
    table = Synthesizer(make_release(study_of(columns=columns, constraints=[cost])), CPU).sample(3000, seed=0)
    cents = [np.rint(table[name] * 100).astype(int) for name in ("pay", "fee", "cost")]
    assert (cents[0] + cents[1] == cents[2]).all()
    assert table.cost.map(lambda value: value == float(f"{value:.2f}")).all()


def test_conditions_that_contradict_constraints_are_refused() -> None:
    synthesizer = Synthesizer(make_release(constrained(implies(["age>=30"], "ill=yes"))), CPU)
    with pytest.raises(ConditionError, match="hardly makes such rows") as caught:
        synthesizer.sample(100, conditions=["ill=yes", "age<30"], seed=0)
    assert caught.value.code == ExitCode.CONDITION_UNSUPPORTED
    with pytest.raises(ConditionError, match="total: is computed as total = low"):
        Synthesizer(make_release(constrained(SUM)), CPU).sample(100, conditions=["total>3"], seed=0)


def test_a_share_that_was_released_as_zero_cannot_be_constrained_to() -> None:
    release = make_release(constrained(implies(["town=Kyiv"])))
    binning = release.binnings[list(release.study.measured).index("town")]
    binning.within[:] = [[1.0, 1.0, 0.0]] * 2
    with pytest.raises(ConditionError, match="makes no rows that fulfil them all"):
        draw_units(release, rows=10, seed=0, device=CPU)


def test_the_same_seed_gives_the_same_rows() -> None:
    synthesizer = Synthesizer(make_release(constrained(*EACH[-1])), CPU)
    first, again, other = (synthesizer.sample(500, seed=seed) for seed in (7, 7, 8))
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)


RISING = {"kind": "monotone", "channel": "stage"}
FALLING = {"kind": "monotone", "channel": "pulse", "direction": "falling"}
DEAD = {"kind": "transitions", "channel": "state", "forbidden": [["dead", "ill"], ["dead", "well"]]}


@pytest.mark.statistical
@pytest.mark.parametrize("layout", ["grid", "events"])
def test_windows_violate_nothing_and_are_otherwise_as_they_were(layout: str) -> None:
    study = constrained(RISING, FALLING, DEAD, ordered("low", "high"), windows=windows_of(layout))
    release = make_release(study)
    units = draw_units(release, rows=4000, seed=1, device=CPU)
    asked = Synthesizer(release, CPU).sample_units(500, conditions=["town=Rome"], seed=2)
    free = draw_units(make_release(constrained(windows=windows_of(layout))), rows=30_000, seed=1, device=CPU)
    for table in (units, asked):
        assert set(count_step_violations(table.values, study.constraints, study.channels).values()) == {0}
        assert set(count_row_violations(table.records, study.constraints, study.columns).values()) == {0}
    violated = count_step_violations(free.values, study.constraints, study.channels)
    assert min(violated.values()) > 1000
    if layout == "grid":
        # Whether a value is there does not depend on what it is.
        there = [np.isnan(table.values).mean(axis=0) for table in (units, free)]
        assert np.abs(there[0] - there[1]).max() < 0.04
        # Given a course, the dead stay dead: of the windows without a constraint, those that rejection would leave.
        np.testing.assert_allclose((units.values[:, :, 2] == 2).mean(axis=0), dead_to_stay(release), atol=0.04)


def dead_to_stay(release: Release) -> np.ndarray:
    """Share of the dead in each step, mean over courses of what rejection leaves of each."""
    generator, random = release.generator, torch.Generator().manual_seed(3)
    labels = (torch.arange(1000) % 10 >= 7).long()  # as often as released
    courses = generator(torch.randn(len(labels), generator.shape.noise, generator=random), labels).courses
    assert courses is not None
    dead = torch.stack([courses.draw(random)[:, :, 2] == 2 for _ in range(200)])  # (draws, courses, steps)
    left = ~(dead[:, :, :-1] & ~dead[:, :, 1:]).any(dim=2, keepdim=True)
    shares = (dead & left).sum(dim=0) / left.sum(dim=0)
    return shares[left.any(dim=0)[:, 0]].mean(dim=0).numpy()


LIMITS = st.sampled_from(["low>20", "low!=", "high<=60", "age<40", "pay>-2.5", "first<=3", "dose>=0.25", "colour=red",
                          "colour!=green", "town!=Kyiv", "by_card=yes", "ill=yes", "age="])  # fmt: skip
ANY = st.one_of(
    st.builds(implies, st.lists(LIMITS, min_size=1, max_size=2), LIMITS),
    st.permutations(["low", "age", "high"]).flatmap(
        lambda names: st.sampled_from([ordered(*names[:2]), ordered(*names), ordered(*names, strict=True)])
    ),
    st.sampled_from([ordered("pay", "first"), ordered("first", "pay", strict=True), ONE, TOWNS, SUM]),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(ANY, min_size=1, max_size=4), st.integers(0, 50))
def test_whatever_is_declared_holds_or_is_refused(constraints: list[dict[str, Any]], seed: int) -> None:
    try:
        study = constrained(*constraints)
    except StudyError as error:
        assert "\n" not in str(error)  # noqa: PT017 (either is fine, but nothing else)
        return
    try:
        table = draw_units(make_release(study, seed=seed % 3), rows=300, seed=seed, device=CPU).records
    except ConditionError as error:
        assert error.code == ExitCode.CONDITION_UNSUPPORTED  # noqa: PT017
        return
    assert len(table) == 300
    assert sum(count_row_violations(table, study.constraints, study.columns).values()) == 0
