"""How the run went: the noise of each release, what the controller decided, and how near the generator came."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from common.evaluation import charts, numerals
from common.evaluation.labels import label
from common.evaluation.sections.blocks import (
    Block,
    Cell,
    Chart,
    Folded,
    Run,
    Section,
    Table,
    beside,
    figure_cell,
    section,
    term,
    words,
)
from common.evaluation.steps import kind_of, stage_of
from common.evaluation.verdict import figure_of, spoken_of

_LISTED_SITES: Final = 6
"""Sites with a column of their own."""
_TERMS: Final = ("error", "proportional", "integral", "derivative")


def noise(run: Run) -> Section | None:
    """Noise of every stage, the noise controller, losses."""
    releases = [line for line in run.rounds if line.get("noise_stddev")]
    decided = [line for line in run.rounds if line.get("step") == "noise"]
    blocks: list[Block | None] = [
        beside(_noise_chart(releases) if releases else None, _loss_chart(run)),
        beside(_controller_chart(decided), _controller_table(decided) if decided else None),
        _stages(run),
        Folded("Noise of every release, by site", (_noise_table(releases),)) if releases else None,
    ]
    return section(run, "noise", "Noise and training", blocks, parts=("stages",))


def _noise_chart(releases: Sequence[Mapping[str, Any]]) -> Chart:
    series: dict[str, dict[float, float]] = {}
    for line in releases:
        points = series.setdefault(label(kind_of(line)), {})
        # A mechanism may release many times a stage, with one noise.
        points.setdefault(stage_of(line) or 1, max(line["noise_stddev"].values()))
    drawn = charts.lines(
        {name: sorted(points.items()) for name, points in series.items()},
        name="noise-chart",
        title="Noise by stage",
        axes_labels=("stage", "standard deviation, in units"),
        log=True,
    )
    return Chart("Noise of one count at one site, the largest of any site, by stage", drawn)


def _loss_chart(run: Run) -> Chart | None:
    series: dict[str, list[tuple[float, float]]] = {}
    for line in run.rounds:
        if line.get("step") != "round":
            continue
        for name, value in (line.get("losses") or {"loss": line.get("loss")}).items():
            if numerals.is_number(value):
                series.setdefault(label(name), []).append((line["round"], value))
    if not series:
        return None
    drawn = charts.lines(
        series,
        name="losses-chart",
        title="Loss by round",
        axes_labels=("round", "noise variances a cell"),
        reference=1.0,
    )
    return Chart("Distance of the generator from what was released; at the line, all that is left is noise", drawn)


def _controller_chart(decided: Sequence[Mapping[str, Any]]) -> Chart | None:
    series: dict[str, list[tuple[float, float]]] = {}
    for line in decided:
        for name in _TERMS:
            if numerals.is_number(line.get(name)):
                series.setdefault(label(name), []).append((line["stage"], line[name]))
        if numerals.is_number(line.get("multiplier")) and line["multiplier"] > 0:
            series.setdefault("log of multiplier", []).append((line["stage"], math.log(line["multiplier"])))
    if len(decided) < 2 or not series:
        return None
    drawn = charts.lines(
        series,
        name="controller-chart",
        title="Terms of the noise controller",
        axes_labels=("stage", "term"),
        reference=0.0,
    )
    return Chart("Terms of the noise controller; a multiplier above 1 spends more, so that noise is less", drawn)


def _controller_table(decided: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for line in decided:
        inputs = [
            f"{label(name)} {numerals.number(value)}"
            for name, value in (line.get("inputs") or {}).items()
            if numerals.is_number(value)
        ]
        terms = [Cell(numerals.number(line.get(name))) for name in (*_TERMS, "multiplier")]
        share = Cell(numerals.percent(line.get("share")), ", ".join(map(str, line.get("clamped_by") or [])))
        rows.append((Cell(f"stage {line['stage']}", "; ".join(inputs)), *terms, share))
    return Table(
        "What the noise controller saw and decided",
        words("decision", "error", "P", "I", "D", "multiplier", "share"),
        tuple(rows),
        note="P, I and D are what the proportional, integral and derivative terms add to the logarithm of the "
        "multiplier on the plan's share. Below a share stands what kept it from being larger or smaller.",
    )


def _stages(run: Run) -> Table | None:
    """What the generator was worth after each stage, beside what had been spent by then."""
    rows = []
    for stage in run.evaluation.get("stages") or []:
        frechet, told = stage.get("frechet") or {}, stage.get("distinguisher") or {}
        utility = stage.get("utility") or {}
        scores = (utility[spoken_of(utility)] if utility else None) or {}
        low, high = (scores.get("intervals") or {}).get("auc") or (None, None)
        rows.append(
            (
                Cell(f"stage {stage['stage']}"),
                Cell(numerals.number(stage.get("noise_multiplier"))),
                Cell(numerals.epsilon(stage["epsilon"]) if stage.get("epsilon") else numerals.NOTHING),
                figure_cell(figure_of(frechet.get("distance"))),
                figure_cell(figure_of(told.get("auc"))),
                Cell(*numerals.figure(scores.get("auc"), low, high)),
            )
        )
    return (
        Table(
            "What rows of the generator were worth after each stage",
            words("stage", "noise multiplier", "ε so far", "frechet", "AUC of telling from real", "AUC of use"),
            tuple(rows),
            note="Telling from real: 0.5 is best. Use: of a classifier that learned from them, on unseen real ones.",
        )
        if rows
        else None
    )


def _noise_table(releases: Sequence[Mapping[str, Any]]) -> Table:
    """One row a mechanism and stage; one column a site, or two for many sites."""
    sites = list(dict.fromkeys(site for line in releases for site in line["noise_stddev"]))
    are_few = len(sites) <= _LISTED_SITES
    rows: dict[tuple[str, int | None], tuple[Cell, ...]] = {}
    for line in releases:
        found, key = line["noise_stddev"], (kind_of(line), stage_of(line))
        values = [found.get(site) for site in sites] if are_few else [min(found.values()), max(found.values())]
        name = term(key[0], f"stage {key[1]}" if key[1] else "")
        # A mechanism may release many times a stage, with one noise.
        rows.setdefault(
            key, (name, Cell(numerals.count(line.get("cells"))), *(Cell(numerals.number(v)) for v in values))
        )
    columns = tuple(Cell(site) for site in sites) if are_few else words("smallest", "largest")
    caption = "Standard deviation of the noise of one count, in units"
    return Table(caption, (*words("release", "cells"), *columns), tuple(rows.values()))
