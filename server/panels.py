"""The coordinator's page: a snapshot as HTML, in sections that can be exchanged one by one.

It loads nothing from anywhere, has no style and no script but its own, named by their hashes, and every figure on it
says what it is. A saved page has no script at all.
"""

import base64
import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree as ET

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from common.evaluation import charts, numerals
from common.evaluation.labels import heading, label
from server.snapshot import MEANINGS

SECTIONS: Final = ("top", "budget", "noise", "quality", "gates", "sites", "audit")
_SCRIPT: Final = (Path(__file__).parent / "templates" / "dashboard.js").read_text(encoding="utf-8")
_SHOWN: Final = 12
"""Characters of a hash."""


def policy_of(*sources: str, is_live: bool) -> str:
    """The content security policy of a page with these styles: itself, and its stream where it is live."""
    styles = " ".join(f"'{_hash_of(style)}'" for style in sources)
    script = f"'{_hash_of(_SCRIPT)}'" if is_live else "'none'"
    parts = {
        "default-src": "'none'",
        "style-src": styles,
        "script-src": script,
        "connect-src": "'self'" if is_live else "'none'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in parts.items())


def render_sections(snapshot: Mapping[str, Any]) -> dict[str, str]:
    """Each section of the page as HTML, by its name; names from outside are text, never markup."""
    environment = _environment()
    shown = {
        **snapshot,
        "charts": {
            "noise": _drawn("noise", json.dumps(snapshot["releases"])),
            "terms": _drawn("terms", json.dumps(snapshot["noise"])),
            "losses": _drawn("losses", json.dumps(snapshot["quality"]["losses"])),
        },
        "figures": _figures(snapshot["quality"]),
    }
    template = environment.get_template("panels.html.j2")
    module = template.make_module(shown)
    return {name: str(getattr(module, f"show_{name}")()).strip() for name in SECTIONS}


def render_page(snapshot: Mapping[str, Any], sections: Mapping[str, str], *, saved: datetime | None = None) -> str:
    """The whole page.

    Args:
        snapshot: what it shows.
        sections: as `render_sections` made them of it.
        saved: when it is saved, of a page that is a file; None for one that is served, and follows its stream.
    """
    environment = _environment()
    style = environment.get_template("dashboard.css.j2").render()
    return environment.get_template("dashboard.html.j2").render(
        title=snapshot["study"]["name"],
        word=snapshot["verdict"]["word"],
        sections={name: Markup(body) for name, body in sections.items()},  # noqa: S704 (made above, escaped there)
        style=Markup(style),  # noqa: S704
        script=Markup(_SCRIPT) if saved is None else None,  # noqa: S704
        policy=policy_of(style, is_live=saved is None),
        saved=None if saved is None else moment(saved.isoformat()),
    )


def page_policy() -> str:
    """The policy of a page that is served, for its header."""
    return policy_of(_environment().get_template("dashboard.css.j2").render(), is_live=True)


def moment(text: str | None) -> str:
    """A moment in UTC, to the second; a dash where there is none.

    >>> moment("2026-11-29T03:04:05.678+01:00"), moment(None)
    ('2026-11-29 02:04:05 UTC', '\N{EN DASH}')
    """
    if text is None:
        return numerals.NOTHING
    return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def duration(seconds: float | None) -> str:
    """A time to wait, to two units.

    >>> duration(42.4), duration(125), duration(7322), duration(200000), duration(None)
    ('42 s', '2 min 5 s', '2 h 2 min', '2 d 7 h', '\N{EN DASH}')
    """
    if seconds is None:
        return numerals.NOTHING
    left = round(seconds)
    sizes = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    parts: list[tuple[int, str]] = []
    for name, size in sizes:
        count, left = divmod(left, size)
        if count or parts or name == "s":
            parts.append((count, name))
    return " ".join(f"{count} {name}" for count, name in parts[:2] if count or len(parts) == 1)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("server"), PackageLoader("common.evaluation")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "meaning": MEANINGS.__getitem__,
        "meanings": _meanings_of,
        "moment": moment,
        "duration": duration,
        "number": numerals.number,
        "percent": numerals.percent,
        "epsilon": lambda value: numerals.epsilon(value) if value else "0",
        "delta": numerals.delta,
        "label": label,
        "signed": lambda value: numerals.NOTHING if value is None else f"{value:+.3f}".replace("-", "\N{MINUS SIGN}"),
        "heading": heading,
        "bar": _bar,
        "worded": _worded,
        "short": lambda text: str(text)[:_SHOWN],
        "nothing": numerals.NOTHING,
    }
    return environment


def _worded(text: str) -> Markup:
    """A sentence whose commands stand between backticks."""
    plain, code = Markup("{}"), Markup("<code>{}</code>")
    return Markup("").join((code if at % 2 else plain).format(part) for at, part in enumerate(text.split("`")))


def _meanings_of(*prefixes: str) -> dict[str, str]:
    """What the fields of a section say, by the words for each."""
    return {
        heading(name.rpartition(".")[2]): sentence
        for name, sentence in MEANINGS.items()
        if name.startswith(prefixes) and name.rpartition(".")[2] not in ("site", "stage", "round", "discriminator")
    }


