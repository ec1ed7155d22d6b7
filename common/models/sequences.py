"""The generator's sequence heads: given a latent, a distribution over windows whose tables are exact sums.

Two heads, for the two kinds of windows. *Chains*, for regular grids: every channel is an inhomogeneous Markov chain of
values that goes on while nothing is measured, and a two-state chain says in which steps it is seen; so a gap does not
forget the level. *States*, for event streams: one hidden chain of states that all channels of a step share; so what
happens in one step fits together. Given the latent, chains of different channels are independent, and so are the
channels of one step given its state. Every expected table is then a forward recursion and some matrix products,
differentiable, with no sampled path.

Bins of a channel: its values first, then, where the schema allows it, missing. Source: algorithm notes, section 8.
"""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from common.data.queries import COUNT_BUCKETS, EXTREME_GROUPS, Family, extreme_group

Expected: TypeAlias = dict[str, Tensor]

REACH = 10.0
"""Parameters that all latents share are multiplied by it: a step of the optimiser moves each by the learning rate, and
a few hundred steps must take a logit all the way to a sharp transition."""


@dataclass(frozen=True)
class SequenceShape:
    """What fixes a sequence head's parameters.

    kind: which head. sizes: bins of each channel, the missing bin included where `missing` says so. ordered: whether
    neighbouring bins are neighbouring values. blocks: first step and the one after the last, of each part of the
    window. states: hidden states of the head of that name.
    """

    kind: Literal["chains", "states"]
    steps: int
    blocks: tuple[tuple[int, int], ...]
    sizes: tuple[int, ...]
    missing: tuple[bool, ...]
    ordered: tuple[bool, ...]
    states: int

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
        """For generator.json."""
        return asdict(self)


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
    def transitions(self) -> Tensor:
        """Two steps, one after the other, by `moves`; (rows, channels, widest + 1, widest + 1)."""

    @abstractmethod
    def ends(self) -> Tensor:
        """First and last step; (rows, channels, widest + 1, widest + 1)."""

    @abstractmethod
    def together(self) -> tuple[Tensor, Tensor]:
        """Factors of the pairs of bins in one step: (rows, parts, bins), and the weight of each part, (rows, parts)."""

    @abstractmethod
    def within(self) -> Tensor:
        """Chance that no value leaves some sets of bins, (rows, channels, 2 * EXTREME_GROUPS + 1).

        The sets of `_nested_sets`: no bin at all, the lowest groups, the highest groups.
        """

    @abstractmethod
    def observed(self) -> Tensor:
        """Share of steps with a value, in buckets; (rows, channels, COUNT_BUCKETS)."""

    @abstractmethod
    def draw(self, random: torch.Generator) -> Tensor:
        """One window a row, (rows, steps, channels) int64, whether it lasts or not."""

    @abstractmethod
    def relaxed(self, random: torch.Generator) -> Tensor:
        """One window a row as indicators, (rows, steps, bins), with the gradient of the probabilities.

        Whether the window lasts or not, as in `draw`.
        """

    def _relaxed(self, cubes: list[Tensor]) -> Tensor:
        """Steps of (rows, channels, widest + 1) as (rows, steps, bins)."""
        cube = torch.stack(cubes, dim=1).flatten(2)
        return cube[:, :, torch.as_tensor(self.shape.slots, device=cube.device)]

    def expected(self, records: Tensor, joins: Tensor) -> Expected:
        """Mean tables of parts of the rows, by family.

        Args:
            records: (parts, rows, groups), probabilities of groups of record bins, of the same rows.
            joins: (bins, groups), which channel bins are in which group; for the tables of two axes.
        """
        parts, rows, _ = records.shape

        def mean(table: Tensor) -> Tensor:
            return table.view(parts, rows, *table.shape[1:]).mean(dim=1)

        average = (self.levels * self.weights.average[:, :, None]).sum(dim=1)  # (rows of all parts, bins)
        alive = self.levels * self.weights.alive[:, :, None]
        blocks = [alive[:, begin:end].mean(dim=1) for begin, end in self.shape.blocks]
        factors, weights = self.together()
        left, right = (
            (one @ joins).view(parts, -1, joins.shape[1]) for one in (factors * weights[:, :, None], factors)
        )
        nothing, below, above = torch.split(self.within(), [1, EXTREME_GROUPS, EXTREME_GROUPS], dim=2)
        course = torch.bmm(records.transpose(1, 2), (average @ joins).view(parts, rows, -1)) / rows
        if self.weights.counted:
            course = torch.cat([course[:, : -self.weights.counted], mean(self._by_length(joins))], dim=1)
        return {
            "average": mean(average),
            Family.COURSE: course,
            Family.TOGETHER: torch.bmm(left.transpose(1, 2), right) / rows,
            Family.LEVEL: mean(torch.stack(blocks, dim=1)),
            Family.TRANSITION: mean(self.transitions()),
            Family.ENDS: mean(self.ends()),
            Family.HIGHEST: mean(torch.cat([below.diff(dim=2, prepend=nothing), nothing], dim=2)),
            Family.LOWEST: mean(torch.cat([above.diff(dim=2, prepend=nothing).flip(2), nothing], dim=2)),
            Family.OBSERVED: mean(self.observed()),
        }

    def _by_length(self, joins: Tensor) -> Tensor:
        """Steps by equal shares, for each length; (rows, counted, groups). What a window holds is cut by its length."""
        steps = torch.arange(1, self.shape.steps + 1, device=joins.device)[:, None]
        held = (self.levels @ joins).cumsum(dim=1) / steps * self.weights.last[:, :, None]
        # A window of no steps holds nothing.
        return torch.cat([torch.zeros_like(held[:, :1]), held], dim=1)[:, -self.weights.counted :]


