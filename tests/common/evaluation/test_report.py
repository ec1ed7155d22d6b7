"""What evaluation.json holds: plain values, a reason for each gap, the same content for the same seed."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from common.data.schema import parse_table
from common.data.windows import WindowedTable
from common.evaluation.attacks.suite import Target
from common.evaluation.definitions import DEFINITIONS, WINDOW_DEFINITIONS
from common.evaluation.figures import Claim, People, Population
from common.evaluation.report import EVALUATION_SCHEMA, Level, Subject, evaluate
from common.study import Study, parse_study

PLAIN: dict[str, Any] = {
    "name": "toy",
    "label": {"column": "ill", "positive": "yes"},
    "columns": {
        "colour": {"type": "categorical", "categories": ["red", "green"], "missing": True},
        "age": {"type": "integer", "min": 0, "max": 100},
        "ill": {"type": "categorical", "categories": ["no", "yes"]},
    },
    "privacy": {"epsilon": 1, "delta": 1e-6},
}
STUDY: Study = parse_study(PLAIN, source="test")


def draw(n: int, seed: int, *, ill_when_old: bool = True) -> WindowedTable:
    generator = np.random.default_rng(seed)
    age = generator.integers(0, 101, n)
    text = pd.DataFrame(
        {
            "colour": generator.choice(["red", "green", ""], n),
            "age": age.astype(str),
            "ill": np.where((age > 60) == ill_when_old, "yes", "no"),
        }
    )
    return WindowedTable.without_windows(parse_table(text, STUDY.columns))


SYNTHETIC, TRAIN, HOLDOUT = draw(300, 1, ill_when_old=False), draw(250, 2), draw(200, 3)


def everybody(table: WindowedTable) -> Population:
    return Population(table, np.arange(len(table.records)))


def measure(
    synthetic: WindowedTable,
    train: WindowedTable,
    holdout: WindowedTable,
    *,
    seed: int = 0,
    study: Study = STUDY,
    level: Level = Level.BASIC,
    processes: int = 1,
) -> dict[str, Any]:
    people = People(*map(everybody, (train, holdout, holdout, holdout)))
    subject = Subject(Target(synthetic, Claim(1.0, 1e-6)))
    return evaluate(subject, people, study, level=level, seed=seed, processes=processes)


def write(
    synthetic: WindowedTable, train: WindowedTable, holdout: WindowedTable, *, seed: int = 0, study: Study = STUDY
) -> str:
    return json.dumps(measure(synthetic, train, holdout, seed=seed, study=study), allow_nan=False)


def read(
    synthetic: WindowedTable, train: WindowedTable, holdout: WindowedTable, *, seed: int = 0, study: Study = STUDY
) -> Any:
    return json.loads(write(synthetic, train, holdout, seed=seed, study=study))


def aged(table: WindowedTable, ages: np.ndarray | int) -> WindowedTable:
    return replace(table, records=table.records.assign(age=ages))


def test_it_is_json_without_nan_and_comes_back_as_it_went() -> None:
    assert read(SYNTHETIC, TRAIN, HOLDOUT) == measure(SYNTHETIC, TRAIN, HOLDOUT)


def test_constraints_are_counted_on_the_synthetic_rows() -> None:
    old = {"kind": "implies", "if": ["ill=yes"], "then": ["age>60"]}
    report = measure(SYNTHETIC, TRAIN, HOLDOUT, study=parse_study(PLAIN | {"constraints": [old]}, source="test"))
    assert report["constraints"] == {"ill=yes implies age>60": int((SYNTHETIC.records.ill == "yes").sum())}
    assert report["access"]["constraints"]["visibility"] == "public"
    assert "constraints" not in measure(SYNTHETIC, TRAIN, HOLDOUT)


@pytest.mark.slow
def test_several_processes_measure_the_same() -> None:
    alone = measure(SYNTHETIC, TRAIN, HOLDOUT, level=Level.QUICK)
    assert measure(SYNTHETIC, TRAIN, HOLDOUT, level=Level.QUICK, processes=2) == alone
    assert {"attacks", "controls"} <= alone.keys()


def test_it_says_what_was_compared() -> None:
    report = read(SYNTHETIC, TRAIN, HOLDOUT, seed=7)
    assert report["schema"] == EVALUATION_SCHEMA == "privshare.evaluation/2"
    assert report["study"] == STUDY.digest()
    assert report["seed"] == 7
    assert report["rows"] == {"synthetic": 300, "train": 250, "test": 200, "control": 200, "reference": 200}


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
    young = aged(TRAIN, np.arange(250) % 10)
    fidelity = read(aged(SYNTHETIC, 40 + np.arange(300) % 9), young, aged(HOLDOUT, 70))["fidelity"]
    assert fidelity["synthetic_vs_holdout"]["columns"]["age"] == 0
    assert fidelity["floor_train_vs_holdout"]["columns"]["age"] == 1


def test_the_same_seed_gives_the_same_text() -> None:
    assert write(SYNTHETIC, TRAIN, HOLDOUT, seed=3) == write(SYNTHETIC, TRAIN, HOLDOUT, seed=3)


def test_each_measurement_is_defined_in_one_sentence() -> None:
    report = read(SYNTHETIC, TRAIN, HOLDOUT)
    assert "windows" not in report
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
    tables[broken] = table.take(np.array([], int) if how == "empty" else (table.records["ill"] == "no").to_numpy())
    report = read(tables["synthetic"], tables["train"], tables["holdout"])
    measured = [*report["utility"]["tstr"].values(), *report["utility"]["trtr"].values(), *report["fidelity"].values()]
    assert any(entry["reason"] is not None for entry in measured)
    for entry in measured:
        assert (None in [value for key, value in entry.items() if key != "reason"]) == (entry["reason"] is not None)


# --- with windows

WINDOWED: Study = parse_study(
    {
        **PLAIN,
        "unit": {"name": "patient", "key": "patient"},
        "windows": {
            "layout": "events",
            "length": 6,
            "time": {"column": "minute"},
            "channels": {
                "pulse": {"type": "continuous", "min": 0, "max": 200, "missing": True},
                "ward": {"type": "categorical", "categories": ["a", "b"]},
            },
        },
    },
    source="test",
)


def draw_windows(n: int, seed: int, *, ill_when_rising: bool = True) -> WindowedTable:
    """Units whose pulse rises or falls; its direction alone says who is ill."""
    generator = np.random.default_rng(seed)
    rising = generator.random(n) < 0.5
    table = draw(n, seed + 100)
    ill = pd.Categorical.from_codes((rising == ill_when_rising).astype(int), dtype=table.records["ill"].dtype)
    slope = np.where(rising, 8.0, -8.0)[:, None] * np.arange(6)
    pulse = 100 + slope + generator.normal(0, 4, (n, 6))
    pulse[generator.random((n, 6)) < 0.1] = np.nan
    values = np.stack([pulse, generator.integers(0, 2, (n, 6)).astype(float)], axis=2)
    lengths = generator.integers(4, 7, n)
    values[np.arange(6) >= lengths[:, None]] = np.nan
    return WindowedTable(table.records.assign(ill=ill), values, lengths)


MADE, LEARNT, KEPT = draw_windows(110, 1, ill_when_rising=False), draw_windows(100, 2), draw_windows(90, 3)


@pytest.fixture(scope="module")
def windowed() -> Any:
    return read(MADE, LEARNT, KEPT, study=WINDOWED)


def test_a_study_with_windows_has_their_figures_beside_those_of_records(windowed: Any) -> None:
    assert windowed["rows"] == {"synthetic": 110, "train": 100, "test": 90, "control": 90, "reference": 90}
    assert windowed["study"] == WINDOWED.digest()
    records = [WindowedTable.without_windows(table.records) for table in (MADE, LEARNT, KEPT)]
    assert windowed["fidelity"] == read(*records)["fidelity"]
    assert set(windowed["windows"]) == {"synthetic_vs_holdout", "floor_train_vs_holdout", "prediction"}
    assert set(windowed["windows"]["floor_train_vs_holdout"]["channels"]) == {"pulse", "ward"}
    assert windowed == measure(MADE, LEARNT, KEPT, study=WINDOWED)


def test_tstr_uses_the_synthetic_windows_and_trtr_the_real_ones(windowed: Any) -> None:
    utility = windowed["utility"]
    for name in ("gradient_boosting_on_summaries", "sequence_classifier"):
        assert utility["trtr"][name]["auc"] > 0.9
        assert utility["tstr"][name]["auc"] < 0.1
    # What the columns say of the label is nothing, whoever is asked.
    assert 0.2 < utility["trtr"]["gradient_boosting_static"]["auc"] < 0.8


def test_distances_and_predictions_are_those_of_the_tables_that_they_name() -> None:
    # The pulse of the synthetic units is higher, and jumps where the real one glides.
    jumps = MADE.values.copy()
    jumps[:, :, 0] = np.where(np.isnan(jumps[:, :, 0]), np.nan, 140 + 30 * (np.arange(6) % 2))
    report = read(replace(MADE, values=jumps), LEARNT, KEPT, study=WINDOWED)["windows"]
    far, near = report["synthetic_vs_holdout"], report["floor_train_vs_holdout"]
    assert far["numeric_marginal"] > 3 * near["numeric_marginal"]
    assert far["change"] > 3 * near["change"]
    assert far["channels"]["pulse"]["lag_1_real"] == near["channels"]["pulse"]["lag_1_real"]
    assert report["prediction"]["tstr"]["error"] > 1.3 * report["prediction"]["trtr"]["error"]


def test_copies_of_windows_have_the_distances_of_what_they_copy() -> None:
    report = read(LEARNT, LEARNT, KEPT, study=WINDOWED)
    windows = report["windows"]
    assert windows["synthetic_vs_holdout"] == windows["floor_train_vs_holdout"]
    assert windows["prediction"]["tstr"] == windows["prediction"]["trtr"]
    assert report["utility"]["tstr"] == report["utility"]["trtr"]
    copied = read(KEPT, LEARNT, KEPT, study=WINDOWED)["windows"]
    assert copied["synthetic_vs_holdout"]["numeric_marginal"] == 0
    assert copied["floor_train_vs_holdout"] == windows["floor_train_vs_holdout"]


def test_each_measurement_of_windows_is_defined_in_one_sentence(windowed: Any) -> None:
    defined = DEFINITIONS | WINDOW_DEFINITIONS
    assert windowed["definitions"] == defined
    # None of them changes what a study without windows means by a name.
    assert not set(DEFINITIONS) & set(WINDOW_DEFINITIONS)
    windows = windowed["windows"]
    figures = {name.removesuffix("_within") for name in windows["synthetic_vs_holdout"]} - {"channels", "reasons"}
    for named in (windowed["utility"], windowed["utility"]["tstr"], figures, {"prediction"}):
        assert set(named) <= set(defined)
    assert all(text.endswith(".") and text.count(". ") == 0 for text in WINDOW_DEFINITIONS.values())


@pytest.mark.parametrize("broken", ["synthetic", "train", "holdout"])
def test_without_units_whatever_is_null_of_windows_has_its_reason(broken: str) -> None:
    tables = {"synthetic": MADE, "train": LEARNT, "holdout": KEPT}
    tables[broken] = tables[broken].take(np.array([], int))
    report = read(tables["synthetic"], tables["train"], tables["holdout"], study=WINDOWED)
    windows = report["windows"]
    for entry in (windows["synthetic_vs_holdout"], windows["floor_train_vs_holdout"]):
        assert {name for name, value in entry.items() if value is None} == set(entry["reasons"])
    assert ("length" in windows["synthetic_vs_holdout"]["reasons"]) == (broken != "train")
    assert ("length" in windows["floor_train_vs_holdout"]["reasons"]) == (broken != "synthetic")
    measured = [*windows["prediction"].values(), *report["utility"]["tstr"].values(), *report["fidelity"].values()]
    assert any(entry["reason"] is not None for entry in measured)
    for entry in measured:
        assert (None in [value for key, value in entry.items() if key != "reason"]) == (entry["reason"] is not None)


def noisy(n: int, seed: int, *, share: float) -> WindowedTable:
    """So large a share is ill, and older on average; the ages overlap."""
    random = np.random.default_rng(seed)
    ill = np.arange(n) < share * n
    age = np.clip(random.normal(np.where(ill, 60, 45), 15), 0, 100).round().astype(int)
    text = {"colour": np.full(n, "red"), "age": age.astype(str), "ill": np.where(ill, "yes", "no")}
    return WindowedTable.without_windows(parse_table(pd.DataFrame(text, dtype="str"), STUDY.columns))


def test_what_equal_classes_teach_is_read_at_the_share_of_positives_of_the_plain_table() -> None:
    plain, equal, test = noisy(600, 1, share=0.1), noisy(600, 2, share=0.5), noisy(500, 3, share=0.1)
    people = People(*map(everybody, (noisy(600, 4, share=0.1), test, test, test)))
    subject = Subject(Target(plain, Claim(1.0, 1e-6)), balanced=equal)
    utility = evaluate(subject, people, STUDY, level=Level.BASIC, seed=0)["utility"]
    taught = measure(equal, *[people.members.table, test])["utility"]["tstr"]
    assert utility["equal_classes"] == taught
    for name in ("logistic_regression", "gradient_boosting"):
        # Taught by equal classes as they are, a classifier calls many more rows positive.
        assert utility["equal_classes"][name]["recall"] > utility["tstr"][name]["recall"] + 0.2
        for which, scores in (("as_released", utility["tstr"]), ("equal_classes", taught)):
            controlled = utility["controlled"][which][name]
            assert controlled["auc"] == scores[name]["auc"]
            # As many are called positive as are: precision is recall.
            assert abs(controlled["precision"] - controlled["recall"]) < 0.1


def test_tables_that_are_not_given_are_not_measured() -> None:
    assert not {"draws", "controlled", "equal_classes"} & set(measure(SYNTHETIC, TRAIN, HOLDOUT)["utility"])
