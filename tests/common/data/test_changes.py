"""Moves between values: their buckets, between which values there is one, and which released table is nearest."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from common.data.changes import BUCKETS, change_buckets, moves, smoothness
from common.data.encoding import Grid, make_grid
from common.data.schema import Column

_COLUMN: TypeAdapter[Column] = TypeAdapter(Column)


def grid(kind: str, **keys: Any) -> Grid:
    return make_grid("x", _COLUMN.validate_python({"type": kind, **keys}))


WHOLE = grid("integer", min=0, max=4999, cells=4096, missing=True)
SURE = grid("integer", min=0, max=9)
WARD = grid("categorical", categories=["a", "b", "c"], missing=True)


def size_slowly(apart: int) -> int:
    """In how many halvings a move is less than one cell, seven at most."""
    halvings = 0
    while apart:
        apart, halvings = apart // 2, halvings + 1
    return min(halvings, 7)


def test_a_move_is_counted_in_doubling_widths_and_in_its_direction() -> None:
    assert BUCKETS == 15
    apart = np.arange(-4095, 4096)
    found = change_buckets(np.where(apart < 0, 4095, 0), np.where(apart < 0, 4095, 0) + apart, WHOLE)
    assert found.dtype == np.int64
    assert found.tolist() == [7 + int(np.sign(move)) * size_slowly(abs(int(move))) for move in apart]
    # Every bucket is one that a move can have, and none lies outside.
    assert set(found) == set(range(BUCKETS))


@pytest.mark.parametrize(
    ("move", "bucket"),
    [(0, 7), (1, 8), (-1, 6), (2, 9), (3, 9), (4, 10), (-3, 5), (-4, 4), (63, 13), (64, 14), (-63, 1), (-64, 0),
     (4000, 14), (-4000, 0)],
)  # fmt: skip
def test_the_ends_of_a_bucket(move: int, bucket: int) -> None:
    before = np.array([2000 if abs(move) < 1000 else 4050 * (move < 0)])
    assert change_buckets(before, before + move, WHOLE).tolist() == [bucket]


def test_categories_have_no_direction_and_no_distance() -> None:
    before, after = np.array([0, 0, 0, 2, 1]), np.array([0, 1, 2, 0, 1])
    found = change_buckets(before, after, WARD)
    assert found.dtype == np.int64
    assert found.tolist() == [7, 8, 8, 8, 7]


def test_a_table_of_moves_has_any_shape() -> None:
    assert change_buckets(np.zeros((3, 0), int), np.zeros((3, 0), int), WHOLE).shape == (3, 0)
    assert change_buckets(np.zeros((3, 2), int), np.ones((3, 2), int), WHOLE).tolist() == [[8, 8]] * 3


@st.composite
def paths(draw: st.DrawFn) -> tuple[np.ndarray, Grid]:
    one = draw(st.sampled_from([WHOLE, SURE, WARD]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    units, steps = draw(st.integers(0, 6)), draw(st.integers(1, 8))
    cells = random.integers(0, one.n_values, (units, steps))
    if one.column.missing:
        cells[random.random(cells.shape) < 0.4] = one.n_values
    cells[np.arange(steps) >= random.integers(0, steps + 1, (units, 1))] = -1
    return cells, one


@given(paths())
@settings(deadline=None, max_examples=150)
def test_there_is_a_move_from_each_value_to_the_next_one(case: tuple[np.ndarray, Grid]) -> None:
    cells, one = case
    expected = []
    for unit, series in enumerate(cells.tolist()):
        pairs = list(pairwise(cell for cell in series if 0 <= cell < one.n_values))
        for before, after in pairs:
            bucket = change_buckets(np.array([before]), np.array([after]), one)
            expected.append((unit, int(bucket[0]), len(pairs)))
    rows, buckets, number = moves(cells, one)
    assert list(zip(rows.tolist(), buckets.tolist(), number.tolist(), strict=True)) == expected
    assert rows.dtype == buckets.dtype == number.dtype == np.int64


def test_a_gap_is_no_value_and_the_end_none_either() -> None:
    path = np.array([[5, 4096, 5, 6, -1], [4096, 4096, 1, -1, -1]])
    rows, buckets, number = moves(path, WHOLE)
    assert rows.tolist() == [0, 0]
    assert buckets.tolist() == [7, 8]
    assert number.tolist() == [2, 2]


@given(st.integers(0, 2**32 - 1), st.integers(1, 8))
@settings(deadline=None, max_examples=100)
def test_the_nearest_candidate_has_the_multiple_with_the_least_squares(seed: int, candidates: int) -> None:
    random = np.random.default_rng(seed)
    released = 1000 * random.dirichlet(np.full(BUCKETS, 0.3)) + random.normal(0, 100, BUCKETS)
    tables = [random.dirichlet(np.full(BUCKETS, 0.3)) for _ in range(candidates)]
    distances = []
    for table in tables:
        (multiple,), *_ = np.linalg.lstsq(table[:, None], released, rcond=None)
        distances.append(((released - max(multiple, 0.0) * table) ** 2).sum())
    assert distances[smoothness(released, tables)] == pytest.approx(min(distances))


def test_noise_of_either_sign_moves_the_choice_to_neither_side() -> None:
    random = np.random.default_rng(0)
    rough, smooth = np.full(BUCKETS, 1 / BUCKETS), np.eye(BUCKETS)[7]
    between = rough / np.linalg.norm(rough) + smooth
    chosen = [smoothness(5 * between + random.normal(0, 1, BUCKETS), [rough, smooth]) for _ in range(2000)]
    # As near to one as to the other. A share of 2,000 fair coins has a standard deviation of 0.011: six of them.
    assert abs(np.mean(chosen) - 0.5) < 0.07


def test_of_two_candidates_as_near_and_of_none_the_first_is_taken() -> None:
    shares = np.eye(BUCKETS)[7]
    assert smoothness(shares, [np.eye(BUCKETS)[0], shares, shares]) == 1
    assert smoothness(-shares, [np.eye(BUCKETS)[0], shares]) == 0
    assert smoothness(shares, [np.zeros(BUCKETS), shares]) == 1
    assert smoothness(0 * shares, [np.eye(BUCKETS)[0], np.eye(BUCKETS)[14]]) == 0
