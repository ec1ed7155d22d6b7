"""Accountants: the same numbers as three other implementations, rounding to the private side, filters that hold."""

import itertools
import math
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import dp_accounting
import mpmath
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, pld, rdp
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import BudgetError, LedgerError
from common.privacy.accountants import Accountant, GdpAccountant, RdpAccountant, accountant_from, default_order
from common.privacy.budget import check_spend, epsilon_of, mu_of, total
from common.privacy.events import GaussianEvent

BOTH: list[Accountant] = [GdpAccountant(), RdpAccountant(2), RdpAccountant(16), RdpAccountant(64)]

orders = st.one_of(st.integers(2, 40), st.sampled_from([64, 128, 300, 1024]))
samplings = st.floats(-5, 0).map(lambda power: 10.0**power)
multipliers = st.floats(-0.5, 2.5).map(lambda power: 10.0**power)
epsilons = st.floats(0.05, 200)
deltas = st.floats(-12, -2).map(lambda power: 10.0**power)

# (sampling, noise multiplier, steps): phases of a run whose schedule is fixed beforehand.
SCHEDULES = [
    [(1.0, 20.0, 10)],
    [(0.1, 3.0, 200)],
    [(0.02, 1.0, 500)],
    [(0.3, 8.0, 50), (0.1, 4.0, 50), (1.0, 12.0, 1)],
    [(0.01, 0.8, 100), (0.5, 30.0, 40)],
]


def gaussian_event(multiplier: float, sampling: float = 1.0, squared_sensitivity: int = 1) -> GaussianEvent:
    return GaussianEvent(
        account="train",
        squared_sensitivity=squared_sensitivity,
        noise_stddev=multiplier * math.sqrt(squared_sensitivity),
        cells=4,
        scale=1,
        noise="csprng",
        sampling=sampling,
    )


def exact_divergence(order: int, multiplier: float, sampling: float) -> mpmath.mpf:
    """Mironov, Talwar and Zhang 2019, section 3.3, integer orders, in 50 digits."""
    with mpmath.workdps(50):
        drawn, variance = mpmath.mpf(sampling), mpmath.mpf(multiplier) ** 2
        terms = [
            mpmath.binomial(order, i) * drawn**i * (1 - drawn) ** (order - i) * mpmath.exp((i * i - i) / (2 * variance))
            for i in range(order + 1)
        ]
        return mpmath.log(mpmath.fsum(terms)) / (order - 1)


def exact_epsilon(order: int, divergence: float, delta: float) -> mpmath.mpf:
    """Canonne, Kamath and Steinke 2020, Proposition 12, in 50 digits."""
    with mpmath.workdps(50):
        at, chance = mpmath.mpf(order), mpmath.mpf(delta)
        return mpmath.mpf(divergence) + mpmath.log(1 - 1 / at) - (mpmath.log(chance) + mpmath.log(at)) / (at - 1)


def spent_on(accountant: Accountant, schedule: list[tuple[float, float, int]]) -> float:
    return total(
        [accountant.spend(gaussian_event(noise, drawn)) for drawn, noise, steps in schedule for _ in range(steps)]
    )


# --- spends


@pytest.mark.parametrize(
    ("order", "sampling"),
    [
        *itertools.product([2, 3, 16, 17, 64, 200], [1e-12, 1e-6, 1e-3, 0.01, 0.1, 0.5, 0.9, 0.999999, 1 - 2**-53]),
        *itertools.product([1024], [1e-6, 0.3]),
    ],
)
def test_a_sampled_spend_is_above_fifty_digits_and_by_little(order: int, sampling: float) -> None:
    for multiplier in (0.05, 0.3, 1.0, 3.0, 20.0, 1e3):
        exact = exact_divergence(order, multiplier, sampling)
        assert exact <= RdpAccountant(order).spend(gaussian_event(multiplier, sampling)) <= exact * (1 + 3e-12) + 2e-13


