"""Windows that are alike, or differ in one known respect alone; slow oracles; every edge of the definitions."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch

from common.data.schema import CategoricalColumn, Column, ContinuousColumn, parse_table
from common.data.windows import WindowedTable
from common.evaluation.scores import MEASURES, Scores, score
from common.evaluation.sequences import (
    ChannelFidelity,
    Prediction,
    SequenceFidelity,
    measure_prediction,
    measure_sequence_fidelity,
    measure_sequence_utility,
    predict_windows,
    summarise_windows,
)
from common.evaluation.utility import measure_utility
from common.evaluation.windows import read
from common.study import Study, parse_study

CLASSIFIERS = ("gradient_boosting_static", "gradient_boosting_on_summaries", "sequence_classifier")
DISCRIMINATORS = ("discriminative_score", "summaries_auc", "joint_auc")
STUDY: Study = parse_study(
    {
        "name": "toy",
        "label": {"column": "ill", "positive": "yes"},
        "columns": {
            "sex": {"type": "categorical", "categories": ["f", "m"]},
            "age": {"type": "integer", "min": 0, "max": 100, "missing": True},
            "ill": {"type": "categorical", "categories": ["no", "yes"]},
        },
        "privacy": {"epsilon": 1, "delta": 1e-6},
    },
    source="test",
)
PULSE = ContinuousColumn(type="continuous", min=0, max=200, missing=True)
DOSE = ContinuousColumn(type="continuous", min=0, max=1e5, scale="log", missing=True)
WARD = CategoricalColumn(type="categorical", categories=("a", "b", "c"), missing=True)
# A categorical channel in between: positions among the numeric ones differ from positions among all.
CHANNELS: Mapping[str, Column] = {"pulse": PULSE, "ward": WARD, "dose": DOSE}


def records(sex: np.ndarray, age: np.ndarray, ill: np.ndarray) -> pd.DataFrame:
    text = {"sex": np.where(sex, "m", "f"), "age": age.astype(str), "ill": np.where(ill, "yes", "no")}
    return parse_table(pd.DataFrame(text, dtype="str"), STUDY.columns)


def draw(units: int, seed: int, *, steps: int = 12, missing: float = 0.05, signal: str = "trend") -> WindowedTable:
    """Pulse and logarithmic dose are AR(1) with correlated noise about a level of each unit; the ward changes at times.

    `signal` is what the label follows: the trend of the pulse, the ward at the end, or the number of steps.
    """
    generator = np.random.default_rng(seed)
    noise = generator.normal(size=(units, steps, 2)) @ np.array([[1.0, 0.7], [0.0, 0.7]])
    course = noise.copy()
    course[:, 0] /= math.sqrt(1 - 0.9**2)
    for step in range(1, steps):
        course[:, step] += 0.9 * course[:, step - 1]
    course += 0.7 * generator.normal(size=(units, 1, 2))
    ward = generator.integers(0, 3, (units, steps)).astype(float)
    for step in range(1, steps):
        stays = generator.random(units) < 0.8
        ward[stays, step] = ward[stays, step - 1]
    values = np.stack([80 + 10 * course[:, :, 0], ward, np.expm1(5 + 0.5 * course[:, :, 1])], axis=2)
    lengths = generator.integers(1, steps + 1, units) if signal == "length" else np.full(units, steps)
    follows = {
        "trend": course[:, -1, 0] - course[:, 0, 0],
        "ward": 3.0 * (ward[:, -1] == 1) - 1,
        "length": (lengths - steps / 2) / 2,
    }
    ill = follows[signal] + 0.5 * generator.logistic(size=units) > 0
    values[generator.random(values.shape) < missing] = np.nan
    values[np.arange(steps) >= lengths[:, None]] = np.nan
    people = records(generator.integers(0, 2, units), generator.integers(18, 90, units), ill)
    return WindowedTable(people, values, lengths.astype(np.int64))


def with_values(table: WindowedTable, **channels: np.ndarray | float) -> WindowedTable:
    """The same table, some of its channels replaced."""
    values = table.values.copy()
    for name, replaced in channels.items():
        values[:, :, list(CHANNELS).index(name)] = replaced
    return replace(table, values=values)


def fidelity(synthetic: WindowedTable, real: WindowedTable, **channels: Column) -> SequenceFidelity:
    return measure_sequence_fidelity(synthetic, real, STUDY, channels or CHANNELS, seed=0)


def known(figure: float | None) -> float:
    assert figure is not None
    assert math.isfinite(figure)
    return figure


def figures_of(measured: SequenceFidelity) -> dict[str, float | None]:
    return {name: value for name, value in asdict(measured).items() if name not in ("channels", "reasons")}


def check_whole(measured: SequenceFidelity) -> None:
    """Every figure is a finite float, or None with its reason."""
    parts: list[SequenceFidelity | ChannelFidelity] = [measured, *measured.channels.values()]
    for part in parts:
        figures = {name: value for name, value in asdict(part).items() if name not in ("channels", "reasons")}
        assert {name for name, value in figures.items() if value is None} == part.reasons.keys()
        assert all(type(value) is float and math.isfinite(value) for value in figures.values() if value is not None)
    json.dumps(asdict(measured), allow_nan=False)


REAL = draw(300, 1)


FEW, FEW_REAL = draw(80, 2), draw(80, 3)


@pytest.fixture(scope="module")
def floor() -> SequenceFidelity:
    return fidelity(draw(300, 2), REAL)


@pytest.fixture(scope="module")
def floor_of_few() -> SequenceFidelity:
    return fidelity(FEW, FEW_REAL)


def test_fresh_real_windows_are_near(floor: SequenceFidelity) -> None:
    check_whole(floor)
    assert floor.reasons == {}
    assert known(floor.discriminative_score) < 0.12  # three standard deviations of 200 held-out units
    assert known(floor.summaries_auc) == pytest.approx(0.5, abs=0.13)
    assert known(floor.joint_auc) == pytest.approx(0.5, abs=0.13)
    assert known(floor.numeric_marginal) < 0.2
    for name, figure in figures_of(floor).items():
        if name not in (*DISCRIMINATORS, "numeric_marginal"):
            assert known(figure) < 0.08, name


def test_steps_out_of_order_are_seen_over_time_alone(floor: SequenceFidelity) -> None:
    table = draw(300, 2)
    order = np.random.default_rng(0).random(table.values.shape[:2]).argsort(axis=1)
    measured = fidelity(replace(table, values=np.take_along_axis(table.values, order[:, :, None], axis=1)), REAL)
    assert known(measured.discriminative_score) > 0.2
    assert known(measured.summaries_auc) > 0.9
    assert known(measured.autocorrelation) > 2 * known(floor.autocorrelation)
    assert known(measured.autocorrelation_within) > 0.2 + known(floor.autocorrelation_within)
    assert known(measured.agreement) > 0.2
    assert known(measured.change) > 0.5
    assert measured.cross_correlation == pytest.approx(known(floor.cross_correlation))
    assert known(measured.numeric_marginal) < 0.2


def test_channels_of_different_units_are_seen_between_channels_alone(floor_of_few: SequenceFidelity) -> None:
    measured = fidelity(with_values(FEW, dose=FEW.values[::-1, :, 2]), FEW_REAL)
    assert known(measured.cross_correlation) > 0.4
    unmoved = {"autocorrelation", "autocorrelation_within", "agreement", "numeric_marginal", "change", "missing"}
    assert {name: figures_of(measured)[name] for name in unmoved} == pytest.approx(
        {name: figures_of(floor_of_few)[name] for name in unmoved}
    )


def test_a_level_that_moves_at_one_step_is_seen_there() -> None:
    pulse = FEW.values[:, :, 0]
    measured = fidelity(with_values(FEW, pulse=pulse + 40.0 * (np.arange(12) == 5)), FEW)
    share = (~np.isnan(pulse[:, 5])).sum() / (~np.isnan(pulse)).sum()
    assert measured.channels["pulse"].marginal == pytest.approx(40.0 / np.nanstd(pulse) * share)
    assert measured.numeric_marginal == pytest.approx(40.0 / np.nanstd(pulse) * share / 2)


def test_windows_of_other_units_are_seen_beside_the_columns_alone() -> None:
    # Windows tell the label: given to other units, they are still right by themselves.
    def told(table: WindowedTable) -> WindowedTable:
        ill = (table.records["ill"] == "yes").to_numpy()
        return with_values(table, pulse=table.values[:, :, 0] + 60 * ill[:, None])

    table = told(draw(600, 2, steps=4))
    people = table.records.iloc[np.random.default_rng(9).permutation(600)]
    measured = fidelity(replace(table, records=people), told(draw(600, 1, steps=4)))
    assert known(measured.joint_auc) > 0.65
    assert known(measured.summaries_auc) < 0.6


def naive_correlation(pairs: list[tuple[float, float]]) -> float:
    size = math.sqrt(sum(one**2 for one, _ in pairs) * sum(two**2 for _, two in pairs))
    return sum(one * two for one, two in pairs) / size if size > 1e-9 else math.nan


def naive_wasserstein(one: list[float], two: list[float]) -> float:
    """Area between two distribution functions."""
    ends = sorted({*one, *two})
    return sum(
        (after - before) * abs(sum(v <= before for v in one) / len(one) - sum(v <= before for v in two) / len(two))
        for before, after in pairwise(ends)
    )


def naive_difference(first: list[float], second: list[float]) -> float:
    gaps = [
        abs((0 if math.isnan(one) else one) - (0 if math.isnan(two) else two))
        for one, two in zip(first, second, strict=True)
        if not (math.isnan(one) and math.isnan(two))
    ]
    return sum(gaps) / len(gaps)


def numbers_of(table: WindowedTable, at: int) -> list[list[float]]:
    """Steps of each unit on the channel's scale, NaN where missing."""
    scaled = [table.values[:, :, 0], table.values[:, :, 1], np.log1p(table.values[:, :, 2])][at]
    return [[float(value) for value in unit] for unit in scaled]


