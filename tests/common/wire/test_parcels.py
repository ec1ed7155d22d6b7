"""How Flower carries a body: whole, whatever its size; and what is no body of ours is an empty one."""

import io
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, Metadata, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ProtocolError
from common.wire import parcels
from common.wire.parcels import gather, pack_body, unpack_body


@given(st.binary(max_size=500))
@settings(deadline=None, max_examples=50)
def test_a_body_comes_back_as_it_was(body: bytes) -> None:
    assert unpack_body(pack_body(body)) == body


@pytest.mark.parametrize("size", [0, 1, 255, 5 * 1024 * 1024, 11 * 1024 * 1024 + 3])
def test_a_body_of_any_size_comes_back_whole(size: int) -> None:
    body = np.random.default_rng(size).bytes(size)
    content = pack_body(body)
    assert unpack_body(content) == body
    # Taken apart and put together again as on the wire, where what is large travels in pieces.
    objects = {name: thing.deflate() for name, thing in get_all_nested_objects(content).items()}
    assert max(map(len, objects.values())) < 6 * 1024 * 1024
    arrived = inflate_object_from_contents(content.object_id, objects)
    assert isinstance(arrived, RecordDict)
    assert unpack_body(arrived) == body


@pytest.mark.parametrize("size", [4 * 1024 * 1024, 4 * 1024 * 1024 + 1])
def test_a_short_body_travels_as_it_is_and_a_long_one_as_an_array(size: int) -> None:
    content = pack_body(bytes(size))
    assert list(content) == ["privshare"]
    assert list(content["privshare"]) == ["body"]
    assert isinstance(content["privshare"], ConfigRecord if size == 4 * 1024 * 1024 else ArrayRecord)
    assert unpack_body(content) == bytes(size)


def arrays(values: np.ndarray, *, record: str = "privshare", name: str = "body") -> RecordDict:
    return RecordDict({record: ArrayRecord({name: Array(values)})})


EMPTY_ZIP = b"PK\x05\x06" + bytes(18)
_HEADER = b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d,), }\n" % 2**60
ENDLESS = b"\x93NUMPY\x01\x00" + len(_HEADER).to_bytes(2, "little") + _HEADER
"""An array that says it is larger than any memory."""
BYTES = np.frombuffer(b"body", dtype=np.uint8)


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"privshare": ArrayRecord()}),
        RecordDict({"privshare": ConfigRecord({"other": b"body"})}),
        RecordDict({"privshare": ConfigRecord({"body": [b"body"]})}),
        RecordDict({"privshare": ConfigRecord({"body": 7})}),
        RecordDict({"other": ConfigRecord({"body": b"body"})}),
        RecordDict({"privshare": ConfigRecord({"body": "body"})}),
        RecordDict({"privshare": MetricRecord({"body": 1})}),
        arrays(BYTES, record="other"),
        arrays(BYTES, name="other"),
        arrays(BYTES.astype(np.int8)),
        arrays(BYTES.astype(np.int64)),
        arrays(BYTES.astype(np.float32)),
        arrays(BYTES.astype(bool)),
        arrays(np.array(["body"])),
        RecordDict({"privshare": ArrayRecord({"body": Array("uint8", (4,), "numpy.ndarray", b"not an array")})}),
        RecordDict({"privshare": ArrayRecord({"body": Array("uint8", (4,), "numpy.ndarray", b"")})}),
        RecordDict({"privshare": ArrayRecord({"body": Array("uint8", (4,), "numpy.ndarray", b"PK\x03\x04")})}),
        RecordDict({"privshare": ArrayRecord({"body": Array("uint8", (4,), "numpy.ndarray", EMPTY_ZIP)})}),
        RecordDict({"privshare": ArrayRecord({"body": Array("uint8", (4,), "numpy.ndarray", ENDLESS)})}),
        RecordDict({"privshare": ArrayRecord({"body": Array("uint8", (4,), "pickle", b"cos\nsystem\n(S'id'\ntR.")})}),
    ],
)
def test_what_is_no_body_of_ours_is_an_empty_one(content: RecordDict) -> None:
    assert unpack_body(content) == b""


def test_an_array_of_objects_is_not_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return (Path.touch, (tmp_path / "went off",))

    stream = io.BytesIO()
    np.save(stream, np.array([Bomb()], dtype=object), allow_pickle=True)
    content = RecordDict(
        {"privshare": ArrayRecord({"body": Array("object", (1,), "numpy.ndarray", stream.getvalue())})}
    )
    assert unpack_body(content) == b""
    assert list(tmp_path.iterdir()) == []


# --- what is put together

MIB = 1024 * 1024


def message_of(content: RecordDict) -> Message:
    head = Metadata(
        run_id=1,
        message_id="",
        src_node_id=2,
        dst_node_id=1,
        reply_to_message_id="asked",
        group_id="",
        created_at=0.0,
        ttl=60.0,
        message_type="query",
    )
    return make_message(head, content=content)


def sent(content: RecordDict) -> tuple[ObjectTree, dict[str, bytes]]:
    """A message as a SuperLink has it: the tree of its parts, and they."""
    message = message_of(content)
    return get_object_tree(message), {name: one.deflate() for name, one in get_all_nested_objects(message).items()}


