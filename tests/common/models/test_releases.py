"""From releases to targets: what the sums say of bins, groups, units and every table, and how surely."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from common.data.changes import BUCKETS
from common.data.encoding import make_grids
from common.data.histograms import histogram_codes, histogram_layout, window_hits
from common.data.queries import Coded, Counter, Family, catalogue, layout_of
from common.data.tables import TableLayout, cell_indices, sizes_of
from common.data.units import WINDOW_WEIGHT
from common.models.critics import EMBEDDING
from common.models.generator import GeneratorShape
from common.models.releases import Bins, Measured, Release, bins_from, group_maps, targets_from
from common.models.targets import IMPLIED, Targets
from common.privacy.events import GaussianEvent
from common.study import STEPS, Study, parse_study
from common.wire.packing import shape_of

CLASSES = 2
EVENTS = {
    "a": GaussianEvent(account="train", squared_sensitivity=12, noise_stddev=3.0, cells=4, scale=2, noise="csprng")
}


def study_of(*columns: str, **changes: Any) -> Study:
    known = {
        "age": {"type": "integer", "min": 0, "max": 63, "cells": 64},
        "dose": {"type": "continuous", "min": 0, "max": 1000, "cells": 64, "scale": "log", "missing": True},
        "ward": {"type": "categorical", "categories": ["a", "b", "c"]},
    }
    return parse_study(
        {
            "name": "toy",
            "label": {"column": "ill", "positive": "yes"},
            "columns": {
                **{name: known[name] for name in columns},
                "ill": {"type": "categorical", "categories": ["no", "yes"]},
            },
            "privacy": {"epsilon": 1, "delta": 1e-6},
            "model": {"max_bins": 8, "channel_bins": 6},
            **changes,
        },
        source="test",
    )


STUDY = study_of("age", "dose", "ward")
GRIDS = make_grids(STUDY.measured)


def shape_over(bins: Bins, study: Study = STUDY) -> GeneratorShape:
    return shape_of(study, bins.sizes)


def records(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Cells of records and their labels; one class is four times as frequent."""
    random = np.random.default_rng(seed)
    labels = (random.random(count) < 0.2).astype(np.int64)
    cells = np.column_stack([random.binomial(one.n_cells - 1, 0.3 + 0.2 * labels) for one in GRIDS])
    return cells, labels


def noised(counts: np.ndarray, *, stddev: float, seed: int) -> Release:
    return Release(counts + np.random.default_rng(seed).normal(0, stddev, len(counts)), stddev**2 or 1e-9, EVENTS)


def released(codes: np.ndarray, labels: np.ndarray, layout: TableLayout, *, stddev: float, seed: int) -> Release:
    counts = np.bincount(cell_indices(codes, labels, layout).ravel(), minlength=layout.n_cells).astype(np.float64)
    return noised(counts, stddev=stddev, seed=seed)


def own(bins: Bins) -> list[np.ndarray]:
    """Every bin a group of its own."""
    return [np.arange(size) for size in bins.sizes]


def pairs_of(bins: Bins, codes: np.ndarray, labels: np.ndarray, *, stddev: float, seed: int) -> Measured:
    """All pairs of columns, over bins, measured with emphasis 1."""
    queries = catalogue(len(bins.sizes), None)
    layout = layout_of(queries, bins.sizes, CLASSES)
    release = released(codes, labels, layout, stddev=stddev, seed=seed)
    return Measured(queries, np.ones(len(queries), dtype=np.int64), own(bins), release)


def measured(count: int, *, stddev: float, seed: int = 0) -> tuple[Bins, Measured, np.ndarray, np.ndarray]:
    cells, labels = records(count, seed)
    layout = histogram_layout(GRIDS, CLASSES)
    one_way = released(histogram_codes(cells, GRIDS), labels, layout, stddev=stddev, seed=seed + 1)
    bins = bins_from(one_way, STUDY)
    codes = np.column_stack([bin_of[cells[:, at]] for at, bin_of in enumerate(bins.maps)])
    return bins, pairs_of(bins, codes, labels, stddev=stddev, seed=seed + 2), codes, labels


