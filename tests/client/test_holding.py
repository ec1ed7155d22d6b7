"""That one process alone acts for a site."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from client.holding import Role, alone, is_running
from common.errors import ExitCode, PolicyError


def test_a_site_is_held_by_one_process_alone(tmp_path: Path) -> None:
    state = tmp_path / "a" / "state"
    program = (
        "import fcntl, sys\n"
        "try:\n    file = open(sys.argv[1], 'ab'); fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "except BlockingIOError:\n    print('refused')\nelse:\n    print('held', flush=True)\n    sys.stdin.read()"
    )

    def another() -> subprocess.Popen[str]:
        """A process that tries to hold the site, and does until its input ends."""
        command = [sys.executable, "-I", "-c", program, str(state / "running")]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    with alone(state):
        assert state.stat().st_mode & 0o777 == 0o700
        with pytest.raises(PolicyError, match=r"another process runs this site$") as error, alone(state):
            pass
        assert error.value.code == ExitCode.ALREADY_RUNNING
        assert another().communicate()[0] == "refused\n"
    other = another()
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(PolicyError) as error, alone(state):
        pass
    assert error.value.code == ExitCode.ALREADY_RUNNING
    other.communicate()
    with alone(state):
        pass


def test_a_folder_that_cannot_be_used_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(PolicyError, match=rf"^{tmp_path / 'state'}: cannot be used \("), alone(tmp_path / "state"):
        pass


def test_what_goes_wrong_while_a_site_is_held_is_not_taken_for_its_folder_s_fault(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="another fault"), alone(tmp_path / "state"):
        raise OSError("another fault")


def test_who_computes_for_a_site_does_not_keep_another_from_talking_for_it(tmp_path: Path) -> None:
    with alone(tmp_path, Role.COMPUTE):
        assert not is_running(tmp_path)
        with alone(tmp_path):
            assert is_running(tmp_path)
        with pytest.raises(PolicyError, match="another process runs this site"), alone(tmp_path, Role.COMPUTE):
            pass


def test_one_that_is_about_to_end_is_waited_for(tmp_path: Path) -> None:
    is_held, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        with alone(tmp_path):
            is_held.set()
            may_end.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    is_held.wait()
    threading.Timer(0.3, may_end.set).start()
    begun = time.monotonic()
    with alone(tmp_path, patience=60):
        assert time.monotonic() - begun > 0.1
    holder.join()
