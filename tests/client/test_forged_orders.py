"""What a malicious coordinator may send: each order is refused by a rule, and then nothing was spent, drawn or written.

Orders are a table: where they go, what they are, and the rule that must refuse them.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client import policy
from client.policy import MAX_STATEMENTS, MAX_WEIGHT
from client.site import Site
from common.errors import ExitCode
from common.models.monitor import BANDS
from common.privacy.budget import mu_of
from common.privacy.mechanism import MAXIMUM_EMPHASIS
from common.privacy.signatures import SigningKey
from common.privacy.witness import NOTHING, Attestation, Statement
from common.wire import messages
from common.wire.messages import KINDS, MESSAGE_SCHEMA, Reply, Request, refusal
from common.wire.packing import CRITIC, pack_bins
from tests.client.homes import (
    BINS,
    IDENTITY,
    MEASUREMENTS,
    PEERS,
    SINGLE,
    SIZES,
    STUDY,
    TODAY,
    WINDOWED,
    WITH_BINS,
    Clock,
    Forbidden,
    Home,
    confirm,
    forbidden,
    layouts,
    make_home,
    refused,
    sampled,
)

Body = Callable[[Home], bytes]
Arrays = Mapping[str, np.ndarray | None]
POLICY, PROTOCOL, BUDGET, UNCONFIRMED = "POLICY_REFUSED", "PROTOCOL", "BUDGET_REFUSED", "UNCONFIRMED"


@dataclass(frozen=True)
class Forged:
    """One order, the site that it goes to, and the rule that refuses it."""

    rule: str
    body: Body
    at: str = "plain"


def ask(kind: str, **changes: Any) -> Body:
    """A request that is right but for some changes."""
    return lambda home: home.ask(kind, **changes).encode()


def raw(header: str | Mapping[str, Any], payload: bytes = b"") -> bytes:
    """A body with a header of tensors as it is given."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return len(text).to_bytes(8, "little") + text + payload


def head_of(home: Home, **changes: Any) -> dict[str, Any]:
    """The fields of a right request for one-way tables but for some changes; None takes one away."""
    fields = {
        "schema": MESSAGE_SCHEMA,
        "kind": "one_way",
        "study": home.study.digest(),
        "run": "run-1",
        "name": "one_way",
        "options": {"share": 0.25},
        **changes,
    }
    return {name: value for name, value in fields.items() if value is not None}


def head(**changes: Any) -> Body:
    """A request whose header has other fields."""
    return lambda home: raw({"__metadata__": {"privshare": json.dumps(head_of(home, **changes))}})


def options(text: str) -> Body:
    """A request whose options are written as given, whatever JSON makes of them."""

    def body(home: Home) -> bytes:
        written = json.dumps(head_of(home, options="OPTIONS")).replace('"OPTIONS"', text)
        return raw({"__metadata__": {"privshare": written}})

    return body


def tensor(payload: bytes = b"", **fields: Any) -> Body:
    """A request with one tensor as it is declared."""
    declared = {"dtype": "I64", "shape": [1], "data_offsets": [0, len(payload)], **fields}

    def body(home: Home) -> bytes:
        return raw({"__metadata__": {"privshare": json.dumps(head_of(home))}, "tables": declared}, payload)

    return body


def rewritten(order: Body, old: bytes, new: bytes) -> Body:
    """An order with some bytes in place of others, as many."""

    def body(home: Home) -> bytes:
        before = order(home)
        assert (before.count(old), len(old)) == (1, len(new))
        return before.replace(old, new)

    return body


def shares() -> Iterator[tuple[str, Forged]]:
    """Of the budget: what is no number above 0 and at most 1."""
    texts = {
        "0": POLICY,
        "0.0": POLICY,
        "-0.0": POLICY,
        "-0.25": POLICY,
        "-5e-324": POLICY,
        "1e-400": POLICY,
        "1.0000000000000002": POLICY,
        "2": POLICY,
        "1e308": POLICY,
        "1" + "0" * 400: POLICY,
        "true": POLICY,
        "null": POLICY,
        '"0.25"': POLICY,
        "[0.25]": POLICY,
        "{}": POLICY,
        # So little that its noise would not fit the integers, and would let the sums through.
        "1e-30": BUDGET,
        "1e-300": BUDGET,
        "5e-324": BUDGET,
    }
    for kind in MEASUREMENTS:
        for text, rule in texts.items():
            yield f"share of {kind}: {text[:20]}", Forged(rule, ask(kind, options={"share": json.loads(text)}))
        yield f"share of {kind}: none", Forged(POLICY, share_taken_from(kind))
    for text in ("NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1" * 5000, "+0.25", "0x1p-2", "0,25", ".25"):
        yield f"share that is no JSON: {text[:20]}", Forged(PROTOCOL, options(f'{{"share":{text}}}'))
    for kind in ("critic", "verdict"):
        yield f"share of {kind}: 1.5, units sampled", Forged(POLICY, ask(kind, options={"share": 1.5}), at="sampled")


