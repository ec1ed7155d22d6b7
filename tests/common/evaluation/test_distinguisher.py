"""What trees can tell apart and what they cannot; units that stay together; accuracies that are folded."""

import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from common.data.schema import parse_table
from common.data.windows import WindowedTable
from common.evaluation import distinguisher
from common.evaluation.distinguisher import Distinguisher, distinguish
from common.evaluation.figures import Figure, Population
from common.evaluation.frechet import shuffle_columns
from common.study import Study, parse_study

PLAIN: dict[str, Any] = {
    "name": "toy",
    "unit": {"name": "patient", "key": "patient"},
    "label": {"column": "ill", "positive": "yes"},
    "columns": {
        "colour": {"type": "categorical", "categories": ["red", "green", "blue"], "missing": True},
        "age": {"type": "integer", "min": 0, "max": 100, "missing": True},
        "weight": {"type": "continuous", "min": 0, "max": 200},
        "ill": {"type": "categorical", "categories": ["no", "yes"]},
    },
    "privacy": {"epsilon": 1, "delta": 1e-6},
}
WINDOWS: dict[str, Any] = {
    "layout": "grid",
    "length": 8,
    "step": 1,
    "time": {"column": "hour"},
    "channels": {"pulse": {"type": "continuous", "min": 0, "max": 200, "missing": True}},
}
STUDY: Study = parse_study(PLAIN, source="test")
WINDOWED: Study = parse_study(PLAIN | {"windows": WINDOWS}, source="test")


def draw(n: int, seed: int) -> WindowedTable:
    """Age follows colour, weight follows age, the label follows weight, and the pulse wanders slowly."""
    random = np.random.default_rng(seed)
    colour = random.integers(0, 3, n)
    age = np.clip(np.rint(20 + 25 * colour + random.normal(0, 8, n)), 0, 100).astype(int)
    weight = np.clip(age + random.normal(40, 10, n), 0, 200)
    text = {
        "colour": np.array(["red", "green", "blue"])[colour],
        "age": np.where(random.random(n) < 0.1, "", age.astype(str)),
        "weight": weight.astype(str),
        "ill": np.where(weight + random.normal(0, 5, n) > 90, "yes", "no"),
    }
    pulse = 100 + random.normal(0, 10, (n, 1)) + np.cumsum(random.normal(0, 3, (n, 8)), axis=1)
    records = parse_table(pd.DataFrame(text, dtype="str"), STUDY.columns)
    return WindowedTable(records, np.clip(pulse, 0, 200)[:, :, None], np.full(n, 8))


def noise(n: int, seed: int) -> WindowedTable:
    random = np.random.default_rng(seed)
    text = {
        "colour": random.choice(["red", "green", "blue", ""], n),
        "age": random.integers(0, 101, n).astype(str),
        "weight": random.uniform(0, 200, n).astype(str),
        "ill": random.choice(["no", "yes"], n),
    }
    records = parse_table(pd.DataFrame(text, dtype="str"), STUDY.columns)
    return WindowedTable(records, random.uniform(0, 200, (n, 8, 1)), np.full(n, 8))


REAL, FRESH = draw(600, 1), draw(700, 2)


def value(figure: Figure) -> float:
    assert figure.value is not None
    return figure.value


def holds_chance(figure: Figure) -> bool:
    assert figure.low is not None
    assert figure.high is not None
    return figure.low <= 0.5 <= figure.high


def test_fresh_rows_are_at_chance_and_the_more_is_wrong_the_better_they_are_told() -> None:
    shuffled = shuffle_columns(FRESH, STUDY, seed=5)
    half = WindowedTable.without_windows(pd.concat([FRESH.records[:350], shuffled.records[:350]], ignore_index=True))
    found = [distinguish(table, REAL, STUDY, seed=0) for table in (FRESH, half, shuffled, noise(600, 3))]
    assert holds_chance(found[0].auc)
    assert holds_chance(found[0].accuracy)
    for figures in ([one.auc for one in found], [one.accuracy for one in found]):
        values = [value(figure) for figure in figures]
        assert values == sorted(values)
        assert values[1] > 0.55
        assert values[3] > 0.9
        for figure in figures:
            assert figure.low is not None
            assert figure.high is not None
            assert figure.low <= value(figure) <= figure.high
            assert (figure.chance, figure.n) == (0.5, 600)
    assert not holds_chance(found[1].auc)


def test_the_label_is_looked_at_too() -> None:
    codes = 1 - FRESH.records["ill"].cat.codes.to_numpy()
    wrong = FRESH.records.assign(ill=pd.Categorical.from_codes(codes, dtype=FRESH.records["ill"].dtype))
    assert value(distinguish(replace(FRESH, records=wrong), REAL, STUDY, seed=0).auc) > 0.8


