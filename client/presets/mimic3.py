"""MIMIC-III v1.4 as a study's tables: the first stay of each adult in an intensive care unit.

It reads the official entities, from files or from the PostgreSQL schema that MIT-LCP's scripts build. Item codes are
those of the MIMIC Code Repository, and every rule is public: nothing is learned from rows. docs/mimic.md lists what
each column is made of and where that differs from published benchmarks.

Sources: Johnson et al. 2016, Scientific Data 3, 160035 (the database). Johnson et al. 2018, JAMIA 25(1), 32-39 (the
MIMIC Code Repository: items of vital signs, coma scale, urine, weight and laboratory, hours around admission). Quan et
al. 2005, Medical Care 43(11), 1130-1139, enhanced ICD-9-CM of Elixhauser's groups (chronic diseases). Angus et al.
2001, Critical Care Medicine 29(7), 1303-1310, for sepsis, by its own codes alone. HCUP Clinical Classifications
Software for ICD-9-CM, categories 100, 109, 122, 131 and 157 (acute diseases).
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


def _items(codes: Mapping[str, tuple[int, ...]]) -> dict[str, Item]:
    return {str(code): Item(name) for name, listed in codes.items() for code in listed}


# Of each pair of lines CareVue comes first, then MetaVision; both record systems are in the database.
BEDSIDE: Final[Mapping[str, Item]] = {
    **_items(
        {
            "heart_rate": (211, 220045),
            # Arterial, manual, cuff, second arterial line.
            "systolic_bp": (51, 442, 455, 6701, 220050, 220179),
            "diastolic_bp": (8368, 8440, 8441, 8555, 220051, 220180),
            "mean_bp": (52, 443, 456, 6702, 220052, 220181, 225312),
            "respiratory_rate": (615, 618, 220210, 224690),
            "temperature": (676, 223762),
            "spo2": (646, 220277),
            # Fingerstick, serum, whole blood.
            "glucose": (807, 811, 1529, 3744, 3745, 220621, 225664, 226537),
            "gcs_eyes": (184, 220739),
            "gcs_verbal": (723, 223900),
            "gcs_motor": (454, 223901),
            # On admission, daily, present.
            "weight_kg": (762, 763, 3580, 224639, 226512),
        }
    ),
    # Fahrenheit.
    "678": Item("temperature", 5 / 9, -160 / 9),
    "223761": Item("temperature", 5 / 9, -160 / 9),
    # Pounds.
    "226531": Item("weight_kg", 0.45359237),
}
"""What is read of `chartevents`."""

URINE: Final[Mapping[str, Item]] = _items(
    {
        "urine_ml": (
            # Foley, void, condom, suprapubic, ileal conduit, incontinent, nephrostomies, other, straight, stents.
            *(40055, 43175, 40069, 40094, 40715, 40473, 40085, 40057, 40056, 40405, 40428, 40096, 40651),
            *(226559, 226560, 226561, 226584, 226563, 226564, 226565, 226567, 226557, 226558),
        )
    }
)
"""What is read of `outputevents`; irrigation is left out."""

LABORATORY_ITEMS: Final[Mapping[str, Item]] = _items(
    {
        "lactate": (50813,),
        "creatinine": (50912,),
        "bun": (51006,),
        "wbc": (51300, 51301),
        "hemoglobin": (51222,),
        "platelets": (51265,),
        "sodium": (50983,),
        "potassium": (50971,),
        "bicarbonate": (50882,),
        "glucose": (50931,),
        "bilirubin": (50885,),
        "inr": (51237,),
        "albumin": (50862,),
    }
)
"""What is read of `labevents`: the central laboratory, and of blood gas analysers the lactate alone."""

# Beginnings of ICD-9-CM codes, written without a point.
CODES: Final[Mapping[str, tuple[str, ...]]] = {
    "sepsis": ("038", "99591", "99592", "78552"),
    "acute_kidney_failure": ("584",),
    "respiratory_failure": ("5173", "5185", "51881", "51882", "51883", "51884", "7991"),
    "pneumonia": ("480", "481", "482", "483", "484", "485", "486"),
    "stroke": (
        *("430", "431", "432", "434", "436"),
        *("43301", "43311", "43321", "43331", "43381", "43391"),
    ),
    "myocardial_infarction": ("410",),
    "heart_failure": (
        *("39891", "40201", "40211", "40291", "40401", "40403", "40411", "40413", "40491", "40493"),
        *("4254", "4255", "4256", "4257", "4258", "4259", "428"),
    ),
    "arrhythmia": (
        *("4260", "42610", "42612", "42613", "4267", "4269", "4270", "4271", "4272", "4273", "4274"),
        *("4276", "4277", "4278", "4279", "7850", "99601", "99604", "V450", "V533"),
    ),
    "hypertension": ("401", "402", "403", "404", "405"),
    "chronic_lung": (
        *("4168", "4169", "490", "491", "492", "493", "494", "495", "496"),
        *("500", "501", "502", "503", "504", "505", "5064", "5081", "5088"),
    ),
    "diabetes": ("250",),
    "kidney_disease": (
        *("40301", "40311", "40391", "40402", "40403", "40412", "40413", "40492", "40493"),
        *("585", "586", "5880", "V420", "V451", "V56"),
    ),
    "liver_disease": (
        *("07022", "07023", "07032", "07033", "07044", "07054", "0706", "0709", "4560", "4561", "4562"),
        *("570", "571", "5722", "5723", "5724", "5728", "5733", "5734", "5738", "5739", "V427"),
    ),
    "cancer": (
        *("14", "15", "16", "170", "171", "172", "174", "175", "176", "179", "18", "190", "191", "192"),
        *("193", "194", "195", "196", "197", "198", "199", "200", "201", "202", "2030", "2386"),
    ),
    "coagulopathy": ("286", "2871", "2873", "2874", "2875"),
    "alcohol": (
        *("2652", "2911", "2912", "2913", "2915", "2918", "2919", "3030", "3039", "3050", "3575", "4255"),
        *("5353", "5710", "5711", "5712", "5713", "980", "V113"),
    ),
}
"""What puts a stay into each group of diagnoses."""

CARE_UNITS: Final = {
    "MICU": "medical",
    "SICU": "surgical",
    "CCU": "coronary",
    "CSRU": "cardiac_surgery",
    "TSICU": "trauma",
}
"""Units for adults; stays in others are not taken."""

_CHARTED: Final = ("subject_id", "itemid", "charttime")
READS: Final[Mapping[str, tuple[str, ...]]] = {
    "icustays": ("subject_id", "hadm_id", "icustay_id", "first_careunit", "intime", "outtime"),
    "admissions": (
        *("hadm_id", "admittime", "admission_type", "admission_location", "insurance", "ethnicity"),
        "hospital_expire_flag",
    ),
    "patients": ("subject_id", "gender", "dob"),
    "diagnoses_icd": ("hadm_id", "icd9_code"),
    "chartevents": (*_CHARTED, "valuenum", "error"),
    "labevents": (*_CHARTED, "valuenum"),
    "outputevents": (*_CHARTED, "value", "iserror"),
}
"""Entities, and of each the columns that are read."""

_NAMES: Final = {"subject_id": "unit", "itemid": "item", "charttime": "time", "valuenum": "value"}
_SEXES: Final = {"F": "female", "M": "male"}
# By the first words of what the database says.
_ETHNICITIES: Final = {
    "WHITE": "white",
    "PORTUGUESE": "white",
    "BLACK": "black",
    "HISPANIC": "hispanic",
    "SOUTH AMERICAN": "hispanic",
    "ASIAN": "asian",
    "UNKNOWN": "unknown",
    "UNABLE TO OBTAIN": "unknown",
    "PATIENT DECLINED": "unknown",
}
_ADMISSION_SOURCES: Final = {
    "EMERGENCY ROOM": "emergency_room",
    "TRANSFER": "transfer",
    "TRSF": "transfer",
    "CLINIC REFERRAL": "referral",
    "PHYS REFERRAL": "referral",
    "HMO REFERRAL": "referral",
}


def read_mimic3(source: Source, *, hours: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table, a row for each subject, and the series, a row for each subject and hour with a value.

    Guarantees: the same frames whatever the order of rows and the size of chunks; a subject has one stay, the first
    that began at `ADULT` years or more in a unit of `CARE_UNITS`, by time and then by its number.
    Edge cases: nobody is taken -> tables without rows; nothing was read in a stay -> no row in the series.

    Args:
        source: with the official entities and columns, as text.
        hours: of the series, from admission to the unit.

    Raises:
        SchemaError: the source lacks an entity or a column.
    """
    taken = _taken(source)
    start = taken["start"].to_numpy()
    stays = Stays(pd.Index(taken[UNIT]), start, ends_of(taken["outtime"], start))
    readings = Readings(stays, hours=hours)
    for chunk in source.read("chartevents", READS["chartevents"], within=_codes(BEDSIDE)):
        readings.add_bedside(chunk[chunk["error"] != "1"].rename(columns=_NAMES), BEDSIDE)
    for chunk in source.read("labevents", READS["labevents"], within=_codes(LABORATORY_ITEMS)):
        readings.add_laboratory(chunk.rename(columns=_NAMES), LABORATORY_ITEMS)
    for chunk in source.read("outputevents", READS["outputevents"], within=_codes(URINE)):
        readings.add_bedside(chunk[chunk["iserror"] != "1"].rename(columns=_NAMES), URINE)
    columns: dict[str, np.ndarray | pd.Series] = {
        "age": taken["age"].astype("int64").astype("str"),
        "sex": taken["gender"].map(_SEXES).fillna(""),
        "ethnicity": _grouped(taken["ethnicity"], _ETHNICITIES),
        "insurance": _word(taken["insurance"]),
        "admission_type": _word(taken["admission_type"]),
        "admission_source": _grouped(taken["admission_location"], _ADMISSION_SOURCES),
        "care_unit": taken["first_careunit"].map(CARE_UNITS),
        "admitted": admitted(stays.start),
        "weight_kg": readings.weight(),
        **_diagnosed(source, taken["hadm_id"]).written(DIAGNOSES),
        **readings.laboratory(),
        "los_days": stays.written_days(),
        "died": taken["hospital_expire_flag"].map({"0": "no", "1": "yes"}).fillna(""),
    }
    return table_of(stays, columns), readings.series()


