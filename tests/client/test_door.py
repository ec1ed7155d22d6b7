"""The door of a site: who is let in, what a refusal costs, and that every answer is signed."""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.door import Door
from client.policy import policy_digest
from client.site import Site
from common.errors import ExitCode, LedgerError, PolicyError, SchemaError
from common.privacy.ledger import read_ledger
from common.privacy.signatures import SigningKey
from common.wire.envelopes import ANY_SITE, Answer, Order, answer_to
from common.wire.messages import KINDS, Reply, Request, refusal
from tests.client.homes import COORDINATOR, IDENTITY, MEASUREMENTS, PEERS, Forbidden, Home, make_home, refused

OF_A_ROW = "patient p17 is 99 years old"


def order_for(home: Home, kind: str = "describe", *, site: str = "north", **changes: Any) -> tuple[Order, bytes]:
    """An order that is right, unless the changes say otherwise, and its envelope."""
    body = home.ask(kind, **changes).encode()
    order = Order.of(body, study=home.study.digest(), site=site)
    return order, order.seal(body, COORDINATOR)


def opened(envelope: bytes, order: Order) -> tuple[Answer, bytes]:
    """What the site said, if it signed it as the answer to this order."""
    return Answer.open(envelope, public=IDENTITY.public, order=order)


def head_of(home: Home) -> tuple[int, str]:
    head = read_ledger(home.ledger).head
    return head.sequence, head.hash


# --- who is let in


@pytest.mark.parametrize("kind", ["describe", "one_way", "train"])
def test_a_good_order_is_answered_and_the_answer_names_what_it_is_about(home: Home, kind: str) -> None:
    order, envelope = order_for(home, kind)
    answer, body = opened(Door(home.open()).answer(envelope), order)
    assert refused(body) is None
    assert answer == Answer(
        study=home.study.digest(),
        request=f"run-1/{kind}",
        site="north",
        policy=policy_digest(home.folder / "policy.yaml"),
        sequence=head_of(home)[0],
        head=head_of(home)[1],
        order=order.digest,
        body=hashlib.sha256(body).hexdigest(),
    )
    assert answer.policy == hashlib.sha256((home.folder / "policy.yaml").read_bytes()).hexdigest()


def test_the_head_in_an_answer_is_the_one_after_its_charge(home: Home) -> None:
    door = Door(home.open())
    before = head_of(home)
    order, envelope = order_for(home, "one_way")
    answer, _ = opened(door.answer(envelope), order)
    assert (answer.sequence, answer.head) == head_of(home) != before


def test_an_order_for_whoever_is_there_may_ask_who_is_there(home: Home) -> None:
    order, envelope = order_for(home, site=ANY_SITE)
    answer, body = opened(Door(home.open()).answer(envelope), order)
    assert (answer.site, answer.request, refused(body)) == ("north", "run-1/describe", None)


def test_what_the_site_itself_refuses_is_answered_and_signed_too(home: Home) -> None:
    door = Door(home.open())
    order, envelope = order_for(home, "one_way", options={"share": 2})
    answer, body = opened(door.answer(envelope), order)
    assert (answer.request, refused(body)) == ("run-1/one_way", "POLICY_REFUSED")


@pytest.mark.parametrize("site", ["north", ANY_SITE])
def test_a_body_that_is_no_request_is_refused_by_the_site_and_named_by_nothing(home: Home, site: str) -> None:
    order = Order.of(b"garbage", study=home.study.digest(), site=site)
    answer, body = opened(Door(home.open()).answer(order.seal(b"garbage", COORDINATOR)), order)
    assert (answer.request, refused(body)) == ("", "PROTOCOL")


# --- who is not


class Shut(Site):
    """A site that may not be asked anything."""

    def handle(self, body: bytes) -> bytes:
        raise AssertionError("the site was asked")


@pytest.fixture
def shut(home: Home) -> tuple[Home, Door, Forbidden]:
    noise = Forbidden()
    site = home.open(noise)  # type: ignore[arg-type]
    site.__class__ = Shut
    return home, Door(site), noise


