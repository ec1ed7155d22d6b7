"""A site: what it answers, what it refuses, and that its answers hold nothing of a row but what was released."""

import hashlib
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
from common.data.tables import all_pairs
from common.data.units import bound_units
from common.errors import ExitCode, LedgerError, PolicyError, StudyError
from common.models.critics import Targets
from common.models.generator import initialise
from common.models.monitor import BANDS
from common.models.training import parameters_of
from common.privacy.budget import mu_of
from common.privacy.events import GaussianEvent
from common.privacy.ledger import read_charges
from common.privacy.noise import NoiseSource, SeededNoise
from common.study import Study, parse_study
from common.wire.messages import MESSAGE_SCHEMA, Reply, Request, refusal
from common.wire.packing import GENERATOR, pack, pack_bins, pack_targets, shape_of, unpack

KEY = bytes(range(32))
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
}
# Cell to bin, a map a column: 3 colours and missing, 20 cells of age and missing, 8 cells of amount.
BINS = [np.array([0, 1, 1, 2]), np.append(np.arange(20) // 5, 4), np.arange(8) // 4]
SIZES = (3, 5, 2)

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


@dataclass(frozen=True)
class Home:
    """The folder of one site, and what a test asks of it."""

    folder: Path
    study: Study

    def open(self, noise: NoiseSource | None = None) -> Site:
        return open_site(self.folder / "site.yaml", noise=noise or SeededNoise(b"seed"))

    def ask(self, kind: str, *, name: str = "", run: str = "run-1", **changes: Any) -> Request:
        """A request that is right, unless the changes say otherwise."""
        options: dict[str, Any] = {"share": 0.25} if kind in ("one_way", "pairs", "monitor") else {}
        arrays: dict[str, np.ndarray] = {} if kind in ("describe", "one_way") else pack_bins(BINS)
        if kind == "monitor":
            arrays["weights"] = np.linspace(-1, 1, sum(SIZES) + BANDS - 1)
        if kind == "train":
            shape = shape_of(self.study, SIZES)
            targets = Targets(np.ones((2, 10)), np.ones(10), np.ones((2, 10, 10)), np.ones((10, 10)), np.ones(2))
            arrays |= {**pack(GENERATOR, parameters_of(initialise(shape, seed=0))), **pack_targets(targets)}
            options = {"steps": 2, "learning_rates": [1e-3, 5e-4], "seed": 7}
        return Request(
            kind,
            changes.get("study", self.study.digest()),
            run,
            name or kind,
            {**options, **changes.get("options", {})},
            {**arrays, **changes.get("arrays", {})},
        )

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
    def sealed(self) -> dict[str, bytes]:
        replies = self.folder / "state" / "replies"
        return {path.name: path.read_bytes() for path in sorted(replies.iterdir())} if replies.exists() else {}


def make_home(
    folder: Path,
    rows: Sequence[Sequence[str]] = ROWS,
    *,
    header: str | None = "patient,colour,age,amount,ill",
    study: dict[str, Any] | None = None,
    key: bytes | None = KEY,
    **settings_: Any,
) -> Home:
    """Write a site's files: site.yaml, the study, the table, and its key."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = study or STUDY
    approved = parse_study(plain, source="test")
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


@pytest.mark.parametrize("kind", ["one_way", "pairs", "monitor"])
def test_a_measurement_is_charged_as_it_is_stated_and_sized_by_the_schema(home: Home, kind: str) -> None:
    site = home.open()
    reply = Reply.decode(site.handle(home.ask(kind).encode()))
    assert reply.refused is None
    grids = make_grids(home.study.features)
    layouts = {"one_way": histogram_layout(grids, 2), "pairs": all_pairs(SIZES, 2)}
    cells = layouts[kind].n_cells if kind in layouts else 2 * BANDS
    tables = layouts[kind].n_tables if kind in layouts else 1
    assert set(reply.facts) == {"event", "ledger_head"}
    assert set(reply.arrays) == {"counts"}
    assert reply.arrays["counts"].shape == (cells,)
    assert reply.arrays["counts"].dtype == np.int64
    (charge,) = read_charges(home.ledger)
    assert charge.event == GaussianEvent.from_dict(reply.facts["event"])
    assert charge.request == f"run-1/{kind}"
    assert charge.event.account == ("holdout" if kind == "monitor" else "train")
    # A unit weighs 2 grid units, its records' shares of one.
    assert (charge.event.squared_sensitivity, charge.event.scale) == (4 * tables, 2)
    assert charge.event.spend <= 0.25 * mu_of(epsilon=1, delta=1e-5) ** 2
    noise = SeededNoise(b"seed").draw(cells, noise_stddev=charge.event.noise_stddev, context=charge.request)
    sums = reply.arrays["counts"] - noise
    # Below the noise lies the table: every unit of the account once in each table, its weight shared out.
    assert sums.min() >= 0
    assert sums.sum() % (2 * tables) == 0
    assert 0 < sums.sum() < 2 * tables * 40


def test_training_and_holdout_units_make_up_the_table_together(home: Home) -> None:
    site = home.open()
    units = 0
    for kind, tables in (("pairs", 3), ("monitor", 1)):
        reply = Reply.decode(site.handle(home.ask(kind).encode()))
        event = GaussianEvent.from_dict(reply.facts["event"])
        noise = SeededNoise(b"seed").draw(event.cells, noise_stddev=event.noise_stddev, context=f"run-1/{kind}")
        units += int((reply.arrays["counts"] - noise).sum()) // (2 * tables)
    assert units == 40


def test_training_returns_another_generator_and_spends_nothing(home: Home) -> None:
    site = home.open(Forbidden())  # type: ignore[arg-type]
    (home.folder / "table.csv").unlink()  # not a row is needed
    asked = home.ask("train")
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
    "change", [{"options": {"share": 0.26}}, {"options": {"note": 1}}, {"arrays": {"bins.0": np.array([0, 1, 2, 3])}}]
)
def test_another_request_under_the_name_of_an_answered_one_is_refused(home: Home, change: dict[str, Any]) -> None:
    site = home.open()
    assert refused(site.handle(home.ask("pairs").encode())) is None
    before = home.ledger.read_bytes()
    assert refused(site.handle(home.ask("pairs", **change).encode())) == "POLICY_REFUSED"
    assert refused(site.handle(home.ask("one_way", name="pairs").encode())) == "POLICY_REFUSED"
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
    for kind in ("describe", "one_way", "pairs", "monitor", "train"):
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
    "change", [{"max_epsilon": 0}, {"max_delta": 1}, {"site": "../north"}, {"approved": "abc"}, {"max_budget": 3}]
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
@pytest.mark.parametrize("kind", ["one_way", "pairs", "monitor"])
def test_a_share_that_is_not_one_is_refused_and_spends_nothing(home: Home, kind: str, share: str) -> None:
    site = home.open(Forbidden())  # type: ignore[arg-type]
    body = home.ask(kind, options={"share": json.loads(share)}).encode()
    assert refused(site.handle(body)) == SHARES[share]
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
@pytest.mark.parametrize("kind", ["pairs", "monitor", "train"])
def test_bins_that_are_not_maps_are_refused_and_spend_nothing(home: Home, kind: str, fault: str) -> None:
    site = home.open(Forbidden())  # type: ignore[arg-type]
    assert refused(site.handle(home.ask(kind, arrays=BAD_BINS[fault]).encode())) == "POLICY_REFUSED"
    assert home.charged == []


@pytest.mark.parametrize("kind", ["pairs", "monitor", "train"])
def test_a_map_that_is_absent_is_refused_and_spends_nothing(home: Home, kind: str) -> None:
    site = home.open(Forbidden())  # type: ignore[arg-type]
    whole = home.ask(kind)
    fewer = {name: array for name, array in whole.arrays.items() if name != "bins.1"}
    body = Request(kind, whole.study, whole.run, whole.name, whole.options, fewer).encode()
    assert refused(site.handle(body)) == "POLICY_REFUSED"
    assert home.charged == []


def test_bins_that_make_more_cells_than_a_site_will_hold_are_refused_and_spend_nothing(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = all_pairs(SIZES, 2).n_cells
    monkeypatch.setattr(policy, "MAX_CELLS", cells - 1)
    site = home.open(Forbidden())  # type: ignore[arg-type]
    assert refused(site.handle(home.ask("pairs").encode())) == "POLICY_REFUSED"
    assert home.charged == []
    monkeypatch.setattr(policy, "MAX_CELLS", cells)
    assert refused(home.open().handle(home.ask("pairs").encode())) is None


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
    whole = home.ask("monitor")
    body = Request("monitor", whole.study, whole.run, whole.name, whole.options, pack_bins(BINS)).encode()
    assert refused(site.handle(body)) == "POLICY_REFUSED"
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
    ],
)
def test_training_beyond_the_study_is_refused(home: Home, options: dict[str, Any]) -> None:
    site = home.open(Forbidden())  # type: ignore[arg-type]
    assert refused(site.handle(home.ask("train", options=options).encode())) == "POLICY_REFUSED"


@pytest.mark.parametrize(
    "arrays",
    [
        {"generator.heads.weight": np.zeros((10, 3), dtype=np.float32)},
        {"generator.heads.bias": np.zeros(10)},
        {"generator.extra": np.zeros(1, dtype=np.float32)},
        {"targets.one_way": np.zeros((2, 9), dtype=np.float32)},
        {"targets.extra": np.zeros(1, dtype=np.float32)},
    ],
)
def test_arrays_that_do_not_fit_the_generator_are_refused(home: Home, arrays: dict[str, np.ndarray]) -> None:
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
    assert refused(home.open().handle(home.ask("pairs").encode())) is None
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
    assert refused(home.open(Forbidden()).handle(home.ask("pairs").encode())) == "POLICY_REFUSED"  # type: ignore[arg-type]
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


@pytest.mark.parametrize("fault", DIRTY)
def test_what_is_wrong_with_a_table_stays_at_the_site_and_its_text_reaches_not_even_the_log(
    fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    rows, reason = DIRTY[fault]
    study = {**STUDY, "unit": {**STUDY["unit"], "surplus": "refuse"}}
    header = "patient,colour,age,amount,ill" if rows else f"{PLANTED_TEXT},red,3,1.0,no"
    home = make_home(tmp_path / "north", [GOOD_ROW, *rows], header=header, study=study)
    site = home.open(Forbidden())  # type: ignore[arg-type]
    with caplog.at_level(logging.DEBUG):
        bodies = [site.handle(home.ask(kind).encode()) for kind in ("one_way", "pairs", "monitor", "one_way")]
    printed = capfd.readouterr()
    log = "\n".join(logging.Formatter().format(record) for record in caplog.records)
    assert [record.getMessage().startswith("site=north event=table_refused") for record in caplog.records] == [True] * 4
    assert log.count(reason) == 4
    # The coordinator learns that something went wrong, and the same whatever it was.
    assert bodies == [refusal("north", ExitCode.INTERNAL)] * 4
    for secret in (PLANTED_TEXT, PLANTED_NUMBER, "4711"):
        assert secret.encode() not in bodies[0]
        assert secret not in log
        assert secret not in printed.out + printed.err
    assert home.charged == []


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
    st.sampled_from(["describe", "one_way", "pairs", "monitor"]),
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


def neighbours() -> dict[str, list[Row]]:
    """Tables that differ from `ROWS` in one patient with all its records."""
    stranger: list[Row] = [
        ("q", "blue", "", "0.01", "yes"),
        ("q", "red", "99", "9.99", "no"),
        ("q", "", "3", "5.00", "yes"),
    ]
    return {
        "without the patient who owns most records": [row for row in ROWS if row[0] != "p0"],
        "without a patient in the middle": [row for row in ROWS if row[0] != "p17"],
        "without the last patient": [row for row in ROWS if row[0] != "p39"],
        "with one more patient in front": [*stranger, *ROWS],
        "with one more patient spread over the table": [ROWS[0], stranger[0], *ROWS[1:50], *stranger[1:], *ROWS[50:]],
    }


def sequence(home: Home) -> list[bytes]:
    """What a coordinator may ask in a run: measurements, repetitions, and what is refused for every reason."""
    requests = [
        home.ask("describe"),
        home.ask("one_way", options={"share": 0.35}),
        home.ask("describe", name="describe-2"),
        home.ask("pairs", options={"share": 0.6}),
        home.ask("pairs", options={"share": 0.6}),
        home.ask("pairs", options={"share": 0.05}),
        home.ask("pairs", name="pairs-2", options={"share": 0.5}),
        home.ask("pairs", name="pairs-3", arrays={"bins.0": np.array([0, 1, 1, 3])}),
        home.ask("train"),
        home.ask("monitor", options={"share": 0.5}),
        home.ask("monitor", name="monitor-2", arrays={"weights": np.ones(sum(SIZES) + BANDS - 1)}),
        home.ask("one_way", name="one_way-2", options={"share": 2}),
        home.ask("one_way", name="one_way-3", study="0f" * 32),
    ]
    return [*(request.encode() for request in requests), b"noise on the line"]


def play(home: Home, noise: NoiseSource, caplog: pytest.LogCaptureFixture) -> tuple[list[bytes], list[str]]:
    """The replies to the whole sequence, and what was logged meanwhile; the site restarts half-way."""
    caplog.clear()
    bodies = sequence(home)
    with caplog.at_level(logging.DEBUG):
        site = home.open(noise)
        replies = [site.handle(body) for body in bodies[:6]]
        site = home.open(noise)
        replies += [site.handle(body) for body in bodies[6:]]
    return replies, [f"{record.levelname} {record.getMessage()}" for record in caplog.records]


def check_record_play(
    folder: Path, caplog: pytest.LogCaptureFixture, mine: list[Row], other: list[Row], **how: Any
) -> None:
    """Play the sequence on one table, then on the other with the noise that gives the same outputs."""
    first = make_home(folder / "first" / "north", mine, **how)
    recorded, log = play(first, SeededNoise(b"seed"), caplog)
    places = {"one_way": 1, "pairs": 3, "monitor": 9, "monitor-2": 10}
    outputs = {f"run-1/{name}": Reply.decode(recorded[place]).arrays["counts"] for name, place in places.items()}
    second = make_home(folder / "second" / "north", other, **how)
    replay = Replay(outputs)
    replayed, other_log = play(second, replay, caplog)  # type: ignore[arg-type]
    assert replay.drawn == list(outputs)
    assert replayed == recorded
    assert second.ledger.read_bytes() == first.ledger.read_bytes()
    assert second.sealed == first.sealed
    assert other_log == log
    # The test has power: the numbers below the noise do differ.
    third = make_home(folder / "third" / "north", other, **how)
    plain, _ = play(third, SeededNoise(b"seed"), caplog)
    assert plain != recorded
    assert [len(body) for body in plain] == [len(body) for body in recorded]


@pytest.mark.parametrize("neighbour", neighbours())
def test_everything_but_the_released_numbers_is_the_same_with_one_unit_more_or_less(
    neighbour: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_record_play(tmp_path, caplog, ROWS, neighbours()[neighbour])


def test_everything_but_the_released_numbers_is_the_same_where_each_record_is_a_unit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [row[1:] for row in ROWS]
    study = {**STUDY, "unit": {"name": "visit"}}
    check_record_play(tmp_path, caplog, rows, rows[:20] + rows[21:], header="colour,age,amount,ill", study=study)


def test_everything_but_the_released_numbers_is_the_same_when_the_last_unit_of_an_account_goes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pair = pd.DataFrame({"patient": ["p0", "p3"]})
    split = bound_units(pair, key="patient", max_records=2, drop_surplus=True, holdout=0.3, secret=KEY)
    assert split.holdout.tolist() == [False, True]
    rows = [row for row in ROWS if row[0] in ("p0", "p3")]
    for leaver in ("p0", "p3"):
        check_record_play(tmp_path / leaver, caplog, rows, [row for row in rows if row[0] != leaver])


def test_the_sequence_meets_every_kind_of_answer(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    replies, log = play(home, SeededNoise(b"seed"), caplog)
    assert [refused(body) for body in replies] == [
        *[None] * 5,
        "POLICY_REFUSED",
        "BUDGET_REFUSED",
        "POLICY_REFUSED",
        *[None] * 3,
        "POLICY_REFUSED",
        "POLICY_REFUSED",
        "PROTOCOL",
    ]
    assert replies[3] == replies[4]
    assert len(log) == 6
    assert hashlib.sha256(sequence(home)[3]).hexdigest() in home.ledger.read_text()
