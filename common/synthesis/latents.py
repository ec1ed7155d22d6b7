"""How likely each latent of a generator makes what is asked for: exact conditioning on any columns.

Given a latent and a label class, the columns of a record are independent, so that the chance of a condition on several
columns is a product. Latents weighed by it are a sample of the latents of the rows that fulfil the condition; the other
columns are then drawn as ever. Nothing is rejected, and whether the condition was trained does not matter.
"""

import math
from collections.abc import Mapping
from typing import Final

import numpy as np
import torch

from common.data.binning import Binning
from common.synthesis.release import Release
from common.synthesis.selection import Selection

_AT_ONCE: Final = 4096


class Latents:
    """Latents of a generator, and what it makes of them; more of them are drawn as they are needed.

    noise: (latents, latent), standard normals.
    """

    def __init__(self, release: Release, *, seed: int, device: torch.device) -> None:
        self.release = release
        self.noise = np.empty((0, release.generator.shape.latent), dtype=np.float32)
        self._random = torch.Generator().manual_seed(seed)
        self._device = device
        self._generator = release.generator.to(device)
        self._position = {grid.name: at for at, grid in enumerate(release.grids[: len(release.study.measured)])}
        self._chances: dict[tuple[str, int], np.ndarray] = {}

    def grow(self, size: int, wanted: Mapping[str, Mapping[int, Selection]]) -> None:
        """Draw latents until there are so many, and the chance of each selection at each of them.

        Args:
            size: how many.
            wanted: selections by column, and by a number of the caller's; the same ones in every call.
        """
        fresh = torch.randn(max(0, size - len(self.noise)), self.noise.shape[1], generator=self._random).numpy()
        found = self._ask(fresh, {name: own for name, own in wanted.items() if name in self._position})
        for key, chances in found.items():
            before = self._chances.get(key, np.empty((len(chances), 0)))
            self._chances[key] = np.concatenate([before, chances], axis=1)
        self.noise = np.concatenate([self.noise, fresh])
        label = self.release.study.label.column
        for number, selection in wanted.get(label, {}).items():
            shares = selection.shares()
            self._chances[label, number] = np.repeat(shares[:, None], len(self.noise), axis=1)

    def weights(self, numbers: Mapping[str, int]) -> np.ndarray:
        """Chance of each class and latent, and that they make what is asked for; (classes, latents).

        Args:
            numbers: which selection of each column, by the numbers that `grow` was given.
        """
        counts = self.release.label_counts
        weights = np.repeat(counts[:, None] / counts.sum() / max(1, len(self.noise)), len(self.noise), axis=1)
        for name, number in numbers.items():
            weights = weights * self._chances[name, number]
        return weights

    def measure(self, numbers: Mapping[str, int]) -> tuple[float, float]:
        """The chance of what is asked for, and how many effective latents make it; arguments as of `weights`."""
        weights = self.weights(numbers)
        if self._is_free(numbers):
            return float(weights.sum()), math.inf if weights.any() else 0.0
        return float(weights.sum()), effective(weights)

    def draw(self, numbers: Mapping[str, int], size: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Classes and latents by their weights, (size,) each; -1 for a latent on which nothing depends."""
        weights = self.weights(numbers)
        if self._is_free(numbers):
            return resample(weights.sum(axis=1), size, random), np.full(size, -1)
        labels, latents = np.divmod(resample(weights.ravel(), size, random), len(self.noise))
        return labels, latents

    def _is_free(self, numbers: Mapping[str, int]) -> bool:
        return not set(numbers) & set(self._position)

    @torch.no_grad()
    def _ask(
        self, noise: np.ndarray, wanted: Mapping[str, Mapping[int, Selection]]
    ) -> dict[tuple[str, int], np.ndarray]:
        """(classes, latents) of each selection."""
        release = self.release
        classes, starts = len(release.label_counts), np.concatenate([[0], np.cumsum(release.generator.shape.sizes)])
        found = {(name, number): np.empty((classes, len(noise))) for name, own in wanted.items() for number in own}
        parts = {key: self.parts(key[0], wanted[key[0]][key[1]]) for key in found}
        for begin in range(0, len(noise), _AT_ONCE):
            some = torch.from_numpy(noise[begin : begin + _AT_ONCE]).to(self._device)
            for label in range(classes):
                labels = torch.full((len(some),), label, device=self._device)
                records = self._generator.records(some, labels).double().cpu().numpy()
                for key, shares in parts.items():
                    at = self._position[key[0]]
                    chance = records[:, starts[at] : starts[at + 1]] @ shares[label]
                    found[key][label, begin : begin + len(some)] = chance
        return found

    def parts(self, name: str, selection: Selection) -> np.ndarray:
        """Share of each bin of a column that is wanted, (classes, bins), by the released shares of its cells."""
        binning = self.binning(name)
        wanted = binning.within * selection.shares()
        return np.stack([np.bincount(binning.bin_of, weights=own, minlength=binning.n_bins) for own in wanted])

    def binning(self, name: str) -> Binning:
        """Of a measured column."""
        return self.release.binnings[self._position[name]]


def effective(weights: np.ndarray) -> float:
    """How many equally weighed latents the weighed ones are worth; 0 where no weight is above 0.

    Source: Kong 1992 (effective sample size of importance sampling).
    """
    total = float(weights.sum())
    return total**2 / float((weights**2).sum()) if total > 0 else 0.0


def resample(weights: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    """Positions drawn by weight, (size,), each as often as its share says or once more or less; in rising order.

    Source: Carpenter et al. 1999 (systematic resampling).
    """
    edges = np.cumsum(weights / weights.sum())
    points = (np.arange(size) + random.random()) / size
    return np.minimum(np.searchsorted(edges, points, side="right"), int(np.flatnonzero(weights)[-1]))


def whole_shares(counts: np.ndarray, rows: int) -> np.ndarray:
    """Whole rows of each of some shares, by largest remainder; (shares,) int64."""
    exact = counts / counts.sum() * rows
    whole = np.floor(exact).astype(np.int64)
    most = np.argsort(-(exact - whole), kind="stable")[: rows - int(whole.sum())]
    whole[most] += 1
    return np.asarray(whole)
