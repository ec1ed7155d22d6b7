"""Classifiers of the label that sites train together: what the field shares instead of a synthetic table.

Three methods over the same rounds, messages and ledgers as privshare's own:

fl: federated averaging. Sites train a network on their rows as they are and send its parameters. No privacy at all.
fl-dp: the same network, by noised sums of clipped per-unit gradients of all sites.
dp-lr: logistic regression, likewise.

The bins over which they work come from the one-way tables that every run begins with, for a small part of the budget.
Settings were chosen on simulated tables of other seeds than any result is reported for (bank: 20,000 and 100,000 units,
icu: 4,000 and 20,000, accounts: 20,000; epsilon 1), and are fixed: nothing is tuned on a table that is used.

A site of this file never runs at an institution: `fl` sends what a site learned of its rows without any noise.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import expit, log_expit

from client.keys import unit_secret
from client.records import read_records
from client.site import Site
from client.vault import Vault
from common.data.queries import Coded
from common.data.tables import sizes_of
from common.data.windows import WindowedTable
from common.errors import PolicyError, ProtocolError
from common.evaluation.attacks.coded import encode, join
from common.evaluation.utility import is_positive
from common.models.releases import Bins
from common.models.training import schedule
from common.privacy.events import GaussianEvent
from common.privacy.vectors import VectorContributions
from common.study import Study, parse_study
from common.wire.messages import Reply, Request
from common.wire.packing import pack, pack_bins, unpack
from server.conductor import Conductor
from server.exchange import Credentials, Roster
from server.run_state import RunState
from simulations.baselines.classifier_model import (
    GRADIENT_SCALE,
    HIDDEN,
    SCORES,
    ClassifierShape,
    FeatureShape,
    Parameters,
    check_parameters,
    clipped_gradients,
    feature_shape,
    features_of,
    initialise,
    logits,
    train_locally,
)

NO_PRIVACY: Final = 10_000.0
"""The largest epsilon of a study: no protection at all."""

_CLASSIFIER: Final = "classifier."
_WIDTH: Final = 32
_PASSES: Final = 5
_CHUNK: Final = 4096
# The largest share that all requests of a run may ask for together, with room for rounding.
_WHOLE: Final = 1 - 1e-9
_RAREST: Final = 0.01
"""The positive class is taken to be no rarer, nor the rest, where its noised share sets the length of steps."""
_MOMENTUM: Final = 0.8
_STEP: Final = 4.0
"""Step of the logistic regression, over the largest curvature that its loss can have while it knows the prior alone;
a few times that, since features of different columns hardly go together."""
_BETAS: Final = (0.9, 0.99)
_DRAWN: Final = 4096
_TINY: Final = 1e-9
_FAR: Final = 20.0
"""Log odds of what hardly happens."""

_PRIVATE: Final[Mapping[str, Any]] = {"one_way_share": 0.1, "holdout": 0.0, "accountant": "gdp"}
_COARSE: Final[Mapping[str, Any]] = {"max_bins": 8}
_SETTINGS: Final[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
    "fl": {
        "privacy": {**_PRIVATE, "epsilon": NO_PRIVACY, "noise_trust": "local"},
        "critic": {"sampling": 1.0, "width": _WIDTH},
        "rounds": {"local_steps": _PASSES},
        "model": {"learning_rate": 3e-3},
    },
    "fl-dp": {
        "privacy": _PRIVATE,
        "critic": {"sampling": 1.0, "width": _WIDTH, "clip_norm": 0.1, "learning_rate": 0.03},
        "model": _COARSE,
    },
    "dp-lr": {
        "privacy": _PRIVATE,
        # The longest gradient that there is: nothing is clipped, and what is learned is not bent.
        "critic": {"sampling": 1.0, "clip_norm": 1.0},
        "model": _COARSE,
    },
}
"""What the methods set in a study, by section: `critic` is of the classifier, `local_steps` are passes over a site's
rows, `learning_rate` of the model is that of the sites."""

METHODS: Final = tuple(_SETTINGS)


def adapt(study: Study, method: str) -> Study:
    """The study under which a method runs: the same table, units, rounds and, but for `fl`, the same budget.

    Without held-out units, which the methods would not use, and without gates on a generator.

    Raises:
        ValueError: no such method.
        StudyError: the study cannot be run so.
    """
    if method not in _SETTINGS:
        raise ValueError(f"method={method}: expected one of {', '.join(METHODS)}")
    data = study.model_dump(mode="json", by_alias=True)
    sections = {**_SETTINGS[method], "gates": {"monitor_auc": None, "misfit": None}}
    for section, values in sections.items():
        data[section] |= values
    return parse_study(data, source=study.name)


def _shape(study: Study, sizes: tuple[int, ...], *, width: int) -> ClassifierShape:
    return ClassifierShape(feature_shape(study, sizes), width, study.critic.clip_norm)


class ClassifierVault(Vault):
    """The door to a simulated site's rows for classifiers."""

    def every_row(self, bins: list[np.ndarray]) -> Coded:
        """All rows that train, in bins, as they are. Nothing protects them: for federated averaging alone."""
        return self._coded(self._rows["train"], bins)

    def classifier_gradient(
        self,
        shape: ClassifierShape,
        parameters: Parameters,
        bins: list[np.ndarray],
        *,
        spend: float,
        request: str,
        digest: str,
    ) -> tuple[np.ndarray, GaussianEvent]:
        """Noised sum of all training units' clipped gradients, (parameters,); of each unit one record."""
        rows = self._single["train"]

        def contributions(begin: int) -> VectorContributions:
            coded = self._coded(rows[begin : begin + _CHUNK], bins)
            features = features_of(coded, shape.features)
            return clipped_gradients(shape, parameters, features, coded.labels == self._positive)

        vectors = map(contributions, range(0, len(rows), _CHUNK))
        return self._release_vectors(shape.mechanism, vectors, spend=spend, request=request, digest=digest)


