"""What a run writes so that it can go on after a crash: one file a step, written whole or not at all.

safetensors with a JSON header; no pickle. Everything in it was released or made from what was released.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from common.errors import CheckpointError, OutputError
from common.files import write_durably

CHECKPOINT_SCHEMA = "privshare.checkpoint/3"
_HEADER = "privshare"
_KEPT: Final = 32
"""Newest checkpoints of a run that stay: enough to go back where one is damaged. Each holds all releases so far, so
that all of them together would grow with the square of the run."""
_DAMAGED = "{}: the checkpoint is damaged; delete it to go on from the one before"


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after a step: facts (JSON) and arrays by name."""

    facts: dict[str, Any]
    arrays: dict[str, np.ndarray]


def write_file(path: Path, body: bytes) -> None:
    """Write a file of a run, whole or not at all.

    Raises:
        OutputError: the folder cannot be written.
    """
    try:
        write_durably(path, body)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from None


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write JSON, indented, without NaN."""
    write_file(path, (json.dumps(data, indent=2, allow_nan=False) + "\n").encode())


def save_checkpoint(folder: Path, step: int, checkpoint: Checkpoint) -> None:
    """Write the checkpoint of a step; of the steps before it the newest stay.

    Raises:
        OutputError: the folder cannot be written.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in checkpoint.arrays.items()}
    header = {**checkpoint.facts, "schema": CHECKPOINT_SCHEMA, "digest": _digest(checkpoint.facts, arrays)}
    body = save(arrays, metadata={_HEADER: json.dumps(header, allow_nan=False)})
    write_file(_path(folder, step), bytes(body))
    if step > _KEPT:
        _path(folder, step - _KEPT).unlink(missing_ok=True)


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:05d}.safetensors"


def load_latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint; None when there is none.

    Raises:
        CheckpointError: the newest is damaged or of another version.
    """
    files = sorted(folder.glob("step-*.safetensors"))
    if not files:
        return None
    try:
        with safe_open(files[-1], framework="numpy") as file:
            facts = dict(json.loads(file.metadata()[_HEADER]))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(_DAMAGED.format(files[-1])) from None
    if (schema := facts.pop("schema", None)) != CHECKPOINT_SCHEMA and schema is not None:
        raise CheckpointError(f"{files[-1]}: expected {CHECKPOINT_SCHEMA}")
    if facts.pop("digest", None) != _digest(facts, arrays):
        raise CheckpointError(_DAMAGED.format(files[-1]))
    return Checkpoint(facts, arrays)


def latest_facts(folder: Path) -> dict[str, Any] | None:
    """The facts of the newest checkpoint, to be looked at; its arrays are neither read nor checked. None without one.

    Raises:
        CheckpointError: it cannot be read.
    """
    files = sorted(folder.glob("step-*.safetensors"))
    if not files:
        return None
    try:
        with safe_open(files[-1], framework="numpy") as file:
            return dict(json.loads(file.metadata()[_HEADER]))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(_DAMAGED.format(files[-1])) from None


def _digest(facts: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over everything: the format itself would take a flipped bit for a number."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()
