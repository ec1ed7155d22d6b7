"""The generator is a mixture of products: its tables are what they are said to be, and rows follow them."""

import itertools
import json

import numpy as np
import pytest
import torch
from torch import Tensor

from common.models.generator import Generator, GeneratorShape, draw_bins, initialise

CPU = torch.device("cpu")
SIZES = (3, 1, 4)
SHAPE = GeneratorShape(SIZES, classes=2, latent=3, width=16, blocks=2)
STARTS = np.concatenate([[0], np.cumsum(SIZES)])


def strong(seed: int = 0) -> Generator:
    """A generator whose columns depend much on z and on the label; a fresh one hardly looks at them."""
    generator = initialise(SHAPE, seed=seed)
    with torch.no_grad():
        generator.heads.weight[:, : SHAPE.latent] *= 12
        generator.heads.weight[:, SHAPE.latent : 2 * SHAPE.latent] *= 3
    return generator


def shares_of(generator: Generator, rows: int, label: int, *, seed: int = 0) -> Tensor:
    latent = torch.randn(rows, SHAPE.latent, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return generator(latent, torch.full((rows,), label))


@pytest.mark.parametrize("sizes", [(3, 1, 4), (1,), (2,), (1, 1), (7, 2, 7, 5)])
def test_the_slice_of_each_column_sums_to_one(sizes: tuple[int, ...]) -> None:
    generator = initialise(GeneratorShape(sizes, classes=3, latent=4, width=8, blocks=1), seed=1)
    latent = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 10
    shares = generator(latent, torch.arange(50) % 3)
    assert shares.shape == (50, sum(sizes))
    assert (shares >= 0).all()
    for part in torch.split(shares, list(sizes), dim=1):
        torch.testing.assert_close(part.sum(dim=1), torch.ones(50))


def test_each_slice_is_the_softmax_of_its_own_logits() -> None:
    generator = strong()
    found: list[Tensor] = []
    generator.heads.register_forward_hook(lambda module, given, logits: found.append(logits))
    shares = shares_of(generator, 20, 1)
    expected = torch.cat([torch.softmax(part, dim=1) for part in torch.split(found[0], list(SIZES), dim=1)], dim=1)
    torch.testing.assert_close(shares, expected)


def test_a_pair_table_of_shares_is_the_average_over_all_joint_outcomes() -> None:
    shares = shares_of(strong(), 40, 0).double()
    # Slowly: the joint distribution of all columns, one z at a time, then summed to pairs.
    joint = np.zeros(SIZES)
    for row in shares.numpy():
        for outcome in itertools.product(*map(range, SIZES)):
            joint[outcome] += np.prod([row[STARTS[column] + at] for column, at in enumerate(outcome)]) / len(shares)
    table = (shares.T @ shares / len(shares)).numpy()
    for left, right in itertools.combinations(range(len(SIZES)), 2):
        (other,) = set(range(len(SIZES))) - {left, right}
        block = table[STARTS[left] : STARTS[left + 1], STARTS[right] : STARTS[right + 1]]
        np.testing.assert_allclose(block, joint.sum(axis=other), atol=1e-12)
    np.testing.assert_allclose(shares.mean(dim=0)[:3], joint.sum(axis=(1, 2)), atol=1e-12)


@pytest.mark.statistical
@pytest.mark.parametrize("label", [0, 1])
def test_rows_have_the_one_way_and_pair_tables_of_the_generator(label: int) -> None:
    rows = 300_000
    generator = strong()
    shares = shares_of(generator, rows, label, seed=99)
    bins = draw_bins(generator, np.full(rows, label), seed=5, device=CPU)
    one_hot = np.zeros((rows, sum(SIZES)))
    one_hot[np.arange(rows)[:, None], bins + STARTS[:-1]] = 1
    drawn = one_hot.T @ one_hot / rows
    exact = (shares.T @ shares / rows).double().numpy()
    exact[np.diag_indices_from(exact)] = shares.mean(dim=0)  # a bin crossed with itself: its share
    # Both sides are means of as many terms in (0, 1): standard deviation at most sqrt(2 / 4 rows) = 0.0013. Six of
    # them over 37 cells: a false alarm in 10^7 seeds, and the seeds are fixed.
    tolerance = 6 * np.sqrt(0.5 / rows)
    for left, right in itertools.combinations_with_replacement(range(len(SIZES)), 2):
        block = (slice(STARTS[left], STARTS[left + 1]), slice(STARTS[right], STARTS[right + 1]))
        expected = np.diag(np.diag(exact[block])) if left == right else exact[block]
        np.testing.assert_allclose(drawn[block], expected, atol=tolerance)
    # The columns depend on each other by more than the tolerance, so that it is dependence that was compared.
    first, last = exact.diagonal()[:3], exact.diagonal()[4:]
    assert np.abs(exact[:3, 4:] - np.outer(first, last)).max() > 2 * tolerance


def test_rows_follow_their_labels() -> None:
    generator = strong()
    labels = np.arange(20_000) % 2
    bins = draw_bins(generator, labels, seed=0, device=CPU)
    for label in (0, 1):
        expected = shares_of(generator, 20_000, label).mean(dim=0).numpy()[:3]
        found = np.bincount(bins[labels == label, 0], minlength=3) / 10_000
        np.testing.assert_allclose(found, expected, atol=6 * np.sqrt(0.25 / 10_000 + 0.25 / 20_000))
    both = [shares_of(generator, 20_000, label).mean(dim=0)[:3] for label in (0, 1)]
    assert (both[0] - both[1]).abs().max() > 0.1


def test_rows_are_codes_of_their_columns() -> None:
    bins = draw_bins(strong(), np.arange(1000) % 2, seed=0, device=CPU)
    assert bins.dtype == np.int64
    assert bins.shape == (1000, 3)
    assert [set(column) for column in bins.T] == [{0, 1, 2}, {0}, {0, 1, 2, 3}]


def test_no_labels_give_no_rows() -> None:
    assert draw_bins(strong(), np.array([], dtype=np.int64), seed=0, device=CPU).shape == (0, 3)


def test_more_labels_than_a_chunk_give_as_many_rows_in_their_order() -> None:
    labels = np.repeat([0, 1], [30, 41])
    bins = draw_bins(strong(), labels, seed=0, device=CPU, chunk=16)
    assert bins.shape == (71, 3)
    whole = draw_bins(strong(), labels[:16], seed=0, device=CPU, chunk=16)
    assert np.array_equal(bins[:16], whole)
    assert len({tuple(map(tuple, bins[at : at + 16])) for at in (0, 16)}) == 2


def test_a_seed_fixes_weights_and_rows_and_another_gives_others() -> None:
    once, again, other = (initialise(SHAPE, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert not torch.equal(once["heads.weight"], other["heads.weight"])
    labels = np.zeros(200, dtype=np.int64)
    rows = [draw_bins(strong(), labels, seed=seed, device=CPU).tolist() for seed in (3, 3, 4)]
    assert rows[0] == rows[1] != rows[2]


def test_the_global_random_state_is_neither_read_nor_changed() -> None:
    drawn = []
    for state in (11, 12):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(state)
            before = torch.get_rng_state()
            generator = initialise(SHAPE, seed=3)
            rows = draw_bins(generator, np.zeros(50, dtype=np.int64), seed=3, device=CPU)
            assert torch.equal(torch.get_rng_state(), before)
            drawn.append((generator.heads.weight.tolist(), rows.tolist()))
    assert drawn[0] == drawn[1]


def test_names_and_shapes_of_the_parameters_follow_from_the_shape_alone() -> None:
    shapes = {name: tuple(value.shape) for name, value in initialise(SHAPE, seed=0).state_dict().items()}
    assert shapes == {name: tuple(value.shape) for name, value in Generator(SHAPE).state_dict().items()}
    assert shapes["heads.bias"] == (sum(SIZES),)
    # No buffer travels: nothing in it is learned.
    assert set(shapes) == set(dict(initialise(SHAPE, seed=0).named_parameters()))
    assert json.loads(json.dumps(SHAPE.as_dict())) == {**SHAPE.as_dict(), "sizes": list(SIZES)}