def centred(units: list[list[float]], *, within: bool) -> list[list[float]]:
    def mean(values: list[float]) -> float:
        present = [value for value in values if not math.isnan(value)]
        return sum(present) / len(present) if present else math.nan

    pooled = mean([value for unit in units for value in unit])
    return [[value - (mean(unit) if within else pooled) for value in unit] for unit in units]


def naive_autocorrelations(table: WindowedTable, at: int, *, within: bool) -> list[float]:
    units = centred(numbers_of(table, at), within=within)
    steps = len(units[0])
    return [
        naive_correlation(
            [
                (unit[step], unit[step + lag])
                for unit in units
                for step in range(steps - lag)
                if not math.isnan(unit[step] + unit[step + lag])
            ]
        )
        for lag in range(1, min(6, steps - 1) + 1)
    ]


def naive_cross_correlation(table: WindowedTable) -> float:
    pulse, dose = (centred(numbers_of(table, at), within=False) for at in (0, 2))
    pairs = zip([value for unit in pulse for value in unit], [value for unit in dose for value in unit], strict=True)
    return naive_correlation([(one, two) for one, two in pairs if not math.isnan(one + two)])


def naive_over_steps(
    ours: list[list[float]], theirs: list[list[float]], distance: Callable[[list[float], list[float]], float]
) -> float:
    total, weight = 0.0, 0
    for step in range(len(ours[0])):
        one, two = ([unit[step] for unit in units if not math.isnan(unit[step])] for units in (ours, theirs))
        if one and two:
            total, weight = total + len(two) * distance(one, two), weight + len(two)
    return total / weight


