"""Rows of a released generator: as it makes them, or those that a plan asks for."""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Final

import numpy as np
import pandas as pd
import torch

from common.data.windows import WindowedTable, long_table
from common.models.generator import cut_windows, draw_bins
from common.models.sequences import choose
from common.study import Study
from common.synthesis.courses import draw_courses
from common.synthesis.draws import whole_shares
from common.synthesis.plan import Plan, free_plan
from common.synthesis.release import Release
from common.synthesis.structure import parts_of, values_of

_MOST_TRIES: Final = 64
"""Latents that are drawn at most until one is kept, by the chance that its row fulfils all constraints."""


def draw_units(
    release: Release, *, rows: int, seed: int, device: torch.device, label_counts: np.ndarray | None = None
) -> WindowedTable:
    """Synthetic units; windows if the study has them.

    Args:
        release: to draw from.
        rows: how many.
        seed: the same seed gives the same rows.
        device: to draw on.
        label_counts: (classes,), shares of the label's classes, in any unit; None for those that were released.
    """
    random = np.random.default_rng(seed)
    counts = release.label_counts if label_counts is None else label_counts
    labels = random.permutation(np.repeat(np.arange(len(counts)), whole_shares(counts, rows)))
    if release.study.constraints:
        plan = free_plan(release, labels, seed=seed, device=device)
        return join_units(draw_planned(release, plan, seed=seed, device=device))
    records, windows = draw_bins(release.generator, labels, seed=seed, device=device)
    return release.decoder.decode(records, windows, labels, random)


def join_units(parts: Iterable[WindowedTable]) -> WindowedTable:
    """Units of several tables of one study, one after the other; at least one table."""
    tables = list(parts)
    return WindowedTable(
        pd.concat([part.records for part in tables], ignore_index=True),
        np.concatenate([part.values for part in tables]),
        np.concatenate([part.lengths for part in tables]),
    )


def draw_planned(
    release: Release, plan: Plan, *, seed: int, device: torch.device, at_once: int = 8192
) -> Iterator[WindowedTable]:
    """Units that a plan asks for, some at a time; none of them violates a constraint of the study.

    Args:
        release: that the plan was made for.
        plan: what the units are to be.
        seed: of the values; the same seed and `at_once` give the same rows.
        device: to draw on.
        at_once: units a time.

    Raises:
        ConditionError: the generator makes no rows that fulfil all constraints.
    """
    random, generator = np.random.default_rng([seed, 12]), torch.Generator(device=device).manual_seed(seed)
    for begin in range(0, max(1, len(plan.part)), at_once):
        yield _Draft(release, plan, slice(begin, begin + at_once), generator, random, device).units()


