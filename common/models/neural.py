"""The neural form of the semantic and temporal discriminators: one trunk, two heads, trained on noised gradients.

Only the real half of a critic's loss is private. `clipped_factors` writes every unit's clipped gradient in integers,
for a mechanism that checks, adds and noises them; all else here sees that release, fakes and parameters, and is
post-processing. Fakes are clipped in the same way: otherwise the real half would weigh less than theirs, and a critic
would learn to call everything fake.

A unit's integers must depend on that unit and the parameters alone. Float sums would break this: a matrix library may
add in another order when a neighbour leaves the batch, and a last bit can move an integer. Here no order can matter:
operands of matrix products are rounded to grids so coarse that float32 holds every partial sum exactly, and everything
else is element by element, in operations that IEEE 754 rounds correctly (so neither tanh nor exp). The rounding moves a
unit's gradient by about one per cent, and the mean of thousands of units by one or two in a thousand.

Sources: Miyato and Koyama 2018 (projection discriminator); Odena et al. 2017 (auxiliary classifier); algorithm notes,
sections 6 and 7.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from common.privacy.vectors import VectorContributions, VectorLayer, VectorMechanism

# Grid units of one integer where few digits do: in rows of cells, and beside a one-hot record.
_STEP = 256
GRADIENT_SCALE = 4095 * _STEP
"""Grid units in a clip norm: fine enough for rounding to vanish in any noise."""

_DILATIONS = (1, 2, 4)
# Ten to twenty columns then add up to about 1.
_EMBEDDING_SPREAD = 0.25
_SHARES = {"trunk": 0.50, "semantic": 0.25, "temporal": 0.25}
# Small: it feeds the trunk with what separates the classes, and must not outweigh real against fake.
_CLASS_WEIGHT = 0.25
# Integers below it are exact in float32, and so are multiples of any grid below as many of its steps.
_EXACT = 2.0**24
_ACTIVATION_GRID = 2.0**-8
_LARGEST_ERROR = 4.0
_FINEST_ERROR_GRID = 2.0**-10
_LARGEST_PARAMETER = 2.0**20
# Three standard deviations and more of what rounding adds to a norm, in grid units; the few above are rounded down.
_SLACK = 4.0 * _STEP
_TINY = 1e-30
_CACHED = 640_000
"""Floats of records that are worked on at a time."""
_CLIP_NORMS = (1e-6, 1e6)


@dataclass(frozen=True)
class LayerShape:
    """One layer's parameters as a matrix: a row for each input (of each tap of a convolution, in order), the bias last.

    name: of the module.
    block: whose share of the clip norm its gradient has.
    per_step: whether it works on every step of a window, so that its gradient is a mean over steps.
    """

    name: str
    block: Literal["trunk", "semantic", "temporal"]
    inputs: int
    outputs: int
    taps: int = 1
    bias: bool = True
    per_step: bool = False

    @property
    def rows(self) -> int:
        """Of the matrix."""
        return self.taps * self.inputs + self.bias

    @property
    def cells(self) -> int:
        """Parameters of the layer."""
        return self.rows * self.outputs


@dataclass(frozen=True)
class CriticShape:
    """What fixes a critic's parameters.

    record_bins: one-hot length of a unit's static columns.
    steps, step_bins: length of a window and one-hot length of its channels at one step; 0 without windows.
    classes: of the label.
    width: of the embeddings and of the semantic head.
    channels: of the convolutions.
    semantic, temporal: which heads there are; one at least.
    """

    record_bins: int
    steps: int
    step_bins: int
    classes: int
    width: int
    channels: int
    semantic: bool
    temporal: bool

    def __post_init__(self) -> None:
        """Refuse what no critic can be."""
        if not (self.semantic or self.temporal):
            raise ValueError("critic: expected a semantic or a temporal head")
        if self.temporal and not self.steps:
            raise ValueError("critic: a temporal head needs windows")

    @cached_property
    def layers(self) -> tuple[LayerShape, ...]:
        """In the order in which gradients list them; those per step stand together."""
        width, channels, classes = self.width, self.channels, self.classes
        layers = [LayerShape("record_embedding", "trunk", self.record_bins, width, bias=False)]
        if self.steps:
            layers.append(LayerShape("step_embedding", "trunk", self.step_bins, width, bias=False, per_step=True))
        if self.temporal:
            for number in range(len(_DILATIONS)):
                inputs = channels if number else width
                layers.append(LayerShape(f"convolutions.{number}", "temporal", inputs, channels, taps=3, per_step=True))
            layers.append(LayerShape("pool", "temporal", channels + width, channels))
            layers.append(LayerShape("temporal_scores", "temporal", channels, 1 + classes))
        if self.semantic:
            layers.append(LayerShape("semantic_hidden", "semantic", width, width))
            layers.append(LayerShape("semantic_scores", "semantic", width, 1 + 2 * classes))
        return tuple(layers)

    @property
    def contribution(self) -> tuple[tuple[int, int, int], ...]:
        """(inputs, outputs, grid units of one integer) of each layer that `clipped_factors` yields.

        Sums over steps are one long row, since their norm needs the matrix anyway; its integers have few digits, so
        that a mechanism can use its faster arithmetic. All others are outer products.
        """
        rows = sum(layer.cells for layer in self.layers if layer.per_step)
        single = [(layer.rows, layer.outputs, 1) for layer in self.layers[1:] if not layer.per_step]
        return (
            (self.record_bins, self.width, _STEP),
            *([(1, rows, _STEP)] if rows else []),
            *single,
        )

    @property
    def cells(self) -> int:
        """Parameters in all."""
        return sum(layer.cells for layer in self.layers)


@dataclass(frozen=True)
class Scores:
    """What a critic says of each row: above 0 is real.

    semantic, temporal: (rows,); None where the head is off.
    classes: (rows, classes), above 0 is the class; None without a semantic head.
    """

    semantic: Tensor | None
    temporal: Tensor | None
    classes: Tensor | None

    def heads(self) -> list[Tensor]:
        """The scores of the heads that there are."""
        return [scores for scores in (self.semantic, self.temporal) if scores is not None]


class NeuralCritic(nn.Module):
    """Scores of records with windows, given their labels.

    Trunk: a linear embedding of the record's bins and one of each step's bins. Semantic head: the record's embedding
    plus the mean of the steps', one hidden layer, projection on the label, and an auxiliary classifier. Temporal head:
    three dilated convolutions over the steps' embeddings, averaged, with the record's embedding added at the pool, and
    projection on the label. Softsign throughout: bounded, and made of exactly rounded operations.
    """

    def __init__(self, shape: CriticShape) -> None:
        super().__init__()
        self.shape = shape
        width, channels, classes = shape.width, shape.channels, shape.classes
        # No bias: a column's bins sum to 1, and a step beyond a unit's end, all zero, is embedded as zero.
        self.record_embedding = nn.Linear(shape.record_bins, width, bias=False)
        if shape.steps:
            self.step_embedding = nn.Linear(shape.step_bins, width, bias=False)
        if shape.temporal:
            self.convolutions = nn.ModuleList(
                nn.Conv1d(channels if number else width, channels, 3, dilation=dilation, padding=dilation)
                for number, dilation in enumerate(_DILATIONS)
            )
            self.pool = nn.Linear(channels + width, channels)
            self.temporal_scores = nn.Linear(channels, 1 + classes)
        if shape.semantic:
            self.semantic_hidden = nn.Linear(width, width)
            self.semantic_scores = nn.Linear(width, 1 + 2 * classes)
        # The usual start of PyTorch loses half of the signal in each layer: five of them leave nothing above noise.
        for layer in shape.layers:
            weight = self.get_parameter(f"{layer.name}.weight")
            if layer.bias:
                nn.init.xavier_uniform_(weight)
            else:
                nn.init.normal_(weight, std=_EMBEDDING_SPREAD)

    def forward(self, records: Tensor, steps: Tensor | None, labels: Tensor) -> Scores:
        """Differentiable in records and steps, so that a generator can learn from relaxed rows.

        Args:
            records: (rows, record_bins), one-hot or bin probabilities.
            steps: (rows, steps, step_bins), likewise, all zero beyond a unit's end; None without windows.
            labels: (rows,) int64.
        """
        classes = self.shape.classes
        embedded = _softsign(self.record_embedding(records))  # (rows, width)
        seen, semantic, temporal, logits = embedded, None, None, None
        if steps is not None:
            windows = _softsign(self.step_embedding(steps))  # (rows, steps, width)
            seen = embedded + windows.mean(dim=1)
        if self.shape.semantic:
            outputs = self.semantic_scores(_softsign(self.semantic_hidden(seen)))
            semantic, logits = _project(outputs[:, : 1 + classes], labels), outputs[:, 1 + classes :]
        if self.shape.temporal:
            hidden = windows.transpose(1, 2)  # (rows, channels, steps)
            for convolution in self.convolutions:
                hidden = _softsign(convolution(hidden))
            pooled = _softsign(self.pool(torch.cat([hidden.mean(dim=2), embedded], dim=1)))
            temporal = _project(self.temporal_scores(pooled), labels)
        return Scores(semantic, temporal, logits)


def _softsign(values: Tensor) -> Tensor:
    return values / (values.abs() + 1)


def _project(outputs: Tensor, labels: Tensor) -> Tensor:
    return outputs[:, 0] + outputs[:, 1:].gather(1, labels[:, None])[:, 0]


def smooth_hinge(scores: Tensor) -> Tensor:
    """(sqrt(1 + s^2) - s) / 2: a logistic loss made of exactly rounded operations; its slope is between -1 and 0.

    Its best score s tells the odds: s / sqrt(1 + s^2) = (p - q) / (p + q) for densities p real and q fake.
    """
    return ((scores * scores + 1).sqrt() - scores) / 2


def initialise_critic(shape: CriticShape, *, seed: int) -> NeuralCritic:
    """A critic with weights drawn from a seed, without touching the global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return NeuralCritic(shape)


