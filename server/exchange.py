"""How the coordinator reaches sites, whatever carries the bytes: signed orders out, signed answers in."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from common.errors import ExitCode, PolicyError, PrivShareError, ProtocolError, TooFewSitesError, UntrustedError
from common.privacy.signatures import SigningKey
from common.wire.envelopes import ANY_SITE, Answer, Order, claimed_site
from common.wire.messages import Reply, Request


class Exchange(Protocol):
    """Sends envelopes to sites and brings theirs back."""

    def sites(self) -> list[str]:
        """Addresses of the sites that can be asked, in a fixed order."""
        ...

    def ask(self, bodies: Mapping[str, bytes]) -> dict[str, bytes]:
        """Send each address its envelope; the envelopes of those that answered, by address.

        Empty where what came was no envelope, or larger than one may be.
        """
        ...


@dataclass(frozen=True)
class Credentials:
    """What orders are signed with, and whose answers are believed.

    key: the coordinator's.
    sites: public key of each member of the federation, by name.
    """

    key: SigningKey
    sites: Mapping[str, str]


@dataclass(frozen=True)
class Answers:
    """What came of a question to several sites, by name in alphabetical order.

    replies: of the sites that answered well.
    failures: why there is none of the others: refused, silent, malformed or not theirs.
    """

    replies: dict[str, Reply] = field(default_factory=dict)
    failures: dict[str, PrivShareError] = field(default_factory=dict)

    def whole(self) -> dict[str, Reply]:
        """The replies of all.

        Raises:
            PrivShareError: the first failure.
        """
        return self.of_at_least(len(self.replies) + len(self.failures))

    def of_at_least(self, sites: int) -> dict[str, Reply]:
        """The replies, if there are enough.

        Raises:
            PrivShareError: the first failure, or that nobody was there to fail.
        """
        if len(self.replies) < sites:
            if self.failures:
                raise next(iter(self.failures.values()))
            raise TooFewSitesError(f"sites: {len(self.replies)} answered, {sites} are needed")
        return self.replies

    def checked(self, check: Callable[[str, Reply], object]) -> "Answers":
        """With a failure in the place of each reply that a check does not let pass.

        Args:
            check: of a site's name and reply; raises PrivShareError.
        """
        replies, failures = {}, dict(self.failures)
        for site, reply in self.replies.items():
            try:
                check(site, reply)
            except PrivShareError as fault:
                failures[site] = fault
            else:
                replies[site] = reply
        return Answers(replies, dict(sorted(failures.items())))


@dataclass(frozen=True)
class Roster:
    """The sites of a run, by name, and how they are reached."""

    exchange: Exchange
    credentials: Credentials
    addresses: Mapping[str, str]

    @property
    def names(self) -> list[str]:
        """Names in alphabetical order, which is the order of every sum."""
        return sorted(self.addresses)

    def only(self, names: Collection[str]) -> "Roster":
        """Of some of the sites alone."""
        return replace(self, addresses={name: where for name, where in self.addresses.items() if name in names})

    def ask(self, requests: Mapping[str, Request]) -> Answers:
        """Ask sites by name.

        A failure is a PolicyError where the site refused, an UntrustedError where the answer is not its own, and a
        ProtocolError where it is malformed or never came.
        """
        bodies = {name: requests[name].encode() for name in sorted(requests)}
        orders = {name: Order.of(body, study=requests[name].study, site=name) for name, body in bodies.items()}
        envelopes = self.exchange.ask(
            {self.addresses[name]: order.seal(bodies[name], self.credentials.key) for name, order in orders.items()}
        )
        answers = Answers()
        for name, order in orders.items():
            try:
                found = envelopes.get(self.addresses[name])
                if found is None:
                    raise ProtocolError(f"site {name}: did not answer", ExitCode.NO_ANSWER)
                answers.replies[name] = _reply(found, order, name, self.credentials)
            except PrivShareError as fault:
                answers.failures[name] = fault
        return answers


def call_roll(exchange: Exchange, request: Request, credentials: Credentials) -> tuple[Roster, Answers]:
    """Ask every address who it is; what is no member of the federation is passed over.

    Two sites of one name are a failure of that site: nobody can tell which of them is meant.
    """
    body = request.encode()
    order = Order.of(body, study=request.study, site=ANY_SITE)
    found = exchange.ask(dict.fromkeys(exchange.sites(), order.seal(body, credentials.key)))
    addresses: dict[str, str] = {}
    answers, twice = Answers(), set()
    for address in sorted(found):
        name = _claimed(found[address])
        if name not in credentials.sites:
            continue
        try:
            reply = _reply(found[address], order, name, credentials)
        except PrivShareError as fault:
            answers.failures[name] = fault
            continue
        if name in addresses:
            twice.add(name)
        addresses[name], answers.replies[name] = address, reply
    for name in twice:
        del addresses[name]
        answers.failures[name] = ProtocolError(f"site {name}: two sites have this name")
    named = {name: answers.replies[name] for name in sorted(addresses)}
    # Who is there twice, and once well, is there.
    failures = {name: answers.failures[name] for name in sorted(answers.failures) if name not in named}
    return Roster(exchange, credentials, addresses), Answers(named, failures)


def _claimed(envelope: bytes) -> str:
    try:
        return claimed_site(envelope)
    except UntrustedError:
        return ANY_SITE


def _reply(envelope: bytes, order: Order, name: str, credentials: Credentials) -> Reply:
    """A site's reply to an order.

    Raises:
        UntrustedError: the envelope is not the site's answer to it.
        PolicyError: the site refused; names the site and the rule.
        ProtocolError: malformed, or in another's name.
    """
    try:
        answer, body = Answer.open(envelope, public=credentials.sites[name], order=order)
    except UntrustedError:
        raise UntrustedError(f"site {name}: an answer that it did not sign, or to another order") from None
    try:
        reply = Reply.decode(body)
    except ProtocolError as fault:
        raise ProtocolError(f"site {name}: {fault}") from None
    if answer.site != name or reply.site != name:
        raise ProtocolError(f"site {name}: another site answered in its place")
    if reply.refused is not None:
        code = ExitCode.__members__.get(reply.refused, ExitCode.POLICY_REFUSED)
        if code == ExitCode.OK:  # a refusal never ends a command well, whatever the site calls it
            code = ExitCode.POLICY_REFUSED
        raise PolicyError(f"site {name}: refused ({code.name}); its own log says why", code)
    return reply
