"""Which values of a column are wanted: parsed, joined, weighed against the cells of its grid, and drawn.

A selection is a set of public values: categories, or closed intervals of numbers; and whether missing is one of them.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Final

import numpy as np
import pandas as pd

from common.data.encoding import Grid
from common.data.schema import CategoricalColumn, DatetimeColumn, IntegerColumn, WholeColumn
from common.errors import ConditionError

Interval = tuple[float, float]
"""Both ends included. In steps of the column where it has steps, which are ints, of moments units since the minimum; as
numbers else."""
Mark = float | Decimal | Fraction
"""A number that is asked for, before it is rounded to the column's own."""

_RELATIONS: Final = ("!=", "<=", ">=", "=", "<", ">")
_BETWEEN: Final = ".."
_DIGITS: Final = 6
"""Decimals of a step within which a number that was asked for is a whole number of steps."""
_CLOSE: Final = Decimal(10) ** -_DIGITS


@dataclass(frozen=True)
class Selection:
    """Values of one column.

    grid: of the column.
    categories: (values,) bool, of a categorical column; None of a numeric one.
    intervals: of a numeric column, disjoint and rising; empty of a categorical one.
    missing: whether a missing value is wanted.
    """

    grid: Grid
    categories: np.ndarray | None
    intervals: tuple[Interval, ...]
    missing: bool

    def both(self, other: "Selection") -> "Selection":
        """What is in this one and in another of the same column."""
        categories = None
        if self.categories is not None and other.categories is not None:
            categories = self.categories & other.categories
        crossed = [
            (max(low, other_low), min(high, other_high))
            for low, high in self.intervals
            for other_low, other_high in other.intervals
        ]
        intervals = tuple(sorted(one for one in crossed if one[0] <= one[1]))
        return Selection(self.grid, categories, intervals, self.missing and other.missing)

    def either(self, other: "Selection") -> "Selection":
        """What is in this one or in another of the same column."""
        categories = None
        if self.categories is not None and other.categories is not None:
            categories = self.categories | other.categories
        intervals: list[Interval] = []
        for low, high in sorted((*self.intervals, *other.intervals)):
            if intervals and low <= intervals[-1][1]:
                intervals[-1] = (intervals[-1][0], max(high, intervals[-1][1]))
            else:
                intervals.append((low, high))
        return Selection(self.grid, categories, tuple(intervals), self.missing or other.missing)

    @property
    def is_empty(self) -> bool:
        """Whether there is no such value."""
        return not self.shares().any()

    def shares(self) -> np.ndarray:
        """Share of each cell's values that are wanted, (cells,) in [0, 1]."""
        grid = self.grid
        shares = np.zeros(grid.n_cells)
        if self.categories is not None:
            shares[: grid.n_values] = self.categories
        else:
            begin, end = _ends(grid)
            inside = sum((_overlap(begin, end, one, grid) for one in self.intervals), start=np.zeros(grid.n_values))
            shares[: grid.n_values] = inside / _overlap(begin, end, _bounds(grid), grid)
        if grid.column.missing:
            shares[-1] = self.missing
        return shares

    def moments(self, center: float) -> tuple[np.ndarray, np.ndarray]:
        """Mean of x - center and of its square over the wanted numbers x of each cell, (cells,); 0 where there is none.

        Of a numeric column. Numbers are taken as `draw` draws them: uniform over what is wanted of a cell.
        """
        begin, end = _ends(self.grid)
        steps = _steps(self.grid)
        size, first, second = (np.zeros(self.grid.n_cells) for _ in range(3))
        values = slice(self.grid.n_values)
        for interval in self.intervals:
            held = _overlap(begin, end, interval, self.grid)
            start = np.maximum(begin, interval[0])
            middle = start + held / 2 if steps is None else (start + (held - 1) / 2) / steps
            spread = held**2 / 12 if steps is None else (held**2 - 1) / 12 / steps**2
            size[values] += held
            first[values] += held * (middle - center)
            second[values] += held * (spread + (middle - center) ** 2)
        divisor = np.where(size > 0, size, 1.0)
        return first / divisor, second / divisor

    def holds(self, values: pd.Series) -> np.ndarray:
        """Whether each value of a column in the schema's dtype is in it, (rows,) bool."""
        absent = values.isna().to_numpy(dtype=bool)
        if self.categories is not None:
            codes = values.cat.codes.to_numpy()
            return np.where(absent, self.missing, self.categories[np.where(absent, 0, codes)])
        marks = marks_of(values, self.grid)
        inside = np.zeros(len(marks), dtype=bool)
        for low, high in self.intervals:
            inside |= (marks >= low) & (marks <= high)
        return np.where(absent, self.missing, inside)

    def draw(self, cells: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """A wanted number inside each cell of a numeric column, (rows,), of the kind that `Grid.typed` takes.

        That of the missing cell means nothing.

        Args:
            cells: (rows,) int64, each with a share above 0.
            generator: of the draws; uniform over what is wanted of a cell.
        """
        grid, absent = self.grid, cells == self.grid.n_values
        begin, end = (side[np.where(absent, 0, cells)] for side in _ends(grid))
        sizes = np.column_stack([_overlap(begin, end, one, grid) for one in self.intervals] or [np.ones(len(cells))])
        point = generator.random(len(cells)) * sizes.sum(axis=1)
        before = np.cumsum(sizes, axis=1) - sizes
        which = (point[:, None] >= before).sum(axis=1) - 1
        rows = np.arange(len(cells))
        lows, highs = np.array(self.intervals or [_bounds(grid)], dtype=begin.dtype).T
        start = np.maximum(begin, lows[which])
        if isinstance(grid.column, WholeColumn):
            # In the missing cell nothing is wanted of the first cell's, which stands in its place.
            last = np.where(absent, start, np.minimum(end, highs[which]))
            return np.asarray(generator.integers(start, last, endpoint=True))
        offset = np.clip(point - before[rows, which], 0.0, np.nextafter(sizes[rows, which], 0.0))
        steps = _steps(grid)
        # A sum may be rounded up, beyond what is wanted.
        marks = np.minimum(start + (offset if steps is None else np.floor(offset)), highs[which])
        numbers = marks if steps is None else marks / steps
        return np.where(absent, np.nan, numbers)


def everything(grid: Grid) -> Selection:
    """All values of a column, missing included if it may be."""
    if isinstance(grid.column, CategoricalColumn):
        return Selection(grid, np.ones(grid.n_values, dtype=bool), (), missing=grid.column.missing)
    return Selection(grid, None, (_bounds(grid),), missing=grid.column.missing)


def parse_condition(text: str, find: Callable[[str], Grid]) -> tuple[str, Selection]:
    """A condition such as `age>=65`, `diagnosis=sepsis`, `stay=3..7`, `weight!=` (is not missing).

    Args:
        text: column, relation, value.
        find: the grid of a column by its name; raises ConditionError for a name that it does not know.

    Returns:
        The column and what is wanted of it. A relation other than `=` with nothing behind it wants no missing value.

    Raises:
        ConditionError: it cannot be read, or names a value that the column cannot hold.
    """
    found = re.search("|".join(map(re.escape, _RELATIONS)), text)
    if found is None:
        raise ConditionError(f"{text}: expected a column, one of {' '.join(_RELATIONS)}, and a value")
    name, relation, value = text[: found.start()].strip(), found.group(), text[found.end() :].strip()
    grid = find(name)
    if relation in ("=", "!="):
        wanted = parse_value(value, grid, name)
        return name, wanted if relation == "=" else _all_but(wanted, value)
    if isinstance(grid.column, CategoricalColumn):
        raise ConditionError(f"{name}{relation}: categories have no order; use = or !=")
    low, high = _bounds(grid)
    mark = _mark(value, grid, name)
    if relation == "<=":
        high = min(high, _down(mark, grid))
    elif relation == "<":
        high = min(high, _before(_up(mark, grid), grid))
    elif relation == ">=":
        low = max(low, _up(mark, grid))
    else:
        low = max(low, _after(_down(mark, grid), grid))
    return name, _numbers(grid, [(low, high)], text)


def parse_value(text: str, grid: Grid, name: str) -> Selection:
    """A value, a range `low..high` with one end or both, or nothing for missing.

    Raises:
        ConditionError: the column cannot hold it.
    """
    if not text:
        if not grid.column.missing:
            raise ConditionError(f"{name}: the column has no missing values")
        categories = np.zeros(grid.n_values, dtype=bool) if isinstance(grid.column, CategoricalColumn) else None
        return Selection(grid, categories, (), missing=True)
    if isinstance(grid.column, CategoricalColumn):
        if text not in grid.column.values:
            raise ConditionError(f"{name}={text}: no such category; there are {', '.join(grid.column.values)}")
        return Selection(grid, np.array([value == text for value in grid.column.values]), (), missing=False)
    low, high = _bounds(grid)
    first, between, last = (part.strip() for part in text.partition(_BETWEEN))
    if not between:
        mark = _mark(first, grid, name)
        # What is written with more digits than the column has lies between two of its values.
        return _numbers(grid, [(max(low, _up(mark, grid)), min(high, _down(mark, grid)))], f"{name}={text}")
    low = max(low, _up(_mark(first, grid, name), grid)) if first else low
    high = min(high, _down(_mark(last, grid, name), grid)) if last else high
    return _numbers(grid, [(low, high)], f"{name}={text}")


def _numbers(grid: Grid, intervals: Sequence[Interval], text: str) -> Selection:
    kept = tuple((low, high) for low, high in intervals if low <= high)
    if not kept:
        raise ConditionError(f"{text}: the column holds no such value")
    return Selection(grid, None, kept, missing=False)


def _all_but(wanted: Selection, value: str) -> Selection:
    """The other values that are present; `!=` nothing wants whatever is present."""
    grid = wanted.grid
    if wanted.categories is not None:
        return Selection(grid, ~wanted.categories, (), missing=False)
    if not value:
        return Selection(grid, None, (_bounds(grid),), missing=False)
    (low, high), (first, last) = _bounds(grid), wanted.intervals[0]
    return _numbers(grid, [(low, _before(first, grid)), (_after(last, grid), high)], f"{grid.name}!={value}")


def disjoint(groups: Sequence[Selection]) -> bool:
    """Whether no value is in two of the groups."""
    return all(groups[one].both(groups[other]).is_empty for other in range(len(groups)) for one in range(other))


def _steps(grid: Grid) -> int | None:
    """Numbers in one unit; None for a categorical column, and for one that holds all floats."""
    return None if isinstance(grid.column, CategoricalColumn) else grid.column.steps


def _mark(text: str, grid: Grid, name: str) -> Mark:
    """A number, in steps where the column has some; exact where it holds whole ones."""
    column = grid.column
    if isinstance(column, DatetimeColumn):
        try:
            return column.clock.position(text)
        except ValueError as error:
            raise ConditionError(f"{name}: {error}, not {text!r}") from None
    try:
        number = float(text)
    except ValueError:
        raise ConditionError(f"{name}: expected a number, not {text!r}") from None
    if not math.isfinite(number):
        raise ConditionError(f"{name}: expected a finite number")
    if isinstance(column, IntegerColumn):
        exact = Decimal(text)
        whole = exact.to_integral_value()
        return whole if abs(exact - whole) < _CLOSE else exact
    steps = _steps(grid)
    # 0.29 * 100 is not quite 29.
    return number if steps is None else round(number * steps, _DIGITS)


def _up(mark: Mark, grid: Grid) -> float:
    return float(mark) if _steps(grid) is None else math.ceil(mark)


def _down(mark: Mark, grid: Grid) -> float:
    return float(mark) if _steps(grid) is None else math.floor(mark)


def _before(mark: float, grid: Grid) -> float:
    return float(np.nextafter(mark, -np.inf)) if _steps(grid) is None else mark - 1


def _after(mark: float, grid: Grid) -> float:
    return float(np.nextafter(mark, np.inf)) if _steps(grid) is None else mark + 1


def _bounds(grid: Grid) -> Interval:
    """The public bounds of a numeric column, in its steps where it has some."""
    column, steps = grid.column, _steps(grid)
    assert not isinstance(column, CategoricalColumn)
    if isinstance(column, WholeColumn):
        return column.min, column.max
    low, high = float(column.min), float(column.max)
    return (low, high) if steps is None else (round(low * steps), round(high * steps))


def marks_of(values: pd.Series, grid: Grid) -> np.ndarray:
    """Values of a numeric column in its steps, (rows,): int64 of whole numbers, else float64; any where missing.

    Of moments, units since the minimum.
    """
    column, steps = grid.column, _steps(grid)
    assert not isinstance(column, CategoricalColumn)
    if isinstance(column, WholeColumn):
        return column.to_whole(values)
    numbers = column.to_numbers(values)
    return numbers if steps is None else np.rint(numbers * steps)


def _ends(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """First value of each cell of a numeric column, and that of the next one; in steps where it has some.

    Of whole numbers, (cells,) int64, the first value and the last: there may be none after it.
    """
    if isinstance(grid.column, WholeColumn):
        assert grid.starts is not None
        return grid.starts, grid.lasts
    assert grid.edges is not None
    steps = _steps(grid)
    edges = grid.edges if steps is None else np.rint(grid.edges * steps)
    return edges[:-1], edges[1:]


def _overlap(begin: np.ndarray, end: np.ndarray, interval: Interval, grid: Grid) -> np.ndarray:
    """How much of each cell, ends as of `_ends`, an interval holds: numbers of steps, or a length; float64."""
    low, high = interval
    if isinstance(grid.column, WholeColumn):
        first, last = np.maximum(begin, low), np.minimum(end, high)
        # What lies between two numbers of int64 may be more than int64 counts, but not more than uint64.
        between = (last.astype(np.uint64) - first.astype(np.uint64)).astype(np.float64)
        return np.where(last >= first, between + 1.0, 0.0)
    return np.asarray(np.maximum(np.minimum(end, _after(high, grid)) - np.maximum(begin, low), 0.0))


@dataclass(frozen=True)
class Piece:
    """A part of a column's values, of which some selections hold all or nothing."""

    selection: Selection

    @property
    def is_missing(self) -> bool:
        """Whether it is the missing value."""
        return self.selection.missing

    @property
    def low(self) -> float:
        """The least number in it; in steps of the column where it has steps."""
        return self.selection.intervals[0][0]

    @property
    def count(self) -> float:
        """How many numbers are in it; infinite where the column has no steps."""
        low, high = self.selection.intervals[0]
        return math.inf if _steps(self.selection.grid) is None and high > low else high - low + 1

    @property
    def category(self) -> str | None:
        """The category, where it is a single one."""
        chosen = np.flatnonzero(self._categories)
        values = getattr(self.selection.grid.column, "values", ())
        return values[int(chosen[0])] if len(chosen) == 1 else None

    def is_in(self, selection: Selection) -> bool:
        """Whether a selection that it was cut by holds it."""
        if self.is_missing:
            return selection.missing
        if selection.categories is not None:
            return bool(selection.categories[np.flatnonzero(self._categories)[0]])
        return any(low <= self.low <= high for low, high in selection.intervals)

    @property
    def _categories(self) -> np.ndarray:
        own = self.selection.categories
        return np.zeros(0, dtype=bool) if own is None else own


def cut(grid: Grid, selections: Sequence[Selection], *, starts: Sequence[float] = ()) -> list[Piece]:
    """All values of a column, in pieces of which each selection holds all or nothing; missing is one of its own.

    Args:
        grid: of the column.
        selections: of the column.
        starts: numbers at which a piece begins; in steps of the column where it has steps.
    """
    pieces: list[Selection] = []
    if isinstance(grid.column, CategoricalColumn):
        held = np.array([one.categories for one in selections], dtype=bool).reshape(len(selections), grid.n_values)
        _, kinds = np.unique(held, axis=1, return_inverse=True)
        kinds = kinds.ravel()
        pieces += [Selection(grid, kinds == kind, (), missing=False) for kind in dict.fromkeys(kinds.tolist())]
    else:
        low, high = _bounds(grid)
        ends = [mark for one in selections for first, last in one.intervals for mark in (first, _after(last, grid))]
        begins = sorted({low, *(mark for mark in (*starts, *ends) if low < mark <= high)})
        lasts = [*(_before(mark, grid) for mark in begins[1:]), high]
        pieces += [Selection(grid, None, (ends,), missing=False) for ends in zip(begins, lasts, strict=True)]
    if grid.column.missing:
        none = np.zeros(grid.n_values, dtype=bool) if isinstance(grid.column, CategoricalColumn) else None
        pieces.append(Selection(grid, none, (), missing=True))
    return [Piece(one) for one in pieces]


def starts_of(grid: Grid, cells: np.ndarray) -> list[float]:
    """The first number of some cells of a numeric column; in steps of the column where it has steps."""
    return [*_ends(grid)[0][cells].tolist()]


def bounds_of(grid: Grid) -> Interval:
    """The public bounds of a numeric column, both included; in steps of the column where it has steps."""
    return _bounds(grid)
