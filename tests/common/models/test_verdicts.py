"""What a critic says of held-out units, how sure that is, and how far the gate opens."""

import numpy as np
import pytest
import torch

from common.data.queries import Coded
from common.models.generator import GeneratorShape
from common.models.neural import CriticShape, initialise_critic
from common.models.sequences import SequenceShape
from common.models.verdicts import Opening, Verdict, gate, heads_of, is_given_up, judge, one_hot, verdicts_on

SEQUENCE = SequenceShape("states", 2, ((0, 1), (1, 2)), (3, 2), (True, False), (True, False), states=2)
SHAPE = GeneratorShape((2, 3), classes=2, latent=2, width=8, blocks=1, sequence=SEQUENCE)
CODED = Coded(
    np.array([0, 1]),
    np.array([[1, 0], [0, 2]]),
    np.array([[[2, 0], [1, 1]], [[0, 1], [-1, -1]]]),
    np.array([2, 1]),
)
CRITIC = CriticShape(5, 2, 5, 2, 8, 8, semantic=True, temporal=True)


def test_units_are_indicators_of_their_bins_and_nothing_beyond_their_end() -> None:
    records, steps = one_hot(CODED, SHAPE)
    assert records.astype(int).tolist() == [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]]
    assert steps is not None
    assert steps.astype(int).tolist() == [[[0, 0, 1, 1, 0], [0, 1, 0, 0, 1]], [[1, 0, 0, 0, 1], [0, 0, 0, 0, 0]]]
    assert one_hot(Coded(CODED.labels, CODED.records), SHAPE)[1] is None


def test_a_verdict_is_whether_a_head_scores_above_zero_and_each_unit_has_its_own() -> None:
    critic = initialise_critic(CRITIC, seed=1)
    records, steps = one_hot(CODED, SHAPE)
    assert steps is not None
    together = judge(critic, records, steps, CODED.labels)
    assert together.shape == (2, 2)
    scores = critic(torch.from_numpy(records).float(), torch.from_numpy(steps).float(), torch.from_numpy(CODED.labels))
    assert together.tolist() == [[int(head[unit] > 0) for head in scores.heads()] for unit in range(2)]
    for unit in range(2):
        one = slice(unit, unit + 1)
        assert np.array_equal(judge(critic, records[one], steps[one], CODED.labels[one])[0], together[unit])
    assert judge(critic, records[:0], steps[:0], CODED.labels[:0]).shape == (0, 2)
    assert heads_of(critic) == ["semantic", "temporal"]


def test_accuracy_is_half_of_real_units_taken_for_real_and_of_fakes_caught() -> None:
    fakes = np.array([[0, 1]] * 3 + [[1, 1]] * 1)  # the first head catches three of four, the second none
    found = verdicts_on(np.array([[200.0, 800.0], [0.0, 1000.0]]), 1.0, fakes)
    assert found is not None
    assert [one.accuracy for one in found] == pytest.approx([(0.8 + 0.75) / 2, 0.5])
    assert [one.passing for one in found] == pytest.approx([0.8, 1.0])
    assert [one.passed for one in found] == pytest.approx([0.25, 1.0])


@pytest.mark.parametrize(("real", "told"), [(500.0, 0.5), (800.0, 0.8), (1000.0, 1.0), (200.0, 0.2)])
def test_a_head_in_balance_tells_as_many_real_units_as_pass(real: float, told: float) -> None:
    found = verdicts_on(np.array([[1000.0 - real, real]]), 1.0, np.array([[0], [1]]))
    assert found is not None
    assert found[0].telling == pytest.approx(told)
    # Of all verdicts a quarter is wrong at best.
    assert found[0].accuracy == pytest.approx((told + 0.5) / 2)


def test_what_a_head_tells_is_a_share_even_where_other_fakes_pass_than_it_was_balanced_on() -> None:
    for real, passed, told in ((0.0, 1, 0.0), (1000.0, 0, 1.0)):
        found = verdicts_on(np.array([[1000.0 - real, real]]), 1.0, np.full((4, 1), passed))
        assert found is not None
        assert found[0].telling == told


def test_noise_widens_the_error_and_hides_few_units() -> None:
    fakes = np.zeros((1000, 1), dtype=np.int64)
    quiet, loud = (verdicts_on(np.array([[300.0, 700.0]]), variance, fakes) for variance in (1.0, 2500.0))
    assert quiet is not None
    assert loud is not None
    assert loud[0].error > 1.5 * quiet[0].error
    assert verdicts_on(np.array([[300.0, 700.0]]), 1e6, fakes) is None
    assert verdicts_on(np.array([[-300.0, 100.0]]), 1.0, fakes) is None


def test_the_noise_of_both_counts_is_in_the_error() -> None:
    fakes = np.zeros((10**6, 1), dtype=np.int8)
    found = verdicts_on(np.array([[3e8, 7e8]]), 1e14, fakes)
    assert found is not None
    # Half of the deviation of real / total, to first order: noise 1e7 in each count, total 1e9, share 0.7.
    assert found[0].error == pytest.approx(0.5 * 1e7 / 1e9 * (0.7**2 + 0.3**2) ** 0.5, rel=0.01)


@pytest.mark.statistical
def test_the_standard_error_is_that_of_repeated_draws() -> None:
    random = np.random.default_rng(0)
    units, rows, variance = 400, 500, 200.0
    found = []
    for _ in range(2000):
        real = random.binomial(units, 0.6)
        counts = np.array([[units - real, real]]) + random.normal(0, variance**0.5, (1, 2))
        one = verdicts_on(counts, variance, random.binomial(1, 0.4, (rows, 1)))
        assert one is not None
        found.append((one[0].accuracy, one[0].error))
    accuracy, error = np.array(found).T
    # It takes the widest binomial for the chance of the draw; 2,000 draws tell a deviation to 2 %.
    assert accuracy.std() == pytest.approx(error.mean(), rel=0.1)


@pytest.mark.parametrize(
    ("accuracy", "error", "weight"),
    [(0.5, 0.0, 0.0), (0.4, 0.01, 0.0), (0.6, 0.05, 0.0), (0.6, 0.0125, 0.5), (0.65, 0.0, 1.0), (0.99, 0.01, 1.0)],
)
def test_the_gate_opens_only_for_what_is_beyond_doubt(accuracy: float, error: float, weight: float) -> None:
    found = gate([Verdict(accuracy, error, 0.7, 0.4)], 1)
    assert found.weights == pytest.approx((weight,))
    assert (found.passing, found.passed) == ((0.7,), (0.4,))


def test_without_a_verdict_the_gate_is_closed() -> None:
    assert gate(None, 2) == Opening((0.0, 0.0), (1.0, 1.0), (0.0, 0.0))


@pytest.mark.parametrize(
    ("measurements", "opened", "is_over"),
    [
        (2, [], False),
        (2, [0.0], True),
        (3, [0.2], False),
        (3, [0.0], True),
        (6, [0.0], False),
        (6, [0.0, 0.0], True),
        (6, [0.0, 0.1], False),
        (6, [0.0, 0.1, 0.0], False),
        (6, [0.0, 0.1, 0.0, 0.0], True),
    ],
)
def test_a_critic_is_given_up_when_its_gate_stays_shut_for_half_of_its_stages(
    measurements: int, opened: list[float], is_over: bool
) -> None:
    # Of two heads one is enough.
    openings = [Opening((0.0, weight), (0.5, 0.5), (0.4, 0.4)) for weight in opened]
    assert is_given_up(openings, measurements=measurements) is is_over
