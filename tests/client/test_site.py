"""A site: what it answers, what it refuses, and that its answers hold nothing of a row but what was released."""

import hashlib
import itertools
import json
import logging
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from client import policy
from client.site import Site, open_site
from common.data.encoding import make_grids
from common.data.histograms import histogram_layout
from common.data.queries import Family, catalogue, layout_of
from common.data.tables import TableLayout, one_way, sizes_of
from common.data.units import WINDOW_WEIGHT, bound_units
from common.errors import ExitCode, LedgerError, PolicyError, StudyError
from common.models.embedding import FEATURES, SCALE
from common.models.generator import initialise
from common.models.monitor import BANDS, score_layout
from common.models.neural import GRADIENT_SCALE, critic_parameters, initialise_critic
from common.models.targets import Groups, Target, Targets, table_shapes
from common.models.training import parameters_of
from common.privacy.budget import mu_of
from common.privacy.events import GaussianEvent
from common.privacy.ledger import read_charges
from common.privacy.mechanism import MAXIMUM_EMPHASIS
from common.privacy.noise import NoiseSource, SeededNoise
from common.study import Study, parse_study
from common.wire.messages import KEPT, KINDS, MESSAGE_SCHEMA, Reply, Request, refusal
from common.wire.packing import (
    CRITIC,
    GENERATOR,
    critic_shape_of,
    pack,
    pack_bins,
    pack_groups,
    pack_targets,
    shape_of,
    unpack,
)

