"""Files that a site may be given by mistake: taken with the documented meaning, or refused in one clean line.

Each is tried at a real site and by the command of a simulation, with the same study. What the vault counts says what a
table was taken for; a refusal spends nothing, repeats no cell, and leaves the site at work. Beyond `test_bad_input.py`.
"""

import csv
import functools
import gzip
import io
import json
import logging
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from threadpoolctl import threadpool_limits

from client.delimited import read_chunks
from client.site import Site
from common.data.schema import FileLayout
from common.errors import ExitCode, SchemaError
from common.wire.messages import Reply, refusal
from tests.client.homes import MEASUREMENTS, SINGLE, WINDOWED, Home, below_noise, forbidden, make_home, refused
from tests.logs import whole
from tests.simulations.test_bad_input import charges_below, invoke, written

PLANTED = "GEHEIM"  # in the key of every unit, and in a column that the study ignores
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
        "day": {"type": "datetime", "min": "2026-01-01", "max": "2026-12-31", "cells": 73, "missing": True},
        "visits": {"type": "integer", "min": -(2**63), "max": 2**63 - 1, "special": [*range(9)], "missing": True},
        "amount": {"type": "continuous", "min": -1000, "max": 1000, "cells": 400, "missing": True},
        "ill": {"type": "categorical", "categories": ["no", "yes"]},
    },
    "privacy": {"epsilon": 1, "delta": 1e-5, "holdout": 0.1},
    "rounds": {"count": 1, "trainers": 2, "local_steps": 1, "refine_steps": 1},
    "model": {"latent": 2, "width": 8, "blocks": 1, "batch": 8},
}
ROWS = [
    [
        f"{PLANTED}-p{unit}",
        CODES[unit % 5],
        f"2026-{1 + unit % 12:02d}-{1 + unit:02d}",
        str(unit % 9),
        f"{unit * 31.25 - 300:.2f}",
        ("yes", "no", "no")[unit % 3],
        f"{PLANTED}-{unit}",
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
    """A file with a hole of 256 MiB in it, as a disk that was full leaves behind."""
    with path.open("wb") as file:
        file.write(TABLE.encode())
        file.truncate(2**28)


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
    """One bad cell each; a short one, or a bound, may stand in a line by chance."""
    return {
        f"{column} {value[:16]!r}": Bad(
            code,
            (f"{column}: ", says),
            with_cell(column, value),
            planted=None if len(value) < 6 or value in str(-(2**63)) else value,
        )
        for value in values
    }


C = ExitCode
COMMENTED = {"table": {"comment": "#"}}
TEXT_CASES = {
    "UTF-16 without a mark": Bad(C.TABLE_UNREADABLE, ("UTF-8",), lambda text: text.encode("utf-16-be") + b"\xd8\0"),
    "UTF-16 without a mark, ASCII alone": Bad(
        C.TABLE_UNREADABLE, ("cells",), lambda text: text.replace("é", "e").encode("utf-16-le")
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
        C.UNLISTED_CATEGORY, ("code",), lambda text: text + "\ufeff" + text, planted="GEHEIM-p7"
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
        C.TABLE_UNREADABLE, ("table.csv",), with_line(f'{PLANTED}-p4,"7"7,2026-05-05,1,1,no,x'), planted='"7'
    ),
    "a quote that never ends, and 300,000 letters behind it": Bad(
        C.TABLE_UNREADABLE, ("table.csv",), lambda text: text + '"' + "q,q\n" * 75_000, planted="q,q"
    ),
    "a quote that swallows a row": Bad(
        C.TABLE_UNREADABLE,
        ("table.csv", "cells"),
        lambda text: (
            text.replace(f"{PLANTED}-4\n", f'"{PLANTED}-4\n', 1).replace(f"{PLANTED}-5\n", f'{PLANTED}-5"\n', 1) + "x\n"
        ),
    ),
    "quotes of another kind": Bad(C.TABLE_UNREADABLE, ("table.csv", "cells"), lambda text: text.replace('"', "'")),
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
        C.TABLE_UNREADABLE, ("cells",), in_front(f"# exported by {PLANTED}\n")
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
    "rows of delimiters alone": Bad(C.MISSING_NOT_ALLOWED, ("patient",), lambda text: text + ",,,,,,\n"),
    "rows of delimiters alone, too few": Bad(C.TABLE_UNREADABLE, ("cells",), lambda text: text + ",,\n"),
    "a program's output": Bad(C.COLUMN_MISSING, ("patient",), holding(f'{{"patient": "{PLANTED}"}}\n')),
    "a comment that hides a delimiter": Bad(
        C.TABLE_UNREADABLE, ("cells",), with_line(f"{PLANTED}-p4,7,2026-05-05,1,1 # old,no,x"), study=COMMENTED
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
        C.COLUMN_UNKNOWN,
        ("column 5", "twice"),
        with_names(lambda names: ["" if one in ("visits", "amount") else one for one in names]),
    ),
    "numbers of rows in front": Bad(
        C.COLUMN_UNKNOWN,
        ("column 1 ",),
        lambda text: written([["", *HEADER], *([str(at), *row] for at, row in enumerate(ROWS))]),
    ),
    "an ignored column that is there twice": Bad(
        C.COLUMN_UNKNOWN, ("column 8",), lambda text: written([[*row, row[-1]] for row in [HEADER, *ROWS]])
    ),
    "a column that takes the name of its twin": Bad(
        C.COLUMN_UNKNOWN,
        ("column 8", "twice"),
        lambda text: written([[*HEADER, "amount"], *([*row, "271828183"] for row in ROWS)]),
        planted="271828183",
        study={"columns": {**STUDY["columns"], "amount.1": {"type": "integer", "min": 0, "max": 10**9}}},
    ),
    "the header twice": Bad(
        C.UNLISTED_CATEGORY, ("code",), lambda text: text.replace("\n", "\n" + ",".join(HEADER) + "\n", 1)
    ),
    "5,000 columns": Bad(
        C.COLUMN_UNKNOWN,
        ("column 8 ",),
        lambda text: written(
            [[*HEADER, *(f"c{at}" for at in range(5_000))], *([*row, *["8"] * 5_000] for row in ROWS[:4])]
        ),
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
    | cells(
        "code", C.UNLISTED_CATEGORY, "listed", "cafe\u0301", "caf\u00e9\u200b", "a, b", "a;b", "7\n7", "q" * 100_000
    )
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
        C.TABLE_UNREADABLE, ("table.csv.gz",), lambda text: packed(text) + PLANTED.encode(), file="table.csv.gz"
    ),
    "a table packed twice": Bad(
        C.TABLE_UNREADABLE, ("table.csv.gz", "UTF-8"), lambda text: packed(packed(text)), file="table.csv.gz"
    ),
    "an archive in place of a packed file": Bad(C.TABLE_UNREADABLE, ("table.csv.gz",), archive, file="table.csv.gz"),
    "a Parquet file with a plain name": Bad(
        C.TABLE_UNREADABLE, ("table.csv",), holding(b"PAR1\x15\x04\x15\xff\xfe" + PLANTED.encode() + b"PAR1")
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
    """A site whose table is not there yet."""
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


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Bad], tuple[Home, Site]]:
    """The site of a case. It stays at work: cases that have its study and its file's name come to it one by one."""

    @functools.cache
    def make(file: str, study: str) -> tuple[Home, Site]:
        home = home_of(tmp_path_factory.mktemp("north"), json.loads(study), file=file)
        return home, home.open(forbidden())

    return lambda bad: make(bad.file, json.dumps(bad.study))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("bad", parameters(CASES))
def test_a_bad_file_is_refused_in_one_line_and_costs_nothing(
    bad: Bad,
    opened: Callable[[Bad], tuple[Home, Site]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    home, site = opened(bad)
    path = tmp_path / bad.file
    put(path, bad.change(TABLE)) if bad.make is None else bad.make(path)
    (home.folder / bad.file).unlink(missing_ok=True)
    (home.folder / bad.file).symlink_to(path)
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
    reason = line.removeprefix("error: ").replace(str(path), str(home.folder / bad.file))
    assert [record.getMessage() for record in caplog.records] == [
        f"site=north event=table_refused reason={reason}"
    ] * len(kinds)
    printed = capfd.readouterr()
    heard = "".join((line, caplog.text, printed.out, printed.err, *map(whole, caplog.records)))
    for cell in (PLANTED, bad.planted or PLANTED):
        assert cell not in heard
        assert not [name for name, body in home.state.items() if cell.encode() in body]
    assert "Traceback" not in heard
    assert home.charged == charges_below(tmp_path) == []
    assert not list(tmp_path.glob("run/**/*"))


def test_a_running_site_takes_a_table_once_it_is_mended(tmp_path: Path) -> None:
    home = home_of(tmp_path / "north")
    site = home.open(forbidden())
    for content, rule in ((TABLE[:-30], "INTERNAL"), (TABLE, None)):
        put(home.folder / "table.csv", content)
        assert refused(*ask(home, site, "describe")) == rule


@dataclass(frozen=True)
class Good:
    """A file that is taken, and the plain table, by its changed cells, that means the same."""

    change: Change
    cells: dict[tuple[int, str], str] = field(default_factory=dict)
    file: str = "table.csv"
    study: dict[str, Any] = field(default_factory=dict)


def spelled(column: str, meaning: str, *spellings: str) -> dict[str, Good]:
    """Spellings of one cell, which all mean the same."""
    return {
        f"{column} {spelling!r}": Good(with_cell(column, spelling), {(CHANGED, column): meaning})
        for spelling in spellings
    }


def quoted(text: str) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(csv.reader(io.StringIO(text)))
    return file.getvalue()


def noted(note: str) -> Good:
    return Good(with_cell("note", note))


GOOD = (
    {
        "other names of the file": Good(str, file="TABLE.TXT"),
        "columns in another order": Good(lambda text: written([row[::-1] for row in [HEADER, *ROWS]])),
        "rows in another order": Good(lambda text: written([HEADER, *ROWS[::-1]])),
        "a column that is ignored and not there": Good(lambda text: written([row[:-1] for row in [HEADER, *ROWS]])),
        "quotes around everything, and a mark": Good(lambda text: "\ufeff" + quoted(text)),
        "lone CR": Good(lambda text: text.replace("\n", "\r")),
        "all kinds of line ends": Good(lambda text: text.replace("\n", "\r\n", 9).replace("\r\n", "\r", 4)),
        "no line end at the end": Good(lambda text: text.rstrip()),
        "lines of blanks": Good(lambda text: text.replace("\n", "\n   \n")),
        "blanks before cells": Good(lambda text: text.replace(",", ", ").replace('"a, b"', '"a,b"')),
        "packed in two parts": Good(lambda text: packed(text[:300], text[300:]), file="table.csv.gz"),
        "a note with quotes": noted('she said "no"'),
        "a note over two lines, with delimiters": noted("a,b\nc,d\r\n"),
        "a note of 100,000 letters": noted("q" * 100_000),
        "a note that is a formula": noted('=HYPERLINK("http://example.org","x")'),
        "a note with other ends of lines": noted("a\u2028b\x0bc\x0cd\x85e"),
        "a note with a NUL byte": noted("a\0b"),
        "comments": Good(lambda text: "# exported\n" + text.replace("GEHEIM-4\n", "GEHEIM-4# old\n"), study=COMMENTED),
        "a comment's mark within quotes": Good(with_cell("note", "room #7, bed 2"), study=COMMENTED),
        "a comment's mark within quotes, over two lines": Good(
            with_cell("note", 'bed "2"\nroom #7, and "more" # of it'), study=COMMENTED
        ),
    }
    | spelled("visits", "7", " 7 ", "+7", "7.0", "7.", "7e0", "0.7e1", "70e-1", "007", "7." + "0" * 400)
    | spelled("visits", "0", "-0", "-0.0", "0e999")
    | spelled("visits", str(2**63 - 1), "9223372036854775807", "9.223372036854775807e18")
    | spelled("amount", "0", "-0", "-0.0", "1e-400", "-1e-5000", ".0", "0.", "00")
    | spelled("amount", "500", "5e2", "5E+2", "+500", "0500", "500.", "499.99999999999999999999", "\u00a0500")
    | spelled("day", "2026-05-06", "2026-05-06T00:00", "2026-05-06 00:00:00", "2026-05-06 00:00:00.000")
    | spelled("code", "=1+1", "'=1+1", " =1+1")
    | spelled("code", "", " ", "\t")
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[tuple[int, str], str]], np.ndarray]:
    """What is counted of the table with some cells changed, plainly written."""

    @functools.cache
    def make(cells: tuple[tuple[tuple[int, str], str], ...]) -> np.ndarray:
        home = home_of(tmp_path_factory.mktemp("plain"))
        return counted(home, home.folder / "table.csv", table_with(dict(cells)))

    return lambda cells: make(tuple(cells.items()))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("good", parameters(GOOD))
def test_a_file_that_is_odd_counts_as_the_plain_one_that_means_the_same(
    good: Good, plain: Callable[[dict[tuple[int, str], str]], np.ndarray], tmp_path: Path
) -> None:
    home = home_of(tmp_path / "odd", good.study, file=good.file)
    expected = plain(good.cells)
    assert not good.cells or np.any(expected != plain({}))
    np.testing.assert_array_equal(counted(home, home.folder / good.file, good.change(TABLE)), expected)


@pytest.mark.parametrize(
    ("change", "units"),
    [
        pytest.param(lambda text: text.splitlines()[0], 0, id="a header alone"),
        pytest.param(lambda text: "".join(text.splitlines(keepends=True)[:2]), 1, id="one row"),
        pytest.param(with_columns({"ill": "no"}), 24, id="one class"),
        pytest.param(with_columns({"amount": "5"}), 24, id="a constant column"),
        pytest.param(with_columns(dict.fromkeys(("code", "day", "visits", "amount"), "")), 24, id="nothing but units"),
        pytest.param(lambda text: text + "\n".join(text.splitlines()[1:]), 24, id="every row twice"),
        pytest.param(lambda text: text + (text.splitlines()[1] + "\n") * 240, 24, id="a unit with nine rows of ten"),
    ],
)
def test_what_would_be_too_little_for_a_study_is_counted_at_a_site(
    change: Change, units: int, tmp_path: Path, plain: Callable[[dict[tuple[int, str], str]], np.ndarray]
) -> None:
    """A refusal would tell something of the rows. A unit counts once in each table, whatever it owns."""
    home = home_of(tmp_path / "north")
    each = 4 * home.study.unit.max_records  # of four columns; the first unit is not held out
    expected = {0: 0, 1: each, 24: plain({}).sum()}[units]
    assert counted(home, home.folder / "table.csv", change(TABLE)).sum() == expected


@pytest.mark.parametrize(("unlisted", "rows"), [("refuse", 10**6), ("other", 10**5)])
def test_a_million_categories_are_one_line_or_one_cell(
    unlisted: str, rows: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = {"type": "categorical", "categories": ["a", "b"], "unlisted": unlisted}
    columns = {"code": code, "ill": STUDY["columns"]["ill"]}
    home = home_of(tmp_path / "north", {"unit": {"name": "patient"}, "columns": columns, "ignore": []})
    put(home.folder / "table.csv", "code,ill\n" + "".join(f"{PLANTED}{at},no\n" for at in range(rows)))
    (body,) = ask(home, home.open(), "one_way")
    assert PLANTED not in caplog.text
    if unlisted == "other":
        assert np.count_nonzero(below_noise(Reply.decode(body), "run-1/one_way")) == 1
    else:
        assert body == refusal("north", ExitCode.INTERNAL)
        assert "code: a value is not among the listed" in caplog.text
        assert home.charged == []


# Members of a packed file that unpack to 16 MiB each; four GiB in all.
_BOMBS = {
    "of one line": (b"q" * 2**24, "longer than"),
    "of rows": (b"GEHEIM-p1,7,2026-01-01,1,1,no,GEHEIM\n" * (2**24 // 37), "unpacks to more than"),
}
_READ = """
import resource, sys
from pathlib import Path
from client.records import read_text
from common.errors import PrivShareError
from common.study import load_study
study = load_study(Path(sys.argv[1]))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
try:
    read_text(Path(sys.argv[2]), study)
except PrivShareError as error:
    print(int(error.code), error)
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", _BOMBS)
def test_a_packed_bomb_is_refused_within_256_mib(kind: str, tmp_path: Path) -> None:
    home = home_of(tmp_path / "north", file="table.csv.gz")
    member, says = _BOMBS[kind]
    path = home.folder / "table.csv.gz"
    path.write_bytes(packed(",".join(HEADER) + "\n") + packed(member) * 256)
    done = subprocess.run(
        [sys.executable, "-c", _READ, str(home.folder / "study.yaml"), str(path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.stderr == ""
    assert done.stdout.startswith(f"{int(ExitCode.TABLE_UNREADABLE)} {path}: ")
    assert says in done.stdout


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda path: path.write_text(TABLE + TABLE), "changed while it was read"),
        (lambda path: path.unlink(), "not a table"),
        (lambda path: path.with_name("other.csv").replace(path), "changed while it was read"),
    ],
    ids=["written", "gone", "another"],
)
def test_a_file_that_changes_while_it_is_read_is_refused(
    change: Callable[[Path], object], says: str, tmp_path: Path
) -> None:
    path = tmp_path / "table.csv"
    put(path, TABLE)
    put(path.with_name("other.csv"), TABLE)
    pieces = read_chunks(path, FileLayout(), rows=5, checked=set())
    next(pieces)
    change(path)
    with pytest.raises(SchemaError, match=says):
        list(pieces)


def test_what_was_looked_at_is_looked_at_again_once_it_is_another(tmp_path: Path) -> None:
    path, checked = tmp_path / "table.csv", set[tuple[int, int, int, int]]()
    put(path, TABLE)
    list(read_chunks(path, FileLayout(), rows=5, checked=checked))
    put(path, TABLE + "x\n")
    with pytest.raises(SchemaError, match="cells"):
        list(read_chunks(path, FileLayout(), rows=5, checked=checked))


def test_a_link_to_a_table_is_followed(tmp_path: Path) -> None:
    home = home_of(tmp_path / "north")
    put(tmp_path / "export.csv", TABLE)
    (home.folder / "table.csv").symlink_to("../export.csv")
    assert refused(*ask(home, home.open(), "describe")) is None


SERIES_HEADER = "patient,minute,pulse,drug\n"


@pytest.mark.parametrize(
    ("series", "says"),
    [
        ("p0,0,40,a\np0,0,41,a\n", "minute: "),
        ("p0,7,40,a\np0,0,41,a\n", "minute: "),
        ("p0,GEHEIM,40,a\n", "minute: "),
        ("p0,nan,40,a\n", "minute: "),
        ("p0,1e309,40,a\n", "minute: "),
        (",0,40,a\n", "patient: "),
        ("GEHEIM,0,40,a\n", "patient: "),
        ("p0,0,GEHEIM,a\n", "pulse: "),
        ("p0,0,40,GEHEIM\n", "drug: "),
        ("p0,0,40\n", "cells"),
        ('p0,0,40,"a\n', "not a table"),
    ],
    ids=[
        "a time twice",
        "times that overlap",
        "no time",
        "NaN",
        "infinite",
        "no unit",
        "an unknown unit",
        "no number",
        "no category",
        "a short row",
        "a quote without end",
    ],
)
def test_a_bad_long_table_is_heard_of_as_any_bad_table(
    series: str, says: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home = make_home(tmp_path / "north", SINGLE, study=WINDOWED)
    put(home.folder / "series.csv", SERIES_HEADER + series)
    site = home.open(forbidden())
    bodies = ask(home, site, "describe", *MEASUREMENTS)
    assert bodies == [refusal("north", ExitCode.INTERNAL)] * (1 + len(MEASUREMENTS))
    assert says in caplog.text
    assert PLANTED not in caplog.text
    assert home.charged == []


def parquet(**columns: Any) -> bytes:
    """The good table, with other columns."""
    text = {name: [row[at] or None for row in ROWS] for at, name in enumerate(HEADER)}
    found = io.BytesIO()
    pq.write_table(pa.table({**text, **columns}), found)
    return found.getvalue()


_NUMBERS = [unit % 9 for unit in range(24)]
PARQUET_CASES = {
    "nothing": Bad(C.TABLE_UNREADABLE, ("table.parquet", "Parquet"), holding(b"")),
    "text": Bad(C.TABLE_UNREADABLE, ("table.parquet", "Parquet"), str),
    "a magic alone": Bad(C.TABLE_UNREADABLE, ("table.parquet", "Parquet"), holding(b"PAR1")),
    "another magic": Bad(C.TABLE_UNREADABLE, ("Parquet",), lambda _: b"PARX" + parquet()[4:-4] + b"PARX"),
    "cut at the end": Bad(C.TABLE_UNREADABLE, ("Parquet",), lambda _: parquet()[:-9]),
    "cut in the middle": Bad(C.TABLE_UNREADABLE, ("Parquet",), lambda _: parquet()[:400] + parquet()[-4:]),
    "pages that are damaged": Bad(
        C.TABLE_UNREADABLE, ("Parquet",), lambda _: parquet()[:4] + bytes(300) + parquet()[304:]
    ),
    "lists": Bad(C.TABLE_UNREADABLE, ("visits: ",), lambda _: parquet(visits=[[1, 2]] * 24)),
    "documents": Bad(C.TABLE_UNREADABLE, ("visits: ",), lambda _: parquet(visits=[{PLANTED: 1}] * 24)),
    "bytes": Bad(C.TABLE_UNREADABLE, ("code: ",), lambda _: parquet(code=[b"7"] * 24)),
    "durations": Bad(C.TABLE_UNREADABLE, ("visits: ",), lambda _: parquet(visits=[timedelta(1)] * 24)),
    "truths": Bad(C.NOT_A_NUMBER, ("visits: ",), lambda _: parquet(visits=[True] * 24)),
    "NaN": Bad(C.NOT_FINITE, ("amount: ",), lambda _: parquet(amount=[float("nan")] * 24)),
    "infinite": Bad(C.NOT_FINITE, ("amount: ",), lambda _: parquet(amount=[float("inf")] * 24)),
    "numbers without a sign, too big": Bad(
        C.OUT_OF_BOUNDS, ("visits: ",), lambda _: parquet(visits=pa.array([2**64 - 1] * 24, pa.uint64()))
    ),
    "a column too many": Bad(C.COLUMN_UNKNOWN, ("column 8",), lambda _: parquet(more=_NUMBERS)),
    "half an hour": Bad(
        C.NOT_A_TIME, ("day: ",), lambda _: parquet(day=[datetime.fromisoformat("2026-01-01 00:30")] * 24)
    ),
    "a zone": Bad(C.NOT_A_TIME, ("day: ",), lambda _: parquet(day=[datetime(2026, 1, 1, tzinfo=UTC)] * 24)),
    "a time of day": Bad(C.TABLE_UNREADABLE, ("day: ",), lambda _: parquet(day=[time(7)] * 24)),
}
PARQUET_GOOD = {
    "text": ({}, {}),
    "whole numbers": ({"visits": _NUMBERS}, {}),
    "whole numbers as floats": ({"visits": [float(one) for one in _NUMBERS]}, {}),
    "numbers of fixed point": ({"amount": [Decimal(row[4]) for row in ROWS]}, {}),
    "floats": ({"amount": [float(row[4]) for row in ROWS]}, {}),
    "dates": ({"day": [date.fromisoformat(row[2]) for row in ROWS]}, {}),
    "moments": ({"day": [datetime.fromisoformat(row[2]) for row in ROWS]}, {}),
    "a dictionary": ({"code": pa.array([row[1] for row in ROWS]).dictionary_encode()}, {}),
    "nothing at all": ({"visits": [None] * 24}, {(row, "visits"): "" for row in range(24)}),
    "negative zero": ({"amount": [-0.0] * 24}, {(row, "amount"): "0" for row in range(24)}),
}


def parquet_home(folder: Path) -> Home:
    home = home_of(folder, file="table.parquet")
    settings = home.folder / "site.yaml"
    settings.write_text(settings.read_text(encoding="utf-8").replace("type: csv", "type: parquet"), encoding="utf-8")
    return home


@pytest.mark.parametrize("bad", parameters(PARQUET_CASES))
def test_a_bad_parquet_file_is_refused_in_one_line_and_costs_nothing(
    bad: Bad, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home = parquet_home(tmp_path / "north")
    put(home.folder / "table.parquet", bad.change(TABLE))
    site = home.open(forbidden())
    assert ask(home, site, "describe", "one_way") == [refusal("north", ExitCode.INTERNAL)] * 2
    (reason, again) = (record.getMessage() for record in caplog.records)
    assert reason == again
    assert reason.startswith("site=north event=table_refused reason=")
    assert all(part in reason for part in bad.says), reason
    assert PLANTED not in caplog.text
    assert home.charged == []


@pytest.mark.parametrize("name", PARQUET_GOOD)
def test_a_parquet_file_counts_as_the_text_that_means_the_same(
    name: str, plain: Callable[[dict[tuple[int, str], str]], np.ndarray], tmp_path: Path
) -> None:
    columns, changed = PARQUET_GOOD[name]
    home = parquet_home(tmp_path / "north")
    counts = counted(home, home.folder / "table.parquet", parquet(**columns))
    np.testing.assert_array_equal(counts, plain(changed))
