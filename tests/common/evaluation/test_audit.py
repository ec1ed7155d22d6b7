"""Lower bounds on epsilon: how often they are wrong, what they find, and what they could have found."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.sparse import lil_matrix
from scipy.stats import beta, binom, norm

from common.evaluation.audit import (
    Evidence,
    beyond_gaussian,
    canary_scores,
    distinguishing,
    one_run,
    plain_tail,
)
from common.privacy.budget import delta_of, epsilon_of, mu_of

DELTA = 1e-5
MU = mu_of(epsilon=1, delta=DELTA)


def releases(mu: float, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of Gaussian releases with and without a unit that moves them by mu standard deviations."""
    random = np.random.default_rng(seed)
    return random.normal(size=size) + mu, random.normal(size=size)


def run(mu: float, canaries: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and coins of orthogonal canaries, each of which moves a Gaussian release by mu standard deviations."""
    random = np.random.default_rng(seed)
    included = random.integers(2, size=canaries) == 1
    return random.normal(size=canaries) + mu * included, included


# --- one unit, many releases


@pytest.mark.parametrize("mu", [0.1, MU, 1.5])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_a_true_claim_is_contradicted_as_rarely_as_stated(mu: float, confidence: float) -> None:
    audits, claimed = 400, epsilon_of(mu=mu, delta=DELTA)
    found = [distinguishing(*releases(mu, 150, seed), delta=DELTA, confidence=confidence) for seed in range(audits)]
    wrong = sum(one.epsilon_lower > claimed for one in found)
    # Fixed seeds; a bound that held with just the stated confidence would pass this with a chance of 99.9 %.
    assert wrong <= binom.ppf(0.999, audits, 1 - confidence)
    assert sum(one.epsilon_lower_plain > claimed for one in found) <= wrong
    assert all(one.confidence == confidence for one in found)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_bound_is_not_much_more_cautious_than_stated(confidence: float) -> None:
    claimed = epsilon_of(mu=1.5, delta=DELTA)
    found = [distinguishing(*releases(1.5, 1000, seed), delta=DELTA, confidence=confidence) for seed in range(300)]
    wrong = np.mean([one.epsilon_lower > claimed for one in found])
    assert wrong > (1 - confidence) / 4
    assert np.median([one.epsilon_lower for one in found]) > 0.85 * claimed


def test_scores_that_are_not_gaussian_make_no_more_false_alarms() -> None:
    # Whatever a score does to a release is post-processing: heavy tails, ties, a score that ignores half of it.
    claimed, wrong = epsilon_of(mu=MU, delta=DELTA), [0, 0, 0]
    for seed in range(400):
        present, absent = releases(MU, 150, seed)
        for number, score in enumerate((np.sinh, np.round, np.abs)):
            wrong[number] += distinguishing(score(3 * present), score(3 * absent), delta=DELTA).epsilon_lower > claimed
    assert max(wrong) <= binom.ppf(0.999, 400, 0.05)


@pytest.mark.parametrize(("cut", "least"), [(0.5, 0.9), (0.1, 1.0)])
def test_noise_that_is_cut_is_found(cut: float, least: float) -> None:
    # 1,000 releases a side, at the confidence that each of seven audits has.
    confidence = 1 - 0.05 / 7
    lower = [
        distinguishing(*releases(MU / cut, 1000, seed), delta=DELTA, confidence=confidence).epsilon_lower
        for seed in range(100)
    ]
    assert np.mean(np.array(lower) > 1.0) >= least


def test_noise_that_never_changes_is_found_wherever_it_lies() -> None:
    for shift in (-5.0, 0.0, 0.3, 7.0):
        found = distinguishing(np.full(100, shift + 0.01), np.full(100, shift), delta=DELTA)
        assert found.epsilon_lower == found.epsilon_detectable > 10


def test_scores_that_tell_nothing_give_zero() -> None:
    same = np.zeros(500)
    assert distinguishing(same, same, delta=DELTA).epsilon_lower == 0
    present, absent = releases(2.0, 500, 0)
    turned = distinguishing(absent, present, delta=DELTA)
    assert (turned.epsilon_lower, turned.epsilon_lower_plain) == (0, 0)


@pytest.mark.parametrize("size", [2, 10, 100, 1001])
@pytest.mark.parametrize("confidence", [0.8, 0.99])
def test_an_attacker_who_never_errs_gets_what_is_detectable(size: int, confidence: float) -> None:
    found = distinguishing(np.ones(size), np.zeros(size), delta=DELTA, confidence=confidence)
    trials = 2 * (size - math.ceil(size / 10))
    accuracy = beta.ppf(1 - confidence, trials, 1)
    assert found.trials == trials
    assert found.epsilon_lower == found.epsilon_detectable
    expected = epsilon_of(mu=max(0.0, 2 * norm.ppf(accuracy)), delta=DELTA)
    assert found.epsilon_detectable == pytest.approx(expected, rel=1e-6)
    plain = max(0.0, math.log((accuracy - DELTA) / (1 - accuracy)))
    assert found.epsilon_lower_plain == pytest.approx(plain, rel=1e-6)


def test_the_scores_that_place_the_threshold_are_not_counted() -> None:
    first_right = np.repeat([1.0, -1.0], [10, 90])
    assert distinguishing(first_right, -first_right, delta=DELTA).epsilon_lower == 0
    found = distinguishing(-first_right, first_right, delta=DELTA)
    assert found.epsilon_lower == found.epsilon_detectable > 0


def test_a_single_guess_more_is_worth_something() -> None:
    present, absent = np.repeat([1.0, -1.0], [80, 20]), np.repeat([-1.0, 1.0], [80, 20])
    lower = [distinguishing(present, absent, delta=DELTA).epsilon_lower]
    for wrong in (present, absent):
        wrong[99] *= -1
        lower.append(distinguishing(present, absent, delta=DELTA).epsilon_lower)
    assert 0 < lower[0] < lower[1] < lower[2]


# --- many canaries, one run


@pytest.mark.parametrize("mu", [MU, 2.0])
def test_a_true_claim_is_rarely_contradicted_in_one_run(mu: float) -> None:
    audits, claimed = 500, epsilon_of(mu=mu, delta=DELTA)
    found = [one_run(*run(mu, 60, seed), delta=DELTA) for seed in range(audits)]
    assert sum(one.epsilon_lower > claimed for one in found) <= binom.ppf(0.999, audits, 0.05)
    assert sum(one.epsilon_lower_plain > claimed for one in found) <= binom.ppf(0.999, audits, 0.05)


def test_a_mechanism_that_fails_for_all_together_is_within_its_delta() -> None:
    # With chance 0.1 it tells everything, else nothing: (0, 0.1)-DP. Trials of their own would make 10 % false alarms.
    found = []
    for seed in range(200):
        random = np.random.default_rng(seed)
        included = random.integers(2, size=90) == 1
        scores = included + 0.0 if random.random() < 0.1 else random.random(90)
        found.append(one_run(scores, included, delta=0.1).epsilon_lower_plain > 0)
    assert sum(found) <= binom.ppf(0.999, 200, 0.05)


def test_noise_cut_to_a_tenth_is_found_in_one_run() -> None:
    for seed in range(20):
        found = one_run(*run(10 * MU, 500, seed), delta=DELTA, confidence=1 - 0.05 / 7)
        assert min(found.epsilon_lower, found.epsilon_lower_plain) > 1


def test_a_run_that_tells_everything_gets_what_is_detectable_and_more_canaries_more() -> None:
    lower = []
    for canaries in (30, 300, 3000):
        included = run(0.0, canaries, 0)[1]
        found = one_run(included + 0.0, included, delta=DELTA)
        assert found.epsilon_lower == found.epsilon_detectable
        assert found.trials == 2 * (canaries // 6)
        lower.append(found.epsilon_lower)
    assert 0 < lower[0] < lower[1] < lower[2]


def test_what_is_detectable_does_not_depend_on_what_was_found() -> None:
    scores, included = run(1.0, 90, 0)
    found, exact = one_run(scores, included, delta=DELTA), one_run(included + 0.0, included, delta=DELTA)
    assert found.epsilon_lower < found.epsilon_detectable == exact.epsilon_lower
    scores = releases(1.0, 90, 0)[0]
    many = distinguishing(scores, -scores, delta=DELTA)
    assert many.epsilon_lower < many.epsilon_detectable


def test_the_highest_scores_are_guessed_in_and_the_lowest_out() -> None:
    included = np.repeat([True, False], 50)
    assert one_run(np.arange(100.0), included, delta=DELTA).epsilon_lower == 0
    assert one_run(-np.arange(100.0), included, delta=DELTA).epsilon_lower > 0
    # What lies in the middle is not guessed at.
    swapped = included.copy()
    swapped[[40, 60]] = swapped[[60, 40]]
    assert one_run(-np.arange(100.0), swapped, delta=DELTA) == one_run(-np.arange(100.0), included, delta=DELTA)


def test_canaries_that_overlap_are_told_apart() -> None:
    # Columns of ones and zeros, so that every canary adds to what most others add to; hardly any noise.
    random = np.random.default_rng(0)
    adds = 1000.0 * random.integers(2, size=(30, 40))
    included = random.integers(2, size=30) == 1
    scores = canary_scores(adds @ adds.T, adds @ (adds.T @ included))
    assert scores == pytest.approx(included - 0.5, abs=1e-3)
    # Much noise: the ratio of likelihoods, canary by canary.
    faint = 1e-6 * random.normal(size=(30, 40))
    release = random.normal(size=40)
    assert canary_scores(faint @ faint.T, faint @ release) == pytest.approx(faint @ release / 4, rel=1e-4)


def most_right(canaries: int, side: int, right: int, curve: list[tuple[float, float]]) -> float:
    """The largest chance of `right` or more right guesses of any mechanism within (epsilon, delta) pairs: exact.

    A linear program: the chance of each set of guesses (`side` in, as many out) given the coins; its constraints are
    the definition of privacy for each pair of neighbouring coins.
    """
    guesses = [one for one in itertools.product((-1, 0, 1), repeat=canaries) if one.count(1) == side == one.count(-1)]
    coins = list(itertools.product((-1, 1), repeat=canaries))
    pairs = [(b, (*b[:j], -b[j], *b[j + 1 :])) for b in coins for j in range(canaries)]
    place = {key: at for at, key in enumerate(itertools.product(coins, guesses))}
    size, blocks = len(place), len(pairs) * len(curve)
    gain = np.zeros(size + blocks * len(guesses))
    for (b, guess), at in place.items():
        gain[at] = -float(sum(one == coin for one, coin in zip(guess, b, strict=True)) >= right) / len(coins)
    limits, most = lil_matrix((blocks * (len(guesses) + 1), len(gain))), np.zeros(blocks * (len(guesses) + 1))
    row, slack = 0, size
    for (b, neighbour), (epsilon, delta) in itertools.product(pairs, curve):
        for guess in guesses:
            limits[row, place[b, guess]], limits[row, place[neighbour, guess]] = 1, -math.exp(epsilon)
            limits[row, slack] = -1
            row, slack = row + 1, slack + 1
        limits[row, slack - len(guesses) : slack] = 1
        most[row] = delta
        row += 1
    whole = lil_matrix((len(coins), len(gain)))
    for at in range(size):
        whole[at // len(guesses), at] = 1
    solved = linprog(gain, A_ub=limits.tocsr(), b_ub=most, A_eq=whole.tocsr(), b_eq=np.ones(len(coins)))
    assert solved.status == 0
    return -float(solved.fun)


def gaussian_curve(mu: float) -> list[tuple[float, float]]:
    """(epsilon, delta) of mu-GDP at some points: mechanisms within them are a little more than the mu-GDP ones."""
    return [(epsilon * mu, delta_of(mu, epsilon * mu)) for epsilon in (0.0, 0.3, 0.6, 1.0, 1.5, 2.0, 2.5)]


@pytest.mark.parametrize(("canaries", "side"), [(2, 1), (3, 1), (4, 2)])
@pytest.mark.parametrize("mu", [0.3, 1.0])
def test_no_mechanism_passes_the_gaussian_bound(canaries: int, side: int, mu: float) -> None:
    for right in range(2 * side + 1):
        attained = most_right(canaries, side, right, gaussian_curve(mu)) if right else 1.0
        assert not beyond_gaussian(mu, canaries, 2 * side, right, chance=0.995 * attained)
    # All guesses right: the bound is not far above what some mechanism has.
    assert beyond_gaussian(mu, canaries, 2 * side, 2 * side, chance=min(1.0, 1.4 * attained))


@pytest.mark.parametrize(("canaries", "side"), [(2, 1), (3, 1), (4, 1), (4, 2)])
@pytest.mark.parametrize(("epsilon", "delta"), [(0.5, 1e-9), (1.0, 0.01), (1.0, 0.1), (0.1, 0.05)])
def test_no_mechanism_passes_the_plain_bound(canaries: int, side: int, epsilon: float, delta: float) -> None:
    for right in range(1, 2 * side + 1):
        attained = most_right(canaries, side, right, [(epsilon, delta)])
        assert plain_tail(epsilon, delta, canaries, 2 * side, right) >= attained - 1e-9


def test_without_delta_the_plain_bound_is_a_binomial_tail() -> None:
    accuracy = math.e / (1 + math.e)
    for right in range(9):
        expected = sum(math.comb(8, k) * accuracy**k * (1 - accuracy) ** (8 - k) for k in range(right, 9))
        assert plain_tail(1.0, 1e-300, 100, 8, right) == pytest.approx(expected, rel=1e-12)


def test_delta_adds_the_chance_that_a_guess_still_decides() -> None:
    accuracy, guesses = 1 / (1 + math.exp(-0.7)), 12
    decisive = [max(math.comb(k, c) * accuracy**c * (1 - accuracy) ** (k - c) for c in range(k + 1)) for k in range(12)]
    added = plain_tail(0.7, 1e-3, 50, guesses, 9) - plain_tail(0.7, 1e-300, 50, guesses, 9)
    assert added == pytest.approx(50 * 1e-3 * (1 - accuracy) * sum(decisive) / guesses, rel=1e-9)


@pytest.mark.parametrize("mu", [0.0, 0.2, 1.0, 3.0])
def test_one_canary_that_is_guessed_at_is_one_release_that_is_told_from_another(mu: float) -> None:
    most = float(norm.cdf(mu / 2))
    assert not beyond_gaussian(mu, 1, 1, 1, chance=most - 1e-6)
    assert beyond_gaussian(mu, 1, 1, 1, chance=most + 1e-6)


@given(
    mu=st.floats(0, 5), canaries=st.integers(2, 60), data=st.data(), chance=st.floats(1e-4, 0.25), more=st.floats(0, 1)
)
def test_a_larger_mu_allows_more(mu: float, canaries: int, data: st.DataObject, chance: float, more: float) -> None:
    guesses = data.draw(st.integers(1, canaries))
    right = data.draw(st.integers(0, guesses))
    if beyond_gaussian(mu + more, canaries, guesses, right, chance=chance):
        assert beyond_gaussian(mu, canaries, guesses, right, chance=chance)
        assert beyond_gaussian(mu, canaries, guesses, guesses, chance=chance)


# --- misuse


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_a_delta_that_is_none_is_refused(delta: float) -> None:
    for play in (lambda: distinguishing(*releases(1, 9, 0), delta=delta), lambda: one_run(*run(1, 9, 0), delta=delta)):
        with pytest.raises(ValueError, match="delta"):
            play()


@pytest.mark.parametrize("confidence", [0.0, 0.75, 1.0, math.nan])
def test_a_confidence_out_of_range_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        distinguishing(*releases(1, 9, 0), delta=DELTA, confidence=confidence)
    with pytest.raises(ValueError, match="confidence"):
        one_run(*run(1, 9, 0), delta=DELTA, confidence=confidence)


@pytest.mark.parametrize(
    ("present", "absent"),
    [
        (np.zeros(5), np.zeros(4)),
        (np.zeros(1), np.zeros(1)),
        (np.zeros((2, 2)), np.zeros((2, 2))),
        (np.array([0.0, math.nan]), np.zeros(2)),
        (np.zeros(2), np.array([0.0, math.inf])),
    ],
)
def test_scores_that_do_not_pair_are_refused(present: np.ndarray, absent: np.ndarray) -> None:
    with pytest.raises(ValueError, match="scores"):
        distinguishing(present, absent, delta=DELTA)


@pytest.mark.parametrize(
    ("scores", "included"),
    [
        (np.zeros(5), np.zeros(4, dtype=bool)),
        (np.zeros(1), np.zeros(1, dtype=bool)),
        (np.zeros((2, 2)), np.zeros((2, 2), dtype=bool)),
        (np.zeros(2), np.zeros(2, dtype=np.int64)),
        (np.array([0.0, math.nan]), np.zeros(2, dtype=bool)),
    ],
)
def test_canaries_without_a_score_or_a_coin_are_refused(scores: np.ndarray, included: np.ndarray) -> None:
    with pytest.raises(ValueError, match="scores"):
        one_run(scores, included, delta=DELTA)


def test_evidence_says_what_it_rests_on() -> None:
    found = one_run(*run(1.0, 60, 0), delta=DELTA, confidence=0.9)
    assert found == Evidence(found.epsilon_lower, found.epsilon_lower_plain, found.epsilon_detectable, 20, 0.9)
