"""What happened in a run and when, one line an event: events.jsonl in its folder.

It is for people who look on: rounds.jsonl and the checkpoints say what a run is, and no clock has a say in that. It
holds names of steps and sites, codes of faults, and heads of ledgers that the sites signed; nothing of what they sent.
"""

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from common.errors import OutputError

JOURNAL: Final = "events.jsonl"


def _now() -> datetime:
    return datetime.now(UTC)


class Journal:
    """Appends to the events of one run."""

    def __init__(self, folder: Path, *, clock: Callable[[], datetime] = _now) -> None:
        """Nothing is written yet.

        Args:
            folder: of the run.
            clock: the moment of an event.
        """
        self._path = folder / JOURNAL
        self._clock = clock

    def note(self, event: str, **facts: Any) -> None:
        """Write one event, to disk.

        Raises:
            OutputError: it cannot be written.
        """
        line = {"time": self._clock().isoformat(timespec="milliseconds"), "event": event, **facts}
        body = json.dumps(line, allow_nan=False).encode() + b"\n"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab+") as file:
                if file.tell() and not self._is_whole(file.fileno(), file.tell()):
                    body = b"\n" + body  # what a crash cut short stays a line of its own, and is passed over
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"{self._path}: cannot be written ({error.strerror})") from None

    @staticmethod
    def _is_whole(descriptor: int, size: int) -> bool:
        return os.pread(descriptor, 1, size - 1) == b"\n"


def read_journal(folder: Path) -> list[dict[str, Any]]:
    """The events of a run, oldest first; empty where none were written. Lines that are not whole are left out."""
    try:
        lines = (folder / JOURNAL).read_bytes().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and isinstance(event.get("event"), str) and _moment(event.get("time")):
            found.append(event)
    return found


def _moment(text: object) -> datetime | None:
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return found if found.tzinfo is not None else None
