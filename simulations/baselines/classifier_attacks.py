"""What the holder of a released classifier can tell of the people that it was trained on.

The games, the populations and the figures are those of attacks on a generator; what is released is not, so the attacks
are others: a classifier has no rows to look at, it answers questions about the label. Whoever holds it can ask as often
as he likes, and knows some units of the population who certainly were not trained on.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from scipy.special import expit

from common.data.queries import Coded
from common.data.schema import CategoricalColumn, Column
from common.data.windows import WindowedTable
from common.evaluation.attacks.games import MembershipAttack, assess, unmeasured
from common.evaluation.attacks.inversion import Inversion
from common.evaluation.attacks.residual import Residual, Tally, compare, not_measured, one_record_each
from common.evaluation.figures import Figure, Population, bootstrap, most_advantage, rate
from common.evaluation.utility import is_positive, to_feature
from common.evaluation.windows import bounds_on_scale
from common.study import Study
from simulations.baselines.classifier_model import features_of, initialise, train_locally
from simulations.baselines.classifiers import TrainedClassifier

HOLDER: Final = "holder of the released classifier, who knows other units of the population"

_PASSES: Final = 50
"""Over the reference; as many as federated averaging makes over a site's rows."""
_RATE: Final = 3e-3
_NEAR: Final = 0.05
"""A number is guessed within this share of the width of its public bounds, on the schema's scale."""
_PLACES: Final = 101
"""Numbers that are guessed lie so many even steps apart in their range."""
_ROUNDING: Final = 1e-9
_KNOWN: Final = 0.4
_SWEEPS: Final = 2
_NOBODY: Final = "members, controls or reference have no rows"


def attack_classifier(
    classifier: TrainedClassifier,
    members: Population,
    controls: Population,
    reference: Population,
    *,
    groups: Mapping[str, tuple[np.ndarray, np.ndarray]],
    seed: int,
    most: int,
) -> dict[str, MembershipAttack]:
    """Membership by how sure a classifier is of a unit's own label; the score of a unit is the highest of its rows.

    loss: the likelihood of the label.
    calibrated_loss: how much likelier it is than by a classifier of the same form that was trained on the reference.

    The privacy that figures are held against is what the classifier claims.

    Guarantees: members and controls are scored by the same rule; the order of units does not matter.
    Edge cases: a side or the reference without rows -> None and the reason.

    Args:
        classifier: that was released.
        members: units that were trained on.
        controls: units of the same population that were not.
        reference: others, whom the attacker knows.
        groups: by name, which members and which controls, both bool; populations beside everyone.
        seed: of who plays, and of the other classifier.
        most: members, and controls, that play.

    Sources: Yeom et al. 2018 (loss threshold); Watson et al. 2022 (difficulty calibration).
    """
    random = np.random.default_rng([seed, 0])
    players = [np.sort(random.permutation(side.count)[:most]) for side in (members, controls)]
    sides = [side.take(chosen) for side, chosen in zip((members, controls), players, strict=True)]
    chosen = {name: (inside[players[0]], outside[players[1]]) for name, (inside, outside) in groups.items()}
    if not all(len(side.units) for side in (*sides, reference)):
        return {name: unmeasured(HOLDER, ["everyone", *groups], _NOBODY) for name in ("loss", "calibrated_loss")}
    other = _of_reference(classifier, reference, seed=seed)
    own = [classifier.log_likelihood(side.table) for side in sides]
    gained = [said - other.log_likelihood(side.table) for said, side in zip(own, sides, strict=True)]
    return {
        name: assess(
            *(_highest(rows, side) for rows, side in zip(scores, sides, strict=True)),
            adversary=HOLDER,
            groups=chosen,
            epsilon=classifier.epsilon,
            delta=classifier.delta,
            seed=seed,
        )
        for name, scores in {"loss": own, "calibrated_loss": gained}.items()
    }


def _of_reference(classifier: TrainedClassifier, reference: Population, *, seed: int) -> TrainedClassifier:
    """A classifier of the same form over the same bins, of rows that the attacker knows."""
    positive = is_positive(reference.table.records, classifier.study)
    share = (positive.sum() + 0.5) / (len(positive) + 1)
    parameters = train_locally(
        initialise(classifier.shape, positive_share=float(share), seed=seed),
        features_of(classifier.coded(reference.table), classifier.shape.features),
        positive,
        passes=_PASSES,
        rates=(_RATE, 0.0),
        seed=seed,
        device=torch.device("cpu"),
    )
    return replace(classifier, parameters=parameters)


def _highest(rows: np.ndarray, side: Population) -> np.ndarray:
    """The highest of each unit's rows, (units,)."""
    scores = np.full(side.count, -np.inf)
    np.maximum.at(scores, side.units, rows)
    return scores


