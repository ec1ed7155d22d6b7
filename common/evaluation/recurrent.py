"""Recurrent networks that classify windows or foretell their next step, with fixed settings.

The settings were chosen on simulated windows; nothing is tuned to the tables at hand.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from common.evaluation.windows import Windows, mean_over, spread_of

_HIDDEN = 32
_EPOCHS = 20
_BATCH = 64
_CHUNK = 1024
"""Units in one step of training, and in one step of prediction."""
_LEARNING_RATE = 1e-2
_WEIGHT_DECAY = 0.5
"""Strong, since a thousand units with noisy labels are soon learnt by heart."""
_CLIP_NORM = 1.0
_FAR = 10.0
"""Networks see no number further from the mean of what they learned from, in standard deviations."""


@dataclass(frozen=True)
class _Inputs:
    """What networks see of some units.

    numbers: (units, steps, numeric channels) float32, standardised, 0 where missing.
    missing: (units, steps, channels) float32, 1 where missing.
    codes: (units, steps, categorical channels) int64, the number of public values where missing.
    sizes: public values of each categorical channel.
    lengths: (units,) int64.
    static: (units, features) float32.
    """

    numbers: Tensor
    missing: Tensor
    codes: Tensor
    sizes: tuple[int, ...]
    lengths: Tensor
    static: Tensor

    def take(self, rows: Tensor | slice) -> "_Inputs":
        parts = (self.numbers[rows], self.missing[rows], self.codes[rows])
        return _Inputs(*parts, self.sizes, self.lengths[rows], self.static[rows])

    def by_step(self) -> Tensor:
        """(units, steps, inputs): numbers, marks of missing values, one-hot categories."""
        # The position after the last value is missing, which has its mark already.
        one_hot = [
            functional.one_hot(self.codes[:, :, at], size + 1)[:, :, :size] for at, size in enumerate(self.sizes)
        ]
        return torch.cat([self.numbers, self.missing, *one_hot], dim=2)


class _Classifier(nn.Module):
    """Logit of a unit, from the state at its last step, the mean of its states and the static features."""

    def __init__(self, inputs: _Inputs) -> None:
        super().__init__()
        self.recurrent = nn.GRU(_inputs_a_step(inputs), _HIDDEN, batch_first=True)
        self.head = nn.Linear(2 * _HIDDEN + inputs.static.shape[1], 1)

    def forward(self, inputs: _Inputs) -> Tensor:
        states, _ = self.recurrent(inputs.by_step())  # (units, steps, hidden)
        units, steps, _ = states.shape
        lengths = inputs.lengths[:, None]
        reached = torch.arange(steps) < lengths  # (units, steps)
        mean = (states * reached[:, :, None]).sum(dim=1) / lengths.clamp(min=1)
        last = states[torch.arange(units), (inputs.lengths - 1).clamp(min=0)]
        logits: Tensor = self.head(torch.cat([last, mean, inputs.static], dim=1))
        return logits[:, 0]


class _Forecaster(nn.Module):
    """Standardised numbers of the next step, from the state and the inputs of each step."""

    def __init__(self, inputs: _Inputs) -> None:
        super().__init__()
        size = _inputs_a_step(inputs)
        self.recurrent = nn.GRU(size, _HIDDEN, batch_first=True)
        self.head = nn.Linear(_HIDDEN + size, inputs.numbers.shape[2])

    def forward(self, inputs: _Inputs) -> Tensor:
        by_step = inputs.by_step()[:, :-1]
        states, _ = self.recurrent(by_step)
        # A line through the last values is a good forecast; it need not pass the narrow state.
        foretold: Tensor = self.head(torch.cat([states, by_step], dim=2))  # (units, steps - 1, numeric channels)
        return foretold


def _inputs_a_step(inputs: _Inputs) -> int:
    return inputs.numbers.shape[2] + inputs.missing.shape[2] + sum(inputs.sizes)


def _to_inputs(windows: Windows, mean: np.ndarray, spread: np.ndarray, static: np.ndarray | None) -> _Inputs:
    numbers = np.nan_to_num((windows.numbers - mean) / spread).clip(-_FAR, _FAR)
    sizes = windows.sizes
    codes = windows.values[:, :, list(sizes)]
    codes = np.where(np.isnan(codes), list(sizes.values()), codes)
    static = np.zeros((len(numbers), 0)) if static is None else static.clip(-_FAR, _FAR)
    return _Inputs(
        torch.from_numpy(numbers.astype(np.float32)),
        torch.from_numpy(np.isnan(windows.values).astype(np.float32)),
        torch.from_numpy(codes.astype(np.int64)),
        tuple(sizes.values()),
        torch.from_numpy(windows.lengths.astype(np.int64)),
        torch.from_numpy(static.astype(np.float32)),
    )


def _standard(windows: Windows) -> tuple[np.ndarray, np.ndarray]:
    """(numeric channels,) mean and standard deviation to standardise by; 0 and 1 where there are none."""
    spread = spread_of(windows.numbers)
    return np.nan_to_num(mean_over(windows.numbers, (0, 1))[0, 0]), np.where(spread > 0, spread, 1.0)


def classify(
    train: Windows,
    test: Windows,
    truth: np.ndarray,
    static: tuple[np.ndarray, np.ndarray] | None,
    seed: int,
    *,
    most: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores in [0, 1] of the units of both, by a recurrent network trained on the first, `most` of its units drawn."""
    standard = _standard(train)
    inputs = [
        _to_inputs(windows, *standard, None if static is None else static[which])
        for which, windows in enumerate((train, test))
    ]
    is_positive = torch.from_numpy(truth.astype(np.float32))
    learnt = torch.from_numpy(np.random.default_rng(seed).permutation(len(truth))[:most])
    network = _build(lambda: _Classifier(inputs[0]), seed)

    def loss(rows: Tensor) -> Tensor:
        logits = network(inputs[0].take(learnt[rows]))
        return functional.binary_cross_entropy_with_logits(logits, is_positive[learnt[rows]])

    _train(network, len(learnt), loss, seed)
    first, second = (torch.sigmoid(_apply(network, part).double()).numpy() for part in inputs)
    return first, second