def naive_changes(units: list[list[float]]) -> list[float]:
    changes = [after - before for unit in units for before, after in pairwise(unit)]
    return [change for change in changes if not math.isnan(change)]


def naive_missing(ours: WindowedTable, theirs: WindowedTable, at: int) -> float:
    first, second = (
        [
            [float(math.isnan(value)) if step < length else math.nan for step, value in enumerate(unit)]
            for unit, length in zip(table.values[:, :, at], table.lengths, strict=True)
        ]
        for table in (ours, theirs)
    )
    return naive_over_steps(first, second, lambda one, two: abs(sum(one) / len(one) - sum(two) / len(two)))


def total_variation(one: list[float], two: list[float]) -> float:
    return sum(abs(one.count(v) / len(one) - two.count(v) / len(two)) for v in {*one, *two}) / 2


@pytest.mark.parametrize(("steps", "missing"), [(2, 0.0), (5, 0.3), (9, 0.3), (9, 0.7)])
def test_every_difference_is_that_of_a_slow_oracle(steps: int, missing: float) -> None:
    ours, theirs = (draw(units, steps, steps=steps, missing=missing, signal="length") for units in (9, 14))
    measured = fidelity(ours, theirs)
    marginals, changes = {}, []
    for at, name in ((0, "pulse"), (2, "dose")):
        one, two = numbers_of(ours, at), numbers_of(theirs, at)
        spread = float(np.nanstd(two))
        marginals[name] = naive_over_steps(one, two, naive_wasserstein) / spread
        steps_apart = naive_changes(one), naive_changes(two)
        changes.append(naive_wasserstein(*steps_apart) / float(np.std(steps_apart[1])))
        channel = measured.channels[name]
        assert channel.marginal == pytest.approx(marginals[name])
        assert channel.change == pytest.approx(changes[-1])
        assert channel.lag_1_real == pytest.approx(naive_autocorrelations(theirs, at, within=False)[0])
        assert channel.lag_1_synthetic == pytest.approx(naive_autocorrelations(ours, at, within=False)[0])
        assert channel.lag_1_within_real == pytest.approx(naive_autocorrelations(theirs, at, within=True)[0])
        assert channel.lag_1_within_synthetic == pytest.approx(naive_autocorrelations(ours, at, within=True)[0])
    wards = numbers_of(ours, 1), numbers_of(theirs, 1)
    agreed = [[change == 0 for change in naive_changes(ward)] for ward in wards]
    shares = [sum(pairs) / len(pairs) for pairs in agreed]
    gaps = [naive_missing(ours, theirs, at) for at in range(3)]
    both = {
        within: naive_difference(
            *([r for at in (0, 2) for r in naive_autocorrelations(t, at, within=within)] for t in (ours, theirs))
        )
        for within in (False, True)
    }
    expected = {
        "autocorrelation": both[False],
        "autocorrelation_within": both[True],
        "agreement": abs(shares[0] - shares[1]),
        "cross_correlation": abs(naive_cross_correlation(ours) - naive_cross_correlation(theirs)),
        "numeric_marginal": sum(marginals.values()) / 2,
        "categorical_marginal": naive_over_steps(*wards, total_variation),
        "missing": sum(gaps) / 3,
        "change": sum(changes) / 2,
        "length": total_variation(ours.lengths.tolist(), theirs.lengths.tolist()),
    }
    found = {name: value for name, value in figures_of(measured).items() if name not in DISCRIMINATORS}
    assert found == pytest.approx(expected)
    ward = measured.channels["ward"]
    assert (ward.lag_1_synthetic, ward.lag_1_real) == pytest.approx(shares)
    assert [measured.channels[name].missing for name in CHANNELS] == pytest.approx(gaps)


