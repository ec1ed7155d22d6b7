"""Stays in intensive care, simulated: the medical scenario, at the size and shape of the adults in MIMIC-III.

The unit is the patient, with one stay. Who comes is drawn first, then the course of four strains over the first day
(circulation, breathing, brain, inflammation) and the treatment that they call for, then what the laboratory and the
monitor read of them, and last which readings were written down. Whether a patient `died` depends on the admission
columns, some of them U-shaped or joined, and on the course: which way it goes, how long pressure stays low, how
unsteady the heart is. The rest is chance, which no model removes.

The bounds and categories below are stated, and values are clamped to them, so that a study may take them as public.
Every stay outlasts the window: whoever dies does so after it. Nothing here was fitted to a real patient, and no figure
of it says anything about a real hospital.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from simulations.scenarios.drawing import Codes, Flags, Floats, above, draw, sigmoid

CATEGORIES: Final[Mapping[str, tuple[str, ...]]] = {
    "sex": ("female", "male"),
    "ethnicity": ("white", "black", "hispanic", "asian", "other"),
    "insurance": ("medicare", "medicaid", "private", "government", "self_pay"),
    "admission_type": ("emergency", "urgent", "elective"),
    "care_unit": ("medical", "surgical", "coronary", "cardiac_surgery", "trauma"),
    "admitted": ("weekday_day", "weekday_night", "weekend_day", "weekend_night"),
    "diagnosis": ("sepsis", "cardiac", "respiratory", "neuro", "trauma", "gastrointestinal", "renal", "other"),
    "ventilated": ("no", "yes"),
    "vasopressor": ("no", "yes"),
    "died": ("no", "yes"),
}
"""Every category that a column can hold, in the order of its codes."""

BOUNDS: Final[Mapping[str, tuple[float, float]]] = {
    "age": (16, 90),  # years; 90 stands for all above 89, as in MIMIC-III
    "comorbidities": (0, 12),
    "weight_kg": (30, 250),
    "lactate": (0.2, 30.0),  # mmol/l
    "creatinine": (0.1, 20.0),  # mg/dl
    "bun": (1, 250),  # mg/dl
    "wbc": (0.1, 120.0),  # thousands/µl
    "hemoglobin": (3.0, 22.0),  # g/dl
    "platelets": (5, 1500),  # thousands/µl
    "sodium": (100, 180),  # mmol/l
    "potassium": (1.5, 10.0),  # mmol/l
    "bicarbonate": (3, 55),  # mmol/l
    "glucose": (20, 1200),  # mg/dl
    "bilirubin": (0.1, 50.0),  # mg/dl
    "heart_rate": (20, 220),  # beats/min
    "systolic_bp": (40, 240),  # mmHg
    "diastolic_bp": (15, 160),  # mmHg
    "respiratory_rate": (4, 60),  # breaths/min
    "temperature": (32.0, 42.0),  # °C
    "spo2": (50, 100),  # %
    "gcs": (3, 15),  # points of the Glasgow coma scale
    "urine_ml": (0, 1000),  # ml within the hour
}
"""Smallest and largest value of each numeric column and channel, both included; the simulator clamps to them."""

DECIMALS: Final[Mapping[str, int]] = dict.fromkeys(
    ("lactate", "creatinine", "wbc", "hemoglobin", "potassium", "bilirubin", "temperature"), 1
)
"""How many decimals a number is written with; the others are whole."""

CHANNELS: Final = tuple(list(BOUNDS)[-8:])
"""The columns of the series that are measured, in order."""

HOURS: Final = 24
"""Rows of the series that each patient has: hours 0 to 23 since admission to the unit."""

MOST_HOSPITALS: Final = 26
"""As many as there are letters to name them."""


@dataclass(frozen=True)
class _Hospital:
    """What makes one hospital unlike another; `diagnoses` are weights in the order of `CATEGORIES`."""

    share: float  # of all patients, before normalising
    age: float  # mean, years
    diagnoses: tuple[float, ...]
    log_odds: float  # of death, on top of what the patient says
    gaps: float  # log odds that a reading is not written down, on top of the channel's
    pressure: float  # mmHg that its instruments add
    temperature: float  # °C that its instruments add


_HOSPITALS: Final = (
    _Hospital(0.38, 65, (0.17, 0.24, 0.12, 0.13, 0.07, 0.13, 0.04, 0.10), 0.10, 0.0, 0.0, 0.0),  # university
    _Hospital(0.25, 69, (0.06, 0.61, 0.08, 0.06, 0.02, 0.06, 0.03, 0.08), -0.30, -0.4, 3.0, 0.1),  # heart centre
    _Hospital(0.22, 72, (0.19, 0.18, 0.21, 0.08, 0.02, 0.15, 0.07, 0.10), 0.25, 0.7, -3.0, -0.2),  # community
    _Hospital(0.15, 58, (0.09, 0.10, 0.08, 0.24, 0.33, 0.08, 0.02, 0.06), -0.15, 0.2, 5.0, 0.0),  # trauma centre
)

# Weights of care units, one row a diagnosis.
_UNITS_BY_DIAGNOSIS: Final = np.array(
    [
        [0.75, 0.15, 0.05, 0.03, 0.02],  # sepsis
        [0.05, 0.03, 0.42, 0.50, 0.00],  # cardiac
        [0.78, 0.10, 0.07, 0.03, 0.02],  # respiratory
        [0.25, 0.50, 0.03, 0.01, 0.21],  # neuro
        [0.02, 0.18, 0.00, 0.01, 0.79],  # trauma
        [0.48, 0.45, 0.02, 0.01, 0.04],  # gastrointestinal
        [0.74, 0.14, 0.08, 0.02, 0.02],  # renal
        [0.55, 0.28, 0.07, 0.04, 0.06],  # other
    ]
)

# Weights of admission types, one row a care unit.
_ADMISSIONS_BY_UNIT: Final = np.array(
    [
        [0.95, 0.03, 0.02],  # medical
        [0.76, 0.03, 0.21],  # surgical
        [0.88, 0.05, 0.07],  # coronary
        [0.42, 0.06, 0.52],  # cardiac_surgery
        [0.96, 0.02, 0.02],  # trauma
    ]
)

# Mean strain of circulation, breathing, brain and inflammation, one row a diagnosis.
_STRAINS_BY_DIAGNOSIS: Final = np.array(
    [
        [0.75, 0.30, 0.25, 1.00],  # sepsis
        [0.35, 0.00, -0.50, -0.30],  # cardiac
        [-0.10, 1.00, 0.00, 0.35],  # respiratory
        [-0.45, -0.10, 1.20, 0.00],  # neuro
        [0.15, 0.00, 0.35, -0.10],  # trauma
        [0.25, -0.20, -0.30, 0.10],  # gastrointestinal
        [0.05, -0.10, -0.10, -0.10],  # renal
        [-0.20, -0.20, -0.20, -0.10],  # other
    ]
)

_YEARS_BY_DIAGNOSIS: Final = np.array([2.0, 3.0, 2.0, -3.0, -13.0, -2.0, 0.0, -3.0])  # on top of the hospital's mean
_LOG_ODDS_BY_DIAGNOSIS: Final = np.array([0.45, -0.45, 0.30, 0.55, -0.10, 0.00, -0.20, -0.20])
_LOG_ODDS_BY_ADMISSION: Final = np.array([0.0, 0.1, -0.9])
_GAPS_BY_UNIT: Final = np.array([0.25, 0.0, 0.15, -0.5, -0.1])  # log odds, as those of a hospital


@dataclass(frozen=True)
class _Channel:
    """How one channel reads in a patient without strain, in its own units (urine: log of ml)."""

    typical: float
    between: float  # standard deviation between patients
    slow: float  # of a swing that lasts for hours
    fast: float  # of a reading by itself
    gap: float  # log odds that an hour has no reading


_CHANNELS: Final[Mapping[str, _Channel]] = {
    "heart_rate": _Channel(83.0, 10.5, 4.5, 3.2, -2.6),
    "systolic_bp": _Channel(124.0, 12.5, 6.0, 4.5, -2.2),
    "diastolic_bp": _Channel(4.0, 5.5, 2.5, 2.2, -3.5),  # on top of what the systolic pressure says
    "respiratory_rate": _Channel(18.0, 2.7, 1.4, 1.1, -2.3),
    "temperature": _Channel(36.8, 0.34, 0.16, 0.10, 0.1),
    "spo2": _Channel(98.0, 1.4, 0.7, 0.45, -2.4),
    "gcs": _Channel(15.5, 0.6, 0.4, 0.4, -1.7),
    "urine_ml": _Channel(4.4, 0.55, 0.22, 0.13, -1.7),
}

# Middle and spread of a first value, on the scale on which it is drawn, and how often it is not taken.
_LABS: Final[Mapping[str, tuple[float, float, float]]] = {
    "lactate": (0.45, 0.42, 0.45),  # log
    "creatinine": (-0.05, 0.42, 0.02),  # log
    "bun": (2.85, 0.42, 0.02),  # log
    "wbc": (2.30, 0.40, 0.03),  # log
    "hemoglobin": (10.9, 1.8, 0.02),
    "platelets": (5.25, 0.42, 0.03),  # log
    "sodium": (138.6, 4.2, 0.02),
    "potassium": (1.43, 0.14, 0.02),  # log
    "bicarbonate": (24.0, 3.6, 0.03),
    "glucose": (4.87, 0.32, 0.04),  # log
    "bilirubin": (-0.35, 0.65, 0.42),  # log
}
_LOG_LABS: Final = ("lactate", "creatinine", "bun", "wbc", "platelets", "potassium", "glucose", "bilirubin")


@dataclass(frozen=True)
class _Patients:
    """One entry a patient; each (patients,). `severity` and `concern`, 0 for a usual one, are shown by no column."""

    hospital: Codes
    profile: Codes
    age: Codes
    sex: Codes
    ethnicity: Codes
    insurance: Codes
    admission: Codes  # type of admission
    unit: Codes
    clock: Codes  # hour of the day of admission
    weekend: Flags
    diagnosis: Codes
    comorbidities: Codes
    weight: Floats  # kg, NaN for those that nobody weighed
    severity: Floats
    concern: Floats  # of the nurses: who worries measures more


@dataclass(frozen=True)
class _Course:
    """Strains, 0 for a usual patient, more for a worse one, and treatments from 0 to 1; each (HOURS, patients)."""

    circulation: Floats
    breathing: Floats
    brain: Floats
    fever: Floats
    pressor: Floats
    ventilator: Floats
    cooling: Floats


def simulate_stays(*, seed: int, stays: int = 53_500, hospitals: int = 4) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Simulate stays as two tables of text, as CSV files hold them; an empty cell is a missing value.

    Guarantees: the same arguments give the same tables; a patient has one record, at one hospital, and HOURS rows of
    the series, next to each other, in time, in the order of the records; every cell obeys CATEGORIES and BOUNDS; a
    diastolic pressure is below the systolic one of its hour.
    Edge cases: fewer stays than hospitals -> some hospitals have no record; more than four -> their characters repeat.

    Args:
        seed: of everything that is drawn.
        stays: units, over all hospitals; >= 1.
        hospitals: sites, named hospital_a, hospital_b, ...; 1 to MOST_HOSPITALS. The column `hospital` is for
            splitting, not for learning.
    Returns:
        records (stays, 26) of dtype str: patient, hospital, 23 features, died;
        series (HOURS * stays, 10) of dtype str: patient, hour, CHANNELS.
    Raises:
        ValueError: stays or hospitals is out of its range.
    """
    if stays < 1:
        raise ValueError(f"stays={stays}: expected >= 1")
    if not 1 <= hospitals <= MOST_HOSPITALS:
        raise ValueError(f"hospitals={hospitals}: expected 1 to {MOST_HOSPITALS}")
    generator = np.random.default_rng(seed)
    patients = _draw_patients(generator, stays, hospitals)
    course = _draw_course(generator, patients)
    labs = _draw_labs(generator, patients, course)
    readings = _draw_readings(generator, patients, course)
    log_odds = _admission_log_odds(patients, labs, course) + _course_log_odds(patients, readings)
    died = (generator.random(stays) < _chance_of_death(log_odds)).astype(np.int64)
    seen_labs = _omit_labs(generator, patients, labs)
    charted = _chart(generator, patients, course, readings)
    keys = [f"{key:010x}" for key in generator.choice(2**40, size=stays, replace=False).tolist()]
    return _write_records(keys, patients, course, seen_labs, died), _write_series(keys, charted)


