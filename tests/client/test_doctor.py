"""`doctor` on a healthy site and on sites with one planted fault each: that check fails, alone, and says how to mend it."""

import errno
import json
import os
import resource
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID
from typer.testing import CliRunner, Result

from client.agent import alone
from client.cli import app
from client.consent import Withdrawal, withdraw
from client.doctor.checks import CHECKS
from client.doctor.checkup import Case, Check, Mark, Surroundings, examine, first_failure
from client.doctor.checkup import Result as Finding
from client.keys import identity
from client.policy import load_site_settings, policy_digest, sign_policy
from common.errors import ExitCode
from common.study import load_study
from common.wire.messages import Reply
from server.provision import _leaf, _named, _pem, _read_authority, renew_server, server_certificate
from tests.client.homes import HEADER, SERIES, SINGLE, Home, make_rows, make_series, write_yaml
from tests.members import Federation, make_members
from tests.network.coordinators import serving

ROWS = make_rows(500)
PLENTY = 2**50
SLEEPY = timedelta(days=400)


def at_ease() -> Surroundings:
    """A machine with room for everything."""
    return Surroundings(free=lambda _: PLENTY, memory=lambda: PLENTY)


@dataclass
class Patient:
    """The folder of a site that could run, what it is examined with, and what lasts as long as the examination."""

    federation: Federation
    around: Surroundings = field(default_factory=at_ease)
    stack: ExitStack = field(default_factory=ExitStack)

    @property
    def folder(self) -> Path:
        return self.federation.folder / "sites" / "north"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def home(self) -> Home:
        return Home(self.folder, load_study(self.folder / "study.yaml"))

    def change(self, name: str, **values: Any) -> None:
        """Change a YAML file; None takes a key away."""
        path = self.folder / name
        data = {**yaml.safe_load(path.read_text()), **values}
        write_yaml(path, {key: value for key, value in data.items() if value is not None})

    def sign(self) -> None:
        sign_policy(self.folder / "policy.yaml", identity(self.state))

    def write(self, rows: list[tuple[str, ...]], *, header: str = HEADER) -> None:
        lines = [header, *(",".join(row) for row in rows)]
        (self.federation.folder / "table.csv").write_text("\n".join(lines) + "\n")

    def spoil(self, column: int, value: str, rows: int = 1) -> None:
        """Write another value into the first rows of a column."""
        own = [(*row[:column], value, *row[column + 1 :]) for row in ROWS[:rows]]
        self.write([*own, *ROWS[rows:]])

    def serve(self, home: Path | None = None, **options: Any) -> None:
        """A coordinator with the certificate in a folder, or the federation's own."""
        port = self.stack.enter_context(serving(home or self.federation.home, **options))
        self.change("site.yaml", superlink=f"localhost:{port}")

    def spend(self, share: float) -> None:
        body = self.home.open().handle(self.home.ask("one_way", options={"share": share}).encode())
        assert Reply.decode(body).refused is None

    def examined(self) -> list[Finding]:
        with self.stack:
            return examine(Case(self.folder / "site.yaml", "north", self.around), CHECKS)


def make_patient(folder: Path, *, now: datetime, windows: bool = False) -> Patient:
    federation = make_members(folder, now=now, address="localhost:1", windows=windows)
    patient = Patient(federation)
    patient.change("policy.yaml", witnesses=0)
    patient.sign()
    patient.write(SINGLE if windows else ROWS)
    if windows:
        series = [SERIES, *map(",".join, make_series(SINGLE))]
        (folder / "long.csv").write_text("\n".join(series) + "\n")
    return patient


