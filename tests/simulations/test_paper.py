"""The paper's tables: every method beside the others, means of what was measured, nothing run twice."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from common.evaluation.figures import Figure
from simulations.cli import app
from simulations.methods import Method
from simulations.paper_cells import ATTACKS, QUALITY, USEFULNESS, Cell, Setting, at, summarise
from simulations.public import Source
from tests.simulations.test_bad_windows import GRID, STUDY, records, series
from tests.simulations.test_methods import PLAIN

METHODS = ("privshare", "dp-lr", "real")


def tables(folder: Path, *options: str) -> Result:
    (folder / "study.yaml").write_text(PLAIN, encoding="utf-8")
    records().to_csv(folder / "table.csv", index=False)
    methods = [part for method in METHODS for part in ("--method", method)]
    arguments = ["--study", "study.yaml", "--data", "table.csv", "--out", "tables"]
    placed = [str(folder / word) if word in ("study.yaml", "table.csv", "tables") else word for word in arguments]
    fast = ["--sites", "2", "--threads", "1", "--evaluation", "quick", "--curve-seeds", "0"]
    return CliRunner().invoke(app, ["tables", *placed, *methods, *fast, *options])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("paper")
    result = tables(folder, "--seeds", "2")
    assert result.exit_code == 0, result.stderr
    assert (folder / "tables" / "paper.md").read_text() in result.stdout
    return folder


def evaluation(folder: Path, method: str, seed: int) -> Any:
    return json.loads((folder / "tables" / "tiny" / method / str(seed) / "evaluation.json").read_text())


def test_every_table_and_figure_is_there_and_the_paper_stands_beside(made: Path) -> None:
    text = (made / "tables" / "paper.md").read_text()
    for heading in ("Table 1", "Table 2", "Table 4", "Figure 3", "Figure 4", "Usefulness", "Controllable"):
        assert heading in text
    for method in METHODS:
        assert f"| tiny | {method} |" in text
    assert "privshare tables --study tiny.yaml --sites 2 --seeds 2 --curve-seeds 0 --evaluation quick" in text
    for name in ("figure-3", "figure-4"):
        assert (made / "tables" / f"{name}.svg").read_text().startswith("<?xml")
        assert (made / "tables" / f"{name}.png").read_bytes()[1:4] == b"PNG"


def test_a_cell_is_the_mean_of_its_runs(made: Path) -> None:
    auc = next(cell for cell in USEFULNESS if cell.id == "auc")
    found = [evaluation(made, "real", seed) for seed in (0, 1)]
    values = [one["utility"]["tstr"]["gradient_boosting"]["auc"] for one in found]
    figure = summarise(found, auc)
    assert figure.value == pytest.approx(sum(values) / 2)
    assert f"| {sum(values) / 2:.3f}" in (made / "tables" / "paper.md").read_text()


def test_the_csv_has_every_cell_of_every_run(made: Path) -> None:
    with (made / "tables" / "paper.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["method"], row["seed"]) for row in rows} == {(method, seed) for method in METHODS for seed in "01"}
    one = next(row for row in rows if (row["method"], row["seed"], row["cell"]) == ("real", "1", "fd"))
    value = evaluation(made, "real", 1)["fidelity"]["frechet"]["distance"]["value"]
    assert one["value"] == ("" if value is None else f"{value:.6g}")


def test_what_is_there_is_not_run_again(made: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (made / "tables" / "tiny").rglob("evaluation.json")}
    result = tables(made, "--seeds", "2")
    assert result.exit_code == 0, result.stderr
    assert {path: path.stat().st_mtime_ns for path in (made / "tables" / "tiny").rglob("evaluation.json")} == before


@pytest.mark.parametrize(
    ("option", "value"), [("--scenario", "moon"), ("--method", "magic"), ("--evaluation", "basic")]
)
def test_an_unknown_name_is_refused_with_those_that_are_known(option: str, value: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["tables", "--out", str(tmp_path), option, value])
    assert result.exit_code == 2
    assert f"{option.removeprefix('--')}={value}: expected one of " in result.stderr


@pytest.mark.parametrize(
    "options",
    [("--scenario", "bank"), ("--public", "."), ("--source", "adult")],
    ids=["a scenario and a study", "a study and public data", "a data set without its folder"],
)
def test_what_is_run_is_said_once(options: tuple[str, ...], tmp_path: Path) -> None:
    result = tables(tmp_path, *options)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "--scenario" in line or "--public" in line


def test_public_data_sets_are_run_from_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plain.yaml").write_text(PLAIN, encoding="utf-8")
    windowed = STUDY.replace("WINDOWS", GRID).replace("name: tiny", "name: in-steps")
    (tmp_path / "windows.yaml").write_text(windowed, encoding="utf-8")
    (tmp_path / "data").mkdir()
    records().to_csv(tmp_path / "data" / "plain.csv", index=False)
    (tmp_path / "data" / "raw.txt").write_text("as it was published")

    def convert(files: Sequence[Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
        assert [file.read_text() for file in files] == ["as it was published"]
        return records(), series()

    found = {
        "plain": Source(str(tmp_path / "plain.yaml"), ("plain.csv",)),
        "windows": Source(str(tmp_path / "windows.yaml"), ("raw.txt",), convert),
    }
    for module in ("simulations.public", "simulations.paper"):
        monkeypatch.setattr(f"{module}.SOURCES", found)
    arguments = ["tables", "--public", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--method", "real"]
    fast = ["--sites", "2", "--seeds", "1", "--threads", "1", "--evaluation", "quick", "--curve-seeds", "0"]
    result = CliRunner().invoke(app, [*arguments, *fast])
    assert result.exit_code == 0, result.stderr
    assert "| tiny | real |" in result.stdout
    assert "| in-steps | real |" in result.stdout
    assert "`privshare tables --public DATA --sites 2" in result.stdout
    one = CliRunner().invoke(app, [*arguments, *fast, "--source", "plain"])
    assert "| in-steps | real |" not in one.stdout
    assert "`privshare tables --public DATA --source plain --sites 2" in one.stdout


def test_a_data_set_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    arguments = ["tables", "--public", str(tmp_path), "--out", str(tmp_path / "out")]
    for source in ("adult", "physionet2012"):
        result = CliRunner().invoke(app, [*arguments, "--source", source, "--method", "real", "--seeds", "1"])
        assert result.exit_code not in (0, 1)
        (line,) = [line for line in result.stderr.splitlines() if " s  " not in line]
        assert str(tmp_path) in line


def test_a_classifier_has_no_quality_of_rows_and_says_so(made: Path) -> None:
    found = evaluation(made, "dp-lr", 0)
    assert all(cell.of(found) is None for cell in QUALITY)
    text = (made / "tables" / "paper.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("| tiny | dp-lr |") and "n/a" in line)
    assert line


def test_membership_is_the_strongest_of_all_attacks() -> None:
    def attack(value: float | None) -> dict[str, Any]:
        return {"populations": {"everyone": {"tpr_at_10": {"value": value}}}}

    found = {"attacks": {"membership": {"a": attack(0.12), "b": attack(None), "c": attack(0.2)}}}
    success = next(cell for cell in ATTACKS if cell.id == "mia")
    assert success.of(found) == 0.2
    assert success.of({}) is None


def test_a_path_that_leads_nowhere_is_no_figure() -> None:
    assert at({"a": {"b": 1}}, "a/b") == 1.0
    assert at({"a": {"b": None}}, "a/b") is None
    assert at({"a": {}}, "a/b") is None
    assert summarise([{}], Cell("x", "x", "a/b")) == Figure(n=0, reason="no run has this figure")


def test_runs_of_another_epsilon_have_a_folder_of_their_own() -> None:
    folders = {Setting("bank", Method.PRIVSHARE, epsilon).folder for epsilon in (None, 0.5, 2.0)}
    assert {str(folder) for folder in folders} == {"bank/privshare", "bank/privshare-0.5", "bank/privshare-2"}
