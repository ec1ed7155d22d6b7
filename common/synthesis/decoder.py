"""Synthetic units from bins, in the study's column order and dtypes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from common.data.binning import Binning, decode_table
from common.data.constraints import add_sums, directions
from common.data.encoding import make_grids
from common.data.trajectories import choose_width, decode_windows, keep_direction
from common.data.windows import WindowedTable
from common.study import Study
from common.synthesis.draws import whole_shares

_TRIAL: Final = 2000
"""Units on which it is tried how smooth channels are to be."""
_TRIAL_SEED: Final = 0


@dataclass(frozen=True)
class Decoder:
    """What a value needs beside its bin.

    study: names the columns and channels.
    binnings: of the measured columns, then of the channels.
    widths: of the channels, how smooth they are inside of bins.
    """

    study: Study
    binnings: Sequence[Binning]
    widths: Sequence[float]

    def decode(
        self, records: np.ndarray, windows: np.ndarray | None, labels: np.ndarray, random: np.random.Generator
    ) -> WindowedTable:
        """Units from bins.

        Args:
            records: (units, columns) int64 bins of the measured columns.
            windows: (units, steps, channels) int64 bins, -1 beyond a unit's last step; None without windows.
            labels: (units,) int64.
            random: of the values inside bins.
        """
        grids = make_grids(self.study.measured)
        table = decode_table(records, labels, grids, self.binnings[: len(grids)], random)
        return self.complete(table, windows, labels, random)

    def complete(
        self,
        table: pd.DataFrame,
        windows: np.ndarray | None,
        labels: np.ndarray,
        random: np.random.Generator,
        *,
        cells: Mapping[int, np.ndarray] | None = None,
    ) -> WindowedTable:
        """Units whose measured columns are values already; sums are added, and channels kept in their direction.

        Args:
            table: the measured columns.
            windows: see `decode`.
            labels: see `decode`.
            random: see `decode`.
            cells: (units, steps) of channels whose cells are drawn already, by their position.
        """
        study = self.study
        dtype = pd.CategoricalDtype(list(study.label_values))
        table[study.label.column] = pd.Categorical.from_codes(labels, dtype=dtype)
        table = add_sums(table, study.constraints, study.columns)[list(study.columns)]
        if windows is None:
            return WindowedTable.without_windows(table)
        binnings = self.binnings[len(study.measured) :]
        grids = make_grids(study.channels)
        values = decode_windows(windows, labels, grids, binnings, self.widths, random, cells=cells)
        signs = directions(study.constraints, study.channels)
        values = keep_direction(values, {list(study.channels).index(name): sign for name, sign in signs.items()})
        return WindowedTable(table, values, (windows[:, :, 0] >= 0).sum(axis=1))


def fit_decoder(
    study: Study,
    binnings: Sequence[Binning],
    *,
    moves: np.ndarray,
    label_counts: np.ndarray,
    draw: Callable[[np.ndarray], np.ndarray],
) -> Decoder:
    """The one decoder of a generator: how smooth its channels are hangs on nothing that is asked of it later.

    Args:
        study: names the columns and channels.
        binnings: of the measured columns, then of the channels.
        moves: (channels, classes, buckets), the noised tables of moves.
        label_counts: (classes,), the classes' shares as released, in any unit.
        draw: bins of windows, (units, steps, channels) int64, of trial units by their labels, (units,) int64.
    """
    if not study.channels:
        return Decoder(study, binnings, ())
    labels = np.repeat(np.arange(len(label_counts)), whole_shares(label_counts, _TRIAL))
    windows, random = draw(labels), np.random.default_rng(_TRIAL_SEED)
    channels = zip(make_grids(study.channels), binnings[len(study.measured) :], moves, strict=True)
    widths = [
        choose_width(windows[:, :, at], labels, grid, binning, released, random)
        for at, (grid, binning, released) in enumerate(channels)
    ]
    return Decoder(study, binnings, widths)
