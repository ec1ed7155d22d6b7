"""`rehearse` runs a site's own code on simulated rows, within its own limits; the real table is never opened."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from client.cli import app
from common.errors import ExitCode
from common.privacy.noise import GaussianNoise
from tests.client.homes import PRIVACY, STUDY, Home, make_home, write_policy

LEAST = ("--canaries", "2", "--repetitions", "2")


def run(home: Home, *arguments: str) -> Result:
    options = ["--site", "north", "--sites", str(home.folder.parent)]
    return CliRunner().invoke(app, [*options, "rehearse", *arguments], env={"COLUMNS": "200"})


@pytest.fixture
def empty(tmp_path: Path) -> Home:
    """A site whose table is gone, with nearly half of the units held out, so that one is found soon."""
    home = make_home(tmp_path / "north", study={**STUDY, "privacy": {**PRIVACY, "holdout": 0.45}})
    (home.folder / "table.csv").unlink()
    return home


def test_a_rehearsal_needs_no_table_and_changes_nothing(empty: Home) -> None:
    write_policy(empty, max_epsilon=0.5)
    before = {path: path.read_bytes() for path in empty.folder.rglob("*") if path.is_file()}
    result = run(empty, "--quick", *LEAST, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert {finding["kind"] for finding in found["findings"]} >= {"one_way", "tables", "monitor", "canaries"}
    # What is claimed is what this site allows, not what the study asks for.
    claims = [finding["epsilon_claimed"] for finding in found["findings"]]
    assert max(claims) == pytest.approx(0.5, rel=1e-3)
    assert all(finding["epsilon_lower"] <= finding["epsilon_detectable"] for finding in found["findings"])
    assert {path: path.read_bytes() for path in empty.folder.rglob("*") if path.is_file()} == before


def test_a_contradiction_ends_with_its_code_and_is_named(empty: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    # A hundredth of the noise that the events state.
    draw = GaussianNoise.draw

    def weak(self: GaussianNoise, size: int, *, noise_stddev: float, context: str):  # type: ignore[no-untyped-def] # noqa: ANN202
        return draw(self, size, noise_stddev=noise_stddev / 100, context=context)

    monkeypatch.setattr(GaussianNoise, "draw", weak)
    result = run(empty, "--quick", "--canaries", "2", "--repetitions", "60")
    assert result.exit_code == ExitCode.AUDIT_CONTRADICTED == 23, result.output
    assert "CONTRADICTED" in result.stdout
