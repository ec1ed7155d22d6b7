"""The ledger: on disk before any noise, refused without a trace, and never read when it was tampered with."""

import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import BudgetError, LedgerError
from common.privacy import ledger as ledger_module
from common.privacy.accountants import GdpAccountant, RdpAccountant
from common.privacy.events import GaussianEvent
from common.privacy.ledger import Asset, Book, Charge, Head, Ledger, canonical, read_ledger
from common.privacy.mechanism import Contributions, CountMechanism
from common.privacy.signatures import SigningKey
from tests.faults.disk import Disk, Fault, Killed

KEY, OTHER_KEY = SigningKey.from_seed(bytes(32)), SigningKey.from_seed(bytes([1]) * 32)
STUDY, OTHER_STUDY = "0f" * 32, "1f" * 32
BUDGET, TOTAL = 0.0625, 0.125
ASSET = Asset("north", "ward", "patient", GdpAccountant(), TOTAL)

# Written by the first version of this schema. They must read the same for ever.
FOLDER = Path(__file__).parent / "golden"
GOLDEN, SAMPLED = ((FOLDER / name).read_bytes() for name in ("ledger-2.jsonl", "ledger-2-sampled.jsonl"))
GOLDEN_HEAD = Head(
    "b05fe79e3afbe806c87f1f9ca52450490c2edb73b502bfde3149729a0a8fd3fa",
    5,
    "d31ed99836b3bd1736d8098f0adec1f079cfaaa4b4a9403e4f5b6334d0ccf1ab",
)
ONE_WAY = Charge(
    "run-1/one_way",
    "ab" * 32,
    GaussianEvent(
        account="train", squared_sensitivity=12, noise_stddev=34.64101615137755, cells=96, scale=2, noise="csprng"
    ),
)
MONITOR = Charge(
    "run-1/one_way",
    "ef" * 32,
    GaussianEvent(account="holdout", squared_sensitivity=4, noise_stddev=8.125, cells=40, scale=2, noise="csprng"),
)
REPLY = "cd" * 32


def make_ledger(path: Path, **changes: Any) -> Ledger:
    return Ledger(path, **{"asset": ASSET, "study": STUDY, "bound": BUDGET, "key": KEY, **changes})


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


def charged(path: Path, study: str = STUDY) -> list[str]:
    """The requests that a study was charged."""
    return list(read_ledger(path).charges[study])


def is_refused(path: Path) -> bool:
    try:
        read_ledger(path)
    except LedgerError:
        return True
    return False


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
        journal.append(f"sync {charged(path)}")
        sync(descriptor)

    monkeypatch.setattr(ledger_module.os, "fsync", spy)
    release(ledger, NoNoise(journal))
    assert journal == ["sync ['run/one_way']", "draw"]


def test_a_seal_is_synced_to_disk_before_it_counts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seals: list[dict[str, str]] = []
    ledger = make_ledger(path)
    ledger.authorise(make_charge("run/one", share=0.1))
    monkeypatch.setattr(ledger_module.os, "fsync", lambda _: seals.append(read_ledger(path).seals[STUDY]))
    ledger.seal("run/one", REPLY)
    assert seals == [{"run/one": REPLY}]


def test_a_new_ledger_syncs_its_entries_and_its_folder(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[int, int]] = []

    def spy(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_ino, path.read_bytes().count(b"\n") if path.exists() else 0))

    monkeypatch.setattr(ledger_module.os, "fsync", spy)
    path = path.parent / "new" / path.name
    make_ledger(path)
    file, folder, above, top = (one.stat().st_ino for one in (path, *path.parents[:3]))
    # The names of the folders, the opening, the file's name, the study.
    assert synced == [(top, 0), (above, 0), (file, 1), (folder, 1), (file, 2)]


