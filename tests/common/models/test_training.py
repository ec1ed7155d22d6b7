"""The one loop: it learns what it is shown, the same from the same seed, and average and loading keep to their word."""

import itertools
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.data.queries import Family
from common.models import training
from common.models.critics import MARGINALS, Adversary, Cluster, Joins, MeasuredCritic, expectations, make_cluster
from common.models.generator import Generator, GeneratorShape, Outcome, draw_bins, initialise
from common.models.neural import CriticShape, NeuralCritic, Scores, initialise_critic
from common.models.paths import PathHead
from common.models.sequences import SequenceShape
from common.models.targets import Groups, Target, Targets, table_shapes
from common.models.training import Stretch, average, load_parameters, median, parameters_of, schedule, train
from common.models.verdicts import Opening

CPU = torch.device("cpu")
SIZES = (3, 4)
CLASSES = 2
SHAPE = GeneratorShape(SIZES, classes=CLASSES, latent=4, width=32, blocks=1)
# Two columns that depend on each other, in another way for each class.
JOINT = np.array(
    [
        [[0.20, 0.05, 0.02, 0.03], [0.02, 0.25, 0.03, 0.05], [0.01, 0.04, 0.28, 0.02]],
        [[0.02, 0.03, 0.05, 0.25], [0.05, 0.10, 0.15, 0.05], [0.22, 0.03, 0.02, 0.03]],
    ]
)
UNITS = 5000.0


def groups_of(sizes: tuple[int, ...]) -> Groups:
    """Every bin of these columns a group of its own."""
    return Groups(np.arange(sum(sizes)), np.zeros(0, dtype=np.int64), np.repeat(np.arange(len(sizes)), sizes))


def exact_targets() -> Targets:
    """Releases of that joint distribution without noise, as if each cell had a noise of standard deviation 10."""
    bins = sum(SIZES)
    pairs, precision = np.zeros((CLASSES, bins, bins)), np.zeros((bins, bins))
    pairs[:, :3, 3:] = JOINT * UNITS
    precision[:3, 3:] = 1 / 100
    one_way = np.concatenate([JOINT.sum(axis=2), JOINT.sum(axis=1)], axis=1) * UNITS
    tables = {"one_way": Target(one_way, np.full(bins, 1 / 100)), Family.PAIR: Target(pairs, precision)}
    return Targets(tables, np.full(CLASSES, UNITS), groups_of(SIZES))


def opening(weight: float) -> Opening:
    """Of a critic that all real units pass, and no fake did."""
    return Opening((weight,), (1.0,), (0.0,))


CLUSTER = make_cluster(exact_targets(), None, None, CPU)


def stretch(steps: int, *, seed: int = 7, start: float = 1e-2, end: float = 1e-3) -> Stretch:
    return Stretch(steps=steps, start=start, end=end, batch=128, seed=seed)


def trained(steps: int, *, seed: int = 7) -> Generator:
    generator = initialise(SHAPE, seed=1)
    train(generator, CLUSTER, stretch(steps, seed=seed), CPU)
    return generator


def joint_of(generator: Generator, label: int) -> np.ndarray:
    bins, _ = draw_bins(generator, np.full(50_000, label), seed=3, device=CPU)
    return np.bincount(bins[:, 0] * 4 + bins[:, 1], minlength=12).reshape(3, 4) / len(bins)


def test_a_small_joint_distribution_is_learned() -> None:
    generator = trained(500)
    for label in range(CLASSES):
        # Sampling 50,000 rows leaves a total variation of about 0.005; untrained it is 0.4, independent columns 0.3.
        assert np.abs(joint_of(generator, label) - JOINT[label]).sum() / 2 < 0.05
        independent = np.outer(JOINT[label].sum(axis=1), JOINT[label].sum(axis=0))
        assert np.abs(independent - JOINT[label]).sum() / 2 > 0.2


def test_a_stretch_depends_on_the_parameters_alone_and_not_on_what_was_trained_before() -> None:
    # A site that trained in an earlier round and one that is new do the same.
    veteran = trained(3)
    novice = initialise(SHAPE, seed=2)
    load_parameters(novice, parameters_of(veteran))
    for generator in (veteran, novice):
        train(generator, CLUSTER, stretch(4, seed=9), CPU)
    once, again = parameters_of(veteran), parameters_of(novice)
    assert all(np.array_equal(once[name], again[name]) for name in once)