def real_loss(scores: Scores, labels: Tensor) -> Tensor:
    """Each row's loss as a real one, (rows,): every head should say real, and the classifier the row's class.

    Its gradient, row by row, is what `clipped_factors` clips.
    """
    loss = torch.stack([smooth_hinge(head) for head in scores.heads()]).sum(dim=0)
    if scores.classes is not None:
        signs = 2 * nn.functional.one_hot(labels, scores.classes.shape[1]).to(scores.classes.dtype) - 1
        loss = loss + _CLASS_WEIGHT * smooth_hinge(signs * scores.classes).sum(dim=1)
    return loss


def generator_loss(scores: Scores) -> Tensor:
    """Mean loss of a generator whose rows were scored, non-saturating; one number a head, (heads,).

    The classifier teaches the trunk what classes differ in, and no generator: that would favour rows whose class is
    plain over those that are as often in doubt as real ones. Source: Gong, Xu, Li, Zhang and Batmanghelich 2019.
    """
    return torch.stack([smooth_hinge(head).mean() for head in scores.heads()])


def real_gradient(released: np.ndarray, *, clip_norm: float, units: float) -> np.ndarray:
    """The mean gradient of the real half, (cells,) float64, from a release in grid units.

    units: estimated number of units, from an earlier release; > 0.
    """
    gradient: np.ndarray = released * (clip_norm / GRADIENT_SCALE / units)
    return gradient


