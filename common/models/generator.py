"""The conditional generator: a mixture whose parts are simple enough for its tables to be exact and differentiable.

Given a latent z and a label class, the columns of a record are independent, and so are record and window; all
dependence goes through z. Every pair table of the generator's distribution is then one matrix product, with no sampled
one-hot and no gradient estimator. Windows: see `sequences`.
"""

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from common.models.paths import PathHead, path_noise
from common.models.sequences import Courses, SequenceShape, choose, softmax_of_few, weights_of
from common.models.states import StateHead

_TOKENS = 8
_HEADS = 4


@dataclass(frozen=True)
class GeneratorShape:
    """What fixes the parameters' names and shapes; a site checks what arrives against it.

    sizes: bins of each column of the record. body: how z becomes features. sequence: of the windows, if there are any.
    length_column: position of the column that says how many steps a unit has, its first bin `fewest`; None where all
    have the same number.
    """

    sizes: tuple[int, ...]
    classes: int
    latent: int
    width: int
    blocks: int
    body: Literal["mlp", "attention"] = "mlp"
    sequence: SequenceShape | None = None
    length_column: int | None = None
    fewest: int = 0

    @property
    def noise(self) -> int:
        """Standard normals that a row needs: the latent, then what the paths of a grid are made of."""
        sequence = self.sequence
        if sequence is None or sequence.kind == "states":
            return self.latent
        return self.latent + path_noise(sequence)

    def as_dict(self) -> dict[str, object]:
        """For generator.json."""
        return asdict(self) | {"sequence": self.sequence and self.sequence.as_dict()}


@dataclass(frozen=True)
class Outcome:
    """What a generator says for some latents.

    records: (rows, record bins), bin probabilities, all columns side by side. courses: of the windows, if any.
    shape: of the generator.
    """

    records: Tensor
    courses: Courses | None
    shape: GeneratorShape


class _Blocks(nn.Module):
    """Concatenating blocks of Linear, LayerNorm, GELU; no BatchNorm: its running state would differ between sites."""

    def __init__(self, wide: int, shape: GeneratorShape) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for _ in range(shape.blocks):
            self.blocks.append(nn.Sequential(nn.Linear(wide, shape.width), nn.LayerNorm(shape.width), nn.GELU()))
            wide += shape.width
        self.wide = wide

    def forward(self, hidden: Tensor) -> Tensor:
        for block in self.blocks:
            hidden = torch.cat([hidden, block(hidden)], dim=1)
        return hidden


class _Attention(nn.Module):
    """Self-attention between a few tokens that z and the label are mapped to (the paper's SAGAN line, for tables)."""

    def __init__(self, wide: int, shape: GeneratorShape) -> None:
        super().__init__()
        token = max(_HEADS, shape.width // _TOKENS // _HEADS * _HEADS)
        self.tokens = nn.Linear(wide, _TOKENS * token)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                token,
                _HEADS,
                dim_feedforward=2 * token,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(shape.blocks)
        )
        self.wide = wide + _TOKENS * token

    def forward(self, hidden: Tensor) -> Tensor:
        tokens = self.tokens(hidden).view(len(hidden), _TOKENS, -1)
        for layer in self.layers:
            tokens = layer(tokens)
        return torch.cat([hidden, tokens.flatten(1)], dim=1)


