"""The coordinator's CA, kits, admissions and revocations; and that TLS lets in whom they let in, and nobody else."""

import json
import ssl
import stat
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from typer.testing import CliRunner, Result

from common.errors import ExitCode, MembershipError, OutputError, PrivShareError, StudyError
from common.privacy.signatures import SigningKey
from common.wire.membership import Enrolment, Kit, check_kit, fingerprint, read_ca, spaced
from server.cli import app
from server.provision import (
    _issue_client,
    _leaf,
    _named,
    _new_key,
    _pem,
    _private_pem,
    _read_authority,
    admit,
    check_admissible,
    coordinator_key,
    days_of,
    provision,
    read_enrolment,
    read_roster,
    renew_server,
    revoke,
    server_certificate,
    superexec_command,
    superlink_command,
    typed,
)
from tests.members import ADDRESS, HOUR, NOW, SITES, Federation, make_federation, make_members

PRIVATE = ("ca.key", "server.key", "coordinator.pem", "superexec.secret")


@pytest.fixture
def fed(tmp_path: Path) -> Federation:
    """Kits were made, and nobody has joined."""
    return make_federation(tmp_path)


@pytest.fixture
def joined(tmp_path: Path) -> Federation:
    """North and south are members; east was invited."""
    return make_members(tmp_path)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def run(*arguments: str, answer: str = "") -> Result:
    return CliRunner().invoke(app, list(arguments), input=answer, env={"COLUMNS": "200"})


def fails(result: Result, code: ExitCode) -> str:
    """The one line that a refused command ends with."""
    assert result.exit_code == code, result.output
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line


def crl_of(fed: Federation) -> x509.CertificateRevocationList:
    return x509.load_pem_x509_crl((fed.home / "crl.pem").read_bytes())


def taken_back(fed: Federation) -> set[str]:
    return {f"{entry.serial_number:x}" for entry in crl_of(fed)}


def extension(certificate: x509.Certificate, kind: Any) -> Any:
    return certificate.extensions.get_extension_for_class(kind)


# --- provision


def test_the_home_and_the_kits_hold_what_they_should_and_are_their_owners_alone(fed: Federation) -> None:
    expected = {*PRIVATE, "ca.crt", "server.crt", "study.yaml", "members.json", "crl.pem"}
    assert set(files_of(fed.home)) == expected
    assert {path.name for path in (fed.folder / "kits").iterdir()} == {f"{site}.zip" for site in SITES}
    for folder in (fed.home, fed.folder / "kits"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert (fed.home / "study.yaml").read_bytes() == (fed.folder / "study.yaml").read_bytes()
    assert {name: member.status for name, member in fed.roster.members.items()} == dict.fromkeys(SITES, "invited")
    assert len((fed.home / "superexec.secret").read_bytes()) == 64


def test_a_kit_is_signed_and_holds_nothing_secret(fed: Federation) -> None:
    secret = [(fed.home / name).read_bytes().strip() for name in PRIVATE]
    for site in SITES:
        with zipfile.ZipFile(fed.kit(site)) as archive:
            assert archive.namelist() == ["kit.json", "study.yaml", "ca.crt"]
            found = {name: archive.read(name) for name in archive.namelist()}
        kit = Kit.decode(found["kit.json"])
        check_kit(kit, found)
        assert (kit.site, kit.sites, kit.address, kit.made) == (site, SITES, ADDRESS, NOW.date())
        assert kit.coordinator == coordinator_key(fed.home).public
        assert not any(one in body for one in secret for body in found.values())
        assert b"PRIVATE" not in b"".join(found.values())


def test_nothing_is_overwritten_and_then_nothing_is_written(fed: Federation, tmp_path: Path) -> None:
    before = files_of(tmp_path)
    study = fed.folder / "study.yaml"
    for home, kits in ((fed.home, tmp_path / "new"), (tmp_path / "new", fed.folder / "kits")):
        with pytest.raises(OutputError, match="exists already"):
            provision(study, home=home, kits=kits, sites=SITES, address=ADDRESS, now=NOW)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"sites": ["a", "a"]}, "listed twice"),
        ({"sites": ["../a"]}, "site"),
        ({"sites": []}, "expected one at least"),
        ({"address": "fed.example.org"}, "address=fed.example.org: expected host:port"),
        ({"address": "https://fed.example.org:1"}, "address"),
    ],
)
def test_names_that_may_not_be_are_refused_and_write_nothing(
    tmp_path: Path, fed: Federation, changes: dict[str, Any], rule: str
) -> None:
    options: dict[str, Any] = {"sites": SITES, "address": ADDRESS, **changes}
    with pytest.raises(MembershipError, match=rule) as caught:
        provision(fed.folder / "study.yaml", home=tmp_path / "h", kits=tmp_path / "k", now=NOW, **options)
    assert caught.value.code == ExitCode.USAGE
    assert not (tmp_path / "h").exists()


