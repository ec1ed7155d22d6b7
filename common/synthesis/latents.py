"""How likely each latent of a generator makes what is asked for: exact conditioning on any columns.

Given a latent and a label class, the columns of a record are independent, so that the chance of a condition on several
columns is a product. Latents weighed by it are a sample of the latents of the rows that fulfil the condition; the other
columns are then drawn as ever. Nothing is rejected, and whether the condition was trained does not matter.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch

from common.data.binning import Binning
from common.data.selection import Selection, everything
from common.synthesis.draws import draw_rows, resample
from common.synthesis.release import Release
from common.synthesis.structure import Structure, parts_of, powers_of

_AT_ONCE: Final = 4096
_Key = tuple[Literal["asked", "tied", "bins"], str, int]
"""What of a column is known at each latent; the number is that of a selection."""


@dataclass(frozen=True)
class Drawn:
    """Values of some columns drawn at each class and latent, as far as the bin. Such are rows of which a few are taken.

    bins: by column, (classes, latents) int64.
    pieces: likewise, of columns that constraints tie.
    """

    bins: Mapping[str, np.ndarray]
    pieces: Mapping[str, np.ndarray]


class Latents:
    """Latents of a generator, and what it makes of them; more of them are drawn as they are needed.

    noise: (latents, latent), standard normals.
    structure: the constraints of the study on what the generator makes.
    """

    def __init__(
        self,
        release: Release,
        wanted: Mapping[str, Mapping[int, Selection]],
        *,
        seed: int,
        device: torch.device,
        bins_of: Collection[str] = (),
    ) -> None:
        """None yet.

        Args:
            release: of the generator.
            wanted: selections by column, and by a number of the caller's.
            seed: of the latents.
            device: of the generator.
            bins_of: measured columns whose bins will be asked for.
        """
        self.release = release
        self.noise = np.empty((0, release.generator.shape.latent), dtype=np.float32)
        self.structure = Structure(release, {name: own.values() for name, own in wanted.items()})
        self._wanted = wanted
        self._random = torch.Generator().manual_seed(seed)
        self._device = device
        self._generator = release.generator.to(device)
        self._position = {grid.name: at for at, grid in enumerate(release.grids[: len(release.study.measured)])}
        self._maps = self._make_maps(bins_of)
        self._found: dict[_Key, np.ndarray] = {}
        self._labels: dict[int, np.ndarray] = {
            number: one.shares()[:, None] for number, one in wanted.get(release.study.label.column, {}).items()
        }
        self._known: dict[tuple[tuple[str, int], ...], np.ndarray] = {}

    def _make_maps(self, bins_of: Collection[str]) -> dict[_Key, np.ndarray]:
        """From the bins of a column to what will be known of it, (classes, bins, outputs)."""
        maps: dict[_Key, np.ndarray] = {}
        for name, own in self._wanted.items():
            if name in self._position:
                maps |= {("asked", name, at): parts_of(self.binning(name), one)[:, :, None] for at, one in own.items()}
        for name, parts in self.structure.parts.items():
            maps["tied", name, 0] = parts.astype(np.float32)
        for name in bins_of:
            bins = np.eye(self.binning(name).n_bins, dtype=np.float32)
            maps["bins", name, 0] = np.repeat(bins[None], len(self.release.label_counts), axis=0)
        return maps

    def grow(self, size: int) -> None:
        """Draw latents until there are so many, and what is wanted at each of them."""
        fresh = torch.randn(max(0, size - len(self.noise)), self.noise.shape[1], generator=self._random).numpy()
        for key, found in self._ask(fresh).items():
            self._found[key] = np.concatenate([self._found[key], found], axis=1) if key in self._found else found
        self.noise = np.concatenate([self.noise, fresh])
        self._known = {}

    def weights(self, numbers: Mapping[str, int]) -> np.ndarray:
        """Chance of each class and latent, and that they make what is asked for; (classes, latents).

        Args:
            numbers: which selection of each column, by its number.
        """
        counts = self.release.label_counts
        weights = np.repeat(counts[:, None] / counts.sum() / max(1, len(self.noise)), len(self.noise), axis=1)
        for name, number in numbers.items():
            if name not in self.structure.names:
                weights = weights * self._chance(name, number)
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

    def _accept(self, numbers: Mapping[str, int], instead: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
        """Instead: (classes, latents, pieces), of a column; the result is linear in the chances of its pieces."""
        classes, latents = len(self.release.label_counts), len(self.noise)
        masks = self.structure.masks({name: self._wanted[name][number] for name, number in numbers.items()})
        pieces = {name: self._found["tied", name, 0] for name in self.structure.parts} | dict(instead or {})
        found = np.empty((classes, latents))
        for label in range(classes):
            chances = {name: own[label] for name, own in pieces.items()}
            found[label] = self.structure.accepted(chances, np.full(latents, label), masks)
        return found

    def _chance(self, name: str, number: int) -> np.ndarray:
        """Of a selection on a column that no constraint ties, (classes, latents) or (classes, 1)."""
        return self._labels[number] if name not in self._position else self._found["asked", name, number][:, :, 0]

    def draw_columns(self, names: Sequence[str], numbers: Mapping[str, int], random: np.random.Generator) -> Drawn:
        """Values of columns at each class and latent: what is asked for, and no constraint is violated.

        Where a latent makes nothing of what is asked for, anything may stand.

        Args:
            names: of the columns.
            numbers: see `weights`.
            random: of the draws.
        """
        shape = (len(self.release.label_counts), len(self.noise))
        bins = {name: np.zeros(shape, dtype=np.int64) for name in names}
        pieces = {name: np.zeros(shape, dtype=np.int64) for name in names if name in self.structure.names}
        tied = {name: number for name, number in numbers.items() if name in self.structure.names}
        masks = self.structure.masks({name: self._wanted[name][number] for name, number in tied.items()})
        for label in range(shape[0]):
            rows = np.flatnonzero(self._accepted(tied)[label] > 0) if pieces else np.arange(shape[1])
            if pieces:
                chances = {name: self._found["tied", name, 0][label, rows] for name in self.structure.parts}
                words = self.structure.draw(chances, np.full(len(rows), label), masks, random)
            for name in names:
                own = self._found["bins", name, 0][label, rows].astype(np.float64)
                if name in pieces:
                    pieces[name][label, rows] = words[name]
                    own *= self.structure.parts[name][label].T[words[name]]
                elif name in numbers:
                    own *= parts_of(self.binning(name), self._wanted[name][numbers[name]])[label]
                bins[name][label, rows] = draw_rows(own, random)
        return Drawn(bins, pieces)

    def powers(self, name: str, center: float, numbers: Mapping[str, int], drawn: Drawn) -> np.ndarray:
        """Expected 1, x - center and (x - center)^2 of a column in its drawn bins, (classes, latents, 3); 0 if missing.

        Args:
            name: of a numeric column that was drawn.
            center: in units of the column.
            numbers: that it was drawn for.
            drawn: by `draw_columns`.
        """
        labels, bins = np.arange(len(self.release.label_counts))[:, None], drawn.bins[name]
        if name in drawn.pieces:
            selections = [piece.selection for piece in self.structure.pieces[name]]
            tables = np.stack([powers_of(self.binning(name), one, center) for one in selections])
            return np.asarray(tables[drawn.pieces[name], labels, bins])
        grid = self.release.grids[self._position[name]]
        wanted = self._wanted[name][numbers[name]] if name in numbers else everything(grid)
        return np.asarray(powers_of(self.binning(name), wanted, center)[labels, bins])

    def bins(self, name: str) -> np.ndarray:
        """Chance of each bin of a measured column in rows that fulfil all constraints, (classes, latents, bins)."""
        found: np.ndarray = self._found["bins", name, 0]
        if name not in self.structure.names:
            return found
        parts, whole = self.structure.parts[name], self._accepted({})
        tied = np.stack(
            [
                self._accept({}, {name: found[:, :, at, None] * parts[:, None, at]})
                for at in range(self.binning(name).n_bins)
            ],
            axis=2,
        )
        return np.asarray(np.divide(tied, whole[:, :, None], out=np.zeros_like(tied), where=whole[:, :, None] > 0))

    def measure(self, numbers: Mapping[str, int]) -> tuple[float, float]:
        """The chance of what is asked for, and how many effective latents make it; arguments as of `weights`."""
        weights = self.weights(numbers)
        if self._is_free(numbers):
            return float(weights.sum()), math.inf if weights.any() else 0.0
        return float(weights.sum()), effective(weights)

    def draw(
        self,
        numbers: Mapping[str, int],
        size: int,
        random: np.random.Generator,
        *,
        ratio: np.ndarray | None = None,
        order: Sequence[np.ndarray] = (),
    ) -> tuple[np.ndarray, np.ndarray]:
        """Classes and latents by their weights, (size,) each; -1 for a latent on which nothing depends.

        Args:
            numbers: see `weights`.
            size: how many.
            random: of the draws.
            ratio: (classes, latents), that weights are to be multiplied by; None for 1.
            order: (classes, latents) each, of what is to be drawn evenly, the most important first.
        """
        weights = self.weights(numbers)
        if ratio is None and self._is_free(numbers):
            return resample(weights.sum(axis=1), size, random), np.full(size, -1)
        weights = weights if ratio is None else weights * ratio
        places = np.lexsort([one.ravel() for one in reversed(order)]) if order else np.arange(weights.size)
        labels, latents = np.divmod(places[resample(weights.ravel()[places], size, random)], len(self.noise))
        return labels, latents

    def _is_free(self, numbers: Mapping[str, int]) -> bool:
        return not set(numbers) & set(self._position)

    @torch.no_grad()
    def _ask(self, noise: np.ndarray) -> dict[_Key, np.ndarray]:
        """What is to be known at some latents, (classes, latents, outputs) each."""
        classes, starts = len(self.release.label_counts), np.cumsum([0, *self.release.generator.shape.sizes])
        found = {key: np.empty((classes, len(noise), own.shape[2]), dtype=own.dtype) for key, own in self._maps.items()}
        for begin in range(0, len(noise), _AT_ONCE):
            some = torch.from_numpy(noise[begin : begin + _AT_ONCE]).to(self._device)
            here = slice(begin, begin + len(some))
            for label in range(classes):
                labels = torch.full((len(some),), label, device=self._device)
                records = self._generator.records(some, labels).double().cpu().numpy()
                for key, own in self._maps.items():
                    at = self._position[key[1]]
                    found[key][label, here] = records[:, starts[at] : starts[at + 1]] @ own[label]
        return found

    def binning(self, name: str) -> Binning:
        """Of a measured column."""
        return self.release.binnings[self._position[name]]


def effective(weights: np.ndarray) -> float:
    """How many equally weighed latents the weighed ones are worth; 0 where no weight is above 0.

    Source: Kong 1992 (effective sample size of importance sampling).
    """
    total = float(weights.sum())
    return total**2 / float((weights**2).sum()) if total > 0 else 0.0
