"""A thousand secrets in a site's tables, and not one of them in anything that a site sends, writes, logs or prints.

Chance does not make what is looked for: texts have 12 letters, numbers 15 digits, patterns in memory 8 bytes or more.
At a place where bytes are random (keys, hashes, signatures, and more than there is) a pattern is met with chance 2^-64,
in a hash that is written out a number with 16^-15, and a text with none that has a letter after f. Fewer than 2^23
places and 2^14 patterns make a false alarm less likely than 2^-23. Released sums are whole numbers of few bits, whose
bytes are 0 or 255 but for two or three in eight.
"""

import base64
import contextlib
import hashlib
import io
import logging
import os
import string
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import client.site
from client.records import parse_text, read_records, read_series_text, read_text, read_windows
from client.site import Site
from common.data.encoding import make_grids
from common.errors import ExitCode, SchemaError
from common.privacy.noise import SeededNoise
from common.wire.messages import Reply, refusal
from tests.client.homes import (
    MEASUREMENTS,
    PEERS,
    WINDOWED,
    Home,
    Row,
    forbidden,
    make_home,
    refused,
)
from tests.client.rounds import Line, conduct, kept_log
from tests.logs import whole

ROOT = Path(__file__).resolve().parents[2]
PATIENTS = 125
"""Each with eight secrets."""
INPUTS = ("table.csv", "series.csv", "site.yaml", "study.yaml", "policy.yaml", "policy.yaml.sig")

STUDY: dict[str, Any] = {
    **WINDOWED,
    "columns": {
        "colour": {"type": "categorical", "categories": ["red", "green"], "unlisted": "other", "missing": True},
        "age": {"type": "integer", "min": 0, "max": 2**52, "cells": 20, "missing": True},
        "amount": {"type": "continuous", "min": 0, "max": 1e12, "cells": 8},
        "debt": {"type": "continuous", "min": -100, "max": 100, "cells": 4, "outside": "clip"},
        "ill": {"type": "categorical", "categories": ["no", "yes"]},
    },
    "ignore": ["name"],
    "windows": {
        **WINDOWED["windows"],
        "channels": {
            "pulse": {"type": "continuous", "min": 0, "max": 1e12, "cells": 20, "missing": True},
            "drug": {"type": "categorical", "categories": ["a", "b", "c"]},
        },
        "ignore": ["remark"],
    },
}
HEADER = "patient,name,colour,age,amount,debt,ill"
SERIES = "patient,minute,pulse,drug,remark"


@dataclass(frozen=True)
class Plant:
    """A site's two tables, and what was planted in them."""

    rows: list[Row]
    series: list[Row]
    secrets: list[str]


def plant(seed: int = 0) -> Plant:
    """Tables of `PATIENTS`, each of whom has a row of secrets and two steps."""
    random = np.random.default_rng(seed)

    def text() -> str:
        return "".join(random.choice(list(string.ascii_lowercase), 12))

    def digits(whole: int, decimals: int) -> str:
        number = "".join(map(str, random.integers(1, 10, whole + decimals)))
        return f"{number[:whole]}.{number[whole:]}" if decimals else number

    rows, series, secrets = [], [], []
    for number in range(PATIENTS):
        key, name, colour, remark = (text() for _ in range(4))
        age, amount, debt, pulse = digits(15, 0), digits(11, 4), "-" + digits(12, 3), digits(11, 4)
        rows.append((key, name, colour, age, amount, debt, "no" if number % 3 else "yes"))
        series += [(key, "0", pulse, "a", remark), (key, "1", "", "b", "")]
        secrets += [key, name, colour, remark, age, amount, debt.removeprefix("-"), pulse]
    return Plant(rows, series, secrets)


