"""Heads of ledgers as others saw them: how a site learns that its own ledger is not the newest one.

A ledger file that was restored from a backup, or that two machines carry on, is whole and says less than was spent. No
file can tell; other parties can. Each site signs the head of its ledger, the coordinator passes the statements on, and
every site keeps the newest of each peer: one that shows, by hashes of earlier entries, that its ledger went on from the
head that was kept before. A site that starts draws a nonce, and spends nothing before enough peers have signed, for
that nonce, the newest head of its ledger that they ever saw, and it is no newer than the ledger.

Guarantees: a site whose ledger lacks an entry that one of the peers it asks has seen does not spend, whatever the
coordinator says, keeps back or repeats.
What it cannot: an entry that no peer has seen. Heads are passed on after every release, so that is one step at most.
Source: the witness of a transparency log (C2SP tlog-cosignature), without the tree.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

from common.errors import ProtocolError
from common.privacy.ledger import Head, canonical
from common.privacy.signatures import SigningKey, is_signed

NOTHING = -1
"""The sequence number in an attestation of a witness that never saw a head of the site."""

MOST_WITNESSES: Final = 16
"""Peers that a site asks to confirm its ledger: all, or of more than these so many of its own choice. If all were
asked, the work of a release would grow with the square of the federation."""

MAX_PAST = 20_000
"""Entries that a statement may show: a few, and one a peer."""


@dataclass(frozen=True)
class _Signed:
    """What one party says and signs.

    signature: by the key of whoever says it.
    """

    signature: str = field(default="", kw_only=True)

    def signed(self, key: SigningKey) -> Self:
        """With a signature."""
        return replace(self, signature=key.sign(self._body(), purpose=self._purpose()))

    def is_by(self, public: str) -> bool:
        """Whether the owner of a public key signed it."""
        return is_signed(self._body(), self.signature, purpose=self._purpose(), public=public)

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Read what came in a message.

        Raises:
            ProtocolError: not of this form.
        """
        names = cls.__dataclass_fields__
        checks = {"sequence": _is_number, "past": _is_past}
        if (
            not isinstance(data, dict)
            or set(data) != set(names)
            or not all(checks.get(name, _is_text)(data[name]) for name in names)
        ):
            raise ProtocolError(f"{cls.__name__.lower()}: not of its form")
        past = {"past": tuple((number, digest) for number, digest in data["past"])} if "past" in names else {}
        return cls(**{**data, **past})

    def as_dict(self) -> dict[str, Any]:
        """For a message; what is in it cannot change, so nothing is copied."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def _purpose(self) -> str:
        return type(self).__name__.lower()

    def _body(self) -> bytes:
        return canonical({name: value for name, value in self.as_dict().items() if name != "signature"})


@dataclass(frozen=True)
class Statement(_Signed):
    """What a site says of its own ledger.

    site: its name.
    ledger: hash of the ledger's first entry.
    sequence: number of its newest entry.
    hash: of its newest entry.
    past: number and hash of some earlier entries: the last few, and those that peers attested.
    """

    site: str
    ledger: str
    sequence: int
    hash: str
    past: tuple[tuple[int, str], ...] = ()

    def hash_at(self, sequence: int) -> str | None:
        """The hash that it shows of an entry; None where it shows none."""
        return dict([*self.past, (self.sequence, self.hash)]).get(sequence)


@dataclass(frozen=True)
class Attestation(_Signed):
    """What a witness says of another site's ledger: the newest head that it ever saw, `NOTHING` where there is none.

    witness: name of the witness, who signs.
    nonce: drawn by the site that asks, so that an old attestation is worth nothing; empty when nobody asks.
    """

    witness: str
    site: str
    ledger: str
    sequence: int
    hash: str
    nonce: str

    @classmethod
    def of(cls, witness: str, site: str, seen: Statement | None, nonce: str) -> Self:
        """Of what was seen; not signed yet."""
        if seen is None:
            return cls(witness, site, "", NOTHING, "", nonce)
        return cls(witness, site, seen.ledger, seen.sequence, seen.hash, nonce)


def choose_witnesses(peers: Mapping[str, str], key: SigningKey) -> tuple[str, ...]:
    """The peers that a site asks to confirm its ledger, in alphabetical order; each time the same.

    Of more than `MOST_WITNESSES` a keyed choice: without the site's key nobody can say beforehand whom it will fall on,
    and so bring in parties of its own to be chosen; a peer that comes or goes changes one of them at most.

    Args:
        peers: public keys of the other sites, by name.
        key: of the site.
    """
    if len(peers) <= MOST_WITNESSES:
        return tuple(sorted(peers))
    secret = bytes.fromhex(key.sign(b"", purpose="choice of witnesses"))

    def place(name: str) -> bytes:
        return hashlib.blake2b(peers[name].encode(), key=secret, digest_size=16).digest()

    return tuple(sorted(sorted(peers, key=place)[:MOST_WITNESSES]))


def state_head(site: str, head: Head, key: SigningKey, *, past: Mapping[int, str] | None = None) -> Statement:
    """A site's signed statement of its ledger's head and some entries before it."""
    return Statement(site, head.ledger, head.sequence, head.hash, tuple(sorted((past or {}).items()))).signed(key)


def continues(statement: Statement, known: Statement | None) -> bool:
    """Whether a statement shows that its ledger went on from the head that was known.

    Of two machines that carry on copies of one ledger, each can show a higher number than the other did last, for ever.
    Only one of them can show the other's last entry.

    Raises:
        ProtocolError: as `is_newer`.
    """
    return is_newer(statement, known) and (known is None or statement.hash_at(known.sequence) == known.hash)


def is_newer(statement: Statement, than: Statement | None) -> bool:
    """Whether a statement says more of the same ledger than another one.

    Raises:
        ProtocolError: they cannot both be of one ledger that only ever grew.
    """
    if than is None:
        return True
    later, earlier = (statement, than) if statement.sequence >= than.sequence else (than, statement)
    if statement.ledger != than.ledger or later.hash_at(earlier.sequence) not in (None, earlier.hash):
        raise ProtocolError(f"site {statement.site}: shows two ledgers; one is a copy, or began anew")
    return statement.sequence > than.sequence


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= 256


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_past(value: object) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) <= MAX_PAST
        and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in value)
        and all(_is_number(number) and _is_text(digest) for number, digest in value)
    )
