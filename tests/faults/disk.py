"""A disk that fails on demand and forgets what was never forced onto it.

`Disk` stands between the code and the files below one folder. It counts every change: a file opened for writing,
written, flushed, cut, forced to disk, linked, renamed or removed, a folder made or forced to disk. At the change that
a test names it lets the process die, or fails as a broken or a full disk does.

It keeps two trees: what a process sees (the real files), and what survives the loss of power: of each file what it
held when it was last forced to disk, of each folder the names it had when it was last forced to disk. Nothing is
forced onto the real disk, so that a thousand crashes take seconds.
"""

import builtins
import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest


class Killed(BaseException):
    """The process is gone: nothing catches this, and nothing that runs after it reaches the disk."""


class Fault(Enum):
    """What happens at the named change."""

    KILL = "the process dies; what it had not flushed is lost"
    TORN = "the process dies in the middle of a flush"
    POWER = "the power fails; names and contents are as they were last forced to disk"
    POWER_KEEPS_NAMES = "the power fails; contents are as they were last forced to disk, names as they are"
    POWER_KEEPS_CONTENTS = "the power fails; names are as they were last forced to disk, contents as they are"
    EIO = "the change fails once"
    ENOSPC = "the disk is full from here on; the first write leaves half of its bytes"

    @property
    def is_power(self) -> bool:
        """Whether what was not forced to disk is lost."""
        return self.name.startswith("POWER")


@dataclass(eq=False)
class File:
    """What of a file survives the loss of power, and what it held when its last name went."""

    durable: bytes = b""
    last: bytes = b""


@dataclass(eq=False)
class Folder:
    """The names in a folder: as a process sees them, and as they survive the loss of power."""

    now: "dict[str, File | Folder]" = field(default_factory=dict)
    durable: "dict[str, File | Folder]" = field(default_factory=dict)


def image_of(root: Path) -> dict[Path, bytes | None]:
    """What is below a folder: contents of files, None for folders."""
    return {path: None if path.is_dir() else path.read_bytes() for path in sorted(root.rglob("*"))}


def make_so(root: Path, image: dict[Path, bytes | None]) -> None:
    """Make what is below a folder what an image says, with as few changes as that takes; files keep their modes."""
    for path, body in reversed(image_of(root).items()):
        if path not in image:
            path.rmdir() if body is None else path.unlink()
    for path, body in image.items():
        if body is None:
            path.mkdir(exist_ok=True)
        elif not path.exists() or path.read_bytes() != body:
            path.touch(mode=0o600)
            path.write_bytes(body)


_SPACE = {"open", "write", "flush", "mkdir", "replace", "link", "fsync"}
"""Changes that a full disk refuses."""