class ClassifierSite(Site):
    """A simulated site that trains classifiers: "train" is federated averaging, "critic" a noised gradient.

    What is trained follows from the parameters in a request: those of a network or of a logistic regression.
    """

    @cached_property
    def _vault(self) -> ClassifierVault:
        table, series = read_records(self._settings.source, self._study)
        secret = unit_secret(self._settings.state, may_make=not self._ledger.charged())
        return ClassifierVault(table, series, self._study, secret=secret, ledger=self._ledger, noise=self._noise)

    def _measure_gradient(self, request: Request, digest: str) -> bytes:
        spend, bins = self._policy.spend_of(request), self._bins(request)
        shape, parameters = self._classifier(request, bins)
        return self._sealed(
            request,
            digest,
            lambda: self._vault.classifier_gradient(
                shape, parameters, bins, spend=spend, request=request.identity, digest=digest
            ),
        )

    def _train(self, request: Request, digest: str) -> bytes:
        del digest
        if self._study.privacy.epsilon < NO_PRIVACY:
            raise PolicyError("request.kind: averaging has no privacy, and the study promises some")
        self._policy.check_training(request)
        bins = self._bins(request)
        shape, parameters = self._classifier(request, bins)
        coded = self._vault.every_row(bins)
        first, last = request.options["learning_rates"]
        trained = train_locally(
            parameters,
            features_of(coded, shape.features),
            coded.labels == self._study.label_values.index(self._study.label.positive),
            passes=request.options["steps"],
            rates=(first, last),
            seed=request.options["seed"],
            device=self._device,
        )
        return Reply(self._settings.site, arrays=pack(_CLASSIFIER, trained)).encode()

    def _classifier(self, request: Request, bins: list[np.ndarray]) -> tuple[ClassifierShape, Parameters]:
        """The classifier in a request.

        Raises:
            PolicyError: its arrays do not fit the study.
        """
        parameters = unpack(_CLASSIFIER, request.arrays)
        width = self._study.critic.width if HIDDEN in parameters else 0
        shape = _shape(self._study, sizes_of(bins), width=width)
        try:
            check_parameters(parameters, shape)
        except ValueError:
            raise PolicyError("request.arrays: do not fit a classifier of this study") from None
        self._policy.check_size(shape.cells)
        return shape, parameters


@dataclass(frozen=True)
class TrainedClassifier:
    """The end of a run: a classifier, which is what is published, and how it came about.

    method: of `METHODS`.
    study: that it was trained under.
    state: of the run.
    bins: over which it works.
    parameters: by layer.
    positive_share: of the label's positive class among units, as the one-way tables say: noised.
    """

    method: str
    study: Study
    state: RunState
    bins: Bins
    parameters: Parameters
    positive_share: float

    @property
    def epsilon(self) -> float | None:
        """What is claimed per unit and site at the study's delta; None: nothing."""
        epsilon = self.study.privacy.epsilon
        return None if epsilon >= NO_PRIVACY else epsilon

    @property
    def delta(self) -> float:
        """Of the claim."""
        return self.study.privacy.delta

    @cached_property
    def shape(self) -> ClassifierShape:
        """Of the classifier."""
        width = self.study.critic.width if HIDDEN in self.parameters else 0
        return _shape(self.study, self.bins.sizes, width=width)

    @property
    def n_parameters(self) -> int:
        """How many numbers are published."""
        return self.shape.cells

    def coded(self, table: WindowedTable) -> Coded:
        """Rows of a parsed table in the classifier's bins."""
        return join(encode(table, self.study), self.bins.maps)

    def logits(self, coded: Coded) -> np.ndarray:
        """Log odds of the positive class for rows in bins, (rows,) float64."""
        return logits(self.parameters, features_of(coded, self.shape.features))

    def predict(self, table: WindowedTable) -> np.ndarray:
        """Probability of the label's positive class for the rows of a parsed table, (rows,) float64; reads no label."""
        return np.asarray(expit(self.logits(self.coded(table))))

    def log_likelihood(self, table: WindowedTable) -> np.ndarray:
        """Logarithm of the probability of each row's own label, positive or not, (rows,) float64."""
        signs = np.where(is_positive(table.records, self.study), 1.0, -1.0)
        return np.asarray(log_expit(signs * self.logits(self.coded(table))))


