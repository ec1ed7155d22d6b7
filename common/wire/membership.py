"""Who is in a federation: a kit goes to a site, its enrolment comes back, an admission goes to every member.

Papers are canonical JSON, each signed for one purpose. A kit names the coordinator's key and is signed with it, and an
enrolment names a site's: whose keys they are, people compare over the telephone. An admission is checked with the key
of the kit. Certificates are X.509, for the transport alone; they carry nobody's word. No private key is in any paper.
"""

import hashlib
import ipaddress
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from pydantic import AfterValidator, AwareDatetime, Field, ValidationError, model_validator

from common.data.schema import Section, Text, Whole
from common.errors import ExitCode, MembershipError
from common.privacy.ledger import canonical
from common.privacy.signatures import SigningKey, is_signed
from common.study import explain

MAX_PAPER: Final = 4 * 1024 * 1024
MAX_SITES: Final = 10_000
WARN_DAYS: Final = 30
"""A certificate with fewer days left is warned of."""
KIT_FILES: Final = ("kit.json", "study.yaml", "ca.crt")
"""All that is in a kit."""
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?:\.(?!-)[A-Za-z0-9-]{1,63})*")


def split_address(address: str) -> tuple[str, int]:
    """Host and port of an address; an IPv6 host stands in brackets.

    Raises:
        ValueError: not such an address.
    """
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    plain = host[1:-1] if bracketed else host
    if not colon or not re.fullmatch(r"[1-9][0-9]{0,4}", port) or int(port) > 65535:
        raise ValueError("expected host:port")
    if bracketed != (":" in plain):
        raise ValueError("expected an IPv6 host, and no other, in brackets")
    if not is_ip(plain) and (len(plain) > 253 or not _HOST_NAME.fullmatch(plain)):
        raise ValueError("expected host:port, the host a name or an IP address")
    return plain, int(port)


def is_ip(host: str) -> bool:
    """Whether a host is an IP address rather than a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _address(address: str) -> str:
    split_address(address)
    return address


Name = Annotated[Text, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Digest = Annotated[Text, Field(pattern=r"^[0-9a-f]{64}$")]
Address = Annotated[Text, Field(max_length=300), AfterValidator(_address)]
Pem = Annotated[str, Field(max_length=8192)]
Members = Annotated[dict[Name, Digest], Field(min_length=1, max_length=MAX_SITES)]


class Paper(Section):
    """What one party says and signs."""

    signature: Annotated[str, Field(pattern=r"^([0-9a-f]{128})?$")] = ""

    def signed(self, key: SigningKey) -> Self:
        """With a signature."""
        return self.model_copy(update={"signature": key.sign(self._body(), purpose=self._purpose())})

    def is_by(self, public: str) -> bool:
        """Whether the owner of a public key signed it."""
        return is_signed(self._body(), self.signature, purpose=self._purpose(), public=public)

    def encode(self) -> bytes:
        """The bytes of its file."""
        return canonical(self.model_dump(mode="json", by_alias=True)) + b"\n"

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """Read the bytes of a file that may come from anybody. The signature is not checked.

        Raises:
            MembershipError: too long, not of this form, or another spelling of what it says than the canonical one.
        """
        what = cls._purpose()
        if len(body) > MAX_PAPER:
            raise MembershipError(f"{what}: longer than {MAX_PAPER} bytes")
        try:
            found = cls.model_validate(json.loads(body))
        except ValidationError as error:
            fault = error.errors(include_url=False, include_context=False)[0]
            raise MembershipError(f"{what}: {explain(fault, cls)}") from None
        except (ValueError, RecursionError):
            raise MembershipError(f"{what}: not JSON") from None
        if found.encode().strip() != body.strip():
            raise MembershipError(f"{what}: not in canonical form; it was changed on the way")
        return found

    @classmethod
    def _purpose(cls) -> str:
        return cls.__name__.lower()

    def _body(self) -> bytes:
        return canonical(self.model_dump(mode="json", by_alias=True, exclude={"signature"}))


class Kit(Paper):
    """What a coordinator invites one site with, signed with the key that it names."""

    schema_version: Annotated[Literal["privshare.kit/1"], Field(alias="schema")] = "privshare.kit/1"
    # The study's name.
    federation: Name
    site: Name
    # Where the coordinator is reached, host:port.
    address: Address
    # Digest of the study, and of the bytes of the two files beside this one.
    study: Digest
    study_file: Digest
    ca_file: Digest
    # Public key of the coordinator, whose orders and admissions a site obeys.
    coordinator: Digest
    # Everybody who was invited.
    sites: Annotated[tuple[Name, ...], Field(min_length=1, max_length=MAX_SITES)]
    made: date

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.sites)) != len(self.sites):
            raise ValueError("sites: a name is listed twice")
        if self.site not in self.sites:
            raise ValueError("sites: does not hold the kit's own site")
        return self


class Enrolment(Paper):
    """The public keys of one site, signed with the identity that it names."""

    schema_version: Annotated[Literal["privshare.enrolment/1"], Field(alias="schema")] = "privshare.enrolment/1"
    site: Name
    study: Digest
    # Signs what the site says.
    identity: Digest
    # Flower's node key, as PEM.
    transport: Pem
    # Request for the client certificate of the TLS connection, as PEM.
    request: Pem
    # An older enrolment never takes the place of a newer one.
    made: AwareDatetime


class Admission(Paper):
    """What the coordinator says of the federation to one member: its certificate, and everybody's identity."""

    schema_version: Annotated[Literal["privshare.admission/1"], Field(alias="schema")] = "privshare.admission/1"
    site: Name
    study: Digest
    # Grows by one with each change of the federation, and never goes back.
    number: Annotated[Whole, Field(ge=1)]
    # Of the site, as PEM.
    certificate: Pem
    # Public key of every member by name, the site's own too.
    members: Members

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.site not in self.members:
            raise ValueError("members: does not hold the site itself")
        if len(set(self.members.values())) < len(self.members):
            raise ValueError("members: two have the same key")
        return self

    @property
    def peers(self) -> dict[str, str]:
        """Everybody else's public key by name, sorted."""
        return {name: key for name, key in sorted(self.members.items()) if name != self.site}


