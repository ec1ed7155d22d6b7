"""Charts of the page as inline SVG: no script, no font, no colour of their own.

Colours are custom properties of the page's style sheet, so that one drawing serves light, dark and paper. Each chart
has a title and says in words what it shows. Drawn from figures alone; a row of a table never comes here.
"""

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from xml.etree import ElementTree as ET

from markupsafe import Markup

from common.evaluation.figures import most_true_positives

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

_WIDTH: Final = 4.7
"""Inches of every chart: one size of text on the page."""
_ROW: Final = 0.2
"""Inches of one row of a chart with rows."""
_LONGEST: Final = 30
"""Characters of a label."""

# What matplotlib is told, and what the page then says: no real drawing has these colours.
_INK, _MUTED, _RULE, _ACCENT, _SOFT, _PAGE = (f"#00000{number}" for number in range(1, 7))
_COLOURS: Final = {
    _INK: "currentColor",
    _MUTED: "var(--muted)",
    _RULE: "var(--rule)",
    _ACCENT: "var(--accent)",
    _SOFT: "var(--soft)",
    _PAGE: "var(--page)",
}
_STYLE: Final[dict[Any, Any]] = {
    "svg.hashsalt": "privshare",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "text.color": _INK,
    "axes.edgecolor": _RULE,
    "axes.labelcolor": _MUTED,
    "axes.labelsize": 8,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _RULE,
    "grid.linewidth": 0.6,
    "xtick.color": _RULE,
    "ytick.color": _RULE,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.2,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "text.parse_math": False,
    "axes.unicode_minus": True,
}
# How the series of one chart differ: without colour, and in print.
_LINES: Final = (
    (_ACCENT, "-", "o"),
    (_INK, "--", "s"),
    (_MUTED, "-", "^"),
    (_SOFT, "-", "D"),
    (_INK, ":", "v"),
    (_ACCENT, "-.", "P"),
)
_FILLS: Final = (
    (_ACCENT, ""),
    (_SOFT, ""),
    (_PAGE, "////"),
    (_MUTED, ""),
    (_PAGE, "...."),
    (_RULE, ""),
    (_PAGE, "xxxx"),
)
_SVG: Final = "{http://www.w3.org/2000/svg}"
_LINK: Final = "{http://www.w3.org/1999/xlink}href"