def _hash_of(source: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}"


def _figures(quality: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows of the table of quality: field, what it is, first, now, poor, best."""
    number, found = numerals.number, list[tuple[str, ...]]()
    ratios = ["not known" if one["ratio"] is None else number(one["ratio"]) for one in quality["frechet"]]
    if ratios:
        ends = number(quality["frechet_ratio_start"]), number(quality["frechet_ratio_floor"])
        found.append(("quality.frechet[].ratio", "Fréchet ratio", ratios[0], ratios[-1], *ends))
    asked = quality["validation"]
    if asked:
        known = [_bought(one) for one in asked if one["auc"] is not None]
        now = "hidden by noise" if asked[-1]["auc"] is None else known[-1]
        ends = number(quality["auc_floor"]), number(quality["auc_ceiling"])
        found.append(("quality.validation[].auc", "Validation AUC", known[0] if known else "", now, *ends))
    if quality["accuracy"] is not None:
        ends = number(quality["accuracy_ceiling"]), number(quality["accuracy_floor"])
        found.append(("quality.accuracy", "Discriminator accuracy", "", number(quality["accuracy"]), *ends))
    for name in dict.fromkeys(one["discriminator"] for one in quality["losses"]):
        course = [number(one["value"]) for one in quality["losses"] if one["discriminator"] == name]
        ends = "", number(quality["loss_floor"])
        found.append(("quality.losses[].value", f"Loss, {label(name)}", course[0], course[-1], *ends))
    return found


def _bought(one: Mapping[str, Any]) -> str:
    return f"{numerals.number(one['auc'])} ± {numerals.number(one['standard_error'])}"


# --- drawings


def _bar(spent: float, projected: float, cap: float, largest: float) -> Markup:
    """A bar of what is spent, what will be, and what may be; its widths are shares of the largest cap of any site."""
    scale = 100 * cap / largest if largest else 0.0
    spent, projected = (min(1.0, max(0.0, share)) * scale for share in (spent, projected))
    # Attributes that follow from numbers alone.
    return Markup(  # noqa: S704
        '<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="cap" x="0" y="0" width="{scale:.2f}" height="8"/>'
        f'<rect class="projected" x="0" y="0" width="{projected:.2f}" height="8"/>'
        f'<rect class="spent" x="0" y="0" width="{spent:.2f}" height="8"/>'
        "</svg>"
    )


@functools.lru_cache(maxsize=12)
def _drawn(chart: str, figures: str) -> Markup | None:
    """A chart of figures, as JSON; most steps leave most charts as they were, and drawing is the slow part."""
    draw = {"noise": _noise_chart, "terms": _terms_chart, "losses": _losses_chart}[chart]
    return draw(json.loads(figures))


def _noise_chart(releases: Sequence[Mapping[str, Any]]) -> Markup | None:
    series: dict[str, list[tuple[float, float]]] = {}
    for one in releases:
        if one["stddev"] > 0:
            series.setdefault(label(one["kind"]), []).append((one["stage"], one["stddev"]))
    if not series:
        return None
    drawn = charts.lines(
        series,
        name="noise-chart",
        title="Noise by measurement",
        axes_labels=("measurement", "standard deviation, in units"),
        log=True,
    )
    return _without_styles(drawn)


def _terms_chart(decided: Sequence[Mapping[str, Any]]) -> Markup | None:
    series = {
        name: [(one["stage"], one[name]) for one in decided if numerals.is_number(one[name])]
        for name in ("proportional", "integral", "derivative")
    }
    series["log of multiplier"] = [(one["stage"], math.log(one["multiplier"])) for one in decided if one["multiplier"]]
    if len(decided) < 2 or not any(value for points in series.values() for _, value in points):
        return None
    drawn = charts.lines(
        {name: points for name, points in series.items() if points},
        name="terms-chart",
        title="Terms of the noise controller by measurement",
        axes_labels=("measurement", "term"),
        reference=0.0,
    )
    return _without_styles(drawn)


def _losses_chart(losses: Sequence[Mapping[str, Any]]) -> Markup | None:
    series: dict[str, list[tuple[float, float]]] = {}
    for one in losses:
        series.setdefault(label(one["discriminator"]), []).append((one["round"], one["value"]))
    if all(len(points) < 2 for points in series.values()):
        return None
    drawn = charts.lines(
        series,
        name="losses-chart",
        title="Loss by round",
        axes_labels=("round", "noise variances a cell"),
        reference=1.0,
    )
    return _without_styles(drawn)


def _without_styles(drawing: Markup) -> Markup:
    """A drawing with attributes in place of styles: the page's policy allows no style but its own sheet."""
    root = ET.fromstring(drawing)  # noqa: S314 (our own drawing)
    for element in root.iter():
        for declaration in element.attrib.pop("style", "").split(";"):
            name, _, value = declaration.partition(":")
            if value:
                element.set(name.strip(), value.strip())
    return Markup(ET.tostring(root, encoding="unicode"))  # noqa: S704