def make_planted(folder: Path, planted: Plant, **how: Any) -> Home:
    """A site with these tables."""
    home = make_home(folder, planted.rows, header=HEADER, study=STUDY, series=[], peers=PEERS, **how)
    long = [SERIES, *map(",".join, planted.series)]
    (home.folder / "series.csv").write_text("\n".join(long) + "\n", encoding="utf-8", errors="surrogateescape")
    grids = (*make_grids(home.study.measured), *make_grids(home.study.channels))
    return replace(home, maps=[np.arange(grid.n_cells) for grid in grids])


# --- looking for them


def patterns_of(secret: str) -> Iterator[bytes]:
    """What a secret may look like: as text, hashed to look harmless, or as a number in memory."""
    plain = secret.encode()
    digest = hashlib.sha256(plain)
    yield from (plain, plain.upper(), secret.encode("utf-16-le"), plain.hex().encode())
    yield from (digest.digest(), digest.hexdigest().encode(), hashlib.md5(plain, usedforsecurity=False).digest())
    yield base64.b64encode(plain).rstrip(b"=")[:-1]
    yield struct.pack("<Q", int(pd.util.hash_array(np.array([secret], dtype=object))[0]))
    if secret[0].isdigit():
        for number in (float(secret), -float(secret)):
            yield from (struct.pack("<d", number), struct.pack(">d", number), repr(number).encode())
        if secret.isdigit():
            yield from (struct.pack("<q", int(secret)), struct.pack(">q", int(secret)))


