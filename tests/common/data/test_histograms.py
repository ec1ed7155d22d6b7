"""The best estimate of the fine cells: exact without noise, and as uncertain as it says with it."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from common.data import histograms as module
from common.data.changes import BUCKETS, change_buckets
from common.data.encoding import Grid, make_grid
from common.data.histograms import (
    Histogram,
    estimate_histograms,
    histogram_codes,
    histogram_layout,
    resolutions,
    window_hits,
)
from common.data.schema import Column
from common.data.tables import cell_indices

_COLUMN: TypeAdapter[Column] = TypeAdapter(Column)
CLASSES = 2
VARIANCE = 9.0


def grid(kind: str, **keys: Any) -> Grid:
    return make_grid("x", _COLUMN.validate_python({"type": kind, **keys}))


PLAIN = grid("integer", min=0, max=99, cells=20)
SPARSE = grid("continuous", min=0, max=1000, cells=64, scale="log", special=[0])
SPARSE_MISSING = grid("integer", min=0, max=1000, cells=70, sparse=True, missing=True)
WARD = grid("categorical", categories=["a", "b", "c"], missing=True)
GRIDS = (PLAIN, SPARSE, WARD, SPARSE_MISSING)


def counted(grids: tuple[Grid, ...], cells: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The one-way release without noise."""
    layout = histogram_layout(grids, CLASSES)
    indices = cell_indices(histogram_codes(cells, grids), labels, layout)
    return np.bincount(indices.ravel(), minlength=layout.n_cells).astype(np.float64)


def estimates_of_noise(one: Grid, *, classes: int, seed: int) -> Histogram:
    """Estimates of a column without records: each class is an independent draw of the noise."""
    layout = histogram_layout([one], classes)
    noise = np.random.default_rng(seed).normal(0, VARIANCE**0.5, layout.n_cells)
    return estimate_histograms(noise, layout, [one], variance=VARIANCE)[0]


@given(st.integers(0, 2**32 - 1), st.integers(0, 300))
@settings(deadline=None, max_examples=40)
def test_without_noise_the_estimate_is_the_counts(seed: int, records: int) -> None:
    random = np.random.default_rng(seed)
    cells = np.column_stack([random.integers(0, one.n_cells, records) for one in GRIDS])
    labels = random.integers(0, CLASSES, records)
    found = estimate_histograms(counted(GRIDS, cells, labels), histogram_layout(GRIDS, CLASSES), GRIDS, variance=1.0)
    assert len(found) == len(GRIDS)
    for position, (one, histogram) in enumerate(zip(GRIDS, found, strict=True)):
        expected = np.zeros((CLASSES, one.n_cells))
        np.add.at(expected, (labels, cells[:, position]), 1)
        np.testing.assert_allclose(histogram.counts, expected, atol=1e-6)


@pytest.mark.parametrize("one", GRIDS)
def test_codes_fit_the_layout_and_leave_no_cell_of_it_out(one: Grid) -> None:
    layout = histogram_layout([one], CLASSES)
    cells = np.arange(one.n_cells)[:, None]
    codes = histogram_codes(cells, [one])
    assert codes.dtype == np.int64
    assert codes.shape == (one.n_cells, layout.n_tables)
    for table, size in enumerate(layout.sizes):
        assert set(codes[:, table]) == set(range(size))
    assert layout.sizes[0] == one.n_cells
    assert codes[:, 0].tolist() == cells[:, 0].tolist()


def test_the_layout_of_several_columns_has_their_tables_one_after_the_other() -> None:
    layout = histogram_layout(GRIDS, CLASSES)
    assert layout.sizes == tuple(size for one in GRIDS for size in histogram_layout([one], CLASSES).sizes)
    assert layout.n_tables == sum(len(resolutions(one)) for one in GRIDS)


@pytest.mark.parametrize("one", [PLAIN, WARD, grid("integer", min=0, max=5, scale="log")])
def test_a_column_that_is_not_sparse_or_has_few_cells_is_counted_once(one: Grid) -> None:
    assert [table.tolist() for table in resolutions(one)] == [list(range(one.n_cells))]


