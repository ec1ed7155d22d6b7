"""Neural critics: true gradients, clipped in whole numbers that no neighbour can change; critics learn from them."""

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus import GradSampleModule
from torch import Tensor

from common.models import neural
from common.models.neural import (
    GRADIENT_SCALE,
    CriticShape,
    NeuralCritic,
    apply_gradient,
    clipped_factors,
    critic_parameters,
    fake_gradient,
    generator_loss,
    improve,
    initialise_critic,
    load_critic,
    real_gradient,
    real_loss,
    smooth_hinge,
)
from common.privacy.vectors import VectorContributions, VectorLayer, VectorMechanism

COLUMNS, BINS = 4, 3
WINDOWS = CriticShape(
    record_bins=COLUMNS * BINS, steps=6, step_bins=8, classes=3, width=5, channels=4, semantic=True, temporal=True
)
SHAPES = {
    "both heads": WINDOWS,
    "semantic head over windows": replace(WINDOWS, temporal=False),
    "temporal head": replace(WINDOWS, semantic=False),
    "records alone": replace(WINDOWS, steps=0, step_bins=0, temporal=False),
    "one step": replace(WINDOWS, steps=1),
    "dilation beyond the window": replace(WINDOWS, steps=3, channels=7),
    "two classes": replace(WINDOWS, steps=9, classes=2, width=2, channels=1),
}
Units = tuple[np.ndarray, np.ndarray | None, np.ndarray]


