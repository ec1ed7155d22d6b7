"""How Flower carries a body: a short one as it is, a long one as an array, which Flower sends in pieces."""

from typing import Final

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

_RECORD: Final = "privshare"
_BODY: Final = "body"
_SHORT: Final = 4 * 1024 * 1024
"""Bytes up to which a body travels whole; fewer things to send each take a call."""


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
