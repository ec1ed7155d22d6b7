"""Which cells are joined, from noised histograms of any kind: what holds for all of them, and the cases that matter."""

from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from common.data import binning as module
from common.data.binning import Binning, decode_table, group_bins, identity_binning, make_binning
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


def histogram_of(
    counts: list[list[float]] | np.ndarray, *, variance: float = 1.0, smooth: list[list[float]] | None = None
) -> Histogram:
    table = np.array(counts, dtype=np.float64)
    return Histogram(table, variance * np.eye(table.shape[1]), np.array(counts if smooth is None else smooth, float))


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
    before = histogram.counts.copy(), histogram.smooth.copy()
    check(make_binning(histogram, one, max_bins=max_bins), histogram, one)
    assert np.array_equal(histogram.counts, before[0])
    assert np.array_equal(histogram.smooth, before[1])


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


# --- groups of bins


@given(noisy(), st.floats(1, 50))
@settings(deadline=None, max_examples=100)
def test_groups_are_numbered_without_gaps_join_neighbours_alone_and_leave_missing_apart(
    case: tuple[Histogram, Grid], most: float
) -> None:
    histogram, one = case
    binning = make_binning(histogram, one, max_bins=32)
    group = group_bins(binning, histogram, one, most=most)
    assert group.dtype == np.int64
    assert group.shape == (binning.n_bins,)
    assert group[0] == 0
    assert set(np.diff(group)) <= {0, 1}
    if one.column.missing:
        assert (group == group[-1]).sum() == 1
    if not one.is_ordered:
        assert group.tolist() == list(range(binning.n_bins))


@given(st.lists(st.floats(0, 1000), min_size=2, max_size=40), st.floats(1, 30), st.booleans())
@settings(deadline=None, max_examples=200)
def test_a_group_ends_with_a_fair_share_or_before_a_bin_that_would_swallow_it(
    counts: list[float], most: float, missing: bool
) -> None:
    histogram = histogram_of([[*counts, *[1e6] * missing]])
    one = ordered(len(counts), missing=missing)
    mass = np.array(counts)
    fair = mass.sum() / most  # missing does not count
    group = group_bins(identity_binning(histogram), histogram, one, most=most)
    held = mass[0]
    for before, after, bin_mass in zip(group[:-1], group[1:], mass[1:], strict=False):
        assert (after > before) == (held >= fair or held + bin_mass > 1.5 * fair)
        held = bin_mass if after > before else held + bin_mass


def test_groups_count_the_cells_of_their_bins_over_all_classes() -> None:
    # Bins of 40, 40, 20 and 100 units of two classes, of two, one, one and two cells; a fair share is 50.
    histogram = histogram_of([[0.0, 0.0, 40.0, 20.0, 0.0, 0.0], [30.0, 10.0, 0.0, 0.0, 90.0, 10.0]])
    binning = Binning(np.array([0, 0, 1, 2, 3, 3]), np.ones((2, 6)))
    assert group_bins(binning, histogram, ordered(6), most=4).tolist() == [0, 1, 1, 2]
    assert group_bins(binning, histogram, ordered(6), most=1).tolist() == [0, 0, 0, 0]
    assert group_bins(binning, histogram, ordered(6), most=100).tolist() == [0, 1, 2, 3]


# --- shares within a bin


# A bin of three cells between two others, and all that a column of categories has in one.
BETWEEN = np.array([0, 1, 1, 1, 2])


def within_of(histogram: Histogram) -> list[np.ndarray]:
    """Shares of three cells in a bin that is not an outermost one, and of three categories."""
    cells = histogram.counts.shape[1]
    around = [np.pad(table, ((0, 0), (1, 1)), constant_values=1e6) for table in (histogram.counts, histogram.smooth)]
    inner = Histogram(around[0], histogram.covariance[0, 0] * np.eye(cells + 2), around[1])
    return [
        module._shares_within(inner, BETWEEN, ordered(5))[:, 1:4],
        module._shares_within(histogram, np.zeros(cells, dtype=np.int64), listed(3)),
    ]


def test_shares_are_those_of_the_counts_where_these_carry_a_signal() -> None:
    for within in within_of(histogram_of([[10.0, 30.0, 60.0], [600.0, 300.0, 100.0]], variance=1e-6)):
        np.testing.assert_allclose(within, [[0.1, 0.3, 0.6], [0.6, 0.3, 0.1]])


def test_a_class_without_a_signal_borrows_the_shares_of_all_classes_together() -> None:
    for within in within_of(histogram_of([[-3.0, 5.0, -2.0], [600.0, 300.0, 100.0]], variance=100.0)):
        np.testing.assert_allclose(within[0], [597 / 1000, 305 / 1000, 98 / 1000])
        np.testing.assert_allclose(within[1], [0.6, 0.3, 0.1])


def test_shares_are_those_of_the_smooth_counts_and_the_plain_ones_say_where_there_is_a_signal() -> None:
    smooth = [[100.0, 0.0, 0.0], [500.0, 400.0, 100.0]]
    for within in within_of(histogram_of([[-3.0, 5.0, -2.0], [600.0, 300.0, 100.0]], variance=100.0, smooth=smooth)):
        np.testing.assert_allclose(within[0], [600 / 1100, 400 / 1100, 100 / 1100])
        np.testing.assert_allclose(within[1], [0.5, 0.4, 0.1])
    smooth = [[-3.0, 5.0, -2.0], [500.0, 400.0, 100.0]]
    for within in within_of(histogram_of([[30.0, 30.0, 40.0], [600.0, 300.0, 100.0]], variance=100.0, smooth=smooth)):
        np.testing.assert_allclose(within[0], projected_slowly(np.array(smooth[0])), atol=1e-9)


