"""Attribute inference: copies are found, people are not taken for leaks, and guesses are counted rightly."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from common.data.windows import WindowedTable
from common.evaluation.attacks import attributes as module
from common.evaluation.attacks.attributes import _best_number, _is_near, _judge, _rarest, infer_attributes
from common.evaluation.attacks.residual import Residual
from common.evaluation.figures import Population
from common.study import Study
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

MEMBERS, CONTROLS, FRESH, REFERENCE = (draw(300, seed) for seed in (1, 2, 3, 4))
SECRETS = ("ill", "sex", "ward", "balance")
RARE = ("ill=yes", "sex=m", "ward=d")


@pytest.fixture(autouse=True)
def _few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough for small tables."""
    monkeypatch.setitem(module._TREES, "max_iter", 20)


def play(synthetic: WindowedTable, *, seed: int = 0, secrets: tuple[str, ...] | None = None) -> dict[str, Residual]:
    return infer_attributes(synthetic, MEMBERS, CONTROLS, REFERENCE, STUDY, seed=seed, most=1000, secrets=secrets)


def test_a_copier_tells_each_secret_of_its_members() -> None:
    found = play(MEMBERS.table)
    assert {name.split("=")[0] for name in found} == set(SECRETS)
    assert len(found) == 7
    for residual in found.values():
        assert known(residual.residual)[1] > 0.3
    assert tuple(name for name in found if "=" not in name) == SECRETS


@pytest.mark.statistical
@pytest.mark.parametrize("seed", range(2))
def test_fresh_people_and_shuffled_columns_tell_nothing_of_members(seed: int) -> None:
    # 28 tests in all, of which one is below 1e-5 once in 3,500.
    for synthetic in (FRESH.table, shuffle_columns(MEMBERS.table, 4)):
        for residual in play(synthetic, seed=seed).values():
            assert chance_of(residual) > 1e-5


def test_half_a_copier_lies_between() -> None:
    half = stack(MEMBERS.take(np.arange(150)).table, FRESH.take(np.arange(150)).table)
    copied, found = (play(table, secrets=("ward", "balance")) for table in (MEMBERS.table, half))
    for name in ("ward", "balance"):
        _, low, high = known(found[name].residual)
        assert low > 0.1
        assert high < known(copied[name].residual)[0]


def test_windows_tell_who_somebody_is() -> None:
    members, controls, fresh, reference = (draw_windowed(150, seed) for seed in (1, 2, 3, 4))
    for synthetic, leaks in ((members, True), (fresh, False)):
        found = infer_attributes(synthetic.table, members, controls, reference, WINDOWED, seed=0, most=150)
        # Ages and sexes do not depend on anything: only a copy of the pulse can tell them.
        for name in ("sex", "age"):
            assert (known(found[name].residual)[1] > 0.3) == leaks
            assert leaks or chance_of(found[name]) > 1e-5


def test_trees_see_summaries_of_windows() -> None:
    people = [draw_windowed(300, seed) for seed in (1, 2, 3)]
    told = []
    for one in people:
        fast = np.nanmean(one.table.values[:, :, 0], axis=1) > 80
        values = one.table.records.assign(sex=one.table.records["sex"].cat.set_categories(["f", "m"]))
        values["sex"] = values["sex"].where(fast, "f").where(~fast, "m")
        told.append(Population(WindowedTable(values, one.table.values, one.table.lengths), one.units))
    found = infer_attributes(told[0].table, told[1], told[1], told[2], WINDOWED, seed=0, most=300, secrets=["sex"])
    # The mean is one of the summaries; a nearest neighbour hardly sees it among all steps.
    assert known(found["sex"].members)[0] > 0.97


def test_a_unit_is_tried_once() -> None:
    found = infer_attributes(
        FRESH.table, MEMBERS, CONTROLS, REFERENCE, STUDY, seed=0, most=80, secrets=["sex", "amount"]
    )
    assert (found["amount"].n, found["amount"].members.n, found["amount"].controls.n) == (80, 80, 80)
    # As many men and as many women of both.
    assert found["sex"].n == found["sex"].members.n == found["sex"].controls.n
    assert 60 < found["sex"].n <= 80
    assert play(FRESH.table, secrets=("amount",))["amount"].n == 300


SMALL = make_study(
    {
        "here": {"type": "integer", "min": 0, "max": 9},
        "balance": {"type": "continuous", "min": -1000, "max": 1000, "missing": True},
        "ill": {"type": "categorical", "categories": ["no", "yes"]},
    }
)


