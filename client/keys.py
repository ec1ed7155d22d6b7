"""A site's secrets, each in a file of its own that only the site's user can read.

`site.key` splits units off and never changes: with another one, a unit could pay from both accounts. `identity.pem`
signs what the site says; it makes no choice about any unit. `transport.key` and `tls.key` open the connection to the
coordinator, and are changed with every certificate.
"""

import secrets
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_ssh_private_key,
)

from common.errors import PolicyError
from common.files import is_private, write_private
from common.privacy.signatures import SigningKey

_SECRET_BYTES = 32


def unit_secret(state: Path, *, may_make: bool) -> bytes:
    """The secret that a site's choices about units are keyed by, made on first use.

    Args:
        state: the site's own folder.
        may_make: not once something was charged: the charges rest on the secret.

    Raises:
        PolicyError: it is lost, not private, not of its length, or cannot be read or made.
    """
    path = state / "site.key"
    try:
        if not path.exists():
            if not may_make:
                raise PolicyError(f"{path}: the site's key is gone, and the ledger's charges rest on it; restore it")
            write_private(path, secrets.token_bytes(_SECRET_BYTES))
        secret = path.read_bytes()
        if len(secret) != _SECRET_BYTES or not is_private(path):
            raise PolicyError(f"{path}: expected {_SECRET_BYTES} bytes that only the site's user can read (mode 0600)")
    except OSError as error:
        raise PolicyError(f"{path}: the site's key cannot be read or made ({error.strerror})") from None
    return secret


def identity(state: Path) -> SigningKey:
    """The key that a site signs with.

    Raises:
        PolicyError: it is absent, not private, or not an Ed25519 key.
    """
    path = state / "identity.pem"
    try:
        if not is_private(path):
            raise PolicyError(f"{path}: others can read the site's signing key; expected mode 0600")
        return SigningKey.from_pem(path.read_bytes())
    except OSError as error:
        raise PolicyError(f"{path}: the site's signing key cannot be read ({error.strerror})") from None
    except ValueError:
        raise PolicyError(f"{path}: not an Ed25519 private key in PEM, unencrypted") from None


def make_identity(state: Path) -> SigningKey:
    """The key that a site signs with, made where there is none.

    Raises:
        PolicyError: as `identity`, or it cannot be made.
    """
    path = state / "identity.pem"
    if not path.exists():
        try:
            write_private(path, SigningKey.generate().as_pem())
        except OSError as error:
            raise PolicyError(f"{path}: the site's signing key cannot be made ({error.strerror})") from None
    return identity(state)


def transport_key(folder: Path) -> ec.EllipticCurvePrivateKey:
    """Flower's node key, on P-384.

    Raises:
        PolicyError: it is absent, not private, or another kind of key.
    """
    return _curve_key(folder / "transport.key", ec.SECP384R1, load_ssh_private_key)


def tls_key(folder: Path) -> ec.EllipticCurvePrivateKey:
    """The key of the client certificate, on P-256.

    Raises:
        PolicyError: it is absent, not private, or another kind of key.
    """
    return _curve_key(folder / "tls.key", ec.SECP256R1, load_pem_private_key)


def make_transport_key(folder: Path) -> ec.EllipticCurvePrivateKey:
    """Flower's node key, made where there is none; in the form of OpenSSH, the only one that Flower's own node reads.

    Raises:
        PolicyError: as `transport_key`, or it cannot be made.
    """
    _make_curve_key(folder / "transport.key", ec.SECP384R1(), PrivateFormat.OpenSSH)
    return transport_key(folder)


def make_tls_key(folder: Path) -> ec.EllipticCurvePrivateKey:
    """The key of the client certificate, made where there is none.

    Raises:
        PolicyError: as `tls_key`, or it cannot be made.
    """
    _make_curve_key(folder / "tls.key", ec.SECP256R1(), PrivateFormat.PKCS8)
    return tls_key(folder)


def _curve_key(
    path: Path, curve: type[ec.EllipticCurve], load: Callable[[bytes, bytes | None], object]
) -> ec.EllipticCurvePrivateKey:
    try:
        if not is_private(path):
            raise PolicyError(f"{path}: others can read this private key; expected mode 0600")
        key = load(path.read_bytes(), None)
    except OSError as error:
        raise PolicyError(f"{path}: this private key cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, curve):
        raise PolicyError(f"{path}: not an unencrypted ECDSA private key on {curve.name}")
    return key


def _make_curve_key(path: Path, curve: ec.EllipticCurve, form: PrivateFormat) -> None:
    if path.exists():
        return
    key = ec.generate_private_key(curve)
    try:
        write_private(path, key.private_bytes(Encoding.PEM, form, NoEncryption()))
    except OSError as error:
        raise PolicyError(f"{path}: this private key cannot be made ({error.strerror})") from None
