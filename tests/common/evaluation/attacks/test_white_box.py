"""Attacks on a generator whose memory is known: what it remembers is found, what it does not is not."""

import dataclasses

import numpy as np
import pytest
import torch

from common.data.queries import Coded
from common.evaluation.attacks.coded import encode, join, take
from common.evaluation.attacks.games import MembershipAttack
from common.evaluation.attacks.white_box import (
    HOLDER,
    LatentClasses,
    Published,
    _Nearness,
    ask,
    attack_generator,
    log_likelihood,
    mean_of_units,
    traits,
)
from common.evaluation.figures import Figure, Population
from common.models.generator import initialise
from common.study import Study
from tests.common.evaluation.attacks.memories import CPU, draw, make_bins, make_study, remember, shape_for

LAYOUTS = (None, "grid", "events")
PLAIN = make_study()
LATENTS = 512


def attack(
    published: Published,
    members: Population,
    controls: Population,
    reference: Population,
    study: Study = PLAIN,
    **more: object,
) -> dict[str, MembershipAttack]:
    given = {"groups": {}, "epsilon": None, "delta": 1e-6, "seed": 0, "most": 1000, "latents": LATENTS, "device": CPU}
    return attack_generator(published, members, controls, reference, study, **(given | more))  # type: ignore[arg-type]


def area(attacks: dict[str, MembershipAttack], name: str, population: str = "everyone") -> Figure:
    return attacks[name].populations[population]["auc"]


