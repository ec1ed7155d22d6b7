"""Rounded Gaussian noise: its distribution, its exactness, and that no two messages share it.

The statistical tests draw from a fixed `SeededNoise`, so that they pass or fail the same way each time. Beside each
stands the chance that it fails for another seed though the sampler is right.
"""

import math
import multiprocessing
import warnings
from collections.abc import Sequence
from fractions import Fraction
from multiprocessing.connection import Connection

import mpmath
import numpy as np
import pytest
from scipy import stats

from common.privacy import noise
from common.privacy.events import GaussianEvent
from common.privacy.noise import MAXIMUM_STDDEV, GaussianNoise, SeededNoise

DRAWS = 10**6
WORDS = 10
SEED = b"a fixed seed for the gate"


def draw(stddev: float, *, context: str = "run/one_way", size: int = DRAWS) -> np.ndarray:
    return SeededNoise(SEED).draw(size, noise_stddev=stddev, context=context)


def cell_chances(cells: np.ndarray, stddev: float) -> np.ndarray:
    """Chance of each whole number: a Gaussian's mass within a half of it, from the upper tail: nothing cancels."""
    nearest = np.abs(cells)
    return stats.norm.sf((nearest - 0.5) / stddev) - stats.norm.sf((nearest + 0.5) / stddev)


@pytest.mark.parametrize("stddev", [1.0, 5.0])
def test_an_event_says_the_variance_of_its_noise_and_of_its_rounding_in_units(stddev: float) -> None:
    event = GaussianEvent(
        account="train", squared_sensitivity=12, noise_stddev=stddev, cells=1, scale=2, noise="test-seed"
    )
    assert (draw(stddev) / event.scale).var() == pytest.approx(event.variance, rel=0.01)


@pytest.mark.statistical
@pytest.mark.parametrize("stddev", [0.3, 1.0, 5.0, 40.0])
def test_every_cell_has_the_mass_of_a_rounded_gaussian(stddev: float) -> None:
    # False alarm: 1e-6 each.
    draws = draw(stddev)
    reach = int(3.7 * stddev - 0.5)  # 100 draws or more are expected on either side
    cells = np.arange(-reach, reach + 1)
    observed = np.array([np.count_nonzero(draws == cell) for cell in cells])
    chances = cell_chances(cells, stddev)
    tail = stats.norm.sf((reach + 0.5) / stddev)
    observed = np.r_[np.count_nonzero(draws < -reach), observed, np.count_nonzero(draws > reach)]
    chances = np.r_[tail, chances, tail]
    assert chances.sum() == pytest.approx(1.0)
    assert stats.chisquare(observed, chances * DRAWS).pvalue > 1e-6


@pytest.mark.statistical
@pytest.mark.parametrize("stddev", [5.0, 1000.0])
def test_the_distribution_function_is_that_of_a_gaussian_up_to_five_deviations(stddev: float) -> None:
    draws = np.sort(draw(stddev))
    # Kolmogorov-Smirnov at the edges of the cells, where rounding changes nothing.
    # False alarm: 2 exp(-2 * 2.7^2) < 1e-6.
    edges = np.unique(draws) + 0.5
    below = np.searchsorted(draws, edges) / DRAWS
    assert np.abs(below - stats.norm.cdf(edges / stddev)).max() * math.sqrt(DRAWS) < 2.7
    # Counts beyond 3, 4 and 5 standard deviations on each side. False alarm: 1e-6 each.
    for deviations in (3, 4, 5):
        edge = math.floor(deviations * stddev) + 0.5
        for beyond in (np.count_nonzero(draws > edge), np.count_nonzero(draws < -edge)):
            assert stats.binomtest(int(beyond), DRAWS, stats.norm.sf(edge / stddev)).pvalue > 1e-6


