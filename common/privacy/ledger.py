"""The record of what a site has spent: append-only, hash-chained, signed, on disk before any noise is drawn.

One line of JSON an entry. The file is authoritative: it is read and checked again, under a lock, before each spend, so
that two processes of one site cannot spend the same budget twice. It is the site's own; a coordinator's copy plans,
it does not authorise.

One ledger is for one data asset, whatever studies run on it: each study has a bound, and all of them together have one.

Invariants, of every file that this module wrote and `read_ledger` accepts, also after a crash at any point:
  1. what was released was charged first, and the charge was on disk before its noise was drawn;
  2. a request is charged once and sealed at most once;
  3. the spends of each account of a study never sum to more than the study's bound, and those of all studies, each
     at its dearer account, never to more than the asset's;
  4. sequence numbers, hash chain and signatures are whole; a last line cut short was never acted on, and is dropped.
That a file is the newest one, the file itself cannot say: see `witness`.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

from common.errors import BudgetError, LedgerError, PrivacyError
from common.files import make_folder, sync_folder
from common.privacy import budget
from common.privacy.accountants import Accountant, accountant_from
from common.privacy.events import GaussianEvent
from common.privacy.signatures import SigningKey, is_signed

LEDGER_SCHEMA = "privshare.ledger/2"
_GENESIS = "0" * 64
_PURPOSE = "ledger entry"


@dataclass(frozen=True)
class Charge:
    """One authorised spend: the request that asked for it, a digest of what was asked, and the event."""

    request: str
    request_digest: str
    event: GaussianEvent


@dataclass(frozen=True)
class Asset:
    """What a ledger is for; fixed for ever by its first entry.

    site: name of the site.
    name: of the data asset; every study on the same rows has the same one.
    unit: the key column of whom the ledger protects; empty where each record is a unit.
    accountant: what spends are counted in.
    bound: the most that all studies together may spend.
    """

    site: str
    name: str
    unit: str
    accountant: Accountant
    bound: float

    def as_dict(self) -> dict[str, Any]:
        """For the first entry."""
        return {
            "site": self.site,
            "asset": self.name,
            "unit": self.unit,
            "accountant": self.accountant.as_dict(),
            "bound": self.bound,
        }


@dataclass(frozen=True)
class Head:
    """The newest entry of a ledger: its number and hash, and the ledger's name, the hash of its first entry."""

    ledger: str
    sequence: int
    hash: str


@dataclass
class Book:
    """What the entries of a ledger say, and whether they may say it."""

    public: str = ""
    asset: dict[str, Any] = field(default_factory=dict)
    accountant: Accountant | None = None
    hashes: list[str] = field(default_factory=list)
    bounds: dict[str, float] = field(default_factory=dict)
    charges: dict[str, dict[str, Charge]] = field(default_factory=dict)
    seals: dict[str, dict[str, str]] = field(default_factory=dict)
    spent: dict[tuple[str, str], Fraction] = field(default_factory=dict)

    @property
    def head(self) -> Head:
        """Of an open ledger."""
        return Head(self.hashes[0], len(self.hashes) - 1, self.hashes[-1])

    def spend_of(self, event: GaussianEvent) -> float:
        """What an event costs in this ledger's currency."""
        assert self.accountant is not None
        return self.accountant.spend(event)

    def worst(self, study: str) -> Fraction:
        """What the dearer account of a study has spent, exactly."""
        return max(self.spent[study, "train"], self.spent[study, "holdout"])

    def check(self, study: str, charge: Charge) -> None:
        """Refuse a charge that may not stand.

        Raises:
            BudgetError: it would pass the study's bound, or the asset's.
            LedgerError: the study was not entered, or the request was charged before.
        """
        if study not in self.bounds:
            raise LedgerError("study: was not entered into the ledger")
        if charge.request in self.charges[study]:
            raise LedgerError(f"request {charge.request}: was charged before; a request is released once")
        new, own = self.spend_of(charge.event), self.spent[study, charge.event.account]
        budget.check_spend([own], new, budget=self.bounds[study])
        if own + Fraction(new) <= self.worst(study):
            return
        # Units are told apart by study, so one may be held out in one study and train in the next.
        others = sum((self.worst(name) for name in self.bounds if name != study), Fraction(0))
        try:
            budget.check_spend([others, own], new, budget=self.asset["bound"])
        except BudgetError:
            raise BudgetError(
                "budget: the request would pass what all studies on this data asset may spend together; refused, "
                "nothing was drawn"
            ) from None

    def check_again(self, study: str, charge: Charge) -> None:
        """Refuse a charge but one that stands and was not sealed.

        Raises:
            LedgerError: it was sealed or never charged, or charged for something else.
        """
        self.check_seal(study, charge.request)
        if self.charges[study][charge.request] != charge:
            raise LedgerError(f"request {charge.request}: was charged for something else")

    def apply(self, entry: dict[str, Any]) -> None:
        """Take up one entry, its chain and signature checked.

        Raises:
            BudgetError, LedgerError: it breaks a rule.
            KeyError, TypeError, ValueError: it lacks what its kind has.
        """
        if not self.hashes:
            self._open(entry)
        elif entry["type"] == "study":
            self._enter(str(entry["study"]), entry["bound"])
        elif entry["type"] == "charge":
            event = GaussianEvent.from_dict(entry["event"])
            charge, study = Charge(str(entry["request"]), str(entry["request_digest"]), event), entry["study"]
            self.check(study, charge)
            self.charges[study][charge.request] = charge
            self.spent[study, event.account] += Fraction(self.spend_of(event))
        elif entry["type"] == "seal":
            self.check_seal(entry["study"], entry["request"])
            self.seals[entry["study"]][entry["request"]] = str(entry["reply"])
        else:
            # It could be a spend: refused, not skipped.
            raise LedgerError("an entry is of a kind that is not known here")
        self.hashes.append(entry["hash"])

    def _open(self, entry: dict[str, Any]) -> None:
        if (entry["type"], entry["schema"]) != ("open", LEDGER_SCHEMA):
            raise LedgerError(f"expected {LEDGER_SCHEMA}")
        self.asset = {name: entry[name] for name in ("site", "asset", "unit", "accountant", "bound")}
        self.public, self.accountant = str(entry["key"]), accountant_from(entry["accountant"])

    def _enter(self, study: str, bound: float) -> None:
        if study in self.bounds or not isinstance(bound, float):
            raise LedgerError("a study is entered twice, or without a bound")
        self.bounds[study], self.charges[study], self.seals[study] = bound, {}, {}
        self.spent |= {(study, account): Fraction(0) for account in ("train", "holdout")}

    def check_seal(self, study: str, request: str) -> None:
        """Refuse to seal what was never charged, or a second time.

        Raises:
            LedgerError: either.
        """
        if request not in self.charges.get(study, {}) or request in self.seals[study]:
            raise LedgerError(f"request {request}: was sealed before, or never charged")


