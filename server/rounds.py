"""One run at the coordinator, from the roll call to a trained generator. Resumes from its last checkpoint.

It asks; every site decides for itself. Nothing here sees a row, and no guarantee rests on what happens here.
"""

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from common.data.encoding import Grid, make_grids
from common.data.histograms import histogram_layout
from common.data.queries import layout_of
from common.data.tables import sizes_of
from common.errors import CheckpointError, ExitCode, PolicyError, ProtocolError
from common.models.critics import MARGINALS, Adversary, Joins, expectations, make_cluster, relaxed
from common.models.embedding import EmbeddingMeans, freeze
from common.models.generator import Generator, GeneratorShape, draw_bins, initialise
from common.models.monitor import ranking_quality, score_layout
from common.models.neural import (
    GRADIENT_SCALE,
    apply_gradient,
    critic_parameters,
    fake_gradient,
    initialise_critic,
    load_critic,
    real_gradient,
)
from common.models.releases import Bins, Measured, Release, bins_from, targets_from
from common.models.targets import TableIndex, Target, TargetBuilder, Targets
from common.models.training import Stretch, average, load_parameters, parameters_of, schedule, train
from common.models.verdicts import accuracies, gate, heads_of, judge
from common.models.warm_start import warm_start
from common.privacy.events import GaussianEvent
from common.privacy.witness import Attestation, Statement, is_newer
from common.study import Study
from common.wire.messages import HELD_OUT, KEPT, Reply, Request
from common.wire.packing import (
    CRITIC,
    GENERATOR,
    critic_shape_of,
    pack,
    pack_bins,
    pack_groups,
    pack_targets,
    shape_of,
    unpack,
)
from common.wire.secure_sum import MaskAnnouncement, Participants
from server.aggregation import REACH, add_up, check_generator, check_release
from server.checkpoints import Checkpoint, load_latest, save_checkpoint, write_file
from server.exchange import Answers, Credentials, Exchange, Roster, call_roll
from server.noise_controller import NoisePlan, NoiseState, Quality, decide
from server.quality import fit_score, frechet_distance
from server.survey import Part, Survey, plan_survey, worst_fitted

_LOG = logging.getLogger(__name__)
# The largest share that two requests of one account may ask for together, with room for rounding.
_WHOLE = 1 - 1e-9
_MONITOR_ROWS = 20_000
_MEASURING = 0.5
"""Part of the rounds over which the measurements are spread."""
_FAKES = 8192
"""Rows that a generator makes for one step of a critic, and to see how many of them it catches."""
_SURE = 0.05
"""Largest standard error of a bought figure that the noise controller listens to."""
_LOSS_BATCHES = 4
"""How many times more latents than a step of training the losses are taken over."""
_RELEASE = "release."
_AVERAGED = "averaged."
_STAGE = "stage-"


@dataclass(frozen=True)
class SiteAccount:
    """What a site said of itself.

    bound: the most that each of its accounts may spend, as the study's accountant counts; public.
    key: its public key.
    ledger_head: its newest statement of its ledger.
    attestations: what other sites last attested of its ledger.
    mask: what it announced of its key for masks, where the study has them.
    """

    bound: float
    key: str
    ledger_head: Statement
    attestations: tuple[Attestation, ...] = ()
    mask: MaskAnnouncement | None = None

    def as_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read back what `as_dict` wrote."""
        return cls(
            data["bound"],
            data["key"],
            Statement.from_dict(data["ledger_head"]),
            tuple(map(Attestation.from_dict, data["attestations"])),
            _mask_of(data),
        )


@dataclass(frozen=True)
class Stage:
    """What a stage asks: the share of the discriminators' budget, and the tables of each part."""

    share: float
    tables: dict[str, list[int]]


@dataclass
class RunState:
    """Everything that a run has so far; what a checkpoint holds.

    units: of each site, as its noised one-way tables say; what a site weighs that a later release is without.
    losses: of each measured critic after the last round, in noise variances a cell; none right after a measurement.
    """

    run: str
    seed: int
    study: str
    accounts: dict[str, SiteAccount] = field(default_factory=dict)
    units: dict[str, float] = field(default_factory=dict)
    releases: dict[str, Release] = field(default_factory=dict)
    generator: dict[str, np.ndarray] = field(default_factory=dict)
    averaged: dict[str, np.ndarray] = field(default_factory=dict)
    rounds_done: int = 0
    losses: dict[str, float] = field(default_factory=dict)
    noise: NoiseState = field(default_factory=NoiseState)
    stages: list[Stage] = field(default_factory=list)
    first_distance: float | None = None
    validations: dict[str, dict[str, float | None]] = field(default_factory=dict)
    gates: list[tuple[float, ...]] = field(default_factory=list)
    accuracy: float | None = None
    critics: dict[str, np.ndarray] = field(default_factory=dict)
    monitor: dict[str, float | None] | None = None
    spent: dict[str, dict[str, float]] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def events(self) -> dict[str, list[GaussianEvent]]:
        """The events of each site, in the order of the releases that have an answer of it."""
        releases = self.releases.values()
        return {
            site: [release.events[site] for release in releases if site in release.events]
            for site in sorted(self.accounts)
        }

    @property
    def budget_used(self) -> float:
        """The largest share that any site has spent of any of its accounts."""
        return max((max(spent.values()) for spent in self.spent.values()), default=0.0)


