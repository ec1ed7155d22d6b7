"""A site's side of membership: it opens a kit, makes its own keys, enrols, and joins with the admission that it gets.

Keys are made here and stay here; what goes out is an enrolment, which holds public keys alone. Nothing that came from
elsewhere is written before all of it was checked. Nothing that is there is overwritten but what an admission brings:
the certificate, the peers of the policy, and the keys that a rotation made. Each step can be repeated after a crash.
"""

import io
import json
import re
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from client.keys import identity, make_identity, make_tls_key, make_transport_key, tls_key, transport_key
from client.policy import POLICY_SCHEMA, PolicyFile, SiteSettings, read_policy
from common.errors import ExitCode, MembershipError, StudyError
from common.files import sync_folder, write_durably, write_private
from common.study import Study, load_study
from common.wire.membership import (
    KIT_FILES,
    MAX_PAPER,
    Admission,
    Enrolment,
    Kit,
    check_certificate_of,
    check_in_force,
    check_kit,
    days_left,
    naming,
    read_ca,
    read_certificate,
    read_paper_file,
)

ENROLMENT: Final = "enrolment.json"
"""What a site sends to the coordinator; beside site.yaml."""
_PEERS = re.compile(r"^peers:.*\n?(?:(?:[ \t].*)?\n)*", re.MULTILINE)
_Read = TypeVar("_Read")


@dataclass(frozen=True)
class OpenKit:
    """A kit that was checked.

    kit: what it says.
    study: of its study file.
    files: bytes by name.
    """

    kit: Kit
    study: Study
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class Joined:
    """What an admission changed at a site.

    number: of the admission.
    peers: everybody else's public key by name.
    policy_changed: whether the peers are others than before, so that the policy must be approved anew.
    keys_changed: whether the keys of a rotation were put in place.
    days: that the certificate has left.
    """

    number: int
    peers: Mapping[str, str]
    policy_changed: bool
    keys_changed: bool
    days: int


def open_kit(path: Path, *, site: str) -> OpenKit:
    """Read a kit and check all that can be checked without a telephone.

    Args:
        path: of the zip file.
        site: for which it must be.

    Raises:
        MembershipError: any defect, in one line.
    """
    body = read_paper_file(path)
    with naming(path):
        files = _unzip(body)
        kit = Kit.decode(files["kit.json"])
        check_kit(kit, files)
        if kit.site != site:
            raise MembershipError(f"site: the kit is for {kit.site}")
        read_ca(files["ca.crt"])
        study = _read_as("study.yaml", files["study.yaml"], load_study)
        if study.digest() != kit.study:
            raise MembershipError("study.yaml: has another digest than the kit says")
        if study.name != kit.federation:
            raise MembershipError("study.yaml: has another name than the kit says")
    return OpenKit(kit, study, files)


def enrol(opened: OpenKit, folder: Path, *, source: Mapping[str, Any], now: datetime) -> Enrolment:
    """Make a site's folder, its keys and its enrolment.

    Args:
        opened: the kit.
        folder: of the site.
        source: of its records, as site.yaml has it.
        now: the moment that the enrolment states.

    Raises:
        MembershipError: the folder holds an enrolment, or another file that would have to be overwritten.
        PolicyError: a key cannot be made or read.
    """
    if (folder / ENROLMENT).exists():
        raise MembershipError(f"{folder / ENROLMENT}: the site is set up already; `rotate` makes new keys")
    if "preset" not in source and ("series" in source) != (opened.study.windows is not None):
        raise MembershipError("series: expected if, and only if, the study has windows", ExitCode.USAGE)
    folder = folder.absolute()
    for name, body in {
        "study.yaml": opened.files["study.yaml"],
        "ca.crt": opened.files["ca.crt"],
        "policy.yaml": _draft_policy(opened).encode(),
        "site.yaml": _draft_settings(opened.kit, folder, source).encode(),
    }.items():
        _write_once(folder / name, body)
    state = folder / "state"
    make_identity(state)
    enrolment = _make_enrolment(state, state, site=opened.kit.site, study=opened.kit.study, now=now)
    _write_once(folder / ENROLMENT, enrolment.encode())
    return enrolment


def rotate(settings: SiteSettings, *, now: datetime) -> Enrolment:
    """Make the next keys of the connection beside those in use, and enrol with them under the same identity.

    Run again before the admission is there, it enrols with the same next keys.

    Raises:
        MembershipError: the enrolment cannot be written.
        PolicyError: a key cannot be made or read.
        StudyError: the policy is not valid.
    """
    study = read_policy(settings.policy).approved
    enrolment = _make_enrolment(settings.state, _next(settings), site=settings.site, study=study, now=now)
    _write(enrolment_path(settings), enrolment.encode())
    return enrolment


