"""What a consumer asks for: conditions that every row fulfils, and shares of groups of rows; and how to fulfil it.

Shares of several columns at once are met together by the joint distribution that is nearest to the generator's own
(raking: the maximum-entropy one), rounded to whole rows so that every share is exact to a row.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from common.data.constraints import totals
from common.data.encoding import Grid, make_grid
from common.data.selection import Selection, disjoint, parse_condition, parse_value
from common.errors import ConditionError, ExitCode
from common.study import Study
from common.synthesis.latents import Latents, effective, whole_shares
from common.synthesis.release import Release

FLOOR: Final = 100.0
"""Effective latents below which what is asked for is not supported: rows would be near copies of a few."""
_ENOUGH: Final = 1000.0
"""Effective latents with which no more are drawn."""
_FIRST, _MOST = 2**14, 2**18
_MOST_GROUPS: Final = 1000
_MOST_RAKES: Final = 10_000
_CLOSE: Final = 1e-9


@dataclass(frozen=True)
class Group:
    """Some rows that are asked for: `share` of all, a column's value in `selection`; `text` as it was written."""

    text: str
    selection: Selection
    share: float


@dataclass(frozen=True)
class Request:
    """What is asked for.

    conditions: what all rows fulfil, by column; joined where a column has several.
    texts: how each condition was written.
    proportions: groups of each column, their shares adding up to 1.
    """

    conditions: Mapping[str, Selection]
    texts: Mapping[str, str]
    proportions: Mapping[str, Sequence[Group]]

    def __bool__(self) -> bool:
        """Whether anything is asked for."""
        return bool(self.conditions or self.proportions)


Conditions = Mapping[str, Any] | Sequence[str]
Proportions = Mapping[str, Mapping[Any, float]] | Sequence[str]


def parse_request(study: Study, *, where: Conditions = (), proportions: Proportions = ()) -> Request:
    """Read what is asked for.

    Args:
        study: names the columns.
        where: texts such as `age>=65`, `diagnosis=sepsis`, `stay=3..7`, `weight=` (is missing); or by column a value, a
            list of values, a range as a tuple of two of which one may be None, or None for missing.
        proportions: texts such as `risk=high:0.3,low:0.7` or `age=..17:0.1,18..:0.9`; or by column the share of each
            value or range, the latter as text.

    Raises:
        ConditionError: one cannot be read or fulfilled; the message says which.
    """
    columns = study.features | {study.label.column: study.columns[study.label.column]}
    computed = totals(study.constraints)

    def find(name: str) -> Grid:
        if name in study.channels:
            raise ConditionError(f"{name}: is a channel of the windows; conditions are on columns of the records")
        if name in computed:
            raise ConditionError(f"{name}: is computed as {computed[name].text}; ask for its parts")
        if name not in columns:
            raise ConditionError(f"{name}: no such column; there are {', '.join(columns)}")
        return make_grid(name, columns[name])

    conditions: dict[str, Selection] = {}
    texts: dict[str, str] = {}
    for name, selection, text in _read_conditions(where, find):
        joined = conditions[name].both(selection) if name in conditions else selection
        texts[name] = f"{texts[name]} and {text}" if name in texts else text
        if joined.is_empty:
            raise ConditionError(f"{texts[name]}: no value fulfils both")
        conditions[name] = joined
    groups: dict[str, Sequence[Group]] = {}
    for name, found in _read_proportions(proportions, find):
        if name in groups:
            raise ConditionError(f"{name}: proportions are given twice")
        _check_groups(name, found)
        groups[name] = [_narrowed(group, conditions.get(name), texts.get(name, "")) for group in found]
    return Request(conditions, texts, groups)


def _read_conditions(where: Conditions, find: Callable[[str], Grid]) -> Iterator[tuple[str, Selection, str]]:
    if not isinstance(where, Mapping):
        for text in where:
            yield (*parse_condition(text, find), text)
        return
    for name, value in where.items():
        grid = find(name)
        values = value if isinstance(value, list | set | frozenset) else [value]
        if not values:
            raise ConditionError(f"{name}: expected at least one value")
        parsed = [parse_value(_written(one), grid, name) for one in values]
        yield name, functools.reduce(Selection.either, parsed), f"{name}={' or '.join(map(_written, values))}"


def _written(value: Any) -> str:
    """A value of the Python interface as it is written in a condition."""
    if isinstance(value, tuple):
        if len(value) != 2:
            raise ConditionError("a range: expected a tuple of two, of which one may be None")
        return "..".join("" if end is None else str(end) for end in value)
    return "" if value is None else str(value)


def _read_proportions(proportions: Proportions, find: Callable[[str], Grid]) -> Iterator[tuple[str, list[Group]]]:
    if not isinstance(proportions, Mapping):
        yield from (_parse_proportions(text, find) for text in proportions)
        return
    for name, shares in proportions.items():
        grid = find(name)
        yield (
            name,
            [
                Group(f"{name}={value}", parse_value(str(value), grid, name), _share(str(share), f"{name}={value}"))
                for value, share in shares.items()
            ],
        )


def _check_groups(name: str, groups: Sequence[Group]) -> None:
    if not disjoint([group.selection for group in groups]):
        raise ConditionError(f"{name}: two groups have values in common")
    total = math.fsum(group.share for group in groups)
    if abs(total - 1) > 1e-6:
        raise ConditionError(f"{name}: the shares add up to {total:g}; expected 1")


def _parse_proportions(text: str, find: Callable[[str], Grid]) -> tuple[str, list[Group]]:
    name, equals, listed = (part.strip() for part in text.partition("="))
    if not equals or not listed:
        raise ConditionError(f"{text}: expected a column, =, and value:share of each group, with commas between")
    grid = find(name)
    groups = []
    for part in _split(listed, grid):
        value, colon, share = (piece.strip() for piece in part.rpartition(":"))
        if not colon:
            raise ConditionError(f"{name}: {part}: expected value:share")
        groups.append(Group(f"{name}={value}", parse_value(value, grid, name), _share(share, f"{name}={value}")))
    return name, groups


