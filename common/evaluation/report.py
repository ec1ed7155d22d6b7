"""The content of evaluation.json: usefulness, fidelity and attacks, each beside what real rows would give.

Every figure here is a query on real records that no privacy budget paid for. It is for simulations and public
benchmarks; it does not leave a site. `ACCESS` says of each part who may see it, and what it cost.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from typing import Any, Final

import numpy as np

from common.data.constraints import count_row_violations, count_step_violations
from common.data.windows import WindowedTable
from common.evaluation.attacks.suite import Effort, Target, findings, parts_of_attack
from common.evaluation.controls import check_evaluator
from common.evaluation.definitions import DEFINITIONS, WINDOW_DEFINITIONS
from common.evaluation.distinguisher import distinguish
from common.evaluation.draws import measure_draws
from common.evaluation.fidelity import measure_fidelity
from common.evaluation.figures import People, Population
from common.evaluation.frechet import measure_frechet
from common.evaluation.gates import primary
from common.evaluation.neighbours import measure_neighbours
from common.evaluation.parts import Part, compute
from common.evaluation.scores import Predictions, score, score_released
from common.evaluation.sequences import (
    COMPARED,
    LEARNT,
    measure_prediction,
    measure_sequence_fidelity,
    predict_label,
)
from common.evaluation.subgroups import measure_subgroups
from common.evaluation.utility import is_positive
from common.study import Study

EVALUATION_SCHEMA: Final = "privshare.evaluation/2"

OnPart = Callable[[str], None]


class Level(StrEnum):
    """How much is measured: usefulness and tables of one and two columns; and attacks, on few units, more, or most."""

    BASIC = "basic"
    QUICK = "quick"
    STANDARD = "standard"
    DEEP = "deep"


@dataclass(frozen=True)
class _Size:
    """attacks: how hard they try; None: there are none.

    compared: rows whose embeddings are. draws: synthetic tables beside the first.
    taught: most rows that classifiers learn from; None for all.
    learnt, windows: units that recurrent networks learn a label from, and that they tell apart or forecast.
    """

    attacks: Effort | None
    compared: int
    draws: int
    taught: int | None = None
    learnt: int = LEARNT
    windows: int = COMPARED


_SIZES: Final[Mapping[Level, _Size]] = {
    Level.BASIC: _Size(None, compared=0, draws=0),
    Level.QUICK: _Size(
        Effort(attacked=2000, predicates=300, latents=1024, many_secrets=False),
        compared=2000,
        draws=0,
        taught=10_000,
        learnt=1500,
        windows=1000,
    ),
    Level.STANDARD: _Size(Effort(attacked=5000, predicates=1000, latents=4096), compared=10_000, draws=4),
    Level.DEEP: _Size(
        Effort(attacked=20_000, predicates=5000, latents=16_384, searched=True), compared=20_000, draws=9
    ),
}
_REAL_ROWS = "free in a simulation; on real rows it would be a query that no budget pays for"
ACCESS: Final = {
    "utility": {"visibility": "simulation", "cost": _REAL_ROWS},
    "fidelity": {"visibility": "simulation", "cost": _REAL_ROWS},
    "windows": {"visibility": "simulation", "cost": _REAL_ROWS},
    "constraints": {"visibility": "public", "cost": "nothing: it looks at synthetic rows alone"},
    "attacks": {"visibility": "simulation", "cost": _REAL_ROWS},
    "controls": {"visibility": "simulation", "cost": _REAL_ROWS},
    "stages": {"visibility": "simulation", "cost": _REAL_ROWS},
    "label_shares": {"visibility": "public", "cost": "nothing beyond the releases, but for the shares of real rows"},
    "monitor": {"visibility": "public", "cost": "bought from held-out units, within their own epsilon"},
    "gates": {"visibility": "public", "cost": "those of figures that are bought or free; others in simulations alone"},
    "guarantee": {"visibility": "public", "cost": "nothing: it follows from what the ledgers say"},
}
"""Who may see each part, and what it cost."""


@dataclass(frozen=True)
class Subject:
    """What is measured.

    target: what attackers have, the synthetic table first of all.
    draws: more tables of the same generator.
    balanced: one with all label classes equally often.
    """

    target: Target
    draws: Sequence[WindowedTable] = ()
    balanced: WindowedTable | None = None


def effort_of(level: Level) -> Effort | None:
    """How hard attackers try; None: not at all."""
    return _SIZES[level].attacks


def draws_of(level: Level) -> int:
    """How many tables beside the first a level asks for."""
    return _SIZES[level].draws


def learnt_of(level: Level) -> int:
    """Units that recurrent networks learn a label from at most."""
    return _SIZES[level].learnt


def evaluate(
    subject: Subject,
    people: People,
    study: Study,
    *,
    level: Level,
    seed: int,
    processes: int = 1,
    on_part: OnPart = lambda _: None,
) -> dict[str, Any]:
    """All measurements of one synthetic table, ready for JSON.

    Guarantees: plain dicts, lists, str, bool, int, finite float and None alone; whatever is None has its reason beside
    it; the same tables, level and seed give the same content, for any number of processes.
    Edge cases: an empty table, or one without both sides of the label -> None and the reason, for what needs it.

    Args:
        subject: what was made.
        people: real units.
        study: of all; without windows, records alone are looked at.
        level: how much is measured.
        seed: of classifiers, attackers and samples.
        processes: that measure, see `compute`.
        on_part: is told which part has been measured.
    """
    synthetic, size = subject.target.synthetic, _SIZES[level]
    report: dict[str, Any] = outline(people, study, level=level, seed=seed, synthetic=synthetic)
    learning = {"tstr": synthetic, "trtr": people.members.table, "equal_classes": subject.balanced}
    taught_by = {name: taught(table, level, seed) for name, table in learning.items() if table is not None}
    attacks = {} if size.attacks is None else parts_of_attack(subject.target, people, study, size.attacks, seed=seed)
    usefulness = _parts_of_utility(taught_by, subject.draws, people.test, study, seed, size)
    windows = _parts_of_windows(taught_by, people.test.table, study, seed, size.windows)
    fidelity = _parts_of_fidelity(synthetic, people, study, size.compared, seed)
    controls: dict[str, Part] = {"controls": partial(check_evaluator, people, study, seed=seed)} if attacks else {}
    parts: dict[str, Part] = {**controls, **attacks, **usefulness, **windows, **fidelity}
    done = compute(parts, processes=processes, on_part=on_part)
    report["utility"] = _utility(
        {name: done[_teaching(name)] for name in taught_by}, taught_by, people.test, study, seed
    )
    if subject.draws:
        report["utility"]["draws"] = done[_DRAWS]
    report["fidelity"] = {name: asdict(done[name]) for name in fidelity}
    if study.constraints:
        report["constraints"] = count_violations(synthetic, study)
    if windows:
        report["windows"] = _windows(done)
    if attacks:
        report["attacks"] = findings(done)
        report["controls"] = done["controls"]
    report["access"] = {name: access for name, access in ACCESS.items() if name in report or name == "guarantee"}
    report["definitions"] = definitions(study)
    return report


def count_violations(table: WindowedTable, study: Study) -> dict[str, int]:
    """Synthetic units that violate each constraint of the study, by its text."""
    rows = count_row_violations(table.records, study.constraints, study.columns)
    return rows | count_step_violations(table.values, study.constraints, study.channels)


def definitions(study: Study) -> dict[str, str]:
    """One sentence for each name in a report about the study."""
    return dict(DEFINITIONS) if study.windows is None else DEFINITIONS | WINDOW_DEFINITIONS


def outline(
    people: People, study: Study, *, level: Level, seed: int, synthetic: WindowedTable | None
) -> dict[str, Any]:
    """What is measured and how; how many of each there are, and the shares of the label's classes."""
    parts = {
        "train": people.members,
        "test": people.test,
        "control": people.control,
        "reference": people.reference,
    }
    tables = {name: part.table for name, part in parts.items()}
    if synthetic is not None:
        tables = {"synthetic": synthetic, **tables}
    return {
        "schema": EVALUATION_SCHEMA,
        "study": study.digest(),
        "seed": seed,
        "level": level.value,
        "unit": study.unit.name,
        "rows": {name: len(table.records) for name, table in tables.items()},
        "units": {name: part.count for name, part in parts.items()},
        "columns": {
            "features": len(study.features),
            "categorical": sum(column.type == "categorical" for column in study.features.values()),
            "numeric": sum(column.type != "categorical" for column in study.features.values()),
            "channels": len(study.channels),
            "steps": 0 if study.windows is None else study.windows.length,
        },
        "label_shares": {
            "delivered" if name == "synthetic" else name: _shares(table, study) for name, table in tables.items()
        },
        "positive_share": _shares(people.members.table, study)[study.label.positive],
    }


