"""An OMOP CDM 5.4 database as the same tables: the first stay of each adult in intensive care.

It reads the standard concepts of person, visit_occurrence, visit_detail, condition_occurrence, measurement and death,
and the vocabulary's concept_ancestor. What is not standardised there is not guessed: `insurance` is empty, `care_unit`
is other, and `admission_type` is known for emergencies alone. docs/mimic.md has the mapping.

Source: OHDSI, OMOP Common Data Model 5.4 and its standardised vocabularies (https://ohdsi.github.io/CommonDataModel).
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
import pandas as pd

from client.presets.measures import ADULT, DIAGNOSES, TOP_AGE
from client.presets.stays import (
    NEVER,
    UNIT,
    Groups,
    Item,
    Readings,
    Stays,
    admitted,
    ends_of,
    first_stays,
    seconds_of,
    table_of,
    whole,
    years_between,
)
from client.sources import Source

INTENSIVE_CARE: Final = 32037
"""Concept of a visit_detail: Intensive Care."""

BEDSIDE: Final[Mapping[str, tuple[int, ...]]] = {
    "heart_rate": (3027018,),  # Heart rate
    "systolic_bp": (3004249, 21490853),  # Systolic blood pressure; invasive
    "diastolic_bp": (3012888, 21490851),  # Diastolic blood pressure; invasive
    "mean_bp": (3027598, 21490852),  # Mean blood pressure; invasive
    "respiratory_rate": (3024171,),  # Respiratory rate
    "temperature": (3020891,),  # Body temperature
    "spo2": (40762499, 3016502),  # Oxygen saturation in arterial blood by pulse oximetry; not said how
    "gcs": (3007194, 3032652),  # Glasgow coma score total; Glasgow coma scale
    "gcs_eyes": (3016335,),  # Glasgow coma score eye opening
    "gcs_verbal": (3009094,),  # Glasgow coma score verbal
    "gcs_motor": (3008223,),  # Glasgow coma score motor
    "urine_ml": (3014315,),  # Urine output
    "weight_kg": (3025315,),  # Body weight
}
"""Concepts of `measurement` for the channels and the weight; glucose is one of the laboratory's too."""

GLUCOSE: Final = (3004501, 3000483)  # Glucose in serum or plasma; in blood

LABORATORY_CONCEPTS: Final[Mapping[str, tuple[int, ...]]] = {
    "lactate": (3047181, 3014111),  # Lactate in blood; in serum or plasma
    "creatinine": (3016723,),  # Creatinine in serum or plasma
    "bun": (3013682,),  # Urea nitrogen in serum or plasma
    "wbc": (3000905, 3010813),  # Leukocytes in blood by automated count; in blood
    "hemoglobin": (3000963,),  # Hemoglobin in blood
    "platelets": (3024929, 3007461),  # Platelets in blood by automated count; in blood
    "sodium": (3019550,),  # Sodium in serum or plasma
    "potassium": (3023103,),  # Potassium in serum or plasma
    "bicarbonate": (3016293,),  # Bicarbonate in serum or plasma
    "glucose": GLUCOSE,
    "bilirubin": (3024128,),  # Bilirubin.total in serum or plasma
    "inr": (3022217,),  # INR in platelet poor plasma by coagulation assay
    "albumin": (3024561,),  # Albumin in serum or plasma
}
"""Concepts of `measurement` for the laboratory."""

# Units by concept: factor and offset to the measure's own unit. No unit, or the concept 0, is taken for that one; a
# unit that is not listed makes the value missing.
_MASS: Final = 8840  # milligram per deciliter
_MILLIMOLE: Final = 8753  # millimole per liter
_MICROMOLE: Final = 8749  # micromole per liter
_COUNTS: Final = {
    8848: (1.0, 0.0),  # thousand per microliter
    9444: (1.0, 0.0),  # billion per liter
    8961: (1.0, 0.0),  # thousand per cubic millimeter
    8647: (0.001, 0.0),  # per microliter
    8785: (0.001, 0.0),  # per cubic millimeter
}
_PROTEIN: Final = {8713: (1.0, 0.0), 8636: (0.1, 0.0)}  # gram per deciliter, gram per liter
UNITS: Final[Mapping[str, Mapping[int, tuple[float, float]]]] = {
    "temperature": {586323: (1.0, 0.0), 9289: (5 / 9, -160 / 9)},  # degree Celsius, degree Fahrenheit
    "weight_kg": {9529: (1.0, 0.0), 8739: (0.45359237, 0.0), 9373: (0.02834952, 0.0)},  # kilogram, pound, ounce
    "urine_ml": {8587: (1.0, 0.0), 8519: (1000.0, 0.0)},  # milliliter, liter
    "glucose": {_MASS: (1.0, 0.0), _MILLIMOLE: (18.016, 0.0)},
    "creatinine": {_MASS: (1.0, 0.0), _MICROMOLE: (1 / 88.42, 0.0)},
    "bun": {_MASS: (1.0, 0.0), _MILLIMOLE: (2.801, 0.0)},
    "bilirubin": {_MASS: (1.0, 0.0), _MICROMOLE: (1 / 17.1, 0.0)},
    "lactate": {_MILLIMOLE: (1.0, 0.0), _MASS: (1 / 9.008, 0.0)},
    "hemoglobin": _PROTEIN,
    "albumin": _PROTEIN,
    "wbc": _COUNTS,
    "platelets": _COUNTS,
}
"""Measures that are met in several units; of the others the unit is not looked at."""

