"""What is published of a generator, and its files: everything that rows are drawn from, and nothing else."""

import json
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save

from common.data.binning import Binning
from common.data.changes import BUCKETS
from common.data.encoding import Grid, make_grids
from common.errors import ReleaseFileError
from common.models.generator import Generator, initialise
from common.models.training import load_parameters, parameters_of
from common.study import Study, parse_study
from common.synthesis.courses import draw_trial
from common.synthesis.decoder import Decoder, fit_decoder
from common.wire.packing import shape_of

GENERATOR_SCHEMA: Final = "privshare.generator/2"
_WITHOUT_TABLES: Final = "privshare.generator/1"
"""The version before, which has no one-way tables."""
WEIGHTS: Final = "generator/generator.safetensors"
FACTS: Final = "generator/generator.json"


@dataclass(frozen=True)
class OneWay:
    """The released one-way tables of the measured columns, as noised.

    counts: of each column, (classes, bins) float64, estimated units; below 0 where noise says so.
    stddevs: of each column, (bins,) float64, of the noise in one count, in units.
    """

    counts: tuple[np.ndarray, ...]
    stddevs: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Release:
    """A released generator.

    study: that it was made for.
    generator: in its final form.
    binnings: of the measured columns, then of the channels.
    moves: (channels, classes, buckets), the noised tables of moves.
    label_counts: (classes,), the noised count of units of each class of the label.
    one_way: what columns were counted as; None of a release of the version before.
    """

    study: Study
    generator: Generator
    binnings: tuple[Binning, ...]
    moves: np.ndarray
    label_counts: np.ndarray
    one_way: OneWay | None = None

    @property
    def grids(self) -> tuple[Grid, ...]:
        """Of the measured columns, then of the channels."""
        return make_grids(self.study.measured) + make_grids(self.study.channels)

    @property
    def units(self) -> float:
        """The noised count of units that it learned from."""
        return float(self.label_counts.sum())

    @cached_property
    def decoder(self) -> Decoder:
        """What makes values of bins; fitted at the first request, and the same for all of them."""
        return fit_decoder(
            self.study,
            self.binnings,
            moves=self.moves,
            label_counts=self.label_counts,
            draw=partial(draw_trial, self.study, self.binnings, self.generator),
        )

    def files(self) -> dict[str, bytes]:
        """The files, by their names in the folder of a release."""
        arrays = parameters_of(self.generator)
        for position, binning in enumerate(self.binnings):
            arrays[f"bins.{position}"] = binning.bin_of
            arrays[f"within.{position}"] = binning.within
        arrays |= {"moves": self.moves, "label_counts": self.label_counts}
        for position in range(len(self.study.measured) if self.one_way else 0):
            assert self.one_way is not None
            arrays[f"one_way.{position}"] = self.one_way.counts[position]
            arrays[f"one_way_stddev.{position}"] = self.one_way.stddevs[position]
        facts = {
            "schema": GENERATOR_SCHEMA if self.one_way else _WITHOUT_TABLES,
            "study": json.loads(self.study.canonical()),
            "shape": self.generator.shape.as_dict(),
        }
        return {
            WEIGHTS: bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()})),
            FACTS: (json.dumps(facts, indent=2, allow_nan=False) + "\n").encode(),
        }


