"""How far a generator is from what was released, once the noise of the releases is taken off."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.encoding import Grid, make_grids
from common.data.histograms import histogram_layout
from common.data.queries import Family
from common.models.critics import Joins, expectations
from common.models.generator import Generator, initialise
from common.models.releases import Release, bins_from
from common.models.targets import TableIndex, Target, TargetBuilder, Targets
from common.study import load_study
from common.wire.packing import shape_of
from server.quality import Distance, frechet_distance
from server.survey import plan_survey

STUDIES = Path(__file__).parents[2] / "simulations" / "studies"
CPU = torch.device("cpu")
UNITS = 500.0
"""Of each class."""
LATENTS = 64
"""Of each class; enough where tables are of the same latents."""
NOISES = (2.0, 8.0, 25.0)
"""Standard deviations of one count."""


@pytest.fixture(scope="module", autouse=True)
def few_latents() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("server.quality._LATENTS", LATENTS)
        yield


@dataclass(frozen=True)
class Case:
    """A study's tables as two generators have them, `own` and `other`."""

    own: Generator
    other: Generator
    grids: tuple[Grid, ...]
    maps: list[np.ndarray]
    empty: Targets
    truths: tuple[Targets, Targets]

    def mixed(self, share: float) -> Targets:
        """Tables of which so much is the other's, without noise."""
        near, far = (one.tables for one in self.truths)
        tables = {
            name: replace(target, values=(1 - share) * target.values + share * far[name].values)
            for name, target in near.items()
        }
        return replace(self.empty, tables=tables)

    def distance(self, targets: Targets, generator: Generator | None = None, *, seed: int = 0) -> Distance:
        found = frechet_distance(targets, generator or self.own, self.grids, self.maps, seed=seed, device=CPU)
        assert found is not None
        return found


