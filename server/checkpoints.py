"""What a run writes so that it can go on after a crash: one file a step, written whole or not at all.

safetensors with a JSON header; no pickle. Everything in it was released or made from what was released.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from common.errors import CheckpointError, OutputError
from common.files import write_durably

CHECKPOINT_SCHEMA = "privshare.checkpoint/1"
_HEADER = "privshare"


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
    """Write the checkpoint of a step.

    Raises:
        OutputError: the folder cannot be written.
    """
    header = json.dumps({"schema": CHECKPOINT_SCHEMA, **checkpoint.facts}, allow_nan=False)
    body = save(
        {name: np.ascontiguousarray(array) for name, array in checkpoint.arrays.items()}, metadata={_HEADER: header}
    )
    write_file(folder / f"step-{step:05d}.safetensors", bytes(body))


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
            facts = json.loads(file.metadata()[_HEADER])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(
            f"{files[-1]}: the checkpoint is damaged; delete it to go on from the one before"
        ) from None
    if facts.pop("schema", None) != CHECKPOINT_SCHEMA:
        raise CheckpointError(f"{files[-1]}: expected {CHECKPOINT_SCHEMA}")
    return Checkpoint(facts, arrays)
