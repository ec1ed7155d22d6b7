"""A site's own records, from where its site file says; the only file, with the vault, that touches real rows."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from client.opening import open_source
from client.presets.tables import READS, not_made, read_preset
from client.sources import Entity, FileSettings, Source, SourceSettings
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
    with open_source(settings, study.table) as source:
        pieces, series = _texts(settings, source, study)
        # Parsed one by one: typed rows take a fraction of their text.
        table = pd.concat((parse_text(piece, study) for piece in pieces), ignore_index=True)
        return table, None if series is None else pd.concat(series, ignore_index=True)


def read_records_text(settings: SourceSettings, study: Study) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Both tables of a site as text, no cell checked yet.

    Raises:
        SchemaError: a table is absent, unreadable, or has other columns.
        SourceError: a database cannot be read.
    """
    with open_source(settings, study.table) as source:
        pieces, series = _texts(settings, source, study)
        table = pd.concat(pieces, ignore_index=True)
        return table, None if series is None else pd.concat(series, ignore_index=True)


def compare_columns(settings: SourceSettings, study: Study) -> list[tuple[list[str], list[int]]]:
    """Of the table, then of the long one: columns of the study that are not there, and places of those it lacks.

    A preset makes none that the study lacks.

    Raises:
        StudyError: a preset cannot make the study's tables.
        SchemaError: a table is absent or unreadable.
        SourceError: a database cannot be read.
    """
    if settings.preset is not None:
        return [(missing, []) for missing in not_made(settings.preset, study)]
    found = []
    with open_source(settings, study.table) as source:
        for entity, expected, ignored in _entities(settings, study):
            present = source.columns(entity)
            known = {*expected, *ignored}
            missing = [name for name in expected if name not in present]
            unknown = [at for at, name in enumerate(present, start=1) if name not in known or name in present[: at - 1]]
            found.append((missing, unknown))
    return found


def check_source(settings: SourceSettings, study: Study) -> None:
    """See that tables are there, and that a database lets this user read them; not what is in them.

    Raises:
        SchemaError: a table is absent or unreadable, or lacks a column that a preset reads.
        SourceError: a database cannot be read.
    """
    if settings.preset is not None:
        wanted: list[tuple[Entity, Sequence[str]]] = list(READS[settings.preset].items())
    else:
        wanted = [(entity, expected) for entity, expected, _ in _entities(settings, study)]
    with open_source(settings, study.table) as source:
        for entity, expected in wanted:
            present = source.columns(entity)
            lacking = [name for name in expected if name not in present]
            if lacking and settings.preset is not None:
                raise SchemaError(
                    f"{entity}: the preset {settings.preset} reads {', '.join(lacking)}, which is not there",
                    ExitCode.COLUMN_MISSING,
                )
            asked = [name for name in expected if name in present]
            if asked and not isinstance(settings, FileSettings):
                next(source.read(entity, asked))  # the right to read shows when a row is asked for


def read_text(path: Path, study: Study) -> pd.DataFrame:
    """A file, delimited text or .parquet, as a table of text; its columns are those that the study lists or ignores.

    Raises:
        SchemaError: the file is absent, empty, has no rows, is not such a table, or has other columns.
    """
    return _read_file(path, study.table, _columns_of(study), study.ignore)


def read_series_text(path: Path, study: Study) -> pd.DataFrame:
    """The long table of a study with windows, as text; written like the first one, always with a header line.

    Raises:
        SchemaError: as `read_text`.
    """
    assert study.windows is not None
    layout = study.table.model_copy(update={"header": None})
    return _read_file(path, layout, _series_columns_of(study), _ignored_in_series(study))


def _texts(
    settings: SourceSettings, source: Source, study: Study
) -> tuple[Iterator[pd.DataFrame], Iterator[pd.DataFrame] | None]:
    """Pieces of the table, and of the long one."""
    if settings.preset is not None:
        text, series = read_preset(settings.preset, source, study)
        return iter([text]), None if series is None else iter([series])
    pieces = [_pieces(source, entity, columns, ignored) for entity, columns, ignored in _entities(settings, study)]
    return pieces[0], pieces[1] if len(pieces) > 1 else None


def _entities(settings: SourceSettings, study: Study) -> Iterator[tuple[Entity, list[str], tuple[str, ...]]]:
    """The table and the long one, without a preset: where each is, the columns that it must have, and may have."""
    assert settings.table is not None  # only a preset has none
    yield _entity(settings.table), _columns_of(study), study.ignore
    if study.windows is not None:
        assert settings.series is not None  # the policy has seen to it
        yield _entity(settings.series), _series_columns_of(study), _ignored_in_series(study)


def _entity(named: Path | Entity) -> Entity:
    return str(named) if isinstance(named, Path) else named


def _columns_of(study: Study) -> list[str]:
    return [*([study.unit.key] if study.unit.key else []), *study.columns]


def _series_columns_of(study: Study) -> list[str]:
    assert study.windows is not None
    assert study.unit.key is not None
    return [study.unit.key, *study.windows.columns]


def _ignored_in_series(study: Study) -> tuple[str, ...]:
    """Columns that the long table may have: those that the study names, and the computed one, as synthetic ones do."""
    assert study.windows is not None
    computed = () if study.windows.gap is None else (study.windows.gap,)
    return tuple(dict.fromkeys((*study.windows.ignore, *computed)))


def _pieces(
    source: Source, entity: Entity, expected: list[str], ignored: tuple[str, ...], *, with_ignored: bool = False
) -> Iterator[pd.DataFrame]:
    """The expected columns alone, after the names of all were checked."""
    present = source.columns(entity)
    try:
        check_columns(pd.DataFrame(columns=present), expected, list(ignored))
    except SchemaError as error:
        raise SchemaError(f"{entity}: {error}", error.code) from None
    kept = [name for name in ignored if with_ignored and name in present]
    return source.read(entity, [*expected, *kept])


def _read_file(path: Path, layout: FileLayout, expected: list[str], ignored: tuple[str, ...]) -> pd.DataFrame:
    kind: Literal["csv", "parquet"] = "parquet" if path.suffix == ".parquet" else "csv"
    with open_source(FileSettings(type=kind, table=path), layout) as source:
        text = pd.concat(_pieces(source, str(path), expected, ignored, with_ignored=True), ignore_index=True)
    if text.empty:
        raise SchemaError(f"{path}: the table has no rows", ExitCode.TABLE_WITHOUT_ROWS)
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
