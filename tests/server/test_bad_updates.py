"""Sixty and more answers that no honest site gives: each is refused with a line that names the site and the rule.

Without a quorum the run stops there, with the code of the refusal, and goes on when the site answers well.
"""

import json
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.door import Door
from common.errors import PrivShareError
from common.wire.messages import MESSAGE_SCHEMA
from tests.server.test_quorum import (
    EVENT_FAULTS,
    RELEASE_FAULTS,
    TRAINING_FAULTS,
    Fault,
    Federation,
    body_of,
    changed,
    counts,
    event,
    generator,
    signed,
)


def raw(body: Callable[[dict[str, Any]], bytes]) -> Fault:
    """A body of the site's own making, well signed, told the header of an honest one."""

    def fault(door: Door, envelope: bytes, answer: bytes) -> bytes:
        reply = body_of(answer)
        header = {"schema": MESSAGE_SCHEMA, "site": reply.site, "facts": dict(reply.facts), "refused": None}
        return signed(door, envelope, body(header))

    return fault


def tensors(header: dict[str, Any], data: bytes, **described: Any) -> bytes:
    """In the format of safetensors, whatever is described."""
    text = json.dumps({"__metadata__": {"privshare": json.dumps(header)}, **described}).encode()
    return struct.pack("<Q", len(text)) + text + data


def of_type(name: str, size: int) -> Fault:
    described = {"dtype": name, "shape": [4], "data_offsets": [0, 4 * size]}
    return raw(lambda header: tensors(header, bytes(4 * size), counts=described))


def instead_of(request: str) -> Fault:
    """What the site said to another request, signed as the answer to this one."""

    def fault(door: Door, envelope: bytes, answer: bytes) -> bytes:
        return signed(door, envelope, FED[0].replies["bob", request].encode())

    return fault


def bumped(cell: int, by: int) -> Fault:
    return counts(lambda found: found + by * (np.arange(len(found)) == cell))


def moved_to_the_other_class(found: np.ndarray) -> np.ndarray:
    """The first table turned round: the same units, each with the other label."""
    table = found[:6].reshape(2, 3)[::-1].ravel()
    return np.concatenate([table + 300 * np.repeat([1, -1], 3), found[6:]])


