"""A folder of CSV files, plain or .gz, one for each entity of a database, as databases are distributed.

Such files are large: only the columns and rows that are asked for become Python's.
"""

import csv
import gzip
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from client.sources import Entity, Within, rows_at_a_time
from common.errors import ExitCode, SchemaError

_BLOCK: Final = 2**24
"""Bytes of text that are parsed at a time."""


class CsvFolder:
    """Comma-separated UTF-8 files with a header line, named like their entities, in small letters or capitals."""

    def __init__(self, folder: Path, *, rows: int | None = None) -> None:
        """Open nothing yet.

        Args:
            folder: of the files.
            rows: at most so many in a piece; by default `rows_at_a_time`.
        """
        self._folder, self._rows = folder, rows

    def columns(self, entity: Entity) -> list[str]:
        """As `Source`; in small letters."""
        return list(self._header(self._path(entity)))

    def read(self, entity: Entity, columns: Sequence[str], *, within: Within | None = None) -> Iterator[pd.DataFrame]:
        """As `Source`."""
        path, rows = self._path(entity), self._rows or rows_at_a_time(len(columns))
        header = self._header(path)
        for name in (*columns, *(within or {})):
            if name not in header:
                raise SchemaError(f"{path}: {name}: no such column", ExitCode.COLUMN_MISSING)
        asked = {header[name]: pa.string() for name in (*columns, *(within or {}))}
        wanted = {
            header[name]: pa.array(sorted(map(str, values)), pa.string()) for name, values in (within or {}).items()
        }
        # Another piece than the first one has no rows of its own accord; nobody has to ask whether there is one.
        yield pd.DataFrame({name: pd.Series(dtype="str") for name in columns})
        for batch in _batches(path, asked):
            kept = batch
            for name, values in wanted.items():
                kept = kept.filter(pc.is_in(kept.column(name), value_set=values))
            for begin in range(0, kept.num_rows, rows):
                piece = kept.slice(begin, rows).select([header[name] for name in columns])
                yield piece.to_pandas().set_axis(list(columns), axis="columns").astype("str")

    def _path(self, entity: Entity) -> Path:
        name = str(entity)
        for called in (name.lower(), name.upper()):
            for ending in (".csv", ".csv.gz"):
                if (found := self._folder / f"{called}{ending}").is_file():
                    return found
        raise SchemaError(f"{self._folder / name.upper()}.csv: no such table", ExitCode.TABLE_NOT_FOUND)

    def _header(self, path: Path) -> dict[str, str]:
        """Names of columns in small letters, and as they stand."""
        try:
            with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
                first = next(csv.reader([file.readline().decode("utf-8")]), [])
        except (ValueError, OSError, EOFError, csv.Error, zlib.error) as error:
            raise _unreadable(path, error) from None
        if not first:
            raise SchemaError(f"{path}: the table is empty, not even a header", ExitCode.TABLE_EMPTY)
        return {name.strip().lower(): name for name in first}


def _batches(path: Path, types: Mapping[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
    """Columns of a file as text, "" where a cell is empty."""
    try:
        with (
            pa.input_stream(str(path), compression="gzip" if path.suffix == ".gz" else None) as file,
            pa_csv.open_csv(
                file,
                read_options=pa_csv.ReadOptions(block_size=_BLOCK),
                parse_options=pa_csv.ParseOptions(newlines_in_values=True),
                convert_options=pa_csv.ConvertOptions(
                    include_columns=list(types), column_types=dict(types), strings_can_be_null=False
                ),
            ) as reader,
        ):
            yield from reader
    # Arrow shows the row that it stumbled over: its text is not passed on.
    except (pa.ArrowException, ValueError, OSError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> SchemaError:
    return SchemaError(
        f"{path}: not a table of delimited UTF-8 text ({type(error).__name__})", ExitCode.TABLE_UNREADABLE
    )
