"""Frozen features: exact in integers at a site, exact in expectation at a generator, and public."""

import itertools

import numpy as np
import pytest
import torch

from common.data.queries import Coded
from common.models.embedding import FEATURES, SCALE, EmbeddingMeans, embed, freeze
from common.models.generator import GeneratorShape, Outcome, draw_bins, initialise
from common.models.sequences import SequenceShape

CPU = torch.device("cpu")
SIZES = (2, 3, 2)
PLAIN = GeneratorShape(SIZES, classes=2, latent=3, width=8, blocks=1)
PATHS = SequenceShape("paths", 3, ((0, 1), (1, 3)), (3, 2), (True, False), (True, False), states=2)
WINDOWED = GeneratorShape(SIZES, classes=2, latent=3, width=8, blocks=1, sequence=PATHS)
STATES = SequenceShape("states", 3, ((0, 1), (1, 3)), (3, 2), (True, False), (True, False), states=2)
VARYING = GeneratorShape(
    (*SIZES, 4), classes=2, latent=3, width=8, blocks=1, sequence=STATES, length_column=3, fewest=0
)
DIGEST = "0123456789abcdef" * 4


def everything(shape: GeneratorShape) -> Coded:
    """Every record with every window once, label 0."""
    records = np.array(list(itertools.product(*map(range, shape.sizes))), dtype=np.int64)
    if shape.sequence is None:
        return Coded(np.zeros(len(records), dtype=np.int64), records)
    sequence = shape.sequence
    paths = itertools.product(*[range(size) for _ in range(sequence.steps) for size in sequence.sizes])
    windows = np.array(list(paths), dtype=np.int64).reshape(-1, sequence.steps, len(sequence.sizes))
    both = list(itertools.product(range(len(records)), range(len(windows))))
    rows = np.array(both)
    return Coded(
        np.zeros(len(rows), dtype=np.int64),
        records[rows[:, 0]],
        windows[rows[:, 1]],
        np.full(len(rows), sequence.steps),
    )


def chances(outcome: Outcome, shape: GeneratorShape, coded: Coded, row: int) -> np.ndarray:
    """Probability of each unit of `everything` under one row of a generator; the windows by drawing many."""
    starts = np.cumsum([0, *shape.sizes])[:-1]
    return np.prod(outcome.records[row].detach().numpy()[coded.records + starts], axis=1)


def test_the_mean_of_a_generator_is_that_over_every_record() -> None:
    generator = initialise(PLAIN, seed=3)
    features = freeze(PLAIN, DIGEST)
    outcome = generator(
        torch.randn(2, 3, generator=torch.Generator().manual_seed(1)), torch.zeros(2, dtype=torch.int64)
    )
    coded = everything(PLAIN)
    vectors = embed(coded, features, PLAIN)[:, : features.cells] / SCALE
    found = EmbeddingMeans(features, PLAIN, CPU).expected(outcome, 2).detach().numpy()
    for row in range(2):
        expected = chances(outcome, PLAIN, coded, row) @ vectors
        np.testing.assert_allclose(found[row], expected, atol=2e-5)
    assert np.abs(found).max() > 0.01


@pytest.mark.statistical
@pytest.mark.parametrize("shape", [WINDOWED, VARYING], ids=["one length", "lengths that vary"])
def test_the_mean_of_a_generator_with_windows_is_that_of_many_draws(shape: GeneratorShape) -> None:
    generator, features, rows = initialise(shape, seed=3), freeze(shape, DIGEST), 40_000
    records, windows = draw_bins(generator, np.zeros(rows, dtype=np.int64), seed=5, device=CPU)
    assert windows is not None
    coded = Coded(np.zeros(rows, dtype=np.int64), records, windows, (windows[:, :, 0] >= 0).sum(axis=1))
    drawn = embed(coded, features, shape)[:, : features.cells] / SCALE
    noise = torch.randn(rows, shape.noise, generator=torch.Generator().manual_seed(1))
    found = EmbeddingMeans(features, shape, CPU).expected(generator(noise, torch.zeros(rows, dtype=torch.int64)), 1)
    # Five standard errors of 256 numbers on both sides: a false alarm in seven thousand seeds, and the seed is fixed.
    room = 5 * 2**0.5 * drawn.std(axis=0) / rows**0.5 + 1e-5
    assert (np.abs(found.detach().numpy()[0] - drawn.mean(axis=0)) < room).all()


@pytest.mark.parametrize("shape", [PLAIN, WINDOWED], ids=["records", "windows"])
def test_no_embedding_is_longer_than_the_scale_and_each_lies_with_its_label(shape: GeneratorShape) -> None:
    coded = everything(shape)
    labelled = Coded(np.arange(len(coded.labels)) % 2, coded.records, coded.windows, coded.lengths)
    features = freeze(shape, DIGEST)
    vectors = embed(labelled, features, shape)
    assert vectors.dtype == np.int64
    assert (vectors**2).sum(axis=1).max() <= SCALE**2
    assert (vectors**2).sum(axis=1).min() > 0.99 * SCALE**2
    parts = vectors.reshape(len(vectors), 2, features.cells)
    assert not parts[labelled.labels == 0, 1].any()
    assert not parts[labelled.labels == 1, 0].any()


def test_an_embedding_depends_on_its_own_unit_alone() -> None:
    coded = everything(WINDOWED)
    features = freeze(WINDOWED, DIGEST)
    together = embed(coded, features, WINDOWED)
    assert coded.windows is not None
    assert coded.lengths is not None
    for row in (0, 7, len(together) - 1):
        one = slice(row, row + 1)
        alone = Coded(coded.labels[one], coded.records[one], coded.windows[one], coded.lengths[one])
        assert np.array_equal(embed(alone, features, WINDOWED)[0], together[row])


def test_features_follow_from_the_study_and_look_at_few_columns() -> None:
    once, again, other = (freeze(WINDOWED, digest) for digest in (DIGEST, DIGEST, DIGEST[::-1]))
    assert np.array_equal(once.records, again.records)
    assert not np.array_equal(once.records, other.records)
    assert (once.chosen >= 0).sum() == FEATURES // 2
    column = np.repeat(np.arange(3), SIZES)
    for feature in range(FEATURES):
        looked = np.unique(column[once.records[:, feature] != 0])
        assert len(looked) <= (2 if once.chosen[feature] >= 0 else 3)


def test_a_step_beyond_the_end_adds_no_phase() -> None:
    features = freeze(WINDOWED, DIGEST)
    feature = int(np.flatnonzero((features.chosen >= 0) & (features.steps == 2))[0])
    records = np.zeros((1, 3), dtype=np.int64)
    windows = np.zeros((1, 3, 2), dtype=np.int64)
    windows[:, 2] = -1
    found = embed(Coded(np.zeros(1, np.int64), records, windows, np.array([2])), features, WINDOWED)[0]
    plain = embed(Coded(np.zeros(1, np.int64), records), features, WINDOWED)[0]
    assert found[feature] == plain[feature]
    assert not np.array_equal(found, plain)
