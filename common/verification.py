"""Whether a release is what its certificate says, and what its certificate says follows from what sites signed.

Everything is read from the folder; no network, no site and no torch is needed. Nothing in the folder is executed, and
whatever is in it, a check ends in a line. Epsilon is recomputed by `privacy.recount`, which shares no code with the
accountant that wrote the certificate.

What no folder can prove: that a key belongs to whom it should. Keys are taken from the certificate itself unless the
caller names them, and the outcome says which were taken so.
"""

import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final, Literal, NoReturn

import numpy as np
from pydantic import ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load

from common.certificate import (
    ACCOUNTANT,
    CERTIFICATE_SCHEMA,
    RELATION,
    SIGNING_PURPOSE,
    attestations_needed,
    guarantee_statement,
    noise_trust,
    not_covered,
    signed_body,
)
from common.data.schema import Section
from common.errors import PrivShareError, ReleaseFileError
from common.privacy.ledger import canonical
from common.privacy.noise import DRAW_ERROR
from common.privacy.recount import check_certificate, recount, recount_bounds, recount_spends
from common.privacy.signatures import is_signed
from common.privacy.spending import SPENDING_PURPOSE
from common.privacy.witness import Attestation, Statement
from common.study import Study, explain, parse_study

CERTIFICATE: Final = "certificate.json"
FACTS: Final = "generator/generator.json"
WEIGHTS: Final = "generator/generator.safetensors"
_GENERATOR_SCHEMA: Final = "privshare.generator/2"
CARD: Final = "card.md"
CROISSANT: Final = "croissant.json"
_TABLE: Final = "synthetic.csv"
_SERIES: Final = "synthetic-windows.csv"
_LONG: Final = 200
"""Letters of a reason that quotes what was found."""
_MOST_JSON: Final = 256 * 1024 * 1024
"""Bytes; what is longer is read as cut off, and so as no JSON."""
# A certificate's numbers may differ from what is recomputed by so much, relative and absolute.
_TOLERANCE, _DUST = 1e-6, 1e-9


@dataclass(frozen=True)
class Finding:
    """What one check found.

    check: its name.
    passed: whether it holds.
    reason: in a line, what was found.
    """

    check: str
    passed: bool
    reason: str


@dataclass(frozen=True)
class Key:
    """A public key that the outcome rests on.

    owner: "coordinator", "simulation" or the name of a site.
    public: in hexadecimal.
    pinned: whether the caller named it; otherwise the certificate itself did, which proves nothing about its owner.
    """

    owner: str
    public: str
    pinned: bool


@dataclass(frozen=True)
class Verification:
    """What is to be thought of a release.

    findings: one a check, in a fixed order; those that an unreadable certificate made impossible are left out.
    keys: that it rests on, the coordinator's first.
    statement: the guarantee in a sentence; None unless every check passed.
    not_covered: what the guarantee does not say; empty without one.
    """

    findings: tuple[Finding, ...]
    keys: tuple[Key, ...] = ()
    statement: str | None = None
    not_covered: tuple[str, ...] = ()

    @property
    def is_valid(self) -> bool:
        """Whether every check passed."""
        return all(finding.passed for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"valid": self.is_valid, **asdict(self)}


def verify_release(
    folder: Path, *, keys: Collection[str] = (), site_keys: Mapping[str, str] | None = None
) -> Verification:
    """Check everything about a release that can be checked without asking anybody.

    Never raises for what is in the folder: what cannot be read is a check that failed.

    Args:
        folder: of the release, or of the run that made it.
        keys: public keys in hexadecimal, one of which must be the signer's; empty takes the certificate's word.
        site_keys: public keys of sites by name; each must be in the certificate, with this key.
    """
    try:
        certificate = _read_json(folder, CERTIFICATE)
        form = _form_of(certificate)
    except ReleaseFileError as fault:
        return Verification((Finding("certificate", passed=False, reason=str(fault)),))
    case = _Case(folder, certificate, form, frozenset(keys), dict(site_keys or {}))
    first = Finding("certificate", passed=True, reason=f"{CERTIFICATE_SCHEMA}, run {_shown(form.run)}")
    findings = (first, *(_found(name, check, case) for name, check in _CHECKS.items()))
    named = (
        Key(form.signature.signer, form.signature.key, bool(keys)),
        *(Key(name, site.key, name in case.site_keys) for name, site in form.sites.items()),
    )
    if form.guarantee is None or not all(finding.passed for finding in findings):
        return Verification(findings, named)
    return Verification(findings, named, form.guarantee.statement, tuple(form.not_covered))


