"""Nothing leaves a site, and nothing is written there, that depends on a unit in any way but through the mechanism.

A whole round is played on a table, and every sum that was noised and every noised vector is recorded. Then it is played
on the table with one unit more or less, and the mechanism lets out what it let out before. Now each byte that leaves,
each file, each line of the log must be the same; and at each release the two sums may lie no further apart than its
event states, in exact integers. Everything is deterministic, so there is no chance of a false alarm.
Source: record and play, Annamalai et al. 2026 (arXiv 2602.17454).
"""

import contextlib
import io
import itertools
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.optimizer import register_optimizer_step_post_hook

import client.masks
import client.witnesses
from client.policy import load_site_settings
from client.records import read_records
from common.data.units import bound_units
from common.privacy import mechanism, vectors
from common.privacy.ledger import Charge, Ledger
from common.privacy.noise import NoiseSource, SeededNoise
from common.wire.messages import KINDS, Request
from common.wire.secure_sum import MaskKey
from tests.client.homes import (
    HEADER,
    KEY,
    PEERS,
    ROWS,
    SINGLE,
    STUDY,
    WINDOWED,
    Home,
    Row,
    hidden,
    local,
    make_home,
    sampled,
)
from tests.client.rounds import RELEASES, Line, conduct, kept_log

INPUTS = ("table.csv", "series.csv")


@dataclass
class Player:
    """Stands in the place of `charge_and_draw`: charges for real, and may let out again what it let out before.

    sums: what was noised, by request, private.
    released: what was let out.
    charges: what was charged for it.
    distances: of the sums of the second table from those of the first, squared; exact.
    faults: what no honest mechanism does. Raised where they are found, a site would answer them away.
    """

    sums: dict[str, np.ndarray] = field(default_factory=dict)
    released: dict[str, np.ndarray] = field(default_factory=dict)
    charges: dict[str, Charge] = field(default_factory=dict)
    distances: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def record(self, sums: np.ndarray, charge: Charge, *, ledger: Ledger, noise: NoiseSource) -> np.ndarray:
        """As the original."""
        ledger.authorise(charge)
        event, name = charge.event, charge.request
        self.sums[name], self.charges[name] = sums.copy(), charge
        self.released[name] = sums + noise.draw(event.cells, noise_stddev=event.noise_stddev, context=name)
        return self.released[name].copy()

    def play(self, sums: np.ndarray, charge: Charge, *, ledger: Ledger, noise: NoiseSource) -> np.ndarray:
        """What was let out before, on a table that has one unit more or less."""
        ledger.authorise(charge)
        name = charge.request
        before = self.sums[name]
        if charge != self.charges[name] or (sums.dtype, sums.shape) != (before.dtype, before.shape):
            self.faults.append(f"{name}: another event or size")
        changed = np.flatnonzero(sums != before)
        distance = sum((int(sums[cell]) - int(before[cell])) ** 2 for cell in changed)
        if distance > charge.event.squared_sensitivity:
            self.faults.append(f"{name}: {distance} apart, {charge.event.squared_sensitivity} stated")
        self.distances[name] = distance
        return self.released[name].copy()


@dataclass
class Coins:
    """Noise whose choice of units looks at who a unit is, so that nobody's choice moves when another one goes.

    units: who is chosen from, in the site's order.
    may_draw: not where noise is played.
    """

    units: Sequence[str]
    may_draw: bool
    faults: list[str] = field(default_factory=list)
    kind: str = "test-seed"

    def draw(self, size: int, *, noise_stddev: float, context: str) -> np.ndarray:
        """Noise of a fixed seed."""
        if not self.may_draw:
            self.faults.append(f"{context}: noise was drawn past the mechanism")
        return SeededNoise(b"seed").draw(size, noise_stddev=noise_stddev, context=context)

    def sample(self, size: int, *, rate: float, context: str) -> np.ndarray:
        """A coin for each unit."""
        if size != len(self.units):
            self.faults.append(f"{context}: coins for {size}, and there are {len(self.units)} units")
        tossed = [blake2b(f"{context} {unit}".encode(), digest_size=8).digest() for unit in self.units]
        found: np.ndarray = np.frombuffer(b"".join(tossed), dtype="<u8") < rate * 2.0**64
        return found


