"""What would leave a site in one run of its study, before anything is spent. No row is read.

Kinds, numbers of messages, shares and sizes come from `common.wire.agenda`, from which the coordinator takes its shares
too; noise is that of the site's own budget.
"""

from dataclasses import asdict, dataclass
from typing import Any, Final

from client.policy import SitePolicy
from common.privacy.events import GaussianEvent
from common.privacy.ledger import Head
from common.privacy.signatures import SigningKey
from common.privacy.spending import Spending
from common.privacy.witness import MOST_WITNESSES, Attestation, state_head
from common.study import Study
from common.wire.agenda import Item, agenda
from common.wire.envelopes import ANY_SITE, Order, answer_to
from common.wire.messages import Reply

NEVER: Final = (
    "records, or any cell of them",
    "keys of units, or their exact number",
    "counts, sums, gradients or losses without their noise",
    "which columns or cells break a rule: a refusal is the name of a rule",
    "this site's private keys, its secret that holds units out, its logs and its files",
)
"""What no message holds."""

_SAYS: Final = {
    "describe": "nothing: budget, public key, signed head and events of the ledger, witnesses that it asks",
    "witness": "nothing: what this site saw of the others' ledgers, signed",
    "confirm": "nothing: how many others confirmed this site's ledger",
    "masks": "nothing: a public key for the masks of this run",
    "one_way": "in which cell of each column it is, by label, below the noise",
    "tables": "in which cell of each table it is, by label, below the noise",
    "embedding": "its place in a fixed random map of its columns, by label, below the noise",
    "critic": "where it would move a discriminator, clipped, below the noise; tables get what it leaves",
    "verdict": "whether a discriminator took it for real, if it is held out, below the noise",
    "monitor": "its label and the band of a score, if it is held out, below the noise",
    "train": "nothing more: a generator, trained on what was released already",
}
_KEPT: Final = "it stays here; only that it was paid for is told"
_TRAINED_ON_OWN: Final = "what this site's own noised answers, which stay here, say of it, and no more"
_COORDINATOR: Final = "the coordinator"
_SUMMED: Final = "the coordinator; the other sites learn the sum"
_EVERYBODY: Final = "the coordinator, and through it the other sites"
_NUMBER_BYTES: Final = 8
_PARAMETER_BYTES: Final = 4


@dataclass(frozen=True)
class Line:
    """Messages of one kind.

    readers: who can read what one of them says.
    bytes: of one message, at most where `is_exact`, else about.
    noise: standard deviation over what one unit can change, of one message with an equal share; None without a release.
    says: about one unit.
    """

    kind: str
    times: int
    readers: str
    bytes: int
    is_exact: bool
    account: str
    share: float
    noise: float | None
    says: str


@dataclass(frozen=True)
class Preview:
    """All that would leave.

    epsilon, delta: that all of it together costs a unit, at most.
    """

    study: str
    digest: str
    unit: str
    epsilon: float
    delta: float
    sites: int
    lines: tuple[Line, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "lines": [asdict(line) for line in self.lines], "never": list(NEVER)}


def preview(study: Study, policy: SitePolicy, *, site: str, peers: int) -> Preview:
    """What would leave a site in one run, in the order of the first message of each kind.

    Args:
        study: as approved here, or about to be.
        policy: bound to it.
        site: its name.
        peers: other sites.
    """
    items = agenda(study, sites=peers + 1)
    speaker = _Speaker(study, policy, site, peers, sum(item.times for item in items if item.account))
    lines = tuple(_line(item, study, policy, speaker) for item in items)
    epsilon, delta = policy.limits
    return Preview(study.name, study.digest(), study.unit.name, epsilon, delta, peers + 1, lines)


