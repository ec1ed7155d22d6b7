"""The measured discriminators: statistical, temporal, semantic.

Their test functions are the indicators of table cells (and, for the semantic one, frozen features). The real-side
expectations are released once with noise; the optimal linear discriminator against any generator is then known in
closed form, and what it says is the Gaussian log-likelihood of the releases. It costs no privacy per generator step.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
import torch
from scipy.linalg import null_space
from torch import Tensor

from common.data.queries import Family
from common.models.embedding import EmbeddingMeans
from common.models.generator import Generator, Outcome
from common.models.neural import NeuralCritic, generator_loss
from common.models.sequences import Expected, straight_through
from common.models.targets import IMPLIED, Groups, Target, Targets
from common.models.verdicts import Opening, heads_of

_LEAST_MARGIN = 1e-6
_FAKES = 8192
"""Rows that a generator makes for one step of a neural critic, and to see how many of them it catches."""
MARGINALS: Final = "marginals"
# Sums over each row, each column and the whole of the tables of two columns.
_ROWS, _COLUMNS, _WHOLE = "pair rows", "pair columns", "pair whole"
_INTERACTIONS: Final = (Family.PAIR, _ROWS, _COLUMNS, _WHOLE)
_OF_TWO: Final = (Family.COURSE, Family.TOGETHER, Family.TRANSITION, Family.ENDS)
_OF_ONE: Final = (Family.LEVEL, Family.HIGHEST, Family.LOWEST, Family.OBSERVED)


@dataclass(frozen=True)
class Comparison:
    """What a measured critic compares.

    tables: their names. classes: "each", or what all of them "share" in proportion to their units, or in what they
    "differ" from that.
    """

    tables: tuple[str, ...]
    classes: Literal["each", "share", "differ"] = "each"


MEASURED: Final = {
    MARGINALS: Comparison(("one_way", "average", IMPLIED)),
    "statistical": Comparison(_INTERACTIONS, "share"),
    "statistical by class": Comparison(_INTERACTIONS, "differ"),
    "semantic": Comparison(("embedding",)),
    "temporal": Comparison((*_OF_ONE, *_OF_TWO), "share"),
    "temporal by class": Comparison(_OF_TWO, "differ"),
    "levels by class": Comparison(_OF_ONE, "differ"),
}
"""Measured critics, by name. The marginals, of one column or channel, come before all others.