def foretell(train: Windows, test: Windows, seed: int) -> np.ndarray:
    """(test units, steps - 1, numeric channels): numbers of steps 2 and on, by a network trained on `train`."""
    mean, spread = _standard(train)
    inputs = [_to_inputs(windows, mean, spread, None) for windows in (train, test)]
    standardised = torch.from_numpy(((train.numbers - mean) / spread)[:, 1:].astype(np.float32))
    is_target = ~torch.isnan(standardised)
    targets = torch.nan_to_num(standardised)
    network = _build(lambda: _Forecaster(inputs[0]), seed)

    def loss(rows: Tensor) -> Tensor:
        errors = (network(inputs[0].take(rows)) - targets[rows]).abs() * is_target[rows]
        error: Tensor = errors.sum() / is_target[rows].sum().clamp(min=1)
        return error

    _train(network, len(train.lengths), loss, seed)
    return np.asarray(_apply(network, inputs[1]).double().numpy() * spread + mean)


def _build(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A network whose first weights follow from the seed; the global random state is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return make()


@contextmanager
def _one_thread() -> Iterator[None]:
    """The networks are too small for several threads, which would wait for one another and add up in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def _train(network: nn.Module, units: int, loss: Callable[[Tensor], Tensor], seed: int) -> None:
    """Train in place for a fixed number of passes over units 0 .. units - 1, the learning rate falling to 0."""
    random = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    steps = _EPOCHS * math.ceil(units / _BATCH)
    fall = torch.optim.lr_scheduler.LinearLR(optimiser, start_factor=1.0, end_factor=0.0, total_iters=steps)
    for _ in range(_EPOCHS):
        for rows in torch.split(torch.randperm(units, generator=random), _BATCH):
            optimiser.zero_grad()
            loss(rows).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), _CLIP_NORM)
            optimiser.step()
            fall.step()


@_one_thread()
def _apply(network: nn.Module, inputs: _Inputs) -> Tensor:
    """The network's answers for all units."""
    starts = range(0, len(inputs.lengths), _CHUNK)
    with torch.no_grad():
        return torch.cat([network(inputs.take(slice(start, start + _CHUNK))) for start in starts])
