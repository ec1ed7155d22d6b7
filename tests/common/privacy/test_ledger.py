"""The ledger: on disk before any noise, refused without a trace, and never read when it was tampered with."""

import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from fractions import Fraction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import BudgetError, LedgerError
from common.privacy import ledger as ledger_module
from common.privacy.events import GaussianEvent
from common.privacy.ledger import Charge, Ledger, canonical, read_charges
from common.privacy.mechanism import Contributions, CountMechanism

SITE, STUDY, BUDGET = "north", "0f" * 32, 0.0625

# Written by the first version of the ledger. It must read the same for ever.
GOLDEN = (
    b'{"hash":"7fc51751f7ab2286deea853f5915c60450426b9aa116f15854c6b2b356d13e06","previous":"00000000000000000000000000000'
    b'00000000000000000000000000000000000","schema":"privshare.ledger/1","sequence":0,"site":"north","squared_mu":0.0625,"'
    b'study":"0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f","type":"open"}\n'
    b'{"event":{"account":"train","cells":96,"noise":"csprng","noise_stddev":34.64101615137755,"scale":2,"squared_sensitiv'
    b'ity":12,"type":"gaussian"},"hash":"118e134d7b9c83fa8a1b6b12bf474da4343a63ce64592cb20f67338dc351e0d0","previous":"7fc'
    b'51751f7ab2286deea853f5915c60450426b9aa116f15854c6b2b356d13e06","request":"run-1/one_way","request_digest":"ababababa'
    b'bababababababababababababababababababababababababababab","sequence":1,"type":"charge"}\n'
    b'{"event":{"account":"holdout","cells":40,"noise":"csprng","noise_stddev":8.125,"scale":2,"squared_sensitivity":4,"ty'
    b'pe":"gaussian"},"hash":"b5dc2f7051a424ea178a650e450358843c8a988943663fd763fe8a95d666bee4","previous":"118e134d7b9c83'
    b'fa8a1b6b12bf474da4343a63ce64592cb20f67338dc351e0d0","request":"run-1/monitor","request_digest":"cdcdcdcdcdcdcdcdcdcd'
    b'cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd","sequence":2,"type":"charge"}\n'
)
GOLDEN_CHARGES = [
    Charge(
        "run-1/one_way",
        "ab" * 32,
        GaussianEvent(
            account="train",
            squared_sensitivity=12,
            noise_stddev=34.64101615137755,
            cells=96,
            scale=2,
            noise="csprng",
        ),
    ),
    Charge(
        "run-1/monitor",
        "cd" * 32,
        GaussianEvent(account="holdout", squared_sensitivity=4, noise_stddev=8.125, cells=40, scale=2, noise="csprng"),
    ),
]


def make_ledger(path: Path, **changes: Any) -> Ledger:
    return Ledger(path, **{"site": SITE, "study": STUDY, "squared_mu": BUDGET, **changes})


def make_charge(request: str, *, share: float, account: str = "train") -> Charge:
    """A charge for a share of the budget; sensitivity 1, so that the spend is 1 / stddev^2."""
    mechanism = CountMechanism(np.array([0, 4]), unit_weight=1)
    event = mechanism.plan(spend=share * BUDGET, account=account, noise=NoNoise())  # type: ignore[arg-type]
    return Charge(request, "ab" * 32, event)


class NoNoise:
    """A source that notes what is asked of it and returns zeros."""

    kind = "test-seed"

    def __init__(self, journal: list[str] | None = None) -> None:
        self.journal = journal if journal is not None else []

    def draw(self, size: int, *, noise_stddev: float, context: str) -> np.ndarray:
        self.journal.append("draw")
        return np.zeros(size, dtype=np.int64)


