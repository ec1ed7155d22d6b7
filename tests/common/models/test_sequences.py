"""Expected tables against the sum over all paths, each path counted as a real unit's window would be."""

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

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
    layout_of,
)
from common.data.units import WINDOW_WEIGHT
from common.data.windows import Windows
from common.models.generator import GeneratorShape
from common.models.paths import PathHead, Paths
from common.models.sequences import Courses, SequenceShape, choose, nested_sets, straight_through, weights_of
from common.models.states import Habits, StateHead, States

Kind = Literal["paths", "states"]
HABITS = ("share", "kept", "law")
PARTS, ROWS = 2, 2
"""Latents come in so many parts, each of so many rows."""


@dataclass(frozen=True)
class Toy:
    """A head's output over few enough paths to list them all.

    channels: value bins of each, and whether it has a missing one. sizes: bins of each column of the record. single:
    whether a window of events may have one step. gap: which channel is the time since the step before. late: whether a
    window may begin after its unit's first step. unordered: channels without order, which have habits.
    """

    kind: Kind
    steps: int
    channels: tuple[tuple[int, bool], ...]
    sizes: tuple[int, ...] = (2,)
    states: int = 2
    single: bool = True
    gap: int | None = None
    late: bool = False
    unordered: tuple[int, ...] = ()
    seed: int = 0

    @property
    def windows(self) -> Windows:
        number_of: dict[str, Any] = {"type": "integer", "min": 0, "max": 99}
        rules = {
            f"c{channel}": {
                **({"type": "categorical", "categories": ["a", "b"]} if channel in self.unordered else number_of),
                "missing": missing,
            }
            for channel, (_, missing) in enumerate(self.channels)
        }
        grid = self.kind == "paths"
        keys: dict[str, Any] = {"step": 1} if grid else {}
        if self.gap is not None:
            keys |= {"gap": f"c{self.gap}", "longer": "last" if self.late else "refuse"}
        return Windows.model_validate(
            {
                "layout": "grid" if grid else "events",
                "length": self.steps,
                "time": {"column": "when"},
                "channels": rules,
                **keys,
            }
        )

    @property
    def shape(self) -> SequenceShape:
        return SequenceShape(
            kind=self.kind,
            steps=self.steps,
            blocks=self.windows.blocks,
            sizes=tuple(values + missing for values, missing in self.channels),
            missing=tuple(missing for _, missing in self.channels),
            ordered=tuple(channel not in self.unordered for channel in range(len(self.channels))),
            states=self.states,
            gap=self.gap,
            late=self.late,
        )

    @property
    def rows(self) -> int:
        return PARTS * ROWS


PATHS = (
    Toy("paths", 4, ((2, True), (3, False)), sizes=(2, 3)),
    Toy("paths", 5, ((2, True),)),
    Toy("paths", 6, ((1, True), (2, True))),
    Toy("paths", 8, ((2, True),)),
    Toy("paths", 3, ((6, True),)),
    Toy("paths", 2, ((7, True), (1, True), (4, False))),
)
STATES = (
    Toy("states", 3, ((2, True), (3, False)), sizes=(2, 3)),
    Toy("states", 4, ((2, True), (1, False)), states=3),
    Toy("states", 2, ((6, True), (1, True), (5, False)), states=3),
    Toy("states", 5, ((3, False),), states=2),
    Toy("states", 4, ((2, True), (1, False)), states=3, single=False),
    Toy("states", 5, ((3, False),), single=False),
    Toy("states", 3, ((2, True), (3, False)), sizes=(2, 3), gap=0),
    Toy("states", 4, ((1, False), (2, True)), states=3, gap=1),
    Toy("states", 3, ((1, True), (3, True), (2, False)), gap=1, late=True),
    Toy("states", 2, ((2, True),), states=3, gap=0),
    Toy("states", 3, ((2, True), (3, False)), sizes=(2, 3), unordered=(0, 1)),
    Toy("states", 4, ((3, False), (1, True)), unordered=(0,)),
    Toy("states", 3, ((1, True), (3, True)), single=False, gap=0, unordered=(1,)),
)
TOYS = PATHS + STATES


def shares(random: np.random.Generator, *shape: int, among: np.ndarray | None = None) -> np.ndarray:
    """Random probabilities over the last axis; `among` is 0 where there must be none."""
    raw = random.gamma(0.7, size=shape) * (1 if among is None else among)
    return np.asarray(raw / raw.sum(axis=-1, keepdims=True))


@dataclass(frozen=True)
class Parameters:
    """Of all latents of a toy, (rows, ...) each: three of `Paths`, four of `States`, three of its `Habits`."""

    values: np.ndarray
    seen_start: np.ndarray
    seen_moves: np.ndarray
    start: np.ndarray
    move: np.ndarray
    emit: np.ndarray
    opening: np.ndarray
    share: np.ndarray
    kept: np.ndarray
    law: np.ndarray
    lengths: np.ndarray
    records: np.ndarray