def _draw_patients(generator: np.random.Generator, stays: int, hospitals: int) -> _Patients:
    shares = np.array([_HOSPITALS[hospital % len(_HOSPITALS)].share for hospital in range(hospitals)])
    hospital = generator.choice(hospitals, size=stays, p=shares / shares.sum())
    profile = hospital % len(_HOSPITALS)
    diagnosis = draw(generator, np.array([character.diagnoses for character in _HOSPITALS])[profile])
    age = _draw_ages(generator, profile, diagnosis)
    male = np.where(_is(diagnosis, "diagnosis", "trauma"), 0.68, np.where(age > 82, 0.45, 0.56))
    sex = (generator.random(stays) < male).astype(np.int64)
    unit = draw(generator, _UNITS_BY_DIAGNOSIS[diagnosis])
    admission = draw(generator, _ADMISSIONS_BY_UNIT[unit])
    comorbidities = _whole(generator.poisson(np.exp(0.55 + 0.015 * (age - 60))), "comorbidities")
    usual = 0.008 * (age - 60) + 0.1 * comorbidities - 0.7 * _is(admission, "admission_type", "elective")
    severity = usual + generator.standard_normal(stays)
    weight = np.exp(4.28 + 0.14 * sex - 0.003 * (age - 60) + 0.22 * generator.standard_normal(stays))
    return _Patients(
        hospital=hospital,
        profile=profile,
        age=age,
        sex=sex,
        ethnicity=draw(generator, np.tile([0.72, 0.09, 0.04, 0.03, 0.12], (stays, 1))),
        insurance=_draw_insurance(generator, age),
        admission=admission,
        unit=unit,
        clock=_draw_clock(generator, admission),
        weekend=generator.random(stays) < np.where(_is(admission, "admission_type", "elective"), 0.05, 0.28),
        diagnosis=diagnosis,
        comorbidities=comorbidities,
        weight=np.where(generator.random(stays) < 0.06, np.nan, weight),
        severity=severity,
        concern=0.45 * severity + 0.9 * generator.standard_normal(stays),
    )


