"""How well synthetic rows rank held-out units, read off a noised table, and how far noise alone may move it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from common.data.queries import Coded
from common.models.monitor import BANDS, ranking_quality, score_cells, score_layout
from server.quality import fit_score

SIZES = (3, 1, 4)
CHANNELS = (3, 2)


def table_of(positive: np.ndarray, bands: np.ndarray) -> np.ndarray:
    table = np.zeros((2, BANDS))
    np.add.at(table, (positive.astype(int), bands), 1)
    return table


def quality(table: np.ndarray, variance: float) -> tuple[float, float]:
    found = ranking_quality(table, variance)
    assert found is not None
    return found


@given(st.integers(0, 2**32 - 1), st.integers(2, 400), st.floats(-5, 5))
@settings(deadline=None, max_examples=100)
def test_without_noise_it_is_the_area_under_the_roc_curve_of_the_bands(seed: int, units: int, signal: float) -> None:
    random = np.random.default_rng(seed)
    positive = random.random(units) < random.uniform(0.05, 0.95)
    positive[:2] = [True, False]
    bands = np.clip((random.normal(10, 5, units) + signal * positive).astype(int), 0, BANDS - 1)
    area, error = quality(table_of(positive, bands), 1e-12)
    assert area == pytest.approx(roc_auc_score(positive, bands), abs=1e-6)
    assert error < 1e-3


@pytest.mark.parametrize(("better", "area"), [(True, 1.0), (False, 0.0)])
def test_a_perfect_score_has_area_one_and_its_reverse_zero(better: bool, area: float) -> None:
    table = np.zeros((2, BANDS))
    table[0, 0 if better else -1] = table[1, -1 if better else 0] = 500
    assert quality(table, 1.0)[0] == pytest.approx(area)


def test_a_score_that_says_nothing_has_area_one_half() -> None:
    flat = np.full((2, BANDS), 70.0)
    assert quality(flat, 1.0)[0] == pytest.approx(0.5)
    one_band = np.zeros((2, BANDS))
    one_band[:, 7] = [300, 200]
    assert quality(one_band, 1.0)[0] == pytest.approx(0.5)


SLOPE = np.stack([np.linspace(400, 100, BANDS), np.linspace(20, 250, BANDS)])
# Ties within a band are what matters here.
STEEP = np.zeros((2, BANDS))
STEEP[0, 4:8], STEEP[1, 5:7] = 900, 1500


@pytest.mark.statistical
@pytest.mark.parametrize("truth", [SLOPE, STEEP, STEEP[::-1]])
@pytest.mark.parametrize("stddev", [3.0, 15.0])
def test_the_standard_error_is_that_of_repeated_noise(truth: np.ndarray, stddev: float) -> None:
    random = np.random.default_rng(1)
    noised = truth + random.normal(0, stddev, (4000, *truth.shape))
    areas, errors = np.array([quality(table, stddev**2) for table in noised]).T
    # A standard deviation from 4,000 draws is known to 1.1 %; the formula is of first order in the noise.
    assert errors.mean() == pytest.approx(areas.std(), rel=0.08)
    assert areas.mean() == pytest.approx(quality(truth, stddev**2)[0], abs=5 * areas.std() / np.sqrt(4000) + 1e-3)


@pytest.mark.parametrize("truth", [SLOPE, STEEP, STEEP[::-1]])
def test_the_standard_error_is_the_noise_times_the_slope_of_the_area_in_each_cell(truth: np.ndarray) -> None:
    area, error = quality(truth, 4.0)
    slopes = []
    for cell in np.ndindex(truth.shape):
        moved = truth.copy()
        moved[cell] += 1e-4
        slopes.append((quality(moved, 4.0)[0] - area) / 1e-4)
    assert error == pytest.approx(2.0 * np.linalg.norm(slopes), rel=1e-4)


@pytest.mark.parametrize("drowned", [0, 1])
def test_nothing_is_said_where_noise_drowns_a_class(drowned: int) -> None:
    variance = 16.0
    limit = 3 * np.sqrt(variance * BANDS)
    for held, says in ((limit * 0.99, False), (limit * 1.01, True), (0.0, False), (-100.0, False)):
        table = np.full((2, BANDS), 1000.0)
        table[drowned] = held / BANDS
        assert (ranking_quality(table, variance) is not None) == says


def test_noise_does_not_push_the_area_out_of_its_range() -> None:
    table = np.zeros((2, BANDS))
    table[0, 0], table[1, -1] = 900, 900
    table[0, -1], table[1, 0] = -90, -90
    assert quality(table, 10.0)[0] == 1.0
    assert quality(table[:, ::-1], 10.0)[0] == 0.0


# --- scores


def units(bins: np.ndarray, windows: np.ndarray | None = None) -> Coded:
    return Coded(np.zeros(len(bins), dtype=np.int64), bins, windows)


def synthetic(rows: int, seed: int) -> tuple[Coded, np.ndarray]:
    """Bins of three columns, and a label that the last column tells most of."""
    random = np.random.default_rng(seed)
    bins = np.column_stack([random.integers(0, size, rows) for size in SIZES])
    return units(bins), random.random(rows) < np.array([0.05, 0.2, 0.5, 0.9])[bins[:, 2]]


def synthetic_windows(rows: int, seed: int) -> tuple[Coded, np.ndarray]:
    """Records as above; windows of 2 to 6 steps of two channels, and how often the second is high tells the label."""
    random = np.random.default_rng(seed)
    coded, _ = synthetic(rows, seed)
    positive = random.random(rows) < 0.4
    high = random.random((rows, 6)) < np.where(positive, 0.7, 0.3)[:, None]
    windows = np.stack([random.integers(0, CHANNELS[0], (rows, 6)), np.where(high, 1, 0)], axis=2)
    windows[np.arange(6) >= random.integers(2, 7, rows)[:, None]] = -1
    return units(coded.records, windows), positive


def cells_slowly(coded: Coded, sizes: tuple[int, ...], weights: np.ndarray) -> list[int]:
    edges = sorted(weights[sum(sizes) :])
    starts = np.cumsum([0, *sizes])
    columns = coded.records.shape[1]
    found = []
    for at, row in enumerate(coded.records):
        score = sum(weights[starts[column] + row[column]] for column in range(columns))
        steps = [] if coded.windows is None else [step for step in coded.windows[at] if step[0] >= 0]
        own = sum(weights[starts[columns + place] + one] for step in steps for place, one in enumerate(step))
        score += own / max(len(steps), 1)
        found.append(sum(edge <= score for edge in edges))
    return found


@given(st.integers(0, 2**32 - 1), st.integers(0, 50), st.booleans())
@settings(deadline=None, max_examples=100)
def test_a_unit_is_in_the_band_that_a_loop_finds(seed: int, rows: int, has_windows: bool) -> None:
    random = np.random.default_rng(seed)
    coded = units(np.column_stack([random.integers(0, size, rows) for size in SIZES]))
    sizes = SIZES
    if has_windows:
        windows = np.stack([random.integers(0, size, (rows, 4)) for size in CHANNELS], axis=2)
        # One, two or four steps: their means are exact, as the ties below need.
        windows[np.arange(4) >= random.choice([0, 1, 2, 4], rows)[:, None]] = -1
        coded, sizes = units(coded.records, windows), (*SIZES, *CHANNELS)
    # Whole weights: ties with the edges are exact. The edges come in any order, as a coordinator may send them.
    weights = random.integers(-3, 4, sum(sizes) + BANDS - 1).astype(np.float64)
    cells = score_cells(coded, sizes, weights)
    assert cells.dtype == np.int64
    assert cells.shape == (rows, 1)
    assert cells[:, 0].tolist() == cells_slowly(coded, sizes, weights)
    (size,) = score_layout().sizes
    assert ((cells >= 0) & (cells < size)).all()


def test_a_score_learned_from_rows_ranks_others_by_their_label() -> None:
    weights = fit_score(*synthetic(5000, 1), SIZES, seed=0)
    assert weights.shape == (sum(SIZES) + BANDS - 1,)
    assert weights.dtype == np.float64
    assert (np.diff(weights[sum(SIZES) :]) >= 0).all()
    coded, positive = synthetic(3000, 2)
    bands = score_cells(coded, SIZES, weights)[:, 0]
    area, _ = quality(table_of(positive, bands), 1e-9)
    best = roc_auc_score(positive, coded.records[:, 2])
    assert area == pytest.approx(best, abs=0.02)
    assert area > 0.8


def test_a_score_learned_from_windows_ranks_others_by_what_their_steps_hold() -> None:
    sizes = (*SIZES, *CHANNELS)
    weights = fit_score(*synthetic_windows(5000, 1), sizes, seed=0)
    assert weights.shape == (sum(sizes) + BANDS - 1,)
    coded, positive = synthetic_windows(3000, 2)
    assert coded.windows is not None
    area, _ = quality(table_of(positive, score_cells(coded, sizes, weights)[:, 0]), 1e-9)
    there = coded.windows[:, :, 1] >= 0
    share = ((coded.windows[:, :, 1] == 1) & there).sum(axis=1) / there.sum(axis=1)
    assert area == pytest.approx(roc_auc_score(positive, share), abs=0.02)
    assert area > 0.8


def test_bands_are_filled_evenly_by_the_rows_that_they_come_from() -> None:
    random = np.random.default_rng(0)
    sizes = (40, 40)
    bins = np.column_stack([random.integers(0, size, 8000) for size in sizes])
    positive = random.random(8000) < (bins[:, 0] + bins[:, 1]) / 80
    weights = fit_score(units(bins), positive, sizes, seed=0)
    filled = np.bincount(score_cells(units(bins), sizes, weights)[:, 0], minlength=BANDS)
    assert len(filled) == BANDS
    assert filled.min() > 0.7 * 8000 / BANDS


@pytest.mark.parametrize("value", [True, False])
def test_rows_of_a_single_class_teach_nothing_and_break_nothing(value: bool) -> None:
    coded, _ = synthetic(100, 1)
    weights = fit_score(coded, np.full(100, value), SIZES, seed=0)
    assert (weights == 0).all()
    assert len(set(score_cells(coded, SIZES, weights)[:, 0])) == 1


def test_the_same_rows_teach_the_same_score() -> None:
    once, again = (fit_score(*synthetic(2000, 1), SIZES, seed=3) for _ in range(2))
    assert np.array_equal(once, again)