def test_a_table_is_no_distance_from_itself_in_any_order() -> None:
    table = draw(20, 3, missing=0.3, signal="length")
    for same in (table, table.take(np.random.default_rng(0).permutation(20))):
        for name, figure in figures_of(fidelity(same, table)).items():
            if name not in DISCRIMINATORS:
                assert figure == pytest.approx(0.0, abs=1e-12), name


@pytest.mark.parametrize("which", ["synthetic", "real"])
def test_a_table_without_units_gives_none_and_the_reason(which: str) -> None:
    nobody = draw(10, 1).take(np.arange(0))
    measured = fidelity(nobody, REAL) if which == "synthetic" else fidelity(REAL, nobody)
    check_whole(measured)
    assert set(figures_of(measured).values()) == {None}
    assert set(measured.reasons.values()) == {f"{which}: the table has no units"}


def test_two_units_leave_none_to_hold_out_and_three_do() -> None:
    for units in (1, 2, 3):
        measured = fidelity(draw(units, 1), FEW.take(np.arange(10)))
        check_whole(measured)
        for name in DISCRIMINATORS:
            assert measured.reasons.get(name) == (None if units == 3 else "a table has fewer than 3 units")


def test_one_step_has_no_figure_of_two_steps() -> None:
    measured = fidelity(draw(20, 1, steps=1), draw(20, 2, steps=1))
    check_whole(measured)
    paired = {"autocorrelation", "autocorrelation_within", "agreement", "change"}
    assert measured.reasons.keys() == paired
    assert known(measured.numeric_marginal) > 0


@pytest.mark.parametrize("name", ["pulse", "ward", "dose"])
def test_a_channel_that_is_missing_in_one_table_differs_in_missing_values_alone(name: str) -> None:
    table, full = draw(12, 1, missing=0.0), draw(12, 2, missing=0.0)
    for one, two in ((with_values(table, **{name: np.nan}), full), (full, with_values(table, **{name: np.nan}))):
        measured = fidelity(one, two)
        check_whole(measured)
        assert measured.missing == pytest.approx(1 / 3)
        assert measured.channels[name].marginal is None
        assert measured.channels[name].missing == 1.0
        assert (measured.agreement is None) == (measured.categorical_marginal is None) == (name == "ward")
        if name == "pulse":
            # The other side's correlations stand against none, as against 0.
            assert known(measured.autocorrelation) > 0.2
            assert known(measured.cross_correlation) > 0.3
            assert measured.channels["dose"].missing == 0.0


def test_channels_that_are_missing_in_both_tables_leave_nothing_to_compare() -> None:
    tables = [replace(table, values=np.full_like(table.values, np.nan)) for table in (draw(9, 1), draw(9, 2))]
    measured = fidelity(*tables)
    check_whole(measured)
    figures = figures_of(measured)
    assert {name for name, figure in figures.items() if figure is not None} == {*DISCRIMINATORS, "missing", "length"}
    assert (measured.missing, measured.length, measured.discriminative_score) == (0.0, 0.0, 0.0)


def test_units_without_a_step_are_compared_by_their_number_of_steps() -> None:
    nothing = replace(draw(9, 1), values=np.full((9, 12, 3), np.nan), lengths=np.zeros(9, dtype=np.int64))
    measured = fidelity(nothing, draw(9, 2))
    check_whole(measured)
    assert measured.length == 1.0
    assert measured.missing is None


def test_a_constant_channel_is_measured_by_the_width_of_its_bounds() -> None:
    # 0.1 is no binary fraction: a rounded mean of it differs from it.
    flat = WindowedTable(REAL.records.iloc[:2], np.full((2, 4, 1), 0.1), np.full(2, 4))
    for column, value, width in (
        (PULSE, 30.1, 200.0),
        (ContinuousColumn(type="continuous", min=-100, max=0.5), -99.9, 100.5),
        (DOSE, math.expm1(2.0) + 0.1, None),
    ):
        same = fidelity(flat, flat, flat=column)
        check_whole(same)
        assert (same.numeric_marginal, same.change) == (0.0, 0.0)
        assert same.autocorrelation is None
        measured = fidelity(replace(flat, values=np.full((2, 4, 1), value)), flat, flat=column)
        check_whole(measured)
        expected = (
            abs(value - 0.1) / width if width is not None else (math.log1p(value) - math.log1p(0.1)) / math.log1p(1e5)
        )
        assert measured.numeric_marginal == pytest.approx(expected)
        assert measured.change == 0.0


