"""Kits, enrolments and admissions as papers: one spelling, one purpose, and no field that can be changed unseen."""

import json
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from common.errors import ExitCode, MembershipError
from common.privacy.signatures import SigningKey
from common.wire.membership import (
    MAX_PAPER,
    Admission,
    Enrolment,
    Kit,
    Paper,
    check_enrolment,
    check_in_force,
    check_kit,
    days_left,
    read_ca,
    read_certificate,
    sha256,
    spaced,
    split_address,
)

KEY, OTHER = (SigningKey.from_seed(bytes([number]) * 32) for number in (1, 2))
NOW = datetime(2030, 5, 17, 12, tzinfo=UTC)
P256, P384 = ec.derive_private_key(7, ec.SECP256R1()), ec.derive_private_key(7, ec.SECP384R1())
FILES = {"study.yaml": b"study", "ca.crt": b"ca"}


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def public_pem(key: Any) -> str:
    return str(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


def request_of(key: Any = P256, name: str = "north") -> str:
    made = x509.CertificateSigningRequestBuilder().subject_name(named(name)).sign(key, hashes.SHA256())
    return made.public_bytes(Encoding.PEM).decode()


def certificate_of(*, days: float = 10, ca: bool | None = None, key: Any = P256, issuer: Any = P256) -> str:
    builder = (
        x509.CertificateBuilder()
        .subject_name(named("x"))
        .issuer_name(named("x"))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=days))
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    return builder.sign(issuer, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


KIT = Kit(
    federation="toy",
    site="north",
    address="fed.example.org:8443",
    study="1" * 64,
    study_file=sha256(FILES["study.yaml"]),
    ca_file=sha256(FILES["ca.crt"]),
    coordinator=KEY.public,
    sites=("north", "south"),
    made=date(2030, 5, 17),
).signed(KEY)
ENROLMENT = Enrolment(
    site="north", study="1" * 64, identity=KEY.public, transport=public_pem(P384), request=request_of(), made=NOW
).signed(KEY)
ADMISSION = Admission(
    site="north",
    study="1" * 64,
    number=3,
    certificate=certificate_of(),
    members={"north": KEY.public, "south": OTHER.public},
).signed(KEY)
PAPERS: list[Paper] = [KIT, ENROLMENT, ADMISSION]
# Another value of every field that is a value of its kind.
OTHERWISE: dict[str, Any] = {
    "federation": "toys",
    "site": "south",
    "address": "fed.example.org:8444",
    "study": "2" * 64,
    "study_file": "2" * 64,
    "ca_file": "2" * 64,
    "sites": ["north", "south", "west"],
    "made": {"kit": "2030-05-18", "enrolment": "2030-05-17T12:00:01Z"},
    "coordinator": OTHER.public,
    "identity": OTHER.public,
    "transport": public_pem(ec.derive_private_key(8, ec.SECP384R1())),
    "request": request_of(ec.derive_private_key(8, ec.SECP256R1())),
    "number": 4,
    "certificate": certificate_of(days=11),
    "members": {"north": KEY.public, "south": "3" * 64},
}
FIELDS = [
    (paper, name) for paper in PAPERS for name in json.loads(paper.encode()) if name not in ("schema", "signature")
]


def spelled(data: Any) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()


def changed(paper: Paper, name: str, value: Any) -> bytes:
    return spelled({**json.loads(paper.encode()), name: value})


def refuses(kind: type[Paper], body: bytes) -> str:
    with pytest.raises(MembershipError) as caught:
        kind.decode(body)
    assert caught.value.code == ExitCode.KIT_INVALID
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{kind.__name__.lower()}: ")
    return str(caught.value)


@pytest.mark.parametrize("paper", PAPERS)
def test_a_paper_is_what_it_was_after_a_journey(paper: Paper) -> None:
    assert type(paper).decode(paper.encode()) == paper
    assert type(paper).decode(paper.encode().strip() + b"\r\n") == paper
    assert paper.is_by(KEY.public)
    assert not paper.is_by(OTHER.public)


@pytest.mark.parametrize(("paper", "name"), FIELDS)
def test_a_paper_of_which_any_field_was_changed_is_no_longer_signed(paper: Paper, name: str) -> None:
    value = OTHERWISE[name]
    kind = type(paper)
    value = value[kind.__name__.lower()] if name == "made" else value
    found = kind.decode(changed(paper, name, value))
    assert json.loads(found.encode())[name] != json.loads(paper.encode())[name]
    assert not found.is_by(KEY.public)


@pytest.mark.parametrize("paper", PAPERS)
def test_a_signature_that_was_changed_is_none(paper: Paper) -> None:
    for signature in ("", "0" * 128):
        assert not type(paper).decode(changed(paper, "signature", signature)).is_by(KEY.public)


def test_a_signature_for_one_kind_of_paper_is_none_for_another() -> None:
    body = b"the same"
    signatures = {KEY.sign(body, purpose=kind.__name__.lower()) for kind in (Kit, Enrolment, Admission)}
    assert len(signatures) == 3
    assert KIT.signature == KEY.sign(KIT.model_copy(update={"signature": ""})._body(), purpose="kit")


@pytest.mark.parametrize(
    ("paper", "name", "value"),
    [
        *((paper, "schema", "privshare.kit/2") for paper in PAPERS),
        *((paper, "signature", value) for paper in PAPERS for value in ("F" * 128, "0" * 127, 7, None)),
        *((paper, "study", value) for paper in PAPERS for value in ("1" * 63, "A" * 64, "", None, 1, "1" * 64 + "\n")),
        *((paper, "site", value) for paper in PAPERS for value in ("", "../x", "a b", "x" * 65, "north\n", 5, None)),
        (KIT, "site", "west"),
        (KIT, "sites", ["north", "north"]),
        (KIT, "sites", []),
        (KIT, "sites", "north"),
        (KIT, "address", "fed.example.org"),
        (KIT, "coordinator", "x"),
        (KIT, "made", "yesterday"),
        (KIT, "made", 19000),
        (KIT, "federation", "a/b"),
        (ENROLMENT, "made", "2030-05-17T12:00:00"),
        (ENROLMENT, "made", 1900000000),
        (ENROLMENT, "made", "2030-05-17T12:00:00+00:00"),
        (ENROLMENT, "transport", "x" * 8193),
        (ENROLMENT, "request", ["x"]),
        (ENROLMENT, "identity", "Z" * 64),
        (ADMISSION, "number", 0),
        (ADMISSION, "number", True),
        (ADMISSION, "number", "3"),
        (ADMISSION, "number", 3.0),
        (ADMISSION, "members", {}),
        (ADMISSION, "members", {"south": KEY.public}),
        (ADMISSION, "members", {"north": KEY.public, "south": KEY.public}),
        (ADMISSION, "members", {"north": KEY.public, "a/b": OTHER.public}),
        (ADMISSION, "certificate", None),
    ],
)
def test_a_field_that_is_not_of_its_kind_is_refused_in_one_line(paper: Paper, name: str, value: Any) -> None:
    refuses(type(paper), changed(paper, name, value))


@pytest.mark.parametrize("paper", PAPERS)
def test_a_paper_in_another_form_is_refused(paper: Paper) -> None:
    kind, data = type(paper), json.loads(paper.encode())
    assert "unknown key" in refuses(kind, spelled({**data, "extra": 1}))
    assert "canonical" in refuses(kind, json.dumps(data, indent=2).encode())
    assert "canonical" in refuses(kind, paper.encode().replace(b"{", b'{"site":"east",', 1))
    for name in data.keys() - {"schema", "signature"}:
        assert "is needed" in refuses(kind, spelled({key: data[key] for key in data if key != name}))
    for name in ("schema", "signature"):
        assert "canonical" in refuses(kind, spelled({key: data[key] for key in data if key != name}))
    for body in (b"", b"{", b"\xff", b"[" * 100_000, b"1" * 5000, b"{} {}"):
        assert "not JSON" in refuses(kind, body)
    for body in (b"[]", b"1", b"null", b'"x"'):
        refuses(kind, body)
    assert "longer" in refuses(kind, b" " * (MAX_PAPER + 1))


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("fed.example.org:8443", ("fed.example.org", 8443)),
        ("localhost:1", ("localhost", 1)),
        ("10.0.0.7:65535", ("10.0.0.7", 65535)),
        ("[2001:db8::7]:443", ("2001:db8::7", 443)),
    ],
)
def test_an_address_has_a_host_and_a_port(address: str, expected: tuple[str, int]) -> None:
    assert split_address(address) == expected


