"""Files that a site may be given by mistake: taken with the documented meaning, or refused in one clean line.

Each is tried at a real site and by the command of a simulation, with the same study. What the vault counts says what a
table was taken for; a refusal spends nothing, repeats no cell, and leaves the site at work. Beyond `test_bad_input.py`.
"""

import csv
import gzip
import io
import logging
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from client.site import Site
from common.errors import ExitCode
from common.wire.messages import Reply, refusal
from tests.client.homes import MEASUREMENTS, WINDOWED, Home, below_noise, forbidden, make_home, refused
from tests.simulations.test_bad_input import charges_below, invoke, written

SECRET = "GEHEIM"  # in the key of every unit, and in a column that the study ignores
HEADER = ["patient", "code", "day", "visits", "amount", "ill", "note"]
CODES = ("007", "7", "=1+1", "a,b", "café")
STUDY: dict[str, Any] = {
    "schema": "privshare.study/1",
    "name": "files",
    "unit": {"name": "patient", "key": "patient", "max_records": 2, "surplus": "drop"},
    "label": {"column": "ill", "positive": "yes"},
    "ignore": ["note"],
    "columns": {
        "code": {"type": "categorical", "categories": list(CODES), "missing": True},
        "day": {"type": "datetime", "min": "2026-01-01", "max": "2026-12-31", "cells": 365, "missing": True},
        "visits": {"type": "integer", "min": -(2**63), "max": 2**63 - 1, "special": [*range(9)], "missing": True},
        "amount": {"type": "continuous", "min": -1000, "max": 1000, "cells": 4000, "missing": True},
        "ill": {"type": "categorical", "categories": ["no", "yes"]},
    },
    "privacy": {"epsilon": 1, "delta": 1e-5, "holdout": 0.1},
    "rounds": {"count": 1, "trainers": 2, "local_steps": 1, "refine_steps": 1},
    "model": {"latent": 2, "width": 8, "blocks": 1, "batch": 8},
}
ROWS = [
    [
        f"{SECRET}-p{unit}",
        CODES[unit % 5],
        f"2026-{1 + unit % 12:02d}-{1 + unit:02d}",
        str(unit % 9),
        f"{unit * 31.25 - 300:.2f}",
        ("yes", "no", "no")[unit % 3],
        f"{SECRET}-{unit}",
    ]
    for unit in range(24)
]
TABLE = written([HEADER, *ROWS])
CHANGED = 5

Content = str | bytes
Change = Callable[[str], Content]


def holding(content: Content) -> Change:
    return lambda text: content


def with_cell(column: str, value: str, *, row: int = CHANGED) -> Change:
    return lambda text: table_with({(row, column): value})


def table_with(cells: dict[tuple[int, str], str]) -> str:
    rows = [list(row) for row in ROWS]
    for (row, column), value in cells.items():
        rows[row][HEADER.index(column)] = value
    return written([HEADER, *rows])


def with_columns(values: dict[str, str]) -> Change:
    """The same value in all rows of a column."""
    return lambda text: table_with({(row, name): value for name, value in values.items() for row in range(len(ROWS))})


def with_names(change: Callable[[list[str]], list[str]]) -> Change:
    return lambda text: written([change(list(HEADER)), *ROWS])


def named(old: str, new: str) -> Change:
    return with_names(lambda names: [new if name == old else name for name in names])


def with_line(line: str, *, at: int = CHANGED) -> Change:
    """A line of the file as it stands there, in place of another; 0 is the header."""

    def change(text: str) -> str:
        lines = text.splitlines()
        lines[at] = line
        return "\n".join(lines) + "\n"

    return change


def in_front(text: str) -> Change:
    return lambda table: text + table


def packed(*parts: str | bytes) -> bytes:
    """A member for each part."""
    bodies = [part.encode() if isinstance(part, str) else part for part in parts]
    return b"".join(gzip.compress(body, mtime=0) for body in bodies)