def test_a_channel_that_stands_still_in_one_table_has_lost_its_correlation() -> None:
    moving = draw(20, 1, missing=0.0)
    still = with_values(draw(20, 2, missing=0.0), pulse=80.1, dose=7.1)
    for measured in (fidelity(still, moving), fidelity(moving, still)):
        check_whole(measured)
        assert known(measured.autocorrelation) > 0.4
        assert known(measured.autocorrelation_within) > 0.1
        assert known(measured.cross_correlation) > 0.4
        which = "synthetic" if measured.channels["pulse"].lag_1_synthetic is None else "real"
        assert measured.channels["pulse"].reasons == {
            f"lag_1_{which}": f"{which}: no two steps in a row, or the values do not vary",
            f"lag_1_within_{which}": f"{which}: no two steps in a row, or the values do not vary within units",
        }


def test_levels_of_units_count_about_the_common_mean_and_not_about_their_own() -> None:
    # Every unit stands at a level of its own but for noise without memory.
    generator = np.random.default_rng(0)
    levels = with_values(FEW, pulse=80 + 20 * generator.normal(size=(80, 1)) + 3 * generator.normal(size=(80, 12)))
    measured = fidelity(levels, FEW_REAL).channels["pulse"]
    assert known(measured.lag_1_synthetic) > 0.95
    assert known(measured.lag_1_within_synthetic) == pytest.approx(-1 / 11, abs=0.06)


@pytest.mark.parametrize("minimum", [-1e300, 0.0])
def test_bounds_near_the_largest_float_overflow_nowhere(minimum: float) -> None:
    column = ContinuousColumn(type="continuous", min=minimum, max=1e300, missing=True)
    tables = [replace(t, values=t.values[:, :, :1] * 1e297) for t in (draw(4, 1), draw(4, 2))]
    measured = fidelity(*tables, pulse=column)
    check_whole(measured)
    assert known(measured.channels["pulse"].lag_1_real) == pytest.approx(
        known(
            fidelity(*(replace(t, values=t.values / 1e297) for t in tables), pulse=PULSE).channels["pulse"].lag_1_real
        )
    )
    assert known(measure_prediction(tables[0], tables[1], {"pulse": column}, seed=0).error) < 2


def test_arrays_of_different_shapes_are_refused() -> None:
    table = REAL.take(np.arange(5))
    for wrong in (
        replace(table, values=table.values[:, :, :2]),
        replace(table, values=table.values[:4]),
        replace(table, lengths=table.lengths[:4]),
        replace(table, lengths=table.lengths + 1),
        replace(table, records=table.records.iloc[:4]),
    ):
        with pytest.raises(ValueError, match=r"^synthetic: expected"):
            fidelity(wrong, table)
        with pytest.raises(ValueError, match=r"^test: expected"):
            measure_sequence_utility(table, wrong, STUDY, CHANNELS, seed=0)
        with pytest.raises(ValueError, match=r"^train: expected"):
            measure_prediction(wrong, table, CHANNELS, seed=0)
    with pytest.raises(ValueError, match=r"^values: expected as many steps in both tables$"):
        fidelity(replace(table, values=table.values[:, :9], lengths=np.full(5, 9)), table)


def utility(train: WindowedTable, test: WindowedTable) -> dict[str, Scores]:
    return measure_sequence_utility(train, test, STUDY, CHANNELS, seed=0)


@pytest.mark.parametrize("signal", ["trend", "ward", "length"])
def test_what_the_window_alone_tells_is_learnt_from_it_alone(signal: str) -> None:
    measured = utility(draw(400, 1, signal=signal), draw(400, 2, signal=signal))
    assert tuple(measured) == CLASSIFIERS
    static, summaries, network = (known(measured[name].auc) for name in CLASSIFIERS)
    assert static == pytest.approx(0.5, abs=0.1)
    assert min(summaries, network) > 0.7


def test_summaries_are_what_they_are_called() -> None:
    nan = math.nan
    channels: dict[str, Column] = {
        "pulse": ContinuousColumn(type="continuous", min=0, max=1, missing=True),
        "ward": WARD,
    }
    values = np.array([[[0.5, 1], [nan, 1], [0.25, nan], [1.0, 2], [0.75, 0]], [[nan, nan]] * 5])
    table = WindowedTable(REAL.records.iloc[:2], values, np.array([5, 0]))
    present, time = np.array([0.5, 0.25, 1.0, 0.75]), np.array([0, 2, 3, 4])
    slope = float(np.polyfit(time, present, 1)[0])
    expected = [
        *(5, 1 / 5, 1 / 5),  # steps, missing share of each channel
        *(0.625, present.std(), 0.25, 1.0, 0.5, 0.75, slope, 0.5),  # the step from the first to the third is not one
        *(1, 1 / 4, 2 / 4, 1 / 4),  # changes, shares of the values
    ]
    found = summarise_windows(read(table, channels, "table"))
    np.testing.assert_allclose(found[0], expected)
    np.testing.assert_array_equal(found[1], [0, nan, nan, *[nan] * 8, 0, nan, nan, nan])


