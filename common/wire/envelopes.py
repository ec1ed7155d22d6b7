"""Who says what to whom: signed orders of a coordinator, and signed replies of sites.

A transport can show who is connected. It cannot show who wrote a message, nor in answer to what, so nothing rests on
it: an order is the coordinator's by its Ed25519 signature, is for one study and one site, and is different each time; a
reply is a site's by its signature, and answers one order alone.

Guarantees: a body that was changed, was signed by anybody else, is for another study or another site, or answers
another order is refused before a byte of it is read as a message.
What it cannot: an order that is repeated is a valid order. Sites answer a repeated one with the same release.
"""

import hashlib
import json
import secrets
import struct
from dataclasses import dataclass
from typing import Any, Final, Self

from common.errors import UntrustedError
from common.privacy.ledger import Head, canonical
from common.privacy.signatures import SigningKey, is_signed
from common.wire.messages import MAX_BODY

ORDER_SCHEMA: Final = "privshare.order/1"
REPLY_SCHEMA: Final = "privshare.reply/1"
ANY_SITE: Final = ""
"""Whom an order is for that asks who is there."""
_MOST_HEADER = 16_384
_SIGNATURE_BYTES = 64
_LENGTH = struct.Struct(">I")


@dataclass(frozen=True)
class Order:
    """What a coordinator signs.

    study: digest of the study.
    site: name of the site that it is for; `ANY_SITE` for whoever is there.
    nonce: drawn for this order, so that no earlier reply answers it.
    body: SHA-256 of the request's body.
    """

    study: str
    site: str
    nonce: str
    body: str

    @classmethod
    def of(cls, body: bytes, *, study: str, site: str) -> Self:
        """A new order around a request's body."""
        return cls(study, site, secrets.token_hex(16), hashlib.sha256(body).hexdigest())

    @property
    def digest(self) -> str:
        """SHA-256, by which replies name it."""
        return hashlib.sha256(canonical({"schema": ORDER_SCHEMA, **vars(self)})).hexdigest()

    def seal(self, body: bytes, key: SigningKey) -> bytes:
        """What travels."""
        return _seal({"schema": ORDER_SCHEMA, **vars(self)}, body, key)

    @classmethod
    def open(cls, envelope: bytes, *, public: str, study: str, site: str) -> tuple[Self, bytes]:
        """An order and the request's body, if they are the coordinator's, for this study and this site.

        Args:
            envelope: what came.
            public: the coordinator's key.
            study: digest of the study that the site approved.
            site: its name.

        Raises:
            UntrustedError: anything else; which, it does not say.
        """
        header, body = _open(envelope, ORDER_SCHEMA, public)
        try:
            order = cls(**header)
        except TypeError:
            raise UntrustedError(_NOT_OURS) from None
        if order.study != study or order.site not in (site, ANY_SITE):
            raise UntrustedError(_NOT_OURS)
        return order, body


@dataclass(frozen=True)
class Answer:
    """What a site signs.

    study: digest of the study.
    request: identity of the request, as the site's ledger knows it; empty where the order was refused unread.
    site: its name.
    policy: SHA-256 of the site's policy file.
    sequence, head: of the newest entry of the site's ledger.
    order: digest of the order that it answers.
    body: SHA-256 of the reply's body.
    """

    study: str
    request: str
    site: str
    policy: str
    sequence: int
    head: str
    order: str
    body: str

    def seal(self, body: bytes, key: SigningKey) -> bytes:
        """What travels."""
        return _seal({"schema": REPLY_SCHEMA, **vars(self)}, body, key)

    @classmethod
    def open(cls, envelope: bytes, *, public: str, order: Order) -> tuple[Self, bytes]:
        """A site's answer to an order, and the reply's body.

        Args:
            envelope: what came.
            public: the site's key.
            order: that was sent.

        Raises:
            UntrustedError: not signed by the site, or the answer to something else.
        """
        header, body = _open(envelope, REPLY_SCHEMA, public)
        try:
            answer = cls(**header)
        except TypeError:
            raise UntrustedError(_NOT_OURS) from None
        if (answer.study, answer.order) != (order.study, order.digest) or order.site not in (answer.site, ANY_SITE):
            raise UntrustedError(_NOT_OURS)
        return answer, body


def answer_to(
    envelope: bytes, *, study: str, request: str, site: str, policy: str, head: Head, body: bytes, key: SigningKey
) -> bytes:
    """A site's signed answer to whatever order came in an envelope, readable or not."""
    return Answer(
        study, request, site, policy, head.sequence, head.hash, _named_order(envelope), hashlib.sha256(body).hexdigest()
    ).seal(body, key)


def claimed_site(envelope: bytes) -> str:
    """The site that an answer says it is from, before any signature is checked.

    Raises:
        UntrustedError: not an envelope.
    """
    site = _split(envelope)[0].get("site")
    if not isinstance(site, str):
        raise UntrustedError(_NOT_OURS)
    return site


_NOT_OURS: Final = "envelope: not signed by whom it should be, or for something else"


def _seal(header: dict[str, Any], body: bytes, key: SigningKey) -> bytes:
    text = canonical(header)
    return _LENGTH.pack(len(text)) + text + bytes.fromhex(key.sign(text, purpose=header["schema"])) + body


def _split(envelope: bytes) -> tuple[dict[str, Any], bytes, bytes, bytes]:
    """Header as read, header as it lies, signature and body."""
    if len(envelope) > MAX_BODY + _MOST_HEADER:
        raise UntrustedError(_NOT_OURS)
    try:
        (length,) = _LENGTH.unpack_from(envelope)
        begin = _LENGTH.size + length
        if length > _MOST_HEADER or len(envelope) < begin + _SIGNATURE_BYTES:
            raise UntrustedError(_NOT_OURS)
        text = envelope[_LENGTH.size : begin]
        header = json.loads(text)
        # One spelling alone: what one reader takes for a header no other takes for another one.
        if not isinstance(header, dict) or canonical(header) != text:
            raise UntrustedError(_NOT_OURS)
    except (struct.error, ValueError, RecursionError):
        raise UntrustedError(_NOT_OURS) from None
    return header, text, envelope[begin : begin + _SIGNATURE_BYTES], envelope[begin + _SIGNATURE_BYTES :]


def _open(envelope: bytes, schema: str, public: str) -> tuple[dict[str, Any], bytes]:
    """Header without its schema, and body.

    Raises:
        UntrustedError: not of the schema, not signed by the key, with a field of another kind, or around another body.
    """
    header, text, signature, body = _split(envelope)
    if header.pop("schema", None) != schema or not is_signed(text, signature.hex(), purpose=schema, public=public):
        raise UntrustedError(_NOT_OURS)
    if any(type(value) is not (int if name == "sequence" else str) for name, value in header.items()):
        raise UntrustedError(_NOT_OURS)
    if header.get("body") != hashlib.sha256(body).hexdigest():
        raise UntrustedError(_NOT_OURS)
    return header, body


def _named_order(envelope: bytes) -> str:
    """SHA-256 of the order's header as it lies; empty where there is none to name."""
    try:
        return hashlib.sha256(_split(envelope)[1]).hexdigest()
    except UntrustedError:
        return ""
