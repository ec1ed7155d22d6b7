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
            steps.append(advance(steps[-1], self._move))
        return torch.stack(steps, dim=1)

    @cached_property
    def _flat(self) -> Tensor:
        """(rows, states, bins)."""
        return in_slots(self._emit, self.shape)

    @cached_property
    def levels(self) -> Tensor:  # noqa: D102
        return torch.bmm(self._occupied, self._flat)

    def _crossed(self, joint: Tensor) -> Tensor:
        """Tables of two steps whose states have this joint distribution, (rows, states, states)."""
        after = torch.bmm(joint, self._emit.flatten(2)).view_as(self._emit)
        return torch.einsum("rsca,rscb->rcab", self._emit, after)

    def transitions(self, parts: int) -> Tensor:  # noqa: D102
        begun = (self._occupied[:, :-1] * self.weights.moves[:, :, None]).sum(dim=1)
        return mean_of_parts(self._crossed(begun[:, :, None] * self._move), parts)

    def ends(self, parts: int) -> Tensor:  # noqa: D102
        # Chance that a window goes from a state and ends in another, from the last step back.
        one = torch.eye(self.shape.states, device=self._move.device)
        lasts = self.weights.last[:, :, None, None]
        onward = lasts[:, -1] * one
        for step in range(self.shape.steps - 2, 0, -1):
            onward = torch.baddbmm(lasts[:, step] * one, self._move, onward)
        joint = self._start[:, :, None] * torch.bmm(self._move, onward)
        # In a window of one step the first and the last are the same draw.
        single = torch.einsum("rs,rscb->rcb", self._start * self.weights.last[:, :1], self._emit)
        return mean_of_parts(self._crossed(joint) + torch.diag_embed(single), parts)

    def together(self) -> tuple[Tensor, Tensor]:  # noqa: D102
        return self._flat, (self._occupied * self.weights.average[:, :, None]).sum(dim=1)

    def within(self) -> Tensor:  # noqa: D102
        return self._all_allowed[0]

    def unseen(self) -> Tensor:  # noqa: D102
        return self._all_allowed[1]

    @cached_property
    def _all_allowed(self) -> tuple[Tensor, Tensor]:
        """Chance that all steps of a window stay in each set, (rows, channels, sets), and that all miss a value."""
        values, missing = self._emit[..., :-1], self._emit[..., -1]
        inside = nested_sets(self.shape).to(values)  # (channels, sets, widest)
        allowed = torch.einsum("rscv,cgv->rscg", values, inside) + missing[..., None]
        # Of one step, given its state: (rows, states, sets of all channels and channels).
        allowed = torch.cat([allowed.flatten(2), missing], dim=2)
        lasts = self.weights.last[:, :, None, None]
        chance = lasts[:, -1] * allowed
        for step in range(self.shape.steps - 2, -1, -1):
            chance = torch.baddbmm(lasts[:, step].expand_as(chance), self._move, chance) * allowed
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
            yield row_of(self._emit.flatten(2), state).view(len(state), len(self.shape.values), -1)

    def relaxed(self, random: torch.Generator) -> Tensor:  # noqa: D102
        state = straight_through(self._start, random)
        steps = []
        for step in range(self.shape.steps):
            if step:
                state = straight_through(advance(state, self._move), random)
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
        self.move = nn.Parameter(shared / _REACH)
        self.emit = nn.Parameter(torch.randn(shape.states, slots) / _REACH)
        closed = torch.ones(slots, dtype=torch.bool)
        closed[torch.from_numpy(shape.slots)] = False
        self.register_buffer("closed", closed.view(len(shape.sizes), -1), persistent=False)

    def forward(self, hidden: Tensor, noise: Tensor, weights: StepWeights) -> States:  # noqa: ARG002 (one interface)
        """States of each row of (rows, wide); they need no noise of their own."""
        rows, states = len(hidden), self.shape.states
        move = (_REACH * self.move + self.pull(hidden)[:, None, :]).softmax(dim=2)
        shared = (_REACH * self.emit).masked_fill(self.closed.flatten(), -torch.inf)
        logits = (shared + self.tilt(hidden)[:, None, :]).view(rows, states, len(self.shape.sizes), -1)
        emit = softmax_of_few(logits)
        return States(self.shape, weights, self.start(hidden).softmax(dim=1), move, emit)
