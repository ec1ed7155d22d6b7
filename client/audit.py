"""An empirical check of what a site sends: attacks on its replies, and the epsilon that they prove.

The site is the real one, with its files, its ledger and its noise; its rows are simulated from the schema. The attacker
knows them all, and so what each reply would be without noise, and scores replies by the likelihood ratio: no score is
better. Two games (`common.evaluation.audit`): tell replies about a table from replies about the same table with one
unit more; and say which of many canaries were in one table.

An audit finds what no reading of the code does: noise drawn too small, twice alike, or for less than a unit moves. It
proves no privacy. It looks at releases over all units, counted in Gaussian DP: sampling hides more, never less.
"""

import itertools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import yaml

from client.simulated_rows import SimulatedRows, simulate_rows
from client.simulated_site import make_site_folder
from client.site import Site, open_site
from common.data.encoding import Grid, make_grids
from common.data.queries import catalogue
from common.data.tables import sizes_of
from common.errors import PolicyError, StudyError
from common.evaluation.audit import Evidence, canary_scores, distinguishing, one_run
from common.models.monitor import BANDS
from common.models.neural import critic_parameters, initialise_critic
from common.privacy.accountants import GdpAccountant
from common.privacy.events import GaussianEvent
from common.study import STEPS, Study, load_study
from common.wire.messages import KEPT, Reply, Request
from common.wire.packing import CRITIC, critic_shape_of, pack, pack_bins, shape_of

TRAIN_KINDS: Final = ("one_way", "tables", "embedding", "critic")
HELD_OUT_KINDS: Final = ("monitor", "verdict")
ONE_RUN: Final = "canaries"
"""Names the finding of the one-run game, which looks at a whole run."""

_MOST_BINS: Final = 8
_RELEASES: Final = 100
"""Replies of one opened site. More would have it keep more of them, fewer have it read its table more often."""
_STEEP: Final = 4
"""How much larger a critic's parameters are than those that it starts with: no unit's gradient is then too short to be
clipped, which is the most that it may move."""
_CANDIDATES: Final = 4
"""Units of which the one that moves a release most is audited."""
_TRIES: Final = 500
"""Units among which they are looked for: where a hundredth is held out, one of them is but once in 150 times."""
_COINS: Final = 1
"""Tells the seed of the canaries' coins from that of the rows."""
_ROOM: Final = 1e-6
"""Part of a budget that is left for roundings."""
_ROUNDED: Final = 1e-9
_ENOUGH: Final = 2**30
"""Bytes that an audit may need at once, many times over."""

Start = Callable[[Path], Site]
OnStep = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How much is tried.

    units: in the table, beside the one, or the canaries, that are looked for.
    canaries: of the one-run game.
    repetitions: replies with the unit, and as many without, for each kind of release.
    seed: of rows, canaries and the site's secret; never of noise, so no two audits are alike.
    confidence: of all findings together.
    """

    units: int = 500
    canaries: int = 1000
    repetitions: int = 1000
    seed: int = 0
    confidence: float = 0.95


@dataclass(frozen=True)
class Finding:
    """What one game proved.

    kind: of the release that was told apart, or `ONE_RUN`.
    epsilon_claimed: by the accountant, from the events in the replies.
    evidence: see `Evidence`.
    moved: the most that one unit moved the releases, as a share of the sensitivity that their events state. Above 1
        they state too little, whatever the noise.
    """

    kind: str
    epsilon_claimed: float
    evidence: Evidence
    moved: float

    @property
    def is_contradicted(self) -> bool:
        """Whether the claim is not true, at the evidence's confidence."""
        return self.evidence.epsilon_lower > self.epsilon_claimed or self.moved > 1 + _ROUNDED

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        claim = {"kind": self.kind, "epsilon_claimed": self.epsilon_claimed}
        return {**claim, **asdict(self.evidence), "moved": self.moved, "contradicted": self.is_contradicted}


