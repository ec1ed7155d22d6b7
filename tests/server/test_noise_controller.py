"""The noise controller: whatever quality does, spend ends at the budget, never above, and noise never jumps."""

import dataclasses
import json
import math
from collections.abc import Iterable
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.study import Noise
from server.noise_controller import (
    MAX_ROUNDS,
    SLEW,
    Decision,
    Mode,
    NoisePlan,
    NoiseState,
    Quality,
    _bounded_share,
    _first_share,
    decide,
    share_plan,
)

BLIND = Quality()
# An input's first value is its starting point: FRECHET at 1 is what every run begins with.
START = Quality(frechet_ratio=1.0, critic_accuracy=1.0, validation_auc=0.5)
BEST = Quality(frechet_ratio=0.0, critic_accuracy=0.5, validation_auc=1.0)


def maybe(values: st.SearchStrategy[float]) -> st.SearchStrategy[float | None]:
    return st.none() | st.sampled_from([0.0, 0.5, 1.0]) | values


qualities = st.builds(
    Quality,
    frechet_ratio=maybe(st.floats(0, 3)),
    critic_accuracy=maybe(st.floats(0, 1)),
    validation_auc=maybe(st.floats(0, 1)),
)
# Alone, runs of one value, and an extreme every other round: the last two press hardest on the bounds.
traces = (
    st.lists(qualities, min_size=64, max_size=64)
    | st.tuples(qualities, qualities, st.integers(0, 64)).map(lambda t: [t[0]] * t[2] + [t[1]] * (64 - t[2]))
    | st.tuples(qualities, qualities).map(lambda t: [*t] * 32)
)


@st.composite
def plans(draw: st.DrawFn, *, mode: str | None = None, least_floor: float = 1.0) -> NoisePlan:
    """Any plan; `least_floor` is the least max_share in units of 1 / rounds, 1 being the tightest that can be spent."""
    rounds = draw(st.integers(1, 64))
    in_fair_shares = draw(st.none() | st.sampled_from([1.0, 1.001, 2.0]) | st.floats(least_floor, 3.0))
    return NoisePlan(
        mode=mode or draw(st.sampled_from(["fixed", "stage", "pid", "pid"])),  # type: ignore[arg-type]
        rounds=rounds,
        kappa=draw(st.sampled_from([0.0, 1.0]) | st.floats(0, 1)),
        direction=draw(st.sampled_from(["lead", "lag"])),
        max_share=1.0 if in_fair_shares is None else min(1.0, in_fair_shares / rounds),
        goal=draw(st.floats(0.05, 1)),
        reference_auc=draw(st.floats(0.55, 1)),
    )


def run(plan: NoisePlan, trace: Iterable[Quality], state: NoiseState | None = None) -> list[Decision]:
    """Every decision of a run, or of the rest of one."""
    state = state or NoiseState()
    decisions = []
    for quality, _ in zip(trace, range(state.rounds_decided, plan.rounds), strict=False):
        state, decision = decide(plan, state, quality)
        decisions.append(decision)
    return decisions


def shares_of(decisions: Iterable[Decision]) -> list[float]:
    return [decision.share for decision in decisions]


def check_shares(shares: list[float], *, rounds: int, max_share: float) -> None:
    """What is promised of a whole run."""
    assert len(shares) == rounds
    spent = sum(map(Fraction, shares))
    assert spent <= 1
    assert float(spent) == pytest.approx(min(1.0, rounds * max_share), abs=1e-9)
    assert min(shares) > 0
    assert max(shares) <= max_share
    for before, after in pairwise(shares):
        assert 0.8 - 1e-9 <= math.sqrt(before / after) <= 1.25 + 1e-9


@settings(max_examples=120, deadline=None)
@given(plans(), traces)
def test_any_run_ends_at_the_budget_and_noise_never_jumps(plan: NoisePlan, trace: list[Quality]) -> None:
    check_shares(shares_of(run(plan, trace)), rounds=plan.rounds, max_share=plan.max_share)


@settings(max_examples=60, deadline=None)
@given(plans(least_floor=0.1), traces)
def test_a_floor_that_binds_leaves_what_may_not_be_spent(plan: NoisePlan, trace: list[Quality]) -> None:
    shares = shares_of(run(plan, trace))
    check_shares(shares, rounds=plan.rounds, max_share=plan.max_share)
    if plan.rounds * plan.max_share < 1 - 1e-9:
        assert set(shares) == {plan.max_share}


