"""What a game says of members beyond what it says of everybody: success rates of both, and the residual risk.

An attacker with a good synthetic table guesses well of units that never trained: that is knowledge about people, not
about a person. The residual risk is the share of what is not guessed of controls that is guessed of members.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.optimize import brentq
from scipy.special import betaincinv, ndtri

from common.data.windows import WindowedTable
from common.evaluation.figures import CONFIDENCE, Figure, Population

_NOTHING: Final = "there was nothing to count"
_TINY: Final = 1e-300
_FAR: Final = 50.0
"""No end of an interval lies so far from its middle, on the scale of the logarithm."""


@dataclass(frozen=True)
class Residual:
    """How often a game is won, and what membership adds.

    members, controls: the success rates; their chance is that of the naive guess.
    residual: (members - controls) / (1 - controls); chance 0, negative where controls fare worse.
    naive: success of somebody who knows the game and what people are like, but does not look at the synthetic table;
        None where there is no such guess.
    n: tries against members.
    """

    members: Figure
    controls: Figure
    residual: Figure
    naive: Figure | None
    n: int


@dataclass(frozen=True)
class Tally:
    """How often a game was won.

    successes: tries that were won.
    tries: all.
    crowding: tries that a success stands for. It is 1 where tries are independent; where several are won by way of one
        unit, which might as well not have been there, the mean over successes of how many are.
    """

    successes: int
    tries: int
    crowding: float = 1.0

    @classmethod
    def of(cls, won: np.ndarray) -> "Tally":
        """Of independent tries, (tries,) bool."""
        return cls(int(won.sum()), len(won))

    @property
    def rate(self) -> float:
        """Share of successes."""
        return self.successes / self.tries

    def figure(self, chance: float | None) -> Figure:
        """The rate with its exact interval, of as many tries as are independent."""
        if not self.tries:
            return Figure(chance=chance, n=0, reason=_NOTHING)
        won, lost = self.successes / self.crowding, (self.tries - self.successes) / self.crowding
        tail = (1 - CONFIDENCE) / 2
        low = float(betaincinv(won, lost + 1, tail)) if won else 0.0
        high = float(betaincinv(won + 1, lost, 1 - tail)) if lost else 1.0
        return Figure(self.rate, low, high, chance, n=self.tries)


def compare(
    members: Tally,
    controls: Tally,
    *,
    naive: Figure | None = None,
    share: float = 1.0,
    confidence: float = CONFIDENCE,
) -> Residual:
    """The residual risk of a game that was played against members and controls.

    It is one less the ratio of the two shares of failures, and has that ratio's interval by score tests, of as many
    tries as are independent. To draw the tries again with replacement (a bootstrap) comes to the same where there are
    many of both kinds, but gives no width where all succeed or none, which is what a copying generator and a private
    one lead to.

    Edge cases: no tries on a side -> None and the reason; each control guessed -> the residual is None and the reason.

    Args:
        members: tries against them.
        controls: tries against them.
        naive: see `Residual`.
        share: of all members that a try is about; the residual is divided by it, and is 1 at most.
        confidence: of the interval of the residual.
    Source: Giomi et al. 2023, section 3 (the risk); Koopman 1984 (the interval); Korn and Graubard 1998, Rao and Scott
        1992 (counts of tries that are not independent).
    """
    chance = naive.value if naive is not None else None
    residual = _residual(members, controls, share, confidence)
    return Residual(members.figure(chance), controls.figure(chance), residual, naive, members.tries)


def not_measured(reason: str) -> Residual:
    """A game that cannot be played."""
    nothing = Figure(n=0, reason=reason)
    return Residual(nothing, nothing, Figure(chance=0.0, n=0, reason=reason), None, 0)


def not_playable(synthetic: WindowedTable, members: Population, controls: Population) -> str | None:
    """Why a game cannot be played with these; None where it can."""
    for which, rows in (
        ("synthetic table", len(synthetic.records)),
        ("table of members", len(members.units)),
        ("table of controls", len(controls.units)),
    ):
        if not rows:
            return f"the {which} has no rows"
    return None


def one_record_each(population: Population, most: int, random: np.random.Generator) -> WindowedTable:
    """One random record of each of at most so many units, which are random too."""
    rows = random.permutation(len(population.units))
    _, first = np.unique(population.units[rows], return_index=True)
    return population.table.take(rows[random.permutation(first)[:most]])


def ratio_interval(x1: float, n1: float, x2: float, n2: float, *, confidence: float) -> tuple[float, float]:
    """Of the ratio of two shares, x1 of n1 over x2 of n2: the ratios that no score test refuses.

    Edge cases: x1 = 0 -> from 0 on.

    Args:
        x1: counted, 0 to n1.
        n1: tries.
        x2: counted, above 0 and up to n2.
        n2: tries.
        confidence: of the interval.
    Source: Koopman 1984.
    """

    def score(log_ratio: float) -> float:
        """How far the counts lie above what a ratio predicts, in standard deviations; falls as the ratio grows."""
        ratio = math.exp(log_ratio)
        # The likeliest shares with this ratio: the smaller root of a quadratic, written so that nothing cancels.
        middle = n1 * ratio + x1 + n2 + ratio * x2
        root = math.sqrt(max(0.0, middle**2 - 4 * (n1 + n2) * ratio * (x1 + x2)))
        second = min(1.0, 2 * (x1 + x2) / (middle + root))
        first = min(1.0, ratio * second)
        variance = first * (1 - first) / n1 + ratio**2 * second * (1 - second) / n2
        return (x1 / n1 - ratio * x2 / n2) / math.sqrt(max(variance, _TINY))

    def end(deviations: float, towards: float) -> float:
        return math.exp(brentq(lambda log_ratio: score(log_ratio) - deviations, start, start + towards))

    start = math.log(x1 / n1 * n2 / x2) if x1 else -_FAR
    deviations = float(ndtri((1 + confidence) / 2))
    return (end(deviations, -_FAR) if x1 else 0.0), end(-deviations, 2 * _FAR)


def _residual(members: Tally, controls: Tally, share: float, confidence: float) -> Figure:
    n = members.tries + controls.tries
    if not members.tries or not controls.tries:
        return Figure(chance=0.0, n=n, reason=_NOTHING)
    if controls.successes == controls.tries:
        return Figure(chance=0.0, n=n, reason="every control was guessed, so that nothing is left to leak")
    lost = [(side.tries - side.successes) / side.crowding for side in (members, controls)]
    tries = [side.tries / side.crowding for side in (members, controls)]
    low, high = ratio_interval(lost[0], tries[0], lost[1], tries[1], confidence=confidence)
    ratio = (1 - members.rate) / (1 - controls.rate)
    value, low, high = (min(1.0, (1 - end) / share) for end in (ratio, high, low))
    return Figure(value, low, high, 0.0, n=n)
