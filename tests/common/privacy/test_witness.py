"""What sites say of each other's ledgers: signed, of one form, and never two histories of one ledger."""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ProtocolError
from common.privacy.ledger import Head, canonical
from common.privacy.signatures import SigningKey
from common.privacy.witness import (
    MAX_PAST,
    MOST_WITNESSES,
    NOTHING,
    Attestation,
    Statement,
    choose_witnesses,
    continues,
    is_newer,
    state_head,
)

NORTH, EAST = (SigningKey.from_seed(bytes([number]) * 32) for number in (1, 2))
HEAD = Head("aa" * 32, 7, "bb" * 32)
PAST = {6: "cc" * 32, 2: "dd" * 32}
STATED = state_head("north", HEAD, NORTH, past=PAST)
ATTESTED = Attestation.of("east", "north", STATED, "nonce").signed(EAST)
STATED_SIGNATURE = (
    "efef483d7eb9b104b7fd5b29fbaba0ec6f455663e2a932081ee770902cdb72cf"
    "4d7dee88163b657b2715c04768d6679540fe6b9bb9bc948bb5adcf4df21f4905"
)
ATTESTED_SIGNATURE = (
    "e21d4448b862ba61485aa6bf2be7d48e2899dbab2be2d5ca4fcd477695c6986e"
    "e3d160d1751c1f50025ea2552fde4ab5c911d99f0efc116227177427dddecd0f"
)
MANY = {f"site_{at:03}": SigningKey.from_seed(at.to_bytes(32, "big")).public for at in range(60)}
SAID: list[tuple[Statement | Attestation, SigningKey, SigningKey]] = [(STATED, NORTH, EAST), (ATTESTED, EAST, NORTH)]


def test_a_statement_tells_the_head_and_an_attestation_what_was_seen() -> None:
    assert (STATED.site, STATED.ledger, STATED.sequence, STATED.hash) == ("north", "aa" * 32, 7, "bb" * 32)
    assert STATED.past == ((2, "dd" * 32), (6, "cc" * 32))
    assert [STATED.hash_at(number) for number in (2, 6, 7, 3, 8)] == ["dd" * 32, "cc" * 32, "bb" * 32, None, None]
    assert asdict(ATTESTED) == {
        "witness": "east",
        "site": "north",
        "ledger": "aa" * 32,
        "sequence": 7,
        "hash": "bb" * 32,
        "nonce": "nonce",
        "signature": ATTESTED.signature,
    }
    nothing = Attestation.of("east", "north", None, "nonce")
    assert (nothing.ledger, nothing.sequence, nothing.hash, nothing.signature) == ("", NOTHING, "", "")


@pytest.mark.parametrize(("said", "key", "other"), SAID)
def test_what_was_said_is_by_whoever_signed_all_of_it(
    said: Statement | Attestation, key: SigningKey, other: SigningKey
) -> None:
    assert said.is_by(key.public)
    assert not said.is_by(other.public)
    assert not said.is_by("")
    for name, value in asdict(said).items():
        if name == "past":
            changed = value[1:]
        else:
            changed = value + 1 if name == "sequence" else value[:-1] + ("0" if value[-1] != "0" else "1")
        assert not replace(said, **{name: changed}).is_by(key.public), name
    assert not replace(said, signature="").is_by(key.public)
    assert not replace(said, signature=said.signature.upper()).is_by(key.public)


def test_one_kind_of_paper_never_passes_for_another() -> None:
    # The same bytes, signed as something else.
    body = canonical({name: value for name, value in asdict(STATED).items() if name != "signature"})
    for purpose, is_it in (("statement", True), ("attestation", False), ("ledger entry", False), ("policy", False)):
        assert replace(STATED, signature=NORTH.sign(body, purpose=purpose)).is_by(NORTH.public) == is_it
    body = canonical({name: value for name, value in asdict(ATTESTED).items() if name != "signature"})
    for purpose, is_it in (("attestation", True), ("statement", False)):
        assert replace(ATTESTED, signature=EAST.sign(body, purpose=purpose)).is_by(EAST.public) == is_it


def test_a_signature_stays_the_same_for_ever() -> None:
    assert STATED.signature == STATED_SIGNATURE
    assert ATTESTED.signature == ATTESTED_SIGNATURE


@pytest.mark.parametrize(("said", "key", "other"), SAID)
def test_what_was_said_comes_back_from_a_message(
    said: Statement | Attestation, key: SigningKey, other: SigningKey
) -> None:
    again = type(said).from_dict(json.loads(json.dumps(asdict(said))))
    assert again == said
    assert again.is_by(key.public)