@settings(max_examples=120, deadline=None)
@given(plans(mode="pid"), st.lists(st.floats(1e-3, 1e3), min_size=64, max_size=64))
def test_no_sequence_of_multipliers_breaks_the_look_ahead(plan: NoisePlan, multipliers: list[float]) -> None:
    # Far beyond what the clip lets through: the bounds alone must hold the promise.
    state, shares = NoiseState(), []
    for number in range(plan.rounds):
        share, _, _ = _bounded_share(plan, state, multipliers[number])
        shares.append(share)
        state = NoiseState(
            rounds_decided=number + 1, remaining=math.nextafter(state.remaining - share, 0.0), last_share=share
        )
    check_shares(shares, rounds=plan.rounds, max_share=plan.max_share)


def test_ten_thousand_random_runs_keep_every_promise() -> None:
    random = np.random.default_rng(20260)
    moved = 0
    for number in range(10_000):
        rounds = int(32 ** random.random()) if number % 20 else int(random.integers(33, 65))
        floor = [1.0, 1 / rounds, random.uniform(1, 3) / rounds, random.uniform(0.2, 1) / rounds][random.integers(4)]
        plan = NoisePlan(
            mode="pid",
            rounds=rounds,
            kappa=float(random.choice([0.0, 1.0, random.random()])),
            direction="lag" if number % 2 else "lead",
            max_share=min(1.0, floor),
            goal=random.uniform(0.05, 1),
        )
        values = random.random((rounds, 3))
        if number % 3 == 0:
            values = np.round(values)
        elif number % 3 == 1:
            values = np.where(np.arange(rounds)[:, None] < random.integers(1, rounds + 1), values[:1], values[-1:])
        there = random.random((rounds, 3)) < random.choice([0.3, 0.8, 1.0])
        trace = [
            Quality(
                frechet_ratio=row[0] if seen[0] else None,
                critic_accuracy=row[1] if seen[1] else None,
                validation_auc=row[2] if seen[2] else None,
            )
            for row, seen in zip(values.tolist(), there, strict=True)
        ]
        decisions = run(plan, trace)
        check_shares(shares_of(decisions), rounds=rounds, max_share=plan.max_share)
        moved += any(decision.multiplier != 1 for decision in decisions)
    # The test would prove little if the controller hardly ever acted.
    assert moved > 7_000


@pytest.mark.parametrize("mode", ["fixed", "stage", "pid"])
def test_the_longest_plan_keeps_the_promise_too(mode: Any) -> None:
    plan = NoisePlan(mode=mode, rounds=MAX_ROUNDS)
    check_shares(shares_of(run(plan, [START, *[BEST] * MAX_ROUNDS])), rounds=MAX_ROUNDS, max_share=1.0)


@pytest.mark.parametrize("mode", ["fixed", "stage", "pid"])
def test_a_single_round_spends_all(mode: Any) -> None:
    (decision,) = run(NoisePlan(mode=mode, rounds=1), [START])
    assert decision.share == 1.0
    assert decision.remaining == 0.0
    assert decision.clamped_by == ()


# ---- the plan


@pytest.mark.parametrize("rounds", [1, 2, 3, 7, 64])
def test_fixed_shares_are_equal(rounds: int) -> None:
    assert share_plan("fixed", rounds, 1.0) == pytest.approx([1 / rounds] * rounds, rel=1e-12)


@pytest.mark.parametrize("mode", ["stage", "pid"])
@pytest.mark.parametrize(
    ("rounds", "kappa"), [(2, 0.2), (3, 0.4), (4, 0.6), (5, 0.0), (5, 0.8), (10, 1.0), (10, 0.5), (64, 1.0)]
)
def test_the_stage_prior_is_exponential_wherever_slew_allows_it(mode: Any, rounds: int, kappa: float) -> None:
    prior = np.exp(kappa * np.arange(rounds) / (rounds - 1))
    decisions = run(NoisePlan(mode=mode, rounds=rounds, kappa=kappa), [BLIND] * rounds)
    shares = share_plan(mode, rounds, kappa)
    assert tuple(shares_of(decisions)) == shares
    assert [decision.prior for decision in decisions] == pytest.approx(prior, rel=1e-12)
    assert shares == pytest.approx(prior / prior.sum(), rel=1e-12)
    assert math.sqrt(shares[-1] / shares[0]) == pytest.approx(math.exp(kappa / 2), rel=1e-12)


