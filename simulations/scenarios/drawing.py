"""What the embedded scenarios draw alike."""

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats: TypeAlias = NDArray[np.float64]
Codes: TypeAlias = NDArray[np.int64]
Flags: TypeAlias = NDArray[np.bool_]


def draw(generator: np.random.Generator, weights: Floats) -> Codes:
    """One option a row, (rows,), from weights (rows, options) that need not sum to 1; weight 0 is never drawn."""
    steps = np.cumsum(weights, axis=1)
    point = generator.random(len(weights)) * steps[:, -1]
    return np.asarray((point[:, None] >= steps).sum(axis=1), dtype=np.int64)


def above(values: ArrayLike, threshold: float, width: float) -> Floats:
    """How far values lie above a threshold: 0 well below, 1 well above, one half on it."""
    return sigmoid((np.asarray(values, dtype=np.float64) - threshold) / width)


def sigmoid(values: Floats) -> Floats:
    """Chance from log odds."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * values)))
