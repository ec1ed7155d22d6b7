"""`privshare dashboard`: the coordinator's page over HTTP, for whoever has its token. It only reads files.

It shares nothing with what conducts a run but the run's folder, so either can end and start again without the other.
"""

import asyncio
import hashlib
import json
import secrets
import socket
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

import uvicorn
from fastapi import FastAPI
from fastapi.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.errors import ExitCode, OutputError, PrivShareError
from common.files import is_private, write_private
from server.journal import JOURNAL
from server.metrics import CONTENT_TYPE, as_metrics
from server.panels import page_policy, render_page, render_sections
from server.provision import MEMBERS
from server.run_folder import FILES, is_held
from server.snapshot import find_run, snapshot_of

LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
_LOOK: Final = 0.5
"""Seconds between two looks at the files of a run."""
_BREATH: Final = 15.0
"""Seconds after which a stream without news says that it is alive."""
_READ: Final = ("GET", "HEAD")
_HEADERS: Final = {
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


def read_token(path: Path | None) -> str:
    """A new token, or the one in a file, which is made if it is not there.

    Raises:
        OutputError: the file cannot be made or read, others can read it, or it holds no token.
    """
    if path is None:
        return secrets.token_urlsafe(32)
    try:
        if not path.exists():
            write_private(path, secrets.token_urlsafe(32).encode())
        if not is_private(path):
            raise OutputError(f"{path}: others can read this token; expected mode 0600", ExitCode.USAGE)
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be read or made ({type(error).__name__})") from None
    if len(token) < 32:
        raise OutputError(f"{path}: expected a token of 32 characters at least", ExitCode.USAGE)
    return token


@dataclass(frozen=True)
class View:
    """What the page shows at one moment."""

    snapshot: dict[str, Any]
    sections: dict[str, str]
    page: str

    @property
    def message(self) -> str:
        """For the stream: one line of JSON."""
        title = f"{self.snapshot['verdict']['word']}: {self.snapshot['study']['name']}"
        return json.dumps({"title": title, "sections": self.sections})


class Watch:
    """Looks at a run, or at a coordinator's home, and makes a view anew when a file of it changed."""

    def __init__(self, path: Path, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """Nothing is read yet.

        Args:
            path: as for `snapshot_of`.
            clock: the moment.
        """
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: tuple[object, ...] | None = None
        self._view: View | None = None

    def look(self) -> View:
        """The newest view; the same object as long as nothing changed.

        Raises:
            PrivShareError: as `snapshot_of`, where nothing could be read yet; after that the last view stays.
        """
        with self._lock:
            try:
                seen = self._state()
                if self._view is None or seen != self._seen:
                    snapshot = snapshot_of(self._path, now=self._clock())
                    sections = render_sections(snapshot)
                    self._view, self._seen = View(snapshot, sections, render_page(snapshot, sections)), seen
            except PrivShareError:
                if self._view is None:
                    raise
            return self._view

    def events(self) -> bytes:
        """The journal of the run as it is."""
        run = find_run(self._path)
        try:
            return (run / JOURNAL).read_bytes() if run is not None else b""
        except OSError:
            return b""

    def _state(self) -> tuple[object, ...]:
        """What a snapshot depends on, from outside: its files, whether the run is held, and the day."""
        run = find_run(self._path)
        files = [self._path / MEMBERS, *(run / name for name in FILES)] if run is not None else [self._path / MEMBERS]
        return run, run is not None and is_held(run), self._clock().date(), *map(_stat, files)


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def make_app(watch: Watch, token: str, *, is_over: Callable[[], bool] = lambda: False) -> ASGIApp:
    """The page and its data. GET and HEAD alone, and nothing without the token.

    Args:
        watch: of what is shown.
        token: as a cookie, which a request with `?token=` gets, as `?token=` itself, or as a bearer.
        is_over: whether streams are to end.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    policy = {"content-security-policy": f"{page_policy()}; frame-ancestors 'none'"}

    @app.api_route("/", methods=list(_READ))
    def page() -> HTMLResponse:
        return HTMLResponse(watch.look().page, headers=policy)

    @app.api_route("/snapshot.json", methods=list(_READ))
    def snapshot() -> Response:
        return Response(json.dumps(watch.look().snapshot, allow_nan=False), media_type="application/json")

    @app.api_route("/metrics", methods=list(_READ))
    def metrics() -> Response:
        return Response(as_metrics(watch.look().snapshot), headers={"content-type": CONTENT_TYPE})

    @app.api_route("/events.jsonl", methods=list(_READ))
    def events() -> Response:
        return Response(watch.events(), media_type="application/jsonl")

    @app.api_route("/stream", methods=list(_READ))
    async def stream() -> StreamingResponse:
        return StreamingResponse(_messages(watch, is_over), media_type="text/event-stream")

    async def fail(_: object, error: Exception) -> Response:
        return PlainTextResponse(f"error: {error}\n", status_code=503)

    app.add_exception_handler(PrivShareError, fail)
    return _Guard(app, token)


async def _messages(watch: Watch, is_over: Callable[[], bool]) -> AsyncIterator[str]:
    """A message with every section, then another whenever something changed."""
    yield "retry: 1000\n\n"
    sent: View | None = None
    quiet = 0.0
    while not is_over():
        try:
            view = await asyncio.to_thread(watch.look)
        except PrivShareError:
            view = None
        if view is not None and view is not sent:
            yield f"event: snapshot\ndata: {view.message}\n\n"
            sent, quiet = view, 0.0
        elif quiet >= _BREATH:
            yield ": nothing new\n\n"
            quiet = 0.0
        await asyncio.sleep(_LOOK)
        quiet += _LOOK


class _Guard:
    """Lets in what only reads and has the token, and puts the headers on whatever leaves."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token.encode()
        # Cookies know no ports: the name keeps two pages of one machine apart, and says nothing of the token.
        self._cookie = f"privshare-{hashlib.sha256(self._token).hexdigest()[:12]}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message["headers"], *((name.encode(), value.encode()) for name, value in _HEADERS.items())]
                message = {**message, "headers": headers}
            await send(message)

        await self._answer(scope)(scope, receive, send_guarded)

    def _answer(self, scope: Scope) -> ASGIApp:
        if scope["method"] not in _READ:
            return PlainTextResponse("this page only reads\n", status_code=405, headers={"allow": ", ".join(_READ)})
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        asked = dict(query).get("token")
        is_known = asked is not None and self._is_token(asked)
        if is_known and scope["path"] == "/":
            # Out of the address, which people copy and browsers keep.
            rest = urlencode([(name, value) for name, value in query if name != "token"])
            answer = Response(status_code=303, headers={"location": f"/?{rest}" if rest else "/"})
            answer.set_cookie(self._cookie, asked or "", httponly=True, samesite="strict")
            return answer
        if is_known or self._is_token(_bearer(headers)) or self._is_token(_cookie(headers, self._cookie)):
            return self._app
        return PlainTextResponse("open the address that `privshare dashboard` printed\n", status_code=401)

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode("utf-8", "surrogatepass"), self._token)


def _bearer(headers: dict[str, str]) -> str:
    kind, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


def _cookie(headers: dict[str, str], name: str) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return found.value if found is not None else ""


def serve(watch: Watch, *, host: str, port: int, token: str, on_ready: Callable[[str], None]) -> None:
    """Serve the page until Ctrl-C.

    Args:
        watch: of what is shown.
        host: to listen at.
        port: to listen at; 0 for one that is free.
        token: that lets in.
        on_ready: is told the address, with the token, when it can be opened.

    Raises:
        OutputError: the port is taken, or the address is not of this machine.
    """
    listener = _listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    servers: list[uvicorn.Server] = []
    app = make_app(watch, token, is_over=lambda: any(server.should_exit for server in servers))
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,  # the token may be in an address
        server_header=False,
        timeout_graceful_shutdown=5,
        limit_concurrency=64,
    )
    config.load()  # it imports what speaks HTTP: whoever opens the address does not wait for that
    servers.append(uvicorn.Server(config))
    on_ready(f"http://{shown}:{listener.getsockname()[1]}/?token={token}")
    try:
        servers[0].run(sockets=[listener])
    finally:
        listener.close()


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        OutputError: the port is taken, or the address is not of this machine.
    """
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, number)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen()
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise OutputError(f"{host}:{port}: cannot listen there ({error.strerror}); choose another --port") from None
    return listener
