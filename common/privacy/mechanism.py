"""The one object that turns units' contributions into a release.

It checks every unit's contribution in exact integers, has the ledger write the spend down, and only then draws noise.
What it claims (the event) and what it runs are made from the same fields. Nothing else in the code base adds privacy
noise.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from common.errors import BudgetError
from common.privacy.accountants import Accountant, GdpAccountant
from common.privacy.events import GaussianEvent
from common.privacy.ledger import Charge, Ledger
from common.privacy.noise import MAXIMUM_STDDEV, NoiseSource

MAXIMUM_EMPHASIS = 16
_GDP = GdpAccountant()


def plan_event(
    squared_sensitivity: int,
    cells: int,
    scale: int,
    *,
    spend: float,
    account: Literal["train", "holdout"],
    noise: NoiseSource,
    accountant: Accountant,
    sampling: float = 1.0,
) -> GaussianEvent:
    """The event that a spend of `spend`, as the accountant counts, buys for a vector of so many cells.

    Raises:
        BudgetError: the spend is so small that its noise would not fit the integers.
    """
    stddev = math.inf
    if spend > 0:
        stddev = accountant.noise_stddev(squared_sensitivity=squared_sensitivity, spend=spend, sampling=sampling)
    if stddev > MAXIMUM_STDDEV:
        raise BudgetError("budget: the share is too small to buy a release; refused, nothing was drawn")
    return GaussianEvent(
        account=account,
        squared_sensitivity=squared_sensitivity,
        noise_stddev=stddev,
        cells=cells,
        scale=scale,
        noise=noise.kind,
        sampling=sampling,
    )


def check_event(event: GaussianEvent, squared_sensitivity: int, cells: int, scale: int, *, noise: NoiseSource) -> None:
    """Refuse an event that does not state what a mechanism is about to do.

    Raises:
        ValueError: a fault of ours.
    """
    if (event.squared_sensitivity, event.cells, event.scale) != (squared_sensitivity, cells, scale):
        raise ValueError("event: was not planned by this mechanism")
    if not 0 < event.noise_stddev <= MAXIMUM_STDDEV:
        raise ValueError("event: noise that cannot be drawn")
    if event.noise != noise.kind:
        raise ValueError("event: states another source of noise")


def charge_and_draw(sums: np.ndarray, charge: Charge, *, ledger: Ledger, noise: NoiseSource) -> np.ndarray:
    """Noised sums, (cells,) int64: the spend is on disk before the noise is drawn.

    Raises:
        BudgetError, LedgerError: from the ledger; nothing was drawn.
    """
    ledger.authorise(charge)
    event = charge.event
    noised: np.ndarray = sums + noise.draw(event.cells, noise_stddev=event.noise_stddev, context=charge.request)
    return noised


@dataclass(frozen=True)
class Contributions:
    """What units add to some consecutive tables of a vector of counts, one hit at a time.

    units: (hits,) int64, which unit a hit belongs to, 0 .. units - 1.
    indices: (hits, tables) int64, the one cell that is hit in each table.
    weights: (hits,) int64, what is added there, in grid units.
    """

    units: np.ndarray
    indices: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class CountMechanism:
    """Gaussian mechanism on contingency tables, with exact integer sums.

    offsets: (tables + 1,) int64, where each table starts in the vector, and its length last.
    unit_weight: the most that one unit may add to one table, in grid units; also the scale of the release.
    emphasis: (tables,) int64, 1 to 16; the sums of a table are multiplied by its emphasis before the noise, so that its
        noise, seen from the counts, is as many times smaller than at emphasis 1. None for 1 everywhere.

    One unit adds at most `unit_weight` to the cells of each table together, so it moves each table by at most that in
    L1 and hence in L2, and all tables together by unit_weight * sqrt(sum of squared emphases) in L2.
    """

    offsets: np.ndarray
    unit_weight: int
    emphasis: np.ndarray | None = None
    _emphasis: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raises ValueError where an emphasis is not a whole number from 1 to 16, one a table."""
        tables = len(self.offsets) - 1
        emphasis = np.ones(tables, dtype=np.int64) if self.emphasis is None else self.emphasis
        valid = emphasis.shape == (tables,) and emphasis.dtype == np.int64
        if not valid or bool((emphasis < 1).any() or (emphasis > MAXIMUM_EMPHASIS).any()):
            raise ValueError(f"emphasis: expected one whole number from 1 to {MAXIMUM_EMPHASIS} a table")
        # A copy of its own: what was checked and planned with is what multiplies.
        object.__setattr__(self, "_emphasis", emphasis.copy())

    @property
    def squared_sensitivity(self) -> int:
        """Square of the L2 sensitivity to adding or removing one unit; exact."""
        return sum(int(one) ** 2 for one in self._emphasis) * self.unit_weight**2

    def plan(
        self,
        *,
        spend: float,
        account: Literal["train", "holdout"],
        noise: NoiseSource,
        accountant: Accountant = _GDP,
    ) -> GaussianEvent:
        """The event that a spend of `spend`, as the accountant counts, buys.

        Raises:
            BudgetError: the spend is so small that its noise would not fit the integers.
        """
        size = (self.squared_sensitivity, int(self.offsets[-1]), self.unit_weight)
        return plan_event(*size, spend=spend, account=account, noise=noise, accountant=accountant)

    def release(
        self,
        contributions: Iterable[Contributions],
        *,
        event: GaussianEvent,
        request: str,
        request_digest: str,
        ledger: Ledger,
        noise: NoiseSource,
    ) -> np.ndarray:
        """Noised sums in grid units, (cells,) int64.

        Order: contributions checked, spend on disk, noise drawn.

        Raises:
            BudgetError, LedgerError: from the ledger; nothing was drawn.
            ValueError: a unit contributes more than it may, or the event is not this mechanism's: a fault of ours.
        """
        check_event(event, self.squared_sensitivity, int(self.offsets[-1]), self.unit_weight, noise=noise)
        sums = self.exact_sum(contributions)
        return charge_and_draw(sums, Charge(request, request_digest, event), ledger=ledger, noise=noise)

    def exact_sum(self, contributions: Iterable[Contributions]) -> np.ndarray:
        """Exact sums, (cells,) int64, of contributions that were checked one by one."""
        sums = np.zeros(int(self.offsets[-1]), dtype=np.int64)
        done = 0
        for part in contributions:
            first, done = done, done + part.indices.shape[1]
            self._check(part, first, done)
            for table in range(part.indices.shape[1]):
                np.add.at(sums, part.indices[:, table], part.weights)
        if done != len(self.offsets) - 1:
            raise ValueError("contributions: not for every table")
        sums *= np.repeat(self._emphasis, np.diff(self.offsets))
        return sums

    def _check(self, part: Contributions, first: int, last: int) -> None:
        """Refuse a part, for the tables from `first` up to `last`, in which a unit weighs more than it may."""
        units, indices, weights = part.units, part.indices, part.weights
        if not all(array.dtype == np.int64 for array in (units, indices, weights)):
            raise ValueError("contributions: expected int64 arrays")
        if last >= len(self.offsets) or indices.shape[0] != len(units) or weights.shape != units.shape:
            raise ValueError("contributions: shapes do not agree")
        if len(units) == 0:
            return
        if bool((indices < self.offsets[first:last]).any() or (indices >= self.offsets[first + 1 : last + 1]).any()):
            raise ValueError("contributions: a hit lies outside its table")
        if bool((weights < 0).any()):
            raise ValueError("contributions: a weight is negative")
        # One by one first: a sum of weights that are too large could wrap round.
        if int(weights.max()) > self.unit_weight:
            raise ValueError("contributions: a hit weighs more than its unit may")
        if int(units.min()) < 0:
            raise ValueError("contributions: a unit's number is negative")
        per_unit = np.zeros(int(units.max()) + 1, dtype=np.int64)
        np.add.at(per_unit, units, weights)
        if int(per_unit.max()) > self.unit_weight:
            raise ValueError("contributions: a unit weighs more than it may")
