"""Rows drawn from a schema: every study's own reader takes them, and they hold what weighs most."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from client.records import parse_text, read_series_text, read_text, read_windows
from client.simulated_rows import SimulatedRows, simulate_rows
from common.data.schema import CategoricalColumn
from common.study import Study, load_study, parse_study

STUDIES = sorted((Path(__file__).resolve().parents[2] / "simulations" / "studies").glob("*.yaml"))
PLAIN: dict[str, Any] = {
    "schema": "privshare.study/1",
    "name": "toy",
    "unit": {"name": "patient"},
    "label": {"column": "ill", "positive": "yes"},
    "columns": {
        "ward": {"type": "categorical", "groups": {"low": ["100-199", "x"], "high": ["200-299"]}, "unlisted": "other"},
        "age": {"type": "integer", "min": -3, "max": 99, "scale": "asinh", "special": [7]},
        "dose": {"type": "continuous", "min": 0.25, "max": 10, "decimals": 2, "scale": "log", "missing": True},
        "exact": {"type": "continuous", "min": -1, "max": 1},
        "ill": {"type": "categorical", "categories": ["no", "yes"]},
    },
    "privacy": {"epsilon": 1, "delta": 1e-5},
}
CHANNELS = {
    "pulse": {"type": "integer", "min": 20, "max": 220, "missing": True},
    "drug": {"type": "categorical", "categories": ["a", "b"]},
}
GAP = {"type": "continuous", "min": 0, "max": 60, "missing": True}


def study_of(**changes: Any) -> Study:
    return parse_study({**PLAIN, **changes}, source="test")


def windowed(**changes: Any) -> Study:
    windows = {"length": 5, "time": {"column": "at"}, "channels": CHANNELS, **changes}
    return study_of(unit={"name": "patient", "key": "who"}, windows=windows)


EXACT = {
    "account": {"type": "integer", "min": -(2**63), "max": 2**63 - 1, "special": [2**60 + 1]},
    "admitted": {"type": "datetime", "min": "2020-01-01", "max": "2020-12-31", "missing": True},
    "seen": {
        "type": "datetime",
        "min": "2020-10-24T00:00",
        "max": "2020-10-27T00:00",
        "unit": "minute",
        "timezone": "Europe/Berlin",
        "special": ["2020-10-25T02:00+01:00"],
    },
}
VARIANTS = {
    "records": study_of(),
    "moments, and whole numbers that floats skip": study_of(columns=EXACT | {"ill": PLAIN["columns"]["ill"]}),
    "moments in steps": windowed(layout="grid", step=1, start=0, channels={"seen": EXACT["seen"]}),
    "units with several records": study_of(unit={"name": "patient", "key": "who", "max_records": 4}),
    "a file without a header": study_of(
        table={"header": ["ill", "spare", "exact", "dose", "age", "ward"], "delimiter": ";"}, ignore=["spare"]
    ),
    "a grid": windowed(layout="grid", step=0.1, start=-3.5, shorter="refuse"),
    "a grid of time stamps": windowed(
        layout="grid", step=7.5, start="first", time={"column": "at", "type": "timestamp"}
    ),
    "events": windowed(layout="events"),
    "events of full length": windowed(layout="events", shorter="refuse"),
    "events, all or none": windowed(layout="events", shorter="refuse", empty="allow"),
    "events that are never far apart": windowed(layout="events", max_gap=0.1),
    "a grid whose steps are as far apart as may be": windowed(layout="grid", step=0.1, max_gap=0.1),
    "events with gaps": windowed(layout="events", gap="gap", channels={**CHANNELS, "gap": GAP}),
    "events with whole gaps": windowed(
        layout="events",
        gap="gap",
        channels={**CHANNELS, "gap": {"type": "integer", "min": 0, "max": 3, "missing": True}},
    ),
    "events with time stamps": windowed(
        layout="events",
        gap="gap",
        time={"column": "at", "type": "timestamp"},
        channels={**CHANNELS, "gap": {**GAP, "decimals": 1}},
    ),
}


def read(rows: SimulatedRows, units: np.ndarray, study: Study, folder: Path) -> tuple[pd.DataFrame, np.ndarray | None]:
    """The typed table of some units and their windows, as a site reads them."""
    folder.mkdir(exist_ok=True)
    for name, text in rows.written(units, study).items():
        (folder / f"{name}.csv").write_text(text, encoding="utf-8")
    table = parse_text(read_text(folder / "table.csv", study), study)
    if study.windows is None:
        return table, None
    return table, read_windows(table, read_series_text(folder / "series.csv", study), study)[0]


@pytest.mark.parametrize("study", [*map(load_study, STUDIES), *VARIANTS.values()], ids=lambda one: one.name)
def test_a_site_reads_the_rows_of_any_study(study: Study, tmp_path: Path) -> None:
    rows = simulate_rows(study, units=60, seed=3)
    table, windows = read(rows, np.arange(60), study, tmp_path)
    for name, column in study.columns.items():
        assert len(table[name].unique()) > 1
        assert bool(table[name].isna().any()) <= column.missing
        if isinstance(column, CategoricalColumn) and len(column.values) < 4:
            assert set(table[name].dropna()) == set(column.values)
    owners = np.arange(60) if study.unit.key is None else pd.factorize(table[study.unit.key])[0]
    assert np.array_equal(owners, rows.unit_of_record)
    counts = np.bincount(owners)
    assert len(counts) == 60
    # Who has one record weighs in one cell, who has all shares a unit's weight between them.
    assert (counts.min(), counts.max()) == (1, study.unit.max_records)
    assert (counts == 1).sum() > 20
    if windows is not None:
        assert study.windows is not None
        shown = windows[:, :, [name != study.windows.gap for name in study.windows.channels]]
        still = (np.isnan(shown) | (shown == shown[:, :1]) | np.isnan(shown[:, :1])).all(axis=(1, 2))
        assert 15 < still.sum() < 60
        reached = (~np.isnan(windows)).any(axis=2).sum(axis=1)
        assert (still & (reached == study.windows.length)).sum() > 15
        assert reached.max() == study.windows.length
        assert (reached.min() < study.windows.length) >= (study.windows.varies and study.windows.shorter == "allow")


@pytest.mark.parametrize("name", ["records", "units with several records", "events with gaps"])
def test_a_unit_is_the_same_in_whatever_company(name: str, tmp_path: Path) -> None:
    study = VARIANTS[name]
    rows = simulate_rows(study, units=20, seed=0)
    some = np.array([3, 11, 12])
    table, windows = read(rows, np.arange(20), study, tmp_path / "all")
    few, few_windows = read(rows, some, study, tmp_path / "some")
    wanted = np.isin(rows.unit_of_record, some)
    pd.testing.assert_frame_equal(few, table[wanted].reset_index(drop=True))
    if windows is not None:
        assert np.array_equal(few_windows, windows[some], equal_nan=True)


def test_rows_follow_from_the_seed() -> None:
    study = VARIANTS["events"]
    first, again, other = (simulate_rows(study, units=30, seed=seed) for seed in (1, 1, 2))
    everyone = np.arange(30)
    assert first.written(everyone, study) == again.written(everyone, study)
    assert first.written(everyone, study)["table"] != other.written(everyone, study)["table"]
    assert first.written(everyone, study)["series"] != other.written(everyone, study)["series"]


def test_values_with_a_meaning_and_missing_ones_are_met() -> None:
    records = simulate_rows(study_of(), units=400, seed=0).records
    assert 20 < (records["age"] == "7").sum() < 100
    assert 20 < (records["dose"] == "").sum() < 80
    assert not (records["exact"] == "").any()
    assert {len(text.partition(".")[2]) for text in records["dose"] if text} == {2}
