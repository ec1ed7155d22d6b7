"""What a live federation on this machine says at its end."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import PrivShareError
from simulations.live import LiveFederation, compared, show
from simulations.run import resumed
from tests.runs import choose_run, conduct


def test_the_ending_has_times_traffic_and_the_classifiers(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = json.loads((finished / "evaluation.json").read_bytes())
    calls = [{"site": "CN=site_01", "in": 5_000, "out": 60_000}, {"site": "CN=site_01", "in": 7_000, "out": 0}]
    (tmp_path / "proxy").mkdir()
    (tmp_path / "proxy" / "access.log").write_text("\n".join(map(json.dumps, calls)))
    run = replace(resumed(finished), folder=tmp_path)
    federation = LiveFederation(tmp_path, tmp_path / "study.yaml", {"site_01": {}})

    show(run, evaluation, {"begin": 3.0, "published": 45.5}, federation, plain=20.25)

    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "│ seconds until published │ 42.5 │" in said
    assert "│ seconds of the same run in one process │ 20.2 │" in said
    assert "│ site_01: kB a round, from and to │ 2, 10 │" in said  # six rounds
    assert evaluation["utility"]["tstr"]
    for classifier, scores in evaluation["utility"]["tstr"].items():
        assert any(f"{classifier} │ auc │ {scores['auc']:.4f}" in line for line in said)
    assert said[-1] == f"published {tmp_path}/run/synthetic.csv, {tmp_path}/run/certificate.json"


def test_a_live_run_is_compared_with_the_same_run_in_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = choose_run(tmp_path, noise_seed=5)
    conduct(run)
    monkeypatch.setattr("simulations.experiment.write_page", lambda *_: "")
    assert compared(replace(run, folder=tmp_path)) > 0
    shutil.rmtree(tmp_path / "in-process")
    with (run.folder / "synthetic.csv").open("a") as table:
        table.write("another,row\n")
    with pytest.raises(PrivShareError, match="not the one that one process makes"):
        compared(replace(run, folder=tmp_path))
