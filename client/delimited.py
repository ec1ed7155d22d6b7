"""Delimited text files, plain or .gz, in pieces.

A link is followed; what is no regular file in the end (a pipe, a folder, a device) is no table.
"""

import csv
import gzip
import io
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, Final, cast

import pandas as pd

from common.data.schema import FileLayout
from common.errors import ExitCode, SchemaError

_LONGEST_LINE: Final = 2**22
"""Characters. A file of one endless line would fill the memory before its first row ends."""
_MOST_UNPACKED: Final = 250
"""Times the size of what is packed, beyond the first `_FREELY_UNPACKED`. Tables come to 50 at most: keys differ."""
_FREELY_UNPACKED: Final = 2**24


Stamp = tuple[int, int, int, int]
"""Tells a file, and whether it was written since."""


def read_chunks(
    path: Path, layout: FileLayout, *, rows: int, checked: set[Stamp]
) -> Generator[pd.DataFrame, None, None]:
    """A file as tables of text, "" where a cell is empty; at least one piece, which may have no rows.

    Args:
        path: of the file.
        layout: how it is written.
        rows: at most so many in a piece.
        checked: files that were looked at for what pandas mends in silence; others are, and are added.

    Raises:
        SchemaError: the file is absent, empty, not such a table, or changes while it is read.
    """
    if not path.is_file():
        raise SchemaError(f"{path}: no such table", ExitCode.TABLE_NOT_FOUND)
    try:
        before = _stamp(path)
        if before not in checked:
            _check_rows(path, layout)
            checked.add(before)
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
                # An empty cell is "": what is not there at all is the end of a short row.
                if bool(piece.isna().to_numpy().any()):
                    raise _uneven(path)
                yield piece
        # Two passes saw it, and what the first one found must hold of the second.
        if _stamp(path) != before:
            raise SchemaError(f"{path}: the file was changed while it was read", ExitCode.TABLE_UNREADABLE)
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


def _stamp(path: Path) -> Stamp:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _check_rows(path: Path, layout: FileLayout) -> None:
    """Refuse what pandas mends in silence: short rows, long rows, a name that is there twice, text behind a quote.

    Raises:
        SchemaError: a row has another number of cells than the first, or than `table.header`; two columns have one
            name; a line is too long, or the file unpacks to too much.
    """
    lines = _lines(path) if layout.comment is None else _uncommented(_lines(path), layout.comment)
    rows = csv.reader(lines, delimiter=layout.delimiter, skipinitialspace=True, strict=True)
    filled = (row for row in rows if len(row) > 1 or "".join(row).strip())
    first = list(layout.header) if layout.header else next(filled, [])
    seen: set[str] = set()
    for position, name in enumerate(first, start=1):
        if name in seen:
            raise SchemaError(f"column {position} of the table has a name that is there twice", ExitCode.COLUMN_UNKNOWN)
        seen.add(name)
    if any(len(row) != len(first) for row in filled):
        raise _uneven(path)


def _uneven(path: Path) -> SchemaError:
    return SchemaError(f"{path}: a row has more or fewer cells than there are columns", ExitCode.TABLE_UNREADABLE)


def _lines(path: Path) -> Iterator[str]:
    """Lines with their ends, in bounded memory.

    Raises:
        SchemaError: a line is too long, or the file unpacks to too much.
    """
    with path.open("rb") as raw:
        stream = cast("IO[bytes]", gzip.GzipFile(fileobj=raw)) if _is_packed(path) else raw
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        unpacked = 0
        while line := text.readline(_LONGEST_LINE + 1):
            unpacked += len(line)
            if len(line) > _LONGEST_LINE:
                raise SchemaError(
                    f"{path}: a line is longer than {_LONGEST_LINE} characters", ExitCode.TABLE_UNREADABLE
                )
            if stream is not raw and unpacked > max(_FREELY_UNPACKED, _MOST_UNPACKED * raw.tell()):
                raise SchemaError(
                    f"{path}: unpacks to more than {_MOST_UNPACKED} times its size, which no table does; unpack it",
                    ExitCode.TABLE_UNREADABLE,
                )
            yield line


def _uncommented(lines: Iterator[str], mark: str) -> Iterator[str]:
    """Lines up to the mark of a comment; within quotes it is a character like others, as it is to pandas."""
    is_quoted = False
    for line in lines:
        kept = []
        for at, part in enumerate(line.split('"')):
            is_quoted ^= at > 0
            head, found, _ = (part, "", "") if is_quoted else part.partition(mark)
            kept.append(head)
            if found:
                break
        yield '"'.join(kept)
