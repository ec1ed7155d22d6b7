"""What was spent, in a form that a stranger can recompute: per site every event, and the guarantee that follows.

Who signs what: a site its events and its bound, its peers the head of its ledger, the coordinator all of it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from common.errors import LedgerError
from common.privacy import budget
from common.privacy.events import GaussianEvent
from common.privacy.ledger import canonical
from common.privacy.noise import DRAW_ERROR
from common.privacy.recount import check_certificate
from common.privacy.signatures import SigningKey
from common.privacy.spending import Spending
from common.privacy.witness import MOST_WITNESSES, Attestation, Statement
from common.study import Study

CERTIFICATE_SCHEMA: Final = "privshare.certificate/2"
SIGNING_PURPOSE: Final = "certificate"
RELATION: Final = "add or remove one unit at one site"
ACCOUNTANT: Final = "a filter: the sum of each account's spends stays below its bound, fixed before the first"
VOID: Final = "the noise was drawn from a seed that is known (test mode)"

NOT_COVERED = (
    "A unit that is present at m sites has the composed loss of m sites: squared mu adds up.",
    "Properties of a whole population are not hidden: only the part that one unit plays in them is.",
    "A site that lies about its own data or its own noise is not detected by this certificate.",
    "That a site refuses to take part, because its table is not as the study says, is not hidden.",
    "Timing, message order and the existence of a run are not covered.",
    "The guarantee assumes that each site's own host is honest and that its ledger is complete.",
    "What a site spent after the entry of its ledger that is named here is not counted here; the site can tell.",
    "Whether a site was left out of this certificate, only the sites can tell: ask for each of them by its key.",
)

_MASKED = (
    "Masks hide which site said what, if X25519, HKDF-SHA256, ChaCha20 and Ed25519 are what they are taken for.",
    "They hide it from whoever is no site, and from sites that work together while two others are not among them.",
    "The guarantee does not rest on masks: each site's noise is all that its claim needs.",
    "The sum over all sites is not hidden, and neither is what one site said from all others together.",
)


@dataclass(frozen=True)
class Signer:
    """Who vouches for a certificate.

    key: that signs.
    kind: the coordinator that sites know, or whoever simulated all of them.
    """

    key: SigningKey
    kind: Literal["coordinator", "simulation"]

    def sign(self, certificate: Mapping[str, Any]) -> dict[str, Any]:
        """The certificate with a signature over all of it."""
        said = {"signer": self.kind, "key": self.key.public}
        body = signed_body({**certificate, "signature": said})
        return {**certificate, "signature": {**said, "signature": self.key.sign(body, purpose=SIGNING_PURPOSE)}}


def signed_body(certificate: Mapping[str, Any]) -> bytes:
    """What the signature of a certificate covers: everything but its own digits."""
    said = {name: value for name, value in certificate["signature"].items() if name != "signature"}
    return canonical({**certificate, "signature": said})


@dataclass(frozen=True)
class SiteRecord:
    """What one site spent on a study.

    received: the event of every release that came, in any order.
    spending: what the site signed that it spent, whether or not it came.
    key: its public key.
    ledger_head: its last signed statement of its ledger.
    attestations: what other sites signed of that ledger.
    """

    received: Sequence[GaussianEvent]
    spending: Spending
    key: str
    ledger_head: Statement
    attestations: Sequence[Attestation]

    @property
    def events(self) -> Sequence[GaussianEvent]:
        """What counts, oldest first."""
        return self.spending.events


def not_covered(study: Study) -> list[str]:
    """What the guarantee does not say."""
    return [*NOT_COVERED, *(_MASKED if study.privacy.noise_trust == "masked" else ())]


def noise_trust(study: Study) -> str:
    """Whose noise the guarantee rests on, in words."""
    return "local, sums masked" if study.privacy.noise_trust == "masked" else "local"


def attestations_needed(study: Study, sites: int) -> int:
    """How many other sites must have attested the head of each ledger, of a run with so many sites."""
    return min(min(study.rounds.quorum or sites, sites) - 1, MOST_WITNESSES)


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
    signer: Signer,
    gates: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The certificate of one run; recounted by the second accountant before it is signed.

    Args:
        study: with unit, epsilon and delta.
        run: name of the run.
        sites: by name.
        files: name -> SHA-256 of what is published.
        signer: of the certificate.
        gates: that were passed before, with figures that may be public.

    Raises:
        LedgerError: the two accountants disagree, a site spent more than its bound, or something came of it that it
            does not say that it has spent.
    """
    for name, site in sites.items():
        spent = list(site.events)
        for event in site.received:
            if event not in spent:
                raise LedgerError(f"site {name}: released what it does not say that it has spent")
            spent.remove(event)
    seeded = any(event.noise != "csprng" for site in sites.values() for event in site.events)
    delta = study.privacy.delta
    entries = {name: _entry(sites[name], study) for name in sorted(sites)}
    worst = max(entry["epsilon"] for entry in entries.values())
    statement = guarantee_statement(study, epsilon=worst)
    certificate = {
        "schema": CERTIFICATE_SCHEMA,
        "study": {"name": study.name, "digest": study.digest()},
        "run": run,
        "unit": study.unit.name,
        "relation": RELATION,
        "noise_trust": noise_trust(study),
        "guarantee": None
        if seeded
        else {"epsilon": worst, "delta": delta, "limit_epsilon": study.privacy.epsilon, "statement": statement},
        "void_because": VOID if seeded else None,
        "accountant": ACCOUNTANT,
        "sites": entries,
        "not_covered": not_covered(study),
        "gates": [dict(gate) for gate in gates],
        "files": dict(files),
    }
    check_certificate(certificate)
    return signer.sign(certificate)


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
        "bound": site.spending.bound,
        "spent": spent,
        "key": site.key,
        "ledger_head": asdict(site.ledger_head),
        "attestations": [asdict(one) for one in site.attestations],
        "events": [event.as_dict() for event in site.events],
        # Over events and bound, as `Spending` with the study and the head that are named here.
        "signature": site.spending.signature,
    }
