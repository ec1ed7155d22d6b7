"""The mechanism: one unit moves the sums by no more than is claimed, and nothing is drawn that was not charged."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.encoding import Grid, encode_table, make_grids
from common.data.histograms import histogram_codes, histogram_layout, window_hits
from common.data.queries import Coded, Counter, Query, catalogue, layout_of
from common.data.schema import CategoricalColumn, Column, IntegerColumn
from common.data.tables import Hits, TableLayout, cell_indices
from common.data.units import WINDOW_WEIGHT, bound_units
from common.data.windows import TimeColumn, Windows
from common.errors import BudgetError, LedgerError
from common.privacy.accountants import GdpAccountant
from common.privacy.events import GaussianEvent
from common.privacy.ledger import Asset, Charge, Ledger
from common.privacy.mechanism import MAXIMUM_EMPHASIS, Contributions, CountMechanism
from common.privacy.noise import MAXIMUM_STDDEV, SeededNoise
from common.privacy.signatures import SigningKey

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


def sums_of(mechanism: CountMechanism, *parts: Contributions) -> np.ndarray:
    """The sums that a release adds its noise to."""
    noise = Silence()
    event = mechanism.plan(spend=1.0, account="train", noise=noise)  # type: ignore[arg-type]
    return release(mechanism, parts, event, ledger=Pass(), noise=noise)


def release(
    mechanism: CountMechanism, parts: Iterable[Contributions], event: GaussianEvent, *, ledger: Any, noise: Any
) -> np.ndarray:
    return mechanism.release(
        parts, event=event, request="run/one_way", request_digest="ab" * 32, ledger=ledger, noise=noise
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


def parts_of(
    case: Case, table: pd.DataFrame, layout: TableLayout, queries: Sequence[Query]
) -> dict[str, list[Contributions]]:
    """What each account of units adds to a vector, by the same steps as at a site; no queries for one-way tables."""
    bounded = bound_units(
        table, key="unit", max_records=case.max_records, drop_surplus=True, holdout=0.4, secret=SECRET
    )
    cells = encode_table(table, case.grids)[bounded.rows]
    labels = table["label"].cat.codes.to_numpy().astype(np.int64)[bounded.rows]
    parts = {}
    for account, chosen in (("train", ~bounded.holdout), ("holdout", bounded.holdout)):
        units, weights = bounded.units[chosen], bounded.weights[chosen]
        if queries:
            counter = Counter(Coded(labels[chosen], cells[chosen]), None, weights)
            parts[account] = [as_part(hits, units) for hits in hits_of(counter, queries, layout)]
        else:
            codes = histogram_codes(cells[chosen], case.grids)
            parts[account] = [Contributions(units, cell_indices(codes, labels[chosen], layout), weights)]
    return parts


def hits_of(counter: Counter, queries: Sequence[Query], layout: TableLayout) -> Iterator[Hits]:
    return (counter.hits(query, layout, number) for number, query in enumerate(queries))


def as_part(hits: Hits, units: np.ndarray) -> Contributions:
    return Contributions(units[hits.rows], hits.cells[:, None], hits.weights)


def emphases(tables: int, data: st.DataObject) -> np.ndarray:
    """What a coordinator may ask for: a whole number from 1 to 16 a table."""
    listed = data.draw(st.lists(st.integers(1, MAXIMUM_EMPHASIS), min_size=tables, max_size=tables))
    return np.array(listed, dtype=np.int64)


def check_move(
    difference: np.ndarray, mechanism: CountMechanism, layout: TableLayout, emphasis: np.ndarray
) -> list[int]:
    """One unit's part in the sums is within the sensitivity, together and table by table; its L1 norm in each."""
    assert sum(int(cell) ** 2 for cell in difference) <= mechanism.squared_sensitivity
    moved = [int(np.abs(table).sum()) for table in layout.split(difference)]
    assert all(one <= mechanism.unit_weight * most for one, most in zip(moved, emphasis.tolist(), strict=True))
    return moved


@settings(max_examples=120, deadline=None)
@given(cases(), st.booleans(), st.data())
def test_one_unit_moves_the_sums_of_one_account_by_the_sensitivity_at_most(
    case: Case, pairs: bool, data: st.DataObject
) -> None:
    queries = catalogue(len(case.grids), None) if pairs else ()
    layout = (
        layout_of(queries, [grid.n_cells for grid in case.grids], len(LABELS))
        if pairs
        else histogram_layout(case.grids, len(LABELS))
    )
    leaver = data.draw(st.sampled_from(sorted(set(case.table["unit"]))))
    without = case.table[case.table["unit"] != leaver].reset_index(drop=True)
    weight = math.lcm(*range(1, case.max_records + 1))
    emphasis = emphases(layout.n_tables, data)
    mechanism = CountMechanism(layout.offsets, weight, emphasis)
    assert mechanism.squared_sensitivity == sum(one**2 for one in emphasis.tolist()) * weight**2
    moved = []
    ours, theirs = (parts_of(case, table, layout, queries) for table in (case.table, without))
    for account in ("train", "holdout"):
        difference = sums_of(mechanism, *ours[account]) - sums_of(mechanism, *theirs[account])
        found = check_move(difference, mechanism, layout, emphasis)
        moved.append(any(found))
        # All of a unit's weight in each table, or nothing in any.
        assert found == [weight * most * moved[-1] for most in emphasis.tolist()]
    # The unit was in one account: in the other not a count has changed.
    assert sorted(moved) == [False, True]


