"""What no row or window may violate, as the study declares it: public, checked before any row is read.

A constraint on columns says nothing of a row in which one of its columns is missing, one on a channel nothing of a
missing step, unless it speaks of missing values itself (`weight!=`: is there).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from common.data.encoding import Grid, make_grid
from common.data.schema import CategoricalColumn, Column, ContinuousColumn, DatetimeColumn, IntegerColumn, Section, Text
from common.data.selection import Piece, Selection, marks_of, parse_condition, parse_value
from common.errors import ConditionError

State = Hashable
_FREE = "free"
"""State of a rule that has nothing more to say of a row."""


class _Declared(Section, ABC):
    """One constraint."""

    @property
    @abstractmethod
    def text(self) -> str:
        """As a person would say it, in one line."""


class Implies(_Declared):
    """Where all conditions of `if` hold, so do all of `then`; without `if`, always."""

    kind: Literal["implies"]
    when: Annotated[tuple[Text, ...], Field(alias="if")] = ()
    then: Annotated[tuple[Text, ...], Field(min_length=1)]

    @property
    def text(self) -> str:  # noqa: D102 (as in the base)
        then = " and ".join(self.then)
        return f"{' and '.join(self.when)} implies {then}" if self.when else then


class Ordered(_Declared):
    """Numbers of several columns that never fall from one to the next; strict: that rise."""

    kind: Literal["ordered"]
    columns: Annotated[tuple[Text, ...], Field(min_length=2)]
    strict: bool = False

    @property
    def text(self) -> str:  # noqa: D102 (as in the base)
        return (" < " if self.strict else " <= ").join(self.columns)


class Combinations(_Declared):
    """Categories that go together: the values of the columns are one of the rows."""

    kind: Literal["combinations"]
    columns: Annotated[tuple[Text, ...], Field(min_length=2)]
    rows: Annotated[tuple[tuple[Text, ...], ...], Field(min_length=1)]

    @property
    def text(self) -> str:  # noqa: D102 (as in the base)
        return f"{', '.join(self.columns)} in {len(self.rows)} combinations"


class OneHot(_Declared):
    """Exactly one of several columns has the value; a column that is missing has not."""

    kind: Literal["one_hot"]
    columns: Annotated[tuple[Text, ...], Field(min_length=2)]
    value: Text

    @property
    def text(self) -> str:  # noqa: D102 (as in the base)
        return f"one of {', '.join(self.columns)} is {self.value}"


class Sum(_Declared):
    """A column that is the sum of others. It is computed, not learned, and missing where one of them is."""

    kind: Literal["sum"]
    total: Text
    parts: Annotated[tuple[Text, ...], Field(min_length=2)]

    @property
    def text(self) -> str:  # noqa: D102 (as in the base)
        return f"{self.total} = {' + '.join(self.parts)}"


class Monotone(_Declared):
    """A channel whose values never fall, or never rise, from one step to the next one that holds a value.

    Categories are in the order in which the study lists them.
    """

    kind: Literal["monotone"]
    channel: Text
    direction: Literal["rising", "falling"] = "rising"

    @property
    def text(self) -> str:  # noqa: D102 (as in the base)
        return f"{self.channel} never {'falls' if self.direction == 'rising' else 'rises'}"


class Transitions(_Declared):
    """Pairs of categories of a channel of which the second never follows the first, missing steps left out."""

    kind: Literal["transitions"]
    channel: Text
    forbidden: Annotated[tuple[tuple[Text, Text], ...], Field(min_length=1)]

    @property
    def text(self) -> str:  # noqa: D102 (as in the base)
        return f"{self.channel} without {', '.join(' to '.join(pair) for pair in self.forbidden)}"


Constraint = Annotated[
    Implies | Ordered | Combinations | OneHot | Sum | Monotone | Transitions, Field(discriminator="kind")
]
CONSTRAINT_KINDS: Final[dict[str, type[Section]]] = {
    "implies": Implies,
    "ordered": Ordered,
    "combinations": Combinations,
    "one_hot": OneHot,
    "sum": Sum,
    "monotone": Monotone,
    "transitions": Transitions,
}
OnChannel = Monotone | Transitions


# --- rules: what an automaton reads of a row, column by column


class Rule(ABC):
    """A constraint on columns, as states that the pieces of a row are read into one after the other.

    names: its columns, in the order in which it reads them.
    start: state before the first.
    """

    names: tuple[str, ...]
    start: State

    @abstractmethod
    def cuts(self) -> Iterator[Selection]:
        """Selections of which every piece that is read is a part or no part."""

    @abstractmethod
    def read(self, state: State, name: str, piece: Piece) -> State | None:
        """The next state; None where no row can go on so."""

    @abstractmethod
    def accepts(self, state: State) -> bool:
        """Whether a row that ends so fulfils the constraint."""

    @abstractmethod
    def holds(self, records: pd.DataFrame) -> np.ndarray:
        """Whether each row of a table in the schema's dtypes fulfils it, (rows,) bool."""


