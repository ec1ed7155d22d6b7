"""Sums of vectors: norms and sums are those of whole numbers, one unit moves a sum by its vector, no draw unpaid."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import BudgetError, LedgerError
from common.privacy.accountants import GdpAccountant
from common.privacy.events import GaussianEvent
from common.privacy.ledger import Asset, Charge, Ledger
from common.privacy.noise import MAXIMUM_STDDEV, SeededNoise
from common.privacy.signatures import SigningKey
from common.privacy.vectors import (
    MAXIMUM_SCALE,
    VectorContributions,
    VectorLayer,
    VectorMechanism,
    plain,
)

# The last scale of float32 and the first of float64, and the largest.
SCALES = (1, 4095, 4096, MAXIMUM_SCALE)


class Silence:
    """No noise at all; notes what was asked of it."""

    kind = "test-seed"

    def __init__(self, journal: list[str] | None = None) -> None:
        self.journal = [] if journal is None else journal

    def draw(self, size: int, *, noise_stddev: float, context: str) -> np.ndarray:
        self.journal.append("drawn")
        return np.zeros(size, dtype=np.int64)


class Pass:
    """A ledger that grants everything and notes it."""

    def __init__(self, journal: list[str] | None = None) -> None:
        self.journal = [] if journal is None else journal

    def authorise(self, charge: Charge) -> None:
        self.journal.append("charged")


def mechanism_of(cells: int, scale: int) -> VectorMechanism:
    return VectorMechanism((VectorLayer(1, cells),), scale)


def release(
    mechanism: VectorMechanism, contributions: Any, *, event: GaussianEvent | None = None, ledger: Any, noise: Any
) -> np.ndarray:
    planned = event or mechanism.plan(spend=1.0, account="train", noise=noise)
    return mechanism.release(
        contributions, event=planned, request="run/critic/1", request_digest="ab" * 32, ledger=ledger, noise=noise
    )


def matrices(mechanism: VectorMechanism, contributions: VectorContributions) -> list[list[int]]:
    """Each unit's vector in whole numbers of Python, cell by cell."""
    units = len(contributions.factors[0][0])
    vectors: list[list[int]] = [[] for _ in range(units)]
    for layer, (left, right) in zip(mechanism.layers, contributions.factors, strict=True):
        for unit, vector in enumerate(vectors):
            for row in range(layer.inputs):
                for column in range(layer.outputs):
                    steps = zip(left[unit, :, row].tolist(), right[unit, :, column].tolist(), strict=True)
                    vector.append(layer.weight * sum(int(a) * int(b) for a, b in steps))
    return vectors


