"""A site's consent: the signature beside its policy, and the record that ends it.

A withdrawal ends consent for whatever comes next. What was released before cannot be called back; it stays covered by
the guarantee, and by the ledger, which counts it for ever.
"""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, Field

from common.errors import ExitCode, MembershipError, PolicyError
from common.files import sync_folder, write_durably
from common.privacy.signatures import SigningKey
from common.wire.membership import Digest, Name, Paper, read_paper_file

_ENDING: Final = ".withdrawn"


class Withdrawal(Paper):
    """That a site takes its consent back, signed with its own key."""

    schema_version: Annotated[Literal["privshare.withdrawal/1"], Field(alias="schema")] = "privshare.withdrawal/1"
    site: Name
    # Digest of the study, and SHA-256 of the policy file, as they were.
    study: Digest
    policy: Digest
    made: AwareDatetime


def signature_path(policy: Path) -> Path:
    """Where the signature of a policy is."""
    return policy.with_name(policy.name + ".sig")


def withdrawal_path(policy: Path) -> Path:
    """Where the record is that ends a consent; that it is there is enough."""
    return policy.with_name(policy.name + _ENDING)


def check_consent(policy: Path) -> None:
    """Refuse once consent was withdrawn, whatever the record holds.

    Raises:
        PolicyError: it was, with the code CONSENT_WITHDRAWN.
    """
    if withdrawal_path(policy).exists():
        raise PolicyError(
            f"{withdrawal_path(policy)}: this site's consent was withdrawn; a new one is "
            "`privshare-client approve --after-withdrawal`",
            ExitCode.CONSENT_WITHDRAWN,
        )


def read_withdrawal(policy: Path) -> Withdrawal | None:
    """The record, if there is one that can be read; a damaged one ends consent all the same."""
    try:
        return Withdrawal.decode(read_paper_file(withdrawal_path(policy)))
    except MembershipError:
        return None


def withdraw(policy: Path, withdrawal: Withdrawal, key: SigningKey) -> Withdrawal:
    """Write the record, on disk before anything else, and take the policy's signature away.

    Guarantees: once it returned, no request is answered and no site starts, also where the record is deleted: nothing
    is signed any more. Withdrawing again changes nothing.

    Raises:
        PolicyError: the disk fails; where the record is there, consent has ended.
    """
    path = withdrawal_path(policy)
    signed = withdrawal.signed(key)
    try:
        if not path.exists():
            write_durably(path, signed.encode())
        signature_path(policy).unlink(missing_ok=True)
        sync_folder(policy.parent)
    except OSError as error:
        raise PolicyError(f"{path}: the withdrawal cannot be written ({error.strerror})") from None
    return read_withdrawal(policy) or signed


def set_aside(policy: Path, *, now: datetime) -> None:
    """Keep the record of a withdrawal that a new consent came after, under a name that ends no consent.

    Raises:
        PolicyError: the disk fails, and consent stays withdrawn.
    """
    path = withdrawal_path(policy)
    try:
        if path.exists():
            path.replace(path.with_name(f"{path.name}-before-{now:%Y%m%dT%H%M%S%fZ}"))
            sync_folder(path.parent)
    except OSError as error:
        raise PolicyError(f"{path}: cannot be set aside ({error.strerror})") from None
