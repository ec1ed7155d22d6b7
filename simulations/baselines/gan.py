"""The baseline `gan`: a standard conditional GAN, trained federatedly and without privacy, in the harness of every run.

Roll call, messages, rounds and sites are those of privshare; what differs is that sites train both networks on their
real rows and send them as they are. The coordinator averages both (FedGAN). No guarantee of any kind: epsilon is
infinite, whatever the study says.
Sources: Rasouli et al. 2020 (FedGAN), algorithm 1; paper section 4.3.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch

from client.site import Site
from common.data.tables import sizes_of
from common.data.windows import WindowedTable
from common.errors import CheckpointError, PolicyError, ProtocolError
from common.models.releases import Bins
from common.models.training import Stretch
from common.study import Study
from common.synthesis.decoder import Decoder, fit_decoder
from common.synthesis.draws import whole_shares
from common.wire.messages import Reply, Request
from common.wire.packing import CRITIC, GENERATOR, pack, pack_bins, shape_of
from server.aggregation import REACH
from server.conductor import Conductor
from server.exchange import Roster
from server.run_state import RunState
from simulations.baselines.gan_model import (
    Gan,
    GanGenerator,
    arrays_of,
    draw,
    initialise,
    load_arrays,
    train,
)

# The loss was chosen on simulated tables of seed 100, of which no figure is reported; steps by the time that they take.
_ROUNDS: Final = 40
_LOCAL_STEPS: Final = 30
_LOCAL_STEPS_WITH_WINDOWS: Final = 25
_BATCH: Final = 500
_BATCH_WITH_WINDOWS: Final = 250
"""A unit with a window costs five times what a record does."""
_LEARNING_RATE: Final = 5e-4
_KEPT: Final = 0.8
"""Weight of what the published generator was before a round: a window of about five rounds."""
_UNITS: Final = "units"
_SHARES: Final = "label_shares"


def adapt(study: Study, *, rounds: int = _ROUNDS, local_steps: int | None = None) -> Study:
    """The study with which a federation trains a GAN: bins as good as exact, nobody held out, its own rounds.

    Every site trains in every round, whatever `rounds.trainers` says.

    Args:
        study: of privshare.
        rounds: how often the networks are averaged.
        local_steps: of each site between two averages; None for what was chosen for tables like the study's.

    Raises:
        StudyError: a value is not allowed.
    """
    steps = local_steps or (_LOCAL_STEPS if study.windows is None else _LOCAL_STEPS_WITH_WINDOWS)
    return study.with_overrides(
        privacy={"epsilon": 10_000.0, "holdout": 0.0},
        rounds={"count": rounds, "local_steps": steps, "refine_steps": 0},
    )


class GanSite(Site):
    """A simulated site that trains on its real rows and sends what came of it. No real site can be made to."""

    def _train(self, request: Request, digest: str) -> bytes:
        """Steps of both networks on the site's rows; the reply says what its units weigh, as federated averaging needs.

        A unit's rows share its weight. Classes are drawn as if the whole federation had them equally often: a rare
        class is learned as well as the others, and a site weighs as much as it has of each.
        """
        del digest
        self._policy.check_training(request)
        bins = self._bins(request)
        shares = _read_shares(request, len(self._study.label_values))
        gan = initialise(shape_of(self._study, sizes_of(bins)), seed=0)
        try:
            load_arrays(gan, _networks_in(request.arrays))
        except ValueError:
            raise PolicyError("request.arrays: do not fit the networks of this study") from None
        # The vault has no door for this, and must have none.
        vault = self._vault
        rows = vault._rows["train"]  # noqa: SLF001
        real = vault._coded(rows, bins)  # noqa: SLF001
        weights = vault._weights[rows] / vault._unit_weight / shares[real.labels] / len(shares)  # noqa: SLF001
        options = request.options
        first, last = options["learning_rates"]
        batch = _BATCH if self._study.windows is None else _BATCH_WITH_WINDOWS
        gan.to(self._device)
        train(gan, real, weights, Stretch(options["steps"], first, last, batch, options["seed"]), self._device)
        return Reply(self._settings.site, {_UNITS: float(weights.sum())}, arrays_of(gan)).encode()


@dataclass(frozen=True)
class TrainedGan:
    """The end of a run.

    label_counts: (classes,), units of each class, as counted. generator: on `device`; the mean over the last rounds.
    """

    state: RunState
    study: Study
    bins: Bins
    label_counts: np.ndarray
    generator: GanGenerator
    device: torch.device

    @property
    def rows(self) -> int:
        """The study's number of rows to publish, or the counted units."""
        return self.study.release.rows or max(1, round(float(self.label_counts.sum())))

    def draw(self, rows: int, seed: int, *, label_counts: np.ndarray | None = None) -> WindowedTable:
        """Synthetic units in the study's column order and dtypes.

        Args:
            rows: how many.
            seed: the same seed gives the same rows.
            label_counts: (classes,), shares of the label's classes, in any unit; None for those that were counted.
        """
        random = np.random.default_rng(seed)
        counts = self.label_counts if label_counts is None else label_counts
        labels = random.permutation(np.repeat(np.arange(len(counts)), whole_shares(counts, rows)))
        records, windows = draw(self.generator, labels, seed=seed, device=self.device)
        return self._decoder.decode(records, windows, labels, random)

    @cached_property
    def _decoder(self) -> Decoder:
        return fit_decoder(
            self.study,
            self.bins.binnings,
            moves=self.bins.moves,
            label_counts=self.label_counts,
            draw=self._draw_trial,
        )

    def _draw_trial(self, labels: np.ndarray) -> np.ndarray:
        _, windows = draw(self.generator, labels, seed=0, device=self.device)
        assert windows is not None
        return windows