def join(settings: SiteSettings, path: Path, *, now: datetime) -> Joined:
    """Take up an admission: certificate, peers, and the keys of a rotation if it is for them.

    Guarantees: an admission that is refused changes nothing; one that was taken up can be taken up again.

    Args:
        settings: of the site.
        path: of the admission.
        now: the moment at which the certificate must be in force.

    Raises:
        MembershipError: it is not the coordinator's, not for this site or its keys, or older than the last one.
        PolicyError: a key cannot be read.
        StudyError: the policy is not valid.
    """
    body, policy = read_paper_file(path), read_policy(settings.policy)
    with naming(path):
        admission = Admission.decode(body)
        _check_admission(settings, policy, admission)
        keys = _keys_of(settings, admission, now=now)
    changed = _peers_changed(settings, policy, admission.peers)
    rotated = keys != settings.state
    if rotated:
        _put_in_place(keys, settings.state)
    _write(settings.state / "tls.crt", admission.certificate.encode())
    if changed is not None:
        _write(settings.policy, changed)
    _write(_joined(settings), admission.encode())
    days = days_left(admission.certificate, now)
    return Joined(admission.number, admission.peers, changed is not None, rotated, days)


def check_certificate(settings: SiteSettings, now: datetime) -> int:
    """Whole days that this site's certificate has left; keys and certificate can be used.

    Raises:
        MembershipError: it has expired, is not in force yet, or not for the site's key; the site never joined.
        PolicyError: a private key is absent, or others can read it.
    """
    path = settings.state / "tls.crt"
    if not path.exists():
        raise MembershipError(f"{path}: this site has not joined; `join` with its admission", ExitCode.NOT_ADMITTED)
    text = read_paper_file(path).decode("ascii", errors="replace")
    transport_key(settings.state)
    public = tls_key(settings.state).public_key()
    with naming(path):
        certificate = read_certificate(text)
        check_in_force(certificate, now)
        if certificate.public_key() != public:
            raise MembershipError("certificate: not for this site's TLS key; `join` with the newest admission again")
    return days_left(text, now)


def enrolment_path(settings: SiteSettings) -> Path:
    """The file that goes to the coordinator."""
    return settings.state.parent / ENROLMENT


# --- kits


def _unzip(body: bytes) -> dict[str, bytes]:
    """The three files of a kit; nothing is written, whatever the names are."""
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            entries = archive.infolist()
            if sorted(entry.filename for entry in entries) != sorted(KIT_FILES):
                raise MembershipError(f"expected a zip file of {', '.join(KIT_FILES)} and nothing else")
            return {entry.filename: _read_entry(archive, entry) for entry in entries}
    # zipfile says what is wrong with a file in many ways, by what is wrong.
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError, zlib.error, struct.error):
        raise MembershipError(f"expected a zip file of {', '.join(KIT_FILES)}, whole") from None


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
        raise MembershipError(f"{entry.filename}: not a plain file")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise MembershipError(f"{entry.filename}: not packed as every zip program does by default")
    with archive.open(entry) as file:
        body = file.read(MAX_PAPER + 1)
    if len(body) > MAX_PAPER:
        raise MembershipError(f"{entry.filename}: longer than {MAX_PAPER} bytes")
    return body