def targets_of(bins: Bins, *parts: Measured) -> Targets:
    return targets_from(bins, shape_over(bins), own(bins), parts)


def tables_of(part: Measured, sizes: Sequence[int]) -> list[np.ndarray]:
    return list(layout_of(part.queries, sizes, CLASSES).split(part.release.counts))


def test_without_noise_targets_are_the_tables_of_the_records() -> None:
    bins, pairs, codes, labels = measured(3000, stddev=0.0)
    assert len(bins.sizes) == len(bins.maps) == len(bins.histograms) == bins.columns == 3
    targets = targets_of(bins, pairs)
    assert set(targets.tables) == {"one_way", IMPLIED, "pair"}
    starts = np.concatenate([[0], np.cumsum(bins.sizes)])
    for label in range(CLASSES):
        mine = codes[labels == label]
        one_hot = np.zeros((len(mine), starts[-1]))
        one_hot[np.arange(len(mine))[:, None], mine + starts[:-1]] = 1
        np.testing.assert_allclose(targets.tables["one_way"].values[label], one_hot.sum(axis=0), atol=1e-6)
        # Every bin is a group of its own.
        np.testing.assert_allclose(targets.tables[IMPLIED].values[label], one_hot.sum(axis=0), atol=1e-6)
        crossed = one_hot.T @ one_hot
        column = np.repeat(np.arange(3), bins.sizes)
        upper = column[:, None] < column[None, :]
        np.testing.assert_allclose(targets.tables["pair"].values[label], np.where(upper, crossed, 0), atol=1e-6)
        assert np.array_equal(targets.tables["pair"].precision > 0, upper)
    np.testing.assert_allclose(targets.label_counts, np.bincount(labels), atol=1e-3)


@pytest.mark.statistical
def test_counts_of_bins_miss_those_of_the_records_by_their_noise() -> None:
    """z-scores over seeds, bins and classes have variance 1: within 6 of its standard errors."""
    scores = []
    for seed in range(12):
        bins, _, codes, labels = measured(2000, stddev=5.0, seed=seed)
        for column in range(bins.columns):
            counts, variance = bins.counts_of(column)
            true = [np.bincount(codes[labels == label, column], minlength=counts.shape[1]) for label in (0, 1)]
            scores.append(((counts - true) / np.sqrt(variance)).ravel())
    every = np.concatenate(scores)
    assert abs(np.mean(every**2) - 1) < 6 * np.sqrt(2 / len(every)) + 0.1


def test_the_precision_of_a_bin_is_that_of_the_sum_of_its_cells() -> None:
    bins, pairs, _, _ = measured(3000, stddev=4.0)
    targets = targets_of(bins, pairs)
    starts = np.concatenate([[0], np.cumsum(bins.sizes)])
    for column, (binning, histogram) in enumerate(zip(bins.binnings, bins.histograms, strict=True)):
        for number in range(binning.n_bins):
            inside = np.flatnonzero(binning.bin_of == number)
            expected = 1 / (histogram.deviation(inside) ** 2 / CLASSES)
            assert targets.tables["one_way"].precision[starts[column] + number] == pytest.approx(expected)
    precision = targets.tables["pair"].precision
    np.testing.assert_allclose(precision[precision > 0], 1 / 16.0)
    # A column that is counted once has the noise of the release in each cell.
    np.testing.assert_allclose(bins.histograms[2].covariance, 16.0 * np.eye(3))


def test_a_bin_has_the_smooth_counts_of_its_cells() -> None:
    bins, pairs, _, _ = measured(3000, stddev=20.0)
    found = np.split(targets_of(bins, pairs).tables["one_way"].values, np.cumsum(bins.sizes)[:-1], axis=1)
    plain = bins.histograms[0].counts @ np.eye(bins.sizes[0])[bins.maps[0]]
    assert not np.allclose(found[0], plain, rtol=0.01)
    for values, binning, histogram in zip(found, bins.binnings, bins.histograms, strict=True):
        for number in range(binning.n_bins):
            expected = histogram.smooth[:, binning.bin_of == number].sum(axis=1)
            np.testing.assert_allclose(values[:, number], expected)


