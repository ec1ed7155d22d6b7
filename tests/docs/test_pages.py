"""What pages name is there, and what they quote is what the program says."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from common.errors import ExitCode
from simulations.cli import app
from tests.common.synthesis.releases import make_release, study_of
from tests.common.synthesis.test_release import written
from tests.docs.commands import PAGES, ROOT
from tests.docs.test_commands import COLUMNS

NAMED = re.compile(r"`((?:client|common|deploy|docs|server|simulations|tests)/[\w./-]+\.\w+)`")


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_is_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = NAMED.findall(text)
    assert [name for name in named if not (ROOT / name).is_file()] == []
    # A bare name stands for a file beside the one before it.
    beside = re.findall(r"`(test_\w+\.py)`", text)
    assert [name for name in beside if not list((ROOT / "tests").rglob(name))] == []


@pytest.mark.parametrize(("page", "at_least"), [("docs/guarantee.md", 20), ("docs/threats.md", 60)])
def test_a_page_of_claims_names_what_carries_them(page: str, at_least: int) -> None:
    assert len(NAMED.findall((ROOT / page).read_text(encoding="utf-8"))) > at_least


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_to_a_page_and_a_heading(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), f"{page}: {link}"
        assert not anchor or anchor in anchors_of(target), f"{page}: {link}"


def anchors_of(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_on_the_map() -> None:
    text = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    linked = {((ROOT / "docs") / link.partition("#")[0]).resolve() for link in re.findall(r"\]\(([^)\s]+)\)", text)}
    pages = {path.resolve() for path in (ROOT / "docs").rglob("*.md")} - {(ROOT / "docs" / "README.md").resolve()}
    assert pages - linked == set()


def test_what_the_page_of_epsilon_quotes_is_what_the_command_says() -> None:
    quoted = re.findall(r"```text\n(.*?)```", (ROOT / "docs" / "epsilon.md").read_text(encoding="utf-8"), re.DOTALL)
    typed = ("explain epsilon", "explain epsilon --sites 3 --prior 0.1")
    assert quoted == [CliRunner().invoke(app, shlex.split(words)).stdout for words in typed]


def test_codes_that_pages_give_a_meaning_are_codes() -> None:
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    named = {int(code) for code in re.findall(r"\bcodes? (\d+)\b", text)}
    assert len(named) > 3
    assert named <= {int(code) for code in ExitCode}


def test_the_analysis_of_several_draws_runs_as_written(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "consumer.md").read_text(encoding="utf-8")
    written(make_release(study_of(columns=COLUMNS, label={"column": "ill", "positive": "y"})), tmp_path / "RELEASE")
    for line in re.findall(r"^privshare (sample .*--out draw-.*)$", text, re.MULTILINE):
        drawn = shlex.split(line.replace("RELEASE", str(tmp_path / "RELEASE")).replace("draw-", f"{tmp_path}/draw-"))
        assert CliRunner().invoke(app, drawn).exit_code == 0
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{code}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Combined(estimate=")