@st.composite
def windows(draw: st.DrawFn) -> tuple[Windows, np.ndarray, np.ndarray]:
    """A study's windows, cells of some units' windows, (units, steps, channels), and their labels; few values, so that
    steps pile up in the same cells.
    """  # noqa: D205
    length = draw(st.integers(2, 20))
    layout = draw(st.sampled_from(["grid", "events"]))
    channels: dict[str, Column] = {
        "level": IntegerColumn(type="integer", min=0, max=99, cells=20, missing=True, sparse=draw(st.booleans())),
        "kind": CategoricalColumn(type="categorical", categories=("a", "b"), missing=draw(st.booleans())),
    }
    found = Windows(
        layout=layout,
        length=length,
        time=TimeColumn(column="at"),
        channels=channels,
        **({"step": 1} if layout == "grid" else {"empty": "allow"}),
    )
    units = draw(st.integers(1, 6))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    cells = np.stack(
        [random.choice([0, 0, 0, one.n_cells - 1], (units, length)) for one in make_grids(channels)], axis=2
    )
    lengths = np.full(units, length) if layout == "grid" else random.integers(0, length + 1, units)
    cells[np.arange(length) >= lengths[:, None]] = -1
    return found, cells, random.integers(0, 2, units)


@settings(max_examples=120, deadline=None)
@given(windows(), st.booleans(), st.data())
def test_one_unit_s_window_moves_the_sums_by_the_sensitivity_at_most(
    case: tuple[Windows, np.ndarray, np.ndarray], one_way: bool, data: st.DataObject
) -> None:
    schema, cells, labels = case
    grids = make_grids(schema.channels)
    queries = catalogue(1, schema)
    layout = (
        histogram_layout((), len(LABELS), grids)
        if one_way
        else layout_of(queries, [2, *(grid.n_cells for grid in grids)], len(LABELS))
    )
    emphasis = emphases(layout.n_tables, data)
    mechanism = CountMechanism(layout.offsets, WINDOW_WEIGHT, emphasis)

    def sums(rows: np.ndarray) -> np.ndarray:
        mine, lengths = cells[rows], (cells[rows, :, 0] >= 0).sum(axis=1)
        coded = Coded(labels[rows], labels[rows, None], mine, lengths)
        counter = Counter(coded, schema, np.full(len(rows), WINDOW_WEIGHT))
        hits = (
            window_hits(mine, labels[rows], grids, layout, whole=WINDOW_WEIGHT)
            if one_way
            else hits_of(counter, queries, layout)
        )
        return sums_of(mechanism, *(as_part(one, rows) for one in hits))

    everybody = np.arange(len(cells))
    leaver = data.draw(st.sampled_from(everybody.tolist()))
    moved = check_move(sums(everybody) - sums(np.delete(everybody, leaver)), mechanism, layout, emphasis)
    assert any(moved) == bool((cells[leaver] >= 0).any())


def test_the_sensitivity_is_reached_by_a_unit_whose_records_are_alike() -> None:
    # Three records of weight 2 in the same cell of each of two tables: 6^2 + 6^2.
    mechanism = CountMechanism(np.array([0, 3, 8]), unit_weight=6)
    alone = Contributions(np.zeros(3, np.int64), np.array([[1, 5]] * 3), np.full(3, 2))
    assert int((sums_of(mechanism, alone) ** 2).sum()) == 72 == mechanism.squared_sensitivity


def test_the_sensitivity_is_an_exact_integer_however_large() -> None:
    mechanism = CountMechanism(np.arange(2001), unit_weight=720_720)
    assert mechanism.squared_sensitivity == 2000 * 720_720**2
    assert isinstance(mechanism.squared_sensitivity, int)
    # Beyond what 64 bits hold.
    mechanism = CountMechanism(np.arange(2001), unit_weight=720_720**2, emphasis=np.full(2000, 16))
    assert mechanism.squared_sensitivity == 256 * 2000 * 720_720**4 > 2**64


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
        release(MECHANISM, [BAD[fault]], event, ledger=ledger, noise=noise)
    assert ledger.charged == []
    assert noise.drawn == []


