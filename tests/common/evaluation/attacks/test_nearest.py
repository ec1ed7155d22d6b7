"""Nearest neighbours beside a slow search, in one piece and in many."""

import numpy as np
import pytest

from common.evaluation.attacks import nearest as module
from common.evaluation.attacks.nearest import nearest


def slow(points: np.ndarray, queries: np.ndarray, most: int, without: slice) -> np.ndarray:
    kept = np.delete(np.arange(points.shape[1]), without)
    apart = ((queries[:, None, kept].astype(np.float64) - points[None, :, kept]) ** 2).sum(axis=2)
    return np.argsort(apart, axis=1, kind="stable")[:, :most]


@pytest.mark.parametrize("cells", [1, 700, 8_000_000])
@pytest.mark.parametrize("most", [1, 4])
def test_neighbours_are_those_of_a_slow_search(cells: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CELLS", cells)
    random = np.random.default_rng(0)
    points, queries = (random.random((rows, 7)).astype(np.float32) for rows in (150, 40))
    left_out = [slice(0, 0), slice(2, 5), slice(6, 7)]
    found = nearest(points, queries, most=most, left_out=left_out)
    assert found.shape == (3, 40, most)
    for neighbours, without in zip(found, left_out, strict=True):
        np.testing.assert_array_equal(neighbours, slow(points, queries, most, without))
    np.testing.assert_array_equal(nearest(points, queries, most=most)[0], found[0])


def test_a_copy_is_found_among_points_that_float32_products_do_not_tell_apart() -> None:
    points = (100 + np.arange(6)[:, None] * 1e-4 * np.ones((6, 3))).astype(np.float32)
    np.testing.assert_array_equal(nearest(points, points, most=1)[0, :, 0], np.arange(6))


def test_fewer_points_than_neighbours_are_all_neighbours() -> None:
    points = np.array([[0.0], [3.0], [1.0]], dtype=np.float32)
    np.testing.assert_array_equal(nearest(points, points[:1], most=9)[0], [[0, 2, 1]])
    assert nearest(points, points[:0], most=2).shape == (1, 0, 2)
    assert nearest(points, points, most=2, left_out=[]).shape == (0, 3, 2)


def test_of_points_at_one_distance_the_first_comes_first() -> None:
    points = np.array([[1.0], [-1.0], [1.0], [5.0]], dtype=np.float32)
    np.testing.assert_array_equal(nearest(points, np.zeros((1, 1), np.float32), most=3)[0], [[0, 1, 2]])
