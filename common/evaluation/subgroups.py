"""Whether a classifier serves some groups of units worse than others, by public groups alone.

Which columns make groups, and where numbers are cut, follows from the schema: nothing is looked for in the rows until a
gap turns up. Even so the largest of many gaps is large by chance: each gap stands beside the one that finite groups of
these sizes would show if the classifier served all alike.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from common.data.schema import CategoricalColumn, Column, NumericColumn
from common.evaluation.figures import Figure
from common.evaluation.scores import Predictions, interval, owners, point_scores, resample
from common.study import Study

FEWEST: Final = 50
"""Units with a positive row, and units with another, that a group must have to be measured."""

_MOST_VALUES: Final = 8
"""Public values of a column that makes groups: more make groups of few units, and gaps of pure chance."""
_PARTS: Final = 4
_AGE: Final = re.compile(r"(?<![a-z])age(?![a-z])")
"""Age by itself or in a longer name, such as holder_age; not in stage."""
_DRAWS: Final = 300
"""Resamples of a group: there are many groups, and each interval is read beside others."""
_NULL_DRAWS: Final = 4000
_MEASURES: Final = ("auc", "recall")


@dataclass(frozen=True)
class _Measured:
    """One group: a figure of each measure, and its standard error."""

    figures: dict[str, Figure]
    errors: dict[str, float]


def measure_subgroups(
    predictions: Predictions,
    test: pd.DataFrame,
    study: Study,
    *,
    seed: int,
    units: np.ndarray | None = None,
    by: Sequence[str] | None = None,
) -> dict[str, Any]:
    """AUC and recall of one classifier in each group of the test table, and the largest gap between two groups.

    A group is one value of a categorical feature, one of four parts of a number between its public bounds, of equal
    length on the schema's scale, or the rows in which a column has no value. By default groups are made by each
    categorical feature with at most 8 public values and each number whose name has the word age in it. All groups have
    the threshold of the classifier. Intervals draw the units of the group again, the rows of a unit together.

    The chance of a gap is the mean gap of independent normal figures with one mean and these groups' standard errors.

    Guarantees: plain dicts, lists, str, int, finite float and None alone; whatever is None has its reason beside it;
    the same arguments give the same figures; no row is left out, and none is in two groups of one column.
    Edge cases: fewer than 50 units with a positive row in a group, or fewer than 50 with another -> no figures of that
    group, and the reason; fewer than two groups that are measured -> no gap, and the reason; no scores -> no columns.

    Args:
        predictions: of the rows of `test`.
        test: parsed table.
        study: names the features and their public values and bounds.
        seed: of the resamples.
        units: (rows,), which unit a row belongs to; None: each row is a unit of its own.
        by: features to make groups by, in place of the default.

    Returns:
        {"columns": {name: {"groups": [{"group", "auc", "recall"}], "auc_gap", "recall_gap"}}, "auc_gap", "recall_gap"}:
        every figure as the dict of a `Figure`, "group" None where the column has no value, the last two the largest
        gaps of all columns, with the column's name in "column".

    Raises:
        ValueError: the arrays do not have one length, or `by` names what is not a feature.
    Source: Borkan et al. 2019 (AUC within subgroups); Hardt et al. 2016 (gap of recalls: equal opportunity).
    """
    owner = owners(units, len(predictions.truth))
    if len(test) != len(predictions.truth):
        raise ValueError("test: expected the rows that the predictions are of")
    if unknown := set(by or ()) - study.features.keys():
        raise ValueError(f"by: {', '.join(sorted(unknown))}: expected features of the study")
    chosen = grouping_columns(study.features) if by is None else by
    columns: dict[str, dict[str, Any]] = {}
    gaps: dict[str, dict[str, Figure]] = {}
    for name in chosen if predictions.scores is not None else ():
        groups = _groups(test[name], study.features[name])
        measured = [_measure(predictions.take(rows), owner[rows], seed) for _, rows in groups]
        gaps[name] = {measure: _gap(measured, measure, seed) for measure in _MEASURES}
        columns[name] = {
            "groups": [
                {"group": group, **{measure: asdict(found.figures[measure]) for measure in _MEASURES}}
                for (group, _), found in zip(groups, measured, strict=True)
            ],
            **{f"{measure}_gap": asdict(gap) for measure, gap in gaps[name].items()},
        }
    reason = predictions.reason or "no column has two groups that can be measured"
    return {"columns": columns, **{f"{measure}_gap": _largest(gaps, measure, reason) for measure in _MEASURES}}


def grouping_columns(features: Mapping[str, Column]) -> list[str]:
    """The features that make groups, by a rule on the public schema alone."""
    return [
        name
        for name, column in features.items()
        if (len(column.values) <= _MOST_VALUES if isinstance(column, CategoricalColumn) else _AGE.search(name.lower()))
    ]


def _groups(values: pd.Series, column: Column) -> list[tuple[str | None, np.ndarray]]:
    """Names of the groups and positions of their rows, in the order of the schema; None: no value."""
    if isinstance(column, CategoricalColumn):
        names, group = list(column.values), values.cat.codes.to_numpy().astype(np.int64)
    else:
        names, group = _parts(values, column)
    parts: list[tuple[str | None, np.ndarray]] = [(name, np.flatnonzero(group == at)) for at, name in enumerate(names)]
    return [*parts, (None, np.flatnonzero(group == -1))] if column.missing else parts


def _parts(values: pd.Series, column: NumericColumn) -> tuple[list[str], np.ndarray]:
    """Names of the equal parts of the scale, and the part of each row, (rows,) int64; -1: no value."""
    low = float(column.min)
    ends = column.to_scale(np.array([low, float(column.max)]), low)
    edges = column.from_scale(np.linspace(ends[0], ends[1], _PARTS + 1), low)
    edges[0], edges[-1] = low, column.max
    numbers = column.to_numbers(values)
    part = np.where(np.isnan(numbers), -1, np.searchsorted(edges[1:-1], numbers, side="right"))
    closed = [")"] * (_PARTS - 1) + ["]"]
    names = [f"[{edges[at]:.6g}, {edges[at + 1]:.6g}{closed[at]}" for at in range(_PARTS)]
    return names, part.astype(np.int64)


def _measure(predictions: Predictions, owner: np.ndarray, seed: int) -> _Measured:
    """The figures of one group."""
    n = {"auc": len(np.unique(owner)), "recall": len(np.unique(owner[predictions.truth]))}
    if min(n["recall"], len(np.unique(owner[~predictions.truth]))) < FEWEST:
        reason = f"fewer than {FEWEST} units with a positive row, or with another"
        return _Measured({measure: Figure(n=n[measure], reason=reason) for measure in _MEASURES}, {})
    points = point_scores(predictions)
    drawn = resample(predictions, seed=seed, units=owner, draws=_DRAWS)
    chance = {"auc": 0.5, "recall": None}
    figures = {
        measure: Figure(getattr(points, measure), *interval(drawn[measure]), chance[measure], n=n[measure])
        for measure in _MEASURES
    }
    return _Measured(figures, {measure: float(np.nanstd(drawn[measure], ddof=1)) for measure in _MEASURES})


def _gap(measured: Sequence[_Measured], measure: str, seed: int) -> Figure:
    """The largest figure less the least, beside what chance gives."""
    known = [group for group in measured if group.errors]
    if len(known) < 2:
        return Figure(n=len(known), reason="fewer than two groups can be measured")
    values = [group.figures[measure].value or 0.0 for group in known]
    noise = np.random.default_rng([seed, 2]).standard_normal((_NULL_DRAWS, len(known)))
    chance = np.ptp(noise * [group.errors[measure] for group in known], axis=1).mean()
    return Figure(max(values) - min(values), chance=float(chance), n=len(known))


def _largest(gaps: Mapping[str, Mapping[str, Figure]], measure: str, reason: str) -> dict[str, Any]:
    """The largest gap of all columns, as a dict with the column's name."""
    known = {name: found[measure] for name, found in gaps.items() if found[measure].value is not None}
    if not known:
        return {"column": None, **asdict(Figure(n=0, reason=reason))}
    column = max(known, key=lambda name: known[name].value or 0.0)
    return {"column": column, **asdict(known[column])}