# The same hits, table by table.
TABLES = [replace(GOOD, indices=GOOD.indices[:, [table]]) for table in (0, 1)]
NOBODY = Contributions(whole([]), np.zeros((0, 1), np.int64), whole([]))


def test_parts_for_one_table_after_the_other_are_summed_as_the_whole() -> None:
    assert sums_of(MECHANISM, *TABLES).tolist() == sums_of(MECHANISM, GOOD).tolist()
    # Each part has hits of its own: as many as it likes, of whom it likes.
    other = Contributions(whole([0, 1, 2, 2]), whole([[7], [7], [3], [4]]), whole([6, 1, 5, 1]))
    assert sums_of(MECHANISM, TABLES[0], other).tolist() == [3, 6, 3, 5, 1, 0, 0, 7]
    assert sums_of(MECHANISM, NOBODY, TABLES[1]).tolist() == [0, 0, 0, 3, 6, 0, 0, 3]


def test_parts_are_checked_one_by_one_as_they_come_and_all_of_them_before_the_charge() -> None:
    ledger, charged = Pass(), []

    def come(*parts: Contributions) -> Iterator[Contributions]:
        for part in parts:
            charged.append(len(ledger.charged))
            yield part

    event = MECHANISM.plan(spend=1.0, account="train", noise=Silence())  # type: ignore[arg-type]
    release(MECHANISM, come(*TABLES), event, ledger=ledger, noise=Silence())
    assert charged == [0, 0]
    assert len(ledger.charged) == 1
    # One that is refused is the last that is asked for: no part waits in memory for another.
    with pytest.raises(ValueError, match="contributions"):
        release(MECHANISM, come(TABLES[1], TABLES[1]), event, ledger=ledger, noise=Silence())
    assert charged == [0, 0, 1]


BAD_PARTS: dict[str, list[Contributions]] = {
    "none at all": [],
    "a table without a part": TABLES[:1],
    "a part too many": [*TABLES, NOBODY],
    "a part too many, behind the last cell": [*TABLES, Contributions(whole([0]), whole([[8]]), whole([6]))],
    "a part twice": [TABLES[0], TABLES[0]],
    "parts in another order": TABLES[::-1],
    "the whole and a part": [GOOD, TABLES[1]],
    "a part and the whole": [TABLES[0], GOOD],
    "a unit that weighs too much in the last part": [
        TABLES[0],
        Contributions(whole([0, 0]), whole([[3], [4]]), whole([6, 1])),
    ],
    "a cell of the table before, in the last part": [
        TABLES[0],
        Contributions(whole([0]), whole([[2]]), whole([6])),
    ],
}


@pytest.mark.parametrize("fault", BAD_PARTS)
def test_parts_that_do_not_cover_the_tables_one_by_one_are_refused_before_any_charge(fault: str) -> None:
    noise, ledger = Silence(), Pass()
    event = MECHANISM.plan(spend=1.0, account="train", noise=noise)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="contributions"):
        release(MECHANISM, iter(BAD_PARTS[fault]), event, ledger=ledger, noise=noise)
    assert ledger.charged == []
    assert noise.drawn == []


def test_what_fails_on_the_way_to_a_part_is_neither_charged_nor_drawn() -> None:
    noise, ledger = Silence(), Pass()

    def come() -> Iterator[Contributions]:
        yield TABLES[0]
        raise MemoryError

    event = MECHANISM.plan(spend=1.0, account="train", noise=noise)  # type: ignore[arg-type]
    with pytest.raises(MemoryError):
        release(MECHANISM, come(), event, ledger=ledger, noise=noise)
    assert ledger.charged == []
    assert noise.drawn == []


def test_an_emphasis_multiplies_the_sums_of_its_table_and_adds_its_square_to_the_sensitivity() -> None:
    mechanism = CountMechanism(MECHANISM.offsets, 6, whole([1, 3]))
    assert sums_of(mechanism, GOOD).tolist() == [3, 6, 3, 9, 18, 0, 0, 9]
    assert sums_of(mechanism, *TABLES).tolist() == [3, 6, 3, 9, 18, 0, 0, 9]
    assert mechanism.squared_sensitivity == 36 * (1 + 9)
    # Reached by a unit whose records are alike: 6^2 + (3 * 6)^2.
    alone = Contributions(np.zeros(3, np.int64), np.array([[1, 5]] * 3), np.full(3, 2))
    assert int((sums_of(mechanism, alone) ** 2).sum()) == 360


def test_without_emphasis_every_table_has_1() -> None:
    plain = CountMechanism(MECHANISM.offsets, 6, whole([1, 1]))
    assert plain.squared_sensitivity == MECHANISM.squared_sensitivity == 72
    assert sums_of(plain, GOOD).tolist() == sums_of(MECHANISM, GOOD).tolist()


