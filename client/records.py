"""Opens a site's table. The only file, with the vault, that touches real rows."""

from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from client.delimited import read_chunks
from common.data.schema import FileLayout, check_columns, parse_table
from common.data.windows import make_windows
from common.errors import ExitCode, SchemaError
from common.study import Study

_CHUNK: Final = 100_000
"""Rows that are read at a time."""


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
    text = pd.concat(read_chunks(path, layout, rows=_CHUNK), ignore_index=True)
    if text.empty and layout.header and not may_be_empty:
        raise SchemaError(f"{path}: the table is empty, not even a header", ExitCode.TABLE_EMPTY)
    check_columns(text, expected, ignored)
    if text.empty and not may_be_empty:
        raise SchemaError(f"{path}: the table has a header and no rows", ExitCode.TABLE_WITHOUT_ROWS)
    return text


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
