"""Contingency tables over integer codes, each of them by label class.

A *layout* says which columns each table crosses and how the tables lie one after the other in one flat vector; the
vector is what a site counts, noises and sends.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class TableLayout:
    """Tables of (classes, size of column i, size of column j, ...) in one flat vector.

    columns: the columns of each table, as positions into `sizes`.
    sizes: number of codes of each column.
    classes: number of label classes.

    >>> layout = all_pairs((2, 3, 2), classes=2)
    >>> layout.columns, layout.n_cells
    (((0, 1), (0, 2), (1, 2)), 32)
    """

    columns: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]
    classes: int

    @cached_property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of each table, the label class first."""
        return tuple((self.classes, *(self.sizes[column] for column in table)) for table in self.columns)

    @cached_property
    def offsets(self) -> np.ndarray:
        """Where each table starts in the vector, and the vector's length last; (tables + 1,) int64."""
        return np.concatenate([[0], np.cumsum([int(np.prod(shape)) for shape in self.shapes])]).astype(np.int64)

    @property
    def n_tables(self) -> int:
        """Number of tables."""
        return len(self.columns)

    @property
    def n_cells(self) -> int:
        """Length of the vector."""
        return int(self.offsets[-1])

    def split(self, vector: np.ndarray) -> Iterator[np.ndarray]:
        """The tables in a vector of `n_cells` values, each in its shape."""
        for shape, start, end in zip(self.shapes, self.offsets[:-1], self.offsets[1:], strict=True):
            yield vector[start:end].reshape(shape)


@dataclass(frozen=True)
class Hits:
    """Which rows hit which cells of a vector, and with what weight; each (hits,) int64."""

    rows: np.ndarray
    cells: np.ndarray
    weights: np.ndarray


def sizes_of(bins: Sequence[np.ndarray]) -> tuple[int, ...]:
    """Number of bins of each map from cells to bins."""
    return tuple(int(bin_of.max()) + 1 for bin_of in bins)


def one_way(sizes: Sequence[int], classes: int) -> TableLayout:
    """One table for each column."""
    return TableLayout(tuple((column,) for column in range(len(sizes))), tuple(sizes), classes)


def all_pairs(sizes: Sequence[int], classes: int) -> TableLayout:
    """One table for each pair of columns."""
    return TableLayout(tuple(itertools.combinations(range(len(sizes)), 2)), tuple(sizes), classes)


def cell_indices(codes: np.ndarray, labels: np.ndarray, layout: TableLayout) -> np.ndarray:
    """The one cell of the vector that each record hits in each table, (records, tables) int64."""
    indices = np.empty((len(codes), layout.n_tables), dtype=np.int64)
    for position, (table, shape) in enumerate(zip(layout.columns, layout.shapes, strict=True)):
        coordinates = (labels, *(codes[:, column] for column in table))
        indices[:, position] = np.ravel_multi_index(coordinates, shape) + layout.offsets[position]
    return indices
