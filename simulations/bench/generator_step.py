"""How fast one step of the generator is: `python simulations/bench/generator_step.py`.

A step draws latents, computes every expected table and its distance to releases, goes back and updates. Beside it, on
the same shapes, its floor: the products of the tables of pairs alone, forward and back. Releases are random.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from common.commands import Commands
from common.models.critics import Joins, make_cluster
from common.models.generator import GeneratorShape, initialise
from common.models.sequences import SequenceShape
from common.models.targets import Groups, Target, Targets, table_shapes
from common.models.training import Stretch, train
from simulations.bench.timing import best

_CPU = torch.device("cpu")
_STEPS = 5

app = Commands()


@app.command()
def main(
    *,
    batch: Annotated[int, typer.Option(help="Latents a class; even.")] = 256,
    columns: Annotated[int, typer.Option(help="Columns of a record.")] = 22,
    bins: Annotated[int, typer.Option(help="Bins of each column.")] = 20,
    channels: Annotated[int, typer.Option(help="Channels of a window.")] = 8,
    channel_bins: Annotated[int, typer.Option(help="Bins of each channel, one of them missing.")] = 15,
    steps: Annotated[int, typer.Option(help="Steps of a window.")] = 24,
    repeats: Annotated[int, typer.Option(help="The best counts.")] = 3,
) -> None:
    """Time one step of the generator."""
    ends = [steps * part // 4 for part in range(5)]

    def sequence(kind: Literal["paths", "states"]) -> SequenceShape:
        sizes, missing, ordered = (channel_bins,) * channels, (True,) * channels, (True,) * channels
        return SequenceShape(kind, steps, tuple(pairwise(ends)), sizes, missing, ordered, 32)

    cases = {"records": None, "records and grids": sequence("paths"), "records and events": sequence("states")}
    table = Table("generator", "ms a step", "latents per second", "times the products of pairs")
    with threadpool_limits(1):
        torch.set_num_threads(1)
        for case, windows in cases.items():
            shape = GeneratorShape((bins,) * columns, 2, 32, 256, 2, "mlp", windows)
            runs = (_step_of(shape, batch), _floor_of(shape, batch))
            step, floor = (best(run, repeats=repeats) / _STEPS for run in runs)
            table.add_row(case, f"{1000 * step:.0f}", f"{2 * batch / step:,.0f}", f"{step / floor:.1f}")
    Console().print(table)


def _step_of(shape: GeneratorShape, batch: int) -> Callable[[], object]:
    channels = sum(shape.sequence.sizes) if shape.sequence else 0
    groups = Groups(np.arange(sum(shape.sizes)), np.arange(channels))
    random = np.random.default_rng(0)
    tables = {
        name: Target(1000 * random.random((shape.classes, *dense)), np.full(dense, 1e-4))
        for name, dense in table_shapes(shape, groups).items()
    }
    cluster = make_cluster(Targets(tables, np.full(shape.classes, 1000.0), groups), None, None, _CPU)
    generator = initialise(shape, seed=0)
    return lambda: train(generator, cluster, Stretch(_STEPS, 1e-3, 1e-3, batch, 0), _CPU)


def _floor_of(shape: GeneratorShape, batch: int) -> Callable[[], None]:
    """The products of pairs of columns, of columns with channels, and of pairs of channels in every step."""
    joins = Joins(Groups(np.arange(sum(shape.sizes)), np.arange(0)), _CPU)
    sides = [torch.rand(2 * shape.classes, batch // 2, joins.records.shape[1])]
    if shape.sequence is not None:
        bins, parts = sum(shape.sequence.sizes), 2 * shape.classes
        one_step = shape.sequence.steps if shape.sequence.kind == "paths" else shape.sequence.states
        sides.append(torch.rand(parts, batch // 2 * one_step, bins))

    def run() -> None:
        for _ in range(_STEPS):
            for side in sides:
                left = side.clone().requires_grad_()
                (left.transpose(1, 2) @ left).sum().backward()  # type: ignore[no-untyped-call]

    return run


if __name__ == "__main__":
    app()
