"""Windows of events whose times hang together: no generator makes a unit that there cannot be."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.models.states import StateHead
from common.study import Study
from common.synthesis.release import Release
from common.synthesis.rows import draw_units, tables_of
from common.synthesis.synthesizer import Synthesizer
from tests.common.synthesis.releases import EVENTS, make_release, study_of

CPU = torch.device("cpu")
GAPS: list[dict[str, Any]] = [
    {"type": "integer", "min": 0, "max": 90, "cells": 12, "missing": True},
    {"type": "integer", "min": 1, "max": 90, "cells": 12, "missing": True, "special": [90]},
    {"type": "continuous", "min": 0, "max": 60, "cells": 8, "decimals": 1, "missing": True},
]
RISING = {"kind": "monotone", "channel": "pulse", "direction": "rising"}
SHRINKING = {"kind": "monotone", "channel": "since", "direction": "falling"}


@st.composite
def studies(draw: st.DrawFn) -> Study:
    channels = {**EVENTS["channels"], "since": draw(st.sampled_from(GAPS))}
    windows = {
        **EVENTS,
        "length": draw(st.integers(2, 6)),
        "channels": {name: channels[name] for name in draw(st.permutations(list(channels)))},
        "time": {"column": "minute", "type": draw(st.sampled_from(["number", "timestamp"]))},
        "longer": draw(st.sampled_from(["refuse", "first", "last"])),
        "shorter": draw(st.sampled_from(["allow", "refuse"])),
        "empty": draw(st.sampled_from(["allow", "refuse"])),
    }
    constraints = draw(st.sampled_from([[], [RISING], [SHRINKING], [RISING, SHRINKING]]))
    return study_of(windows=windows, constraints=constraints)


def trained_to_nonsense(study: Study, *, seed: int, scale: float, push: float) -> Release:
    """A release whose generator is far from anything that a table could teach it.

    Args:
        study: with a gap.
        seed: of its parameters.
        scale: that all of them are multiplied by.
        push: on top of the log odds of a missing gap.
    """
    release = make_release(study, seed=seed)
    head, shape = release.generator.sequence, release.generator.shape.sequence
    assert isinstance(head, StateHead)
    assert shape is not None
    for parameter in release.generator.parameters():
        parameter.data *= scale
    head.tilt.bias.data.view(len(shape.sizes), -1)[shape.gap, -1] += push
    return release


def assert_possible(values: np.ndarray, lengths: np.ndarray, study: Study) -> None:
    """A gap is missing in a unit's first step and in no later one, and time is the sum of the gaps."""
    windows = study.windows
    assert windows is not None
    gaps = values[:, :, list(windows.channels).index("since")]  # (units, steps)
    number = np.arange(windows.length)
    there = number < lengths[:, None]
    assert not np.isnan(gaps[there & (number > 0)]).any()
    begins = lengths < windows.length if windows.longer == "last" else lengths > 0
    assert np.isnan(gaps[begins, 0]).all()


def assert_times_are_sums(table: pd.DataFrame, study: Study) -> None:
    assert study.windows is not None
    time = table["minute"]
    if study.windows.time.type == "timestamp":
        time = (time - pd.Timestamp("1970-01-01")) / pd.Timedelta(minutes=1)
    before = time.groupby(table["person"]).shift(fill_value=0)
    gaps = table["since"].astype("float64").fillna(0)
    np.testing.assert_allclose(time - before, gaps, rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(
    study=studies(),
    seed=st.integers(0, 99),
    scale=st.sampled_from([0.0, 0.3, 1.0, 30.0, 1000.0]),
    push=st.sampled_from([0.0, 100.0, -100.0]),
)
def test_no_generator_draws_a_unit_that_there_cannot_be(study: Study, seed: int, scale: float, push: float) -> None:
    release = trained_to_nonsense(study, seed=seed, scale=scale, push=push)
    for units in (
        draw_units(release, rows=60, seed=seed, device=CPU),
        Synthesizer(release, CPU).sample_units(30, seed=seed),
    ):
        assert_possible(units.values, units.lengths, study)
        assert_times_are_sums(tables_of(units, study)["synthetic-windows.csv"], study)


@pytest.mark.parametrize("constraints", [[], [RISING]])
def test_a_whole_window_alone_may_begin_later_than_its_unit(constraints: list[dict[str, Any]]) -> None:
    study = study_of(windows=EVENTS | {"longer": "last"}, constraints=constraints)
    units = draw_units(trained_to_nonsense(study, seed=1, scale=1.0, push=0.0), rows=4000, seed=2, device=CPU)
    begins = np.isnan(units.values[:, 0, 1])
    whole = units.lengths == 5
    assert 100 < whole.sum() < 3900
    assert begins[~whole].all()
    assert 0.02 < begins[whole].mean() < 0.98
