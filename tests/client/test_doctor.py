"""`doctor` on a healthy site, and on sites with one planted fault each: its check fails alone and names the mend."""

import json
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

from client.cli import app
from client.consent import Withdrawal, withdraw
from client.doctor.checks import CHECKS
from client.doctor.checkup import Case, Check, Mark, Surroundings, examine, first_failure
from client.doctor.checkup import Result as Finding
from client.holding import alone
from client.keys import identity
from client.policy import policy_digest, sign_policy
from client.presets.tables import READS
from common.errors import ExitCode
from common.study import load_study
from common.wire.messages import Reply
from server.provision import _leaf, _named, _pem, _read_authority, renew_server, server_certificate
from tests.client.homes import HEADER, SERIES, SINGLE, Home, make_rows, make_series, write_yaml
from tests.members import Federation, make_members
from tests.network.coordinators import serving
from tests.postgres import READER, Server, make_certificates

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


@fault("free to start", "stop the other process", ExitCode.UNREACHABLE)
def another_process_running_and_silent(patient: Patient) -> None:
    patient.stack.enter_context(alone(patient.state))
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        patient.change("site.yaml", health=f"127.0.0.1:{probe.getsockname()[1]}")


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


@fault("data source", "correct `source`", ExitCode.TABLE_NOT_FOUND)
def entity_of_a_preset_gone(patient: Patient) -> None:
    (patient.folder / "mimic").mkdir()
    patient.change("site.yaml", source={"type": "csv", "folder": str(patient.folder / "mimic"), "preset": "mimic3"})


@fault("data source", "correct `source`", ExitCode.COLUMN_MISSING)
def column_of_a_presets_entity_gone(patient: Patient) -> None:
    give_mimic(patient, labevents=("subject_id", "itemid", "charttime"))


@fault("columns", "docs/mimic.md", ExitCode.COLUMN_MISSING)
def column_that_no_preset_makes(patient: Patient) -> None:
    give_mimic(patient)


@fault("columns", "docs/mimic.md", ExitCode.STUDY_INVALID, on="windows")
def windows_that_no_preset_makes(patient: Patient) -> None:
    give_mimic(patient)


def give_mimic(patient: Patient, **others: tuple[str, ...]) -> None:
    """MIMIC-III without a row, some entities with other columns."""
    folder = patient.folder / "mimic"
    folder.mkdir()
    for entity, columns in {**READS["mimic3"], **others}.items():
        (folder / f"{entity.upper()}.csv").write_text(",".join(columns).upper() + "\n")
    patient.change("site.yaml", source={"type": "csv", "folder": str(folder), "preset": "mimic3"})


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


def write_series(patient: Patient, windows: list[tuple[str, ...]]) -> None:
    (patient.federation.folder / "long.csv").write_text("\n".join([SERIES, *map(",".join, windows)]) + "\n")


@fault("windows", "can take part as it is", ExitCode.CONSTANT_COLUMN, on="windows")
def channel_without_a_value(patient: Patient) -> None:
    write_series(patient, [(*row[:2], "", row[3]) for row in make_series(SINGLE)])


@fault("windows", "can take part as it is", ExitCode.WINDOW_TOO_SHORT, on="windows")
def window_that_no_unit_fills(patient: Patient) -> None:
    write_series(patient, [row for row in make_series(SINGLE) if int(row[1]) < 3 * 7])


@fault("enough units", "take part for the sum", ExitCode.TOO_FEW_UNITS, on="windows")
def no_unit_and_no_window(patient: Patient) -> None:
    patient.write([])
    write_series(patient, [])


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
def test_a_planted_fault_fails_its_check_alone_and_its_mend_is_named(take: Callable[[str], Patient], name: str) -> None:
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


# --- a database


Stand = Callable[[Patient, Server], str]
"""Makes the fault, and gives the URL that the site has."""


def in_ward(server: Server, **parts: str) -> str:
    return server.url(**{"user": "reader", "database": "ward", **parts})


def table_dropped(_: Patient, server: Server) -> str:
    server.execute("DROP TABLE t", database="ward")
    return in_ward(server)


def table_not_granted(_: Patient, server: Server) -> str:
    server.execute("REVOKE SELECT ON t FROM reader", database="ward")
    return in_ward(server)


