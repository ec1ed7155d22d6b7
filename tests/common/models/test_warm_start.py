"""Where a generator begins shows what was released of columns, of values, of steps, of channels and of gaps."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtri

from common.data.queries import Coded, Counter, Family, Query, catalogue, layout_of
from common.data.units import WINDOW_WEIGHT
from common.data.windows import Windows
from common.models.critics import Joins, expectations
from common.models.generator import Generator, GeneratorShape, draw_bins, initialise
from common.models.paths import PathHead, path_noise
from common.models.sequences import SequenceShape
from common.models.targets import TargetBuilder, Targets
from common.models.training import parameters_of
from common.models.warm_start import _correlation, _correlations, _root_of, _standard, _tetrachoric, warm_start

CPU = torch.device("cpu")
STEPS, UNITS, SEEDS = 12, 10_000, range(4)
"""A single generator's own random weights add to what it was given; several together show that alone."""
COLUMNS = (np.array([[0.9, 0.1, 0.0], [0.5, 0.3, 0.2]]), np.array([[0.1, 0.4, 0.4, 0.1]] * 2))
"""Shares of their bins, label by label."""
VALUES = (
    np.array([0.05, 0.2, 0.15, 0.1, 0.1, 0.25, 0.1, 0.05]),
    np.array([0.15, 0.15, 0.1, 0.2, 0.25, 0.15]),
    np.array([0.5, 0.3, 0.2]),
)
"""Of the channels: two that are ordered, the first of them with gaps, and categories with gaps."""
MISSING = (True, False, True)
SIZES = tuple(len(values) + missing for values, missing in zip(VALUES, MISSING, strict=True))
CHANNELS = [slice(start, start + size) for start, size in zip(np.cumsum([0, *SIZES]), SIZES, strict=False)]
AFTER_GAP, AFTER_READING = np.array([0.7, 0.9]), np.array([0.2, 0.6])
"""Chance to be seen next, of each label."""


def windows_of(layout: str) -> Windows:
    number = {"type": "integer", "min": 0, "max": 99}
    step: dict[str, Any] = {"step": 1} if layout == "grid" else {}
    channels = {
        "c0": {**number, "missing": True},
        "c1": number,
        "c2": {"type": "categorical", "categories": ["a", "b", "c"], "missing": True},
    }
    return Windows.model_validate(
        {"layout": layout, "length": STEPS, "time": {"column": "when"}, "channels": channels, **step}
    )


def shape_of(layout: str = "grid") -> GeneratorShape:
    sequence = SequenceShape(
        kind="paths" if layout == "grid" else "states",
        steps=STEPS,
        blocks=windows_of(layout).blocks,
        sizes=SIZES,
        missing=MISSING,
        ordered=(True, True, False),
        states=3,
    )
    columns = tuple(share.shape[1] for share in COLUMNS)
    return GeneratorShape(columns, classes=2, latent=16, width=128, blocks=2, sequence=sequence)


@dataclass(frozen=True)
class World:
    """What the ordered channels' normal scores are made of: a level, an autoregressive course, and white noise.

    between: correlation of the two channels, in each of the three. level, slow: variances, of 1. kept: correlation of
    the course's next step.
    """

    between: float
    level: float
    slow: float
    kept: float


WORLDS = (
    World(0.6, level=0.4, slow=0.4, kept=0.85),
    World(-0.5, level=0.1, slow=0.8, kept=0.95),
    World(0.8, level=0.05, slow=0.05, kept=0.85),
    World(0.3, level=0.05, slow=0.9, kept=0.6),
)


