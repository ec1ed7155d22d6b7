"""Every command of README.md, docs/ and deploy/RUNBOOK.md is run, or at least read by the parser of its program.

A command that nobody knows, an option that does not exist, a value of the wrong kind: each fails here, on any page.
"""

import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import typer
from typer.testing import CliRunner

from client.cli import app as site
from simulations.cli import app as privshare
from tests.common.synthesis.releases import make_release, study_of
from tests.common.synthesis.test_release import written
from tests.docs.commands import PAGES, ROOT, SYSTEM, Command, commands_of, inline_of, parse
from tests.tamperings import PLAIN, copy, read

OURS = {"privshare": privshare, "privshare-client": site}
STAGE = {
    "privshare init": "desk",
    "privshare check": "desk",
    "privshare budget": "desk",
    "privshare provision": "desk",
    "privshare sample": "sampled",
    "privshare verify": "desk",
    "privshare dpia": "desk",
    "privshare explain": "desk",
    "privshare admit": "enrolled",
    "privshare members": "admitted",
    "privshare revoke": "admitted",
    "privshare renew": "admitted",
    "privshare proxy": "admitted",
    "privshare-client init": "provisioned",
    "privshare-client join": "admitted",
    "privshare-client approve": "joined",
    "privshare-client rotate": "joined",
    "privshare-client explain": "desk",
    "privshare-client preview": "joined",
    "privshare-client withdraw": "joined",
}
"""Commands that are run, each in a copy of the folder that they need."""
PARSED = {
    "privshare start": "needs sites that run",
    "privshare audit": "takes minutes; tests/client/test_audit.py",
    "privshare tables": "takes hours",
    "privshare export-mlflow": "needs a run, and MLflow; tests/server/test_tracking.py",
    **dict.fromkeys(
        (f"privshare {verb}" for verb in ("status", "pause", "resume", "stop", "dashboard")),
        "needs a run; tests/server/test_run_cli.py",
    ),
}
"""Commands that are only parsed. Beside them: what needs a site or a coordinator's home, and is not in STAGE."""
HELD_BACK = {"--help"}
PLACEHOLDER = re.compile(r"\b[A-Z]{1,}\b")
COMMANDS = [one for page in PAGES for one in commands_of(page, (ROOT / page).read_text(encoding="utf-8"))]
INLINE = [one for page in PAGES for one in inline_of(page, (ROOT / page).read_text(encoding="utf-8"))]
TYPED_WHOLE = "docs/two-sites.md"
"""A page whose commands belong together: tests/network/test_two_sites_page.py types all of it."""
SAVED = "patients.py"
"""A script that a reader saves from that page."""
TO_RUN = list({one.words: one for one in COMMANDS if one.program in OURS and one.page != TYPED_WHOLE}.values())


# --- read by the parser


@pytest.mark.parametrize("page", PAGES)
def test_the_parser_of_each_program_knows_the_commands_of_a_page(page: str) -> None:
    for command in (one for one in COMMANDS if one.page == page):
        check(command, whole=True)
    for command in (one for one in INLINE if one.page == page):
        check(command, whole=False)


def check(command: Command, *, whole: bool) -> None:
    """Fails where the program would not take it."""
    program = command.program
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {one for one in command.arguments if "=" not in one} <= set(targets), command
    elif program.endswith(".sh") or program == "verify_release.py":
        assert list((ROOT / "deploy").rglob(Path(program).name)), command
    elif program.endswith(".py") or program in OURS:
        app = OURS.get(program) or app_of(program)
        if app is None or HELD_BACK & set(command.arguments):
            return
        fault = fault_of(app, command.arguments, whole=whole)
        assert fault is None, f"{command}: {fault}"
    else:
        assert program in SYSTEM, f"{command}: no such program"


