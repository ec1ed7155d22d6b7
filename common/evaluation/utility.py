"""Is a classifier trained on synthetic rows as good on real ones: TSTR beside TRTR.

Train on synthetic, test on real (TSTR) and train on real, test on real (TRTR) are one function called with two training
tables, so that nothing but the table differs. The classifiers and their settings are fixed here, before any result is
seen; nothing is tuned, and the test table is used for scores alone.
"""

from typing import Final

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from common.data.encoding import make_grid
from common.data.schema import CategoricalColumn, Column
from common.evaluation.scores import Predictions, Scores, choose_threshold, not_measurable, score
from common.study import Study

_MAX_TREE_CATEGORIES: Final = 255
"""Scikit-learn's trees split at most this many categories as a set."""


def measure_utility(
    train: pd.DataFrame, test: pd.DataFrame, study: Study, *, seed: int, units: np.ndarray | None = None
) -> dict[str, Scores]:
    """Scores on `test` of two fixed classifiers trained on `train`: TSTR or TRTR, by what `train` is.

    The classifiers and their threshold are those of `predict`, the scores and their intervals those of `score`.

    Guarantees: every score is a finite float or None; the same tables, units and seed give the same scores; a row's
    prediction does not depend on the other rows of `test`.
    Edge cases: a table without rows, or with the positive class alone or absent -> None and the reason; a column that
    is all missing in `train` -> not used.

    Args:
        train: parsed table, synthetic or real; columns that are not in the study are not looked at.
        test: parsed table of real records that are not in `train` and did not make it.
        study: names the columns, the label and its positive class.
        seed: of what the classifiers draw, and of the resamples of the intervals.
        units: (test rows,), which unit a row belongs to; None: each row is a unit of its own.

    Returns:
        The scores by the name of the classifier.

    Raises:
        ValueError: there is not one unit for each row.
    Source: Esteban et al. 2017, section 4.2 (TSTR).
    """
    predicted = predict(train, test, study, seed=seed)
    return {name: score(predictions, seed=seed, units=units) for name, predictions in predicted.items()}


def predict(train: pd.DataFrame, test: pd.DataFrame, study: Study, *, seed: int) -> dict[str, Predictions]:
    """What two fixed classifiers trained on `train` say of each row of `test`, by their names.

    `logistic_regression` sees one-hot categories (missing is one of them) and numbers on the schema's scale, the median
    of `train` in place of a missing one, an indicator beside it, standardised by `train`. `gradient_boosting` sees the
    same values as they are: it splits on sets of categories and sends a missing value to the better side.

    The decision threshold is chosen on `train` alone: the cut at which the share of `train` that is predicted positive
    comes nearest to the share of `train` that is positive, half way between two scores.

    Guarantees, edge cases: as of `measure_utility`; no scores where nothing can be measured.

    Args:
        train: see `measure_utility`.
        test: see `measure_utility`.
        study: see `measure_utility`.
        seed: of what the classifiers draw: the rows that bound the trees' histograms, above 200,000 rows.
    """
    classifiers = {"logistic_regression": logistic_regression, "gradient_boosting": gradient_boosting}
    train_truth, test_truth = is_positive(train, study), is_positive(test, study)
    reason = not_measurable("training", train_truth) or not_measurable("test", test_truth)
    if reason is not None:
        return {name: Predictions(test_truth, reason=reason) for name in classifiers}
    train_features, test_features = to_features(train, study), to_features(test, study)
    # Scikit-learn's trees refuse such a column; made constant, it tells neither classifier anything.
    all_missing = np.isnan(train_features).all(axis=0)
    train_features[:, all_missing] = test_features[:, all_missing] = 0.0
    predicted: dict[str, Predictions] = {}
    for name, make in classifiers.items():
        classifier = make(study, seed).fit(train_features, train_truth)
        threshold = choose_threshold(classifier.predict_proba(train_features)[:, 1], train_truth.sum())
        predicted[name] = Predictions(test_truth, classifier.predict_proba(test_features)[:, 1], threshold)
    return predicted


def is_positive(table: pd.DataFrame, study: Study) -> np.ndarray:
    """Which rows have the positive class, (rows,) bool."""
    return (table[study.label.column] == study.label.positive).to_numpy(dtype=bool)


def to_features(table: pd.DataFrame, study: Study) -> np.ndarray:
    """(records, features) float64: codes of categories, numbers on the schema's scale; NaN is missing."""
    return np.column_stack([to_feature(table[name], name, column) for name, column in study.features.items()])


def to_feature(values: pd.Series, name: str, column: Column) -> np.ndarray:
    """One column of `to_features`, (records,) float64."""
    if isinstance(column, CategoricalColumn):
        return np.where(values.isna(), np.nan, make_grid(name, column).encode(values))
    return column.to_scale(column.to_numbers(values), float(column.min))


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
