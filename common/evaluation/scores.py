"""How well the scores of rows tell the positive class: each measure with its interval over the units of the test table.

Nothing is trained here. A value and all its resamples come from one computation on rows that are sorted once: running
sums of the weight that a resample gives to each row.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from common.evaluation.figures import CONFIDENCE
from common.evaluation.windows import divide

MEASURES: Final = (
    "auc",
    "auprc",
    "accuracy",
    "balanced_accuracy",
    "f1",
    "macro_f1",
    "recall",
    "precision",
    "brier",
)
"""What has an interval."""

DRAWS: Final = 1000
"""Resamples behind an interval."""
_BLOCK: Final = 10
"""Resamples at a time: their weights stay in the processor's cache."""
_CLIP: Final = 1e-6
"""Scores are at least this far from 0 and 1 where their logit is asked for."""


@dataclass(frozen=True)
class Scores:
    """How well one classifier tells the positive class of the label from the rest, on the test table.

    f1, recall and precision are those of the positive class; precision is 0 when nothing is predicted positive.
    macro_f1 is the mean of the f1 of both sides, balanced_accuracy that of their recalls: 0.5 for whatever does not
    look at the row. brier is the mean squared error of the scores as probabilities; always saying the share p of
    positives gives p (1 - p).
    calibration_slope: of the logistic regression of the outcome on the logit of the score; below 1 the scores are too
        extreme, above 1 too timid.
    calibration_intercept: what must be added to all logits for the scores to say as many positives as there are; above
        0 the scores are too low.
    majority_accuracy is what always guessing the test table's more frequent side would give: accuracy below it is worth
    nothing.
    intervals: [low, high] of each of `MEASURES`, at 95 %, over the units of the test table; the classifier is taken as
        it is. Empty where the test table has a single unit. Lists, so that they come back from JSON as they went.
    reason: where a score cannot be had it is None, and this says why; it may be the slope alone.
    """

    auc: float | None = None
    auprc: float | None = None
    accuracy: float | None = None
    balanced_accuracy: float | None = None
    f1: float | None = None
    macro_f1: float | None = None
    recall: float | None = None
    precision: float | None = None
    brier: float | None = None
    calibration_slope: float | None = None
    calibration_intercept: float | None = None
    majority_accuracy: float | None = None
    intervals: dict[str, list[float]] = field(default_factory=dict)
    reason: str | None = None


@dataclass(frozen=True)
class Predictions:
    """What a classifier says of each row of a test table, beside what it is.

    truth: (rows,) bool, whether the row has the positive class.
    scores: (rows,) float64 in [0, 1], the probability of the positive class; None where there is no classifier.
    threshold: a row with at least this score is predicted positive.
    reason: why there are no scores.
    """

    truth: np.ndarray
    scores: np.ndarray | None = None
    threshold: float = 0.5
    reason: str | None = None

    def take(self, rows: np.ndarray) -> "Predictions":
        """Those of some of the rows, by position or by mask."""
        return replace(self, truth=self.truth[rows], scores=None if self.scores is None else self.scores[rows])


def score(predictions: Predictions, *, seed: int, units: np.ndarray | None = None) -> Scores:
    """All scores of one classifier, with their intervals.

    An interval is the percentile interval of 1,000 draws of the units with replacement; the rows of a unit are drawn
    together, since they are alike. A draw without positive rows, or without others, is left out where it has no value.

    Guarantees: every score is a finite float or None; the same predictions, units and seed give the same scores; as
    many copies of every row in the same unit change neither the values nor the intervals.
    Edge cases: no rows, or one side of the label alone -> None and the reason; a single unit -> no intervals; the
    scores of the two sides lie apart, or touch at the most -> no calibration slope, and the reason.

    Args:
        predictions: of a classifier that did not learn from these rows.
        seed: of the draws.
        units: (rows,), which unit a row belongs to, any numbers; None: each row is a unit of its own.

    Raises:
        ValueError: the arrays do not have one length, or a score is not in [0, 1].
    Source: Efron and Tibshirani 1993, chapter 13; Field and Welsh 2007 (clusters drawn whole).
    """
    points = point_scores(predictions)
    if points.auc is None:
        return points
    resampled = resample(predictions, seed=seed, units=units)
    return replace(points, intervals={name: list(interval(drawn)) for name, drawn in resampled.items()})


