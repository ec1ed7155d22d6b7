"""When the coordinator's generator is fitted to what was released."""

from functools import cache

import numpy as np
import torch

from common.data.queries import Family, Query
from common.models.critics import make_cluster
from common.models.generator import GeneratorShape
from common.models.targets import TargetBuilder
from common.models.verdicts import Opening
from common.study import Study
from server.learner import Learner
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
