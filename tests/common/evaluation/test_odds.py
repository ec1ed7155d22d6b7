"""A guarantee in odds: bounds hold for what is Gaussian DP, and no smaller ones would."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from common.errors import ExitCode, PrivShareError
from common.evaluation.odds import best_guess, chance_beyond, most_found, odds_of, posterior, rarely_passed
from common.privacy.budget import delta_of, epsilon_of, mu_of


def test_pure_epsilon_multiplies_odds_by_e_to_the_epsilon() -> None:
    assert posterior(0.1, 1.0) == pytest.approx(0.1 * math.e / (0.1 * math.e + 0.9), rel=1e-12)
    (belief,) = odds_of(epsilon=1, delta=1e-6, priors=[0.1]).beliefs
    assert (round(belief.at_most, 3), round(belief.at_least, 4)) == (0.232, 0.0393)
    assert belief.rarely_below < belief.at_least < belief.prior < belief.at_most < belief.rarely_above < 1


@pytest.mark.parametrize("mu", [0.24, 1.0, 4.0])
@pytest.mark.parametrize("loss", [0.1, 1.0])
def test_the_chance_of_a_larger_loss_is_the_least_that_follows_from_all_pairs(mu: float, loss: float) -> None:
    # a <= e^epsilon b + delta for every pair that mu-GDP implies, and b < e^-loss a: the dual of the same bound.
    least = min(delta_of(mu, epsilon) / -math.expm1(epsilon - loss) for epsilon in np.linspace(0, loss, 401)[:-1])
    found = chance_beyond(loss, mu=mu)
    # From epsilon 0 on the grid sees one side of the trade-off alone, so that above a half it is a bound and no more.
    assert found <= min(1.0, least) * (1 + 1e-6)
    if least < 0.4:
        assert found == pytest.approx(least, rel=1e-2)


@pytest.mark.parametrize("mu", [0.1, 0.5, 2.0])
def test_the_chance_of_a_larger_loss_is_reached_by_an_output_of_one_bit(mu: float) -> None:
    chance = chance_beyond(0.7, mu=mu)
    without = float(norm.cdf(norm.ppf(chance) - mu))
    # The bit "beyond" has these chances by a threshold on a Gaussian, and multiplies the odds by e^0.7.
    assert math.log(chance / without) == pytest.approx(0.7, abs=1e-6)


def test_the_chance_of_a_larger_loss_is_above_delta_and_above_the_gaussian_tail() -> None:
    mu = mu_of(epsilon=1, delta=1e-6)
    chance = chance_beyond(1, mu=mu)
    assert chance > float(norm.cdf(-1 / mu + mu / 2)) > 1e-6
    assert odds_of(epsilon=1, delta=1e-6).beyond == chance


@pytest.mark.parametrize("chance", [1e-9, 1e-5, 0.01])
def test_what_is_passed_rarely_is_the_inverse_of_how_often_it_is_passed(chance: float) -> None:
    assert chance_beyond(rarely_passed(chance, mu=0.3), mu=0.3) == pytest.approx(chance, rel=1e-5)


@pytest.mark.statistical
def test_no_belief_in_a_drawn_gaussian_release_passes_the_bounds_more_often() -> None:
    # Fails by chance about once in 10^9: six standard deviations of a count.
    mu, loss, draws = 0.8, 1.5, 500_000
    seen = np.random.default_rng(1).normal(mu, 1, draws)
    ratio = mu * seen - mu**2 / 2
    above = float(np.mean(ratio > loss))
    assert above == pytest.approx(float(norm.cdf(-loss / mu + mu / 2)), abs=6 * math.sqrt(above / draws))
    assert above < chance_beyond(loss, mu=mu)


@pytest.mark.parametrize("prior", [0.02, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("mu", [0.1, 1.0])
def test_the_best_guess_is_the_best_of_all_tests(prior: float, mu: float) -> None:
    rates = norm.cdf(np.linspace(-45, 12, 200))
    right = [prior * most_found(rate, mu=mu) + (1 - prior) * (1 - rate) for rate in rates]
    assert max(right) - 1e-6 < best_guess(prior, mu=mu) == pytest.approx(max(right), abs=2e-3)
    assert best_guess(prior, mu=mu) >= max(prior, 1 - prior)


def test_the_gaussian_test_finds_no_more_than_each_pair_that_it_implies_allows() -> None:
    odds = odds_of(epsilon=2, delta=1e-5)
    assert all(one.false_alarms < one.gaussian <= one.pair for one in odds.tests)
    assert 0 < odds.advantage < odds.pair_advantage < 1
    assert odds.advantage == pytest.approx(2 * float(norm.cdf(odds.mu / 2)) - 1)


def test_squared_mu_adds_up_over_sites() -> None:
    one, four = (odds_of(epsilon=1, delta=1e-6, sites=sites) for sites in (1, 4))
    assert four.mu == pytest.approx(2 * one.mu)
    assert four.total_epsilon == epsilon_of(mu=four.mu, delta=1e-6)
    assert 1 < four.total_epsilon < 4


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"epsilon": 0}, ExitCode.EPSILON_INVALID),
        ({"epsilon": math.nan}, ExitCode.EPSILON_INVALID),
        ({"epsilon": 1e9}, ExitCode.EPSILON_INVALID),
        ({"delta": 0}, ExitCode.DELTA_INVALID),
        ({"delta": 1}, ExitCode.DELTA_INVALID),
        ({"priors": [0]}, ExitCode.USAGE),
        ({"priors": [1.0]}, ExitCode.USAGE),
        ({"priors": [math.nan]}, ExitCode.USAGE),
    ],
)
def test_numbers_out_of_range_are_refused(change: dict[str, Any], code: ExitCode) -> None:
    with pytest.raises(PrivShareError, match="expected above 0") as refused:
        odds_of(**{"epsilon": 1, "delta": 1e-6, **change})
    assert refused.value.code == code


@pytest.mark.parametrize("bound", [chance_beyond, lambda loss, mu: rarely_passed(math.exp(-loss), mu=mu)])
@pytest.mark.parametrize("mu", [1e-3, 50.0])
@pytest.mark.parametrize("loss", [1e-4, 30.0])
def test_extremes_have_bounds_too(bound: Callable[..., float], mu: float, loss: float) -> None:
    assert 0 < bound(loss, mu=mu) < math.inf
