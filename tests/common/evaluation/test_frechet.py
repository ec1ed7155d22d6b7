"""A network that never changes, distances against their closed forms, and an order that every table must keep."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.linalg import sqrtm

from common.data.schema import parse_table
from common.data.windows import WindowedTable
from common.evaluation import frechet, frozen
from common.evaluation.figures import Figure, Population
from common.evaluation.frechet import (
    FEWEST,
    Frechet,
    KernelDistance,
    _discrepancy,
    _figure,
    frechet_distance,
    kernel_distance,
    measure_frechet,
    shuffle_columns,
)
from common.evaluation.frozen import DIMENSIONS, FrozenEmbedding
from common.evaluation.sampling import equal_rows
from common.study import Study, parse_study

PLAIN: dict[str, Any] = {
    "name": "toy",
    "unit": {"name": "patient", "key": "patient"},
    "label": {"column": "ill", "positive": "yes"},
    "columns": {
        "colour": {"type": "categorical", "categories": ["red", "green", "blue"], "missing": True},
        "age": {"type": "integer", "min": 0, "max": 100, "missing": True},
        "amount": {"type": "continuous", "min": 0, "max": 1e6, "scale": "log", "special": [0]},
        "ill": {"type": "categorical", "categories": ["no", "yes"]},
    },
    "privacy": {"epsilon": 1, "delta": 1e-6},
}
WINDOWS: dict[str, Any] = {
    "layout": "events",
    "length": 6,
    "time": {"column": "minute"},
    "channels": {
        "pulse": {"type": "continuous", "min": 0, "max": 200, "missing": True},
        "ward": {"type": "categorical", "categories": ["a", "b"], "missing": True},
    },
}


def study(**changed: Any) -> Study:
    return parse_study(PLAIN | changed, source="test")


STUDY, WINDOWED = study(), study(windows=WINDOWS)


def draw_records(n: int, random: np.random.Generator) -> pd.DataFrame:
    """Age and amount follow colour, the label follows age and amount."""
    colour = random.integers(0, 3, n)
    age = np.clip(np.rint(20 + 20 * colour + random.normal(0, 9, n)), 0, 100).astype(int)
    amount = np.where(random.random(n) < 0.2, 0, np.round(np.exp(3 + colour + random.normal(0, 0.7, n)), 2))
    ill = age + 5 * np.log1p(amount) + random.normal(0, 5, n) > 70
    text = pd.DataFrame(
        {
            "colour": np.where(random.random(n) < 0.05, "", np.array(["red", "green", "blue"])[colour]),
            "age": np.where(random.random(n) < 0.1, "", age.astype(str)),
            "amount": amount.astype(str),
            "ill": np.where(ill, "yes", "no"),
        },
        dtype="str",
    )
    return parse_table(text, STUDY.columns)


def draw(n: int, seed: int) -> WindowedTable:
    """With windows whose pulse is the higher the older a unit is."""
    random = np.random.default_rng(seed)
    records = draw_records(n, random)
    level = records["age"].to_numpy(dtype=np.float64, na_value=50.0)
    pulse = 40 + level[:, None] + np.cumsum(random.normal(0, 3, (n, 6)), axis=1)
    pulse[random.random((n, 6)) < 0.1] = np.nan
    lengths = random.integers(3, 7, n)
    values = np.stack([np.clip(pulse, 0, 200), random.integers(0, 2, (n, 6)).astype(float)], axis=2)
    values[np.arange(6) >= lengths[:, None]] = np.nan
    return WindowedTable(records, values, lengths)


def rows(table: WindowedTable, **changed: Any) -> WindowedTable:
    return replace(table, records=table.records.assign(**changed))


def mixed(first: WindowedTable, second: WindowedTable) -> WindowedTable:
    """Every other row of each."""
    half = np.arange(len(first.records)) % 2 == 0
    records = first.records.where(pd.Series(half), second.records).astype(first.records.dtypes.to_dict())
    return WindowedTable(records, np.where(half[:, None, None], first.values, second.values), first.lengths)


def noise(n: int, seed: int) -> WindowedTable:
    """Uniform between the bounds."""
    random = np.random.default_rng(seed)
    text = pd.DataFrame(
        {
            "colour": random.choice(["red", "green", "blue", ""], n),
            "age": random.integers(0, 101, n).astype(str),
            "amount": np.round(np.expm1(random.uniform(0, np.log(1e6), n)), 2).astype(str),
            "ill": random.choice(["no", "yes"], n),
        },
        dtype="str",
    )
    values = np.stack([random.uniform(0, 200, (n, 6)), random.integers(0, 2, (n, 6)).astype(float)], axis=2)
    return WindowedTable(parse_table(text, STUDY.columns), values, np.full(n, 6))


TRAIN, HOLDOUT, FRESH = draw(1200, 1), draw(800, 2), draw(800, 3)
EMBEDDING = FrozenEmbedding(WINDOWED)


def embed(table: WindowedTable) -> np.ndarray:
    return EMBEDDING.embed(table)


# --- the network


def test_the_weights_are_the_same_for_ever() -> None:
    # Computed once, when the network got its name. If this fails the network needs a new name.
    assert FrozenEmbedding.name == "rf64-1"
    assert FrozenEmbedding(STUDY).sha256 == "21d26323d1f94bfc1dae03a2af57af7de6089e06651b6f6c457d61a92d56ba33"
    assert EMBEDDING.sha256 == "acfdd51756a87b73af203fa6c844d490eaa942d6c274f6e1cb31057c5d97ecbd"


def test_uniform_numbers_are_the_first_53_bits_of_a_hash() -> None:
    digest = hashlib.shake_256(b"label").digest(24)
    expected = [int.from_bytes(digest[at : at + 8], "little") // 2**11 / 2**53 for at in (0, 8, 16)]
    assert frozen._uniform("label", 3).tolist() == expected


@pytest.mark.parametrize(
    "changed",
    [
        {"privacy": {"epsilon": 3, "delta": 1e-5}},
        {"name": "other", "model": {"batch": 64}},
        {
            "columns": PLAIN["columns"]
            | {"age": {"type": "integer", "min": 0, "max": 100, "missing": True, "cells": 20}}
        },
    ],
)
def test_what_is_no_part_of_the_schema_does_not_change_the_weights(changed: dict[str, Any]) -> None:
    assert FrozenEmbedding(study(**changed)).sha256 == FrozenEmbedding(STUDY).sha256


@pytest.mark.parametrize(
    "changed",
    [
        {"columns": PLAIN["columns"] | {"age": {"type": "integer", "min": 0, "max": 99, "missing": True}}},
        {"columns": PLAIN["columns"] | {"ill": {"type": "categorical", "categories": ["yes", "no"]}}},
        {"columns": {name: PLAIN["columns"][name] for name in ("age", "colour", "amount", "ill")}},
        {"columns": PLAIN["columns"] | {"amount": PLAIN["columns"]["amount"] | {"special": []}}},
        {"windows": WINDOWS | {"length": 5}},
        {"windows": WINDOWS | {"channels": dict(reversed(WINDOWS["channels"].items()))}},
    ],
)
def test_every_part_of_the_schema_changes_the_weights(changed: dict[str, Any]) -> None:
    assert FrozenEmbedding(study(**changed)).sha256 not in {FrozenEmbedding(STUDY).sha256, EMBEDDING.sha256}


def test_the_label_is_part_of_the_schema() -> None:
    columns = PLAIN["columns"] | {"sex": {"type": "categorical", "categories": ["no", "yes"]}}
    one, other = (study(columns=columns, label={"column": name, "positive": "yes"}) for name in ("ill", "sex"))
    assert FrozenEmbedding(one).sha256 != FrozenEmbedding(other).sha256


def test_a_hidden_unit_looks_at_one_column_at_two_or_at_three_of_which_one_is_the_label() -> None:
    network = FrozenEmbedding(STUDY)
    # Four marks of colour, place and missing of age, place, special and missing of amount, three marks of the label.
    part_of = np.repeat([0, 1, 2, 3], [4, 2, 3, 3])
    seen = np.array([np.bincount(part_of[row != 0], minlength=4) > 0 for row in network._weights.toarray()])
    counts = seen.sum(axis=1)
    assert [int((counts == number).sum()) for number in (1, 2, 3)] == [704, 640 + 512, 192]
    assert seen[counts == 1].mean(axis=0) == pytest.approx(0.25)
    assert int((counts[seen[:, 3]] == 2).sum()) == 640
    assert seen[counts == 3][:, 3].all()
    pairs = {tuple(np.flatnonzero(row)) for row in seen[counts == 2]}
    assert len(pairs) == 6


def test_numbers_turn_a_quarter_to_four_times_between_their_bounds_in_either_direction() -> None:
    turns = FrozenEmbedding(STUDY)._weights.toarray()[:, 4]  # the place of age
    used = turns[turns != 0]
    assert 0.25 <= np.abs(used).min() < 0.3
    assert 3.5 < np.abs(used).max() < 4
    assert 0.4 < (used > 0).mean() < 0.6
    assert np.histogram(np.abs(used), [0.25, 0.5, 1, 2, 4])[0].min() > 0.15 * len(used)


def test_of_a_channel_a_unit_sees_a_step_a_mean_or_a_difference() -> None:
    weights = EMBEDDING._weights.toarray()[:704]
    # Behind the 12 inputs of columns: place, missing and beyond of the pulse at each of six steps.
    places = weights[:, 12 : 12 + 18].reshape(704, 6, 3)[:, :, 0]
    seen = places[(places != 0).any(axis=1)]
    of_one = (seen != 0).sum(axis=1) == 1
    is_difference = ((seen != 0).sum(axis=1) == 2) & (np.abs(seen.sum(axis=1)) < 1e-12)
    is_mean = ~of_one & ~is_difference
    assert min(of_one.sum(), is_difference.sum(), is_mean.sum()) > 0.2 * len(seen)
    # A mean weighs its steps alike, and they follow one another.
    for row in seen[is_mean]:
        steps = np.flatnonzero(row)
        assert len(set(row[steps])) == 1
        assert (np.diff(steps) == 1).all()


def test_the_features_of_a_row_do_not_depend_on_others(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = embed(FRESH)
    assert np.array_equal(embed(FRESH.take(np.arange(100, 350))), whole[100:350])
    monkeypatch.setattr(frozen, "_CHUNK_ENTRIES", 1)
    assert np.array_equal(embed(FRESH.take(np.arange(5))), whole[:5])
    assert embed(FRESH.take(np.array([], dtype=int))).shape == (0, DIMENSIONS)


def test_features_are_multiples_of_a_1024th_with_a_second_moment_of_about_one() -> None:
    features = embed(FRESH)
    assert np.array_equal(features * 1024, np.rint(features * 1024))
    assert 0.7 < float((features**2).mean()) < 1.4


def test_whatever_differs_in_a_row_shows() -> None:
    values = np.full((1, 6, 2), np.nan)
    values[0, :4] = [90.0, 0.0]
    table = replace(rows(FRESH.take(np.array([0])), age=pd.array([40], dtype="Int64"), amount=20.0), values=values)
    table = replace(table, lengths=np.array([4]))
    step_missing, other_ward = values.copy(), values.copy()
    step_missing[0, 1, 0], other_ward[0, 1, 1] = np.nan, 1.0
    labels = [pd.Categorical([ill], dtype=table.records["ill"].dtype) for ill in ("no", "yes")]
    changed = [
        *(rows(table, ill=label) for label in labels),
        *(rows(table, age=pd.array([age], dtype="Int64")) for age in (0, 41, None)),
        *(rows(table, amount=[amount]) for amount in (0.0, 0.01, 500.0)),
        replace(table, values=step_missing),
        replace(table, values=other_ward),
        replace(table, lengths=np.array([5])),
    ]
    features = np.vstack([embed(one) for one in changed])
    assert len(np.unique(features, axis=0)) == len(changed)
    assert np.array_equal(embed(table), embed(table))


def test_a_special_value_is_further_from_its_neighbour_than_two_values_that_are_as_near() -> None:
    near = [embed(rows(FRESH, amount=amount)) for amount in (0.0, 0.01, 0.02)]
    apart = [float(((near[at + 1] - near[at]) ** 2).sum(axis=1).mean()) for at in (0, 1)]
    assert apart[0] > 100 * apart[1]


def test_a_number_beyond_its_bounds_counts_as_the_bound() -> None:
    for beyond, bound in ((1e9, 1e6), (-5.0, 0.0)):
        outside, inside = (EMBEDDING.embed(rows(FRESH, amount=value)) for value in (beyond, bound))
        # The special mark of 0 is for 0 alone.
        assert np.array_equal(outside, inside) == (bound != 0)
    assert np.isfinite(embed(rows(FRESH, amount=np.inf))).all()


# --- as many rows of each


def test_of_each_table_as_many_rows_are_drawn_as_the_smallest_has() -> None:
    drawn = equal_rows([TRAIN, HOLDOUT.take(np.arange(70)), FRESH], seed=0, most=1000)
    assert [len(population.units) for population in drawn] == [70, 70, 70]
    assert [len(population.units) for population in equal_rows([TRAIN, FRESH], seed=0, most=50)] == [50, 50]
    pd.testing.assert_frame_equal(drawn[1].table.records, HOLDOUT.take(np.arange(70)).records)
    with pytest.raises(ValueError, match="most=0"):
        equal_rows([TRAIN], seed=0, most=0)


def test_rows_are_drawn_once_and_keep_their_units() -> None:
    numbered = rows(TRAIN, age=pd.array(np.arange(1200), dtype="Int64"))
    units = np.arange(1200) // 4
    (drawn,) = equal_rows([Population(numbered, units)], seed=1, most=300)
    ages = drawn.table.records["age"].to_numpy(dtype=int)
    assert len(set(ages)) == 300
    assert (np.diff(ages // 4)[np.diff(drawn.units) == 0] == 0).all()
    assert len(set(ages // 4)) == drawn.count == int(drawn.units.max()) + 1
    again, other = (equal_rows([Population(numbered, units)], seed=seed, most=300)[0] for seed in (1, 2))
    assert np.array_equal(again.table.records["age"], drawn.table.records["age"])
    assert not np.array_equal(other.table.records["age"], drawn.table.records["age"])


# --- Fréchet


def test_the_distance_is_that_of_the_definition() -> None:
    random = np.random.default_rng(0)
    first = random.normal(size=(300, 8)) @ random.normal(size=(8, 8))
    second = random.normal(size=(250, 8)) @ random.normal(size=(8, 8)) + 0.5
    covariances = np.cov(first.T), np.cov(second.T)
    expected = float(
        ((first.mean(axis=0) - second.mean(axis=0)) ** 2).sum()
        + np.trace(covariances[0] + covariances[1] - 2 * np.real(sqrtm(covariances[0] @ covariances[1])))
    )
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-12)


def test_of_one_feature_it_is_the_squared_difference_of_means_and_of_deviations() -> None:
    first, second = np.array([[0.0], [2.0]]), np.array([[5.0], [5.0], [11.0]])
    deviations = np.sqrt(2.0), np.sqrt(12.0)
    assert frechet_distance(first, second) == pytest.approx(6.0**2 + (deviations[1] - deviations[0]) ** 2)


def test_a_table_is_at_zero_from_itself_even_where_features_do_not_vary() -> None:
    features = np.random.default_rng(0).normal(size=(50, 6))
    features[:, 2], features[:, 3] = 1.0, features[:, 4]
    assert 0 <= frechet_distance(features, features[::-1]) < 1e-9
    moved = features + np.array([0.0, 0.0, 3.0, 0.0, 0.0, 0.0])
    assert frechet_distance(features, moved) == pytest.approx(9.0)


# --- kernel


def test_the_kernel_distance_of_a_subset_is_that_of_a_naive_oracle() -> None:
    random = np.random.default_rng(0)
    first, second = random.normal(size=(130, 5)), random.normal(0.3, 1, size=(130, 5))

    def kernel(one: np.ndarray, other: np.ndarray) -> float:
        return float((sum(a * b for a, b in zip(one, other, strict=True)) / 5 + 1) ** 3)

    within = sum(kernel(side[i], side[j]) for side in (first, second) for i in range(130) for j in range(130) if i != j)
    across = sum(kernel(one, other) for one in first for other in second)
    assert _discrepancy(first, second) == pytest.approx(within / (130 * 129) - 2 * across / 130**2, rel=1e-9)


def test_the_kernel_distance_of_two_samples_of_one_population_is_zero_on_average() -> None:
    random = np.random.default_rng(0)
    found = [
        kernel_distance(random.normal(size=(80, 4)), random.normal(size=(80, 4)), seed=seed).mean for seed in range(60)
    ]
    values = np.array(found, dtype=float)
    assert (values < 0).any()
    assert abs(values.mean()) < 4 * values.std(ddof=1) / np.sqrt(60)


def test_the_kernel_distance_says_how_many_rows_a_subset_has() -> None:
    random = np.random.default_rng(0)
    found = kernel_distance(random.normal(size=(90, 4)), random.normal(2, 1, size=(81, 4)), seed=0)
    assert found.subset == 20
    assert found.mean is not None
    assert found.sd is not None
    assert found.mean > 3 * found.sd > 0
    few = kernel_distance(random.normal(size=(7, 4)), random.normal(size=(90, 4)), seed=0)
    assert few == KernelDistance(reason="fewer than eight rows on a side")


# --- shuffling


def test_shuffled_columns_keep_their_values_and_lose_each_other() -> None:
    shuffled = shuffle_columns(TRAIN, WINDOWED, seed=0)
    for name in WINDOWED.columns:
        assert shuffled.records[name].dtype == TRAIN.records[name].dtype
        assert shuffled.records[name].value_counts(dropna=False).to_dict() == pytest.approx(
            TRAIN.records[name].value_counts(dropna=False).to_dict()
        )
        assert not shuffled.records[name].equals(TRAIN.records[name])
    before, after = (
        np.corrcoef(table.records["age"].to_numpy(float, na_value=50), np.nan_to_num(table.values[:, 0, 0], nan=90.0))
        for table in (TRAIN, shuffled)
    )
    assert before[0, 1] > 0.5
    assert abs(after[0, 1]) < 0.2


def test_shuffled_windows_keep_each_step_of_the_units_that_reach_it() -> None:
    shuffled = shuffle_columns(TRAIN, WINDOWED, seed=0)
    assert np.array_equal(shuffled.lengths, TRAIN.lengths)
    assert np.isnan(shuffled.values[np.arange(6) >= TRAIN.lengths[:, None]]).all()
    for step in range(6):
        there = TRAIN.lengths > step
        for channel in range(2):
            one, other = (np.sort(table.values[there, step, channel]) for table in (TRAIN, shuffled))
            assert np.array_equal(one, other, equal_nan=True)
    assert not np.array_equal(shuffled.values, TRAIN.values, equal_nan=True)


# --- all together


@pytest.fixture(autouse=True, scope="module")
def few_resamples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frechet, "_RESAMPLES", 60)
        patch.setattr(frechet, "_SUBSETS", 40)
        yield


def measure(table: WindowedTable | Population, **changed: Any) -> Frechet:
    arguments: dict[str, Any] = {"seed": 0, "most": 700} | changed
    return measure_frechet(table, TRAIN, HOLDOUT, WINDOWED, **arguments)


@pytest.fixture(scope="module")
def measured() -> dict[str, Frechet]:
    shuffled = shuffle_columns(FRESH, WINDOWED, seed=5)
    tables = {"fresh": FRESH, "half": mixed(FRESH, shuffled), "shuffled": shuffled, "noise": noise(800, 4)}
    return {name: measure(table) for name, table in tables.items()}


def value(figure: Figure | KernelDistance) -> float:
    found = figure.value if isinstance(figure, Figure) else figure.mean
    assert found is not None
    return found


@pytest.mark.parametrize("which", ["distance", "normalised", "kernel"])
def test_fresh_rows_are_nearer_than_half_shuffled_than_shuffled_than_noise(
    measured: dict[str, Frechet], which: str
) -> None:
    order = [value(getattr(measured[name], which)) for name in ("fresh", "half", "shuffled", "noise")]
    assert order == sorted(order)
    assert order[1] > order[0] + 0.1 * (order[2] - order[0])


def test_fresh_rows_are_at_the_floor_and_shuffled_ones_at_the_ceiling(measured: dict[str, Frechet]) -> None:
    fresh, shuffled = measured["fresh"], measured["shuffled"]
    assert fresh.normalised.low is not None
    assert fresh.normalised.high is not None
    assert fresh.normalised.low < 0 < fresh.normalised.high
    assert abs(value(shuffled.normalised) - 1) < 0.25
    assert value(shuffled.kernel_ceiling) > 3 * abs(value(shuffled.kernel_floor))


def test_the_floor_and_the_ceiling_are_of_real_rows_alone(measured: dict[str, Frechet]) -> None:
    for name in ("floor", "ceiling", "kernel_floor", "kernel_ceiling"):
        assert len({value(getattr(one, name)) for one in measured.values()}) == 1


def test_each_figure_lies_in_its_interval_and_is_of_as_many_rows(measured: dict[str, Frechet]) -> None:
    for one in measured.values():
        assert one.rows == 700
        for figure in (one.distance, one.floor, one.ceiling, one.normalised):
            assert figure.n == 700
            assert figure.low is not None
            assert figure.high is not None
            assert figure.low <= value(figure) <= figure.high
        assert value(one.distance) >= 0
        expected = (value(one.distance) - value(one.floor)) / (value(one.ceiling) - value(one.floor))
        assert value(one.normalised) == pytest.approx(expected)
        assert one.kernel.subset == 175


def test_it_is_json_and_the_same_for_the_same_seed(measured: dict[str, Frechet]) -> None:
    again = measure(FRESH)
    assert again == measured["fresh"]
    assert json.loads(json.dumps(asdict(again), allow_nan=False)) == asdict(again)
    assert (again.embedding, again.sha256) == ("rf64-1", EMBEDDING.sha256)
    assert measure(FRESH, seed=1).distance != again.distance


def test_a_copy_of_the_training_rows_is_at_the_floor(measured: dict[str, Frechet]) -> None:
    copied = measure(TRAIN)
    assert value(copied.distance) < value(copied.ceiling) / 2
    assert copied.normalised.low is not None
    assert copied.normalised.low < 0
    # All rows of both: the copy is the training table itself.
    table = TRAIN.take(np.arange(400))
    whole = measure_frechet(table, table, HOLDOUT.take(np.arange(400)), WINDOWED, seed=0)
    assert value(whole.distance) == pytest.approx(value(whole.floor), rel=1e-9)


def flipped(table: WindowedTable, share: float) -> WindowedTable:
    codes = table.records["ill"].cat.codes.to_numpy().copy()
    chosen = np.random.default_rng(9).random(len(codes)) < share
    codes[chosen] = 1 - codes[chosen]
    return rows(table, ill=pd.Categorical.from_codes(codes, dtype=table.records["ill"].dtype))


def shifted(table: WindowedTable) -> WindowedTable:
    return rows(table, age=(table.records["age"] + 5).clip(upper=100))


def one_shuffled(table: WindowedTable) -> WindowedTable:
    order = np.random.default_rng(9).permutation(len(table.records))
    return rows(table, amount=table.records["amount"].to_numpy()[order])


def test_small_changes_stand_above_two_real_samples() -> None:
    network = FrozenEmbedding(STUDY)

    def sample(seed: int) -> WindowedTable:
        return WindowedTable.without_windows(draw_records(2500, np.random.default_rng(seed)))

    pool = [network.embed(sample(seed)) for seed in range(100, 106)]
    floors = np.array([frechet_distance(pool[at], pool[at + 3]) for at in range(3)])
    for changed in (flipped(sample(200), 0.05), shifted(sample(200)), one_shuffled(sample(200))):
        assert frechet_distance(network.embed(changed), pool[5]) > floors.max() + 3 * floors.std(ddof=1)


def test_intervals_are_moved_so_that_draws_have_the_value_as_their_mean() -> None:
    figure = _figure(5.0, np.linspace(10.0, 30.0, 2001), 7)
    assert (figure.value, figure.n) == (5.0, 7)
    assert figure.low == 0.0  # -4.5, were a distance not positive
    assert figure.high == pytest.approx(14.5)


def test_rows_of_one_unit_are_drawn_together() -> None:
    # Every row four times over, as one unit or as four: the second claims to know more than it does.
    repeated = HOLDOUT.take(np.repeat(np.arange(200), 4))
    together, apart = (
        measure_frechet(FRESH, TRAIN, Population(repeated, units), WINDOWED, seed=0)
        for units in (np.repeat(np.arange(200), 4), np.arange(800))
    )
    assert together.distance.value == apart.distance.value
    widths = [one.distance.high - one.distance.low for one in (together, apart)]  # type: ignore[operator]
    assert widths[0] > 1.3 * widths[1]


def test_few_hold_out_rows_are_compared_with_as_few_of_the_others() -> None:
    assert measure_frechet(FRESH, TRAIN, HOLDOUT.take(np.arange(FEWEST)), WINDOWED, seed=0).rows == FEWEST
    few = measure_frechet(FRESH, TRAIN, HOLDOUT.take(np.arange(FEWEST - 1)), WINDOWED, seed=0)
    figures = [few.distance, few.floor, few.ceiling, few.normalised, few.kernel, few.kernel_floor, few.kernel_ceiling]
    assert {figure.reason for figure in figures} == {f"fewer than {FEWEST} rows on a side"}
    assert all(figure.value is None for figure in figures if isinstance(figure, Figure))


def test_where_columns_do_not_hang_together_nothing_is_normalised() -> None:
    independent = [noise(400, seed) for seed in (1, 2, 3)]
    found = measure_frechet(*independent, WINDOWED, seed=0)
    assert found.normalised.value is None
    assert found.normalised.reason == "columns that are shuffled are no further from the hold-out than real rows are"
    assert found.distance.value is not None


def test_it_works_without_windows() -> None:
    tables = [WindowedTable.without_windows(table.records) for table in (FRESH, TRAIN, HOLDOUT)]
    found = measure_frechet(*tables, STUDY, seed=0, most=300)
    assert found.rows == 300
    assert found.sha256 == FrozenEmbedding(STUDY).sha256
    assert value(found.ceiling) > value(found.floor)