def _draw_ages(generator: np.random.Generator, profile: Codes, diagnosis: Codes) -> Codes:
    mean = np.array([character.age for character in _HOSPITALS])[profile] + _YEARS_BY_DIAGNOSIS[diagnosis]
    drawn = mean + 15.5 * generator.standard_normal(len(profile))
    # Turned back at sixteen: a heap of the youngest would be an artefact; one of the oldest is how age is written.
    return _whole(16 + np.abs(drawn - 16), "age")


def _draw_insurance(generator: np.random.Generator, age: Codes) -> Codes:
    by_age = np.array([[0.10, 0.19, 0.61, 0.06, 0.04], [0.86, 0.02, 0.105, 0.01, 0.005]])
    return draw(generator, by_age[(age >= 65).astype(np.int64)])


def _draw_clock(generator: np.random.Generator, admission: Codes) -> Codes:
    """Hour of the day; planned patients come in the afternoon, from the operating theatre."""
    planned = np.floor(np.clip(14 + 2.5 * generator.standard_normal(len(admission)), 8, 20)).astype(np.int64)
    other = np.floor(16 + 6.5 * generator.standard_normal(len(admission))).astype(np.int64) % 24
    return np.where(_is(admission, "admission_type", "elective"), planned, other)


def _draw_course(generator: np.random.Generator, patients: _Patients) -> _Course:
    count = len(patients.age)
    way = generator.standard_normal(count)  # which way all strains go together: to the worse where positive
    strains = [_draw_strain(generator, patients, way, organ) for organ in range(4)]
    strains[0] += _draw_crises(generator, patients)
    strains[1] += 0.7 * _draw_crises(generator, patients)
    circulation, breathing, brain, fever = strains
    operated = _is(patients.unit, "care_unit", "cardiac_surgery")
    threshold = 1.25 + 0.3 * generator.standard_normal(count)
    need = np.maximum(breathing, brain - 0.4) + 1.6 * operated
    return _Course(
        circulation=circulation,
        breathing=breathing,
        brain=brain,
        fever=fever,
        pressor=_begin(circulation > threshold + 0.2, hours=2.0),
        ventilator=_begin(need > threshold - 0.2, hours=1.0),
        cooling=_begin((fever > 1.2) & (generator.random(count) < 0.7), hours=4.0),
    )


