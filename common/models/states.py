"""The sequence head of event streams: one hidden chain of states, which all channels of a step share."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from common.data.queries import COUNT_BUCKETS
from common.models.sequences import (
    Courses,
    SequenceShape,
    StepWeights,
    advance,
    in_slots,
    indicator,
    mean_of_parts,
    nested_sets,
    softmax_of_few,
    straight_through,
)

_REACH = 10.0
"""Parameters that all latents share are multiplied by it: a step of the optimiser moves each by the learning rate, and
a few hundred steps must take a logit all the way to a sharp transition."""
_LEAST = 1e-12
_HABIT, _KEPT = -2.0, -4.0
"""Log odds, at first, that a step shows a habit, and that the next step has it too: where no table of two steps says
how often values stay, they do not."""


@dataclass(frozen=True)
class Habits:
    """A value of each channel without order that steps come back to: kept from step to step, or drawn anew.

    States that many channels share can hardly say that a weekday mostly stays what it was; a chain of its own can, and
    costs the tables of two steps one more term.

    share: (rows, channels), how often a step shows it and not what its state emits; 0 where a channel has an order.
    kept: (rows, channels), chance that the next step has it too. law: (rows, channels, widest + 1), of a new one, so
    of that of every step.
    """

    share: Tensor
    kept: Tensor
    law: Tensor

    def blend(self, emit: Tensor) -> Tensor:
        """What states emit if steps show habits now and then, (rows, states, channels, widest + 1)."""
        return torch.lerp(emit, self.law[:, None], self.share[:, None, :, None])

    def again(self, both: Tensor) -> Tensor:
        """What two steps have in common beyond their states, (rows, channels, widest + 1, widest + 1).

        both: (rows, channels), how likely there are two whose habit is the same because it was kept.
        """
        apart = torch.diag_embed(self.law) - self.law[..., :, None] * self.law[..., None, :]
        return (self.share**2 * both)[..., None, None] * apart

    def course(self, draw: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        """The habit of one step after another as an indicator, (rows, channels, widest + 1).

        draw: indicators over the last axis, from chances.
        """
        value = draw(self.law)
        while True:
            yield value
            keeps = draw(torch.stack([self.kept, 1 - self.kept], dim=-1))
            value = keeps[..., :1] * value + keeps[..., 1:] * draw(self.law)

    def shown(self, chances: Tensor, value: Tensor) -> Tensor:
        """What a step shows, whose state has these chances and whose habit is that, (rows, channels, widest + 1)."""
        return torch.lerp(chances, value, self.share[..., None])


class States(Courses):
    """One hidden chain of states a window; the channels of a step are independent given its state and the latent.

    But for habits, which go on from step to step beside the states, each channel's on its own.

    start: (rows, states). move: (rows, states, states). emit: (rows, states, channels, widest + 1). opening: (rows,
    states, widest + 1), what the channel `shape.gap` has in the first step instead; None without such a channel.
    habits: None where no channel has one. What `within` and `unseen` say of a channel with habits is as if each step
    had its own: tables of extremes are of channels with an order.
    """

    def __init__(
        self,
        shape: SequenceShape,
        weights: StepWeights,
        start: Tensor,
        move: Tensor,
        emit: Tensor,
        opening: Tensor | None = None,
        *,
        habits: Habits | None = None,
    ) -> None:
        self.shape = shape
        self.weights = weights
        self._start, self._move, self._habits = start, move, habits
        self._alone, self._opening = emit, opening

    @cached_property
    def _emit(self) -> Tensor:
        """What states emit, habits among it, (rows, states, channels, widest + 1)."""
        return self._alone if self._habits is None else self._habits.blend(self._alone)

    @cached_property
    def _first(self) -> Tensor:
        """The same in the first step."""
        return self._opened(self._emit)

    def _opened(self, emit: Tensor) -> Tensor:
        gap = self.shape.gap
        if gap is None or self._opening is None:
            return emit
        return torch.cat([emit[:, :, :gap], self._opening[:, :, None], emit[:, :, gap + 1 :]], dim=2)

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
        crossed = self._crossed(before, self._move)
        if self._habits is not None:
            crossed = crossed + self._habits.again(self.weights.moves.sum(dim=1)[:, None] * self._habits.kept)
        return mean_of_parts(crossed, parts)

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
        crossed = self._crossed(self._first, joint) + torch.diag_embed(single)
        if self._habits is not None:
            steps = torch.arange(1, self.shape.steps, device=crossed.device)
            held = self._habits.kept[:, :, None] ** steps * self.weights.last[:, None, 1:]
            crossed = crossed + self._habits.again(held.sum(dim=2))
        return mean_of_parts(crossed, parts)

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
        steps = self._course(partial(indicator, random=random))
        return torch.stack([self.shape.drawn(step, random) for step in steps], dim=1)

    def settled(self, random: torch.Generator) -> Tensor:  # noqa: D102
        return torch.stack(list(self._course(partial(indicator, random=random))), dim=1)

    def relaxed(self, random: torch.Generator) -> Tensor:  # noqa: D102
        draw = partial(straight_through, random=random)
        return self._relaxed([draw(step) for step in self._course(draw)])

    def _course(self, draw: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        """Chances of each step given drawn states and habits, (rows, channels, widest + 1).

        draw: indicators over the last axis, from chances.
        """
        habits, state = self._habits, draw(self._start)
        shown = None if habits is None else habits.course(draw)
        for step in range(self.shape.steps):
            if step:
                state = draw(advance(state, self._move))
            emit = self._alone if step else self._opened(self._alone)
            chances = torch.einsum("rs,rscb->rcb", state, emit)
            yield chances if habits is None or shown is None else habits.shown(chances, next(shown))


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
    """Hidden features -> states. A latent changes where the chain goes, tilts what every state emits, and has habits.

    What nobody has, such as a first event with a time since the one before, no parameters can make it emit.
    """

    closed: Tensor
    closed_at_first: Tensor
    unordered: Tensor

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
        self.habit = nn.Linear(wide, 2 * len(shape.sizes))
        for odds, bias in zip((_HABIT, _KEPT), self.habit.bias.chunk(2), strict=True):
            nn.init.constant_(bias, odds)
        closed = torch.ones(slots, dtype=torch.bool)
        closed[torch.from_numpy(shape.slots)] = False
        closed = closed.view(len(shape.sizes), -1)
        closed_at_first = closed.clone()
        if shape.gap is not None:
            closed[shape.gap, -1] = True
            closed_at_first[shape.gap, :-1] |= not shape.late
        self.register_buffer("closed", closed, persistent=False)
        self.register_buffer("closed_at_first", closed_at_first, persistent=False)
        self.register_buffer("unordered", ~torch.tensor(shape.ordered), persistent=False)

    def forward(self, hidden: Tensor, noise: Tensor, weights: StepWeights) -> States:  # noqa: ARG002 (one interface)
        """States of each row of (rows, wide); they need no noise of their own."""
        shape, channels = self.shape, len(self.shape.sizes)
        move = (_REACH * self.move + self.pull(hidden)[:, None, :]).softmax(dim=2)
        shared = (_REACH * self.emit).view(shape.states, channels, -1)
        tilt = self.tilt(hidden).view(len(hidden), 1, channels, -1)
        emit = softmax_of_few(shared.masked_fill(self.closed, -torch.inf) + tilt)
        opening = habits = None
        if not all(shape.ordered):
            share, kept = self.habit(hidden).sigmoid().chunk(2, dim=1)
            law = softmax_of_few(tilt[:, 0].masked_fill(self.closed, -torch.inf))
            habits = Habits(share * self.unordered, kept, law)
        if shape.gap is not None:
            first = shared[:, shape.gap].masked_fill(self.closed_at_first[shape.gap], -torch.inf)
            opening = softmax_of_few(first + tilt[:, :, shape.gap])
        return States(shape, weights, self.start(hidden).softmax(dim=1), move, emit, opening, habits=habits)
