"""A site: what it answers, what it refuses, and that its answers hold nothing of a row but what was released."""

import hashlib
import itertools
import logging
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from client.replies import Replies
from client.site import open_site
from common.data.encoding import make_grids
from common.data.histograms import histogram_layout
from common.data.queries import Family, catalogue, layout_of
from common.data.tables import sizes_of
from common.data.units import WINDOW_WEIGHT, bound_units
from common.errors import ExitCode, LedgerError, PolicyError
from common.models.embedding import FEATURES, SCALE
from common.models.neural import GRADIENT_SCALE
from common.privacy.budget import mu_of
from common.privacy.events import GaussianEvent
from common.privacy.ledger import read_ledger
from common.privacy.mechanism import MAXIMUM_EMPHASIS
from common.privacy.noise import GaussianNoise, SeededNoise
from common.privacy.spending import Spending
from common.privacy.witness import Statement
from common.wire.messages import KEPT, Reply, refusal
from common.wire.packing import CRITIC, GENERATOR, critic_shape_of, pack_targets, shape_of, unpack
from tests.client.homes import (
    HEADER,
    HELD_OUT,
    IDENTITY,
    KEY,
    MEASUREMENTS,
    ROWS,
    SINGLE,
    SIZES,
    STUDY,
    WINDOWED,
    Forbidden,
    Home,
    Row,
    below_noise,
    forbidden,
    layouts,
    local,
    make_either,
    make_home,
    make_series,
    refused,
)


def test_describe_tells_the_budget_the_key_and_the_ledgers_head_and_spends_nothing(home: Home) -> None:
    site = home.open(forbidden())
    reply = Reply.decode(site.handle(home.ask("describe").encode()))
    assert reply.refused is None
    assert set(reply.facts) == {"bound", "key", "nonce", "witnesses", "ledger_head", "spending"}
    assert reply.facts["bound"] == pytest.approx(mu_of(epsilon=1, delta=1e-5) ** 2, rel=1e-9)
    assert reply.facts["bound"] < mu_of(epsilon=1, delta=1e-5) ** 2
    assert reply.facts["key"] == IDENTITY.public
    stated = Statement.from_dict(reply.facts["ledger_head"])
    head = read_ledger(home.ledger).head
    assert stated.is_by(IDENTITY.public)
    assert (stated.site, stated.ledger, stated.sequence, stated.hash) == ("north", head.ledger, 1, head.hash)
    spending = Spending.from_dict(reply.facts["spending"])
    assert spending.is_by(IDENTITY.public)
    assert (spending.site, spending.study, spending.head) == ("north", site.study, head)
    assert (spending.bound, spending.events) == (reply.facts["bound"], ())
    assert dict(reply.arrays) == {}
    assert home.charged == []


def test_a_site_opened_by_its_file_draws_real_noise(home: Home) -> None:
    bodies = [
        open_site(one.folder / "site.yaml").handle(one.ask("one_way").encode())
        for one in (home, make_home(home.folder.parent / "again"))
    ]
    first, second = map(Reply.decode, bodies)
    assert first.facts["event"] == second.facts["event"] == {**first.facts["event"], "noise": "csprng"}
    assert (first.arrays["counts"] != second.arrays["counts"]).mean() > 0.5


@pytest.mark.parametrize("kind", ["one_way", "tables", "monitor", "verdict"])
def test_a_measurement_is_charged_as_it_is_stated_and_sized_by_the_schema(either: Home, kind: str) -> None:
    home = either
    site = home.open()
    reply = Reply.decode(site.handle(home.ask(kind).encode()))
    assert reply.refused is None
    layout = layouts(home)[kind]
    cells, tables = layout.n_cells, layout.n_tables
    assert set(reply.facts) == {"event", "ledger_head", "spending"}
    assert set(reply.arrays) == {"counts"}
    assert reply.arrays["counts"].shape == (cells,)
    assert reply.arrays["counts"].dtype == np.int64
    (charge,) = home.charges
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
    assert set(reply.facts) == {"event", "ledger_head", "spending"}
    assert set(reply.arrays) == {"counts"}
    assert reply.arrays["counts"].shape == (cells,)
    assert reply.arrays["counts"].dtype == np.int64
    (charge,) = home.charges
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
    (charge,) = home.charges
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
    assert charge.event.noise_stddev > 2 * home.charges[1].event.noise_stddev


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
    assert home.charges[1].event.squared_sensitivity * home.tables == (
        home.charges[0].event.squared_sensitivity * len(some)
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


@pytest.mark.parametrize("judged", [False, True])
def test_training_returns_another_generator_and_spends_nothing(either: Home, judged: bool) -> None:
    home = either
    site = home.open(forbidden())
    (home.folder / "table.csv").unlink()  # not a row is needed
    heads = 1 if home.study.windows is None else 2
    critic = {key: array for key, array in home.ask("critic").arrays.items() if key.startswith(CRITIC)}
    changes: dict[str, Any] = (
        {"options": {"weights": [1.0] * heads, "passing": [0.8] * heads, "passed": [0.3] * heads}, "arrays": critic}
        if judged
        else {}
    )
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
    assert home.open(forbidden()).handle(asked) == first
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
    assert refused(home.open(forbidden()).handle(asked)) == "LEDGER_INVALID"
    assert home.ledger.read_bytes() == before
    assert home.sealed == {}


def test_a_reply_is_sealed_before_it_is_returned(home: Home) -> None:
    body = home.open().handle(home.ask("one_way").encode())
    book = read_ledger(home.ledger)
    assert book.seals[home.study.digest()] == {"run-1/one_way": hashlib.sha256(body).hexdigest()}
    stated = Reply.decode(body).facts["ledger_head"]
    # The charge itself; the seal, which names the reply, can only follow.
    assert (stated["sequence"], stated["hash"]) == (2, book.hashes[2])
    assert book.head.sequence == 3


def test_a_reply_whose_seal_fell_to_a_crash_is_given_out_and_sealed_then(home: Home) -> None:
    asked = home.ask("one_way").encode()
    body = home.open().handle(asked)
    *lines, seal = home.ledger.read_bytes().splitlines(keepends=True)
    home.ledger.write_bytes(b"".join(lines))
    assert home.open(forbidden()).handle(asked) == body
    assert home.ledger.read_bytes() == b"".join(lines) + seal
    assert home.open(forbidden()).handle(asked) == body
    assert home.ledger.read_bytes() == b"".join(lines) + seal


def test_a_reply_that_is_not_the_one_that_was_sealed_is_not_given_out(home: Home) -> None:
    asked = home.ask("one_way").encode()
    body = home.open().handle(asked)
    (path,) = (home.folder / "state" / "replies").iterdir()
    path.write_bytes(body[:-1] + bytes([body[-1] ^ 1]))
    assert refused(home.open(forbidden()).handle(asked)) == "LEDGER_INVALID"
    path.write_bytes(body)
    assert home.open(forbidden()).handle(asked) == body


@pytest.mark.parametrize("kept", [4, 2, 0], ids=["the last charge is gone", "both are", "all of it is"])
def test_a_site_with_a_reply_that_its_ledger_does_not_know_does_not_open(home: Home, kept: int) -> None:
    site = home.open()
    for kind in ("one_way", "monitor"):
        assert refused(site.handle(home.ask(kind).encode())) is None
    whole = home.ledger.read_bytes()
    # Opening, study, and a charge and a seal for each.
    lines = whole.splitlines(keepends=True)
    assert len(lines) == 6
    home.ledger.write_bytes(b"".join(lines[:kept]))
    with pytest.raises(LedgerError, match="a reply that the ledger does not know"):
        home.open(forbidden())
    home.ledger.write_bytes(whole)
    # What a crash left of a reply that was never whole says nothing.
    (home.folder / "state" / "replies" / "0.part").write_bytes(b"")
    assert home.open(forbidden())


def test_two_studies_of_one_asset_may_use_the_same_names(tmp_path: Path) -> None:
    folder = tmp_path / "north"
    first = make_home(folder)
    asked = [first.ask("one_way").encode()]
    bodies = [first.open().handle(asked[0])]
    second = make_home(folder, study={**STUDY, "purpose": "another one"})
    asked.append(second.ask("one_way").encode())
    bodies.append(second.open(SeededNoise(b"other")).handle(asked[1]))
    assert [refused(body) for body in bodies] == [None, None]
    assert second.open(forbidden()).handle(asked[1]) == bodies[1] != bodies[0]
    assert make_home(folder).open(forbidden()).handle(asked[0]) == bodies[0]
    book = read_ledger(first.ledger)
    assert {study: list(charges) for study, charges in book.charges.items()} == {
        home.study.digest(): ["run-1/one_way"] for home in (first, second)
    }


class Crash(Forbidden):
    """Ends what is going on when noise is to be drawn."""

    def draw(self, size: int, *, noise_stddev: float, context: str) -> np.ndarray:
        raise KeyboardInterrupt


def crash(home: Home, asked: bytes) -> None:
    """Charge a request, and get no further."""
    with pytest.raises(KeyboardInterrupt):
        home.open(Crash()).handle(asked)  # type: ignore[arg-type]
    assert home.charged == ["run-1/one_way"]
    assert home.sealed == {}


def test_a_crash_before_the_reply_was_sealed_leaves_the_spend_standing_and_lets_nothing_out(home: Home) -> None:
    crash(home, home.ask("one_way").encode())
    # The site says that it was spent, although nobody has got anything for it.
    said = Spending.from_dict(Reply.decode(home.open().handle(home.ask("describe").encode())).facts["spending"])
    (charges,) = read_ledger(home.ledger).charges.values()
    assert said.events == tuple(charge.event for charge in charges.values()) != ()


def test_a_request_that_a_crash_left_without_a_reply_is_answered_for_what_it_was_charged(home: Home) -> None:
    asked = home.ask("one_way").encode()
    crash(home, asked)
    before = home.ledger.read_bytes()
    body = home.open().handle(asked)
    assert refused(body) is None
    assert home.charged == ["run-1/one_way"]
    # A seal and nothing else was written, and from there on it is an answer like any other.
    assert home.ledger.read_bytes().removeprefix(before).count(b"\n") == 1
    assert list(home.sealed.values()) == [body]
    assert home.open(forbidden()).handle(asked) == body


def test_a_second_crash_changes_nothing(home: Home) -> None:
    asked = home.ask("one_way").encode()
    crash(home, asked)
    crash(home, asked)
    assert refused(home.open().handle(asked)) is None
    assert home.charged == ["run-1/one_way"]


def test_after_a_crash_another_request_under_the_name_is_refused_as_ever(home: Home) -> None:
    crash(home, home.ask("one_way").encode())
    other = home.ask("one_way", options={"share": 0.26}).encode()
    assert refused(home.open(forbidden()).handle(other)) == "POLICY_REFUSED"


def test_a_copy_of_the_folder_answers_nothing_that_was_charged_where_it_was_copied_from(home: Home) -> None:
    asked = home.ask("one_way").encode()
    crash(home, asked)
    state = home.folder / "state"
    state.rename(home.folder / "original")
    shutil.copytree(home.folder / "original", state)
    assert refused(home.open(forbidden()).handle(asked)) == "LEDGER_INVALID"
    shutil.rmtree(state)
    (home.folder / "original").rename(state)
    assert refused(home.open().handle(asked)) is None


def test_a_copy_that_is_put_back_in_its_place_answers_nothing_that_was_charged(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A backup of the middle of the answer, restored into the folder, on a disk where a new file gets the inode of one
    # that is gone.
    monkeypatch.setattr("common.files.place_of", lambda _: [1, 1])
    asked = home.ask("one_way").encode()
    crash(home, asked)
    shutil.copytree(home.folder, tmp_path / "backup")
    assert refused(home.open().handle(asked)) is None
    for path in home.folder.rglob("*"):
        if path.is_file():
            path.unlink()
    shutil.copytree(tmp_path / "backup", home.folder, dirs_exist_ok=True)
    assert refused(home.open(forbidden()).handle(asked)) == "LEDGER_INVALID"


def test_a_fault_that_may_hang_on_the_noise_is_not_tried_again_with_another_draw(home: Home) -> None:
    class Odd(GaussianNoise):
        def draw(self, size: int, *, noise_stddev: float, context: str) -> np.ndarray:
            super().draw(size, noise_stddev=noise_stddev, context=context)
            raise ValueError("not a number")

    asked = home.ask("one_way").encode()
    assert refused(home.open(Odd()).handle(asked)) == "INTERNAL"
    assert home.charged == ["run-1/one_way"]
    assert list((home.folder / "state" / "begun").iterdir()) == []
    assert refused(home.open(forbidden()).handle(asked)) == "LEDGER_INVALID"


def test_what_was_answered_is_not_answered_anew_where_its_reply_and_its_seal_are_gone(home: Home) -> None:
    asked = home.ask("one_way").encode()
    home.open().handle(asked)
    home.ledger.write_bytes(b"".join(home.ledger.read_bytes().splitlines(keepends=True)[:-1]))
    shutil.rmtree(home.folder / "state" / "replies")
    assert refused(home.open(forbidden()).handle(asked)) == "LEDGER_INVALID"


def test_a_request_beyond_the_budget_leaves_nothing_to_be_answered(home: Home) -> None:
    site = home.open()
    assert refused(site.handle(home.ask("one_way", options={"share": 1}).encode())) is None
    assert refused(site.handle(home.ask("tables").encode())) == "BUDGET_REFUSED"
    assert list((home.folder / "state" / "begun").iterdir()) == []


def test_a_site_that_cannot_write_down_what_it_answers_spends_nothing(home: Home) -> None:
    home.open()
    (home.folder / "state" / "begun").write_bytes(b"")
    assert refused(home.open(forbidden()).handle(home.ask("one_way").encode())) == "LEDGER_INVALID"
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
    assert sum(charge.event.spend for charge in home.charges) < mu_of(epsilon=1, delta=1e-5) ** 2


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
    assert refused(home.open(forbidden()).handle(home.ask("one_way").encode())) == "POLICY_REFUSED"
    assert home.charged == []


@pytest.mark.parametrize("key", [b"", b"short", bytes(33)])
def test_a_key_of_another_length_is_refused_and_spends_nothing(tmp_path: Path, key: bytes) -> None:
    home = make_home(tmp_path / "north", key=key)
    assert refused(home.open(forbidden()).handle(home.ask("one_way").encode())) == "POLICY_REFUSED"
    assert home.charged == []


def test_a_key_that_was_lost_after_a_charge_is_not_replaced(home: Home) -> None:
    # Another key holds out other units: a unit could pay from both budgets.
    assert refused(home.open().handle(home.ask("one_way").encode())) is None
    home.key.unlink()
    assert refused(home.open(forbidden()).handle(home.ask("tables").encode())) == "POLICY_REFUSED"
    assert not home.key.exists()
    assert home.charged == ["run-1/one_way"]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o601])
