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

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

import client.sources
from client.opening import open_source
from client.policy import load_site_settings
from client.records import read_records, read_windows
from client.sources import Query, SourceSettings
from common.data.schema import FileLayout
from common.errors import ExitCode, PrivShareError, SchemaError
from common.study import parse_study
from tests.client.homes import SINGLE, STUDY, WINDOWED, make_home
from tests.postgres import Server

duckdb = pytest.importorskip("duckdb", reason="DuckDB is not installed: the extra `sql`")
psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed: the extra `sql`")

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
            lite.executemany(f"INSERT INTO t VALUES ({marks})", [[in_sqlite(value) for value in row] for row in rows])
        (folder / "t.duckdb").unlink(missing_ok=True)
        with duckdb.connect(folder / "t.duckdb") as duck:
            duck.execute(f"CREATE TABLE t ({', '.join(f'{name} {kinds[1]}' for name, kinds in COLUMNS.items())})")
            for row in rows:
                duck.execute(f"INSERT INTO t VALUES ({marks})", list(row))
        with self._ward_connection() as postgres:
            postgres.execute("DROP TABLE IF EXISTS t")
            listed = ", ".join(f"{name} {kinds[0]}" for name, kinds in COLUMNS.items())
            postgres.execute(f"CREATE TABLE t ({listed})")
            postgres.cursor().executemany(f"INSERT INTO t VALUES ({marks.replace('?', '%s')})", rows)
            postgres.execute("GRANT SELECT ON t TO reader")
        (folder / "url").write_text(self._ward.url("reader", database="ward"))
        (folder / "url").chmod(0o600)
        return {
            "csv": {"type": "csv", "table": str(folder / "t.csv")},
            "parquet": {"type": "parquet", "table": str(folder / "t.parquet")},
            "sqlite": {"type": "sqlite", "database": str(folder / "t.db"), "table": "t"},
            "duckdb": {"type": "duckdb", "database": str(folder / "t.duckdb"), "table": "t"},
            "postgresql": {"type": "postgresql", "url_file": str(folder / "url"), "table": "public.t"},
        }

    def _ward_connection(self) -> Any:
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
@settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.generate])  # smaller rows take minutes
def test_a_typed_table_has_one_text_wherever_it_is_kept(places: Places, rows: list[Row]) -> None:
    sections = places.write(rows)
    expected = pd.DataFrame([[text_of(value) for value in row] for row in rows], columns=list(COLUMNS), dtype=str)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client.sources, "_CHUNK", 4)
        for kind, section in sections.items():
            pieces = read(section)
            pd.testing.assert_frame_equal(joined(pieces), expected, obj=kind, check_exact=True)
            assert max(map(len, pieces)) <= 4


# --- single values


