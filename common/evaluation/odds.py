"""What a guarantee means in odds: what somebody who knows everything else can learn about one unit's taking part.

Two readings of one (epsilon, delta). By the pair alone, all that (epsilon, delta)-DP says. By Gaussian DP, what a study
with `accountant: gdp` keeps: everything that leaves a site is mu-GDP with the mu that the pair stands for, which says
more, and says what delta is the chance of. Upper bounds are rounded up, lower ones down.

Of the posterior: a belief of p that a unit took part has the odds p / (1 - p), and what is seen multiplies them by the
likelihood ratio of what is seen with and without the unit. Under epsilon-DP, delta = 0, the ratio lies between
e^-epsilon and e^epsilon, always. With delta > 0 nothing bounds it always, and (epsilon, delta)-DP does not say that it
passes e^epsilon with a chance of delta at most: that chance may be larger. Under mu-GDP the chance is bounded, below.

Unit of privacy: one unit with all its records. Relation: add or remove one unit.
Sources: Kasiviswanathan and Smith 2014 (posteriors); Wasserman and Zhou 2010, Kairouz et al. 2015 (tests); Dong, Roth
and Su 2022 (trade-off of Gaussian DP, Definition 4; composition, Corollary 3.3).
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from scipy.optimize import brentq
from scipy.special import ndtri_exp
from scipy.stats import norm

from common.errors import ExitCode, PrivShareError
from common.evaluation.figures import most_advantage, most_true_positives
from common.privacy import budget

RATES: Final = (0.001, 0.01, 0.05, 0.1, 0.5)
"""Rates of false alarms that tests are shown at."""
_UP: Final = 1 + 1e-9
"""Covers what the functions below round by."""
_MOST_EPSILON: Final = 100.0


@dataclass(frozen=True)
class Belief:
    """What becomes of a belief that one unit took part.

    prior: before anything was seen.
    at_most, at_least: after; what odds times or over e^epsilon are.
    rarely_above, rarely_below: after, but for a chance of delta on either side.
    guess: how often the best guess of whether the unit took part can be right, under mu-GDP.
    """

    prior: float
    at_most: float
    at_least: float
    rarely_above: float
    rarely_below: float
    guess: float


@dataclass(frozen=True)
class Detection:
    """How many members a test of taking part finds at most.

    false_alarms: share of units that did not take part and that it names all the same.
    pair: share of those who did that it finds, by (epsilon, delta) alone.
    gaussian: under mu-GDP.
    """

    false_alarms: float
    pair: float
    gaussian: float


@dataclass(frozen=True)
class Odds:
    """A guarantee in odds.

    epsilon, delta: at one site.
    sites: at which the unit is present with the same guarantee.
    total_epsilon: of all of them together, at the same delta.
    mu: of Gaussian DP, of all of them together.
    factor: e^total_epsilon.
    beyond: chance, at most, that what is seen multiplies the odds of a unit that took part by more than `factor`; and,
        of one that did not, that it divides them by more.
    rare_epsilon: what is passed with a chance of delta at most, in the place of total_epsilon.
    advantage: most by which a test can find more members than others; and by (epsilon, delta) alone.
    """

    epsilon: float
    delta: float
    sites: int
    total_epsilon: float
    mu: float
    factor: float
    beyond: float
    rare_epsilon: float
    advantage: float
    pair_advantage: float
    beliefs: tuple[Belief, ...]
    tests: tuple[Detection, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def odds_of(*, epsilon: float, delta: float, priors: Sequence[float] = (), sites: int = 1) -> Odds:
    """What a guarantee at one site, or the same at several, leaves somebody who knows everything but one unit.

    Raises:
        PrivShareError: a number is out of range.
    """
    if not 0 < epsilon <= _MOST_EPSILON:
        raise PrivShareError(
            f"epsilon={epsilon}: expected above 0, at most {_MOST_EPSILON:g}", ExitCode.EPSILON_INVALID
        )
    if not 0 < delta < 1:
        raise PrivShareError(f"delta={delta}: expected above 0 and below 1", ExitCode.DELTA_INVALID)
    for prior in priors:
        if not 0 < prior < 1:
            raise PrivShareError(f"prior={prior}: expected above 0 and below 1", ExitCode.USAGE)
    try:
        mu = budget.mu_of(epsilon=epsilon, delta=delta) * math.sqrt(sites)
    except ValueError as error:
        raise PrivShareError(str(error), ExitCode.EPSILON_INVALID) from None
    total = epsilon if sites == 1 else budget.epsilon_of(mu=mu, delta=delta)
    rare = rarely_passed(delta, mu=mu)
    return Odds(
        epsilon=epsilon,
        delta=delta,
        sites=sites,
        total_epsilon=total,
        mu=mu,
        factor=math.exp(total) * _UP,
        beyond=chance_beyond(total, mu=mu),
        rare_epsilon=rare,
        advantage=min(1.0, (2 * float(norm.cdf(mu / 2)) - 1) * _UP),
        pair_advantage=most_advantage(epsilon=total, delta=delta),
        beliefs=tuple(
            Belief(
                prior,
                posterior(prior, total),
                posterior(prior, -total),
                posterior(prior, rare),
                posterior(prior, -rare),
                best_guess(prior, mu=mu),
            )
            for prior in priors
        ),
        tests=tuple(
            Detection(
                rate,
                most_true_positives(rate, epsilon=total, delta=delta),
                most_found(rate, mu=mu),
            )
            for rate in RATES
        ),
    )


def posterior(prior: float, loss: float) -> float:
    """The belief whose odds are those of `prior` times e^loss.

    >>> round(posterior(0.1, 1.0), 4), round(posterior(0.1, -1.0), 4)
    (0.232, 0.0393)
    """
    return 1 / (1 + (1 - prior) / prior * math.exp(-loss))


def most_found(false_alarms: float, *, mu: float) -> float:
    """The largest true positive rate that mu-GDP allows at a false positive rate: Phi(Phi^-1(rate) + mu).

    Source: Dong, Roth and Su 2022, Definition 4, as 1 - f of it.
    """
    return min(1.0, float(norm.cdf(norm.ppf(false_alarms) + mu)) * _UP)


def best_guess(prior: float, *, mu: float) -> float:
    """The largest chance of guessing right whether a unit took part, that took part with a chance of `prior`.

    The most of prior * most_found(rate) + (1 - prior) * (1 - rate) over all rates; reached where the likelihood ratio
    of two unit Gaussians mu apart makes up for the prior.
    """
    threshold = math.log((1 - prior) / prior) / mu + mu / 2
    wrong = prior * float(norm.cdf(threshold - mu)) + (1 - prior) * float(norm.sf(threshold))
    return 1 - wrong / _UP


def chance_beyond(loss: float, *, mu: float) -> float:
    """How often, at most, what mu-GDP lets out multiplies the odds of a unit that took part by more than e^loss.

    Of all that is seen where that happens, let a be the chance with the unit and b that without. Then b is below
    e^-loss a, and a is at most Phi(Phi^-1(b) + mu): the largest such a solves Phi^-1(a) - Phi^-1(e^-loss a) = mu. It is
    reached by an output that says no more than whether it happened, so no smaller number holds for all that is mu-GDP.
    Without the unit it happens still more rarely, and the relation is symmetric: of a unit that did not take part, odds
    are divided by more than e^loss as rarely.

    Args:
        loss: > 0.
        mu: > 0.
    """
    return min(1.0, max(math.ulp(0.0), math.exp(_log_chance_beyond(loss, mu)) * _UP))


def rarely_passed(chance: float, *, mu: float) -> float:
    """The loss that is passed with this chance at most: the inverse of `chance_beyond`, rounded up."""
    # For b = e^-loss a the equation of `chance_beyond` gives the loss by itself.
    least = float(norm.logcdf(norm.ppf(chance) - mu))
    return (math.log(chance) - least) * _UP


def _log_chance_beyond(loss: float, mu: float) -> float:
    def gap(logarithm: float) -> float:
        return float(ndtri_exp(logarithm) - ndtri_exp(logarithm - loss)) - mu

    # The gap rises with the chance, as Phi / phi does: from nothing, where it is like loss / sqrt(-2 log(chance)).
    low, high = -1.0, -1e-15
    while gap(low) > 0:
        low *= 2
    return float(brentq(gap, low, high, xtol=1e-12, rtol=1e-12)) if gap(high) > 0 else 0.0
