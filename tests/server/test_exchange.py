"""Who answered, who refused, who speaks in another's name: each ends with its own error and exit code."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from common.errors import ExitCode, PolicyError, PrivShareError, ProtocolError, TooFewSitesError, UntrustedError
from common.privacy.ledger import Head
from common.privacy.signatures import SigningKey
from common.wire.envelopes import Order, answer_to
from common.wire.messages import Reply, Request, refusal
from server.exchange import Answers, Credentials, Roster, call_roll

STUDY = "0" * 64
REQUEST = Request("describe", STUDY, "run", "describe")
COORDINATOR = SigningKey.from_seed(b"c" * 32)
KEYS = {name: SigningKey.from_seed(name.ljust(32, ".").encode()) for name in ("a", "b", "c", "anna", "mia", "zoe")}


def credentials(*names: str) -> Credentials:
    return Credentials(COORDINATOR, {name: KEYS[name].public for name in names})


def sign(envelope: bytes, site: str, body: bytes, *, key: SigningKey | None = None, study: str = STUDY) -> bytes:
    """A site's answer to what came."""
    return answer_to(
        envelope,
        study=study,
        request="run/describe",
        site=site,
        policy="1" * 64,
        head=Head("", 3, "2" * 64),
        body=body,
        key=key or KEYS[site],
    )


class Sites:
    """An exchange over sites that answer with fixed bodies, by address: (who signs, what); None never comes."""

    def __init__(self, answers: Mapping[str, tuple[str, bytes] | None]) -> None:
        self.answers = answers
        self.asked: list[dict[str, tuple[str, bytes]]] = []
        self.sent: dict[str, bytes] = {}

    def sites(self) -> list[str]:
        return list(self.answers)

    def ask(self, bodies: Mapping[str, bytes]) -> dict[str, bytes]:
        opened = {}
        for address, envelope in bodies.items():
            order, body = open_order(envelope)
            opened[address] = (order.site, body)
        self.asked.append(opened)
        self.sent = dict(bodies)
        found = {address: self.answers[address] for address in reversed(bodies)}
        return {address: sign(bodies[address], *answer) for address, answer in found.items() if answer is not None}


def open_order(envelope: bytes) -> tuple[Order, bytes]:
    """Whatever site it is for."""
    for site in ("", *KEYS):
        try:
            return Order.open(envelope, public=COORDINATOR.public, study=STUDY, site=site)
        except UntrustedError:
            continue
    raise AssertionError("not an order")


def hello(site: str) -> tuple[str, bytes]:
    return site, Reply(site, {"bound": 1.0}).encode()


def roster(answers: Mapping[str, tuple[str, bytes] | None]) -> Roster:
    """Of sites a, b, c at addresses 1, 2, 3, that answer so."""
    return Roster(Sites(answers), credentials("a", "b", "c"), {"a": "1", "b": "2", "c": "3"})


def ask_all(answers: Mapping[str, tuple[str, bytes] | None]) -> Answers:
    return roster(answers).ask(dict.fromkeys("cab", REQUEST))


def roll(answers: Mapping[str, tuple[str, bytes] | None]) -> Answers:
    return call_roll(Sites(answers), REQUEST, credentials("a", "b", "c"))[1]


def failure(answers: Mapping[str, tuple[str, bytes] | None], site: str = "b") -> PrivShareError:
    """Of a site, the same when it is asked by name and at the roll call; the others are well."""
    found = []
    for answered in (ask_all(answers), roll(answers)):
        assert set(answered.failures) == {site}
        assert list(answered.replies) == sorted({"a", "b", "c"} - {site})
        with pytest.raises(type(answered.failures[site])):
            answered.whole()
        assert answered.of_at_least(2) == answered.replies
        found.append(answered.failures[site])
        assert str(found[-1]).isprintable()
    assert (type(found[0]), str(found[0])) == (type(found[1]), str(found[1]))
    return found[0]


def test_sites_are_listed_by_name_whatever_their_addresses() -> None:
    exchange = Sites({"9": hello("anna"), "10": hello("zoe"), "2": hello("mia")})
    found, answers = call_roll(exchange, REQUEST, credentials("zoe", "mia", "anna"))
    assert found.names == ["anna", "mia", "zoe"]
    assert found.addresses == {"anna": "9", "mia": "2", "zoe": "10"}
    assert {name: reply.site for name, reply in answers.whole().items()} == {name: name for name in found.names}
    assert exchange.asked == [dict.fromkeys(["9", "10", "2"], ("", REQUEST.encode()))]