def archive(text: str) -> bytes:
    found = io.BytesIO()
    with zipfile.ZipFile(found, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("table.csv", text)
    return found.getvalue()


def with_zeros(path: Path) -> None:
    """A file with a hole of 8 GiB in it, as a disk that was full leaves behind."""
    with path.open("wb") as file:
        file.write(TABLE.encode())
        file.truncate(2**33)


def to_pieces(text: str) -> str:
    """The row of one unit over two lines, by a line end in a cell that is not quoted."""
    return text.replace(f",{ROWS[CHANGED][5]},{ROWS[CHANGED][6]}", f",{ROWS[CHANGED][5]}\r,{ROWS[CHANGED][6]}", 1)


@dataclass(frozen=True)
class Bad:
    """A file that is refused.

    code: the command's exit code.
    says: what the line names: the column or the file, and the rule.
    change: of the good table's text.
    make: in place of `change`: what makes the file.
    planted: a cell that must be seen nowhere, beside the secret ones that are in every file.
    file: its name.
    study: what is otherwise in the study.
    """

    code: ExitCode
    says: tuple[str, ...]
    change: Change = str
    make: Callable[[Path], object] | None = None
    planted: str | None = None
    file: str = "table.csv"
    study: dict[str, Any] = field(default_factory=dict)


def cells(column: str, code: ExitCode, says: str, *values: str) -> dict[str, Bad]:
    """One bad cell each."""
    return {
        f"{column} {value[:16]!r}": Bad(code, (f"{column}: ", says), with_cell(column, value), planted=value)
        for value in values
    }


C = ExitCode
COMMENTED = {"table": {"comment": "#"}}
TEXT_CASES = {
    "UTF-16 without a mark": Bad(C.TABLE_UNREADABLE, ("UTF-8",), lambda text: text.encode("utf-16-be") + b"\xd8\0"),
    "UTF-16 without a mark, ASCII alone": Bad(
        C.COLUMN_MISSING, ("patient",), lambda text: text.replace("é", "e").encode("utf-16-le")
    ),
    "UTF-16, packed": Bad(
        C.TABLE_UNREADABLE, ("UTF-8",), lambda text: packed(text.encode("utf-16")), file="table.csv.gz"
    ),
    "UTF-32": Bad(C.TABLE_UNREADABLE, ("UTF-8",), lambda text: text.encode("utf-32")),
    "cut inside a letter, packed": Bad(
        C.TABLE_UNREADABLE, ("UTF-8",), lambda text: packed(text.encode()[:-2] + b"\xc3"), file="table.csv.gz"
    ),
    "a letter written too long": Bad(
        C.TABLE_UNREADABLE, ("UTF-8",), lambda text: text.encode().replace(b"GEHEIM-3", b"GEHEIM\xc0\xaf3")
    ),
    "half of a pair of UTF-16": Bad(
        C.TABLE_UNREADABLE, ("UTF-8",), lambda text: text.encode().replace(b"GEHEIM-3", b"GEHEIM\xed\xa0\x803")
    ),
    "two byte order marks": Bad(C.COLUMN_MISSING, ("patient",), in_front("\ufeff\ufeff")),
    "a mark between two tables": Bad(
        C.NOT_A_TIME, ("day",), lambda text: text + "\ufeff" + text, planted="GEHEIM-p7"
    ),
    "a NUL byte at the start": Bad(C.COLUMN_MISSING, ("patient",), in_front("\0")),
    "a NUL byte in the header": Bad(C.COLUMN_MISSING, ("amount",), named("amount", "amo\0unt")),
    "a NUL byte in a date": Bad(C.NOT_A_TIME, ("day",), with_cell("day", "2026-01-0\x001"), planted="2026-01-0"),
    "blanks alone": Bad(C.TABLE_EMPTY, ("table.csv", "empty"), holding("   \n \t \n")),
    "a mark alone": Bad(C.TABLE_EMPTY, ("table.csv", "empty"), holding("\ufeff")),
    "one letter": Bad(C.COLUMN_MISSING, ("patient",), holding("p")),
    "a lone CR within a row": Bad(C.TABLE_UNREADABLE, ("table.csv", "cells"), to_pieces),
    "cut after a delimiter": Bad(C.TABLE_UNREADABLE, ("table.csv", "cells"), lambda text: text[: text.rindex("yes")]),
    "a cell of 200,000 letters": Bad(
        C.TABLE_UNREADABLE, ("table.csv",), with_cell("note", "q" * 200_000), planted="qqqq"
    ),
    "a line of 9,000,000 letters": Bad(
        C.TABLE_UNREADABLE,
        ("table.csv", "line", "longer"),
        lambda text: text.replace("\n", "," + "qqqqqqqq," * 1_000_000 + "\n", 1),
        planted="qqqq",
    ),
    "a quote after a quote": Bad(
        C.TABLE_UNREADABLE, ("table.csv",), with_line(f'{SECRET}-p4,"7"7,2026-05-05,1,1,no,x'), planted='"7'
    ),
    "a quote that never ends, and 300,000 letters behind it": Bad(
        C.TABLE_UNREADABLE, ("table.csv",), lambda text: text + '"' + "q,q\n" * 75_000, planted="q,q"
    ),
    "a quote that swallows a row": Bad(
        C.TABLE_UNREADABLE,
        ("table.csv", "cells"),
        lambda text: text.replace(f"{SECRET}-4\n", f'"{SECRET}-4\n', 1).replace(f"{SECRET}-5\n", f'{SECRET}-5"\n', 1)
        + "x\n",
    ),
    "quotes of another kind": Bad(
        C.TABLE_UNREADABLE, ("table.csv", "cells"), lambda text: text.replace('"', "'"), planted="'a"
    ),
    "a delimiter at the end of every row": Bad(
        C.TABLE_UNREADABLE, ("cells",), lambda text: text.replace("\n", ",\n").replace(",\n", "\n", 1)
    ),
    "a delimiter at the end of every line": Bad(
        C.COLUMN_UNKNOWN, ("column 8",), lambda text: text.replace("\n", ",\n")
    ),
    "a delimiter at the end of one row": Bad(
        C.TABLE_UNREADABLE, ("cells",), lambda text: text.replace("GEHEIM-4\n", "GEHEIM-4,\n")
    ),
    "other delimiters below the header": Bad(
        C.TABLE_UNREADABLE,
        ("cells",),
        lambda text: "".join(
            line if at == 0 else line.replace(",", ";") for at, line in enumerate(text.splitlines(keepends=True))
        ),
    ),
    "tabs": Bad(C.COLUMN_MISSING, ("patient",), lambda text: text.replace(",", "\t")),
    "a comment that the study does not expect": Bad(
        C.TABLE_UNREADABLE, ("cells",), in_front(f"# exported by {SECRET}\n")
    ),
    "a line that says the delimiter": Bad(C.TABLE_UNREADABLE, ("cells",), in_front("sep=,\n")),
    "a line with units below the header": Bad(
        C.NOT_A_TIME,
        ("day",),
        lambda text: text.replace("\n", "\nGEHEIM-key,7,dd.mm.yy,number,EUR,no,\n", 1),
        planted="dd.mm.yy",
    ),
    "a total below the rows": Bad(
        C.MISSING_NOT_ALLOWED, ("patient",), lambda text: text + ",,,99,123456.5,yes,\n", planted="123456"
    ),
    "a program's output": Bad(C.COLUMN_MISSING, ("patient",), holding(f'{{"patient": "{SECRET}"}}\n')),
    "a comment that hides a delimiter": Bad(
        C.TABLE_UNREADABLE, ("cells",), with_line(f"{SECRET}-p4,7,2026-05-05,1,1 # old,no,x"), study=COMMENTED
    ),
}
HEADER_CASES = {
    "a name with a blank behind it": Bad(C.COLUMN_MISSING, ("amount",), named("amount", "amount ")),
    "a name with a no-break space": Bad(C.COLUMN_MISSING, ("amount",), named("amount", "\u00a0amount")),
    "a name in capitals": Bad(C.COLUMN_MISSING, ("amount",), named("amount", "AMOUNT")),
    "a name with a letter of another alphabet": Bad(C.COLUMN_MISSING, ("amount",), named("amount", "\u0430mount")),
    "a name with a letter of no width": Bad(C.COLUMN_MISSING, ("amount",), named("amount", "amount\u200b")),
    "a name with quotes in it": Bad(C.COLUMN_MISSING, ("amount",), named("amount", '"amount"')),
    "a name over two lines": Bad(C.COLUMN_MISSING, ("amount",), named("amount", "amo\nunt")),
    "a name that is a formula": Bad(
        C.COLUMN_UNKNOWN, ("column 8",), lambda text: written([[*HEADER, "=A1"], *([*row, ""] for row in ROWS)])
    ),
    "no name": Bad(C.COLUMN_MISSING, ("amount",), named("amount", "")),
    "two columns without a name": Bad(
        C.COLUMN_MISSING, ("visits",), with_names(lambda names: ["" if one in ("visits", "amount") else one for one in names])
    ),
    "numbers of rows in front": Bad(
        C.COLUMN_UNKNOWN, ("column 1 ",), lambda text: written([["", *HEADER], *([str(at), *row] for at, row in enumerate(ROWS))])
    ),
    "an ignored column that is there twice": Bad(
        C.COLUMN_UNKNOWN, ("column 8",), lambda text: written([[*row, row[-1]] for row in [HEADER, *ROWS]])
    ),
    "a column that takes the name of its twin": Bad(
        C.COLUMN_UNKNOWN,
        ("column 8", "twice"),
        lambda text: written([[*HEADER, "amount"], *([*row, "999"] for row in ROWS)]),
        planted="999",
        study={"columns": {**STUDY["columns"], "amount.1": {"type": "integer", "min": 0, "max": 999}}},
    ),
    "the header twice": Bad(C.NOT_A_TIME, ("day",), lambda text: text.replace("\n", "\n" + ",".join(HEADER) + "\n", 1)),
    "20,000 columns": Bad(
        C.COLUMN_UNKNOWN,
        ("column 8 ",),
        lambda text: written([[*HEADER, *(f"c{at}" for at in range(20_000))], *([*row, *["8"] * 20_000] for row in ROWS[:4])]),
    ),
}
NUMBER_CASES = (
    cells("amount", C.NOT_A_NUMBER, "not a number", "1,5", "1.234,56", "1,234.56", "1 234", "1\u00a0234", "1'234")
    | cells("amount", C.NOT_A_NUMBER, "not a number", "1_234", "0x1F", "1.2.3", "--1", "+-1", "12e", "1d3", "12%")
    | cells("amount", C.NOT_A_NUMBER, "not a number", "$12", "(12)", "12-", "12 kg", "<12", "~12", "\u22121.5")
    | cells("amount", C.NOT_A_NUMBER, "not a number", "\u0661\u0662", "\uff11\uff12", "\u00bd", "1\u200b2")
    | cells("amount", C.NOT_A_NUMBER, "not a number", "TRUE", "#REF!", "#N/A", "NULL", "None", "<NA>", "1+2j")
    | cells("visits", C.NOT_A_NUMBER, "not a number", "1,234", "1_000", "0x1F", "\u0661\u0662", "1e", "TRUE", "'77")
    | cells("visits", C.NOT_A_NUMBER, "not a whole number", "1.5e0", "1e-400", "1e-9999999999999999999")
    | cells("visits", C.NOT_FINITE, "finite", "NaN", "1e309", "9" * 5000)
    | cells("visits", C.OUT_OF_BOUNDS, "min=", "9223372036854775808", "-9223372036854775809", "9.3e18", "1e308")
    | cells("amount", C.OUT_OF_BOUNDS, "min=", "1000.0000001", "1e308")
)
DATE_CASES = (
    cells("day", C.NOT_A_TIME, "ISO 8601", "2026-02-30", "2026-13-01", "30/01/2026", "01/30/2026", "30.1.2026")
    | cells("day", C.NOT_A_TIME, "ISO 8601", "20260130", "2026-1-3", "26-01-03", "46023", "1767225600", "2026-W01-1")
    | cells("day", C.NOT_A_TIME, "ISO 8601", "2026-01-03T24:00", "2026-01-03 00:60", "0000-00-00", "today", "NaT")
    | cells("day", C.NOT_A_TIME, "ISO 8601", "\uff12026-01-03", "2026-01-03T00:00:00." + "0" * 5000)
    | cells("day", C.NOT_A_TIME, "whole day", "2026-01-03 07:30")
    | cells("day", C.OUT_OF_BOUNDS, "max=2026-12-31", "9999-12-31", "0001-01-01", "2027-01-01")
)
CATEGORY_CASES = (
    cells("code", C.UNLISTED_CATEGORY, "listed", "07", "7.0", "0007", "'007", "''=1+1", '"7"', "=1+2", "=cmd|'/c'!A0")
    | cells("code", C.UNLISTED_CATEGORY, "listed", "cafe\u0301", "caf\u00e9\u200b", "a, b", "a;b", "7\n7", "q" * 100_000)
    | cells("ill", C.UNLISTED_CATEGORY, "listed", "Yes", "1", "true", "y\u0435s")
    | cells("patient", C.MISSING_NOT_ALLOWED, "unit key", "", "\t", "\u00a0")
)


def put_fifo(path: Path) -> None:
    os.mkfifo(path)


def put_locked(path: Path) -> None:
    path.write_text(TABLE, encoding="utf-8")
    path.chmod(0)


FILE_CASES = {
    "a pipe": Bad(C.TABLE_NOT_FOUND, ("table.csv",), make=put_fifo),
    "a folder": Bad(C.TABLE_NOT_FOUND, ("table.csv",), make=Path.mkdir),
    "a device": Bad(C.TABLE_NOT_FOUND, ("table.csv",), make=lambda path: path.symlink_to("/dev/zero")),
    "a link to nothing": Bad(C.TABLE_NOT_FOUND, ("table.csv",), make=lambda path: path.symlink_to("nothing")),
    "a link to itself": Bad(C.TABLE_NOT_FOUND, ("table.csv",), make=lambda path: path.symlink_to(path.name)),
    "a file with a hole": Bad(C.TABLE_UNREADABLE, ("table.csv", "line"), make=with_zeros),
    "an empty packed file": Bad(C.TABLE_EMPTY, ("table.csv.gz", "empty"), holding(b""), file="table.csv.gz"),
    "a packed file of nothing": Bad(C.TABLE_EMPTY, ("table.csv.gz", "empty"), holding(packed("")), file="table.csv.gz"),
    "a packed file cut in its header": Bad(
        C.TABLE_UNREADABLE, ("table.csv.gz",), lambda text: packed(text)[:7], file="table.csv.gz"
    ),
    "a packed file with more behind it": Bad(
        C.TABLE_UNREADABLE, ("table.csv.gz",), lambda text: packed(text) + SECRET.encode(), file="table.csv.gz"
    ),
    "a table packed twice": Bad(
        C.TABLE_UNREADABLE, ("table.csv.gz", "UTF-8"), lambda text: packed(packed(text)), file="table.csv.gz"
    ),
    "an archive in place of a packed file": Bad(C.TABLE_UNREADABLE, ("table.csv.gz",), archive, file="table.csv.gz"),
    "a Parquet file with a plain name": Bad(
        C.TABLE_UNREADABLE, ("table.csv",), holding(b"PAR1\x15\x04\x15\xff\xfe" + SECRET.encode() + b"PAR1")
    ),
    "a file that nobody may read": Bad(C.TABLE_UNREADABLE, ("table.csv",), make=put_locked),
}
CASES = TEXT_CASES | HEADER_CASES | NUMBER_CASES | DATE_CASES | CATEGORY_CASES | FILE_CASES


def parameters(cases: dict[str, Any]) -> list[Any]:
    marks = {"a file that nobody may read": pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")}
    return [pytest.param(case, id=name, marks=marks.get(name, ())) for name, case in cases.items()]


def put(path: Path, content: Content) -> None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def home_of(folder: Path, study: dict[str, Any] | None = None, *, file: str = "table.csv") -> Home:
    """A site whose table has a name, and is not there yet."""
    home = make_home(folder, study={**STUDY, **(study or {})})
    (folder / "table.csv").unlink()
    settings = folder / "site.yaml"
    settings.write_text(settings.read_text(encoding="utf-8").replace("table.csv", file), encoding="utf-8")
    return home


def ask(home: Home, site: Site, *kinds: str) -> list[bytes]:
    return [site.handle(home.ask(kind).encode()) for kind in kinds]


def counted(home: Home, path: Path, content: Content) -> np.ndarray:
    """What a site with this table counts, in its one-way tables."""
    put(path, content)
    (body,) = ask(home, home.open(), "one_way")
    reply = Reply.decode(body)
    assert reply.refused is None
    return below_noise(reply, "run-1/one_way")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with threadpool_limits(1):
        yield


@pytest.mark.timeout(60)
@pytest.mark.parametrize("bad", parameters(CASES))
def test_a_bad_file_is_refused_in_one_line_and_costs_nothing(
    bad: Bad, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    home = home_of(tmp_path / "north", bad.study, file=bad.file)
    path = home.folder / bad.file
    put(path, bad.change(TABLE)) if bad.make is None else bad.make(path)
    before = home.state
    site = home.open(forbidden())
    with caplog.at_level(logging.DEBUG):
        # What the coordinator hears is the same, whatever is wrong, and says nothing.
        kinds = ("describe", "one_way")
        assert ask(home, site, *kinds) == [refusal("north", ExitCode.INTERNAL)] * len(kinds)
        assert refused(*ask(home, site, "witness")) is None
    options = {"--study": home.folder / "study.yaml", "--data": path, "--out": tmp_path / "run", "--sites": 2}
    result = invoke([str(part) for option in options.items() for part in option])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert (result.exit_code, result.stdout) == (bad.code, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert all(part in line for part in bad.says), line
    # The steward's log has the same line.
    reason = f"site=north event=table_refused reason={line.removeprefix('error: ')}"
    assert [record.getMessage() for record in caplog.records] == [reason] * len(kinds)
    printed = capfd.readouterr()
    heard = "".join((line, caplog.text, printed.out, printed.err, *map(repr, map(vars, caplog.records))))
    for cell in (SECRET, bad.planted or SECRET):
        assert cell not in heard
        assert not [name for name, body in home.state.items() if cell.encode() in body]
    assert "Traceback" not in heard
    assert home.charged == charges_below(tmp_path) == []
    assert home.state.keys() - before.keys() <= {"witness.json"}
    # A file that is mended is taken by the site that is running.
    path.rmdir() if path.is_dir() else path.unlink()
    put(path, packed(written([HEADER, *ROWS])) if path.suffix == ".gz" else table_of(home))
    assert refused(*ask(home, site, "describe")) is None


def table_of(home: Home) -> str:
    """The good table, with the columns that a study has beside those of the others, empty."""
    more = [name for name in home.study.columns if name not in HEADER]
    return written([[*HEADER, *more], *([*row, *("5" for _ in more)] for row in ROWS)])