@dataclass(frozen=True)
class Audit:
    """All games of one audit; every epsilon is for adding or removing one unit, at delta."""

    study: str
    digest: str
    unit: str
    delta: float
    plan: Plan
    findings: tuple[Finding, ...]

    @property
    def is_contradicted(self) -> bool:
        """Whether any claim is not true; of honest sites, one audit in 1 / (1 - confidence) at most says so."""
        return any(finding.is_contradicted for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        findings = [finding.as_dict() for finding in self.findings]
        return {**vars(self), "plan": asdict(self.plan), "contradicted": self.is_contradicted, "findings": findings}


def audit(
    path: Path,
    plan: Plan,
    *,
    limits: tuple[float, float] | None = None,
    start: Start = open_site,
    on_step: OnStep = lambda _: None,
) -> Audit:
    """Attack every kind of release that a site of a study sends.

    Args:
        path: of the study.
        plan: how much is tried.
        limits: epsilon and delta of a site that allows less than the study asks for.
        start: opens the audited site from its site.yaml.
        on_step: is told what comes next.

    Raises:
        StudyError: the study is not valid, or no rows for it can be simulated.
        PolicyError: the site refused to answer.
    """
    given = load_study(path)
    epsilon, delta = limits or (given.privacy.epsilon, given.privacy.delta)
    privacy = {"epsilon": epsilon, "delta": delta, "accountant": "gdp", "noise_trust": "local"}
    study = given.with_overrides(privacy=privacy, critic={"sampling": 1.0})
    kept = KEPT if study.discriminators.scope == "local" else ()
    held_out = HELD_OUT_KINDS if study.privacy.holdout > 0 else ()
    kinds = [kind for kind in (*TRAIN_KINDS, *held_out) if kind not in kept]
    each = 1 - (1 - plan.confidence) / (len(kinds) + 1)
    rows = simulate_rows(study, units=plan.units + max(_TRIES, 3 * plan.canaries), seed=plan.seed)
    findings = []
    with tempfile.TemporaryDirectory(prefix="privshare-audit-", dir=_memory()) as folder:
        on_step("choosing units")
        wide, releases = _widened(study)
        desk = _Desk(wide, rows, plan, Path(folder), start)
        share = _squared_mu(study) / _squared_mu(wide)
        for kind, unit in _choose(desk, kinds).items():
            on_step(f"{kind}: {plan.repetitions} replies with a unit, as many without")
            findings.append(_tell_apart(desk, kind, unit, share=share, releases=releases, confidence=each))
        on_step(f"{ONE_RUN}: {plan.canaries} in one run")
        desk = _Desk(study, rows, plan, Path(folder), start)
        findings.append(_guess_canaries(desk, _sequence(study, kept), confidence=each))
    return Audit(given.name, given.digest(), given.unit.name, delta, plan, tuple(findings))


def _memory() -> Path | None:
    """A file system in memory, if there is a roomy one: a site syncs every reply to disk, and these outlive nothing."""
    memory = Path("/dev/shm")  # noqa: S108 (no fixed name is used in it)
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free >= _ENOUGH
    return memory if roomy else None


def _squared_mu(study: Study) -> float:
    return GdpAccountant().bound(epsilon=study.privacy.epsilon, delta=study.privacy.delta)


def _widened(study: Study) -> tuple[Study, int]:
    """The study with room for many releases, each of the whole budget that it has; and for how many."""
    for releases in (_RELEASES, _RELEASES // 10):
        spent = releases * _squared_mu(study) * (1 + _ROOM)
        epsilon = GdpAccountant().epsilon(spent=spent, delta=study.privacy.delta)
        with suppress(StudyError):  # more than any study may have
            return study.with_overrides(privacy={"epsilon": epsilon}), releases
    return study, 1


def _sequence(study: Study, kept: Collection[str]) -> dict[str, float]:
    """What a run releases for the whole budget, and each one's share of it; without what stays at the site."""
    first = study.privacy.one_way_share
    shares = {"one_way": first, "tables": (1 - first) / 2, "embedding": (1 - first) / 2}
    return {kind: share * (1 - _ROOM) for kind, share in shares.items() if kind not in kept}


@dataclass(frozen=True)
class _Release:
    """What a site sent: counts, (cells,) int64, and the event that it stated."""

    counts: np.ndarray
    event: GaussianEvent


class _Exact:
    """No noise, for the attacker's own copy of a site. Its events say that nothing is guaranteed."""

    kind: Literal["csprng", "test-seed"] = "test-seed"

    def draw(self, size: int, *, noise_stddev: float, context: str) -> np.ndarray:
        del noise_stddev, context
        return np.zeros(size, dtype=np.int64)

    def sample(self, size: int, *, rate: float, context: str) -> np.ndarray:
        del rate, context
        return np.ones(size, dtype=np.bool_)


class _Desk:
    """Has sites set up over some of the rows, all with one secret, and asks them."""

    def __init__(self, study: Study, rows: SimulatedRows, plan: Plan, folder: Path, start: Start) -> None:
        self.study, self.plan = study, plan
        self.background = np.arange(plan.units)
        self.others = range(plan.units, int(rows.unit_of_record.max()) + 1)
        self._rows, self._folder, self._start = rows, folder, start
        self._arrays = _questions(study, plan.seed)
        self._lock = folder / f"{study.digest()}.yaml"
        self._lock.write_text(yaml.safe_dump(json.loads(study.canonical()), sort_keys=False), encoding="utf-8")

    def ask(self, units: np.ndarray, shares: Iterable[tuple[str, float]]) -> Iterator[_Release]:
        """Replies of the audited site about some units: of which kind, and for which share of its budget."""
        return self._ask(units, shares, self._start)

    def exact(self, units: np.ndarray, kinds: Collection[str]) -> dict[str, np.ndarray]:
        """Replies without noise, (cells,) int64, by kind."""
        shares = [(kind, 1 / (len(kinds) + 1)) for kind in kinds]
        replies = self._ask(units, shares, lambda path: open_site(path, noise=_Exact()))
        return {kind: reply.counts for kind, reply in zip(kinds, replies, strict=True)}

    def moves(self, kinds: Collection[str]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """What each of the other units adds to a reply, (cells,) int64, by kind.

        Replies are sums over units, so beside one unit it adds what it adds beside all.
        """
        one = self.background[:1]
        without = self.exact(one, kinds)
        for unit in self.others:
            present = self.exact(np.append(one, unit), kinds)
            yield unit, {kind: present[kind] - without[kind] for kind in kinds}

    def _ask(self, units: np.ndarray, shares: Iterable[tuple[str, float]], start: Start) -> Iterator[_Release]:
        study, folder = self.study, Path(tempfile.mkdtemp(dir=self._folder))
        tables = self._rows.written(units, study)
        private, kept, seed = folder / "private", folder / "kept", self.plan.seed
        made = make_site_folder("audited", self._lock, study, tables, private=private, kept=kept, seed=seed)
        try:
            site = start(made.settings)
            for number, (kind, share) in enumerate(shares):
                arrays = self._arrays[kind]
                request = Request(kind, study.digest(), "audit", f"{number}", {"share": share}, arrays)
                reply = Reply.decode(site.handle(request.encode()))
                if reply.refused is not None:
                    raise PolicyError(f"{kind}: the site refused to answer ({reply.refused})")
                yield _Release(reply.arrays["counts"], GaussianEvent.from_dict(dict(reply.facts["event"])))
        finally:
            shutil.rmtree(folder)


def _questions(study: Study, seed: int) -> dict[str, dict[str, np.ndarray]]:
    """What a request of each kind carries: coarse bins, all tables, a critic and a score that nobody trained."""
    grids = (*make_grids(study.measured), *make_grids(study.channels))
    bins = [_coarse(grid) for grid in grids]
    sizes, tables = sizes_of(bins), len(catalogue(len(study.measured), study.windows))
    critic = initialise_critic(critic_shape_of(study, shape_of(study, sizes)), seed=seed)
    parameters = {name: _STEEP * values for name, values in critic_parameters(critic).items()}
    binned = pack_bins(bins)
    judged = binned | pack(CRITIC, parameters)
    return {
        "one_way": {},
        "tables": binned | {"tables": np.arange(tables), "emphasis": np.ones(tables, dtype=np.int64)},
        "embedding": binned,
        "critic": judged,
        "monitor": binned | {"weights": np.linspace(-1, 1, sum(sizes) + BANDS - 1)},
        "verdict": judged,
    }


def _coarse(grid: Grid) -> np.ndarray:
    """A map from cells to few bins, (cells,) int64; missing has its own, and so has each number of steps."""
    most = grid.n_values if grid.name == STEPS else min(_MOST_BINS, grid.n_values)
    bins = np.arange(grid.n_values) * most // grid.n_values
    return np.append(bins, most) if grid.column.missing else bins


def _choose(desk: _Desk, kinds: Collection[str]) -> dict[str, int]:
    """For each kind, of the first few units that move its replies at all, the one that moves them most."""
    found: dict[str, list[tuple[float, int]]] = {kind: [] for kind in kinds}
    for unit, moves in itertools.islice(desk.moves(kinds), _TRIES):
        for kind, move in moves.items():
            if move.any():
                found[kind].append((_squared_norm(move), unit))
        if all(len(moved) >= _CANDIDATES for moved in found.values()):
            break
    if not all(found.values()):
        raise StudyError(f"privacy.holdout: none of {_TRIES} simulated units is held out; it is too small to audit")
    return {kind: max(moved[:_CANDIDATES])[1] for kind, moved in found.items()}


def _tell_apart(desk: _Desk, kind: str, unit: int, *, share: float, releases: int, confidence: float) -> Finding:
    """One kind of release: was the unit in the table?"""
    tables = (np.append(desk.background, unit), desk.background)
    present, absent = (desk.exact(units, [kind])[kind] for units in tables)
    cells = np.flatnonzero(present - absent)
    move, halfway = (present - absent)[cells].astype(np.float64), (present + absent)[cells] / 2
    scores, events = np.empty((2, desk.plan.repetitions)), set()
    for own, units in zip(scores, tables, strict=True):
        for begin in range(0, len(own), releases):
            asked = [(kind, share)] * len(own[begin : begin + releases])
            for at, release in enumerate(desk.ask(units, asked), start=begin):
                # Logarithm of the likelihoods' ratio; in the other cells both tables are alike.
                own[at] = (release.counts[cells] - halfway) @ move / release.event.noise_stddev**2
                events.add(release.event)
    delta = desk.study.privacy.delta
    claimed = GdpAccountant().epsilon(spent=max(event.spend for event in events), delta=delta)
    moved = math.sqrt(_squared_norm(move) / min(event.squared_sensitivity for event in events))
    return Finding(kind, claimed, distinguishing(*scores, delta=delta, confidence=confidence), moved)


def _guess_canaries(desk: _Desk, shares: dict[str, float], *, confidence: float) -> Finding:
    """One run: which canaries were in the table?"""
    canaries, moves, squares = _find_canaries(desk, list(shares))
    coins = np.random.default_rng([desk.plan.seed, _COINS]).integers(2, size=len(canaries)) == 1
    without = desk.exact(desk.background, list(shares))
    products, along = np.zeros((len(canaries), len(canaries))), np.zeros(len(canaries))
    spent, moved = 0.0, np.zeros(len(canaries))
    table = np.concatenate([desk.background, canaries[coins]])
    for kind, release in zip(shares, desk.ask(table, shares.items()), strict=True):
        stddev = release.event.noise_stddev
        own = moves[kind] / np.float32(stddev)  # (canaries, cells)
        products += own @ own.T
        along += own @ ((release.counts - without[kind]) / stddev).astype(np.float32)
        spent += release.event.spend
        moved += squares[kind] / stddev**2
    delta = desk.study.privacy.delta
    evidence = one_run(canary_scores(products, along), coins, delta=delta, confidence=confidence)
    claimed = GdpAccountant().epsilon(spent=spent, delta=delta)
    return Finding(ONE_RUN, claimed, evidence, math.sqrt(float(moved.max()) / spent))


def _find_canaries(
    desk: _Desk, kinds: Collection[str]
) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Units that train, (canaries,); their moves, (canaries, cells) float32, and their squared norms, by kind."""
    wanted = desk.plan.canaries
    units: list[int] = []
    moves: dict[str, list[np.ndarray]] = {kind: [] for kind in kinds}
    squares: dict[str, list[float]] = {kind: [] for kind in kinds}
    for unit, own in desk.moves(kinds):
        if any(move.any() for move in own.values()):
            units.append(unit)
            for kind, move in own.items():
                moves[kind].append(move.astype(np.float32))
                squares[kind].append(_squared_norm(move))
        if len(units) == wanted:
            break
    if len(units) < wanted:
        raise StudyError(f"canaries={wanted}: too many of the simulated units are held out")
    return (
        np.array(units),
        {kind: np.stack(own) for kind, own in moves.items()},
        {kind: np.array(own) for kind, own in squares.items()},
    )


def _squared_norm(move: np.ndarray) -> float:
    return float(np.sum(move.astype(np.float64) ** 2))
