"""What the generator's sequence heads have in common: given a latent, a distribution over windows with exact tables.

Two heads, for the two kinds of windows. `paths`, for regular grids: the latent holds a path, a few smooth random
courses; given it, the values of all steps and channels are independent. `states`, for event streams: one hidden chain
of states that all channels of a step share, and a habit of each category. Every expected table is then some matrix
products and forward recursions, differentiable, with no value drawn.

Bins of a channel: its values first, then, where the schema allows it, missing. Source: algorithm notes, section 8.
"""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from common.data.queries import EXTREME_GROUPS, Family, extreme_group

Expected: TypeAlias = dict[str, Tensor]

FEWEST_SLOTS: Final = 16
"""Floats in the widest vector register of a processor: over fewer a softmax of torch takes up to ten times longer."""


@dataclass(frozen=True)
class SequenceShape:
    """What fixes a sequence head's parameters, and what no window of it holds.

    kind: which head. sizes: bins of each channel, the missing bin included where `missing` says so. ordered: whether
    neighbouring bins are neighbouring values. blocks: first step and the one after the last, of each part of the
    window. states: hidden states of the head of that name. gap: which channel of events holds the time since the step
    before, missing in a unit's first step and in no later one. late: whether a window of all steps may begin after its
    unit's first, and so with a value of that channel.
    """

    kind: Literal["paths", "states"]
    steps: int
    blocks: tuple[tuple[int, int], ...]
    sizes: tuple[int, ...]
    missing: tuple[bool, ...]
    ordered: tuple[bool, ...]
    states: int
    gap: int | None = None
    late: bool = False

    @property
    def values(self) -> tuple[int, ...]:
        """Value bins of each channel."""
        return tuple(size - missing for size, missing in zip(self.sizes, self.missing, strict=True))

    @property
    def widest(self) -> int:
        """The most value bins of a channel; a padded axis has one slot more, for missing."""
        return max(self.values)

    @property
    def slots(self) -> np.ndarray:
        """Where each bin lies in (channels, widest + 1), flat; (bins,) int64."""
        wide = self.widest + 1
        places = [
            channel * wide + np.append(np.arange(values), [wide - 1] * missing)
            for channel, (values, missing) in enumerate(zip(self.values, self.missing, strict=True))
        ]
        return np.concatenate(places).astype(np.int64)

    def as_dict(self) -> dict[str, object]:
        """For generator.json: what fixes the parameters; the rest follows from the study."""
        return {name: value for name, value in asdict(self).items() if name not in ("gap", "late")}

    def drawn(self, chances: Tensor, random: torch.Generator) -> Tensor:
        """Bins, (...) int64, from the chances of slots, missing last; (..., channels, widest + 1)."""
        return torch.minimum(choose(chances, random), torch.tensor(self.values, device=chances.device))


@dataclass(frozen=True)
class StepWeights:
    """How a window's steps weigh in tables, given how long the window is; expectations over its length.

    average: (rows, steps), 1 / length while the window lasts. alive: (rows, steps), chance that it does.
    moves: (rows, steps - 1), 1 / (length - 1) while the window lasts. last: (rows, steps), chance that it ends there.
    counted: how many lengths, up to the longest, have a group of their own at the end of the record's groups; 0 where
    the length does not vary.
    """

    average: Tensor
    alive: Tensor
    moves: Tensor
    last: Tensor
    counted: int


def weights_of(lengths: Tensor, *, counted: int = 0) -> StepWeights:
    """From the chance of each length, (rows, steps + 1), 0 steps first."""
    steps = lengths.shape[1] - 1
    number = torch.arange(1, steps + 1, device=lengths.device)
    last = lengths[:, 1:]

    def from_here_on(values: Tensor) -> Tensor:
        return values.flip(1).cumsum(1).flip(1)

    return StepWeights(
        average=from_here_on(last / number),
        alive=from_here_on(last),
        moves=from_here_on(last[:, 1:] / number[:-1]),
        last=last,
        counted=counted,
    )