def people(study: Study, *, units: int = 60, seed: int = 0) -> list[Population]:
    """Members, controls, reference and others, all alike."""
    return [draw(study, units, 4 * seed + part) for part in range(4)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_who_is_remembered_is_found_by_every_attack(layout: str | None) -> None:
    study = make_study(layout)
    members, controls, reference, _ = people(study)
    attacks = attack(remember(study, members), members, controls, reference, study)
    assert set(attacks) == {"likelihood", "calibrated_likelihood", "nearest_latent"}
    for name, found in attacks.items():
        assert found.adversary == HOLDER
        assert area(attacks, name).value > 0.95, name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nobody_is_found_where_others_are_remembered(layout: str | None) -> None:
    study = make_study(layout)
    members, controls, reference, others = people(study, units=100, seed=8)
    attacks = attack(remember(study, others), members, controls, reference, study)
    for name in attacks:
        figure = area(attacks, name)
        assert figure.low <= 0.5 <= figure.high, name


@pytest.mark.parametrize("layout", ["grid", "events"])
def test_windows_that_are_remembered_without_their_records_are_found(layout: str) -> None:
    study = make_study(layout)
    members, controls, reference, _ = people(study, units=100)
    attacks = attack(remember(study, members, forgets_records=True), members, controls, reference, study)
    assert area(attacks, "calibrated_likelihood").low > 0.6
    assert area(attacks, "nearest_latent").low > 0.6


def test_calibration_finds_a_faint_memory_that_the_plain_likelihood_does_not() -> None:
    members, controls, reference, _ = people(PLAIN, units=150, seed=2)
    attacks = attack(remember(PLAIN, members, certain=0.1), members, controls, reference)
    assert area(attacks, "calibrated_likelihood").value > area(attacks, "likelihood").value + 0.05


def test_what_only_the_shares_within_bins_remember_is_found() -> None:
    """Bins as wide as a column tell nothing; the released shares of their cells hold members alone."""
    members, controls, reference, _ = people(PLAIN, units=60, seed=3)
    published = remember(PLAIN, members)
    cells = encode(members.table, PLAIN)
    binnings = list(published.bins.binnings)
    for column, binning in enumerate(binnings):
        shares = np.zeros((2, len(binning.bin_of)))
        np.add.at(shares, (cells.labels, cells.records[:, column]), 1.0)
        binnings[column] = dataclasses.replace(
            binning, bin_of=np.zeros_like(binning.bin_of), within=shares / shares.sum(axis=1, keepdims=True)
        )
    bins = dataclasses.replace(published.bins, binnings=tuple(binnings))
    shape = shape_for(PLAIN, bins)
    blind = Published(initialise(shape, seed=0), bins, published.label_counts)
    attacks = attack(blind, members, controls, reference)
    assert area(attacks, "nearest_latent").value == 0.5
    assert area(attacks, "likelihood").value > 0.55


def test_the_likelihood_of_a_record_is_the_mean_of_products_over_latents() -> None:
    bins = make_bins(PLAIN)
    shape = dataclasses.replace(shape_for(PLAIN, bins), latent=3)
    published = Published(initialise(shape, seed=1), bins, np.ones(2))
    answers = ask(published.generator, latents=7, seed=0, device=CPU)
    cells = encode(draw(PLAIN, 5, 0).table, PLAIN)
    starts = np.cumsum([0, *shape.sizes])
    for row, found in enumerate(log_likelihood(answers, published, cells)[:, 0]):
        chances = answers[cells.labels[row]].records.double().numpy()
        products = [
            np.prod([latent[starts[at] + code] for at, code in enumerate(cells.records[row])]) for latent in chances
        ]
        assert found == pytest.approx(np.log(np.mean(products)), rel=1e-5)


def test_the_likelihood_of_a_window_is_that_of_each_channel_given_the_record() -> None:
    study = make_study("grid")
    bins = make_bins(study)
    shape = dataclasses.replace(shape_for(study, bins), latent=3)
    published = Published(initialise(shape, seed=1), bins, np.ones(2))
    answers = ask(published.generator, latents=7, seed=0, device=CPU)
    cells = encode(draw(study, 4, 0).table, study)
    assert cells.windows is not None
    starts = [np.cumsum([0, *sizes]) for sizes in (shape.sizes, shape.sequence.sizes)]  # type: ignore[union-attr]
    for row, (_, found) in enumerate(log_likelihood(answers, published, cells)):
        own = answers[cells.labels[row]]
        records, levels = own.records.double().numpy(), own.levels.double().numpy()  # type: ignore[union-attr]
        weights = np.prod([records[:, starts[0][at] + code] for at, code in enumerate(cells.records[row])], axis=0)
        expected = 0.0
        for channel in range(2):
            course = [
                levels[:, step, starts[1][channel] + code] for step, code in enumerate(cells.windows[row, :, channel])
            ]
            expected += np.log(weights @ np.prod(course, axis=0) / weights.sum())
        assert found == pytest.approx(expected, rel=1e-4)


def test_the_traits_of_events_are_their_first_bins_and_their_moves_up_to_the_last_step() -> None:
    study = make_study("events")
    shape = shape_for(study, make_bins(study))
    windows = np.full((1, 6, 2), -1)
    windows[0, :3] = [[4, 0], [4, 1], [2, 0]]
    coded = Coded(np.zeros(1, np.int64), np.zeros((1, len(shape.sizes)), np.int64), windows, np.array([3]))
    pulse = traits(coded, shape, CPU)[1][0][0].numpy()
    first, moves = pulse[:5], pulse[5:].reshape(5, 5)
    assert first.tolist() == [0, 0, 0, 0, 1]
    assert {(a, b): moves[a, b] for a, b in np.argwhere(moves)} == {(4, 4): 1, (4, 2): 1}


def test_a_unit_has_the_mean_of_its_rows() -> None:
    assert mean_of_units(np.array([1.0, 5.0, 3.0]), np.array([0, 1, 0])).tolist() == [2.0, 5.0]
    members, controls, reference, _ = [draw(PLAIN, 50, part, records=3) for part in range(4)]
    # One remembered row of three is enough to be told from who has none, not from whom all are remembered.
    first = Population(members.table.take(np.arange(0, 150, 3)), np.arange(50))
    attacks = attack(remember(PLAIN, first), members, controls, reference)
    assert area(attacks, "calibrated_likelihood").value > 0.95


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_search_never_ends_further_away_than_it_began(layout: str | None) -> None:
    study = make_study(layout)
    bins = make_bins(study)
    shape = dataclasses.replace(shape_for(study, bins), latent=4)
    published = Published(initialise(shape, seed=0), bins, np.ones(2))
    answers = ask(published.generator, latents=16, seed=0, device=CPU)
    nearness = _Nearness(answers, published, study, latents=16, seed=0)
    cells = encode(draw(study, 12, 0).table, study)
    sampled, searched = nearness.sampled(cells), nearness.searched(cells)
    assert bool((searched >= sampled - 1e-5).all())
    assert float((searched - sampled).mean()) > 0.01
    assert all(parameter.grad is None for parameter in published.generator.parameters())


def test_distance_is_the_share_of_what_differs() -> None:
    """Latent and row differ in one category of eleven columns, and in a number by half its range."""
    everybody = draw(PLAIN, 20, 0)
    labels = encode(everybody.table, PLAIN).labels
    member = everybody.take(np.array([int(np.argmax(labels == label)) for label in (0, 1)]))
    published = remember(PLAIN, member)
    nearness = _Nearness(ask(published.generator, latents=1, seed=0, device=CPU), published, PLAIN, latents=1, seed=0)
    cells = encode(member.table, PLAIN)
    assert nearness.sampled(cells)[0] == pytest.approx(0, abs=1e-6)
    names = list(PLAIN.features)
    other = dataclasses.replace(cells, records=cells.records.copy())
    other.records[0, 0] = (cells.records[0, 0] + 1) % 6
    assert nearness.sampled(other)[0] == pytest.approx(-1 / len(names), abs=1e-6)
    total = names.index("sum")
    other.records[0, total] = (cells.records[0, total] + 4) % 8
    assert nearness.sampled(other)[0] == pytest.approx(-(1 + 4 / 7) / len(names), abs=1e-6)


def test_deep_attacks_search_too() -> None:
    members, controls, reference, _ = people(PLAIN, units=25)
    bins = make_bins(PLAIN)
    published = Published(initialise(shape_for(PLAIN, bins), seed=0), bins, np.ones(2))
    assert "nearest_latent_search" in attack(published, members, controls, reference, latents=16, deep=True)


def test_groups_follow_those_who_play() -> None:
    members, controls, reference, _ = people(PLAIN, units=200)
    half = np.arange(200) < 100
    remembered = members.take(half)
    both = Population(remembered.table, remembered.units)
    groups = {"remembered": (half, np.ones(200, bool)), "not": (~half, np.ones(200, bool))}
    attacks = attack(remember(PLAIN, both), members, controls, reference, groups=groups, most=120)
    assert area(attacks, "likelihood", "remembered").value > 0.95
    assert area(attacks, "likelihood", "not").value < 0.65
    assert area(attacks, "likelihood").n == 240


def test_the_claim_is_beside_the_figure() -> None:
    members, controls, reference, others = people(PLAIN)
    attacks = attack(remember(PLAIN, others), members, controls, reference, epsilon=1.0)
    assert area(attacks, "likelihood").ceiling == pytest.approx(0.731, abs=1e-3)
    assert area(attack(remember(PLAIN, others), members, controls, reference), "likelihood").ceiling is None


def test_the_same_seed_gives_the_same_and_global_random_states_are_left_alone() -> None:
    members, controls, reference, _ = people(PLAIN)
    published = remember(PLAIN, members, certain=0.3)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index, union-attr] # noqa: NPY002
    first = attack(published, members, controls, reference)
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])  # noqa: NPY002
    assert first == attack(published, members, controls, reference)
    assert first != attack(published, members, controls, reference, seed=1, latents=8)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("units", [0, 1])