def score_released(
    probabilities: np.ndarray, truth: np.ndarray, *, share: float, seed: int, units: np.ndarray | None = None
) -> Scores:
    """The scores of a classifier that somebody released in place of rows.

    No training rows are at hand to choose the threshold on. It is the cut at which the share of these rows that is
    predicted positive comes nearest to `share`; labels are not looked at, but a prediction depends on the other rows.

    Edge cases: as of `score`; all probabilities alike -> all rows are predicted positive or none.

    Args:
        probabilities: (rows,) in [0, 1], what the classifier says of each row of the test table.
        truth: (rows,) bool, whether the row has the positive class.
        share: of positives to be expected, from the training table or public knowledge; not from `truth`.
        seed: see `score`.
        units: see `score`.

    Raises:
        ValueError: the arrays do not have one length, or a probability or the share is not in [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"{share=}: expected from 0 to 1")
    _check_scores(probabilities, truth)
    threshold = choose_threshold(probabilities, share * len(probabilities))
    return score(Predictions(truth, probabilities, threshold), seed=seed, units=units)


def point_scores(predictions: Predictions) -> Scores:
    """The scores of `score` without intervals."""
    truth, scores = predictions.truth, predictions.scores
    majority = float(max(truth.mean(), 1 - truth.mean())) if len(truth) else None
    reason = predictions.reason if scores is None else not_measurable("test", truth)
    if scores is None or reason is not None:
        return Scores(majority_accuracy=majority, reason=reason)
    _check_scores(scores, truth)
    found = _rank(predictions, scores).measure(np.ones((1, len(truth)), dtype=np.int64))
    values: dict[str, Any] = {name: float(value[0]) for name, value in found.items()}
    logits = logit(np.clip(scores, _CLIP, 1 - _CLIP))
    slope = _calibration_slope(logits, truth)
    return Scores(
        **values,
        calibration_slope=slope,
        calibration_intercept=_calibration_intercept(logits, truth),
        majority_accuracy=majority,
        reason="calibration_slope: the scores of the two sides do not overlap" if slope is None else None,
    )


def resample(
    predictions: Predictions, *, seed: int, units: np.ndarray | None = None, draws: int = DRAWS
) -> dict[str, np.ndarray]:
    """Each of `MEASURES` for draws of the units with replacement, (draws,), NaN where a draw has no value.

    Edge cases: fewer than two units, or no scores -> no measures: draws that cannot differ would claim certainty.

    Args:
        predictions: see `score`.
        seed: see `score`.
        units: see `score`.
        draws: how many; the first ones are the same however many there are.

    Raises:
        ValueError: as in `score`.
    """
    scores, owner = predictions.scores, owners(units, len(predictions.truth))
    count = int(owner.max(initial=-1)) + 1
    if scores is None or count < 2:
        return {}
    _check_scores(scores, predictions.truth)
    ranked = _rank(predictions, scores)
    owner = owner[ranked.order]
    random = np.random.default_rng([seed, 1])
    blocks = [ranked.measure(np.take(_draw(random, count), owner, axis=1)) for _ in range(math.ceil(draws / _BLOCK))]
    return {name: np.concatenate([block[name] for block in blocks])[:draws] for name in MEASURES}


def interval(drawn: np.ndarray) -> tuple[float, float]:
    """The percentile interval of a measure from its resamples, those without a value left out."""
    low, high = np.nanpercentile(drawn, [50 * (1 - CONFIDENCE), 100 - 50 * (1 - CONFIDENCE)])
    return float(low), float(high)


def owners(units: np.ndarray | None, rows: int) -> np.ndarray:
    """The unit of each row, (rows,) int64, 0 .. count - 1.

    Raises:
        ValueError: there is not one unit for each row.
    """
    if units is None:
        return np.arange(rows)
    if units.shape != (rows,):
        raise ValueError(f"units: expected one for each of {rows} rows, came {units.shape}")
    return np.unique(units, return_inverse=True)[1]


def choose_threshold(scores: np.ndarray, positives: float) -> float:
    """The cut that has nearest to so many scores at or above it, half way between two; scores lie in [0, 1]."""
    distinct = np.unique(scores)
    above_all = np.nextafter(1.0, 2.0)
    cuts = np.concatenate([[0.0], (distinct[1:] + distinct[:-1]) / 2, [above_all]])
    n_above = len(scores) - np.searchsorted(np.sort(scores), cuts, side="left")
    return float(cuts[np.argmin(np.abs(n_above - positives))])


def not_measurable(which: str, truth: np.ndarray) -> str | None:
    """Why nothing can be measured on a table with these labels; None where it can."""
    if not len(truth):
        return f"the {which} table has no rows"
    if truth.all() or not truth.any():
        return f"the {which} table does not hold both the positive class and another"
    return None


@dataclass(frozen=True)
class _Ranked:
    """Rows from the highest score down.

    order: (rows,), their positions in the table.
    positive: (positive rows,), their places in this order.
    ties: (scores of positive rows,), where each of them begins among the positive rows.
    first, last: (scores of positive rows,), places of the first and the last row, of either side, with each of them.
    errors: (rows,) float64, squared.
    flagged: how many rows, the first ones, are predicted positive; `hits` of them are.
    """

    order: np.ndarray
    positive: np.ndarray
    ties: np.ndarray
    first: np.ndarray
    last: np.ndarray
    errors: np.ndarray
    flagged: int
    hits: int

    def measure(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Each of `MEASURES`, (draws,), NaN where it has no value.

        Args:
            weights: (draws, rows), what each row counts, in this order.
        Source: Hanley and McNeil 1982 (area, half of each tie); Davis and Goadrich 2006 (auprc as a step function).
        """
        total, weight = np.cumsum(weights, axis=1), weights[:, self.positive]
        above = total[:, self.last]  # (draws, scores of positive rows), as all others below
        alike = above - total[:, self.first] + weights[:, self.first]
        found = np.add.reduceat(weight, self.ties, axis=1)
        true = np.cumsum(found, axis=1)
        everybody, positives = total[:, -1], true[:, -1]
        negatives = everybody - positives
        beaten = negatives[:, None] - (above - true) + (alike - found) / 2  # negative rows, half of those alike
        precisions = np.divide(true, above, out=np.zeros(true.shape), where=above > 0)
        flagged = weights[:, : self.flagged].sum(axis=1)
        hits = weight[:, : self.hits].sum(axis=1)
        rejections = negatives - (flagged - hits)
        recall, specificity = divide(hits, positives), divide(rejections, negatives)
        f1 = _f1(hits, flagged, positives)
        measured = {
            "auc": divide((found * beaten).sum(axis=1), positives * negatives),
            "auprc": divide((found * precisions).sum(axis=1), positives),
            "accuracy": (hits + rejections) / everybody,
            "balanced_accuracy": (recall + specificity) / 2,
            "f1": f1,
            "macro_f1": (f1 + _f1(rejections, everybody - flagged, negatives)) / 2,
            "recall": recall,
            "precision": np.nan_to_num(divide(hits, flagged)),
            "brier": weights @ self.errors / everybody,
        }
        return {name: measured[name] for name in MEASURES}