@dataclass(frozen=True)
class _Secret:
    """A column that is guessed.

    position: among the study's measured columns.
    column: its rule.
    places: (guesses,), categories or numbers on the schema's scale, NaN for missing.
    near: how near on that scale is right.
    right: (bins, guesses), how many of the reference are in a bin and would be guessed rightly so.
    bin_of: (guesses,) int64, the bin in which most of those are.
    """

    name: str
    position: int
    column: Column
    places: np.ndarray
    near: float
    right: np.ndarray

    @property
    def bin_of(self) -> np.ndarray:
        return np.asarray(self.right.argmax(axis=0))

    @property
    def naive(self) -> int:
        """The guess that is right most often in the reference."""
        return int(self.right.sum(axis=0).argmax())

    def is_right(self, guesses: np.ndarray, table: WindowedTable) -> np.ndarray:
        """Which guesses, by their number, are those of the rows; (rows,) bool."""
        truth = to_feature(table.records[self.name], self.name, self.column)
        return _matches(self.places[guesses], truth, self.near)

    def guess(self, classifier: TrainedClassifier, coded: Coded, positive: np.ndarray) -> np.ndarray:
        """The guess that is right with the largest chance, given each row's label and its other columns; (rows,)."""
        chances = np.empty((len(positive), len(self.right)))
        records = coded.records.copy()
        asked = replace(coded, records=records)
        for number in range(len(self.right)):
            records[:, self.position] = number
            chances[:, number] = expit(np.where(positive, 1.0, -1.0) * classifier.logits(asked))
        return np.asarray((chances @ self.right).argmax(axis=1))


def _matches(guessed: np.ndarray, truth: np.ndarray, near: float) -> np.ndarray:
    return np.asarray((np.abs(guessed - truth) <= near) | (np.isnan(guessed) & np.isnan(truth)))


def _secrets(
    names: Sequence[str], classifier: TrainedClassifier, reference: WindowedTable, coded: Coded
) -> list[_Secret]:
    """What the reference says of columns; coded: the reference in bins."""
    study, found = classifier.study, []
    for name in names:
        column, position = study.features[name], list(study.features).index(name)
        if isinstance(column, CategoricalColumn):
            places, near = np.arange(len(column.values), dtype=np.float64), 0.0
        else:
            low, high = bounds_on_scale(column)
            places, near = np.linspace(low, high, _PLACES), float((_NEAR + _ROUNDING) * (high - low))
        if column.missing:
            places = np.append(places, np.nan)
        truth = to_feature(reference.records[name], name, column)
        matches = _matches(places, truth[:, np.newaxis], near).astype(np.float64)  # (rows, guesses)
        right = np.eye(classifier.bins.sizes[position])[:, coded.records[:, position]] @ matches
        found.append(_Secret(name, position, column, places, near, right))
    return found


def infer_secrets(
    classifier: TrainedClassifier,
    members: Population,
    controls: Population,
    reference: Population,
    *,
    seed: int,
    most: int,
    secrets: Sequence[str] | None = None,
) -> dict[str, Residual]:
    """Guesses of each secret column of members and of controls, from the label, all other columns and the windows.

    Of each value the likelihood of the label, as the classifier has it, times how often the reference has the value. A
    guess of a category is right if it is the category, where missing is one; of a number, if it lies within 5 % of the
    width of the public bounds, both on the schema's scale, or if both are missing. The naive guess is the one that is
    right most often in the reference; its rate is among controls. The label as a secret is whether it is the positive
    class, and the guess what the classifier takes to be likelier.

    Guarantees: a unit is tried once, by one random record; no guess looks at the secret.
    Edge cases: a side or the reference without rows -> None and the reason.

    Args:
        classifier: that was released.
        members: units that were trained on.
        controls: units that were not.
        reference: units that the attacker may know, in neither.
        seed: of the records and units.
        most: units of a side at most.
        secrets: columns; by default the label, the first two categorical features and the first numeric one.

    Returns:
        By secret.

    Raises:
        ValueError: a secret is not a column of the study.
    Source: Fredrikson et al. 2014; Mehnaz et al. 2022.
    """
    study = classifier.study
    names = _default_secrets(study) if secrets is None else list(secrets)
    if unknown := [name for name in names if name not in study.columns]:
        raise ValueError(f"secrets={unknown}: expected columns of the study")
    random = np.random.default_rng([seed, 3])
    if not all(len(side.units) for side in (members, controls, reference)):
        return {name: not_measured(_NOBODY) for name in names}
    sides = [one_record_each(side, most, random) for side in (members, controls)]
    coded = [classifier.coded(side) for side in sides]
    positive = [is_positive(side.records, study) for side in sides]
    label = study.label.column
    found = {}
    if label in names:
        likelier = float(is_positive(reference.table.records, study).mean()) > 0.5
        naive = rate(int((positive[1] == likelier).sum()), len(positive[1]))
        hits = [(classifier.logits(own) > 0) == truth for own, truth in zip(coded, positive, strict=True)]
        found[label] = compare(*map(Tally.of, hits), naive=naive)
    columns = [name for name in names if name != label]
    for secret in _secrets(columns, classifier, reference.table, classifier.coded(reference.table)):
        hits = [
            secret.is_right(secret.guess(classifier, own, truth), side)
            for own, truth, side in zip(coded, positive, sides, strict=True)
        ]
        blind = secret.is_right(np.full(len(positive[1]), secret.naive), sides[1])
        found[secret.name] = compare(*map(Tally.of, hits), naive=rate(int(blind.sum()), len(blind)))
    return {name: found[name] for name in names}


