"""All attacks on one subject, each in the words of evaluation.json."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final

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
from common.evaluation.parts import Part
from common.study import Study

_MEMBERSHIP: Final = "membership"
_WHITE_BOX: Final = "the released generator"
_INVERSION: Final = "inversion"
_COORDINATOR: Final = "what the coordinator saw"
_ATTRIBUTES: Final = "attributes"
_SINGLING_OUT: Final = "singling out"
_LINKS: Final = "links"
_EXTRACTION: Final = "extraction"


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


def parts_of_attack(target: Target, people: People, study: Study, effort: Effort, *, seed: int) -> dict[str, Part]:
    """Every attack as a part of its own, for `findings`.

    Args:
        target: what attackers have.
        people: members, controls, and whom attackers may know.
        study: of all.
        effort: how hard they try.
        seed: of their choices.
    """
    sides: dict[str, Any] = {"members": people.members, "controls": people.control}
    table: dict[str, Any] = {"synthetic": target.synthetic, **sides, "study": study, "seed": seed}
    most = effort.attacked
    claim: dict[str, Any] = {"epsilon": target.claim.epsilon, "delta": target.claim.delta}
    groups = {RARE_CLASS: (positive_units(people.members, study), positive_units(people.control, study))}
    aimed: dict[str, Any] = {
        **sides,
        "study": study,
        "seed": seed,
        "most": most,
        **claim,
        "device": torch.device(target.device),
    }
    parts: dict[str, Part] = {
        _MEMBERSHIP: partial(attack_membership, **table, reference=people.reference, most=most, **claim),
    }
    if target.published is not None:
        parts[_WHITE_BOX] = partial(
            attack_generator,
            target.published,
            **aimed,
            reference=people.reference,
            groups=groups,
            latents=effort.latents,
            deep=effort.searched,
        )
        parts[_INVERSION] = partial(invert, target.published, **aimed, latents=effort.latents)
    if target.releases is not None:
        parts[_COORDINATOR] = partial(attack_releases, target.releases, **aimed, groups=groups)
    secrets = None if effort.many_secrets else [study.label.column]
    return parts | {
        _ATTRIBUTES: partial(infer_attributes, **table, reference=people.reference, most=most, secrets=secrets),
        _SINGLING_OUT: partial(single_out, **table, predicates=effort.predicates),
        _LINKS: partial(link, **table, most=most),
        _EXTRACTION: partial(extract, **table),
    }


def findings(done: Mapping[str, Any]) -> dict[str, Any]:
    """What the parts of an attack found, ready for JSON."""
    suite = done[_MEMBERSHIP]
    attacks: dict[str, MembershipAttack] = {**suite.attacks, **done.get(_WHITE_BOX, {}), **done.get(_COORDINATOR, {})}
    name, figure = strongest(attacks)
    found = {
        "membership": {which: asdict(one) for which, one in attacks.items()},
        "strongest": {"attack": name, "tried": len(attacks), "tpr_at_10": asdict(figure)},
        "duplicates": suite.duplicates,
        "attacked": suite.members,
        "attributes": _plain(done[_ATTRIBUTES]),
        "singling_out": _plain(done[_SINGLING_OUT]),
        "linkability": _plain(done[_LINKS]),
        "extraction": _plain(done[_EXTRACTION]),
    }
    if _INVERSION in done:
        found["inversion"] = asdict(done[_INVERSION])
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