class Ledger:
    """The ledger of one site's data asset, as one study uses it.

    Guarantees: when `authorise` returns, the charge is on disk (fsync of file and, at every opening, of its folder);
    when it refuses, nothing was written; when the disk fails, the charge may stand, which costs budget and never
    privacy, and this object refuses everything from then on: after a failed fsync nobody knows what is on disk.
    Edge cases: a last line cut short by a crash was never authorised, and is dropped; any other damage is refused, and
    so is a file that lost entries since this object read them.
    """

    def __init__(self, path: Path, *, asset: Asset, study: str, bound: float, key: SigningKey) -> None:
        """Open or create the ledger, and enter the study on its first use.

        Args:
            path: of the JSONL file.
            asset: what it is for.
            study: digest of the study.
            bound: the most that each account of the study may spend; fixed for ever by its first opening.
            key: of the site; signs every entry.

        Raises:
            LedgerError: the file is damaged, or belongs to another site, asset, key or bound.
        """
        self._path, self._study, self._key = path, study, key
        self._data, self._book, self._failed = b"", Book(), False
        self._reopened: str | None = None
        try:
            make_folder(path.parent)
        except OSError as error:
            raise LedgerError(f"{path}: the ledger cannot be written ({error.strerror})") from None
        with self._locked() as file:
            book = self._read(file)
            if not book.hashes:
                opening = {"type": "open", "schema": LEDGER_SCHEMA, "key": key.public, **asset.as_dict()}
                self._append(file, opening)
            # Whoever made the file may have died before its name was on disk.
            sync_folder(path.parent)
            if (book.public, book.asset) != (key.public, asset.as_dict()):
                raise LedgerError(f"{path}: the ledger belongs to another site, asset, unit, key or total budget")
            if study not in book.bounds:
                self._append(file, {"type": "study", "study": study, "bound": bound})
            if book.bounds[study] != bound:
                raise LedgerError(f"{path}: the study was entered with another budget")

    def authorise(self, charge: Charge) -> None:
        """Refuse, or write the charge down for good. Noise may be drawn only after this returns.

        Raises:
            BudgetError: the spend would pass the study's budget, or the asset's.
            LedgerError: the request was charged before, or the file is damaged or cannot be written.
        """
        with self._locked() as file:
            book, reopened, self._reopened = self._read(file), self._reopened, None
            if charge.request == reopened:
                book.check_again(self._study, charge)
                return
            book.check(self._study, charge)
            self._append(
                file,
                {
                    "type": "charge",
                    "study": self._study,
                    "request": charge.request,
                    "request_digest": charge.request_digest,
                    "event": charge.event.as_dict(),
                },
            )

    def reopen(self, request: str) -> None:
        """Have the next call of `authorise` let noise be drawn once more for a charge of which no reply left.

        That none did is for the caller to know; what was sealed may have.

        Raises:
            LedgerError: the request was sealed or never charged, or as for `authorise`.
        """
        with self._locked() as file:
            self._read(file).check_seal(self._study, request)
            self._reopened = request

    def seal(self, request: str, reply: str) -> None:
        """Write down that a reply, by its SHA-256, is the one that a charged request gets for ever.

        Raises:
            LedgerError: the request was sealed before or never charged, or as for `authorise`.
        """
        with self._locked() as file:
            self._read(file).check_seal(self._study, request)
            self._append(file, {"type": "seal", "study": self._study, "request": request, "reply": reply})

    def charge_of(self, request: str) -> tuple[Charge, str | None] | None:
        """What a request of this study was charged, and the SHA-256 of its sealed reply; None where it was not."""
        with self._locked() as file:
            book = self._read(file)
            charge = book.charges[self._study].get(request)
            return (charge, book.seals[self._study].get(request)) if charge else None

    def is_sealed(self, request: str) -> bool:
        """Whether the reply to a request of this study was sealed."""
        with self._locked() as file:
            return request in self._read(file).seals[self._study]

    def charged(self) -> list[tuple[str, str]]:
        """Study and request of every charge."""
        with self._locked() as file:
            charges = self._read(file).charges
            return [(study, request) for study, requests in charges.items() for request in requests]

    def head(self) -> Head:
        """The newest entry."""
        with self._locked() as file:
            return self._read(file).head

    def spent(self) -> tuple[Head, tuple[GaussianEvent, ...]]:
        """The newest entry, and what the study was charged up to it, oldest first."""
        with self._locked() as file:
            book = self._read(file)
            return book.head, tuple(charge.event for charge in book.charges[self._study].values())

    def hashes(self) -> tuple[str, ...]:
        """Of all entries, in order."""
        with self._locked() as file:
            return tuple(self._read(file).hashes)

    @contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        if self._failed:
            raise LedgerError(f"{self._path}: using it failed before; nothing more is spent until the site restarts")
        try:
            with self._path.open("a+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield file
        except OSError as error:
            self._failed = True
            raise LedgerError(f"{self._path}: the ledger cannot be written ({error.strerror})") from None

    def _read(self, file: BinaryIO) -> Book:
        """What the file says now; a torn last line is cut off it. What was checked before is not checked again."""
        self._failed = True  # until the file turns out to be whole
        file.seek(0)
        data = file.read()
        if not data.startswith(self._data):
            raise LedgerError(f"{self._path}: lacks entries that it had before; restore the newest one")
        known = len(self._data)
        end = known + _take_up(self._book, data[known:], self._path)
        if end < len(data):
            file.truncate(end)
        if end > known:
            # Whoever wrote it may have died before it was on disk, and from here on others hear of it.
            os.fsync(file.fileno())
        self._data, self._failed = data[:end], False
        return self._book

    def _append(self, file: BinaryIO, entry: dict[str, Any]) -> None:
        self._failed = True  # until the entry is on disk
        hashes = self._book.hashes
        body = {**entry, "sequence": len(hashes), "previous": hashes[-1] if hashes else _GENESIS}
        digest = hashlib.sha256(canonical(body)).hexdigest()
        signature = self._key.sign(digest.encode(), purpose=_PURPOSE)
        line = canonical({**body, "hash": digest, "signature": signature}) + b"\n"
        self._book.apply({**body, "hash": digest})  # first: what breaks a rule is never written
        file.seek(0, os.SEEK_END)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
        self._data, self._failed = self._data + line, False


def read_ledger(path: Path) -> Book:
    """What a ledger file says, every rule of it checked; the file is not touched.

    Raises:
        LedgerError: the file is absent, damaged, or breaks an invariant.
    """
    book = Book()
    try:
        _take_up(book, path.read_bytes(), path)
    except OSError as error:
        raise LedgerError(f"{path}: the ledger cannot be read ({error.strerror})") from None
    if not book.hashes:
        raise LedgerError(f"{path}: the ledger is empty")
    return book


def canonical(data: dict[str, Any]) -> bytes:
    """Canonical JSON: sorted keys, no white space, no NaN."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _take_up(book: Book, data: bytes, path: Path) -> int:
    """Add the whole lines of some bytes to a book; the length of what is whole.

    Raises:
        LedgerError: a line breaks a rule.
    """
    end = data.rfind(b"\n") + 1
    for line in data[:end].split(b"\n")[:-1]:
        try:
            book.apply(_checked(line, book))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise LedgerError(f"{path}:{len(book.hashes) + 1}: not a ledger entry") from None
        except PrivacyError as fault:
            raise LedgerError(f"{path}:{len(book.hashes) + 1}: {fault}") from None
    return end


def _checked(line: bytes, book: Book) -> dict[str, Any]:
    """The entry of a line that continues a book.

    Raises:
        LedgerError: it does not, or was not signed by the ledger's owner.
    """
    entry: dict[str, Any] = json.loads(line)
    body = {name: value for name, value in entry.items() if name not in ("hash", "signature")}
    whole = (
        line == canonical(entry)
        and entry["sequence"] == len(book.hashes)
        and entry["previous"] == (book.hashes[-1] if book.hashes else _GENESIS)
        and entry["hash"] == hashlib.sha256(canonical(body)).hexdigest()
        and is_signed(entry["hash"].encode(), entry["signature"], purpose=_PURPOSE, public=book.public or entry["key"])
    )
    if not whole:
        raise LedgerError("the hash chain or a signature is broken")
    return entry