def test_every_table_says_how_many_units_a_class_has_and_the_surer_ones_count_more() -> None:
    bins, pairs, _, _ = measured(3000, stddev=30.0)
    said = [(one.counts.sum(axis=1), one.deviation(slice(None)) ** 2 / CLASSES) for one in bins.histograms]
    variance = pairs.release.variance
    said += [(table.sum(axis=(1, 2)), variance * table[0].size) for table in tables_of(pairs, bins.sizes)]
    expected = sum(count / variance for count, variance in said) / sum(1 / variance for _, variance in said)
    np.testing.assert_allclose(targets_of(bins, pairs).label_counts, expected)


@pytest.mark.statistical
def test_label_counts_are_near_the_truth_and_nearer_than_a_single_table_says() -> None:
    stddev, errors, single = 30.0, [], []
    for seed in range(40):
        bins, pairs, _, labels = measured(3000, stddev=stddev, seed=100 * seed)
        truth = np.bincount(labels)
        errors.append(targets_of(bins, pairs).label_counts - truth)
        single.append(bins.histograms[0].counts.sum(axis=1) - truth)
    # 64 cells of deviation 30 have a sum of deviation 240; the coarse tables are far better. With 80 values a
    # deviation is known to 8 %.
    assert np.std(single) == pytest.approx(240, rel=0.4)
    assert np.std(errors) < 0.5 * np.std(single)
    assert abs(np.mean(errors)) < 5 * np.std(errors) / np.sqrt(80)


def test_label_counts_are_at_least_one() -> None:
    layout = histogram_layout(GRIDS, CLASSES)
    bins = bins_from(Release(np.full(layout.n_cells, -5.0), 1.0, EVENTS), STUDY)
    queries = catalogue(3, None)
    release = Release(np.full(layout_of(queries, bins.sizes, CLASSES).n_cells, -5.0), 1.0, EVENTS)
    part = Measured(queries, np.ones(len(queries), dtype=np.int64), own(bins), release)
    assert targets_of(bins, part).label_counts.tolist() == [1.0, 1.0]


def test_one_column_has_targets_without_pairs() -> None:
    cells, labels = records(500)
    study = study_of("age")
    one = GRIDS[:1]
    layout = histogram_layout(one, CLASSES)
    release = released(histogram_codes(cells[:, :1], one), labels, layout, stddev=0.0, seed=0)
    bins = bins_from(release, study)
    targets = targets_from(bins, shape_over(bins, study), own(bins), [])
    assert (targets.tables["pair"].precision == 0).all()
    np.testing.assert_allclose(targets.label_counts, np.bincount(labels), atol=1e-6)


def test_bins_depend_on_the_release_alone() -> None:
    once, again = (measured(1000, stddev=5.0, seed=3)[0] for _ in range(2))
    for first, second in itertools.zip_longest(once.binnings, again.binnings):
        assert np.array_equal(first.bin_of, second.bin_of)
        assert np.array_equal(first.within, second.within)


def test_the_study_bounds_the_bins() -> None:
    cells, labels = records(20_000)
    layout = histogram_layout(GRIDS, CLASSES)
    release = released(histogram_codes(cells, GRIDS), labels, layout, stddev=1.0, seed=0)
    few, many = (
        bins_from(release, study_of("age", "dose", "ward", model={"max_bins": most})).sizes for most in (4, 32)
    )
    assert few[0] < many[0]
    assert few[1] < many[1]
    assert few[2] == many[2] == 3


# --- emphasis, several releases, groups, embeddings