def test_an_old_ledgers_folder_is_synced_again(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(ledger_module.os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    make_ledger(golden)
    # Whoever made or wrote it may have died before any of these were on disk.
    assert {one.stat().st_ino for one in (golden, *golden.parents[:2])} <= set(synced)


def test_what_another_process_wrote_and_did_not_sync_is_synced_before_it_counts(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        disk, path = Disk(tmp_path, patch), tmp_path / "north.jsonl"
        first, second = make_ledger(path), make_ledger(path)
        before = first.head()
        disk.break_at(4, Fault.KILL)  # opened, written, flushed, not synced
        with pytest.raises(Killed):
            first.authorise(make_charge("run/one", share=0.5))
        disk.restart()
        assert disk.on_disk(path) == path.read_bytes()[: -len(path.read_bytes().splitlines(keepends=True)[-1])]
        assert second.head().sequence == before.sequence + 1
        assert disk.on_disk(path) == path.read_bytes()


@pytest.mark.parametrize("fault", [Fault.EIO, Fault.ENOSPC])
@pytest.mark.parametrize("change", [1, 2, 3, 4])
def test_a_disk_that_fails_lets_no_noise_out_and_nothing_more_is_granted(
    tmp_path: Path, fault: Fault, change: int
) -> None:
    noise, path = NoNoise(), tmp_path / "north.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        disk, ledger = Disk(tmp_path, patch), make_ledger(path)
        ledger.authorise(make_charge("run/before", share=0.1))
        disk.break_at(change, fault)  # opened, written, flushed, synced
        with pytest.raises(LedgerError, match="cannot be written"):
            release(ledger, noise)
        disk.restart()
        # The disk is well again, and this object still cannot know what is on it.
        uses: list[Callable[[], object]] = [
            lambda: release(ledger, noise, request="run/next", share=0.1),
            lambda: ledger.seal("run/before", REPLY),
            lambda: ledger.charge_of("run/before"),
            ledger.charged,
            ledger.head,
            ledger.hashes,
        ]
        before = path.read_bytes()
        for use in uses:
            with pytest.raises(LedgerError, match="until the site restarts"):
                use()
        assert noise.journal == []
        assert path.read_bytes() == before
        # A new one reads the file: what was written whole was charged, whether it was synced or not.
        again = make_ledger(path)
        assert charged(path) in (["run/before"], ["run/before", "run/one_way"])
        release(again, noise, request="run/next", share=0.1)
        assert noise.journal == ["draw"]


def test_an_ill_typed_event_is_refused_and_writes_nothing(path: Path) -> None:
    make_ledger(path)
    before = path.read_bytes()
    for changes in ({"noise_stddev": 40}, {"cells": 4.0}, {"account": "both"}, {"noise_stddev": float("nan")}):
        charge = make_charge("run/one", share=0.5)
        with pytest.raises((LedgerError, ValueError, KeyError)):
            make_ledger(path).authorise(replace(charge, event=replace(charge.event, **changes)))  # type: ignore[arg-type]
        assert path.read_bytes() == before
    with pytest.raises(LedgerError, match="without a bound"):
        make_ledger(path, study=OTHER_STUDY, bound=1)
    assert path.read_bytes() == before
    make_ledger(path).authorise(make_charge("run/one", share=0.5))


def test_a_crash_between_charge_and_draw_leaves_the_spend_standing(path: Path) -> None:
    class Crash(NoNoise):
        def draw(self, size: int, *, noise_stddev: float, context: str) -> np.ndarray:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        release(make_ledger(path), Crash())
    assert charged(path) == ["run/one_way"]
    with pytest.raises(LedgerError, match="charged before"):
        release(make_ledger(path), NoNoise())


def test_noise_is_drawn_once_more_for_a_charge_that_was_reopened_and_nothing_is_written(path: Path) -> None:
    charge = make_charge("run/one", share=0.5)
    make_ledger(path).authorise(charge)
    before, ledger = path.read_bytes(), make_ledger(path)
    ledger.reopen("run/one")
    ledger.authorise(charge)
    assert path.read_bytes() == before
    with pytest.raises(LedgerError, match="charged before"):
        ledger.authorise(charge)  # for every time that it is reopened, once


def test_only_what_was_charged_can_be_reopened_and_nothing_that_was_sealed(path: Path) -> None:
    ledger = make_ledger(path)
    with pytest.raises(LedgerError, match="never charged"):
        ledger.reopen("run/one")
    charge = make_charge("run/one", share=0.5)
    ledger.authorise(charge)
    ledger.reopen("run/one")
    ledger.seal("run/one", REPLY)
    with pytest.raises(LedgerError, match="was sealed before"):
        ledger.authorise(charge)
    with pytest.raises(LedgerError, match="was sealed before"):
        ledger.reopen("run/one")


@pytest.mark.parametrize("changes", [{"share": 0.6}, {"share": 0.4}, {"account": "holdout"}])
def test_a_reopened_charge_is_the_same_charge_or_refused(path: Path, changes: dict[str, Any]) -> None:
    ledger = make_ledger(path)
    ledger.authorise(make_charge("run/one", share=0.5))
    before = path.read_bytes()
    ledger.reopen("run/one")
    with pytest.raises(LedgerError, match="for something else"):
        ledger.authorise(make_charge("run/one", **{"share": 0.5, **changes}))
    with pytest.raises(LedgerError, match="charged before"):
        ledger.authorise(make_charge("run/one", share=0.5))
    assert path.read_bytes() == before


def test_what_is_reopened_lets_no_other_request_through_without_a_charge(path: Path) -> None:
    ledger = make_ledger(path)
    ledger.authorise(make_charge("run/one", share=0.5))
    ledger.reopen("run/one")
    ledger.authorise(make_charge("run/two", share=0.5))
    assert charged(path) == ["run/one", "run/two"]
    with pytest.raises(LedgerError, match="charged before"):
        ledger.authorise(make_charge("run/one", share=0.5))


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


def spend(share: float) -> float:
    """What a charge of a share of the budget costs, to the last bit."""
    return make_charge("any", share=share).event.spend


def test_a_study_may_spend_its_bound_to_the_last_bit_and_no_bit_more(tmp_path: Path) -> None:
    exact = 2 * spend(0.3)
    for number, bound in enumerate((exact, np.nextafter(exact, 0))):
        ledger = make_ledger(tmp_path / f"{number}.jsonl", bound=float(bound))
        ledger.authorise(make_charge("run/one", share=0.3))
        second = make_charge("run/two", share=0.3)
        if bound == exact:
            ledger.authorise(second)
        else:
            with pytest.raises(BudgetError):
                ledger.authorise(second)


@pytest.mark.parametrize("is_enough", [True, False])
def test_studies_share_the_total_to_the_last_bit_each_at_its_dearer_account(path: Path, is_enough: bool) -> None:
    # Two studies at 0.75 of a study's bound each, in whichever account that is.
    total = 2 * spend(0.75) if is_enough else float(np.nextafter(2 * spend(0.75), 0))
    asset = replace(ASSET, bound=total)
    first = make_ledger(path, asset=asset)
    second = make_ledger(path, asset=asset, study=OTHER_STUDY, bound=2 * BUDGET)
    first.authorise(make_charge("run/one", share=0.75))
    # The cheaper account of a study is covered by the dearer one.
    first.authorise(make_charge("run/two", share=0.5, account="holdout"))
    second.authorise(make_charge("run/one", share=0.25, account="train"))
    before = path.read_bytes()
    last = make_charge("run/two", share=0.75, account="holdout")
    if is_enough:
        second.authorise(last)
        second.authorise(make_charge("run/three", share=0.5, account="train"))
        assert [read_ledger(path).worst(study) for study in (STUDY, OTHER_STUDY)] == [Fraction(total) / 2] * 2
        before = path.read_bytes()
        for ledger in (first, second):
            with pytest.raises(BudgetError, match="all studies"):
                ledger.authorise(make_charge("run/more", share=0.2500001, account="holdout"))
    else:
        with pytest.raises(BudgetError, match="all studies"):
            second.authorise(last)
    assert path.read_bytes() == before


def test_studies_have_requests_of_the_same_names(path: Path) -> None:
    first, second = make_ledger(path), make_ledger(path, study=OTHER_STUDY)
    first.authorise(make_charge("run/one", share=0.5))
    assert second.charge_of("run/one") is None
    with pytest.raises(LedgerError, match="never charged"):
        second.seal("run/one", REPLY)
    second.authorise(make_charge("run/one", share=0.25))
    second.seal("run/one", REPLY)
    assert first.charge_of("run/one") == (make_charge("run/one", share=0.5), None)


def test_a_study_is_entered_once_with_one_bound(path: Path) -> None:
    make_ledger(path)
    before = path.read_bytes()
    make_ledger(path)
    for bound in (BUDGET * 2, BUDGET / 2, float(np.nextafter(BUDGET, 1)), float("nan")):
        with pytest.raises(LedgerError, match="another budget"):
            make_ledger(path, bound=bound)
    assert path.read_bytes() == before
    make_ledger(path, study=OTHER_STUDY, bound=BUDGET * 2)
    assert read_ledger(path).bounds == {STUDY: BUDGET, OTHER_STUDY: BUDGET * 2}


@pytest.mark.parametrize(
    "change",
    [
        {"asset": replace(ASSET, site="south")},
        {"asset": replace(ASSET, name="lab")},
        {"asset": replace(ASSET, unit="")},
        {"asset": replace(ASSET, accountant=RdpAccountant(8))},
        {"asset": replace(ASSET, bound=2 * TOTAL)},
        {"asset": replace(ASSET, bound=float(np.nextafter(TOTAL, 1)))},
        {"key": OTHER_KEY},
    ],
)
def test_the_ledger_of_another_site_asset_unit_accountant_total_or_key_is_refused(
    golden: Path, change: dict[str, Any]
) -> None:
    for study in (STUDY, "2f" * 32):
        with pytest.raises(LedgerError, match="belongs to another"):
            make_ledger(golden, study=study, **change)
    assert golden.read_bytes() == GOLDEN


def test_a_request_is_sealed_once_and_only_if_it_was_charged(path: Path) -> None:
    ledger = make_ledger(path)
    with pytest.raises(LedgerError, match="never charged"):
        ledger.seal("run/one", REPLY)
    charge = make_charge("run/one", share=0.5)
    ledger.authorise(charge)
    assert ledger.charge_of("run/one") == (charge, None)
    assert ledger.charge_of("run/two") is None
    ledger.seal("run/one", REPLY)
    before = path.read_bytes()
    for again in (ledger, make_ledger(path)):
        assert again.charge_of("run/one") == (charge, REPLY)
        for reply in (REPLY, "ee" * 32):
            with pytest.raises(LedgerError, match="sealed before"):
                again.seal("run/one", reply)
    assert path.read_bytes() == before


def test_charges_are_known_whatever_study_they_are_of(path: Path) -> None:
    ledger = make_ledger(path)
    other = make_ledger(path, study=OTHER_STUDY)
    assert ledger.charged() == []
    other.authorise(make_charge("run/one", share=0.5))
    assert ledger.charged() == [(OTHER_STUDY, "run/one")]
    assert make_ledger(path, study="2f" * 32).charged() == ledger.charged()


def test_an_entry_moves_the_head_and_a_refusal_does_not(path: Path) -> None:
    ledger = make_ledger(path)
    heads = [ledger.head()]
    ledger.authorise(make_charge("run/one", share=0.9))
    heads.append(ledger.head())
    ledger.seal("run/one", REPLY)
    heads.append(ledger.head())
    with pytest.raises(BudgetError):
        ledger.authorise(make_charge("run/two", share=0.9))
    assert ledger.head() == heads[-1] == make_ledger(path).head()
    assert [head.sequence for head in heads] == [1, 2, 3]
    assert [ledger.hashes()[head.sequence] for head in heads] == [head.hash for head in heads]
    assert {head.ledger for head in heads} == {ledger.hashes()[0]}


def test_the_hashes_are_those_of_all_entries_in_order(golden: Path) -> None:
    ledger = make_ledger(golden)
    assert ledger.head() == GOLDEN_HEAD
    assert list(ledger.hashes()) == [json.loads(line)["hash"] for line in GOLDEN.splitlines()]


def test_a_last_line_that_a_crash_cut_short_is_dropped(golden: Path) -> None:
    whole = GOLDEN[: GOLDEN.rindex(b"\n", 0, -1) + 1]
    for end in reversed(range(len(whole), len(GOLDEN))):
        os.truncate(golden, end)
        assert read_ledger(golden).charges == {STUDY: {ONE_WAY.request: ONE_WAY}, OTHER_STUDY: {}}
    golden.write_bytes(GOLDEN[:-9])
    make_ledger(golden)
    assert golden.read_bytes() == whole
    golden.write_bytes(GOLDEN[:-9])
    # What comes next is written behind the last whole line, not behind the torn one.
    ledger = make_ledger(golden, study=OTHER_STUDY, bound=0.09375)
    ledger.authorise(make_charge("run-2/one_way", share=0.5, account="holdout"))
    assert golden.read_bytes().startswith(whole)
    assert charged(golden, OTHER_STUDY) == ["run-2/one_way"]


def test_an_opening_or_study_that_a_crash_cut_short_is_written_anew(path: Path) -> None:
    lines = GOLDEN.splitlines(keepends=True)
    first, second = len(lines[0]), len(lines[0] + lines[1])
    for end in (0, 1, 40, first - 1, first, first + 1, second - 1, second):
        path.write_bytes(GOLDEN[:end])
        make_ledger(path)
        assert path.read_bytes() == GOLDEN[:second]


def test_any_changed_byte_is_refused(golden: Path) -> None:
    # All but the very last line end, without which the last line is a torn one. 32 changes the case of a letter, and a
    # carriage return is a line end to some readers.
    with golden.open("r+b", buffering=0) as file:
        for position in range(len(GOLDEN) - 1):
            others = {GOLDEN[position] ^ 32} if position % 3 else {GOLDEN[position] ^ 1, ord("\r"), ord("e")}
            for other in (*(others - {GOLDEN[position]}), GOLDEN[position]):
                file.seek(position)
                file.write(bytes([other]))
                assert is_refused(golden) == (other != GOLDEN[position]), position
        file.seek(2000)
        file.write(b"#")
    with pytest.raises(LedgerError):
        make_ledger(golden)


@pytest.mark.parametrize(
    "order",
    [
        *([number for number in range(6) if number != left_out] for left_out in range(5)),
        [0, 1, 3, 2, 4, 5],
        [1, 0, 2, 3, 4, 5],
        [0, 1, 2, 3, 5, 4],
        [0, 0, 1, 2, 3, 4, 5],
        [0, 1, 2, 2, 3, 4, 5],
        [0, 1, 2, 3, 3],
        [0, 1, 2, 3, 4, 5, 5],
        [5],
    ],
)
def test_a_line_removed_swapped_or_doubled_is_refused(golden: Path, order: list[int]) -> None:
    lines = GOLDEN.splitlines(keepends=True)
    golden.write_bytes(b"".join(lines[number] for number in order))
    with pytest.raises(LedgerError):
        make_ledger(golden)
    assert is_refused(golden)


def test_an_empty_or_foreign_file_is_no_ledger(path: Path) -> None:
    for body in (b"", b"\n", b"{}\n", b"[]\n", b"null\n", b'"open"\n', b"\xff\n", b"[" * 9999 + b"\n", GOLDEN + b"\n"):
        path.write_bytes(body)
        assert is_refused(path)
        if body:
            with pytest.raises(LedgerError):
                make_ledger(path)
            assert path.read_bytes() == body


def test_damage_during_use_is_refused_for_good(golden: Path) -> None:
    ledger = make_ledger(golden)
    golden.write_bytes(GOLDEN.replace(b"34.64101615137755", b"94.64101615137755"))
    uses: list[Callable[[], object]] = [
        ledger.head,
        ledger.hashes,
        lambda: ledger.charge_of("run/one"),
        ledger.charged,
        lambda: ledger.authorise(make_charge("run-2/one_way", share=0.1)),
        lambda: ledger.seal("run-1/one_way", REPLY),
    ]
    for use in uses:
        with pytest.raises(LedgerError):
            use()
    golden.write_bytes(GOLDEN)
    with pytest.raises(LedgerError):
        ledger.head()


def test_damage_behind_what_was_read_is_refused_too(golden: Path) -> None:
    ledger = make_ledger(golden)
    golden.write_bytes(forge(charge_entry("run-2/one"))[:-200] + b"\n")
    with pytest.raises(LedgerError, match=":7: not a ledger entry"):
        ledger.head()
    with pytest.raises(LedgerError):
        ledger.authorise(make_charge("run-3/one_way", share=0.1))


@pytest.mark.parametrize("lines", range(6))
def test_a_file_that_lost_entries_during_use_is_refused(golden: Path, lines: int) -> None:
    ledger = make_ledger(golden)
    older = b"".join(GOLDEN.splitlines(keepends=True)[:lines])
    golden.write_bytes(older)
    assert lines == 0 or not is_refused(golden)
    for use in (ledger.head, lambda: ledger.authorise(make_charge("run-2/one_way", share=0.1))):
        with pytest.raises(LedgerError):
            use()
    assert golden.read_bytes() == older


def forge(*entries: dict[str, Any], key: SigningKey = KEY, after: bytes = GOLDEN) -> bytes:
    """Further entries behind those of a file, chain and signatures as the owner of a key makes them."""
    lines = after.splitlines(keepends=True)
    previous = json.loads(lines[-1])["hash"] if lines else "0" * 64
    for entry in entries:
        body = {**entry, "sequence": len(lines), "previous": previous}
        previous = hashlib.sha256(canonical(body)).hexdigest()
        signature = key.sign(previous.encode(), purpose="ledger entry")
        lines.append(canonical({**body, "hash": previous, "signature": signature}) + b"\n")
    return b"".join(lines)


def charge_entry(request: str, **changes: Any) -> dict[str, Any]:
    return {
        "type": "charge",
        "study": STUDY,
        "request": request,
        "request_digest": "ab" * 32,
        "event": ONE_WAY.event.as_dict(),
        **changes,
    }


def test_an_entry_that_another_key_signed_is_refused(golden: Path) -> None:
    golden.write_bytes(forge(charge_entry("run-2/one")))
    assert not is_refused(golden)
    # Also where it brings the key that it was signed with.
    for entry in (charge_entry("run-2/one"), charge_entry("run-2/one", key=OTHER_KEY.public)):
        golden.write_bytes(forge(entry, key=OTHER_KEY))
        with pytest.raises(LedgerError, match="signature"):
            read_ledger(golden)
        with pytest.raises(LedgerError, match="signature"):
            make_ledger(golden)


def test_a_signature_of_another_entry_or_purpose_is_refused(golden: Path) -> None:
    lines = forge(charge_entry("run-2/one")).splitlines(keepends=True)
    last = json.loads(lines[-1])
    for signature in (
        json.loads(lines[-2])["signature"],
        KEY.sign(last["hash"].encode(), purpose="policy"),
        KEY.sign(canonical(last), purpose="ledger entry"),
        "",
        None,
        7,
    ):
        golden.write_bytes(b"".join([*lines[:-1], canonical({**last, "signature": signature}), b"\n"]))
        assert is_refused(golden)
    golden.write_bytes(b"".join([*lines[:-1], canonical({k: v for k, v in last.items() if k != "signature"}), b"\n"]))
    assert is_refused(golden)


def test_a_ledger_that_another_key_made_under_this_ones_name_is_refused(path: Path) -> None:
    opening = {"type": "open", "schema": "privshare.ledger/2", "key": KEY.public, **ASSET.as_dict()}
    path.write_bytes(forge(opening, after=b""))
    assert path.read_bytes() == GOLDEN.splitlines(keepends=True)[0]
    path.write_bytes(forge(opening, after=b"", key=OTHER_KEY))
    assert is_refused(path)
    with pytest.raises(LedgerError):
        make_ledger(path)


def test_a_rewritten_line_with_its_hash_right_needs_the_key(golden: Path) -> None:
    lines = GOLDEN.splitlines(keepends=True)
    entry = json.loads(lines[2])
    entry["event"]["noise_stddev"] = 900.0
    body = {name: value for name, value in entry.items() if name not in ("hash", "signature")}
    entry["hash"] = hashlib.sha256(canonical(body)).hexdigest()
    # Hashed anew and not signed anew: refused even where no line comes behind it to break the chain.
    golden.write_bytes(b"".join([*lines[:2], canonical(entry) + b"\n"]))
    assert is_refused(golden)
    # Signed anew as well, only what comes behind it tells: whoever owns the host can do this, and peers notice.
    entry["signature"] = KEY.sign(entry["hash"].encode(), purpose="ledger entry")
    golden.write_bytes(b"".join([*lines[:2], canonical(entry) + b"\n"]))
    assert not is_refused(golden)
    golden.write_bytes(b"".join([*lines[:2], canonical(entry) + b"\n", *lines[3:]]))
    assert is_refused(golden)


def test_a_line_in_another_spelling_is_refused(golden: Path) -> None:
    lines = GOLDEN.splitlines(keepends=True)
    line, entry = lines[2], json.loads(lines[2])
    spellings = [
        line.replace(b'":', b'": ', 1),
        b" " + line,
        line[:-1] + b" \n",
        line[:-1] + b"\r\n",
        json.dumps(dict(reversed(entry.items())), separators=(",", ":")).encode() + b"\n",
        # Of two keys that are the same, readers take one or the other.
        line.replace(b'{"event"', b'{"event":{},"event"', 1),
        line.replace(b'"scale":2', b'"scale":9,"scale":2', 1),
        line.replace(b"34.64101615137755", b"3.464101615137755e1", 1),
        line.replace(b"gaussian", b"gauss\\u0069an", 1),
    ]
    for spelling in spellings:
        assert json.loads(spelling) == entry
        assert spelling != line
        golden.write_bytes(b"".join([*lines[:2], spelling, *lines[3:]]))
        assert is_refused(golden), spelling


def test_an_entry_of_another_number_is_refused_whoever_signed_it(golden: Path) -> None:
    *before, line = forge(charge_entry("run-2/one")).splitlines(keepends=True)
    for number in (5, 7, "6", True, None):
        body = {key: value for key, value in json.loads(line).items() if key not in ("hash", "signature")}
        body["sequence"] = number
        digest = hashlib.sha256(canonical(body)).hexdigest()
        entry = {**body, "hash": digest, "signature": KEY.sign(digest.encode(), purpose="ledger entry")}
        golden.write_bytes(b"".join([*before, canonical(entry), b"\n"]))
        assert is_refused(golden), number


STUDY_ENTRY = {"type": "study", "study": "2f" * 32, "bound": 0.5}
SEAL_ENTRY = {"type": "seal", "study": OTHER_STUDY, "request": MONITOR.request, "reply": REPLY}
EVENT = ONE_WAY.event.as_dict()


def test_what_the_rules_allow_is_read(golden: Path) -> None:
    for entry in (STUDY_ENTRY, SEAL_ENTRY, charge_entry("run-2/one")):
        golden.write_bytes(forge(entry))
        assert len(read_ledger(golden).hashes) == 7


@pytest.mark.parametrize(
    "entry",
    [
        # Kinds that are not known: they could be spends.
        charge_entry("run-2/one", type="refund"),
        {key: value for key, value in charge_entry("run-2/one").items() if key != "type"},
        {"type": "open", "schema": "privshare.ledger/2", "key": KEY.public, **ASSET.as_dict()},
        # Studies.
        {**STUDY_ENTRY, "study": STUDY},
        {**STUDY_ENTRY, "bound": 1},
        {**STUDY_ENTRY, "bound": "0.5"},
        {**STUDY_ENTRY, "bound": None},
        # Charges.
        charge_entry(ONE_WAY.request),
        charge_entry("run-2/one", study="2f" * 32),
        charge_entry("run-2/one", study=["0f" * 32]),
        charge_entry("run-2/one", event=None),
        charge_entry("run-2/one", event={**EVENT, "type": "laplace"}),
        charge_entry("run-2/one", event={**EVENT, "noise_stddev": 4}),
        charge_entry("run-2/one", event={**EVENT, "noise_stddev": 14.0}),
        {key: value for key, value in charge_entry("run-2/one").items() if key != "event"},
        {key: value for key, value in charge_entry("run-2/one").items() if key != "request_digest"},
        # Seals.
        {**SEAL_ENTRY, "study": STUDY},
        {**SEAL_ENTRY, "study": "2f" * 32},
        {**SEAL_ENTRY, "request": "run-1/tables"},
        {key: value for key, value in SEAL_ENTRY.items() if key != "reply"},
    ],
)
def test_an_entry_that_breaks_a_rule_is_not_skipped_whoever_signed_it(golden: Path, entry: dict[str, Any]) -> None:
    golden.write_bytes(forge(entry))
    with pytest.raises(LedgerError):
        read_ledger(golden)
    with pytest.raises(LedgerError):
        make_ledger(golden).authorise(make_charge("run-3/one_way", share=0.1))


def test_more_than_all_studies_may_spend_is_refused_whoever_signed_it(golden: Path) -> None:
    # Each study would stay within its own bound of 0.5; the asset's is 0.125, of which about 0.07 is spent.
    bought = {**EVENT, "noise_stddev": 12.0**0.5 / 0.05**0.5}
    first = charge_entry("run-2/one", study=STUDY_ENTRY["study"], event=bought)
    golden.write_bytes(forge(STUDY_ENTRY, first))
    assert not is_refused(golden)
    golden.write_bytes(forge(STUDY_ENTRY, first, {**first, "request": "run-2/two"}))
    with pytest.raises(LedgerError, match="all studies"):
        read_ledger(golden)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "privshare.ledger/1"},
        {"schema": None},
        {"type": "charge"},
        {"accountant": {"kind": "pld"}},
        {"accountant": None},
        {"key": "00"},
    ],
)
def test_an_opening_of_another_form_is_refused(path: Path, change: dict[str, Any]) -> None:
    opening = {"type": "open", "schema": "privshare.ledger/2", "key": KEY.public, **ASSET.as_dict()}
    path.write_bytes(forge({**opening, **change}, after=b""))
    assert is_refused(path)
    for name in opening:
        path.write_bytes(forge({key: value for key, value in opening.items() if key != name}, after=b""))
        assert is_refused(path)


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
        ("sampling", 0.0),
        ("sampling", 1.5),
        ("sampling", 1),
        ("sampling", float("nan")),
        ("type", "laplace"),
    ],
)
def test_an_event_with_a_field_out_of_range_is_refused(field: str, value: Any) -> None:
    good = ONE_WAY.event
    assert GaussianEvent.from_dict(good.as_dict()) == good
    with pytest.raises(LedgerError):
        GaussianEvent.from_dict({**good.as_dict(), field: value})


