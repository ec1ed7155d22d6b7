"""Rows of a released generator: as it makes them, or those that a plan asks for."""

from collections.abc import Iterator, Mapping
from itertools import pairwise

import numpy as np
import pandas as pd
import torch

from common.data.binning import Binning
from common.data.encoding import Grid
from common.data.schema import CategoricalColumn, WholeColumn
from common.data.windows import WindowedTable, long_table
from common.models.generator import cut_windows, draw_bins
from common.study import Study
from common.synthesis.latents import whole_shares
from common.synthesis.release import Release
from common.synthesis.request import Plan
from common.synthesis.selection import Selection


def draw_units(
    release: Release, *, rows: int, seed: int, device: torch.device, label_counts: np.ndarray | None = None
) -> WindowedTable:
    """Synthetic units; windows if the study has them.

    Args:
        release: to draw from.
        rows: how many.
        seed: the same seed gives the same rows.
        device: of the generator.
        label_counts: (classes,), shares of the label's classes, in any unit; None for those that were released.
    """
    random = np.random.default_rng(seed)
    counts = release.label_counts if label_counts is None else label_counts
    labels = random.permutation(np.repeat(np.arange(len(counts)), whole_shares(counts, rows)))
    records, windows = draw_bins(release.generator, labels, seed=seed, device=device)
    return release.decoder.decode(records, windows, labels, random)


def draw_planned(
    release: Release, plan: Plan, *, seed: int, device: torch.device, at_once: int = 8192
) -> Iterator[WindowedTable]:
    """Units that a plan asks for, some at a time.

    Args:
        release: that the plan was made for.
        plan: what the units are to be.
        seed: of the values; the same seed and `at_once` give the same rows.
        device: of the generator.
        at_once: units a time.
    """
    random, generator = np.random.default_rng([seed, 12]), torch.Generator(device=device).manual_seed(seed)
    for begin in range(0, len(plan.part), at_once):
        yield _draw_some(release, plan, slice(begin, begin + at_once), generator, random, device)


@torch.no_grad()
def _draw_some(
    release: Release,
    plan: Plan,
    rows: slice,
    generator: torch.Generator,
    random: np.random.Generator,
    device: torch.device,
) -> WindowedTable:
    shape, part, labels = release.generator.shape, plan.part[rows], plan.label[rows]
    noise = torch.randn(len(part), shape.noise, generator=generator, device=device)
    chosen = plan.latent[rows]
    noise[chosen >= 0, : shape.latent] = torch.from_numpy(plan.latents.noise[chosen[chosen >= 0]]).to(device)
    outcome = release.generator.to(device)(noise, torch.from_numpy(labels).to(device))
    starts = np.concatenate([[0], np.cumsum(shape.sizes)])
    bins, columns = np.empty((len(part), len(shape.sizes)), dtype=np.int64), {}
    for at, (grid, (start, end)) in enumerate(zip(release.grids[: len(shape.sizes)], pairwise(starts), strict=True)):
        chances = outcome.records[:, start:end]
        asked = {number: own[grid.name] for number, own in enumerate(plan.parts) if grid.name in own}
        if asked:
            wanted = torch.from_numpy(_wanted(plan, asked, grid.name, part, labels)).to(chances)
            chances = chances * wanted
        bins[:, at] = torch.multinomial(chances, 1, generator=generator)[:, 0].cpu().numpy()
        binning = release.binnings[at]
        if asked:
            columns[grid.name] = _wanted_values(grid, binning, bins[:, at], labels, part, asked=asked, random=random)
        else:
            columns[grid.name] = grid.decode(binning.draw_cells(bins[:, at], labels, random), random)
    windows = None
    if outcome.courses is not None:
        windows = cut_windows(outcome.courses.draw(generator).cpu().numpy(), bins, shape)
    return release.decoder.complete(pd.DataFrame(columns), windows, labels, random)


def _wanted(plan: Plan, asked: Mapping[int, Selection], name: str, part: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Share of each bin that a row's part wants, (rows, bins); all of it where the part does not say."""
    shares = np.ones((len(part), plan.latents.binning(name).n_bins))
    for number, selection in asked.items():
        rows = part == number
        shares[rows] = plan.latents.parts(name, selection)[labels[rows]]
    return shares


def _wanted_values(
    grid: Grid,
    binning: Binning,
    bins: np.ndarray,
    labels: np.ndarray,
    part: np.ndarray,
    *,
    asked: Mapping[int, Selection],
    random: np.random.Generator,
) -> pd.Series:
    """Values of a column that every part asks something of, in the schema's dtype."""
    cells = np.empty(len(bins), dtype=np.int64)
    numbers = np.zeros(len(bins), dtype=np.int64 if isinstance(grid.column, WholeColumn) else np.float64)
    for number in np.unique(part):
        rows = np.flatnonzero(part == number)
        selection = asked[number]
        cells[rows] = _narrowed(binning, selection).draw_cells(bins[rows], labels[rows], random)
        if grid.is_ordered:
            numbers[rows] = selection.draw(cells[rows], random)
    if isinstance(grid.column, CategoricalColumn):
        return grid.decode(cells, random)
    return grid.typed(numbers, cells == grid.n_values)


def _narrowed(binning: Binning, selection: Selection) -> Binning:
    """The bins with the wanted cells alone in them; a bin without any stays as it is, and is never drawn."""
    within = binning.within * selection.shares()
    totals = np.stack([np.bincount(binning.bin_of, weights=own) for own in within])[:, binning.bin_of]
    return Binning(binning.bin_of, np.divide(within, totals, out=binning.within.copy(), where=totals > 0))


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