class Search:
    """Finds any of many patterns in bytes."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._by_start: dict[int, list[tuple[bytes, str]]] = {}
        for secret in secrets:
            for pattern in patterns_of(secret):
                assert len(pattern) >= 8
                self._by_start.setdefault(int.from_bytes(pattern[:8], "little"), []).append((pattern, secret))
        self._starts = np.array(sorted(self._by_start), dtype=np.uint64)

    @property
    def patterns(self) -> int:
        """How many there are."""
        return sum(map(len, self._by_start.values()))

    def found_in(self, places: Mapping[str, bytes]) -> dict[str, set[str]]:
        """The secrets in each place that has any."""
        found: dict[str, set[str]] = {}
        for place, body in places.items():
            if len(body) < 8:
                continue
            windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(body, dtype=np.uint8), 8)
            numbers = np.ascontiguousarray(windows).view("<u8")[:, 0]
            for at in np.flatnonzero(np.isin(numbers, self._starts)):
                for pattern, secret in self._by_start[int(numbers[at])]:
                    if body.startswith(pattern, int(at)):
                        found.setdefault(place, set()).add(secret)
        return found


@pytest.fixture(scope="module")
def search() -> Search:
    """For what `plant` plants."""
    return Search(plant().secrets)


def test_the_search_finds_a_secret_however_it_is_written(search: Search) -> None:
    secrets = plant().secrets
    assert len(secrets) == len(set(secrets)) == 1000
    for secret in (secrets[0], secrets[4], secrets[5]):
        for pattern in patterns_of(secret):
            assert search.found_in({"place": b"\0\1\2" + pattern + b"\3"}) == {"place": {secret}}
            assert search.found_in({"place": pattern}) == {"place": {secret}}
            assert search.found_in({"place": pattern[:-1] + bytes([pattern[-1] ^ 1])}) in ({}, {"place": {secret}})
    assert search.found_in({"place": b"short", "none": bytes(100)}) == {}


# --- what can be seen of a site


@dataclass
class Seen:
    """Everything that comes out of a site, by where."""

    places: dict[str, bytes] = field(default_factory=dict)

    def add_answers(self, answers: Iterable[bytes]) -> None:
        """Messages."""
        self.places |= {f"answer {number}": answer for number, answer in enumerate(answers)}

    def add_log(self, records: Iterable[logging.LogRecord]) -> None:
        """Log records with all that hangs on them, whatever a formatter makes of it."""
        for number, record in enumerate(records):
            self.places[f"log {number}"] = whole(record).encode()

    def add_files(self, folder: Path, *, but: Sequence[str] = ()) -> None:
        """Names and contents."""
        for path in folder.rglob("*"):
            if path.name not in but:
                self.places[f"name {path}"] = str(path.relative_to(folder)).encode()
                self.places[f"file {path}"] = path.read_bytes() if path.is_file() else b""


def watch(folder: Path, planted: Plant, conducted: Callable[[Line], None] = conduct) -> Seen:
    """A whole round at a site, and all that it shows meanwhile."""
    home, seen = make_planted(folder / "north", planted), Seen()
    printed, before = io.StringIO(), dict(os.environ)
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), kept_log() as log:
        line = Line(home, SeededNoise(b"seed"))
        conducted(line)
    assert line.faults == []
    seen.add_answers(answer for _, answer in line.said)
    seen.add_log(log)
    seen.add_files(home.folder, but=INPUTS)
    seen.places["printed"] = printed.getvalue().encode()
    changed = {name: value for name, value in os.environ.items() if before.get(name) != value}
    seen.places["environment"] = repr(changed).encode()
    return seen


def test_of_a_thousand_secrets_none_leaves_a_site_in_any_way(
    tmp_path: Path, search: Search, capfd: pytest.CaptureFixture[str]
) -> None:
    planted = plant()
    seen = watch(tmp_path, planted)
    captured = capfd.readouterr()
    seen.places["descriptors"] = (captured.out + captured.err).encode()
    assert search.found_in(seen.places) == {}
    # All of it was there to be found, and as much was looked at as a round makes.
    tables = {name: (tmp_path / "north" / name).read_bytes() for name in INPUTS[:2]}
    assert set().union(*search.found_in(tables).values()) == set(planted.secrets)
    assert len(seen.places) > 80
    assert sum(map(len, seen.places.values())) < 2**23
    assert search.patterns < 2**14


# --- a site that does leak

Leak = Callable[[pytest.MonkeyPatch, Path], None]


def leaking(leak: Callable[[pd.DataFrame, Path], object]) -> Leak:
    """A site whose reader of tables does something more with them."""

    def install(patch: pytest.MonkeyPatch, folder: Path) -> None:
        def reader(source: Any, study: Any) -> tuple[pd.DataFrame, pd.DataFrame | None]:
            table, series = read_records(source, study)
            leak(table, folder)
            return table, series

        patch.setattr(client.site, "read_records", reader)

    return install


def telling(extra: Callable[[Site], dict[str, Any]]) -> Leak:
    """A site that says more of itself than it should."""

    def install(patch: pytest.MonkeyPatch, folder: Path) -> None:
        describe = Site._describe

        def more(site: Site, request: Any, digest: str) -> bytes:
            reply = Reply.decode(describe(site, request, digest))
            said = extra(site)
            facts, arrays = {**reply.facts, **said.get("facts", {})}, said.get("arrays", {})
            return Reply(reply.site, facts, arrays).encode()

        patch.setattr(Site, "_describe", more)

    return install


def rows_of(site: Site) -> pd.DataFrame:
    return read_records(site._settings.source, site._study)[0]


LOG = logging.getLogger("double")


def cached(name: str, body: Callable[[pd.DataFrame], bytes]) -> Leak:
    """A site that writes something of its table into its own folder."""

    def leak(table: pd.DataFrame, folder: Path) -> None:
        (folder / "north" / "state" / name.format(table["patient"].iloc[0])).write_bytes(body(table))

    return leaking(leak)


def swapped(values: pd.Series) -> np.ndarray:
    """Numbers with their bytes in the other order, as bytes."""
    return np.frombuffer(values.to_numpy().astype(">f8").tobytes(), dtype=np.uint8)


LEAKS: dict[str, tuple[str, Leak]] = {
    "a row in the log": ("log", leaking(lambda table, _: LOG.debug("row %s", table.iloc[7].to_dict()))),
    "a number beside a line of the log": (
        "log",
        leaking(lambda table, _: LOG.info("read", extra={"most": float(table["amount"].max())})),
    ),
    "a key on the console": ("printed", leaking(lambda table, _: sys.stdout.write(table["patient"].iloc[3]))),
    "a key in the environment": (
        "environment",
        leaking(lambda table, _: os.environ.update(LAST=table["patient"].iloc[0])),
    ),
    "a column in a file": ("file", cached("cache", lambda table: table["amount"].to_numpy().tobytes())),
    "whole numbers in a file": ("file", cached("cache", lambda table: table["age"].to_numpy("<i8").tobytes())),
    "keys hashed without a secret in a file": (
        "file",
        cached("cache", lambda table: pd.util.hash_pandas_object(table["patient"], index=False).to_numpy().tobytes()),
    ),
    "a key as a file's name": ("name", cached("{}.done", lambda _: b"")),
    "a largest value in a message": (
        "answer",
        telling(lambda site: {"facts": {"age_max": int(rows_of(site)["age"].max())}}),
    ),
    "a column in a message": ("answer", telling(lambda site: {"arrays": {"sums": rows_of(site)["amount"].to_numpy()}})),
    "a column in a message, its bytes swapped": (
        "answer",
        telling(lambda site: {"arrays": {"sums": swapped(rows_of(site)["amount"])}}),
    ),
    "a column that no study reads in a message": (
        "answer",
        telling(
            lambda site: {"facts": {"names": site._settings.source.table.read_text().splitlines()[5].split(",")[1]}}
        ),
    ),
}


@pytest.mark.parametrize("how", LEAKS)
def test_a_site_that_leaks_is_found_out(
    tmp_path: Path, search: Search, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    place, install = LEAKS[how]
    planted = plant()
    monkeypatch.setenv("LAST", "")  # so that it is put back
    with monkeypatch.context() as patch:
        install(patch, tmp_path)
        seen = watch(tmp_path, planted, Line.restart)
    found = search.found_in(seen.places)
    assert {one.split()[0] for one in found} == {place}


# --- tables that are not what they should be

Spoil = Callable[[Plant], Plant]


def spoiled(column: int, form: str, *, numbers: bool = False, series: bool = False) -> Spoil:
    """In one column of every row a fault with a secret in it, a text or a number."""

    def spoil(planted: Plant) -> Plant:
        rows = planted.series if series else planted.rows
        secrets = planted.secrets[4::8] if numbers else planted.secrets[1::8]
        made = [(*row[:column], form.format(one), *row[column + 1 :]) for row, one in zip(rows, secrets, strict=False)]
        return replace(planted, series=made) if series else replace(planted, rows=made)

    return spoil


DIRTY: dict[str, Spoil] = {
    "text where a whole number should be": spoiled(3, "{}"),
    "a fraction where a whole number should be": spoiled(3, "{}.5", numbers=True),
    "text where a number should be": spoiled(4, "{}"),
    "a number with a unit": spoiled(4, "{} EUR", numbers=True),
    "a number out of bounds": spoiled(4, "{}e9", numbers=True),
    "an infinite number": spoiled(4, "{}e999", numbers=True),
    "a label that is not listed": spoiled(6, "{}"),
    "a label that is missing": spoiled(6, ""),
    "a unit without a key": spoiled(0, ""),
    "patients twice": lambda planted: replace(planted, rows=planted.rows * 2),
    "rows too long": lambda planted: replace(planted, rows=[(*row, row[0]) for row in planted.rows]),
    "rows too short": lambda planted: replace(planted, rows=[row[:3] for row in planted.rows]),
    "a quote that does not end": spoiled(2, '"{}'),
    "text that is not UTF-8": spoiled(2, "{}\udcff"),
    "steps of strangers": spoiled(0, "{}", series=True),
    "a time that is text": spoiled(1, "{}", series=True),
    "a time too far away": spoiled(1, "{}e30", numbers=True, series=True),
    "text where a step's number should be": spoiled(2, "{}", series=True),
    "a step's number out of bounds": spoiled(2, "{}e9", numbers=True, series=True),
    "a category that is not listed": spoiled(3, "{}", series=True),
    "times that fall": lambda planted: replace(planted, series=planted.series[::-1]),
    "times twice": lambda planted: replace(planted, series=planted.series * 2),
}


def fault_of(home: Home) -> str:
    """What an operator would see who reads the tables alone."""
    study, folder = home.study, home.folder

    def read() -> None:
        table = parse_text(read_text(folder / "table.csv", study), study)
        read_windows(table, read_series_text(folder / "series.csv", study), study)

    with pytest.raises(SchemaError) as fault:
        read()
    assert "\n" not in str(fault.value)
    return "".join(traceback.format_exception(fault.value)).replace(str(folder), "")


@pytest.mark.parametrize("fault", DIRTY)
def test_of_secrets_in_malformed_cells_none_leaves_a_site_or_is_told_to_its_operator(
    tmp_path: Path, search: Search, fault: str, capfd: pytest.CaptureFixture[str]
) -> None:
    planted = DIRTY[fault](plant())
    home, seen = make_planted(tmp_path / "north", planted), Seen()
    with kept_log() as log:
        site = home.open(forbidden())
        answers = [site.handle(home.ask(kind).encode()) for kind in ("describe", *MEASUREMENTS, "describe")]
    assert answers[0] == answers[-1] == refusal("north", ExitCode.INTERNAL)
    seen.add_answers(answers)
    seen.add_log(log)
    seen.add_files(home.folder, but=INPUTS)
    captured = capfd.readouterr()
    seen.places["descriptors"] = (captured.out + captured.err).encode()
    seen.places["fault"] = fault_of(home).encode()
    assert search.found_in(seen.places) == {}
    assert home.charged == []
    # Nor is told in which line it was, or what else there is.
    front, other = plant(seed=1), DIRTY[fault](plant(seed=2))
    longer = Plant([*front.rows[:7], *other.rows], [*front.series[:14], *other.series], [])
    assert fault_of(make_planted(tmp_path / "south", longer)) == fault_of(home)


# --- a process of its own

SCRIPT = """
import os, sys
from pathlib import Path
from client.site import open_site
home, requests = Path(sys.argv[1]), sorted(Path(sys.argv[2]).iterdir())
site = open_site(home / "site.yaml")
for path in requests:
    Path(path.name).write_bytes(site.handle(path.read_bytes()))
