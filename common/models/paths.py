"""The sequence head of regular grids: courses that follow a random path, seen now and then.

A unit's latent holds, beside what its record is made of, a path: for each channel a level and some autoregressive
courses, from white noise to one that hardly moves within a window, and rhythms, which come round every so many steps. A
small network turns them step by step into a position and a sharpness on each channel's scale of bins, and into the
chance that a step is seen. Given the path, the values of different steps and channels are independent, so tables are
matrix products; whatever hangs together does so through the path: channels in one step, a channel and its past, a
course and the record. A gap forgets no level.

Being seen is a chain of its own, since a reading makes another in the next step likely or unlikely.
"""

from functools import cached_property
from typing import Final

import torch
from torch import Tensor, nn

from common.data.queries import COUNT_BUCKETS
from common.models.sequences import (
    FEWEST_SLOTS,
    Courses,
    SequenceShape,
    StepWeights,
    advance,
    choose,
    in_slots,
    nested_sets,
    row_of,
    straight_through,
    with_missing,
)

KEPT: Final = (0.0, 0.6, 0.85, 0.96)
"""How much of each kind of course is left after one step: its correlation with the next."""

RHYTHMS: Final = (2, 3, 4, 6, 8, 12)
"""Steps from one round to the next, of those that fit in a window: readings may come every four hours."""

REACH: Final = 3.0
"""Sharpness and steepness are learned as the exponential of so many times a parameter.

They must change by factors within a few hundred steps.
"""

FIRST_SPREAD: Final = 0.05
"""Variance of a value around its position before anything is learned, of a channel's variance of 1."""

_FEATURES = 80
_WAVES = 8
_SHARPEST = 5.0
# Before anything is learned, features move nothing and courses are their channels' own.
_FIRST_TILT = 0.1
_FIRST_OF_OTHERS = 0.1
_FIRST_SEEN = 0.4


def path_noise(shape: SequenceShape) -> int:
    """Standard normals that the path of a row needs.

    Two levels a channel, and two of each kind of course in a step; two for the phase of each rhythm.
    """
    return (1 + shape.steps * len(KEPT)) * 2 * len(shape.sizes) + 2 * len(rhythms_of(shape))


def rhythms_of(shape: SequenceShape) -> tuple[int, ...]:
    """Rhythms that fit in a window."""
    return tuple(steps for steps in RHYTHMS if steps <= shape.steps)


