"""What evaluation.json holds: plain values, a reason for each gap, the same content for the same seed."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from common.data.schema import parse_table
from common.evaluation.report import DEFINITIONS, EVALUATION_SCHEMA, evaluate
from common.study import Study, parse_study

STUDY: Study = parse_study(
    {
        "name": "toy",
        "label": {"column": "ill", "positive": "yes"},
        "columns": {
            "colour": {"type": "categorical", "categories": ["red", "green"], "missing": True},
            "age": {"type": "integer", "min": 0, "max": 100},
            "ill": {"type": "categorical", "categories": ["no", "yes"]},
        },
        "privacy": {"epsilon": 1, "delta": 1e-6},
    },
    source="test",
)


def draw(n: int, seed: int, *, ill_when_old: bool = True) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    age = generator.integers(0, 101, n)
    text = pd.DataFrame(
        {
            "colour": generator.choice(["red", "green", ""], n),
            "age": age.astype(str),
            "ill": np.where((age > 60) == ill_when_old, "yes", "no"),
        }
    )
    return parse_table(text, STUDY.columns)


SYNTHETIC, TRAIN, HOLDOUT = draw(300, 1, ill_when_old=False), draw(250, 2), draw(200, 3)


def write(synthetic: pd.DataFrame, train: pd.DataFrame, holdout: pd.DataFrame, *, seed: int = 0) -> str:
    return json.dumps(evaluate(synthetic, train, holdout, STUDY, seed=seed), allow_nan=False)


def read(synthetic: pd.DataFrame, train: pd.DataFrame, holdout: pd.DataFrame, *, seed: int = 0) -> Any:
    return json.loads(write(synthetic, train, holdout, seed=seed))


def test_it_is_json_without_nan_and_comes_back_as_it_went() -> None:
    assert read(SYNTHETIC, TRAIN, HOLDOUT) == evaluate(SYNTHETIC, TRAIN, HOLDOUT, STUDY, seed=0)


def test_it_says_what_was_compared() -> None:
    report = read(SYNTHETIC, TRAIN, HOLDOUT, seed=7)
    assert report["schema"] == EVALUATION_SCHEMA == "privshare.evaluation/1"
    assert report["study"] == STUDY.digest()
    assert report["seed"] == 7
    assert report["rows"] == {"synthetic": 300, "train": 250, "holdout": 200}


def test_tstr_uses_the_synthetic_rows_and_trtr_the_real_ones() -> None:
    utility = read(SYNTHETIC, TRAIN, HOLDOUT)["utility"]
    for name in ("logistic_regression", "gradient_boosting"):
        assert utility["trtr"][name]["auc"] > 0.95
        assert utility["tstr"][name]["auc"] < 0.05


def test_a_copy_of_the_training_table_has_no_distance_to_it_and_the_floor_to_the_holdout() -> None:
    report = read(TRAIN, TRAIN, HOLDOUT)
    fidelity = report["fidelity"]
    assert fidelity["synthetic_vs_train"]["two_way_max"] == 0
    assert fidelity["synthetic_vs_holdout"] == fidelity["floor_train_vs_holdout"]
    assert fidelity["floor_train_vs_holdout"]["one_way_mean"] > 0
    assert report["utility"]["tstr"] == report["utility"]["trtr"]


def test_a_copy_of_the_holdout_has_no_distance_to_it() -> None:
    fidelity = read(HOLDOUT, TRAIN, HOLDOUT)["fidelity"]
    assert fidelity["synthetic_vs_holdout"]["two_way_max"] == 0
    assert fidelity["synthetic_vs_train"] == fidelity["floor_train_vs_holdout"]


def test_all_distances_are_cut_at_the_edges_of_the_training_table() -> None:
    # All training ages lie far below the others, so that those share one cell.
    young = TRAIN.assign(age=np.arange(len(TRAIN)) % 10)
    old = [table.assign(age=ages) for table, ages in ((SYNTHETIC, 40 + np.arange(300) % 9), (HOLDOUT, 70))]
    fidelity = read(old[0], young, old[1])["fidelity"]
    assert fidelity["synthetic_vs_holdout"]["columns"]["age"] == 0
    assert fidelity["floor_train_vs_holdout"]["columns"]["age"] == 1


def test_the_same_seed_gives_the_same_text() -> None:
    assert write(SYNTHETIC, TRAIN, HOLDOUT, seed=3) == write(SYNTHETIC, TRAIN, HOLDOUT, seed=3)


def test_each_measurement_is_defined_in_one_sentence() -> None:
    report = read(SYNTHETIC, TRAIN, HOLDOUT)
    assert report["definitions"] == DEFINITIONS
    for named in (report["utility"], report["utility"]["tstr"], report["utility"]["tstr"]["gradient_boosting"]):
        assert set(named) <= set(DEFINITIONS)
    assert {"one_way", "two_way", *report["fidelity"]} <= set(DEFINITIONS)
    assert all(text.endswith(".") and text.count(". ") == 0 for text in DEFINITIONS.values())


@pytest.mark.parametrize("broken", ["synthetic", "train", "holdout"])
@pytest.mark.parametrize("how", ["empty", "single class"])
def test_whatever_is_null_has_its_reason_beside_it(broken: str, how: str) -> None:
    tables = {"synthetic": SYNTHETIC, "train": TRAIN, "holdout": HOLDOUT}
    table = tables[broken]
    tables[broken] = table.iloc[:0] if how == "empty" else table[table["ill"] == "no"]
    report = read(tables["synthetic"], tables["train"], tables["holdout"])
    measured = [*report["utility"]["tstr"].values(), *report["utility"]["trtr"].values(), *report["fidelity"].values()]
    assert any(entry["reason"] is not None for entry in measured)
    for entry in measured:
        assert (None in [value for key, value in entry.items() if key != "reason"]) == (entry["reason"] is not None)