def fault_of(app: typer.Typer, arguments: list[str], *, whole: bool) -> str | None:
    """What a parser has against arguments; a part of a command may lack values, and hold words that stand for some."""
    try:
        parse(app, arguments, whole=whole)
    except (click.BadOptionUsage, click.BadParameter) as error:
        is_part = isinstance(error, click.BadOptionUsage) or PLACEHOLDER.search(" ".join(arguments))
        return None if is_part and not whole else error.format_message()
    except click.ClickException as error:
        return error.format_message()
    return None


def app_of(script: str) -> typer.Typer | None:
    """Of a script of the repository; None where it has no options at all."""
    if script == SAVED:
        return None
    assert (ROOT / script).is_file(), script
    found = getattr(importlib.import_module(script.removesuffix(".py").replace("/", ".")), "app", None)
    assert found is None or isinstance(found, typer.Typer)
    return found


@pytest.mark.parametrize(
    "line",
    [
        "privshare chekc study.yaml",
        "privshare check study.yaml --sties 4",
        "privshare check study.yaml --sites four",
        "privshare check",
        "privshare-client join a.json",
        "privshare-client --site a ledger prune",
        "python simulations/run.py --spilt iid",
        "python simulations/nothing.py",
        "make nothing",
        "privshar check study.yaml",
    ],
)
def test_a_command_that_is_not_there_is_seen(line: str) -> None:
    (command,) = commands_of("page", f"```sh\n{line}\n```")
    with pytest.raises(AssertionError):
        check(command, whole=True)


# --- run