def utility_of(
    train: WindowedTable, test: Population, study: Study, *, seed: int, learnt: int = LEARNT
) -> dict[str, dict[str, Any]]:
    """Scores by classifier: TSTR or TRTR, by what `train` is."""
    found = predict_label(train, test.table, study, seed=seed, learnt=learnt)
    return {name: asdict(score(one, seed=seed, units=test.units)) for name, one in found.items()}


def taught(table: WindowedTable, level: Level, seed: int) -> WindowedTable:
    """The rows that classifiers learn from at a level: all, or at the quick one a random part of a large table."""
    rows = len(table.records)
    most = rows_taught(rows, level)
    return table if most == rows else table.take(np.random.default_rng([seed, 9]).permutation(rows)[:most])


def rows_taught(rows: int, level: Level) -> int:
    """Of so many rows, how many classifiers learn from at a level."""
    return min(rows, _SIZES[level].taught or rows)


_DRAWS: Final = "usefulness of more draws"


def _teaching(name: str) -> str:
    return f"usefulness, {name.replace('_', ' ')}"


def _parts_of_utility(
    learning: Mapping[str, WindowedTable],
    draws: Sequence[WindowedTable],
    test: Population,
    study: Study,
    seed: int,
    size: _Size,
) -> dict[str, Part]:
    """What classifiers that learn from each table say of the test rows, and from several draws."""
    parts: dict[str, Part] = {
        _teaching(name): partial(predict_label, table, test.table, study, seed=seed, learnt=size.learnt)
        for name, table in learning.items()
    }
    if draws:
        parts[_DRAWS] = partial(measure_draws, draws, test.table, study, seed=seed, units=test.units)
    return parts