def test_each_site_gets_its_own_order_and_replies_come_in_the_order_of_names() -> None:
    found = roster({"1": hello("a"), "2": hello("b"), "3": hello("c")})
    requests = {name: Request("train", STUDY, "run", f"for-{name}") for name in ("c", "a")}
    assert list(found.ask(requests).whole()) == ["a", "c"]
    assert isinstance(found.exchange, Sites)
    assert found.exchange.asked == [{"3": ("c", requests["c"].encode()), "1": ("a", requests["a"].encode())}]


def test_no_two_orders_are_alike() -> None:
    found = roster({"1": hello("a"), "2": hello("b"), "3": hello("c")})
    assert isinstance(found.exchange, Sites)
    sent = set()
    for _ in range(3):
        found.ask(dict.fromkeys("abc", REQUEST)).whole()
        sent |= set(found.exchange.sent.values())
    assert len(sent) == 9


def test_a_site_that_does_not_answer_is_named() -> None:
    answers = ask_all({"1": hello("a"), "2": None, "3": hello("c")})
    with pytest.raises(ProtocolError, match=r"^site b: did not answer$") as error:
        answers.whole()
    assert error.value.code == ExitCode.NO_ANSWER


@pytest.mark.parametrize(
    "code", [ExitCode.BUDGET_REFUSED, ExitCode.POLICY_REFUSED, ExitCode.TABLE_NOT_FOUND, ExitCode.INTERNAL]
)
def test_a_refusal_names_the_site_and_the_rule_and_ends_with_its_code(code: ExitCode) -> None:
    error = failure({"1": hello("a"), "2": ("b", refusal("b", code)), "3": hello("c")})
    assert isinstance(error, PolicyError)
    assert str(error) == f"site b: refused ({code.name}); its own log says why"
    assert error.code == code


@pytest.mark.parametrize("rule", ["OK", "NO_SUCH_RULE", "", "ok", "__class__"])
def test_a_refusal_by_an_unknown_rule_is_one_of_policy_and_never_ends_well(rule: str) -> None:
    error = failure({"1": hello("a"), "2": ("b", Reply("b", refused=rule).encode()), "3": hello("c")})
    assert isinstance(error, PolicyError)
    assert error.code == ExitCode.POLICY_REFUSED


def test_a_reply_in_another_s_name_is_refused() -> None:
    error = failure({"1": hello("a"), "2": ("b", hello("c")[1]), "3": hello("c")})
    assert str(error) == "site b: another site answered in its place"
    assert error.code == ExitCode.PROTOCOL


def test_another_site_s_answer_is_none() -> None:
    # Well signed, for this very order: by c, where b was asked.
    error = ask_all({"1": hello("a"), "2": hello("c"), "3": hello("c")}).failures["b"]
    assert isinstance(error, UntrustedError)
    assert error.code == ExitCode.UNTRUSTED


class Forger(Sites):
    """An exchange that puts something else in the place of b's answer."""

    def __init__(self, how: str) -> None:
        super().__init__({"1": hello("a"), "2": hello("b"), "3": hello("c")})
        self.how = how
        self.earlier: dict[str, bytes] = {}

    def ask(self, bodies: Mapping[str, bytes]) -> dict[str, bytes]:
        found = super().ask(bodies)
        own, body = found["2"], hello("b")[1]
        forged = {
            "replayed": self.earlier.get("2", b""),
            "of another order": sign(bodies["1"] if bodies["1"] != bodies["2"] else b"", "b", body),
            "of another key": sign(bodies["2"], "b", body, key=KEYS["c"]),
            "by the coordinator": sign(bodies["2"], "b", body, key=COORDINATOR),
            "of another study": sign(bodies["2"], "b", body, study="f" * 64),
            "cut": own[:-1],
            "longer": own + b"\0",
            "flipped": own[:-1] + bytes([own[-1] ^ 1]),
            "header flipped": own[:40] + bytes([own[40] ^ 1]) + own[41:],
            "empty": b"",
            "an order": bodies["2"],
        }
        self.earlier = found
        return {**found, "2": forged[self.how]}


