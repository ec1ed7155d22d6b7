"""One measured number, with what it must be read beside: its interval, its chance level and its ceiling."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri
from scipy.stats import binomtest
from scipy.stats import t as student

from common.data.windows import WindowedTable

CONFIDENCE = 0.95
_RESAMPLES = 1000


@dataclass(frozen=True)
class Figure:
    """One measured number.

    value: None where it could not be measured; `reason` then says why.
    low, high: its 95 % interval.
    chance: what somebody who knows nothing would reach.
    ceiling: the most that the claimed (epsilon, delta) allows anybody; an interval wholly above it is a fault of the
        implementation, not a bad score.
    n: how many units or tries it is a figure of.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    ceiling: float | None = None
    n: int | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Population:
    """Rows of some units of a real table.

    table: one row a record; windows beside it where the study has them.
    units: (rows,) int64, which unit a row belongs to, 0 .. count - 1.
    """

    table: WindowedTable
    units: np.ndarray

    @property
    def count(self) -> int:
        """Units."""
        return int(self.units.max()) + 1 if len(self.units) else 0

    def take(self, chosen: np.ndarray) -> "Population":
        """Some of the units, (units,) bool or numbers; renumbered in rising order."""
        kept = np.zeros(self.count, dtype=bool)
        kept[chosen] = True
        rows = np.flatnonzero(kept[self.units])
        return Population(self.table.take(rows), (np.cumsum(kept) - 1)[self.units[rows]])


@dataclass(frozen=True)
class People:
    """Who is in an experiment; nobody is in two of its parts.

    members: whom sites have.
    test: for what is trained on synthetic rows.
    control: beside whom members are attacked.
    reference: whom attackers may know.
    """

    members: Population
    test: Population
    control: Population
    reference: Population


@dataclass(frozen=True)
class Claim:
    """What privacy is claimed, per unit; epsilon None: none at all."""

    epsilon: float | None
    delta: float


def rate(successes: int, n: int, *, chance: float | None = None, ceiling: float | None = None) -> Figure:
    """A share, with its exact interval (Clopper and Pearson 1934).

    Edge cases: n = 0 -> None and the reason.
    """
    if n == 0:
        return Figure(chance=chance, ceiling=ceiling, n=0, reason="there was nothing to count")
    interval = binomtest(successes, n).proportion_ci(CONFIDENCE, method="exact")
    return Figure(successes / n, float(interval.low), float(interval.high), chance, ceiling, n)


def bootstrap(
    statistic: Callable[[np.ndarray], float],
    n: int,
    *,
    seed: int,
    chance: float | None = None,
    ceiling: float | None = None,
    resamples: int = _RESAMPLES,
) -> Figure:
    """A statistic of n units, with the percentile interval of drawing them again with replacement.

    Args:
        statistic: of the numbers of the units that were drawn, (n,) int64, each as often as it was; NaN where a draw
            does not have one.
        n: units.
        seed: of the draws.
        chance: see `Figure`.
        ceiling: see `Figure`.
        resamples: how many draws.

    Edge cases: NaN of the units themselves -> None and the reason; of a draw -> the draw is left out.
    """
    value = statistic(np.arange(n))
    if n == 0 or math.isnan(value):
        return Figure(chance=chance, ceiling=ceiling, n=n, reason="not defined for these units")
    random = np.random.default_rng(seed)
    drawn = np.array([statistic(random.integers(0, n, n)) for _ in range(resamples)])
    low, high = np.nanpercentile(drawn, [50 * (1 - CONFIDENCE), 100 - 50 * (1 - CONFIDENCE)])
    return Figure(value, float(low), float(high), chance, ceiling, n)


def over_seeds(values: list[float]) -> Figure:
    """Mean of several runs with its t-interval; no interval from one run."""
    if not values:
        return Figure(n=0, reason="no run has this figure")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Figure(mean, n=1)
    half = float(student.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return Figure(mean, mean - half, mean + half, n=len(values))


def widening(tried: int) -> float:
    """How many times wider a normal interval is that holds together with those of all that were tried (Bonferroni)."""
    each, all_together = CONFIDENCE, 1 - (1 - CONFIDENCE) / tried
    return float(ndtri((1 + all_together) / 2) / ndtri((1 + each) / 2))


def most_true_positives(false_positives: float, *, epsilon: float, delta: float) -> float:
    """The largest true positive rate that (epsilon, delta)-DP allows at a false positive rate.

    Source: Kairouz et al. 2015, theorem 2.1: both bounds of the privacy region.
    """
    straight = math.exp(min(epsilon, 700.0)) * false_positives + delta
    mirrored = 1 - math.exp(-epsilon) * (1 - false_positives - delta)
    return min(1.0, straight, mirrored)


def most_advantage(*, epsilon: float, delta: float) -> float:
    """The largest difference of true and false positive rate that (epsilon, delta)-DP allows."""
    return min(1.0, math.tanh(epsilon / 2) + 2 * delta / (1 + math.exp(min(epsilon, 700.0))))
