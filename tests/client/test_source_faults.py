"""A source that cannot be read: one line that says what to do, its code, and no word of a password or of a value."""

import logging
import signal
import sqlite3
import sys
import traceback
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from pydantic import TypeAdapter
from typer.testing import CliRunner

import client.sources
from client.cli import app
from client.opening import open_source
from client.policy import load_site_settings, read_source_settings
from client.records import read_records
from client.sources import SourceSettings
from common.data.schema import FileLayout
from common.errors import ExitCode, PrivShareError, StudyError
from common.wire.messages import Reply, refusal
from tests.client.homes import MEASUREMENTS, ROWS, Home, forbidden, write_yaml
from tests.members import make_federation
from tests.postgres import READER, Server

C = ExitCode
PLANTED = "GEHEIM-4711"
COLUMNS = ("patient", "colour", "age", "amount", "ill")


@pytest.fixture
def filled(ward: Server) -> Server:
    """The usual table, in the server."""
    cells = ", ".join("(" + ", ".join(f"'{cell}'" if cell else "NULL" for cell in row) + ")" for row in ROWS)
    ward.execute(
        "DROP TABLE IF EXISTS t",
        "DROP TABLE IF EXISTS hidden",
        "CREATE TABLE t (patient text, colour text, age int, amount float, ill text)",
        f"INSERT INTO t VALUES {cells}",
        "CREATE TABLE hidden (patient text)",
        "GRANT SELECT ON t TO reader",
        database="ward",
    )
    return ward


def on_server(server: Server, monkeypatch: pytest.MonkeyPatch, url: str | None = None, **others: Any) -> dict[str, Any]:
    """A section `source`, and the URL that it names."""
    monkeypatch.setenv("WARD_URL", url or server.url("reader", database="ward"))
    return {"type": "postgresql", "url_env": "WARD_URL", "table": "t", **others}


def read(section: dict[str, Any]) -> list[pd.DataFrame]:
    adapter: TypeAdapter[SourceSettings] = TypeAdapter(SourceSettings)
    found = adapter.validate_python(section)
    assert found.table is not None
    entity = str(found.table) if isinstance(found.table, Path) else found.table
    with open_source(found, FileLayout()) as source:
        return list(source.read(entity, source.columns(entity)))


def check_line(error: BaseException, code: ExitCode, words: str) -> None:
    """One line with its code; and nothing secret in it, or in what a traceback would show of it."""
    assert isinstance(error, PrivShareError)
    assert error.code == code
    assert words in str(error)
    assert "\n" not in str(error)
    shown = "".join(traceback.format_exception(error))
    for secret in (READER, PLANTED, "wr0ng", "127.0.0.1", "reader@"):
        assert secret not in shown.replace("def ", "")


# --- PostgreSQL

Fault = tuple[Callable[[Server], dict[str, Any]], ExitCode, str]


def by_url(**parts: str) -> Callable[[Server], dict[str, Any]]:
    return lambda server: {"url": server.url(**{"user": "reader", "database": "ward", **parts})}


def by_query(query: str, **others: Any) -> Callable[[Server], dict[str, Any]]:
    return lambda _: {"table": {"query": query}, **others}


