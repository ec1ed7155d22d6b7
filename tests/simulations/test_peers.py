"""The comparison with synthesizers of others: what they get, what comes back, and what the table says."""

import argparse
import json
import stat
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from common.data.windows import WindowedTable
from common.study import load_study
from simulations.peers import compare, synthesize
from simulations.peers.compare import Peer
from simulations.public import Files, Source

STUDIES = Path(compare.__file__).parents[1] / "studies"
STUDY = """\
schema: privshare.study/1
name: toy
unit: {name: person, key: person, max_records: 2, surplus: drop}
label: {column: ill, positive: "yes"}
columns:
  age: {type: integer, min: 0, max: 999}
  pay: {type: continuous, min: 0, max: 5000, special: [0], missing: true}
  kind: {type: categorical, categories: ["p,q", r, s]}
  ill: {type: categorical, categories: ["no", "yes"]}
privacy: {epsilon: 1, delta: 1.0e-5}
"""
COPIER = '#!/bin/sh\necho "$@" > "$(dirname "$5")/asked"\ncp "$3" "$5"\n'
"""A peer that publishes what it was given."""
BROKEN = '#!/bin/sh\necho "no such model" >&2\nexit 3\n'


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A toy data set of people with up to three rows, and two peers."""
    random = np.random.default_rng(0)
    rows, ages = 600, random.integers(0, 1000, 600)
    table = pd.DataFrame(
        {
            "person": np.repeat(np.arange(300), 2),
            "age": ages,
            "pay": np.where(random.random(rows) < 0.3, 0.0, random.random(rows) * 5000).round(3),
            "kind": random.choice(["p,q", "r", "s"], rows),
            "ill": np.where(ages > 500, "yes", "no"),
        }
    )
    (tmp_path / "data").mkdir()
    table.to_csv(tmp_path / "data" / "toy.csv", index=False)
    (tmp_path / "toy.yaml").write_text(STUDY)
    for name, script in (("copier", COPIER), ("broken", BROKEN)):
        python = tmp_path / "peers" / name / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(script)
        python.chmod(python.stat().st_mode | stat.S_IXUSR)
    for module in ("simulations.public", "simulations.peers.compare"):
        monkeypatch.setattr(f"{module}.SOURCES", {"toy": Source(str(tmp_path / "toy.yaml"), ("toy.csv",))})
    monkeypatch.setattr(compare, "PEERS", {"copy": Peer("copier", "A copier"), "fail": Peer("broken", "A failure")})
    done = tmp_path / "out" / "toy" / "0"
    done.mkdir(parents=True)
    ours = {
        "auc": {"gradient_boosting": 0.75, "logistic_regression": 0.5},
        "two_way": 0.25,
        "seconds": 7,
        "peak": 2**20,
    }
    (done / "privshare.json").write_text(json.dumps(ours))
    return tmp_path


def run(places: Path, *options: str) -> str:
    arguments = [str(places / "data"), "--out", str(places / "out"), "--environments", str(places / "peers"), *options]
    result = CliRunner().invoke(compare.app, [*arguments, "--seeds", "1"])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_peer_gets_one_record_a_unit_as_codes_below_the_public_sizes(places: Path) -> None:
    run(places, "--peer", "copy")
    folder = places / "out" / "toy" / "0"
    given, sizes = pd.read_csv(folder / "codes.csv"), json.loads((folder / "sizes.json").read_text())
    # Of 300 people a fifth is set aside; 32 cells, and beside them one for zero and one for missing.
    assert len(given) == 240
    assert sizes == {"age": 32, "pay": 34, "kind": 3, "ill": 2}
    assert all(given[name].between(0, size - 1).all() for name, size in sizes.items())
    asked = (folder / "asked").read_text()
    assert "--epsilon 1.0 --delta 1e-05 --rows 240 --seed 0" in asked


def test_rows_of_a_copier_are_scored_as_real_but_for_the_width_of_a_cell(places: Path) -> None:
    run(places, "--peer", "copy")
    folder = places / "out" / "toy" / "0"
    copied, real = (json.loads((folder / f"{one}.json").read_text()) for one in ("copy", "real"))
    assert real["two_way"] == 0
    assert 0 < copied["two_way"] < 0.1
    assert real["auc"]["gradient_boosting"] > 0.99
    assert copied["auc"]["gradient_boosting"] > 0.97
    assert copied["peak"] > 0


def test_what_is_there_is_not_made_again_and_a_failure_leaves_no_cell(places: Path) -> None:
    first = run(places)
    assert "fail failed or took longer" in first
    folder = places / "out" / "toy" / "0"
    assert not (folder / "fail.json").exists()
    assert "no such model" in (folder / "fail.log").read_text()
    (folder / "copy.csv").unlink()
    second = run(places)
    assert "copy" not in second.split("AUC of classifiers")[0]
    assert not (folder / "copy.csv").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--source", "toys"), "source=toys: expected one of toy"),
        (("--source", "none"), "source=none: expected one of toy"),
        (("--peer", "copier"), "peer=copier: expected one of copy, fail"),
        (("--environments", "nowhere"), "nowhere/copier: no such environment"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line_before_anything_is_made(
    places: Path, options: tuple[str, ...], said: str
) -> None:
    arguments = [str(places / "data"), "--out", str(places / "out"), "--environments", str(places / "peers"), *options]
    result = CliRunner().invoke(compare.app, [*arguments, "--seeds", "1"])
    assert result.exit_code > 0
    assert result.output.startswith(f"error: {said}")
    assert len(result.output.splitlines()) == 1
    assert not (places / "out" / "toy" / "0" / "real.json").exists()


def test_a_data_set_that_is_not_there_is_said_in_one_line(places: Path) -> None:
    (places / "data" / "toy.csv").unlink()
    result = CliRunner().invoke(compare.app, [str(places / "data"), "--out", str(places / "out"), "--peer", "none"])
    assert result.output.splitlines() == [f"error: {places / 'data' / 'toy.csv'}: no such table"]


def test_of_windows_the_mean_and_the_last_value_that_is_there_become_columns() -> None:
    study = load_study(STUDIES / "physionet2012.yaml")
    values = np.full((3, 12, 7), np.nan)
    values[0, 2:5, 0] = [60, 70, 110]
    values[1, 11, 0] = 90
    table = compare.flat(WindowedTable(pd.DataFrame({"Age": [40, 50, 60]}), values, np.full(3, 12)), study)
    assert table["HR mean"].tolist()[:2] == [80, 90]
    assert table["HR last"].tolist()[:2] == [110, 90]
    assert table.loc[2, ["HR mean", "HR last", "FiO2 last"]].isna().all()
    wide = compare.flatten(study)
    assert wide.windows is None
    assert [name for name in wide.columns if name not in study.columns] == [
        f"{channel} {part}" for channel in study.channels for part in ("mean", "last")
    ]
    assert (wide.columns["GCS mean"].min, wide.columns["GCS mean"].max) == (3, 15)


def test_the_table_says_mean_and_interval_over_seeds_and_how_far_behind_others_are(places: Path) -> None:
    for seed, area in enumerate((0.7, 0.8, 0.9)):
        folder = places / "out" / "toy" / str(seed)
        folder.mkdir(exist_ok=True)
        cell = {
            "auc": {"gradient_boosting": area, "logistic_regression": 0.5},
            "two_way": 0.25,
            "seconds": 9,
            "peak": 0,
        }
        (folder / "privshare.json").write_text(json.dumps(cell))
        if seed:
            behind = {"gradient_boosting": area - seed / 10, "logistic_regression": 0.6}
            (folder / "copy.json").write_text(json.dumps({**cell, "auc": behind}))
    table = compare.table_of(places / "out")
    # Student's t with two degrees of freedom, 4.303, times 0.1 / sqrt(3).
    assert "| **privshare**, 4 sites | 3 | 0.800 ± 0.248 |  | 0.500 ± 0.000 |  | 0.250 ± 0.000 | 9 |" in table
    # With the two seeds of both, 0.1 and 0.2 ahead: one degree of freedom, 12.706, times 0.0707 / sqrt(2).
    assert "| A copier | 2 | 0.700 ± 0.000 | +0.150 ± 0.635 | 0.600 ± 0.000 | -0.100 ± 0.000 |" in table


def test_every_peer_has_a_model_and_an_environment_that_make_peers_makes() -> None:
    assert list(compare.PEERS) == list(synthesize.PEERS)
    made = next(
        line for line in (STUDIES.parents[1] / "Makefile").read_text().splitlines() if line.startswith("peers:")
    )
    for peer in compare.PEERS.values():
        assert (STUDIES.parent / "peers" / f"{peer.environment}.txt").exists()
        assert f".venv-peers/{peer.environment}.stamp" in made


class Encoding:
    """What SmartNoise learns its codes with: keeps what it was fitted to."""

    fitted: pd.DataFrame

    @classmethod
    def create(cls, _: pd.DataFrame, **__: Any) -> "Encoding":
        return cls()

    def fit(self, table: pd.DataFrame) -> None:
        self.fitted = table


def test_smartnoise_learns_its_codes_from_their_public_sizes_and_its_budget_from_the_study(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Any] = []

    class Copier:
        def __init__(self, *of: str, **budget: float) -> None:
            self.of, self.budget = of, budget

        def fit(self, table: pd.DataFrame, transformer: Encoding) -> None:
            self.table, self.encoding = table, transformer
            made.append(self)

        def sample(self, rows: int) -> pd.DataFrame:
            return self.table.head(rows)

    for name, holds in (("snsynth", {"Synthesizer": SimpleNamespace(create=Copier)}), ("snsynth.transform", {})):
        module = ModuleType(name)
        vars(module).update(holds, TableTransformer=Encoding)
        monkeypatch.setitem(sys.modules, name, module)
    table = pd.DataFrame({"a": [1, 1, 1], "b": [0, 0, 0]})
    asked = argparse.Namespace(epsilon=1.0, delta=1e-5, rows=2, seed=0)
    drawn = synthesize.PEERS["dpctgan"](table, {"a": 3, "b": 2}, asked)
    # No column of the table holds all its codes; the encoding knows them.
    assert {name: sorted(set(made[0].encoding.fitted[name])) for name in table} == {"a": [0, 1, 2], "b": [0, 1]}
    assert (made[0].of, made[0].budget) == (("dpctgan",), {"epsilon": 1.0, "delta": 1e-5})
    assert len(drawn) == 2


def test_a_federation_with_other_rounds_is_of_the_same_study_but_for_them(tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(f"{STUDY}rounds: {{count: 10, local_steps: 3}}\n")
    task: Any = SimpleNamespace(given=Files(study, [tmp_path / "toy.csv"], None), seed=4)
    asked = {}
    for rounds in (None, 2):
        command, _ = compare.federated(rounds)(tmp_path, task)
        asked[rounds] = yaml.safe_load(Path(command[command.index("--study") + 1]).read_text())
        assert command[command.index("--seed") + 1] == "4"
    assert asked[None] == yaml.safe_load(study.read_text())
    assert asked[2] == {**asked[None], "rounds": {"count": 2, "local_steps": 3}}


def test_options_of_a_peer_reach_it(places: Path) -> None:
    folder = places / "out" / "toy" / "0"
    real = json.dumps({"auc": {}, "two_way": 0.0})
    (folder / "real.json").write_text(real)
    method = compare.alone("copy", places / "peers", "--aim-size", "1")
    compare.make("toy", 0, {"copy": method}, data=places / "data", folder=folder, limit=60)
    assert (folder / "asked").read_text().endswith("--seed 0 --aim-size 1\n")
    assert (folder / "real.json").read_text() == real
    assert (folder / "copy.json").exists()


def test_aim_gets_the_model_and_the_rounds_that_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []

    class Copier:
        def __init__(self, **options: Any) -> None:
            made.append(options)

        def fit(self, table: pd.DataFrame, **_: Any) -> None:
            self.table = table

        def generate(self, n_records: int, **_: Any) -> pd.DataFrame:
            return self.table.head(n_records)

    for name, holds in (("dpmm", {}), ("dpmm.pipelines", {"AIMPipeline": Copier})):
        module = ModuleType(name)
        vars(module).update(holds)
        monkeypatch.setitem(sys.modules, name, module)
    vars(sys.modules["dpmm"])["pipelines"] = sys.modules["dpmm.pipelines"]
    (tmp_path / "codes.csv").write_text("a\n0\n1\n")
    (tmp_path / "sizes.json").write_text('{"a": 2}')
    files = [str(tmp_path / name) for name in ("codes.csv", "sizes.json", "made.csv")]
    words = ["--epsilon", "1", "--delta", "1e-5", "--rows", "2", "--seed", "0"]
    for options in ([], ["--aim-size", "0.5", "--aim-rounds", "15"]):
        monkeypatch.setattr(sys, "argv", ["synthesize.py", "aim", *files, *words, *options])
        synthesize.main()
    assert [one["max_model_size"] for one in made] == [4, 0.5]
    assert [one["gen_kwargs"]["rounds"] for one in made] == [60, 15]
    assert (tmp_path / "made.csv").read_text() == "a\n0\n1\n"
