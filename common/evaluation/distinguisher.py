"""Can a classifier tell synthetic rows from real ones that the generator did not learn from: a two-sample test.

This is a measure of fidelity. It is also what some papers call membership inference, "the accuracy of an attacker who
distinguishes real from generated data": read so, an accuracy of 11 % is an attacker who is right 89 % of the time with
the answers exchanged. Both accuracies are therefore folded here to at least one half. Whether a given person's row was
learned from is another question, which this one does not answer.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

from common.data.windows import WindowedTable
from common.evaluation.figures import Figure, Population
from common.evaluation.sampling import equal_rows
from common.evaluation.scores import Predictions, interval, point_scores, resample
from common.evaluation.sequences import summarise_windows
from common.evaluation.utility import gradient_boosting, to_feature, to_features
from common.evaluation.windows import read
from common.study import Study

_FOLDS: Final = 5
_FEWEST: Final = 10
"""Units on a side below which a fold has no two of them."""
_WIDER: Final = 1.5
"""Root of 1 + folds * (test rows / training rows), what the variance of cross-validated scores is held to exceed that
of independent ones by (Nadeau and Bengio 2003, equation 9)."""


@dataclass(frozen=True)
class Distinguisher:
    """How well trees tell synthetic rows from as many real ones, on rows that they did not learn from.

    auc: area under the ROC curve, synthetic rows positive; chance is 0.5.
    accuracy: max(a, 1 - a) of the share a of rows told rightly at even odds: "membership inference" as the accuracy of
        telling real from generated rows; chance is 0.5, and below it there is nothing.
    rows: of each side.
    """

    auc: Figure
    accuracy: Figure
    rows: int


def distinguish(
    synthetic: Population | WindowedTable,
    real: Population | WindowedTable,
    study: Study,
    *,
    seed: int,
    most: int = 10_000,
) -> Distinguisher:
    """Five-fold cross-validated boosted trees that tell synthetic rows from real ones.

    The trees see every column, the label included, and with windows the summaries of every channel that
    `measure_sequence_utility` uses. Every row is scored once, by trees that saw no row of its unit; each synthetic row
    is a unit. Intervals come from 1,000 draws of units with replacement and are half as wide again: the trees learned
    from each other's test rows, so that on simulated rows of one population one in ten plain intervals missed 0.5. That
    of the accuracy is folded where the accuracy is, and reaches down to 0.5 where it holds both sides of it.

    Guarantees: the same tables and seed give the same figures; no unit is in two folds.
    Edge cases: fewer than ten units on a side -> None and the reason; copies of these rows -> an AUC below 0.5, since a
    copy's original was learned as real.

    Args:
        synthetic: rows that the generator made, each a unit; for the floor, real ones with their units.
        real: rows that it did not learn from.
        study: of both.
        seed: of the rows drawn, of the folds and of the trees.
        most: rows of each side at most.

    Raises:
        ValueError: `most` is not positive.
    Source: Lopez-Paz and Oquab 2017, section 3.
    """
    sides = equal_rows([synthetic, real], seed=seed, most=most)
    rows = len(sides[0].units)
    if min(side.count for side in sides) < _FEWEST:
        nothing = Figure(chance=0.5, n=rows, reason=f"fewer than {_FEWEST} units on a side")
        return Distinguisher(nothing, nothing, rows)
    random = np.random.default_rng([seed, 45])
    folds = np.concatenate([random.permutation(side.count)[side.units] % _FOLDS for side in sides])
    units = np.concatenate([sides[0].units, sides[0].count + sides[1].units])
    features = np.vstack([_features(side.table, study) for side in sides])
    truth = np.repeat([True, False], rows)
    predictions = Predictions(truth, _score_each(features, truth, folds, study, seed))
    values, drawn = point_scores(predictions), resample(predictions, seed=seed, units=units)
    assert values.auc is not None
    assert values.accuracy is not None
    low, high = _widened(values.accuracy, drawn["accuracy"])
    folded = max(values.accuracy, 1 - values.accuracy), max(0.5, low, 1 - high), max(high, 1 - low)
    return Distinguisher(
        auc=Figure(values.auc, *_widened(values.auc, drawn["auc"]), chance=0.5, n=rows),
        accuracy=Figure(*folded, chance=0.5, n=rows),
        rows=rows,
    )


def _widened(value: float, drawn: np.ndarray) -> tuple[float, float]:
    low, high = interval(drawn)
    return max(0.0, value - _WIDER * (value - low)), min(1.0, value + _WIDER * (high - value))


def _features(table: WindowedTable, study: Study) -> np.ndarray:
    """(rows, columns and summaries) float64, NaN where missing; the label behind the other columns."""
    label = study.label.column
    parts = [to_features(table.records, study), to_feature(table.records[label], label, study.columns[label])[:, None]]
    if study.windows is not None:
        parts.append(summarise_windows(read(table, study.channels, "table")))
    return np.hstack(parts)


def _score_each(features: np.ndarray, truth: np.ndarray, folds: np.ndarray, study: Study, seed: int) -> np.ndarray:
    """Of each row, by trees that learned from the other folds, (rows,) in [0, 1]."""
    as_sets = [*gradient_boosting(study, seed)[-1].categorical_features, True]
    trees = HistGradientBoostingClassifier(
        learning_rate=0.1,
        max_iter=100,
        max_leaf_nodes=15,
        l2_regularization=1.0,
        categorical_features=[*as_sets, *[False] * (features.shape[1] - len(as_sets))],
        early_stopping=False,
        random_state=seed,
    )
    scores = np.empty(len(truth))
    for fold in range(_FOLDS):
        held = folds == fold
        # The trees refuse a feature that is all missing; made constant, it tells them nothing.
        known = ~np.isnan(features[~held]).all(axis=0)
        usable = np.where(known, features, 0.0)
        scores[held] = trees.fit(usable[~held], truth[~held]).predict_proba(usable[held])[:, 1]
    return scores
