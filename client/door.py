"""The door of a site: who asked, and who answers. The same in simulation and live, whatever carries the bytes.

An order that the coordinator did not sign for this site and its approved study goes no further, and every answer is
signed. What an order may do once it is in is the site's own business, not the door's.
"""

import logging

from client.site import Site
from common.errors import ExitCode, LedgerError, ProtocolError, UntrustedError
from common.privacy.ledger import Head
from common.wire.envelopes import ANY_SITE, Order, answer_to
from common.wire.messages import Request, refusal

_LOG = logging.getLogger(__name__)


class Door:
    """Opens orders, and seals answers.

    Guarantees: the site sees no request but one that the key in its policy signed, for its name and its study; and an
    order for whoever is there only asks who is there. All that is refused here is refused alike.
    """

    def __init__(self, site: Site) -> None:
        """Stand before a site."""
        self._site = site

    def answer(self, envelope: bytes) -> bytes:
        """The signed answer to what came; never raises on what anybody may send."""
        site = self._site
        try:
            order, body = Order.open(envelope, public=site.coordinator, study=site.study, site=site.name)
            request = _identity(body, is_for_all=order.site == ANY_SITE)
        except UntrustedError:
            _LOG.warning("site=%s event=untrusted", site.name)
            return self._sealed(envelope, "", refusal(site.name, ExitCode.UNTRUSTED))
        return self._sealed(envelope, request, site.handle(body))

    def _sealed(self, envelope: bytes, request: str, body: bytes) -> bytes:
        site = self._site
        try:
            head = site.head()
        except LedgerError:  # whatever is wrong with it, an answer says so in its own way
            head = Head("", -1, "")
        return answer_to(
            envelope,
            study=site.study,
            request=request,
            site=site.name,
            policy=site.policy_digest,
            head=head,
            body=body,
            key=site.key,
        )


def _identity(body: bytes, *, is_for_all: bool) -> str:
    """What the ledger knows the request by; empty where the site itself will say that it cannot be read.

    Raises:
        UntrustedError: it is for whoever is there, and asks for more than who is there.
    """
    try:
        request = Request.decode(body)
    except ProtocolError:
        return ""
    if is_for_all and request.kind != "describe":
        raise UntrustedError("order: for no site in particular")
    return request.identity
