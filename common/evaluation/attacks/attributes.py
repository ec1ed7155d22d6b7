"""Attribute inference: is one column guessed from the others better of members than of units that never trained?

The attacker knows a whole record but for one column, the secret, and guesses it with what the synthetic table taught.
That guesses are good shows that the table is; what counts is how much better they are for members.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from common.data.schema import CategoricalColumn, NumericColumn
from common.data.windows import WindowedTable
from common.evaluation.attacks.nearest import nearest
from common.evaluation.attacks.residual import Residual, Tally, compare, not_measured, not_playable, one_record_each
from common.evaluation.figures import Figure, Population, rate
from common.evaluation.sequences import summarise_windows
from common.evaluation.space import Space
from common.evaluation.utility import to_feature
from common.evaluation.windows import bounds_on_scale, read
from common.study import Study

_TOLERANCE: Final = 0.05
"""A number is guessed within this share of the width of its public bounds."""
_ROUNDING: Final = 1 + 1e-9
_TREE_ROWS: Final = 20_000
"""Synthetic rows that the trees learn from at most; neighbours are sought among all."""
_REFERENCE: Final = 1_000
_FEWEST_VICTIMS: Final = 30
_MOST_SETS: Final = 255
"""Scikit-learn's trees split at most this many categories as a set."""
_TREES: Final = {"max_iter": 100, "max_leaf_nodes": 15, "early_stopping": False, "random_state": 0}
_ONE_VALUE: Final = "the synthetic table holds one value of it"


def infer_attributes(
    synthetic: WindowedTable,
    members: Population,
    controls: Population,
    reference: Population,
    study: Study,
    *,
    seed: int,
    most: int,
    secrets: Sequence[str] | None = None,
) -> dict[str, Residual]:
    """Guesses of each secret column of members and of controls, from all other columns and the windows.

    Two attackers guess. One trains boosted trees on the synthetic rows, with summaries of windows beside the columns;
    it sees what the table says of everybody. The other takes the value of the nearest synthetic record, by `Space` with
    numbers by their rank in the synthetic table; it sees copies. If neighbours guess better of the reference they stand
    alone. Otherwise trees do, unless neighbours show a residual that is above 0 beyond doubt, by its interval, and
    above that of trees. Half of the members and controls decide that for the other half, and the other way round, so
    that no unit has a say in who attacks it.

    A guess of a category is right if it is the category, where missing is one; of a number, if it lies within 5 % of
    the width of the public bounds, both on the schema's scale, or if both are missing. The naive guess is the
    most frequent category of the reference, or the number that is right most often there; its rate is among controls.

    Of a category, members and controls are compared as many of both with each value: that more of one side have a value
    that is hard to guess is no leak. What neither side shares with the other is left out.

    A category has a figure more, "secret=value": among the units that have the rarest value of which both sides have 30
    units, the share that is found out. Trees then name as many as have it in the synthetic table, those that seem
    likeliest; naive is to name as many at random, as often as the reference has it.

    Guarantees: the same tables and seed give the same figures; a unit is tried once, by one random record.
    Edge cases: a table without rows, or a secret with one value in the synthetic table -> None and the reason; a
        reference without rows -> no naive guess, and both attackers are tried.

    Args:
        synthetic: what the attacker holds.
        members: units that trained it.
        controls: units that did not.
        reference: units that the attacker may know, in none of the others.
        study: names the columns.
        seed: of the records and units, of the rows for the trees, and of the halves.
        most: units of a population at most.
        secrets: columns; by default the label, the first two categorical features and the first numeric one.

    Returns:
        By secret.

    Raises:
        ValueError: most is less than 1, or a secret is not a column of the study.
    Source: Giomi et al. 2023, section 4.3.
    """
    chosen = list(_default_secrets(study) if secrets is None else secrets)
    unknown = [name for name in chosen if name not in study.columns]
    if most < 1 or unknown:
        raise ValueError(f"most={most}, secrets={chosen}: expected at least 1, and columns of the study")
    reason = not_playable(synthetic, members, controls)
    if reason is not None:
        return {name: not_measured(reason) for name in chosen}
    random = np.random.default_rng([seed, 3])
    game = _prepare(synthetic, (members, controls, reference), study, chosen, most, random)
    measured: dict[str, Residual] = {}
    for name, neighbours in zip(chosen, game.neighbours, strict=True):
        column = study.columns[name]
        if isinstance(column, CategoricalColumn):
            measured |= _guess_category(game, name, column, neighbours, random)
        else:
            measured[name] = _guess_number(game, name, column, neighbours, random)
    return measured