# --- the form of a certificate

_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Positive = Annotated[int, Field(gt=0)]
_Signature = Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]


class _Strict(Section):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _StudyName(_Strict):
    name: str
    digest: _Digest


class _Guarantee(_Strict):
    epsilon: float
    delta: float
    limit_epsilon: float
    statement: str


class _Spent(_Strict):
    train: float
    holdout: float


class _Statement(_Strict):
    site: str
    ledger: str
    sequence: int
    hash: str
    past: list[Any]
    signature: str


class _Attestation(_Strict):
    witness: str
    site: str
    ledger: str
    sequence: int
    hash: str
    nonce: str
    signature: str


class _Event(_Strict):
    type: Literal["gaussian"]
    account: Literal["train", "holdout"]
    squared_sensitivity: _Positive
    noise_stddev: Annotated[float, Field(gt=0)]
    cells: _Positive
    scale: _Positive
    noise: Literal["csprng", "test-seed"]
    sampling: Annotated[float, Field(gt=0, le=1)] = 1.0


class _Site(_Strict):
    accountant: dict[str, Any]
    epsilon: float
    delta: float
    sampler_delta: float
    bound: float
    spent: _Spent
    key: _Digest
    ledger_head: _Statement
    attestations: list[_Attestation]
    events: list[_Event]
    signature: _Signature


class _Gate(_Strict):
    id: str
    rule: str
    value: float | None
    threshold: float
    passed: Annotated[bool, Field(alias="pass")]
    visibility: Literal["public"]


class _SignedBy(_Strict):
    signer: Literal["coordinator", "simulation"]
    key: _Digest
    signature: _Signature


class _Certificate(_Strict):
    schema_version: Annotated[Literal["privshare.certificate/2"], Field(alias="schema")]
    study: _StudyName
    run: str
    unit: str
    relation: str
    noise_trust: str
    guarantee: _Guarantee | None
    void_because: str | None
    accountant: str
    sites: Annotated[dict[str, _Site], Field(min_length=1)]
    not_covered: list[str]
    gates: list[_Gate]
    files: dict[str, _Digest]
    signature: _SignedBy


def _form_of(certificate: dict[str, Any]) -> _Certificate:
    try:
        return _Certificate.model_validate(certificate)
    except ValidationError as error:
        why = explain(error.errors()[0], _Certificate)
        raise ReleaseFileError(f"{CERTIFICATE}: {why if len(why) < _LONG else f'{why[:_LONG]} ...'}") from None


# --- reading


@contextmanager
def _opened(folder: Path, name: str) -> Iterator[BufferedReader]:
    path = folder / name
    try:
        if path.exists() and not path.is_file():
            raise ReleaseFileError(f"{name}: is not a file")
        with path.open("rb") as file:
            yield file
    except (OSError, ValueError) as error:
        raise ReleaseFileError(f"{name}: cannot be read ({getattr(error, 'strerror', 'not a name')})") from None


def _read(folder: Path, name: str) -> bytes:
    with _opened(folder, name) as file:
        return file.read()


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    """An object of which every reader reads the same: no key twice, no NaN, nothing beyond a float."""
    with _opened(folder, name) as file:
        body = file.read(_MOST_JSON + 1)
    try:
        found = json.loads(
            body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refused, parse_float=_finite
        )
        json.dumps(found, ensure_ascii=False).encode("utf-8")  # half a letter is none, and nobody can print it
    except (ValueError, RecursionError) as error:
        why = str(error) if isinstance(error, _AmbiguousError) else "is not JSON"
        raise ReleaseFileError(f"{name}: {why}") from None
    if not isinstance(found, dict):
        raise ReleaseFileError(f"{name}: expected an object")
    return found


