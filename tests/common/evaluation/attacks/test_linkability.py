"""Links between two halves of a record: found in copies, not found in fresh people, and fair."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from common.evaluation.attacks.linkability import link
from common.evaluation.attacks.residual import Residual
from common.evaluation.figures import Population
from tests.common.evaluation.attacks.people import (
    STUDY,
    WINDOWED,
    chance_of,
    draw,
    draw_windowed,
    hand_made,
    known,
    make_study,
    shuffle_columns,
    stack,
)

MEMBERS, CONTROLS, FRESH = draw(300, 1), draw(300, 2), draw(300, 3)
GAMES = ("nearest_1", "nearest_5")


def play(synthetic: Population, *, seed: int = 0, most: int = 1000) -> dict[str, Residual]:
    return link(synthetic.table, MEMBERS, CONTROLS, STUDY, seed=seed, most=most)


def halfway() -> Population:
    """Half of the members, beside as many fresh people."""
    some, others = (people.take(np.arange(150)).table for people in (MEMBERS, FRESH))
    table = stack(some, others)
    return Population(table, np.arange(len(table.records)))


def test_a_copier_links_its_members() -> None:
    for seed in range(3):
        found = play(MEMBERS, seed=seed)
        assert tuple(found) == GAMES
        for residual in found.values():
            assert known(residual.residual)[1] > 0.3


@pytest.mark.statistical
@pytest.mark.parametrize("seed", range(3))
def test_fresh_people_and_shuffled_columns_link_nobody(seed: int) -> None:
    # 12 tests in all: one of them is below 1e-5 once in 8,000.
    for synthetic in (FRESH, Population(shuffle_columns(MEMBERS.table, 4), MEMBERS.units)):
        for residual in play(synthetic, seed=seed).values():
            assert chance_of(residual) > 1e-5
            assert known(residual.residual)[0] < 0.1


@pytest.mark.statistical
def test_intervals_hold_0_where_nothing_leaks() -> None:
    # Of 40 intervals each of which misses with 5 %, 9 or more miss once in 2,500.
    missed = dict.fromkeys(GAMES, 0)
    everybody = draw(40 * 300, 5, records=1)
    for seed, units in enumerate(np.split(np.arange(everybody.count), 40)):
        synthetic, members, controls = (everybody.take(part) for part in np.split(units, 3))
        found = link(synthetic.table, members, controls, STUDY, seed=seed, most=100)
        for name, residual in found.items():
            _, low, high = known(residual.residual)
            missed[name] += not low <= 0 <= high
    assert max(missed.values()) <= 8


def test_half_a_copier_lies_between() -> None:
    copied, half = play(MEMBERS), play(halfway())
    for name in GAMES:
        _, low, high = known(half[name].residual)
        assert low > 0.1
        assert high < known(copied[name].residual)[0]


def test_a_unit_is_tried_once_and_no_more_units_than_asked_for() -> None:
    for most, tries in ((1000, 300), (70, 70)):
        for residual in play(FRESH, most=most).values():
            assert (residual.n, residual.members.n, residual.controls.n) == (tries, tries, tries)


def test_naive_is_what_two_random_choices_have_in_common() -> None:
    rows = len(FRESH.table.records)
    for name, count in (("nearest_1", 1), ("nearest_5", 5)):
        residual = play(FRESH)[name]
        assert residual.naive is not None
        expected = 1 - math.prod((rows - count - i) / (rows - i) for i in range(count))
        assert known_value(residual) == pytest.approx(expected)
        assert residual.members.chance == residual.controls.chance == residual.naive.value


def known_value(residual: Residual) -> float:
    assert residual.naive is not None
    assert residual.naive.value is not None
    return residual.naive.value


def test_both_halves_must_point_at_one_record() -> None:
    study = make_study(
        {
            "here": {"type": "integer", "min": 0, "max": 9},
            "ill": {"type": "categorical", "categories": ["no", "yes"]},
        }
    )
    synthetic = hand_made(study, here=["0", "9"], ill=["no", "yes"])
    # Each column is a half. The members agree with one record; the controls with one here and the other there.
    members = hand_made(study, here=["0", "9", "9"], ill=["no", "yes", "yes"])
    controls = hand_made(study, here=["0", "9", "9"], ill=["yes", "no", "no"])
    found = link(synthetic.table, members, controls, study, seed=0, most=9, neighbours=(1,))["nearest_1"]
    assert (found.members.value, found.controls.value, found.residual.value) == (1, 0, 1)


def test_channels_of_windows_are_columns_too() -> None:
    members, controls, fresh = (draw_windowed(200, seed) for seed in (1, 2, 3))
    # The columns alone tell nobody apart: without the channels there is nothing to link by.
    caught = [
        known(link(members.table, members, controls, WINDOWED, seed=seed, most=200)["nearest_1"].residual)[1]
        for seed in range(4)
    ]
    assert max(caught) > 0.3
    assert chance_of(link(fresh.table, members, controls, WINDOWED, seed=0, most=200)["nearest_5"]) > 1e-5


def test_the_seed_fixes_the_figures_and_the_global_state_is_left_alone() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002 (that it stays is the point)
    first = play(halfway(), seed=7)
    assert play(halfway(), seed=7) == first
    assert any(play(halfway(), seed=seed) != first for seed in (8, 9))
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize("which", ["synthetic table", "table of members", "table of controls"])
def test_an_empty_table_gives_the_reason(which: str) -> None:
    tables = {"synthetic table": FRESH, "table of members": MEMBERS, "table of controls": CONTROLS}
    tables[which] = tables[which].take(np.zeros(300, dtype=bool))
    synthetic, members, controls = tables.values()
    found = link(synthetic.table, members, controls, STUDY, seed=0, most=10)
    for residual in found.values():
        assert residual.residual.value is None
        assert residual.residual.reason == f"the {which} has no rows"
        json.dumps(asdict(residual), allow_nan=False)


def test_fewer_synthetic_records_than_neighbours_say_nothing() -> None:
    few = FRESH.take(np.arange(1))
    found = link(few.table.take(np.arange(1)), MEMBERS, CONTROLS, STUDY, seed=0, most=10)["nearest_5"]
    assert (found.controls.value, found.residual.value, known_value(found)) == (1, None, 1)


@pytest.mark.parametrize(("most", "neighbours"), [(0, (1,)), (5, ()), (5, (1, 0))])
def test_a_game_without_tries_or_neighbours_is_refused(most: int, neighbours: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        link(FRESH.table, MEMBERS, CONTROLS, STUDY, seed=0, most=most, neighbours=neighbours)
