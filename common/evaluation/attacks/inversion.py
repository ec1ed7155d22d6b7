"""What the released generator gives away of a person of whom some columns are known, and which rows are repeated.

Model inversion: somebody holds the generator, knows some columns of a person, and reads off the others. Given the known
ones, the chance of every latent follows by Bayes' rule, and with it that of every value of the others; the best guess is
the one that is right with the largest chance. No search for a latent does better, up to which latents were drawn.

Much that is guessed so is true of people who never were in a table, since that is what a generator is for. The leak is
what is reconstructed of members beyond that, the excess.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from common.data.binning import Binning
from common.data.encoding import Grid, make_grid, make_grids
from common.data.queries import Coded
from common.data.schema import CategoricalColumn
from common.data.windows import WindowedTable
from common.evaluation.attacks.coded import encode, join, take
from common.evaluation.attacks.white_box import LATENTS, Answers, Published, ask, log, traits
from common.evaluation.figures import Figure, Population, bootstrap, most_advantage, rate
from common.evaluation.windows import bounds_on_scale
from common.study import STEPS, Study

_KNOWN: Final = 0.4
"""Share of columns and channels that are known of a person."""
_NEAR: Final = 0.05
"""A number counts as reconstructed within this share of its public range, on the schema's scale."""
_NEAR_IN_WINDOW: Final = 0.1
_PLACES: Final = 101
"""Numbers that are guessed lie so many even steps apart in their range."""
_ROUNDING: Final = 1e-9
_ROWS: Final = 512
"""Rows that are laid beside all latents at once."""
_NOBODY: Final = "there is nobody to reconstruct"


@dataclass(frozen=True)
class Inversion:
    """How much of people is reconstructed: shares of what is not known of them, each column and channel alike.

    members, controls: the means of units. excess: members - controls, the leak. naive: of members, by somebody who
    holds the generator and knows nothing of the person. known, unknown: columns and channels of each.
    """

    members: Figure
    controls: Figure
    excess: Figure
    naive: Figure
    known: int
    unknown: int


@torch.no_grad()
def invert(
    published: Published,
    members: Population,
    controls: Population,
    study: Study,
    *,
    epsilon: float | None,
    delta: float,
    seed: int,
    most: int,
    latents: int = LATENTS,
    device: torch.device,
) -> Inversion:
    """Reconstruct what is not known of members and of controls.

    Of each unit 40 % of columns and channels are known, the label one of them, drawn anew for each; the label is never
    all that is known. How many steps a unit has is known of all. A category is right or not, a number right within 5 %
    of its public range on the schema's scale, in a window within 10 %; a missing value is right where it was guessed to
    be missing. Of a channel the share of steps counts.

    Guarantees: every guess is made of the known columns and the generator alone; members and controls by one rule.
    Edge cases: no members or no controls -> None and the reason; a unit of no steps has no channels.

    Args:
        published: on `device`.
        members: units that were trained on.
        controls: units of the same population that were not.
        study: of the run.
        epsilon: the claim, per unit; None where there is none.
        delta: likewise.
        seed: of latents, of who is looked at, and of what is known.
        most: members, and controls, that are looked at.
        latents: that are drawn, of each label class.
        device: where to compute.

    Sources: Fredrikson et al. 2015 (model inversion); Yeom et al. 2018 (what members have beyond others).
    """
    random = np.random.default_rng([seed, 1])
    answers = ask(published.generator, latents=latents, seed=seed, device=device)
    fields = _fields(published, study, device)
    known = min(max(1, round(_KNOWN * len(fields))), len(fields) - 1)
    shares = torch.as_tensor(published.label_counts / published.label_counts.sum(), dtype=torch.float32, device=device)
    reader = _Reader(published, answers, fields, shares)
    found = []
    for side in (members, controls):
        chosen = side.take(np.sort(random.permutation(side.count)[:most]))
        given = _draw_known(chosen.count, fields, known, random)[chosen.units]
        found.append(_reconstruct(chosen, given, reader, study))
    (inside, naive), (outside, _) = found
    ceiling = None if epsilon is None else most_advantage(epsilon=epsilon, delta=delta)
    return Inversion(
        _mean(inside, seed),
        _mean(outside, seed),
        _difference(inside, outside, seed, ceiling),
        _mean(naive, seed),
        known,
        len(fields) - known,
    )


