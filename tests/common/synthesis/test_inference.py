"""Intervals from several synthetic tables hold what they say, for a generator that is right but for its sample."""

import math

import numpy as np
import pytest

from common.synthesis.inference import combine


@pytest.mark.statistical
@pytest.mark.parametrize(("units", "rows", "tables"), [(400, 400, 1), (400, 400, 5), (300, 1500, 3), (1000, 100, 4)])
def test_the_interval_covers_as_often_as_it_says(units: int, rows: int, tables: int) -> None:
    random = np.random.default_rng(units + rows + tables)
    covered, found = 0, []
    for _ in range(2000):
        real = random.normal(3.0, 2.0, units)
        drawn = random.normal(real.mean(), real.std(ddof=1), (tables, rows))
        combined = combine(drawn.mean(axis=1), drawn.var(axis=1, ddof=1) / rows, rows=rows, units=units)
        covered += combined.low <= 3.0 <= combined.high
        found.append((combined.estimate, combined.variance))
    assert abs(covered / 2000 - 0.95) < 4.5 * math.sqrt(0.95 * 0.05 / 2000)
    estimates, variances = np.array(found).T
    assert estimates.var() == pytest.approx(variances.mean(), rel=0.15)


def test_more_tables_and_more_units_are_narrower_and_more_rows_without_units_are_not() -> None:
    one = combine([1.0], [0.04], rows=100, units=100)
    assert one.variance == pytest.approx(0.08)
    assert one.low == pytest.approx(1 - 1.959964 * math.sqrt(0.08), abs=1e-6)
    assert combine([1.0] * 4, [0.04] * 4, rows=100, units=100).variance == pytest.approx(0.05)
    assert combine([1.0], [0.0004], rows=10_000, units=100).variance == pytest.approx(0.0404)


@pytest.mark.parametrize(
    ("estimates", "variances", "rows", "units"),
    [
        ([], [], 1, 1.0),
        ([1.0], [1.0, 2.0], 1, 1.0),
        ([1.0], [-1.0], 1, 1.0),
        ([1.0], [1.0], 0, 1.0),
        ([1.0], [1.0], 1, 0.0),
    ],
)
def test_what_makes_no_sense_is_refused(
    estimates: list[float], variances: list[float], rows: int, units: float
) -> None:
    with pytest.raises(ValueError, match="expected"):
        combine(estimates, variances, rows=rows, units=units)
