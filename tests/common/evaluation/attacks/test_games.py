"""The membership game: exact at chance, fair to ties, and intervals that hold as often as they say."""

import math
from dataclasses import asdict
from itertools import combinations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import binom, norm
from sklearn.metrics import roc_auc_score

from common.evaluation.attacks.games import (
    RATES,
    STATISTICS,
    MembershipAttack,
    assess,
    most_area,
    statistics,
    strongest,
    true_positive_rates,
    unmeasured,
    widened,
)
from common.evaluation.figures import Figure, bootstrap, most_true_positives

CHANCE = {"auc": 0.5, "advantage": 0.0, "balanced_accuracy": 0.5, **RATES}


def play(
    members: np.ndarray,
    controls: np.ndarray,
    *,
    groups: dict[str, tuple[np.ndarray, np.ndarray]] | None = None,
    epsilon: float | None = 1.0,
    seed: int = 0,
) -> MembershipAttack:
    return assess(members, controls, adversary="a test", groups=groups or {}, epsilon=epsilon, delta=1e-5, seed=seed)


def shifted(mean: float, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.normal(size=size) + mean, random.normal(size=size)


def contains(figure: Figure, number: float) -> bool:
    assert figure.low is not None
    assert figure.high is not None
    return figure.low <= number <= figure.high


# --- values


@pytest.mark.parametrize(("n_members", "n_controls"), [(5000, 5000), (5001, 6000)])
def test_a_constant_score_is_exactly_chance(n_members: int, n_controls: int) -> None:
    figures = play(np.full(n_members, 7.0), np.full(n_controls, 7.0)).populations["everyone"]
    assert list(figures) == list(STATISTICS)
    for name, figure in figures.items():
        assert figure.value == pytest.approx(CHANCE[name], abs=1e-12)
        assert contains(figure, CHANCE[name])
        assert figure.chance == CHANCE[name]
        assert figure.n == n_members + n_controls


@pytest.mark.parametrize("scores", [[1, 2, 3, 4, 5, 6, 7], [1, 1, 2, 2, 2, 3, 3], [0, 0, 0, 0, 0, 0, 1]])
@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5, 0.77, 1.0])
def test_the_share_found_is_the_rate_in_the_mean_over_all_ways_to_choose_members(
    scores: list[float], rate: float
) -> None:
    pool = np.array(scores, dtype=np.float64)
    found = [
        true_positive_rates(pool[list(chosen)], np.delete(pool, chosen), np.array([rate]))[0]
        for chosen in combinations(range(len(pool)), 3)
    ]
    assert np.mean(found) == pytest.approx(rate, abs=1e-12)


def test_the_share_found_is_that_of_ranks_with_ties_broken_by_chance() -> None:
    random = np.random.default_rng(0)
    members, controls = random.integers(3, 9, 40).astype(float), random.integers(0, 8, 30).astype(float)
    broken = np.empty((4000, 40))
    for row in broken:
        tie = random.random((40, 31))  # a place among the 30 controls and itself
        equal, above = controls == members[:, None], (controls > members[:, None]).sum(axis=1)
        ahead = ((tie[:, :30] < tie[:, 30:]) & equal).sum(axis=1)
        row[:] = (above + ahead + random.random(40)) / 31 <= 0.2
    expected = broken.mean()
    # The mean of 4,000 draws of 40 guesses: a standard error of 0.001.
    assert true_positive_rates(members, controls, np.array([0.2]))[0] == pytest.approx(expected, abs=0.005)


def test_the_area_is_that_of_the_library_ties_included() -> None:
    random = np.random.default_rng(1)
    members, controls = random.poisson(3, 200).astype(float), random.poisson(2, 300).astype(float)
    expected = roc_auc_score(np.repeat([1, 0], [200, 300]), np.concatenate([members, controls]))
    assert play(members, controls).populations["everyone"]["auc"].value == pytest.approx(expected, abs=1e-12)


