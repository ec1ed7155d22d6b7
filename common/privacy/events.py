"""What was released: facts that an accountant can read without having seen a record.

Events are for ever. A class is never removed, its meaning never changes, new fields are optional: an old ledger must
read the same in ten years.
"""

from dataclasses import dataclass
from typing import Any, Literal, Self

from common.errors import LedgerError
from common.privacy import budget


@dataclass(frozen=True, kw_only=True)
class GaussianEvent:
    """One vector of integer sums over units, released with independent rounded Gaussian noise in each cell.

    account: the disjoint set of units that it was computed on: "train" or "holdout". A unit is in exactly one.
    squared_sensitivity: square of the L2 change that one unit can make, an exact integer, in grid units squared.
    noise_stddev: of each cell, in grid units.
    cells: length of the vector.
    scale: grid units in one unit's count; a released value divided by it is in units.
    noise: where the noise came from; anything but "csprng" voids the guarantee.
    sampling: probability that a unit takes part, drawn anew for each unit and event; 1: all do.
    """

    account: Literal["train", "holdout"]
    squared_sensitivity: int
    noise_stddev: float
    cells: int
    scale: int
    noise: Literal["csprng", "test-seed"]
    sampling: float = 1.0

    @property
    def spend(self) -> float:
        """Squared mu as if all units took part, rounded up."""
        return budget.spend_of(squared_sensitivity=self.squared_sensitivity, noise_stddev=self.noise_stddev)

    @property
    def variance(self) -> float:
        """Of one released value in units, by noise and by its rounding."""
        return (self.noise_stddev**2 + 1 / 12) / self.scale**2

    def as_dict(self) -> dict[str, Any]:
        """For a ledger line or a message. Sampling is left out where there is none, as before there was any."""
        fields = {name: value for name, value in vars(self).items() if name != "sampling" or value != 1}
        return {"type": "gaussian", **fields}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read back what `as_dict` wrote.

        Raises:
            LedgerError: not an event of this kind, or a field is out of range.
        """
        fields = {key: value for key, value in data.items() if key != "type"}
        try:
            event = cls(**fields)
        except TypeError:
            raise LedgerError("event: not the fields of a Gaussian event") from None
        valid = (
            data.get("type") == "gaussian"
            and event.account in ("train", "holdout")
            and isinstance(event.squared_sensitivity, int)
            and event.squared_sensitivity > 0
            and isinstance(event.noise_stddev, float)
            and 0 < event.noise_stddev < float("inf")
            and isinstance(event.cells, int)
            and event.cells > 0
            and isinstance(event.scale, int)
            and event.scale > 0
            and event.noise in ("csprng", "test-seed")
            and isinstance(event.sampling, float)
            and 0 < event.sampling <= 1
        )
        if not valid:
            raise LedgerError("event: a field of a Gaussian event is out of range")
        return event
