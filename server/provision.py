"""The coordinator's side of membership: a CA of its own, kits to sites, admissions back, and what takes them back.

Everything is in one folder, the coordinator's home, that only its user can read. `members.json` is the record;
certificates are issued once and stand in it, and `admissions/`, `nodes/` and `crl.pem` are written from it, again after
every change. No site's private key is ever here.
"""

import io
import ipaddress
import json
import secrets
import shlex
import zipfile
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from pydantic import AwareDatetime, Field, ValidationError, model_validator

from common.data.schema import Section, Whole
from common.errors import ExitCode, MembershipError, OutputError
from common.files import is_private, write_durably, write_private
from common.privacy.signatures import SigningKey
from common.study import explain, load_study
from common.wire.membership import (
    KIT_FILES,
    MAX_SITES,
    Admission,
    Digest,
    Enrolment,
    Kit,
    Name,
    Pem,
    check_enrolment,
    days_left,
    fingerprint,
    is_ip,
    naming,
    read_ca,
    read_certificate,
    read_paper_file,
    read_transport,
    sha256,
    split_address,
)

MEMBERS: Final = "members.json"
CA_DAYS: Final = 3652
"""Ten years: longer than any study, since a new CA means a new kit for every site."""
CERTIFICATE_DAYS: Final = 397
"""Thirteen months, so that a yearly routine is never late."""
FLOWER_ENVIRONMENT: Final = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
"""Without these Flower talks to its makers' servers."""
LOCAL_PORT: Final = 9092
"""Where the superlink listens, on loopback, behind the proxy that sites reach."""
_SKEW: Final = timedelta(minutes=5)
"""Certificates are in force this long before they are made: clocks differ."""
_MOST_AHEAD: Final = timedelta(days=1)
"""An enrolment of next year would keep every newer one out until then."""


class Member(Section):
    """One site in the coordinator's record; keys and certificate once it was admitted."""

    status: Literal["invited", "admitted", "revoked"] = "invited"
    identity: Digest | None = None
    # Flower's node key, as PEM.
    transport: Pem | None = None
    # Of the enrolment.
    made: AwareDatetime | None = None
    # The client certificate, as PEM; then what people and proxies read in it: serial number in hexadecimal, SHA-256,
    # the moment until which it is in force.
    certificate: Pem | None = None
    serial: Annotated[str, Field(pattern=r"^[0-9a-f]{1,40}$")] | None = None
    fingerprint: Digest | None = None
    until: AwareDatetime | None = None


class Roster(Section):
    """members.json: who was invited, who is in, and which certificates are taken back."""

    schema_version: Annotated[Literal["privshare.members/1"], Field(alias="schema")] = "privshare.members/1"
    federation: Name
    # Digest of the study.
    study: Digest
    # Of the newest admissions; grows by one with each change.
    number: Annotated[Whole, Field(ge=0)] = 0
    members: Annotated[dict[Name, Member], Field(min_length=1, max_length=MAX_SITES)]
    # When each certificate was taken back, by its serial number.
    revoked: dict[Annotated[str, Field(pattern=r"^[0-9a-f]{1,40}$")], AwareDatetime] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, member in self.members.items():
            if member.status == "admitted" and None in (member.identity, member.transport, member.certificate):
                raise ValueError(f"members.{name}: admitted, but without its keys and certificate")
        return self

    @property
    def admitted(self) -> dict[str, Member]:
        """Who is in, by name, sorted."""
        return {name: member for name, member in sorted(self.members.items()) if member.status == "admitted"}

    def changed(self, members: Mapping[str, Member], *, now: datetime) -> Self:
        """With some members replaced, and the certificates that they had before taken back."""
        before = [self.members[name].serial for name in members if self.members[name].serial]
        back = {serial: now for serial in before if serial is not None and serial not in self.revoked}
        return self.model_copy(
            update={
                "number": self.number + 1,
                "members": {**self.members, **members},
                "revoked": {**self.revoked, **back},
            }
        )


# --- before a study