class Watching:
    """A cluster that notes the generator's parameters whenever it is asked: before each step."""

    adversary = None
    fuse = CLUSTER.fuse
    noise_levels = CLUSTER.noise_levels

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self.seen: list[dict[str, np.ndarray]] = []

    def loss(
        self, outcome: Outcome, labels: Tensor, classes: int, random: torch.Generator, *, silent: Collection[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        self.seen.append(parameters_of(self._generator))
        return CLUSTER.loss(outcome, labels, classes, random, silent=silent)


def test_the_published_generator_is_the_exponential_moving_average_of_the_steps() -> None:
    generator, averaged = initialise(SHAPE, seed=1), initialise(SHAPE, seed=2)
    watching = Watching(generator)
    expected = {name: value.astype(np.float64) for name, value in parameters_of(averaged).items()}
    train(generator, cast("Cluster", watching), stretch(30), CPU, averaged=averaged)
    after_each = [*watching.seen[1:], parameters_of(generator)]
    assert len(after_each) == 30
    for parameters in after_each:
        for name, value in parameters.items():
            expected[name] = training._EMA_DECAY * expected[name] + (1 - training._EMA_DECAY) * value
    for name, value in parameters_of(averaged).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-5)
    # It follows, and does not lead.
    alone = parameters_of(trained(30))
    assert all(np.array_equal(alone[name], value) for name, value in parameters_of(generator).items())


def test_training_lowers_the_loss() -> None:
    generator = initialise(SHAPE, seed=1)
    first = train(generator, CLUSTER, stretch(20), CPU)
    for seed in range(4):
        last = train(generator, CLUSTER, stretch(50, seed=seed), CPU)
    assert 0 <= last < first / 10


def test_the_same_seed_gives_the_same_parameters_and_another_gives_others() -> None:
    once, again, other = (parameters_of(trained(5, seed=seed)) for seed in (7, 7, 8))
    assert all(np.array_equal(once[name], again[name]) for name in once)
    assert not np.array_equal(once["heads.weight"], other["heads.weight"])


def test_no_steps_change_nothing() -> None:
    generator = initialise(SHAPE, seed=1)
    before = parameters_of(generator)
    assert np.isnan(train(generator, CLUSTER, stretch(0), CPU))
    assert np.isnan(train(initialise(SHAPE, seed=2), CLUSTER, stretch(0), CPU, averaged=generator))
    assert all(np.array_equal(before[name], value) for name, value in parameters_of(generator).items())


def test_every_parameter_is_trained_and_stays_finite() -> None:
    before, after = parameters_of(initialise(SHAPE, seed=1)), parameters_of(trained(10))
    for name, value in after.items():
        assert np.isfinite(value).all()
        assert not np.array_equal(before[name], value), name


def test_the_learning_rate_is_that_of_the_stretch() -> None:
    def moved(first: float, last: float, steps: int) -> float:
        generator = initialise(SHAPE, seed=1)
        before = parameters_of(generator)
        train(generator, CLUSTER, stretch(steps, start=first, end=last), CPU)
        return max(float(np.abs(before[name] - value).max()) for name, value in parameters_of(generator).items())

    assert moved(0.0, 0.0, 5) == 0
    # One step of Adam moves a parameter by the rate at most.
    assert 0 < moved(1e-3, 1e-3, 1) <= 1e-3 * 1.01
    assert moved(1e-3, 0.0, 8) < moved(1e-3, 1e-3, 8) < moved(1e-2, 1e-2, 8)


def test_a_far_target_does_not_make_a_far_step() -> None:
    far = exact_targets()
    far.tables["one_way"].values[:] *= 1e6
    generator = initialise(SHAPE, seed=1)
    train(generator, make_cluster(far, None, None, CPU), stretch(10), CPU)
    assert all(np.isfinite(value).all() for value in parameters_of(generator).values())


def test_the_global_random_state_is_neither_read_nor_changed() -> None:
    found = []
    for state in (11, 12):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(state)
            before = torch.get_rng_state()
            found.append(parameters_of(trained(3)))
            assert torch.equal(torch.get_rng_state(), before)
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])


