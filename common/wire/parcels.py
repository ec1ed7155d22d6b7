"""How Flower carries a body: as an array of bytes, which it sends in pieces, unlike a text."""

from typing import Final

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict

_RECORD: Final = "privshare"
_BODY: Final = "body"


def pack_body(body: bytes) -> RecordDict:
    """What a message of Flower holds."""
    return RecordDict({_RECORD: ArrayRecord({_BODY: Array(np.frombuffer(body, dtype=np.uint8))})})


def unpack_body(content: RecordDict) -> bytes:
    """The body in what came; empty, which is no message of ours, where there is none."""
    try:
        found = content[_RECORD][_BODY]
        array = found.numpy() if isinstance(found, Array) else None
    except (KeyError, TypeError, ValueError, OSError):
        array = None
    return b"" if array is None or array.dtype != np.uint8 else array.tobytes()