KEY = bytes(range(32))
# What spends; the last two on held-out units.
MEASUREMENTS = ("one_way", "tables", "embedding", "critic", "monitor", "verdict")
HELD_OUT = ("monitor", "verdict")
WITH_BINS = sorted(set(KINDS) - {"describe", "one_way"})
PRIVACY = {"epsilon": 1, "delta": 1e-5, "holdout": 0.3}
STUDY: dict[str, Any] = {
    "schema": "privshare.study/1",
    "name": "toy",
    "unit": {"name": "patient", "key": "patient", "max_records": 2, "surplus": "drop"},
    "label": {"column": "ill", "positive": "yes"},
    "columns": {
        "colour": {"type": "categorical", "categories": ["red", "green", "blue"], "missing": True},
        "age": {"type": "integer", "min": 0, "max": 99, "cells": 20, "sparse": True, "missing": True},
        "amount": {"type": "continuous", "min": 0, "max": 10, "cells": 8},
        "ill": {"type": "categorical", "categories": ["no", "yes"]},
    },
    "privacy": PRIVACY,
    "rounds": {"local_steps": 3},
    "model": {"latent": 2, "width": 8, "blocks": 1, "batch": 8},
    "critic": {"width": 4},
}
# Cell to bin, a map a column: 3 colours and missing, 20 cells of age and missing, 8 cells of amount.
BINS = [np.array([0, 1, 1, 2]), np.append(np.arange(20) // 5, 4), np.arange(8) // 4]
SIZES = (3, 5, 2)
WINDOWED: dict[str, Any] = {
    **STUDY,
    "unit": {"name": "patient", "key": "patient"},
    "windows": {
        "layout": "events",
        "length": 4,
        "empty": "allow",
        "longer": "first",
        "time": {"column": "minute"},
        "channels": {
            "pulse": {"type": "integer", "min": 0, "max": 199, "cells": 20, "missing": True},
            "drug": {"type": "categorical", "categories": ["a", "b", "c"]},
        },
    },
}
# Of the channels: 20 cells of the pulse and missing, 3 drugs.
CHANNEL_BINS = [np.append(np.arange(20) // 10, 2), np.array([0, 1, 1])]

Row = tuple[str, ...]


def make_rows(units: int = 40) -> list[Row]:
    """Records of so many patients; the first owns most of them."""
    random = np.random.default_rng(0)
    owners = [*range(units), *([0] * units)]
    return [
        (
            f"p{owner}",
            str(random.choice(["red", "green", "blue", ""])),
            str(random.choice([3, 50, 99, ""])),
            f"{10 * random.random():.2f}",
            str(random.choice(["no", "yes"])),
        )
        for owner in owners
    ]


ROWS = make_rows()
# One row a patient, as a study with windows has it.
SINGLE = list({row[0]: row for row in ROWS}.values())
SERIES = "patient,minute,pulse,drug"


def make_series(rows: Sequence[Sequence[str]]) -> list[Row]:
    """Rows of the long table of some patients, none to five each; a patient's own depend on nobody else."""
    found: list[Row] = []
    for row in rows:
        random = np.random.default_rng(list(row[0].encode()))
        for minute in range(int(random.integers(6))):
            pulse = str(random.choice([40, 80, 199, ""]))
            found.append((row[0], str(minute * 7), pulse, str(random.choice(["a", "b", "c"]))))
    return found


@dataclass(frozen=True)
class Home:
    """The folder of one site, and what a test asks of it."""

    folder: Path
    study: Study

    @property
    def bins(self) -> list[np.ndarray]:
        """The map from cells to bins of each column and channel."""
        if self.study.windows is None:
            return BINS
        steps = make_grids(self.study.measured)[-1]
        return [*BINS, np.arange(steps.n_cells), *CHANNEL_BINS]

    @property
    def tables(self) -> int:
        """Tables in the study's catalogue."""
        return len(catalogue(len(self.study.measured), self.study.windows))

    @property
    def score_weights(self) -> int:
        """Numbers in the weights of a linear score."""
        return sum(sizes_of(self.bins)[: len(self.study.measured)]) + BANDS - 1

    def open(self, noise: NoiseSource | None = None) -> Site:
        return open_site(self.folder / "site.yaml", noise=noise or SeededNoise(b"seed"))

    def ask(self, kind: str, *, name: str = "", run: str = "run-1", **changes: Any) -> Request:
        """A request that is right, unless the changes say otherwise; None takes an array away."""
        options: dict[str, Any] = {"share": 0.25} if kind in MEASUREMENTS else {}
        arrays: dict[str, np.ndarray] = {} if kind in ("describe", "one_way") else pack_bins(self.bins)
        shape = shape_of(self.study, sizes_of(self.bins))
        if kind == "tables":
            arrays |= {"tables": np.arange(self.tables), "emphasis": np.ones(self.tables, dtype=np.int64)}
        if kind == "monitor":
            arrays["weights"] = np.linspace(-1, 1, self.score_weights)
        if kind in ("critic", "verdict"):
            critic = initialise_critic(critic_shape_of(self.study, shape), seed=0)
            arrays |= pack(CRITIC, critic_parameters(critic))
        if kind == "train":
            groups = [np.arange(size) for size in sizes_of(self.bins)]
            arrays |= pack(GENERATOR, parameters_of(initialise(shape, seed=0)))
            arrays |= pack_groups(groups) if self.is_local else pack_targets(self.targets(groups))
            options = {"steps": 2, "learning_rates": [1e-3, 5e-4], "seed": 7}
        arrays |= changes.get("arrays", {})
        return Request(
            kind,
            changes.get("study", self.study.digest()),
            run,
            name or kind,
            {**options, **changes.get("options", {})},
            {name: array for name, array in arrays.items() if array is not None},
        )

    @property
    def is_local(self) -> bool:
        return self.study.discriminators.scope == "local"

    def targets(self, groups: list[np.ndarray]) -> Targets:
        """Targets of every table, all alike."""
        joined = Groups.of(groups, len(self.study.measured))
        shapes = table_shapes(shape_of(self.study, sizes_of(self.bins)), joined)
        tables = {str(name): Target(np.ones((2, *shape)), np.ones(shape)) for name, shape in shapes.items()}
        return Targets(tables, np.ones(2), joined)

    @property
    def ledger(self) -> Path:
        return self.folder / "ledger.jsonl"

    @property
    def key(self) -> Path:
        return self.folder / "state" / "site.key"

    @property
    def charged(self) -> list[str]:
        return [charge.request for charge in read_charges(self.ledger)]

    @property
    def kept(self) -> dict[str, np.ndarray]:
        """Releases that stayed at the site, by request."""
        paths = sorted((self.folder / "state" / "releases").glob("*.request"))
        return {
            Request.decode(path.read_bytes()).identity: Reply.decode(path.with_suffix(".reply").read_bytes()).arrays[
                "counts"
            ]
            for path in paths
        }

    @property
    def state(self) -> dict[str, bytes]:
        """Every file of the site's own."""
        folder = self.folder / "state"
        return {
            str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
        }

    @property
    def sealed(self) -> dict[str, bytes]:
        replies = self.folder / "state" / "replies"
        return {path.name: path.read_bytes() for path in sorted(replies.iterdir())} if replies.exists() else {}


def make_home(
    folder: Path,
    rows: Sequence[Sequence[str]] = ROWS,
    *,
    header: str | None = "patient,colour,age,amount,ill",
    series: Sequence[Sequence[str]] | None = None,
    study: dict[str, Any] | None = None,
    key: bytes | None = KEY,
    **settings_: Any,
) -> Home:
    """Write a site's files: site.yaml, the study, the table, the long one if the study has windows, and its key."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = study or STUDY
    approved = parse_study(plain, source="test")
    if approved.windows is not None:
        long = [SERIES, *map(",".join, make_series(rows) if series is None else series)]
        (folder / "series.csv").write_text("\n".join(long) + "\n", encoding="utf-8", errors="surrogateescape")
        settings_ = {"series": str(folder / "series.csv"), **settings_}
    lines = ([header] if header is not None else []) + [",".join(row) for row in rows]
    (folder / "table.csv").write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")
    (folder / "study.yaml").write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")
    site = {
        "site": "north",
        "table": str(folder / "table.csv"),
        "study": str(folder / "study.yaml"),
        "approved": approved.digest(),
        "ledger": str(folder / "ledger.jsonl"),
        "state": str(folder / "state"),
        "max_epsilon": 10,
        "max_delta": 0.001,
        **settings_,
    }
    (folder / "site.yaml").write_text(yaml.safe_dump(site), encoding="utf-8")
    home = Home(folder, approved)
    if key is not None:
        home.key.parent.mkdir(mode=0o700, exist_ok=True)
        home.key.touch(mode=0o600)
        home.key.write_bytes(key)
    return home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return make_home(tmp_path / "north")


@pytest.fixture(params=["records", "windows"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Home:
    """A site of a study without windows, or of one with them."""
    return make_either(tmp_path / "north", request.param)


def make_either(folder: Path, which: str) -> Home:
    return make_home(folder) if which == "records" else make_home(folder, SINGLE, study=WINDOWED)


class Forbidden:
    """A source that no test may reach."""

    kind = "test-seed"

    def draw(self, size: int, *, noise_stddev: float, context: str) -> np.ndarray:
        raise AssertionError(f"{context}: noise was drawn")


def refused(body: bytes) -> str | None:
    """The rule by which a reply refuses; such a reply holds nothing else."""
    reply = Reply.decode(body)
    assert reply.site == "north"
    if reply.refused is not None:
        assert dict(reply.facts) == {}
        assert dict(reply.arrays) == {}
    return reply.refused


def test_describe_tells_the_budget_and_the_ledgers_head_and_spends_nothing(home: Home) -> None:
    site = home.open(Forbidden())  # type: ignore[arg-type]
    reply = Reply.decode(site.handle(home.ask("describe").encode()))
    assert reply.refused is None
    assert set(reply.facts) == {"squared_mu", "ledger_head"}
    assert reply.facts["squared_mu"] == pytest.approx(mu_of(epsilon=1, delta=1e-5) ** 2, rel=1e-9)
    assert reply.facts["squared_mu"] < mu_of(epsilon=1, delta=1e-5) ** 2
    assert reply.facts["ledger_head"] == json.loads(home.ledger.read_bytes())["hash"]
    assert dict(reply.arrays) == {}
    assert home.charged == []


@pytest.mark.parametrize(
    ("limits", "epsilon", "delta"),
    [
        ({"max_epsilon": 0.5}, 0.5, 1e-5),
        ({"max_delta": 1e-7}, 1.0, 1e-7),
        ({"max_epsilon": 50, "max_delta": 0.5}, 1.0, 1e-5),
    ],
)
def test_a_site_narrows_the_budget_and_never_widens_it(
    tmp_path: Path, limits: dict[str, float], epsilon: float, delta: float
) -> None:
    home = make_home(tmp_path / "north", **limits)
    facts = Reply.decode(home.open().handle(home.ask("describe").encode())).facts
    assert facts["squared_mu"] == pytest.approx(mu_of(epsilon=epsilon, delta=delta) ** 2, rel=1e-9)


@pytest.mark.parametrize(("share", "spend"), [(0.9, 1 / 64), (0.05, None)])
def test_a_site_draws_no_less_noise_than_its_own_least(tmp_path: Path, share: float, spend: float | None) -> None:
    home = make_home(tmp_path / "north", least_noise=8)
    assert mu_of(epsilon=1, delta=1e-5) ** 2 * 0.9 > 1 / 64
    reply = Reply.decode(home.open().handle(home.ask("one_way", options={"share": share}).encode()))
    assert reply.refused is None
    event = GaussianEvent.from_dict(reply.facts["event"])
    wanted = spend or share * mu_of(epsilon=1, delta=1e-5) ** 2
    # As much as a whole number of grid units of noise allows.
    assert 0.999 * wanted < event.spend <= wanted
    assert [charge.event for charge in read_charges(home.ledger)] == [event]


def layouts(home: Home) -> dict[str, TableLayout]:
    """Of each measurement that counts."""
    study, sizes = home.study, sizes_of(home.bins)
    heads = 1 if study.windows is None else 2
    return {
        "one_way": histogram_layout(make_grids(study.measured), 2, make_grids(study.channels)),
        "tables": layout_of(catalogue(len(study.measured), study.windows), sizes, 2),
        "monitor": score_layout(),
        "verdict": one_way([2] * heads, 1),
    }


def below_noise(reply: Reply, request: str) -> np.ndarray:
    """The sums of a release: what came less the noise, which these tests know."""
    event = GaussianEvent.from_dict(reply.facts["event"])
    return reply.arrays["counts"] - SeededNoise(b"seed").draw(
        event.cells, noise_stddev=event.noise_stddev, context=request
    )


@pytest.mark.parametrize("kind", ["one_way", "tables", "monitor", "verdict"])
def test_a_measurement_is_charged_as_it_is_stated_and_sized_by_the_schema(either: Home, kind: str) -> None:
    home = either
    site = home.open()
    reply = Reply.decode(site.handle(home.ask(kind).encode()))
    assert reply.refused is None
    layout = layouts(home)[kind]
    cells, tables = layout.n_cells, layout.n_tables
    assert set(reply.facts) == {"event", "ledger_head"}
    assert set(reply.arrays) == {"counts"}
    assert reply.arrays["counts"].shape == (cells,)
    assert reply.arrays["counts"].dtype == np.int64
    (charge,) = read_charges(home.ledger)
    assert charge.event == GaussianEvent.from_dict(reply.facts["event"])
    assert charge.request == f"run-1/{kind}"
    assert charge.event.account == ("holdout" if kind in HELD_OUT else "train")
    # A unit weighs 2 grid units, its records' shares of one; with windows as many as steps can share.
    whole = 2 if home.study.windows is None else WINDOW_WEIGHT
    assert (charge.event.squared_sensitivity, charge.event.scale) == (whole**2 * tables, whole)
    assert charge.event.spend <= 0.25 * mu_of(epsilon=1, delta=1e-5) ** 2
    # Below the noise lies the table: every unit of the account once in each table, its weight shared out.
    sums = below_noise(reply, charge.request)
    assert sums.min() >= 0
    found = [int(table.sum()) for table in layout.split(sums)]
    columns = len(home.study.measured)
    of_records = {
        "one_way": histogram_layout(make_grids(home.study.measured), 2).n_tables,
        "tables": columns * (columns - 1) // 2,
    }.get(kind, tables)
    assert len(set(found[:of_records])) == 1
    assert found[0] % whole == 0
    assert 0 < found[0] < whole * 40
    # Steps share a unit's weight as well, and where there are none they add nothing.
    assert all(0 < one <= found[0] for one in found)


@pytest.mark.parametrize(("kind", "scale"), [("embedding", SCALE), ("critic", GRADIENT_SCALE)])
def test_a_sum_of_vectors_is_charged_as_it_is_stated_and_each_unit_is_one_of_them(
    either: Home, kind: str, scale: int
) -> None:
    home = either
    reply = Reply.decode(home.open().handle(home.ask(kind).encode()))
    assert reply.refused is None
    shape = shape_of(home.study, sizes_of(home.bins))
    cells = {"embedding": 2 * 2 * FEATURES, "critic": critic_shape_of(home.study, shape).cells}[kind]
    assert set(reply.facts) == {"event", "ledger_head"}
    assert set(reply.arrays) == {"counts"}
    assert reply.arrays["counts"].shape == (cells,)
    assert reply.arrays["counts"].dtype == np.int64
    (charge,) = read_charges(home.ledger)
    assert charge.event == GaussianEvent.from_dict(reply.facts["event"])
    assert charge.event.account == "train"
    assert (charge.event.squared_sensitivity, charge.event.scale) == (scale**2, scale)
    assert charge.event.spend <= 0.25 * mu_of(epsilon=1, delta=1e-5) ** 2
    sums = below_noise(reply, charge.request).astype(np.float64)
    assert 0 < np.linalg.norm(sums) <= 40 * scale


def test_training_and_holdout_units_make_up_the_table_together(either: Home) -> None:
    home = either
    site = home.open()
    units = {}
    whole = 2 if home.study.windows is None else WINDOW_WEIGHT
    for kind in ("tables", "monitor", "verdict"):
        reply = Reply.decode(site.handle(home.ask(kind).encode()))
        table = next(layouts(home)[kind].split(below_noise(reply, f"run-1/{kind}")))
        units[kind] = int(table.sum()) // whole
    assert units["tables"] + units["monitor"] == 40
    assert units["verdict"] == units["monitor"] > 0


@pytest.mark.parametrize(("patient", "records"), [("p1", 1), ("p0", 2), ("p0", 9)])
def test_a_unit_is_one_vector_however_many_records_it_has(tmp_path: Path, patient: str, records: int) -> None:
    names = pd.DataFrame({"patient": ["p0", "p1"]})
    split = bound_units(names, key="patient", max_records=2, drop_surplus=True, holdout=0.3, secret=KEY)
    assert not split.holdout.any()
    rows = [row for row in ROWS if row[0] == patient][:records]
    assert len(rows) == records
    home = make_home(tmp_path / "north", rows)
    reply = Reply.decode(home.open().handle(home.ask("embedding").encode()))
    norm = np.linalg.norm(below_noise(reply, "run-1/embedding").astype(np.float64))
    assert norm == pytest.approx(SCALE, rel=0.01)
    assert norm <= SCALE


# --- which tables, and how exactly


def test_an_emphasis_is_in_the_sums_and_in_the_charge(home: Home) -> None:
    emphasis = np.array([1, 3, MAXIMUM_EMPHASIS])
    reply = Reply.decode(home.open().handle(home.ask("tables", arrays={"emphasis": emphasis}).encode()))
    (charge,) = read_charges(home.ledger)
    assert charge.event.squared_sensitivity == 4 * (1 + 9 + 256)
    plain = home.open()
    other = Reply.decode(plain.handle(home.ask("tables", name="plain").encode()))
    tables = [
        list(layouts(home)["tables"].split(below_noise(one, f"run-1/{name}")))
        for one, name in ((reply, "tables"), (other, "plain"))
    ]
    for many, once, weight in zip(*tables, emphasis, strict=True):
        assert (many == weight * once).all()
    # For one spend: the other tables pay with noise.
    assert charge.event.noise_stddev > 2 * read_charges(home.ledger)[1].event.noise_stddev


def test_tables_come_as_they_were_asked_for(either: Home) -> None:
    home = either
    site = home.open()
    whole = Reply.decode(site.handle(home.ask("tables").encode()))
    tables = list(layouts(home)["tables"].split(below_noise(whole, "run-1/tables")))
    some = np.array([0, 2]) if home.study.windows is None else np.array([1, 6, 7, 18, home.tables - 1])
    arrays = {"tables": some, "emphasis": np.ones(len(some), dtype=np.int64)}
    part = Reply.decode(site.handle(home.ask("tables", name="some", arrays=arrays).encode()))
    known = catalogue(len(home.study.measured), home.study.windows)
    layout = layout_of([known[number] for number in some], sizes_of(home.bins), 2)
    for number, table in zip(some, layout.split(below_noise(part, "run-1/some")), strict=True):
        assert np.array_equal(table, tables[number])
    assert read_charges(home.ledger)[1].event.squared_sensitivity * home.tables == (
        read_charges(home.ledger)[0].event.squared_sensitivity * len(some)
    )


COLOURS = {"red": 0, "green": 1, "blue": 1, "": 2}


def training(rows: Sequence[Row]) -> set[str]:
    """The patients of some rows that train."""
    names = pd.DataFrame({"patient": sorted({row[0] for row in rows})})
    split = bound_units(names, key="patient", max_records=1, drop_surplus=False, holdout=0.3, secret=KEY)
    return set(names["patient"][~split.holdout])


def test_records_are_counted_with_their_share_of_their_patient(tmp_path: Path) -> None:
    # A second record for every third patient.
    rows = [*SINGLE, *[(row[0], "red", "50", "9.00", "yes") for row in SINGLE[::3]]]
    home = make_home(tmp_path / "north", rows)
    reply = Reply.decode(home.open().handle(home.ask("tables").encode()))
    found = list(layouts(home)["tables"].split(below_noise(reply, "run-1/tables")))[1]  # colour and amount
    expected = np.zeros((2, 3, 2))
    for patient, colour, _, amount, ill in rows:
        if patient in training(rows):
            share = 1 / [row[0] for row in rows].count(patient)
            expected[int(ill == "yes"), COLOURS[colour], int(float(amount) >= 5)] += share
    assert np.array_equal(found / 2, expected)


def test_windows_are_counted_with_the_record_and_the_label_of_their_patient(tmp_path: Path) -> None:
    home = make_either(tmp_path / "north", "windows")
    reply = Reply.decode(home.open().handle(home.ask("tables").encode()))
    tables = list(layouts(home)["tables"].split(below_noise(reply, "run-1/tables")))
    known = catalogue(4, home.study.windows)
    found = {(query.family, query.axes, query.part): table for query, table in zip(known, tables, strict=True)}
    expected = {
        (Family.PAIR, (0, 3), 0): np.zeros((2, 3, 5)),  # colour and number of steps
        (Family.COURSE, (0, 5), 0): np.zeros((2, 3, 2)),  # colour and drug
        (Family.ENDS, (5, 5), 0): np.zeros((2, 2, 2)),
        (Family.TRANSITION, (4, 4), 0): np.zeros((2, 3, 3)),  # of the pulse
    }
    drugs, pulses = {"a": 0, "b": 1, "c": 1}, {"40": 0, "80": 0, "199": 1, "": 2}
    for patient, colour, _, _, ill in (row for row in SINGLE if row[0] in training(SINGLE)):
        steps = make_series([(patient,)])[:4]
        label, at = int(ill == "yes"), COLOURS[colour]
        pair, course, ends, moves = expected.values()
        pair[label, at, len(steps)] += 1
        for _, _, _, drug in steps:
            course[label, at, drugs[drug]] += 1 / len(steps)
        if steps:
            ends[label, drugs[steps[0][3]], drugs[steps[-1][3]]] += 1
        for before, after in itertools.pairwise(steps):
            moves[label, pulses[before[2]], pulses[after[2]]] += 1 / (len(steps) - 1)
    for query, table in expected.items():
        np.testing.assert_allclose(found[query] / WINDOW_WEIGHT, table, atol=1e-9)
        assert table.sum() > 0


def test_a_header_that_the_study_gives_is_the_first_table_s_alone(tmp_path: Path) -> None:
    names = ["patient", "colour", "age", "amount", "ill"]
    home = make_home(tmp_path / "north", SINGLE, header=None, study={**WINDOWED, "table": {"header": names}})
    other = make_either(tmp_path / "south", "windows")
    sums = [
        below_noise(Reply.decode(one.open().handle(one.ask("tables").encode())), "run-1/tables")
        for one in (home, other)
    ]
    assert np.array_equal(*sums)


ONES = np.ones(3, dtype=np.int64)
BAD_TABLES: dict[str, dict[str, np.ndarray | None]] = {
    "no tables": {"tables": None},
    "an empty list of tables": {"tables": np.array([], dtype=np.int64), "emphasis": np.array([], dtype=np.int64)},
    "a number": {"tables": np.array(1), "emphasis": np.array(1)},
    "tables of two dimensions": {"tables": np.array([[0, 1, 2]]), "emphasis": ONES[None]},
    "tables as floats": {"tables": np.array([0.0, 1.0, 2.0])},
    "narrow tables": {"tables": np.array([0, 1, 2], dtype=np.int32)},
    "a negative table": {"tables": np.array([-1, 1, 2])},
    "a table behind the last": {"tables": np.array([0, 1, 3])},
    "a table far away": {"tables": np.array([0, 1, 2**62])},
    "a table twice": {"tables": np.array([0, 1, 1])},
    "tables that fall": {"tables": np.array([0, 2, 1])},
    "more tables than there are": {"tables": np.arange(4), "emphasis": np.ones(4, dtype=np.int64)},
    "no emphasis": {"emphasis": None},
    "an emphasis too few": {"emphasis": ONES[:2]},
    "an emphasis too many": {"emphasis": np.ones(4, dtype=np.int64)},
    "an emphasis of two dimensions": {"emphasis": ONES[None]},
    "an emphasis in a column": {"emphasis": ONES[:, None]},
    "an emphasis of 0": {"emphasis": np.array([1, 0, 1])},
    "a negative emphasis": {"emphasis": np.array([1, -1, 1])},
    "an emphasis too large": {"emphasis": np.array([1, MAXIMUM_EMPHASIS + 1, 1])},
    "an emphasis far too large": {"emphasis": np.array([1, 2**62, 1])},
    "an emphasis as floats": {"emphasis": np.ones(3)},
    "a narrow emphasis": {"emphasis": np.ones(3, dtype=np.int32)},
    "truths for an emphasis": {"emphasis": np.ones(3, dtype=bool)},
}


@pytest.mark.parametrize("fault", BAD_TABLES)
def test_tables_that_are_not_of_the_catalogue_are_refused_and_spend_nothing(home: Home, fault: str) -> None:
    site = home.open(Forbidden())  # type: ignore[arg-type]
    assert refused(site.handle(home.ask("tables", arrays=BAD_TABLES[fault]).encode())) == "POLICY_REFUSED"
    assert home.charged == []


def test_a_study_of_one_column_has_no_tables_to_ask_for(tmp_path: Path) -> None:
    columns = {name: STUDY["columns"][name] for name in ("amount", "ill")}
    study = {**STUDY, "columns": columns, "ignore": ["colour", "age"]}
    home = make_home(tmp_path / "north", study=study)
    site = home.open(Forbidden())  # type: ignore[arg-type]
    for numbers in ([], [0]):
        arrays = {
            **pack_bins([BINS[2]]),
            "bins.1": None,
            "bins.2": None,
            "tables": np.array(numbers, dtype=np.int64),
            "emphasis": np.ones(len(numbers), dtype=np.int64),
        }
        request = Request(
            "tables",
            home.study.digest(),
            "run-1",
            "tables",
            {"share": 0.25},
            {name: array for name, array in arrays.items() if array is not None},
        )
        assert refused(site.handle(request.encode())) == "POLICY_REFUSED"


@pytest.mark.parametrize("judged", [False, True])
def test_training_returns_another_generator_and_spends_nothing(either: Home, judged: bool) -> None:
    home = either
    site = home.open(Forbidden())  # type: ignore[arg-type]
    (home.folder / "table.csv").unlink()  # not a row is needed
    heads = 1 if home.study.windows is None else 2
    critic = {key: array for key, array in home.ask("critic").arrays.items() if key.startswith(CRITIC)}
    changes: dict[str, Any] = {"options": {"weights": [1.0] * heads}, "arrays": critic} if judged else {}
    asked = home.ask("train", **changes)
    reply = Reply.decode(site.handle(asked.encode()))
    assert reply.refused is None
    sent, came = unpack(GENERATOR, asked.arrays), unpack(GENERATOR, reply.arrays)
    assert {name: array.shape for name, array in came.items()} == {name: array.shape for name, array in sent.items()}
    assert any((came[name] != sent[name]).any() for name in sent)
    assert home.charged == []


def test_a_repeated_request_gets_the_same_bytes_and_spends_nothing(home: Home) -> None:
    asked = home.ask("one_way").encode()
    site = home.open()
    first = site.handle(asked)
    assert refused(first) is None
    before = home.ledger.read_bytes()
    assert site.handle(asked) == first
    # After a restart too, though other noise would be drawn then.
    assert home.open(SeededNoise(b"other")).handle(asked) == first
    assert home.open(Forbidden()).handle(asked) == first  # type: ignore[arg-type]
    assert home.ledger.read_bytes() == before
    assert list(home.sealed.values()) == [first]


@pytest.mark.parametrize(
    "change",
    [
        {"options": {"share": 0.26}},
        {"options": {"note": 1}},
        {"arrays": {"bins.0": np.array([0, 1, 2, 3])}},
        {"arrays": {"emphasis": np.array([1, 1, 2])}},
        {"arrays": {"tables": np.array([0, 1]), "emphasis": np.array([1, 1])}},
    ],
)
def test_another_request_under_the_name_of_an_answered_one_is_refused(home: Home, change: dict[str, Any]) -> None:
    site = home.open()
    assert refused(site.handle(home.ask("tables").encode())) is None
    before = home.ledger.read_bytes()
    assert refused(site.handle(home.ask("tables", **change).encode())) == "POLICY_REFUSED"
    assert refused(site.handle(home.ask("one_way", name="tables").encode())) == "POLICY_REFUSED"
    assert home.ledger.read_bytes() == before


def test_the_same_question_under_another_name_is_another_spend(home: Home) -> None:
    site = home.open()
    replies = [Reply.decode(site.handle(home.ask("one_way", name=name).encode())) for name in ("one", "two")]
    assert home.charged == ["run-1/one", "run-1/two"]
    assert replies[0].arrays["counts"].tolist() != replies[1].arrays["counts"].tolist()


def test_a_charge_whose_reply_was_lost_is_not_computed_again(home: Home) -> None:
    asked = home.ask("one_way").encode()
    home.open().handle(asked)
    for path in (home.folder / "state" / "replies").iterdir():
        path.unlink()
    before = home.ledger.read_bytes()
    assert refused(home.open(Forbidden()).handle(asked)) == "LEDGER_INVALID"  # type: ignore[arg-type]
    assert home.ledger.read_bytes() == before


def test_a_crash_before_the_reply_was_sealed_costs_the_spend_and_lets_nothing_out(home: Home) -> None:
    class Crash(Forbidden):
        def draw(self, size: int, *, noise_stddev: float, context: str) -> np.ndarray:
            raise MemoryError

    asked = home.ask("one_way").encode()
    assert refused(home.open(Crash()).handle(asked)) == "INTERNAL"  # type: ignore[arg-type]
    assert home.charged == ["run-1/one_way"]
    assert refused(home.open().handle(asked)) == "LEDGER_INVALID"
    assert home.sealed == {}


def test_a_request_of_another_study_is_refused(home: Home) -> None:
    site = home.open(Forbidden())  # type: ignore[arg-type]
    for kind in KINDS:
        assert refused(site.handle(home.ask(kind, study="0f" * 32).encode())) == "POLICY_REFUSED"
    assert home.charged == []


def test_a_site_does_not_open_for_a_study_that_it_did_not_approve(tmp_path: Path) -> None:
    home = make_home(tmp_path / "north")
    wider = {**STUDY, "privacy": {**PRIVACY, "epsilon": 1.001}}
    (home.folder / "study.yaml").write_text(yaml.safe_dump(wider, sort_keys=False), encoding="utf-8")
    with pytest.raises(PolicyError, match="approved"):
        home.open()
    assert not home.ledger.exists()


def test_a_site_does_not_open_another_sites_ledger(tmp_path: Path) -> None:
    home = make_home(tmp_path / "north")
    home.open()
    make_home(tmp_path / "north", site="south")
    with pytest.raises(LedgerError, match="belongs to another"):
        home.open()
    make_home(tmp_path / "north", max_epsilon=0.5)
    with pytest.raises(LedgerError, match="belongs to another"):
        home.open()


@pytest.mark.parametrize(
    "change",
    [
        {"max_epsilon": 0},
        {"max_delta": 1},
        {"least_noise": 0},
        {"least_noise": -1},
        {"least_noise": 1e-200},
        {"least_noise": 1e200},
        {"site": "../north"},
        {"approved": "abc"},
        {"max_budget": 3},
    ],
)
def test_a_site_file_out_of_form_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(StudyError, match=next(iter(change))):
        make_home(tmp_path / "north", **change).open()


def raw(home: Home, options: str, *, name: str = "one_way") -> bytes:
    """A request for one-way tables whose options and name are written as given, whatever JSON makes of them."""
    header = (
        f'{{"schema":"{MESSAGE_SCHEMA}","kind":"one_way","study":"{home.study.digest()}","run":"run-1","name":"{name}",'
        f'"options":{options}}}'
    )
    text = json.dumps({"__metadata__": {"privshare": header}}).encode()
    return len(text).to_bytes(8, "little") + text


SHARES = {
    "0": "POLICY_REFUSED",
    "0.0": "POLICY_REFUSED",
    "-0.0": "POLICY_REFUSED",
    "-0.25": "POLICY_REFUSED",
    "1.0000000000000002": "POLICY_REFUSED",
    "2": "POLICY_REFUSED",
    "1" + "0" * 400: "POLICY_REFUSED",
    "true": "POLICY_REFUSED",
    "null": "POLICY_REFUSED",
    '"0.25"': "POLICY_REFUSED",
    "[0.25]": "POLICY_REFUSED",
    "{}": "POLICY_REFUSED",
    # So little that its noise would not fit the integers, and would let the sums through.
    "1e-30": "BUDGET_REFUSED",
    "1e-300": "BUDGET_REFUSED",
    "5e-324": "BUDGET_REFUSED",
}


@pytest.mark.parametrize("share", SHARES)
def test_a_share_that_is_not_one_is_refused_and_spends_nothing(home: Home, share: str) -> None:
    site = home.open(Forbidden())  # type: ignore[arg-type]
    for kind in MEASUREMENTS:
        body = home.ask(kind, options={"share": json.loads(share)}).encode()
        assert refused(site.handle(body)) == SHARES[share], kind
    assert home.charged == []


@pytest.mark.parametrize("share", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_a_share_that_is_not_finite_is_refused_and_spends_nothing(home: Home, share: str) -> None:
    site = home.open(Forbidden())  # type: ignore[arg-type]
    assert refused(site.handle(raw(home, f'{{"share":{share}}}'))) == "PROTOCOL"
    assert home.charged == []


def test_no_share_is_refused(home: Home) -> None:
    site = home.open(Forbidden())  # type: ignore[arg-type]
    assert refused(site.handle(raw(home, "{}"))) == "POLICY_REFUSED"
    assert home.charged == []


def test_a_whole_budget_may_be_spent_at_once_and_nothing_more(home: Home) -> None:
    site = home.open()
    assert refused(site.handle(home.ask("one_way", options={"share": 1}).encode())) is None
    before, sealed = home.ledger.read_bytes(), home.sealed
    for name, share in (("again", 1.0), ("a little", 1e-6)):
        body = site.handle(home.ask("one_way", name=name, options={"share": share}).encode())
        assert refused(body) == "BUDGET_REFUSED"
    assert home.ledger.read_bytes() == before
    assert home.sealed == sealed
    # The held-out units have their own budget.
    assert refused(site.handle(home.ask("monitor", options={"share": 1.0}).encode())) is None


def test_requests_together_never_pass_the_budget(home: Home) -> None:
    site = home.open()
    answers = [refused(site.handle(home.ask("one_way", name=f"n{number}").encode())) for number in range(6)]
    assert answers == [None] * 4 + ["BUDGET_REFUSED"] * 2
    assert sum(charge.event.spend for charge in read_charges(home.ledger)) < mu_of(epsilon=1, delta=1e-5) ** 2


BAD_BINS: dict[str, dict[str, np.ndarray]] = {
    "a map too short": {"bins.0": np.array([0, 1, 1])},
    "a map too long": {"bins.0": np.array([0, 1, 1, 2, 2])},
    "a map of two dimensions": {"bins.0": np.array([[0, 1, 1, 2]])},
    "a number": {"bins.0": np.array(0)},
    "an empty map": {"bins.0": np.array([], dtype=np.int64)},
    "narrow integers": {"bins.0": np.array([0, 1, 1, 2], dtype=np.int32)},
    "unsigned integers": {"bins.0": np.array([0, 1, 1, 2], dtype=np.uint64)},
    "floats": {"bins.0": np.array([0.0, 1.0, 1.0, 2.0])},
    "truths": {"bins.0": np.array([False, True, True, False])},
    "a negative bin": {"bins.0": np.array([-1, 0, 1, 2])},
    "a gap": {"bins.0": np.array([0, 1, 1, 3])},
    "no bin 0": {"bins.0": np.array([1, 2, 2, 3])},
    "a bin far away": {"bins.0": np.array([0, 1, 1, 2**62])},
    "a map for a column that is not there": {"bins.3": np.array([0])},
    "a map with an odd name": {"bins.00": np.array([0, 1, 1, 2])},
}


@pytest.mark.parametrize("fault", BAD_BINS)
def test_bins_that_are_not_maps_are_refused_and_spend_nothing(home: Home, fault: str) -> None:
    site = home.open(Forbidden())  # type: ignore[arg-type]
    for kind in WITH_BINS:
        body = home.ask(kind, arrays=BAD_BINS[fault]).encode()
        assert refused(site.handle(body)) == "POLICY_REFUSED", kind
    assert home.charged == []


@pytest.mark.parametrize("kind", WITH_BINS)
def test_a_map_that_is_absent_is_refused_and_spends_nothing(either: Home, kind: str) -> None:
    home = either
    site = home.open(Forbidden())  # type: ignore[arg-type]
    for number in (1, len(home.bins) - 1):
        body = home.ask(kind, arrays={f"bins.{number}": None}).encode()
        assert refused(site.handle(body)) == "POLICY_REFUSED"
    assert home.charged == []


def test_bins_that_make_more_cells_than_a_site_will_hold_are_refused_and_spend_nothing(
    either: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = either
    cells = layouts(home)["tables"].n_cells
    monkeypatch.setattr(policy, "MAX_CELLS", cells - 1)
    site = home.open(Forbidden())  # type: ignore[arg-type]
    assert refused(site.handle(home.ask("tables").encode())) == "POLICY_REFUSED"
    assert home.charged == []
    monkeypatch.setattr(policy, "MAX_CELLS", cells)
    assert refused(home.open().handle(home.ask("tables").encode())) is None


@pytest.mark.parametrize(
    "weights",
    [
        np.zeros(sum(SIZES) + BANDS),
        np.zeros(sum(SIZES) + BANDS - 2),
        np.zeros((1, sum(SIZES) + BANDS - 1)),
        np.zeros(sum(SIZES) + BANDS - 1, dtype=np.float32),
        np.zeros(sum(SIZES) + BANDS - 1, dtype=np.int64),
    ],
)
def test_weights_that_do_not_fit_the_bins_are_refused_and_spend_nothing(home: Home, weights: np.ndarray) -> None:
    site = home.open(Forbidden())  # type: ignore[arg-type]
    assert refused(site.handle(home.ask("monitor", arrays={"weights": weights}).encode())) == "POLICY_REFUSED"
    assert home.charged == []


def test_a_score_without_weights_is_refused_and_spends_nothing(home: Home) -> None:
    site = home.open(Forbidden())  # type: ignore[arg-type]
    assert refused(site.handle(home.ask("monitor", arrays={"weights": None}).encode())) == "POLICY_REFUSED"
    assert home.charged == []


def test_a_score_looks_at_the_columns_of_the_record_alone(tmp_path: Path) -> None:
    home = make_either(tmp_path / "north", "windows")
    site = home.open(Forbidden())  # type: ignore[arg-type]
    for more in (-1, 1, sum(sizes_of(home.bins[4:]))):
        weights = np.zeros(home.score_weights + more)
        assert refused(site.handle(home.ask("monitor", arrays={"weights": weights}).encode())) == "POLICY_REFUSED"
    assert home.charged == []


CRITIC_FAULTS: dict[str, dict[str, np.ndarray | None]] = {
    "absent": {"critic.record_embedding.weight": None},
    "another shape": {"critic.record_embedding.weight": np.zeros((4, 9), dtype=np.float32)},
    "another type": {"critic.record_embedding.weight": np.zeros((4, 10))},
    "one too many": {"critic.extra": np.zeros(1, dtype=np.float32)},
}


@pytest.mark.parametrize("kind", ["critic", "verdict", "train"])
@pytest.mark.parametrize("fault", CRITIC_FAULTS)
def test_a_critic_that_is_not_the_study_s_is_refused_and_spends_nothing(home: Home, kind: str, fault: str) -> None:
    site = home.open(Forbidden())  # type: ignore[arg-type]
    whole = {name: array for name, array in home.ask("critic").arrays.items() if name.startswith(CRITIC)}
    options = {"weights": [1.0]} if kind == "train" else {}
    body = home.ask(kind, options=options, arrays={**whole, **CRITIC_FAULTS[fault]}).encode()
    assert refused(site.handle(body)) == "POLICY_REFUSED"
    assert home.charged == []


@pytest.mark.parametrize("kind", ["critic", "verdict"])
def test_a_critic_that_is_not_finite_is_refused_and_spends_nothing(home: Home, kind: str) -> None:
    site = home.open(Forbidden())  # type: ignore[arg-type]
    weight = np.full((4, 10), np.nan, dtype=np.float32)
    body = home.ask(kind, arrays={"critic.record_embedding.weight": weight}).encode()
    assert refused(site.handle(body)) == "PROTOCOL"
    assert home.charged == []


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 4},
        {"steps": -1},
        {"steps": 1.0},
        {"steps": None},
        {"learning_rates": [0.1]},
        {"learning_rates": [0.1, 2.0]},
        {"learning_rates": [-0.1, 0.1]},
        {"learning_rates": ["0.1", 0.1]},
        {"learning_rates": 0.1},
        {"seed": "7"},
        {"seed": None},
        {"seed": 7.0},
        {"weights": 1.0},
        {"weights": []},
        {"weights": [1]},
        {"weights": ["1.0"]},
        {"weights": [-0.5]},
        {"weights": [1e9]},
        {"weights": [1.0, 1.0]},
        {"weights": {"semantic": 1.0}},
    ],
)
def test_training_beyond_the_study_is_refused(home: Home, options: dict[str, Any]) -> None:
    site = home.open(Forbidden())  # type: ignore[arg-type]
    critic = {name: array for name, array in home.ask("critic").arrays.items() if name.startswith(CRITIC)}
    assert refused(site.handle(home.ask("train", options=options, arrays=critic).encode())) == "POLICY_REFUSED"


@pytest.mark.parametrize(
    "arrays",
    [
        {"generator.heads.weight": np.zeros((10, 3), dtype=np.float32)},
        {"generator.heads.bias": np.zeros(10)},
        {"generator.extra": np.zeros(1, dtype=np.float32)},
        {"targets.one_way.values": np.zeros((2, 9), dtype=np.float32)},
        {"targets.one_way.precision": np.zeros(9, dtype=np.float32)},
        {"targets.pair.values": np.zeros((2, 10, 9), dtype=np.float32)},
        {"targets.pair.precision": None},
        {"targets.label_counts": np.zeros(3, dtype=np.float32)},
        {"targets.average.values": np.zeros((2, 5), dtype=np.float32)},
        {"targets.embedding.values": np.zeros((2, 8), dtype=np.float32)},
        {"targets.extra": np.zeros(1, dtype=np.float32)},
        {"groups.records": None},
        {"groups.records": np.arange(9)},
        {"groups.records": np.arange(10, dtype=np.float64)},
        {"groups.records": np.arange(1, 11)},
        {"groups.records": np.arange(10) * 2},
        {"groups.records": np.arange(10)[::-1].copy()},
        {"groups.channels": np.arange(2)},
    ],
)
def test_arrays_that_do_not_fit_the_generator_are_refused(home: Home, arrays: dict[str, np.ndarray | None]) -> None:
    site = home.open(Forbidden())  # type: ignore[arg-type]
    assert refused(site.handle(home.ask("train", arrays=arrays).encode())) == "POLICY_REFUSED"


def test_the_sites_key_is_made_once_and_readable_by_its_user_alone(tmp_path: Path) -> None:
    home = make_home(tmp_path / "north", key=None)
    site = home.open()
    assert not home.key.exists()
    assert refused(site.handle(home.ask("one_way").encode())) is None
    assert stat.S_IMODE(home.key.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.key.parent.stat().st_mode) == 0o700
    key = home.key.read_bytes()
    assert len(key) == 32
    assert refused(home.open().handle(home.ask("tables").encode())) is None
    assert home.key.read_bytes() == key
    other = make_home(tmp_path / "other", key=None)
    other.open().handle(other.ask("one_way").encode())
    assert other.key.read_bytes() != key


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o601])
def test_a_key_that_others_can_reach_is_refused_and_spends_nothing(home: Home, mode: int) -> None:
    home.key.chmod(mode)
    assert refused(home.open(Forbidden()).handle(home.ask("one_way").encode())) == "POLICY_REFUSED"  # type: ignore[arg-type]
    assert home.charged == []


@pytest.mark.parametrize("key", [b"", b"short", bytes(33)])
def test_a_key_of_another_length_is_refused_and_spends_nothing(tmp_path: Path, key: bytes) -> None:
    home = make_home(tmp_path / "north", key=key)
    assert refused(home.open(Forbidden()).handle(home.ask("one_way").encode())) == "POLICY_REFUSED"  # type: ignore[arg-type]
    assert home.charged == []


def test_a_key_that_was_lost_after_a_charge_is_not_replaced(home: Home) -> None:
    # Another key holds out other units: a unit could pay from both budgets.
    assert refused(home.open().handle(home.ask("one_way").encode())) is None
    home.key.unlink()
    assert refused(home.open(Forbidden()).handle(home.ask("tables").encode())) == "POLICY_REFUSED"  # type: ignore[arg-type]
    assert not home.key.exists()
    assert home.charged == ["run-1/one_way"]


PLANTED_TEXT = "GEHEIM-4711"
PLANTED_NUMBER = "918273645"
GOOD_ROW = ("p1", "red", "3", "1.0", "no")
DIRTY: dict[str, tuple[list[Sequence[str]], str]] = {
    "text in a whole number": ([("p1", "red", PLANTED_TEXT, "1.0", "no")], "age: a value is not a number"),
    "text in a number": ([("p1", "red", "3", PLANTED_TEXT, "no")], "amount: a value is not a number"),
    "a fraction in a whole number": (
        [("p1", "red", f"{PLANTED_NUMBER}.5", "1.0", "no")],
        "age: a value is not a whole number",
    ),
    "an infinite number": ([("p1", "red", "3", "1e999", "no")], "amount: a value is NaN or infinite"),
    "a number out of bounds": ([("p1", "red", "3", PLANTED_NUMBER, "no")], "amount: a value is outside"),
    "a whole number out of bounds": ([("p1", "red", PLANTED_NUMBER, "1.0", "no")], "age: a value is outside"),
    "a category that is not listed": ([("p1", PLANTED_TEXT, "3", "1.0", "no")], "colour: a value is not among"),
    "a label that is not listed": ([("p1", "red", "3", "1.0", PLANTED_TEXT)], "ill: a value is not among"),
    "a label that is missing": ([(PLANTED_TEXT, "red", "3", "1.0", "")], "ill: a value is missing"),
    "a unit key that is missing": ([("", PLANTED_TEXT, "3", "1.0", "no")], "patient: the unit key is missing"),
    "text that is not UTF-8": ([("p1", "red", "3", "1.0", PLANTED_TEXT + "\udcff")], "not a table of delimited UTF-8"),
    "a row too long": ([("p1", "red", "3", "1.0", "no", PLANTED_TEXT)], "a row has more or fewer cells"),
    "a row too short": ([(PLANTED_TEXT, "red", "3")], "a row has more or fewer cells"),
    "a quote that does not end": ([("p1", f'"{PLANTED_TEXT}', "3", "1.0", "no")], "table.csv: "),
    "a unit with too many records": ([(PLANTED_TEXT, *GOOD_ROW[1:])] * 3, "patient: a unit has more records"),
    "a row where the header should be": ([], "patient: the column is in the study but not in the table"),
}


def check_dirty(home: Home, reason: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever is asked is refused alike and unspent, and nothing that was planted is told or logged."""
    site = home.open(Forbidden())  # type: ignore[arg-type]
    kinds = ("describe", *MEASUREMENTS, "describe")
    with caplog.at_level(logging.DEBUG):
        bodies = [site.handle(home.ask(kind).encode()) for kind in kinds]
    printed = capfd.readouterr()
    log = "\n".join(logging.Formatter().format(record) for record in caplog.records)
    found = [record.getMessage().startswith("site=north event=table_refused") for record in caplog.records]
    assert found == [True] * len(kinds)
    assert log.count(reason) == len(kinds)
    # The coordinator learns that something went wrong, and the same whatever it was.
    assert bodies == [refusal("north", ExitCode.INTERNAL)] * len(kinds)
    for secret in (PLANTED_TEXT, PLANTED_NUMBER, "4711"):
        assert secret.encode() not in bodies[0]
        assert secret not in log
        assert secret not in printed.out + printed.err
    assert home.charged == []


@pytest.mark.parametrize("fault", DIRTY)
def test_what_is_wrong_with_a_table_stays_at_the_site_and_its_text_reaches_not_even_the_log(
    fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    rows, reason = DIRTY[fault]
    study = {**STUDY, "unit": {**STUDY["unit"], "surplus": "refuse"}}
    header = "patient,colour,age,amount,ill" if rows else f"{PLANTED_TEXT},red,3,1.0,no"
    home = make_home(tmp_path / "north", [GOOD_ROW, *rows], header=header, study=study)
    check_dirty(home, reason, caplog, capfd)


GOOD_STEP = ("p1", "0", "40", "a")
DIRTY_SERIES: dict[str, tuple[list[Sequence[str]], str, dict[str, Any]]] = {
    "a unit that the first table lacks": (
        [(PLANTED_TEXT, "0", "40", "a")],
        "patient: a row of the long table is of a unit",
        {},
    ),
    "a unit key that is missing": ([("", "0", PLANTED_NUMBER, "a")], "patient: the unit key is missing", {}),
    "text in a whole number": ([("p1", "1", PLANTED_TEXT, "a")], "pulse: a value is not a number", {}),
    "a number out of bounds": ([("p1", "1", PLANTED_NUMBER, "a")], "pulse: a value is outside", {}),
    "a category that is not listed": ([("p1", "1", "40", PLANTED_TEXT)], "drug: a value is not among", {}),
    "a category that is missing": ([("p1", PLANTED_NUMBER, "40", "")], "drug: a value is missing", {}),
    "a time that is missing": ([("p1", "", "40", "a")], "minute: a time is missing", {}),
    "a time that is text": ([("p1", PLANTED_TEXT, "40", "a")], "minute: a time is not a number", {}),
    "a time too far away": ([("p1", f"{PLANTED_NUMBER}e30", "40", "a")], "minute: a time is not a number", {}),
    "a time that goes back": (
        [("p1", PLANTED_NUMBER, "40", "a"), ("p1", "1", "40", "a")],
        "minute: the rows of a unit are not in the order of time",
        {},
    ),
    "a time twice": (
        [("p1", PLANTED_NUMBER, "40", "a"), ("p1", PLANTED_NUMBER, "50", "a")],
        "minute: two rows of a unit have the same time",
        {},
    ),
    "too many steps": (
        [("p1", f"{PLANTED_NUMBER}{step}", "40", "a") for step in range(9)],
        "minute: a unit has rows outside the window",
        {"longer": "refuse"},
    ),
    "a unit without steps": ([], "minute: a unit has no row in its window", {"empty": "refuse"}),
    "text that is not UTF-8": ([("p1", "1", PLANTED_TEXT + "\udcff", "a")], "not a table of delimited UTF-8", {}),
    "a row too long": ([(*GOOD_STEP, PLANTED_TEXT)], "a row has more or fewer cells", {}),
    "a row too short": ([(PLANTED_TEXT, "1")], "a row has more or fewer cells", {}),
}


@pytest.mark.parametrize("fault", DIRTY_SERIES)
def test_what_is_wrong_with_a_long_table_stays_at_the_site_too(
    fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    steps, reason, rules = DIRTY_SERIES[fault]
    study = {**WINDOWED, "windows": {**WINDOWED["windows"], **rules}}
    rows = [GOOD_ROW, (PLANTED_NUMBER, *GOOD_ROW[1:])] if fault == "a unit without steps" else [GOOD_ROW]
    home = make_home(tmp_path / "north", rows, series=[GOOD_STEP, *steps], study=study)
    check_dirty(home, reason, caplog, capfd)


def test_a_patient_twice_in_the_first_table_has_no_window_of_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    study = {**WINDOWED, "unit": {**WINDOWED["unit"], "surplus": "drop"}}
    rows = [GOOD_ROW, *[(PLANTED_TEXT, *GOOD_ROW[1:])] * 2]
    home = make_home(tmp_path / "north", rows, series=[GOOD_STEP], study=study)
    check_dirty(home, "patient: a unit has more than one row in the first table", caplog, capfd)


@pytest.mark.parametrize("missing", ["absent", "empty", "a header alone"])
def test_a_long_table_without_rows_is_refused_like_any_other(
    missing: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    home = make_home(tmp_path / "north", [GOOD_ROW], series=[], study=WINDOWED)
    path = home.folder / "series.csv"
    if missing == "absent":
        path.unlink()
    if missing == "empty":
        path.write_text("")
    reason = {"absent": "no such table", "empty": "the table is empty", "a header alone": "a header and no rows"}[
        missing
    ]
    check_dirty(home, reason, caplog, capfd)


@pytest.mark.parametrize("which", ["records", "windows"])
def test_a_site_has_a_long_table_if_and_only_if_its_study_has_windows(tmp_path: Path, which: str) -> None:
    home = make_either(tmp_path / "north", which)
    path = home.folder / "site.yaml"
    site = yaml.safe_load(path.read_text())
    assert ("series" in site) == (which == "windows")
    site.pop("series", None)
    path.write_text(yaml.safe_dump(site if which == "windows" else {**site, "series": str(home.folder / "series.csv")}))
    with pytest.raises(PolicyError, match=r"^series: "):
        home.open()
    assert not home.ledger.exists()


MALFORMED = {
    "nothing": b"",
    "zeros": b"\0" * 100,
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "a header of 2^63 bytes": (2**63).to_bytes(8, "little") + b"{}",
    "no header": (2).to_bytes(8, "little") + b"{}",
}


@pytest.mark.parametrize("fault", MALFORMED)
def test_a_malformed_body_is_refused_and_spends_nothing(home: Home, fault: str) -> None:
    site = home.open(Forbidden())  # type: ignore[arg-type]
    assert refused(site.handle(MALFORMED[fault])) == "PROTOCOL"
    assert home.charged == []


def test_arrays_that_are_not_finite_are_refused_and_spend_nothing(home: Home) -> None:
    site = home.open(Forbidden())  # type: ignore[arg-type]
    for value in (np.nan, np.inf, -np.inf):
        weights = np.full(sum(SIZES) + BANDS - 1, value)
        assert refused(site.handle(home.ask("monitor", arrays={"weights": weights}).encode())) == "PROTOCOL"
    assert home.charged == []


def test_a_name_that_is_no_text_is_refused_and_spends_nothing(home: Home) -> None:
    # Half of a surrogate pair: JSON reads it, and nothing can write it.
    site = home.open(Forbidden())  # type: ignore[arg-type]
    assert refused(site.handle(raw(home, '{"share":0.25}', name="\\ud800"))) is not None
    assert home.charged == []


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, Site]:
    home = make_home(tmp_path_factory.mktemp("standing") / "north")
    return home, home.open()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_never_raise(standing: tuple[Home, Site], body: bytes) -> None:
    assert refused(standing[1].handle(body)) == "PROTOCOL"


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["describe", *MEASUREMENTS]),
    st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=3),
)
def test_a_request_with_changed_bytes_never_raises_and_never_passes_the_budget(
    standing: tuple[Home, Site], kind: str, changes: list[tuple[int, int]]
) -> None:
    home, site = standing
    body = bytearray(home.ask(kind).encode())
    for place, value in changes:
        body[place % len(body)] = value
    refused(site.handle(bytes(body)))
    for account in ("train", "holdout"):
        spent = [charge.event.spend for charge in read_charges(home.ledger) if charge.event.account == account]
        assert sum(spent) <= mu_of(epsilon=1, delta=1e-5) ** 2


def test_a_site_that_lost_its_table_or_its_ledger_refuses(home: Home) -> None:
    site = home.open(Forbidden())  # type: ignore[arg-type]
    table = (home.folder / "table.csv").read_bytes()
    (home.folder / "table.csv").unlink()
    # At the roll call already: no other site spends for a round that cannot be.
    for kind in ("describe", "one_way"):
        assert refused(site.handle(home.ask(kind).encode())) == "INTERNAL"
    (home.folder / "table.csv").write_bytes(table)
    home.ledger.write_bytes(home.ledger.read_bytes().replace(b"north", b"south"))
    for kind in ("describe", "one_way"):
        assert refused(site.handle(home.ask(kind).encode())) == "LEDGER_INVALID"


class Replayed(np.ndarray):
    """Noise that makes any sums come out as they did before."""

    def __radd__(self, sums: np.ndarray) -> np.ndarray:
        """The recorded output, whatever is added."""
        assert sums.shape == self.shape
        assert sums.dtype == np.int64
        return np.array(self)


@dataclass
class Replay:
    """A noise source under which every release has its recorded output."""

    outputs: Mapping[str, np.ndarray]
    kind: str = "test-seed"
    drawn: list[str] = field(default_factory=list)

    def draw(self, size: int, *, noise_stddev: float, context: str) -> np.ndarray:
        self.drawn.append(context)
        return self.outputs[context].view(Replayed)


def neighbours(rows: list[Row]) -> dict[str, list[Row]]:
    """Tables that differ from some rows in one patient with all its records."""
    stranger: list[Row] = [
        ("q", "blue", "", "0.01", "yes"),
        ("q", "red", "99", "9.99", "no"),
        ("q", "", "3", "5.00", "yes"),
    ]
    if rows is SINGLE:
        stranger = stranger[:1]
    return {
        "without the patient who owns most records": [row for row in rows if row[0] != "p0"],
        "without a patient in the middle": [row for row in rows if row[0] != "p17"],
        "without the last patient": [row for row in rows if row[0] != "p39"],
        "with one more patient in front": [*stranger, *rows],
        "with one more patient spread over the table": [rows[0], stranger[0], *rows[1:20], *stranger[1:], *rows[20:]],
    }


ANSWERS = [
    *[None] * 5,
    "POLICY_REFUSED",
    None,
    None,
    "BUDGET_REFUSED",
    "POLICY_REFUSED",
    "POLICY_REFUSED",
    *[None] * 4,
    "POLICY_REFUSED",
    "POLICY_REFUSED",
    "PROTOCOL",
]
SPENDING = [1, 3, 6, 7, 12, 13, 14]


def sequence(home: Home) -> list[Request]:
    """What a coordinator may ask in a run: measurements, repetitions, and what is refused for every reason."""
    return [
        home.ask("describe"),
        home.ask("one_way", options={"share": 0.35}),
        home.ask("describe", name="describe-2"),
        home.ask("tables", options={"share": 0.3}),
        home.ask("tables", options={"share": 0.3}),
        home.ask("tables", options={"share": 0.05}),
        home.ask("embedding", options={"share": 0.1}),
        home.ask("critic", options={"share": 0.1}),
        home.ask("tables", name="tables-2", options={"share": 0.5}),
        home.ask("tables", name="tables-3", arrays={"bins.0": np.array([0, 1, 1, 3])}),
        home.ask("tables", name="tables-4", arrays={"tables": np.array([0]), "emphasis": np.array([17])}),
        home.ask("train"),
        home.ask("monitor", options={"share": 0.4}),
        home.ask("verdict", options={"share": 0.3}),
        home.ask("monitor", name="monitor-2", arrays={"weights": np.ones(home.score_weights)}),
        home.ask("one_way", name="one_way-2", options={"share": 2}),
        home.ask("one_way", name="one_way-3", study="0f" * 32),
    ]


def play(home: Home, noise: NoiseSource, caplog: pytest.LogCaptureFixture) -> tuple[list[bytes], list[str]]:
    """The replies to the whole sequence, and what was logged meanwhile; the site restarts half-way."""
    caplog.clear()
    bodies = [*(request.encode() for request in sequence(home)), b"noise on the line"]
    with caplog.at_level(logging.DEBUG):
        site = home.open(noise)
        replies = [site.handle(body) for body in bodies[:6]]
        site = home.open(noise)
        replies += [site.handle(body) for body in bodies[6:]]
    return replies, [f"{record.levelname} {record.getMessage()}" for record in caplog.records]


def released_by(home: Home, replies: list[bytes]) -> dict[str, np.ndarray]:
    """Every vector that was released, by request, whether it travelled or was kept."""
    found = {}
    for place in SPENDING:
        request = sequence(home)[place]
        arrays = Reply.decode(replies[place]).arrays
        found[request.identity] = arrays["counts"] if "counts" in arrays else home.kept[request.identity]
    return found


def check_record_play(
    folder: Path, caplog: pytest.LogCaptureFixture, mine: list[Row], other: list[Row], **how: Any
) -> None:
    """Play the sequence on one table, then on the other with the noise that gives the same outputs."""
    first = make_home(folder / "first" / "north", mine, **how)
    recorded, log = play(first, SeededNoise(b"seed"), caplog)
    assert [refused(body) for body in recorded] == ANSWERS
    outputs = released_by(first, recorded)
    second = make_home(folder / "second" / "north", other, **how)
    replay = Replay(outputs)
    replayed, other_log = play(second, replay, caplog)  # type: ignore[arg-type]
    assert replay.drawn == list(outputs)
    assert replayed == recorded
    assert second.ledger.read_bytes() == first.ledger.read_bytes()
    assert second.state == first.state
    assert other_log == log
    # The test has power: the numbers below the noise do differ.
    third = make_home(folder / "third" / "north", other, **how)
    plain, _ = play(third, SeededNoise(b"seed"), caplog)
    assert plain != recorded
    assert [len(body) for body in plain] == [len(body) for body in recorded]


@pytest.mark.parametrize("neighbour", neighbours(ROWS))
def test_everything_but_the_released_numbers_is_the_same_with_one_unit_more_or_less(
    neighbour: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_record_play(tmp_path, caplog, ROWS, neighbours(ROWS)[neighbour])


@pytest.mark.parametrize("neighbour", neighbours(SINGLE))
def test_everything_but_the_released_numbers_is_the_same_with_one_unit_and_its_window_more_or_less(
    neighbour: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_record_play(tmp_path, caplog, SINGLE, neighbours(SINGLE)[neighbour], study=WINDOWED)


@pytest.mark.parametrize("study", [STUDY, WINDOWED])
def test_everything_but_the_released_numbers_is_the_same_where_releases_stay_at_the_site(
    study: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = ROWS if study is STUDY else SINGLE
    local = {**study, "discriminators": {"scope": "local"}}
    check_record_play(tmp_path, caplog, rows, [row for row in rows if row[0] != "p17"], study=local)


def test_everything_but_the_released_numbers_is_the_same_where_each_record_is_a_unit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [row[1:] for row in ROWS]
    study = {**STUDY, "unit": {"name": "visit"}}
    check_record_play(tmp_path, caplog, rows, rows[:20] + rows[21:], header="colour,age,amount,ill", study=study)


@pytest.mark.parametrize("study", [STUDY, WINDOWED])
def test_everything_but_the_released_numbers_is_the_same_when_the_last_unit_of_an_account_goes(
    study: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pair = pd.DataFrame({"patient": ["p0", "p3"]})
    split = bound_units(pair, key="patient", max_records=2, drop_surplus=True, holdout=0.3, secret=KEY)
    assert split.holdout.tolist() == [False, True]
    rows = [row for row in (ROWS if study is STUDY else SINGLE) if row[0] in ("p0", "p3")]
    for leaver in ("p0", "p3"):
        check_record_play(tmp_path / leaver, caplog, rows, [row for row in rows if row[0] != leaver], study=study)


def test_the_sequence_meets_every_kind_of_answer(either: Home, caplog: pytest.LogCaptureFixture) -> None:
    home = either
    replies, log = play(home, SeededNoise(b"seed"), caplog)
    assert [refused(body) for body in replies] == ANSWERS
    assert {request.kind for request in sequence(home)} == set(KINDS)
    assert replies[3] == replies[4]
    assert len(log) == len([answer for answer in ANSWERS if answer is not None])
    assert hashlib.sha256(sequence(home)[3].encode()).hexdigest() in home.ledger.read_text()


# --- releases that stay at the site

LOCAL = {**STUDY, "discriminators": {"scope": "local"}}
LOCAL_WINDOWED = {**WINDOWED, "discriminators": {"scope": "local"}}


def make_local(folder: Path, rows: list[Row] = ROWS, **changes: Any) -> Home:
    return make_home(folder, rows, study={**LOCAL, **changes})


@pytest.mark.parametrize("kind", MEASUREMENTS)
def test_a_kept_release_is_charged_like_any_other_and_does_not_travel(tmp_path: Path, kind: str) -> None:
    home = make_local(tmp_path / "north")
    asked = home.ask(kind).encode()
    body = home.open().handle(asked)
    reply = Reply.decode(body)
    assert reply.refused is None
    (charge,) = read_charges(home.ledger)
    assert charge.event == GaussianEvent.from_dict(reply.facts["event"])
    assert set(reply.facts) == {"event", "ledger_head"}
    assert ("counts" in reply.arrays) == (kind not in KEPT)
    assert len(reply.arrays) == (kind not in KEPT)
    noise = SeededNoise(b"seed").draw(
        charge.event.cells, noise_stddev=charge.event.noise_stddev, context=f"run-1/{kind}"
    )
    # What was kept was noised all the same.
    kept = home.kept[f"run-1/{kind}"]
    assert kept.shape == (charge.event.cells,)
    assert (kept != noise).any()
    if kind in KEPT:
        assert kept.tobytes()[:64] not in body
        assert kept.tobytes()[:64] not in b"".join(home.sealed.values())
    # Asked again, after a restart, the answer is the same and nothing is kept twice.
    before = home.state
    assert home.open(Forbidden()).handle(asked) == body  # type: ignore[arg-type]
    assert home.state == before


def test_a_shared_study_keeps_no_releases(home: Home) -> None:
    site = home.open()
    for kind in ("one_way", "tables", "embedding"):
        assert "counts" in Reply.decode(site.handle(home.ask(kind, options={"share": 0.2}).encode())).arrays
    assert home.kept == {}


def trained_at(home: Home, *, release: Sequence[str] = ("one_way", "tables", "embedding"), **changes: Any) -> Reply:
    site = home.open()
    for kind in release:
        body = site.handle(home.ask(kind, options={"share": 0.2}).encode())
        assert refused(body) is None
    return Reply.decode(home.open(Forbidden()).handle(home.ask("train", **changes).encode()))  # type: ignore[arg-type]


@pytest.mark.parametrize("study", [LOCAL, LOCAL_WINDOWED])
def test_a_site_trains_on_what_it_kept(tmp_path: Path, study: dict[str, Any]) -> None:
    rows = ROWS if study is LOCAL else SINGLE
    others = [(row[0], "red", "3", "0.50", row[4]) for row in rows]
    homes = [make_home(tmp_path / str(number), one, study=study) for number, one in enumerate((rows, rows, others))]
    first, again, other = (trained_at(home) for home in homes)
    assert first.refused is None
    assert set(first.facts) == set()
    assert {name.split(".")[0] for name in first.arrays} == {"generator"}
    assert all(np.array_equal(first.arrays[name], again.arrays[name]) for name in first.arrays)
    assert any(not np.array_equal(first.arrays[name], other.arrays[name]) for name in first.arrays)
    assert homes[0].charged == ["run-1/one_way", "run-1/tables", "run-1/embedding"]


def test_each_release_that_was_kept_counts_in_the_training(tmp_path: Path) -> None:
    found = []
    for number, release in enumerate((["one_way"], ["one_way", "tables"], ["one_way", "tables", "embedding"])):
        reply = trained_at(make_local(tmp_path / str(number)), release=release)
        assert reply.refused is None
        found.append(reply.arrays["generator.heads.weight"])
    assert not np.array_equal(found[0], found[1])
    assert not np.array_equal(found[1], found[2])


def test_targets_that_a_coordinator_sends_are_not_looked_at(tmp_path: Path) -> None:
    groups = [np.arange(size) for size in SIZES]
    plain = trained_at(make_local(tmp_path / "a"))
    home = make_local(tmp_path / "b")
    targets = pack_targets(home.targets(groups))
    told = trained_at(home, arrays=targets)
    assert all(np.array_equal(plain.arrays[name], told.arrays[name]) for name in plain.arrays)


@pytest.mark.parametrize("release", [[], ["tables"], ["monitor"]])
def test_a_site_that_has_not_counted_its_columns_in_the_run_does_not_train(tmp_path: Path, release: list[str]) -> None:
    assert trained_at(make_local(tmp_path / "north"), release=release).refused == "POLICY_REFUSED"


def test_releases_of_another_run_do_not_count(tmp_path: Path) -> None:
    home = make_local(tmp_path / "north")
    assert trained_at(home, run="run-2").refused == "POLICY_REFUSED"
    assert trained_at(home, release=()).refused is None


@pytest.mark.parametrize(
    "arrays",
    [
        {"group_of_bin.0": None},
        {"group_of_bin.3": np.array([0])},
        {"group_of_bin.0": np.array([0, 1])},
        {"group_of_bin.0": np.array([0, 1, 1, 2])},
        {"group_of_bin.0": np.array([0, 1, 3])},
        {"group_of_bin.0": np.array([1, 2, 3])},
        {"group_of_bin.0": np.array([1, 0, 1])},
        {"group_of_bin.0": np.array([-1, 0, 1])},
        {"group_of_bin.0": np.array([0.0, 1.0, 2.0])},
    ],
)
def test_groups_that_do_not_fit_the_bins_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray | None]) -> None:
    assert trained_at(make_local(tmp_path / "north"), arrays=arrays).refused == "POLICY_REFUSED"
