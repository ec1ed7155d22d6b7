"""Where a site's tables are: files or a database, as `source` in site.yaml says. Everything comes out as text.

The study's own parser checks every cell in text form, and stays the only check: a table says the same whether it is a
CSV file, a Parquet file or a table of a database. Databases are opened for reading alone. Names of users, passwords and
what a database says of an error are in no message: a driver quotes values.
"""

import functools
import importlib
import os
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Protocol, Self

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from client.delimited import Stamp, read_chunks
from common.data.schema import FileLayout, Section, Text, Whole
from common.errors import ExitCode, SchemaError, SourceError
from common.files import is_private

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, FromClause, Select

CHUNK: Final = 100_000
"""Rows that are read at a time."""
_CONNECT_SECONDS: Final = 10
_BY_CLASS: Final[Mapping[str, tuple[str, ExitCode]]] = {
    "42P01": ("there is no such table or view", ExitCode.TABLE_NOT_FOUND),
    "3F000": ("there is no such schema", ExitCode.TABLE_NOT_FOUND),
    "3D000": ("there is no such database", ExitCode.SOURCE_UNREACHABLE),
    "42703": ("a column that the query names is not there", ExitCode.COLUMN_MISSING),
    "42501": ("this user may not read it; grant SELECT", ExitCode.SOURCE_REFUSED),
    "28P01": ("user or password is refused", ExitCode.SOURCE_REFUSED),
    "28000": ("the user is refused", ExitCode.SOURCE_REFUSED),
    "57014": ("took longer than `timeout`", ExitCode.SOURCE_FAILED),
    "25006": ("the query writes; only reading is allowed", ExitCode.SOURCE_FAILED),
    "57P01": ("the database ended the connection", ExitCode.SOURCE_FAILED),
    "08006": ("the connection was lost", ExitCode.SOURCE_FAILED),
}
"""What PostgreSQL's codes of errors mean to a steward."""


class Query(Section):
    """Rows of a database that a statement gives."""

    query: Text


Entity = Text | Query
Within = Mapping[str, Collection[int | str]]
"""Values that a column may have; other rows are left out where they are, and never cross a connection."""


class Source(Protocol):
    """Tables as text, in pieces."""

    def columns(self, entity: Entity) -> list[str]:
        """Names of an entity's columns, in order.

        Raises:
            SchemaError, SourceError: it cannot be read.
        """
        ...

    def read(self, entity: Entity, columns: Sequence[str], *, within: Within | None = None) -> Iterator[pd.DataFrame]:
        """Rows of an entity: text, "" where there is none, at most `CHUNK` rows at a time, at least one piece.

        Raises:
            SchemaError, SourceError: it cannot be read; a column's values have no text.
        """
        ...


class _Settings(Section):
    """What all have. preset: makes table and series out of many entities, and takes their places."""

    preset: Literal["mimic3", "omop54"] | None = None


class FileSettings(_Settings):
    """CSV files, plain or .gz, written as the study's section `table` says; or Parquet files."""

    type: Literal["csv", "parquet"]
    table: Path | None = None
    series: Path | None = None
    # For a preset: the folder with a file for each entity.
    folder: Path | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.preset is None) != (self.folder is None) or (self.preset is None) != (self.table is not None):
            raise ValueError("expected `table`, or `folder` and `preset`")
        if self.series is not None and self.preset is not None:
            raise ValueError("series: a preset makes it; leave it out")
        return self


class _DatabaseSettings(_Settings):
    """A table or a query for each entity; for a preset the schema that its entities are in."""

    table: Entity | None = None
    series: Entity | None = None
    db_schema: Annotated[Text | None, Field(alias="schema")] = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.preset is None) != (self.table is not None):
            raise ValueError("expected `table`, or `preset`")
        if self.series is not None and self.preset is not None:
            raise ValueError("series: a preset makes it; leave it out")
        return self


class EmbeddedSettings(_DatabaseSettings):
    """A database that is a file."""

    type: Literal["sqlite", "duckdb"]
    database: Path


class PostgresSettings(_DatabaseSettings):
    """A PostgreSQL server. Its URL holds a password, so it is not here but where this names it.

    timeout: seconds that one statement may take.
    """

    type: Literal["postgresql"]
    url_env: Text | None = None
    url_file: Path | None = None
    timeout: Annotated[Whole, Field(ge=1)] = 3600

    @model_validator(mode="after")
    def _check_url(self) -> Self:
        if (self.url_env is None) == (self.url_file is None):
            raise ValueError("expected `url_env` or `url_file`")
        # Not a rule of the field: an error of a field shows what is in it.
        if self.url_env is not None and not self.url_env.isidentifier():
            raise ValueError("url_env: expected the name of an environment variable, and not what is in it")
        return self


