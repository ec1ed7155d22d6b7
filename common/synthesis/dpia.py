"""An annex for a data protection impact assessment, from a verified release: what is known, and what a human must add.

Facts come from the certificate, which was verified, and from the study that it names. Figures of attacks come from
`evaluation.json` beside it, where there is one: nobody signs that file, and the annex says so. What is in neither is
marked for the controller.
"""

import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import jinja2

from common.errors import ExitCode, ReleaseFileError
from common.evaluation import numerals
from common.evaluation.figures import Figure
from common.evaluation.odds import odds_of
from common.evaluation.verdict import figure_of, is_residual, leak_of, leaves, membership, path_said, shown_figure
from common.study import Study, parse_study
from common.synthesis.card import as_code
from common.synthesis.explain import chance_up, percent_down, percent_up
from common.verification import CERTIFICATE, FACTS, verify_release

EVALUATION: Final = "evaluation.json"
TO_FILL_IN: Final = "**TO BE FILLED IN BY THE CONTROLLER**"
PRIORS: Final = (0.01, 0.1, 0.5)
_CRITERIA: Final[Mapping[str, tuple[str, ...]]] = {
    "singling out": ("singling_out",),
    "linkability": ("linkability",),
    "inference": ("attributes", "inversion"),
}
"""The three risks of WP216, and the attacks of the evaluation that try each."""


@dataclass(frozen=True)
class Risk:
    """One of the risks of WP216, as far as it was measured.

    name: of the risk.
    games: how many attacks tried it.
    worst: which found most.
    residual: what membership added there; with its interval.
    members, controls: shares guessed right of each.
    """

    name: str
    games: int
    worst: str
    residual: Figure
    members: Figure
    controls: Figure

    @property
    def is_measured(self) -> bool:
        """Whether there is a figure."""
        return self.games > 0


def make_annex(release: Path, *, keys: Collection[str] = (), site_keys: Mapping[str, str] | None = None) -> str:
    """The annex as Markdown.

    Args:
        release: folder of a release or of the run that made it.
        keys: see `verify_release`.
        site_keys: see `verify_release`.

    Raises:
        ReleaseFileError: the release is not valid, or the evaluation beside it is of another one.
    """
    facts = annex_facts(release, keys=keys, site_keys=site_keys)
    source = files("common.synthesis").joinpath("templates", "dpia.md.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(  # noqa: S701 (Markdown: names are escaped by `code`)
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {
        "code": as_code,
        "up": numerals.epsilon,
        "at_most": percent_up,
        "at_least": percent_down,
        "chance": chance_up,
        "figure": lambda figure: shown_figure(figure, as_percent=True),
    }
    return environment.from_string(source).render(todo=TO_FILL_IN, **facts)


def annex_facts(
    release: Path, *, keys: Collection[str] = (), site_keys: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What the annex is made of, by name. Raises as `make_annex` says."""
    found = verify_release(release, keys=keys, site_keys=site_keys)
    failed = next((one for one in found.findings if not one.passed), None)
    if failed is not None:
        raise ReleaseFileError(
            f"{failed.check}: {failed.reason}; an annex says nothing of a release that is not valid",
            ExitCode.RELEASE_UNVERIFIED,
        )
    certificate = json.loads((release / CERTIFICATE).read_bytes())
    study = parse_study(json.loads((release / FACTS).read_bytes())["study"], source=FACTS)
    evaluation = _evaluation_of(release, certificate)
    guarantee = certificate["guarantee"]
    return {
        "certificate": certificate,
        "study": study,
        "verification": found,
        "guarantee": guarantee,
        "sites": certificate["sites"],
        "together": _together(certificate, study),
        "odds": odds_of(epsilon=guarantee["epsilon"], delta=study.privacy.delta, priors=PRIORS),
        "is_gaussian": study.privacy.accountant == "gdp",
        "evaluation": evaluation,
        **_attacked(evaluation),
        "is_pinned": all(key.pinned for key in found.keys),
        "is_simulated": found.keys[0].owner == "simulation",
    }


def _evaluation_of(release: Path, certificate: Mapping[str, Any]) -> dict[str, Any] | None:
    path = release / EVALUATION
    if not path.exists():
        return None
    try:
        evaluation = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise ReleaseFileError(f"{EVALUATION}: cannot be read, or is not JSON") from None
    if not isinstance(evaluation, dict):
        raise ReleaseFileError(f"{EVALUATION}: expected an object")
    if evaluation.get("study") != certificate["study"]["digest"]:
        raise ReleaseFileError(f"{EVALUATION}: is of another study than the certificate")
    return evaluation


def _together(certificate: Mapping[str, Any], study: Study) -> float:
    """Epsilon of a unit that is present at every site of the release, at the study's delta."""
    sites = certificate["sites"].values()
    spent = math.nextafter(math.fsum(max(site["spent"].values()) for site in sites), math.inf)
    taken = math.fsum(site["sampler_delta"] for site in sites)
    return study.accountant.epsilon(spent=spent, delta=math.nextafter(study.privacy.delta - taken, 0))


def _attacked(evaluation: Mapping[str, Any] | None) -> dict[str, Any]:
    try:
        return {"risks": list(risks_of(evaluation)), "strongest": _strongest(evaluation)}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ReleaseFileError(f"{EVALUATION}: attacks: not as an evaluation has them") from None


def risks_of(evaluation: Mapping[str, Any] | None) -> Iterator[Risk]:
    """The three risks of WP216, each by the attack that found most."""
    attacks = (evaluation or {}).get("attacks") or {}
    for name, kinds in _CRITERIA.items():
        games = [
            (", ".join((kind.replace("_", " "), *filter(None, [path_said(path)]))), game)
            for kind in kinds
            for path, game in leaves(attacks.get(kind), is_residual)
            if numerals.is_number(leak_of(game).value)
        ]
        if not games:
            yield Risk(name, 0, "", Figure(), Figure(), Figure())
            continue
        worst, game = max(games, key=lambda one: float(leak_of(one[1]).value or 0.0))
        yield Risk(name, len(games), worst, leak_of(game), figure_of(game["members"]), figure_of(game["controls"]))


def _strongest(evaluation: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The membership game with the largest advantage; None where none was tried."""
    games = {
        name: figure
        for name, game in (membership(evaluation) if evaluation else {}).items()
        for figures in game.populations.values()
        if numerals.is_number((figure := figures["advantage"]).value)
    }
    if not games:
        return None
    name = max(games, key=lambda one: float(games[one].value or 0.0))
    return {"name": name, "advantage": games[name], "tried": len(games)}