class Courses(ABC):
    """A distribution over windows for each of some latents: what a head returns."""

    shape: SequenceShape
    weights: StepWeights

    @property
    @abstractmethod
    def levels(self) -> Tensor:
        """Bin probabilities in each step, (rows, steps, bins), whether the window lasts or not."""

    @abstractmethod
    def transitions(self, parts: int) -> Tensor:
        """Two steps, one after the other, by `moves`; mean of each part, (parts, channels, widest + 1, widest + 1)."""

    @abstractmethod
    def ends(self, parts: int) -> Tensor:
        """First and last step; mean of each part, (parts, channels, widest + 1, widest + 1)."""

    @abstractmethod
    def together(self) -> tuple[Tensor, Tensor]:
        """Factors of the pairs of bins in one step: (rows, parts, bins), and the weight of each part, (rows, parts)."""

    @abstractmethod
    def within(self) -> Tensor:
        """Chance that no value leaves the sets of `nested_sets`, (rows, channels, 2 * (EXTREME_GROUPS - 1))."""

    @abstractmethod
    def unseen(self) -> Tensor:
        """Chance that no step holds a value, (rows, channels)."""

    @abstractmethod
    def observed(self) -> Tensor:
        """Share of steps with a value, in buckets; (rows, channels, COUNT_BUCKETS)."""

    @abstractmethod
    def draw(self, random: torch.Generator) -> Tensor:
        """One window a row, (rows, steps, channels) int64, whether it lasts or not."""

    @abstractmethod
    def settled(self, random: torch.Generator) -> Tensor:
        """Chances of each step given a draw of all that steps share, (rows, steps, channels, widest + 1), missing last.

        Given it, steps and channels are independent; drawn from it, they are as from `draw`.
        """

    @abstractmethod
    def relaxed(self, random: torch.Generator) -> Tensor:
        """One window a row as indicators, (rows, steps, bins), with the gradient of the probabilities.

        Whether the window lasts or not, as in `draw`.
        """

    def _relaxed(self, cubes: list[Tensor]) -> Tensor:
        """Steps of (rows, channels, widest + 1) as (rows, steps, bins)."""
        return in_slots(torch.stack(cubes, dim=1), self.shape)

    def expected(self, records: Tensor, joins: Tensor) -> Expected:
        """Mean tables of parts of the rows, by family.

        Args:
            records: (parts, rows, groups), probabilities of groups of record bins, of the same rows.
            joins: (bins, groups), which channel bins are in which group; for the tables of two axes.
        """
        parts, rows, _ = records.shape

        def mean(table: Tensor) -> Tensor:
            return mean_of_parts(table, parts)

        average = torch.bmm(self.weights.average[:, None], self.levels).squeeze(1)  # (rows of all parts, bins)
        blocks = torch.bmm(self.weights.alive[:, None] * self._steps_of_blocks(), self.levels)
        factors, weights = self.together()
        joined = factors @ joins
        left, right = (one.view(parts, -1, joins.shape[1]) for one in (joined * weights[:, :, None], joined))
        nothing = self.unseen()[:, :, None]
        # Whatever a window with steps holds, it is within all groups.
        anything = self.weights.last.sum(dim=1)[:, None, None].expand_as(nothing)
        below, above = (torch.cat([nothing, part, anything], dim=2) for part in self.within().chunk(2, dim=2))
        course = torch.bmm(records.transpose(1, 2), (average @ joins).view(parts, rows, -1)) / rows
        if self.weights.counted:
            course = torch.cat([course[:, : -self.weights.counted], mean(self._by_length(joins))], dim=1)
        return {
            "average": mean(average),
            Family.COURSE: course,
            Family.TOGETHER: torch.bmm(left.transpose(1, 2), right) / rows,
            Family.LEVEL: mean(blocks),
            Family.TRANSITION: self.transitions(parts),
            Family.ENDS: self.ends(parts),
            Family.HIGHEST: mean(torch.cat([below.diff(dim=2), nothing], dim=2)),
            Family.LOWEST: mean(torch.cat([above.diff(dim=2).flip(2), nothing], dim=2)),
            Family.OBSERVED: mean(self.observed()),
        }

    def _steps_of_blocks(self) -> Tensor:
        """What each step is of each block's mean, (blocks, steps)."""
        shares = self.levels.new_zeros(len(self.shape.blocks), self.shape.steps)
        for block, (begin, end) in enumerate(self.shape.blocks):
            shares[block, begin:end] = 1 / (end - begin)
        return shares

    def _by_length(self, joins: Tensor) -> Tensor:
        """Steps by equal shares, for each length; (rows, counted, groups). What a window holds is cut by its length."""
        steps = torch.arange(1, self.shape.steps + 1, device=joins.device)[:, None]
        held = (self.levels @ joins).cumsum(dim=1) / steps * self.weights.last[:, :, None]
        # A window of no steps holds nothing.
        return torch.cat([torch.zeros_like(held[:, :1]), held], dim=1)[:, -self.weights.counted :]


