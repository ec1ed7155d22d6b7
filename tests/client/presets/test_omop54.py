"""OMOP CDM 5.4 as a study's tables: a database written down by hand."""

import pandas as pd
import pytest

from client.presets.measures import CHANNELS, COLUMNS, DIAGNOSES, LABORATORY
from client.presets.omop54 import BEDSIDE, CONDITIONS, LABORATORY_CONCEPTS, UNITS, read_omop54
from client.presets.tables import read_preset
from client.records import parse_text, read_windows
from common.study import load_study
from tests.client.presets.frames import Frames, table
from tests.client.presets.test_mimic3 import STUDY

# 1 has two stays in intensive care and one elsewhere, 2 is a child, 3 is of a sex and a race that the study has no word
# for, and 4 was never in intensive care.
DATABASE = {
    "person": table("""
        person_id | gender_concept_id | year_of_birth | month_of_birth | day_of_birth | race_concept_id \
| ethnicity_concept_id
        1         | 8532              | 1950          | 6              | 2            | 8527 | 38003564
        2         | 8507              | 2010          |                |              | 8527 | 38003564
        3         | 8521              | 1900          |                |              | 8657 | 38003564
        4         | 8507              | 1950          | 1              | 1            | 8516 | 38003563
        5         | 8507              | 1950          | 1              | 1            | 8516 | 38003563
    """),
    "visit_occurrence": table("""
        visit_occurrence_id | person_id | visit_concept_id | visit_start_date | visit_end_date \
| admitted_from_concept_id | discharged_to_concept_id
        11 | 1 | 262  | 2020-06-01 | 2020-06-09 | 8870     | 0
        12 | 1 | 9201 | 2021-01-01 | 2021-01-09 | 0        | 4216643
        21 | 2 | 9201 | 2020-06-01 | 2020-06-09 | 0        | 0
        31 | 3 | 9201 | 2020-06-01 | 2020-06-09 | 8717     | 0
        41 | 4 | 9201 | 2020-06-01 | 2020-06-09 | 0        | 0
        51 | 5 | 9201 | 2020-06-01 | 2020-06-09 |          | 4216643
    """),
    "visit_detail": table("""
        visit_detail_id | person_id | visit_occurrence_id | visit_detail_concept_id | visit_detail_start_datetime \
| visit_detail_end_datetime
        109 | 1 | 11 | 9201  | 2020-06-01 08:00:00 | 2020-06-01 10:00:00
        110 | 1 | 11 | 32037 | 2020-06-01 10:30:00 | 2020-06-03 10:30:00
        120 | 1 | 12 | 32037 | 2021-01-01 10:30:00 | 2021-01-03 10:30:00
        210 | 2 | 21 | 32037 | 2020-06-01 10:30:00 | 2020-06-03 10:30:00
        310 | 3 | 31 | 32037 | 2020-06-06 21:00:00 |
        410 | 4 | 41 | 9201  | 2020-06-01 10:30:00 | 2020-06-03 10:30:00
        510 | 5 | 51 | 32037 | 2020-06-01 10:30:00 | 2020-06-03 10:30:00
    """),
    "condition_occurrence": table("""
        visit_occurrence_id | condition_concept_id
        11                  | 900001
        11                  | 201820
        12                  | 316139
        31                  | 900002
        31                  | 0
    """),
    # The vocabulary has each concept as its own ancestor.
    "concept_ancestor": table("""
        ancestor_concept_id | descendant_concept_id
        132797              | 132797
        132797              | 900001
        201820              | 201820
        316139              | 316139
        443454              | 900002
        4008453             | 0
    """),
    "death": table("""
        person_id | death_date
        1         | 2021-01-09
        3         | 2020-06-09
    """),
    "measurement": table("""
        person_id | measurement_concept_id | measurement_datetime | value_as_number | unit_concept_id
        1         | 3027018                | 2020-06-01 10:30:00  | 80              | 8541
        1         | 3027018                | 2020-06-01 11:00:00  | 83              |
        1         | 3020891                | 2020-06-01 10:40:00  | 98.6            | 9289
        1         | 3020891                | 2020-06-01 10:50:00  | 38              | 0
        1         | 3020891                | 2020-06-01 11:50:00  | 38              | 8840
        1         | 3032652                | 2020-06-01 11:40:00  | 14              |
        1         | 3007194                | 2020-06-01 10:50:00  | 9               |
        1         | 3007194                | 2020-06-01 12:40:00  | 15              |
        1         | 3016335                | 2020-06-01 10:40:00  | 4               |
        1         | 3009094                | 2020-06-01 10:40:00  | 5               |
        1         | 3008223                | 2020-06-01 10:40:00  | 2               |
        1         | 3004501                | 2020-06-01 10:40:00  | 10              | 8753
        1         | 3014315                | 2020-06-01 10:40:00  | 0.1             | 8519
        1         | 3016723                | 2020-06-01 09:00:00  | 88.42           | 8749
        1         | 3016723                | 2020-06-01 12:00:00  | 2               | 8840
        1         | 3000963                | 2020-06-01 12:00:00  | 120             | 8636
        1         | 3024929                | 2020-06-01 12:00:00  | 200000          | 8647
        1         | 3025315                | 2020-06-01 12:00:00  | 80              | 9529
        4         | 3027018                | 2020-06-01 10:30:00  | 80              | 8541
    """),
}


