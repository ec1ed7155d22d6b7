"""The site's own rules. The coordinator may ask; what this file does not allow is refused before anything is spent."""

import hashlib
import math
from collections.abc import Callable
from datetime import UTC, date, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeGuard, TypeVar

import numpy as np
from pydantic import AfterValidator, Field, ValidationError, model_validator

from client.consent import check_consent, signature_path
from client.sources import TYPES, SourceSettings
from common.data.encoding import Grid
from common.data.queries import Query, catalogue
from common.data.schema import Number, Section, Text, Whole
from common.data.tables import sizes_of
from common.errors import ExitCode, PolicyError, StudyError
from common.files import write_durably
from common.models.monitor import BANDS
from common.privacy.events import GaussianEvent
from common.privacy.ledger import Asset
from common.privacy.mechanism import MAXIMUM_EMPHASIS
from common.privacy.signatures import SigningKey, is_signed
from common.privacy.witness import MOST_WITNESSES
from common.study import STEPS, Study, explain, read_yaml
from common.wire.membership import Address, is_ip, split_address
from common.wire.messages import KEPT, Request

POLICY_SCHEMA: Final = "privshare.policy/1"
MAX_CELLS = 20_000_000
MAX_STATEMENTS = 10_000
MAX_WEIGHT = 1e100
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_PURPOSE = "policy"
_Loaded = TypeVar("_Loaded", bound=Section)


def _on_loopback(address: str) -> str:
    host, _ = split_address(address)
    if host != "localhost" and not (is_ip(host) and ip_address(host).is_loopback):
        raise ValueError("expected localhost or another loopback address")
    return address


class SiteSettings(Section):
    """site.yaml: where a site's own things are. Nothing in it widens or narrows what may leave."""

    site: Annotated[Text, Field(pattern=_NAME)]
    # The tables of this site's records: files, or tables of a database.
    source: SourceSettings
    # The study file that was read and approved here.
    study: Path
    # What this site allows; beside it, with .sig at the end, the site's signature.
    policy: Path
    # Of the data asset, whatever studies run on it.
    ledger: Path
    # The site's keys, its sealed replies and what it saw of others' ledgers; private to the site.
    state: Path
    # Where the coordinator is reached, host:port, and the certificate of its CA; a simulation has neither.
    superlink: Address | None = None
    ca: Path | None = None
    # Where this site says that it is well, host:port; on loopback, since anybody may ask.
    health: Annotated[Address, AfterValidator(_on_loopback)] | None = None


class _SourceFile(Section):
    source: SourceSettings


PublicKey = Annotated[Text, Field(pattern=r"^[0-9a-f]{64}$")]