class Paths(Courses):
    """Every channel follows its path, and a chain says where it is seen; independent given the latent.

    values: (rows, steps, channels, widest), of the value in each step. seen_start: (rows, channels). seen_moves: (rows,
    steps - 1, channels, 2, 2), from not seen or seen.
    """

    def __init__(
        self, shape: SequenceShape, weights: StepWeights, values: Tensor, seen_start: Tensor, seen_moves: Tensor
    ) -> None:
        self.shape = shape
        self.weights = weights
        self._values = values
        self._seen_start = torch.stack([1 - seen_start, seen_start], dim=2)
        self._seen_moves = seen_moves.unbind(1)

    @cached_property
    def _seen(self) -> Tensor:
        """(rows, steps, channels, 2)."""
        path = [self._seen_start]
        for move in self._seen_moves:
            path.append(advance(path[-1], move))
        return torch.stack(path, dim=1)

    @cached_property
    def levels(self) -> Tensor:  # noqa: D102 (as in the base)
        cube = torch.cat([self._values * self._seen[..., 1:], self._seen[..., :1]], dim=3)
        return in_slots(cube, self.shape)

    def transitions(self, parts: int) -> Tensor:  # noqa: D102
        pairs = self._seen[:, :-1, :, :, None] * torch.stack(self._seen_moves, dim=1)
        return self._crossed(self._values, pairs * self.weights.moves[:, :, None, None, None], parts)

    def ends(self, parts: int) -> Tensor:  # noqa: D102
        pair = torch.diag_embed(self._seen_start)
        for move in self._seen_moves:
            pair = torch.matmul(pair, move)
        return self._crossed(self._values[:, [0, -1]], pair[:, None], parts)

    def _crossed(self, values: Tensor, pairs: Tensor, parts: int) -> Tensor:
        """Mean tables of two steps, one after the other, summed over the steps.

        Args:
            values: (rows, steps, channels, widest).
            pairs: (rows, steps - 1, channels, 2, 2), chances that the two steps are seen, or what they weigh by.
            parts: of the rows.
        """

        def side(one: Tensor) -> Tensor:
            """(parts, channels, rows of the part and their steps, ...)."""
            return one.reshape(parts, -1, *one.shape[2:]).transpose(1, 2)

        # All steps of a part one after the other; a row's last and the next row's first weigh nothing together.
        steps = side(values).contiguous()
        weights = side(nn.functional.pad(pairs.flatten(3), (0, 0, 0, 0, 0, 1)))[:, :, :-1]
        first, second = steps[:, :, :-1], steps[:, :, 1:]
        neither, into, out_of, both = torch.split(weights, 1, dim=3)
        table = with_missing(
            torch.matmul((first * both).transpose(2, 3), second),
            torch.matmul(out_of.transpose(2, 3), first).squeeze(2),
            torch.matmul(into.transpose(2, 3), second).squeeze(2),
            neither.sum(dim=(2, 3)),
        )
        return table / (len(values) // parts)

    def together(self) -> tuple[Tensor, Tensor]:  # noqa: D102
        return self.levels, self.weights.average

    def within(self) -> Tensor:  # noqa: D102
        return self._all_allowed[..., :-1]

    def unseen(self) -> Tensor:  # noqa: D102
        return self._all_allowed[..., -1]

    @cached_property
    def _all_allowed(self) -> Tensor:
        """Chance that no value leaves each of the nested sets, then that there is none; (rows, channels, sets + 1)."""
        inside = torch.einsum("rtcv,cgv->rtcg", self._values, nested_sets(self.shape).to(self._values))
        inside = nn.functional.pad(inside, (0, 1))
        # Of one step, not seen or seen: (rows, channels, 2, sets + 1).
        *before, chance = torch.stack([torch.ones_like(inside), inside], dim=3).unbind(1)
        for move, allowed in zip(reversed(self._seen_moves), reversed(before), strict=True):
            chance = torch.matmul(move, chance) * allowed
        return advance(self._seen_start, chance)

    def observed(self) -> Tensor:  # noqa: D102
        # Chance of each number of values so far: not seen last, from 0; seen last, from 1; (rows, channels, numbers).
        hidden, shown = (one[..., None] for one in self._seen_start.unbind(2))
        for move in self._seen_moves:
            (stay, begin), (end, again) = (row.unbind(2) for row in move[..., None].unbind(2))
            hidden, shown = nn.functional.pad(hidden, (0, 1)), nn.functional.pad(shown, (1, 0))
            hidden, shown = hidden * stay + shown * end, hidden * begin + shown * again
        steps = self.shape.steps
        bucket = torch.arange(steps + 1, device=shown.device) * COUNT_BUCKETS // (steps + 1)
        buckets = nn.functional.one_hot(bucket, COUNT_BUCKETS).to(shown.dtype)
        return hidden @ buckets[:-1] + shown @ buckets[1:]

    def draw(self, random: torch.Generator) -> Tensor:  # noqa: D102
        values, missing = choose(self._values, random), torch.tensor(self.shape.values, device=self._values.device)
        return torch.where(self._draw_seen(random), values, missing)

    def settled(self, random: torch.Generator) -> Tensor:  # noqa: D102
        seen = self._draw_seen(random)[..., None]
        return torch.cat([self._values * seen, 1.0 * ~seen], dim=3)

    def _draw_seen(self, random: torch.Generator) -> Tensor:
        """Whether each step holds a value, (rows, steps, channels) bool."""
        seen = [choose(self._seen_start, random)]
        for move in self._seen_moves:
            seen.append(choose(row_of(move, seen[-1]), random))
        return torch.stack(seen, dim=1) == 1

    def relaxed(self, random: torch.Generator) -> Tensor:  # noqa: D102
        values = straight_through(self._values, random)
        seen = [straight_through(self._seen_start, random)]
        for move in self._seen_moves:
            seen.append(straight_through(advance(seen[-1], move), random))
        path = torch.stack(seen, dim=1)
        cubes = torch.cat([values * path[..., 1:], path[..., :1]], dim=3)
        return self._relaxed(list(cubes.unbind(1)))


class PathHead(nn.Module):
    """Hidden features and the noise of a path -> paths.

    Of each channel, a value's position in a step is a sum of the unit's level, its trend, the time and the path, and
    what features of all of them add; so are the log odds of being seen, in which `steepness` is how much the sum
    without features counts. `places` are the bins' own positions.
    """

    courses: Tensor
    turns: Tensor
    time: Tensor
    waves: Tensor
    ordered: Tensor
    closed: Tensor
    never_missing: Tensor

    def __init__(self, wide: int, shape: SequenceShape) -> None:
        super().__init__()
        self.shape = shape
        channels, steps, widest = len(shape.sizes), shape.steps, shape.widest
        drives = 2 * channels + _FEATURES
        self.level = nn.Linear(wide, drives)
        self.trend = nn.Linear(wide, drives)
        self.wander = nn.Linear((1 + len(KEPT)) * 2 * channels, drives, bias=False)
        self.rhythm = nn.Linear(2 * len(rhythms_of(shape)), drives, bias=False)
        self.wave = nn.Linear(min(_WAVES, steps - 1), drives, bias=False)
        self.features = nn.Sequential(nn.LayerNorm(drives), nn.GELU())
        self.shift = nn.Linear(drives, channels, bias=False)
        self.sharpen = nn.Linear(drives, channels, bias=False)
        self.tilt = nn.Linear(drives, channels * widest)
        self.seen = nn.Linear(drives, channels)
        self.seen_again = nn.Parameter(torch.zeros(channels))
        self.steepness = nn.Parameter(torch.zeros(channels))
        self.sharpness = nn.Parameter(torch.full((channels,), -float(torch.tensor(FIRST_SPREAD).log()) / REACH))
        self.places = nn.Parameter(torch.linspace(-1.5, 1.5, widest).repeat(channels, 1))
        time = torch.linspace(-1, 1, steps)
        numbers = torch.arange(1, self.wave.in_features + 1)
        closed = torch.tensor([[slot >= values for slot in range(widest)] for values in shape.values])
        self.register_buffer("courses", torch.stack([_course(kept, steps) for kept in KEPT]), persistent=False)
        turns = torch.stack([_turns(length, steps) for length in rhythms_of(shape)])
        self.register_buffer("turns", turns, persistent=False)
        self.register_buffer("time", time[:, None], persistent=False)
        self.register_buffer("waves", torch.cos(torch.pi / 2 * numbers * (time[:, None] + 1)), persistent=False)
        self.register_buffer("ordered", torch.tensor(shape.ordered), persistent=False)
        self.register_buffer("closed", closed, persistent=False)
        self.register_buffer("never_missing", ~torch.tensor(shape.missing), persistent=False)
        self._calm()

    @torch.no_grad()
    def _calm(self) -> None:
        """Each ordered channel begins with courses of its own; what features and rhythms add begins small."""
        channels = len(self.shape.sizes)
        wander = self.wander.weight.view(-1, 1 + len(KEPT), 2 * channels)
        for layer in (self.trend, self.wave):
            layer.weight[: 2 * channels] *= 0.3
        for layer in (self.shift, self.sharpen, self.seen):
            layer.weight *= _FIRST_TILT
        for drives in (slice(0, channels), slice(2 * channels, None)):
            self.rhythm.weight[drives] *= _FIRST_TILT
        tilt = self.tilt.weight.view(channels, self.shape.widest, -1)
        for channel, ordered in enumerate(self.shape.ordered):
            if ordered:
                tilt[channel] *= _FIRST_TILT
            for drive, size in ((channel, 1.0), (channels + channel, _FIRST_SEEN)):
                wander[drive] *= _FIRST_OF_OTHERS * size
                wander[drive, :, drive] = size * torch.tensor([0.5, 0.15, 0.5, 0.5, 0.5])

    def forward(self, hidden: Tensor, noise: Tensor, weights: StepWeights) -> Paths:
        """Paths of each row of (rows, wide), with (rows, shape.noise) standard normals."""
        rows, channels, steps = len(hidden), len(self.shape.sizes), self.shape.steps
        drives, features = self._follow(hidden, noise)
        position = drives[..., :channels] + self.shift(features)
        sharpness = (REACH * self.sharpness + self.sharpen(features)).clamp(max=_SHARPEST).exp() * self.ordered
        logits = self._logits(features, sharpness * position, sharpness).view(rows, steps, channels, -1)
        values = logits.softmax(dim=-1)[..., : self.shape.widest]
        odds = self._odds(drives, features)
        again = odds + self.seen_again
        # In the first step, half way between what follows a gap and what follows a reading, by how often each is.
        first = odds[:, 0] + self.seen_again * torch.sigmoid(odds[:, 0].detach())
        into = torch.stack([odds[:, 1:], again[:, 1:]], dim=3).sigmoid()
        into = into.masked_fill(self.never_missing[:, None], 1.0)  # chance to be seen next
        start = first.sigmoid().masked_fill(self.never_missing, 1.0)
        return Paths(self.shape, weights, values, start, torch.stack([1 - into, into], dim=4))

    def odds(self, hidden: Tensor, noise: Tensor) -> Tensor:
        """Log odds that each step is seen after a gap, (rows, steps, channels); of the same rows as `forward`."""
        return self._odds(*self._follow(hidden, noise))

    def _odds(self, drives: Tensor, features: Tensor) -> Tensor:
        channels = len(self.shape.sizes)
        odds: Tensor = self.seen(features) + (REACH * self.steepness).exp() * drives[..., channels : 2 * channels]
        return odds

    def _follow(self, hidden: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """What moves a row in each step, (rows, steps, drives), and the features of it."""
        rows, channels, steps = len(hidden), len(self.shape.sizes), self.shape.steps
        phases, levels, fresh = noise.tensor_split([2 * len(self.turns), 2 * (len(self.turns) + channels)], dim=1)
        # (rows, steps, a level and kinds of courses, two a channel)
        courses = torch.einsum("kts,rskd->rtkd", self.courses, fresh.reshape(rows, steps, len(KEPT), -1))
        courses = torch.cat([levels[:, None, None].expand(-1, steps, -1, -1), courses], dim=2)
        drives = self.level(hidden)[:, None] + self.time * self.trend(hidden)[:, None]
        drives = drives + self.wander(courses.flatten(2)) + self.wave(self.waves)
        phases = nn.functional.normalize(phases.view(rows, -1, 2), dim=2)
        rhythms = torch.einsum("rki,ktij->rtkj", phases, self.turns)  # (rows, steps, rhythms, 2)
        drives = drives + self.rhythm(rhythms.flatten(2))
        return drives, self.features(drives)

    def _logits(self, features: Tensor, pulls: Tensor, sharpness: Tensor) -> Tensor:
        """What features say of each value, and a bell around the position: sharpness * place * (position - place / 2).

        The bell is linear in the pull, sharpness * position, and in the sharpness: one product has it all.

        Args:
            features: (rows, steps, features).
            pulls: (rows, steps, channels).
            sharpness: (rows, steps, channels).

        Returns:
            (rows, steps, channels * slots), -inf where a channel has no such value; as many slots as a softmax is fast
            with.
        """
        channels, widest = self.places.shape
        places = (self.places, -(self.places**2) / 2)
        bells = [torch.block_diag(*part[:, :, None]) for part in places]  # type: ignore[no-untyped-call]
        weight = torch.cat([self.tilt.weight, *bells], dim=1).view(channels, widest, -1)
        bias = self.tilt.bias.view(channels, widest).masked_fill(self.closed, -torch.inf)
        none = max(FEWEST_SLOTS - widest, 0)
        weight = nn.functional.pad(weight, (0, 0, 0, none)).flatten(0, 1)
        bias = nn.functional.pad(bias, (0, none), value=-torch.inf).flatten()
        return nn.functional.linear(torch.cat([features, pulls, sharpness], dim=2), weight, bias)


def _course(kept: float, steps: int) -> Tensor:
    """From white noise to a stationary autoregressive course of variance 1, (steps, steps)."""
    step = torch.arange(steps)
    since = step[:, None] - step
    fresh = torch.where(step == 0, 1.0, (1 - kept**2) ** 0.5)
    return torch.where(since >= 0, kept ** since.clamp(min=0), 0.0) * fresh


def _turns(length: int, steps: int) -> Tensor:
    """What turns a phase, its cosine and sine, on by one round in so many steps, (steps, 2, 2); variances become 1."""
    angle = 2 * torch.pi * torch.arange(steps) / length
    cosine, sine = 2**0.5 * angle.cos(), 2**0.5 * angle.sin()
    return torch.stack([torch.stack([cosine, sine], dim=1), torch.stack([-sine, cosine], dim=1)], dim=1)
