"""What README.md tells a newcomer to type is typed here."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_commands_for_a_table_of_ones_own_lead_to_a_synthetic_table(tmp_path: Path) -> None:
    block = re.search(r"### Your own table\n\n```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    init, check, run = (shlex.split(line, comments=True) for line in block[1].splitlines())
    # So many that noise hides none of what is asked for below.
    rows = "".join(f"{17 + i % 60},{'fm'[i % 2]},{'ny'[i % 60 > 30]}\n" for i in range(4000))
    (tmp_path / "table.csv").write_text(f"age,sex,ill\n{rows}")

    _type(init, tmp_path)
    draft = tmp_path / "study.yaml"
    assert "REPLACE" in draft.read_text()
    draft.write_text(draft.read_text().replace("draft: true\n", ""))
    assert "valid" in _type(check, tmp_path)
    _type([*run, "--quick"], tmp_path)

    assert (tmp_path / "run" / "synthetic.csv").read_text().startswith("age,sex,ill\n")
    block = re.search(r"### Rows on demand\n\n```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    _type(shlex.split(block[1]), tmp_path)
    wanted = pd.read_csv(tmp_path / "wanted.csv")
    assert len(wanted) == 5000
    assert wanted["age"].min() >= 40
    assert (wanted["ill"] == "y").sum() == 2500


def test_the_test_command_of_the_readme_is_what_continuous_integration_runs() -> None:
    assert "make test " in (ROOT / "README.md").read_text()
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text()


def _type(command: list[str], folder: Path) -> str:
    """Run a command of the README, its paths to the environment and the repository made absolute."""
    program, *arguments = command
    binaries = Path(sys.executable).parent
    program = str(binaries / Path(program).name)
    arguments = [str(ROOT / word) if word.startswith("simulations/") else word for word in arguments]
    ran = subprocess.run(
        [program, *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout
