"""The proxy, really run: what a site may ask reaches the SuperLink, and nothing else does.

With `--import-mode=importlib` a test cannot import its conftest; what is needed from there comes as fixtures.
"""

import contextlib
import http.client
import json
import os
import re
import resource
import select
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

TEMPLATE = Path(__file__).resolve().parents[2] / "deploy" / "proxy" / "nginx.conf.template"
CALLS = [
    "activate-node",
    "deactivate-node",
    "send-node-heartbeat",
    "pull-messages",
    "push-messages",
    "get-run",
    "push-object",
    "pull-object",
    "confirm-message-received",
]
Proxy = Any
Upstream = Any


# --- what passes


@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_a_site_makes_reaches_the_superlink(call: str, proxy: Proxy, upstream: Upstream) -> None:
    assert proxy.ask(f"/v1/fleet/{call}", body=call.encode()) == 200
    assert upstream.requests[-1][:3] == ("POST", f"/v1/fleet/{call}", call.encode())


def test_the_calls_are_those_of_the_installed_flower() -> None:
    # A Flower that names them otherwise must not be met by a proxy that lets nothing through.
    from flwr.supernode import fleet_http_client  # noqa: PLC0415

    paths = set(re.findall(r'path="/v1/fleet/([a-z-]+)"', Path(fleet_http_client.__file__).read_text()))
    assert paths == {*CALLS, "register-node", "unregister-node", "get-fab"}
    (allowed,) = re.findall(r"\^/v1/fleet/\(\?:([a-z|-]+)\)\\z", TEMPLATE.read_text())
    assert sorted(allowed.split("|")) == sorted(CALLS)


def test_headers_of_node_authentication_arrive_and_forwarding_ones_do_not(proxy: Proxy, upstream: Upstream) -> None:
    headers = {"flwr-signature": "abc", "X-Forwarded-For": "10.0.0.1", "Forwarded": "for=10.0.0.1"}
    assert proxy.ask(headers=headers) == 200
    arrived = {name.lower(): value for name, value in upstream.requests[-1][3].items()}
    assert arrived["flwr-signature"] == "abc"
    assert not {"x-forwarded-for", "forwarded"} & set(arrived)


def test_a_body_below_the_cap_arrives_whole(proxy: Proxy, upstream: Upstream) -> None:
    body = bytes(range(256)) * (6 * 4096)
    assert proxy.ask("/v1/fleet/push-object", body=body) == 200
    assert upstream.requests[-1][2] == body


# --- who is refused


@pytest.fixture
def silent(upstream: Upstream) -> Any:
    """The SuperLink must hear nothing of it."""
    before = len(upstream.requests)
    yield
    assert upstream.requests[before:] == []


def refused(proxy: Proxy, context: ssl.SSLContext) -> bool:
    """Whether a site with these settings gets no further than the proxy."""
    try:
        return bool(proxy.ask(context=context) == 400)
    except (ssl.SSLError, ConnectionError):
        return True


@pytest.mark.usefixtures("silent")
def test_without_a_certificate_nobody_passes(proxy: Proxy) -> None:
    assert refused(proxy, proxy.context(None))


@pytest.mark.usefixtures("silent")
def test_a_certificate_of_another_authority_is_refused(proxy: Proxy, tmp_path: Path) -> None:
    other = type(proxy.authority)(tmp_path, "federation")  # of the same name
    other.issue("hospital_a")
    assert refused(proxy, proxy.context("hospital_a", tmp_path))


@pytest.mark.usefixtures("silent")
def test_a_revoked_certificate_is_refused(proxy: Proxy) -> None:
    assert refused(proxy, proxy.context("revoked"))


@pytest.mark.usefixtures("silent")
def test_the_coordinators_own_certificate_is_not_a_sites(proxy: Proxy) -> None:
    assert refused(proxy, proxy.context("server"))


@pytest.mark.usefixtures("silent")
def test_tls_before_1_3_is_refused(proxy: Proxy) -> None:
    context = proxy.context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        proxy.ask(context=context)