def test_an_event_with_a_field_too_few_or_too_many_is_refused() -> None:
    for name in EVENT:
        with pytest.raises(LedgerError):
            GaussianEvent.from_dict({key: value for key, value in EVENT.items() if key != name})
    with pytest.raises(LedgerError):
        GaussianEvent.from_dict({**EVENT, "refund": 1})


def test_an_old_ledger_reads_and_is_written_the_same(golden: Path, tmp_path: Path) -> None:
    book = read_ledger(golden)
    assert book.charges == {STUDY: {ONE_WAY.request: ONE_WAY}, OTHER_STUDY: {MONITOR.request: MONITOR}}
    assert book.seals == {STUDY: {ONE_WAY.request: REPLY}, OTHER_STUDY: {}}
    assert book.bounds == {STUDY: BUDGET, OTHER_STUDY: 0.09375}
    assert (book.public, book.asset, book.accountant) == (KEY.public, ASSET.as_dict(), GdpAccountant())
    assert book.head == GOLDEN_HEAD
    first = make_ledger(tmp_path / "again.jsonl")
    first.authorise(ONE_WAY)
    first.seal(ONE_WAY.request, REPLY)
    make_ledger(tmp_path / "again.jsonl", study=OTHER_STUDY, bound=0.09375).authorise(MONITOR)
    assert (tmp_path / "again.jsonl").read_bytes() == GOLDEN