@st.composite
def cases(draw: st.DrawFn) -> tuple[VectorMechanism, VectorContributions]:
    """Layers of any kind, units of any number, and a scale that about half of the units exceed."""
    seed = np.random.default_rng(draw(st.integers(0, 2**32)))
    units = draw(st.integers(0, 6))
    layers, factors = [], []
    for _ in range(draw(st.integers(1, 3))):
        layers.append(VectorLayer(draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.sampled_from([1, 3, 256]))))
        steps = draw(st.integers(0, 3))
        kind = draw(st.sampled_from([np.bool_, np.int8, np.int16, np.int64]))
        low, high = (0, 2) if kind == np.bool_ else (-draw(st.sampled_from([1, 100])), 101)
        left = seed.integers(low, high, (units, steps, layers[-1].inputs)).astype(kind)
        right = seed.integers(-100, 101, (units, steps, layers[-1].outputs)).astype(np.int16)
        factors.append((left, right))
    mechanism = VectorMechanism(tuple(layers), MAXIMUM_SCALE)
    contributions = VectorContributions(tuple(factors))
    norms = [sum(cell * cell for cell in vector) for vector in matrices(mechanism, contributions)]
    if norms and draw(st.booleans()):
        mechanism = replace(mechanism, scale=max(1, math.isqrt(sorted(norms)[len(norms) // 2])))
    return mechanism, contributions


@given(cases())
@settings(max_examples=150, deadline=None)
def test_norms_and_sums_are_those_of_whole_numbers(case: tuple[VectorMechanism, VectorContributions]) -> None:
    mechanism, contributions = case
    vectors = matrices(mechanism, contributions)
    exact = [sum(cell * cell for cell in vector) for vector in vectors]
    norms = mechanism.squared_norms(contributions)
    assert norms.dtype == np.int64
    for norm, expected in zip(norms.tolist(), exact, strict=True):
        assert norm == expected if expected <= mechanism.scale**2 else norm > mechanism.scale**2
    if all(norm <= mechanism.scale**2 for norm in exact):
        sums = mechanism.exact_sum([contributions])
        assert sums.dtype == np.int64
        assert sums.tolist() == [sum(cells) for cells in zip(*vectors, strict=True)] or not vectors
        assert len(sums) == mechanism.cells
    else:
        with pytest.raises(ValueError, match="norm is above the bound"):
            mechanism.exact_sum([contributions])


@given(cases(), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_one_unit_moves_the_sum_by_its_own_vector_alone(
    case: tuple[VectorMechanism, VectorContributions], random: Any
) -> None:
    mechanism, contributions = replace(case[0], scale=MAXIMUM_SCALE), case[1]
    vectors = matrices(mechanism, contributions)
    if not vectors:
        return
    order = list(range(len(vectors)))
    random.shuffle(order)

    def chosen(units: list[int]) -> VectorContributions:
        return VectorContributions(tuple((left[units], right[units]) for left, right in contributions.factors))

    difference = mechanism.exact_sum([contributions]) - mechanism.exact_sum([chosen(order[1:])])
    assert difference.tolist() == vectors[order[0]]


@pytest.mark.parametrize("scale", SCALES)
def test_a_norm_of_just_the_bound_passes_and_one_more_does_not(scale: int) -> None:
    mechanism = mechanism_of(3, scale)
    at_bound = plain(np.array([[0, -scale, 0]]))
    assert mechanism.squared_norms(at_bound).tolist() == [scale**2]
    assert mechanism.exact_sum([at_bound]).tolist() == [0, -scale, 0]
    # A single one beside the largest square: the bit that a float would lose first.
    above = plain(np.array([[1, -scale, 0]]))
    assert mechanism.squared_norms(above)[0] > scale**2
    with pytest.raises(ValueError, match="norm is above the bound"):
        mechanism.exact_sum([above])


def test_the_bound_holds_over_layers_and_counts_weights() -> None:
    mechanism = VectorMechanism((VectorLayer(2, 1, 3), VectorLayer(1, 1)), 5)
    one, four, five = (np.array([[[value]]]) for value in (1, 4, 5))
    record = np.array([[[True, False]]])
    assert mechanism.exact_sum([VectorContributions(((record, one), (one, four)))]).tolist() == [3, 0, 4]
    assert mechanism.squared_norms(VectorContributions(((record, one), (one, five)))).tolist() == [34]
    with pytest.raises(ValueError, match="norm is above the bound"):
        mechanism.exact_sum([VectorContributions(((record, one), (one, five)))])


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("value", [2**31 - 1, -(2**31), 2**62, -(2**63), 2**24 + 1, 2**53 + 1])
def test_a_huge_number_is_above_every_bound(scale: int, value: int) -> None:
    vectors = np.array([[value, 0]], dtype=np.int64)
    assert mechanism_of(2, scale).squared_norms(plain(vectors)).item() > scale**2 or abs(value) <= scale


def test_a_huge_factor_of_nothing_adds_nothing() -> None:
    mechanism = VectorMechanism((VectorLayer(8, 1),), 10)
    nothing = VectorContributions(((np.full((1, 1, 8), -(2**63)), np.array([[[0]]])),))
    assert mechanism.squared_norms(nothing).tolist() == [0]
    assert mechanism.exact_sum([nothing]).tolist() == [0] * 8


@pytest.mark.parametrize("scale", [4095, 4096])
def test_more_units_than_a_float_can_add_are_added_exactly(scale: int) -> None:
    # 2^24 / 4095 units fill float32; their sum is odd, and so is lost if any one is rounded.
    units = 12_345
    sums = mechanism_of(2, scale).exact_sum([plain(np.tile([[0, scale - 1 + scale % 2]], (units, 1)))])
    assert sums.tolist() == [0, units * (scale - 1 + scale % 2)]


def test_steps_that_cancel_are_added_exactly_or_refused() -> None:
    mechanism = VectorMechanism((VectorLayer(1, 1),), 4095)
    left = np.array([[[4095], [4095], [1]]])
    cancelling = VectorContributions(((left, np.array([[[1000], [-1000], [7]]])),))
    assert mechanism.exact_sum([cancelling]).tolist() == [7]
    too_large = VectorContributions(((left, np.array([[[4096], [-4096], [7]]])),))
    with pytest.raises(ValueError, match="too large to be added exactly"):
        mechanism.squared_norms(too_large)


def test_parts_of_any_size_give_the_same_release() -> None:
    vectors = np.random.default_rng(3).integers(-40, 41, (50, 4)).astype(np.int16)
    mechanism = mechanism_of(4, 100)
    whole = release(mechanism, [plain(vectors)], ledger=Pass(), noise=Silence())
    parts = [plain(vectors[start : start + 7]) for start in range(0, 50, 7)]
    assert np.array_equal(whole, vectors.astype(np.int64).sum(axis=0))
    assert np.array_equal(release(mechanism, iter(parts), ledger=Pass(), noise=Silence()), whole)
    assert np.array_equal(release(mechanism, parts[::-1], ledger=Pass(), noise=Silence()), whole)
    # Also when windows grow or shrink from part to part.
    stepped = VectorMechanism((VectorLayer(1, 1),), 100)
    growing = [
        VectorContributions(((np.ones((2, steps, 1), np.int8), np.ones((2, steps, 1), np.int8)),)) for steps in (2, 3)
    ]
    assert release(stepped, growing, ledger=Pass(), noise=Silence()).tolist() == [10]


def test_no_units_release_noise_alone() -> None:
    mechanism = mechanism_of(3, 100)
    assert mechanism.exact_sum([plain(np.empty((0, 3), dtype=np.int64))]).tolist() == [0, 0, 0]
    assert mechanism.squared_norms(plain(np.empty((0, 3), dtype=np.int64))).tolist() == []
    released = release(mechanism, [], ledger=Pass(), noise=SeededNoise(b"seed"))
    assert released.shape == (3,)
    assert released.any()


def test_contributions_are_checked_before_the_charge_and_noise_is_drawn_after_it() -> None:
    journal: list[str] = []

    def parts() -> Iterator[VectorContributions]:
        for value in (10, 10):
            journal.append("read")
            yield plain(np.array([[value]]))

    release(mechanism_of(1, 10), parts(), ledger=Pass(journal), noise=Silence(journal))
    assert journal == ["read", "read", "charged", "drawn"]
    journal.clear()
    with pytest.raises(ValueError, match="norm is above the bound"):
        release(mechanism_of(1, 9), parts(), ledger=Pass(journal), noise=Silence(journal))
    assert journal == ["read"]


def test_a_ledger_that_refuses_stops_the_draw(tmp_path: Path) -> None:
    asset = Asset("north", "rows", "", GdpAccountant(), 0.1)
    key = SigningKey.from_seed(bytes(32))
    ledger = Ledger(tmp_path / "ledger.jsonl", asset=asset, study="cd" * 32, bound=0.1, key=key)
    mechanism, noise = mechanism_of(1, 10), Silence()
    event = mechanism.plan(spend=0.06, account="train", noise=noise)  # type: ignore[arg-type]
    vectors = [plain(np.array([[1]]))]
    release(mechanism, vectors, event=event, ledger=ledger, noise=noise)
    with pytest.raises((BudgetError, LedgerError)):
        release(mechanism, vectors, event=event, ledger=ledger, noise=noise)
    assert noise.journal == ["drawn"]


def test_the_event_states_the_sensitivity_and_survives_a_ledger() -> None:
    mechanism = VectorMechanism((VectorLayer(2, 3, 7), VectorLayer(1, 5)), 1000)
    event = mechanism.plan(spend=0.04, account="holdout", noise=SeededNoise(b"seed"))
    assert event.squared_sensitivity == mechanism.squared_sensitivity == 1_000_000
    assert (event.cells, event.scale, event.account, event.noise) == (11, 1000, "holdout", "test-seed")
    assert event.noise_stddev == pytest.approx(5000)
    assert event.spend <= 0.04
    assert GaussianEvent.from_dict(event.as_dict()) == event


def test_the_noise_is_of_the_planned_size() -> None:
    mechanism = mechanism_of(20_000, 1000)
    noise = SeededNoise(b"seed")
    event = mechanism.plan(spend=1.0, account="train", noise=noise)
    vectors = np.zeros((1, 20_000), dtype=np.int16)
    vectors[0, 0] = 1000
    released = release(mechanism, [plain(vectors)], event=event, ledger=Pass(), noise=noise)
    # Five standard errors of a standard deviation from 20,000 draws.
    assert released.std() == pytest.approx(1000, rel=5 / math.sqrt(40_000))


@pytest.mark.parametrize("spend", [0.0, 1e-30])
def test_a_spend_that_buys_nothing_is_refused(spend: float) -> None:
    with pytest.raises(BudgetError, match="too small to buy a release"):
        mechanism_of(1, MAXIMUM_SCALE).plan(spend=spend, account="train", noise=SeededNoise(b"seed"))


def test_a_critic_may_have_noise_of_a_thousand_clip_norms() -> None:
    event = mechanism_of(1, 4095 * 256).plan(spend=1e-6, account="train", noise=SeededNoise(b"seed"))
    assert event.noise_stddev < MAXIMUM_STDDEV / 2**9


@pytest.mark.parametrize(
    "changes",
    [{"squared_sensitivity": 99}, {"cells": 2}, {"scale": 9}, {"noise": "csprng"}, {"noise_stddev": 2.0**41}],
)
def test_an_event_of_another_plan_is_refused(changes: dict[str, Any]) -> None:
    mechanism, noise = mechanism_of(1, 10), Silence()
    event = replace(mechanism.plan(spend=1.0, account="train", noise=noise), **changes)  # type: ignore[arg-type]
    ledger = Pass()
    with pytest.raises(ValueError, match="event"):
        release(mechanism, [plain(np.array([[1]]))], event=event, ledger=ledger, noise=noise)
    assert not ledger.journal
    assert not noise.journal


ONES = np.ones((2, 1, 1), dtype=np.int8)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        (((ONES, ONES),) * 2, "layers do not agree"),
        (((ONES, ONES[:1]),), "layers do not agree"),
        (((ONES.astype(np.float32), ONES),), "expected integers"),
        (((ONES, ONES.astype(np.float64)),), "expected integers"),
        (((ONES[:, :, 0], ONES),), "shapes do not agree"),
        (((ONES, np.ones((2, 1, 2), np.int8)),), "shapes do not agree"),
        (((np.ones((2, 2, 1), np.int8), ONES),), "shapes do not agree"),
        (((np.ones((2, 1, 2), np.int8), ONES),), "shapes do not agree"),
    ],
)
def test_contributions_of_another_shape_are_refused(factors: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mechanism_of(1, 10).exact_sum([VectorContributions(factors)])


@pytest.mark.parametrize("scale", [0, -1, 2**26 + 1])
def test_a_scale_that_no_float_serves_is_refused(scale: int) -> None:
    with pytest.raises(ValueError, match="scale"):
        VectorMechanism((VectorLayer(1, 1),), scale)


def test_a_weight_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="weights"):
        VectorMechanism((VectorLayer(1, 1, 0),), 10)
