"""How the coordinator reaches sites, whatever carries the bytes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from common.errors import ExitCode, PolicyError, ProtocolError, TooFewSitesError
from common.wire.messages import Reply, Request


class Exchange(Protocol):
    """Sends bodies to sites and brings theirs back."""

    def sites(self) -> list[str]:
        """Addresses of the sites that can be asked, in a fixed order."""
        ...

    def ask(self, bodies: Mapping[str, bytes]) -> dict[str, bytes]:
        """Send each address its body; the replies of those that answered, by address."""
        ...


@dataclass(frozen=True)
class Roster:
    """The sites of a run, by name, and how they are reached."""

    exchange: Exchange
    addresses: Mapping[str, str]

    @property
    def names(self) -> list[str]:
        """Names in alphabetical order, which is the order of every sum."""
        return sorted(self.addresses)

    def ask(self, requests: Mapping[str, Request]) -> dict[str, Reply]:
        """Ask sites by name; every one must answer, and none may refuse.

        Raises:
            PolicyError: a site refused; names the site and the rule.
            ProtocolError: a site did not answer, or answered in another's name.
        """
        answers = self.exchange.ask({self.addresses[name]: request.encode() for name, request in requests.items()})
        replies = {}
        for name in sorted(requests):
            body = answers.get(self.addresses[name])
            if body is None:
                raise ProtocolError(f"site {name}: did not answer", ExitCode.TOO_FEW_SITES)
            reply = _accepted(body)
            if reply.site != name:
                raise ProtocolError(f"site {name}: another site answered in its place")
            replies[name] = reply
        return replies


def call_roll(exchange: Exchange, request: Request, *, expected: int) -> tuple[Roster, dict[str, Reply]]:
    """Ask every address who it is.

    Raises:
        TooFewSitesError, ProtocolError: fewer sites than expected, or two of one name.
        PolicyError: a site refused the study.
    """
    answers = exchange.ask({address: request.encode() for address in exchange.sites()})
    addresses: dict[str, str] = {}
    replies: dict[str, Reply] = {}
    for address in sorted(answers):
        reply = _accepted(answers[address])
        if reply.site in addresses:
            raise ProtocolError(f"site {reply.site}: two sites have this name")
        addresses[reply.site], replies[reply.site] = address, reply
    if len(addresses) < expected:
        raise TooFewSitesError(f"sites: {len(addresses)} answered, {expected} are needed")
    return Roster(exchange, addresses), replies


def _accepted(body: bytes) -> Reply:
    reply = Reply.decode(body)
    if reply.refused is not None:
        code = ExitCode.__members__.get(reply.refused, ExitCode.POLICY_REFUSED)
        if code == ExitCode.OK:  # a refusal never ends a command well, whatever the site calls it
            code = ExitCode.POLICY_REFUSED
        raise PolicyError(f"site {reply.site}: refused ({code.name}); its own log says why", code)
    return reply