def _default_secrets(study: Study) -> list[str]:
    categorical = [name for name, column in study.features.items() if isinstance(column, CategoricalColumn)]
    numeric = [name for name in study.features if name not in categorical]
    return [study.label.column, *categorical[:2], *numeric[:1]]


def invert_classifier(
    classifier: TrainedClassifier,
    members: Population,
    controls: Population,
    reference: Population,
    *,
    seed: int,
    most: int,
) -> Inversion:
    """Reconstruct what is not known of members and of controls: the columns that make the known label likeliest.

    Of each unit 40 % of the columns are known, drawn anew for each, and the label, and the windows. The others begin
    with what is most frequent in the reference and are improved in turn, each given all others as they stand: the
    likelihood of the label times how often the reference has the value. What is right is as in `infer_secrets`.

    Guarantees: every guess is made of the known columns, the classifier and the reference; members and controls by one
    rule; a unit is tried once, by one random record.
    Edge cases: a side or the reference without rows, or a single column -> None and the reason.

    Args:
        classifier: that was released.
        members: units that were trained on.
        controls: units that were not.
        reference: units that the attacker may know, in neither.
        seed: of the records and units, and of what is known.
        most: units of a side at most.

    Source: Fredrikson et al. 2015.
    """
    names = list(classifier.study.features)
    known = min(max(1, round(_KNOWN * len(names))), len(names) - 1)
    random = np.random.default_rng([seed, 1])
    if not known or not all(len(side.units) for side in (members, controls, reference)):
        nothing = Figure(n=0, reason=_NOBODY if known else "there is nothing to know or nothing to guess")
        return Inversion(nothing, nothing, nothing, nothing, known, len(names) - known)
    secrets = _secrets(names, classifier, reference.table, classifier.coded(reference.table))
    found = []
    for side in (members, controls):
        table = one_record_each(side, most, random)
        given = random.permuted(np.tile(np.arange(len(names)) < known, (len(table.records), 1)), axis=1)
        found.append(_reconstruct(classifier, secrets, table, given))
    (inside, naive), (outside, _) = found
    ceiling = None
    if classifier.epsilon is not None:
        ceiling = most_advantage(epsilon=classifier.epsilon, delta=classifier.delta)
    return Inversion(
        _mean(inside, seed),
        _mean(outside, seed),
        _excess(inside, outside, seed, ceiling),
        _mean(naive, seed),
        known,
        len(names) - known,
    )


def _reconstruct(
    classifier: TrainedClassifier, secrets: Sequence[_Secret], table: WindowedTable, given: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Share of what is not known of each row that is reconstructed, and that is guessed blindly; (rows,) each."""
    positive = is_positive(table.records, classifier.study)
    whole = classifier.coded(table)
    records = whole.records.copy()
    coded = replace(whole, records=records)
    guesses = np.tile([secret.naive for secret in secrets], (len(records), 1))
    for at, secret in enumerate(secrets):
        records[~given[:, at], secret.position] = secret.bin_of[secret.naive]
    blind = _share_right(secrets, guesses, table, given)
    for _ in range(_SWEEPS):
        for at, secret in enumerate(secrets):
            hidden = ~given[:, at]
            guesses[:, at] = secret.guess(classifier, coded, positive)
            records[hidden, secret.position] = secret.bin_of[guesses[hidden, at]]
    return _share_right(secrets, guesses, table, given), blind


def _share_right(
    secrets: Sequence[_Secret], guesses: np.ndarray, table: WindowedTable, given: np.ndarray
) -> np.ndarray:
    right = np.column_stack([secret.is_right(guesses[:, at], table) for at, secret in enumerate(secrets)])
    return np.asarray((right & ~given).sum(axis=1) / (~given).sum(axis=1))


def _mean(units: np.ndarray, seed: int) -> Figure:
    return bootstrap(lambda drawn: float(units[drawn].mean()), len(units), seed=seed)


def _excess(members: np.ndarray, controls: np.ndarray, seed: int, ceiling: float | None) -> Figure:
    """Of two means, with the interval of drawing the units of both sides again."""
    both, n = np.concatenate([members, controls]), len(members)

    def statistic(drawn: np.ndarray) -> float:
        inside, outside = drawn[drawn < n], drawn[drawn >= n]
        if not len(inside) or not len(outside):
            return math.nan
        return float(both[inside].mean() - both[outside].mean())

    return bootstrap(statistic, len(both), seed=seed, chance=0.0, ceiling=ceiling)