def provision(
    study: Path, *, home: Path, kits: Path, sites: Sequence[str], address: str, now: datetime
) -> dict[str, Kit]:
    """Make the coordinator's home, and a kit for each site.

    Args:
        study: the study file; its bytes go into each kit.
        home: folder to make.
        kits: folder of the kits, NAME.zip.
        sites: names, each once.
        address: host:port at which sites reach the coordinator.
        now: the moment from which certificates count.

    Returns:
        The kits by site.

    Raises:
        StudyError: the study is not valid.
        MembershipError: a name or the address is not what it may be.
        OutputError: something is there already, or cannot be written.
    """
    loaded, body = load_study(study), study.read_bytes()
    key, authority, server_key = SigningKey.generate(), _new_key(), _new_key()
    ca = _make_ca(authority, now=now)
    shared = {
        "federation": loaded.name,
        "address": address,
        "study": loaded.digest(),
        "study_file": sha256(body),
        "ca_file": sha256(_pem(ca)),
        "coordinator": key.public,
        "sites": tuple(sites),
        "made": now.date(),
    }
    papers = {site: _make_kit({**shared, "site": site}).signed(key) for site in sites}
    if not papers:
        raise MembershipError("sites: expected one at least", ExitCode.USAGE)
    server = _issue_server(server_key.public_key(), _names_of(address), authority=authority, ca=ca, now=now)
    roster = Roster(federation=loaded.name, study=loaded.digest(), members={site: Member() for site in sites})
    files = {
        home / "ca.key": _private_pem(authority),
        home / "ca.crt": _pem(ca),
        home / "server.key": _private_pem(server_key),
        home / "server.crt": _pem(server),
        home / "coordinator.pem": key.as_pem(),
        # Flower reads the file as it is: no end of line.
        home / "superexec.secret": secrets.token_hex(32).encode(),
        home / "study.yaml": body,
        home / "crl.pem": _make_crl(roster, authority=authority, ca=ca, now=now),
        home / MEMBERS: _text_of(roster),
    }
    for site, kit in papers.items():
        files[kits / f"{site}.zip"] = _zipped(dict(zip(KIT_FILES, (kit.encode(), body, _pem(ca)), strict=True)))
    _write_new(files)
    return papers


def superlink_command(home: Path, port: int = LOCAL_PORT) -> list[str]:
    """How Flower's server is started, on loopback alone: its port lets anybody run code who reaches it."""
    certificates = [
        *("--ssl-ca-certfile", str(home / "ca.crt")),
        *("--ssl-certfile", str(home / "server.crt")),
        *("--ssl-keyfile", str(home / "server.key")),
    ]
    return [
        "flower-superlink",
        *("--host", "127.0.0.1", "--port", str(port)),
        *certificates,
        "--enable-supernode-auth",
        # Without these two, whoever reaches the port can take the place of the server's own program.
        *("--isolation", "process", "--superexec-auth-secret-file", str(home / "superexec.secret")),
        *("--database", str(home / "superlink.db")),
        "--disable-runtime-dependency-installation",
    ]


def superexec_command(home: Path, port: int = LOCAL_PORT) -> list[str]:
    """How the process is started in which the superlink runs the coordinator's program."""
    return [
        "flower-superexec",
        *("--runtime-api-address", f"127.0.0.1:{port}"),
        *("--root-certificates", str(home / "ca.crt")),
        *("--superexec-auth-secret-file", str(home / "superexec.secret")),
    ]


def typed(command: Sequence[str]) -> str:
    """A command of Flower's as a shell takes it, with its environment."""
    return " ".join([*(f"{name}={value}" for name, value in FLOWER_ENVIRONMENT.items()), shlex.join(command)])


# --- members


def coordinator_key(home: Path) -> SigningKey:
    """The key that orders and admissions are signed with.

    Raises:
        MembershipError: it is absent, not private, or not an Ed25519 key.
    """
    path = home / "coordinator.pem"
    try:
        return SigningKey.from_pem(_read_private(path))
    except ValueError:
        raise MembershipError(f"{path}: not an Ed25519 private key in PEM, unencrypted") from None


def read_roster(home: Path) -> Roster:
    """The record of members.

    Raises:
        MembershipError: it cannot be read, or is not of its form.
    """
    path = home / MEMBERS
    try:
        return Roster.model_validate(json.loads(read_paper_file(path)))
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False)[0]
        raise MembershipError(f"{path}: {explain(fault, Roster)}") from None
    except (ValueError, RecursionError):
        raise MembershipError(f"{path}: not JSON") from None


def read_enrolment(path: Path) -> Enrolment:
    """An enrolment that came from a site, its own signatures checked.

    Raises:
        MembershipError: what is wrong.
    """
    body = read_paper_file(path)
    with naming(path):
        enrolment = Enrolment.decode(body)
        check_enrolment(enrolment)
    return enrolment


def check_admissible(roster: Roster, enrolment: Enrolment, *, replace: bool = False) -> None:
    """Whether a site may be admitted as the one that it says it is.

    Args:
        roster: the members so far.
        enrolment: its own signatures checked.
        replace: whether a person decided that another identity, or a site that was revoked, takes the place.

    Raises:
        MembershipError: it may not.
    """
    member = roster.members.get(enrolment.site)
    if member is None:
        raise MembershipError(f"{enrolment.site}: was not invited")
    if enrolment.study != roster.study:
        raise MembershipError(f"{enrolment.site}: enrols for another study")
    for name, other in roster.members.items():
        if name != enrolment.site and enrolment.identity == other.identity:
            raise MembershipError(f"{enrolment.site}: has the identity of {name}")
        if name != enrolment.site and enrolment.transport == other.transport:
            raise MembershipError(f"{enrolment.site}: has the transport key of {name}")
    if replace:
        return
    if member.status == "revoked":
        raise MembershipError(f"{enrolment.site}: was revoked; only --replace admits it again")
    if member.identity not in (None, enrolment.identity):
        raise MembershipError(f"{enrolment.site}: is a member with another identity; only --replace puts this in place")
    if member.made is not None and enrolment.made <= member.made:
        raise MembershipError(f"{enrolment.site}: the enrolment is not newer than the one that was admitted")


