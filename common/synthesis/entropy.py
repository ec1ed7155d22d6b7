"""Weights that are nearest to given ones and have the means that are asked for: the one convex problem of sampling.

Of all weights w whose features have mean 0, those of the least relative entropy to the base weights q; no weight is
more than `CAP` times its base. A feature may be allowed to miss 0 by about a standard deviation.

    minimise  sum_i w_i log(w_i / q_i) + 1/2 sum_k (sum_i w_i f_ik)^2 / v_k
    subject to  0 <= w_i <= CAP q_i,  sum_i w_i = 1,  and sum_i w_i f_ik = 0 wherever v_k = 0

The dual has one multiplier a feature, and the weights follow from it: w_i = q_i min(exp(a . f_i + b), CAP).

Source: Csiszár 1975 (the nearest weights); Deville and Särndal 1992, section 2, case 6 (bounded ratios).
"""

import math
from typing import Final

import numpy as np

CAP: Final = 20.0
"""A weight is at most so many times its base: no row stands for more than these many."""
MOST_ENTRIES: Final = 2**26
"""Weights times features of one problem."""
_AT_ONCE: Final = 2**14
_MOST_STEPS: Final = 200
_CLOSE: Final = 1e-10
_ACCEPTED: Final = 1e-6
"""Largest mean that is taken for 0 where the steps no longer come nearer, in standard deviations of the feature."""
_JITTER: Final = 1e-12
_LEAST_DAMPING: Final = 1e-12
_MOST_DAMPING: Final = 1e6
_CONSTANT: Final = 1e-7
_FARTHEST: Final = 10.0
"""Largest change of a weight's exponent in one step, or half of the largest one: at the edge of what can be they grow
into the hundreds."""


def nearest(base: np.ndarray, features: np.ndarray, *, variance: np.ndarray | None = None) -> np.ndarray | None:
    """The weights of the problem above.

    Guarantees: 0 <= weights <= CAP base; they sum to 1, and hard features have mean 0, but for 1e-6 of the feature's
    standard deviation.
    Edge cases: no features, or all of mean 0 -> the base; features that say the same twice -> as if said once.

    Args:
        base: (rows,), >= 0, with sum 1.
        features: (rows, features), what is to have mean 0.
        variance: (features,), of what is known of each mean, >= 0; None for 0 everywhere, met exactly.

    Returns:
        (rows,) weights; None where there are none.
    """
    soft = np.zeros(features.shape[1]) if variance is None else variance
    scale = _scale(base, features)
    soft = soft / scale**2
    multipliers = np.zeros(len(scale) + 1)  # the last one is that of the sum
    exponents = np.zeros(len(base))
    value, residual, damping = _dual(base, exponents, multipliers, soft), math.inf, _LEAST_DAMPING
    for _ in range(_MOST_STEPS):
        gradient, bend, whole = _slope(base, exponents, features, scale)
        gradient[:-1] += soft * multipliers[:-1]
        residual = float(np.abs(gradient).max())
        # Relative entropy is at most log CAP where there are such weights, and the dual is never below its negative.
        if residual <= _CLOSE or (not soft.any() and value < 1 - math.log(CAP) - 1e-9):
            break
        bend += np.diag(np.append(soft, 0.0))
        while damping <= _MOST_DAMPING:
            step = _step(bend + damping * whole, gradient)
            change = _times(features, step[:-1] / scale) + step[-1]
            farthest = max(_FARTHEST, 0.5 * float(np.abs(exponents).max()))
            shorter = min(1.0, farthest / max(float(np.abs(change).max()), 1e-300))
            step, change = shorter * step, shorter * change
            ahead = _dual(base, exponents + change, multipliers + step, soft)
            if ahead <= value + 1e-4 * float(gradient @ step) + 1e-15 * abs(value):
                break
            damping *= 10.0
        else:
            break
        damping = max(damping / 100.0, _LEAST_DAMPING)
        multipliers, exponents, value = multipliers + step, exponents + change, ahead
    return base * _ratio(exponents) if residual <= _ACCEPTED else None


def _ratio(exponents: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(np.minimum(exponents, math.log(CAP))))


def _dual(base: np.ndarray, exponents: np.ndarray, multipliers: np.ndarray, soft: np.ndarray) -> float:
    """Sum q phi*(s) - b + 1/2 a' V a, where phi* is exp up to log CAP and goes on as a line."""
    beyond = np.maximum(exponents - math.log(CAP), 0.0)
    own = float(base @ (_ratio(exponents) + CAP * beyond)) - float(multipliers[-1])
    return own + 0.5 * float(soft @ multipliers[:-1] ** 2)


def _slope(
    base: np.ndarray, exponents: np.ndarray, features: np.ndarray, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the dual without its soft part: gradient, second derivative, and that if nothing were capped."""
    weights = base * _ratio(exponents)
    capped = np.where(exponents < math.log(CAP), 0.0, weights)
    size = len(scale) + 1
    gradient, whole, beyond = np.zeros(size), np.zeros((size, size)), np.zeros((size, size))
    for begin in range(0, len(base), _AT_ONCE):
        here = slice(begin, begin + _AT_ONCE)
        rows = np.column_stack([features[here] / scale, np.ones(len(base[here]))])
        gradient += weights[here] @ rows
        whole += rows.T @ (rows * weights[here, None])
        over = np.flatnonzero(capped[here])
        beyond += rows[over].T @ (rows[over] * capped[here][over, None])
    gradient[-1] -= 1.0
    return gradient, whole - beyond, whole


def _step(bend: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    # Features that say the same twice make it singular.
    jitter = _JITTER * max(float(np.trace(bend)) / len(bend), 1e-300)
    return np.asarray(-np.linalg.solve(bend + jitter * np.eye(len(bend)), gradient))


def _times(features: np.ndarray, step: np.ndarray) -> np.ndarray:
    return np.asarray(features @ step, dtype=np.float64)


def _scale(base: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Standard deviation of each feature under the base weights; 1 for one that is the same everywhere."""
    scale = np.ones(features.shape[1])
    for at, own in enumerate(features.T):
        # Chances come in single precision: what varies less than that does not vary.
        spread = math.sqrt(float(base @ (own - base @ own) ** 2))
        scale[at] = spread if spread > _CONSTANT * float(np.abs(own).max(initial=0.0)) else 1.0
    return scale