def small(balance: list[str], ill: list[str] | None = None, here: list[str] | None = None) -> Population:
    rows = len(balance)
    return hand_made(SMALL, here=here or ["1"] * rows, balance=balance, ill=ill or ["no"] * rows)


def guess(
    secret: str, synthetic: Population, members: Population, controls: Population, reference: Population
) -> Residual:
    return infer_attributes(synthetic.table, members, controls, reference, SMALL, seed=0, most=99, secrets=[secret])[
        secret
    ]


def test_naive_is_the_rate_of_the_most_frequent_category_among_controls() -> None:
    # The rows of the synthetic table have nothing to do with those of the others, nor has its majority.
    synthetic = small(["0"] * 3, ["yes", "yes", "no"])
    members = small(["0"] * 15, ["no"] * 6 + ["yes"] * 9)
    controls = small(["0"] * 10, ["no"] * 6 + ["yes"] * 4)
    reference = small(["0"] * 3, ["yes", "no", "no"])
    found = guess("ill", synthetic, members, controls, reference)
    assert found.naive is not None
    assert (found.naive.value, found.naive.n) == (0.6, 10)
    assert found.members.chance == 0.6
    swapped = guess("ill", synthetic, members, controls, small(["0"] * 3, ["yes", "yes", "no"]))
    assert swapped.naive is not None
    assert swapped.naive.value == 0.4


def test_that_more_controls_than_members_have_a_rare_value_is_no_leak() -> None:
    # Everybody is guessed healthy, which is true of more members.
    synthetic = small([str(number % 7) for number in range(60)], ["no"] * 57 + ["yes"] * 3)
    members = small(["0"] * 50, ["no"] * 49 + ["yes"])
    controls = small(["0"] * 50, ["no"] * 40 + ["yes"] * 10)
    found = guess("ill", synthetic, members, controls, small(["0"] * 3, ["yes", "no", "no"]))
    assert found.n == 41
    assert (found.members.value, found.controls.value) == (40 / 41, 40 / 41)
    assert found.residual.value == 0


def test_a_value_that_only_one_side_has_is_left_out() -> None:
    synthetic = small(["0"] * 4, ["yes", "yes", "no", "no"])
    found = guess("ill", synthetic, small(["0"] * 3, ["no"] * 3), small(["0"] * 3, ["yes"] * 3), small(["0"], ["no"]))
    assert (found.n, found.members.value, found.naive) == (0, None, None)
    assert found.residual.reason


def test_naive_is_the_number_that_is_right_most_often() -> None:
    # Within 100 of one number lie three of the reference, and half of the controls.
    reference = small(["-900", "10", "50", "200", "600", ""])
    controls = small(["10", "200", "206", "500", "", "-900", "120", "5"])
    synthetic = small(["1", "2"])
    found = guess("balance", synthetic, controls, controls, reference)
    assert found.naive is not None
    assert found.naive.value == 4 / 8
    # Missing is a guess like others.
    found = guess("balance", synthetic, controls, controls, small(["", "", "3"]))
    assert found.naive is not None
    assert found.naive.value == 1 / 8


def test_the_best_number_covers_most() -> None:
    best = _best_number(np.array([5.0, 0.0, 1.0, 2.0, np.nan]), 1.0)
    assert np.abs(np.array([0.0, 1.0, 2.0]) - best).max() <= 1
    assert np.isnan(_best_number(np.array([np.nan, np.nan, 4.0]), 1.0))
    assert np.isnan(_best_number(np.array([np.nan]), 1.0))


def test_a_negative_guess_is_right_where_it_is_near_alone() -> None:
    synthetic = small(["-500", "-450"], here=["1", "1"])
    far, near = small(["500"] * 30 + ["-300"] * 30), small(["-500"] * 30 + ["-450"] * 30)
    found = guess("balance", synthetic, near, far, far)
    assert (found.members.value, found.controls.value) == (1, 0)


