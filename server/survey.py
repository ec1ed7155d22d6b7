"""What the measured discriminators ask: which tables, over which groups of bins, for which share of the budget."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.data.queries import Query, catalogue
from common.models.releases import Bins, group_maps
from common.models.sequences import Expected
from common.models.targets import TableIndex, Targets
from common.study import Study
from common.wire.agenda import planned_tables


@dataclass(frozen=True)
class Part:
    """Tables that are released together.

    numbers: (tables,) int64, in the study's catalogue. emphasis: (tables,) int64, of each. maps: from the bins of each
    column and channel to the codes that the tables are over. share: of the discriminators' budget.
    """

    name: str
    numbers: np.ndarray
    emphasis: np.ndarray
    queries: Sequence[Query]
    maps: Sequence[np.ndarray]
    share: float

    def only(self, numbers: np.ndarray) -> "Part":
        """Some of the tables, for the same share."""
        kept = np.isin(self.numbers, numbers)
        queries = [query for query, keep in zip(self.queries, kept, strict=True) if keep]
        return Part(self.name, self.numbers[kept], self.emphasis[kept], queries, self.maps, self.share)


@dataclass(frozen=True)
class Survey:
    """All that the measured discriminators ask. groups: from bins to groups, of each column and channel."""

    parts: tuple[Part, ...]
    groups: Sequence[np.ndarray]


def plan_survey(study: Study, bins: Bins, budgets: Sequence[float]) -> Survey:
    """The tables of every discriminator that is on.

    Args:
        study: with the discriminators' weights.
        bins: of columns and channels.
        budgets: of each site, as the study's accountant counts; groups are as fine as the noise that they buy allows.
    """
    known = catalogue(bins.columns, study.windows)
    planned = planned_tables(study)
    rest = 1 - study.privacy.one_way_share
    # The noise of one count of a table of two columns or channels where it is largest, summed over sites.
    grouped = [name for name in ("pairs", "couplings") if name in planned]
    stddev = max(
        (
            math.hypot(*(one.noise_stddev(study.accountant, spend=rest * one.share * budget) for budget in budgets))
            for one in (planned[name] for name in grouped)
        ),
        default=1.0,
    )
    groups = group_maps(bins, study, stddev=stddev)
    own = [np.arange(size) for size in bins.sizes]
    parts = tuple(
        Part(
            name,
            one.numbers,
            one.emphasis,
            [known[at] for at in one.numbers],
            groups if name in grouped else own,
            one.share,
        )
        for name, one in planned.items()
    )
    return Survey(parts, groups)


def worst_fitted(part: Part, index: TableIndex, targets: Targets, expected: Expected, *, share: float) -> np.ndarray:
    """The tables of a part that a generator fits worst beyond what noise explains, in rising order, (tables,) int64.

    Args:
        part: whole.
        index: of the targets.
        targets: released so far, the part among them.
        expected: mean tables of the generator by class, from `expectations`.
        share: of the part's tables to return; at least one.
    """
    apart = {}
    for family in {query.family for query in part.queries}:
        target = targets.tables[family]
        counts = targets.label_counts.reshape(-1, *[1] * target.precision.ndim)
        apart[family] = expected[family].cpu().double().numpy() * counts - target.values
    scores = []
    for query in part.queries:
        cells = index.table(query)
        squares = apart[query.family][:, *cells] ** 2 * targets.tables[query.family].precision[cells]
        # Under noise alone their sum has the mean `size` and the variance 2 size.
        scores.append((squares.sum() - squares.size) / np.sqrt(2 * squares.size))
    keep = max(1, round(share * len(part.queries)))
    return np.sort(part.numbers[np.argsort(-np.array(scores), kind="stable")[:keep]])
