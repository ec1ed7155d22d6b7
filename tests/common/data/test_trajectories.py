"""Decoded windows stay in their bins, follow the released shares, and move as smoothly as the released tables say."""

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from scipy.stats import chisquare

from common.data.binning import Binning
from common.data.changes import BUCKETS, moves
from common.data.encoding import Grid, make_grid
from common.data.schema import Column
from common.data.trajectories import choose_width, decode_windows
from common.data.windows import encode_windows

CLASSES = 2
_COLUMN: TypeAdapter[Column] = TypeAdapter(Column)


def grid(kind: str, **keys: Any) -> Grid:
    return make_grid("x", _COLUMN.validate_python({"type": kind, **keys}))


GRIDS = (
    grid("integer", min=20, max=220, missing=True),
    grid("integer", min=0, max=3),
    grid("continuous", min=-50, max=1000, scale="asinh", cells=40, missing=True),
    grid("continuous", min=0, max=1e6, scale="log", special=[0.0, 100.0], missing=True),
    grid("continuous", min=32, max=42, decimals=1),
    grid("categorical", categories=["a", "b", "c", "d"], unlisted="other", missing=True),
    grid("categorical", categories=["a", "b"]),
)
FLAT = grid("integer", min=0, max=63, missing=True)
"""64 cells of one number each."""


def binning_of(one: Grid, starts: list[int], shares: np.ndarray | None = None) -> Binning:
    """Bins of neighbouring value cells that begin at these, and missing; shares (classes, cells), by default equal."""
    bin_of = np.searchsorted(np.array(starts), np.arange(one.n_cells), side="right")
    if one.column.missing:
        bin_of[-1] = bin_of[-2] + 1
    raw = np.ones((CLASSES, one.n_cells)) if shares is None else shares
    sums = np.stack([np.bincount(bin_of, weights=row) for row in raw])
    return Binning(bin_of.astype(np.int64), raw / sums[:, bin_of])


def none_released(channels: int) -> np.ndarray:
    """Tables of moves that say nothing."""
    return np.zeros((channels, CLASSES, BUCKETS))


def released_as(cells: np.ndarray, one: Grid) -> np.ndarray:
    """The tables of moves of some paths, (1, classes, buckets), all of the second class."""
    table = none_released(1)
    _, buckets, number = moves(cells, one)
    table[0, 1] = np.bincount(buckets, weights=1 / number, minlength=BUCKETS)
    return table