def certificate_of_a_stranger(patient: Patient, server: Server) -> str:
    patient.stack.enter_context(server.encrypted())
    ca = patient.folder / "other.crt"
    make_certificates(ca, patient.folder / "x.crt", patient.folder / "x.key", name="127.0.0.1")
    return f"{in_ward(server)}?sslmode=verify-full&sslrootcert={ca}"


def certificate_of_another_host(patient: Patient, server: Server) -> str:
    ca = patient.stack.enter_context(server.encrypted(name="db.example.org"))
    return f"{in_ward(server)}?sslmode=verify-full&sslrootcert={ca}"


def certificate_that_is_trusted(patient: Patient, server: Server) -> str:
    ca = patient.stack.enter_context(server.encrypted())
    return f"{in_ward(server)}?sslmode=verify-full&sslrootcert={ca}"


def database_down(patient: Patient, server: Server) -> str:
    server.stop()
    patient.stack.callback(server.start)
    return in_ward(server)


IN_DATABASE: dict[str, tuple[Stand, ExitCode, str, str]] = {
    "wrong password": (
        lambda _, server: in_ward(server, password="wr0ng"),
        ExitCode.SOURCE_REFUSED,
        "WARD_URL: the server refuses this user or the password",
        "correct user and password in the URL",
    ),
    "database down": (
        database_down,
        ExitCode.SOURCE_UNREACHABLE,
        "WARD_URL: the server cannot be reached",
        "start the database",
    ),
    "table missing": (
        table_dropped,
        ExitCode.TABLE_NOT_FOUND,
        "t: there is no such table or view",
        "correct `table`, `series` or `schema`",
    ),
    "no right to read": (
        table_not_granted,
        ExitCode.SOURCE_REFUSED,
        "t: this user may not read it; GRANT SELECT",
        "GRANT SELECT",
    ),
    "certificate not trusted": (
        certificate_of_a_stranger,
        ExitCode.SOURCE_TLS,
        "WARD_URL: TLS failed",
        "sslrootcert=FILE, the CA of the server's certificate",
    ),
    "certificate of another host": (
        certificate_of_another_host,
        ExitCode.SOURCE_TLS,
        "WARD_URL: TLS failed",
        "the host that it names",
    ),
}


def give_database(patient: Patient, server: Server) -> None:
    cells = ", ".join("(" + ", ".join(f"'{cell}'" if cell else "NULL" for cell in row) + ")" for row in ROWS)
    server.execute(
        "DROP TABLE IF EXISTS t",
        "CREATE TABLE t (patient text, colour text, age int, amount float, ill text)",
        f"INSERT INTO t VALUES {cells}",
        "GRANT SELECT ON t TO reader",
        database="ward",
    )
    patient.change("site.yaml", source={"type": "postgresql", "url_env": "WARD_URL", "table": "t"})


