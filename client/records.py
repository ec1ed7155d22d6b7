"""Opens a site's table. The only file, with the vault, that touches real rows."""

from pathlib import Path

import pandas as pd

from common.data.schema import check_columns, parse_table
from common.errors import ExitCode, SchemaError
from common.study import Study


def read_text(path: Path, study: Study) -> pd.DataFrame:
    """A delimited file as a table of text, its columns those that the study lists or ignores.

    Raises:
        SchemaError: the file is absent, empty, has no rows, is not such a table, or has other columns.
    """
    layout = study.table
    if not path.is_file():
        raise SchemaError(f"{path}: no such table", ExitCode.TABLE_NOT_FOUND)
    try:
        text = pd.read_csv(
            path,
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
        raise SchemaError(f"{path}: the table is empty, not even a header", ExitCode.TABLE_EMPTY) from None
    # pandas names the cell that it stumbled over: its text is not passed on.
    except (ValueError, OSError, EOFError) as error:
        raise SchemaError(
            f"{path}: not a table of delimited UTF-8 text ({type(error).__name__})", ExitCode.TABLE_UNREADABLE
        ) from None
    key = [study.unit.key] if study.unit.key else []
    check_columns(text, [*key, *study.columns], list(study.ignore))
    if text.empty:
        raise SchemaError(f"{path}: the table has a header and no rows", ExitCode.TABLE_WITHOUT_ROWS)
    return text.fillna("")


def parse_text(text: pd.DataFrame, study: Study) -> pd.DataFrame:
    """The typed table of a study, the unit key first when there is one.

    Raises:
        SchemaError: a value breaks its column's rule.
    """
    return parse_table(text, study.columns, missing_markers=study.table.missing_markers, unit_key=study.unit.key)


def read_table(path: Path, study: Study) -> pd.DataFrame:
    """`read_text`, then `parse_text`."""
    return parse_text(read_text(path, study), study)