def units_of(shape: CriticShape, units: int, *, seed: int) -> Units:
    """One-hot records; windows of two channels that end at any step, some of them empty; labels."""
    random = np.random.default_rng(seed)
    records = np.zeros((units, COLUMNS, BINS), dtype=bool)
    np.put_along_axis(records, random.integers(0, BINS, (units, COLUMNS, 1)), values=True, axis=2)
    labels = random.integers(0, shape.classes, units)
    if not shape.steps:
        return records.reshape(units, COLUMNS * BINS), None, labels
    steps = np.zeros((units, shape.steps, 2, shape.step_bins // 2), dtype=bool)
    np.put_along_axis(steps, random.integers(0, shape.step_bins // 2, (*steps.shape[:3], 1)), values=True, axis=3)
    steps[np.arange(shape.steps) >= random.integers(0, shape.steps + 1, units)[:, np.newaxis]] = False
    return records.reshape(units, COLUMNS * BINS), steps.reshape(units, shape.steps, shape.step_bins), labels


def critic_of(shape: CriticShape, *, seed: int = 0, size: float = 1.0) -> NeuralCritic:
    critic = initialise_critic(shape, seed=seed)
    with torch.no_grad():
        for value in critic.parameters():
            value.mul_(size)
    return critic


def tensors(units: Units, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor | None, Tensor]:
    records, steps, labels = units
    windows = None if steps is None else torch.tensor(steps, dtype=dtype)
    return torch.tensor(records, dtype=dtype), windows, torch.tensor(labels)


def mechanism_of(shape: CriticShape) -> VectorMechanism:
    return VectorMechanism(tuple(VectorLayer(*layer) for layer in shape.contribution), GRADIENT_SCALE)


def part_of(units: Units, chosen: Any) -> Units:
    records, steps, labels = units
    return records[chosen], None if steps is None else steps[chosen], labels[chosen]


def integers(critic: NeuralCritic, units: Units, **options: Any) -> np.ndarray:
    """What each unit contributes, in grid units, (units, cells) int64: the outer products written out."""
    parts = [np.empty((0, critic.shape.cells), dtype=np.int64)]
    for factors in clipped_factors(critic, *units, **({"clip_norm": 1.0} | options)):
        layers = []
        for (left, right), (inputs, outputs, weight) in zip(factors, critic.shape.contribution, strict=True):
            assert left.shape == (len(left), 1, inputs)
            assert right.shape == (len(left), 1, outputs)
            layers.append(weight * (left.astype(np.int64).transpose(0, 2, 1) @ right.astype(np.int64)))
        parts.append(np.concatenate([layer.reshape(len(layer), -1) for layer in layers], axis=1))
    return np.concatenate(parts)


def matrix_form(shape: CriticShape, by_name: dict[str, np.ndarray]) -> np.ndarray:
    """Gradients that modules hold, (units, ...) by parameter, as (units, cells) in the order of the shape's layers."""
    layers = []
    for layer in shape.layers:
        weight = by_name[f"{layer.name}.weight"]
        units, outputs = weight.shape[:2]
        # (units, outputs, inputs, taps) -> (units, taps, inputs, outputs)
        taps = weight.reshape(units, outputs, -1, layer.taps).transpose(0, 3, 2, 1)
        layers.append(taps.reshape(units, -1))
        if layer.bias:
            layers.append(by_name[f"{layer.name}.bias"])
    return np.concatenate(layers, axis=1)


def oracle(critic: NeuralCritic, units: Units, *, real: bool = True) -> np.ndarray:
    """Per-unit gradients of one side's loss by Opacus in float64, (units, cells)."""
    copy = NeuralCritic(critic.shape).double()
    copy.load_state_dict(critic.state_dict())
    hooked = GradSampleModule(copy, loss_reduction="sum")
    records, steps, labels = tensors(units, torch.float64)
    records.requires_grad_()  # else its hooks complain
    if steps is not None:
        steps.requires_grad_()
    scores = hooked(records, steps, labels)
    if real:
        real_loss(scores, labels).sum().backward()
    else:
        torch.stack([smooth_hinge(-head) for head in scores.heads()]).sum().backward()
    found = {name: value.grad_sample.numpy() for name, value in copy.named_parameters()}
    hooked.remove_hooks()
    return matrix_form(critic.shape, found)


def blocks_of(shape: CriticShape) -> dict[str, tuple[np.ndarray, float]]:
    """Which cells are of which block, and its share of the squared clip norm."""
    names = np.repeat([layer.block for layer in shape.layers], [layer.cells for layer in shape.layers])
    shares = {"trunk": 0.5, "semantic": 0.25, "temporal": 0.25}
    whole = sum(shares[name] for name in set(names))
    return {name: (names == name, shares[name] / whole) for name in set(names)}


def clipped(shape: CriticShape, gradients: np.ndarray, clip_norm: float) -> np.ndarray:
    """In clip norms."""
    result = gradients / clip_norm
    for cells, share in blocks_of(shape).values():
        norms = np.linalg.norm(result[:, cells], axis=1, keepdims=True)
        result[:, cells] *= np.minimum(1, math.sqrt(share) / np.maximum(norms, 1e-30))
    return result


def written_out(real_side: neural._OneSide, shape: CriticShape, units: Units) -> np.ndarray:
    """Gradients before clipping, (units, cells)."""
    found = real_side.gradients(*units)
    layers, start = [], 0
    for layer in shape.layers:
        if layer.per_step:
            layers.append(found.rows[:, start : start + layer.cells] / shape.steps)
            start += layer.cells
        else:
            factors = found.factors[layer.name]
            matrix = factors.step * factors.left[:, :, np.newaxis] * factors.right[:, np.newaxis].astype(np.float64)
            layers.append(matrix.reshape(len(matrix), -1))
    return np.concatenate(layers, axis=1)


each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


@each_shape
@pytest.mark.parametrize("size", [1.0, 4.0])
def test_gradients_are_those_of_opacus(shape: CriticShape, size: float) -> None:
    critic, units = critic_of(shape, size=size), units_of(shape, 12, seed=1)
    closed = written_out(neural._OneSide(critic, rounded=False), shape, units)
    assert closed.shape == (12, shape.cells)
    assert np.abs(closed - oracle(critic, units)).max() < 1e-10


@each_shape
@pytest.mark.parametrize("clip_norm", [0.2, 1.0, 5.0])
def test_sums_of_integers_are_close_to_the_clipped_sum_of_opacus(shape: CriticShape, clip_norm: float) -> None:
    critic, units = critic_of(shape, size=2.0), units_of(shape, 400, seed=2)
    expected = clipped(shape, oracle(critic, units), clip_norm).sum(axis=0)
    found = integers(critic, units, clip_norm=clip_norm).sum(axis=0) / GRADIENT_SCALE
    # Activations of 8 bits and errors of about 10: half a per cent here, nearly all of it averaged out.
    assert np.linalg.norm(found - expected) < 0.015 * np.linalg.norm(expected)


@each_shape
@pytest.mark.parametrize("clip_norm", [0.05, 1.0, 20.0])
def test_integers_are_within_rounding_of_the_clipped_gradients(shape: CriticShape, clip_norm: float) -> None:
    critic, units = critic_of(shape), units_of(shape, 200, seed=3)
    gradients = written_out(neural._OneSide(critic), shape, units)
    expected = clipped(shape, gradients, clip_norm) * GRADIENT_SCALE
    found = integers(critic, units, clip_norm=clip_norm)
    # A row's cell is rounded to 256 grid units, a factor's cell to at most 512 of an activation times one half; clipped
    # norms are at most 5 * 256 below their share of at least GRADIENT_SCALE / sqrt(4).
    slack = 5 * 256 / (GRADIENT_SCALE / 2)
    assert np.abs(found - expected * (1 - slack / 2)).max() < 256 + slack * GRADIENT_SCALE
    assert (np.abs(found - expected) <= 256 + slack * np.abs(expected)).mean() > 0.99


@st.composite
def extremes(draw: st.DrawFn) -> tuple[NeuralCritic, Units, float]:
    """Few units, nothing or everything hot, parameters of any size, clip norms of any size."""
    shape = draw(st.sampled_from(list(SHAPES.values())))
    size = draw(st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 30.0, 1e4, 1e8, 1e37]))
    critic = critic_of(shape, seed=draw(st.integers(0, 3)), size=size)
    records, steps, labels = units_of(shape, draw(st.integers(0, 5)), seed=draw(st.integers(0, 99)))
    for array in (records, steps):
        if array is not None and draw(st.booleans()):
            array[...] = draw(st.booleans())
    return critic, (records, steps, labels), draw(st.sampled_from([1e-6, 0.1, 1.0, 1e6]))


@given(extremes())
@settings(max_examples=150, deadline=None)
def test_no_norm_exceeds_its_bound(case: tuple[NeuralCritic, Units, float]) -> None:
    critic, units, clip_norm = case
    found = integers(critic, units, clip_norm=clip_norm)
    assert found.shape == (len(units[2]), critic.shape.cells)
    for row in found:
        whole = 0
        for cells, share in blocks_of(critic.shape).values():
            squares = sum(value * value for value in row[cells].tolist())
            assert squares <= math.floor(GRADIENT_SCALE**2 * share)
            whole += squares
        assert whole <= GRADIENT_SCALE**2
    # And the mechanism, which checks again, finds the same.
    mechanism = mechanism_of(critic.shape)
    for factors in clipped_factors(critic, *units, clip_norm=clip_norm):
        norms = mechanism.squared_norms(VectorContributions(factors))
        assert norms.tolist() == [sum(value * value for value in row.tolist()) for row in found]
        assert np.array_equal(mechanism.exact_sum([VectorContributions(factors)]), found.sum(axis=0))


@pytest.mark.parametrize("size", [1.0, 5.0])
def test_clipping_leaves_nearly_all_of_the_norm(size: float) -> None:
    critic, units = critic_of(WINDOWS, size=size), units_of(WINDOWS, 300, seed=4)
    gradients = oracle(critic, units)
    found = integers(critic, units, clip_norm=1e-4)
    for cells, share in blocks_of(WINDOWS).values():
        norms = np.linalg.norm(found[:, cells].astype(float), axis=1)[
            np.linalg.norm(gradients[:, cells], axis=1) > 0.05
        ]
        assert len(norms) > 100
        assert norms.min() > 0.99 * math.sqrt(share) * GRADIENT_SCALE


@each_shape
@pytest.mark.parametrize("size", [1.0, 20.0])
def test_a_units_integers_are_the_same_whatever_stands_beside_it(shape: CriticShape, size: float) -> None:
    critic, units = critic_of(shape, size=size), units_of(shape, 67, seed=5)
    whole = integers(critic, units)
    assert np.abs(whole).sum() > 0
    for micro_batch in (1, 2, 3, 16, 66, 67, 1000):
        assert np.array_equal(integers(critic, units, micro_batch=micro_batch), whole)
    order = np.random.default_rng(6).permutation(67)
    assert np.array_equal(integers(critic, part_of(units, order), micro_batch=13), whole[order])
    for chosen in (slice(1, None), slice(0, 66), slice(40, 41)):
        assert np.array_equal(integers(critic, part_of(units, chosen)), whole[chosen])


@each_shape
def test_removing_a_unit_changes_the_sum_by_its_integers_alone(shape: CriticShape) -> None:
    critic, units = critic_of(shape), units_of(shape, 20, seed=7)
    mechanism = mechanism_of(shape)

    def total(part: Units) -> np.ndarray:
        parts = clipped_factors(critic, *part, clip_norm=0.5, micro_batch=6)
        return mechanism.exact_sum(map(VectorContributions, parts))

    whole = total(units)
    for removed in range(20):
        others = np.delete(np.arange(20), removed)
        alone = integers(critic, part_of(units, [removed]), clip_norm=0.5)[0]
        assert np.array_equal(whole - total(part_of(units, others)), alone)


@given(st.integers(0, 2**32), st.sampled_from([1, 7, 150]), st.sampled_from([1e-9, 1.0, 300.0, 2.0**20]))
@settings(max_examples=100, deadline=None)
def test_products_with_rounded_weights_are_exact_in_any_order(seed: int, inputs: int, size: float) -> None:
    random = np.random.default_rng(seed)
    weights = random.normal(size=(inputs, 3)) ** 3 * size
    weights[random.random(weights.shape) < 0.3] = 0
    largest = 2.0 ** random.integers(0, 14)
    rounded = neural._coarse(weights, axes=(0,), largest=largest)
    assert np.abs(rounded - weights).max() <= max(np.abs(weights).sum(axis=0).max(), 2.0**-40) * largest * 2.0**-22
    # The worst other factors, and any others.
    for operands in (np.sign(rounded) * largest, np.rint(random.uniform(-largest, largest, rounded.shape))):
        order = random.permutation(inputs)
        products = (rounded * operands)[order].astype(np.float32)
        assert np.array_equal(products, (rounded * operands)[order])
        sums = np.add.accumulate(products, axis=0, dtype=np.float32)[-1]
        assert sums.tolist() == [math.fsum(column) for column in (rounded * operands).T]


def test_rounding_up_many_weights_stays_exact() -> None:
    # Six sixths: in 2^24 steps each rounds up, and the sum would be two steps too many.
    rounded = neural._coarse(np.full((6, 1), 1 / 6), axes=(0,), largest=1.0)
    assert np.array_equal(rounded * 2**23, np.rint(rounded * 2**23))
    assert np.abs(rounded - 1 / 6).max() <= 2.0**-24


@pytest.mark.parametrize("steps", [1, 2, 24, 31, 32, 33, 500, 5000])
def test_errors_are_coarse_enough_for_sums_over_steps(steps: int) -> None:
    real_side = neural._OneSide(critic_of(replace(WINDOWS, steps=steps)))
    products = steps * neural._LARGEST_ERROR / (neural._ACTIVATION_GRID * real_side._error_grid)
    assert products <= 2**24
    assert products > 2**22 or real_side._error_grid == neural._FINEST_ERROR_GRID


def test_norms_too_large_for_exact_arithmetic_are_bounded_from_above() -> None:
    real_side = neural._OneSide(critic_of(WINDOWS))
    rows = np.array([[3.0, 4.0], [0.0, 0.0], [2.0**20, 1.0], [-(2.0**20), 2.0**19]], dtype=np.float32)
    norms = real_side._squared_norms(rows)
    # Above, the number of cells times the largest square.
    assert norms.tolist() == [25, 0, 2.0**41, 2.0**41]


def test_norms_of_many_activations_are_exact() -> None:
    real_side = neural._OneSide(critic_of(WINDOWS))
    factors = real_side._factors(np.full((1, 101), 511 / 256, dtype=np.float32), np.zeros((1, 1), dtype=np.float32))
    assert factors.left_norms.tolist() == [101 * 511**2]
    assert factors.left.tolist() == [[511] * 101]


@each_shape
@pytest.mark.parametrize("size", [1.0, 30.0, 1e4])
def test_operands_are_on_their_grids_and_within_bounds(shape: CriticShape, size: float) -> None:
    real_side = neural._OneSide(critic_of(shape, size=size))
    found = real_side.gradients(*units_of(shape, 30, seed=15))
    for name, factors in found.factors.items():
        errors = factors.right / real_side._error_grid
        assert np.array_equal(errors, np.rint(errors)), name
        assert np.abs(factors.right).max() <= neural._LARGEST_ERROR
        assert np.abs(factors.left).max() <= 512
    cells = found.rows / (neural._ACTIVATION_GRID * real_side._error_grid)
    assert np.array_equal(cells, np.rint(cells))
    assert np.abs(found.rows).max(initial=0) <= shape.steps * neural._LARGEST_ERROR


def permuted(arrays: dict[str, np.ndarray], orders: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same critic with its bins, hidden units and channels in other orders; by parameter, (units, *shape)."""
    width, channels, pool, hidden = (orders[name] for name in ("width", "channels", "pool", "hidden"))
    rows = {
        "record_embedding": (width, orders["bins"]),
        "step_embedding": (width, orders["step_bins"]),
        "convolutions.0": (channels, width),
        "convolutions.1": (channels, channels),
        "convolutions.2": (channels, channels),
        "pool": (pool, np.concatenate([channels, len(channels) + width])),
        "temporal_scores": (None, pool),
        "semantic_hidden": (hidden, width),
        "semantic_scores": (None, hidden),
    }
    result = {}
    for name, array in arrays.items():
        outputs, inputs = rows[name.rsplit(".", 1)[0]]
        ordered = array if outputs is None else array[:, outputs]
        result[name] = ordered[:, :, inputs] if name.endswith("weight") else ordered
    return result


@pytest.mark.parametrize("size", [1.0, 8.0])
def test_no_order_of_any_sum_changes_an_integer(size: float) -> None:
    """A network with its parts in another order is the same function, but adds in another order everywhere."""
    shape = replace(WINDOWS, width=19, channels=23, steps=13)
    critic, units = critic_of(shape, size=size), units_of(shape, 2000, seed=16)
    random = np.random.default_rng(17)
    lengths = {"width": 19, "channels": 23, "pool": 23, "hidden": 19, "bins": shape.record_bins, "step_bins": 8}
    orders = {name: random.permutation(length) for name, length in lengths.items()}
    other = initialise_critic(shape, seed=1)
    parameters = {name: array[np.newaxis] for name, array in critic_parameters(critic).items()}
    load_critic(other, {name: array[0] for name, array in permuted(parameters, orders).items()})
    numbers, start = {}, 0
    for name, array in parameters.items():
        numbers[name] = np.arange(start, start + array.size).reshape(array.shape)
        start += array.size
    assert units[1] is not None
    moved = units[0][:, orders["bins"]], units[1][:, :, orders["step_bins"]], units[2]
    before, after = np.empty((2000, shape.cells), dtype=np.int64), np.empty((2000, shape.cells), dtype=np.int64)
    before[:, matrix_form(shape, numbers)[0]] = integers(critic, units, clip_norm=0.7)
    after[:, matrix_form(shape, permuted(numbers, orders))[0]] = integers(other, moved, clip_norm=0.7)
    assert np.array_equal(before, after)


def test_large_errors_are_measured_in_any_order() -> None:
    shape = replace(SHAPES["records alone"], width=70)
    real_side = neural._OneSide(critic_of(shape))
    random = np.random.default_rng(21)
    errors = real_side._error_grid * random.integers(-4096, 4097, (100_000, 70)).astype(np.float32)
    order = random.permutation(70)
    results = []
    for right in (errors.copy(), errors[:, order]):
        factors = neural._Factors(np.ones((100_000, 12), dtype=bool), np.full(100_000, 12.0), right, step=1.0)
        found = neural._Gradients(np.empty((100_000, 0), dtype=np.float32), {"record_embedding": factors})
        real_side._clip(real_side._blocks[0], found, clip_norm=0.7)
        results.append(factors.right)
    assert np.abs(results[0]).max() > 100
    assert np.array_equal(results[0][:, order], results[1])


def test_a_norm_that_rounding_takes_above_the_bound_is_brought_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neural, "_SLACK", -100.0 * 256)
    critic, units = critic_of(WINDOWS), units_of(WINDOWS, 50, seed=18)
    found = integers(critic, units, clip_norm=0.01)
    for cells, share in blocks_of(WINDOWS).values():
        norms = [sum(value * value for value in row) for row in found[:, cells].tolist()]
        assert max(norms) <= GRADIENT_SCALE**2 * share
        assert max(norms) > 0.95 * GRADIENT_SCALE**2 * share


def test_a_record_without_a_bin_adds_nothing_to_the_embedding() -> None:
    critic, (records, steps, labels) = critic_of(WINDOWS), units_of(WINDOWS, 3, seed=19)
    records[1] = False
    ((first, *_),) = clipped_factors(critic, records, steps, labels, clip_norm=1e-6)
    assert first[1][[0, 2]].any()
    assert not first[1][1].any()


def test_a_step_of_a_critic_is_the_plain_one_if_nothing_is_clipped() -> None:
    """The gradient of real and fake halves together, cell by cell in the right parameters."""
    units, fakes = units_of(WINDOWS, 30, seed=8), units_of(WINDOWS, 20, seed=9)
    critic, plain = critic_of(WINDOWS), critic_of(WINDOWS)
    gradient = oracle(critic, units).mean(axis=0) + oracle(critic, fakes, real=False).mean(axis=0)
    apply_gradient(critic, torch.optim.SGD(critic.parameters(), lr=0.5), gradient)
    loss = real_loss(plain(*tensors(units)), tensors(units)[2]).mean()
    loss = loss + sum(smooth_hinge(-head).mean() for head in plain(*tensors(fakes)).heads())
    loss.backward()
    for name, value in plain.named_parameters():
        assert value.grad is not None
        moved = value - 0.5 * value.grad
        assert torch.allclose(critic.get_parameter(name), moved, atol=1e-6), name
        assert not torch.allclose(value, moved, atol=1e-4), name


@each_shape
@pytest.mark.parametrize("clip_norm", [0.2, 1.0, 5.0])
def test_fakes_are_clipped_like_real_units(shape: CriticShape, clip_norm: float) -> None:
    critic, units = critic_of(shape, size=2.0), units_of(shape, 400, seed=2)
    expected = clip_norm * clipped(shape, oracle(critic, units, real=False), clip_norm).mean(axis=0)
    found = fake_gradient(critic, *units, clip_norm=clip_norm)
    assert np.linalg.norm(found - expected) < 0.015 * np.linalg.norm(expected)


def test_a_critic_that_is_clipped_hard_calls_neither_side_by_one_name() -> None:
    """Where a real unit's gradient is clipped to a twentieth and a fake's is not, all looks fake after a few steps."""
    shape = replace(WINDOWS, classes=2)
    units, fakes = units_of(shape, 300, seed=14), units_of(shape, 300, seed=15)
    critic = trained(shape, units, fakes, rounds=30, clip_norm=0.05)
    with torch.no_grad():
        for head in ("semantic", "temporal"):
            called_real = float((getattr(critic(*tensors(units)), head) > 0).float().mean())
            assert 0.2 < called_real < 0.8, head


def test_a_released_sum_becomes_a_mean_gradient() -> None:
    gradient = real_gradient(np.array([GRADIENT_SCALE, -3 * GRADIENT_SCALE]), clip_norm=0.5, units=10.0)
    assert gradient.tolist() == pytest.approx([0.05, -0.15])


def test_a_gradient_of_another_critic_is_refused() -> None:
    critic = critic_of(WINDOWS)
    with pytest.raises(ValueError, match="one cell for each parameter"):
        apply_gradient(critic, torch.optim.SGD(critic.parameters(), lr=0.5), np.zeros(3))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("size", [0.0, 1.0, 1e3], ids=["no noise", "as much as a gradient", "far more"])
def test_whatever_noise_does_half_of_the_fakes_pass_after_the_last_step(name: str, size: float) -> None:
    shape, step, units = SHAPES[name], 0.05, 300.0
    released = size * units * GRADIENT_SCALE * np.random.default_rng(1).normal(size=shape.cells)
    fakes = units_of(shape, 1001, seed=2)
    critic, other, before = (critic_of(shape) for _ in range(3))
    for one, last in ((critic, True), (before, False)):
        improve(one, torch.optim.SGD(one.parameters(), step), released, fakes, clip_norm=1.0, units=units, last=last)
    for scores in critic(*tensors(fakes)).heads():
        assert scores.median().item() == pytest.approx(0, abs=1e-5 * (1 + scores.abs().max().item()))
    # No unit stands nearer to another for it, and nothing else moves.
    gradient = real_gradient(released, clip_norm=1.0, units=units) + fake_gradient(other, *fakes, clip_norm=1.0)
    apply_gradient(other, torch.optim.SGD(other.parameters(), step), gradient)
    assert all(torch.equal(value, other.get_parameter(one)) for one, value in before.named_parameters())
    moved = {one for one, value in critic.named_parameters() if not torch.equal(value, other.get_parameter(one))}
    assert moved == {f"{head}_scores.bias" for head in ("semantic", "temporal") if getattr(shape, head)}
    for one in moved:
        assert torch.equal(critic.get_parameter(one)[1:], other.get_parameter(one)[1:])


def trained(shape: CriticShape, real: Units, fakes: Units, *, rounds: int, clip_norm: float) -> NeuralCritic:
    """A critic after some steps on exact sums of clipped gradients, as released without noise."""
    critic, mechanism = critic_of(shape), mechanism_of(shape)
    optimiser = torch.optim.Adam(critic.parameters(), lr=0.02)
    for _ in range(rounds):
        parts = clipped_factors(critic, *real, clip_norm=clip_norm)
        released = mechanism.exact_sum(map(VectorContributions, parts))
        gradient = real_gradient(released, clip_norm=clip_norm, units=len(real[2]))
        apply_gradient(critic, optimiser, gradient + fake_gradient(critic, *fakes, clip_norm=clip_norm))
    return critic


def accuracy(critic: NeuralCritic, head: str, real: Units, fakes: Units) -> float:
    with torch.no_grad():
        shares = [
            float((sign * getattr(critic(*tensors(units)), head) > 0).float().mean())
            for units, sign in ((real, 1), (fakes, -1))
        ]
    return sum(shares) / 2


def test_the_semantic_head_learns_what_pairs_with_the_label() -> None:
    """Real records say their label in one column; those of fakes are of another label. Neither shows in a margin."""
    shape = replace(SHAPES["records alone"], classes=2, width=8)
    units = units_of(shape, 600, seed=10)
    real_labels = units[0][:, 0].astype(np.int64)
    real, fakes = (units[0], None, real_labels), (units[0], None, 1 - real_labels)
    critic = trained(shape, part_of(real, slice(0, 300)), part_of(fakes, slice(0, 300)), rounds=60, clip_norm=1.0)
    held_out = part_of(real, slice(300, 600)), part_of(fakes, slice(300, 600))
    assert accuracy(critic, "semantic", *held_out) > 0.95
    with torch.no_grad():
        classes = critic(*tensors(held_out[0])).classes
    assert float((classes.argmax(dim=1).numpy() == held_out[0][2]).mean()) > 0.95


def test_the_temporal_head_learns_the_order_of_steps() -> None:
    """Fakes are the real windows with their steps shuffled, so that every one-step table is the same."""
    shape = replace(WINDOWS, steps=8, step_bins=4, classes=2, width=8, channels=8)
    random = np.random.default_rng(11)
    states = np.cumsum(random.random((800, 8)) < 0.4, axis=1) + random.integers(0, 4, (800, 1))
    steps = np.eye(4, dtype=bool)[states % 4]
    records, labels = units_of(shape, 800, seed=12)[0], random.integers(0, 2, 800)
    shuffled = np.take_along_axis(steps, np.argsort(random.random((800, 8)), axis=1)[:, :, np.newaxis], axis=1)
    real, fakes = (records, steps, labels), (records, shuffled, labels)
    critic = trained(shape, part_of(real, slice(0, 400)), part_of(fakes, slice(0, 400)), rounds=60, clip_norm=1.0)
    held_out = part_of(real, slice(400, 800)), part_of(fakes, slice(400, 800))
    assert accuracy(critic, "temporal", *held_out) > 0.85
    # A head that sees the mean over steps alone cannot know.
    assert accuracy(critic, "semantic", *held_out) < 0.65


def test_a_generator_can_follow_each_head() -> None:
    critic = critic_of(WINDOWS)
    records, steps, labels = tensors(units_of(WINDOWS, 6, seed=13))
    assert steps is not None
    relaxed = [torch.full_like(values, 0.3).requires_grad_() for values in (records, steps)]
    losses = generator_loss(critic(*relaxed, labels))
    assert losses.shape == (2,)
    for head in range(2):
        slopes = torch.autograd.grad(losses[head], relaxed, retain_graph=True)
        with torch.no_grad():
            moved = [values - slope for values, slope in zip(relaxed, slopes, strict=True)]
            assert generator_loss(critic(*moved, labels))[head] < losses[head]


def test_heads_that_are_off_say_nothing() -> None:
    semantic, temporal = SHAPES["records alone"], SHAPES["temporal head"]
    scores = critic_of(semantic)(*tensors(units_of(semantic, 2, seed=0)))
    assert scores.temporal is None
    assert [head.shape for head in scores.heads()] == [(2,)]
    scores = critic_of(temporal)(*tensors(units_of(temporal, 2, seed=0)))
    assert scores.semantic is None
    assert scores.classes is None
    with pytest.raises(ValueError, match="a semantic or a temporal head"):
        replace(semantic, semantic=False)
    with pytest.raises(ValueError, match="needs windows"):
        replace(semantic, temporal=True)


def test_an_empty_step_is_embedded_as_zero() -> None:
    critic = critic_of(SHAPES["semantic head over windows"])
    with torch.no_grad():
        assert not critic.step_embedding(torch.zeros(2, 6, 8)).any()


def test_the_loss_is_a_smooth_hinge() -> None:
    scores = torch.tensor([-1000.0, -1.0, 0.0, 1.0, 1000.0], requires_grad=True, dtype=torch.float64)
    loss = smooth_hinge(scores)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([1000.00025, 1.2071, 0.5, 0.2071, 0.00025], rel=1e-3)
    assert scores.grad is not None
    assert scores.grad.tolist() == pytest.approx(neural._slope(scores.detach().numpy()).tolist())
    assert (scores.grad < 0).all()
    assert (scores.grad > -1).all()


def test_a_critic_of_the_usual_size_is_small() -> None:
    shape = CriticShape(
        record_bins=250, steps=24, step_bins=90, classes=2, width=16, channels=16, semantic=True, temporal=True
    )
    assert shape.cells < 10_000
    assert shape.cells == sum(value.numel() for value in critic_of(shape).parameters()) == mechanism_of(shape).cells


def test_a_new_critic_sends_an_error_to_every_layer() -> None:
    critic = critic_of(replace(WINDOWS, width=16, channels=16, steps=12))
    gradients, start = oracle(critic, units_of(critic.shape, 100, seed=20)), 0
    for layer in critic.shape.layers:
        norms = np.linalg.norm(gradients[:, start : start + layer.cells], axis=1)
        start += layer.cells
        assert norms.mean() > 0.05, layer.name


@each_shape
def test_cells_count_the_parameters(shape: CriticShape) -> None:
    assert shape.cells == sum(value.numel() for value in critic_of(shape).parameters()) == mechanism_of(shape).cells


def test_a_seed_makes_the_same_critic_and_leaves_other_random_numbers_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = critic_parameters(initialise_critic(WINDOWS, seed=3))
    assert torch.equal(torch.rand(3), expected)
    second = critic_parameters(initialise_critic(WINDOWS, seed=3))
    other = critic_parameters(initialise_critic(WINDOWS, seed=4))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert not any(np.array_equal(first[name], other[name]) for name in first)


def test_parameters_travel() -> None:
    source, target = initialise_critic(WINDOWS, seed=1), initialise_critic(WINDOWS, seed=2)
    arrays = critic_parameters(source)
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    load_critic(target, arrays)
    for array in arrays.values():
        array[...] = 0
    units = tensors(units_of(WINDOWS, 3, seed=0))
    with torch.no_grad():
        for first, second in zip(source(*units).heads(), target(*units).heads(), strict=True):
            assert torch.equal(first, second)


def test_parameters_of_another_critic_are_refused() -> None:
    critic = critic_of(WINDOWS)
    arrays = critic_parameters(critic)
    name = "pool.weight"
    wrong: list[tuple[dict[str, np.ndarray], str]] = [
        ({key: array for key, array in arrays.items() if key != name}, "other parameters"),
        (arrays | {name: arrays[name].T}, "another shape or type"),
        (arrays | {name: arrays[name].astype(np.float64)}, "another shape or type"),
        (arrays | {name: np.full_like(arrays[name], np.nan)}, "not finite"),
    ]
    for replaced, message in wrong:
        with pytest.raises(ValueError, match=message):
            load_critic(critic, replaced)
    with torch.no_grad():
        critic.pool.weight[0, 0] = torch.inf
    with pytest.raises(ValueError, match="not finite"):
        integers(critic, units_of(WINDOWS, 2, seed=0))


def test_units_of_another_shape_are_refused() -> None:
    critic = critic_of(WINDOWS)
    records, steps, labels = units_of(WINDOWS, 4, seed=0)
    assert steps is not None
    wrong: list[tuple[Any, str]] = [
        ((records[:3], steps, labels), "records"),
        ((records[:, 1:], steps, labels), "records"),
        ((records.astype(np.float32), steps, labels), "records"),
        ((records, None, labels), "steps"),
        ((records, steps[:3], labels), "steps"),
        ((records, steps[:, 1:], labels), "steps"),
        ((records, steps.astype(np.int8), labels), "steps"),
        ((records, steps, labels - 1 - labels.min()), "labels"),
        ((records, steps, labels + WINDOWS.classes), "labels"),
    ]
    for units, message in wrong:
        with pytest.raises(ValueError, match=message):
            integers(critic, units)
    for clip_norm in (0.0, -1.0, math.nan, math.inf, 1e-7):
        with pytest.raises(ValueError, match="clip_norm"):
            integers(critic, (records, steps, labels), clip_norm=clip_norm)
    alone = critic_of(SHAPES["records alone"])
    with pytest.raises(ValueError, match="steps"):
        integers(alone, (records, steps, labels))
    assert len(list(itertools.islice(clipped_factors(critic, records, steps, labels, clip_norm=1.0), 5))) == 1