def _split(listed: str, grid: Grid) -> list[str]:
    """At the commas that end a group, since a category may hold some."""
    parts: list[str] = []
    held = ""
    for piece in listed.split(","):
        held = f"{held},{piece}" if held else piece
        value, colon, share = held.rpartition(":")
        if colon and (_is_known(value.strip(), grid) or (_is_number(share) and "," not in held)):
            parts.append(held)
            held = ""
    return [*parts, held] if held else parts


def _is_known(value: str, grid: Grid) -> bool:
    return grid.is_ordered or value in getattr(grid.column, "values", ())


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _share(text: str, of: str) -> float:
    share = float(text) if _is_number(text) else math.nan
    if not 0 <= share <= 1:
        raise ConditionError(f"{of}: share: expected a number from 0 to 1, not {text!r}")
    return share


def _narrowed(group: Group, condition: Selection | None, text: str) -> Group:
    """The group as far as a condition on the same column allows it."""
    if condition is None:
        return group
    both = group.selection.both(condition)
    if both.is_empty and group.share > 0:
        raise ConditionError(f"{group.text} is asked for, and {text} excludes it")
    return Group(group.text, both, group.share)


@dataclass(frozen=True)
class Plan:
    """How a request is fulfilled.

    latents: that rows are made from.
    parts: what each part of the rows fulfils, by column.
    part, label, latent: (rows,) int64, of each row: which part, which class of the label, which of `latents`; -1 for
        a fresh one, where the part says nothing of columns that latents make.
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


def make_plan(release: Release, request: Request, *, rows: int, seed: int, device: torch.device) -> Plan:
    """Latents and label classes of as many rows as are asked for.

    Args:
        release: to draw from.
        request: what every row, and how many of them, must be.
        rows: how many, at least 1.
        seed: of everything.
        device: of the generator.

    Raises:
        ConditionError: the generator does not support what is asked for, or the shares cannot be met together.
    """
    asked = _Asked(request)
    latents = Latents(release, asked.selections, seed=seed, device=device)
    size = _FIRST
    while True:
        latents.grow(size)
        measured = [latents.measure(part) for part in asked.parts]
        masses, worth = (np.array(column).reshape(asked.shape) for column in zip(*measured, strict=True))
        if worth.min() >= _ENOUGH or size >= _MOST:
            break
        size *= 2
    is_supported = worth >= FLOOR
    # Of several columns, groups that hardly occur together may be left out; of one, each group was asked for.
    if not is_supported.any() or (worth.ndim <= 1 and not is_supported.all()):
        raise ConditionError(asked.say_unsupported(latents, worth), ExitCode.CONDITION_UNSUPPORTED)
    counts = _round(_rake(np.where(is_supported, masses, 0.0), asked), asked, rows).ravel()
    random = np.random.default_rng([seed, 11])
    drawn = [
        np.vstack([np.full(count, number), *latents.draw(part, count, random)])
        for number, (part, count) in enumerate(zip(asked.parts, counts.tolist(), strict=True))
        if count
    ]
    part, label, latent = np.concatenate(drawn, axis=1)[:, random.permutation(rows)]
    return Plan(
        latents=latents,
        parts=[{name: asked.selections[name][number] for name, number in one.items()} for one in asked.parts],
        part=part,
        label=label,
        latent=latent,
        effective=float(worth.ravel()[counts > 0].min()),
        chance=float(masses.sum()),
    )


def free_plan(release: Release, labels: np.ndarray, *, seed: int, device: torch.device) -> Plan:
    """Rows of these label classes, (rows,) int64, of which nothing is asked."""
    latents = Latents(release, {}, seed=seed, device=device)
    nothing = np.zeros(len(labels), dtype=np.int64)
    return Plan(latents, [{}], nothing, labels, nothing - 1, effective=math.inf, chance=1.0)


class _Asked:
    """A request with its selections numbered.

    selections: of each column, by number: that of the condition, or those of its groups.
    parts: the number of each column's selection in every part: one group of each column that has some, and all
        conditions on other columns.
    shape: of the parts, groups of one column along each axis.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
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

    def targets(self, axis: int) -> np.ndarray:
        """Shares of the groups along an axis."""
        shares = np.array([group.share for group in self.groups[axis]])
        return np.asarray(shares / shares.sum())

    def say_unsupported(self, latents: Latents, worth: np.ndarray) -> str:
        """One line: what is not supported, how far it is, and what would be."""
        worst = self.parts[int(worth.argmin())]
        texts = {name: self._text(name, number) for name, number in worst.items()}
        without = {
            name: effective(latents.weights({other: at for other, at in worst.items() if other != name}))
            for name in worst
        }
        helpful = [texts[name] for name, found in without.items() if found >= FLOOR and len(worst) > 1]
        alone = [texts[name] for name in worst if effective(latents.weights({name: worst[name]})) >= FLOOR]
        if helpful:
            hint = f"; supported without {' or without '.join(helpful)}"
        elif alone and len(worst) > 1:
            hint = f"; supported one by one: {', '.join(alone)}"
        else:
            hint = ""
        return (
            f"{', '.join(texts.values())}: the generator hardly makes such rows ({worth.min():.0f} effective latents "
            f"of {len(latents.noise)}; at least {FLOOR:.0f} are needed){hint}"
        )

    def _text(self, name: str, number: int) -> str:
        if name in self.names:
            return self.groups[self.names.index(name)][number].text
        return self._request.texts[name]


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