@dataclass(frozen=True)
class Trained:
    """The end of a run: its state, the bins, the targets and the generator."""

    state: RunState
    bins: Bins
    targets: Targets
    generator: Generator


class Coordinator:
    """Runs one study over the sites that an exchange reaches."""

    def __init__(
        self,
        study: Study,
        *,
        folder: Path,
        run: str,
        seed: int,
        credentials: Credentials,
        device: torch.device,
        on_step: Callable[[dict[str, Any]], None],
    ) -> None:
        """Prepare a run, or take up the one in `folder`.

        Args:
            study: the study that the sites approved.
            folder: of the run; checkpoints and rounds.jsonl go there.
            run: names the run for ever.
            seed: of models and latents, not of privacy noise.
            credentials: with the members of the federation: all must answer, or the study's quorum.
            device: where to refine the generator.
            on_step: is told of every step that ended, with what rounds.jsonl gets.

        Raises:
            CheckpointError: the folder holds a run of another study, name or seed.
        """
        self._study = study
        self._folder = folder
        self._credentials = credentials
        self._quorum = min(study.rounds.quorum or len(credentials.sites), len(credentials.sites))
        self._device = device
        self._on_step = on_step
        self._grids, self._channels = make_grids(study.measured), make_grids(study.channels)
        self._classes = len(study.label_values)
        self._rates = list(schedule(study.model.learning_rate, stretches=study.rounds.count))
        noise = study.noise
        self._plan = NoisePlan(
            mode=noise.schedule,
            rounds=noise.rounds,
            kappa=noise.kappa,
            direction=noise.direction,
            max_share=noise.max_share,
            goal=noise.goal,
            reference_auc=noise.reference_auc,
        )
        self._nonces: dict[str, str] = {}
        self._masks: Participants | None = None
        self._state = RunState(run=run, seed=seed, study=study.digest())
        latest = load_latest(folder / "checkpoints")
        if latest is not None:
            self._state = _restore(latest, expected=self._state)

    def run(self, exchange: Exchange) -> Trained:
        """The whole run, from wherever it stands."""
        roster = self._call_roll(exchange)
        self._pass_on(roster)
        self._agree_on_masks(roster)
        bins = self._measure_one_way(roster)
        roster = roster.only(self._state.accounts)
        trained = self._learn(roster, bins)
        self._close(roster)
        return trained

    def _call_roll(self, exchange: Exchange) -> Roster:
        """The sites of the run that are there: of a new one those that answer well, of an old one its own.

        Raises:
            PrivShareError: too few.
            CheckpointError: there are others than the run began with.
        """
        state = self._state
        began = set(state.accounts) if state.releases else set()
        roster, answers = call_roll(exchange, self._request("describe", "describe"), self._credentials)
        replies = self._noted("describe", answers).of_at_least(self._quorum)
        members = began or set(replies)
        if not members <= set(self._credentials.sites) or len(members & set(replies)) < self._quorum:
            raise CheckpointError("sites: the run began with other sites")
        state.accounts = {site: account for site, account in state.accounts.items() if site in members}
        return roster.only(members & set(replies))

    def _measure_one_way(self, roster: Roster) -> Bins:
        cells = histogram_layout(self._grids, self._classes, self._channels).n_cells
        options = {"share": self._study.privacy.one_way_share}
        release = self._measure(roster, "one_way", "one_way", options, {}, cells)
        return bins_from(release, self._study)

    def _learn(self, roster: Roster, bins: Bins) -> Trained:
        """Rounds of training; before some of them the discriminators measure, and each measurement ends a stage."""
        state, rounds = self._state, self._study.rounds
        shape = shape_of(self._study, bins.sizes)
        survey = plan_survey(self._study, bins, [account.bound for account in state.accounts.values()])
        learner = _Learner(shape, survey, self._study, self._device, seed=self._seed(0, 0))
        if state.generator:
            load_parameters(learner.generator, state.generator)
            load_parameters(learner.averaged, state.averaged)
        stages = self._study.noise.rounds
        # All within the first rounds: what is learned late must be learned from everything.
        begins = [int(_MEASURING * stage * rounds.count / stages) for stage in range(stages)]
        measured: list[Measured] = []
        embeddings: list[Release] = []
        for number in range(rounds.count):
            for stage in (stage for stage in range(stages) if begins[stage] == number):
                measured += self._measure_stage(roster, bins, survey, learner, stage)
                embeddings += self._measure_embedding(roster, bins, learner, stage)
                known = ([], []) if self._is_local else (measured, embeddings)
                learner.targets = targets_from(bins, shape, survey.groups, *known)
                if number >= state.rounds_done:
                    self._begin_stage(learner, stage)
                self._train_critic(roster, bins, learner, stage)
            if number >= state.rounds_done:
                self._train_round(roster, bins, learner, number)
        refined = rounds.refine_steps and not self._is_local
        trained = Trained(state, bins, learner.targets, learner.averaged if refined else learner.generator)
        state.monitor = self._validate(roster, bins, trained.targets, trained.generator, stages)
        return trained

    def _begin_stage(self, learner: "_Learner", stage: int) -> None:
        """Take up new releases; what had learned all that it could from fewer had learned some of their noise."""
        state = self._state
        if stage == 0 or self._is_fitted(learner):
            learner.begin()
            # What a run that is resumed within the stage finds.
            state.generator, state.averaged = parameters_of(learner.generator), parameters_of(learner.averaged)
        state.losses = {}

    @property
    def _is_local(self) -> bool:
        """Whether the discriminators stay at the sites, and only generators meet here."""
        return self._study.discriminators.scope == "local"

    @property
    def _is_strict(self) -> bool:
        """Whether every member must answer everything."""
        return self._quorum == len(self._credentials.sites)

    def _measure_stage(
        self, roster: Roster, bins: Bins, survey: Survey, learner: "_Learner", stage: int
    ) -> list[Measured]:
        """Decide the noise of a stage, then measure with it."""
        state = self._state
        if stage == len(state.stages):
            quality = self._quality(roster, bins, learner, stage) if stage else Quality()
            state.noise, decision = decide(self._plan, state.noise, quality)
            again = {
                part.name: learner.worst_fitted(part, share=self._study.noise.again if stage else 1.0).tolist()
                for part in survey.parts
            }
            state.stages.append(Stage(decision.share, again))
            # On disk before a site is asked: a resumed run must ask the same.
            self._record({"step": "noise", "stage": stage + 1, "inputs": vars(quality), **decision.as_dict()})
        asked = state.stages[stage]
        return [
            self._measure_part(
                roster, f"{part.name}-{stage + 1}", asked.share, part.only(np.array(asked.tables[part.name])), bins
            )
            for part in survey.parts
        ]

    def _measure_part(self, roster: Roster, name: str, share: float, part: Part, bins: Bins) -> Measured:
        """Some tables of the catalogue, over groups of bins, for a share of what the part has."""
        emphasis = np.ones(len(part.numbers), dtype=np.int64)
        cells = [group[bin_of] for group, bin_of in zip(part.maps, bins.maps, strict=True)]
        arrays = {**pack_bins(cells), "tables": part.numbers, "emphasis": emphasis}
        size = layout_of(part.queries, sizes_of(part.maps), self._classes).n_cells
        whole = (1 - self._study.privacy.one_way_share) * part.share * _WHOLE
        release = self._measure(roster, "tables", name, {"share": share * whole}, arrays, size)
        return Measured(part.queries, emphasis, part.maps, release)

    def _measure_embedding(self, roster: Roster, bins: Bins, learner: "_Learner", stage: int) -> list[Release]:
        share = self._share_of("semantic", stage)
        if not share:
            return []
        cells = self._classes * learner.features.cells
        name = f"embedding-{stage + 1}"
        return [self._measure(roster, "embedding", name, {"share": share}, pack_bins(bins.maps), cells)]

    def _share_of(self, discriminator: str, stage: int) -> float:
        """Share of a site's whole budget that a discriminator has in a stage."""
        shares = self._study.discriminators.shares(windows=self._study.windows is not None)
        rest = (1 - self._study.privacy.one_way_share) * _WHOLE
        share = rest * shares.get(discriminator, 0.0) * self._state.stages[stage].share
        if discriminator != "neural":
            return share
        # A neural critic learns from what a generator got wrong, so it begins with the second stage.
        return share / (1 - self._state.stages[0].share) if stage else 0.0

    def _train_critic(self, roster: Roster, bins: Bins, learner: "_Learner", stage: int) -> None:
        """Steps of the neural critic on noised gradients of real units and exact ones of fakes, then its gate."""
        share = self._share_of("neural", stage)
        state, network = self._state, self._study.critic
        if not share:
            return
        if stage <= len(state.gates):
            learner.adopt(unpack(f"{_STAGE}{stage}.", state.critics), state.gates[stage - 1])
            return
        optimiser = torch.optim.Adam(learner.critic.parameters(), lr=network.learning_rate, betas=(0.5, 0.9))
        cells = learner.critic.shape.cells
        for step in range(network.steps):
            arrays = {**pack_bins(bins.maps), **pack(CRITIC, critic_parameters(learner.critic))}
            release = self._measure(
                roster, "critic", f"critic-{stage + 1}-{step + 1}", {"share": share / network.steps}, arrays, cells
            )
            real = real_gradient(
                release.counts * GRADIENT_SCALE,
                clip_norm=network.clip_norm,
                units=network.sampling * float(learner.targets.label_counts.sum()),
            )
            fakes = learner.fakes(self._seed(stage, 1000 + step))
            apply_gradient(
                learner.critic, optimiser, real + fake_gradient(learner.critic, *fakes, clip_norm=network.clip_norm)
            )
        learner.gate = self._gate(roster, bins, learner, stage)
        state.gates.append(learner.gate)
        state.critics |= pack(f"{_STAGE}{stage}.", critic_parameters(learner.critic))
        self._record(
            {
                "step": "critic",
                "stage": stage + 1,
                "heads": dict(zip(heads_of(learner.critic), learner.gate, strict=True)),
            }
        )

    def _gate(self, roster: Roster, bins: Bins, learner: "_Learner", stage: int) -> tuple[float, ...]:
        """Weight of each head of the critic, from its noised accuracy on held-out units; closed without hold-out."""
        heads = len(heads_of(learner.critic))
        if self._study.privacy.holdout == 0:
            return (0.0,) * heads
        arrays = {**pack_bins(bins.maps), **pack(CRITIC, critic_parameters(learner.critic))}
        share = self._holdout_share() / (self._study.noise.rounds - 1)
        release = self._measure(roster, "verdict", f"verdict-{stage + 1}", {"share": share}, arrays, 2 * heads)
        verdicts = judge(learner.critic, *learner.fakes(self._seed(stage, 999)))
        found = accuracies(release.counts.reshape(heads, 2), release.variance, verdicts)
        self._state.accuracy = max(accuracy for accuracy, _ in found) if found else None
        return gate(found, heads)

    def _holdout_share(self) -> float:
        """Part of the held-out units' budget for the verdicts on the critic, or for the validations, if both are on."""
        neural = "neural" in self._study.discriminators.shares(windows=self._study.windows is not None)
        return 0.5 * _WHOLE if neural else _WHOLE

    def _quality(self, roster: Roster, bins: Bins, learner: "_Learner", stage: int) -> Quality:
        """What is known of the generator before a stage is decided: free figures, and what held-out units say."""
        state = self._state
        distance = learner.frechet_distance(self._grids, seed=self._seed(self._study.rounds.count, 2))
        if distance is not None:
            state.first_distance = state.first_distance or distance
        bought = self._validate(roster, bins, learner.targets, learner.averaged, stage)
        return Quality(
            frechet_ratio=distance / state.first_distance if distance is not None and state.first_distance else None,
            critic_accuracy=state.accuracy,
            # What noise hides is no reason to change anything.
            validation_auc=bought["auc"] if bought and (bought["standard_error"] or 1.0) <= _SURE else None,
        )

    def _train_round(self, roster: Roster, bins: Bins, learner: "_Learner", number: int) -> None:
        """Local steps at some sites, their mean, then steps here; none once the releases are fitted."""
        state, rounds = self._state, self._study.rounds
        is_fitted = self._is_fitted(learner)
        trainers = _in_turn(roster.names, number, rounds.trainers) if rounds.local_steps and not is_fitted else []
        if trainers:
            self._train_at_sites(roster, trainers, learner, bins, number)
        model = self._study.model
        stretch = Stretch(
            0 if is_fitted else rounds.refine_steps,
            *self._rates[number],
            model.batch,
            self._seed(number, min(rounds.trainers, len(self._credentials.sites))),
        )
        learner.train(stretch)
        if not rounds.refine_steps:
            load_parameters(learner.averaged, parameters_of(learner.generator))
        state.losses, loss = learner.losses(self._seed(rounds.count, 3))
        state.generator, state.averaged = parameters_of(learner.generator), parameters_of(learner.averaged)
        state.rounds_done = number + 1
        self._record(
            {
                "step": "round",
                "round": number + 1,
                "rounds": rounds.count,
                "trainers": trainers,
                "learning_rate": self._rates[number][0],
                "loss": loss,
                "losses": state.losses,
            }
        )

    def _is_fitted(self, learner: "_Learner") -> bool:
        """Whether all that critics could still say is noise; see `train`.

        Where discriminators stay at the sites, nothing here says so.
        """
        losses = self._state.losses
        is_told = any(name != MARGINALS for name in losses) and not self._is_local
        return is_told and max(losses.values()) <= 1 and learner.adversary is None

    def _train_at_sites(
        self, roster: Roster, trainers: list[str], learner: "_Learner", bins: Bins, number: int
    ) -> None:
        """Local steps at some sites from the same generator, then the mean of theirs."""
        arrays = {
            **pack(GENERATOR, parameters_of(learner.generator)),
            **pack_bins(bins.maps),
            **(pack_groups(learner.groups) if self._is_local else pack_targets(learner.targets)),
        }
        options: dict[str, Any] = {"steps": self._study.rounds.local_steps}
        if learner.adversary is not None:
            arrays |= pack(CRITIC, critic_parameters(learner.critic))
            options["weights"] = list(learner.adversary.weights)
        rates = [float(rate) for rate in self._rates[number]]
        requests = {}
        for position, site in enumerate(trainers):
            seed = self._seed(number, position)
            own = {**options, "learning_rates": rates, "seed": seed}
            requests[site] = self._request("train", f"train-{number + 1}", own, arrays)
        sent = parameters_of(learner.generator)
        reach = REACH * options["steps"] * max(rates)
        answers = self._ask(roster, requests, lambda site, reply: check_generator(site, reply, sent=sent, reach=reach))
        replies = answers.whole() if self._is_strict else answers.replies
        if replies:
            load_parameters(
                learner.generator, average([unpack(GENERATOR, replies[site].arrays) for site in sorted(replies)])
            )

    def _validate(
        self, roster: Roster, bins: Bins, targets: Targets, generator: Generator, stage: int
    ) -> dict[str, float | None] | None:
        """How well synthetic rows teach to rank held-out units, bought after a stage; None without hold-out."""
        study, name = self._study, f"monitor-{stage}"
        if study.privacy.holdout == 0:
            return None
        if name in self._state.validations:
            return self._state.validations[name]
        shares = targets.label_counts / targets.label_counts.sum()
        random = np.random.default_rng(self._seed(study.rounds.count, 0))
        labels = random.choice(self._classes, size=_MONITOR_ROWS, p=shares)
        rows, _ = draw_bins(generator, labels, seed=self._seed(study.rounds.count, 1), device=self._device)
        positive = labels == study.label_values.index(study.label.positive)
        weights = fit_score(rows, positive, generator.shape.sizes, seed=0)
        arrays = {**pack_bins(bins.maps), "weights": weights}
        layout = score_layout()
        # The last one says how good the outcome is, and gets half of what there is.
        stages = study.noise.rounds
        whole = self._holdout_share()
        share = whole if stages == 1 else 0.5 * whole / (1 if stage == stages else stages - 1)
        try:
            release = self._measure(roster, "monitor", name, {"share": share}, arrays, layout.n_cells)
            quality = ranking_quality(next(layout.split(release.counts)), release.variance)
        except PolicyError as refused:
            # A figure about the generator, not a part of it: the run is good without.
            _LOG.warning("event=unmonitored reason=%s", refused)
            quality = None
        result = {"auc": quality[0] if quality else None, "standard_error": quality[1] if quality else None}
        self._state.validations[name] = result
        self._record({"step": "monitor_result", "stage": stage, **result})
        return result

    def _measure(
        self,
        roster: Roster,
        kind: str,
        name: str,
        options: dict[str, Any],
        arrays: dict[str, np.ndarray],
        cells: int,
    ) -> Release:
        """A release of all sites, or the one that was made under this name before the run was interrupted."""
        state = self._state
        kept, masks = self._is_local and kind in KEPT, self._masks
        if masks is not None:
            options = {**options, "participants": masks.digest}
        if name not in state.releases:
            requests = {site: self._request(kind, name, options, arrays) for site in roster.names}
            account = "holdout" if kind in HELD_OUT else "train"

            def check(site: str, reply: Reply) -> None:
                event = check_release(site, reply, cells=cells, kept=kept, masks=masks)
                most = options["share"] * state.accounts[site].bound * (1 + 1e-9)
                if event.account != account or not self._study.accountant.spend(event) <= most:
                    raise ProtocolError(f"site {site}: spent another budget than it was asked to, or more")

            answers = self._ask_confirmed(roster, requests, check)
            replies = answers.of_at_least(self._quorum)
            release = add_up(replies, cells=cells, kept=kept, masks=masks)
            # Under masks nobody is missing, and nothing tells what one of them weighs.
            state.releases[name] = self._weighed(kind, release, replies) if masks is None else release
            for site, event in state.releases[name].events.items():
                spent = state.spent.setdefault(site, {"train": 0.0, "holdout": 0.0})
                spent[event.account] += self._study.accountant.spend(event) / state.accounts[site].bound
            self._pass_on(roster)
            stddev = {site: event.noise_stddev / event.scale for site, event in state.releases[name].events.items()}
            self._record({"step": name, "cells": cells, "noise_stddev": stddev})
        release = state.releases[name]
        if len(release.counts) != cells:
            raise CheckpointError("the checkpoint's release does not fit the study")
        return release

    def _weighed(self, kind: str, release: Release, replies: Mapping[str, Reply]) -> Release:
        """A release as it stands for all sites of the run: those that it lacks are taken to be like the others.

        The first one fixes who is in the run, and what each weighs.
        """
        state = self._state
        if kind == "one_way":
            layout = histogram_layout(self._grids, self._classes, self._channels)
            smallest = int(np.argmin([np.prod(shape) for shape in layout.shapes]))
            for site, reply in replies.items():
                counted = list(layout.split(reply.arrays["counts"]))[smallest].sum() / release.events[site].scale
                state.units[site] = max(1.0, float(counted))
            state.accounts = {site: account for site, account in state.accounts.items() if site in replies}
        factor = sum(state.units.values()) / sum(state.units[site] for site in replies)
        return (
            release
            if factor == 1
            else replace(release, counts=release.counts * factor, variance=release.variance * factor**2)
        )

    def _ask_confirmed(
        self, roster: Roster, requests: dict[str, Request], check: Callable[[str, Reply], object]
    ) -> Answers:
        """Ask for releases; sites that started anew since the roll call are confirmed by the others first."""
        answers = self._ask(roster, requests, check)
        anew = (ExitCode.UNCONFIRMED, ExitCode.UNMASKED)
        again = {site: requests[site] for site, fault in answers.failures.items() if fault.code in anew}
        if not again:
            return answers
        described = self._ask(roster, dict.fromkeys(roster.names, self._request("describe", "describe")))
        if self._masks is not None:
            described.whole()
        self._pass_on(roster)
        self._agree_on_masks(roster)
        later = self._ask(roster, again, check)
        failures = {site: fault for site, fault in answers.failures.items() if site not in again}
        return Answers(
            dict(sorted((answers.replies | later.replies).items())), dict(sorted((failures | later.failures).items()))
        )

    def _ask(
        self, roster: Roster, requests: Mapping[str, Request], check: Callable[[str, Reply], object] | None = None
    ) -> Answers:
        """Ask sites, and keep what they say of themselves; what does not pass is on record, with its code."""
        answers = roster.ask(requests)
        if check is not None:
            answers = answers.checked(check)
        return self._noted(next(iter(requests.values())).name, answers) if requests else answers

    def _noted(self, request: str, answers: Answers) -> Answers:
        """Keep what sites say of themselves; a reply that contradicts what one said before is a failure."""
        answers = answers.checked(self._take_note)
        codes = {site: fault.code.name for site, fault in answers.failures.items()}
        if codes and not self._is_strict:
            self._record({"step": "rejected", "request": request, "sites": codes})
        return answers

    def _take_note(self, site: str, reply: Reply) -> None:
        """Keep what a site says of itself: at the roll call all of it, later the newest head of its ledger.

        Raises:
            ProtocolError: it has another key or budget than before, or its ledger went back.
        """
        facts, accounts = reply.facts, self._state.accounts
        if "ledger_head" not in facts:
            return
        known, said = accounts.get(site), _head_of(site, reply)
        if "key" in facts:
            account = _account_of(site, reply, said, public=self._credentials.sites[site])
            if self._is_masked and account.mask is None:
                raise ProtocolError(f"site {site}: announced no key for masks")
            if known is not None and known.mask != account.mask:
                raise ProtocolError(
                    f"site {site}: has another key for masks than when the run began, and what was masked with the old "
                    "one cannot be added up; start a new run"
                )
            if known is not None and (known.bound, known.key) != (account.bound, account.key):
                raise ProtocolError(f"site {site}: has another key or budget than when the run began")
            known = known or account
        # The roll call comes first.
        if known is None or said.site != site or not said.is_by(known.key):
            raise ProtocolError(f"site {site}: its ledger's head is not signed by it")
        # The reply to a request that is asked again is as old as its first one.
        is_older = not is_newer(said, known.ledger_head) and said.sequence < known.ledger_head.sequence
        if "key" in facts and is_older:
            raise ProtocolError(f"site {site}: its ledger lacks entries that it had before; it was restored or copied")
        if "key" in facts:
            self._nonces[site] = str(facts.get("nonce"))
        accounts[site] = known if is_older else replace(known, ledger_head=said)

    def _pass_on(self, roster: Roster) -> None:
        """Have every site witness the others' ledgers, and tell each what the others attest of its own."""
        found = self._attested(roster, self._nonces)
        confirms = {
            site: self._request("confirm", "confirm", {"attestations": [asdict(one) for one in own]})
            for site, own in found.items()
        }
        self._ask(roster, confirms).of_at_least(self._quorum)

    @property
    def _is_masked(self) -> bool:
        """Whether sites mask what they release."""
        return self._study.privacy.noise_trust != "local"

    def _agree_on_masks(self, roster: Roster) -> None:
        """Tell every site who masks in the run, and with which key."""
        if not self._is_masked:
            return
        said = [account.mask for account in self._state.accounts.values() if account.mask is not None]
        peers = self._credentials.sites
        # What a site will refuse is better said here, where somebody reads it.
        self._masks = Participants.verified(said, own=said[0], peers=peers)
        announcements = [asdict(one) for one in self._masks.announcements]
        request = self._request("masks", "masks", {"announcements": announcements})
        self._ask(roster, dict.fromkeys(roster.names, request)).whole()

    def _close(self, roster: Roster) -> None:
        """The last heads of all ledgers and what the others attest of them, for the certificate."""
        request = self._request("describe", "describe")
        self._ask(roster, dict.fromkeys(roster.names, request)).of_at_least(self._quorum)
        for site, own in self._attested(roster, {}).items():
            self._state.accounts[site] = replace(self._state.accounts[site], attestations=own)
        if self._is_masked:  # a site that does not hear of it keeps its key until the next run
            self._ask(roster, dict.fromkeys(roster.names, self._request("masks", "masks", {"announcements": []})))

    def _attested(self, roster: Roster, nonces: dict[str, str]) -> dict[str, tuple[Attestation, ...]]:
        """What the others attest of each site's ledger, once they have seen its newest head."""
        accounts = self._state.accounts
        heads = [asdict(account.ledger_head) for account in accounts.values()]
        request = self._request("witness", "witness", {"heads": heads, "nonces": nonces})
        answers = self._ask(roster, dict.fromkeys(roster.names, request), self._check_attestations)
        found = [
            one for site, reply in answers.of_at_least(self._quorum).items() for one in _attestations_of(site, reply)
        ]
        return {site: tuple(one for one in found if one.site == site) for site in roster.names if site in accounts}

    def _check_attestations(self, site: str, reply: Reply) -> None:
        """Refuse what a site did not sign itself: the certificate shows it as the site's word.

        Raises:
            ProtocolError: any of them.
        """
        public = self._credentials.sites[site]
        if not all(one.witness == site and one.is_by(public) for one in _attestations_of(site, reply)):
            raise ProtocolError(f"site {site}: attestations that it did not sign")

    def _record(self, line: dict[str, Any]) -> None:
        """Checkpoint first, then tell: what is in rounds.jsonl can be resumed from."""
        state = self._state
        line["budget_used"] = state.budget_used
        state.history.append(line)
        save_checkpoint(self._folder / "checkpoints", len(state.history), _checkpoint_of(state))
        lines = "".join(json.dumps(one, allow_nan=False) + "\n" for one in state.history)
        write_file(self._folder / "rounds.jsonl", lines.encode())
        self._on_step(line)

    def _request(
        self,
        kind: str,
        name: str,
        options: dict[str, Any] | None = None,
        arrays: dict[str, np.ndarray] | None = None,
    ) -> Request:
        return Request(kind, self._state.study, self._state.run, name, options or {}, arrays or {})

    def _seed(self, number: int, part: int) -> int:
        """A model seed for one part of one round; never used for privacy noise."""
        return int(np.random.SeedSequence([self._state.seed, number, part]).generate_state(1)[0])