def share_taken_from(kind: str) -> Body:
    return lambda home: replace(home.ask(kind), options={}).encode()


def headers() -> Iterator[tuple[str, Forged]]:
    """Of the message, and of the JSON in it."""
    for kind in KINDS:
        yield f"study: another one's {kind}", Forged(POLICY, ask(kind, study="0f" * 32))
    fields: dict[str, tuple[str, dict[str, Any]]] = {
        "study: in capitals": (POLICY, {"study": "AB" * 32}),
        "study: empty": (PROTOCOL, {"study": ""}),
        "study: a number": (PROTOCOL, {"study": 7}),
        "study: none": (PROTOCOL, {"study": None}),
        "schema: of the future": (PROTOCOL, {"schema": "privshare.message/2"}),
        "schema: none": (PROTOCOL, {"schema": None}),
        "schema: a list": (PROTOCOL, {"schema": [MESSAGE_SCHEMA]}),
        "kind: unknown": (PROTOCOL, {"kind": "open"}),
        "kind: a name of Python": (PROTOCOL, {"kind": "__class__"}),
        "kind: in capitals": (PROTOCOL, {"kind": "ONE_WAY"}),
        "kind: a list": (PROTOCOL, {"kind": ["one_way"]}),
        "kind: none": (PROTOCOL, {"kind": None}),
        "run: empty": (PROTOCOL, {"run": ""}),
        "run: a number": (PROTOCOL, {"run": 1}),
        "run: not printable": (POLICY, {"run": "run\n1"}),
        "name: none": (PROTOCOL, {"name": None}),
        "name: too long": (PROTOCOL, {"name": "n" * 257}),
        "name: half of a surrogate pair": (POLICY, {"name": "\ud800"}),
        "name: a zero byte": (POLICY, {"name": "one\0way"}),
        "options: none": (PROTOCOL, {"options": None}),
        "options: a list": (PROTOCOL, {"options": [["share", 0.25]]}),
        "options: a text": (PROTOCOL, {"options": "share"}),
    }
    for name, (rule, changes) in fields.items():
        yield name, Forged(rule, head(**changes))
    texts = {
        "JSON: a list": "[]",
        "JSON: a text": '"one_way"',
        "JSON: null": "null",
        "JSON: none": "",
        "JSON: cut short": '{"schema":',
        "JSON: two values": "{}{}",
        "JSON: 100,000 brackets deep": "[" * 100_000,
    }
    for name, text in texts.items():
        yield name, Forged(PROTOCOL, constant(raw({"__metadata__": {"privshare": text}})))
    for depth, rule in ((500, POLICY), (100_000, PROTOCOL)):
        deep = "[" * depth + "]" * depth
        yield f"JSON: a share {depth} brackets deep", Forged(rule, options(f'{{"share":{deep}}}'))
    yield "JSON: NaN where nobody looks", Forged(PROTOCOL, options('{"share":0.25,"note":NaN}'))


def constant(body: bytes) -> Body:
    return lambda home: body


def bodies() -> Iterator[tuple[str, Forged]]:
    """Of the frame: not tensors, or not those that are declared."""
    plain = {
        "nothing": b"",
        "zeros": b"\0" * 100,
        "text": b"GET / HTTP/1.1\r\n\r\n",
        "a pickle": b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93\x94\x8c\x02id\x94\x85\x94R\x94.",
        "a header of 2^63 bytes": (2**63).to_bytes(8, "little") + b"{}",
        "a header longer than the body": (100).to_bytes(8, "little") + b"{}",
        "no header": raw("{}"),
        "metadata of others": raw({"__metadata__": {"format": "pt"}}),
        "metadata that are a number": raw({"__metadata__": {"privshare": 1}}),
        "metadata twice": raw('{"__metadata__":{"privshare":"{}"},"__metadata__":{"privshare":"{}"}}'),
    }
    for name, body in plain.items():
        yield f"body: {name}", Forged(PROTOCOL, constant(body))
    eight = bytes(8)
    declared: dict[str, Body] = {
        "2^60 numbers, and none there": tensor(shape=[2**60], data_offsets=[0, 2**63]),
        "2^60 numbers of no length": tensor(shape=[2**60], data_offsets=[0, 0]),
        "2^60 times none": tensor(shape=[2**60, 0]),
        "a size that wraps round": tensor(eight, shape=[2**40, 2**40]),
        "a negative shape": tensor(eight, shape=[-1]),
        "a hundred dimensions": tensor(eight, shape=[1] * 100),
        "more than there is": tensor(eight, shape=[2], data_offsets=[0, 16]),
        "less than there is": tensor(bytes(16), data_offsets=[0, 8]),
        "offsets that run backwards": tensor(eight, data_offsets=[8, 0]),
        "offsets outside": tensor(eight, data_offsets=[8, 16]),
        "objects": tensor(eight, dtype="OBJECT"),
        "a float of 8 bits": tensor(b"\0", dtype="F8_E4M3"),
        "a float of 16 bits without a name here": tensor(b"\0\0", dtype="BF16"),
        "100,000 brackets": constant(raw('{"a":' + "[" * 100_000 + "}")),
    }
    for name, body_of in declared.items():
        yield f"tensor: {name}", Forged(PROTOCOL, body_of)