def test_an_event_states_the_emphasis_and_that_of_another_is_refused() -> None:
    noise, ledger = Silence(), Pass()
    mechanism = CountMechanism(MECHANISM.offsets, 6, whole([1, 3]))
    event = mechanism.plan(spend=0.02, account="train", noise=noise)  # type: ignore[arg-type]
    assert (event.squared_sensitivity, event.scale, event.cells) == (360, 6, 8)
    # For one spend: the noise that an emphasis takes from its table it adds to the others.
    assert event.noise_stddev == pytest.approx(math.sqrt(360 / 0.02))
    for other in (None, whole([1, 2]), whole([3, 3])):
        with pytest.raises(ValueError, match="event"):
            release(CountMechanism(MECHANISM.offsets, 6, other), [GOOD], event, ledger=ledger, noise=noise)
    assert ledger.charged == []
    assert noise.drawn == []


def test_an_emphasis_that_is_changed_afterwards_changes_nothing() -> None:
    emphasis = whole([1, 3])
    mechanism = CountMechanism(MECHANISM.offsets, 6, emphasis)
    emphasis[:] = 16
    assert mechanism.squared_sensitivity == 360
    assert sums_of(mechanism, GOOD).tolist() == [3, 6, 3, 9, 18, 0, 0, 9]


@pytest.mark.parametrize(
    "emphasis",
    [
        whole([1]),
        whole([1, 1, 1]),
        whole([[1, 1]]),
        np.array(1),
        whole([0, 1]),
        whole([1, -1]),
        whole([1, MAXIMUM_EMPHASIS + 1]),
        whole([1, 2**62]),
        np.array([1.0, 2.0]),
        np.array([1, 2], dtype=np.int32),
        np.array([1, 2], dtype=np.uint64),
        np.array([True, True]),
    ],
)
def test_an_emphasis_that_is_not_a_whole_number_from_1_to_16_a_table_is_refused(emphasis: np.ndarray) -> None:
    assert MAXIMUM_EMPHASIS == 16
    CountMechanism(MECHANISM.offsets, 6, whole([1, 16]))
    with pytest.raises(ValueError, match=r"^emphasis: "):
        CountMechanism(MECHANISM.offsets, 6, emphasis)


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
        release(MECHANISM, [GOOD], replace(planned, **change), ledger=ledger, noise=noise)
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
        release(MECHANISM, [GOOD], event, ledger=Refuse(), noise=noise)
    assert noise.drawn == []


def test_a_real_ledger_that_is_spent_stops_the_draw(tmp_path: Path) -> None:
    asset = Asset("north", "rows", "", GdpAccountant(), 1.0)
    key = SigningKey.from_seed(bytes(32))
    ledger = Ledger(tmp_path / "north.jsonl", asset=asset, study="0f" * 32, bound=1.0, key=key)
    noise = Silence()
    event = MECHANISM.plan(spend=0.7, account="train", noise=noise)  # type: ignore[arg-type]
    release(MECHANISM, [GOOD], event, ledger=ledger, noise=noise)
    before = (tmp_path / "north.jsonl").read_bytes()
    with pytest.raises(BudgetError):
        MECHANISM.release([GOOD], event=event, request="run/two", request_digest="", ledger=ledger, noise=noise)  # type: ignore[arg-type]
    assert noise.drawn == ["run/one_way"]
    assert (tmp_path / "north.jsonl").read_bytes() == before


def test_what_is_charged_is_what_was_planned_and_what_is_drawn() -> None:
    ledger, noise = Pass(), SeededNoise(b"seed")
    event = MECHANISM.plan(spend=0.02, account="holdout", noise=noise)
    noised = release(MECHANISM, [GOOD], event, ledger=ledger, noise=noise)
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
    drawn = release(mechanism, [nobody], event, ledger=Pass(), noise=noise).astype(np.float64)
    # Rounding adds 1/12. Five standard errors of a variance over 1e5 draws; false alarm 6e-7.
    assert drawn.var() == pytest.approx(event.noise_stddev**2 + 1 / 12, rel=5 * math.sqrt(2 / 100_000))
    assert abs(drawn.mean()) < 5 * drawn.std() / math.sqrt(100_000)


def test_nobodys_contributions_are_charged_and_noised_like_everybodys() -> None:
    ledger, noise = Pass(), SeededNoise(b"seed")
    event = MECHANISM.plan(spend=1.0, account="train", noise=noise)
    nobody = Contributions(whole([]), np.zeros((0, 2), np.int64), whole([]))
    noised = release(MECHANISM, [nobody], event, ledger=ledger, noise=noise)
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
