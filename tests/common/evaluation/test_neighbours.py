"""Precision, recall, density and coverage against the formulas of their papers, one pair of rows at a time."""

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.schema import parse_table
from common.data.windows import WindowedTable
from common.evaluation import neighbours
from common.evaluation.figures import Figure, Population
from common.evaluation.frechet import shuffle_columns
from common.evaluation.frozen import FrozenEmbedding
from common.evaluation.neighbours import Counts, Neighbours, Support, count_neighbours, measure_neighbours
from common.study import Study, parse_study

STUDY: Study = parse_study(
    {
        "name": "toy",
        "label": {"column": "ill", "positive": "yes"},
        "columns": {
            "colour": {"type": "categorical", "categories": ["red", "green", "blue"]},
            "age": {"type": "integer", "min": 0, "max": 100},
            "weight": {"type": "continuous", "min": 0, "max": 200},
            "ill": {"type": "categorical", "categories": ["no", "yes"]},
        },
        "privacy": {"epsilon": 1, "delta": 1e-6},
    },
    source="test",
)


def parse(colour: np.ndarray, age: np.ndarray, weight: np.ndarray, ill: np.ndarray) -> WindowedTable:
    text = {
        "colour": np.array(["red", "green", "blue"])[colour],
        "age": np.rint(age).astype(int).astype(str),
        "weight": weight.astype(str),
        "ill": np.where(ill, "yes", "no"),
    }
    return WindowedTable.without_windows(parse_table(pd.DataFrame(text, dtype="str"), STUDY.columns))


def draw(n: int, seed: int) -> WindowedTable:
    """Weight follows age, age follows colour, the label follows weight."""
    random = np.random.default_rng(seed)
    colour = random.integers(0, 3, n)
    age = np.clip(20 + 25 * colour + random.normal(0, 4, n), 0, 100)
    weight = np.clip(1.5 * age + random.normal(0, 5, n), 0, 200)
    return parse(colour, age, weight, weight > 80)


def noise(n: int, seed: int) -> WindowedTable:
    random = np.random.default_rng(seed)
    return parse(
        random.integers(0, 3, n), random.integers(0, 101, n), random.uniform(0, 200, n), random.random(n) < 0.5
    )


def naive_figures(rows: np.ndarray, real: np.ndarray, k: int) -> dict[str, float]:
    """From the papers: f of equation 1 of Kynkäänniemi et al., density and coverage of Naeem et al."""

    def apart(one: np.ndarray, other: np.ndarray) -> float:
        return sum((float(a) - float(b)) ** 2 for a, b in zip(one, other, strict=True))

    def reach(points: np.ndarray) -> list[float]:
        return [
            sorted(apart(point, other) for at, other in enumerate(points) if at != own)[k - 1]
            for own, point in enumerate(points)
        ]

    real_reach, own_reach = reach(real), reach(rows)
    balls = [sum(apart(row, other) <= radius for other, radius in zip(real, real_reach, strict=True)) for row in rows]
    return {
        "precision": sum(number > 0 for number in balls) / len(rows),
        "density": sum(balls) / (k * len(rows)),
        "recall": sum(
            any(apart(one, row) <= radius for row, radius in zip(rows, own_reach, strict=True)) for one in real
        )
        / len(real),
        "coverage": sum(
            min(apart(one, row) for row in rows) <= radius for one, radius in zip(real, real_reach, strict=True)
        )
        / len(real),
    }


def figures(counts: Counts, k: int) -> dict[str, float]:
    return {
        "precision": float((counts.balls > 0).mean()),
        "density": float(counts.balls.mean() / k),
        "recall": float(counts.recalled.mean()),
        "coverage": float(counts.covered.mean()),
    }


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("spread", [0.9, 1.0, 1.3])
def test_a_naive_oracle_agrees(k: int, spread: float) -> None:
    random = np.random.default_rng(k)
    rows, real = (np.rint(random.normal(0, scale, size=(n, 6)) * 1024) / 1024 for n, scale in ((60, spread), (45, 1.0)))
    assert figures(count_neighbours(rows, real, k=k), k) == pytest.approx(naive_figures(rows, real, k), abs=1e-9)


COORDINATES = st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), min_size=4, max_size=14)


@settings(max_examples=60, deadline=None)
@given(COORDINATES, COORDINATES, st.integers(1, 3))
def test_it_agrees_where_rows_are_equal_and_distances_tie(
    first: list[tuple[int, int]], second: list[tuple[int, int]], k: int
) -> None:
    rows, real = np.array(first) / 1024, np.array(second) / 1024
    assert figures(count_neighbours(rows, real, k=k), k) == pytest.approx(naive_figures(rows, real, k), abs=1e-9)


def test_far_from_the_origin_distances_are_still_exact() -> None:
    # Squares of 31,000,000 hide a step of 1 / 1024 from arithmetic that rounds.
    real = np.array([[31.0, 31.0], [31.0, 31.0 + 1 / 1024], [30.0, 30.0]])
    found = count_neighbours(np.array([[31.0, 31.0 - 1 / 1024], [31.0, 31.0 - 2 / 1024]]), real, k=1)
    # The first row is a step from the first real row, whose ball reaches one step; the second is two steps away.
    assert found.balls.tolist() == [2, 1]
    assert found.covered.tolist() == [True, False, True]