@cache
def case(name: str, *weights: tuple[str, float]) -> Case:
    study = load_study(STUDIES / f"{name}.yaml").with_overrides(
        discriminators=dict(weights), model={"width": 16, "latent": 4}
    )
    grids = (*make_grids(study.measured), *make_grids(study.channels))
    layout = histogram_layout(make_grids(study.measured), 2, make_grids(study.channels))
    counts = np.random.default_rng(0).uniform(0, 400, layout.n_cells)
    bins = bins_from(Release(counts, 100.0, {}), study)
    survey, shape = plan_survey(study, bins, [0.05] * 4), shape_of(study, bins.sizes)
    index, labels = TableIndex(shape, survey.groups), torch.arange(2).repeat_interleave(LATENTS)
    own, other = (initialise(shape, seed=seed) for seed in (1, 2))
    empty = TargetBuilder(shape, survey.groups).build(np.full(2, UNITS))

    def truth(generator: Generator) -> Targets:
        # The latents of the distance with seed 0, so that nothing but noise is between a generator and its own tables.
        noise = torch.randn(len(labels), shape.noise, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = expectations(generator(noise, labels), 2, Joins(empty.groups, CPU))
        builder = TargetBuilder(shape, survey.groups)
        for axis in range(len(grids)):
            family, place = index.marginal(axis)
            builder.add_marginal(axis, expected[family].numpy()[:, place] * UNITS, np.full(len(place), 1e-6))
        for part in survey.parts:
            for query in part.queries:
                builder.add_table(query, expected[query.family].numpy()[:, *index.table(query)] * UNITS, 1e-6)
        return builder.build(np.full(2, UNITS))

    return Case(own, other, grids, survey.groups, empty, (truth(own), truth(other)))


def released(truth: Targets, stddev: float, *, seed: int | None) -> Targets:
    """Every count with noise; without a seed it is said to have it, and has none."""
    random = np.random.default_rng(seed)
    tables = {}
    for name, target in truth.tables.items():
        known = target.precision > 0
        noise = 0.0 if seed is None else stddev * random.normal(size=target.values.shape) * known
        tables[name] = Target(target.values + noise, known / stddev**2)
    return replace(truth, tables=tables)


EVERY = [
    case("adult"),
    case("icu"),
    case("icu", ("statistical", 0.0)),
    case("icu", ("temporal", 0.0)),
]
IDS = ["records", "both", "windows", "records of windows"]
each_case = pytest.mark.parametrize("one", EVERY, ids=IDS)


@each_case
def test_without_noise_it_is_zero_at_the_released_moments_and_grows_away_from_them(one: Case) -> None:
    assert one.distance(one.truths[0]).value == pytest.approx(0, abs=1e-5)
    course = [one.distance(one.mixed(share)).value for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert course == sorted(course)
    assert course[-1] > 1e-3


@pytest.mark.parametrize("name", ["adult", "icu"])
def test_where_no_pairs_were_measured_there_is_none(name: str) -> None:
    one = case(name)
    assert frechet_distance(one.empty, one.own, one.grids, one.maps, seed=0, device=CPU) is None


@each_case
@pytest.mark.parametrize("stddev", NOISES)
def test_noise_alone_leaves_nothing_but_chance_of_a_distance(one: Case, stddev: float) -> None:
    found = [one.distance(released(one.truths[0], stddev, seed=seed)) for seed in range(12)]
    spread = np.mean([distance.spread for distance in found])
    assert spread > 0
    # Half of a normal law, at least: what chance leaves below 0 is cut off. Four standard errors of twelve means.
    assert np.mean([distance.value for distance in found]) < (0.4 + 4 * 0.6 / 12**0.5) * spread
    assert max(distance.value for distance in found) < 4 * spread


@each_case
def test_the_spread_is_what_noise_does_to_it(one: Case) -> None:
    truth = one.truths[1]
    found = [one.distance(released(truth, 8.0, seed=seed), one.other) for seed in range(24)]
    above = [distance.value for distance in found if distance.value > 0]
    # The upper half of a law around 0 has the root mean square of the whole.
    assert 0.4 < np.sqrt(np.mean(np.square(above))) / np.mean([distance.spread for distance in found]) < 2.5


@each_case
@pytest.mark.parametrize("stddev", [0.5, *NOISES[:2]])
def test_what_is_left_is_the_distance_without_noise(one: Case, stddev: float) -> None:
    bare = one.distance(one.truths[1]).value
    found = [one.distance(released(one.truths[1], stddev, seed=seed)) for seed in range(6)]
    spread = np.mean([distance.spread for distance in found])
    # Noise flattens differences of covariances: what is left is less rather than more.
    chance = 4 * spread / 6**0.5
    assert 0.6 * bare - chance < np.mean([distance.value for distance in found]) < 1.2 * bare + chance


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(EVERY),
    st.sampled_from(NOISES),
    st.integers(0, 1000),
    st.lists(st.floats(0, 1), min_size=2, max_size=2).map(sorted),
)
def test_beside_the_same_noise_it_grows_with_what_is_wrong(
    one: Case, stddev: float, seed: int, shares: list[float]
) -> None:
    near, far = (one.distance(released(one.mixed(share), stddev, seed=seed)) for share in shares)
    assert near.value >= 0
    # A step against the noise may bring the moments nearer; beyond its spread it does not.
    assert far.value >= near.value - 3 * near.spread


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(EVERY), st.integers(0, 1000), st.integers(0, 1000))
def test_it_is_the_same_for_the_same_seed(one: Case, seed: int, other: int) -> None:
    targets = released(one.truths[1], 8.0, seed=0)
    assert one.distance(targets, seed=seed) == one.distance(targets, seed=seed)
    assert (one.distance(targets, seed=seed) == one.distance(targets, seed=other)) == (seed == other)


@each_case
def test_nearer_than_noise_would_be_is_zero(one: Case) -> None:
    assert one.distance(released(one.truths[0], 25.0, seed=None)).value == 0


def test_one_way_tables_that_are_mostly_noise_count_for_little() -> None:
    one = case("adult")
    marginal = one.truths[0].tables["one_way"]
    noise = np.random.default_rng(0).uniform(0, 200, marginal.values.shape)
    drowned = Target(marginal.values + noise, np.full_like(marginal.precision, 1 / 100**2))
    targets = replace(one.truths[0], tables={**one.truths[0].tables, "one_way": drowned})
    bare, found = one.distance(one.truths[0], one.other), one.distance(targets, one.other)
    assert found.value == pytest.approx(bare.value, rel=0.05)
    assert found.spread < 0.05 * bare.value
    assert one.distance(targets).value < 0.01 * bare.value


def test_a_count_of_zero_is_known() -> None:
    one = case("adult")
    pairs = one.truths[0].tables[Family.PAIR]
    rare = pairs.values < np.quantile(pairs.values[:, pairs.precision > 0], 0.4)
    nearly, wholly = (
        replace(
            one.truths[0],
            tables={
                **one.truths[0].tables,
                Family.PAIR: replace(pairs, values=np.where(rare & (pairs.precision > 0), count, pairs.values)),
            },
        )
        for count in (1e-9, 0.0)
    )
    assert one.distance(wholly).value == pytest.approx(one.distance(nearly).value, rel=1e-3)
