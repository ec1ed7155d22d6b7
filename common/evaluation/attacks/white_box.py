"""What the holder of the released generator can tell of a person who may have been trained on.

The generator is a mixture: given a latent and a label, a record's columns are independent. So the likelihood of a
record is a mean over latents of a product of bin probabilities, and known up to the chance of which latents were drawn.
No search for the nearest sample, of which the attacks of the literature are made, sees as much.

Windows are judged by what a latent says of a channel: in a regular grid the steps are taken to be independent, which
given the latent they are, but for when they are seen; in a stream of events each channel is taken to be a chain. A mean
over latents of the product of all channels would hang on the one sampled path that happens to lie nearest. So each
channel is laid beside the record alone: a composite likelihood, which leaves out what channels say of one another
beyond it.

A likelihood says how common a person is before it says who was trained on. So it is also calibrated: what is left is
what people as common, who certainly were not trained on, do not have.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from scipy.linalg import block_diag
from scipy.special import logsumexp, softmax
from torch import Tensor

from common.data.encoding import Grid, make_grids
from common.data.queries import Coded
from common.evaluation.attacks.coded import encode, join, take
from common.evaluation.attacks.games import MembershipAttack, assess
from common.evaluation.figures import Population
from common.models.generator import Generator, GeneratorShape, Outcome
from common.models.releases import Bins
from common.models.sequences import SequenceShape
from common.models.verdicts import one_hot
from common.study import Study

HOLDER: Final = "holder of the released generator"
LATENTS: Final = 4096

_AT_ONCE: Final = 256
"""Latents that a generator is asked about at once."""
_ROWS: Final = 1024
"""Rows that are laid beside all latents at once."""
_LEAST: Final = 1e-30
"""Chances below count as so much: what a generator rules out is 69 nats away, and 0 times infinity is 0."""
_ANY_CELL: Final = 0.1
"""Share of a bin that lies evenly in its cells, whatever the released shares say: those are noisy, and often 0."""
_CLASSES: Final = (1, 2, 4, 8, 16)
_FOLDS: Final = 2
_ITERATIONS: Final = 50
_PRIOR: Final = 2.0
"""Units that every latent class is given beforehand, spread like everybody."""
_SEARCHED: Final = 500
"""Units of each side for which a latent is searched, at most."""
_STARTS: Final = 3
_STEPS: Final = 200
_RATE: Final = 0.05


@dataclass(frozen=True)
class Published:
    """What is published of a generator; label_counts: (classes,), the estimated units of each label class."""

    generator: Generator
    bins: Bins
    label_counts: np.ndarray


@dataclass(frozen=True)
class Answers:
    """What a generator says of one label class, for some latents.

    records: (latents, record bins), chance of each bin, columns side by side.
    levels: (latents, steps, channel bins), chance of each bin in each step; None without windows.
    courses: of each channel, (latents, traits): logarithms that are summed over the traits of a course, see `traits`.
    """

    records: Tensor
    levels: Tensor | None
    courses: tuple[Tensor, ...]


def attack_generator(  # noqa: PLR0913 (who, what, how hard: all of them the caller's)
    published: Published,
    members: Population,
    controls: Population,
    reference: Population,
    study: Study,
    *,
    groups: Mapping[str, tuple[np.ndarray, np.ndarray]],
    epsilon: float | None,
    delta: float,
    seed: int,
    most: int,
    latents: int = LATENTS,
    device: torch.device,
    deep: bool = False,
) -> dict[str, MembershipAttack]:
    """Try all attacks.

    likelihood: the generator's likelihood of a unit's rows, given their labels.
    calibrated_likelihood: the same beyond what is expected of a unit that is as likely under a density of the same
        form that was fitted to the reference.
    nearest_latent: nearness of the nearest sampled latent; a step of the scale, a category and a channel weigh alike.
    nearest_latent_search: nearness after a search by gradient from the three nearest, of 500 units of each side; slow.

    The score of a unit is the mean of its rows, not the highest: a unit's weight is shared between its records, so what
    it leaves behind is spread over them, and the mean of many small traces is clearer than the largest.

    Guarantees: members and controls are scored by the same rule; the order of units does not matter.
    Edge cases: no reference -> every unit is taken to be as common as any other.

    Args:
        published: on `device`.
        members: units that were trained on.
        controls: units of the same population that were not.
        reference: others, whom the attacker knows.
        study: of the run.
        groups: by name, which members and which controls, both bool; populations beside everyone.
        epsilon: the claim, per unit; None where there is none.
        delta: likewise.
        seed: of latents and of who plays.
        most: members, and controls, that play.
        latents: that are drawn, of each label class.
        device: where to compute.
        deep: whether to search.

    Sources: Hilprecht et al. 2019 and Chen et al. 2020 (nearness to samples of a generator, calibration); Watson et al.
        2022 (difficulty calibration).
    """
    random = np.random.default_rng([seed, 0])
    sides = [_Side(side, np.sort(random.permutation(side.count)[:most]), study) for side in (members, controls)]
    answers = ask(published.generator, latents=latents, seed=seed, device=device)
    nearness = _Nearness(answers, published, study, latents=latents, seed=seed)
    calibration = _Calibration(answers, published, reference, study, random)
    said = [log_likelihood(answers, published, side.cells) for side in sides]
    scores = {
        "likelihood": [own.sum(axis=1) for own in said],
        "calibrated_likelihood": [calibration.residual(*both) for both in zip(said, _cells(sides), strict=True)],
        "nearest_latent": [nearness.sampled(cells) for cells in _cells(sides)],
    }
    attacks = {name: _assess(sides, both, groups, (epsilon, delta), seed) for name, both in scores.items()}
    if deep:
        fewer = [
            _Side(side, own.players[:_SEARCHED], study) for side, own in zip((members, controls), sides, strict=True)
        ]
        found = [nearness.searched(cells) for cells in _cells(fewer)]
        attacks["nearest_latent_search"] = _assess(fewer, found, groups, (epsilon, delta), seed)
    return attacks


class _Side:
    """Members or controls that play.

    players: (units,), which of all. units: (rows,), of each row. cells: the rows.
    """

    def __init__(self, everybody: Population, players: np.ndarray, study: Study) -> None:
        chosen = everybody.take(players)
        self.players, self.units, self.cells = players, chosen.units, encode(chosen.table, study)


def _cells(sides: Sequence[_Side]) -> list[Coded]:
    return [side.cells for side in sides]


def _assess(
    sides: Sequence[_Side],
    rows: Sequence[np.ndarray],
    groups: Mapping[str, tuple[np.ndarray, np.ndarray]],
    claim: tuple[float | None, float],
    seed: int,
) -> MembershipAttack:
    inside, outside = (mean_of_units(own, side.units) for own, side in zip(rows, sides, strict=True))
    chosen = {name: (masks[0][sides[0].players], masks[1][sides[1].players]) for name, masks in groups.items()}
    return assess(inside, outside, adversary=HOLDER, groups=chosen, epsilon=claim[0], delta=claim[1], seed=seed)


def mean_of_units(rows: np.ndarray, units: np.ndarray) -> np.ndarray:
    """The mean of each unit's rows, (units,)."""
    return np.asarray(np.bincount(units, weights=rows) / np.maximum(np.bincount(units), 1))