def test_what_keeps_the_order_changes_nothing_infinite_scores_included() -> None:
    members, controls = shifted(0.5, 600, 2)
    members[0], controls[0] = math.inf, -math.inf
    stretched = play(np.exp(members), np.exp(controls))
    assert asdict(play(members, controls)) == asdict(stretched)


def test_noise_has_no_advantage_though_its_best_threshold_seems_to() -> None:
    games = [shifted(0.0, 50, seed) for seed in range(150)]
    honest = [statistics(*game, seed=[0])["advantage"].value or 0.0 for game in games]
    best = [max(np.mean(a >= t) - np.mean(b >= t) for t in np.concatenate([a, b])) for a, b in games]
    # The standard deviation of one is below 0.1, of the mean below 0.01.
    assert abs(np.mean(honest)) < 0.03
    assert np.mean(best) > 0.1


def test_a_strong_attack_has_nearly_the_advantage_of_the_best_threshold() -> None:
    figures = play(*shifted(2.0, 2000, 3)).populations["everyone"]
    best = 2 * norm.cdf(1.0) - 1
    assert figures["advantage"].value == pytest.approx(best, abs=0.05)
    assert figures["balanced_accuracy"].value == pytest.approx((1 + best) / 2, abs=0.025)


def test_members_who_are_all_above_all_controls_leave_room_for_those_not_seen() -> None:
    figures = play(np.arange(100, 150.0), np.arange(50.0)).populations["everyone"]
    assert figures["auc"].value == figures["auc"].high == figures["tpr_at_10"].value == figures["tpr_at_10"].high == 1
    assert figures["advantage"].value == pytest.approx(1.0, abs=0.05)  # the lowest of one half misses some of the other
    assert figures["auc"].low == pytest.approx(0.025 ** (1 / 50))  # each of 50 pairs might have gone the other way
    for name in ("advantage", "balanced_accuracy", "tpr_at_10"):
        assert 0.45 < (figures[name].low or 0) < 0.97


def test_the_curve_rises_from_few_false_positives_to_all() -> None:
    roc = play(*shifted(1.0, 500, 4)).roc
    assert roc["false_positive_rate"][0] == pytest.approx(1e-4)
    assert roc["false_positive_rate"][-1] == roc["true_positive_rate"][-1] == 1.0
    assert len(roc["true_positive_rate"]) == len(roc["false_positive_rate"]) == 61
    assert (np.diff(roc["true_positive_rate"]) >= 0).all()


# --- intervals


@pytest.mark.statistical
@pytest.mark.parametrize("size", [60, 700])
def test_intervals_contain_chance_as_often_as_they_say(size: int) -> None:
    games = 100
    wrong = dict.fromkeys(STATISTICS, 0)
    for seed in range(games):
        for name, figure in statistics(*shifted(0.0, size, seed), seed=[seed]).items():
            wrong[name] += figure.value is not None and not contains(figure, CHANCE[name])
    # An interval that held with just 95 % would fail this with a chance of 0.1 %; the seeds are fixed.
    assert max(wrong.values()) <= binom.ppf(0.999, games, 0.05)


@pytest.mark.statistical
def test_the_most_that_privacy_allows_is_seldom_taken_for_more() -> None:
    # Randomised response at epsilon 1, whose curve is the ceiling itself up to its corner.
    epsilon, games, size, likelier = 1.0, 100, 700, math.e / (1 + math.e)
    wrong = dict.fromkeys(STATISTICS, 0)
    for seed in range(games):
        random = np.random.default_rng([5, seed])
        scores = [(random.random(size) < share) + random.random(size) for share in (likelier, 1 - likelier)]
        for name, figure in play(*scores, epsilon=epsilon).populations["everyone"].items():
            if figure.low is not None and figure.ceiling is not None:
                wrong[name] += figure.low > figure.ceiling
    assert max(wrong.values()) <= binom.ppf(0.999, games, 0.025)