def fake_gradient(
    critic: NeuralCritic, records: np.ndarray, steps: np.ndarray | None, labels: np.ndarray, *, clip_norm: float
) -> np.ndarray:
    """The mean gradient of the half that is fakes, (cells,) float64, clipped like the real half and without noise.

    Args:
        critic: as it stands.
        records: of rows that a generator made, as for `clipped_factors`.
        steps: likewise.
        labels: likewise; one at least.
        clip_norm: as of the real half.
    """
    mechanism = VectorMechanism(tuple(VectorLayer(*layer) for layer in critic.shape.contribution), GRADIENT_SCALE)
    parts = clipped_factors(critic, records, steps, labels, clip_norm=clip_norm, real=False)
    total: np.ndarray = mechanism.exact_sum(map(VectorContributions, parts))
    return total * (clip_norm / GRADIENT_SCALE / len(labels))


def critic_optimiser(critic: NeuralCritic, *, learning_rate: float) -> torch.optim.Adam:
    """What a critic's steps are taken with, from one measurement to the next."""
    return torch.optim.Adam(critic.parameters(), lr=learning_rate, betas=(0.5, 0.9))


def improve(
    critic: NeuralCritic,
    optimiser: torch.optim.Optimizer,
    released: np.ndarray,
    fakes: tuple[np.ndarray, np.ndarray | None, np.ndarray],
    *,
    clip_norm: float,
    units: float,
    last: bool,
) -> None:
    """One step of a critic against the real units of a release and the fakes of a generator.

    Args:
        critic: changed in place.
        optimiser: of the critic's parameters.
        released: (cells,), noised sum of the real units' gradients, in grid units.
        fakes: records, steps and labels, as for `clipped_factors`.
        clip_norm: of a unit's gradient.
        units: estimated number of units in the sum, from an earlier release; > 0.
        last: of a measurement, after which it is judged: half of the fakes pass then. Steps on noise move all scores of
            a head together, so that it might take everything for a fake.
    """
    real = real_gradient(released, clip_norm=clip_norm, units=units)
    apply_gradient(critic, optimiser, real + fake_gradient(critic, *fakes, clip_norm=clip_norm))
    if last:
        _balance(critic, *fakes)


@torch.no_grad()
def _balance(critic: NeuralCritic, records: np.ndarray, steps: np.ndarray | None, labels: np.ndarray) -> None:
    """Move each head's bias so that its median score of some fakes is 0.

    Args:
        critic: changed in place.
        records: of rows that a generator made, as for `clipped_factors`.
        steps: likewise.
        labels: likewise; one at least.
    """
    device = critic.record_embedding.weight.device
    scores = critic(
        torch.from_numpy(records).to(device).float(),
        None if steps is None else torch.from_numpy(steps).to(device).float(),
        torch.from_numpy(labels).to(device),
    )
    for head, name in ((scores.semantic, "semantic_scores"), (scores.temporal, "temporal_scores")):
        if head is not None:
            critic.get_parameter(f"{name}.bias")[0] -= head.median()