def admit(home: Path, enrolments: Sequence[Enrolment], *, now: datetime, replace: bool = False) -> Roster:
    """Issue certificates, record the members, and write an admission for every member.

    Without an enrolment nothing changes, and what is written from the record is written again.

    Args:
        home: the coordinator's.
        enrolments: one a site.
        now: the moment from which certificates count.
        replace: as in `check_admissible`.

    Raises:
        MembershipError: one may not be admitted, and then none is.
        OutputError: something cannot be written.
    """
    roster, (authority, ca) = read_roster(home), _read_authority(home)
    members: dict[str, Member] = {}
    for enrolment in enrolments:
        if enrolment.site in members:
            raise MembershipError(f"{enrolment.site}: two enrolments of one site")
        request = check_enrolment(enrolment)
        if enrolment.made > now + _MOST_AHEAD:
            raise MembershipError(f"{enrolment.site}: the enrolment was made in times to come; is its clock right?")
        # Against those before it too: two newcomers may not share a key either.
        so_far = roster.model_copy(update={"members": {**roster.members, **members}})
        check_admissible(so_far, enrolment, replace=replace)
        certificate = _issue_client(request, authority=authority, ca=ca, now=now)
        members[enrolment.site] = _member_of(enrolment, certificate)
    changed = roster.changed(members, now=now) if members else roster
    _publish(home, changed, now=now)
    return changed


def revoke(home: Path, site: str, *, now: datetime) -> Roster:
    """Take a member's certificate back, and tell the others that it is out.

    Raises:
        MembershipError: no such member, or revoked before.
        OutputError: something cannot be written.
    """
    roster = read_roster(home)
    member = roster.members.get(site)
    if member is None or member.status == "revoked":
        raise MembershipError(f"{site}: {'was not invited' if member is None else 'was revoked before'}")
    changed = roster.changed({site: member.model_copy(update={"status": "revoked"})}, now=now)
    _publish(home, changed, now=now)
    return changed


def renew_server(home: Path, *, now: datetime) -> x509.Certificate:
    """A new server certificate for the same key and names. Sites notice nothing.

    Raises:
        MembershipError: the CA's files or the old certificate cannot be read.
        OutputError: it cannot be written.
    """
    authority, ca = _read_authority(home)
    old = server_certificate(home)
    names = old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    public = old.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    new = _issue_server(public, names, authority=authority, ca=ca, now=now)
    _write(home / "server.crt", _pem(new))
    return new


def server_certificate(home: Path) -> x509.Certificate:
    """The coordinator's own certificate.

    Raises:
        MembershipError: it cannot be read.
    """
    return read_certificate(read_paper_file(home / "server.crt").decode("ascii", errors="replace"))


def days_of(home: Path, *, now: datetime) -> dict[str, int]:
    """Days left of every certificate that is in use, by member; "(server)" is the coordinator's own.

    Raises:
        MembershipError: a file cannot be read.
    """
    members = {name: days_left(member.certificate or "", now) for name, member in read_roster(home).admitted.items()}
    return {**members, "(server)": days_left(_pem(server_certificate(home)).decode(), now)}


# --- what is written


def _member_of(enrolment: Enrolment, certificate: x509.Certificate) -> Member:
    return Member(
        status="admitted",
        identity=enrolment.identity,
        transport=enrolment.transport,
        made=enrolment.made,
        certificate=_pem(certificate).decode(),
        serial=f"{certificate.serial_number:x}",
        fingerprint=fingerprint(certificate),
        until=certificate.not_valid_after_utc,
    )


def _publish(home: Path, roster: Roster, *, now: datetime) -> None:
    """The record first: a number that was sent out is never given to another list of members."""
    authority, ca = _read_authority(home)
    key = coordinator_key(home)
    _write(home / MEMBERS, _text_of(roster))
    _write(home / "crl.pem", _make_crl(roster, authority=authority, ca=ca, now=now))
    identities = {name: member.identity for name, member in roster.admitted.items()}
    for name, member in roster.admitted.items():
        paper = Admission.model_validate(
            {
                "schema": "privshare.admission/1",
                "site": name,
                "study": roster.study,
                "number": roster.number,
                "certificate": member.certificate,
                "members": identities,
            }
        )
        _write(home / "admissions" / f"{name}.json", paper.signed(key).encode())
        public = read_transport(member.transport or "")
        _write(home / "nodes" / f"{name}.pub", public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n")
    for name in set(roster.members) - set(identities):
        for path in (home / "admissions" / f"{name}.json", home / "nodes" / f"{name}.pub"):
            path.unlink(missing_ok=True)


def _text_of(roster: Roster) -> bytes:
    return (json.dumps(roster.model_dump(mode="json", by_alias=True, exclude_none=True), indent=2) + "\n").encode()


def _make_kit(data: Mapping[str, object]) -> Kit:
    try:
        return Kit.model_validate({"schema": "privshare.kit/1", **data})
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False)[0]
        raise MembershipError(explain(fault, Kit), ExitCode.USAGE) from None


