"""Does the evaluator itself work: attacks on tables of which the answer is known, and tables that are ruined.

A report whose controls failed measures nothing. They run on the same people as the attacks they stand beside.
"""

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from common.data.windows import WindowedTable
from common.evaluation.attacks.games import strongest
from common.evaluation.attacks.membership import attack_membership
from common.evaluation.distinguisher import distinguish
from common.evaluation.figures import Figure, People, Population
from common.evaluation.frechet import shuffle_columns
from common.study import Study

_ATTACKED: Final = 1000
_COMPARED: Final = 2000
_CAUGHT: Final = 0.95
"""AUC that an attack on a copier must reach."""


@dataclass(frozen=True)
class Control:
    """One control. id: names it. expected: in words. figure: what was found. passed: whether it is as expected."""

    id: str
    expected: str
    figure: Figure
    passed: bool


def check_evaluator(people: People, study: Study, *, seed: int) -> list[dict[str, Any]]:
    """Controls of the membership attacks and of the distinguisher, ready for JSON.

    copier: a table of members' own rows; the best attack must tell members from others.
    fresh: a table of people who are in no other part; no attack may.
    shuffled: real rows with each column shuffled; a distinguisher must see it.
    real: real rows beside real rows; a distinguisher may not.

    Args:
        people: members, controls, reference; the test units are the fresh table.
        study: names the columns.
        seed: of samples and classifiers.
    """
    some = people.members.take(np.random.default_rng([seed, 8]).permutation(people.members.count)[:_ATTACKED])
    copied, fresh = (_attacked(table, some, people, study, seed) for table in (some.table, people.test.table))
    ruined = shuffle_columns(people.control.table, study, seed=seed)
    shuffled, real = (
        distinguish(table, people.test, study, seed=seed, most=_COMPARED).auc for table in (ruined, people.control)
    )
    none_found = "interval of the best attack, as wide as all of them need, begins below 0.5"
    no_worse = "AUC of the distinguisher on real rows below that on shuffled ones"
    controls = (
        Control("copier", f"AUC of the best attack above {_CAUGHT:g}", copied, _lies(copied.value, _CAUGHT, 1)),
        Control("fresh", none_found, fresh, _lies(fresh.low, 0, 0.5)),
        Control("shuffled", "interval of the distinguisher's AUC above 0.5", shuffled, _lies(shuffled.low, 0.5, 1)),
        Control("real", no_worse, real, _lies(real.value, 0, shuffled.value)),
    )
    return [asdict(control) for control in controls]


def _attacked(table: WindowedTable, members: Population, people: People, study: Study, seed: int) -> Figure:
    """AUC of the best attack on a table, with an interval that holds for all."""
    suite = attack_membership(
        table, members, people.control, people.reference, study, epsilon=None, delta=1.0, seed=seed, most=_ATTACKED
    )
    return strongest(suite.attacks, statistic="auc")[1]


def _lies(value: float | None, low: float, high: float | None) -> bool:
    return value is not None and high is not None and low <= value <= high
