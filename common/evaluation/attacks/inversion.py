"""What the released generator gives away of a person of whom some columns are known, and which rows are repeated.

Model inversion: somebody holds the generator, knows some columns of a person, and reads off the others. Given the known
ones, the chance of every latent follows by Bayes' rule, and with it that of every value of the others; the best guess
is the one that is right with the largest chance. Up to which latents were drawn no search for one does better where
records are known; what is known of a window is taken as one observation of each channel.

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
from common.evaluation.attacks.white_box import LATENTS, Answers, Published, ask, log
from common.evaluation.figures import Figure, Population, bootstrap, most_advantage, rate
from common.evaluation.windows import bounds_on_scale
from common.models.verdicts import one_hot
from common.study import STEPS, Study

_KNOWN: Final = 0.4
"""Share of columns and channels that are known of a person."""
_NEAR: Final = 0.05
"""A number counts as reconstructed within this share of its public range, on the schema's scale."""
_NEAR_IN_WINDOW: Final = 0.1
_PLACES: Final = 101
"""Numbers that are guessed lie so many even steps apart in their range."""
_ROUNDING: Final = 1e-9
_LABEL: Final = 0
"""Number of the label among what may be known."""
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
def invert(  # noqa: PLR0913 (who, what, how hard: all of them the caller's)
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

    axis: among the record's columns and then the channels; -1 for the label. channel: among the channels, if it is one.
    right: (classes, bins, guesses), the chance that a guess is right, given the label and the bin. places: (guesses,),
    categories or numbers on the schema's scale, NaN for missing. near: how near on that scale is right.
    """

    grid: Grid
    axis: int
    channel: int | None
    right: Tensor
    places: np.ndarray
    near: float

    @property
    def in_window(self) -> bool:
        """Whether it is a channel."""
        return self.channel is not None

    def is_right(self, guesses: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Which guesses are, by their numbers; truth as in `_truth`."""
        guessed = self.places[guesses]
        return np.asarray((np.abs(guessed - truth) <= self.near) | (np.isnan(guessed) & np.isnan(truth)))


def _fields(published: Published, study: Study, device: torch.device) -> list[_Field]:
    """The label first, then the columns, without the number of steps, then the channels."""
    bins, label, classes = published.bins, study.label.column, published.generator.shape.classes
    certain = torch.eye(classes, device=device).expand(classes, classes, classes)
    named = np.arange(classes, dtype=np.float64)
    fields = [_Field(make_grid(label, study.columns[label]), -1, None, right=certain, places=named, near=0)]
    for axis, grid in enumerate((*make_grids(study.measured), *make_grids(study.channels))):
        channel = axis - bins.columns if axis >= bins.columns else None
        places, chance, near = _guesses(grid, _NEAR if channel is None else _NEAR_IN_WINDOW)
        right = torch.as_tensor(_by_bin(chance, bins.binnings[axis]), device=device)
        if grid.name != STEPS:
            fields.append(_Field(grid, axis, channel, right, places, near))
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
    return np.stack([(joined * share[:, None]).T @ chance for share in binning.within]).astype(np.float32)


def _draw_known(units: int, fields: Sequence[_Field], known: int, random: np.random.Generator) -> np.ndarray:
    """Which fields are known of each unit, (units, fields) bool; never the label alone."""
    given = random.permuted(np.tile(np.arange(len(fields)) < known, (units, 1)), axis=1)
    alone = given[:, _LABEL] & (given.sum(axis=1) == 1)
    given[alone, _LABEL] = False
    given[alone, random.integers(1, len(fields), size=int(alone.sum()))] = True
    return np.asarray(given)


class _Reader:
    """Lays the known part of rows beside all latents, and reads off the rest.

    A known channel is one observation like a known column, however many steps it has: the shares of its bins, beside
    the mean over steps of what a latent says. Step by step it would leave one latent, whose path happens to lie
    nearest, and say less of all else than nothing does.
    """

    def __init__(
        self, published: Published, answers: Sequence[Answers], fields: Sequence[_Field], shares: Tensor
    ) -> None:
        self.fields, self.maps = fields, published.bins.maps
        self._answers, self._shares, self._shape = answers, shares, published.generator.shape
        self._starts = np.cumsum([0, *published.bins.sizes])
        means = [own.records[:, :0] if own.levels is None else own.levels.mean(dim=1) for own in answers]
        self._logs = [log(torch.cat([own.records, mean], dim=1)).T for own, mean in zip(answers, means, strict=True)]

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
        records, steps = one_hot(coded, self._shape)
        shown = records.astype(np.float32)  # (rows, bins)
        if steps is not None and coded.lengths is not None:
            shown = np.concatenate([shown, steps.sum(axis=1) / np.maximum(coded.lengths, 1)[:, None]], axis=1)
        for field, known in zip(self.fields, given.T, strict=True):
            if field.axis >= 0:
                shown[:, self._bins_of(field)] *= known[:, None]
        seen = torch.as_tensor(shown, dtype=torch.float32, device=self._shares.device)
        found = []
        for label, logs in enumerate(self._logs):
            impossible = torch.as_tensor(given[:, _LABEL] & (coded.labels != label), device=seen.device)
            both = seen @ logs + self._shares[label].log()  # (rows, latents)
            found.append(both.masked_fill(impossible[:, None], -torch.inf))
        whole = torch.stack(found, dim=1)
        return whole.flatten(1).softmax(dim=1).view_as(whole)

    def _best(self, field: _Field, weights: Tensor) -> Tensor:
        chances = [
            self._chances(field, label, weights[:, label]) @ field.right[label] for label in range(len(self._answers))
        ]
        return torch.stack(chances).sum(dim=0).argmax(dim=-1)

    def _chances(self, field: _Field, label: int, weights: Tensor) -> Tensor:
        """Of each bin of a field together with the label, (rows, bins) or (rows, steps, bins)."""
        own, bins = self._answers[label], self._bins_of(field)
        if field.axis < 0:
            alone = torch.zeros(len(self._answers), device=weights.device)
            alone[label] = 1.0
            return weights.sum(dim=1, keepdim=True) * alone
        if not field.in_window:
            return weights @ own.records[:, bins]
        assert own.levels is not None
        before = own.records.shape[1]
        level = own.levels[:, :, bins.start - before : bins.stop - before]
        return (weights @ level.flatten(1)).view(len(weights), *level.shape[1:])

    def _bins_of(self, field: _Field) -> slice:
        """Where the bins of a column or of a channel lie, columns and channels side by side."""
        return slice(int(self._starts[field.axis]), int(self._starts[field.axis + 1]))


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
    values = _of_records(table, field.grid) if field.channel is None else table.values[:, :, field.channel]
    return values if isinstance(column, CategoricalColumn) else column.to_scale(values, float(column.min))


def _of_records(table: WindowedTable, grid: Grid) -> np.ndarray:
    """Categories or numbers of a column, NaN where missing, (rows,)."""
    if isinstance(grid.column, CategoricalColumn):
        codes = table.records[grid.name].cat.codes.to_numpy().astype(np.float64)
        return np.where(codes < 0, np.nan, codes)
    return grid.column.to_numbers(table.records[grid.name])


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
    """Values as whole numbers from 0: categories, steps of the schema from the minimum on, else cells; missing -1.

    As float64, since steps may be more than int64 counts.
    """
    column, missing = grid.column, np.isnan(values)
    if isinstance(column, CategoricalColumn):
        numbers = values
    elif column.steps is not None:
        numbers = np.rint((values - column.min) * column.steps)
    else:
        assert grid.edges is not None
        numbers = np.clip(np.searchsorted(grid.edges, values, side="right") - 1.0, 0, grid.n_values - 1)
    return np.where(missing, -1.0, np.nan_to_num(numbers))
