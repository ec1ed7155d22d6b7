"""Gates: what passes, what is stopped, and what an attack must not do however the gates are set."""

from typing import Any

import pytest

from common.errors import ExitCode, ReleaseError, StudyError
from common.evaluation.attacks.suite import beyond_ceiling
from common.evaluation.gates import at_least, at_most, gates_of_evaluation, primary, require
from common.study import Study, parse_study

PLAIN: dict[str, Any] = {
    "name": "toy",
    "label": {"column": "ill", "positive": "yes"},
    "columns": {
        "age": {"type": "integer", "min": 0, "max": 100},
        "ill": {"type": "categorical", "categories": ["no", "yes"]},
    },
    "privacy": {"epsilon": 1, "delta": 1e-6},
}


def study(**gates: Any) -> Study:
    return parse_study({**PLAIN, "gates": gates}, source="test")


def figure(low: float | None, *, ceiling: float | None = 0.3) -> dict[str, Any]:
    value, high = (None if low is None else low + width for width in (0.02, 0.04))
    return {"value": value, "low": low, "high": high, "ceiling": ceiling}


def evaluation(
    *, real: float = 0.9, made: float = 0.8, advantage: float = 0.0, residual: float = 0.0
) -> dict[str, Any]:
    attack = {"populations": {"everyone": {"advantage": figure(advantage), "auc": figure(None)}}}
    game = {"residual": figure(residual)}
    return {
        "utility": {"tstr": {"gradient_boosting": {"auc": made}}, "trtr": {"gradient_boosting": {"auc": real}}},
        "attacks": {
            "membership": {"dcr": attack, "weak": {"populations": {"everyone": {"advantage": figure(-0.2)}}}},
            "attributes": {"ill": game},
            "singling_out": {"univariate": {"residual": figure(None)}},
            "inversion": {"excess": figure(-0.1)},
        },
    }


def closed(which: Study, found: dict[str, Any]) -> list[str]:
    return [gate.id for gate in gates_of_evaluation(which, found) if not gate.passed]


def test_a_harmless_table_passes_the_gates_that_are_there_by_default() -> None:
    assert [gate.id for gate in gates_of_evaluation(study(), evaluation())] == [
        "membership_advantage",
        "attribute_residual",
    ]
    assert closed(study(), evaluation(advantage=0.1, residual=0.1)) == []


@pytest.mark.parametrize(
    ("gates", "found", "which"),
    [
        ({}, {"advantage": 0.11}, "membership_advantage"),
        ({}, {"residual": 0.11}, "attribute_residual"),
        ({"utility_gap": 0.05}, {"made": 0.84}, "utility_gap"),
    ],
)
def test_what_was_shown_to_be_beyond_a_threshold_closes_its_gate(
    gates: dict[str, Any], found: dict[str, Any], which: str
) -> None:
    assert closed(study(**gates), evaluation(**found)) == [which]
    with pytest.raises(ReleaseError, match=rf"gates\.{which}: .*nothing was published") as caught:
        require(gates_of_evaluation(study(**gates), evaluation(**found)))
    assert caught.value.code == ExitCode.GATE_FAILED == 27


def test_an_inversion_that_gives_members_away_closes_the_gate_of_attributes() -> None:
    found = evaluation()
    found["attacks"]["inversion"]["excess"] = figure(0.2)
    assert closed(study(), found) == ["attribute_residual"]


@pytest.mark.parametrize(("games", "which"), [(1, ["attribute_residual"]), (7, [])])
def test_one_of_many_games_that_chance_made_large_closes_no_gate(games: int, which: list[str]) -> None:
    found = evaluation()
    del found["attacks"]["inversion"]
    found["attacks"]["attributes"] = {str(at): {"residual": figure(0.0)} for at in range(1, games)}
    # Alone it is above 0.1 with 95 % confidence; the largest of seven such games is above it far more often than 5 %.
    found["attacks"]["attributes"]["risk"] = {"residual": {"value": 0.368, "low": 0.107, "high": 0.584}}
    assert closed(study(), found) == which


def test_a_gate_that_is_left_out_lets_everything_through() -> None:
    open_study = study(membership_advantage=None, attribute_residual=None)
    assert gates_of_evaluation(open_study, evaluation(advantage=0.9, residual=0.9)) == []


def test_a_released_classifier_is_compared_with_the_trees_on_real_rows() -> None:
    found = {"utility": {"tstr": {"released": {"auc": 0.8}}, "trtr": {"gradient_boosting": {"auc": 0.9}}}}
    assert [gate.passed for gate in gates_of_evaluation(study(utility_gap=0.11), found)] == [True]
    assert [gate.passed for gate in gates_of_evaluation(study(utility_gap=0.09), found)] == [False]


def test_without_attacks_their_gates_are_not_asked() -> None:
    found = evaluation()
    del found["attacks"]
    assert gates_of_evaluation(study(), found) == []


def test_a_figure_that_is_not_known_does_not_pass() -> None:
    for gate in (at_least("a", None, 0.5, "rule", "public"), at_most("b", None, 0.5, "rule", "public")):
        assert not gate.passed
        with pytest.raises(ReleaseError, match=f"gates.{gate.id}: not known, expected rule"):
            require([gate])


def test_where_no_attack_could_be_played_nothing_was_shown() -> None:
    found = evaluation(residual=0.0)
    found["attacks"]["membership"] = {"dcr": {"populations": {"everyone": {"advantage": figure(None)}}}}
    assert closed(study(), found) == []


@pytest.mark.parametrize(("value", "passes"), [(0.4, False), (0.5, True), (0.6, True)])
def test_the_threshold_itself_passes(value: float, passes: bool) -> None:
    assert at_least("a", value, 0.5, "rule", "public").passed == passes
    assert at_most("a", -value, -0.5, "rule", "public").passed == passes


def test_a_gate_as_json_says_whether_it_is_open() -> None:
    assert at_most("a", 1.0, 0.5, "rule", "simulation").as_dict() == {
        "id": "a",
        "rule": "rule",
        "value": 1.0,
        "threshold": 0.5,
        "pass": False,
        "visibility": "simulation",
    }


def test_an_interval_wholly_above_its_ceiling_is_named_and_no_other() -> None:
    found = evaluation(advantage=0.35)
    found["attacks"]["membership"]["weak"]["populations"]["rare class"] = {
        "tpr_at_1": figure(0.2, ceiling=0.3),
        "tpr_at_10": figure(0.9, ceiling=None),
    }
    assert beyond_ceiling(found) == ["dcr, everyone, advantage"]
    # An interval of one figure alone would be above; one that holds for all that were tried is not.
    assert beyond_ceiling(evaluation(advantage=0.301)) == []
    assert beyond_ceiling({}) == []


@pytest.mark.parametrize(
    ("classifiers", "chosen"),
    [
        (["logistic_regression", "gradient_boosting"], "gradient_boosting"),
        (["gradient_boosting_static", "gradient_boosting_on_summaries"], "gradient_boosting_on_summaries"),
        (["released", "gradient_boosting"], "released"),
    ],
)
def test_verdicts_speak_of_the_classifier_that_sees_most(classifiers: list[str], chosen: str) -> None:
    assert primary({"tstr": {name: {} for name in classifiers}}) == chosen


def test_a_gate_on_the_monitor_needs_units_to_ask() -> None:
    with pytest.raises(StudyError, match="needs held-out units"):
        parse_study(
            {**PLAIN, "privacy": {**PLAIN["privacy"], "holdout": 0}, "gates": {"monitor_auc": 0.7}}, source="test"
        )