def _line(item: Item, study: Study, policy: SitePolicy, speaker: "_Speaker") -> Line:
    per_number = _PARAMETER_BYTES if item.kind == "train" else _NUMBER_BYTES
    size = speaker.overhead(item) + (0 if item.is_kept else per_number * item.cells)
    noise = None
    if item.account is not None:
        sampling = study.critic.sampling if item.kind == "critic" else 1.0
        spend = policy.allowed_spend(item.kind, item.share / item.times)
        noise = study.accountant.noise_stddev(squared_sensitivity=1, spend=spend, sampling=sampling)
    return Line(
        item.kind if not item.part else f"{item.kind}: {item.part}",
        item.times,
        _readers(item, study),
        size,
        item.is_exact,
        item.account or "",
        item.share,
        noise,
        _says(item, study),
    )


def _readers(item: Item, study: Study) -> str:
    if item.is_kept:
        return "nobody"
    if item.account is None:
        return _COORDINATOR if item.kind in ("confirm", "train") else _EVERYBODY
    if study.privacy.noise_trust == "masked":
        return "nobody: masked, the sum over all sites alone can be read"
    return _SUMMED


def _says(item: Item, study: Study) -> str:
    if item.is_kept:
        return _KEPT
    if item.kind == "train" and study.discriminators.scope == "local":
        return _TRAINED_ON_OWN
    return _SAYS[item.kind]


@dataclass(frozen=True)
class _Speaker:
    """Says what a site says beside numbers, at the end of a run, when it states all that it has spent."""

    study: Study
    policy: SitePolicy
    site: str
    peers: int
    events: int

    def overhead(self, item: Item) -> int:
        """Bytes of an answer without its numbers."""
        body = Reply(self.site, self._facts(item)).encode()
        order = Order.of(body, study=self.study.digest(), site=ANY_SITE)
        return len(
            answer_to(
                order.seal(b"", _KEY),
                study=self.study.digest(),
                request=_DIGEST,
                site=self.site,
                policy=_DIGEST,
                head=self._head,
                body=body,
                key=_KEY,
            )
        )

    @property
    def _head(self) -> Head:
        return Head(_DIGEST, 2 * self.events, _DIGEST)

    def _facts(self, item: Item) -> dict[str, Any]:
        participants = {"participants": _DIGEST} if self.policy.is_masked else {}
        if item.account is not None:
            return {"event": _EVENT.as_dict(), **self._ledger(), **participants}
        if item.kind == "describe":
            mask = {"mask": dict.fromkeys(("public", "signature", "study", "run", "site"), _DIGEST)}
            names = [self.site] * min(self.peers, MOST_WITNESSES)
            known = {
                "bound": self.policy.bound, "key": _DIGEST, "nonce": _DIGEST[:32], "witnesses": names, **self._ledger(),
            }  # fmt: skip
            return {**known, **(mask if self.policy.is_masked else {})}
        if item.kind == "witness":
            stated = state_head(self.site, self._head, _KEY)
            attested = Attestation.of(self.site, self.site, stated, _DIGEST[:32]).signed(_KEY)
            return {"attestations": [asdict(attested)] * min(self.peers, MOST_WITNESSES)}
        other: dict[str, dict[str, Any]] = {"confirm": {"confirmed": self.peers}, "masks": participants}
        return other.get(item.kind, {})

    def _ledger(self) -> dict[str, Any]:
        spent = (_EVENT,) * self.events
        spending = Spending(self.site, self.study.digest(), self._head, self.policy.bound, spent).signed(_KEY)
        stated = state_head(self.site, self._head, _KEY, past=dict.fromkeys(range(_SHOWN), _DIGEST))
        return {"ledger_head": asdict(stated), "spending": spending.as_dict()}


_KEY: Final = SigningKey.from_seed(bytes(32))
_DIGEST: Final = "0" * 64
_SHOWN: Final = 8
"""Earlier entries that a statement shows; see `client.witnesses`."""
_EVENT: Final = GaussianEvent(
    account="holdout",
    squared_sensitivity=10**9,
    noise_stddev=123456789.123456789,
    cells=10**6,
    scale=10**6,
    noise="csprng",
)
"""As long as one gets."""
