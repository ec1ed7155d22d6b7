"""The noise that a running site sends: measured on its replies, millions of cells at a time, not on the sampler."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, chi2, kstwobign, norm

from common.privacy.noise import GaussianNoise
from common.wire.messages import Reply, Request
from common.wire.packing import pack_bins
from tests.client.homes import Home, make_home

SIDE = 1024
STUDY: dict[str, Any] = {
    "schema": "privshare.study/1",
    "name": "wide",
    "unit": {"name": "patient"},
    "label": {"column": "ill", "positive": "yes"},
    "columns": {
        "one": {"type": "integer", "min": 0, "max": SIDE - 1, "cells": SIDE},
        "other": {"type": "integer", "min": 0, "max": SIDE - 1, "cells": SIDE},
        "ill": {"type": "categorical", "categories": ["no", "yes"]},
    },
    "privacy": {"epsilon": 5, "delta": 1e-5, "holdout": 0},
}
BINS = [np.arange(SIDE), np.arange(SIDE)]
CELLS = 2 * SIDE * SIDE
# Each test below fails by chance less often than this; the file as a whole once in a hundred thousand runs.
FALSE_ALARM = 1e-6


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A site with one record: in two million cells its one hit is not seen by any test here."""
    folder = tmp_path_factory.mktemp("wide") / "north"
    return make_home(folder, [("3", "4", "no")], header="one,other,ill", study=STUDY)


@pytest.fixture(scope="module")
def messages(home: Home) -> list[tuple[np.ndarray, float]]:
    """Two releases of the same table with real noise, and the standard deviation that each states."""
    site = home.open(GaussianNoise())
    return list(_released(home, site))


def _released(home: Home, site: Any) -> Iterator[tuple[np.ndarray, float]]:
    for number in range(2):
        arrays = {**pack_bins(BINS), "tables": np.array([0]), "emphasis": np.array([1])}
        request = Request("tables", home.study.digest(), "run-1", f"tables-{number}", {"share": 0.4}, arrays)
        reply = Reply.decode(site.handle(request.encode()))
        assert reply.refused is None
        counts = reply.arrays["counts"]
        assert counts.shape == (CELLS,)
        yield counts.astype(np.float64), float(reply.facts["event"]["noise_stddev"])


@pytest.mark.statistical
def test_mean_and_variance_are_those_that_are_stated_to_half_a_percent(
    messages: list[tuple[np.ndarray, float]],
) -> None:
    for noise, stddev in messages:
        expected = stddev**2 + 1 / 12
        assert abs(noise.mean()) < norm.isf(FALSE_ALARM / 2) * (expected / CELLS) ** 0.5
        # Five standard errors are a third of a percent and a half.
        assert noise.var() == pytest.approx(expected, rel=0.005)


@pytest.mark.statistical
def test_the_distribution_is_that_of_a_rounded_gaussian(messages: list[tuple[np.ndarray, float]]) -> None:
    for noise, stddev in messages:
        reach = int(3.5 * stddev)
        edges = np.arange(-reach, reach + 2) - 0.5
        found = np.histogram(noise, np.r_[-np.inf, edges, np.inf])[0]
        chances = np.diff(np.r_[0.0, norm.cdf(edges / stddev), 1.0])
        # Chi-square over every integer out to 3.5 deviations, then Kolmogorov and Smirnov, which is strict on integers.
        statistic = float(((found - CELLS * chances) ** 2 / (CELLS * chances)).sum())
        assert statistic < chi2.isf(FALSE_ALARM, len(found) - 1)
        apart = np.abs(np.cumsum(found) / CELLS - np.cumsum(chances)).max()
        assert apart * CELLS**0.5 < kstwobign.isf(FALSE_ALARM)


@pytest.mark.statistical
@pytest.mark.parametrize("deviations", [3, 4, 5])
def test_the_tails_are_as_heavy_as_they_must_be(messages: list[tuple[np.ndarray, float]], deviations: int) -> None:
    for noise, stddev in messages:
        edge = np.ceil(deviations * stddev)
        chance = 2 * norm.sf((edge - 0.5) / stddev)
        found = int((np.abs(noise) >= edge).sum())
        assert binom.ppf(FALSE_ALARM, CELLS, chance) <= found <= binom.isf(FALSE_ALARM, CELLS, chance)


@pytest.mark.statistical
def test_neither_neighbouring_cells_nor_two_messages_are_correlated(messages: list[tuple[np.ndarray, float]]) -> None:
    (first, one), (second, other) = messages
    limit = norm.isf(FALSE_ALARM / 2) / CELLS**0.5
    pairs = [(first[lag:], first[: CELLS - lag]) for lag in (1, 2, 3, SIDE, SIDE * SIDE)]
    pairs += [(first, second), (first, second[::-1]), (np.abs(first), np.abs(second))]
    for left, right in pairs:
        assert abs(float(np.corrcoef(left, right)[0, 1])) < limit * (CELLS / len(left)) ** 0.5
    # The same request under another name is another spend: its noise may not be averaged away for nothing.
    assert one == other
    assert float(np.var(first + second)) == pytest.approx(2 * one**2 + 1 / 6, rel=0.005)


def test_a_site_that_starts_anew_draws_other_noise(tmp_path: Path, messages: list[tuple[np.ndarray, float]]) -> None:
    again = make_home(tmp_path / "north", [("3", "4", "no")], header="one,other,ill", study=STUDY)
    ((noise, stddev), *_) = _released(again, again.open(GaussianNoise()))
    assert stddev == messages[0][1]
    # By chance two draws agree in one cell of 2 sqrt(pi) standard deviations.
    assert float(np.mean(noise == messages[0][0])) < 2 / (2 * np.pi**0.5 * stddev)
