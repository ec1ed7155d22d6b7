"""How Flower carries a body: whole, whatever its size; and what is no body of ours is an empty one."""

import io
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from hypothesis import given, settings
from hypothesis import strategies as st

from common.wire.parcels import pack_body, unpack_body


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