class Chains(Courses):
    """Every channel a chain of values, and a chain that says where it is seen; independent given the latent.

    start: (rows, channels, widest), of the value in the first step. move: (rows, blocks, channels, widest, widest),
    from one step to the next. seen_start: (rows, channels). seen_move: (rows, blocks, channels, 2, 2), from not seen or
    seen.
    """

    def __init__(
        self,
        shape: SequenceShape,
        weights: StepWeights,
        start: Tensor,
        move: Tensor,
        seen_start: Tensor,
        seen_move: Tensor,
    ) -> None:
        self.shape = shape
        self.weights = weights
        self._start, self._seen_start = start, torch.stack([1 - seen_start, seen_start], dim=2)
        self._moves = move.unbind(1)
        self._seen_moves = seen_move.unbind(1)
        # The move into step t is that of t's block; one entry for each step but the first.
        self._block_into = [
            number for number, (begin, end) in enumerate(shape.blocks) for step in range(begin, end) if step > 0
        ]

    @cached_property
    def _paths(self) -> tuple[list[Tensor], list[Tensor]]:
        """Value probabilities, (rows, channels, widest), and seen probabilities, (rows, channels, 2), step by step."""
        values, seen = [self._start], [self._seen_start]
        for block in self._block_into:
            values.append(_advance(values[-1], self._moves[block]))
            seen.append(_advance(seen[-1], self._seen_moves[block]))
        return values, seen

    @cached_property
    def levels(self) -> Tensor:  # noqa: D102 (as in the base)
        values, seen = (torch.stack(path, dim=1) for path in self._paths)
        cube = torch.cat([values * seen[..., 1:], seen[..., :1]], dim=3)  # (rows, steps, channels, widest + 1)
        return cube.flatten(2)[:, :, torch.as_tensor(self.shape.slots, device=cube.device)]

    def transitions(self) -> Tensor:  # noqa: D102
        values, seen = self._paths
        both = self._start.new_zeros(*self._start.shape, self._start.shape[2])
        out_of, into, neither = torch.zeros_like(self._start), torch.zeros_like(self._start), seen[0].new_zeros(())
        for block, (move, seen_move) in enumerate(zip(self._moves, self._seen_moves, strict=True)):
            from_values = torch.zeros_like(self._start)
            for step in (step for step, into_block in enumerate(self._block_into) if into_block == block):
                weight = self.weights.moves[:, step, None, None, None]
                pair = weight * seen[step][..., None] * seen_move  # (rows, channels, 2, 2)
                from_values = from_values + pair[..., 1, 1, None] * values[step]
                out_of = out_of + pair[..., 1, 0, None] * values[step]
                into = into + pair[..., 0, 1, None] * values[step + 1]
                neither = neither + pair[..., 0, 0]
            both = both + from_values[..., None] * move
        return _with_missing(both, out_of, into, neither)

    def ends(self) -> Tensor:  # noqa: D102
        value, seen = self._start, self._seen_start
        move, seen_move = (_product(moves, self._block_into) for moves in (self._moves, self._seen_moves))
        pair = seen[..., None] * seen_move
        joint = value[..., None] * move
        last = joint.sum(dim=2)
        return _with_missing(
            joint * pair[..., 1, 1, None, None],
            value * pair[..., 1, 0, None],
            last * pair[..., 0, 1, None],
            pair[..., 0, 0],
        )

    def together(self) -> tuple[Tensor, Tensor]:  # noqa: D102
        return self.levels, self.weights.average.expand(len(self._start), -1)

    def within(self) -> Tensor:  # noqa: D102
        inside = _nested_sets(self.shape).to(self._start)  # (channels, sets, widest)
        # State: (rows, channels, sets, not seen or seen, widest).
        allowed = torch.stack([torch.ones_like(inside), inside], dim=2)
        state = self._seen_start[:, :, None, :, None] * self._start[:, :, None, None, :] * allowed
        for block in self._block_into:
            moved = torch.matmul(state.flatten(2, 3), self._moves[block]).view_as(state)
            stay, see = moved.unbind(3)
            into = self._seen_moves[block][:, :, None, :, :, None]  # (rows, channels, 1, 2, 2, 1)
            hidden = stay * into[..., 0, 0, :] + see * into[..., 1, 0, :]
            shown = stay * into[..., 0, 1, :] + see * into[..., 1, 1, :]
            state = torch.stack([hidden, shown * inside], dim=3)
        return state.sum(dim=(3, 4))

    def observed(self) -> Tensor:  # noqa: D102
        steps = self.shape.steps
        state = self._start.new_zeros(*self._seen_start.shape, steps + 1)  # (rows, channels, seen, count)
        state[:, :, 0, 0], state[:, :, 1, 1] = self._seen_start.unbind(2)
        for block in self._block_into:
            moved = torch.einsum("rcsn,rcsz->rczn", state, self._seen_moves[block])
            state = torch.stack([moved[:, :, 0], moved[:, :, 1].roll(1, dims=2)], dim=2)
        bucket = torch.arange(steps + 1, device=state.device) * COUNT_BUCKETS // (steps + 1)
        return state.sum(dim=2) @ nn.functional.one_hot(bucket, COUNT_BUCKETS).to(state.dtype)

    def draw(self, random: torch.Generator) -> Tensor:  # noqa: D102
        value, seen = _choose(self._start, random), _choose(self._seen_start, random)
        missing = torch.tensor(self.shape.values, device=value.device)
        steps = [torch.where(seen == 1, value, missing)]
        for block in self._block_into:
            value = _choose(_row(self._moves[block], value), random)
            seen = _choose(_row(self._seen_moves[block], seen), random)
            steps.append(torch.where(seen == 1, value, missing))
        return torch.stack(steps, dim=1)

    def relaxed(self, random: torch.Generator) -> Tensor:  # noqa: D102
        value, seen = straight_through(self._start, random), straight_through(self._seen_start, random)
        steps = [torch.cat([value * seen[..., 1:], seen[..., :1]], dim=2)]
        for block in self._block_into:
            value = straight_through(_advance(value, self._moves[block]), random)
            seen = straight_through(_advance(seen, self._seen_moves[block]), random)
            steps.append(torch.cat([value * seen[..., 1:], seen[..., :1]], dim=2))
        return self._relaxed(steps)