@pytest.fixture(scope="module")
def made() -> tuple[pd.DataFrame, pd.DataFrame]:
    first, series = read_omop54(Frames(DATABASE), hours=24)
    return first.set_index("unit"), series.set_index(["unit", "hour"])


def test_a_person_has_the_first_stay_in_intensive_care_as_an_adult(made: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    first, _ = made
    assert list(first.index) == ["1", "3", "5"]
    assert tuple(first.columns) == COLUMNS
    # A birthday that is not told is the first of January.
    assert first["age"].tolist() == ["69", "90", "70"]


def test_what_is_not_standardised_is_not_guessed(made: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    first, _ = made
    assert set(first["insurance"]) == {""}
    assert set(first["care_unit"]) == {"other"}
    told = ["sex", "ethnicity", "admission_type", "admission_source", "admitted", "los_days"]
    assert first.loc["1", told].tolist() == [*("female", "white", "emergency", "emergency_room", "weekday_day", "2.0")]
    assert first.loc["3", told].tolist() == ["", "other", "", "transfer", "weekend_night", ""]
    assert first.loc["5", told].tolist() == ["male", "hispanic", "", "referral", "weekday_day", "2.0"]


def test_a_death_counts_where_the_visit_ends_with_it(made: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    first, _ = made
    # 1 died in a later visit; 3 on the last day; 5 was discharged so.
    assert first["died"].to_dict() == {"1": "no", "3": "yes", "5": "yes"}


def test_conditions_are_those_of_the_visit_and_of_all_descendants(made: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    first, _ = made
    groups = {unit: {name for name in DIAGNOSES if first.loc[unit, name] == "yes"} for unit in first.index}
    assert groups == {"1": {"sepsis", "diabetes"}, "3": {"stroke"}, "5": set()}


def test_values_are_read_in_the_units_of_the_study(made: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    first, series = made
    assert first.loc["1", ["creatinine_min", "creatinine_max", "creatinine_last"]].tolist() == ["1.0", "2.0", "2.0"]
    assert first.loc["1", ["hemoglobin_last", "platelets_last", "weight_kg"]].tolist() == ["12.0", "200", "80.0"]
    assert first.loc["1", "glucose_last"] == "180"
    assert series.index.tolist() == [("1", "0"), ("1", "1"), ("1", "2")]
    assert series["heart_rate"].tolist() == ["82", "", ""]
    # A temperature in milligrams is none.
    assert series["temperature"].tolist() == ["37.5", "", ""]
    assert series["glucose"].tolist() == ["180", "", ""]
    assert series["urine_ml"].tolist() == ["100", "", ""]
    # Parts go before a total, which stands in where they are not told.
    assert series["gcs"].tolist() == ["11", "14", "15"]


def test_chunks_and_their_order_make_no_difference() -> None:
    whole = read_omop54(Frames(DATABASE), hours=24)
    for frames in (Frames(DATABASE, rows=1), Frames(DATABASE).backwards()):
        for expected, got in zip(whole, read_omop54(frames, hours=24), strict=True):
            pd.testing.assert_frame_equal(expected, got)


def test_it_fulfils_the_study_of_mimic() -> None:
    study = load_study(STUDY)
    first, series = read_preset("omop54", Frames(DATABASE), study)
    assert series is not None
    values, _ = read_windows(parse_text(first, study), series, study)
    assert values[0, :2, 0].tolist() == pytest.approx([82, float("nan")], nan_ok=True)


def test_every_measure_and_every_group_has_a_concept() -> None:
    assert set(BEDSIDE) == set(CHANNELS) - {"glucose"} | {"gcs_eyes", "gcs_verbal", "gcs_motor", "weight_kg"}
    assert set(LABORATORY_CONCEPTS) == set(LABORATORY)
    assert set(CONDITIONS) == set(DIAGNOSES)
    assert set(UNITS) <= set(BEDSIDE) | set(LABORATORY)
    for concepts in (BEDSIDE | LABORATORY_CONCEPTS, CONDITIONS):
        listed = [concept for some in concepts.values() for concept in some]
        assert len(set(listed)) == len(listed)
