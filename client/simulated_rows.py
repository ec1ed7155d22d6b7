"""Rows that a study's schema allows, and nothing more: for checks of the machinery that need no meaning.

Every column is drawn on its own, evenly on its scale, so the rows say nothing about anybody and nothing can be learned
from them. Half of the units have one record, and half of the windows are whole and stand still: those weigh most in
a table.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from common.data.schema import (
    CategoricalColumn,
    Column,
    ContinuousColumn,
    IntegerColumn,
    NumericColumn,
    WholeColumn,
)
from common.data.windows import Windows, stamps_of, write_stamps
from common.study import Study

_RARE: Final = 0.1
"""Share of values that are missing where they may be, and of those with a meaning of their own where there are any."""
_FILLER: Final = "0"
"""In columns that the study ignores and the file has all the same."""
_INSIDE: Final = 1e-6
"""Part of its range that the time between two events stays away from its bounds: times are rounded, and so their
differences."""


@dataclass(frozen=True)
class SimulatedRows:
    """The tables of some units, as text.

    records: (records,) rows, columns as in the file.
    unit_of_record: (records,) int64, numbered from 0.
    series: (steps,) rows of the long table; None in a study without windows.
    unit_of_step: (steps,) int64.
    """

    records: pd.DataFrame
    unit_of_record: np.ndarray
    series: pd.DataFrame | None
    unit_of_step: np.ndarray

    def written(self, units: np.ndarray, study: Study) -> dict[str, str]:
        """The files of some units, by number: "table", and with windows "series"."""
        layout = study.table
        own = self.records[np.isin(self.unit_of_record, units)]
        tables = {"table": own.to_csv(index=False, sep=layout.delimiter, header=layout.header is None)}
        if self.series is not None:
            theirs = self.series[np.isin(self.unit_of_step, units)]
            tables["series"] = theirs.to_csv(index=False, sep=layout.delimiter)
        return tables


def simulate_rows(study: Study, *, units: int, seed: int) -> SimulatedRows:
    """Rows of so many units, drawn from the schema alone. With another number of units all of them are others."""
    random = np.random.default_rng(seed)
    keys = np.array([f"u{unit:07d}" for unit in range(units)], dtype=object)
    records = random.integers(1, study.unit.max_records, size=units, endpoint=True)
    owner = np.repeat(np.arange(units), np.where(_half(units, random), 1, records))
    columns = {name: _draw(column, len(owner), random) for name, column in study.columns.items()}
    if study.unit.key is not None:
        columns = {study.unit.key: keys[owner], **columns}
    if study.table.header is not None:
        filler = np.full(len(owner), _FILLER, dtype=object)
        columns = {name: columns.get(name, filler) for name in study.table.header}
    table = pd.DataFrame(columns, dtype=object)
    if study.windows is None:
        return SimulatedRows(table, owner, None, np.empty(0, dtype=np.int64))
    series, unit_of_step = _simulate_series(study.windows, units, random)
    assert study.unit.key is not None
    return SimulatedRows(table, owner, series.assign(**{study.unit.key: keys[unit_of_step]}), unit_of_step)


def _simulate_series(windows: Windows, units: int, random: np.random.Generator) -> tuple[pd.DataFrame, np.ndarray]:
    """The long table without its key, and the unit of each step. Every step of a grid has a row."""
    steps, varies = windows.length, windows.varies and windows.shorter == "allow"
    still = _half(units, random)
    lengths = np.full(units, steps)
    if varies:
        lengths = np.where(still, steps, random.integers(1, steps, size=units, endpoint=True))
    owner = np.repeat(np.arange(units), lengths)
    first = np.repeat(np.cumsum(lengths) - lengths, lengths)
    number = np.arange(len(owner)) - first
    # Which step's values a step has: its own, or those of the first step of a window that stands still.
    source = np.where(still[owner], first, np.arange(len(owner)))
    if windows.gap is None:
        time = windows.starts_at + windows.spacing * number
    else:
        passed = np.cumsum(np.where(number == 0, 0.0, _gaps(windows, len(owner), random)[source]))
        time = passed - np.repeat(passed[number == 0], lengths)
    columns = {windows.time.column: _times(time, windows)}
    for name, column in windows.channels.items():
        if name != windows.gap:
            columns[name] = _draw(column, len(owner), random)[source]
    return pd.DataFrame(columns, dtype=object), owner


def _half(units: int, random: np.random.Generator) -> np.ndarray:
    """Half of the units, about, (units,) bool."""
    return random.random(units) < 0.5


def _gaps(windows: Windows, steps: int, random: np.random.Generator) -> np.ndarray:
    """Times between events that their channel allows, all above 0: ties may be refused."""
    column = windows.channels[str(windows.gap)]
    assert isinstance(column, IntegerColumn | ContinuousColumn)
    least, most = (float(bound) for bound in (column.min, column.max))
    if isinstance(column, IntegerColumn):
        least = max(least, 1.0)
        return np.asarray(np.floor(least + random.random(steps) * (most - least + 1)))
    margin = _INSIDE * (most - least)
    least, most = least + margin, most - margin
    return np.asarray(least + random.random(steps) * (most - least))


def _times(time: np.ndarray, windows: Windows) -> np.ndarray:
    if windows.time.type == "number":
        return np.array([repr(int(one) if one == int(one) else float(one)) for one in time], dtype=object)
    return write_stamps(stamps_of(time)).to_numpy(dtype=object)


def _draw(column: Column, rows: int, random: np.random.Generator) -> np.ndarray:
    """Text of so many values of one column, (rows,); the empty text where one is missing."""
    if isinstance(column, CategoricalColumn):
        text = _raw_values(column)[random.integers(len(_raw_values(column)), size=rows)]
    else:
        text = _numbers(column, rows, random)
    return np.where(random.random(rows) < _RARE, "", text) if column.missing else text


def _raw_values(column: CategoricalColumn) -> np.ndarray:
    """Texts that the column reads: its categories, or the members of its groups."""
    raw = [*column.categories, *(member for members in (column.groups or {}).values() for member in members)]
    return np.array([*raw, *(["other"] if column.unlisted == "other" else [])], dtype=object)


def _numbers(column: NumericColumn, rows: int, random: np.random.Generator) -> np.ndarray:
    ends = column.to_scale(np.array([column.min, column.max], dtype=np.float64), column.min)
    values = column.from_scale(ends[0] + random.random(rows) * (ends[1] - ends[0]), column.min)
    if column.special:
        chosen = np.array(column.special)[random.integers(len(column.special), size=rows)]
        values = np.where(random.random(rows) < _RARE, chosen, values)
    values = np.clip(values, column.min, column.max)
    if isinstance(column, WholeColumn):
        # Rounding may pass a bound that a float does not hold.
        low, high = column.min, column.max
        whole = np.array([min(max(round(float(value)), low), high) for value in values], dtype=np.int64)
        if isinstance(column, IntegerColumn):
            return whole.astype(str).astype(object)
        return column.write(column.from_whole(whole, np.zeros(rows, dtype=bool))).to_numpy(dtype=object)
    decimals = column.decimals
    return np.array([repr(float(one)) if decimals is None else f"{one:.{decimals}f}" for one in values], dtype=object)
