"""Files that are there whole or not at all, also after a crash."""

import os
from pathlib import Path


def write_durably(path: Path, body: bytes) -> None:
    """Write under a temporary name, to disk, then under the file's own name, and that to disk too.

    Raises:
        OSError: the folder cannot be made or written; an older file of that name is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to disk: a new file's name is one.

    Raises:
        OSError: the folder cannot be read.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
