"""Windows of different lengths: what a generator expects, draws and shows agrees with the length in its record."""

import numpy as np
import pytest
import torch

from common.data.queries import Coded, Counter, Family, catalogue, layout_of
from common.data.schema import CategoricalColumn
from common.data.windows import TimeColumn, Windows
from common.models.critics import Joins, expectations, relaxed
from common.models.generator import Generator, GeneratorShape, draw_bins, initialise
from common.models.sequences import SequenceShape
from common.models.targets import Groups

CPU = torch.device("cpu")
STEPS = 3
SEQUENCE = SequenceShape("states", STEPS, ((0, 1), (1, 3)), (3, 2), (True, False), (False, False), states=3)


def generator_of(fewest: int) -> Generator:
    """One that was pushed away from where it begins: lengths, columns and steps hang together."""
    sizes = (2, STEPS + 1 - fewest)
    shape = GeneratorShape(
        sizes, classes=2, latent=2, width=8, blocks=1, sequence=SEQUENCE, length_column=1, fewest=fewest
    )
    generator = initialise(shape, seed=1)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.mul_(3.0)
    return generator


def windows_of(fewest: int) -> Windows:
    columns = {
        "kind": CategoricalColumn(type="categorical", categories=("a", "b"), missing=True),
        "side": CategoricalColumn(type="categorical", categories=("l", "r")),
    }
    return Windows(
        layout="events",
        length=STEPS,
        time=TimeColumn(column="t"),
        channels=columns,
        empty="allow" if fewest == 0 else "refuse",
    )


@pytest.mark.statistical
@pytest.mark.parametrize("fewest", [0, 1])
def test_every_expected_table_is_that_of_many_draws(fewest: int) -> None:
    generator, windows = generator_of(fewest), windows_of(fewest)
    sizes = (*generator.shape.sizes, *SEQUENCE.sizes)
    maps = [np.arange(size) for size in sizes]
    rows = 60_000
    labels = np.repeat([0, 1], rows)
    records, drawn = draw_bins(generator, labels, seed=3, device=CPU)
    assert drawn is not None
    lengths = (drawn[:, :, 0] >= 0).sum(axis=1)
    assert np.array_equal(lengths, records[:, 1] + fewest)
    queries = catalogue(2, windows)
    layout = layout_of(queries, sizes, 2)
    counter = Counter(Coded(labels, records, drawn, lengths), windows, np.full(2 * rows, 720_720))
    classes = torch.from_numpy(np.repeat([0, 1], 20_000))
    latent = torch.randn(len(classes), 2, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = expectations(generator(latent, classes), 2, Joins(Groups.of(maps, 2), CPU))
    starts = {axis: sum(sizes[:axis]) if axis < 2 else sum(sizes[2:axis]) for axis in range(4)}
    for number, (query, shape) in enumerate(zip(queries, layout.shapes, strict=True)):
        if query.family not in (Family.PAIR, Family.COURSE, Family.TOGETHER):
            continue
        hits = counter.hits(query, layout, number)
        cells = np.bincount(hits.cells - layout.offsets[number], weights=hits.weights, minlength=int(np.prod(shape)))
        counted = cells.reshape(shape) / 720_720 / rows
        left, right = (slice(starts[axis], starts[axis] + sizes[axis]) for axis in query.axes)
        # Both sides are means over latents: six standard errors of the shorter one; what never happens has chance 0.
        room = 6 * np.sqrt(counted * (1 - counted) / 20_000) + 1e-4
        assert (np.abs(expected[query.family][:, left, right].numpy() - counted) < room).all(), query


@pytest.mark.parametrize("fewest", [0, 1])
def test_a_relaxed_window_has_as_many_steps_as_its_relaxed_record_says(fewest: int) -> None:
    generator = generator_of(fewest)
    labels = torch.arange(2).repeat_interleave(500)
    latent = torch.randn(len(labels), 2, generator=torch.Generator().manual_seed(5))
    records, steps = relaxed(generator(latent, labels), torch.Generator().manual_seed(6))
    assert steps is not None
    said = records[:, 2:].argmax(dim=1) + fewest
    for channel in (slice(0, 3), slice(3, 5)):
        there = steps[:, :, channel].sum(dim=2)
        assert torch.allclose(there, (torch.arange(STEPS) < said[:, None]).float(), atol=1e-5)
    assert len(said.unique()) > 1
    steps[:, -1].sum().backward()
    assert generator.heads.weight.grad is not None
    assert generator.heads.weight.grad.abs().sum() > 0
