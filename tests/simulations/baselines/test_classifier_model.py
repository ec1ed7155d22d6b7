"""Features and per-unit gradients of classifiers: exact, bounded, and of one unit alone."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.queries import Coded
from common.privacy.vectors import VectorContributions
from simulations.baselines.classifier_model import (
    GRADIENT_SCALE,
    HIDDEN,
    SCORES,
    WHOLE,
    Block,
    ClassifierShape,
    FeatureShape,
    Parameters,
    check_parameters,
    clipped_gradients,
    features_of,
    initialise,
    logits,
    train_locally,
)

PLAIN = FeatureShape((3, 4, 2), 3, ())
WINDOWED = FeatureShape((3, 2, 4, 3), 2, ((0, 3), (3, 7)))
SHAPES = [PLAIN, WINDOWED]
WIDTHS = [0, 5]


def draw(shape: FeatureShape, units: int, seed: int = 0) -> Coded:
    """Random bins; some units end before their window does."""
    random = np.random.default_rng(seed)
    records = np.column_stack([random.integers(0, size, units) for size in shape.sizes[: shape.columns]])
    labels = random.integers(0, 2, units)
    if not shape.blocks:
        return Coded(labels, records)
    steps, sizes = shape.blocks[-1][1], shape.sizes[shape.columns :]
    windows = np.stack([random.integers(0, size, (units, steps)) for size in sizes], axis=2)
    lengths = random.integers(0, steps + 1, units)
    windows[np.arange(steps) >= lengths[:, None]] = -1
    return Coded(labels, records, windows, lengths)


def parameters_of(shape: ClassifierShape, *, spread: float = 0.5, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {name: random.normal(0, spread, size).astype(np.float32) for name, size in shape.parameters.items()}


def take(contributions: VectorContributions, units: np.ndarray) -> VectorContributions:
    return VectorContributions(tuple((left[units], right[units]) for left, right in contributions.factors))


def matrices(contributions: VectorContributions) -> list[np.ndarray]:
    """Each layer's gradient of each unit, in grid units."""
    return [np.einsum("uti,uto->uio", *map(np.float64, pair)) for pair in contributions.factors]


# Features


def test_a_column_is_one_hot_and_a_channel_is_the_share_of_the_steps_of_a_block() -> None:
    windows = np.array([[[0, 1], [2, 1], [2, 0], [3, 2], [3, 2], [1, 2], [-1, -1]], [[-1, -1]] * 7])
    coded = Coded(np.array([0, 1]), np.array([[2, 0], [0, 1]]), windows, np.array([6, 0]))
    of_first, of_second = features_of(coded, WINDOWED).astype(float) / WHOLE
    third = 1 / 3
    early = [third, 0, 2 * third, 0, third, 2 * third, 0]
    late = [0, third, 0, 2 * third, 0, 0, 1]
    assert np.allclose(of_first, [0, 0, 1, 1, 0, *early, *late, 1], atol=1 / WHOLE)
    assert of_second.tolist() == [1, 0, 0, 0, 1, *[0] * 14, 1]


@given(st.integers(0, 1000), st.sampled_from(SHAPES))
def test_no_unit_has_longer_features_than_the_shape_says(seed: int, shape: FeatureShape) -> None:
    features = features_of(draw(shape, 50, seed), shape).astype(np.int64)
    squares = (features**2).sum(axis=1)
    assert features.shape == (50, shape.cells)
    assert features.min() >= 0
    assert (squares <= WHOLE**2 * shape.most_squares).all()
    if not shape.blocks:
        assert (squares == WHOLE**2 * shape.most_squares).all()


def test_the_features_of_a_unit_do_not_depend_on_others() -> None:
    coded = draw(WINDOWED, 30)
    assert coded.windows is not None
    assert coded.lengths is not None
    alone = replace(
        coded,
        labels=coded.labels[7:8],
        records=coded.records[7:8],
        windows=coded.windows[7:8],
        lengths=coded.lengths[7:8],
    )
    assert np.array_equal(features_of(coded, WINDOWED)[7:8], features_of(alone, WINDOWED))


# Gradients