@settings(max_examples=60, deadline=None)
@given(orders.filter(lambda order: order < 200), samplings, multipliers, st.integers(1, 10**18))
def test_a_spend_is_never_below_fifty_digits(order: int, sampling: float, multiplier: float, squared: int) -> None:
    event = gaussian_event(multiplier, sampling, squared)
    with mpmath.workdps(50):
        stated = event.noise_stddev / mpmath.sqrt(squared)
    exact = exact_divergence(order, stated, sampling)
    assert exact <= RdpAccountant(order).spend(event) <= exact * (1 + 3e-12) + 2e-13


@settings(max_examples=200, deadline=None)
@given(orders, multipliers, st.integers(1, 10**18))
def test_a_plain_spend_is_the_closed_form_rounded_up(order: int, multiplier: float, squared: int) -> None:
    event = gaussian_event(multiplier, 1.0, squared)
    exact = Fraction(order * squared, 2) / Fraction(event.noise_stddev) ** 2
    assert exact <= Fraction(RdpAccountant(order).spend(event)) <= exact * (1 + Fraction(1, 10**14))
    assert GdpAccountant().spend(event) == event.spend


@settings(max_examples=200, deadline=None)
@given(samplings, multipliers)
def test_order_two_is_the_closed_form(sampling: float, multiplier: float) -> None:
    # E[(p/q)^2] = 1 + s^2 (e^(1/z^2) - 1).
    closed = math.log1p(sampling**2 * math.expm1(1 / multiplier**2))
    assert RdpAccountant(2).spend(gaussian_event(multiplier, sampling)) == pytest.approx(closed, rel=1e-6, abs=2e-13)


@settings(max_examples=100, deadline=None)
@given(orders, samplings, samplings, multipliers, st.floats(1.01, 10))
def test_less_sampling_and_more_noise_never_cost_more(
    order: int, one: float, other: float, multiplier: float, factor: float
) -> None:
    accountant = RdpAccountant(order)
    spend = accountant.spend(gaussian_event(multiplier, max(one, other)))
    assert accountant.spend(gaussian_event(multiplier, min(one, other))) <= spend * (1 + 3e-12) + 2e-13
    assert accountant.spend(gaussian_event(multiplier * factor, max(one, other))) <= spend
    assert spend <= accountant.spend(gaussian_event(multiplier))
    assert accountant.spend(gaussian_event(multiplier, 1 - 2**-53)) <= accountant.spend(gaussian_event(multiplier))


@pytest.mark.parametrize("multiplier", [1e-4, 1e-100, 1e-150, 1e-160, 1e-170, 1e-300, 1e100, 1e160, 1e300])
@pytest.mark.parametrize("sampling", [1e-300, 1e-9, 0.5])
def test_noise_beyond_all_use_neither_fails_nor_comes_free(multiplier: float, sampling: float) -> None:
    event = gaussian_event(multiplier, sampling)
    for accountant in BOTH:
        assert 0 < accountant.spend(event) <= accountant.spend(gaussian_event(multiplier))
    if multiplier < 1e-3:
        assert RdpAccountant(16).spend(event) > 1e6


@pytest.mark.parametrize("sampling", [0.0, -0.5, 1.5, math.nan])
def test_a_sampling_that_is_no_probability_is_counted_as_none(sampling: float) -> None:
    for accountant in BOTH:
        assert accountant.spend(gaussian_event(3.0, sampling)) == accountant.spend(gaussian_event(3.0))


def test_gaussian_dp_counts_a_sampled_event_as_if_all_took_part() -> None:
    assert GdpAccountant().spend(gaussian_event(4.0, 0.1)) == pytest.approx(1 / 16, rel=1e-14)


# --- other implementations


