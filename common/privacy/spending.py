"""What a site has spent on a study, by its own ledger and under its own signature.

A coordinator knows what it was answered. A site knows what it was charged, which is more: a reply that was lost was
paid for all the same, and so was an earlier run of the study. Without a site's word a certificate could leave out what
it liked.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from common.errors import LedgerError, ProtocolError
from common.privacy.events import GaussianEvent
from common.privacy.ledger import Head, canonical
from common.privacy.signatures import SigningKey, is_signed

MAX_EVENTS = 20_000
"""Events that one study may have at a site."""
SPENDING_PURPOSE = "spending"


@dataclass(frozen=True)
class Spending:
    """All that a site's ledger charged for a study, up to one of its entries.

    site: its name.
    study: digest of the study.
    head: the newest entry of the ledger when it was said.
    bound: the most that each account of the study may spend, as the study's accountant counts.
    events: of every charge of the study, oldest first, whether or not anybody got the reply.
    signature: by the site's key.
    """

    site: str
    study: str
    head: Head
    bound: float
    events: tuple[GaussianEvent, ...]
    signature: str = ""

    def signed(self, key: SigningKey) -> Self:
        """With a signature."""
        return replace(self, signature=key.sign(canonical(self._said()), purpose=SPENDING_PURPOSE))

    def is_by(self, public: str) -> bool:
        """Whether the owner of a public key signed it."""
        return is_signed(canonical(self._said()), self.signature, purpose=SPENDING_PURPOSE, public=public)

    def as_dict(self) -> dict[str, Any]:
        """For a message or a checkpoint."""
        return {**self._said(), "signature": self.signature}

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Read what came in a message.

        Raises:
            ProtocolError: not of this form.
        """
        try:
            said: dict[str, Any] = dict(data)  # type: ignore[call-overload]
            head = Head(said.pop("ledger"), said.pop("sequence"), said.pop("hash"))
            events = _read(said.pop("events"))
            found = cls(head=head, events=events, **said)
            texts = (found.site, found.study, head.ledger, head.hash, found.signature)
        except (TypeError, ValueError, KeyError, AttributeError, LedgerError):
            raise ProtocolError("spending: not of its form") from None
        numbers = type(head.sequence) is int and isinstance(found.bound, float)
        if not (numbers and all(isinstance(text, str) and len(text) <= 256 for text in texts)):
            raise ProtocolError("spending: not of its form")
        return found

    def _said(self) -> dict[str, Any]:
        return {
            "site": self.site,
            "study": self.study,
            "ledger": self.head.ledger,
            "sequence": self.head.sequence,
            "hash": self.head.hash,
            "bound": self.bound,
            "events": [event.as_dict() for event in self.events],
        }


def _read(events: Sequence[dict[str, Any]]) -> tuple[GaussianEvent, ...]:
    if not isinstance(events, list) or len(events) > MAX_EVENTS:
        raise ValueError("events")
    return tuple(map(GaussianEvent.from_dict, events))
