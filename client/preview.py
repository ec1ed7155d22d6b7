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
from common.privacy.witness import state_head
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
    "describe": "nothing: budget, public key, signed head and events of the ledger",
    "witness": "nothing: what this site saw of the others' ledgers, signed",
    "confirm": "nothing: how many others confirmed this site's ledger",
    "masks": "nothing: a public key for the masks of this run",
    "one_way": "in which cell of each column it is, by label, below the noise",
    "tables": "in which cell of each table it is, by label, below the noise",
    "embedding": "its place in a fixed random map of its columns, by label, below the noise",
    "critic": "where it would move a discriminator, clipped, below the noise",
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
    overhead = _overhead(study, policy, site=site, events=sum(item.times for item in items if item.account))
    lines = tuple(_line(item, study, policy, overhead=overhead, peers=peers) for item in items)
    epsilon, delta = policy.limits
    return Preview(study.name, study.digest(), study.unit.name, epsilon, delta, peers + 1, lines)


def _line(item: Item, study: Study, policy: SitePolicy, *, overhead: int, peers: int) -> Line:
    # What peers sign of each other's ledgers grows with the federation.
    own = overhead * (peers if item.kind == "witness" else 1)
    per_number = _PARAMETER_BYTES if item.kind == "train" else _NUMBER_BYTES
    size = own + (0 if item.is_kept else per_number * item.cells)
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


def _overhead(study: Study, policy: SitePolicy, *, site: str, events: int) -> int:
    """Bytes of a reply's signed header at the end of a run, when the site states all that it has spent."""
    key, digest = SigningKey.from_seed(bytes(32)), "0" * 64
    head = Head(digest, 2 * events, digest)
    event = GaussianEvent(
        account="holdout", squared_sensitivity=10**9, noise_stddev=123456789.123456789, cells=10**6, scale=10**6,
        noise="csprng",
    )  # fmt: skip
    spending = Spending(site, study.digest(), head, policy.bound, (event,) * events).signed(key)
    stated = state_head(site, head, key, past=dict.fromkeys(range(8), digest))
    facts = {"event": event.as_dict(), "ledger_head": asdict(stated), "spending": spending.as_dict()}
    body = Reply(site, facts).encode()
    order = Order.of(body, study=study.digest(), site=ANY_SITE)
    return len(
        answer_to(
            order.seal(b"", key),
            study=study.digest(),
            request=digest,
            site=site,
            policy=digest,
            head=head,
            body=body,
            key=key,
        )
    )
