"""The text of every value that a file or a database has types for, defined here once.

A value has one text, wherever it is kept: an integer is written as it is, of any size; a float as short as it can be,
and without a point where it is whole; a decimal without zeros at its end; a moment as ISO 8601 with a blank before the
hour and, where it has a zone, in UTC. What is not there is "". What has no such text is refused by its column's name.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, time
from decimal import Decimal
from types import NoneType
from typing import Any, Final
from uuid import UUID

import numpy as np
import pandas as pd
import pyarrow as pa

from common.errors import ExitCode, SchemaError


def texts(values: Collection[object], name: str) -> "pd.Series[str]":
    """A column of values as text.

    Raises:
        SchemaError: a value has no text: bytes, a list, a document.
    """
    kinds = set(map(type, values))
    for kind in kinds:
        if kind not in _WRITERS:
            raise no_text(name, kind.__name__)
    with _unwritable(name):
        return pd.Series([_WRITERS[type(value)](value) for value in values], dtype=str)


def texts_of_arrow(values: pa.Array, name: str) -> "pd.Series[str]":
    """A column of Arrow's as text.

    Raises:
        SchemaError: its type has no text.
    """
    kind = values.type
    if pa.types.is_dictionary(kind):
        return texts_of_arrow(values.dictionary_decode(), name)
    with _unwritable(name):
        if any(is_plain(kind) for is_plain in _PLAIN):
            return pd.Series(values.cast(pa.large_string()).fill_null("").to_pandas(), dtype=str)
        if pa.types.is_float16(kind) or pa.types.is_float32(kind):
            # As short as its own precision lets it be: 0.1, and not the nearest of twice the length.
            kind_of = np.float16 if pa.types.is_float16(kind) else np.float32
            return texts([None if one is None else float(str(kind_of(one))) for one in values.to_pylist()], name)
        if isinstance(kind, pa.UuidType) or any(is_written(kind) for is_written in _WRITTEN):
            return texts(values.to_pylist(), name)
    raise no_text(name, str(kind))


def frame_of_arrow(batch: pa.RecordBatch, names: Sequence[str]) -> pd.DataFrame:
    """Columns of Arrow's as a table of text.

    Raises:
        SchemaError: the type of one has no text.
    """
    return pd.DataFrame({name: texts_of_arrow(values, name) for name, values in zip(names, batch.columns, strict=True)})


def empty_batch(schema: pa.Schema) -> pa.RecordBatch:
    """No rows. As a first piece it refuses a type whatever the rows are, and is a table where there are none."""
    return pa.RecordBatch.from_arrays([pa.nulls(0, kind) for kind in schema.types], schema=schema)


def no_text(name: str, kind: str) -> SchemaError:
    """That a column's type has no text."""
    return SchemaError(
        f"{name}: the column's type, {kind}, has no text; list it in `ignore`, or cast it in a query",
        ExitCode.TABLE_UNREADABLE,
    )


@contextmanager
def _unwritable(name: str) -> Iterator[None]:
    """A moment that no calendar has, a text in no encoding: Python quotes it."""
    try:
        yield
    except (ValueError, OverflowError, pa.ArrowException) as error:
        raise SchemaError(
            f"{name}: a value cannot be written as text ({type(error).__name__})", ExitCode.TABLE_UNREADABLE
        ) from None


_PLAIN: Final = (
    pa.types.is_null,
    pa.types.is_boolean,
    pa.types.is_integer,
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
)
"""Types that Arrow itself writes as this file says."""
_WRITTEN: Final = (
    pa.types.is_float64,
    pa.types.is_decimal,
    pa.types.is_date,
    pa.types.is_timestamp,
    pa.types.is_time,
)


def _float(value: float) -> str:
    return repr(value).removesuffix(".0")


def _decimal(value: Decimal) -> str:
    if not value.is_finite():
        return _float(float(value))
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _moment(value: datetime) -> str:
    return (value if value.tzinfo is None else value.astimezone(UTC)).isoformat(sep=" ")


_WRITERS: Final[Mapping[type, Callable[[Any], str]]] = {
    NoneType: lambda _: "",
    str: str,
    int: str,
    float: _float,
    bool: lambda value: "true" if value else "false",
    Decimal: _decimal,
    date: date.isoformat,
    time: time.isoformat,
    datetime: _moment,
    pd.Timestamp: _moment,  # of Arrow's nanoseconds
    UUID: str,
}
