"""The data card and the Croissant metadata: made from what is released, whatever names a study has."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from common.data.binning import Binning
from common.synthesis.card import as_json, card_columns, make_card, make_croissant
from common.synthesis.release import Release
from common.synthesis.rows import draw_units, tables_of
from common.synthesis.tables import as_csv
from tests.common.synthesis.releases import PLAIN, WINDOWS, make_release, study_of

GATE = {"id": "monitor_auc", "rule": "0.8 or more", "value": 0.8321, "threshold": 0.8, "passed": True}


def published(release: Release) -> dict[str, bytes]:
    units = draw_units(release, rows=20, seed=0, device=torch.device("cpu"))
    study = release.study
    return {
        name: as_csv(table, study.columns | study.channels).encode() for name, table in tables_of(units, study).items()
    }


def test_the_card_says_what_is_released() -> None:
    release = make_release(study_of(purpose="Who falls ill?"))
    card = make_card(release, rows=4321, gates=[GATE])
    for said in ("Who falls ill?", "4321", "about 100 ", "ε at most 1.0", "δ = 1e-06", "`ill`", "`yes` 30.0 %",
                 "whole number, 0 to 90, may be missing", "| `monitor_auc` | 0.832 | `0.8 or more` |",
                 "three columns or more"):  # fmt: skip
        assert said in card, said
    assert "No row violates" not in card
    assert "window" not in card
    assert "\n\n\n" not in card


def test_constraints_and_windows_are_on_the_card() -> None:
    limit = {"kind": "implies", "if": ["ill=yes"], "then": ["age>=18"]}
    total = {"kind": "sum", "total": "both", "parts": ["pay", "dose"]}
    columns = PLAIN["columns"] | {"both": {"type": "continuous", "min": -5, "max": 6}}
    study = study_of(columns=columns, constraints=[limit, total], windows=WINDOWS, discriminators={"semantic": 1})
    card = make_card(make_release(study), rows=10)
    assert "No row violates: `ill=yes implies age>=18`; `both = pay + dose`." in card
    assert "| `both` | number, -5.0 to 6.0 | computed |  |" in card
    assert "at most 4 steps in a second table, joined by `person`" in card
    assert "three columns or more" not in card
    assert "No figure that could be made public" in card


def test_what_noise_has_joined_is_weak() -> None:
    release = make_release()
    names = list(release.study.measured)
    joined = np.array([0, 1, 1, 1, 2])
    few = np.append(np.repeat([0, 1], 10), 2)
    even = {"colour": joined, "age": few}
    binnings = tuple(
        Binning(even[name], np.ones((2, len(even[name])))) if name in even else own
        for name, own in zip(names, release.binnings, strict=True)
    )
    found = {column.name: column for column in card_columns(replace(release, binnings=binnings))}
    assert found["colour"].weak == "too rare for the noise to be told apart: green, =2+3, a,b:0.5"
    assert found["colour"].bins == 3
    assert found["age"].weak == "only 2 levels are told apart"
    assert found["pay"].weak == ""
    assert found["ill"].bins == 2


def test_names_cannot_write_markup() -> None:
    hostile = "`|<script>\n# x"
    columns = {hostile: {"type": "categorical", "categories": ["a", "`b|c"]}, **PLAIN["columns"]}
    card = make_card(make_release(study_of(columns=columns)), rows=1)
    lines = [line for line in card.splitlines() if "script" in line]
    assert len(lines) == 1
    assert lines[0].startswith("| `` `\\|<script> # x `` |")


def test_croissant_describes_each_table_as_it_is() -> None:
    release = make_release(study_of(windows=WINDOWS))
    tables = published(release)
    metadata: dict[str, Any] = json.loads(as_json(make_croissant(release, tables)))
    assert metadata["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    assert [one["@id"] for one in metadata["distribution"]] == ["synthetic.csv", "synthetic-windows.csv"]
    fields = {one["@id"]: {field["name"]: field["dataType"] for field in one["field"]} for one in metadata["recordSet"]}
    assert fields["synthetic"] == {
        "person": "sc:Text", "colour": "sc:Text", "age": "sc:Integer", "pay": "sc:Float", "dose": "sc:Float",
        "ill": "sc:Text",
    }  # fmt: skip
    assert fields["synthetic-windows"] == {"person": "sc:Text", "hour": "sc:Float", "pulse": "sc:Integer"}
    stamped = WINDOWS | {"time": {"column": "hour", "type": "timestamp"}, "start": "first"}
    release = make_release(study_of(windows=stamped))
    metadata = make_croissant(release, published(release))
    (series,) = (one for one in metadata["recordSet"] if one["@id"] == "synthetic-windows")
    assert {field["name"]: field["dataType"] for field in series["field"]}["hour"] == "sc:DateTime"
    sources = {field["source"]["fileObject"]["@id"] for one in metadata["recordSet"] for field in one["field"]}
    assert sources == set(tables)
