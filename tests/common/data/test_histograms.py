"""The best estimate of the fine cells: exact without noise, and as uncertain as it says with it."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from common.data.encoding import Grid, make_grid
from common.data.histograms import Histogram, estimate_histograms, histogram_codes, histogram_layout, resolutions
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
