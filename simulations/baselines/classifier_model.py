"""Classifiers of the label's positive class over bins: a logistic regression, or a network with one hidden layer.

What a unit adds to a noised gradient is written in integers, for a mechanism that checks, adds and noises them. A
unit's integers must depend on that unit and the parameters alone. Here no order of summation can matter: features are
whole numbers, parameters are taken on a grid, and every matrix product and every norm is a sum of whole numbers below
2^53, which float64 holds exactly. All else is element by element, in operations that IEEE 754 rounds correctly; the
probability is read from a table.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import torch
from scipy.special import expit
from torch.nn.functional import binary_cross_entropy_with_logits

from common.data.queries import Coded
from common.privacy.vectors import VectorContributions, VectorLayer, VectorMechanism
from common.study import Study

Parameters = Mapping[str, np.ndarray]
"""By layer a matrix, the bias in its last row: "hidden", (features, width), where there is one, and "scores",
(features or width + 1,)."""

HIDDEN: Final = "hidden"
SCORES: Final = "scores"
WHOLE: Final = 120
"""What a feature of 1 is in grid units: a multiple of most numbers of steps in a block that fits into a byte."""
GRADIENT_SCALE: Final = 2**24
"""Grid units in the longest gradient that a unit may have."""

_SHARES: Final = {HIDDEN: 0.9, SCORES: 0.1}
"""Parts of the square of the longest gradient; the hidden layer has nearly all parameters, and needs nearly all."""
_SCORES_CLIP: Final = 0.5
"""The longest gradient of the scores of hidden units; half of the first ones are shorter."""
_SPREAD: Final = 0.1
"""Standard deviation of the hidden layer's first weights: small, so that what is learned soon outweighs them."""
_BATCH: Final = 256
_DECAY: Final = 0.5
_ROWS: Final = 4096

_PARAMETER_GRID: Final = 2.0**-12
_LARGEST_PARAMETER: Final = 2.0**6
_ACTIVATION_GRID: Final = 2.0**-8
_LARGEST_ACTIVATION: Final = 2.0**12
_LOGIT_GRID: Final = 2.0**-8
_LARGEST_LOGIT: Final = 16.0
_ERROR_GRID: Final = 2.0**-16
_MOST_FEATURES: Final = 2**20
# As many as the study allows: then the squares of hidden errors, below 2^44 each, add up to less than 2^53.
_MOST_WIDTH: Final = 128
_TABLE: Final = np.rint(
    expit(np.arange(-_LARGEST_LOGIT / _LOGIT_GRID, _LARGEST_LOGIT / _LOGIT_GRID + 1) * _LOGIT_GRID) / _ERROR_GRID
)
"""The probability at each logit of the grid, in steps of the errors' grid."""


@dataclass(frozen=True)
class FeatureShape:
    """How a unit's bins become features.

    One-hot bins of its columns; then of each block of steps, channel by channel, the share of the steps in each bin;
    then a constant.

    sizes: bins of each column, then of each channel.
    columns: how many of them are of the record.
    blocks: of the windows, first step and the one after the last.
    """

    sizes: tuple[int, ...]
    columns: int
    blocks: tuple[tuple[int, int], ...]

    @property
    def cells(self) -> int:
        """Features, the constant included."""
        return sum(self.sizes[: self.columns]) + len(self.blocks) * sum(self.sizes[self.columns :]) + 1

    @property
    def most_squares(self) -> int:
        """The largest squared norm of a unit's features, in features of 1: one a column, channel and block; exact."""
        return self.columns + len(self.blocks) * (len(self.sizes) - self.columns) + 1

    def column(self, position: int) -> slice:
        """Which features are of a column."""
        start = sum(self.sizes[:position])
        return slice(start, start + self.sizes[position])


def feature_shape(study: Study, sizes: Sequence[int]) -> FeatureShape:
    """Of a study over so many bins a column, then a channel."""
    return FeatureShape(tuple(sizes), len(study.measured), () if study.windows is None else study.windows.blocks)