def parameters(toy: Toy) -> Parameters:
    random, rows, shape = np.random.default_rng(toy.seed), toy.rows, toy.shape
    channels, widest = len(shape.sizes), shape.widest
    open_values = np.array([[slot < values for slot in range(widest)] for values in shape.values])
    always = ~np.array(shape.missing)
    into = np.where(always[:, None], 1.0, random.random((rows, toy.steps - 1, channels, 2)))
    open_slots = np.concatenate([open_values, ~always[:, None]], axis=1)
    full = np.eye(toy.steps + 1)[[toy.steps] * rows]
    some = np.array([length != 1 or toy.single for length in range(toy.steps + 1)])
    at_first = open_slots[toy.gap or 0].copy()
    if toy.gap is not None:
        open_slots[toy.gap, -1] = False
        at_first[:-1] &= toy.late
    return Parameters(
        values=shares(random, rows, toy.steps, channels, widest, among=open_values),
        seen_start=np.where(always, 1.0, random.random((rows, channels))),
        seen_moves=np.stack([1 - into, into], axis=-1),
        start=shares(random, rows, toy.states),
        move=shares(random, rows, toy.states, toy.states),
        emit=shares(random, rows, toy.states, channels, widest + 1, among=open_slots),
        opening=shares(random, rows, toy.states, widest + 1, among=at_first),
        share=random.random((rows, channels)) * ~np.array(shape.ordered),
        kept=random.random((rows, channels)),
        law=shares(random, rows, channels, widest + 1, among=open_slots),
        lengths=full if toy.kind == "paths" else shares(random, rows, toy.steps + 1, among=some),
        records=np.concatenate([shares(random, rows, size) for size in toy.sizes], axis=1),
    )


def courses_of(toy: Toy, given: Parameters, dtype: torch.dtype = torch.float64) -> Courses:
    return courses_from(toy, {name: tensor.to(dtype) for name, tensor in leaves(toy, given).items()})


def leaves(toy: Toy, given: Parameters) -> dict[str, Tensor]:
    """What the toy's courses are made from, zero entries of closed slots included."""
    used = ("values", "seen_start", "seen_moves") if toy.kind == "paths" else ("start", "move", "emit")
    if toy.gap is not None:
        used = (*used, "opening")
    if toy.unordered:
        used = (*used, *HABITS)
    return {name: torch.from_numpy(getattr(given, name)).clone() for name in (*used, "lengths")}


def courses_from(toy: Toy, tensors: dict[str, Tensor]) -> Courses:
    inner: dict[str, Any] = {name: tensor for name, tensor in tensors.items() if name not in ("lengths", *HABITS)}
    if toy.unordered:
        inner["habits"] = Habits(**{name: tensors[name] for name in HABITS})
    return (Paths if toy.kind == "paths" else States)(toy.shape, weights_of(tensors["lengths"]), **inner)


# --- all paths, and how likely each is


def every(*sizes: int) -> np.ndarray:
    """All outcomes of so many choices, (outcomes, choices), the last one fastest."""
    return np.array(list(itertools.product(*map(range, sizes))), dtype=np.int64).reshape(-1, len(sizes))


def channel_paths(toy: Toy, given: Parameters, row: int, channel: int) -> np.ndarray:
    """How likely each path of one channel is, in the order of `every`: over all hidden values and gaps behind it."""
    (values, _), size = toy.channels[channel], toy.shape.sizes[channel]
    courses, gaps = every(*[values] * toy.steps), every(*[2] * toy.steps)
    first = given.seen_start[row, channel]
    chance = given.values[row, 0, channel, courses[:, 0]]
    seen = np.where(gaps[:, 0] == 1, first, 1 - first)
    for step in range(1, toy.steps):
        chance = chance * given.values[row, step, channel, courses[:, step]]
        seen = seen * given.seen_moves[row, step - 1, channel, gaps[:, step - 1], gaps[:, step]]
    # What is not seen is missing: the bin after the values.
    shown = np.where(gaps[None] == 1, courses[:, None], values)  # (courses, gaps, steps)
    likely = chance[:, None] * seen
    possible = likely > 0
    code = np.ravel_multi_index(tuple(shown[possible].T), (size,) * toy.steps)
    return np.bincount(code, weights=likely[possible], minlength=size**toy.steps)


def state_paths(toy: Toy, given: Parameters, row: int, paths: np.ndarray) -> np.ndarray:
    """How likely each path of all channels, (paths, steps, channels), is: over all states and habits behind it."""
    values = np.array(toy.shape.values)
    slots = np.where(paths < values, paths, toy.shape.widest)
    total = np.zeros(len(paths))
    for states in every(*[toy.states] * toy.steps):
        likely = np.full(len(paths), given.start[row, states[0]])
        for step in range(1, toy.steps):
            likely *= given.move[row, states[step - 1], states[step]]
        for channel in range(len(values)):
            emit = given.emit[row, states, channel].copy()  # (steps, slots)
            if channel == toy.gap:
                emit[0] = given.opening[row, states[0]]
            likely *= channel_path(given, row, channel, emit, slots[:, :, channel])
        total += likely
    return total