@pytest.mark.statistical
@pytest.mark.parametrize("stddev", [0.8, 5.0, 40.0, 1e6])
def test_mean_and_variance_are_those_of_a_rounded_gaussian(stddev: float) -> None:
    draws = draw(stddev).astype(np.float64)
    # Rounding adds 1/12. The relative standard error of the variance is 0.14 %: false alarm 4e-4.
    assert draws.var() == pytest.approx(stddev**2 + 1 / 12, rel=0.005)
    # Five standard errors: false alarm 6e-7.
    assert abs(draws.mean()) < 5 * math.sqrt((stddev**2 + 1 / 12) / DRAWS)


@pytest.mark.statistical
def test_neither_cells_nor_messages_are_correlated() -> None:
    # Five standard errors each: false alarm 6e-7 each.
    first, second = draw(50.0, context="run/one_way"), draw(50.0, context="run/pairs")
    for left, right in ((first, second), (first[:-1], first[1:]), (first[:-2], first[2:]), (first[1:], second[:-1])):
        assert abs(np.corrcoef(left, right)[0, 1]) < 5 / math.sqrt(DRAWS)
        # Box and Muller could leak through the radius where the signs are independent.
        assert abs(np.corrcoef(np.abs(left), np.abs(right))[0, 1]) < 5 / math.sqrt(DRAWS)


@pytest.mark.parametrize(
    "stddev", [0.0, -1.0, math.nan, math.inf, -math.inf, 2 * MAXIMUM_STDDEV, 1e17, 1e20, 1e300, np.float64("nan")]
)
@pytest.mark.parametrize("source", [GaussianNoise(), SeededNoise(SEED)])
def test_noise_that_cannot_be_drawn_exactly_is_refused(source: noise.NoiseSource, stddev: float) -> None:
    # Beyond the maximum a float64 skips integers, and beyond 2^63 every draw is the same: a sum would be in the open.
    with pytest.raises(ValueError, match="noise_stddev"):
        source.draw(3, noise_stddev=stddev, context="run/one_way")


def test_the_widest_noise_still_reaches_every_integer() -> None:
    draws = draw(MAXIMUM_STDDEV, size=4000)
    assert draws.dtype == np.int64
    assert len(np.unique(draws)) == 4000
    # The farthest draw that 320 bits can give is still exact in float64.
    assert MAXIMUM_STDDEV * math.sqrt(2 * 321 * math.log(2)) < 2**53
    # 4000 low bits, ten standard errors: false alarm 1e-23.
    for bit in range(4):
        assert abs(np.mean((draws >> bit) & 1) - 0.5) < 10 / (2 * math.sqrt(4000))


def test_no_draws_are_an_empty_vector() -> None:
    assert draw(5.0, size=0).shape == (0,)


def test_two_messages_never_get_the_same_noise() -> None:
    sources = [GaussianNoise(), GaussianNoise()]
    draws = [source.draw(64, noise_stddev=100.0, context="run/one_way") for source in sources for _ in range(4)]
    # Two equal vectors by chance: below (1 / 354)^64.
    assert len({one.tobytes() for one in draws}) == len(draws)


def test_real_noise_takes_a_fresh_key_from_the_operating_system_for_each_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def token_bytes(size: int) -> bytes:
        asked.append(size)
        return bytes([len(asked)]) * size

    monkeypatch.setattr(noise.secrets, "token_bytes", token_bytes)
    source = GaussianNoise()
    first, second = (source.draw(8, noise_stddev=100.0, context="run/one_way") for _ in range(2))
    assert asked == [32, 32]
    assert first.tolist() != second.tolist()


def test_a_source_says_whether_its_noise_counts() -> None:
    assert GaussianNoise().kind == "csprng"
    assert SeededNoise(SEED).kind == "test-seed"


def test_seeded_noise_repeats_itself_for_a_context_and_differs_between_contexts_and_seeds() -> None:
    first = draw(20.0, size=100)
    assert first.tolist() == draw(20.0, size=100).tolist()
    assert first.tolist() != draw(20.0, size=100, context="run/pairs").tolist()
    other = SeededNoise(b"another seed").draw(100, noise_stddev=20.0, context="run/one_way")
    assert first.tolist() != other.tolist()