class _Draft:
    """Some units of a plan, on their way from latents to values.

    chances: (units, bins) of all columns side by side.
    """

    def __init__(
        self,
        release: Release,
        plan: Plan,
        rows: slice,
        generator: torch.Generator,
        random: np.random.Generator,
        device: torch.device,
    ) -> None:
        self._release, self._plan, self._structure = release, plan, plan.latents.structure
        self._part, self._labels, self._latent = plan.part[rows], plan.label[rows], plan.latent[rows]
        self._generator, self._random, self._device = generator, random, device
        self._shape = release.generator.shape
        starts = np.concatenate([[0], np.cumsum(self._shape.sizes)])
        grids = release.grids[: len(self._shape.sizes)]
        self._place = {grid.name: slice(*ends) for grid, ends in zip(grids, pairwise(starts), strict=True)}
        asked = [self._structure.masks(own) for own in plan.parts]
        self._masks = {name: np.array([own[name] for own in asked])[self._part] for name in self._structure.names}
        for name, pieces in plan.pieces.items():
            self._masks[name] = np.eye(self._masks[name].shape[1], dtype=bool)[pieces[rows]]
        self._bins = {name: own[rows] for name, own in plan.bins.items()}

    @torch.no_grad()
    def units(self) -> WindowedTable:
        """The units."""
        release, labels, random = self._release, self._labels, self._random
        noise = self._noise()
        outcome = release.generator.to(self._device)(noise, torch.from_numpy(labels).to(self._device))
        pieces = self._structure.draw(self._tied(outcome.records, labels), labels, self._masks, random)
        drawn: dict[str, np.ndarray] = {}
        columns: dict[str, pd.Series] = {}
        for at, (name, place) in enumerate(self._place.items()):
            if name in pieces:
                chances = outcome.records[:, place].double().cpu().numpy()
                drawn[name], columns[name] = self._structure.values(
                    name, pieces[name], chances, labels, random, bins=self._bins.get(name)
                )
            else:
                drawn[name], columns[name] = self._free(at, name, outcome.records[:, place])
        self._structure.put_in_order(columns, pieces, labels, drawn, random)
        windows, cells = None, None
        if outcome.courses is not None:
            bins = np.column_stack(list(drawn.values()))
            windows, cells = draw_courses(
                release.study, release.binnings, outcome.courses, labels, self._generator, random
            )
            windows = cut_windows(windows, bins, self._shape)
        return release.decoder.complete(pd.DataFrame(columns), windows, labels, random, cells=cells)

    def _noise(self) -> torch.Tensor:
        """Standard normals of each unit; latents that are fresh are such that their rows fulfil all constraints."""
        noise = torch.randn(len(self._part), self._shape.noise, generator=self._generator, device=self._device)
        chosen = self._latent
        ours = self._plan.latents.noise[chosen[chosen >= 0]]
        noise[chosen >= 0, : self._shape.latent] = torch.from_numpy(ours).to(self._device)
        open_rows = np.flatnonzero(chosen < 0) if self._structure else np.empty(0, dtype=np.int64)
        for _ in range(_MOST_TRIES):
            if not len(open_rows):
                break
            labels = self._labels[open_rows]
            latent = noise[open_rows, : self._shape.latent]
            records = self._release.generator.to(self._device).records(
                latent, torch.from_numpy(labels).to(latent.device)
            )
            masks = {name: own[open_rows] for name, own in self._masks.items()}
            accepted = self._structure.accepted(self._tied(records, labels), labels, masks)
            open_rows = open_rows[self._random.random(len(open_rows)) >= accepted]
            fresh = torch.randn(len(open_rows), self._shape.latent, generator=self._generator, device=self._device)
            noise[open_rows, : self._shape.latent] = fresh
        return noise

    def _tied(self, records: torch.Tensor, labels: np.ndarray) -> dict[str, np.ndarray]:
        """Chance of each piece of the tied columns, (units, pieces)."""
        return {
            name: self._structure.chances_of(name, records[:, self._place[name]].double().cpu().numpy(), labels)
            for name in self._structure.parts
        }

    def _free(self, at: int, name: str, chances: torch.Tensor) -> tuple[np.ndarray, pd.Series]:
        """Bins and values of a column that no constraint ties."""
        plan, labels, random = self._plan, self._labels, self._random
        binning, grid = self._release.binnings[at], self._release.grids[at]
        asked = {number: own[name] for number, own in enumerate(plan.parts) if name in own}
        if asked:
            shares = np.ones((len(labels), binning.n_bins))
            for number, selection in asked.items():
                rows = self._part == number
                shares[rows] = parts_of(binning, selection)[labels[rows]]
            chances = chances * torch.from_numpy(shares).to(chances)
        bins = self._bins.get(name)
        if bins is None:
            bins = choose(chances, self._generator).cpu().numpy()
        if asked:
            return bins, values_of(asked, binning, bins, labels, self._part, random)
        return bins, grid.decode(binning.draw_cells(bins, labels, random), random)


def tables_of(units: WindowedTable, study: Study, *, begin: int = 0) -> dict[str, pd.DataFrame]:
    """The tables to publish, by file name; with windows a second, long one, joined by the unit key.

    Args:
        units: synthetic.
        study: of the run.
        begin: number of the first unit.
    """
    if study.windows is None:
        return {"synthetic.csv": units.records}
    assert study.unit.key is not None
    keys = [f"synthetic-{number:08d}" for number in range(begin, begin + len(units.records))]
    records = units.records.copy()
    records.insert(0, study.unit.key, keys)
    series = long_table(units.values, units.lengths, study.windows, unit_key=study.unit.key, units=keys)
    return {"synthetic.csv": records, "synthetic-windows.csv": series}