@pytest.mark.parametrize("cells", [17, 64, 100, 1000])
@pytest.mark.parametrize("missing", [False, True])
def test_coarser_cells_join_neighbours_and_keep_missing_apart(cells: int, missing: bool) -> None:
    one = grid("continuous", min=0, max=1, cells=cells, sparse=True, missing=missing)
    tables = resolutions(one)
    assert len(tables) > 1
    for finer, coarser in pairwise(tables):
        steps = np.diff(coarser)
        assert coarser[0] == 0
        assert set(steps) <= {0, 1}
        assert coarser.max() < finer.max()
        # Nested: what a finer table joins stays joined.
        assert len(set(zip(finer, coarser, strict=True))) == finer.max() + 1
    for table in tables:
        if missing:
            assert (table == table[-1]).sum() == 1
    assert len(set(tables[-1][: one.n_values])) <= 16


def test_a_tail_is_known_better_from_several_resolutions_than_from_its_single_cells() -> None:
    for one in (SPARSE, SPARSE_MISSING):
        histogram = estimates_of_noise(one, classes=CLASSES, seed=0)
        tail = slice(one.n_values // 2, one.n_values)
        cells = one.n_values - one.n_values // 2
        assert histogram.deviation(tail) < 0.6 * np.sqrt(CLASSES * cells * VARIANCE)
        assert histogram.deviation(slice(3, 4)) <= np.sqrt(CLASSES * VARIANCE)


def test_a_column_that_is_counted_once_has_the_noise_of_its_cells() -> None:
    histogram = estimates_of_noise(PLAIN, classes=CLASSES, seed=0)
    np.testing.assert_allclose(histogram.covariance, VARIANCE * np.eye(PLAIN.n_cells), atol=1e-12)
    assert histogram.deviation(slice(2, 7)) == pytest.approx(np.sqrt(CLASSES * 5 * VARIANCE))


@pytest.mark.parametrize("cells", [slice(0, 1), slice(3, 40), np.array([0, 5, 6, 63])])
def test_the_deviation_of_a_sum_is_that_of_the_covariance(cells: slice | np.ndarray) -> None:
    histogram = estimates_of_noise(SPARSE, classes=3, seed=0)
    chosen = np.zeros(SPARSE.n_cells)
    chosen[cells] = 1
    assert histogram.deviation(cells) == pytest.approx(np.sqrt(3 * chosen @ histogram.covariance @ chosen))


@pytest.mark.statistical
@pytest.mark.parametrize("one", [SPARSE, SPARSE_MISSING])
def test_the_covariance_is_that_of_repeated_draws(one: Grid) -> None:
    draws = 20_000
    histogram = estimates_of_noise(one, classes=draws, seed=7)
    found = np.cov(histogram.counts.T)
    # An entry of an empirical covariance has standard deviation of at most VARIANCE sqrt(2 / draws) = 0.09; six of
    # them over 5,000 entries: a false alarm in 10^5 seeds, and the seed is fixed.
    assert np.abs(found - histogram.covariance).max() < 6 * VARIANCE * np.sqrt(2 / draws)
    assert np.abs(histogram.counts.mean(axis=0)).max() < 6 * np.sqrt(VARIANCE / draws)
    for cells in (slice(0, 16), slice(5, one.n_values), slice(one.n_values // 2, one.n_cells)):
        spread = histogram.counts[:, cells].sum(axis=1).std() * np.sqrt(draws)
        assert spread == pytest.approx(histogram.deviation(cells), rel=0.03)


def test_missing_is_estimated_from_its_own_counts_alone() -> None:
    one = SPARSE_MISSING
    layout = histogram_layout([one], 1)
    counts = np.zeros(layout.n_cells)
    for table, start in zip(resolutions(one), layout.offsets, strict=False):
        counts[start + table[-1]] = 50.0
    (found,) = estimate_histograms(counts, layout, [one], variance=1.0)
    assert found.counts[0, -1] == pytest.approx(50)
    np.testing.assert_allclose(found.counts[0, :-1], 0, atol=1e-9)
    np.testing.assert_allclose(found.covariance[-1, :-1], 0, atol=1e-12)
    assert found.covariance[-1, -1] == pytest.approx(1 / len(resolutions(one)))


# --- channels of windows

CHANNELS = (SPARSE_MISSING, WARD, PLAIN)
WHOLE = 720_720


def windows(seed: int, *, units: int = 30, steps: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Cells of windows, -1 beyond the end, some of them empty and some of one step; labels."""
    random = np.random.default_rng(seed)
    cells = np.stack([random.integers(0, one.n_cells, (units, steps)) for one in CHANNELS], axis=2)
    # Missing is frequent, so that moves have gaps.
    for position, one in enumerate(CHANNELS):
        if one.column.missing:
            cells[random.random((units, steps)) < 0.3, position] = one.n_values
    lengths = random.integers(0, steps + 1, units)
    lengths[:2] = 0, 1
    cells[np.arange(steps) >= lengths[:, None]] = -1
    return cells, random.integers(0, CLASSES, units)


def counted_windows(cells: np.ndarray, labels: np.ndarray, columns: tuple[Grid, ...] = ()) -> np.ndarray:
    """What windows add to the one-way release, in units."""
    layout = histogram_layout(columns, CLASSES, CHANNELS)
    counts = np.zeros(layout.n_cells)
    for hits in window_hits(cells, labels, CHANNELS, layout, whole=WHOLE):
        assert hits.rows.dtype == hits.cells.dtype == hits.weights.dtype == np.int64
        np.add.at(counts, hits.cells, hits.weights / WHOLE)
    return counts


def test_the_layout_has_the_columns_then_the_channels_then_a_table_of_moves_for_each() -> None:
    layout = histogram_layout(GRIDS, CLASSES, CHANNELS)
    columns, channels = histogram_layout(GRIDS, CLASSES), histogram_layout(CHANNELS, CLASSES)
    assert layout.sizes == (*columns.sizes, *channels.sizes, *[BUCKETS] * len(CHANNELS))
    assert histogram_layout(GRIDS, CLASSES, CHANNELS, moving=False).sizes == (*columns.sizes, *channels.sizes)
    assert histogram_layout(GRIDS, CLASSES, ()).sizes == columns.sizes


@pytest.mark.parametrize("columns", [(), GRIDS])
def test_steps_share_a_unit_equally_in_every_table_and_moves_of_a_channel_likewise(columns: tuple[Grid, ...]) -> None:
    cells, labels = windows(1)
    layout = histogram_layout(columns, CLASSES, CHANNELS)
    tables = list(layout.split(counted_windows(cells, labels, columns)))
    own = histogram_layout(columns, CLASSES).n_tables if columns else 0
    # The columns' tables are counted elsewhere.
    assert all(not table.any() for table in tables[:own])
    slowly = [np.zeros_like(table) for table in tables]
    for unit, label in zip(cells, labels, strict=True):
        steps = [step for step in unit if step[0] >= 0]
        for step in steps:
            number = own
            for position, one in enumerate(CHANNELS):
                for table in resolutions(one):
                    slowly[number][label, table[step[position]]] += 1 / len(steps)
                    number += 1
        for position, one in enumerate(CHANNELS):
            values = [step[[position]] for step in steps if step[position] < one.n_values]
            for before, after in pairwise(values):
                bucket = change_buckets(before, after, one)[0]
                slowly[position - len(CHANNELS)][label, bucket] += 1 / (len(values) - 1)
    for found, expected in zip(tables, slowly, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_hits_come_in_the_layout_s_order_and_stay_in_their_tables() -> None:
    cells, labels = windows(2)
    layout = histogram_layout(GRIDS, CLASSES, CHANNELS)
    first = histogram_layout(GRIDS, CLASSES).n_tables
    found = list(window_hits(cells, labels, CHANNELS, layout, whole=WHOLE))
    assert len(found) == layout.n_tables - first
    for number, hits in enumerate(found, start=first):
        assert (hits.cells >= layout.offsets[number]).all()
        assert (hits.cells < layout.offsets[number + 1]).all()
        assert np.bincount(hits.rows, hits.weights).max() <= WHOLE
    # A window of no step is in no table, one of a single step in none of moves.
    assert not any((hits.rows == 0).any() for hits in found)
    assert [(hits.rows == 1).any() for hits in found[-len(CHANNELS) :]] == [False] * len(CHANNELS)


def test_without_moves_windows_add_the_rest_to_the_same_cells() -> None:
    cells, labels = windows(5)
    still = histogram_layout(GRIDS, CLASSES, CHANNELS, moving=False)
    counts = np.zeros(still.n_cells)
    for hits in window_hits(cells, labels, CHANNELS, still, whole=WHOLE, moving=False):
        np.add.at(counts, hits.cells, hits.weights / WHOLE)
    np.testing.assert_array_equal(counts, counted_windows(cells, labels, GRIDS)[: still.n_cells])


def test_units_without_a_step_add_nothing() -> None:
    cells, labels = windows(3, units=2)
    assert not counted_windows(np.full_like(cells, -1), labels).any()
    assert not counted_windows(cells[:0], labels[:0]).any()


def test_without_noise_the_estimates_of_channels_are_their_shares_and_the_moves_are_left_over() -> None:
    cells, labels = windows(4)
    random = np.random.default_rng(0)
    records = np.column_stack([random.integers(0, one.n_cells, len(cells)) for one in GRIDS])
    layout = histogram_layout(GRIDS, CLASSES, CHANNELS)
    columns = counted(GRIDS, records, labels)
    counts = counted_windows(cells, labels, GRIDS)
    counts[: len(columns)] += columns
    found = estimate_histograms(counts, layout, (*GRIDS, *CHANNELS), variance=1.0)
    assert len(found) == len(GRIDS) + len(CHANNELS)
    lengths = (cells[:, :, 0] >= 0).sum(axis=1)
    for position, one in enumerate(CHANNELS):
        expected = np.zeros((CLASSES, one.n_cells))
        rows, steps = np.nonzero(cells[:, :, 0] >= 0)
        np.add.at(expected, (labels[rows], cells[rows, steps, position]), 1 / lengths[rows])
        np.testing.assert_allclose(found[len(GRIDS) + position].counts, expected, atol=1e-6)
    alone = estimate_histograms(columns, histogram_layout(GRIDS, CLASSES), GRIDS, variance=1.0)
    for once, again in zip(found, alone, strict=False):
        assert np.array_equal(once.counts, again.counts)
        assert np.array_equal(once.smooth, again.smooth)


# --- smooth counts


def smoothed_slowly(counts: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Counts of value cells, (cells,): each strength by least squares, then the one that Stein's estimate prefers."""
    cells = len(counts)
    root = np.linalg.cholesky(np.linalg.inv(covariance)).T  # a whitened residual: root @ (counts - fit)
    scale = np.trace(root.T @ root) / cells
    bends = np.zeros((cells - 2, cells))
    for row in range(cells - 2):
        bends[row, row : row + 3] = 1, -2, 1
    best, smooth = np.inf, counts
    for strength in (0, 0.1, 1, 10, 100, 1e3, 1e4, 1e5, 1e6):
        design = np.concatenate([root, np.sqrt(strength * scale) * bends])
        linear = np.linalg.lstsq(design, np.concatenate([root, np.zeros((cells - 2, cells))]))[0]
        fit = linear @ counts
        risk = ((root @ (counts - fit)) ** 2).sum() + 2 * np.trace(linear)
        if risk < best:
            best, smooth = risk, fit
    return smooth


@pytest.mark.parametrize("one", [PLAIN, SPARSE, SPARSE_MISSING])
@pytest.mark.parametrize("truth", ["even", "falling", "rough", "nothing"])
def test_smooth_counts_are_those_of_the_strength_with_the_least_estimated_risk(one: Grid, truth: str) -> None:
    layout = histogram_layout([one], CLASSES)
    random = np.random.default_rng(5)
    cells = np.arange(one.n_values)
    shape = {
        "even": np.full(len(cells), 30.0),
        "falling": 200 * np.exp(-cells / 10),
        "rough": random.choice([0.0, 500.0], len(cells)),
        "nothing": np.zeros(len(cells)),
    }[truth]
    codes = histogram_codes(cells[:, None], [one])
    counts = random.normal(0, VARIANCE**0.5, layout.n_cells)
    for table, offset in enumerate(layout.offsets[:-1]):
        for label in range(CLASSES):
            # The second class has a truth of its own, so that it has a strength of its own.
            np.add.at(counts, offset + label * layout.sizes[table] + codes[:, table], shape[:: 1 - 2 * label])
    (found,) = estimate_histograms(counts, layout, [one], variance=VARIANCE)
    inside = slice(0, one.n_values)
    for label in range(CLASSES):
        expected = smoothed_slowly(found.counts[label, inside], found.covariance[inside, inside])
        np.testing.assert_allclose(found.smooth[label, inside], expected, rtol=1e-6, atol=1e-6)
    # Missing has no neighbours.
    assert np.array_equal(found.smooth[:, one.n_values :], found.counts[:, one.n_values :])
    assert np.allclose(found.smooth, found.counts) == (truth == "rough")


def test_every_class_is_smoothed_by_itself() -> None:
    random = np.random.default_rng(6)
    cells = PLAIN.n_values
    rough, even = random.choice([0.0, 900.0], cells), np.full(cells, 50.0)
    counts = np.concatenate([rough, even]) + random.normal(0, VARIANCE**0.5, 2 * cells)
    (found,) = estimate_histograms(counts, histogram_layout([PLAIN], CLASSES), [PLAIN], variance=VARIANCE)
    # Neighbours of a heap lend nothing; those on a plain say nearly the same.
    np.testing.assert_allclose(found.smooth[0], found.counts[0])
    assert found.smooth[1].std() < 0.5 * found.counts[1].std()


def test_smoothing_keeps_the_total_of_cells_that_are_known_alike_and_their_mean() -> None:
    random = np.random.default_rng(7)
    counts = 40 + random.normal(0, VARIANCE**0.5, CLASSES * PLAIN.n_cells)
    (found,) = estimate_histograms(counts, histogram_layout([PLAIN], CLASSES), [PLAIN], variance=VARIANCE)
    assert not np.allclose(found.smooth, found.counts)
    np.testing.assert_allclose(found.smooth.sum(axis=1), found.counts.sum(axis=1))
    place = np.arange(PLAIN.n_cells)
    np.testing.assert_allclose(found.smooth @ place, found.counts @ place)


@pytest.mark.parametrize(
    "one", [WARD, grid("integer", min=0, max=1, cells=2), grid("integer", min=0, max=599, cells=600)]
)
def test_categories_and_columns_of_too_few_or_too_many_cells_are_left_as_they_are(one: Grid) -> None:
    histogram = estimates_of_noise(one, classes=CLASSES, seed=8)
    assert np.array_equal(histogram.smooth, histogram.counts)
    assert module._MOST_SMOOTHED == 512


@pytest.mark.parametrize("one", [SPARSE, PLAIN])
def test_a_heap_stays_where_it_is(one: Grid) -> None:
    histogram = estimates_of_noise(one, classes=CLASSES, seed=9)
    with_heap = histogram.counts.copy()
    with_heap[:, 5] += 10_000
    found = module._smoothed(with_heap, histogram.covariance, one)
    np.testing.assert_allclose(found, with_heap, atol=1.0)


@pytest.mark.statistical
@pytest.mark.parametrize("one", [PLAIN, SPARSE_MISSING])
def test_smooth_counts_of_an_even_column_are_nearer_to_the_truth_and_never_much_farther(one: Grid) -> None:
    draws = 300
    random = np.random.default_rng(10)
    inside = slice(0, one.n_values)
    noise = estimates_of_noise(one, classes=draws, seed=10)
    gains = {}
    for name, truth in (("even", np.full(one.n_values, 20.0)), ("rough", random.choice([0.0, 300.0], one.n_values))):
        counts = noise.counts.copy()
        counts[:, inside] += truth
        smooth = module._smoothed(counts, noise.covariance, one)
        before, after = (((table[:, inside] - truth) ** 2).sum() for table in (counts, smooth))
        gains[name] = after / before
    # 300 sums of 20 squares or more, each known to a third: the mean is known to 2 %, far from these bounds.
    assert gains["even"] < 0.5
    assert gains["rough"] < 1.1
