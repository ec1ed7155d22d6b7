"""The content of evaluation.json: usefulness, fidelity and attacks, each beside what real rows would give.

Every figure here is a query on real records that no privacy budget paid for. It is for simulations and public
benchmarks; it does not leave a site. `ACCESS` says of each part who may see it, and what it cost.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

import numpy as np

from common.data.windows import WindowedTable
from common.evaluation.attacks.suite import Effort, Target, attack
from common.evaluation.controls import check_evaluator
from common.evaluation.definitions import DEFINITIONS, WINDOW_DEFINITIONS
from common.evaluation.distinguisher import distinguish
from common.evaluation.draws import measure_draws
from common.evaluation.fidelity import measure_fidelity
from common.evaluation.figures import People, Population
from common.evaluation.frechet import measure_frechet
from common.evaluation.gates import primary
from common.evaluation.neighbours import measure_neighbours
from common.evaluation.scores import score, score_released
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


def evaluate(
    subject: Subject, people: People, study: Study, *, level: Level, seed: int, on_part: OnPart = lambda _: None
) -> dict[str, Any]:
    """All measurements of one synthetic table, ready for JSON.

    Guarantees: plain dicts, lists, str, bool, int, finite float and None alone; whatever is None has its reason beside
    it; the same tables, level and seed give the same content.
    Edge cases: an empty table, or one without both sides of the label -> None and the reason, for what needs it.

    Args:
        subject: what was made.
        people: real units.
        study: of all; without windows, records alone are looked at.
        level: how much is measured.
        seed: of classifiers, attackers and samples.
        on_part: is told which part comes next.
    """
    synthetic, size = subject.target.synthetic, _SIZES[level]
    report: dict[str, Any] = outline(people, study, level=level, seed=seed, synthetic=synthetic)
    made, real = (taught(table, level, seed) for table in (synthetic, people.members.table))
    on_part("usefulness")
    equal = None if subject.balanced is None else taught(subject.balanced, level, seed)
    learning = {"tstr": made, "trtr": real, "equal_classes": equal}
    report["utility"] = _utility(
        {name: table for name, table in learning.items() if table is not None},
        people.test,
        study,
        seed,
        learnt=size.learnt,
    )
    if subject.draws:
        report["utility"]["draws"] = measure_draws(
            subject.draws, people.test.table, study, seed=seed, units=people.test.units
        )
    on_part("fidelity")
    report["fidelity"] = _fidelity(synthetic, people, study, size.compared, seed)
    if study.windows is not None:
        on_part("windows")
        report["windows"] = _windows(made, real, people.test.table, study, seed, size.windows)
    if size.attacks is not None:
        report["attacks"] = attack(subject.target, people, study, size.attacks, seed=seed, on_part=on_part)
        on_part("controls of the evaluation")
        report["controls"] = check_evaluator(people, study, seed=seed)
    report["access"] = {name: access for name, access in ACCESS.items() if name in report or name == "guarantee"}
    report["definitions"] = definitions(study)
    return report


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


def _utility(
    learning: Mapping[str, WindowedTable], test: Population, study: Study, seed: int, *, learnt: int
) -> dict[str, Any]:
    """What each table teaches; of two of them in groups of people as well; and what one with equal classes is worth.

    The latter is read at the share of positives that the plain table has (paper, section 4.4): a classifier that
    learned from equal classes calls more rows positive, which by itself finds more of them.
    """
    found = {
        name: predict_label(table, test.table, study, seed=seed, learnt=learnt) for name, table in learning.items()
    }
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


def _fidelity(synthetic: WindowedTable, people: People, study: Study, most: int, seed: int) -> dict[str, Any]:
    records = synthetic.records
    train, test = people.members.table.records, people.test.table.records
    found: dict[str, Any] = {
        "synthetic_vs_train": asdict(measure_fidelity(records, train, study, edges_from=train)),
        "synthetic_vs_holdout": asdict(measure_fidelity(records, test, study, edges_from=train)),
        "floor_train_vs_holdout": asdict(measure_fidelity(train, test, study, edges_from=train)),
    }
    if most:
        holdout = people.test
        found["frechet"] = asdict(measure_frechet(synthetic, people.members, holdout, study, seed=seed, most=most))
        found["neighbours"] = asdict(
            measure_neighbours(synthetic, people.members, holdout, study, seed=seed, most=most)
        )
        found["distinguisher"] = asdict(distinguish(synthetic, holdout, study, seed=seed, most=most))
    return found


def _windows(
    synthetic: WindowedTable, train: WindowedTable, test: WindowedTable, study: Study, seed: int, most: int
) -> dict[str, Any]:
    channels = study.channels

    def compare(table: WindowedTable) -> dict[str, Any]:
        return asdict(measure_sequence_fidelity(table, test, study, channels, seed=seed, most=most))

    def foretell(table: WindowedTable) -> dict[str, Any]:
        return asdict(measure_prediction(table, test, channels, seed=seed, most=most))

    return {
        "synthetic_vs_holdout": compare(synthetic),
        "floor_train_vs_holdout": compare(train),
        "prediction": {"tstr": foretell(synthetic), "trtr": foretell(train)},
    }


def _shares(table: WindowedTable, study: Study) -> dict[str, float]:
    codes = table.records[study.label.column].cat.codes.to_numpy()
    counts = np.bincount(codes, minlength=len(study.label_values)) / max(1, len(codes))
    return dict(zip(study.label_values, counts.tolist(), strict=True))
