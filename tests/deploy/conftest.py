"""A small federation's certificates, a SuperLink that only listens, and the proxy between."""

import http.client
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "deploy" / "proxy" / "nginx.conf.template"
_DAY = timedelta(days=1)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


class Authority:
    """A certificate authority of a test."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self._name = folder, _name(name)
        folder.mkdir(parents=True, exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        usage = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        self.certificate = (
            x509.CertificateBuilder(self._name, self._name, self._key.public_key(), x509.random_serial_number())
            .not_valid_before(now - _DAY)
            .not_valid_after(now + _DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(self._key, hashes.SHA256())
        )
        (folder / "ca.crt").write_bytes(self.certificate.public_bytes(Encoding.PEM))
        self.revoke()

    def issue(self, name: str, *, server: bool = False) -> x509.Certificate:
        """Write NAME.crt and NAME.key."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = (
            x509.CertificateBuilder(self._name, _name(name), key.public_key(), x509.random_serial_number())
            .not_valid_before(now - _DAY)
            .not_valid_after(now + _DAY)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        )
        if server:
            names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        (self.folder / f"{name}.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
        (self.folder / f"{name}.key").write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        )
        return certificate

    def revoke(self, *certificates: x509.Certificate) -> None:
        """Write crl.pem with these on it."""
        now = datetime.now(UTC)
        builder = x509.CertificateRevocationListBuilder(self._name, now - _DAY, now + _DAY)
        for certificate in certificates:
            entry = x509.RevokedCertificateBuilder(certificate.serial_number, now).build()
            builder = builder.add_revoked_certificate(entry)
        crl = builder.sign(self._key, hashes.SHA256())
        (self.folder / "crl.pem").write_bytes(crl.public_bytes(Encoding.PEM))


@dataclass
class Upstream:
    """What a SuperLink would have been asked."""

    port: int
    requests: list[tuple[str, str, bytes, dict[str, str]]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The federation's own authority: two sites, one that is revoked, and the coordinator."""
    made = Authority(tmp_path_factory.mktemp("coordinator"), "federation")
    for site in ("hospital_a", "hospital_b"):
        made.issue(site)
    made.issue("server", server=True)
    made.revoke(made.issue("revoked"))
    return made


@pytest.fixture(scope="session")
def upstream(authority: Authority) -> Iterator[Upstream]:
    """An HTTPS server on loopback in the SuperLink's place."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            seen.requests.append((self.command, self.path, body, dict(self.headers)))
            seen.gate.wait(5)
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_OPTIONS = _answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.folder / "server.crt", authority.folder / "server.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    seen = Upstream(server.server_address[1])
    seen.gate.set()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield seen
    server.shutdown()
    server.server_close()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def nginx() -> str:
    """The program, or the test is skipped."""
    found = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/local/bin:/usr/bin:/bin")
    if found is None:
        pytest.skip("no nginx here: apt-get install nginx-light")
    return found


def render(home: Path, run: Path, port: int, upstream_port: int) -> str:
    """The template, filled in."""
    text = TEMPLATE.read_text()
    for mark, value in {
        "@HOME@": str(home),
        "@RUN@": str(run),
        "@LISTEN@": f"127.0.0.1:{port}",
        "@UPSTREAM@": f"127.0.0.1:{upstream_port}",
    }.items():
        text = text.replace(mark, value)
    return text


@dataclass
class Proxy:
    """A running proxy, and how a site would speak to it."""

    port: int
    run: Path
    authority: Authority
    process: subprocess.Popen[bytes]

    def context(self, who: str | None = "hospital_a", folder: Path | None = None) -> ssl.SSLContext:
        """The TLS settings of a site with this certificate, or none."""
        context = ssl.create_default_context(cafile=str(self.authority.folder / "ca.crt"))
        if who is not None:
            folder = folder or self.authority.folder
            context.load_cert_chain(folder / f"{who}.crt", folder / f"{who}.key")
        return context

    def ask(
        self,
        path: str = "/v1/fleet/pull-messages",
        *,
        method: str = "POST",
        body: bytes = b"protobuf",
        headers: dict[str, str] | None = None,
        context: ssl.SSLContext | None = None,
    ) -> int:
        """The status of one call, on a connection of its own."""
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=context or self.context(), timeout=10)
        try:
            connection.request(method, path, body=body, headers=headers or {})
            return connection.getresponse().status
        finally:
            connection.close()


@pytest.fixture(scope="session")
def start_proxy(
    authority: Authority, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Proxy]]:
    """Starts a proxy; what is replaced in its configuration is what a test cannot wait for."""
    started: list[subprocess.Popen[bytes]] = []

    def start(replace: dict[str, str] | None = None, home: Path | None = None, upstream_port: int = 0) -> Proxy:
        program, run, port = nginx(), tmp_path_factory.mktemp("proxy"), free_port()
        text = render(home or authority.folder, run, port, upstream_port or upstream.port)
        for old, new in (replace or {}).items():
            assert old in text
            text = text.replace(old, new)
        (run / "nginx.conf").write_text(text)
        process = subprocess.Popen([program, "-e", "stderr", "-c", str(run / "nginx.conf")])
        started.append(process)
        for _ in range(100):
            assert process.poll() is None, "nginx ended at once"
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        return Proxy(port, run, authority, process)

    yield start
    for process in started:
        process.terminate()
    for process in started:
        process.wait(10)


@pytest.fixture(scope="session")
def proxy(start_proxy: Callable[..., Proxy]) -> Proxy:
    """The proxy as it is shipped."""
    return start_proxy()
