"""Opens a site's table. The only file, with the vault, that touches real rows."""

import csv
import gzip
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from common.data.schema import FileLayout, check_columns, parse_table
from common.data.windows import make_windows
from common.errors import ExitCode, SchemaError
from common.study import Study


def read_text(path: Path, study: Study, *, may_be_empty: bool = False) -> pd.DataFrame:
    """A delimited file, plain or .gz, as a table of text; its columns are those that the study lists or ignores.

    Args:
        path: of the file.
        study: says how it is written.
        may_be_empty: whether it may have no rows. At a site it may: a refusal would tell that the last unit has gone.

    Raises:
        SchemaError: the file is absent, empty, has no rows, is not such a table, or has other columns.
    """
    key = [study.unit.key] if study.unit.key else []
    return _read_delimited(path, study.table, [*key, *study.columns], list(study.ignore), may_be_empty=may_be_empty)


def read_series_text(path: Path, study: Study, *, may_be_empty: bool = False) -> pd.DataFrame:
    """The long table of a study with windows, as text; written like the first one, always with a header line.

    Raises:
        SchemaError: as `read_text`.
    """
    assert study.windows is not None
    assert study.unit.key is not None
    layout = study.table.model_copy(update={"header": None})
    expected = [study.unit.key, *study.windows.columns]
    return _read_delimited(path, layout, expected, list(study.windows.ignore), may_be_empty=may_be_empty)


def _read_delimited(
    path: Path, layout: FileLayout, expected: list[str], ignored: list[str], *, may_be_empty: bool
) -> pd.DataFrame:
    if not path.is_file():
        raise SchemaError(f"{path}: no such table", ExitCode.TABLE_NOT_FOUND)
    try:
        _check_widths(path, layout)
        text = pd.read_csv(
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
        )
    except pd.errors.EmptyDataError:
        if may_be_empty and layout.header:
            return pd.DataFrame(columns=list(layout.header), dtype=str)
        raise SchemaError(f"{path}: the table is empty, not even a header", ExitCode.TABLE_EMPTY) from None
    # pandas names the cell that it stumbled over: its text is not passed on.
    except (ValueError, OSError, EOFError, csv.Error, zlib.error) as error:
        raise SchemaError(
            f"{path}: not a table of delimited UTF-8 text ({type(error).__name__})", ExitCode.TABLE_UNREADABLE
        ) from None
    check_columns(text, expected, ignored)
    if text.empty and not may_be_empty:
        raise SchemaError(f"{path}: the table has a header and no rows", ExitCode.TABLE_WITHOUT_ROWS)
    return text.fillna("")


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


def parse_text(text: pd.DataFrame, study: Study) -> pd.DataFrame:
    """The typed table of a study, the unit key first when there is one.

    Raises:
        SchemaError: a value breaks its column's rule.
    """
    return parse_table(text, study.columns, missing_markers=study.table.missing_markers, unit_key=study.unit.key)


def read_table(path: Path, study: Study) -> pd.DataFrame:
    """`read_text` of a site's own table, then `parse_text`."""
    return parse_text(read_text(path, study, may_be_empty=True), study)


def read_windows(table: pd.DataFrame, series: pd.DataFrame, study: Study) -> tuple[np.ndarray, np.ndarray]:
    """The window of each unit of a parsed table, and its number of steps, as `make_windows` gives them.

    Raises:
        SchemaError: a value breaks its channel's rule, or a row cannot be placed.
    """
    assert study.windows is not None
    assert study.unit.key is not None
    keys = table[study.unit.key]
    if bool(keys.duplicated().any()):
        raise SchemaError(
            f"{study.unit.key}: a unit has more than one row in the first table; with windows it has one",
            ExitCode.UNIT_REPEATED,
        )
    return make_windows(
        series,
        study.windows,
        unit_key=study.unit.key,
        units=keys,
        missing_markers=study.table.missing_markers,
    )
