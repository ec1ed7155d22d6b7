"""Sealed replies: what a request was answered, for ever, as bytes in the site's own folder."""

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from common.errors import LedgerError
from common.files import trace_of, write_durably


class Replies:
    """The replies of a site, each in a file of its own."""

    def __init__(self, state: Path) -> None:
        """Use the site's own folder."""
        self._state, self._folder = state, state / "replies"

    def check(self, charged: Iterable[tuple[str, str]]) -> None:
        """Refuse a ledger that lacks a charge whose reply is here: it is an older one.

        Args:
            charged: study and request of every charge.

        Raises:
            LedgerError: a reply was never charged, says this ledger.
        """
        known = {self._path(study, request).name for study, request in charged}
        if any(path.name not in known for path in self._folder.glob("*") if path.suffix != ".part"):
            raise LedgerError(f"{self._folder}: holds a reply that the ledger does not know; restore the newest ledger")

    def begin(self, study: str, request: str, digest: str) -> None:
        """Write down, before it is charged, that a request is answered, and what tells that file from a copy of it.

        Raises:
            LedgerError: the disk fails.
        """
        path = self._begun(study, request)
        try:
            write_durably(path, digest.encode())
            write_durably(_trace(path), json.dumps(trace_of(path)).encode())
        except OSError as error:
            raise LedgerError(f"{path}: cannot be written ({error.strerror})") from None

    def end(self, study: str, request: str) -> None:
        """Forget that it is answered: it was, or will not be."""
        with suppress(OSError):  # what is sealed is never answered anew, whatever is written down
            path = self._begun(study, request)
            path.unlink(missing_ok=True)
            _trace(path).unlink(missing_ok=True)

    def is_unfinished(self, study: str, request: str, digest: str) -> bool:
        """Whether the answer to a request was begun here, and its reply was never written.

        False in a copy of the folder, and where one was put back: the reply may have been there, and have left.
        """
        path = self._begun(study, request)
        try:
            is_begun = path.read_text() == digest and json.loads(_trace(path).read_bytes()) == trace_of(path)
        except (OSError, ValueError):
            return False
        return is_begun and not self._path(study, request).exists()

    def write(self, study: str, request: str, body: bytes) -> str:
        """Write a reply, whole or not at all; its SHA-256.

        Raises:
            LedgerError: the disk fails.
        """
        path = self._path(study, request)
        try:
            write_durably(path, body)
        except OSError as error:
            raise LedgerError(f"{path}: the reply cannot be sealed ({error.strerror})") from None
        return hashlib.sha256(body).hexdigest()

    def read(self, study: str, request: str) -> bytes:
        """A reply that was written.

        Raises:
            LedgerError: it is not there.
        """
        try:
            return self._path(study, request).read_bytes()
        except OSError:
            raise LedgerError("request: was charged, and its reply was lost in a crash") from None

    def is_whole(self, study: str, request: str, digest: str) -> bool:
        """Whether a reply is there, with the SHA-256 that was sealed."""
        try:
            return hashlib.sha256(self.read(study, request)).hexdigest() == digest
        except LedgerError:
            return False

    def _path(self, study: str, request: str) -> Path:
        return self._folder / hashlib.sha256(f"{study}/{request}".encode()).hexdigest()

    def _begun(self, study: str, request: str) -> Path:
        return self._state / "begun" / self._path(study, request).name


def _trace(path: Path) -> Path:
    return path.with_name(path.name + ".trace")
