"""Messages: what goes in comes out, and whatever else arrives is a ProtocolError and nothing worse."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from common.errors import ExitCode, ProtocolError
from common.wire import messages
from common.wire.messages import KINDS, MESSAGE_SCHEMA, Reply, Request, refusal

REQUEST = Request(
    "tables",
    study="0f" * 32,
    run="run-1",
    name="tables",
    options={"share": 0.25, "steps": 3, "text": "é", "list": [1, 2.5, None]},
    arrays={"bins.0": np.array([0, 1, 1]), "tables": np.array([0, 2]), "weights": np.array([0.5, -1.5])},
)
REPLY = Reply("north", {"ledger_head": "ab" * 32, "event": {"cells": 3}}, {"counts": np.array([3, -7, 2**62])})

DTYPES = ("int64", "int32", "uint8", "uint64", "float64", "float32", "float16", "bool")


def same(left: dict[str, np.ndarray], right: Any) -> bool:
    """Whether two sets of arrays are equal in names, types, shapes and values."""
    return left.keys() == right.keys() and all(
        left[name].dtype.newbyteorder("=") == right[name].dtype
        and left[name].shape == right[name].shape
        and np.array_equal(left[name], right[name])
        for name in left
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_comes_out_as_it_went_in(kind: str) -> None:
    sent = Request(kind, REQUEST.study, REQUEST.run, REQUEST.name, REQUEST.options, REQUEST.arrays)
    came = Request.decode(sent.encode())
    assert (came.kind, came.study, came.run, came.name) == (kind, sent.study, sent.run, sent.name)
    assert came.identity == "run-1/tables"
    assert came.options == sent.options
    assert same(dict(sent.arrays), came.arrays)


def test_a_reply_comes_out_as_it_went_in() -> None:
    came = Reply.decode(REPLY.encode())
    assert (came.site, came.facts, came.refused) == (REPLY.site, REPLY.facts, None)
    assert same(dict(REPLY.arrays), came.arrays)


@pytest.mark.parametrize("code", list(ExitCode))
def test_a_refusal_names_the_rule_and_nothing_else(code: ExitCode) -> None:
    body = refusal("north", code)
    came = Reply.decode(body)
    assert (came.site, came.refused, dict(came.facts), dict(came.arrays)) == ("north", code.name, {}, {})


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.text("abc.", min_size=1, max_size=5),
        st.sampled_from(DTYPES).flatmap(
            lambda dtype: arrays(
                dtype,
                array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
                elements={"allow_nan": False, "allow_infinity": False} if dtype.startswith("float") else None,
            )
        ),
        max_size=3,
    )
)
def test_arrays_keep_name_type_shape_and_values(found: dict[str, np.ndarray]) -> None:
    assert same(found, Reply.decode(Reply("north", {}, found).encode()).arrays)


BASE = np.arange(24).reshape(4, 6)
LAYOUTS: dict[str, np.ndarray] = {
    "transposed": BASE.T,
    "every other column": BASE[:, ::2],
    "reversed": BASE[::-1, ::-1],
    "a column": BASE[:, 2],
    "Fortran order": np.asfortranarray(BASE.astype(np.float32)),
    "axes moved": np.moveaxis(np.arange(24).reshape(2, 3, 4), 0, 2),
    "broadcast": np.broadcast_to(np.array([1.0, 2.0]), (3, 2)),
    "big-endian": BASE.astype(">i8"),
    "big-endian and transposed": BASE.astype(">f4").T,
    "read-only": np.frombuffer(b"\1\2\3", dtype=np.uint8),
    "a number": np.array(2.5),
    "empty": np.zeros((0, 3)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_that_lie_otherwise_in_memory_arrive_whole(layout: str) -> None:
    sent = {"x": LAYOUTS[layout]}
    assert same(sent, Request.decode(Request("train", "s", "r", "n", {}, sent).encode()).arrays)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_not_sent_as_a_fact(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        Request("train", "s", "r", "n", {"share": value}).encode()


def test_equal_messages_are_equal_bytes_whatever_the_order_of_their_options() -> None:
    first = Request("train", "s", "r", "n", {"a": 1, "b": 2}, {"x": BASE})
    second = Request("train", "s", "r", "n", {"b": 2, "a": 1}, {"x": BASE.copy(order="F")})
    assert first.encode() == second.encode()


def frame(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors body from its raw header."""
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def with_text(text: str, tensors: dict[str, Any] | None = None, data: bytes = b"") -> bytes:
    """A safetensors body whose privshare header is this text."""
    return frame(json.dumps({"__metadata__": {"privshare": text}, **(tensors or {})}).encode(), data)


