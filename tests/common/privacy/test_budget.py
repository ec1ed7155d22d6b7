"""Budget: published noise levels, rounding to the private side, and a filter that no sequence of requests passes."""

import math
from fractions import Fraction

import mpmath
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import BudgetError
from common.privacy.budget import check_spend, delta_of, epsilon_of, mu_of, noise_stddev_for, spend_of, total

# mu of (epsilon, delta). Origin: Dong, Roth and Su 2022, Corollary 1, solved by bisection in 60 decimal digits. For
# (1, 1e-5) the reference implementation of Balle and Wang 2018 (Algorithm 1, sensitivity 1) gives 3.730631634944469 for
# 1 / mu, to its tolerance of 1e-12 in delta.
VECTORS = [
    (1.0, 1e-5, 0.268051123211294),
    (1.0, 1e-6, 0.236704380663436),
    (0.5, 1e-5, 0.142210558669261),
    (3.0, 1e-5, 0.719117435221793),
    (10.0, 1e-6, 1.84813220576708),
    (1.0, 1e-9, 0.181974807295332),
    (100.0, 1e-6, 10.2210586050688),
]

epsilons = st.floats(1e-3, 200)
deltas = st.floats(-12, -1).map(lambda power: 10.0**power)
mus = st.floats(1e-3, 30)
sensitivities = st.integers(1, 10**18)
positive_spends = st.floats(1e-12, 1e4)


def exact_delta(mu: float, epsilon: float) -> mpmath.mpf:
    """Corollary 1 in 60 digits, in its textbook form."""
    with mpmath.workdps(60):
        wide, noise = mpmath.mpf(epsilon), mpmath.mpf(mu)
        first = mpmath.ncdf(-wide / noise + noise / 2)
        return first - mpmath.exp(wide) * mpmath.ncdf(-wide / noise - noise / 2)


@pytest.mark.parametrize(("epsilon", "delta", "mu"), VECTORS)
def test_mu_is_the_published_one_and_never_above_it(epsilon: float, delta: float, mu: float) -> None:
    found = mu_of(epsilon=epsilon, delta=delta)
    assert found == pytest.approx(mu, rel=2e-9)
    assert found < mu


def test_mu_agrees_with_the_analytic_gaussian_mechanism() -> None:
    # Origin: Balle and Wang 2018, reference implementation, calibrateAnalyticGaussianMechanism(1.0, 1e-5, 1.0).
    assert 1 / mu_of(epsilon=1.0, delta=1e-5) == pytest.approx(3.730631634944469, rel=2e-9)


@pytest.mark.parametrize(("epsilon", "delta", "mu"), VECTORS)
def test_epsilon_of_is_the_inverse_of_mu_of(epsilon: float, delta: float, mu: float) -> None:
    assert epsilon_of(mu=mu_of(epsilon=epsilon, delta=delta), delta=delta) == pytest.approx(epsilon, rel=1e-7)
    assert mu_of(epsilon=epsilon_of(mu=mu, delta=delta), delta=delta) == pytest.approx(mu, rel=1e-7)


@settings(max_examples=150, deadline=None)
@given(epsilons, deltas)
def test_mu_is_rounded_to_the_private_side_and_by_little(epsilon: float, delta: float) -> None:
    mu = mu_of(epsilon=epsilon, delta=delta)
    assert exact_delta(mu, epsilon) <= delta
    assert exact_delta(mu * (1 + 3e-9), epsilon) > delta


@settings(max_examples=150, deadline=None)
@given(mus, deltas)
def test_epsilon_is_rounded_to_the_private_side_and_by_little(mu: float, delta: float) -> None:
    epsilon = epsilon_of(mu=mu, delta=delta)
    assert exact_delta(mu, epsilon) <= delta
    if epsilon > 1e-6:
        assert exact_delta(mu, epsilon * (1 - 3e-9)) > delta


@settings(max_examples=100, deadline=None)
@given(mus, st.floats(0, 300))
def test_delta_of_agrees_with_sixty_digits(mu: float, epsilon: float) -> None:
    assert delta_of(mu, epsilon) == pytest.approx(float(exact_delta(mu, epsilon)), rel=1e-6, abs=1e-15)