def test_what_the_columns_tell_is_learnt_by_all_and_by_the_static_trees_as_without_windows() -> None:
    def aged(table: WindowedTable) -> WindowedTable:
        age = table.records["age"].to_numpy(dtype=float)
        return replace(table, records=records(age > 50, age.astype(int), age > 40))

    train, test = aged(draw(300, 1)), aged(draw(300, 2))
    measured = utility(train, test)
    assert (
        measured["gradient_boosting_static"]
        == (measure_utility(train.records, test.records, STUDY, seed=0)["gradient_boosting"])
    )
    assert min(known(scores.auc) for scores in measured.values()) > 0.9


def test_shuffled_labels_give_chance() -> None:
    def shuffled(table: WindowedTable) -> WindowedTable:
        ill = np.random.default_rng(0).permutation(table.records["ill"])
        return replace(table, records=table.records.assign(ill=ill).astype(table.records.dtypes.to_dict()))

    # The standard deviation of the AUC of 800 shuffled units is 0.02.
    for scores in utility(shuffled(draw(200, 1, steps=5)), shuffled(draw(800, 2, steps=5))).values():
        assert scores.auc == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("name", ["pulse", "ward", "dose"])
def test_missing_itself_can_be_learnt(name: str) -> None:
    def telling(table: WindowedTable) -> WindowedTable:
        ill = (table.records["ill"] == "yes").to_numpy()
        values = table.values[:, :, list(CHANNELS).index(name)].copy()
        values[ill, 3:6] = np.nan
        return with_values(table, **{name: values})

    measured = utility(telling(draw(200, 1, steps=6)), telling(draw(100, 2, steps=6)))
    assert known(measured["gradient_boosting_on_summaries"].auc) > 0.95
    assert known(measured["sequence_classifier"].auc) > 0.95


@pytest.mark.parametrize(
    "spoil",
    [
        lambda table: replace(table, values=np.full_like(table.values, np.nan)),
        lambda table: with_values(table, pulse=0.1, ward=1.0, dose=0.1),
        lambda table: replace(
            table, values=np.full_like(table.values, np.nan), lengths=np.zeros(len(table.lengths), dtype=np.int64)
        ),
        lambda table: replace(table, records=table.records.assign(age=table.records["age"].mask(table.lengths > 0))),
        lambda table: replace(table, values=table.values[:, :1], lengths=np.minimum(table.lengths, 1)),
    ],
    ids=["missing", "constant", "no-steps", "age-missing", "one-step"],
)
def test_training_windows_that_teach_nothing_are_no_error(spoil: Callable[[WindowedTable], WindowedTable]) -> None:
    train, test = draw(40, 1, steps=5), draw(40, 2, steps=5)
    for one, two in ((spoil(train), test), (train, spoil(test))):
        for scores in utility(one, two).values():
            # One score for all, or for all who differ, has no slope.
            assert scores.reason is None or scores.reason.startswith("calibration_slope: ")
            assert tuple(scores.intervals) == MEASURES
            for name, (low, high) in scores.intervals.items():
                assert math.isfinite(low + high + known(getattr(scores, name)))


def test_windows_shorter_in_training_are_no_error() -> None:
    train, test = draw(60, 1, steps=3), draw(60, 2, steps=12)
    assert all(known(scores.auc) > 0 for scores in utility(train, test).values())
    assert known(measure_prediction(train, test, CHANNELS, seed=0).error) > 0


def test_wide_categories_and_a_value_that_only_the_test_table_holds_are_no_error() -> None:
    wide = CategoricalColumn(type="categorical", categories=tuple(map(str, range(300))))
    generator = np.random.default_rng(0)
    table = draw(100, 1, steps=5)
    values = generator.integers(0, 299, (100, 5, 1)).astype(float)
    values[:, 0, 0] = np.where(table.records["ill"] == "yes", 3.0, 20.0)
    unseen = values.copy()
    unseen[:, 3] = 299.0
    train, test = replace(table, values=values), replace(table, values=unseen)
    measured = measure_sequence_utility(train, test, STUDY, {"code": wide}, seed=0)
    assert known(measured["gradient_boosting_on_summaries"].auc) > 0.9
    assert known(measured["sequence_classifier"].auc) > 0.9
    assert fidelity(train, test, code=wide).categorical_marginal == pytest.approx(1 / 5)


