"""What a preset makes of a database, as files."""

import gzip
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.records import parse_text, read_series_text, read_text, read_windows
from common.errors import ExitCode
from common.study import load_study
from simulations.converters.preset import app
from tests.client.presets.test_mimic3 import HOSPITAL, STUDY


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The hand-written database in the official layout: packed or not, in capitals or not."""
    folder = tmp_path / "mimic"
    folder.mkdir()
    for number, (entity, table) in enumerate(HOSPITAL.items()):
        if number % 2:
            (folder / f"{entity}.csv").write_text(table.to_csv(index=False))
        else:
            text = table.rename(columns=str.upper).to_csv(index=False)
            (folder / f"{entity.upper()}.csv.gz").write_bytes(gzip.compress(text.encode()))
    path = tmp_path / "source.yaml"
    path.write_text(f"source: {{type: csv, folder: {folder}, preset: mimic3}}\n")
    return path


def test_the_files_fulfil_the_study(source: Path, tmp_path: Path) -> None:
    arguments = ["--source", str(source), "--study", str(STUDY), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    study = load_study(STUDY)
    records = parse_text(read_text(tmp_path / "out" / "table.csv", study), study)
    values, _ = read_windows(records, read_series_text(tmp_path / "out" / "series.csv", study), study)
    assert records["subject_id"].tolist() == ["1", "3", "4", "5"]
    assert values[0, :3, 0].tolist() == [82, 90, 70]
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == ExitCode.OUTPUT_NOT_WRITABLE
    assert "exists already; choose another --out" in again.output


def test_a_source_without_a_preset_and_a_database_without_an_entity_are_refused(source: Path, tmp_path: Path) -> None:
    rest = ["--study", str(STUDY), "--out", str(tmp_path / "out")]
    plain = tmp_path / "plain.yaml"
    plain.write_text("source: {type: csv, table: table.csv}\n")
    done = CliRunner().invoke(app, ["--source", str(plain), *rest])
    assert done.exit_code == ExitCode.STUDY_INVALID
    assert "source.preset: expected mimic3 or omop54" in done.output
    (tmp_path / "mimic" / "admissions.csv").unlink()
    done = CliRunner().invoke(app, ["--source", str(source), *rest])
    assert done.exit_code == ExitCode.TABLE_NOT_FOUND
    assert "no such table" in done.output
