"""Membership attacks of somebody who holds one synthetic table, and knows other units of the population.

Each attack gives a row a score; the score of a unit is the highest of its rows. What the scores are worth is said in
`games`. None of them trains a generator: attacks that imitate the training many times are stronger, and not here.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import euclidean_distances
from sklearn.neighbors import NearestNeighbors
from sklearn.utils import gen_batches

from common.data.windows import WindowedTable
from common.evaluation.attacks.games import EVERYONE, MembershipAttack, assess, unmeasured
from common.evaluation.figures import Population
from common.evaluation.space import Space
from common.evaluation.utility import to_feature
from common.evaluation.windows import read
from common.study import Study

ADVERSARY: Final = "holder of one synthetic table, who knows other units of the population"
OUTLIERS: Final = "outliers"
RARE_CLASS: Final = "rare class"

ATTACKS: Final = (
    *("dcr", "dcr_difference", "neighbour_ratio", "neighbourhood"),
    *("domias", "likelihood_ratio", "classifier"),
)

_NEIGHBOURS: Final = 20
_OUTLYING: Final = 0.05
"""Share of members and controls together that are outliers: those whose nearest rows in the reference are furthest."""
_LEAST_OUTLYING: Final = 100
_OUTLYING_NEIGHBOUR: Final = 5
_ROWS: Final = 10
"""Rows of the synthetic and of the reference table that are used, for each unit that may play on a side."""
_MODELLED: Final = 10_000
"""Rows of each table that densities and classifiers are made from."""
_COMPONENTS: Final = 10
"""Density estimates know nothing in more dimensions."""
_FLAT: Final = 1e-3
"""A component that varies less is not stretched any further."""
_INFLUENCED: Final = 10
"""Synthetic rows whose likelihood is asked for."""
_LOOKOUTS: Final = 1000
_SAME: Final = 1e-6
"""Distances below it are rounding."""
_CELLS: Final = 4_000_000
"""Distances held at a time."""


@dataclass(frozen=True)
class MembershipSuite:
    """All membership attacks on one synthetic table.

    attacks: by name.
    duplicates: units that were left out because a row of theirs is also a row of the other side or of the reference.
    members, controls: units that played; as many of each.
    """

    attacks: dict[str, MembershipAttack]
    duplicates: int
    members: int
    controls: int


@dataclass(frozen=True)
class _Scene:
    """What is known of the rows that are attacked.

    rows, synthetic, reference: points of the fitted space, (rows, dimensions) each.
    to_synthetic, to_reference: (rows, `_NEIGHBOURS`) distances to the nearest, rising.
    nearest: (rows, `_NEIGHBOURS`), which rows of the synthetic table these are.
    radius: the median distance of a row of the reference to the nearest synthetic one.
    """

    rows: np.ndarray
    synthetic: np.ndarray
    reference: np.ndarray
    to_synthetic: np.ndarray
    to_reference: np.ndarray
    nearest: np.ndarray
    radius: float


def attack_membership(
    synthetic: WindowedTable,
    members: Population,
    controls: Population,
    reference: Population,
    study: Study,
    *,
    epsilon: float | None,
    delta: float,
    seed: int,
    most: int,
) -> MembershipSuite:
    """Try all attacks, on everyone, on outliers, and on the units of the rarest class of the label.

    dcr: nearness of the nearest synthetic row.
    dcr_difference: how much nearer it is than the nearest row of the reference.
    neighbour_ratio: how many times nearer.
    neighbourhood: synthetic rows within the distance that is the median from a reference row to the nearest one.
    domias: density of the synthetic table over that of the reference.
    likelihood_ratio: how much likelier the nearest synthetic rows become if the row is added to the reference.
    classifier: how sure a classifier, trained to tell the synthetic table from the reference, is of the former.

    Guarantees: if members and controls are alike to whoever made the table, every score of one is as likely as of the
        other; what is left out is left out by the same rule on both sides.
    Edge cases: fewer than 20 rows in the synthetic table or in the reference, or no unit to play -> None and the
        reason; of a larger table than 10 `most` rows a random part is used, beside exact copies of a row, which are
        looked up in all of it; a control that equals a member who does not play stays, and hides as much of a leak.

    Args:
        synthetic: parsed.
        members: units that were trained on.
        controls: units of the same population that were not.
        reference: others, whom the attacker knows; no unit in common with the first two.
        study: names the columns.
        epsilon: the claim, per unit; None where there is none.
        delta: likewise.
        seed: of every random choice.
        most: members, and controls, that play.

    Sources: Chen et al. 2020 (dcr, nearness over that to a model of the population); Hilprecht et al. 2019
        (neighbourhood); van Breugel et al. 2023 (domias); Ward et al. 2025 (likelihood_ratio); Hayes et al. 2019,
        Houssiau et al. 2022 (classifier).
    """
    random = np.random.default_rng([seed, 0])
    inside, outside, duplicates = _players(members, controls, reference, study, random, most)
    known = _sample(reference.table, _ROWS * most, random)
    reason = _why_not(synthetic, known, inside)
    if reason is not None:
        missing = unmeasured(ADVERSARY, (EVERYONE, OUTLIERS, RARE_CLASS), reason)
        return MembershipSuite(dict.fromkeys(ATTACKS, missing), duplicates, inside.count, outside.count)
    owner = np.concatenate([inside.units, inside.count + outside.units])
    sides = inside.table, outside.table
    sampled = _sample(synthetic, _ROWS * most, random)
    scene = _look(sides, sampled, known, study, random)
    rows = np.concatenate([_digests(side, study) for side in sides])
    scene.to_synthetic[np.isin(rows, _digests(synthetic, study)), 0] = 0.0
    groups = _groups(scene, owner, inside, outside, study)
    attacks = {}
    for name, scores in _attack(scene, sides, sampled, known, study, random):
        highest = _highest(scores, owner)
        attacks[name] = assess(
            highest[: inside.count],
            highest[inside.count :],
            adversary=ADVERSARY,
            groups={group: (who[: inside.count], who[inside.count :]) for group, who in groups.items()},
            epsilon=epsilon,
            delta=delta,
            seed=seed,
        )
    return MembershipSuite(attacks, duplicates, inside.count, outside.count)


def _players(
    members: Population,
    controls: Population,
    reference: Population,
    study: Study,
    random: np.random.Generator,
    most: int,
) -> tuple[Population, Population, int]:
    """As many members as controls, none of whom shares a row with the other side or the reference; and who did."""
    known = _digests(reference.table, study)
    sides = [_some_units(side, min(most, members.count, controls.count), random) for side in (members, controls)]
    rows = [_digests(side.table, study) for side in sides]
    shared = [
        _highest(np.isin(own, np.concatenate([other, known])).astype(np.float64), side.units) > 0
        for side, own, other in zip(sides, rows, reversed(rows), strict=True)
    ]
    sides = [side.take(~twice) for side, twice in zip(sides, shared, strict=True)]
    fewest = min(side.count for side in sides)
    inside, outside = (_some_units(side, fewest, random) for side in sides)
    return inside, outside, int(sum(twice.sum() for twice in shared))


def _digests(table: WindowedTable, study: Study) -> np.ndarray:
    """(rows,) uint64, equal for rows that are; of two others with a chance of 2^-64."""
    features = _features(table, study) + 0.0  # of -0.0 too
    hashed = pd.util.hash_pandas_object(pd.DataFrame(np.where(np.isnan(features), np.nan, features)), index=False)
    return np.asarray(hashed.to_numpy())


def _some_units(population: Population, count: int, random: np.random.Generator) -> Population:
    return population.take(random.permutation(population.count)[:count])


def _sample(table: WindowedTable, most: int, random: np.random.Generator) -> WindowedTable:
    rows = len(table.records)
    return table if rows <= most else table.take(random.permutation(rows)[:most])


def _why_not(synthetic: WindowedTable, known: WindowedTable, inside: Population) -> str | None:
    for which, table in (("synthetic table", synthetic), ("reference", known)):
        if len(table.records) < _NEIGHBOURS:
            return f"the {which} has fewer than {_NEIGHBOURS} rows"
    return None if inside.count else "no unit can play: each shares a row with another, or a side has none"


def _look(
    sides: tuple[WindowedTable, WindowedTable],
    synthetic: WindowedTable,
    known: WindowedTable,
    study: Study,
    random: np.random.Generator,
) -> _Scene:
    """Distances are the root mean square of those in the fitted and in the public space.

    Ranks tell rows apart where most rows are, but not beyond the last of the reference, where the outliers are.
    """
    spaces = Space(study, known), Space(study)
    ranked, plain = ([space.points(table) for table in (*sides, synthetic, known)] for space in spaces)
    inside, outside, published, reference = (
        np.concatenate(parts, axis=1) * np.float32(math.sqrt(0.5)) for parts in zip(ranked, plain, strict=True)
    )
    rows = np.concatenate([inside, outside])
    to_synthetic, nearest = _neighbours(rows, published)
    lookouts = reference[random.permutation(len(reference))[:_LOOKOUTS]]
    return _Scene(
        rows=np.concatenate(ranked[:2]),
        synthetic=ranked[2],
        reference=ranked[3],
        to_synthetic=to_synthetic,
        to_reference=_neighbours(rows, reference)[0],
        nearest=nearest,
        radius=float(np.median(_neighbours(lookouts, published, 1)[0])),
    )


def _neighbours(rows: np.ndarray, among: np.ndarray, count: int = _NEIGHBOURS) -> tuple[np.ndarray, np.ndarray]:
    """Distances to the nearest, rising, and which they are; (rows, count) each."""
    search = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(among)
    distances, positions = search.kneighbors(rows)
    return np.where(distances < _SAME, 0.0, distances), positions


def _groups(
    scene: _Scene, owner: np.ndarray, inside: Population, outside: Population, study: Study
) -> dict[str, np.ndarray]:
    """Victims of their own, members before controls, (units,) bool each; one rule for both sides."""
    apart = _highest(scene.to_reference[:, _OUTLYING_NEIGHBOUR - 1], owner)
    count = min(len(apart), max(_LEAST_OUTLYING, round(_OUTLYING * len(apart))))
    labels = np.concatenate([side.table.records[study.label.column].cat.codes.to_numpy() for side in (inside, outside)])
    classes = [_highest((labels == label).astype(np.float64), owner) > 0 for label in range(len(study.label_values))]
    present = [units for units in classes if units.any()]
    return {
        OUTLIERS: apart >= np.sort(apart)[-count],
        RARE_CLASS: min(present, key=lambda units: int(units.sum())),
    }


def _highest(scores: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """The score of each unit, (units,), from those of its rows."""
    highest = np.full(int(owner.max(initial=-1)) + 1, -np.inf)
    np.maximum.at(highest, owner, scores)
    return highest


def _attack(
    scene: _Scene,
    sides: tuple[WindowedTable, WindowedTable],
    synthetic: WindowedTable,
    known: WindowedTable,
    study: Study,
    random: np.random.Generator,
) -> Iterator[tuple[str, np.ndarray]]:
    """The score of each row that is attacked, by attack."""
    nearest, elsewhere = scene.to_synthetic[:, 0], scene.to_reference[:, 0]
    yield "dcr", -nearest
    yield "dcr_difference", elsewhere - nearest
    yield "neighbour_ratio", np.log(elsewhere + _SAME) - np.log(nearest + _SAME)
    yield "neighbourhood", (scene.to_synthetic <= scene.radius).sum(axis=1).astype(np.float64)
    yield from _densities(scene, random)
    modelled = [_sample(table, _MODELLED, random) for table in (synthetic, known)]
    yield "classifier", _classify(modelled, sides, study, int(random.integers(2**31)))


def _densities(scene: _Scene, random: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    """Attacks by kernel densities, in the space of the reference's main components, each of variance 1."""
    components = min(_COMPONENTS, *scene.reference.shape)
    with np.errstate(invalid="ignore"):  # rows that are all equal have no variance to share out
        reduce = PCA(components, svd_solver="covariance_eigh").fit(scene.reference)
    spread = np.maximum(np.sqrt(reduce.explained_variance_), _FLAT)
    rows, synthetic, reference = (
        reduce.transform(part) / spread for part in (scene.rows, scene.synthetic, scene.reference)
    )
    reference, support = (part[random.permutation(len(part))[:_MODELLED]] for part in (reference, synthetic))
    yield "domias", _log_density(rows, support) - _log_density(rows, reference)
    used = scene.nearest[:, :_INFLUENCED]
    near, which = np.unique(used, return_inverse=True)
    before = _log_density(synthetic[near], reference)[which].reshape(used.shape) + np.log(len(reference))
    apart = ((synthetic[used] - rows[:, None]) ** 2).sum(axis=2)
    added = -apart / (2 * _bandwidth(reference) ** 2)
    yield "likelihood_ratio", (np.logaddexp(before, added) - before).sum(axis=1)


