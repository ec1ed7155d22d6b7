"""The page that has two sites typed by hand: every word of it, as it stands, in one shell."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path

import pandas as pd
import pytest

from tests.docs.commands import ROOT

PAGE = ROOT / "docs" / "two-sites.md"
FILES = {"yaml": "study.yaml", "python": "patients.py"}
ANSWERS = "y\nnorth\nsouth\n"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") is None,
        reason="the proxy, nginx, is not installed",
    ),
]


def is_free(port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def test_who_types_the_page_gets_a_table_that_verifies(tmp_path: Path) -> None:
    if not (is_free(9092) and is_free(8443)):
        pytest.skip("a port of the page is taken on this machine")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    here = tmp_path / "runs" / "two-sites"
    here.mkdir(parents=True)
    for kind, text in blocks:
        if kind in FILES:
            (here / FILES[kind]).write_text(text, encoding="utf-8")
    (tmp_path / "page.sh").write_text("set -e\n" + "".join(text for kind, text in blocks if kind == "sh"))
    hand, terminal = os.openpty()  # which, unlike a pipe, gives each command its own line
    os.write(hand, ANSWERS.encode())
    with (tmp_path / "said").open("wb") as said:
        shell = subprocess.Popen(
            ["bash", "page.sh"],
            cwd=tmp_path,
            stdin=terminal,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        shell.wait(500)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)  # with what it started, if it failed
        os.close(hand)
        os.close(terminal)
    logs = {path.name: path.read_text(encoding="utf-8", errors="replace") for path in here.glob("*.log")}
    said_at_all = (tmp_path / "said").read_text(encoding="utf-8", errors="replace")
    assert shell.returncode == 0, (said_at_all[-3000:], logs)
    run = here / "coordinator" / "runs" / "two-sites"
    assert "published coordinator/runs/two-sites/synthetic.csv" in said_at_all
    assert "\nVALID\n" in said_at_all
    assert len(pd.read_csv(run / "synthetic.csv")) > 0
    older = pd.read_csv(here / "older.csv")
    assert len(older) == 1000
    assert (older["age"] >= 65).all()
    for name in ("north", "south"):  # told apart from what failed, they ended as they were asked to
        assert "Traceback" not in logs[f"{name}.log"]
