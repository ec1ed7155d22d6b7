"""Every measure beside that of scikit-learn, weighted too; intervals of units; calibration of known distortions."""

import json
from dataclasses import asdict, fields

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from common.evaluation.scores import (
    MEASURES,
    Predictions,
    Scores,
    _draw,
    _rank,
    choose_threshold,
    interval,
    point_scores,
    resample,
    score,
    score_released,
)


def draw(n: int, seed: int, *, distinct: int | None = None) -> Predictions:
    """Probabilities that are right; of few distinct values if asked, so that many rows are alike."""
    random = np.random.default_rng(seed)
    scores = expit(random.normal(-1, 1.5, n))
    scores = scores if distinct is None else np.ceil(scores * distinct) / distinct
    truth = random.random(n) < scores
    truth[:2] = True, False
    return Predictions(truth, scores, 0.4)


def known(predictions: Predictions) -> np.ndarray:
    assert predictions.scores is not None
    return predictions.scores


def oracle(predictions: Predictions, weights: np.ndarray | None = None) -> dict[str, float]:
    truth, scores = predictions.truth, known(predictions)
    predicted = scores >= predictions.threshold
    plain = {"sample_weight": weights, "zero_division": 0.0}
    return {
        "auc": roc_auc_score(truth, scores, sample_weight=weights),
        "auprc": average_precision_score(truth, scores, sample_weight=weights),
        "accuracy": accuracy_score(truth, predicted, sample_weight=weights),
        "balanced_accuracy": balanced_accuracy_score(truth, predicted, sample_weight=weights),
        "f1": f1_score(truth, predicted, **plain),
        "macro_f1": f1_score(truth, predicted, average="macro", **plain),
        "recall": recall_score(truth, predicted, **plain),
        "precision": precision_score(truth, predicted, **plain),
        "brier": brier_score_loss(truth, scores, sample_weight=weights),
    }


def measures_of(scores: Scores) -> dict[str, float]:
    return {name: getattr(scores, name) for name in MEASURES}


@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.9, 1.1])
@pytest.mark.parametrize("distinct", [None, 3, 12])
def test_every_measure_is_that_of_scikit_learn(distinct: int | None, threshold: float) -> None:
    for seed in range(4):
        drawn = draw(3 + 20 * seed, seed, distinct=distinct)
        predictions = Predictions(drawn.truth, drawn.scores, threshold)
        assert measures_of(point_scores(predictions)) == pytest.approx(oracle(predictions))


@pytest.mark.parametrize("distinct", [None, 5])
def test_every_weighted_measure_is_that_of_scikit_learn(distinct: int | None) -> None:
    predictions = draw(60, 0, distinct=distinct)
    random = np.random.default_rng(1)
    ranked = _rank(predictions, known(predictions))
    for weights in (random.random(60), random.poisson(1.0, 60)):
        found = ranked.measure(weights[None, ranked.order])
        assert {name: float(values[0]) for name, values in found.items()} == pytest.approx(oracle(predictions, weights))


def test_each_resample_is_what_scikit_learn_says_of_the_rows_of_the_units_drawn() -> None:
    predictions = draw(90, 0, distinct=20)
    units = np.random.default_rng(2).integers(0, 30, 90)
    names = np.unique(units)
    found = resample(predictions, seed=7, units=units, draws=10)
    for at, counts in enumerate(_draw(np.random.default_rng([7, 1]), len(names))):
        assert counts.sum() == len(names)
        rows = [
            row for unit, count in zip(names, counts, strict=True) for row in [*np.flatnonzero(units == unit)] * count
        ]
        expected = oracle(predictions.take(np.array(rows)))
        assert {name: values[at] for name, values in found.items()} == pytest.approx(expected)


def test_more_draws_begin_with_the_same_ones() -> None:
    few, many = (resample(draw(50, 0), seed=3, draws=draws) for draws in (7, 40))
    for name in MEASURES:
        assert len(few[name]) == 7
        np.testing.assert_array_equal(few[name], many[name][:7])


def test_an_interval_holds_the_middle_95_percent_of_the_draws_that_have_a_value() -> None:
    assert interval(np.append(np.random.default_rng(0).permutation(1001) / 10, np.nan)) == pytest.approx((2.5, 97.5))
    predictions = draw(50, 0)
    drawn = resample(predictions, seed=2)
    assert len(drawn["auc"]) == 1000
    assert score(predictions, seed=2).intervals == {name: list(interval(values)) for name, values in drawn.items()}


