"""The public description of a table: columns, bounds, categories. Nothing in it is learned from rows.

`parse_table` turns a table of text into typed columns and refuses whatever the schema does not allow. Its errors name
the column and the rule, never a value, a unit or a count.
"""

import itertools
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import numpy as np
import pandas as pd
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from common.errors import ExitCode, SchemaError

OTHER = "other"
"""The category that stands for every value which a column with `unlisted: other` does not list."""

MAX_CELLS = 4096
"""More cells than this in one column cannot carry a signal and only cost memory."""


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


Text = Annotated[str, BeforeValidator(_text)]
Number = Annotated[float, BeforeValidator(_not_bool), Field(allow_inf_nan=False)]
Whole = Annotated[int, BeforeValidator(_not_bool)]


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


class _NumericColumn(Section):
    scale: Literal["linear", "log", "asinh"] = "linear"
    # Below this many units from its centre a log or asinh scale is nearly linear.
    scale_unit: Annotated[Number, Field(gt=0)] = 1.0
    # 128 cells: finer ones drown in the noise of one release at epsilon 1 and 10^4 units.
    cells: Annotated[Whole, Field(ge=2, le=MAX_CELLS)] = 128
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


class IntegerColumn(_NumericColumn):
    """A whole number between public bounds, both included."""

    type: Literal["integer"]
    min: Whole
    max: Whole

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max <= self.min:
            raise ValueError(f"max={self.max}: expected > min={self.min}")
        # 2^53 itself is what a text of 2^53 + 1 is read as.
        if max(abs(self.min), abs(self.max)) >= 2**53:
            raise ValueError("min, max: expected between -2^53 and 2^53, both excluded")
        if any(value != int(value) for value in self.special):
            raise ValueError("special: expected whole numbers")
        _check_special(self)
        return self

    @property
    def steps(self) -> int:
        """Numbers in one unit."""
        return 1


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


Column = Annotated[CategoricalColumn | IntegerColumn | ContinuousColumn, Field(discriminator="type")]
COLUMN_TYPES: dict[str, type[Section]] = {
    "categorical": CategoricalColumn,
    "integer": IntegerColumn,
    "continuous": ContinuousColumn,
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
) -> pd.DataFrame:
    """Typed columns from a table of text, in the schema's order, the unit key (text) first when there is one.

    Categorical columns become pandas categoricals over the public values, integer columns int64 (Int64 when missing is
    allowed), continuous ones float64. A cell that is empty or a missing marker is missing.

    Raises:
        SchemaError: a value breaks its column's rule; the message names the column and the rule alone.
    """
    parsed: dict[str, pd.Series] = {}
    if unit_key is not None:
        units = text[unit_key].str.strip()
        if bool(units.isin({"", *missing_markers}).any()):
            raise SchemaError(f"{unit_key}: the unit key is missing in a record", ExitCode.MISSING_NOT_ALLOWED)
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
        else:
            parsed[name] = _parse_numbers(name, column, raw, absent)
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


def _parse_numbers(name: str, column: IntegerColumn | ContinuousColumn, raw: pd.Series, absent: pd.Series) -> pd.Series:
    present = raw[~absent]
    # pandas reads "nan", "inf" and their kin as numbers: they are named for what they are.
    numbers = pd.to_numeric(present, errors="coerce").astype("float64")
    not_finite = present.str.fullmatch(r"[+-]?(?:nan|inf|infinity)", case=False).astype(bool)
    if bool(not_finite.any()) or bool(np.isinf(numbers).any()):
        raise SchemaError(f"{name}: a value is NaN or infinite; expected a finite number", ExitCode.NOT_FINITE)
    if bool(numbers.isna().any()):
        raise SchemaError(f"{name}: a value is not a number", ExitCode.NOT_A_NUMBER)
    if isinstance(column, IntegerColumn) and bool((numbers != np.floor(numbers)).any()):
        raise SchemaError(f"{name}: a value is not a whole number", ExitCode.NOT_A_NUMBER)
    if column.outside == "clip":
        numbers = numbers.clip(column.min, column.max)
    elif bool(((numbers < column.min) | (numbers > column.max)).any()):
        raise SchemaError(
            f"{name}: a value is outside min={column.min}, max={column.max}; widen the public bounds, or set "
            "`outside: clip`",
            ExitCode.OUT_OF_BOUNDS,
        )
    if isinstance(column, ContinuousColumn):
        return numbers.reindex(raw.index)
    if column.missing:
        return numbers.astype("Int64").reindex(raw.index)
    return numbers.astype("int64")


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
                f"column {position} of the table is not in the study; add it to `columns` or to `ignore`",
                ExitCode.COLUMN_UNKNOWN,
            )
