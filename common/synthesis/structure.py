"""Structural zeros: rows of a generator that violate no constraint, drawn as such.

Given a latent and a label class the columns of a record are independent, so that the chance of every piece of a column
is known, and `automaton` does the rest: the chance that a latent's row fulfils all constraints, and rows given that it
does.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import pandas as pd

from common.data.automaton import DEAD, Automaton, Run, make_automata
from common.data.binning import Binning
from common.data.constraints import OrderedRule, make_rules
from common.data.encoding import Grid
from common.data.schema import CategoricalColumn, WholeColumn
from common.data.selection import Piece, Selection, marks_of, starts_of
from common.errors import ConditionError, ExitCode
from common.synthesis.draws import draw_rows
from common.synthesis.release import Release

_AT_ONCE: Final = 2**22
"""Entries of the largest array that is made for some rows."""
_TRIALS: Final = 2000
_LEAST: Final = 0.05
"""Values in one interval that are in order less often than this are taken never to be."""
_MOST_TRIES: Final = 1000


@dataclass(frozen=True)
class _Tied:
    """An automaton and, of each column, what its pieces weigh: (classes, states, pieces)."""

    automaton: Automaton
    weights: tuple[np.ndarray, ...]


class Structure:
    """The constraints of a study on what a generator makes.

    names: columns that are tied, the label among them if it is.
    pieces: of each of these columns.
    parts: of each but the label, (classes, bins, pieces), the share of each bin that is in a piece.
    """

    def __init__(self, release: Release, also: Mapping[str, Iterable[Selection]]) -> None:
        """Of a release; also: selections that pieces are to be cut by."""
        study = release.study
        self._label = study.label.column
        self._classes = len(release.label_counts)
        self._ordered = [rule for rule in make_rules(study.constraints, study.columns) if isinstance(rule, OrderedRule)]
        self._binnings = {grid.name: binning for grid, binning in zip(release.grids, release.binnings, strict=True)}
        automata = make_automata(study.constraints, study.columns, also=also, starts=self._starts)
        self.pieces: dict[str, tuple[Piece, ...]] = {
            name: own for automaton in automata for name, own in zip(automaton.names, automaton.pieces, strict=True)
        }
        self.names = tuple(self.pieces)
        self.parts = {
            name: np.stack([parts_of(self._binnings[name], piece.selection) for piece in own], axis=2)
            for name, own in self.pieces.items()
            if name != self._label
        }
        self._tied = [self._weigh(automaton) for automaton in automata]

    def __bool__(self) -> bool:
        """Whether anything is tied."""
        return bool(self._tied)

    def _starts(self, grid: Grid) -> list[float]:
        """Where the bins of a column begin: inside of one, all latents have the same shares of values."""
        bin_of = self._binnings[grid.name].bin_of[: grid.n_values]
        return starts_of(grid, np.flatnonzero(np.diff(bin_of, prepend=-1)))

    def _weigh(self, automaton: Automaton) -> _Tied:
        """What a run's order leaves of its chance when a column is added to it."""
        known: dict[Run, np.ndarray] = {}

        def chance(run: Run) -> np.ndarray:
            if run not in known:
                known[run] = self._chance_of_order(run)
            return known[run]

        weights = []
        for moves, runs in zip(automaton.moves, automaton.runs, strict=True):
            own = np.repeat((moves != DEAD)[None].astype(np.float64), self._classes, axis=0)
            for (state, piece), grown in runs.items():
                for run in grown:
                    before = Run(run.names[:-1], run.low, run.count, run.strict)
                    first = chance(before) if len(before.names) > 1 else np.ones(self._classes)
                    own[:, state, piece] *= np.divide(chance(run), first, out=np.zeros_like(first), where=first > 0)
            weights.append(own)
        return _Tied(automaton, tuple(weights))

    def _chance_of_order(self, run: Run) -> np.ndarray:
        """That values of one interval are in order, (classes,), from draws whose seed follows from the run."""
        if not run.has_room:
            return np.zeros(self._classes)
        random = np.random.default_rng(0)
        found = np.empty(self._classes)
        for label in range(self._classes):
            labels = np.full(_TRIALS, label)
            drawn = [self._marks_inside(name, run.low, labels, random) for name in run.names]
            rises = [(here > before) if run.strict else (here >= before) for before, here in pairwise(drawn)]
            found[label] = np.all(rises, axis=0).mean()
        return np.where(found >= _LEAST, found, 0.0)

    def _marks_inside(self, name: str, low: float, labels: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Values of the piece that begins with a number, in steps of the column, (rows,)."""
        own = self.pieces[name]
        at = next(at for at, piece in enumerate(own) if not piece.is_missing and piece.low == low)
        return marks_of(self._draw_inside(name, np.full(len(labels), at), labels, random), own[at].selection.grid)

    def masks(self, wanted: Mapping[str, Selection]) -> dict[str, np.ndarray]:
        """Which pieces of each tied column are wanted, (pieces,) bool, of selections that pieces were cut by."""
        return {
            name: np.array([name not in wanted or piece.is_in(wanted[name]) for piece in own])
            for name, own in self.pieces.items()
        }

    def chances_of(self, name: str, chances: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Chance of each piece of a column, (rows, pieces), from those of its bins, (rows, bins)."""
        found = np.empty((len(labels), len(self.pieces[name])))
        for label in range(self._classes):
            rows = labels == label
            found[rows] = chances[rows] @ self.parts[name][label]
        return found

    def accepted(
        self, chances: Mapping[str, np.ndarray], labels: np.ndarray, masks: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """Chance that a row fulfils all constraints and is what is wanted, (rows,).

        Args:
            chances: of the pieces of each tied column but the label, (rows, pieces).
            labels: (rows,) int64.
            masks: of `masks`, (pieces,) or (rows, pieces) of each tied column.
        """
        found = np.ones(len(labels))
        for tied in self._tied:
            for rows in self._some(tied, len(labels)):
                own = self._masked(tied, chances, labels, masks, rows)
                found[rows] *= _backward(tied, own, labels[rows])[0][:, 0]
        return found

    def draw(
        self,
        chances: Mapping[str, np.ndarray],
        labels: np.ndarray,
        masks: Mapping[str, np.ndarray],
        random: np.random.Generator,
    ) -> dict[str, np.ndarray]:
        """A piece of each tied column, (rows,) int64, such that the row is accepted; arguments as of `accepted`.

        Raises:
            ConditionError: a row cannot be accepted.
        """
        drawn = {name: np.zeros(len(labels), dtype=np.int64) for name in self.names}
        for tied in self._tied:
            for rows in self._some(tied, len(labels)):
                own = self._masked(tied, chances, labels, masks, rows)
                for name, pieces in _forward(tied, own, labels[rows], random).items():
                    drawn[name][rows] = pieces
        return drawn

    def values(
        self,
        name: str,
        pieces: np.ndarray,
        chances: np.ndarray,
        labels: np.ndarray,
        random: np.random.Generator,
        *,
        bins: np.ndarray | None = None,
    ) -> tuple[np.ndarray, pd.Series]:
        """Bins, (rows,), and values in the schema's dtype, of rows whose pieces are given.

        Args:
            name: of the column; not the label.
            pieces: (rows,) int64.
            chances: (rows, bins).
            labels: (rows,) int64.
            random: of the draws.
            bins: (rows,) int64, if they are drawn already.
        """
        if bins is None:
            bins = draw_rows(chances * self.parts[name][labels, :, pieces], random)
        return bins, self._draw_inside(name, pieces, labels, random, bins=bins)

    def _draw_inside(
        self,
        name: str,
        pieces: np.ndarray,
        labels: np.ndarray,
        random: np.random.Generator,
        *,
        bins: np.ndarray | None = None,
    ) -> pd.Series:
        """Values of pieces; without bins, of pieces that lie in one bin each."""
        binning = self._binnings[name]
        if bins is None:
            bins = self.parts[name][labels, :, pieces].argmax(axis=1)
        asked = {number: self.pieces[name][number].selection for number in np.unique(pieces).tolist()}
        return values_of(asked, binning, bins, labels, pieces, random)

    def put_in_order(
        self,
        table: dict[str, pd.Series],
        pieces: Mapping[str, np.ndarray],
        labels: np.ndarray,
        bins: Mapping[str, np.ndarray],
        random: np.random.Generator,
    ) -> None:
        """Draw values of ordered columns anew, in place, where they lie in one interval and are not in order.

        Which intervals is drawn already; inside of one, values are in order more often than `_LEAST`.

        Raises:
            ConditionError: they are not after many tries.
        """
        names = tuple(dict.fromkeys(name for rule in self._ordered for name in rule.names))
        for _ in range(_MOST_TRIES if names else 0):
            numbers = pd.DataFrame({name: table[name] for name in names})
            rows = np.flatnonzero(~np.all([rule.holds(numbers) for rule in self._ordered], axis=0))
            if not len(rows):
                return
            for name in names:
                fresh = self._draw_inside(name, pieces[name][rows], labels[rows], random, bins=bins[name][rows])
                table[name].iloc[rows] = fresh.array
        if names:
            raise ConditionError(
                f"constraints: {', '.join(names)}: values cannot be put in order", ExitCode.CONDITION_UNSUPPORTED
            )

    def _some(self, tied: _Tied, rows: int) -> Iterator[slice]:
        size = max(moves.size for moves in tied.automaton.moves)
        step = max(1, _AT_ONCE // size)
        yield from (slice(begin, begin + step) for begin in range(0, rows, step))

    def _masked(
        self,
        tied: _Tied,
        chances: Mapping[str, np.ndarray],
        labels: np.ndarray,
        masks: Mapping[str, np.ndarray],
        rows: slice,
    ) -> list[np.ndarray]:
        """Of each column of an automaton, (rows, pieces)."""
        found = []
        for name in tied.automaton.names:
            mask = masks[name] if masks[name].ndim == 1 else masks[name][rows]
            if name == self._label:
                held = np.array([piece.selection.categories for piece in self.pieces[name]])  # (pieces, classes)
                own = held.T[labels[rows]].astype(np.float64)
            else:
                own = chances[name][rows]
            found.append(own * mask)
        return found


def _backward(tied: _Tied, chances: Sequence[np.ndarray], labels: np.ndarray) -> list[np.ndarray]:
    """Of each column, the chance that a row that has come to a state is accepted, (rows, states + 1); 0 in the last."""
    rows, size = len(labels), int(tied.automaton.moves[-1].max()) + 1
    ahead = np.hstack([np.ones((rows, size)), np.zeros((rows, 1))])
    found = [ahead]
    columns = list(zip(chances, tied.automaton.moves, tied.weights, strict=True))
    for at, (own, moves, weights) in reversed(list(enumerate(columns))):
        before = np.zeros((rows, len(moves) + 1))
        if at == len(columns) - 1:
            # Whoever gets through the last column is accepted: the same for all rows of a class.
            for label in np.unique(labels):
                here = labels == label
                before[here, :-1] = own[here] @ weights[label].T
        else:
            onward = ahead[:, moves]  # (rows, states, pieces)
            onward *= weights[labels]
            before[:, :-1] = np.matmul(onward, own[:, :, None])[:, :, 0]
        ahead = before
        found.append(ahead)
    return found[::-1]


def _forward(
    tied: _Tied, chances: Sequence[np.ndarray], labels: np.ndarray, random: np.random.Generator
) -> dict[str, np.ndarray]:
    """A piece of each column, (rows,)."""
    ahead = _backward(tied, chances, labels)
    if not (ahead[0][:, 0] > 0).all():
        raise ConditionError(
            "constraints: the generator makes no rows that fulfil them all", ExitCode.CONDITION_UNSUPPORTED
        )
    rows, state = np.arange(len(labels)), np.zeros(len(labels), dtype=np.int64)
    drawn = {}
    columns = zip(tied.automaton.names, chances, tied.automaton.moves, tied.weights, ahead[1:], strict=True)
    for name, own, moves, weights, after in columns:
        piece = draw_rows(own * weights[labels, state] * after[rows[:, None], moves[state]], random)
        drawn[name], state = piece, moves[state, piece]
    return drawn


def parts_of(binning: Binning, selection: Selection) -> np.ndarray:
    """Share of each bin of a column that a selection holds, (classes, bins), by the released shares of its cells."""
    wanted = binning.within * selection.shares()
    return np.stack([np.bincount(binning.bin_of, weights=own, minlength=binning.n_bins) for own in wanted])


def powers_of(binning: Binning, selection: Selection, center: float) -> np.ndarray:
    """Expected 1, x - center and (x - center)^2 of the values x that `values_of` draws in each bin, (classes, bins, 3).

    A bin of which the selection holds nothing, and a value that is missing, have 0.
    """
    first, second = selection.moments(center)
    cells = np.stack([np.ones_like(first), first, second], axis=1) * selection.shares()[:, None]
    if selection.grid.column.missing:
        cells[-1] = 0.0
    joined = np.eye(binning.n_bins)[binning.bin_of]  # (cells, bins)
    found = np.einsum("yc,ck,cb->ybk", binning.within, cells, joined, optimize=True)
    return np.asarray(np.divide(found, found[..., :1].copy(), out=np.zeros_like(found), where=found[..., :1] > 0))


def values_of(
    asked: Mapping[int, Selection],
    binning: Binning,
    bins: np.ndarray,
    labels: np.ndarray,
    part: np.ndarray,
    random: np.random.Generator,
) -> pd.Series:
    """Values of a column in the schema's dtype, each in the selection of its row's part.

    Args:
        asked: the selection of each part, of one column.
        binning: of the column.
        bins: (rows,) int64, of which the selection holds a share.
        labels: (rows,) int64.
        part: (rows,) int64.
        random: of the draws.
    """
    grid = next(iter(asked.values())).grid
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