Path("arguments").write_bytes(Path("/proc/self/cmdline").read_bytes())
Path("environment").write_bytes(Path("/proc/self/environ").read_bytes() + repr(dict(os.environ)).encode())
"""


def test_a_process_shows_no_secret_in_its_arguments_environment_output_or_temporary_files(
    tmp_path: Path, search: Search
) -> None:
    planted = plant()
    home = make_planted(tmp_path / "north", planted, witnesses=0)
    folders = {name: tmp_path / name for name in ("requests", "seen", "temporary")}
    for folder in folders.values():
        folder.mkdir()
    kinds = ("describe", *MEASUREMENTS, "train")
    bodies = [*(home.ask(kind, options={"share": 0.2} if kind in MEASUREMENTS else {}).encode() for kind in kinds), b""]
    for number, body in enumerate(bodies):
        (folders["requests"] / f"answer-{number}").write_bytes(body)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(home.folder), str(folders["requests"])],
        cwd=folders["seen"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folders["temporary"])},
        capture_output=True,
        check=True,
    )
    answers = [(folders["seen"] / f"answer-{number}").read_bytes() for number in range(len(bodies))]
    assert [refused(answer) for answer in answers] == [*[None] * len(kinds), "PROTOCOL"]
    seen = Seen({"stdout": done.stdout, "stderr": done.stderr})
    for folder in (folders["seen"], folders["temporary"]):
        seen.add_files(folder)
    seen.add_files(home.folder, but=INPUTS)
    assert search.found_in(seen.places) == {}
    assert str(home.folder).encode() in seen.places[f"file {folders['seen'] / 'arguments'}"]
    assert b"TMPDIR" in seen.places[f"file {folders['seen'] / 'environment'}"]
