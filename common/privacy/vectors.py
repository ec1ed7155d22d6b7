"""Vectors that units add up, released with noise: gradients of a critic, embeddings of records.

Each unit's vector is made of integers, in factored form: one matrix a layer, the sum over steps of outer products. Its
squared norm and the sum over units are exact, so the sensitivity holds to the last bit, and neither the order of units
nor the library that multiplies matrices can change a release.

How exactness is kept: integers are multiplied and added as floats that hold them without rounding. Every partial sum of
a squared norm is a sum of squares and at most the norm itself; as long as the bound is below 2^24 (float32) or 2^53
(float64) a norm within the bound is therefore exact, in whatever order a library adds. Rounding to nearest never takes
a value below a representable one that it exceeds, so a norm above the bound cannot come out within it. And since no
cell of a unit exceeds its norm, sums over fewer than 2^24 / bound (2^53 / bound) units are exact too; longer ones are
made of such parts in int64.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from common.privacy.accountants import Accountant, GdpAccountant
from common.privacy.events import GaussianEvent
from common.privacy.ledger import Charge, Ledger
from common.privacy.mechanism import charge_and_draw, check_event, plan_event
from common.privacy.noise import NoiseSource

MAXIMUM_SCALE = 2**26
"""The largest scale: a squared norm of 2^52 is still exact in float64."""

_GDP = GdpAccountant()
# A layer whose norm is at most this many of its steps is served by float32, at twice the speed.
_FAST_NORM = 4095
_FLOAT32_LIMIT = 2**24
_FLOAT64_LIMIT = 2**53


@dataclass(frozen=True)
class VectorLayer:
    """One layer of every unit's vector: a matrix of (inputs, outputs), row by row, in multiples of `weight`."""

    inputs: int
    outputs: int
    weight: int = 1

    @property
    def cells(self) -> int:
        """Length of its part of the vector."""
        return self.inputs * self.outputs


@dataclass(frozen=True)
class VectorContributions:
    """The vectors of some units.

    factors: (left, right) of each layer: integers or booleans (units, steps, inputs) and (units, steps, outputs), which
        stand for the matrix weight * sum_t left_t right_t^T of each unit. A vector that is not factored has one step
        and one input, which is 1.
    """

    factors: tuple[tuple[np.ndarray, np.ndarray], ...]


def plain(vectors: np.ndarray) -> VectorContributions:
    """Contributions of one layer of one input from vectors that are not factored; vectors: (units, cells), integers."""
    return VectorContributions(((np.ones((len(vectors), 1, 1), dtype=np.int8), vectors[:, np.newaxis]),))


@dataclass(frozen=True)
class VectorMechanism:
    """Gaussian mechanism on sums of integer vectors, each of L2 norm at most `scale`.

    layers: of every unit's vector, in the order of its cells.
    scale: the most that one unit's vector may measure, in grid units; also the scale of the release, so that a
        released value divided by it is in clip norms. 1 to 2^26.
    """

    layers: tuple[VectorLayer, ...]
    scale: int

    def __post_init__(self) -> None:
        """Refuse a scale that no float type serves."""
        _check_scale(self.scale)
        if any(layer.weight < 1 for layer in self.layers):
            raise ValueError("layers: expected weights of at least 1")

    @property
    def cells(self) -> int:
        """Length of the vector."""
        return sum(layer.cells for layer in self.layers)

    @property
    def squared_sensitivity(self) -> int:
        """Square of the L2 sensitivity to adding or removing one unit; exact."""
        return self.scale**2

    def squared_norms(self, contributions: VectorContributions) -> np.ndarray:
        """Each unit's squared L2 norm, (units,) int64: exact up to scale^2, and somewhere above it everywhere else.

        Raises:
            ValueError: not integers, not the shapes of the layers, or factors too large to be added exactly.
        """
        sums = _Sums(self)
        parts = [sums.measure(part) for part in sums.parts(contributions)]
        return np.concatenate([np.empty(0, dtype=np.int64), *parts])

    def exact_sum(self, contributions: Iterable[VectorContributions]) -> np.ndarray:
        """What a release adds its noise to, (cells,) int64; private.

        Args:
            contributions: parts of the units, each unit in one part alone; read once, so that memory holds one part.

        Raises:
            ValueError: a unit's norm is above `scale`, or as for `squared_norms`.
        """
        sums = _Sums(self)
        for part in contributions:
            sums.add(part)
        return sums.total()

    def plan(
        self,
        *,
        spend: float,
        account: Literal["train", "holdout"],
        noise: NoiseSource,
        accountant: Accountant = _GDP,
        sampling: float = 1.0,
    ) -> GaussianEvent:
        """The event that a spend of `spend`, as the accountant counts, buys.

        Args:
            spend: what it may cost.
            account: of the units.
            noise: of the kind that the event will state.
            accountant: of the study.
            sampling: chance of each unit to be among the contributions, drawn by `NoiseSource.sample`.

        Raises:
            BudgetError: the spend is so small that its noise would not fit the integers.
        """
        size = (self.squared_sensitivity, self.cells, self.scale)
        return plan_event(*size, spend=spend, account=account, noise=noise, accountant=accountant, sampling=sampling)

    def release(
        self,
        contributions: Iterable[VectorContributions],
        *,
        event: GaussianEvent,
        request: str,
        request_digest: str,
        ledger: Ledger,
        noise: NoiseSource,
    ) -> np.ndarray:
        """Noised sums in grid units, (cells,) int64.

        Order: contributions checked and added up part by part, spend on disk, noise drawn.

        Args:
            contributions: as for `exact_sum`.
            event: from `plan`.
            request: names the release; also the context of the noise.
            request_digest: of what was asked.
            ledger: authorises the spend.
            noise: of the kind that the event states.

        Raises:
            BudgetError, LedgerError: from the ledger; nothing was drawn.
            ValueError: a unit contributes more than it may, or the event is not this mechanism's: a fault of ours.
        """
        check_event(event, self.squared_sensitivity, self.cells, self.scale, noise=noise)
        sums = self.exact_sum(contributions)
        return charge_and_draw(sums, Charge(request, request_digest, event), ledger=ledger, noise=noise)


