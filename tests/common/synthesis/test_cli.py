"""`privshare sample`: the table, its provenance, and one line for what cannot be."""

import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from common.errors import ExitCode
from common.synthesis.release import FACTS, WEIGHTS
from simulations.cli import app
from tests.common.synthesis.releases import WINDOWS, make_release, study_of
from tests.common.synthesis.test_release import written


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(make_release(), tmp_path_factory.mktemp("release"))


def sample(release: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["sample", str(release), *options])


def test_the_table_is_written_and_says_where_it_is_from(release: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "rows.csv"
    asked = ["--where", "age>=30", "--where", "pay>0", "--proportions", "ill=yes:0.25,no:0.75"]
    found = sample(release, "-n", "400", *asked, "--seed", "7", "-o", str(out), "--json")
    assert found.exit_code == 0, found.stderr
    table = pd.read_csv(out)
    assert len(table) == 400
    assert (table["age"] >= 30).all()
    assert (table["ill"] == "yes").sum() == 100
    facts = json.loads(found.stdout)
    assert facts == json.loads((tmp_path / "new" / "rows.csv.provenance.json").read_text())
    assert (facts["seed"], facts["rows"], facts["where"]) == (7, 400, ["age>=30", "pay>0"])
    assert facts["release"] == {
        name: hashlib.sha256((release / name).read_bytes()).hexdigest() for name in (WEIGHTS, FACTS)
    }
    delivered = {one["group"]: (one["requested"], one["delivered"]) for one in facts["delivered"]}
    assert delivered == {"age>=30": (1, 1), "pay>0": (1, 1), "ill=yes": (0.25, 0.25), "ill=no": (0.75, 0.75)}


def test_what_was_asked_for_and_delivered_is_shown(release: Path, tmp_path: Path) -> None:
    found = sample(release, "-n", "200", "--proportions", "ill=yes:0.5,no:0.5", "-o", str(tmp_path / "a.parquet"))
    assert found.exit_code == 0, found.stderr
    assert found.stdout.count("50.00%") == 4
    assert pd.read_parquet(tmp_path / "a.parquet")["ill"].value_counts().tolist() == [100, 100]


def test_means_are_shown_and_noted_beside_shares(release: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    asked = ["--mean", "age=50", "--sd", "age=15", "--mean", "pay=1", "--proportions", "ill=yes:0.5,no:0.5"]
    found = sample(release, "-n", "2000", *asked, "--seed", "7", "-o", str(out))
    assert found.exit_code == 0, found.stderr
    table, facts = pd.read_csv(out), json.loads((tmp_path / "rows.csv.provenance.json").read_text())
    noted = [(one["group"], one["kind"], one["requested"]) for one in facts["delivered"][2:]]
    assert noted == [("mean age=50", "mean", 50.0), ("sd age=15", "sd", 15.0), ("mean pay=1", "mean", 1.0)]
    delivered = [one["delivered"] for one in facts["delivered"][2:]]
    assert delivered == pytest.approx([table.age.mean(), table.age.std(ddof=0), table.pay.mean()])
    assert delivered == pytest.approx([50, 15, 1], abs=0.5)
    assert f"{delivered[0]:.6g}" in found.stdout
    assert not facts["match"]


def test_matching_is_noted(release: Path, tmp_path: Path) -> None:
    found = sample(release, "-n", "50", "--match", "--seed", "7", "-o", str(tmp_path / "rows.csv"), "--json")
    assert found.exit_code == 0, found.stderr
    assert json.loads(found.stdout)["match"]


def test_windows_are_a_second_table_with_the_same_keys(tmp_path: Path) -> None:
    folder = written(make_release(study_of(windows=WINDOWS)), tmp_path / "release")
    found = sample(folder, "-n", "9000", "--where", "age>=30", "-o", str(tmp_path / "a.csv"))
    assert found.exit_code == 0, found.stderr
    records, series = pd.read_csv(tmp_path / "a.csv"), pd.read_csv(tmp_path / "a-windows.csv")
    assert records["person"].is_unique
    assert len(records) == 9000
    assert set(series["person"]) == set(records["person"])


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--where", "age>=200"], ExitCode.CONDITION_INVALID, "error: age>=200: the column holds no such value"),
        (["--proportions", "ill=yes:0.5"], ExitCode.CONDITION_INVALID, "error: ill: the shares add up to 0.5"),
        (["--mean", "age"], ExitCode.CONDITION_INVALID, "error: mean age: expected a column, =, and a number"),
        (["--mean", "age=99"], ExitCode.CONDITION_INVALID, "error: mean age=99: values that the column and the rest"),
        (["--sd", "age=9"], ExitCode.CONDITION_INVALID, "error: sd age: ask for the mean of age too"),
        (["--mean", "age=89.9"], ExitCode.CONDITION_UNSUPPORTED, "error: mean age=89.9: the generator cannot make"),
        (
            ["--match", "--where", "age>3"],
            ExitCode.CONDITION_INVALID,
            "error: match: goes with proportions of ill alone",
        ),
        (["--device", "abacus"], ExitCode.USAGE, "error: device=abacus: not a device of this machine"),
        (["--seed", str(2**70)], ExitCode.CONDITION_INVALID, "expected from 0 to 4294967295"),
        (["-o", "a.xlsx"], ExitCode.OUTPUT_NOT_WRITABLE, "error: a.xlsx: expected a name that ends in"),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_nothing(
    options: list[str], code: ExitCode, says: str, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = sample(release, *options)
    assert found.exit_code == code
    assert says in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_release_is_refused(tmp_path: Path) -> None:
    found = sample(tmp_path, "-o", str(tmp_path / "a.csv"))
    assert found.exit_code == ExitCode.RELEASE_INVALID
    assert "generator.json: cannot be read" in found.stderr
