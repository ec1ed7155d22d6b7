"""The membership game: who scores members of a training set above units that were never in it, and by how much.

An attack gives each unit a score. This file knows nothing else of it: it says how well the scores tell members from
controls, with an interval, beside what a guess would reach and what the claimed privacy allows. The share of victims
at few false alarms counts more than the average: an attack that is sure of one person in a hundred is a breach.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from scipy.optimize import brentq
from scipy.special import betainc, betaincinv, expit, logit, ndtri
from scipy.stats import binom

from common.evaluation.figures import CONFIDENCE, Figure, most_advantage, most_true_positives, widening

EVERYONE: Final = "everyone"
"""The population that every game has."""
RATES: Final = {"tpr_at_10": 0.1, "tpr_at_1": 0.01, "tpr_at_0_1": 0.001}
"""False positive rates at which the share of members found is a figure of its own."""
STATISTICS: Final = ("auc", "advantage", "balanced_accuracy", *RATES)

_LEAST: Final = 20
"""Units a side, below which nothing is said of a population."""
_LEAST_FALSE_POSITIVES: Final = 5
"""Controls that should lie beyond a threshold, below which its false positive rate is hardly known: of 5 the standard
error is 45 %."""
_CURVE: Final = np.logspace(-4, 0, 61)
_ANY_SHAPE: Final = 0.2
"""Share of the error that the interval for curves of any shape may make. It is short where an attack is strong, the
other one near chance; of 0.2 the other one becomes 5 % longer."""
_NODES: Final = np.polynomial.legendre.leggauss(200)


@dataclass(frozen=True)
class MembershipAttack:
    """How well one attack tells members from controls.

    adversary: who could do it, in a few words.
    populations: by population ("everyone", then the victims of their own) and statistic (`STATISTICS`).
    roc: of everyone, "true_positive_rate" at each "false_positive_rate".
    """

    adversary: str
    populations: dict[str, dict[str, Figure]]
    roc: dict[str, list[float]]


def assess(
    members: np.ndarray,
    controls: np.ndarray,
    *,
    adversary: str,
    groups: Mapping[str, tuple[np.ndarray, np.ndarray]],
    epsilon: float | None,
    delta: float,
    seed: int,
) -> MembershipAttack:
    """How well the scores of an attack tell members from controls.

    True positive rates: a threshold that the share x of controls exceeds is known from n controls only so far. A member
    is found where its rank among the controls, (controls above + 1) / (n + 1), is at most x, ties and the part of a
    rank broken evenly; if members are like controls, that is x in the mean, exactly. The interval takes in the chance
    of the members and of the threshold. It holds where the ROC curve, seen from the origin, never turns up, which
    includes a guess, the ceiling and each attack that puts the likelier member first.

    Advantage and balanced accuracy: the best threshold of each random half is tried on the other half. The best one
    of the same units would look better than chance even if nothing had leaked. The interval is as wide as if one half
    were all there is, since the two halves err together.

    AUC: DeLong's variance on the logit scale, at least what as many pairs that all agree would leave.

    Guarantees: a score that is constant is exactly chance in every statistic; what does not change the order of scores
        changes nothing; the order of units matters to the random halves alone.
    Edge cases: fewer than 20 members or controls in a population -> None and the reason; a rate of false positives that
        fewer than 5 controls are expected to reach -> None and the reason.

    Args:
        members: (units,) float64, higher where a member seems likelier; infinite is allowed, NaN is not.
        controls: (units,) likewise, of units that were not trained on.
        adversary: who could do it.
        groups: by name, which members and which controls belong to it, both bool; populations beside everyone.
        epsilon: what was claimed; None where nothing was, and then there is no ceiling.
        delta: likewise.
        seed: of the halves.

    Raises:
        ValueError: a score is NaN, or a mask has another length.

    Sources: Vovk, Gammerman and Shafer 2005 (smoothed ranks); Hutson 1999 (ranks between two controls); DeLong et al.
        1988; Newcombe 1998, method 10 (difference of two rates); Carlini et al. 2022 (why few false positives).
    """
    if np.isnan(members).any() or np.isnan(controls).any():
        raise ValueError("scores: expected numbers")
    chosen = {EVERYONE: (np.ones(len(members), dtype=bool), np.ones(len(controls), dtype=bool)), **groups}
    populations = {}
    for number, (name, (inside, outside)) in enumerate(chosen.items()):
        if inside.shape != members.shape or outside.shape != controls.shape:
            raise ValueError(f"groups: expected one boolean a unit for {name}")
        figures = statistics(members[inside], controls[outside], seed=[seed, number])
        populations[name] = {key: _beside(key, figure, epsilon, delta) for key, figure in figures.items()}
    rates = _CURVE if len(members) and len(controls) else _CURVE[:0]
    found = true_positive_rates(members, controls, rates)
    return MembershipAttack(
        adversary, populations, {"false_positive_rate": rates.tolist(), "true_positive_rate": found.tolist()}
    )


def unmeasured(adversary: str, populations: Iterable[str], reason: str) -> MembershipAttack:
    """An attack that could not be tried."""
    figures = {name: dict.fromkeys(STATISTICS, Figure(reason=reason)) for name in populations}
    return MembershipAttack(adversary, figures, {"false_positive_rate": [], "true_positive_rate": []})


def statistics(
    members: np.ndarray, controls: np.ndarray, *, seed: list[int], confidence: float = CONFIDENCE
) -> dict[str, Figure]:
    """Every statistic of two sets of scores, without chance and ceiling; see `assess`."""
    n = len(members) + len(controls)
    if min(len(members), len(controls)) < _LEAST:
        reason = f"{len(members)} members and {len(controls)} controls: too few, {_LEAST} of each are needed"
        return dict.fromkeys(STATISTICS, Figure(n=n, reason=reason))
    area, area_low, area_high = _area(members, controls, confidence)
    advantage, low, high = _advantage(members, controls, np.random.default_rng(seed), confidence)
    figures = {
        "auc": Figure(area, area_low, area_high, n=n),
        "advantage": Figure(advantage, low, high, n=n),
        "balanced_accuracy": Figure((1 + advantage) / 2, (1 + low) / 2, (1 + high) / 2, n=n),
    }
    for name, at in RATES.items():
        if at * len(controls) < _LEAST_FALSE_POSITIVES:
            figures[name] = Figure(n=n, reason=f"not resolvable with {len(controls)} controls")
        else:
            value = float(true_positive_rates(members, controls, np.array([at]))[0])
            low, high = _rate_interval(members, controls, at, confidence)
            figures[name] = Figure(value, low, high, n=n)
    return figures


def strongest(
    attacks: Mapping[str, MembershipAttack], *, statistic: str = "tpr_at_10", population: str = EVERYONE
) -> tuple[str, Figure]:
    """The attack with the highest figure, with an interval that holds for all attacks that were tried at once.

    The best of many attacks looks better than it is. With Bonferroni each interval is asked to hold with a confidence
    of 1 - 0.05 / attacks: it is widened by the ratio of the normal quantiles, on the arcsine scale, on which the error
    of a share is nearly normal and hardly depends on the share.

    Edge cases: no attack has the figure -> the first attack, None and its reason.

    Args:
        attacks: all that were tried, not only those worth showing.
        statistic: one of `STATISTICS`.
        population: whose.

    Raises:
        ValueError: no attack.
    """
    if not attacks:
        raise ValueError("attacks: expected at least one")
    found = {name: attack.populations[population][statistic] for name, attack in attacks.items()}
    values = {name: figure.value for name, figure in found.items() if figure.value is not None}
    best = max(values, key=lambda name: values[name]) if values else next(iter(found))
    return best, widened(found[best], statistic, tried=len(attacks))


def widened(figure: Figure, statistic: str, *, tried: int) -> Figure:
    """A figure whose interval holds together with those of all that were tried; see `strongest`."""
    if figure.value is None or figure.low is None or figure.high is None:
        return figure
    least = -1.0 if statistic == "advantage" else 0.0  # the most is 1
    low, value, high = (
        math.asin(math.sqrt(max(0.0, number - least) / (1 - least)))
        for number in (figure.low, figure.value, figure.high)
    )
    wider = widening(tried)
    ends = (max(0.0, value - wider * (value - low)), min(math.pi / 2, value + wider * (high - value)))
    low, high = (least + (1 - least) * math.sin(end) ** 2 for end in ends)
    return replace(figure, low=low, high=high)


def true_positive_rates(members: np.ndarray, controls: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """The share of members found at each false positive rate, (rates,); see `assess`."""
    above, equal = _placed(members, controls)
    ranks = rates * (len(controls) + 1)
    found = np.clip((ranks[:, None] - above) / (1 + equal), 0, 1)
    return np.asarray(found.sum(axis=1) / max(1, len(members)))


def most_area(*, epsilon: float, delta: float) -> float:
    """The largest area under the ROC curve that (epsilon, delta)-DP allows: that under `most_true_positives`."""
    corner = (1 - delta) / (1 + math.exp(min(epsilon, 700.0)))
    return (corner * (delta + 1 - corner) + (1 - delta - corner) * (2 - corner)) / 2 + delta


def _beside(statistic: str, figure: Figure, epsilon: float | None, delta: float) -> Figure:
    """A figure with its chance level and its ceiling."""
    chance = {"auc": 0.5, "advantage": 0.0, "balanced_accuracy": 0.5, **RATES}[statistic]
    if epsilon is None:
        return replace(figure, chance=chance)
    if statistic in RATES:
        ceiling = most_true_positives(chance, epsilon=epsilon, delta=delta)
    elif statistic == "auc":
        ceiling = most_area(epsilon=epsilon, delta=delta)
    else:
        ceiling = most_advantage(epsilon=epsilon, delta=delta)
        ceiling = ceiling if statistic == "advantage" else (1 + ceiling) / 2
    return replace(figure, chance=chance, ceiling=ceiling)


def _placed(some: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many of the others are above each of some, and how many equal it."""
    ordered = np.sort(others)
    upto = np.searchsorted(ordered, some, side="right")
    return len(others) - upto, upto - np.searchsorted(ordered, some, side="left")


