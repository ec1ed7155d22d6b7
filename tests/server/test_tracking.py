"""Runs in MLflow: the figures of the page and what was published, in a real database; nothing else, and no network."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner, Result

from common.errors import ExitCode
from server.cli import app
from server.run_folder import hold
from server.snapshot import snapshot_of
from server.tracking import PUBLISHED, params_of, points_of
from tests.runs import cut, grow

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

pytest.importorskip("mlflow", reason="MLflow is not installed: the extra `mlflow`")
pytestmark = pytest.mark.filterwarnings("ignore")  # of MLflow and what it brings

LISTENING = """
import sys

def listen(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        print("ASKED", event, arguments[1:], file=sys.stderr, flush=True)

sys.addaudithook(listen)
from server.cli import app
app(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a database of MLflow, which takes it seconds to make."""
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def client() -> "MlflowClient":
    from mlflow.tracking import MlflowClient  # noqa: PLC0415 (after the command has said how it is used)

    return MlflowClient("sqlite:///mlflow.db")


def export(run: Path, *words: str) -> Result:
    return CliRunner().invoke(app, ["export-mlflow", str(run), *words], env={"MLFLOW_TRACKING_URI": ""})


def logged(result: Result) -> "Run":
    assert result.exit_code == 0, result.stderr
    return client().get_run(json.loads(result.stdout)["run_id"])


def history(run: "Run") -> list[tuple[str, int, float]]:
    found = [one for key in run.data.metrics for one in client().get_metric_history(run.info.run_id, key)]
    return sorted((one.key, one.step, one.value) for one in found)


def points(folder: Path) -> list[tuple[str, int, float]]:
    return sorted((one.key, one.step, one.value) for one in points_of(snapshot_of(folder, now=datetime.now(UTC))))


def test_it_is_made_in_a_database_here_and_asks_nobody(finished: Path, store: Path) -> None:
    # As an operator has it: MLflow keeps quiet by itself where tests run.
    told = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "CI", "MLFLOW"))}
    command = [sys.executable, "-c", LISTENING, "export-mlflow", str(finished), "--experiment", "quiet"]
    done = subprocess.run(command, cwd=store, env=told, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(" 3 files\n")
    assert (store / "mlflow.db").is_file()


@pytest.mark.usefixtures("store")
def test_a_published_run_has_the_figures_of_its_page_and_the_files_that_are_for_everybody(finished: Path) -> None:
    run = logged(export(finished, "--json"))
    found = snapshot_of(finished, now=datetime.now(UTC))
    assert run.data.params == params_of(found)
    assert run.data.params["study.digest"] == found["study"]["digest"]
    assert (run.data.params["study.epsilon"], run.data.params["study.delta"]) == ("1.0", "1e-05")
    assert run.data.params["sites"] == "site_01, site_02"
    assert history(run) == points(finished)
    assert {f"loss/{one['discriminator']}" for one in found["quality"]["losses"]} <= set(run.data.metrics)
    assert run.info.status == "FINISHED"
    assert client().get_experiment(run.info.experiment_id).name == found["study"]["name"]
    # What compares with real rows is in the folder, and stays there.
    assert (finished / "evaluation.json").exists()
    names = [one.path for one in client().list_artifacts(run.info.run_id)]
    assert sorted(names) == ["card.md", "certificate.json", "croissant.json"]
    for name in names:
        at = client().download_artifacts(run.info.run_id, name)
        assert Path(at).read_bytes() == (finished / name).read_bytes()


def test_every_figure_is_one_of_the_page(finished: Path) -> None:
    found = snapshot_of(finished, now=datetime.now(UTC))

    def numbers(value: object) -> set[float]:
        if isinstance(value, dict):
            return set().union(*map(numbers, value.values()))
        if isinstance(value, list):
            return set().union(*map(numbers, value))
        return {float(value)} if isinstance(value, int | float) else set()

    assert {value for _, _, value in points(finished)} <= numbers(found)


@pytest.mark.usefixtures("store")
def test_a_run_that_went_on_gets_what_it_lacks(finished: Path, tmp_path: Path) -> None:
    halfway = cut(finished, tmp_path / "run", 9)
    with hold(halfway):
        first = logged(export(halfway, "--json", "--experiment", "growing"))
    assert first.info.status == "RUNNING"
    assert client().list_artifacts(first.info.run_id) == []
    before = history(first)
    steps = len(list((finished / "checkpoints").iterdir()))
    for number in range(10, steps + 1):
        grow(finished, halfway, number)
    for name in PUBLISHED:
        shutil.copy(finished / name, halfway)
    again = logged(export(halfway, "--json", "--experiment", "growing"))
    assert (again.info.run_id, again.info.status) == (first.info.run_id, "FINISHED")
    after = history(again)
    assert len({(key, step) for key, step, _ in after}) == len(after) > len(before)
    assert set(before) <= set(after)
    assert set(points(finished)) <= set(after)
    assert json.loads(export(halfway, "--json", "--experiment", "growing").stdout)["points"] == 0


@pytest.mark.parametrize(
    "address",
    [
        "mlruns",
        "file:/tmp/mlruns",
        "postgresql://user:GEHEIM@127.0.0.1:1/mlflow",
        "http://user:GEHEIM@127.0.0.1:1",
        "sqlite:////proc/nowhere/mlflow.db?GEHEIM",
    ],
)
def test_an_address_that_does_not_take_it_is_one_line_without_a_password(address: str, finished: Path) -> None:
    check_line(export(finished, "--tracking-uri", address), "tracking-uri: ")


def test_where_mlflow_is_not_installed_its_extra_is_named(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "mlflow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    check_line(export(finished), "pip install 'privshare[mlflow]'")


def check_line(result: Result, words: str) -> None:
    assert (result.exit_code, result.stdout) == (ExitCode.OUTPUT_NOT_WRITABLE, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert "GEHEIM" not in line
