"""As many rows of each of several tables: figures of samples of different sizes cannot be compared."""

from collections.abc import Sequence

import numpy as np

from common.data.windows import WindowedTable
from common.evaluation.figures import Population


def equal_rows(tables: Sequence[Population | WindowedTable], *, seed: int, most: int) -> list[Population]:
    """Of each table as many rows as the smallest has, and at most `most`, drawn without replacement.

    Guarantees: the rows that are drawn of a table depend on the seed, its place among the tables and the sizes alone.
    Edge cases: an empty table -> no rows of any; as many rows as there are -> all, in their order.

    Args:
        tables: real ones with their units; in a table without, such as a synthetic one, each row is a unit.
        seed: of the draws.
        most: rows, > 0.

    Returns:
        The rows of each table, their units renumbered.

    Raises:
        ValueError: `most` is not positive.
    """
    if most < 1:
        raise ValueError(f"{most=}: expected > 0")
    known = [
        table if isinstance(table, Population) else Population(table, np.arange(len(table.records))) for table in tables
    ]
    rows = min(most, *(len(population.units) for population in known))
    return [_draw(population, rows, np.random.default_rng([seed, 41, at])) for at, population in enumerate(known)]


def _draw(population: Population, rows: int, random: np.random.Generator) -> Population:
    chosen = np.sort(random.permutation(len(population.units))[:rows])
    units = np.unique(population.units[chosen], return_inverse=True)[1]
    return Population(population.table.take(chosen), units.astype(np.int64))
