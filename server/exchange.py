"""How the coordinator reaches sites, whatever carries the bytes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from common.errors import ExitCode, PolicyError, ProtocolError
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
    """The sites of a run: name -> address."""

    addresses: Mapping[str, str]

    @property
    def names(self) -> list[str]:
        """Names in alphabetical order, which is the order of every sum."""
        return sorted(self.addresses)


def ask_all(exchange: Exchange, roster: Roster, requests: Mapping[str, Request]) -> dict[str, Reply]:
    """Ask sites by name; every one must answer, and none may refuse.

    Raises:
        PolicyError: a site refused; names the site and the rule.
        ProtocolError: a site did not answer, or answered in another's name.
    """
    bodies = {roster.addresses[name]: request.encode() for name, request in requests.items()}
    answers = exchange.ask(bodies)
    replies = {}
    for name in sorted(requests):
        body = answers.get(roster.addresses[name])
        if body is None:
            raise ProtocolError(f"site {name}: did not answer", ExitCode.TOO_FEW_SITES)
        reply = Reply.decode(body)
        if reply.refused is not None:
            raise PolicyError(f"site {name}: refused ({reply.refused}); its own log says why", _code(reply.refused))
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
    addresses = exchange.sites()
    answers = exchange.ask({address: request.encode() for address in addresses})
    roster: dict[str, str] = {}
    replies: dict[str, Reply] = {}
    for address in addresses:
        reply = Reply.decode(answers[address]) if address in answers else None
        if reply is None:
            continue
        if reply.refused is not None:
            raise PolicyError(f"site {reply.site}: refused ({reply.refused}); its own log says why", _code(reply.refused))
        if reply.site in roster:
            raise ProtocolError(f"site {reply.site}: two sites have this name")
        roster[reply.site], replies[reply.site] = address, reply
    if len(roster) < expected:
        raise ProtocolError(f"sites: {len(roster)} answered, {expected} are needed", ExitCode.TOO_FEW_SITES)
    return Roster(roster), replies


def _code(rule: str) -> ExitCode:
    return ExitCode.__members__.get(rule, ExitCode.POLICY_REFUSED)
