"""The measured form of the statistical discriminator.

Its test functions are the indicators of every table cell. Their real-side expectations are released once with noise;
the optimal linear discriminator against any generator is then known in closed form, and what it says is the Gaussian
log-likelihood of the releases. It costs no privacy per generator step.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.data.tables import TableLayout


@dataclass(frozen=True)
class Targets:
    """Released tables over bins, as a generator is compared with them.

    one_way: (classes, bins) noised counts, all columns side by side; one_way_precision: (bins,), 1 / variance.
    pairs: (classes, bins, bins) noised counts, upper blocks only; pairs_precision: (bins, bins), 0 where not measured.
    label_counts: (classes,), estimated units of each class.
    """

    one_way: np.ndarray
    one_way_precision: np.ndarray
    pairs: np.ndarray
    pairs_precision: np.ndarray
    label_counts: np.ndarray


def assemble(
    *,
    layout: TableLayout,
    pair_counts: np.ndarray,
    pair_variance: np.ndarray,
    one_way: np.ndarray,
    one_way_variance: np.ndarray,
    label_counts: np.ndarray,
) -> Targets:
    """Lay flat pair tables out as one block matrix a class.

    Args:
        layout: of the pair tables, over bins.
        pair_counts: (cells,), noised counts in units.
        pair_variance: (tables,), noise variance of one cell of each table.
        one_way: (classes, bins), noised counts.
        one_way_variance: (bins,), of one of them.
        label_counts: (classes,).
    """
    starts = np.concatenate([[0], np.cumsum(layout.sizes)])
    bins = int(starts[-1])
    pairs = np.zeros((layout.classes, bins, bins))
    precision = np.zeros((bins, bins))
    for (left, right), table, variance in zip(layout.columns, layout.split(pair_counts), pair_variance, strict=True):
        block = (slice(starts[left], starts[left + 1]), slice(starts[right], starts[right + 1]))
        pairs[:, *block] = table
        precision[block] = 1.0 / variance
    return Targets(one_way, 1.0 / one_way_variance, pairs, precision, label_counts)


class StatisticalCritic:
    """Compares a generator's exact tables with released ones, weighted by the precision of each release.

    Source: paper section 3.2 (statistical discriminator); algorithm notes, section 4.2.
    """

    def __init__(self, targets: Targets, device: torch.device) -> None:
        def tensor(values: np.ndarray) -> Tensor:
            return torch.as_tensor(values, dtype=torch.float32, device=device)

        self._counts = tensor(np.maximum(targets.label_counts, 1.0))
        self._one_way = tensor(targets.one_way)
        self._one_way_precision = tensor(targets.one_way_precision)
        self._pairs = tensor(targets.pairs)
        self._pairs_precision = tensor(targets.pairs_precision)
        cells = targets.one_way.size + targets.pairs.shape[0] * int((targets.pairs_precision > 0).sum())
        self._cells = float(cells)

    @property
    def classes(self) -> int:
        """Label classes."""
        return len(self._counts)

    def loss(self, shares: Tensor) -> Tensor:
        """Unbiased estimate of the mean squared distance to the releases, in noise variances.

        The two halves of the latents estimate the generator's tables independently, and the distance is the product of
        the two differences: its expectation holds no variance of the latents. The plain square does, and minimising it
        would push the generator towards columns that ignore z.

        Args:
            shares: (classes, rows, bins), the generator's bin probabilities; rows is even.
        """
        half = shares.shape[1] // 2
        first, second = (self._differences(part) for part in (shares[:, :half], shares[:, half:]))
        one_way = (first[0] * second[0] * self._one_way_precision).sum()
        pairs = (first[1] * second[1] * self._pairs_precision).sum()
        return (one_way + pairs) / self._cells

    def _differences(self, shares: Tensor) -> tuple[Tensor, Tensor]:
        counts = self._counts[:, None]
        one_way = shares.mean(dim=1) * counts - self._one_way
        pairs = torch.bmm(shares.transpose(1, 2), shares) / shares.shape[1] * counts[:, :, None] - self._pairs
        return one_way, pairs
