"""What a site knows of its peers' ledgers, and whether its peers have confirmed its own since it started."""

import json
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from common.errors import ExitCode, LedgerError, PolicyError, ProtocolError
from common.files import write_durably
from common.privacy.ledger import Head, Ledger
from common.privacy.signatures import SigningKey
from common.privacy.witness import (
    NOTHING,
    Attestation,
    Statement,
    choose_witnesses,
    continues,
    is_newer,
    state_head,
)

WITNESS_SCHEMA = "privshare.witness/1"
_RECENT = 8
"""Entries before the head that every statement shows: what peers may have missed without asking twice."""


class Witnesses:
    """A site as a witness of others, and the others as witnesses of it.

    Guarantees: `require` returns only after so many of the peers that are asked, by keys that the site's policy names,
    signed for this start's nonce that the newest head they know is the last one that this site stated; and never again
    once anybody signed or showed one that the ledger lacks. So of two machines that carry on copies of one ledger, one
    of them makes one release at most that the other's ledger lacks.

    Attributes:
        asked: names of the peers that must confirm, or some of whom must; see `choose_witnesses`.
        nonce: of this start.
    """

    def __init__(
        self,
        path: Path,
        *,
        site: str,
        key: SigningKey,
        ledger: Ledger,
        peers: Mapping[str, str],
        needed: int | None,
    ) -> None:
        """Read what was witnessed before.

        Args:
            path: of the file that keeps the newest statement of each site, this one's own too.
            site: this site's name.
            key: this site's.
            ledger: this site's.
            peers: public keys of the other sites, by name.
            needed: how many of those that are asked must confirm before anything is spent; None for all.

        Raises:
            LedgerError: the file is damaged, or the ledger lacks an entry that it was seen with.
        """
        self._path, self._site, self._key, self._ledger = path, site, key, ledger
        self._keys = {**peers, site: key.public}
        self.asked = choose_witnesses(peers, key)
        self._needed = len(self.asked) if needed is None else needed
        self._confirmed: dict[str, int] = {}
        self._attested: dict[str, int] = {}
        self._stated = NOTHING
        self.nonce = secrets.token_hex(16)
        self._seen = _read(path, self._keys)
        self._behind = False
        if (own := self._seen.get(site)) is not None:
            self._check_own(own.ledger, own.sequence, own.hash, ledger.hashes())

    def statement(self) -> Statement:
        """This site's head, signed; peers must attest it before the next release."""
        hashes = self._ledger.hashes()
        newest = len(hashes) - 1
        shown = {*range(max(0, newest - _RECENT), newest), *self._attested.values()}
        past = {number: hashes[number] for number in shown if number < newest}
        stated = state_head(self._site, Head(hashes[0], newest, hashes[-1]), self._key, past=past)
        self._stated = newest
        return stated

    def note(self, statements: Iterable[Statement]) -> None:
        """Keep what is newer; a statement of a site that is no peer is passed over.

        So is one that does not show the head that was seen before: its site learns that head from the attestation, and
        shows it in its next statement, if its ledger holds it.

        Raises:
            LedgerError: this site's own ledger is behind, or the newer ones cannot be kept.
            ProtocolError: a peer shows two ledgers, or did not sign what is said in its name.
        """
        newer: dict[str, Statement] = {}
        for statement in statements:
            public = self._keys.get(statement.site)
            if public is None:
                continue
            if not statement.is_by(public):
                raise ProtocolError(f"site {statement.site}: did not sign what is said of its ledger")
            if statement.site == self._site:
                self._check_own(statement.ledger, statement.sequence, statement.hash, self._ledger.hashes())
            known = (self._seen | newer).get(statement.site)
            is_own = statement.site == self._site  # checked against the ledger itself
            if is_newer(statement, known) and (is_own or continues(statement, known)):
                newer[statement.site] = statement
        if newer:
            self._keep(self._seen | newer)

    def attest(self, nonces: Mapping[str, str], *, of: Collection[str] | None = None) -> list[Attestation]:
        """What this site saw of each peer, or of some, signed, for whoever asks with a nonce and for the record."""
        peers = (site for site in sorted(self._keys) if site != self._site and (of is None or site in of))
        return [
            Attestation.of(self._site, site, self._seen.get(site), nonces.get(site, "")).signed(self._key)
            for site in peers
        ]

    def take(self, attestations: Iterable[Attestation]) -> int:
        """Take up what peers attest of this site; how many of those that are asked have confirmed its last statement.

        Raises:
            LedgerError: a peer saw an entry that the ledger lacks.
        """
        hashes = self._ledger.hashes()
        for one in attestations:
            public = self._keys.get(one.witness)
            if one.witness == self._site or public is None or one.site != self._site or not one.is_by(public):
                continue
            if one.sequence != NOTHING:
                self._check_own(one.ledger, one.sequence, one.hash, hashes)
                self._attested[one.witness] = one.sequence
            if one.nonce == self.nonce and one.witness in self.asked:
                self._confirmed[one.witness] = one.sequence
        return self._confirmations()

    def require(self) -> None:
        """Refuse to spend before enough peers have confirmed the ledger.

        Raises:
            LedgerError: the ledger is behind.
            PolicyError: too few have.
        """
        if self._behind:
            raise LedgerError("ledger: lacks entries that others have seen; restore the newest one")
        if self._confirmations() < self._needed:
            raise PolicyError(
                f"witnesses: {self._needed} peers must confirm this site's ledger, since it started and since its last "
                f"release; {self._confirmations()} have",
                ExitCode.UNCONFIRMED,
            )

    def _confirmations(self) -> int:
        return sum(sequence >= self._stated for sequence in self._confirmed.values())

    def _check_own(self, ledger: str, sequence: int, digest: str, hashes: Sequence[str]) -> None:
        """Refuse to go on if the ledger, by the hashes of its entries, lacks one that was seen."""
        if ledger != hashes[0] or not 0 <= sequence < len(hashes) or hashes[sequence] != digest:
            self._behind = True
            raise LedgerError("ledger: lacks entries that others have seen; restore the newest one")

    def _keep(self, seen: dict[str, Statement]) -> None:
        said = {site: statement.as_dict() for site, statement in sorted(seen.items())}
        body = json.dumps({"schema": WITNESS_SCHEMA, "seen": said}, indent=1).encode()
        try:
            write_durably(self._path, body)
        except OSError as error:
            raise LedgerError(f"{self._path}: cannot be written ({error.strerror})") from None
        self._seen = seen  # nothing is attested that a restart would forget


def _read(path: Path, keys: Mapping[str, str]) -> dict[str, Statement]:
    if not path.exists():
        return {}
    try:
        data = json.loads(path.read_bytes())
        seen = {str(site): Statement.from_dict(one) for site, one in data["seen"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ProtocolError):
        raise LedgerError(f"{path}: what was seen of ledgers cannot be read") from None
    if data.get("schema") != WITNESS_SCHEMA:
        raise LedgerError(f"{path}: expected {WITNESS_SCHEMA}")
    # Of sites that are peers no more, nothing is said; a file that was written by hand says nothing either.
    return {site: one for site, one in seen.items() if site in keys and one.site == site and one.is_by(keys[site])}