def untrusted(shut: tuple[Home, Door, Forbidden], envelope: bytes) -> None:
    """Refused alike, and then nothing was spent, drawn, written or asked of the site."""
    home, door, noise = shut
    before = (home.ledger.read_bytes(), home.state)
    sealed = door.answer(envelope)
    length = int.from_bytes(sealed[:4], "big")
    body = sealed[4 + length + 64 :]
    assert body == refusal("north", ExitCode.UNTRUSTED)
    # Signed like every answer, for the order that it names, and for no request.
    named = answer_to(
        envelope,
        study=home.study.digest(),
        request="",
        site="north",
        policy=policy_digest(home.folder / "policy.yaml"),
        head=read_ledger(home.ledger).head,
        body=body,
        key=IDENTITY,
    )
    assert sealed == named
    assert (home.ledger.read_bytes(), home.state) == before
    assert noise.asked == []


def sealed_by(key: SigningKey) -> Callable[[Home], bytes]:
    def make(home: Home) -> bytes:
        body = home.ask("one_way").encode()
        return Order.of(body, study=home.study.digest(), site="north").seal(body, key)

    return make


def as_an_answer(home: Home) -> bytes:
    """A request in an envelope that is signed as an answer, by the coordinator."""
    head = read_ledger(home.ledger).head
    body = home.ask("one_way").encode()
    given = {"study": home.study.digest(), "request": "run-1/one_way", "site": "north", "policy": "0" * 64}
    return answer_to(order_for(home)[1], **given, head=head, body=body, key=COORDINATOR)


def unsigned(home: Home) -> bytes:
    envelope = order_for(home, "one_way")[1]
    length = int.from_bytes(envelope[:4], "big")
    return envelope[: 4 + length] + bytes(64) + envelope[4 + length + 64 :]


def with_another_body(home: Home) -> bytes:
    body = home.ask("one_way").encode()
    return Order.of(b"another", study=home.study.digest(), site="north").seal(body, COORDINATOR)


def of_another_study(home: Home) -> bytes:
    body = home.ask("one_way").encode()
    return Order.of(body, study="0f" * 32, site="north").seal(body, COORDINATOR)


FORGED: dict[str, Callable[[Home], bytes]] = {
    "nothing": lambda home: b"",
    "garbage": lambda home: b"GET / HTTP/1.1\r\n\r\n",
    "a bare request": lambda home: home.ask("one_way").encode(),
    "zeros": lambda home: bytes(10_000),
    "not signed": unsigned,
    "signed by the site itself": sealed_by(IDENTITY),
    "signed by a peer": sealed_by(PEERS["east"]),
    "signed by nobody known": sealed_by(SigningKey.generate()),
    "for another site": lambda home: order_for(home, "one_way", site="east")[1],
    "for another study": of_another_study,
    "around another body": with_another_body,
    "cut": lambda home: order_for(home, "one_way")[1][:-1],
    "longer": lambda home: order_for(home, "one_way")[1] + b"\0",
    "an answer of the coordinator": as_an_answer,
}


@pytest.mark.parametrize("how", FORGED)
def test_what_the_coordinator_did_not_sign_for_this_site_goes_no_further(
    shut: tuple[Home, Door, Forbidden], how: str
) -> None:
    untrusted(shut, FORGED[how](shut[0]))


def test_an_answer_of_the_site_itself_is_no_order(home: Home) -> None:
    own = Door(home.open()).answer(order_for(home)[1])
    noise = Forbidden()
    site = home.open(noise)  # type: ignore[arg-type]
    site.__class__ = Shut
    untrusted((home, Door(site), noise), own)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"describe"}))
def test_an_order_for_whoever_is_there_asks_for_nothing_else(shut: tuple[Home, Door, Forbidden], kind: str) -> None:
    untrusted(shut, order_for(shut[0], kind, site=ANY_SITE)[1])


def test_all_that_is_refused_is_refused_alike_and_logged_without_a_reason(
    shut: tuple[Home, Door, Forbidden], caplog: pytest.LogCaptureFixture
) -> None:
    home, door, _ = shut
    with caplog.at_level(logging.DEBUG):
        for forged in FORGED.values():
            door.answer(forged(home))
    assert [record.getMessage() for record in caplog.records] == ["site=north event=untrusted"] * len(FORGED)


# --- once and again


