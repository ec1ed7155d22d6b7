"""The tables of a study: all of them, in one order, and each counted as a loop over units and steps would count it."""

from collections import Counter as Tally
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from common.data.encoding import Grid, make_grid
from common.data.histograms import histogram_codes, histogram_layout, resolutions, window_hits
from common.data.queries import (
    COUNT_BUCKETS,
    EXTREME_GROUPS,
    GROUPED,
    SUMMARIES,
    Coded,
    Counter,
    Family,
    Query,
    catalogue,
    extreme_group,
    layout_of,
)
from common.data.schema import CategoricalColumn, Column
from common.data.tables import Hits, TableLayout, cell_indices
from common.data.units import WINDOW_WEIGHT
from common.data.windows import Windows

CLASSES = 2
_COLUMN: TypeAdapter[Column] = TypeAdapter(Column)


def channel(numeric: bool, missing: bool) -> dict[str, Any]:
    kind = {"type": "integer", "min": 0, "max": 99} if numeric else {"type": "categorical", "categories": ["a", "b"]}
    return {**kind, "missing": missing}


def windows_of(name: str, length: int, channels: list[tuple[bool, bool]]) -> Windows:
    """A layout with channels, each numeric or not and with missing values or not."""
    keys = {"step": 1} if name == "grid" else {}
    rules = {f"c{number}": channel(*rule) for number, rule in enumerate(channels)}
    return Windows.model_validate(
        {"layout": name, "length": length, "time": {"column": "when"}, "channels": rules, **keys}
    )


# --- which tables there are


def listed_slowly(columns: int, windows: Windows) -> set[Query]:
    """Every table, axis by axis."""
    axes = columns + len(windows.channels)
    found = set()
    for left, right in combinations(range(axes), 2):
        family = Family.PAIR if right < columns else Family.COURSE if left < columns else Family.TOGETHER
        found.add(Query(family, (left, right)))
    for axis, rule in enumerate(windows.channels.values(), start=columns):
        found |= {Query(Family.LEVEL, (axis,), part) for part in range(len(windows.blocks))}
        found |= {Query(Family.TRANSITION, (axis, axis)), Query(Family.ENDS, (axis, axis))}
        if not isinstance(rule, CategoricalColumn):
            found |= {Query(Family.HIGHEST, (axes,), axis), Query(Family.LOWEST, (axes,), axis)}
        if windows.layout == "grid" and rule.missing:
            found.add(Query(Family.OBSERVED, (axes + 1,), axis))
    return found


_CHANNELS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=4)