class _Sums:
    """The running sum of checked contributions, with the room that their float copies need."""

    def __init__(self, mechanism: VectorMechanism) -> None:
        self._layers = mechanism.layers
        self._bound = mechanism.squared_sensitivity
        # The most that a unit's matrix may measure before its weight, and the integers that hold it.
        self._norms = [max(1, mechanism.scale // layer.weight) for layer in self._layers]
        self._limits = [_FLOAT32_LIMIT if norm <= _FAST_NORM else _FLOAT64_LIMIT for norm in self._norms]
        self._totals = [np.zeros(layer.cells, dtype=np.int64) for layer in self._layers]
        self._room: dict[tuple[int, str], np.ndarray] = {}

    def total(self) -> np.ndarray:
        """(cells,) int64, whole as long as there are fewer than 2^36 units."""
        return np.concatenate([np.empty(0, dtype=np.int64), *self._totals])

    def add(self, contributions: VectorContributions) -> None:
        """Check the norms of some units, then add them.

        Raises:
            ValueError: a norm is above the bound, or the contributions are not of the mechanism's shape.
        """
        for part in self.parts(contributions):
            pairs = self._floats(part)
            if bool((self._measure(pairs) > self._bound).any()):
                raise ValueError("contributions: a unit's norm is above the bound")
            for number, (left, right) in enumerate(pairs):
                self._totals[number] += self._layers[number].weight * (left.T @ right).ravel().astype(np.int64)

    def measure(self, part: VectorContributions) -> np.ndarray:
        """Squared norms, (units,) int64: exact up to the bound, above it everywhere else."""
        return self._measure(self._floats(part))

    def parts(self, contributions: VectorContributions) -> Iterator[VectorContributions]:
        """So few units at a time that no cell of their sum can leave the exact range of its float type."""
        units = self._check(contributions)
        size = min([(limit - 1) // norm for limit, norm in zip(self._limits, self._norms, strict=True)], default=1)
        for start in range(0, units, size):
            chosen = slice(start, start + size)
            yield VectorContributions(tuple((left[chosen], right[chosen]) for left, right in contributions.factors))

    def _check(self, contributions: VectorContributions) -> int:
        units = {len(factor) for pair in contributions.factors for factor in pair}
        if len(units) > 1 or len(contributions.factors) != len(self._layers):
            raise ValueError("contributions: layers do not agree")
        for (left, right), layer in zip(contributions.factors, self._layers, strict=True):
            if left.dtype.kind not in "bi" or right.dtype.kind not in "bi":
                raise ValueError("contributions: expected integers")
            if left.ndim != 3 or left.shape[2] != layer.inputs or right.shape[1:] != (left.shape[1], layer.outputs):
                raise ValueError("contributions: shapes do not agree")
        return units.pop() if units else 0

    def _floats(self, part: VectorContributions) -> list[tuple[np.ndarray, np.ndarray]]:
        """Each layer as one outer product a unit: (units, inputs) and (units, outputs)."""
        pairs = []
        for number, ((left, right), limit) in enumerate(zip(part.factors, self._limits, strict=True)):
            first, second = self._float(left, (number, "left"), limit), self._float(right, (number, "right"), limit)
            if first.shape[1] == 1:
                pairs.append((first[:, 0], second[:, 0]))
                continue
            # Steps may cancel, so that the norm of their sum says nothing of what is added on the way to it.
            largest = [float(np.abs(factor).max(initial=0)) for factor in (first, second)]
            if first.shape[1] * largest[0] * largest[1] >= limit:
                raise ValueError("contributions: factors are too large to be added exactly")
            matrices = first.transpose(0, 2, 1) @ second
            pairs.append((np.ones((len(first), 1), dtype=first.dtype), matrices.reshape(len(first), -1)))
        return pairs

    def _float(self, values: np.ndarray, name: tuple[int, str], limit: int) -> np.ndarray:
        # Fresh memory for every part would cost more than the arithmetic.
        room = self._room.get(name)
        if room is None or len(room) < len(values) or room.shape[1:] != values.shape[1:]:
            room = np.empty(values.shape, dtype=np.float32 if limit == _FLOAT32_LIMIT else np.float64)
            self._room[name] = room
        if values.dtype.itemsize == 8:
            # Above any bound all the same, and no square leaves the floats.
            values = np.clip(values, -limit, limit)
        np.copyto(room[: len(values)], values, casting="unsafe")
        return room[: len(values)]

    def _measure(self, pairs: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        norms = np.zeros(len(pairs[0][0]) if pairs else 0)
        for layer, (left, right) in zip(self._layers, pairs, strict=True):
            norms += float(layer.weight**2) * np.vecdot(left, left).astype(np.float64) * np.vecdot(right, right)
        return np.minimum(norms, _FLOAT64_LIMIT).astype(np.int64)


def _check_scale(scale: int) -> None:
    if not 1 <= scale <= MAXIMUM_SCALE:
        raise ValueError(f"scale={scale}: expected 1 to 2^26")