def test_a_single_class_or_no_units_give_none_and_the_reason() -> None:
    both, some = draw(60, 1), draw(60, 2)
    healthy = some.take((some.records["ill"] == "no").to_numpy())
    for spoilt, reason in (
        (healthy, "the {} table does not hold both the positive class and another"),
        (some.take(np.arange(0)), "the {} table has no rows"),
    ):
        for one, two, which in ((spoilt, both, "training"), (both, spoilt, "test")):
            measured = utility(one, two)
            assert tuple(measured) == CLASSIFIERS
            for scores in measured.values():
                assert scores == Scores(majority_accuracy=scores.majority_accuracy, reason=reason.format(which))
                assert (scores.majority_accuracy is None) == (which == "test" and spoilt is not healthy)


def test_a_prediction_does_not_depend_on_the_other_units_of_the_test_table() -> None:
    train, test = draw(150, 1, steps=5), draw(60, 2, steps=5)
    ill = (test.records["ill"] == "yes").to_numpy()
    # Recall is about the positive units alone: more of the others cannot move it.
    few, many = np.flatnonzero(~ill)[:2], np.tile(np.flatnonzero(~ill), 20)
    measured = [utility(train, test.take(np.concatenate([np.flatnonzero(ill), rest]))) for rest in (few, many)]
    for name in CLASSIFIERS:
        assert known(measured[0][name].recall) == measured[1][name].recall


def test_scores_are_those_of_what_was_predicted_once_each_unit_by_itself() -> None:
    train, test = draw(60, 1, steps=4), draw(50, 2, steps=4)
    predicted = predict_windows(train, test, STUDY, CHANNELS, seed=0)
    assert tuple(predicted) == CLASSIFIERS
    assert utility(train, test) == {name: score(found, seed=0) for name, found in predicted.items()}
    for found in predicted.values():
        np.testing.assert_array_equal(found.truth, test.records["ill"] == "yes")


def test_steps_beyond_the_last_are_not_looked_at() -> None:
    train, test = draw(80, 1, steps=5, signal="length"), draw(80, 2, steps=5, signal="length")
    longer = [
        replace(table, values=np.pad(table.values, ((0, 0), (0, 20), (0, 0)), constant_values=np.nan))
        for table in (train, test)
    ]
    found, expected = utility(*longer), utility(train, test)
    for name in CLASSIFIERS:
        assert found[name].auc == pytest.approx(known(expected[name].auc), abs=0.002)


def test_windows_without_a_value_leave_the_trees_as_they_are() -> None:
    # Sets of many categories: ordered codes would be split elsewhere.
    wards = [f"ward {number}" for number in range(40)]
    columns = {"ward": {"type": "categorical", "categories": wards}, "ill": STUDY.columns["ill"].model_dump()}
    study = parse_study({**STUDY.model_dump(mode="json", by_alias=True), "columns": columns}, source="test")
    generator = np.random.default_rng(0)
    code = generator.integers(0, 40, 600)
    ill = np.where(generator.random(40)[code] > generator.random(600), "yes", "no")
    people = parse_table(pd.DataFrame({"ward": np.array(wards)[code], "ill": ill}), study.columns)
    train, test = (
        WindowedTable(people.iloc[rows], np.full((300, 4, 3), np.nan), np.full(300, 4))
        for rows in (slice(300), slice(300, 600))
    )
    measured = measure_sequence_utility(train, test, study, CHANNELS, seed=0)
    assert measured["gradient_boosting_on_summaries"] == measured["gradient_boosting_static"]


def prediction(train: WindowedTable, test: WindowedTable, **channels: Column) -> Prediction:
    return measure_prediction(train, test, channels or CHANNELS, seed=0)


def test_the_next_step_is_foretold_about_as_well_as_it_can_be() -> None:
    generator = np.random.default_rng(0)

    def walk(units: int, memory: float) -> WindowedTable:
        course = generator.normal(size=(units, 15, 1))
        for step in range(1, 15):
            course[:, step] = memory * course[:, step - 1] + math.sqrt(1 - memory**2) * course[:, step]
        return WindowedTable(REAL.records.iloc[:units], 100 + 10 * course, np.full(units, 15))

    test = walk(300, 0.9)
    remembers, forgets = (prediction(walk(300, memory), test, pulse=PULSE) for memory in (0.9, 0.0))
    # Mean absolute value of the noise of a step, and of all of a normal value.
    assert known(remembers.error) == pytest.approx(math.sqrt(2 / math.pi * (1 - 0.9**2)), rel=0.1)
    assert known(forgets.error) == pytest.approx(math.sqrt(2 / math.pi), rel=0.1)
    assert remembers.channels == {"pulse": remembers.error}