Each of the others falls silent when all that it could still say is noise, which is soon so of how classes differ.
"""


class Joins:
    """Joins bins into the groups of tables of two columns or channels."""

    def __init__(self, groups: Groups, device: torch.device) -> None:
        def indicator(group: np.ndarray) -> Tensor:
            size = int(group.max()) + 1 if len(group) else 0
            return torch.as_tensor(np.eye(size)[group], dtype=torch.float32, device=device)

        self.records, self.channels = indicator(groups.records), indicator(groups.channels)
        self.columns = int(groups.columns.max(initial=-1)) + 1


def expectations(outcome: Outcome, parts: int, joins: Joins) -> Expected:
    """Mean tables of parts of the rows, by the names of `Targets.tables` and of what `interactions` adds.

    Args:
        outcome: of a generator, its rows in so many parts of equal size, one after the other.
        parts: how many.
        joins: of bins into groups.
    """
    shares = outcome.records.view(parts, -1, outcome.records.shape[1])  # (parts, rows, bins)
    joined = shares @ joins.records
    implied = joined.mean(dim=1)
    whole = implied.new_ones(parts, joins.columns, joins.columns)
    expected: Expected = {
        "one_way": shares.mean(dim=1),
        IMPLIED: implied,
        Family.PAIR: torch.bmm(joined.transpose(1, 2), joined) / joined.shape[1],
        _ROWS: implied[:, :, None].expand(-1, -1, joins.columns),
        _COLUMNS: implied[:, None, :].expand(-1, joins.columns, -1),
        _WHOLE: whole,
    }
    if outcome.courses is not None:
        expected |= outcome.courses.expected(joined, joins.channels)
    return expected


class MeasuredCritic:
    """Compares a generator's exact tables with some of the released ones, weighted by the precision of each release.

    Source: paper section 3.2; algorithm notes, section 4.2.
    """

    def __init__(
        self, targets: Targets, names: tuple[str, ...], device: torch.device, *, sides: np.ndarray | None = None
    ) -> None:
        """Compare some tables.

        Args:
            targets: what was released, or what `interactions` makes of it: tables of negative precision are taken off.
            names: of the tables.
            device: where to compute.
            sides: (sides, classes), orthonormal: the combinations of classes that are compared; without it, each class.
        """

        def tensor(values: np.ndarray) -> Tensor:
            return torch.as_tensor(values, dtype=torch.float32, device=device)

        counts = np.maximum(targets.label_counts, 1.0)
        sides = np.eye(len(counts)) if sides is None else sides
        self._weights = tensor(sides * counts)  # (sides, classes)
        self.units = float(counts.sum())
        chosen = {name: targets.tables[name] for name in names if name in targets.tables}
        self._values = {name: tensor(np.tensordot(sides, target.values, axes=1)) for name, target in chosen.items()}
        self._precision = {name: tensor(target.precision) for name, target in chosen.items()}
        self.cells = float(len(sides) * sum(np.sign(target.precision).sum() for target in chosen.values()))

    @property
    def noise_level(self) -> float:
        """What the truth's own loss does not pass by more than a standard deviation: that of noise alone is 1."""
        return float(1 + (2 / self.cells) ** 0.5)

    def loss(self, expected: Expected) -> Tensor:
        """Unbiased estimate of the mean squared distance to the releases, in noise variances a cell.

        The two halves of the latents estimate the generator's tables independently, and the distance is the product of
        the two differences: its expectation holds no variance of the latents. The plain square does, and minimising it
        would push the generator towards columns that ignore z.

        Args:
            expected: from `expectations`, with two parts a class: (2 * classes, ...).
        """
        total = self._weights.new_zeros(())
        for name, values in self._values.items():
            halves = expected[name].view(-1, 2, *values.shape[1:])
            first, second = (torch.tensordot(self._weights, halves, dims=1) - values[:, None]).unbind(1)
            total = total + (first * second * self._precision[name]).sum()
        return total / self.cells


def interactions(targets: Targets) -> Targets:
    """With sums over the rows, the columns and the whole of every table of two columns, and by what they weigh.

    Rows and columns, of negative precision, are taken off a table's squared differences, and the whole, which both
    hold, is added again: that leaves its interaction, as in an analysis of variance. What a table says of one column is
    in `IMPLIED`, from all tables together; each alone says it with more noise.
    """
    pairs = targets.tables[Family.PAIR]
    member = np.eye(targets.groups.columns.max(initial=-1) + 1)[targets.groups.columns]  # (groups, columns)
    sizes = member.sum(axis=0)
    # Of every cell of a table, which has the same one throughout; (columns, columns).
    table = member.T @ pairs.precision @ member / (sizes[:, None] * sizes)
    sums = {
        _ROWS: Target(pairs.values @ member, -(member @ table) / sizes),
        _COLUMNS: Target(member.T @ pairs.values, -(table @ member.T) / sizes[:, None]),
        _WHOLE: Target(member.T @ pairs.values @ member, table / (sizes[:, None] * sizes)),
    }
    return replace(targets, tables={**targets.tables, **sums})


EMBEDDING: Final = "embedding"
"""Name of the table that the measured semantic critic compares: (classes, cells) sums of embeddings."""


