"""One run at the coordinator, from the roll call to a trained generator. Resumes from its last checkpoint.

It asks; every site decides for itself. Nothing here sees a row, and no guarantee rests on what happens here.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.data.encoding import make_grids
from common.data.histograms import histogram_layout
from common.data.tables import all_pairs
from common.errors import CheckpointError, PolicyError, ProtocolError
from common.models.critics import StatisticalCritic, Targets
from common.models.generator import Generator, draw_bins, initialise
from common.models.monitor import fit_score, ranking_quality, score_layout
from common.models.training import Stretch, average, load_parameters, parameters_of, schedule, train
from common.privacy.events import GaussianEvent
from common.study import Study
from common.wire.messages import Request
from common.wire.packing import GENERATOR, pack, pack_bins, pack_targets, shape_of, unpack
from server.aggregation import Bins, Release, add_up, bins_from, targets_from
from server.checkpoints import Checkpoint, load_latest, save_checkpoint, write_file
from server.exchange import Exchange, Roster, call_roll

_LOG = logging.getLogger(__name__)
# The largest share that two requests of one account may ask for together, with room for rounding.
_WHOLE = 1 - 1e-9
_MONITOR_ROWS = 20_000
_RELEASE = "release."
_AVERAGED = "averaged."


@dataclass(frozen=True)
class SiteAccount:
    """What a site said of itself: its budget (squared mu, public) and its newest ledger head."""

    squared_mu: float
    ledger_head: str


@dataclass
class RunState:
    """Everything that a run has so far; what a checkpoint holds."""

    run: str
    seed: int
    study: str
    accounts: dict[str, SiteAccount] = field(default_factory=dict)
    releases: dict[str, Release] = field(default_factory=dict)
    generator: dict[str, np.ndarray] = field(default_factory=dict)
    averaged: dict[str, np.ndarray] = field(default_factory=dict)
    rounds_done: int = 0
    monitor: dict[str, float | None] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def events(self) -> dict[str, list[GaussianEvent]]:
        """The events of each site, in the order of the releases."""
        return {site: [release.events[site] for release in self.releases.values()] for site in sorted(self.accounts)}

    @property
    def budget_used(self) -> float:
        """The largest share that any site has spent of any of its accounts."""
        shares = [0.0]
        for site, events in self.events.items():
            for account in ("train", "holdout"):
                spent = sum(event.spend for event in events if event.account == account)
                shares.append(spent / self.accounts[site].squared_mu)
        return max(shares)


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
        sites: int,
        device: torch.device,
        on_step: Callable[[dict[str, Any]], None],
    ) -> None:
        """Prepare a run, or take up the one in `folder`.

        Args:
            study: the study that the sites approved.
            folder: of the run; checkpoints and rounds.jsonl go there.
            run: names the run for ever.
            seed: of models and latents, not of privacy noise.
            sites: how many must answer.
            device: where to refine the generator.
            on_step: is told of every step that ended, with what rounds.jsonl gets.

        Raises:
            CheckpointError: the folder holds a run of another study, name or seed.
        """
        self._study = study
        self._folder = folder
        self._sites = sites
        self._device = device
        self._on_step = on_step
        self._grids = make_grids(study.features)
        self._classes = len(study.label_values)
        self._rates = list(schedule(study.model.learning_rate, stretches=study.rounds.count))
        self._state = RunState(run=run, seed=seed, study=study.digest())
        latest = load_latest(folder / "checkpoints")
        if latest is not None:
            self._state = _restore(latest, expected=self._state)

    def run(self, exchange: Exchange) -> Trained:
        """The whole run, from wherever it stands."""
        roster, replies = call_roll(exchange, self._request("describe", "describe"), expected=self._sites)
        state = self._state
        if state.accounts and set(state.accounts) != set(roster.names):
            raise CheckpointError("sites: the run began with other sites")
        for site in roster.names:
            facts = replies[site].facts
            state.accounts[site] = SiteAccount(float(facts["squared_mu"]), str(facts["ledger_head"]))
        bins = self._measure_one_way(roster)
        targets = self._measure_pairs(roster, bins)
        generator = self._train(roster, bins, targets)
        self._monitor(roster, bins, targets, generator)
        return Trained(state, bins, targets, generator)

    def _measure_one_way(self, roster: Roster) -> Bins:
        cells = histogram_layout(self._grids, self._classes).n_cells
        options = {"share": self._study.privacy.one_way_share}
        release = self._measure(roster, "one_way", options, {}, cells)
        return bins_from(release, self._grids, classes=self._classes, max_bins=self._study.model.max_bins)

    def _measure_pairs(self, roster: Roster, bins: Bins) -> Targets:
        cells = all_pairs(bins.sizes, self._classes).n_cells
        options = {"share": (1 - self._study.privacy.one_way_share) * _WHOLE}
        # A table of one column and the label has no pairs: its one-way table says everything.
        release = (
            self._measure(roster, "pairs", options, pack_bins(bins.maps), cells)
            if cells
            else Release(np.zeros(0), 1.0, {})
        )
        return targets_from(bins, release, classes=self._classes)

    def _train(self, roster: Roster, bins: Bins, targets: Targets) -> Generator:
        state, rounds, model = self._state, self._study.rounds, self._study.model
        shape = shape_of(self._study, bins.sizes)
        generator, averaged = (initialise(shape, seed=self._seed(0, 0)).to(self._device) for _ in range(2))
        if state.generator:
            load_parameters(generator, state.generator)
            load_parameters(averaged, state.averaged)
        critic = StatisticalCritic(targets, self._device)
        common = {**pack_targets(targets), **pack_bins(bins.maps)}
        for number in range(state.rounds_done, rounds.count):
            trainers = _in_turn(roster.names, number, rounds.trainers)
            if rounds.local_steps:
                self._train_at_sites(roster, trainers, generator, common, number)
            stretch = Stretch(rounds.refine_steps, *self._rates[number], model.batch, self._seed(number, len(trainers)))
            loss = train(generator, critic, stretch, self._device, averaged=averaged)
            state.generator, state.averaged = parameters_of(generator), parameters_of(averaged)
            state.rounds_done = number + 1
            self._record(
                {
                    "step": "round",
                    "round": number + 1,
                    "rounds": rounds.count,
                    "trainers": trainers if rounds.local_steps else [],
                    "learning_rate": self._rates[number][0],
                    "loss": loss if np.isfinite(loss) else None,
                }
            )
        return averaged if rounds.refine_steps else generator

    def _train_at_sites(
        self, roster: Roster, trainers: list[str], generator: Generator, common: dict[str, np.ndarray], number: int
    ) -> None:
        """Local steps at some sites from the same generator, then the mean of theirs."""
        arrays = {**pack(GENERATOR, parameters_of(generator)), **common}
        rates = [float(rate) for rate in self._rates[number]]
        requests = {}
        for position, site in enumerate(trainers):
            seed = self._seed(number, position)
            options = {"steps": self._study.rounds.local_steps, "learning_rates": rates, "seed": seed}
            requests[site] = self._request("train", f"train-{number + 1}", options, arrays)
        replies = roster.ask(requests)
        try:
            load_parameters(generator, average([unpack(GENERATOR, replies[site].arrays) for site in sorted(replies)]))
        except (ValueError, KeyError):
            raise ProtocolError("sites: a generator that came back does not fit the study") from None

    def _monitor(self, roster: Roster, bins: Bins, targets: Targets, generator: Generator) -> None:
        state, study = self._state, self._study
        if study.privacy.holdout == 0 or state.monitor is not None:
            return
        shares = targets.label_counts / targets.label_counts.sum()
        random = np.random.default_rng(self._seed(self._study.rounds.count, 0))
        labels = random.choice(self._classes, size=_MONITOR_ROWS, p=shares)
        rows = draw_bins(generator, labels, seed=self._seed(study.rounds.count, 1), device=self._device)
        positive = labels == study.label_values.index(study.label.positive)
        weights = fit_score(rows, positive, bins.sizes, seed=0)
        arrays = {**pack_bins(bins.maps), "weights": weights}
        layout = score_layout()
        try:
            release = self._measure(roster, "monitor", {"share": _WHOLE}, arrays, layout.n_cells)
            quality = ranking_quality(next(layout.split(release.counts)), release.variance)
        except PolicyError as refused:
            # A figure about the generator, not a part of it: the run is good without.
            _LOG.warning("event=unmonitored reason=%s", refused)
            quality = None
        state.monitor = {"auc": quality[0] if quality else None, "standard_error": quality[1] if quality else None}
        self._record({"step": "monitor_result", **state.monitor})

    def _measure(
        self,
        roster: Roster,
        kind: str,
        options: dict[str, Any],
        arrays: dict[str, np.ndarray],
        cells: int,
    ) -> Release:
        """A release of all sites, or the one that was made before the run was interrupted."""
        state = self._state
        if kind not in state.releases:
            requests = {site: self._request(kind, kind, options, arrays) for site in roster.names}
            replies = roster.ask(requests)
            state.releases[kind] = add_up(replies, cells=cells)
            for site, reply in replies.items():
                state.accounts[site] = SiteAccount(state.accounts[site].squared_mu, str(reply.facts["ledger_head"]))
            stddev = {site: event.noise_stddev / event.scale for site, event in state.releases[kind].events.items()}
            self._record({"step": kind, "cells": cells, "noise_stddev": stddev})
        release = state.releases[kind]
        if len(release.counts) != cells:
            raise CheckpointError("the checkpoint's release does not fit the study")
        return release

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


def _in_turn(names: list[str], number: int, trainers: int) -> list[str]:
    """The sites that train in a round: as many as fit, one after the other round the roster."""
    size = min(trainers, len(names))
    return sorted(names[(number * size + position) % len(names)] for position in range(size))


def _checkpoint_of(state: RunState) -> Checkpoint:
    facts = {
        "run": state.run,
        "seed": state.seed,
        "study": state.study,
        "accounts": {site: vars(account) for site, account in state.accounts.items()},
        "releases": {
            kind: {
                "variance": release.variance,
                "events": {site: event.as_dict() for site, event in release.events.items()},
            }
            for kind, release in state.releases.items()
        },
        "rounds_done": state.rounds_done,
        "monitor": state.monitor,
        "history": state.history,
    }
    releases = {kind: release.counts for kind, release in state.releases.items()}
    return Checkpoint(
        facts, {**pack(_RELEASE, releases), **pack(GENERATOR, state.generator), **pack(_AVERAGED, state.averaged)}
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
        accounts={site: SiteAccount(**account) for site, account in facts["accounts"].items()},
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
        monitor=facts["monitor"],
        history=facts["history"],
    )
