"""Linkability: does the synthetic table join two halves of a member's record that were apart?

The second of the three criteria of the European data protection authorities. Somebody has some columns of a person from
one place and the others from another, and takes them for one person's where both lie next to one synthetic record.
"""

import math
from collections.abc import Sequence

import numpy as np

from common.data.windows import WindowedTable
from common.evaluation.attacks.nearest import nearest
from common.evaluation.attacks.residual import Residual, Tally, compare, not_measured, not_playable, one_record_each
from common.evaluation.figures import Figure, Population
from common.evaluation.space import Space
from common.study import Study


def link(
    synthetic: WindowedTable,
    members: Population,
    controls: Population,
    study: Study,
    *,
    seed: int,
    most: int,
    neighbours: Sequence[int] = (1, 5),
) -> dict[str, Residual]:
    """Units both halves of whose record have a synthetic record in common among their nearest ones.

    The columns, and the channels of windows, fall into two random halves. One random record stands for a unit.
    Distances are those of `Space`, numbers by their rank in the synthetic table. Naive is to take as many synthetic
    records at random, twice.

    Guarantees: the same tables and seed give the same figures; of synthetic records at one distance both halves take
        the same ones first.
    Edge cases: a table without rows -> None and the reason; fewer synthetic records than neighbours -> all are
        neighbours, each unit is linked, and nothing is left to leak: None and the reason.

    Args:
        synthetic: what the attacker holds.
        members: units that trained it.
        controls: units that did not.
        study: names the columns and the channels.
        seed: of the halves, the records that stand for units, and the units.
        most: units of a population at most.
        neighbours: how many records count as nearest, each a game of its own.

    Returns:
        By the number of neighbours: "nearest_1", "nearest_5".

    Raises:
        ValueError: most, or one of neighbours, is less than 1, or there are none.
    Source: Article 29 Working Party 2014 (WP216), section 2.2; Giomi et al. 2023, section 4.2.
    """
    if most < 1 or not neighbours or min(neighbours) < 1:
        raise ValueError(f"most={most}, neighbours={list(neighbours)}: expected at least 1")
    reason = not_playable(synthetic, members, controls)
    if reason is not None:
        return {f"nearest_{count}": not_measured(reason) for count in neighbours}
    random = np.random.default_rng([seed, 2])
    space = Space(study, synthetic)
    halves = _halve(space, random)
    # Shuffled, so that who comes first among equals is not how records are sorted.
    points = random.permutation(space.points(synthetic))
    won = [
        _links(points, space.points(one_record_each(side, most, random)), halves, neighbours)
        for side in (members, controls)
    ]
    return {
        f"nearest_{count}": compare(*(Tally.of(side[at]) for side in won), naive=_by_chance(count, len(points)))
        for at, count in enumerate(neighbours)
    }


def _halve(space: Space, random: np.random.Generator) -> list[np.ndarray]:
    """The coordinates of two random halves of the columns and channels."""
    names = random.permutation(space.names)
    parts = names[: len(names) // 2], names[len(names) // 2 :]
    coordinates = np.arange(space.dimensions)
    return [np.concatenate([coordinates[space.slices[name]] for name in part]) for part in parts]


def _links(
    points: np.ndarray, units: np.ndarray, halves: list[np.ndarray], neighbours: Sequence[int]
) -> list[np.ndarray]:
    """Which units are linked, (units,) bool for each number of neighbours."""
    one, other = (nearest(points[:, half], units[:, half], most=max(neighbours))[0] for half in halves)
    common = one[:, :, None] == other[:, None, :]  # (units, neighbours, neighbours)
    return [common[:, :count, :count].any(axis=(1, 2)) for count in neighbours]


def _by_chance(count: int, records: int) -> Figure:
    """That two random choices of so many records have one in common."""
    count = min(count, records)
    apart = math.comb(records - count, count) / math.comb(records, count)
    return Figure(1 - apart)
