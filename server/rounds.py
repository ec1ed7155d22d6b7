"""One run at the coordinator, from the roll call to a trained generator. Resumes from its last checkpoint.

It asks; every site decides for itself. Nothing here sees a row, and no guarantee rests on what happens here.
"""

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from common.data.queries import Coded, Family, layout_of
from common.data.tables import one_way, sizes_of
from common.errors import ExitCode, PolicyError
from common.models.critics import MARGINALS
from common.models.embedding import SCALE
from common.models.generator import Generator, draw_bins, initialise
from common.models.monitor import ranking_quality, score_layout
from common.models.neural import (
    GRADIENT_SCALE,
    critic_optimiser,
    critic_parameters,
    improve,
)
from common.models.releases import Bins, Measured, Release, targets_from
from common.models.targets import Targets
from common.models.training import Stretch, average, load_parameters, median, parameters_of, schedule
from common.models.verdicts import Opening, gate, heads_of, is_given_up, judge, verdicts_on
from common.wire.agenda import discriminators_share, held_out_share, validation_share
from common.wire.packing import (
    CRITIC,
    GENERATOR,
    pack,
    pack_bins,
    pack_groups,
    pack_targets,
    shape_of,
    unpack,
)
from server.aggregation import REACH, check_generator
from server.conductor import Conductor
from server.exchange import Roster
from server.learner import Learner
from server.noise_controller import NoisePlan, Quality, decide
from server.plausibility import Form
from server.quality import fit_score
from server.run_state import RunState, Stage
from server.survey import Part, Survey, plan_survey

_LOG = logging.getLogger(__name__)
_MONITOR_ROWS = 20_000
_MEASURING = 0.5
"""Part of the rounds over which the measurements are spread."""
_SURE = 0.05
"""Largest standard error of a bought figure that the noise controller listens to."""
STAGE = "stage-"


@dataclass(frozen=True)
class Trained:
    """The end of a run: its state, the bins, the targets and the generator."""

    state: RunState
    bins: Bins
    targets: Targets
    generator: Generator

    @property
    def stages(self) -> list["Trained"]:
        """The run as it stood at the end of each stage, the last of them the end of the run."""
        found = []
        for stage in range(1, len(self.state.stages)):
            generator = initialise(self.generator.shape, seed=0).to(next(self.generator.parameters()).device)
            load_parameters(generator, unpack(f"{STAGE}{stage}.", self.state.snapshots))
            found.append(replace(self, generator=generator))
        return [*found, self]


