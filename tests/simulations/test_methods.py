"""Every method runs over the same federation and is measured alike; what promises nothing says so, and gates hold."""

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from threadpoolctl import threadpool_limits
from typer.testing import CliRunner, Result

from common.privacy.ledger import read_ledger
from simulations import methods
from simulations.baselines import gan
from simulations.experiment import Scenario, choose, divide
from simulations.methods import CLASSIFIERS, PRIVATE, Method
from simulations.run import app
from tests.simulations.test_bad_windows import EVENTS, STUDY, records, series

PLAIN = STUDY.replace("windows: WINDOWS\n", "")
SITES = ("site_01", "site_02")


def run(folder: Path, *options: str, study: str = PLAIN) -> Result:
    (folder / "study.yaml").write_text(study, encoding="utf-8")
    records().to_csv(folder / "table.csv", index=False)
    files = {"--study": "study.yaml", "--data": "table.csv", "--out": "run"}
    if "windows" in study:
        series().to_csv(folder / "series.csv", index=False)
        files["--series"] = "series.csv"
    arguments = [part for option, name in files.items() for part in (option, str(folder / name))]
    with threadpool_limits(1):
        return CliRunner().invoke(app, [*arguments, "--sites", "2", "--threads", "1", *options])


def evaluation(folder: Path) -> Any:
    return json.loads((folder / "run" / "evaluation.json").read_text())


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A standard GAN trains for minutes; here it need not learn anything."""
    monkeypatch.setattr(methods.gan, "adapt", functools.partial(gan.adapt, rounds=1, local_steps=1))


@pytest.mark.parametrize("method", list(Method))
def test_every_method_ends_in_an_evaluation_and_a_page(method: Method, tmp_path: Path) -> None:
    result = run(tmp_path, "--method", method, "--evaluation", "quick")
    assert result.exit_code == 0, result.stderr
    found, folder = evaluation(tmp_path), tmp_path / "run"
    assert found["method"] == method
    assert (folder / "report.html").stat().st_size > 10_000
    assert set(found["utility"]["tstr"]) >= ({"released"} if method in CLASSIFIERS else {"gradient_boosting"})
    assert {"membership", "attributes"} <= set(found["attacks"])
    assert found["claim"]["epsilon"] == (1 if method in PRIVATE else None)
    # What is not private, or is no table, is not published as if it were.
    published = method in (Method.PRIVSHARE, Method.LOCAL_ONLY)
    assert (folder / "certificate.json").exists() == (folder / "synthetic.csv").exists() == published
    assert ("NO GUARANTEE" in result.stdout) == (not published)


@pytest.mark.parametrize("method", [Method.FL_DP, Method.DP_LR])
def test_a_private_baseline_spends_what_the_ledger_allows_and_no_more(method: Method, tmp_path: Path) -> None:
    assert run(tmp_path, "--method", method, "--evaluation", "basic").exit_code == 0
    last = json.loads((tmp_path / "run" / "rounds.jsonl").read_text().splitlines()[-1])
    assert 0.99 < last["budget_used"] <= 1
    for site in SITES:
        (charges,) = read_ledger(tmp_path / "run" / "ledger" / f"{site}.jsonl").charges.values()
        assert len(charges) > 1


def test_one_site_alone_is_one_site_and_attacked_as_such(tmp_path: Path) -> None:
    assert run(tmp_path, "--method", "local-only", "--seed", "1").exit_code == 0
    assert [path.name for path in (tmp_path / "run" / "sites").iterdir()] == ["site_02"]
    found = evaluation(tmp_path)
    assert found["units"]["train"] == 24


def test_one_site_alone_is_attacked_beside_others_of_the_same_site(tmp_path: Path) -> None:
    base = choose(
        scenario=Scenario.BANK,
        study=None,
        data=None,
        series=None,
        units=800,
        sites=4,
        seed=1,
        method=Method.LOCAL_ONLY,
        out=tmp_path,
    )
    divided, whole = divide(base), divide(replace(base, options=replace(base.options, method="privshare")))
    assert list(divided.sites) == ["site_02"]
    share = divided.members.count / whole.members.count
    assert 0.1 < share < 0.45
    assert divided.control.count / whole.control.count == pytest.approx(share, rel=0.5)
    # It is measured by how well it serves everybody.
    assert divided.test.count == whole.test.count == 64


def test_the_level_says_how_much_is_measured(tmp_path: Path) -> None:
    assert run(tmp_path, "--evaluation", "basic", study=STUDY.replace("WINDOWS", EVENTS)).exit_code == 0
    basic = evaluation(tmp_path)
    with threadpool_limits(1):
        again = CliRunner().invoke(
            app, ["--resume", str(tmp_path / "run"), "--threads", "1", "--evaluation", "standard"]
        )
    assert again.exit_code == 0, again.stderr
    standard = evaluation(tmp_path)
    assert {"attacks", "controls", "stages"} & set(basic) == set()
    assert {"attacks", "controls", "stages"} <= set(standard)
    assert "frechet" not in basic["fidelity"]
    assert "frechet" in standard["fidelity"]
    assert standard["utility"]["draws"]["gradient_boosting_static"]["auc"]["n"] <= 4
    assert basic["utility"]["tstr"] == standard["utility"]["tstr"]
    assert [stage["stage"] for stage in standard["stages"]] == [1]
    assert standard["stages"][0]["epsilon"] == pytest.approx(1, abs=1e-3)


def test_a_gate_that_fails_stops_publication_and_says_which(tmp_path: Path) -> None:
    result = run(tmp_path, study=PLAIN + "gates: {misfit: 1.0000001, monitor_auc: 0.999}\n")
    assert result.exit_code == 27
    assert "gates.monitor_auc: " in result.stderr
    assert "nothing was published" in result.stderr
    folder = tmp_path / "run"
    assert not any((folder / name).exists() for name in ("synthetic.csv", "certificate.json", "generator"))
    # What was found is there, and what was spent stays spent.
    closed = [gate["id"] for gate in evaluation(tmp_path)["gates"] if not gate["pass"]]
    assert "monitor_auc" in closed
    assert (folder / "report.html").exists()
    assert all(read_ledger(folder / "ledger" / f"{site}.jsonl").charges for site in SITES)


def test_the_certificate_shows_the_gates_that_were_passed(tmp_path: Path) -> None:
    result = run(tmp_path, study=PLAIN + "gates: {misfit: 1000000}\n")
    assert result.exit_code == 0, result.stderr
    gates = json.loads((tmp_path / "run" / "certificate.json").read_text())["gates"]
    assert [gate["id"] for gate in gates] == ["misfit"]
    assert gates[0]["pass"]
