"""The nearest weights: against closed forms, a general solver and the conditions of optimality."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, minimize

from common.synthesis.entropy import CAP, nearest

SEEDS = st.integers(0, 10_000)


def problem(seed: int, *, rows: int = 60, features: int = 3) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    random = np.random.default_rng(seed)
    return random.dirichlet(np.ones(rows)), random.normal(size=(rows, features)) * [1, 1e-3, 1e4][:features], random


def entropy(weights: np.ndarray, base: np.ndarray) -> float:
    held = weights > 0
    return float(weights[held] @ np.log(weights[held] / base[held]))


def test_one_mean_of_two_values_has_its_closed_form() -> None:
    base = np.array([0.9, 0.1])
    found = nearest(base, np.array([[0.0], [1.0]]) - 0.4)
    assert found is not None
    assert found == pytest.approx([0.6, 0.4])


def test_a_mean_of_a_gaussian_shifts_it() -> None:
    """Tilting a standard normal to mean m gives the normal of mean m: log w / q = m x - m^2 / 2."""
    points = np.linspace(-9, 9, 4001)
    base = np.exp(-(points**2) / 2)
    base /= base.sum()
    found = nearest(base, points[:, None] - 0.3)
    assert found is not None
    inside = np.abs(points) < 6
    assert np.log(found[inside] / base[inside]) == pytest.approx(0.3 * points[inside] - 0.045, abs=1e-6)


def test_the_cap_binds_and_the_rest_makes_up_for_it() -> None:
    """0.01 of the weight can become 0.2 and no more."""
    base = np.array([0.99, 0.01])
    just = nearest(base, np.array([[0.0], [1.0]]) - 0.199)
    assert just is not None
    assert just[1] == pytest.approx(0.199)
    assert nearest(base, np.array([[0.0], [1.0]]) - 0.201) is None


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_what_is_found_fulfils_the_conditions_of_optimality(seed: int) -> None:
    """Means are those of some capped weights; log ratios below the cap are linear in the features."""
    base, features, random = problem(seed)
    wanted = np.minimum(random.exponential(3.0, len(base)), CAP) * base
    wanted /= wanted.sum()
    features = features - wanted @ features
    if (wanted > CAP * base).any():
        return
    found = nearest(base, features)
    assert found is not None
    assert found.sum() == pytest.approx(1, abs=1e-6)
    assert (np.abs(found @ features) <= 1e-5 * features.std(axis=0)).all()
    assert (found >= 0).all()
    assert (found <= CAP * base * (1 + 1e-12)).all()
    free = found < CAP * base * (1 - 1e-9)
    design = np.column_stack([features[free] / features.std(axis=0), np.ones(int(free.sum()))])
    ratios = np.log(found[free] / base[free])
    multipliers = np.linalg.lstsq(design, ratios, rcond=None)[0]
    assert design @ multipliers == pytest.approx(ratios, abs=1e-6)
    beyond = np.column_stack([features[~free] / features.std(axis=0), np.ones(int((~free).sum()))]) @ multipliers
    assert (beyond >= math.log(CAP) - 1e-6).all()
    assert entropy(found, base) <= entropy(wanted, base) + 1e-9


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_a_general_solver_finds_the_same(seed: int) -> None:
    base, features, random = problem(seed, rows=12, features=2)
    features = features / features.std(axis=0)
    wanted = base * random.exponential(1.0, len(base))
    features = features - wanted @ features / wanted.sum()
    found = nearest(base, features)
    if found is None:
        assert (wanted / wanted.sum() > CAP * base).any()
        return
    general = minimize(
        lambda w: float(w @ np.log(np.maximum(w, 1e-15) / base)),
        base,
        bounds=[(0, CAP * one) for one in base],
        constraints=[LinearConstraint(np.vstack([features.T, np.ones(len(base))]), [0, 0, 1], [0, 0, 1])],
        method="SLSQP",
        options={"maxiter": 1000, "ftol": 1e-13},
    )
    assert entropy(found, base) <= general.fun + 1e-6
    if general.success:
        assert found == pytest.approx(general.x, abs=2e-4)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.floats(0.01, 3.0))
@example(2834, 0.01171875)  # exponents of some hundreds
def test_means_are_met_or_beyond_what_the_cap_allows(seed: int, apart: float) -> None:
    """Of one feature the largest mean is known: the largest values get all that they may."""
    base, features, _ = problem(seed, features=1)
    order = np.argsort(-features[:, 0])
    room = np.clip(1 - (np.cumsum(CAP * base[order]) - CAP * base[order]), 0, CAP * base[order])
    largest = float(room @ features[order, 0])
    spread = features.std()
    for mean, possible in ((largest - 0.01 * apart * spread, True), (largest + 0.01 * apart * spread, False)):
        if possible and mean < base @ features[:, 0]:
            continue
        assert (nearest(base, features - mean) is not None) is possible


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_shares_alone_are_raked(seed: int) -> None:
    random = np.random.default_rng(seed)
    base = random.dirichlet(np.full(12, 3.0)).reshape(3, 4)
    rows, columns = random.dirichlet(np.full(3, 5.0)), random.dirichlet(np.full(4, 5.0))
    raked = base
    for _ in range(2000):
        raked = raked * (rows / raked.sum(axis=1))[:, None]
        raked = raked * (columns / raked.sum(axis=0))
    if (raked > CAP * base * 0.99).any():
        return
    which = np.indices(base.shape).reshape(2, -1)
    features = np.hstack([np.eye(3)[which[0]] - rows, np.eye(4)[which[1]] - columns])
    found = nearest(base.ravel(), features)
    assert found is not None
    assert found.reshape(3, 4) == pytest.approx(raked, abs=1e-8)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.floats(1e-4, 10.0))
def test_a_soft_mean_is_as_near_as_its_variance_says(seed: int, variance: float) -> None:
    """At the solution the mean that is left over is -variance times the multiplier."""
    base, features, _ = problem(seed, features=1)
    found = nearest(base, features - 0.8, variance=np.array([variance]))
    assert found is not None
    free = found < CAP * base * (1 - 1e-9)
    slope = np.polyfit(features[free, 0], np.log(found[free] / base[free]), 1)[0]
    assert float(found @ features[:, 0]) - 0.8 == pytest.approx(-variance * slope, abs=1e-6)


def test_what_is_asked_for_already_changes_nothing_and_twice_is_as_once() -> None:
    base, features, _ = problem(1)
    features -= base @ features
    assert nearest(base, features) == pytest.approx(base)
    assert nearest(base, features[:, :0]) == pytest.approx(base)
    shifted = features - 0.2 * features.std(axis=0)
    assert nearest(base, np.hstack([shifted, 2 * shifted])) == pytest.approx(nearest(base, shifted), abs=1e-9)


def test_what_is_the_same_everywhere_cannot_be_changed() -> None:
    base = np.full(50, 0.02)
    assert nearest(base, np.full((50, 1), 0.1)) is None
    assert nearest(base, np.zeros((50, 1))) == pytest.approx(base)


def test_a_soft_mean_of_what_is_nearly_the_same_everywhere_disturbs_no_other() -> None:
    base, features, random = problem(2)
    still = 0.3 + 1e-9 * random.normal(size=(60, 1))
    found = nearest(base, np.hstack([features[:, :1] - 0.2, still]), variance=np.array([1e-6, 1e-4]))
    assert found is not None
    assert found == pytest.approx(nearest(base, features[:, :1] - 0.2, variance=np.array([1e-6])), abs=1e-6)