class GanCoordinator(Conductor[TrainedGan]):
    """Averages the networks that the sites train; resumes after the last round."""

    def _learn(self, roster: Roster, bins: Bins) -> TrainedGan:
        """Rounds of local steps at all sites, the mean of their networks, and a mean over rounds to publish."""
        state = self._state
        gan = initialise(shape_of(self._study, bins.sizes), seed=self._seed(0, 0))
        if state.generator:
            _load_state(gan, state)
        counts = _label_counts(bins)
        for number in range(state.rounds_done, self._study.rounds.count):
            self._train_round(roster, gan, bins, counts / counts.sum(), number)
        generator = gan.generator
        if state.averaged:
            load_arrays(generator, state.averaged)
        return TrainedGan(state, self._study, bins, counts, generator.to(self._device).eval(), self._device)

    def _train_round(self, roster: Roster, gan: Gan, bins: Bins, shares: np.ndarray, number: int) -> None:
        """Local steps at every site from the same networks, then their mean, by what each site's units weigh."""
        state, rounds = self._state, self._study.rounds
        rates = [_LEARNING_RATE * (1 - done / rounds.count) for done in (number, number + 1)]
        sent = arrays_of(gan)
        arrays = {**sent, **pack_bins(bins.maps)}
        options: dict[str, Any] = {
            "steps": rounds.local_steps,
            "learning_rates": rates,
            _SHARES: [float(share) for share in shares],
        }
        requests = {
            site: self._request("train", f"train-{number + 1}", {**options, "seed": self._seed(number, at)}, arrays)
            for at, site in enumerate(roster.names, start=1)
        }
        reach = REACH * rounds.local_steps * max(rates)
        answers = self._ask(roster, requests, lambda site, reply: check_networks(site, reply, sent=sent, reach=reach))
        replies = answers.whole() if self._is_strict else answers.of_at_least(self._quorum)
        weights = [float(reply.facts[_UNITS]) for reply in replies.values()]
        load_arrays(gan, weighted_mean([reply.arrays for reply in replies.values()], weights))
        state.generator, state.critics = arrays_of(gan.generator), arrays_of(gan.critic)
        # At first a plain mean over rounds: nothing of the random start is to be left.
        kept = min(_KEPT, number / (number + 1))
        before = state.averaged or state.generator
        state.averaged = weighted_mean([before, state.generator], [kept, 1 - kept])
        state.rounds_done = number + 1
        self._record(
            {
                "step": "round",
                "round": number + 1,
                "rounds": rounds.count,
                "trainers": sorted(replies),
                "learning_rate": rates[0],
            }
        )


def check_networks(site: str, reply: Reply, *, sent: Mapping[str, np.ndarray], reach: float) -> None:
    """Refuse networks that the steps they were asked for cannot have made of those that were sent.

    Args:
        site: its name.
        reply: with the parameters of both, and what the site's units weigh.
        sent: the parameters that it began with.
        reach: how far any of them can have moved.

    Raises:
        ProtocolError: other names, shapes or types, a parameter that moved farther, or no weight.
    """
    found, units = reply.arrays, reply.facts.get(_UNITS)
    if {name: (array.shape, array.dtype) for name, array in found.items()} != {
        name: (array.shape, array.dtype) for name, array in sent.items()
    }:
        raise ProtocolError(f"site {site}: networks that do not fit the study")
    if not all(bool((np.abs(found[name] - array) <= reach).all()) for name, array in sent.items()):
        raise ProtocolError(f"site {site}: networks that moved farther than their steps can take them")
    if not isinstance(units, float) or not 0 <= units < math.inf:
        raise ProtocolError(f"site {site}: does not say what its units weigh")


def weighted_mean(parameters: Sequence[Mapping[str, np.ndarray]], weights: Sequence[float]) -> dict[str, np.ndarray]:
    """The mean of several networks' parameters by weight, float32.

    Raises:
        ProtocolError: nothing weighs anything.
    """
    total = math.fsum(weights)
    if not total > 0:
        raise ProtocolError("sites: none has a unit")
    return {
        name: sum(
            (weight / total * one[name].astype(np.float64) for one, weight in zip(parameters, weights, strict=True)),
            start=np.zeros(array.shape),
        ).astype(np.float32)
        for name, array in parameters[0].items()
    }


def _read_shares(request: Request, classes: int) -> np.ndarray:
    """The share of each class in the federation, (classes,) float64.

    Raises:
        PolicyError: not a positive number for each class.
    """
    shares = request.options.get(_SHARES)
    if (
        not isinstance(shares, list)
        or len(shares) != classes
        or not all(isinstance(share, float) and 0 < share <= 1 for share in shares)
    ):
        raise PolicyError(f"request.{_SHARES}: expected a number above 0 for each class of the label")
    return np.array(shares)


def _networks_in(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The parameters of both networks."""
    return {name: array for name, array in arrays.items() if name.startswith((GENERATOR, CRITIC))}


def _label_counts(bins: Bins) -> np.ndarray:
    """Units of each class, as the one-way tables say; at least one, so that no class is without a share."""
    counts = [histogram.counts.sum(axis=1) for histogram in bins.histograms[: bins.columns]]
    return np.asarray(np.maximum(np.mean(counts, axis=0), 1.0))


def _load_state(gan: Gan, state: RunState) -> None:
    try:
        load_arrays(gan, {**pack(GENERATOR, state.generator), **pack(CRITIC, state.critics)})
    except ValueError:
        raise CheckpointError("the checkpoint's networks do not fit the study") from None