def units_of(world: World) -> Coded:
    """Units of a world, columns and categories at random, label after label."""
    random, labels = np.random.default_rng(0), np.arange(UNITS) % 2
    mixing = np.linalg.cholesky([[1, world.between], [world.between, 1]])

    def normal(*shape: int) -> np.ndarray:
        return np.asarray(random.normal(size=(*shape, 2)) @ mixing.T)

    course = [normal(UNITS)]
    for _ in range(STEPS - 1):
        course.append(world.kept * course[-1] + (1 - world.kept**2) ** 0.5 * normal(UNITS))
    white = 1 - world.level - world.slow
    scores = world.level**0.5 * normal(UNITS)[:, None] + world.slow**0.5 * np.stack(course, axis=1)
    scores = scores + white**0.5 * normal(UNITS, STEPS)
    bins = [np.searchsorted(ndtri(VALUES[at].cumsum()[:-1]), scores[:, :, at]) for at in (0, 1)]
    bins.append(random.choice(3, p=VALUES[2], size=(UNITS, STEPS)))
    for channel in np.flatnonzero(MISSING):
        seen = random.random(UNITS) < 0.5
        for step in range(STEPS):
            bins[channel][~seen, step] = len(VALUES[channel])
            seen = random.random(UNITS) < np.where(seen, AFTER_READING[labels], AFTER_GAP[labels])
    chances = [share.cumsum(axis=1)[labels] for share in COLUMNS]
    records = np.stack([(random.random((UNITS, 1)) > chance).sum(axis=1) for chance in chances], axis=1)
    return Coded(labels, records, np.stack(bins, axis=2), np.full(UNITS, STEPS))