def place(kind: str, folder: Path, ward: Server, *statements: str, **others: str) -> dict[str, Any]:
    """A database in which the statements were executed; its table is called t."""
    if kind == "postgresql":
        ward.execute("DROP TABLE IF EXISTS t", *statements, "GRANT SELECT ON t TO reader", database="ward")
        (folder / "url").write_text(ward.url("reader", database="ward"))
        (folder / "url").chmod(0o600)
        return {"type": kind, "url_file": str(folder / "url"), "table": "t", **others}
    path = folder / f"t.{kind}"
    connect: Any = sqlite3.connect if kind == "sqlite" else duckdb.connect
    with closing(connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()
    return {"type": kind, "database": str(path), "table": "t", **others}


VALUE = {
    "a float of half the digits": ("postgresql", "real", "0.1", "0.1"),
    "a float of half the digits in DuckDB": ("duckdb", "FLOAT", "0.1", "0.1"),
    "a float beyond digits": ("postgresql", "double precision", "1e300", "1e+300"),
    "no number": ("postgresql", "double precision", "'NaN'", "nan"),
    "no number in DuckDB": ("duckdb", "DOUBLE", "'NaN'", "nan"),
    "no decimal": ("postgresql", "numeric", "'NaN'", "nan"),
    "a decimal of 30 digits": (
        "postgresql",
        "numeric",
        "123456789012345678901234567890.50",
        "123456789012345678901234567890.5",
    ),
    "a sum in DuckDB": (
        "duckdb",
        "HUGEINT",
        "170141183460469231731687303715884105727",
        "170141183460469231731687303715884105727",
    ),
    "a time of day": ("postgresql", "time", "'10:30'", "10:30:00"),
    "a time of day in DuckDB": ("duckdb", "TIME", "'10:30'", "10:30:00"),
    "a UUID": ("postgresql", "uuid", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    "a UUID in DuckDB": (
        "duckdb",
        "UUID",
        "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'",
        "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
    ),
    "an enumeration": ("postgresql", "mood", "'well'", "well"),
    "an enumeration in DuckDB": ("duckdb", "ENUM('ill', 'well')", "'well'", "well"),
    "a domain": ("postgresql", "age", "42", "42"),
    "nanoseconds": ("duckdb", "TIMESTAMP_NS", "'2020-01-02 03:04:05.123456789'", "2020-01-02 03:04:05.123456789"),
    "a boolean in SQLite": ("sqlite", "BOOLEAN", "1", "true"),
    "a whole number in SQLite": ("sqlite", "", "9007199254740993", "9007199254740993"),
}


@pytest.fixture(scope="session")
def types(ward: Server) -> Server:
    ward.execute(
        "CREATE TYPE mood AS ENUM ('ill', 'well')", "CREATE DOMAIN age AS int CHECK (value > 0)", database="ward"
    )
    return ward


@pytest.mark.parametrize("what", VALUE)
def test_each_type_has_its_text(what: str, tmp_path: Path, types: Server) -> None:
    kind, declared, written, text = VALUE[what]
    section = place(
        kind, tmp_path, types, f"CREATE TABLE t (one {declared})", f"INSERT INTO t VALUES ({written}), (NULL)"
    )
    assert joined(read(section, ["one"]))["one"].tolist() == [text, ""]


def test_floats_of_arrow_are_as_short_as_their_precision_lets_them(tmp_path: Path) -> None:
    arrays = {
        "half": pa.array([np.float16(0.1), None]),
        "single": pa.array([0.1, None], pa.float32()),
        "whole": pa.array([5.0, float("nan")], pa.float64()),
        "coded": pa.array(["a", None]).dictionary_encode(),
        "late": pa.array([2**63 - 1, None], pa.uint64()),
        "unique": pa.array([bytes(range(16)), None], pa.uuid()),
        "nothing": pa.nulls(2),
    }
    pq.write_table(pa.table(arrays), tmp_path / "t.parquet")
    found = joined(read({"type": "parquet", "table": str(tmp_path / "t.parquet")}, list(arrays)))
    assert found.T.to_numpy().tolist() == [
        ["0.1", ""],
        ["0.1", ""],
        ["5", "nan"],
        ["a", ""],
        ["9223372036854775807", ""],
        ["00010203-0405-0607-0809-0a0b0c0d0e0f", ""],
        ["", ""],
    ]


WITHOUT = {
    "postgresql": ["bytea", "integer[]", "json", "jsonb", "interval", "money", "inet", "int4range", "point", "timetz"],
    "duckdb": ["BLOB", "INTEGER[]", "JSON", "INTERVAL", "STRUCT(a INTEGER)", "MAP(INTEGER, INTEGER)"],
}


@pytest.mark.parametrize(("kind", "declared"), [(kind, one) for kind, types in WITHOUT.items() for one in types])
def test_a_type_without_text_is_refused_by_its_column_even_without_a_row(
    kind: str, declared: str, tmp_path: Path, ward: Server
) -> None:
    section = place(kind, tmp_path, ward, f"CREATE TABLE t (one int, scan {declared})")
    assert joined(read(section, ["one"])).empty
    with pytest.raises(SchemaError, match=r"^scan: the column's type, .* has no text") as caught:
        read(section, ["one", "scan"])
    assert caught.value.code == ExitCode.TABLE_UNREADABLE


def test_bytes_in_a_file_are_refused_by_their_column(tmp_path: Path, ward: Server) -> None:
    pq.write_table(pa.table({"one": [1], "scan": [b"GEHEIM"]}), tmp_path / "t.parquet")
    lite = place("sqlite", tmp_path, ward, "CREATE TABLE t (one, scan)", "INSERT INTO t VALUES (1, x'00')")
    for section in (lite, {"type": "parquet", "table": str(tmp_path / "t.parquet")}):
        assert joined(read(section, ["one"]))["one"].tolist() == ["1"]
        with pytest.raises(SchemaError, match=r"^scan: the column's type, (bytes|binary), has no text"):
            read(section, ["one", "scan"])


@pytest.mark.parametrize("kind", ["postgresql", "duckdb"])
def test_a_day_that_no_calendar_has_is_refused_and_not_shown(kind: str, tmp_path: Path, ward: Server) -> None:
    section = place(kind, tmp_path, ward, "CREATE TABLE t (born date)", "INSERT INTO t VALUES ('infinity')")
    with pytest.raises(PrivShareError, match="a value cannot be") as caught:
        read(section, ["born"])
    assert caught.value.code == ExitCode.TABLE_UNREADABLE
    assert "infinity" not in str(caught.value)


# --- which rows, which columns

PEOPLE = ("CREATE TABLE t (id int, word varchar(9))", "INSERT INTO t VALUES (1, 'a'), (2, 'b%'), (3, 'c'), (2, 'd:e')")


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_chosen_where_they_are(kind: str, tmp_path: Path, ward: Server) -> None:
    if kind in ("csv", "parquet"):
        rows = pd.DataFrame({"id": [1, 2, 3, 2], "word": ["a", "b%", "c", "d:e"]})
        path = tmp_path / f"t.{kind}"
        rows.to_csv(path, index=False) if kind == "csv" else rows.to_parquet(path)
        section = {"type": kind, "table": str(path)}
    else:
        section = place(kind, tmp_path, ward, *PEOPLE)
    assert joined(read(section, ["word"], id=[2, 3]))["word"].tolist() == ["b%", "c", "d:e"]
    assert joined(read(section, ["word"], id=range(2, 70_000), word=["d:e", "a"]))["word"].tolist() == ["d:e"]
    assert list(joined(read(section, ["word", "id"], id=[]))) == ["word", "id"]
    assert joined(read(section, ["word"], id=[])).empty


@pytest.mark.parametrize("kind", KINDS[2:])
def test_a_query_is_a_table(kind: str, tmp_path: Path, ward: Server) -> None:
    query = "SELECT id AS n, word || ':x%' AS w, id * 1.5 AS more FROM t WHERE word <> 'c' AND word <> ' :no' -- all;"
    section = place(kind, tmp_path, ward, *PEOPLE) | {"table": {"query": query}}
    with open_source(parsed(section), FileLayout()) as source:
        entity = Query(query=query)
        assert source.columns(entity) == ["n", "w", "more"]
        assert joined(list(source.read(entity, ["w", "n"]))).to_numpy().tolist() == [
            ["a:x%", "1"],
            ["b%:x%", "2"],
            ["d:e:x%", "2"],
        ]
        assert joined(list(source.read(entity, ["more"], within={"n": [1], "w": ["a:x%"]})))["more"].tolist() == ["1.5"]


@pytest.mark.parametrize("kind", KINDS[2:])
def test_names_are_taken_as_they_are_written(kind: str, tmp_path: Path, ward: Server) -> None:
    section = place(
        kind, tmp_path, ward, 'CREATE TABLE t ("Heart rate %" int, "a""b" int)', "INSERT INTO t VALUES (1, 2)"
    )
    with open_source(parsed(section), FileLayout()) as source:
        assert source.columns("t") == ["Heart rate %", 'a"b']
        pieces = source.read("t", ['a"b', "Heart rate %"], within={"Heart rate %": [1]})
        assert joined(list(pieces)).to_numpy().tolist() == [["2", "1"]]
        # SQLite would take the name for a text.
        with pytest.raises(PrivShareError, match="a column that is asked for is not there") as caught:
            list(source.read("t", ["nobody"]))
        assert caught.value.code == ExitCode.COLUMN_MISSING


def test_a_user_who_may_read_the_listed_columns_alone_reads_them(tmp_path: Path, ward: Server) -> None:
    section = place("postgresql", tmp_path, ward, "CREATE TABLE t (id int, name text)", "INSERT INTO t VALUES (1, 'x')")
    ward.execute("REVOKE SELECT ON t FROM reader", "GRANT SELECT (id) ON t TO reader", database="ward")
    with open_source(parsed(section), FileLayout()) as source:
        assert source.columns("t") == ["id", "name"]
        assert joined(list(source.read("t", ["id"])))["id"].tolist() == ["1"]


def test_what_a_database_shows_is_of_one_moment(tmp_path: Path, ward: Server) -> None:
    section = place("postgresql", tmp_path, ward, *PEOPLE)
    with open_source(parsed(section), FileLayout()) as source:
        first = joined(list(source.read("t", ["id"])))
        ward.execute("DELETE FROM t", database="ward")
        assert joined(list(source.read("t", ["id"]))).equals(first)


def test_rows_cross_a_connection_whose_other_end_has_shown_the_certificate_that_the_url_asks_for(
    tmp_path: Path, ward: Server
) -> None:
    section = place("postgresql", tmp_path, ward, *PEOPLE)
    asked = {**section, "table": {"query": "SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"}}
    with ward.encrypted() as authority:
        plain = ward.url("reader", database="ward")
        (tmp_path / "url").write_text(f"{plain}?sslmode=verify-full&sslrootcert={authority}")
        assert joined(read(section, ["word"], id=[2]))["word"].tolist() == ["b%", "d:e"]
        ((is_encrypted, version),) = joined(read(asked, ["ssl", "version"])).to_numpy().tolist()
        assert (is_encrypted, version) == ("true", "TLSv1.3")


# --- a site's records


@pytest.mark.parametrize("kind", KINDS)
def test_a_site_has_the_same_records_whatever_they_come_from(kind: str, tmp_path: Path, ward: Server) -> None:
    home = make_home(tmp_path / "north", SINGLE, study=WINDOWED)
    expected, series = read_records(load_site_settings(home.folder / "site.yaml").source, home.study)
    table, long = pd.read_csv(home.folder / "table.csv"), pd.read_csv(home.folder / "series.csv")
    table["age"], long["pulse"] = table["age"].astype("Int64"), long["pulse"].astype("Int64")
    if kind == "csv":
        section: dict[str, Any] = {"type": "csv"}
        for name, frame in (("table", table), ("series", long)):
            frame.to_csv(home.folder / f"{name}.csv.gz", index=False)
            section[name] = str(home.folder / f"{name}.csv.gz")
    elif kind == "parquet":
        section = {"type": kind}
        for name, frame in (("table", table), ("series", long)):
            frame.to_parquet(home.folder / f"{name}.parquet", row_group_size=7)
            section[name] = str(home.folder / f"{name}.parquet")
    else:
        lists = [
            f"INSERT INTO {name} VALUES "
            + ", ".join(
                "(" + ", ".join("NULL" if pd.isna(v) else f"'{v}'" for v in row) + ")" for row in frame.to_numpy()
            )
            for name, frame in (("t", table), ("s", long))
        ]
        tables = (
            "CREATE TABLE t (patient text, colour text, age int, amount double precision, ill text)",
            "CREATE TABLE s (patient text, minute int, pulse int, drug text)",
        )
        dropped = ("DROP TABLE IF EXISTS s",) if kind == "postgresql" else ()
        granted = ("GRANT SELECT ON s TO reader",) if kind == "postgresql" else ()
        section = place(kind, home.folder, ward, *dropped, *tables, *lists, *granted, series="s")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client.sources, "_CHUNK", 9)
        found, found_series = read_records(parsed(section), home.study)
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    assert series is not None
    assert found_series is not None
    for one, other in zip(
        read_windows(found, found_series, home.study), read_windows(expected, series, home.study), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", KINDS[2:])
def test_a_column_that_is_neither_listed_nor_ignored_is_refused(kind: str, tmp_path: Path, ward: Server) -> None:
    home = make_home(tmp_path / "north")
    columns = "patient text, colour text, age int, amount real, ill text, "
    section = place(kind, home.folder, ward, f"CREATE TABLE t ({columns} name text)")
    with pytest.raises(SchemaError, match="column 6 of the table is not in the study") as caught:
        read_records(parsed(section), home.study)
    assert caught.value.code == ExitCode.COLUMN_UNKNOWN
    study = parse_study({**STUDY, "ignore": ["name"]}, source="test")
    assert read_records(parsed(section), study)[0].empty
    short = {**section, "table": {"query": "SELECT patient, colour, age, amount FROM t"}}
    with pytest.raises(SchemaError, match="ill: the column is in the study but not in the table") as caught:
        read_records(parsed(short), study)
    assert caught.value.code == ExitCode.COLUMN_MISSING
