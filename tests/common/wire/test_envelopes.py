"""Envelopes: what comes back is what was sealed, and everything else is refused alike."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ExitCode, UntrustedError
from common.privacy.ledger import Head, canonical
from common.privacy.signatures import SigningKey
from common.wire import envelopes
from common.wire.envelopes import ANY_SITE, ORDER_SCHEMA, REPLY_SCHEMA, Answer, Order, answer_to, claimed_site

COORDINATOR = SigningKey.from_seed(b"c" * 32)
SITE = SigningKey.from_seed(b"n" * 32)
STRANGER = SigningKey.from_seed(b"s" * 32)
STUDY = "0a" * 32
BODY = b"what is asked"
REPLY = b"what is said"
HEAD = Head("1" * 64, 3, "2" * 64)
ORDER = Order(STUDY, "north", "5c" * 16, hashlib.sha256(BODY).hexdigest())
SEALED = ORDER.seal(BODY, COORDINATOR)


def answer(envelope: bytes = SEALED, *, key: SigningKey = SITE, **changes: Any) -> bytes:
    given = {"study": STUDY, "request": "run/ask", "site": "north", "policy": "3" * 64, "head": HEAD, "body": REPLY}
    return answer_to(envelope, key=key, **{**given, **changes})


ANSWER = answer()


def open_order(
    envelope: bytes, *, public: str = COORDINATOR.public, study: str = STUDY, site: str = "north"
) -> tuple[Order, bytes]:
    return Order.open(envelope, public=public, study=study, site=site)


def open_answer(envelope: bytes, *, public: str = SITE.public, order: Order = ORDER) -> tuple[Answer, bytes]:
    return Answer.open(envelope, public=public, order=order)


Opener = Callable[..., Any]
BOTH = pytest.mark.parametrize(("opened", "sealed"), [(open_order, SEALED), (open_answer, ANSWER)])


def refuse(opened: Opener, envelope: bytes, **how: Any) -> None:
    """Refused, and always with the same words: nobody learns what was wrong."""
    with pytest.raises(UntrustedError) as error:
        opened(envelope, **how)
    assert str(error.value) == "envelope: not signed by whom it should be, or for something else"
    assert error.value.code == ExitCode.UNTRUSTED
    assert error.value.__cause__ is None


def signed(header: dict[str, Any], body: bytes, key: SigningKey) -> bytes:
    """An envelope with any header, canonical and well signed."""
    return with_text(canonical(header), body, key, str(header.get("schema", ORDER_SCHEMA)))


def with_text(text: bytes, body: bytes, key: SigningKey, schema: str) -> bytes:
    """An envelope with any bytes for a header, well signed."""
    return len(text).to_bytes(4, "big") + text + bytes.fromhex(key.sign(text, purpose=schema)) + body


GOLDEN_ORDER_SIGNATURE = (
    "7a4dbf31a7d6af7bacdfc3adff93fcb36352eef385904ce63bba3a54fdb23a54"
    "00bd319e0ed6a2f1d01dbc531843cbdf7199b3027713cca86a7b8d59866b3d01"
)
GOLDEN_ANSWER_SIGNATURE = (
    "db12c92758c171c21d3dce6da15a9f64edfb316c6d67ff1236bd2b0d7417efb9"
    "822a9876df58b4dd6c587db5f4ad38b8617d604eebbd03029223259b68cab607"
)


# --- what is sealed is opened


@given(st.binary(max_size=2000), st.text(max_size=40))
@settings(deadline=None, max_examples=50)
def test_an_order_is_opened_by_the_site_that_it_is_for(body: bytes, site: str) -> None:
    order = Order.of(body, study=STUDY, site=site)
    assert Order.open(order.seal(body, COORDINATOR), public=COORDINATOR.public, study=STUDY, site=site) == (order, body)


@given(st.binary(max_size=2000), st.text(max_size=40), st.text(max_size=40))
@settings(deadline=None, max_examples=50)
def test_an_answer_is_opened_by_whoever_sent_the_order(body: bytes, site: str, request: str) -> None:
    order = Order.of(BODY, study=STUDY, site=site)
    envelope = answer(order.seal(BODY, COORDINATOR), site=site, request=request, body=body)
    found, said = open_answer(envelope, order=order)
    assert said == body
    assert asdict(found) == {
        "study": STUDY,
        "request": request,
        "site": site,
        "policy": "3" * 64,
        "sequence": 3,
        "head": "2" * 64,
        "order": order.digest,
        "body": hashlib.sha256(body).hexdigest(),
    }
    assert claimed_site(envelope) == site


def test_the_bytes_of_an_order_are_for_ever() -> None:
    # Written once by this code; a change of one byte makes sites and coordinators of two releases strangers.
    header = (
        b'{"body":"00b4a830a5222030a83680180f38cc458316db747596927fdde0ccc0af76f636","nonce":"'
        + b"5c" * 16
        + b'","schema":"privshare.order/1","site":"north","study":"'
        + b"0a" * 32
        + b'"}'
    )
    assert SEALED[: 4 + len(header)] == len(header).to_bytes(4, "big") + header
    assert SEALED[4 + len(header) : -len(BODY)].hex() == GOLDEN_ORDER_SIGNATURE
    assert SEALED.endswith(BODY)
    assert ORDER.digest == hashlib.sha256(header).hexdigest()


def test_the_bytes_of_an_answer_are_for_ever() -> None:
    header = (
        b'{"body":"9e6042496805ab30d9c6b7d154fe0aa0c62daad703f03029f0693f309782070e","head":"'
        + b"2" * 64
        + b'","order":"d1d4719a57689a3c7969907a3491269944551948f4a858c021e1e501d046c06c","policy":"'
        + b"3" * 64
        + b'","request":"run/ask",'
        b'"schema":"privshare.reply/1","sequence":3,"site":"north","study":"' + b"0a" * 32 + b'"}'
    )
    assert ANSWER[: 4 + len(header)] == len(header).to_bytes(4, "big") + header
    assert ANSWER[4 + len(header) : -len(REPLY)].hex() == GOLDEN_ANSWER_SIGNATURE
    assert ANSWER.endswith(REPLY)


def test_orders_for_equal_bodies_differ_and_so_do_their_digests() -> None:
    orders = [Order.of(BODY, study=STUDY, site="north") for _ in range(50)]
    assert len({order.nonce for order in orders}) == len({order.digest for order in orders}) == 50
    assert {order.body for order in orders} == {ORDER.body}
    assert {len(bytes.fromhex(order.nonce)) for order in orders} == {16}


@pytest.mark.parametrize("field", ["study", "site", "nonce", "body"])
def test_the_digest_of_an_order_covers_all_that_it_says(field: str) -> None:
    assert replace(ORDER, **{field: "other"}).digest != ORDER.digest


# --- what is changed is refused


@BOTH
def test_every_flipped_bit_is_refused(opened: Opener, sealed: bytes) -> None:
    opened(sealed)
    for at in range(len(sealed)):
        for bit in range(8):
            refuse(opened, sealed[:at] + bytes([sealed[at] ^ (1 << bit)]) + sealed[at + 1 :])


@BOTH
def test_it_is_refused_cut_at_any_byte_and_with_one_more(opened: Opener, sealed: bytes) -> None:
    for at in range(len(sealed)):
        refuse(opened, sealed[:at])
    for more in (b"\0", sealed):
        refuse(opened, sealed + more)
        refuse(opened, more[:1] + sealed)


@pytest.mark.parametrize(
    "how",
    [
        {"study": "0b" * 32},
        {"study": ""},
        {"site": "south"},
        {"site": "North"},
        {"site": ""},
        {"public": STRANGER.public},
        {"public": SITE.public},
        {"public": COORDINATOR.public.upper()},
        {"public": ""},
    ],
)
def test_an_order_for_somebody_else_is_refused(how: dict[str, str]) -> None:
    refuse(open_order, SEALED, **how)


@pytest.mark.parametrize("field", ["study", "site", "nonce", "body"])
def test_an_answer_to_another_order_is_refused(field: str) -> None:
    refuse(open_answer, ANSWER, order=replace(ORDER, **{field: "0" * 32}))


def test_an_answer_to_an_equal_question_that_was_asked_before_is_refused() -> None:
    again = Order.of(BODY, study=STUDY, site="north")
    refuse(open_answer, ANSWER, order=again)
    assert open_answer(answer(again.seal(BODY, COORDINATOR)), order=again)[1] == REPLY


@pytest.mark.parametrize("changes", [{"study": "0b" * 32}, {"site": "south"}, {"site": ANY_SITE}, {"key": STRANGER}])
def test_an_answer_of_another_study_site_or_key_is_refused(changes: dict[str, Any]) -> None:
    refuse(open_answer, answer(**changes))


@pytest.mark.parametrize("key", [COORDINATOR, SITE])
def test_an_answer_is_no_order_and_an_order_no_answer_whoever_signed(key: SigningKey) -> None:
    refuse(open_order, answer(key=key), public=key.public)
    refuse(open_answer, ORDER.seal(BODY, key), public=key.public)


@pytest.mark.parametrize(("schema", "purpose"), [(REPLY_SCHEMA, ORDER_SCHEMA), (ORDER_SCHEMA, REPLY_SCHEMA)])
def test_a_signature_for_one_purpose_is_none_for_another(schema: str, purpose: str) -> None:
    header = canonical({"schema": schema, **asdict(ORDER)})
    refuse(open_order, with_text(header, BODY, COORDINATOR, purpose))


def test_a_body_that_the_header_does_not_name_is_refused() -> None:
    refuse(open_order, ORDER.seal(b"another body", COORDINATOR))
    refuse(open_order, replace(ORDER, body=ORDER.body.upper()).seal(BODY, COORDINATOR))


# --- for whoever is there


def test_an_order_for_anybody_is_opened_by_every_site_of_the_study() -> None:
    order = Order.of(BODY, study=STUDY, site=ANY_SITE)
    envelope = order.seal(BODY, COORDINATOR)
    for site in ("north", "south"):
        assert open_order(envelope, site=site) == (order, BODY)
        assert open_answer(answer(envelope, site=site), order=order)[0].site == site
    refuse(open_order, envelope, study="0b" * 32)
    refuse(open_order, envelope, public=STRANGER.public)


# --- one spelling of a header alone

HEADER = {"schema": ORDER_SCHEMA, **asdict(ORDER)}


@pytest.mark.parametrize(
    "spelled",
    [
        json.dumps(HEADER, sort_keys=True),
        json.dumps(HEADER, sort_keys=True, separators=(",", ":")) + " ",
        " " + json.dumps(HEADER, sort_keys=True, separators=(",", ":")),
        json.dumps(HEADER, sort_keys=True, separators=(",", ":")) + "\n",
        json.dumps(HEADER, separators=(",", ":")),
        json.dumps(HEADER, sort_keys=True, indent=0, separators=(",", ":")),
        canonical(HEADER).decode().replace('"site":"north"', '"site":"north","site":"north"'),
        canonical(HEADER).decode().replace('"site":"north"', '"site":"south","site":"north"'),
        canonical(HEADER).decode().replace("north", "nort\\u0068"),
        canonical(HEADER).decode() + "{}",
        "[" + canonical(HEADER).decode() + "]",
        '"order"',
        "null",
        "1",
        "",
        "NaN",
        "[" * 16_000,
        "{" * 16_000,
        "1" * 16_000,
    ],
)
def test_another_spelling_of_a_header_is_refused_though_signed(spelled: str) -> None:
    refuse(open_order, with_text(spelled.encode(), BODY, COORDINATOR, ORDER_SCHEMA))


def test_the_canonical_spelling_beside_them_is_opened() -> None:
    assert open_order(with_text(canonical(HEADER), BODY, COORDINATOR, ORDER_SCHEMA)) == (ORDER, BODY)


@pytest.mark.parametrize("number", ["3.0", "3e0", "03", "+3", "-0", "0x3", "NaN", "true", '"3"', "null", "[3]", "{}"])
def test_a_number_is_spelled_as_a_whole_one(number: str) -> None:
    header = ANSWER[4 : 4 + int.from_bytes(ANSWER[:4], "big")].replace(b'"sequence":3', f'"sequence":{number}'.encode())
    refuse(open_answer, with_text(header, REPLY, SITE, REPLY_SCHEMA))


@pytest.mark.parametrize("text", [b"\xff\xfe", b'{"a":"\xff"}', "{}".encode("utf-16"), b"\0" * 10])
def test_a_header_that_is_no_text_is_refused(text: bytes) -> None:
    refuse(open_order, with_text(text, BODY, COORDINATOR, ORDER_SCHEMA))


@pytest.mark.parametrize("field", ["schema", *asdict(ORDER)])
@pytest.mark.parametrize("value", ["missing", None, 7, True, [], {}, ["north"]])
def test_an_order_that_lacks_a_field_or_has_one_of_another_kind_is_refused(field: str, value: Any) -> None:
    header = {name: value if name == field else known for name, known in HEADER.items()}
    if value == "missing":
        del header[field]
    refuse(open_order, signed(header, BODY, COORDINATOR))


@pytest.mark.parametrize("field", [field for field in Answer.__dataclass_fields__ if field != "sequence"])
@pytest.mark.parametrize("value", ["missing", None, 7, [], {}])
def test_an_answer_that_lacks_a_field_or_has_one_of_another_kind_is_refused(field: str, value: Any) -> None:
    header = json.loads(ANSWER[4 : 4 + int.from_bytes(ANSWER[:4], "big")])
    header[field] = value
    if value == "missing":
        del header[field]
    refuse(open_answer, signed(header, REPLY, SITE))


@pytest.mark.parametrize("schema", ["privshare.order/2", "privshare.order/1 ", "", REPLY_SCHEMA])
def test_another_version_is_refused(schema: str) -> None:
    refuse(open_order, signed({**HEADER, "schema": schema}, BODY, COORDINATOR))


@pytest.mark.parametrize("extra", ["more", "self", "cls", "__class__", ""])
def test_a_field_that_nobody_knows_is_refused(extra: str) -> None:
    refuse(open_order, signed({**HEADER, extra: "1"}, BODY, COORDINATOR))


def test_a_header_beyond_the_limit_is_refused_whatever_it_says() -> None:
    for size, is_opened in ((16_384, True), (16_385, False)):
        nonce = "n" * (size - len(canonical({**HEADER, "nonce": ""})))
        envelope = replace(ORDER, nonce=nonce).seal(BODY, COORDINATOR)
        assert int.from_bytes(envelope[:4], "big") == size
        if is_opened:
            assert open_order(envelope)[1] == BODY
        else:
            refuse(open_order, envelope)


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**32 - 1])
def test_a_length_that_is_not_the_header_s_is_refused(length: int) -> None:
    refuse(open_order, length.to_bytes(4, "big") + SEALED[4:])


def test_an_envelope_beyond_the_limit_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envelopes, "MAX_BODY", len(SEALED) - 16_384)
    assert open_order(SEALED)[1] == BODY
    monkeypatch.setattr(envelopes, "MAX_BODY", len(SEALED) - 16_384 - 1)
    refuse(open_order, SEALED)
    refuse(claimed_site, SEALED)


# --- whatever comes


@given(st.binary(max_size=600))
@settings(deadline=None, max_examples=200)
def test_whatever_bytes_come_they_are_refused_and_answered(envelope: bytes) -> None:
    for opened in (open_order, open_answer):
        refuse(opened, envelope)
    refuse(claimed_site, envelope)
    sealed = answer(envelope)
    assert json.loads(header_of(sealed))["order"] == ""
    assert sealed.endswith(REPLY)


def header_of(envelope: bytes) -> bytes:
    return envelope[4 : 4 + int.from_bytes(envelope[:4], "big")]


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_a_header_of_any_json_well_signed_is_refused(data: st.DataObject) -> None:
    leaf = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
    json_of = leaf | st.lists(leaf, max_size=3) | st.dictionaries(st.text(max_size=3), leaf, max_size=3)
    header = data.draw(st.dictionaries(st.sampled_from([*HEADER, "more"]), json_of, max_size=4))
    for schema, opened, key in ((ORDER_SCHEMA, open_order, COORDINATOR), (REPLY_SCHEMA, open_answer, SITE)):
        refuse(opened, with_text(canonical({**header, "schema": schema}), BODY, key, schema))


@pytest.mark.parametrize(
    "envelope", [b"", b"garbage", SEALED[:-70], b"\0\0\0\2[]" + bytes(64), b"\0\0\0\2{ " + bytes(64)]
)
def test_what_cannot_be_read_is_answered_with_no_order_named(envelope: bytes) -> None:
    assert json.loads(header_of(answer(envelope)))["order"] == ""


def test_an_order_that_is_refused_is_named_in_the_answer_all_the_same() -> None:
    # Signed by a stranger, or with another body: whoever sent it can tell which one was refused.
    for envelope in (ORDER.seal(BODY, STRANGER), SEALED + b"more"):
        refuse(open_order, envelope)
        assert open_answer(answer(envelope, request=""))[0].request == ""


@pytest.mark.parametrize("site", [None, 7, ["north"], {}])
def test_a_claimed_site_that_is_no_text_is_refused(site: Any) -> None:
    refuse(claimed_site, signed({**HEADER, "site": site}, BODY, STRANGER))


def test_the_claim_of_a_site_is_read_without_a_signature_and_proves_nothing() -> None:
    envelope = answer(key=STRANGER)
    assert claimed_site(envelope) == "north"
    refuse(open_answer, envelope)