HOWS = [
    *("replayed", "of another order", "of another key", "by the coordinator", "of another study"),
    *("cut", "longer", "flipped", "header flipped", "empty", "an order"),
]


@pytest.mark.parametrize("how", HOWS)
def test_a_forged_answer_is_refused_and_the_others_are_heard(how: str) -> None:
    exchange = Forger(how)
    found = Roster(exchange, credentials("a", "b", "c"), {"a": "1", "b": "2", "c": "3"})
    for number in range(2):
        answers = found.ask(dict.fromkeys("abc", replace(REQUEST, name=str(number))))
        assert list(answers.replies) == ["a", "c"]
        assert isinstance(answers.failures["b"], UntrustedError)
        assert str(answers.failures["b"]) == "site b: an answer that it did not sign, or to another order"


@pytest.mark.parametrize("how", [how for how in HOWS if how != "of another order"])
def test_a_forger_is_not_on_the_roll(how: str) -> None:
    found, answers = call_roll(Forger(how), REQUEST, credentials("a", "b", "c"))
    assert found.names == list(answers.replies) == ["a", "c"]


def test_two_sites_of_one_name_are_refused_and_the_others_are_on_the_roll() -> None:
    there = Sites({"1": hello("a"), "2": hello("b"), "3": hello("a"), "4": hello("a")})
    found, answers = call_roll(there, REQUEST, credentials("a", "b", "c"))
    assert found.names == list(answers.replies) == ["b"]
    assert str(answers.failures["a"]) == "site a: two sites have this name"
    with pytest.raises(ProtocolError, match=r"^site a: two sites have this name$") as error:
        answers.whole()
    assert error.value.code == ExitCode.PROTOCOL


def test_a_member_whose_name_a_stranger_uses_too_is_on_the_roll() -> None:
    exchange = Forger("of another key")
    exchange.answers = {"1": hello("b"), "2": hello("b"), "3": hello("c")}
    found, answers = call_roll(exchange, REQUEST, credentials("b", "c"))
    assert found.addresses == {"b": "1", "c": "3"}
    assert answers.failures == {}


def test_a_stranger_is_passed_over() -> None:
    found, answers = call_roll(Sites({"1": hello("a"), "2": hello("zoe")}), REQUEST, credentials("a"))
    assert found.names == ["a"]
    assert list(answers.whole()) == ["a"]


@pytest.mark.parametrize("answers", [{}, {"1": None, "2": None}, {"1": hello("a"), "2": None}])
def test_too_few_sites_are_refused_with_their_number(answers: dict[str, tuple[str, bytes] | None]) -> None:
    with pytest.raises(TooFewSitesError) as error:
        roll(answers).of_at_least(2)
    answered = sum(body is not None for body in answers.values())
    assert str(error.value) == f"sites: {answered} answered, 2 are needed"
    assert error.value.code == ExitCode.TOO_FEW_SITES


def test_a_site_that_is_not_there_at_the_roll_call_is_not_asked_later() -> None:
    exchange = Sites({"1": hello("a"), "2": None, "3": hello("c")})
    found, _ = call_roll(exchange, REQUEST, credentials("a", "b", "c"))
    assert found.names == ["a", "c"]
    assert list(found.ask(dict.fromkeys(found.names, REQUEST)).whole()) == ["a", "c"]
    assert set(exchange.asked[-1]) == {"1", "3"}


@pytest.mark.parametrize("body", [b"", b"nonsense", b"\x80\x05K\x01.", hello("b")[1][:-1], REQUEST.encode()])
def test_an_answer_that_is_no_reply_is_refused(body: bytes) -> None:
    error = failure({"1": hello("a"), "2": ("b", body), "3": hello("c")})
    assert isinstance(error, ProtocolError)
    assert error.code == ExitCode.PROTOCOL


def test_a_check_puts_a_failure_in_the_place_of_a_reply() -> None:
    def check(site: str, reply: Reply) -> None:
        assert reply.site == site
        if site == "b":
            raise ProtocolError("site b: no good")

    answers = ask_all({"1": hello("a"), "2": hello("b"), "3": None}).checked(check)
    assert list(answers.replies) == ["a"]
    assert [str(fault) for fault in answers.failures.values()] == ["site b: no good", "site c: did not answer"]
