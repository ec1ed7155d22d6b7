"""The gates that a coordinator can check itself: bought figures with their error, and the fit to the releases."""

from typing import Any

import pytest

from common.errors import ReleaseError
from common.evaluation.gates import require
from common.study import Study, parse_study
from server.gates import gates_of
from server.run_state import RunState


def study(**gates: Any) -> Study:
    return parse_study(
        {
            "name": "toy",
            "label": {"column": "ill", "positive": "yes"},
            "columns": {
                "age": {"type": "integer", "min": 0, "max": 100},
                "ill": {"type": "categorical", "categories": ["no", "yes"]},
            },
            "privacy": {"epsilon": 1, "delta": 1e-6},
            "gates": gates,
        },
        source="test",
    )


def state(auc: float | None = None, error: float | None = None, **losses: float) -> RunState:
    return RunState("run", 0, "digest", monitor={"auc": auc, "standard_error": error}, losses=losses)


def test_a_study_without_such_gates_has_none() -> None:
    assert gates_of(study(), state()) == []


@pytest.mark.parametrize(("error", "passes"), [(0.04, True), (0.06, False)])
def test_a_bought_figure_counts_less_two_standard_errors(error: float, passes: bool) -> None:
    (gate,) = gates_of(study(monitor_auc=0.7), state(0.8, error))
    assert gate.passed == passes
    assert gate.value == pytest.approx(0.8 - 2 * error)


def test_a_figure_that_could_not_be_bought_does_not_pass() -> None:
    for found in (state(), RunState("run", 0, "digest")):
        with pytest.raises(ReleaseError, match=r"gates\.monitor_auc: not known"):
            require(gates_of(study(monitor_auc=0.7), found))


@pytest.mark.parametrize(("worst", "passes"), [(1.9, True), (2.1, False)])
def test_the_worst_fitted_discriminator_counts(worst: float, passes: bool) -> None:
    (gate,) = gates_of(study(misfit=2), state(statistical=worst, temporal=0.5))
    assert gate.passed == passes
    assert gate.visibility == "public"