SourceSettings = Annotated[FileSettings | EmbeddedSettings | PostgresSettings, Field(discriminator="type")]


@contextmanager
def open_source(settings: SourceSettings, layout: FileLayout) -> Iterator[Source]:
    """Open what a site file names, for reading alone; what a database shows is of one moment.

    Args:
        settings: of the site file.
        layout: how the study says that text files are written; those of a preset are plain CSV.

    Raises:
        SourceError: it cannot be reached, or does not let this user in.
    """
    with ExitStack() as stack:
        if isinstance(settings, FileSettings):
            yield _Files(settings, FileLayout() if settings.preset else layout)
        elif settings.type == "duckdb":
            yield _DuckDB(settings, stack)
        else:
            engine = _sqlite(settings) if isinstance(settings, EmbeddedSettings) else _postgresql(settings)
            stack.callback(engine.dispose)
            with _faults("the database"):
                connection = stack.enter_context(engine.connect())
            yield _Sql(connection, settings.db_schema)


class _Files:
    """A file for each entity: as a path, or, in a preset's folder, by its name."""

    def __init__(self, settings: FileSettings, layout: FileLayout) -> None:
        self._folder, self._type = settings.folder, settings.type
        # Names that the study gives are those of the first table.
        self._layouts = {settings.table: layout}
        self._layout = layout.model_copy(update={"header": None})
        self._checked: set[Stamp] = set()

    def columns(self, entity: Entity) -> list[str]:
        """As `Source`."""
        path = self._path(entity)
        if self._type == "parquet":
            with _parquet(path) as file:
                return list(file.schema_arrow.names)
        return list(next(self._delimited(path, rows=1)).columns)

    def read(self, entity: Entity, columns: Sequence[str], *, within: Within | None = None) -> Iterator[pd.DataFrame]:
        """As `Source`."""
        path = self._path(entity)
        pieces = self._parquet(path) if self._type == "parquet" else self._delimited(path, rows=CHUNK)
        for piece in pieces:
            named = piece.set_axis([*map(str.lower, piece.columns)], axis="columns") if self._folder else piece
            kept = named[list(columns)]
            for name, values in (within or {}).items():
                kept = kept[named.loc[kept.index, name].isin(set(map(str, values)))]
            yield kept.reset_index(drop=True)

    def _parquet(self, path: Path) -> Iterator[pd.DataFrame]:
        with _parquet(path) as file:
            names, empty = file.schema_arrow.names, True
            for batch in file.iter_batches(CHUNK):
                empty = False
                yield pd.DataFrame(
                    {name: as_text(column.to_pylist(), name) for name, column in zip(names, batch.columns, strict=True)}
                )
            if empty:
                yield pd.DataFrame(columns=names, dtype=str)

    def _delimited(self, path: Path, *, rows: int) -> Iterator[pd.DataFrame]:
        layout = self._layouts.get(path, self._layout)
        return read_chunks(path, layout, rows=rows, checked=self._checked)

    def _path(self, entity: Entity) -> Path:
        assert isinstance(entity, str)
        if self._folder is None:
            return Path(entity)
        endings = (".parquet",) if self._type == "parquet" else (".csv", ".csv.gz")
        for name in (entity.lower(), entity.upper()):
            for ending in endings:
                if (found := self._folder / f"{name}{ending}").is_file():
                    return found
        raise SchemaError(f"{self._folder / entity.upper()}{endings[0]}: no such table", ExitCode.TABLE_NOT_FOUND)


@contextmanager
def _parquet(path: Path) -> Iterator[pq.ParquetFile]:
    if not path.is_file():
        raise SchemaError(f"{path}: no such table", ExitCode.TABLE_NOT_FOUND)
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError, ValueError) as error:
        raise SchemaError(f"{path}: not a Parquet file ({type(error).__name__})", ExitCode.TABLE_UNREADABLE) from None


class _Sql:
    """Tables and queries of one connection."""

    def __init__(self, connection: "Connection", schema: str | None) -> None:
        self._connection, self._schema = connection, schema

    def columns(self, entity: Entity) -> list[str]:
        """As `Source`."""
        import sqlalchemy as sql  # noqa: PLC0415 (half a second, which sites with files do not need)

        with _faults(_name_of(entity)):
            return list(
                self._connection.execute(sql.select(sql.text("*")).select_from(self._from(entity)).limit(0)).keys()
            )

    def read(self, entity: Entity, columns: Sequence[str], *, within: Within | None = None) -> Iterator[pd.DataFrame]:
        """As `Source`."""
        statement = _statement(self._from(entity), columns, within)
        with _faults(_name_of(entity)):
            rows = self._connection.execution_options(stream_results=True, max_row_buffer=CHUNK).execute(statement)
            empty = True
            for piece in rows.partitions(CHUNK):
                empty = False
                yield _frame(piece, columns)
            if empty:
                yield _frame([], columns)

    def _from(self, entity: Entity) -> "FromClause":
        return _from_clause(entity, self._schema)


