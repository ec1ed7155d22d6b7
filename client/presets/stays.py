"""One stay a unit, and what was read in it, gathered chunk by chunk.

Readings are whole numbers of ten-thousandths of their unit, and what is kept of them is a sum, a count or an extreme:
the result is the same in whatever chunks and in whatever order rows arrive, and takes memory for units times hours
times channels, not for rows.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from client.presets.measures import (
    CHANNELS,
    COLUMNS,
    GCS_PARTS,
    LABORATORY,
    LABORATORY_HOURS,
    LONGEST_STAY,
    WEIGHT,
    WEIGHT_HOURS,
    Measure,
)
from client.sources import Source

UNIT: Final = "unit"
"""The unit key of the tables that presets make."""

HOUR: Final = "hour"
"""The time in the series: whole hours since admission to the unit."""

NEVER_ENDS: Final = 2**62
NEVER: Final = np.iinfo(np.int64).min
"""What `seconds_of` gives for a text that is no moment."""

_SCALE: Final = 10_000
_DAY: Final = 86_400
_HOUR: Final = 3_600
_VALUES: Final = 2**28
"""More than any bound of a measure, in ten-thousandths."""
_ABSENT: Final = np.iinfo(np.int64).min


@dataclass(frozen=True)
class Stays:
    """The stays that are taken, one a unit; start and end in seconds since 1970, (units,) int64.

    A stay whose end is not known ends `NEVER_ENDS`.
    """

    units: pd.Index
    start: np.ndarray
    end: np.ndarray

    def place(self, units: pd.Series) -> np.ndarray:
        """The number of each row's unit, (rows,) int64; -1 where the unit has no stay that is taken."""
        return np.asarray(self.units.get_indexer(pd.Index(units)), dtype=np.int64)

    def written_days(self) -> np.ndarray:
        """Length of each stay in days as text, empty where its end is not known."""
        days = (self.end - self.start) / _DAY
        days = np.where(self.end < NEVER_ENDS, np.minimum(days, LONGEST_STAY.maximum), np.nan)
        return _written(days, LONGEST_STAY)


@dataclass(frozen=True)
class Item:
    """What a code of the database stands for: a measure, and how its number becomes the measure's unit."""

    measure: str
    factor: float = 1.0
    offset: float = 0.0


def seconds_of(text: pd.Series) -> np.ndarray:
    """Seconds since 1970 of moments written YYYY-MM-DD HH:MM:SS, or days alone, (rows,) int64; `NEVER` for others."""
    moments = pd.to_datetime(text.str.slice(0, 19), format="ISO8601", errors="coerce").to_numpy("datetime64[s]")
    return np.where(np.isnat(moments), NEVER, moments.astype(np.int64))


def ends_of(text: pd.Series, start: np.ndarray) -> np.ndarray:
    """Ends in seconds as `seconds_of`; `NEVER_ENDS` where none is written or it lies before the start."""
    end = seconds_of(text)
    return np.where((end == NEVER) | (end < start), NEVER_ENDS, end)


def whole(
    source: Source, entity: str, columns: Sequence[str], *, within: Mapping[str, Sequence[int]] | None = None
) -> pd.DataFrame:
    """An entity in one piece, for those that have a row a stay or a person."""
    chunks = list(source.read(entity, columns, within=within))
    return pd.concat(chunks, ignore_index=True) if chunks else pd.DataFrame(columns=list(columns), dtype="str")


def first_stays(stays: pd.DataFrame) -> pd.DataFrame:
    """The first stay of each unit, in the order of units' numbers: by `start`, then by `stay`, its number."""
    ordered = stays.assign(number=pd.to_numeric(stays[UNIT]), order=pd.to_numeric(stays["stay"]))
    ordered = ordered.sort_values(["number", "start", "order"], kind="stable")
    return ordered.drop_duplicates(UNIT).drop(columns=["number", "order"]).reset_index(drop=True)


