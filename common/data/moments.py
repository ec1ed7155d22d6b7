"""Moments as whole numbers: so many units of time since a public first moment, in a time zone or without one.

Text is ISO 8601 and is never guessed at: a moment that a clock does not show, or shows twice, is refused, and so is an
offset where the clock has no zone. Errors say the rule and hold nothing of the text.
"""

import functools
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from typing import Final
from zoneinfo import ZoneInfo, available_timezones

import numpy as np

DAY: Final = 86_400
UNITS: Final = {"day": DAY, "hour": 3600, "minute": 60, "second": 1}
"""Seconds in one."""
_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001 (a naive clock's zero; with a zone it is read as UTC)
_EPOCH_DAY: Final = _EPOCH.toordinal()
_STAMP: Final = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})"
    r"(?:[T ]((?:[01][0-9]|2[0-3]):[0-5][0-9](?::[0-5][0-9])?)(?:(?<=:[0-9]{2}:[0-9]{2})\.([0-9]{1,9}))?"
    r"(Z|[+-](?:[01][0-9]|2[0-3])(?::?[0-5][0-9](?::[0-5][0-9])?)?)?)?"
)
# What differs from machine to machine, or is no place.
_NO_ZONES: Final = frozenset({"localtime", "Factory"})
# A day more or less, in any zone, is then still in a year that a calendar has.
_EARLIEST: Final = (datetime(2, 1, 1) - _EPOCH) // timedelta(seconds=1)  # noqa: DTZ001
_LATEST: Final = (datetime(9999, 1, 1) - _EPOCH) // timedelta(seconds=1)  # noqa: DTZ001
_FIRST_KNOWN: Final = (datetime(1, 1, 2) - _EPOCH) // timedelta(seconds=1)  # noqa: DTZ001
_LAST_KNOWN: Final = (datetime(9999, 12, 31) - _EPOCH) // timedelta(seconds=1)  # noqa: DTZ001
# Rules of clocks last longer than a sample's step, and repeat after the last that is tabulated.
_SAMPLE: Final = 20 * DAY
_LAST_RULES: Final = (datetime(2100, 1, 1) - _EPOCH) // timedelta(seconds=1)  # noqa: DTZ001
_TWO_YEARS: Final = 2 * 366 * DAY


@functools.cache
def _zone_names() -> frozenset[str]:
    return frozenset(available_timezones()) - _NO_ZONES


def zone_named(name: str) -> ZoneInfo:
    """A zone of the IANA database.

    Raises:
        ValueError: it has none of this name.
    """
    if name not in _zone_names():
        raise ValueError("expected a zone of the IANA database such as Europe/Berlin, or UTC")
    return ZoneInfo(name)