def load_release(folder: Path) -> Release:
    """Read the generator of a release folder. Nothing in it is executed, and nothing is taken on trust.

    Raises:
        ReleaseFileError: a file is missing, malformed, of another version, or does not fit the others.
        StudyError: the study in it is not valid.
    """
    facts = _read_facts(folder / FACTS)
    study = parse_study(facts["study"], source=f"{folder / FACTS}: study")
    path = folder / WEIGHTS
    try:
        arrays: dict[str, np.ndarray] = load(_read(path))
    except SafetensorError:
        raise ReleaseFileError(f"{path}: is not a safetensors file") from None
    grids = make_grids(study.measured) + make_grids(study.channels)
    classes = len(study.label_values)
    binnings = tuple(_take_binning(arrays, at, grid, classes, path) for at, grid in enumerate(grids))
    one_way = None
    if facts["schema"] != _WITHOUT_TABLES:
        sizes = [binning.n_bins for binning in binnings[: len(study.measured)]]
        tables = [_take_one_way(arrays, at, (classes, size), path) for at, size in enumerate(sizes)]
        one_way = OneWay(tuple(one for one, _ in tables), tuple(noise for _, noise in tables))
    moves, counts = (_take(arrays, name, path) for name in ("moves", "label_counts"))
    # Without channels there is nothing in it, however it is shaped.
    is_empty = not study.channels and moves.size == 0
    if not is_empty and moves.shape != (expected := (len(study.channels), classes, BUCKETS)):
        raise ReleaseFileError(f"{path}: moves: expected an array of {expected}")
    if not np.isfinite(moves).all():
        raise ReleaseFileError(f"{path}: moves: expected finite numbers")
    if counts.shape != (classes,) or not np.isfinite(counts).all() or not (counts >= 0).all() or not counts.sum() > 0:
        raise ReleaseFileError(f"{path}: label_counts: expected one for each class, >= 0, and not all 0")
    shape = shape_of(study, [binning.n_bins for binning in binnings])
    if json.loads(json.dumps(shape.as_dict())) != facts["shape"]:
        raise ReleaseFileError(f"{folder / FACTS}: shape: does not follow from the study and the bins")
    generator = initialise(shape, seed=0)
    try:
        load_parameters(generator, arrays)
    except ValueError as error:
        raise ReleaseFileError(f"{path}: {error}") from None
    if not all(torch.isfinite(value).all() for value in generator.state_dict().values()):
        raise ReleaseFileError(f"{path}: a parameter of the generator is not finite")
    return Release(study, generator, binnings, moves, counts, one_way)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ReleaseFileError(f"{path}: cannot be read ({error.strerror})") from None


def read_text(path: Path) -> str:
    """A file of a release.

    Raises:
        ReleaseFileError: it cannot be read, or is not UTF-8.
    """
    try:
        return _read(path).decode()
    except UnicodeDecodeError:
        raise ReleaseFileError(f"{path}: is not UTF-8 text") from None


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(_read(path))
    except ValueError:
        raise ReleaseFileError(f"{path}: is not JSON") from None
    if not isinstance(facts, dict) or facts.get("schema") not in (GENERATOR_SCHEMA, _WITHOUT_TABLES):
        raise ReleaseFileError(f"{path}: schema: expected {GENERATOR_SCHEMA} or {_WITHOUT_TABLES}")
    for name in ("study", "shape"):
        if not isinstance(facts.get(name), dict):
            raise ReleaseFileError(f"{path}: {name}: expected an object")
    return facts


def _take(arrays: dict[str, np.ndarray], name: str, path: Path) -> np.ndarray:
    """One array, taken out, so that what is left in the end is the generator's own."""
    found = arrays.pop(name, None)
    if found is None:
        raise ReleaseFileError(f"{path}: {name}: is missing")
    return found


def _take_binning(arrays: dict[str, np.ndarray], at: int, grid: Grid, classes: int, path: Path) -> Binning:
    bin_of, within = _take(arrays, f"bins.{at}", path), _take(arrays, f"within.{at}", path)
    if bin_of.shape != (grid.n_cells,) or bin_of.dtype != np.int64 or not _is_gapless(bin_of):
        raise ReleaseFileError(f"{path}: bins.{at}: expected the bin of each cell, numbered from 0 without gaps")
    if within.shape != (classes, grid.n_cells) or within.dtype != np.float64 or not _are_shares(within, bin_of):
        raise ReleaseFileError(f"{path}: within.{at}: expected shares of cells, 1 in each bin and class")
    return Binning(bin_of, within)


def _take_one_way(
    arrays: dict[str, np.ndarray], at: int, shape: tuple[int, int], path: Path
) -> tuple[np.ndarray, np.ndarray]:
    counts, noise = _take(arrays, f"one_way.{at}", path), _take(arrays, f"one_way_stddev.{at}", path)
    if counts.shape != shape or counts.dtype != np.float64 or not np.isfinite(counts).all():
        raise ReleaseFileError(f"{path}: one_way.{at}: expected a finite count of each class and bin")
    if noise.shape != shape[1:] or noise.dtype != np.float64 or not (np.isfinite(noise) & (noise > 0)).all():
        raise ReleaseFileError(f"{path}: one_way_stddev.{at}: expected a number above 0 of each bin")
    return counts, noise


def _is_gapless(bin_of: np.ndarray) -> bool:
    return bool((bin_of >= 0).all()) and len(np.unique(bin_of)) == int(bin_of.max()) + 1


def _are_shares(within: np.ndarray, bin_of: np.ndarray) -> bool:
    totals = np.stack([np.bincount(bin_of, weights=own) for own in within])
    return bool((within >= 0).all()) and bool(np.allclose(totals, 1.0))