def _draw_strain(generator: np.random.Generator, patients: _Patients, way: Floats, organ: int) -> Floats:
    """One strain, (HOURS, patients): a level, a drift over the window, and ups and downs."""
    count = len(patients.age)
    level = _STRAINS_BY_DIAGNOSIS[patients.diagnosis, organ] + 0.40 * patients.severity
    level += 0.6 * generator.standard_normal(count)
    # Care helps most those who come in a bad state.
    drift = -0.2 - 0.2 * level + 0.65 * way + 0.50 * generator.standard_normal(count)
    return np.asarray(level + drift * _hours() / (HOURS - 1) + 0.25 * _walk(generator, count, keep=0.9))


def _draw_crises(generator: np.random.Generator, patients: _Patients) -> Floats:
    """Sudden turns for the worse that wear off within hours, (HOURS, patients)."""
    count = len(patients.age)
    size = generator.exponential(1.0, count) * (generator.random(count) < sigmoid(0.4 * patients.severity - 2.6))
    since = _hours() - generator.integers(1, HOURS, count)
    return np.where(since >= 0, size * np.exp(-np.maximum(since, 0) / 5.0), 0.0)


def _begin(called_for: Flags, *, hours: float) -> Floats:
    """A treatment, (HOURS, patients): from the hour after it is first called for, it takes `hours` to work in full."""
    since = np.cumsum(np.maximum.accumulate(called_for, axis=0), axis=0) - 1
    return np.clip(since / hours, 0.0, 1.0)