def test_the_number_of_rows_at_a_time_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    network = FrozenEmbedding(STUDY)
    rows, real = network.embed(draw(300, 1)), network.embed(draw(200, 2))
    whole = count_neighbours(rows, real, k=5)
    monkeypatch.setattr(neighbours, "_CHUNK_ENTRIES", 1700)
    parts = count_neighbours(rows, real, k=5)
    assert all(np.array_equal(getattr(whole, name), getattr(parts, name)) for name in ("balls", "recalled", "covered"))


def test_balls_need_more_rows_than_neighbours() -> None:
    rows = np.zeros((6, 2))
    assert count_neighbours(rows, rows, k=5).balls.tolist() == [6] * 6
    for first, second, k in ((rows, rows[:5], 5), (rows[:5], rows, 5), (rows, rows, 0)):
        with pytest.raises(ValueError, match=f"k={k}: expected from 1"):
            count_neighbours(first, second, k=k)


# --- of tables


def value(figure: Figure) -> float:
    assert figure.value is not None
    return figure.value


TRAIN, HOLDOUT, FRESH = draw(700, 1), draw(500, 2), draw(500, 3)


def measure(table: WindowedTable | Population, **changed: Any) -> Neighbours:
    return measure_neighbours(table, TRAIN, HOLDOUT, STUDY, **({"seed": 0} | changed))


@pytest.fixture(scope="module")
def measured() -> dict[str, Neighbours]:
    shuffled = shuffle_columns(FRESH, STUDY, seed=5)
    half = WindowedTable.without_windows(pd.concat([FRESH.records[:250], shuffled.records[:250]], ignore_index=True))
    tables = {"fresh": FRESH, "half": half, "shuffled": shuffled, "noise": noise(500, 4), "copy": TRAIN}
    return {name: measure(table) for name, table in tables.items()}


@pytest.mark.parametrize("which", ["precision", "density", "coverage"])
def test_fresh_rows_are_above_half_shuffled_ones_then_shuffled_ones_then_noise(
    measured: dict[str, Neighbours], which: str
) -> None:
    order = [value(getattr(measured[name].synthetic, which)) for name in ("fresh", "half", "shuffled", "noise")]
    assert order == sorted(order, reverse=True)
    assert order[0] > order[1] + 0.05


def test_figures_are_means_of_what_is_counted(measured: dict[str, Neighbours]) -> None:
    embedding = FrozenEmbedding(STUDY)
    counts = count_neighbours(embedding.embed(FRESH), embedding.embed(HOLDOUT), k=5)
    found = measured["fresh"].synthetic
    assert value(found.precision) == pytest.approx((counts.balls > 0).mean())
    assert value(found.recall) == pytest.approx(counts.recalled.mean())
    assert value(found.density) == pytest.approx(counts.balls.mean() / 5)
    assert value(found.coverage) == pytest.approx(counts.covered.mean())


@pytest.mark.parametrize("which", ["precision", "recall", "density", "coverage"])
def test_fresh_rows_and_copies_are_at_the_floor(measured: dict[str, Neighbours], which: str) -> None:
    for name in ("fresh", "copy"):
        found, floor = (getattr(side, which) for side in (measured[name].synthetic, measured[name].floor))
        assert abs(value(found) - value(floor)) < 0.12
        assert found.low is not None
        assert found.high is not None
        assert found.low <= value(found) <= found.high


def test_rows_that_keep_to_one_place_lose_recall_and_coverage() -> None:
    crowded = FRESH.take(np.flatnonzero((FRESH.records["colour"] == "red").to_numpy()))
    found = measure(crowded)
    assert value(found.synthetic.precision) > 0.9
    assert value(found.synthetic.recall) < 0.5
    assert value(found.synthetic.coverage) < 0.5
    assert value(found.floor.recall) > 0.8


def test_the_floor_is_of_real_rows_alone_and_all_are_as_many(measured: dict[str, Neighbours]) -> None:
    assert len({one.floor for one in measured.values()}) == 1
    assert {(one.k, one.rows, one.embedding) for one in measured.values()} == {(5, 500, "rf64-1")}
    assert measure(FRESH, most=80).rows == 80
    assert measure(FRESH.take(np.arange(60))).rows == 60


def test_it_is_json_and_the_same_for_the_same_seed(measured: dict[str, Neighbours]) -> None:
    again = measure(FRESH)
    assert again == measured["fresh"]
    assert json.loads(json.dumps(asdict(again), allow_nan=False)) == asdict(again)
    assert again.sha256 == FrozenEmbedding(STUDY).sha256


def test_intervals_of_rows_that_share_units_are_wider() -> None:
    repeated, crowded = HOLDOUT.take(np.repeat(np.arange(125), 4)), FRESH.take(np.arange(500) % 60)
    together, apart = (
        measure_neighbours(crowded, TRAIN, Population(repeated, units), STUDY, seed=0).synthetic
        for units in (np.repeat(np.arange(125), 4), np.arange(500))
    )
    one, other = together.coverage, apart.coverage
    assert value(one) == value(other) < 0.9
    assert one.high - one.low > 1.5 * (other.high - other.low)  # type: ignore[operator]


def test_too_few_rows_give_none_and_the_reason() -> None:
    assert isinstance(value(measure(FRESH.take(np.arange(6))).synthetic.precision), float)
    found = measure(FRESH.take(np.arange(5)))
    reason = "fewer than 6 rows on a side"
    nothing = Support(*[Figure(n=5, reason=reason)] * 4)
    assert (found.synthetic, found.floor) == (nothing, nothing)