@pytest.mark.parametrize("what", IN_DATABASE)
def test_a_fault_of_the_database_is_one_line_with_its_mend_and_never_the_password(
    what: str, patient: Patient, ward: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand, code, says, mend = IN_DATABASE[what]
    give_database(patient, ward)
    with patient.stack:
        monkeypatch.setenv("WARD_URL", stand(patient, ward))
        result = command(patient, "doctor")
        found = patient.examined()
    (failed,) = [one for one in found if one.mark == Mark.FAILED]
    assert (failed.check, failed.code, result.exit_code) == ("data source", code, code)
    assert failed.says.startswith(says)
    assert mend in failed.mend
    lines = result.stdout.splitlines()
    at = lines.index(f"FAIL data source: {failed.says}")
    assert lines[at + 1].strip() == f"mend: {failed.mend}"
    assert not any(secret in result.output for secret in (READER, "wr0ng", "postgresql://"))


def test_a_database_that_is_reached_over_tls_is_well(
    patient: Patient, ward: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_database(patient, ward)
    with patient.stack:
        monkeypatch.setenv("WARD_URL", certificate_that_is_trusted(patient, ward))
        found = patient.examined()
    assert marks(found) == {}


# --- what is said, and what is not


def test_few_units_are_a_doubt_that_fails_nothing(patient: Patient) -> None:
    patient.write(ROWS[:20])
    found = patient.examined()
    (doubt,) = [result for result in found if result.mark != Mark.OK]
    assert (doubt.check, doubt.mark, first_failure(found)) == ("enough units", Mark.WARNED, ExitCode.OK)
    assert "20 units" in doubt.says


def test_a_site_that_runs_and_cannot_be_asked_is_a_doubt_that_fails_nothing(patient: Patient) -> None:
    with patient.stack:
        patient.stack.enter_context(alone(patient.state))
        found = patient.examined()
    (doubt,) = [result for result in found if result.mark != Mark.OK]
    assert (doubt.check, doubt.mark, first_failure(found)) == ("free to start", Mark.WARNED, ExitCode.OK)
    assert "`health`" in doubt.says


def test_cells_are_counted_by_column_and_rule_and_never_shown(patient: Patient) -> None:
    rows = [(*row[:2], "777", *row[3:]) for row in ROWS[:3]]
    rows += [(*row[:3], value, row[4]) for row, value in zip(ROWS[3:6], ("", "much", "12.5"), strict=True)]
    patient.write([*rows, *ROWS[6:]])
    (cells,) = [result for result in patient.examined() if result.check == "cells"]
    age, amount = cells.says.split("; ")
    assert age == "age: 3 out of bounds"
    rules = {"1 missing not allowed", "1 not a number", "1 out of bounds"}
    assert set(amount.removeprefix("amount: ").split(", ")) == rules
    assert not any(value in cells.says for value in ("777", "much", "12.5"))


def command(patient: Patient, *arguments: str) -> Result:
    options = ["--site", "north", "--sites", str(patient.federation.folder / "sites")]
    return CliRunner().invoke(app, [*options, *arguments], env={"COLUMNS": "200"})


def test_the_command_prints_a_line_a_check_and_ends_with_the_first_failures_code(
    patient: Patient, caplog: pytest.LogCaptureFixture
) -> None:
    patient.spoil(2, "100", rows=3)
    (patient.folder / "ca.crt").write_text("nonsense")
    before = {path: path.read_bytes() for path in patient.folder.rglob("*") if path.is_file()}
    result = command(patient, "doctor")
    assert result.exit_code == ExitCode.OUT_OF_BOUNDS
    lines = result.stdout.splitlines()
    assert [line[:4] for line in lines if line and not line.startswith("  ")][:3] == ["ok  ", "ok  ", "ok  "]
    assert "FAIL cells: age: 3 out of bounds" in lines
    assert lines[lines.index("FAIL cells: age: 3 out of bounds") + 1].strip().startswith("mend: correct the cells")
    assert any(line.startswith("FAIL federation's CA") for line in lines)
    assert "keep them at this site" in result.stderr
    # The counts are on the terminal, and nowhere else.
    assert caplog.records == []
    assert {path: path.read_bytes() for path in patient.folder.rglob("*") if path.is_file()} == before


def test_as_json_it_says_the_same(patient: Patient) -> None:
    patient.spoil(2, "100")
    result = command(patient, "doctor", "--json")
    found = json.loads(result.stdout)
    assert found["code"] == result.exit_code == ExitCode.OUT_OF_BOUNDS
    assert [check["check"] for check in found["checks"]] == [check.name for check in CHECKS]
    (failed,) = [check for check in found["checks"] if check["mark"] == "failed"]
    assert (failed["check"], failed["says"]) == ("cells", "age: 1 out of bounds")


def test_a_check_that_breaks_fails_alone_and_says_nothing_of_what_it_saw() -> None:
    def breaks(case: Case) -> str:
        raise ValueError("cell 'Jane Doe'")

    checks = [
        Check("first", breaks, "mend"),
        Check("second", lambda _: "fine", "mend"),
        Check("third", lambda _: "fine", "mend", ("first",)),
        Check("fourth", lambda _: "fine", "mend", ("third",)),
    ]
    found = examine(Case(Path("site.yaml"), "north"), checks)
    assert [result.mark for result in found] == [Mark.FAILED, Mark.OK, Mark.SKIPPED, Mark.SKIPPED]
    assert found[0].says == "the check broke (ValueError)"


def test_a_column_that_is_wrong_everywhere_is_not_counted_for_ever(patient: Patient) -> None:
    patient.write([(*row[:3], f"{at}", row[4]) for at, row in enumerate(ROWS * 4, start=1000)])
    (cells,) = [result for result in patient.examined() if result.check == "cells"]
    assert cells.says.startswith("amount: at least ")


def test_every_check_needs_only_checks_before_it_and_says_how_to_mend() -> None:
    seen: set[str] = set()
    for check in CHECKS:
        assert set(check.needs) <= seen
        assert check.name not in seen
        assert check.mend.strip()
        seen.add(check.name)