@given(st.integers(0, 4), st.sampled_from(["grid", "events"]), st.integers(2, 20), _CHANNELS)
@settings(deadline=None, max_examples=100)
def test_the_catalogue_is_every_table_once_in_an_order_that_the_study_alone_fixes(
    columns: int, name: str, length: int, channels: list[tuple[bool, bool]]
) -> None:
    windows = windows_of(name, length, channels)
    queries = catalogue(columns, windows)
    assert len(set(queries)) == len(queries)
    assert set(queries) == listed_slowly(columns, windows)
    assert queries == catalogue(columns, windows_of(name, length, channels))
    assert queries[: columns * (columns - 1) // 2] == catalogue(columns, None)
    for query in queries:
        if query.family != Family.PAIR:
            assert columns <= query.channel < columns + len(channels)


@pytest.mark.parametrize("columns", [0, 1, 2, 5])
def test_a_study_without_windows_has_its_pairs_of_columns(columns: int) -> None:
    assert catalogue(columns, None) == tuple(Query(Family.PAIR, pair) for pair in combinations(range(columns), 2))


def test_what_only_some_channels_have_is_left_out_for_the_others() -> None:
    rules = [(True, True), (True, False), (False, True), (False, False)]
    for name in ("grid", "events"):
        tally = Tally((query.family, query.channel) for query in catalogue(1, windows_of(name, 8, rules)))
        for number, (numeric, missing) in enumerate(rules, start=1):
            assert tally[Family.LEVEL, number] == 4
            assert tally[Family.TRANSITION, number] == tally[Family.ENDS, number] == tally[Family.COURSE, number] == 1
            assert tally[Family.HIGHEST, number] == tally[Family.LOWEST, number] == int(numeric)
            assert tally[Family.OBSERVED, number] == int(missing and name == "grid")


def test_tables_lie_one_after_the_other_with_the_sizes_of_their_axes() -> None:
    windows = windows_of("grid", 4, [(True, True), (False, False)])
    queries, sizes = catalogue(2, windows), (3, 5, 7, 2)
    layout = layout_of(queries, sizes, CLASSES)
    assert layout.n_tables == len(queries)
    extremes, buckets = [EXTREME_GROUPS + 1], [COUNT_BUCKETS]
    summaries = {Family.HIGHEST: extremes, Family.LOWEST: extremes, Family.OBSERVED: buckets}
    for query, shape in zip(queries, layout.shapes, strict=True):
        assert shape == (CLASSES, *(summaries.get(query.family) or [sizes[axis] for axis in query.axes]))


def test_tables_of_two_different_axes_are_told_from_the_others() -> None:
    for query in catalogue(2, windows_of("grid", 8, [(True, True), (False, True)])):
        assert (query.family in GROUPED) == (len(set(query.axes)) == 2)
        assert (query.family in SUMMARIES) == (max(query.axes) >= 4)


def test_groups_of_extremes_join_neighbours_and_with_enough_bins_all_are_used() -> None:
    for values in range(1, 30):
        groups = extreme_group(np.arange(values), values)
        assert groups[0] == 0
        assert (np.diff(groups) >= 0).all()
        assert groups.max() < EXTREME_GROUPS
        if values >= EXTREME_GROUPS:
            assert set(groups) == set(range(EXTREME_GROUPS))
            assert np.ptp(np.bincount(groups)) <= 1
        else:
            assert len(set(groups)) == values


# --- what units add to them


@dataclass(frozen=True)
class Case:
    """Units in bins. `sizes` are of the columns, then of the channels, the missing bin included."""

    windows: Windows
    sizes: tuple[int, ...]
    coded: Coded
    weights: np.ndarray

    @property
    def columns(self) -> int:
        return self.coded.records.shape[1]

    @cached_property
    def queries(self) -> tuple[Query, ...]:
        return catalogue(self.columns, self.windows)

    @cached_property
    def layout(self) -> TableLayout:
        return layout_of(self.queries, self.sizes, CLASSES)

    def hits(self) -> Iterator[Hits]:
        counter = Counter(self.coded, self.windows, self.weights)
        return (counter.hits(query, self.layout, number) for number, query in enumerate(self.queries))

    def sums(self) -> np.ndarray:
        return summed(self.hits(), self.layout)


def summed(hits: Iterator[Hits], layout: TableLayout) -> np.ndarray:
    sums = np.zeros(layout.n_cells, dtype=np.int64)
    for part in hits:
        np.add.at(sums, part.cells, part.weights)
    return sums


@st.composite
def cases(draw: st.DrawFn) -> Case:
    name, length = draw(st.sampled_from(["grid", "events"])), draw(st.integers(2, 20))
    channels = draw(_CHANNELS)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    units, columns = int(random.integers(0, 8)), int(random.integers(0, 4))
    sizes = [int(random.integers(1, 5)) for _ in range(columns)]
    values = [int(random.integers(1, 9)) for _ in channels]
    bins = [count + missing for count, (_, missing) in zip(values, channels, strict=True)]
    windows = np.stack([random.integers(0, size, (units, length)) for size in bins], axis=2)
    # Some channels of some units never hold a value.
    for number, (_, missing) in enumerate(channels):
        if missing:
            windows[random.random(units) < 0.3, :, number] = values[number]
    lengths = np.full(units, length) if name == "grid" else random.integers(0, length + 1, units)
    windows[np.arange(length) >= lengths[:, None]] = -1
    records = (
        np.stack([random.integers(0, size, units) for size in sizes], axis=1) if sizes else np.empty((units, 0), int)
    )
    labels = random.integers(0, CLASSES, units)
    weights = random.choice([0, 1, 7, 30, WINDOW_WEIGHT, 16 * WINDOW_WEIGHT], units).astype(np.int64)
    coded = Coded(labels, records.astype(np.int64), windows, lengths)
    return Case(windows_of(name, length, channels), (*sizes, *bins), coded, weights)


def window_slowly(case: Case, unit: int, axis: int) -> list[int]:
    """The bins of a channel in the steps that a unit has."""
    assert case.coded.windows is not None
    assert case.coded.lengths is not None
    return [int(code) for code in case.coded.windows[unit, : case.coded.lengths[unit], axis - case.columns]]


def level_slowly(case: Case, query: Query, unit: int) -> list[tuple[tuple[int, ...], int]]:
    begin, end = case.windows.blocks[query.part]
    series = window_slowly(case, unit, query.channel)
    return [((series[step],), end - begin) for step in range(begin, end) if step < len(series)]


def summary_slowly(case: Case, query: Query, unit: int) -> list[tuple[tuple[int, ...], int]]:
    """One cell of highest or lowest value, or of how many steps hold one."""
    rule = list(case.windows.channels.values())[query.channel - case.columns]
    values = case.sizes[query.channel] - int(rule.missing)
    series = window_slowly(case, unit, query.channel)
    if not series:
        return []
    seen = [code for code in series if code < values]
    if query.family == Family.OBSERVED:
        # Numbers of steps from 0 to all, in eight parts: the first part holds 0, the last one all steps if there are
        # as many numbers as parts.
        return [((int(COUNT_BUCKETS * len(seen) / (case.windows.length + 1)),), 1)]
    if not seen:
        return [((EXTREME_GROUPS,), 1)]
    extreme = max(seen) if query.family == Family.HIGHEST else min(seen)
    (group,) = (part for part in range(EXTREME_GROUPS) if part <= extreme * EXTREME_GROUPS / values < part + 1)
    return [((group,), 1)]


def pairs_slowly(case: Case, query: Query, unit: int) -> list[tuple[tuple[int, ...], int]]:
    record, series = case.coded.records[unit], window_slowly(case, unit, query.channel)
    if query.family == Family.COURSE:
        return [((int(record[query.axes[0]]), code), len(series)) for code in series]
    if query.family == Family.TOGETHER:
        other = window_slowly(case, unit, query.axes[0])
        return [(pair, len(series)) for pair in zip(other, series, strict=True)]
    if query.family == Family.TRANSITION:
        return [(pair, len(series) - 1) for pair in pairwise(series)]
    return [((series[0], series[-1]), 1)] if series else []


def hits_slowly(case: Case, query: Query, unit: int) -> list[tuple[tuple[int, ...], int]]:
    """The cells that a unit hits, label aside, each with the number of equal shares that it is one of."""
    if query.family == Family.PAIR:
        left, right = case.coded.records[unit, list(query.axes)]
        return [((int(left), int(right)), 1)]
    if query.family == Family.LEVEL:
        return level_slowly(case, query, unit)
    return (summary_slowly if query.family in SUMMARIES else pairs_slowly)(case, query, unit)


def counted_slowly(case: Case) -> list[np.ndarray]:
    """Every table, a unit and a step at a time."""
    tables = []
    for query, shape in zip(case.queries, case.layout.shapes, strict=True):
        table = np.zeros(shape, dtype=np.int64)
        for unit, label in enumerate(case.coded.labels):
            for cell, shares in hits_slowly(case, query, unit):
                table[(label, *cell)] += int(case.weights[unit]) // shares
        tables.append(table)
    return tables


@given(cases())
@settings(deadline=None, max_examples=100)
def test_every_table_is_that_of_a_loop_over_units_and_steps(case: Case) -> None:
    for query, table, slow in zip(case.queries, case.layout.split(case.sums()), counted_slowly(case), strict=True):
        assert np.array_equal(table, slow), query


@given(cases())
@settings(deadline=None, max_examples=100)
def test_a_unit_adds_its_weight_at_most_to_each_table_and_only_to_cells_of_it(case: Case) -> None:
    for number, part in enumerate(case.hits()):
        assert all(array.dtype == np.int64 and array.ndim == 1 for array in (part.rows, part.cells, part.weights))
        assert len(part.rows) == len(part.cells) == len(part.weights)
        assert (part.weights >= 0).all()
        assert (part.cells >= case.layout.offsets[number]).all()
        assert (part.cells < case.layout.offsets[number + 1]).all()
        spent = np.zeros_like(case.weights)
        np.add.at(spent, part.rows, part.weights)
        assert (spent <= case.weights).all()


@given(cases(), st.data())
@settings(deadline=None, max_examples=100)
def test_one_unit_moves_each_table_by_its_weight_at_most(case: Case, data: st.DataObject) -> None:
    units = len(case.coded.labels)
    if not units:
        return
    gone = data.draw(st.integers(0, units - 1))
    rest = np.arange(units) != gone
    assert case.coded.windows is not None
    assert case.coded.lengths is not None
    coded = Coded(case.coded.labels[rest], case.coded.records[rest], case.coded.windows[rest], case.coded.lengths[rest])
    without = Case(case.windows, case.sizes, coded, case.weights[rest])
    for table, other in zip(case.layout.split(case.sums()), case.layout.split(without.sums()), strict=True):
        assert np.abs(table - other).sum() <= case.weights[gone]


@pytest.mark.parametrize("name", ["grid", "events"])
@pytest.mark.parametrize("length", [2, 3, 12, 16])
def test_a_unit_with_all_its_steps_adds_its_whole_weight(name: str, length: int) -> None:
    windows = windows_of(name, length, [(True, True), (False, False)])
    random = np.random.default_rng(length)
    steps = np.stack([random.integers(0, 4, (5, length)), random.integers(0, 2, (5, length))], axis=2)
    coded = Coded(random.integers(0, 2, 5), random.integers(0, 3, (5, 2)), steps, np.full(5, length))
    case = Case(windows, (3, 3, 4, 2), coded, np.full(5, WINDOW_WEIGHT))
    for query, table in zip(case.queries, case.layout.split(case.sums()), strict=True):
        assert table.sum() == 5 * WINDOW_WEIGHT, query


def test_a_code_that_is_not_in_the_layout_is_never_counted_elsewhere() -> None:
    windows = windows_of("events", 2, [(True, False)])
    coded = Coded(np.array([0]), np.array([[0]]), np.array([[[3], [0]]]), np.array([2]))
    queries = [query for query in catalogue(1, windows) if query.family not in SUMMARIES]
    layout = layout_of(queries, (1, 3), CLASSES)
    for number, query in enumerate(queries):
        with pytest.raises(ValueError, match="invalid entry"):
            Counter(coded, windows, np.array([6])).hits(query, layout, number)


# --- the one-way tables of windows


def grid_of(kind: str, **keys: Any) -> Grid:
    return make_grid("x", _COLUMN.validate_python({"type": kind, **keys}))


GRIDS = (
    grid_of("integer", min=0, max=999, cells=200, sparse=True, missing=True),
    grid_of("continuous", min=0, max=1, cells=70, sparse=True),
    grid_of("integer", min=0, max=9, missing=True),
    grid_of("categorical", categories=["a", "b", "c"], missing=True),
    grid_of("categorical", categories=["a", "b"]),
)
_BOUNDS = [(1, 1), (2, 3), (4, 7), (8, 15), (16, 31), (32, 63), (64, 10**9)]


def bucket_slowly(before: int, after: int, grid: Grid) -> int:
    """Which of the 15 buckets: no move is the 8th; up to the right, down to the left, in doubling widths."""
    if before == after:
        return 7
    if not grid.is_ordered:
        return 8
    (size,) = (number for number, (low, high) in enumerate(_BOUNDS, start=1) if low <= abs(after - before) <= high)
    return 7 + size if after > before else 7 - size


@dataclass(frozen=True)
class Cells:
    """Units in fine cells, with one column of the record."""

    channels: tuple[Grid, ...]
    cells: np.ndarray
    labels: np.ndarray
    record: np.ndarray

    @cached_property
    def layout(self) -> TableLayout:
        return histogram_layout([GRIDS[0]], CLASSES, self.channels)

    @property
    def own(self) -> int:
        """Tables of the record."""
        return len(resolutions(GRIDS[0]))

    def hits(self, whole: int) -> Iterator[Hits]:
        return window_hits(self.cells, self.labels, self.channels, self.layout, whole=whole)


@st.composite
def celled(draw: st.DrawFn) -> Cells:
    channels = tuple(draw(st.lists(st.sampled_from(GRIDS), min_size=1, max_size=3)))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    units, steps = int(random.integers(0, 7)), draw(st.integers(2, 20))
    cells = np.stack([random.integers(0, grid.n_cells, (units, steps)) for grid in channels], axis=2)
    lengths = random.integers(0, steps + 1, units)
    cells[np.arange(steps) >= lengths[:, None]] = -1
    return Cells(channels, cells, random.integers(0, CLASSES, units), random.integers(0, GRIDS[0].n_cells, (units, 1)))


def one_way_slowly(case: Cells, whole: int) -> list[np.ndarray]:
    """The channels' tables at every resolution, then their moves, a unit and a step at a time."""
    lengths = [int((cells[:, 0] >= 0).sum()) for cells in case.cells]
    tables = []
    for position, grid in enumerate(case.channels):
        for joined in resolutions(grid):
            table = np.zeros((CLASSES, int(joined.max()) + 1), dtype=np.int64)
            for unit, label in enumerate(case.labels):
                for step in range(lengths[unit]):
                    table[label, joined[case.cells[unit, step, position]]] += whole // lengths[unit]
            tables.append(table)
    for position, grid in enumerate(case.channels):
        table = np.zeros((CLASSES, 15), dtype=np.int64)
        for unit, label in enumerate(case.labels):
            values = [int(cell) for cell in case.cells[unit, :, position] if 0 <= cell < grid.n_values]
            for before, after in pairwise(values):
                table[label, bucket_slowly(before, after, grid)] += whole // (len(values) - 1)
        tables.append(table)
    return tables


@given(celled(), st.sampled_from([1, 60, WINDOW_WEIGHT]))
@settings(deadline=None, max_examples=100)
def test_the_one_way_tables_of_windows_are_those_of_a_loop_over_units_and_steps(case: Cells, whole: int) -> None:
    found = list(case.layout.split(summed(case.hits(whole), case.layout)))
    assert not any(table.any() for table in found[: case.own])
    for table, slow in zip(found[case.own :], one_way_slowly(case, whole), strict=True):
        assert np.array_equal(table, slow)


@given(celled(), st.sampled_from([1, 60, WINDOW_WEIGHT]))
@settings(deadline=None, max_examples=100)
def test_a_unit_adds_its_weight_at_most_to_each_one_way_table(case: Cells, whole: int) -> None:
    layout = case.layout
    parts = list(case.hits(whole))
    assert len(parts) == layout.n_tables - case.own
    for number, part in enumerate(parts, start=case.own):
        assert all(array.dtype == np.int64 and array.ndim == 1 for array in (part.rows, part.cells, part.weights))
        assert (part.weights >= 0).all()
        assert (part.cells >= layout.offsets[number]).all()
        assert (part.cells < layout.offsets[number + 1]).all()
        spent = np.zeros(len(case.labels), dtype=np.int64)
        np.add.at(spent, part.rows, part.weights)
        assert (spent <= whole).all()


def test_record_and_windows_fill_every_table_of_the_one_way_release_once() -> None:
    random = np.random.default_rng(0)
    cells = np.stack([random.integers(0, grid.n_values, (9, 4)) for grid in GRIDS], axis=2)
    case = Cells(GRIDS, cells, random.integers(0, CLASSES, 9), random.integers(0, GRIDS[0].n_cells, (9, 1)))
    own = histogram_layout([GRIDS[0]], CLASSES)
    indices = cell_indices(histogram_codes(case.record, [GRIDS[0]]), case.labels, own)
    sums = summed(case.hits(WINDOW_WEIGHT), case.layout)
    np.add.at(sums, indices.ravel(), WINDOW_WEIGHT)
    assert [table.sum() for table in case.layout.split(sums)] == [9 * WINDOW_WEIGHT] * case.layout.n_tables


@pytest.mark.parametrize("count", [1, 3])
def test_units_without_steps_and_units_with_one_hit_nothing_that_they_do_not_have(count: int) -> None:
    cells = np.full((2, 5, count), -1)
    cells[1, 0] = 0
    case = Cells(GRIDS[:count], cells, np.array([0, 1]), np.zeros((2, 1), dtype=np.int64))
    found = list(case.layout.split(summed(case.hits(60), case.layout)))
    levels, changes = found[case.own : -count], found[-count:]
    assert [table.sum() for table in levels] == [60] * len(levels)
    assert [table.sum() for table in changes] == [0] * count


def test_no_units_hit_nothing() -> None:
    windows = windows_of("grid", 4, [(True, True)])
    coded = Coded(
        np.zeros(0, dtype=np.int64),
        np.zeros((0, 1), dtype=np.int64),
        np.zeros((0, 4, 1), dtype=np.int64),
        np.zeros(0, dtype=np.int64),
    )
    empty: list[Callable[[], Iterator[Hits]]] = [
        Case(windows, (2, 4), coded, np.zeros(0, dtype=np.int64)).hits,
        lambda: Cells(GRIDS[:1], np.zeros((0, 4, 1), dtype=np.int64), coded.labels, coded.records).hits(60),
    ]
    for hits in empty:
        assert [len(part.rows) for part in hits()] == [0] * len(list(hits()))