def with_header(data: bytes = b"", tensors: dict[str, Any] | None = None, **changes: Any) -> bytes:
    """A request that is right but for the changes; None takes a key away."""
    header: dict[str, Any] = {
        "schema": MESSAGE_SCHEMA,
        "kind": "train",
        "study": "s",
        "run": "r",
        "name": "n",
        "options": {},
        "site": "north",
        "facts": {},
        "refused": None,
        **changes,
    }
    return with_text(json.dumps({key: value for key, value in header.items() if value is not ...}), tensors, data)


def tensor(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}}


def float_bytes(value: float) -> bytes:
    return np.array([value], dtype="<f4").tobytes()


MALFORMED: dict[str, bytes] = {
    "nothing": b"",
    "too short for a length": b"\0" * 7,
    "zeros": b"\0" * 64,
    "ones": b"\xff" * 64,
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "a header longer than the body": frame(b"{}", length=1000),
    "a header of 2^63 bytes": frame(b"{}", length=2**63),
    "a header of 2^64 - 1 bytes": frame(b"{}", length=2**64 - 1),
    "no metadata": frame(b"{}"),
    "other metadata": frame(b'{"__metadata__":{"other":"{}"}}'),
    "metadata that is not text": frame(b'{"__metadata__":{"privshare":{}}}'),
    "a header that is not UTF-8": frame(b'{"__metadata__":{"privshare":"\xff"}}'),
    "a header that is a list": frame(b"[]"),
    "an inner header that is not JSON": with_text("{"),
    "an inner header that is a list": with_text("[]"),
    "an inner header that is a number": with_text("1"),
    "an inner header that is null": with_text("null"),
    "lists without end": with_text("[" * 100_000),
    "options without end": with_text(
        '{"schema":"' + MESSAGE_SCHEMA + '","options":' + '{"a":' * 50_000 + "1" + "}" * 50_001
    ),
    "another version": with_header(schema="privshare.message/2"),
    "no version": with_header(schema=...),
    "NaN as an option": with_text(
        '{"schema":"privshare.message/1","kind":"train","study":"s","run":"r","name":"n","options":{"share":NaN},'
        '"site":"north","facts":{"share":NaN}}'
    ),
    "an infinite option": with_text(
        '{"schema":"privshare.message/1","kind":"train","study":"s","run":"r","name":"n","options":{"share":1e999},'
        '"site":"north","facts":{"share":1e999}}'
    ),
    "an option of 5000 digits": with_text(
        '{"schema":"privshare.message/1","kind":"train","study":"s","run":"r","name":"n","options":{"share":'
        + "1" * 5000
        + '},"site":"north","facts":{}}'
    ),
    "an array of NaN": with_header(float_bytes(float("nan")), tensor("F32", [1], 0, 4)),
    "an array of infinity": with_header(float_bytes(float("-inf")), tensor("F32", [1], 0, 4)),
    "a complex NaN": with_header(np.array([complex(0, np.nan)], "<c8").tobytes(), tensor("C64", [1], 0, 8)),
    "an array that is cut short": with_header(b"\0\0", tensor("F32", [1], 0, 4)),
    "an array that overlaps": with_header(b"\0" * 4, {**tensor("F32", [1], 0, 4), "y": tensor("F32", [1], 0, 4)["x"]}),
    "an array beyond the end": with_header(b"\0" * 4, tensor("F32", [1], 4, 8)),
    "an array that ends before it starts": with_header(b"\0" * 4, tensor("F32", [1], 4, 0)),
    "an array of another length than its shape": with_header(b"\0" * 4, tensor("F32", [2], 0, 4)),
    "an array whose size overflows": with_header(b"", tensor("F32", [2**62, 2**62], 0, 0)),
    "an array of nothing and without end": with_header(b"", tensor("F32", [0, 2**62], 0, 0)),
    "an array of 70 dimensions": with_header(b"\0" * 4, tensor("F32", [1] * 70, 0, 4)),
    "a type that does not exist": with_header(b"\0" * 4, tensor("O32", [1], 0, 4)),
    "a type that numpy does not have": with_header(b"\0" * 2, tensor("BF16", [1], 0, 2)),
    "bytes behind the end": with_header() + b"\0" * 8,
}


