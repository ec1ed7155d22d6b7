"""How smooth channels are inside of bins belongs to a release: it hangs on nothing that is asked of it."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch

from common.data.changes import BUCKETS, moves
from common.data.encoding import make_grids
from common.data.trajectories import decode_windows
from common.data.windows import encode_windows
from common.synthesis.courses import draw_trial
from common.synthesis.plan import make_plan
from common.synthesis.release import Release, load_release
from common.synthesis.request import parse_request
from common.synthesis.rows import draw_planned, draw_units
from common.synthesis.synthesizer import Synthesizer
from tests.common.synthesis.releases import make_release, study_of
from tests.common.synthesis.test_release import written

CPU = torch.device("cpu")
TRUE: Final = (2.0, 1.0, np.inf)
PULSE: dict[str, Any] = {"type": "integer", "min": 0, "max": 63, "cells": 64}
WINDOWS: dict[str, Any] = {
    "layout": "grid",
    "length": 12,
    "time": {"column": "hour"},
    "step": 1,
    "channels": {"pulse": PULSE, "flow": PULSE, "drug": {"type": "categorical", "categories": ["a", "b", "c"]}},
}
RISING = {"kind": "monotone", "channel": "flow"}


@cache
def smooth_release(*, rises: bool) -> Release:
    """Its tables of moves are those of windows that were decoded with the widths `TRUE`."""
    study = study_of(windows=WINDOWS, constraints=[RISING] if rises else [])
    release = make_release(study)
    labels = np.random.default_rng(1).permutation(np.repeat([0, 1], [2800, 1200]))
    bins = draw_trial(study, release.binnings, release.generator, labels)
    grids, binnings = make_grids(study.channels), release.binnings[len(study.measured) :]
    values = decode_windows(bins, labels, grids, binnings, TRUE, np.random.default_rng(2))
    cells = encode_windows(values, np.full(len(bins), bins.shape[1]), grids)
    tables = np.zeros((3, 2, BUCKETS))
    for at, grid in enumerate(grids):
        rows, buckets, number = moves(cells[:, :, at], grid)
        np.add.at(tables[at], (labels[rows], buckets), 1 / number)
    return replace(release, moves=tables)


@pytest.fixture
def widths(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, ...]]:
    """Those that windows were decoded with, call by call."""
    found: list[tuple[float, ...]] = []

    def noted(bins: Any, labels: Any, grids: Any, binnings: Any, used: Sequence[float], *rest: Any, **more: Any) -> Any:
        found.append(tuple(used))
        return decode_windows(bins, labels, grids, binnings, used, *rest, **more)

    monkeypatch.setattr("common.synthesis.decoder.decode_windows", noted)
    return found


@pytest.mark.parametrize("rises", [False, True])
def test_a_release_is_as_smooth_as_what_its_moves_were_counted_on(rises: bool) -> None:
    assert tuple(smooth_release(rises=rises).decoder.widths) == TRUE


def test_whatever_is_asked_for_is_equally_smooth(widths: list[tuple[float, ...]]) -> None:
    def anew() -> Synthesizer:
        """As in a program that asks for some rows and ends: nothing was fitted yet."""
        return Synthesizer(replace(smooth_release(rises=False)), CPU)

    for seed in range(5):
        anew().sample_units(1, seed=seed)
    for label in ("yes", "no"):
        anew().sample_units(500, conditions=[f"ill={label}"], seed=0)
    synthesizer = anew()
    synthesizer.sample_units(3000, seed=1)
    synthesizer.sample_units(500, proportions=["ill=yes:0.5,no:0.5"], conditions=["age>=65"], seed=2)
    assert len(widths) == 9
    assert set(widths) == {TRUE}


@pytest.mark.parametrize("rises", [False, True])
def test_what_is_published_is_as_smooth_as_what_is_drawn_from_its_files_later(
    rises: bool, widths: list[tuple[float, ...]], tmp_path: Path
) -> None:
    release = smooth_release(rises=rises)
    draw_units(release, rows=40, seed=3, device=CPU)
    draw_units(release, rows=40, seed=3, device=CPU, label_counts=np.array([1.0, 1.0]))
    loaded = load_release(written(release, tmp_path))
    plan = make_plan(loaded, parse_request(loaded.study), rows=50, seed=0, device=CPU)
    assert sum(len(part.records) for part in draw_planned(loaded, plan, seed=0, device=CPU, at_once=7)) == 50
    assert len(widths) == 2 + 8
    assert set(widths) == {TRUE}


def test_trial_windows_are_always_the_same_and_keep_the_directions_of_channels() -> None:
    release, labels = make_release(study_of(windows=WINDOWS, constraints=[RISING])), np.arange(200) % 2
    first, second = (draw_trial(release.study, release.binnings, release.generator, labels) for _ in range(2))
    assert np.array_equal(first, second)
    assert (np.diff(first[:, :, 1], axis=1) >= 0).all()
    assert (np.diff(first[:, :, 0], axis=1) < 0).any()


def test_trial_windows_last_as_long_as_their_records_say() -> None:
    study = study_of(windows=WINDOWS | {"layout": "events", "step": None})
    release = make_release(study)
    bins = draw_trial(study, release.binnings, release.generator, np.zeros(200, dtype=np.int64))
    lengths = (bins[:, :, 0] >= 0).sum(axis=1)
    assert len(set(lengths)) > 3
    assert ((bins >= 0).all(axis=2) == (np.arange(12) < lengths[:, None])).all()
