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
from common.data.selection import Selection
from common.synthesis.release import Release
from common.synthesis.structure import Structure, parts_of

_AT_ONCE: Final = 4096


class Latents:
    """Latents of a generator, and what it makes of them; more of them are drawn as they are needed.

    noise: (latents, latent), standard normals.
    structure: the constraints of the study on what the generator makes.
    """

    def __init__(
        self, release: Release, wanted: Mapping[str, Mapping[int, Selection]], *, seed: int, device: torch.device
    ) -> None:
        """None yet.

        Args:
            release: of the generator.
            wanted: selections by column, and by a number of the caller's.
            seed: of the latents.
            device: of the generator.
        """
        self.release = release
        self.noise = np.empty((0, release.generator.shape.latent), dtype=np.float32)
        self.structure = Structure(release, {name: own.values() for name, own in wanted.items()})
        self._wanted = wanted
        self._random = torch.Generator().manual_seed(seed)
        self._device = device
        self._generator = release.generator.to(device)
        self._position = {grid.name: at for at, grid in enumerate(release.grids[: len(release.study.measured)])}
        self._chances: dict[tuple[str, int], np.ndarray] = {}
        self._tied: dict[str, np.ndarray] = {}
        self._known: dict[tuple[tuple[str, int], ...], np.ndarray] = {}

    def grow(self, size: int) -> None:
        """Draw latents until there are so many, and what is wanted at each of them."""
        fresh = torch.randn(max(0, size - len(self.noise)), self.noise.shape[1], generator=self._random).numpy()
        found, tied = self._ask(fresh)
        for key, chances in found.items():
            before = self._chances.get(key, np.empty((len(chances), 0)))
            self._chances[key] = np.concatenate([before, chances], axis=1)
        for name, pieces in tied.items():
            earlier = self._tied.get(name, np.empty((len(pieces), 0, pieces.shape[2]), dtype=np.float32))
            self._tied[name] = np.concatenate([earlier, pieces], axis=1)
        self.noise = np.concatenate([self.noise, fresh])
        self._known = {}
        label = self.release.study.label.column
        for number, selection in self._wanted.get(label, {}).items():
            shares = selection.shares()
            self._chances[label, number] = np.repeat(shares[:, None], len(self.noise), axis=1)

    def weights(self, numbers: Mapping[str, int]) -> np.ndarray:
        """Chance of each class and latent, and that they make what is asked for; (classes, latents).

        Args:
            numbers: which selection of each column, by its number.
        """
        counts = self.release.label_counts
        weights = np.repeat(counts[:, None] / counts.sum() / max(1, len(self.noise)), len(self.noise), axis=1)
        for name, number in numbers.items():
            if name not in self.structure.names:
                weights = weights * self._chances[name, number]
        if not self.structure:
            return weights
        # The classes keep the shares that were released; within each, latents count as far as they fulfil constraints.
        fulfilling = self._accepted({}).mean(axis=1, keepdims=True)
        asked = self._accepted({name: number for name, number in numbers.items() if name in self.structure.names})
        shares = np.divide(asked, fulfilling, out=np.zeros_like(asked), where=fulfilling > 0)
        return np.asarray(weights * shares)

    def _accepted(self, numbers: Mapping[str, int]) -> np.ndarray:
        """Chance that tied columns are what is asked for and that all constraints hold; (classes, latents)."""
        key = tuple(sorted(numbers.items()))
        if key not in self._known:
            self._known[key] = self._accept(numbers)
        return self._known[key]

    def _accept(self, numbers: Mapping[str, int]) -> np.ndarray:
        classes, latents = len(self.release.label_counts), len(self.noise)
        masks = self.structure.masks({name: self._wanted[name][number] for name, number in numbers.items()})
        found = np.empty((classes, latents))
        for label in range(classes):
            chances = {name: pieces[label] for name, pieces in self._tied.items()}
            found[label] = self.structure.accepted(chances, np.full(latents, label), masks)
        return found

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
    def _ask(self, noise: np.ndarray) -> tuple[dict[tuple[str, int], np.ndarray], dict[str, np.ndarray]]:
        """(classes, latents) of each selection; (classes, latents, pieces) of each tied column."""
        release, structure = self.release, self.structure
        classes, starts = len(release.label_counts), np.concatenate([[0], np.cumsum(release.generator.shape.sizes)])
        keys = [(name, number) for name, own in self._wanted.items() if name in self._position for number in own]
        parts = {key: parts_of(self.binning(key[0]), self._wanted[key[0]][key[1]]) for key in keys}
        found = {key: np.empty((classes, len(noise))) for key in keys}
        tied = {
            name: np.empty((classes, len(noise), own.shape[2]), dtype=np.float32)
            for name, own in structure.parts.items()
        }
        for begin in range(0, len(noise), _AT_ONCE):
            some = torch.from_numpy(noise[begin : begin + _AT_ONCE]).to(self._device)
            here = slice(begin, begin + len(some))
            for label in range(classes):
                labels = torch.full((len(some),), label, device=self._device)
                records = self._generator.records(some, labels).double().cpu().numpy()
                for key, shares in parts.items():
                    at = self._position[key[0]]
                    found[key][label, here] = records[:, starts[at] : starts[at + 1]] @ shares[label]
                for name, pieces in tied.items():
                    at = self._position[name]
                    pieces[label, here] = records[:, starts[at] : starts[at + 1]] @ structure.parts[name][label]
        return found, tied

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