@pytest.fixture(scope="module", params=["records", "windows"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of federations in which a site could run: with windows, without, and one that joined long ago."""
    folder = tmp_path_factory.mktemp("made")
    now = datetime.now(UTC)
    yesterday = now - timedelta(days=1)  # a clock that is a little behind is not before every paper
    make_patient(folder / "records", now=yesterday)
    make_patient(folder / "windows", now=yesterday, windows=True)
    renew_server(make_patient(folder / "old", now=now - SLEEPY).federation.home, now=now)
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def port(made: dict[str, Path]) -> Iterator[int]:
    """Of a coordinator that works."""
    with serving(made["records"] / "coordinator") as found:
        yield found


@pytest.fixture
def take(made: dict[str, Path], port: int, tmp_path: Path) -> Callable[[str], Patient]:
    """A copy of one of the federations; what is connected to is the coordinator of the first."""

    def taken(which: str) -> Patient:
        folder = tmp_path / which
        shutil.copytree(made[which], folder)
        patient = Patient(Federation(folder))
        for name in ("north", "south"):
            path = folder / "sites" / name / "site.yaml"
            path.write_text(path.read_text().replace(str(made[which]), str(folder)))
        if which == "records":
            patient.change("site.yaml", superlink=f"localhost:{port}")
        else:
            patient.serve()
        return patient

    return taken


@pytest.fixture
def patient(take: Callable[[str], Patient]) -> Patient:
    return take("records")


def marks(found: list[Finding]) -> dict[str, str]:
    return {result.check: f"{result.mark}: {result.says}" for result in found if result.mark != Mark.OK}


def test_a_healthy_site_passes_every_check(take: Callable[[str], Patient], kind: str) -> None:
    found = take(kind).examined()
    # Forty units are few, and the check says so.
    assert set(marks(found)) == ({"enough units"} if kind == "windows" else set())
    assert first_failure(found) == ExitCode.OK
    assert [result.check for result in found] == [check.name for check in CHECKS]


# --- one fault each

FAULTS: dict[str, tuple[str, Callable[[Patient], None], str, str, ExitCode]] = {}
Plant = Callable[[Patient], None]


def fault(check: str, mend: str, code: ExitCode, *, on: str = "records") -> Callable[[Plant], Plant]:
    """Which check must fail, a part of its mend, its code; and in which federation."""

    def kept(plant: Plant) -> Plant:
        FAULTS[plant.__name__] = (on, plant, check, mend, code)
        return plant

    return kept


@fault("site file", "docs/site.md", ExitCode.STUDY_INVALID)
def unknown_key(patient: Patient) -> None:
    patient.change("site.yaml", tabel="x")


@fault("site file", "docs/site.md", ExitCode.POLICY_REFUSED)
def file_of_another_site(patient: Patient) -> None:
    patient.change("site.yaml", site="south")


@fault("study", "from the kit", ExitCode.STUDY_INVALID)
def study_not_valid(patient: Patient) -> None:
    patient.change("study.yaml", label={"column": "nothing", "positive": "x"})


@fault("approved study", "restore the study.yaml", ExitCode.POLICY_REFUSED)
def study_changed_by_one_word(patient: Patient) -> None:
    patient.change("study.yaml", purpose="sale")


@fault("policy", "correct policy.yaml", ExitCode.POLICY_REFUSED)
def policy_of_another_site(patient: Patient) -> None:
    patient.change("policy.yaml", site="west")
    patient.sign()


@fault("policy", "later `expires`", ExitCode.POLICY_REFUSED)
def policy_expired(patient: Patient) -> None:
    patient.change("policy.yaml", expires="2020-01-01")
    patient.sign()


@fault("consent", "privshare-client approve", ExitCode.POLICY_REFUSED)
def policy_not_signed(patient: Patient) -> None:
    (patient.folder / "policy.yaml.sig").unlink()


@fault("consent", "privshare-client approve", ExitCode.POLICY_REFUSED)
def policy_changed_by_one_byte(patient: Patient) -> None:
    path = patient.folder / "policy.yaml"
    path.write_bytes(path.read_bytes() + b"\n")


@fault("consent", "--after-withdrawal", ExitCode.CONSENT_WITHDRAWN)
def consent_withdrawn(patient: Patient) -> None:
    path = patient.folder / "policy.yaml"
    record = Withdrawal(
        site="north", study=patient.home.study.digest(), policy=policy_digest(path), made=datetime.now(UTC)
    )
    withdraw(path, record, identity(patient.state))


@fault("limits", "allow in policy.yaml", ExitCode.POLICY_REFUSED)
def column_not_allowed(patient: Patient) -> None:
    patient.change("policy.yaml", columns=["age", "amount", "ill"])
    patient.sign()


@fault("signing key", "chmod 600", ExitCode.POLICY_REFUSED)
def identity_readable_by_others(patient: Patient) -> None:
    (patient.state / "identity.pem").chmod(0o644)


@fault("unit key", "chmod 600", ExitCode.POLICY_REFUSED)
def unit_key_readable_by_others(patient: Patient) -> None:
    patient.spend(0.1)
    (patient.state / "site.key").chmod(0o640)


@fault("unit key", "restore it", ExitCode.POLICY_REFUSED)
def unit_key_gone(patient: Patient) -> None:
    patient.spend(0.1)
    (patient.state / "site.key").unlink()


@fault("connection keys", "rotate", ExitCode.POLICY_REFUSED)
def transport_key_readable_by_others(patient: Patient) -> None:
    (patient.state / "transport.key").chmod(0o644)


@fault("ledger", "restore the newest", ExitCode.LEDGER_INVALID)
def ledger_truncated(patient: Patient) -> None:
    patient.spend(0.1)
    lines = (patient.folder / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (patient.folder / "ledger.jsonl").write_bytes(b"".join(lines[:2]))


@fault("ledger", "restore the newest", ExitCode.LEDGER_INVALID)
def ledger_changed(patient: Patient) -> None:
    patient.spend(0.1)
    path = patient.folder / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"cells"', b'"cellz"', 1))


@fault("ledger", "restore the newest", ExitCode.LEDGER_INVALID)
def ledger_gone(patient: Patient) -> None:
    patient.spend(0.1)
    (patient.folder / "ledger.jsonl").unlink()


@fault("budget", "nothing mends that", ExitCode.BUDGET_REFUSED)
def budget_spent(patient: Patient) -> None:
    patient.spend(1.0)


@fault("state folder", "let the site's user write", ExitCode.OUTPUT_NOT_WRITABLE)
def state_not_writable(patient: Patient) -> None:
    # To root no folder is read-only; that no file may grow holds for root too.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    patient.stack.callback(resource.setrlimit, resource.RLIMIT_FSIZE, (soft, hard))


@fault("disk space", "free some space", ExitCode.OUTPUT_NOT_WRITABLE)
def disk_full(patient: Patient) -> None:
    patient.around = replace(patient.around, free=lambda _: 0)


@fault("free to start", "stop the other process", ExitCode.ALREADY_RUNNING)
def another_process_running(patient: Patient) -> None:
    patient.stack.enter_context(alone(patient.state))


@fault("health", "another port", ExitCode.POLICY_REFUSED)
def health_port_taken(patient: Patient) -> None:
    taken = patient.stack.enter_context(closing(socket.socket()))
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    patient.change("site.yaml", health=f"127.0.0.1:{taken.getsockname()[1]}")


@fault("versions", "pip install 'flwr==", ExitCode.FLOWER_UNTESTED)
def flower_untested(patient: Patient) -> None:
    patient.around = replace(patient.around, flower=lambda: "1.30.0")


@fault("data source", "correct `source`", ExitCode.TABLE_NOT_FOUND)
def table_gone(patient: Patient) -> None:
    (patient.federation.folder / "table.csv").unlink()


@fault("data source", "correct `source`", ExitCode.SOURCE_UNREACHABLE)
def database_gone(patient: Patient) -> None:
    patient.change("site.yaml", source={"type": "sqlite", "database": str(patient.folder / "no.db"), "table": "t"})


@fault("columns", "rename or add", ExitCode.COLUMN_MISSING)
def column_missing(patient: Patient) -> None:
    patient.write([row[:1] + row[2:] for row in ROWS], header="patient,age,amount,ill")


@fault("columns", "`ignore`", ExitCode.COLUMN_UNKNOWN)
def column_unknown(patient: Patient) -> None:
    patient.write([(*row, "x") for row in ROWS], header=f"{HEADER},note")


@fault("cells", "correct the cells", ExitCode.OUT_OF_BOUNDS)
def out_of_bounds(patient: Patient) -> None:
    patient.spoil(2, "100", rows=3)


@fault("cells", "correct the cells", ExitCode.UNLISTED_CATEGORY)
def category_unlisted(patient: Patient) -> None:
    patient.spoil(1, "mauve")


@fault("cells", "correct the cells", ExitCode.MISSING_NOT_ALLOWED)
def value_missing(patient: Patient) -> None:
    patient.spoil(3, "")


@fault("cells", "correct the cells", ExitCode.MISSING_NOT_ALLOWED)
def unit_key_missing(patient: Patient) -> None:
    patient.spoil(0, " ")


@fault("records of a unit", "correct the key", ExitCode.UNIT_REPEATED, on="windows")
def unit_twice(patient: Patient) -> None:
    patient.write([*SINGLE, SINGLE[0]])


@fault("windows", "correct the long table", ExitCode.UNIT_UNKNOWN, on="windows")
def unit_of_the_long_table_unknown(patient: Patient) -> None:
    with (patient.federation.folder / "long.csv").open("a") as file:
        file.write("nobody,1,80,a\n")


@fault("coordinator", "set `superlink`", ExitCode.NOT_ADMITTED)
def superlink_missing(patient: Patient) -> None:
    patient.change("site.yaml", superlink=None)


@fault("federation's CA", "from the kit", ExitCode.KIT_INVALID)
def ca_no_certificate(patient: Patient) -> None:
    (patient.folder / "ca.crt").write_text("nonsense")


@fault("coordinator's CA", "fingerprint", ExitCode.UNTRUSTED)
def wrong_ca(patient: Patient) -> None:
    other = make_members(patient.federation.folder / "other", now=datetime.now(UTC))
    shutil.copy(other.home / "ca.crt", patient.folder / "ca.crt")


@fault("certificate", "rotate", ExitCode.CERTIFICATE_EXPIRED, on="old")
def certificate_expired(patient: Patient) -> None:
    """It is."""


@fault("certificate", "rotate", ExitCode.KIT_INVALID)
def certificate_of_another_key(patient: Patient) -> None:
    shutil.copy(patient.federation.folder / "sites" / "south" / "state" / "tls.key", patient.state / "tls.key")


@fault("name", "administrators", ExitCode.UNREACHABLE)
def name_not_resolving(patient: Patient) -> None:
    def nobody(host: str) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, host)

    patient.around = replace(patient.around, resolve=nobody)


@fault("port", "firewall", ExitCode.UNREACHABLE)
def port_closed(patient: Patient) -> None:
    with closing(socket.socket()) as nobody:
        nobody.bind(("127.0.0.1", 0))
        patient.change("site.yaml", superlink=f"localhost:{nobody.getsockname()[1]}")


@fault("coordinator's CA", "fingerprint", ExitCode.UNREACHABLE)
def no_tls(patient: Patient) -> None:
    """Whoever listens hangs up on everybody."""
    listener = patient.stack.enter_context(closing(socket.socket()))
    listener.bind(("127.0.0.1", 0))
    listener.listen()

    def hang_up() -> None:
        while True:
            try:
                listener.accept()[0].close()
            except OSError:
                return

    threading.Thread(target=hang_up, daemon=True).start()
    patient.change("site.yaml", superlink=f"localhost:{listener.getsockname()[1]}")


def shown_by(patient: Patient, *, names: list[x509.GeneralName] | None, now: datetime) -> None:
    """Have the coordinator show a certificate with these alternative names, or none, that was made then."""
    home = patient.federation.home
    authority, ca = _read_authority(home)
    public: Any = server_certificate(home).public_key()
    builder = _leaf(_named("coordinator"), public, ExtendedKeyUsageOID.SERVER_AUTH, authority, ca, now=now)
    if names is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    (home / "server.crt").write_bytes(_pem(builder.sign(authority, hashes.SHA256())))
    patient.serve()


@fault("coordinator's name", "privshare renew", ExitCode.UNREACHABLE)
def no_alternative_name(patient: Patient) -> None:
    shown_by(patient, names=None, now=datetime.now(UTC))


@fault("coordinator's name", "privshare renew", ExitCode.UNREACHABLE)
def another_alternative_name(patient: Patient) -> None:
    shown_by(patient, names=[x509.DNSName("localhost.example.org")], now=datetime.now(UTC))


@fault("coordinator's certificate", "privshare renew", ExitCode.CERTIFICATE_EXPIRED)
def servers_certificate_expired(patient: Patient) -> None:
    shown_by(patient, names=[x509.DNSName("localhost")], now=datetime.now(UTC) - SLEEPY)


@fault("let in", "privshare members", ExitCode.NOT_ADMITTED)
def not_let_in(patient: Patient) -> None:
    other = make_members(patient.federation.folder / "other", now=datetime.now(UTC))
    patient.serve(ca=other.home / "ca.crt")


@fault("clock", "chrony", ExitCode.NOT_ADMITTED)
def clock_ahead(patient: Patient) -> None:
    patient.around = replace(patient.around, now=lambda: datetime.now(UTC) + timedelta(minutes=1))


@fault("clock", "chrony", ExitCode.NOT_ADMITTED)
def clock_behind(patient: Patient) -> None:
    patient.around = replace(patient.around, now=lambda: datetime.now(UTC) - timedelta(minutes=6))


@fault("memory", "more memory", ExitCode.INTERNAL)
def memory_short(patient: Patient) -> None:
    patient.around = replace(patient.around, memory=lambda: -PLENTY)


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_fails_its_check_alone_and_its_mend_is_named(
    take: Callable[[str], Patient], name: str
) -> None:
    on, plant, check, mend, code = FAULTS[name]
    patient = take(on)
    plant(patient)
    found = patient.examined()
    (failed,) = [result for result in found if result.mark == Mark.FAILED]
    assert (failed.check, failed.code, first_failure(found)) == (check, code, code)
    assert mend in failed.mend
    assert "\n" not in failed.mend + failed.says
    # All the others were made, or say what they wait for.
    skipped = [result for result in found if result.mark == Mark.SKIPPED]
    assert len(found) == len(CHECKS)
    assert all(result.says.startswith(("needs: ", "not checked: ")) for result in skipped)