def test_windows_are_looked_at_where_the_study_has_them() -> None:
    jumping = replace(FRESH, values=np.random.default_rng(0).normal(100, 15, FRESH.values.shape))
    assert value(distinguish(jumping, REAL, WINDOWED, seed=0).auc) > 0.95
    assert abs(value(distinguish(FRESH, REAL, WINDOWED, seed=0).auc) - 0.5) < 0.1  # four deviations
    # Right by themselves, but not the windows of these units.
    ill = (FRESH.records["ill"] == "yes").to_numpy()
    tied, loose = (
        replace(table, values=table.values + 40 * sign[:, None, None])
        for table, sign in (
            (REAL, (REAL.records["ill"] == "yes").to_numpy()),
            (FRESH, np.random.default_rng(1).permutation(ill)),
        )
    )
    assert value(distinguish(loose, tied, WINDOWED, seed=0).auc) > 0.65


def test_rows_of_a_unit_are_not_told_by_each_other() -> None:
    # Weights tell units apart: of four rows of a unit, any three would give the fourth away.
    rows, units = np.repeat(np.arange(150), 4), np.repeat(np.arange(150), 4)
    real, other = REAL.take(rows), FRESH.take(rows)
    apart = distinguish(other, Population(real, np.arange(600)), STUDY, seed=0)
    assert value(apart.auc) > 0.9
    together = distinguish(Population(other, units), Population(real, units), STUDY, seed=0)
    assert holds_chance(together.auc)
    # As many rows, but fewer units: less is known.
    alone = distinguish(FRESH, REAL, STUDY, seed=0)
    widths = [one.auc.high - one.auc.low for one in (together, alone)]  # type: ignore[operator]
    assert widths[0] > 1.3 * widths[1]


def test_no_unit_is_in_two_folds_and_every_row_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, np.ndarray] = {}

    def score(features: np.ndarray, truth: np.ndarray, folds: np.ndarray, *_: Any) -> np.ndarray:
        seen.update(features=features, truth=truth, folds=folds)
        return np.linspace(0, 1, len(truth))

    monkeypatch.setattr(distinguisher, "_score_each", score)
    units = np.arange(600) // 6
    distinguish(FRESH, Population(REAL, units), STUDY, seed=0, most=500)
    assert seen["features"].shape == (1000, 4)
    assert seen["truth"].tolist() == [True] * 500 + [False] * 500
    assert np.bincount(seen["folds"][:500]).tolist() == [100] * 5
    drawn = dict(zip(REAL.records["weight"], units, strict=True))
    of_unit: dict[int, set[int]] = {}
    for weight, fold in zip(seen["features"][500:, 2], seen["folds"][500:], strict=True):
        of_unit.setdefault(drawn[weight], set()).add(int(fold))
    assert all(len(folds) == 1 for folds in of_unit.values())
    assert len(of_unit) == 100


@pytest.mark.parametrize("right", [0.9, 0.2, 0.5])
def test_the_accuracy_is_folded_and_the_area_is_not(monkeypatch: pytest.MonkeyPatch, right: float) -> None:
    is_right = np.random.default_rng(0).permutation(np.arange(1200) < 1200 * right)
    monkeypatch.setattr(distinguisher, "_score_each", lambda _, truth, *rest: np.where(truth == is_right, 0.75, 0.25))
    found = distinguish(FRESH, REAL, STUDY, seed=0)
    assert value(found.auc) == pytest.approx(right, abs=0.02)
    assert value(found.accuracy) == pytest.approx(max(right, 1 - right))
    assert found.accuracy.low is not None
    assert found.accuracy.high is not None
    half = 1.5 * 1.96 * np.sqrt(right * (1 - right) / 1200)
    expected = max(0.5, max(right, 1 - right) - half), max(right, 1 - right) + half
    assert (found.accuracy.low, found.accuracy.high) == pytest.approx(expected, abs=0.01)


def test_copies_of_the_real_rows_are_taken_for_real() -> None:
    found = distinguish(REAL, REAL, STUDY, seed=0)
    assert value(found.auc) < 0.5


def test_a_column_without_values_tells_nothing() -> None:
    def emptied(table: WindowedTable) -> WindowedTable:
        records = table.records.assign(age=pd.array([None] * len(table.records), dtype="Int64"))
        return replace(table, records=records, values=np.full_like(table.values, np.nan))

    assert holds_chance(distinguish(emptied(FRESH), emptied(REAL), WINDOWED, seed=0, most=300).auc)


def test_it_is_json_and_the_same_for_the_same_seed() -> None:
    first, again, other = (distinguish(FRESH, REAL, STUDY, seed=seed, most=200) for seed in (0, 0, 1))
    assert first == again != other
    assert first.rows == 200
    assert json.loads(json.dumps(asdict(first), allow_nan=False)) == asdict(first)


def test_too_few_units_give_none_and_the_reason() -> None:
    nothing = Figure(chance=0.5, n=9, reason="fewer than 10 units on a side")
    assert distinguish(FRESH.take(np.arange(9)), REAL, STUDY, seed=0) == Distinguisher(nothing, nothing, 9)
    few_units = Population(REAL, np.arange(600) // 100)
    assert distinguish(FRESH, few_units, STUDY, seed=0).auc.reason == "fewer than 10 units on a side"
    assert distinguish(FRESH.take(np.array([], dtype=int)), REAL, STUDY, seed=0).rows == 0
    assert distinguish(FRESH.take(np.arange(10)), REAL, STUDY, seed=0).auc.value is not None