def test_a_signing_key_that_others_can_reach_keeps_a_site_closed(home: Home, mode: int) -> None:
    (home.folder / "state" / "identity.pem").chmod(mode)
    with pytest.raises(PolicyError, match="others can read the site's signing key"):
        home.open()
    assert not home.ledger.exists()


def pem_of(how: str) -> bytes:
    """A private key that is not what a site signs with."""
    key = rsa.generate_private_key(65537, 2048) if how == "rsa" else load_pem_private_key(IDENTITY.as_pem(), None)
    locked = BestAvailableEncryption(b"word") if how == "locked" else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked)


@pytest.mark.parametrize("fault", ["absent", "a folder", "empty", "text", "cut short", "rsa", "locked"])
def test_a_site_without_its_signing_key_stays_closed_and_says_nothing_of_the_key(home: Home, fault: str) -> None:
    path = home.folder / "state" / "identity.pem"
    whole = path.read_bytes()
    path.unlink()
    found = {"empty": b"", "text": b"key", "cut short": whole[:-40]}
    if fault == "a folder":
        path.mkdir(mode=0o700)
    elif fault != "absent":
        path.touch(mode=0o600)
        path.write_bytes(found[fault] if fault in found else pem_of(fault))
    with pytest.raises(PolicyError, match=r"signing key|not an Ed25519 private key") as fault_:
        home.open()
    assert "PRIVATE KEY-" not in str(fault_.value)
    assert whole.splitlines()[1].decode() not in str(fault_.value)
    assert not home.ledger.exists()


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
    "a row where the header should be": ([], "table.csv: patient: the column is in the study but not in the table"),
}


