"""What a released classifier is measured by: the parts of evaluation.json that it can have, by the same rules."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from common.evaluation.attacks.games import MembershipAttack, strongest
from common.evaluation.attacks.membership import RARE_CLASS
from common.evaluation.attacks.suite import positive_units
from common.evaluation.figures import People
from common.evaluation.report import (
    ACCESS,
    Level,
    OnPart,
    definitions,
    effort_of,
    learnt_of,
    outline,
    taught,
    utility_of,
)
from common.evaluation.scores import score_released
from common.evaluation.utility import is_positive
from simulations.baselines.classifier_attacks import attack_classifier, infer_secrets, invert_classifier
from simulations.baselines.classifiers import TrainedClassifier

RELEASED: Final = "released"


def evaluate_classifier(
    classifier: TrainedClassifier, people: People, *, level: Level, seed: int, on_part: OnPart
) -> dict[str, Any]:
    """All measurements of a classifier that was published in place of rows, ready for JSON.

    Args:
        classifier: that was released.
        people: real units.
        level: how much is measured.
        seed: of classifiers, attackers and samples.
        on_part: is told which part has been measured.
    """
    study, test = classifier.study, people.test
    report = outline(people, study, level=level, seed=seed, synthetic=None)
    scores = score_released(
        classifier.predict(test.table),
        is_positive(test.table.records, study),
        share=classifier.positive_share,
        seed=seed,
        units=test.units,
    )
    report["utility"] = {
        "tstr": {RELEASED: asdict(scores)},
        "trtr": utility_of(taught(people.members.table, level, seed), test, study, seed=seed, learnt=learnt_of(level)),
    }
    on_part("usefulness")
    if (effort := effort_of(level)) is not None:
        report["attacks"] = _attacks(classifier, people, most=effort.attacked, seed=seed)
        on_part("attacks")
    report["access"] = {name: access for name, access in ACCESS.items() if name in report or name == "guarantee"}
    report["definitions"] = definitions(study)
    return report


def _attacks(classifier: TrainedClassifier, people: People, *, most: int, seed: int) -> dict[str, Any]:
    members, controls, reference = people.members, people.control, people.reference
    groups = {RARE_CLASS: (positive_units(members, classifier.study), positive_units(controls, classifier.study))}
    membership: Mapping[str, MembershipAttack] = attack_classifier(
        classifier, members, controls, reference, groups=groups, seed=seed, most=most
    )
    name, figure = strongest(membership)
    secrets = infer_secrets(classifier, members, controls, reference, seed=seed, most=most)
    inverted = invert_classifier(classifier, members, controls, reference, seed=seed, most=most)
    return {
        "membership": {which: asdict(one) for which, one in membership.items()},
        "strongest": {"attack": name, "tried": len(membership), "tpr_at_10": asdict(figure)},
        "attributes": {secret: asdict(one) for secret, one in secrets.items()},
        "inversion": asdict(inverted),
    }
