"""Tables and queries of a PostgreSQL server: one transaction that only reads, and a cursor of the server's for rows."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from client.cells import no_text, texts
from client.sources import Entity, PostgresSettings, Query, Within, rows_at_a_time
from client.statements import full_name, named, select
from common.errors import ExitCode, SchemaError, SourceError
from common.files import is_private

if TYPE_CHECKING:
    import psycopg
    from psycopg import Column, Connection

_CONNECT_SECONDS: Final = 10
_SESSION: Final = {
    "default_transaction_read_only": "on",
    "TimeZone": "UTC",
    "DateStyle": "ISO",
    "extra_float_digits": "1",  # a float whole, whatever the server thinks of digits
}
_NO_TEXT: Final = ("money", "timetz")
_NO_URL: Final = "expected postgresql://user:password@host:port/database"
_REFUSED: Final = ("the server refuses this user or the password", ExitCode.SOURCE_REFUSED)
_LOST: Final = ("the server ended the connection", ExitCode.SOURCE_FAILED)
_UNREACHABLE: Final = (
    "the server cannot be reached; is it running, and the address right?",
    ExitCode.SOURCE_UNREACHABLE,
)
_TLS: Final = ("TLS failed; see sslmode and sslrootcert in its URL", ExitCode.SOURCE_TLS)
_NO_DATABASE: Final = ("there is no such database", ExitCode.SOURCE_UNREACHABLE)
_BY_STATE: Final = {
    "28": _REFUSED,
    "3D": _NO_DATABASE,
    "08": _LOST,
    "57P": _LOST,
    "57014": ("took longer than `timeout`", ExitCode.SOURCE_FAILED),
    "42P01": ("there is no such table or view", ExitCode.TABLE_NOT_FOUND),
    "3F": ("there is no such schema", ExitCode.TABLE_NOT_FOUND),
    "42703": ("a column that is asked for is not there", ExitCode.COLUMN_MISSING),
    "42501": ("this user may not read it; GRANT SELECT, and USAGE of its schema", ExitCode.SOURCE_REFUSED),
    "25006": ("it writes, and only reading is allowed", ExitCode.SOURCE_FAILED),
}
"""By the beginning of SQLSTATE."""
_BY_TEXT: Final = {
    "password authentication failed": _REFUSED,
    "no password supplied": _REFUSED,
    "no pg_hba.conf entry": ("the server lets nobody in this way; see its pg_hba.conf", ExitCode.SOURCE_REFUSED),
    'role "': _REFUSED,
    'database "': _NO_DATABASE,
    "SSL": _TLS,
    "certificate": _TLS,
}
"""Before a connection there is no SQLSTATE. What is said is looked through, and never shown."""


@contextmanager
def open_postgresql(settings: PostgresSettings) -> Iterator["PostgreSQL"]:
    """A server, as its database is at this moment.

    Raises:
        SourceError: psycopg is not installed, there is no URL, or the server cannot be reached or refuses.
    """
    try:
        import psycopg  # noqa: PLC0415 (of an extra)
    except ImportError:
        raise SourceError(
            "source: psycopg is not installed; pip install 'privshare[sql]'", ExitCode.SOURCE_NOT_INSTALLED
        ) from None
    where, url = _url_of(settings)
    with _faults(where, is_connecting=True):
        connection = psycopg.connect(
            url,
            connect_timeout=_CONNECT_SECONDS,
            client_encoding="UTF8",
            # A server that went away without a word is noticed in a minute.
            keepalives_idle=30,
            keepalives_interval=10,
            keepalives_count=3,
            application_name="privshare",
            autocommit=True,
        )
    with closing(connection):
        with _faults(where):
            for name, value in (*_SESSION.items(), ("statement_timeout", str(1000 * settings.timeout))):
                connection.execute("SELECT set_config(%s, %s, false)", (name, value))
        connection.autocommit = False
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        yield PostgreSQL(connection, settings.db_schema)


class PostgreSQL:
    """What one transaction sees."""

    def __init__(self, connection: "Connection[Any]", schema: str | None) -> None:
        self._connection, self._schema = connection, schema

    def columns(self, entity: Entity) -> list[str]:
        """As `Source`."""
        with _faults(named(entity)):
            if isinstance(entity, Query):
                return [column.name for column in self._described(entity, None)]
            # From the catalogue: a user who may read the listed columns alone may not ask for all of them.
            found = self._connection.execute(
                "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped "
                "ORDER BY attnum",
                (full_name(entity, self._schema),),
            )
            return [name for (name,) in found]

    def read(self, entity: Entity, columns: Sequence[str], *, within: Within | None = None) -> Iterator[pd.DataFrame]:
        """As `Source`."""
        # No statement has a NUL; a % that is not a parameter's is written twice.
        statement, lists = select(entity, columns, schema=self._schema, within=within, member="= ANY(\0)")
        statement = statement.replace("%", "%%").replace("\0", "%s")
        with _faults(named(entity)):
            self._check_types(self._described(entity, columns))
            with self._connection.cursor(name="rows") as cursor:
                cursor.execute(statement.encode(), lists)
                is_first = True
                while (rows := cursor.fetchmany(rows_at_a_time(len(columns)))) or is_first:
                    is_first = False
                    cells = zip(*rows, strict=True) if rows else [() for _ in columns]
                    yield pd.DataFrame({name: texts(values, name) for name, values in zip(columns, cells, strict=True)})

    def _described(self, entity: Entity, columns: Sequence[str] | None) -> list["Column"]:
        statement, _ = select(entity, columns, schema=self._schema, member="")
        return list(self._connection.execute(f"{statement} LIMIT 0".encode()).description or ())

    def _check_types(self, columns: list["Column"]) -> None:
        """Refuse a type that has no text, whatever the rows are: a document may hold what looks like a number."""
        kinds = self._connection.execute(
            "SELECT oid, typname, typcategory FROM pg_type WHERE oid = ANY(%s)",
            ([column.type_code for column in columns],),
        ).fetchall()
        fit = {oid: (category in "BDENS" and kind not in _NO_TEXT) or kind == "uuid" for oid, kind, category in kinds}
        for column in columns:
            if not fit.get(column.type_code, False):
                raise no_text(column.name, next(kind for oid, kind, _ in kinds if oid == column.type_code))


def _url_of(settings: PostgresSettings) -> tuple[str, str]:
    """Where the URL is, and what it is."""
    if settings.url_env is not None:
        where, found = settings.url_env, os.environ.get(settings.url_env)
        if found is None:
            raise SourceError(f"{where}: the environment variable with the database's URL is not set")
    else:
        assert settings.url_file is not None
        where = str(settings.url_file)
        try:
            if not is_private(settings.url_file):
                raise SourceError(f"{where}: others can read the database's URL; chmod 600", ExitCode.SOURCE_REFUSED)
            found = settings.url_file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise SourceError(f"{where}: the database's URL cannot be read ({type(error).__name__})") from None
    # SQLAlchemy's way to name the driver is known to many.
    url = re.sub(r"^postgresql\+psycopg://", "postgresql://", found.strip())
    if not re.match(r"postgres(ql)?://", url):
        raise SourceError(f"{where}: {_NO_URL}")
    return where, url


@contextmanager
def _faults(what: str, *, is_connecting: bool = False) -> Iterator[None]:
    """PostgreSQL's faults, by their class: what a server says may hold a value, and what a driver says the URL."""
    import psycopg  # noqa: PLC0415 (of an extra)

    try:
        yield
    except psycopg.Error as error:
        reason, code = _reason_to_refuse(error) if is_connecting else _reason(error)
        raise SourceError(f"{what}: {reason}", code) from None
    # A text in no encoding, a moment that no calendar has.
    except (UnicodeError, ValueError, OverflowError) as error:
        raise SchemaError(
            f"{what}: a value is not one of its type ({type(error).__name__})", ExitCode.TABLE_UNREADABLE
        ) from None


def _reason_to_refuse(error: "psycopg.Error") -> tuple[str, ExitCode]:
    if type(error).__name__ == "ProgrammingError":
        return _NO_URL, ExitCode.SOURCE_UNREACHABLE
    found = next((reason for mark, reason in _BY_TEXT.items() if mark in str(error)), None)
    # Servers speak the languages of the world: one that asked for a password was reached.
    asked = error.pgconn is not None and error.pgconn.used_password
    return found or (_REFUSED if asked else _UNREACHABLE)


def _reason(error: "psycopg.Error") -> tuple[str, ExitCode]:
    state, kind = error.sqlstate, type(error).__name__
    if state is None:  # the driver's own
        is_lost = kind == "OperationalError"
        return _LOST if is_lost else (f"a value cannot be read ({kind})", ExitCode.TABLE_UNREADABLE)
    found = next((reason for start, reason in _BY_STATE.items() if state.startswith(start)), None)
    return found or (f"the query failed (SQLSTATE {state})", ExitCode.SOURCE_FAILED)
