"""A first draft of a study file from one CSV file, for a human to finish.

What it reads off the rows (bounds, categories) is private until a human has replaced it by public knowledge. The draft
says so beside each such line, and no command accepts it while its `draft: true` is there.
"""

import math
import re
import zlib
from decimal import Decimal
from pathlib import Path

import pandas as pd
import yaml

from common.data.moments import UNITS, Clock, make_clock
from common.data.schema import LEAST_WHOLE, MOST_WHOLE
from common.errors import ExitCode, SchemaError

_MOST_CATEGORIES = 40
_FEW_NUMBERS = 2
_REPLACE = "# REPLACE: read off the rows"

_HEADER = """\
# DRAFT of a study, made from rows. Do not share it as it is.
# Every line marked REPLACE holds bounds or categories that were read off the rows. Whoever sees them learns something
# about the people in the table, whatever noise is added later. Replace them by what is public: a data dictionary, a
# form, physiology, law. Then delete the line `draft: true`.
schema: privshare.study/1
draft: true
name: {name}
purpose: ""
unit:
  name: record # who is protected: patient, account holder, person
  # key: patient_id # the column that tells units apart, if a unit can have several rows
  max_records: 1
label:
  column: {label}
  positive: {positive} # the class that is predicted
privacy:
  epsilon: 1.0
  delta: 1.0e-6 # below 1 / number of units
# rounds:
#   site_units: 50000 # between institutions: no site has more units, as everybody knows. Without it a site may state
#                     # any number, and outweigh all others
"""


def draft_study(path: Path, *, label: str | None, delimiter: str) -> str:
    """The text of a draft.

    Args:
        path: CSV file with a header line.
        label: the column to predict; without it the last column with two values, else the last categorical one.
        delimiter: between cells.

    Raises:
        SchemaError: the file is no such table, or has no column that can be a label.
    """
    text = _read(path, delimiter)
    kinds = {str(name): _kind(text[name]) for name in text.columns}
    chosen = label if label is not None else _guess_label(text, kinds)
    if chosen is None or chosen not in kinds:
        raise SchemaError("label: no such column; name a categorical column with --label", ExitCode.COLUMN_MISSING)
    if kinds[chosen] != "categorical":
        kinds[chosen] = "categorical"
    values = _values(text[chosen])
    if len(values) < _FEW_NUMBERS:
        raise SchemaError(f"{chosen}: the label has less than two values", ExitCode.SINGLE_CLASS_LABEL)
    name = re.sub(r"[^A-Za-z0-9._-]", "-", path.name.split(".")[0]).lstrip("._-")[:64]
    lines = [_HEADER.format(name=_quoted(name or "study"), label=_quoted(chosen), positive=_quoted(values[-1]))]
    if delimiter != ",":
        lines.append(f"table:\n  delimiter: {_quoted(delimiter)}\n")
    lines.append("columns:\n")
    lines += [_column(column, text[column], kind) for column, kind in kinds.items() if kind != "ignored"]
    ignored = [column for column, kind in kinds.items() if kind == "ignored"]
    if ignored:
        lines.append("ignore: # constant, or too many different texts: identifiers, names, notes\n")
        lines += [f"  - {_quoted(column)}\n" for column in ignored]
    return "".join(lines)


def _quoted(text: str) -> str:
    """Text as a quoted scalar on one line."""
    return yaml.safe_dump(text, default_style='"', width=math.inf).rstrip("\n")


def _read(path: Path, delimiter: str) -> pd.DataFrame:
    if len(delimiter) != 1:
        raise SchemaError("delimiter: expected one character", ExitCode.USAGE)
    if not path.is_file():
        raise SchemaError(f"{path}: no such table", ExitCode.TABLE_NOT_FOUND)
    try:
        text = pd.read_csv(path, dtype=str, keep_default_na=False, sep=delimiter, skipinitialspace=True)
    except pd.errors.EmptyDataError:
        raise SchemaError(f"{path}: the table is empty, not even a header", ExitCode.TABLE_EMPTY) from None
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise SchemaError(f"{path}: not a table of delimited UTF-8 text ({type(error).__name__})") from None
    if not isinstance(text.index, pd.RangeIndex):
        raise SchemaError(f"{path}: a row has more cells than there are columns")
    if text.empty:
        raise SchemaError(f"{path}: the table has a header and no rows", ExitCode.TABLE_WITHOUT_ROWS)
    return text