# --- which units take part

UNITS = 200
MESSAGES = 5000


def samples(rate: float, *, units: int = UNITS, messages: int = MESSAGES) -> np.ndarray:
    """Who takes part in each message, (messages, units) bool."""
    source = SeededNoise(SEED)
    return np.stack([source.sample(units, rate=rate, context=f"run/critic-{number}") for number in range(messages)])


@pytest.mark.statistical
@pytest.mark.parametrize("rate", [0.01, 0.3, 0.5, 0.97])
def test_each_unit_takes_part_at_the_rate_and_the_size_of_a_sample_is_binomial(rate: float) -> None:
    taken = samples(rate)
    assert taken.dtype == np.bool_
    # Of each unit over the messages. False alarm: 2e-7 together.
    chances = [stats.binomtest(int(one), MESSAGES, rate).pvalue for one in taken.sum(axis=0)]
    assert min(chances) > 1e-9
    # Samples of a fixed size would have no variance. False alarm: 1e-6; of the variance, five standard errors.
    sizes = taken.sum(axis=1)
    kurtosis = (1 - 6 * rate * (1 - rate)) / (UNITS * rate * (1 - rate))
    error = math.sqrt((2 + kurtosis) / MESSAGES)
    assert sizes.var() == pytest.approx(UNITS * rate * (1 - rate), rel=5 * error)
    assert stats.binomtest(int(sizes.sum()), UNITS * MESSAGES, rate).pvalue > 1e-6


@pytest.mark.statistical
def test_neither_units_nor_messages_look_at_each_other_when_they_take_part() -> None:
    taken = samples(0.3).astype(np.float64)
    between_units = np.corrcoef(taken.T)[np.triu_indices(UNITS, 1)]
    # 19,900 pairs, 7 standard errors: false alarm 5e-8. Samples of a fixed size correlate by -1 / 199 in the mean,
    # which is 70 standard errors of it.
    assert np.abs(between_units).max() < 7 / math.sqrt(MESSAGES)
    assert abs(between_units.mean()) < 5 / math.sqrt(MESSAGES * len(between_units))
    # Message to message, five standard errors: false alarm 6e-7.
    follow = np.corrcoef(taken[:-1].ravel(), taken[1:].ravel())[0, 1]
    assert abs(follow) < 5 / math.sqrt((MESSAGES - 1) * UNITS)


