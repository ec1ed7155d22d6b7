"""What sites, units and columns cost: `python simulations/bench/scale.py`.

Each point is a process of its own, which opens sites that another one prepared, conducts one federation over them and
draws the rows that would be published. Points that were measured are kept beside the page and not measured again.
"""

import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import typer
import yaml

from common.commands import Commands, say_aside

app = Commands()

Curve = Literal["sites", "units", "columns"]
_ROUNDS: Final = {"count": 4, "local_steps": 5, "refine_steps": 20}
"""As few as show what one costs."""
_SEED: Final = 1
_CLASSES: Final = 2


@dataclass(frozen=True)
class Point:
    """One federation to be measured. columns: of a generated table; 0 for the scenario `bank`."""

    curve: Curve
    sites: int = 4
    units: int = 20_000
    columns: int = 0
    engine: str = "process"

    @property
    def name(self) -> str:
        """Of its results."""
        return f"{self.curve}-{self.engine}-{self.sites}-{self.units}-{self.columns}"


POINTS: Final = (
    *(Point("sites", sites=sites) for sites in (4, 32, 128, 1000)),
    *(Point("sites", sites=sites, engine="flower") for sites in (4, 32)),
    *(Point("units", units=units) for units in (10_000, 100_000, 1_000_000)),
    *(Point("columns", units=10_000, columns=columns) for columns in (10, 50, 100, 200)),
)


def prepare(point: Point, folder: Path) -> None:
    """Divide a table over sites, and write what each of them has."""
    from client.simulated_site import make_site_folder, peers_of  # noqa: PLC0415 (seconds, in the process that measures nothing)
    from simulations.experiment import Run, Scenario, choose, divide  # noqa: PLC0415

    study = data = None
    if point.columns:
        study, data = folder / "study.yaml", [folder / "table.csv"]
        _generate(point, study, data[0])
    run: Run = choose(
        scenario=Scenario.BANK, study=study, data=data, series=None, units=None if data else point.units,
        sites=point.sites, how="iid", seed=_SEED, out=folder / "run",
    )  # fmt: skip
    run = replace(run, study=run.study.with_overrides(rounds=_ROUNDS))
    divided = divide(run)
    lock = folder / "study.lock.yaml"
    lock.write_text(yaml.safe_dump(json.loads(run.study.canonical()), sort_keys=False), encoding="utf-8")
    for name, tables in divided.sites.items():
        make_site_folder(
            name, lock, run.study, tables, private=folder / "private", kept=folder / "run", seed=_SEED,
            peers=peers_of(name, list(divided.sites), run.study),
            witnesses=0 if point.engine == "flower" else None,
        )  # fmt: skip


def _generate(point: Point, study: Path, table: Path) -> None:
    """A table of numbers from 0 to 7 that hang together by a few hidden ones, and its study."""
    random = np.random.default_rng(_SEED)
    names = [f"c{at:03}" for at in range(point.columns - 1)]
    hidden = random.normal(size=(point.units, 5))
    values = hidden @ random.normal(size=(5, len(names))) + random.normal(size=(point.units, len(names)))
    codes = np.clip(np.floor(values * 1.5 + 4), 0, 7).astype(int)
    label = np.where(hidden[:, 0] > 0.5, "yes", "no")
    with table.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["person", *names, "label"])
        out.writerows([f"p{at}", *row, label[at]] for at, row in enumerate(codes.tolist()))
    columns = {name: {"type": "integer", "min": 0, "max": 7} for name in names}
    said = {
        "schema": "privshare.study/1", "name": "columns", "unit": {"name": "person", "key": "person"},
        "label": {"column": "label", "positive": "yes"},
        "columns": {**columns, "label": {"type": "categorical", "categories": ["no", "yes"]}},
        "privacy": {"epsilon": 1, "delta": 1.0e-6},
    }  # fmt: skip
    study.write_text(yaml.safe_dump(said, sort_keys=False), encoding="utf-8")


def measure(point: Point, folder: Path) -> dict[str, Any]:
    """Conduct a federation over the sites in a folder; what it cost."""
    import torch  # noqa: PLC0415

    from client.simulated_site import SiteFolder  # noqa: PLC0415
    from common.study import load_study  # noqa: PLC0415
    from common.synthesis.rows import draw_units  # noqa: PLC0415
    from server.publish import release_of, rows_to_publish  # noqa: PLC0415
    from server.rounds import Coordinator, Trained  # noqa: PLC0415
    from simulations.bench.stopwatch import watch  # noqa: PLC0415
    from simulations.federation import Engine, credentials_of, run_federation  # noqa: PLC0415

    study = load_study(folder / "study.lock.yaml")
    names = sorted(path.name for path in (folder / "private").iterdir())
    sites = [SiteFolder(name, folder / "private" / name / "site.yaml") for name in names]
    steps: list[tuple[str, float]] = []
    trained: list[Trained] = []
    began, idle = time.process_time(), peak_memory()
    with watch() as stopwatch:
        coordinator = Coordinator(
            study, folder=folder / "run", run="scale", seed=_SEED, credentials=credentials_of(names, seed=_SEED),
            device=torch.device("cpu"), on_step=lambda line: steps.append((line["step"], time.process_time())),
        )  # fmt: skip
        engine = Engine(point.engine, "cpu", 1)
        run_federation(sites, lambda exchange: trained.append(coordinator.run(exchange)), engine)
        with stopwatch.stage("sample"):
            draw_units(
                release_of(trained[0], study), rows=rows_to_publish(trained[0], study), seed=_SEED,
                device=torch.device("cpu"),
            )  # fmt: skip
    ends = [began, *(at for _, at in steps)]
    spans = [(name, end - start) for (name, end), start in zip(steps, ends[:-1], strict=True)]
    return {
        "seconds": time.process_time() - began,
        "stages": dict(stopwatch.seconds),
        "rounds": [span for name, span in spans if name == "round"],
        "measurements": [span for name, span in spans if name.startswith("pairs")],
        "memory": peak_memory(),
        "memory_before": idle,
        "cells": max(len(release.counts) for release in trained[0].state.releases.values()),
    }


@app.command()
def main() -> None:
    """Measure."""


@app.command("point", hidden=True)
def point_command(what: str, folder: Path, options: str) -> None:
    """One step of a point, in a process of its own: prepares it, or measures it and prints what it cost."""
    point = Point(**json.loads(options))
    if what == "prepare":
        prepare(point, folder)
        typer.echo(json.dumps({"seconds": time.process_time(), "memory": peak_memory()}))
    else:
        typer.echo(json.dumps(measure(point, folder)))


def run_point(point: Point) -> dict[str, Any]:
    """Prepare and measure a point; what both cost."""
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        prepared = _child(point, "prepare", folder)
        return {"point": asdict(point), "prepared": prepared, **_child(point, "measure", folder)}


def _child(point: Point, what: str, folder: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        subprocess.run(
            [sys.executable, __file__, "point", what, folder, json.dumps(asdict(point))],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            check=True,
        ).stdout.splitlines()[-1]
    )
    return found


def peak_memory() -> float:
    """The most that this process ever held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


if __name__ == "__main__":
    app()
