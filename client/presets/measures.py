"""What every preset makes of an intensive-care database: names, units and public bounds of columns and channels.

Presets differ in where they find a value and never in what it means, so that sites with different databases can take
part in one study. No bound and no category was taken from rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Measure:
    """A number in the tables.

    minimum, maximum: what can be read of a living adult, both included; what lies outside is missing.
    decimals: that it is written with.
    """

    minimum: float
    maximum: float
    decimals: int = 0


# Wide on purpose: beyond these an instrument or a hand was wrong. The studies state the same ranges.
CHANNELS: Final[Mapping[str, Measure]] = {
    "heart_rate": Measure(20, 250),  # beats/min; a ventricle hardly follows faster
    "systolic_bp": Measure(30, 300),  # mmHg; an open or a flushed line reads 0 or more than 300
    "diastolic_bp": Measure(10, 200),  # mmHg
    "mean_bp": Measure(20, 220),  # mmHg
    "respiratory_rate": Measure(2, 70),  # breaths/min
    "temperature": Measure(25, 44, 1),  # °C; severe hypothermia to lethal fever
    "spo2": Measure(40, 100),  # %; oximeters are not calibrated further down
    "glucose": Measure(10, 1500),  # mg/dl
    "gcs": Measure(3, 15),  # points; the ends of the scale
    "urine_ml": Measure(0, 2000),  # ml within the hour; more is a sum over many hours
}
"""Channels of the series, in order: of each hour the mean, but the latest `gcs` and the sum of `urine_ml`."""

LABORATORY: Final[Mapping[str, Measure]] = {
    "lactate": Measure(0.2, 30, 1),  # mmol/l; what blood gas analysers can measure
    "creatinine": Measure(0.1, 30, 1),  # mg/dl; kidneys that fail untreated lead to 20 and more
    "bun": Measure(1, 250),  # mg/dl, urea nitrogen
    "wbc": Measure(0.1, 500, 1),  # thousands/µl; the upper end is leukaemia
    "hemoglobin": Measure(2, 25, 1),  # g/dl
    "platelets": Measure(1, 2000),  # thousands/µl
    "sodium": Measure(90, 190),  # mmol/l
    "potassium": Measure(1, 12, 1),  # mmol/l
    "bicarbonate": Measure(3, 60),  # mmol/l
    "glucose": Measure(10, 1500),  # mg/dl
    "bilirubin": Measure(0.1, 80, 1),  # mg/dl
    "inr": Measure(0.5, 20, 1),
    "albumin": Measure(0.5, 7, 1),  # g/dl
}
"""Of each, the columns NAME_min, NAME_max and NAME_last, over `LABORATORY_HOURS` around admission to the unit."""

LABORATORY_HOURS: Final = (-6, 24)
"""Hours since admission to the unit, the first included and the second not, as in the MIMIC Code Repository."""

WEIGHT: Final = Measure(25, 350, 1)
"""kg; the first that is written down within a day before or after admission to the unit."""

WEIGHT_HOURS: Final = (-24, 24)

GCS_PARTS: Final[Mapping[str, Measure]] = {
    "gcs_eyes": Measure(1, 4),
    "gcs_verbal": Measure(1, 5),
    "gcs_motor": Measure(1, 6),
}
"""What adds up to `gcs` in an hour that has a value of each."""

DIAGNOSES: Final = (
    *("sepsis", "acute_kidney_failure", "respiratory_failure", "pneumonia", "stroke", "myocardial_infarction"),
    *("heart_failure", "arrhythmia", "hypertension", "chronic_lung", "diabetes", "kidney_disease"),
    *("liver_disease", "cancer", "coagulopathy", "alcohol"),
)
"""Groups of the stay's diagnoses, a column of no and yes each; a stay may be in several."""

COLUMNS: Final = (
    *("age", "sex", "ethnicity", "insurance", "admission_type", "admission_source", "care_unit", "admitted"),
    "weight_kg",
    *DIAGNOSES,
    *(f"{name}_{which}" for name in LABORATORY for which in ("min", "max", "last")),
    *("los_days", "died"),
)
"""Columns of the first table after the unit key, in order."""

ADULT: Final = 16
"""Years of age on admission to hospital from which a stay is taken."""

TOP_AGE: Final = 90
"""Stands for all ages above 89, as HIPAA asks."""

LONGEST_STAY: Final = Measure(0, 365, 1)
"""Days in the unit; a longer stay is written as the longest."""
