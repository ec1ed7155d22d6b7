"""Every exit code is explained, in one place, by commands and documents alike."""

import json
from pathlib import Path

import pytest
import yaml
from typer import Typer
from typer.testing import CliRunner, Result

from client.cli import app as site
from common import exits
from common.errors import ExitCode
from common.synthesis.cli import app as consumer

ROOT = Path(__file__).resolve().parents[2]
EXPLAIN = [(consumer, ["explain"]), (site, ["--site", "hospital_a", "explain"])]


def run(app: Typer, *words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def test_every_code_has_one_entry_and_no_other_has() -> None:
    said = yaml.safe_load((ROOT / "common" / "exits.yaml").read_text(encoding="utf-8"))
    assert set(said) == {code.name for code in ExitCode}
    for name, entry in said.items():
        assert set(entry) == {"means", "cause", "remedy"}, name
        for text in entry.values():
            assert text[0].isupper() or text[0] == "`", name
            assert text.endswith("."), name


def test_the_page_is_what_the_command_prints() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    printed = run(consumer, "explain", "codes")
    assert (printed.exit_code, printed.stdout) == (0, page), "privshare explain codes > docs/troubleshooting.md"
    headings = [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")]
    assert headings == [f"{int(code)} {code.name}" for code in sorted(ExitCode)]


@pytest.mark.parametrize(("app", "words"), EXPLAIN)
@pytest.mark.parametrize("text", ["24", "UNCONFIRMED", "unconfirmed"])
def test_a_code_is_explained_by_number_and_name_as_on_the_page(app: Typer, words: list[str], text: str) -> None:
    entry = exits.entries()[ExitCode.UNCONFIRMED]
    assert run(app, *words, text).stdout.strip() in (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert json.loads(run(app, *words, text, "--json").stdout) == entry.as_dict()


@pytest.mark.parametrize(("app", "words"), EXPLAIN)
def test_what_is_no_code_is_refused_in_one_line(app: Typer, words: list[str]) -> None:
    found = run(app, *words, "1")
    assert found.exit_code == ExitCode.USAGE
    assert found.stderr == "error: 1: expected an exit code, by number or name\n"


def test_commands_and_files_that_remedies_name_are_there() -> None:
    page = exits.as_page()
    named = {word for word in page.replace("`", " ").split() if word.startswith(("docs/", "deploy/"))}
    assert len(named) >= 3
    assert [name for name in named if not (ROOT / name).is_file()] == []
