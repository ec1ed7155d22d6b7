"""Gaussian differential privacy: the budget of a site, and what (epsilon, delta) it stands for.

A mechanism with L2 sensitivity D and Gaussian noise of standard deviation s is mu-GDP with mu = D / s exactly, and a
sequence of them, each chosen from earlier outputs, is sqrt(sum mu^2)-GDP as long as the sum stays below a bound fixed
beforehand (a filter; no loss against non-adaptive accounting). Budgets here are therefore numbers of mu squared.

Unit of privacy: one unit (a person, an account holder) with all its records. Relation: add or remove one unit.
Sources: Dong, Roth and Su 2022 (Gaussian DP, Corollary 1); Balle and Wang 2018 (Theorem 8); Smith and Thakurta 2022 and
Koskela, Tobaben and Honkela 2023 (filter).
"""

import functools
import math
from collections.abc import Sequence
from fractions import Fraction

from scipy.optimize import brentq
from scipy.special import log_ndtr
from scipy.stats import norm

from common.errors import BudgetError

_MU_RANGE = (1e-6, 1e3)


def delta_of(mu: float, epsilon: float) -> float:
    """The smallest delta for which mu-GDP implies (epsilon, delta)-DP.

    delta = Phi(-epsilon/mu + mu/2) - e^epsilon Phi(-epsilon/mu - mu/2); the second product in logarithms, because
    e^epsilon overflows before its partner vanishes.
    """
    first = float(norm.cdf(-epsilon / mu + mu / 2))
    return first - math.exp(epsilon + float(log_ndtr(-epsilon / mu - mu / 2)))


@functools.lru_cache
def mu_of(*, epsilon: float, delta: float) -> float:
    """The largest mu for which mu-GDP implies (epsilon, delta)-DP, rounded down.

    Raises:
        ValueError: epsilon or delta is out of range.
    """
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise ValueError(f"epsilon={epsilon}: expected > 0")
    if not 0 < delta < 1:
        raise ValueError(f"delta={delta}: expected between 0 and 1")
    low, high = _MU_RANGE
    if delta_of(low, epsilon) >= delta or delta_of(high, epsilon) <= delta:
        raise ValueError(f"epsilon={epsilon}, delta={delta}: no Gaussian noise level between practical bounds gives it")
    root = float(brentq(lambda mu: delta_of(mu, epsilon) - delta, low, high, xtol=1e-15, rtol=1e-14))
    # The root is known to about 1e-14; one part in 10^9 less is on the private side of it.
    return root * (1 - 1e-9)


def epsilon_of(*, mu: float, delta: float) -> float:
    """The epsilon at which mu-GDP is (epsilon, delta)-DP, rounded up; 0 for mu = 0.

    Raises:
        ValueError: mu or delta is out of range.
    """
    if not (mu >= 0 and math.isfinite(mu)):
        raise ValueError(f"mu={mu}: expected >= 0")
    if not 0 < delta < 1:
        raise ValueError(f"delta={delta}: expected between 0 and 1")
    if mu == 0 or delta_of(mu, 0.0) <= delta:
        return 0.0
    high = 1.0
    while delta_of(mu, high) > delta:
        high *= 2
    root = float(brentq(lambda epsilon: delta_of(mu, epsilon) - delta, 0.0, high, xtol=1e-14, rtol=1e-14))
    return root * (1 + 1e-9)


def total(spends: Sequence[float | Fraction]) -> float:
    """Sum of squared mu, rounded up."""
    return math.nextafter(math.fsum(spends), math.inf)


def check_spend(spends: Sequence[float | Fraction], new: float, *, budget: float) -> None:
    """Refuse a spend that would pass the budget. The filter: nothing may be drawn before this returns.

    Args:
        spends: squared mu of every earlier event.
        new: squared mu of the event that is asked for; > 0.
        budget: the bound on the sum, fixed before the first event.

    Raises:
        BudgetError: the sum would pass the budget. Says shares of the budget, which are public.
        ValueError: `new` is not a positive number.
    """
    if not (new > 0 and math.isfinite(new)):
        raise ValueError(f"spend={new}: expected a positive, finite number")
    # Exact, so that a spend of just what is left is granted and one bit more is not; a budget of NaN grants nothing.
    if not (math.isfinite(budget) and sum(Fraction(one) for one in (*spends, new)) <= budget):
        raise BudgetError(
            f"budget: the request needs {new / budget:.4g} of it, {max(0.0, 1 - total(spends) / budget):.4g} is left; "
            "refused, nothing was drawn"
        )


def noise_stddev_for(*, squared_sensitivity: int, spend: float) -> float:
    """Standard deviation of the noise for a mechanism that may spend `spend`, rounded up.

    Args:
        squared_sensitivity: the square of the L2 sensitivity, an exact integer.
        spend: squared mu; > 0.

    Raises:
        ValueError: `spend` is not a positive number.
    """
    if not (spend > 0 and math.isfinite(spend)):
        raise ValueError(f"spend={spend}: expected a positive, finite number")
    stddev = math.sqrt(squared_sensitivity / spend)
    while spend_of(squared_sensitivity=squared_sensitivity, noise_stddev=stddev) > spend:
        stddev = math.nextafter(stddev, math.inf)
    return stddev


def spend_of(*, squared_sensitivity: int, noise_stddev: float) -> float:
    """Squared mu of one Gaussian mechanism, rounded up."""
    # Three roundings of at most 2^-53 each lie below the true value.
    return math.nextafter(squared_sensitivity / noise_stddev / noise_stddev * (1 + 2**-50), math.inf)
