"""Coordinators on loopback over TLS, as far as a site that gets no messages sees of one."""

import gzip
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from flwr.proto.fleet_pb2 import ActivateNodeResponse, PullMessagesResponse
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatResponse

NODE = 7
ANSWERS = {
    "/v1/fleet/activate-node": ActivateNodeResponse(node_id=NODE),
    "/v1/fleet/pull-messages": PullMessagesResponse(),
    "/v1/fleet/send-node-heartbeat": SendNodeHeartbeatResponse(success=True),
}


class SuperLink(BaseHTTPRequestHandler):
    """As much of one as a site without messages needs."""

    protocol_version = "HTTP/1.1"
    statuses: dict[str, int] = {}  # noqa: RUF012 (a test sets its own)
    headers_sent: dict[str, str] = {}  # noqa: RUF012
    seen: list[str] = []  # noqa: RUF012
    flood: tuple[int, float] | None = None

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.seen.append(self.path)
        if self.flood is not None:
            self._answer_without_end(*self.flood)
            return
        answer = ANSWERS.get(self.path)
        body = b"" if answer is None else answer.SerializeToString()
        if self.headers_sent.get("content-encoding") == "gzip":
            body = gzip.compress(body)
        self.send_response(self.statuses.get(self.path, 404 if answer is None else 200))
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(body)))
        for name, value in self.headers_sent.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _answer_without_end(self, size: int, pause: float) -> None:
        """Pieces of so many bytes, so many seconds apart, until nobody listens any more."""
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        with suppress(OSError):
            while True:
                self.wfile.write(b"%x\r\n%s\r\n" % (size, bytes(size)))
                time.sleep(pause)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serving(
    home: Path,
    *,
    host: str = "127.0.0.1",
    ca: Path | None = None,
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    statuses: dict[str, int] | None = None,
    headers: dict[str, str] | None = None,
    flood: tuple[int, float] | None = None,
) -> Iterator[int]:
    """A server with a coordinator's certificate, that asks for one of its sites'; its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = version
    context.load_cert_chain(home / "server.crt", home / "server.key")
    context.load_verify_locations(ca or home / "ca.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    own = {"statuses": statuses or {}, "headers_sent": headers or {}, "seen": [], "flood": flood}
    handler = type("Handler", (SuperLink,), own)
    server = ThreadingHTTPServer((host, 0), handler)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that turns away
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
