"""Quality and spending at the end of each stage of the noise (paper, table 1): possible where real rows may be seen."""

from collections import defaultdict
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch

from common.evaluation.distinguisher import distinguish
from common.evaluation.figures import People
from common.evaluation.frechet import measure_frechet
from common.evaluation.parts import compute
from common.evaluation.report import OnPart, utility_of
from common.privacy import budget
from common.study import Study
from common.synthesis.release import Release
from common.synthesis.rows import draw_units
from server.publish import release_of, rows_to_publish
from server.rounds import Trained

_MOST = 4000
"""Rows that are compared."""


def measure_stages(
    trained: Trained, people: People, study: Study, *, seed: int, device: torch.device, processes: int, on_part: OnPart
) -> list[dict[str, Any]]:
    """The generator as each stage left it, beside what had been spent by then.

    Args:
        trained: the end of a run.
        people: of the simulation.
        study: of the run.
        seed: of rows and classifiers.
        device: of the generator.
        processes: that measure.
        on_part: is told which stage has been measured.

    Returns:
        of each stage: the noise of its releases as a multiple of their sensitivity, the epsilon that the stages so far
        add up to at the worst site, and what rows of the generator are worth.
    """
    rows = min(rows_to_publish(trained, study), 2 * _MOST)
    parts = {
        f"stage {number}": partial(_measure, release_of(stage, study), people, study, rows, seed, device)
        for number, stage in enumerate(trained.stages, start=1)
    }
    done = compute(parts, processes=processes, on_part=on_part)
    return [
        {
            "stage": number,
            "noise_multiplier": _noise(trained, number),
            "epsilon": _epsilon(trained, study, number),
            **measured,
        }
        for number, measured in enumerate(done.values(), start=1)
    ]


def _measure(
    release: Release, people: People, study: Study, rows: int, seed: int, device: torch.device
) -> dict[str, Any]:
    table = draw_units(release, rows=rows, seed=seed, device=device)
    return {
        "frechet": asdict(measure_frechet(table, people.members, people.test, study, seed=seed, most=_MOST)),
        "distinguisher": asdict(distinguish(table, people.test, study, seed=seed, most=_MOST)),
        "utility": utility_of(table, people.test, study, seed=seed, learnt=_MOST),
    }


def _stage_of(name: str) -> int:
    """The stage of a release; 0 of what comes before all."""
    last = name.split("-")
    return next((int(part) for part in last[1:] if part.isdigit()), 0)


def _noise(trained: Trained, stage: int) -> float | None:
    """The mean noise multiplier of the stage's releases over sites; None where it has none."""
    multipliers = [
        event.noise_stddev / event.squared_sensitivity**0.5
        for name, release in trained.state.releases.items()
        for event in release.events.values()
        if _stage_of(name) == stage and event.account == "train"
    ]
    return float(np.mean(multipliers)) if multipliers else None


def _epsilon(trained: Trained, study: Study, stage: int) -> float:
    """What the releases up to a stage add up to at the worst site, for a unit that trains."""
    spent: dict[str, list[float]] = defaultdict(list)
    for name, release in trained.state.releases.items():
        for site, event in release.events.items():
            if _stage_of(name) <= stage and event.account == "train":
                spent[site].append(study.accountant.spend(event))
    return max(
        float(study.accountant.epsilon(spent=budget.total(own), delta=study.privacy.delta)) for own in spent.values()
    )