@pytest.mark.usefixtures("silent")
def test_without_tls_nobody_passes(proxy: Proxy) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=5)
    connection.request("POST", "/v1/fleet/pull-messages", body=b"protobuf")
    assert connection.getresponse().status == 400
    connection.close()


def test_a_session_cannot_be_resumed_past_a_revocation(proxy: Proxy) -> None:
    context, session = proxy.context(), None
    for _ in range(2):
        with (
            socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname="localhost", session=session) as tls,
        ):
            tls.sendall(b"POST /v1/fleet/get-run HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            assert b"200" in tls.recv(4096)
            assert not tls.session_reused
            session = tls.session


def test_a_reload_with_a_new_revocation_list_ends_connections_that_were_open(
    proxy: Proxy, start_proxy: Callable[..., Proxy], tmp_path: Path
) -> None:
    authority = type(proxy.authority)(tmp_path, "federation")
    authority.issue("server", server=True)
    leaving = authority.issue("hospital_a")
    short = start_proxy({"worker_shutdown_timeout 10s": "worker_shutdown_timeout 1s"}, home=tmp_path)
    context = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
    context.load_cert_chain(tmp_path / "hospital_a.crt", tmp_path / "hospital_a.key")
    with (
        socket.create_connection(("127.0.0.1", short.port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        tls.sendall(b"POST /v1/fleet/get-run HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")  # and no body yet
        authority.revoke(leaving)
        short.process.send_signal(signal.SIGHUP)
        assert tls.recv(4096) == b""
    assert refused(short, context)


# --- what is refused


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/health",
        "/docs",
        "/openapi.json",
        "/v1/control/start-run",
        "/v1/control/list-runs",
        "/v1/runtime/acquire-task",
        "/v1/runtime/push-messages",
        "/v1/fleet",
        "/v1/fleet/",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/get-fab",
    ],
)
def test_everything_else_of_the_superlink_is_not_there(path: str, proxy: Proxy) -> None:
    assert proxy.ask(path) == 404
    assert proxy.ask(path, method="GET", body=b"") == 404


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize(
    "path",
    [
        "/v1/fleet/../control/start-run",
        "/v1/fleet/pull-messages/../../control/start-run",
        "/v1/control/../fleet/pull-messages",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/..%2fcontrol/start-run",
        "/v1/fleet/pull-messages%2f..%2f..%2fcontrol%2fstart-run",
        "/v1%2ffleet%2fpull-messages",
        "/v1/fleet%2Fpull-messages",
        "/v1/fleet/./pull-messages",
        "/v1/fleet/pull%2dmessages",
        "/v1/fleet/pull-messages%00",
        "/v1/fleet/pull-messages%0a",
        "/v1/fleet/pull-messages%0d%0aX:%20y",
        "//v1/fleet/pull-messages",
        "/v1//fleet/pull-messages",
        "/v1/fleet//pull-messages",
        "//v1/control/start-run",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/pull-messages;",
        "/v1/fleet/pull-messages;/../../control/start-run",
        "/v1/fleet/pull-messages?",
        "/v1/fleet/pull-messages?x=1",
        "/v1/fleet/pull-messages#x",
        "/v1/fleet/pull-messages.json",
        "/V1/FLEET/PULL-MESSAGES",
        "/v1/fleet/Pull-Messages",
        "/v1\\fleet\\pull-messages",
    ],
)
def test_no_other_writing_of_a_path_passes(path: str, proxy: Proxy) -> None:
    assert proxy.ask(path) in (400, 404)


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "post"])
def test_no_other_method_passes(method: str, proxy: Proxy) -> None:
    assert proxy.ask(method=method) in (400, 404)