def test_an_old_ledger_in_another_currency_reads_and_is_written_the_same(path: Path) -> None:
    event = GaussianEvent(
        account="train",
        squared_sensitivity=16777216,
        noise_stddev=8192.0,
        cells=512,
        scale=4096,
        noise="csprng",
        sampling=0.125,
    )
    asset = Asset("north", "ward", "", RdpAccountant(8), 4.0)
    charge = Charge("run-1/critic-1", "ab" * 32, event)
    make_ledger(path, asset=asset, bound=2.0).authorise(charge)
    assert path.read_bytes() == SAMPLED
    book = read_ledger(path)
    assert book.charges == {STUDY: {charge.request: charge}}
    assert book.accountant == RdpAccountant(8)
    # Of order 8, noise multiplier 2 and sampling 1/8: the binomial sum of Mironov et al. 2019 at 50 digits.
    assert float(book.spent[STUDY, "train"]) == pytest.approx(0.0224542306271429941, rel=1e-10)


def test_the_spend_of_an_old_event_stays_what_it_was() -> None:
    # 12 / 34.64101615137755^2 and 4 / 8.125^2, to the last digits that rounding up may move.
    assert [one.event.spend for one in (ONE_WAY, MONITOR)] == pytest.approx([0.01, 4 / 66.015625], rel=1e-14, abs=0)