def features_of(coded: Coded, shape: FeatureShape) -> np.ndarray:
    """Features of rows in bins, (rows, cells) int8, in grid units of which `WHOLE` are 1.

    Guarantees: a row's features depend on that row alone; their squared norm is at most WHOLE^2 * most_squares, since
    the shares of a channel in a block are rounded down and add up to at most 1.
    Edge cases: a unit without a step in a block has no share there.
    """
    rows = len(coded.labels)
    found = np.zeros((rows, shape.cells), dtype=np.int8)
    found[:, -1] = WHOLE
    for position in range(shape.columns):
        found[np.arange(rows), shape.column(position).start + coded.records[:, position]] = WHOLE
    if coded.windows is None:
        return found
    start = sum(shape.sizes[: shape.columns])
    for first, end in shape.blocks:
        for channel, size in enumerate(shape.sizes[shape.columns :]):
            bins = coded.windows[:, first:end, channel]
            row, step = np.nonzero(bins >= 0)
            counts = np.bincount(row * size + bins[row, step], minlength=rows * size).reshape(rows, size)
            steps = np.maximum(counts.sum(axis=1, keepdims=True), 1)
            found[:, start : start + size] = WHOLE * counts // steps
            start += size
    return found


@dataclass(frozen=True)
class ClassifierShape:
    """What fixes a classifier's parameters and its gradients.

    features: of a unit.
    width: hidden units; 0: none, a logistic regression.
    clip_norm: the longest gradient of the layer over the features, as a share of the longest features; at 1 nothing of
        a logistic regression is clipped.
    """

    features: FeatureShape
    width: int
    clip_norm: float

    def __post_init__(self) -> None:
        """Refuse what float64 could not add up exactly."""
        if not 0 <= self.width <= _MOST_WIDTH or self.features.cells > _MOST_FEATURES:
            raise ValueError(f"classifier: expected at most {_MOST_WIDTH} hidden units and {_MOST_FEATURES} features")

    @property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Shape of each layer, in order."""
        if not self.width:
            return {SCORES: (self.features.cells,)}
        return {HIDDEN: (self.features.cells, self.width), SCORES: (self.width + 1,)}

    @property
    def cells(self) -> int:
        """Parameters in all."""
        return sum(math.prod(size) for size in self.parameters.values())

    @cached_property
    def blocks(self) -> dict[str, "Block"]:
        """Of each layer."""
        longest = self.clip_norm * math.sqrt(self.features.most_squares)
        if not self.width:
            return {SCORES: Block(GRADIENT_SCALE, longest)}
        hidden = math.isqrt(math.floor(_SHARES[HIDDEN] * GRADIENT_SCALE**2))
        scores = math.isqrt(GRADIENT_SCALE**2 - hidden**2)
        return {HIDDEN: Block(hidden, longest), SCORES: Block(scores, _SCORES_CLIP)}

    @property
    def mechanism(self) -> VectorMechanism:
        """Of the sum of all units' gradients: a layer's inputs times its outputs, layer by layer."""
        layers = [VectorLayer(size[0], math.prod(size[1:])) for size in self.parameters.values()]
        return VectorMechanism(tuple(layers), GRADIENT_SCALE)

    def mean_gradient(self, released: np.ndarray, *, units: float) -> dict[str, np.ndarray]:
        """The gradient of the mean loss, float64, by layer.

        Args:
            released: (cells,), the noised sum in grid units.
            units: an estimate of their number, from an earlier release; > 0.
        """
        ends = np.cumsum([math.prod(size) for size in self.parameters.values()])[:-1]
        found = {}
        for (name, size), part in zip(self.parameters.items(), np.split(released, ends), strict=True):
            block = self.blocks[name]
            found[name] = part.reshape(size) * (block.clip_norm / block.bound / units)
        return found


@dataclass(frozen=True)
class Block:
    """A layer's part of a unit's gradient: the bound of its norm, in grid units, and what that bound stands for."""

    bound: int
    clip_norm: float


def initialise(shape: ClassifierShape, *, positive_share: float, seed: int) -> dict[str, np.ndarray]:
    """A classifier that says of everybody about what is true of the mean, float32."""
    prior = math.log(positive_share / (1 - positive_share))
    if not shape.width:
        return {SCORES: np.append(np.zeros(shape.features.cells - 1), prior).astype(np.float32)}
    random = np.random.default_rng(seed)
    hidden = random.normal(scale=_SPREAD, size=shape.parameters[HIDDEN])
    hidden[-1] = 0.0
    scores = random.normal(scale=1 / math.sqrt(shape.width), size=shape.width)
    return {HIDDEN: hidden.astype(np.float32), SCORES: np.append(scores, prior).astype(np.float32)}


def check_parameters(found: Parameters, shape: ClassifierShape) -> None:
    """Refuse what are not a classifier's parameters.

    Raises:
        ValueError: other layers, shapes or types, or a value that is not finite.
    """
    sizes = {name: array.shape for name, array in found.items()}
    if sizes != shape.parameters or any(array.dtype != np.float32 for array in found.values()):
        raise ValueError("classifier: other parameters than expected")
    if not all(bool(np.isfinite(array).all()) for array in found.values()):
        raise ValueError("classifier: a parameter is not finite")


def logits(parameters: Parameters, features: np.ndarray) -> np.ndarray:
    """Log odds of the positive class, (rows,) float64; features: from `features_of`."""
    found = np.empty(len(features))
    layers = {name: array.astype(np.float64) for name, array in parameters.items()}
    for begin in range(0, len(features), _ROWS):
        inputs = features[begin : begin + _ROWS] / WHOLE
        if HIDDEN in layers:
            inputs = np.maximum(inputs @ layers[HIDDEN], 0.0)
            inputs = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)
        found[begin : begin + _ROWS] = inputs @ layers[SCORES]
    return found


def clipped_gradients(
    shape: ClassifierShape, parameters: Parameters, features: np.ndarray, positive: np.ndarray
) -> VectorContributions:
    """Every unit's clipped gradient of its logistic loss, in integers.

    Guarantees: a unit's vector has an exact L2 norm of at most GRADIENT_SCALE; it depends on that unit's row and the
    parameters and on nothing else, to the last bit, whatever the other units, their order and the matrix library.
    Edge cases: no units -> none; a parameter beyond 64 counts as 64.

    Each layer's part is clipped on its own, by scaling its errors and rounding them towards 0.

    Args:
        shape: of the classifier.
        parameters: public; as `check_parameters` passes them.
        features: (units, cells) int8, from `features_of`.
        positive: (units,) bool, who has the positive class.

    Returns:
        an outer product a unit and layer, in the order of `shape.parameters`.
    """
    inputs = features.astype(np.float64)
    if not shape.width:
        errors = _errors(inputs @ _whole(parameters[SCORES]), _PARAMETER_GRID / WHOLE, positive)
        block = shape.blocks[SCORES]
        return VectorContributions((_clipped(features, inputs, errors[:, np.newaxis], block, 1 / WHOLE),))
    scores = _whole(parameters[SCORES])
    sums = inputs @ _whole(parameters[HIDDEN])  # (units, width), in steps of _PARAMETER_GRID / WHOLE
    active = sums > 0
    sums *= _PARAMETER_GRID / WHOLE / _ACTIVATION_GRID
    hidden = np.rint(np.clip(sums, 0.0, _LARGEST_ACTIVATION / _ACTIVATION_GRID))
    seen = np.concatenate([hidden, np.full((len(hidden), 1), 1 / _ACTIVATION_GRID)], axis=1)
    errors = _errors(seen @ scores, _PARAMETER_GRID * _ACTIVATION_GRID, positive)[:, np.newaxis]
    back = np.rint(errors * scores[:-1] * _PARAMETER_GRID) * active
    return VectorContributions(
        (
            _clipped(features, inputs, back, shape.blocks[HIDDEN], 1 / WHOLE),
            _clipped(seen.astype(np.int32), seen, errors, shape.blocks[SCORES], _ACTIVATION_GRID),
        )
    )


def _whole(weights: np.ndarray) -> np.ndarray:
    """Parameters as whole numbers of steps of their grid, float64."""
    bounded = np.clip(weights.astype(np.float64), -_LARGEST_PARAMETER, _LARGEST_PARAMETER)
    whole: np.ndarray = np.rint(bounded / _PARAMETER_GRID)
    return whole


def _errors(sums: np.ndarray, step: float, positive: np.ndarray) -> np.ndarray:
    """Probability less truth, (units,), in steps of the errors' grid; sums: logits in units of `step`."""
    places = np.rint(np.clip(sums * step, -_LARGEST_LOGIT, _LARGEST_LOGIT) / _LOGIT_GRID) + len(_TABLE) // 2
    errors: np.ndarray = _TABLE[places.astype(np.int64)] - positive / _ERROR_GRID
    return errors