def test_copies_of_every_row_in_its_unit_change_nothing() -> None:
    predictions = draw(80, 0)
    units = np.random.default_rng(1).integers(0, 40, 80)
    once = score(predictions, seed=0, units=units)
    twice = score(predictions.take(np.tile(np.arange(80), 2)), seed=0, units=np.tile(units, 2))
    assert measures_of(twice) == pytest.approx(measures_of(once))
    assert twice.intervals == {name: pytest.approx(ends) for name, ends in once.intervals.items()}
    # Whatever units are called: their order alone is kept.
    assert score(predictions, seed=0, units=1000 - 7 * (40 - units)) == once


@pytest.mark.statistical
def test_an_interval_of_units_covers_and_one_of_their_rows_does_not() -> None:
    # Three rows a unit share its label and nearly its score. Were intervals exact, fewer than 134 of 150 would cover it
    # with probability 0.002; the seeds are fixed.
    true = 0.8553  # the levels of two units differ by 1.5 with variance 2 (1 + 0.05^2)
    units = np.repeat(np.arange(120), 3)
    covered = {"units": 0, "rows": 0}
    for seed in range(150):
        random = np.random.default_rng(seed)
        ill = random.random(120) < 0.4
        level = random.normal(1.5 * ill, 1.0)
        predictions = Predictions(ill[units], expit(level[units] + 0.05 * random.normal(size=360)))
        for which, owner in (("units", units), ("rows", None)):
            low, high = interval(resample(predictions, seed=seed, units=owner, draws=200)["auc"])
            covered[which] += low <= true <= high
    assert covered["units"] >= 134
    assert covered["rows"] < 125


def test_true_probabilities_are_calibrated_and_distorted_ones_are_seen() -> None:
    predictions = draw(20_000, 0)
    logits = logit(known(predictions))
    for slope, shift in ((1.0, 0.0), (0.5, 0.0), (2.0, 0.0), (1.0, -0.7)):
        # If the logit of the truth is slope times what is said, the scores are as much too extreme or too timid.
        said = Predictions(predictions.truth, expit((logits - shift) / slope))
        found = point_scores(said)
        assert found.calibration_slope == pytest.approx(slope, rel=0.06)
        if slope == 1.0:
            assert found.calibration_intercept == pytest.approx(shift, abs=0.06)


@pytest.mark.parametrize("seed", range(8))
def test_slope_and_intercept_solve_their_likelihood_equations(seed: int) -> None:
    drawn = draw(15 + 30 * seed, seed, distinct=None if seed % 2 else 6)
    clipped = np.clip(known(drawn), 1e-6, 1 - 1e-6)
    found, truth, logits = point_scores(drawn), drawn.truth, logit(clipped)
    assert found.calibration_intercept is not None
    assert expit(logits + found.calibration_intercept).sum() == pytest.approx(truth.sum())
    assert found.calibration_slope is not None
    sloped = found.calibration_slope * logits
    # The intercept beside the slope, by bisection.
    low, high = -100.0, 100.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if expit(sloped + middle).sum() < truth.sum() else (low, middle)
    assert (expit(sloped + low) - truth) @ logits == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize(
    "scores",
    [[0.1, 0.2, 0.8, 0.9], [0.9, 0.8, 0.2, 0.1], [0.1, 0.5, 0.5, 0.9], [0.3, 0.3, 0.3, 0.3], [0.0, 0.0, 1.0, 1.0]],
)
def test_scores_of_two_sides_that_do_not_overlap_have_no_slope(scores: list[float]) -> None:
    found = score(Predictions(np.array([False, False, True, True]), np.array(scores)), seed=0)
    assert found.calibration_slope is None
    assert found.reason == "calibration_slope: the scores of the two sides do not overlap"
    assert [name for name, value in asdict(found).items() if value is None] == ["calibration_slope"]


def test_nearly_separate_sides_have_a_slope_without_a_warning() -> None:
    truth = np.repeat([False, True], 100)
    scores = np.where(truth, 0.999, 0.001)
    scores[0] = 0.9995
    slope = point_scores(Predictions(truth, scores)).calibration_slope
    assert slope is not None
    assert 0 < slope < 2


def test_saying_the_prevalence_is_worth_nothing() -> None:
    truth = np.arange(200) < 30
    found = score(Predictions(truth, np.full(200, 0.15), 0.5), seed=0)
    assert found.auc == 0.5
    assert found.intervals["auc"] == [0.5, 0.5]
    assert found.brier == pytest.approx(0.15 * 0.85)
    assert found.auprc == pytest.approx(0.15)
    assert found.balanced_accuracy == 0.5
    assert found.calibration_intercept == pytest.approx(0.0, abs=1e-9)
    assert (found.accuracy, found.majority_accuracy) == (0.85, 0.85)