def _codes(items: Mapping[str, Item]) -> dict[str, list[int]]:
    return {"itemid": [int(code) for code in items]}


def _taken(source: Source) -> pd.DataFrame:
    """The stay of each subject, with what is known of its admission and its patient."""
    stays = whole(source, "icustays", READS["icustays"])
    admissions = whole(source, "admissions", READS["admissions"]).drop_duplicates("hadm_id")
    patients = whole(source, "patients", READS["patients"]).drop_duplicates("subject_id")
    stays = stays.merge(admissions, on="hadm_id").merge(patients, on="subject_id")
    # Who was above 89 was born three hundred years before, which ends at the same age.
    age = years_between(stays["dob"], stays["admittime"])
    start = seconds_of(stays["intime"])
    stays = stays.assign(start=start, age=np.minimum(age, TOP_AGE))
    ours = (age >= ADULT) & (start != NEVER) & stays["first_careunit"].isin(list(CARE_UNITS))
    return first_stays(stays[ours].rename(columns={"subject_id": UNIT, "icustay_id": "stay"}))


def _diagnosed(source: Source, admissions: pd.Series) -> Groups:
    groups = Groups(len(admissions))
    known = pd.Index(admissions)
    for chunk in source.read("diagnoses_icd", READS["diagnoses_icd"]):
        unit = np.asarray(known.get_indexer(pd.Index(chunk["hadm_id"])), dtype=np.int64)
        codes = chunk["icd9_code"].str.strip().str.upper()
        for name, beginnings in CODES.items():
            groups.add(unit[(unit >= 0) & codes.str.startswith(beginnings).to_numpy(dtype=bool)], name)
    return groups


def _word(text: pd.Series) -> pd.Series:
    """`Self Pay` as self_pay."""
    return text.str.strip().str.lower().str.replace(" ", "_")


def _grouped(text: pd.Series, groups: Mapping[str, str]) -> pd.Series:
    """The group that a text begins with the words of, `other` without one, `unknown` for an empty text."""
    said = text.str.strip().str.upper()
    result = pd.Series("other", index=text.index).mask(said == "", "unknown")
    for beginning, group in groups.items():
        result = result.mask(said.str.startswith(beginning), group)
    return result
