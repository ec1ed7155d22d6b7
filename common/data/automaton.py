"""What the constraints on columns leave of all rows, as automata that read a row column by column.

Columns that a constraint ties together form one automaton; others are free. Their values are cut into pieces that
every constraint treats alike, so that a row is a word over pieces, and the rows that fulfil all constraints are the
words that are accepted. With the chance of each piece, a backward pass over the states gives the chance of acceptance,
and a forward pass draws accepted words only: nothing is rejected (Rabiner 1989, for hidden Markov models).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

import numpy as np

from common.data.constraints import Constraint, OrderedRule, Rule, State, make_rules
from common.data.encoding import Grid, make_grid
from common.data.schema import CategoricalColumn, Column
from common.data.selection import Piece, Selection, bounds_of, cut

DEAD = -1
_DONE = "done"
"""State of a rule whose columns have all been read."""
_MOST = 2**20
"""States times pieces of one column that an automaton may have."""


@dataclass(frozen=True)
class Run:
    """Columns whose values lie in one interval and must be in order there; the last one was just added.

    low: where the interval begins. count: how many numbers are in it. strict: whether values must differ.
    """

    names: tuple[str, ...]
    low: float
    count: float
    strict: bool

    @property
    def has_room(self) -> bool:
        """Whether there are values that are in order."""
        return not self.strict or self.count >= len(self.names)


@dataclass(frozen=True)
class Automaton:
    """The rows that fulfil some constraints.

    names: columns, in the order in which they are read.
    pieces: of each column.
    moves: of each column, (states before, pieces) int64, the state after; DEAD where no row can go on so. One state
        comes before the first column.
    runs: of each column, by (state, piece), which runs of ordered values grow by it. None of them may be so.
    """

    names: tuple[str, ...]
    pieces: tuple[tuple[Piece, ...], ...]
    moves: tuple[np.ndarray, ...]
    runs: tuple[Mapping[tuple[int, int], tuple[Run, ...]], ...] = field(default=())

    def accepts_any(self) -> bool:
        """Whether there is a row, as far as numbers of values tell of runs."""
        alive = {0}
        for moves, runs in zip(self.moves, self.runs, strict=True):
            alive = {
                int(after)
                for state in alive
                for piece, after in enumerate(moves[state])
                if after != DEAD and all(run.has_room for run in runs.get((state, piece), ()))
            }
        return bool(alive)


def make_automata(
    constraints: Sequence[Constraint],
    columns: Mapping[str, Column],
    *,
    also: Mapping[str, Iterable[Selection]] | None = None,
    starts: Callable[[Grid], Sequence[float]] = lambda _: (),
) -> tuple[Automaton, ...]:
    """One automaton for all columns that constraints tie together.

    Args:
        constraints: as declared.
        columns: of the records, label included.
        also: more selections to cut the pieces of a column by.
        starts: numbers at which a piece of a column in an ordered constraint begins.

    Raises:
        ValueError: a constraint is malformed, or they tie too many columns together.
    """
    rules = make_rules(constraints, columns)
    return tuple(_make(own, columns, also or {}, starts) for own in _tied(rules))


def check_constraints(constraints: Sequence[Constraint], columns: Mapping[str, Column]) -> None:
    """Refuse constraints on columns that no row fulfils.

    Raises:
        ValueError: names those that contradict each other, none of which could be left out.
    """
    if _are_consistent(constraints, columns):
        return
    blamed = list(constraints)
    for one in constraints:
        fewer = [other for other in blamed if other is not one]
        if not _are_consistent(fewer, columns):
            blamed = fewer
    raise ValueError(f"constraints: no row fulfils: {'; '.join(one.text for one in blamed)}")


def _are_consistent(constraints: Sequence[Constraint], columns: Mapping[str, Column]) -> bool:
    return all(automaton.accepts_any() for automaton in make_automata(constraints, columns))


def _tied(rules: Sequence[Rule]) -> list[list[Rule]]:
    """Rules that share columns, directly or through others."""
    groups: list[tuple[set[str], list[Rule]]] = []
    for rule in rules:
        names, own = set(rule.names), [rule]
        apart = []
        for theirs, others in groups:
            if theirs & names:
                names, own = names | theirs, [*others, *own]
            else:
                apart.append((theirs, others))
        groups = [*apart, (names, own)]
    return [own for _, own in groups]


def _make(
    rules: Sequence[Rule],
    columns: Mapping[str, Column],
    also: Mapping[str, Iterable[Selection]],
    starts: Callable[[Grid], Sequence[float]],
) -> Automaton:
    names = _reading_order(rules, columns)
    grids = {name: make_grid(name, columns[name]) for name in names}
    cuts: dict[str, list[Selection]] = {name: list(also.get(name, ())) for name in names}
    for rule in rules:
        for selection in rule.cuts():
            cuts[selection.grid.name].append(selection)
    marks = _shared_marks(rules, grids, cuts, starts)
    pieces = {name: tuple(cut(grids[name], cuts[name], starts=sorted(marks.get(name, ())))) for name in names}
    last = [max(rule.names, key=names.index) for rule in rules]
    states: dict[tuple[State, ...], int] = {tuple(rule.start for rule in rules): 0}
    moves, runs = [], []
    for name in names:
        if len(states) * len(pieces[name]) > _MOST:
            raise ValueError(f"constraints: they tie too many values together at {name}; leave some out")
        found: dict[tuple[State, ...], int] = {}
        table = np.full((len(states), len(pieces[name])), DEAD, dtype=np.int64)
        grown: dict[tuple[int, int], tuple[Run, ...]] = {}
        for state, number in states.items():
            for at, piece in enumerate(pieces[name]):
                after = _read(rules, state, name, piece, last)
                if after is None:
                    continue
                table[number, at] = found.setdefault(after[0], len(found))
                if after[1]:
                    grown[number, at] = after[1]
        moves.append(table)
        runs.append(grown)
        states = found
    return Automaton(names, tuple(pieces[name] for name in names), tuple(moves), tuple(runs))


def _read(
    rules: Sequence[Rule], state: tuple[State, ...], name: str, piece: Piece, last: Sequence[str]
) -> tuple[tuple[State, ...], tuple[Run, ...]] | None:
    """The states after a piece, and the runs that grew by it; None where no row can go on so."""
    after: list[State] = []
    runs = []
    for rule, before, at_last in zip(rules, state, last, strict=True):
        own: State | None = before
        if name in rule.names:
            own = rule.read(before, name, piece)
            if own is None:
                return None
            if isinstance(rule, OrderedRule) and not piece.is_missing:
                names = rule.run_of(own)
                runs += [Run(names, piece.low, piece.count, rule.strict)] if len(names) > 1 else []
        if name == at_last:
            if not rule.accepts(own):
                return None
            own = _DONE
        after.append(own)
    return tuple(after), tuple(runs)


def _reading_order(rules: Sequence[Rule], columns: Mapping[str, Column]) -> tuple[str, ...]:
    """As the study lists them, but ordered columns as they are ordered."""
    tied = {name for rule in rules for name in rule.names}
    before: dict[str, set[str]] = {name: set() for name in columns if name in tied}
    for rule in rules:
        if isinstance(rule, OrderedRule):
            for first, second in pairwise(rule.names):
                before[second].add(first)
    sorter = TopologicalSorter(before)
    try:
        sorter.prepare()
    except CycleError as error:
        raise ValueError(f"constraints: columns are ordered in a circle: {' <= '.join(error.args[1])}") from None
    order: list[str] = []
    position = {name: at for at, name in enumerate(columns)}
    while sorter.is_active():
        ready = sorted(sorter.get_ready(), key=position.__getitem__)
        order += ready
        sorter.done(*ready)
    return tuple(order)


def _shared_marks(
    rules: Sequence[Rule],
    grids: Mapping[str, Grid],
    cuts: Mapping[str, Sequence[Selection]],
    starts: Callable[[Grid], Sequence[float]],
) -> dict[str, set[float]]:
    """Where the pieces of ordered columns begin: at the same numbers in all that are tied."""
    marks: dict[str, set[float]] = {}
    for rule in rules:
        if isinstance(rule, OrderedRule):
            shared: set[float] = set()
            for name in rule.names:
                # Both its own marks and those of the columns that it is tied to already.
                shared |= marks.get(name, set()) | _marks_of(grids[name], cuts[name], starts)
            for name in rule.names:
                marks[name] = shared
    # Columns that share one set of marks through different rules.
    changed = True
    while changed:
        changed = False
        for rule in rules:
            if isinstance(rule, OrderedRule):
                shared = set().union(*(marks[name] for name in rule.names))
                changed = changed or any(marks[name] != shared for name in rule.names)
                marks |= dict.fromkeys(rule.names, shared)
    return marks


def _marks_of(grid: Grid, cuts: Sequence[Selection], starts: Callable[[Grid], Sequence[float]]) -> set[float]:
    assert not isinstance(grid.column, CategoricalColumn)
    low, high = bounds_of(grid)
    marks = {low, *starts(grid), *(piece.low for piece in cut(grid, cuts) if not piece.is_missing)}
    # Above its own largest number another column is alone.
    return marks | {float(np.nextafter(high, np.inf)) if grid.column.steps is None else high + 1}