@pytest.mark.parametrize("rounds", [2, 3, 5])
def test_a_prior_too_steep_takes_half_of_the_slew_limit(rounds: int) -> None:
    growth = SLEW ** np.arange(rounds)
    decisions = run(NoisePlan(mode="stage", rounds=rounds, kappa=1.0), [BLIND] * rounds)
    assert shares_of(decisions) == pytest.approx(growth / growth.sum(), rel=1e-12)
    # The clipped prior is the plan, so nothing clamps it.
    assert {decision.clamped_by for decision in decisions} == {()}


@settings(max_examples=60, deadline=None)
@given(st.integers(6, 64), st.floats(0, 1), st.floats(1.001, 3))
def test_the_plan_under_a_floor_is_the_prior_cut_at_the_floor(rounds: int, kappa: float, fair_shares: float) -> None:
    max_share = min(1.0, fair_shares / rounds)
    prior = np.exp(kappa * np.arange(rounds) / (rounds - 1))
    low, high = 0.0, 1.0 / prior[0]
    for _ in range(200):
        level = (low + high) / 2
        low, high = (level, high) if np.minimum(max_share, level * prior).sum() < 1 else (low, level)
    expected = np.minimum(max_share, high * prior)
    assert share_plan("stage", rounds, kappa, max_share=max_share) == pytest.approx(expected, rel=1e-6)


@settings(max_examples=120, deadline=None)
@given(
    st.floats(1e-3, 1),
    st.lists(st.floats(1e-2, 1e2), min_size=1, max_size=12),
    st.floats(1e-3, 1) | st.just(math.inf),
)
def test_shares_are_laid_out_like_bisection_lays_them(total: float, weights: list[float], cap: float) -> None:
    first = _first_share(total, weights, cap=cap)
    if cap * len(weights) <= total:
        assert first == pytest.approx(cap, rel=1e-12)
        return
    low, high = 0.0, 1e3
    for _ in range(200):
        level = (low + high) / 2
        low, high = (level, high) if sum(min(cap, level * w) for w in weights) < total else (low, level)
    assert first == pytest.approx(min(cap, high * weights[0]), rel=1e-9, abs=1e-12)


# ---- the reaction


def test_a_worked_example() -> None:
    # Origin: the formulas of the module in 30 digits (mpmath). Target 0.9 (1 - e^-0.75) = 0.4748701025,
    # deviation 0.3251298975, window mean 0.1625649487 = integral, derivative half of it; share 0.75 m / (m + 2).
    first, second = run(NoisePlan(mode="pid", rounds=4, kappa=0.0), [Quality(frechet_ratio=r) for r in (1.0, 0.2)])
    assert first.share == pytest.approx(0.25, rel=1e-12)
    assert second.quality == pytest.approx(0.8, rel=1e-12)
    assert second.target == pytest.approx(0.4748701025, rel=1e-9)
    assert second.error == pytest.approx(0.1625649487, rel=1e-9)
    assert second.proportional == pytest.approx(0.0975389692, rel=1e-8)
    assert second.integral == pytest.approx(0.0243847423, rel=1e-8)
    assert second.derivative == pytest.approx(0.0162564949, rel=1e-8)
    assert second.multiplier == pytest.approx(1.1481824415, rel=1e-8)
    assert second.share == pytest.approx(0.2735346020, rel=1e-8)
    assert second.remaining == pytest.approx(0.75 - 0.2735346020, rel=1e-8)
    assert (second.round, second.prior, second.clamped_by) == (2, 1.0, ())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.3, 1), st.floats(0.5, 0.9), st.floats(0.5, 0.9)), min_size=40, max_size=40),
    st.sampled_from(["lead", "lag"]),
    st.floats(0, 1),
)
def test_the_multiplier_is_that_of_a_textbook_pid(
    trace: list[tuple[float, float, float]], direction: Any, kappa: float
) -> None:
    plan = NoisePlan(mode="pid", rounds=40, direction=direction, kappa=kappa)
    decisions = run(plan, [Quality(frechet_ratio=f, critic_accuracy=c, validation_auc=a) for f, c, a in trace])
    combined = np.array([0.4 * (1 - f) + 0.3 * (2 - 2 * c) + 0.3 * min((a - 0.5) / 0.4, 1) for f, c, a in trace])
    target = combined[0] + (0.9 - combined[0]) * (1 - np.exp(-3 * np.arange(40) / 40))
    errors = [float(np.mean((combined - target)[max(0, at - 4) : at + 1])) for at in range(40)]
    sign = {"lead": 1, "lag": -1}[direction]
    left, integral, derivative, last = 1.0, 0.0, 0.0, 0.0
    for at, decision in enumerate(decisions):
        integral = min(max(integral + errors[at], -1), 1)
        derivative = 0.5 * derivative + 0.5 * (errors[at] - last)
        last = errors[at]
        multiplier = math.exp(sign * (0.6 * errors[at] + 0.15 * integral + 0.2 * derivative))
        if decision.clamped_by:
            break  # from here on the two integrals differ
        later = np.exp(kappa * np.arange(at, 40) / 39)
        share = left * later[0] * multiplier / (later[0] * multiplier + later[1:].sum())
        left -= share
        assert decision.quality == pytest.approx(combined[at], abs=1e-12)
        assert decision.target == pytest.approx(target[at], abs=1e-12)
        assert decision.multiplier == pytest.approx(multiplier, rel=1e-9)
        assert decision.share == pytest.approx(share, rel=1e-9)