class ChainHead(nn.Module):
    """Hidden features -> chains. What a latent changes: the first value, where values are pulled to, how far and in
    which direction they move, and where they are seen; the rest of the dynamics is shared.
    """  # noqa: D205

    distance: Tensor
    closed: Tensor
    never_missing: Tensor

    def __init__(self, wide: int, shape: SequenceShape) -> None:
        super().__init__()
        self.shape = shape
        channels, blocks, widest = len(shape.sizes), len(shape.blocks), shape.widest
        self.start = nn.Linear(wide, channels * widest)
        self.pull = nn.Linear(wide, blocks * channels * widest)
        self.bend = nn.Linear(wide, blocks * channels * 3)
        self.seen = nn.Linear(wide, channels * (1 + 2 * blocks))
        place = torch.arange(widest, dtype=torch.float32)
        apart = (place[None, :] - place[:, None]) / widest
        ordered = torch.tensor(shape.ordered)[:, None, None]
        self.register_buffer("distance", torch.where(ordered, apart, 0.0), persistent=False)
        # Values move little before anything is learned.
        self.base = nn.Parameter(torch.where(ordered, -6.0 * apart.abs(), torch.eye(widest)) / REACH)
        closed = torch.tensor([[slot >= values for slot in range(widest)] for values in shape.values])
        self.register_buffer("closed", closed, persistent=False)
        self.register_buffer("never_missing", ~torch.tensor(shape.missing), persistent=False)

    def forward(self, hidden: Tensor, weights: StepWeights) -> Chains:
        """Chains of each row of (rows, wide)."""
        rows, channels, blocks = len(hidden), len(self.shape.sizes), len(self.shape.blocks)
        start = self.start(hidden).view(rows, channels, -1).masked_fill(self.closed, -torch.inf).softmax(dim=2)
        pull = self.pull(hidden).view(rows, blocks, channels, 1, -1)
        stay, spread, drift = self.bend(hidden).view(rows, blocks, channels, 3, 1, 1).unbind(3)
        still = torch.eye(self.shape.widest, device=hidden.device)
        bent = 2 * stay * still + REACH * (spread * self.distance.abs() + drift * self.distance)
        logits = REACH * self.base + pull + bent
        move = logits.masked_fill(self.closed[:, None, :], -torch.inf).softmax(dim=4)
        seen = torch.sigmoid(self.seen(hidden).view(rows, channels, -1)).masked_fill(self.never_missing[:, None], 1.0)
        into = seen[:, :, 1:].view(rows, channels, blocks, 2).transpose(1, 2)  # chance to be seen next
        seen_move = torch.stack([1 - into, into], dim=4)
        return Chains(self.shape, weights, start=start, move=move, seen_start=seen[:, :, 0], seen_move=seen_move)


