"""How good synthetic windows are: what they teach, how hard they are to tell from real ones, how alike step by step.

Two finite samples of one population differ, and a network that is trained anew is never quite the same: put the figures
of two real tables of the same sizes beside every figure from here. Whether a synthetic unit copies a real one is not
looked at. Networks and trees have fixed settings, chosen on simulated windows; nothing is tuned to the tables at hand.

Numbers are compared on the schema's scale of their channel throughout.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Final

import numpy as np
import pandas as pd
from scipy.stats import wasserstein_distance
from sklearn.metrics import roc_auc_score

from common.data.schema import CategoricalColumn, Column, NumericColumn
from common.data.windows import WindowedTable
from common.evaluation.recurrent import classify, foretell
from common.evaluation.scores import Predictions, Scores, choose_threshold, not_measurable, score
from common.evaluation.utility import (
    gradient_boosting,
    is_positive,
    logistic_regression,
    predict,
    to_feature,
    to_features,
)
from common.evaluation.windows import Windows, bounds_on_scale, centre, divide, least, mean_over, read, spread_of
from common.study import Study

_LAGS = 6
_SHARES = 12
"""Values of a categorical channel whose shares are among the summaries."""
_FEWEST = 3
"""Units of either table that leave one to hold out."""
LEARNT: Final = 8_000
"""Units that the sequence classifier learns from at most, to bound its time."""
COMPARED: Final = 5_000
"""Units of either table in a discriminator or a forecast at most, to bound its time."""


@dataclass(frozen=True)
class ChannelFidelity:
    """One channel of two tables. A figure that cannot be had is None, and `reasons` says why by the figure's name.

    lag_1_real, lag_1_synthetic: autocorrelation at lag 1 about the mean of all units; of a categorical channel, the
        probability that two steps in a row hold the same value.
    lag_1_within_real, lag_1_within_synthetic: autocorrelation at lag 1 about each unit's own mean; numeric alone.
    marginal: distance of the values at one step, averaged over steps, each step weighted by its real values. Numeric:
        1-Wasserstein over the standard deviation of all real values; categorical: total variation, in [0, 1].
    missing: difference of the shares of missing values among the units that reach a step, averaged over steps, each
        weighted by the real units that reach it; in [0, 1].
    change: 1-Wasserstein distance of the changes from one step to the next, over the standard deviation of the real
        changes; numeric alone.
    """

    lag_1_real: float | None = None
    lag_1_synthetic: float | None = None
    lag_1_within_real: float | None = None
    lag_1_within_synthetic: float | None = None
    marginal: float | None = None
    missing: float | None = None
    change: float | None = None
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SequenceFidelity:
    """How far windows are from real ones. A figure that cannot be had is None, and `reasons` says why by its name.

    discriminative_score: |accuracy - 0.5| of a recurrent network that tells synthetic windows from as many real ones,
        on units that it did not learn from; 0 is chance, 0.5 is certainty.
    summaries_auc: area under the ROC curve of boosted trees at the same task, on the same units, from summaries of each
        channel; 0.5 is chance.
    joint_auc: the same with the unit's columns, label included, beside the summaries: far above `summaries_auc`, the
        columns give synthetic units away, or the windows do not belong to them.
    autocorrelation, autocorrelation_within: mean absolute difference over numeric channels and lags 1 to 6, about the
        mean of all units and about each unit's own.
    agreement: mean absolute difference over categorical channels of the probability that two steps in a row agree.
    cross_correlation: mean absolute difference over pairs of numeric channels, at the same step.
    numeric_marginal, categorical_marginal, missing, change: means over channels of what `ChannelFidelity` says.
    length: total variation distance of the numbers of steps, in [0, 1].
    """

    discriminative_score: float | None = None
    summaries_auc: float | None = None
    joint_auc: float | None = None
    autocorrelation: float | None = None
    autocorrelation_within: float | None = None
    agreement: float | None = None
    cross_correlation: float | None = None
    numeric_marginal: float | None = None
    categorical_marginal: float | None = None
    missing: float | None = None
    change: float | None = None
    length: float | None = None
    channels: dict[str, ChannelFidelity] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Prediction:
    """How well windows teach to foretell the next step of real ones.

    error: mean over numeric channels of the mean absolute error, in standard deviations of the test table's values; to
        always guess the mean of normal values gives 0.80. `channels` holds the error of each. None with the reason
        where no channel can be measured.
    """

    error: float | None = None
    channels: dict[str, float] = field(default_factory=dict)
    reason: str | None = None


_NUMERIC_PAIRS = "no numeric channel that varies has two steps, at a lag, in either table"
_REASONS = {
    "discriminative_score": "a table has fewer than 3 units",
    "summaries_auc": "a table has fewer than 3 units",
    "joint_auc": "a table has fewer than 3 units",
    "autocorrelation": _NUMERIC_PAIRS,
    "autocorrelation_within": _NUMERIC_PAIRS,
    "agreement": "no categorical channel has two steps in a row in both tables",
    "cross_correlation": "no two numeric channels vary at the same steps in either table",
    "numeric_marginal": "no numeric channel has values at the same step of both tables",
    "categorical_marginal": "no categorical channel has values at the same step of both tables",
    "missing": "no step is reached in both tables",
    "change": "no numeric channel has two steps in a row in both tables",
}
_CHANNEL_REASONS = {
    "lag_1_real": "real: no two steps in a row, or the values do not vary",
    "lag_1_synthetic": "synthetic: no two steps in a row, or the values do not vary",
    "lag_1_within_real": "real: no two steps in a row, or the values do not vary within units",
    "lag_1_within_synthetic": "synthetic: no two steps in a row, or the values do not vary within units",
    "marginal": "no step has values in both tables",
    "missing": "no step is reached in both tables",
    "change": "no two steps in a row in both tables",
}
_NOT_NUMERIC = "the channel is categorical"


def measure_sequence_utility(
    train: WindowedTable, test: WindowedTable, study: Study, channels: Mapping[str, Column], *, seed: int
) -> dict[str, Scores]:
    """Scores on `test` of three fixed classifiers of the label trained on `train`: TSTR or TRTR, by what `train` is.

    The classifiers and their threshold are those of `predict_windows`, the scores and their intervals those of `score`;
    a unit is one row.

    Guarantees: every score is a finite float or None; the same tables and seed give the same scores; a unit's
    prediction does not depend on the other units of `test`, nor on how many empty steps follow its last; the global
    random states are left as they were.
    Edge cases: a table without units, or with the positive class alone or absent -> None and the reason; a column or
    channel that is all missing in `train` -> teaches nothing, and is no error.

    Args:
        train: synthetic or real.
        test: real units that are not in `train` and did not make it.
        study: names the columns, the label and its positive class.
        channels: in the order of the last axis of `values`.
        seed: of what the classifiers draw, and of the resamples of the intervals.

    Returns:
        The scores by the name of the classifier.

    Raises:
        ValueError: the arrays do not have one shape.
    Source: Esteban et al. 2017, section 4.2 (TSTR).
    """
    predicted = predict_windows(train, test, study, channels, seed=seed)
    return {name: score(predictions, seed=seed) for name, predictions in predicted.items()}


def predict_label(
    train: WindowedTable, test: WindowedTable, study: Study, *, seed: int, learnt: int = LEARNT
) -> dict[str, Predictions]:
    """What fixed classifiers trained on `train` say of `test`: by `predict`, or with windows by `predict_windows`."""
    if study.windows is None:
        return predict(train.records, test.records, study, seed=seed)
    return predict_windows(train, test, study, study.channels, seed=seed, learnt=learnt)


def predict_windows(
    train: WindowedTable,
    test: WindowedTable,
    study: Study,
    channels: Mapping[str, Column],
    *,
    seed: int,
    learnt: int = LEARNT,
) -> dict[str, Predictions]:
    """What three fixed classifiers of the label trained on `train` say of each unit of `test`, by their names.

    `gradient_boosting_static` sees the study's columns alone, so that what windows add can be read off.
    `gradient_boosting_on_summaries` sees beside them the number of steps, of every numeric channel the mean, standard
    deviation, least, largest, first and last value, slope, missing share and mean absolute step, of every categorical
    one the shares of its first 12 values, the changes from one step to the next, and the missing share.
    `sequence_classifier` is a recurrent network over standardised numbers, one-hot categories and a mark for each
    missing value, whose last layer sees the columns too; it learns from at most `learnt` units. Trees, their settings
    and the decision threshold, chosen on `train` alone, are those of `measure_utility`.

    Guarantees, edge cases: as of `measure_sequence_utility`; no scores where nothing can be measured.

    Args:
        train: see `measure_sequence_utility`.
        test: see `measure_sequence_utility`.
        study: see `measure_sequence_utility`.
        channels: see `measure_sequence_utility`.
        seed: of what the classifiers draw.
        learnt: units that the network learns from at most.

    Raises:
        ValueError: the arrays do not have one shape.
    """
    train_windows, test_windows = read(train, channels, "train"), read(test, channels, "test")
    train_truth, test_truth = is_positive(train.records, study), is_positive(test.records, study)
    reason = not_measurable("training", train_truth) or not_measurable("test", test_truth)
    if reason is not None:
        names = ("gradient_boosting_static", "gradient_boosting_on_summaries", "sequence_classifier")
        return {name: Predictions(test_truth, reason=reason) for name in names}
    static = to_features(train.records, study), to_features(test.records, study)
    summaries = summarise_windows(train_windows), summarise_windows(test_windows)
    both = np.hstack([static[0], summaries[0]]), np.hstack([static[1], summaries[1]])
    as_sets = _sets(study)
    found = {
        "gradient_boosting_static": _boost(*static, train_truth, as_sets, study, seed),
        "gradient_boosting_on_summaries": _boost(
            *both, train_truth, [*as_sets, *[False] * summaries[0].shape[1]], study, seed
        ),
        "sequence_classifier": classify(
            train_windows, test_windows, train_truth, _encode(*static, study), seed, most=learnt
        ),
    }
    return {
        name: Predictions(test_truth, scores[1], choose_threshold(scores[0], train_truth.sum()))
        for name, scores in found.items()
    }


def measure_sequence_fidelity(
    synthetic: WindowedTable,
    real: WindowedTable,
    study: Study,
    channels: Mapping[str, Column],
    *,
    seed: int,
    most: int = COMPARED,
) -> SequenceFidelity:
    """How far synthetic windows are from real ones; for the floor, real windows in place of the synthetic ones.

    A correlation is of the pairs of which both are present, about the mean of all present values. Where a channel has
    none in one table alone, being constant there or never having a pair, it counts as 0 in a mean difference.

    Guarantees: every figure is a finite float or None with its reason; the same tables and seed give the same figures;
    a table compared with itself has 0 in every figure but the first three; those apart, the order of units does not
    count; the global random states are left as they were.
    Edge cases: a table without units -> None and the reason throughout; fewer than 3 units -> no discriminators; one
    step -> no figure of pairs of steps; a channel that is constant in `real` -> distances over the width of its public
    bounds, on its scale; a channel that is all missing in one table -> no marginal and no change, but `missing`.

    Args:
        synthetic: to be compared.
        real: to be compared with.
        study: names the columns of the units.
        channels: in the order of the last axis of `values`.
        seed: of the units drawn for the discriminators and of these.
        most: units of each table in a discriminator at most, of which a third is held out.

    Raises:
        ValueError: the arrays do not have one shape.
    Source: Yoon et al. 2019, section 5 (discriminative score).
    """
    ours, theirs = read(synthetic, channels, "synthetic"), read(real, channels, "real")
    if ours.steps != theirs.steps:
        raise ValueError("values: expected as many steps in both tables")
    for which, windows in (("synthetic", ours), ("real", theirs)):
        if not len(windows.lengths):
            names = [item.name for item in fields(SequenceFidelity) if item.name not in ("channels", "reasons")]
            return SequenceFidelity(reasons=dict.fromkeys(names, f"{which}: the table has no units"))
    compared = {name: _compare(ours, theirs, at) for at, name in enumerate(channels)}
    numeric = [compared[name] for name in compared if not isinstance(channels[name], CategoricalColumn)]
    categorical = [compared[name] for name in compared if isinstance(channels[name], CategoricalColumn)]
    centred = [centre(windows.numbers, (0, 1)) for windows in (ours, theirs)]
    within = [centre(windows.numbers, (1,)) for windows in (ours, theirs)]
    figures = {
        **_discriminate(ours, theirs, synthetic.records, real.records, study, seed, most=most),
        "autocorrelation": _difference(*map(_autocorrelations, centred)),
        "autocorrelation_within": _difference(*map(_autocorrelations, within)),
        "agreement": _mean_of(_gap(one.lag_1_synthetic, one.lag_1_real) for one in categorical),
        "cross_correlation": _difference(*map(_cross_correlations, centred)),
        "numeric_marginal": _mean_of(one.marginal for one in numeric),
        "categorical_marginal": _mean_of(one.marginal for one in categorical),
        "missing": _mean_of(one.missing for one in compared.values()),
        "change": _mean_of(one.change for one in numeric),
        "length": _total_variation(ours.lengths, theirs.lengths, ours.steps + 1),
    }
    reasons = {name: _REASONS[name] for name, value in figures.items() if value is None}
    return SequenceFidelity(**figures, channels=compared, reasons=reasons)


def measure_prediction(
    train: WindowedTable, test: WindowedTable, channels: Mapping[str, Column], *, seed: int, most: int = COMPARED
) -> Prediction:
    """Error of a recurrent network, trained on `train`, that foretells each step of `test` from the steps before it.

    It sees standardised numbers, one-hot categories and a mark for each missing value, and answers for the numeric
    channels; a missing value is no target. It learns to make the absolute error small.

    Guarantees: every error is finite; the same tables and seed give the same errors; the global random states are left
    as they were.
    Edge cases: no units, one step, no numeric channel -> None and the reason; a channel that is constant or never a
    target in `test`, or never a target in `train` -> left out.

    Args:
        train: synthetic or real (TSTR or TRTR).
        test: real units that are not in `train` and did not make it.
        channels: in the order of the last axis of `values`.
        seed: of the units drawn and of the network.
        most: units of each table that are used at most.

    Raises:
        ValueError: the arrays do not have one shape.
    Source: Yoon et al. 2019, section 5 (predictive score).
    """
    learnt, foretold = read(train, channels, "train"), read(test, channels, "test")
    for which, windows in (("training", learnt), ("test", foretold)):
        if not len(windows.lengths):
            return Prediction(reason=f"the {which} table has no units")
    random = np.random.default_rng(seed)
    learnt, foretold = (windows.take(random.permutation(len(windows.lengths))[:most]) for windows in (learnt, foretold))
    names = [name for name, column in channels.items() if not isinstance(column, CategoricalColumn)]
    is_target = ~np.isnan(foretold.numbers[:, 1:])  # (units, steps - 1, numeric channels)
    spread = spread_of(foretold.numbers)
    measurable = is_target.any(axis=(0, 1)) & ~np.isnan(learnt.numbers[:, 1:]).all(axis=(0, 1)) & (spread > 0)
    if not measurable.any():
        return Prediction(reason="no numeric channel varies in the test table and has a second step in both tables")
    errors = np.abs(foretell(learnt, foretold, seed) - foretold.numbers[:, 1:])
    by_channel = mean_over(errors, (0, 1))[0, 0, measurable] / spread[measurable]
    measured = dict(zip(np.array(names)[measurable].tolist(), by_channel.tolist(), strict=True))
    return Prediction(float(by_channel.mean()), measured)


def _autocorrelations(centred: np.ndarray) -> np.ndarray:
    """(lags, channels), NaN where there is none.

    Args:
        centred: (units, steps, channels).
    """
    lags = range(1, min(_LAGS, centred.shape[1] - 1) + 1)
    rows = [_correlation(centred[:, :-lag], centred[:, lag:]) for lag in lags]
    return np.array(rows).reshape(len(rows), centred.shape[2])


def _correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(channels,), of the pairs of which both are present; in [-1, 1], NaN where one side does not vary."""
    both = ~np.isnan(first) & ~np.isnan(second)
    first, second = np.where(both, first, 0.0), np.where(both, second, 0.0)
    size = np.sqrt((first**2).sum(axis=(0, 1)) * (second**2).sum(axis=(0, 1)))
    return divide((first * second).sum(axis=(0, 1)), size)