@dataclass(frozen=True)
class Mark:
    """One figure in a row of `forest`: a value with the ends of its interval, if it has one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Row:
    """One row of `forest`: a label, and a mark of each series that has one."""

    label: str
    marks: Mapping[str, Mark]


def forest(
    rows: Sequence[Row], *, name: str, title: str, axis: str, reference: float | None = None, to_zero: bool = False
) -> Markup:
    """Figures with their intervals, one row each; series are told apart by the fill of their marks.

    Args:
        rows: from top to bottom, at least one.
        name: of the chart, unlike that of any other on the page.
        title: what is shown.
        axis: what the figures are.
        reference: where a line is drawn: chance, or no effect.
        to_zero: whether each mark of the first series hangs on a bar from 0.
    """
    series = list(dict.fromkeys(key for row in rows for key in row.marks))
    with _style():
        drawing, axes = _axes(1.0 + _ROW * len(rows) * max(1.0, 0.8 * len(series)))
        for number, key in enumerate(series):
            offset = 0.0 if to_zero else (number - (len(series) - 1) / 2) * min(0.28, 0.8 / len(series))
            places = [(at + offset, row.marks[key]) for at, row in enumerate(rows) if key in row.marks]
            _draw_marks(axes, places, number, key, to_zero=to_zero)
        if reference is not None:
            axes.axvline(reference, color=_INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.set_yticks(range(len(rows)), [_short(row.label) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel(axis)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.locator_params(axis="x", nbins=6)
        _legend(drawing, axes, series)
        return _finish(drawing, name, title, "; ".join(_said(row) for row in rows))


def stacked(rows: Mapping[str, Mapping[str, float]], *, name: str, title: str, axis: str) -> Markup:
    """Shares that add up, one bar a row.

    Args:
        rows: by label and part; at least one of each.
        name: see `forest`.
        title: see `forest`.
        axis: see `forest`.
    """
    parts = list(dict.fromkeys(part for row in rows.values() for part in row))
    with _style():
        drawing, axes = _axes(1.0 + 1.4 * _ROW * len(rows) + 0.17 * ((len(parts) - 1) // 2))
        begin = [0.0] * len(rows)
        for part, (colour, hatch) in zip(parts, _repeated(_FILLS, len(parts)), strict=True):
            widths = [row.get(part, 0.0) for row in rows.values()]
            axes.barh(
                range(len(rows)),
                widths,
                0.62,
                begin,
                label=part,
                color=colour,
                hatch=hatch,
                edgecolor=_INK,
                linewidth=0.5,
            )
            begin = [start + width for start, width in zip(begin, widths, strict=True)]
        axes.set_yticks(range(len(rows)), [_short(label) for label in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, max(1.0, *begin))
        axes.set_xlabel(axis)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        _legend(drawing, axes, parts)
        said = [f"{label}: " + ", ".join(f"{part} {row[part]:.3g}" for part in row) for label, row in rows.items()]
        return _finish(drawing, name, title, "; ".join(said))


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    name: str,
    title: str,
    axes_labels: tuple[str, str],
    reference: float | None = None,
    log: bool = False,
) -> Markup:
    """Courses over steps, which are whole numbers.

    Args:
        series: by label, (step, value) in rising order; at least one.
        name: see `forest`.
        title: see `forest`.
        axes_labels: of steps and of values.
        reference: a value at which a line is drawn.
        log: whether values are shown on a logarithmic scale; all must then be above 0.
    """
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415 (see `_style`)

    with _style():
        drawing, axes = _axes(2.5 + 0.17 * ((len(series) - 1) // 2))
        for (label, points), (colour, dash, marker) in zip(series.items(), _repeated(_LINES, len(series)), strict=True):
            steps, values = zip(*points, strict=True)
            marked = marker if len(points) <= 24 else ""
            axes.plot(steps, values, color=colour, linestyle=dash, marker=marked, label=label)
        if reference is not None:
            axes.axhline(reference, color=_INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        if log:
            axes.set_yscale("log")
            _plain_ticks(axes)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(x=0.04)
        axes.set_xlabel(axes_labels[0])
        axes.set_ylabel(axes_labels[1])
        _legend(drawing, axes, list(series))
        said = [
            f"{label}: from {points[0][1]:.3g} at {points[0][0]:g} to {points[-1][1]:.3g} at {points[-1][0]:g}"
            for label, points in series.items()
        ]
        return _finish(drawing, name, title, "; ".join(said))


def roc(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    name: str,
    title: str,
    guarantee: tuple[float, float] | None,
    least: float | None = None,
) -> Markup:
    """Members found at each rate of false alarms, both logarithmic: what counts is the left end.

    Args:
        curves: by label, false and true positive rates; at least one.
        name: see `forest`.
        title: see `forest`.
        guarantee: (epsilon, delta), whose ceiling is drawn; None where nothing is claimed.
        least: where the axes begin; None: at the least rate of the curves.
    """
    least = least or min((rate for false, _ in curves.values() for rate in false if rate > 0), default=1e-3)
    span = [10 ** (math.log10(least) * (1 - step / 80)) for step in range(81)]
    with _style():
        drawing, axes = _axes(3.4)
        axes.plot(span, span, color=_MUTED, linestyle=":", linewidth=1.2, label="guess")
        if guarantee is not None:
            epsilon, delta = guarantee
            ceiling = [most_true_positives(rate, epsilon=epsilon, delta=delta) for rate in span]
            axes.plot(span, ceiling, color=_INK, linestyle="--", linewidth=1.2, label="most that (ε, δ) allows")
            axes.fill_between(span, ceiling, 1, color=_RULE, alpha=0.45, linewidth=0)
        for (label, (false, true)), (colour, dash, _) in zip(
            curves.items(), _repeated(_LINES[:1] + _LINES[2:], len(curves)), strict=True
        ):
            kept = [(x, y) for x, y in zip(false, true, strict=True) if x > 0 and y > 0]
            axes.plot([x for x, _ in kept], [y for _, y in kept], color=colour, linestyle=dash, label=label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(least, 1)
        axes.set_ylim(least, 1)
        _plain_ticks(axes)
        axes.set_xlabel("false positive rate: controls taken for members")
        axes.set_ylabel("true positive rate: members found")
        labels = ["guess", *(["most that (ε, δ) allows"] if guarantee else []), *curves]
        _legend(drawing, axes, labels)
        said = "; ".join(f"{label}: {_at(false, true, 0.1)}" for label, (false, true) in curves.items())
        return _finish(drawing, name, title, said)


def _draw_marks(axes: "Axes", places: Sequence[tuple[float, Mark]], number: int, label: str, *, to_zero: bool) -> None:
    """The marks of one series; a series after the first is hollow."""
    colour, _, marker = _LINES[number % len(_LINES)]
    hollow = number > 0
    for at, mark in places:
        if to_zero and not hollow:
            axes.plot([0, mark.value], [at, at], color=_SOFT, linewidth=4, solid_capstyle="butt", zorder=2)
        if mark.low is not None and mark.high is not None:
            axes.plot([mark.low, mark.high], [at, at], color=colour, linewidth=1.4, zorder=3)
    axes.plot(
        [mark.value for _, mark in places],
        [at for at, _ in places],
        linestyle="none",
        marker=marker,
        markerfacecolor=_PAGE if hollow else colour,
        markeredgecolor=colour,
        label=label,
        zorder=4,
    )


@contextmanager
def _style() -> Iterator[None]:
    """Matplotlib's settings of this file and no others, for as long as a chart is drawn."""
    import matplotlib as mpl  # noqa: PLC0415 (slow to load, and needed by those alone who want a page)

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def _axes(height: float) -> tuple["Drawing", "Axes"]:
    from matplotlib.figure import Figure as Drawing  # noqa: PLC0415 (see `_style`)

    drawing = Drawing(figsize=(_WIDTH, height), layout="constrained")
    drawing.patch.set_alpha(0)
    axes = drawing.add_subplot()
    axes.patch.set_alpha(0)
    return drawing, axes