def _draw_labs(generator: np.random.Generator, patients: _Patients, course: _Course) -> dict[str, Floats]:
    """First values, each (patients,), clamped but not yet rounded; all of them, also those that nobody took."""
    pulls = _lab_pulls(generator, patients, course)
    labs = {}
    for name, (middle, spread, _) in _LABS.items():
        drawn = middle + pulls[name] + spread * generator.standard_normal(len(patients.age))
        labs[name] = np.clip(np.exp(drawn) if name in _LOG_LABS else drawn, *BOUNDS[name])
    return labs


def _lab_pulls(generator: np.random.Generator, patients: _Patients, course: _Course) -> dict[str, Floats]:
    """What the patient adds to the middle of each first value, (patients,), on the scale on which it is drawn."""
    shock = np.maximum(course.circulation[:4].mean(axis=0), -0.5)
    fever = course.fever[:4].mean(axis=0)
    sepsis, renal = (1.0 * _is(patients.diagnosis, "diagnosis", name) for name in ("sepsis", "renal"))
    bleeding = 1.0 * _is(patients.diagnosis, "diagnosis", "trauma", "gastrointestinal")
    kidney = 1.3 * renal + 0.15 * shock + 0.06 * patients.comorbidities + 0.3 * generator.standard_normal(len(renal))
    liver = np.maximum(generator.standard_normal(len(renal)) - 1.1, 0.0) * (1.0 + 0.6 * bleeding)
    # An infection that the marrow cannot answer: few white cells instead of many.
    failing = sepsis * (generator.random(len(renal)) < 0.15)
    return {
        "lactate": 0.38 * shock + 0.2 * sepsis,
        "creatinine": kidney + 0.12 * patients.sex,
        "bun": 0.8 * kidney + 0.008 * (patients.age - 60),
        "wbc": 0.18 * fever + 0.15 * sepsis - 1.7 * failing,
        "hemoglobin": 0.5 * patients.sex - 0.9 * bleeding - 0.5 * renal,
        "platelets": -0.15 * sepsis - 0.7 * liver,
        "sodium": -1.5 * liver - 0.6 * sepsis + np.where(generator.random(len(renal)) < 0.06, 9.0, 0.0),
        "potassium": 0.10 * kidney - 0.05,
        "bicarbonate": -2.2 * np.maximum(shock, 0) - 1.8 * kidney,
        "glucose": 0.1 * shock + np.where(generator.random(len(renal)) < 0.25, 0.35, 0.0),
        "bilirubin": 1.3 * liver + 0.25 * sepsis,
    }


