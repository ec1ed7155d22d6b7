"""What only several columns say together: `python -m simulations.bench.interactions --out FOLDER`.

The label is the parity of three columns, but for one row in ten: each column, and each pair of them, is independent of
it. Four sites learn the table at equal budget with one kind of discriminator beside the statistical one, and a
classifier that learned from their rows says whether they found it. A run whose evaluation is there is not made again.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import pandas as pd
import torch
import typer
from rich.console import Console
from rich.table import Table

from common.commands import Commands
from common.errors import OutputError
from common.evaluation.figures import Figure, over_seeds
from common.evaluation.report import Level
from simulations.experiment import Run, Scenario, choose, execute
from simulations.federation import Engine

app = Commands()

_VARIANTS: Final[Mapping[str, Mapping[str, float | str]]] = {
    "statistical": {},
    "statistical, semantic": {"semantic": 1.0},
    "statistical, neural": {"neural": 1.0},
    "statistical, neural at each site": {"neural": 1.0, "scope": "local"},
    "statistical, semantic, neural": {"semantic": 0.5, "neural": 0.5},
}
"""Weights of discriminators beside the statistical one's, which is 1, and where discriminators stand."""
_FLIPPED: Final = 0.1


def simulate(units: int, seed: int) -> pd.DataFrame:
    """A table as `interactions.yaml` says, one row a unit."""
    random = np.random.default_rng(seed)
    bits = random.integers(0, 2, (units, 3))
    odd = (bits.sum(axis=1) % 2 == 1) ^ (random.random(units) < _FLIPPED)
    return pd.DataFrame(
        {
            **{name: bits[:, place] for place, name in enumerate(("first", "second", "third"))},
            "group": random.integers(0, 4, units),
            "score": np.rint(random.normal(50, 15, units).clip(0, 100)).astype(int),
            "odd": np.where(odd, "yes", "no"),
        }
    )


@app.command()
def main(
    *,
    out: Annotated[Path, typer.Option(help="Folder of all runs.")],
    units: Annotated[int, typer.Option(min=1000, help="In the table, a row each.")] = 40_000,
    epsilon: Annotated[float, typer.Option(help="What each run may spend.")] = 3.0,
    sites: Annotated[int, typer.Option(min=1, help="Number of sites.")] = 4,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each kind of discriminator.")] = 5,
    rounds: Annotated[int, typer.Option(min=2, help="Of training in each run; it measures at most as often.")] = 20,
    only: Annotated[list[str] | None, typer.Option(help="Some kinds, as the table names them; repeat it.")] = None,
) -> None:
    """Compare discriminators where no pair of columns says anything."""
    data = out / f"table-{units}.csv"
    try:
        out.mkdir(parents=True, exist_ok=True)
        simulate(units, seed=0).to_csv(data, index=False)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror})") from None
    table = Table("discriminators", "runs", "AUC of boosting", "real rows", "pairs: mean total variation")
    for name in only or _VARIANTS:
        found = []
        for seed in range(seeds):
            run = choose(
                scenario=Scenario.BANK,
                study=Path(__file__).with_suffix(".yaml"),
                data=[data],
                series=None,
                units=None,
                sites=sites,
                epsilon=epsilon,
                seed=seed,
                out=out / f"{name.replace(', ', '-')}-{units}-{epsilon:g}-{rounds}-{seed}",
            )
            study = run.study.with_overrides(
                discriminators={"statistical": 1.0, "semantic": 0.0, **_VARIANTS[name]},
                noise={"rounds": min(run.study.noise.rounds, rounds)},
                rounds={"count": rounds},
            )
            found.append(_evaluation(replace(run, study=study)))
        auc, real = (_over(found, learner) for learner in ("tstr", "trtr"))
        pairs = over_seeds([one["fidelity"]["synthetic_vs_holdout"]["two_way_mean"] for one in found])
        table.add_row(name, str(len(found)), *map(_shown, (auc, real, pairs)))
    Console(width=120).print(table)


def _evaluation(run: Run) -> dict[str, Any]:
    path = run.folder / "evaluation.json"
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_bytes())
        return found
    engine = Engine("process", "cpu", torch.get_num_threads())
    return execute(run, engine, torch.device("cpu"), lambda _: None, level=Level.BASIC, gated=False).evaluation


def _over(found: list[dict[str, Any]], learner: str) -> Figure:
    return over_seeds([one["utility"][learner]["gradient_boosting"]["auc"] for one in found])


def _shown(figure: Figure) -> str:
    half = "" if figure.high is None or figure.value is None else f" ± {figure.high - figure.value:.3f}"
    return f"{figure.value:.3f}{half}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    app()