def _numbers(values: pd.Series) -> pd.Series:
    return pd.to_numeric(values[values != ""], errors="coerce").astype("float64")


def _kind(values: pd.Series) -> str:
    present = values[values != ""]
    numbers = _numbers(values)
    if present.nunique() < _FEW_NUMBERS:
        return "ignored"
    if not bool(numbers.isna().any()) and bool(numbers.abs().lt(math.inf).all()) and present.nunique() > _FEW_NUMBERS:
        whole = bool((numbers == numbers.round()).all()) and float(numbers.abs().max()) < MOST_WHOLE
        # As many different whole numbers as rows: an identifier.
        identifier = whole and present.nunique() == len(present) and len(present) > _MOST_CATEGORIES
        return "ignored" if identifier else "integer" if whole else "continuous"
    if present.nunique() > _FEW_NUMBERS and _clock(present) is not None:
        return "datetime"
    return "categorical" if present.nunique() <= _MOST_CATEGORIES else "ignored"


def _clock(present: pd.Series) -> Clock | None:
    """What reads all these texts as moments, in seconds; None where there is none."""
    for timezone in (None, "UTC"):
        clock = make_clock("1970-01-01T00:00", "second", timezone)
        try:
            for text in pd.unique(present):
                clock.position(text)
        except ValueError:
            continue
        return clock
    return None


def _moments(values: pd.Series) -> str:
    """Rules of a column of moments: the largest unit that all of them are whole in, whole years around them."""
    present = values[values != ""]
    clock = _clock(present)
    assert clock is not None
    seconds = [clock.position(text) for text in pd.unique(present)]
    unit = next((name for name, size in UNITS.items() if all(one % size == 0 for one in seconds)), "second")
    first, last = (clock.written(math.floor(one))[:4] for one in (min(seconds), max(seconds)))
    end = {"day": "", "hour": "T23:00", "minute": "T23:59", "second": "T23:59:59"}[unit]
    finer = "    finer: floor\n" if any(one.denominator != 1 for one in seconds) else ""
    zone = "" if clock.zone is None else "    timezone: UTC # or the zone whose days are meant, such as Europe/Berlin\n"
    bounds = f"    min: {first}-01-01 {_REPLACE}\n    max: {last}-12-31{end} {_REPLACE}\n"
    return f"{bounds}    unit: {unit}\n{zone}{finer}"


def _values(values: pd.Series) -> list[str]:
    return sorted(set(values[values != ""].str.strip()))


def _guess_label(text: pd.DataFrame, kinds: dict[str, str]) -> str | None:
    categorical = [name for name, kind in kinds.items() if kind == "categorical"]
    binary = [
        name for name in categorical if text[name].nunique() == _FEW_NUMBERS and not bool((text[name] == "").any())
    ]
    candidates = binary or categorical
    return candidates[-1] if candidates else None


def _column(name: str, values: pd.Series, kind: str) -> str:
    missing = "    missing: true\n" if bool((values == "").any()) else ""
    head = f"  {_quoted(name)}:\n    type: {kind}\n"
    if kind == "categorical":
        listed = "".join(f"      - {_quoted(value)}\n" for value in _values(values))
        return f"{head}    categories: {_REPLACE}\n{listed}{missing}"
    if kind == "datetime":
        return f"{head}{_moments(values)}{missing}"
    if kind == "integer":
        whole = [int(Decimal(text.strip())) for text in pd.unique(values[values != ""])]
        least, most = max(_rounded_down(min(whole)), LEAST_WHOLE), min(-_rounded_down(-max(whole)), MOST_WHOLE)
        return f"{head}    min: {least} {_REPLACE}\n    max: {most} {_REPLACE}\n{missing}"
    numbers = _numbers(values)
    lower, upper = _rounded(float(numbers.min()), down=True), _rounded(float(numbers.max()), down=False)
    return f"{head}    min: {lower!r} {_REPLACE}\n    max: {upper!r} {_REPLACE}\n{missing}"


def _rounded_down(value: int) -> int:
    """`_rounded` of a whole number, exactly."""
    unit = int(10 ** max(len(str(abs(value))) - 2, 0))
    return value // unit * unit


def _rounded(value: float, *, down: bool) -> float:
    """The value moved outward to two leading digits, so that a draft does not repeat the extreme row."""
    if value == 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 1)
    rounded = math.floor(value / unit) * unit if down else math.ceil(value / unit) * unit
    return float(f"{rounded:.1e}")
