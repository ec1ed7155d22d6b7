"""The measured form of the semantic discriminator: mean embeddings of frozen features, by label.

A feature looks at a few columns, and perhaps at a channel in one step, at once: cos and sin of a sum of random phases,
one for each bin. Pairs of columns cannot show what three together say; a mean embedding can. The phases follow from the
study's digest, so they are public and nobody chose them. Given a latent the generator's columns are independent, so the
mean of a feature is a product of one factor a column: exact, with no sampled row.

Sources: Rahimi and Recht 2007 (random features); Harder et al. 2021 (DP-MERF, mean embeddings as targets).
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from common.data.queries import Coded
from common.models.generator import GeneratorShape, Outcome

FEATURES: Final = 128
PHASES: Final = 256
"""Phases are whole numbers of so many parts of a turn: sums of whole numbers are the same whoever stands beside."""
SCALE: Final = 2**20
"""Grid units of an embedding of norm 1."""
_AMPLITUDE: Final = math.isqrt(SCALE**2 // FEATURES)
_TURN: Final = 2 * np.pi * np.arange(PHASES) / PHASES
# Towards zero: the cosine and the sine of a phase never make more than the amplitude.
_COSINES: Final = np.trunc(_AMPLITUDE * np.cos(_TURN)).astype(np.int64)
_SINES: Final = np.trunc(_AMPLITUDE * np.sin(_TURN)).astype(np.int64)
_COLUMNS: Final = 3
"""Columns that one feature looks at."""


@dataclass(frozen=True)
class Features:
    """Frozen features.

    records: (record bins, FEATURES) int64, phases; 0 where a feature does not look. channels: (channel bins, FEATURES),
    likewise. steps: (FEATURES,) int64, in which step a feature looks at its channel; chosen: (FEATURES,) int64, at
    which channel, -1 for none.
    """

    records: np.ndarray
    channels: np.ndarray
    steps: np.ndarray
    chosen: np.ndarray

    @property
    def cells(self) -> int:
        """Numbers in one embedding."""
        return 2 * len(self.steps)


def freeze(shape: GeneratorShape, digest: str) -> Features:
    """The features of a study, from its digest and the number of bins.

    Every other feature of a study with windows looks at two columns and a channel, the rest at three columns.
    """
    random = np.random.default_rng(int(digest[:16], 16))
    sequence = shape.sequence
    records = np.zeros((sum(shape.sizes), FEATURES), dtype=np.int64)
    channels = np.zeros((sum(sequence.sizes) if sequence else 0, FEATURES), dtype=np.int64)
    starts = np.cumsum([0, *shape.sizes])
    steps, chosen = np.zeros(FEATURES, dtype=np.int64), np.full(FEATURES, -1, dtype=np.int64)
    for feature in range(FEATURES):
        with_channel = sequence is not None and feature % 2 == 1
        # The length cuts the window, so the two do not belong into one product.
        columns = [at for at in range(len(shape.sizes)) if not (with_channel and at == shape.length_column)]
        picked = min(_COLUMNS - with_channel, len(columns))
        for column in random.choice(columns, size=picked, replace=False):
            size = shape.sizes[column]
            records[starts[column] : starts[column] + size, feature] = random.integers(PHASES, size=size)
        if sequence is not None and with_channel:
            chosen[feature] = random.integers(len(sequence.sizes))
            steps[feature] = random.integers(sequence.steps)
            begin = sum(sequence.sizes[: chosen[feature]])
            size = sequence.sizes[chosen[feature]]
            channels[begin : begin + size, feature] = random.integers(PHASES, size=size)
    return Features(records, channels, steps, chosen)


def embed(coded: Coded, features: Features, shape: GeneratorShape) -> np.ndarray:
    """The embedding of each unit in the part of its label, (units, classes * cells) int64, SCALE grid units to one.

    Guarantees: a row has an L2 norm of at most SCALE, and depends on its own unit alone, to the last bit.
    Edge cases: a step that a window does not reach adds no phase.
    """
    starts = np.cumsum([0, *shape.sizes])[:-1]
    phase = features.records[coded.records + starts].sum(axis=1)  # (units, features)
    if coded.windows is not None and shape.sequence is not None:
        begins = np.cumsum([0, *shape.sequence.sizes])[:-1]
        for feature in np.flatnonzero(features.chosen >= 0):
            channel = features.chosen[feature]
            bins = coded.windows[:, features.steps[feature], channel]
            there = bins >= 0
            phase[there, feature] += features.channels[begins[channel] + bins[there], feature]
    phase %= PHASES
    placed = np.zeros((len(phase), shape.classes, features.cells), dtype=np.int64)
    placed[np.arange(len(phase)), coded.labels] = np.concatenate([_COSINES[phase], _SINES[phase]], axis=1)
    return placed.reshape(len(phase), -1)


class EmbeddingMeans:
    """The mean embedding of a generator."""

    def __init__(self, features: Features, shape: GeneratorShape, device: torch.device) -> None:
        def turned(phases: np.ndarray) -> Tensor:
            return torch.as_tensor(np.exp(2j * np.pi * phases / PHASES), dtype=torch.complex64, device=device)

        self._sizes = shape.sizes
        self._records = torch.split(turned(features.records), list(shape.sizes))
        self._channels = None
        if shape.sequence is not None:
            owner = np.repeat(np.arange(len(shape.sequence.sizes)), shape.sequence.sizes)
            looks = owner[:, None] == features.chosen[None, :]
            self._channels = turned(features.channels) * torch.as_tensor(looks, device=device)
            self._steps = torch.as_tensor(features.steps, device=device)
            self._plain = torch.as_tensor(features.chosen < 0, device=device)

    def expected(self, outcome: Outcome, parts: int) -> Tensor:
        """Mean embedding of parts of the rows, (parts, cells)."""
        mean: Tensor = torch.ones((), dtype=torch.complex64, device=outcome.records.device)
        for share, turned in zip(torch.split(outcome.records, list(self._sizes), dim=1), self._records, strict=True):
            mean = mean * (share.to(torch.complex64) @ turned)  # (rows, features)
        if outcome.courses is not None and self._channels is not None:
            levels = outcome.courses.levels[:, self._steps].to(torch.complex64)  # (rows, features, bins)
            factor = torch.einsum("rfb,bf->rf", levels, self._channels)
            alive = outcome.courses.weights.alive.expand(len(levels), -1)[:, self._steps]
            mean = mean * torch.where(self._plain, 1.0, factor * alive + (1 - alive))
        wave: Tensor = torch.cat([mean.real, mean.imag], dim=1) * (_AMPLITUDE / SCALE)
        return wave.view(parts, -1, wave.shape[1]).mean(dim=1)