@pytest.mark.parametrize(
    "address",
    [
        *("", "host", "host:", ":443", "host:0", "host:65536", "host:0443", "host:+1", "host:\u0661", "a b:1"),
        *("2001:db8::7:443", "[10.0.0.7]:443", "[host]:443", "[]:1", "https://host:1", "-a:1", "a..b:1", "a/b:1"),
        *("x" * 64 + ":1", ".".join(["x" * 60] * 5) + ":1", "host:1\n", "hö:1"),
    ],
)
def test_what_is_not_an_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        split_address(address)


def test_a_kit_answers_for_the_files_beside_it() -> None:
    check_kit(KIT, FILES)
    for name in FILES:
        with pytest.raises(MembershipError, match=f"{name}: not the file"):
            check_kit(KIT, {**FILES, name: b"other"})
    with pytest.raises(MembershipError, match="signature"):
        check_kit(KIT.signed(OTHER), FILES)


def enrolled(**changes: Any) -> Enrolment:
    return ENROLMENT.model_copy(update=changes).signed(KEY)


def test_an_enrolment_holds_up_when_each_key_says_so() -> None:
    assert check_enrolment(ENROLMENT).public_key() == P256.public_key()


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"transport": public_pem(P256)}, "transport: expected"),
        ({"transport": public_pem(rsa.generate_private_key(65537, 2048))}, "transport: expected"),
        ({"transport": public_pem(P384) + public_pem(P384)}, "transport: expected"),
        ({"transport": "nonsense"}, "transport: expected"),
        ({"request": request_of(P384)}, "on P-256"),
        ({"request": request_of(rsa.generate_private_key(65537, 2048))}, "on P-256"),
        ({"request": request_of(name="south")}, "common name"),
        ({"request": "note\n" + request_of()}, "nothing else"),
        ({"request": certificate_of()}, "nothing else"),
        ({"request": "nonsense"}, "nothing else"),
    ],
)
def test_an_enrolment_with_a_key_of_another_kind_is_refused(changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(MembershipError, match=rule):
        check_enrolment(enrolled(**changes))


def test_an_enrolment_whose_request_another_key_signed_is_refused() -> None:
    request = x509.load_pem_x509_csr(request_of().encode())
    whole, signature, forged = request.public_bytes(Encoding.DER), request.signature, b""
    while len(forged) != len(signature):  # they vary by a byte or two
        forged = ec.derive_private_key(8, ec.SECP256R1()).sign(request.tbs_certrequest_bytes, ec.ECDSA(hashes.SHA256()))
    assert whole.endswith(signature)
    text = x509.load_der_x509_csr(whole[: -len(signature)] + forged).public_bytes(Encoding.PEM).decode()
    with pytest.raises(MembershipError, match="not signed with its own key"):
        check_enrolment(enrolled(request=text))


def test_an_enrolment_that_another_key_signed_is_refused() -> None:
    with pytest.raises(MembershipError, match="not of the identity"):
        check_enrolment(ENROLMENT.signed(OTHER))


def test_a_ca_is_one_that_signed_itself() -> None:
    assert read_ca(certificate_of(ca=True).encode())
    bad = (
        certificate_of(ca=False),
        certificate_of(),
        certificate_of(ca=True, issuer=ec.derive_private_key(8, P256.curve)),
    )
    for text in bad:
        with pytest.raises(MembershipError, match=r"ca\.crt: not the certificate of a CA"):
            read_ca(text.encode())


def test_a_file_of_several_certificates_or_of_more_than_one_is_refused() -> None:
    one = certificate_of()
    assert read_certificate(one)
    for text in (one + one, "note\n" + one, one + "\n", one.strip(), "", "nonsense", request_of(), "\ufffd"):
        with pytest.raises(MembershipError, match="and nothing else"):
            read_certificate(text)


@pytest.mark.parametrize(("after", "days"), [(0, 10), (0.1, 9), (9, 1), (9.5, 0), (10, 0), (10.001, -1), (12, -2)])
def test_days_left_are_whole_and_negative_once_it_is_over(after: float, days: int) -> None:
    assert days_left(certificate_of(), NOW + timedelta(days=after)) == days


def test_a_certificate_is_in_force_from_its_first_moment_to_its_last() -> None:
    found, second = read_certificate(certificate_of()), timedelta(seconds=1)
    check_in_force(found, NOW)
    check_in_force(found, NOW + timedelta(days=10))
    with pytest.raises(MembershipError, match="expired on 2030-05-27") as caught:
        check_in_force(found, NOW + timedelta(days=10) + second)
    assert caught.value.code == ExitCode.CERTIFICATE_EXPIRED
    with pytest.raises(MembershipError, match="is the clock right"):
        check_in_force(found, NOW - second)


def test_a_key_is_read_in_groups_of_four() -> None:
    assert spaced(KEY.public).replace(" ", "") == KEY.public
    assert {len(group) for group in spaced(KEY.public).split()} == {4}