@pytest.mark.usefixtures("silent")
def test_a_request_hidden_behind_another_one_does_not_pass(proxy: Proxy) -> None:
    hidden = b"POST /v1/control/start-run HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    lengths = b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n"
    head = b"POST /v1/fleet/get-run HTTP/1.1\r\nHost: x\r\n" + lengths
    with (
        socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as plain,
        proxy.context().wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        tls.sendall(head + hidden)
        assert b" 400 " in tls.recv(4096).split(b"\r\n")[0]


@pytest.mark.usefixtures("silent")
def test_a_body_over_the_cap_is_refused(proxy: Proxy) -> None:
    with contextlib.suppress(ConnectionError):  # closed while it was still being sent
        assert proxy.ask("/v1/fleet/push-object", body=b"x" * (16 * 1024 * 1024 + 1)) == 413


@pytest.mark.usefixtures("silent")
def test_a_body_that_does_not_say_how_long_it_is_is_refused(proxy: Proxy) -> None:
    connection = http.client.HTTPSConnection("127.0.0.1", proxy.port, context=proxy.context(), timeout=10)
    connection.request("POST", "/v1/fleet/push-object", body=iter([b"proto", b"buf"]), encode_chunked=True)
    assert connection.getresponse().status == 411
    connection.close()


# --- how much at once


def test_a_site_over_its_rate_is_slowed_down_and_another_is_not(start_proxy: Callable[..., Proxy]) -> None:
    slow = start_proxy({"rate=50r/s": "rate=4r/s"})

    def seconds(who: str, calls: int) -> float:
        connection = http.client.HTTPSConnection("127.0.0.1", slow.port, context=slow.context(who), timeout=10)
        begin = time.monotonic()
        for _ in range(calls):
            connection.request("POST", "/v1/fleet/get-run", body=b"")
            response = connection.getresponse()
            assert (response.status, response.read()) == (200, b"ok")
        connection.close()
        return time.monotonic() - begin

    assert seconds("hospital_a", 6) > 1.0  # five waits of a quarter of a second
    assert seconds("hospital_b", 1) < 0.2


def test_more_open_calls_than_the_cap_are_refused_for_now_and_only_that_sites(
    start_proxy: Callable[..., Proxy], upstream: Upstream
) -> None:
    # 503 is what Flower's client tries again.
    quick = start_proxy({"rate=50r/s": "rate=1000r/s"})
    upstream.gate.clear()
    try:
        with ThreadPoolExecutor(25) as pool:
            calls = [pool.submit(quick.ask) for _ in range(24)]
            while sum(call.done() for call in calls) < 8:
                time.sleep(0.02)
            other = pool.submit(quick.ask, context=quick.context("hospital_b"))
            time.sleep(0.1)
            upstream.gate.set()
            assert sorted(call.result() for call in calls) == [200] * 16 + [503] * 8
            assert other.result() == 200
    finally:
        upstream.gate.set()


@pytest.mark.parametrize("begun", ["nothing", "handshake", "header", "body"])
def test_who_is_slow_is_cut_off(begun: str, start_proxy: Callable[..., Proxy], slow_proxy: Proxy) -> None:
    with socket.create_connection(("127.0.0.1", slow_proxy.port), timeout=5) as plain:
        if begun == "nothing":
            assert _ends(plain)
            return
        if begun == "handshake":
            plain.sendall(b"\x16\x03\x01\x02\x00")  # a record that never comes
            assert _ends(plain)
            return
        with slow_proxy.context().wrap_socket(plain, server_hostname="localhost") as tls:
            tls.sendall(b"POST /v1/fleet/get-run HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n")
            if begun == "body":
                tls.sendall(b"\r\nx")
            assert _ends(tls)


@pytest.fixture(scope="session")
def slow_proxy(start_proxy: Callable[..., Proxy]) -> Proxy:
    """A proxy with the shipped waits, each a second."""
    return start_proxy(
        {"client_header_timeout 5s": "client_header_timeout 1s", "client_body_timeout 20s": "client_body_timeout 1s"}
    )


def test_half_handshakes_of_strangers_leave_room_for_a_site(start_proxy: Callable[..., Proxy]) -> None:
    with _open_files(1024):  # as a service begins
        # The shipped proxy ends them after five seconds; here they stay, however slow the machine is.
        patient = start_proxy({"client_header_timeout 5s": "client_header_timeout 600s"})
    with _open_files(8192), contextlib.ExitStack() as stack:
        halves = []
        for _ in range(3000):
            halves.append(stack.enter_context(socket.create_connection(("127.0.0.1", patient.port), timeout=5)))
            halves[-1].sendall(b"\x16\x03\x01\x02\x00")
        assert [patient.ask() for _ in range(6)] == [200] * 6
        assert not _readable(halves)  # none was closed to make room


@contextlib.contextmanager
def _open_files(count: int) -> Iterator[None]:
    """So many, to this process and what it starts; the test is skipped where the proxy's 8192 are not allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 8192:
        pytest.skip(f"the hard limit of open files is {hard}; 8192 are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _readable(connections: list[socket.socket]) -> list[tuple[int, int]]:
    """Those on which something came, or that were closed."""
    polled = select.poll()
    for connection in connections:
        polled.register(connection, select.POLLIN)
    return polled.poll(0)


def _ends(connection: socket.socket) -> bool:
    """Whether the other end closes within three seconds."""
    connection.settimeout(3)
    try:
        while connection.recv(4096):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return True


# --- the other end, and what is left behind


def test_a_superlink_of_another_authority_gets_no_call(
    start_proxy: Callable[..., Proxy], proxy: Proxy, tmp_path: Path, upstream: Upstream
) -> None:
    # The proxy has another federation's authority: it must not speak to this one's SuperLink.
    other = type(proxy.authority)(tmp_path, "other")
    other.issue("server", server=True)
    other.issue("hospital_a")
    wrong = start_proxy(home=tmp_path)
    context = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
    context.load_cert_chain(tmp_path / "hospital_a.crt", tmp_path / "hospital_a.key")
    before = len(upstream.requests)
    assert wrong.ask(context=context) == 502
    assert upstream.requests[before:] == []


def test_the_log_names_the_site_and_the_call_and_holds_no_body(proxy: Proxy) -> None:
    secret = b"a-body-that-must-not-be-logged"
    assert proxy.ask("/v1/fleet/push-messages", body=secret, context=proxy.context("hospital_b")) == 200
    expected = {"site": "CN=hospital_b", "request": "POST /v1/fleet/push-messages HTTP/1.1", "status": 200}.items()
    for _ in range(100):  # written after the answer is sent
        lines = [json.loads(line) for line in (proxy.run / "access.log").read_text().splitlines()]
        if any(expected <= line.items() for line in lines):
            break
        time.sleep(0.05)
    else:
        pytest.fail(f"not logged: {lines[-3:]}")
    assert secret not in b"".join(path.read_bytes() for path in proxy.run.rglob("*") if path.is_file())


def test_no_answer_tells_the_version(proxy: Proxy) -> None:
    connection = http.client.HTTPSConnection("127.0.0.1", proxy.port, context=proxy.context(), timeout=5)
    connection.request("GET", "/docs")
    response = connection.getresponse()
    assert response.headers["Server"] == "nginx"
    assert not re.search(rb"nginx/\d", response.read())
    connection.close()


def test_the_template_has_no_other_marks_and_needs_no_privilege() -> None:
    text = TEMPLATE.read_text()
    assert set(re.findall(r"@[A-Z_]+@", text)) == {"@HOME@", "@RUN@", "@LISTEN@", "@UPSTREAM@"}
    assert not re.search(r"^\s*user\s", text, re.MULTILINE)


def test_nginx_finds_no_fault_as_a_user_without_privilege(proxy: Proxy) -> None:
    setpriv = shutil.which("setpriv")
    with tempfile.TemporaryDirectory() as name:  # unlike tmp_path, other users may pass
        folder = Path(name)
        folder.chmod(0o755)
        home, run = shutil.copytree(proxy.authority.folder, folder / "home"), folder / "run"
        run.mkdir()
        text = (proxy.run / "nginx.conf").read_text()
        text = text.replace(str(proxy.run), str(run)).replace(str(proxy.authority.folder), str(home))
        (folder / "nginx.conf").write_text(text)
        command = [proxy.process.args[0], "-e", "stderr", "-t", "-c", str(folder / "nginx.conf")]
        if os.geteuid() == 0:
            if setpriv is None:
                pytest.skip("the tests run as root, and there is no setpriv to run as another user")
            for path in [run, *home.iterdir(), home]:
                shutil.chown(path, 65534, 65534)
            command = [setpriv, "--reuid=65534", "--regid=65534", "--clear-groups", "--", *command]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr
