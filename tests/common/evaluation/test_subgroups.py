"""Groups by public rules alone; figures of the rows of a group; a gap beside the gap of chance."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.metrics import recall_score, roc_auc_score

from common.data.schema import parse_table
from common.evaluation.scores import Predictions, interval, resample
from common.evaluation.subgroups import grouping_columns, measure_subgroups
from common.study import Study, parse_study

STUDY: Study = parse_study(
    {
        "name": "toy",
        "label": {"column": "ill", "positive": "yes"},
        "columns": {
            "sex": {"type": "categorical", "categories": ["f", "m"], "missing": True},
            "age": {"type": "integer", "min": 0, "max": 80},
            "account_age": {"type": "continuous", "min": 0, "max": 255, "scale": "log", "missing": True},
            "dosage": {"type": "integer", "min": 0, "max": 80},
            "ward": {"type": "categorical", "categories": [*"abcdefghi"]},
            "ill": {"type": "categorical", "categories": ["no", "yes"]},
        },
        "privacy": {"epsilon": 1, "delta": 1e-6},
    },
    source="test",
)


def draw(n: int, seed: int, *, blind_to: str = "") -> tuple[pd.DataFrame, Predictions]:
    """A table and right probabilities, but for one sex, of which nothing is known."""
    random = np.random.default_rng(seed)
    scores = expit(random.normal(0, 1.5, n))
    ill = random.random(n) < scores
    sex = random.choice(["f", "m", ""], n, p=[0.5, 0.4, 0.1])
    scores = np.where(sex == blind_to, random.random(n), scores) if blind_to else scores
    text = pd.DataFrame(
        {
            "sex": sex,
            "age": random.integers(0, 81, n).astype(str),
            "account_age": np.where(random.random(n) < 0.2, "", (2 ** (8 * random.random(n)) - 1).astype(str)),
            "dosage": random.integers(0, 81, n).astype(str),
            "ward": random.choice([*"abcdefghi"], n),
            "ill": np.where(ill, "yes", "no"),
        }
    )
    return parse_table(text, STUDY.columns), Predictions(ill, scores, 0.5)


TABLE, PREDICTIONS = draw(1500, 0)


def figures(found: dict[str, Any], column: str) -> dict[str | None, Any]:
    return {entry["group"]: entry for entry in found["columns"][column]["groups"]}


def known(predictions: Predictions) -> np.ndarray:
    assert predictions.scores is not None
    return predictions.scores


def test_figures_are_those_of_the_rows_of_each_group() -> None:
    found = measure_subgroups(PREDICTIONS, TABLE, STUDY, seed=3)
    age, account = (TABLE[name].to_numpy(dtype=float) for name in ("age", "account_age"))
    masks: dict[str, dict[str | None, np.ndarray]] = {
        "sex": {"f": TABLE["sex"] == "f", "m": TABLE["sex"] == "m", None: TABLE["sex"].isna()},
        "age": {
            "[0, 20)": age < 20,
            "[20, 40)": (age >= 20) & (age < 40),
            "[40, 60)": (age >= 40) & (age < 60),
            "[60, 80]": age >= 60,
        },
        # On the logarithm of one more, equal parts end at powers of four less one.
        "account_age": {
            "[0, 3)": account < 3,
            "[3, 15)": (account >= 3) & (account < 15),
            "[15, 63)": (account >= 15) & (account < 63),
            "[63, 255]": account >= 63,
            None: np.isnan(account),
        },
    }
    assert list(found["columns"]) == list(masks)
    truth, scores = PREDICTIONS.truth, known(PREDICTIONS)
    for column, groups in masks.items():
        entries = figures(found, column)
        assert list(entries) == list(groups)
        assert sum(entry["auc"]["n"] for entry in entries.values()) == len(TABLE)
        for group, mask in groups.items():
            rows = np.flatnonzero(mask)
            auc, recall = entries[group]["auc"], entries[group]["recall"]
            assert (auc["n"], recall["n"]) == (len(rows), truth[rows].sum())
            assert auc["value"] == pytest.approx(roc_auc_score(truth[rows], scores[rows]))
            assert recall["value"] == pytest.approx(recall_score(truth[rows], scores[rows] >= 0.5))
            drawn = resample(PREDICTIONS.take(rows), seed=3, draws=300)
            assert (auc["low"], auc["high"]) == interval(drawn["auc"])
            assert (recall["low"], recall["high"]) == interval(drawn["recall"])
        for measure in ("auc", "recall"):
            values = [entry[measure]["value"] for entry in entries.values()]
            assert found["columns"][column][f"{measure}_gap"]["value"] == pytest.approx(max(values) - min(values))
            assert found["columns"][column][f"{measure}_gap"]["n"] == len(groups)


def test_the_largest_gap_names_its_column() -> None:
    table, predictions = draw(1500, 1, blind_to="m")
    found = measure_subgroups(predictions, table, STUDY, seed=0)
    gap = found["auc_gap"]
    assert gap["column"] == "sex"
    assert {name: value for name, value in gap.items() if name != "column"} == found["columns"]["sex"]["auc_gap"]
    assert gap["value"] > 3 * gap["chance"]
    assert gap["value"] == max(column["auc_gap"]["value"] for column in found["columns"].values())
    assert figures(found, "sex")["m"]["auc"]["low"] < 0.5 < figures(found, "sex")["f"]["auc"]["low"]


def test_the_gap_of_chance_is_the_mean_gap_of_a_classifier_that_serves_all_alike() -> None:
    gaps: dict[str, list[tuple[float, float]]] = {"auc_gap": [], "recall_gap": []}
    for seed in range(30):
        table, predictions = draw(600, 100 + seed)
        age = measure_subgroups(predictions, table, STUDY, seed=seed, by=["age"])["columns"]["age"]
        for name, pairs in gaps.items():
            pairs.append((age[name]["value"], age[name]["chance"]))
    for pairs in gaps.values():
        found, chance = np.mean(pairs, axis=0)
        # The standard deviation of a gap of four is 0.43 of its mean: of the mean of 30, 0.08.
        assert found == pytest.approx(chance, rel=0.24)


def test_a_group_of_few_units_is_left_out_with_the_reason_however_many_rows_they_have() -> None:
    rows = np.arange(len(TABLE))
    entries = figures(measure_subgroups(PREDICTIONS, TABLE, STUDY, seed=0), "sex")
    assert entries[None]["auc"]["value"] is not None
    # As many rows, of 40 units with both kinds of rows each.
    few = measure_subgroups(PREDICTIONS, TABLE, STUDY, seed=0, units=rows % 40, by=["sex"])
    reason = "fewer than 50 units with a positive row, or with another"
    for entry in figures(few, "sex").values():
        for figure in (entry["auc"], entry["recall"]):
            assert figure == {**dict.fromkeys(figure), "n": figure["n"], "reason": reason}
            assert 30 < figure["n"] <= 40
    # Positive rows of 49 units, then of 50.
    women = np.flatnonzero(TABLE["sex"] == "f")
    for positives, measured in ((49, False), (50, True)):
        truth = np.ones(len(TABLE), dtype=bool)
        truth[women] = np.arange(len(women)) < positives
        truth[rows[::2]] &= np.isin(rows[::2], women)
        for labels in (truth, ~truth):
            found = measure_subgroups(Predictions(labels, PREDICTIONS.scores), TABLE, STUDY, seed=0, by=["sex"])
            assert (figures(found, "sex")["f"]["auc"]["value"] is not None) == measured
            assert (figures(found, "sex")["f"]["recall"]["reason"] is None) == measured


def test_fewer_than_two_groups_have_no_gap() -> None:
    women = TABLE[TABLE["sex"] == "f"].reset_index(drop=True)
    predictions = PREDICTIONS.take(np.flatnonzero(TABLE["sex"] == "f"))
    found = measure_subgroups(predictions, women, STUDY, seed=0, by=["sex"])
    assert [entry["auc"]["n"] for entry in figures(found, "sex").values()] == [len(women), 0, 0]
    for measure in ("auc_gap", "recall_gap"):
        gap = found["columns"]["sex"][measure]
        assert (gap["value"], gap["n"], gap["reason"]) == (None, 1, "fewer than two groups can be measured")
        assert found[measure]["column"] is None
        assert found[measure]["reason"] == "no column has two groups that can be measured"


def test_which_columns_make_groups_follows_from_the_schema() -> None:
    assert grouping_columns(STUDY.features) == ["sex", "age", "account_age"]
    columns = {
        "eight": {"type": "categorical", "categories": [*"abcdefgh"]},
        "eight_and_other": {"type": "categorical", "categories": [*"abcdefgh"], "unlisted": "other"},
        **{
            name: {"type": "integer", "min": 0, "max": 9}
            for name in ("Age", "age2", "holder_age", "AGE years", "stage", "agent", "percentage")
        },
        "ill": {"type": "categorical", "categories": ["no", "yes"]},
    }
    study = parse_study({**STUDY.model_dump(mode="json", by_alias=True), "columns": columns}, source="test")
    assert grouping_columns(study.features) == ["eight", "Age", "age2", "holder_age", "AGE years"]
    chosen = measure_subgroups(PREDICTIONS, TABLE, STUDY, seed=0, by=["dosage", "ward"])
    assert list(chosen["columns"]) == ["dosage", "ward"]
    assert list(figures(chosen, "ward")) == [*"abcdefghi"]
    for wrong in ("ill", "height"):
        with pytest.raises(ValueError, match=f"by: {wrong}: expected features"):
            measure_subgroups(PREDICTIONS, TABLE, STUDY, seed=0, by=["sex", wrong])


def test_rows_of_a_unit_are_drawn_together() -> None:
    once = measure_subgroups(PREDICTIONS, TABLE, STUDY, seed=0)
    rows = np.tile(np.arange(len(TABLE)), 2)
    table, predictions = TABLE.iloc[rows].reset_index(drop=True), PREDICTIONS.take(rows)
    twice = measure_subgroups(predictions, table, STUDY, seed=0, units=rows)
    apart = measure_subgroups(predictions, table, STUDY, seed=0)
    for name in once["columns"]:
        for measure in ("auc", "recall"):
            gaps = [found["columns"][name][f"{measure}_gap"] for found in (once, twice, apart)]
            assert gaps[1] == pytest.approx(gaps[0])
            assert gaps[2]["chance"] < 0.85 * gaps[0]["chance"]
            assert [entry[measure] for entry in twice["columns"][name]["groups"]] == [
                pytest.approx(entry[measure]) for entry in once["columns"][name]["groups"]
            ]


def test_without_scores_there_are_no_groups_but_the_reason() -> None:
    found = measure_subgroups(Predictions(PREDICTIONS.truth, reason="not learnt"), TABLE, STUDY, seed=0)
    assert found["columns"] == {}
    for measure in ("auc_gap", "recall_gap"):
        assert found[measure] == {**dict.fromkeys(found[measure]), "n": 0, "reason": "not learnt"}


def test_tables_and_units_of_other_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="test: expected the rows"):
        measure_subgroups(PREDICTIONS, TABLE.iloc[:-1], STUDY, seed=0)
    with pytest.raises(ValueError, match="units: expected one for each"):
        measure_subgroups(PREDICTIONS, TABLE, STUDY, seed=0, units=np.arange(3))


def test_the_same_seed_gives_the_same_plain_values() -> None:
    first = measure_subgroups(PREDICTIONS, TABLE, STUDY, seed=1)
    assert first == measure_subgroups(PREDICTIONS, TABLE, STUDY, seed=1)
    assert first != measure_subgroups(PREDICTIONS, TABLE, STUDY, seed=2)
    assert json.loads(json.dumps(first, allow_nan=False)) == first