def _cross_correlations(centred: np.ndarray) -> np.ndarray:
    """(pairs,), the same of every pair of channels at the same step.

    Args:
        centred: (units, steps, channels).
    """
    flat = centred.reshape(centred.shape[0] * centred.shape[1], centred.shape[2])
    present = (~np.isnan(flat)).astype(np.float64)
    filled = np.nan_to_num(flat)
    squares = (filled**2).T @ present  # of the row's channel, where the column's channel is present
    return divide(filled.T @ filled, np.sqrt(squares * squares.T))[np.triu_indices(flat.shape[1], k=1)]


def _difference(first: np.ndarray, second: np.ndarray) -> float | None:
    """Mean absolute difference of correlations; where one alone is not there it counts as 0."""
    known = ~(np.isnan(first) & np.isnan(second))
    return float(np.abs(np.nan_to_num(first) - np.nan_to_num(second))[known].mean()) if known.any() else None


def _mean_of(figures: Iterable[float | None]) -> float | None:
    known = [figure for figure in figures if figure is not None]
    return math.fsum(known) / len(known) if known else None


def _gap(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else abs(first - second)


def _total_variation(first: np.ndarray, second: np.ndarray, size: int) -> float:
    """Of positions 0 .. size - 1."""
    shares = (np.bincount(cells.astype(np.int64), minlength=size) / len(cells) for cells in (first, second))
    return float(np.abs(np.subtract(*shares)).sum() / 2)


def _compare(ours: Windows, theirs: Windows, at: int) -> ChannelFidelity:
    """One channel, by its position."""
    first, second = ours.values[:, :, at], theirs.values[:, :, at]  # (units, steps)
    column = list(ours.channels.values())[at]
    if isinstance(column, CategoricalColumn):
        figures = _compare_codes(first, second, len(column.values))
        reasons = dict.fromkeys(("lag_1_within_real", "lag_1_within_synthetic", "change"), "the channel is categorical")
    else:
        figures, reasons = _compare_numbers(first, second, column), {}
    figures["missing"] = _over_steps(
        _is_missing(first, ours.lengths),
        _is_missing(second, theirs.lengths),
        lambda one, two: abs(float(one.mean() - two.mean())),
    )
    reasons |= {name: _CHANNEL_REASONS[name] for name, value in figures.items() if value is None}
    return ChannelFidelity(**figures, reasons=reasons)


def _compare_numbers(first: np.ndarray, second: np.ndarray, column: NumericColumn) -> dict[str, float | None]:
    ends = bounds_on_scale(column)
    width = float((ends[1] - ends[0]) / np.abs(ends).max())
    spread = float(spread_of(second[:, :, None])[0]) or width
    changes = np.diff(first), np.diff(second)
    change_spread = float(spread_of(changes[1][:, :, None])[0]) or width
    present = [values[~np.isnan(values)] for values in changes]
    figures: dict[str, float | None] = {
        "marginal": _over_steps(first, second, lambda one, two: wasserstein_distance(one, two) / spread),
        "change": float(wasserstein_distance(*present)) / change_spread if all(map(len, present)) else None,
    }
    for which, values in (("synthetic", first), ("real", second)):
        for name, axes in (("lag_1", (0, 1)), ("lag_1_within", (1,))):
            centred = centre(values[:, :, None], axes)
            figures[f"{name}_{which}"] = _known(_correlation(centred[:, :-1], centred[:, 1:])[0])
    return figures


def _compare_codes(first: np.ndarray, second: np.ndarray, size: int) -> dict[str, float | None]:
    return {
        "marginal": _over_steps(first, second, lambda one, two: _total_variation(one, two, size)),
        "lag_1_synthetic": _agreement(first),
        "lag_1_real": _agreement(second),
    }


def _agreement(codes: np.ndarray) -> float | None:
    """Share of steps in a row that hold the same value, where both are present."""
    apart = np.diff(codes)
    return _known(mean_over(np.where(np.isnan(apart), np.nan, apart == 0), (0, 1))[0, 0])


def _known(figure: float) -> float | None:
    return None if math.isnan(figure) else float(figure)


def _is_missing(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(units, steps): 1 missing, 0 present, NaN beyond the last step."""
    reached = np.arange(values.shape[1]) < lengths[:, None]
    return np.where(reached, np.isnan(values), np.nan)


def _over_steps(
    first: np.ndarray, second: np.ndarray, distance: Callable[[np.ndarray, np.ndarray], float]
) -> float | None:
    """Mean of the distance at one step over the steps that both hold, weighted by the presence of `second`."""
    distances, weights = [], []
    for one, two in zip(first.T, second.T, strict=True):
        one_present, two_present = one[~np.isnan(one)], two[~np.isnan(two)]
        if len(one_present) and len(two_present):
            distances.append(distance(one_present, two_present))
            weights.append(len(two_present))
    return float(np.average(distances, weights=weights)) if distances else None


def summarise_windows(windows: Windows) -> np.ndarray:
    """What trees see of windows, by `predict_windows`: (units, summaries) float64, NaN where there is no value."""
    present = ~np.isnan(windows.values)
    missing = 1.0 - divide(present.sum(axis=1).astype(np.float64), windows.lengths[:, None])
    parts = [windows.lengths[:, None], missing, _summarise_numbers(windows.numbers)]
    for at, size in windows.sizes.items():
        codes = windows.values[:, :, at]
        apart = np.diff(codes)
        parts.append(((apart != 0) & ~np.isnan(apart)).sum(axis=1, keepdims=True))
        is_value = np.where(np.isnan(codes)[:, :, None], np.nan, codes[:, :, None] == np.arange(min(size, _SHARES)))
        parts.append(mean_over(is_value, (1,))[:, 0])
    return np.hstack(parts).astype(np.float64)


def _summarise_numbers(numbers: np.ndarray) -> np.ndarray:
    """(units, 8 * channels): mean, deviation, least, largest, first, last, slope, mean absolute step of each."""
    present = ~np.isnan(numbers)
    steps = np.where(present, np.arange(numbers.shape[1], dtype=np.float64)[:, None], np.nan)
    centred, time = centre(numbers, (1,)), centre(steps, (1,))
    first = present.argmax(axis=1, keepdims=True)
    last = numbers.shape[1] - 1 - present[:, ::-1].argmax(axis=1, keepdims=True)
    summaries = (
        mean_over(numbers, (1,)),
        np.sqrt(mean_over(centred**2, (1,))),
        least(numbers, (1,)),
        -least(-numbers, (1,)),
        np.take_along_axis(numbers, first, axis=1),
        np.take_along_axis(numbers, last, axis=1),
        divide(mean_over(centred * time, (1,)), mean_over(time**2, (1,))),
        mean_over(np.abs(np.diff(numbers, axis=1)), (1,)),
    )
    return np.hstack([summary[:, 0] for summary in summaries])


def _sets(study: Study) -> list[bool]:
    """Which features the trees of `measure_utility` split as sets of categories."""
    return list(gradient_boosting(study, 0)[-1].categorical_features)


def _boost(
    train: np.ndarray, test: np.ndarray, truth: np.ndarray, as_sets: list[bool], study: Study, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scores in [0, 1] of both tables of features, by the trees of `measure_utility` trained on the first."""
    # Scikit-learn's trees refuse a feature that is all missing; made constant, it tells them nothing.
    empty = np.isnan(train).all(axis=0)
    train, test = np.where(empty, 0.0, train), np.where(empty, 0.0, test)
    trees = gradient_boosting(study, seed).set_params(histgradientboostingclassifier__categorical_features=as_sets)
    trees.fit(train, truth)
    return trees.predict_proba(train)[:, 1], trees.predict_proba(test)[:, 1]


def _encode(train: np.ndarray, test: np.ndarray, study: Study) -> tuple[np.ndarray, np.ndarray]:
    """The features of both tables as the logistic regression of `measure_utility` sees them, prepared by the first."""
    prepare = logistic_regression(study, 0)[:-1].set_params(columntransformer__sparse_threshold=0.0).fit(train)
    return prepare.transform(train), prepare.transform(test)


def _discriminate(
    ours: Windows,
    theirs: Windows,
    our_records: pd.DataFrame,
    their_records: pd.DataFrame,
    study: Study,
    seed: int,
    *,
    most: int,
) -> dict[str, float | None]:
    """The three figures of telling synthetic units from as many real ones, on the held-out third."""
    units = min(len(ours.lengths), len(theirs.lengths), most)
    if units < _FEWEST:
        return {"discriminative_score": None, "summaries_auc": None, "joint_auc": None}
    random = np.random.default_rng(seed)
    rows = [random.permutation(len(windows.lengths))[:units] for windows in (ours, theirs)]
    windows = ours.take(rows[0]).join(theirs.take(rows[1]))
    records = our_records.iloc[rows[0]], their_records.iloc[rows[1]]
    columns = np.vstack([np.column_stack([to_features(part, study), _label_codes(part, study)]) for part in records])
    truth = np.repeat([True, False], units)
    held = np.tile(np.arange(units) < units // 3, 2)
    summaries = summarise_windows(windows)
    joint = np.hstack([columns, summaries])
    apart = [False] * summaries.shape[1]
    _, by_network = classify(windows.take(~held), windows.take(held), truth[~held], None, seed)
    _, by_summaries = _boost(summaries[~held], summaries[held], truth[~held], apart, study, seed)
    _, by_both = _boost(joint[~held], joint[held], truth[~held], [*_sets(study), True, *apart], study, seed)
    accuracy = float(((by_network >= 0.5) == truth[held]).mean())
    return {
        "discriminative_score": abs(accuracy - 0.5),
        "summaries_auc": float(roc_auc_score(truth[held], by_summaries)),
        "joint_auc": float(roc_auc_score(truth[held], by_both)),
    }


def _label_codes(records: pd.DataFrame, study: Study) -> np.ndarray:
    return to_feature(records[study.label.column], study.label.column, study.columns[study.label.column])