class _DuckDB:
    """Tables and queries of a DuckDB file."""

    def __init__(self, settings: EmbeddedSettings, stack: ExitStack) -> None:
        duckdb = _driver("duckdb")
        if not settings.database.is_file():
            raise SourceError(f"{settings.database}: no such database")
        self._schema, self._error = settings.db_schema, duckdb.Error
        with self._faults(str(settings.database)):
            self._connection = stack.enter_context(duckdb.connect(str(settings.database), read_only=True))

    def columns(self, entity: Entity) -> list[str]:
        """As `Source`."""
        import sqlalchemy as sql  # noqa: PLC0415 (as above)

        statement = sql.select(sql.text("*")).select_from(_from_clause(entity, self._schema)).limit(0)
        with self._faults(_name_of(entity)):
            found = self._connection.execute(_typed_out(statement))
            return [column[0] for column in found.description]

    def read(self, entity: Entity, columns: Sequence[str], *, within: Within | None = None) -> Iterator[pd.DataFrame]:
        """As `Source`."""
        statement = _typed_out(_statement(_from_clause(entity, self._schema), columns, within))
        with self._faults(_name_of(entity)):
            rows, empty = self._connection.cursor().execute(statement), True
            while piece := rows.fetchmany(CHUNK):
                empty = False
                yield _frame(piece, columns)
            if empty:
                yield _frame([], columns)

    @contextmanager
    def _faults(self, what: str) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            kind = type(error).__name__
            if kind == "CatalogException":
                raise SourceError(f"{what}: there is no such table or view", ExitCode.TABLE_NOT_FOUND) from None
            raise SourceError(f"{what}: DuckDB cannot read it ({kind})", ExitCode.SOURCE_FAILED) from None


def _sqlite(settings: EmbeddedSettings) -> "Engine":
    import sqlalchemy as sql  # noqa: PLC0415 (as above)

    path = settings.database
    if not path.is_file():
        raise SourceError(f"{path}: no such database")
    connect = functools.partial(sqlite3.connect, f"{path.absolute().as_uri()}?mode=ro", uri=True)
    return sql.create_engine("sqlite://", creator=connect)


def _postgresql(settings: PostgresSettings) -> "Engine":
    import sqlalchemy as sql  # noqa: PLC0415 (as above)

    _driver("psycopg")
    where, text = _url_of(settings)
    try:
        url = sql.make_url(text)
        is_fit = url.get_backend_name() in ("postgresql", "postgres")
    except (sql.exc.ArgumentError, ValueError):
        is_fit = False
    if not is_fit:
        raise SourceError(f"{where}: expected postgresql://user:password@host:port/database")
    # Timestamps with a zone come in UTC; nothing is ever written.
    options = f"-c default_transaction_read_only=on -c TimeZone=UTC -c statement_timeout={1000 * settings.timeout}"
    return sql.create_engine(
        url.set(drivername="postgresql+psycopg"),
        isolation_level="REPEATABLE READ",
        connect_args={"options": options, "connect_timeout": _CONNECT_SECONDS},
        poolclass=sql.NullPool,
    )


def _url_of(settings: PostgresSettings) -> tuple[str, str]:
    """Where the URL is, and what it is."""
    if settings.url_env is not None:
        if (found := os.environ.get(settings.url_env)) is None:
            raise SourceError(f"{settings.url_env}: the environment variable with the database's URL is not set")
        return settings.url_env, found.strip()
    path = settings.url_file
    assert path is not None
    try:
        if not is_private(path):
            raise SourceError(f"{path}: others can read the database's URL; expected mode 0600")
        return str(path), path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        raise SourceError(f"{path}: no file with the database's URL") from None