class ClassifierCoordinator(Conductor[TrainedClassifier]):
    """Conducts one of `METHODS`, in as many rounds as the study has."""

    def __init__(
        self,
        study: Study,
        *,
        method: str,
        folder: Path,
        run: str,
        seed: int,
        credentials: Credentials,
        device: torch.device,
        on_step: Callable[[dict[str, Any]], None],
    ) -> None:
        """Prepare a run, or take up the one in `folder`; the arguments are `Conductor`'s, but for the method.

        Raises:
            ValueError: the study is not one that `adapt` made for the method.
            CheckpointError: the folder holds a run of another study, name or seed.
        """
        if adapt(study, method) != study:
            raise ValueError(f"study: expected one that was adapted to {method}")
        super().__init__(
            study, folder=folder, run=run, seed=seed, credentials=credentials, device=device, on_step=on_step
        )
        self._method = method

    def _learn(self, roster: Roster, bins: Bins) -> TrainedClassifier:
        study = self._study
        counts, positive = _label_counts(bins), study.label_values.index(study.label.positive)
        shares = counts / counts.sum()
        share = float(shares[positive])
        prior = min(max(share, _RAREST), 1 - _RAREST)
        shape = _shape(study, bins.sizes, width=0 if self._method == "dp-lr" else study.critic.width)
        start = initialise(shape, positive_share=prior, seed=self._seed(0, 0))
        if self._method == "fl":
            parameters = self._average(roster, bins, shape, start)
        else:
            parameters = self._descend(roster, bins, shape, start, units=float(counts.sum()), prior=prior)
            parameters = recentred(
                parameters, bins, shape.features, shares=shares, positive=positive, seed=self._seed(0, 1)
            )
        return TrainedClassifier(self._method, study, self._state, bins, parameters, share)

    def _average(
        self, roster: Roster, bins: Bins, shape: ClassifierShape, start: dict[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Federated averaging: passes over rows at some sites in turn, then the mean of theirs, weighted by units."""
        state, rounds = self._state, self._study.rounds
        parameters = state.generator or start
        rates = list(schedule(self._study.model.learning_rate, stretches=rounds.count))
        for number in range(state.rounds_done, rounds.count):
            arrays = {**pack_bins(bins.maps), **pack(_CLASSIFIER, parameters)}
            options = {"steps": rounds.local_steps, "learning_rates": [float(rate) for rate in rates[number]]}
            requests = {}
            for position, site in enumerate(_in_turn(roster.names, number, rounds.trainers)):
                own = {**options, "seed": self._seed(number, position)}
                requests[site] = self._request("train", f"train-{number + 1}", own, arrays)
            answers = self._ask(roster, requests, lambda site, reply: _check_reply(site, reply, shape))
            replies = answers.whole() if self._is_strict else answers.replies
            if replies:
                found = [unpack(_CLASSIFIER, reply.arrays) for reply in replies.values()]
                parameters = _mean(found, [state.units[site] for site in replies])
            self._end_round(number, parameters, trainers=list(requests))
        return parameters

    def _descend(
        self,
        roster: Roster,
        bins: Bins,
        shape: ClassifierShape,
        start: dict[str, np.ndarray],
        *,
        units: float,
        prior: float,
    ) -> dict[str, np.ndarray]:
        """Gradient descent, a step a round, on what all sites release. A resumed run repeats the steps it knows."""
        count, mechanism = self._study.rounds.count, shape.mechanism
        share = (1 - self._study.privacy.one_way_share) * _WHOLE / count
        layers = {name: torch.tensor(array, dtype=torch.float64) for name, array in start.items()}
        optimiser = self._optimiser(layers, shape, prior=prior)
        parameters = start
        for number in range(count):
            arrays = {**pack_bins(bins.maps), **pack(_CLASSIFIER, parameters)}
            name = f"gradient-{number + 1}"
            release = self._measure(roster, "critic", name, {"share": share}, arrays, mechanism.cells)
            gradient = shape.mean_gradient(release.counts * GRADIENT_SCALE, units=units)
            for layer, found in gradient.items():
                layers[layer].grad = torch.from_numpy(found)
            optimiser.step()
            parameters = {layer: value.numpy().astype(np.float32) for layer, value in layers.items()}
            if number >= self._state.rounds_done:
                self._end_round(number, parameters)
        return parameters

    def _optimiser(
        self, layers: dict[str, torch.Tensor], shape: ClassifierShape, *, prior: float
    ) -> torch.optim.Optimizer:
        if shape.width:
            return torch.optim.Adam(layers.values(), lr=self._study.critic.learning_rate, betas=_BETAS)
        curvature = prior * (1 - prior) * shape.features.most_squares
        return torch.optim.SGD(layers.values(), lr=_STEP / curvature, momentum=_MOMENTUM)

    def _end_round(self, number: int, parameters: dict[str, np.ndarray], **more: Any) -> None:
        state = self._state
        state.generator, state.rounds_done = parameters, number + 1
        self._record({"step": "round", "round": number + 1, "rounds": self._study.rounds.count, **more})


def recentred(
    parameters: Parameters, bins: Bins, shape: FeatureShape, *, shares: np.ndarray, positive: int, seed: int
) -> dict[str, np.ndarray]:
    """The same classifier with another intercept, so that its mean probability is the share of the positive class.

    What noise did to the weights adds up in the mean, and says nothing of anybody. The mean is over rows that are drawn
    from the one-way tables, a class, then column by column and step by step; in what order rows stand is left alone.

    Args:
        parameters: by layer.
        bins: with the released tables.
        shape: of the features.
        shares: (classes,), of the label's classes, between 0 and 1, both excluded.
        positive: which of them.
        seed: of the rows.
    """
    random = np.random.default_rng(seed)
    labels = random.choice(len(shares), size=_DRAWN, p=shares)
    steps = shape.blocks[-1][1] if shape.blocks else 0
    drawn: list[np.ndarray] = []
    for number, (binning, histogram) in enumerate(zip(bins.binnings, bins.histograms, strict=True)):
        size = 1 if number < shape.columns else steps
        own = np.empty((_DRAWN, size), dtype=np.int64)
        for label, counts in enumerate(histogram.counts):
            chances = np.maximum(np.bincount(binning.bin_of, weights=counts), 0.0) + _TINY
            rows = np.flatnonzero(labels == label)
            own[rows] = random.choice(len(chances), size=(len(rows), size), p=chances / chances.sum())
        drawn.append(own)
    records = np.concatenate(drawn[: shape.columns], axis=1)
    windows = np.stack(drawn[shape.columns :], axis=2) if steps else None
    found = logits(parameters, features_of(Coded(labels, records, windows), shape))

    def excess(shift: float) -> float:
        return float(expit(found + shift).mean() - shares[positive])

    shift = brentq(excess, -_FAR - found.max(), _FAR - found.min())
    return {**parameters, SCORES: _shifted(parameters[SCORES], shift)}


def _shifted(scores: np.ndarray, shift: float) -> np.ndarray:
    moved = scores.astype(np.float64)
    moved[-1] += shift
    return moved.astype(np.float32)


def _label_counts(bins: Bins) -> np.ndarray:
    """Units of each label class, (classes,), by the one-way tables of all columns; at least 1."""
    columns = bins.histograms[: bins.columns]
    counts = np.array([histogram.counts.sum(axis=1) for histogram in columns])
    precision = [1 / float(histogram.covariance.sum()) for histogram in columns]
    return np.maximum(np.average(counts, axis=0, weights=precision), 1.0)


def _in_turn(names: list[str], number: int, trainers: int) -> list[str]:
    """The sites that train in a round: as many as fit, one after the other round the roster."""
    size = min(trainers, len(names))
    return sorted(names[(number * size + position) % len(names)] for position in range(size))


def _check_reply(site: str, reply: Reply, shape: ClassifierShape) -> None:
    """Refuse what is no classifier of the study.

    Raises:
        ProtocolError: other layers, shapes or types.
    """
    try:
        check_parameters(unpack(_CLASSIFIER, reply.arrays), shape)
    except ValueError:
        raise ProtocolError(f"site {site}: a classifier that does not fit the study") from None


def _mean(found: list[dict[str, np.ndarray]], weights: list[float]) -> dict[str, np.ndarray]:
    """The weighted mean of several sites' parameters, float32."""
    return {
        name: np.average([one[name].astype(np.float64) for one in found], axis=0, weights=weights).astype(np.float32)
        for name in found[0]
    }