ONES = np.ones(3, dtype=np.int64)
BAD_TABLES: dict[str, Arrays] = {
    "none": {"tables": None},
    "an empty list": {"tables": np.array([], dtype=np.int64), "emphasis": np.array([], dtype=np.int64)},
    "a number": {"tables": np.array(1), "emphasis": np.array(1)},
    "of two dimensions": {"tables": np.array([[0, 1, 2]]), "emphasis": ONES[None]},
    "as floats": {"tables": np.array([0.0, 1.0, 2.0])},
    "as complex numbers": {"tables": np.array([0, 1, 2], dtype=np.complex64)},
    "narrow": {"tables": np.array([0, 1, 2], dtype=np.int32)},
    "negative": {"tables": np.array([-1, 1, 2])},
    "behind the last": {"tables": np.array([0, 1, 3])},
    "far away": {"tables": np.array([0, 1, 2**62])},
    "one twice": {"tables": np.array([0, 1, 1])},
    "falling": {"tables": np.array([0, 2, 1])},
    "more than there are": {"tables": np.arange(4), "emphasis": np.ones(4, dtype=np.int64)},
    "no emphasis": {"emphasis": None},
    "an emphasis too few": {"emphasis": ONES[:2]},
    "an emphasis too many": {"emphasis": np.ones(4, dtype=np.int64)},
    "an emphasis of two dimensions": {"emphasis": ONES[None]},
    "an emphasis in a column": {"emphasis": ONES[:, None]},
    "an emphasis of 0": {"emphasis": np.array([1, 0, 1])},
    "a negative emphasis": {"emphasis": np.array([1, -1, 1])},
    "an emphasis too large": {"emphasis": np.array([1, MAXIMUM_EMPHASIS + 1, 1])},
    "an emphasis far too large": {"emphasis": np.array([1, 2**62, 1])},
    "an emphasis as floats": {"emphasis": np.ones(3)},
    "a narrow emphasis": {"emphasis": np.ones(3, dtype=np.int32)},
    "truths for an emphasis": {"emphasis": np.ones(3, dtype=bool)},
}
BAD_BINS: dict[str, Arrays] = {
    "a map too short": {"bins.0": np.array([0, 1, 1])},
    "a map too long": {"bins.0": np.array([0, 1, 1, 2, 2])},
    "a map of two dimensions": {"bins.0": np.array([[0, 1, 1, 2]])},
    "a number": {"bins.0": np.array(0)},
    "an empty map": {"bins.0": np.array([], dtype=np.int64)},
    "narrow integers": {"bins.0": np.array([0, 1, 1, 2], dtype=np.int32)},
    "unsigned integers": {"bins.0": np.array([0, 1, 1, 2], dtype=np.uint64)},
    "floats": {"bins.0": np.array([0.0, 1.0, 1.0, 2.0])},
    "truths": {"bins.0": np.array([False, True, True, False])},
    "a negative bin": {"bins.0": np.array([-1, 0, 1, 2])},
    "the least number": {"bins.0": np.array([0, 1, 1, -(2**63)])},
    "a gap": {"bins.0": np.array([0, 1, 1, 3])},
    "no bin 0": {"bins.0": np.array([1, 2, 2, 3])},
    "a bin far away": {"bins.0": np.array([0, 1, 1, 2**62])},
    "missing beside a value": {"bins.0": np.array([0, 1, 2, 2])},
    "missing before the values": {"bins.0": np.array([1, 2, 2, 0])},
    "missing and all values in one": {"bins.0": np.array([0, 0, 0, 0])},
    "a map for a column that is not there": {"bins.3": np.array([0])},
    "a map with an odd name": {"bins.00": np.array([0, 1, 1, 2])},
    "no map for a column": {"bins.1": None},
}
STEPS = np.arange(5)
BAD_WEIGHTS: dict[str, np.ndarray | None] = {
    "none": None,
    "one too many": np.zeros(sum(SIZES) + BANDS),
    "one too few": np.zeros(sum(SIZES) + BANDS - 2),
    "of two dimensions": np.zeros((1, sum(SIZES) + BANDS - 1)),
    "narrow": np.zeros(sum(SIZES) + BANDS - 1, dtype=np.float32),
    "whole numbers": np.zeros(sum(SIZES) + BANDS - 1, dtype=np.int64),
    # Whether their sum is one depends on the record.
    "so large that their sum is no number": np.full(sum(SIZES) + BANDS - 1, -1.7e308),
    "a little too large": np.full(sum(SIZES) + BANDS - 1, 1.01 * MAX_WEIGHT),
}
BAD_CRITICS: dict[str, Arrays] = {
    "without a layer": {"critic.record_embedding.weight": None},
    "of another shape": {"critic.record_embedding.weight": np.zeros((4, 9), dtype=np.float32)},
    "transposed": {"critic.record_embedding.weight": np.zeros((10, 4), dtype=np.float32)},
    "of another type": {"critic.record_embedding.weight": np.zeros((4, 10))},
    "with a layer too many": {"critic.extra": np.zeros(1, dtype=np.float32)},
}
BAD_TRAINING: dict[str, dict[str, Any]] = {
    "steps beyond the study": {"steps": 4},
    "steps without end": {"steps": 10**400},
    "negative steps": {"steps": -1},
    "steps as a float": {"steps": 1.0},
    "steps as a truth": {"steps": True},
    "no steps": {"steps": None},
    "one learning rate": {"learning_rates": [0.1]},
    "three learning rates": {"learning_rates": [0.1, 0.1, 0.1]},
    "a learning rate too large": {"learning_rates": [0.1, 2.0]},
    "a negative learning rate": {"learning_rates": [-0.1, 0.1]},
    "a learning rate as text": {"learning_rates": ["0.1", 0.1]},
    "a learning rate alone": {"learning_rates": 0.1},
    "a seed as text": {"seed": "7"},
    "no seed": {"seed": None},
    "a seed as a float": {"seed": 7.0},
    "a seed as a truth": {"seed": True},
    "a negative seed": {"seed": -1},
    "a seed that no generator takes": {"seed": 2**63},
    "a seed of 400 digits": {"seed": 10**400},
    "a weight alone": {"weights": 1.0},
    "no weights": {"weights": []},
    "a whole weight": {"weights": [1]},
    "a weight as text": {"weights": ["1.0"]},
    "a negative weight": {"weights": [-0.5]},
    "a weight too large": {"weights": [1e9]},
    "weights too many": {"weights": [1.0, 1.0]},
    "weights by name": {"weights": {"semantic": 1.0}},
    "weights without what passes": {"weights": [1.0]},
    "more than all that passes": {"weights": [1.0], "passing": [1.5], "passed": [0.5]},
    "less than none that passes": {"weights": [1.0], "passing": [-0.5], "passed": [0.5]},
    "what passes too often": {"weights": [1.0], "passing": [0.5, 0.5], "passed": [0.5]},
    "what passes without what passed": {"weights": [1.0], "passing": [0.5]},
    "more than all that passed": {"weights": [1.0], "passing": [0.5], "passed": [1.5]},
}
BAD_TARGETS: dict[str, Arrays] = {
    "a generator of another shape": {"generator.heads.weight": np.zeros((10, 3), dtype=np.float32)},
    "a generator of another type": {"generator.heads.bias": np.zeros(10)},
    "a generator with a layer too many": {"generator.extra": np.zeros(1, dtype=np.float32)},
    "values of another shape": {"targets.one_way.values": np.zeros((2, 9), dtype=np.float32)},
    "precisions of another shape": {"targets.one_way.precision": np.zeros(9, dtype=np.float32)},
    "values of pairs of another shape": {"targets.pair.values": np.zeros((2, 10, 9), dtype=np.float32)},
    "no precisions": {"targets.pair.precision": None},
    "label counts of another shape": {"targets.label_counts": np.zeros(3, dtype=np.float32)},
    "values of a table that is not there": {"targets.average.values": np.zeros((2, 5), dtype=np.float32)},
    "half of an embedding": {"targets.embedding.values": np.zeros((2, 8), dtype=np.float32)},
    "one too many": {"targets.extra": np.zeros(1, dtype=np.float32)},
    "no groups": {"groups.records": None},
    "groups too few": {"groups.records": np.arange(9)},
    "groups as floats": {"groups.records": np.arange(10, dtype=np.float64)},
    "groups from 1": {"groups.records": np.arange(1, 11)},
    "groups with gaps": {"groups.records": np.arange(10) * 2},
    "groups that fall": {"groups.records": np.arange(10)[::-1].copy()},
    "groups that join bins of two columns": {"groups.records": np.array([0, 1, 2, 2, 3, 4, 5, 6, 7, 8])},
    "values of what pairs imply of another shape": {"targets.implied.values": np.zeros((2, 9), dtype=np.float32)},
    "groups of channels that are not there": {"groups.channels": np.arange(2)},
}