def nested_sets(shape: SequenceShape) -> Tensor:
    """Which value bins of each channel are in which set, (channels, 2 * (EXTREME_GROUPS - 1), widest).

    The lowest group, the two lowest, ... all but the highest; the highest group, ... all but the lowest.
    """
    bins = np.arange(shape.widest)
    group = np.array([extreme_group(bins, values) for values in shape.values])[:, None, :]  # (channels, 1, widest)
    number = np.arange(EXTREME_GROUPS - 1)[None, :, None]
    lowest, highest = group <= number, group >= EXTREME_GROUPS - 1 - number
    return torch.from_numpy(np.concatenate([lowest, highest], axis=1))


def softmax_of_few(logits: Tensor) -> Tensor:
    """Softmax over the last axis, as fast where it is short."""
    size = logits.shape[-1]
    if size >= FEWEST_SLOTS:
        return logits.softmax(dim=-1)
    padded = nn.functional.pad(logits, (0, FEWEST_SLOTS - size), value=-torch.inf)
    return padded.softmax(dim=-1)[..., :size]


def in_slots(cube: Tensor, shape: SequenceShape) -> Tensor:
    """Bins of all channels side by side: (rows, steps, channels, widest + 1) to (rows, steps, bins)."""
    flat = cube.flatten(2)
    slots = torch.as_tensor(shape.slots, device=cube.device)
    return flat.gather(2, slots.expand(*flat.shape[:2], -1))


def advance(chance: Tensor, move: Tensor) -> Tensor:
    """One step of a chain: (..., states), (..., states, states)."""
    return torch.matmul(chance[..., None, :], move).squeeze(-2)


def with_missing(both: Tensor, out_of: Tensor, into: Tensor, neither: Tensor) -> Tensor:
    """A table with a last row and column for missing, (..., widest + 1, widest + 1)."""
    top = torch.cat([both, out_of[..., None]], dim=-1)
    bottom = torch.cat([into, neither[..., None]], dim=-1)
    return torch.cat([top, bottom[..., None, :]], dim=-2)


def straight_through(chance: Tensor, random: torch.Generator) -> Tensor:
    """A draw over the last axis as an indicator, whose gradient is that of the chances. Source: Bengio et al. 2013."""
    return indicator(chance.detach().clamp(min=0), random) + chance - chance.detach()


def indicator(chance: Tensor, random: torch.Generator) -> Tensor:
    """A draw over the last axis, as an indicator."""
    return nn.functional.one_hot(choose(chance, random), chance.shape[-1]).to(chance.dtype)


def choose(chance: Tensor, random: torch.Generator) -> Tensor:
    """A categorical draw over the last axis, by inverting sums in double precision: a chance of 0 never comes.

    Several times as fast as `torch.multinomial`, which draws a number for each category.

    Args:
        chance: (..., categories), in any unit.
        random: of the draws, on the same device.

    Raises:
        ValueError: somewhere no chance is above 0 by more than doubles round away, or one is no finite number.
    """
    sums = chance.detach().cumsum(dim=-1, dtype=torch.float64)
    total = sums[..., -1:]
    if not bool(((total > torch.finfo(total.dtype).tiny) & (total < torch.inf)).all()):
        raise ValueError("chances: expected finite numbers, one above 0 in each row")
    # Below 1, so that the point is below the total whichever way it is rounded.
    point = total * torch.rand(total.shape, dtype=torch.float64, generator=random, device=chance.device)
    return torch.searchsorted(sums, point, right=True).squeeze(-1)


def row_of(move: Tensor, state: Tensor) -> Tensor:
    """The row of a (..., states, anything) tensor that a (...) state points to."""
    index = state[..., None, None].expand(*state.shape, 1, move.shape[-1])
    return move.gather(-2, index).squeeze(-2)


def mean_of_parts(table: Tensor, parts: int) -> Tensor:
    """The mean of each part's rows: (rows of all parts, ...) to (parts, ...)."""
    return table.view(parts, -1, *table.shape[1:]).mean(dim=1)
