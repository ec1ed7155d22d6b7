"""A run that goes on for many rounds holds no more at its end than at its beginning, but for its ledgers."""

from itertools import count, pairwise
from pathlib import Path

import pytest

from simulations.bench.soak import Kind, soak
from simulations.bench.stopwatch import USEFUL, Stopwatch, watch

ROUNDS = 60


@pytest.mark.parametrize("kind", ["releases", "training"])
def test_files_and_memory_stay_the_same_and_ledgers_grow_by_the_same_in_each_round(kind: Kind, tmp_path: Path) -> None:
    samples = soak(kind, ROUNDS, tmp_path, every=5)
    assert [one.round for one in samples] == list(range(5, ROUNDS + 1, 5))
    assert len({one.descriptors for one in samples}) == 1
    # All releases are kept, a few thousand numbers each: 0.02 MB a round.
    assert samples[-1].memory - samples[len(samples) // 2].memory < 5
    grown = [after.ledger - before.ledger for before, after in pairwise(samples)]
    if kind == "releases":
        # A charge and a seal each time; only their numbers get more digits.
        assert 0 < min(grown) <= max(grown) < 1.02 * min(grown)
    else:
        assert sum(one > 0 for one in grown) <= 1  # the second stage's measurement
    # Checkpoints hold all releases; there would be as many as steps.
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) <= 32


def test_each_second_counts_for_one_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count()
    monkeypatch.setattr("simulations.bench.stopwatch.time.process_time", lambda: next(clock))
    stopwatch = Stopwatch()
    with stopwatch.stage("outer"), stopwatch.stage("inner"), stopwatch.stage("outer"):
        pass
    # A tick passes before each stage begins and before it ends.
    assert stopwatch.seconds == {"rest": 1, "outer": 3, "inner": 2}


def test_all_that_a_federation_does_is_timed_by_what_it_is_for(tmp_path: Path) -> None:
    with watch() as stopwatch:
        soak("releases", 2, tmp_path)
    expected = {*USEFUL, "start a site", "ledger", "witnesses", "check and add up", "messages", "records", "rest"}
    assert set(stopwatch.seconds) == expected
