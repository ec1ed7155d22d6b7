"""Everything that a run of the coordinator has so far, and its form on disk.

A run that was interrupted goes on from its last checkpoint: the same releases, the same generator, the same seeds.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np

from common.errors import CheckpointError
from common.models.releases import Release
from common.models.verdicts import Opening
from common.privacy.events import GaussianEvent
from common.privacy.spending import Spending
from common.privacy.witness import Attestation, Statement
from common.wire.packing import (
    CRITIC,
    GENERATOR,
    pack,
    unpack,
)
from common.wire.secure_sum import MaskAnnouncement
from server.checkpoints import Checkpoint
from server.noise_controller import NoiseState
from server.plausibility import Units

_RELEASE = "release."
_AVERAGED = "averaged."
_SNAPSHOT = "snapshot."


@dataclass(frozen=True)
class SiteAccount:
    """What a site said of itself.

    bound: the most that each of its accounts may spend, as the study's accountant counts; public.
    key: its public key.
    ledger_head: its newest statement of its ledger.
    spending: what it signed, at that head, that the study was charged.
    attestations: what other sites last attested of its ledger.
    mask: what it announced of its key for masks, where the study has them.
    """

    bound: float
    key: str
    ledger_head: Statement
    spending: Spending
    attestations: tuple[Attestation, ...] = ()
    mask: MaskAnnouncement | None = None

    def as_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "bound": self.bound,
            "key": self.key,
            "ledger_head": self.ledger_head.as_dict(),
            "spending": self.spending.as_dict(),
            "attestations": [one.as_dict() for one in self.attestations],
            "mask": None if self.mask is None else asdict(self.mask),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read back what `as_dict` wrote."""
        return cls(
            data["bound"],
            data["key"],
            Statement.from_dict(data["ledger_head"]),
            Spending.from_dict(data["spending"]),
            tuple(map(Attestation.from_dict, data["attestations"])),
            mask_of(data),
        )


@dataclass(frozen=True)
class Stage:
    """What a stage asks: the share of the discriminators' budget, and the tables of each part."""

    share: float
    tables: dict[str, list[int]]


@dataclass
class RunState:
    """Everything that a run has so far; what a checkpoint holds.

    units: of each site, as its noised one-way tables say; what a site weighs that a later release is without, and
        what its later releases must agree with. None of sites that mask.
    snapshots: the averaged generator at the end of each stage but the last, names prefixed by `stage-N.`; `stage-0.` is
        that before the first step.
    losses: of each measured critic after the last round, in noise variances a cell; none right after a measurement.
    """

    run: str
    seed: int
    study: str
    accounts: dict[str, SiteAccount] = field(default_factory=dict)
    units: dict[str, Units] = field(default_factory=dict)
    releases: dict[str, Release] = field(default_factory=dict)
    generator: dict[str, np.ndarray] = field(default_factory=dict)
    averaged: dict[str, np.ndarray] = field(default_factory=dict)
    snapshots: dict[str, np.ndarray] = field(default_factory=dict)
    rounds_done: int = 0
    losses: dict[str, float] = field(default_factory=dict)
    noise: NoiseState = field(default_factory=NoiseState)
    stages: list[Stage] = field(default_factory=list)
    validations: dict[str, dict[str, float | None]] = field(default_factory=dict)
    gates: list[Opening] = field(default_factory=list)
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


def mask_of(data: Mapping[str, Any]) -> MaskAnnouncement | None:
    """What a site announced of its key for masks, if it did."""
    found = data.get("mask")
    return None if found is None else MaskAnnouncement.from_dict(found)


def checkpoint_of(state: RunState) -> Checkpoint:
    """A state as it goes to disk."""
    facts = {
        "run": state.run,
        "seed": state.seed,
        "study": state.study,
        "accounts": {site: account.as_dict() for site, account in state.accounts.items()},
        "units": {site: asdict(units) for site, units in state.units.items()},
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
        "validations": state.validations,
        "gates": [vars(opening) for opening in state.gates],
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
            **pack(_SNAPSHOT, state.snapshots),
        },
    )


def restore(checkpoint: Checkpoint, *, expected: RunState) -> RunState:
    """The state in a checkpoint.

    Raises:
        CheckpointError: it is of another study, run or seed than expected.
    """
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
        units={site: Units(tuple(units["counts"]), units["stddev"]) for site, units in facts["units"].items()},
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
        validations=facts["validations"],
        gates=[Opening(**{name: tuple(part) for name, part in one.items()}) for one in facts["gates"]],
        accuracy=facts["accuracy"],
        critics=unpack(CRITIC, checkpoint.arrays),
        snapshots=unpack(_SNAPSHOT, checkpoint.arrays),
        monitor=facts["monitor"],
        spent=facts["spent"],
        history=facts["history"],
    )