FAULTS: dict[str, Fault] = {
    "wrong password": (by_url(password="wr0ng"), C.SOURCE_REFUSED, "WARD_URL: the server refuses this user"),
    "nobody of this name": (by_url(user="wr0ng", password="x"), C.SOURCE_REFUSED, "refuses this user or the password"),
    "no such database": (by_url(database="nowhere"), C.SOURCE_UNREACHABLE, "WARD_URL: there is no such database"),
    "no TLS": (lambda server: {"url": f"{server.url('reader')}?sslmode=require"}, C.SOURCE_TLS, "WARD_URL: TLS failed"),
    "no authority for TLS": (
        lambda server: {"url": f"{server.url('reader')}?sslmode=verify-full&sslrootcert=/nowhere"},
        C.SOURCE_TLS,
        "TLS failed",
    ),
    "no server": (
        lambda _: {"url": f"postgresql://reader:{READER}@127.0.0.1:1/ward"},
        C.SOURCE_UNREACHABLE,
        "WARD_URL: the server cannot be reached",
    ),
    "no host": (
        lambda _: {"url": f"postgresql://reader:{READER}@/ward?host=/nowhere"},
        C.SOURCE_UNREACHABLE,
        "cannot be reached",
    ),
    "no URL": (lambda _: {"url": f"reader {READER}"}, C.SOURCE_UNREACHABLE, "WARD_URL: expected postgresql://"),
    "half a URL": (
        lambda _: {"url": f"postgresql://reader:{READER}@[127.0.0.1/ward"},
        C.SOURCE_UNREACHABLE,
        "WARD_URL: expected postgresql://",
    ),
    "no table": (lambda _: {"table": "nothing"}, C.TABLE_NOT_FOUND, "nothing: there is no such table or view"),
    "no schema": (lambda _: {"schema": "nowhere"}, C.TABLE_NOT_FOUND, "t: there is no such"),
    "no permission": (lambda _: {"table": "hidden"}, C.SOURCE_REFUSED, "hidden: this user may not read it; GRANT"),
    "no column": (by_query("SELECT nobody FROM t"), C.COLUMN_MISSING, "query: a column that is asked for"),
    "no SQL": (by_query(f"SELEC '{PLANTED}'"), C.SOURCE_FAILED, "query: the query failed (SQLSTATE 42601)"),
    "a value in the server's words": (
        by_query(f"SELECT (patient || '{PLANTED}')::int AS n FROM t"),
        C.SOURCE_FAILED,
        "query: the query failed (SQLSTATE 22P02)",
    ),
    "too slow": (
        by_query("SELECT pg_sleep(3)::text AS n", timeout=1),
        C.SOURCE_FAILED,
        "longer than `timeout`",
    ),
}


