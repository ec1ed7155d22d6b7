"""The generator at the coordinator, its average, and the critics that it learns from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from common.data.encoding import Grid
from common.models.critics import Adversary, Joins, arm, draw_fakes, expectations, make_cluster
from common.models.embedding import EmbeddingMeans, freeze
from common.models.generator import GeneratorShape, initialise
from common.models.neural import (
    initialise_critic,
    load_critic,
)
from common.models.targets import TableIndex, Target, TargetBuilder
from common.models.training import Stretch, load_parameters, train
from common.models.verdicts import Opening
from common.models.warm_start import warm_start
from common.study import Study
from common.wire.packing import (
    critic_shape_of,
)
from server.quality import frechet_distance
from server.survey import Part, Survey, worst_fitted

_LOSS_BATCHES = 4
"""How many times more latents than a step of training the losses are taken over."""
_CLEAR = 2.0
"""Standard deviations of its noise from which on a distance is something that others can be compared with."""


@dataclass(frozen=True)
class Losses:
    """What critics say of a generator.

    said: of each measured critic, in noise variances a cell. weights: of each critic and each head in the loss that is
    trained on; 0 where it is silent. total: of the measured critics together.
    """

    said: dict[str, float]
    weights: dict[str, float]
    total: float


class Learner:
    """The generator at the coordinator, its average, and the critics that it learns from."""

    def __init__(self, shape: GeneratorShape, survey: Survey, study: Study, device: torch.device, *, seed: int) -> None:
        self._seed = seed
        self.generator, self.averaged = (initialise(shape, seed=seed).to(device) for _ in range(2))
        self.targets = TargetBuilder(shape, survey.groups).build(np.ones(shape.classes))
        self.features = freeze(shape, study.digest())
        self.critic = initialise_critic(critic_shape_of(study, shape), seed=seed).to(device)
        self.gate = Opening((), (), ())
        self._means = EmbeddingMeans(self.features, shape, device)
        self._survey = survey
        self._index = TableIndex(shape, survey.groups)
        self._study = study
        self._device = device

    def begin(self) -> None:
        """Start from what was released so far, before the first step."""
        for generator in (self.generator, self.averaged):
            generator.load_state_dict(initialise(generator.shape, seed=self._seed).state_dict())
            warm_start(generator, self.targets)

    @property
    def adversary(self) -> Adversary | None:
        """The neural critic, where its gate is not closed."""
        return arm(self.critic, self.gate, strength=self._study.critic.strength)

    def adopt(self, parameters: dict[str, np.ndarray], opening: Opening) -> None:
        """Take up a critic and its gate from a checkpoint."""
        load_critic(self.critic, parameters)
        self.gate = opening

    def train(self, stretch: Stretch) -> float:
        """As `common.models.training.train`, against what was released so far."""
        cluster = make_cluster(self.targets, self._means, self.adversary, self._device)
        return train(self.generator, cluster, stretch, self._device, averaged=self.averaged)

    @torch.no_grad()
    def losses(self, seed: int) -> "Losses":
        """Of the averaged generator."""
        random = torch.Generator(device=self._device).manual_seed(seed)
        classes = self.averaged.shape.classes
        labels = torch.arange(classes, device=self._device).repeat_interleave(_LOSS_BATCHES * self._study.model.batch)
        noise = torch.randn(len(labels), self.averaged.shape.noise, generator=random, device=self._device)
        cluster = make_cluster(self.targets, self._means, self.adversary, self._device)
        outcome = self.averaged(noise, labels)
        measured = cluster.measure(outcome, classes)
        said = {name: float(loss) for name, loss in measured.items()}
        return Losses(said, cluster.weights(said, outcome, labels, random), float(cluster.fuse(measured)))

    def is_fitted(self, losses: Mapping[str, float]) -> bool:
        """Whether all that measured critics could still say is noise; see `common.models.training.train`."""
        levels = make_cluster(self.targets, self._means, None, self._device).noise_levels
        return self.adversary is None and all(loss <= levels[name] for name, loss in losses.items())

    def fakes(self, seed: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """Rows of the averaged generator as a critic reads units, with labels as often as released."""
        return draw_fakes(self.averaged, self.targets.label_counts, seed=seed, device=self._device)

    @property
    def groups(self) -> Sequence[np.ndarray]:
        """From the bins of each column and channel to its groups."""
        return self._survey.groups

    def _measured_targets(self) -> list[Target]:
        return [target for name, target in self.targets.tables.items() if name not in ("one_way", "average")]

    def worst_fitted(self, part: Part, *, share: float) -> np.ndarray:
        """The tables of a part to measure again."""
        if share == 1 or not any((target.precision > 0).any() for target in self._measured_targets()):
            return part.numbers
        with torch.no_grad():
            classes = self.generator.shape.classes
            random = torch.Generator(device=self._device).manual_seed(0)
            labels = torch.arange(classes, device=self._device).repeat_interleave(self._study.model.batch)
            noise = torch.randn(len(labels), self.generator.shape.noise, generator=random, device=self._device)
            expected = expectations(self.averaged(noise, labels), classes, Joins(self.targets.groups, self._device))
        return worst_fitted(part, self._index, self.targets, expected, share=share)

    def frechet_ratio(self, first: Mapping[str, np.ndarray], grids: Sequence[Grid], *, seed: int) -> float | None:
        """Of the averaged generator's distance from the released moments to that of another one.

        Both from all releases so far: to earlier ones the other's distance would be known with more noise.
        Edge cases: no pairs were measured, or noise hides how far away the other one is -> None.

        Args:
            first: parameters of the other one.
            grids: of the record's columns, then of the channels.
            seed: of latents, and of the noises whose mean distance is taken off.
        """
        other = initialise(self.averaged.shape, seed=self._seed).to(self._device)
        load_parameters(other, first)
        now, start = (
            frechet_distance(self.targets, one, grids, self._survey.groups, seed=seed, device=self._device)
            for one in (self.averaged, other)
        )
        if now is None or start is None or start.value <= _CLEAR * start.spread:
            return None
        return now.value / start.value