def critic_of(home: Home) -> Arrays:
    return {name: array for name, array in home.ask("critic").arrays.items() if name.startswith(CRITIC)}


def with_critic(kind: str, arrays: Arrays, **given: Any) -> Body:
    """An order with the arrays of a critic, some of them other ones."""
    return lambda home: home.ask(kind, options=given, arrays={**critic_of(home), **arrays}).encode()


def measurements() -> Iterator[tuple[str, Forged]]:
    """Of what is counted, over which bins."""
    for name, bad in BAD_TABLES.items():
        yield f"tables: {name}", Forged(POLICY, ask("tables", arrays=bad))
    for name, bad in BAD_BINS.items():
        for kind in WITH_BINS:
            yield f"bins of {kind}: {name}", Forged(POLICY, ask(kind, arrays=bad))
    for kind in WITH_BINS:
        yield f"bins of {kind}: steps joined", Forged(POLICY, ask(kind, arrays={"bins.3": STEPS // 2}), at="windows")
        yield f"bins of {kind}: steps turned", Forged(POLICY, ask(kind, arrays={"bins.3": 4 - STEPS}), at="windows")
        yield f"bins of {kind}: no map for a channel", Forged(POLICY, ask(kind, arrays={"bins.5": None}), at="windows")
    for name, weights in BAD_WEIGHTS.items():
        yield f"weights: {name}", Forged(POLICY, ask("monitor", arrays={"weights": weights}))
    for value in (np.nan, np.inf, -np.inf):
        weights = np.full(sum(SIZES) + BANDS - 1, value)
        yield f"weights: {value}", Forged(PROTOCOL, ask("monitor", arrays={"weights": weights}))
    for more in (-1, 1, -5):
        yield (
            f"weights: {more} more than columns and channels have bins",
            Forged(POLICY, weights_beyond(more), at="windows"),
        )
    for numbers in ([], [0]):
        yield f"tables: {numbers} where there are none", Forged(POLICY, tables_of_one_column(numbers), at="one column")


def networks() -> Iterator[tuple[str, Forged]]:
    """Of critics and generators, and of their training."""
    for name, bad in BAD_CRITICS.items():
        for kind in ("critic", "verdict"):
            yield f"critic of {kind}: {name}", Forged(POLICY, with_critic(kind, bad))
        yield (
            f"critic of train: {name}",
            Forged(POLICY, with_critic("train", bad, weights=[1.0], passing=[0.5], passed=[0.4])),
        )
    for kind in ("critic", "verdict"):
        bad = {"critic.record_embedding.weight": np.full((4, 10), np.nan, dtype=np.float32)}
        yield f"critic of {kind}: not finite", Forged(PROTOCOL, with_critic(kind, bad))
        yield f"critic of {kind}: that of a study without windows", Forged(POLICY, without_steps(kind), at="windows")
    for name, wrong in BAD_TRAINING.items():
        yield f"training: {name}", Forged(POLICY, with_critic("train", {}, **wrong))
    for word in (b"NaN       ", b"Infinity  ", b"-Infinity ", b"1e400     "):
        order = rewritten(
            with_critic("train", {}, weights=[0.12345678], passing=[0.5], passed=[0.4]), b"0.12345678", word
        )
        yield f"training: a weight of {word.decode().strip()}", Forged(PROTOCOL, order)
    for name, bad in BAD_TARGETS.items():
        yield f"training: {name}", Forged(POLICY, ask("train", arrays=bad))


def weights_beyond(more: int) -> Body:
    return lambda home: home.ask("monitor", arrays={"weights": np.zeros(home.score_weights + more)}).encode()


def without_steps(kind: str) -> Body:
    return lambda home: home.ask(kind, arrays={"critic.step_embedding.weight": None}).encode()


def tables_of_one_column(numbers: Sequence[int]) -> Body:
    found = {
        **pack_bins([BINS[2]]),
        "tables": np.array(numbers, dtype=np.int64),
        "emphasis": np.ones(len(numbers), dtype=np.int64),
    }
    return lambda home: Request("tables", home.study.digest(), "run-1", "tables", {"share": 0.25}, found).encode()


STATED = asdict(Statement("east", "a" * 64, 7, "b" * 64).signed(PEERS["east"]))
ATTESTED: dict[str, Any] = {"witness": "east", "nonce": "", **STATED, "site": "north"}
BAD_STATEMENTS: dict[str, Any] = {
    "a text": "east",
    "a list": list(STATED.values()),
    "null": None,
    "a field too few": {name: value for name, value in STATED.items() if name != "hash"},
    "a field too many": {**STATED, "epsilon": 0},
    "a sequence as text": {**STATED, "sequence": "7"},
    "a sequence as a truth": {**STATED, "sequence": True},
    "a sequence as a float": {**STATED, "sequence": 7.0},
    "a site as a number": {**STATED, "site": 7},
    "a hash of a kilobyte": {**STATED, "hash": "b" * 1024},
    "a signature in a list": {**STATED, "signature": [STATED["signature"]]},
}
FORGED_STATEMENTS: dict[str, dict[str, Any]] = {
    "of a peer, not signed": {**STATED, "signature": ""},
    "of a peer, signed for a lower number": {**STATED, "sequence": 8},
    "of a peer, by another peer": asdict(Statement("east", "a" * 64, 7, "b" * 64).signed(PEERS["west"])),
    "of a peer, by this site": asdict(Statement("east", "a" * 64, 7, "b" * 64).signed(IDENTITY)),
    "of a peer, a number of 400 digits": {**STATED, "sequence": 10**400},
    "of this site, by a peer": asdict(Statement("north", "a" * 64, 7, "b" * 64).signed(PEERS["east"])),
    "of this site, not signed": {**STATED, "site": "north"},
}


def statements() -> Iterator[tuple[str, Forged]]:
    """Of what sites say of ledgers."""
    for kind, name in (("witness", "heads"), ("confirm", "attestations")):
        for listed in (None, {}, "east", 7, [None] * (MAX_STATEMENTS + 1)):
            shown = f"{len(listed)} of them" if isinstance(listed, list) else repr(listed)
            yield f"{name}: {shown}", Forged(POLICY, ask(kind, options={name: listed}), at="peers")
    for name, wrong in BAD_STATEMENTS.items():
        yield f"heads: {name}", Forged(PROTOCOL, ask("witness", options={"heads": [wrong]}), at="peers")
        one = {**ATTESTED, **wrong} if isinstance(wrong, dict) and len(wrong) == len(STATED) else wrong
        yield f"attestations: {name}", Forged(PROTOCOL, ask("confirm", options={"attestations": [one]}), at="peers")
    for name, statement in FORGED_STATEMENTS.items():
        yield f"heads: {name}", Forged(PROTOCOL, ask("witness", options={"heads": [statement]}), at="peers")
    for nonces in (None, [], "nonce", {"east": 7}, {"east": None}, {"east": "n" * 65}):
        yield f"nonces: {str(nonces)[:20]}", Forged(POLICY, ask("witness", options={"nonces": nonces}), at="peers")
    for kind in MEASUREMENTS:
        yield f"before anybody confirmed: {kind}", Forged(UNCONFIRMED, ask(kind), at="peers")


def times() -> Iterator[tuple[str, Forged]]:
    """Of when, and how often."""
    for kind in KINDS:
        yield f"after the last day: {kind}", Forged(POLICY, ask(kind), at="expired")
    yield "after the last day: what was answered before", Forged(POLICY, answered, at="expired")
    again: dict[str, tuple[str, Body]] = {
        "the same under another name": (BUDGET, ask("one_way", name="other", options={"share": 0.6})),
        "the same in another run": (BUDGET, ask("one_way", name="one/way", run="run-2", options={"share": 0.6})),
        "another share under the name": (POLICY, ask("one_way", name="one/way", options={"share": 0.1})),
        "another note under the name": (POLICY, ask("one_way", name="one/way", options={"share": 0.6, "note": 1})),
        "another array under the name": (
            POLICY,
            ask("one_way", name="one/way", options={"share": 0.6}, arrays={"more": ONES}),
        ),
        "another kind under the name": (POLICY, ask("tables", name="one/way")),
        "another account under the name": (POLICY, ask("monitor", name="one/way")),
        "the name split elsewhere": (POLICY, ask("one_way", run="run-1/one", name="way", options={"share": 0.6})),
    }
    for name, (rule, body) in again.items():
        yield f"again: {name}", Forged(rule, body, at="answered")


def answered(home: Home) -> bytes:
    """What the sites "answered" and "expired" answered before."""
    return home.ask("one_way", name="one/way", options={"share": 0.6}).encode()


FAMILIES = {
    family.__name__: list(family()) for family in (shares, headers, bodies, measurements, networks, statements, times)
}


@dataclass(frozen=True)
class Stand:
    """A site that orders go to; none may change it."""

    home: Home
    site: Site
    noise: Forbidden

    def files(self) -> dict[str, bytes]:
        """Everything in its folder."""
        found = sorted(path for path in self.home.folder.rglob("*") if path.is_file())
        return {str(path): path.read_bytes() for path in found}


def make_stands(folder: Path) -> dict[str, Home]:
    """The sites of the table."""
    one_column = {
        **STUDY,
        "columns": {name: STUDY["columns"][name] for name in ("amount", "ill")},
        "ignore": ["colour", "age"],
    }
    homes = {
        "plain": make_home(folder / "plain"),
        "windows": make_home(folder / "windows", SINGLE, study=WINDOWED),
        "sampled": make_home(folder / "sampled", study=sampled(STUDY)),
        "one column": make_home(folder / "one", study=one_column),
        "peers": make_home(folder / "peers", peers=PEERS),
        "answered": make_home(folder / "answered"),
        "expired": make_home(folder / "expired", expires=TODAY),
    }
    for at in ("answered", "expired"):
        assert refused(homes[at].open().handle(answered(homes[at]))) is None
    return homes


@pytest.fixture(scope="module")
def stands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Stand]:
    found = {}
    for at, home in make_stands(tmp_path_factory.mktemp("stands")).items():
        noise, clock = Forbidden(), Clock()
        found[at] = Stand(home, home.open(noise, today=clock), noise)  # type: ignore[arg-type]
        if at == "expired":
            clock.day += timedelta(days=1)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_forged_orders_are_refused_by_a_rule_and_spend_nothing(
    stands: dict[str, Stand], family: str, caplog: pytest.LogCaptureFixture
) -> None:
    faults = {}
    for name, order in FAMILIES[family]:
        stand = stands[order.at]
        body, before = order.body(stand.home), stand.files()
        caplog.clear()
        with caplog.at_level(logging.DEBUG):
            reply = stand.site.handle(body)
        said = [record.getMessage().split(" reason=")[0] for record in caplog.records]
        if (
            reply != refusal("north", ExitCode[order.rule])
            or said != [f"site=north event=refused rule={order.rule}"]
            or stand.files() != before
            or stand.noise.asked
        ):
            faults[name] = (Reply.decode(reply).refused, said, stand.noise.asked)
    assert faults == {}


def test_there_are_hundreds_of_forged_orders_each_under_a_name_of_its_own() -> None:
    orders = [order for family in FAMILIES.values() for order in family]
    assert len({name for name, _ in orders}) == len(orders) >= 450
    assert {len(family) >= 15 for family in FAMILIES.values()} == {True}


def test_right_orders_are_answered_where_forged_ones_are_refused(tmp_path: Path) -> None:
    for at, home in make_stands(tmp_path).items():
        site = home.open()
        if at == "peers":
            confirm(home, site)
        if at == "one column":
            assert refused(site.handle(home.ask("one_way").encode())) is None
            continue
        kinds = ("train", "witness", "confirm", *(["one_way"] if at == "peers" else MEASUREMENTS))
        for kind in kinds:
            given = {"share": 0.1} if kind in MEASUREMENTS else {}
            asked = home.ask(kind, options=given, arrays=critic_of(home) if kind == "train" else {})
            assert refused(site.handle(asked.encode())) is None, (at, kind)


def test_nothing_that_an_order_says_of_noise_is_listened_to(tmp_path: Path) -> None:
    wishes = {
        "noise_stddev": 1e-9,
        "noise": "none",
        "epsilon": 1e9,
        "delta": 0.9,
        "bound": 1e9,
        "spend": 1e9,
        "sampling": 1e-6,
        "clip_norm": 1e9,
        "least_noise": 0,
        "accountant": "gdp",
        "account": "holdout",
        "squared_sensitivity": 1,
        "scale": 1,
    }
    for kind in MEASUREMENTS:
        events = []
        for number, more in enumerate(({}, wishes)):
            home = make_home(tmp_path / kind / str(number), study=sampled(STUDY))
            assert refused(home.open().handle(home.ask(kind, options=more).encode())) is None
            events += [charge.event for charge in home.charges]
        assert events[0] == events[1]


def test_bins_that_make_more_cells_than_a_site_will_hold_are_refused_and_spend_nothing(
    either: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = either
    cells = layouts(home)["tables"].n_cells
    monkeypatch.setattr(policy, "MAX_CELLS", cells - 1)
    assert refused(home.open(forbidden()).handle(home.ask("tables").encode())) == POLICY
    assert home.charged == []
    monkeypatch.setattr(policy, "MAX_CELLS", cells)
    assert refused(home.open().handle(home.ask("tables").encode())) is None


def test_a_body_beyond_the_limit_is_refused_before_it_is_read(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    body = home.ask("tables").encode()
    site = home.open()
    with monkeypatch.context() as patch:
        patch.setattr(messages, "MAX_BODY", len(body) - 1)
        patch.setattr(messages, "load", lambda _: pytest.fail("was read"))
        reply = site.handle(body)
    assert refused(reply) == PROTOCOL
    assert home.charged == []
    with monkeypatch.context() as patch:
        patch.setattr(messages, "MAX_BODY", len(body))
        reply = site.handle(body)
    assert refused(reply) is None


@pytest.mark.parametrize("text", ['{"share":0.1,"share":0.2}', '{"share":0.1,"note":{"a":1,"a":1}}'])
def test_a_key_that_is_there_twice_is_refused(home: Home, text: str) -> None:
    assert refused(home.open(forbidden()).handle(options(text)(home))) == PROTOCOL


# --- what others sign, or do not


def attestation(facts: Mapping[str, Any], **changes: Any) -> Attestation:
    """What east attests of the head that a site stated, but for some changes; signed with east's key."""
    head = facts["ledger_head"]
    seen = {name: head[name] for name in ("site", "ledger", "sequence", "hash")}
    whole = {"witness": "east", "nonce": facts["nonce"], **seen, **changes}
    return Attestation(**whole).signed(PEERS["east"])


STRANGER = SigningKey.from_seed(b"s" * 32)
FORGED_ATTESTATIONS: dict[str, Callable[[Mapping[str, Any]], list[Attestation]]] = {
    "none": lambda facts: [],
    "one peer where two are needed": lambda facts: [attestation(facts)],
    "one peer twice": lambda facts: [attestation(facts)] * 2,
    "one peer under both names": lambda facts: [attestation(facts), replace(attestation(facts), witness="west")],
    "one peer, signed under both names": lambda facts: [attestation(facts), attestation(facts, witness="west")],
    "a peer and a stranger": lambda facts: [
        attestation(facts),
        attestation(facts, witness="west").signed(STRANGER),
        attestation(facts, witness="south").signed(STRANGER),
    ],
    "a peer and this site itself": lambda facts: [
        attestation(facts),
        attestation(facts, witness="north").signed(IDENTITY),
        attestation(facts, witness="west").signed(IDENTITY),
    ],
    "a nonce of before": lambda facts: both(facts, nonce="0" * 32),
    "no nonce": lambda facts: both(facts, nonce=""),
    "another site's ledger": lambda facts: both(facts, site="west"),
    "an older head": lambda facts: both(facts, sequence=0, hash=facts["ledger_head"]["ledger"]),
    "nothing seen": lambda facts: both(facts, sequence=NOTHING, ledger="", hash=""),
    "not signed": lambda facts: [replace(one, signature="") for one in both(facts)],
    "signed for another nonce": lambda facts: [
        replace(one, nonce=facts["nonce"]) for one in both(facts, nonce="0" * 32)
    ],
    "signed as a statement": lambda facts: [
        replace(one, signature=Statement.from_dict(facts["ledger_head"]).signed(PEERS[one.witness]).signature)
        for one in both(facts)
    ],
}


def both(facts: Mapping[str, Any], **changes: Any) -> list[Attestation]:
    """The same of both peers, each signed with its own key."""
    return [attestation(facts, **{**changes, "witness": peer}).signed(key) for peer, key in PEERS.items()]


def confirmed_by(home: Home, site: Site, given: Sequence[Attestation]) -> int:
    """So many peers have confirmed, says the site."""
    asked = home.ask("confirm", options={"attestations": [asdict(one) for one in given]})
    return int(Reply.decode(site.handle(asked.encode())).facts["confirmed"])


@pytest.mark.parametrize("fault", FORGED_ATTESTATIONS)
def test_forged_attestations_confirm_nothing_and_nothing_is_spent(tmp_path: Path, fault: str) -> None:
    home, noise = make_home(tmp_path / "north", peers=PEERS), Forbidden()
    site = home.open(noise)  # type: ignore[arg-type]
    facts = Reply.decode(site.handle(home.ask("describe").encode())).facts
    before = home.ledger.read_bytes()
    assert confirmed_by(home, site, FORGED_ATTESTATIONS[fault](facts)) < 2
    for kind in MEASUREMENTS:
        assert refused(site.handle(home.ask(kind).encode())) == UNCONFIRMED
    assert (home.ledger.read_bytes(), noise.asked) == (before, [])


@pytest.mark.parametrize(
    "changes",
    [
        {"sequence": 2, "hash": "0" * 64},
        {"sequence": 10**400},
        {"hash": "0" * 64},
        {"ledger": "0" * 64},
        # An old nonce too: what a peer saw, it saw.
        {"sequence": 2, "hash": "0" * 64, "nonce": ""},
    ],
)
def test_a_head_that_a_peer_signed_and_the_ledger_lacks_stops_a_site_for_good(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    home = make_home(tmp_path / "north", peers=PEERS)
    site = home.open(forbidden())
    facts = Reply.decode(site.handle(home.ask("describe").encode())).facts
    before = home.ledger.read_bytes()
    asked = home.ask("confirm", options={"attestations": [asdict(attestation(facts, **changes))]})
    assert refused(site.handle(asked.encode())) == "LEDGER_INVALID"
    assert confirmed_by(home, site, both(facts)) == 2
    for kind in MEASUREMENTS:
        assert refused(site.handle(home.ask(kind).encode())) == "LEDGER_INVALID"
    assert home.ledger.read_bytes() == before


def test_a_peer_that_shows_two_ledgers_is_refused(tmp_path: Path) -> None:
    home = make_home(tmp_path / "north", peers=PEERS)
    site = home.open(forbidden())
    shown = [
        Statement("east", ledger, 7, digest).signed(PEERS["east"])
        for ledger, digest in (("a" * 64, "b" * 64), ("a" * 64, "c" * 64), ("d" * 64, "b" * 64))
    ]
    answers = [
        refused(site.handle(home.ask("witness", options={"heads": [asdict(one)]}).encode()))
        for one in (shown[0], *shown)
    ]
    assert answers == [None, None, PROTOCOL, PROTOCOL]


# --- chance


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, Site]:
    home = make_home(tmp_path_factory.mktemp("standing") / "north")
    return home, home.open()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_never_raise(standing: tuple[Home, Site], body: bytes) -> None:
    assert refused(standing[1].handle(body)) == PROTOCOL


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["describe", *MEASUREMENTS]),
    st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=3),
)
def test_a_request_with_changed_bytes_never_raises_and_never_passes_the_budget(
    standing: tuple[Home, Site], kind: str, changes: list[tuple[int, int]]
) -> None:
    home, site = standing
    body = bytearray(home.ask(kind).encode())
    for place, value in changes:
        body[place % len(body)] = value
    refused(site.handle(bytes(body)))
    for account in ("train", "holdout"):
        spent = [charge.event.spend for charge in home.charges if charge.event.account == account]
        assert sum(spent) <= mu_of(epsilon=1, delta=1e-5) ** 2