def test_without_a_reference_the_attack_goes_on(layout: str | None, units: int) -> None:
    study = make_study(layout)
    members, controls, reference, _ = people(study, units=40)
    nobody = reference.take(np.arange(units))
    attacks = attack(remember(study, members), members, controls, nobody, study)
    assert area(attacks, "calibrated_likelihood").value > 0.9


def test_without_controls_nothing_is_said() -> None:
    members, controls, reference, _ = people(PLAIN)
    attacks = attack(remember(PLAIN, members), members, controls.take(np.arange(0)), reference)
    for name in attacks:
        assert area(attacks, name).value is None
        assert area(attacks, name).reason


def test_latent_classes_are_a_density_and_find_what_columns_apart_do_not() -> None:
    random = np.random.default_rng(0)
    kind = random.integers(2, size=400)
    codes = np.where(random.random((400, 6)) < 0.9, kind[:, None], 1 - kind[:, None])
    rows = np.eye(2, dtype=np.float32)[codes].reshape(400, -1)
    starts, weights = np.arange(0, 12, 2), np.ones(300)
    one, two = (LatentClasses(rows[:300], weights, starts, classes, 0) for classes in (1, 2))
    assert two.log_density(rows[300:]).mean() > one.log_density(rows[300:]).mean() + 1.0
    every = np.array([np.eye(2, dtype=np.float32)[list(map(int, f"{number:06b}"))].ravel() for number in range(64)])
    for density in (one, two):
        assert np.exp(density.log_density(every)).sum() == pytest.approx(1.0, rel=1e-4)
        # What is left out of a row is summed over.
        first = np.zeros((2, 12), dtype=np.float32)
        first[:, :2] = np.eye(2)
        assert np.exp(density.log_density(first)).sum() == pytest.approx(1.0, rel=1e-4)


def test_coding_keeps_what_it_joins_and_takes() -> None:
    study = make_study("events")
    cells = encode(draw(study, 10, 0).table, study)
    assert cells.windows is not None
    assert cells.lengths is not None
    assert (cells.records[:, -1] == cells.lengths).all()
    coarse = [np.arange(size) // 2 for size in make_bins(study).sizes]
    joined = join(cells, coarse)
    assert (joined.records == cells.records // 2).all()
    assert joined.windows is not None
    assert (joined.windows == np.where(cells.windows < 0, -1, cells.windows // 2)).all()
    some = take(joined, np.array([3, 1]))
    assert (some.records == joined.records[[3, 1]]).all()
    assert some.windows is not None
    assert (some.windows == joined.windows[[3, 1]]).all()
