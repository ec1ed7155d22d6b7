"""The mechanism: one unit moves the sums by no more than is claimed, and nothing is drawn that was not charged."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.encoding import Grid, encode_table, make_grids
from common.data.histograms import histogram_codes, histogram_layout
from common.data.schema import CategoricalColumn, Column, IntegerColumn
from common.data.tables import TableLayout, all_pairs, cell_indices
from common.data.units import bound_units
from common.errors import BudgetError, LedgerError
from common.privacy.events import GaussianEvent
from common.privacy.ledger import Charge, Ledger
from common.privacy.mechanism import Contributions, CountMechanism
from common.privacy.noise import MAXIMUM_STDDEV, SeededNoise

SECRET = bytes(range(32))
LABELS = ("no", "yes")


class Silence:
    """No noise at all: what comes out of a release are the sums. Notes what was asked of it."""

    kind = "test-seed"

    def __init__(self) -> None:
        self.drawn: list[str] = []

    def draw(self, size: int, *, noise_stddev: float, context: str) -> np.ndarray:
        self.drawn.append(context)
        return np.zeros(size, dtype=np.int64)


class Pass:
    """A ledger that grants everything and notes it."""

    def __init__(self) -> None:
        self.charged: list[Charge] = []

    def authorise(self, charge: Charge) -> None:
        self.charged.append(charge)


def sums_of(mechanism: CountMechanism, contributions: Contributions) -> np.ndarray:
    """The sums that a release adds its noise to."""
    noise = Silence()
    event = mechanism.plan(spend=1.0, account="train", noise=noise)  # type: ignore[arg-type]
    return release(mechanism, contributions, event, ledger=Pass(), noise=noise)


def release(
    mechanism: CountMechanism, contributions: Contributions, event: GaussianEvent, *, ledger: Any, noise: Any
) -> np.ndarray:
    return mechanism.release(
        contributions, event=event, request="run/one_way", request_digest="ab" * 32, ledger=ledger, noise=noise
    )


@dataclass(frozen=True)
class Case:
    """A random schema, a table that fits it, and the number of records of one unit that count."""

    table: pd.DataFrame
    grids: tuple[Grid, ...]
    max_records: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Categorical and sparse integer columns, with missing cells; few units, one of which often has most rows."""
    columns: dict[str, Column] = {}
    for position in range(draw(st.integers(2, 4))):
        missing = draw(st.booleans())
        if draw(st.booleans()):
            values = tuple(f"value {number}" for number in range(draw(st.integers(2, 4))))
            columns[f"c{position}"] = CategoricalColumn(type="categorical", categories=values, missing=missing)
        else:
            columns[f"c{position}"] = IntegerColumn(
                type="integer", min=0, max=99, cells=20, sparse=draw(st.booleans()), missing=missing
            )
    rows = draw(st.integers(1, 25))
    seed = np.random.default_rng(draw(st.integers(0, 2**32)))
    units = seed.integers(0, draw(st.integers(1, 6)), rows)
    units[seed.random(rows) < draw(st.sampled_from([0.0, 0.8]))] = 0
    data: dict[str, Any] = {"unit": [f"unit {unit}" for unit in units]}
    for name, column in columns.items():
        absent = (seed.random(rows) < 0.3) & column.missing
        if isinstance(column, CategoricalColumn):
            # Few distinct values, so that the records of a unit pile up in the same cells.
            codes = np.where(absent, -1, seed.integers(0, 2, rows))
            data[name] = pd.Categorical.from_codes(codes, categories=list(column.values))
        else:
            data[name] = pd.Series(seed.choice([0, 7, 99], rows)).astype("Int64").mask(absent)
    data["label"] = pd.Categorical.from_codes(seed.integers(0, 2, rows), categories=list(LABELS))
    return Case(pd.DataFrame(data), make_grids(columns), draw(st.integers(1, 5)))


def contributions_of(case: Case, table: pd.DataFrame, layout: TableLayout, *, pairs: bool) -> dict[str, Contributions]:
    """What each account of units adds to a vector, by the same steps as at a site."""
    bounded = bound_units(
        table, key="unit", max_records=case.max_records, drop_surplus=True, holdout=0.4, secret=SECRET
    )
    cells = encode_table(table, case.grids)
    codes = cells if pairs else histogram_codes(cells, case.grids)
    indices = cell_indices(codes, table["label"].cat.codes.to_numpy().astype(np.int64), layout)[bounded.rows]
    return {
        account: Contributions(bounded.units[chosen], indices[chosen], bounded.weights[chosen])
        for account, chosen in (("train", ~bounded.holdout), ("holdout", bounded.holdout))
    }


