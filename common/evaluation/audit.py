"""What attacks on a mechanism prove about its privacy: lower bounds on epsilon, each wrong with a stated chance only.

An audit plays a game whose winning chance privacy bounds: tell releases with one unit from releases without it, or
guess which of many canaries were in the one table that was released. Winning too often disproves a claim; winning
seldom proves nothing, so each bound comes with the largest that the same game could have given. Nothing here sees a
record or draws noise: scores come in, a bound goes out.

Two bounds each. A site claims mu-GDP, and its epsilon is that of its mu: the first bound takes the claim at its word
and asks which mu the game still allows. The second assumes (epsilon, delta)-DP and nothing more, and is lower.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.special import betaincinv, ndtr, ndtri
from scipy.stats import binom

from common.privacy.budget import epsilon_of

_LEAST_CONFIDENCE: Final = 0.75
"""Below it the tail of a sum of unequal trials is no longer bounded by that of equal ones (see `distinguishing`)."""
_CALIBRATION: Final = 10
"""One in so many scores places the threshold. The halfway point of two medians is soon known well enough, and every
other score makes the bound sharper."""
_GUESSED: Final = 3
"""One in so many canaries is guessed at. Between a half and a tenth the bound hardly differs, whatever the noise."""
_SLACK: Final = 1e-9
"""Probabilities are sums of up to thousands of rounded terms."""


@dataclass(frozen=True)
class Evidence:
    """What a game proves about a mechanism.

    epsilon_lower: if the mechanism is mu-GDP, the epsilon of that mu is at least this.
    epsilon_lower_plain: if it is (epsilon, delta)-DP, and whatever else it is, its epsilon is at least this.
    epsilon_detectable: `epsilon_lower` of an attacker who never errs; a mechanism that leaks more looks no worse.
    trials: guesses that counted.
    confidence: the chance, at least, with which each of the two bounds holds.
    """

    epsilon_lower: float
    epsilon_lower_plain: float
    epsilon_detectable: float
    trials: int
    confidence: float


def distinguishing(present: np.ndarray, absent: np.ndarray, *, delta: float, confidence: float = 0.95) -> Evidence:
    """Bounds from the scores of independent releases of two neighbouring tables, with and without one unit.

    The first tenth of the scores places a threshold; the rest is guessed by it. Half of the guesses are about releases
    with the unit, so whatever the threshold, the chance of a right one is at most Phi(mu / 2) under mu-GDP, and
    (e^epsilon + delta) / (1 + e^epsilon) under (epsilon, delta)-DP. The chance is bounded by Clopper and Pearson from
    all guesses together, which is sharper than a bound on each kind of error: the number of right guesses is a sum of
    trials of two chances, and above its mean no such sum has a heavier tail than trials of equal chance.

    Guarantees: each bound holds with the confidence, whatever the scores are, if each is made from its own release.
    Edge cases: scores that tell nothing, or less than nothing -> 0.

    Args:
        present: (releases,), finite; scores of releases with the unit, which should be the higher ones.
        absent: (releases,), as many; scores of releases without it.
        delta: of the (epsilon, delta) that the bounds are about.
        confidence: above 0.75 and below 1.

    Raises:
        ValueError: other shapes, fewer than two releases a side, or a number out of range.

    Sources: Dong, Roth and Su 2022, section 2 (trade-off curves); Hoeffding 1956, theorem 5 (unequal trials); Greenberg
        and Mohri 2014 (a binomial reaches its mean with a chance of 1/4, so a tail of less begins above it).
    """
    _check(delta=delta, confidence=confidence)
    if present.ndim != 1 or present.shape != absent.shape or len(present) < 2:
        raise ValueError("scores: expected as many releases with the unit as without, two at least")
    if not (np.isfinite(present).all() and np.isfinite(absent).all()):
        raise ValueError("scores: expected finite numbers")
    known = -(-len(present) // _CALIBRATION)
    threshold = (float(np.median(present[:known])) + float(np.median(absent[:known]))) / 2
    right = int((present[known:] > threshold).sum() + (absent[known:] <= threshold).sum())
    trials = 2 * (len(present) - known)

    def least_accuracy(right: int) -> float:
        return float(betaincinv(right, trials - right + 1, 1 - confidence)) if right else 0.0

    accuracy = least_accuracy(right)
    return Evidence(
        epsilon_lower=epsilon_of(mu=_mu_of_accuracy(accuracy), delta=delta),
        epsilon_lower_plain=math.log((accuracy - delta) / (1 - accuracy)) if 2 * accuracy > 1 + delta else 0.0,
        epsilon_detectable=epsilon_of(mu=_mu_of_accuracy(least_accuracy(trials)), delta=delta),
        trials=trials,
        confidence=confidence,
    )


def _mu_of_accuracy(accuracy: float) -> float:
    """The mu under which two releases are told apart so often at best."""
    return max(0.0, 2 * float(ndtri(accuracy)))


def one_run(scores: np.ndarray, included: np.ndarray, *, delta: float, confidence: float = 0.95) -> Evidence:
    """Bounds from one release of a table in which each canary was included, or not, by a fair coin of its own.

    The sixth of the canaries with the highest scores is guessed to be in, the sixth with the lowest to be out. How many
    are guessed is fixed beforehand, so the number of right guesses is the only thing that is looked at.

    Guarantees: each bound holds with the confidence, whatever the scores are, if they depend on the coins through the
        release alone.
    Edge cases: scores that tell nothing -> 0. Even an exact attack on many canaries stays well below the true epsilon:
        a mechanism is allowed to fail for all canaries together, in one run of many, and there is one run.

    Args:
        scores: (canaries,), finite; higher for canaries that seem to be in.
        included: (canaries,) bool, the coins.
        delta: of the (epsilon, delta) that the bounds are about.
        confidence: above 0.75 and below 1.

    Raises:
        ValueError: other shapes or types, fewer than two canaries, or a number out of range.

    Sources: Mahloujifar, Melis and Chaudhuri 2025 (arXiv 2410.22235; the Gaussian bound, see `beyond_gaussian`);
        Steinke, Nasr and Jagielski 2023 (arXiv 2305.08846, theorem 5.2; the plain bound).
    """
    _check(delta=delta, confidence=confidence)
    canaries = len(scores)
    if scores.ndim != 1 or included.shape != scores.shape or included.dtype != np.bool_ or canaries < 2:
        raise ValueError("scores, included: expected one number and one boolean a canary, two canaries at least")
    if not np.isfinite(scores).all():
        raise ValueError("scores: expected finite numbers")
    side = max(1, canaries // (2 * _GUESSED))
    order = np.argsort(scores, kind="stable")
    right = int(included[order[-side:]].sum() + (~included[order[:side]]).sum())
    guesses, chance = 2 * side, 1 - confidence

    def least_mu(right: int) -> float:
        return _largest(lambda mu: beyond_gaussian(mu, canaries, guesses, right, chance=chance))

    return Evidence(
        epsilon_lower=epsilon_of(mu=least_mu(right), delta=delta),
        epsilon_lower_plain=_largest(lambda epsilon: plain_tail(epsilon, delta, canaries, guesses, right) <= chance),
        epsilon_detectable=epsilon_of(mu=least_mu(guesses), delta=delta),
        trials=guesses,
        confidence=confidence,
    )


def canary_scores(products: np.ndarray, along: np.ndarray) -> np.ndarray:
    """Scores for `one_run` from a release that is a sum of what the included canaries add, plus noise; (canaries,).

    With V what each canary adds, (canaries, cells), b the coins and y the release less what is known, all in standard
    deviations of the noise, y = V^T b + noise. The best linear guess of b - 1/2 is (4 I + V V^T)^-1 V (y - V^T 1/2),
    1 a vector of ones: the ratio of likelihoods, less what the other canaries put into it.

    Args:
        products: (canaries, canaries), V V^T.
        along: (canaries,), V y.
    """
    middle = products.sum(axis=1) / 2
    scores: np.ndarray = np.linalg.solve(4 * np.eye(len(along)) + products, along - middle)
    return scores


def beyond_gaussian(mu: float, canaries: int, guesses: int, right: int, *, chance: float) -> bool:
    """Whether no mu-GDP mechanism lets an attacker have `right` or more right guesses with a chance of `chance`.

    Let p_i be the chance of i right guesses. Take a canary at random. Flipping its coin turns a right guess about it
    into a wrong one and leaves the others as they are, and moves the release by one unit. So for every c

        sum_{i >= c} p_i i / canaries  <=  F(sum_{i >= c - 1} p_i (guesses - i) / canaries),

    with F(x) = Phi(Phi^-1(x) + mu), the most that an event of chance x can have on a neighbour; F is concave, so it may
    be taken of the mean over canaries and coins. The chance of `right` or more then needs company further down: the
    least is found from the top, each p_(c-1) as small as its inequality allows (mass put any higher weighs more on the
    left and less on the right). If that makes more than 1, there is no such mechanism.

    Args:
        mu: of the hypothesis; >= 0.
        canaries: all of them.
        guesses: how many are guessed at, fixed beforehand.
        right: right guesses; 0 to `guesses`.
        chance: of so many or more; > 0.

    Source: Mahloujifar, Melis and Chaudhuri 2025, for events of the number of right guesses.
    """
    total, wrong_below = chance, chance * (guesses - right) / canaries
    right_above = chance * right / canaries
    for count in range(right - 1, -1, -1):
        # `count` right guesses: what the inequality for c = count + 1 asks for.
        least = float(ndtr(ndtri(right_above) - mu))
        if least > wrong_below:
            mass = (least - wrong_below) * canaries / (guesses - count)
            total, wrong_below, right_above = total + mass, least, right_above + mass * count / canaries
            if total > 1 + _SLACK:
                return True
    return False


def plain_tail(epsilon: float, delta: float, canaries: int, guesses: int, right: int) -> float:
    """The chance, at most, of `right` or more right guesses under (epsilon, delta)-DP; may be above 1.

    P[W >= right] + canaries delta (1 - a) mean_k max_c P[W_k = c], with a = e^epsilon / (1 + e^epsilon), W_k binomial
    with k trials of chance a, W = W_guesses, and k from 0 to guesses - 1.

    Why: look at the guesses one after the other, given the release. With delta = 0 each is right with a chance of at
    most a, whatever those before it were. The delta lets that chance be exceeded, by (1 - a) delta in the mean for each
    canary; what that adds to the chance of the event is at most so much times the chance that the k guesses still to
    come decide it, P[W_k = c]. In a random order k is any of its values. The first term and the game are Steinke, Nasr
    and Jagielski's (2023, theorem 5.2). Their second term takes the excess not to depend on the guesses before it, and
    mechanisms beyond it exist (for 4 canaries at (1, 0.1), say).

    Args:
        epsilon: of the hypothesis; >= 0.
        delta: likewise.
        canaries: all of them.
        guesses: how many are guessed at, fixed beforehand.
        right: right guesses; 0 to `guesses`.
    """
    accuracy = 1 / (1 + math.exp(-epsilon))
    left = np.arange(guesses)
    decisive = binom.pmf(np.floor((left + 1) * accuracy), left, accuracy).mean()  # at the mode
    tail = binom.sf(right - 1, guesses, accuracy) + canaries * delta * (1 - accuracy) * decisive
    return float(tail)


def _largest(is_refuted: Callable[[float], bool]) -> float:
    """The largest number up to which a hypothesis is refuted, rounded down; 0 for none."""
    if not is_refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while is_refuted(high):
        low, high = high, 2 * high
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if is_refuted(middle) else (low, middle)
    return low


def _check(*, delta: float, confidence: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"delta={delta}: expected between 0 and 1")
    if not _LEAST_CONFIDENCE < confidence < 1:
        raise ValueError(f"confidence={confidence}: expected between {_LEAST_CONFIDENCE} and 1")