def test_a_number_is_guessed_within_5_percent_of_its_bounds_on_its_scale() -> None:
    guesses = np.array([0.0, 0.0, 0.0, np.nan, np.nan, 1.0])
    truth = np.array([0.1, -0.1, 0.1001, np.nan, 0.0, np.nan])
    np.testing.assert_array_equal(_is_near(guesses, truth, 0.1), [True, True, False, True, False, False])
    log = make_study(
        {
            "amount": {"type": "continuous", "min": 0, "max": 1e6, "scale": "log"},
            "ill": {"type": "categorical", "categories": ["no", "yes"]},
        }
    )
    people = [
        hand_made(log, amount=amount, ill=["no"] * 2) for amount in (["1000", "1001"], ["1900", "530"], ["2100", "450"])
    ]
    found = infer_attributes(people[0].table, people[1], people[2], people[2], log, seed=0, most=9, secrets=["amount"])
    # A twentieth of ln(1,000,001) is a factor of 2, near 1,000; of 1,000,000 it would be 50,000.
    assert (found["amount"].members.value, found["amount"].controls.value) == (1, 0)


def test_missing_is_guessed_by_missing() -> None:
    synthetic = small(["", "", "0"], here=["1", "1", "9"])
    members, controls = small([""] * 20), small(["0"] * 20)
    found = guess("balance", synthetic, members, controls, members)
    assert (found.members.value, found.controls.value) == (1, 0)


def test_the_rarest_value_with_victims_enough_is_a_game_of_its_own() -> None:
    found = play(FRESH.table, secrets=("ill", "ward"))
    assert len(found) == 4
    rare = found["ill=yes"]
    assert rare.n < 100
    assert rare.naive is not None
    share = (REFERENCE.table.records["ill"] == "yes").mean()
    assert rare.naive.value == pytest.approx(share, abs=0.06)
    few = infer_attributes(FRESH.table, MEMBERS, CONTROLS, REFERENCE, STUDY, seed=0, most=40, secrets=["ill"])
    assert few["ill=yes"].residual.value is None
    assert few["ill=yes"].residual.reason == "fewer than 30 members or controls have it"
    assert few["ill"].residual.value is not None


def test_the_rarest_value_is_not_the_most_frequent_and_has_units_on_both_sides() -> None:
    sides = [np.repeat([0, 1, 2, 3], counts) for counts in ([200, 50, 40, 5], [200, 60, 20, 30])]
    assert _rarest(*sides, 5) == (1, True)
    assert _rarest(sides[1], sides[1], 5) == (3, True)
    assert _rarest(np.zeros(90, dtype=int), np.zeros(90, dtype=int), 2) == (1, False)


def test_trees_name_as_many_as_have_the_value() -> None:
    # Nothing tells who is ill: trees would never say so of anybody, and still a tenth is to be named.
    random = np.random.default_rng(0)
    people = [
        small(
            [f"{value:.3f}" for value in random.normal(0, 100, 600)],
            np.where(random.random(600) < 0.15, "yes", "no").tolist(),
        )
        for _ in range(4)
    ]
    synthetic, members, controls, reference = people
    found = infer_attributes(synthetic.table, members, controls, reference, SMALL, seed=0, most=600, secrets=["ill"])
    # About 90 victims: 0.15 within five standard deviations of 0.04.
    assert 0 < known(found["ill=yes"].controls)[0] < 0.35


def right(members: np.ndarray, controls: np.ndarray, reference: np.ndarray) -> list[np.ndarray]:
    return [members, controls, reference]


def test_no_unit_has_a_say_in_who_attacks_it() -> None:
    halves = np.random.default_rng(5).random(400) < 0.5
    none, unlikely = np.zeros(400, dtype=bool), np.zeros(10, dtype=bool)
    likely = np.ones(10, dtype=bool)
    trees = right(none, none, likely)
    # Neighbours win against every member of one half. That speaks for them in the other half, where they win nothing.
    found = _judge({"trees": trees, "nearest": right(halves, none, unlikely)}, None, np.random.default_rng(5))
    assert found.members.value == 0
    # Against members of both halves they win with the say of either.
    both = _judge({"trees": trees, "nearest": right(~none, none, unlikely)}, None, np.random.default_rng(5))
    assert both.members.value == 1


def test_trees_attack_unless_neighbours_clearly_leak_more() -> None:
    random = np.random.default_rng(6)
    sides = [random.random(400) < 0.5 for _ in range(2)]
    others = [random.random(400) < 0.5 for _ in range(2)]
    unlikely, likely = np.zeros(10, dtype=bool), np.ones(10, dtype=bool)
    by_trees = {"trees": right(*sides, likely), "nearest": right(*others, unlikely)}
    assert _judge(by_trees, None, random).members.value == sides[0].mean()
    # The reference prefers neighbours: they attack alone.
    by_neighbours = {"trees": right(*sides, unlikely), "nearest": right(*others, likely)}
    assert _judge(by_neighbours, None, random).members.value == others[0].mean()
    # Trees that leak more stay.
    copying = right(np.ones(400, dtype=bool), sides[1], likely)
    some = right(random.random(400) < 0.8, sides[1], unlikely)
    assert _judge({"trees": copying, "nearest": some}, None, random).members.value == 1