def test_a_ledger_is_read_without_being_touched(golden: Path) -> None:
    golden.write_bytes(GOLDEN + b'{"torn')
    golden.chmod(0o400)
    golden.parent.chmod(0o500)
    before = golden.stat()
    try:
        assert read_ledger(golden).head == GOLDEN_HEAD
    finally:
        golden.parent.chmod(0o700)
    assert golden.read_bytes() == GOLDEN + b'{"torn'
    after = golden.stat()
    assert (after.st_mtime_ns, after.st_mode, after.st_ino) == (before.st_mtime_ns, before.st_mode, before.st_ino)
    assert [one.name for one in golden.parent.iterdir()] == [golden.name]
    with pytest.raises(LedgerError, match="cannot be read"):
        read_ledger(golden.parent / "absent.jsonl")
    assert [one.name for one in golden.parent.iterdir()] == [golden.name]


def test_two_ledgers_on_one_file_cannot_overspend_together(path: Path) -> None:
    first, second = make_ledger(path), make_ledger(path)
    first.authorise(make_charge("run/one", share=0.6))
    with pytest.raises(BudgetError):
        second.authorise(make_charge("run/two", share=0.6))
    second.authorise(make_charge("run/three", share=0.4))
    with pytest.raises(BudgetError):
        first.authorise(make_charge("run/four", share=0.01))
    first.seal("run/three", REPLY)
    with pytest.raises(LedgerError, match="sealed before"):
        second.seal("run/three", REPLY)
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
    charges = read_ledger(path).charges[STUDY].values()
    assert sum(granted) == len(charges) == 10
    assert sum(Fraction(charge.event.spend) for charge in charges) <= Fraction(BUDGET)