@dataclass(frozen=True)
class ImpliesRule(Rule):
    """See `Implies`. when, then: by column. present: columns of `then` that must not be missing."""

    names: tuple[str, ...]
    when: Mapping[str, Selection]
    then: Mapping[str, Selection]
    present: frozenset[str]
    start: State = (True, True)

    def cuts(self) -> Iterator[Selection]:  # noqa: D102 (as in the base)
        yield from self.when.values()
        yield from self.then.values()

    def read(self, state: State, name: str, piece: Piece) -> State | None:  # noqa: D102
        if state == _FREE:
            return state
        assert isinstance(state, tuple)
        concerned, fulfilled = state
        if name in self.when and not piece.is_in(self.when[name]):
            return _FREE
        if name in self.then and not piece.is_in(self.then[name]):
            fulfilled = fulfilled and piece.is_missing and name not in self.present
        return concerned, fulfilled

    def accepts(self, state: State) -> bool:  # noqa: D102
        return state in (_FREE, (True, True))

    def holds(self, records: pd.DataFrame) -> np.ndarray:  # noqa: D102
        concerned, fulfilled = np.ones(len(records), dtype=bool), np.ones(len(records), dtype=bool)
        for name, selection in self.when.items():
            concerned &= selection.holds(records[name])
        for name, selection in self.then.items():
            own = selection.holds(records[name])
            fulfilled &= own if name in self.present else own | records[name].isna().to_numpy(dtype=bool)
        return ~concerned | fulfilled


@dataclass(frozen=True)
class OrderedRule(Rule):
    """See `Ordered`. A state is the interval of the last value, and which columns have had a value in it.

    grids: of the columns, whose numbers compare with one another.
    """

    names: tuple[str, ...]
    strict: bool
    grids: Mapping[str, Grid]
    start: State = None

    def cuts(self) -> Iterator[Selection]:  # noqa: D102
        yield from ()

    def read(self, state: State, name: str, piece: Piece) -> State | None:  # noqa: D102
        if piece.is_missing:
            return state if state is not None else (-np.inf, ())
        here = piece.low
        assert state is None or isinstance(state, tuple)
        before, run = state or (-np.inf, ())
        if here < before:
            return None
        return here, ((*run, name) if here == before else (name,))

    def run_of(self, state: State) -> tuple[str, ...]:
        """The columns whose values so far lie in the interval of the last one."""
        assert isinstance(state, tuple)
        return tuple(state[1])

    def accepts(self, state: State) -> bool:  # noqa: ARG002, D102
        return True

    def holds(self, records: pd.DataFrame) -> np.ndarray:  # noqa: D102
        fine, begun = np.ones(len(records), dtype=bool), np.zeros(len(records), dtype=bool)
        before: np.ndarray | None = None
        for name in self.names:
            own, there = marks_of(records[name], self.grids[name]), records[name].notna().to_numpy(dtype=bool)
            before = own if before is None else before
            fine &= ~(there & begun) | ((own > before) if self.strict else (own >= before))
            before, begun = np.where(there, own, before), begun | there
        return fine