@torch.no_grad()
def ask(generator: Generator, *, latents: int, seed: int, device: torch.device) -> tuple[Answers, ...]:
    """What a generator says of each label class, for the same latents.

    Args:
        generator: on `device`.
        latents: how many.
        seed: of the latents.
        device: where to compute.
    """
    noise = _draw(generator.shape, latents, seed, device)
    return tuple(_ask_one(generator, noise, label) for label in range(generator.shape.classes))


def _draw(shape: GeneratorShape, latents: int, seed: int, device: torch.device) -> Tensor:
    random = torch.Generator(device=device).manual_seed(seed)
    return torch.randn(latents, shape.noise, generator=random, device=device)


def _ask_one(generator: Generator, noise: Tensor, label: int) -> Answers:
    parts = []
    for some in torch.split(noise, _AT_ONCE):
        outcome = generator(some, torch.full((len(some),), label, device=some.device))
        levels = None if outcome.courses is None else outcome.courses.levels
        parts.append(Answers(outcome.records, levels, _courses(outcome)))
    levels = [part.levels for part in parts if part.levels is not None]
    return Answers(
        torch.cat([part.records for part in parts]),
        torch.cat(levels) if levels else None,
        tuple(torch.cat(part) for part in zip(*[part.courses for part in parts], strict=True)),
    )


def _courses(outcome: Outcome) -> tuple[Tensor, ...]:
    """Logarithms of the traits of each channel's course."""
    courses, sequence = outcome.courses, outcome.shape.sequence
    if courses is None or sequence is None:
        return ()
    levels = torch.split(courses.levels, list(sequence.sizes), dim=2)
    if sequence.kind == "paths":
        return tuple(log(level).flatten(1) for level in levels)
    pairs = courses.transitions(len(outcome.records))  # (latents, channels, widest + 1, widest + 1)
    found = []
    for channel, (level, slots) in enumerate(zip(levels, _slots(sequence), strict=True)):
        pair = pairs[:, channel, slots[:, None], slots[None, :]]
        move = pair / pair.sum(dim=2, keepdim=True).clamp(min=_LEAST)
        found.append(torch.cat([log(level[:, 0]), log(move).flatten(1)], dim=1))
    return tuple(found)