class Disk:
    """The files below one folder. What is there when it is made is on disk."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        """Take over a folder.

        Args:
            root: of the files.
            patch: puts this disk between the code and its files until it is undone.
        """
        self.root = root.resolve()
        self.changes = 0
        self.fault: Fault | None = None
        self._at = 0
        self.is_dead = False
        self._below = False
        self._tree = self._scan(self.root)
        self._real: dict[str, Callable[..., Any]] = {}
        for name in ("open", "fsync", "replace", "rename", "link", "unlink", "remove", "rmdir", "mkdir", "truncate"):
            self._take_over(patch, os, name)
        self._open_file = io.open
        patch.setattr(io, "open", self._open)
        patch.setattr(builtins, "open", self._open)

    def break_at(self, change: int, fault: Fault) -> None:
        """Fail the so many-th change from now on, from 1."""
        self.changes, self.fault, self._at, self.is_dead = 0, fault, change, False

    @property
    def was_struck(self) -> bool:
        """Whether the named change was reached."""
        return self.fault is not None and self.changes >= self._at

    def restart(self) -> None:
        """A healthy disk and a new process; after a loss of power, with what survived it."""
        fault, self.fault, self.is_dead = self.fault, None, False
        if fault is not None and fault.is_power:
            self.lose_power(fault)

    def on_disk(self, path: Path) -> bytes | None:
        """What a file would hold if the power failed now; None where its name would be gone."""
        found: File | Folder | None = self._tree
        for part in path.resolve().relative_to(self.root).parts:
            found = found.durable.get(part) if isinstance(found, Folder) else None
        return found.durable if isinstance(found, File) else None

    def lose_power(self, fault: Fault = Fault.POWER) -> None:
        """Make every file what it was when it was last forced to disk."""
        with self._untouched():
            keeps_names, keeps_contents = fault == Fault.POWER_KEEPS_NAMES, fault == Fault.POWER_KEEPS_CONTENTS
            survivors = dict(self._survivors(self._tree, self.root, names=keeps_names, contents=keeps_contents))
            make_so(self.root, survivors)
            self._tree = self._scan(self.root)

    def _survivors(
        self, folder: Folder, at: Path, *, names: bool, contents: bool
    ) -> Iterator[tuple[Path, bytes | None]]:
        for name, node in (folder.now if names else folder.durable).items():
            path = at / name
            if isinstance(node, Folder):
                yield path, None
                yield from self._survivors(node, path, names=names, contents=contents)
            elif contents:
                yield path, self._now(path, node)
            else:
                yield path, node.durable

    def _now(self, path: Path, node: File) -> bytes:
        is_there = path.is_file() and self._find(path) is node
        return path.read_bytes() if is_there else node.last

    def _scan(self, path: Path) -> Folder:
        with self._untouched():
            nodes: dict[str, File | Folder] = {
                one.name: self._scan(one) if one.is_dir() else File(one.read_bytes()) for one in path.iterdir()
            }
        return Folder(nodes, dict(nodes))

    def _find(self, path: Path) -> "File | Folder":
        found: File | Folder = self._tree
        for part in path.relative_to(self.root).parts:
            assert isinstance(found, Folder)
            found = found.now[part]
        return found

    def _folder(self, path: Path) -> Folder:
        found = self._find(path)
        assert isinstance(found, Folder)
        return found

    @contextmanager
    def _untouched(self) -> Iterator[None]:
        """Whatever is done to files in here is the disk's own doing."""
        before, self._below = self._below, True
        try:
            yield
        finally:
            self._below = before

    def _change(self, kind: str, pending: "Buffered | None" = None) -> None:
        """Count a change, or fail it."""
        if self.is_dead:
            raise Killed
        if self.fault == Fault.TORN and kind != "flush":
            return
        self.changes += 1
        if self.fault is None or self.changes < self._at:
            return
        if self.fault == Fault.ENOSPC:
            if kind in _SPACE:
                if pending is not None and self.changes == self._at:
                    pending.write_half()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        elif self.changes == self._at:
            if self.fault == Fault.EIO:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            if self.fault == Fault.TORN and pending is not None:
                pending.write_half()
            self.is_dead = True
            raise Killed

    def _take_over(self, patch: pytest.MonkeyPatch, module: Any, name: str) -> None:
        real = self._real[name] = getattr(module, name)
        ours = getattr(self, f"_{name}" if name != "open" else "_open_descriptor", self._refuse(name))

        def call(first: Any, *rest: Any, **named: Any) -> Any:
            if self._below or not self._is_ours(first):
                return real(first, *rest, **named)
            return ours(first, *rest, **named)

        patch.setattr(module, name, call)

    def _refuse(self, name: str) -> Callable[..., Any]:
        def call(*_: Any, **__: Any) -> Any:
            raise NotImplementedError(f"os.{name}: this disk does not know it")

        return call

    def _is_ours(self, what: Any) -> bool:
        return self._path(what).is_relative_to(self.root)

    def _path(self, what: Any) -> Path:
        return Path(f"/proc/self/fd/{what}").readlink() if isinstance(what, int) else Path(what).absolute()

    def _create(self, path: Path) -> None:
        names = self._folder(path.parent).now
        if path.name not in names:
            names[path.name] = File()

    def _open_descriptor(self, path: Any, flags: int, mode: int = 0o777, **named: Any) -> int:
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes:
            self._change("open")
        descriptor: int = self._real["open"](path, flags, mode, **named)
        if writes:
            self._create(self._path(path))
        return descriptor

    def _open(self, file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if self._below or not set(mode) & set("wax+") or not self._is_ours(file):
            return self._open_file(file, mode, *rest, **named)
        if "b" not in mode:
            raise NotImplementedError("this disk writes bytes")
        if not isinstance(file, int):  # a descriptor was counted when it was opened
            self._change("open")
        with self._untouched():
            raw = self._open_file(file, mode, buffering=0)
        self._create(self._path(file))
        return Buffered(self, raw)

    def _fsync(self, descriptor: int) -> None:
        self._change("fsync")
        path = self._path(descriptor)
        node = self._find(path)
        if isinstance(node, Folder):
            node.durable = dict(node.now)
        else:
            with self._untouched():
                node.durable = path.read_bytes()

    def _mkdir(self, path: Any, *rest: Any, **named: Any) -> None:
        self._change("mkdir")
        self._real["mkdir"](path, *rest, **named)
        made = self._path(path)
        self._folder(made.parent).now[made.name] = Folder()

    def _replace(self, source: Any, target: Any) -> None:
        self._change("replace")
        before, after = self._path(source), self._path(target)
        self._forget(after)
        if after.exists():
            # Some file systems force a file to disk that takes another one's name: not what is tested here, and slow.
            self._real["unlink"](after)
        self._real["replace"](source, target)
        self._folder(after.parent).now[after.name] = self._folder(before.parent).now.pop(before.name)

    def _link(self, source: Any, target: Any, **named: Any) -> None:
        self._change("link")
        self._real["link"](source, target, **named)
        new = self._path(target)
        self._folder(new.parent).now[new.name] = self._find(self._path(source))

    def _unlink(self, path: Any) -> None:
        self._change("unlink")
        gone = self._path(path)
        self._forget(gone)
        self._real["unlink"](path)
        self._folder(gone.parent).now.pop(gone.name)

    def _forget(self, path: Path) -> None:
        """Keep what a file holds whose name goes: its old name may still be on disk."""
        node = self._folder(path.parent).now.get(path.name)
        if isinstance(node, File):
            with self._untouched():
                node.last = path.read_bytes()


class Buffered:
    """A file opened for writing, as Python buffers it: what was not flushed dies with the process."""

    def __init__(self, disk: Disk, raw: Any) -> None:
        """Wrap an unbuffered file."""
        self._disk = disk
        self._raw = raw
        self._pending = b""

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def write(self, body: bytes) -> int:
        """Into the buffer."""
        self._disk._change("write")
        self._pending += body
        return len(body)

    def flush(self) -> None:
        """Where other processes see it; it is not on disk."""
        if self._pending:
            self._disk._change("flush", self)
            self._raw.write(self._pending)
            self._pending = b""

    def write_half(self) -> None:
        """A write that is cut short."""
        half = len(self._pending) // 2
        self._raw.write(self._pending[:half])
        self._pending = self._pending[half:]

    def truncate(self, size: int) -> int:
        """Cut it."""
        self.flush()
        self._disk._change("truncate")
        return int(self._raw.truncate(size))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go somewhere."""
        self.flush()
        return int(self._raw.seek(offset, whence))

    def tell(self) -> int:
        """Where it is."""
        self.flush()
        return int(self._raw.tell())

    def read(self) -> bytes:
        """From here to the end."""
        return bytes(self._raw.readall())

    def fileno(self) -> int:
        """For the operating system."""
        return int(self._raw.fileno())

    def close(self) -> None:
        """Flush and close; a dead process does not flush."""
        try:
            if not self._raw.closed and not self._disk.is_dead:
                self.flush()
        finally:
            self._raw.close()
