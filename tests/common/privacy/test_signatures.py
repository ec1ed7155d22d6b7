"""Signatures: each for one purpose and one body, by one key, with one spelling."""

import base64
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from common.privacy.signatures import SigningKey, is_signed

KEY, OTHER = SigningKey.from_seed(bytes(32)), SigningKey.from_seed(bytes([1]) * 32)
SIGNATURE = KEY.sign(b"body", purpose="policy")
GOLDEN = (
    "7ce73caeb795c091a87f7ce9ecdd82904796b58f1faa088adc699b302aa56a41"
    "8c6bf985bf80b6b0d426d9f1c293c565a4c5a6647d21033e710ae21657de780a"
)
# RFC 8032, section 7.1: secret and public key of tests 1 to 3.
VECTORS = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
    ),
]


@pytest.mark.parametrize(("seed", "public"), VECTORS)
def test_a_seed_gives_the_public_key_that_the_standard_says(seed: str, public: str) -> None:
    assert SigningKey.from_seed(bytes.fromhex(seed)).public == public


def test_a_signature_is_ed25519_of_purpose_and_body_and_stays_the_same_for_ever() -> None:
    whole = b"privshare policy\0body"
    assert Ed25519PrivateKey.from_private_bytes(bytes(32)).sign(whole).hex() == SIGNATURE
    Ed25519PublicKey.from_public_bytes(bytes.fromhex(KEY.public)).verify(bytes.fromhex(SIGNATURE), whole)
    assert SIGNATURE == GOLDEN


@given(st.binary(), st.sampled_from(["policy", "ledger entry", "statement", "attestation"]))
def test_what_was_signed_is_signed_for_its_purpose_alone(body: bytes, purpose: str) -> None:
    signature = KEY.sign(body, purpose=purpose)
    assert is_signed(body, signature, purpose=purpose, public=KEY.public)
    assert not is_signed(body, signature, purpose=purpose, public=OTHER.public)
    assert not is_signed(body + b"\0", signature, purpose=purpose, public=KEY.public)
    for other in ("", "Policy", "policies", "ledger", "certificate"):
        assert not is_signed(body, signature, purpose=other, public=KEY.public)


@pytest.mark.parametrize("position", range(0, 128, 7))
def test_a_changed_signature_or_key_is_none(position: int) -> None:
    for text, rest in ((SIGNATURE, {"public": KEY.public}), (KEY.public, {"signature": SIGNATURE})):
        digits = list(text)
        at = position % len(digits)
        digits[at] = "0" if digits[at] != "0" else "f"
        changed = {"signature": "".join(digits)} if "public" in rest else {"public": "".join(digits)}
        assert not is_signed(b"body", **{**rest, **changed}, purpose="policy")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00",
        SIGNATURE[:-2],
        SIGNATURE + "00",
        SIGNATURE[:-1],
        "zz" * 64,
        "00" * 64,
        "ff" * 64,
        # Other spellings of the same bytes: whoever compares texts must not be shown two.
        SIGNATURE.upper(),
        " " + SIGNATURE,
        SIGNATURE + "\n",
        SIGNATURE[:64] + " " + SIGNATURE[64:],
        None,
        7,
        b"",
        bytes.fromhex(SIGNATURE),
        ["00"],
        "\ud800",
    ],
)
def test_a_malformed_signature_is_none_and_raises_nothing(text: Any) -> None:
    assert is_signed(b"body", SIGNATURE, purpose="policy", public=KEY.public)
    assert not is_signed(b"body", text, purpose="policy", public=KEY.public)


@pytest.mark.parametrize(
    "text", ["", "00", KEY.public[:-2], KEY.public + "00", KEY.public.upper(), " " + KEY.public, "zz" * 32, None, 7]
)
def test_a_malformed_public_key_has_signed_nothing_and_raises_nothing(text: Any) -> None:
    assert not is_signed(b"body", SIGNATURE, purpose="policy", public=text)


def test_a_key_comes_back_from_its_file() -> None:
    key = SigningKey.generate()
    again = SigningKey.from_pem(key.as_pem())
    assert again.public == key.public
    assert again.sign(b"body", purpose="policy") == key.sign(b"body", purpose="policy")
    assert SigningKey.generate().public != key.public


def unknown_kind() -> bytes:
    """A key of a kind that does not exist: an Ed25519 one under another number."""
    lines = KEY.as_pem().splitlines()
    der = base64.b64decode(b"".join(lines[1:-1])).replace(bytes.fromhex("2b6570"), bytes.fromhex("2b6579"))
    return b"\n".join([lines[0], base64.b64encode(der), lines[-1], b""])


NO_KEYS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "."),
    "garbage": (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "."),
    "cut short": (KEY.as_pem()[:60], "."),
    "of no kind": (unknown_kind(), "not an Ed25519 key"),
    "of another kind": (
        X25519PrivateKey.from_private_bytes(bytes(32)).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        "not an Ed25519 key",
    ),
    "encrypted": (
        Ed25519PrivateKey.from_private_bytes(bytes(32)).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word")
        ),
        "is encrypted",
    ),
    "public": (
        Ed25519PrivateKey.from_private_bytes(bytes(32))
        .public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        ".",
    ),
}


@pytest.mark.parametrize("which", NO_KEYS)
def test_a_file_that_holds_no_such_key_is_refused(which: str) -> None:
    text, reason = NO_KEYS[which]
    with pytest.raises(ValueError, match=reason):
        SigningKey.from_pem(text)


def test_a_seed_of_another_length_is_refused() -> None:
    for length in (0, 31, 33):
        with pytest.raises(ValueError, match="32"):
            SigningKey.from_seed(bytes(length))


def test_what_is_printed_of_a_key_holds_no_secret() -> None:
    key = SigningKey.from_seed(bytes(range(32)))
    assert bytes(range(32)).hex() not in f"{key!r} {key} {vars(key)}"
