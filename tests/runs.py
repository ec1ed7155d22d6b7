"""A tiny simulated run, and the same run as it stood after some of its steps."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from common.evaluation.report import Level
from simulations.experiment import Run, Scenario, choose, execute
from simulations.federation import Engine

STUDY = """\
schema: privshare.study/1
name: tiny
unit: {name: person, key: person}
label: {column: outcome, positive: bad}
columns:
  amount: {type: continuous, min: 0, max: 8, cells: 8}
  channel: {type: categorical, categories: [desk, phone, web]}
  outcome: {type: categorical, categories: [good, bad]}
privacy: {epsilon: 1, delta: 1.0e-5, holdout: 0.2}
noise: {rounds: 3}
rounds: {count: 6, trainers: 1, local_steps: 1, refine_steps: 2}
model: {latent: 2, width: 8, blocks: 1, batch: 8, max_bins: 4}
gates: {misfit: 1000, monitor_auc: 0.5}
"""


def choose_run(folder: Path, *, noise_seed: int | None = None) -> Run:
    """A run over two simulated sites in `folder`/run, not begun; noise from a seed makes runs comparable, and void."""
    random, people = np.random.default_rng(3), 240
    columns = {
        "person": [f"p{number}" for number in range(people)],
        "amount": random.uniform(0, 8, people).round(2),
        "channel": random.choice(["desk", "phone", "web"], people),
        "outcome": random.choice(["good", "bad"], people),
    }
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(columns).to_csv(folder / "table.csv", index=False)
    (folder / "study.yaml").write_text(STUDY, encoding="utf-8")
    return choose(
        scenario=Scenario.BANK,
        study=folder / "study.yaml",
        data=[folder / "table.csv"],
        series=None,
        units=None,
        sites=2,
        test_noise_seed=noise_seed,
        out=folder / "run",
    )


def conduct(run: Run, *, on_step: Callable[[dict[str, Any]], None] = lambda _: None, gated: bool = False) -> Path:
    """Run it to its end; its folder."""
    engine = Engine("process", "cpu", 1, run.options.test_noise_seed)
    with pytest.MonkeyPatch.context() as patch:
        # The report has tests of its own, and takes longer to draw than such a run.
        patch.setattr("simulations.experiment.write_page", lambda *_: "")
        execute(run, engine, torch.device("cpu"), on_step, level=Level.BASIC, gated=gated)
    return run.folder


def cut(run: Path, target: Path, steps: int) -> Path:
    """What the folder of a run held after some of its steps."""
    target.mkdir(parents=True, exist_ok=True)
    for name in ("study.lock.yaml", "options.json"):
        shutil.copyfile(run / name, target / name)
    for name in ("sites", "ledger"):
        shutil.copytree(run / name, target / name)
    for number in range(1, steps + 1):
        grow(run, target, number)
    return target


def grow(run: Path, target: Path, number: int) -> None:
    """What a step of a run adds to its folder, in the order in which the coordinator writes it."""
    (target / "checkpoints").mkdir(exist_ok=True)
    name = f"checkpoints/step-{number:05d}.safetensors"
    shutil.copyfile(run / name, target / name)
    lines = (run / "rounds.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (target / "rounds.jsonl.part").write_text("".join(lines[:number]), encoding="utf-8")
    (target / "rounds.jsonl.part").replace(target / "rounds.jsonl")
    events = (run / "events.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    ends = [at for at, line in enumerate(events) if json.loads(line)["event"] == "step"]
    (target / "events.jsonl").write_text("".join(events[: ends[number - 1] + 1]), encoding="utf-8")