def test_the_error_is_in_standard_deviations_of_the_test_tables_values_on_the_scale() -> None:
    train, test = draw(60, 1, missing=0.0), draw(60, 2, missing=0.0)
    ten = ContinuousColumn(type="continuous", min=0, max=2000)
    logs = ContinuousColumn(type="continuous", min=0, max=math.log1p(1e5))
    # Other units of measurement, and the logarithm by hand.
    changed = [
        with_values(table, pulse=10 * table.values[:, :, 0], dose=np.log1p(table.values[:, :, 2]))
        for table in (train, test)
    ]
    found = prediction(*changed, pulse=ten, ward=WARD, dose=logs)
    assert found.channels == pytest.approx(prediction(train, test).channels, rel=1e-3)
    assert found.error == pytest.approx(sum(found.channels.values()) / 2)
    # A test table twice as wide, foretold from a training table that is the same.
    flat = prediction(with_values(train, pulse=80.0), with_values(test, pulse=80 + 2 * (test.values[:, :, 0] - 80)))
    pulse = 80 + 2 * (test.values[:, :, 0] - 80)
    assert flat.channels["pulse"] == pytest.approx(np.abs(pulse[:, 1:] - 80).mean() / pulse.std(), rel=0.05)


def test_a_category_foretells_the_number_of_the_next_step() -> None:
    def follow(table: WindowedTable) -> WindowedTable:
        ward = table.values[:, :, 1]
        return with_values(table, pulse=np.column_stack([np.full(len(ward), 50.0), 50 + 40 * ward[:, :-1]]))

    train, test = follow(draw(200, 1, missing=0.0)), follow(draw(100, 2, missing=0.0))
    assert prediction(train, test).channels["pulse"] < 0.1


def test_a_missing_value_is_no_target() -> None:
    train, test = draw(100, 1, missing=0.0), draw(100, 2, missing=0.0)
    # What is foretold of the first steps depends on no later one.
    head = prediction(train, replace(test, values=np.where(np.arange(12)[:, None] < 4, test.values, np.nan)))
    short = prediction(train, replace(test, values=test.values[:, :4], lengths=np.full(100, 4)))
    assert head == short
    # Nor in training, where most values are missing: nothing would teach to answer the mean.
    assert known(prediction(draw(150, 1, missing=0.6), test).error) < 0.65
    hidden = with_values(train, pulse=np.where(np.arange(12) == 0, train.values[:, :, 0], np.nan))
    assert prediction(hidden, test).channels.keys() == {"dose"}
    assert prediction(train, with_values(test, pulse=np.nan)).channels.keys() == {"dose"}
    assert prediction(train, with_values(test, pulse=80.1)).channels.keys() == {"dose"}


def test_numbers_far_from_all_that_was_learnt_do_no_harm() -> None:
    train, test = draw(100, 1), draw(100, 2)
    narrow = with_values(train, pulse=80 + 1e-6 * (train.values[:, :, 0] - 80))
    assert prediction(narrow, test).channels["dose"] < 3
    assert known(utility(narrow, test)["sequence_classifier"].auc) > 0


def test_nothing_to_foretell_gives_none_and_the_reason() -> None:
    table, nobody = draw(20, 1), draw(20, 1).take(np.arange(0))
    for one, two, which in ((nobody, table, "training"), (table, nobody, "test")):
        assert prediction(one, two) == Prediction(reason=f"the {which} table has no units")
    reason = "no numeric channel varies in the test table and has a second step in both tables"
    ward = replace(table, values=table.values[:, :, [1]])
    for one, two, channels in (
        (draw(20, 1, steps=1), table, CHANNELS),
        (table, draw(20, 1, steps=1), CHANNELS),
        (table, with_values(table, pulse=0.1, dose=np.nan), CHANNELS),
        (ward, ward, {"ward": WARD}),
    ):
        assert measure_prediction(one, two, channels, seed=0) == Prediction(reason=reason)


def measure_all(seed: int) -> tuple[object, ...]:
    train, test = draw(40, 1, steps=5), draw(30, 2, steps=5)
    return (
        measure_sequence_utility(train, test, STUDY, CHANNELS, seed=seed),
        measure_sequence_fidelity(train, test, STUDY, CHANNELS, seed=seed),
        measure_prediction(train, test, CHANNELS, seed=seed),
    )


def test_the_seed_alone_decides_and_global_states_are_left_as_they_were() -> None:
    threads = torch.get_num_threads()
    first = measure_all(5)
    np.random.seed(7)  # noqa: NPY002 (the global state is what must not matter)
    torch.manual_seed(7)
    states = np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[index]  # noqa: NPY002
    try:
        torch.set_num_threads(3)
        assert measure_all(5) == first
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(np.random.get_state()[1], states[0])  # type: ignore[index] # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[1])
    other = measure_all(6)
    assert all(one != two for one, two in zip(first, other, strict=True))


def test_the_tables_are_left_as_they_were() -> None:
    tables = draw(30, 1), draw(30, 2)
    before = [(table.records.copy(deep=True), table.values.copy(), table.lengths.copy()) for table in tables]
    utility(*tables)
    fidelity(*tables)
    prediction(*tables)
    for table, (people, values, lengths) in zip(tables, before, strict=True):
        pd.testing.assert_frame_equal(table.records, people)
        np.testing.assert_array_equal(table.values, values)
        np.testing.assert_array_equal(table.lengths, lengths)