def channel_path(given: Parameters, row: int, channel: int, emit: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """How likely each path of a channel is, (paths,), given what the state of each step emits: over all habits."""
    share, kept, law = (getattr(given, name)[row, channel] for name in HABITS)
    if not share:
        return np.asarray(emit[np.arange(len(emit)), slots].prod(axis=1))
    total = np.zeros(len(slots))
    for habits in every(*[len(law)] * len(emit)):
        likely = law[habits[0]]
        for before, after in itertools.pairwise(habits):
            likely *= kept * (before == after) + (1 - kept) * law[after]
        shown = share * (slots == habits) + (1 - share) * emit[np.arange(len(emit)), slots]
        total += likely * shown.prod(axis=1)
    return total


@dataclass(frozen=True)
class World:
    """Every unit that there can be: records (units, columns), windows (units, steps, channels), lengths (units,); and
    how likely it is for each latent, (rows, units).
    """  # noqa: D205

    records: np.ndarray
    windows: np.ndarray
    lengths: np.ndarray
    chance: np.ndarray


def window_paths(toy: Toy, given: Parameters) -> tuple[np.ndarray, np.ndarray]:
    """All windows, whether they last or not, (paths, steps, channels), and how likely each is, (rows, paths)."""
    rows, sizes = range(toy.rows), toy.shape.sizes
    if toy.kind == "states":
        paths = every(*sizes * toy.steps).reshape(-1, toy.steps, len(sizes))
        return paths, np.stack([state_paths(toy, given, row, paths) for row in rows])
    single = [every(*[size] * toy.steps) for size in sizes]
    joint = every(*map(len, single))
    paths = np.stack([one[joint[:, channel]] for channel, one in enumerate(single)], axis=2)
    chance = np.ones((toy.rows, len(joint)))
    for channel in range(len(sizes)):
        alone = np.stack([channel_paths(toy, given, row, channel) for row in rows])
        chance = chance * alone[:, joint[:, channel]]
    return paths, chance


def world_of(toy: Toy, given: Parameters) -> World:
    """Record, length and path are independent given the latent."""
    paths, chance = window_paths(toy, given)
    outcomes, starts = every(*toy.sizes), np.cumsum([0, *toy.sizes])
    units = every(len(outcomes), toy.steps + 1, len(paths))
    units = units[given.lengths.max(axis=0)[units[:, 1]] > 0]
    windows = paths[units[:, 2]]
    windows[np.arange(toy.steps) >= units[:, 1, None]] = -1
    record = np.ones((toy.rows, len(outcomes)))
    for column, start in enumerate(starts[:-1]):
        record = record * given.records[:, start + outcomes[:, column]]
    likely = record[:, units[:, 0]] * given.lengths[:, units[:, 1]] * chance[:, units[:, 2]]
    return World(outcomes[units[:, 0]], windows, units[:, 1], likely)


@cache
def solved(toy: Toy) -> tuple[Parameters, World]:
    given = parameters(toy)
    return given, world_of(toy, given)


def maps_of(toy: Toy, *, joined: bool) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Bins to groups of each column and of each channel: one each, or some neighbours together."""
    width = 2 if joined else 1
    return tuple([np.arange(size) // width for size in sizes] for sizes in (toy.sizes, toy.shape.sizes))  # type: ignore[return-value]


def counted(toy: Toy, *, joined: bool = False) -> dict[Query, np.ndarray]:
    """Every table of the catalogue over all units, weighted by how likely they are; (parts, ...) each.

    Tables of two axes are over groups of bins, as they are measured.
    """
    world = solved(toy)[1]
    columns, channels = maps_of(toy, joined=joined)
    whole = np.full(len(world.lengths), WINDOW_WEIGHT)
    tables = {}
    for query in catalogue(len(toy.sizes), toy.windows):
        records, windows, sizes = world.records, world.windows, (*toy.sizes, *toy.shape.sizes)
        if query.family in GROUPED:
            records = np.stack([one[records[:, at]] for at, one in enumerate(columns)], axis=-1)
            windows = np.stack(
                [np.where(windows[..., at] < 0, -1, one[windows[..., at]]) for at, one in enumerate(channels)], axis=-1
            )
            sizes = tuple(int(one.max()) + 1 for one in (*columns, *channels))
        layout = layout_of([query], sizes, 1)
        coded = Coded(np.zeros(len(records), dtype=np.int64), records, windows, world.lengths)
        hits = Counter(coded, toy.windows, whole).hits(query, layout, 0)
        rows = [
            np.bincount(hits.cells, weights=likely[hits.rows] * hits.weights / WINDOW_WEIGHT, minlength=layout.n_cells)
            for likely in world.chance
        ]
        tables[query] = np.reshape(rows, (PARTS, ROWS, *layout.shapes[0][1:])).mean(axis=1)
    return tables


def expected_of(toy: Toy, courses: Courses, records: Tensor, *, joined: bool = False) -> dict[str, Tensor]:
    columns, channels = maps_of(toy, joined=joined)

    def indicator(maps: list[np.ndarray]) -> Tensor:
        blocks = [torch.eye(int(one.max()) + 1)[torch.from_numpy(one)] for one in maps]
        return torch.block_diag(*blocks).to(records)

    grouped = (records @ indicator(columns)).view(PARTS, ROWS, -1)
    return courses.expected(grouped, indicator(channels))


def table_in(toy: Toy, expected: dict[str, Tensor], query: Query, *, joined: bool = False) -> np.ndarray:
    """The table of a query in the arrays of its family, (parts, ...)."""
    family, axes, first = expected[query.family], query.axes, len(toy.sizes)

    def places(axis: int, sizes: list[int]) -> slice:
        begin = sum(sizes[first if axis >= first else 0 : axis])
        return slice(begin, begin + sizes[axis])

    bins = [*toy.sizes, *toy.shape.sizes]
    if query.family in GROUPED:
        groups = [int(one.max()) + 1 for part in maps_of(toy, joined=joined) for one in part]
        return family[:, places(axes[0], groups), places(axes[1], groups)].numpy()
    if query.family == Family.LEVEL:
        return family[:, query.part, places(axes[0], bins)].numpy()
    if query.family in SUMMARIES:
        return family[:, query.channel - first].numpy()
    values, size = toy.channels[query.channel - first][0], bins[query.channel]
    slots = [*range(values), toy.shape.widest][:size]
    return family[:, query.channel - first][:, slots][:, :, slots].numpy()


@pytest.mark.parametrize("toy", TOYS, ids=str)
def test_the_units_that_there_can_be_are_as_likely_as_one(toy: Toy) -> None:
    np.testing.assert_allclose(solved(toy)[1].chance.sum(axis=1), 1, rtol=1e-12)


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("toy", TOYS, ids=str)
def test_every_table_is_the_sum_over_all_paths_as_a_site_would_count_them(toy: Toy, joined: bool) -> None:
    given = solved(toy)[0]
    found = expected_of(toy, courses_of(toy, given), torch.from_numpy(given.records), joined=joined)
    tables = counted(toy, joined=joined)
    tables = {query: table for query, table in tables.items() if query.family != Family.PAIR}
    extremes = {Family.HIGHEST} if any(toy.shape.ordered) else set()
    assert {query.family for query in tables} >= {Family.LEVEL, Family.TRANSITION, Family.ENDS} | extremes
    for query, table in tables.items():
        np.testing.assert_allclose(table_in(toy, found, query, joined=joined), table, atol=1e-12, err_msg=str(query))


@pytest.mark.parametrize("toy", TOYS, ids=str)
def test_the_average_is_that_of_the_steps_that_a_unit_has(toy: Toy) -> None:
    given, world = solved(toy)
    slow = np.zeros((toy.rows, sum(toy.shape.sizes)))
    starts = np.cumsum([0, *toy.shape.sizes])
    for channel, step in itertools.product(range(len(toy.channels)), range(toy.steps)):
        lasts = world.lengths > step
        place = starts[channel] + world.windows[lasts, step, channel]
        for row in range(toy.rows):
            np.add.at(slow[row], place, world.chance[row, lasts] / world.lengths[lasts])
    found = expected_of(toy, courses_of(toy, given), torch.from_numpy(given.records))["average"].numpy()
    np.testing.assert_allclose(found, slow.reshape(PARTS, ROWS, -1).mean(axis=1), atol=1e-12)


@pytest.mark.parametrize("toy", TOYS, ids=str)
def test_levels_are_the_chances_of_the_bins_in_each_step(toy: Toy) -> None:
    given = solved(toy)[0]
    paths, chance = window_paths(toy, given)
    levels = courses_of(toy, given).levels.numpy()
    starts = np.cumsum([0, *toy.shape.sizes])
    for channel, size in enumerate(toy.shape.sizes):
        for step, code in itertools.product(range(toy.steps), range(size)):
            slow = chance[:, paths[:, step, channel] == code].sum(axis=1)
            np.testing.assert_allclose(levels[:, step, starts[channel] + code], slow, atol=1e-12)


@pytest.mark.parametrize("toy", TOYS, ids=str)
def test_a_channel_is_unseen_where_a_window_with_steps_holds_none_of_its_values(toy: Toy) -> None:
    given, world = solved(toy)
    found = courses_of(toy, given).unseen().numpy()
    gone = (world.windows < 0) | (world.windows == np.array(toy.shape.values))  # (units, steps, channels)
    slow = world.chance @ (gone.all(axis=1) & (world.lengths > 0)[:, None])
    asked = np.array(toy.shape.ordered)
    np.testing.assert_allclose(found[:, asked], slow[:, asked], atol=1e-12)


# --- what tables must be


@pytest.mark.parametrize("toy", TOYS, ids=str)
def test_tables_are_chances_that_sum_to_that_of_having_the_steps(toy: Toy) -> None:
    given = solved(toy)[0]
    found = {
        name: table.numpy()
        for name, table in expected_of(toy, courses_of(toy, given), torch.from_numpy(given.records)).items()
    }
    chance = given.lengths.reshape(PARTS, ROWS, -1).mean(axis=1)
    any_step, any_move = chance[:, 1:].sum(axis=1)[:, None], chance[:, 2:].sum(axis=1)[:, None]
    channels = len(toy.channels)
    for table in found.values():
        assert (table >= -1e-15).all()

    def by_channel(table: np.ndarray) -> np.ndarray:
        return np.add.reduceat(table, np.cumsum([0, *toy.shape.sizes])[:-1], axis=-1)

    np.testing.assert_allclose(by_channel(found["average"]), np.repeat(any_step, channels, axis=1))
    alive = np.cumsum(chance[:, ::-1], axis=1)[:, ::-1][:, 1:]
    for number, (begin, end) in enumerate(toy.shape.blocks):
        lasting = alive[:, begin:end].mean(axis=1)[:, None]
        np.testing.assert_allclose(by_channel(found[Family.LEVEL][:, number]), np.repeat(lasting, channels, axis=1))
    for family, total in ((Family.TRANSITION, any_move), (Family.ENDS, any_step)):
        np.testing.assert_allclose(found[family].sum(axis=(2, 3)), np.repeat(total, channels, axis=1))
    for family in (Family.HIGHEST, Family.LOWEST):
        assert found[family].shape == (PARTS, channels, EXTREME_GROUPS + 1)
        np.testing.assert_allclose(found[family].sum(axis=2), np.repeat(any_step, channels, axis=1))
    assert found[Family.OBSERVED].shape == (PARTS, channels, COUNT_BUCKETS)
    np.testing.assert_allclose(found[Family.OBSERVED].sum(axis=2), 1.0 if toy.kind == "paths" else 0.0)


@pytest.mark.parametrize("toy", [PATHS[0], PATHS[5], STATES[0], STATES[2], STATES[12]], ids=str)
def test_a_channel_among_wider_and_narrower_ones_is_what_it_is_alone(toy: Toy) -> None:
    given = solved(toy)[0]
    together = expected_of(toy, courses_of(toy, given), torch.from_numpy(given.records))
    for channel, (values, missing) in enumerate(toy.channels):
        kept = (0,) if channel in toy.unordered else ()
        opens = None if channel != toy.gap else 0
        alone = Toy(toy.kind, toy.steps, (toy.channels[channel],), toy.sizes, toy.states, unordered=kept, gap=opens)
        slots = [*range(values), toy.shape.widest]
        one = [channel]
        cut = Parameters(
            values=given.values[:, :, one, :values],
            seen_start=given.seen_start[:, one],
            seen_moves=given.seen_moves[:, :, one],
            start=given.start,
            move=given.move,
            emit=given.emit[:, :, one][..., slots],
            opening=given.opening[..., slots],
            share=given.share[:, one],
            kept=given.kept[:, one],
            law=given.law[:, one][..., slots],
            lengths=given.lengths,
            records=given.records,
        )
        single = expected_of(alone, courses_of(alone, cut), torch.from_numpy(cut.records))
        first = len(toy.sizes)
        for query in catalogue(first, alone.windows):
            if query.family == Family.PAIR:
                continue
            axes = tuple(axis + channel * (axis >= first) for axis in query.axes)
            same = Query(query.family, axes, query.part + channel * (query.family in SUMMARIES))
            np.testing.assert_allclose(table_in(toy, together, same), table_in(alone, single, query), atol=1e-12)
        assert missing == (toy.shape.sizes[channel] > values)


@pytest.mark.parametrize("toy", TOYS, ids=str)
def test_what_a_channel_does_not_have_is_never_expected(toy: Toy) -> None:
    given = solved(toy)[0]
    found = expected_of(toy, courses_of(toy, given), torch.from_numpy(given.records))
    for channel, (values, missing) in enumerate(toy.channels):
        closed = [*range(values, toy.shape.widest), *([] if missing else [toy.shape.widest])]
        for family in (Family.TRANSITION, Family.ENDS):
            assert (found[family][:, channel][:, closed] == 0).all()
            assert (found[family][:, channel][:, :, closed] == 0).all()
        if not missing:
            for family in (Family.HIGHEST, Family.LOWEST):
                assert (found[family][:, channel, EXTREME_GROUPS] == 0).all()


@pytest.mark.parametrize("toy", [PATHS[0], PATHS[3], STATES[0], STATES[1]], ids=str)
def test_single_precision_gives_the_same_tables(toy: Toy) -> None:
    given = solved(toy)[0]
    records = torch.from_numpy(given.records)
    exact = expected_of(toy, courses_of(toy, given), records)
    rough = expected_of(toy, courses_of(toy, given, torch.float32), records.float())
    for name, table in exact.items():
        assert rough[name].dtype == torch.float32
        torch.testing.assert_close(rough[name].double(), table, atol=1e-6, rtol=1e-5)


def test_rows_of_one_part_are_averaged_and_parts_are_kept_apart() -> None:
    toy = PATHS[0]
    given = solved(toy)[0]
    courses, records = courses_of(toy, given), torch.from_numpy(given.records)
    joins = torch.eye(sum(toy.shape.sizes), dtype=torch.float64)
    single = courses.expected(records.view(toy.rows, 1, -1), joins)
    for parts in (1, 2, 4):
        found = courses.expected(records.view(parts, toy.rows // parts, -1), joins)
        for name, table in found.items():
            mean = single[name].view(parts, toy.rows // parts, *table.shape[1:]).mean(dim=1)
            torch.testing.assert_close(table, mean)


# --- lengths


@given(st.integers(0, 2**32 - 1), st.integers(2, 9))
@settings(deadline=None, max_examples=50)
def test_steps_weigh_as_the_length_of_the_window_says(seed: int, steps: int) -> None:
    chance = shares(np.random.default_rng(seed), 3, steps + 1)
    found = weights_of(torch.from_numpy(chance))
    slow = {name: np.zeros((3, steps)) for name in ("average", "alive", "moves", "last")}
    for length in range(1, steps + 1):
        for step in range(length):
            slow["average"][:, step] += chance[:, length] / length
            slow["alive"][:, step] += chance[:, length]
            if step < length - 1:
                slow["moves"][:, step] += chance[:, length] / (length - 1)
        slow["last"][:, length - 1] += chance[:, length]
    np.testing.assert_allclose(found.average, slow["average"], atol=1e-12)
    np.testing.assert_allclose(found.alive, slow["alive"], atol=1e-12)
    np.testing.assert_allclose(found.moves, slow["moves"][:, :-1], atol=1e-12)
    np.testing.assert_allclose(found.last, slow["last"], atol=1e-12)


# --- draws


def drawn_counts(toy: Toy, draw: Callable[[Courses], np.ndarray], units: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each path was drawn from the first latent, and how likely it is; (paths,) each."""
    given = parameters(toy)
    paths, chance = window_paths(toy, given)
    many = Parameters(**{name: np.repeat(array[:1], units, axis=0) for name, array in vars(given).items()})
    windows = draw(courses_of(toy, many))
    assert windows.shape == (units, toy.steps, len(toy.channels))
    assert windows.dtype == np.int64
    sizes = toy.shape.sizes * toy.steps
    codes = np.ravel_multi_index(tuple(windows.reshape(units, -1).T), sizes)
    order = np.ravel_multi_index(tuple(paths.reshape(len(paths), -1).T), sizes)
    return np.bincount(codes, minlength=int(np.prod(sizes)))[order], chance[0]


SMALL = (
    Toy("paths", 4, ((2, True),)),
    Toy("paths", 3, ((1, True), (3, False))),
    Toy("states", 3, ((2, True), (1, False)), states=3),
    Toy("states", 3, ((1, True), (3, False)), states=2),
    Toy("states", 3, ((1, False), (2, True)), states=3, gap=1, late=True),
    Toy("states", 3, ((2, True), (1, True)), unordered=(0,), seed=40),  # a habit that is mostly kept
)


@pytest.mark.statistical
@pytest.mark.parametrize("toy", SMALL, ids=str)
def test_draws_follow_the_chances_of_paths(toy: Toy) -> None:
    units = 40_000
    found, chance = drawn_counts(toy, lambda courses: courses.draw(torch.Generator().manual_seed(7)).numpy(), units)
    assert found[chance == 0].sum() == 0
    often = units * chance >= 5
    assert often.sum() > 8
    pooled = [np.append(part[often], part[~often].sum()) for part in (found, units * chance)]
    kept = pooled[1] > 0
    # A false alarm in 10^5 seeds for each of them, and the seed is fixed.
    assert chisquare(pooled[0][kept], pooled[1][kept]).pvalue > 1e-5


@pytest.mark.parametrize("toy", SMALL, ids=str)
def test_a_seed_fixes_a_draw_and_the_global_random_state_does_not(toy: Toy) -> None:
    courses = courses_of(toy, parameters(toy))
    drawn = []
    for seed, state in ((3, 11), (3, 12), (4, 11)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(state)
            random = torch.Generator().manual_seed(seed)
            drawn.append([courses.draw(random).tolist() for _ in range(20)])
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.statistical
@pytest.mark.parametrize("toy", SMALL, ids=str)
def test_relaxed_windows_are_draws_as_indicators(toy: Toy) -> None:
    units = 20_000
    given = parameters(toy)
    many = Parameters(**{name: np.repeat(array[:1], units, axis=0) for name, array in vars(given).items()})
    courses = courses_of(toy, many)
    steps = courses.relaxed(torch.Generator().manual_seed(5))
    indicators = steps.numpy()
    np.testing.assert_allclose(indicators, np.round(indicators), atol=1e-9)
    by_channel = np.add.reduceat(indicators, np.cumsum([0, *toy.shape.sizes])[:-1], axis=2)
    np.testing.assert_allclose(by_channel, 1, atol=1e-9)
    # Six standard deviations of a mean of so many indicators, over at most 20 of them; the seed is fixed.
    found = indicators.mean(axis=0)
    np.testing.assert_allclose(found, courses.levels[0].numpy(), atol=6 * np.sqrt(0.25 / units))
    # Steps hang together as they do in a draw.
    starts = np.cumsum([0, *toy.shape.sizes])[:-1]
    parts = [
        indicators[:, :, start : start + size].argmax(axis=2)
        for start, size in zip(starts, toy.shape.sizes, strict=True)
    ]
    counts, chance = drawn_counts(toy, lambda _: np.stack(parts, axis=2), units)
    often = units * chance >= 5
    assert chisquare(counts[often], counts[often].sum() * chance[often] / chance[often].sum()).pvalue > 1e-5


def test_a_straight_through_draw_has_the_gradient_of_its_chances() -> None:
    chance = torch.tensor([[0.2, 0.5, 0.3], [0.0, 1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    drawn = straight_through(chance, torch.Generator().manual_seed(0))
    assert drawn[1].tolist() == [0, 1, 0]
    assert sorted(drawn[0].round().tolist()) == [0, 0, 1]
    weights = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.float64)
    (weights * drawn).sum().backward()
    assert torch.equal(chance.grad, weights)  # type: ignore[arg-type]


# --- gradients


@pytest.mark.parametrize("toy", [PATHS[0], PATHS[2], STATES[0], STATES[2], STATES[6], STATES[8], STATES[10]], ids=str)
def test_each_table_has_the_gradient_that_small_changes_show(toy: Toy) -> None:
    given = solved(toy)[0]
    random = np.random.default_rng(1)
    records = torch.from_numpy(given.records)
    names = list(expected_of(toy, courses_of(toy, given), records))
    for name in names:
        if name == Family.OBSERVED and toy.kind == "states":
            continue
        tensors = {part: tensor.requires_grad_() for part, tensor in leaves(toy, given).items()}
        table = expected_of(toy, courses_from(toy, tensors), records)[name]
        if not table.numel():
            continue
        weights = torch.from_numpy(random.normal(size=tuple(table.shape)))
        (weights * table).sum().backward()
        moved = 0.0
        for part, tensor in tensors.items():
            gradient = tensor.grad
            if gradient is None:
                continue
            assert torch.isfinite(gradient).all(), (name, part)
            moved += float(gradient.abs().max())
            # Along one random direction; tables are polynomials, so a central difference is nearly exact.
            way = torch.from_numpy(random.normal(size=tuple(tensor.shape)))
            ends = []
            for sign in (1, -1):
                nudged = {other: one.detach() for other, one in tensors.items()}
                nudged[part] = nudged[part] + sign * 1e-5 * way
                ends.append((weights * expected_of(toy, courses_from(toy, nudged), records)[name]).sum())
            assert float((gradient * way).sum()) == pytest.approx(float(ends[0] - ends[1]) / 2e-5, rel=1e-4, abs=1e-7)
        assert moved > 0, name


# --- heads


def head_shape(kind: Kind, **changes: Any) -> SequenceShape:
    keys: dict[str, Any] = {
        "kind": kind,
        "steps": 4,
        "blocks": ((0, 2), (2, 4)),
        "sizes": (3, 5, 2),
        "missing": (True, False, True),
        "ordered": (True, True, False),
        "states": 3,
        **changes,
    }
    return SequenceShape(**keys)


def head_of(kind: Kind, *, seed: int = 0, **changes: Any) -> PathHead | StateHead:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return (PathHead if kind == "paths" else StateHead)(6, head_shape(kind, **changes))


def hidden_of(rows: int, *, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(rows, 6, generator=torch.Generator().manual_seed(1))


def noise_of(rows: int, shape: SequenceShape, *, seed: int = 3) -> Tensor:
    """As many standard normals as a head of this shape takes beside what its features were made from."""
    needed = GeneratorShape((2,), classes=1, latent=0, width=1, blocks=1, sequence=shape).noise
    return torch.randn(rows, needed, generator=torch.Generator().manual_seed(seed))


def full_length(rows: int, steps: int = 4) -> Tensor:
    return torch.eye(steps + 1)[[steps] * rows]


@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("kind", ["paths", "states"])
def test_every_parameter_of_a_head_learns_from_its_tables(kind: Kind, scale: float) -> None:
    head, hidden = head_of(kind), hidden_of(8, scale=scale).requires_grad_()
    lengths = full_length(8) if kind == "paths" else torch.from_numpy(shares(np.random.default_rng(0), 8, 5)).float()
    records = torch.full((2, 4, 2), 0.5)
    random = torch.Generator().manual_seed(2)
    total = torch.zeros(())
    courses = head(hidden, noise_of(8, head.shape), weights_of(lengths))
    for table in courses.expected(records, torch.eye(10)).values():
        total = total + (table * torch.randn(table.shape, generator=random)).sum()
    total.backward()
    for name, parameter in [("hidden", hidden), *head.named_parameters()]:
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        if scale == 1:
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("kind", ["paths", "states"])
def test_every_parameter_of_a_head_learns_from_relaxed_windows(kind: Kind) -> None:
    head, hidden = head_of(kind), hidden_of(200).requires_grad_()
    steps = head(hidden, noise_of(200, head.shape), weights_of(full_length(200))).relaxed(
        torch.Generator().manual_seed(0)
    )
    (steps * torch.randn(steps.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    for name, parameter in [("hidden", hidden), *head.named_parameters()]:
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("toy", SMALL, ids=str)
def test_what_courses_are_made_from_has_a_gradient_of_relaxed_windows(toy: Toy) -> None:
    tensors = {part: tensor.requires_grad_() for part, tensor in leaves(toy, parameters(toy)).items()}
    steps = courses_from(toy, tensors).relaxed(torch.Generator().manual_seed(0))
    weights = torch.randn(steps.shape, generator=torch.Generator().manual_seed(2), dtype=steps.dtype)
    (steps * weights).sum().backward()
    for part, tensor in tensors.items():
        if part != "lengths":
            assert tensor.grad is not None, part
            assert tensor.grad.abs().max() > 0, part


@pytest.mark.parametrize("kind", ["paths", "states"])
def test_each_row_of_a_head_is_of_its_own_features_alone(kind: Kind) -> None:
    head, hidden = head_of(kind), hidden_of(4)
    other = hidden.clone()
    other[2] += 1.0
    noise = noise_of(4, head.shape)
    levels = [head(one, noise, weights_of(full_length(4))).levels for one in (hidden, other)]
    changed = (levels[0] != levels[1]).flatten(1).any(dim=1)
    assert changed.tolist() == [False, False, True, False]


# --- shapes


def test_bins_lie_side_by_side_with_missing_in_the_last_slot_of_its_channel() -> None:
    shape = head_shape("paths")
    assert shape.values == (2, 5, 1)
    assert shape.widest == 5
    # Six slots a channel: values first, missing last.
    assert shape.slots.tolist() == [0, 1, 5, 6, 7, 8, 9, 10, 12, 17]
    assert shape.slots.dtype == np.int64
    assert json.loads(json.dumps(shape.as_dict()))["sizes"] == [3, 5, 2]


@pytest.mark.parametrize("kind", ["paths", "states"])
def test_no_buffer_of_a_head_travels(kind: Kind) -> None:
    # Nothing in one is learned.
    assert set(head_of(kind).state_dict()) == set(dict(head_of(kind).named_parameters()))


def test_sets_of_bins_grow_from_the_lowest_and_from_the_highest_group() -> None:
    sets = nested_sets(head_shape("paths", sizes=(6, 5, 3), missing=(True, False, True)))
    # Groups of five values: each its own; of two: the lowest and the one in the middle.
    assert sets[1].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [0, 0, 0, 0, 1],
        [0, 0, 0, 1, 1],
        [0, 0, 1, 1, 1],
        [0, 1, 1, 1, 1],
    ]
    assert sets[2, :, :2].int().tolist() == [[1, 0], [1, 0], [1, 1], [1, 1], [0, 0], [0, 0], [0, 1], [0, 1]]


# --- draws


def test_a_category_is_drawn_as_often_as_its_chance_says() -> None:
    chances = torch.tensor([[0.1, 0.0, 0.6, 0.3], [0.0, 1e-3, 0.0, 7.0]]).repeat(50_000, 1).view(1000, 100, 4)
    drawn = choose(chances, torch.Generator().manual_seed(0))
    assert drawn.shape == (1000, 100)
    assert drawn.dtype == torch.int64
    for row in (0, 1):
        counts = np.bincount(drawn.view(-1)[row::2].numpy(), minlength=4)
        expected = chances.view(-1, 4)[row].double().numpy()
        # 50,000 draws: a share has a standard deviation of at most 0.0023. False alarm below 1e-6.
        np.testing.assert_allclose(counts / 50_000, expected / expected.sum(), atol=0.0115)
        assert (counts[expected == 0] == 0).all()


@pytest.mark.parametrize(("value", "expected"), [(0.0, 1), (1 - 2.0**-53, 2)], ids=["lowest", "highest"])
def test_the_outermost_number_still_draws_a_category_that_has_a_chance(
    monkeypatch: pytest.MonkeyPatch, value: float, expected: int
) -> None:
    chances = torch.rand(20_000, 4, generator=torch.Generator().manual_seed(1)) + 1e-6
    chances[:, [0, 3]] = 0.0
    monkeypatch.setattr(torch, "rand", lambda size, *, dtype, **_: torch.full(size, value, dtype=dtype))
    assert (choose(chances, torch.Generator()) == expected).all()


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, 0.0])
def test_no_category_is_drawn_of_what_are_no_chances(wrong: float) -> None:
    chances = torch.full((5, 3), 0.2)
    chances[3] = torch.tensor([wrong, 0.0, 0.0])
    with pytest.raises(ValueError, match="chances"):
        choose(chances, torch.Generator())


def test_chances_that_doubles_round_away_are_none() -> None:
    smallest = torch.tensor([[0.0, 5e-324]], dtype=torch.float64)  # a point below it rounds up to it
    with pytest.raises(ValueError, match="chances"):
        choose(smallest, torch.Generator())