def _read_as(what: str, body: bytes, read: Callable[[Path], _Read]) -> _Read:
    """What a reader of files makes of bytes that are not to be a file yet; `what` names them in errors."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        try:
            return read(Path(file.name))
        except StudyError as error:
            raise MembershipError(what + str(error).removeprefix(file.name)) from None


def _draft_settings(kit: Kit, folder: Path, source: Mapping[str, Any]) -> str:
    return _as_yaml(
        {
            "site": kit.site,
            "source": dict(source),
            "study": str(folder / "study.yaml"),
            "policy": str(folder / "policy.yaml"),
            "ledger": str(folder / "ledger.jsonl"),
            "state": str(folder / "state"),
            "superlink": kit.address,
            "ca": str(folder / "ca.crt"),
        }
    )


def _draft_policy(opened: OpenKit) -> str:
    privacy = opened.study.privacy
    return "# What may leave this site; it may be narrowed. docs/site.md explains every key.\n" + _as_yaml(
        {
            "schema": POLICY_SCHEMA,
            "site": opened.kit.site,
            "asset": "main",
            "approved": opened.kit.study,
            "max_epsilon": privacy.epsilon,
            "max_delta": privacy.delta,
            "total_epsilon": privacy.epsilon,
            "total_delta": privacy.delta,
            "coordinator": opened.kit.coordinator,
        }
    )


def _as_yaml(content: Mapping[str, Any]) -> str:
    """Every text in quotes: to YAML, a site that is called 1e5 would be a number."""
    return "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in content.items())


# --- enrolment


def _make_enrolment(state: Path, keys: Path, *, site: str, study: str, now: datetime) -> Enrolment:
    """Signed with the identity in one folder, for the keys in another, made where there are none."""
    transport, tls = make_transport_key(keys), make_tls_key(keys)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, site)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(tls, hashes.SHA256())
    key = identity(state)
    return Enrolment(
        site=site,
        study=study,
        identity=key.public,
        transport=transport.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(),
        request=request.public_bytes(Encoding.PEM).decode(),
        made=now,
    ).signed(key)


# --- admission


def _check_admission(settings: SiteSettings, policy: PolicyFile, admission: Admission) -> None:
    if not admission.is_by(policy.coordinator):
        raise MembershipError("admission: signature: not of the coordinator that the policy names", ExitCode.UNTRUSTED)
    if admission.site != settings.site:
        raise MembershipError(f"admission: site: is for {admission.site}")
    if admission.study != policy.approved:
        raise MembershipError("admission: study: not the one that this site approved")
    if admission.members[settings.site] != identity(settings.state).public:
        raise MembershipError("admission: members: names another identity for this site than its own")
    if not _joined(settings).exists():
        return
    last = Admission.decode(read_paper_file(_joined(settings)))
    if admission.number < last.number:
        raise MembershipError(f"admission: number={admission.number}: older than {last.number}, which was joined")
    if admission.number == last.number and admission != last:
        raise MembershipError(f"admission: number={admission.number}: says something else than the one that was joined")


def _keys_of(settings: SiteSettings, admission: Admission, *, now: datetime) -> Path:
    """The folder of the keys that an admission is for: those of a rotation, or those in use."""
    if settings.ca is None:
        raise MembershipError("ca: the site file names none")
    ca, certificate = read_ca(read_paper_file(settings.ca)), read_certificate(admission.certificate)
    coming = _next(settings)
    is_next = (coming / "tls.key").exists() and tls_key(coming).public_key() == certificate.public_key()
    keys = coming if is_next else settings.state
    check_certificate_of(certificate, site=settings.site, ca=ca, public=tls_key(keys).public_key(), now=now)
    return keys


def _peers_changed(settings: SiteSettings, policy: PolicyFile, peers: Mapping[str, str]) -> bytes | None:
    """The policy with the peers of an admission, all else as the steward wrote it; None where they are the same."""
    if peers == policy.peers:
        return None
    text = _PEERS.sub("", settings.policy.read_text(encoding="utf-8"))
    lines = "".join(f"  {json.dumps(name)}: {json.dumps(key)}\n" for name, key in peers.items())
    body = (text.rstrip("\n") + "\n" + (f"peers:\n{lines}" if lines else "")).encode()
    what = f"{settings.policy} with the peers of the admission"
    if _read_as(what, body, read_policy) != policy.model_copy(update={"peers": dict(peers)}):
        raise MembershipError(f"{settings.policy}: peers: cannot be replaced; delete the key, and join again")
    return body


def _put_in_place(keys: Path, state: Path) -> None:
    """The TLS key last: while it is not in place, a repetition after a crash finds the rotation unfinished."""
    try:
        for name in ("transport.key", "tls.key"):
            if (keys / name).exists():
                (keys / name).replace(state / name)
                sync_folder(state)
        keys.rmdir()
    except OSError as error:
        raise MembershipError(
            f"{keys}: cannot be put in place ({error.strerror})", ExitCode.OUTPUT_NOT_WRITABLE
        ) from None


def _next(settings: SiteSettings) -> Path:
    return settings.state / "next"


def _joined(settings: SiteSettings) -> Path:
    return settings.state / "admission.json"


# --- files


def _write_once(path: Path, body: bytes) -> None:
    """Write a file, or find it there with the same content: a crash may have come between."""
    try:
        if path.exists():
            if path.read_bytes() != body:
                raise MembershipError(f"{path}: is there already, and is another; nothing is overwritten")
            return
        write_private(path, body)
    except OSError as error:
        raise MembershipError(f"{path}: cannot be written ({error.strerror})", ExitCode.OUTPUT_NOT_WRITABLE) from None


def _write(path: Path, body: bytes) -> None:
    try:
        write_durably(path, body)
    except OSError as error:
        raise MembershipError(f"{path}: cannot be written ({error.strerror})", ExitCode.OUTPUT_NOT_WRITABLE) from None
