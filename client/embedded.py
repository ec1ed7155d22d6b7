"""Databases that are files: SQLite and DuckDB, opened for reading alone."""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Final

import pandas as pd

from client.cells import empty_batch, frame_of_arrow, no_text, texts
from client.sources import EmbeddedSettings, Entity, Query, Within, rows_at_a_time
from client.statements import named, quoted, select
from common.errors import ExitCode, SourceError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_NO_TABLE: Final = ("there is no such table or view", ExitCode.TABLE_NOT_FOUND)
_NO_COLUMN: Final = ("a column that is asked for is not there", ExitCode.COLUMN_MISSING)
_NO_DATABASE: Final = ("not a database of this type", ExitCode.TABLE_UNREADABLE)
_IN_USE: Final = ("the database is in use by another program", ExitCode.SOURCE_UNREACHABLE)


# --- SQLite


@contextmanager
def open_sqlite(settings: EmbeddedSettings) -> Iterator["Sqlite"]:
    """A SQLite file, as it is at this moment.

    Raises:
        SourceError: it is not there, or cannot be opened.
    """
    path = settings.database
    if not path.is_file():
        raise SourceError(f"{path}: no such database")
    with _sqlite_faults(str(path)):
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
    with closing(connection):
        with _sqlite_faults(str(path)):
            # All that is read is of one moment; the first statement that reads finds out whether it is a database.
            connection.execute("BEGIN")
            connection.execute("SELECT count(*) FROM sqlite_master")
        yield Sqlite(connection, settings.db_schema)


class Sqlite:
    """Tables and queries of a SQLite file. Values have types, not columns; a boolean alone is one by its column."""

    def __init__(self, connection: sqlite3.Connection, schema: str | None) -> None:
        self._connection, self._schema = connection, schema

    def columns(self, entity: Entity) -> list[str]:
        """As `Source`."""
        statement, _ = select(entity, None, schema=self._schema, member="")
        with _sqlite_faults(named(entity)):
            return [column[0] for column in self._connection.execute(f"{statement} LIMIT 0").description]

    def read(self, entity: Entity, columns: Sequence[str], *, within: Within | None = None) -> Iterator[pd.DataFrame]:
        """As `Source`."""
        member = "IN (SELECT value FROM json_each(?))"
        statement, lists = select(entity, columns, schema=self._schema, within=within, member=member)
        with _sqlite_faults(named(entity)):
            booleans = self._booleans(entity)
            cursor = self._connection.execute(statement, [json.dumps(values) for values in lists])
            is_first = True
            while (rows := cursor.fetchmany(rows_at_a_time(len(columns)))) or is_first:
                is_first = False
                cells = zip(*rows, strict=True) if rows else [() for _ in columns]
                yield pd.DataFrame(
                    {
                        name: texts(_as_booleans(values) if name in booleans else values, name)
                        for name, values in zip(columns, cells, strict=True)
                    }
                )

    def _booleans(self, entity: Entity) -> set[str]:
        """Columns that a table declares so: SQLite keeps them as 0 and 1."""
        if isinstance(entity, Query):
            return set()
        own, _, table = entity.rpartition(".")
        prefix = f"{quoted(own or self._schema or '')}." if own or self._schema else ""
        found = self._connection.execute(f"PRAGMA {prefix}table_info({quoted(table)})")
        return {name for _, name, declared, *_ in found if declared.upper() in ("BOOLEAN", "BOOL")}


def _as_booleans(values: Sequence[object]) -> list[object]:
    return [bool(value) if value in (0, 1) else value for value in values]


