"""Who answered, who refused, who speaks in another's name: each ends with its own error and exit code."""

from collections.abc import Mapping

import pytest

from common.errors import ExitCode, PolicyError, PrivShareError, ProtocolError, TooFewSitesError
from common.wire.messages import Reply, Request, refusal
from server.exchange import Roster, call_roll

REQUEST = Request("describe", "0" * 64, "run", "describe")


class Sites:
    """An exchange over fixed answers by address; an answer of None never comes."""

    def __init__(self, answers: Mapping[str, bytes | None]) -> None:
        self.answers = answers
        self.asked: list[dict[str, bytes]] = []

    def sites(self) -> list[str]:
        return list(self.answers)

    def ask(self, bodies: Mapping[str, bytes]) -> dict[str, bytes]:
        self.asked.append(dict(bodies))
        found = {address: self.answers[address] for address in reversed(bodies)}
        return {address: body for address, body in found.items() if body is not None}


def hello(site: str) -> bytes:
    return Reply(site, {"squared_mu": 1.0}).encode()


def roster(answers: Mapping[str, bytes | None]) -> Roster:
    """Of sites a, b, c at addresses 1, 2, 3, that answer so."""
    return Roster(Sites(answers), {"a": "1", "b": "2", "c": "3"})


def ask_all(answers: Mapping[str, bytes | None]) -> dict[str, Reply]:
    return roster(answers).ask(dict.fromkeys("cab", REQUEST))


def test_sites_are_listed_by_name_whatever_their_addresses() -> None:
    exchange = Sites({"9": hello("anna"), "10": hello("zoe"), "2": hello("mia")})
    found, replies = call_roll(exchange, REQUEST, expected=3)
    assert found.names == ["anna", "mia", "zoe"]
    assert found.addresses == {"anna": "9", "mia": "2", "zoe": "10"}
    assert {name: reply.site for name, reply in replies.items()} == {name: name for name in found.names}
    assert exchange.asked == [dict.fromkeys(["9", "10", "2"], REQUEST.encode())]


def test_each_site_gets_its_own_request_and_replies_come_in_the_order_of_names() -> None:
    found = roster({"1": hello("a"), "2": hello("b"), "3": hello("c")})
    requests = {name: Request("train", "0" * 64, "run", f"for-{name}") for name in ("c", "a")}
    replies = found.ask(requests)
    assert list(replies) == ["a", "c"]
    assert isinstance(found.exchange, Sites)
    assert found.exchange.asked == [{"3": requests["c"].encode(), "1": requests["a"].encode()}]


def call(answers: Mapping[str, bytes | None], expected: int | None) -> object:
    """The roll call, or without a number of sites a later request to all three."""
    return ask_all(answers) if expected is None else call_roll(Sites(answers), REQUEST, expected=expected)


def refused(
    kind: type[PrivShareError], answers: Mapping[str, bytes | None], *, expected: int | None = None
) -> PrivShareError:
    with pytest.raises(kind) as error:
        call(answers, expected)
    message = str(error.value)
    assert message.splitlines() == [message]
    return error.value


def test_a_site_that_does_not_answer_is_named() -> None:
    error = refused(ProtocolError, {"1": hello("a"), "2": None, "3": hello("c")})
    assert str(error) == "site b: did not answer"
    assert error.code == ExitCode.TOO_FEW_SITES


@pytest.mark.parametrize(
    "code", [ExitCode.BUDGET_REFUSED, ExitCode.POLICY_REFUSED, ExitCode.TABLE_NOT_FOUND, ExitCode.INTERNAL]
)
def test_a_refusal_names_the_site_and_the_rule_and_ends_with_its_code(code: ExitCode) -> None:
    answers = {"1": hello("a"), "2": refusal("b", code), "3": hello("c")}
    for error in (refused(PolicyError, answers), refused(PolicyError, answers, expected=1)):
        assert str(error) == f"site b: refused ({code.name}); its own log says why"
        assert error.code == code


@pytest.mark.parametrize("rule", ["OK", "NO_SUCH_RULE", "", "ok", "__class__"])
def test_a_refusal_by_an_unknown_rule_is_one_of_policy_and_never_ends_well(rule: str) -> None:
    answers = {"1": hello("a"), "2": Reply("b", refused=rule).encode(), "3": hello("c")}
    for error in (refused(PolicyError, answers), refused(PolicyError, answers, expected=1)):
        assert error.code == ExitCode.POLICY_REFUSED


def test_a_site_that_answers_in_another_s_place_is_refused() -> None:
    error = refused(ProtocolError, {"1": hello("a"), "2": hello("c"), "3": hello("c")})
    assert str(error) == "site b: another site answered in its place"
    assert error.code == ExitCode.PROTOCOL


def test_two_sites_of_one_name_are_refused() -> None:
    error = refused(ProtocolError, {"1": hello("a"), "2": hello("b"), "3": hello("a")}, expected=2)
    assert str(error) == "site a: two sites have this name"
    assert error.code == ExitCode.PROTOCOL


@pytest.mark.parametrize("answers", [{}, {"1": None, "2": None}, {"1": hello("a"), "2": None}])
def test_too_few_sites_are_refused_with_their_number(answers: dict[str, bytes | None]) -> None:
    error = refused(TooFewSitesError, answers, expected=2)
    answered = sum(body is not None for body in answers.values())
    assert str(error) == f"sites: {answered} answered, 2 are needed"
    assert error.code == ExitCode.TOO_FEW_SITES


def test_a_site_that_is_not_there_at_the_roll_call_is_not_asked_later() -> None:
    exchange = Sites({"1": hello("a"), "2": None, "3": hello("c")})
    found, _ = call_roll(exchange, REQUEST, expected=2)
    assert found.names == ["a", "c"]
    assert list(found.ask(dict.fromkeys(found.names, REQUEST))) == ["a", "c"]
    assert set(exchange.asked[-1]) == {"1", "3"}


@pytest.mark.parametrize("body", [b"", b"nonsense", b"\x80\x05K\x01.", hello("b")[:-1], REQUEST.encode()])
def test_an_answer_that_is_no_reply_is_refused(body: bytes) -> None:
    answers = {"1": hello("a"), "2": body, "3": hello("c")}
    for error in (refused(ProtocolError, answers), refused(ProtocolError, answers, expected=1)):
        assert error.code == ExitCode.PROTOCOL


@pytest.mark.parametrize("name", ["b\nerror: all is well", "b\x1b[2Jc", "b\u2028c"])
def test_a_site_s_name_cannot_write_lines_of_its_own(name: str) -> None:
    for body in (refusal(name, ExitCode.POLICY_REFUSED), hello(name)):
        answers = {"1": body, "2": body}
        with pytest.raises(PrivShareError) as error:
            call_roll(Sites(answers), REQUEST, expected=1)
        assert str(error.value).isprintable()
