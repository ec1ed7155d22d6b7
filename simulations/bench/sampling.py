"""What rows on demand are worth: `python simulations/bench/sampling.py RUN...`, for folders of simulated runs.

Random conditions and proportions on each run's generator: are shares delivered as they were asked for, and how far are
conditioned rows from real ones that fulfil the same? Beside it rejection: rows drawn without conditions, of which those
that fulfil them are kept. Then how long each takes for a condition that about 1 % of rows fulfil.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer
from rich.console import Console
from rich.table import Table

from common.commands import Commands
from common.data.encoding import make_grid
from common.data.schema import CategoricalColumn
from common.data.selection import Selection, parse_condition
from common.errors import ConditionError
from common.evaluation.fidelity import measure_fidelity
from common.evaluation.figures import over_seeds
from common.study import Study
from common.synthesis.synthesizer import Synthesizer
from simulations.experiment import divide
from simulations.run import resumed

app = Commands()

_POOL = 200_000
"""Rows without conditions, of which rejection keeps some."""
_FEWEST = 200
"""Real rows that a comparison needs."""


@dataclass(frozen=True)
class _Found:
    """One set of conditions. off: rows by which the worst share was missed. ours, rejected: mean one-way distances."""

    refused: bool
    off: float = 0.0
    ours: float | None = None
    rejected: float | None = None


@app.command()
def main(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    *,
    sets: Annotated[int, typer.Option(help="Random sets of conditions for each run.")] = 50,
    rows: Annotated[int, typer.Option(help="Rows that each asks for.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of conditions and rows.")] = 0,
) -> None:
    """Compare conditioned rows with rejection."""
    table = Table(
        "run",
        "delivered",
        "refused",
        "compared",
        "TVD, ours",
        "TVD, rejection",
        "ours less rejection",
        "worse",
        "1 %: ours / rejection",
    )
    for folder in runs:
        run = resumed(folder)
        synthesizer, real = Synthesizer.load(folder), divide(run).members.table.records
        pool = synthesizer.sample(_POOL, seed=seed)
        random = np.random.default_rng(seed)
        found = [_try(synthesizer, run.study, pool, real, rows, random) for _ in range(sets)]
        table.add_row(run.study.name, *_summary(found, rows), _speed(synthesizer, run.study, pool, rows))
    Console(width=170).print(table)


def _summary(found: list[_Found], rows: int) -> list[str]:
    made = [one for one in found if not one.refused]
    both = [(one.ours, one.rejected) for one in made if one.ours is not None and one.rejected is not None]
    apart = over_seeds([ours - theirs for ours, theirs in both])
    exact = sum(one.off <= 1 for one in made)
    return [
        f"{exact} of {len(made)}, each share to a row of {rows}",
        str(len(found) - len(made)),
        str(len(both)),
        *([f"{fmean(own):.4f}" for own in zip(*both, strict=True)] or ["", ""]),
        f"{apart.value:+.4f} ± {apart.high - apart.value:.4f}" if apart.value is not None and apart.high else "",
        f"{sum(ours > theirs for ours, theirs in both)}",
    ]


def _try(
    synthesizer: Synthesizer,
    study: Study,
    pool: pd.DataFrame,
    real: pd.DataFrame,
    rows: int,
    random: np.random.Generator,
) -> _Found:
    conditions = _conditions(study, pool, random)
    share = round(float(random.uniform(0.05, 0.95)), 2)
    others = {name: (1 - share) / (len(study.label_values) - 1) for name in study.label_values}
    proportions = {study.label.column: others | {study.label.positive: share}} if random.random() < 0.3 else {}
    try:
        sample = synthesizer.stream(rows, conditions=conditions, proportions=proportions, seed=0)
        table = pd.concat([part.records for part in sample], ignore_index=True)
    except ConditionError:
        return _Found(refused=True)
    off = max(abs((one.delivered or 0.0) - one.requested) * rows for one in sample.delivered())
    kept, truth = (_fulfilling(one, study, conditions) for one in (pool, real))
    if proportions or len(kept) < _FEWEST or len(truth) < _FEWEST:
        return _Found(refused=False, off=off)
    # As many of both, so that neither is nearer for being larger.
    size = min(rows, len(kept))
    ours, rejected = (
        measure_fidelity(one.iloc[:size], truth, study, edges_from=real).one_way_mean for one in (table, kept)
    )
    return _Found(refused=False, off=off, ours=ours, rejected=rejected)


def _conditions(study: Study, pool: pd.DataFrame, random: np.random.Generator) -> list[str]:
    """One to three, each on a column of its own, around a random row of the pool."""
    names = random.permutation(sorted(study.measured.keys() & study.columns.keys()))[: random.integers(1, 4)]
    row = pool.iloc[int(random.integers(len(pool)))]
    texts = []
    for name in map(str, names):
        if pd.isna(row[name]):
            texts.append(f"{name}=")
        elif isinstance(study.columns[name], CategoricalColumn):
            texts.append(f"{name}={row[name]}")
        else:
            texts.append(f"{name}{random.choice(['>=', '<='])}{row[name]}")
    return texts


def _selections(study: Study, conditions: list[str]) -> dict[str, Selection]:
    return dict(parse_condition(text, lambda name: make_grid(name, study.columns[name])) for text in conditions)


def _fulfilling(table: pd.DataFrame, study: Study, conditions: list[str]) -> pd.DataFrame:
    kept = np.all([one.holds(table[name]) for name, one in _selections(study, conditions).items()], axis=0)
    return table[kept]


def _speed(synthesizer: Synthesizer, study: Study, pool: pd.DataFrame, rows: int) -> str:
    """Seconds for so many rows of a condition that is true of about one row in a hundred."""
    condition = _one_in_a_hundred(study, pool)
    if condition is None:
        return "no such condition"
    ours, theirs = [], []
    for seed in range(3):
        begin = time.perf_counter()
        synthesizer.sample(rows, conditions=[condition], seed=seed)
        middle = time.perf_counter()
        kept, batch = 0, 0
        while kept < rows:
            kept += len(_fulfilling(synthesizer.sample(_POOL // 10, seed=1000 * seed + batch), study, [condition]))
            batch += 1
        ours.append(middle - begin)
        theirs.append(time.perf_counter() - middle)
    return f"{condition}: {median(ours):.1f} s / {median(theirs):.1f} s"


def _one_in_a_hundred(study: Study, pool: pd.DataFrame) -> str | None:
    """A comparison on the first numeric column for which there is one."""
    for name, column in study.measured.items():
        if name in study.columns and not isinstance(column, CategoricalColumn):
            edge = pool[name].dropna().quantile(0.99)
            share = float((pool[name] >= edge).mean())
            if 0.005 <= share <= 0.015:
                return f"{name}>={edge}"
    return None


if __name__ == "__main__":
    torch.set_num_threads(1)
    app()