@pytest.mark.parametrize("order", [2, 5, 16, 40, 128])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_dp_accounting_counts_whole_schedules_alike(order: int, schedule: list[tuple[float, float, int]]) -> None:
    theirs = rdp.RdpAccountant([order], dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    for drawn, noise, steps in schedule:
        theirs.compose(PoissonSampledDpEvent(drawn, GaussianDpEvent(noise)), steps)
    ours = RdpAccountant(order)
    spent = spent_on(ours, schedule)
    assert spent == pytest.approx(float(theirs.rdp[0]), rel=1e-6)
    assert ours.epsilon(spent=spent, delta=1e-6) == pytest.approx(theirs.get_epsilon(1e-6), rel=1e-6)
    assert ours.epsilon(spent=spent, delta=1e-6) >= theirs.get_epsilon(1e-6)


@pytest.mark.parametrize("order", [2, 5, 16, 40, 128])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_opacus_counts_whole_schedules_alike(order: int, schedule: list[tuple[float, float, int]]) -> None:
    opacus = pytest.importorskip("opacus.accountants.analysis.rdp")
    theirs = sum(
        opacus.compute_rdp(q=drawn, noise_multiplier=noise, steps=steps, orders=[order])
        for drawn, noise, steps in schedule
    )
    ours = RdpAccountant(order)
    spent = spent_on(ours, schedule)
    assert spent == pytest.approx(float(theirs[0]), rel=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the one order is the smallest and the largest
        epsilon, _ = opacus.get_privacy_spent(orders=[order], rdp=theirs, delta=1e-6)
    assert ours.epsilon(spent=spent, delta=1e-6) == pytest.approx(float(epsilon), rel=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_loss_distributions_of_a_fixed_schedule_never_give_more(schedule: list[tuple[float, float, int]]) -> None:
    theirs = pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    for drawn, noise, steps in schedule:
        theirs.compose(PoissonSampledDpEvent(drawn, GaussianDpEvent(noise)), steps)
    tight = theirs.get_epsilon(1e-5)
    for order in (2, 8, 16, 32, 64):
        ours = RdpAccountant(order)
        assert tight < ours.epsilon(spent=spent_on(ours, schedule), delta=1e-5)
    # Without sampling Gaussian DP is exact, and theirs is rounded up on a grid of its own.
    gaussian = GdpAccountant().epsilon(spent=spent_on(GdpAccountant(), schedule), delta=1e-5)
    assert tight <= gaussian * (1 + 1e-3)
    if all(drawn == 1 for drawn, _, _ in schedule):
        assert tight == pytest.approx(gaussian, rel=1e-3)


@settings(max_examples=100, deadline=None)
@given(orders, samplings, st.floats(0.5, 50))
def test_both_libraries_agree_on_single_events(order: int, sampling: float, multiplier: float) -> None:
    opacus = pytest.importorskip("opacus.accountants.analysis.rdp")
    ours = RdpAccountant(order).spend(gaussian_event(multiplier, sampling))
    theirs = rdp.RdpAccountant([order]).compose(PoissonSampledDpEvent(sampling, GaussianDpEvent(multiplier))).rdp[0]
    assert ours == pytest.approx(float(theirs), rel=1e-6, abs=2e-13)
    if order <= 300:  # its binomials are floats
        theirs = opacus.compute_rdp(q=sampling, noise_multiplier=multiplier, steps=1, orders=[order])[0]
        assert ours == pytest.approx(float(theirs), rel=1e-6, abs=2e-13)


# --- bounds and what they stand for


@settings(max_examples=200, deadline=None)
@given(epsilons, deltas, orders)
def test_a_whole_bound_never_stands_for_more_than_its_epsilon(epsilon: float, delta: float, order: int) -> None:
    gaussian = GdpAccountant()
    bound = gaussian.bound(epsilon=epsilon, delta=delta)
    assert bound == mu_of(epsilon=epsilon, delta=delta) ** 2
    assert epsilon * (1 - 1e-7) <= gaussian.epsilon(spent=bound, delta=delta) <= epsilon
    renyi = RdpAccountant(order)
    try:
        bound = renyi.bound(epsilon=epsilon, delta=delta)
    except ValueError:
        assert exact_epsilon(order, 0.0, delta) > epsilon * (1 - 1e-12)
    else:
        assert renyi.epsilon(spent=bound, delta=delta) <= epsilon
        assert exact_epsilon(order, bound, delta) <= epsilon
        assert renyi.epsilon(spent=bound, delta=delta) == pytest.approx(epsilon, rel=1e-12)


@settings(max_examples=200, deadline=None)
@given(st.floats(1.01e-4, 1e3), deltas, orders)
def test_what_a_sum_stands_for_is_rounded_up_and_by_little(spent: float, delta: float, order: int) -> None:
    exact = exact_epsilon(order, spent, delta)
    stated = RdpAccountant(order).epsilon(spent=spent, delta=delta)
    assert stated >= max(0, exact)
    assert stated <= max(0, exact) + 1e-13 * (1 + spent)
    gaussian = GdpAccountant().epsilon(spent=spent, delta=delta)
    with mpmath.workdps(60):
        mu = mpmath.sqrt(spent)
        lost = mpmath.ncdf(mu / 2 - gaussian / mu) - mpmath.exp(gaussian) * mpmath.ncdf(-mu / 2 - gaussian / mu)
    assert lost <= delta
    assert gaussian == pytest.approx(epsilon_of(mu=math.sqrt(spent), delta=delta), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("accountant", BOTH)
def test_nothing_spent_is_epsilon_zero(accountant: Accountant) -> None:
    assert accountant.epsilon(spent=0.0, delta=1e-6) == 0.0
    assert accountant.epsilon(spent=total([]), delta=1e-6) == 0.0
    assert accountant.epsilon(spent=1.0, delta=1e-6) > 0.5


def test_a_loss_that_delta_pays_for_is_epsilon_zero() -> None:
    assert RdpAccountant(1024).epsilon(spent=1e-9, delta=0.9) == 0.0
    # Total variation of N(0, 1) and N(mu, 1) is 2 Phi(mu / 2) - 1: the smallest delta at epsilon 0.
    for order in (2, 16, 1024):
        for delta in (1e-6, 0.01):
            mu = math.sqrt(2 / order) * delta
            assert math.erf(mu / math.sqrt(8)) < delta
            assert RdpAccountant(order).epsilon(spent=(1 - 1e-12) * delta**2, delta=delta) == 0.0
    assert RdpAccountant(2).epsilon(spent=1.1e-12, delta=1e-6) > 10


@pytest.mark.parametrize(("epsilon", "order"), [(0.1, 166), (1.0, 22), (3.0, 9), (10.0, 4), (1e4, 2)])
def test_the_default_order_is_the_first_with_the_least_noise(epsilon: float, order: int) -> None:
    def noise(order: int) -> mpmath.mpf:
        room = epsilon - exact_epsilon(order, 0.0, 1e-6)
        return mpmath.sqrt(order / (2 * room)) if room > 0 else mpmath.inf

    noises = {order: noise(order) for order in range(2, 1025)}
    assert default_order(epsilon=epsilon, delta=1e-6) == order == min(noises, key=lambda one: (noises[one], one))


def test_an_epsilon_that_no_order_gives_is_refused() -> None:
    with pytest.raises(ValueError, match="no Rényi order"):
        default_order(epsilon=1e-3, delta=1e-6)


# --- noise


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([*BOTH, RdpAccountant(256)]),
    st.floats(-8, 4).map(lambda power: 10.0**power),
    st.integers(1, 10**18),
    st.one_of(st.just(1.0), samplings),
)
def test_the_noise_for_a_spend_never_spends_more_and_is_the_least(
    accountant: Accountant, spend: float, squared: int, sampling: float
) -> None:
    stddev = accountant.noise_stddev(squared_sensitivity=squared, spend=spend, sampling=sampling)

    def cost(noise_stddev: float) -> float:
        event = gaussian_event(1.0, sampling, squared)
        return accountant.spend(GaussianEvent(**{**vars(event), "noise_stddev": noise_stddev}))

    assert cost(stddev) <= spend
    if accountant != GdpAccountant() and sampling < 1:
        # Room for another machine's last digits.
        assert cost(stddev) <= spend * (1 - 1e-9)
        assert cost(stddev * (1 - 1e-8)) > spend * (1 - 1.1e-9)
    else:
        assert cost(stddev * (1 - 1e-13)) > spend
    assert stddev <= accountant.noise_stddev(squared_sensitivity=squared, spend=spend * (1 - 1e-8), sampling=1.0)


def test_sampling_buys_less_noise_in_renyi_alone() -> None:
    for accountant, ratio in ((GdpAccountant(), 1.0), (RdpAccountant(16), 0.2)):
        plain, sampled = (
            accountant.noise_stddev(squared_sensitivity=4, spend=0.05, sampling=drawn) for drawn in (1.0, 0.1)
        )
        assert ratio * 0.5 < sampled / plain <= ratio


# --- misuse


@pytest.mark.parametrize("accountant", BOTH)
@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (lambda one: one.bound(epsilon=0.0, delta=1e-6), "epsilon"),
        (lambda one: one.bound(epsilon=math.nan, delta=1e-6), "epsilon"),
        (lambda one: one.bound(epsilon=math.inf, delta=1e-6), "epsilon"),
        (lambda one: one.bound(epsilon=1.0, delta=0.0), "delta"),
        (lambda one: one.bound(epsilon=1.0, delta=1.0), "delta"),
        (lambda one: one.epsilon(spent=-1.0, delta=1e-6), "spent"),
        (lambda one: one.epsilon(spent=math.nan, delta=1e-6), "spent"),
        (lambda one: one.epsilon(spent=math.inf, delta=1e-6), "spent"),
        (lambda one: one.epsilon(spent=1.0, delta=math.nan), "delta"),
        (lambda one: one.noise_stddev(squared_sensitivity=1, spend=0.0, sampling=1.0), "spend"),
        (lambda one: one.noise_stddev(squared_sensitivity=1, spend=math.nan, sampling=0.5), "spend"),
        (lambda one: one.noise_stddev(squared_sensitivity=1, spend=math.inf, sampling=0.5), "spend"),
        (lambda one: one.noise_stddev(squared_sensitivity=1, spend=1.0, sampling=0.0), "sampling"),
        (lambda one: one.noise_stddev(squared_sensitivity=1, spend=1.0, sampling=1.1), "sampling"),
        (lambda one: one.noise_stddev(squared_sensitivity=1, spend=1.0, sampling=math.nan), "sampling"),
    ],
)
def test_what_is_out_of_range_is_refused(
    accountant: Accountant, wrong: Callable[[Accountant], float], field: str
) -> None:
    with pytest.raises(ValueError, match=f"^{field}="):
        wrong(accountant)


@pytest.mark.parametrize("order", [1, 0, -2, 1025, True, 2.0, math.inf, "16"])
def test_an_order_is_an_integer_from_two_to_1024(order: Any) -> None:
    with pytest.raises(ValueError, match="order"):
        RdpAccountant(order)


# --- written down and read back


@pytest.mark.parametrize("accountant", [*BOTH, RdpAccountant(1024)])
def test_an_accountant_reads_back_as_itself(accountant: Accountant) -> None:
    assert accountant_from(accountant.as_dict()) == accountant


def test_what_is_written_down_is_stable() -> None:
    assert GdpAccountant().as_dict() == {"kind": "gdp"}
    assert RdpAccountant(16).as_dict() == {"kind": "rdp", "order": 16}


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"kind": "zcdp"},
        {"kind": "GDP"},
        {"kind": "gdp", "order": 16},
        {"kind": "rdp"},
        {"kind": "rdp", "order": 1},
        {"kind": "rdp", "order": 1025},
        {"kind": "rdp", "order": True},
        {"kind": "rdp", "order": 16.0},
        {"kind": "rdp", "order": "16"},
        {"kind": "rdp", "order": None},
        {"kind": "rdp", "order": 16, "orders": [2]},
        {"order": 16},
        "gdp",
        None,
        [["kind", "gdp"]],
    ],
)
def test_anything_else_is_no_accountant(data: Any) -> None:
    with pytest.raises(LedgerError, match="accountant"):
        accountant_from(data)