def autograd(shape: ClassifierShape, parameters: Parameters, features: np.ndarray, positive: np.ndarray) -> list:
    """The plain gradient of every unit's logistic loss, by automatic differentiation in float64."""
    found: list[list[np.ndarray]] = [[] for _ in parameters]
    for row, label in zip(features / WHOLE, positive, strict=True):
        layers = {
            name: torch.tensor(array, dtype=torch.float64, requires_grad=True) for name, array in parameters.items()
        }
        seen = torch.tensor(row)
        if HIDDEN in layers:
            seen = torch.cat([torch.relu(seen @ layers[HIDDEN]), torch.ones(1, dtype=torch.float64)])
        logit = seen @ layers[SCORES]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            logit, torch.tensor(float(label), dtype=torch.float64)
        )
        loss.backward()
        for part, layer in zip(found, layers.values(), strict=True):
            part.append(layer.grad.reshape(len(layer), -1).numpy())
    return [np.array(part) for part in found]


def clip(exact: np.ndarray, block: Block) -> np.ndarray:
    """Gradients of a layer, (units, inputs, outputs), none longer than the block allows."""
    norms = np.linalg.norm(exact, axis=(1, 2))
    return exact * np.minimum(1, block.clip_norm / np.maximum(norms, 1e-12))[:, None, None]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("features", SHAPES)
@pytest.mark.parametrize("clip_norm", [0.05, 1.0])
def test_a_gradient_is_that_of_the_logistic_loss_and_clipped_layer_by_layer(
    features: FeatureShape, width: int, clip_norm: float
) -> None:
    shape = ClassifierShape(features, width, clip_norm)
    parameters, coded = parameters_of(shape), draw(features, 40)
    rows = features_of(coded, features)
    positive = coded.labels == 1
    found = matrices(clipped_gradients(shape, parameters, rows, positive))
    clipped = 0
    for (name, block), own, exact in zip(
        shape.blocks.items(), found, autograd(shape, parameters, rows, positive), strict=True
    ):
        expected = clip(exact, block)
        clipped += int((expected != exact).any(axis=(1, 2)).sum())
        assert own.shape[1:] == (shape.parameters[name][0], int(np.prod(shape.parameters[name][1:])))
        assert np.abs(own * block.clip_norm / block.bound - expected).max() < 2e-3 * block.clip_norm
    assert (clipped > 0) == (clip_norm < 1 or width > 0)


def test_nothing_of_a_logistic_regression_is_clipped_at_1() -> None:
    shape = ClassifierShape(PLAIN, 0, 1.0)
    parameters = {SCORES: np.full(PLAIN.cells, 50, dtype=np.float32)}
    features = features_of(draw(PLAIN, 10), PLAIN)
    (gradient,) = matrices(clipped_gradients(shape, parameters, features, np.zeros(10, dtype=bool)))
    # Everybody is wrong for certain: the longest gradients that there are.
    block = shape.blocks[SCORES]
    assert np.allclose(gradient[:, :, 0] * block.clip_norm / block.bound, features / WHOLE, atol=1e-3)
    assert np.linalg.norm(gradient, axis=(1, 2)).min() > 0.999 * GRADIENT_SCALE


@given(st.integers(0, 10_000), st.sampled_from(SHAPES), st.sampled_from(WIDTHS), st.sampled_from([1e-3, 0.1, 1.0]))
@settings(max_examples=60, deadline=None)
def test_no_unit_measures_more_than_the_scale(seed: int, features: FeatureShape, width: int, clip_norm: float) -> None:
    shape = ClassifierShape(features, width, clip_norm)
    coded = draw(features, 20, seed)
    parameters = parameters_of(shape, spread=10.0 ** np.random.default_rng(seed).integers(-3, 6), seed=seed)
    found = clipped_gradients(shape, parameters, features_of(coded, features), coded.labels == 1)
    squares = sum((matrix.astype(object) ** 2).sum(axis=(1, 2)) for matrix in matrices(found))
    assert max(squares) <= GRADIENT_SCALE**2
    assert shape.mechanism.squared_norms(found).tolist() == [int(square) for square in squares]
    assert shape.mechanism.squared_sensitivity == GRADIENT_SCALE**2


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("features", SHAPES)
def test_the_integers_of_a_unit_depend_on_no_other_unit(features: FeatureShape, width: int) -> None:
    shape = ClassifierShape(features, width, 0.1)
    units = 300
    coded = draw(features, units)
    rows, positive = features_of(coded, features), coded.labels == 1
    parameters = parameters_of(shape)

    def digest(units: np.ndarray) -> list[str]:
        found = clipped_gradients(shape, parameters, rows[units], positive[units])
        return [
            hashlib.sha256(b"".join(factor[at].tobytes() for pair in found.factors for factor in pair)).hexdigest()
            for at in range(len(units))
        ]

    whole = np.array(digest(np.arange(units)))
    assert len(set(whole)) > units / 10
    random = np.random.default_rng(1)
    for chosen in (random.permutation(units), np.arange(0, units, 7), np.array([5]), np.array([5, 5, 9])):
        assert digest(chosen) == whole[chosen].tolist()