@dataclass(frozen=True)
class CombinationsRule(Rule):
    """See `Combinations`. A state is the set of rows that still agree. values: of each row and column."""

    names: tuple[str, ...]
    grids: Mapping[str, Grid]
    rows: tuple[tuple[str, ...], ...]

    @property
    def start(self) -> State:  # type: ignore[override]
        """All rows agree."""
        return frozenset(range(len(self.rows)))

    def cuts(self) -> Iterator[Selection]:  # noqa: D102
        for at, name in enumerate(self.names):
            for value in sorted({row[at] for row in self.rows}):
                yield parse_value(value, self.grids[name], name)

    def read(self, state: State, name: str, piece: Piece) -> State | None:  # noqa: D102
        if state == _FREE or piece.is_missing:
            return _FREE
        at, value = self.names.index(name), piece.category
        assert isinstance(state, frozenset)
        return frozenset(number for number in state if self.rows[number][at] == value)

    def accepts(self, state: State) -> bool:  # noqa: D102
        return bool(state)

    def holds(self, records: pd.DataFrame) -> np.ndarray:  # noqa: D102
        own = records[list(self.names)]
        allowed = set(self.rows)
        known = np.array([row in allowed for row in own.astype(object).itertuples(index=False, name=None)], dtype=bool)
        return known | own.isna().to_numpy(dtype=bool).any(axis=1)


@dataclass(frozen=True)
class OneHotRule(Rule):
    """See `OneHot`. A state is how many columns have had the value. marks: the value in each column."""

    names: tuple[str, ...]
    marks: Mapping[str, Selection]
    start: State = 0

    def cuts(self) -> Iterator[Selection]:  # noqa: D102
        yield from self.marks.values()

    def read(self, state: State, name: str, piece: Piece) -> State | None:  # noqa: D102
        assert isinstance(state, int)
        found = state + piece.is_in(self.marks[name])
        return found if found <= 1 else None

    def accepts(self, state: State) -> bool:  # noqa: D102
        return state == 1

    def holds(self, records: pd.DataFrame) -> np.ndarray:  # noqa: D102
        counts = np.sum([mark.holds(records[name]) for name, mark in self.marks.items()], axis=0)
        return np.asarray(counts == 1)


# --- from what is declared


def make_rules(constraints: Sequence[Constraint], columns: Mapping[str, Column]) -> tuple[Rule, ...]:
    """The rules of constraints on columns; sums, which are computed, and constraints on channels have none.

    Args:
        constraints: as declared.
        columns: of the records, label included.

    Raises:
        ValueError: one names what is not there, or compares what cannot be.
    """

    def find(name: str) -> Grid:
        if name not in columns:
            raise ConditionError(f"{name}: no such column")
        return make_grid(name, columns[name])

    rules = []
    for at, constraint in enumerate(constraints):
        try:
            rule = _make_rule(constraint, find)
        except (ConditionError, ValueError) as error:
            raise ValueError(f"constraints.{at}: {error}") from None
        if rule is not None:
            rules.append(rule)
    return tuple(rules)


def _make_rule(constraint: Constraint, find: Callable[[str], Grid]) -> Rule | None:
    if isinstance(constraint, Implies):
        (when, _), (then, present) = (_joined(texts, find) for texts in (constraint.when, constraint.then))
        return ImpliesRule(tuple(dict.fromkeys([*when, *then])), when, then, frozenset(present))
    if isinstance(constraint, Ordered):
        _check_distinct(constraint.columns)
        grids = {name: find(name) for name in constraint.columns}
        if len({_scale_of(name, grid.column) for name, grid in grids.items()}) > 1:
            raise ValueError(
                "columns: expected all to be whole numbers, or all to have the same `decimals`, or to be moments with "
                "the same min, unit and timezone"
            )
        return OrderedRule(constraint.columns, constraint.strict, grids)
    if isinstance(constraint, Combinations):
        _check_distinct(constraint.columns)
        grids = {name: find(name) for name in constraint.columns}
        for row in constraint.rows:
            if len(row) != len(constraint.columns):
                raise ValueError("rows: expected one value a column in each")
            for name, value in zip(constraint.columns, row, strict=True):
                _check_category(name, grids[name].column, value)
        return CombinationsRule(constraint.columns, grids, constraint.rows)
    if isinstance(constraint, OneHot):
        _check_distinct(constraint.columns)
        marks = {name: parse_value(constraint.value, find(name), name) for name in constraint.columns}
        return OneHotRule(constraint.columns, marks)
    return None


def _joined(texts: Sequence[str], find: Callable[[str], Grid]) -> tuple[dict[str, Selection], set[str]]:
    """What is wanted of each column; and columns of which one condition wants no more than that a value is there."""
    found: dict[str, Selection] = {}
    present = set()
    for text in texts:
        name, selection = parse_condition(text, find)
        if _is_any_value(selection):
            present.add(name)
        found[name] = found[name].both(selection) if name in found else selection
        if found[name].is_empty:
            raise ValueError(f"{text}: no value of {name} fulfils this and what is said before")
    return found, present