def test_a_study_that_is_not_valid_gets_no_kit(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("schema: privshare.study/1\n")
    with pytest.raises(StudyError):
        provision(
            tmp_path / "study.yaml", home=tmp_path / "h", kits=tmp_path / "k", sites=SITES, address=ADDRESS, now=NOW
        )
    assert not (tmp_path / "h").exists()


def test_the_ca_signs_certificates_and_lists_and_no_other_ca(fed: Federation) -> None:
    ca = read_ca((fed.home / "ca.crt").read_bytes())
    constraints, usage = extension(ca, x509.BasicConstraints), extension(ca, x509.KeyUsage)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    assert usage.critical
    assert usage.value.key_cert_sign
    assert usage.value.crl_sign
    assert not usage.value.digital_signature
    assert (ca.not_valid_after_utc - NOW).days == 3652
    public = ca.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert isinstance(public.curve, ec.SECP256R1)
    crl = crl_of(fed)
    assert crl.is_signature_valid(public)
    assert len(crl) == 0
    # A list that ran out would shut everybody out.
    assert crl.next_update_utc == ca.not_valid_after_utc


@pytest.mark.parametrize(
    ("address", "names"),
    [
        ("fed.example.org:8443", ["fed.example.org", "localhost", "127.0.0.1", "::1"]),
        ("10.0.0.7:8443", ["localhost", "10.0.0.7", "127.0.0.1", "::1"]),
        ("[2001:db8::7]:8443", ["localhost", "2001:db8::7", "127.0.0.1", "::1"]),
        ("localhost:8443", ["localhost", "127.0.0.1", "::1"]),
    ],
)
def test_the_server_certificate_names_the_address_and_loopback(tmp_path: Path, address: str, names: list[str]) -> None:
    fed = make_federation(tmp_path, address=address)
    server = server_certificate(fed.home)
    alternatives = extension(server, x509.SubjectAlternativeName).value
    found = alternatives.get_values_for_type(x509.DNSName)
    found += [str(one) for one in alternatives.get_values_for_type(x509.IPAddress)]
    assert sorted(found) == sorted(names)
    assert list(extension(server, x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert not extension(server, x509.BasicConstraints).value.ca
    assert (server.not_valid_after_utc - NOW).days == 397


def test_the_commands_of_flower_are_these() -> None:
    home = Path("coordinator")
    assert typed(superlink_command(home)) == (
        "FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 flower-superlink --host 127.0.0.1 --port 9092 "
        "--ssl-ca-certfile coordinator/ca.crt --ssl-certfile coordinator/server.crt "
        "--ssl-keyfile coordinator/server.key --enable-supernode-auth --isolation process "
        "--superexec-auth-secret-file coordinator/superexec.secret --database coordinator/superlink.db "
        "--disable-runtime-dependency-installation"
    )
    assert superexec_command(home, 9999) == [
        *("flower-superexec", "--runtime-api-address", "127.0.0.1:9999", "--root-certificates", "coordinator/ca.crt"),
        *("--superexec-auth-secret-file", "coordinator/superexec.secret"),
    ]
    assert superlink_command(home, 7)[:5] == ["flower-superlink", "--host", "127.0.0.1", "--port", "7"]


# --- admission


def test_a_site_that_is_admitted_gets_a_certificate_for_its_own_key_and_everybodys_identity(fed: Federation) -> None:
    enrolments = fed.enrol("north", "south")
    roster = fed.admit("north", "south")
    assert roster == fed.roster
    assert roster.number == 1
    identities = {one.site: one.identity for one in enrolments}
    for one in enrolments:
        paper, member = fed.paper(one.site), roster.members[one.site]
        assert paper.is_by(coordinator_key(fed.home).public)
        assert dict(paper.members) == identities
        assert (paper.site, paper.study, paper.number) == (one.site, roster.study, 1)
        certificate = x509.load_pem_x509_certificate(paper.certificate.encode())
        certificate.verify_directly_issued_by(read_ca((fed.home / "ca.crt").read_bytes()))
        assert certificate.public_key() == x509.load_pem_x509_csr(one.request.encode()).public_key()
        assert certificate.subject == _named(one.site)
        assert list(extension(certificate, x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
        assert (certificate.not_valid_after_utc - NOW).days == 397
        assert (member.status, member.identity, member.transport) == ("admitted", one.identity, one.transport)
        assert member.serial == f"{certificate.serial_number:x}"
        assert member.fingerprint == fingerprint(certificate)
        assert member.until == certificate.not_valid_after_utc
        # As `flwr supernode register` reads it.
        public = load_ssh_public_key((fed.home / "nodes" / f"{one.site}.pub").read_bytes())
        assert isinstance(public, ec.EllipticCurvePublicKey)
        assert isinstance(public.curve, ec.SECP384R1)
    assert not fed.admission("east").exists()
    assert roster.members["east"].status == "invited"


def forged(fed: Federation, site: str, key: SigningKey, **changes: Any) -> Enrolment:
    """A site's enrolment with something changed, signed anew."""
    return Enrolment.decode(fed.enrolment(site).read_bytes()).model_copy(update=changes).signed(key)


STRANGER = SigningKey.from_seed(bytes(32))


def test_an_enrolment_that_does_not_fit_the_record_is_refused_and_changes_nothing(joined: Federation) -> None:
    before = files_of(joined.home)
    key = SigningKey.from_pem((joined.settings("north").state / "identity.pem").read_bytes())
    for enrolment, rule in (
        (forged(joined, "north", key, study="0" * 64, made=NOW + HOUR), "another study"),
        (forged(joined, "north", STRANGER, identity=STRANGER.public, made=NOW + HOUR), "only --replace"),
    ):
        with pytest.raises(MembershipError, match=rule):
            admit(joined.home, [enrolment], now=NOW)
    assert files_of(joined.home) == before


def test_nobody_joins_who_was_not_invited(fed: Federation, tmp_path: Path) -> None:
    other = make_federation(tmp_path / "other")
    other.enrol("north")
    enrolment = read_enrolment(other.enrolment("north"))
    roster = fed.roster.model_copy(update={"members": {"south": fed.roster.members["south"]}})
    with pytest.raises(MembershipError, match="north: was not invited"):
        check_admissible(roster, enrolment)


def test_no_two_members_share_a_key(joined: Federation) -> None:
    joined.enrol("east")
    east = joined.settings("east").state
    north = Enrolment.decode(joined.enrolment("north").read_bytes())
    key = SigningKey.from_pem((east / "identity.pem").read_bytes())
    with pytest.raises(MembershipError, match="east: has the transport key of north"):
        admit(joined.home, [forged(joined, "east", key, transport=north.transport)], now=NOW)
    stolen = SigningKey.from_pem((joined.settings("north").state / "identity.pem").read_bytes())
    with pytest.raises(MembershipError, match="east: has the identity of north"):
        admit(joined.home, [forged(joined, "east", stolen, identity=stolen.public)], now=NOW)


def test_two_newcomers_do_not_share_a_key_either(fed: Federation) -> None:
    fed.enrol("north", "south")
    key = SigningKey.from_pem((fed.settings("south").state / "identity.pem").read_bytes())
    both = [read_enrolment(fed.enrolment("south")), forged(fed, "north", key, identity=key.public)]
    with pytest.raises(MembershipError, match="north: has the identity of south"):
        admit(fed.home, both, now=NOW)
    with pytest.raises(MembershipError, match="two enrolments of one site"):
        admit(fed.home, [both[0], both[0]], now=NOW, replace=True)
    assert fed.roster.number == 0


def test_an_enrolment_that_is_not_newer_is_refused(joined: Federation) -> None:
    old = joined.enrolment("north").read_bytes()
    with pytest.raises(MembershipError, match="not newer"):
        joined.admit("north")
    joined.rotate("north")
    joined.admit("north")
    joined.enrolment("north").write_bytes(old)
    with pytest.raises(MembershipError, match="not newer"):
        joined.admit("north")


def test_an_enrolment_of_times_to_come_is_refused(fed: Federation) -> None:
    fed.enrol("north")
    fed.now -= timedelta(days=1, seconds=1)
    with pytest.raises(MembershipError, match="is its clock right"):
        fed.admit("north")
    fed.now += timedelta(seconds=1)
    assert fed.admit("north").number == 1


def test_admit_checks_the_signatures_even_if_nobody_read_the_file(fed: Federation) -> None:
    fed.enrol("north")
    with pytest.raises(MembershipError, match="not of the identity"):
        admit(fed.home, [forged(fed, "north", STRANGER)], now=NOW)


def test_another_identity_takes_the_place_only_by_a_persons_decision(joined: Federation) -> None:
    before = joined.roster.members["north"]
    changed = forged(joined, "north", STRANGER, identity=STRANGER.public)
    roster = admit(joined.home, [changed], now=NOW, replace=True)
    assert roster.members["north"].identity == STRANGER.public
    assert taken_back(joined) == {before.serial}
    assert joined.paper("south").members["north"] == STRANGER.public


def test_a_rotation_replaces_keys_and_takes_the_old_certificate_back(joined: Federation) -> None:
    before = joined.roster
    joined.rotate("north")
    after = joined.admit("north")
    old, new = before.members["north"], after.members["north"]
    assert (after.number, new.identity) == (2, old.identity)
    assert new.transport != old.transport
    assert new.serial != old.serial
    assert taken_back(joined) == {old.serial}
    assert after.members["south"] == before.members["south"]
    assert [joined.paper(site).number for site in ("north", "south")] == [2, 2]
    assert joined.paper("south").members == joined.paper("north").members


def test_a_revoked_site_is_on_the_list_and_in_nobodys_admission(joined: Federation) -> None:
    serial = joined.roster.members["north"].serial
    roster = revoke(joined.home, "north", now=NOW)
    assert (roster.number, roster.members["north"].status) == (2, "revoked")
    assert taken_back(joined) == {serial}
    public = read_ca((joined.home / "ca.crt").read_bytes()).public_key()
    assert crl_of(joined).is_signature_valid(public)  # type: ignore[arg-type]
    assert not joined.admission("north").exists()
    assert not (joined.home / "nodes" / "north.pub").exists()
    assert set(joined.paper("south").members) == {"south"}
    for site, rule in (("north", "was revoked before"), ("west", "was not invited")):
        with pytest.raises(MembershipError, match=rule):
            revoke(joined.home, site, now=NOW)
    joined.rotate("north")
    with pytest.raises(MembershipError, match="was revoked; only --replace"):
        joined.admit("north")
    assert joined.admit("north", replace=True).members["north"].status == "admitted"
    assert taken_back(joined) == {serial}


def test_numbers_grow_by_one_with_each_change_and_by_nothing_without(joined: Federation) -> None:
    assert joined.roster.number == 1
    before = files_of(joined.home / "admissions")
    for path in (joined.home / "admissions").iterdir():
        path.unlink()
    assert joined.admit().number == 1  # written again from the record
    assert files_of(joined.home / "admissions") == before
    revoke(joined.home, "east", now=NOW)
    assert joined.roster.number == 2


def test_a_change_that_a_crash_cut_short_is_completed_under_its_number(
    joined: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, body: bytes) -> None:
        if path.parent.name == "admissions":
            raise OutputError("no space")
        path.write_bytes(body)

    joined.enrol("east")
    with monkeypatch.context() as patch:
        patch.setattr("server.provision._write", full)
        with pytest.raises(OutputError):
            joined.admit("east")
    assert joined.roster.number == 2
    assert joined.admit().number == 2
    assert set(joined.paper("east").members) == set(SITES)


# --- files


@pytest.mark.parametrize("name", ["ca.key", "coordinator.pem"])
def test_a_private_key_that_others_can_read_is_not_used(joined: Federation, name: str) -> None:
    before = joined.roster
    (joined.home / name).chmod(0o640)
    with pytest.raises(MembershipError, match=f"{name}: others can read"):
        revoke(joined.home, "north", now=NOW)
    assert joined.roster == before


@pytest.mark.parametrize(
    ("name", "body", "rule"),
    [
        ("ca.key", b"nonsense", "not the private key of ca.crt"),
        ("coordinator.pem", b"nonsense", "not an Ed25519"),
        ("ca.crt", b"nonsense", "expected one X.509"),
        ("members.json", b"nonsense", "not JSON"),
        ("members.json", b"{}", "members.json: federation: the key is needed"),
        ("members.json", None, "cannot be read"),
        ("ca.key", None, "cannot be read"),
    ],
)
def test_a_home_that_is_damaged_is_refused_in_one_line(
    joined: Federation, name: str, body: bytes | None, rule: str
) -> None:
    path = joined.home / name
    path.unlink()
    if body is not None:
        path.write_bytes(body)
        path.chmod(0o600)
    with pytest.raises(PrivShareError, match=rule):
        revoke(joined.home, "north", now=NOW)


def test_another_ca_key_is_not_this_ones(joined: Federation, tmp_path: Path) -> None:
    other = make_federation(tmp_path / "other")
    (joined.home / "ca.key").write_bytes((other.home / "ca.key").read_bytes())
    with pytest.raises(MembershipError, match=r"not the private key of ca\.crt"):
        revoke(joined.home, "north", now=NOW)


def test_a_record_that_admits_without_keys_is_refused(joined: Federation) -> None:
    path = joined.home / "members.json"
    data = json.loads(path.read_bytes())
    del data["members"]["north"]["transport"]
    path.write_text(json.dumps(data))
    with pytest.raises(MembershipError, match=r"members\.north: admitted, but without"):
        read_roster(joined.home)


def test_days_are_counted_for_members_and_the_server(joined: Federation) -> None:
    revoke(joined.home, "south", now=NOW)
    assert days_of(joined.home, now=NOW) == {"north": 397, "(server)": 397}
    assert days_of(joined.home, now=NOW + timedelta(days=398)) == {"north": -1, "(server)": -1}
    renew_server(joined.home, now=NOW + timedelta(days=398))
    assert days_of(joined.home, now=NOW + timedelta(days=398)) == {"north": -1, "(server)": 397}


def test_a_renewed_server_keeps_its_key_and_names(joined: Federation) -> None:
    old = server_certificate(joined.home)
    new = renew_server(joined.home, now=NOW + HOUR)
    assert server_certificate(joined.home) == new
    assert new.public_key() == old.public_key()
    names = x509.SubjectAlternativeName
    assert extension(new, names) == extension(old, names)
    assert new.serial_number != old.serial_number


# --- commands


def test_provision_prints_what_to_read_over_the_telephone_and_what_to_start(tmp_path: Path) -> None:
    fed = make_federation(tmp_path)
    home = str(tmp_path / "home")
    arguments = [str(fed.folder / "study.yaml"), "--home", home, "--site", "a", "--site", "b", "--address", ADDRESS]
    result = run("provision", *arguments, "-o", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    ca = read_ca(Path(home, "ca.crt").read_bytes())
    for part in (coordinator_key(Path(home)).public, fingerprint(ca), fed.roster.study):
        assert spaced(part) in result.stdout
    assert "units that a site may state: any number, so one can outweigh all others" in result.stdout
    superlink, superexec, proxy, nginx, start = result.stdout.splitlines()[-5:]
    assert superlink == typed(superlink_command(Path(home)))
    assert superexec == typed(superexec_command(Path(home)))
    assert proxy.endswith(f"privshare proxy --home {home} --run proxy --listen 0.0.0.0:8443 > proxy/nginx.conf")
    assert nginx.startswith("nginx ")
    assert start == f"then: privshare start {arguments[0]} --home {home}"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.zip", "b.zip"}
    assert "exists already" in fails(run("provision", *arguments), ExitCode.OUTPUT_NOT_WRITABLE)


def test_admit_shows_the_keys_and_asks(tmp_path: Path) -> None:
    fed = make_federation(tmp_path, now=datetime.now(UTC))
    enrolment, *_ = fed.enrol("north")
    arguments = ["admit", "--home", str(fed.home), str(fed.enrolment("north"))]
    refused = run(*arguments, answer="n\n")
    assert refused.exit_code == 1
    assert spaced(enrolment.identity) in refused.stdout
    assert fed.roster.number == 0
    assert "north.json to north" in run(*arguments, answer="y\n").stdout
    assert fed.roster.number == 1
    fails(run(*arguments, "--yes"), ExitCode.KIT_INVALID)
    for body in (b"nonsense", b"", b"{}"):
        fed.enrolment("north").write_bytes(body)
        assert "enrolment.json: " in fails(run(*arguments, "--yes"), ExitCode.KIT_INVALID)
    fed.enrolment("north").unlink()
    assert "cannot be read" in fails(run(*arguments, "--yes"), ExitCode.KIT_INVALID)


def test_admit_says_what_is_a_rotation_and_what_another_identity(joined: Federation) -> None:
    joined.rotate("north")
    arguments = ["admit", "--home", str(joined.home), str(joined.enrolment("north"))]
    assert "a rotation" in run(*arguments, answer="n\n").stdout
    joined.enrolment("north").write_bytes(forged(joined, "north", STRANGER, identity=STRANGER.public).encode())
    assert "--replace" in fails(run(*arguments), ExitCode.KIT_INVALID)
    assert "ANOTHER IDENTITY" in run(*arguments, "--replace", answer="n\n").stdout


def test_revoke_members_and_renew_say_what_they_did(tmp_path: Path) -> None:
    fed = make_members(tmp_path, now=datetime.now(UTC) - timedelta(days=380))
    home = ["--home", str(fed.home)]
    listed = run("members", *home)
    for part in ("north", "admitted", "invited", spaced(fed.roster.members["north"].identity or ""), "16"):
        assert part in listed.stdout
    assert len(listed.stderr.splitlines()) == 3
    assert "warning: north: the certificate has 16 days left: privshare-client --site north rotate" in listed.stderr
    found = json.loads(run("members", *home, "--json").stdout)
    assert found["members"]["north"]["days"] == found["server_days"] == 16
    assert found["members"]["east"] == {"status": "invited", "key": None, "certificate": None, "days": None}
    assert "in force until" in run("renew", *home).stdout
    assert "(server)" not in run("members", *home).stderr
    assert "reload the proxy" in run("revoke", *home, "north").stdout
    fails(run("revoke", *home, "north"), ExitCode.KIT_INVALID)
    assert "revoked" in run("members", *home).stdout


# --- TLS itself


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> str:
    """Who the client is to the server, after both sides' handshakes and a word each way; as ssl sees it."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    theirs = client.wrap_bio(to_client, to_server, server_hostname=host)
    steps: list[Callable[[], Any]] = [theirs.do_handshake, ours.do_handshake]
    while steps:
        for step in list(steps):
            try:
                step()
                steps.remove(step)
            except ssl.SSLWantReadError:
                pass
    theirs.write(b"word")
    assert ours.read() == b"word"
    subject = (ours.getpeercert() or {})["subject"]
    return str(subject[0][0][1])  # type: ignore[index]


@pytest.fixture
def live(tmp_path: Path) -> Federation:
    """Members on the day of this test, since ssl asks no other clock."""
    return make_members(tmp_path, now=datetime.now(UTC))


def server_side(fed: Federation, certificate: Path | None = None) -> ssl.SSLContext:
    """As a proxy would be set up."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(fed.home / "ca.crt"))
    context.load_verify_locations(fed.home / "crl.pem")
    context.load_cert_chain(certificate or fed.home / "server.crt", fed.home / "server.key")
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF | ssl.VERIFY_X509_STRICT
    return context


def client_side(fed: Federation, site: str | None = "north", *, ca: Path | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca or fed.home / "ca.crt"))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.hostname_checks_common_name = False
    if site is not None:
        state = fed.settings(site).state
        context.load_cert_chain(state / "tls.crt", state / "tls.key")
    return context


@pytest.mark.parametrize("host", ["fed.example.org", "localhost", "127.0.0.1", "::1"])
def test_tls_lets_a_member_in_under_every_name_of_the_server(live: Federation, host: str) -> None:
    assert handshake(server_side(live), client_side(live), host) == "north"


def test_tls_refuses_another_name_and_another_ca(live: Federation, tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="not valid for"):
        handshake(server_side(live), client_side(live), "elsewhere.example.org")
    other = make_members(tmp_path / "other", now=live.now)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server_side(live), client_side(live, ca=other.home / "ca.crt"), "localhost")
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        handshake(server_side(live), client_side(other, ca=live.home / "ca.crt"), "localhost")


def test_tls_refuses_a_server_certificate_without_names(live: Federation) -> None:
    authority, ca = _read_authority(live.home)
    public = server_certificate(live.home).public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    use = ExtendedKeyUsageOID.SERVER_AUTH
    nameless = _leaf(_named("localhost"), public, use, authority, ca, now=live.now).sign(authority, hashes.SHA256())
    path = live.folder / "nameless.crt"
    path.write_bytes(_pem(nameless))
    with pytest.raises(ssl.SSLCertVerificationError, match="not valid for"):
        handshake(server_side(live, path), client_side(live), "localhost")


def test_tls_refuses_who_has_no_certificate_or_one_for_servers(live: Federation) -> None:
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        handshake(server_side(live), client_side(live, None), "localhost")
    context = client_side(live, None)
    context.load_cert_chain(live.home / "server.crt", live.home / "server.key")
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        handshake(server_side(live), context, "localhost")


def test_tls_takes_no_members_certificate_for_a_servers(live: Federation) -> None:
    state = live.settings("south").state
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(live.home / "ca.crt"))
    context.load_cert_chain(state / "tls.crt", state / "tls.key")
    with pytest.raises(ssl.SSLCertVerificationError, match="unsuitable certificate purpose"):
        handshake(context, client_side(live), "south")


def test_tls_refuses_a_certificate_that_was_taken_back(live: Federation) -> None:
    revoke(live.home, "north", now=live.now)
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        handshake(server_side(live), client_side(live), "localhost")
    assert handshake(server_side(live), client_side(live, "south"), "localhost") == "south"


def test_tls_lets_a_rotated_key_in_and_the_old_one_out(live: Federation) -> None:
    old = client_side(live)
    live.rotate("north")
    live.now = datetime.now(UTC)
    live.admit("north")
    live.join("north")
    assert handshake(server_side(live), client_side(live), "localhost") == "north"
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        handshake(server_side(live), old, "localhost")


def test_tls_refuses_what_has_expired_on_either_side(tmp_path: Path) -> None:
    fed = make_members(tmp_path, now=datetime.now(UTC) - timedelta(days=398))
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        handshake(server_side(fed), client_side(fed), "localhost")
    renew_server(fed.home, now=datetime.now(UTC))
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        handshake(server_side(fed), client_side(fed), "localhost")


def test_a_member_cannot_issue_certificates(live: Federation) -> None:
    state = live.settings("south").state
    member = x509.load_pem_x509_certificate((state / "tls.crt").read_bytes())
    signer = load_pem_private_key((state / "tls.key").read_bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = _new_key()
    request = x509.CertificateSigningRequestBuilder().subject_name(_named("north")).sign(key, hashes.SHA256())
    made = _issue_client(request, authority=signer, ca=member, now=live.now)
    (live.folder / "x.crt").write_bytes(_pem(made) + _pem(member))
    (live.folder / "x.key").write_bytes(_private_pem(key))
    context = client_side(live, None)
    context.load_cert_chain(live.folder / "x.crt", live.folder / "x.key")
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        handshake(server_side(live), context, "localhost")