class _Learner:
    """The generator at the coordinator, its average, and the critics that it learns from."""

    def __init__(self, shape: GeneratorShape, survey: Survey, study: Study, device: torch.device, *, seed: int) -> None:
        self._seed = seed
        self.generator, self.averaged = (initialise(shape, seed=seed).to(device) for _ in range(2))
        self.targets = TargetBuilder(shape, survey.groups).build(np.ones(shape.classes))
        self.features = freeze(shape, study.digest())
        self.critic = initialise_critic(critic_shape_of(study, shape), seed=seed).to(device)
        self.gate: tuple[float, ...] = ()
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
        weights = tuple(self._study.critic.strength * weight for weight in self.gate)
        return Adversary(self.critic, weights) if any(weights) else None

    def adopt(self, parameters: dict[str, np.ndarray], weights: tuple[float, ...]) -> None:
        """Take up a critic and its gate from a checkpoint."""
        load_critic(self.critic, parameters)
        self.gate = weights

    def train(self, stretch: Stretch) -> float:
        """As `common.models.training.train`, against what was released so far."""
        cluster = make_cluster(self.targets, self._means, self.adversary, self._device)
        return train(self.generator, cluster, stretch, self._device, averaged=self.averaged)

    @torch.no_grad()
    def losses(self, seed: int) -> tuple[dict[str, float], float]:
        """Of each measured critic, and of all together, of the averaged generator, in noise variances a cell."""
        random = torch.Generator(device=self._device).manual_seed(seed)
        classes = self.averaged.shape.classes
        labels = torch.arange(classes, device=self._device).repeat_interleave(_LOSS_BATCHES * self._study.model.batch)
        noise = torch.randn(len(labels), self.averaged.shape.noise, generator=random, device=self._device)
        cluster = make_cluster(self.targets, self._means, None, self._device)
        measured = cluster.measure(self.averaged(noise, labels), classes)
        return {name: float(loss) for name, loss in measured.items()}, float(cluster.fuse(measured))

    @torch.no_grad()
    def fakes(self, seed: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """Rows of the averaged generator as a critic reads units, one-hot, label shares as released, and labels."""
        shares = self.targets.label_counts / self.targets.label_counts.sum()
        labels = np.random.default_rng(seed).choice(len(shares), size=_FAKES, p=shares)
        random = torch.Generator(device=self._device).manual_seed(seed)
        noise = torch.randn(_FAKES, self.averaged.shape.noise, generator=random, device=self._device)
        outcome = self.averaged(noise, torch.from_numpy(labels).to(self._device))
        records, steps = relaxed(outcome, random)
        return records.cpu().numpy() > 0.5, None if steps is None else steps.cpu().numpy() > 0.5, labels

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

    def frechet_distance(self, grids: Sequence[Grid], *, seed: int) -> float | None:
        """Of the averaged generator from the released moments."""
        return frechet_distance(self.targets, self.averaged, grids, self._survey.groups, seed=seed, device=self._device)


def _head_of(site: str, reply: Reply) -> Statement:
    """What a site says of its ledger.

    Raises:
        ProtocolError: not of its form.
    """
    try:
        return Statement.from_dict(reply.facts["ledger_head"])
    except ProtocolError as fault:
        raise ProtocolError(f"site {site}: {fault}") from None


def _account_of(site: str, reply: Reply, head: Statement, *, public: str) -> SiteAccount:
    """What a site says of itself at the roll call.

    Raises:
        ProtocolError: not of its form.
    """
    try:
        account = SiteAccount(float(reply.facts["bound"]), str(reply.facts["key"]), head, mask=_mask_of(reply.facts))
    except (KeyError, TypeError, ValueError, OverflowError, ProtocolError):
        account = None
    if account is None or not 0 < account.bound < math.inf:
        raise ProtocolError(f"site {site}: does not say its budget and key")
    if account.key != public:  # the others would refuse to witness it
        raise ProtocolError(f"site {site}: has another key than the federation knows")
    return account


def _attestations_of(site: str, reply: Reply) -> list[Attestation]:
    """What a site attests.

    Raises:
        ProtocolError: not of its form.
    """
    found = reply.facts.get("attestations", [])
    if not isinstance(found, list):
        raise ProtocolError(f"site {site}: attestations: not of their form")
    try:
        return [Attestation.from_dict(one) for one in found]
    except ProtocolError as fault:
        raise ProtocolError(f"site {site}: {fault}") from None


def _mask_of(data: Mapping[str, Any]) -> MaskAnnouncement | None:
    found = data.get("mask")
    return None if found is None else MaskAnnouncement.from_dict(found)


def _in_turn(names: list[str], number: int, trainers: int) -> list[str]:
    """The sites that train in a round: as many as fit, one after the other round the roster."""
    size = min(trainers, len(names))
    return sorted(names[(number * size + position) % len(names)] for position in range(size))


def _checkpoint_of(state: RunState) -> Checkpoint:
    facts = {
        "run": state.run,
        "seed": state.seed,
        "study": state.study,
        "accounts": {site: account.as_dict() for site, account in state.accounts.items()},
        "units": state.units,
        "releases": {
            kind: {
                "variance": release.variance,
                "events": {site: event.as_dict() for site, event in release.events.items()},
            }
            for kind, release in state.releases.items()
        },
        "rounds_done": state.rounds_done,
        "losses": state.losses,
        "noise": state.noise.as_dict(),
        "stages": [vars(stage) for stage in state.stages],
        "first_distance": state.first_distance,
        "validations": state.validations,
        "gates": state.gates,
        "accuracy": state.accuracy,
        "monitor": state.monitor,
        "spent": state.spent,
        "history": state.history,
    }
    releases = {kind: release.counts for kind, release in state.releases.items()}
    return Checkpoint(
        facts,
        {
            **pack(_RELEASE, releases),
            **pack(GENERATOR, state.generator),
            **pack(_AVERAGED, state.averaged),
            **pack(CRITIC, state.critics),
        },
    )


def _restore(checkpoint: Checkpoint, *, expected: RunState) -> RunState:
    facts = checkpoint.facts
    for name, value in (("study", expected.study), ("run", expected.run), ("seed", expected.seed)):
        if facts.get(name) != value:
            raise CheckpointError(f"{name}: the checkpoint belongs to another; use another folder")
    counts = unpack(_RELEASE, checkpoint.arrays)
    return RunState(
        run=expected.run,
        seed=expected.seed,
        study=expected.study,
        accounts={site: SiteAccount.from_dict(account) for site, account in facts["accounts"].items()},
        units=facts["units"],
        releases={
            kind: Release(
                counts[kind],
                release["variance"],
                {site: GaussianEvent.from_dict(event) for site, event in release["events"].items()},
            )
            for kind, release in facts["releases"].items()
        },
        generator=unpack(GENERATOR, checkpoint.arrays),
        averaged=unpack(_AVERAGED, checkpoint.arrays),
        rounds_done=facts["rounds_done"],
        losses=facts["losses"],
        noise=NoiseState.from_dict(facts["noise"]),
        stages=[Stage(**stage) for stage in facts["stages"]],
        first_distance=facts["first_distance"],
        validations=facts["validations"],
        gates=[tuple(weights) for weights in facts["gates"]],
        accuracy=facts["accuracy"],
        critics=unpack(CRITIC, checkpoint.arrays),
        monitor=facts["monitor"],
        spent=facts["spent"],
        history=facts["history"],
    )