def test_more_epsilon_or_delta_buys_more_mu() -> None:
    assert mu_of(epsilon=1, delta=1e-6) < mu_of(epsilon=1, delta=1e-5) < mu_of(epsilon=1.1, delta=1e-5)


@pytest.mark.parametrize("epsilon", [100.0, 709.0, 710.0, 1000.0, 1e4, 1e5])
def test_a_large_epsilon_does_not_overflow(epsilon: float) -> None:
    mu = mu_of(epsilon=epsilon, delta=1e-6)
    assert math.isfinite(mu)
    assert exact_delta(mu, epsilon) <= 1e-6
    assert epsilon_of(mu=mu, delta=1e-6) == pytest.approx(epsilon, rel=1e-7)


def test_no_loss_is_epsilon_zero() -> None:
    assert epsilon_of(mu=0.0, delta=1e-6) == 0.0
    # A delta that pays for the whole loss: 2 Phi(mu / 2) - 1 < delta.
    assert epsilon_of(mu=1e-7, delta=1e-6) == 0.0


@pytest.mark.parametrize(
    ("epsilon", "delta"),
    [(0.0, 0.1), (-1.0, 0.1), (math.nan, 0.1), (math.inf, 0.1), (1.0, 0.0), (1.0, 1.0), (1.0, math.nan), (1e9, 1e-6)],
)
def test_mu_of_refuses_what_is_not_a_guarantee(epsilon: float, delta: float) -> None:
    with pytest.raises(ValueError, match=r"epsilon|delta"):
        mu_of(epsilon=epsilon, delta=delta)


@pytest.mark.parametrize(
    ("mu", "delta"), [(-1.0, 0.1), (math.nan, 0.1), (math.inf, 0.1), (1.0, 0.0), (1.0, 1.0), (1.0, math.nan)]
)
def test_epsilon_of_refuses_what_is_not_a_loss(mu: float, delta: float) -> None:
    with pytest.raises(ValueError, match=r"mu|delta"):
        epsilon_of(mu=mu, delta=delta)


@settings(deadline=None)
@given(st.lists(positive_spends, max_size=20))
def test_the_total_is_never_below_the_exact_sum(spends: list[float]) -> None:
    assert Fraction(total(spends)) >= sum(map(Fraction, spends))


@settings(max_examples=300, deadline=None)
@given(sensitivities, positive_spends)
def test_the_noise_for_a_spend_never_spends_more(squared_sensitivity: int, spend: float) -> None:
    stddev = noise_stddev_for(squared_sensitivity=squared_sensitivity, spend=spend)
    assert Fraction(squared_sensitivity) / Fraction(stddev) ** 2 <= Fraction(spend)
    assert spend_of(squared_sensitivity=squared_sensitivity, noise_stddev=stddev) <= spend
    # No more noise than needed either.
    assert stddev == pytest.approx(math.sqrt(squared_sensitivity / spend), rel=1e-14, abs=0)


@settings(max_examples=500, deadline=None)
@given(sensitivities, st.floats(1e-6, 1e12))
def test_a_stated_spend_is_never_below_the_exact_one(squared_sensitivity: int, stddev: float) -> None:
    stated = spend_of(squared_sensitivity=squared_sensitivity, noise_stddev=stddev)
    exact = Fraction(squared_sensitivity) / Fraction(stddev) ** 2
    assert exact <= Fraction(stated) <= exact * (1 + Fraction(1, 10**14))


@pytest.mark.parametrize("spend", [0.0, -1.0, math.nan, math.inf])
def test_noise_for_no_spend_is_refused(spend: float) -> None:
    with pytest.raises(ValueError, match="spend"):
        noise_stddev_for(squared_sensitivity=1, spend=spend)


def test_a_spend_beyond_the_budget_is_refused_in_shares_of_it() -> None:
    check_spend([0.25], 0.5, budget=1.0)
    with pytest.raises(BudgetError, match=r"needs 0\.5 of it, 0\.25 is left"):
        check_spend([0.5, 0.25], 0.5, budget=1.0)


def test_exactly_what_is_left_is_granted_and_one_bit_more_is_not() -> None:
    check_spend([], 1.0, budget=1.0)
    check_spend([0.75], 0.25, budget=1.0)
    with pytest.raises(BudgetError):
        check_spend([0.75], math.nextafter(0.25, 1), budget=1.0)
    # Lost in a float sum: 1 + 2^-60 is 1.
    with pytest.raises(BudgetError):
        check_spend([1.0], 2.0**-60, budget=1.0)


@pytest.mark.parametrize(("epsilon", "delta", "mu"), VECTORS)
def test_one_release_may_take_the_whole_budget(epsilon: float, delta: float, mu: float) -> None:
    budget = mu_of(epsilon=epsilon, delta=delta) ** 2
    for squared_sensitivity in (1, 3, 12, 78, 91):
        stddev = noise_stddev_for(squared_sensitivity=squared_sensitivity, spend=budget)
        check_spend([], spend_of(squared_sensitivity=squared_sensitivity, noise_stddev=stddev), budget=budget)


@pytest.mark.parametrize("spend", [0.0, -0.1, math.nan, math.inf])
def test_a_spend_that_is_not_a_positive_number_is_refused(spend: float) -> None:
    with pytest.raises(ValueError, match="spend"):
        check_spend([], spend, budget=1.0)


@pytest.mark.parametrize("budget", [math.nan, -1.0, math.inf])
def test_a_budget_that_is_not_a_number_grants_nothing(budget: float) -> None:
    with pytest.raises(BudgetError):
        check_spend([], 0.1, budget=budget)


# What an adversary asks for next, from what is left: all, one bit more, a part, or what a float sum would lose.
MOVES = {
    "all": lambda left, budget: left,
    "one bit more": lambda left, budget: math.nextafter(left, math.inf),
    "one bit less": lambda left, budget: math.nextafter(left, 0.0),
    "half": lambda left, budget: left / 2,
    "a third": lambda left, budget: left / 3,
    "dust": lambda left, budget: budget * 2.0**-60,
    "a tenth": lambda left, budget: budget / 10,
    "everything": lambda left, budget: budget,
}


@settings(max_examples=200, deadline=None)
@given(st.floats(1e-4, 100), st.lists(st.sampled_from(sorted(MOVES)), max_size=40))
def test_no_adaptive_sequence_passes_the_budget(budget: float, moves: list[str]) -> None:
    granted: list[float] = []
    for move in moves:
        left = Fraction(budget) - sum(map(Fraction, granted))
        asked = max(MOVES[move](float(left), budget), 1e-300)
        try:
            check_spend(granted, asked, budget=budget)
        except BudgetError:
            assert Fraction(asked) > left
        else:
            granted.append(asked)
            assert sum(map(Fraction, granted)) <= Fraction(budget)


def test_opacus_has_the_same_duality() -> None:
    gdp = pytest.importorskip("opacus.accountants.analysis.gdp")
    for epsilon, _, mu in VECTORS:
        assert delta_of(mu, epsilon) == pytest.approx(gdp.delta_eps_mu(eps=epsilon, mu=mu), rel=1e-6)


def test_renyi_accounting_of_the_same_releases_is_an_upper_bound() -> None:
    rdp = pytest.importorskip("opacus.accountants.analysis.rdp")
    orders = [1 + step / 10 for step in range(1, 1000)]
    for epsilon, delta, mu in VECTORS[:5]:
        # Four equal releases of mu / 2 each are mu-GDP together; no sampling.
        spent = rdp.compute_rdp(q=1.0, noise_multiplier=2 / mu, steps=4, orders=orders)
        bound, _ = rdp.get_privacy_spent(orders=orders, rdp=spent, delta=delta)
        assert epsilon < bound < 1.3 * epsilon
        assert epsilon_of(mu=math.sqrt(4 * (mu / 2) ** 2), delta=delta) < bound