def decoded(
    bins: np.ndarray,
    one: Grid,
    binning: Binning,
    released: np.ndarray,
    *,
    labels: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Cells of one decoded channel, (units, steps), -1 beyond the end."""
    labels = np.zeros(len(bins), dtype=np.int64) if labels is None else labels
    widths = widths_of(bins[:, :, None], labels, [one], [binning], released)
    values = decode_windows(bins[:, :, None], labels, [one], [binning], widths, np.random.default_rng(seed))
    return encode_windows(values, (bins >= 0).sum(axis=1), [one])[:, :, 0]


def widths_of(
    bins: np.ndarray, labels: np.ndarray, grids: list[Grid], binnings: list[Binning], released: np.ndarray
) -> list[float]:
    """Of each channel, tried on the units themselves."""
    random = np.random.default_rng(0)
    channels = enumerate(zip(grids, binnings, released, strict=True))
    return [choose_width(bins[:, :, at], labels, one, own, table, random) for at, (one, own, table) in channels]


# --- bins and ends are kept


@st.composite
def channels(draw: st.DrawFn) -> tuple[list[Grid], list[Binning], np.ndarray, np.ndarray, np.ndarray]:
    grids = draw(st.lists(st.sampled_from(GRIDS), min_size=1, max_size=3))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    units, steps = draw(st.integers(0, 12)), draw(st.integers(1, 6))
    binnings = []
    for one in grids:
        cuts = np.arange(1, one.n_values)
        starts = np.sort(random.choice(cuts, size=random.integers(0, min(len(cuts), 8) + 1), replace=False))
        shares = random.gamma(0.3, size=(CLASSES, one.n_cells)) * (random.random((CLASSES, one.n_cells)) < 0.7)
        # A bin has shares in every class, if only of its last cell.
        shares[:, [*(starts - 1), one.n_values - 1, one.n_cells - 1]] += 1e-3
        binnings.append(binning_of(one, list(starts), shares))
    bins = np.stack([random.integers(0, binning.n_bins, (units, steps)) for binning in binnings], axis=2)
    bins[np.arange(steps) >= random.integers(0, steps + 1, (units, 1))] = -1
    # Noised tables: negative, far too large, or nothing at all.
    released = random.normal(0, 30, (len(grids), CLASSES, BUCKETS)) * random.integers(0, 2, (len(grids), 1, 1))
    released[:, :, random.integers(0, BUCKETS)] += random.choice([0, 1000])
    return grids, binnings, bins, random.integers(0, CLASSES, units), released


@given(channels(), st.integers(0, 100))
@settings(deadline=None, max_examples=100)
def test_decoded_values_have_the_bins_that_they_were_decoded_from(
    case: tuple[list[Grid], list[Binning], np.ndarray, np.ndarray, np.ndarray], seed: int
) -> None:
    grids, binnings, bins, labels, released = case
    widths = widths_of(bins, labels, grids, binnings, released)
    values = decode_windows(bins, labels, grids, binnings, widths, np.random.default_rng(seed))
    assert values.dtype == np.float64
    assert values.shape == bins.shape
    cells = encode_windows(values, (bins[:, :, 0] >= 0).sum(axis=1), grids)
    for channel, (one, binning) in enumerate(zip(grids, binnings, strict=True)):
        there = bins[:, :, channel] >= 0
        assert np.array_equal(cells[:, :, channel] >= 0, there)
        assert np.array_equal(binning.bin_of[cells[:, :, channel][there]], bins[:, :, channel][there])
        absent = bins[:, :, channel] == (binning.n_bins - 1 if one.column.missing else binning.n_bins)
        assert np.array_equal(np.isnan(values[:, :, channel]), absent | ~there)
        # Only cells that have a share of their bin in the unit's class.
        rows, steps = np.nonzero(there)
        assert (binning.within[labels[rows], cells[rows, steps, channel]] > 0).all()


@given(channels())
@settings(deadline=None, max_examples=30)
def test_values_are_of_their_column(
    case: tuple[list[Grid], list[Binning], np.ndarray, np.ndarray, np.ndarray],
) -> None:
    grids, binnings, bins, labels, released = case
    widths = widths_of(bins, labels, grids, binnings, released)
    values = decode_windows(bins, labels, grids, binnings, widths, np.random.default_rng(0))
    for channel, one in enumerate(grids):
        held = values[:, :, channel][~np.isnan(values[:, :, channel])]
        if one.column.type == "categorical":
            assert np.isin(held, np.arange(one.n_values)).all()
        else:
            assert ((held >= one.column.min) & (held <= one.column.max)).all()
            if one.column.steps is not None:
                assert np.array_equal(np.round(held * one.column.steps) / one.column.steps, held)


@pytest.mark.parametrize("width", [np.inf, 0.25])
def test_no_units_give_no_values(width: float) -> None:
    values = decode_windows(
        np.empty((0, 4, 1), dtype=np.int64),
        np.empty(0, dtype=np.int64),
        [FLAT],
        [binning_of(FLAT, [8])],
        [width],
        np.random.default_rng(0),
    )
    assert values.shape == (0, 4, 1)


def test_units_without_steps_have_no_values() -> None:
    bins = np.full((3, 4), -1)
    bins[1, :2] = 0
    cells = decoded(bins, FLAT, binning_of(FLAT, [8]), none_released(1) + 1.0)
    assert np.array_equal(cells >= 0, bins >= 0)


# --- cells follow the released shares


@pytest.mark.statistical
@pytest.mark.parametrize("one", [GRIDS[0], GRIDS[5]])
@pytest.mark.parametrize("released", [0.0, 1.0])
def test_the_first_cell_of_a_path_follows_the_shares_of_its_class(one: Grid, released: float) -> None:
    random = np.random.default_rng(1)
    shares = random.gamma(1.0, size=(CLASSES, one.n_cells))
    binning = binning_of(one, [one.n_values // 2], shares)
    units = 40_000
    bins, labels = np.repeat([0, 1], units // 2)[:, None], np.arange(units) % CLASSES
    # Whatever the tables of moves say: there is nothing before it to move from.
    tables = none_released(1)
    tables[0, 0, 7] = released
    cells = decoded(bins, one, binning, tables, labels=labels)[:, 0]
    for number in (0, 1):
        for label in range(CLASSES):
            inside = np.flatnonzero(binning.bin_of == number)
            drawn = cells[(bins[:, 0] == number) & (labels == label)]
            found = np.array([(drawn == cell).sum() for cell in inside])
            # A false alarm in 10^5 seeds for each of the 16 tests, and the seeds are fixed.
            assert chisquare(found, len(drawn) * binning.within[label, inside]).pvalue > 1e-5


@pytest.mark.statistical
@pytest.mark.parametrize("width", [0.25, 2.0, 16.0])
def test_however_smooth_a_path_is_its_cells_follow_the_shares_of_its_class_in_every_step(width: float) -> None:
    random = np.random.default_rng(2)
    # A heap and a thin tail, which a tilt towards the last cell would make a higher heap and no tail.
    shares = np.stack([0.7 ** np.arange(65), random.gamma(0.5, size=65)])
    binning, units = binning_of(FLAT, [32], shares), 20_000
    bins, labels = np.repeat([0, 1], units // 2)[:, None].repeat(6, axis=1), np.arange(units) % CLASSES
    cells = decoded(bins, FLAT, binning, released_as(walk(width, 2500, 12, seed=3), FLAT), labels=labels)
    assert (np.diff(cells, axis=1) == 0).mean() > 0.05
    for number, label in product((0, 1), range(CLASSES)):
        inside = np.flatnonzero(binning.bin_of == number)
        drawn = cells[(bins[:, 0] == number) & (labels == label)]
        for step in (1, 5):
            found = np.bincount(drawn[:, step], minlength=65)[inside] / len(drawn)
            # The distance of 5,000 draws over 32 cells is 0.025 at most in the mean, 0.003 around it; six of them.
            assert np.abs(found - binning.within[label, inside]).sum() / 2 < 0.043


def test_without_released_moves_a_cell_does_not_hang_on_the_one_before() -> None:
    bins = np.zeros((20_000, 2), dtype=np.int64)
    for tables in (none_released(1), none_released(1) - 1.0):
        first, second = decoded(bins, FLAT, binning_of(FLAT, []), tables).T
        # The correlation of independent draws has a standard deviation of 0.007: six of them.
        assert abs(np.corrcoef(first, second)[0, 1]) < 6 / np.sqrt(len(bins))


# --- smoothness


def walk(width: float, units: int, steps: int, *, seed: int) -> np.ndarray:
    """Paths over the 64 cells, each cell drawn with chances that fall by a factor e over `width` cells."""
    random = np.random.default_rng(seed)
    chance = np.exp(-np.abs(np.arange(64)[:, None] - np.arange(64)) / width)
    below = np.cumsum(chance / chance.sum(axis=1, keepdims=True), axis=1)
    cells = np.empty((units, steps), dtype=np.int64)
    cells[:, 0] = random.integers(0, 64, units)
    for step in range(1, steps):
        cells[:, step] = (random.random((units, 1)) >= below[cells[:, step - 1], :-1]).sum(axis=1)
    return cells


def shares_of_moves(cells: np.ndarray) -> np.ndarray:
    buckets = moves(cells, FLAT)[1]
    return np.asarray(np.bincount(buckets, minlength=BUCKETS) / len(buckets))


@pytest.mark.statistical
@pytest.mark.parametrize("width", [0.5, 1.0, 4.0, 16.0])
def test_paths_move_as_the_released_tables_say(width: float) -> None:
    real = walk(width, 2500, 12, seed=3)
    one_bin = binning_of(FLAT, [])
    found = decoded(np.zeros((2500, 12), dtype=np.int64), FLAT, one_bin, released_as(real, FLAT))
    # 27,500 moves each: over 60 seeds the mean was 0.011 at most, with a standard deviation of 0.003; six of them.
    assert np.abs(shares_of_moves(found) - shares_of_moves(real)).sum() / 2 < 0.03
    rough = decoded(np.zeros((2500, 12), dtype=np.int64), FLAT, one_bin, none_released(1))
    assert np.abs(shares_of_moves(rough) - shares_of_moves(real)).sum() / 2 > 0.25


def test_the_smoother_the_released_moves_the_smoother_the_paths() -> None:
    bins = np.zeros((2500, 8), dtype=np.int64)
    mean = []
    for bucket in (7, 8, 10, 12, 14):
        tables = none_released(1)
        tables[0, 0, [bucket, 14 - bucket]] = 100.0
        mean.append(np.abs(np.diff(decoded(bins, FLAT, binning_of(FLAT, []), tables), axis=1)).mean())
    assert mean == sorted(mean)
    assert mean[0] < 0.5
    assert mean[-1] > 10


@pytest.mark.parametrize("smooth", [0, 1])
def test_each_channel_moves_by_its_own_table(smooth: int) -> None:
    tables = none_released(2)
    tables[smooth, :, 7] = 100.0
    tables[1 - smooth, :, [0, 14]] = 100.0
    bins, labels, grids = np.zeros((500, 8, 2), dtype=np.int64), np.zeros(500, dtype=np.int64), [FLAT, FLAT]
    binnings = [binning_of(FLAT, [])] * 2
    widths = widths_of(bins, labels, grids, binnings, tables)
    values = decode_windows(bins, labels, grids, binnings, widths, np.random.default_rng(0))
    apart = np.abs(np.diff(values, axis=1)).mean(axis=(0, 1))
    assert apart[smooth] < 0.5
    assert apart[1 - smooth] > 10


SMOOTH = none_released(1)
SMOOTH[:, :, 7] = 1000.0


def test_a_gap_does_not_forget_the_level() -> None:
    bins = np.zeros((500, 5), dtype=np.int64)
    bins[:, 1:4] = 1
    cells = decoded(bins, FLAT, binning_of(FLAT, []), SMOOTH)
    assert (cells[:, 1:4] == FLAT.n_values).all()
    # No move was seen, so no candidate is nearer than another: give it one pair of steps to tell them apart.
    bins = np.concatenate([bins[:, :1], bins], axis=1)
    cells = decoded(bins, FLAT, binning_of(FLAT, []), SMOOTH)
    assert np.abs(cells[:, 5] - cells[:, 1]).mean() < 0.5
    assert np.ptp(cells[:, 1]) > 32


def test_a_path_that_leaves_its_bin_lands_on_the_near_side_of_the_next() -> None:
    # Stays for some steps, so that the paths are smooth, then jumps far up and back.
    bins = np.array([[0] * 6 + [2] * 6 + [0] * 6] * 300)
    cells = decoded(bins, FLAT, binning_of(FLAT, [16, 48]), SMOOTH)
    assert (cells[:, 6] - 48).mean() < 0.5
    assert (15 - cells[:, 12]).mean() < 0.5
    # However far: with a width of half a cell, the chance of a cell so far away is none at all in a float.
    wide = grid("integer", min=0, max=4095, cells=4096)
    cells = decoded(bins, wide, binning_of(wide, [16, 4000]), SMOOTH)
    assert (cells[:, 6] - 4000).mean() < 0.5
    assert (15 - cells[:, 12]).mean() < 0.5


def test_noise_below_zero_in_a_table_of_moves_counts_as_no_move() -> None:
    tables = none_released(1)
    tables[0, 0, [6, 7, 8, 14]] = [50, 50, 50, -140]
    cells = decoded(np.zeros((2000, 8), dtype=np.int64), FLAT, binning_of(FLAT, []), tables)
    # A third stays and the rest moves by one cell, which a width of one cell comes nearest to: 0.46 stay. With the
    # next smoother one it would be 0.76, with the next rougher one 0.24.
    assert 0.4 < (np.diff(cells, axis=1) == 0).mean() < 0.52


def test_categories_are_not_drawn_towards_one_another() -> None:
    one = grid("categorical", categories=[f"{number:02d}" for number in range(20)])
    tables = none_released(1)
    tables[0, 0, 7] = 1000.0
    cells = decoded(np.zeros((5000, 2), dtype=np.int64), one, binning_of(one, []), tables)
    # One in twenty by chance, with a standard deviation of 0.003; six of them. One bin says no more than that.
    assert abs((cells[:, 0] == cells[:, 1]).mean() - 0.05) < 0.02


def test_shares_that_are_zero_wherever_the_path_could_go_decide_alone() -> None:
    wide = grid("integer", min=0, max=4095, cells=4096)
    shares = np.zeros((CLASSES, wide.n_cells))
    shares[:, [0, 1, 3000, 4095]] = [1, 1, 1, 1e-9]
    # Half a cell of width, three thousand cells away: the tilt alone would leave nothing at all.
    bins = np.array([[0] * 6 + [1]] * 200)
    cells = decoded(bins, wide, binning_of(wide, [2], shares), SMOOTH)
    assert (cells[:, :6] <= 1).all()
    assert (cells[:, 6] == 3000).all()


# --- randomness


def test_a_seed_fixes_the_values_and_another_gives_others() -> None:
    bins = np.random.default_rng(0).integers(0, 3, (50, 6))
    binning = binning_of(FLAT, [20])
    drawn = [decoded(bins, FLAT, binning, SMOOTH, seed=seed).tolist() for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_values_inside_a_wide_cell_are_drawn_too() -> None:
    one = grid("continuous", min=0, max=1, cells=2)
    values = decode_windows(
        np.zeros((200, 1, 1), dtype=np.int64),
        np.zeros(200, dtype=np.int64),
        [one],
        [binning_of(one, [1])],
        [np.inf],
        np.random.default_rng(0),
    )
    assert len(set(values.ravel())) == 200
    assert values.max() < 0.5
