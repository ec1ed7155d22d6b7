"""The annex for an impact assessment: facts of a release that was verified, and marks where a human must add."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from common.errors import ExitCode
from common.synthesis.dpia import TO_FILL_IN, annex_facts, make_annex
from simulations.cli import app
from tests.tamperings import SITES, copy, read, site_key


def figure(value: float | None, **more: Any) -> dict[str, Any]:
    known = {"low": None, "high": None, "chance": None, "ceiling": None, "n": 100, "reason": None}
    return {"value": value, **known, **more}


def game(residual: float | None, members: float = 0.5) -> dict[str, Any]:
    return {"members": figure(members), "controls": figure(0.4), "residual": figure(residual, low=-0.01, high=0.03)}


ATTACKS = {
    "singling_out": {"univariate": game(0.002), "multivariate": game(0.011)},
    "linkability": {"nearest_1": game(None)},
    "attributes": {"amount": game(0.004), "a|b`c": game(0.02)},
    "inversion": {**game(-0.3), "excess": figure(-0.3)},
    "membership": {
        "dcr": {
            "adversary": "holder of the table",
            "populations": {"everyone": {"auc": figure(0.5), "advantage": figure(0.031, low=-0.01, high=0.07)}},
        }
    },
}


def with_evaluation(release: Path, folder: Path, **changed: Any) -> Path:
    target = copy(release, folder / "release")
    evaluation = {"study": read(release)["study"]["digest"], "level": "quick", "attacks": ATTACKS, **changed}
    (target / "evaluation.json").write_text(json.dumps(evaluation))
    return target


def dpia(*words: object) -> Result:
    return CliRunner().invoke(app, ["dpia", *map(str, words)])


def test_an_annex_states_what_the_certificate_does(published: Path) -> None:
    annex, certificate = make_annex(published), read(published)
    assert f"> {certificate['guarantee']['statement']}" in annex
    for name, site in certificate["sites"].items():
        assert f"| site `{name}` | signs as `{site['key']}` |" in annex
    for one in certificate["not_covered"]:
        assert f"- {one}" in annex
    for criterion in ("singling out", "linkability", "inference"):
        assert re.search(rf"^\| {criterion} \|.*\| not measured \|$", annex, re.MULTILINE)
    assert "The sites were simulated" in annex
    assert "There is no `evaluation.json`" in annex
    assert annex.count(TO_FILL_IN) > 15
    assert "(unbounded)" in annex
    assert "\n\n\n" not in annex


def test_somebody_at_every_site_has_the_composed_loss(published: Path, sampled: Path) -> None:
    for release in (published, sampled):
        facts = annex_facts(release)
        assert facts["guarantee"]["epsilon"] < facts["together"] < len(SITES) * facts["guarantee"]["epsilon"]


def test_odds_of_gaussian_privacy_are_not_claimed_of_a_study_that_counts_otherwise(
    published: Path, sampled: Path
) -> None:
    assert "Each is passed with a chance of" in make_annex(published)
    annex = make_annex(sampled)
    assert "Each is passed with a chance of" not in annex
    assert "(ε, δ) alone does not bound by δ" in annex


def test_each_risk_has_the_figure_of_the_attack_that_found_most(published: Path, tmp_path: Path) -> None:
    facts = annex_facts(with_evaluation(published, tmp_path))
    found = {risk.name: (risk.games, risk.worst, risk.residual.value) for risk in facts["risks"]}
    assert found == {
        "singling out": (2, "singling out, multivariate", 0.011),
        "linkability": (0, "", None),
        "inference": (3, "attributes, a|b`c", 0.02),
    }
    annex = make_annex(tmp_path / "release")
    (inference,) = re.findall(r"^\| inference \|.*$", annex, re.MULTILINE)
    assert "2.00 % (" in inference
    assert "beyond controls (`` attributes, a\\|b`c ``, the worst of 3 attacks; members 50" in inference
    assert re.search(r"^\| linkability \|.*\| not measured \|$", annex, re.MULTILINE)
    assert "advantage 3.1" in annex
    assert "Nobody\nsigns that file" in annex


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"study": "0" * 64}, "is of another study"),
        ({"study": None}, "is of another study"),
        ({"attacks": "x"}, "attacks: not as an evaluation has them"),
        ({"attacks": {"membership": 3}}, "attacks: not as an evaluation has them"),
    ],
)
def test_figures_of_another_study_or_of_no_evaluation_are_refused(
    published: Path, tmp_path: Path, changed: dict[str, Any], says: str
) -> None:
    found = dpia(with_evaluation(published, tmp_path, **changed))
    assert (found.exit_code, says in found.stderr) == (ExitCode.RELEASE_INVALID, True)


@pytest.mark.parametrize("attacks", [None, [], {"singling_out": 3}, {"attributes": {"a": {"residual": {}}}}])
def test_an_evaluation_without_attacks_measured_nothing(published: Path, tmp_path: Path, attacks: Any) -> None:
    facts = annex_facts(with_evaluation(published, tmp_path, attacks=attacks))
    assert not any(risk.is_measured for risk in facts["risks"])
    assert facts["strongest"] is None


def test_nothing_is_written_of_a_release_that_is_not_valid(published: Path, tmp_path: Path) -> None:
    release = copy(published, tmp_path / "release")
    (release / "synthetic.csv").write_text("amount\n1\n")
    found = dpia(release, "-o", tmp_path / "annex.md")
    assert found.exit_code == ExitCode.RELEASE_UNVERIFIED
    assert "an annex says nothing of a release that is not valid" in found.stderr
    assert not (tmp_path / "annex.md").exists()


def test_the_command_writes_the_annex_and_counts_what_is_left(published: Path, tmp_path: Path) -> None:
    out, key = tmp_path / "new" / "annex.md", read(published)["signature"]["key"]
    pinned = [f"--site-key={name}={site_key(name).public}" for name in SITES]
    found = dpia(published, "--key", key, *pinned, "-o", out, "--json")
    assert found.exit_code == 0, found.stderr
    said = json.loads(found.stdout)
    assert said == {"out": str(out), "to_fill_in": out.read_text().count(TO_FILL_IN), "annex": out.read_text()}
    assert "are those that signed" in out.read_text()
    assert "not all given" in dpia(published).stdout
