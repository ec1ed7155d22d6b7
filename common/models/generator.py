"""The conditional generator: a mixture of products, so that its tables are exact and differentiable.

Given a latent z and a label class, the columns are independent; all dependence goes through z. Every pair table of the
generator's distribution is then one matrix product, with no sampled one-hot and no gradient estimator.
"""

from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class GeneratorShape:
    """What fixes the parameters' names and shapes; a site checks what arrives against it."""

    sizes: tuple[int, ...]
    classes: int
    latent: int
    width: int
    blocks: int

    def as_dict(self) -> dict[str, object]:
        """For generator.json."""
        return asdict(self)


class Generator(nn.Module):
    """(z, label) -> one probability vector a column.

    Body: concatenating blocks of Linear, LayerNorm, GELU (no BatchNorm: its running state would differ between sites);
    heads: one softmax a column. Source: paper section 3.1; algorithm notes, section 5.1.
    """

    column_of_bin: Tensor
    bin_in_column: Tensor

    def __init__(self, shape: GeneratorShape) -> None:
        super().__init__()
        self.shape = shape
        self.label_embedding = nn.Embedding(shape.classes, shape.latent)
        wide = 2 * shape.latent
        self.blocks = nn.ModuleList()
        for _ in range(shape.blocks):
            self.blocks.append(nn.Sequential(nn.Linear(wide, shape.width), nn.LayerNorm(shape.width), nn.GELU()))
            wide += shape.width
        self.heads = nn.Linear(wide, sum(shape.sizes))
        columns = np.repeat(np.arange(len(shape.sizes)), shape.sizes)
        inside = np.concatenate([np.arange(size) for size in shape.sizes])
        self.register_buffer("column_of_bin", torch.from_numpy(columns), persistent=False)
        self.register_buffer("bin_in_column", torch.from_numpy(inside), persistent=False)

    def forward(self, latent: Tensor, labels: Tensor) -> Tensor:
        """Bin probabilities, all columns side by side.

        Args:
            latent: (rows, latent), standard normal.
            labels: (rows,), int64 label codes.

        Returns:
            (rows, sum of sizes); the slice of each column sums to 1.
        """
        hidden = torch.cat([latent, self.label_embedding(labels)], dim=1)
        for block in self.blocks:
            hidden = torch.cat([hidden, block(hidden)], dim=1)
        logits = self.heads(hidden)
        # One softmax over a padded (rows, columns, widest column) cube is far cheaper than one a column.
        cube = logits.new_full((len(logits), len(self.shape.sizes), max(self.shape.sizes)), -torch.inf)
        cube[:, self.column_of_bin, self.bin_in_column] = logits
        return torch.softmax(cube, dim=2)[:, self.column_of_bin, self.bin_in_column]


def initialise(shape: GeneratorShape, *, seed: int) -> Generator:
    """A generator with weights drawn from a seed, without touching the global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Generator(shape)


@torch.no_grad()
def draw_bins(
    generator: Generator, labels: np.ndarray, *, seed: int, device: torch.device, chunk: int = 8192
) -> np.ndarray:
    """One row of bins for each label: a fresh z, then one categorical draw a column; (rows, columns) int64."""
    random = torch.Generator(device=device).manual_seed(seed)
    sizes = generator.shape.sizes
    starts = np.concatenate([[0], np.cumsum(sizes)])
    parts = []
    for begin in range(0, len(labels), chunk):
        classes = torch.from_numpy(np.ascontiguousarray(labels[begin : begin + chunk])).to(device)
        latent = torch.randn(len(classes), generator.shape.latent, generator=random, device=device)
        shares = generator(latent, classes)
        drawn = [torch.multinomial(shares[:, start:end], 1, generator=random)[:, 0] for start, end in pairwise(starts)]
        parts.append(torch.stack(drawn, dim=1).cpu().numpy())
    return np.concatenate(parts) if parts else np.empty((0, len(sizes)), dtype=np.int64)
