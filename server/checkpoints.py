"""What a run writes so that it can go on after a crash: one file a step, written whole or not at all.

safetensors with a JSON header; no pickle. Everything in it was released or made from what was released.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from common.errors import CheckpointError, OutputError
from common.files import sync_folder, write_durably

CHECKPOINT_SCHEMA = "privshare.checkpoint/4"
_HEADER = "privshare"
_KEPT: Final = 32
"""Newest checkpoints of a run that stay: enough to go back where one is damaged. Each holds all releases so far, so
that all of them together would grow with the square of the run."""
_Found = TypeVar("_Found")
_LOG = logging.getLogger(__name__)


class _DamagedError(Exception):
    """A file is not the checkpoint that was written under its name."""


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


def remove_file(path: Path) -> None:
    """Remove a file of a run, if it is there; it stays away once this returns.

    Raises:
        OutputError: it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        raise OutputError(f"{path}: cannot be removed ({error.strerror})") from None


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
        remove_file(_path(folder, step - _KEPT))


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:05d}.safetensors"


def load_latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; None when there is none at all.

    What a run did since, it does again: sites answer what they were asked before with the bytes that they sealed, and
    are charged nothing twice.

    Raises:
        CheckpointError: all are damaged, one cannot be read, or the newest that is whole is of another version.
    """
    return _newest(folder, _read)


def latest_facts(folder: Path) -> dict[str, Any] | None:
    """The facts of the newest checkpoint, to be looked at; its arrays are neither read nor checked. None without one.

    Raises:
        CheckpointError: all are damaged, or one cannot be read.
    """
    return _newest(folder, _read_facts)


def _newest(folder: Path, read: Callable[[Path], _Found]) -> _Found | None:
    files = sorted(folder.glob("step-*.safetensors"), reverse=True)
    for file in files:
        try:
            return read(file)
        except _DamagedError:
            _LOG.warning("event=checkpoint_damaged file=%s", file)
    if files:
        raise CheckpointError(
            f"{folder}: no checkpoint is whole; delete them to begin again, which charges nothing twice"
        )
    return None


def _read(path: Path) -> Checkpoint:
    """A checkpoint.

    Raises:
        _DamagedError: not as it was written.
        CheckpointError: of another version, or cannot be read.
    """
    facts = _read_facts(path)
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except OSError:
        raise CheckpointError(f"{path}: cannot be read") from None
    except (SafetensorError, ValueError, TypeError):
        raise _DamagedError from None
    if (schema := facts.pop("schema", None)) != CHECKPOINT_SCHEMA and schema is not None:
        raise CheckpointError(f"{path}: expected {CHECKPOINT_SCHEMA}")
    if facts.pop("digest", None) != _digest(facts, arrays):
        raise _DamagedError
    return Checkpoint(facts, arrays)


def _read_facts(path: Path) -> dict[str, Any]:
    """The header of a checkpoint.

    Raises:
        _DamagedError: there is none.
        CheckpointError: the file cannot be read.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return dict(json.loads(file.metadata()[_HEADER]))
    except OSError:
        raise CheckpointError(f"{path}: cannot be read") from None
    except (SafetensorError, ValueError, KeyError, TypeError):
        raise _DamagedError from None


def _digest(facts: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over everything: the format itself would take a flipped bit for a number."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()