@pytest.mark.parametrize("kappa", [0.0, 1.0])
@pytest.mark.parametrize("rounds", [Noise().rounds, 4, 10])
def test_however_few_measurements_there_are_quality_moves_their_noise(rounds: int, kappa: float) -> None:
    plan = NoisePlan(mode="pid", rounds=rounds, kappa=kappa)
    planned = share_plan("pid", rounds, kappa)[1]
    best, worst = (run(plan, [START, quality])[1].share for quality in (BEST, START))
    assert worst < 0.97 * planned
    assert best > 1.03 * planned


@pytest.mark.parametrize("direction", ["lead", "lag"])
@pytest.mark.parametrize("better", [True, False])
def test_the_sign_of_the_reaction(direction: Any, better: bool) -> None:
    plan = NoisePlan(mode="pid", rounds=10, direction=direction)
    decisions = run(plan, [START, *[BEST if better else START] * 3])
    planned = share_plan("pid", 10, 1.0)
    assert decisions[0].share == pytest.approx(planned[0], rel=1e-12)
    for decision, share in zip(decisions[1:], planned[1:4], strict=True):
        assert (decision.error > 0) == better
        lowers_noise = better == (direction == "lead")
        assert (decision.multiplier > 1) == lowers_noise
        assert (decision.proportional > 0) == lowers_noise
        if decision.round == 2:
            assert (decision.share > share) == lowers_noise
    if better == (direction == "lead"):
        assert math.fsum(shares_of(decisions)) > math.fsum(planned[:4])
    else:
        assert math.fsum(shares_of(decisions)) < math.fsum(planned[:4])


@pytest.mark.parametrize(
    ("worse", "good"),
    [
        (Quality(frechet_ratio=0.9), Quality(frechet_ratio=0.1)),
        (Quality(frechet_ratio=5.0), Quality(frechet_ratio=0.9)),
        (Quality(critic_accuracy=0.9), Quality(critic_accuracy=0.6)),
        (Quality(critic_accuracy=0.1), Quality(critic_accuracy=0.4)),
        (Quality(validation_auc=0.6), Quality(validation_auc=0.8)),
        (Quality(validation_auc=0.2), Quality(validation_auc=0.6)),
    ],
)
def test_each_input_knows_which_way_is_better(worse: Quality, good: Quality) -> None:
    plan = NoisePlan(mode="pid", rounds=10)
    state, _ = decide(plan, NoiseState(), dataclasses.replace(START))
    errors = [decide(plan, state, quality)[1].error for quality in (worse, good)]
    assert errors[0] < errors[1]


def test_a_run_that_is_exactly_on_plan_is_left_alone() -> None:
    plan = NoisePlan(mode="pid", rounds=20, goal=0.8)
    trace = [Quality(frechet_ratio=1 - 0.8 * (1 - math.exp(-3 * done / 20))) for done in range(20)]
    decisions = run(plan, trace)
    assert [decision.multiplier for decision in decisions] == pytest.approx([1.0] * 20, abs=1e-12)
    assert shares_of(decisions) == pytest.approx(share_plan("stage", 20, 1.0), rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["fixed", "stage"]), plans(), traces)