@pytest.mark.parametrize("width", WIDTHS)
def test_a_gradient_that_was_made_longer_is_refused(width: int) -> None:
    shape = ClassifierShape(PLAIN, width, 1e-3)
    coded = draw(PLAIN, 30)
    found = clipped_gradients(shape, parameters_of(shape, spread=3.0), features_of(coded, PLAIN), coded.labels == 1)
    longest = take(found, np.array([int(shape.mechanism.squared_norms(found).argmax())]))
    shape.mechanism.exact_sum([longest])
    for layer in range(len(longest.factors)):
        tampered = [(left.copy(), right.copy()) for left, right in longest.factors]
        tampered[layer] = (tampered[layer][0], 2 * tampered[layer][1] + np.sign(tampered[layer][1]) * 2**12)
        with pytest.raises(ValueError, match="above the bound"):
            shape.mechanism.exact_sum([VectorContributions(tuple(tampered))])


@pytest.mark.parametrize("width", WIDTHS)
def test_a_sum_of_gradients_comes_back_as_their_mean(width: int) -> None:
    shape = ClassifierShape(PLAIN, width, 1.0)
    coded, parameters = draw(PLAIN, 50), parameters_of(shape, spread=0.1)
    rows, positive = features_of(coded, PLAIN), coded.labels == 1
    released = shape.mechanism.exact_sum([clipped_gradients(shape, parameters, rows, positive)])
    found = shape.mean_gradient(released.astype(np.float64), units=50)
    for (name, mean), exact in zip(found.items(), autograd(shape, parameters, rows, positive), strict=True):
        assert mean.shape == shape.parameters[name]
        assert np.allclose(mean, clip(exact, shape.blocks[name]).mean(axis=0).reshape(mean.shape), atol=1e-3)


def test_no_units_have_no_gradient() -> None:
    shape = ClassifierShape(WINDOWED, 5, 0.1)
    none = clipped_gradients(
        shape, parameters_of(shape), np.empty((0, WINDOWED.cells), np.int8), np.empty(0, dtype=bool)
    )
    assert shape.mechanism.exact_sum([none]).tolist() == [0] * shape.cells


# Parameters


@pytest.mark.parametrize("width", WIDTHS)
def test_a_new_classifier_knows_about_the_share_of_the_positive_class(width: int) -> None:
    shape = ClassifierShape(WINDOWED, width, 1.0)
    parameters = initialise(shape, positive_share=0.03, seed=4)
    check_parameters(parameters, shape)
    chances = 1 / (1 + np.exp(-logits(parameters, features_of(draw(WINDOWED, 200), WINDOWED))))
    assert abs(chances.mean() - 0.03) < 0.02


@pytest.mark.parametrize(
    "changes",
    [
        {HIDDEN: None},
        {SCORES: np.zeros(7, np.float32)},
        {SCORES: np.zeros(6)},
        {SCORES: np.full(6, np.nan, np.float32)},
        {"more": np.zeros(6, np.float32)},
    ],
)
def test_other_parameters_are_refused(changes: dict[str, np.ndarray | None]) -> None:
    shape = ClassifierShape(PLAIN, 5, 1.0)
    parameters = {**parameters_of(shape), **changes}
    with pytest.raises(ValueError, match="classifier"):
        check_parameters({name: array for name, array in parameters.items() if array is not None}, shape)


def test_a_classifier_that_could_not_be_added_up_exactly_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 128 hidden units"):
        ClassifierShape(PLAIN, 129, 1.0)


@pytest.mark.parametrize("width", WIDTHS)
def test_training_on_rows_learns_and_repeats_itself(width: int) -> None:
    shape = ClassifierShape(PLAIN, width, 1.0)
    coded = draw(PLAIN, 600)
    positive = coded.records[:, 0] == 1
    rows, start = features_of(coded, PLAIN), initialise(shape, positive_share=0.3, seed=0)
    state = torch.get_rng_state()

    def train(seed: int) -> dict[str, np.ndarray]:
        return train_locally(start, rows, positive, passes=20, rates=(0.02, 0.0), seed=seed, device=torch.device("cpu"))

    first, again, other = train(1), train(1), train(2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(np.array_equal(first[name], again[name]) for name in start)
    assert not np.array_equal(first[SCORES], other[SCORES])
    found = logits(first, rows)
    assert found[positive].min() > found[~positive].max()
    assert np.array_equal(start[SCORES], initialise(shape, positive_share=0.3, seed=0)[SCORES])