def body_of(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> int:
    """The largest body, so that tests need little memory."""
    monkeypatch.setattr(parcels, "MAX_BODY", 16 * MIB)
    return 16 * MIB


@pytest.mark.parametrize("size", [0, 1, 4 * MIB, 4 * MIB + 1, 16 * MIB])
def test_a_message_of_any_allowed_size_is_put_together(size: int, small: int) -> None:
    tree, parts = sent(pack_body(body_of(size)))
    assert unpack_body(gather(tree, parts.__getitem__).content) == body_of(size)


def test_a_body_of_equal_pieces_is_put_together(small: int) -> None:
    # Flower sends equal pieces once.
    tree, parts = sent(pack_body(bytes(16 * MIB)))
    assert len(parts) < 8
    assert unpack_body(gather(tree, parts.__getitem__).content) == bytes(16 * MIB)


def peak_of(action: Callable[[], object]) -> int:
    """Bytes that it holds at most beside what there was."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def refused(tree: ObjectTree, pull: Callable[[str], bytes], *, match: str) -> int:
    """Bytes that a refusal takes."""

    def action() -> None:
        with pytest.raises(ProtocolError, match=match):
            gather(tree, pull)

    return peak_of(action)


def tree_of(names: Iterable[str]) -> ObjectTree:
    return ObjectTree(object_id="head", children=[ObjectTree(object_id=name) for name in names])


def test_of_a_message_over_the_limit_no_more_is_pulled_than_the_limit_and_a_part(small: int) -> None:
    names = [str(number) for number in range(10)]
    taken = refused(tree_of(names), lambda _: bytes(5 * MIB), match="^message: larger than the limit$")
    assert small < taken < small + 6 * MIB
    tree, parts = sent(pack_body(body_of(small + MIB)))
    refused(tree, parts.__getitem__, match="^message: larger than the limit$")


def test_a_message_of_many_parts_is_refused_before_one_is_pulled(small: int) -> None:
    def pull(name: str) -> bytes:
        raise AssertionError(name)

    refused(tree_of(map(str, range(1000))), pull, match="^message: of more parts than the limit$")
    # Few parts that name each other twice on every level are thousands.
    tree = ObjectTree(object_id="leaf")
    for level in range(12):
        tree = ObjectTree(object_id=str(level), children=[tree, tree])
    refused(tree, pull, match="^message: of more parts than the limit$")


def altered(parts: dict[str, bytes], kind: str, old: bytes, new: bytes) -> dict[str, bytes]:
    """With another text in the parts of a kind."""
    found = {
        name: part.replace(old, new) if part.startswith(f"{kind} ".encode()) else part for name, part in parts.items()
    }
    assert found != parts
    return found


def test_an_array_that_names_its_pieces_again_and_again_is_refused_before_it_is_made(small: int) -> None:
    tree, parts = sent(pack_body(body_of(5 * MIB)))
    again = altered(parts, "Array", b"[0, 1]", b"[0, 1" + b", 0" * 1000 + b"]")
    assert refused(tree, again.__getitem__, match="^message: not one of Flower$") < 2 * MIB


LONG = pack_body(bytes(4 * MIB + 1))


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("Array", b"[0]", b"[1]"),
        ("Array", b"[0]", b"[[]]"),
        ("Array", b"[0]", b"{}"),
        ("Array", b"[0]", b"[" * 100_000),
        ("Array", b"{", b"["),
        ("ArrayChunk", b"ArrayChunk", b"ArrayRecord"),
        ("ArrayChunk", b"ArrayChunk", b"Array"),
        ("ArrayChunk", b"ArrayChunk", b"Message"),
        ("ArrayChunk", b"ArrayChunk", b"Unknown"),
        ("ArrayChunk", b"ArrayChunk", b""),
        ("ArrayRecord", b'{"body"', b'{"x": 7, "body"'),
        ("ArrayRecord", b"{", b"[]"),
        ("RecordDict", b"{", b"\xff"),
        ("RecordDict", b"RecordDict", b"ConfigRecord"),
        ("Message", b"Message", b"RecordDict"),
        ("Message", b"\n", b"\xff"),
        ("Message", b"\0", b""),
    ],
)
def test_what_is_no_message_is_refused(kind: str, old: bytes, new: bytes) -> None:
    tree, parts = sent(LONG)
    refused(tree, altered(parts, kind, old, new).__getitem__, match="^message: not one of Flower$")


def test_a_part_that_is_longer_than_any_of_its_kind_is_refused_unread() -> None:
    tree, parts = sent(RecordDict({"privshare": ConfigRecord({"body": "x" * 5 * MIB})}))
    assert refused(tree, parts.__getitem__, match="^message: not one of Flower$") < MIB


def test_more_records_than_one_are_refused() -> None:
    # Each is small, and Flower makes several times as much of it.
    content = RecordDict({"privshare": ConfigRecord({"body": b""}), "more": ConfigRecord({"body": [1]})})
    tree, parts = sent(content)
    refused(tree, parts.__getitem__, match="^message: not one of Flower$")