def _omit_labs(generator: np.random.Generator, patients: _Patients, labs: dict[str, Floats]) -> dict[str, Floats]:
    """The values that were taken, NaN for the others; rarer tests are made where the nurses worry."""
    seen = {}
    for name, values in labs.items():
        share = _LABS[name][2]
        worry = 0.7 * patients.concern if share > 0.2 else 0.0
        omitted = generator.random(len(values)) < sigmoid(np.log(share / (1 - share)) - worry)
        seen[name] = np.where(omitted, np.nan, values)
    return seen


def _draw_readings(generator: np.random.Generator, patients: _Patients, course: _Course) -> dict[str, Floats]:
    """What the monitor would show every hour, each (HOURS, patients), clamped and rounded as it is written."""
    own = {name: _draw_swings(generator, patients, name) for name in CHANNELS}
    pressure = np.array([character.pressure for character in _HOSPITALS])[patients.profile]
    thermometer = np.array([character.temperature for character in _HOSPITALS])[patients.profile]
    age = patients.age - 60
    asleep = np.cos((_hours() + patients.clock - 4) * 2 * np.pi / 24)  # 1 at four in the morning, -1 in the afternoon
    shock = np.where(course.circulation > 0, 1.3, 0.6) * course.circulation
    relief = course.fever - 0.7 * course.cooling
    short = np.maximum(course.breathing + 0.5, 0.0) ** 1.3
    sedation = course.ventilator * np.clip(0.7 + 0.4 * patients.severity, 0.2, 1.3)
    values = {
        "heart_rate": 8.0 * shock + 4.5 * relief - 0.15 * age - 2.0 * asleep + 2.0 * course.pressor,
        "systolic_bp": pressure + 0.15 * age - 11.5 * shock + 11.0 * course.pressor - 3.0 * asleep,
        "respiratory_rate": 2.8 * course.breathing + 1.0 * relief - 2.0 * course.ventilator,
        "temperature": thermometer + 0.42 * relief - 0.12 * asleep - 0.004 * age,
        "spo2": 1.4 * course.ventilator - 1.9 * short,
        "gcs": -2.8 * np.maximum(course.brain, 0.0) ** 1.2 - 4.0 * sedation,
        "urine_ml": -0.40 * shock - 0.6 * _is(patients.diagnosis, "diagnosis", "renal") - 0.004 * age,
    }
    values = {name: own[name] + value for name, value in values.items()}
    values["urine_ml"] = np.exp(values["urine_ml"])
    values["diastolic_bp"] = np.minimum(0.46 * values["systolic_bp"] + own["diastolic_bp"], values["systolic_bp"] - 12)
    return {name: _written(values[name], name) for name in CHANNELS}


def _draw_swings(generator: np.random.Generator, patients: _Patients, name: str) -> Floats:
    """A channel without strain, (HOURS, patients): the patient's own level, slow swings and single readings."""
    channel, count = _CHANNELS[name], len(patients.age)
    level = channel.typical + channel.between * generator.standard_normal(count)
    # Some are unsteady in one channel and not in another.
    unsteady = np.exp(0.35 * generator.standard_normal(count) + 0.08 * patients.severity)
    swing = unsteady * channel.slow * _walk(generator, count, keep=0.8)
    return np.asarray(level + swing + channel.fast * generator.standard_normal((HOURS, count)))