def test_what_was_emphasised_is_divided_again_and_is_known_as_much_better() -> None:
    bins, pairs, _, _ = measured(3000, stddev=0.0)
    emphasis = np.array([1, 3, 2])
    layout = layout_of(pairs.queries, bins.sizes, CLASSES)
    counts = pairs.release.counts * np.repeat(emphasis, np.diff(layout.offsets))
    release = noised(counts, stddev=6.0, seed=1)
    part = Measured(pairs.queries, emphasis, own(bins), release)
    found, plain = targets_of(bins, part), targets_of(bins, pairs)
    column = np.repeat(np.arange(3), bins.sizes)
    for query, weight in zip(pairs.queries, emphasis, strict=True):
        block = np.ix_(column == query.axes[0], column == query.axes[1])
        np.testing.assert_allclose(found.tables["pair"].precision[block], weight**2 / 36)
        for label in range(CLASSES):
            apart = (found.tables["pair"].values[label] - plain.tables["pair"].values[label])[block]
            assert np.abs(apart).max() < 5 * 6 / weight
    said = [(one.counts.sum(axis=1), one.deviation(slice(None)) ** 2 / CLASSES) for one in bins.histograms]
    for table, weight in zip(layout.split(release.counts), emphasis, strict=True):
        said.append((table.sum(axis=(1, 2)) / weight, 36 / weight**2 * table[0].size))
    expected = sum(count / variance for count, variance in said) / sum(1 / variance for _, variance in said)
    np.testing.assert_allclose(found.label_counts, expected)


def test_a_table_that_was_measured_again_is_the_mean_by_precision() -> None:
    bins, pairs, codes, labels = measured(3000, stddev=4.0)
    queries = pairs.queries[1:2]
    layout = layout_of(queries, bins.sizes, CLASSES)
    release = released(codes, labels, layout, stddev=2.0, seed=9)
    again = Measured(queries, np.ones(1, dtype=np.int64), own(bins), release)
    found = targets_of(bins, pairs, again).tables["pair"]
    column = np.repeat(np.arange(3), bins.sizes)
    block = np.ix_(column == 0, column == 2)
    first, second = tables_of(pairs, bins.sizes)[1], next(layout.split(release.counts))
    for label in range(CLASSES):
        np.testing.assert_allclose(
            found.values[label][block], (first[label] / 16 + second[label] / 4) / (1 / 16 + 1 / 4)
        )
    np.testing.assert_allclose(found.precision[block], 1 / 16 + 1 / 4)
    other = np.ix_(column == 0, column == 1)
    np.testing.assert_allclose(found.precision[other], 1 / 16)