def _zipped(files: Mapping[str, bytes]) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name, body in files.items():
            file.writestr(zipfile.ZipInfo(name), body, zipfile.ZIP_DEFLATED)
    return archive.getvalue()


def _write_new(files: Mapping[Path, bytes]) -> None:
    """None of them if one is there already."""
    for path in files:
        if path.exists():
            raise OutputError(f"{path}: exists already; nothing is overwritten")
    for path, body in files.items():
        try:
            write_private(path, body)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror})") from None


def _write(path: Path, body: bytes) -> None:
    try:
        write_durably(path, body)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from None


def _read_private(path: Path) -> bytes:
    try:
        if not is_private(path):
            raise MembershipError(f"{path}: others can read this private key; expected mode 0600")
        return path.read_bytes()
    except OSError as error:
        raise MembershipError(f"{path}: cannot be read ({error.strerror})") from None


# --- X.509


def _read_authority(home: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    path = home / "ca.key"
    try:
        key = load_pem_private_key(_read_private(path), password=None)
    except (ValueError, TypeError):
        key = None
    ca = read_ca(read_paper_file(home / "ca.crt"))
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != ca.public_key():
        raise MembershipError(f"{path}: not the private key of ca.crt")
    return key, ca


def _make_ca(key: ec.EllipticCurvePrivateKey, *, now: datetime) -> x509.Certificate:
    name = _named("privshare CA")
    usage = _usage(key_cert_sign=True, crl_sign=True)
    return (
        _builder(name, key.public_key(), issuer=name, signer=key.public_key(), days=CA_DAYS, now=now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )


def _issue_server(
    public: ec.EllipticCurvePublicKey,
    names: x509.SubjectAlternativeName,
    *,
    authority: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    now: datetime,
) -> x509.Certificate:
    builder = _leaf(_named("coordinator"), public, ExtendedKeyUsageOID.SERVER_AUTH, authority, ca, now=now)
    return builder.add_extension(names, critical=False).sign(authority, hashes.SHA256())


def _issue_client(
    request: x509.CertificateSigningRequest,
    *,
    authority: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    now: datetime,
) -> x509.Certificate:
    """Name and key are the request's; whatever else it asks for is not."""
    public = request.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    builder = _leaf(request.subject, public, ExtendedKeyUsageOID.CLIENT_AUTH, authority, ca, now=now)
    return builder.sign(authority, hashes.SHA256())


def _leaf(
    subject: x509.Name,
    public: ec.EllipticCurvePublicKey,
    use: x509.ObjectIdentifier,
    authority: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    *,
    now: datetime,
) -> x509.CertificateBuilder:
    signer = authority.public_key()
    return (
        _builder(subject, public, issuer=ca.subject, signer=signer, days=CERTIFICATE_DAYS, now=now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
    )


def _builder(
    subject: x509.Name,
    public: ec.EllipticCurvePublicKey,
    *,
    issuer: x509.Name,
    signer: ec.EllipticCurvePublicKey,
    days: int,
    now: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)
    )


def _make_crl(roster: Roster, *, authority: ec.EllipticCurvePrivateKey, ca: x509.Certificate, now: datetime) -> bytes:
    """The next update is due when the CA ends: a list that ran out would shut every site out, and nobody in."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.subject)
        .last_update(now - _SKEW)
        .next_update(ca.not_valid_after_utc)
        .add_extension(x509.CRLNumber(roster.number), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
    )
    for serial, when in sorted(roster.revoked.items()):
        entry = x509.RevokedCertificateBuilder().serial_number(int(serial, 16)).revocation_date(when).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(authority, hashes.SHA256()).public_bytes(Encoding.PEM)


def _names_of(address: str) -> x509.SubjectAlternativeName:
    """What sites call the coordinator, and what the proxy before the superlink calls it."""
    host, _ = split_address(address)
    names = dict.fromkeys([host, "localhost", "127.0.0.1", "::1"])
    return x509.SubjectAlternativeName(
        [x509.IPAddress(ipaddress.ip_address(name)) if is_ip(name) else x509.DNSName(name) for name in names]
    )


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _named(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)