def test_an_event_without_sampling_reads_as_it_always_did() -> None:
    old = {
        "type": "gaussian",
        "account": "train",
        "squared_sensitivity": 12,
        "noise_stddev": 3.5,
        "cells": 4,
        "scale": 2,
        "noise": "csprng",
    }
    event = GaussianEvent.from_dict(old)
    assert event.sampling == 1.0
    assert event.as_dict() == old
    assert GaussianEvent.from_dict({**old, "sampling": 1.0}) == event


def test_a_sampled_event_reads_back_as_itself() -> None:
    event = gaussian_event(3.0, 0.25)
    assert event.as_dict()["sampling"] == 0.25
    assert GaussianEvent.from_dict(event.as_dict()) == event
    assert event.spend == gaussian_event(3.0).spend


@pytest.mark.parametrize("sampling", [0.0, -0.1, math.nextafter(1, 2), math.nan, math.inf, True, "0.5", None])
def test_an_event_with_a_sampling_out_of_range_is_refused(sampling: Any) -> None:
    with pytest.raises(LedgerError, match="out of range"):
        GaussianEvent.from_dict({**gaussian_event(3.0).as_dict(), "sampling": sampling})


# --- the filter


# What an adversary who has seen all earlier outputs asks for next: a share of what is left, or any noise it likes.
moves = st.tuples(
    st.one_of(
        st.tuples(st.just("share"), st.sampled_from([1.0, 1 + 2**-52, 0.5, 0.1, 2**-30])),
        st.tuples(st.just("noise"), multipliers),
    ),
    st.one_of(st.just(1.0), samplings),
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(BOTH), st.floats(0.5, 20), deltas, st.lists(moves, max_size=15))
def test_no_adaptive_sequence_of_noise_and_sampling_passes_the_bound(
    accountant: Accountant, epsilon: float, delta: float, asked: list[tuple[tuple[str, float], float]]
) -> None:
    try:
        bound = accountant.bound(epsilon=epsilon, delta=delta)
    except ValueError:
        return
    granted: list[float] = []
    exact = mpmath.mpf(0)
    for (kind, value), sampling in asked:
        left = Fraction(bound) - sum(map(Fraction, granted))
        noise = value
        if kind == "share":
            share = max(float(left) * value, 1e-12)
            noise = accountant.noise_stddev(squared_sensitivity=1, spend=share, sampling=sampling)
        event = gaussian_event(noise, sampling)
        spend = accountant.spend(event)
        try:
            check_spend(granted, spend, budget=bound)
        except BudgetError:
            assert Fraction(spend) > left
            continue
        granted.append(spend)
        if isinstance(accountant, RdpAccountant):
            exact += exact_divergence(accountant.order, noise, sampling)
        else:
            exact += 1 / mpmath.mpf(noise) ** 2
        assert sum(map(Fraction, granted)) <= Fraction(bound)
        assert exact <= bound
    assert accountant.epsilon(spent=float(sum(map(Fraction, granted))), delta=delta) <= epsilon


@pytest.mark.parametrize("accountant", BOTH)
def test_what_is_left_can_be_spent_whatever_the_sampling(accountant: Accountant) -> None:
    bound = accountant.bound(epsilon=30.0, delta=1e-6)
    for sampling in (1.0, 0.5, 0.01):
        granted: list[float] = []
        for share in (0.3, 0.5, 1.0):
            left = bound - total(granted) if granted else bound
            noise = accountant.noise_stddev(squared_sensitivity=1, spend=left * share, sampling=sampling)
            spend = accountant.spend(gaussian_event(noise, sampling))
            check_spend(granted, spend, budget=bound)
            granted.append(spend)
        assert sum(granted) == pytest.approx(bound, rel=1e-8)