def event_of(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Fault:
    return changed(
        lambda reply: replace(
            reply, facts={**reply.facts, "event": {**reply.facts["event"], **change(reply.facts["event"])}}
        )
    )


FED: list[Federation] = []

BELOW = r"counts below zero, by more than its noise explains"
TOTALS = r"totals of tables that do not agree with the units of its one-way tables"
RULES = {
    "silent": r"did not answer",
    "refused": r"refused \(BUDGET_REFUSED\); its own log says why",
    "malformed": r"message: not a privshare message",
    "empty": r"an answer that it did not sign, or to another order",
    "signed by another": r"an answer that it did not sign, or to another order",
    "flipped": r"an answer that it did not sign, or to another order",
    "replayed": r"an answer that it did not sign, or to another order",
    "in another's name": r"another site answered in its place",
    "floats": r"expected \d+ whole numbers and an event",
    "narrow": r"expected \d+ whole numbers and an event",
    "not finite": r"message: an array is not finite",
    "too short": r"expected \d+ whole numbers and an event",
    "too long": r"expected \d+ whole numbers and an event",
    "of two dimensions": r"expected \d+ whole numbers and an event",
    "huge": r"counts beyond what any table holds",
    "huge below zero": r"counts beyond what any table holds",
    "without counts": r"expected \d+ whole numbers and an event",
    "without an event": r"expected \d+ whole numbers and an event",
    "an event of other cells": r"the event does not describe the vector",
    "an event of no scale": r"event: a field of a Gaussian event is out of range",
    "no word on what it spent": r"spending: .*",
    "less than it released": r"released what it does not say that it has spent",
    "its first event taken back": r"released what it does not say that it has spent",
    "its spending in another study": r"what it says that it has spent is not so, or not signed by it",
    "its spending by another bound": r"what it says that it has spent is not so, or not signed by it",
    "its spending at another head": r"what it says that it has spent is not so, or not signed by it",
    "a spending that is not signed": r"what it says that it has spent is not so, or not signed by it",
    "a head of nobody": r"statement: not of its form",
    "a head that is not signed": r"its ledger's head is not signed by it",
    "noise beyond what a float holds squared": r"the event does not describe the vector",
    "so little noise that no float holds its spend": r"spent another budget than it was asked to, or more",
    "less noise than was asked for": r"spent another budget than it was asked to, or more",
    "a sensitivity of 400 digits": r"the event does not describe the vector",
    "another account": r"spent another budget than it was asked to, or more",
}
TRAINING_RULES = {
    "not finite": r"message: an array is not finite",
    "moved too far": r"a generator that moved farther than its steps can take it",
    "one parameter moved too far": r"a generator that moved farther than its steps can take it",
    "of another type": r"a generator that does not fit the study",
    "of another shape": r"a generator that does not fit the study",
    "transposed": r"a generator that does not fit the study",
    "no generator": r"a generator that does not fit the study",
    "a layer too many": r"a generator that does not fit the study",
}
BODIES: dict[str, tuple[Fault, str]] = {
    "numbers of a type that numpy has not": (of_type("BF16", 2), r"message: not a privshare message"),
    "numbers of one byte": (of_type("F8_E4M3", 1), r"message: not a privshare message"),
    "complex numbers": (counts(lambda found: found.astype(np.complex64)), r"expected \d+ whole numbers and an event"),
    "truth values": (counts(lambda found: found > 0), r"expected \d+ whole numbers and an event"),
    "an array that is longer than the body": (
        raw(lambda header: tensors(header, b"", counts={"dtype": "I64", "shape": [2**40], "data_offsets": [0, 2**43]})),
        r"message: not a privshare message",
    ),
    "a header of 2^60 bytes": (raw(lambda _: struct.pack("<Q", 2**60) + b"{}"), r"message: not a privshare message"),
    "another version": (
        raw(lambda header: tensors({**header, "schema": "privshare.message/0"}, b"")),
        r"message: expected privshare\.message/1",
    ),
    "facts that are a list": (raw(lambda header: tensors({**header, "facts": []}, b"")), r"reply: site, facts .*"),
    "an event nested ten thousand deep": (
        raw(lambda _: tensors({}, b"").replace(b"{}", b"[" * 10_000 + b"]" * 10_000)),
        r"message: not a privshare message",
    ),
}
EVENTS: dict[str, tuple[Fault, str]] = {
    "more noise than any policy demands": (
        event_of(lambda said: {"noise_stddev": 5 * said["noise_stddev"]}),
        r"event\.noise_stddev: more than 4 times the noise that the study asks for; .*",
    ),
    "another sensitivity, with the noise for it": (
        event_of(
            lambda said: {
                "squared_sensitivity": 4 * said["squared_sensitivity"],
                "noise_stddev": 2 * said["noise_stddev"],
            }
        ),
        r"event: its sensitivity, scale or sampling is not what the study fixes",
    ),
    "another unit": (event(scale=7), r"event: its sensitivity, scale or sampling is not what the study fixes"),
    "no noise that was asked for, hidden by sampling": (
        event_of(lambda said: {"sampling": 0.5}),
        r"event: its sensitivity, scale or sampling is not what the study fixes",
    ),
}
FIRST: dict[str, tuple[Fault, str]] = {
    "every sign turned": (counts(lambda found: -found), BELOW),
    "one cell below zero": (bumped(0, -500), BELOW),
    "all of it at random": (
        counts(lambda found: np.random.default_rng(0).integers(-500, 500, len(found))),
        BELOW,
    ),
    "a count too many": (bumped(0, 200), TOTALS),
    "one table ten times": (counts(lambda found: found * np.where(np.arange(len(found)) < 6, 10, 1)), TOTALS),
    "a constant": (counts(lambda found: np.full_like(found, 50)), TOTALS),
    "more units than any site has": (
        counts(lambda found: 1000 * found),
        r"states more units than rounds\.site_units=1000",
    ),
    "units without end": (
        counts(lambda found: np.where(np.arange(len(found)) < 6, 2**49 // 3, 2**49 // 8)),
        r"states more units than rounds\.site_units=1000",
    ),
}
LATER: dict[str, tuple[Fault, str]] = {
    "ten times its units": (counts(lambda found: 10 * found), TOTALS),
    "no units at all": (counts(np.zeros_like), TOTALS),
    "every sign turned": (counts(lambda found: -found), BELOW),
    "a shift of all cells": (counts(lambda found: found + 30), TOTALS),
    "each label turned into the other": (
        counts(lambda found: np.concatenate([found[len(found) // 2 :], found[: len(found) // 2]]) * 2),
        TOTALS,
    ),
    "the answer to another request": (instead_of("one_way"), r"expected \d+ whole numbers and an event"),
}
VECTORS: dict[str, tuple[Fault, str]] = {
    "a sum as long as no units make": (
        counts(lambda found: 40 * found),
        r"a sum longer than its units can make it",
    ),
    "one number beyond all units": (bumped(3, 2**40), r"a sum longer than its units can make it"),
    "tables in the place of vectors": (instead_of("pairs-1"), r"expected \d+ whole numbers and an event"),
}
TRAINING: dict[str, tuple[Fault, str]] = {
    "1e30": (generator(lambda array: np.full_like(array, 1e30)), TRAINING_RULES["moved too far"]),
    "without end": (generator(lambda array: np.full_like(array, np.inf)), r"message: an array is not finite"),
    "every sign turned": (generator(lambda array: -array), TRAINING_RULES["moved too far"]),
    "ten times": (generator(lambda array: 10 * array), TRAINING_RULES["moved too far"]),
    "counts in the place of a generator": (instead_of("pairs-1"), TRAINING_RULES["no generator"]),
}
UPDATES: dict[str, dict[str, tuple[Fault, str]]] = {
    "one_way": {
        **{name: (fault, RULES[name]) for name, (fault, _) in {**RELEASE_FAULTS, **EVENT_FAULTS}.items()},
        **BODIES,
        **EVENTS,
        **FIRST,
    },
    "pairs-1": LATER,
    "embedding-1": VECTORS,
    "train-1": {
        **{name: (fault, {**RULES, **TRAINING_RULES}[name]) for name, (fault, _) in TRAINING_FAULTS.items()},
        **TRAINING,
    },
}


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_disks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """All must answer; what bob says honestly is kept."""
    fed = Federation(tmp_path_factory.mktemp("strict") / "fed", quorum=None, more=", site_units: 1000")
    FED[:] = [fed]
    return fed


def test_there_are_at_least_sixty() -> None:
    assert sum(map(len, UPDATES.values())) >= 60


# In the order of a run: what was refused is asked again, and answered well before the next request.
@pytest.mark.parametrize("request_name", list(UPDATES))
def test_an_update_that_no_honest_site_sends_is_refused_by_site_and_rule(strict: Federation, request_name: str) -> None:
    for how, (fault, rule) in UPDATES[request_name].items():
        strict.faults.clear()
        strict.fails("bob", fault, request_name)
        with pytest.raises(PrivShareError, match=rf"^site bob: {rule}$") as error:
            strict.run()
        assert error.value.code.name in ("PROTOCOL", "UNTRUSTED", "NO_ANSWER", "BUDGET_REFUSED"), how
        assert "\n" not in str(error.value)
    strict.faults.clear()


def test_the_run_goes_on_when_the_site_answers_well_and_nothing_was_spent_twice(strict: Federation) -> None:
    strict.run()
    assert strict.rejected == []
    assert [strict.charged(site) for site in ("ann", "bob", "cyd")] == [["one_way", "pairs-1", "embedding-1"]] * 3


@pytest.mark.parametrize("request_name", ["one_way", "pairs-1", "embedding-1"])
def test_with_a_quorum_the_others_go_on_without_what_was_refused(tmp_path: Path, request_name: str) -> None:
    how = {"one_way": FIRST, "pairs-1": LATER, "embedding-1": VECTORS}[request_name]
    fed = Federation(tmp_path / "fed", more=", site_units: 1000", rounds=1)
    fed.fails("bob", next(iter(how.values()))[0], request_name)
    trained = fed.run()
    assert fed.rejected == [(request_name, {"bob": "PROTOCOL"})]
    assert set(trained.state.releases[request_name].events) == {"ann", "cyd"}
    assert ("bob" in trained.state.units) == (request_name != "one_way")
