"""What coordinator and site say to each other: one JSON header and named arrays, in the safetensors format.

Nothing is unpickled and no name is looked up as code. A body is read only after its size was checked, and every array
must be finite. The transport (Flower or a function call) carries the bytes and is not trusted.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from common.errors import ExitCode, ProtocolError

MESSAGE_SCHEMA = "privshare.message/1"
MAX_BODY = 256 * 1024 * 1024
MAX_COUNT = 2**50
"""No cell of any release is larger, in a site's own whole numbers; a thousand sites' sums stay exact."""
KINDS = (
    *("describe", "witness", "confirm", "masks"),
    *("one_way", "tables", "embedding", "critic", "train", "monitor", "verdict"),
)
KEPT = ("tables", "embedding", "critic", "verdict")
"""Kinds whose releases stay at the site where the study's discriminators are local."""
HELD_OUT = ("monitor", "verdict")
"""Kinds that measure held-out units, on a budget of their own."""
_HEADER = "privshare"


@dataclass(frozen=True)
class Request:
    """What the coordinator asks of one site.

    kind: one of `KINDS`.
    study: digest of the study that the site must have approved.
    run: names the run; with `name` it identifies the request for ever.
    name: of the request within the run.
    options: numbers and short texts that the kind needs.
    arrays: by name.
    """

    kind: str
    study: str
    run: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """What a ledger knows the request by."""
        return f"{self.run}/{self.name}"

    def encode(self) -> bytes:
        """The body that travels."""
        header = {
            "kind": self.kind,
            "study": self.study,
            "run": self.run,
            "name": self.name,
            "options": dict(self.options),
        }
        return _encode(header, self.arrays)

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """Read a body from a coordinator that is not trusted.

        Raises:
            ProtocolError: malformed, another version, an unknown kind, a value that is not finite.
        """
        header, arrays = _decode(body)
        texts = {key: header.get(key) for key in ("kind", "study", "run", "name")}
        options = header.get("options")
        if not all(isinstance(text, str) and 0 < len(text) <= 256 for text in texts.values()):
            raise ProtocolError("request: kind, study, run and name must be short texts")
        if texts["kind"] not in KINDS or not isinstance(options, dict):
            raise ProtocolError("request: unknown kind or options")
        return cls(**{key: str(text) for key, text in texts.items()}, options=options, arrays=arrays)


@dataclass(frozen=True)
class Reply:
    """What a site answers: facts and arrays, or the name of the rule by which it refused."""

    site: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    refused: str | None = None

    def encode(self) -> bytes:
        """The body that travels."""
        return _encode({"site": self.site, "facts": dict(self.facts), "refused": self.refused}, self.arrays)

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """Read a body from a site.

        Raises:
            ProtocolError: malformed, another version, a value that is not finite.
        """
        header, arrays = _decode(body)
        site, facts, refused = header.get("site"), header.get("facts"), header.get("refused")
        if (
            not isinstance(site, str)
            or not isinstance(facts, dict)
            or not (refused is None or isinstance(refused, str))
        ):
            raise ProtocolError("reply: site, facts and refused are not of their kinds")
        return cls(site, facts, arrays, refused)


def refusal(site: str, code: ExitCode) -> bytes:
    """The body of a refusal: the rule's name and nothing of what broke it."""
    return Reply(site, refused=code.name).encode()


def _encode(header: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    text = json.dumps({"schema": MESSAGE_SCHEMA, **header}, sort_keys=True, allow_nan=False)
    # safetensors writes memory as it lies: a transposed view would arrive scrambled.
    whole = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    return bytes(save(whole, metadata={_HEADER: text}))


def _decode(body: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    if len(body) > MAX_BODY:
        raise ProtocolError("message: larger than the limit")
    try:
        arrays = dict(load(body))
        length = int.from_bytes(body[:8], "little")
        outer = json.loads(body[8 : 8 + length], object_pairs_hook=_unique)
        header = json.loads(outer["__metadata__"][_HEADER], object_pairs_hook=_unique)
        json.dumps(header, allow_nan=False)  # NaN and 1e999 are read without complaint
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError):
        raise ProtocolError("message: not a privshare message") from None
    if not isinstance(header, dict) or header.get("schema") != MESSAGE_SCHEMA:
        raise ProtocolError(f"message: expected {MESSAGE_SCHEMA}")
    if not all(bool(np.isfinite(array).all()) for array in arrays.values()):
        raise ProtocolError("message: an array is not finite")
    return header, arrays


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are all different: of two equal ones two readers might take either."""
    data = dict(pairs)
    if len(data) < len(pairs):
        raise ValueError("a key is there twice")
    return data