@contextmanager
def _sqlite_faults(what: str) -> Iterator[None]:
    """SQLite's faults, by their kind: what it says may hold a value."""
    try:
        yield
    except sqlite3.Error as error:
        name, said = getattr(error, "sqlite_errorname", ""), str(error)
        if name in ("SQLITE_NOTADB", "SQLITE_CORRUPT"):
            reason, code = _NO_DATABASE
        elif name in ("SQLITE_BUSY", "SQLITE_LOCKED"):
            reason, code = _IN_USE
        elif name == "SQLITE_CANTOPEN":
            reason, code = "cannot be opened; may this user read it, and its folder?", ExitCode.SOURCE_UNREACHABLE
        elif said.startswith("no such table"):
            reason, code = _NO_TABLE
        elif said.startswith("no such column"):
            reason, code = _NO_COLUMN
        else:
            reason, code = f"cannot be read ({name or type(error).__name__})", ExitCode.SOURCE_FAILED
        raise SourceError(f"{what}: {reason}", code) from None


# --- DuckDB


@contextmanager
def open_duckdb(settings: EmbeddedSettings) -> Iterator["DuckDB"]:
    """A DuckDB file. It reads no other file, and loads no extension.

    Raises:
        SourceError: it is not there, cannot be opened, or DuckDB is not installed.
    """
    try:
        import duckdb  # noqa: PLC0415 (of an extra)
    except ImportError:
        raise SourceError(
            "source: duckdb is not installed; pip install 'privshare[sql]'", ExitCode.SOURCE_NOT_INSTALLED
        ) from None
    path = settings.database
    if not path.is_file():
        raise SourceError(f"{path}: no such database")
    closed: dict[str, str | bool | int | float | list[str]] = {
        "enable_external_access": False,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }
    with _duckdb_faults(str(path)):
        connection = duckdb.connect(str(path), read_only=True, config=closed)
    with closing(connection):
        yield DuckDB(connection, settings.db_schema)


class DuckDB:
    """Tables and queries of a DuckDB file."""

    def __init__(self, connection: "DuckDBPyConnection", schema: str | None) -> None:
        self._connection, self._schema = connection, schema

    def columns(self, entity: Entity) -> list[str]:
        """As `Source`."""
        statement, _ = select(entity, None, schema=self._schema, member="")
        with _duckdb_faults(named(entity)), closing(self._connection.cursor()) as cursor:
            return list(cursor.sql(statement).columns)

    def read(self, entity: Entity, columns: Sequence[str], *, within: Within | None = None) -> Iterator[pd.DataFrame]:
        """As `Source`."""
        statement, lists = select(entity, columns, schema=self._schema, within=within, member="IN (SELECT unnest(?))")
        with _duckdb_faults(named(entity)), closing(self._connection.cursor()) as cursor:
            found = cursor.sql(statement, params=lists)
            for name, kind in zip(columns, map(str, found.types), strict=True):
                if kind == "JSON":  # which comes as text
                    raise no_text(name, kind)
            with found.to_arrow_reader(rows_at_a_time(len(columns))) as batches:
                yield frame_of_arrow(empty_batch(batches.schema), columns)
                for batch in batches:
                    yield frame_of_arrow(batch, columns)


@contextmanager
def _duckdb_faults(what: str) -> Iterator[None]:
    """DuckDB's faults, by their class: what it says may hold a value."""
    import duckdb  # noqa: PLC0415 (as above)
    import pyarrow as pa  # noqa: PLC0415

    try:
        yield
    except (duckdb.Error, pa.ArrowException) as error:
        said = str(error)
        reason, code = f"cannot be read ({type(error).__name__})", ExitCode.SOURCE_FAILED
        if isinstance(error, duckdb.CatalogException) and said.startswith("Catalog Error: Table"):
            reason, code = _NO_TABLE
        elif isinstance(error, duckdb.BinderException) and "column" in said.partition("\n")[0]:
            reason, code = _NO_COLUMN
        elif isinstance(error, duckdb.IOException) and "lock" in said:
            reason, code = _IN_USE
        elif isinstance(error, duckdb.IOException) and "not a valid" in said:
            reason, code = _NO_DATABASE
        raise SourceError(f"{what}: {reason}", code) from None