def release(ledger: Ledger, noise: NoNoise, *, request: str = "run/one_way", share: float = 0.5) -> np.ndarray:
    """One release of nobody's counts."""
    mechanism = CountMechanism(np.array([0, 4]), unit_weight=1)
    event = mechanism.plan(spend=share * BUDGET, account="train", noise=noise)  # type: ignore[arg-type]
    nobody = Contributions(np.zeros(0, np.int64), np.zeros((0, 1), np.int64), np.zeros(0, np.int64))
    return mechanism.release(
        [nobody],
        event=event,
        request=request,
        request_digest="ab" * 32,
        ledger=ledger,
        noise=noise,  # type: ignore[arg-type]
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "north.jsonl"


@pytest.fixture
def golden(path: Path) -> Path:
    path.write_bytes(GOLDEN)
    return path


def test_a_charge_is_synced_to_disk_before_noise_is_drawn(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal: list[str] = []
    ledger = make_ledger(path)
    sync = os.fsync

    def spy(descriptor: int) -> None:
        assert os.fstat(descriptor).st_ino == path.stat().st_ino
        # What is synced is what another reader sees: nothing is left in a buffer.
        journal.append(f"sync {[charge.request for charge in read_charges(path)]}")
        sync(descriptor)

    monkeypatch.setattr(ledger_module.os, "fsync", spy)
    release(ledger, NoNoise(journal))
    assert journal == ["sync ['run/one_way']", "draw"]


def test_a_new_ledger_syncs_its_opening_and_its_folder(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(ledger_module.os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    make_ledger(path)
    assert synced == [path.stat().st_ino, path.parent.stat().st_ino]


def test_a_disk_that_cannot_sync_lets_no_noise_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise, ledger = NoNoise(), make_ledger(path)

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(ledger_module.os, "fsync", fail)
    with pytest.raises(LedgerError, match="cannot be written"):
        release(ledger, noise)
    assert noise.journal == []


def test_a_crash_between_charge_and_draw_leaves_the_spend_standing(path: Path) -> None:
    class Crash(NoNoise):
        def draw(self, size: int, *, noise_stddev: float, context: str) -> np.ndarray:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        release(make_ledger(path), Crash())
    assert [charge.request for charge in make_ledger(path).charges()] == ["run/one_way"]


def test_a_refused_spend_writes_nothing(path: Path) -> None:
    ledger = make_ledger(path)
    ledger.authorise(make_charge("run/one", share=0.6))
    before = path.read_bytes()
    with pytest.raises(BudgetError):
        ledger.authorise(make_charge("run/two", share=0.5))
    assert path.read_bytes() == before
    ledger.authorise(make_charge("run/three", share=0.4))


def test_a_repeated_request_is_refused_and_writes_nothing(path: Path) -> None:
    ledger = make_ledger(path)
    ledger.authorise(make_charge("run/one", share=0.1))
    before = path.read_bytes()
    for account in ("train", "holdout"):
        with pytest.raises(LedgerError, match="charged before"):
            ledger.authorise(make_charge("run/one", share=0.2, account=account))
    assert path.read_bytes() == before


def test_each_account_has_the_whole_budget(path: Path) -> None:
    ledger = make_ledger(path)
    ledger.authorise(make_charge("run/one", share=1.0, account="train"))
    ledger.authorise(make_charge("run/two", share=1.0, account="holdout"))
    for account in ("train", "holdout"):
        with pytest.raises(BudgetError):
            ledger.authorise(make_charge(f"run/{account}", share=0.001, account=account))


def test_the_budget_is_still_spent_after_a_restart(path: Path) -> None:
    make_ledger(path).authorise(make_charge("run/one", share=0.9))
    with pytest.raises(BudgetError):
        make_ledger(path).authorise(make_charge("run/two", share=0.2))


def test_a_charge_moves_the_head_and_a_refusal_does_not(path: Path) -> None:
    ledger = make_ledger(path)
    heads = [ledger.head()]
    ledger.authorise(make_charge("run/one", share=0.9))
    heads.append(ledger.head())
    assert len(set(heads)) == 2
    with pytest.raises(BudgetError):
        ledger.authorise(make_charge("run/two", share=0.9))
    assert ledger.head() == heads[1] == make_ledger(path).head()


def test_a_last_line_that_a_crash_cut_short_is_dropped(golden: Path) -> None:
    whole = GOLDEN[: GOLDEN.rindex(b"\n", 0, -1) + 1]
    for end in range(len(whole), len(GOLDEN)):
        golden.write_bytes(GOLDEN[:end])
        assert read_charges(golden) == GOLDEN_CHARGES[:1]
    assert make_ledger(golden).charges() == GOLDEN_CHARGES[:1]
    # What comes next is written behind the last whole line, not behind the torn one.
    make_ledger(golden).authorise(make_charge("run-2/one_way", share=0.5, account="holdout"))
    assert golden.read_bytes().startswith(whole)
    assert [charge.request for charge in read_charges(golden)] == ["run-1/one_way", "run-2/one_way"]


def test_an_opening_that_a_crash_cut_short_is_written_anew(path: Path) -> None:
    path.write_bytes(GOLDEN[:40])
    make_ledger(path)
    assert path.read_bytes() == GOLDEN[: GOLDEN.index(b"\n") + 1]


def is_refused(path: Path) -> bool:
    try:
        read_charges(path)
    except LedgerError:
        return True
    return False


def test_any_changed_byte_is_refused(golden: Path) -> None:
    # All but the very last line end, without which the last line is a torn one. "e" makes some numbers infinite, and a
    # carriage return is a line end to some readers.
    for position in range(len(GOLDEN) - 1):
        for other in {GOLDEN[position] ^ 1, ord("e"), ord("\r")} - {GOLDEN[position]}:
            golden.write_bytes(GOLDEN[:position] + bytes([other]) + GOLDEN[position + 1 :])
            assert is_refused(golden), position
    with pytest.raises(LedgerError):
        make_ledger(golden)


@pytest.mark.parametrize("order", [[0, 2], [1, 2], [0, 2, 1], [1, 0, 2], [0, 1, 1, 2], [0, 0, 1, 2], [0, 1, 2, 2], [2]])
def test_a_line_removed_swapped_or_doubled_is_refused(golden: Path, order: list[int]) -> None:
    lines = GOLDEN.splitlines(keepends=True)
    golden.write_bytes(b"".join(lines[number] for number in order))
    with pytest.raises(LedgerError):
        make_ledger(golden)
    with pytest.raises(LedgerError):
        read_charges(golden)


def test_damage_during_use_is_refused_too(golden: Path) -> None:
    ledger = make_ledger(golden)
    golden.write_bytes(GOLDEN.replace(b"34.64101615137755", b"94.64101615137755"))
    for use in (ledger.head, ledger.charges, lambda: ledger.authorise(make_charge("run-2/one_way", share=0.1))):
        with pytest.raises(LedgerError):
            use()


@pytest.mark.parametrize(
    "change", [{"site": "south"}, {"study": "1f" * 32}, {"squared_mu": 0.125}, {"squared_mu": BUDGET * (1 + 1e-15)}]
)
def test_another_sites_studys_or_budgets_ledger_is_refused(golden: Path, change: dict[str, Any]) -> None:
    with pytest.raises(LedgerError, match="belongs to another"):
        make_ledger(golden, **change)
    assert golden.read_bytes() == GOLDEN


def forge(*bodies: dict[str, Any]) -> bytes:
    """Further entries after the golden ones, their hashes right: anyone can make these."""
    lines, previous = GOLDEN.splitlines(keepends=True), GOLDEN_HEAD
    for body in bodies:
        entry = {**body, "sequence": len(lines), "previous": previous}
        previous = hashlib.sha256(canonical(entry)).hexdigest()
        lines.append(canonical({**entry, "hash": previous}) + b"\n")
    return b"".join(lines)


GOLDEN_HEAD = "b5dc2f7051a424ea178a650e450358843c8a988943663fd763fe8a95d666bee4"
GOOD_ENTRY = {
    "type": "charge",
    "request": "run-2/one_way",
    "request_digest": "ab" * 32,
    "event": GOLDEN_CHARGES[0].event.as_dict(),
}


def test_a_rewritten_line_with_its_hash_right_breaks_the_chain_behind_it(golden: Path) -> None:
    lines = GOLDEN.splitlines(keepends=True)
    body = json.loads(lines[1])
    del body["hash"]
    body["event"]["noise_stddev"] = 900.0
    lines[1] = canonical({**body, "hash": hashlib.sha256(canonical(body)).hexdigest()}) + b"\n"
    golden.write_bytes(b"".join(lines))
    assert is_refused(golden)
    # Alone it cannot be told from a true one: whoever owns the host can do this.
    golden.write_bytes(b"".join(lines[:2]))
    assert not is_refused(golden)


def test_an_entry_of_a_kind_that_is_not_known_is_not_skipped(golden: Path) -> None:
    golden.write_bytes(forge(GOOD_ENTRY))
    assert len(read_charges(golden)) == 3
    event: dict[str, Any] = GOOD_ENTRY["event"]  # type: ignore[assignment]
    strange: list[dict[str, Any]] = [
        {**GOOD_ENTRY, "type": "refund"},
        {**GOOD_ENTRY, "type": "open"},
        {key: value for key, value in GOOD_ENTRY.items() if key != "type"},
        {key: value for key, value in GOOD_ENTRY.items() if key != "event"},
        {**GOOD_ENTRY, "event": None},
        {**GOOD_ENTRY, "event": {**event, "type": "laplace"}},
    ]
    for entry in strange:
        golden.write_bytes(forge(entry))
        with pytest.raises(LedgerError):
            make_ledger(golden).authorise(make_charge("run-3/one_way", share=0.1))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("account", "both"),
        ("squared_sensitivity", 0),
        ("squared_sensitivity", -4),
        ("squared_sensitivity", 1.5),
        ("noise_stddev", 0.0),
        ("noise_stddev", -1.0),
        ("noise_stddev", "4"),
        ("noise_stddev", float("nan")),
        ("noise_stddev", float("inf")),
        ("cells", 0),
        ("cells", "96"),
        ("scale", 0),
        ("scale", None),
        ("noise", "numpy"),
        ("type", "laplace"),
    ],
)
def test_an_event_with_a_field_out_of_range_is_refused(field: str, value: Any) -> None:
    good = GOLDEN_CHARGES[0].event
    assert GaussianEvent.from_dict(good.as_dict()) == good
    with pytest.raises(LedgerError):
        GaussianEvent.from_dict({**good.as_dict(), field: value})


def test_an_event_with_a_field_too_few_or_too_many_is_refused() -> None:
    good = GOLDEN_CHARGES[0].event.as_dict()
    for name in good:
        with pytest.raises(LedgerError):
            GaussianEvent.from_dict({key: value for key, value in good.items() if key != name})
    with pytest.raises(LedgerError):
        GaussianEvent.from_dict({**good, "refund": 1})


def test_an_old_ledger_reads_and_is_written_the_same(golden: Path, tmp_path: Path) -> None:
    assert read_charges(golden) == GOLDEN_CHARGES
    ledger = make_ledger(golden)
    assert ledger.charges() == GOLDEN_CHARGES
    assert ledger.head() == GOLDEN_HEAD
    assert ledger.squared_mu == BUDGET
    again = make_ledger(tmp_path / "again.jsonl")
    for charge in GOLDEN_CHARGES:
        again.authorise(charge)
    assert (tmp_path / "again.jsonl").read_bytes() == GOLDEN


def test_the_spend_of_an_old_event_stays_what_it_was() -> None:
    # 12 / 34.64101615137755^2 and 4 / 8.125^2, to the last digits that rounding up may move.
    assert [charge.event.spend for charge in GOLDEN_CHARGES] == pytest.approx([0.01, 4 / 66.015625], rel=1e-14, abs=0)


def test_two_ledgers_on_one_file_cannot_overspend_together(path: Path) -> None:
    first, second = make_ledger(path), make_ledger(path)
    first.authorise(make_charge("run/one", share=0.6))
    with pytest.raises(BudgetError):
        second.authorise(make_charge("run/two", share=0.6))
    second.authorise(make_charge("run/three", share=0.4))
    with pytest.raises(BudgetError):
        first.authorise(make_charge("run/four", share=0.01))
    assert first.charges() == second.charges()
    assert first.head() == second.head()


def spend_in_haste(connection: Connection, path: Path, name: str) -> None:
    """Ask fifteen times for a little less than a tenth of the budget."""
    ledger = make_ledger(path)
    connection.recv()
    granted = 0
    for number in range(15):
        try:
            ledger.authorise(make_charge(f"{name}/{number}", share=0.0999))
            granted += 1
        except BudgetError:
            pass
    connection.send(granted)
    connection.close()


def test_processes_on_one_file_cannot_overspend_together(path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    children = []
    for name in ("first", "second", "third"):
        here, there = fork.Pipe()
        child = fork.Process(target=spend_in_haste, args=(there, path, name))
        with warnings.catch_warnings():
            # Newer interpreters warn of forking beside threads; the child charges and ends.
            warnings.simplefilter("ignore", DeprecationWarning)
            child.start()
        children.append((child, here))
    for _, connection in children:
        connection.send("go")
    granted = [connection.recv() for _, connection in children]
    for child, _ in children:
        child.join(timeout=30)
        assert child.exitcode == 0
    charges = make_ledger(path).charges()
    assert sum(granted) == len(charges) == 10
    assert sum(Fraction(charge.event.spend) for charge in charges) <= Fraction(BUDGET)


def test_a_place_that_cannot_hold_a_ledger_is_a_ledger_error(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="cannot be written"):
        make_ledger(tmp_path)
    with pytest.raises(LedgerError, match="cannot be read"):
        read_charges(tmp_path / "absent.jsonl")


def test_a_seeded_source_is_on_record(path: Path) -> None:
    charge = make_charge("run/one", share=0.5)
    make_ledger(path).authorise(charge)
    assert read_charges(path) == [charge]
    assert charge.event.noise == "test-seed"
    assert replace(charge.event, noise="csprng").as_dict()["noise"] == "csprng"


def test_the_ledger_needs_neither_torch_nor_flower_nor_pandas() -> None:
    probe = (
        "import sys, common.privacy.ledger; "
        "print(sorted({'torch', 'opacus', 'flwr', 'ray', 'pandas', 'sklearn'} & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True, timeout=60)
    assert found.stdout.strip() == "[]"
