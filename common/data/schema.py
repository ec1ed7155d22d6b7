"""The public description of a table: columns, bounds, categories. Nothing in it is learned from rows.

`parse_table` turns a table of text into typed columns and refuses whatever the schema does not allow. Its errors name
the column and the rule, never a value, a unit or a count.
"""

import itertools
import math
import re
from collections.abc import Mapping
from decimal import Decimal, DecimalException
from typing import Annotated, Any, Final, Literal, Self

import numpy as np
import pandas as pd
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_serializer, model_validator

from common.data.moments import Clock, make_clock
from common.errors import ExitCode, SchemaError

OTHER = "other"
"""The category that stands for every value which a column with `unlisted: other` does not list."""

MAX_CELLS = 4096
"""More cells than this in one column cannot carry a signal and only cost memory."""

LEAST_WHOLE: Final = -(2**63)
MOST_WHOLE: Final = 2**63 - 1
"""What int64 holds, and so a whole number of a table."""


def _text(value: Any) -> Any:
    """YAML reads a bare 1 as a number; a category is always text. 1.10 would lose its zero, so it must be quoted."""
    if isinstance(value, float):
        raise ValueError("put a number with decimals in quotes: it is text here")
    if isinstance(value, str) and value != value.strip():
        raise ValueError("spaces at the ends of a name are not kept; leave them out")
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected a number, not true or false")
    return value


def _whole(value: Any) -> Any:
    value = _not_bool(value)
    if isinstance(value, float) and not value.is_integer():
        raise ValueError("expected whole numbers")
    return value


Text = Annotated[str, BeforeValidator(_text)]
Number = Annotated[float, BeforeValidator(_not_bool), Field(allow_inf_nan=False)]
Whole = Annotated[int, BeforeValidator(_not_bool)]


_FORMULA: Final = re.compile(r"[=+\-@\t\r]")
_FORMULA_NUMBER: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def defused(category: str) -> str:
    """A category as a CSV file has it: with an apostrophe before what a spreadsheet would run as a formula."""
    is_formula = _FORMULA.match(category) and not _FORMULA_NUMBER.fullmatch(category)
    return f"'{category}" if is_formula else category