class _AmbiguousError(ValueError):
    """Two readers might read two things."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _AmbiguousError("a key is there twice")
    return found


def _refused(word: str) -> NoReturn:
    raise _AmbiguousError(f"{word} is no number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _AmbiguousError("a number is beyond a float")
    return number


# --- checks


@dataclass(frozen=True)
class _Case:
    """What is checked.

    raw: the certificate as it was read; signatures cover this.
    form: the same, with every field known to be of its type.
    """

    folder: Path
    raw: dict[str, Any]
    form: _Certificate
    keys: frozenset[str]
    site_keys: Mapping[str, str]

    def study(self) -> Study:
        """The study in the release; nothing says yet that it is the certificate's."""
        facts = _read_json(self.folder, FACTS)
        if facts.get("schema") != _GENERATOR_SCHEMA or not isinstance(facts.get("study"), dict):
            raise ReleaseFileError(f"{FACTS}: expected {_GENERATOR_SCHEMA} with a study")
        study = parse_study(facts["study"], source=f"{FACTS}: study")
        if json.dumps(facts["study"], separators=(",", ":")) != study.canonical():
            raise ReleaseFileError(f"{FACTS}: study: is not written out in full, in its own order")
        return study


def _found(name: str, check: Callable[[_Case], str], case: _Case) -> Finding:
    try:
        return Finding(name, passed=True, reason=_shown(check(case)))
    except PrivShareError as fault:
        return Finding(name, passed=False, reason=str(fault))
    except (ArithmeticError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return Finding(name, passed=False, reason="what is there cannot be computed with")


def _shown(text: str) -> str:
    """In one line, whatever a name holds."""
    return str(PrivShareError(text))


def _signature(case: _Case) -> str:
    """By the coordinator, over all of the certificate."""
    said = case.form.signature
    if case.keys and said.key not in case.keys:
        raise ReleaseFileError(f"the certificate names the key {said.key}, which is none of those that were asked for")
    if not is_signed(signed_body(case.raw), said.signature, purpose=SIGNING_PURPOSE, public=said.key):
        raise ReleaseFileError(f"the certificate is not what {said.key} signed")
    return f"the {said.signer} {said.key} signed all of the certificate"


def _files(case: _Case) -> str:
    """Each one listed is there, and nothing else that somebody could take for a part of the release."""
    listed = case.form.files
    for name, digest in listed.items():
        if not _is_plain(name):
            raise ReleaseFileError(f"{name}: not the name of a file of a release")
        with _opened(case.folder, name) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != digest:
            raise ReleaseFileError(f"{name}: is not the file that the certificate lists")
    extra = sorted({*_usable(case.folder)} - set(listed))
    if extra:
        raise ReleaseFileError(f"{extra[0]}: is not in the certificate")
    return f"{len(listed)} files are those that the certificate lists, and no other is there to be taken for one"


def _is_plain(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return "\\" not in name and ".." not in parts and not name.startswith("/") and name == "/".join(parts) != ""


def _usable(folder: Path) -> list[str]:
    """What is there that a data consumer would use."""
    tables = [path for path in folder.glob("synthetic*") if path.suffix.lower() in (".csv", ".parquet")]
    generator = [path for path in (folder / "generator").rglob("*") if not path.is_dir()]
    return [path.relative_to(folder).as_posix() for path in (*tables, *generator)]


def _study(case: _Case) -> str:
    """The certificate's study, and all in the certificate that follows from it."""
    study, said = case.study(), case.form
    if study.digest() != said.study.digest:
        raise ReleaseFileError(f"{FACTS}: its study is not the certificate's")
    follows: dict[str, tuple[object, object]] = {
        "study.name": (said.study.name, study.name),
        "unit": (said.unit, study.unit.name),
        "relation": (said.relation, RELATION),
        "noise_trust": (said.noise_trust, noise_trust(study)),
        "accountant": (said.accountant, ACCOUNTANT),
        "not_covered": (said.not_covered, not_covered(study)),
        "files": (
            set(said.files),
            {_TABLE, FACTS, WEIGHTS, CARD, CROISSANT, *([] if study.windows is None else [_SERIES])},
        ),
    }
    for name, site in said.sites.items():
        follows[f"sites.{name}.delta"] = (site.delta, study.privacy.delta)
        follows[f"sites.{name}.accountant"] = (site.accountant, study.accountant.as_dict())
    if said.guarantee is not None:
        follows["guarantee.delta"] = (said.guarantee.delta, study.privacy.delta)
        follows["guarantee.limit_epsilon"] = (said.guarantee.limit_epsilon, study.privacy.epsilon)
    for name, (found, expected) in follows.items():
        if found != expected:
            raise ReleaseFileError(f"{name}: is not what follows from the study")
    return f"{study.name}, digest {said.study.digest}, and what the certificate says of it is so"


def _generator(case: _Case) -> str:
    """Its arrays can be read, and are numbers."""
    study = case.study()
    try:
        arrays = load(_read(case.folder, WEIGHTS))
    except (SafetensorError, ValueError, KeyError):
        raise ReleaseFileError(f"{WEIGHTS}: is not a safetensors file") from None
    columns = range(len(study.measured) + len(study.channels))
    needed = {"moves", "label_counts", *(f"{what}.{at}" for what in ("bins", "within") for at in columns)}
    if not needed < set(arrays):
        raise ReleaseFileError(f"{WEIGHTS}: lacks arrays that the study needs")
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise ReleaseFileError(f"{WEIGHTS}: holds a number that is not finite")
    return f"{len(arrays)} arrays of {sum(array.size for array in arrays.values())} finite numbers"


def _spending(case: _Case) -> str:
    """Each site signed its events and its bound, at the head of its ledger."""
    form = case.form
    missing = sorted(set(case.site_keys) - set(form.sites))
    if missing:
        raise ReleaseFileError(f"site {missing[0]}: is not in the certificate")
    for name, site in form.sites.items():
        head = _head_of(name, site)
        if case.site_keys.get(name, site.key) != site.key:
            raise ReleaseFileError(f"site {name}: the certificate names the key {site.key}, which is not the given one")
        body = {
            "site": name,
            "study": form.study.digest,
            "ledger": head.ledger,
            "sequence": head.sequence,
            "hash": head.hash,
            "bound": site.bound,
            "events": case.raw["sites"][name]["events"],
        }
        if not is_signed(canonical(body), site.signature, purpose=SPENDING_PURPOSE, public=site.key):
            raise ReleaseFileError(f"site {name}: its events and bound are not what it signed")
    return f"{len(form.sites)} sites signed {sum(len(site.events) for site in form.sites.values())} events"


def _head_of(name: str, site: _Site) -> Statement:
    head = Statement.from_dict(site.ledger_head.model_dump())
    if head.site != name or not head.is_by(site.key):
        raise ReleaseFileError(f"site {name}: the head of its ledger is not signed by it")
    return head


def _ledgers(case: _Case) -> str:
    """Other sites attested the head of each ledger, and nobody a newer or another one."""
    sites = case.form.sites
    if len({case.form.signature.key, *(site.key for site in sites.values())}) < len(sites) + 1:
        raise ReleaseFileError("sites: two parties have one key")
    needed = attestations_needed(case.study(), len(sites))
    for name, site in sites.items():
        head, witnesses = _head_of(name, site), set()
        for one in [Attestation(**said.model_dump()) for said in site.attestations]:
            if one.site != name or one.witness == name or one.witness not in sites or one.witness in witnesses:
                raise ReleaseFileError(f"site {name}: an attestation that is not of another site, or is there twice")
            if not one.is_by(sites[one.witness].key):
                raise ReleaseFileError(f"site {name}: an attestation that {one.witness} did not sign")
            if (one.ledger, one.sequence, one.hash) == (head.ledger, head.sequence, head.hash):
                witnesses.add(one.witness)
            elif one.sequence >= head.sequence:
                raise ReleaseFileError(f"site {name}: {one.witness} saw another ledger of it, or a newer entry")
        if len(witnesses) < needed:
            raise ReleaseFileError(
                f"site {name}: {len(witnesses)} other sites attested the head of its ledger, {needed} are needed"
            )
    return f"the head of each ledger is attested by {needed} other sites or more"


def _epsilon(case: _Case) -> str:
    """Every number of every site, computed anew from its events."""
    recounted, spends = recount(case.raw), recount_spends(case.raw)
    for name, site in case.form.sites.items():
        if site.sampler_delta != sum(event.cells for event in site.events) * DRAW_ERROR:
            raise ReleaseFileError(f"site {name}: sampler_delta does not follow from its events")
        for account, spent in site.spent.model_dump().items():
            if not _is_near(spent, spends[name][account]):
                raise ReleaseFileError(
                    f"site {name}: what it says that {account} spent does not follow from its events"
                )
        if not _is_near(site.epsilon, recounted[name]):
            raise ReleaseFileError(
                f"site {name}: epsilon is claimed to be {site.epsilon:.9g}, its events say {recounted[name]:.9g}"
            )
    check_certificate(case.raw)
    return f"recomputed from all events: {', '.join(f'{name} {one:.6g}' for name, one in recounted.items())}"


def _is_near(found: float, expected: float) -> bool:
    return abs(found - expected) <= _TOLERANCE * abs(expected) + _DUST


def _guarantee(case: _Case) -> str:
    """There is one, in the study's words, and within the study's limit."""
    said, study = case.form.guarantee, case.study()
    if said is None or case.form.void_because is not None:
        raise ReleaseFileError(f"void: {case.form.void_because or 'the certificate states none'}")
    # A limit that was met exactly is passed by rounding.
    if not said.epsilon <= study.privacy.epsilon * (1 + _DUST):
        raise ReleaseFileError(f"epsilon {said.epsilon:.9g} is above the study's {study.privacy.epsilon:g}")
    beyond = [name for name, one in recount_bounds(case.raw).items() if one > study.privacy.epsilon * (1 + _TOLERANCE)]
    if beyond:
        raise ReleaseFileError(f"site {beyond[0]}: its bound stands for more than the study's epsilon")
    if said.statement != guarantee_statement(study, epsilon=said.epsilon):
        raise ReleaseFileError("its statement does not say what its numbers say")
    return f"epsilon {said.epsilon:.6g} is within the study's {study.privacy.epsilon:g}, delta {study.privacy.delta:g}"


def _gates(case: _Case) -> str:
    """Those of the study whose figures may be public were all passed."""
    gates, study = case.form.gates, case.study()
    asked = {"monitor_auc": study.gates.monitor_auc, "misfit": study.gates.misfit}
    expected = {name: threshold for name, threshold in asked.items() if threshold is not None}
    if [(gate.id, gate.threshold) for gate in gates] != list(expected.items()):
        raise ReleaseFileError("gates: are not those of the study")
    for gate in gates:
        is_open = gate.value is not None and (
            gate.value >= gate.threshold if gate.id == "monitor_auc" else gate.value <= gate.threshold
        )
        if not (gate.passed and is_open):
            raise ReleaseFileError(f"gates.{gate.id}: was not passed")
    return f"{len(gates)} passed: {', '.join(expected)}" if expected else "the study has none that may be public"


_CHECKS: Final[Mapping[str, Callable[[_Case], str]]] = {
    "signature": _signature,
    "files": _files,
    "study": _study,
    "generator": _generator,
    "spending": _spending,
    "ledgers": _ledgers,
    "epsilon": _epsilon,
    "guarantee": _guarantee,
    "gates": _gates,
}
