"""Files that are there whole or not at all, also after a crash, and files that are their owner's alone."""

import os
import tempfile
from pathlib import Path


def write_durably(path: Path, body: bytes) -> None:
    """Write under a temporary name, to disk, then under the file's own name, and that to disk too.

    Raises:
        OSError: the folder cannot be made or written; an older file of that name is there as it was, or the new one is,
            whole, where nothing but its name may not be on disk.
    """
    make_folder(path.parent)
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def write_private(path: Path, body: bytes) -> None:
    """Write a new file that only its owner can read, durably.

    Raises:
        FileExistsError: it is there already.
        OSError: the folder cannot be made or written.
    """
    make_folder(path.parent, mode=0o700)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.", suffix=".part")  # mode 0600
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        path.hardlink_to(temporary)  # unlike a rename, never in the place of another file
    finally:
        temporary.unlink()
    sync_folder(path.parent)


def is_private(path: Path) -> bool:
    """Whether only its owner can read or write a file."""
    return path.stat().st_mode & 0o077 == 0


def make_folder(folder: Path, *, mode: int = 0o777) -> None:
    """Make a folder and those above it, each one's name on disk before anything is in it.

    Raises:
        OSError: one cannot be made.
    """
    if not folder.is_dir():
        make_folder(folder.parent, mode=mode)
        folder.mkdir(mode=mode, exist_ok=True)
    elif not os.access(folder.parent, os.R_OK | os.W_OK):
        return  # somebody else made it
    # Also of a folder that is there: whoever made it may have died before its name was on disk.
    sync_folder(folder.parent)


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


def place_of(folder: Path) -> list[int]:
    """What tells a folder from a copy of it: its device and inode.

    Raises:
        OSError: it is not there.
    """
    found = folder.stat()
    return [found.st_dev, found.st_ino]


def trace_of(file: Path) -> list[int]:
    """What tells a file from a copy of it, one that was put back in its place too: when the system last changed it.

    Its device and inode as well; nobody can set that time, as a backup sets the others. A copy of the whole disk is
    not told.

    Raises:
        OSError: it is not there.
    """
    return [*place_of(file), file.stat().st_ctime_ns]