def _slots(sequence: SequenceShape) -> list[np.ndarray]:
    """Where the bins of each channel lie in its padded table."""
    return np.split(sequence.slots % (sequence.widest + 1), np.cumsum(sequence.sizes)[:-1])


def traits(coded: Coded, shape: GeneratorShape, device: torch.device) -> tuple[Tensor, list[Tensor]]:
    """What rows in bins have: indicators of record bins, (rows, bins), and counts of each channel, (rows, traits).

    A course on a grid has a bin in each step; one of events has a bin in its first step, and pairs of bins in steps
    that follow one another.
    """
    records, steps = _indicators(coded, shape, device)
    if shape.sequence is None or shape.sequence.kind == "paths":
        return records, [step.flatten(1) for step in steps]
    pairs = [torch.bmm(step[:, :-1].transpose(1, 2), step[:, 1:]).flatten(1) for step in steps]
    return records, [torch.cat([step[:, 0], pair], dim=1) for step, pair in zip(steps, pairs, strict=True)]


def _indicators(coded: Coded, shape: GeneratorShape, device: torch.device) -> tuple[Tensor, list[Tensor]]:
    """Of record bins, (rows, bins), and of each channel, (rows, steps, bins)."""
    records, steps = one_hot(coded, shape)

    def tensor(values: np.ndarray) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=device)

    if steps is None or shape.sequence is None:
        return tensor(records), []
    return tensor(records), [tensor(part) for part in np.split(steps, np.cumsum(shape.sequence.sizes)[:-1], axis=2)]


def log(chance: Tensor) -> Tensor:
    """Logarithm of chances, of which none counts as 0."""
    return chance.clamp(min=_LEAST).log()


def _chunks(cells: Coded, label: int) -> list[np.ndarray]:
    """The rows of a label class, some at a time."""
    of_label = np.flatnonzero(cells.labels == label)
    return [of_label[begin : begin + _ROWS] for begin in range(0, len(of_label), _ROWS)]


@torch.no_grad()
def log_likelihood(answers: Sequence[Answers], published: Published, cells: Coded) -> np.ndarray:
    """Logarithm of each row's likelihood given its label, (rows, parts) float64: of its record, and of its window.

    A value of a record has the chance of its bin, and within the bin what the released shares give its cell. Of the
    window each channel is given the record. Without windows there is one part.

    Args:
        answers: from `ask`, by class.
        published: that was asked.
        cells: rows in fine cells.
    """
    coded = join(cells, published.bins.maps)
    found = np.zeros((len(cells.labels), 1 if cells.windows is None else 2))
    for label, own in enumerate(answers):
        records = log(own.records).T  # (bins, latents)
        for rows in _chunks(cells, label):
            indicators, courses = traits(take(coded, rows), published.generator.shape, records.device)
            record = indicators @ records  # (rows, latents)
            whole = torch.logsumexp(record, dim=1)
            found[rows, 0] = (whole - np.log(len(own.records))).cpu().double().numpy()
            for course, logs in zip(courses, own.courses, strict=True):
                beside = torch.logsumexp(record + course @ logs.T, dim=1) - whole
                found[rows, 1] += beside.cpu().double().numpy()
    found[:, 0] += _within(published, cells, coded)
    return found


def _within(published: Published, cells: Coded, coded: Coded) -> np.ndarray:
    """Logarithm of the shares of records' cells in their bins, over what they would be if bins were even; (rows,)."""
    found = np.zeros(len(cells.labels))
    for column, binning in enumerate(published.bins.binnings[: published.bins.columns]):
        number = np.bincount(binning.bin_of)[coded.records[:, column]]
        share = binning.within[cells.labels, cells.records[:, column]]
        found += np.log((1 - _ANY_CELL) * share * number + _ANY_CELL)
    return found


