"""People of a small study, and generators of which it is known what they remember of whom."""

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from common.data.binning import Binning
from common.data.encoding import make_grids
from common.data.queries import Coded
from common.data.windows import WindowedTable
from common.evaluation.attacks.coded import encode
from common.evaluation.attacks.white_box import Published
from common.evaluation.figures import Population
from common.models.generator import GeneratorShape, Outcome
from common.models.paths import Paths
from common.models.releases import Bins
from common.models.sequences import Courses, SequenceShape, weights_of
from common.models.states import States
from common.study import Study, parse_study

CPU = torch.device("cpu")
COLOURS = list("abcdef")
_MORE = ("four", "five", "six", "seven", "eight")
_COLUMNS = {
    "one": {"type": "categorical", "categories": COLOURS},
    "two": {"type": "categorical", "categories": COLOURS, "missing": True},
    "three": {"type": "categorical", "categories": COLOURS},
    "age": {"type": "integer", "min": 0, "max": 19, "missing": True},
    **{name: {"type": "categorical", "categories": COLOURS} for name in _MORE},
    "sum": {"type": "continuous", "min": 0, "max": 8, "decimals": 1, "cells": 8},
    "risk": {"type": "categorical", "categories": ["low", "high"]},
}
_CHANNELS = {
    "pulse": {"type": "integer", "min": 0, "max": 4, "missing": False},
    "state": {"type": "categorical", "categories": COLOURS[:4], "missing": True},
}
STEPS = 6


def make_study(layout: str | None = None, **more: object) -> Study:
    """A study of records, or with windows on a grid or of events."""
    windows: dict[str, object] = {}
    if layout is not None:
        own = {"step": 1, "start": 0} if layout == "grid" else {"empty": "allow"}
        time = {"column": "hour", "type": "number"}
        channels = {"time": time, "layout": layout, "length": STEPS, "channels": _CHANNELS, **own}
        windows = {"windows": channels}
    data = {
        "name": "toy",
        "unit": {"key": "who", "max_records": 4 if layout is None else 1},
        "label": {"column": "risk", "positive": "high"},
        "columns": _COLUMNS,
        "privacy": {"epsilon": 1, "delta": 1e-6},
        **windows,
        **more,
    }
    return parse_study(data, source="test")


def draw(study: Study, units: int, seed: int, *, records: int = 1) -> Population:
    """People of two kinds, who differ in their columns, with so many records each."""
    random = np.random.default_rng(seed)
    rows = units * records
    kind = random.random(rows) < 0.4

    def chosen(size: int, often: int, other: int) -> np.ndarray:
        favourite = np.where(kind, often, other)
        return np.where(random.random(rows) < 0.5, favourite, random.integers(0, size, rows))

    two = np.where(random.random(rows) < 0.1, -1, chosen(6, 1, 4))
    age = pd.array(chosen(20, 3, 15), dtype="Int64")
    age[random.random(rows) < 0.1] = pd.NA
    table = pd.DataFrame(
        {
            "one": pd.Categorical.from_codes(chosen(6, 0, 3), COLOURS),
            "two": pd.Categorical.from_codes(two, COLOURS),
            "three": pd.Categorical.from_codes(chosen(6, 2, 5), COLOURS),
            "age": age,
            **{name: pd.Categorical.from_codes(chosen(6, 1, 4), COLOURS) for name in _MORE},
            "sum": np.round(random.uniform(0, 4, rows) + 4 * kind, 1),
            "risk": pd.Categorical.from_codes(chosen(2, 0, 1), ["low", "high"]),
        }
    )
    owner = np.repeat(np.arange(units), records)
    if study.windows is None:
        return Population(WindowedTable.without_windows(table), owner)
    lengths = np.full(rows, STEPS) if study.windows.layout == "grid" else random.integers(0, STEPS + 1, rows)
    values = np.stack([random.integers(0, 5, (rows, STEPS)), random.integers(0, 4, (rows, STEPS))], axis=2).astype(
        np.float64
    )
    values[:, :, 1][random.random((rows, STEPS)) < 0.2] = np.nan
    values[np.arange(STEPS) >= lengths[:, None]] = np.nan
    return Population(WindowedTable(table, values, lengths.astype(np.int64)), owner)


