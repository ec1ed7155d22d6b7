"""The residual risk: its formula, its interval beside known numbers, and what cannot be measured."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from common.evaluation.attacks.residual import (
    Residual,
    Tally,
    compare,
    not_measured,
    one_record_each,
    ratio_interval,
)
from common.evaluation.figures import Figure, rate
from tests.common.evaluation.attacks.people import draw, known


def test_the_residual_is_the_share_of_what_was_left_to_guess() -> None:
    found = compare(Tally(40, 100), Tally(20, 100), naive=Figure(0.1))
    assert known(found.residual)[0] == pytest.approx((0.4 - 0.2) / (1 - 0.2))
    assert (found.residual.chance, found.n, found.residual.n) == (0.0, 100, 200)
    assert (found.members.chance, found.controls.chance) == (0.1, 0.1)


@pytest.mark.parametrize(
    ("counts", "interval"),
    [
        # statsmodels 0.14, confint_proportions_2indep(compare="ratio", method="score", correction=False).
        ((7, 34, 1, 34), (1.2208528554, 42.5757176098)),
        ((36, 40, 16, 80), (2.9395691922, 7.1522234349)),
        ((1900, 2000, 1910, 2000), (0.9809095231, 1.0087102375)),
        # Shares of 0 and 1 are solved by hand: 100 (1 - ratio) / ratio = z^2, and 100 ratio / (1 - ratio) = z^2.
        ((100, 100, 100, 100), (100 / 103.8414588, 103.8414588 / 100)),
        ((0, 100, 100, 100), (0.0, 3.8414588 / 103.8414588)),
    ],
)
def test_the_interval_of_a_ratio_is_that_of_score_tests(
    counts: tuple[int, int, int, int], interval: tuple[float, float]
) -> None:
    assert ratio_interval(*counts, confidence=0.95) == pytest.approx(interval, rel=1e-6)


@pytest.mark.parametrize(("members", "controls"), [(0, 0), (0, 50), (50, 0), (3, 1), (1, 3), (50, 49), (0, 1)])
def test_every_interval_is_finite_and_holds_its_value(members: int, controls: int) -> None:
    value, low, high = known(compare(Tally(members, 50), Tally(controls, 50)).residual) if controls < 50 else (0, -1, 1)
    assert -60 < low <= value <= high <= 1
    # No count is so sure that nothing else could be true.
    assert low < high


def test_no_success_at_all_leaves_room_for_some() -> None:
    value, low, high = known(compare(Tally(0, 2000), Tally(0, 2000)).residual)
    assert value == 0
    # The score test of the ratio 1 + x: z^2 is about n x.
    assert (low, high) == pytest.approx((-3.84 / 2000, 3.84 / 2000), rel=0.01)


@pytest.mark.statistical
@pytest.mark.parametrize(("members", "controls"), [(0.02, 0.01), (0.5, 0.5), (0.9, 0.3), (0.97, 0.96)])
def test_the_interval_holds_the_truth_as_often_as_it_says(members: float, controls: float) -> None:
    # 95 % of 1000 are 950 with a standard deviation of 6.9: below 920 or above 980 once in 30,000.
    random = np.random.default_rng(1)
    truth = (members - controls) / (1 - controls)
    held = 0
    for _ in range(1000):
        tallies = (Tally(int(random.binomial(300, p)), 300) for p in (members, controls))
        _, low, high = known(compare(*tallies).residual)
        held += low <= truth <= high
    assert 920 <= held <= 980


def test_crowded_tries_count_as_fewer() -> None:
    crowded, alone = compare(Tally(40, 100, 4.0), Tally(20, 100, 4.0)), compare(Tally(10, 25), Tally(5, 25))
    for part in ("members", "controls", "residual"):
        assert known(getattr(crowded, part)) == pytest.approx(known(getattr(alone, part)))
    assert crowded.n == 100


def test_a_tally_has_the_exact_interval() -> None:
    for successes in (0, 3, 20):
        assert known(Tally(successes, 20).figure(None)) == pytest.approx(known(rate(successes, 20)))


def test_a_share_of_members_is_made_up_for_and_the_risk_stays_at_most_1() -> None:
    whole, part = compare(Tally(30, 100), Tally(20, 100)), compare(Tally(30, 100), Tally(20, 100), share=0.5)
    assert known(part.residual) == pytest.approx(tuple(2 * end for end in known(whole.residual)))
    assert known(compare(Tally(90, 100), Tally(20, 100), share=0.5).residual)[0] == 1


@pytest.mark.parametrize(
    ("members", "controls", "reason"),
    [
        (Tally(0, 0), Tally(1, 2), "nothing to count"),
        (Tally(1, 2), Tally(0, 0), "nothing to count"),
        (Tally(1, 2), Tally(2, 2), "every control was guessed"),
    ],
)
def test_what_cannot_be_measured_has_a_reason(members: Tally, controls: Tally, reason: str) -> None:
    residual = compare(members, controls).residual
    assert residual.value is None
    assert residual.reason is not None
    assert reason in residual.reason


def test_a_residual_becomes_json() -> None:
    for found in (compare(Tally(1, 3), Tally(1, 4)), not_measured("because")):
        assert isinstance(found, Residual)
        assert json.loads(json.dumps(asdict(found), allow_nan=False))["residual"]["chance"] == 0


def test_one_random_record_stands_for_each_unit() -> None:
    people = draw(200, 0)
    # The amount tells nearly every record apart.
    of = dict(zip(people.table.records["balance"], people.units, strict=True))
    seen = set()
    for seed in range(20):
        drawn = one_record_each(people, 50, np.random.default_rng(seed)).records["balance"]
        assert len(drawn) == 50
        assert len({of[value] for value in drawn}) == 50
        seen |= set(drawn)
    assert len({of[value] for value in seen}) == 200
    assert len(seen) > 300
    assert len(one_record_each(people, 1000, np.random.default_rng(0)).records) == 200
