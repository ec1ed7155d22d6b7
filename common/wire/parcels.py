"""How Flower carries a body: a short one as it is, a long one as an array, which Flower sends in pieces.

Flower itself takes any number of parts, and makes of a few as much as they ask for: an array that names one piece a
thousand times. Nothing is put together here that is larger than a body may be.
"""

import json
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Final

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    get_object_body,
    get_object_head_values_from_object_content,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from common.errors import ProtocolError
from common.wire.messages import MAX_BODY

_RECORD: Final = "privshare"
_BODY: Final = "body"
_SHORT: Final = 4 * 1024 * 1024
"""Bytes up to which a body travels whole; fewer things to send each take a call."""
_PIECE: Final = 5 * 1024 * 1024
"""Bytes of a piece of an array, as Flower cuts it."""
_FRAME: Final = 64 * 1024
"""Bytes that are enough for an envelope's header, and for all that Flower writes around a body."""
_AROUND: Final = 5
"""Parts of a message beside full pieces: itself, its records, the record, the array and the last piece."""


def pack_body(body: bytes) -> RecordDict:
    """What a message of Flower holds."""
    if len(body) <= _SHORT:
        return RecordDict({_RECORD: ConfigRecord({_BODY: body})})
    return RecordDict({_RECORD: ArrayRecord({_BODY: Array(np.frombuffer(body, dtype=np.uint8))})})


def unpack_body(content: RecordDict) -> bytes:
    """The body in what came; empty, which is no message of ours, where there is none."""
    try:
        found = content[_RECORD][_BODY]
        if isinstance(found, Array):
            array = found.numpy()
            return array.tobytes() if array.dtype == np.uint8 else b""
    except Exception:  # noqa: BLE001 (what NumPy raises on what anybody may send has no end)
        return b""
    return found if isinstance(found, bytes) else b""


def gather(tree: ObjectTree, pull: Callable[[str], bytes]) -> Message:
    """The message of a tree of parts, which are pulled one after the other; whoever sent it is not believed.

    Guarantees: no more is pulled than a body of `MAX_BODY` and one part, and nothing longer is made of it.

    Args:
        tree: identities of the parts.
        pull: a part by its identity; what it raises is passed on.

    Raises:
        ProtocolError: more than such a body needs, or no message of Flower.
    """
    limit = MAX_BODY + 2 * _FRAME
    most = 2 * limit // _PIECE + _AROUND
    names = [part.object_id for part in islice(iterate_object_tree(tree), most + 1)]
    if len(names) > most:
        raise ProtocolError("message: of more parts than the limit")
    parts: dict[str, bytes] = {}
    held = 0
    for name in names:
        parts[name] = pull(name)
        held += len(parts[name])
        if held > limit:
            raise ProtocolError("message: larger than the limit")
    try:
        _check_made(parts, limit)
        message = inflate_object_from_contents(tree.object_id, parts)
    except Exception:  # noqa: BLE001 (what Flower raises on what anybody may send has no end)
        raise ProtocolError("message: not one of Flower") from None
    if not isinstance(message, Message):
        raise ProtocolError("message: not one of Flower")
    return message


def _check_made(parts: Mapping[str, bytes], limit: int) -> None:
    """Refuse parts that more would be made of: each kind is there once but pieces, and short, and an array is bounded.

    Raises:
        ValueError, or what reading them raises.
    """
    heads = {name: get_object_head_values_from_object_content(part) for name, part in parts.items()}
    pieces = {name for name, (kind, _, _) in heads.items() if kind == "ArrayChunk"}
    kinds = [kind for name, (kind, _, _) in heads.items() if name not in pieces]
    if len(set(kinds)) < len(kinds):
        raise ValueError("parts: two of a kind")
    if any(len(part) > _SHORT + _FRAME for name, part in parts.items() if name not in pieces):
        raise ValueError("parts: one is longer than any of its kind")
    for name, (kind, children, _) in heads.items():
        if kind == "Array":
            placed = json.loads(get_object_body(parts[name], Array))["arraychunk_ids"]
            if sum(len(parts[children[at]]) for at in placed) > limit:
                raise ValueError("parts: an array longer than the limit")
