"""What the rows are worth: usefulness, fidelity, time series, and whether the classes came as requested."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from common.evaluation import charts, numerals
from common.evaluation.charts import Mark, Row
from common.evaluation.figures import Figure
from common.evaluation.labels import heading, label
from common.evaluation.sections.blocks import (
    NOTHING,
    Block,
    Cell,
    Chart,
    Folded,
    Prose,
    Run,
    Section,
    Table,
    beside,
    entry_cell,
    figure_cell,
    mark_of,
    reason_of,
    remaining,
    section,
    stack,
    term,
    words,
)
from common.evaluation.verdict import figure_of, leaves

_MEASURES: Final = (
    *("auc", "auprc", "accuracy", "balanced_accuracy", "f1", "macro_f1", "recall", "precision", "brier"),
    *("calibration_slope", "calibration_intercept", "majority_accuracy"),
)
_COMPARED: Final = {
    "synthetic_vs_train": "synthetic, training",
    "synthetic_vs_holdout": "synthetic, unseen",
    "floor_train_vs_holdout": "floor: real, real",
}
_FLOOR: Final = "floor: real beside real"
_SHOWN_ROWS: Final = 20
"""Columns or classes in a chart; the table has all."""


# --- usefulness


def utility(run: Run) -> Section | None:
    """What classifiers learn from the rows, beside what they learn from real ones."""
    found = run.part("utility")
    synthetic, real = found.get("tstr") or {}, found.get("trtr") or {}
    panels = (
        _score_chart(synthetic, real, "auc", "AUC on unseen real rows, with 95 % intervals; the line is chance", 0.5),
        _score_chart(synthetic, real, "auprc", "AUPRC on unseen real rows, with 95 % intervals", None),
    )
    draws = found.get("draws") or {}
    tables = tuple(
        _score_table(name, synthetic.get(name) or {}, real.get(name) or {}, draws.get(name) or {})
        for name in dict.fromkeys([*synthetic, *real])
    )
    monitor = run.part("monitor")
    shown = ("tstr", "trtr", "subgroups", "draws", "controlled", "equal_classes")
    blocks: list[Block | None] = [
        beside(*panels),
        beside(*tables),
        Prose(_monitor_said(monitor)) if monitor else None,
        _controlled(found.get("controlled") or {}),
        *_subgroups(found.get("subgroups") or {}),
        remaining({key: found[key] for key in found if key not in shown}, "Other figures", part="utility"),
    ]
    return section(run, "utility", "Usefulness", blocks, parts=("utility", "monitor"))


def _score_chart(
    synthetic: Mapping[str, Any], real: Mapping[str, Any], measure: str, caption: str, reference: float | None
) -> Chart | None:
    rows = []
    for name in dict.fromkeys([*synthetic, *real]):
        sources = {"tstr": synthetic.get(name), "trtr": real.get(name)}
        marks = {label(source): mark_of(_score(scores or {}, measure)) for source, scores in sources.items()}
        known = {source: mark for source, mark in marks.items() if mark is not None}
        if known:
            rows.append(Row(label(name), known))
    if not rows:
        return None
    drawn = charts.forest(
        rows,
        name=f"{measure}-chart",
        title=f"{label(measure)} by classifier",
        axis=label(measure),
        reference=reference,
    )
    return Chart(caption, drawn)


def _score(scores: Mapping[str, Any], measure: str) -> Figure:
    low, high = (scores.get("intervals") or {}).get(measure) or (None, None)
    value = scores.get(measure)
    reason = reason_of(scores, measure) or "not measured"
    return Figure(value, low, high, reason=None if value is not None else reason)


def _score_table(name: str, synthetic: Mapping[str, Any], real: Mapping[str, Any], draws: Mapping[str, Any]) -> Table:
    pair, title = (synthetic, real), heading(name)
    measures = [measure for measure in _MEASURES if any(scores.get(measure) is not None for scores in pair)]
    if not measures:
        reason = str(synthetic.get("reason") or real.get("reason") or "not measured")
        return Table(title, words("score", "reason"), ((Cell("all"), Cell(reason)),), texts=frozenset({1}))
    rows = []
    for measure in measures:
        cells = [figure_cell(_score(scores, measure)) if scores else NOTHING for scores in pair]
        rows.append((term(measure), *cells, *([_drawn(draws.get(measure) or {})] if draws else [])))
    return Table(title, words("score", "tstr", "trtr", *(["other draws"] if draws else [])), tuple(rows))


def _drawn(summary: Mapping[str, Any]) -> Cell:
    """Mean and spread over several synthetic tables."""
    if not numerals.is_number(summary.get("mean")):
        return Cell(numerals.NOTHING, str(summary.get("reason") or ""), "muted")
    spread = f"± {numerals.number(summary['sd'])}, " if numerals.is_number(summary.get("sd")) else ""
    return Cell(numerals.number(summary["mean"]), f"{spread}n = {numerals.count(summary.get('n'))}")


def _controlled(controlled: Mapping[str, Any]) -> Table | None:
    """What rows with equal classes teach, beside rows as they were released."""
    names = dict.fromkeys(name for part in controlled.values() for name in part)
    rows = tuple(
        (
            term(measure, label(name)),
            *(figure_cell(_score(part.get(name) or {}, measure)) for part in controlled.values()),
        )
        for name in names
        for measure in ("auc", "recall", "precision", "f1")
    )
    return (
        Table(
            "What more rows of a rare class teach",
            words("score", *controlled),
            rows,
            note="Both call as large a share of rows positive as is positive of what was released.",
        )
        if rows
        else None
    )


def _monitor_said(monitor: Mapping[str, Any]) -> str:
    auc, error = monitor.get("auc"), monitor.get("standard_error")
    if not numerals.is_number(auc):
        return "Units that each site held out were asked as well, but the noise of their answers hides what they say."
    said = f"Units that each site held out, asked under a budget of their own, say an AUC of {numerals.number(auc)}"
    return said + (f" with a standard error of {numerals.number(error)}." if numerals.is_number(error) else ".")


def _subgroups(subgroups: Mapping[str, Any]) -> list[Block | None]:
    """Gaps between groups, and the groups themselves for those who look closer."""
    gaps, tables = [], []
    for path, found in leaves(subgroups, lambda data: "columns" in data):
        who = ", ".join(map(label, path))
        for key in (key for key in found if key.endswith("_gap")):
            gap, column = figure_of(found[key]), (found[key] or {}).get("column")
            name = label(key.removesuffix("_gap"))
            chance = Cell(numerals.number(gap.chance), tone="muted")
            gaps.append((Cell(f"{name}: {column}" if column else name, who), figure_cell(gap), chance))
        for column, data in found["columns"].items():
            rows = tuple(
                (
                    Cell("no value" if group.get("group") is None else str(group["group"])),
                    *(figure_cell(figure_of(group.get(measure))) for measure in ("auc", "recall")),
                )
                for group in data.get("groups") or []
            )
            if rows:
                tables.append(Table(f"{column}: {who}" if who else column, words("group", "auc", "recall"), rows))
    caption = "Largest gap between two groups, beside what groups of these sizes show by chance"
    return [
        Table(caption, words("gap", "value", "chance"), tuple(gaps)) if gaps else None,
        Folded("Scores of each group", (found_groups,)) if (found_groups := beside(*tables)) is not None else None,
    ]


# --- fidelity


def fidelity(run: Run) -> Section | None:
    """How near the rows are to real ones, beside how near real ones are to each other."""
    found = run.part("fidelity")
    tables = {name: found[name] for name in _COMPARED if found.get(name)}
    chart, folded = _columns(tables)
    caption = "Tables beside real ones; no rows are nearer to real ones than real ones are"
    shown = {*_COMPARED, "frechet", "neighbours", "distinguisher"}
    others = (
        remaining(part, heading(name), part=name)
        for name, part in found.items()
        if name not in shown and isinstance(part, Mapping)
    )
    blocks = [
        beside(
            stack(
                _compared(tables, caption),
                _frechet(found.get("frechet") or {}),
                _neighbours(found.get("neighbours") or {}),
                _distinguisher(found.get("distinguisher") or {}),
                *others,
            ),
            chart,
        ),
        folded,
    ]
    return section(run, "fidelity", "Fidelity", blocks, parts=("fidelity",))


def _frechet(found: Mapping[str, Any]) -> Table | None:
    """Distances of features, between what real rows have and what ruined ones have."""
    if not found:
        return None
    names = ("distance", "floor", "ceiling", "normalised")
    rows = [(term("frechet"), *(figure_cell(figure_of(found.get(name))) for name in names))]
    kernels = [found.get(name) for name in ("kernel", "kernel_floor", "kernel_ceiling")]
    if any(kernels):
        rows.append((term("kernel"), *(_spread(kernel or {}) for kernel in kernels), NOTHING))
    return Table(
        "Distance of features to unseen real rows",
        words("distance", "synthetic", "floor", "ceiling", "normalised"),
        tuple(rows),
        note="Floor: training rows; ceiling: training rows with each column shuffled. Normalised: 0 at the floor, 1 at "
        f"the ceiling. {_features_said(found)}",
    )


def _spread(summary: Mapping[str, Any]) -> Cell:
    """A mean and its deviation."""
    if not numerals.is_number(summary.get("mean")):
        return Cell(numerals.NOTHING, str(summary.get("reason") or ""), "muted")
    deviation = f"± {numerals.number(summary['sd'])}" if numerals.is_number(summary.get("sd")) else ""
    return Cell(numerals.number(summary["mean"]), deviation)


def _features_said(found: Mapping[str, Any]) -> str:
    said = f"Features: {found['embedding']}" if found.get("embedding") else ""
    said += f", of weights {str(found['sha256'])[:12]}" if found.get("sha256") else ""
    said += f", of {numerals.count(found['rows'])} rows a side" if found.get("rows") else ""
    return f"{said}." if said else ""


def _neighbours(found: Mapping[str, Any]) -> Table | None:
    """Precision, recall, density and coverage beside what real rows have."""
    sources = {name: part for name, part in found.items() if isinstance(part, Mapping)}
    measures = list(dict.fromkeys(key for part in sources.values() for key in part))
    if not measures:
        return None
    rows = tuple(
        (
            term(f"neighbours.{measure}", text=label(measure)),
            *(entry_cell(part, measure) or NOTHING for part in sources.values()),
        )
        for measure in measures
    )
    nearest = f"{numerals.count(found['k'])} nearest neighbours. " if found.get("k") else ""
    return Table(
        "Where rows lie among real ones",
        words("share", *sources),
        rows,
        note=f"{nearest}Copies of real rows score best here, so read it beside the attacks. {_features_said(found)}",
    )


def _distinguisher(found: Mapping[str, Any]) -> Table | None:
    """How well trees tell synthetic rows from real ones."""
    figures = {name: figure_of(part) for name, part in found.items() if isinstance(part, Mapping)}
    if not figures:
        return None
    rows = tuple(
        (term(f"distinguisher.{name}", text=label(name)), figure_cell(figure), Cell(numerals.number(figure.chance)))
        for name, figure in figures.items()
    )
    said = f" Of {numerals.count(found['rows'])} rows a side." if found.get("rows") else ""
    return Table(
        "How well trees tell synthetic rows from real ones",
        words("score", "value", "chance"),
        rows,
        note=f"This is a matter of fidelity, not of privacy: a copy cannot be told.{said}",
    )


def _compared(tables: Mapping[str, Mapping[str, Any]], caption: str) -> Table | None:
    """Figures of several comparisons, one a column."""
    rows = []
    for name in dict.fromkeys(key for table in tables.values() for key in table):
        cells = [entry_cell(table, name) for table in tables.values()]
        if name not in ("reason", "reasons") and any(cell is not None for cell in cells):
            rows.append((term(name), *(cell or NOTHING for cell in cells)))
    head = (*words("distance"), *(Cell(_COMPARED[name], term=name) for name in tables))
    return Table(caption, head, tuple(rows)) if rows else None


def _columns(tables: Mapping[str, Mapping[str, Any]]) -> tuple[Block | None, Block | None]:
    """Each column, worst first: a chart of one-way distances, and a table with what else is known of columns."""
    compared = tables.get("synthetic_vs_holdout") or tables.get("synthetic_vs_train") or {}
    synthetic = compared.get("columns") or {}
    floor = (tables.get("floor_train_vs_holdout") or {}).get("columns") or {}
    rows = _beside_floor(synthetic, floor)
    if not rows:
        return None, None
    drawn = charts.forest(
        rows[:_SHOWN_ROWS],
        name="columns-chart",
        title="Distance by column",
        axis="total variation distance",
        to_zero=True,
    )
    caption = "One-way distance of each column, worst first"
    chart = Chart(caption if len(rows) <= _SHOWN_ROWS else f"{caption}; the worst {_SHOWN_ROWS} of {len(rows)}", drawn)
    missing, violating = compared.get("missing") or {}, compared.get("violating") or {}
    cells = tuple(
        (
            Cell(row.label),
            Cell(numerals.number(synthetic[row.label])),
            Cell(numerals.number(floor.get(row.label))),
            Cell(numerals.number(missing.get(row.label))),
            Cell(numerals.count(violating.get(row.label, 0 if "violations" in compared else None))),
        )
        for row in rows
    )
    head = words("column", "distance", _FLOOR, "shares of missing values", "violations")
    return chart, Folded("All columns", (Table("Columns beside those of unseen rows", head, cells),))


def _beside_floor(synthetic: Mapping[str, Any], floor: Mapping[str, Any]) -> list[Row]:
    """Rows of a chart, the largest distance first."""
    known = {name: value for name, value in synthetic.items() if numerals.is_number(value)}
    rows = []
    for name in sorted(known, key=lambda name: -known[name]):
        marks = {"synthetic": Mark(known[name])}
        if numerals.is_number(floor.get(name)):
            marks[_FLOOR] = Mark(floor[name])
        rows.append(Row(name, marks))
    return rows


# --- time series


def windows(run: Run) -> Section | None:
    """Synthetic windows beside real ones."""
    found = run.part("windows")
    tables = {name: found[name] for name in _COMPARED if found.get(name)}
    prediction = found.get("prediction") or {}
    shown = {*_COMPARED, "prediction"}
    chart, folded = _channels(tables)
    others = remaining({key: found[key] for key in found if key not in shown}, "Other figures", part="windows")
    compared = _compared(tables, "Windows; none are nearer to real ones than real ones are")
    blocks = [beside(stack(compared, others), stack(chart, _prediction(prediction) if prediction else None)), folded]
    return section(run, "windows", "Time series", blocks, parts=("windows",))


def _prediction(prediction: Mapping[str, Any]) -> Table:
    sources = {name: part for name, part in prediction.items() if isinstance(part, Mapping)}
    rows = [(Cell("all channels", tone="strong"), *(entry_cell(part, "error") or NOTHING for part in sources.values()))]
    for name in dict.fromkeys(name for part in sources.values() for name in part.get("channels") or {}):
        cells = [Cell(numerals.number((part.get("channels") or {}).get(name))) for part in sources.values()]
        rows.append((Cell(name), *cells))
    caption = "Error of foretelling the next step of real windows, in standard deviations"
    return Table(caption, words("channel", *sources), tuple(rows))


def _channels(tables: Mapping[str, Mapping[str, Any]]) -> tuple[Block | None, Block | None]:
    """Each channel of synthetic windows beside real ones: a chart and a table."""
    channels = (tables.get("synthetic_vs_holdout") or {}).get("channels") or {}
    if not channels:
        return None, None
    floor = (tables.get("floor_train_vs_holdout") or {}).get("channels") or {}
    rows = _beside_floor(
        {name: part.get("marginal") for name, part in channels.items()},
        {name: part.get("marginal") for name, part in floor.items()},
    )
    chart = None
    if rows:
        drawn = charts.forest(
            rows[:_SHOWN_ROWS],
            name="channels-chart",
            title="Distance by channel",
            axis="distance of the values at one step",
            to_zero=True,
        )
        chart = Chart("Distance of the values at one step, by channel, worst first", drawn)
    measures = [key for key in dict.fromkeys(key for part in channels.values() for key in part) if key != "reasons"]
    cells = tuple(
        (Cell(name), *(entry_cell(part, key) or NOTHING for key in measures)) for name, part in channels.items()
    )
    table = Table("Channels of synthetic windows beside real ones", words("channel", *measures), cells)
    return chart, Folded("Each channel", (table,))


# --- classes


def shares(run: Run) -> Section | None:
    """Classes of the label as they were requested, and as they came."""
    sources = {name: part for name, part in run.part("label_shares").items() if isinstance(part, Mapping)}
    classes = list(dict.fromkeys(key for part in sources.values() for key in part))
    blocks: list[Block | None] = []
    if classes:
        rows = tuple((Cell(name), *(Cell(numerals.percent(p.get(name))) for p in sources.values())) for name in classes)
        table = Table(
            "Share of each class of the label",
            words("class", *sources),
            rows,
            note=_apart_said(sources.get("requested"), sources.get("delivered")),
        )
        blocks.append(beside(table, _shares_chart(sources, classes)))
    violations = run.part("constraints")
    if violations:
        rows = tuple(
            (Cell(name), Cell(str(count), tone="alarm" if count else "")) for name, count in violations.items()
        )
        blocks.append(Table("Constraints of the study", words("constraint", "rows that violate it"), rows))
    return section(run, "shares", "Requested and delivered", blocks, parts=("label_shares", "constraints"))


def _shares_chart(sources: Mapping[str, Mapping[str, Any]], classes: Sequence[str]) -> Chart | None:
    rows = []
    for name in classes[:_SHOWN_ROWS]:
        marks = {label(key): Mark(part[name]) for key, part in sources.items() if numerals.is_number(part.get(name))}
        if marks:
            rows.append(Row(name, marks))
    if not rows:
        return None
    return Chart("The same, drawn", charts.forest(rows, name="shares-chart", title="Shares of classes", axis="share"))


def _apart_said(requested: Mapping[str, Any] | None, delivered: Mapping[str, Any] | None) -> str:
    if not requested or not delivered:
        return ""
    pairs = [(requested.get(name) or 0.0, delivered.get(name) or 0.0) for name in {**requested, **delivered}]
    apart = sum(abs(asked - came) for asked, came in pairs) / 2
    return f"Total variation distance of what was delivered from what was requested: {numerals.number(apart)}."