def _utility(
    found: Mapping[str, dict[str, Predictions]],
    learning: Mapping[str, WindowedTable],
    test: Population,
    study: Study,
    seed: int,
) -> dict[str, Any]:
    """What each table teaches; of two of them in groups of people as well; and what one with equal classes is worth.

    The latter is read at the share of positives that the plain table has (paper, section 4.4): a classifier that
    learned from equal classes calls more rows positive, which by itself finds more of them.
    """
    scores: dict[str, Any] = {
        name: {which: asdict(score(one, seed=seed, units=test.units)) for which, one in predicted.items()}
        for name, predicted in found.items()
    }
    scores["subgroups"] = {
        name: measure_subgroups(
            found[name][primary({"tstr": found[name]})], test.table.records, study, seed=seed, units=test.units
        )
        for name in ("tstr", "trtr")
    }
    if "equal_classes" in found:
        share = float(is_positive(learning["tstr"].records, study).mean())
        truth = is_positive(test.table.records, study)
        scores["controlled"] = {
            shown: {
                which: asdict(score_released(one.scores, truth, share=share, seed=seed, units=test.units))
                for which, one in found[name].items()
                if one.scores is not None
            }
            for shown, name in (("as_released", "tstr"), ("equal_classes", "equal_classes"))
        }
    return scores


def _parts_of_fidelity(synthetic: WindowedTable, people: People, study: Study, most: int, seed: int) -> dict[str, Part]:
    records = synthetic.records
    train, test = people.members.table.records, people.test.table.records
    parts: dict[str, Part] = {
        "synthetic_vs_train": partial(measure_fidelity, records, train, study, edges_from=train),
        "synthetic_vs_holdout": partial(measure_fidelity, records, test, study, edges_from=train),
        "floor_train_vs_holdout": partial(measure_fidelity, train, test, study, edges_from=train),
    }
    if most:
        parts["frechet"] = partial(measure_frechet, synthetic, people.members, people.test, study, seed=seed, most=most)
        parts["neighbours"] = partial(
            measure_neighbours, synthetic, people.members, people.test, study, seed=seed, most=most
        )
        parts["distinguisher"] = partial(distinguish, synthetic, people.test, study, seed=seed, most=most)
    return parts


_COMPARISON: Final = "windows, synthetic"
_FLOOR: Final = "windows, real"
_FORECAST: Final = "forecast, synthetic"
_REAL_FORECAST: Final = "forecast, real"


def _parts_of_windows(
    taught_by: Mapping[str, WindowedTable], test: WindowedTable, study: Study, seed: int, most: int
) -> dict[str, Part]:
    if study.windows is None:
        return {}
    channels, synthetic, train = study.channels, taught_by["tstr"], taught_by["trtr"]
    return {
        _COMPARISON: partial(measure_sequence_fidelity, synthetic, test, study, channels, seed=seed, most=most),
        _FLOOR: partial(measure_sequence_fidelity, train, test, study, channels, seed=seed, most=most),
        _FORECAST: partial(measure_prediction, synthetic, test, channels, seed=seed, most=most),
        _REAL_FORECAST: partial(measure_prediction, train, test, channels, seed=seed, most=most),
    }


def _windows(done: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "synthetic_vs_holdout": asdict(done[_COMPARISON]),
        "floor_train_vs_holdout": asdict(done[_FLOOR]),
        "prediction": {"tstr": asdict(done[_FORECAST]), "trtr": asdict(done[_REAL_FORECAST])},
    }


def _shares(table: WindowedTable, study: Study) -> dict[str, float]:
    codes = table.records[study.label.column].cat.codes.to_numpy()
    counts = np.bincount(codes, minlength=len(study.label_values)) / max(1, len(codes))
    return dict(zip(study.label_values, counts.tolist(), strict=True))