def make_bins(study: Study) -> Bins:
    """A bin for each cell."""
    grids, classes = (*make_grids(study.measured), *make_grids(study.channels)), len(study.label_values)
    binnings = tuple(Binning(np.arange(grid.n_cells), np.ones((classes, grid.n_cells))) for grid in grids)
    return Bins(binnings, (), len(study.measured), np.zeros((len(study.channels), classes, 1)))


def shape_for(study: Study, bins: Bins) -> GeneratorShape:
    """Of a generator whose latent is one number."""
    sizes, sequence = bins.sizes, None
    if study.windows is not None:
        grids = make_grids(study.channels)
        sequence = SequenceShape(
            kind="paths" if study.windows.layout == "grid" else "states",
            steps=STEPS,
            blocks=tuple(study.windows.blocks),
            sizes=sizes[bins.columns :],
            missing=tuple(grid.column.missing for grid in grids),
            ordered=tuple(grid.is_ordered for grid in grids),
            states=STEPS,
        )
    length = bins.columns - 1 if study.windows is not None and study.windows.varies else None
    return GeneratorShape(
        sizes[: bins.columns], len(study.label_values), 1, 8, 1, sequence=sequence, length_column=length
    )


class Memory(nn.Module):
    """A generator each of whose latents is one row of a table, of the label that is asked for.

    certain: the chance that a latent gives to each value of its row; the rest goes to all bins evenly.
    blurred: columns that it does not remember at all.
    """

    def __init__(
        self, shape: GeneratorShape, coded: Coded, *, certain: float = 1.0, forgets_records: bool = False
    ) -> None:
        super().__init__()
        self.shape, self._coded = shape, coded
        self._certain, self._forgets = certain, forgets_records

    def forward(self, noise: Tensor, labels: Tensor) -> Outcome:
        rows = np.empty(len(noise), dtype=np.int64)
        place = torch.special.ndtr(noise[:, 0]).double().numpy()
        for label in np.unique(labels.numpy()):
            known, asked = np.flatnonzero(self._coded.labels == label), np.flatnonzero(labels.numpy() == label)
            rows[asked] = known[np.minimum((place[asked] * len(known)).astype(np.int64), len(known) - 1)]
        certain = 0.0 if self._forgets else self._certain
        parts = [
            self._remember(self._coded.records[rows, at], size, certain) for at, size in enumerate(self.shape.sizes)
        ]
        return Outcome(torch.cat(parts, dim=1), self._courses(rows), self.shape)

    def _remember(self, codes: np.ndarray, size: int, certain: float) -> Tensor:
        known = np.eye(size)[codes] * (codes >= 0)[..., None]
        return torch.as_tensor(certain * known + (1 - certain * known.sum(axis=-1, keepdims=True)) / size).float()

    def _courses(self, rows: np.ndarray) -> Courses | None:
        sequence = self.shape.sequence
        if sequence is None or self._coded.windows is None:
            return None
        weights = weights_of(torch.eye(STEPS + 1)[torch.as_tensor(self._coded.lengths[rows])])
        emit = torch.zeros(len(rows), STEPS, len(sequence.sizes), sequence.widest + 1)
        for channel, (size, values) in enumerate(zip(sequence.sizes, sequence.values, strict=True)):
            chance = self._remember(self._coded.windows[rows, :, channel], size, self._certain)
            emit[:, :, channel, :values] = chance[:, :, :values]
            if size > values:
                emit[:, :, channel, -1] = chance[:, :, -1]
        if sequence.kind == "paths":
            seen = 1 - emit[..., -1]
            values = emit[..., :-1] / seen.clamp(min=1e-9)[..., None]
            into = torch.stack([1 - seen, seen], dim=3)[:, 1:, :, None, :].expand(-1, -1, -1, 2, -1)
            return Paths(sequence, weights, values, seen[:, 0], into)
        start = torch.eye(STEPS)[:1].expand(len(rows), -1)
        move = torch.eye(STEPS).roll(1, dims=1).expand(len(rows), -1, -1)
        return States(sequence, weights, start, move, emit)


def remember(study: Study, people: Population, **how: object) -> Published:
    """The published generator that remembers people."""
    bins, coded = make_bins(study), encode(people.table, study)
    shape = shape_for(study, bins)
    counts = np.bincount(coded.labels, minlength=shape.classes).astype(np.float64)
    return Published(Memory(shape, coded, **how), bins, counts)  # type: ignore[arg-type]
