"""The record of what a site has spent: append-only, hash-chained, on disk before any noise is drawn.

One line of JSON an entry. The file is authoritative: it is read and checked again, under a lock, before each spend, so
that two processes of one site cannot spend the same budget twice. It is the site's own; a coordinator's copy plans,
it does not authorise.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from common.errors import LedgerError
from common.files import sync_folder
from common.privacy import budget
from common.privacy.events import GaussianEvent

LEDGER_SCHEMA = "privshare.ledger/1"
_GENESIS = "0" * 64


@dataclass(frozen=True)
class Charge:
    """One authorised spend: the request that asked for it, a digest of what was asked, and the event."""

    request: str
    request_digest: str
    event: GaussianEvent


class Ledger:
    """The ledger of one site for one study.

    Guarantees: when `authorise` returns, the charge is on disk (fsync of file and, when it is new, of its folder); when
    it refuses, nothing was written; when the disk fails, the charge may stand, which costs budget and never privacy;
    the spends of each account never sum to more than its budget.
    Edge cases: a last line cut short by a crash was never authorised, and is dropped; any other damage is refused.
    """

    def __init__(self, path: Path, *, site: str, study: str, squared_mu: float) -> None:
        """Open or create the ledger.

        Args:
            path: of the JSONL file.
            site: name of the site.
            study: digest of the study.
            squared_mu: the budget of each account; fixed for ever by the first opening.

        Raises:
            LedgerError: the file is damaged, or belongs to another site, study or budget.
        """
        self._path = path
        self._opening = {
            "schema": LEDGER_SCHEMA,
            "type": "open",
            "site": site,
            "study": study,
            "squared_mu": squared_mu,
        }
        with self._locked() as file:
            entries = _read(file, path)
            if not entries:
                _append(file, self._opening, previous=_GENESIS, sequence=0)
                sync_folder(path.parent)
            elif any(entries[0].get(key) != value for key, value in self._opening.items()):
                raise LedgerError(f"{path}: the ledger belongs to another site, study or budget")

    @property
    def squared_mu(self) -> float:
        """The budget of each account, as squared mu."""
        return float(self._opening["squared_mu"])  # type: ignore[arg-type]

    def authorise(self, charge: Charge) -> None:
        """Refuse, or write the charge down for good. Noise may be drawn only after this returns.

        Raises:
            BudgetError: the spend would pass the budget.
            LedgerError: the request was charged before, or the file is damaged or cannot be written.
        """
        with self._locked() as file:
            entries = _read(file, self._path)
            charges = _charges(entries, self._path)
            if any(earlier.request == charge.request for earlier in charges):
                raise LedgerError(f"request {charge.request}: was charged before; a request is released once")
            spends = [earlier.event.spend for earlier in charges if earlier.event.account == charge.event.account]
            budget.check_spend(spends, charge.event.spend, budget=self.squared_mu)
            entry = {
                "type": "charge",
                "request": charge.request,
                "request_digest": charge.request_digest,
                "event": charge.event.as_dict(),
            }
            _append(file, entry, previous=entries[-1]["hash"], sequence=len(entries))

    def charges(self) -> list[Charge]:
        """Every charge so far, oldest first."""
        with self._locked() as file:
            return _charges(_read(file, self._path), self._path)

    def head(self) -> str:
        """Hash of the last entry."""
        with self._locked() as file:
            return str(_read(file, self._path)[-1]["hash"])

    @contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield file
        except OSError as error:
            raise LedgerError(f"{self._path}: the ledger cannot be written ({error.strerror})") from None


def read_charges(path: Path) -> list[Charge]:
    """The charges in a ledger file, its chain checked.

    Raises:
        LedgerError: the file is absent or damaged.
    """
    try:
        with path.open("rb") as file:
            return _charges(_parse(file.read(), path)[0], path)
    except OSError as error:
        raise LedgerError(f"{path}: the ledger cannot be read ({error.strerror})") from None


def canonical(data: dict[str, Any]) -> bytes:
    """Canonical JSON: sorted keys, no white space, no NaN."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _read(file: BinaryIO, path: Path) -> list[dict[str, Any]]:
    """All entries; a torn last line is cut off the file."""
    file.seek(0)
    entries, end = _parse(file.read(), path)
    file.truncate(end)
    return entries


def _parse(data: bytes, path: Path) -> tuple[list[dict[str, Any]], int]:
    """The entries of a ledger and the length of what is whole; the chain is checked."""
    end = data.rfind(b"\n") + 1
    entries: list[dict[str, Any]] = []
    for number, line in enumerate(data[:end].split(b"\n")[:-1]):
        try:
            entry = json.loads(line)
            claimed = entry.pop("hash")
            whole = (
                entry["sequence"] == number
                and entry["previous"] == (entries[-1]["hash"] if entries else _GENESIS)
                and claimed == hashlib.sha256(canonical(entry)).hexdigest()
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            raise LedgerError(f"{path}:{number + 1}: not a ledger entry") from None
        if not whole:
            raise LedgerError(f"{path}:{number + 1}: the hash chain is broken")
        entries.append({**entry, "hash": claimed})
    return entries, end


def _charges(entries: list[dict[str, Any]], path: Path) -> list[Charge]:
    """Every charge. An entry of a kind that is not known could be a spend: it is refused, not skipped."""
    try:
        if any(entry["type"] != ("charge" if number else "open") for number, entry in enumerate(entries)):
            raise LedgerError(f"{path}: an entry is of a kind that is not known here")
        return [
            Charge(str(entry["request"]), str(entry["request_digest"]), GaussianEvent.from_dict(entry["event"]))
            for entry in entries[1:]
        ]
    except (KeyError, TypeError, AttributeError):
        raise LedgerError(f"{path}: an entry lacks what its kind has") from None


def _append(file: BinaryIO, entry: dict[str, Any], *, previous: str, sequence: int) -> None:
    body = {**entry, "sequence": sequence, "previous": previous}
    line = canonical({**body, "hash": hashlib.sha256(canonical(body)).hexdigest()}) + b"\n"
    file.seek(0, os.SEEK_END)
    file.write(line)
    file.flush()
    os.fsync(file.fileno())