class LatentClasses:
    """A density of the generator's form for few real rows: some classes of people, and in each all traits apart."""

    def __init__(self, rows: np.ndarray, weights: np.ndarray, starts: np.ndarray, classes: int, seed: int) -> None:
        """Fit by expectation and maximisation.

        Args:
            rows: (rows, traits) float32, counts of traits.
            weights: (rows,), that sum to the number of units.
            starts: (groups,) int64, where the traits begin of which one is drawn at a time: a column's, a step's.
            classes: how many.
            seed: of the start.
        """
        random = np.random.default_rng(seed)
        self._starts, self._sizes = starts, np.diff(np.append(starts, rows.shape[1]))
        everybody = self._shares(weights.astype(np.float32) @ rows + np.repeat(1 / self._sizes, self._sizes))
        belongs = random.dirichlet(np.ones(classes), len(rows))
        for _ in range(_ITERATIONS if classes > 1 else 1):
            held = belongs * weights[:, None]  # (rows, classes)
            total = held.sum(axis=0) + 1
            counts = held.T.astype(np.float32) @ rows
            self.share, self.theta = np.log(total / total.sum()), np.log(self._shares(counts + _PRIOR * everybody))
            belongs = softmax(self._both(rows), axis=1)

    def _shares(self, counts: np.ndarray) -> np.ndarray:
        totals = np.add.reduceat(counts, self._starts, axis=-1)
        return np.asarray(counts / np.repeat(totals, self._sizes, axis=-1))

    def _both(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(rows @ self.theta.T.astype(np.float32) + self.share)

    def log_density(self, rows: np.ndarray) -> np.ndarray:
        """(rows,) float64; of a row that lacks the traits of some columns or steps, that of the others."""
        return np.asarray(logsumexp(self._both(rows), axis=1))


class _Calibration:
    """What the generator is expected to say of people who were not trained on, by how common they are."""

    def __init__(
        self,
        answers: Sequence[Answers],
        published: Published,
        reference: Population,
        study: Study,
        random: np.random.Generator,
    ) -> None:
        self._published = published
        cells, units = encode(reference.table, study), reference.units
        rows, weights = self._traits(cells), 1 / np.bincount(units)[units]
        starts, seed = _starts_of(published.generator.shape), int(random.integers(2**31))
        fold = random.permutation(reference.count)[units] % _FOLDS
        found = {}
        for classes in _CLASSES:
            found[classes] = np.zeros((len(rows), self._parts))
            for held in (fold == number for number in range(_FOLDS)):
                density = LatentClasses(rows[~held], weights[~held], starts, classes, seed)
                found[classes][held] = self._of_parts(density, rows[held])
        best = max(found, key=lambda classes: float(weights @ found[classes].sum(axis=1)))
        self._density = LatentClasses(rows, weights, starts, best, seed)
        said = log_likelihood(answers, published, cells)
        lines = [_regress(*part, weights) for part in zip(found[best].T, said.T, strict=True)]
        self._slopes, self._spreads = np.array(lines).T

    @property
    def _parts(self) -> int:
        return 1 if self._published.generator.shape.sequence is None else 2

    def _traits(self, cells: Coded) -> np.ndarray:
        """(rows, traits) float32: of the record, of each channel, and the label."""
        shape = self._published.generator.shape
        record, courses = traits(join(cells, self._published.bins.maps), shape, torch.device("cpu"))
        labels = np.eye(shape.classes, dtype=np.float32)[cells.labels]
        return np.concatenate([record.numpy(), *[course.numpy() for course in courses], labels], axis=1)

    def _of_parts(self, density: LatentClasses, rows: np.ndarray) -> np.ndarray:
        """Of the record given the label, and of the windows given both, (rows, parts)."""
        shape, at = self._published.generator.shape, np.arange(rows.shape[1])
        label = at >= rows.shape[1] - shape.classes
        known = [label, label | (at < sum(shape.sizes)), np.ones(len(at), dtype=bool)][: self._parts + 1]
        return np.diff([density.log_density(rows * traits) for traits in known], axis=0).T

    def residual(self, said: np.ndarray, cells: Coded) -> np.ndarray:
        """What the generator says beyond what is expected, (rows,): each part in its spread over the reference.

        Args:
            said: from `log_likelihood`.
            cells: the rows.
        """
        expected = self._of_parts(self._density, self._traits(cells)) * self._slopes
        return np.asarray(((said - expected) / self._spreads).sum(axis=1))


def _starts_of(shape: GeneratorShape) -> np.ndarray:
    """Where the traits begin of which one is drawn at a time: columns', those of channels' steps or bins, labels'."""
    sizes = list(shape.sizes)
    if shape.sequence is not None:
        for size in shape.sequence.sizes:
            sizes += [size] * (shape.sequence.steps if shape.sequence.kind == "paths" else 1 + size)
    return np.cumsum([0, *sizes])


def _regress(of: np.ndarray, on: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Slope of a weighted regression and the spread about it; 1 where there is nothing to regress on."""
    if len(of) == 0:
        return 1.0, 1.0
    of, on = (values - np.average(values, weights=weights) for values in (of, on))
    variance = float(weights @ of**2)
    slope = max(0.0, float(weights @ (of * on)) / variance) if variance > 0 else 1.0
    spread = float(np.sqrt(np.average((on - slope * of) ** 2, weights=weights)))
    return slope, spread or 1.0


class _Nearness:
    """How near a generator's answers come to a row: the expected distance, in the mean of columns and channels.

    Two values of an ordered axis are apart by their bins, as a share of the way from the first to the last; a value and
    missing, or two categories, by 1.
    """

    def __init__(
        self, answers: Sequence[Answers], published: Published, study: Study, *, latents: int, seed: int
    ) -> None:
        self._answers, self._published = answers, published
        self._shape = published.generator.shape
        self._device = answers[0].records.device
        self._drawn = (latents, seed)
        grids, bins = (*make_grids(study.measured), *make_grids(study.channels)), published.bins
        apart = [_apart(grid, size) for grid, size in zip(grids, bins.sizes, strict=True)]
        self._records = self._tensor(block_diag(*apart[: bins.columns]))
        self._channels = [self._tensor(part) for part in apart[bins.columns :]]

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=self._device)

    def sampled(self, cells: Coded) -> np.ndarray:
        """Nearness of the nearest latent that was drawn, (rows,)."""
        return self._of_rows(cells, lambda rows, label: self._among_drawn(rows, label).min(dim=1).values)

    def searched(self, cells: Coded) -> np.ndarray:
        """Nearness of the nearest latent that a search finds, (rows,)."""
        return self._of_rows(cells, self._search)

    def _of_rows(self, cells: Coded, distance: Callable[[Coded, int], Tensor]) -> np.ndarray:
        coded, found = join(cells, self._published.bins.maps), np.zeros(len(cells.labels))
        for label in range(self._shape.classes):
            for rows in _chunks(cells, label):
                found[rows] = -distance(take(coded, rows), label).cpu().double().numpy()
        return found

    def _distances(self, coded: Coded) -> tuple[Tensor, list[Tensor]]:
        """What each bin adds to a row's distance: (rows, bins) of the record, (rows, steps, bins) of each channel."""
        records, steps = _indicators(coded, self._shape, self._device)
        fields = len(self._shape.sizes) + len(steps)
        if not steps:
            return records @ self._records / fields, []
        assert coded.lengths is not None
        lengths = self._tensor(np.maximum(coded.lengths, 1))[:, None, None]
        apart = [step @ channel / lengths / fields for step, channel in zip(steps, self._channels, strict=True)]
        return records @ self._records / fields, apart

    @torch.no_grad()
    def _among_drawn(self, coded: Coded, label: int) -> Tensor:
        """Distance of each latent, (rows, latents)."""
        answers = self._answers[label]
        records, steps = self._distances(coded)
        total = records @ answers.records.T
        if answers.levels is not None:
            total = total + torch.cat(steps, dim=2).flatten(1) @ answers.levels.flatten(1).T
        return total

    def _search(self, coded: Coded, label: int) -> Tensor:
        """Distance after a search from the nearest latents, (rows,)."""
        starts = self._among_drawn(coded, label).topk(_STARTS, dim=1, largest=False).indices.flatten()
        latents, seed = self._drawn
        noise = _draw(self._shape, latents, seed, self._device)[starts].requires_grad_()
        records, steps = self._distances(coded)
        records = records.repeat_interleave(_STARTS, dim=0)
        levels = torch.cat(steps, dim=2).repeat_interleave(_STARTS, dim=0) if steps else None
        labels = torch.full((len(noise),), label, device=self._device)
        optimiser = torch.optim.Adam([noise], lr=_RATE)
        best = noise.new_full((len(noise),), torch.inf)
        for _ in range(_STEPS):
            outcome = self._published.generator(noise, labels)
            distance = (outcome.records * records).sum(dim=1)
            if outcome.courses is not None and levels is not None:
                distance = distance + (outcome.courses.levels * levels).sum(dim=(1, 2))
            best = torch.minimum(best, distance.detach())
            optimiser.zero_grad()
            # Towards the noise alone: the generator's own parameters gather no gradient.
            (noise.grad,) = torch.autograd.grad(distance.sum(), [noise])
            optimiser.step()
        return best.view(-1, _STARTS).min(dim=1).values


def _apart(grid: Grid, bins: int) -> np.ndarray:
    """Distance of two bins of an axis, (bins, bins) in [0, 1]."""
    apart = 1 - np.eye(bins)
    values = bins - int(grid.column.missing)
    if grid.is_ordered and values > 1:
        place = np.arange(values) / (values - 1)
        apart[:values, :values] = np.abs(place[:, None] - place[None, :])
    return apart