class Section(BaseModel):
    """A part of a study file: frozen, and a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class CategoricalColumn(Section):
    """One of a closed, public list of values.

    `groups` gives each category a list of raw values or of ranges of codes ("390-459" holds 427.31); the synthetic
    table then carries the group's name. Without it the categories are the raw values.
    """

    type: Literal["categorical"]
    categories: tuple[Text, ...] = ()
    groups: dict[Text, tuple[Text, ...]] | None = None
    unlisted: Literal["refuse", "other"] = "refuse"
    missing: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.groups is None) == (not self.categories):
            raise ValueError("give either categories or groups")
        named = self.categories or tuple(self.groups or ())
        if len(set(named)) != len(named):
            raise ValueError("categories: a category is listed twice")
        if OTHER in named and self.unlisted == "other":
            raise ValueError(f"categories: {OTHER!r} is reserved when unlisted is 'other'")
        if any(defused(value) != value and defused(value) in named for value in named):
            raise ValueError("categories: one is another with an apostrophe, which a CSV file puts before a formula")
        _check_groups(self.groups or {})
        if len(self.values) < 2 and not self.missing:
            raise ValueError("categories: at least two values are needed, a column with one value carries nothing")
        return self

    @property
    def values(self) -> tuple[str, ...]:
        """Every value that the parsed column can hold, missing aside, in order."""
        named = self.categories or tuple(self.groups or ())
        return (*named, OTHER) if self.unlisted == "other" else named


_CODE_DIGITS = 18
_CODE_RANGE = re.compile(r"(\d{1,18})(?:-(\d{1,18}))?")


def _code_range(member: str) -> tuple[int, ...]:
    """Both ends of a range of codes, or of one code; empty for a member that is plain text."""
    match = _CODE_RANGE.fullmatch(member)
    return (int(match[1]), int(match[2] or match[1])) if match else ()


def _check_groups(groups: Mapping[str, tuple[str, ...]]) -> None:
    """Every raw value belongs to one group at most: no value twice, no ranges that overlap or run backwards."""
    raw = [value for values in groups.values() for value in values]
    if not all(groups.values()) or len(set(raw)) != len(raw):
        raise ValueError("groups: a group is empty, or a raw value is listed twice")
    spans = sorted(filter(None, map(_code_range, raw)))
    for lower, upper in spans:
        if upper < lower:
            raise ValueError(f"groups: the range {lower}-{upper} runs backwards")
    for before, after in itertools.pairwise(spans):
        if after[0] <= before[1]:
            raise ValueError(f"groups: the ranges up to {before[1]} and from {after[0]} overlap")


# 128 cells: finer ones drown in the noise of one release at epsilon 1 and 10^4 units.
_Cells = Annotated[Whole, Field(ge=2, le=MAX_CELLS)]


class _NumericColumn(Section):
    scale: Literal["linear", "log", "asinh"] = "linear"
    # Below this many units from its centre a log or asinh scale is nearly linear.
    scale_unit: Annotated[Number, Field(gt=0)] = 1.0
    cells: _Cells = 128
    # Values with a meaning of their own (0 for "none", 999 for "never"): each has a cell to itself.
    special: tuple[Number, ...] = ()
    # Most cells hold few units (heavy tails, many zeros): count them on coarser cells too. By default where the scale
    # is not linear; it costs budget, so a well-filled column should not have it.
    sparse: bool | None = None
    outside: Literal["refuse", "clip"] = "refuse"
    missing: bool = False

    @property
    def is_sparse(self) -> bool:
        """Whether coarser cells are counted too."""
        return self.scale != "linear" if self.sparse is None else self.sparse

    def to_scale(self, values: np.ndarray, minimum: float) -> np.ndarray:
        """Values on the axis on which cells have equal width."""
        if self.scale == "log":
            return np.asarray(np.log1p((values - minimum) / self.scale_unit))
        if self.scale == "asinh":
            return np.asarray(np.arcsinh(values / self.scale_unit))
        return values

    def from_scale(self, values: np.ndarray, minimum: float) -> np.ndarray:
        """The inverse of `to_scale`."""
        if self.scale == "log":
            return np.asarray(np.expm1(values) * self.scale_unit + minimum)
        if self.scale == "asinh":
            return np.asarray(np.sinh(values) * self.scale_unit)
        return values

    def to_numbers(self, values: pd.Series) -> np.ndarray:
        """(rows,) float64, NaN where missing; whole numbers beyond 2^53 are rounded."""
        return np.asarray(values.to_numpy(dtype=np.float64, na_value=np.nan))


class IntegerColumn(_NumericColumn):
    """A whole number between public bounds, both included; up to what int64 holds, and exact everywhere."""

    type: Literal["integer"]
    special: tuple[Annotated[int, BeforeValidator(_whole)], ...] = ()
    min: Whole
    max: Whole

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max <= self.min:
            raise ValueError(f"max={self.max}: expected > min={self.min}")
        if self.min < LEAST_WHOLE or self.max > MOST_WHOLE:
            raise ValueError("min, max: expected between -2^63 and 2^63 - 1, both included")
        _check_special(self)
        return self

    @field_serializer("special")
    def _written_special(self, values: tuple[int, ...]) -> list[Any]:
        """As floats where they hold the number: the digest of a study is older than numbers that they do not hold."""
        return [float(value) if abs(value) < 2**53 else value for value in values]

    @property
    def steps(self) -> int:
        """Numbers in one unit."""
        return 1

    @property
    def dtype(self) -> str:
        """Of the typed column."""
        return "Int64" if self.missing else "int64"

    @property
    def bounds(self) -> str:
        """Both public bounds, for an error."""
        return f"min={self.min}, max={self.max}"

    def to_whole(self, values: pd.Series) -> np.ndarray:
        """(rows,) int64, exact; the minimum where missing, the number below where values are floats."""
        if pd.api.types.is_float_dtype(values.dtype):
            return np.asarray(np.floor(values.astype("float64").fillna(self.min).to_numpy()).astype(np.int64))
        return np.asarray(values.fillna(self.min).to_numpy(dtype=np.int64))

    def from_whole(self, numbers: np.ndarray, absent: np.ndarray) -> pd.Series:
        """The typed column of numbers, (rows,) int64; missing where `absent`, (rows,) bool."""
        return pd.Series(pd.array(numbers, dtype="Int64")).mask(absent) if self.missing else pd.Series(numbers)

    def read(self, text: str) -> int:
        """The number that a text stands for, of any size; see `parse_table`.

        Raises:
            SchemaError: it is no whole number; the message is the rule alone.
        """
        return _read_whole(text)


class DatetimeColumn(Section):
    """A moment between public bounds, both included, in whole days, hours, minutes or seconds.

    Everything that counts sees whole numbers: units since the minimum, so that `min` is 0. With a `timezone` a day is
    one of the zone's calendar, and a moment is the same wherever it is read; without one, nobody knows where the clock
    hangs. The typed column is datetime64[ms], which Parquet keeps, with the zone where there is one.
    """

    type: Literal["datetime"]
    first: Text = Field(alias="min")
    last: Text = Field(alias="max")
    unit: Literal["day", "hour", "minute", "second"] = "day"
    # Of the IANA database. None: local times of no zone.
    timezone: Text | None = None
    cells: _Cells = 128
    # Moments with a meaning of their own (9999-12-31 for "never"): each has a cell to itself.
    marks: tuple[Text, ...] = Field((), alias="special")
    sparse: bool | None = None
    outside: Literal["refuse", "clip"] = "refuse"
    # A moment that is not a whole unit: refuse the table, or take the unit that it is in.
    finer: Literal["refuse", "floor"] = "refuse"
    missing: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        try:
            clock = self.clock
        except ValueError as error:
            where = "timezone" if "IANA" in str(error) else "min"
            raise ValueError(f"{where}: {error}") from None
        for name, text in (("max", self.last), *(("special", one) for one in self.marks)):
            try:
                is_whole = clock.position(text).denominator == 1
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            if not is_whole:
                raise ValueError(f"{name}: expected a whole {self.unit}")
        if self.max <= 0:
            raise ValueError(f"max={self.last}: expected > min={self.first}")
        clock.check(self._second(self.last))
        if any(not 0 <= one <= self.max for one in self.special):
            raise ValueError("special: expected values from min to max")
        if len(set(self.special)) != len(self.special):
            raise ValueError("special: a value is listed twice")
        return self

    @field_serializer("first", "last")
    def _written(self, text: str) -> str:
        """As a table would have it, so that studies which mean the same are written alike."""
        return self.clock.written(self._second(text))

    @field_serializer("marks")
    def _written_marks(self, texts: tuple[str, ...]) -> list[str]:
        return [self._written(text) for text in texts]

    def _second(self, text: str) -> int:
        return int(self.clock.seconds(np.array([int(self.clock.position(text))]))[0])

    @property
    def clock(self) -> Clock:
        """Numbers moments from the minimum on."""
        return make_clock(self.first, self.unit, self.timezone)

    @property
    def min(self) -> int:
        """Units since the minimum."""
        return 0

    @property
    def max(self) -> int:
        """Units between the bounds."""
        return int(self.clock.position(self.last))

    @property
    def special(self) -> tuple[int, ...]:
        """Units since the minimum, of each special moment."""
        return tuple(int(self.clock.position(one)) for one in self.marks)

    @property
    def steps(self) -> int:
        """Numbers in one unit."""
        return 1

    @property
    def scale(self) -> Literal["linear"]:
        """Cells are equally long."""
        return "linear"

    @property
    def is_sparse(self) -> bool:
        """Whether coarser cells are counted too."""
        return bool(self.sparse)

    @property
    def dtype(self) -> Any:
        """Of the typed column."""
        return np.dtype("datetime64[ms]") if self.timezone is None else pd.DatetimeTZDtype("ms", self.timezone)

    @property
    def bounds(self) -> str:
        """Both public bounds, for an error."""
        return f"min={self.first}, max={self.last}"

    def to_scale(self, values: np.ndarray, minimum: float) -> np.ndarray:
        """The same: the axis is linear."""
        del minimum
        return values

    def from_scale(self, values: np.ndarray, minimum: float) -> np.ndarray:
        """The same."""
        del minimum
        return values

    def to_numbers(self, values: pd.Series) -> np.ndarray:
        """Units since the minimum, (rows,) float64, NaN where missing."""
        return np.where(values.isna(), np.nan, self.to_whole(values))

    def to_whole(self, values: pd.Series) -> np.ndarray:
        """Units since the minimum, (rows,) int64; 0 where missing. Floats are such numbers already."""
        if pd.api.types.is_float_dtype(values.dtype):
            return np.asarray(np.floor(values.fillna(0.0).to_numpy()).astype(np.int64))
        if isinstance(values.dtype, pd.DatetimeTZDtype):
            values = values.dt.tz_convert("UTC").dt.tz_localize(None)
        absent = values.isna().to_numpy()
        seconds = values.to_numpy(dtype="datetime64[s]").astype(np.int64)
        return self.clock.numbers(np.where(absent, self.clock.first, seconds))

    def from_whole(self, numbers: np.ndarray, absent: np.ndarray) -> pd.Series:
        """The typed column of units since the minimum, (rows,) int64; missing where `absent`, (rows,) bool."""
        moments = self.clock.seconds(np.where(absent, 0, numbers)).astype("datetime64[s]").astype("datetime64[ms]")
        moments[absent] = np.datetime64("NaT")
        values = pd.Series(moments)
        return values if self.timezone is None else values.dt.tz_localize("UTC").astype(self.dtype)

    def read(self, text: str) -> int:
        """Units since the minimum, negative before it, of a moment that a text stands for; see `parse_table`.

        Raises:
            SchemaError: it is no such moment; the message is the rule alone.
        """
        try:
            position = self.clock.position(text)
        except ValueError as error:
            raise SchemaError(str(error), ExitCode.NOT_A_TIME) from None
        number = math.floor(position)
        # What is beyond the bounds is refused as that, or cut off; on a clock of long ago it is rarely whole.
        if number != position and self.finer == "refuse" and self.min <= number <= self.max:
            raise SchemaError(
                f"a value is not a whole {self.unit}; take a smaller unit, or set `finer: floor`", ExitCode.NOT_A_TIME
            )
        return number

    def write(self, values: pd.Series) -> pd.Series:
        """Text of a typed column, that `parse_table` reads as the same values; empty where missing."""
        codes, distinct = pd.factorize(self.to_whole(values))
        texts = np.array([self.clock.written(one) for one in self.clock.seconds(distinct).tolist()], dtype=object)
        written = texts[codes] if len(codes) else np.empty(0, dtype=object)
        return pd.Series(np.where(values.isna(), "", written), index=values.index, name=values.name, dtype="str")


class ContinuousColumn(_NumericColumn):
    """A real number between public bounds, both included; `decimals` is how it is written, if that is fixed."""

    type: Literal["continuous"]
    min: Number
    max: Number
    decimals: Annotated[Whole, Field(ge=0, le=12)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max <= self.min:
            raise ValueError(f"max={self.max}: expected > min={self.min}")
        _check_special(self)
        if self.steps is not None:
            _check_decimals(self, self.steps)
        return self

    @property
    def steps(self) -> int | None:
        """Numbers in one unit; None for all that a float holds."""
        return None if self.decimals is None else 10**self.decimals

    @property
    def dtype(self) -> str:
        """Of the typed column."""
        return "float64"

    @property
    def bounds(self) -> str:
        """Both public bounds, for an error."""
        return f"min={self.min}, max={self.max}"


def _check_decimals(column: "ContinuousColumn", steps: int) -> None:
    if max(abs(column.min), abs(column.max)) * steps >= 2**53:
        raise ValueError("decimals: more than a float holds between these bounds")
    if any(round(value * steps) / steps != value for value in (column.min, column.max, *column.special)):
        raise ValueError("min, max, special: expected numbers with no more than `decimals` decimals")


def _check_special(column: IntegerColumn | ContinuousColumn) -> None:
    far = 2.0 * max(abs(column.min), abs(column.max))
    if not math.isfinite(far) or (column.scale != "linear" and not math.isfinite(far / column.scale_unit)):
        raise ValueError("min, max, scale_unit: the scale passes what a float holds")
    for value in column.special:
        # The last cell of a continuous column is closed by the maximum, which so cannot be apart from it.
        below = value <= column.max if isinstance(column, IntegerColumn) else value < column.max
        if not (column.min <= value and below):
            raise ValueError("special: expected values from min to max; below max in a continuous column")
    if len(set(column.special)) != len(column.special):
        raise ValueError("special: a value is listed twice")


WholeColumn = IntegerColumn | DatetimeColumn
"""Columns whose values are whole numbers to whatever counts them."""
NumericColumn = WholeColumn | ContinuousColumn
Column = Annotated[CategoricalColumn | IntegerColumn | ContinuousColumn | DatetimeColumn, Field(discriminator="type")]
COLUMN_TYPES: dict[str, type[Section]] = {
    "categorical": CategoricalColumn,
    "integer": IntegerColumn,
    "continuous": ContinuousColumn,
    "datetime": DatetimeColumn,
}


class FileLayout(Section):
    """How the text file is written. Public, like the rest of the schema."""

    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","
    # Column names, for a file that has no header line.
    header: tuple[Text, ...] | None = None
    # Text that means "no value", beside the empty cell.
    missing_markers: tuple[Text, ...] = ()
    comment: Annotated[str, Field(min_length=1, max_length=1)] | None = None


def parse_table(
    text: pd.DataFrame,
    columns: Mapping[str, Column],
    *,
    missing_markers: tuple[str, ...] = (),
    unit_key: str | None = None,
    row: str = "a record",
) -> pd.DataFrame:
    """Typed columns from a table of text, in the schema's order, the unit key (text) first when there is one.

    Categorical columns become pandas categoricals over the public values, integer columns int64 (Int64 when missing is
    allowed), continuous ones float64, datetime ones datetime64[ms] with the column's zone. A cell that is empty or a
    missing marker is missing.

    A whole number may be written as 1e3 or 5.0, and is never rounded. A category may have the apostrophe before it that
    keeps a spreadsheet from running it. A moment is ISO 8601: with an offset, or, in a column with a timezone, as that
    zone's clock shows it exactly once; a date alone is its first moment.

    Args:
        text: a row each.
        columns: by name.
        missing_markers: what stands for missing.
        unit_key: the column of the unit key, if there is one.
        row: what a row is called where its key is missing.

    Raises:
        SchemaError: a value breaks its column's rule; the message names the column and the rule alone.
    """
    parsed: dict[str, pd.Series] = {}
    if unit_key is not None:
        units = text[unit_key].str.strip()
        if bool(units.isin({"", *missing_markers}).any()):
            raise SchemaError(f"{unit_key}: the unit key is missing in {row}", ExitCode.MISSING_NOT_ALLOWED)
        parsed[unit_key] = units
    markers = {"", *missing_markers}
    for name, column in columns.items():
        raw = text[name].str.strip()
        absent = raw.isin(markers)
        if not column.missing and bool(absent.any()):
            raise SchemaError(
                f"{name}: a value is missing, and the schema says `missing: false`", ExitCode.MISSING_NOT_ALLOWED
            )
        if isinstance(column, CategoricalColumn):
            parsed[name] = _parse_categories(name, column, raw, absent)
        elif isinstance(column, ContinuousColumn):
            parsed[name] = _parse_numbers(name, column, raw, absent)
        else:
            parsed[name] = _parse_whole(name, column, raw, absent)
    return pd.DataFrame(parsed)


def _parse_categories(name: str, column: CategoricalColumn, raw: pd.Series, absent: pd.Series) -> pd.Series:
    distinct = pd.unique(raw[~absent])
    mapped = {value: _category(column, value) for value in distinct}
    if None in mapped.values():
        raise SchemaError(
            f"{name}: a value is not among the listed categories; list it, or set `unlisted: other`",
            ExitCode.UNLISTED_CATEGORY,
        )
    dtype = pd.CategoricalDtype(list(column.values))
    return raw.where(~absent).map(mapped).astype(dtype)


def _category(column: CategoricalColumn, value: str) -> str | None:
    """The category that a raw value belongs to; None when it is not allowed."""
    if column.groups is None:
        if value in column.categories:
            return value
        bare = value.removeprefix("'")
        if bare in column.categories and defused(bare) == value:
            return bare
    else:
        for group, members in column.groups.items():
            if value in members or any(_in_code_range(value, member) for member in members):
                return group
    return OTHER if column.unlisted == "other" else None


def _in_code_range(value: str, member: str) -> bool:
    """Whether a numeric code, its decimals dropped, lies in a range such as "390-459"; a plain code is one too."""
    head = value.partition(".")[0]
    span = _code_range(member)
    return (
        bool(span)
        and head.isascii()
        and head.isdigit()
        and len(head) <= _CODE_DIGITS
        and span[0] <= int(head) <= span[1]
    )


def _parse_numbers(name: str, column: ContinuousColumn, raw: pd.Series, absent: pd.Series) -> pd.Series:
    present = raw[~absent]
    # pandas reads "nan", "inf" and their kin as numbers: they are named for what they are.
    numbers = pd.to_numeric(present, errors="coerce").astype("float64")
    not_finite = present.str.fullmatch(_NOT_FINITE).astype(bool)
    if bool(not_finite.any()) or bool(np.isinf(numbers).any()):
        raise SchemaError(f"{name}: {_SAY_NOT_FINITE}", ExitCode.NOT_FINITE)
    if bool(numbers.isna().any()):
        raise SchemaError(f"{name}: {_SAY_NO_NUMBER}", ExitCode.NOT_A_NUMBER)
    if column.outside == "clip":
        numbers = numbers.clip(column.min, column.max)
    elif bool(((numbers < column.min) | (numbers > column.max)).any()):
        raise _out_of_bounds(name, column)
    return numbers.reindex(raw.index)


def _parse_whole(name: str, column: WholeColumn, raw: pd.Series, absent: pd.Series) -> pd.Series:
    codes, distinct = pd.factorize(raw.where(~absent))
    try:
        read = [column.read(text) for text in distinct]
    except SchemaError as error:
        raise SchemaError(f"{name}: {error}", error.code) from None
    low, high = column.min, column.max
    if column.outside == "clip":
        read = [min(max(number, low), high) for number in read]
    elif any(not low <= number <= high for number in read):
        raise _out_of_bounds(name, column)
    # Code -1, which stands for missing, takes the last.
    numbers = np.array([*read, low], dtype=np.int64)[codes]
    return column.from_whole(numbers, absent.to_numpy(dtype=bool)).set_axis(raw.index)


def _out_of_bounds(name: str, column: NumericColumn) -> SchemaError:
    return SchemaError(
        f"{name}: a value is outside {column.bounds}; widen the public bounds, or set `outside: clip`",
        ExitCode.OUT_OF_BOUNDS,
    )


_NOT_FINITE = re.compile(r"[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
_SAY_NOT_FINITE = "a value is NaN or infinite; expected a finite number"
_SAY_NO_NUMBER = "a value is not a number"
_SHORT_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def _read_whole(text: str) -> int:
    if _SHORT_WHOLE.fullmatch(text):
        return int(text)
    is_number = _DECIMAL.fullmatch(text) is not None
    if _NOT_FINITE.fullmatch(text) or (is_number and math.isinf(float(text))):
        raise SchemaError(_SAY_NOT_FINITE, ExitCode.NOT_FINITE)
    if not is_number:
        raise SchemaError(_SAY_NO_NUMBER, ExitCode.NOT_A_NUMBER)
    try:
        exact = Decimal(text)
    except DecimalException:
        # So many zeros behind the point that no Decimal counts them.
        exact = Decimal("0.1")
    # An exponent that leaves nothing before the point is not written out.
    if exact != exact.to_integral_value():
        raise SchemaError("a value is not a whole number", ExitCode.NOT_A_NUMBER)
    return int(exact)


def check_columns(text: pd.DataFrame, expected: list[str], ignored: list[str]) -> None:
    """Refuse a table whose columns are not exactly those of the study and those that it ignores.

    Raises:
        SchemaError: names the first column that is missing, unknown or there twice.
    """
    present = list(text.columns)
    for name in expected:
        if name not in present:
            raise SchemaError(f"{name}: the column is in the study but not in the table", ExitCode.COLUMN_MISSING)
        if present.count(name) > 1:
            raise SchemaError(f"{name}: the column is in the table twice", ExitCode.COLUMN_UNKNOWN)
    for position, name in enumerate(present, start=1):
        if name not in expected and name not in ignored:
            # A file without its header line has cells where names should be: say the position, not the text.
            raise SchemaError(
                f"column {position} of the table is not in the study; add it to `columns` or to `ignore`, of a long "
                "table to `windows.channels` or to `windows.ignore`",
                ExitCode.COLUMN_UNKNOWN,
            )
