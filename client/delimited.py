"""Delimited text files, plain or .gz, in pieces."""

import csv
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from common.data.schema import FileLayout
from common.errors import ExitCode, SchemaError


def read_chunks(path: Path, layout: FileLayout, *, rows: int, is_checked: bool = False) -> Iterator[pd.DataFrame]:
    """A file as tables of text, "" where a cell is empty; at least one piece, which may have no rows.

    Args:
        path: of the file.
        layout: how it is written.
        rows: at most so many in a piece.
        is_checked: whether its rows are known to be of one length; otherwise that is looked at first.

    Raises:
        SchemaError: the file is absent, empty, or not such a table.
    """
    if not path.is_file():
        raise SchemaError(f"{path}: no such table", ExitCode.TABLE_NOT_FOUND)
    try:
        if not is_checked:
            _check_widths(path, layout)
        with pd.read_csv(
            path,
            compression="gzip" if _is_packed(path) else None,
            dtype=str,
            keep_default_na=False,
            sep=layout.delimiter,
            header=None if layout.header else 0,
            names=list(layout.header) if layout.header else None,
            index_col=False,
            comment=layout.comment,
            skipinitialspace=True,
            encoding="utf-8",
            chunksize=rows,
        ) as pieces:
            for piece in pieces:
                yield piece.fillna("")
    except pd.errors.EmptyDataError:
        if layout.header:
            yield pd.DataFrame(columns=list(layout.header), dtype=str)
            return
        raise SchemaError(f"{path}: the table is empty, not even a header", ExitCode.TABLE_EMPTY) from None
    # pandas names the cell that it stumbled over: its text is not passed on.
    except (ValueError, OSError, EOFError, csv.Error, zlib.error) as error:
        raise SchemaError(
            f"{path}: not a table of delimited UTF-8 text ({type(error).__name__})", ExitCode.TABLE_UNREADABLE
        ) from None


def _is_packed(path: Path) -> bool:
    return path.suffix == ".gz"


def _check_widths(path: Path, layout: FileLayout) -> None:
    """Refuse a file whose rows differ in length: pandas fills up short ones and may cut long ones, in silence.

    Raises:
        SchemaError: a row has another number of cells than the first, or than `table.header`.
    """
    opened = gzip.open if _is_packed(path) else open
    with opened(path, "rt", encoding="utf-8", newline="") as file:
        lines = (line.split(layout.comment)[0] if layout.comment else line for line in file)
        rows = csv.reader(lines, delimiter=layout.delimiter, skipinitialspace=True)
        widths = {len(row) for row in rows if any(map(str.strip, row))}
    if layout.header:
        widths.add(len(layout.header))
    if len(widths) > 1:
        raise SchemaError(f"{path}: a row has more or fewer cells than there are columns", ExitCode.TABLE_UNREADABLE)
