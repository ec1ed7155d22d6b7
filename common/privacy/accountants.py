"""What a budget is counted in: Gaussian DP, or Rényi DP at one order.

An accountant turns (epsilon, delta) into a bound and each event into a spend. As long as the spends of an account never
sum to more than the bound (`budget.check_spend`, exact, the same for both), each event may be chosen from all earlier
outputs. That holds only because accountant, order and bound are fixed before the first event, by the study alone: the
best of several orders at the end is not a guarantee, and is not offered.

Unit of privacy: one unit with all its records. Relation: add or remove one unit.
Sources: `budget` for Gaussian DP; Feldman and Zrnic 2021 (filter at a fixed Rényi order); Mironov, Talwar and Zhang
2019 (Poisson-sampled Gaussian; of the two directions of the relation the worse one is computed).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, Protocol

from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent, rdp

from common.errors import LedgerError
from common.privacy import budget
from common.privacy.events import GaussianEvent

LOWEST_ORDER, HIGHEST_ORDER = 2, 1024

# Measured against 50 digits, dp_accounting lies at most 3e-16 relative plus 2e-15 absolute below the exact divergence:
# orders 2 to 1024, sampling 1e-15 to 1 - 2^-53, noise multipliers 1e-3 to 1e5. The absolute part is log(1 + small),
# taken from a sum that was rounded; without it a small divergence could come out as none. The rest of the relative
# part is for the rounding of the noise multiplier.
_RELATIVE_SLACK, _ABSOLUTE_SLACK = 1e-12, 1e-13

# Beyond this no budget reaches, and sampling is not looked at: dp_accounting overflows further on.
_HOPELESS = 1e9


class Accountant(Protocol):
    """What spends are counted in. Two of them are the same currency where `as_dict` is equal."""

    def bound(self, *, epsilon: float, delta: float) -> float:
        """The most that all spends together may be, rounded down.

        Raises:
            ValueError: epsilon or delta is out of range, or no spend stays within them.
        """
        ...

    def epsilon(self, *, spent: float, delta: float) -> float:
        """What a sum of spends stands for, rounded up; 0 for nothing spent.

        Raises:
            ValueError: `spent` or delta is out of range.
        """
        ...

    def spend(self, event: GaussianEvent) -> float:
        """What one event costs, rounded up; inf where that is more than a float holds."""
        ...

    def noise_stddev(self, *, squared_sensitivity: int, spend: float, sampling: float) -> float:
        """Standard deviation of the noise that `spend` buys, rounded up: its own spend never exceeds `spend`.

        Args:
            squared_sensitivity: the square of the L2 sensitivity, an exact integer.
            spend: in this accountant's currency; > 0.
            sampling: probability that a unit takes part; 1: all do.

        Raises:
            ValueError: `spend` or `sampling` is out of range.
        """
        ...

    def as_dict(self) -> dict[str, Any]:
        """For a ledger and a certificate; `accountant_from` reads it back."""
        ...


@dataclass(frozen=True)
class GdpAccountant:
    """Gaussian DP: a spend is a squared mu. Without sampling it loses nothing, whatever the order of events.

    An event with sampling below 1 is counted as if all units took part. That is safe and wastes what sampling buys: by
    the joint convexity of the hockey-stick divergence, a mixture of "the unit was not drawn" (nothing to tell apart)
    and "it was" is no easier to tell apart than the latter alone.

    >>> round(GdpAccountant().noise_stddev(squared_sensitivity=9, spend=0.25, sampling=1.0), 9)
    6.0
    """

    def bound(self, *, epsilon: float, delta: float) -> float:
        """Squared mu, rounded down. Raises as the protocol says."""
        # mu_of is a part in 10^9 below the root; the square rounds by far less.
        return budget.mu_of(epsilon=epsilon, delta=delta) ** 2

    def epsilon(self, *, spent: float, delta: float) -> float:
        """Of mu = sqrt(spent), rounded up. Raises as the protocol says."""
        _check_spent(spent)
        return budget.epsilon_of(mu=math.nextafter(math.sqrt(spent), math.inf) if spent else 0.0, delta=delta)

    def spend(self, event: GaussianEvent) -> float:
        """Squared mu of the event as if all units took part, rounded up."""
        return event.spend

    def noise_stddev(self, *, squared_sensitivity: int, spend: float, sampling: float) -> float:
        """As for all units, whatever the sampling. Raises as the protocol says."""
        _check_sampling(sampling)
        return budget.noise_stddev_for(squared_sensitivity=squared_sensitivity, spend=spend)

    def as_dict(self) -> dict[str, Any]:
        """Its name alone."""
        return {"kind": "gdp"}


@dataclass(frozen=True)
class RdpAccountant:
    """Rényi DP at one order: a spend is a Rényi divergence. For events that sampling makes cheaper.

    order: integer, 2 to 1024, fixed before the first event; `default_order` gives one.

    >>> round(RdpAccountant(16).noise_stddev(squared_sensitivity=9, spend=2.0, sampling=1.0), 9)
    6.0
    >>> round(RdpAccountant(16).noise_stddev(squared_sensitivity=9, spend=2.0, sampling=0.01), 9)
    3.227501882
    """

    order: int

    def __post_init__(self) -> None:
        """Raises ValueError where the order is not an integer from 2 to 1024."""
        if not _is_order(self.order):
            raise ValueError(f"order={self.order}: expected an integer from {LOWEST_ORDER} to {HIGHEST_ORDER}")

    def bound(self, *, epsilon: float, delta: float) -> float:
        """The divergence that is (epsilon, delta)-DP, rounded down; the exact inverse of `epsilon` or less.

        Raises:
            ValueError: epsilon or delta is out of range, or at this order no divergence is that little.
        """
        if not (epsilon > 0 and math.isfinite(epsilon)):
            raise ValueError(f"epsilon={epsilon}: expected > 0")
        exact = Fraction(epsilon) - Fraction(self._conversion(delta))
        if exact <= 0:
            raise ValueError(f"epsilon={epsilon}, delta={delta}: no divergence at order {self.order} gives it")
        return -_rounded_up(-exact)

    def epsilon(self, *, spent: float, delta: float) -> float:
        """Of a total divergence, rounded up, never below 0.

        0 up to delta squared, so that an empty sum that was rounded up is no loss: the total variation is at most
        sqrt(spent / 2), by Pinsker's inequality, and delta pays for it.

        Raises:
            ValueError: `spent` or delta is out of range.
        Source: Canonne, Kamath and Steinke 2020, Proposition 12.
        """
        _check_spent(spent)
        conversion = self._conversion(delta)
        return max(0.0, _rounded_up(Fraction(spent) + Fraction(conversion))) if spent > delta * delta else 0.0

    def spend(self, event: GaussianEvent) -> float:
        """Divergence of the event: order * mu^2 / 2, or that of the sampled Gaussian by dp_accounting; rounded up."""
        return self._spend(event.squared_sensitivity, event.noise_stddev, event.sampling)

    def noise_stddev(self, *, squared_sensitivity: int, spend: float, sampling: float) -> float:
        """By bisection where sampling is below 1, from the noise that suffices without. Raises as the protocol says.

        With sampling, a part in 10^9 of `spend` is left over: logarithms and exponentials differ in the last digits
        between machines, and what one was granted another must be able to check.
        """
        _check_sampling(sampling)
        if not (spend > 0 and math.isfinite(spend)):
            raise ValueError(f"spend={spend}: expected a positive, finite number")
        target = spend if sampling == 1 else spend * (1 - 1e-9)
        high = budget.noise_stddev_for(squared_sensitivity=squared_sensitivity, spend=target * 2 / self.order)
        while self._spend(squared_sensitivity, high, 1.0) > target:
            high = math.nextafter(high, math.inf)
        if sampling == 1:
            return high
        low = high / 2
        while self._spend(squared_sensitivity, low, sampling) <= target:
            low, high = low / 2, low
        while high > low * (1 + 1e-12):
            middle = math.sqrt(low) * math.sqrt(high)
            if self._spend(squared_sensitivity, middle, sampling) <= target:
                high = middle
            else:
                low = middle
        return high

    def as_dict(self) -> dict[str, Any]:
        """Its name and order."""
        return {"kind": "rdp", "order": self.order}

    def _conversion(self, delta: float) -> float:
        """What is added to a divergence to get epsilon, rounded up."""
        if not 0 < delta < 1:
            raise ValueError(f"delta={delta}: expected between 0 and 1")
        logarithm = math.log(delta * self.order)
        # Half a dozen roundings, each of at most 2^-53 of what is added here.
        return math.log1p(-1 / self.order) - logarithm / (self.order - 1) + 2**-50 * (1 + abs(logarithm))

    def _spend(self, squared_sensitivity: int, noise_stddev: float, sampling: float) -> float:
        squared_mu = budget.spend_of(squared_sensitivity=squared_sensitivity, noise_stddev=noise_stddev)
        plain = math.nextafter(self.order * squared_mu / 2, math.inf)
        if not (0 < sampling < 1 and _ABSOLUTE_SLACK < plain < _HOPELESS):
            return plain
        multiplier = noise_stddev / math.sqrt(squared_sensitivity)
        sampled = _sampled_divergence(self.order, multiplier, sampling) * (1 + _RELATIVE_SLACK) + _ABSOLUTE_SLACK
        return min(sampled, plain)  # sampling never costs; the slack might


@lru_cache(64)
def default_order(*, epsilon: float, delta: float) -> int:
    """The order at which one Gaussian release of the whole budget, without sampling, has the least noise.

    Depends on the study alone. Of orders that tie the lowest.

    Raises:
        ValueError: epsilon or delta is out of range, or no order gives it.
    """
    noise: dict[int, float] = {}
    for order in range(LOWEST_ORDER, HIGHEST_ORDER + 1):
        try:
            noise[order] = order / RdpAccountant(order).bound(epsilon=epsilon, delta=delta)
        except ValueError:
            continue  # too low an order for so small an epsilon
    if not noise:
        raise ValueError(f"epsilon={epsilon}, delta={delta}: no Rényi order up to {HIGHEST_ORDER} gives it")
    return min(noise, key=lambda order: (noise[order], order))


def accountant_from(data: Mapping[str, Any]) -> Accountant:
    """Read back what `as_dict` wrote.

    Raises:
        LedgerError: anything else.
    """
    if isinstance(data, Mapping):
        if dict(data) == {"kind": "gdp"}:
            return GdpAccountant()
        if set(data) == {"kind", "order"} and data["kind"] == "rdp" and _is_order(data["order"]):
            return RdpAccountant(data["order"])
    raise LedgerError(
        f"accountant: expected kind gdp, or kind rdp with an integer order from {LOWEST_ORDER} to {HIGHEST_ORDER}"
    )


# A ledger asks for the same few events again and again.
@lru_cache(maxsize=4096)
def _sampled_divergence(order: int, multiplier: float, sampling: float) -> float:
    """Rényi divergence of the Poisson-sampled Gaussian, not rounded to either side."""
    accountant = rdp.RdpAccountant([order], NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(PoissonSampledDpEvent(sampling, GaussianDpEvent(multiplier)))
    return float(accountant.rdp[0])


def _rounded_up(exact: Fraction) -> float:
    """The smallest float that is not below."""
    nearest = float(exact)
    return nearest if Fraction(nearest) >= exact else math.nextafter(nearest, math.inf)


def _is_order(value: Any) -> bool:
    return isinstance(value, int) and LOWEST_ORDER <= value <= HIGHEST_ORDER


def _check_spent(spent: float) -> None:
    if not (spent >= 0 and math.isfinite(spent)):
        raise ValueError(f"spent={spent}: expected >= 0")


def _check_sampling(sampling: float) -> None:
    if not 0 < sampling <= 1:
        raise ValueError(f"sampling={sampling}: expected above 0, at most 1")
