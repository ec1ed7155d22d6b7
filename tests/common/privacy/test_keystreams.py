"""Where noise and coins come from: a keystream for each message, whose key nobody can guess, and nobody keeps."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common.privacy import noise
from common.privacy.noise import GaussianNoise, NoiseSource

ROOT = Path(__file__).resolve().parents[3]
TAKES: dict[str, Callable[[NoiseSource], np.ndarray]] = {
    "draw": lambda source: source.draw(500, noise_stddev=100.0, context="run/critic"),
    "sample": lambda source: source.sample(500, rate=0.5, context="run/critic"),
}


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The keys of the keystreams that were taken."""
    found: list[bytes] = []
    keystream = noise._keystream

    def spy(words: int, key: bytes) -> np.ndarray:
        found.append(key)
        return keystream(words, key)

    monkeypatch.setattr(noise, "_keystream", spy)
    return found


@pytest.mark.parametrize("take", TAKES)
def test_each_message_takes_one_keystream_whose_256_bits_are_all_its_own(keys: list[bytes], take: str) -> None:
    sources = [GaussianNoise(), GaussianNoise()]
    taken = [TAKES[take](source).tobytes() for _ in range(16) for source in sources]
    assert len(set(taken)) == len(keys) == 32
    # 32 equal bits in one of 256 places: 2^-22. Ten tries that all have one: 2^-220.
    free = np.bitwise_or.reduce([np.frombuffer(key, np.uint8) ^ np.frombuffer(keys[0], np.uint8) for key in keys])
    assert {len(key) for key in keys} == {32}
    assert np.unpackbits(free).sum() >= 246


def test_what_is_drawn_follows_from_the_keystream_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    words = np.random.default_rng(1).integers(0, 2**64, 5000, dtype=np.uint64)
    monkeypatch.setattr(noise, "_keystream", lambda size, key: words[:size])
    for take in TAKES.values():
        first, second = (take(GaussianNoise()) for _ in range(2))
        assert np.array_equal(first, second)


WATCHED = """
import sys
from common.privacy.noise import GaussianNoise

def take():
    source.draw(500, noise_stddev=100.0, context="run/critic")
    source.sample(500, rate=0.5, context="run/critic")

def watch(event, arguments):
    if event in ("open", "socket.sendto", "socket.connect", "subprocess.Popen") or event.startswith("os.put"):
        print(event, arguments[0])

source = GaussianNoise()
take()
sys.addaudithook(watch)
take()
print("kept", *vars(source))
open("/dev/null").close()
"""


def test_nothing_of_a_key_is_kept_or_written() -> None:
    # In a process of its own: whoever listens to an interpreter listens to its end.
    done = subprocess.run([sys.executable, "-c", WATCHED], cwd=ROOT, capture_output=True, text=True, check=True)
    # The last line: that opening a file is heard.
    assert done.stdout.splitlines() == ["kept", "open /dev/null"]