@pytest.mark.parametrize("rate", [2.0**-64, 1e-6, 0.1, 0.5, 1 - 2.0**-53])
def test_a_unit_takes_part_at_its_rate_to_the_last_bit_and_never_above(
    rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of the 2^64 words, just those below rate * 2^64, an integer or rounded down.
    least = int(Fraction(rate) * 2**64)
    words = np.array([0, least - 1, least, LAST], dtype=np.uint64)
    monkeypatch.setattr(noise, "_keystream", lambda size, key: words[:size])
    assert noise._poisson_sample(4, rate=rate, key=b"").tolist() == [True, True, False, False]
    assert 0 <= Fraction(rate) - Fraction(least, 2**64) < Fraction(1, 2**64)


@pytest.mark.parametrize("source", [GaussianNoise(), SeededNoise(SEED)])
def test_at_rate_1_everybody_takes_part_and_of_nobody_nobody(source: noise.NoiseSource) -> None:
    assert source.sample(1000, rate=1.0, context="run/critic").all()
    assert source.sample(0, rate=0.5, context="run/critic").shape == (0,)


@pytest.mark.parametrize("rate", [0.0, -0.5, math.nextafter(1, 2), 2.0, math.nan, math.inf])
@pytest.mark.parametrize("source", [GaussianNoise(), SeededNoise(SEED)])
def test_a_rate_that_is_none_is_refused(source: noise.NoiseSource, rate: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        source.sample(3, rate=rate, context="run/critic")


def test_who_takes_part_is_drawn_anew_for_each_message_with_a_key_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = GaussianNoise()
    drawn = [source.sample(200, rate=0.5, context="run/critic") for _ in range(8)]
    # Two equal ones by chance: 28 / 2^200.
    assert len({one.tobytes() for one in drawn}) == len(drawn)
    asked: list[int] = []

    def token_bytes(size: int) -> bytes:
        asked.append(size)
        return bytes([len(asked)]) * size

    monkeypatch.setattr(noise.secrets, "token_bytes", token_bytes)
    first, second = (source.sample(64, rate=0.5, context="run/critic") for _ in range(2))
    source.draw(1, noise_stddev=1.0, context="run/critic")
    assert asked == [32, 32, 32]
    assert first.tolist() != second.tolist()


def test_seeded_samples_repeat_themselves_and_share_nothing_with_the_noise_of_their_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = SeededNoise(SEED)
    first = source.sample(100, rate=0.5, context="run/critic")
    assert first.tolist() == source.sample(100, rate=0.5, context="run/critic").tolist()
    assert first.tolist() != source.sample(100, rate=0.5, context="run/critic-2").tolist()
    assert first.tolist() != SeededNoise(b"another seed").sample(100, rate=0.5, context="run/critic").tolist()
    keys: list[bytes] = []
    monkeypatch.setattr(noise, "_keystream", lambda size, key: keys.append(key) or np.zeros(size, dtype=np.uint64))
    source.sample(1, rate=0.5, context="run/critic")
    source.draw(1, noise_stddev=1.0, context="run/critic")
    assert len(set(keys)) == 2


def send_draws(connection: Connection, source: GaussianNoise) -> None:
    connection.send(source.draw(64, noise_stddev=100.0, context="run/one_way").tolist())
    connection.close()


def test_forked_processes_draw_their_own_noise() -> None:
    source = GaussianNoise()
    source.draw(64, noise_stddev=100.0, context="run/describe")
    fork = multiprocessing.get_context("fork")
    drawn = [source.draw(64, noise_stddev=100.0, context="run/one_way").tolist()]
    for _ in range(2):
        receiver, sender = fork.Pipe(duplex=False)
        child = fork.Process(target=send_draws, args=(sender, source))
        with warnings.catch_warnings():
            # Newer interpreters warn of forking beside threads; the child draws and ends.
            warnings.simplefilter("ignore", DeprecationWarning)
            child.start()
        drawn.append(receiver.recv())
        child.join(timeout=30)
        assert child.exitcode == 0
    assert len({tuple(one) for one in drawn}) == 3


def independent(words: Sequence[int], stddev: float) -> int:
    """round(s Z) by another route: 500 digits, the bit strings as sums of fractions, half up."""
    with mpmath.workdps(500):
        firsts, seconds = [words[0], *words[2::2]], [words[1], *words[3::2]]
        uniforms = [
            mpmath.fsum(mpmath.mpf(word) * mpmath.power(2, -64 * (place + 1)) for place, word in enumerate(string))
            + mpmath.power(2, -64 * len(string) - 1)
            for string in (firsts, seconds)
        ]
        gaussian = mpmath.sqrt(-2 * mpmath.ln(uniforms[0])) * mpmath.cospi(2 * uniforms[1])
        return int(mpmath.floor(gaussian * mpmath.mpf(stddev) + mpmath.mpf(1) / 2))


def random_words(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, size=(rows, WORDS), dtype=np.uint64)


LAST = 2**64 - 1
# Both ends, the edge of the far tail, and the zeros and turns of the cosine.
CORNERS = [0, 1, 2**53, 2**54 - 1, 2**54, 2**62 - 1, 2**62, 2**62 + 1, 2**63 - 1, 2**63, 3 * 2**62, LAST - 1, LAST]


def corner_words() -> np.ndarray:
    """Every pair of extreme leading words, followed by zeros, by ones, and by chance."""
    rows = [[first, second, *[rest] * 8] for first in CORNERS for second in CORNERS for rest in (0, LAST)]
    words = np.array(rows, dtype=np.uint64)
    return np.concatenate([words, np.c_[words[:, :2], random_words(len(words), 3)[:, 2:]]])


def near_ties(stddev: float, rows: int) -> np.ndarray:
    """Words whose value lies within some 1e-15 of a half, on both sides: float arithmetic cannot tell which."""
    words = random_words(rows, 4)
    # Far from the tail, where words of the first kind are decided in high precision anyway.
    words[:, 0] |= np.uint64(1 << 60)
    with mpmath.workdps(60):
        for row in range(rows):
            uniform = mpmath.mpf(2 * int(words[row, 0]) + 1) / mpmath.mpf(2) ** 65
            widest = stddev * mpmath.sqrt(-2 * mpmath.ln(uniform))
            half = mpmath.floor(widest * mpmath.mpf(row + 1) / (rows + 1)) - mpmath.mpf(1) / 2
            angle = mpmath.acos(half / widest) / (2 * mpmath.pi) if abs(half) < widest else mpmath.mpf(1) / 8
            words[row, 1] = np.uint64(int(mpmath.floor(angle * mpmath.mpf(2) ** 64)) + row % 3 - 1)
    return words


def decide_all(words: np.ndarray, stddev: float, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What a draw makes of these words."""
    monkeypatch.setattr(noise, "_keystream", lambda size, key: words.reshape(-1)[:size])
    return noise._rounded_gaussians(len(words), noise_stddev=stddev, key=b"").tolist()


@pytest.mark.parametrize("stddev", [0.3, 4.0, 123.456, 1e6, MAXIMUM_STDDEV])
def test_high_precision_decisions_agree_with_an_independent_computation(stddev: float) -> None:
    words = np.concatenate([random_words(40, 1), corner_words()[::13], near_ties(stddev, 15)])
    for row in words:
        assert noise._decide(row, stddev) == independent([int(word) for word in row], stddev)


@pytest.mark.parametrize("stddev", [0.3, 4.0, 123.456, 1e6, MAXIMUM_STDDEV])
def test_float_decisions_agree_with_high_precision_on_random_words(
    stddev: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = random_words(4000, 2)
    assert decide_all(words, stddev, monkeypatch) == [noise._decide(row, stddev) for row in words]


@pytest.mark.parametrize("stddev", [0.3, 4.0, 123.456, 1e6, MAXIMUM_STDDEV])
def test_float_decisions_agree_with_high_precision_on_extreme_words(
    stddev: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = corner_words()
    assert decide_all(words, stddev, monkeypatch) == [noise._decide(row, stddev) for row in words]


@pytest.mark.parametrize("stddev", [4.0, 123.456, 1e6, 1e9])
def test_float_decisions_agree_with_high_precision_beside_ties(stddev: float, monkeypatch: pytest.MonkeyPatch) -> None:
    words = near_ties(stddev, 300)
    decided = decide_all(words, stddev, monkeypatch)
    assert decided == [noise._decide(row, stddev) for row in words]
    # The words do lie beside ties: plain floats go wrong on some of them.
    uniform = (words[:, :2].astype(np.float64) + 0.5) * 2.0**-64
    plain = np.rint(stddev * np.sqrt(-2 * np.log(uniform[:, 0])) * np.cos(2 * np.pi * uniform[:, 1]))
    assert (plain != decided).any()


def test_the_farthest_tail_comes_from_the_words_behind_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    words = np.zeros((2, WORDS), dtype=np.uint64)
    words[1, 2] = LAST  # the second word of the first string
    # U1 = 2^-321 and about 2^-64, U2 = 2^-321 both times: the radius alone.
    expected = [round(100 * math.sqrt(2 * bits * math.log(2))) for bits in (321, 64)]
    assert decide_all(words, 100.0, monkeypatch) == expected