def test_by_default_label_two_categories_and_a_number_are_secret() -> None:
    assert module._default_secrets(STUDY) == ["ill", "sex", "ward", "balance"]
    assert module._default_secrets(WINDOWED) == ["ill", "sex", "age"]


def test_the_seed_fixes_the_figures_and_the_global_state_is_left_alone() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002 (that it stays is the point)
    half = stack(MEMBERS.take(np.arange(150)).table, FRESH.take(np.arange(150)).table)
    first = play(half, seed=7, secrets=("sex", "balance"))
    assert play(half, seed=7, secrets=("sex", "balance")) == first
    assert play(half, seed=8, secrets=("sex", "balance")) != first
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize("which", ["synthetic table", "table of members", "table of controls"])
def test_an_empty_table_gives_the_reason(which: str) -> None:
    tables = {"synthetic table": FRESH, "table of members": MEMBERS, "table of controls": CONTROLS}
    tables[which] = tables[which].take(np.zeros(300, dtype=bool))
    synthetic, members, controls = tables.values()
    found = infer_attributes(synthetic.table, members, controls, REFERENCE, STUDY, seed=0, most=10)
    assert tuple(found) == SECRETS
    for residual in found.values():
        assert residual.residual.reason == f"the {which} has no rows"
        json.dumps(asdict(residual), allow_nan=False)


@pytest.mark.parametrize(("study", "people"), [(STUDY, draw), (WINDOWED, draw_windowed)])
def test_without_a_reference_there_is_no_naive_guess(study: Study, people: object) -> None:
    assert callable(people)
    members, controls, nobody = people(60, 1), people(60, 2), people(60, 3).take(np.zeros(60, dtype=bool))
    found = infer_attributes(members.table, members, controls, nobody, study, seed=0, most=60)
    for residual in found.values():
        assert residual.naive is None
        assert residual.members.chance is None
    assert known(found["sex"].residual)[1] > 0.3


def test_a_secret_with_one_value_has_a_reason() -> None:
    synthetic, people = small(["5", "5"], ["yes", "yes"]), small(["5", "7"], ["yes", "no"])
    for secret in ("ill", "balance"):
        found = guess(secret, synthetic, people, people, people)
        assert found.residual.reason == "the synthetic table holds one value of it"
    missing = small(["", ""])
    assert guess("balance", missing, people, people, people).residual.reason is not None
    # People who all have one value are all guessed; nothing is left.
    varied, same = small(["0", "9"], ["yes", "no"], ["1", "9"]), small(["0", "0"], ["yes", "yes"], ["1", "1"])
    found = guess("ill", varied, same, same, same)
    assert found.residual.value is None
    assert found.residual.reason is not None


@pytest.mark.parametrize("rows", [2, 3, 30])
def test_a_small_synthetic_table_is_no_error(rows: int) -> None:
    for start in (0, 7, 50):
        found = play(FRESH.table.take(np.arange(start, start + rows)), secrets=None)
        for residual in found.values():
            assert residual.residual.value is not None or residual.residual.reason is not None
            json.dumps(asdict(residual), allow_nan=False)


def test_a_column_that_is_all_missing_is_no_error() -> None:
    holes = FRESH.table.records.assign(amount=np.nan)
    found = play(WindowedTable.without_windows(holes), secrets=("sex", "amount"))
    assert found["sex"].residual.value is not None
    assert found["amount"].residual.reason == "the synthetic table holds one value of it"


def test_trees_learn_from_a_part_of_a_large_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TREE_ROWS", 40)
    for residual in play(MEMBERS.table, secrets=("ill", "balance")).values():
        assert known(residual.residual)[1] > 0.3


@pytest.mark.parametrize(("most", "secrets"), [(0, ["ill"]), (5, ["income"])])
def test_no_tries_and_unknown_secrets_are_refused(most: int, secrets: list[str]) -> None:
    with pytest.raises(ValueError, match="at least 1, and columns"):
        infer_attributes(FRESH.table, MEMBERS, CONTROLS, REFERENCE, STUDY, seed=0, most=most, secrets=secrets)
