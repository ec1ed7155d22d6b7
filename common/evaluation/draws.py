"""What a generator's synthetic tables are worth downstream, from several of them: one may be lucky.

Every table trains the same classifiers anew, and all are scored on one real test table.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from scipy.stats import t as student

from common.data.windows import WindowedTable
from common.evaluation.figures import CONFIDENCE
from common.evaluation.scores import MEASURES, Predictions, Scores, point_scores, resample
from common.evaluation.sequences import predict_label
from common.study import Study

_MEASURES: Final = (*MEASURES, "calibration_slope", "calibration_intercept")

Summary = dict[str, float | int | str | None]
"""One measure over several draws."""


def measure_draws(
    draws: Sequence[WindowedTable], test: WindowedTable, study: Study, *, seed: int, units: np.ndarray | None = None
) -> dict[str, dict[str, Summary]]:
    """Mean and standard deviation of every score over classifiers trained on several synthetic tables.

    The classifiers are those of `measure_utility`, or with windows of `measure_sequence_utility`. For each measure
    "mean", "sd" (of one draw, divisor n - 1), "n" (draws with a value) and "reason" (why a figure is None).

    The AUC has beside them "within", "between", "total", "low" and "high": see `total_variance`. They say what the AUC
    of one more table of the generator would be, such as the one that is published, on all units that the test units
    are a sample of.

    Guarantees: str, int, finite float and None alone; the same arguments give the same figures.
    Edge cases: one draw -> no "sd" and no "total"; a draw that holds one side of the label alone -> not in "n".

    Args:
        draws: synthetic tables of one generator, one or more.
        test: real units that the generator did not learn from.
        study: of all tables.
        seed: of the classifiers and of the resamples; the same for every draw, so that the table alone differs.
        units: (test rows,), which unit a row belongs to; None: each row is a unit of its own.

    Returns:
        By the name of the classifier, then of the measure.

    Raises:
        ValueError: there is no draw; the arrays do not have one shape.
    """
    if not draws:
        raise ValueError("draws: expected one or more")
    by_draw = [predict_label(draw, test, study, seed=seed) for draw in draws]
    return {name: _summarise([found[name] for found in by_draw], seed, units) for name in by_draw[0]}


def total_variance(values: np.ndarray, within: float) -> tuple[float, tuple[float, float]]:
    """Variance of the mean of draws as an estimate for one more draw, and its 95 % t-interval.

    T = W + (1 + 1 / m) B, of m draws: W is the variance that the sampling of the test units gives, B that between
    draws. The interval has (m - 1) (1 + W / ((1 + 1 / m) B))^2 degrees of freedom.

    The test units are real and the same for all draws, so that W is not lessened by m, and is in B only as far as it
    moves draws apart: the variance is rather too large than too small. The rule of Raghunathan et al. 2003 for
    synthetic rows, (1 + 1 / m) B - W, is for an estimate on the synthetic rows themselves, whose sampling is in B.

    Edge cases: all values alike -> the normal interval of W.

    Args:
        values: (draws,), of two or more.
        within: W, >= 0.

    Raises:
        ValueError: there is one value or none, or `within` is negative.
    Source: Rubin 1987, section 3.1.
    """
    m = len(values)
    if m < 2 or not within >= 0:
        raise ValueError("expected two values or more, and within >= 0")
    between = (1 + 1 / m) * float(np.var(values, ddof=1))
    total = within + between
    freedom = (m - 1) * (total / between) ** 2 if between > 0 else math.inf
    half = float(student.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(total)
    mean = float(np.mean(values))
    return total, (mean - half, mean + half)


def _summarise(predicted: Sequence[Predictions], seed: int, units: np.ndarray | None) -> dict[str, Summary]:
    """Every measure of one classifier."""
    scores = [point_scores(predictions) for predictions in predicted]
    summaries = {measure: _spread([getattr(found, measure) for found in scores], scores) for measure in _MEASURES}
    drawn = [resample(predictions, seed=seed, units=units) for predictions in predicted]
    variances = [float(np.nanvar(found["auc"], ddof=1)) for found in drawn if found]
    aucs = np.array([found.auc for found in scores if found.auc is not None])
    return summaries | {"auc": summaries["auc"] | _total(aucs, variances)}


def _spread(values: Sequence[float | None], scores: Sequence[Scores]) -> Summary:
    """Mean and standard deviation of what is known; `scores` say why the rest is not."""
    known = np.array([value for value in values if value is not None])
    mean = float(known.mean()) if len(known) else None
    if len(known) > 1:
        return {"mean": mean, "sd": float(known.std(ddof=1)), "n": len(known), "reason": None}
    reasons = [found.reason for value, found in zip(values, scores, strict=True) if value is None]
    return {"mean": mean, "sd": None, "n": len(known), "reason": reasons[0] if reasons else "one draw has no spread"}


def _total(values: np.ndarray, variances: Sequence[float]) -> Summary:
    """What the AUC has beside mean and standard deviation; the interval ends where the AUC does."""
    if not variances:
        reason = {"reason": "the test table has a single unit"} if len(values) else {}
        return {"within": None, "between": None, "total": None, "low": None, "high": None, **reason}
    within = math.fsum(variances) / len(variances)
    if len(values) < 2:
        return {"within": within, "between": None, "total": None, "low": None, "high": None}
    total, (low, high) = total_variance(values, within)
    return {
        "within": within,
        "between": float(values.var(ddof=1)),
        "total": total,
        "low": max(0.0, low),
        "high": min(1.0, high),
    }