CONDITIONS: Final[Mapping[str, tuple[int, ...]]] = {
    "sepsis": (132797,),  # Sepsis
    "acute_kidney_failure": (197320,),  # Acute renal failure syndrome
    "respiratory_failure": (319049,),  # Acute respiratory failure
    "pneumonia": (255848,),  # Pneumonia
    "stroke": (381316, 443454, 376713, 432923),  # Cerebrovascular accident, infarction, haemorrhage; subarachnoid
    "myocardial_infarction": (312327,),  # Acute myocardial infarction
    "heart_failure": (316139,),  # Heart failure
    "arrhythmia": (44784217,),  # Cardiac arrhythmia
    "hypertension": (316866,),  # Hypertensive disorder
    "chronic_lung": (255573, 317009),  # Chronic obstructive lung disease, Asthma
    "diabetes": (201820,),  # Diabetes mellitus
    "kidney_disease": (46271022,),  # Chronic kidney disease
    "liver_disease": (4212540,),  # Chronic liver disease
    "cancer": (443392,),  # Malignant neoplastic disease
    "coagulopathy": (432585,),  # Blood coagulation disorder
    "alcohol": (433753, 435243),  # Alcohol abuse, Alcohol dependence
}
"""What puts a stay into each group of diagnoses: these standard concepts and all their descendants."""

_BORN: Final = ("year_of_birth", "month_of_birth", "day_of_birth")
READS: Final[Mapping[str, tuple[str, ...]]] = {
    "person": ("person_id", *_BORN, "gender_concept_id", "race_concept_id", "ethnicity_concept_id"),
    "visit_occurrence": (
        *("visit_occurrence_id", "visit_concept_id", "visit_start_date", "visit_end_date"),
        *("admitted_from_concept_id", "discharged_to_concept_id"),
    ),
    "visit_detail": (
        *("visit_detail_id", "person_id", "visit_occurrence_id", "visit_detail_concept_id"),
        *("visit_detail_start_datetime", "visit_detail_end_datetime"),
    ),
    "condition_occurrence": ("visit_occurrence_id", "condition_concept_id"),
    "measurement": (
        *("person_id", "measurement_concept_id", "measurement_datetime", "value_as_number", "unit_concept_id"),
    ),
    "death": ("person_id", "death_date"),
    "concept_ancestor": ("ancestor_concept_id", "descendant_concept_id"),
}
"""Entities, and of each the columns that are read."""

_SEXES: Final = {"8532": "female", "8507": "male"}
_RACES: Final = {"8527": "white", "8516": "black", "8515": "asian", "": "unknown", "0": "unknown"}
_HISPANIC: Final = "38003563"
_EMERGENCIES: Final = ("262", "9203")  # Emergency room and inpatient visit; emergency room visit
_FROM: Final = {
    **dict.fromkeys(("9203", "8870"), "emergency_room"),
    **dict.fromkeys(("8717", "9201", "8863", "8676", "42898160"), "transfer"),  # hospital, nursing, institution
    **dict.fromkeys(("", "0", "8536", "8940", "9202"), "referral"),  # home, office, outpatient
}
_DIED: Final = "4216643"  # Patient died