@dataclass(frozen=True)
class Clock:
    """Numbers moments by whole units since a first one.

    Days of a zone are its calendar's, 23 to 25 hours long; each stands for its first moment. Hours, minutes and seconds
    are those that pass. Without a zone every day has 24 hours.

    first: the moment of number 0, in seconds since 1970; of UTC where there is a zone.
    unit: seconds in one unit, of `UNITS`.
    zone: None for a clock on the wall, nobody knows where.

    >>> berlin = make_clock("2020-03-28", "day", "Europe/Berlin")
    >>> int(berlin.position("2020-03-30")), berlin.seconds(np.array([2]))[0] - berlin.first
    (2, np.int64(169200))
    """

    first: int
    unit: int
    zone: ZoneInfo | None

    def position(self, text: str) -> Fraction | int:
        """Units since the first moment; whole where the text is on the clock's grid, else between its neighbours.

        Raises:
            ValueError: the text is no moment of this clock; says the rule.
        """
        seconds = _read(text, self.zone, by_day=self.unit == DAY)
        if self.zone is None or self.unit != DAY:
            units, rest = divmod(seconds - self.first, self.unit)
            return units + Fraction(rest) / self.unit if rest else units
        day, first_day = _day_of(self.zone, seconds), _day_of(self.zone, self.first)
        # How far into the day makes no difference to anyone.
        return day - first_day + (0 if _day_start(self.zone, day) == seconds else Fraction(1, 2))

    def numbers(self, seconds: np.ndarray) -> np.ndarray:
        """Numbers of the units that moments are in; both (n,) int64, seconds since 1970."""
        if self.zone is None or self.unit != DAY:
            return np.asarray((seconds - self.first) // self.unit)
        distinct, inverse = np.unique(seconds, return_inverse=True)
        days = [_day_of(self.zone, one) for one in distinct.tolist()]
        return np.asarray((np.array(days, dtype=np.int64) - _day_of(self.zone, self.first))[inverse])

    def seconds(self, numbers: np.ndarray) -> np.ndarray:
        """The inverse of `numbers`, at the start of each unit.

        Raises:
            ValueError: the zone's calendar leaves the day out.
        """
        if self.zone is None or self.unit != DAY:
            return np.asarray(self.first + numbers * self.unit)
        distinct, inverse = np.unique(numbers, return_inverse=True)
        days = (distinct + _day_of(self.zone, self.first)).tolist()
        return np.array([_day_start(self.zone, day) for day in days], dtype=np.int64)[inverse]

    def written(self, seconds: int) -> str:
        """ISO 8601: with the offset where there is a zone; else a date alone where units are days."""
        if self.zone is not None:
            return _local(self.zone, seconds).isoformat()
        moment = _EPOCH + timedelta(seconds=seconds)
        return moment.date().isoformat() if self.unit == DAY else moment.isoformat()

    def check(self, last: int) -> None:
        """Refuse a clock whose units are not all there, or not where its hands show them, up to `last`, in seconds.

        Raises:
            ValueError: the zone leaves a day out, or shifts by a part of the unit.
        """
        if self.zone is None:
            return
        if self.first < _EARLIEST or last >= _LATEST:
            raise ValueError("min, max: with a timezone, expected years from 2 to 9998")
        offsets = list(_offsets(self.zone, self.first, last))
        if self.unit == DAY:
            # Such a zone crosses the date line eastwards, once.
            if any(after - before >= DAY // 2 for before, after in itertools.pairwise(offsets)):
                raise ValueError("timezone: the zone leaves out a day between min and max; take hours as the unit")
        elif any((offset - offsets[0]) % self.unit for offset in offsets):
            raise ValueError(
                "timezone: between min and max the zone's clock shifts by a part of the unit; take a smaller one"
            )


@functools.lru_cache(maxsize=1024)
def make_clock(first: str, unit: str, timezone: str | None) -> Clock:
    """The clock that begins at a moment, as the study says.

    Args:
        first: ISO 8601, on the grid of the unit.
        unit: a key of `UNITS`.
        timezone: of the IANA database; None for none.

    Raises:
        ValueError: says the rule that is broken.
    """
    zone = None if timezone is None else zone_named(timezone)
    seconds = _read(first, zone, by_day=unit == "day")
    if zone is not None and not _EARLIEST <= seconds < _LATEST:
        raise ValueError("with a timezone, expected a year from 2 to 9998")
    start = seconds if zone is None else _on_the_wall(zone, int(seconds // 1))
    if zone is not None and unit == "day":
        is_whole = _day_start(zone, _day_of(zone, seconds)) == seconds
    else:
        is_whole = seconds.denominator == 1 and start % UNITS[unit] == 0
    if not is_whole:
        raise ValueError(f"expected a whole {unit}")
    return Clock(int(seconds), UNITS[unit], zone)


def _read(text: str, zone: ZoneInfo | None, *, by_day: bool) -> Fraction | int:
    """Seconds since 1970; a date alone is the first moment of the day.

    Args:
        text: ISO 8601.
        zone: of a local time without an offset; None refuses one with an offset.
        by_day: whether days are counted, so that a date alone is clear even where the clock shows midnight twice or not
            at all.

    Raises:
        ValueError: the text is no such moment.
    """
    found = _STAMP.fullmatch(text)
    try:
        local = datetime.fromisoformat(f"{found[1]} {found[2] or '00:00'}") if found else None
    except ValueError:
        local = None
    if found is None or local is None:
        raise ValueError("expected an ISO 8601 date, or date and time")
    below = Fraction(int(found[3]), 10 ** len(found[3])) if found[3] and found[3].strip("0") else 0
    if found[4] is not None:
        if zone is None:
            raise ValueError("an offset from UTC is written, and the schema gives the column no timezone")
        return _since_epoch(local) - _offset(found[4]) + below
    if zone is None:
        return _since_epoch(local) + below
    if by_day and found[2] is None:
        start = _day_start(zone, local.toordinal())
        if start is None:
            raise ValueError("the calendar of the column's timezone leaves this day out")
        return start
    return _since_epoch(local) - _only_offset(zone, local) + below


def _since_epoch(local: datetime) -> int:
    return (local - _EPOCH) // timedelta(seconds=1)


@functools.lru_cache(maxsize=1024)
def _offset(text: str) -> int:
    """Seconds ahead of UTC of a written offset."""
    digits = re.sub("[^0-9]", "", text).ljust(6, "0")
    size = int(digits[:2]) * 3600 + int(digits[2:4]) * 60 + int(digits[4:])
    return -size if text[0] == "-" else size


def _only_offset(zone: ZoneInfo, local: datetime) -> int:
    """Seconds ahead of UTC at a local time.

    Raises:
        ValueError: the zone's clock does not show it, or shows it twice.
    """
    before, after = (_seconds_ahead(local.replace(tzinfo=zone, fold=fold)) for fold in (0, 1))
    if before < after:
        raise ValueError("a local time is one that the clock of the column's timezone leaves out")
    if before > after:
        raise ValueError("a local time is one that the clock of the column's timezone shows twice; write the offset")
    return before


def _seconds_ahead(moment: datetime) -> int:
    offset = moment.utcoffset()
    assert offset is not None
    return offset // timedelta(seconds=1)


def _local(zone: ZoneInfo, seconds: int) -> datetime:
    """Local time; of the nearest moment that the calendar has in every zone."""
    inside = min(max(seconds, _FIRST_KNOWN), _LAST_KNOWN)
    return (_EPOCH.replace(tzinfo=UTC) + timedelta(seconds=inside)).astimezone(zone)


def _on_the_wall(zone: ZoneInfo, seconds: int) -> int:
    """What the zone's clock shows, as seconds since it showed 1970."""
    return seconds + _seconds_ahead(_local(zone, seconds))


def _day_of(zone: ZoneInfo, seconds: Fraction | int) -> int:
    """Number of the calendar day that a moment is in, as `date.toordinal`."""
    return _local(zone, int(seconds // 1)).toordinal()


@functools.lru_cache(maxsize=2**17)
def _day_start(zone: ZoneInfo, day: int) -> int | None:
    """The first moment of a calendar day, in seconds since 1970; None where the zone leaves the day out."""
    midnight = datetime.combine(date.fromordinal(day), datetime.min.time())
    naive = (day - _EPOCH_DAY) * DAY
    before, after = (_seconds_ahead(midnight.replace(tzinfo=zone, fold=fold)) for fold in (0, 1))
    if before >= after:
        # Where midnight is twice, the first.
        return naive - before
    # The clock skips midnight, somewhere in between: the day begins with the first moment after the shift.
    low, high = naive - after, naive - before
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _seconds_ahead(_local(zone, middle)) == after else (middle, high)
    return high if _day_of(zone, high) == day else None


def _offsets(zone: ZoneInfo, first: int, last: int) -> Iterator[int]:
    """Seconds ahead of UTC, so often that no rule of the zone is missed."""
    stop = min(last, max(first + _TWO_YEARS, _LAST_RULES))
    for seconds in (*range(first, stop, _SAMPLE), last):
        yield _seconds_ahead(_local(zone, seconds))
