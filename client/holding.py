"""Which process acts for a site: one talks for it, and one of its own computes for it.

Each holds a lock of the system, which ends with the process however that dies. Two that compute for one site would make
one answer twice, of which the second could replace what the first had sealed.
"""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

from common.errors import ExitCode, PolicyError
from common.files import make_folder

_LOOK = 0.1


class Role(StrEnum):
    """What a process holds a site for, and the file with its lock."""

    TALK = "running"
    COMPUTE = "computing"


@contextmanager
def alone(state: Path, role: Role = Role.TALK, *, patience: float = 0.0) -> Iterator[None]:
    """Hold a site for this process.

    Args:
        state: the site's folder of its own.
        role: what for.
        patience: seconds that another process has to end.

    Raises:
        PolicyError: another process runs it, or its folder cannot be used.
    """
    try:
        make_folder(state, mode=0o700)
        file = (state / role).open("wb")
    except OSError as error:
        raise PolicyError(f"{state}: cannot be used ({error.strerror})") from None
    until = time.monotonic() + patience
    with file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise PolicyError(f"{state}: another process runs this site", ExitCode.ALREADY_RUNNING) from None
            time.sleep(_LOOK)
        yield


def is_running(state: Path) -> bool:
    """Whether a process talks for a site now."""
    try:
        with (state / Role.TALK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # given back at once
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
