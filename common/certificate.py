"""What was spent, in a form that a stranger can recompute: per site every event, and the guarantee that follows."""

from collections.abc import Mapping, Sequence
from typing import Any

from common.privacy import budget
from common.privacy.events import GaussianEvent
from common.study import Study

CERTIFICATE_SCHEMA = "privshare.certificate/1"

NOT_COVERED = (
    "A unit that is present at m sites has the composed loss of m sites: squared mu adds up.",
    "Properties of a whole population are not hidden: only the part that one unit plays in them is.",
    "A site that lies about its own data or its own noise is not detected by this certificate.",
    "That a site refuses to take part, because its table is not as the study says, is not hidden.",
    "Timing, message order and the existence of a run are not covered.",
    "The guarantee assumes that each site's own host is honest and that its ledger is complete.",
)


def make_certificate(
    study: Study,
    *,
    run: str,
    events: Mapping[str, Sequence[GaussianEvent]],
    budgets: Mapping[str, float],
    ledger_heads: Mapping[str, str],
    files: Mapping[str, str],
) -> dict[str, Any]:
    """The certificate of one run, unsigned.

    Args:
        study: with unit, epsilon and delta.
        run: name of the run.
        events: by site, every release.
        budgets: by site, squared mu of each of its accounts.
        ledger_heads: by site, hash of its ledger's last entry.
        files: name -> SHA-256 of what is published.
    """
    seeded = any(event.noise != "csprng" for released in events.values() for event in released)
    delta = study.privacy.delta
    sites = {site: _site(events[site], budgets[site], ledger_heads[site], delta) for site in sorted(events)}
    worst = max(entry["epsilon"] for entry in sites.values())
    statement = (
        f"For every {study.unit.name} present at one site, everything that left the site is ({worst:.6g}, {delta:g})-"
        f"differentially private, add or remove one {study.unit.name} with all its records."
    )
    return {
        "schema": CERTIFICATE_SCHEMA,
        "study": {"name": study.name, "digest": study.digest()},
        "run": run,
        "unit": study.unit.name,
        "relation": "add or remove one unit at one site",
        "noise_trust": "local",
        "guarantee": None
        if seeded
        else {"epsilon": worst, "delta": delta, "limit_epsilon": study.privacy.epsilon, "statement": statement},
        "void_because": "the noise was drawn from a seed that is known (test mode)" if seeded else None,
        "accountant": "Gaussian DP filter: the sum of squared mu of each account stays below its budget",
        "sites": sites,
        "not_covered": list(NOT_COVERED),
        "files": dict(files),
        "signature": None,
    }


def _site(events: Sequence[GaussianEvent], squared_mu: float, ledger_head: str, delta: float) -> dict[str, Any]:
    spent = {
        account: budget.total([event.spend for event in events if event.account == account])
        for account in ("train", "holdout")
    }
    # A unit is in exactly one account, so the larger of the two is what it can lose.
    return {
        "epsilon": budget.epsilon_of(mu=max(spent.values()) ** 0.5, delta=delta),
        "delta": delta,
        "budget_squared_mu": squared_mu,
        "spent_squared_mu": spent,
        "ledger_head": ledger_head,
        "events": [event.as_dict() for event in events],
    }