@settings(max_examples=120, deadline=None)
@given(cases(), st.booleans(), st.data())
def test_one_unit_moves_the_sums_of_one_account_by_the_sensitivity_at_most(
    case: Case, pairs: bool, data: st.DataObject
) -> None:
    layout = (
        all_pairs([grid.n_cells for grid in case.grids], len(LABELS))
        if pairs
        else histogram_layout(case.grids, len(LABELS))
    )
    leaver = data.draw(st.sampled_from(sorted(set(case.table["unit"]))))
    without = case.table[case.table["unit"] != leaver].reset_index(drop=True)
    weight = math.lcm(*range(1, case.max_records + 1))
    mechanism = CountMechanism(layout.offsets, weight)
    assert mechanism.squared_sensitivity == layout.n_tables * weight**2
    moved = []
    ours, theirs = (contributions_of(case, table, layout, pairs=pairs) for table in (case.table, without))
    for account in ("train", "holdout"):
        difference = sums_of(mechanism, ours[account]) - sums_of(mechanism, theirs[account])
        squared = sum(int(cell) ** 2 for cell in difference)
        assert squared <= mechanism.squared_sensitivity
        moved.append(squared > 0)
        for table in layout.split(difference):
            assert int(np.abs(table).sum()) in (0, weight)
    # The unit was in one account: in the other not a count has changed.
    assert sorted(moved) == [False, True]


def test_the_sensitivity_is_reached_by_a_unit_whose_records_are_alike() -> None:
    # Three records of weight 2 in the same cell of each of two tables: 6^2 + 6^2.
    mechanism = CountMechanism(np.array([0, 3, 8]), unit_weight=6)
    alone = Contributions(np.zeros(3, np.int64), np.array([[1, 5]] * 3), np.full(3, 2))
    assert int((sums_of(mechanism, alone) ** 2).sum()) == 72 == mechanism.squared_sensitivity


def test_the_sensitivity_is_an_exact_integer_however_large() -> None:
    mechanism = CountMechanism(np.arange(2001), unit_weight=720_720)
    assert mechanism.squared_sensitivity == 2000 * 720_720**2
    assert isinstance(mechanism.squared_sensitivity, int)


# Two tables of 3 and 5 cells, a unit weighs 6.
MECHANISM = CountMechanism(np.array([0, 3, 8]), unit_weight=6)


def whole(values: Sequence[Any]) -> np.ndarray:
    return np.array(values, dtype=np.int64)


GOOD = Contributions(whole([0, 0, 1]), whole([[0, 3], [2, 7], [1, 4]]), whole([3, 3, 6]))
BAD = {
    "a record weighs too much": replace(GOOD, weights=whole([3, 3, 7])),
    "a unit's records weigh too much together": replace(GOOD, weights=whole([3, 4, 6])),
    "weights whose sum wraps round to nothing": Contributions(
        whole([0] * 4), whole([[0, 3]] * 4), whole([2**62, 2**62, 2**62, 2**62])
    ),
    "a weight is negative": replace(GOOD, weights=whole([3, -3, 6])),
    "a negative weight hides a large one": replace(GOOD, weights=whole([9, -3, 6])),
    "a cell of the next table": replace(GOOD, indices=whole([[3, 3], [2, 7], [1, 4]])),
    "a cell of the table before": replace(GOOD, indices=whole([[0, 2], [2, 7], [1, 4]])),
    "a cell before the first": replace(GOOD, indices=whole([[-1, 3], [2, 7], [1, 4]])),
    "a cell behind the last": replace(GOOD, indices=whole([[0, 3], [2, 8], [1, 4]])),
    "a unit with a negative number": replace(GOOD, units=whole([0, 0, -1])),
    "a table too few": replace(GOOD, indices=GOOD.indices[:, :1]),
    "a table too many": replace(GOOD, indices=GOOD.indices[:, [0, 1, 1]]),
    "a record without weight": replace(GOOD, weights=GOOD.weights[:2]),
    "a record without unit": replace(GOOD, units=GOOD.units[:2]),
    "one weight for all": replace(GOOD, weights=GOOD.weights[:1]),
    "weights as floats": replace(GOOD, weights=GOOD.weights.astype(np.float64)),
    "narrow weights": replace(GOOD, weights=GOOD.weights.astype(np.int32)),
    "narrow cells": replace(GOOD, indices=GOOD.indices.astype(np.int32)),
    "units as floats": replace(GOOD, units=GOOD.units.astype(np.float64)),
    "unsigned units": replace(GOOD, units=GOOD.units.astype(np.uint64)),
}


def test_good_contributions_are_summed_exactly() -> None:
    assert sums_of(MECHANISM, GOOD).tolist() == [3, 6, 3, 3, 6, 0, 0, 3]


@pytest.mark.parametrize("fault", BAD)
def test_contributions_that_break_the_bound_are_refused_before_any_charge(fault: str) -> None:
    noise, ledger = Silence(), Pass()
    event = MECHANISM.plan(spend=1.0, account="train", noise=noise)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="contributions"):
        release(MECHANISM, BAD[fault], event, ledger=ledger, noise=noise)
    assert ledger.charged == []
    assert noise.drawn == []


