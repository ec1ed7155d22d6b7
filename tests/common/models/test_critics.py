"""The measured critics: the distance that they estimate, without bias, and of measured tables alone."""

import itertools
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor

from common.data.queries import Family
from common.models.critics import (
    EMBEDDING,
    MARGINALS,
    MEASURED,
    Adversary,
    Cluster,
    Joins,
    MeasuredCritic,
    expectations,
    make_cluster,
    measured_critics,
    relaxed,
)
from common.models.embedding import EmbeddingMeans
from common.models.generator import GeneratorShape, Outcome
from common.models.neural import CriticShape, NeuralCritic, Scores, generator_loss, initialise_critic
from common.models.sequences import Courses, Expected, SequenceShape
from common.models.targets import IMPLIED, Groups, Target, Targets, table_shapes
from common.models.verdicts import Opening

CPU = torch.device("cpu")
SIZES = (3, 2, 4)
STARTS = np.concatenate([[0], np.cumsum(SIZES)])
BINS = int(STARTS[-1])
CLASSES = 3  # not 2, the number of halves
STATES = 5
COLUMN = np.repeat(np.arange(len(SIZES)), SIZES)
# Every bin a group of its own.
FINE = Groups(np.arange(BINS), np.zeros(0, dtype=np.int64), COLUMN)


def mixture(seed: int) -> np.ndarray:
    """A generator with a latent of five equally likely states: (classes, states, bins), probabilities a column."""
    random = np.random.default_rng(seed)
    parts = [random.dirichlet(np.full(size, 0.7), (CLASSES, STATES)) for size in SIZES]
    return np.concatenate(parts, axis=2)