def _bandwidth(support: np.ndarray) -> float:
    """Half of Scott's (1992): what a generator gives away of a row is narrower than the population is smooth."""
    return float(len(support) ** (-1 / (support.shape[1] + 4)) / 2)


def _log_density(rows: np.ndarray, support: np.ndarray) -> np.ndarray:
    """Of a Gaussian kernel density, (rows,), less the constant of its kernel."""
    scale, density = 2 * _bandwidth(support) ** 2, np.empty(len(rows))
    for block in gen_batches(len(rows), max(1, _CELLS // len(support))):
        apart = euclidean_distances(rows[block], support, squared=True)
        least = apart.min(axis=1)
        apart -= least[:, None]
        apart /= -scale
        density[block] = np.log(np.exp(apart, out=apart).mean(axis=1)) - least / scale
    return density


def _classify(
    modelled: list[WindowedTable], sides: tuple[WindowedTable, WindowedTable], study: Study, seed: int
) -> np.ndarray:
    """Log odds that each row that is attacked is synthetic, (rows,), by boosted trees."""
    boosting = HistGradientBoostingClassifier(class_weight="balanced", early_stopping=False, random_state=seed)
    truth = np.repeat([1, 0], [len(table.records) for table in modelled])
    features = np.concatenate([_features(table, study) for table in modelled])
    used = ~np.isnan(features).all(axis=0)  # trees cannot cut a column of which nothing is known
    boosting.fit(features[:, used], truth)
    odds: list[np.ndarray] = [boosting.decision_function(_features(table, study)[:, used]) for table in sides]
    return np.concatenate(odds)


def _features(table: WindowedTable, study: Study) -> np.ndarray:
    """(rows, features) float64, of all columns and steps; NaN is missing."""
    columns = [to_feature(table.records[name], name, column) for name, column in study.columns.items()]
    windows = read(table, study.channels, "windows").values
    return np.column_stack([*columns, table.lengths, windows.reshape(len(windows), math.prod(windows.shape[1:]))])