@pytest.mark.parametrize(
    "change",
    [
        {"squared_sensitivity": 71},
        {"squared_sensitivity": 73},
        {"cells": 9},
        {"cells": 7},
        {"scale": 5},
        {"noise": "csprng"},
        {"noise_stddev": 0.0},
        {"noise_stddev": -8.0},
        {"noise_stddev": math.nan},
        {"noise_stddev": math.inf},
        {"noise_stddev": 2 * MAXIMUM_STDDEV},
    ],
)
def test_an_event_that_is_not_this_mechanisms_is_refused_before_any_charge(change: dict[str, Any]) -> None:
    noise, ledger = Silence(), Pass()
    planned = MECHANISM.plan(spend=1.0, account="train", noise=noise)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="event"):
        release(MECHANISM, GOOD, replace(planned, **change), ledger=ledger, noise=noise)
    assert ledger.charged == []
    assert noise.drawn == []


@pytest.mark.parametrize("refusal", [BudgetError("budget"), LedgerError("ledger")])
def test_what_the_ledger_refuses_is_not_drawn(refusal: Exception) -> None:
    class Refuse:
        def authorise(self, charge: Charge) -> None:
            raise refusal

    noise = Silence()
    event = MECHANISM.plan(spend=1.0, account="train", noise=noise)  # type: ignore[arg-type]
    with pytest.raises(type(refusal)):
        release(MECHANISM, GOOD, event, ledger=Refuse(), noise=noise)
    assert noise.drawn == []


def test_a_real_ledger_that_is_spent_stops_the_draw(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "north.jsonl", site="north", study="0f" * 32, squared_mu=1.0)
    noise = Silence()
    event = MECHANISM.plan(spend=0.7, account="train", noise=noise)  # type: ignore[arg-type]
    release(MECHANISM, GOOD, event, ledger=ledger, noise=noise)
    before = (tmp_path / "north.jsonl").read_bytes()
    with pytest.raises(BudgetError):
        MECHANISM.release(GOOD, event=event, request="run/two", request_digest="", ledger=ledger, noise=noise)  # type: ignore[arg-type]
    assert noise.drawn == ["run/one_way"]
    assert (tmp_path / "north.jsonl").read_bytes() == before


def test_what_is_charged_is_what_was_planned_and_what_is_drawn() -> None:
    ledger, noise = Pass(), SeededNoise(b"seed")
    event = MECHANISM.plan(spend=0.02, account="holdout", noise=noise)
    noised = release(MECHANISM, GOOD, event, ledger=ledger, noise=noise)
    assert ledger.charged == [Charge("run/one_way", "ab" * 32, event)]
    assert event.spend <= 0.02
    assert (event.account, event.cells, event.scale, event.noise) == ("holdout", 8, 6, "test-seed")
    assert event.noise_stddev == pytest.approx(math.sqrt(72 / 0.02))
    drawn = noise.draw(8, noise_stddev=event.noise_stddev, context="run/one_way")
    assert noised.dtype == np.int64
    assert (noised - drawn).tolist() == sums_of(MECHANISM, GOOD).tolist()


@pytest.mark.statistical
@pytest.mark.parametrize("spend", [0.5, 36.0, 72.0])
def test_the_noise_of_a_release_has_the_variance_of_its_event(spend: float) -> None:
    mechanism = CountMechanism(np.array([0, 100_000]), unit_weight=6)
    noise = SeededNoise(b"a fixed seed for the gate")
    event = mechanism.plan(spend=spend, account="train", noise=noise)
    nobody = Contributions(whole([]), np.zeros((0, 1), np.int64), whole([]))
    drawn = release(mechanism, nobody, event, ledger=Pass(), noise=noise).astype(np.float64)
    # Rounding adds 1/12. Five standard errors of a variance over 1e5 draws; false alarm 6e-7.
    assert drawn.var() == pytest.approx(event.noise_stddev**2 + 1 / 12, rel=5 * math.sqrt(2 / 100_000))
    assert abs(drawn.mean()) < 5 * drawn.std() / math.sqrt(100_000)


def test_nobodys_contributions_are_charged_and_noised_like_everybodys() -> None:
    ledger, noise = Pass(), SeededNoise(b"seed")
    event = MECHANISM.plan(spend=1.0, account="train", noise=noise)
    nobody = Contributions(whole([]), np.zeros((0, 2), np.int64), whole([]))
    noised = release(MECHANISM, nobody, event, ledger=ledger, noise=noise)
    assert len(ledger.charged) == 1
    assert noised.tolist() == noise.draw(8, noise_stddev=event.noise_stddev, context="run/one_way").tolist()


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 720_720), st.floats(1e-6, 1e3))
def test_a_plan_never_spends_more_than_it_was_given(tables: int, unit_weight: int, spend: float) -> None:
    event = CountMechanism(np.arange(tables + 1), unit_weight).plan(spend=spend, account="train", noise=Silence())  # type: ignore[arg-type]
    assert 0 < event.spend <= spend
    assert event.scale == unit_weight


@pytest.mark.parametrize("spend", [1e-23, 1e-40, 1e-300, 5e-324, 0.0])
def test_a_spend_too_small_for_noise_on_the_integers_is_refused(spend: float) -> None:
    # Noise far above 2^53 skips integers: it would let the sums through for nearly nothing.
    with pytest.raises(BudgetError, match="too small"):
        MECHANISM.plan(spend=spend, account="train", noise=SeededNoise(b"seed"))
