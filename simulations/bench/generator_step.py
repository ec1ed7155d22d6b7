"""How fast one step of the generator is: `python simulations/bench/generator_step.py`.

A step draws latents, computes every expected table and its distance to releases, goes back and updates. Beside it its
floor: the matrix products of the same steps alone, forward and back, as they were called. Releases are random.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits
from torch.utils._python_dispatch import TorchDispatchMode

from common.commands import Commands
from common.models.critics import make_cluster
from common.models.generator import GeneratorShape, initialise
from common.models.sequences import SequenceShape
from common.models.targets import Groups, Target, Targets, table_shapes
from common.models.training import Stretch, train
from simulations.bench.timing import best

_CPU = torch.device("cpu")
_STEPS = 5
_PRODUCTS = {torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm}

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
    table = Table("generator", "ms a step", "latents per second", "its products alone, ms", "times that")
    with threadpool_limits(1):
        torch.set_num_threads(1)
        for case, windows in cases.items():
            shape = GeneratorShape((bins,) * columns, 2, 32, 256, 2, "mlp", windows)
            run = step_of(shape, batch, steps=_STEPS)
            step, floor = (best(one, repeats=repeats) / _STEPS for one in (run, floor_of(run)))
            table.add_row(
                case, f"{1000 * step:.0f}", f"{2 * batch / step:,.0f}", f"{1000 * floor:.0f}", f"{step / floor:.1f}"
            )
    Console().print(table)


def step_of(shape: GeneratorShape, batch: int, *, steps: int) -> Callable[[], object]:
    """So many steps of a generator with a batch of latents a class, towards random releases of all its tables."""
    channels = sum(shape.sequence.sizes) if shape.sequence else 0
    columns = np.repeat(np.arange(len(shape.sizes)), shape.sizes)
    groups = Groups(np.arange(sum(shape.sizes)), np.arange(channels), columns)
    random = np.random.default_rng(0)
    tables = {
        name: Target(1000 * random.random((shape.classes, *dense)), np.full(dense, 1e-4))
        for name, dense in table_shapes(shape, groups).items()
    }
    cluster = make_cluster(Targets(tables, np.full(shape.classes, 1000.0), groups), None, None, _CPU)
    generator = initialise(shape, seed=0)
    return lambda: train(generator, cluster, Stretch(steps, 1e-3, 1e-3, batch, 0), _CPU)


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps every matrix product that is called, with what it was called with."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.called: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func.overloadpacket in _PRODUCTS:
            self.called.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def floor_of(step: Callable[[], object]) -> Callable[[], None]:
    """The matrix products of a step and nothing else."""
    with _Products() as products:
        step()

    @torch.no_grad()
    def run() -> None:
        for func, args, kwargs in products.called:
            func(*args, **kwargs)

    return run


if __name__ == "__main__":
    app()
