"""Where a generator begins: at the released tables of one column, and of one step after another.

A few hundred steps must do, and what can be read off a release need not be learned: biases are set to the logarithms of
released shares, and the shared part of a channel's transitions to those of its released table. Post-processing.
"""

import numpy as np
import torch
from torch import Tensor, nn

from common.data.queries import Family
from common.models.generator import Generator
from common.models.sequences import REACH, ChainHead, StateHead
from common.models.targets import Target, Targets

_LEAST = 1e-4
"""No released share counts as less: its logarithm would be out of reach of the rest of the network."""


@torch.no_grad()
def warm_start(generator: Generator, targets: Targets) -> None:
    """Set a new generator's biases in place, from what was released so far."""
    shape = generator.shape
    units = float(targets.label_counts.sum())
    _set_bias(generator.heads, _log_shares(targets.tables["one_way"], units, shape.sizes))
    if shape.sequence is None or generator.sequence is None:
        return
    slots = shape.sequence.slots
    wide = shape.sequence.widest + 1
    flat = np.full(len(shape.sequence.sizes) * wide, np.log(_LEAST))
    flat[slots] = _log_shares(targets.tables["average"], units, shape.sequence.sizes)
    cube = flat.reshape(-1, wide)
    if isinstance(generator.sequence, StateHead):
        _set_bias(generator.sequence.tilt, flat)
        return
    _set_bias(generator.sequence.start, cube[:, :-1].ravel())
    transitions = targets.tables[Family.TRANSITION]
    if bool((transitions.precision > 0).any()):
        _start_chains(generator.sequence, transitions)


def _start_chains(head: ChainHead, transitions: Target) -> None:
    """Transitions of values, and of being seen, as all classes together have them."""
    counts = np.maximum(transitions.values.sum(axis=0), 0.0)  # (channels, widest + 1, widest + 1)
    # Half a standard deviation in each cell: what noise may have made of nothing.
    floor = 0.5 * np.sqrt(len(transitions.values) / np.where(transitions.precision > 0, transitions.precision, np.inf))
    values = counts[:, :-1, :-1] + floor[:, :-1, :-1] + _LEAST
    head.base.copy_(_tensor(np.log(values / values.sum(axis=2, keepdims=True)) / REACH))
    held = np.stack([counts[:, :-1, :-1].sum(axis=(1, 2)), counts[:, -1, :-1].sum(axis=1)])  # after seen, after not
    lost = np.stack([counts[:, :-1, -1].sum(axis=1), counts[:, -1, -1]])
    noise = floor.max(axis=(1, 2)) + 1.0
    after_seen, after_not = np.log((held + noise) / (lost + noise))
    bias = head.seen.bias.view(len(counts), -1)  # start, then by block: after not seen, after seen
    bias[:, 0] = _tensor(after_seen)
    bias[:, 1::2] = _tensor(after_not)[:, None]
    bias[:, 2::2] = _tensor(after_seen)[:, None]


def _log_shares(table: Target, units: float, sizes: tuple[int, ...]) -> np.ndarray:
    counts = np.maximum(table.values.sum(axis=0), 0.0)
    column = np.repeat(np.arange(len(sizes)), sizes)
    totals = np.bincount(column, weights=counts)[column]
    return np.asarray(np.log(np.maximum(counts / np.maximum(totals, 1e-3 * units), _LEAST)))


def _set_bias(layer: nn.Linear, values: np.ndarray) -> None:
    layer.bias.copy_(_tensor(values))


def _tensor(values: np.ndarray) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32)
