"""What was agreed: site file, study, policy, consent, and what the ledger has left."""

from typing import Final

from client.consent import check_consent
from client.doctor.checkup import Case, Check, Doubt, FaultError
from client.policy import load_policy
from client.replies import Replies
from client.witnesses import Witnesses
from common.errors import ExitCode, LedgerError, PolicyError
from common.privacy.ledger import Book, Ledger, read_ledger


def _site_file(case: Case) -> str:
    return f"{case.path}: {case.settings.site}"


def _study(case: Case) -> str:
    return f"{case.study.name}: valid"


def _policy(case: Case) -> str:
    policy = case.policy
    if policy.site != case.settings.site:
        raise PolicyError(f"{case.settings.policy}: the policy of another site")
    if policy.expires is not None and case.around.now().date() > policy.expires:
        raise FaultError(
            f"expires: {policy.expires}: the policy is no longer in force",
            ExitCode.POLICY_REFUSED,
            mend="if the study may go on: a later `expires` in policy.yaml, then: privshare-client approve",
        )
    return f"in force until {policy.expires or 'further notice'}"


def _approved(case: Case) -> str:
    if case.study.digest() != case.policy.approved:
        raise PolicyError(f"{case.settings.study}: the study is not the one that the policy approves")
    return f"digest {case.study.digest()[:16]}..."


def _consent(case: Case) -> str:
    try:
        check_consent(case.settings.policy)
    except PolicyError as error:
        raise FaultError(
            "consent was withdrawn", error.code, mend="to consent anew: privshare-client approve --after-withdrawal"
        ) from None
    load_policy(case.settings.policy, public=case.key.public)
    return "the policy is signed, and unchanged since"


def _limits(case: Case) -> str:
    epsilon, delta = case.bound.limits
    asked = case.study.privacy
    narrowed = " (narrowed by the policy)" if (epsilon, delta) != (asked.epsilon, asked.delta) else ""
    return f"this study: epsilon {epsilon:g}, delta {delta:g}{narrowed}"


def _ledger(case: Case) -> str:
    path = case.settings.ledger
    if not path.exists():
        Replies(case.settings.state).check([])
        if (case.settings.state / "witness.json").exists():
            raise LedgerError(f"{path}: is gone, and others have seen it; restore the newest one")
        return "nothing was spent yet"
    book = read_ledger(path)
    if book.public != case.key.public:
        raise LedgerError(f"{path}: was signed with another key than this site's")
    charged = [(study, request) for study, requests in book.charges.items() for request in requests]
    Replies(case.settings.state).check(charged)
    _check_witnessed(case, book)
    return f"whole: {len(book.hashes)} entries"


def _check_witnessed(case: Case, book: Book) -> None:
    """Open the ledger as a starting site does, if that changes nothing in it.

    Raises:
        LedgerError: it belongs to something else, or lacks an entry that others have seen.
    """
    study = case.study.digest()
    if study not in book.bounds:
        return
    ledger = Ledger(case.settings.ledger, asset=case.bound.asset, study=study, bound=case.bound.bound, key=case.key)
    Witnesses(
        case.settings.state / "witness.json",
        site=case.settings.site,
        key=case.key,
        ledger=ledger,
        peers=case.policy.peers,
        needed=0,
    )


def _budget(case: Case) -> str:
    if not case.settings.ledger.exists():
        return "all of it is left"
    book, study = read_ledger(case.settings.ledger), case.study.digest()
    total = case.bound.asset.bound
    left = max(0.0, 1 - float(sum(map(book.worst, book.bounds))) / total)
    own = 0.0 if study not in book.bounds else float(book.worst(study)) / book.bounds[study]
    said = f"{own:.2%} of this study's is spent; {left:.2%} of that of all studies is left"
    if own >= _SPENT:
        raise FaultError(said, ExitCode.BUDGET_REFUSED, mend="this study has had what it may have; nothing mends that")
    if left <= 1 - _SPENT:
        raise FaultError(
            said, ExitCode.BUDGET_REFUSED, mend="these rows have paid all that they may ever pay; nothing mends that"
        )
    if left * total < (1 - own) * case.bound.bound:
        raise Doubt(f"{said}: less than this study may ask for, and it will be refused in its course")
    return said


_SPENT: Final = 0.999
"""Of a budget: what is left buys a figure that drowns in its noise."""

CHECKS: Final = (
    Check("site file", _site_file, "correct site.yaml; docs/site.md explains every key"),
    Check("study", _study, "take study.yaml from the kit again, or ask the coordinator", ("site file",)),
    Check(
        "signing key",
        lambda case: f"state/identity.pem: {case.key.public[:16]}..., private",
        "chmod 600 state/identity.pem; if it is gone, restore it from the backup",
        ("site file",),
    ),
    Check("policy", _policy, "correct policy.yaml, then: privshare-client approve", ("site file",)),
    Check(
        "approved study",
        _approved,
        "restore the study.yaml that was approved; or read the new one, set `approved` and: privshare-client approve",
        ("study", "policy"),
    ),
    Check("consent", _consent, "read policy.yaml, then: privshare-client approve", ("signing key", "policy")),
    Check(
        "limits",
        _limits,
        "allow in policy.yaml what the study needs, or refuse the study; then: privshare-client approve",
        ("approved study",),
    ),
    Check(
        "ledger",
        _ledger,
        "restore the newest ledger.jsonl; if it is lost, this data's budget counts as spent (docs/site.md)",
        ("signing key", "limits"),
    ),
    Check("budget", _budget, "raise total_epsilon only if whoever answers for the data agrees", ("ledger",)),
)
