"""Sums over sites: exact, in any order, with the noise that all of them added."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ExitCode, ProtocolError
from common.privacy.events import GaussianEvent
from common.wire.messages import Reply
from server.aggregation import add_up

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
    far = 2**60 + 1
    replies = {name: reply(name, vector(value, 0, 0, 0)) for name, value in (("a", far), ("b", 1), ("c", -far))}
    assert add_up(replies, cells=CELLS).counts[0] == 0.5


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
