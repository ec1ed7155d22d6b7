"""Windows: what a unit went through, step by step, in a fixed number of steps.

A study with windows has two tables: one row a unit (static columns and the label), and a long one with a row for each
moment of a unit. `make_windows` cuts the long one into one window a unit and refuses what it cannot place; its errors
name the column and the rule, never a value, a unit or a time.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Annotated, Final, Literal, Self

import numpy as np
import pandas as pd
from pydantic import BeforeValidator, Field, model_validator

from common.data.encoding import Grid, make_grid
from common.data.schema import (
    CategoricalColumn,
    Column,
    ContinuousColumn,
    IntegerColumn,
    Number,
    Section,
    Text,
    Whole,
    WholeColumn,
    parse_table,
)
from common.errors import ExitCode, SchemaError

MAX_STEPS: Final = 256
_MINUTE: Final = 60.0
_EPOCH: Final = np.datetime64("1970-01-01T00:00:00", "us")
_MICROSECONDS: Final = 60_000_000
"""In a minute."""
_LAST_MINUTE: Final = int((np.datetime64("9999-12-31T23:59") - _EPOCH) // np.timedelta64(1, "m"))
"""Minutes from the epoch to the last minute that a time stamp has."""
_FAR: Final = 1e12
"""No time lies further from zero than this many of its units: beyond, a float no longer tells minutes apart."""
_DECIMALS: Final = 6
"""Times are told apart to so many decimals of a step, and gaps of a unit."""
_STAMP: Final = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?(Z|[+-]\d\d:?[0-5]\d)?")

_FIFTY_YEARS: Final = 50 * 365.25 * 24 * 60
"""In minutes. Time stamps of one unit that follow each other at a longer distance were hardly made by one clock."""

_EXACT: Final = 2**53
"""Windows are floats, which hold every whole number up to here."""

Combine = Literal["last", "first", "mean", "min", "max"]


def _start(value: object) -> object:
    number = isinstance(value, int | float) and not isinstance(value, bool) and -_FAR <= value <= _FAR
    if not (number or value in (None, "first")):
        raise ValueError(f"expected `first`, or a number between -{_FAR:g} and {_FAR:g}")
    return value


class TimeColumn(Section):
    """When a row of the long table happened: a number in any unit, or an ISO 8601 time stamp, counted in minutes.

    Time stamps carry a zone all or none; with zones, moments are compared, so different zones may be mixed.
    """

    column: Text
    type: Literal["number", "timestamp"] = "number"


class Windows(Section):
    """How the long table becomes one window a unit."""

    # grid: steps of equal width, some perhaps without a value. events: a unit's rows in order, each a step.
    layout: Literal["grid", "events"]
    # Steps in a window.
    length: Annotated[Whole, Field(ge=2, le=MAX_STEPS)]
    time: TimeColumn
    # Grid: the width of a step, in the time's unit (minutes for time stamps).
    step: Annotated[Number, Field(ge=1e-6, le=_FAR)] | None = None
    # Grid: the time at which step 1 begins, or the unit's own first row.
    start: Annotated[float | Literal["first"] | None, BeforeValidator(_start)] = None
    # A unit with rows outside its window: refuse the table, or keep its first or its last steps.
    longer: Literal["refuse", "first", "last"] = "refuse"
    # A unit whose rows end before the window does: allow it, or refuse the table.
    shorter: Literal["allow", "refuse"] = "allow"
    # A unit without a row in the window.
    empty: Literal["refuse", "allow"] = "refuse"
    # Rows of a unit that are not in the order of time: refuse the table, or sort them.
    unsorted: Literal["refuse", "sort"] = "refuse"
    # Rows of a unit at one time, whose order is not known: refuse the table, or take the table's order. On a grid they
    # are refused where they differ in a channel of which the first or the last value counts.
    ties: Literal["refuse", "keep"] = "refuse"
    # The longest time between two rows of a unit that follow each other, in the time's unit; more is refused. What
    # holds without it, `longest_gap` says.
    max_gap: Annotated[Number, Field(ge=1e-6, le=_FAR)] | None = None
    # Events: the channel that is not read but computed, the time since the unit's row before.
    gap: Text | None = None
    # Grid: what becomes of several values in one step. Default: the last.
    combine: dict[Text, Combine] = Field(default_factory=dict)
    channels: dict[Text, Column] = Field(min_length=1, max_length=64)
    # Columns of the long table that are not used.
    ignore: tuple[Text, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        grid = self.layout == "grid"
        for name, given, belongs in (
            ("step", self.step is not None, grid),
            ("start", self.start is not None, grid),
            ("combine", bool(self.combine), grid),
            ("gap", self.gap is not None, not grid),
        ):
            if given and not belongs:
                raise ValueError(f"{name}: is for the other layout than {self.layout}")
        if grid and self.step is None:
            raise ValueError("step: a grid needs the width of a step")
        if grid and self.start is None and self.time.type == "timestamp":
            raise ValueError("start: with time stamps, say `start: first`, the unit's own first row")
        if grid and self.time.type == "timestamp" and self.start != "first":
            raise ValueError("start: with time stamps, only `first` is possible")
        if self.max_gap is not None and self.step is not None and self.max_gap < self.step:
            raise ValueError("max_gap: expected at least `step`, by which the rows of a synthetic table are apart")
        if self.time.column in self.channels:
            raise ValueError("time.column: the time cannot be a channel")
        for name in self.ignore:
            if name in self.columns:
                raise ValueError(f"ignore: {name} is used")
        self._check_channels()
        self._check_gap()
        self._check_reach()
        return self

    def _check_reach(self) -> None:
        longest = "step" if self.layout == "grid" else f"channels.{self.gap}.max"
        if self.time.type == "timestamp" and self._reach > _LAST_MINUTE:
            raise ValueError(f"{longest}: {self.length} of them reach from 1970 beyond the year 9999")
        if self._reach > _FAR:
            raise ValueError(f"{longest}: {self.length} of them reach beyond a time of {_FAR:g}; take a longer unit")
        if self.step is not None and self.step < 4 * np.spacing(max(abs(self.starts_at), self._reach)):
            raise ValueError("step: at such a `start` floats do not tell steps apart; count from a later moment")

    @property
    def _reach(self) -> float:
        """The latest time that a synthetic long table may have, in the time's unit."""
        counted = self._counted
        return self.starts_at + self.length * (self.spacing if counted is None else float(counted.max))

    @property
    def _counted(self) -> IntegerColumn | ContinuousColumn | None:
        """The channel of the gap."""
        counted = self.channels.get(self.gap or "")
        return counted if isinstance(counted, IntegerColumn | ContinuousColumn) else None

    def _check_channels(self) -> None:
        for name, column in self.channels.items():
            if isinstance(column, IntegerColumn) and max(abs(column.min), abs(column.max)) >= _EXACT:
                raise ValueError(f"channels: {name}: min, max: in a channel, expected between -2^53 and 2^53")
        for name, how in self.combine.items():
            if name not in self.channels:
                raise ValueError(f"combine: {name} is not a channel")
            if isinstance(self.channels[name], CategoricalColumn) and how not in ("first", "last"):
                raise ValueError(f"combine: {name} is categorical, which has a first and a last but no {how}")

    def _check_gap(self) -> None:
        if self.gap is None:
            return
        counted = self._counted
        if counted is None:
            raise ValueError(f"gap: {self.gap} is not a numeric channel")
        if not counted.missing:
            raise ValueError(f"gap: {self.gap} needs `missing: true`, since a unit's first row has none")
        if counted.min < 0:
            raise ValueError(f"channels.{self.gap}.min={counted.min}: expected at least 0, time does not run back")
        if self.max_gap is not None:
            raise ValueError(f"max_gap: the bounds of {self.gap} say it")

    @property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        """Parts of the window, first step and the one after the last: four of about equal length, fewer if short."""
        parts = min(4, max(1, self.length // 2))
        edges = [part * self.length // parts for part in range(parts + 1)]
        return tuple(pairwise(edges))

    @property
    def varies(self) -> bool:
        """Whether units have different numbers of steps; on a grid a step without a value is still a step."""
        return self.layout == "events" and (self.shorter == "allow" or self.empty == "allow")

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the long table beside the unit key: the time and all channels but the computed one."""
        return (self.time.column, *(name for name in self.channels if name != self.gap))

    @property
    def longest_gap(self) -> float | None:
        """Most time between two rows of a unit that follow each other; None where nothing but a gap's bounds says it.

        The unit of a number is not known, so time stamps alone have a bound that no study has to state: fifty years.
        """
        if self.max_gap is not None or self.gap is not None or self.time.type == "number":
            return self.max_gap
        return _FIFTY_YEARS

    @property
    def spacing(self) -> float:
        """Time between a unit's rows in a synthetic long table, in the time's unit, where there is no gap to say it."""
        return self.step or min(1.0, self.longest_gap or 1.0)

    @property
    def least_gap(self) -> float:
        """Least time between a unit's rows in a synthetic long table where there is a gap, in the time's unit.

        Where rows of a unit may not be at one time, it is a time that is read as a gap of 0: part of a whole unit, or
        of the last decimal.
        """
        counted = self._counted
        assert counted is not None
        if self.ties == "keep" or counted.min > 0:
            return float(counted.min)
        if isinstance(counted, IntegerColumn):
            return 0.5
        return max(0.25 / (counted.steps or math.inf), 0.5 * 10.0**-_DECIMALS)

    @property
    def has_whole_times(self) -> bool:
        """Whether all times of a synthetic long table are whole numbers, whatever is drawn."""
        if self.gap is not None:
            return isinstance(self._counted, IntegerColumn) and self.least_gap.is_integer()
        return self.spacing.is_integer() and self.starts_at.is_integer()

    @property
    def starts_at(self) -> float:
        """Time at which the first step of a grid begins; 0 where it is the unit's own first row."""
        return 0.0 if self.start in (None, "first") else float(self.start)


@dataclass(frozen=True)
class WindowedTable:
    """Units with their windows, typed.

    records: one row a unit; categoricals over the public values, int64 or Int64, float64.
    values: (units, steps, channels) float64, numbers in the schema's units, moments as units since their minimum; a
        categorical channel holds positions in its public values. NaN where missing, and beyond a unit's last step.
    lengths: (units,) int64, the steps that a unit has, 0 to steps; on a grid always all of them.
    """

    records: pd.DataFrame
    values: np.ndarray
    lengths: np.ndarray

    @classmethod
    def without_windows(cls, records: pd.DataFrame) -> Self:
        """Records of a study that has no windows."""
        return cls(records, np.empty((len(records), 0, 0)), np.zeros(len(records), dtype=np.int64))

    def take(self, rows: np.ndarray) -> "WindowedTable":
        """Some of the units, by position or by mask."""
        chosen = np.flatnonzero(rows) if rows.dtype == bool else rows
        records = self.records.iloc[chosen].reset_index(drop=True)
        return WindowedTable(records, self.values[chosen], self.lengths[chosen])


def make_windows(
    text: pd.DataFrame, windows: Windows, *, unit_key: str, units: pd.Series, missing_markers: tuple[str, ...] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """One window a unit, from the long table as text.

    Guarantees: the window of a unit depends on its own rows alone.

    Args:
        text: the long table, every cell text.
        windows: of the study.
        unit_key: the column that tells units apart, in both tables.
        units: (units,) text, the distinct keys of the static table, in its order.
        missing_markers: text that means "no value", beside the empty cell.

    Returns:
        values and lengths, as in `WindowedTable`.

    Raises:
        SchemaError: a value breaks its column's rule, or a row cannot be placed.
    """
    read = {name: column for name, column in windows.channels.items() if name != windows.gap}
    row = "a row of the long table"
    parsed = parse_table(text, read, missing_markers=missing_markers, unit_key=unit_key, row=row)
    time = _parse_time(text[windows.time.column].str.strip(), windows.time)
    owner = pd.Index(units).get_indexer(pd.Index(parsed[unit_key]))
    if bool((owner < 0).any()):
        raise SchemaError(
            f"{unit_key}: {row} is of a unit that the first table does not have",
            ExitCode.UNIT_UNKNOWN,
        )
    by_unit = np.argsort(owner, kind="stable")
    backwards = (np.diff(owner[by_unit]) == 0) & (np.diff(time[by_unit]) < 0)
    if windows.unsorted == "refuse" and bool(backwards.any()):
        raise SchemaError(
            f"{windows.time.column}: the rows of a unit are not in the order of time; sort them, or set "
            "windows.unsorted: sort",
            ExitCode.TIME_UNSORTED,
        )
    order = np.lexsort((time, owner))  # stable: rows at one time stay in the table's order
    rows = _Rows(
        owner[order],
        time[order],
        {name: _as_numbers(parsed[name], column)[order] for name, column in read.items()},
    )
    _check_jumps(rows, windows)
    return (_on_grid if windows.layout == "grid" else _in_order)(rows, windows, len(units))


def check_filled(values: np.ndarray, windows: Windows) -> None:
    """Refuse windows of which a part is nobody's: a channel without a value, or last steps that no unit reaches.

    At a site that takes part this may be told to the steward alone: one unit more or less can change the answer.
    Edge cases: no unit -> nothing is refused.

    Args:
        values: (units, steps, channels), as in `WindowedTable`.
        windows: of the study.

    Raises:
        SchemaError: there is such a part.
    """
    there = ~np.isnan(values)
    if len(there) == 0:
        return
    for name, filled in zip(windows.channels, there.any(axis=(0, 1)), strict=True):
        if not filled:
            # The gap is no column of the long table.
            way = "delete it and `windows.gap`" if name == windows.gap else "move it to `windows.ignore`"
            raise SchemaError(f"{name}: no unit has a value in this channel; {way}", ExitCode.CONSTANT_COLUMN)
    if not bool(there[:, -1].any()):
        raise SchemaError(f"windows.length={windows.length}: no unit has so many steps", ExitCode.WINDOW_TOO_SHORT)


@dataclass(frozen=True)
class _Rows:
    """The long table, sorted by unit and time; each (rows,). `owner` is a position among the units."""

    owner: np.ndarray
    time: np.ndarray
    channels: dict[str, np.ndarray]


def _as_numbers(values: pd.Series, column: Column) -> np.ndarray:
    """(rows,) float64, NaN where missing; categories as positions in the public values."""
    if isinstance(column, CategoricalColumn):
        codes = values.cat.codes.to_numpy().astype(np.float64)
        return np.where(codes < 0, np.nan, codes)
    return column.to_numbers(values)


def _parse_time(text: pd.Series, time: TimeColumn) -> np.ndarray:
    """Times as numbers, (rows,) float64: as they stand, or minutes since 1970."""
    name = time.column
    if bool((text == "").any()):
        raise SchemaError(f"{name}: a time is missing", ExitCode.MISSING_NOT_ALLOWED)
    if time.type == "number":
        numbers = pd.to_numeric(text, errors="coerce").to_numpy(dtype=np.float64)
        if not bool((np.abs(numbers) <= _FAR).all()):
            raise SchemaError(f"{name}: a time is not a number between -{_FAR:g} and {_FAR:g}", ExitCode.NOT_A_TIME)
        return np.asarray(numbers)
    minutes: dict[str, float] = {}
    zones = set()
    for stamp in pd.unique(text):
        moment = _parse_stamp(stamp)
        if moment is None:
            raise SchemaError(f"{name}: a time is not an ISO 8601 date and time", ExitCode.NOT_A_TIME)
        zones.add(moment.tzinfo is not None)
        minutes[stamp] = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() / _MINUTE
    if len(zones) > 1:
        raise SchemaError(
            f"{name}: some times have a zone and some have none, so their order is not known", ExitCode.TIME_ZONE_MIXED
        )
    return text.map(minutes).to_numpy(dtype=np.float64)


def _parse_stamp(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if _STAMP.fullmatch(text) else None
    except ValueError:
        return None


def _check_jumps(rows: _Rows, windows: Windows) -> None:
    """Refuse rows of a unit that follow each other at too long a distance, whether its window holds them or not."""
    longest = windows.longest_gap
    if longest is None:
        return
    too_far = np.diff(rows.time) > longest + _slack(rows.time[1:], longest, windows.time)
    if bool((too_far & (np.diff(rows.owner) == 0)).any()):
        unit = " minutes" if windows.time.type == "timestamp" else ""
        raise SchemaError(
            f"{windows.time.column}: two rows of a unit that follow each other are more than {longest:.12g}{unit} "
            "apart; correct the times, or widen windows.max_gap from public knowledge",
            ExitCode.OUT_OF_BOUNDS,
        )


def _slack(times: np.ndarray, width: float, column: TimeColumn) -> np.ndarray:
    """What rounding may have taken from the time since an earlier row, in the time's unit: 0.3 / 0.1 is less than 3.

    Time stamps are rounded to microseconds, and all times to floats, which far from 0 are apart: those of the minutes
    since 1970 by a quarter of a microsecond.
    """
    stamped = 1 / _MICROSECONDS if column.type == "timestamp" else 0.0
    return np.asarray(np.maximum(stamped + 2 * np.spacing(np.abs(times)), 0.5 * 10.0**-_DECIMALS * width))


def _check_ties(rows: _Rows, windows: Windows) -> None:
    """Refuse values of a unit at one time of which a step of the grid would hold one by the order of the table."""
    for name, values in rows.channels.items():
        how = windows.combine.get(name, "last")
        there = ~np.isnan(values)
        owner, time, found = rows.owner[there], rows.time[there], values[there]
        tied = (np.diff(owner) == 0) & (np.diff(time) == 0) & (np.diff(found) != 0)
        if how in ("first", "last") and bool(tied.any()):
            raise SchemaError(
                f"{windows.time.column}: two rows of a unit have the same time and different values of {name}, so "
                f"which is the {how} is not known; set windows.combine to mean, min or max, or windows.ties: keep to "
                "take the table's order",
                ExitCode.TIME_REPEATED,
            )


def _on_grid(rows: _Rows, windows: Windows, units: int) -> tuple[np.ndarray, np.ndarray]:
    """The value of each channel in each step: by `combine` where a step has several, NaN where it has none."""
    owner, steps = rows.owner, windows.length
    assert windows.step is not None
    if windows.ties == "refuse":
        _check_ties(rows, windows)
    start = np.full(units, windows.starts_at)
    if windows.start == "first":
        start[owner[::-1]] = rows.time[::-1]
    at = np.floor((rows.time - start[owner] + _slack(rows.time, windows.step, windows.time)) / windows.step)
    if windows.longer == "last":
        latest = np.full(units, -np.inf)
        np.maximum.at(latest, owner, at)
        at -= np.maximum(latest - (steps - 1), 0.0)[owner]
    inside = (at >= 0) & (at < steps)
    if windows.longer == "refuse" and not bool(inside.all()):
        _refuse_longer(windows)
    owner, at = owner[inside], at[inside].astype(np.int64)
    last = np.full(units, -1, dtype=np.int64)
    np.maximum.at(last, owner, at)
    _check_extent(last + 1, windows)
    values = np.full((units, steps, len(windows.channels)), np.nan)
    for position, (name, column) in enumerate(windows.channels.items()):
        found, how = rows.channels[name][inside], windows.combine.get(name, "last")
        there = ~np.isnan(found)
        if how == "mean":
            there &= ~_repeated(owner, rows.time[inside], found)
        values[:, :, position] = _combined(
            owner[there] * steps + at[there], found[there], units * steps, how, column
        ).reshape(units, steps)
        if not column.missing and bool(np.isnan(values[:, :, position]).any()):
            raise SchemaError(
                f"{name}: a step has no value, and the schema says `missing: false`", ExitCode.MISSING_NOT_ALLOWED
            )
    return values, np.full(units, steps, dtype=np.int64)


def _repeated(owner: np.ndarray, time: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Which rows say what another row of the same unit says at the same time, (rows,) bool: all of such but one."""
    repeated = np.zeros(len(owner), dtype=bool)
    order = np.lexsort((found, time, owner))
    said = np.column_stack([owner, time, found])[order]
    repeated[order[1:]] = (said[1:] == said[:-1]).all(axis=1)
    return repeated


def _combined(place: np.ndarray, found: np.ndarray, places: int, how: Combine, column: Column) -> np.ndarray:
    """One value a place, NaN where none was found; `place` and `found` are in the order of time."""
    result = np.full(places, np.nan)
    if how == "last":
        result[place] = found
    elif how == "first":
        result[place[::-1]] = found[::-1]
    elif how == "mean":
        count = np.bincount(place, minlength=places)
        there = count > 0
        result[there] = np.bincount(place, weights=found, minlength=places)[there] / count[there]
        digits = column.decimals if isinstance(column, ContinuousColumn) else 0
        result = result if digits is None else np.round(result, digits)
    elif how == "min":
        np.fmin.at(result, place, found)
    else:
        np.fmax.at(result, place, found)
    return result


def _in_order(rows: _Rows, windows: Windows, units: int) -> tuple[np.ndarray, np.ndarray]:
    """Each row a step, the first or the last `length` of a unit."""
    owner, steps = rows.owner, windows.length
    apart = np.diff(rows.time, prepend=np.nan)
    counts = np.bincount(owner, minlength=units)
    starts = np.cumsum(counts) - counts
    apart[starts[counts > 0]] = np.nan
    if windows.ties == "refuse" and bool((apart == 0).any()):
        raise SchemaError(
            f"{windows.time.column}: two rows of a unit have the same time, so their order is not known; set "
            "windows.ties: keep to take the table's order",
            ExitCode.TIME_REPEATED,
        )
    if windows.longer == "refuse" and bool((counts > steps).any()):
        _refuse_longer(windows)
    _check_extent(counts, windows)
    at = np.arange(len(owner)) - starts[owner]
    if windows.longer == "last":
        at -= np.maximum(counts - steps, 0)[owner]
    inside = (at >= 0) & (at < steps)
    values = np.full((units, steps, len(windows.channels)), np.nan)
    for position, (name, column) in enumerate(windows.channels.items()):
        found = _gaps(name, column, apart) if name == windows.gap else rows.channels[name]
        values[owner[inside], at[inside], position] = found[inside]
    return values, np.minimum(counts, steps).astype(np.int64)


def _gaps(name: str, column: Column, apart: np.ndarray) -> np.ndarray:
    """Time since the row before as a value of its column; NaN for a unit's first row."""
    assert isinstance(column, IntegerColumn | ContinuousColumn)
    # 4.35 - 3.35 is a little less than 1.
    apart = np.where(np.abs(apart - np.rint(apart)) < 10.0**-_DECIMALS, np.rint(apart), apart)
    inside = np.clip(apart, column.min, column.max)
    if column.outside == "refuse" and bool((np.abs(apart - inside) >= 10.0**-_DECIMALS).any()):
        raise SchemaError(
            f"{name}: the time between two rows of a unit is outside {column.bounds}; widen the public bounds, or set "
            "`outside: clip`",
            ExitCode.OUT_OF_BOUNDS,
        )
    if isinstance(column, IntegerColumn):
        return np.asarray(np.floor(inside))
    return np.asarray(inside if column.decimals is None else np.round(inside, column.decimals))


def _refuse_longer(windows: Windows) -> None:
    raise SchemaError(
        f"{windows.time.column}: a unit has rows outside the window of {windows.length} steps; set windows.longer: "
        "first or last to drop them",
        ExitCode.WINDOW_TOO_LONG,
    )


def _check_extent(steps: np.ndarray, windows: Windows) -> None:
    """Refuse units whose rows end after so few steps, (units,), where the study does not allow it."""
    if windows.empty == "refuse" and bool((steps == 0).any()):
        raise SchemaError(
            f"{windows.time.column}: a unit has no row in its window; set windows.empty: allow to keep it",
            ExitCode.UNIT_WITHOUT_STEPS,
        )
    if windows.shorter == "refuse" and bool((steps < windows.length).any()):
        raise SchemaError(
            f"{windows.time.column}: the rows of a unit end before its window of {windows.length} steps; set "
            "windows.shorter: allow",
            ExitCode.WINDOW_TOO_SHORT,
        )


def encode_windows(values: np.ndarray, lengths: np.ndarray, grids: Sequence[Grid]) -> np.ndarray:
    """Fine cells of each channel and step, (units, steps, channels) int64; -1 beyond a unit's last step."""
    units, steps, _ = values.shape
    cells = np.empty(values.shape, dtype=np.int64)
    for position, grid in enumerate(grids):
        cells[:, :, position] = grid.encode(_as_series(values[:, :, position].ravel(), grid)).reshape(units, steps)
    cells[np.arange(steps) >= lengths[:, None]] = -1
    return cells


def _as_series(values: np.ndarray, grid: Grid) -> pd.Series:
    if isinstance(grid.column, CategoricalColumn):
        codes = np.where(np.isnan(values), -1, values).astype(np.int64)
        dtype = pd.CategoricalDtype(list(grid.column.values))
        return pd.Series(pd.Categorical.from_codes(codes, dtype=dtype), name=grid.name)
    return pd.Series(values, name=grid.name)


def long_table(
    values: np.ndarray, lengths: np.ndarray, windows: Windows, *, unit_key: str, units: Sequence[str]
) -> pd.DataFrame:
    """The long table of windows: a row a step, in the schema's dtypes, joined to the first table by the unit key.

    Guarantees: `make_windows` reads it.

    The time is that at which a step of the grid begins (from 0 where the study says `first`); for events it is the sum
    of the gaps so far where the study has them, each at least `Windows.least_gap`, and otherwise the row's number, from
    0, times `Windows.spacing`. Where times are time stamps it is a datetime64[us], as many minutes after the beginning
    of 1970: a date that nobody had.
    """
    there = np.arange(windows.length) < lengths[:, None]  # (units, steps)
    if windows.gap is not None:
        apart = np.nan_to_num(values[:, :, list(windows.channels).index(windows.gap)])
        apart[:, 1:] = np.maximum(apart[:, 1:], windows.least_gap)
        time = np.cumsum(apart, axis=1)
    else:
        number = np.broadcast_to(np.arange(windows.length, dtype=np.float64), there.shape)
        time = windows.starts_at + windows.spacing * number
    column: dict[str, pd.Series] = {
        unit_key: pd.Series(np.repeat(np.asarray(units, dtype=object), lengths), dtype="str"),
        windows.time.column: _as_times(time[there], windows),
    }
    for position, (name, rule) in enumerate(windows.channels.items()):
        column[name] = _in_dtype(values[:, :, position][there], make_grid(name, rule))
    return pd.DataFrame(column)


def _as_times(time: np.ndarray, windows: Windows) -> pd.Series:
    if windows.time.type == "timestamp":
        return pd.Series(stamps_of(time))
    return pd.Series(time.astype(np.int64) if windows.has_whole_times else time)


def stamps_of(minutes: np.ndarray) -> np.ndarray:
    """Moments that so many minutes, (rows,), are from the beginning of 1970, where a read time stamp counts from.

    Returns:
        (rows,) datetime64[us], rounded to the nearest.
    """
    return np.asarray(_EPOCH + np.rint(_MICROSECONDS * minutes).astype("timedelta64[us]"))


def write_stamps(moments: np.ndarray) -> pd.Series:
    """Text of moments, (rows,) datetime64[us], that is read as a time stamp of the same moment, without a zone."""
    return pd.Series(np.datetime_as_string(moments, unit="us"), dtype="str").str.removesuffix(".000000")


def _in_dtype(values: np.ndarray, grid: Grid) -> pd.Series:
    if not isinstance(grid.column, WholeColumn):
        return _as_series(values, grid)
    absent = np.isnan(values)
    return grid.typed(np.where(absent, grid.column.min, values).astype(np.int64), absent)