@dataclass(frozen=True)
class _Field:
    """What may be known of a person or not: a column of the record, the label, or a channel.

    position: among the record's columns or the channels; -1 for the label. in_window: whether it is a channel.
    right: (classes, bins, guesses), the chance that a guess is right, given the label and the bin. places: (guesses,),
    categories or numbers on the schema's scale, NaN for missing. near: how near on that scale is right.
    """

    grid: Grid
    position: int
    in_window: bool
    right: Tensor
    places: np.ndarray
    near: float

    def is_right(self, guesses: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Which guesses are, by their numbers; truth as in `_truth`."""
        guessed = self.places[guesses]
        return np.asarray((np.abs(guessed - truth) <= self.near) | (np.isnan(guessed) & np.isnan(truth)))


def _fields(published: Published, study: Study, device: torch.device) -> list[_Field]:
    """The label first, then the columns, without the number of steps, then the channels."""
    bins, classes = published.bins, published.generator.shape.classes
    label = study.label.column
    certain = torch.eye(classes, device=device).expand(classes, classes, classes)
    fields = [_Field(make_grid(label, study.columns[label]), -1, False, certain, np.arange(classes) * 1.0, 0.0)]
    for in_window, columns, first in ((False, study.measured, 0), (True, study.channels, bins.columns)):
        for position, grid in enumerate(make_grids(columns)):
            if grid.name != STEPS:
                near = _NEAR_IN_WINDOW if in_window else _NEAR
                places, chance, near = _guesses(grid, near)
                right = torch.as_tensor(_by_bin(chance, bins.binnings[first + position]), device=device)
                fields.append(_Field(grid, position, in_window, right, places, near))
    return fields


def _guesses(grid: Grid, near: float) -> tuple[np.ndarray, np.ndarray, float]:
    """What may be guessed of an axis: places, (guesses,); the chance that each is right, by cell; how near is right."""
    column = grid.column
    cells = grid.n_cells
    if isinstance(column, CategoricalColumn):
        places, chance, near = np.arange(grid.n_values, dtype=np.float64), np.eye(cells, grid.n_values), 0.0
    else:
        assert grid.edges is not None
        low, high = bounds_on_scale(column)
        near = (near + _ROUNDING) * (high - low)
        places = np.linspace(low, high, _PLACES)
        # A cell of whole steps ends with its last one.
        last = grid.edges[1:] if column.steps is None else grid.edges[1:] - 1 / column.steps
        begin, end = (
            column.to_scale(np.clip(ends, column.min, column.max), float(column.min))[:, None]
            for ends in (grid.edges[:-1], last)
        )
        within = np.minimum(end, places + near) - np.maximum(begin, places - near)
        width = end - begin
        single = width <= _ROUNDING * (high - low)
        chance = np.where(single, within >= 0, np.clip(within, 0, None) / np.where(single, 1.0, width))
        chance = np.concatenate([chance, np.zeros((cells - grid.n_values, _PLACES))])
    if column.missing:
        places = np.append(places, np.nan)
        chance = np.column_stack([chance, np.arange(cells) == grid.n_values])
    return places, chance, near


def _by_bin(chance: np.ndarray, binning: Binning) -> np.ndarray:
    """Chances by cell as chances by class and bin, (classes, bins, guesses) float32."""
    joined = np.eye(binning.n_bins)[binning.bin_of]  # (cells, bins)
    return np.einsum("cb,lc,cg->lbg", joined, binning.within, chance, optimize=True).astype(np.float32)


def _draw_known(units: int, fields: Sequence[_Field], known: int, random: np.random.Generator) -> np.ndarray:
    """Which fields are known of each unit, (units, fields) bool; never the label, the first one, alone."""
    given = random.permuted(np.tile(np.arange(len(fields)) < known, (units, 1)), axis=1)
    alone = given[:, 0] & (given.sum(axis=1) == 1)
    given[alone, 0] = False
    given[alone, random.integers(1, len(fields), size=int(alone.sum()))] = True
    return np.asarray(given)


class _Reader:
    """Lays the known part of rows beside all latents, and reads off the rest."""

    def __init__(
        self, published: Published, answers: Sequence[Answers], fields: Sequence[_Field], shares: Tensor
    ) -> None:
        self.fields = fields
        self._answers, self._shares, self._shape = answers, shares, published.generator.shape
        self.maps = published.bins.maps
        self._starts = np.cumsum([0, *self._shape.sizes])
        self._records = [log(own.records).T for own in answers]
        sequence = self._shape.sequence
        self._channels = np.cumsum([0, *sequence.sizes]) if sequence is not None else np.zeros(1, dtype=np.int64)

    def guess(self, coded: Coded, given: np.ndarray) -> list[np.ndarray]:
        """The best guess of every field, its number among `places`: (rows,), of a channel (rows, steps).

        Args:
            coded: rows in bins; what is not known of them is not looked at.
            given: (rows, fields) bool.
        """
        weights = self._posterior(coded, given)
        return [self._best(field, weights).cpu().numpy() for field in self.fields]

    def guess_blindly(self) -> list[np.ndarray]:
        """The same of a person of whom nothing is known, (1,) or (1, steps)."""
        latents = len(self._answers[0].records)
        weights = (self._shares / latents)[None, :, None].expand(1, -1, latents)
        return [self._best(field, weights).cpu().numpy() for field in self.fields]

    def _posterior(self, coded: Coded, given: np.ndarray) -> Tensor:
        """Chance of each label class and latent, (rows, classes, latents)."""
        device = self._shares.device
        indicators, courses = traits(coded, self._shape, device)
        known = torch.as_tensor(given, dtype=torch.float32, device=device)
        seen = torch.ones_like(indicators)
        for number, field in enumerate(self.fields):
            if field.position >= 0 and not field.in_window:
                seen[:, self._starts[field.position] : self._starts[field.position + 1]] = known[:, number, None]
        labels = torch.as_tensor(coded.labels, device=device)
        found = []
        for label, own in enumerate(self._answers):
            logs = (indicators * seen) @ self._records[label] + self._shares[label].log()
            for number, field in enumerate(self.fields):
                if field.in_window:
                    logs = logs + known[:, number, None] * (courses[field.position] @ own.courses[field.position].T)
            impossible = (known[:, 0] > 0) & (labels != label)
            found.append(logs.masked_fill(impossible[:, None], -torch.inf))
        both = torch.stack(found, dim=1)
        return both.flatten(1).softmax(dim=1).view_as(both)

    def _best(self, field: _Field, weights: Tensor) -> Tensor:
        total: Tensor = torch.zeros((), device=weights.device)
        for label, own in enumerate(self._answers):
            total = total + self._chances(field, label, own, weights[:, label]) @ field.right[label]
        return total.argmax(dim=-1)

    def _chances(self, field: _Field, label: int, own: Answers, weights: Tensor) -> Tensor:
        """Of each bin of a field together with the label, (rows, bins) or (rows, steps, bins)."""
        if field.position < 0:
            chosen = torch.zeros(len(weights), len(self._answers), device=weights.device)
            chosen[:, label] = weights.sum(dim=1)
            return chosen
        if not field.in_window:
            return weights @ own.records[:, self._starts[field.position] : self._starts[field.position + 1]]
        assert own.levels is not None
        level = own.levels[:, :, self._channels[field.position] : self._channels[field.position + 1]]
        return (weights @ level.flatten(1)).view(len(weights), *level.shape[1:])


def _reconstruct(people: Population, given: np.ndarray, reader: _Reader, study: Study) -> list[np.ndarray]:
    """Share of what is not known of each unit that is reconstructed, and that is guessed blindly; (units,) each."""
    coded = join(encode(people.table, study), reader.maps)
    truth = [_truth(people.table, field) for field in reader.fields]
    blind = reader.guess_blindly()
    right, of_blind = np.zeros((2, len(given), len(reader.fields)))
    asked = ~given
    for begin in range(0, len(given), _ROWS):
        rows = np.arange(begin, min(begin + _ROWS, len(given)))
        for number, guesses in enumerate(reader.guess(take(coded, rows), given[rows])):
            field, own = reader.fields[number], truth[number][rows]
            lengths = people.table.lengths[rows] if field.in_window else None
            right[rows, number] = _share(field.is_right(guesses, own), lengths)
            of_blind[rows, number] = _share(field.is_right(blind[number], own), lengths)
    for number, field in enumerate(reader.fields):
        if field.in_window:
            asked[:, number] &= people.table.lengths > 0
    total = np.bincount(people.units, weights=asked.sum(axis=1), minlength=people.count)
    found = [
        np.bincount(people.units, weights=(part * asked).sum(axis=1), minlength=people.count)
        for part in (right, of_blind)
    ]
    return [part[total > 0] / total[total > 0] for part in found]


def _share(right: np.ndarray, lengths: np.ndarray | None) -> np.ndarray:
    """Of each row's steps that are right, of a window's those that it has; (rows,)."""
    if lengths is None:
        return right.astype(np.float64)
    there = np.arange(right.shape[1]) < lengths[:, None]
    return np.asarray((right & there).sum(axis=1) / np.maximum(lengths, 1))


def _truth(table: WindowedTable, field: _Field) -> np.ndarray:
    """Categories, or numbers on the schema's scale, NaN where missing; (rows,), of a channel (rows, steps)."""
    column = field.grid.column
    values = table.values[:, :, field.position] if field.in_window else _of_records(table, field.grid)
    return values if isinstance(column, CategoricalColumn) else column.to_scale(values, float(column.min))


def _of_records(table: WindowedTable, grid: Grid) -> np.ndarray:
    """Categories or numbers of a column, NaN where missing, (rows,)."""
    if isinstance(grid.column, CategoricalColumn):
        codes = table.records[grid.name].cat.codes.to_numpy().astype(np.float64)
        return np.where(codes < 0, np.nan, codes)
    return table.records[grid.name].to_numpy(dtype=np.float64, na_value=np.nan)


def _mean(units: np.ndarray, seed: int) -> Figure:
    if len(units) == 0:
        return Figure(n=0, reason=_NOBODY)
    return bootstrap(lambda drawn: float(units[drawn].mean()), len(units), seed=seed)


def _difference(members: np.ndarray, controls: np.ndarray, seed: int, ceiling: float | None) -> Figure:
    """Of two means, with the interval of drawing the units of both sides again."""
    both, n = np.concatenate([members, controls]), len(members)
    if n in (0, len(both)):
        return Figure(chance=0.0, ceiling=ceiling, n=len(both), reason=_NOBODY)

    def statistic(drawn: np.ndarray) -> float:
        sides = drawn[drawn < n], drawn[drawn >= n]
        if not all(map(len, sides)):
            return math.nan
        return float(both[sides[0]].mean() - both[sides[1]].mean())

    return bootstrap(statistic, len(both), seed=seed, chance=0.0, ceiling=ceiling)


@dataclass(frozen=True)
class Extraction:
    """How often synthetic rows repeat rows that point at one unit: that nobody else has among members and controls.

    synthetic_of_members: share of synthetic rows that equal such a row of a member, of as many members as there are
    controls. synthetic_of_controls: of a control. per_100k: of 100,000 synthetic rows, those that equal such a row of
    any member. members, controls: share of all such rows that are repeated.
    """

    synthetic_of_members: Figure
    synthetic_of_controls: Figure
    per_100k: float | None
    members: Figure
    controls: Figure


def extract(
    synthetic: WindowedTable, members: Population, controls: Population, study: Study, *, seed: int
) -> dict[str, Extraction]:
    """Look for rows of real units, value by value, in the synthetic table.

    Numbers with fixed decimals are equal as they are written; others where they lie in one cell of the schema's grid.

    Guarantees: members and controls are counted by one rule; what a unit has several times counts once.
    Edge cases: nothing to look in or to look for -> None and the reason.

    Args:
        synthetic: published.
        members: units that were trained on.
        controls: units of the same population that were not.
        study: of the run.
        seed: of which members are compared with the controls.

    Returns:
        "record", of the columns; in a study with windows also "record_and_window".
    """
    names = ["record", "record_and_window"][: 1 if study.windows is None else 2]
    return {name: _extract(synthetic, members, controls, study, name != "record", seed) for name in names}


def _extract(
    synthetic: WindowedTable, members: Population, controls: Population, study: Study, windows: bool, seed: int
) -> Extraction:
    published = _digests(synthetic, study, windows=windows)
    rows = pd.concat(
        [
            pd.DataFrame({"row": _digests(side.table, study, windows=windows), "unit": side.units, "side": number})
            for number, side in enumerate((members, controls))
        ]
    ).drop_duplicates()
    rows = rows.drop_duplicates("row", keep=False)
    rows["repeated"] = rows["row"].isin(published)
    sides = [rows[rows["side"] == number] for number in (0, 1)]
    count = min(members.count, controls.count)
    random = np.random.default_rng([seed, 2])

    def share(side: int, everybody: Population) -> Figure:
        chosen = random.permutation(everybody.count)[:count]
        wanted = sides[side].loc[sides[side]["unit"].isin(chosen), "row"]
        return rate(int(np.isin(published, wanted.to_numpy()).sum()), len(published))

    found = np.isin(published, sides[0]["row"].to_numpy())
    return Extraction(
        share(0, members),
        share(1, controls),
        float(100_000 * found.mean()) if len(found) else None,
        *[rate(int(side["repeated"].sum()), len(side)) for side in sides],
    )


def _digests(table: WindowedTable, study: Study, *, windows: bool) -> np.ndarray:
    """(rows,) uint64, equal for rows that are; of two others with a chance of 2^-64."""
    grids = make_grids(study.columns)
    parts = {grid.name: _written(_of_records(table, grid), grid) for grid in grids}
    if windows:
        parts[STEPS] = table.lengths
        for position, grid in enumerate(make_grids(study.channels)):
            steps = _written(table.values[:, :, position], grid)
            parts |= {f"{grid.name} {step}": steps[:, step] for step in range(steps.shape[1])}
    return np.asarray(pd.util.hash_pandas_object(pd.DataFrame(parts), index=False).to_numpy())


def _written(values: np.ndarray, grid: Grid) -> np.ndarray:
    """Values as whole numbers from 0: categories, steps of the schema from the minimum on, else cells; -1 if missing."""
    column, missing = grid.column, np.isnan(values)
    if isinstance(column, CategoricalColumn):
        numbers = values
    elif column.steps is not None:
        numbers = np.rint((values - column.min) * column.steps)
    else:
        assert grid.edges is not None
        numbers = np.clip(np.searchsorted(grid.edges, values, side="right") - 1.0, 0, grid.n_values - 1)
    return np.where(missing, -1, np.nan_to_num(numbers)).astype(np.int64)
