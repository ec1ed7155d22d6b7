"""Sums over sites: exact, in any order, with the noise that all of them added; and what follows from the sums."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from common.data.encoding import make_grids
from common.data.histograms import histogram_codes, histogram_layout
from common.data.schema import Column
from common.data.tables import TableLayout, all_pairs, cell_indices
from common.errors import ExitCode, ProtocolError
from common.privacy.events import GaussianEvent
from common.wire.messages import Reply
from server.aggregation import Bins, Release, add_up, bins_from, targets_from

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


# --- from releases to targets

_COLUMN: TypeAdapter[Column] = TypeAdapter(Column)
GRIDS = make_grids(
    {
        "age": _COLUMN.validate_python({"type": "integer", "min": 0, "max": 63, "cells": 64}),
        "dose": _COLUMN.validate_python(
            {"type": "continuous", "min": 0, "max": 1000, "cells": 64, "scale": "log", "missing": True}
        ),
        "ward": _COLUMN.validate_python({"type": "categorical", "categories": ["a", "b", "c"]}),
    }
)
CLASSES = 2
EVENTS = {"a": EVENT}


def records(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Cells of records and their labels; one class is four times as frequent."""
    random = np.random.default_rng(seed)
    labels = (random.random(count) < 0.2).astype(np.int64)
    cells = np.column_stack([random.binomial(one.n_cells - 1, 0.3 + 0.2 * labels) for one in GRIDS])
    return cells, labels


def released(codes: np.ndarray, labels: np.ndarray, layout: TableLayout, *, stddev: float, seed: int) -> Release:
    counts = np.bincount(cell_indices(codes, labels, layout).ravel(), minlength=layout.n_cells).astype(np.float64)
    return Release(counts + np.random.default_rng(seed).normal(0, stddev, layout.n_cells), stddev**2 or 1e-9, EVENTS)


def measured(count: int, *, stddev: float, seed: int = 0) -> tuple[Bins, Release, np.ndarray, np.ndarray]:
    cells, labels = records(count, seed)
    layout = histogram_layout(GRIDS, CLASSES)
    one_way = released(histogram_codes(cells, GRIDS), labels, layout, stddev=stddev, seed=seed + 1)
    bins = bins_from(one_way, GRIDS, classes=CLASSES, max_bins=8)
    codes = np.column_stack([bin_of[cells[:, at]] for at, bin_of in enumerate(bins.maps)])
    return bins, released(codes, labels, all_pairs(bins.sizes, CLASSES), stddev=stddev, seed=seed + 2), codes, labels


def test_without_noise_targets_are_the_tables_of_the_records() -> None:
    bins, pairs, codes, labels = measured(3000, stddev=0.0)
    assert len(bins.sizes) == len(bins.maps) == len(bins.histograms) == 3
    targets = targets_from(bins, pairs, classes=CLASSES)
    starts = np.concatenate([[0], np.cumsum(bins.sizes)])
    for label in range(CLASSES):
        own = codes[labels == label]
        one_hot = np.zeros((len(own), starts[-1]))
        one_hot[np.arange(len(own))[:, None], own + starts[:-1]] = 1
        np.testing.assert_allclose(targets.one_way[label], one_hot.sum(axis=0), atol=1e-6)
        crossed = one_hot.T @ one_hot
        column = np.repeat(np.arange(3), bins.sizes)
        upper = column[:, None] < column[None, :]
        np.testing.assert_allclose(targets.pairs[label], np.where(upper, crossed, 0), atol=1e-6)
        assert np.array_equal(targets.pairs_precision > 0, upper)
    np.testing.assert_allclose(targets.label_counts, np.bincount(labels), atol=1e-3)


def test_the_precision_of_a_bin_is_that_of_the_sum_of_its_cells() -> None:
    bins, pairs, _, _ = measured(3000, stddev=4.0)
    targets = targets_from(bins, pairs, classes=CLASSES)
    starts = np.concatenate([[0], np.cumsum(bins.sizes)])
    for column, (binning, histogram) in enumerate(zip(bins.binnings, bins.histograms, strict=True)):
        for number in range(binning.n_bins):
            inside = np.flatnonzero(binning.bin_of == number)
            expected = 1 / (histogram.deviation(inside) ** 2 / CLASSES)
            assert targets.one_way_precision[starts[column] + number] == pytest.approx(expected)
    np.testing.assert_allclose(targets.pairs_precision[targets.pairs_precision > 0], 1 / 16.0)
    # A column that is counted once has the noise of the release in each cell.
    np.testing.assert_allclose(bins.histograms[2].covariance, 16.0 * np.eye(3))


def test_every_table_says_how_many_units_a_class_has_and_the_surer_ones_count_more() -> None:
    bins, pairs, _, _ = measured(3000, stddev=30.0)
    said = [(one.counts.sum(axis=1), one.deviation(slice(None)) ** 2 / CLASSES) for one in bins.histograms]
    tables = all_pairs(bins.sizes, CLASSES).split(pairs.counts)
    said += [(table.sum(axis=(1, 2)), pairs.variance * table[0].size) for table in tables]
    expected = sum(count / variance for count, variance in said) / sum(1 / variance for _, variance in said)
    np.testing.assert_allclose(targets_from(bins, pairs, classes=CLASSES).label_counts, expected)


@pytest.mark.statistical
def test_label_counts_are_near_the_truth_and_nearer_than_a_single_table_says() -> None:
    stddev, errors, single = 30.0, [], []
    for seed in range(40):
        bins, pairs, _, labels = measured(3000, stddev=stddev, seed=100 * seed)
        truth = np.bincount(labels)
        errors.append(targets_from(bins, pairs, classes=CLASSES).label_counts - truth)
        single.append(bins.histograms[0].counts.sum(axis=1) - truth)
    # 64 cells of deviation 30 have a sum of deviation 240; the coarse tables are far better. With 80 values a
    # deviation is known to 8 %.
    assert np.std(single) == pytest.approx(240, rel=0.4)
    assert np.std(errors) < 0.5 * np.std(single)
    assert abs(np.mean(errors)) < 5 * np.std(errors) / np.sqrt(80)


def test_label_counts_are_at_least_one() -> None:
    layout = histogram_layout(GRIDS, CLASSES)
    bins = bins_from(Release(np.full(layout.n_cells, -5.0), 1.0, EVENTS), GRIDS, classes=CLASSES, max_bins=8)
    pairs = Release(np.full(all_pairs(bins.sizes, CLASSES).n_cells, -5.0), 1.0, EVENTS)
    assert targets_from(bins, pairs, classes=CLASSES).label_counts.tolist() == [1.0, 1.0]


def test_one_column_has_targets_without_pairs() -> None:
    cells, labels = records(500)
    one = GRIDS[:1]
    layout = histogram_layout(one, CLASSES)
    release = released(histogram_codes(cells[:, :1], one), labels, layout, stddev=0.0, seed=0)
    bins = bins_from(release, one, classes=CLASSES, max_bins=8)
    targets = targets_from(bins, Release(np.zeros(0), 1.0, {}), classes=CLASSES)
    assert (targets.pairs_precision == 0).all()
    np.testing.assert_allclose(targets.label_counts, np.bincount(labels), atol=1e-6)


def test_bins_depend_on_the_release_alone() -> None:
    once, again = (measured(1000, stddev=5.0, seed=3)[0] for _ in range(2))
    for first, second in itertools.zip_longest(once.binnings, again.binnings):
        assert np.array_equal(first.bin_of, second.bin_of)
        assert np.array_equal(first.within, second.within)
