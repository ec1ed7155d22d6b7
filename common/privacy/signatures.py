"""Who said what: Ed25519 signatures, each for one purpose.

A signature covers its purpose, so one that was made for a ledger entry can never pass for one of a policy.
Source: RFC 8032.
"""

from typing import Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)


class SigningKey:
    """A site's private key. It never leaves the site; its public half names the site to everybody.

    >>> key = SigningKey.from_seed(bytes(32))
    >>> is_signed(b"text", key.sign(b"text", purpose="ledger"), purpose="ledger", public=key.public)
    True
    >>> is_signed(b"text", key.sign(b"text", purpose="policy"), purpose="ledger", public=key.public)
    False
    """

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()

    @classmethod
    def generate(cls) -> Self:
        """A new key, from the operating system."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> Self:
        """The key of 32 bytes: for simulated sites, whose keys must repeat."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def from_pem(cls, text: bytes) -> Self:
        """Read an unencrypted PKCS 8 key.

        Raises:
            ValueError: not such a key, or not of Ed25519.
        """
        try:
            private = load_pem_private_key(text, password=None)
        except TypeError:
            raise ValueError("key: is encrypted") from None
        except UnsupportedAlgorithm:
            raise ValueError("key: not an Ed25519 key") from None
        if not isinstance(private, Ed25519PrivateKey):
            raise ValueError("key: not an Ed25519 key")
        return cls(private)

    def as_pem(self) -> bytes:
        """For a file that only the site's user can read."""
        return self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def sign(self, body: bytes, *, purpose: str) -> str:
        """Hexadecimal signature of a body; the same body has the same signature."""
        return self._private.sign(_bound(body, purpose)).hex()


def is_signed(body: bytes, signature: str, *, purpose: str, public: str) -> bool:
    """Whether the owner of a public key signed a body for a purpose; False for anything malformed."""
    try:
        Ed25519PublicKey.from_public_bytes(_bytes_of(public)).verify(_bytes_of(signature), _bound(body, purpose))
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _bytes_of(text: str) -> bytes:
    """Of lower-case hexadecimal, and of no other spelling: a signature has one."""
    found = bytes.fromhex(text)
    if found.hex() != text:
        raise ValueError("not lower-case hexadecimal")
    return found


def _bound(body: bytes, purpose: str) -> bytes:
    return b"privshare " + purpose.encode() + b"\0" + body