@pytest.mark.statistical
def test_intervals_of_strong_attacks_hold_and_are_short() -> None:
    games, size, wrong = 60, 1000, dict.fromkeys(RATES, 0)
    for seed in range(games):
        figures = statistics(*shifted(3.0, size, seed), seed=[seed])
        for name, rate in RATES.items():
            figure = figures[name]
            if figure.low is not None and figure.high is not None:
                wrong[name] += not contains(figure, norm.sf(norm.isf(rate) - 3.0))
                assert figure.high - figure.low < {"tpr_at_10": 0.12, "tpr_at_1": 0.5}[name]
    assert max(wrong.values()) <= binom.ppf(0.999, games, 0.05)


@pytest.mark.parametrize("mean", [0.0, 0.8])
def test_the_interval_of_the_area_is_that_of_drawing_units_again(mean: float) -> None:
    members, controls = shifted(mean, 300, 6)
    figure = statistics(members, controls, seed=[0])["auc"]
    scores = np.concatenate([members, controls])
    above = (scores[:300, None] > scores[None, 300:]).astype(float)

    def area(units: np.ndarray) -> float:
        often = np.bincount(units, minlength=600)
        return float(often[:300] @ above @ often[300:] / (often[:300].sum() * often[300:].sum()))

    drawn = bootstrap(area, 600, seed=0)
    assert figure.value == pytest.approx(drawn.value)
    assert figure.low == pytest.approx(drawn.low, abs=0.01)
    assert figure.high == pytest.approx(drawn.high, abs=0.01)


def test_more_units_make_shorter_intervals() -> None:
    few, many = (statistics(*shifted(0.5, size, 7), seed=[0]) for size in (600, 6000))
    for name in ("auc", "advantage", "balanced_accuracy", "tpr_at_10", "tpr_at_1"):
        lengths = [(one[name].high or 0) - (one[name].low or 0) for one in (few, many)]
        assert lengths[1] < 0.6 * lengths[0]


# --- what cannot be said


def test_a_rate_that_few_controls_reach_is_not_resolvable() -> None:
    figures = play(*shifted(0.0, 400, 8)).populations["everyone"]
    assert figures["tpr_at_10"].value is not None
    for name in ("tpr_at_1", "tpr_at_0_1"):
        assert figures[name].value is None
        assert figures[name].reason == "not resolvable with 400 controls"
        assert figures[name].chance == RATES[name]
    assert play(*shifted(0.0, 500, 8)).populations["everyone"]["tpr_at_1"].value is not None


@pytest.mark.parametrize(("members", "controls"), [(19, 100), (100, 19), (0, 0)])
def test_few_units_have_no_figure_but_a_reason(members: int, controls: int) -> None:
    attack = play(np.zeros(members), np.zeros(controls))
    for figure in attack.populations["everyone"].values():
        assert figure.value is figure.low is None
        assert figure.reason == f"{members} members and {controls} controls: too few, 20 of each are needed"


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="numbers"):
        play(np.array([1.0, math.nan]), np.zeros(2))


def test_a_group_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="tall"):
        play(np.zeros(3), np.zeros(2), groups={"tall": (np.ones(2, dtype=bool), np.ones(2, dtype=bool))})


# --- ceilings and groups


def test_ceilings_are_those_of_the_claim_and_none_where_nothing_is_claimed() -> None:
    game = shifted(0.0, 5000, 9)
    figures = play(*game, epsilon=1.0).populations["everyone"]
    expected = {"auc": 0.7311, "advantage": 0.4621, "balanced_accuracy": 0.7311}
    expected |= {"tpr_at_10": 0.2718, "tpr_at_1": 0.0272, "tpr_at_0_1": 0.00273}
    for name, ceiling in expected.items():
        assert figures[name].ceiling == pytest.approx(ceiling, rel=3e-3)
    assert all(figure.ceiling is None for figure in play(*game, epsilon=None).populations["everyone"].values())


@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 0.0), (1.0, 0.0), (0.5, 0.1), (3.0, 1e-3), (900.0, 0.0)])
def test_the_largest_area_is_that_under_the_largest_rates(epsilon: float, delta: float) -> None:
    def height(rate: float) -> float:
        return most_true_positives(rate, epsilon=epsilon, delta=delta)

    corner = (1 - delta) / (1 + math.exp(min(epsilon, 700.0)))
    expected, _ = quad(height, 0, 1, points=[corner, 1 - delta])
    assert most_area(epsilon=epsilon, delta=delta) == pytest.approx(expected, abs=1e-6)