def _quantile(confidence: float) -> float:
    return float(ndtri((1 + confidence) / 2))


def _area(members: np.ndarray, controls: np.ndarray, confidence: float) -> tuple[float, float, float]:
    """Area under the ROC curve with its interval: value, low, high."""
    above, equal = _placed(members, controls)
    of_members = 1 - (above + equal / 2) / len(controls)
    above, equal = _placed(controls, members)
    of_controls = (above + equal / 2) / len(members)
    area = float(of_members.mean())
    variance = of_members.var(ddof=1) / len(members) + of_controls.var(ddof=1) / len(controls)
    low = high = area
    if 0 < area < 1:
        half = _quantile(confidence) * math.sqrt(variance) / (area * (1 - area))
        low, high = (float(expit(logit(area) + side * half)) for side in (-1, 1))
    # Of so many pairs that have no unit in common, each may go the other way with this chance though none was seen to.
    unseen = 1 - ((1 - confidence) / 2) ** (1 / min(len(members), len(controls)))
    return area, min(low, area * (1 - unseen)), max(high, area + (1 - area) * unseen)


def _advantage(
    members: np.ndarray, controls: np.ndarray, random: np.random.Generator, confidence: float
) -> tuple[float, float, float]:
    """Advantage of thresholds that were chosen on other units, with its interval: value, low, high."""
    halves = [(part[0::2], part[1::2]) for part in (random.permutation(members), random.permutation(controls))]
    positives = []
    for side in (0, 1):
        threshold = _best_threshold(*(half[1 - side] for half in halves))
        positives.append([float((half[side] >= threshold).mean()) for half in halves])
    true, false = (float(rate) for rate in np.mean(positives, axis=0))
    low, high = _difference_interval(true, len(members) // 2, false, len(controls) // 2, confidence)
    return true - false, low, high


def _best_threshold(members: np.ndarray, controls: np.ndarray) -> float:
    """The threshold at which true and false positive rate differ most; the highest of several."""
    candidates = np.append(np.unique(np.concatenate([members, controls])), np.inf)[::-1]
    true, false = (
        1 - np.searchsorted(np.sort(part), candidates, side="left") / len(part) for part in (members, controls)
    )
    best = int(np.argmax(true - false))
    return float(candidates[best])


def _difference_interval(
    first: float, n_first: int, second: float, n_second: int, confidence: float
) -> tuple[float, float]:
    """Of the difference of two independent shares (Newcombe 1998, method 10)."""
    (low_1, high_1), (low_2, high_2) = (
        _wilson(share, n, confidence) for share, n in ((first, n_first), (second, n_second))
    )
    between = first - second
    return (
        between - math.hypot(first - low_1, high_2 - second),
        between + math.hypot(high_1 - first, second - low_2),
    )


def _wilson(share: float, n: int, confidence: float) -> tuple[float, float]:
    z = _quantile(confidence)
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def _rate_interval(members: np.ndarray, controls: np.ndarray, at: float, confidence: float) -> tuple[float, float]:
    """Of the true positive rate at a false positive rate: low, high; where both of two intervals agree."""
    value = float(true_positive_rates(members, controls, np.array([at]))[0])
    tail = (1 - confidence) / 2
    shaped = _shaped_interval(value * len(members), len(members), len(controls), at, tail * (1 - _ANY_SHAPE))
    free = _free_interval(members, controls, at, tail * _ANY_SHAPE)
    return max(shaped[0], free[0]), min(shaped[1], free[1])


def _shaped_interval(found: float, members: int, controls: int, at: float, tail: float) -> tuple[float, float]:
    """Exact for curves that are straight lines from the origin, wide for those that soon flatten.

    The false positive rate F of the threshold at rank k of n controls is Beta(k, n + 1 - k), whatever the scores are.
    Where the rate is tau at x and the curve, seen from the origin, never turns up, it is at most tau max(1, F / x) and
    at least tau min(1, F / x) at F. The ends are the tau under which as many members as were found, or as few, have
    the chance `tail`.
    """
    nodes, weights = (_NODES[0] + 1) / 2, _NODES[1] / 2
    rank = at * (controls + 1)
    ratios = betaincinv(rank, controls + 1 - rank, nodes) / at  # (nodes,), F / x

    def as_many(tau: float) -> float:
        chances = np.minimum(1, tau * np.maximum(1, ratios))
        return float(weights @ betainc(found, members - found + 1, chances)) - tail

    def as_few(tau: float) -> float:
        chances = tau * np.minimum(1, ratios)
        return float(weights @ (1 - betainc(found + 1, members - found, chances))) - tail

    low = float(brentq(as_many, 0, 1)) if found > 0 else 0.0
    high = float(brentq(as_few, 0, 1)) if found < members and as_few(1) < 0 else 1.0
    return low, high


def _free_interval(members: np.ndarray, controls: np.ndarray, at: float, tail: float) -> tuple[float, float]:
    """For a curve of any shape: Clopper and Pearson, at thresholds surely above and surely below the one that is meant.

    The threshold at rank k of n controls has a false positive rate above x with the chance that at most k - 1 of n
    lie above the one that is meant.
    """
    n, size = len(controls), len(members)
    ranks = np.array([binom.ppf(tail / 2, n, at), binom.isf(tail / 2, n, at) + 1])
    few, many = true_positive_rates(members, controls, ranks / (n + 1)) * size
    low = float(betaincinv(few, size - few + 1, tail / 2)) if few > 0 else 0.0
    high = float(betaincinv(many + 1, size - many, 1 - tail / 2)) if many < size else 1.0
    return low, high
