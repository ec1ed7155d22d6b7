"""Sums over sites: exact, in any order, with the noise that all of them added."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ExitCode, ProtocolError
from common.privacy.events import GaussianEvent
from common.wire.messages import MAX_COUNT, Reply
from common.wire.packing import GENERATOR, pack
from server.aggregation import add_up, check_generator, check_release

CELLS = 4
EVENT = GaussianEvent(account="train", squared_sensitivity=12, noise_stddev=3.0, cells=CELLS, scale=2, noise="csprng")


def reply(site: str, counts: Any, *, event: GaussianEvent = EVENT, **facts: Any) -> Reply:
    arrays = {} if counts is None else {"counts": counts}
    return Reply(site, {"event": event.as_dict(), "ledger_head": "0" * 64, **facts}, arrays)


def vector(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def test_counts_are_summed_as_whole_numbers_and_divided_by_the_scale_once() -> None:
    replies = {"a": reply("a", vector(1, -3, 0, 8)), "b": reply("b", vector(2, 0, -7, 1))}
    release = add_up(replies, cells=CELLS)
    assert release.counts.tolist() == [1.5, -1.5, -3.5, 4.5]
    assert release.counts.dtype == np.float64
    assert list(release.events) == ["a", "b"]
    assert release.events["a"] == EVENT


def test_numbers_that_floats_cannot_hold_are_summed_exactly() -> None:
    # Sums of floats lose a unit beyond 2^53, which a hundred sites reach; sums of whole numbers do not.
    values = {**dict.fromkeys(range(50), MAX_COUNT), 50: 1, **dict.fromkeys(range(51, 101), -MAX_COUNT)}
    replies = {f"s{at:03}": reply(f"s{at:03}", vector(value, 0, 0, 0)) for at, value in values.items()}
    assert add_up(replies, cells=CELLS).counts[0] == 0.5


def test_a_thousand_sites_at_the_limit_are_summed_exactly() -> None:
    replies = {f"s{at}": reply(f"s{at}", vector(MAX_COUNT, -MAX_COUNT, at, 0)) for at in range(1000)}
    assert (add_up(replies, cells=CELLS).counts * 2).tolist() == [1000 * MAX_COUNT, -1000 * MAX_COUNT, 499500, 0]


@pytest.mark.parametrize("far", [MAX_COUNT + 1, -MAX_COUNT - 1, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("cell", [0, CELLS - 1])
def test_counts_beyond_what_any_table_holds_are_refused(far: int, cell: int) -> None:
    counts = vector(1, 2, 3, 4)
    counts[cell] = far
    with pytest.raises(ProtocolError, match=r"^site b: counts beyond what any table holds$"):
        check_release("b", reply("b", counts), cells=CELLS)
    counts[cell] = MAX_COUNT if far > 0 else -MAX_COUNT
    assert check_release("b", reply("b", counts), cells=CELLS) == EVENT


@given(
    st.lists(st.lists(st.integers(-(2**40), 2**40), min_size=CELLS, max_size=CELLS), min_size=1, max_size=5),
    st.randoms(),
)
@settings(deadline=None, max_examples=50)
def test_the_order_of_sites_does_not_change_a_bit(counts: list[list[int]], random: Any) -> None:
    replies = [
        (f"s{at}", reply(f"s{at}", vector(*values), event=replace(EVENT, noise_stddev=0.1 + at)))
        for at, values in enumerate(counts)
    ]
    once = add_up(dict(replies), cells=CELLS)
    random.shuffle(replies)
    again = add_up(dict(replies), cells=CELLS)
    assert np.array_equal(once.counts, again.counts)
    assert once.variance == again.variance
    assert list(once.events) == list(again.events)
    assert (once.counts * EVENT.scale).tolist() == [sum(column) for column in zip(*counts, strict=True)]


def test_the_noise_of_sites_adds_up_rounding_included() -> None:
    stddevs = (3.0, 5.0, 0.25)
    replies = {
        str(at): reply(str(at), vector(0, 0, 0, 0), event=replace(EVENT, noise_stddev=one))
        for at, one in enumerate(stddevs)
    }
    release = add_up(replies, cells=CELLS)
    assert release.variance == pytest.approx(sum(one**2 + 1 / 12 for one in stddevs) / EVENT.scale**2)
    assert add_up({"0": replies["0"]}, cells=CELLS).variance == pytest.approx((9 + 1 / 12) / 4)


@pytest.mark.statistical
def test_the_variance_is_that_of_rounded_noise() -> None:
    cells = 100_000
    event = replace(EVENT, noise_stddev=0.6, cells=cells)
    random = np.random.default_rng(0)
    replies = {name: reply(name, np.rint(random.normal(0, 0.6, cells)).astype(np.int64), event=event) for name in "abc"}
    release = add_up(replies, cells=cells)
    # A variance from 10^5 draws has a relative standard deviation of 0.45 %.
    assert release.counts.var() == pytest.approx(release.variance, rel=0.03)


@pytest.mark.parametrize(
    "counts",
    [
        None,
        vector(1, 2, 3),
        vector(1, 2, 3, 4, 5),
        vector(1, 2, 3, 4).reshape(2, 2),
        np.ones(CELLS),
        np.ones(CELLS, dtype=np.int32),
        np.ones(CELLS, dtype=np.uint64),
    ],
)
def test_what_is_no_vector_of_whole_numbers_of_that_length_is_refused(counts: np.ndarray | None) -> None:
    replies = {"a": reply("a", vector(1, 2, 3, 4)), "b": reply("b", counts)}
    with pytest.raises(ProtocolError, match=r"^site b: ") as refused:
        add_up(replies, cells=CELLS)
    assert refused.value.code == ExitCode.PROTOCOL
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "fact",
    [
        None,
        "event",
        [],
        {},
        {"type": "gaussian"},
        {**EVENT.as_dict(), "type": "laplace"},
        {**EVENT.as_dict(), "cells": CELLS + 1},
        {**EVENT.as_dict(), "cells": "4"},
        {**EVENT.as_dict(), "scale": 3},
        {**EVENT.as_dict(), "scale": 0},
        {**EVENT.as_dict(), "noise_stddev": -1.0},
        {**EVENT.as_dict(), "noise_stddev": 2.0**51},
        {**EVENT.as_dict(), "noise_stddev": 1e200},
        {**EVENT.as_dict(), "squared_sensitivity": 10**400},
        {**EVENT.as_dict(), "noise_stddev": "3"},
        {**EVENT.as_dict(), "account": "both"},
        {**EVENT.as_dict(), "noise": "none"},
        {**EVENT.as_dict(), "extra": 1},
    ],
)
def test_an_event_that_does_not_describe_the_vector_is_refused_by_its_site(fact: Any) -> None:
    replies = {"a": reply("a", vector(1, 2, 3, 4)), "b": reply("b", vector(1, 2, 3, 4), event=EVENT)}
    facts = {**replies["b"].facts, "event": fact}
    replies["b"] = Reply("b", facts, replies["b"].arrays)
    with pytest.raises(ProtocolError, match=r"^site b: ") as refused:
        add_up(replies, cells=CELLS)
    assert refused.value.code == ExitCode.PROTOCOL


# --- what sites keep to themselves


def event_alone(site: str, *, event: GaussianEvent = EVENT, **arrays: np.ndarray) -> Reply:
    return Reply(site, {"event": event.as_dict(), "ledger_head": "0" * 64}, arrays)


def test_of_vectors_that_are_kept_the_events_are_there_and_no_counts() -> None:
    other = replace(EVENT, noise_stddev=5.0)
    release = add_up({"b": event_alone("b", event=other), "a": event_alone("a")}, cells=CELLS, kept=True)
    assert release.counts.tolist() == [0.0] * CELLS
    assert dict(release.events) == {"a": EVENT, "b": other}
    assert list(release.events) == ["a", "b"]
    assert release.variance == pytest.approx((9 + 25 + 2 / 12) / 4)


def test_a_vector_is_refused_where_it_should_be_kept_and_missed_where_it_should_not() -> None:
    kept, told = event_alone("b"), reply("b", vector(1, 2, 3, 4))
    for one, expected in ((kept, False), (told, True)):
        other = reply("a", vector(0, 0, 0, 0)) if not expected else event_alone("a")
        with pytest.raises(ProtocolError, match=r"^site b: ") as refused:
            add_up({"a": other, "b": one}, cells=CELLS, kept=expected)
        assert refused.value.code == ExitCode.PROTOCOL


@pytest.mark.parametrize("change", [{"cells": CELLS + 1}, {"scale": 3}, {"scale": 0}])
def test_an_event_of_a_kept_vector_must_describe_it_too(change: dict[str, Any]) -> None:
    event = {**EVENT.as_dict(), **change}
    with pytest.raises(ProtocolError, match=r"^site b: "):
        add_up({"a": event_alone("a"), "b": Reply("b", {"event": event}, {})}, cells=CELLS, kept=True)


# --- generators

SENT = {"heads": np.array([[0.0, -1.0], [2.0, 0.5]], dtype=np.float32), "bias": np.zeros(3, dtype=np.float32)}
REACH = 0.25


def check(change: Callable[[dict[str, np.ndarray]], Any], **more: np.ndarray) -> None:
    """A generator that is the one that was sent, but for something."""
    arrays = {name: array.copy() for name, array in SENT.items()}
    change(arrays)
    check_generator("b", Reply("b", {}, {**pack(GENERATOR, arrays), **more}), sent=SENT, reach=REACH)


@pytest.mark.parametrize("moved", [0.0, REACH, -REACH])
def test_a_generator_that_moved_as_far_as_its_steps_can_take_it_is_taken(moved: float) -> None:
    check(lambda arrays: arrays.update({name: array + np.float32(moved) for name, array in arrays.items()}))
    check(lambda arrays: None, other=np.ones(2))  # what is no parameter is not looked at


@pytest.mark.parametrize("moved", [REACH * 1.001, -REACH * 1.001, 1e30, np.inf, -np.inf, np.nan])
@pytest.mark.parametrize(("name", "cell"), [("heads", 0), ("heads", 3), ("bias", 2)])
def test_one_parameter_that_moved_farther_is_refused(name: str, cell: int, moved: float) -> None:
    with pytest.raises(ProtocolError, match=r"^site b: a generator that moved farther") as refused:
        check(lambda arrays: np.put(arrays[name], cell, SENT[name].flat[cell] + moved))
    assert refused.value.code == ExitCode.PROTOCOL


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.clear(),
        lambda arrays: arrays.pop("bias"),
        lambda arrays: arrays.update(more=np.zeros(1, dtype=np.float32)),
        lambda arrays: arrays.update(bias=np.zeros(4, dtype=np.float32)),
        lambda arrays: arrays.update(bias=np.zeros((1, 3), dtype=np.float32)),
        lambda arrays: arrays.update(bias=np.zeros(3)),
        lambda arrays: arrays.update(bias=np.zeros(3, dtype=np.int32)),
        lambda arrays: arrays.update(bias=np.zeros(3, dtype=bool)),
        lambda arrays: arrays.update(bias=np.zeros(3, dtype=np.complex64)),
    ],
)
def test_a_generator_of_other_names_shapes_or_types_is_refused(change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    with pytest.raises(ProtocolError, match=r"^site b: a generator that does not fit the study$"):
        check(change)