def apply_gradient(critic: NeuralCritic, optimiser: torch.optim.Optimizer, gradient: np.ndarray) -> None:
    """One step of a critic.

    Args:
        critic: changed in place.
        optimiser: of the critic's parameters.
        gradient: (cells,), of both halves together.

    Raises:
        ValueError: another number of cells than the critic has parameters.
    """
    if gradient.shape != (critic.shape.cells,):
        raise ValueError("gradient: expected one cell for each parameter")
    start = 0
    for layer in critic.shape.layers:
        matrix = torch.as_tensor(gradient[start : start + layer.cells]).reshape(layer.rows, layer.outputs)
        start += layer.cells
        module = critic.get_submodule(layer.name)
        for name, value in module.named_parameters():
            part = matrix[-1] if name == "bias" else _weights_of(matrix, value.shape)
            value.grad = part.to(value).contiguous()
    optimiser.step()


def _weights_of(matrix: Tensor, shape: torch.Size) -> Tensor:
    """A layer's matrix as its module holds it: (outputs, inputs), or (outputs, inputs, taps)."""
    rows = math.prod(shape[1:])
    if len(shape) == 2:
        return matrix[:rows].T
    return matrix[:rows].reshape(shape[2], shape[1], shape[0]).permute(2, 1, 0)


def _matrix_of(module: nn.Module) -> np.ndarray:
    """The inverse: a module's parameters as one matrix, the bias last; float64."""
    parameters = {name: value.detach().cpu().double().numpy() for name, value in module.named_parameters()}
    weight = parameters["weight"]
    rows = weight.T if weight.ndim == 2 else weight.transpose(2, 1, 0).reshape(-1, len(weight))
    matrix: np.ndarray = np.concatenate([rows, parameters["bias"][np.newaxis]]) if "bias" in parameters else rows
    if not np.isfinite(matrix).all():
        raise ValueError("critic: a parameter is not finite")
    bounded: np.ndarray = np.clip(matrix, -_LARGEST_PARAMETER, _LARGEST_PARAMETER)
    return bounded


def critic_parameters(critic: NeuralCritic) -> dict[str, np.ndarray]:
    """A critic's parameters by name, float32."""
    return {name: value.detach().cpu().numpy().copy() for name, value in critic.state_dict().items()}


def load_critic(critic: NeuralCritic, arrays: Mapping[str, np.ndarray]) -> None:
    """Replace a critic's parameters.

    Raises:
        ValueError: names, shapes or types are not the critic's own, or a value is not finite.
    """
    own = critic.state_dict()
    if set(own) != set(arrays):
        raise ValueError("critic: other parameters than expected")
    for name, value in own.items():
        if arrays[name].shape != tuple(value.shape) or arrays[name].dtype != np.float32:
            raise ValueError("critic: a parameter has another shape or type than expected")
        if not np.isfinite(arrays[name]).all():
            raise ValueError("critic: a parameter is not finite")
    critic.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in arrays.items()})