@pytest.mark.parametrize("kind", [*MEASUREMENTS, "describe"])
def test_a_repeated_order_gets_the_same_bytes_and_spends_nothing(home: Home, kind: str) -> None:
    door = Door(home.open())
    order, envelope = order_for(home, kind)
    first = door.answer(envelope)
    before = (home.ledger.read_bytes(), home.state)
    again, later = door.answer(envelope), Door(home.open(Forbidden())).answer(envelope)  # type: ignore[arg-type]
    assert opened(again, order)[0].head == opened(first, order)[0].head
    if kind == "describe":
        # Each start has a nonce of its own.
        assert (first, later != first) == (again, True)
    else:
        assert first == again == later
    assert (home.ledger.read_bytes(), home.state) == before


def test_the_same_request_in_a_new_order_gets_the_same_release_in_a_new_answer(home: Home) -> None:
    door = Door(home.open())
    (one, first), (other, second) = order_for(home, "one_way"), order_for(home, "one_way")
    said, before = door.answer(first), home.ledger.read_bytes()
    again = door.answer(second)
    assert opened(said, one)[1] == opened(again, other)[1]
    assert opened(again, other)[0].order != opened(said, one)[0].order
    assert home.ledger.read_bytes() == before
    assert home.charged == ["run-1/one_way"]


# --- what goes wrong inside


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (ValueError(OF_A_ROW), "INTERNAL"),
        (KeyError(OF_A_ROW), "INTERNAL"),
        (MemoryError(OF_A_ROW), "INTERNAL"),
        (RecursionError(OF_A_ROW), "INTERNAL"),
        (OSError(OF_A_ROW), "INTERNAL"),
        (SchemaError(OF_A_ROW), "INTERNAL"),
        (AssertionError(OF_A_ROW), "INTERNAL"),
        (PolicyError(OF_A_ROW), "POLICY_REFUSED"),
        (PolicyError(OF_A_ROW, ExitCode.UNCONFIRMED), "UNCONFIRMED"),
        (LedgerError(OF_A_ROW), "LEDGER_INVALID"),
    ],
)
def test_whatever_goes_wrong_at_a_site_its_code_travels_and_never_its_text(
    home: Home, monkeypatch: pytest.MonkeyPatch, fault: Exception, code: str
) -> None:
    def fail(*_: object) -> bytes:
        raise fault

    site = home.open()
    monkeypatch.setattr(site, "_measure_one_way", fail)
    order, envelope = order_for(home, "one_way")
    sealed = Door(site).answer(envelope)
    answer, body = opened(sealed, order)
    assert (answer.request, body) == ("run-1/one_way", refusal("north", ExitCode[code]))
    assert b"p17" not in sealed


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_with_a_broken_ledger_the_site_still_signs_what_it_says(home: Home, damage: str) -> None:
    door = Door(home.open())
    door.answer(order_for(home, "one_way")[1])
    whole = home.ledger.read_bytes()
    if damage == "gone":
        home.ledger.unlink()
        home.ledger.mkdir()
    else:
        home.ledger.write_bytes(whole[: len(whole) // 2] if damage == "cut" else whole[:-9] + b"0" + whole[-8:])
    for kind in ("tables", "describe"):
        order, envelope = order_for(home, kind)
        answer, body = opened(door.answer(envelope), order)
        assert (answer.sequence, answer.head, refused(body)) == (-1, "", "LEDGER_INVALID")


@pytest.mark.parametrize("name", ["\ud800", "\n", "\U0001f600" * 256, "a/b"])
def test_whatever_a_request_is_called_its_answer_is_signed(home: Home, name: str) -> None:
    body = Request("describe", home.study.digest(), "run-1", name).encode()
    order = Order.of(body, study=home.study.digest(), site="north")
    answer, said = opened(Door(home.open()).answer(order.seal(body, COORDINATOR)), order)
    assert answer.request == f"run-1/{name}"
    assert Reply.decode(said).site == "north"


def test_each_site_answers_in_its_own_name(tmp_path: Path) -> None:
    home = make_home(tmp_path / "east", site="east", identity=PEERS["east"])
    order, envelope = order_for(home, site="east")
    answer, body = Answer.open(Door(home.open()).answer(envelope), public=PEERS["east"].public, order=order)
    assert (answer.site, Reply.decode(body).site) == ("east", "east")