def _legend(drawing: "Drawing", axes: "Axes", labels: Sequence[str]) -> None:
    """Above the axes, in as many columns as its labels leave room for; none of a single series without a name."""
    if list(labels) == [""]:
        return
    columns = max(1, min(len(labels), 64 // (max(map(len, labels)) + 6)))
    handles, _ = axes.get_legend_handles_labels()
    drawing.legend(handles, [_short(label) for label in labels], loc="outside upper left", ncols=columns)


def _plain_ticks(axes: "Axes") -> None:
    """Plain numbers on logarithmic axes: powers of ten, and 2 and 5 times those where there are few."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter  # noqa: PLC0415 (see `_style`)

    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            low, high = sorted(axis.get_view_interval())
            steps = (1.0,) if high > 100 * low else (1.0, 2.0, 5.0)
            axis.set_major_locator(LogLocator(subs=steps))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())


def _finish(drawing: "Drawing", name: str, title: str, description: str) -> Markup:
    """The drawing as an element of the page."""
    buffer = io.StringIO()
    drawing.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    root = ET.fromstring(buffer.getvalue())  # noqa: S314 (written by the line above)
    _drop(root, {f"{_SVG}metadata", f"{_SVG}style"})
    _rename(root, name)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        for key, value in list(element.attrib.items()):
            element.set(key, value if key in ("id", "href") else _styled(_rounded(value)))
        if element.text is not None and not element.text.strip():
            element.text = None
        if element.tail is not None and not element.tail.strip():
            element.tail = None
    box = root.get("viewBox", "")
    root.attrib.clear()
    root.attrib.update(
        {"viewBox": box, "role": "img", "aria-labelledby": f"{name}-title", "aria-describedby": f"{name}-said"}
    )
    for at, (tag, key, text) in enumerate((("title", "title", title), ("desc", "said", description))):
        element = ET.Element(tag, {"id": f"{name}-{key}"})
        element.text = text
        root.insert(at, element)
    # Names from outside are text of elements here, and were escaped as such.
    return Markup(ET.tostring(root, encoding="unicode"))  # noqa: S704


def _drop(root: ET.Element, tags: set[str]) -> None:
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in tags:
                parent.remove(child)


def _rename(root: ET.Element, name: str) -> None:
    """Identifiers that something refers to, made the chart's own and short; others go, as two charts share them."""
    used = set()
    for element in root.iter():
        for key, value in element.attrib.items():
            used |= set(re.findall(r"url\(#([^)]+)\)", value))
            used |= {value[1:]} if key == _LINK else set()
    short = {identifier: f"{name}-{number}" for number, identifier in enumerate(sorted(used))}
    for element in root.iter():
        identifier = element.attrib.pop("id", None)
        if identifier in short:
            element.set("id", short[identifier])
        target = element.attrib.pop(_LINK, None)
        if target is not None:
            element.set("href", f"#{short[target[1:]]}")
        for key, value in element.attrib.items():
            element.set(key, re.sub(r"url\(#([^)]+)\)", lambda found: f"url(#{short[found[1]]})", value))


def _styled(style: str) -> str:
    """With the page's colours, and its font in place of matplotlib's."""
    for told, said in _COLOURS.items():
        style = style.replace(told, said)
    return re.sub(r"font-family: [^;]*; ?", "", re.sub(r"font: ([\d.]+px) [^;]*", r"font-size: \1", style))


def _rounded(value: str) -> str:
    """Coordinates to a hundredth of a point."""
    return re.sub(r"(\d\.\d\d)\d+", r"\1", value)


def _repeated(styles: Sequence[Any], count: int) -> list[Any]:
    return [styles[number % len(styles)] for number in range(count)]


def _short(label: str) -> str:
    """A label that fits, without what XML cannot hold."""
    shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in label)
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"


def _said(row: Row) -> str:
    marks = []
    for series, mark in row.marks.items():
        ends = "" if mark.low is None or mark.high is None else f" ({mark.low:.3g} to {mark.high:.3g})"
        marks.append(f"{series} {mark.value:.3g}{ends}".strip())
    return f"{row.label}: {', '.join(marks)}"


def _at(false: Sequence[float], true: Sequence[float], rate: float) -> str:
    near = min(range(len(false)), key=lambda at: abs(false[at] - rate))
    return f"finds {true[near]:.3g} of the members at a false positive rate of {false[near]:.3g}"
