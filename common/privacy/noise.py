"""Rounded Gaussian noise on the integers, from a cryptographic keystream.

`GaussianNoise.draw` returns round(s Z) with Z an exact standard normal: since a query that is summed in integers
satisfies q + round(s Z) = round(q + s Z), adding it is post-processing of the Gaussian mechanism and costs exactly its
mu. No float that depends on the data is ever made, so attacks on floating-point noise have nothing to read.

How exactness is kept: Z is defined by two infinite bit strings through Box and Muller. Float arithmetic decides the
rounding wherever its error bound leaves no doubt; the few draws within doubt are decided again with 320 bits. What
remains is the chance of a tie that 256 more bits of the string do not break, below 2^-200 a draw.
"""

import secrets
from fractions import Fraction
from hashlib import blake2b
from typing import Literal, Protocol, Self

import mpmath
import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

MAXIMUM_STDDEV = 2.0**40
"""Draws reach 22 standard deviations, and from 2^53 on float64 skips integers: the low bits of a sum, and beyond 2^63
all of it, would go out without noise. No useful release comes near."""

DRAW_ERROR = 2.0**-200
"""Largest distance in total variation of one draw from an exact one: the chance of a tie that no further word breaks.
A run's number of draws times this is taken off its delta."""

_EXTRA_WORDS = 4
# float64 and the vector libraries behind numpy are good to 2^-50 here; the bound is 2^-46, sixteen times wider.
_RELATIVE_DOUBT = 2.0**-46


class NoiseSource(Protocol):
    """Where privacy noise comes from; `kind` is written into every event."""

    kind: Literal["csprng", "test-seed"]

    def draw(self, size: int, *, noise_stddev: float, context: str) -> np.ndarray:
        """`size` independent draws, int64. `context` names the message; for one that is made anew it is the same."""
        ...

    def sample(self, size: int, *, rate: float, context: str) -> np.ndarray:
        """For each of `size` units, independently, whether it takes part: (size,) bool, true with chance `rate`."""
        ...


class GaussianNoise:
    """Noise for real use: a fresh key from the operating system for each message."""

    kind: Literal["csprng", "test-seed"] = "csprng"

    def draw(self, size: int, *, noise_stddev: float, context: str) -> np.ndarray:
        """`size` independent draws of round(N(0, noise_stddev^2)), int64.

        Raises:
            ValueError: noise_stddev is not above 0 and at most `MAXIMUM_STDDEV`.
        """
        del context  # the key is fresh, whatever the message
        return _rounded_gaussians(size, noise_stddev=noise_stddev, key=secrets.token_bytes(32))

    def sample(self, size: int, *, rate: float, context: str) -> np.ndarray:
        """For each of `size` units, independently, whether it takes part: (size,) bool, true with chance `rate`."""
        del context
        return _poisson_sample(size, rate=rate, key=secrets.token_bytes(32))


class SeededNoise:
    """Noise that anyone with the seed can subtract: for tests and for comparing engines, never for real rows.

    Whoever reads the events sees `kind`, and a certificate made from them states no guarantee.
    """

    kind: Literal["csprng", "test-seed"] = "test-seed"

    def __init__(self, seed: bytes) -> None:
        self._seed = seed

    @classmethod
    def of_site(cls, site: str, seed: int) -> Self:
        """Of one site of a federation whose seed is known."""
        return cls(blake2b(site.encode(), key=seed.to_bytes(16, "big"), digest_size=32).digest())

    def draw(self, size: int, *, noise_stddev: float, context: str) -> np.ndarray:
        """Like `GaussianNoise.draw`, the key derived from the seed and the context."""
        return _rounded_gaussians(size, noise_stddev=noise_stddev, key=self._key(context, b""))

    def sample(self, size: int, *, rate: float, context: str) -> np.ndarray:
        """Like `GaussianNoise.sample`, the key derived from the seed and the context."""
        return _poisson_sample(size, rate=rate, key=self._key(context, b"sample"))

    def _key(self, context: str, purpose: bytes) -> bytes:
        return blake2b(context.encode(), key=self._seed, person=purpose, digest_size=32).digest()


def _poisson_sample(size: int, *, rate: float, key: bytes) -> np.ndarray:
    """Rounded down: the chance is below `rate` by less than 2^-64, which costs a unit nothing."""
    if not 0 < rate <= 1:
        raise ValueError(f"rate={rate}: expected above 0, at most 1")
    least = int(Fraction(rate) * 2**64)  # exact; a word is below it with chance `rate`
    words = _keystream(size, key)
    return np.ones(size, dtype=bool) if least == 2**64 else words < np.uint64(least)


def _rounded_gaussians(size: int, *, noise_stddev: float, key: bytes) -> np.ndarray:
    if not 0 < noise_stddev <= MAXIMUM_STDDEV:
        raise ValueError(f"noise_stddev={noise_stddev}: expected > 0, at most 2^40")
    words = _keystream(size * (2 + 2 * _EXTRA_WORDS), key).reshape(size, 2 + 2 * _EXTRA_WORDS)
    # U = (word + 1/2) / 2^64 stands for every U that starts with these 64 bits.
    uniform = (words[:, :2].astype(np.float64) + 0.5) * 2.0**-64
    radius = np.sqrt(-2.0 * np.log(uniform[:, 0]))
    scaled = noise_stddev * radius * np.cos(2.0 * np.pi * uniform[:, 1])
    doubt = noise_stddev * (radius + 1.0 / np.maximum(radius, 2.0**-40)) * _RELATIVE_DOUBT
    rounded = np.rint(scaled)
    tie = 0.5 - np.abs(scaled - rounded)
    # A small U1 (a far tail) has few leading bits in its word: always decided with more of them.
    undecided = (tie <= doubt) | (words[:, 0] < np.uint64(1 << 54)) | ~np.isfinite(scaled)
    for row in np.flatnonzero(undecided):
        rounded[row] = _decide(words[row], noise_stddev)
    return rounded.astype(np.int64)


def _decide(words: np.ndarray, noise_stddev: float) -> int:
    """round(s Z) from all words of one draw, in 320-bit arithmetic."""
    parts = [int(word) for word in words]
    with mpmath.workprec(64 * (1 + _EXTRA_WORDS)):
        first, second = (
            mpmath.mpf(2 * _join([parts[which], *parts[2 + which :: 2]]) + 1)
            / mpmath.mpf(2) ** (64 * (1 + _EXTRA_WORDS) + 1)
            for which in (0, 1)
        )
        value = mpmath.mpf(noise_stddev) * mpmath.sqrt(-2 * mpmath.log(first)) * mpmath.cos(2 * mpmath.pi * second)
        return int(mpmath.nint(value))


def _join(words: list[int]) -> int:
    joined = 0
    for word in words:
        joined = (joined << 64) | word
    return joined


def _keystream(words: int, key: bytes) -> np.ndarray:
    """ChaCha20 under a key that is used once, as (words,) uint64."""
    encryptor = Cipher(algorithms.ChaCha20(key, b"\0" * 16), mode=None).encryptor()
    return np.frombuffer(encryptor.update(bytes(8 * words)), dtype="<u8")
