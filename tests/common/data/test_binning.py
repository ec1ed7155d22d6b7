"""Which cells are joined, from noised histograms of any kind: what holds for all of them, and the cases that matter."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from common.data import binning as module
from common.data.binning import Binning, decode_table, make_binning
from common.data.encoding import Grid, make_grid
from common.data.histograms import Histogram, estimate_histograms, histogram_layout
from common.data.schema import Column

_COLUMN: TypeAdapter[Column] = TypeAdapter(Column)


def grid(kind: str, name: str = "x", **keys: Any) -> Grid:
    return make_grid(name, _COLUMN.validate_python({"type": kind, **keys}))


def ordered(cells: int, *, missing: bool = False) -> Grid:
    return grid("integer", min=0, max=cells - 1, cells=max(cells, 2), missing=missing)


def listed(cells: int, *, missing: bool = False) -> Grid:
    return grid("categorical", categories=[f"v{at}" for at in range(cells)], missing=missing)


def histogram_of(counts: list[list[float]] | np.ndarray, *, variance: float = 1.0) -> Histogram:
    table = np.array(counts, dtype=np.float64)
    return Histogram(table, variance * np.eye(table.shape[1]))


@st.composite
def noisy(draw: st.DrawFn) -> tuple[Histogram, Grid]:
    """A column and its released histogram: any counts, any noise, also far more noise than counts."""
    kind = draw(st.sampled_from(["integer", "categorical", "sparse"]))
    missing = draw(st.booleans())
    cells = draw(st.integers(2, 80))
    if kind == "sparse":
        one = grid("continuous", min=0, max=1000, cells=cells, scale="log", missing=missing, special=[0])
    else:
        one = (ordered if kind == "integer" else listed)(cells, missing=missing)
    classes = draw(st.integers(1, 3))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    layout = histogram_layout([one], classes)
    stddev = draw(st.sampled_from([0.3, 10.0, 1000.0, 1e9]))
    size = draw(st.sampled_from([0.0, 1.0, 100.0, 1e5]))
    counts = size * random.pareto(draw(st.sampled_from([0.5, 3.0])), layout.n_cells)
    released = np.minimum(counts, 1e9) + random.normal(0, stddev, layout.n_cells)
    return estimate_histograms(released, layout, [one], variance=stddev**2)[0], one


def check(binning: Binning, histogram: Histogram, one: Grid) -> None:
    """What every binning keeps."""
    classes = len(histogram.counts)
    assert binning.bin_of.shape == (one.n_cells,)
    assert binning.bin_of.dtype == np.int64
    assert set(binning.bin_of) == set(range(binning.n_bins))
    if one.is_ordered:
        values = binning.bin_of[: one.n_values]
        assert values[0] == 0
        assert set(np.diff(values)) <= {0, 1}
    if one.column.missing:
        assert (binning.bin_of == binning.bin_of[-1]).sum() == 1
    assert binning.within.shape == (classes, one.n_cells)
    assert np.isfinite(binning.within).all()
    assert (binning.within >= 0).all()
    for number in range(binning.n_bins):
        np.testing.assert_allclose(binning.within[:, binning.bin_of == number].sum(axis=1), 1, rtol=1e-9)


@given(noisy(), st.integers(2, 64))
@settings(deadline=None, max_examples=300)
def test_bins_are_numbered_without_gaps_ordered_ones_are_contiguous_and_shares_sum_to_one(
    case: tuple[Histogram, Grid], max_bins: int
) -> None:
    histogram, one = case
    before = histogram.counts.copy()
    check(make_binning(histogram, one, max_bins=max_bins), histogram, one)
    assert np.array_equal(histogram.counts, before)


@given(noisy())
@settings(deadline=None, max_examples=50)
def test_the_same_histogram_gives_the_same_bins_whatever_the_column_is_called_and_bounded(
    case: tuple[Histogram, Grid],
) -> None:
    histogram, one = case
    missing = one.column.missing
    if one.is_ordered:
        other = grid("continuous", "y", min=-5, max=-3, cells=one.n_values, missing=missing)
    else:
        names = [f"w{at}" for at in range(one.n_values)]
        other = grid("categorical", "y", categories=names, missing=missing)
    assert other.n_cells == one.n_cells
    once, again, elsewhere = (make_binning(histogram, which, max_bins=16) for which in (one, one, other))
    for binning in (again, elsewhere):
        assert np.array_equal(once.bin_of, binning.bin_of)
        assert np.array_equal(once.within, binning.within)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1.0, 1e6]), st.booleans())
@settings(deadline=None, max_examples=100)
def test_pure_noise_makes_bins_too(seed: int, stddev: float, missing: bool) -> None:
    counts = np.random.default_rng(seed).normal(0, stddev, (2, 30 + missing))
    for one in (ordered(30, missing=missing), listed(30, missing=missing)):
        histogram = histogram_of(counts, variance=stddev**2)
        check(make_binning(histogram, one, max_bins=32), histogram, one)


@pytest.mark.parametrize("value", [0.0, -5.0, -1e12])
def test_a_histogram_without_a_positive_count_makes_bins_of_even_shares(value: float) -> None:
    for one in (ordered(6, missing=True), listed(6, missing=True)):
        histogram = histogram_of(np.full((2, 7), value))
        binning = make_binning(histogram, one, max_bins=4)
        check(binning, histogram, one)
        values = binning.within[:, binning.bin_of == binning.bin_of[0]]
        np.testing.assert_allclose(values, 1 / values.shape[1])


def test_a_heavy_zero_stands_alone_and_does_not_widen_the_other_bins() -> None:
    light = [40.0] * 40
    without = make_binning(histogram_of([[0.0, *light]]), ordered(41), max_bins=16)
    binning = make_binning(histogram_of([[100_000.0, *light]]), ordered(41), max_bins=16)
    assert (binning.bin_of == 0).tolist() == [True, *[False] * 40]
    assert binning.n_bins >= without.n_bins >= 8


@pytest.mark.parametrize("before", [10, 11])
def test_a_heavy_cell_among_others_stands_alone(before: int) -> None:
    # Also where the cells before it carry a signal and not yet a fair share.
    counts = [60.0] * before + [50_000.0] + [60.0] * 10
    binning = make_binning(histogram_of([counts]), ordered(len(counts)), max_bins=8)
    assert (binning.bin_of == binning.bin_of[before]).sum() == 1


def test_cells_that_all_carry_a_signal_are_not_joined_where_there_is_room_and_are_where_there_is_not() -> None:
    counts = [[1000.0] * 12] * 2
    assert make_binning(histogram_of(counts), ordered(12), max_bins=32).n_bins == 12
    assert 2 <= make_binning(histogram_of(counts), ordered(12), max_bins=2).n_bins <= 6
    assert make_binning(histogram_of(counts), listed(12), max_bins=2).n_bins == 12


def test_a_bin_of_neighbours_carries_a_signal() -> None:
    random = np.random.default_rng(3)
    counts = random.poisson(4.0, (2, 64)).astype(np.float64)
    histogram = histogram_of(counts, variance=16.0)
    binning = make_binning(histogram, ordered(64), max_bins=32)
    assert 2 <= binning.n_bins < 32
    for number in range(binning.n_bins):
        inside = np.flatnonzero(binning.bin_of == number)
        assert counts[:, inside].sum() >= 2 * histogram.deviation(inside)


def test_rare_categories_share_one_bin_and_the_others_keep_theirs() -> None:
    counts = [[500.0, 0.1, 300.0, -0.4, 0.2, 80.0]]
    bins = make_binning(histogram_of(counts), listed(6), max_bins=32).bin_of
    assert len({bins[1], bins[3], bins[4]}) == 1
    assert len(set(bins)) == 4


def test_a_single_rare_category_keeps_a_bin_of_its_own() -> None:
    assert make_binning(histogram_of([[500.0, 0.1, 300.0]]), listed(3), max_bins=32).bin_of.tolist() == [0, 1, 2]


@pytest.mark.parametrize("count", [0.0, -50.0, 1e6])
def test_missing_is_joined_to_no_value_however_rare_or_frequent_it_is(count: float) -> None:
    for one in (ordered(5, missing=True), listed(5, missing=True)):
        binning = make_binning(histogram_of([[0.1, 0.2, 0.1, 0.3, 0.1, count]]), one, max_bins=8)
        assert (binning.bin_of == binning.bin_of[-1]).tolist() == [False] * 5 + [True]
        assert binning.within[0, -1] == 1


# --- shares within a bin


def test_shares_are_those_of_the_counts_where_these_carry_a_signal() -> None:
    histogram = histogram_of([[10.0, 30.0, 60.0], [600.0, 300.0, 100.0]], variance=1e-6)
    binning = Binning(np.zeros(3, dtype=np.int64), module._shares_within(histogram, np.zeros(3, dtype=np.int64)))
    np.testing.assert_allclose(binning.within, [[0.1, 0.3, 0.6], [0.6, 0.3, 0.1]])


def test_a_class_without_a_signal_borrows_the_shares_of_all_classes_together() -> None:
    histogram = histogram_of([[-3.0, 5.0, -2.0], [600.0, 300.0, 100.0]], variance=100.0)
    within = module._shares_within(histogram, np.zeros(3, dtype=np.int64))
    np.testing.assert_allclose(within[0], [597 / 1000, 305 / 1000, 98 / 1000])
    np.testing.assert_allclose(within[1], [0.6, 0.3, 0.1])


def projected_slowly(counts: np.ndarray) -> np.ndarray:
    """The nearest point with that sum and no negative part: the same amount off each count, found by halving."""
    total = max(counts.sum(), 1.0)
    low, high = counts.min() - total, counts.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(counts - middle, 0).sum() > total else (low, middle)
    return np.maximum(counts - low, 0) / np.maximum(counts - low, 0).sum()


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
@settings(deadline=None, max_examples=200)
def test_the_projection_on_the_simplex_is_the_nearest_point(counts: list[float]) -> None:
    found = module._project_to_simplex(np.array(counts))
    assert found.sum() == pytest.approx(1)
    assert (found >= 0).all()
    np.testing.assert_allclose(found, projected_slowly(np.array(counts)), atol=1e-6)


def test_the_projection_leaves_shares_alone_and_keeps_their_order() -> None:
    np.testing.assert_allclose(module._project_to_simplex(np.array([3.0, 5.0, 2.0])), [0.3, 0.5, 0.2])
    assert module._project_to_simplex(np.array([5.0, -4.0, 3.0])).tolist() == [0.75, 0.0, 0.25]


# --- drawing


def test_cells_are_drawn_in_their_bins_by_the_shares_of_the_row_s_class() -> None:
    binning = Binning(np.array([0, 0, 1, 1, 1]), np.array([[0.2, 0.8, 0.5, 0.5, 0.0], [1.0, 0.0, 0.1, 0.2, 0.7]]))
    random = np.random.default_rng(5)
    bins, labels = random.integers(0, 2, 40_000), random.integers(0, 2, 40_000)
    cells = binning.draw_cells(bins, labels, random)
    assert cells.dtype == np.int64
    assert np.array_equal(binning.bin_of[cells], bins)
    for label in (0, 1):
        for number in (0, 1):
            drawn = np.bincount(cells[(bins == number) & (labels == label)], minlength=5)
            # About 10,000 draws each: a share has a standard deviation of at most 0.005. False alarm below 1e-6.
            expected = binning.within[label] * (binning.bin_of == number)
            np.testing.assert_allclose(drawn / drawn.sum(), expected, atol=0.026)
            assert (drawn[expected == 0] == 0).all()


def test_a_table_of_bins_becomes_values_of_those_bins() -> None:
    grids = (
        grid("integer", "age", min=0, max=99, cells=20, missing=True),
        grid("categorical", "ward", categories=["a", "b", "c"]),
    )
    binnings = (
        Binning(np.repeat([0, 1, 2], [12, 8, 1]), np.tile(np.r_[np.full(12, 1 / 12), np.full(8, 1 / 8), 1.0], (2, 1))),
        Binning(np.array([0, 1, 1]), np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])),
    )
    random = np.random.default_rng(0)
    bins = np.column_stack([random.integers(0, 3, 500), random.integers(0, 2, 500)])
    labels = random.integers(0, 2, 500)
    table = decode_table(bins, labels, grids, binnings, np.random.default_rng(1))
    assert [str(dtype) for dtype in table.dtypes] == ["Int64", "category"]
    for position, (one, binning) in enumerate(zip(grids, binnings, strict=True)):
        assert np.array_equal(binning.bin_of[one.encode(table[one.name])], bins[:, position])
    assert set(table["ward"][(bins[:, 1] == 1) & (labels == 0)]) == {"b"}
    assert set(table["ward"][(bins[:, 1] == 1) & (labels == 1)]) == {"c"}
    again = decode_table(bins, labels, grids, binnings, np.random.default_rng(1))
    assert table.equals(again)
