"""The generator is a mixture of products: its tables are what they are said to be, and rows follow them."""

import itertools
import json
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from common.models.generator import Generator, GeneratorShape, Outcome, draw_bins, initialise
from common.models.paths import PathHead
from common.models.sequences import Courses, SequenceShape

CPU = torch.device("cpu")
SIZES = (3, 1, 4)
SHAPE = GeneratorShape(SIZES, classes=2, latent=3, width=16, blocks=2)
STARTS = np.concatenate([[0], np.cumsum(SIZES)])


def strong(seed: int = 0, shape: GeneratorShape = SHAPE) -> Generator:
    """A generator whose columns depend much on z and on the label; a fresh one hardly looks at them."""
    generator = initialise(shape, seed=seed)
    with torch.no_grad():
        # z and the label come first among the features of either body.
        generator.heads.weight[:, : shape.latent] *= 12
        generator.heads.weight[:, shape.latent : 2 * shape.latent] *= 3
    return generator


def outcome_of(generator: Generator, rows: int, label: int, *, seed: int = 0) -> Outcome:
    noise = torch.randn(rows, generator.shape.noise, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return generator(noise, torch.full((rows,), label))


def shares_of(generator: Generator, rows: int, label: int, *, seed: int = 0) -> Tensor:
    return outcome_of(generator, rows, label, seed=seed).records


def draw_records(generator: Generator, labels: np.ndarray, *, seed: int, chunk: int = 8192) -> np.ndarray:
    """The records of a generator that has no windows."""
    records, windows = draw_bins(generator, labels, seed=seed, device=CPU, chunk=chunk)
    assert windows is None
    return records


@pytest.mark.parametrize("body", ["mlp", "attention"])
@pytest.mark.parametrize("sizes", [(3, 1, 4), (1,), (2,), (1, 1), (7, 2, 7, 5)])
def test_the_slice_of_each_column_sums_to_one(sizes: tuple[int, ...], body: Literal["mlp", "attention"]) -> None:
    generator = initialise(GeneratorShape(sizes, classes=3, latent=4, width=8, blocks=1, body=body), seed=1)
    latent = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 10
    outcome = generator(latent, torch.arange(50) % 3)
    assert outcome.courses is None
    assert outcome.shape.sizes == sizes
    shares = outcome.records
    assert shares.shape == (50, sum(sizes))
    assert (shares >= 0).all()
    for part in torch.split(shares, list(sizes), dim=1):
        torch.testing.assert_close(part.sum(dim=1), torch.ones(50))


def test_each_slice_is_the_softmax_of_its_own_logits() -> None:
    generator = strong()
    found: list[Tensor] = []
    generator.heads.register_forward_hook(lambda module, given, logits: found.append(logits))
    shares = shares_of(generator, 20, 1)
    expected = torch.cat([torch.softmax(part, dim=1) for part in torch.split(found[0], list(SIZES), dim=1)], dim=1)
    torch.testing.assert_close(shares, expected)


def test_a_pair_table_of_shares_is_the_average_over_all_joint_outcomes() -> None:
    shares = shares_of(strong(), 40, 0).double()
    # Slowly: the joint distribution of all columns, one z at a time, then summed to pairs.
    joint = np.zeros(SIZES)
    for row in shares.numpy():
        for outcome in itertools.product(*map(range, SIZES)):
            joint[outcome] += np.prod([row[STARTS[column] + at] for column, at in enumerate(outcome)]) / len(shares)
    table = (shares.T @ shares / len(shares)).numpy()
    for left, right in itertools.combinations(range(len(SIZES)), 2):
        (other,) = set(range(len(SIZES))) - {left, right}
        block = table[STARTS[left] : STARTS[left + 1], STARTS[right] : STARTS[right + 1]]
        np.testing.assert_allclose(block, joint.sum(axis=other), atol=1e-12)
    np.testing.assert_allclose(shares.mean(dim=0)[:3], joint.sum(axis=(1, 2)), atol=1e-12)


@pytest.mark.statistical
@pytest.mark.parametrize("label", [0, 1])
def test_rows_have_the_one_way_and_pair_tables_of_the_generator(label: int) -> None:
    rows = 300_000
    generator = strong()
    shares = shares_of(generator, rows, label, seed=99)
    bins = draw_records(generator, np.full(rows, label), seed=5)
    one_hot = np.zeros((rows, sum(SIZES)))
    one_hot[np.arange(rows)[:, None], bins + STARTS[:-1]] = 1
    drawn = one_hot.T @ one_hot / rows
    exact = (shares.T @ shares / rows).double().numpy()
    exact[np.diag_indices_from(exact)] = shares.mean(dim=0)  # a bin crossed with itself: its share
    # Both sides are means of as many terms in (0, 1): standard deviation at most sqrt(2 / 4 rows) = 0.0013. Six of
    # them over 37 cells: a false alarm in 10^7 seeds, and the seeds are fixed.
    tolerance = 6 * np.sqrt(0.5 / rows)
    for left, right in itertools.combinations_with_replacement(range(len(SIZES)), 2):
        block = (slice(STARTS[left], STARTS[left + 1]), slice(STARTS[right], STARTS[right + 1]))
        expected = np.diag(np.diag(exact[block])) if left == right else exact[block]
        np.testing.assert_allclose(drawn[block], expected, atol=tolerance)
    # The columns depend on each other by more than the tolerance, so that it is dependence that was compared.
    first, last = exact.diagonal()[:3], exact.diagonal()[4:]
    assert np.abs(exact[:3, 4:] - np.outer(first, last)).max() > 2 * tolerance


def test_rows_follow_their_labels() -> None:
    generator = strong()
    labels = np.arange(20_000) % 2
    bins = draw_records(generator, labels, seed=0)
    for label in (0, 1):
        expected = shares_of(generator, 20_000, label).mean(dim=0).numpy()[:3]
        found = np.bincount(bins[labels == label, 0], minlength=3) / 10_000
        np.testing.assert_allclose(found, expected, atol=6 * np.sqrt(0.25 / 10_000 + 0.25 / 20_000))
    both = [shares_of(generator, 20_000, label).mean(dim=0)[:3] for label in (0, 1)]
    assert (both[0] - both[1]).abs().max() > 0.1


def test_rows_are_codes_of_their_columns() -> None:
    bins = draw_records(strong(), np.arange(1000) % 2, seed=0)
    assert bins.dtype == np.int64
    assert bins.shape == (1000, 3)
    assert [set(column) for column in bins.T] == [{0, 1, 2}, {0}, {0, 1, 2, 3}]


def test_no_labels_give_no_rows() -> None:
    assert draw_records(strong(), np.array([], dtype=np.int64), seed=0).shape == (0, 3)


def test_more_labels_than_a_chunk_give_as_many_rows_in_their_order() -> None:
    labels = np.repeat([0, 1], [30, 41])
    bins = draw_records(strong(), labels, seed=0, chunk=16)
    assert bins.shape == (71, 3)
    whole = draw_records(strong(), labels[:16], seed=0, chunk=16)
    assert np.array_equal(bins[:16], whole)
    assert len({tuple(map(tuple, bins[at : at + 16])) for at in (0, 16)}) == 2


def test_a_seed_fixes_weights_and_rows_and_another_gives_others() -> None:
    once, again, other = (initialise(SHAPE, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert not torch.equal(once["heads.weight"], other["heads.weight"])
    labels = np.zeros(200, dtype=np.int64)
    rows = [draw_records(strong(), labels, seed=seed).tolist() for seed in (3, 3, 4)]
    assert rows[0] == rows[1] != rows[2]


ATTENTIVE = replace(SHAPE, body="attention", width=32)
# Windows of 5 steps: a numeric channel of 3 values and missing, categories of 2 and missing, and 2 never missing.
PATHS = SequenceShape(
    kind="paths",
    steps=5,
    blocks=((0, 2), (2, 5)),
    sizes=(4, 3, 2),
    missing=(True, True, False),
    ordered=(True, False, False),
    states=3,
)
STATES = replace(PATHS, kind="states")
# The last column says how many steps there are: 2 to 5.
LASTING = replace(SHAPE, sizes=(*SIZES, 4), sequence=STATES, length_column=3, fewest=2)
SHAPES = {
    "plain": SHAPE,
    "attention": ATTENTIVE,
    "paths": replace(SHAPE, sequence=PATHS),
    "states": replace(SHAPE, sequence=STATES),
    "lasting": LASTING,
    "lasting, perhaps empty": replace(LASTING, sizes=(4, *SIZES, 6), length_column=4, fewest=0, body="attention"),
    "lasting, the first column": replace(LASTING, sizes=(3, 2), length_column=0, fewest=3, sequence=PATHS),
}
WINDOWED = [name for name, shape in SHAPES.items() if shape.sequence]


@pytest.mark.parametrize("name", SHAPES)
def test_the_global_random_state_is_neither_read_nor_changed(name: str) -> None:
    drawn = []
    for state in (11, 12):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(state)
            before = torch.get_rng_state()
            generator = initialise(SHAPES[name], seed=3)
            rows, windows = draw_bins(generator, np.zeros(50, dtype=np.int64), seed=3, device=CPU)
            assert torch.equal(torch.get_rng_state(), before)
            parameters = {key: value.tolist() for key, value in generator.state_dict().items()}
            drawn.append((parameters, rows.tolist(), None if windows is None else windows.tolist()))
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("name", SHAPES)
def test_names_and_shapes_of_the_parameters_follow_from_the_shape_alone(name: str) -> None:
    shape = SHAPES[name]
    generator = initialise(shape, seed=0)
    shapes = {key: tuple(value.shape) for key, value in generator.state_dict().items()}
    assert shapes == {key: tuple(value.shape) for key, value in Generator(shape).state_dict().items()}
    assert shapes["heads.bias"] == (sum(shape.sizes),)
    # No buffer travels: nothing in it is learned.
    assert set(shapes) == set(dict(generator.named_parameters()))
    assert any(key.startswith("sequence.") for key in shapes) == (shape.sequence is not None)
    plain = json.loads(json.dumps(shape.as_dict()))
    assert plain["sizes"] == list(shape.sizes)
    assert {key: plain[key] for key in ("classes", "latent", "body", "length_column", "fewest")} == {
        key: getattr(shape, key) for key in ("classes", "latent", "body", "length_column", "fewest")
    }
    assert (plain["sequence"] or {}).get("sizes") == (list(shape.sequence.sizes) if shape.sequence else None)


def test_attention_is_between_the_tokens_of_a_row_and_never_between_rows() -> None:
    generator = strong(shape=ATTENTIVE)
    latent = torch.randn(6, SHAPE.latent, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6) % 2
    with torch.no_grad():
        together = generator(latent, labels).records
        alone = torch.cat([generator(latent[[row]], labels[[row]]).records for row in range(6)])
    torch.testing.assert_close(together, alone)
    assert {name.split(".")[1] for name in generator.state_dict() if name.startswith("body.")} == {"tokens", "layers"}


# --- windows


def test_a_row_needs_noise_for_its_latent_and_where_there_is_a_path_for_that() -> None:
    assert SHAPE.noise == SHAPES["states"].noise == LASTING.noise == SHAPE.latent
    paths = SHAPES["paths"]
    assert paths.sequence is not None
    sequence = paths.sequence

    def own(**changes: Any) -> int:
        """What channels need: all but the phases of the rhythms that fit in the window, two numbers each."""
        changed = replace(sequence, **changes)
        phases = 2 * sum(steps <= changed.steps for steps in (2, 3, 4, 6, 8, 12))
        return replace(paths, sequence=changed).noise - paths.latent - phases

    # As many channels again need as much more; as many steps again, all but the levels that they share.
    assert own(sizes=(4, 3, 2) * 2, missing=(True,) * 6) == 2 * own() > 0
    needed = [own(steps=steps) for steps in (sequence.steps, 10, 20)]
    assert needed[2] - needed[1] == 2 * (needed[1] - needed[0])
    assert needed[1] < 2 * needed[0]
    with pytest.raises(RuntimeError):
        strong(shape=paths)(torch.zeros(2, paths.noise + 1), torch.zeros(2, dtype=torch.int64))


def test_records_come_from_the_latent_alone_and_windows_from_all_of_the_noise() -> None:
    shape = SHAPES["paths"]
    generator, labels = strong(shape=shape), torch.zeros(3, dtype=torch.int64)
    noise = torch.randn(3, shape.noise, generator=torch.Generator().manual_seed(0))
    for place in (0, shape.latent - 1, shape.latent, shape.noise - 1):
        other = noise.clone()
        other[1, place] += 1.0
        with torch.no_grad():
            before, after = (generator(one, labels) for one in (noise, other))
        assert before.courses is not None
        assert after.courses is not None
        changed = (before.records != after.records).any(dim=1)
        assert changed.tolist() == [False, place < shape.latent, False]
        changed = (before.courses.levels != after.courses.levels).flatten(1).any(dim=1)
        assert changed.tolist() == [False, True, False]


def courses_of(generator: Generator, rows: int, label: int, *, seed: int = 0) -> tuple[Tensor, Courses]:
    outcome = outcome_of(generator, rows, label, seed=seed)
    assert outcome.courses is not None
    return outcome.records, outcome.courses


@pytest.mark.parametrize("name", WINDOWED)
def test_windows_are_codes_of_their_channels_up_to_the_length_that_the_record_says(name: str) -> None:
    shape = SHAPES[name]
    records, windows = draw_bins(strong(shape=shape), np.arange(400) % 2, seed=0, device=CPU)
    assert windows is not None
    assert records.dtype == windows.dtype == np.int64
    assert windows.shape == (400, 5, 3)
    lengths = np.full(400, 5)
    if shape.length_column is not None:
        lengths = shape.fewest + records[:, shape.length_column]
        assert len(set(lengths)) == shape.sizes[shape.length_column]
    ended = np.arange(5) >= lengths[:, None]
    assert ((windows == -1) == ended[:, :, None]).all()
    assert [set(windows[~ended][:, channel]) for channel in range(3)] == [{0, 1, 2, 3}, {0, 1, 2}, {0, 1}]


@pytest.mark.parametrize("name", WINDOWED)
def test_no_labels_give_no_windows(name: str) -> None:
    records, windows = draw_bins(strong(shape=SHAPES[name]), np.array([], dtype=np.int64), seed=0, device=CPU)
    assert windows is not None
    assert records.shape == (0, len(SHAPES[name].sizes))
    assert windows.shape == (0, 5, 3)
    assert windows.dtype == np.int64


@pytest.mark.parametrize("name", WINDOWED)
def test_records_and_windows_stay_together_over_chunks(name: str) -> None:
    labels = np.repeat([0, 1], [30, 41])
    generator = strong(shape=SHAPES[name])
    records, windows = draw_bins(generator, labels, seed=0, device=CPU, chunk=16)
    first = draw_bins(generator, labels[:16], seed=0, device=CPU, chunk=16)
    assert windows is not None
    assert first[1] is not None
    assert windows.shape == (71, 5, 3)
    assert np.array_equal(records[:16], first[0])
    assert np.array_equal(windows[:16], first[1])


@pytest.mark.parametrize("name", WINDOWED)
def test_the_chance_of_each_length_is_that_of_its_bin_in_the_record(name: str) -> None:
    shape = SHAPES[name]
    records, courses = courses_of(strong(shape=shape), 20, 1)
    lengths = torch.zeros(20, 6)
    if shape.length_column is None:
        lengths[:, 5] = 1
    else:
        begin = sum(shape.sizes[: shape.length_column])
        for at in range(shape.sizes[shape.length_column]):
            lengths[:, shape.fewest + at] = records[:, begin + at]
    torch.testing.assert_close(courses.weights.last, lengths[:, 1:])
    for step in range(5):
        torch.testing.assert_close(courses.weights.alive[:, step], lengths[:, step + 1 :].sum(dim=1))


@pytest.mark.statistical
@pytest.mark.parametrize("name", WINDOWED)
def test_windows_follow_the_generator_and_go_with_their_records(name: str) -> None:
    rows, shape = 100_000, SHAPES[name]
    generator = strong(shape=shape)
    with torch.no_grad():
        # The channels look at the latent too, as the columns do.
        head = generator.sequence
        for parameter in (head.level, head.trend) if isinstance(head, PathHead) else (head.start, head.pull):
            parameter.weight[:, : shape.latent] *= 12
    records, courses = courses_of(generator, rows, 1, seed=99)
    drawn, windows = draw_bins(generator, np.full(rows, 1), seed=5, device=CPU)
    assert windows is not None
    starts = np.concatenate([[0], np.cumsum(shape.sizes)])[:-1]
    tolerance = 6 * np.sqrt(0.5 / rows)  # as for tables of records above
    farthest = 0.0
    for step, (channel, offset) in itertools.product((0, 4), ((0, 0), (1, 4), (2, 7))):
        lasting = courses.levels[:, step] * courses.weights.alive[:, step, None]
        for value in range((4, 3, 2)[channel]):
            seen = windows[:, step, channel] == value
            expected = lasting[:, offset + value]
            assert seen.mean() == pytest.approx(expected.mean().item(), abs=tolerance)
            # Together with each bin of a column other than the length, which says so itself.
            column = 0 if shape.length_column != 0 else 1
            for at in range(shape.sizes[column]):
                share = records[:, starts[column] + at]
                both = (seen & (drawn[:, column] == at)).mean()
                assert both == pytest.approx((expected * share).mean().item(), abs=tolerance)
                farthest = max(farthest, abs(both - seen.mean() * share.mean().item()))
    # Record and window depend on each other by more than the tolerance.
    assert farthest > tolerance
