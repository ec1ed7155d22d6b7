"""Under which number a site is connected, written down for as long as it is.

Flower takes a node for alive up to a minute after its process died, and lets nobody in under its key meanwhile. The
next process of the same site says goodbye for it, which only the one that holds the site may do.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from common.files import place_of

_FILE: Final = "connected.json"
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
"""What tells one start of this machine from another, where there is such a thing."""


@dataclass(frozen=True)
class Presence:
    """Of the site whose state is in a folder.

    Guarantees: a copy of the folder takes nobody's place, nor does the folder itself under another start of a machine:
    elsewhere, who wrote the file may be alive.
    """

    state: Path

    def enter(self, node: int) -> None:
        """Write down that the site is connected; where it cannot be, only time is lost."""
        if (place := self._place()) is not None:
            with suppress(OSError):
                (self.state / _FILE).write_text(json.dumps({"node": node, "place": place}), encoding="utf-8")

    def leave(self) -> None:
        """Forget it."""
        with suppress(OSError):
            (self.state / _FILE).unlink(missing_ok=True)

    def left(self) -> int | None:
        """The number under which a process entered that did not leave; None where none is known."""
        try:
            found: Any = json.loads((self.state / _FILE).read_bytes())
            node, place = found["node"], found["place"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        is_number = isinstance(node, int) and 0 <= node < 2**64
        return node if is_number and place == self._place() else None

    def _place(self) -> list[str | int] | None:
        """This start of this machine and this folder; None where nothing tells starts apart."""
        try:
            return [_BOOT.read_text(encoding="ascii").strip(), *place_of(self.state)]
        except (OSError, ValueError):
            return None