def _admission_log_odds(patients: _Patients, labs: dict[str, Floats], course: _Course) -> Floats:
    """Log odds of death, (patients,), by what the record holds."""
    hospital = np.array([character.log_odds for character in _HOSPITALS])[patients.profile]
    person = 0.026 * (patients.age - 65) + 0.6 * above(patients.age, 79, 2) + 0.12 * patients.comorbidities
    groups = _LOG_ODDS_BY_DIAGNOSIS[patients.diagnosis] + _LOG_ODDS_BY_ADMISSION[patients.admission]
    pressor, ventilated = course.pressor[-1] > 0, course.ventilator[-1] > 0
    # What counts of a vasopressor is that the tissue lacks blood in spite of it.
    acid = np.log(labs["lactate"] / 1.6) * np.where(pressor, 1.7, 0.3)
    # Old kidneys fail more easily than young ones.
    waste = 0.3 * np.log(labs["bun"] / 18) * np.where(patients.age > 60, 1.4, 0.6)
    lows = 0.08 * np.maximum(21 - labs["bicarbonate"], 0) + 0.6 * (1 - above(labs["platelets"], 90, 15))
    shapes = _far(labs["sodium"], 139, 8) + _far(np.log(labs["potassium"]), 1.43, 0.22)
    shapes += _far(np.log(labs["wbc"]), 2.3, 0.75) + 0.5 * _far(np.log(labs["glucose"]), 4.85, 0.6)
    labs_say = acid + waste + lows + 0.45 * shapes + 0.25 * np.log(labs["bilirubin"] / 0.7)
    return np.asarray(hospital + person + groups + labs_say + 0.1 * ventilated)


def _course_log_odds(patients: _Patients, readings: dict[str, Floats]) -> Floats:
    """Log odds of death, (patients,), by the course: what the series holds, and the worry that its gaps show."""
    pressure, heart = readings["systolic_bp"], readings["heart_rate"]
    fall = -0.07 * _trend(pressure) - 0.45 * _trend(readings["spo2"]) - 0.4 * _trend(readings["gcs"])
    mean_pressure = (pressure + 2 * readings["diastolic_bp"]) / 3
    sustained = _longest(mean_pressure < 65)
    unsteady = np.log(heart.std(axis=0) / 6.0 + 0.1)
    dry = np.log(readings["urine_ml"].mean(axis=0) / 80 + 0.05)
    return np.asarray(0.16 * np.minimum(sustained, 12) + fall + 1.4 * unsteady - 0.5 * dry + 0.45 * patients.concern)


def _chance_of_death(log_odds: Floats) -> Floats:
    # -5.15: with it about eleven patients in a hundred die.
    return sigmoid(log_odds - 5.15)


def _trend(values: Floats) -> Floats:
    """By how much the last six hours lie above the first six, (patients,)."""
    return np.asarray(values[-6:].mean(axis=0) - values[:6].mean(axis=0))


def _longest(flags: Flags) -> Codes:
    """Hours of the longest unbroken run, (patients,)."""
    run = longest = np.zeros(flags.shape[1], dtype=np.int64)
    for now in flags:
        run = (run + 1) * now
        longest = np.maximum(longest, run)
    return longest


def _chart(
    generator: np.random.Generator, patients: _Patients, course: _Course, readings: dict[str, Floats]
) -> dict[str, Floats]:
    """The readings that were written down, NaN for the others; gaps come in clumps, and fewer in the worse patients."""
    count = len(patients.age)
    hospital = np.array([character.gaps for character in _HOSPITALS])[patients.profile]
    strain = np.maximum(course.circulation, course.breathing)
    usual = hospital + _GAPS_BY_UNIT[patients.unit] - 0.3 * strain - 0.8 * patients.concern
    away = 1.2 * _walk(generator, count, keep=0.9)  # all channels at once, in the scanner or the operating theatre
    # One cuff measures both pressures.
    own = {name: _walk(generator, count, keep=0.8) for name in CHANNELS if name != "diastolic_bp"}
    own["diastolic_bp"] = own["systolic_bp"]
    charted = {}
    for name, values in readings.items():
        log_odds = _CHANNELS[name].gap + usual + away + 1.2 * own[name]
        missing = generator.random((HOURS, count)) < above(log_odds, 0.0, 0.4)
        charted[name] = np.where(missing, np.nan, values)
    # Both or, now and then, the systolic one alone.
    charted["diastolic_bp"][np.isnan(charted["systolic_bp"])] = np.nan
    rounds = (_hours() + generator.integers(0, 4, count)) % 4 == 0
    watched = _is(patients.diagnosis, "diagnosis", "neuro") & (generator.random(count) < 0.5)
    charted["gcs"][~(rounds | watched)] = np.nan
    return charted


