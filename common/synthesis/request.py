"""What a consumer asks for: conditions that every row fulfils, shares of groups of rows, and means of columns."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.data.constraints import totals
from common.data.encoding import Grid, make_grid
from common.data.selection import Selection, disjoint, everything, parse_condition, parse_value
from common.errors import ConditionError
from common.study import Study
from common.synthesis.moments import Moment, Moments, read_moment


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
    moments: means and standard deviations, one a column at most.
    match: whether columns are to be distributed as the release's one-way tables say.
    """

    conditions: Mapping[str, Selection]
    texts: Mapping[str, str]
    proportions: Mapping[str, Sequence[Group]]
    moments: Sequence[Moment] = ()
    match: bool = False


Conditions = Mapping[str, Any] | Sequence[str]
Proportions = Mapping[str, Mapping[Any, float]] | Sequence[str]


def parse_request(
    study: Study,
    *,
    where: Conditions = (),
    proportions: Proportions = (),
    moments: Moments | None = None,
    match: bool = False,
) -> Request:
    """Read what is asked for.

    Args:
        study: names the columns.
        where: texts such as `age>=65`, `diagnosis=sepsis`, `stay=3..7`, `weight=` (is missing); or by column a value, a
            list of values, a range as a tuple of two of which one may be None, or None for missing.
        proportions: texts such as `risk=high:0.3,low:0.7` or `age=..17:0.1,18..:0.9`; or by column the share of each
            value or range, the latter as text.
        moments: by column the mean of present values, or mean and standard deviation.
        match: whether columns are to be distributed as the release's one-way tables say; of the rest, only proportions
            of the label go with it.

    Raises:
        ConditionError: one cannot be read or fulfilled; the message says which.
    """
    columns = study.features | {study.label.column: study.columns[study.label.column]}
    computed = totals(study.constraints)

    def find(name: str) -> Grid:
        if name in study.channels:
            raise ConditionError(f"{name}: is a channel of the windows; ask for columns of the records")
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
    asked = [
        read_moment(name, value, find(name), _left_of(find(name), conditions.get(name), groups.get(name)))
        for name, value in (moments or {}).items()
    ]
    if match:
        _check_match(
            study, [*texts.values(), *(f"proportions of {name}" for name in groups), *(one.text for one in asked)]
        )
    return Request(conditions, texts, groups, asked, match)


def _left_of(
    grid: Grid, condition: Selection | None, groups: Sequence[Group] | None
) -> Sequence[tuple[float, Selection]]:
    """What is left of a column: shares of rows, and the values in them."""
    if groups is not None:
        return [(group.share, group.selection) for group in groups if group.share > 0]
    return [(1.0, everything(grid) if condition is None else condition)]


def _check_match(study: Study, asked: Sequence[str]) -> None:
    others = [text for text in asked if text != f"proportions of {study.label.column}"]
    if others:
        raise ConditionError(
            f"match: goes with proportions of {study.label.column} alone, not with {', '.join(others)}: the released "
            "tables are of all units of a class"
        )


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