def check_dirty(home: Home, reason: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever is asked is refused alike and unspent, and nothing that was planted is told or logged."""
    site = home.open(forbidden())
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
    "a unit key that is missing": (
        [("", "0", PLANTED_NUMBER, "a")],
        "patient: the unit key is missing in a row of the long table",
        {},
    ),
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


@pytest.mark.parametrize("missing", ["absent", "empty"])
def test_a_long_table_that_is_not_there_is_refused_like_any_other(
    missing: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    home = make_home(tmp_path / "north", [GOOD_ROW], series=[], study=WINDOWED)
    path = home.folder / "series.csv"
    if missing == "absent":
        path.unlink()
    else:
        path.write_text("")
    check_dirty(home, {"absent": "no such table", "empty": "the table is empty"}[missing], caplog, capfd)


@pytest.mark.parametrize("study", [STUDY, WINDOWED, {**STUDY, "table": {"header": HEADER.split(",")}}])
def test_a_site_without_a_row_answers_like_any_other(tmp_path: Path, study: dict[str, Any]) -> None:
    # Otherwise a refusal would tell that the last patient has gone.
    home = make_home(tmp_path / "north", [], header=None if "table" in study else HEADER, study=study)
    site = home.open()
    for kind in ("describe", *MEASUREMENTS):
        reply = Reply.decode(site.handle(home.ask(kind).encode()))
        assert reply.refused is None
        assert kind == "describe" or not below_noise(reply, f"run-1/{kind}").any()


@pytest.mark.parametrize("kept", [("", "a"), ("80", "a")], ids=["a channel without a value", "a last step of nobody"])
def test_a_site_answers_although_a_part_of_its_windows_is_nobodys(tmp_path: Path, kept: tuple[str, str]) -> None:
    # A refusal would tell whether the one unit that fills it is there.
    home = make_home(tmp_path, SINGLE, study=WINDOWED, series=[(row[0], "0", *kept) for row in SINGLE])
    for kind in ("describe", "one_way"):
        assert Reply.decode(home.open().handle(home.ask(kind).encode())).refused is None


def test_a_site_that_lost_its_table_or_its_ledger_refuses(home: Home) -> None:
    site = home.open(forbidden())
    table = (home.folder / "table.csv").read_bytes()
    (home.folder / "table.csv").unlink()
    # At the roll call already: no other site spends for a round that cannot be.
    for kind in ("describe", "one_way"):
        assert refused(site.handle(home.ask(kind).encode())) == "INTERNAL"
    (home.folder / "table.csv").write_bytes(table)
    home.ledger.write_bytes(home.ledger.read_bytes().replace(b"north", b"south"))
    for kind in ("describe", "one_way"):
        assert refused(site.handle(home.ask(kind).encode())) == "LEDGER_INVALID"


# --- releases that stay at the site

LOCAL, LOCAL_WINDOWED = local(STUDY), local(WINDOWED)


def make_local(folder: Path, rows: list[Row] = ROWS, **changes: Any) -> Home:
    return make_home(folder, rows, study={**LOCAL, **changes})


@pytest.mark.parametrize("kind", MEASUREMENTS)
def test_a_kept_release_is_charged_like_any_other_and_does_not_travel(tmp_path: Path, kind: str) -> None:
    home = make_local(tmp_path / "north")
    asked = home.ask(kind).encode()
    site = home.open()
    if kind in ("critic", "verdict"):  # of how many units, they learn from what was counted before
        assert refused(site.handle(home.ask("one_way", name="before").encode())) is None
    body = site.handle(asked)
    reply = Reply.decode(body)
    assert reply.refused is None
    charge = home.charges[-1]
    assert charge.event == GaussianEvent.from_dict(reply.facts["event"])
    assert set(reply.facts) == {"event", "ledger_head", "spending"}
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
    assert home.open(forbidden()).handle(asked) == body
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
    return Reply.decode(home.open(forbidden()).handle(home.ask("train", **changes).encode()))


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


def test_a_release_that_a_crash_left_unsealed_does_not_count_until_it_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = make_local(tmp_path / "north")
    before = trained_at(home, release=["one_way"])
    with monkeypatch.context() as patch:
        patch.setattr(Replies, "write", lambda *_: int("no reply"))
        assert refused(home.open().handle(home.ask("tables").encode())) == "INTERNAL"
    assert home.charged == ["run-1/one_way", "run-1/tables"]
    # It is on disk, and another draw will take its place: what leaves meanwhile may not hang on it.
    assert len(list((home.folder / "state" / "releases").glob("*.request"))) == 2
    meanwhile = trained_at(home, release=[])
    assert all(np.array_equal(before.arrays[name], array) for name, array in meanwhile.arrays.items())
    first = home.kept
    assert refused(home.open(SeededNoise(b"other")).handle(home.ask("tables").encode())) is None
    assert len(list((home.folder / "state" / "releases").glob("*.request"))) == 2
    assert not np.array_equal(first["run-1/tables"], home.kept["run-1/tables"])
    after = trained_at(home, release=[])
    assert any(not np.array_equal(before.arrays[name], array) for name, array in after.arrays.items())


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


def test_releases_of_another_study_do_not_count(tmp_path: Path) -> None:
    # A run of another study may have the same name: its releases are over other bins.
    other = make_home(tmp_path / "north", study={**LOCAL, "purpose": "another one"})
    assert trained_at(other).refused is None
    assert trained_at(make_local(tmp_path / "north"), release=()).refused == "POLICY_REFUSED"


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