def _write_records(
    keys: list[str], patients: _Patients, course: _Course, labs: dict[str, Floats], died: Codes
) -> pd.DataFrame:
    """All columns as text, in the order of the table."""
    names = [f"hospital_{chr(ord('a') + hospital)}" for hospital in range(MOST_HOSPITALS)]
    night = (patients.clock < 7) | (patients.clock >= 19)
    columns = {
        "patient": keys,
        "hospital": np.array(names, dtype=object)[patients.hospital],
        "age": _numbers(patients.age, "age"),
        "sex": _names(patients.sex, "sex"),
        "ethnicity": _names(patients.ethnicity, "ethnicity"),
        "insurance": _names(patients.insurance, "insurance"),
        "admission_type": _names(patients.admission, "admission_type"),
        "care_unit": _names(patients.unit, "care_unit"),
        "admitted": _names(2 * patients.weekend + night, "admitted"),
        "diagnosis": _names(patients.diagnosis, "diagnosis"),
        "comorbidities": _numbers(patients.comorbidities, "comorbidities"),
        "weight_kg": _numbers(patients.weight, "weight_kg"),
        "ventilated": _names((course.ventilator[-1] > 0).astype(np.int64), "ventilated"),
        "vasopressor": _names((course.pressor[-1] > 0).astype(np.int64), "vasopressor"),
        **{name: _numbers(values, name) for name, values in labs.items()},
        "died": _names(died, "died"),
    }
    return pd.DataFrame(columns, dtype="str")


def _write_series(keys: list[str], charted: dict[str, Floats]) -> pd.DataFrame:
    hours = np.array([str(hour) for hour in range(HOURS)], dtype=object)
    columns = {
        "patient": np.repeat(np.array(keys, dtype=object), HOURS),
        "hour": np.tile(hours, len(keys)),
        **{name: _numbers(charted[name].T.ravel(), name) for name in CHANNELS},
    }
    return pd.DataFrame(columns, dtype="str")


def _names(codes: Codes, column: str) -> NDArray[np.object_]:
    return np.array(CATEGORIES[column], dtype=object)[codes]


def _numbers(values: ArrayLike, column: str) -> NDArray[np.object_]:
    """Plain decimal text within BOUNDS, NaN as the empty cell; each distinct number is written once."""
    decimals = DECIMALS.get(column, 0)
    steps = 10**decimals
    low, high = (round(bound * steps) for bound in BOUNDS[column])
    texts = np.array([*(f"{step / steps:.{decimals}f}" for step in range(low, high + 1)), ""], dtype=object)
    written = _written(np.asarray(values, dtype=np.float64), column)
    return texts[np.where(np.isnan(written), len(texts) - 1, np.rint(written * steps) - low).astype(np.int64)]


def _written(values: Floats, column: str) -> Floats:
    """Clamped, and rounded to the decimals that are written."""
    return np.asarray(np.round(np.clip(values, *BOUNDS[column]), DECIMALS.get(column, 0)), dtype=np.float64)


def _hours() -> Floats:
    """0.0 to 23.0, (HOURS, 1)."""
    return np.arange(HOURS, dtype=np.float64)[:, None]


def _walk(generator: np.random.Generator, count: int, *, keep: float) -> Floats:
    """Standard normal paths, (HOURS, count), with correlation `keep` from one hour to the next."""
    paths = generator.standard_normal((HOURS, count))
    for hour in range(1, HOURS):
        paths[hour] = keep * paths[hour - 1] + np.sqrt(1 - keep**2) * paths[hour]
    return paths


def _is(codes: Codes, column: str, *names: str) -> Flags:
    """Which codes of a column stand for one of the names."""
    wanted = [CATEGORIES[column].index(name) for name in names]
    return np.isin(codes, wanted)


def _whole(values: ArrayLike, column: str) -> Codes:
    return np.asarray(np.floor(np.clip(np.asarray(values), *BOUNDS[column])), dtype=np.int64)


def _far(values: Floats, middle: float, spread: float) -> Floats:
    """A U: 0 in the middle, 1 at a spread from it, 4 at most."""
    return np.minimum(((values - middle) / spread) ** 2, 4.0)
