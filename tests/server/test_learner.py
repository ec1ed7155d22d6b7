"""When the coordinator's generator is fitted to what was released, and how far it has come."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from common.data.queries import Family, Query
from common.models.critics import make_cluster
from common.models.generator import Generator, GeneratorShape, initialise
from common.models.targets import TargetBuilder, Targets
from common.models.training import parameters_of
from common.models.verdicts import Opening
from common.study import Study
from server.learner import Learner
from server.quality import Distance
from server.survey import Survey
from tests.client.homes import STUDY

CPU = torch.device("cpu")
SHAPE = GeneratorShape((3, 4), classes=2, latent=4, width=8, blocks=1)
MAPS = [np.arange(size) for size in SHAPE.sizes]


@cache
def study() -> Study:
    return Study.model_validate(STUDY)


def learner() -> Learner:
    """Told of two columns and of both together."""
    found = Learner(SHAPE, Survey((), MAPS), study(), CPU, seed=0)
    builder = TargetBuilder(SHAPE, MAPS)
    for axis, size in enumerate(SHAPE.sizes):
        builder.add_marginal(axis, np.ones((2, size)), np.ones(size))
    builder.add_table(Query(Family.PAIR, (0, 1)), np.ones((2, 3, 4)), 1.0)
    found.targets = builder.build(np.array([20.0, 30.0]))
    return found


def test_a_generator_is_fitted_where_no_critic_says_more_than_its_noise_would() -> None:
    found = learner()
    levels = make_cluster(found.targets, None, None, CPU).noise_levels
    # Of 2 * 3 cells that rows and columns leave free, in each of two combinations of classes.
    assert levels["statistical"] == levels["statistical by class"] == 1 + (2 / 6) ** 0.5
    assert found.is_fitted(levels)
    for name, level in levels.items():
        assert not found.is_fitted({**levels, name: level + 1e-6}), name
        assert found.is_fitted({**levels, name: -5.0})


def test_beside_a_neural_critic_that_is_heard_it_never_is() -> None:
    found = learner()
    levels = make_cluster(found.targets, None, None, CPU).noise_levels
    found.gate = Opening((0.0,), (0.8,), (0.3,))
    assert found.is_fitted(levels)
    assert found.adversary is None
    found.gate = Opening((0.5,), (0.8,), (0.3,))
    assert not found.is_fitted(levels)
    assert found.adversary is not None
    assert found.adversary.opening == found.gate


@pytest.mark.parametrize(
    ("now", "start", "expected"),
    [
        (Distance(0.1, 0.3), Distance(0.4, 0.1), 0.25),
        (Distance(0.6, 0.0), Distance(0.4, 0.1), 1.5),
        (Distance(0.0, 0.1), Distance(0.4, 0.1), 0.0),
        (Distance(0.1, 0.1), Distance(0.4, 0.21), None),
        (Distance(0.1, 0.1), Distance(0.4, 0.2), None),
        (Distance(0.1, 0.0), Distance(0.0, 0.0), None),
        (None, None, None),
    ],
)
def test_the_ratio_is_to_a_distance_that_noise_does_not_hide(
    now: Distance | None, start: Distance | None, expected: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, first = learner(), parameters_of(initialise(SHAPE, seed=5))

    def told(targets: Targets, generator: Generator, *_: Any, **__: Any) -> Distance | None:
        assert targets is found.targets
        is_first = all(np.array_equal(value, first[name]) for name, value in parameters_of(generator).items())
        assert is_first or generator is found.averaged
        return start if is_first else now

    monkeypatch.setattr("server.learner.frechet_distance", told)
    assert found.frechet_ratio(first, (), seed=0) == (None if expected is None else pytest.approx(expected))
