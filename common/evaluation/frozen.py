"""Rows as 64 features that nobody's data had a part in: a random network whose weights follow from the schema.

Distances between the features of two tables (`frechet`, `neighbours`) can be compared from run to run and from site to
site only if the network is always the same and has seen neither table. Its weights are a hash of the public schema and
of the network's name; `sha256` says which they are. No figure from it is comparable with one from another network, such
as those that images are scored with.

The input is public. Each of 2,048 hidden units looks at one to three columns or channels and is the cosine of a sum of
phases. A category, a special value, a missing one and a step that a unit does not reach have a random phase each; a
number has one that grows with its place between the public bounds, at a random frequency of 1/4 to 4 turns, low enough
to show a shift, and high enough to tell values apart in a column that keeps to a corner of its bounds. So a hidden unit
sees the joint distribution of its columns, and the product of the hidden units of two rows is a sum of kernels of one,
two and three columns (Rahimi and Recht 2007). Of a channel it looks at one step, the mean of a block or the difference
of two steps. A third of the units have one column, a third the label and another, the others two more, with the label
or without. The features are 64 random sums of the hidden units, which keep their distances (Achlioptas 2003).

Frequencies, shares and the number of units were chosen on tables of the simulated scenarios alone, by how far shuffled
columns, flipped labels and shifted columns stand above two real samples; no real data set was looked at. Not every pair
of columns has a hidden unit in a study of more than about forty columns and channels.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from itertools import combinations, cycle, islice
from typing import Final

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from common.data.encoding import make_grid
from common.data.schema import CategoricalColumn, Column
from common.data.windows import WindowedTable
from common.evaluation.windows import bounds_on_scale
from common.study import Study

DIMENSIONS: Final = 64
_NAME: Final = "rf64-1"
_HIDDEN: Final = 2048
_SHARES: Final = (704, 640, 512, 192)
"""Hidden units that look at one column; at the label and another; at two others; at two others and the label."""
_OCTAVES: Final = (0.25, 0.5, 1.0, 2.0)
"""Turns from bound to bound, at the low end of each octave."""
GRID: Final = 1024.0
"""Features are multiples of 1 / 1024: squared distances are then exact in float64, whoever adds them up."""
_CHUNK_ENTRIES: Final = 2**22
"""Inputs or hidden units at a time, to bound memory."""


class FrozenEmbedding:
    """The network of one schema.

    Guarantees: the weights depend on the columns, the label and the windows of the study alone; the features of a row
    do not depend on other rows; they are multiples of 1 / 1024, with a second moment of about 1.
    Edge cases: a number outside its bounds -> as at the bound.

    Attributes:
        name: of the network, for ever of this one.
        sha256: of the weights.
    """

    name: Final = _NAME

    def __init__(self, study: Study) -> None:
        """The network of a study's columns and channels."""
        self._study = study
        self._steps = study.windows.length if study.windows is not None else 0
        seed = f"{_NAME}:{_describe(study)}"
        weights = _first_layer(study, self._steps, hashlib.sha256(seed.encode()).hexdigest())
        signs = np.where(_uniform(f"{seed}:readout", DIMENSIONS * _HIDDEN) < 0.5, -1.0, 1.0)
        self._weights = weights  # (hidden, inputs)
        self._bias = _uniform(f"{seed}:bias", _HIDDEN)[:, None]
        self._readout = signs.reshape(DIMENSIONS, _HIDDEN) / np.sqrt(_HIDDEN / 2)  # a cosine's square is 1/2
        self.sha256 = _digest(weights.data, weights.indices, weights.indptr, self._bias, self._readout)

    def embed(self, table: WindowedTable) -> np.ndarray:
        """Features of each row, (rows, 64) float64."""
        rows = len(table.records)
        features = np.empty((rows, DIMENSIONS))
        step = max(1, _CHUNK_ENTRIES // max(self._weights.shape))
        for start in range(0, rows, step):
            chosen = np.arange(start, min(start + step, rows))
            phases = self._weights @ self._inputs(table.take(chosen)).T + self._bias  # (hidden, rows), in turns
            hidden = np.cos(2 * np.pi * phases)
            features[chosen] = (self._readout @ hidden).T
        return np.asarray(np.rint(features * GRID) / GRID)

    def _inputs(self, table: WindowedTable) -> np.ndarray:
        """(rows, inputs) float64."""
        columns, rows = self._study.columns, len(table.records)
        parts = [_encode(_values(table.records[name], name, column), column) for name, column in columns.items()]
        beyond = np.arange(self._steps) >= table.lengths[:, None]
        for at, column in enumerate(self._study.channels.values()):
            coded = _encode(table.values[:, :, at], column) * ~beyond[:, :, None]
            parts.append(np.concatenate([coded, beyond[:, :, None]], axis=2).reshape(rows, -1))
        return np.concatenate(parts, axis=1)


def _describe(study: Study) -> str:
    """What the network is a network of, as canonical JSON; how finely a column is counted is no part of it."""
    kept = {"type", "min", "max", "scale", "scale_unit", "special"}

    def describe(columns: Mapping[str, Column]) -> dict[str, object]:
        return {
            name: {"type": column.type, "values": column.values}
            if isinstance(column, CategoricalColumn)
            else column.model_dump(mode="json", include=kept)
            for name, column in columns.items()
        }

    windows = None if study.windows is None else {"length": study.windows.length, **describe(study.channels)}
    described = {"columns": describe(study.columns), "label": study.label.column, "windows": windows}
    return json.dumps(described, separators=(",", ":"), allow_nan=False)


def _uniform(label: str, n: int) -> np.ndarray:
    """(n,) float64 in [0, 1), multiples of 2^-53: SHAKE-256 of a label, the same everywhere and for ever."""
    words = np.frombuffer(hashlib.shake_256(label.encode()).digest(8 * n), dtype="<u8")
    return np.asarray((words >> np.uint64(11)) * 2.0**-53)


def _digest(*arrays: np.ndarray) -> str:
    """SHA-256 of numbers as little-endian float64; all of them are exact in it."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array, dtype="<f8").tobytes())
    return digest.hexdigest()


def _width(column: Column) -> int:
    """Inputs of one value: a mark for each category, or the place and a mark for each special value; then missing."""
    return (len(column.values) if isinstance(column, CategoricalColumn) else 1 + len(column.special)) + 1


def _encode(values: np.ndarray, column: Column) -> np.ndarray:
    """(*shape, width) float64, of values (*shape), NaN where missing."""
    missing = np.isnan(values)
    coded = np.zeros((*values.shape, _width(column)))
    coded[..., -1] = missing
    if isinstance(column, CategoricalColumn):
        codes = np.where(missing, len(column.values), values).astype(np.int64)
        np.put_along_axis(coded, codes[..., None], 1.0, axis=-1)
        return coded
    low, high = bounds_on_scale(column)
    inside = np.clip(np.where(missing, column.min, values), column.min, column.max)
    coded[..., 0] = (column.to_scale(inside, float(column.min)) - low) / (high - low)
    for at, special in enumerate(column.special, start=1):
        coded[..., at] = values == special
    return coded


def _values(values: pd.Series, name: str, column: Column) -> np.ndarray:
    """(rows,) float64, NaN where missing; categories as positions."""
    if isinstance(column, CategoricalColumn):
        return np.where(values.isna(), np.nan, make_grid(name, column).encode(values))
    return column.to_numbers(values)


def _plan(parts: int, label: int, channels: int, seed: str) -> Iterator[tuple[int, ...]]:
    """Which parts each hidden unit looks at; the last `channels` parts are channels, which pair with themselves too."""
    others = [part for part in range(parts) if part != label]
    pairs = [*combinations(others, 2), *((part, part) for part in range(parts - channels, parts))]
    order = np.argsort(_uniform(f"{seed}:pairs", len(pairs)), kind="stable")
    mixed = cycle([pairs[at] for at in order] or [(others[0],)])
    yield from islice(cycle((part,) for part in range(parts)), _SHARES[0])
    yield from islice(cycle((label, part) for part in others), _SHARES[1])
    yield from islice(mixed, _SHARES[2])
    yield from ((label, *pair) for pair in islice(mixed, _SHARES[3]))


def _first_layer(study: Study, steps: int, seed: str) -> csr_array:
    """(hidden, inputs): by how many turns of the circle an input moves the phase of a hidden unit."""
    columns, channels = list(study.columns.values()), list(study.channels.values())
    widths = [*map(_width, columns), *(steps * (_width(column) + 1) for column in channels)]
    starts = np.concatenate([[0], np.cumsum(widths)])
    label = list(study.columns).index(study.label.column)
    plan = _plan(len(widths), label, len(channels), seed)
    rows, inputs, turns = [], [], []
    for unit, looked_at in enumerate(plan):
        for which, part in enumerate(looked_at):
            stream = f"{seed}:{unit}:{which}"
            if part < len(columns):
                at, weights = np.arange(widths[part]), _turns(columns[part], 0, stream)
            else:
                at, weights = _window_turns(channels[part - len(columns)], steps, stream)
            inputs.append(starts[part] + at)
            turns.append(weights)
            rows.append(np.full(len(at), unit))
    shape = (_HIDDEN, int(starts[-1]))
    # Two parts may look at the same step of one channel: their turns are added.
    return csr_array((np.concatenate(turns), (np.concatenate(rows), np.concatenate(inputs))), shape=shape)


def _turns(column: Column, marks: int, stream: str) -> np.ndarray:
    """Of each input of one value, (width + marks,), so many marks behind them."""
    drawn = _uniform(stream, _width(column) + marks + 2)
    if isinstance(column, CategoricalColumn):
        return drawn[2:]
    octave = _OCTAVES[int(drawn[0] * len(_OCTAVES))]
    sign = 1.0 if drawn[1] < 0.5 else -1.0
    return np.concatenate([[sign * octave * (1.0 + drawn[2])], drawn[3:]])


def _window_turns(column: Column, steps: int, stream: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs of one channel, counted from its first, and their turns: one step, a block's mean or a difference."""
    turns = _turns(column, 1, stream)
    kind, place, reach = _uniform(f"{stream}:steps", 3)
    factors = np.zeros(steps)
    if isinstance(column, CategoricalColumn) or steps == 1 or kind < 1 / 3:
        factors[int(place * steps)] = 1.0
    else:
        apart = 2 ** int(reach * (steps - 1).bit_length())  # a power of two below the number of steps
        begin = int(place * (steps - apart))
        if kind < 2 / 3:
            factors[begin : begin + apart + 1] = 1.0 / (apart + 1)
        else:
            factors[begin], factors[begin + apart] = 1.0, -1.0
    used = np.flatnonzero(factors)
    at = used[:, None] * len(turns) + np.arange(len(turns))
    return at.ravel(), (factors[used, None] * turns).ravel()
