"""Released tables meet the generator's expectations cell by cell, and what is released twice counts twice."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.data.queries import (
    COUNT_BUCKETS,
    EXTREME_GROUPS,
    GROUPED,
    Coded,
    Counter,
    Family,
    Query,
    catalogue,
    layout_of,
)
from common.data.tables import sizes_of
from common.data.units import WINDOW_WEIGHT
from common.data.windows import Windows
from common.models.critics import MEASURED, Joins, MeasuredCritic, expectations
from common.models.generator import GeneratorShape, Outcome
from common.models.paths import Paths
from common.models.sequences import Courses, Expected, SequenceShape, weights_of
from common.models.states import States
from common.models.targets import IMPLIED, Groups, TargetBuilder, Targets, table_shapes

CPU = torch.device("cpu")
CLASSES, STEPS = 2, 4
COLUMNS = (3, 2)
"""Bins of the columns of the record."""
CHANNELS = ((4, True), (2, False), (7, True))
"""Value bins of the channels, and whether they have a missing one beside."""
NAMES = ("one_way", "average", *Family)


def windows_of(layout: str) -> Windows:
    rules = {
        f"c{number}": {"type": "integer", "min": 0, "max": 99, "missing": missing}
        for number, (_, missing) in enumerate(CHANNELS)
    }
    step: dict[str, Any] = {"step": 1} if layout == "grid" else {}
    return Windows.model_validate(
        {"layout": layout, "length": STEPS, "time": {"column": "when"}, "channels": rules, **step}
    )


def shape_of(layout: str) -> GeneratorShape:
    sequence = SequenceShape(
        kind="paths" if layout == "grid" else "states",
        steps=STEPS,
        blocks=windows_of(layout).blocks,
        sizes=tuple(values + missing for values, missing in CHANNELS),
        missing=tuple(missing for _, missing in CHANNELS),
        ordered=(True,) * len(CHANNELS),
        states=STEPS,
    )
    return GeneratorShape(COLUMNS, CLASSES, latent=2, width=8, blocks=1, sequence=sequence)


def bins_of(shape: GeneratorShape) -> tuple[int, ...]:
    """Of the columns, then of the channels."""
    return (*shape.sizes, *(shape.sequence.sizes if shape.sequence else ()))


def maps_of(shape: GeneratorShape, *, joined: bool) -> list[np.ndarray]:
    """From bins to groups: each its own, or neighbours two by two."""
    return [np.arange(size) // (2 if joined else 1) for size in bins_of(shape)]


# --- a generator that knows each unit: its outcome has one row a unit, with certainty


@dataclass(frozen=True)
class Units:
    coded: Coded
    outcome: Outcome


def indicators(codes: np.ndarray, size: int) -> Tensor:
    return torch.from_numpy(np.eye(size, dtype=np.float32)[codes])


def certain_paths(random: np.random.Generator, shape: SequenceShape, units: int) -> tuple[np.ndarray, Courses]:
    """Any values in any step, each seen or not by a rule of that step for what was seen before."""
    channels, values, never = len(shape.sizes), np.array(shape.values), ~np.array(shape.missing)
    held = np.stack([random.integers(0, count, (units, shape.steps)) for count in values], axis=2)
    seen_start = random.integers(0, 2, (units, channels)) | never
    seen_follow = random.integers(0, 2, (units, shape.steps - 1, channels, 2)) | never[:, None]
    seen = [seen_start]
    for step in range(shape.steps - 1):
        seen.append(np.take_along_axis(seen_follow[:, step], seen[-1][:, :, None], axis=2)[:, :, 0])
    windows = np.where(np.stack(seen, axis=1) == 1, held, values)
    return windows, Paths(
        shape,
        weights_of(indicators(np.full(units, shape.steps), shape.steps + 1)),
        values=indicators(held, shape.widest),
        seen_start=torch.from_numpy(seen_start.astype(np.float32)),
        seen_moves=indicators(seen_follow, 2),
    )


def certain_states(random: np.random.Generator, shape: SequenceShape, units: int) -> tuple[np.ndarray, Courses]:
    """Any windows of any length: a state for each step, each with what the unit has there."""
    windows = np.stack([random.integers(0, size, (units, shape.steps)) for size in shape.sizes], axis=2)
    lengths = random.integers(0, shape.steps + 1, units)
    slots = np.where(windows < np.array(shape.values), windows, shape.widest)
    courses = States(
        shape,
        weights_of(indicators(lengths, shape.steps + 1)),
        start=indicators(np.zeros(units, dtype=np.int64), shape.steps),
        move=indicators(np.tile(np.minimum(np.arange(1, shape.steps + 1), shape.steps - 1), (units, 1)), shape.steps),
        emit=indicators(slots, shape.widest + 1),
    )
    windows[np.arange(shape.steps) >= lengths[:, None]] = -1
    return windows, courses


def units_of(layout: str, *, seed: int = 0, units: int = 40) -> Units:
    """Units class after class, an equal number of each."""
    random, shape = np.random.default_rng(seed), shape_of(layout)
    assert shape.sequence is not None
    records = np.stack([random.integers(0, size, units) for size in shape.sizes], axis=1)
    windows, courses = (certain_paths if layout == "grid" else certain_states)(random, shape.sequence, units)
    labels = np.repeat(np.arange(CLASSES), units // CLASSES)
    lengths = (windows[:, :, 0] >= 0).sum(axis=1)
    known = torch.cat([indicators(records[:, at], size) for at, size in enumerate(shape.sizes)], dim=1)
    return Units(Coded(labels, records, windows, lengths), Outcome(known, courses, shape))


def counted(units: Units, layout: str, query: Query, maps: list[np.ndarray]) -> np.ndarray:
    """A table as sites would count it, (classes, ...) in units."""
    coded, shape = units.coded, shape_of(layout)
    assert coded.windows is not None
    if query.family in GROUPED:
        records = np.stack([maps[at][coded.records[:, at]] for at in range(len(COLUMNS))], axis=1)
        channels = maps[len(COLUMNS) :]
        windows = np.stack(
            [np.where(coded.windows[..., at] < 0, -1, one[coded.windows[..., at]]) for at, one in enumerate(channels)],
            axis=2,
        )
        coded, sizes = Coded(coded.labels, records, windows, coded.lengths), sizes_of(maps)
    else:
        sizes = bins_of(shape)
    tables = layout_of([query], sizes, CLASSES)
    whole = np.full(len(coded.labels), WINDOW_WEIGHT)
    hits = Counter(coded, windows_of(layout), whole).hits(query, tables, 0)
    sums = np.bincount(hits.cells, weights=hits.weights, minlength=tables.n_cells)
    return np.asarray(sums.reshape(tables.shapes[0]) / WINDOW_WEIGHT)


def marginal(units: Units, axis: int, size: int) -> np.ndarray:
    """The one-way table of a column or a channel, slowly; (classes, bins) in units."""
    table = np.zeros((CLASSES, size))
    assert units.coded.windows is not None
    for unit, label in enumerate(units.coded.labels):
        if axis < len(COLUMNS):
            table[label, units.coded.records[unit, axis]] += 1
        else:
            series = units.coded.windows[unit, :, axis - len(COLUMNS)]
            for code in series[series >= 0]:
                table[label, code] += 1 / (series >= 0).sum()
    return table


@cache
def world(layout: str, *, joined: bool) -> tuple[Units, Expected, Mapping[Query, np.ndarray]]:
    """Units, the generator's expectations with each class given twice, and every table of the catalogue."""
    shape, units = shape_of(layout), units_of(layout)
    maps = maps_of(shape, joined=joined)
    once = expectations(units.outcome, CLASSES, Joins(Groups.of(maps, len(COLUMNS)), CPU))
    twice = {name: table.repeat_interleave(2, dim=0) for name, table in once.items()}
    tables = {query: counted(units, layout, query, maps) for query in catalogue(len(COLUMNS), windows_of(layout))}
    return units, twice, tables


