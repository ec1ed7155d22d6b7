"""A site's own records, from where its site file says; the only file, with the vault, that touches real rows."""

from pathlib import Path

import numpy as np
import pandas as pd

from client.sources import Entity, FileSettings, Source, SourceSettings, open_source
from common.data.schema import FileLayout, check_columns, parse_table
from common.data.windows import make_windows
from common.errors import ExitCode, SchemaError
from common.study import Study


def read_records(settings: SourceSettings, study: Study) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """The typed table of a site, and the long table of a study with windows, as text.

    Either may have no rows: a refusal would tell that the last unit has gone.

    Raises:
        SchemaError: a table is absent, unreadable, has other columns, or a value breaks its column's rule.
        SourceError: a database cannot be read.
    """
    assert settings.table is not None  # a preset has its own
    with open_source(settings, study.table) as source:
        text = _read(source, _entity(settings.table), _columns_of(study), study.ignore, may_be_empty=True)
        table = parse_text(text, study)
        if study.windows is None:
            return table, None
        assert settings.series is not None  # the policy has seen to it
        wanted = _series_columns_of(study)
        return table, _read(source, _entity(settings.series), wanted, study.windows.ignore, may_be_empty=True)


def read_text(path: Path, study: Study) -> pd.DataFrame:
    """A file, delimited text or .parquet, as a table of text; its columns are those that the study lists or ignores.

    Raises:
        SchemaError: the file is absent, empty, has no rows, is not such a table, or has other columns.
    """
    with open_source(_file(path), study.table) as source:
        return _read(source, str(path), _columns_of(study), study.ignore, with_ignored=True)


def read_series_text(path: Path, study: Study) -> pd.DataFrame:
    """The long table of a study with windows, as text; written like the first one, always with a header line.

    Raises:
        SchemaError: as `read_text`.
    """
    assert study.windows is not None
    with open_source(_file(path), FileLayout(delimiter=study.table.delimiter, comment=study.table.comment)) as source:
        return _read(source, str(path), _series_columns_of(study), study.windows.ignore, with_ignored=True)


def _file(path: Path) -> FileSettings:
    return FileSettings(type="parquet" if path.suffix == ".parquet" else "csv", table=path)


def _entity(named: Path | Entity) -> Entity:
    return str(named) if isinstance(named, Path) else named


def _columns_of(study: Study) -> list[str]:
    return [*([study.unit.key] if study.unit.key else []), *study.columns]


def _series_columns_of(study: Study) -> list[str]:
    assert study.windows is not None
    assert study.unit.key is not None
    return [study.unit.key, *study.windows.columns]


def _read(
    source: Source,
    entity: Entity,
    expected: list[str],
    ignored: tuple[str, ...],
    *,
    may_be_empty: bool = False,
    with_ignored: bool = False,
) -> pd.DataFrame:
    present = source.columns(entity)
    check_columns(pd.DataFrame(columns=present), expected, list(ignored))
    wanted = [*expected, *(name for name in ignored if with_ignored and name in present)]
    text = pd.concat(source.read(entity, wanted), ignore_index=True)
    if text.empty and not may_be_empty:
        name = entity if isinstance(entity, str) else "query"
        raise SchemaError(f"{name}: the table has no rows", ExitCode.TABLE_WITHOUT_ROWS)
    return text


def parse_text(text: pd.DataFrame, study: Study) -> pd.DataFrame:
    """The typed table of a study, the unit key first when there is one.

    Raises:
        SchemaError: a value breaks its column's rule.
    """
    return parse_table(text, study.columns, missing_markers=study.table.missing_markers, unit_key=study.unit.key)


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
