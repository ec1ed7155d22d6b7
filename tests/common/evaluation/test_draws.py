"""Several synthetic tables of one generator: mean, spread, and the variance for one more of them."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from scipy.stats import t as student

from common.data.schema import parse_table
from common.data.windows import WindowedTable
from common.evaluation.draws import measure_draws, total_variance
from common.evaluation.scores import MEASURES, resample
from common.evaluation.sequences import measure_sequence_utility
from common.evaluation.utility import measure_utility, predict
from common.study import Study, parse_study

PLAIN = {
    "name": "toy",
    "label": {"column": "ill", "positive": "yes"},
    "columns": {
        "age": {"type": "integer", "min": 0, "max": 100},
        "sex": {"type": "categorical", "categories": ["f", "m"]},
        "ill": {"type": "categorical", "categories": ["no", "yes"]},
    },
    "privacy": {"epsilon": 1, "delta": 1e-6},
}
STUDY: Study = parse_study(PLAIN, source="test")
WINDOWED: Study = parse_study(
    {
        **PLAIN,
        "unit": {"name": "patient", "key": "patient"},
        "windows": {
            "layout": "events",
            "length": 4,
            "time": {"column": "minute"},
            "channels": {"pulse": {"type": "continuous", "min": 0, "max": 200}},
        },
    },
    source="test",
)


def draw(n: int, seed: int, *, noise: float = 1.0) -> WindowedTable:
    random = np.random.default_rng(seed)
    age, sex = random.integers(0, 101, n), random.random(n) < 0.5
    ill = (age - 50) / 15 + sex + noise * random.logistic(size=n) > 0
    text = {"age": age.astype(str), "sex": np.where(sex, "m", "f"), "ill": np.where(ill, "yes", "no")}
    return WindowedTable.without_windows(parse_table(pd.DataFrame(text), STUDY.columns))


def with_windows(table: WindowedTable, seed: int) -> WindowedTable:
    random = np.random.default_rng(seed)
    n = len(table.records)
    pulse = random.normal(80 + 10 * (table.records["ill"] == "yes").to_numpy()[:, None], 10, (n, 4))
    return replace(table, values=pulse[:, :, None], lengths=np.full(n, 4))


DRAWS = [draw(150, seed, noise=1.0 + seed) for seed in range(3)]
TEST = draw(200, 9)
UNITS = np.arange(200) // 2


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, dict[str, float | int | str | None]]]:
    return measure_draws(DRAWS, TEST, STUDY, seed=4, units=UNITS)


def test_means_and_deviations_are_those_of_the_scores_of_each_draw(
    measured: dict[str, dict[str, dict[str, float | int | str | None]]],
) -> None:
    by_draw = [measure_utility(table.records, TEST.records, STUDY, seed=4, units=UNITS) for table in DRAWS]
    assert list(measured) == list(by_draw[0])
    for name, summaries in measured.items():
        assert list(summaries) == [*MEASURES, "calibration_slope", "calibration_intercept"]
        for measure, summary in summaries.items():
            values = [asdict(scores[name])[measure] for scores in by_draw]
            assert summary["mean"] == pytest.approx(np.mean(values))
            assert summary["sd"] == pytest.approx(np.std(values, ddof=1))
            assert (summary["n"], summary["reason"]) == (3, None)


def test_the_variance_of_the_auc_is_within_plus_between(
    measured: dict[str, dict[str, dict[str, float | int | str | None]]],
) -> None:
    predicted = [predict(table.records, TEST.records, STUDY, seed=4) for table in DRAWS]
    for name, summaries in measured.items():
        auc = summaries["auc"]
        variances = [np.var(resample(found[name], seed=4, units=UNITS)["auc"], ddof=1) for found in predicted]
        assert auc["within"] == pytest.approx(np.mean(variances))
        assert isinstance(auc["sd"], float)
        assert auc["between"] == pytest.approx(auc["sd"] ** 2)
        assert isinstance(auc["within"], float)
        assert auc["total"] == pytest.approx(auc["within"] + (1 + 1 / 3) * auc["sd"] ** 2)
        assert isinstance(auc["low"], float)
        assert isinstance(auc["mean"], float)
        assert isinstance(auc["high"], float)
        assert 0 <= auc["low"] < auc["mean"] < auc["high"] <= 1
        assert "total" not in summaries["brier"]


def test_total_variance_and_interval_are_those_of_the_formula() -> None:
    total, (low, high) = total_variance(np.array([0.6, 0.7, 0.8]), 0.02)
    assert total == pytest.approx(0.02 + 4 / 3 * 0.01)
    freedom = 2 * (1 + 0.02 / (4 / 3 * 0.01)) ** 2
    half = student.ppf(0.975, freedom) * math.sqrt(total)
    assert (low, high) == pytest.approx((0.7 - half, 0.7 + half))
    total, (low, high) = total_variance(np.array([0.7, 0.7]), 0.0004)
    assert total == pytest.approx(0.0004)
    assert (low, high) == pytest.approx((0.7 - 0.02 * norm.ppf(0.975), 0.7 + 0.02 * norm.ppf(0.975)))
    assert total_variance(np.array([0.7, 0.7]), 0.0) == (0.0, (0.7, 0.7))
    for values, within in (([0.7], 0.1), ([], 0.1), ([0.6, 0.7], -1.0), ([0.6, 0.7], math.nan)):
        with pytest.raises(ValueError, match="two values or more"):
            total_variance(np.array(values), within)


@pytest.mark.parametrize(("within", "between"), [(1.0, 0.01), (1.0, 1.0), (0.01, 1.0)])
def test_the_interval_covers_one_more_draw_of_the_generator(within: float, between: float) -> None:
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        # The test units miss the same for all draws.
        values = math.sqrt(within) * random.normal() + math.sqrt(between) * random.normal(size=5)
        low, high = total_variance(values, within)[1]
        covered += low <= math.sqrt(between) * random.normal() <= high
    assert covered / 2000 == pytest.approx(0.95, abs=0.017)  # 3.5 standard deviations


def test_studies_with_windows_have_the_classifiers_of_windows() -> None:
    draws, test = [with_windows(draw(30, seed), seed) for seed in range(2)], with_windows(draw(40, 9), 9)
    found = measure_draws(draws, test, WINDOWED, seed=0)
    by_draw = [measure_sequence_utility(table, test, WINDOWED, WINDOWED.channels, seed=0) for table in draws]
    assert list(found) == list(by_draw[0])
    for name, summaries in found.items():
        assert summaries["auc"]["mean"] == pytest.approx(np.mean([asdict(scores[name])["auc"] for scores in by_draw]))


def test_one_draw_has_no_spread_and_a_draw_that_cannot_teach_does_not_count() -> None:
    table = DRAWS[0]
    healthy = table.take((table.records["ill"] == "no").to_numpy())
    one_sided = "the training table does not hold both the positive class and another"
    for draws, n, reason in (
        ([table], 1, "one draw has no spread"),
        ([table, healthy], 1, one_sided),
        ([healthy, healthy], 0, one_sided),
        ([healthy, table, DRAWS[1]], 2, None),
    ):
        for summaries in measure_draws(draws, TEST, STUDY, seed=0).values():
            for measure, summary in summaries.items():
                assert (summary["n"], summary["reason"]) == (n, reason)
                assert (summary["mean"] is None) == (n == 0)
                assert (summary["sd"] is None) == (n < 2)
                if measure == "auc":
                    assert (summary["within"] is None) == (n == 0)
                    assert {summary[name] is None for name in ("between", "total", "low", "high")} == {n < 2}


def test_one_test_unit_has_no_variance_and_scores_apart_have_no_slope() -> None:
    for summaries in measure_draws(DRAWS[:2], TEST, STUDY, seed=0, units=np.zeros(200)).values():
        assert summaries["auc"]["sd"] is not None
        assert summaries["auc"]["total"] is None
        assert summaries["auc"]["reason"] == "the test table has a single unit"
        assert summaries["brier"]["reason"] is None
    people = draw(100, 0).records
    ill = pd.Categorical.from_codes(np.arange(100) % 2, dtype=people["ill"].dtype)
    sure = WindowedTable.without_windows(people.assign(age=10 + 80 * (np.arange(100) % 2), ill=ill))
    for summaries in measure_draws([sure, sure], sure, STUDY, seed=0).values():
        assert summaries["calibration_slope"]["n"] == 0
        assert summaries["calibration_slope"]["reason"] == (
            "calibration_slope: the scores of the two sides do not overlap"
        )
        assert summaries["auc"]["reason"] is None


def test_the_interval_ends_where_an_auc_does() -> None:
    few = TEST.take(np.arange(16))
    other = few.records["ill"].cat.rename_categories({"no": "yes", "yes": "no"}).cat.reorder_categories(["no", "yes"])
    for test, end, bound in ((few, "high", 1.0), (replace(few, records=few.records.assign(ill=other)), "low", 0.0)):
        auc = measure_draws(DRAWS, test, STUDY, seed=0)["logistic_regression"]["auc"]
        assert isinstance(auc["mean"], float)
        assert isinstance(auc["total"], float)
        assert abs(auc["mean"] - bound) < 1.96 * math.sqrt(auc["total"])
        assert auc[end] == bound


def test_no_draw_is_refused_and_plain_values_come_back_from_json(
    measured: dict[str, dict[str, dict[str, float | int | str | None]]],
) -> None:
    with pytest.raises(ValueError, match="draws: expected one or more"):
        measure_draws([], TEST, STUDY, seed=0)
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured
    assert measure_draws(DRAWS, TEST, STUDY, seed=4, units=UNITS) == measured
