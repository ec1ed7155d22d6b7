"""What several synthetic tables of one generator say of a population, with an interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Combined:
    """An estimate for the population. variance: of it; low, high: the interval at `CONFIDENCE`."""

    estimate: float
    variance: float
    low: float
    high: float


def combine(estimates: Sequence[float], variances: Sequence[float], *, rows: int, units: float) -> Combined:
    """Combine what was computed on each of m tables as if it were real.

    The variance is v (rows / units + 1 / m), with v the mean of `variances`: the first part is that of the real units
    which the generator learned from, the second that of drawing rows.

    Assumes that the generator is right but for the sampling of its units. It is not: noise that was added for privacy
    and what the generator cannot express are in neither part, and at a small epsilon they may be the larger. The
    interval is the narrowest that an analysis may claim, never a guarantee.

    Args:
        estimates: of each table, one or more.
        variances: of each estimate, as the analysis of that table says, >= 0.
        rows: of each table.
        units: that the generator learned from; the noised count, `Release.units`.

    Raises:
        ValueError: none is given, not as many of both, or a number is out of its range.
    Source: Raab, Nowok and Dibben 2016, equation for completely synthesised data by simple synthesis.
    """
    m = len(estimates)
    if not m or len(variances) != m:
        raise ValueError("estimates, variances: expected as many of both, one or more")
    if rows < 1 or not units > 0 or not all(value >= 0 for value in variances):
        raise ValueError("rows, units, variances: expected numbers above 0")
    variance = float(np.mean(variances)) * (rows / units + 1 / m)
    half = float(norm.ppf((1 + CONFIDENCE) / 2)) * math.sqrt(variance)
    mean = float(np.mean(estimates))
    return Combined(mean, variance, mean - half, mean + half)
