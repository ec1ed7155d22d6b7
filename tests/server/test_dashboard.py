"""The coordinator's page over HTTP: who is let in, what may be asked, and what leaves."""

import asyncio
import json
import re
import stat
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from common.errors import ExitCode, OutputError
from server import dashboard
from server.checkpoints import write_json
from server.dashboard import Watch, make_app, read_token
from server.journal import Journal
from server.panels import render_sections
from server.run_folder import OUTCOME_SCHEMA, ask
from server.snapshot import snapshot_of
from tests.runs import cut, grow

TOKEN = "t" * 43
HALF = 9
PATHS = ("/", "/snapshot.json", "/metrics", "/events.jsonl")


class Client:
    """Asks the page in this process, without a network and without remembering anything."""

    def __init__(self, run: Path) -> None:
        self._app = make_app(Watch(run), TOKEN)

    def request(self, method: str, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
        async def asked() -> httpx.Response:
            transport = httpx.ASGITransport(self._app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return await client.request(method, path, headers=headers)

        return asyncio.run(asked())

    def get(self, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
        return self.request("GET", path, headers)


@pytest.fixture(scope="module")
def client(finished: Path) -> Client:
    return Client(finished)


@pytest.mark.parametrize("path", [*PATHS, "/stream", "/none"])
@pytest.mark.parametrize("how", ["", "?token=", "?token=wrong", f"?token={TOKEN}x", "?token=é"])
def test_nobody_is_let_in_without_the_token(client: Client, path: str, how: str) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}, {"cookie": "privshare=wrong; =; a"}):
        answer = client.get(path + how, headers=headers)
        assert answer.status_code == 401
        assert answer.text == "open the address that `privshare dashboard` printed\n"


@pytest.mark.parametrize("path", PATHS)
def test_the_token_lets_in_as_a_cookie_a_bearer_or_in_the_address(client: Client, path: str) -> None:
    assert client.get(path, headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    if path != "/":
        assert client.get(f"{path}?token={TOKEN}").status_code == 200
    answer = client.get(f"/?token={TOKEN}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    (name,) = answer.cookies
    assert client.get(path, headers={"cookie": f"other=1; {name}={answer.cookies[name]}"}).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PURGE"])
@pytest.mark.parametrize("path", PATHS)
def test_nothing_can_be_done_but_read(client: Client, path: str, method: str) -> None:
    answer = client.request(method, path, headers={"authorization": f"Bearer {TOKEN}"})
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("path", [*PATHS, "/none", "/docs", "/openapi.json"])
def test_every_answer_is_kept_by_nobody_and_framed_by_nobody(client: Client, path: str) -> None:
    for headers in ({}, {"authorization": f"Bearer {TOKEN}"}):
        answer = client.get(path, headers=headers)
        assert answer.status_code == (404 if headers and path not in PATHS else 200 if headers else 401)
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"


def test_the_page_runs_its_own_script_alone_and_names_nothing_outside(client: Client) -> None:
    answer = client.get("/", headers={"authorization": f"Bearer {TOKEN}"})
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert re.fullmatch(r"'sha256-[\w+/=]+'", policy["script-src"])
    assert re.fullmatch(r"'sha256-[\w+/=]+'", policy["style-src"])
    assert policy["connect-src"] == "'self'"
    assert not re.search(r"https?://", answer.text)
    assert " style=" not in answer.text
    assert TOKEN not in answer.text
    assert len(answer.content) < 200_000


def test_data_are_what_they_say(client: Client, finished: Path) -> None:
    headers = {"authorization": f"Bearer {TOKEN}"}
    assert client.get("/snapshot.json", headers=headers).json()["run"]["state"] == "published"
    assert client.get("/metrics", headers=headers).headers["content-type"].startswith("text/plain; version=0.0.4")
    assert client.get("/events.jsonl", headers=headers).content == (finished / "events.jsonl").read_bytes()
    for path in PATHS:
        head = client.request("HEAD", path, headers)
        assert (head.status_code, head.content) == (200, b"")


def test_a_folder_that_cannot_be_read_is_told_and_tried_again(finished: Path, tmp_path: Path) -> None:
    run = cut(finished, tmp_path / "run", HALF)
    steps = (run / "rounds.jsonl").read_text()
    (run / "rounds.jsonl").write_text("{")
    client, headers = Client(run), {"authorization": f"Bearer {TOKEN}"}
    answer = client.get("/", headers=headers)
    assert (answer.status_code, "not JSON lines" in answer.text) == (503, True)
    (run / "rounds.jsonl").write_text(steps)
    assert client.get("/", headers=headers).status_code == 200


def test_the_stream_tells_each_step_once_and_that_it_is_alive(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = cut(finished, tmp_path / "run", HALF)
    monkeypatch.setattr(dashboard, "_LOOK", 0.01)
    monkeypatch.setattr(dashboard, "_BREATH", 0.02)

    async def listen() -> list[str]:
        messages = dashboard._messages(Watch(run), lambda: False)
        told = [await anext(messages) for _ in range(3)]
        grow(finished, run, HALF + 1)
        while told[-1].startswith(":"):
            told.append(await anext(messages))
        return told

    retry, first, alive, *_, second = asyncio.run(listen())
    assert retry == "retry: 1000\n\n"
    assert alive.startswith(":")
    bodies = []
    for message in (first, second):
        event, data, *rest = message.split("\n")
        assert (event, rest) == ("event: snapshot", ["", ""])
        bodies.append(json.loads(data.removeprefix("data: "))["sections"])
    before, after = bodies
    assert before["audit"] != after["audit"]
    assert before["top"] != after["top"]


# --- the token


def test_a_token_is_new_each_time_unless_a_file_keeps_it(tmp_path: Path) -> None:
    assert read_token(None) != read_token(None)
    assert len(read_token(None)) >= 43
    path = tmp_path / "token"
    kept = read_token(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_token(path) == kept
    path.chmod(0o640)
    with pytest.raises(OutputError, match="others can read this token") as error:
        read_token(path)
    assert error.value.code == ExitCode.USAGE
    path.chmod(0o600)
    path.write_text("short")
    with pytest.raises(OutputError, match="32 characters at least"):
        read_token(path)
    path.write_text("é" * 40)
    with pytest.raises(OutputError, match="cannot be read or made"):
        read_token(path)


def test_a_command_in_a_sentence_is_code_and_what_comes_from_outside_is_text(finished: Path, tmp_path: Path) -> None:
    run = cut(finished, tmp_path / "run", 9)
    ask(run, "pause")
    Journal(run).note("paused")
    top = render_sections(snapshot_of(run, now=datetime.now(UTC)))["top"]
    assert "until <code>privshare resume</code>; " in top
    assert "`" not in top
    write_json(run / "outcome.json", {"schema": OUTCOME_SCHEMA, "code": 54, "message": "<b>site</b> `<i>` gone"})
    top = render_sections(snapshot_of(run, now=datetime.now(UTC)))["top"]
    assert "&lt;b&gt;site&lt;/b&gt; <code>&lt;i&gt;</code> gone" in top