class Coordinator(Conductor[Trained]):
    """Trains a generator against what the sites release."""

    @cached_property
    def _rates(self) -> list[tuple[float, float]]:
        """Learning rates at the ends of each round."""
        return list(schedule(self._study.model.learning_rate, stretches=self._study.rounds.count))

    @cached_property
    def _plan(self) -> NoisePlan:
        noise = self._study.noise
        return NoisePlan(
            mode=noise.schedule,
            rounds=noise.rounds,
            kappa=noise.kappa,
            direction=noise.direction,
            max_share=noise.max_share,
            goal=noise.goal,
            reference_auc=noise.reference_auc,
        )

    def _learn(self, roster: Roster, bins: Bins) -> Trained:
        """Rounds of training; before some of them the discriminators measure, and each measurement ends a stage."""
        state, rounds = self._state, self._study.rounds
        shape = shape_of(self._study, bins.sizes)
        survey = plan_survey(self._study, bins, [account.bound for account in state.accounts.values()])
        learner = Learner(shape, survey, self._study, self._device, seed=self._seed(0, 0))
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
        trained = Trained(state, bins, learner.targets, learner.averaged if self._refine_steps else learner.generator)
        state.monitor = self._validate(roster, bins, trained.targets, trained.generator, stages)
        return trained

    def _begin_stage(self, learner: "Learner", stage: int) -> None:
        """Take up new releases; what had learned all that it could from fewer had learned some of their noise."""
        state, ended = self._state, parameters_of(learner.averaged)
        if stage == 0 or self._is_fitted(learner):
            learner.begin()
            # What a run that is resumed within the stage finds.
            state.generator, state.averaged = parameters_of(learner.generator), parameters_of(learner.averaged)
        # What the first stage starts from is the end of stage 0.
        state.snapshots |= pack(f"{STAGE}{stage}.", ended if stage else state.averaged)
        state.losses = {}

    def _measure_stage(
        self, roster: Roster, bins: Bins, survey: Survey, learner: "Learner", stage: int
    ) -> list[Measured]:
        """Decide the noise of a stage, then measure with it."""
        state = self._state
        if stage == len(state.stages):
            quality = self._quality(roster, bins, learner, stage) if stage else self._untrained()
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
                roster,
                f"{part.name}-{stage + 1}",
                self._measured_share(part.share, stage),
                part.only(np.array(asked.tables[part.name])),
                bins,
            )
            for part in survey.parts
        ]

    def _measure_part(self, roster: Roster, name: str, share: float, part: Part, bins: Bins) -> Measured:
        """Some tables of the catalogue, over groups of bins, for a share of a site's whole budget."""
        cells = [group[bin_of] for group, bin_of in zip(part.maps, bins.maps, strict=True)]
        arrays = {**pack_bins(cells), "tables": part.numbers, "emphasis": part.emphasis}
        layout = layout_of(part.queries, sizes_of(part.maps), self._classes)
        # Each unit is in a cell of a pair; how its steps are spread over other tables, only the site knows.
        whole = [query.family == Family.PAIR for query in part.queries]
        form = self._form(layout, emphasis=part.emphasis.tolist(), whole=whole)
        release = self._measure(roster, "tables", name, {"share": share}, arrays, form)
        return Measured(part.queries, part.emphasis, part.maps, release)

    def _measure_embedding(self, roster: Roster, bins: Bins, learner: "Learner", stage: int) -> list[Release]:
        share = self._measured_share(self._shares.get("semantic", 0.0), stage)
        if not share:
            return []
        form = Form.of_vectors(self._classes * learner.features.cells, scale=SCALE)
        name = f"embedding-{stage + 1}"
        return [self._measure(roster, "embedding", name, {"share": share}, pack_bins(bins.maps), form)]

    @cached_property
    def _shares(self) -> dict[str, float]:
        """Of each discriminator that is on, of what one-way tables leave."""
        return self._study.discriminators.shares(windows=self._study.windows is not None)

    def _measured_share(self, share: float, stage: int) -> float:
        """Of a site's whole budget, what a measured discriminator with so much of what one-way tables leave has."""
        whole, decided = discriminators_share(self._study), self._state.stages[stage].share
        if not share or not self._is_silenced(stage):
            return whole * share * decided
        # All measured ones together take up what the neural one would have spent, each by its part of them.
        left = self._neural_share(stage) / whole / (1 - self._shares["neural"])
        return whole * share * max(decided, min(decided + left, self._study.noise.max_share))

    def _neural_share(self, stage: int) -> float:
        """Of a site's whole budget, for the neural discriminator in a stage as long as it is heard."""
        if stage == 0:
            # It learns from what a generator got wrong, so it begins with the second stage.
            return 0.0
        first, this = (self._state.stages[at].share for at in (0, stage))
        later = min(this / (1 - first), self._study.noise.max_share)
        return discriminators_share(self._study) * self._shares.get("neural", 0.0) * later

    def _is_silenced(self, stage: int) -> bool:
        """Whether the critic was given up in an earlier stage."""
        return is_given_up(self._state.gates[: max(stage - 1, 0)], measurements=self._study.noise.rounds)

    def _train_critic(self, roster: Roster, bins: Bins, learner: "Learner", stage: int) -> None:
        """Steps of the neural critic on noised gradients of real units and exact ones of fakes, then its gate."""
        share = self._neural_share(stage)
        state, network = self._state, self._study.critic
        if not share or self._is_silenced(stage):
            return
        if self._is_local:
            self._train_own_critics(roster, bins, learner, stage)
            return
        if stage <= len(state.gates):
            learner.adopt(unpack(f"{STAGE}{stage}.", state.critics), state.gates[stage - 1])
            return
        optimiser = critic_optimiser(learner.critic, learning_rate=network.learning_rate)
        form = Form.of_vectors(learner.critic.shape.cells, scale=GRADIENT_SCALE, sampling=network.sampling)
        for step in range(network.steps):
            arrays = {**pack_bins(bins.maps), **pack(CRITIC, critic_parameters(learner.critic))}
            release = self._measure(
                roster, "critic", f"critic-{stage + 1}-{step + 1}", {"share": share / network.steps}, arrays, form
            )
            improve(
                learner.critic,
                optimiser,
                release.counts * GRADIENT_SCALE,
                learner.fakes(self._seed(stage, 1000 + step)),
                clip_norm=network.clip_norm,
                units=network.sampling * float(learner.targets.label_counts.sum()),
                last=step == network.steps - 1,
            )
        learner.gate = self._gate(roster, bins, learner, stage)
        state.gates.append(learner.gate)
        state.critics |= pack(f"{STAGE}{stage}.", critic_parameters(learner.critic))
        self._record(
            {
                "step": "critic",
                "stage": stage + 1,
                "heads": dict(zip(heads_of(learner.critic), learner.gate.weights, strict=True)),
            }
        )

    def _train_own_critics(self, roster: Roster, bins: Bins, learner: "Learner", stage: int) -> None:
        """Steps of the critics that stay at the sites, against fakes of the generator here, then their gates."""
        network, heads = self._study.critic, len(heads_of(learner.critic))
        arrays = {**pack_bins(bins.maps), **pack(GENERATOR, parameters_of(learner.generator))}
        form = Form.of_vectors(learner.critic.shape.cells, scale=GRADIENT_SCALE, sampling=network.sampling)
        share = self._neural_share(stage) / network.steps
        for step in range(network.steps):
            options = {"share": share, "step": step, "seed": self._seed(stage, 1000 + step)}
            self._measure(roster, "critic", f"critic-{stage + 1}-{step + 1}", options, arrays, form)
        if self._study.privacy.holdout > 0:
            options = {"share": self._verdict_share, "seed": self._seed(stage, 999)}
            form = self._form(one_way([2] * heads, 1), held_out=self._held_out)
            self._measure(roster, "verdict", f"verdict-{stage + 1}", options, arrays, form)

    @property
    def _verdict_share(self) -> float:
        """Of the held-out units' budget, for the verdicts on a critic after a stage."""
        return held_out_share(self._study) / (self._study.noise.rounds - 1)

    def _gate(self, roster: Roster, bins: Bins, learner: "Learner", stage: int) -> Opening:
        """Of each head of the critic, from its noised accuracy on held-out units; closed without hold-out."""
        heads = len(heads_of(learner.critic))
        if self._study.privacy.holdout == 0:
            return gate(None, heads)
        arrays = {**pack_bins(bins.maps), **pack(CRITIC, critic_parameters(learner.critic))}
        form = self._form(one_way([2] * heads, 1), held_out=self._held_out)
        options = {"share": self._verdict_share}
        release = self._measure(roster, "verdict", f"verdict-{stage + 1}", options, arrays, form)
        fakes = judge(learner.critic, *learner.fakes(self._seed(stage, 999)))
        found = verdicts_on(release.counts.reshape(heads, 2), release.variance, fakes)
        # A head that guesses tells by chance, and of several the best one is heard.
        told = [one.telling for one in found or () if one.telling_error <= _SURE]
        self._state.accuracy = max(told, default=None)
        return gate(found, heads)

    @property
    def _held_out(self) -> float:
        """Share of held-out units that a site's counts can be compared with; 0 where equal records go together."""
        return self._study.privacy.holdout if self._study.unit.key is not None else 0.0

    def _untrained(self) -> Quality:
        """Of a generator before its first step, by definition: nothing learned, and nothing taught."""
        return Quality(frechet_ratio=1.0, validation_auc=0.5 if self._study.privacy.holdout else None)

    def _quality(self, roster: Roster, bins: Bins, learner: "Learner", stage: int) -> Quality:
        """What is known of the generator before a stage is decided: free figures, and what held-out units say."""
        first, seed = unpack(f"{STAGE}0.", self._state.snapshots), self._seed(self._study.rounds.count, 2)
        bought = self._validate(roster, bins, learner.targets, learner.averaged, stage)
        # What noise hides is no reason to change anything.
        return Quality(
            frechet_ratio=learner.frechet_ratio(first, (*self._grids, *self._channels), seed=seed),
            # Of the stage before: a critic that was given up said its last in an earlier one.
            critic_accuracy=None if self._is_silenced(stage - 1) else self._state.accuracy,
            validation_auc=bought["auc"] if bought and (bought["standard_error"] or 1.0) <= _SURE else None,
        )

    def _train_round(self, roster: Roster, bins: Bins, learner: "Learner", number: int) -> None:
        """Local steps at some sites, their mean, then steps here; none once the releases are fitted."""
        state, rounds = self._state, self._study.rounds
        is_fitted = self._is_fitted(learner)
        steps = 0 if is_fitted else self._study.site_steps
        trainers = _in_turn(roster.names, number, rounds.trainers) if steps else []
        if trainers:
            self._train_at_sites(roster, trainers, learner, bins, number)
        model = self._study.model
        stretch = Stretch(
            0 if is_fitted else self._refine_steps,
            *self._rates[number],
            model.batch,
            self._seed(number, min(rounds.trainers, len(self._credentials.sites))),
        )
        learner.train(stretch)
        if not self._refine_steps:
            load_parameters(learner.averaged, parameters_of(learner.generator))
        losses = learner.losses(self._seed(rounds.count, 3))
        state.losses = losses.said
        state.generator, state.averaged = parameters_of(learner.generator), parameters_of(learner.averaged)
        state.rounds_done = number + 1
        self._record(
            {
                "step": "round",
                "round": number + 1,
                "rounds": rounds.count,
                "trainers": trainers,
                "learning_rate": self._rates[number][0],
                "loss": losses.total,
                "losses": losses.said,
                "weights": losses.weights,
            }
        )

    @property
    def _refine_steps(self) -> int:
        """Steps that are taken here in a round; none where only sites know what their discriminators say."""
        return 0 if self._is_local else self._study.rounds.refine_steps

    def _is_fitted(self, learner: "Learner") -> bool:
        """Whether all that critics could still say is noise.

        Where discriminators stay at the sites, nothing here says so.
        """
        losses = self._state.losses
        is_told = any(name != MARGINALS for name in losses) and not self._is_local
        return is_told and learner.is_fitted(losses)

    def _train_at_sites(self, roster: Roster, trainers: list[str], learner: "Learner", bins: Bins, number: int) -> None:
        """Local steps at some sites from the same generator, then the mean or the median of theirs."""
        arrays = {
            **pack(GENERATOR, parameters_of(learner.generator)),
            **pack_bins(bins.maps),
            **(pack_groups(learner.groups) if self._is_local else pack_targets(learner.targets)),
        }
        options: dict[str, Any] = {"steps": self._study.site_steps}
        if learner.adversary is not None:
            arrays |= pack(CRITIC, critic_parameters(learner.critic))
            options |= {name: list(part) for name, part in vars(learner.adversary.opening).items()}
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
            join = {"mean": average, "median": median}[self._study.rounds.aggregation]
            load_parameters(
                learner.generator, join([unpack(GENERATOR, replies[site].arrays) for site in sorted(replies)])
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
        drawn = draw_bins(generator, labels, seed=self._seed(study.rounds.count, 1), device=self._device)
        positive = labels == study.label_values.index(study.label.positive)
        weights = fit_score(Coded(labels, *drawn), positive, bins.sizes, seed=0)
        arrays = {**pack_bins(bins.maps), "weights": weights}
        layout = score_layout()
        form = self._form(layout, held_out=self._held_out)
        try:
            release = self._measure(roster, "monitor", name, {"share": validation_share(study, stage)}, arrays, form)
            quality = ranking_quality(next(layout.split(release.counts)), release.variance)
        except PolicyError as refused:
            # A figure about the generator, not a part of it: the run is good without. Only a steward may decide so; a
            # site that cannot answer now can do so later.
            if refused.code not in (ExitCode.BUDGET_REFUSED, ExitCode.POLICY_REFUSED):
                raise
            _LOG.warning("event=unmonitored reason=%s", refused)
            quality = None
        result = {"auc": quality[0] if quality else None, "standard_error": quality[1] if quality else None}
        self._state.validations[name] = result
        self._record({"step": "monitor_result", "stage": stage, **result})
        return result


def _in_turn(names: list[str], number: int, trainers: int) -> list[str]:
    """The sites that train in a round: as many as fit, one after the other round the roster."""
    size = min(trainers, len(names))
    return sorted(names[(number * size + position) % len(names)] for position in range(size))
