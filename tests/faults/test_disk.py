"""The disk that other tests rest on: it loses what was not forced onto it, and nothing else."""

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.disk import Disk, Fault, Killed, image_of


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    root = tmp_path / "root"
    root.mkdir()
    (root / "old").write_bytes(b"old")
    with pytest.MonkeyPatch.context() as patch:
        yield Disk(root, patch)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def names(disk: Disk) -> dict[str, bytes | None]:
    return {str(path.relative_to(disk.root)): body for path, body in image_of(disk.root).items()}


def test_what_was_there_before_survives(disk: Disk) -> None:
    disk.lose_power()
    assert names(disk) == {"old": b"old"}


def test_a_file_survives_once_it_and_its_name_were_forced_to_disk(disk: Disk) -> None:
    path = disk.root / "new"
    path.write_bytes(b"first")
    assert (path.read_bytes(), disk.on_disk(path)) == (b"first", None)
    sync(path)
    assert disk.on_disk(path) is None
    sync(disk.root)
    assert disk.on_disk(path) == b"first"
    with path.open("a+b") as file:
        file.write(b" second")
        file.flush()
        assert (path.read_bytes(), disk.on_disk(path)) == (b"first second", b"first")
    disk.lose_power()
    assert names(disk) == {"old": b"old", "new": b"first"}


@pytest.mark.parametrize(
    ("fault", "left"),
    [
        (Fault.KILL, {"old": b"old", "new": b"body"}),
        (Fault.POWER, {"old": b"old"}),
        (Fault.POWER_KEEPS_NAMES, {"old": b"old", "new": b""}),
        (Fault.POWER_KEEPS_CONTENTS, {"old": b"old"}),
    ],
)
def test_a_fault_leaves_what_it_says(disk: Disk, fault: Fault, left: dict[str, bytes]) -> None:
    disk.break_at(4, fault)
    (disk.root / "new").write_bytes(b"body")  # opened, written, flushed
    with pytest.raises(Killed):
        (disk.root / "more").write_bytes(b"")
    disk.restart()
    assert names(disk) == left


def test_a_rename_that_was_not_forced_to_disk_is_undone_and_keeps_the_old_contents(disk: Disk) -> None:
    part = disk.root / "old.part"
    part.write_bytes(b"new")
    sync(part)
    part.replace(disk.root / "old")
    assert names(disk) == {"old": b"new"}
    disk.lose_power()
    assert names(disk) == {"old": b"old"}


def test_names_that_come_and_go_survive_as_they_were_when_their_folder_was_forced_to_disk(disk: Disk) -> None:
    (disk.root / "folder").mkdir()
    (disk.root / "folder" / "file").write_bytes(b"")
    (disk.root / "link").hardlink_to(disk.root / "old")
    sync(disk.root)
    (disk.root / "old").unlink()
    disk.lose_power()
    assert names(disk) == {"folder": None, "link": b"old", "old": b"old"}


def test_a_dead_process_flushes_nothing_and_reaches_the_disk_no_more(disk: Disk) -> None:
    disk.break_at(3, Fault.KILL)
    with pytest.raises(Killed):
        (disk.root / "new").write_bytes(b"body")  # opened, written, flushed
    with pytest.raises(Killed):
        (disk.root / "more").mkdir()
    disk.restart()
    assert names(disk) == {"old": b"old", "new": b""}


def test_a_torn_write_leaves_half(disk: Disk) -> None:
    disk.break_at(1, Fault.TORN)
    with pytest.raises(Killed):
        (disk.root / "new").write_bytes(b"body")
    disk.restart()
    assert names(disk) == {"old": b"old", "new": b"bo"}


def test_a_broken_disk_fails_once_and_a_full_one_until_the_restart(disk: Disk) -> None:
    disk.break_at(2, Fault.EIO)
    with pytest.raises(OSError, match="Input/output"):
        (disk.root / "new").write_bytes(b"body")
    (disk.root / "new").write_bytes(b"body")
    disk.break_at(3, Fault.ENOSPC)
    with pytest.raises(OSError, match="No space"):
        (disk.root / "other").write_bytes(b"body")
    with pytest.raises(OSError, match="No space"):
        (disk.root / "folder").mkdir()
    disk.restart()
    (disk.root / "folder").mkdir()
    assert names(disk) == {"old": b"old", "new": b"body", "other": b"bo", "folder": None}


def test_what_the_disk_does_not_know_is_refused_not_passed_by(disk: Disk, tmp_path: Path) -> None:
    for use in (
        lambda: os.truncate(disk.root / "old", 1),
        lambda: os.rename(disk.root / "old", disk.root / "new"),  # noqa: PTH104 (what a path's own method calls)
        lambda: (disk.root / "old").write_text("text"),
        lambda: (disk.root / "old").rename(disk.root / "new"),
    ):
        with pytest.raises(NotImplementedError):
            use()
    # Files elsewhere are none of its business.
    (tmp_path / "elsewhere").write_text("text")
    with io.open(tmp_path / "elsewhere") as file:  # noqa: UP020 (that is what paths call)
        assert file.read() == "text"
    assert disk.changes == 0