def test_bins_are_made_from_the_plain_counts() -> None:
    counts, smooth = [[1000.0] * 6], [[0.0, 0.0, 6000.0, 0.0, 0.0, 0.0]]
    for one in (ordered(6), listed(6)):
        binning = make_binning(histogram_of(counts, smooth=smooth), one, max_bins=32)
        assert binning.bin_of.tolist() == list(range(6))


def rising_slowly(counts: np.ndarray) -> np.ndarray:
    """The nearest counts that never fall: for each cell the largest of the smallest means over runs that hold it."""
    return np.array(
        [
            max(min(counts[a:b].mean() for b in range(at + 1, len(counts) + 1)) for a in range(at + 1))
            for at in range(len(counts))
        ]
    )


@given(st.integers(0, 2**32 - 1), st.sampled_from([1.0, 30.0, 1000.0]), st.booleans())
@settings(deadline=None, max_examples=60)
def test_in_the_outermost_bins_of_an_ordered_column_counts_fall_towards_the_bound(
    seed: int, stddev: float, missing: bool
) -> None:
    random = np.random.default_rng(seed)
    bin_of = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2, *[3] * missing])
    counts = random.choice([0.0, 20.0, 500.0], (2, len(bin_of))) + random.normal(0, stddev, (2, len(bin_of)))
    histogram = histogram_of(counts, variance=stddev**2)
    within = module._shares_within(histogram, bin_of, ordered(12, missing=missing))
    for label in range(2):
        for inside, toward in ((slice(0, 4), 1), (slice(4, 7), 0), (slice(7, 12), -1)):
            needed = 2 * histogram.deviation(inside) / np.sqrt(2)
            alone = counts[label, inside].sum() >= needed
            expected = counts[label, inside].copy() if alone else counts[:, inside].sum(axis=0)
            # Heaps are left out: they are what they are.
            thin = expected < 4 * stddev * (1.0 if alone else 2**0.5)
            if toward and thin.any():
                expected[thin] = rising_slowly(expected[thin][::toward])[::toward]
            np.testing.assert_allclose(within[label, inside], projected_slowly(expected), atol=1e-9)
    if missing:
        assert (within[:, 12] == 1).all()


@pytest.mark.parametrize(
    "counts",
    [
        [3.0, 1000.0],
        [500.0, 400.0, 300.0, 200.0, 100.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 800.0],
        [0.0, 0.0, 0.0, 1000.0],
        [900.0, 800.0, 3.0, -5.0, 2.0, 4.0, 0.0, 300.0, 1.0, 2.0],
    ],
    ids=["a rare zero", "a heap at the bound", "nothing but a heap", "a heap in the tail"],
)
def test_a_heap_in_a_tail_stays_where_it_is(counts: list[float]) -> None:
    binning = make_binning(histogram_of([counts], variance=100.0), ordered(len(counts)), max_bins=32)
    mass = np.bincount(binning.bin_of, weights=np.maximum(counts, 0.0))
    shares = binning.within[0] * mass[binning.bin_of]
    for cell, count in enumerate(counts):
        assert shares[cell] == pytest.approx(max(count, 0.0), abs=12)


def test_the_shares_of_categories_and_of_inner_bins_may_rise_and_fall() -> None:
    counts = [[50.0, 900.0, 50.0]]
    for within in within_of(histogram_of(counts)):
        np.testing.assert_allclose(within, [[0.05, 0.9, 0.05]])


@pytest.mark.statistical
def test_the_noise_of_empty_cells_beyond_a_tail_becomes_no_outliers() -> None:
    truth = np.concatenate([[400.0], 60 * 0.6 ** np.arange(8), np.zeros(72)])
    bin_of = np.minimum(np.arange(81), 1)
    random = np.random.default_rng(0)
    beyond, free = [], []
    for _ in range(200):
        histogram = histogram_of([truth + random.normal(0, 10, 81)], variance=100.0)
        beyond.append(module._shares_within(histogram, bin_of, ordered(81))[0, 20:].sum())
        free.append(module._project_to_simplex(histogram.counts[0, 1:])[19:].sum())
    # The share of cells where nobody is, 0.09 and 0.26: five standard errors of these means, 0.009 and 0.012, away.
    assert np.mean(beyond) < 0.14
    assert np.mean(free) > 0.2


def test_a_bin_for_each_cell_draws_that_cell() -> None:
    binning = identity_binning(histogram_of([[0.0, -5.0, 1e6, 2.0]] * 3))
    check(binning, histogram_of([[0.0] * 4] * 3), ordered(4))
    assert binning.n_bins == 4
    assert binning.bin_of.tolist() == [0, 1, 2, 3]
    cells = np.arange(40) % 4
    assert np.array_equal(binning.draw_cells(cells, np.arange(40) % 3, np.random.default_rng(0)), cells)


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


@pytest.mark.parametrize("value", [0.0, 1 - 2.0**-53], ids=["lowest", "highest"])
def test_the_outermost_number_still_draws_a_cell_of_the_bin_that_has_a_share(value: float) -> None:
    binning = Binning(
        np.array([0, 1, 1, 0, 1, 2, 2, 2]),
        np.array([[0.7, 0.0, 0.1, 0.3, 0.9, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0, 0.0, 1 / 3, 1 / 3, 1 / 3]]),
    )

    class Edge:
        def random(self, size: int) -> np.ndarray:
            return np.full(size, value)

    bins, labels = np.tile([0, 1, 2], 2), np.repeat([0, 1], 3)
    cells = binning.draw_cells(bins, labels, cast("np.random.Generator", Edge()))
    assert cells.tolist() == ([0, 2, 6, 0, 1, 5] if value == 0.0 else [3, 4, 6, 0, 1, 7])


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
