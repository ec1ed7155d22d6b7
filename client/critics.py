"""A site's own neural critic, where the study says that discriminators stay at the sites.

It is what this site's noised gradients, and the generators that it was sent, have made of it. After each step it is
kept beside the release that the step was taken on. Real rows are out of its reach.
"""

import logging
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch

from client.releases import OwnReleases
from client.trainer import read_generator
from common.data.tables import sizes_of
from common.errors import PolicyError
from common.models.critics import Adversary, arm, draw_fakes
from common.models.neural import (
    NeuralCritic,
    critic_optimiser,
    critic_parameters,
    improve,
    initialise_critic,
    load_critic,
)
from common.models.verdicts import Opening, gate, heads_of, judge, verdicts_on
from common.privacy.events import GaussianEvent
from common.study import Study
from common.wire.messages import Request
from common.wire.packing import CRITIC, critic_shape_of, pack, shape_of, unpack

_LOG = logging.getLogger(__name__)
_MOMENTS, _OPENING = "moments.", "opening."

Lesson: TypeAlias = Callable[[np.ndarray, GaussianEvent], dict[str, np.ndarray]]
"""From a release and its event to what is kept beside it."""


class OwnCritics:
    """The neural critics of one site, one a run, on their way."""

    def __init__(self, study: Study, releases: OwnReleases, device: torch.device) -> None:
        """Find them among the releases of a site.

        Args:
            study: that the site approved.
            releases: of the site.
            device: where generators compute.
        """
        self._study = study
        self._releases = releases
        self._device = device

    def current(self, request: Request, bins: list[np.ndarray], *, seed: int) -> NeuralCritic:
        """The critic of a request's run as it stands, or a new one.

        Args:
            request: of the run.
            bins: the map from cells to bins of each column and channel.
            seed: of a new one.

        Raises:
            PolicyError: it was made for other bins.
        """
        shape = critic_shape_of(self._study, shape_of(self._study, sizes_of(bins)))
        critic, found = initialise_critic(shape, seed=seed), self._releases.newest(request, "critic")
        if found is not None:
            try:
                load_critic(critic, unpack(CRITIC, found[1].arrays))
            except ValueError:
                raise PolicyError("request.bins: not those of this site's critic") from None
        return critic

    def gradient_lesson(
        self, critic: NeuralCritic, request: Request, bins: list[np.ndarray], *, seed: int, step: int
    ) -> Lesson:
        """What a noised gradient of a critic teaches it, beside fakes of the generator that came with the request.

        Args:
            critic: as it stands; changed by the lesson.
            request: with a generator.
            bins: as for `current`.
            seed: of the fakes.
            step: 0 for the first of a measurement, where the optimiser begins anew.

        Raises:
            PolicyError: nothing was released in the run, or the generator is not of this study or makes no rows.
        """
        fakes, counts = self._fakes(request, bins, seed=seed)
        optimiser = critic_optimiser(critic, learning_rate=self._study.critic.learning_rate)
        found = self._releases.newest(request, "critic")
        if step and found is not None:
            _load_moments(optimiser, unpack(_MOMENTS, found[1].arrays))
        network = self._study.critic
        units, last = network.sampling * float(counts.sum()), step == network.steps - 1

        def learn(noised: np.ndarray, event: GaussianEvent) -> dict[str, np.ndarray]:
            del event
            released = noised.astype(np.float64)
            improve(critic, optimiser, released, fakes, clip_norm=network.clip_norm, units=units, last=last)
            return pack(CRITIC, critic_parameters(critic)) | pack(_MOMENTS, _moments(optimiser))

        return learn

    def verdict_lesson(self, critic: NeuralCritic, request: Request, bins: list[np.ndarray], *, seed: int) -> Lesson:
        """How far noised verdicts on held-out units, and those on fakes, open the critic's gate; as `gradient_lesson`.

        Raises:
            PolicyError: likewise.
        """
        fakes, _ = self._fakes(request, bins, seed=seed)

        def learn(noised: np.ndarray, event: GaussianEvent) -> dict[str, np.ndarray]:
            counts = noised.reshape(-1, 2) / event.scale
            found = verdicts_on(counts, event.variance, judge(critic, *fakes))
            opening = gate(found, len(heads_of(critic)))
            return pack(_OPENING, {name: np.array(part) for name, part in vars(opening).items()})

        return learn

    def adversary(self, request: Request, bins: list[np.ndarray]) -> Adversary | None:
        """The critic of a request's run as a generator meets it; None before its first verdict and where it is shut.

        Raises:
            PolicyError: it was made for other bins.
        """
        found = self._releases.newest(request, "verdict")
        if found is None:
            return None
        opening = Opening(**{name: tuple(part.tolist()) for name, part in unpack(_OPENING, found[1].arrays).items()})
        critic = self.current(request, bins, seed=0).to(self._device)
        weights = dict(zip(heads_of(critic), opening.weights, strict=True))
        _LOG.info("event=gate run=%s request=%s weights=%s", request.run, request.name, weights)
        return arm(critic, opening, strength=self._study.critic.strength)

    def _fakes(
        self, request: Request, bins: list[np.ndarray], *, seed: int
    ) -> tuple[tuple[np.ndarray, np.ndarray | None, np.ndarray], np.ndarray]:
        """What the generator in a request makes, and the units of each class here, (classes,), as released."""
        generator = read_generator(request, shape_of(self._study, sizes_of(bins))).to(self._device)
        counts = self._releases.label_counts(request, bins)
        try:
            return draw_fakes(generator, counts, seed=seed, device=self._device), counts
        except ValueError:
            raise PolicyError("request.arrays: a generator whose chances are no numbers") from None


def _moments(optimiser: torch.optim.Optimizer) -> dict[str, np.ndarray]:
    """What an optimiser remembers of each parameter, by the parameter's number and the name of it."""
    return {
        f"{number}.{name}": value.cpu().numpy().copy()
        for number, remembered in optimiser.state_dict()["state"].items()
        for name, value in remembered.items()
    }


def _load_moments(optimiser: torch.optim.Optimizer, arrays: dict[str, np.ndarray]) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, array in arrays.items():
        number, name = key.split(".")
        state.setdefault(int(number), {})[name] = torch.from_numpy(array.copy())
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
