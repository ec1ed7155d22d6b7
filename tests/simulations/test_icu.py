"""The intensive-care scenario: its size, its study, its day of readings, and a death that the course foretells."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import TypeAdapter
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from common.data.schema import CategoricalColumn, Column, ContinuousColumn, check_columns, parse_table
from common.study import read_yaml
from simulations.scenarios import icu
from simulations.scenarios.icu import simulate_stays

STUDY_FILE = Path(icu.__file__).parents[1] / "studies" / "icu.yaml"
COLUMNS: TypeAdapter[dict[str, Column]] = TypeAdapter(dict[str, Column])
FEATURES = 23
LABS = (
    *("lactate", "creatinine", "bun", "wbc", "hemoglobin", "platelets"),
    *("sodium", "potassium", "bicarbonate", "glucose", "bilirubin"),
)


@pytest.fixture(scope="module")
def study() -> dict[str, Any]:
    return read_yaml(STUDY_FILE, what="study file")


@pytest.fixture(scope="module")
def stays() -> tuple[pd.DataFrame, pd.DataFrame]:
    return simulate_stays(seed=7)


@pytest.fixture(scope="module")
def records(stays: tuple[pd.DataFrame, pd.DataFrame]) -> pd.DataFrame:
    return stays[0]


@pytest.fixture(scope="module")
def series(stays: tuple[pd.DataFrame, pd.DataFrame]) -> pd.DataFrame:
    return stays[1]


@pytest.fixture(scope="module")
def readings(series: pd.DataFrame) -> dict[str, np.ndarray]:
    """Each channel as numbers, (patients, hours), NaN where nothing was written down."""
    return {name: pd.to_numeric(series[name]).to_numpy(float).reshape(-1, icu.HOURS) for name in icu.CHANNELS}


@pytest.fixture(scope="module")
def died(records: pd.DataFrame) -> np.ndarray:
    return records["died"].eq("yes").to_numpy()


def test_the_default_tables_have_the_size_and_shape_that_the_paper_describes(
    records: pd.DataFrame, series: pd.DataFrame
) -> None:
    assert len(records) == 53_500
    assert len(records.columns.drop(["patient", "hospital", "died"])) == FEATURES
    assert FEATURES + len(icu.CHANNELS) >= 30
    for table in (records, series):
        assert table.dtypes.eq("str").all()
        assert not table.isna().to_numpy().any()


def test_a_patient_has_one_record_and_a_row_for_each_hour_in_time_and_in_the_order_of_the_records(
    records: pd.DataFrame, series: pd.DataFrame
) -> None:
    assert records["patient"].is_unique
    assert series["patient"].tolist() == np.repeat(records["patient"].to_numpy(), icu.HOURS).tolist()
    assert series["hour"].tolist() == [str(hour) for hour in range(icu.HOURS)] * len(records)


def test_the_same_seed_gives_the_same_tables_and_another_seed_others() -> None:
    once, again, other = (simulate_stays(seed=seed, stays=200) for seed in (1, 1, 2))
    for at in range(2):
        pd.testing.assert_frame_equal(once[at], again[at])
        assert not once[at].drop(columns="patient").equals(other[at].drop(columns="patient"))
    assert set(once[0]["patient"]).isdisjoint(other[0]["patient"])


def test_the_study_takes_bounds_and_categories_from_the_simulator_and_not_from_rows(study: dict[str, Any]) -> None:
    columns = COLUMNS.validate_python({**study["columns"], **study["windows"]["channels"]})
    assert set(columns) == set(icu.CATEGORIES) | set(icu.BOUNDS)
    for name, column in columns.items():
        if isinstance(column, CategoricalColumn):
            assert column.values == icu.CATEGORIES[name]
        else:
            assert (column.min, column.max) == icu.BOUNDS[name]
            assert (column.decimals if isinstance(column, ContinuousColumn) else 0) == icu.DECIMALS.get(name, 0)


def test_the_study_names_the_key_the_label_and_the_window_of_the_tables(study: dict[str, Any]) -> None:
    windows = study["windows"]
    assert (study["unit"]["key"], study["ignore"]) == ("patient", ["hospital"])
    assert study["label"] == {"column": "died", "positive": "yes"}
    assert (windows["layout"], windows["length"], windows["step"]) == ("grid", icu.HOURS, 1)
    assert windows["time"] == {"column": "hour"}
    assert study["privacy"] == {"epsilon": 1, "delta": 1e-6}


@pytest.mark.parametrize("part", ["records", "series"])
def test_both_tables_parse_whole_under_the_columns_of_the_study(
    part: str, study: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    table: pd.DataFrame = request.getfixturevalue(part)
    columns = COLUMNS.validate_python(study["columns"] if part == "records" else study["windows"]["channels"])
    rest = study["ignore"] if part == "records" else [study["windows"]["time"]["column"]]
    check_columns(table, ["patient", *columns], rest)
    assert list(table.columns) == ["patient", *rest, *columns]
    parsed = parse_table(table, columns, unit_key="patient")
    gaps = {name for name in columns if parsed[name].isna().any()}
    assert gaps == {name for name, column in columns.items() if column.missing}


def test_every_cell_is_written_with_the_decimals_of_its_column(records: pd.DataFrame, series: pd.DataFrame) -> None:
    for name in icu.BOUNDS:
        table = series if name in icu.CHANNELS else records
        pattern = r"\d+\.\d" if name in icu.DECIMALS else r"\d+"
        distinct = pd.Series(table[name].unique())
        assert distinct[distinct.ne("")].str.fullmatch(pattern).all(), name


def test_every_category_occurs(records: pd.DataFrame) -> None:
    for name, values in icu.CATEGORIES.items():
        assert set(records[name]) == set(values)


def test_the_first_values_are_those_of_adults_in_intensive_care(records: pd.DataFrame) -> None:
    # Generous: quartiles of first values in MIMIC-III and similar units lie well within.
    usual = {
        "lactate": (1.0, 3.5), "creatinine": (0.6, 2.0), "bun": (10, 40), "wbc": (6, 17), "hemoglobin": (9, 13),
        "platelets": (110, 310), "sodium": (134, 143), "potassium": (3.5, 4.8), "bicarbonate": (18, 28),
        "glucose": (90, 210), "bilirubin": (0.3, 2.0),
    }  # fmt: skip
    for name, (low, high) in usual.items():
        quartiles = pd.to_numeric(records[name]).quantile([0.25, 0.75])
        assert quartiles.between(low, high).all(), name


def test_labs_that_are_rarely_ordered_are_missing_often_and_ordered_for_those_who_fare_badly(
    records: pd.DataFrame, died: np.ndarray
) -> None:
    share = records[list(LABS)].eq("").mean()
    assert share[["lactate", "bilirubin"]].between(0.3, 0.6).all()
    assert share.drop(["lactate", "bilirubin"]).between(0.01, 0.06).all()
    for name in ("lactate", "bilirubin"):
        absent = records[name].eq("")
        assert absent[died].mean() < absent[~died].mean() - 0.05


def test_one_in_nine_dies_and_hospitals_differ_in_that(records: pd.DataFrame, died: np.ndarray) -> None:
    rates = pd.Series(died).groupby(records["hospital"]).mean()
    assert 0.10 < died.mean() < 0.125
    assert rates.between(0.04, 0.20).all()
    assert rates.max() > 1.7 * rates.min()


def test_hospitals_differ_in_size_age_diagnosis_charting_and_instruments(
    records: pd.DataFrame, readings: dict[str, np.ndarray]
) -> None:
    hospital = records["hospital"]
    ages = pd.to_numeric(records["age"]).groupby(hospital).mean()
    cardiac = records["diagnosis"].eq("cardiac").groupby(hospital).mean()
    gaps = pd.Series(np.isnan(readings["heart_rate"]).mean(axis=1)).groupby(hospital).mean()
    # Of like patients, so that what differs is the instrument.
    alike = records["diagnosis"].eq("other")
    pressure = pd.DataFrame(readings["systolic_bp"]).mean(axis=1)[alike].groupby(hospital[alike]).mean()
    sizes = hospital.value_counts(normalize=True)
    assert sorted(sizes.index) == ["hospital_a", "hospital_b", "hospital_c", "hospital_d"]
    assert sizes.max() > 2 * sizes.min()
    assert ages.max() > ages.min() + 10
    assert cardiac.max() > 3 * cardiac.min()
    assert gaps.max() > 2 * gaps.min()
    assert pressure["hospital_d"] > pressure["hospital_c"] + 3


def test_each_vital_is_missing_at_some_hours_and_temperature_and_gcs_at_most(readings: dict[str, np.ndarray]) -> None:
    shares = {name: np.isnan(values).mean(axis=0) for name, values in readings.items()}
    for name, share in shares.items():
        low, high = {"temperature": (0.40, 0.60), "gcs": (0.65, 0.85)}.get(name, (0.05, 0.25))
        assert low < share.min() <= share.max() < high, name


def test_gaps_come_in_clumps_and_both_pressures_mostly_go_together(readings: dict[str, np.ndarray]) -> None:
    for name in icu.CHANNELS:
        if name != "gcs":
            gap = np.isnan(readings[name]).astype(float)
            assert _correlation(gap[:, 1:], gap[:, :-1]) > 0.35, name
    systolic, diastolic = np.isnan(readings["systolic_bp"]), np.isnan(readings["diastolic_bp"])
    assert diastolic[systolic].all()
    assert 0.0 < diastolic[~systolic].mean() < 0.015


def test_a_patient_who_is_away_is_missing_from_several_channels_at_once(readings: dict[str, np.ndarray]) -> None:
    heart, breath = (np.isnan(readings[name]).astype(float) for name in ("heart_rate", "spo2"))
    # Beyond what makes one patient's gaps more than another's.
    own = (gap - gap.mean(axis=1, keepdims=True) for gap in (heart, breath))
    assert _correlation(*own) > 0.1


def test_gcs_is_charted_every_four_hours_but_for_those_who_are_watched(
    records: pd.DataFrame, readings: dict[str, np.ndarray]
) -> None:
    charted = ~np.isnan(readings["gcs"])
    neuro = records["diagnosis"].eq("neuro").to_numpy()
    folded = charted[~neuro].reshape(-1, 6, 4).any(axis=1)  # by hour modulo four
    assert (folded.sum(axis=1) <= 1).all()
    assert 0.4 < (charted[neuro].sum(axis=1) > 6).mean() < 0.6


def test_the_worse_are_measured_more_often(readings: dict[str, np.ndarray], died: np.ndarray) -> None:
    for name in ("heart_rate", "systolic_bp", "spo2", "urine_ml"):
        gap = np.isnan(readings[name]).mean(axis=1)
        assert gap[died].mean() < 0.85 * gap[~died].mean(), name


def test_a_reading_resembles_the_one_before(readings: dict[str, np.ndarray]) -> None:
    for name, values in readings.items():
        # GCS is seldom charted in two hours running.
        low, high = (0.9, 0.99) if name == "gcs" else (0.85, 0.95)
        assert low < _correlation(values[:, 1:], values[:, :-1]) < high, name


def test_channels_hang_together_as_they_do_in_life(readings: dict[str, np.ndarray]) -> None:
    assert _correlation(readings["heart_rate"], readings["systolic_bp"]) < -0.2
    assert _correlation(readings["heart_rate"], readings["temperature"]) > 0.2
    assert _correlation(readings["respiratory_rate"], readings["spo2"]) < -0.25
    assert _correlation(readings["urine_ml"], readings["systolic_bp"]) > 0.1
    assert 0.6 < _correlation(readings["diastolic_bp"], readings["systolic_bp"]) < 0.9


def test_a_diastolic_pressure_is_below_the_systolic_one_even_in_the_deepest_shock(
    readings: dict[str, np.ndarray],
) -> None:
    generator = np.random.default_rng(5)
    patients = icu._draw_patients(generator, 4_000, 4)
    course = icu._draw_course(generator, patients)
    deep = icu._draw_readings(generator, patients, replace(course, circulation=course.circulation + 6))
    for values in (readings, deep):
        both = ~np.isnan(values["diastolic_bp"])
        assert (values["diastolic_bp"][both] < values["systolic_bp"][both]).all()


def test_records_hang_together_as_they_do_in_life(records: pd.DataFrame, readings: dict[str, np.ndarray]) -> None:
    diagnosis = records["diagnosis"]
    creatinine = pd.to_numeric(records["creatinine"]).groupby(diagnosis).median()
    lactate = pd.to_numeric(records["lactate"]).groupby(records["vasopressor"]).median()
    surgery = records["care_unit"].groupby(diagnosis).agg(lambda units: units.eq("cardiac_surgery").mean())
    ventilated = records["ventilated"].eq("yes")
    old = pd.to_numeric(records["age"]) >= 65
    scale = pd.DataFrame(readings["gcs"]).mean(axis=1)
    assert creatinine["renal"] > 2 * creatinine.drop("renal").max()
    assert lactate["yes"] > lactate["no"] + 0.5
    assert surgery["cardiac"] > 0.4 > 10 * surgery.drop("cardiac").max()
    assert 0.35 < ventilated.mean() < 0.60
    assert scale[ventilated].mean() < scale[~ventilated].mean() - 2  # sedation
    assert records["insurance"].eq("medicare")[old].mean() > 0.8 > 4 * records["insurance"].eq("medicare")[~old].mean()


def test_a_treatment_begins_in_the_hour_after_it_is_called_for_and_then_stays() -> None:
    called_for = np.zeros((icu.HOURS, 3), dtype=bool)
    called_for[[0, 5, 23], [0, 1, 2]] = True
    effect = icu._begin(called_for, hours=2.0)
    assert effect[:4, 0].tolist() == [0.0, 0.5, 1.0, 1.0]
    assert effect[4:9, 1].tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert effect[-1].tolist() == [1.0, 1.0, 0.0]


def test_a_vasopressor_lifts_the_pressure_that_shock_had_lowered() -> None:
    generator = np.random.default_rng(5)
    patients = icu._draw_patients(generator, 4_000, 4)
    course = icu._draw_course(generator, patients)
    means = {}
    for dose in (0.0, 1.0):
        given = replace(course, pressor=np.full_like(course.pressor, dose))
        means[dose] = icu._draw_readings(np.random.default_rng(6), patients, given)["systolic_bp"].mean()
    assert 8 < means[1.0] - means[0.0] < 14


def test_the_course_adds_clearly_to_what_the_record_tells_of_death(
    records: pd.DataFrame, readings: dict[str, np.ndarray], died: np.ndarray
) -> None:
    table = _record_features(records)
    alone = _ranking(table, died)
    joined = _ranking(table.join(_summaries(readings)), died)
    # With this many patients another seed moves either by about 0.01.
    assert 0.78 < alone < 0.83
    assert max(0.86, alone + 0.05) < joined < 0.92


def test_no_model_can_rank_better_than_the_law_of_death_itself() -> None:
    generator = np.random.default_rng(3)
    patients = icu._draw_patients(generator, 40_000, 4)
    course = icu._draw_course(generator, patients)
    labs = icu._draw_labs(generator, patients, course)
    readings = icu._draw_readings(generator, patients, course)
    log_odds = icu._admission_log_odds(patients, labs, course) + icu._course_log_odds(patients, readings)
    chance = icu._chance_of_death(log_odds)
    assert roc_auc_score(generator.random(len(chance)) < chance, chance) < 0.93


@pytest.mark.parametrize(("name", "middle"), [("sodium", (136, 142)), ("potassium", (3.8, 4.6)), ("wbc", (6, 14))])
def test_too_little_and_too_much_of_it_are_both_deadly(
    name: str, middle: tuple[float, float], records: pd.DataFrame, died: np.ndarray
) -> None:
    values = pd.to_numeric(records[name])
    inside = died[values.between(*middle)].mean()
    assert died[values.rank(pct=True) < 0.01].mean() > 1.3 * inside
    assert died[values.rank(pct=True) > 0.99].mean() > 1.3 * inside


def test_lactate_weighs_more_under_a_vasopressor(records: pd.DataFrame, died: np.ndarray) -> None:
    lactate = np.log(pd.to_numeric(records["lactate"]))
    slopes = {}
    for given in ("no", "yes"):
        kept = (records["vasopressor"].eq(given) & lactate.notna()).to_numpy()
        fit = LogisticRegression(C=1e6).fit(lactate[kept].to_numpy()[:, None], died[kept])
        slopes[given] = float(fit.coef_[0, 0])
    assert slopes["yes"] > slopes["no"] + 0.3


@pytest.mark.parametrize("name", ["systolic_bp", "spo2", "gcs"])
def test_those_who_die_go_to_the_worse(name: str, readings: dict[str, np.ndarray], died: np.ndarray) -> None:
    values = pd.DataFrame(readings[name])
    change = values.iloc[:, -6:].mean(axis=1) - values.iloc[:, :6].mean(axis=1)
    assert change[died].mean() < change[~died].mean() - 0.25 * change.std()


def test_those_who_die_have_an_unsteady_heart_and_low_pressure_for_hours(
    readings: dict[str, np.ndarray], died: np.ndarray
) -> None:
    spread = pd.DataFrame(readings["heart_rate"]).std(axis=1)
    low = pd.DataFrame((readings["systolic_bp"] + 2 * readings["diastolic_bp"]) / 3 < 65).sum(axis=1)
    assert spread[died].mean() > 1.15 * spread[~died].mean()
    assert low[died].mean() > low[~died].mean() + 2


def test_no_death_is_told_by_a_key_or_a_place(records: pd.DataFrame, died: np.ndarray) -> None:
    for told in (records["patient"].map(lambda key: int(key, 16)), np.arange(len(records))):
        assert 0.48 < roc_auc_score(died, told) < 0.52


@pytest.mark.parametrize("hospitals", [1, 6, icu.MOST_HOSPITALS])
def test_any_number_of_hospitals_up_to_the_alphabet_is_simulated(hospitals: int) -> None:
    names = simulate_stays(seed=3, stays=2_000, hospitals=hospitals)[0]["hospital"].unique()
    assert sorted(names) == [f"hospital_{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"[:hospitals]]


def test_the_fifth_hospital_repeats_the_character_of_the_first() -> None:
    records, _ = simulate_stays(seed=3, stays=12_000, hospitals=6)
    cardiac = records["diagnosis"].eq("cardiac").groupby(records["hospital"]).mean()
    assert abs(cardiac["hospital_a"] - cardiac["hospital_e"]) < 0.05
    assert abs(cardiac["hospital_b"] - cardiac["hospital_f"]) < 0.05 < cardiac["hospital_f"] - cardiac["hospital_e"]


def test_one_stay_is_simulated() -> None:
    records, series = simulate_stays(seed=3, stays=1)
    assert (len(records), len(series)) == (1, icu.HOURS)


@pytest.mark.parametrize(("stays", "hospitals"), [(0, 4), (10, 0), (10, icu.MOST_HOSPITALS + 1)])
def test_numbers_out_of_range_are_refused(stays: int, hospitals: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        simulate_stays(seed=3, stays=stays, hospitals=hospitals)


def _correlation(left: np.ndarray, right: np.ndarray) -> float:
    """Over the places where both are there."""
    both = ~np.isnan(left) & ~np.isnan(right)
    return float(np.corrcoef(left[both], right[both])[0, 1])


def _record_features(records: pd.DataFrame) -> pd.DataFrame:
    """The columns of a record that a model may use, as floats and categories."""
    features = records.drop(columns=["patient", "hospital", "died"])
    return features.apply(
        lambda cells: pd.to_numeric(cells).astype(float) if cells.name in icu.BOUNDS else cells.astype("category")
    )


def _summaries(readings: dict[str, np.ndarray]) -> pd.DataFrame:
    """Mean, spread, least, most, first, last and missing share of each channel."""
    columns: dict[str, pd.Series] = {}
    for name, values in readings.items():
        hours = pd.DataFrame(values.T)
        columns |= {f"{name}_{what}": getattr(hours, what)() for what in ("mean", "std", "min", "max")}
        columns |= {f"{name}_first": hours.bfill().iloc[0], f"{name}_last": hours.ffill().iloc[-1]}
        columns[f"{name}_missing"] = hours.isna().mean()
    return pd.DataFrame(columns)


def _ranking(features: pd.DataFrame, died: np.ndarray) -> float:
    """AUC of trees on a fifth of the patients, learned from as many as keep the test short."""
    train, test = slice(0, 24_000), slice(24_000, 36_000)
    model = HistGradientBoostingClassifier(
        categorical_features="from_dtype", learning_rate=0.1, max_iter=80, max_leaf_nodes=12, random_state=0
    )
    scores = model.fit(features[train], died[train]).predict_proba(features[test])[:, 1]
    return float(roc_auc_score(died[test], scores))
