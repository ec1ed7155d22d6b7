"""What an operator can get wrong ends with its own exit code and one line that names the field and the rule.

And with nothing else: no traceback, no cell of the table in what is printed, no charge in a ledger, no row left behind.
One valid study with its table is changed in one place by each case.
"""

import csv
import gzip
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save
from threadpoolctl import threadpool_limits
from typer.testing import CliRunner, Result

from common.errors import ExitCode
from simulations import run

SCRIPT = Path(run.__file__)

STUDY = """\
schema: privshare.study/1
name: tiny
unit: {name: person, key: person}
label: {column: outcome, positive: bad}
ignore: [region]
columns:
  amount: {type: continuous, min: 0, max: 100, cells: 16}
  visits: {type: integer, min: 0, max: 9}
  channel: {type: categorical, categories: [desk, phone, web]}
  outcome: {type: categorical, categories: [good, bad]}
privacy: {epsilon: 1, delta: 1.0e-5, holdout: 0.1}
noise: {rounds: 1}
rounds: {count: 1, trainers: 2, local_steps: 1, refine_steps: 1}
model: {latent: 4, width: 8, blocks: 1, batch: 8, max_bins: 4}
"""
HEADER = ["person", "amount", "visits", "channel", "outcome", "region"]
ROWS = [
    [
        f"P{unit:03d}",
        f"{unit * 1.5:.1f}",
        str(unit % 10),
        ("desk", "phone", "web")[unit % 3],
        ("bad", "good", "good", "good")[unit % 4],
        ("north", "south", "west")[unit // 20],
    ]
    for unit in range(60)
]
CHANGED_ROW = 7
CELL = "SECRET-7319"


def written(rows: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


TABLE = written([HEADER, *ROWS])

Change = Callable[[str], str | bytes | None]


def unchanged(text: str) -> str:
    return text


def gone(text: str) -> None:
    """The file is not there."""


def holding(content: str | bytes) -> Change:
    return lambda text: content


def replacing(old: str, new: str) -> Change:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return change


def with_cell(column: str, value: str) -> Change:
    """One cell of one row."""

    def change(text: str) -> str:
        rows = list(csv.reader(io.StringIO(text)))
        rows[CHANGED_ROW + 1][HEADER.index(column)] = value
        return written(rows)

    return change


def with_column(column: str, value: str) -> Change:
    """One value in all rows."""

    def change(text: str) -> str:
        rows = list(csv.reader(io.StringIO(text)))
        for row in rows[1:]:
            row[HEADER.index(column)] = value
        return written(rows)

    return change


def with_row(line: str) -> Change:
    """One row as it stands in the file."""

    def change(text: str) -> str:
        lines = text.splitlines()
        lines[CHANGED_ROW + 1] = line
        return "\n".join(lines) + "\n"

    return change


def rows_at_most(count: int) -> Change:
    return lambda text: "".join(text.splitlines(keepends=True)[: count + 1])


def more_cells(text: str) -> str:
    """A cell too many in every row but the header."""
    first, *others = text.splitlines()
    return "\n".join([first, *(line + f",{CELL}" for line in others)]) + "\n"


def without_column(text: str) -> str:
    return written([[row[0], *row[2:]] for row in csv.reader(io.StringIO(text))])


def another_column(name: str) -> Change:
    return lambda text: written(
        [[*row, name if at == 0 else CELL] for at, row in enumerate(csv.reader(io.StringIO(text)))]
    )


def packed(damage: Callable[[bytes], bytes]) -> Change:
    return lambda text: damage(gzip.compress(text.encode(), mtime=0))


def flip(body: bytes) -> bytes:
    """Some bytes in the middle are others."""
    middle = len(body) // 3
    return body[:middle] + bytes(byte ^ 255 for byte in body[middle : middle + 4]) + body[middle + 4 :]


@dataclass(frozen=True)
class Case:
    """One thing that is wrong, and how the command must end.

    code: the exit code.
    says: what the line names: the field first, then the rule.
    study: changes the study's text; table: the table's. A change to None leaves the file out.
    options: of the command, beside the study and the table; "@" stands for the test's folder.
    planted: a cell that must not be seen anywhere.
    file: the name of the table.
    is_asked: whether --study and --data are given.
    """

    code: ExitCode
    says: tuple[str, ...]
    study: Change = unchanged
    table: Change = unchanged
    options: tuple[str, ...] = ()
    planted: str | None = None
    file: str = "table.csv"
    is_asked: bool = True


C = ExitCode
NUMBER = "87654.3125"

STUDY_CASES = {
    "no study file": Case(C.STUDY_NOT_FOUND, ("study.yaml", "no such"), study=gone),
    "a study that is empty": Case(C.STUDY_INVALID, ("study.yaml", "a mapping"), study=holding("")),
    "a study that is a list": Case(C.STUDY_INVALID, ("study.yaml", "a mapping"), study=holding("- name\n")),
    "a study that is not YAML": Case(C.STUDY_INVALID, ("study.yaml:2", "not valid YAML"), study=holding("a: [1,\n}{")),
    "a tab in a study": Case(
        C.STUDY_INVALID, ("study.yaml:7", "not valid YAML"), study=replacing("  amount", "\tamount")
    ),
    "a study in UTF-16": Case(C.STUDY_INVALID, ("study.yaml", "UTF-8"), study=lambda text: text.encode("utf-16")),
    "a NUL byte in a study": Case(C.STUDY_INVALID, ("study.yaml", "not valid YAML"), study=lambda text: text + "\0"),
    "a repeated section": Case(
        C.STUDY_INVALID, ("study.yaml:15", "privacy", "twice"), study=lambda text: text + "privacy: {epsilon: 9}\n"
    ),
    "a repeated column": Case(
        C.STUDY_INVALID, ("study.yaml:8", "amount", "twice"), study=replacing("  visits", "  amount")
    ),
    "two documents": Case(C.STUDY_INVALID, ("study.yaml", "not valid YAML"), study=lambda text: f"{text}---\n{text}"),
    "a class by its tag": Case(
        C.STUDY_INVALID,
        ("study.yaml:1", "not valid YAML", "python/object"),
        study=holding("!!python/object/apply:os.system [exit]"),
    ),
    "a number that YAML cannot read": Case(
        C.STUDY_INVALID,
        ("study.yaml", "not valid YAML"),
        study=replacing("count: 1", "count: " + "9" * 5000),
    ),
    "a value that is not of its tag": Case(
        C.STUDY_INVALID,
        ("study.yaml", "not valid YAML"),
        study=replacing("name: tiny", "name: !!int tiny"),
    ),
    "a date that is none": Case(
        C.STUDY_INVALID, ("study.yaml", "not valid YAML"), study=replacing("name: tiny", "name: !!timestamp tiny")
    ),
    "a truth that is none": Case(
        C.STUDY_INVALID, ("study.yaml", "not valid YAML"), study=replacing("name: tiny", "name: !!bool tiny")
    ),
    "a set that is none": Case(
        C.STUDY_INVALID, ("study.yaml", "not valid YAML"), study=replacing("name: tiny", "name: !!set [tiny]")
    ),
    "brackets without end": Case(
        C.STUDY_INVALID,
        ("study.yaml", "not valid YAML"),
        study=lambda text: text + "purpose: " + "[" * 5000,
    ),
    "an unknown key": Case(
        C.STUDY_INVALID, ("columns.amount.cels", "did you mean cells?"), study=replacing("cells: 16", "cels: 16")
    ),
    "an unknown section": Case(
        C.STUDY_INVALID, ("model_", "did you mean model?"), study=replacing("model:", "model_:")
    ),
    "a key like no other": Case(C.STUDY_INVALID, ("zzz", "known keys"), study=lambda text: text + "zzz: 1\n"),
    "a missing key": Case(
        C.STUDY_INVALID,
        ("label", "needed and is not there"),
        study=replacing("label: {column: outcome, positive: bad}\n", ""),
    ),
    "an unknown type of column": Case(
        C.STUDY_INVALID, ("columns.visits", "integer"), study=replacing("type: integer", "type: whole")
    ),
    "bounds the wrong way round": Case(
        C.STUDY_INVALID, ("columns.visits", "max=0", "min=9"), study=replacing("min: 0, max: 9", "min: 9, max: 0")
    ),
    "a label that is no column": Case(
        C.STUDY_INVALID, ("label.column=nothing", "categorical"), study=replacing("column: outcome", "column: nothing")
    ),
    "a positive class that is none": Case(
        C.STUDY_INVALID, ("label.positive=worst", "categories"), study=replacing("positive: bad", "positive: worst")
    ),
    "a unit key among the columns": Case(
        C.STUDY_INVALID, ("unit.key", "column"), study=replacing("key: person", "key: amount")
    ),
    "rounds that are none": Case(
        C.STUDY_INVALID, ("rounds.count=0", "greater than"), study=replacing("count: 1", "count: 0")
    ),
    "a name of two lines": Case(
        C.STUDY_INVALID,
        ("name=", "pattern"),
        study=replacing("name: tiny", 'name: "ti\\nny"'),
    ),
    "a study of another version": Case(
        C.STUDY_INVALID, ("schema=", "privshare.study/1"), study=replacing("study/1", "study/2")
    ),
    "no epsilon": Case(
        C.EPSILON_INVALID, ("privacy.epsilon", "needed and is not there"), study=replacing("epsilon: 1, ", "")
    ),
    "no delta": Case(
        C.DELTA_INVALID, ("privacy.delta", "needed and is not there"), study=replacing("delta: 1.0e-5, ", "")
    ),
    "a budget too small for any noise": Case(
        C.EPSILON_INVALID,
        ("privacy.epsilon",),
        options=("--epsilon", "1e-12", "--delta", "1e-12"),
    ),
} | {
    f"{name} of {value} in {place}": Case(
        {"epsilon": C.EPSILON_INVALID, "delta": C.DELTA_INVALID}[name],
        (f"privacy.{name}=",),
        study=replacing(f"{name}: {standing}", f"{name}: {value}") if place == "the study" else unchanged,
        options=() if place == "the study" else (f"--{name}", value.removeprefix(".")),
    )
    for name, standing, values in (
        ("epsilon", "1", ("0", "-1", "1e9", "1e309", ".nan", ".inf")),
        ("delta", "1.0e-5", ("0", "-1", "1", "1.5", "1e-400", ".nan")),
    )
    for value in values
    for place in ("the study", "an option")
}

TABLE_CASES = {
    "no table": Case(C.TABLE_NOT_FOUND, ("table.csv", "no such table"), table=gone),
    "a folder in place of a table": Case(
        C.TABLE_NOT_FOUND, ("no such table",), options=("--study", "@/study.yaml", "--data", "@"), is_asked=False
    ),
    "one table of two that is not there": Case(
        C.TABLE_NOT_FOUND, ("absent.csv", "no such table"), options=("--data", "@/absent.csv")
    ),
    "a table that is empty": Case(C.TABLE_EMPTY, ("table.csv", "empty"), table=holding("")),
    "a table of blank lines": Case(C.TABLE_EMPTY, ("table.csv", "empty"), table=holding("\n\n")),
    "a header alone": Case(C.TABLE_WITHOUT_ROWS, ("table.csv", "no rows"), table=rows_at_most(0)),
    "one row": Case(C.TOO_FEW_UNITS, ("table", "two units"), table=rows_at_most(1)),
    "one unit": Case(
        C.TOO_FEW_UNITS,
        ("table", "two units"),
        study=replacing("key: person", "key: person, surplus: drop"),
        table=with_column("person", CELL),
        planted=CELL,
    ),
    "a column that is missing": Case(C.COLUMN_MISSING, ("amount", "not in the table"), table=without_column),
    "a unit key that is no column": Case(
        C.COLUMN_MISSING, ("account", "not in the table"), study=replacing("key: person", "key: account")
    ),
    "a column with a name of two lines": Case(
        C.COLUMN_MISSING, ("vis", "not in the table"), study=replacing("  visits:", '  "vis\\nits":')
    ),
    "no header line": Case(
        C.COLUMN_MISSING, ("person", "not in the table"), table=holding(written(ROWS)), planted=ROWS[0][0]
    ),
    "another delimiter": Case(
        C.COLUMN_MISSING, ("person", "not in the table"), table=lambda text: text.replace(",", ";")
    ),
    "a page in place of a table": Case(
        C.COLUMN_MISSING, ("person", "not in the table"), table=holding(f"<p>{CELL}</p>\n<p>1</p>"), planted=CELL
    ),
    "NUL bytes alone": Case(C.COLUMN_MISSING, ("person", "not in the table"), table=holding(b"\0" * 400)),
    "a column too many": Case(
        C.COLUMN_UNKNOWN, ("column 7", "not in the study"), table=another_column("note"), planted=CELL
    ),
    "a column that is there twice": Case(
        C.COLUMN_UNKNOWN, ("column 7", "twice"), table=another_column("amount"), planted=CELL
    ),
    "text in a column of numbers": Case(
        C.NOT_A_NUMBER, ("amount", "not a number"), table=with_cell("amount", CELL), planted=CELL
    ),
    "a decimal comma": Case(
        C.NOT_A_NUMBER, ("amount", "not a number"), table=with_cell("amount", "87,3125"), planted="87,3125"
    ),
    "a date in a column of numbers": Case(
        C.NOT_A_NUMBER, ("visits", "not a number"), table=with_cell("visits", "2031-05-07"), planted="2031-05-07"
    ),
    "a NUL byte in a number": Case(
        C.NOT_A_NUMBER, ("amount", "not a number"), table=with_cell("amount", "87.31\x0025"), planted="87.31"
    ),
    "a fraction in a column of whole numbers": Case(
        C.NOT_A_NUMBER, ("visits", "whole number"), table=with_cell("visits", "3.0625"), planted="3.0625"
    ),
    "a word for a missing number": Case(C.NOT_A_NUMBER, ("visits", "not a number"), table=with_cell("visits", "NA")),
    "a formula": Case(
        C.NOT_A_NUMBER, ("amount", "not a number"), table=with_cell("amount", f"=CMD({CELL})"), planted=CELL
    ),
    "a value above the bound": Case(
        C.OUT_OF_BOUNDS, ("amount", "max=100"), table=with_cell("amount", NUMBER), planted=NUMBER
    ),
    "a value below the bound": Case(
        C.OUT_OF_BOUNDS, ("visits", "min=0"), table=with_cell("visits", "-87654"), planted="-87654"
    ),
    "a whole number of more than 64 bits": Case(
        C.OUT_OF_BOUNDS, ("visits", "max=9"), table=with_cell("visits", "9223372036854775999"), planted="9223372036854"
    ),
    "a category that is not listed": Case(
        C.UNLISTED_CATEGORY, ("channel", "listed"), table=with_cell("channel", CELL), planted=CELL
    ),
    "a category in capitals": Case(
        C.UNLISTED_CATEGORY, ("channel", "listed"), table=with_cell("channel", "WEB"), planted="WEB"
    ),
    "a category with a NUL byte": Case(C.UNLISTED_CATEGORY, ("channel", "listed"), table=with_cell("channel", "web\0")),
    "a category of 100,000 letters": Case(
        C.UNLISTED_CATEGORY, ("channel", "listed"), table=with_cell("channel", "q" * 100_000), planted="qqq"
    ),
    "a label that is not listed": Case(
        C.UNLISTED_CATEGORY, ("outcome", "listed"), table=with_cell("outcome", CELL), planted=CELL
    ),
    "a missing category": Case(C.MISSING_NOT_ALLOWED, ("channel", "missing"), table=with_cell("channel", "")),
    "a missing number": Case(C.MISSING_NOT_ALLOWED, ("amount", "missing"), table=with_cell("amount", " ")),
    "a missing label": Case(C.MISSING_NOT_ALLOWED, ("outcome", "missing"), table=with_cell("outcome", "")),
    "an empty unit key": Case(C.MISSING_NOT_ALLOWED, ("person", "missing"), table=with_cell("person", "")),
    "a unit key of spaces": Case(C.MISSING_NOT_ALLOWED, ("person", "missing"), table=with_cell("person", "  ")),
    "a constant column": Case(
        C.CONSTANT_COLUMN, ("amount", "one value"), table=with_column("amount", "87.3125"), planted="87.3125"
    ),
    "a constant category": Case(C.CONSTANT_COLUMN, ("channel", "one value"), table=with_column("channel", "web")),
    "a label of one class": Case(
        C.SINGLE_CLASS_LABEL, ("outcome", "single class"), table=with_column("outcome", "good")
    ),
    "a unit that is there twice": Case(
        C.UNIT_REPEATED,
        ("person", "unit.max_records"),
        table=lambda text: text.replace("P007", CELL).replace("P051", CELL),
        planted=CELL,
    ),
    "the same table twice": Case(
        C.UNIT_REPEATED,
        ("person", "unit.max_records"),
        options=("--data", "@/table.csv"),
    ),
    "a table in UTF-16": Case(C.TABLE_UNREADABLE, ("table.csv", "UTF-8"), table=lambda text: text.encode("utf-16")),
    "a table in Latin-1": Case(
        C.TABLE_UNREADABLE, ("table.csv", "UTF-8"), table=lambda text: text.replace("web", "w\xe9b").encode("latin-1")
    ),
    "a table cut inside a letter": Case(
        C.TABLE_UNREADABLE,
        ("table.csv", "UTF-8"),
        table=lambda text: text.replace("west", "w\xe9st").encode()[:-4],
    ),
    "a table cut inside a row": Case(C.TABLE_UNREADABLE, ("table.csv", "cells"), table=lambda text: text[:-25]),
    "a packed table that is cut": Case(
        C.TABLE_UNREADABLE, ("table.csv.gz", "UTF-8"), table=packed(lambda body: body[:-40]), file="table.csv.gz"
    ),
    "a packed table that is damaged": Case(
        C.TABLE_UNREADABLE, ("table.csv.gz", "UTF-8"), table=packed(flip), file="table.csv.gz"
    ),
    "a packed table of another sum": Case(
        C.TABLE_UNREADABLE,
        ("table.csv.gz", "UTF-8"),
        table=packed(lambda body: body[:-8] + bytes(8)),
        file="table.csv.gz",
    ),
    "a plain table with a packed name": Case(
        C.TABLE_UNREADABLE, ("table.csv.gz", "UTF-8"), file="table.csv.gz", planted="P007"
    ),
    "a packed table with a plain name": Case(
        C.TABLE_UNREADABLE, ("table.csv", "UTF-8"), table=packed(lambda body: body)
    ),
    "an archive with a table's name": Case(
        C.TABLE_UNREADABLE, ("table.zip", "UTF-8"), table=holding(b"PK\x03\x04\xff\xfe" * 20), file="table.zip"
    ),
    "a quote without end": Case(
        C.TABLE_UNREADABLE, ("table.csv",), table=with_row(f'P007,10.5,7,"{CELL},good,north'), planted=CELL
    ),
    "a quote without end in the last row": Case(
        C.TABLE_UNREADABLE,
        ("table.csv",),
        table=lambda text: text.rstrip() + f'\nP060,1,1,web,good,"{CELL}\n',
        planted=CELL,
    ),
    "a row too long": Case(
        C.TABLE_UNREADABLE,
        ("table.csv", "cells"),
        table=with_row(f"P007,10.5,7,web,good,north,{CELL}"),
        planted=CELL,
    ),
    "every row too long": Case(C.TABLE_UNREADABLE, ("table.csv", "cells"), table=more_cells, planted=CELL),
    "a row too short": Case(
        C.TABLE_UNREADABLE, ("table.csv", "cells"), table=with_row("P007,10.5,7,web,good"), planted="P007"
    ),
} | {
    f"{value[:9]} in a column of numbers": Case(
        C.NOT_FINITE, ("amount", "finite"), table=with_cell("amount", value), planted=planted
    )
    for value, planted in (
        ("NaN", None),
        ("-nan", None),
        ("inf", None),
        ("-Infinity", "-Infinity"),
        ("1e309", "1e309"),
        ("-9e999", "-9e999"),
        ("9" * 400, "99999"),
    )
}

OPTION_CASES = (
    {
        "a study without a table": Case(
            C.USAGE, ("--study", "--data", "both"), options=("--study", "@/study.yaml"), is_asked=False
        ),
        "a table without a study": Case(
            C.USAGE, ("--study", "--data", "both"), options=("--data", "@/table.csv"), is_asked=False
        ),
        "a split column that is not there": Case(
            C.SPLIT_COLUMN_UNKNOWN, ("split=column:nothing", "no such column"), options=("--split", "column:nothing")
        ),
        "a split column with a name of two lines": Case(
            C.SPLIT_COLUMN_UNKNOWN, ("split=column:", "no such column"), options=("--split", "column:re\ngion")
        ),
        "a split column without a name": Case(
            C.SPLIT_COLUMN_UNKNOWN, ("split=column:", "no such column"), options=("--split", "column:")
        ),
        "more sites than units": Case(
            C.MORE_SITES_THAN_UNITS, ("sites=49", "one site a unit"), options=("--sites", "49")
        ),
        "more sites than values": Case(
            C.MORE_SITES_THAN_UNITS,
            ("split=column:region", "fewer values"),
            options=("--sites", "4", "--split", "column:region"),
        ),
        "an output that is a file": Case(
            C.OUTPUT_NOT_WRITABLE, ("table.csv", "cannot be written"), options=("--out", "@/table.csv")
        ),
        "an output below a file": Case(
            C.OUTPUT_NOT_WRITABLE, ("table.csv/run", "cannot be written"), options=("--out", "@/table.csv/run")
        ),
        "an output with a name too long": Case(
            C.OUTPUT_NOT_WRITABLE, ("cannot be written",), options=("--out", "@/" + "x" * 300)
        ),
        "an output that is not empty": Case(C.OUTPUT_NOT_WRITABLE, ("is not empty", "--out"), options=("--out", "@")),
        "a folder that is no run": Case(
            C.RESUME_IMPOSSIBLE, ("is not the folder of a run",), options=("--resume", "@"), is_asked=False
        ),
        "a run that is not there": Case(
            C.RESUME_IMPOSSIBLE,
            ("absent", "is not the folder of a run"),
            options=("--resume", "@/absent"),
            is_asked=False,
        ),
        "a scenario beside a study": Case(C.USAGE, ("--scenario", "not with --study"), options=("--scenario", "icu")),
        "units beside a study": Case(C.USAGE, ("--units", "not with --study"), options=("--units", "500")),
        "variants of no ablation": Case(C.USAGE, ("--only", "--ablate"), options=("--only", "measured only/pid")),
    }
    | {
        f"a run resumed with {option}": Case(
            C.USAGE, (option, "not with --resume"), options=("--resume", "@", option, value), is_asked=False
        )
        for option, value in (
            ("--seed", "0"),
            ("--epsilon", "2"),
            ("--sites", "4"),
            ("--method", "privshare"),
            ("--out", "@/run"),
            ("--ablate", "2"),
        )
    }
    | {
        f"the split {how!r}": Case(C.USAGE, (f"split={how}: ", "expected"), options=("--split", how))
        for how in (
            "random",
            "IID",
            "iid ",
            "column",
            "dirichlet",
            "dirichlet:",
            "dirichlet:0",
            "dirichlet:nan",
            "dirichlet:1e999",
            "dirichlet:-1",
            "dirichlet:abc",
        )
    }
    | {
        f"the device {name!r}": Case(C.USAGE, (f"device={name}", "not a device"), options=("--device", name))
        for name in (
            "",
            "gpu",
            "cuda:99",
            "mps",
            "meta",
            "hpu",
        )
    }
)

CASES = STUDY_CASES | TABLE_CASES | OPTION_CASES


def parameters(cases: dict[str, Case]) -> list[object]:
    return [pytest.param(case, id=name) for name, case in cases.items()]


def put(path: Path, content: str | bytes | None) -> None:
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def arguments_of(case: Case, folder: Path) -> list[str]:
    """Write the files of a case; the command's arguments."""
    put(folder / "study.yaml", case.study(STUDY))
    put(folder / case.file, case.table(TABLE))
    given = ["--study", "@/study.yaml", "--data", f"@/{case.file}"] if case.is_asked else []
    usual = [("--threads", "1")] + ([] if "--resume" in case.options else [("--sites", "2"), ("--out", "@/run")])
    for option, value in usual:
        if option not in case.options:
            given += [option, value]
    return [argument.replace("@", str(folder), 1) for argument in [*given, *case.options]]


@pytest.fixture(autouse=True)
def scratch(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The machine's folder for temporary files, for one test; no row may stay there."""
    folder = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    # Threads that wait for a busy core make a tiny run fifty times slower.
    with threadpool_limits(1):
        yield folder
    for path in folder.glob("**/*"):
        body = path.read_bytes() if path.is_file() else b""
        assert not all(cell.encode() in body for cell in ("P0", "phone", "north")), path


def invoke(arguments: list[str]) -> Result:
    return CliRunner().invoke(run.app, arguments)


def charges_below(folder: Path) -> list[str]:
    lines = [line for path in folder.glob("**/ledger/*") for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if '"type":"charge"' in line]


def assert_clean(folder: Path, inputs: set[Path], planted: str | None, *, printed: str) -> None:
    """Nothing was spent, and what was planted stands in the inputs alone."""
    assert not charges_below(folder)
    assert "Traceback" not in printed
    if planted is not None:
        assert planted not in printed
        for path in folder.glob("**/*"):
            assert path in inputs or not path.is_file() or planted.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("case", parameters(CASES))
def test_a_bad_input_ends_with_its_code_and_one_line_that_names_field_and_rule(
    case: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = arguments_of(case, tmp_path)
    inputs = set(tmp_path.glob("*"))
    with caplog.at_level(logging.DEBUG):
        result = invoke(arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert (result.exit_code, result.stdout) == (case.code, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert all(part in line for part in case.says), line
    assert_clean(tmp_path, inputs, case.planted, printed=result.stderr + caplog.text)


def test_a_code_is_one_rule_and_keeps_its_number() -> None:
    assert len(ExitCode.__members__) == len(ExitCode)
    # Scripts know the numbers.
    known = {"USAGE": 2, "EPSILON_INVALID": 12, "TABLE_NOT_FOUND": 30, "NOT_FINITE": 39, "RESUME_IMPOSSIBLE": 51}
    assert {name: int(ExitCode[name]) for name in known} == known


def test_every_code_of_study_table_and_output_is_reached_by_a_case() -> None:
    reached = {case.code for case in CASES.values()}
    # Those of privacy, protocol and our own faults are reached from requests, not from inputs.
    assert {code for code in ExitCode if code < 20 or 30 <= code < 52} - {ExitCode.OK} <= reached


@pytest.mark.parametrize(
    "options",
    [
        ("--sites", "0"),
        ("--sites", "two"),
        ("--threads", "0"),
        ("--seed", "-1"),
        ("--seed", "1.5"),
        ("--epsilon", "little"),
        ("--engine", "carrier-pigeon"),
        ("--unknown",),
        ("--seed", str(2**33)),
        ("--seed", str(2**70)),
        ("--test-noise-seed", str(2**130)),
    ],
    ids=" ".join,
)
def test_an_option_that_cannot_be_is_a_usage_error_that_names_it(options: tuple[str, ...], tmp_path: Path) -> None:
    result = invoke(arguments_of(Case(ExitCode.USAGE, (), options=options), tmp_path))
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == ExitCode.USAGE
    assert options[0] in result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case(ExitCode.OK, ()), id="as it is"),
        pytest.param(Case(ExitCode.OK, (), table=lambda text: "\ufeff" + text), id="with a byte order mark"),
        pytest.param(
            Case(ExitCode.OK, (), table=lambda text: text.replace("\n", "\r\n", 30)), id="with mixed line ends"
        ),
        pytest.param(Case(ExitCode.OK, (), table=lambda text: text.replace("\n", "\n\n")), id="with blank lines"),
        pytest.param(
            Case(ExitCode.OK, (), table=lambda text: written([row[::-1] for row in csv.reader(io.StringIO(text))])),
            id="with its columns in another order",
        ),
        pytest.param(Case(ExitCode.OK, (), table=packed(lambda body: body), file="table.csv.gz"), id="packed"),
    ],
)
def test_the_table_that_the_cases_change_is_good(case: Case, tmp_path: Path) -> None:
    result = invoke(arguments_of(case, tmp_path))
    assert result.exit_code == 0, result.stderr
    # Two sites, three releases each: the same search finds what it must not find in the cases.
    assert len(charges_below(tmp_path)) == 6


@pytest.mark.parametrize(
    "name",
    [
        "an unknown key",
        "a category that is not listed",
        "a quote without end",
        "a unit that is there twice",
    ],
)
def test_the_script_itself_ends_so_too(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    arguments = arguments_of(case, tmp_path)
    inputs = set(tmp_path.glob("*"))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (case.code, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert all(part in line for part in case.says), line
    assert_clean(tmp_path, inputs, case.planted, printed=done.stderr)


# A finished run, damaged in one place, then resumed.


@dataclass(frozen=True)
class Damage:
    """What happened to a run's folder, and how `--resume` must end."""

    code: ExitCode
    says: tuple[str, ...]
    change: Callable[[Path], object]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, inputs beside it."""
    folder = tmp_path_factory.mktemp("finished")
    assert invoke(arguments_of(Case(ExitCode.OK, ()), folder)).exit_code == 0
    return folder


def last_left(folder: Path) -> Path:
    """The newest checkpoint, all others taken away: a run would go on from the one before."""
    *earlier, newest = sorted((folder / "checkpoints").glob("step-*"))
    for path in earlier:
        path.unlink()
    return newest


def body_of(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def remade(path: Path, facts: Callable[[dict[str, object]], object], drop: str = "none") -> None:
    """A checkpoint of the right format with other content."""
    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["privshare"])
        arrays = {name: file.get_tensor(name) for name in file.keys() if drop not in name}  # noqa: SIM118
    path.write_bytes(save({**arrays, "x": np.zeros(1)}, metadata={"privshare": json.dumps(facts(header))}))


def option(name: str, value: object) -> Callable[[Path], None]:
    """Another value in options.json."""

    def change(folder: Path) -> None:
        path = folder / "options.json"
        path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), name: value}), encoding="utf-8")

    return change


DAMAGES = {
    "a checkpoint that is cut": Damage(
        C.RESUME_IMPOSSIBLE,
        ("checkpoints", "no checkpoint is whole"),
        lambda run: body_of(last_left(run), lambda body: body[:-30]),
    ),
    "a checkpoint that is empty": Damage(
        C.RESUME_IMPOSSIBLE, ("checkpoints", "no checkpoint is whole"), lambda run: last_left(run).write_bytes(b"")
    ),
    "a checkpoint that is text": Damage(
        C.RESUME_IMPOSSIBLE,
        ("checkpoints", "no checkpoint is whole"),
        lambda run: last_left(run).write_text("no checkpoint" * 40),
    ),
    "a checkpoint with a flipped bit": Damage(
        C.RESUME_IMPOSSIBLE,
        ("checkpoints", "no checkpoint is whole"),
        lambda run: body_of(last_left(run), lambda body: body[:-3] + bytes([body[-3] ^ 64]) + body[-2:]),
    ),
    "a checkpoint of another version": Damage(
        C.RESUME_IMPOSSIBLE,
        ("step-", "privshare.checkpoint/4"),
        lambda run: remade(last_left(run), lambda facts: {**facts, "schema": "privshare.checkpoint/2"}),
    ),
    "a checkpoint without facts": Damage(
        C.RESUME_IMPOSSIBLE,
        ("checkpoints", "no checkpoint is whole"),
        lambda run: remade(last_left(run), lambda facts: []),
    ),
    "a checkpoint that lacks a fact": Damage(
        C.RESUME_IMPOSSIBLE,
        ("checkpoint",),
        lambda run: remade(last_left(run), lambda facts: {name: facts[name] for name in facts if name != "accounts"}),
    ),
    "a checkpoint that lacks an array": Damage(
        C.RESUME_IMPOSSIBLE,
        ("checkpoint",),
        lambda run: remade(last_left(run), lambda facts: facts, drop="pairs-1"),
    ),
    "a checkpoint of another generator": Damage(
        C.RESUME_IMPOSSIBLE,
        ("checkpoint",),
        lambda run: remade(last_left(run), lambda facts: facts, drop="heads"),
    ),
    "a checkpoint of another study": Damage(
        C.RESUME_IMPOSSIBLE,
        ("checkpoint",),
        lambda run: remade(last_left(run), lambda facts: {**facts, "study": "0" * 64}),
    ),
    "a study that was changed": Damage(
        C.RESUME_IMPOSSIBLE,
        ("study", "belongs to another"),
        lambda run: body_of(run / "study.lock.yaml", lambda body: body.replace(b"epsilon: 1.0", b"epsilon: 9.0")),
    ),
    "another seed": Damage(C.RESUME_IMPOSSIBLE, ("seed", "belongs to another"), option("seed", 5)),
    "fewer sites": Damage(C.RESUME_IMPOSSIBLE, ("sites", "other sites"), option("sites", 1)),
    "options that are a list": Damage(
        C.RESUME_IMPOSSIBLE, ("not the folder of a run",), lambda run: (run / "options.json").write_text("[]")
    ),
    "options that are cut": Damage(
        C.RESUME_IMPOSSIBLE, ("not the folder of a run",), lambda run: (run / "options.json").write_text('{"sites": 2')
    ),
    "options that lack one": Damage(
        C.RESUME_IMPOSSIBLE, ("not the folder of a run",), lambda run: (run / "options.json").write_text('{"sites": 2}')
    ),
    "sites that are a word": Damage(C.RESUME_IMPOSSIBLE, ("not the folder of a run",), option("sites", "two")),
    "files that are no list": Damage(C.RESUME_IMPOSSIBLE, ("not the folder of a run",), option("data", "table.csv")),
    "no study": Damage(
        C.STUDY_NOT_FOUND, ("study.lock.yaml", "no such"), lambda run: (run / "study.lock.yaml").unlink()
    ),
    "a study that is cut": Damage(
        C.STUDY_INVALID, ("study.lock.yaml",), lambda run: (run / "study.lock.yaml").write_text("columns: [")
    ),
    "a table that is gone": Damage(
        C.TABLE_NOT_FOUND, ("table.csv", "no such table"), lambda run: (run.parent / "table.csv").unlink()
    ),
    "a ledger that is damaged": Damage(
        C.LEDGER_INVALID,
        ("site_01.jsonl",),
        lambda run: body_of(run / "ledger" / "site_01.jsonl", lambda body: body.replace(b'"cells":', b'"celLs":', 1)),
    ),
    "a ledger of another budget": Damage(
        C.LEDGER_INVALID,
        ("site_01.jsonl", "another"),
        lambda run: shutil.copy(run / "ledger" / "site_02.jsonl", run / "ledger" / "site_01.jsonl"),
    ),
    "a sealed reply and all checkpoints that are gone": Damage(
        C.LEDGER_INVALID,
        ("site site_01", "LEDGER_INVALID"),
        lambda run: (shutil.rmtree(run / "sites" / "site_01" / "replies"), shutil.rmtree(run / "checkpoints")),
    ),
    "a file in place of the checkpoints": Damage(
        C.OUTPUT_NOT_WRITABLE,
        ("checkpoints", "cannot be written"),
        lambda run: (shutil.rmtree(run / "checkpoints"), (run / "checkpoints").write_text("")),
    ),
}


@pytest.mark.parametrize(
    "damage",
    [pytest.param(damage, id=name) for name, damage in DAMAGES.items()],
)
def test_a_damaged_run_is_not_resumed_and_spends_nothing(damage: Damage, finished: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copy"
    shutil.copytree(finished, copied)
    option("data", [str(copied / "table.csv")])(copied / "run")
    damage.change(copied / "run")
    before = charges_below(copied)
    result = invoke(["--resume", str(copied / "run"), "--threads", "1"])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert (result.exit_code, result.stdout) == (damage.code, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert all(part in line for part in damage.says), line
    assert charges_below(copied) == before


def test_a_copied_run_that_is_not_damaged_is_resumed(finished: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copy"
    shutil.copytree(finished, copied)
    option("data", [str(copied / "table.csv")])(copied / "run")
    assert invoke(["--resume", str(copied / "run"), "--threads", "1"]).exit_code == 0
    assert (copied / "run" / "synthetic.csv").read_bytes() == (finished / "run" / "synthetic.csv").read_bytes()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    result = invoke(arguments_of(Case(ExitCode.OK, (), options=("--out", "@/closed/run")), tmp_path))
    assert result.exit_code == ExitCode.OUTPUT_NOT_WRITABLE
    assert "cannot be written" in result.stderr