@pytest.mark.parametrize("decode", [Request.decode, Reply.decode])
@pytest.mark.parametrize("fault", MALFORMED)
def test_a_malformed_body_is_a_protocol_error(fault: str, decode: Callable[[bytes], object]) -> None:
    with pytest.raises(ProtocolError, match="message"):
        decode(MALFORMED[fault])


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "forget"},
        {"kind": "pairs"},
        {"kind": "decode"},
        {"kind": ""},
        {"kind": 1},
        {"kind": ...},
        {"study": ""},
        {"study": None},
        {"study": ...},
        {"run": "r" * 257},
        {"run": ["r"]},
        {"name": {}},
        {"name": ...},
        {"options": []},
        {"options": "share"},
        {"options": None},
        {"options": ...},
    ],
)
def test_a_request_with_a_field_out_of_form_is_a_protocol_error(change: dict[str, Any]) -> None:
    Request.decode(with_header())
    with pytest.raises(ProtocolError, match="request"):
        Request.decode(with_header(**change))


@pytest.mark.parametrize(
    "change",
    [{"site": 1}, {"site": None}, {"site": ...}, {"facts": []}, {"facts": None}, {"facts": ...}, {"refused": 7}],
)
def test_a_reply_with_a_field_out_of_form_is_a_protocol_error(change: dict[str, Any]) -> None:
    Reply.decode(with_header())
    with pytest.raises(ProtocolError, match="reply"):
        Reply.decode(with_header(**change))


def test_a_body_over_the_limit_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    body = REQUEST.encode()
    monkeypatch.setattr(messages, "MAX_BODY", len(body))
    Request.decode(body)
    monkeypatch.setattr(messages, "MAX_BODY", len(body) - 1)
    monkeypatch.setattr(messages, "load", lambda body: pytest.fail("was read"))
    with pytest.raises(ProtocolError, match="limit"):
        Request.decode(body)


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle runs this call when it reads the object."""
        return (Path.touch, (self.path,))


def test_nothing_that_arrives_is_unpickled(tmp_path: Path) -> None:
    body = pickle.dumps(Bomb(tmp_path / "burst"))
    for decode in (Request.decode, Reply.decode):
        with pytest.raises(ProtocolError):
            decode(body)
    assert not (tmp_path / "burst").exists()


def is_message_or_protocol_error(body: bytes) -> bool:
    for decode in (Request.decode, Reply.decode):
        try:
            decode(body)
        except ProtocolError:
            continue
    return True


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_a_protocol_error(body: bytes) -> None:
    for decode in (Request.decode, Reply.decode):
        with pytest.raises(ProtocolError):
            decode(body)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([REQUEST.encode(), REPLY.encode(), *MALFORMED.values()]),
    st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, 3),
)
def test_a_body_with_bytes_changed_or_cut_is_a_message_or_a_protocol_error(
    body: bytes, changes: list[tuple[int, int]], cut: int
) -> None:
    broken = bytearray(body or b"\0")
    for place, value in changes:
        broken[place % len(broken)] = value
    assert is_message_or_protocol_error(bytes(broken))
    assert is_message_or_protocol_error(bytes(broken[: len(broken) * cut // 4]))
