"""The one object that turns units' contributions into a release.

It checks every unit's contribution in exact integers, has the ledger write the spend down, and only then draws noise.
What it claims (the event) and what it runs are made from the same fields. Nothing else in the code base adds privacy
noise.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from common.errors import BudgetError
from common.privacy import budget
from common.privacy.events import GaussianEvent
from common.privacy.ledger import Charge, Ledger
from common.privacy.noise import MAXIMUM_STDDEV, NoiseSource


@dataclass(frozen=True)
class Contributions:
    """What each record adds to a vector of counts.

    units: (records,) int64, which unit a record belongs to, 0 .. units - 1.
    indices: (records, tables) int64, the one cell that the record hits in each table.
    weights: (records,) int64, what it adds there, in grid units.
    """

    units: np.ndarray
    indices: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class CountMechanism:
    """Gaussian mechanism on contingency tables, with exact integer sums.

    offsets: (tables + 1,) int64, where each table starts in the vector, and its length last.
    unit_weight: the most that one unit may add to one table, in grid units; also the scale of the release.

    One unit adds at most `unit_weight` to the cells of each table together, so it moves each table by at most that in
    L1 and hence in L2, and all tables together by unit_weight * sqrt(tables) in L2.
    """

    offsets: np.ndarray
    unit_weight: int

    @property
    def squared_sensitivity(self) -> int:
        """Square of the L2 sensitivity to adding or removing one unit; exact."""
        return (len(self.offsets) - 1) * self.unit_weight**2

    def plan(self, *, spend: float, account: Literal["train", "holdout"], noise: NoiseSource) -> GaussianEvent:
        """The event that a spend of `spend` (squared mu) buys.

        Raises:
            BudgetError: the spend is so small that its noise would not fit the integers.
        """
        stddev = math.inf
        if spend > 0:
            stddev = budget.noise_stddev_for(squared_sensitivity=self.squared_sensitivity, spend=spend)
        if stddev > MAXIMUM_STDDEV:
            raise BudgetError("budget: the share is too small to buy a release; refused, nothing was drawn")
        return GaussianEvent(
            account=account,
            squared_sensitivity=self.squared_sensitivity,
            noise_stddev=stddev,
            cells=int(self.offsets[-1]),
            scale=self.unit_weight,
            noise=noise.kind,
        )

    def release(
        self,
        contributions: Contributions,
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
        planned = (self.squared_sensitivity, int(self.offsets[-1]), self.unit_weight)
        if (event.squared_sensitivity, event.cells, event.scale) != planned:
            raise ValueError("event: was not planned by this mechanism")
        if not 0 < event.noise_stddev <= MAXIMUM_STDDEV:
            raise ValueError("event: noise that cannot be drawn")
        if event.noise != noise.kind:
            raise ValueError("event: states another source of noise")
        self._check(contributions)
        sums = np.zeros(event.cells, dtype=np.int64)
        for table in range(contributions.indices.shape[1]):
            np.add.at(sums, contributions.indices[:, table], contributions.weights)
        ledger.authorise(Charge(request, request_digest, event))
        noised: np.ndarray = sums + noise.draw(event.cells, noise_stddev=event.noise_stddev, context=request)
        return noised

    def _check(self, contributions: Contributions) -> None:
        units, indices, weights = contributions.units, contributions.indices, contributions.weights
        if not all(array.dtype == np.int64 for array in (units, indices, weights)):
            raise ValueError("contributions: expected int64 arrays")
        if indices.shape != (len(units), len(self.offsets) - 1) or weights.shape != units.shape:
            raise ValueError("contributions: shapes do not agree")
        if len(units) == 0:
            return
        if bool((indices < self.offsets[:-1]).any() or (indices >= self.offsets[1:]).any()):
            raise ValueError("contributions: a record hits a cell outside its table")
        if bool((weights < 0).any()):
            raise ValueError("contributions: a weight is negative")
        # One by one first: a sum of weights that are too large could wrap round.
        if int(weights.max()) > self.unit_weight:
            raise ValueError("contributions: a record weighs more than its unit may")
        if int(units.min()) < 0:
            raise ValueError("contributions: a unit's number is negative")
        per_unit = np.zeros(int(units.max()) + 1, dtype=np.int64)
        np.add.at(per_unit, units, weights)
        if int(per_unit.max()) > self.unit_weight:
            raise ValueError("contributions: a unit weighs more than it may")