def test_a_group_has_a_game_of_its_own() -> None:
    members, controls = shifted(0.0, 600, 10)
    weak = np.arange(600) < 100
    members[weak] += 10.0
    controls[weak] -= 3.0
    populations = play(members, controls, groups={"victims": (weak, weak)}).populations
    alone = play(members[weak], controls[weak]).populations["everyone"]
    assert {name for name in STATISTICS if populations["victims"][name] == alone[name]} >= {"auc", *RATES}
    assert populations["victims"]["auc"].value == 1.0
    assert populations["victims"]["auc"].n == 200
    assert (populations["everyone"]["auc"].value or 1) < 0.7


def test_the_same_seed_gives_the_same_and_the_global_state_is_left_alone() -> None:
    game = shifted(0.3, 300, 11)
    np.random.seed(1)  # noqa: NPY002 (what is watched)
    before = np.random.get_state()[1].tolist()  # type: ignore[index, union-attr] # noqa: NPY002
    assert play(*game, seed=4) == play(*game, seed=4)
    assert play(*game, seed=4) != play(*game, seed=5)
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index, union-attr] # noqa: NPY002


# --- the strongest of many


def test_the_strongest_is_the_one_with_the_highest_figure() -> None:
    attacks = {f"by {mean}": play(*shifted(mean, 500, 12)) for mean in (0.0, 1.0, 0.5)}
    assert strongest(attacks)[0] == strongest(attacks, statistic="auc")[0] == "by 1.0"


@pytest.mark.parametrize("mean", [0.0, 0.5, 2.5])
@pytest.mark.parametrize("statistic", ["auc", "advantage", "tpr_at_10", "tpr_at_1"])
def test_its_interval_is_about_that_of_a_higher_confidence(mean: float, statistic: str) -> None:
    game, tried = shifted(mean, 2000, 13), 7
    plain = statistics(*game, seed=[0])[statistic]
    exact = statistics(*game, seed=[0], confidence=1 - 0.05 / tried)[statistic]
    figure = widened(plain, statistic, tried=tried)
    assert (figure.value, figure.n) == (plain.value, plain.n)
    assert figure.low is not None and figure.high is not None  # noqa: PT018 (both or neither)
    length = (exact.high or 0) - (exact.low or 0)
    assert -0.2 * length < figure.low - (exact.low or 0) < 0.06 * length
    assert -0.06 * length < figure.high - (exact.high or 0) < 0.2 * length
    assert figure.low < (plain.low or 0)
    assert figure.high > (plain.high or 0)


def test_the_strongest_is_widened_for_all_that_were_tried() -> None:
    attacks = {f"attack {seed}": play(*shifted(0.5, 500, seed)) for seed in range(5)}
    name, figure = strongest(attacks, statistic="advantage")
    plain = attacks[name].populations["everyone"]["advantage"]
    assert figure == widened(plain, "advantage", tried=5)
    assert figure.ceiling == plain.ceiling is not None


def test_one_attack_is_not_widened() -> None:
    attack = play(*shifted(0.5, 500, 14))
    figure, plain = strongest({"only": attack})[1], attack.populations["everyone"]["tpr_at_10"]
    assert (figure.low, figure.high) == (pytest.approx(plain.low), pytest.approx(plain.high))


def test_attacks_without_a_figure_are_passed_over() -> None:
    missing = unmeasured("a test", ["everyone", "victims"], "there was nothing")
    assert set(missing.populations) == {"everyone", "victims"}
    assert set(missing.populations["victims"]) == set(STATISTICS)
    assert strongest({"a": missing, "b": play(*shifted(-3.0, 100, 15))})[0] == "b"
    name, figure = strongest({"a": missing, "b": missing})
    assert (name, figure.value, figure.reason) == ("a", None, "there was nothing")
    with pytest.raises(ValueError, match="at least one"):
        strongest({})