@dataclass(frozen=True)
class Adversary:
    """A neural critic as a generator meets it, fixed.

    opening: of its gate, with the weight of each head.
    """

    critic: NeuralCritic
    opening: Opening

    def loss(self, outcome: Outcome, labels: Tensor, random: torch.Generator) -> Tensor:
        """What it says of a generator's rows; the gate closes as more pass, altogether once as many do as of real.

        It stands still while the generator moves, which could otherwise win by whatever fools it.
        """
        drawn, windows = relaxed(outcome, random)
        # The chances of a record and no draw of it: what three columns say together, a draw's noise would drown.
        scores = self.critic(outcome.records, windows, labels)
        return (self._weights(drawn, windows, labels) * generator_loss(scores)).sum()

    def weights(self, outcome: Outcome, labels: Tensor, random: torch.Generator) -> dict[str, float]:
        """What is left of each head's weight, by its name, as a generator's rows pass."""
        left = self._weights(*relaxed(outcome, random), labels)
        return dict(zip(heads_of(self.critic), left.tolist(), strict=True))

    @torch.no_grad()
    def _weights(self, drawn: Tensor, windows: Tensor | None, labels: Tensor) -> Tensor:
        """Of each head, (heads,), after rows of a generator."""
        now = torch.stack([(head > 0).float().mean() for head in self.critic(drawn, windows, labels).heads()])
        opening = self.opening
        weights, passing, passed = map(now.new_tensor, (opening.weights, opening.passing, opening.passed))
        left = ((passing - now) / (passing - passed).clamp(min=_LEAST_MARGIN)).clamp(min=0.0, max=1.0)
        return weights * left


