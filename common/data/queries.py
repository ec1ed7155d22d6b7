"""Which tables a study can have measured, and which cells of them a unit hits.

The catalogue follows from the study alone, so a request names tables by their number in it. A unit adds at most 1 to
each table, by label class: its record once, or its window's steps by equal shares. The families of windows are the
measured form of the temporal discriminator (paper section 3.2): level and trend by blocks of steps, dynamics by
transitions, long memory by first and last step, coupling by pairs of channels in one step and by static columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations

import numpy as np

from common.data.schema import CategoricalColumn
from common.data.tables import Hits, TableLayout
from common.data.windows import Windows

COUNT_BUCKETS = 8
"""Cells of the table of how many steps of a channel hold a value."""

EXTREME_GROUPS = 5
"""Groups of neighbouring bins in the tables of highest and lowest values; one cell more stands for no value."""


class Family(StrEnum):
    """What a table crosses, beside the label."""

    PAIR = "pair"
    """Two columns of the record."""
    COURSE = "course"
    """A column of the record and a channel, steps by equal shares."""
    TOGETHER = "together"
    """Two channels in one step, steps by equal shares."""
    LEVEL = "level"
    """A channel in one block of steps, by equal shares."""
    TRANSITION = "transition"
    """A channel in two steps, one after the other, by equal shares."""
    ENDS = "ends"
    """A channel in the first and in the last step."""
    HIGHEST = "highest"
    """The highest value of a numeric channel over the window, in `EXTREME_GROUPS` groups of bins; or no value."""
    LOWEST = "lowest"
    """The lowest."""
    OBSERVED = "observed"
    """How many steps of a channel hold a value, in `COUNT_BUCKETS` equal parts of all steps."""


@dataclass(frozen=True)
class Query:
    """One table: its family, the axes that it crosses, and what a family of one axis needs beside.

    axes: positions among all axes: the record's columns, then the channels, then the groups of extremes and the buckets
        of `OBSERVED`.
    part: the block of `LEVEL`; the channel's position of extremes and of `OBSERVED`.
    """

    family: Family
    axes: tuple[int, ...]
    part: int = 0

    @property
    def channel(self) -> int:
        """Position of the channel, the last one where there are two."""
        return self.part if self.family in SUMMARIES else self.axes[-1]


SUMMARIES = (Family.HIGHEST, Family.LOWEST, Family.OBSERVED)
"""Families whose one axis is not that of their channel."""


@dataclass(frozen=True)
class Coded:
    """Units or records in bins.

    labels: (rows,) int64.
    records: (rows, columns) int64.
    windows: (rows, steps, channels) int64, -1 beyond a unit's last step; None in a study without windows.
    lengths: (rows,) int64, steps of each unit.
    """

    labels: np.ndarray
    records: np.ndarray
    windows: np.ndarray | None = None
    lengths: np.ndarray | None = None


def catalogue(columns: int, windows: Windows | None) -> tuple[Query, ...]:
    """Every table of a study with so many measured columns of the record, in a fixed order."""
    queries = [Query(Family.PAIR, pair) for pair in combinations(range(columns), 2)]
    if windows is None:
        return tuple(queries)
    channels = dict(enumerate(windows.channels.values(), start=columns))
    groups = columns + len(channels)
    queries += [Query(Family.COURSE, (column, channel)) for column in range(columns) for channel in channels]
    queries += [Query(Family.TOGETHER, pair) for pair in combinations(channels, 2)]
    for channel, rule in channels.items():
        queries += [Query(Family.LEVEL, (channel,), block) for block in range(len(windows.blocks))]
        queries += [Query(Family.TRANSITION, (channel, channel)), Query(Family.ENDS, (channel, channel))]
        if not isinstance(rule, CategoricalColumn):
            queries += [Query(family, (groups,), channel) for family in (Family.HIGHEST, Family.LOWEST)]
        if windows.layout == "grid" and rule.missing:
            queries.append(Query(Family.OBSERVED, (groups + 1,), channel))
    return tuple(queries)


GROUPED = (Family.PAIR, Family.COURSE, Family.TOGETHER)
"""Families of two different axes, measured over groups of bins; the others over bins."""


def layout_of(queries: Sequence[Query], sizes: Sequence[int], classes: int) -> TableLayout:
    """How the tables of some queries lie in one vector; `sizes` are the bins of columns and channels."""
    return TableLayout(tuple(query.axes for query in queries), (*sizes, EXTREME_GROUPS + 1, COUNT_BUCKETS), classes)


class Counter:
    """Finds the cells that rows hit, table by table; what several tables need is computed once."""

    def __init__(self, coded: Coded, windows: Windows | None, weights: np.ndarray) -> None:
        """Bind the rows.

        Args:
            coded: rows in bins.
            windows: of the study.
            weights: (rows,) int64, grid units that a row adds to a table; the steps of a window share them.
        """
        self._coded = coded
        self._windows = windows
        self._missing = [] if windows is None else [column.missing for column in windows.channels.values()]
        self._weights = weights

    def hits(self, query: Query, layout: TableLayout, number: int) -> Hits:
        """The hits of one table, `number` in the layout."""
        coded, columns = self._coded, self._coded.records.shape[1]
        shape, offset = layout.shapes[number], layout.offsets[number]
        axes = [axis - columns for axis in query.axes]
        if query.family == Family.PAIR:
            rows = np.arange(len(coded.labels))
            codes = [coded.records[:, axis] for axis in query.axes]
            shares = self._weights
        else:
            rows, codes, shares = self._of_window(query, axes, layout)
        cells = np.ravel_multi_index((coded.labels[rows], *codes), shape) + offset
        return Hits(rows, cells.astype(np.int64), shares)

    def _of_window(
        self, query: Query, axes: list[int], layout: TableLayout
    ) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
        coded, windows, family = self._coded, self._windows, query.family
        assert coded.windows is not None
        assert coded.lengths is not None
        assert windows is not None
        there = coded.windows[:, :, 0] >= 0  # (rows, steps)
        if family in (Family.COURSE, Family.TOGETHER):
            rows, steps = np.nonzero(there)
            last = coded.windows[rows, steps, axes[-1]]
            other = (
                coded.records[rows, query.axes[0]] if family == Family.COURSE else coded.windows[rows, steps, axes[0]]
            )
            return rows, [other, last], self._weights[rows] // coded.lengths[rows]
        if family == Family.LEVEL:
            begin, end = windows.blocks[query.part]
            rows, steps = np.nonzero(there[:, begin:end])
            return rows, [coded.windows[rows, begin + steps, axes[0]]], self._weights[rows] // (end - begin)
        if family == Family.TRANSITION:
            rows, steps = np.nonzero(there[:, 1:])
            pair = [coded.windows[rows, steps + ahead, axes[0]] for ahead in (0, 1)]
            return rows, pair, self._weights[rows] // (coded.lengths[rows] - 1)
        rows = np.flatnonzero(coded.lengths > 0)
        shares = self._weights[rows]
        if family == Family.ENDS:
            first, last = coded.windows[rows, 0, axes[0]], coded.windows[rows, coded.lengths[rows] - 1, axes[0]]
            return rows, [first, last], shares
        values = layout.sizes[query.channel] - self._missing[query.channel - coded.records.shape[1]]
        return rows, [self._summary(query, rows, values)], shares

    def _summary(self, query: Query, rows: np.ndarray, values: int) -> np.ndarray:
        """Group of the highest or lowest value bin, or bucket of the number of observed steps, of each of some rows."""
        coded = self._coded
        assert coded.windows is not None
        bins = coded.windows[rows, :, query.channel - coded.records.shape[1]]  # (rows, steps)
        there = (bins >= 0) & (bins < values)
        if query.family == Family.OBSERVED:
            return np.asarray(there.sum(axis=1) * COUNT_BUCKETS // (bins.shape[1] + 1))
        if query.family == Family.HIGHEST:
            extreme = np.where(there, bins, 0).max(axis=1)
        else:
            extreme = np.where(there, bins, values - 1).min(axis=1)
        return np.where(there.any(axis=1), extreme_group(extreme, values), EXTREME_GROUPS)


def extreme_group(bins: np.ndarray, values: int) -> np.ndarray:
    """The group of each value bin of a channel that has so many; with fewer bins than groups some stay empty."""
    return np.asarray(bins * EXTREME_GROUPS // values)