@pytest.mark.parametrize("what", FAULTS)
def test_each_fault_of_a_server_has_its_line_and_its_code(
    what: str, filled: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, code, words = FAULTS[what]
    with pytest.raises(PrivShareError) as caught:
        read(on_server(filled, monkeypatch, **change(filled)))
    check_line(caught.value, code, words)


def test_a_role_that_may_write_cannot_by_a_site(filled: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    section = on_server(filled, monkeypatch, filled.url(database="ward"))
    filled.execute(
        "CREATE OR REPLACE FUNCTION spoil() RETURNS int LANGUAGE sql AS 'DELETE FROM t; SELECT 1'", database="ward"
    )
    with pytest.raises(PrivShareError) as caught:
        read({**section, "table": {"query": "SELECT spoil() AS n"}})
    check_line(caught.value, C.SOURCE_FAILED, "query: it writes, and only reading is allowed")
    assert sum(map(len, read(section))) == len(ROWS)


@pytest.mark.parametrize("how", ["the connection is ended", "the server crashes"])
def test_a_server_that_goes_away_while_rows_come_is_told_and_read_again(
    how: str, filled: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = on_server(filled, monkeypatch)
    monkeypatch.setattr(client.sources, "_CHUNK", 7)
    adapter: TypeAdapter[SourceSettings] = TypeAdapter(SourceSettings)
    with open_source(adapter.validate_python(section), FileLayout()) as source:
        pieces = source.read("t", COLUMNS)
        assert len(next(iter(pieces))) == 7
        if how == "the server crashes":
            filled.stop(how=signal.SIGQUIT)
        else:
            filled.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'privshare'"
            )
        with pytest.raises(PrivShareError) as caught:
            list(pieces)
    check_line(caught.value, C.SOURCE_FAILED, "t: the server ended the connection")
    if how == "the server crashes":
        with pytest.raises(PrivShareError) as caught:
            read(section)
        check_line(caught.value, C.SOURCE_UNREACHABLE, "the server cannot be reached")
        filled.start()
    assert sum(map(len, read(section))) == len(ROWS)


def test_a_site_whose_database_is_down_refuses_spends_nothing_and_answers_when_it_is_back(
    home: Home, filled: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = home.folder / "site.yaml"
    expected, _ = read_records(load_site_settings(path).source, home.study)
    written = yaml.safe_load(path.read_text())
    section = on_server(filled, monkeypatch, f"postgresql://reader:{READER}@127.0.0.1:1/ward")
    write_yaml(path, {**written, "source": section})
    site = home.open(forbidden())
    with caplog.at_level(logging.DEBUG):
        bodies = [site.handle(home.ask(kind).encode()) for kind in ("describe", *MEASUREMENTS)]
    assert bodies == [refusal("north", ExitCode.INTERNAL)] * len(bodies)
    assert home.charged == []
    assert "WARD_URL: the server cannot be reached" in caplog.text
    assert READER not in caplog.text
    monkeypatch.setenv("WARD_URL", filled.url("reader", database="ward"))
    assert Reply.decode(site.handle(home.ask("describe").encode())).refused is None
    found, _ = read_records(load_site_settings(path).source, home.study)
    pd.testing.assert_frame_equal(found, expected, check_exact=True)


# --- where the URL is


def test_a_url_comes_from_a_file_that_only_its_owner_reads(filled: Server, tmp_path: Path) -> None:
    path = tmp_path / "url"
    section = {"type": "postgresql", "url_file": str(path), "table": "t"}
    with pytest.raises(PrivShareError) as caught:
        read(section)
    check_line(caught.value, C.SOURCE_UNREACHABLE, "the database's URL cannot be read (FileNotFoundError)")
    path.write_text(filled.url("reader", database="ward") + "\n")
    path.chmod(0o640)
    with pytest.raises(PrivShareError) as caught:
        read(section)
    check_line(caught.value, C.SOURCE_REFUSED, "others can read the database's URL; chmod 600")
    path.chmod(0o600)
    assert sum(map(len, read(section))) == len(ROWS)


def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WARD_URL", raising=False)
    with pytest.raises(PrivShareError) as caught:
        read({"type": "postgresql", "url_env": "WARD_URL", "table": "t"})
    check_line(caught.value, C.SOURCE_UNREACHABLE, "WARD_URL: the environment variable")


def test_a_url_as_sqlalchemy_has_it_is_one(filled: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    url = filled.url("reader", database="ward").replace("postgresql://", "postgresql+psycopg://")
    assert sum(map(len, read(on_server(filled, monkeypatch, url)))) == len(ROWS)


SECRET = f"postgresql://reader:{PLANTED}@db/ward"
IN_YAML: dict[str, tuple[Any, str]] = {
    "a URL": ({"type": "postgresql", "url": SECRET, "table": "t"}, "source: no URL, user or password"),
    "a URL as the name of a variable": ({"type": "postgresql", "url_env": SECRET, "table": "t"}, "source: no URL"),
    "a URL as a file": ({"type": "postgresql", "url_file": SECRET, "table": "t"}, "source: no URL"),
    "a URL as a database": ({"type": "sqlite", "database": SECRET, "table": "t"}, "source: no URL"),
    "a URL as a table": ({"type": "csv", "table": SECRET}, "source: no URL"),
    "a password": (
        {"type": "postgresql", "url_env": "U", "password": PLANTED, "table": "t"},
        "source: no URL, user or password",
    ),
    "a password as the name of a variable": (
        {"type": "postgresql", "url_env": f"{PLANTED} ", "table": "t"},
        "source",
    ),
    "a URL and nothing else": (SECRET, "source: expected a `type`"),
    "nothing": (None, "source: expected a `type`"),
    "a URL under a name that is not known": ({"type": "postgresql", "urI": SECRET, "table": "t"}, "source: no URL"),
    "a password as a number of seconds": (
        {"type": "postgresql", "url_env": "U", "timeout": PLANTED, "table": "t"},
        "source.timeout: ",
    ),
    "a password as a type": ({"type": PLANTED, "table": "t"}, "source: expected a `type`: csv, parquet, sqlite"),
    "no type": ({"table": "t.csv"}, "source: expected a `type`"),
    "a key of another type": (
        {"type": "sqlite", "database": "x", "table": "t", "timeout": 1},
        "source.timeout: unknown",
    ),
    "a key that is spelled otherwise": (
        {"type": "csv", "tabel": "t"},
        "source.tabel: unknown key; did you mean table?",
    ),
    "nothing to read": ({"type": "duckdb", "database": "x"}, "source: expected `table`, or `preset`"),
    "a table of no kind": (
        {"type": "sqlite", "database": "x", "table": {"sql": "SELECT"}},
        "source.table: expected the name of a table, or {query: SELECT ...}",
    ),
    "no URL": ({"type": "postgresql", "table": "t"}, "source: expected `url_env` or `url_file`"),
}


@pytest.mark.parametrize("what", IN_YAML)
def test_what_a_site_file_may_not_say_is_one_line_without_a_secret(what: str, home: Home) -> None:
    section, words = IN_YAML[what]
    path = home.folder / "site.yaml"
    write_yaml(path, {**yaml.safe_load(path.read_text()), "source": section})
    with pytest.raises(StudyError) as caught:
        load_site_settings(path)
    check_line(caught.value, C.STUDY_INVALID, words)


# --- files and databases that are files


def lite(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


@pytest.mark.parametrize("kind", ["sqlite", "duckdb"])
def test_each_fault_of_a_database_that_is_a_file_has_its_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "ward.db"
    section = {"type": kind, "database": str(path), "table": "t"}
    with pytest.raises(PrivShareError) as caught:
        read(section)
    check_line(caught.value, C.SOURCE_UNREACHABLE, "ward.db: no such database")
    path.write_text("no database, however long it may be, is this text\n" * 100)
    with pytest.raises(PrivShareError) as caught:
        read(section)
    check_line(caught.value, C.TABLE_UNREADABLE, "ward.db: not a database of this type")
    path.unlink()
    statements = ("CREATE TABLE t (word varchar)", f"INSERT INTO t VALUES ('{PLANTED}')")
    if kind == "sqlite":
        lite(path, *statements)
    else:
        with pytest.importorskip("duckdb").connect(path) as connection:
            for statement in statements:
                connection.execute(statement)
    before = path.read_bytes()
    for entity, code, words in (
        ("nothing", C.TABLE_NOT_FOUND, "nothing: there is no such table or view"),
        ({"query": "SELECT nobody FROM t"}, C.COLUMN_MISSING, "query: a column that is asked for is not there"),
        ({"query": f"SELECT FROM WHERE '{PLANTED}'"}, C.SOURCE_FAILED, "query: cannot be read ("),
        ({"query": "DELETE FROM t RETURNING word"}, C.SOURCE_FAILED, "query: cannot be read ("),
    ):
        with pytest.raises(PrivShareError) as caught:
            read({**section, "table": entity})
        check_line(caught.value, code, words)
    with (
        open_source(TypeAdapter(SourceSettings).validate_python(section), FileLayout()) as source,
        pytest.raises(Exception, match=r"(?i)read.?only"),
    ):
        source._connection.execute("DELETE FROM t")  # type: ignore[attr-defined]
    assert path.read_bytes() == before
    assert [one["word"].tolist() for one in read(section) if len(one)] == [[PLANTED]]


def test_a_query_of_duckdb_reads_no_other_file(tmp_path: Path) -> None:
    pytest.importorskip("duckdb").connect(tmp_path / "ward.db").close()
    (tmp_path / "other.csv").write_text(f"word\n{PLANTED}\n")
    query = f"SELECT * FROM read_csv('{tmp_path / 'other.csv'}')"
    with pytest.raises(PrivShareError) as caught:
        read({"type": "duckdb", "database": str(tmp_path / "ward.db"), "table": {"query": query}})
    check_line(caught.value, C.SOURCE_FAILED, "query: cannot be read (PermissionException)")


def test_a_value_of_duckdb_that_is_no_number_is_not_shown(tmp_path: Path) -> None:
    with pytest.importorskip("duckdb").connect(tmp_path / "ward.db") as connection:
        connection.execute(f"CREATE TABLE t AS SELECT '{PLANTED}' AS word")
    query = "SELECT CAST(word AS INTEGER) AS n FROM t"
    with pytest.raises(PrivShareError) as caught:
        read({"type": "duckdb", "database": str(tmp_path / "ward.db"), "table": {"query": query}})
    check_line(caught.value, C.SOURCE_FAILED, "query: cannot be read (ConversionException)")


@pytest.mark.parametrize("damage", ["text", "cut", "middle"])
def test_a_damaged_parquet_file_is_told_by_its_name(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pd.DataFrame({"word": [PLANTED, *map(str, range(5000))]}).to_parquet(path)
    body = path.read_bytes()
    path.write_bytes(
        {"text": b"word\n" + PLANTED.encode(), "cut": body[:-9], "middle": body[:30] + bytes(9000) + body[9030:]}[
            damage
        ]
    )
    with pytest.raises(PrivShareError) as caught:
        read({"type": "parquet", "table": str(path)})
    check_line(caught.value, C.TABLE_UNREADABLE, "t.parquet: not a Parquet file (")


@pytest.mark.parametrize("kind", ["duckdb", "postgresql"])
def test_a_driver_that_is_not_installed_is_named_with_its_extra(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = {"duckdb": "duckdb", "postgresql": "psycopg"}[kind]
    monkeypatch.setitem(sys.modules, driver, None)
    monkeypatch.setenv("WARD_URL", SECRET)
    where = {"database": str(tmp_path)} if kind == "duckdb" else {"url_env": "WARD_URL"}
    with pytest.raises(PrivShareError) as caught:
        read({"type": kind, **where, "table": "t"})
    check_line(caught.value, C.SOURCE_NOT_INSTALLED, f"{driver} is not installed; pip install 'privshare[sql]'")


# --- init


def test_init_takes_a_source_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fed = make_federation(tmp_path / "fed")
    section = {"type": "postgresql", "url_file": "ward.url", "table": {"query": "SELECT 1"}}
    monkeypatch.chdir(tmp_path)
    write_yaml(tmp_path / "source.yaml", {"source": section})
    command = ["--site", "north", "--sites", str(tmp_path / "sites"), "init", "--kit", str(fed.kit("north"))]
    for wrong in (
        [],
        ["--source", "source.yaml", "--table", "t.csv"],
        ["--source", "source.yaml", "--series", "t.csv"],
    ):
        done = CliRunner().invoke(app, [*command, *wrong])
        assert done.exit_code == C.USAGE, done.output
        assert "--table or --source: expected one of both" in done.output
    done = CliRunner().invoke(app, [*command, "--source", "source.yaml"])
    assert done.exit_code == 0, done.output
    found = yaml.safe_load((tmp_path / "sites" / "north" / "site.yaml").read_text())["source"]
    assert found == {**section, "url_file": str(tmp_path / "ward.url"), "timeout": 600}


def test_a_file_with_a_secret_instead_of_its_place_is_refused_by_init(tmp_path: Path) -> None:
    write_yaml(tmp_path / "source.yaml", {"source": {"type": "postgresql", "url": SECRET, "table": "t"}})
    with pytest.raises(StudyError) as caught:
        read_source_settings(tmp_path / "source.yaml")
    check_line(caught.value, C.STUDY_INVALID, "source: no URL, user or password in this file")
