"""The sequence head of event streams: one hidden chain of states, which all channels of a step share."""

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor, nn

from common.data.queries import COUNT_BUCKETS
from common.models.sequences import (
    Courses,
    SequenceShape,
    StepWeights,
    advance,
    choose,
    in_slots,
    mean_of_parts,
    nested_sets,
    row_of,
    softmax_of_few,
    straight_through,
)

_REACH = 10.0
"""Parameters that all latents share are multiplied by it: a step of the optimiser moves each by the learning rate, and
a few hundred steps must take a logit all the way to a sharp transition."""
_LEAST = 1e-12


class States(Courses):
    """One hidden chain of states a window; the channels of a step are independent given its state and the latent.

    start: (rows, states). move: (rows, states, states). emit: (rows, states, channels, widest + 1). opening: (rows,
    states, widest + 1), what the channel `shape.gap` has in the first step instead; None without such a channel.
    """

    def __init__(
        self,
        shape: SequenceShape,
        weights: StepWeights,
        start: Tensor,
        move: Tensor,
        emit: Tensor,
        opening: Tensor | None = None,
    ) -> None:
        self.shape = shape
        self.weights = weights
        self._start, self._move, self._emit = start, move, emit
        self._first = emit
        if shape.gap is not None and opening is not None:
            before, after = emit[:, :, : shape.gap], emit[:, :, shape.gap + 1 :]
            self._first = torch.cat([before, opening[:, :, None], after], dim=2)

    @cached_property
    def _occupied(self) -> Tensor:
        """Chance of each state in each step, (rows, steps, states)."""
        steps = [self._start]
        for _ in range(self.shape.steps - 1):
            steps.append(advance(steps[-1], self._move))
        return torch.stack(steps, dim=1)

    @cached_property
    def _flat(self) -> tuple[Tensor, Tensor]:
        """What states emit in the first step and in later ones, (rows, states, bins) each."""
        return in_slots(self._first, self.shape), in_slots(self._emit, self.shape)

    @cached_property
    def levels(self) -> Tensor:  # noqa: D102
        first, later = self._flat
        return torch.cat([torch.bmm(self._occupied[:, :1], first), torch.bmm(self._occupied[:, 1:], later)], dim=1)

    def _crossed(self, before: Tensor, joint: Tensor) -> Tensor:
        """Tables of two steps: what the states of one emit, (rows, states, channels, widest + 1), and of a later one.

        joint: (rows, states, states), how likely both states are; given the first, if `before` says how likely that is.
        """
        after = torch.bmm(joint, self._emit.flatten(2)).view_as(self._emit)
        return torch.einsum("rsca,rscb->rcab", before, after)

    def transitions(self, parts: int) -> Tensor:  # noqa: D102
        begun = (self._occupied[:, :-1] * self.weights.moves[:, :, None])[..., None, None]
        before = begun[:, 0] * self._first + begun[:, 1:].sum(dim=1) * self._emit
        return mean_of_parts(self._crossed(before, self._move), parts)

    def ends(self, parts: int) -> Tensor:  # noqa: D102
        # Chance that a window goes from a state and ends in another, from the last step back.
        one = torch.eye(self.shape.states, device=self._move.device)
        lasts = self.weights.last[:, :, None, None]
        onward = lasts[:, -1] * one
        for step in range(self.shape.steps - 2, 0, -1):
            onward = torch.baddbmm(lasts[:, step] * one, self._move, onward)
        joint = self._start[:, :, None] * torch.bmm(self._move, onward)
        # In a window of one step the first and the last are the same draw.
        single = torch.einsum("rs,rscb->rcb", self._start * self.weights.last[:, :1], self._first)
        return mean_of_parts(self._crossed(self._first, joint) + torch.diag_embed(single), parts)

    def together(self) -> tuple[Tensor, Tensor]:  # noqa: D102
        first, later = self._flat
        held = self._occupied * self.weights.average[:, :, None]
        weights = held.sum(dim=1)
        # In the first step one channel alone is another: given a state, a mean of steps keeps channels independent.
        share = held[:, 0] / weights.clamp(min=_LEAST)
        return torch.lerp(later, first, share[:, :, None]), weights

    def within(self) -> Tensor:  # noqa: D102
        return self._all_allowed[0]

    def unseen(self) -> Tensor:  # noqa: D102
        return self._all_allowed[1]

    @cached_property
    def _all_allowed(self) -> tuple[Tensor, Tensor]:
        """Chance that all steps of a window stay in each set, (rows, channels, sets), and that all miss a value."""
        inside = nested_sets(self.shape).to(self._emit)  # (channels, sets, widest)
        first, later = _allowed(self._first, inside), _allowed(self._emit, inside)
        lasts = self.weights.last[:, :, None, None]
        chance = lasts[:, -1] * later
        for step in range(self.shape.steps - 2, -1, -1):
            chance = torch.baddbmm(lasts[:, step].expand_as(chance), self._move, chance) * (later if step else first)
        total = torch.bmm(self._start[:, None, :], chance).squeeze(1)
        sets = inside.shape[0] * inside.shape[1]
        return total[:, :sets].view(len(total), *inside.shape[:2]), total[:, sets:]

    def observed(self) -> Tensor:  # noqa: D102
        # Not a table of event streams: an event has all its channels, or says that one is missing.
        return self._start.new_zeros(len(self._start), len(self.shape.sizes), COUNT_BUCKETS)

    def draw(self, random: torch.Generator) -> Tensor:  # noqa: D102
        return torch.stack([self.shape.drawn(step, random) for step in self._course(random)], dim=1)

    def settled(self, random: torch.Generator) -> Tensor:  # noqa: D102
        return torch.stack(list(self._course(random)), dim=1)

    def _course(self, random: torch.Generator) -> Iterator[Tensor]:
        """What a drawn state of each step emits, (rows, channels, widest + 1)."""
        state = choose(self._start, random)
        for step in range(self.shape.steps):
            if step:
                state = choose(row_of(self._move, state), random)
            emit = self._emit if step else self._first
            yield row_of(emit.flatten(2), state).view(len(state), len(self.shape.values), -1)

    def relaxed(self, random: torch.Generator) -> Tensor:  # noqa: D102
        state = straight_through(self._start, random)
        steps = []
        for step in range(self.shape.steps):
            if step:
                state = straight_through(advance(state, self._move), random)
            emit = self._emit if step else self._first
            steps.append(straight_through(torch.einsum("rs,rscb->rcb", state, emit), random))
        return self._relaxed(steps)


