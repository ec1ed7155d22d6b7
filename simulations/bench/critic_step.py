"""How fast the real half of one critic step is: `python simulations/bench/critic_step.py`.

Compared on one network, on random one-hot units: our clipped gradients in integers, checked and summed as a release
does it (noise not drawn); plain autograd of the whole batch, without clipping; and Opacus' hooks with its own clipping.
"""

import json
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import numpy as np
import torch
import typer
from opacus import GradSampleModule  # type: ignore[import-untyped]
from opacus.optimizers import DPOptimizer  # type: ignore[import-untyped]
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits
from torch import Tensor

from common.commands import Commands
from common.models.neural import (
    GRADIENT_SCALE,
    CriticShape,
    NeuralCritic,
    clipped_factors,
    initialise_critic,
    real_loss,
)
from common.privacy.vectors import VectorContributions, VectorLayer, VectorMechanism

_BINS_OF_A_COLUMN = 10
# Each method runs at the size that suits it best.
_PLAIN_BATCHES = (256, 1024, 4096, 16384)
_OPACUS_BATCHES = (32, 128, 512)

_Units = tuple[Tensor, Tensor | None, Tensor]

app = Commands()


@dataclass(frozen=True)
class Timing:
    """The best of several repeats: seconds of processor time for one pass over all units."""

    case: str
    method: str
    units: int
    seconds: float


@app.command()
def main(
    *,
    units: Annotated[int, typer.Option(help="Units at the site.")] = 10_000,
    steps: Annotated[int, typer.Option(help="Steps of a window.")] = 24,
    record_bins: Annotated[int, typer.Option(help="One-hot length of the static columns.")] = 250,
    step_bins: Annotated[int, typer.Option(help="One-hot length of the channels at one step.")] = 90,
    width: Annotated[int, typer.Option(help="Width of the critic.")] = 16,
    repeats: Annotated[int, typer.Option(help="The best counts.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Time the real half of one critic step."""
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")  # it is of no consequence here
        torch.set_num_threads(1)
        windows = CriticShape(record_bins, steps, step_bins, 2, width, width, semantic=True, temporal=True)
        records = CriticShape(record_bins, 0, 0, 2, width, width, semantic=True, temporal=False)
        timings = [
            timing
            for case, shape in (("windows", windows), ("records", records))
            for timing in measure(case, shape, units=units, repeats=repeats)
        ]
    console = Console()
    plain = {timing.case: timing.seconds for timing in timings if timing.method == "plain"}
    if as_json:
        rows = [
            {
                "case": timing.case,
                "method": timing.method,
                "units": timing.units,
                "seconds": timing.seconds,
                "units_per_second": timing.units / timing.seconds,
                "times_plain": timing.seconds / plain[timing.case],
            }
            for timing in timings
        ]
        console.print_json(json.dumps(rows))
        return
    table = Table("critic", "gradients", "ms", "units per second", "times plain")
    for timing in timings:
        table.add_row(
            timing.case,
            timing.method,
            f"{1000 * timing.seconds:.1f}",
            f"{timing.units / timing.seconds:,.0f}",
            f"{timing.seconds / plain[timing.case]:.2f}",
        )
    console.print(table)


def measure(case: str, shape: CriticShape, *, units: int, repeats: int) -> list[Timing]:
    """Time every method on the same units, in turn, so that all see the same machine."""
    random = np.random.default_rng(0)
    records = _one_hot(random, (units,), shape.record_bins)
    steps = _one_hot(random, (units, shape.steps), shape.step_bins) if shape.steps else None
    labels = random.integers(0, shape.classes, units)
    critic = initialise_critic(shape, seed=0)
    tensors = (
        torch.from_numpy(records).float(),
        None if steps is None else torch.from_numpy(steps).float(),
        torch.from_numpy(labels),
    )
    methods: list[tuple[str, Callable[[], object]]] = [
        ("clipped in integers", partial(clipped_sum, critic, records, steps, labels)),
        *(("plain", partial(plain_sum, critic, tensors, size)) for size in _PLAIN_BATCHES),
        *(("opacus", partial(opacus_sum, critic, tensors, size)) for size in _OPACUS_BATCHES),
    ]
    best: dict[str, float] = {}
    for _ in range(repeats):
        for name, run in methods:
            start = time.thread_time()  # of this thread alone: what else runs on the machine does not count
            run()
            best[name] = min(best.get(name, float("inf")), time.thread_time() - start)
    return [Timing(case, name, units, seconds) for name, seconds in best.items()]


def clipped_sum(critic: NeuralCritic, records: np.ndarray, steps: np.ndarray | None, labels: np.ndarray) -> np.ndarray:
    """What a site adds noise to."""
    mechanism = VectorMechanism(tuple(VectorLayer(*layer) for layer in critic.shape.contribution), GRADIENT_SCALE)
    parts = clipped_factors(critic, records, steps, labels, clip_norm=1.0)
    return mechanism.exact_sum(map(VectorContributions, parts))


def plain_sum(critic: NeuralCritic, units: _Units, batch: int) -> None:
    """The same gradients by autograd, neither clipped nor rounded."""
    critic.zero_grad()
    for records, steps, labels in _batches(units, batch):
        real_loss(critic(records, steps, labels), labels).sum().backward()  # type: ignore[no-untyped-call]


def opacus_sum(critic: NeuralCritic, units: _Units, batch: int) -> None:
    """The same gradients by Opacus: hooks that keep every unit's, and its optimiser's clipping."""
    hooked = GradSampleModule(NeuralCritic(critic.shape), loss_reduction="sum")
    hooked.load_state_dict({f"_module.{name}": value for name, value in critic.state_dict().items()})
    optimiser = DPOptimizer(
        torch.optim.SGD(hooked.parameters(), lr=0.0),
        noise_multiplier=0.0,
        max_grad_norm=1.0,
        expected_batch_size=None,
        loss_reduction="sum",
    )
    for records, steps, labels in _batches(units, batch):
        real_loss(hooked(records, steps, labels), labels).sum().backward()  # type: ignore[no-untyped-call]
        optimiser.clip_and_accumulate()
        for value in optimiser.params:
            value.grad_sample = None
            value.grad = None


def _batches(units: _Units, size: int) -> Iterator[_Units]:
    records, steps, labels = units
    for start in range(0, len(labels), size):
        part = slice(start, start + size)
        yield records[part], None if steps is None else steps[part], labels[part]


def _one_hot(random: np.random.Generator, rows: tuple[int, ...], bins: int) -> np.ndarray:
    """(*rows, bins) bool: one bin in every ten."""
    chosen = np.zeros((*rows, bins // _BINS_OF_A_COLUMN, _BINS_OF_A_COLUMN), dtype=bool)
    np.put_along_axis(
        chosen, random.integers(0, _BINS_OF_A_COLUMN, (*chosen.shape[:-1], 1)), values=True, axis=chosen.ndim - 1
    )
    return chosen.reshape(*rows, bins)


if __name__ == "__main__":
    app()
