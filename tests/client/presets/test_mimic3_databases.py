"""The open demo in databases: in PostgreSQL with the types that MIT-LCP's scripts give its columns."""

import csv
import gzip
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest

from client.folders import CsvFolder
from client.opening import open_source
from client.presets.mimic3 import read_mimic3
from client.sources import EmbeddedSettings, FileSettings, PostgresSettings
from common.data.schema import FileLayout

if TYPE_CHECKING:
    from tests.postgres import Server

# Of the columns that are not whole numbers. Origin: mimic-iii/buildmimic/postgres/postgres_create_tables.sql of the
# MIMIC Code Repository.
TYPES = {
    **dict.fromkeys(("charttime", "storetime", "admittime", "dischtime", "deathtime", "intime"), "timestamp(0)"),
    **dict.fromkeys(("outtime", "edregtime", "edouttime", "dob", "dod", "dod_hosp", "dod_ssn"), "timestamp(0)"),
    **dict.fromkeys(("valuenum", "los"), "double precision"),
    **dict.fromkeys(("hospital_expire_flag", "has_chartevents_data", "first_wardid", "last_wardid"), "smallint"),
    **dict.fromkeys(("value", "diagnosis", "insurance"), "varchar(255)"),
    **dict.fromkeys(("valueuom", "flag", "resultstatus", "stopped", "icd9_code", "gender"), "varchar(50)"),
    **dict.fromkeys(("dbsource", "first_careunit", "last_careunit", "newbottle", "language"), "varchar(50)"),
    **dict.fromkeys(("admission_type", "admission_location", "discharge_location"), "varchar(50)"),
    **dict.fromkeys(("religion", "marital_status"), "varchar(50)"),
    "ethnicity": "varchar(200)",
}
ENTITIES = ("patients", "admissions", "icustays", "diagnoses_icd", "chartevents", "labevents", "outputevents")


@pytest.fixture(scope="module")
def from_files(demo: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    return read_mimic3(CsvFolder(demo), hours=24)


@pytest.fixture(scope="module")
def loaded(postgres: "Server", demo: Path) -> str:
    """The URL of a database with the demo."""
    import psycopg  # noqa: PLC0415 (of an extra)

    postgres.execute("CREATE DATABASE mimic")
    with psycopg.connect(postgres.url(database="mimic")) as connection:
        connection.execute("CREATE SCHEMA mimiciii")
        for entity in ENTITIES:
            path = next(path for path in demo.iterdir() if path.name.startswith(f"{entity.upper()}.csv"))
            with (gzip.open if path.suffix == ".gz" else open)(path, "rt", newline="") as file:
                names = next(csv.reader(file))
                number = {"value": "double precision"} if entity == "outputevents" else {}
                columns = ", ".join(f"{name} {(TYPES | number).get(name, 'int')}" for name in names)
                connection.execute(f"CREATE TABLE mimiciii.{entity} ({columns})".encode())
                with connection.cursor().copy(f"COPY mimiciii.{entity} FROM STDIN CSV".encode()) as copy:
                    while text := file.read(2**20):
                        copy.write(text)
    return postgres.url(database="mimic")


@pytest.mark.slow
def test_postgresql_gives_the_same_tables_as_the_files(
    loaded: str, from_files: tuple[pd.DataFrame, pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIMIC_URL", loaded)
    settings = PostgresSettings.model_validate(
        {"type": "postgresql", "url_env": "MIMIC_URL", "schema": "mimiciii", "preset": "mimic3"}
    )
    with open_source(settings, FileLayout()) as source:
        from_database = read_mimic3(source, hours=24)
    assert len(from_files[0]) == 100
    for expected, found in zip(from_files, from_database, strict=True):
        pd.testing.assert_frame_equal(expected, found)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["duckdb", "parquet"])
def test_other_sources_give_the_same_tables_as_the_files(
    kind: str, demo: Path, from_files: tuple[pd.DataFrame, pd.DataFrame], tmp_path: Path
) -> None:
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect(str(tmp_path / "mimic.duckdb")) as connection:
        for entity in ENTITIES:
            path = next(path for path in demo.iterdir() if path.name.startswith(f"{entity.upper()}.csv"))
            types = "" if entity != "diagnoses_icd" else ", types={'icd9_code': 'VARCHAR'}"
            connection.execute(f"CREATE TABLE {entity} AS FROM read_csv('{path}', sample_size=-1{types})")
            if kind == "parquet":
                connection.execute(f"COPY {entity} TO '{tmp_path / entity}.parquet'")
    settings = (
        EmbeddedSettings(type="duckdb", database=tmp_path / "mimic.duckdb", preset="mimic3")
        if kind == "duckdb"
        else FileSettings(type="parquet", folder=tmp_path, preset="mimic3")
    )
    with open_source(settings, FileLayout()) as source:
        found = read_mimic3(source, hours=24)
    for expected, got in zip(from_files, found, strict=True):
        pd.testing.assert_frame_equal(expected, got)
