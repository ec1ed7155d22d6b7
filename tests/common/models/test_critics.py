"""The statistical critic: the distance that it estimates, without bias, and of measured tables alone."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from common.data.tables import all_pairs
from common.models.critics import StatisticalCritic, Targets, assemble

CPU = torch.device("cpu")
SIZES = (3, 2, 4)
STARTS = np.concatenate([[0], np.cumsum(SIZES)])
BINS = int(STARTS[-1])
CLASSES = 2
STATES = 5


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
        one_way=one_way * scale[:, None] + noise.normal(0, stddev, one_way.shape),
        one_way_precision=np.full(BINS, 1 / variance),
        pairs=(pairs * scale[:, None, None] + noise.normal(0, stddev, pairs.shape)) * measured,
        pairs_precision=measured / variance,
        label_counts=scale,
    )


def tensor(shares: np.ndarray) -> Tensor:
    return torch.as_tensor(shares, dtype=torch.float32)


def twice(shares: np.ndarray) -> Tensor:
    """A batch whose two halves hold every state once: the critic sees the exact tables in both."""
    return tensor(np.concatenate([shares, shares], axis=1))


def distance_slowly(shares: np.ndarray, targets: Targets) -> float:
    """Squared differences of exact tables, in noise variances, one cell at a time, per measured cell."""
    one_way, pairs = tables_of(shares)
    total, cells = 0.0, 0
    for label, count in enumerate(targets.label_counts):
        for a in range(BINS):
            total += (one_way[label, a] * count - targets.one_way[label, a]) ** 2 * targets.one_way_precision[a]
            cells += 1
            for b in range(BINS):
                if targets.pairs_precision[a, b] > 0:
                    difference = pairs[label, a, b] * count - targets.pairs[label, a, b]
                    total += difference**2 * targets.pairs_precision[a, b]
                    cells += 1
    return total / cells


def loss_slowly(batch: np.ndarray, targets: Targets) -> float:
    """The product of the differences of the two halves, one cell at a time."""
    half = batch.shape[1] // 2
    total, cells = 0.0, 0
    halves = (batch[:, :half], batch[:, half:])
    for label, count in enumerate(targets.label_counts):
        for a in range(BINS):
            differences = [part[label, :, a].mean() * count - targets.one_way[label, a] for part in halves]
            total += differences[0] * differences[1] * targets.one_way_precision[a]
            cells += 1
        for a, b in itertools.product(range(BINS), repeat=2):
            if targets.pairs_precision[a, b] > 0:
                differences = [
                    np.mean([row[a] * row[b] for row in part[label]]) * count - targets.pairs[label, a, b]
                    for part in halves
                ]
                total += differences[0] * differences[1] * targets.pairs_precision[a, b]
                cells += 1
    return total / cells


TRUTH, OTHER = mixture(1), mixture(2)
COUNTS = [300.0, 900.0]


@pytest.mark.parametrize("rows", [2, 6, 7])
def test_the_loss_is_that_of_a_loop_over_cells(rows: int) -> None:
    targets = targets_at(TRUTH, COUNTS, noise_seed=4)
    targets.pairs_precision[:3] *= 0.5
    batch = OTHER[:, np.arange(rows) % STATES]
    found = StatisticalCritic(targets, CPU).loss(tensor(batch))
    assert found.item() == pytest.approx(loss_slowly(batch, targets), rel=1e-4)


def test_with_exact_tables_in_both_halves_the_loss_is_the_distance() -> None:
    targets = targets_at(TRUTH, COUNTS, noise_seed=4)
    critic = StatisticalCritic(targets, CPU)
    for shares in (TRUTH, OTHER):
        assert critic.loss(twice(shares)).item() == pytest.approx(distance_slowly(shares, targets), rel=1e-4)


@pytest.mark.statistical
@pytest.mark.parametrize("shares", [TRUTH, OTHER])
def test_the_mean_loss_over_many_batches_is_the_distance_of_the_exact_tables(shares: np.ndarray) -> None:
    targets = targets_at(TRUTH, COUNTS, noise_seed=4)
    critic = StatisticalCritic(targets, CPU)
    random = np.random.default_rng(0)
    losses, plain = [], []
    for _ in range(4000):
        batch = tensor(shares[:, random.integers(0, STATES, 8)])
        losses.append(critic.loss(batch).item())
        plain.append(critic.loss(torch.cat([batch, batch], dim=1)).item())
    exact = distance_slowly(shares, targets)
    error = np.std(losses) / np.sqrt(len(losses))
    # Five standard errors: a false alarm in two million seeds, and the seed is fixed.
    assert abs(np.mean(losses) - exact) < 5 * error
    # The plain square, which is what equal halves give, is off by more: the test would see it.
    assert np.mean(plain) - exact > 20 * error


def test_the_loss_is_lowest_at_the_truth() -> None:
    critic = StatisticalCritic(targets_at(TRUTH, COUNTS), CPU)
    assert critic.loss(twice(TRUTH)).item() == pytest.approx(0, abs=1e-6)
    random = np.random.default_rng(0)
    for amount in (0.01, 0.1, 1.0):
        for _ in range(10):
            mixed = (1 - amount) * TRUTH + amount * mixture(int(random.integers(10, 1000)))
            assert critic.loss(twice(mixed)).item() > 1e-4


def test_the_gradient_vanishes_at_the_truth_and_leads_back_to_it_elsewhere() -> None:
    critic = StatisticalCritic(targets_at(TRUTH, COUNTS), CPU)
    at_truth = twice(TRUTH).requires_grad_()
    critic.loss(at_truth).backward()
    assert at_truth.grad is not None
    assert at_truth.grad.abs().max() < 1e-3
    # Each row on its way to the truth: downhill.
    away = twice(0.9 * TRUTH + 0.1 * OTHER).requires_grad_()
    critic.loss(away).backward()
    assert away.grad is not None
    assert (away.grad * (twice(TRUTH) - away.detach())).sum() < 0


@pytest.mark.statistical
def test_at_the_truth_the_loss_is_one_noise_variance_a_cell() -> None:
    critics = [StatisticalCritic(targets_at(TRUTH, COUNTS, noise_seed=seed), CPU) for seed in range(200)]
    losses = [critic.loss(twice(TRUTH)).item() for critic in critics]
    # Each is a mean of 70 squared normals, standard deviation sqrt(2 / 70): 0.012 over 200. Five of them.
    assert np.mean(losses) == pytest.approx(1, abs=0.06)


def test_blocks_that_were_not_measured_do_not_count() -> None:
    targets = targets_at(TRUTH, COUNTS, noise_seed=4)
    loss = StatisticalCritic(targets, CPU).loss(twice(OTHER)).item()
    unmeasured = targets.pairs_precision == 0
    assert unmeasured[np.tril_indices(BINS)].all()
    targets.pairs[:, unmeasured] = 1e4
    assert StatisticalCritic(targets, CPU).loss(twice(OTHER)).item() == loss
    # One block less: the mean is over the cells that are left.
    targets.pairs_precision[STARTS[0] : STARTS[1], STARTS[1] : STARTS[2]] = 0
    expected = distance_slowly(OTHER, targets)
    assert StatisticalCritic(targets, CPU).loss(twice(OTHER)).item() == pytest.approx(expected, rel=1e-4)


def test_a_table_without_pairs_is_compared_by_its_columns() -> None:
    targets = targets_at(TRUTH, COUNTS)
    targets.pairs_precision[:] = 0
    critic = StatisticalCritic(targets, CPU)
    expected = np.mean((tables_of(OTHER)[0] - tables_of(TRUTH)[0]) ** 2 * np.square(COUNTS)[:, None] / 25)
    assert critic.loss(twice(OTHER)).item() == pytest.approx(expected, rel=1e-4)


def test_a_class_that_noise_made_negative_counts_as_one_unit() -> None:
    targets = targets_at(TRUTH, [-50.0, 100.0])
    one = targets_at(TRUTH, [1.0, 100.0])
    critic = StatisticalCritic(Targets(**{**vars(targets), "one_way": one.one_way, "pairs": one.pairs}), CPU)
    assert critic.classes == CLASSES
    assert critic.loss(twice(TRUTH)).item() == pytest.approx(0, abs=1e-6)


def test_flat_pair_tables_are_laid_out_in_upper_blocks_with_their_own_precision() -> None:
    layout = all_pairs(SIZES, CLASSES)
    random = np.random.default_rng(0)
    flat, one_way = random.normal(size=layout.n_cells), random.normal(size=(CLASSES, BINS))
    targets = assemble(
        layout=layout,
        pair_counts=flat,
        pair_variance=np.array([2.0, 4.0, 8.0]),
        one_way=one_way,
        one_way_variance=np.arange(1.0, BINS + 1),
        label_counts=np.array(COUNTS),
    )
    assert targets.pairs.shape == (CLASSES, BINS, BINS)
    found = np.zeros(layout.n_cells)
    for table, (left, right) in enumerate(itertools.combinations(range(3), 2)):
        for label, a, b in itertools.product(range(CLASSES), range(SIZES[left]), range(SIZES[right])):
            where = (label * SIZES[left] + a) * SIZES[right] + b + layout.offsets[table]
            found[where] = targets.pairs[label, STARTS[left] + a, STARTS[right] + b]
            assert targets.pairs_precision[STARTS[left] + a, STARTS[right] + b] == 1 / 2.0 ** (table + 1)
    assert np.array_equal(found, flat)
    measured = np.add.outer(*[np.repeat(np.arange(3), SIZES)] * 2) >= 0
    column = np.repeat(np.arange(3), SIZES)
    measured = column[:, None] < column[None, :]
    assert np.array_equal(targets.pairs_precision > 0, measured)
    assert (targets.pairs[:, ~measured] == 0).all()
    np.testing.assert_allclose(targets.one_way_precision, 1 / np.arange(1.0, BINS + 1))
    assert np.array_equal(targets.one_way, one_way)
