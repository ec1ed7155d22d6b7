"""What a site is sent to train against: the same as was packed, or refused."""

import numpy as np
import pytest

from common.data.queries import Family, Query
from common.models.generator import GeneratorShape
from common.models.targets import TargetBuilder, Targets
from common.wire.packing import pack_targets, unpack_targets

SHAPE = GeneratorShape((3, 5, 2), classes=2, latent=2, width=8, blocks=1)


def targets() -> Targets:
    """Of three columns, two bins of the second one in one group."""
    builder = TargetBuilder(SHAPE, [np.arange(3), np.array([0, 0, 1, 2, 3]), np.arange(2)])
    random = np.random.default_rng(3)
    builder.add_table(Query(Family.PAIR, (0, 1)), random.normal(size=(2, 3, 4)), 4.0)
    builder.add_marginal(2, random.normal(size=(2, 2)), np.ones(2))
    return builder.build(np.array([20.0, 30.0]))


def test_targets_arrive_as_they_were_sent() -> None:
    sent = targets()
    found = unpack_targets(pack_targets(sent), SHAPE)
    assert set(found.tables) == set(sent.tables)
    for name, target in sent.tables.items():
        np.testing.assert_allclose(found.tables[name].values, target.values, rtol=1e-6)
        np.testing.assert_allclose(found.tables[name].precision, target.precision, rtol=1e-6)
    assert found.label_counts.tolist() == [20, 30]
    assert found.groups.records.tolist() == sent.groups.records.tolist() == [0, 1, 2, 3, 3, 4, 5, 6, 7, 8]
    assert found.groups.columns.tolist() == sent.groups.columns.tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("joined", [[0, 1, 2, 2, 3, 4, 5, 6, 7, 8], [0, 1, 2, 3, 4, 5, 6, 7, 7, 8]])
def test_a_group_is_of_one_column(joined: list[int]) -> None:
    arrays = {**pack_targets(targets()), "groups.records": np.array(joined)}
    with pytest.raises(ValueError, match="bins of two columns"):
        unpack_targets(arrays, SHAPE)