class Readings:
    """What was measured in the stays."""

    def __init__(self, stays: Stays, *, hours: int) -> None:
        """Nothing read yet.

        Args:
            stays: that readings belong to; those of other units are left out.
            hours: of the series, from admission to the unit.
        """
        self._stays, self._hours = stays, hours
        units = len(stays.units)
        self._mean = {name: _Mean(units * hours) for name in CHANNELS if name not in ("gcs", "urine_ml")}
        self._urine = _Mean(units * hours)
        self._gcs = {name: _Largest(units * hours) for name in ("gcs", *GCS_PARTS)}
        self._smallest = {name: _Largest(units) for name in LABORATORY}
        self._largest = {name: _Largest(units) for name in LABORATORY}
        self._last = {name: _Largest(units) for name in LABORATORY}
        self._weight = _Largest(units)

    def add_bedside(self, chunk: pd.DataFrame, items: Mapping[str, Item]) -> None:
        """Take up rows of a chunk with the columns unit, item, time and value, all text."""
        for name, unit, at, value in self._found(chunk, items, {**CHANNELS, **GCS_PARTS, "weight_kg": WEIGHT}):
            if name == "weight_kg":
                inside = _within(at, WEIGHT_HOURS)
                # The first, and of several at once the smallest.
                self._weight.add(unit[inside], WEIGHT_HOURS[1] * _HOUR - at[inside], -value[inside])
                continue
            inside = (at >= 0) & (at < self._hours * _HOUR) & (at <= (self._stays.end - self._stays.start)[unit])
            place = unit[inside] * self._hours + at[inside] // _HOUR
            if name == "urine_ml":
                self._urine.add(place, value[inside])
            elif name in self._gcs:
                # The latest, and of several at once the smallest.
                self._gcs[name].add(place, at[inside], -value[inside])
            else:
                self._mean[name].add(place, value[inside])

    def add_laboratory(self, chunk: pd.DataFrame, items: Mapping[str, Item]) -> None:
        """Take up rows of a chunk with the columns unit, item, time and value, all text."""
        for name, unit, at, value in self._found(chunk, items, LABORATORY):
            inside = _within(at, LABORATORY_HOURS)
            unit, at, value = unit[inside], at[inside], value[inside]  # noqa: PLW2901 (what is used of them)
            self._smallest[name].add(unit, np.zeros_like(at), -value)
            self._largest[name].add(unit, np.zeros_like(at), value)
            self._last[name].add(unit, at - LABORATORY_HOURS[0] * _HOUR, -value)

    def _found(
        self, chunk: pd.DataFrame, items: Mapping[str, Item], measures: Mapping[str, Measure]
    ) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
        """For each measure: unit, seconds since admission and value, of rows with a plausible value."""
        unit = self._stays.place(chunk["unit"])
        ours = unit >= 0
        chunk, unit = chunk[ours], unit[ours]
        at = seconds_of(chunk["time"])
        timed = at != NEVER
        chunk, unit, at = chunk[timed], unit[timed], at[timed]
        at -= self._stays.start[unit]
        number = pd.to_numeric(chunk["value"], errors="coerce").to_numpy(dtype=np.float64)
        codes, listed = pd.factorize(chunk["item"])
        for code, text in enumerate(listed):
            item = items.get(text)
            if item is None:
                continue
            rows = np.flatnonzero(codes == code)
            measure = measures[item.measure]
            value = number[rows] * item.factor + item.offset
            # Not a number, and what is no measurement of anybody, has no part.
            rows, value = rows[np.abs(value) < _VALUES / _SCALE], value[np.abs(value) < _VALUES / _SCALE]
            exact = np.rint(value * _SCALE).astype(np.int64)
            plausible = (exact >= round(measure.minimum * _SCALE)) & (exact <= round(measure.maximum * _SCALE))
            rows, exact = rows[plausible], exact[plausible]
            yield item.measure, unit[rows], at[rows], exact

    def weight(self) -> np.ndarray:
        """Of each unit in kg as text, (units,)."""
        return _written(-self._weight.values(), WEIGHT)

    def laboratory(self) -> dict[str, np.ndarray]:
        """The columns NAME_min, NAME_max and NAME_last as text, (units,) each."""
        columns = {}
        for name, measure in LABORATORY.items():
            columns[f"{name}_min"] = _written(-self._smallest[name].values(), measure)
            columns[f"{name}_max"] = _written(self._largest[name].values(), measure)
            columns[f"{name}_last"] = _written(-self._last[name].values(), measure)
        return columns

    def series(self) -> pd.DataFrame:
        """The long table as text: a row for each unit and hour that has a value, in order."""
        columns = {name: mean.values() for name, mean in self._mean.items()}
        urine = self._urine.sums()
        columns["urine_ml"] = np.where(urine <= CHANNELS["urine_ml"].maximum, urine, np.nan)
        parts = sum(-self._gcs[part].values() for part in GCS_PARTS)
        whole = -self._gcs["gcs"].values()
        columns["gcs"] = np.where(np.isnan(parts), whole, parts)
        there = np.zeros(len(self._stays.units) * self._hours, dtype=bool)
        for values in columns.values():
            there |= ~np.isnan(values)
        place = np.flatnonzero(there)
        series = {
            UNIT: self._stays.units.to_numpy()[place // max(self._hours, 1)],
            HOUR: (place % max(self._hours, 1)).astype(str),
        }
        series |= {name: _written(columns[name][place], measure) for name, measure in CHANNELS.items()}
        return pd.DataFrame(series, dtype="str")


class Groups:
    """Which units are in which groups; at first nobody is in any."""

    def __init__(self, count: int) -> None:
        """Args: count: of units."""
        self._members: dict[str, np.ndarray] = {}
        self._count = count

    def add(self, unit: np.ndarray, group: str) -> None:
        """Put units, by number, into a group."""
        self._members.setdefault(group, np.zeros(self._count, dtype=bool))[unit] = True

    def written(self, groups: Iterable[str]) -> dict[str, np.ndarray]:
        """A column of no and yes for each group."""
        nobody = np.zeros(self._count, dtype=bool)
        return {name: np.where(self._members.get(name, nobody), "yes", "no") for name in groups}


def table_of(stays: Stays, columns: Mapping[str, np.ndarray | pd.Series]) -> pd.DataFrame:
    """The first table as text, its columns in the order of `COLUMNS`, which must be all there."""
    data = {UNIT: stays.units.to_numpy(), **{name: np.asarray(columns[name]) for name in COLUMNS}}
    return pd.DataFrame(data, dtype="str")


def admitted(start: np.ndarray) -> np.ndarray:
    """weekday_day, weekday_night, weekend_day or weekend_night of moments in seconds; day is from 7 to 19 h."""
    days = start // _DAY
    weekend = (days + 3) % 7 >= 5  # 1970 began on a Thursday
    hour = start % _DAY // _HOUR
    day = (hour >= 7) & (hour < 19)
    return np.char.add(np.where(weekend, "weekend_", "weekday_"), np.where(day, "day", "night"))


def years_between(born: pd.Series, moment: pd.Series) -> np.ndarray:
    """Whole years of age at moments, both as ISO text, (rows,) float64; NaN where either is no date."""
    parts = [_parts_of(text) for text in (born, moment)]
    (year, month, day), (then, later_month, later_day) = parts
    before = (later_month < month) | ((later_month == month) & (later_day < day))
    return np.asarray(then - year - before)


def _parts_of(text: pd.Series) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found = text.str.extract(r"^(\d{4})-(\d\d)-(\d\d)").apply(pd.to_numeric).to_numpy(dtype=np.float64)
    return found[:, 0], found[:, 1], found[:, 2]


class _Mean:
    """Sum and count of what was read at each place, both whole numbers."""

    def __init__(self, places: int) -> None:
        self._sum = np.zeros(places, dtype=np.int64)
        self._count = np.zeros(places, dtype=np.int32)

    def add(self, place: np.ndarray, value: np.ndarray) -> None:
        np.add.at(self._sum, place, value)
        np.add.at(self._count, place, 1)

    def sums(self) -> np.ndarray:
        return np.where(self._count > 0, self._sum / _SCALE, np.nan)

    def values(self) -> np.ndarray:
        return np.where(self._count > 0, self._sum / (np.maximum(self._count, 1) * _SCALE), np.nan)


class _Largest:
    """The value of the largest rank at each place; of several with that rank the largest value."""

    def __init__(self, places: int) -> None:
        self._best = np.full(places, _ABSENT, dtype=np.int64)

    def add(self, place: np.ndarray, rank: np.ndarray, value: np.ndarray) -> None:
        """Args: rank >= 0, whole; value in ten-thousandths, below `_VALUES` either side of 0."""
        np.maximum.at(self._best, place, rank * (2 * _VALUES) + value + _VALUES)

    def values(self) -> np.ndarray:
        value = self._best % (2 * _VALUES) - _VALUES
        return np.where(self._best == _ABSENT, np.nan, value / _SCALE)


def _within(at: np.ndarray, hours: Sequence[int]) -> np.ndarray:
    return (at >= hours[0] * _HOUR) & (at < hours[1] * _HOUR)


def _written(values: np.ndarray, measure: Measure) -> np.ndarray:
    """Numbers as text, empty for NaN."""
    text = np.full(len(values), "", dtype=object)
    there = ~np.isnan(values)
    text[there] = [f"{value:.{measure.decimals}f}" for value in values[there].tolist()]
    return text