def _is_any_value(selection: Selection) -> bool:
    """Whether it is every value but the missing one."""
    shares = selection.shares()
    return bool((shares[: selection.grid.n_values] == 1).all()) and not selection.missing


def _check_distinct(names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        raise ValueError("columns: a column is listed twice")


def _scale_of(name: str, column: Column) -> Hashable:
    """What two columns have in common whose numbers of steps compare."""
    if isinstance(column, CategoricalColumn):
        raise ValueError(f"columns: {name} is categorical; expected numbers")
    return column.clock if isinstance(column, DatetimeColumn) else column.steps


def _check_category(name: str, column: Column, value: str) -> None:
    if not isinstance(column, CategoricalColumn) or value not in column.values:
        raise ValueError(f"{name}={value}: expected a category of the column")


# --- sums


def totals(constraints: Sequence[Constraint]) -> dict[str, Sum]:
    """The sums, by the column that is computed."""
    return {one.total: one for one in constraints if isinstance(one, Sum)}


def check_sums(constraints: Sequence[Constraint], columns: Mapping[str, Column], *, label: str) -> None:
    """Refuse a sum that its column could not hold.

    Raises:
        ValueError: names it.
    """
    sums = totals(constraints)
    declared = [one for one in constraints if isinstance(one, Sum)]
    if len(sums) != len(declared):
        raise ValueError("constraints: a column is the total of two sums")
    for at, constraint in enumerate(constraints):
        if isinstance(constraint, Sum):
            try:
                _check_sum(constraint, columns, {label, *sums})
            except ValueError as error:
                raise ValueError(f"constraints.{at}: {error}") from None
    for rule in make_rules(constraints, columns):
        if taken := set(rule.names) & sums.keys():
            raise ValueError(f"constraints: {min(taken)} is computed as a sum; constrain its parts")


def _check_sum(constraint: Sum, columns: Mapping[str, Column], taken: set[str]) -> None:
    _check_distinct((constraint.total, *constraint.parts))
    names = (constraint.total, *constraint.parts)
    found = [columns[name] for name in names if name in columns]
    if len(found) < len(names) or any(isinstance(column, CategoricalColumn | DatetimeColumn) for column in found):
        raise ValueError("total, parts: expected numeric columns of `columns`")
    if taken & set(constraint.parts):
        raise ValueError("parts: a total of another sum cannot be a part; list what it is the sum of")
    total, *parts = (column for column in found if isinstance(column, IntegerColumn | ContinuousColumn))
    if sum(part.min for part in parts) < total.min or sum(part.max for part in parts) > total.max:
        raise ValueError(f"total={constraint.total}: the parts' bounds add up to more than its own; widen min and max")
    if any(part.missing for part in parts) and not total.missing:
        raise ValueError(f"total={constraint.total}: set `missing: true`, since a part may be missing")
    if total.steps is not None and any(part.steps is None or part.steps > total.steps for part in parts):
        raise ValueError(f"total={constraint.total}: the parts have more decimals than it")


def add_sums(records: pd.DataFrame, constraints: Sequence[Constraint], columns: Mapping[str, Column]) -> pd.DataFrame:
    """Records with each computed column, in the schema's dtype, after the others."""
    added = {name: _sum_of(records, one, columns[name]) for name, one in totals(constraints).items()}
    return records.assign(**added)


def _sum_of(records: pd.DataFrame, constraint: Sum, column: Column) -> pd.Series:
    assert isinstance(column, IntegerColumn | ContinuousColumn)
    steps = column.steps
    parts = [records[name] for name in constraint.parts]
    if isinstance(column, IntegerColumn):
        whole = sum((part.astype("Int64") for part in parts[1:]), start=parts[0].astype("Int64"))
        return whole if column.missing else whole.astype("int64")
    numbers = np.column_stack([part.to_numpy(np.float64, na_value=np.nan) for part in parts])
    if steps is None:
        return pd.Series(numbers.sum(axis=1).clip(column.min, column.max), index=records.index)
    return pd.Series(np.rint(numbers * steps).sum(axis=1) / steps, index=records.index)


# --- channels


def allowed_moves(constraints: Sequence[Constraint], channels: Mapping[str, Column]) -> dict[str, np.ndarray]:
    """Of each categorical channel that has a constraint, which value may follow which, (values, values) bool.

    Raises:
        ValueError: one names what is not there, or leaves no window.
    """
    moves: dict[str, np.ndarray] = {}
    for at, constraint in enumerate(constraints):
        if not isinstance(constraint, OnChannel):
            continue
        column = channels.get(constraint.channel)
        if column is None:
            raise ValueError(f"constraints.{at}: channel={constraint.channel}: expected a channel of `windows`")
        if not isinstance(column, CategoricalColumn):
            if isinstance(constraint, Transitions):
                raise ValueError(f"constraints.{at}: channel={constraint.channel}: expected a categorical channel")
            continue
        values = list(column.values)
        own = moves.setdefault(constraint.channel, np.ones((len(values), len(values)), dtype=bool))
        if isinstance(constraint, Monotone):
            own &= np.triu(own) if constraint.direction == "rising" else np.tril(own)
            continue
        for pair in constraint.forbidden:
            if not set(pair) <= set(values):
                raise ValueError(f"constraints.{at}: forbidden: expected pairs of categories of the channel")
            own[values.index(pair[0]), values.index(pair[1])] = False
    for name, own in moves.items():
        _check_moves(name, own)
    return moves


def _check_moves(name: str, allowed: np.ndarray) -> None:
    """Refuse what no long window can fulfil: every value leads to an end."""
    alive: np.ndarray = np.ones(len(allowed), dtype=bool)
    for _ in range(len(allowed)):
        alive = (allowed & alive).any(axis=1)
    if not alive.any():
        raise ValueError(f"constraints: {name}: no sequence of values is allowed")


def directions(constraints: Sequence[Constraint], channels: Mapping[str, Column]) -> dict[str, int]:
    """Of each numeric channel that never falls 1, of each that never rises -1.

    Raises:
        ValueError: one is declared to do both.
    """
    found: dict[str, int] = {}
    for constraint in constraints:
        if isinstance(constraint, Monotone) and not isinstance(channels.get(constraint.channel), CategoricalColumn):
            sign = 1 if constraint.direction == "rising" else -1
            if found.setdefault(constraint.channel, sign) != sign:
                raise ValueError(f"constraints: {constraint.channel}: cannot both rise and fall")
    return found


# --- violations


def count_row_violations(
    records: pd.DataFrame, constraints: Sequence[Constraint], columns: Mapping[str, Column]
) -> dict[str, int]:
    """Rows that violate each constraint on columns, by its text; records in the schema's dtypes."""
    rules = iter(make_rules(constraints, columns))
    counts: dict[str, int] = {}
    for constraint in constraints:
        if isinstance(constraint, OnChannel):
            continue
        if isinstance(constraint, Sum):
            expected = _sum_of(records, constraint, columns[constraint.total])
            wrong = ~_same(records[constraint.total], expected)
        else:
            wrong = ~next(rules).holds(records)
        counts[constraint.text] = int(wrong.sum())
    return counts


def _same(first: pd.Series, second: pd.Series) -> np.ndarray:
    same = (first == second).fillna(value=False).to_numpy(dtype=bool)
    return np.asarray(same | (first.isna() & second.isna()).to_numpy(dtype=bool))


def count_step_violations(
    values: np.ndarray, constraints: Sequence[Constraint], channels: Mapping[str, Column]
) -> dict[str, int]:
    """Units that violate each constraint on a channel, by its text.

    Args:
        values: (units, steps, channels), NaN where missing and beyond the last step; categories as positions.
        constraints: as declared.
        channels: in the order of the last axis.
    """
    counts: dict[str, int] = {}
    for constraint in constraints:
        if not isinstance(constraint, OnChannel):
            continue
        own = pd.DataFrame(values[:, :, list(channels).index(constraint.channel)])
        before = own.ffill(axis=1).shift(1, axis=1).to_numpy()
        here = own.to_numpy()
        both = ~np.isnan(before) & ~np.isnan(here)
        if isinstance(constraint, Monotone):
            wrong = both & ((here < before) if constraint.direction == "rising" else (here > before))
        else:
            moves = allowed_moves([constraint], channels)[constraint.channel]
            wrong = both & ~moves[np.nan_to_num(before).astype(np.int64), np.nan_to_num(here).astype(np.int64)]
        counts[constraint.text] = int(wrong.any(axis=1).sum())
    return counts