class States(Courses):
    """One hidden chain of states a window; the channels of a step are independent given its state and the latent.

    start: (rows, states). move: (rows, states, states). emit: (rows, states, channels, widest + 1).
    """

    def __init__(self, shape: SequenceShape, weights: StepWeights, start: Tensor, move: Tensor, emit: Tensor) -> None:
        self.shape = shape
        self.weights = weights
        self._start, self._move, self._emit = start, move, emit

    @cached_property
    def _occupied(self) -> Tensor:
        """Chance of each state in each step, (rows, steps, states)."""
        steps = [self._start]
        for _ in range(self.shape.steps - 1):
            steps.append(_advance(steps[-1], self._move))
        return torch.stack(steps, dim=1)

    @cached_property
    def _flat(self) -> Tensor:
        slots = torch.as_tensor(self.shape.slots, device=self._emit.device)
        return self._emit.flatten(2)[:, :, slots]  # (rows, states, bins)

    @cached_property
    def levels(self) -> Tensor:  # noqa: D102
        return torch.bmm(self._occupied, self._flat)

    def _crossed(self, joint: Tensor) -> Tensor:
        """Tables of two steps whose states have this joint distribution, (rows, states, states)."""
        after = torch.bmm(joint, self._emit.flatten(2)).view_as(self._emit)
        return torch.einsum("rsca,rscb->rcab", self._emit, after)

    def transitions(self) -> Tensor:  # noqa: D102
        begun = (self._occupied[:, :-1] * self.weights.moves[:, :, None]).sum(dim=1)
        return self._crossed(begun[:, :, None] * self._move)

    def ends(self) -> Tensor:  # noqa: D102
        path = torch.diag_embed(self._start)
        joint = torch.zeros_like(path)
        for step in range(1, self.shape.steps):
            path = torch.bmm(path, self._move)
            joint = joint + path * self.weights.last[:, step, None, None]
        # In a window of one step the first and the last are the same draw.
        single = torch.einsum("rs,rscb->rcb", self._start * self.weights.last[:, :1], self._emit)
        return self._crossed(joint) + torch.diag_embed(single)

    def together(self) -> tuple[Tensor, Tensor]:  # noqa: D102
        return self._flat, (self._occupied * self.weights.average[:, :, None]).sum(dim=1)

    def within(self) -> Tensor:  # noqa: D102
        values, missing = self._emit[..., :-1], self._emit[..., -1:]
        inside = _nested_sets(self.shape).to(values)  # (channels, sets, widest)
        # (rows, sets of all channels, states)
        allowed = (torch.einsum("rscv,cgv->rscg", values, inside) + missing).flatten(2).transpose(1, 2)
        state = self._start[:, None, :] * allowed
        total = state.sum(dim=2) * self.weights.last[:, :1]
        for step in range(1, self.shape.steps):
            state = torch.bmm(state, self._move) * allowed
            total = total + state.sum(dim=2) * self.weights.last[:, step, None]
        return total.view(len(total), len(self.shape.sizes), -1)

    def observed(self) -> Tensor:  # noqa: D102
        # Not a table of event streams: an event has all its channels, or says that one is missing.
        return self._start.new_zeros(len(self._start), len(self.shape.sizes), COUNT_BUCKETS)

    def draw(self, random: torch.Generator) -> Tensor:  # noqa: D102
        state = _choose(self._start, random)
        missing = torch.tensor(self.shape.values, device=state.device)
        steps = []
        for step in range(self.shape.steps):
            if step:
                state = _choose(_row(self._move, state), random)
            slot = _choose(_row(self._emit.flatten(2), state).view(len(state), len(missing), -1), random)
            steps.append(torch.minimum(slot, missing))
        return torch.stack(steps, dim=1)

    def relaxed(self, random: torch.Generator) -> Tensor:  # noqa: D102
        state = straight_through(self._start, random)
        steps = []
        for step in range(self.shape.steps):
            if step:
                state = straight_through(_advance(state, self._move), random)
            steps.append(straight_through(torch.einsum("rs,rscb->rcb", state, self._emit), random))
        return self._relaxed(steps)


