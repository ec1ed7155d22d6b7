"""A PostgreSQL server of its own for tests, on loopback and a socket, from the programs that are installed."""

import ipaddress
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_PATIENCE = 60
ADMIN, READER = "adm1n-s3cret", "r3ader-s3cret"
"""Passwords, on a server that dies with the tests."""


def programs() -> Path | None:
    """The folder with initdb and postgres; None where they are not installed."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((one for one in reversed(folders) if (one / "initdb").exists() and (one / "postgres").exists()), None)


class Server:
    """A running server.

    folder: of its socket.
    port: on loopback.
    """

    def __init__(self, folder: Path, bin_: Path) -> None:
        self.folder = folder
        self._bin = bin_
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        # postgres refuses to run as root.
        self._as: dict[str, object] = {}
        if os.geteuid() == 0:
            names = {entry.pw_name: entry for entry in pwd.getpwall()}
            entry = names.get("postgres") or names["nobody"]
            self._as = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
            os.chown(folder, entry.pw_uid, entry.pw_gid)
        (folder / "password").write_text(ADMIN)
        (folder / "password").chmod(0o644)
        flags = ["--username=admin", f"--pwfile={folder / 'password'}", "--auth=scram-sha-256", "--no-sync"]
        self._run("initdb", f"--pgdata={folder / 'data'}", "--encoding=UTF8", "--locale=C", *flags)
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, user: str = "admin", password: str | None = None, database: str = "postgres") -> str:
        """As a site has it in its environment."""
        password = password or {"admin": ADMIN, "reader": READER}[user]
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}"

    def execute(self, *statements: str, database: str = "postgres") -> None:
        """As the administrator, each by itself."""
        import psycopg  # noqa: PLC0415 (of an extra, and other fixtures do without)

        with psycopg.connect(self.url(database=database), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def start(self) -> None:
        """Start it, and wait until it answers."""
        import psycopg  # noqa: PLC0415 (as above)

        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self.folder,
            "fsync": "off",
            "shared_buffers": "16MB",
            "max_connections": 20,
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = [str(self._bin / "postgres"), "-D", str(self.folder / "data"), *options]
        self._process = subprocess.Popen(command, cwd=self.folder, stderr=subprocess.DEVNULL, **self._as)  # type: ignore[call-overload]
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                psycopg.connect(self.url()).close()
            except psycopg.OperationalError:
                assert time.monotonic() < end, "PostgreSQL does not start"
                time.sleep(0.05)
            else:
                return

    def stop(self, *, how: signal.Signals = signal.SIGINT) -> None:
        """End it and everybody's connections; SIGQUIT as a crash does."""
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait(_PATIENCE)

    @contextmanager
    def encrypted(self, *, name: str = "127.0.0.1") -> Iterator[Path]:
        """Speak TLS for a while, with a certificate for an address or a host; gives the authority's certificate."""
        key, certificate = self.folder / "data" / "server.key", self.folder / "data" / "server.crt"
        authority = self.folder / "authority.crt"
        make_certificates(authority, certificate, key, name=name)
        for path in (key, certificate):
            os.chown(path, *((self._as["user"], self._as["group"]) if self._as else (-1, -1)))  # type: ignore[arg-type]
        self._switch("ALTER SYSTEM SET ssl = on", is_on=True)
        try:
            yield authority
        finally:
            self._switch("ALTER SYSTEM RESET ssl", is_on=False)

    def _switch(self, statement: str, *, is_on: bool) -> None:
        """Change whether it speaks TLS; a running server takes it up for new connections after a moment."""
        import psycopg  # noqa: PLC0415 (as above)

        self.execute(statement, "SELECT pg_reload_conf()")
        end = time.monotonic() + _PATIENCE
        while True:
            with psycopg.connect(f"{self.url()}?sslmode=prefer") as connection:
                if connection.pgconn.ssl_in_use == is_on:
                    return
            assert time.monotonic() < end, "PostgreSQL does not take up its certificate"
            time.sleep(0.05)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._bin / program), *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False, **self._as)  # type: ignore[call-overload]
        assert done.returncode == 0, done.stderr


def make_certificates(authority: Path, certificate: Path, key: Path, *, name: str) -> None:
    """An authority's certificate, and a server's of it with its key, in PEM; in force for a day."""
    own, server = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority of a test")])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "database of a test")])
    now = datetime.now(UTC)
    began = x509.CertificateBuilder().issuer_name(issuer).not_valid_before(now - timedelta(hours=1))
    made = began.not_valid_after(now + timedelta(days=1)).serial_number(x509.random_serial_number())
    root = made.subject_name(issuer).public_key(own.public_key())
    root = root.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    known: x509.GeneralName = x509.DNSName(name)
    if name[0].isdigit():
        known = x509.IPAddress(ipaddress.ip_address(name))
    leaf = made.subject_name(subject).public_key(server.public_key())
    leaf = leaf.add_extension(x509.SubjectAlternativeName([known]), critical=False)
    pem = serialization.Encoding.PEM
    authority.write_bytes(root.sign(own, hashes.SHA256()).public_bytes(pem))
    certificate.write_bytes(leaf.sign(own, hashes.SHA256()).public_bytes(pem))
    plain = serialization.PrivateFormat.PKCS8
    key.write_bytes(server.private_bytes(pem, plain, serialization.NoEncryption()))
    key.chmod(0o600)


@contextmanager
def serving(bin_: Path) -> Iterator[Server]:
    """A server in a new folder that its user can reach, gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="privshare-pg-"))
    try:
        server = Server(folder, bin_)
        server.start()
        try:
            yield server
        finally:
            server.stop(how=signal.SIGQUIT)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