def test_fixed_and_stage_ignore_quality(mode: Any, plan: NoisePlan, trace: list[Quality]) -> None:
    plan = dataclasses.replace(plan, mode=mode)
    decisions = run(plan, trace)
    assert tuple(shares_of(decisions)) == share_plan(mode, plan.rounds, plan.kappa, max_share=plan.max_share)
    for decision in decisions:
        assert decision.multiplier == 1
        assert decision.proportional == decision.integral == decision.derivative == 0


def test_fixed_and_stage_report_the_quality_that_they_ignore() -> None:
    trace = [START, BEST, START]
    modes: tuple[Mode, ...] = ("fixed", "stage", "pid")
    seen = {
        mode: [(one.quality, one.target, one.error) for one in run(NoisePlan(mode=mode, rounds=3), trace)]
        for mode in modes
    }
    assert seen["fixed"] == seen["stage"] == seen["pid"]
    assert [quality for quality, _, _ in seen["pid"]] == pytest.approx([0, 1, 0])


def test_the_derivative_is_smoothed_and_fades() -> None:
    plan = NoisePlan(mode="pid", rounds=40, goal=0.9)
    # Five rounds after the step the window is full of it, and the target has nearly stopped by round 30.
    decisions = run(plan, [START] * 30 + [BEST] + [BLIND] * 4)
    kick = decisions[30].derivative
    assert kick > 0
    assert [one.derivative for one in decisions[31:35]] == pytest.approx([kick / 2**n for n in range(1, 5)])


# ---- inputs that are not there


def test_without_any_input_the_plan_is_spent() -> None:
    decisions = run(NoisePlan(mode="pid", rounds=12), [BLIND] * 12)
    assert tuple(shares_of(decisions)) == share_plan("stage", 12, 1.0)
    assert {(one.quality, one.target, one.error, one.multiplier) for one in decisions} == {(None, None, 0.0, 1.0)}


@pytest.mark.parametrize(
    ("quality", "expected"),
    [
        (Quality(frechet_ratio=0.3), 0.7),
        (Quality(critic_accuracy=0.8), 0.4),
        (Quality(validation_auc=0.7), 0.5),
        (Quality(frechet_ratio=0.3, critic_accuracy=0.8), (0.4 * 0.7 + 0.3 * 0.4) / 0.7),
        (Quality(critic_accuracy=0.8, validation_auc=0.7), (0.4 + 0.5) / 2),
        (Quality(frechet_ratio=0.3, critic_accuracy=0.8, validation_auc=0.7), 0.4 * 0.7 + 0.3 * 0.4 + 0.3 * 0.5),
        (Quality(frechet_ratio=4.0), 0.0),
        (Quality(validation_auc=0.1), 0.0),
        (Quality(validation_auc=0.99), 1.0),
        (Quality(critic_accuracy=0.0), 0.0),
    ],
)
def test_weights_are_those_of_the_inputs_that_are_there(quality: Quality, expected: float) -> None:
    (decision,) = run(NoisePlan(mode="pid", rounds=1, reference_auc=0.9), [quality])
    assert decision.quality == pytest.approx(expected, abs=1e-12)


def test_the_first_value_of_an_input_is_where_it_starts() -> None:
    plan = NoisePlan(mode="pid", rounds=10)
    decisions = run(plan, [BLIND, BLIND, BLIND, Quality(validation_auc=0.6), Quality(validation_auc=0.6)])
    assert decisions[3].target == decisions[3].quality == pytest.approx(0.25)
    assert decisions[3].multiplier == 1
    # One round later it should have come 1 - e^-0.3 of the way from 0.25 to 0.9.
    assert decisions[4].target == pytest.approx(0.25 + 0.65 * (1 - math.exp(-0.3)))
    assert decisions[4].multiplier < 1


def test_an_input_that_is_bought_now_and_then_is_no_jump_of_quality() -> None:
    plan = NoisePlan(mode="pid", rounds=12, goal=0.9)

    def on_plan(start: float, done: int) -> float:
        return start + (0.9 - start) * (1 - math.exp(-3 * done / 12))

    trace = [
        Quality(
            frechet_ratio=1 - on_plan(0.0, done),
            validation_auc=0.5 + 0.4 * on_plan(0.6, done) if done % 3 == 0 else None,
        )
        for done in range(12)
    ]
    decisions = run(plan, trace)
    assert [one.error for one in decisions] == pytest.approx([0.0] * 12, abs=1e-12)
    assert shares_of(decisions) == pytest.approx(share_plan("stage", 12, 1.0), rel=1e-9)


def test_rounds_without_input_hold_the_integral_and_forget_the_error() -> None:
    plan = NoisePlan(mode="pid", rounds=30)
    decisions = run(plan, [START, BEST, *[BLIND] * 8])
    held = decisions[1]
    assert held.integral > 0
    assert {one.integral for one in decisions[2:]} == {held.integral}
    assert all(one.error > 0 for one in decisions[:6][1:])
    assert [one.error for one in decisions[6:]] == [0.0] * 4
    assert decisions[-1].multiplier == pytest.approx(math.exp(held.integral + decisions[-1].derivative))
    assert decisions[-1].derivative < held.derivative / 100


# ---- saturation


def test_what_the_floor_keeps_from_acting_does_not_pile_up() -> None:
    # Quality far above plan for thirty rounds asks for more than the floor gives; then it falls a little below plan.
    plan = NoisePlan(mode="pid", rounds=60, kappa=0.0, max_share=1.05 / 60, goal=0.5)

    def trace(done: int) -> Quality:
        target = 0.5 * (1 - math.exp(-3 * done / 60))
        return Quality(frechet_ratio=1 - (target + 0.4 if 0 < done < 30 else target - 0.1 if done else 0.0))

    decisions = run(plan, [trace(done) for done in range(60)])
    assert all("floor" in one.clamped_by and one.multiplier > 1 for one in decisions[1:30])
    turned = next(at for at, one in enumerate(decisions) if at > 1 and one.error < 0)
    assert turned <= 35
    # Unchecked, the integral would stand at 1 and hold the multiplier above 1 for eight rounds more.
    assert max(one.multiplier for one in decisions[turned : turned + 3]) < 1


def test_a_clipped_multiplier_stops_the_integral_and_lets_it_unwind() -> None:
    plan = NoisePlan(mode="pid", rounds=64, kappa=0.0, goal=1.0)
    good, bad = Quality(frechet_ratio=0.0), Quality(frechet_ratio=1.0)
    state = NoiseState()
    for _ in range(60):
        state, decision = decide(plan, state, bad)
    assert decision.clamped_by == ("multiplier",)
    assert decision.multiplier == 0.5
    # The gains are such that the clip is reached with the integral near its end: give it room to move both ways.
    state = dataclasses.replace(state, integral=-0.5)
    after_bad, _ = decide(plan, state, bad)
    after_good, _ = decide(plan, dataclasses.replace(state, window=()), good)
    assert after_bad.integral == -0.5
    assert after_good.integral > -0.5


def test_every_clamp_is_named() -> None:
    assert run(NoisePlan(mode="stage", rounds=10, max_share=0.1), [BLIND] * 9)[-1].clamped_by == ("floor",)
    # The last round takes all that is left, so the one before must leave enough for it to keep within the slew limit.
    reached = run(NoisePlan(mode="pid", rounds=10, kappa=0.0, goal=0.1), [START, *[BEST] * 8])[-1]
    assert reached.clamped_by == ("multiplier", "reach")
    assert reached.share / reached.remaining == pytest.approx(SLEW**2)
    held = run(NoisePlan(mode="pid", rounds=10, kappa=0.0, goal=1.0), [START] * 9)[-1]
    assert held.clamped_by == ("reach",)
    assert held.remaining / held.share == pytest.approx(SLEW**2)
    # A plan of equal shares after a first round of very little: growth is held at the slew limit.
    plan = NoisePlan(mode="fixed", rounds=10)
    small = NoiseState(rounds_decided=1, remaining=0.99, last_share=0.01)
    assert decide(plan, small, BLIND)[1].clamped_by == ("slew",)
    assert decide(plan, small, BLIND)[1].share == pytest.approx(0.01 * SLEW**2)
    large = NoiseState(rounds_decided=1, remaining=0.75, last_share=0.25)
    assert decide(plan, large, BLIND)[1].clamped_by == ("slew",)
    assert decide(plan, large, BLIND)[1].share == pytest.approx(0.25 / SLEW**2)


def test_a_floor_that_was_raised_between_rounds_goes_before_the_slew_limit() -> None:
    before = NoiseState(rounds_decided=1, remaining=0.5, last_share=0.5)
    _, decision = decide(NoisePlan(mode="fixed", rounds=10, max_share=0.06), before, BLIND)
    assert decision.share <= 0.06


# ---- state


@settings(max_examples=40, deadline=None)
@given(plans(mode="pid", least_floor=0.5), traces)
def test_a_run_resumed_at_any_round_decides_the_same(plan: NoisePlan, trace: list[Quality]) -> None:
    whole = run(plan, trace)
    state = NoiseState()
    for done in range(plan.rounds):
        read = NoiseState.from_dict(json.loads(json.dumps(state.as_dict(), allow_nan=False)))
        assert read == state
        assert run(plan, trace[done:], read)[:2] == whole[done : done + 2]
        state, decision = decide(plan, read, trace[done])
        assert decision == whole[done]


def test_a_decision_is_a_line_of_json() -> None:
    for decision in run(NoisePlan(mode="pid", rounds=5, max_share=0.21), [START, BLIND, BEST, START, BEST]):
        line = json.loads(json.dumps(decision.as_dict(), allow_nan=False))
        assert line == decision.as_dict()
        assert Decision(**{**line, "clamped_by": tuple(line["clamped_by"])}) == decision


def test_deciding_leaves_the_state_as_it_was() -> None:
    plan = NoisePlan(mode="pid", rounds=5)
    state, _ = decide(plan, NoiseState(), Quality(frechet_ratio=1.0))
    before = json.dumps(state.as_dict())
    first, second = (decide(plan, state, BEST) for _ in range(2))
    assert json.dumps(state.as_dict()) == before
    assert first == second


def test_no_round_follows_the_last() -> None:
    plan = NoisePlan(mode="pid", rounds=2)
    state = NoiseState()
    for _ in range(2):
        state, _ = decide(plan, state, START)
    with pytest.raises(ValueError, match=r"^rounds_decided=2: the plan has 2 rounds$"):
        decide(plan, state, START)


# ---- refusals


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("frechet_ratio", value) for value in (math.nan, math.inf, -0.01, -math.inf)],
        *[("critic_accuracy", value) for value in (math.nan, math.inf, -0.01, 1.01)],
        *[("validation_auc", value) for value in (math.nan, math.inf, -0.01, 1.01)],
    ],
)
def test_a_quality_out_of_range_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^{field}={value}: expected ") as refused:
        Quality(**{field: value})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mode", "adaptive"),
        ("direction", "up"),
        *[("rounds", value) for value in (0, -1, MAX_ROUNDS + 1, 2.0, True)],
        *[("kappa", value) for value in (-0.1, 1.1, math.nan)],
        *[("max_share", value) for value in (0.0, -0.1, 1.1, math.nan)],
        *[("goal", value) for value in (0.0, 1.1, math.nan)],
        *[("reference_auc", value) for value in (0.5, 0.4, 1.1, math.nan)],
    ],
)
def test_a_plan_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{field}={value}: expected "):
        NoisePlan(**{"mode": "pid", "rounds": 5, field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("remaining", value) for value in (-0.1, 1.1, math.nan)],
        *[("error", value) for value in (-1.1, math.nan)],
        *[("integral", value) for value in (-1.1, 1.1, math.nan)],
        *[("derivative", value) for value in (-2.1, math.inf, math.nan)],
        *[("last_share", value) for value in (0.0, 1.1, math.nan, None)],
        *[("rounds_decided", value) for value in (0, -1)],
        ("window", 3),
        ("starts", [1, 2]),
        ("starts", {"frechet_ratio": 1}),
        ("surplus", 1),
    ],
)
def test_a_state_that_no_run_can_have_is_refused(field: str, value: Any) -> None:
    state, _ = decide(NoisePlan(mode="pid", rounds=5), NoiseState(), START)
    with pytest.raises(ValueError, match=r"^(noise state|rounds_decided|" + field + r"=)"):
        NoiseState.from_dict({**state.as_dict(), field: value})