def units_of(home: Home) -> list[str]:
    """Who trains, in the order of the table: the key, or the whole record where there is none."""
    unit, study = home.study.unit, home.study
    table, _ = read_records(load_site_settings(home.folder / "site.yaml").source, study)
    split = bound_units(
        table,
        key=unit.key,
        max_records=unit.max_records,
        drop_surplus=unit.surplus == "drop",
        holdout=study.privacy.holdout,
        secret=KEY,
    )
    names = table[unit.key] if unit.key else table.astype(str).sum(axis=1)
    chosen = names.iloc[split.rows[~split.holdout]]
    return list(dict.fromkeys(chosen) if unit.key else chosen)


@dataclass(frozen=True)
class Played:
    """All that can be seen of a round.

    said: requests and answers.
    files: of the site's folder but its tables: mode, and content where it is a file.
    log: every line, at every level.
    printed: on stdout and stderr.
    steps: of an optimiser.
    """

    said: list[tuple[bytes, bytes]]
    files: dict[str, tuple[int, bytes | None]]
    log: list[str]
    printed: str
    steps: int


def play(home: Home, player: Player, *, again: bool) -> Played:
    """A round at a site: recorded, or played again with what was let out before."""
    coins, printed, nonces = Coins(units_of(home), not again), io.StringIO(), itertools.count()
    line = Line(home, coins)  # type: ignore[arg-type]
    steps: list[int] = []
    hook = register_optimizer_step_post_hook(lambda *_: steps.append(1))
    try:
        with pytest.MonkeyPatch.context() as patch, kept_log() as log:
            for module in (mechanism, vectors):
                patch.setattr(module, "charge_and_draw", player.play if again else player.record)
            patch.setattr(client.witnesses.secrets, "token_hex", lambda size: f"{next(nonces):0{2 * size}x}")
            patch.setattr(
                client.masks.MaskKey,
                "generate",
                lambda: MaskKey.from_private(sha256(f"{next(nonces)}".encode()).hexdigest()),
            )
            patch.setattr(os, "fsync", lambda _: None)  # costs time, and is looked at elsewhere
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                conduct(line)
    finally:
        hook.remove()
    player.faults += coins.faults + line.faults
    assert player.faults == []
    assert {Request.decode(body).kind for body, _ in line.said[:-1]} == set(KINDS)
    assert set(line.answers) == {None, "POLICY_REFUSED", "BUDGET_REFUSED", "UNCONFIRMED", "PROTOCOL"}
    assert tuple(player.sums) == tuple(f"run-1/{name}" for name in RELEASES)
    files = {
        str(path.relative_to(home.folder)): (path.stat().st_mode, path.read_bytes() if path.is_file() else None)
        for path in sorted(home.folder.rglob("*"))
        if path.name not in INPUTS
    }
    lines = [logging.Formatter("%(levelname)s %(name)s %(message)s").format(record) for record in log]
    return Played(line.said, files, lines, printed.getvalue(), len(steps))


@dataclass(frozen=True)
class Table:
    """What a site holds; `series` None for the steps that `make_series` gives its patients."""

    rows: Sequence[Row]
    series: Sequence[Row] | None = None


def check_record_play(folder: Path, mine: Table, other: Table, study: Mapping[str, Any]) -> dict[str, int]:
    """Record a round on one table and play it on the other; the distances between their sums."""
    player, seen = Player(), []
    header = HEADER if "key" in study["unit"] else HEADER.partition(",")[2]
    for again, table in enumerate((mine, other)):
        # In the same place: paths are in files too.
        shutil.rmtree(folder / "north", ignore_errors=True)
        home = make_home(folder / "north", table.rows, series=table.series, study=study, header=header, peers=PEERS)
        seen.append(play(home, player, again=bool(again)))
    for name in ("log", "printed", "steps", "said", "files"):
        assert getattr(seen[1], name) == getattr(seen[0], name), name
    assert len(seen[0].log) > 5
    # Of a generator, and of a critic that stays at the site.
    assert seen[0].steps == 4 + 2 * home.is_local
    return player.distances