def _default_secrets(study: Study) -> list[str]:
    categorical = [name for name, column in study.features.items() if isinstance(column, CategoricalColumn)]
    numeric = [name for name in study.features if name not in categorical]
    return [study.label.column, *categorical[:2], *numeric[:1]]


@dataclass(frozen=True)
class _Game:
    """What is used whatever the secret is.

    synthetic: in random order.
    sides: members, controls and reference, a record a unit.
    learnt: (tree rows, features) float64, of the first synthetic rows; the columns of the study come first.
    asked: (units, features) float64, of all sides.
    neighbours: (secrets, units), positions in `synthetic`.
    """

    study: Study
    synthetic: WindowedTable
    sides: list[WindowedTable]
    learnt: np.ndarray
    asked: np.ndarray
    neighbours: np.ndarray

    def by_side(self, values: np.ndarray) -> list[np.ndarray]:
        """What all units have, apart."""
        return np.split(values, np.cumsum([len(side.records) for side in self.sides])[:-1])

    def without(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Features of both, less the secret."""
        at = list(self.study.columns).index(name)
        return np.delete(self.learnt, at, axis=1), np.delete(self.asked, at, axis=1)

    def sets(self, name: str) -> list[bool]:
        """Which of these features trees split as sets of categories."""
        columns = [column for other, column in self.study.columns.items() if other != name]
        sets = [isinstance(column, CategoricalColumn) and len(column.values) <= _MOST_SETS for column in columns]
        return sets + [False] * (self.learnt.shape[1] - 1 - len(sets))


def _prepare(
    synthetic: WindowedTable,
    populations: tuple[Population, Population, Population],
    study: Study,
    secrets: list[str],
    most: int,
    random: np.random.Generator,
) -> _Game:
    synthetic = synthetic.take(random.permutation(len(synthetic.records)))
    limits = (most, most, min(most, _REFERENCE))
    sides = [one_record_each(side, limit, random) for side, limit in zip(populations, limits, strict=True)]
    space = Space(study, synthetic)
    neighbours = nearest(
        space.points(synthetic),
        np.concatenate([space.points(side) for side in sides if len(side.records)]),
        most=1,
        left_out=[space.slices[name] for name in secrets],
    )[:, :, 0]
    learnt = _features(synthetic.take(np.arange(min(len(synthetic.records), _TREE_ROWS))), study)
    asked = np.concatenate([_features(side, study) for side in sides if len(side.records)])
    # Scikit-learn's trees refuse a feature that is all missing; made constant, it tells them nothing.
    empty = np.isnan(learnt).all(axis=0)
    learnt[:, empty] = asked[:, empty] = 0.0
    return _Game(study, synthetic, sides, learnt, asked, neighbours)


def _features(table: WindowedTable, study: Study) -> np.ndarray:
    """(rows, features) float64: the columns, then summaries of the windows; NaN is missing."""
    columns = [to_feature(table.records[name], name, column) for name, column in study.columns.items()]
    if study.windows is None:
        return np.column_stack(columns)
    return np.column_stack([*columns, summarise_windows(read(table, study.channels, "values"))])


def _guess_category(
    game: _Game, name: str, column: CategoricalColumn, neighbours: np.ndarray, random: np.random.Generator
) -> dict[str, Residual]:
    """The secret, and its rarest value."""
    known, *truths = (_codes(table, name, column) for table in (game.synthetic, *game.sides))
    if len(np.unique(known)) == 1:
        return {name: not_measured(_ONE_VALUE)}
    learnt, asked = game.without(name)
    trees = HistGradientBoostingClassifier(**_TREES, categorical_features=game.sets(name))
    trees.fit(learnt, known[: len(learnt)])
    guesses = {"trees": trees.predict(asked), "nearest": known[neighbours]}
    of_controls, of_reference = truths[1:]
    chosen = [*_alike(truths[0], of_controls, random), np.arange(len(of_reference))]
    right = {
        attacker: [
            (guess == truth)[rows] for guess, truth, rows in zip(game.by_side(guessed), truths, chosen, strict=True)
        ]
        for attacker, guessed in guesses.items()
    }
    naive = None
    if len(of_reference) and len(chosen[1]):
        alike = of_controls[chosen[1]]
        naive = rate(int((alike == np.bincount(of_reference).argmax()).sum()), len(alike))
    measured = {name: _judge(right, naive, random)}

    rarest, is_enough = _rarest(truths[0], of_controls, len(column.values) + int(column.missing))
    key = f"{name}={(*column.values, 'missing')[rarest]}"
    if not is_enough:
        return measured | {key: not_measured(f"fewer than {_FEWEST_VICTIMS} members or controls have it")}
    victims = [truth == rarest for truth in truths]
    named = {"trees": _name_likeliest(trees, learnt, asked, known, rarest), "nearest": known[neighbours] == rarest}
    found = {
        attacker: [who[theirs] for who, theirs in zip(game.by_side(accused), victims, strict=True)]
        for attacker, accused in named.items()
    }
    naive = rate(int((of_reference == rarest).sum()), len(of_reference)) if len(of_reference) else None
    return measured | {key: _judge(found, naive, random)}


def _alike(members: np.ndarray, controls: np.ndarray, random: np.random.Generator) -> list[np.ndarray]:
    """Members and controls, as many of both with each value of the secret, at random; positions, (units,) each.

    What few of them happen to have is guessed of few: a side with fewer of those seems to be known better.
    """
    kept: list[list[np.ndarray]] = [[np.zeros(0, np.int64)], [np.zeros(0, np.int64)]]
    for value in np.intersect1d(members, controls):
        found = [random.permutation(np.flatnonzero(side == value)) for side in (members, controls)]
        fewest = min(map(len, found))
        for side, rows in zip(kept, found, strict=True):
            side.append(rows[:fewest])
    return [np.sort(np.concatenate(side)) for side in kept]


def _codes(table: WindowedTable, name: str, column: CategoricalColumn) -> np.ndarray:
    """(rows,) int64, positions of categories; missing after the last."""
    positions = to_feature(table.records[name], name, column)
    return np.where(np.isnan(positions), len(column.values), positions).astype(np.int64)


def _rarest(members: np.ndarray, controls: np.ndarray, size: int) -> tuple[int, bool]:
    """The rarest value that is not the most frequent and has victims enough, and whether there is one.

    Where there is none: the most frequent of the others.
    """
    counts = np.array([np.bincount(side, minlength=size) for side in (members, controls)])  # (2, values)
    total, fewest = counts.sum(axis=0), counts.min(axis=0)
    others = np.argsort(total, kind="stable")[:-1]
    enough = others[fewest[others] >= _FEWEST_VICTIMS]
    return (int(enough[0]), True) if len(enough) else (int(others[-1]), False)


def _name_likeliest(
    trees: HistGradientBoostingClassifier, learnt: np.ndarray, asked: np.ndarray, known: np.ndarray, value: int
) -> np.ndarray:
    """Which units trees name as having a value: as large a share of the rows they learnt from as has it."""
    often = int((known[: len(learnt)] == value).sum())
    if not often:
        return np.zeros(len(asked), dtype=bool)
    at = list(trees.classes_).index(value)
    threshold = np.sort(trees.predict_proba(learnt)[:, at])[-often]
    return np.asarray(trees.predict_proba(asked)[:, at] >= threshold)


def _guess_number(
    game: _Game,
    name: str,
    column: NumericColumn,
    neighbours: np.ndarray,
    random: np.random.Generator,
) -> Residual:
    known, *truths = (to_feature(table.records[name], name, column) for table in (game.synthetic, *game.sides))
    if len(np.unique(known)) == 1:
        return not_measured(_ONE_VALUE)
    reach = float(_TOLERANCE * np.ptp(bounds_on_scale(column)))
    learnt, asked = game.without(name)
    present = ~np.isnan(known[: len(learnt)])
    by_trees = np.full(len(asked), np.nan)
    if present.any():
        trees = HistGradientBoostingRegressor(**_TREES, loss="absolute_error", categorical_features=game.sets(name))
        by_trees = trees.fit(learnt[present], known[: len(learnt)][present]).predict(asked)
    guesses = {"trees": by_trees, "nearest": known[neighbours]}
    right = {
        attacker: [_is_near(guess, truth, reach) for guess, truth in zip(game.by_side(guessed), truths, strict=True)]
        for attacker, guessed in guesses.items()
    }
    naive = None
    if len(truths[2]):
        blind = _is_near(np.full(len(truths[1]), _best_number(truths[2], reach)), truths[1], reach)
        naive = rate(int(blind.sum()), len(blind))
    return _judge(right, naive, random)


def _is_near(guesses: np.ndarray, truth: np.ndarray, reach: float) -> np.ndarray:
    """Which numbers are guessed, on the scale; missing is guessed by missing."""
    return np.asarray((np.isnan(guesses) & np.isnan(truth)) | (np.abs(guesses - truth) <= reach * _ROUNDING))


def _best_number(values: np.ndarray, reach: float) -> float:
    """The guess that is right most often: a number, or NaN for missing."""
    present = np.sort(values[~np.isnan(values)])
    within = np.searchsorted(present, present + 2 * reach * _ROUNDING, side="right") - np.arange(len(present))
    if len(values) - len(present) >= max(within, default=0):
        return np.nan
    return float(present[within.argmax()]) + reach


def _judge(right: Mapping[str, list[np.ndarray]], naive: Figure | None, random: np.random.Generator) -> Residual:
    """The residual, by what each attacker guessed rightly of members, controls and reference, (units,) bool."""
    *by_trees, of_reference = right["trees"]
    *by_neighbours, of_reference_by_neighbours = right["nearest"]
    if len(of_reference) and of_reference_by_neighbours.mean() >= of_reference.mean():
        return compare(*map(Tally.of, by_neighbours), naive=naive)
    halves = [random.random(len(side)) < 0.5 for side in by_trees]
    # By which half a unit is in, what the other half says.
    replaced = [
        _leaks_more(_half_of(by_neighbours, halves, which=other), _half_of(by_trees, halves, which=other))
        for other in (True, False)
    ]
    won = [
        np.where(np.where(half, replaced[1], replaced[0]), near, tree)
        for tree, near, half in zip(by_trees, by_neighbours, halves, strict=True)
    ]
    return compare(*map(Tally.of, won), naive=naive)


def _half_of(sides: list[np.ndarray], halves: list[np.ndarray], *, which: bool) -> list[np.ndarray]:
    return [side[half == which] for side, half in zip(sides, halves, strict=True)]


def _leaks_more(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    """Whether the first residual is above 0 beyond doubt, and above the other."""
    first, second = (compare(*map(Tally.of, sides)).residual for sides in (one, other))
    if first.value is None or first.low is None or first.low <= 0:
        return False
    return second.value is None or first.value > second.value
