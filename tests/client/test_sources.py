"""Tables from files and databases: the same text, whatever they come from, and no word of a secret."""

import csv
import math
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

import client.sources
from client.sources import SourceSettings, open_source
from common.data.schema import FileLayout
from tests.postgres import Server

duckdb = pytest.importorskip("duckdb", reason="DuckDB is not installed: the extra `sql`")

Row = tuple[Any, ...]
KINDS = ("csv", "parquet", "sqlite", "duckdb", "postgresql")
COLUMNS = {
    # name: PostgreSQL's type, DuckDB's, SQLite's, Arrow's
    "whole": ("bigint", "BIGINT", "INTEGER", pa.int64()),
    "small": ("smallint", "SMALLINT", "INTEGER", pa.int16()),
    "word": ("text", "VARCHAR", "TEXT", pa.string()),
    "number": ("double precision", "DOUBLE", "REAL", pa.float64()),
    "price": ("numeric(12, 4)", "DECIMAL(12, 4)", "DECIMAL(12, 4)", pa.decimal128(12, 4)),
    "ill": ("boolean", "BOOLEAN", "BOOLEAN", pa.bool_()),
    "born": ("date", "DATE", "DATE", pa.date32()),
    "seen": ("timestamp", "TIMESTAMP", "TIMESTAMP", pa.timestamp("us")),
    "sent": ("timestamptz", "TIMESTAMPTZ", "TIMESTAMPTZ", pa.timestamp("us", "Europe/Berlin")),
}
LATE, EARLY = datetime(2200, 1, 1), datetime(1801, 1, 1)  # noqa: DTZ001 (a clock on the wall)


@pytest.fixture(scope="session")
def ward(postgres: Server) -> Server:
    """A server with a database and a user who may read."""
    postgres.execute("CREATE DATABASE ward", "CREATE ROLE reader LOGIN PASSWORD 's3cret-of-reader'")
    return postgres


def url_of(ward: Server, **others: str) -> str:
    return ward.url(**{"user": "reader", "password": "s3cret-of-reader", "database": "ward", **others})


def text_of(value: Any) -> str:
    """What a table of text would have, said once more."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case float():
            return str(int(value)) if value.is_integer() and abs(value) < 1e16 else repr(value)
        case Decimal():
            return f"{value.normalize():f}"
        case datetime():
            return str(value if value.tzinfo is None else value.astimezone(UTC))
        case _:
            return str(value)


def in_sqlite(value: Any) -> Any:
    """SQLite has numbers and text."""
    if isinstance(value, Decimal):
        return float(value)
    return value if value is None or isinstance(value, int | float | str) else text_of(value)


class Places:
    """The same table in five places."""

    def __init__(self, folder: Path, ward: Server) -> None:
        self._folder, self._ward = folder, ward
        self._duckdb = 0

    def write(self, rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
        folder, names = self._folder, list(COLUMNS)
        with (folder / "t.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([names, *([text_of(value) for value in row] for row in rows)])
        columns = zip(*rows, strict=True) if rows else [() for _ in names]
        arrays = [pa.array(list(one), COLUMNS[name][3]) for one, name in zip(columns, names, strict=True)]
        pq.write_table(pa.table(arrays, names=names), folder / "t.parquet", row_group_size=4)
        (folder / "t.db").unlink(missing_ok=True)
        with closing(sqlite3.connect(folder / "t.db")) as lite, lite:
            lite.execute(f"CREATE TABLE t ({', '.join(f'{name} {kinds[2]}' for name, kinds in COLUMNS.items())})")
            marks = ", ".join("?" for _ in names)
            lite.executemany(f"INSERT INTO t VALUES ({marks})", [[in_sqlite(value) for value in row] for row in rows])  # noqa: S608
        (folder / "t.duckdb").unlink(missing_ok=True)
        with duckdb.connect(folder / "t.duckdb") as duck:
            duck.execute(f"CREATE TABLE t ({', '.join(f'{name} {kinds[1]}' for name, kinds in COLUMNS.items())})")
            for row in rows:
                duck.execute(f"INSERT INTO t VALUES ({marks})", list(row))  # noqa: S608
        with self._ward_connection() as postgres:
            postgres.execute("DROP TABLE IF EXISTS t")
            listed = ", ".join(f"{name} {kinds[0]}" for name, kinds in COLUMNS.items())
            postgres.execute(f"CREATE TABLE t ({listed})")
            postgres.cursor().executemany(f"INSERT INTO t VALUES ({marks.replace('?', '%s')})", rows)  # noqa: S608
            postgres.execute("GRANT SELECT ON t TO reader")
        (folder / "url").write_text(url_of(self._ward))
        (folder / "url").chmod(0o600)
        return {
            "csv": {"type": "csv", "table": str(folder / "t.csv")},
            "parquet": {"type": "parquet", "table": str(folder / "t.parquet")},
            "sqlite": {"type": "sqlite", "database": str(folder / "t.db"), "table": "t"},
            "duckdb": {"type": "duckdb", "database": str(folder / "t.duckdb"), "table": "t"},
            "postgresql": {"type": "postgresql", "url_file": str(folder / "url"), "table": "public.t"},
        }

    def _ward_connection(self) -> Any:
        import psycopg  # noqa: PLC0415

        return psycopg.connect(self._ward.url(database="ward"), autocommit=True)


@pytest.fixture(scope="module")
def places(ward: Server) -> Iterator[Places]:
    with tempfile.TemporaryDirectory() as folder:
        yield Places(Path(folder), ward)


def parsed(section: dict[str, Any]) -> SourceSettings:
    adapter: TypeAdapter[SourceSettings] = TypeAdapter(SourceSettings)
    return adapter.validate_python(section)


def read(section: dict[str, Any], columns: Sequence[str] = tuple(COLUMNS), **within: list[Any]) -> list[pd.DataFrame]:
    found = parsed(section)
    assert found.table is not None
    entity = str(found.table) if isinstance(found.table, Path) else found.table
    with open_source(found, FileLayout()) as source:
        return list(source.read(entity, columns, within=within))


def joined(pieces: list[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(pieces, ignore_index=True)


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=8).filter(
    lambda text: text == text.strip()
)
MOMENTS = st.datetimes(EARLY, LATE)
VALUES = {
    "whole": st.integers(-(2**63), 2**63 - 1),
    "small": st.integers(-(2**15), 2**15 - 1),
    "word": WORDS,
    "number": st.floats(allow_nan=False, allow_infinity=False)
    .map(lambda value: value + 0.0)
    .filter(lambda value: math.copysign(1, value) > 0 or value != 0),
    "price": st.decimals(-(10**7), 10**7, places=4).map(lambda value: value + 0),
    "ill": st.booleans(),
    "born": st.dates(EARLY.date(), LATE.date()),
    "seen": MOMENTS,
    "sent": st.datetimes(EARLY, LATE, timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))])),
}
ROWS = st.lists(st.tuples(*(st.none() | VALUES[name] for name in COLUMNS)), max_size=9)


@given(rows=ROWS)
@settings(max_examples=12, deadline=None)
def test_a_typed_table_has_one_text_wherever_it_is_kept(places: Places, rows: list[Row]) -> None:
    sections = places.write(rows)
    expected = pd.DataFrame([[text_of(value) for value in row] for row in rows], columns=list(COLUMNS), dtype=str)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client.sources, "_CHUNK", 4)
        for kind, section in sections.items():
            pieces = read(section)
            pd.testing.assert_frame_equal(joined(pieces), expected, obj=kind, check_exact=True)
            assert max(map(len, pieces)) <= 4
