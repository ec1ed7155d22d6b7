"""The tables that a preset makes, cut to what a study asks for."""

import math
from collections.abc import Callable, Mapping
from typing import Final, Literal

import pandas as pd

from client.presets import mimic3, omop54
from client.presets.measures import CHANNELS, COLUMNS
from client.presets.stays import HOUR, UNIT
from client.sources import Source
from common.errors import ExitCode, SchemaError, StudyError
from common.study import Study

Preset = Literal["mimic3", "omop54"]

READS: Final[Mapping[Preset, Mapping[str, tuple[str, ...]]]] = {"mimic3": mimic3.READS, "omop54": omop54.READS}
"""Entities that a preset reads, and of each the columns."""

_LONGEST: Final = 240
"""Hours of a series; memory grows with them."""


def read_preset(preset: Preset, source: Source, study: Study) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """The first table of a study and, where it has windows, the long one, as text.

    The unit key and the time have the names that the study gives them; the time is in whole hours since admission.

    Raises:
        StudyError: the study has no unit key, or windows that are not in hours from admission, or too long.
        SchemaError: the study has a column that the preset does not make, or the source lacks something.
    """
    columns, channels = not_made(preset, study)
    if missing := [*columns, *channels]:
        raise SchemaError(
            f"{missing[0]}: the preset {preset} makes no such column; see docs/mimic.md", ExitCode.COLUMN_MISSING
        )
    readers: Mapping[Preset, Callable[..., tuple[pd.DataFrame, pd.DataFrame]]] = {
        "mimic3": mimic3.read_mimic3,
        "omop54": omop54.read_omop54,
    }
    table, series = readers[preset](source, hours=_hours(study, preset))
    assert study.unit.key is not None  # `not_made` has seen to it
    table = table.rename(columns={UNIT: study.unit.key})[[study.unit.key, *study.columns]]
    if study.windows is None:
        return table, None
    series = series[[UNIT, HOUR, *study.channels]]
    said = (series[list(study.channels)] != "").any(axis="columns")
    return table, series[said].reset_index(drop=True).rename(
        columns={UNIT: study.unit.key, HOUR: study.windows.time.column}
    )


def not_made(preset: Preset, study: Study) -> tuple[list[str], list[str]]:
    """Columns, and channels, of a study that a preset does not make.

    Raises:
        StudyError: as `read_preset`.
    """
    if study.unit.key is None:
        raise StudyError(f"unit.key: the preset {preset} makes one row a unit; name the column that tells units apart")
    _hours(study, preset)
    columns = [name for name in study.columns if name not in COLUMNS]
    return columns, [name for name in study.channels if name not in CHANNELS]


def _hours(study: Study, preset: Preset) -> int:
    """Hours of the series that the study's windows reach over."""
    windows = study.windows
    if windows is None:
        return 0
    if windows.layout != "grid" or windows.step is None or windows.start not in (None, 0):
        raise StudyError(f"windows: the preset {preset} needs a grid in hours that begins with admission, `start: 0`")
    hours = math.ceil(windows.step * windows.length)
    if hours > _LONGEST:
        raise StudyError(f"windows.length: the preset {preset} makes at most {_LONGEST} hours")
    return hours