KEYLESS = {**STUDY, "unit": {"name": "visit"}}
# The same patient three times, and values that nobody else has.
STRANGER: list[Row] = [
    ("q", "blue", "", "0.01", "yes"),
    ("q", "red", "99", "9.99", "no"),
    ("q", "", "3", "5.00", "yes"),
]


def without(rows: Sequence[Row], leaver: str) -> list[Row]:
    return [row for row in rows if row[0] != leaver]


def neighbours(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Tables that differ from some rows in one patient with all its records."""
    stranger = STRANGER[:1] if rows is SINGLE else STRANGER
    return {
        "without the patient who owns most records": without(rows, "p0"),
        "without a patient in the middle": without(rows, "p17"),
        "without the last patient": without(rows, "p39"),
        "with one more patient in front": [*stranger, *rows],
        "with one more patient spread over the table": [rows[0], stranger[0], *rows[1:20], *stranger[1:], *rows[20:]],
    }


STUDIES: dict[str, tuple[Mapping[str, Any], list[Row]]] = {
    "records": (STUDY, ROWS),
    "records, units sampled": (sampled(STUDY), ROWS),
    "records, releases stay": (local(STUDY), ROWS),
    "records, under masks": (hidden(STUDY), ROWS),
    "windows": (WINDOWED, SINGLE),
    "windows, units sampled": (sampled(WINDOWED), SINGLE),
    "windows, units sampled, under masks": (hidden(sampled(WINDOWED)), SINGLE),
    "windows, releases stay": (local(WINDOWED), SINGLE),
}


@pytest.mark.parametrize(
    ("which", "neighbour"),
    [
        *itertools.product(("records", "windows, units sampled"), neighbours(ROWS)),
        ("records, units sampled", "without the patient who owns most records"),
        ("records, units sampled", "with one more patient spread over the table"),
        ("records, releases stay", "without a patient in the middle"),
        ("windows, releases stay", "with one more patient in front"),
        ("windows", "without a patient in the middle"),
        ("records, under masks", "without a patient in the middle"),
        ("windows, units sampled, under masks", "with one more patient in front"),
    ],
)
def test_everything_but_the_released_numbers_is_the_same_with_one_unit_more_or_less(
    tmp_path: Path, which: str, neighbour: str
) -> None:
    study, rows = STUDIES[which]
    distances = check_record_play(tmp_path, Table(rows), Table(neighbours(rows)[neighbour]), study)
    # The test has power: below the noise the unit is there, and in one account alone.
    moved = {name.removeprefix("run-1/") for name, distance in distances.items() if distance}
    assert moved <= set(RELEASES[:5]) or moved <= set(RELEASES[5:])
    assert moved >= set(RELEASES[:3]) or moved >= {"monitor", "verdict"}
    if "sampled" not in which:
        assert moved >= set(RELEASES[:4]) or moved >= {"monitor", "verdict"}


@pytest.mark.parametrize("study", [KEYLESS, sampled(KEYLESS)])
def test_everything_but_the_released_numbers_is_the_same_where_each_record_is_a_unit(
    tmp_path: Path, study: Mapping[str, Any]
) -> None:
    rows = [row[1:] for row in ROWS]
    # One of two equal records too: they are two units.
    for mine in (rows, [*rows, rows[20]]):
        distances = check_record_play(tmp_path, Table(mine), Table(rows[:20] + mine[21:]), study)
        assert distances["run-1/one_way"] + distances["run-1/monitor"] > 0


@pytest.mark.parametrize("which", ["records", "windows", "windows, units sampled"])
@pytest.mark.parametrize("leaver", ["p0", "p3"])
def test_everything_but_the_released_numbers_is_the_same_when_the_last_unit_of_an_account_goes(
    tmp_path: Path, which: str, leaver: str
) -> None:
    assert {name: is_held_out(name) for name in ("p0", "p3")} == {"p0": False, "p3": True}
    study, rows = STUDIES[which]
    pair = [row for row in rows if row[0] in ("p0", "p3")]
    check_record_play(tmp_path, Table(pair), Table(without(pair, leaver)), study)
    # And then the last one of all.
    check_record_play(tmp_path, Table([]), Table(without(pair, leaver)), study)


def is_held_out(patient: str) -> bool:
    names = pd.DataFrame({"patient": [patient]})
    split = bound_units(names, key="patient", max_records=1, drop_surplus=False, holdout=0.3, secret=KEY)
    return bool(split.holdout[0])


# --- any table, any unit

PATIENTS = [f"u{number}" for number in range(12)]
# The ends of what a column may hold, what is missing, and what has a bin or a category of its own.
CELLS = {
    "colour": ["red", "green", "blue", ""],
    "age": ["0", "99", "", "50"],
    "amount": ["0", "10", "9.999999999999998", "5", "1.25"],
    "ill": ["no", "yes"],
    "pulse": ["0", "199", "", "100"],
    "drug": ["a", "b", "c"],
}


def cells(*names: str) -> st.SearchStrategy[Row]:
    return st.tuples(*(st.sampled_from(CELLS[name]) for name in names))


@st.composite
def drawn(draw: st.DrawFn, *, windows: bool) -> tuple[Table, Table]:
    """A table, and the same with one patient more."""
    names = draw(st.lists(st.sampled_from(PATIENTS), max_size=6, unique=True))
    leaver = draw(st.sampled_from([name for name in PATIENTS if name not in names]))
    record = cells("colour", "age", "amount", "ill")
    if draw(st.booleans()):  # a label with one class, and a colour that others do not have
        record = record.map(lambda row: ("red", *row[1:3], "no"))
    owned = {name: draw(st.lists(record, min_size=1, max_size=1 if windows else 3)) for name in names}
    others = [(name, *row) for name in names for row in owned[name]]
    most = 1 if windows else draw(st.sampled_from([1, 2, 9 * max(1, len(others))]))
    own = [(leaver, *draw(cells("colour", "age", "amount", "ill"))) for _ in range(min(most, 3))]
    own = list(itertools.islice(itertools.cycle(own), most))
    places = sorted(draw(st.lists(st.integers(0, len(others)), min_size=most, max_size=most)))
    whole = list(others)
    for more, (place, row) in enumerate(zip(places, own, strict=True)):
        whole.insert(place + more, row)
    if not windows:
        return Table(others), Table(whole)
    steps = draw(st.lists(cells("pulse", "drug"), max_size=6))
    took: dict[str, list[Row]] = {name: draw(st.lists(cells("pulse", "drug"), max_size=6)) for name in names}
    if names and draw(st.booleans()):  # two windows alike
        took[names[0]] = steps
    series = {
        name: [(name, str(minute), *step) for minute, step in enumerate(found)]
        for name, found in {**took, leaver: steps}.items()
    }
    order = draw(st.permutations([*names, leaver]))
    return (
        Table(others, [row for name in order if name != leaver for row in series[name]]),
        Table(whole, [row for name in order for row in series[name]]),
    )


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_everything_but_the_released_numbers_is_the_same_on_any_table_and_with_any_unit_more_or_less(
    data: st.DataObject,
) -> None:
    study = STUDIES[data.draw(st.sampled_from(list(STUDIES)))][0]
    pair = data.draw(drawn(windows="windows" in study))
    mine, other = pair if data.draw(st.booleans()) else pair[::-1]
    with tempfile.TemporaryDirectory() as folder:
        check_record_play(Path(folder), mine, other, study)