class StateHead(nn.Module):
    """Hidden features -> states. A latent changes where the chain goes and tilts what every state emits."""

    closed: Tensor

    def __init__(self, wide: int, shape: SequenceShape) -> None:
        super().__init__()
        self.shape = shape
        slots = len(shape.sizes) * (shape.widest + 1)
        self.start = nn.Linear(wide, shape.states)
        self.pull = nn.Linear(wide, shape.states)
        self.tilt = nn.Linear(wide, slots)
        shared = 0.1 * torch.randn(shape.states, shape.states) + 2 * torch.eye(shape.states)
        self.move = nn.Parameter(shared / REACH)
        self.emit = nn.Parameter(torch.randn(shape.states, slots) / REACH)
        closed = torch.ones(slots, dtype=torch.bool)
        closed[torch.from_numpy(shape.slots)] = False
        self.register_buffer("closed", closed.view(len(shape.sizes), -1), persistent=False)

    def forward(self, hidden: Tensor, weights: StepWeights) -> States:
        """States of each row of (rows, wide)."""
        rows, states = len(hidden), self.shape.states
        move = (REACH * self.move + self.pull(hidden)[:, None, :]).softmax(dim=2)
        logits = (REACH * self.emit + self.tilt(hidden)[:, None, :]).view(rows, states, len(self.shape.sizes), -1)
        emit = logits.masked_fill(self.closed, -torch.inf).softmax(dim=3)
        return States(self.shape, weights, self.start(hidden).softmax(dim=1), move, emit)


def make_head(wide: int, shape: SequenceShape) -> ChainHead | StateHead:
    """The head of a shape, for hidden features of so many columns."""
    return ChainHead(wide, shape) if shape.kind == "chains" else StateHead(wide, shape)


def _nested_sets(shape: SequenceShape) -> Tensor:
    """Which value bins of each channel are in which set, (channels, 2 * EXTREME_GROUPS + 1, widest).

    No bin; the bins of the lowest group, of the two lowest, ... all; of the highest group, of the two highest, ... all.
    """
    bins = np.arange(shape.widest)
    group = np.array([extreme_group(bins, values) for values in shape.values])[:, None, :]  # (channels, 1, widest)
    number = np.arange(EXTREME_GROUPS)[None, :, None]
    lowest, highest = group <= number, group >= EXTREME_GROUPS - 1 - number
    return torch.from_numpy(np.concatenate([np.zeros_like(lowest[:, :1]), lowest, highest], axis=1))


def _advance(chance: Tensor, move: Tensor) -> Tensor:
    """One step of a chain: (..., states), (..., states, states)."""
    return torch.matmul(chance[..., None, :], move).squeeze(-2)


def _product(moves: tuple[Tensor, ...], sequence: list[int]) -> Tensor:
    """The product of moves in the order of `sequence`, runs of one move by repeated squaring."""
    result: Tensor | None = None
    for block in sorted(set(sequence)):
        power, left = moves[block], sequence.count(block)
        while left:
            if left & 1:
                result = power if result is None else torch.matmul(result, power)
            left >>= 1
            if left:
                power = torch.matmul(power, power)
    assert result is not None
    return result


def _with_missing(both: Tensor, out_of: Tensor, into: Tensor, neither: Tensor) -> Tensor:
    """A table with a last row and column for missing, (..., widest + 1, widest + 1)."""
    top = torch.cat([both, out_of[..., None]], dim=-1)
    bottom = torch.cat([into, neither[..., None]], dim=-1)
    return torch.cat([top, bottom[..., None, :]], dim=-2)


def straight_through(chance: Tensor, random: torch.Generator) -> Tensor:
    """A draw over the last axis as an indicator, whose gradient is that of the chances. Source: Bengio et al. 2013."""
    drawn = nn.functional.one_hot(_choose(chance.detach().clamp(min=0), random), chance.shape[-1]).to(chance.dtype)
    return drawn + chance - chance.detach()


def _choose(chance: Tensor, random: torch.Generator) -> Tensor:
    """A categorical draw over the last axis."""
    drawn = torch.multinomial(chance.reshape(-1, chance.shape[-1]), 1, generator=random)
    return drawn.view(chance.shape[:-1])


def _row(move: Tensor, state: Tensor) -> Tensor:
    """The row of a (..., states, anything) tensor that a (...) state points to."""
    index = state[..., None, None].expand(*state.shape, 1, move.shape[-1])
    return move.gather(-2, index).squeeze(-2)