def test_pairs_over_groups_are_the_sums_over_their_bins() -> None:
    bins, pairs, codes, labels = measured(3000, stddev=0.0)
    groups = [np.arange(size) // 2 for size in bins.sizes]
    coarse = np.column_stack([group[codes[:, at]] for at, group in enumerate(groups)])
    layout = layout_of(pairs.queries, sizes_of(groups), CLASSES)
    part = Measured(pairs.queries, pairs.emphasis, groups, released(coarse, labels, layout, stddev=0.0, seed=0))
    found = targets_from(bins, shape_over(bins), groups, [part])
    fine = targets_of(bins, pairs).tables["pair"].values
    starts = np.cumsum([0, *sizes_of(groups)])
    joined = np.zeros((sum(bins.sizes), starts[-1]))
    place = 0
    for column, group in enumerate(groups):
        for one in group:
            joined[place, starts[column] + one] = 1
            place += 1
    assert np.array_equal(joined.argmax(axis=1), found.groups.records)
    np.testing.assert_allclose(
        found.tables["pair"].values, np.einsum("lab,ag,bh->lgh", fine, joined, joined), atol=1e-5
    )
    np.testing.assert_allclose(found.tables["one_way"].values, targets_of(bins, pairs).tables["one_way"].values)
    np.testing.assert_allclose(found.label_counts, np.bincount(labels), atol=1e-3)


@pytest.mark.parametrize("stddev", [0.01, 3.0, 500.0, 1e6])
def test_groups_are_as_fine_as_the_noise_of_a_table_of_two_allows(stddev: float) -> None:
    bins, _, _, labels = measured(20_000, stddev=1.0)
    groups = group_maps(bins, STUDY, stddev=stddev)
    most = max(4, np.sqrt(len(labels) / stddev))
    for group, size in zip(groups, bins.sizes, strict=True):
        assert len(group) == size
        assert set(np.diff(group)) <= {0, 1}
        # Between two neighbouring groups lies more than one fair share, missing apart.
        assert group[-1] + 1 <= 2 * most + 2
    sizes = sizes_of(groups)
    assert (sizes == bins.sizes) == (stddev <= 3.0)
    assert sizes[2] == 3  # categories stay apart
    assert sizes[0] >= 2


def test_embeddings_are_a_table_of_their_own() -> None:
    bins, pairs, _, _ = measured(1000, stddev=0.0)
    sums = [np.arange(16.0), 2 * np.arange(16.0)]
    releases = [Release(one, variance, EVENTS) for one, variance in zip(sums, (4.0, 12.0), strict=True)]
    found = targets_from(bins, shape_over(bins), own(bins), [pairs], releases).tables[EMBEDDING]
    np.testing.assert_allclose(
        found.values, (np.arange(16.0) * (1 / 4 + 2 / 12) / (1 / 4 + 1 / 12)).reshape(CLASSES, 8)
    )
    np.testing.assert_allclose(found.precision, np.full(8, 1 / 4 + 1 / 12))
    alone = targets_from(bins, shape_over(bins), own(bins), [pairs], releases[:1]).label_counts
    assert np.array_equal(alone, targets_of(bins, pairs).label_counts)


# --- windows

EVENT_WINDOWS: dict[str, Any] = {
    "layout": "events",
    "length": 5,
    "empty": "allow",
    "time": {"column": "minute"},
    "channels": {
        "pulse": {"type": "integer", "min": 0, "max": 63, "missing": True},
        "drug": {"type": "categorical", "categories": ["a", "b", "c"]},
    },
}
WINDOWED = study_of("age", "ward", unit={"key": "patient"}, windows=EVENT_WINDOWS)


def windows(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cells of records, the number of steps among them; cells of windows; labels."""
    random = np.random.default_rng(seed)
    labels = (random.random(count) < 0.3).astype(np.int64)
    lengths = random.integers(0, 6, count)
    cells = np.column_stack([random.binomial(63, 0.3 + 0.2 * labels), random.integers(0, 3, count), lengths])
    pulse = random.binomial(63, 0.4 + 0.2 * labels[:, None], (count, 5))
    pulse[random.random((count, 5)) < 0.2] = 64
    steps = np.stack([pulse, random.integers(0, 3, (count, 5))], axis=2)
    steps[np.arange(5) >= lengths[:, None]] = -1
    return cells, steps, labels


def windowed_bins(
    cells: np.ndarray, steps: np.ndarray, labels: np.ndarray, *, stddev: float, study: Study | None = None
) -> Bins:
    grids, channels = make_grids(WINDOWED.measured), make_grids(WINDOWED.channels)
    layout = histogram_layout(grids, CLASSES, channels)
    counts = np.zeros(layout.n_cells)
    indices = cell_indices(histogram_codes(cells, grids), labels, histogram_layout(grids, CLASSES))
    np.add.at(counts, indices.ravel(), 1.0)
    for hits in window_hits(steps, labels, channels, layout, whole=WINDOW_WEIGHT):
        np.add.at(counts, hits.cells, hits.weights / WINDOW_WEIGHT)
    return bins_from(noised(counts, stddev=stddev, seed=3), study or WINDOWED)


def test_windows_have_bins_a_channel_moves_and_a_bin_for_each_number_of_steps() -> None:
    cells, steps, labels = windows(4000)
    bins = windowed_bins(cells, steps, labels, stddev=2.0)
    assert list(WINDOWED.measured) == ["age", "ward", STEPS]
    assert bins.columns == 3
    assert len(bins.sizes) == 5
    assert bins.maps[2].tolist() == [0, 1, 2, 3, 4, 5]
    assert bins.sizes[4] == 3
    assert bins.moves.shape == (2, CLASSES, BUCKETS)
    # A unit with two steps or more adds its moves by equal shares; of the drug every step has one.
    lengths = cells[:, 2]
    for label in range(CLASSES):
        moved = (lengths[labels == label] > 1).sum()
        assert bins.moves[1, label].sum() == pytest.approx(moved, abs=6 * 2 * np.sqrt(BUCKETS))
    # However rare some are: the generator needs to know each.
    noise_alone = windowed_bins(cells, steps, labels, stddev=1e5)
    assert noise_alone.maps[2].tolist() == [0, 1, 2, 3, 4, 5]
    assert noise_alone.sizes[0] < bins.sizes[0]
    # The study bounds the bins of channels by themselves.
    model = {"max_bins": 8, "channel_bins": 3}
    coarse = study_of("age", "ward", unit={"key": "patient"}, windows=EVENT_WINDOWS, model=model)
    other = windowed_bins(cells, steps, labels, stddev=2.0, study=coarse)
    assert other.sizes[:3] == bins.sizes[:3]
    assert 2 < other.sizes[3] < bins.sizes[3]
    # Groups leave the number of steps as it is.
    groups = group_maps(bins, WINDOWED, stddev=1e6)
    assert groups[2].tolist() == [0, 1, 2, 3, 4, 5]
    assert sizes_of(groups)[3] < bins.sizes[3]


def test_without_noise_targets_are_the_tables_of_the_windows() -> None:
    cells, steps, labels = windows(3000)
    bins = windowed_bins(cells, steps, labels, stddev=0.0)
    coded = Coded(
        labels,
        np.column_stack([bin_of[cells[:, at]] for at, bin_of in enumerate(bins.maps[:3])]),
        np.stack([np.where(steps[:, :, at] < 0, -1, bins.maps[3 + at][steps[:, :, at]]) for at in (0, 1)], axis=2),
        cells[:, 2],
    )
    queries = catalogue(3, WINDOWED.windows)
    layout = layout_of(queries, bins.sizes, CLASSES)
    counter = Counter(coded, WINDOWED.windows, np.full(len(labels), WINDOW_WEIGHT))
    emphasis = 1 + np.arange(len(queries)) % 4
    counts = np.zeros(layout.n_cells)
    for number, query in enumerate(queries):
        hits = counter.hits(query, layout, number)
        np.add.at(counts, hits.cells, hits.weights / WINDOW_WEIGHT * emphasis[number])
    part = Measured(queries, emphasis, own(bins), noised(counts, stddev=0.0, seed=0))
    targets = targets_from(bins, shape_over(bins, WINDOWED), own(bins), [part])
    assert coded.windows is not None
    lengths = cells[:, 2]
    starts = np.cumsum([0, *bins.sizes[3:]])
    for label in range(CLASSES):
        average = np.zeros(starts[-1])
        level = np.zeros((2, starts[-1]))
        for unit in np.flatnonzero((labels == label) & (lengths > 0)):
            for step, channel in itertools.product(range(lengths[unit]), (0, 1)):
                place = starts[channel] + coded.windows[unit, step, channel]
                average[place] += 1 / lengths[unit]
                level[step // 2 if step < 4 else 1, place] += 1 / (2 if step < 2 else 3)
        np.testing.assert_allclose(targets.tables["average"].values[label], average, atol=1e-5)
        assert WINDOWED.windows is not None
        assert WINDOWED.windows.blocks == ((0, 2), (2, 5))
        np.testing.assert_allclose(targets.tables[Family.LEVEL].values[label], level, atol=1e-5)
    # Units without a step are units: what windows say of their number does not count.
    np.testing.assert_allclose(targets.label_counts, np.bincount(labels), atol=1e-3)
