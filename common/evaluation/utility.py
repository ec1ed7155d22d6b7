"""Is a classifier trained on synthetic rows as good on real ones: TSTR beside TRTR.

Train on synthetic, test on real (TSTR) and train on real, test on real (TRTR) are one function called with two training
tables, so that nothing but the table differs. The classifiers and their settings are fixed here, before any result is
seen; nothing is tuned, and the test table is used for scores alone.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    precision_recall_fscore_support,
    roc_auc_score,
)
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from common.data.encoding import make_grid
from common.data.schema import CategoricalColumn, Column
from common.study import Study

_MAX_TREE_CATEGORIES = 255
"""Scikit-learn's trees split at most this many categories as a set."""


@dataclass(frozen=True)
class Scores:
    """How well one classifier tells the positive class of the label from the rest, on the test table.

    f1, recall and precision are those of the positive class; precision is 0 when nothing is predicted positive.
    majority_accuracy is what always guessing the test table's more frequent side would give: accuracy below it is worth
    nothing. Where a score cannot be had it is None, and `reason` says why.
    """

    auc: float | None = None
    auprc: float | None = None
    accuracy: float | None = None
    f1: float | None = None
    recall: float | None = None
    precision: float | None = None
    majority_accuracy: float | None = None
    reason: str | None = None


def measure_utility(train: pd.DataFrame, test: pd.DataFrame, study: Study, *, seed: int) -> dict[str, Scores]:
    """Scores on `test` of two fixed classifiers trained on `train`: TSTR or TRTR, by what `train` is.

    `logistic_regression` sees one-hot categories (missing is one of them) and numbers on the schema's scale, the median
    of `train` in place of a missing one, an indicator beside it, standardised by `train`. `gradient_boosting` sees the
    same values as they are: it splits on sets of categories and sends a missing value to the better side.

    The decision threshold is chosen on `train` alone: the cut at which the share of `train` that is predicted positive
    comes nearest to the share of `train` that is positive, half way between two scores.

    Guarantees: every score is a finite float or None; the same tables and seed give the same scores; a row's prediction
    does not depend on the other rows of `test`.
    Edge cases: a table without rows, or with the positive class alone or absent -> None and the reason; a column that
    is all missing in `train` -> not used.

    Args:
        train: parsed table, synthetic or real; columns that are not in the study are not looked at.
        test: parsed table of real records that are not in `train` and did not make it.
        study: names the columns, the label and its positive class.
        seed: of what the classifiers draw: the rows that bound the trees' histograms, above 200,000 rows.

    Returns:
        The scores by the name of the classifier.
    Source: Esteban et al. 2017, section 4.2 (TSTR).
    """
    classifiers = {
        "logistic_regression": logistic_regression,
        "gradient_boosting": gradient_boosting,
    }
    train_truth, test_truth = is_positive(train, study), is_positive(test, study)
    majority = float(max(test_truth.mean(), 1 - test_truth.mean())) if len(test_truth) else None
    reason = not_measurable("training", train_truth) or not_measurable("test", test_truth)
    if reason is not None:
        return {name: Scores(majority_accuracy=majority, reason=reason) for name in classifiers}
    train_features, test_features = to_features(train, study), to_features(test, study)
    # Scikit-learn's trees refuse such a column; made constant, it tells neither classifier anything.
    all_missing = np.isnan(train_features).all(axis=0)
    train_features[:, all_missing] = test_features[:, all_missing] = 0.0
    measured: dict[str, Scores] = {}
    for name, make in classifiers.items():
        classifier = make(study, seed).fit(train_features, train_truth)
        threshold = choose_threshold(classifier.predict_proba(train_features)[:, 1], train_truth)
        scores = classifier.predict_proba(test_features)[:, 1]  # (test records,)
        measured[name] = _score(scores, test_truth, threshold, majority)
    return measured


def is_positive(table: pd.DataFrame, study: Study) -> np.ndarray:
    """Which rows have the positive class, (rows,) bool."""
    return (table[study.label.column] == study.label.positive).to_numpy(dtype=bool)


def not_measurable(which: str, truth: np.ndarray) -> str | None:
    """Why nothing can be measured on a table with these labels; None where it can."""
    if not len(truth):
        return f"the {which} table has no rows"
    if truth.all() or not truth.any():
        return f"the {which} table does not hold both the positive class and another"
    return None


def to_features(table: pd.DataFrame, study: Study) -> np.ndarray:
    """(records, features) float64: codes of categories, numbers on the schema's scale; NaN is missing."""
    return np.column_stack([to_feature(table[name], name, column) for name, column in study.features.items()])


def to_feature(values: pd.Series, name: str, column: Column) -> np.ndarray:
    """One column of `to_features`, (records,) float64."""
    if isinstance(column, CategoricalColumn):
        return np.where(values.isna(), np.nan, make_grid(name, column).encode(values))
    return column.to_scale(values.to_numpy(dtype=np.float64, na_value=np.nan), float(column.min))


def logistic_regression(study: Study, seed: int) -> Pipeline:
    """The fixed logistic regression, with its preparation of columns."""
    columns = list(study.features.values())
    categorical = [position for position, column in enumerate(columns) if isinstance(column, CategoricalColumn)]
    numeric = [position for position in range(len(columns)) if position not in categorical]
    # All public values and missing, so that a value which only the test table holds is no error.
    known = [np.append(np.arange(float(len(c.values))), np.nan) for c in columns if isinstance(c, CategoricalColumn)]
    imputer = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
    prepare = ColumnTransformer(
        [
            ("categories", OneHotEncoder(categories=known), categorical),
            ("numbers", make_pipeline(imputer, StandardScaler()), numeric),
        ]
    )
    return make_pipeline(prepare, LogisticRegression(C=1.0, max_iter=2000, random_state=seed))


def gradient_boosting(study: Study, seed: int) -> Pipeline:
    """The fixed boosted trees; the columns that are categories split as sets."""
    # Wider columns enter as ordered codes: still a fixed, public encoding.
    as_sets = [
        isinstance(column, CategoricalColumn) and len(column.values) <= _MAX_TREE_CATEGORIES
        for column in study.features.values()
    ]
    boosting = HistGradientBoostingClassifier(
        learning_rate=0.06,
        max_iter=300,
        max_leaf_nodes=15,
        l2_regularization=1.0,
        categorical_features=as_sets,
        # A stratified split for early stopping fails on a class of one row and takes rows from a rare class.
        early_stopping=False,
        random_state=seed,
    )
    return make_pipeline(boosting)


def choose_threshold(scores: np.ndarray, truth: np.ndarray) -> float:
    """The cut whose share of scores at or above it is nearest to the share of `truth`; scores lie in [0, 1]."""
    distinct = np.unique(scores)
    above_all = np.nextafter(1.0, 2.0)
    cuts = np.concatenate([[0.0], (distinct[1:] + distinct[:-1]) / 2, [above_all]])
    n_above = len(scores) - np.searchsorted(np.sort(scores), cuts, side="left")
    return float(cuts[np.argmin(np.abs(n_above - truth.sum()))])


def _score(scores: np.ndarray, truth: np.ndarray, threshold: float, majority: float | None) -> Scores:
    predicted = scores >= threshold
    precision, recall, f1, _ = precision_recall_fscore_support(truth, predicted, average="binary", zero_division=0.0)
    return Scores(
        auc=float(roc_auc_score(truth, scores)),
        auprc=float(average_precision_score(truth, scores)),
        accuracy=float(accuracy_score(truth, predicted)),
        f1=float(f1),
        recall=float(recall),
        precision=float(precision),
        majority_accuracy=majority,
    )