def read_omop54(source: Source, *, hours: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table, a row for each person, and the series, a row for each person and hour with a value.

    Guarantees: the same frames whatever the order of rows and the size of chunks; a person has one stay, the first
    visit_detail in intensive care that began at `ADULT` years or more, by time and then by its number.
    Edge cases: nobody is taken -> tables without rows; nothing was measured in a stay -> no row in the series.

    Args:
        source: with the entities and columns of OMOP CDM 5.4, as text.
        hours: of the series, from admission to the unit.

    Raises:
        SchemaError: the source lacks an entity or a column.
    """
    taken = _taken(source)
    start = taken["start"].to_numpy()
    stays = Stays(pd.Index(taken[UNIT]), start, ends_of(taken["end"], start))
    readings = Readings(stays, hours=hours)
    bedside, laboratory = _items({**BEDSIDE, "glucose": GLUCOSE}), _items(LABORATORY_CONCEPTS)
    concepts = {text.split("/")[0] for text in [*bedside, *laboratory]}
    several = {text.split("/")[0] for text in [*bedside, *laboratory] if not text.endswith("/0")}
    for chunk in source.read(
        "measurement", READS["measurement"], within={"measurement_concept_id": [int(text) for text in concepts]}
    ):
        told = (chunk["unit_concept_id"] != "") & chunk["measurement_concept_id"].isin(several)
        unit = chunk["unit_concept_id"].where(told, "0")
        rows = pd.DataFrame(
            {
                "unit": chunk["person_id"],
                "item": chunk["measurement_concept_id"] + "/" + unit,
                "time": chunk["measurement_datetime"],
                "value": chunk["value_as_number"],
            }
        )
        readings.add_bedside(rows, bedside)
        readings.add_laboratory(rows, laboratory)
    return table_of(stays, {**_described(source, taken, stays), **_read(readings)}), readings.series()


def _taken(source: Source) -> pd.DataFrame:
    """The stay of each person, with what is known of its visit and its person."""
    asked = {"visit_detail_concept_id": [INTENSIVE_CARE]}
    details = whole(source, "visit_detail", READS["visit_detail"], within=asked)
    key = "visit_occurrence_id"
    visits = whole(source, "visit_occurrence", READS["visit_occurrence"], within=_same(details, key))
    persons = whole(source, "person", READS["person"], within=_same(details, "person_id"))
    persons = persons.drop_duplicates("person_id")
    details = details.merge(visits.drop_duplicates(key), on=key)
    details = details.merge(persons, on="person_id")
    # A month or day that is not told is taken for the first, which makes nobody younger.
    month, day = (details[name].where(details[name] != "", "1").str.zfill(2) for name in _BORN[1:])
    age = years_between(details["year_of_birth"] + "-" + month + "-" + day, details["visit_start_date"])
    start = seconds_of(details["visit_detail_start_datetime"])
    details = details.assign(start=start, age=np.minimum(age, TOP_AGE), end=details["visit_detail_end_datetime"])
    ours = (age >= ADULT) & (start != NEVER)
    return first_stays(details[ours].rename(columns={"person_id": UNIT, "visit_detail_id": "stay"}))


def _described(source: Source, taken: pd.DataFrame, stays: Stays) -> dict[str, np.ndarray | pd.Series]:
    ethnicity = taken["race_concept_id"].map(_RACES).fillna("other")
    return {
        "age": taken["age"].astype("int64").astype("str"),
        "sex": taken["gender_concept_id"].map(_SEXES).fillna(""),
        "ethnicity": ethnicity.mask(taken["ethnicity_concept_id"] == _HISPANIC, "hispanic"),
        "insurance": np.full(len(taken), "", dtype=object),
        "admission_type": np.where(taken["visit_concept_id"].isin(_EMERGENCIES), "emergency", ""),
        "admission_source": taken["admitted_from_concept_id"].map(_FROM).fillna("other"),
        "care_unit": np.full(len(taken), "other", dtype=object),
        "admitted": admitted(stays.start),
        **_diagnosed(source, taken["visit_occurrence_id"]).written(DIAGNOSES),
        "los_days": stays.written_days(),
        "died": _died(source, taken),
    }


def _read(readings: Readings) -> dict[str, np.ndarray]:
    return {"weight_kg": readings.weight(), **readings.laboratory()}


def _diagnosed(source: Source, visits: pd.Series) -> Groups:
    ancestors = {str(concept): name for name, concepts in CONDITIONS.items() for concept in concepts}
    members: dict[str, set[str]] = {name: set() for name in CONDITIONS}
    within = {"ancestor_concept_id": [int(text) for text in ancestors]}
    for chunk in source.read("concept_ancestor", READS["concept_ancestor"], within=within):
        names = chunk["ancestor_concept_id"].map(ancestors)
        for name in names.unique():
            members[name].update(chunk.loc[names == name, "descendant_concept_id"])
    groups = Groups(len(visits))
    known = pd.Index(visits)
    within = {"visit_occurrence_id": [int(text) for text in visits]}
    for chunk in source.read("condition_occurrence", READS["condition_occurrence"], within=within):
        unit = np.asarray(known.get_indexer(pd.Index(chunk["visit_occurrence_id"])), dtype=np.int64)
        for name, concepts in members.items():
            groups.add(unit[(unit >= 0) & chunk["condition_concept_id"].isin(concepts).to_numpy(dtype=bool)], name)
    return groups


def _died(source: Source, taken: pd.DataFrame) -> np.ndarray:
    """Whether each stay's visit ended in death: so discharged, or dead on a day of the visit."""
    within = {"person_id": [int(text) for text in taken[UNIT]]}
    deaths = whole(source, "death", READS["death"], within=within).drop_duplicates("person_id")
    day = taken[UNIT].map(deaths.set_index("person_id")["death_date"]).fillna("").str.slice(0, 10)
    first, last = taken["visit_start_date"].str.slice(0, 10), taken["visit_end_date"].str.slice(0, 10)
    during = (day != "") & (day >= first) & ((last == "") | (day <= last))
    return np.where(during | (taken["discharged_to_concept_id"] == _DIED), "yes", "no")


def _same(rows: pd.DataFrame, column: str) -> dict[str, list[int]]:
    return {column: pd.to_numeric(rows[column].drop_duplicates()).tolist()}


def _items(concepts: Mapping[str, tuple[int, ...]]) -> dict[str, Item]:
    """Items by `CONCEPT/UNIT`, the unit 0 for none."""
    items = {}
    for name, listed in concepts.items():
        for concept in listed:
            items[f"{concept}/0"] = Item(name)
            for unit, (factor, offset) in UNITS.get(name, {}).items():
                items[f"{concept}/{unit}"] = Item(name, factor, offset)
    return items