@pytest.mark.parametrize(("said", "key", "other"), SAID)
def test_another_form_is_refused(said: Statement | Attestation, key: SigningKey, other: SigningKey) -> None:
    kind, good = type(said), asdict(said)
    wrong: list[Any] = [None, 7, "text", [], {}, [good], {**good, "more": 1}, list(good.items())]
    wrong += [{key: value for key, value in good.items() if key != name} for name in good]
    for name in good:
        wrong += [{**good, name: value} for value in (None, 1.5, ["x"], {}, b"", True)]
        wrong.append({**good, name: "x" * 257} if name != "sequence" else {**good, name: "7"})
    if kind is Statement:
        pairs: list[Any] = [[1], [1, "a", "b"], ["1", "a"], [1, 2], [True, "a"], [1, "x" * 257], {1: "a"}, "1a"]
        wrong += [{**good, "past": [pair]} for pair in pairs]
        wrong.append({**good, "past": [[1, "a"]] * (MAX_PAST + 1)})
    for data in wrong:
        with pytest.raises(ProtocolError, match="not of its form"):
            kind.from_dict(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
FIELDS = st.fixed_dictionaries(dict.fromkeys(asdict(STATED), JSON))


@given(JSON | FIELDS)
def test_whatever_came_is_of_the_form_or_a_protocol_error(data: Any) -> None:
    for kind in (Statement, Attestation):
        try:
            said = kind.from_dict(data)
        except ProtocolError:
            continue
        assert not said.is_by(NORTH.public)


def stated(sequence: int, *, history: str = "a", ledger: str = "aa", shows: tuple[int, ...] = ()) -> Statement:
    """A head of a ledger; ledgers of the same history have the same entries."""
    past = {number: f"{history}{number:063x}" for number in shows}
    return state_head("north", Head(ledger * 32, sequence, f"{history}{sequence:063x}"), NORTH, past=past)


def test_a_longer_ledger_is_newer_and_any_is_newer_than_none() -> None:
    assert is_newer(stated(0), None)
    assert is_newer(stated(8), stated(7))
    assert not is_newer(stated(7), stated(7))
    assert not is_newer(stated(6), stated(7))


def test_a_longer_ledger_goes_on_from_a_head_that_it_shows() -> None:
    assert continues(stated(8), None)
    assert continues(stated(8, shows=(6, 7)), stated(7))
    assert continues(stated(50, shows=(7, 49)), stated(7))
    assert not continues(stated(8), stated(7))
    assert not continues(stated(8, shows=(6,)), stated(7))
    assert not continues(stated(7), stated(7))
    assert not continues(stated(6, shows=(5,)), stated(7))


@pytest.mark.parametrize("sequence", [6, 7, 8])
def test_another_ledger_under_the_same_name_is_a_fork(sequence: int) -> None:
    for check in (is_newer, continues):
        with pytest.raises(ProtocolError, match="shows two ledgers"):
            check(stated(sequence, ledger="bb"), stated(7))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (stated(7, history="b"), stated(7)),
        (stated(8, history="b", shows=(7,)), stated(7)),
        (stated(7), stated(8, history="b", shows=(7,))),
    ],
    ids=["the same number", "the later shows the earlier", "the earlier is shown by the later"],
)
def test_another_entry_of_the_same_number_is_a_fork(one: Statement, other: Statement) -> None:
    for check in (is_newer, continues):
        with pytest.raises(ProtocolError, match="shows two ledgers"):
            check(one, other)


def test_of_few_peers_all_are_asked_to_be_witnesses() -> None:
    few = dict(list(MANY.items())[:MOST_WITNESSES])
    assert choose_witnesses(few, NORTH) == tuple(sorted(few))
    assert choose_witnesses({}, NORTH) == ()


def test_of_many_peers_a_site_asks_the_same_ones_again_and_another_site_others() -> None:
    chosen = choose_witnesses(MANY, NORTH)
    assert len(set(chosen)) == MOST_WITNESSES
    assert set(chosen) < set(MANY)
    assert choose_witnesses(dict(reversed(MANY.items())), NORTH) == chosen
    assert choose_witnesses(MANY, EAST) != chosen
    # By their keys: a party that takes a name that was chosen before is not chosen for it.
    renamed = {f"other_{name}": key for name, key in MANY.items()}
    assert choose_witnesses(renamed, NORTH) == tuple(f"other_{name}" for name in chosen)


@given(st.sampled_from(sorted(MANY)))
def test_a_peer_that_goes_changes_one_witness_at_most(gone: str) -> None:
    before = set(choose_witnesses(MANY, NORTH))
    after = set(choose_witnesses({name: key for name, key in MANY.items() if name != gone}, NORTH))
    assert before - after == before & {gone}
    assert len(after) == MOST_WITNESSES