def clipped_factors(
    critic: NeuralCritic,
    records: np.ndarray,
    steps: np.ndarray | None,
    labels: np.ndarray,
    *,
    clip_norm: float,
    real: bool = True,
    micro_batch: int | None = None,
) -> Iterator[tuple[tuple[np.ndarray, np.ndarray], ...]]:
    """Every unit's clipped gradient of its side's loss, in integers; GRADIENT_SCALE grid units to a clip norm.

    Guarantees: a unit's vector has an exact L2 norm of at most GRADIENT_SCALE; it depends on that unit's rows and the
    critic's parameters and on nothing else, to the last bit, whatever the other units, their order, the micro-batch
    and the matrix library.
    Edge cases: no units -> nothing; a parameter beyond 2^20 counts as 2^20.

    The norm is shared out: trunk 1/2, each head 1/4 of its square (2/3 and 1/3 if there is one head), so that no head
    can eat the clip. Each share is clipped on its own.

    Args:
        critic: its parameters are public.
        records: (units, record_bins) bool, one-hot of the static columns.
        steps: (units, steps, step_bins) bool, one-hot of the channels, all false beyond a unit's end; or None.
        labels: (units,) int64.
        clip_norm: the L2 bound of one unit's gradient; 1e-6 to 1e6.
        real: the side: `real_loss`, or the loss of fakes, which every head should call fake.
        micro_batch: units at a time; changes speed alone.

    Yields:
        For some units at a time, (left, right) of each layer of `CriticShape.contribution`: (units, 1, inputs) and
        (units, 1, outputs), integers, whose outer products are the cells in the order of `CriticShape.layers`.

    Raises:
        ValueError: arrays that are not of the critic's shape, or parameters that are not finite.
    """
    shape = critic.shape
    if not _CLIP_NORMS[0] <= clip_norm <= _CLIP_NORMS[1]:
        raise ValueError(f"clip_norm={clip_norm}: expected {_CLIP_NORMS[0]:g} to {_CLIP_NORMS[1]:g}")
    units = len(labels)
    if records.shape != (units, shape.record_bins) or records.dtype != np.bool_:
        raise ValueError("records: expected booleans of shape (units, record_bins)")
    if (steps is None) != (shape.steps == 0):
        raise ValueError("steps: expected windows if and only if the critic has them")
    if steps is not None and (steps.shape != (units, shape.steps, shape.step_bins) or steps.dtype != np.bool_):
        raise ValueError("steps: expected booleans of shape (units, steps, step_bins)")
    if units and not (labels.min() >= 0 and labels.max() < shape.classes):
        raise ValueError("labels: expected 0 to classes - 1")
    # As many as fill the cache: steps do so sooner.
    size = micro_batch or (128 if shape.steps else max(_CACHED // max(shape.record_bins, 1), 128))
    side = _OneSide(critic, real=real)
    for start in range(0, units, size):
        part = slice(start, start + size)
        gradients = side.gradients(records[part], None if steps is None else steps[part], labels[part])
        yield side.encode(gradients, clip_norm=clip_norm)


@dataclass(frozen=True)
class _Factors:
    """A layer's gradient of each unit as an outer product: step * left right^T.

    left: (units, rows of the layer), integers.
    left_norms: (units,) float64, their squared norms.
    right: (units, outputs), errors; after clipping, integers.
    """

    left: np.ndarray
    left_norms: np.ndarray
    right: np.ndarray
    step: float

    def squared_norms(self, right: np.ndarray) -> np.ndarray:
        """Of the gradients, (units,) float64; right: `self.right`, in a type that holds its squared norms exactly."""
        squares: np.ndarray = self.left_norms * np.vecdot(right, right) * self.step**2
        return squares


@dataclass(frozen=True)
class _Gradients:
    """Gradients of some units.

    rows: (units, cells of all layers per step), sums over steps; after clipping, integers.
    factors: of each other layer.
    """

    rows: np.ndarray
    factors: dict[str, _Factors]


@dataclass(frozen=True)
class _Block:
    """A share of the clip norm, and whose it is.

    bound: on the squared norm, in grid units.
    target: of the norm before rounding.
    factors: layers that are outer products.
    columns: of the rows of all layers per step.
    """

    bound: int
    target: float
    factors: tuple[str, ...]
    columns: slice


def _blocks(shape: CriticShape) -> list[_Block]:
    whole = sum(_SHARES[name] for name in {layer.block for layer in shape.layers})
    blocks, start = [], 0
    # In the order of the columns; the semantic head has none.
    for name in ("trunk", "temporal", "semantic"):
        layers = [layer for layer in shape.layers if layer.block == name]
        cells = sum(layer.cells for layer in layers if layer.per_step)
        bound = math.floor(GRADIENT_SCALE**2 * _SHARES[name] / whole)
        target = math.sqrt(bound - cells / 12 * _STEP**2) - _SLACK
        factors = tuple(layer.name for layer in layers if not layer.per_step)
        blocks.append(_Block(bound, target, factors, slice(start, start + cells)))
        start += cells
    return blocks


class _OneSide:
    """Forward and back over some units; time stands before units, so that a shift in time is a slice.

    An error (the derivative of a loss) that is a mean over T steps is held T times larger, as if it were their sum.
    Without rounding it is the plain gradient in float64: what tests compare with.
    """

    def __init__(self, critic: NeuralCritic, *, real: bool = True, rounded: bool = True) -> None:
        self._shape = shape = critic.shape
        self._sign = 1 if real else -1
        self._rounded = rounded
        self._type = np.float32 if rounded else np.float64
        # Errors times activations, summed over steps, stay below 2^24 of their grid's steps.
        self._error_grid = max(
            _power_of_two(max(shape.steps, 2) * _LARGEST_ERROR / _ACTIVATION_GRID / _EXACT), _FINEST_ERROR_GRID
        )
        self._forward: dict[str, np.ndarray] = {}
        self._backward: dict[str, np.ndarray] = {}
        self._columns: dict[str, slice] = {}
        cells = 0
        for layer in shape.layers:
            matrix = _matrix_of(critic.get_submodule(layer.name))
            # (taps, outputs, inputs), without the bias
            taps = matrix[: layer.taps * layer.inputs].reshape(layer.taps, -1, layer.outputs).transpose(0, 2, 1)
            if rounded:
                # Inputs are activations or sums of two, or, of an embedding, ones.
                matrix = _coarse(matrix, axes=(0,), largest=2.0 / _ACTIVATION_GRID if layer.bias else 1.0)
                taps = _coarse(taps, axes=(0, 1), largest=_LARGEST_ERROR / self._error_grid)
            self._forward[layer.name] = matrix.astype(self._type)
            self._backward[layer.name] = np.ascontiguousarray(taps, dtype=self._type)
            if layer.per_step:
                self._columns[layer.name] = slice(cells, cells + layer.cells)
                cells += layer.cells
        self._row_cells = cells
        self._blocks = _blocks(shape)
        self._rooms: dict[str, np.ndarray] = {}

    def gradients(self, records: np.ndarray, steps: np.ndarray | None, labels: np.ndarray) -> _Gradients:
        """The gradients of some units before clipping, valid until the next call."""
        shape, units = self._shape, len(labels)
        found = _Gradients(self._room("rows", units, self._row_cells), {})
        ones = np.ones((units, 1), dtype=self._type)
        chosen = np.zeros((units, shape.classes), dtype=self._type)
        chosen[np.arange(units), labels] = 1
        bins = self._cast("bins", records)
        hits = bins @ np.ones(shape.record_bins, dtype=self._type)
        embedded = self._activate(bins @ self._forward["record_embedding"])
        errors = np.zeros((units, shape.width), dtype=self._type)
        seen = embedded
        if steps is not None:
            step_bins = self._cast("step_bins", steps.transpose(1, 0, 2))
            windows = self._room("windows", shape.steps, units, shape.width)
            self._product(step_bins, self._forward["step_embedding"], out=windows)
            self._activate(windows)
            seen = embedded + self._mean(windows)
            window_errors = self._room("window_errors", shape.steps, units, shape.width)
        if shape.semantic:
            errors += self._semantic(np.concatenate([seen, ones], axis=1), chosen, found)
        if steps is not None:
            window_errors[...] = errors
        if shape.temporal:
            errors += self._temporal(windows, embedded, chosen, window_errors, found)
        if steps is not None:
            self._back(window_errors, windows)
            cells = found.rows[:, self._columns["step_embedding"]].reshape(units, shape.step_bins, shape.width)
            np.matmul(step_bins.transpose(1, 2, 0), window_errors.transpose(1, 0, 2), out=cells)
        # A record without a bin has no gradient, and nothing would bound its errors.
        errors *= (hits > 0)[:, np.newaxis]
        errors = self._back(errors, embedded)
        found.factors["record_embedding"] = _Factors(records, hits.astype(np.float64), errors, step=1.0)
        return found

    def _factors(self, activations: np.ndarray, errors: np.ndarray) -> _Factors:
        steps = activations / self._type(_ACTIVATION_GRID)
        # At most 512 steps: of fewer than 64 activations float32 adds the squares exactly.
        wide = steps if steps.shape[1] < 64 else steps.astype(np.float64)
        norms = np.vecdot(wide, wide).astype(np.float64)
        return _Factors(steps.astype(np.int16) if self._rounded else steps, norms, errors, step=_ACTIVATION_GRID)

    def _semantic(self, seen: np.ndarray, chosen: np.ndarray, found: _Gradients) -> np.ndarray:
        """Errors of what the head sees, (units, width); seen: (units, width + 1), with ones last."""
        hidden = self._activate(seen @ self._forward["semantic_hidden"])
        joined = np.concatenate([hidden, seen[:, -1:]], axis=1)
        outputs = joined @ self._forward["semantic_scores"]
        signs = 2 * chosen - 1
        classes = _CLASS_WEIGHT * signs * _slope(signs * outputs[:, 1 + chosen.shape[1] :])
        if self._sign < 0:
            classes[...] = 0  # what a fake's class is, is the generator's business
        scores = _score_errors(outputs, chosen, self._sign)
        errors = self._to_grid(np.concatenate([scores, classes], axis=1), self._error_grid)
        found.factors["semantic_scores"] = self._factors(joined, errors)
        errors = self._back(errors @ self._backward["semantic_scores"][0], hidden)
        found.factors["semantic_hidden"] = self._factors(seen, errors)
        product: np.ndarray = errors @ self._backward["semantic_hidden"][0]
        return product

    def _temporal(
        self,
        windows: np.ndarray,
        embedded: np.ndarray,
        chosen: np.ndarray,
        window_errors: np.ndarray,
        found: _Gradients,
    ) -> np.ndarray:
        """Errors of the record's embedding, (units, width); those of the windows are added to `window_errors`."""
        layers = [windows]
        for number in range(len(_DILATIONS)):
            layers.append(self._convolve(number, layers[-1]))
        ones = np.ones((len(chosen), 1), dtype=self._type)
        joined = np.concatenate([self._mean(layers[-1]), embedded, ones], axis=1)
        pooled = self._activate(joined @ self._forward["pool"])
        scored = np.concatenate([pooled, ones], axis=1)
        scores = _score_errors(scored @ self._forward["temporal_scores"], chosen, self._sign)
        errors = self._to_grid(scores, self._error_grid)
        found.factors["temporal_scores"] = self._factors(scored, errors)
        errors = self._back(errors @ self._backward["temporal_scores"][0], pooled)
        found.factors["pool"] = self._factors(joined, errors)
        errors = errors @ self._backward["pool"][0]
        back = self._room("errors", *layers[-1].shape)
        back[...] = errors[:, : self._shape.channels]
        for number in reversed(range(len(_DILATIONS))):
            back = self._convolve_back(number, layers[number], layers[number + 1], back, found)
        window_errors += back
        of_records: np.ndarray = errors[:, self._shape.channels :]
        return of_records

    def _convolve(self, number: int, inputs: np.ndarray) -> np.ndarray:
        """The activations of a convolution, (steps, units, channels)."""
        steps, units, width = inputs.shape
        matrix = self._forward[f"convolutions.{number}"]
        outputs = self._room(f"outputs {number}", steps, units, matrix.shape[1])
        product = self._room("product", *outputs.shape)
        outputs[...] = matrix[-1]
        for tap, (source, target) in enumerate(_taps(number, steps)):
            part = product[target]
            self._product(inputs[source], matrix[tap * width : (tap + 1) * width], out=part)
            outputs[target] += part
        return self._activate(outputs)

    def _convolve_back(
        self, number: int, inputs: np.ndarray, outputs: np.ndarray, errors: np.ndarray, found: _Gradients
    ) -> np.ndarray:
        """The errors of a convolution's inputs, (steps, units, width), from those of its outputs."""
        steps, units, width = inputs.shape
        channels = outputs.shape[2]
        name = f"convolutions.{number}"
        cells = found.rows[:, self._columns[name]]
        weights = cells[:, :-channels].reshape(units, 3, width, channels)
        self._back(errors, outputs)
        np.sum(errors, axis=0, out=cells[:, -channels:])
        back = self._room(f"back {number}", *inputs.shape)
        product = self._room("product", *inputs.shape)
        back[...] = 0
        for tap, (source, target) in enumerate(_taps(number, steps)):
            np.matmul(inputs[source].transpose(1, 2, 0), errors[target].transpose(1, 0, 2), out=weights[:, tap])
            part = product[source]
            self._product(errors[target], self._backward[name][tap], out=part)
            back[source] += part
        return back

    def _product(self, left: np.ndarray, right: np.ndarray, *, out: np.ndarray) -> None:
        """(steps, units, inputs) times a matrix; contiguous in steps and units."""
        np.matmul(left.reshape(-1, len(right)), right, out=out.reshape(-1, right.shape[1]))

    def _mean(self, values: np.ndarray) -> np.ndarray:
        # The sum is exact in any order; the product is rounded, but element by element.
        return self._to_grid(values.sum(axis=0) * self._type(1 / len(values)), _ACTIVATION_GRID)

    def _activate(self, sums: np.ndarray) -> np.ndarray:
        """Softsign, in place."""
        magnitudes = np.abs(sums, out=self._room("magnitudes", *sums.shape))
        magnitudes += 1
        sums /= magnitudes
        return self._to_grid(sums, _ACTIVATION_GRID)

    def _back(self, errors: np.ndarray, activations: np.ndarray) -> np.ndarray:
        """Errors of the sums from errors of the activations, in place; the slope is (1 - |activation|)^2."""
        slopes = np.abs(activations, out=self._room("magnitudes", *activations.shape))
        slopes -= 1
        slopes *= slopes
        errors *= slopes
        if self._rounded:
            np.clip(errors, -_LARGEST_ERROR, _LARGEST_ERROR, out=errors)
        return self._to_grid(errors, self._error_grid)

    def _to_grid(self, values: np.ndarray, grid: float) -> np.ndarray:
        """Round to multiples of the grid, in place; of fewer than 2^22."""
        if self._rounded:
            # Beside this number float32 has no digits below the grid.
            shift = np.float32(1.5 * 2**23 * grid)
            values += shift
            values -= shift
        return values

    def _cast(self, name: str, values: np.ndarray) -> np.ndarray:
        room = self._room(name, *values.shape)
        np.copyto(room, values.view(np.uint8))
        return room

    def _room(self, name: str, *shape: int, dtype: type[np.floating[Any]] | None = None) -> np.ndarray:
        """Memory that is used again for every micro-batch: fresh pages would cost more than the arithmetic."""
        size = math.prod(shape)
        if name not in self._rooms or len(self._rooms[name]) < size:
            self._rooms[name] = np.empty(size, dtype=dtype or self._type)
        return self._rooms[name][:size].reshape(shape)

    def encode(self, gradients: _Gradients, *, clip_norm: float) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """Clip in place, block by block, and write in integers; see `clipped_factors`."""
        for block in self._blocks:
            self._clip(block, gradients, clip_norm=clip_norm)
        factors = [
            (one.left[:, np.newaxis], one.right.astype(np.int16)[:, np.newaxis])
            for one in (gradients.factors[layer.name] for layer in self._shape.layers if not layer.per_step)
        ]
        if self._row_cells:
            ones = np.ones((len(gradients.rows), 1, 1), dtype=np.int8)
            factors.insert(1, (ones, gradients.rows.astype(np.int16)[:, np.newaxis]))
        return tuple(factors)

    def _clip(self, block: _Block, gradients: _Gradients, *, clip_norm: float) -> None:
        """Turn one block's gradients into integers whose exact norm is at most the block's bound."""
        factors = [gradients.factors[name] for name in block.factors]
        rows = gradients.rows[:, block.columns]
        steps = max(self._shape.steps, 1)
        squares = self._squared_norms(rows) / steps**2
        norms = np.sqrt(sum((one.squared_norms(one.right.astype(np.float64)) for one in factors), squares))
        # Integers per gradient: one of them is _STEP grid units, times the step of the layer.
        scale = np.minimum(GRADIENT_SCALE / clip_norm, block.target / np.maximum(norms, _TINY)) / _STEP
        for values, divisor in (*((one.right, 1) for one in factors), (rows, steps)):
            np.multiply(values, (scale / divisor).astype(np.float32)[:, np.newaxis], out=values)
            np.rint(values, out=values)
        # Sums of squares of integers: exact up to the bound, in float32 too, and above it everywhere else.
        squares = np.vecdot(rows, rows).astype(np.float64)
        squares = sum((one.squared_norms(one.right) for one in factors), squares) * _STEP**2
        above = squares > block.bound
        if above.any():
            # Rounding to nearest took a few norms above the bound; towards zero it cannot.
            shrink = (np.sqrt(block.bound / squares[above]) * (1 - 2.0**-16)).astype(np.float32)[:, np.newaxis]
            for values in (*(one.right for one in factors), rows):
                values[above] = np.trunc(values[above] * shrink)

    def _squared_norms(self, rows: np.ndarray) -> np.ndarray:
        """(units,) float64, from nothing but each unit's row: exact, or else an upper bound that has one rounding."""
        norms = np.zeros(len(rows))
        if not rows.shape[1]:
            return norms
        # Few rows at a time: float64 copies that stay in the cache.
        for start in range(0, len(rows), 16):
            part = rows[start : start + 16]
            double = self._room("double", *part.shape, dtype=np.float64)
            np.copyto(double, part)
            norms[start : start + 16] = np.vecdot(double, double)
        inexact = norms >= 2.0**53 * (_ACTIVATION_GRID * self._error_grid) ** 2
        if inexact.any():
            norms[inexact] = rows.shape[1] * np.square(np.abs(rows[inexact]).max(axis=1).astype(np.float64))
        return norms


def _slope(scores: np.ndarray) -> np.ndarray:
    """Derivative of `smooth_hinge`."""
    slope: np.ndarray = (scores / np.sqrt(scores * scores + 1) - 1) / 2
    return slope


def _score_errors(outputs: np.ndarray, chosen: np.ndarray, sign: int) -> np.ndarray:
    """Errors of a projection's outputs, (units, 1 + classes); sign: 1 for real, -1 for fakes."""
    classes = chosen.shape[1]
    # All but one of the products are zero, so that the sum is exact.
    scores = outputs[:, :1] + (outputs[:, 1 : 1 + classes] * chosen) @ np.ones((classes, 1), outputs.dtype)
    slope = sign * _slope(sign * scores)
    return np.concatenate([slope, slope * chosen], axis=1)


def _taps(number: int, steps: int) -> tuple[tuple[slice, slice], ...]:
    """For each tap of a convolution, the steps that it reads and those that it writes."""
    reach = max(steps - _DILATIONS[number], 0)
    first, last, every = slice(0, reach), slice(steps - reach, steps), slice(0, steps)
    return (first, last), (every, every), (last, first)


def _power_of_two(value: float) -> float:
    return 2.0 ** math.ceil(math.log2(value))


def _coarse(weights: np.ndarray, *, axes: tuple[int, ...], largest: float) -> np.ndarray:
    """Weights on a grid so coarse that their products, summed over `axes` in any order, are exact in float32.

    Every product is a multiple of this grid times that of the other factor, and every partial sum is at most
    largest * sum |weight|: no more than 2^24 such multiples.

    Args:
        weights: finite.
        axes: of the sums.
        largest: of the other factors, in steps of their own grid.
    """
    grid = _power_of_two(max(float(np.abs(weights).sum(axis=axes).max()), 2.0**-40) * largest / _EXACT)
    rounded: np.ndarray = np.rint(weights / grid) * grid
    while float(np.abs(rounded).sum(axis=axes).max()) * largest > _EXACT * grid:
        grid *= 2
        rounded = np.rint(weights / grid) * grid
    return rounded
