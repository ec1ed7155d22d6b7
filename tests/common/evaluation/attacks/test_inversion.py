"""Reconstruction of people from a generator, and of rows from a synthetic table."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
import torch

from common.data.encoding import make_grid
from common.data.queries import Coded
from common.data.schema import ContinuousColumn, IntegerColumn
from common.data.windows import WindowedTable
from common.evaluation.attacks.coded import encode, join
from common.evaluation.attacks.inversion import (
    Extraction,
    Inversion,
    _draw_known,
    _Field,
    _fields,
    _guesses,
    _Reader,
    extract,
    invert,
)
from common.evaluation.attacks.white_box import Answers, Published, ask
from common.evaluation.figures import Population, most_advantage
from common.models.generator import initialise
from common.study import Study
from tests.common.evaluation.attacks.memories import CPU, STEPS, draw, make_bins, make_study, remember, shape_for

LAYOUTS = (None, "grid", "events")
PLAIN = make_study()


def reconstruct(
    published: Published, members: Population, controls: Population, study: Study = PLAIN, **more: object
) -> Inversion:
    given = {"epsilon": None, "delta": 1e-6, "seed": 0, "most": 1000, "latents": 512, "device": CPU}
    return invert(published, members, controls, study, **(given | more))  # type: ignore[arg-type]


def reader_of(published: Published, study: Study, latents: int) -> _Reader:
    answers = ask(published.generator, latents=latents, seed=0, device=CPU)
    shares = torch.as_tensor(published.label_counts / published.label_counts.sum()).float()
    return _Reader(published, answers, _fields(published, study, CPU), shares)


def random_generator(study: Study, counts: Sequence[float] = (3.0, 1.0)) -> Published:
    bins = make_bins(study)
    shape = dataclasses.replace(shape_for(study, bins), latent=3)
    return Published(initialise(shape, seed=1), bins, np.array(counts))


# Model inversion


@pytest.mark.parametrize("layout", LAYOUTS)
def test_who_is_remembered_is_reconstructed(layout: str | None) -> None:
    study = make_study(layout)
    members, controls = (draw(study, 60, seed) for seed in range(2))
    found = reconstruct(remember(study, members), members, controls, study)
    assert found.members.value > 0.8
    assert found.excess.low > 0.3
    assert found.excess.value == pytest.approx(found.members.value - found.controls.value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_in_excess_where_others_are_remembered(layout: str | None) -> None:
    study = make_study(layout)
    members, controls, others = (draw(study, 100, seed) for seed in (10, 11, 12))
    found = reconstruct(remember(study, others), members, controls, study)
    assert found.excess.low <= 0 <= found.excess.high
    assert found.excess.chance == 0


def test_more_memory_is_more_excess() -> None:
    members, controls = (draw(PLAIN, 100, seed) for seed in range(2))
    excess = [
        reconstruct(remember(PLAIN, members, certain=certain), members, controls).excess.value
        for certain in (0.0, 0.1, 0.5, 1.0)
    ]
    assert excess == sorted(excess)


def test_a_generator_that_always_says_the_same_says_what_is_said_of_anybody() -> None:
    members, controls = (draw(PLAIN, 60, seed) for seed in range(2))
    table = members.table.take(np.zeros(3, dtype=np.int64))
    table.records["risk"] = pd.Categorical(["low", "high", "high"], categories=["low", "high"])
    found = reconstruct(remember(PLAIN, Population(table, np.arange(3)), certain=0.5), members, controls)
    assert found.members.value == pytest.approx(found.naive.value)


def test_what_many_have_is_guessed_of_whom_nothing_is_known() -> None:
    members, controls = (draw(PLAIN, 400, seed) for seed in range(2))
    published = remember(PLAIN, members)
    blind = reader_of(published, PLAIN, 4096).guess_blindly()
    for field, guess in zip(_fields(published, PLAIN, CPU), blind, strict=True):
        if field.grid.edges is None:
            counts = members.table.records[field.grid.name].value_counts(dropna=False, normalize=True)
            value = field.places[guess[0]]
            guessed = np.nan if np.isnan(value) else field.grid.column.values[int(value)]  # type: ignore[union-attr]
            assert counts[guessed] > counts.max() - 0.03
    found = reconstruct(published, members, controls, latents=4096)
    assert 0.2 < found.naive.value < found.controls.value


@pytest.mark.parametrize("layout", [None, "grid"])
def test_every_guess_is_the_likeliest_value_given_what_is_known(layout: str | None) -> None:
    """Against sums over all labels and latents, written out."""
    study = make_study(layout)
    published = random_generator(study)
    reader = reader_of(published, study, 5)
    answers = ask(published.generator, latents=5, seed=0, device=CPU)
    coded = join(encode(draw(study, 6, 0).table, study), published.bins.maps)
    given = _draw_known(6, reader.fields, 5, np.random.default_rng(0))
    guesses = reader.guess(coded, given)
    starts = np.cumsum([0, *published.bins.sizes])
    before = sum(published.generator.shape.sizes)
    for row in range(6):
        known = [field for field, one in zip(reader.fields, given[row], strict=True) if one]
        weights = written_out(published, answers, coded, row, known)  # (classes, latents)
        for field, guess in zip(reader.fields, guesses, strict=True):
            bins = slice(starts[field.axis], starts[field.axis + 1])
            if field.axis < 0:
                assert guess[row] == weights.sum(axis=1).argmax()
            elif field.grid.edges is not None:
                continue  # the guess of a number is not the likeliest bin
            elif field.channel is None:
                chances = sum(weights[label] @ answers[label].records[:, bins].numpy() for label in (0, 1))
                assert guess[row] == np.argmax(chances)
            else:
                levels = [own.levels[:, :, bins.start - before : bins.stop - before].numpy() for own in answers]  # type: ignore[index]
                chances = sum(np.tensordot(weights[label], levels[label], axes=1) for label in (0, 1))
                assert (guess[row] == np.argmax(chances, axis=-1)).all()


def written_out(
    published: Published, answers: tuple[Answers, ...], coded: Coded, row: int, known: list[_Field]
) -> np.ndarray:
    """Chance of each label and latent given what is known of a row, up to a factor, (classes, latents)."""
    shape = published.generator.shape
    starts = np.cumsum([0, *published.bins.sizes])
    weights = np.zeros((2, 5))
    for label, latent in np.ndindex(2, 5):
        own, chance = answers[label], published.label_counts[label]
        for field in known:
            if field.axis < 0:
                chance *= coded.labels[row] == label
            elif field.channel is None:
                chance *= float(own.records[latent, starts[field.axis] + coded.records[row, field.axis]])
            else:
                level = own.levels[latent].mean(dim=0)  # type: ignore[index]
                begin = starts[field.axis] - sum(shape.sizes)
                for code in coded.windows[row, :, field.channel]:  # type: ignore[index]
                    chance *= float(level[begin + code]) ** (1 / STEPS)
        weights[label, latent] = chance
    return weights


def test_what_is_not_known_does_not_matter() -> None:
    study = make_study("grid")
    published = remember(study, draw(study, 30, 0), certain=0.5)
    reader = reader_of(published, study, 64)
    coded = join(encode(draw(study, 20, 1).table, study), published.bins.maps)
    given = _draw_known(20, reader.fields, 5, np.random.default_rng(0))
    records, windows, labels = coded.records.copy(), coded.windows.copy(), coded.labels.copy()  # type: ignore[union-attr]
    for field, known in zip(reader.fields, given.T, strict=True):
        if field.axis < 0:
            labels[~known] = 1 - labels[~known]
        elif field.channel is None:
            records[~known, field.axis] = 0
        else:
            windows[~known, :, field.channel] = 0
    other = dataclasses.replace(coded, records=records, windows=windows, labels=labels)
    for one, same in zip(reader.guess(coded, given), reader.guess(other, given), strict=True):
        assert (one == same).all()


def test_numbers_are_right_near_the_truth_on_their_scale_and_missing_where_it_was_guessed() -> None:
    column = ContinuousColumn(type="continuous", min=0, max=999, scale="log", missing=True)
    grid = make_grid("x", column)
    places, chance, near = _guesses(grid, 0.05)
    assert near == pytest.approx(0.05 * np.log(1000), rel=1e-6)
    assert np.isnan(places[-1])
    assert chance[-1].tolist() == [*[0.0] * 101, 1.0]
    # A guess at a cell's middle is right for all of it; a cell at the edge of what is near, in part.
    middle = int(np.argmax(chance[64]))
    assert chance[64, middle] == 1
    assert 0 < chance[:, middle].sum() * (1 / 128) <= 0.1 + 1 / 128
    assert chance[:-1, -1].max() == 0


def test_a_cell_of_whole_numbers_is_its_numbers_alone() -> None:
    grid = make_grid("x", IntegerColumn(type="integer", min=0, max=20))
    places, chance, _ = _guesses(grid, 0.05)
    at_seven = int(np.argmin(np.abs(places - 7)))
    assert [cell for cell in range(21) if chance[cell, at_seven] == 1] == [6, 7, 8]


def test_the_best_guess_of_a_number_lies_where_most_chance_is_near_not_in_the_mean() -> None:
    study = make_study()
    bins, sum_at = make_bins(study), list(study.features).index("sum")
    shape = shape_for(study, bins)
    published = Published(initialise(shape, seed=0), bins, np.ones(2))
    fields = _fields(published, study, CPU)
    field = next(field for field in fields if field.axis == sum_at)
    chances = torch.tensor([0.35, 0, 0, 0, 0, 0, 0, 0.65])
    best = float(field.places[int((chances @ field.right[0]).argmax())])
    assert 7 <= best <= 8


def test_the_label_is_never_known_alone() -> None:
    fields = reader_of(random_generator(PLAIN), PLAIN, 2).fields
    random = np.random.default_rng(0)
    one = _draw_known(2000, fields, 1, random)
    assert (one.sum(axis=1) == 1).all()
    assert not one[:, 0].any()
    assert one[:, 1:].any(axis=0).all()
    four = _draw_known(2000, fields, 4, random)
    assert (four.sum(axis=1) == 4).all()
    assert four[:, 0].mean() == pytest.approx(4 / len(fields), abs=0.05)


def test_four_in_ten_are_known_and_the_number_of_steps_is_not_among_them() -> None:
    for layout, fields in ((None, 11), ("grid", 13), ("events", 13)):
        study = make_study(layout)
        members = draw(study, 30, 0)
        found = reconstruct(remember(study, members), members, members, study)
        assert (found.known, found.unknown) == (round(0.4 * fields), fields - round(0.4 * fields))


def test_a_unit_counts_once_however_many_rows_it_has() -> None:
    members = draw(PLAIN, 40, 0, records=3)
    # One unit, with most of the rows, is remembered.
    rows = np.concatenate([np.arange(3), np.arange(3, 120)])
    units = np.concatenate([np.zeros(60, np.int64), 1 + np.arange(60)])
    some = Population(members.table.take(rows), units)
    published = remember(PLAIN, some.take(np.arange(1)))
    found = reconstruct(published, some, draw(PLAIN, 40, 9))
    assert found.members.n == 61
    assert found.members.value < 0.5


def test_the_ceiling_is_that_of_the_claim() -> None:
    members, controls = (draw(PLAIN, 30, seed) for seed in range(2))
    found = reconstruct(remember(PLAIN, members), members, controls, epsilon=1.0)
    assert found.excess.ceiling == most_advantage(epsilon=1.0, delta=1e-6)
    assert reconstruct(remember(PLAIN, members), members, controls).excess.ceiling is None


def test_nobody_to_reconstruct_is_said() -> None:
    members, nobody = draw(PLAIN, 30, 0), draw(PLAIN, 0, 0)
    found = reconstruct(remember(PLAIN, members), members, nobody)
    assert found.members.value is not None
    for figure in (found.controls, found.excess):
        assert figure.value is None
        assert figure.reason


def test_windows_without_a_step_are_left_out() -> None:
    study = make_study("events")
    members = draw(study, 30, 0)
    empty = WindowedTable(
        members.table.records, np.full_like(members.table.values, np.nan), np.zeros_like(members.table.lengths)
    )
    nobody = Population(empty, members.units)
    found = reconstruct(remember(study, nobody), nobody, members, study)
    assert 0.8 < found.members.value <= 1


def test_the_same_seed_gives_the_same_figures() -> None:
    members, controls = (draw(PLAIN, 30, seed) for seed in range(2))
    published = remember(PLAIN, members, certain=0.3)
    assert reconstruct(published, members, controls) == reconstruct(published, members, controls)
    assert reconstruct(published, members, controls) != reconstruct(published, members, controls, seed=1)


# Extraction


def stack(*tables: WindowedTable) -> WindowedTable:
    return WindowedTable(
        pd.concat([table.records for table in tables], ignore_index=True),
        np.concatenate([table.values for table in tables]),
        np.concatenate([table.lengths for table in tables]),
    )


def record(found: dict[str, Extraction]) -> Extraction:
    return found["record"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_copies_of_members_are_counted_as_such(layout: str | None) -> None:
    study = make_study(layout)
    members, controls, others = (draw(study, 50, seed) for seed in range(3))
    found = extract(stack(members.table.take(np.arange(20)), others.table), members, controls, study, seed=0)
    assert set(found) == ({"record"} if layout is None else {"record", "record_and_window"})
    for one in found.values():
        assert one.members.value == pytest.approx(20 / 50, abs=0.03)
        assert one.synthetic_of_members.value == pytest.approx(20 / 70, abs=0.02)
        assert one.per_100k == pytest.approx(100_000 * 20 / 70, rel=0.1)
        assert one.synthetic_of_controls.value == one.controls.value == 0


def test_copies_are_counted_of_as_many_members_as_there_are_controls() -> None:
    members, controls = draw(PLAIN, 200, 0), draw(PLAIN, 50, 1)
    one = record(extract(members.table, members, controls, PLAIN, seed=0))
    assert one.members.value == 1
    assert one.synthetic_of_members.value == pytest.approx(50 / 200, abs=0.01)
    assert one.per_100k == pytest.approx(100_000, rel=0.02)


def test_a_row_that_two_units_have_points_at_neither() -> None:
    members, controls = draw(PLAIN, 30, 0), draw(PLAIN, 30, 1)
    shared = Population(stack(controls.table, members.table.take(np.arange(5))), np.arange(35))
    one = record(extract(members.table, members, shared, PLAIN, seed=0))
    assert (one.members.n, one.controls.n) == (25, 30)
    assert one.synthetic_of_controls.value == 0
    twice = Population(stack(members.table, members.table.take(np.arange(4))), np.append(np.arange(30), [1, 0, 2, 3]))
    # Unit 0 and 1 have each other's rows; units 2 and 3 have theirs twice.
    assert record(extract(members.table, twice, controls, PLAIN, seed=0)).members.n == 28


def test_a_window_that_differs_in_one_step_is_not_the_same() -> None:
    study = make_study("grid")
    members, controls = draw(study, 30, 0), draw(study, 30, 1)
    values = members.table.values.copy()
    values[:, 3, 0] = (values[:, 3, 0] + 1) % 5
    found = extract(dataclasses.replace(members.table, values=values), members, controls, study, seed=0)
    assert found["record"].members.value == 1
    assert found["record_and_window"].members.value == 0


def test_numbers_are_equal_as_they_are_written_and_without_decimals_by_cell() -> None:
    members, controls = draw(PLAIN, 30, 0), draw(PLAIN, 30, 1)

    def share(study: Study, added: float) -> float | None:
        table = members.table.records.copy()
        table["sum"] = (table["sum"] + added).clip(0, 8)
        return record(extract(WindowedTable.without_windows(table), members, controls, study, seed=0)).members.value

    assert share(PLAIN, 1e-9) == 1
    assert share(PLAIN, 0.1) < 0.1
    columns = PLAIN.model_dump(mode="json", by_alias=True)["columns"]
    rough = make_study(columns=columns | {"sum": {"type": "continuous", "min": 0, "max": 8, "cells": 8}})
    assert 0.7 < share(rough, 0.1) < 1


def test_missing_equals_missing_alone() -> None:
    members, controls = draw(PLAIN, 40, 0), draw(PLAIN, 40, 1)
    absent = members.table.records["age"].isna()
    assert absent.any()
    table = members.table.records.copy()
    table["age"] = table["age"].fillna(0)
    one = record(extract(WindowedTable.without_windows(table), members, controls, PLAIN, seed=0))
    assert one.members.value == pytest.approx(1 - absent.mean())


def test_nothing_to_look_in_is_said() -> None:
    members, controls = draw(PLAIN, 30, 0), draw(PLAIN, 0, 0)
    one = record(extract(members.table.take(np.arange(0)), members, controls, PLAIN, seed=0))
    assert one.per_100k is None
    assert one.synthetic_of_members.reason
    assert one.controls.reason
