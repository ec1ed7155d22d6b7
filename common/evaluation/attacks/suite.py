"""All attacks on one subject, each in the words of evaluation.json."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from common.data.windows import WindowedTable
from common.evaluation.attacks.attributes import infer_attributes
from common.evaluation.attacks.coordinator_view import Releases, attack_releases
from common.evaluation.attacks.games import MembershipAttack, strongest, widened
from common.evaluation.attacks.inversion import extract, invert
from common.evaluation.attacks.linkability import link
from common.evaluation.attacks.membership import RARE_CLASS, attack_membership
from common.evaluation.attacks.singling_out import single_out
from common.evaluation.attacks.white_box import Published, attack_generator
from common.evaluation.figures import Claim, Figure, People, Population
from common.study import Study


@dataclass(frozen=True)
class Target:
    """What attackers have.

    synthetic: the published table.
    claim: of its privacy.
    published: the generator, if one was released.
    releases: what the coordinator saw, if there was one.
    device: of the generator.
    """

    synthetic: WindowedTable
    claim: Claim
    published: Published | None = None
    releases: Releases | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class Effort:
    """How hard attackers try.

    attacked: most members, and controls.
    predicates: to single out.
    latents: that a generator is asked about.
    many_secrets: whether more than the label is guessed.
    searched: whether latents are searched too.
    """

    attacked: int
    predicates: int
    latents: int
    many_secrets: bool = True
    searched: bool = False


def attack(
    target: Target, people: People, study: Study, effort: Effort, *, seed: int, on_part: Callable[[str], None]
) -> dict[str, Any]:
    """Every attack, ready for JSON.

    Args:
        target: what attackers have.
        people: members, controls, and whom attackers may know.
        study: of all.
        effort: how hard they try.
        seed: of their choices.
        on_part: is told which attack comes next.
    """
    members, controls, reference = people.members, people.control, people.reference
    epsilon, delta = target.claim.epsilon, target.claim.delta
    on_part("membership")
    suite = attack_membership(
        target.synthetic,
        members,
        controls,
        reference,
        study,
        epsilon=epsilon,
        delta=delta,
        seed=seed,
        most=effort.attacked,
    )
    attacks: dict[str, MembershipAttack] = dict(suite.attacks)
    groups = {RARE_CLASS: (positive_units(members, study), positive_units(controls, study))}
    found: dict[str, Any] = {}
    if target.published is not None:
        on_part("the released generator")
        attacks |= attack_generator(
            target.published,
            members,
            controls,
            reference,
            study,
            groups=groups,
            epsilon=epsilon,
            delta=delta,
            seed=seed,
            most=effort.attacked,
            latents=effort.latents,
            device=torch.device(target.device),
            deep=effort.searched,
        )
    if target.releases is not None:
        on_part("what the coordinator saw")
        attacks |= attack_releases(
            target.releases,
            members,
            controls,
            study,
            groups=groups,
            epsilon=epsilon,
            delta=delta,
            seed=seed,
            most=effort.attacked,
            device=torch.device(target.device),
        )
    name, figure = strongest(attacks)
    found |= {
        "membership": {which: asdict(one) for which, one in attacks.items()},
        "strongest": {"attack": name, "tried": len(attacks), "tpr_at_10": asdict(figure)},
        "duplicates": suite.duplicates,
        "attacked": suite.members,
    }
    on_part("attributes")
    most = effort.attacked
    secrets = None if effort.many_secrets else [study.label.column]
    found["attributes"] = _plain(
        infer_attributes(target.synthetic, members, controls, reference, study, seed=seed, most=most, secrets=secrets)
    )
    on_part("singling out and links")
    found["singling_out"] = _plain(
        single_out(target.synthetic, members, controls, study, seed=seed, predicates=effort.predicates)
    )
    found["linkability"] = _plain(link(target.synthetic, members, controls, study, seed=seed, most=most))
    found["extraction"] = _plain(extract(target.synthetic, members, controls, study, seed=seed))
    if target.published is not None:
        on_part("inversion")
        inverted = invert(
            target.published,
            members,
            controls,
            study,
            epsilon=epsilon,
            delta=delta,
            seed=seed,
            most=most,
            latents=effort.latents,
            device=torch.device(target.device),
        )
        found["inversion"] = asdict(inverted)
    return found


def beyond_ceiling(evaluation: Mapping[str, Any]) -> list[str]:
    """Attacks that did better than the claimed privacy allows, with their whole interval: a fault of ours.

    Of so many figures some lie far out by chance: each interval is widened for all of them.
    """
    figures = {
        (name, population, statistic): Figure(**figure)
        for name, one in evaluation.get("attacks", {}).get("membership", {}).items()
        for population, found in one["populations"].items()
        for statistic, figure in found.items()
        if figure["value"] is not None and figure["ceiling"] is not None
    }
    lows = {key: widened(figure, key[2], tried=len(figures)).low for key, figure in figures.items()}
    return [", ".join(key) for key, low in lows.items() if low is not None and low > (figures[key].ceiling or 0.0)]


def positive_units(population: Population, study: Study) -> np.ndarray:
    """Units with a row of the label's positive class, (units,) bool."""
    rows = (population.table.records[study.label.column] == study.label.positive).to_numpy(dtype=bool)
    return np.bincount(population.units, weights=rows, minlength=population.count) > 0


def _plain(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: asdict(one) for name, one in found.items()}