STUDIES = {STUDY: BUDGET, OTHER_STUDY: 1.5 * BUDGET}
ACCOUNTS = ("train", "holdout")
STEPS = st.tuples(
    st.sampled_from(["charge", "charge", "charge", "seal", "look", "reopen"]),
    st.integers(0, 1),  # which ledger object
    st.integers(0, 4),  # which request
    st.sampled_from(ACCOUNTS),
    st.sampled_from([0.125, 0.375, 0.75, 1.0]),
)


class Model:
    """The rules, told again in the simplest way, and held against what ledgers on one file do."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.charges: dict[str, dict[str, Charge]] = {study: {} for study in STUDIES}
        self.seals: dict[str, dict[str, str]] = {study: {} for study in STUDIES}
        self.entries = 1 + len(STUDIES)

    def charge(self, ledger: Ledger, study: str, charge: Charge) -> None:
        may = charge.request not in self.charges[study]
        if may:
            self.charges[study][charge.request] = charge
            dearest = {one: max(self._spent(one, account) for account in ACCOUNTS) for one in STUDIES}
            may = dearest[study] <= STUDIES[study] and sum(dearest.values()) <= TOTAL
            if not may:
                del self.charges[study][charge.request]
        self._expect(lambda: ledger.authorise(charge), may=may)

    def seal(self, ledger: Ledger, study: str, name: str) -> None:
        may = name in self.charges[study] and name not in self.seals[study]
        if may:
            self.seals[study][name] = REPLY
        self._expect(lambda: ledger.seal(name, REPLY), may=may)

    def look(self, ledger: Ledger, study: str, name: str) -> None:
        known = self.charges[study].get(name)
        assert ledger.charge_of(name) == (None if known is None else (known, self.seals[study].get(name)))
        assert bool(ledger.charged()) == any(self.charges.values())
        head = ledger.head()
        assert head.sequence == self.entries - 1
        assert ledger.hashes()[-1] == head.hash
        assert len(ledger.hashes()) == self.entries

    def _expect(self, use: Callable[[], None], *, may: bool) -> None:
        before = self._path.read_bytes()
        if may:
            use()
            self.entries += 1
        else:
            with pytest.raises((BudgetError, LedgerError)):
                use()
            assert self._path.read_bytes() == before

    def _spent(self, study: str, account: str) -> Fraction:
        events = [one.event for one in self.charges[study].values() if one.event.account == account]
        return sum((Fraction(event.spend) for event in events), Fraction(0))


@settings(max_examples=150, deadline=None)
@given(steps=st.lists(STEPS, max_size=14), shared=st.booleans())
def test_two_objects_on_one_file_do_what_the_rules_say_in_any_order(
    steps: list[tuple[str, int, int, str, float]], shared: bool
) -> None:
    """Reading on from where one was gives what reading anew gives, whoever wrote in between."""
    of = (STUDY, STUDY if shared else OTHER_STUDY)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger_module.os, "fsync", lambda _: None)
        path = Path(folder) / "north.jsonl"
        model = Model(path)
        every = {study: make_ledger(path, study=study, bound=bound) for study, bound in STUDIES.items()}
        ledgers = [every[of[0]], make_ledger(path, study=of[1], bound=STUDIES[of[1]])]
        for kind, which, number, account, share in steps:
            ledger, study, name = ledgers[which], of[which], f"run/{number}"
            if kind == "charge":
                model.charge(ledger, study, make_charge(name, share=share, account=account))
            elif kind == "seal":
                model.seal(ledger, study, name)
            elif kind == "look":
                model.look(ledger, study, name)
            else:
                ledgers[which] = make_ledger(path, study=study, bound=STUDIES[study])
        anew = read_ledger(path)
        assert (anew.charges, anew.seals) == (model.charges, model.seals)
        for ledger in ledgers:
            ledger.head()
            assert book_of(ledger) == anew


def book_of(ledger: Ledger) -> Book:
    """What an object carried along."""
    return ledger._book


def test_a_place_that_cannot_hold_a_ledger_is_a_ledger_error(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="cannot be written"):
        make_ledger(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(LedgerError, match="cannot be written"):
        make_ledger(tmp_path / "file" / "north.jsonl")


def test_a_seeded_source_is_on_record(path: Path) -> None:
    charge = make_charge("run/one", share=0.5)
    make_ledger(path).authorise(charge)
    assert read_ledger(path).charges[STUDY]["run/one"].event.noise == "test-seed"
    assert replace(charge.event, noise="csprng").as_dict()["noise"] == "csprng"


def test_the_ledger_needs_neither_torch_nor_flower_nor_pandas() -> None:
    probe = (
        "import sys, common.privacy.ledger, common.privacy.witness; "
        "print(sorted({'torch', 'opacus', 'flwr', 'ray', 'pandas', 'sklearn'} & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True, timeout=60)
    assert found.stdout.strip() == "[]"
