"""Released tables, laid out as the dense arrays that a generator's expectations come in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from common.data.queries import COUNT_BUCKETS, EXTREME_GROUPS, GROUPED, Family, Query
from common.data.tables import sizes_of
from common.models.generator import GeneratorShape

IMPLIED: Final = "implied"
"""The one-way tables of columns over groups that all tables of two columns imply together."""


@dataclass(frozen=True)
class Target:
    """A family of released tables.

    values: (classes, ...) noised counts in units. precision: the same without the classes, 1 / variance of one count; 0
    where nothing was measured.
    """

    values: np.ndarray
    precision: np.ndarray


@dataclass(frozen=True)
class Groups:
    """Which bins are joined in tables of two columns or channels: finer cells would hold more noise than counts.

    records: (record bins,) int64, the group of each bin, numbered from 0 over all columns side by side. channels:
    (channel bins,), the same of channels. columns: (record groups,) int64, the column of each.
    """

    records: np.ndarray
    channels: np.ndarray
    columns: np.ndarray

    @classmethod
    def of(cls, maps: Sequence[np.ndarray], columns: int) -> "Groups":
        """From the map of each column, then of each channel, from its bins to its groups."""

        def joined(some: Sequence[np.ndarray]) -> np.ndarray:
            starts = np.cumsum([0, *sizes_of(some)])
            return np.concatenate(
                [np.zeros(0, np.int64), *[one + start for one, start in zip(some, starts, strict=False)]]
            )

        own = np.repeat(np.arange(columns), sizes_of(maps[:columns]))
        return cls(joined(maps[:columns]), joined(maps[columns:]), own)


@dataclass(frozen=True)
class Targets:
    """Everything that was released about records and windows, as a generator is compared with it.

    tables: by family, "one_way" (of columns) and "average" (of channels); those of two columns or channels over groups,
    and so what those of columns imply of one.
    label_counts: (classes,), estimated units. groups: of bins.
    """

    tables: Mapping[str, Target]
    label_counts: np.ndarray
    groups: Groups


def table_shapes(shape: GeneratorShape, groups: Groups) -> dict[str, tuple[int, ...]]:
    """The shape of every family's precision: its table without the classes."""
    columns, sequence = int(groups.records.max()) + 1, shape.sequence
    shapes: dict[str, tuple[int, ...]] = {
        "one_way": (sum(shape.sizes),),
        IMPLIED: (columns,),
        Family.PAIR: (columns, columns),
    }
    if sequence is None:
        return shapes
    bins, channels, wide = sum(sequence.sizes), len(sequence.sizes), sequence.widest + 1
    joined = int(groups.channels.max()) + 1
    return shapes | {
        "average": (bins,),
        Family.COURSE: (columns, joined),
        Family.TOGETHER: (joined, joined),
        Family.LEVEL: (len(sequence.blocks), bins),
        Family.TRANSITION: (channels, wide, wide),
        Family.ENDS: (channels, wide, wide),
        Family.HIGHEST: (channels, EXTREME_GROUPS + 1),
        Family.LOWEST: (channels, EXTREME_GROUPS + 1),
        Family.OBSERVED: (channels, COUNT_BUCKETS),
    }


class TableIndex:
    """Where the cells of one-way tables and of the catalogue's tables lie in the dense arrays."""

    def __init__(self, shape: GeneratorShape, maps: Sequence[np.ndarray]) -> None:
        """Lay columns and channels side by side.

        Args:
            shape: of the generator.
            maps: of each column, then of each channel, from its bins to its groups.
        """
        self.columns = len(shape.sizes)
        sizes = [shape.sizes, shape.sequence.sizes if shape.sequence else ()]
        self._places = [place for part in sizes for place in _side_by_side(part)]
        grouped = sizes_of(maps)
        self._grouped = [
            place for part in (grouped[: self.columns], grouped[self.columns :]) for place in _side_by_side(part)
        ]
        if shape.sequence is not None:
            wide = shape.sequence.widest + 1
            self._slots = [shape.sequence.slots[place] % wide for place in self._places[self.columns :]]

    def marginal(self, axis: int) -> tuple[str, np.ndarray]:
        """Family and cells of the one-way table of a column or of a channel."""
        return "one_way" if axis < self.columns else "average", self._places[axis]

    def table(self, query: Query) -> tuple[np.ndarray | int, ...]:
        """Cells of a table of the catalogue in the array of its family, without the classes."""
        channel = query.channel - self.columns
        if query.family in GROUPED:
            left, right = (self._grouped[axis] for axis in query.axes)
            return left[:, None], right[None, :]
        if query.family == Family.LEVEL:
            return query.part, self._places[query.channel]
        if query.family in (Family.TRANSITION, Family.ENDS):
            slots = self._slots[channel]
            return channel, slots[:, None], slots[None, :]
        return channel, np.arange(COUNT_BUCKETS if query.family == Family.OBSERVED else EXTREME_GROUPS + 1)


class TargetBuilder:
    """Adds releases up by their precision: what is measured twice is known twice as well."""

    def __init__(self, shape: GeneratorShape, maps: Sequence[np.ndarray]) -> None:
        """Begin with nothing; the arguments are those of `TableIndex`."""
        self._index = TableIndex(shape, maps)
        self._groups = Groups.of(maps, self._index.columns)
        shapes = table_shapes(shape, self._groups)
        self._weighted = {name: np.zeros((shape.classes, *dense)) for name, dense in shapes.items()}
        self._precision = {name: np.zeros(dense) for name, dense in shapes.items()}

    def add_table(self, query: Query, counts: np.ndarray, variance: float) -> None:
        """Add a table of the catalogue, (classes, ...) in units, and the variance of one count."""
        places = self._index.table(query)
        self._add(query.family, places, counts, variance)
        if query.family == Family.PAIR:
            # A sum over the groups of the other column.
            for axis, other in ((1, 2), (2, 1)):
                place = np.ravel(places[axis - 1])
                self._add(IMPLIED, (place,), counts.sum(axis=other), variance * counts.shape[other])

    def add_marginal(self, axis: int, counts: np.ndarray, variance: np.ndarray) -> None:
        """Add the one-way table of a column or of a channel, (classes, bins); variance (bins,)."""
        name, place = self._index.marginal(axis)
        self._add(name, (place,), counts, variance)

    def _add(
        self, name: str, index: tuple[np.ndarray | int, ...], counts: np.ndarray, variance: np.ndarray | float
    ) -> None:
        self._weighted[name][:, *index] += counts / variance
        self._precision[name][index] += 1 / variance

    def add_vector(self, name: str, sums: np.ndarray, variance: float) -> None:
        """Add sums of vectors by class, (classes, cells), and the variance of one of them."""
        if name not in self._weighted:
            self._weighted[name], self._precision[name] = np.zeros(sums.shape), np.zeros(sums.shape[1])
        self._add(name, (np.arange(sums.shape[1]),), sums, variance)

    def build(self, label_counts: np.ndarray) -> Targets:
        """The targets so far."""
        tables = {}
        for name, precision in self._precision.items():
            known = np.where(precision > 0, precision, 1.0)
            tables[str(name)] = Target(self._weighted[name] / known, precision.copy())
        return Targets(tables, label_counts, self._groups)


def _side_by_side(sizes: Sequence[int]) -> list[np.ndarray]:
    """Positions of each part's bins when the parts lie one after the other."""
    starts = np.cumsum([0, *sizes])
    return [np.arange(start, start + size) for start, size in zip(starts, sizes, strict=False)]
