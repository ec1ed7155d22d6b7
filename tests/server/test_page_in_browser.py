"""The coordinator's page in a real browser: it follows a run, survives its server, fits, and says nothing aside."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from server.cli import app
from server.run_folder import hold
from tests.runs import cut, grow

ROOT = Path(__file__).resolve().parents[2]
HALF = 9
SECTIONS = ("top", "budget", "noise", "quality", "gates", "sites", "audit")
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if program is None:
        pytest.skip("no browser: tests/install-programs.sh")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is in the extra `dev`")
    with playwright.sync_playwright() as running:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # root has none
        opened = running.chromium.launch(executable_path=program, args=sandbox)
        yield opened
        opened.close()


class Page:
    """A page, and what its console said."""

    def __init__(self, browser: Any, width: int = 1280, scheme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))

    @property
    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))


class Server:
    """`privshare dashboard`, as a process of its own."""

    def __init__(self, run: Path, token: Path, port: int = 0) -> None:
        words = [sys.executable, "-c", "from server.cli import app; app()", "dashboard", str(run)]
        self.process = subprocess.Popen(
            [*words, "--port", str(port), "--token-file", str(token)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\?token=[\w-]{43}", self.url)
        assert found is not None, self.process.stderr and self.process.stderr.read()
        self.port = int(found[1])

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture
def running(finished: Path, tmp_path: Path) -> Iterator[Path]:
    folder = cut(finished, tmp_path / "run", HALF)
    with hold(folder):
        yield folder


def test_the_page_follows_a_run_and_survives_its_server(browser: Any, finished: Path, running: Path) -> None:
    token = running.parent / "token"
    server = Server(running, token)
    try:
        shown = Page(browser)
        shown.page.goto(server.url)
        assert shown.page.url == f"http://127.0.0.1:{server.port}/"
        for name in SECTIONS:
            assert shown.page.locator(f"#{name}").count() == 1
        for landmark in ("header", "main", "footer"):
            assert shown.page.locator(landmark).count() == 1
        assert shown.page.locator("#budget tbody tr").count() >= 2
        assert shown.page.locator("#noise svg[role=img]").count() >= 1
        assert shown.page.locator("h2").count() == len(SECTIONS) - 1
        titles = shown.page.locator("[title]").evaluate_all("all => all.map(one => one.title)")
        assert len(titles) > 30
        assert all(title.endswith(".") for title in titles)
        shown.page.locator("#budget summary").last.click()
        row = shown.page.locator("#audit tbody tr").first
        before = row.inner_text()
        grow(finished, running, HALF + 1)
        shown.page.wait_for_function("text => document.querySelector('#audit tbody tr').innerText !== text", arg=before)
        # What its reader opened stays open.
        assert shown.page.locator("#budget details").last.get_attribute("open") is not None
        assert shown.said == []

        server.stop()
        notice = shown.page.locator("#notice")
        notice.wait_for(state="visible")
        assert notice.inner_text().startswith("No connection since ")
        grow(finished, running, HALF + 2)
        server = Server(running, token, server.port)
        shown.page.wait_for_function(
            "() => { const one = document.querySelector('#notice');"
            " return one.hidden || !one.innerText.startsWith('No connection'); }"
        )
        shown.page.wait_for_function(
            "number => document.querySelectorAll('#audit tbody tr').length >= number", arg=HALF + 2
        )
        # The browser itself says when nobody listens; the page says nothing.
        assert [said for said in shown.said if "net::ERR" not in said] == []
    finally:
        server.stop()


@pytest.fixture(scope="module")
def saved(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run that is half done, as a file."""
    folder = tmp_path_factory.mktemp("saved")
    result = CliRunner().invoke(
        app, ["dashboard", str(cut(finished, folder / "run", HALF)), "--save", str(folder / "page.html")]
    )
    assert result.exit_code == 0, result.stderr
    return folder / "page.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_saved_page_opens_from_a_file_and_fits(browser: Any, saved: Path, width: int, scheme: str) -> None:
    shown = Page(browser, width, scheme)
    asked: list[str] = []
    shown.page.on("request", lambda request: asked.append(request.url))
    shown.page.goto(saved.as_uri())
    assert shown.said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert shown.overflow <= 0
    assert shown.page.locator("script").count() == 0
    assert "Saved " in shown.page.locator(".notice").inner_text()
    is_dark = shown.page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert is_dark == (scheme == "dark")
    # Nothing sticks out but in what scrolls by itself.
    wide = shown.page.evaluate(
        """() => [...document.querySelectorAll('h1, h2, p, figure, svg, dl, li, section')]
            .filter(one => !one.closest('.scroll, .skip, .hidden') && one.getBoundingClientRect().width)
            .filter(one => one.getBoundingClientRect().right > window.innerWidth + 1)
            .map(one => one.outerHTML.slice(0, 80))"""
    )
    assert wide == []


def test_a_page_of_a_run_that_stands_still_says_since_when(browser: Any, running: Path) -> None:
    text = (running / "events.jsonl").read_text()
    (running / "events.jsonl").write_text(re.sub(r'"time": "20\d\d', '"time": "2020', text))
    server = Server(running, running.parent / "token")
    try:
        shown = Page(browser)
        shown.page.goto(server.url)
        notice = shown.page.locator("#notice")
        notice.wait_for(state="visible")
        assert notice.inner_text().startswith("Stale since 2020-")
        assert shown.said == []
    finally:
        server.stop()