@pytest.fixture(scope="module")
def stages(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder at each stage of a federation's life; each is made once, of the one before."""
    base = tmp_path_factory.mktemp("stages")
    made: set[str] = set()

    def stage(name: str) -> Path:
        here, (before, make) = base / name, MAKERS[name]
        if name not in made:
            made.add(name)
            if before is not None:
                copy_home(stage(before), here)
            here.mkdir(exist_ok=True)
            make(here)
            if name == "desk":
                for release in ("RELEASE", "run"):
                    copy(published, here / release)
        return here

    return stage


def copy_home(source: Path, target: Path) -> None:
    """A folder with what is in it; a site's own file names its files by whole paths."""
    shutil.copytree(source, target)
    for settings in target.glob("sites/*/site.yaml"):
        settings.write_text(settings.read_text().replace(str(source), str(target)))


def make_desk(here: Path) -> None:
    (here / "study.yaml").write_text(PLAIN)
    rows = "".join(f"{17 + i % 60},{'fm'[i % 2]},{'ny'[i % 60 > 30]}\n" for i in range(400))
    (here / "table.csv").write_text(f"age,sex,ill\n{rows}")


def make_sampled(here: Path) -> None:
    release = make_release(study_of(columns=COLUMNS, label={"column": "ill", "positive": "y"}))
    for name in ("RELEASE", "run"):
        written(release, here / name)


def make_provisioned(here: Path) -> None:
    invited = ["--site", "hospital_a", "--site", "hospital_b", "--address", "host.example:8443"]
    call(here, "privshare", "provision", "study.yaml", "--home", "coordinator", *invited)
    for kit in (here / "kits").iterdir():
        shutil.copy(kit, here)


def make_enrolled(here: Path) -> None:
    for name in ("hospital_a", "hospital_b"):
        call(here, "privshare-client", "--site", name, "init", "--kit", f"{name}.zip", "--table", "table.csv")
    shutil.copy(here / "sites" / "hospital_a" / "enrolment.json", here)


def make_admitted(here: Path) -> None:
    papers = [str(path.relative_to(here)) for path in here.glob("sites/*/enrolment.json")]
    call(here, "privshare", "admit", *papers, "--home", "coordinator", "--yes")
    for admission in (here / "coordinator" / "admissions").iterdir():
        shutil.copy(admission, here)


def make_joined(here: Path) -> None:
    call(here, "privshare-client", "--site", "hospital_a", "join", "hospital_a.json")
    call(here, "privshare-client", "--site", "hospital_a", "approve", "--yes")


MAKERS: dict[str, tuple[str | None, Callable[[Path], None]]] = {
    "desk": (None, make_desk),
    "sampled": (None, make_sampled),
    "provisioned": ("desk", make_provisioned),
    "enrolled": ("provisioned", make_enrolled),
    "admitted": ("enrolled", make_admitted),
    "joined": ("admitted", make_joined),
}
COLUMNS = {
    "diagnosis": {"type": "categorical", "categories": ["sepsis", "other"]},
    "age": {"type": "integer", "min": 0, "max": 110, "cells": 55},
    "bun": {"type": "continuous", "min": 0, "max": 60, "decimals": 1, "cells": 40},
    "risk": {"type": "categorical", "categories": ["high", "low"]},
    "ill": {"type": "categorical", "categories": ["n", "y"]},
}


def call(folder: Path, program: str, *words: str) -> str:
    """Run a program in a folder, whose questions are answered; what it printed."""
    answer = "hospital_a\n" if {"approve", "withdraw"} & set(words) else "y\n"
    before = Path.cwd()
    os.chdir(folder)
    try:
        found = CliRunner().invoke(OURS[program], list(words), input=answer)
    finally:
        os.chdir(before)
    assert found.exit_code == 0, f"{program} {' '.join(words)}: {found.stderr}"
    return found.stdout


def test_no_command_is_only_parsed_without_a_reason() -> None:
    assert not set(STAGE) & set(PARSED)
    for command in TO_RUN:
        assert reason_to_hold_back(command) is not None or path_of(command) in STAGE, f"{command}: neither run nor held"


def path_of(command: Command) -> str:
    """Program and command, without options."""
    return f"{command.program} {parse(OURS[command.program], command.arguments, whole=True)}".strip()


def reason_to_hold_back(command: Command) -> str | None:
    """Why a command is not run; None where it is."""
    if HELD_BACK & set(command.arguments):
        return "asks for help"
    path = path_of(command)
    if path in STAGE:
        return None
    if path in PARSED:
        return PARSED[path]
    if command.program == "privshare-client":
        return "needs a site of a federation"
    return "needs a coordinator's home" if "--home" in command.arguments else None


@pytest.mark.parametrize("command", TO_RUN, ids=str)
def test_a_command_of_the_documents_does_what_it_is_typed_for(
    command: Command, stages: Callable[[str], Path], tmp_path: Path
) -> None:
    reason = reason_to_hold_back(command)
    if reason is not None:
        return  # its words were read by the parser, above
    path = path_of(command)
    folder = tmp_path / "here"
    copy_home(stages(STAGE[path]), folder)
    if path == "privshare init":
        (folder / "study.yaml").unlink()
    if path == "privshare-client init":
        shutil.rmtree(folder / "sites", ignore_errors=True)
    call(folder, command.program, *words_here(command, folder))


def words_here(command: Command, folder: Path) -> list[str]:
    """The words of a command, with what is in the folder in the place of a reader's own files and names."""
    own = {".zip": "hospital_a.zip", ".yaml": "study.yaml", ".csv": "table.csv"}
    if command.program == "privshare-client":
        own |= {".json": "hospital_a.json"}
    names = {"--home": "coordinator"} | ({"--site": "hospital_a"} if command.program == "privshare-client" else {})
    found: list[str] = []
    for before, word in zip(["", *command.arguments], command.arguments, strict=False):
        is_output = before in ("-o", "--out")
        found.append(
            names.get(before) or ("" if is_output else own.get(Path(word).suffix, "")) or as_here(word, folder)
        )
    return found


def as_here(word: str, folder: Path) -> str:
    """What a word of a document stands for."""
    return str(read(folder / "RELEASE")["signature"]["key"]) if word == "COORDINATOR_KEY" else word


def test_the_verifier_that_stands_alone_is_typed_as_documented(published: Path, tmp_path: Path) -> None:
    typed = [one for one in COMMANDS if one.program == "verify_release.py"]
    assert typed
    copy(published, tmp_path / "RELEASE")
    for command in typed:
        words = [as_here(word, tmp_path) for word in command.arguments]
        script = ROOT / "deploy" / "verify_release.py"
        done = subprocess.run([sys.executable, script, *words], cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