def _allowed(emit: Tensor, inside: Tensor) -> Tensor:
    """Chance of a step to stay in each set of its channel and to miss a value, given its state.

    Args:
        emit: (rows, states, channels, widest + 1).
        inside: (channels, sets, widest).

    Returns:
        (rows, states, sets of all channels, then channels).
    """
    values, missing = emit[..., :-1], emit[..., -1]
    allowed = torch.einsum("rscv,cgv->rscg", values, inside) + missing[..., None]
    return torch.cat([allowed.flatten(2), missing], dim=2)


class StateHead(nn.Module):
    """Hidden features -> states. A latent changes where the chain goes and tilts what every state emits.

    What nobody has, such as a first event with a time since the one before, no parameters can make it emit.
    """

    closed: Tensor
    closed_at_first: Tensor

    def __init__(self, wide: int, shape: SequenceShape) -> None:
        super().__init__()
        self.shape = shape
        slots = len(shape.sizes) * (shape.widest + 1)
        self.start = nn.Linear(wide, shape.states)
        self.pull = nn.Linear(wide, shape.states)
        self.tilt = nn.Linear(wide, slots)
        shared = 0.1 * torch.randn(shape.states, shape.states) + 2 * torch.eye(shape.states)
        self.move = nn.Parameter(shared / _REACH)
        self.emit = nn.Parameter(torch.randn(shape.states, slots) / _REACH)
        closed = torch.ones(slots, dtype=torch.bool)
        closed[torch.from_numpy(shape.slots)] = False
        closed = closed.view(len(shape.sizes), -1)
        closed_at_first = closed.clone()
        if shape.gap is not None:
            closed[shape.gap, -1] = True
            closed_at_first[shape.gap, :-1] |= not shape.late
        self.register_buffer("closed", closed, persistent=False)
        self.register_buffer("closed_at_first", closed_at_first, persistent=False)

    def forward(self, hidden: Tensor, noise: Tensor, weights: StepWeights) -> States:  # noqa: ARG002 (one interface)
        """States of each row of (rows, wide); they need no noise of their own."""
        shape, channels = self.shape, len(self.shape.sizes)
        move = (_REACH * self.move + self.pull(hidden)[:, None, :]).softmax(dim=2)
        shared = (_REACH * self.emit).view(shape.states, channels, -1)
        tilt = self.tilt(hidden).view(len(hidden), 1, channels, -1)
        emit = softmax_of_few(shared.masked_fill(self.closed, -torch.inf) + tilt)
        opening = None
        if shape.gap is not None:
            first = shared[:, shape.gap].masked_fill(self.closed_at_first[shape.gap], -torch.inf)
            opening = softmax_of_few(first + tilt[:, :, shape.gap])
        return States(shape, weights, self.start(hidden).softmax(dim=1), move, emit, opening)