def test_a_released_classifier_is_cut_at_the_expected_share_whatever_the_labels() -> None:
    predictions = draw(200, 0)
    scores = known(predictions)
    cut = float(np.sort(scores)[-51:-49].mean())
    found = score_released(scores, predictions.truth, share=0.25, seed=4)
    assert found == score(Predictions(predictions.truth, scores, cut), seed=4)
    # Of other labels, as many are said to be positive.
    other = score_released(scores, ~predictions.truth, share=0.25, seed=4)
    said = [scores.precision * 50 for scores in (found, other) if scores.precision is not None]
    assert sum(said) == pytest.approx(50)
    units = np.arange(200) // 4
    assert score_released(scores, predictions.truth, share=0.25, seed=4, units=units).intervals != found.intervals
    for share, recall in ((0.0, 0.0), (1.0, 1.0)):
        assert score_released(scores, predictions.truth, share=share, seed=0).recall == recall
    assert score_released(np.full(9, 0.5), np.arange(9) < 3, share=0.4, seed=0).recall == 0.0


def test_a_threshold_is_half_way_where_as_many_scores_lie_above_as_asked() -> None:
    scores = np.array([0.1, 0.2, 0.2, 0.6, 0.8])
    assert choose_threshold(scores, 2) == pytest.approx(0.4)
    assert choose_threshold(scores, 1.4) == pytest.approx(0.7)
    assert choose_threshold(scores, 3.4) == pytest.approx(0.15)


def test_nothing_to_measure_gives_none_and_the_reason() -> None:
    one_sided = "the test table does not hold both the positive class and another"
    for truth, reason, majority in (
        (np.array([], dtype=bool), "the test table has no rows", None),
        (np.array([True, True]), one_sided, 1.0),
        (np.array([False]), one_sided, 1.0),
    ):
        expected = Scores(majority_accuracy=majority, reason=reason)
        assert score(Predictions(truth, np.full(len(truth), 0.3)), seed=0) == expected
        assert score_released(np.full(len(truth), 0.3), truth, share=0.5, seed=0) == expected
    truth = np.array([True, False, False, False])
    unknown = Predictions(truth, reason="not learnt")
    assert score(unknown, seed=0) == Scores(majority_accuracy=0.75, reason="not learnt")
    assert resample(unknown, seed=0) == {}


def test_a_single_unit_has_no_interval_and_a_single_positive_one_has() -> None:
    predictions = draw(40, 0)
    assert score(predictions, seed=0, units=np.zeros(40, dtype=np.int64)).intervals == {}
    # More than a third of the draws leave the positive row out; they are left out where they have no value.
    alone = Predictions(np.arange(40) == 0, known(predictions))
    drawn = resample(alone, seed=0)
    assert 0.3 < np.isnan(drawn["auc"]).mean() < 0.45
    for name in ("auprc", "balanced_accuracy", "f1", "macro_f1", "recall"):
        np.testing.assert_array_equal(np.isnan(drawn[name]), np.isnan(drawn["auc"]))
    for name in ("accuracy", "precision", "brier"):
        assert not np.isnan(drawn[name]).any()
    assert np.isfinite(list(score(alone, seed=0).intervals.values())).all()


def test_arrays_that_do_not_belong_together_and_scores_out_of_range_are_refused() -> None:
    truth, scores = np.array([True, False, True]), np.array([0.2, 0.4, 0.6])
    for wrong, message in (
        (scores[:2], "expected one a row"),
        (scores[:, None], "expected one a row"),
        (np.array([0.2, np.nan, 0.3]), "from 0 to 1"),
        (np.array([0.2, 1.01, 0.3]), "from 0 to 1"),
        (np.array([0.2, -0.01, 0.3]), "from 0 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            score(Predictions(truth, wrong), seed=0)
        with pytest.raises(ValueError, match=message):
            score_released(wrong, truth, share=0.5, seed=0)
    with pytest.raises(ValueError, match="units: expected one for each of 3 rows"):
        score(Predictions(truth, scores), seed=0, units=np.arange(2))
    for share in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match="share="):
            score_released(scores, truth, share=share, seed=0)


def test_the_seed_alone_decides_and_plain_values_come_back_from_json() -> None:
    predictions = draw(60, 0)
    first = score(predictions, seed=1)
    np.random.seed(7)  # noqa: NPY002 (the global state is what must not matter)
    state = np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    assert score(predictions, seed=1) == first
    assert np.array_equal(np.random.get_state()[1], state)  # type: ignore[index]  # noqa: NPY002
    other = score(predictions, seed=2)
    assert measures_of(other) == measures_of(first)
    assert other.intervals != first.intervals
    assert json.loads(json.dumps(asdict(first), allow_nan=False)) == asdict(first)
    assert {item.name for item in fields(Scores)} >= {*MEASURES, "calibration_slope", "calibration_intercept"}
    for name in MEASURES:
        low, high = first.intervals[name]
        assert low <= getattr(first, name) <= high