class Told:
    """A cluster that notes what it is asked, and says what it was told to."""

    def __init__(self, measured: dict[str, list[float]], adversary: Adversary | None = None) -> None:
        self._measured = iter([dict(zip(measured, said, strict=True)) for said in zip(*measured.values(), strict=True)])
        self.adversary = adversary
        self.noise_levels = dict.fromkeys(measured, 1.0) | {"semantic": 1.5}
        self.asked: list[tuple[Tensor, Tensor, int, torch.Generator]] = []
        self.silent: list[set[str]] = []

    def loss(
        self, outcome: Outcome, labels: Tensor, classes: int, random: torch.Generator, *, silent: Collection[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        self.asked.append((outcome.records, labels, classes, random))
        self.silent.append(set(silent))
        said = {name: torch.tensor(loss) for name, loss in next(self._measured).items()}
        return outcome.records.sum() * 0 + 1e6, said

    def fuse(self, losses: Mapping[str, Tensor]) -> Tensor:
        return torch.stack(list(losses.values())).sum()


def test_the_loss_that_is_told_is_the_mean_of_the_measured_critics_alone() -> None:
    # Those that are not listened to as well: the second and third time, nobody is.
    told = Told({"statistical": [0.5, 0.0, 3.0], "temporal": [0.5, 2.0, 3.0]})
    found = train(initialise(SHAPE, seed=1), cast("Cluster", told), stretch(3), CPU)
    assert found == 3.0
    assert told.silent[1:] == [{"statistical", "temporal"}] * 2


def test_each_step_shows_the_critics_new_rows_class_after_class_and_one_stream_of_chance() -> None:
    told = Told({"statistical": [0.0] * 3})
    train(initialise(SHAPE, seed=1), cast("Cluster", told), stretch(3, start=0.0, end=0.0), CPU)
    assert [(len(records), classes) for records, _, classes, _ in told.asked] == [(CLASSES * 128, CLASSES)] * 3
    for _, labels, _, _ in told.asked:
        assert torch.equal(labels, torch.arange(CLASSES).repeat_interleave(128))
    assert not torch.equal(told.asked[0][0], told.asked[1][0])
    assert len({id(random) for _, _, _, random in told.asked}) == 1


def test_a_neural_critic_pulls_the_generator_and_does_not_move() -> None:
    shape = CriticShape(sum(SIZES), 0, 0, CLASSES, width=4, channels=4, semantic=True, temporal=False)
    critic = initialise_critic(shape, seed=0)
    before = {name: value.clone() for name, value in critic.state_dict().items()}
    found = []
    for weight in (0.0, 50.0, 50.0):
        generator = initialise(SHAPE, seed=1)
        cluster = make_cluster(exact_targets(), None, Adversary(critic, opening(weight)), CPU)
        train(generator, cluster, stretch(3), CPU)
        found.append(parameters_of(generator)["heads.weight"])
    assert not np.array_equal(found[0], found[1])
    assert np.array_equal(found[1], found[2])
    assert np.array_equal(found[0], parameters_of(trained(3))["heads.weight"])
    assert all(torch.equal(before[name], value) for name, value in critic.state_dict().items())


# --- critics that fall silent


def silenced(measured: dict[str, list[float]], adversary: Adversary | None = None) -> list[set[str]]:
    """Who is not listened to, step by step, where critics say this."""
    told, (steps,) = Told(measured, adversary), {len(said) for said in measured.values()}
    train(initialise(SHAPE, seed=1), cast("Cluster", told), stretch(steps), CPU)
    return told.silent


def test_a_critic_is_silent_while_the_running_mean_of_what_it_says_is_one_or_less() -> None:
    said = [0.5, 1.4, 3.0, 2.0, 0.0, 0.0, 1.1, 1.1, 0.9]
    # A fifth of the way from the mean so far to each.
    means = [0.5, 0.68, 1.144, 1.3152, 1.05216, 0.841728, 0.8933824, 0.93470592]
    assert silenced({"temporal": said}) == [set(), *({"temporal"} if mean <= 1 else set() for mean in means)]
    assert silenced({"temporal": [1.0, 1.0]})[1] == {"temporal"}
    assert silenced({"temporal": [1.01, 1.0]})[1] == set()


def test_each_critic_is_heard_for_itself() -> None:
    found = silenced({"statistical": [0.5, 0.5, 0.5], "temporal": [5.0, 5.0, 5.0], "semantic": [-1.0, 20.0, 0.0]})
    assert found == [set(), {"statistical", "semantic"}, {"statistical"}]


def test_each_critic_falls_silent_at_its_own_level_of_noise() -> None:
    # `Told` has one of 1.5 for the semantic one.
    assert silenced({"semantic": [1.49, 1.49], "temporal": [1.49, 1.49]}) == [set(), {"semantic"}]
    assert silenced({"semantic": [1.51, 1.51]}) == [set(), set()]


def test_marginals_never_fall_silent() -> None:
    assert silenced({MARGINALS: [0.0] * 5, "statistical": [0.0] * 5}) == [set(), *[{"statistical"}] * 4]


def test_beside_a_neural_critic_they_fall_silent_all_the_same() -> None:
    # Else a generator would learn the noise of their releases, as nothing else keeps it from that.
    said = {"statistical": [0.0] * 5, "temporal": [0.5] * 5}
    assert silenced(said, adversary()) == silenced(said) == [set(), *[{"statistical", "temporal"}] * 4]


def adversary() -> Adversary:
    shape = CriticShape(sum(SIZES), 0, 0, CLASSES, width=4, channels=4, semantic=True, temporal=False)
    return Adversary(initialise_critic(shape, seed=0), opening(1.0))


def rough(*, without: str | None = None) -> Targets:
    """The same releases with so much noise stated that whatever a generator says is near enough."""
    targets = exact_targets()
    for target in targets.tables.values():
        target.precision[:] /= 1e6
    if without is not None:
        del targets.tables[without]  # type: ignore[attr-defined]
    return targets


def test_where_all_are_silent_a_generator_stays_where_the_first_step_left_it() -> None:
    cluster = make_cluster(rough(without="one_way"), None, None, CPU)
    once, often, averaged = (initialise(SHAPE, seed=1) for _ in range(3))
    # A first step that goes nowhere: what comes after it would.
    train(once, cluster, stretch(1), CPU)
    loss = train(often, cluster, stretch(100), CPU, averaged=averaged)
    assert 0 < loss < 1
    first, last, followed = parameters_of(once), parameters_of(often), parameters_of(averaged)
    for name, value in last.items():
        np.testing.assert_array_equal(value, first[name], err_msg=name)
        # What is published still follows.
        np.testing.assert_allclose(followed[name], value, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("loud", ["marginals", "adversary"])
def test_others_move_a_generator_where_all_else_is_silent(loud: str) -> None:
    targets = rough() if loud == "marginals" else rough(without="one_way")
    cluster = make_cluster(targets, None, adversary() if loud == "adversary" else None, CPU)
    found = []
    for steps in (1, 2):
        generator = initialise(SHAPE, seed=1)
        train(generator, cluster, stretch(steps), CPU)
        found.append(parameters_of(generator)["heads.weight"])
    assert not np.array_equal(*found)


def test_a_silent_critic_speaks_again_when_the_generator_is_led_away() -> None:
    # Columns as they would be were the classes exchanged, and pairs as they are: nothing fits both.
    targets = exact_targets()
    columns, pairs = targets.tables["one_way"], targets.tables[Family.PAIR]
    columns.values[:] = columns.values[::-1].copy()
    columns.precision[:] /= 1000
    pairs.precision[:] /= 100
    joins = Joins(targets.groups, CPU)
    marginals, statistical = (MeasuredCritic(targets, (name,), CPU) for name in ("one_way", Family.PAIR))
    led, held = trained(200), trained(200)
    assert said(statistical, joins, held) < 1
    train(led, Cluster({MARGINALS: marginals}, joins), stretch(200), CPU)
    train(held, Cluster({MARGINALS: marginals, "statistical": statistical}, joins), stretch(200), CPU)
    assert said(statistical, joins, led) > 5
    # As far as it may be led, and hardly any farther.
    assert 0.7 < said(statistical, joins, held) < 1.5


# Records of six columns that depend on a hidden state of three, and so much noise that it can be learned by heart.
SIX = GeneratorShape((6,) * 6, classes=1, latent=8, width=64, blocks=2)
NOISE, MANY = 60.0, 2000.0


def six_columns() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True shares of bins, (36,), and of pairs of bins, (36, 36), and which pairs are of two columns."""
    drawn = np.random.default_rng(5).dirichlet(np.full(6, 0.5), (6, 3))  # (columns, states, bins)
    states = np.concatenate(list(drawn), axis=1)
    column = np.repeat(np.arange(6), 6)
    measured = column[:, None] < column
    return states.mean(axis=0), states.T @ states / 3 * measured, measured


def said(critic: MeasuredCritic, joins: Joins, generator: Generator) -> float:
    """What a critic says of a generator, nearly without chance."""
    classes = generator.shape.classes
    noise = torch.randn(8192, generator.shape.noise, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        outcome = generator(noise, torch.arange(classes).repeat_interleave(8192 // classes))
        return critic.loss(expectations(outcome, 2 * classes, joins)).item()


@pytest.mark.statistical
def test_a_generator_that_is_as_near_as_the_truth_learns_no_noise() -> None:
    one_way, pairs, measured = six_columns()
    groups = groups_of((6,) * 6)
    joins = Joins(groups, CPU)

    def released(noise: np.ndarray) -> Targets:
        columns = Target(one_way[None] * MANY, np.full(36, 1 / NOISE**2))
        crossed = Target((pairs * MANY + noise * measured)[None], measured / NOISE**2)
        return Targets({"one_way": columns, Family.PAIR: crossed}, np.array([MANY]), groups)

    truth = MeasuredCritic(released(np.zeros((36, 36))), (Family.PAIR,), CPU)
    losses, errors = [], []
    for seed in range(4):
        targets = released(np.random.default_rng(seed).normal(0, NOISE, (36, 36)))
        pair, columns = (MeasuredCritic(targets, (name,), CPU) for name in (Family.PAIR, "one_way"))
        # Under the name of the marginals nothing falls silent; the loss of all together is the same.
        always = Cluster({MARGINALS: MeasuredCritic(targets, ("one_way", Family.PAIR), CPU)}, joins)
        both = []
        for cluster in (Cluster({MARGINALS: columns, "statistical": pair}, joins), always):
            generator, averaged = initialise(SIX, seed=1), initialise(SIX, seed=1)
            train(generator, cluster, Stretch(300, 1e-2, 1e-3, 512, 7), CPU, averaged=averaged)
            both.append((said(pair, joins, averaged), said(truth, joins, averaged)))
        losses.append([loss for loss, _ in both])
        errors.append([error for _, error in both])
    falling_silent, always_heard = np.transpose(losses)
    assert (falling_silent > 0.8).all()
    assert (falling_silent < 1.02).all()
    assert (always_heard < 0.75).all()
    # Nearer to what is true: over many noises, by a fifth.
    silent_error, heard_error = np.mean(errors, axis=0)
    assert silent_error < 0.9 * heard_error


# --- windows

PATHS = SequenceShape(
    kind="paths",
    steps=6,
    blocks=((0, 3), (3, 6)),
    sizes=(4, 2),
    missing=(True, False),
    ordered=(True, False),
    states=3,
)
WINDOWED = {
    "paths": replace(SHAPE, sequence=PATHS),
    "states": replace(SHAPE, sequence=replace(PATHS, kind="states")),
    # The second column says that there are 3 to 6 steps.
    "lasting": replace(SHAPE, sequence=replace(PATHS, kind="states"), length_column=1, fewest=3),
    "attention": replace(SHAPE, body="attention", sequence=PATHS),
}


def taught(shape: GeneratorShape) -> Targets:
    """The exact tables of another generator, whose windows depend much on the latent and on the label."""
    teacher = initialise(shape, seed=5)
    with torch.no_grad():
        head = teacher.sequence
        looking = (head.level, head.trend) if isinstance(head, PathHead) else (head.start, head.pull)
        for module in (teacher.heads, *looking):
            module.weight[:, : 2 * shape.latent] *= 6
        noise = torch.randn(2000, shape.noise, generator=torch.Generator().manual_seed(0))
        groups = replace(groups_of(SIZES), channels=np.arange(6))
        outcome = teacher(noise, torch.arange(CLASSES).repeat_interleave(1000))
        expected = expectations(outcome, CLASSES, Joins(groups, CPU))
    # What lies beside the upper blocks of two axes is not measured.
    columns, channels = (np.repeat(np.arange(2), sizes) for sizes in (SIZES, PATHS.sizes))
    upper = {Family.PAIR: columns[:, None] < columns, Family.TOGETHER: channels[:, None] < channels}
    tables = {}
    for name, dense in table_shapes(shape, groups).items():
        precision = np.full(dense, 1 / 100) * upper.get(cast("Family", name), 1.0)
        tables[str(name)] = Target(expected[name].double().numpy() * UNITS, precision)
    return Targets(tables, np.full(CLASSES, UNITS), groups)


@pytest.mark.parametrize("name", WINDOWED)
def test_windows_are_learned_and_every_parameter_is_trained(name: str) -> None:
    cluster = make_cluster(taught(WINDOWED[name]), None, None, CPU)
    generator = initialise(WINDOWED[name], seed=1)
    before = parameters_of(generator)
    first = train(generator, cluster, stretch(5), CPU)
    for key, value in parameters_of(generator).items():
        assert np.isfinite(value).all()
        assert not np.array_equal(before[key], value), key
    for seed in range(4):
        last = train(generator, cluster, stretch(30, seed=seed), CPU)
    assert last < first / 5


@pytest.mark.parametrize("name", WINDOWED)
def test_a_seed_fixes_the_training_of_windows_and_the_average_follows_all_parameters(name: str) -> None:
    cluster = make_cluster(taught(WINDOWED[name]), None, None, CPU)
    found = []
    for seed in (7, 7, 8):
        generator, averaged = initialise(WINDOWED[name], seed=1), initialise(WINDOWED[name], seed=2)
        before = parameters_of(averaged)
        train(generator, cluster, stretch(2, seed=seed), CPU, averaged=averaged)
        found.append((parameters_of(generator), parameters_of(averaged)))
    for once, again, other in zip(*found, strict=True):
        assert all(np.array_equal(once[key], again[key]) for key in once)
        assert any(not np.array_equal(once[key], other[key]) for key in once)
    assert all(not np.array_equal(before[key], value) for key, value in found[0][1].items())


class OfTheProcessor(training.Latents):
    """Batches drawn on the processor, whatever computes: each kind of device has random numbers of its own."""

    def __init__(self, shape: GeneratorShape, *, parts: int, rows: int, seed: int, device: torch.device) -> None:
        super().__init__(shape, parts=parts, rows=rows, seed=seed, device=CPU)
        self._own, self._device = torch.Generator().manual_seed(seed), device

    def draw(self, random: torch.Generator) -> Tensor:
        del random
        return super().draw(self._own).to(self._device)


# Parameters move by up to 0.1. With a relative error of 1e-6 in every weight and latent at first they ended 4e-6 apart;
# 5e-4 where there are keys of attention, whose biases have no gradient but rounding, which Adam makes steps of.
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("name", "apart"), [("paths", 1e-4), ("states", 1e-4), ("lasting", 1e-4), ("attention", 5e-3)])
def test_a_stretch_on_cuda_ends_where_one_on_the_processor_does(
    name: str, apart: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "Latents", OfTheProcessor)
    ends = []
    for device in (CPU, torch.device("cuda")):
        generator = initialise(WINDOWED[name], seed=1).to(device)
        train(generator, make_cluster(taught(WINDOWED[name]), None, None, device), stretch(20), device)
        ends.append(parameters_of(generator))
    for key, value in ends[0].items():
        assert np.abs(value - ends[1][key]).max() < apart, key


# --- schedule


@pytest.mark.parametrize("stretches", [2, 10, 37])
def test_the_rate_starts_low_rises_to_the_peak_and_ends_near_zero(stretches: int) -> None:
    rates = list(schedule(4e-3, stretches=stretches))
    assert len(rates) == stretches
    assert rates[0][0] <= 4e-3 / 5
    assert rates[-1][1] == pytest.approx(0, abs=1e-9)
    path = [rates[0][0], *(end for _, end in rates)]
    peak = int(np.argmax(path))
    assert 0 < peak < len(path) - 1
    assert path[peak] <= 4e-3
    assert path[: peak + 1] == sorted(path[: peak + 1])
    assert path[peak:] == sorted(path[peak:], reverse=True)
    if stretches >= 10:
        assert path[peak] > 0.9 * 4e-3


def test_each_stretch_begins_where_the_last_one_ended() -> None:
    rates = list(schedule(1.0, stretches=12))
    assert all(before[1] == after[0] for before, after in itertools.pairwise(rates))
    assert all(isinstance(rate, float) and 0 <= rate <= 1 for pair in rates for rate in pair)


# --- parameters


def test_parameters_come_as_float32_copies_and_go_back_as_they_were() -> None:
    generator = trained(2)
    arrays = parameters_of(generator)
    assert all(array.dtype == np.float32 for array in arrays.values())
    other = initialise(SHAPE, seed=9)
    load_parameters(other, arrays)
    arrays["heads.weight"][:] = 0
    for whole in (generator, other):
        assert np.abs(parameters_of(whole)["heads.weight"]).max() > 0
    assert np.array_equal(parameters_of(generator)["heads.weight"], parameters_of(other)["heads.weight"])


@pytest.mark.parametrize("fault", ["absent", "more", "renamed", "shape", "transposed", "float64", "int", "empty"])
def test_parameters_of_another_generator_are_refused_and_nothing_is_loaded(fault: str) -> None:
    generator = initialise(SHAPE, seed=1)
    before = parameters_of(generator)
    arrays = parameters_of(initialise(SHAPE, seed=2))
    weight = arrays["heads.weight"]
    arrays |= {
        "absent": {},
        "more": {"more": weight},
        "renamed": {"heads.weights": weight},
        "shape": {"heads.weight": weight[:-1]},
        "transposed": {"heads.weight": weight.T.copy()},
        "float64": {"heads.weight": weight.astype(np.float64)},
        "int": {"heads.weight": weight.astype(np.int32)},
        "empty": {"heads.weight": weight[:0]},
    }[fault]
    if fault in ("absent", "renamed"):
        del arrays["heads.weight"]
    with pytest.raises(ValueError, match=r"^generator: ") as refused:
        load_parameters(generator, arrays)
    assert "\n" not in str(refused.value)
    assert all(np.array_equal(before[name], value) for name, value in parameters_of(generator).items())


def test_the_average_is_the_mean_whatever_the_order() -> None:
    several = [parameters_of(initialise(SHAPE, seed=seed)) for seed in range(3)]
    found = average(several)
    for name, value in found.items():
        assert value.dtype == np.float32
        expected = sum(one[name].astype(np.float64) for one in several) / 3
        np.testing.assert_allclose(value, expected, atol=1e-7)
    for order in itertools.permutations(several):
        assert all(np.array_equal(value, found[name]) for name, value in average(list(order)).items())
    load_parameters(initialise(SHAPE, seed=0), found)


def test_the_average_of_one_is_itself_and_no_site_weighs_more() -> None:
    one, other = (parameters_of(initialise(SHAPE, seed=seed)) for seed in (1, 2))
    assert all(np.array_equal(value, one[name]) for name, value in average([one]).items())
    assert all(np.array_equal(value, one[name]) for name, value in average([one, one]).items())
    assert not np.array_equal(average([one, other, other])["heads.weight"], average([one, other])["heads.weight"])


@given(
    honest=st.lists(st.floats(-3, 3, width=32), min_size=2, max_size=6),
    bad=st.lists(st.floats(-(2.0**90), 2.0**90, width=32), max_size=5),
    random=st.randoms(),
)
@settings(deadline=None, max_examples=200)
def test_fewer_than_half_bad_ones_keep_the_median_between_the_honest_ones(
    honest: list[float], bad: list[float], random: Any
) -> None:
    bad = bad[: len(honest) - 1]
    everybody = [*honest, *bad]
    random.shuffle(everybody)
    found = median([{"w": np.full((2, 1), value, dtype=np.float32)} for value in everybody])["w"]
    assert found.dtype == np.float32
    assert found.shape == (2, 1)
    assert min(honest) <= found[0, 0] <= max(honest)


def test_half_of_them_take_the_median_where_they_like_and_one_alone_takes_the_mean() -> None:
    def of(*values: float) -> float:
        return float(median([{"w": np.array([value], dtype=np.float32)} for value in values])["w"][0])

    assert of(0, 0, 1e6, 1e6) == 5e5
    assert of(0, 0, 0, 1e6) == 0
    assert of(0, 0, 1e6) == 0
    assert of(0, 1e6) == 5e5
    assert of(7) == 7


def test_the_median_does_not_depend_on_the_order_and_fits_the_generator() -> None:
    several = [parameters_of(initialise(SHAPE, seed=seed)) for seed in range(4)]
    found = median(several)
    for order in itertools.permutations(several):
        assert all(np.array_equal(value, found[name]) for name, value in median(list(order)).items())
    load_parameters(initialise(SHAPE, seed=0), found)
    assert not np.array_equal(found["heads.weight"], average(several)["heads.weight"])


# --- latents


def draws(count: int, *, parts: int = 4, rows: int = 256, rest: int = 0) -> np.ndarray:
    """(count, parts, rows of a part, noise) of one set of latents."""
    shape = replace(SHAPE, latent=3)
    if rest:
        channels = SequenceShape("paths", 2, ((0, 1), (1, 2)), (3,), (True,), (True,), 2)
        shape = replace(shape, sequence=channels)
    latents = training.Latents(shape, parts=parts, rows=rows, seed=5, device=CPU)
    random = torch.Generator().manual_seed(6)
    drawn = torch.stack([latents.draw(random) for _ in range(count)])
    assert drawn.dtype == torch.float32
    assert drawn.shape == (count, rows, shape.noise)
    return drawn.view(count, parts, rows // parts, -1).double().numpy()


def test_every_row_of_the_latents_is_a_standard_normal() -> None:
    drawn = draws(4000, rows=16)
    # 4,000 draws of each of 48 values: a mean is off by 0.016, a second moment by 0.022, a fourth by 0.155.
    one_row = drawn.reshape(4000, -1)
    assert np.abs(one_row.mean(axis=0)).max() < 0.016 * 5
    assert np.abs((one_row**2).mean(axis=0) - 1).max() < 0.022 * 5
    assert np.abs((one_row**4).mean(axis=0) - 3).max() < 0.155 * 6


def test_parts_of_latents_are_independent_and_their_means_nearer_to_the_truth_than_by_chance() -> None:
    means = np.tanh(draws(2000)).mean(axis=(2, 3))  # (draws, parts)
    by_chance = np.tanh(np.random.default_rng(0).standard_normal((2000, 4, 64, 3))).mean(axis=(2, 3))
    assert means.std() < by_chance.std() / 4
    # Of 2,000 pairs of independent values the correlation is off by 0.022.
    correlations = np.corrcoef(means.T)[np.triu_indices(4, 1)]
    assert np.abs(correlations).max() < 0.022 * 5


def test_noise_beyond_the_latents_is_independent() -> None:
    drawn = draws(500, rest=1)
    rest = drawn[..., 3:].reshape(-1)
    assert rest.size > 100_000
    assert abs(rest.mean()) < 5 / np.sqrt(rest.size)
    assert abs(rest.std() - 1) < 5 / np.sqrt(rest.size)
    assert abs(np.corrcoef(drawn[:, :, 1:, 3].ravel(), drawn[:, :, :-1, 3].ravel())[0, 1]) < 5 / np.sqrt(500 * 4 * 63)


def test_latents_follow_from_their_seeds() -> None:
    assert np.array_equal(draws(2), draws(2))
    other = training.Latents(SHAPE, parts=4, rows=256, seed=6, device=CPU)
    mine = training.Latents(SHAPE, parts=4, rows=256, seed=5, device=CPU)
    assert not torch.equal(*(one.draw(torch.Generator().manual_seed(6)) for one in (other, mine)))


# --- what only several columns say together


class Parity:
    """A critic that never errs: real rows of class 1 have an odd number of ones, all others an even one."""

    def __call__(self, records: Tensor, steps: Tensor | None, labels: Tensor) -> Scores:
        assert steps is None
        signs = records[:, 1::2] - records[:, 0::2]  # -1 or 1 in each column
        return Scores(2 * signs.prod(dim=1) * (2 * labels - 1), None, None)


def test_what_three_columns_say_together_reaches_the_generator() -> None:
    # Fair coins, each pair of them independent, released as they are.
    shape = GeneratorShape((2, 2, 2), classes=2, latent=16, width=64, blocks=2)
    precision = np.kron(1 - np.eye(3), np.ones((2, 2))) * np.triu(np.ones((6, 6))) / 100
    tables = {
        "one_way": Target(np.full((2, 6), 250.0), np.full(6, 1 / 100)),
        Family.PAIR: Target(np.full((2, 6, 6), 125.0) * (precision > 0), precision),
    }
    targets = Targets(tables, np.full(2, 500.0), groups_of((2, 2, 2)))
    parity = cast("NeuralCritic", Parity())
    generator = initialise(shape, seed=1)
    train(
        generator,
        make_cluster(targets, None, Adversary(parity, Opening((1.0,), (0.9,), (0.5,))), CPU),
        stretch(300),
        CPU,
    )
    bins, _ = draw_bins(generator, np.repeat([0, 1], 5000), seed=3, device=CPU)
    is_odd = bins.sum(axis=1) % 2 == 1
    # By chance half of them.
    assert (is_odd == np.repeat([False, True], 5000)).mean() > 0.8
    pairs = np.array([(bins[:, one] == bins[:, other]).mean() for one, other in itertools.combinations(range(3), 2)])
    assert np.abs(pairs - 0.5).max() < 0.05
