"""MIMIC-III as a study's tables: a database written down by hand, and the open demo."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from client.folders import CsvFolder
from client.presets.measures import CHANNELS, COLUMNS, DIAGNOSES, LABORATORY, WEIGHT
from client.presets.mimic3 import BEDSIDE, CODES, LABORATORY_ITEMS, URINE, read_mimic3
from client.presets.tables import read_preset
from client.records import parse_text, read_records, read_windows
from client.sources import FileSettings
from common.data.schema import CategoricalColumn, ContinuousColumn, IntegerColumn
from common.errors import SchemaError, StudyError
from common.study import Study, load_study, parse_study
from tests.client.presets.frames import Frames, table

STUDY = Path(__file__).resolve().parents[3] / "simulations" / "studies" / "mimic3.yaml"

# Ann: her second stay begins earlier in the file. Bob: a child. Cid: born three hundred years too early, in a unit
# for the newborn first. Dan: two stays at one time. Eve: nothing was read.
HOSPITAL = {
    "patients": table("""
        subject_id | gender | dob
        1          | F      | 2100-06-02 00:00:00
        2          | M      | 2140-01-01 00:00:00
        3          | M      | 1850-01-01 00:00:00
        4          | M      | 2100-01-01 00:00:00
        5          | F      | 2110-01-01 00:00:00
    """),
    "admissions": table("""
        hadm_id | admittime | admission_type | admission_location | insurance | ethnicity | hospital_expire_flag
        11 | 2150-06-01 10:00:00 | EMERGENCY | EMERGENCY ROOM ADMIT      | Medicare | WHITE - RUSSIAN            | 0
        12 | 2151-01-01 10:00:00 | ELECTIVE  | PHYS REFERRAL/NORMAL DELI | Self Pay | WHITE                      | 1
        21 | 2150-06-01 10:00:00 | URGENT    | CLINIC REFERRAL/PREMATURE | Private  | ASIAN                      | 0
        31 | 2150-06-06 10:00:00 | URGENT    | TRANSFER FROM HOSP/EXTRAM | Medicaid | BLACK/AFRICAN AMERICAN     | 1
        41 | 2150-06-01 10:00:00 | URGENT    | ** INFO NOT AVAILABLE **  | Private  | HISPANIC/LATINO - CUBAN    | 0
        51 | 2150-06-01 10:00:00 | URGENT    |                           | Private  | UNKNOWN/NOT SPECIFIED      | 0
    """),
    "icustays": table("""
        subject_id | hadm_id | icustay_id | first_careunit | intime              | outtime
        1          | 12      | 120        | SICU           | 2151-01-01 11:00:00 | 2151-01-03 11:00:00
        1          | 11      | 110        | MICU           | 2150-06-01 10:30:15 | 2150-06-01 12:30:15
        2          | 21      | 210        | CCU            | 2150-06-01 10:00:00 | 2150-06-03 10:00:00
        3          | 31      | 310        | NICU           | 2150-06-06 10:00:00 | 2150-06-06 12:00:00
        3          | 31      | 311        | CSRU           | 2150-06-06 20:00:00 |
        4          | 41      | 411        | CCU            | 2150-06-01 10:00:00 | 2150-06-04 22:00:00
        4          | 41      | 92         | TSICU          | 2150-06-01 10:00:00 | 2152-06-02 22:00:00
        5          | 51      | 510        | TSICU          | 2150-06-05 10:00:00 | 2150-06-05 09:00:00
    """),
    "diagnoses_icd": table("""
        hadm_id | icd9_code
        11      | 0389
        11      | 4254
        12      | 4280
        31      | 42731
        31      | 1739
        31      | 5849
        41      | 25000
        41      |
    """),
    "chartevents": table("""
        subject_id | itemid | charttime           | valuenum  | error
        1          | 211    | 2150-06-01 10:30:14 | 99        | 0
        1          | 211    | 2150-06-01 10:30:15 | 80        | 0
        1          | 220045 | 2150-06-01 11:30:14 | 83        |
        1          | 211    | 2150-06-01 11:30:15 | 90        | 0
        1          | 211    | 2150-06-01 11:40:00 | 190       | 1
        1          | 211    | 2150-06-01 12:30:15 | 70        | 0
        1          | 211    | 2150-06-01 12:30:16 | 75        | 0
        1          | 211    | 2151-01-01 11:30:00 | 200       | 0
        1          | 223761 | 2150-06-01 10:45:00 | 98.6      | 0
        1          | 676    | 2150-06-01 10:50:00 | 38.000004 | 0
        1          | 678    | 2150-06-01 11:45:00 | 38        | 0
        1          | 184    | 2150-06-01 10:40:00 | 4         | 0
        1          | 723    | 2150-06-01 10:40:00 | 5         | 0
        1          | 454    | 2150-06-01 10:40:00 | 2         | 0
        1          | 454    | 2150-06-01 10:59:00 | 5         | 0
        1          | 454    | 2150-06-01 10:59:00 | 3         | 0
        1          | 184    | 2150-06-01 11:40:00 | 4         | 0
        1          | 763    | 2150-06-01 11:00:00 | 88        | 0
        1          | 226531 | 2150-05-31 12:00:00 | 200       | 0
        1          | 226512 | 2150-05-31 10:00:00 | 50        | 0
        1          | 646    | 2150-06-01 10:45:00 | 101       | 0
        1          | 646    | 2150-06-01 10:45:00 |           | 0
        1          | 646    |                     | 98        | 0
        1          | 9999   | 2150-06-01 10:45:00 | 98        | 0
        2          | 211    | 2150-06-01 10:30:00 | 90        | 0
        3          | 211    | 2150-06-06 10:30:00 | 60        | 0
        3          | 211    | 2150-06-07 19:59:59 | 61        | 0
        3          | 211    | 2150-06-07 20:00:00 | 62        | 0
    """),
    "labevents": table("""
        subject_id | itemid | charttime           | valuenum
        1          | 50912  | 2150-06-01 04:30:14 | 9
        1          | 50912  | 2150-06-01 04:30:15 | 2.0
        1          | 50912  | 2150-06-01 09:00:00 | 1.1
        1          | 50912  | 2150-06-02 10:30:14 | 1.6
        1          | 50912  | 2150-06-02 10:30:14 | 1.5
        1          | 50912  | 2150-06-02 10:30:15 | 7
        1          | 51301  | 2150-06-01 12:00:00 | 0
        1          | 50813  | 2150-06-01 12:00:00 |
        3          | 51300  | 2150-06-06 20:00:00 | 8.04
    """),
    "outputevents": table("""
        subject_id | itemid | charttime           | value | iserror
        1          | 40055  | 2150-06-01 10:35:00 | 100   |
        1          | 226560 | 2150-06-01 10:55:00 | 50    |
        1          | 226560 | 2150-06-01 10:56:00 | 900   | 1
        1          | 40055  | 2150-06-01 11:35:00 | 1200  |
        1          | 40055  | 2150-06-01 11:45:00 | 900   |
        4          | 40055  | 2150-06-01 10:00:00 | 0     |
    """),
}


@pytest.fixture(scope="module")
def made() -> tuple[pd.DataFrame, pd.DataFrame]:
    first, series = read_mimic3(Frames(HOSPITAL), hours=24)
    return first.set_index("unit"), series.set_index(["unit", "hour"])


def test_a_subject_has_the_first_stay_as_an_adult_in_a_unit_for_adults(made: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    first, _ = made
    assert list(first.index) == ["1", "3", "4", "5"]
    assert first["care_unit"].to_dict() == {"1": "medical", "3": "cardiac_surgery", "4": "trauma", "5": "trauma"}
    assert first["age"].to_dict() == {"1": "49", "3": "90", "4": "50", "5": "40"}


def test_the_first_table_has_its_columns_in_order_and_is_all_text(made: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    first, _ = made
    assert tuple(first.columns) == COLUMNS
    assert set(map(str, first.dtypes)) == {"str"}
    assert not first.isna().any().any()


def test_admission_is_told_in_words_of_the_study(made: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    first, _ = made
    told = ["sex", "ethnicity", "insurance", "admission_type", "admission_source", "admitted", "los_days", "died"]
    # 1 June 2150 is a Monday, 5 June a Friday and 6 June a Saturday.
    assert first.loc["1", told].tolist() == [
        *("female", "white", "medicare", "emergency", "emergency_room", "weekday_day", "0.1", "no")
    ]
    assert first.loc["3", told].tolist() == [
        *("male", "black", "medicaid", "urgent", "transfer", "weekend_night", "", "yes")
    ]
    assert first.loc["4", told].tolist() == [
        *("male", "hispanic", "private", "urgent", "other", "weekday_day", "365.0", "no")
    ]
    told = ["ethnicity", "admission_source", "admitted", "los_days"]
    assert first.loc["5", told].tolist() == ["unknown", "unknown", "weekday_day", ""]


def test_diagnoses_are_those_of_the_stays_own_admission(made: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    first, _ = made
    groups = {unit: {name for name in DIAGNOSES if first.loc[unit, name] == "yes"} for unit in first.index}
    assert groups == {
        "1": {"sepsis", "heart_failure"},
        # A cancer of the skin other than melanoma is none of Elixhauser's.
        "3": {"arrhythmia", "acute_kidney_failure"},
        "4": {"diabetes"},
        "5": set(),
    }


def test_the_laboratory_is_read_from_six_hours_before_to_a_day_after(made: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    first, _ = made
    # Of two last values at once it is the smaller.
    assert first.loc["1", ["creatinine_min", "creatinine_max", "creatinine_last"]].tolist() == ["1.1", "2.0", "1.5"]
    # A zero is no count of cells, and a missing number none at all.
    assert first.loc["1", ["wbc_max", "lactate_last"]].tolist() == ["", ""]
    assert first.loc["3", "wbc_last"] == "8.0"


def test_the_weight_is_the_first_of_a_day_before_or_after(made: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    first, _ = made
    assert first["weight_kg"].to_dict() == {"1": "90.7", "3": "", "4": "", "5": ""}


def test_an_hour_has_the_mean_of_what_is_plausible_and_no_error(made: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    _, series = made
    assert tuple(series.columns) == tuple(CHANNELS)
    hours = series.index.tolist()
    # The last reading of the unit is at the moment of discharge; after it, other stays and children have no part.
    assert hours == [("1", "0"), ("1", "1"), ("1", "2"), ("3", "23"), ("4", "0")]
    assert series["heart_rate"].tolist() == ["82", "90", "70", "61", ""]
    # 98.6 °F and 38 °C; 38 °F is nobody's.
    assert series["temperature"].tolist() == ["37.5", "", "", "", ""]
    assert set(series["spo2"]) == {""}


def test_the_coma_scale_adds_up_the_latest_parts_of_an_hour_that_has_all(
    made: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    _, series = made
    assert series["gcs"].tolist() == ["12", "", "", "", ""]


def test_urine_is_the_sum_of_an_hour_and_missing_beyond_its_bound(made: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    _, series = made
    assert series["urine_ml"].tolist() == ["150", "", "", "", "0"]


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_chunks_and_their_order_make_no_difference(rows: int) -> None:
    whole = read_mimic3(Frames(HOSPITAL), hours=24)
    for frames in (Frames(HOSPITAL, rows=rows), Frames(HOSPITAL, rows=rows).backwards()):
        for expected, got in zip(whole, read_mimic3(frames, hours=24), strict=True):
            pd.testing.assert_frame_equal(expected, got)


def test_nobody_in_the_database_is_a_table_without_rows(study: Study) -> None:
    nobody = {name: frame.iloc[:0] for name, frame in HOSPITAL.items()}
    first, series = read_mimic3(Frames(nobody), hours=24)
    assert (len(first), len(series)) == (0, 0)
    assert tuple(first.columns) == ("unit", *COLUMNS)
    assert tuple(series.columns) == ("unit", "hour", *CHANNELS)
    # A site that has nobody left answers like any other.
    records, hours = read_preset("mimic3", Frames(nobody), study)
    assert hours is not None
    values, _ = read_windows(parse_text(records, study), hours, study)
    assert values.shape == (0, 24, 10)


def test_every_code_stands_for_one_measure_and_every_measure_has_one() -> None:
    bedside = {item.measure for item in (BEDSIDE | URINE).values()}
    assert bedside == set(CHANNELS) - {"gcs"} | {"gcs_eyes", "gcs_verbal", "gcs_motor", "weight_kg"}
    assert {item.measure for item in LABORATORY_ITEMS.values()} == set(LABORATORY)
    assert not set(BEDSIDE) & set(URINE)
    assert set(CODES) == set(DIAGNOSES)


def test_a_beginning_of_codes_is_listed_once() -> None:
    for name, beginnings in CODES.items():
        for beginning in beginnings:
            others = tuple(other for other in beginnings if other != beginning)
            assert not beginning.startswith(others), f"{name}: {beginning}"
            assert beginnings.count(beginning) == 1


# --- the study


@pytest.fixture(scope="module")
def study() -> Study:
    return load_study(STUDY)


def test_the_study_states_the_bounds_of_the_preset(study: Study) -> None:
    measures = {f"{name}_{which}": measure for name, measure in LABORATORY.items() for which in ("min", "max", "last")}
    measures |= CHANNELS | {"weight_kg": WEIGHT}
    for name, column in {**study.columns, **study.channels}.items():
        if isinstance(column, CategoricalColumn) or name == "age":
            continue
        measure = measures[name]
        assert isinstance(column, IntegerColumn | ContinuousColumn)
        assert (column.min, column.max) == (measure.minimum, measure.maximum), name
        assert getattr(column, "decimals", 0) == measure.decimals, name
    assert len(study.features) >= 30


def test_a_hand_written_database_fulfils_the_study(study: Study) -> None:
    first, series = read_preset("mimic3", Frames(HOSPITAL), study)
    assert series is not None
    parsed = parse_text(first, study)
    values, lengths = read_windows(parsed, series, study)
    assert values.shape == (4, 24, 10)
    assert lengths.tolist() == [24, 24, 24, 24]
    assert values[0, :3, 0].tolist() == [82, 90, 70]


def test_a_study_takes_the_columns_and_hours_that_it_names(study: Study) -> None:
    data = study.model_dump(mode="json", by_alias=True)
    data["unit"]["key"] = "patient"
    data["columns"] = {name: data["columns"][name] for name in ("died", "age")}
    data["windows"] |= {
        "length": 2,
        "time": {"column": "at"},
        "channels": {"spo2": data["windows"]["channels"]["spo2"]},
    }
    less = parse_study(data, source="less")
    first, series = read_preset("mimic3", Frames(HOSPITAL), less)
    assert list(first.columns) == ["patient", "died", "age"]
    assert series is not None
    # Nobody has a plausible saturation, so there is no row.
    assert list(series.columns) == ["patient", "at", "spo2"]
    assert len(series) == 0
    data["windows"] = None
    assert read_preset("mimic3", Frames(HOSPITAL), parse_study(data, source="none"))[1] is None


def test_a_column_that_no_preset_makes_is_named(study: Study) -> None:
    data = study.model_dump(mode="json", by_alias=True)
    data["columns"]["shoe_size"] = data["columns"]["age"]
    with pytest.raises(SchemaError, match="shoe_size: the preset mimic3 makes no such column"):
        read_preset("mimic3", Frames(HOSPITAL), parse_study(data, source="more"))


@pytest.mark.parametrize(
    ("windows", "said"),
    [
        ({"start": "first"}, "windows: the preset mimic3 needs a grid in hours"),
        ({"step": 2.0, "length": 200}, "windows.length: the preset mimic3 makes at most 240 hours"),
    ],
)
def test_windows_that_are_not_of_hours_since_admission_are_refused(
    study: Study, windows: dict[str, object], said: str
) -> None:
    data = study.model_dump(mode="json", by_alias=True)
    data["windows"] |= windows
    with pytest.raises(StudyError, match=said):
        read_preset("mimic3", Frames(HOSPITAL), parse_study(data, source="other"))


def test_a_study_whose_units_have_no_key_is_refused(study: Study) -> None:
    data = study.model_dump(mode="json", by_alias=True)
    data["unit"]["key"], data["windows"] = None, None
    with pytest.raises(StudyError, match=r"unit\.key: the preset mimic3 makes one row a unit"):
        read_preset("mimic3", Frames(HOSPITAL), parse_study(data, source="other"))


# --- the open demo


@pytest.fixture(scope="module")
def demo_tables(demo: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    return read_mimic3(CsvFolder(demo, rows=1_000_000), hours=24)


def test_the_demo_fulfils_the_study(demo: Path, study: Study) -> None:
    settings = FileSettings(type="csv", folder=demo, preset="mimic3")
    records, series = read_records(settings, study)
    assert series is not None
    values, _ = read_windows(records, series, study)
    # Published: 100 patients, all of them adults.
    assert values.shape == (100, 24, 10)
    assert records["subject_id"].is_unique
    # Most hours of the first half day have a heart rate, and some stays are shorter.
    assert np.isfinite(values[:, :12, 0]).mean() > 0.8


def test_the_demo_is_the_same_in_small_chunks(demo: Path, demo_tables: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    got = read_mimic3(CsvFolder(demo, rows=1_000), hours=24)
    for expected, found in zip(demo_tables, got, strict=True):
        pd.testing.assert_frame_equal(expected, found)


def test_the_demo_is_as_a_plain_query_finds_it(demo: Path, demo_tables: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    def entity(name: str) -> pd.DataFrame:
        return pd.read_csv(
            next(path for path in demo.iterdir() if path.name.startswith(f"{name}.csv")), low_memory=False
        )

    stays = entity("ICUSTAYS").sort_values(["intime", "icustay_id"]).drop_duplicates("subject_id")
    stays[["intime", "outtime"]] = stays[["intime", "outtime"]].apply(pd.to_datetime)
    first, series = demo_tables
    first = first.set_index(first["unit"].astype(int))

    def joined(events: pd.DataFrame, items: list[int]) -> pd.DataFrame:
        rows = events[events["itemid"].isin(items)].merge(stays, on="subject_id")
        since = (pd.to_datetime(rows["charttime"]) - rows["intime"]).dt.total_seconds() / 3600
        left = (rows["outtime"] - pd.to_datetime(rows["charttime"])).dt.total_seconds()
        return rows.assign(since=since, left=left)

    rows = joined(entity("CHARTEVENTS"), [211, 220045])
    rows = rows[
        (rows["error"] != 1) & rows["valuenum"].between(20, 250) & rows["since"].between(0, 24, inclusive="left")
    ]
    rows = rows[rows["left"] >= 0]
    means = rows.groupby(["subject_id", rows["since"].astype(int)])["valuenum"].mean()
    ours = series[series["heart_rate"] != ""]
    ours = pd.Series(
        ours["heart_rate"].astype(float).to_numpy(), index=[ours["unit"].astype(int), ours["hour"].astype(int)]
    )
    assert list(ours.index) == list(means.index)
    assert float((ours - means).abs().max()) <= 0.5

    rows = joined(entity("LABEVENTS"), [50912])
    rows = rows[rows["valuenum"].between(0.1, 30) & rows["since"].between(-6, 24, inclusive="left")]
    highest = rows.groupby("subject_id")["valuenum"].max()
    kept = first[first["creatinine_max"] != ""]["creatinine_max"].astype(float)
    pd.testing.assert_series_equal(kept, highest, check_names=False)

    died = entity("ADMISSIONS").set_index("hadm_id")["hospital_expire_flag"]
    expected = stays.set_index("subject_id")["hadm_id"].map(died).map({0: "no", 1: "yes"}).sort_index()
    assert first["died"].to_dict() == expected.to_dict()