class Cluster:
    """All critics that a generator is trained against, fused into one loss."""

    def __init__(
        self,
        measured: Mapping[str, MeasuredCritic],
        joins: Joins,
        *,
        means: EmbeddingMeans | None = None,
        adversary: Adversary | None = None,
    ) -> None:
        """Fuse critics.

        Args:
            measured: weighted by their numbers of cells: the likelihood of all releases together.
            joins: of bins into groups.
            means: where an embedding was released.
            adversary: where a neural critic was trained; a head without weight costs nothing. A weight of 1 counts each
                unit as a measured critic's cells do, as twice a log-likelihood, and so divides by their number too.
        """
        self._measured = {name: critic for name, critic in measured.items() if critic.cells}
        self._cells = sum(critic.cells for critic in self._measured.values())
        self._joins = joins
        self._device = joins.records.device
        self._means = means
        units = max((critic.units for critic in self._measured.values()), default=0.0)
        self._adversary_scale = 2 * units / max(self._cells, 1.0)
        self.adversary = adversary if adversary is not None and any(adversary.opening.weights) else None

    def loss(
        self,
        outcome: Outcome,
        labels: Tensor,
        classes: int,
        random: torch.Generator,
        *,
        silent: Collection[str] = (),
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The fused loss of a generator's outcome, and what each measured critic says, in noise variances a cell.

        Args:
            outcome: its rows class after class, an even number of each.
            labels: of the rows.
            classes: how many there are.
            random: of the windows that a neural critic is shown.
            silent: measured critics that say something and are not listened to.
        """
        measured = self.measure(outcome, classes)
        fused = self.fuse({name: loss for name, loss in measured.items() if name not in silent})
        if self.adversary is not None:
            fused = fused + self._adversary_scale * self.adversary.loss(outcome, labels, random)
        return fused, measured

    def measure(self, outcome: Outcome, classes: int) -> dict[str, Tensor]:
        """What each measured critic says of a generator's outcome."""
        expected = expectations(outcome, 2 * classes, self._joins)
        if self._means is not None:
            expected[EMBEDDING] = self._means.expected(outcome, 2 * classes)
        return {name: critic.loss(expected) for name, critic in self._measured.items()}

    @property
    def noise_levels(self) -> dict[str, float]:
        """Of each measured critic, what it says of the truth itself at most, but for a standard deviation."""
        return {name: critic.noise_level for name, critic in self._measured.items()}

    @property
    def shares(self) -> dict[str, float]:
        """Of each measured critic, its part of all cells, which is its weight where it is heard."""
        return {name: critic.cells / self._cells for name, critic in self._measured.items()}

    def weights(
        self, losses: Mapping[str, float], outcome: Outcome, labels: Tensor, random: torch.Generator
    ) -> dict[str, float]:
        """What each critic and each head weighs in the loss of an outcome; 0 where it is silent or its gate is shut.

        Args:
            losses: what the measured critics say of the outcome.
            outcome: of a generator.
            labels: of its rows.
            random: of the windows that a neural critic is shown.
        """
        silent = fallen_silent(losses, self.noise_levels)
        found = {name: 0.0 if name in silent else share for name, share in self.shares.items()}
        if self.adversary is not None:
            heads = self.adversary.weights(outcome, labels, random)
            found |= {f"neural {name}": self._adversary_scale * weight for name, weight in heads.items()}
        return found

    def fuse(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The sum of some critics' losses, each weighted by its part of all cells."""
        shares = self.shares
        weighted = [loss * shares[name] for name, loss in losses.items()]
        return torch.stack(weighted).sum() if weighted else torch.zeros((), device=self._device)


def fallen_silent(losses: Mapping[str, float], levels: Mapping[str, float]) -> set[str]:
    """Measured critics that could say nothing but noise, by what they say of a generator and their `noise_levels`.

    Never that of the marginals, since smoothing took most of the noise.
    """
    return {name for name, loss in losses.items() if name != MARGINALS and loss <= levels[name]}


def relaxed(outcome: Outcome, random: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """One unit a row as a neural critic is shown it: indicators, with the gradient of the probabilities.

    All zero beyond the number of steps that the same unit's record says.
    """
    shape = outcome.shape
    columns = [straight_through(share, random) for share in torch.split(outcome.records, list(shape.sizes), dim=1)]
    records = torch.cat(columns, dim=1)
    if outcome.courses is None:
        return records, None
    steps = outcome.courses.relaxed(random)
    if shape.length_column is not None:
        longer = columns[shape.length_column].flip(1).cumsum(1).flip(1)  # chance of each length or a longer one
        # Step t, from 1, is there where the length is at least t; the first bin is the length `fewest`.
        certain = longer.new_ones(len(longer), max(shape.fewest - 1, 0))
        steps = steps * torch.cat([certain, longer[:, 1 - min(shape.fewest, 1) :]], dim=1)[:, :, None]
    return records, steps


@torch.no_grad()
def draw_fakes(
    generator: Generator, label_counts: np.ndarray, *, seed: int, device: torch.device
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Rows of a generator as a neural critic reads units: records and steps one-hot, and labels as often as counted.

    Args:
        generator: on `device`.
        label_counts: (classes,), above 0.
        seed: of labels and rows.
        device: where to compute.
    """
    labels = np.random.default_rng(seed).choice(len(label_counts), size=_FAKES, p=label_counts / label_counts.sum())
    random = torch.Generator(device=device).manual_seed(seed)
    noise = torch.randn(_FAKES, generator.shape.noise, generator=random, device=device)
    records, steps = relaxed(generator(noise, torch.from_numpy(labels).to(device)), random)
    return records.cpu().numpy() > 0.5, None if steps is None else steps.cpu().numpy() > 0.5, labels


def arm(critic: NeuralCritic, opening: Opening, *, strength: float) -> Adversary | None:
    """A neural critic as a generator meets it; None where its gate is closed.

    Args:
        critic: as it stands.
        opening: of its gate.
        strength: the weight of a head whose gate is wide open.
    """
    weights = tuple(strength * weight for weight in opening.weights)
    return Adversary(critic, replace(opening, weights=weights)) if any(weights) else None


def measured_critics(targets: Targets, device: torch.device) -> dict[str, MeasuredCritic]:
    """All measured critics of a study, by name, from what was released."""
    parts = interactions(targets)
    counts = np.maximum(targets.label_counts, 1.0)
    shared = (counts / np.linalg.norm(counts))[None]
    sides = {"each": np.eye(len(counts)), "share": shared, "differ": null_space(shared).T}
    return {name: MeasuredCritic(parts, own.tables, device, sides=sides[own.classes]) for name, own in MEASURED.items()}


def make_cluster(
    targets: Targets, means: EmbeddingMeans | None, adversary: Adversary | None, device: torch.device
) -> Cluster:
    """All critics of a study, from what was released."""
    return Cluster(
        measured_critics(targets, device),
        Joins(targets.groups, device),
        means=means if EMBEDDING in targets.tables else None,
        adversary=adversary,
    )