def _clipped(
    left: np.ndarray, exact: np.ndarray, errors: np.ndarray, block: Block, step: float
) -> tuple[np.ndarray, np.ndarray]:
    """A layer's factors, (units, 1, inputs) and (units, 1, outputs), integers.

    Args:
        left: (units, inputs), whole numbers of `step`.
        exact: the same as float64.
        errors: (units, outputs), whole numbers of the errors' grid.
        block: of the layer.
        step: see `left`.
    """
    norms = np.sqrt(np.vecdot(exact, exact)) * np.sqrt(np.vecdot(errors, errors))
    plain = step * _ERROR_GRID * block.bound / block.clip_norm
    # One grid unit less than the bound is far more than the rounding of these few operations.
    factors = np.minimum(plain, (block.bound - 1) / np.maximum(norms, 1.0))
    right = np.trunc(errors * factors[:, np.newaxis]).astype(np.int32)
    return left[:, np.newaxis], right[:, np.newaxis]


def train_locally(
    parameters: Parameters,
    features: np.ndarray,
    positive: np.ndarray,
    *,
    passes: int,
    rates: tuple[float, float],
    seed: int,
    device: torch.device,
) -> dict[str, np.ndarray]:
    """Passes over rows in small batches, without any privacy; parameters, float32.

    Args:
        parameters: to begin with.
        features: (rows, cells) int8, from `features_of`.
        positive: (rows,) bool.
        passes: over all rows.
        rates: learning rate of the first pass and after the last one.
        seed: of the order of rows.
        device: where to compute.
    """
    layers = {
        name: torch.tensor(array, dtype=torch.float32, device=device, requires_grad=True)
        for name, array in parameters.items()
    }
    random = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(layers.values(), lr=rates[0], weight_decay=_DECAY)
    inputs, labels = torch.from_numpy(features), torch.from_numpy(positive.astype(np.float32))
    for number in range(passes):
        for group in optimiser.param_groups:
            group["lr"] = rates[0] + (rates[1] - rates[0]) * number / passes
        for rows in torch.randperm(len(labels), generator=random).split(_BATCH):  # type: ignore[no-untyped-call]
            seen = inputs[rows].to(device=device, dtype=torch.float32) / WHOLE
            if HIDDEN in layers:
                seen = torch.relu(seen @ layers[HIDDEN])
                seen = torch.cat([seen, seen.new_ones(len(rows), 1)], dim=1)
            loss = binary_cross_entropy_with_logits(seen @ layers[SCORES], labels[rows].to(device))
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return {name: layer.detach().cpu().numpy() for name, layer in layers.items()}