def tables_of(shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Exact one-way and pair tables, slowly; (classes, bins) and (classes, bins, bins), upper blocks only."""
    one_way, pairs = shares.mean(axis=1), np.zeros((CLASSES, BINS, BINS))
    for label in range(CLASSES):
        for left, right in itertools.combinations(range(len(SIZES)), 2):
            for a in range(STARTS[left], STARTS[left + 1]):
                for b in range(STARTS[right], STARTS[right + 1]):
                    pairs[label, a, b] = np.mean([row[a] * row[b] for row in shares[label]])
    return one_way, pairs


def targets_at(
    shares: np.ndarray, counts: list[float], *, variance: float = 25.0, noise_seed: int | None = None
) -> Targets:
    """Releases of that mixture's tables, with noise of that variance or without."""
    one_way, pairs = tables_of(shares)
    measured = pairs[0] > 0
    scale = np.array(counts)
    noise = np.random.default_rng(noise_seed)
    stddev = 0.0 if noise_seed is None else np.sqrt(variance)
    return Targets(
        {
            "one_way": Target(
                one_way * scale[:, None] + noise.normal(0, stddev, one_way.shape), np.full(BINS, 1 / variance)
            ),
            Family.PAIR: Target(
                (pairs * scale[:, None, None] + noise.normal(0, stddev, pairs.shape)) * measured, measured / variance
            ),
        },
        scale,
        FINE,
    )


def critic_of(targets: Targets) -> MeasuredCritic:
    """Of all tables of records."""
    return MeasuredCritic(targets, ("one_way", Family.PAIR), CPU)


def tensor(shares: np.ndarray) -> Tensor:
    return torch.as_tensor(shares, dtype=torch.float32)


def outcome_of(batch: Tensor) -> Outcome:
    """A generator's outcome: the rows of a batch, (classes, rows, bins), class after class."""
    return Outcome(batch.reshape(-1, batch.shape[2]), None, SHAPE)


def seen(batch: Tensor) -> Expected:
    """What a critic is shown of a batch: two parts a class, the halves of its rows."""
    return expectations(outcome_of(batch), 2 * CLASSES, Joins(FINE, CPU))


def twice(shares: np.ndarray) -> Tensor:
    """A batch whose two halves hold every state once: the critic sees the exact tables in both."""
    return tensor(np.concatenate([shares, shares], axis=1))


def distance_slowly(shares: np.ndarray, targets: Targets) -> float:
    """Squared differences of exact tables, in noise variances, one cell at a time, per measured cell."""
    one_way, pairs = tables_of(shares)
    wanted, crossed = targets.tables["one_way"], targets.tables["pair"]
    total, cells = 0.0, 0
    for label, count in enumerate(targets.label_counts):
        for a in range(BINS):
            total += (one_way[label, a] * count - wanted.values[label, a]) ** 2 * wanted.precision[a]
            cells += 1
            for b in range(BINS):
                if crossed.precision[a, b] > 0:
                    difference = pairs[label, a, b] * count - crossed.values[label, a, b]
                    total += difference**2 * crossed.precision[a, b]
                    cells += 1
    return total / cells


def loss_slowly(batch: np.ndarray, targets: Targets) -> float:
    """The product of the differences of the two halves, one cell at a time."""
    half = batch.shape[1] // 2
    wanted, crossed = targets.tables["one_way"], targets.tables["pair"]
    total, cells = 0.0, 0
    halves = (batch[:, :half], batch[:, half:])
    for label, count in enumerate(targets.label_counts):
        for a in range(BINS):
            differences = [part[label, :, a].mean() * count - wanted.values[label, a] for part in halves]
            total += differences[0] * differences[1] * wanted.precision[a]
            cells += 1
        for a, b in itertools.product(range(BINS), repeat=2):
            if crossed.precision[a, b] > 0:
                differences = [
                    np.mean([row[a] * row[b] for row in part[label]]) * count - crossed.values[label, a, b]
                    for part in halves
                ]
                total += differences[0] * differences[1] * crossed.precision[a, b]
                cells += 1
    return total / cells


TRUTH, OTHER = mixture(1), mixture(2)
COUNTS = [300.0, 900.0, 100.0]


@pytest.mark.parametrize("rows", [2, 6, 14])
def test_the_loss_is_that_of_a_loop_over_cells(rows: int) -> None:
    targets = targets_at(TRUTH, COUNTS, noise_seed=4)
    targets.tables["pair"].precision[:3] *= 0.5
    batch = OTHER[:, np.arange(rows) % STATES]
    found = critic_of(targets).loss(seen(tensor(batch)))
    assert found.item() == pytest.approx(loss_slowly(batch, targets), rel=1e-4)


def test_with_exact_tables_in_both_halves_the_loss_is_the_distance() -> None:
    targets = targets_at(TRUTH, COUNTS, noise_seed=4)
    critic = critic_of(targets)
    for shares in (TRUTH, OTHER):
        assert critic.loss(seen(twice(shares))).item() == pytest.approx(distance_slowly(shares, targets), rel=1e-4)


@pytest.mark.statistical
@pytest.mark.parametrize("shares", [TRUTH, OTHER])
def test_the_mean_loss_over_many_batches_is_the_distance_of_the_exact_tables(shares: np.ndarray) -> None:
    targets = targets_at(TRUTH, COUNTS, noise_seed=4)
    critic = critic_of(targets)
    random = np.random.default_rng(0)
    losses, plain = [], []
    for _ in range(4000):
        batch = tensor(shares[:, random.integers(0, STATES, 8)])
        losses.append(critic.loss(seen(batch)).item())
        plain.append(critic.loss(seen(torch.cat([batch, batch], dim=1))).item())
    exact = distance_slowly(shares, targets)
    error = np.std(losses) / np.sqrt(len(losses))
    # Five standard errors: a false alarm in two million seeds, and the seed is fixed.
    assert abs(np.mean(losses) - exact) < 5 * error
    # The plain square, which is what equal halves give, is off by more: the test would see it.
    assert np.mean(plain) - exact > 20 * error


def test_the_loss_is_lowest_at_the_truth() -> None:
    critic = critic_of(targets_at(TRUTH, COUNTS))
    assert critic.loss(seen(twice(TRUTH))).item() == pytest.approx(0, abs=1e-6)
    random = np.random.default_rng(0)
    for amount in (0.01, 0.1, 1.0):
        for _ in range(10):
            mixed = (1 - amount) * TRUTH + amount * mixture(int(random.integers(10, 1000)))
            assert critic.loss(seen(twice(mixed))).item() > 1e-4


def test_the_gradient_vanishes_at_the_truth_and_leads_back_to_it_elsewhere() -> None:
    critic = critic_of(targets_at(TRUTH, COUNTS))
    at_truth = twice(TRUTH).requires_grad_()
    critic.loss(seen(at_truth)).backward()
    assert at_truth.grad is not None
    assert at_truth.grad.abs().max() < 1e-3
    # Each row on its way to the truth: downhill.
    away = twice(0.9 * TRUTH + 0.1 * OTHER).requires_grad_()
    critic.loss(seen(away)).backward()
    assert away.grad is not None
    assert (away.grad * (twice(TRUTH) - away.detach())).sum() < 0


@pytest.mark.statistical
def test_at_the_truth_the_loss_is_one_noise_variance_a_cell() -> None:
    critics = [critic_of(targets_at(TRUTH, COUNTS, noise_seed=seed)) for seed in range(200)]
    losses = [critic.loss(seen(twice(TRUTH))).item() for critic in critics]
    # Each is a mean of 105 squared normals, standard deviation sqrt(2 / 105): 0.010 over 200. Six of them.
    assert np.mean(losses) == pytest.approx(1, abs=0.06)


def test_blocks_that_were_not_measured_do_not_count() -> None:
    targets = targets_at(TRUTH, COUNTS, noise_seed=4)
    pairs = targets.tables["pair"]
    loss = critic_of(targets).loss(seen(twice(OTHER))).item()
    unmeasured = pairs.precision == 0
    assert unmeasured[np.tril_indices(BINS)].all()
    pairs.values[:, unmeasured] = 1e4
    assert critic_of(targets).loss(seen(twice(OTHER))).item() == loss
    # One block less: the mean is over the cells that are left.
    pairs.precision[STARTS[0] : STARTS[1], STARTS[1] : STARTS[2]] = 0
    expected = distance_slowly(OTHER, targets)
    assert critic_of(targets).loss(seen(twice(OTHER))).item() == pytest.approx(expected, rel=1e-4)


def test_a_table_without_pairs_is_compared_by_its_columns() -> None:
    targets = targets_at(TRUTH, COUNTS)
    targets.tables["pair"].precision[:] = 0
    critic = critic_of(targets)
    expected = np.mean((tables_of(OTHER)[0] - tables_of(TRUTH)[0]) ** 2 * np.square(COUNTS)[:, None] / 25)
    assert critic.loss(seen(twice(OTHER))).item() == pytest.approx(expected, rel=1e-4)


def test_a_class_that_noise_made_negative_counts_as_one_unit() -> None:
    one = targets_at(TRUTH, [1.0, 100.0, 10.0])
    critic = critic_of(Targets(one.tables, np.array([-50.0, 100.0, 10.0]), FINE))
    assert critic.loss(seen(twice(TRUTH))).item() == pytest.approx(0, abs=1e-6)


def test_the_cells_of_a_critic_are_those_that_were_measured_in_every_class() -> None:
    targets = targets_at(TRUTH, COUNTS)
    assert critic_of(targets).cells == CLASSES * (BINS + 3 * 2 + 3 * 4 + 2 * 4)
    targets.tables["one_way"].precision[0] = 0
    assert critic_of(targets).cells == CLASSES * (BINS - 1 + 3 * 2 + 3 * 4 + 2 * 4)


# --- expected tables

# Bins of the first column: two and one; of the second: both; of the third: one, two, one.
JOINED = np.array([0, 0, 1, 2, 2, 3, 4, 4, 5])
COARSE = Groups(JOINED, np.zeros(0, dtype=np.int64), np.array([0, 0, 1, 2, 2, 2]))


@pytest.mark.parametrize("kind", [FINE, COARSE], ids=["fine", "coarse"])
def test_expected_tables_are_means_over_the_rows_of_each_part_pairs_over_groups(kind: Groups) -> None:
    joined = kind.records
    random = np.random.default_rng(3)
    rows = random.random((12, BINS))
    groups = np.array([[row[joined == group].sum() for group in range(joined.max() + 1)] for row in rows])
    joins = Joins(kind, CPU)
    for parts in (1, 2, 4, 12):
        found = expectations(Outcome(tensor(rows), None, SHAPE), parts, joins)
        assert set(found) == {"one_way", IMPLIED, *MEASURED["statistical"].tables}
        halves = zip(np.split(rows, parts), np.split(groups, parts), strict=True)
        for part, (own, own_groups) in enumerate(halves):
            np.testing.assert_allclose(found["one_way"][part], own.mean(axis=0), atol=1e-6)
            crossed = np.mean([np.outer(row, row) for row in own_groups], axis=0)
            np.testing.assert_allclose(found["pair"][part], crossed, atol=1e-6)
            np.testing.assert_allclose(found[IMPLIED][part], own_groups.mean(axis=0), atol=1e-6)


def test_pairs_of_groups_are_compared_with_targets_over_groups() -> None:
    targets = targets_at(TRUTH, COUNTS, noise_seed=4)
    coarse = np.eye(6)[JOINED]
    crossed = targets.tables["pair"]
    values = np.einsum("lab,ag,bh->lgh", crossed.values, coarse, coarse)
    precision = np.sign(coarse.T @ crossed.precision @ coarse) / 25
    tables = {"one_way": targets.tables["one_way"], "pair": Target(values, precision)}
    grouped = Targets(tables, targets.label_counts, COARSE)
    batch = OTHER[:, np.arange(6) % STATES]
    expected = expectations(outcome_of(tensor(batch)), 2 * CLASSES, Joins(grouped.groups, CPU))
    total, cells = product_slowly(grouped, expected, ["one_way", "pair"])
    assert cells == CLASSES * (BINS + 2 * 1 + 2 * 3 + 1 * 3)
    assert critic_of(grouped).loss(expected).item() == pytest.approx(total / cells, rel=1e-4)


SEQUENCE = SequenceShape(
    kind="paths",
    steps=4,
    blocks=((0, 2), (2, 4)),
    sizes=(3, 2),
    missing=(True, False),
    ordered=(True, False),
    states=2,
)
SHAPE = GeneratorShape(SIZES, CLASSES, latent=2, width=8, blocks=1, sequence=SEQUENCE)
GROUPED = replace(COARSE, channels=np.array([0, 0, 1, 2, 3]))


class Windows:
    """Stands in for a head: tables of windows at random, by part, and one relaxed window a row."""

    def __init__(self, parts: int, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        names = [str(name) for name in table_shapes(SHAPE, GROUPED) if name not in ("one_way", IMPLIED, "pair")]
        shapes = table_shapes(SHAPE, GROUPED)
        self.tables = {name: tensor(random.random((parts, *shapes[name]))) for name in names}
        self.asked: list[tuple[Tensor, Tensor]] = []

    def expected(self, records: Tensor, channels: Tensor) -> Expected:
        self.asked.append((records, channels))
        return dict(self.tables)


def test_the_tables_of_windows_stand_beside_those_of_records() -> None:
    windows, rows = Windows(3), tensor(OTHER.reshape(-1, BINS))
    joins = Joins(GROUPED, CPU)
    found = expectations(Outcome(rows, cast("Courses", windows), SHAPE), 3, joins)
    assert {"one_way", IMPLIED, *MEASURED["statistical"].tables} | set(windows.tables) == set(found)
    assert all(found[name] is table for name, table in windows.tables.items())
    alone = expectations(Outcome(rows, None, SHAPE), 3, joins)
    assert all(torch.equal(found[name], alone[name]) for name in alone)
    # The head is told the records by group, part by part, and how its channels' bins join.
    ((records, channels),) = windows.asked
    assert torch.equal(records, (rows @ joins.records).view(3, -1, 6))
    assert torch.equal(channels, torch.eye(4)[[0, 0, 1, 2, 3]])


# --- which critic compares what, and all of them together


def test_each_table_of_a_study_is_compared_by_one_critic_and_each_is_there() -> None:
    names = [name for one in MEASURED.values() if one.classes != "differ" for name in one.tables]
    assert len(names) == len(set(names))
    # What classes share is compared, and in what they differ.
    shared, differ = (
        [name for one in MEASURED.values() if one.classes == kind for name in one.tables]
        for kind in ("share", "differ")
    )
    assert sorted(shared) == sorted(differ)
    assert set(names) == set(table_shapes(SHAPE, GROUPED)) | {EMBEDDING} | set(MEASURED["statistical"].tables)
    assert set(MEASURED[MARGINALS].tables) == {"one_way", "average", IMPLIED}
    # Without windows the temporal critic has nothing to compare.
    without = set(table_shapes(GeneratorShape(SIZES, CLASSES, 2, 8, 1), FINE))
    assert without == {"one_way", IMPLIED, Family.PAIR}


class Means:
    """Stands in for the mean embedding of a generator: what it is told."""

    def __init__(self, means: Tensor) -> None:
        self.means = means

    def expected(self, outcome: Outcome, parts: int) -> Tensor:
        assert parts == len(self.means)
        return self.means


ROWS = 6
LABELS = torch.arange(CLASSES).repeat_interleave(ROWS)


@dataclass(frozen=True)
class Case:
    """Releases of every table of a study with windows and of an embedding, at random, and what a generator says."""

    targets: Targets
    outcome: Outcome
    means: EmbeddingMeans
    expected: Expected

    def cluster(self, adversary: Adversary | None = None) -> Cluster:
        return make_cluster(self.targets, self.means, adversary, CPU)

    def loss(self, cluster: Cluster, *, silent: Collection[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        return cluster.loss(self.outcome, LABELS, CLASSES, torch.Generator().manual_seed(0), silent=silent)

    def watched(self) -> dict[str, Tensor]:
        """What critics compare, by their names; gradients are kept of it from now on."""
        windows, means = cast("Windows", self.outcome.courses), cast("Means", self.means)
        given = {**windows.tables, EMBEDDING: means.means, "records": self.outcome.records}
        for table in given.values():
            table.requires_grad_()
        return given


def case(seed: int) -> Case:
    random = np.random.default_rng(seed)
    counts = np.array(COUNTS)
    windows = Windows(2 * CLASSES, seed)
    batch = mixture(seed)[:, random.integers(0, STATES, ROWS)]
    outcome = Outcome(tensor(batch).reshape(-1, BINS), cast("Courses", windows), SHAPE)
    means = tensor(random.normal(0, 0.3, (2 * CLASSES, 8)))
    tables = {}
    for name, shape in {**table_shapes(SHAPE, GROUPED), EMBEDDING: (8,)}.items():
        precision = random.random(shape) * (random.random(shape) < 0.8)
        if name == Family.PAIR:
            # All cells of a table have the same one. Of the first two columns there is no table.
            column = GROUPED.columns
            precision = np.array([[0, 0, 0.2], [0, 0, 0.7], [0, 0, 0]])[column[:, None], column]
        tables[str(name)] = Target(counts.reshape(-1, *[1] * len(shape)) * random.random((CLASSES, *shape)), precision)
    expected = {**expectations(outcome, 2 * CLASSES, Joins(GROUPED, CPU)), EMBEDDING: means}
    return Case(Targets(tables, counts, GROUPED), outcome, cast("EmbeddingMeans", Means(means)), expected)


def product_slowly(targets: Targets, expected: Expected, names: list[str]) -> tuple[float, int]:
    """Products of the differences of two parts over the cells of some tables, and how many cells these are."""
    total, cells = 0.0, 0
    for name in names:
        target = targets.tables[name]
        for label, count in enumerate(targets.label_counts):
            for place in np.ndindex(target.precision.shape):
                if target.precision[place] == 0:
                    continue
                first, second = (
                    float(expected[name][2 * label + half][place]) * count - target.values[label][place]
                    for half in (0, 1)
                )
                total += first * second * target.precision[place]
                cells += 1
    return total, cells


def interactions_slowly(targets: Targets, expected: Expected, name: str) -> tuple[np.ndarray, int]:
    """Products of what two parts leave of tables of two columns, by two classes, and cells that are free in a class.

    Of each table only that is left which neither its rows nor its columns have; (classes, classes).
    """
    total, free = np.zeros((CLASSES, CLASSES)), 0
    target, column = targets.tables[name], targets.groups.columns
    for left, right in itertools.combinations(range(len(SIZES)), 2):
        block = np.ix_(column == left, column == right)
        (precision,) = np.unique(target.precision[block])
        if precision == 0:
            continue
        halves = []
        for half in (0, 1):
            tables = np.array([expected[name][2 * label + half].numpy()[block] for label in range(CLASSES)])
            off = tables * targets.label_counts[:, None, None] - np.array([one[block] for one in target.values])
            off = off - off.mean(axis=1, keepdims=True)
            halves.append(off - off.mean(axis=2, keepdims=True))
        total += precision * np.einsum("kab,lab->kl", *halves)
        free += (halves[0].shape[1] - 1) * (halves[0].shape[2] - 1)
    return total, free


def products_slowly(targets: Targets, expected: Expected, name: str) -> tuple[np.ndarray, int]:
    """Products of the differences of two parts over a table, by two classes, and how many cells it has in a class."""
    target = targets.tables[name]
    total = np.zeros((CLASSES, CLASSES))
    measured = target.precision > 0
    for one, other in itertools.product(range(CLASSES), repeat=2):
        first, second = (
            expected[name][2 * label + half].numpy() * targets.label_counts[label] - target.values[label]
            for label, half in ((one, 0), (other, 1))
        )
        total[one, other] = (first * second * target.precision)[measured].sum()
    return total, int(measured.sum())


def said_slowly(targets: Targets, expected: Expected) -> dict[str, tuple[float, int]]:
    """What each critic sums up, and over how many cells."""
    found = {}
    direction = targets.label_counts / np.linalg.norm(targets.label_counts)
    for critic, comparison in MEASURED.items():
        products, cells = np.zeros((CLASSES, CLASSES)), 0
        for name in comparison.tables:
            if name in targets.tables:
                slowly = interactions_slowly if name == Family.PAIR else products_slowly
                part, free = slowly(targets, expected, str(name))
                products, cells = products + part, cells + free
        whole, shared = float(np.trace(products)), float(direction @ products @ direction)
        found[critic] = {
            "each": (whole, CLASSES * cells),
            "share": (shared, cells),
            "differ": (whole - shared, (CLASSES - 1) * cells),
        }[comparison.classes]
    return found


@pytest.mark.parametrize("critic", MEASURED)
def test_a_critic_compares_its_own_tables_whatever_their_shape(critic: str) -> None:
    one = case(1)
    total, cells = said_slowly(one.targets, one.expected)[critic]
    found = measured_critics(one.targets, CPU)[critic]
    assert found.cells == cells
    assert found.loss(one.expected).item() == pytest.approx(total / cells, rel=1e-4)
    assert found.noise_level == pytest.approx(1 + np.sqrt(2 / cells))
    # The other tables may say what they like.
    own = MEASURED[critic].tables
    others = {name: 7 * table for name, table in one.expected.items() if name not in own}
    assert found.loss({**one.expected, **others}).item() == found.loss(one.expected).item()


def test_what_is_in_every_class_in_proportion_to_its_units_is_heard_by_one_critic_alone() -> None:
    one = case(1)
    random = np.random.default_rng(3)
    for name in MEASURED["temporal"].tables:
        target = one.targets.tables[name]
        table, off = random.random((2, *target.precision.shape))
        one.expected[name] = tensor(np.array([table] * (2 * CLASSES)))
        target.values[:] = (table + off) * one.targets.label_counts.reshape(-1, *[1] * off.ndim)
    critics = measured_critics(one.targets, CPU)
    shared, *apart = (
        critics[name].loss(one.expected).item() for name in ("temporal", "temporal by class", "levels by class")
    )
    assert shared > 1
    assert max(map(abs, apart)) < 1e-4 * shared


def test_what_tables_of_two_columns_say_of_one_is_left_to_the_marginals() -> None:
    targets = targets_at(TRUTH, COUNTS)
    # Each table is off by something in its rows and something in its columns.
    random = np.random.default_rng(3)
    column, pairs = FINE.columns, targets.tables[Family.PAIR]
    for left, right in itertools.combinations(range(len(SIZES)), 2):
        block = np.ix_(range(CLASSES), column == left, column == right)
        rows, columns = (
            random.normal(0, 50, (CLASSES, SIZES[left], 1)),
            random.normal(0, 50, (CLASSES, 1, SIZES[right])),
        )
        pairs.values[block] += rows + columns
    found = {
        name: one.loss(seen(twice(TRUTH))).item() for name, one in measured_critics(targets, CPU).items() if one.cells
    }
    assert set(found) == {MARGINALS, "statistical", "statistical by class"}
    assert found == pytest.approx(dict.fromkeys(found, 0.0), abs=1e-3)
    # And a cell that is off by itself is heard.
    pairs.values[:, 0, -1] += 50
    assert measured_critics(targets, CPU)["statistical"].loss(seen(twice(TRUTH))).item() > 0.5


def test_fused_critics_are_the_mean_over_the_cells_of_all_releases() -> None:
    one = case(2)
    parts = said_slowly(one.targets, one.expected)
    fused, measured = one.loss(one.cluster())
    assert {name: loss.item() for name, loss in measured.items()} == pytest.approx(
        {name: total / cells for name, (total, cells) in parts.items()}, rel=1e-4
    )
    total, cells = (sum(part) for part in zip(*parts.values(), strict=True))
    assert fused.item() == pytest.approx(total / cells, rel=1e-4)
    # Each weighs by its cells, so that they are not the mean of so many means.
    assert len({cells for _, cells in parts.values()}) == len(parts)
    plain = np.mean([loss.item() for loss in measured.values()])
    assert abs(fused.item() - plain) > 0.01 * abs(plain)


def test_without_windows_and_embedding_the_cluster_compares_the_tables_of_records() -> None:
    targets = targets_at(TRUTH, COUNTS, noise_seed=4)
    batch = tensor(OTHER[:, np.arange(ROWS) % STATES])
    cluster = make_cluster(targets, None, None, CPU)
    fused, measured = cluster.loss(outcome_of(batch), LABELS, CLASSES, torch.Generator())
    parts = said_slowly(targets, seen(batch))
    assert set(measured) == {MARGINALS, "statistical", "statistical by class"}
    total, cells = (sum(part) for part in zip(*parts.values(), strict=True))
    assert fused.item() == pytest.approx(total / cells, rel=1e-4)


def test_means_are_not_asked_where_no_embedding_was_released() -> None:
    class Deaf:
        def expected(self, outcome: Outcome, parts: int) -> Tensor:
            raise AssertionError("means were asked")

    one = replace(case(3), means=cast("EmbeddingMeans", Deaf()))
    del one.targets.tables[EMBEDDING]  # type: ignore[attr-defined]
    total, cells = (sum(part) for part in zip(*said_slowly(one.targets, one.expected).values(), strict=True))
    assert one.loss(one.cluster())[0].item() == pytest.approx(total / cells, rel=1e-4)


@pytest.mark.parametrize("without", ["one_way", IMPLIED, Family.PAIR, EMBEDDING, Family.LEVEL])
def test_a_table_without_a_measured_cell_has_no_part_in_the_loss(without: str) -> None:
    one = case(4)
    one.targets.tables[without].precision[:] = 0
    parts = said_slowly(one.targets, one.expected)
    total, cells = (sum(part) for part in zip(*parts.values(), strict=True))
    fused, measured = one.loss(one.cluster())
    assert fused.item() == pytest.approx(total / cells, rel=1e-4)
    # Nor has a critic that has no other.
    assert set(measured) == {name for name, (_, cells) in parts.items() if cells}


def test_with_one_class_there_is_nothing_in_which_classes_differ() -> None:
    targets = targets_at(TRUTH, COUNTS)
    alone = Targets(
        {name: Target(one.values[:1], one.precision) for name, one in targets.tables.items()},
        np.array(COUNTS[:1]),
        FINE,
    )
    found = make_cluster(alone, None, None, CPU).measure(Outcome(twice(TRUTH)[0], None, SHAPE), 1)
    assert set(found) == {MARGINALS, "statistical"}
    assert found["statistical"].item() == pytest.approx(0, abs=1e-3)


def test_the_gradient_of_the_fused_loss_reaches_every_measured_table() -> None:
    one = case(5)
    given = one.watched()
    one.loss(one.cluster())[0].backward()
    assert given["records"].grad is not None
    assert (given.pop("records").grad != 0).any(dim=0).all()
    for name, table in given.items():
        assert table.grad is not None, name
        measured = torch.as_tensor(one.targets.tables[name].precision > 0)
        assert (table.grad[:, measured] != 0).all(), name
        assert (table.grad[:, ~measured] == 0).all(), name


# --- critics that are not listened to

SILENT = [
    {"statistical"},
    {"statistical by class"},
    {"temporal", "temporal by class", "levels by class", "semantic"},
    set(MEASURED) - {MARGINALS},
]


@pytest.mark.parametrize("silent", SILENT, ids=sorted)
def test_critics_that_are_not_listened_to_still_say_what_they_say(silent: set[str]) -> None:
    one = case(6)
    _, loud = one.loss(one.cluster())
    _, measured = one.loss(one.cluster(), silent=silent)
    assert set(measured) == set(MEASURED)
    assert {name: loss.item() for name, loss in measured.items()} == {name: loss.item() for name, loss in loud.items()}


@pytest.mark.parametrize("silent", SILENT, ids=sorted)
def test_the_others_keep_their_part_of_all_cells(silent: set[str]) -> None:
    one = case(6)
    parts = said_slowly(one.targets, one.expected)
    total = sum(part for name, (part, _) in parts.items() if name not in silent)
    cells = sum(cells for _, cells in parts.values())
    fused, _ = one.loss(one.cluster(), silent=silent)
    assert fused.item() == pytest.approx(total / cells, rel=1e-4)


@pytest.mark.parametrize("silent", SILENT, ids=sorted)
def test_the_gradient_is_that_of_the_others_alone(silent: set[str]) -> None:
    found, alone = case(7), case(7)
    cluster = found.cluster()
    given = found.watched()
    found.loss(cluster, silent=silent)[0].backward()
    wanted = alone.watched()
    critics = measured_critics(alone.targets, CPU)
    cells = sum(critic.cells for critic in critics.values())
    expected = {**expectations(alone.outcome, 2 * CLASSES, Joins(GROUPED, CPU)), EMBEDDING: wanted[EMBEDDING]}
    heard = [critic.loss(expected) * critic.cells / cells for name, critic in critics.items() if name not in silent]
    torch.stack(heard).sum().backward()
    compared = set(given) - {name for critic in set(MEASURED) - silent for name in MEASURED[critic].tables}
    for name, table in given.items():
        if name in compared and name != "records":
            assert table.grad is None or not table.grad.any(), name
        other = wanted[name].grad
        if other is not None and other.any():
            assert table.grad is not None, name
            torch.testing.assert_close(table.grad, other, msg=name)
        else:
            assert table.grad is None or not table.grad.any(), name
    assert any(table.grad is not None and table.grad.any() for table in given.values())


def test_where_no_critic_is_listened_to_there_is_nothing_to_follow() -> None:
    one = case(8)
    one.watched()
    fused, measured = one.loss(one.cluster(), silent=set(MEASURED))
    assert fused.item() == 0
    assert not fused.requires_grad
    assert set(measured) == set(MEASURED)


def test_what_is_fused_is_what_was_measured_each_by_its_part_of_all_cells() -> None:
    one = case(9)
    cluster = one.cluster()
    measured = cluster.measure(one.outcome, CLASSES)
    fused, said = one.loss(cluster)
    assert {name: loss.item() for name, loss in said.items()} == {name: loss.item() for name, loss in measured.items()}
    assert cluster.fuse(measured).item() == fused.item()
    critics = measured_critics(one.targets, CPU)
    assert cluster.noise_levels == {name: critic.noise_level for name, critic in critics.items()}
    cells = {name: critic.cells for name, critic in critics.items()}
    for name, loss in measured.items():
        part = cluster.fuse({name: loss})
        assert part.item() == pytest.approx(loss.item() * cells[name] / sum(cells.values()))


# --- the neural critic as an adversary


def opening(*weights: float) -> Opening:
    """Of a critic that all real units pass, and no fake did."""
    return Opening(weights, (1.0,) * len(weights), (0.0,) * len(weights))


def adversary(*weights: float, seed: int = 0) -> Adversary:
    """Of records alone, one head."""
    shape = CriticShape(BINS, 0, 0, CLASSES, width=4, channels=4, semantic=True, temporal=False)
    return Adversary(initialise_critic(shape, seed=seed), opening(*weights))


def records_only(seed: int) -> tuple[Outcome, Targets]:
    batch = mixture(seed)[:, np.random.default_rng(seed).integers(0, STATES, ROWS)]
    return outcome_of(tensor(batch)), targets_at(TRUTH, COUNTS, noise_seed=4)


def a_unit(targets: Targets) -> float:
    """What a head of weight 1 weighs: units as cells do, by their squared distance, which is twice a log-likelihood."""
    cells = sum(critic.cells for critic in measured_critics(targets, CPU).values())
    return 2 * float(targets.label_counts.sum()) / cells


def test_a_head_weighs_as_its_gate_says_beside_the_measured_critics() -> None:
    outcome, targets = records_only(6)
    plain, said = make_cluster(targets, None, None, CPU).loss(outcome, LABELS, CLASSES, torch.Generator())
    found = adversary(1.0)
    # It sees the chances of a record, and no draw of it.
    scores = found.critic(outcome.records, None, LABELS)
    drawn, _ = relaxed(outcome, torch.Generator().manual_seed(3))
    passed = (found.critic(drawn, None, LABELS).heads()[0] > 0).float().mean()
    scored = generator_loss(scores) * (1 - passed)
    assert scored.shape == (1,)
    assert scored.item() > 0
    for weight in (0.5, 3.0):
        cluster = make_cluster(targets, None, Adversary(found.critic, opening(weight)), CPU)
        fused, measured = cluster.loss(outcome, LABELS, CLASSES, torch.Generator().manual_seed(3))
        # What is reported is the measured part: another seed or critic does not change it.
        assert {name: loss.item() for name, loss in measured.items()} == {
            name: one.item() for name, one in said.items()
        }
        assert fused.item() == pytest.approx(plain.item() + weight * a_unit(targets) * scored.item())


def heads_that_say(*said: Tensor) -> NeuralCritic:
    """A critic whose heads give the rows these scores, whatever they are shown."""

    def critic(records: Tensor, steps: Tensor | None, labels: Tensor) -> Scores:
        assert steps is None
        assert all(len(one) == len(labels) for one in said)
        return Scores(said[0], said[1], None)

    return cast("NeuralCritic", critic)


def test_two_heads_have_a_weight_each() -> None:
    outcome, targets = records_only(7)
    both = Adversary(
        heads_that_say(torch.full((len(LABELS),), -2.0), torch.full((len(LABELS),), -1.0)),
        opening(0.25, 4.0),
    )
    cluster = make_cluster(targets, None, both, CPU)
    assert cluster.adversary is both
    fused, measured = cluster.loss(outcome, LABELS, CLASSES, torch.Generator())
    expected = a_unit(targets) * (0.25 * (np.sqrt(5) + 2) / 2 + 4 * (np.sqrt(2) + 1) / 2)
    assert (fused - cluster.fuse(measured)).item() == pytest.approx(expected, rel=1e-4)
    # It is heard where no other is.
    fused, _ = cluster.loss(outcome, LABELS, CLASSES, torch.Generator(), silent=set(measured))
    assert fused.item() == pytest.approx(expected, rel=1e-4)


# Of real units half pass the first head, and of fakes a sixth did when the gate was opened.
@pytest.mark.parametrize(("passing", "share"), [(0, 1), (1 / 6, 1), (1 / 3, 1 / 2), (1 / 2, 0), (2 / 3, 0), (1, 0)])
def test_a_head_that_the_rows_fool_has_less_to_say(passing: float, share: float) -> None:
    outcome, targets = records_only(7)
    scores = torch.full((len(LABELS),), -2.0)
    scores[: round(passing * len(LABELS))] = 1.0
    # The other head is fooled by all, and says nothing.
    critic = heads_that_say(scores, torch.full((len(LABELS),), 3.0))
    cluster = make_cluster(targets, None, Adversary(critic, Opening((1.0, 1.0), (0.5, 1.0), (1 / 6, 0.0))), CPU)
    fused, measured = cluster.loss(outcome, LABELS, CLASSES, torch.Generator())
    loss = (passing * (np.sqrt(2) - 1) + (1 - passing) * (np.sqrt(5) + 2)) / 2
    assert (fused - cluster.fuse(measured)).item() == pytest.approx(a_unit(targets) * share * loss, rel=1e-4, abs=1e-3)


def test_weights_are_those_of_the_loss_and_none_where_a_critic_is_silent() -> None:
    outcome, targets = records_only(7)
    third = torch.full((len(LABELS),), -2.0)
    third[: len(LABELS) // 3] = 1.0
    critic = heads_that_say(third, torch.full((len(LABELS),), 3.0))
    critic.shape = CriticShape(BINS, 4, 4, CLASSES, width=4, channels=4, semantic=True, temporal=True)
    cluster = make_cluster(targets, None, Adversary(critic, Opening((0.8, 1.0), (2 / 3, 1.0), (0.0, 0.0))), CPU)
    losses = dict.fromkeys(cluster.shares, 3.0) | {"statistical": 0.5, MARGINALS: 0.5}
    found = cluster.weights(losses, outcome, LABELS, torch.Generator())
    expected = dict(cluster.shares) | {"statistical": 0.0}
    # Half as many pass the first head as of real units; all pass the second.
    expected |= {"neural semantic": 0.4 * a_unit(targets), "neural temporal": 0.0}
    assert found == pytest.approx(expected, rel=1e-5)


def test_heads_without_weight_are_not_asked() -> None:
    class Deaf:
        def __call__(self, *given: object) -> object:
            raise AssertionError("a head without weight was asked")

    outcome, targets = records_only(8)
    random = torch.Generator().manual_seed(5)
    before = random.get_state()
    cluster = make_cluster(targets, None, Adversary(cast("NeuralCritic", Deaf()), opening(0.0, 0.0)), CPU)
    assert cluster.adversary is None
    fused, measured = cluster.loss(outcome, LABELS, CLASSES, random)
    assert fused.item() == cluster.fuse(measured).item()
    assert torch.equal(random.get_state(), before)


def test_the_generator_feels_the_adversary_and_the_adversary_is_not_moved() -> None:
    outcome, targets = records_only(9)
    found = adversary(2.0)
    before = {name: value.clone() for name, value in found.critic.state_dict().items()}
    gradients = []
    for one in (None, found):
        records = outcome.records.detach().clone().requires_grad_()
        again = Outcome(records, None, SHAPE)
        loss, _ = make_cluster(targets, None, one, CPU).loss(again, LABELS, CLASSES, torch.Generator().manual_seed(1))
        loss.backward()
        assert records.grad is not None
        gradients.append(records.grad)
    assert not torch.allclose(gradients[0], gradients[1])
    assert all(torch.equal(before[name], value) for name, value in found.critic.state_dict().items())


def test_a_relaxed_row_has_one_bin_a_column_and_the_gradient_of_the_probabilities() -> None:
    rows = tensor(np.repeat(mixture(1)[0, :1], 20_000, axis=0)).requires_grad_()
    drawn, steps = relaxed(Outcome(rows, None, SHAPE), torch.Generator().manual_seed(0))
    assert steps is None
    assert set(drawn.detach().round(decimals=5).unique().tolist()) == {0, 1}
    for part in torch.split(drawn, list(SIZES), dim=1):
        torch.testing.assert_close(part.sum(dim=1), torch.ones(len(part)))
    # A share of 20,000 draws has a standard deviation of at most 0.0035; six of them.
    torch.testing.assert_close(drawn.mean(dim=0), rows[0], atol=0.022, rtol=0)
    weights = torch.arange(BINS, dtype=torch.float32)
    (drawn * weights).sum().backward()
    assert rows.grad is not None
    torch.testing.assert_close(rows.grad, weights.expand_as(rows))


def test_windows_are_relaxed_beside_the_records() -> None:
    class Head:
        def relaxed(self, random: torch.Generator) -> Tensor:
            return torch.rand(CLASSES * STATES, 3, 5, generator=random)

    outcome = Outcome(tensor(OTHER).reshape(-1, BINS), cast("Courses", Head()), SHAPE)
    first, again, other = (relaxed(outcome, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first[1] is not None
    assert again[1] is not None
    assert first[1].shape == (CLASSES * STATES, 3, 5)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize(("column", "fewest"), [(0, 0), (0, 1), (2, 1), (1, 3)])
def test_relaxed_windows_end_where_their_record_says_with_its_gradient(column: int, fewest: int) -> None:
    steps = SIZES[column] - 1 + fewest

    class Head:
        def relaxed(self, random: torch.Generator) -> Tensor:
            return torch.ones(CLASSES * STATES, steps, 5)

    rows = tensor(OTHER).reshape(-1, BINS).requires_grad_()
    shape = replace(SHAPE, length_column=column, fewest=fewest)
    records, windows = relaxed(Outcome(rows, cast("Courses", Head()), shape), torch.Generator().manual_seed(4))
    assert windows is not None
    lengths = fewest + records[:, STARTS[column] : STARTS[column + 1]].argmax(dim=1)
    assert len(set(lengths.tolist())) > 1
    expected = (torch.arange(steps) < lengths[:, None])[:, :, None].expand(-1, -1, 5)
    torch.testing.assert_close(windows, expected.float())
    # A likelier longer window holds more: each length passes on what it adds to the shortest.
    windows.sum().backward()
    assert rows.grad is not None
    passed = rows.grad[:, STARTS[column] : STARTS[column + 1]]
    torch.testing.assert_close(passed - passed[:, :1], (5.0 * torch.arange(SIZES[column])).expand_as(passed))
