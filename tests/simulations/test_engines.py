"""Both engines carry the same messages: under the same seeds they publish the same bytes.

Each runs as a command of its own, since Ray starts processes that should not outlive a test.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from common.errors import ExitCode
from simulations import run

pytestmark = pytest.mark.slow

SCRIPT = Path(run.__file__)
SITES = 3

STUDY = """\
schema: privshare.study/1
name: tiny
unit: {name: person, key: person, max_records: 2, surplus: drop}
label: {column: outcome, positive: bad}
columns:
  amount: {type: continuous, min: 0, max: 100, decimals: 1, cells: 16}
  visits: {type: integer, min: 0, max: 9, missing: true}
  channel: {type: categorical, categories: [desk, phone, web]}
  outcome: {type: categorical, categories: [good, bad]}
privacy: {epsilon: 1, delta: 1.0e-5, holdout: 0.2}
rounds: {count: 2, trainers: 2, local_steps: 2, refine_steps: 3}
model: {latent: 4, width: 8, blocks: 1, batch: 16, max_bins: 4}
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study and its table."""
    folder = tmp_path_factory.mktemp("inputs")
    random = np.random.default_rng(5)
    units = np.repeat(np.arange(300), random.integers(1, 4, size=300))
    table = pd.DataFrame(
        {
            "person": [f"P{unit}" for unit in units],
            "amount": np.round(random.uniform(0, 100, len(units)), 1),
            "visits": [str(number) if number < 10 else "" for number in random.integers(0, 11, len(units))],
            "channel": random.choice(["desk", "phone", "web"], len(units)),
            "outcome": random.choice(["good", "bad"], len(units), p=[0.7, 0.3]),
        }
    )
    table.to_csv(folder / "table.csv", index=False)
    (folder / "study.yaml").write_text(STUDY, encoding="utf-8")
    return folder


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=450,
    )


def conduct(engine: str, inputs: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """One run in test mode. Both runs have one name, since requests are named by it and seeded noise by requests."""
    asked = {
        "--study": inputs / "study.yaml",
        "--data": inputs / "table.csv",
        "--sites": SITES,
        "--engine": engine,
        "--seed": 4,
        "--test-noise-seed": 9,
        "--threads": 1,
        "--out": folder / engine / "run",
    }
    return command("--json", *(part for pair in asked.items() for part in pair))


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: it is the extra `ray`")
def test_flower_and_process_publish_the_same_bytes(inputs: Path, tmp_path: Path) -> None:
    for engine in ("process", "flower"):
        done = conduct(engine, inputs, tmp_path)
        assert done.returncode == 0, done.stderr
        # Whatever Flower and Ray log goes to stderr: stdout is the result alone.
        assert json.loads(done.stdout)["folder"] == str(tmp_path / engine / "run")
    process, flower = tmp_path / "process" / "run", tmp_path / "flower" / "run"
    for name in ("synthetic.csv", "certificate.json", "generator/generator.safetensors", "rounds.jsonl"):
        assert (process / name).read_bytes() == (flower / name).read_bytes(), name
    for number in range(SITES):
        name = f"ledger/site_{number + 1:02d}.jsonl"
        assert (process / name).read_bytes() == (flower / name).read_bytes(), name


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: it is the extra `ray`")
def test_a_site_that_cannot_start_ends_either_engine_with_its_code(inputs: Path, tmp_path: Path) -> None:
    assert conduct("process", inputs, tmp_path).returncode == 0
    ledger = tmp_path / "process" / "run" / "ledger" / "site_02.jsonl"
    ledger.write_text("no entry\n", encoding="utf-8")
    for engine in ("process", "flower"):
        resumed = command("--resume", ledger.parents[1], "--engine", engine)
        assert resumed.returncode == ExitCode.LEDGER_INVALID, resumed.stderr
        assert "Traceback" not in resumed.stderr
        (line,) = [line for line in resumed.stderr.splitlines() if line.startswith("error: ")]
        assert "site_02.jsonl" in line
