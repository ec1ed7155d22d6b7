"""The page of one run: what was published, what it is worth, what it cost, and what attacks found, in one HTML file.

Everything comes from three files of the run: evaluation.json, certificate.json and rounds.jsonl. The page loads nothing
and runs nothing, so that it reads the same in ten years and on a machine without a network. It holds no row, real or
synthetic. What may not leave a site is cut out of the evaluation before anything is made of it, sentences included.
"""

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal, get_args

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from common.evaluation import labels, numerals, verdict
from common.evaluation.sections.blocks import Run, Section
from common.evaluation.sections.privacy import attacks, controls, gates, proof
from common.evaluation.sections.provenance import level_said, provenance, seed_said
from common.evaluation.sections.quality import fidelity, shares, utility, windows
from common.evaluation.sections.training import noise

Audience = Literal["site", "public"]

_SCHEMA: Final = "privshare.evaluation/"
_SECTIONS: Final[Sequence[Callable[[Run], Section | None]]] = (
    *(gates, proof, attacks, noise, utility),
    *(fidelity, windows, shares, controls, provenance),
)
# Open to all without an entry in `access`: it was released, or says nothing of real rows.
_OPEN: Final = (
    *("schema", "study", "name", "method", "seed", "level", "guarantee", "void_because"),
    *("definitions", "access", "versions", "description", "unit", "columns"),
)
# Of a part that is not open, what was published or follows from it.
_OPEN_WITHIN: Final[Mapping[str, tuple[str, ...]]] = {
    "rows": ("synthetic",),
    "units": ("synthetic",),
    "label_shares": ("requested", "delivered", "synthetic"),
}


def write_page(
    evaluation: dict[str, Any],
    certificate: dict[str, Any] | None,
    rounds: list[dict[str, Any]],
    *,
    audience: Audience = "site",
) -> str:
    """The page as HTML.

    Guarantees: one file that refers to nothing outside of it and has no script; names from outside are text, never
    markup; the same arguments give the same page; of what `access` keeps at the site a public page has no figure, and
    no sentence that follows from one.
    Edge cases: a part that is not there -> no section; a figure without value -> its reason; in a public page a part
    that `access` does not name is as private as the most private one that it does, and all are where it names none.

    Args:
        evaluation: content of evaluation.json.
        certificate: of certificate.json; None where nothing was certified.
        rounds: the lines of rounds.jsonl; may be empty.
        audience: "site" shows all; "public" leaves out what stays at the site.

    Raises:
        ValueError: not an evaluation, or not an audience.
    """
    if not str(evaluation.get("schema", "")).startswith(_SCHEMA):
        raise ValueError(f"evaluation: expected a schema that begins with {_SCHEMA}")
    if audience not in get_args(Audience):
        raise ValueError(f"{audience=}: expected one of {', '.join(get_args(Audience))}")
    shown, hidden = (evaluation, frozenset[str]()) if audience == "site" else open_part(evaluation)
    run = Run(shown, certificate or {}, rounds, hidden)
    definitions = shown.get("definitions") or {}
    page = _template().render(
        title=_name(run),
        facts=_facts(run, audience),
        sentence=verdict.sentence(shown, certificate, hidden=hidden),
        dials=verdict.dials(shown, certificate, hidden=hidden),
        statement=str((run.guarantee or {}).get("statement") or ""),
        sections=[found for build in _SECTIONS if (found := build(run)) is not None],
        definitions=definitions,
        # Names from outside make poor identifiers, so terms are numbered.
        anchors={name: f"term-{number}" for number, name in enumerate(definitions, start=1)},
        explained=partial(_explained, definitions),
        label=labels.label,
    )
    # A number and its percent sign stay on one line.
    return page.replace(" %", "\N{NO-BREAK SPACE}%")


def open_part(evaluation: Mapping[str, Any]) -> tuple[dict[str, Any], frozenset[str]]:
    """What of an evaluation may leave a site, and the names of the parts that were cut out or cut short.

    A name with dots in `access` is that of a part within a part. A gate is as private as its figure: one that compares
    with real rows goes with them, whatever is said of gates.
    """
    access = evaluation.get("access") or {}
    # What is neither of these two words stays at the site.
    shown = ("public", "simulation")
    seen = {name: one["visibility"] if one.get("visibility") in shown else "site" for name, one in access.items()}
    default = "public" if seen and "site" not in seen.values() else "site"
    kept, hidden = copy.deepcopy(dict(evaluation)), set()
    for name in evaluation:
        if name != "gates" and seen.get(name, "public" if name in _OPEN else default) == "site":
            part = kept.pop(name)
            remains = {key: part[key] for key in _OPEN_WITHIN.get(name, ()) if isinstance(part, dict) and key in part}
            kept |= {name: remains} if remains else {}
            hidden.add(name)
    for name in (name for name, visibility in seen.items() if "." in name and visibility == "site"):
        *path, last = name.split(".")
        inner: Any = kept
        for key in path:
            inner = inner.get(key) if isinstance(inner, dict) else None
        if isinstance(inner, dict) and last in inner:
            del inner[last]
            hidden.add(path[0])
    all_gates = kept.get("gates") or []
    kept["gates"] = [gate for gate in all_gates if _is_open(gate.get("visibility") or seen.get("gates"), default)]
    if len(kept["gates"]) < len(all_gates):
        hidden.add("gates")
    return kept, frozenset(hidden)


def _is_open(visibility: str | None, default: str) -> bool:
    """Whether all may see a gate; what a simulation knows is private where its rows are."""
    return visibility == "public" or (visibility in (None, "simulation") and default == "public")


def _explained(definitions: Mapping[str, str], term: str) -> str | None:
    """The definition that a name falls under: its own, that of the mean of the same, or that of the whole it is in."""
    whole, _, _ = term.rpartition(".")
    stem = re.sub("_(mean|max)$", "", term)
    return next((name for name in (term, f"{stem}_mean", stem, whole) if name in definitions), None)


def _name(run: Run) -> str:
    return str(run.evaluation.get("name") or (run.certificate.get("study") or {}).get("name") or "A study")


def _facts(run: Run, audience: Audience) -> list[tuple[str, str]]:
    """What the run is, in a line."""
    sites = run.certificate.get("sites") or {}
    facts = [
        ("Method", str(run.evaluation.get("method") or "")),
        ("Sites", numerals.count(len(sites)) if sites else ""),
        ("Unit", run.unit),
        ("Study", run.digest[:12]),
        ("Seed", seed_said(run)),
        ("Evaluation", level_said(run)),
        ("Page", "without what stays at the site" if audience == "public" else ""),
    ]
    return [(name, value) for name, value in facts if value]


def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("common.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")