def read_paper_file(path: Path) -> bytes:
    """The bytes of a paper's file.

    Raises:
        MembershipError: it cannot be read, or is longer than any paper.
    """
    try:
        with path.open("rb") as file:
            body = file.read(MAX_PAPER + 1)
    except OSError as error:
        raise MembershipError(f"{path}: cannot be read ({error.strerror})") from None
    if len(body) > MAX_PAPER:
        raise MembershipError(f"{path}: longer than {MAX_PAPER} bytes")
    return body


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put a file's name before whatever is found to be wrong with its content.

    Raises:
        MembershipError: what was raised inside, with its code.
    """
    try:
        yield
    except MembershipError as error:
        raise MembershipError(f"{path}: {error}", error.code) from None


def sha256(body: bytes) -> str:
    """In hexadecimal."""
    return hashlib.sha256(body).hexdigest()


def spaced(digest: str) -> str:
    """A digest or key to read over the telephone: groups of four.

    >>> spaced("0123456789ab")
    '0123 4567 89ab'
    """
    return " ".join(digest[start : start + 4] for start in range(0, len(digest), 4))


def fingerprint(certificate: x509.Certificate) -> str:
    """What `openssl x509 -fingerprint -sha256` shows, in small letters and without colons."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def fingerprints(kit: Kit, ca: bytes) -> dict[str, str]:
    """What site and coordinator compare over the telephone, by what it is.

    Raises:
        MembershipError: the CA certificate is none.
    """
    return {
        "study": spaced(kit.study),
        "CA certificate": spaced(fingerprint(read_ca(ca))),
        "coordinator's key": spaced(kit.coordinator),
    }


def check_kit(kit: Kit, files: Mapping[str, bytes]) -> None:
    """Whether a kit is signed with the key that it names, and the files beside it are those that it names.

    Args:
        kit: as read.
        files: study.yaml and ca.crt.

    Raises:
        MembershipError: what is wrong.
    """
    if not kit.is_by(kit.coordinator):
        raise MembershipError("kit.json: signature: not of the coordinator's key that the kit names")
    for name, digest in (("study.yaml", kit.study_file), ("ca.crt", kit.ca_file)):
        if sha256(files[name]) != digest:
            raise MembershipError(f"{name}: not the file that the kit was signed with")


def check_enrolment(enrolment: Enrolment) -> x509.CertificateSigningRequest:
    """The request in an enrolment, if the enrolment is the word of one who holds all three keys.

    Raises:
        MembershipError: a signature or the type of a key is wrong.
    """
    if not enrolment.is_by(enrolment.identity):
        raise MembershipError("enrolment: signature: not of the identity that it names")
    read_transport(enrolment.transport)
    request = _read_request(enrolment.request)
    if not request.is_signature_valid:
        raise MembershipError("enrolment: request: not signed with its own key")
    if common_name(request.subject) != enrolment.site:
        raise MembershipError("enrolment: request: its common name is not the site's")
    if not is_on(request.public_key(), ec.SECP256R1):
        raise MembershipError("enrolment: request: expected an ECDSA key on P-256")
    return request


