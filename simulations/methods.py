"""What a run can be a run of: privshare, or what the field would do instead, over the same sites, splits and messages.

Every method is conducted over the same federation and ends in something that is published: rows, or a classifier. What
it promises is part of what it made; some of them promise nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from client.simulated_site import SiteFolder
from client.site import Site
from common.data.windows import WindowedTable
from common.study import Study
from common.synthesis.rows import draw_units
from server.conductor import Conductor
from server.publish import release_of, rows_to_publish
from server.rounds import Coordinator, Trained
from server.run_state import RunState
from simulations.baselines import classifiers, gan
from simulations.baselines.classifiers import ClassifierCoordinator, ClassifierSite, TrainedClassifier
from simulations.baselines.gan import GanCoordinator, GanSite
from simulations.federation import Engine, credentials_of, run_federation

_Outcome = TypeVar("_Outcome")


class Method(StrEnum):
    """The methods, by their names on the command line."""

    PRIVSHARE = "privshare"
    GAN = "gan"
    FL = "fl"
    FL_DP = "fl-dp"
    DP_LR = "dp-lr"
    LOCAL_ONLY = "local-only"
    REAL = "real"


DESCRIPTIONS: Mapping[Method, str] = {
    Method.PRIVSHARE: "privshare: a generator trained by all sites on noised releases",
    Method.GAN: "standard federated GAN, one discriminator, no privacy",
    Method.FL: "federated averaging of a classifier, no privacy; publishes a classifier",
    Method.FL_DP: "the same classifier by noised sums of clipped gradients; publishes a classifier",
    Method.DP_LR: "logistic regression by noised sums of clipped gradients; publishes a classifier",
    Method.LOCAL_ONLY: "privshare at one site alone",
    Method.REAL: "the sites' own rows, as if they might be published: what nothing can beat",
}

CLASSIFIERS = (Method.FL, Method.FL_DP, Method.DP_LR)
"""Those that publish a classifier and no rows."""

PRIVATE = (Method.PRIVSHARE, Method.FL_DP, Method.DP_LR, Method.LOCAL_ONLY)
"""Those that keep the study's epsilon; the others have none."""


@dataclass(frozen=True)
class Made:
    """What a method made: rows, or a classifier.

    state: of the run.
    rows: how many units are published; 0 of a classifier.
    draw: synthetic units, by their number and a seed, and with the label's classes in other shares if such are given.
    trained: of privshare, all that it learned and learned from.
    classifier: of the methods that publish one.
    """

    state: RunState
    rows: int = 0
    draw: Callable[[int, int, np.ndarray | None], WindowedTable] | None = None
    trained: Trained | None = None
    classifier: TrainedClassifier | None = None


def adapt(method: Method, study: Study) -> Study:
    """The study as a method needs it: one without privacy has a budget without meaning, and one round or more."""
    if method is Method.GAN:
        return gan.adapt(study)
    return classifiers.adapt(study, method.value) if method in CLASSIFIERS else study


def conduct(
    method: Method,
    study: Study,
    sites: Sequence[SiteFolder],
    engine: Engine,
    *,
    folder: Path,
    run: str,
    seed: int,
    device: torch.device,
    on_step: Callable[[dict[str, Any]], None],
) -> Made:
    """Run a method over simulated sites.

    Args:
        method: any but `Method.REAL`, which needs no federation.
        study: as `adapt` made it.
        sites: that take part.
        engine: how they compute.
        folder: of the run.
        run: its name.
        seed: of models and latents.
        device: of the coordinator.
        on_step: is told of every step.

    Raises:
        PrivShareError: whatever stopped it.
    """
    credentials = credentials_of([site.name for site in sites], seed=seed)

    def over(conductor: Conductor[_Outcome], site: type[Site]) -> _Outcome:
        results: list[_Outcome] = []
        run_federation(list(sites), lambda exchange: results.append(conductor.run(exchange)), engine, site=site)
        return results[0]

    start: dict[str, Any] = {
        "folder": folder,
        "run": run,
        "seed": seed,
        "credentials": credentials,
        "device": device,
        "on_step": on_step,
    }
    if method is Method.GAN:
        made = over(GanCoordinator(study, **start), GanSite)
        return Made(made.state, made.rows, lambda rows, seed, counts: made.draw(rows, seed, label_counts=counts))
    if method in CLASSIFIERS:
        classifier = over(ClassifierCoordinator(study, method=method.value, **start), ClassifierSite)
        return Made(classifier.state, classifier=classifier)
    trained = over(Coordinator(study, **start), Site)

    release = release_of(trained, study)

    def draw(rows: int, seed: int, counts: np.ndarray | None) -> WindowedTable:
        return draw_units(release, rows=rows, seed=seed, device=device, label_counts=counts)

    return Made(trained.state, rows_to_publish(trained, study), draw, trained)
