"""How a request is fulfilled: which latents make the rows, and what each row is to be.

Shares of several columns at once are met together by the joint distribution that is nearest to the generator's own
(raking: the maximum-entropy one), rounded to whole rows so that every share is exact to a row. Means then weigh the
latents of all parts at once, `balance`, and the released tables those of each class, `match`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from common.data.selection import Selection
from common.errors import ConditionError, ExitCode
from common.synthesis.balance import Balance, fits
from common.synthesis.draws import whole_shares
from common.synthesis.latents import Drawn, Latents, effective
from common.synthesis.match import match_ratio
from common.synthesis.release import Release
from common.synthesis.request import Request

FLOOR: Final = 100.0
"""Effective latents below which what is asked for is not supported: rows would be near copies of a few."""
_ENOUGH: Final = 1000.0
"""Effective latents with which no more are drawn."""
_FIRST, _MOST = 2**14, 2**18
_MOST_GROUPS: Final = 1000
_MOST_RAKES: Final = 10_000
_CLOSE: Final = 1e-9


@dataclass(frozen=True)
class Plan:
    """How a request is fulfilled.

    latents: that rows are made from.
    parts: what each part of the rows fulfils, by column.
    part, label, latent: (rows,) int64, of each row: which part, which class of the label, which of `latents`; -1 for
        a fresh one, where the part says nothing of columns that latents make.
    bins: of columns whose means were asked for, (rows,) int64. pieces: likewise, if constraints tie them.
    effective: effective latents of the part that has the fewest; infinite where all are fresh.
    chance: that a row of the generator is in one of the parts.
    """

    latents: Latents
    parts: Sequence[Mapping[str, Selection]]
    part: np.ndarray
    label: np.ndarray
    latent: np.ndarray
    effective: float
    chance: float
    bins: Mapping[str, np.ndarray] = field(default_factory=dict)
    pieces: Mapping[str, np.ndarray] = field(default_factory=dict)


def make_plan(release: Release, request: Request, *, rows: int, seed: int, device: torch.device) -> Plan:
    """Latents and label classes of as many rows as are asked for.

    Args:
        release: to draw from.
        request: what every row, and how many of them, must be.
        rows: how many, at least 1.
        seed: of everything.
        device: of the generator.

    Raises:
        ConditionError: the generator does not support what is asked for, or it cannot be met together.
    """
    if request.match and release.one_way is None:
        raise ConditionError("match: the release is of an older version, which holds no one-way tables")
    asked = _Asked(request)
    latents = asked.latents(release, seed=seed, device=device)
    size = _FIRST
    while True:
        latents.grow(size)
        masses, worth = _measure(latents, asked)
        can_grow = size < _MOST and asked.fits(release, 2 * size)
        if worth.min() >= _ENOUGH or not can_grow:
            _check_supported(worth, asked, latents)
            shares = _rake(np.where(worth >= FLOOR, masses, 0.0), asked)
            found = _weigh(release, latents, asked, shares, seed=seed, device=device)
            worth = found.worth(latents, asked, worth)
            if worth[found.shares > 0].min() >= _ENOUGH or not can_grow:
                break
        size *= 2
    worth = np.where(found.shares > 0, worth, math.inf)
    if worth.min() < FLOOR:
        means = [moment.text for moment in request.moments]
        raise ConditionError(asked.say_unsupported(latents, worth, means=means), ExitCode.CONDITION_UNSUPPORTED)
    counts = _round(found.shares, asked, rows).ravel()
    random = np.random.default_rng([seed, 11])
    drawn = [
        np.vstack([np.full(count, at), *found.draw(latents, asked, at, count, random)])
        for at, count in enumerate(counts.tolist())
        if count
    ]
    part, label, latent = np.concatenate(drawn, axis=1)[:, random.permutation(rows)]
    bins, pieces = found.columns(part, label, latent)
    return Plan(
        latents=latents,
        parts=[{name: asked.selections[name][number] for name, number in one.items()} for one in asked.parts],
        part=part,
        label=label,
        latent=latent,
        effective=float(worth.ravel()[counts > 0].min()),
        chance=float(masses.sum()),
        bins=bins,
        pieces=pieces,
    )


@dataclass(frozen=True)
class _Weighed:
    """What weights of latents are multiplied by, and the shares of the parts that follow.

    shares: of the parts. ratios: (parts, classes, latents); None for 1. drawn: of each part, columns with means.
    """

    shares: np.ndarray
    ratios: np.ndarray | None = None
    drawn: Sequence[Drawn] = ()

    def worth(self, latents: Latents, asked: "_Asked", before: np.ndarray) -> np.ndarray:
        """Effective latents of the parts; before: without ratios."""
        if self.ratios is None:
            return before
        pairs = zip(asked.parts, self.ratios, strict=True)
        return np.array([effective(latents.weights(part) * ratio) for part, ratio in pairs]).reshape(asked.shape)

    def draw(
        self, latents: Latents, asked: "_Asked", at: int, count: int, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Classes and latents of a part; evenly over the columns with means, in the order that they were asked for."""
        ratio = None if self.ratios is None else self.ratios[at]
        order = list(self.drawn[at].bins.values()) if self.drawn else []
        return latents.draw(asked.parts[at], count, random, ratio=ratio, order=order)

    def columns(
        self, part: np.ndarray, label: np.ndarray, latent: np.ndarray
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Bins and pieces of the columns with means, (rows,) each."""
        if not self.drawn:
            return {}, {}
        bins, pieces = (
            {name: np.stack([own[name] for own in sides])[part, label, latent] for name in sides[0]}
            for sides in ([own.bins for own in self.drawn], [own.pieces for own in self.drawn])
        )
        return bins, pieces


def _measure(latents: Latents, asked: "_Asked") -> tuple[np.ndarray, np.ndarray]:
    """Of each part, its chance and its effective latents."""
    measured = [latents.measure(part) for part in asked.parts]
    masses, worth = (np.array(column).reshape(asked.shape) for column in zip(*measured, strict=True))
    return masses, worth


def _check_supported(worth: np.ndarray, asked: "_Asked", latents: Latents) -> None:
    # Of several columns, groups that hardly occur together may be left out; of one, each group was asked for.
    is_supported = worth >= FLOOR
    if not is_supported.any() or (worth.ndim <= 1 and not is_supported.all()):
        raise ConditionError(asked.say_unsupported(latents, worth), ExitCode.CONDITION_UNSUPPORTED)


def _weigh(
    release: Release, latents: Latents, asked: "_Asked", shares: np.ndarray, *, seed: int, device: torch.device
) -> _Weighed:
    if not asked.fits(release, len(latents.noise)):
        raise ConditionError(
            f"{', '.join(asked.names) or 'match'}: too many groups or bins at once; ask for fewer",
            ExitCode.CONDITION_UNSUPPORTED,
        )
    if asked.request.match:
        return _Weighed(shares, np.repeat(match_ratio(release, latents)[None], len(asked.parts), axis=0))
    if not asked.request.moments:
        return _Weighed(shares)
    balance = _balance(latents, asked, shares, seed=seed)
    found = balance.ratios()
    if found is None:
        raise ConditionError(
            _blame(balance, release, asked.request, seed=seed, device=device), ExitCode.CONDITION_UNSUPPORTED
        )
    return _Weighed(found[1].reshape(asked.shape), found[0], balance.drawn)


def _balance(latents: Latents, asked: "_Asked", shares: np.ndarray, *, seed: int) -> Balance:
    random = np.random.default_rng([seed, 13])
    return Balance(latents, asked.parts, shares.ravel(), asked.groups_apart(), asked.request.moments, random)


def _blame(balance: Balance, release: Release, request: Request, *, seed: int, device: torch.device) -> str:
    """One line: what of a request could be left out for the rest to be met, and how near one could come to it."""
    texts = [text for moment in request.moments for text in moment.texts]
    guilty = balance.guilty()
    others = [text for text, fewer in _without_one(request) if _has_solution(release, fewer, seed=seed, device=device)]
    if not guilty and not others:
        alone = " and ".join(f"({text})" for text in balance.too_much_alone())
        hint = f"; each alone is too much: {alone}" if alone else "; leaving out one of these is not enough"
        return f"{', '.join(texts)}: the generator cannot make such rows{hint}"
    together = " together" if len(guilty) > 1 else ""
    nearest = "".join(f"; nearest to {text}: {balance.reachable(text):.6g}" for text in guilty)
    hint = f"; it could without {' or without '.join(others)}" if others else ""
    return f"{', '.join(guilty or texts)}: the generator cannot make such rows{together}{nearest}{hint}"


def _without_one(request: Request) -> Iterator[tuple[str, Request]]:
    for name in request.proportions:
        rest = {other: own for other, own in request.proportions.items() if other != name}
        yield f"the proportions of {name}", replace(request, proportions=rest)
    for name, text in request.texts.items():
        # Groups of the same column are cut down to the condition already.
        if name not in request.proportions:
            yield text, replace(request, conditions={at: one for at, one in request.conditions.items() if at != name})


def _has_solution(release: Release, request: Request, *, seed: int, device: torch.device) -> bool:
    """Whether a request can be met, as far as the fewest latents tell."""
    try:
        asked = _Asked(request)
        latents = asked.latents(release, seed=seed, device=device)
        latents.grow(_FIRST)
        masses, worth = _measure(latents, asked)
        _check_supported(worth, asked, latents)
        shares = _rake(np.where(worth >= FLOOR, masses, 0.0), asked)
        return _balance(latents, asked, shares, seed=seed).ratios() is not None
    except ConditionError:
        return False


def free_plan(release: Release, labels: np.ndarray, *, seed: int, device: torch.device) -> Plan:
    """Rows of these label classes, (rows,) int64, of which nothing is asked."""
    latents = Latents(release, {}, seed=seed, device=device)
    nothing = np.zeros(len(labels), dtype=np.int64)
    return Plan(latents, [{}], nothing, labels, nothing - 1, effective=math.inf, chance=1.0)


class _Asked:
    """A request with its selections numbered.

    request: as it was read.
    selections: of each column, by number: that of the condition, or those of its groups.
    parts: the number of each column's selection in every part: one group of each column that has some, and all
        conditions on other columns.
    shape: of the parts, groups of one column along each axis.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.names = list(request.proportions)
        self.groups = [[group for group in request.proportions[name] if group.share > 0] for name in self.names]
        self.shape = tuple(map(len, self.groups))
        if math.prod(self.shape) > _MOST_GROUPS:
            raise ConditionError(f"{', '.join(self.names)}: more than {_MOST_GROUPS} groups together; ask for fewer")
        common = {name: one for name, one in request.conditions.items() if name not in request.proportions}
        self.selections: dict[str, dict[int, Selection]] = {name: {0: one} for name, one in common.items()}
        for name, own in zip(self.names, self.groups, strict=True):
            self.selections[name] = {number: group.selection for number, group in enumerate(own)}
        self.parts: list[dict[str, int]] = [
            dict.fromkeys(common, 0) | dict(zip(self.names, numbers, strict=True)) for numbers in np.ndindex(self.shape)
        ]

    def latents(self, release: Release, *, seed: int, device: torch.device) -> Latents:
        """None yet, that will know what is asked for."""
        moments = self.request.moments
        names = list(release.study.measured) if self.request.match else [moment.name for moment in moments]
        return Latents(release, self.selections, seed=seed, device=device, bins_of=names)

    def fits(self, release: Release, latents: int) -> bool:
        """Whether memory holds what means or tables need of so many latents."""
        classes = len(release.label_counts)
        if self.request.match:
            return fits(1, classes, latents, features=sum(release.generator.shape.sizes))
        if not self.request.moments:
            return True
        # Of each mean: three powers, what is to be 0, and whether there is a value.
        features = sum(self.shape) + sum(len(moment.texts) + 4 for moment in self.request.moments)
        return fits(len(self.parts), classes, latents, features=features)

    def groups_apart(self) -> np.ndarray:
        """Of each part, whether it is in each group of each column, less the share asked for; (parts, groups)."""
        numbers = np.array(list(np.ndindex(self.shape)), dtype=np.int64).reshape(len(self.parts), len(self.shape))
        columns = [np.eye(size)[numbers[:, at]] - self.targets(at) for at, size in enumerate(self.shape)]
        return np.hstack([np.empty((len(self.parts), 0)), *columns])

    def targets(self, axis: int) -> np.ndarray:
        """Shares of the groups along an axis."""
        shares = np.array([group.share for group in self.groups[axis]])
        return np.asarray(shares / shares.sum())

    def say_unsupported(self, latents: Latents, worth: np.ndarray, *, means: Sequence[str] = ()) -> str:
        """One line: what is not supported, how far it is, and what would be; means: without which it is supported."""
        worst = self.parts[int(worth.argmin())]
        texts = {name: self._text(name, number) for name, number in worst.items()}
        without = {
            name: effective(latents.weights({other: at for other, at in worst.items() if other != name}))
            for name in worst
        }
        helpful = [texts[name] for name, found in without.items() if found >= FLOOR and len(worst) > 1]
        alone = [texts[name] for name in worst if effective(latents.weights({name: worst[name]})) >= FLOOR]
        if means:
            hint = f"; supported without {', '.join(means)}"
        elif helpful:
            hint = f"; supported without {' or without '.join(helpful)}"
        elif alone and len(worst) > 1:
            hint = f"; supported one by one: {', '.join(alone)}"
        else:
            hint = ""
        named = ", ".join([*texts.values(), *means])
        return (
            f"{named}: the generator hardly makes such rows ({worth.min():.0f} effective latents "
            f"of {len(latents.noise)}; at least {FLOOR:.0f} are needed){hint}"
        )

    def _text(self, name: str, number: int) -> str:
        if name in self.names:
            return self.groups[self.names.index(name)][number].text
        return self.request.texts[name]


def _rake(masses: np.ndarray, asked: _Asked) -> np.ndarray:
    """The distribution over parts that has the shares asked for and is nearest to the generator's, by relative entropy.

    Raises:
        ConditionError: there is none.
    Source: Deming and Stephan 1940; Csiszár 1975 (that it is the nearest).
    """
    shares = masses / masses.sum()
    if shares.ndim == 1:
        return np.asarray(asked.targets(0))
    for _ in range(_MOST_RAKES if shares.ndim else 0):
        apart = 0.0
        for axis in range(shares.ndim):
            others = tuple(other for other in range(shares.ndim) if other != axis)
            found, target = shares.sum(axis=others, keepdims=True), np.expand_dims(asked.targets(axis), others)
            apart = max(apart, float(np.abs(found - target).max()))
            shares = shares * np.divide(target, found, out=np.zeros_like(found), where=found > 0)
        if apart < _CLOSE:
            return np.asarray(shares)
    if shares.ndim:
        raise ConditionError(
            f"{', '.join(asked.names)}: these proportions cannot be met together: too few kinds of rows have both",
            ExitCode.CONDITION_UNSUPPORTED,
        )
    return np.asarray(shares)


def _round(shares: np.ndarray, asked: _Asked, rows: int) -> np.ndarray:
    """Whole rows of each part, int64, whose sums along each axis are the shares asked for, to a row.

    Raises:
        ConditionError: no whole numbers have these sums.
    Source: Cox 1987 (controlled rounding), here as an integer program.
    """
    if shares.ndim == 0:
        return np.asarray(rows, dtype=np.int64)
    sums = [whole_shares(asked.targets(axis), rows) for axis in range(shares.ndim)]
    if shares.ndim == 1:
        return np.asarray(sums[0])
    size, exact = shares.size, shares.ravel() * rows
    position = np.indices(shares.shape).reshape(shares.ndim, size)
    along = np.vstack([np.eye(length)[:, position[axis]] for axis, length in enumerate(shares.shape)])
    each, total = np.eye(size), np.concatenate(sums)
    # Variables: rows of each part, then how far each is from its exact share, which is to be small.
    result = milp(
        np.repeat([0.0, 1.0], size),
        integrality=np.repeat([1, 0], size),
        bounds=Bounds(0, np.concatenate([np.where(exact > 0, rows, 0), np.full(size, np.inf)])),
        constraints=[
            LinearConstraint(csr_array(np.hstack([along, np.zeros_like(along)])), total, total),
            LinearConstraint(csr_array(np.hstack([each, -each])), -np.inf, exact),
            LinearConstraint(csr_array(np.hstack([each, each])), exact, np.inf),
        ],
    )
    if result.x is None:
        raise ConditionError(
            f"{', '.join(asked.names)}: {rows} rows are too few to have all these shares",
            ExitCode.CONDITION_UNSUPPORTED,
        )
    return np.asarray(np.rint(result.x[:size]).astype(np.int64).reshape(shares.shape))
