"""How a site stands, from its own files: what `status` says when nobody can be asked."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from client.consent import read_withdrawal, withdrawal_path
from client.enrolment import check_certificate
from client.holding import is_running
from client.keys import identity
from client.policy import SiteSettings, load_policy
from common.errors import PrivShareError
from common.privacy.ledger import read_ledger


@dataclass(frozen=True)
class Standing:
    """What the files say.

    running: whether a process holds the site.
    consent: "given", "withdrawn on ..." or why there is none.
    certificate_days: that are left; None where there is none that can be used.
    spent: share of what all studies may spend together.
    replies: sealed ones.
    last_reply: when the newest was written, ISO 8601 in UTC.
    """

    running: bool
    consent: str
    certificate_days: int | None
    spent: float | None
    replies: int
    last_reply: str | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def standing_of(settings: SiteSettings, *, now: datetime) -> Standing:
    """Read what is there; nothing is changed, and what is damaged is told as such."""
    replies = [path for path in (settings.state / "replies").glob("*") if path.suffix != ".part"]
    newest = max((path.stat().st_mtime for path in replies), default=None)
    return Standing(
        running=is_running(settings.state),
        consent=_consent(settings),
        certificate_days=_days(settings, now),
        spent=_spent(settings),
        replies=len(replies),
        last_reply=None if newest is None else datetime.fromtimestamp(newest, UTC).isoformat(timespec="seconds"),
    )


def _consent(settings: SiteSettings) -> str:
    if withdrawal_path(settings.policy).exists():
        record = read_withdrawal(settings.policy)
        return "withdrawn" if record is None else f"withdrawn on {record.made:%Y-%m-%d}"
    try:
        load_policy(settings.policy, public=identity(settings.state).public)
    except PrivShareError as error:
        return f"none: {error}"
    return "given"


def _days(settings: SiteSettings, now: datetime) -> int | None:
    try:
        return check_certificate(settings, now)
    except PrivShareError:
        return None


def _spent(settings: SiteSettings) -> float | None:
    try:
        book = read_ledger(settings.ledger)
    except PrivShareError:
        return None
    return float(sum(map(book.worst, book.bounds))) / float(book.asset["bound"])