def _rank(predictions: Predictions, scores: np.ndarray) -> _Ranked:
    order = np.argsort(-scores, kind="stable")
    ranked, truth = scores[order], predictions.truth[order]
    positive = np.flatnonzero(truth)
    _, ties = np.unique(-ranked[positive], return_index=True)
    with_positive = ranked[positive][ties]
    flagged = int((scores >= predictions.threshold).sum())
    return _Ranked(
        order,
        positive,
        ties,
        np.searchsorted(-ranked, -with_positive, side="left"),
        np.searchsorted(-ranked, -with_positive, side="right") - 1,
        (ranked - truth) ** 2,
        flagged,
        int(truth[:flagged].sum()),
    )


def _f1(right: np.ndarray, predicted: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """Of one side of the label; NaN where no row is of that side."""
    return np.where(actual > 0, divide(2 * right, predicted + actual), np.nan)


def _draw(random: np.random.Generator, count: int) -> np.ndarray:
    """How often each unit is drawn, (block, units) int64: as many draws as there are units, with replacement."""
    drawn = random.integers(0, count, (_BLOCK, count)) + count * np.arange(_BLOCK)[:, None]
    return np.bincount(drawn.ravel(), minlength=_BLOCK * count).reshape(_BLOCK, count)


def _check_scores(scores: np.ndarray, truth: np.ndarray) -> None:
    if scores.shape != truth.shape or scores.ndim != 1:
        raise ValueError(f"scores: expected one a row, {truth.shape}, came {scores.shape}")
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError("scores: expected from 0 to 1")


def _calibration_slope(logits: np.ndarray, truth: np.ndarray) -> float | None:
    """Maximum likelihood; None where it does not exist, the two sides being apart or touching.

    Source: Cox 1958; Albert and Anderson 1984 (existence).
    """
    positive, negative = logits[truth], logits[~truth]
    if positive.min() >= negative.max() or negative.min() >= positive.max():
        return None
    spread = float(logits.std())
    standard = ((logits - logits.mean()) / spread)[:, None]
    model = LogisticRegression(C=np.inf, solver="lbfgs", tol=1e-8, max_iter=2000).fit(standard, truth)
    return float(model.coef_[0, 0]) / spread


def _calibration_intercept(logits: np.ndarray, truth: np.ndarray) -> float:
    """Maximum likelihood with the slope held at 1, where the expected positives are those that there are.

    Source: Van Calster et al. 2019 (calibration in the large).
    """
    # Beyond these ends all rows are as good as surely positive or negative.
    end = float(np.abs(logits).max()) + 40.0
    return float(brentq(lambda added: expit(logits + added).mean() - truth.mean(), -end, end))