def check_certificate_of(
    certificate: x509.Certificate, *, site: str, ca: x509.Certificate, public: ec.EllipticCurvePublicKey, now: datetime
) -> None:
    """Whether a certificate is one for a site's TLS key, from the federation's CA, and in force.

    Raises:
        MembershipError: it is not.
    """
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        raise MembershipError("certificate: not from the federation's CA") from None
    if common_name(certificate.subject) != site:
        raise MembershipError("certificate: its common name is not the site's")
    if certificate.public_key() != public:
        raise MembershipError("certificate: not for this site's TLS key")
    if not _is_for_clients(certificate):
        raise MembershipError("certificate: not one for a TLS client")
    check_in_force(certificate, now)


def check_in_force(certificate: x509.Certificate, now: datetime) -> None:
    """Refuse a certificate that has expired, or is not in force yet.

    Raises:
        MembershipError: either.
    """
    if now > certificate.not_valid_after_utc:
        until = certificate.not_valid_after_utc.date()
        raise MembershipError(f"certificate: expired on {until}", ExitCode.CERTIFICATE_EXPIRED)
    if now < certificate.not_valid_before_utc:
        raise MembershipError(f"certificate: in force from {certificate.not_valid_before_utc} on; is the clock right?")


def days_left(certificate: str, now: datetime) -> int:
    """Whole days that a certificate, as PEM, is in force from now on; negative once it is not.

    Raises:
        MembershipError: not a certificate.
    """
    return (read_certificate(certificate).not_valid_after_utc - now) // timedelta(days=1)


def read_certificate(text: str) -> x509.Certificate:
    """The one certificate in a PEM text that holds nothing else.

    Raises:
        MembershipError: not that.
    """
    try:
        found = x509.load_pem_x509_certificate(text.encode())
        whole = found.public_bytes(Encoding.PEM).decode() == text
        found.public_key()
        _ = found.extensions
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension):
        whole = False
    if not whole:
        raise MembershipError("certificate: expected one X.509 certificate in PEM, and nothing else")
    return found


def read_ca(body: bytes) -> x509.Certificate:
    """The CA certificate in the bytes of ca.crt.

    Raises:
        MembershipError: not a certificate, or not one of a CA that signed itself.
    """
    found = read_certificate(body.decode("ascii", errors="replace"))
    try:
        is_ca = found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        found.verify_directly_issued_by(found)
    except (x509.ExtensionNotFound, ValueError, TypeError, InvalidSignature):
        is_ca = False
    if not is_ca:
        raise MembershipError("ca.crt: not the certificate of a CA that signed itself")
    return found


def read_transport(text: str) -> ec.EllipticCurvePublicKey:
    """Flower's public key of a node, which must be on P-384.

    Raises:
        MembershipError: another kind of key, or none.
    """
    try:
        found = load_pem_public_key(text.encode())
        whole = found.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode() == text
    except (ValueError, UnsupportedAlgorithm):
        whole = False
    if not whole or not is_on(found, ec.SECP384R1):
        raise MembershipError("enrolment: transport: expected an ECDSA key on P-384 in PEM, and nothing else")
    assert isinstance(found, ec.EllipticCurvePublicKey)
    return found


def is_on(key: PublicKeyTypes, curve: type[ec.EllipticCurve]) -> bool:
    """Whether a public key is one of a curve."""
    return isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, curve)


def common_name(name: x509.Name) -> str:
    """The only common name of a subject; empty where there is none, or more."""
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if len(found) == 1 else ""


def _read_request(text: str) -> x509.CertificateSigningRequest:
    try:
        found = x509.load_pem_x509_csr(text.encode())
        whole = found.public_bytes(Encoding.PEM).decode() == text
        found.public_key()
    except (ValueError, UnsupportedAlgorithm):
        whole = False
    if not whole:
        raise MembershipError("enrolment: request: expected one certificate request in PEM, and nothing else")
    return found


def _is_for_clients(certificate: x509.Certificate) -> bool:
    try:
        uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return ExtendedKeyUsageOID.CLIENT_AUTH in uses
