"""A site's secrets, each in a file of its own that only the site's user can read.

`site.key` splits units off and never changes: with another one, a unit could pay from both accounts. `identity.pem`
signs what the site says; it makes no choice about any unit.
"""

import secrets
from pathlib import Path

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
