"""The open demo in PostgreSQL, with the types that MIT-LCP's scripts give its columns."""

import csv
import gzip
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from client.folders import CsvFolder
from client.presets.mimic3 import read_mimic3
from client.sources import PostgresSettings, open_source
from common.data.schema import FileLayout

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
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a PostgreSQL server that lives as long as the tests."""
    if shutil.which("initdb") is None:
        pytest.skip("no PostgreSQL: initdb is not installed")
    folder = tmp_path_factory.mktemp("postgresql")
    user = "postgres" if os.geteuid() == 0 else None  # a server refuses to be root
    if user is not None:
        shutil.chown(folder, user)
        for above in (folder.parent, folder.parent.parent):
            above.chmod(above.stat().st_mode | 0o111)
    options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
    for command in (
        ["initdb", "-D", str(folder / "data"), "-U", "ward", "-A", "trust", "-E", "UTF8", "--no-sync"],
        ["pg_ctl", "-D", str(folder / "data"), "-l", str(folder / "log"), "-w", "-o", options, "start"],
    ):
        subprocess.run(command, check=True, capture_output=True, user=user, cwd=folder)
    yield f"postgresql://ward@/postgres?host={folder}"
    stop = ["pg_ctl", "-D", str(folder / "data"), "-m", "immediate", "stop"]
    subprocess.run(stop, check=True, capture_output=True, user=user, cwd=folder)


@pytest.fixture(scope="module")
def loaded(server: str, demo: Path) -> str:
    psycopg = pytest.importorskip("psycopg")
    with psycopg.connect(server) as connection:
        connection.execute("CREATE SCHEMA mimiciii")
        for entity in ENTITIES:
            path = next(path for path in demo.iterdir() if path.name.startswith(f"{entity.upper()}.csv"))
            with (gzip.open if path.suffix == ".gz" else open)(path, "rt", newline="") as file:
                names = next(csv.reader(file))
                number = {"value": "double precision"} if entity == "outputevents" else {}
                columns = ", ".join(f"{name} {(TYPES | number).get(name, 'int')}" for name in names)
                connection.execute(f"CREATE TABLE mimiciii.{entity} ({columns})")
                with connection.cursor().copy(f"COPY mimiciii.{entity} FROM STDIN CSV") as copy:
                    while text := file.read(2**20):
                        copy.write(text)
    return server


def test_the_database_gives_the_same_tables_as_the_files(
    loaded: str,
    demo: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MIMIC_URL", loaded)
    settings = PostgresSettings.model_validate(
        {"type": "postgresql", "url_env": "MIMIC_URL", "schema": "mimiciii", "preset": "mimic3"}
    )
    with open_source(settings, FileLayout()) as source:
        from_database = read_mimic3(source, hours=24)
    from_files = read_mimic3(CsvFolder(demo, rows=100_000), hours=24)
    assert len(from_files[0]) == 100
    for expected, found in zip(from_files, from_database, strict=True):
        pd.testing.assert_frame_equal(expected, found)
