"""What was spent, in a form that a stranger can recompute: per site every event, and the guarantee that follows."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from common.privacy import budget
from common.privacy.events import GaussianEvent
from common.privacy.noise import DRAW_ERROR
from common.privacy.recount import check_certificate
from common.privacy.witness import Attestation, Statement
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

_MASKED = (
    "Masks hide which site said what, if X25519, HKDF-SHA256, ChaCha20 and Ed25519 are what they are taken for.",
    "They hide it from whoever is no site, and from sites that work together while two others are not among them.",
    "The guarantee does not rest on masks: each site's noise is all that its claim needs.",
    "The sum over all sites is not hidden, and neither is what one site said from all others together.",
)


@dataclass(frozen=True)
class SiteRecord:
    """What one site spent in a run.

    events: every release, oldest first.
    bound: the most that each of its accounts may spend, as the study's accountant counts.
    key: its public key.
    ledger_head: its last signed statement of its ledger.
    attestations: what other sites signed of that ledger.
    """

    events: Sequence[GaussianEvent]
    bound: float
    key: str
    ledger_head: Statement
    attestations: Sequence[Attestation]


def guarantee_statement(study: Study, *, epsilon: float) -> str:
    """The guarantee in one sentence: unit, relation, epsilon and delta."""
    return (
        f"For every {study.unit.name} present at one site, everything that left the site is ({epsilon:.6g}, "
        f"{study.privacy.delta:g})-differentially private, add or remove one {study.unit.name} with all its records."
    )


def make_certificate(
    study: Study,
    *,
    run: str,
    sites: Mapping[str, SiteRecord],
    files: Mapping[str, str],
    gates: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The certificate of one run, unsigned; recounted by the second accountant before it is returned.

    Args:
        study: with unit, epsilon and delta.
        run: name of the run.
        sites: by name.
        files: name -> SHA-256 of what is published.
        gates: that were passed before, with figures that may be public.

    Raises:
        LedgerError: the two accountants disagree, or a site spent more than its bound.
    """
    seeded = any(event.noise != "csprng" for site in sites.values() for event in site.events)
    delta, masked = study.privacy.delta, study.privacy.noise_trust == "masked"
    entries = {name: _entry(sites[name], study) for name in sorted(sites)}
    worst = max(entry["epsilon"] for entry in entries.values())
    statement = guarantee_statement(study, epsilon=worst)
    certificate = {
        "schema": CERTIFICATE_SCHEMA,
        "study": {"name": study.name, "digest": study.digest()},
        "run": run,
        "unit": study.unit.name,
        "relation": "add or remove one unit at one site",
        "noise_trust": "local, sums masked" if masked else "local",
        "guarantee": None
        if seeded
        else {"epsilon": worst, "delta": delta, "limit_epsilon": study.privacy.epsilon, "statement": statement},
        "void_because": "the noise was drawn from a seed that is known (test mode)" if seeded else None,
        "accountant": "a filter: the sum of each account's spends stays below its bound, fixed before the first",
        "sites": entries,
        "not_covered": [*NOT_COVERED, *(_MASKED if masked else ())],
        "gates": [dict(gate) for gate in gates],
        "files": dict(files),
        "signature": None,
    }
    check_certificate(certificate)
    return certificate


def _entry(site: SiteRecord, study: Study) -> dict[str, Any]:
    accountant, delta = study.accountant, study.privacy.delta
    spent = {
        account: budget.total([accountant.spend(event) for event in site.events if event.account == account])
        for account in ("train", "holdout")
    }
    sampler_delta = sum(event.cells for event in site.events) * DRAW_ERROR
    return {
        "accountant": accountant.as_dict(),
        # A unit is in exactly one account, so the larger of the two is what it can lose.
        "epsilon": accountant.epsilon(spent=max(spent.values()), delta=math.nextafter(delta - sampler_delta, 0)),
        "delta": delta,
        "sampler_delta": sampler_delta,
        "bound": site.bound,
        "spent": spent,
        "key": site.key,
        "ledger_head": asdict(site.ledger_head),
        "attestations": [asdict(one) for one in site.attestations],
        "events": [event.as_dict() for event in site.events],
    }