def _driver(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise SourceError(
            f"source: {name} is not installed; it is in the extra `sql`: pip install 'privshare[sql]'",
            ExitCode.SOURCE_FAILED,
        ) from None


@contextmanager
def _faults(what: str) -> Iterator[None]:
    """A driver's faults as a line that tells what to do, and nothing that a driver says."""
    from sqlalchemy.exc import DBAPIError, SQLAlchemyError  # noqa: PLC0415 (as above)

    try:
        yield
    except DBAPIError as error:
        raise _explained(what, error.orig) from None
    except SQLAlchemyError as error:
        raise SourceError(f"{what}: cannot be read ({type(error).__name__})", ExitCode.SOURCE_FAILED) from None


def _explained(what: str, fault: BaseException | None) -> SourceError:
    code = str(getattr(fault, "sqlstate", None) or "")
    if code in _BY_CLASS:
        reason, exit_code = _BY_CLASS[code]
        return SourceError(f"{what}: {reason}", exit_code)
    said = str(fault)  # only looked through
    kind = f"SQLSTATE {code}" if code else type(fault).__name__
    for mark, reason, exit_code in (
        ("password authentication failed", "user or password is refused", ExitCode.SOURCE_REFUSED),
        ("no password supplied", "the server asks for a password, and the URL has none", ExitCode.SOURCE_REFUSED),
        ("no pg_hba.conf entry", "the server lets nobody in from here, or not so", ExitCode.SOURCE_REFUSED),
        ("role ", "user or password is refused", ExitCode.SOURCE_REFUSED),
        ("database ", "there is no such database", ExitCode.SOURCE_UNREACHABLE),
        ("SSL", "TLS failed: see sslmode and sslrootcert in its URL", ExitCode.SOURCE_UNREACHABLE),
        ("certificate", "TLS failed: see sslmode and sslrootcert in its URL", ExitCode.SOURCE_UNREACHABLE),
        ("no such table", "there is no such table or view", ExitCode.TABLE_NOT_FOUND),
        ("no such column", "a column that the query names is not there", ExitCode.COLUMN_MISSING),
        ("not a database", "not a database of this kind", ExitCode.TABLE_UNREADABLE),
        ("server closed the connection", "the connection was lost", ExitCode.SOURCE_FAILED),
        ("connection is lost", "the connection was lost", ExitCode.SOURCE_FAILED),
        ("connection failed", "cannot be reached; is it running, and the address right?", ExitCode.SOURCE_UNREACHABLE),
        ("connection timeout", "does not answer", ExitCode.SOURCE_UNREACHABLE),
    ):
        if mark in said:
            return SourceError(f"{what}: {reason}", exit_code)
    return SourceError(f"{what}: cannot be read ({kind})", ExitCode.SOURCE_FAILED)


def _name_of(entity: Entity) -> str:
    return "query" if isinstance(entity, Query) else entity


def _from_clause(entity: Entity, schema: str | None) -> "FromClause":
    import sqlalchemy as sql  # noqa: PLC0415 (as above)

    if isinstance(entity, Query):
        return sql.text(f"({entity.query.strip().rstrip(';')}) AS asked")  # type: ignore[return-value]
    first, dot, last = entity.rpartition(".")
    return sql.table(last, schema=first if dot else schema)


def _statement(table: "FromClause", columns: Sequence[str], within: Within | None) -> "Select[Any]":
    import sqlalchemy as sql  # noqa: PLC0415 (as above)

    wanted: list[Any] = [sql.column(name) for name in columns]
    statement: Select[Any] = sql.select(*wanted).select_from(table)
    for name, values in (within or {}).items():
        statement = statement.where(sql.column(name).in_(sorted(values)))
    return statement


def _typed_out(statement: "Select[Any]") -> str:
    """A statement with its values in it, for a driver that SQLAlchemy does not know."""
    from sqlalchemy.dialects import postgresql  # noqa: PLC0415 (as above)

    return str(
        statement.compile(
            dialect=postgresql.dialect(),  # type: ignore[no-untyped-call]
            compile_kwargs={"literal_binds": True},
        )
    )


def _frame(rows: Collection[Sequence[object]], columns: Sequence[str]) -> pd.DataFrame:
    if not rows:
        return pd.DataFrame(columns=list(columns), dtype=str)
    cells = zip(*rows, strict=True)
    return pd.DataFrame({name: as_text(values, name) for name, values in zip(columns, cells, strict=True)})


def as_text(values: Collection[object], name: str) -> "pd.Series[str]":
    """Values of one column as a table of text has them; "" where there is none.

    A whole number has no point, whatever its type; other floats are as short as they can be; times are ISO 8601 with a
    blank before the hour, and with their zone where they have one.

    Raises:
        SchemaError: a value has no text: bytes, a list, a document.
    """
    texts = []
    for value in values:
        write = _WRITERS.get(type(value).__name__)
        if write is None:
            raise SchemaError(
                f"{name}: the column is {type(value).__name__}, which has no text; leave it out, or cast it in a query",
                ExitCode.TABLE_UNREADABLE,
            )
        texts.append(write(value))
    return pd.Series(texts, dtype=str)


def _float(value: float) -> str:
    return repr(value).removesuffix(".0")


def _decimal(value: Decimal) -> str:
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


_WRITERS: Final[Mapping[str, Callable[[Any], str]]] = {
    "NoneType": lambda _: "",
    "str": str,
    "int": str,
    "float": _float,
    "bool": lambda value: "true" if value else "false",
    "Decimal": _decimal,
    "date": date.isoformat,
    "datetime": functools.partial(datetime.isoformat, sep=" "),
    "Timestamp": functools.partial(datetime.isoformat, sep=" "),
    "UUID": str,
}
"""By the names of types, as drivers give them."""