def label_counts(units: Units) -> np.ndarray:
    return np.bincount(units.coded.labels, minlength=CLASSES).astype(np.float64)


LAYOUTS = ("grid", "events")


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_tables_of_the_units_that_a_generator_makes_leave_no_loss(layout: str, joined: bool) -> None:
    units, expected, tables = world(layout, joined=joined)
    shape = shape_of(layout)
    builder = TargetBuilder(shape, maps_of(shape, joined=joined))
    cells = 0
    for query, table in tables.items():
        builder.add_table(query, table, 0.01)
        cells += table.size
    for axis, size in enumerate(bins_of(shape)):
        builder.add_marginal(axis, marginal(units, axis, size), np.full(size, 0.01))
        cells += CLASSES * size
    targets = builder.build(label_counts(units))
    critic = MeasuredCritic(targets, NAMES, CPU)
    assert critic.cells == cells
    # Counts up to 20 in single precision, over a standard deviation of a tenth.
    assert critic.loss(expected).item() == pytest.approx(0, abs=1e-8)
    # Another generator of the same kind does not have these tables.
    other = units_of(layout, seed=1).outcome
    wrong = expectations(other, CLASSES, Joins(targets.groups, CPU))
    assert critic.loss({name: table.repeat_interleave(2, dim=0) for name, table in wrong.items()}).item() > 1


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_table_alone_is_compared_with_its_own_cells(layout: str, joined: bool) -> None:
    units, expected, tables = world(layout, joined=joined)
    random, shape = np.random.default_rng(5), shape_of(layout)
    for query, table in tables.items():
        builder = TargetBuilder(shape, maps_of(shape, joined=joined))
        off = random.normal(size=table.shape)
        builder.add_table(query, table + off, 4.0)
        critic = MeasuredCritic(builder.build(label_counts(units)), NAMES, CPU)
        assert critic.cells == table.size
        # Every cell is off by what was added to it and by nothing else.
        assert critic.loss(expected).item() == pytest.approx(np.mean(off**2) / 4, rel=1e-4), query


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_marginal_alone_is_compared_with_its_own_bins(layout: str) -> None:
    units, expected, _ = world(layout, joined=True)
    random, shape = np.random.default_rng(5), shape_of(layout)
    for axis, size in enumerate(bins_of(shape)):
        builder = TargetBuilder(shape, maps_of(shape, joined=True))
        table = marginal(units, axis, size)
        off, variance = random.normal(size=table.shape), random.uniform(1, 9, size)
        builder.add_marginal(axis, table + off, variance)
        critic = MeasuredCritic(builder.build(label_counts(units)), NAMES, CPU)
        assert critic.cells == table.size
        assert critic.loss(expected).item() == pytest.approx(np.mean(off**2 / variance), rel=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_two_tables_share_a_cell(layout: str) -> None:
    shape = shape_of(layout)
    builder = TargetBuilder(shape, maps_of(shape, joined=True))
    for query, table in world(layout, joined=True)[2].items():
        builder.add_table(query, np.zeros(table.shape), 1.0)
    for axis, size in enumerate(bins_of(shape)):
        builder.add_marginal(axis, np.zeros((CLASSES, size)), np.ones(size))
    tables = dict(builder.build(np.ones(CLASSES)).tables)
    del tables[IMPLIED]
    for name, target in tables.items():
        assert set(np.unique(target.precision)) <= {0.0, 1.0}, name
        assert target.precision.any() == (name != Family.OBSERVED or layout == "grid")


def test_tables_of_two_columns_imply_those_of_one_by_the_noise_of_their_sums() -> None:
    shape = GeneratorShape((3, 2, 4), 3, latent=2, width=8, blocks=1)
    # Two groups, one, and two.
    builder = TargetBuilder(shape, maps_of(shape, joined=True))
    random = np.random.default_rng(3)
    first, second = random.normal(size=(3, 2, 1)), random.normal(size=(3, 2, 2))
    builder.add_table(Query(Family.PAIR, (0, 1)), first, 2.0)
    builder.add_table(Query(Family.PAIR, (0, 2)), second, 5.0)
    implied = builder.build(np.ones(3)).tables[IMPLIED]
    # Sums over one group and over two: a variance of 2 and one of 10; 4; 10.
    np.testing.assert_allclose(implied.precision, [1 / 2 + 1 / 10] * 2 + [1 / 4] + [1 / 10] * 2)
    both = (first[:, :, 0] / 2 + second.sum(axis=2) / 10) / (1 / 2 + 1 / 10)
    np.testing.assert_allclose(implied.values, np.hstack([both, first.sum(axis=1), second.sum(axis=1)]))


# --- what is released more than once


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=5), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=30)
def test_releases_of_one_table_add_up_by_their_precision(variances: list[float], seed: int) -> None:
    random, shape = np.random.default_rng(seed), shape_of("grid")
    queries = catalogue(len(COLUMNS), windows_of("grid"))
    query = queries[int(random.integers(len(queries)))]
    inner = world("grid", joined=False)[2][query].shape
    releases = [random.normal(size=inner) for _ in variances]
    together = TargetBuilder(shape, maps_of(shape, joined=False))
    for release, variance in zip(releases, variances, strict=True):
        together.add_table(query, release, variance)
    weights = 1 / np.array(variances)
    once = TargetBuilder(shape, maps_of(shape, joined=False))
    once.add_table(query, np.average(releases, axis=0, weights=weights), 1 / weights.sum())
    found, expected = (one.build(np.ones(CLASSES)).tables for one in (together, once))
    for name, target in found.items():
        np.testing.assert_allclose(target.values, expected[name].values, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(target.precision, expected[name].precision, rtol=1e-12)
    assert found[query.family].precision.max() == pytest.approx(weights.sum())


def test_marginals_add_up_bin_by_bin() -> None:
    shape = shape_of("grid")
    builder = TargetBuilder(shape, maps_of(shape, joined=False))
    builder.add_marginal(1, np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([1.0, 4.0]))
    builder.add_marginal(1, np.array([[5.0, 2.0], [3.0, 8.0]]), np.array([3.0, 4.0]))
    target = builder.build(np.ones(CLASSES)).tables["one_way"]
    np.testing.assert_allclose(target.values[:, 3:], [[2, 2], [3, 6]])
    np.testing.assert_allclose(target.precision, [0, 0, 0, 1 + 1 / 3, 0.5])
    assert (target.values[:, :3] == 0).all()


def test_vectors_are_a_family_of_their_own_that_adds_up_too() -> None:
    shape = shape_of("events")
    builder = TargetBuilder(shape, maps_of(shape, joined=False))
    assert "other" not in builder.build(np.ones(CLASSES)).tables
    builder.add_vector("other", np.array([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]]), 2.0)
    builder.add_vector("other", np.array([[4.0, 0.0, 2.0], [0.0, 3.0, 6.0]]), 1.0)
    target = builder.build(np.ones(CLASSES)).tables["other"]
    np.testing.assert_allclose(target.values, [[3, 0, 2], [0, 3, 4]])
    np.testing.assert_allclose(target.precision, [1.5] * 3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_was_not_released_has_no_precision_and_no_value(layout: str) -> None:
    shape = shape_of(layout)
    targets = TargetBuilder(shape, maps_of(shape, joined=True)).build(np.array([3.0, 5.0]))
    assert targets.label_counts.tolist() == [3, 5]
    assert set(targets.tables) == {IMPLIED, *NAMES}
    for name, target in targets.tables.items():
        assert not target.values.any(), name
        assert not target.precision.any(), name


# --- shapes


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tables_have_the_shapes_of_the_expectations(layout: str, joined: bool) -> None:
    shape = shape_of(layout)
    expected = world(layout, joined=joined)[1]
    groups = Groups.of(maps_of(shape, joined=joined), len(COLUMNS))
    shapes = table_shapes(shape, groups)
    own = {name: tuple(table.shape[1:]) for name, table in expected.items() if name in shapes}
    assert own == shapes
    assert set(expected) == {*shapes, *MEASURED["statistical"].tables}
    targets = TargetBuilder(shape, maps_of(shape, joined=joined)).build(np.ones(CLASSES))
    assert {name: target.precision.shape for name, target in targets.tables.items()} == shapes
    assert {name: target.values.shape for name, target in targets.tables.items()} == {
        name: (CLASSES, *dense) for name, dense in shapes.items()
    }
    assert shapes[Family.TRANSITION] == (3, 8, 8)
    assert shapes[Family.HIGHEST] == (3, EXTREME_GROUPS + 1)
    assert shapes[Family.OBSERVED] == (3, COUNT_BUCKETS)


def test_a_study_without_windows_has_one_way_tables_and_pairs_alone() -> None:
    shape = GeneratorShape((3, 2, 4), 3, latent=2, width=8, blocks=1)
    maps = maps_of(shape, joined=True)
    assert table_shapes(shape, Groups.of(maps, 3)) == {"one_way": (9,), IMPLIED: (5,), Family.PAIR: (5, 5)}
    builder = TargetBuilder(shape, maps)
    builder.add_table(Query(Family.PAIR, (0, 2)), np.arange(12.0).reshape(3, 2, 2), 1.0)
    targets: Targets = builder.build(np.ones(3))
    pairs = targets.tables[Family.PAIR]
    assert pairs.values[:, :2, 3:].tolist() == np.arange(12.0).reshape(3, 2, 2).tolist()
    assert pairs.precision.sum() == 4
    assert targets.groups.channels.shape == (0,)


def test_groups_are_numbered_over_columns_and_over_channels() -> None:
    maps = [np.array([0, 0, 1]), np.array([0, 1]), np.array([0, 1, 1, 1]), np.array([0]), np.array([0, 1])]
    groups = Groups.of(maps, 2)
    assert groups.records.tolist() == [0, 0, 1, 2, 3]
    assert groups.channels.tolist() == [0, 1, 1, 1, 2, 3, 4]
    assert Groups.of(maps[:2], 2).channels.tolist() == []
    assert groups.records.dtype == groups.channels.dtype == Groups.of(maps[:2], 2).channels.dtype == np.int64
