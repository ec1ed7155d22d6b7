"""What units can make passes, what they cannot does not, and what passes moves a table by as much as is stated."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from common.data.queries import Family, Query, layout_of
from common.data.tables import TableLayout
from common.errors import ProtocolError
from common.privacy.events import GaussianEvent
from server.plausibility import (
    DEVIATIONS,
    MOST_NOISE,
    Form,
    Units,
    check_counts,
    check_event,
    check_units,
    state_units,
)
from simulations.bench.bad_peers import most_moved

CLASSES = 2
SIZES = (3, 5, 4)
LAYOUT = TableLayout(((0,), (1,), (2,)), SIZES, CLASSES)
PAIRS = layout_of([Query(Family.PAIR, (0, 1)), Query(Family.COURSE, (1, 2))], SIZES, CLASSES)
ONE_WAY = Form.of_tables(LAYOUT, scale=4, whole=(True, True, False))
TABLES = Form.of_tables(PAIRS, scale=4, whole=(True, False))
# The second of the tables with half the noise of the first, seen from its counts.
EMPHASISED = Form.of_tables(PAIRS, scale=4, emphasis=(1, 2), whole=(True, False))
TIMES = np.repeat((1, 2), (30, 40))
VECTORS = Form.of_vectors(50, scale=1000)
UNITS = Units((120.0, 30.0), 2.0)


def event_of(form: Form, noise: float) -> GaussianEvent:
    return GaussianEvent(
        account="train",
        squared_sensitivity=form.squared_sensitivity,
        noise_stddev=noise,
        cells=form.cells,
        scale=form.scale,
        noise="csprng",
    )


def truth(form: Form, units: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """So many units of each class, each in one cell of every table; of a table that is not whole in half of them."""
    assert form.layout is not None
    tables = []
    for shape, whole in zip(form.layout.shapes, form.whole, strict=True):
        cells = math.prod(shape[1:])
        own = [random.multinomial(n if whole else n // 2, random.dirichlet(np.full(cells, 0.3))) for n in units]
        tables.append(form.scale * np.array(own).ravel())
    return np.concatenate(tables)


def noised(sums: np.ndarray, noise: float, random: np.random.Generator) -> np.ndarray:
    return sums + np.rint(random.normal(0, noise, len(sums))).astype(np.int64)


@pytest.mark.parametrize("units", [(0, 0), (1, 0), (40, 3), (5000, 20_000)])
@pytest.mark.parametrize("noise", [0.2, 1.0, 30.0, 4000.0])
def test_what_honest_sites_send_passes(units: tuple[int, ...], noise: float) -> None:
    random = np.random.default_rng(int(noise * 10) + sum(units))
    for _ in range(20):
        first, event = noised(truth(ONE_WAY, units, random), noise, random), event_of(ONE_WAY, noise)
        stated = state_units(first, event, ONE_WAY)
        check_counts("a", first, event, ONE_WAY, stated)
        check_units("a", stated, most=max(1, sum(units)))
        for form, times in ((TABLES, 1), (EMPHASISED, TIMES)):
            sums = truth(form, units, random) * times
            check_counts("a", noised(sums, noise, random), event_of(form, noise), form, stated)


@pytest.mark.statistical
def test_the_units_that_a_site_states_are_its_own_up_to_the_noise_that_they_say() -> None:
    random = np.random.default_rng(0)
    sums, event = truth(ONE_WAY, (120, 30), random), event_of(ONE_WAY, 20.0)
    found = [state_units(noised(sums, 20.0, random), event, ONE_WAY) for _ in range(4000)]
    off = (np.array([one.counts for one in found]) - (120, 30)) / found[0].stddev  # (draws, classes)
    # The mean of 8000 standard normals is within 0.06, their deviation within 4 %, but for one time in a million.
    assert abs(off.mean()) < 0.06
    assert off.std() == pytest.approx(1, abs=0.04)
    assert found[0].stddev == pytest.approx(math.sqrt((20**2 + 1 / 12) / (1 / 3 + 1 / 5)) / 4)


def flat(form: Form, noise: float) -> np.ndarray:
    """What `UNITS` would make if they were spread evenly, in tables that are not whole as well."""
    assert form.layout is not None
    parts = [
        np.repeat(np.array(UNITS.counts) / math.prod(shape[1:]), math.prod(shape[1:])) for shape in form.layout.shapes
    ]
    del noise
    return np.rint(form.scale * np.concatenate(parts)).astype(np.int64)


def total(cell: int, room: float) -> Callable[[np.ndarray], np.ndarray]:
    """Spread evenly over the cells of one table and class, beginning with a cell: by so much in all."""
    width = 15 if cell < 30 else 20

    def change(counts: np.ndarray) -> np.ndarray:
        found = counts.copy()
        found[cell : cell + width] += round(room / width)
        return found

    return change


NOISE = 12.0
ROOM = DEVIATIONS * 4 * math.sqrt((NOISE**2 + 1 / 12) / 16 * 15 + UNITS.stddev**2)
ROOM_OF_COURSES = DEVIATIONS * 4 * math.sqrt((NOISE**2 + 1 / 12) / 16 * 20 + UNITS.stddev**2)


@pytest.mark.parametrize(
    ("cell", "room", "passes"),
    [
        (0, 0.9 * ROOM, True),
        (0, 1.1 * ROOM, False),
        (0, -0.9 * ROOM, True),
        (0, -1.1 * ROOM, False),
        (15, 1.1 * ROOM, False),
        (30, 0.9 * ROOM_OF_COURSES, True),
        (30, 1.1 * ROOM_OF_COURSES, False),
        # Steps need not be in every table: fewer are no contradiction.
        (30, -1.1 * ROOM_OF_COURSES, True),
    ],
)
def test_a_total_that_the_stated_units_cannot_make_is_refused(cell: int, room: float, *, passes: bool) -> None:
    counts, event = total(cell, room)(flat(TABLES, NOISE)), event_of(TABLES, NOISE)
    if passes:
        check_counts("b", counts, event, TABLES, UNITS)
        return
    with pytest.raises(
        ProtocolError, match=r"^site b: totals of tables that do not agree with the units of its one-way"
    ):
        check_counts("b", counts, event, TABLES, UNITS)


@pytest.mark.parametrize(("room", "passes"), [(0.9, True), (1.1, False)])
def test_a_table_that_is_emphasised_has_less_room_for_its_noise(room: float, *, passes: bool) -> None:
    half = DEVIATIONS * 4 * math.sqrt((NOISE**2 + 1 / 12) / 4 / 16 * 20 + UNITS.stddev**2)
    counts, event = total(30, room * half)(flat(EMPHASISED, NOISE)) * TIMES, event_of(EMPHASISED, NOISE)
    assert event.squared_sensitivity == (1 + 4) * 16
    if passes:
        check_counts("b", counts, event, EMPHASISED, UNITS)
        return
    with pytest.raises(ProtocolError, match=r"^site b: totals of tables that do not agree"):
        check_counts("b", counts, event, EMPHASISED, UNITS)


@pytest.mark.parametrize(("deviations", "passes"), [(9.9, True), (10.2, False)])
@pytest.mark.parametrize(("form", "cell"), [(TABLES, 0), (TABLES, 30), (EMPHASISED, 30)])
def test_one_cell_below_zero_by_more_than_its_noise_explains_is_refused(
    form: Form, cell: int, deviations: float, *, passes: bool
) -> None:
    counts, event = flat(form, NOISE) * (TIMES if form is EMPHASISED else 1), event_of(form, NOISE)
    counts[cell + 1] += counts[cell] + round(deviations * NOISE)
    counts[cell] = -round(deviations * NOISE)
    if passes:
        check_counts("b", counts, event, form, UNITS)
        return
    with pytest.raises(ProtocolError, match=r"^site b: counts below zero, by more than its noise explains$"):
        check_counts("b", counts, event, form, UNITS)


@pytest.mark.parametrize(("deviations", "passes"), [(1.0, True), (5.0, False)])
def test_many_cells_a_little_below_zero_are_refused_together(deviations: float, *, passes: bool) -> None:
    # Each of them alone could be noise.
    counts, event = flat(TABLES, NOISE), event_of(TABLES, NOISE)
    for begin in (0, 15):
        whole = counts[begin : begin + 15].sum()
        counts[begin : begin + 14] = -round(deviations * NOISE)
        counts[begin + 14] = whole + 14 * round(deviations * NOISE)
    counts[14], counts[29] = (
        min(counts[at], round(4 * (units + 9 * NOISE / 4))) for at, units in ((14, 120), (29, 30))
    )
    if passes:
        check_counts("b", counts, event, TABLES, UNITS)
        return
    with pytest.raises(ProtocolError, match=r"^site b: counts below zero, by more than its noise explains$"):
        check_counts("b", counts, event, TABLES, UNITS)


@pytest.mark.parametrize(("deviations", "passes"), [(9.5, True), (10.5, False)])
def test_a_cell_above_all_units_is_refused(deviations: float, *, passes: bool) -> None:
    event = event_of(TABLES, NOISE)
    counts = flat(TABLES, NOISE)
    more = deviations * math.hypot(math.sqrt(NOISE**2 + 1 / 12) / 4, UNITS.stddev)
    counts[15:30] = -round(4 * more / 14)
    counts[15] = math.floor(4 * (30 + more))
    if passes:
        check_counts("b", counts, event, TABLES, UNITS)
        return
    with pytest.raises(ProtocolError, match=r"^site b: a count above the units of its one-way tables$"):
        check_counts("b", counts, event, TABLES, UNITS)


@pytest.mark.parametrize(("factor", "passes"), [(0.99, True), (1.01, False)])
def test_a_sum_of_vectors_longer_than_its_units_is_refused(factor: float, *, passes: bool) -> None:
    noise, event = 500.0, event_of(VECTORS, 500.0)
    longest = 150 + 10 * 2 * math.sqrt(2) + (noise * (math.sqrt(50) + DEVIATIONS) + math.sqrt(50) / 2) / 1000
    counts = np.zeros(50, dtype=np.int64)
    counts[7] = -round(1000 * factor * longest)
    if passes:
        check_counts("b", counts, event, VECTORS, UNITS)
        return
    with pytest.raises(ProtocolError, match=r"^site b: a sum longer than its units can make it$"):
        check_counts("b", counts, event, VECTORS, UNITS)


@pytest.mark.parametrize(("held", "passes"), [(50, True), (0, True), (200, False), (2000, False)])
def test_more_held_out_units_than_the_training_units_let_expect_are_refused(held: int, *, passes: bool) -> None:
    # 150 units train; a quarter held out makes 50, give or take.
    form = Form.of_tables(TableLayout(((0,),), (4,), 1), scale=1, held_out=0.25)
    counts = np.array([held, 0, 0, 0], dtype=np.int64)
    units, event = Units((120.0, 30.0), 0.1), event_of(form, 0.5)
    if passes:
        check_counts("b", counts, event, form, units)
        return
    with pytest.raises(ProtocolError, match=r"^site b: held-out units that are not the study's share of its units$"):
        check_counts("b", counts, event, form, units)


def test_held_out_units_of_honest_sites_pass() -> None:
    random = np.random.default_rng(0)
    form = Form.of_tables(TableLayout(((0,),), (4,), 2), scale=2, held_out=0.05)
    for everybody in (1, 30, 3000):
        for _ in range(50):
            held = random.binomial(everybody, 0.05)
            counts = noised(2 * random.multinomial(held, np.full(8, 1 / 8)), 3.0, random)
            check_counts("a", counts, event_of(form, 3.0), form, Units((float(everybody - held), 0.0), 0.5))


@pytest.mark.parametrize(
    "change",
    [{"squared_sensitivity": 31}, {"scale": 8}, {"cells": 7}, {"sampling": 0.5}, {"squared_sensitivity": 3200}],
)
def test_an_event_that_the_study_does_not_fix_is_refused(change: dict[str, float]) -> None:
    check_event("b", event_of(TABLES, 3.0), TABLES, bought=3.0)
    with pytest.raises(ProtocolError, match=r"^site b: event: its sensitivity, scale or sampling"):
        check_event("b", replace(event_of(TABLES, 3.0), **change), TABLES, bought=3.0)  # type: ignore[arg-type]


def test_noise_beyond_what_any_policy_demands_is_refused() -> None:
    check_event("b", event_of(TABLES, MOST_NOISE * 3.0), TABLES, bought=3.0)
    with pytest.raises(ProtocolError, match=r"^site b: event\.noise_stddev: more than 4 times the noise"):
        check_event("b", event_of(TABLES, MOST_NOISE * 3.01), TABLES, bought=3.0)


def test_more_units_than_any_site_has_are_refused_beyond_their_noise() -> None:
    room = 10 * 2.0 * math.sqrt(2)
    for most, refused in ((None, False), (150, False), (math.ceil(150 - room), False), (math.floor(150 - room), True)):
        if not refused:
            check_units("b", UNITS, most=most)
            continue
        with pytest.raises(ProtocolError, match=rf"^site b: states more units than rounds\.site_units={most}$"):
            check_units("b", UNITS, most=most)


@pytest.mark.parametrize("noise", [0.05, 1.0, 4.0, 20.0])
def test_what_passes_moves_a_table_by_no_more_than_is_stated(noise: float) -> None:
    # All units in one cell, and over the others as much below zero as passes.
    form = Form.of_tables(TableLayout(((0, 1),), (3, 5), 2), scale=1, whole=(True,))
    event, others = event_of(form, noise), np.full(30, 30.0)
    passed = []
    for step in range(201):
        counts = np.full((2, 15), -step, dtype=np.int64)
        for own, units in zip(counts, UNITS.counts, strict=True):
            own[0] = round(units) + 14 * step
        try:
            check_counts("b", counts.ravel(), event, form, UNITS)
        except ProtocolError:
            continue
        together = others + counts.ravel()
        passed.append(np.abs(together / together.sum() - others / others.sum()).sum() / 2)
    share = 150 / (150 + 900)
    bound = most_moved(units=150, share=share, cells=30, classes=2, event=event, stddev=UNITS.stddev)
    assert 0.9 * share < max(passed) <= bound
