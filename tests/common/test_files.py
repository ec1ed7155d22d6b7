"""Files that are there whole or not at all, whatever happens while they are written."""

import itertools
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common import files
from common.files import is_private, make_folder, sync_folder, write_durably, write_private
from tests.faults.disk import Disk, Fault, Killed, image_of

OLD, NEW = b"old " * 40, b"newer " * 50


@pytest.fixture(autouse=True)
def no_umask() -> Iterator[None]:
    """What is asked for is what comes: nothing may rest on the umask."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was forced to disk and renamed, in order; of a file also its length at that time."""
    found: list[str] = []
    sync, replace, link, mkdir = os.fsync, os.replace, os.link, os.mkdir

    def name_of(path: Path) -> str:
        return "." if path == tmp_path else path.name.split(".", maxsplit=1)[0]

    def spy_sync(descriptor: int) -> None:
        number = os.fstat(descriptor).st_ino
        (path,) = [one for one in (tmp_path, tmp_path.parent, *tmp_path.rglob("*")) if one.stat().st_ino == number]
        found.append(f"sync {'..' if path == tmp_path.parent else name_of(path)} {len_of(path)}".strip())
        sync(descriptor)

    def len_of(path: Path) -> str:
        return str(len(path.read_bytes())) if path.is_file() else ""

    def spy_replace(source: Path, target: Path) -> None:
        found.append(f"replace {name_of(Path(target))}")
        replace(source, target)

    def spy_link(source: Path, target: Path) -> None:
        found.append(f"link {name_of(Path(target))}")
        link(source, target)

    def spy_mkdir(path: Path, mode: int) -> None:
        found.append(f"mkdir {name_of(Path(path))}")
        mkdir(path, mode)

    for name, spy in (("fsync", spy_sync), ("replace", spy_replace), ("link", spy_link), ("mkdir", spy_mkdir)):
        monkeypatch.setattr(files.os, name, spy)
    return found


def test_a_file_is_on_disk_before_it_has_its_name_and_then_its_name_is(tmp_path: Path, journal: list[str]) -> None:
    write_durably(tmp_path / "folder" / "file", NEW)
    assert journal == [
        "sync ..",
        "mkdir folder",
        "sync .",
        f"sync file {len(NEW)}",
        "replace file",
        "sync folder",
    ]
    assert (tmp_path / "folder" / "file").read_bytes() == NEW


def test_a_private_file_is_on_disk_before_it_has_its_name_and_then_its_name_is(
    tmp_path: Path, journal: list[str]
) -> None:
    write_private(tmp_path / "folder" / "file", NEW)
    assert journal[-3:] == [f"sync file {len(NEW)}", "link file", "sync folder"]
    assert (tmp_path / "folder" / "file").read_bytes() == NEW


def test_a_folders_name_is_on_disk_before_anything_is_in_it(tmp_path: Path, journal: list[str]) -> None:
    make_folder(tmp_path / "first" / "second" / "third")
    assert journal == ["sync ..", "mkdir first", "sync .", "mkdir second", "sync first", "mkdir third", "sync second"]
    journal.clear()
    # Whoever made it may have died before its name was on disk.
    make_folder(tmp_path / "first" / "second")
    assert journal == ["sync first"]


def test_a_folder_that_somebody_else_made_is_taken_as_it_is(
    tmp_path: Path, journal: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    journal.clear()
    # As for a user who may neither list nor change the folder above.
    monkeypatch.setattr(files.os, "access", lambda path, _: path != tmp_path)
    make_folder(tmp_path / "folder")
    assert journal == []


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(OLD)
    for use in (make_folder, sync_folder):
        with pytest.raises(OSError, match="file"):
            use(tmp_path / "file" / "folder")
    with pytest.raises(OSError, match="file"):
        write_durably(tmp_path / "file" / "other", NEW)
    with pytest.raises(OSError, match="file"):
        write_private(tmp_path / "file" / "other", NEW)
    assert image_of(tmp_path) == {tmp_path / "file": OLD}


def test_what_was_left_of_an_earlier_try_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(b"x" * 10_000)
    write_durably(tmp_path / "file", NEW)
    assert image_of(tmp_path) == {tmp_path / "file": NEW}


def test_only_its_owner_can_read_a_private_file_and_the_folders_made_for_it(tmp_path: Path) -> None:
    path = tmp_path / "first" / "second" / "file"
    write_private(path, NEW)
    assert [stat.S_IMODE(one.stat().st_mode) for one in (path, *path.parents[:2])] == [0o600, 0o700, 0o700]
    assert path.stat().st_nlink == 1
    assert image_of(path.parent) == {path: NEW}


def test_a_private_file_that_is_there_is_never_replaced(tmp_path: Path) -> None:
    write_private(tmp_path / "file", OLD)
    with pytest.raises(FileExistsError):
        write_private(tmp_path / "file", NEW)
    assert image_of(tmp_path) == {tmp_path / "file": OLD}


@pytest.mark.parametrize(
    ("mode", "is_it"),
    [(0o600, True), (0o400, True), (0o700, True), (0o640, False), (0o604, False), (0o610, False), (0o602, False)],
)
def test_a_file_is_private_if_nobody_else_has_any_right(tmp_path: Path, mode: int, is_it: bool) -> None:
    path = tmp_path / "file"
    path.touch()
    path.chmod(mode)
    assert is_private(path) == is_it


def faults(folder: Path, fault: Fault, write: Callable[[], None]) -> Iterator[Disk]:
    """A disk after each fault that a write may meet, then after none."""
    for change in itertools.count(1):
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(folder, patch)
            disk.break_at(change, fault)
            try:
                write()
            except Killed:
                pass
            except OSError:
                assert fault in (Fault.EIO, Fault.ENOSPC)
            was_struck = disk.was_struck
            disk.restart()
            yield disk
            if not was_struck:
                return


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("is_new", [True, False])
def test_a_file_is_old_or_new_and_whole_whatever_happens(tmp_path: Path, fault: Fault, is_new: bool) -> None:
    path, found = tmp_path / "root" / "folder" / "file", []
    (tmp_path / "root").mkdir()
    for disk in faults(tmp_path / "root", fault, lambda: write_durably(path, NEW)):
        found.append(path.read_bytes() if path.exists() else None)
        # Also after another try that goes well, and a loss of power.
        write_durably(path, NEW)
        disk.lose_power()
        assert image_of(path.parent) == {path: NEW}
        path.unlink()
        if not is_new:
            write_durably(path, OLD)
    assert found[-1] == NEW
    assert set(found[1:-1]) <= {None if is_new else OLD, NEW}


@pytest.mark.parametrize("fault", Fault)
def test_a_private_file_is_absent_or_whole_whatever_happens(tmp_path: Path, fault: Fault) -> None:
    path, found = tmp_path / "root" / "folder" / "file", []
    (tmp_path / "root").mkdir()
    for disk in faults(tmp_path / "root", fault, lambda: write_private(path, NEW)):
        found.append(path.read_bytes() if path.exists() else None)
        # What a crash left lies under other names, and is the owner's alone as well.
        assert all(is_private(one) for one in (tmp_path / "root").rglob("*"))
        if not path.exists():
            write_private(path, NEW)
            disk.lose_power()
        assert path.read_bytes() == NEW
        for one in path.parent.iterdir():
            one.unlink()
    assert found[-1] == NEW
    assert set(found) == {None, NEW}