class Generator(nn.Module):
    """(noise, label) -> one probability vector a column, and a distribution over windows.

    Source: paper sections 3.1 and 3.5 (replaceable types); algorithm notes, sections 5.1 and 8.
    """

    column_of_bin: Tensor
    bin_in_column: Tensor

    def __init__(self, shape: GeneratorShape) -> None:
        super().__init__()
        self.shape = shape
        self.label_embedding = nn.Embedding(shape.classes, shape.latent)
        self.body = (_Attention if shape.body == "attention" else _Blocks)(2 * shape.latent, shape)
        self.heads = nn.Linear(self.body.wide, sum(shape.sizes))
        self.sequence: PathHead | StateHead | None = None
        if shape.sequence is not None:
            self.sequence = (PathHead if shape.sequence.kind == "paths" else StateHead)(self.body.wide, shape.sequence)
        columns = np.repeat(np.arange(len(shape.sizes)), shape.sizes)
        inside = np.concatenate([np.arange(size) for size in shape.sizes])
        self.register_buffer("column_of_bin", torch.from_numpy(columns), persistent=False)
        self.register_buffer("bin_in_column", torch.from_numpy(inside), persistent=False)

    def forward(self, noise: Tensor, labels: Tensor) -> Outcome:
        """Distributions of records and windows.

        Args:
            noise: (rows, shape.noise), standard normal.
            labels: (rows,), int64 label codes.
        """
        latent, course = noise[:, : self.shape.latent], noise[:, self.shape.latent :]
        hidden = self.features(latent, labels)
        records = self._records(hidden)
        if self.sequence is None:
            return Outcome(records, None, self.shape)
        column = self.shape.length_column
        counted = 0 if column is None else self.shape.sizes[column]
        weights = weights_of(self._lengths(records), counted=counted)
        return Outcome(records, self.sequence(hidden, course, weights), self.shape)

    def records(self, latent: Tensor, labels: Tensor) -> Tensor:
        """The records of `forward` alone, (rows, record bins); latent: (rows, latent), standard normal."""
        return self._records(self.features(latent, labels))

    def features(self, latent: Tensor, labels: Tensor) -> Tensor:
        """What record and window are made of, (rows, wide); latent: (rows, latent), standard normal."""
        features: Tensor = self.body(torch.cat([latent, self.label_embedding(labels)], dim=1))
        return features

    def _records(self, hidden: Tensor) -> Tensor:
        logits = self.heads(hidden)
        # One softmax over a padded (rows, columns, widest column) cube is far cheaper than one a column.
        cube = logits.new_full((len(logits), len(self.shape.sizes), max(self.shape.sizes)), -torch.inf)
        cube[:, self.column_of_bin, self.bin_in_column] = logits
        return softmax_of_few(cube)[:, self.column_of_bin, self.bin_in_column]

    def _lengths(self, records: Tensor) -> Tensor:
        """Chance of each number of steps, (rows, steps + 1)."""
        shape = self.shape
        assert shape.sequence is not None
        lengths = records.new_zeros(len(records), shape.sequence.steps + 1)
        if shape.length_column is None:
            lengths[:, -1] = 1.0
        else:
            begin = sum(shape.sizes[: shape.length_column])
            lengths[:, shape.fewest :] = records[:, begin : begin + shape.sizes[shape.length_column]]
        return lengths


def initialise(shape: GeneratorShape, *, seed: int) -> Generator:
    """A generator with weights drawn from a seed, without touching the global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Generator(shape)


@torch.no_grad()
def draw_bins(
    generator: Generator, labels: np.ndarray, *, seed: int, device: torch.device, chunk: int = 8192
) -> tuple[np.ndarray, np.ndarray | None]:
    """One unit for each label: a fresh z, one categorical draw a column, one path through its window.

    Returns:
        records (rows, columns) int64; windows (rows, steps, channels) int64, -1 beyond a unit's last step, or None.
    """
    random = torch.Generator(device=device).manual_seed(seed)
    generator, shape = generator.to(device), generator.shape
    records = [np.empty((0, len(shape.sizes)), dtype=np.int64)]
    windows = []
    for begin in range(0, len(labels), chunk):
        classes = torch.from_numpy(np.ascontiguousarray(labels[begin : begin + chunk])).to(device)
        noise = torch.randn(len(classes), shape.noise, generator=random, device=device)
        outcome = generator(noise, classes)
        records.append(draw_records(outcome, random))
        if outcome.courses is not None:
            windows.append(outcome.courses.draw(random).cpu().numpy())
    if shape.sequence is None:
        return np.concatenate(records), None
    empty = np.empty((0, shape.sequence.steps, len(shape.sequence.sizes)), dtype=np.int64)
    return np.concatenate(records), cut_windows(np.concatenate([empty, *windows]), np.concatenate(records), shape)


def draw_records(outcome: Outcome, random: torch.Generator) -> np.ndarray:
    """One categorical draw a column, (rows, columns) int64."""
    starts = np.concatenate([[0], np.cumsum(outcome.shape.sizes)])
    drawn = [choose(outcome.records[:, start:end], random) for start, end in pairwise(starts)]
    return np.asarray(torch.stack(drawn, dim=1).cpu().numpy())


def cut_windows(windows: np.ndarray, records: np.ndarray, shape: GeneratorShape) -> np.ndarray:
    """-1 beyond the number of steps that the record says, and no gap before a window that holds all that its unit has.

    The gap is taken away here alone: whether it was there is a matter of the window's length, which expected tables
    do not tell apart from what the first step holds.
    """
    sequence = shape.sequence
    if sequence is None or shape.length_column is None:
        return windows
    lengths = records[:, shape.length_column] + shape.fewest
    if sequence.gap is not None:
        windows[lengths < sequence.steps, 0, sequence.gap] = sequence.values[sequence.gap]
    windows[np.arange(windows.shape[1]) >= lengths[:, None]] = -1
    return windows