def released(coded: Coded, layout: str = "grid", *, stddev: float = 1.0, marginals: float = 1.0) -> Targets:
    """All tables of some units with such a noise on each count; `marginals` that of tables of one column or channel."""
    assert coded.windows is not None
    shape, windows, random = shape_of(layout), windows_of(layout), np.random.default_rng(1)
    sizes = (*shape.sizes, *SIZES)
    # Ordered channels of tables of two axes are measured over pairs of neighbouring bins, the last alone.
    maps = [np.arange(size) // (2 if at in (2, 3) else 1) for at, size in enumerate(sizes)]
    maps[2][-1] = maps[2][-2] + 1
    builder = TargetBuilder(shape, maps)
    codes = [*coded.records.T, *np.moveaxis(coded.windows, 2, 0)]
    joined = [one[code] for one, code in zip(maps, codes, strict=True)]
    grouped = Coded(coded.labels, np.stack(joined[:2], axis=1), np.stack(joined[2:], axis=2), coded.lengths)
    for query in catalogue(2, windows):
        two = query.family in (Family.PAIR, Family.COURSE, Family.TOGETHER)
        cells = layout_of([query], [int(one.max()) + 1 for one in maps] if two else sizes, 2)
        hits = Counter(grouped if two else coded, windows, np.full(UNITS, WINDOW_WEIGHT)).hits(query, cells, 0)
        counts = np.bincount(hits.cells, weights=hits.weights / WINDOW_WEIGHT, minlength=cells.n_cells)
        counts = counts + stddev * random.normal(size=counts.shape)
        builder.add_table(query, counts.reshape(cells.shapes[0]), stddev**2)
    for axis, (code, size) in enumerate(zip(codes, sizes, strict=True)):
        steps = code.size // UNITS
        counts = np.stack([np.bincount(code[coded.labels == label].ravel(), minlength=size) for label in (0, 1)])
        counts = counts / steps + marginals * random.normal(size=counts.shape)
        builder.add_marginal(axis, counts, np.full(size, marginals**2))
    return builder.build(np.bincount(coded.labels).astype(np.float64))


def nothing_released(layout: str = "grid") -> Targets:
    shape = shape_of(layout)
    return TargetBuilder(shape, [np.arange(size) for size in (*shape.sizes, *SIZES)]).build(np.ones(2))


@dataclass(frozen=True)
class Seen:
    """What tables say, all classes together.

    columns: shares of each column's bins, side by side. channels: of each channel's. following, ends: correlation of
    the scores of each ordered channel in two neighbouring steps, in the first and the last. between: of the two in one
    step. seen: chance to be seen, of each channel that has gaps, after a gap and after a reading.
    """

    columns: np.ndarray
    channels: np.ndarray
    following: np.ndarray
    ends: np.ndarray
    between: float
    seen: np.ndarray


def pearson(table: np.ndarray, left: np.ndarray, right: np.ndarray) -> float:
    table = table / table.sum()
    means = table.sum(axis=1) @ left, table.sum(axis=0) @ right
    spreads = table.sum(axis=1) @ left**2 - means[0] ** 2, table.sum(axis=0) @ right**2 - means[1] ** 2
    return float((left @ table @ right - means[0] * means[1]) / np.prod(spreads) ** 0.5)


def seen_in(tables: dict[str, np.ndarray]) -> Seen:
    """From tables over bins."""
    places = [_standard(VALUES[channel]) for channel in (0, 1)]
    ordered = [slice(0, len(place)) for place in places]
    following, ends = (
        np.array([pearson(tables[family][at, own, own], places[at], places[at]) for at, own in enumerate(ordered)])
        for family in (Family.TRANSITION, Family.ENDS)
    )
    gaps = tables[Family.TRANSITION][[0, 2]]
    seen = [gaps[:, -1, :-1].sum(axis=1) / gaps[:, -1].sum(axis=1)]
    seen.append(gaps[:, :-1, :-1].sum(axis=(1, 2)) / gaps[:, :-1].sum(axis=(1, 2)))
    both = tables[Family.TOGETHER][: len(places[0]), SIZES[0] : SIZES[0] + len(places[1])]
    return Seen(
        columns=tables["one_way"],
        channels=tables["average"],
        following=following,
        ends=ends,
        between=pearson(both, *places),
        seen=np.stack(seen),
    )


def said_by(generator: Generator, rows: int = 2000, *, like: int | None = None) -> Seen:
    """What the generator's own tables say, over bins; of rows whose records are all made like one of them, if said."""
    shape = generator.shape
    noise = torch.randn(rows, shape.noise, generator=torch.Generator().manual_seed(9))
    if like is not None:
        noise[:, : shape.latent] = noise[like, : shape.latent]
    groups = nothing_released().groups
    with torch.no_grad():
        outcome = generator(noise, torch.arange(2).repeat_interleave(rows // 2))
        found = expectations(outcome, 1, Joins(groups, CPU))
    return seen_in({str(name): table[0].double().numpy() for name, table in found.items()})


@cache
def truth_of(world: World) -> tuple[Targets, Seen]:
    """Releases of a world, nearly without noise, and what the world's units say."""
    coded = units_of(world)
    whole = np.full(UNITS, WINDOW_WEIGHT)
    sizes = (*shape_of().sizes, *SIZES)
    tables = {"average": np.zeros(sum(SIZES)), Family.TOGETHER: np.zeros((sum(SIZES), sum(SIZES)))}
    tables |= {family: np.zeros((3, 9, 9)) for family in (Family.TRANSITION, Family.ENDS)}
    for query in catalogue(2, windows_of("grid")):
        if query.family not in tables or query.family == "average":
            continue
        cells = layout_of([query], sizes, 2)
        hits = Counter(coded, windows_of("grid"), whole).hits(query, cells, 0)
        counts = np.bincount(hits.cells, weights=hits.weights, minlength=cells.n_cells)
        table = counts.reshape(cells.shapes[0]).sum(axis=0) / WINDOW_WEIGHT / UNITS
        if query.family == Family.TOGETHER:
            tables[query.family][CHANNELS[query.axes[0] - 2], CHANNELS[query.axes[1] - 2]] = table
        else:
            values = len(VALUES[query.channel - 2])
            slots = [*range(values), 8][: len(table)]
            tables[query.family][query.channel - 2][np.ix_(slots, slots)] = table
    assert coded.windows is not None
    for channel, size in enumerate(SIZES):
        tables["average"][CHANNELS[channel]] = np.bincount(coded.windows[:, :, channel].ravel(), minlength=size)
    tables["average"] /= UNITS * STEPS
    tables["one_way"] = np.concatenate(
        [np.bincount(codes, minlength=size) / UNITS for codes, size in zip(coded.records.T, sizes, strict=False)]
    )
    return released(coded), seen_in(tables)


@cache
def started(world: World) -> tuple[Seen, ...]:
    """What several generators say that began at a world's releases."""
    found = []
    for seed in SEEDS:
        generator = initialise(shape_of(), seed=seed)
        warm_start(generator, truth_of(world)[0])
        found.append(said_by(generator))
    return tuple(found)


def mean_of(found: tuple[Seen, ...], name: str) -> np.ndarray:
    return np.mean([getattr(one, name) for one in found], axis=0)


def values_of(channels: np.ndarray, channel: int) -> np.ndarray:
    """Shares of a channel's values where it is seen."""
    own = channels[CHANNELS[channel]][: len(VALUES[channel])]
    return np.asarray(own / own.sum())


# --- what was released is where a generator begins


@pytest.mark.parametrize("world", WORLDS, ids=str)
def test_columns_begin_at_their_released_shares(world: World) -> None:
    truth = truth_of(world)[1]
    found = mean_of(started(world), "columns")
    assert np.abs(found - truth.columns).max() < 0.1
    fresh = said_by(initialise(shape_of(), seed=0)).columns
    assert np.abs(fresh - truth.columns).max() > 0.2


@pytest.mark.parametrize("world", WORLDS, ids=str)
def test_channels_begin_near_their_released_shares(world: World) -> None:
    truth = truth_of(world)[1]
    for one in started(world):
        for channel in range(3):
            apart = np.abs(values_of(one.channels, channel) - values_of(truth.channels, channel)).sum() / 2
            assert apart < 0.2, channel
    found = mean_of(started(world), "channels")
    for channel in range(3):
        apart = np.abs(values_of(found, channel) - values_of(truth.channels, channel)).sum() / 2
        assert apart < 0.12, channel


@pytest.mark.parametrize("world", WORLDS, ids=str)
def test_neighbouring_steps_and_the_two_ends_are_correlated_as_released(world: World) -> None:
    truth = truth_of(world)[1]
    for found in started(world):
        np.testing.assert_allclose(found.following, truth.following, atol=0.07)
        np.testing.assert_allclose(found.ends, truth.ends, atol=0.2)


@pytest.mark.parametrize("world", WORLDS, ids=str)
def test_channels_are_correlated_as_released(world: World) -> None:
    truth, found = truth_of(world)[1], started(world)
    assert mean_of(found, "between") == pytest.approx(truth.between, abs=0.15)


def test_most_of_a_level_is_the_path_s_own_and_not_the_record_s() -> None:
    world = World(0.9, level=0.8, slow=0.1, kept=0.85)
    truth = truth_of(world)[1]
    of_one, of_all = [], []
    for seed in SEEDS:
        generator = initialise(shape_of(), seed=seed)
        warm_start(generator, truth_of(world)[0])
        of_one.append(said_by(generator, like=seed))
        of_all.append(said_by(generator))
        assert of_one[-1].between > 0.6 * truth.between
        assert (of_one[-1].ends > 0.6 * truth.ends).all()
    assert (mean_of(tuple(of_one), "ends") < mean_of(tuple(of_all), "ends")).all()


@pytest.mark.parametrize("world", WORLDS, ids=str)
def test_the_next_reading_is_as_likely_after_a_gap_and_after_a_reading_as_released(world: World) -> None:
    truth, found = truth_of(world)[1], mean_of(started(world), "seen")
    assert (truth.seen[0] > truth.seen[1] + 0.2).all()
    np.testing.assert_allclose(found, truth.seen, atol=0.12)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("stddev", [1.0, 1e6], ids=["measured", "nothing but noise"])
def test_channels_are_missing_together_as_often_as_released(share: float, stddev: float) -> None:
    coded = units_of(WORLDS[0])
    assert coded.windows is not None
    copied = np.random.default_rng(2).random((UNITS, STEPS)) < share
    lost = (coded.windows[:, :, 0] == len(VALUES[0])) & (np.random.default_rng(3).random((UNITS, STEPS)) < 0.4)
    coded.windows[:, :, 0] = np.where(lost, len(VALUES[0]), np.minimum(coded.windows[:, :, 0], len(VALUES[0]) - 1))
    values = np.where(coded.windows[:, :, 2] == len(VALUES[2]), 0, coded.windows[:, :, 2])
    gaps = np.where(lost, len(VALUES[2]), values)
    coded.windows[:, :, 2] = np.where(copied, gaps, coded.windows[:, :, 2])
    targets = released(coded, stddev=stddev)
    found = []
    for seed in SEEDS:
        generator = initialise(shape_of(), seed=seed)
        warm_start(generator, targets)
        found.append(missing_in(draw_bins(generator, np.arange(2000) % 2, seed=3, device=CPU)[1]))
    shares, together = (np.mean([one[part] for one in found], axis=0) for part in (0, 1))
    truth = missing_in(coded.windows)
    np.testing.assert_allclose(shares, truth[0], atol=0.04)
    assert together == pytest.approx(truth[1] if stddev == 1 else 0.0, abs=0.15)


@pytest.mark.parametrize("targets", [truth_of(WORLDS[0])[0], nothing_released()], ids=["measured", "not measured"])
def test_what_decides_on_gaps_can_move_their_odds_far_in_a_few_hundred_small_steps(targets: Targets) -> None:
    generator = initialise(shape_of(), seed=0)
    warm_start(generator, targets)
    head = generator.sequence
    assert isinstance(head, PathHead)
    hidden, noise = torch.zeros(4, head.level.in_features), torch.zeros(4, path_noise(head.shape))
    with torch.no_grad():
        before = head.odds(hidden, noise)
        head.level.bias[3:6] += 1.0
        assert (head.odds(hidden, noise) - before > 2.5).all()


@torch.no_grad()
def test_readings_are_as_frequent_as_released_whatever_features_add_to_their_odds() -> None:
    truth, found = truth_of(WORLDS[0])[1], []
    for seed in SEEDS:
        generator = initialise(shape_of(), seed=seed)
        assert isinstance(generator.sequence, PathHead)
        generator.sequence.seen.weight += 0.1  # features are above 0 on average
        warm_start(generator, truth_of(WORLDS[0])[0])
        found.append(said_by(generator))
    np.testing.assert_allclose(mean_of(tuple(found), "seen"), truth.seen, atol=0.12)


def missing_in(windows: np.ndarray | None) -> tuple[np.ndarray, float]:
    """The share of steps that are missing in the two channels that have gaps, and the correlation of these."""
    assert windows is not None
    lost = [windows[:, :, channel].ravel() == len(VALUES[channel]) for channel in (0, 2)]
    return np.mean(lost, axis=1), float(np.corrcoef(lost)[0, 1])


def test_the_worlds_differ_by_more_than_what_is_taken_for_near() -> None:
    truths = [truth_of(world)[1] for world in WORLDS]
    assert max(truth.following.max() for truth in truths) - min(truth.following.min() for truth in truths) > 0.6
    assert max(truth.ends.max() for truth in truths) - min(truth.ends.min() for truth in truths) > 0.4
    assert max(truth.between for truth in truths) - min(truth.between for truth in truths) > 1


# --- how sure a release is


def test_where_nothing_was_measured_of_windows_but_their_values_priors_stand_in() -> None:
    targets = released(units_of(WORLDS[2]))
    for name, target in targets.tables.items():
        if name not in ("one_way", "average"):
            target.values[:], target.precision[:] = 0, 0
    generator = initialise(shape_of(), seed=0)
    warm_start(generator, targets)
    found = said_by(generator)
    believed(found)
    assert np.abs(values_of(found.channels, 2) - VALUES[2]).max() < 0.15


def believed(found: Seen) -> None:
    """Of what nobody measured: neighbouring steps are alike, the ends less so, channels have nothing in common."""
    assert (found.following > 0.4).all()
    assert (found.ends > 0.1).all()
    assert (found.ends < found.following).all()
    assert abs(found.between) < 0.3


def test_a_channel_whose_steps_were_not_measured_begins_with_numbers() -> None:
    targets = released(units_of(WORLDS[0]))
    target = targets.tables[Family.TRANSITION]
    target.values[:, 0], target.precision[0] = 0, 0
    generator = initialise(shape_of(), seed=0)
    warm_start(generator, targets)
    for name, value in parameters_of(generator).items():
        assert np.isfinite(value).all(), name
    # The other channel says as much as before, this one what is believed.
    found = said_by(generator)
    assert found.following[1] == pytest.approx(truth_of(WORLDS[0])[1].following[1], abs=0.07)
    assert found.following[0] > 0.4


def test_where_nothing_at_all_was_measured_a_generator_begins_without_preferences() -> None:
    generator = initialise(shape_of(), seed=0)
    warm_start(generator, nothing_released())
    for name, value in parameters_of(generator).items():
        assert np.isfinite(value).all(), name
    found = said_by(generator)
    believed(found)
    assert np.abs(found.columns - np.repeat([1 / 3, 1 / 4], [3, 4])).max() < 0.25


@pytest.mark.parametrize("stddev", [1e6, 1e9])
def test_a_table_that_is_nothing_but_noise_says_nothing(stddev: float) -> None:
    # Of the world whose steps and channels are farthest from what is believed.
    targets = released(units_of(WORLDS[2]), stddev=stddev)
    found = []
    for seed in SEEDS:
        generator = initialise(shape_of(), seed=seed)
        warm_start(generator, targets)
        for name, value in parameters_of(generator).items():
            assert np.isfinite(value).all(), name
        found.append(said_by(generator))
    for one in found:
        believed(one)


def test_noise_does_not_say_that_readings_follow_readings() -> None:
    truth = truth_of(WORLDS[0])[1]
    targets = released(units_of(WORLDS[0]), stddev=100.0)
    found = []
    for seed in SEEDS:
        generator = initialise(shape_of(), seed=seed)
        warm_start(generator, targets)
        found.append(said_by(generator))
    np.testing.assert_allclose(mean_of(tuple(found), "seen"), truth.seen, atol=0.12)


def test_the_less_noise_the_nearer_a_start_is_to_the_truth() -> None:
    coded, truth = units_of(WORLDS[2]), truth_of(WORLDS[2])[1]
    apart = []
    for stddev in (1.0, 500.0, 1e6):
        generator = initialise(shape_of(), seed=0)
        warm_start(generator, released(coded, stddev=stddev))
        found = said_by(generator)
        apart.append(float(np.abs(found.following - truth.following).max()))
    assert apart[0] < 0.2
    assert apart[0] < apart[1] < apart[2]


# --- other generators


def test_event_streams_begin_near_their_released_shares_too() -> None:
    coded = units_of(WORLDS[0])
    found = []
    for seed in SEEDS:
        generator = initialise(shape_of("events"), seed=seed)
        warm_start(generator, released(coded, "events"))
        found.append(said_by(generator))
    truth = truth_of(WORLDS[0])[1]
    for channel in CHANNELS:
        assert np.abs(mean_of(tuple(found), "channels")[channel] - truth.channels[channel]).sum() / 2 < 0.2
    assert np.abs(mean_of(tuple(found), "columns") - truth.columns).max() < 0.1


def test_a_generator_without_windows_begins_with_its_columns() -> None:
    shape = replace(shape_of(), sequence=None)
    builder = TargetBuilder(shape, [np.arange(size) for size in shape.sizes])
    for axis, share in enumerate(COLUMNS):
        builder.add_marginal(axis, share * 1000, np.ones(share.shape[1]))
    generator = initialise(shape, seed=0)
    warm_start(generator, builder.build(np.full(2, 1000.0)))
    bias = torch.split(generator.heads.bias, list(shape.sizes))
    for one, share in zip(bias, COLUMNS, strict=True):
        np.testing.assert_allclose(one.softmax(dim=0).detach(), share.mean(axis=0), atol=1e-6)


def test_a_start_follows_from_the_weights_and_the_releases_alone() -> None:
    found = []
    for state in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(state)
            before = torch.get_rng_state()
            generator = initialise(shape_of(), seed=0)
            warm_start(generator, truth_of(WORLDS[0])[0])
            assert torch.equal(torch.get_rng_state(), before)
            found.append(parameters_of(generator))
    once, again = found
    assert all(np.array_equal(once[name], again[name]) for name in once)


# --- scores, correlations and their roots

SHARES = st.lists(st.floats(0.01, 1), min_size=2, max_size=20).map(lambda weights: np.array(weights) / sum(weights))


@given(SHARES)
@settings(deadline=None)
def test_scores_rise_with_the_bins_and_have_mean_0_and_variance_1_under_the_shares(shares: np.ndarray) -> None:
    scores = _standard(shares)
    assert scores.shape == shares.shape
    assert (np.diff(scores) > 0).all()
    assert shares @ scores == pytest.approx(0, abs=1e-9)
    assert shares @ scores**2 == pytest.approx(1)
    # It is shares that count, and the order has no preferred direction.
    np.testing.assert_allclose(_standard(7 * shares), scores, atol=1e-9)
    np.testing.assert_allclose(_standard(shares[::-1]), -scores[::-1], atol=1e-9)


def test_scores_of_many_equal_bins_are_those_of_a_normal_and_of_one_bin_there_is_none() -> None:
    scores = _standard(np.full(200, 1 / 200))
    np.testing.assert_allclose(scores[10:-10], ndtri((np.arange(200) + 0.5) / 200)[10:-10], atol=0.02)
    assert _standard(np.array([0.3])).tolist() == [0]
    assert np.isfinite(_standard(np.array([1.0, 1e-12]))).all()


def normal_table(correlation: float, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Chances of pairs of equally likely bins of two normals, and the bins' scores."""
    points = (np.arange(1000) + 0.5) / 1000
    cuts = ndtri(np.arange(1, bins) / bins)
    first = ndtri(points)
    second = correlation * first[:, None] + (1 - correlation**2) ** 0.5 * ndtri(points)
    cells = np.searchsorted(cuts, first)[:, None] * bins + np.searchsorted(cuts, second)
    return np.bincount(cells.ravel(), minlength=bins**2).reshape(bins, bins) / cells.size, _standard(np.full(bins, 1.0))


@pytest.mark.parametrize("correlation", [-0.9, -0.3, 0.0, 0.5, 0.9])
def test_an_exact_table_says_what_the_correlation_is_whatever_was_believed(correlation: float) -> None:
    table, scores = normal_table(correlation, 16)
    for mean in (-0.5, 0.9):
        found = _correlation(table * 1e6, 1.0, scores, scores, believed=(mean, 0.3))
        assert found == pytest.approx(correlation, abs=0.03)
    # Turned round, the other way round.
    turned = _correlation(table[::-1] * 1e6, 1.0, scores, scores, believed=(0.0, 0.3))
    assert turned == pytest.approx(-correlation, abs=0.03)


@given(
    st.floats(-0.95, 0.95),
    st.floats(0.05, 0.5),
    st.floats(0, 1e7),
    st.integers(2, 12),
    st.floats(1, 1e7),
    st.integers(),
)
@settings(deadline=None, max_examples=200)
def test_a_correlation_is_never_out_of_range_and_what_was_not_measured_is_what_was_believed(
    mean: float, spread: float, deviation: float, bins: int, units: float, seed: int
) -> None:
    random = np.random.default_rng(abs(seed))
    table = units * random.dirichlet(np.ones(bins**2)).reshape(bins, bins)
    table = table + deviation * random.normal(size=table.shape)
    scores = _standard(random.dirichlet(np.ones(bins)) + 0.01)
    assert abs(_correlation(table, deviation, scores, scores, believed=(mean, spread))) < 1
    assert _correlation(table, np.inf, scores, scores, believed=(mean, spread)) == mean


def test_noise_moves_a_correlation_to_what_is_believed() -> None:
    table, scores = normal_table(0.9, 8)
    # Without the noise itself, so that it is its known size alone that counts.
    found = [
        _correlation(table * 1000, deviation, scores, scores, believed=(0.2, 0.3)) for deviation in (0.1, 3, 30, 100)
    ]
    assert found[0] == pytest.approx(0.85, abs=0.05)
    assert found == sorted(found, reverse=True)
    assert found[0] - found[-1] > 0.4


@pytest.mark.statistical
def test_noised_tables_give_correlations_that_are_nearer_than_either_source() -> None:
    # Truths are drawn from what is believed: the mean of what is found must be nearer to them than either source.
    random = np.random.default_rng(3)
    mean, spread, deviation, units, bins = 0.3, 0.2, 100.0, 3000.0, 6
    tables = {at: normal_table(at / 50, bins) for at in range(-45, 46)}
    truths, found, alone = [], [], []
    for drawn in random.normal(mean, spread, 500):
        table, scores = tables[round(float(np.clip(drawn, -0.9, 0.9)) * 50)]
        noised = table * units + deviation * random.normal(size=table.shape)
        truths.append(scores @ table @ scores)
        found.append(_correlation(noised, deviation, scores, scores, believed=(mean, spread)))
        alone.append(scores @ noised @ scores / units)
    errors = [np.mean((np.array(one) - truths) ** 2) ** 0.5 for one in (found, alone, [mean] * len(truths))]
    # Two sources that are equally sure: an error smaller by the square root of 2, of about 0.2.
    assert 0.17 < errors[1] < 0.23
    assert 0.17 < errors[2] < 0.23
    assert errors[0] < 0.16


def test_channels_that_know_nothing_of_each_other_are_not_correlated_by_how_their_bins_are_joined() -> None:
    # Heaps in every other bin: the places of joined bins are not in the middle between those of their bins.
    shares = np.array([0.05, 0.25] * 3 + [0.1])
    sequence = SequenceShape(
        kind="paths",
        steps=4,
        blocks=((0, 2), (2, 4)),
        sizes=(7, 7),
        missing=(False, False),
        ordered=(True, True),
        states=2,
    )
    shape = GeneratorShape((2,), classes=1, latent=8, width=32, blocks=1, sequence=sequence)
    joined = np.arange(7) // 2
    builder = TargetBuilder(shape, [np.arange(2), joined, joined])
    grouped = np.bincount(joined, weights=shares)
    builder.add_table(Query(Family.TOGETHER, (1, 2)), np.outer(grouped, grouped)[None] * 1e5, 1.0)
    found = _correlations([_standard(shares)] * 2, [shares] * 2, builder.build(np.array([1e5])), sequence)
    assert found[0, 1] == found[1, 0] == pytest.approx(0, abs=0.02)


@given(st.integers(1, 8), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_a_root_has_rows_of_length_1_and_the_inner_products_that_were_asked_for(size: int, seed: int) -> None:
    drawn = np.random.default_rng(seed).normal(size=(size, 3 * size + 3))
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    # Far enough from singular.
    correlations = 0.9 * drawn @ drawn.T + 0.1 * np.eye(size)
    root = _root_of(correlations)
    assert root.shape == (size, size)
    np.testing.assert_allclose(root @ root.T, correlations, atol=1e-9)


@given(st.integers(2, 8), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_correlations_that_cannot_be_have_a_root_near_them(size: int, seed: int) -> None:
    found = np.random.default_rng(seed).uniform(-1, 1, (size, size))
    found = np.triu(found, 1) + np.triu(found, 1).T + np.eye(size)
    root = _root_of(found)
    np.testing.assert_allclose(np.linalg.norm(root, axis=1), 1)
    # No farther than the nearest positive semidefinite matrix that keeps its eigenvectors, and its scaling.
    lost = np.maximum(-np.linalg.eigvalsh(found), 0).sum()
    assert np.abs(root @ root.T - found).max() <= 2 * lost + 0.2


@pytest.mark.parametrize("correlation", [-0.5, 0.0, 0.3, 0.9])
@pytest.mark.parametrize(("left", "right"), [(0.5, 0.5), (0.1, 0.14), (0.6, 0.3)])
def test_a_tetrachoric_correlation_is_that_of_the_normals_behind_two_events(
    left: float, right: float, correlation: float
) -> None:
    first, own = np.random.default_rng(0).normal(size=(2, 400_000))
    second = correlation * first + (1 - correlation**2) ** 0.5 * own
    both = float(((first < ndtri(left)) & (second < ndtri(right))).mean())
    assert _tetrachoric(both, 1e-5, np.array([left, right])) == pytest.approx(correlation, abs=0.03)


def test_a_tetrachoric_correlation_stays_within_what_a_path_can_hold() -> None:
    rare = np.array([0.2, 0.2])
    assert _tetrachoric(0.2, 1e-6, rare) == pytest.approx(0.98, abs=1e-3)
    assert _tetrachoric(0.0, 1e-6, rare) < -0.8
    assert _tetrachoric(0.3, 1e-6, rare) == pytest.approx(0.98, abs=1e-3)  # more often together than alone: noise


@pytest.mark.parametrize("left", [1e-4, 0.01, 0.05, 0.5, 0.95, 0.9999])
@pytest.mark.parametrize("right", [0.01, 0.05, 0.3, 0.95])
@pytest.mark.parametrize("deviation", [0.003, 0.01, 0.03, 1.0])
def test_noise_does_not_say_that_rare_gaps_go_together(left: float, right: float, deviation: float) -> None:
    noise = np.random.default_rng(0).normal(scale=deviation, size=12)
    found = [_tetrachoric(left * right + one, deviation, np.array([left, right])) for one in noise]
    assert np.abs(found).max() < 0.75
    assert np.abs(found).mean() < 0.3