class PolicyFile(Section):
    """policy.yaml: what a site allows, signed with its own key. It may narrow the study, never widen it."""

    schema_version: Annotated[Literal["privshare.policy/1"], Field(alias="schema")]
    site: Annotated[Text, Field(pattern=_NAME)]
    # Names the rows that the ledger protects: every study on them has the same one.
    asset: Annotated[Text, Field(pattern=_NAME)]
    # Digest of the approved study: a study changed by one value is another study.
    approved: PublicKey
    # The most that one study may spend, and that all studies on the asset may spend together, for ever.
    max_epsilon: Annotated[Number, Field(gt=0)]
    max_delta: Annotated[Number, Field(gt=0, lt=1)]
    total_epsilon: Annotated[Number, Field(gt=0)]
    total_delta: Annotated[Number, Field(gt=0, lt=1)]
    # No release has less noise: standard deviation over what one unit can change. Whoever asks for less gets this.
    least_noise: Annotated[Number, Field(ge=1e-3, le=1e6)] | None = None
    # masked: no study in which the coordinator would see this site's answers, not only sums; without it, either.
    noise_trust: Literal["masked"] | None = None
    # Columns and channels that studies may use; without it, those of the approved study.
    columns: tuple[Text, ...] | None = None
    # Public key of the coordinator: no order is answered that it did not sign.
    coordinator: PublicKey
    # The last day on which anything is released.
    expires: date | None = None
    # Public keys of the other sites, and how many of them must confirm this site's ledger; without it, all. Of more
    # than MOST_WITNESSES so many are asked, by a choice of this site's own.
    peers: dict[Annotated[Text, Field(pattern=_NAME)], PublicKey] = Field(default_factory=dict)
    witnesses: Annotated[Whole, Field(ge=0, le=MOST_WITNESSES)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.site in self.peers:
            raise ValueError("peers: holds this site itself")
        if len(set(self.peers.values())) < len(self.peers):
            raise ValueError("peers: two have the same key, and would be one witness")
        if (self.witnesses or 0) > len(self.peers):
            raise ValueError("witnesses: more than there are peers")
        return self


def load_site_settings(path: Path) -> SiteSettings:
    """Read and validate a site file.

    Raises:
        StudyError: what is wrong, by its path in the file.
    """
    return _load(path, SiteSettings, what="site file")


def read_source_settings(path: Path) -> dict[str, Any]:
    """The section `source` of a file, validated, as a site file will hold it.

    Raises:
        StudyError: what is wrong, by its path in the file.
    """
    found = _load(path, _SourceFile, what="file with `source`").source
    own = {name: value.absolute() for name, value in found if isinstance(value, Path)}
    return found.model_copy(update=own).model_dump(mode="json", by_alias=True, exclude_none=True)


def load_policy(path: Path, *, public: str) -> PolicyFile:
    """Read and validate a policy, its signature first.

    Args:
        path: of the policy.
        public: the site's own public key.

    Raises:
        PolicyError: consent was withdrawn, or it is not signed by the site, or cannot be read.
        StudyError: what is wrong, by its path in the file.
    """
    check_consent(path)
    try:
        signature = signature_path(path).read_text(encoding="ascii").strip()
        body = path.read_bytes()
    except (OSError, ValueError):
        raise PolicyError(f"{path}: not signed by this site; read it, then `privshare-client approve`") from None
    if not is_signed(body, signature, purpose=_PURPOSE, public=public):
        raise PolicyError(f"{path}: was changed since this site signed it; read it, then `privshare-client approve`")
    return read_policy(path)


def read_policy(path: Path) -> PolicyFile:
    """Validate a policy whatever its signature.

    Raises:
        StudyError: what is wrong, by its path in the file.
    """
    return _load(path, PolicyFile, what="policy")


def policy_digest(path: Path) -> str:
    """SHA-256 of a policy as it stands; every answer of the site names it.

    Raises:
        PolicyError: it cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise PolicyError(f"{path}: cannot be read ({error.strerror})") from None


def sign_policy(path: Path, key: SigningKey) -> None:
    """Sign a policy as it stands.

    Raises:
        OSError: it cannot be read, or the signature not be written.
    """
    write_durably(signature_path(path), (key.sign(path.read_bytes(), purpose=_PURPOSE) + "\n").encode())


def today_utc() -> date:
    """By which policies expire."""
    return datetime.now(UTC).date()


def _load(path: Path, model: type[_Loaded], *, what: str) -> _Loaded:
    try:
        return model.model_validate(read_yaml(path, what=what))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise StudyError(f"{path}: {_explain(first, model)}") from None


def _explain(fault: Any, model: type[Section]) -> str:
    """As `explain`; of `source` nothing is shown, since somebody may have put a password in the wrong place."""
    if fault["loc"][:1] != ("source",):
        return explain(fault, model)
    where = fault["loc"][1:]
    if fault["type"] == "missing" and not where:
        return explain(fault, model)
    if not where:
        return f"source: expected a `type`: {', '.join(TYPES)}"
    kind, *inside = where  # the type is not a level of the file
    line = explain({**fault, "loc": tuple(inside), "input": None}, TYPES[kind])
    return f"source.{line}" if inside else f"source: {line}"


class SitePolicy:
    """What this site allows, fixed when it starts."""

    def __init__(self, settings: SiteSettings, policy: PolicyFile, study: Study, *, today: Callable[[], date]) -> None:
        """Bind the policy to one approved study.

        Args:
            settings: of the site.
            policy: its signature checked.
            study: as it lies at the site.
            today: the date, asked before every answer.

        Raises:
            PolicyError: the study is not the approved one, uses a column that is not allowed, or the policy is of
                another site or has expired.
        """
        if policy.site != settings.site:
            raise PolicyError(f"{settings.policy}: the policy of another site")
        if study.digest() != policy.approved:
            raise PolicyError(f"{settings.study}: the study is not the one that this site approved")
        if settings.source.preset is None and (settings.source.series is None) != (study.windows is None):
            raise PolicyError("source.series: expected in the site file if, and only if, the study has windows")
        used = {*study.columns, *study.channels}
        if policy.columns is not None and (more := sorted(used - set(policy.columns))):
            raise PolicyError(f"columns: the policy does not allow {', '.join(more)}")
        if policy.noise_trust == "masked" and study.privacy.noise_trust == "local":
            raise PolicyError("noise_trust: the policy demands masks, and the study has none")
        if study.privacy.noise_trust != "local" and not policy.peers:
            raise PolicyError("peers: masks need another site; expected the keys of all members of the federation")
        self._study, self._file, self._today, self._path = study, policy, today, settings.policy
        self._check_date()
        self._bound = min(self._bound_of(*self.limits), self.asset.bound)

    @property
    def limits(self) -> tuple[float, float]:
        """The epsilon and the delta of this study at this site: the smaller of the study's and the site's own."""
        asked, allowed = self._study.privacy, self._file
        return min(asked.epsilon, allowed.max_epsilon), min(asked.delta, allowed.max_delta)

    @property
    def bound(self) -> float:
        """The most that each account of units may spend: by the smaller of the study's epsilon and the site's own."""
        return self._bound

    @property
    def asset(self) -> Asset:
        """What this site's ledger is for."""
        policy, bound = self._file, self._bound_of(self._file.total_epsilon, self._file.total_delta)
        return Asset(policy.site, policy.asset, self._study.unit.key or "", self._study.accountant, bound)

    def _bound_of(self, epsilon: float, delta: float) -> float:
        """Rounded down by a part in 10^11, to digits that every machine agrees on: a ledger holds it for ever."""
        try:
            return float(f"{self._study.accountant.bound(epsilon=epsilon, delta=delta) * (1 - 1e-11):.12g}")
        except ValueError:
            raise PolicyError(
                f"epsilon={epsilon:g}, delta={delta:g}: no practical noise level keeps within them"
            ) from None

    @property
    def is_local(self) -> bool:
        """Whether the study's discriminators stay at the sites."""
        return self._study.discriminators.scope == "local"

    def keeps(self, request: Request) -> bool:
        """Whether the release that a request asks for stays here, and only its event is told."""
        return self.is_local and request.kind in KEPT

    @property
    def is_masked(self) -> bool:
        """Whether what leaves of releases is masked. No request has a say in it."""
        return self._study.privacy.noise_trust != "local"

    def check_masks(self, request: Request) -> list[object]:
        """What sites announced of their keys for masks, not read yet.

        Raises:
            PolicyError: the study has no masks, or as `check_list`.
        """
        if not self.is_masked:
            raise PolicyError("request.kind: the study has no masks")
        return self.check_list(request, "announcements")

    def check(self, request: Request) -> None:
        """Refuse a request after consent was withdrawn, of another study, after the last day, or under an odd name.

        Raises:
            PolicyError: any of them.
        """
        check_consent(self._path)  # anew each time: it may end while the site runs
        if request.study != self._file.approved:
            raise PolicyError("request.study: not the study that this site approved")
        # Half of a surrogate pair is text to JSON, and no file can hold it.
        if not request.identity.isprintable():
            raise PolicyError("request.name: expected printable text")
        self._check_date()

    def _check_date(self) -> None:
        if self._file.expires is not None and self._today() > self._file.expires:
            raise PolicyError("expires: the site's policy is no longer in force", ExitCode.POLICY_REFUSED)

    def spend_of(self, request: Request) -> float:
        """What the request may spend: the share of the budget that it asks for, down to the least noise.

        Raises:
            PolicyError: the share is not a number in (0, 1].
        """
        share = request.options.get("share")
        # NaN compares as false; a whole number may be too long to ask whether it is finite.
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise PolicyError("request.share: expected a number above 0, at most 1")
        return self.allowed_spend(request.kind, float(share))

    def allowed_spend(self, kind: str, share: float) -> float:
        """What a release of a kind may spend of the budget when it asks for a share of it."""
        return min(share * self._bound, self._most_spend(kind))

    def _most_spend(self, kind: str) -> float:
        """What a release with the least noise costs."""
        if self._file.least_noise is None:
            return math.inf
        sampling = self._study.critic.sampling if kind == "critic" else 1.0
        least = GaussianEvent(
            account="train",
            squared_sensitivity=1,
            noise_stddev=self._file.least_noise,
            cells=1,
            scale=1,
            noise="csprng",
            sampling=sampling,
        )
        return self._study.accountant.spend(least)

    def check_list(self, request: Request, name: str) -> list[object]:
        """What sites say of each other's ledgers, not read yet; each of them names one at most.

        Raises:
            PolicyError: not a list, or longer than any federation is large.
        """
        found = request.options.get(name)
        if not isinstance(found, list) or len(found) > MAX_STATEMENTS:
            raise PolicyError(f"request.{name}: expected a list of at most {MAX_STATEMENTS}")
        return found

    def check_nonces(self, request: Request) -> dict[str, str]:
        """The nonces for which sites want this one's attestation.

        Raises:
            PolicyError: not short texts by site.
        """
        nonces = request.options.get("nonces")
        if (
            not isinstance(nonces, dict)
            or len(nonces) > MAX_STATEMENTS
            or not all(isinstance(nonce, str) and len(nonce) <= 64 for nonce in nonces.values())
        ):
            raise PolicyError("request.nonces: expected a short text a site")
        return nonces

    def check_training(self, request: Request) -> None:
        """Bound the work that a training request may cause.

        Raises:
            PolicyError: more steps, or other numbers, than the study allows.
        """
        rate = request.options.get("learning_rates")
        if not _is_whole(request.options.get("steps"), most=self._study.site_steps):
            raise PolicyError("request.steps: expected at most what the study's `rounds` let a site take")
        if (
            not isinstance(rate, list)
            or len(rate) != 2
            or not all(isinstance(one, float) and 0 <= one <= 1 for one in rate)
        ):
            raise PolicyError("request.learning_rates: expected two numbers between 0 and 1")
        self.check_seed(request)

    def check_seed(self, request: Request) -> int:
        """The seed of what a request has made of a generator.

        Raises:
            PolicyError: none that a generator of random numbers takes.
        """
        seed = request.options.get("seed")
        if not _is_whole(seed, most=2**63 - 1):
            raise PolicyError("request.seed: expected a whole number from 0, below 2^63")
        return seed

    def check_step(self, request: Request) -> int:
        """The number of a step of this site's own critic within a measurement, from 0.

        Raises:
            PolicyError: none that the study's critic takes.
        """
        step = request.options.get("step")
        if not _is_whole(step, most=self._study.critic.steps - 1):
            raise PolicyError("request.step: expected a whole number from 0, below critic.steps of the study")
        return step

    def check_bins(self, bin_of: np.ndarray, grid: Grid) -> np.ndarray:
        """A map from cells to bins as a coordinator sent it, if it is one.

        Any map has the same sensitivity: a record is in one bin. What is checked is that it is a map, and keeps apart
        what counting and training tell by its place: missing is the last bin, and a number of steps is a bin.

        Raises:
            PolicyError: another length, type or numbering.
        """
        valid = bin_of.shape == (grid.n_cells,) and bin_of.dtype == np.int64
        if not valid or int(bin_of.min()) != 0 or len(np.unique(bin_of)) != int(bin_of.max()) + 1:
            raise PolicyError("request.bins: expected a bin for each cell, numbered from 0 without gaps")
        if grid.column.missing and bool((bin_of[:-1] >= bin_of[-1]).any()):
            raise PolicyError("request.bins: expected missing in the last bin, alone")
        if grid.name == STEPS and bool((np.diff(bin_of) != 1).any()):
            raise PolicyError("request.bins: expected a bin for each number of steps")
        return bin_of

    def check_tables(self, request: Request) -> tuple[list[Query], np.ndarray]:
        """The tables of the study's catalogue that a request names, and their emphasis, (tables,) int64.

        Raises:
            PolicyError: not numbers of the catalogue in rising order, or not an emphasis for each.
        """
        tables, emphasis = request.arrays.get("tables"), request.arrays.get("emphasis")
        known = catalogue(len(self._study.measured), self._study.windows)
        if (
            tables is None
            or tables.dtype != np.int64
            or tables.ndim != 1
            or not 0 < len(tables) <= len(known)
            or bool((np.diff(tables) <= 0).any())
            or not 0 <= tables[0] <= tables[-1] < len(known)
        ):
            raise PolicyError("request.tables: expected numbers of the study's catalogue, in rising order")
        if (
            emphasis is None
            or emphasis.dtype != np.int64
            or emphasis.shape != tables.shape
            or not 1 <= emphasis.min() <= emphasis.max() <= MAXIMUM_EMPHASIS
        ):
            raise PolicyError(f"request.emphasis: expected a whole number from 1 to {MAXIMUM_EMPHASIS} a table")
        return [known[number] for number in tables], emphasis

    def check_size(self, cells: int) -> None:
        """Bound the memory that one release may take.

        Raises:
            PolicyError: more cells than any useful release has.
        """
        if cells > MAX_CELLS:
            raise PolicyError(f"request.bins: expected at most {MAX_CELLS} cells in one release")

    def check_weights(self, request: Request, bins: list[np.ndarray]) -> np.ndarray:
        """The weights of a linear score, if they fit the bins.

        Raises:
            PolicyError: absent, too large, or of another shape or type.
        """
        weights = request.arrays.get("weights")
        expected = sum(sizes_of(bins)) + BANDS - 1
        if weights is None or weights.shape != (expected,) or weights.dtype != np.float64:
            raise PolicyError("request.weights: expected one number a bin and the band edges")
        # Sums beyond the floats would warn on this site's console, or not, by what is in a record.
        if float(np.abs(weights).max()) > MAX_WEIGHT:
            raise PolicyError(f"request.weights: expected numbers of at most {MAX_WEIGHT:g}")
        return weights


def _is_whole(value: object, *, most: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most
