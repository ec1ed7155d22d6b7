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
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

import numpy as np
import typer
import yaml

from common.commands import Commands, say_aside

if TYPE_CHECKING:
    import pandas as pd

    from simulations.experiment import Run

app = Commands()


class Curve(StrEnum):
    """What grows."""

    SITES = "sites"
    UNITS = "units"
    COLUMNS = "columns"
    SCREENING = "screening"


_ROUNDS: Final = {"count": 4, "local_steps": 5, "refine_steps": 20}
"""As few as show what one costs."""
_SCREENED: Final = {"count": 6, "local_steps": 5, "refine_steps": 80}
"""A round comes before each later measurement, and enough are left to learn from the last one."""
_MEASUREMENTS: Final = 3
_AGAIN: Final = 0.3
_SEED: Final = 1


@dataclass(frozen=True)
class Point:
    """One federation to be measured.

    columns: of a generated table; 0 for the scenario `bank`. again: share of the tables that later measurements ask.
    """

    curve: Curve
    sites: int = 4
    units: int = 20_000
    columns: int = 0
    engine: str = "process"
    again: float = 1.0
    seed: int = _SEED

    @property
    def name(self) -> str:
        """Of its results."""
        own = f"-{self.again:g}-{self.seed}" if self.curve == Curve.SCREENING else ""
        return f"{self.curve}-{self.engine}-{self.sites}-{self.units}-{self.columns}{own}"


POINTS: Final = (
    *(Point(Curve.SITES, sites=sites) for sites in (4, 32, 128, 1000)),
    *(Point(Curve.SITES, sites=sites, engine="flower") for sites in (4, 32, 128, 1000)),
    *(Point(Curve.UNITS, units=units) for units in (10_000, 100_000, 1_000_000)),
    *(Point(Curve.COLUMNS, units=10_000, columns=columns) for columns in (10, 50, 100, 200)),
    *(
        Point(Curve.SCREENING, units=units, columns=columns, again=again, seed=seed)
        for units, columns, seeds in ((10_000, 50, 3), (10_000, 200, 3), (100_000, 50, 2))
        for seed in range(1, seeds + 1)
        for again in (1.0, _AGAIN)
    ),
)


def prepare(point: Point, folder: Path) -> None:
    """Divide a table over sites, and write what each of them has."""
    from client.simulated_site import make_site_folder, peers_of  # noqa: PLC0415 (seconds, in the process that measures nothing)
    from simulations.experiment import divide  # noqa: PLC0415

    if point.columns:
        _generate(point, folder)
    run = _run_of(point, folder)
    divided = divide(run)
    lock = folder / "study.lock.yaml"
    lock.write_text(yaml.safe_dump(json.loads(run.study.canonical()), sort_keys=False), encoding="utf-8")
    for name, tables in divided.sites.items():
        make_site_folder(
            name, lock, run.study, tables, private=folder / "private", kept=folder / "run", seed=point.seed,
            peers=peers_of(name, list(divided.sites), run.study),
            witnesses=0 if point.engine == "flower" else None,
        )  # fmt: skip


def _run_of(point: Point, folder: Path) -> "Run":
    """The run of a point whose table, if it has one of its own, is there."""
    from simulations.experiment import Scenario, choose  # noqa: PLC0415

    study, data = (folder / "study.yaml", [folder / "table.csv"]) if point.columns else (None, None)
    run = choose(
        scenario=Scenario.BANK, study=study, data=data, series=None, units=None if data else point.units,
        sites=point.sites, how="iid", seed=point.seed, out=folder / "run",
    )  # fmt: skip
    rounds, measurements = (_SCREENED, _MEASUREMENTS) if point.curve == Curve.SCREENING else (_ROUNDS, 1)
    noise = {"rounds": measurements, "again": point.again}
    return replace(run, study=run.study.with_overrides(rounds=rounds, noise=noise))


def _generate(point: Point, folder: Path) -> None:
    """A table of numbers from 0 to 7 that hang together by a few hidden ones, and its study."""
    random = np.random.default_rng(point.seed)
    names = [f"c{at:03}" for at in range(point.columns - 1)]
    hidden = random.normal(size=(point.units, 5))
    values = hidden @ random.normal(size=(5, len(names))) + random.normal(size=(point.units, len(names)))
    codes = np.clip(np.floor(values * 1.5 + 4), 0, 7).astype(int)
    label = np.where(hidden[:, 0] > 0.5, "yes", "no")
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
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
    (folder / "study.yaml").write_text(yaml.safe_dump(said, sort_keys=False), encoding="utf-8")


def measure(point: Point, folder: Path) -> dict[str, Any]:
    """Conduct a federation over the sites in a folder; what it cost, in processor seconds and MB."""
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
    before, began = peak_memory(), time.process_time()
    with watch() as stopwatch, _Tree(point.engine == "flower") as tree:
        coordinator = Coordinator(
            study, folder=folder / "run", run="scale", seed=point.seed,
            credentials=credentials_of(names, seed=point.seed),
            device=torch.device("cpu"), on_step=lambda line: steps.append((line["step"], time.process_time())),
        )  # fmt: skip
        engine = Engine(point.engine, "cpu", 1)
        run_federation(sites, lambda exchange: trained.append(coordinator.run(exchange)), engine)
        with stopwatch.stage("sample"):
            drawn = draw_units(
                release_of(trained[0], study), rows=rows_to_publish(trained[0], study), seed=point.seed,
                device=torch.device("cpu"),
            )  # fmt: skip
    own = time.process_time() - began
    ends = [began, *(at for _, at in steps)]
    spans = [(name, end - start) for (name, end), start in zip(steps, ends[:-1], strict=True)]
    found: dict[str, Any] = {
        "seconds": own + tree.seconds,
        "memory": max(peak_memory(), tree.memory),
        "memory_before": before,
        "stages": dict(stopwatch.seconds),
        "round": fmean(span for name, span in spans if name == "round"),
        "measurement": fmean(span for name, span in spans if name.startswith("pairs")),
        "cells": max(len(release.counts) for release in trained[0].state.releases.values()),
    }
    if point.curve != Curve.SCREENING:
        return found
    return found | {
        "asked": sum(len(one.counts) for name, one in trained[0].state.releases.items() if name.startswith("pairs")),
        "answers": sum(path.stat().st_size for path in (folder / "run").glob(f"sites/{names[0]}/replies/*")) / 1e6,
        **_quality(drawn.records, _run_of(point, folder)),
    }


def _quality(synthetic: "pd.DataFrame", run: "Run") -> dict[str, float | None]:
    """Of the rows to publish: total variation of pairs from the sites' rows, and AUC on units that no site has."""
    import pandas as pd  # noqa: PLC0415

    from common.evaluation.fidelity import measure_fidelity  # noqa: PLC0415
    from common.evaluation.utility import measure_utility  # noqa: PLC0415
    from simulations.experiment import divide  # noqa: PLC0415

    study, seed, divided = run.study, run.options.seed, divide(run)
    real, test = divided.members.table.records, divided.test.table.records
    shuffled = pd.DataFrame({name: real[name].sample(frac=1, random_state=at).array for at, name in enumerate(real)})
    apart = {"two_way": synthetic, "shuffled": shuffled}
    return {
        **{name: measure_fidelity(one, real, study, edges_from=real).two_way_mean for name, one in apart.items()},
        "auc": measure_utility(synthetic, test, study, seed=seed)["gradient_boosting"].auc,
    }


class _Tree:
    """Memory and processor time of Ray's processes; in memory what several share counts once (proportional size)."""

    def __init__(self, is_on: bool) -> None:
        self.memory = self.seconds = 0.0
        self._is_on, self._done = is_on, threading.Event()
        self._seconds: dict[int, float] = {}

    def __enter__(self) -> Self:
        if self._is_on:
            self._thread = threading.Thread(target=self._watch)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._is_on:
            self._thread.join()
            self.seconds = sum(self._seconds.values())

    def _watch(self) -> None:
        ticks, parent = os.sysconf("SC_CLK_TCK"), os.getpid()
        while not self._done.wait(0.5):
            whole = _proportional(parent)
            for process in descendants(parent):
                with suppress(OSError, ValueError, IndexError):
                    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
                    self._seconds[process] = (int(fields[11]) + int(fields[12])) / ticks
                    whole += _proportional(process)
            self.memory = max(self.memory, whole)


def descendants(process: int) -> list[int]:
    """Processes that a process started, and those that they did."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            fields = (path / "stat").read_text().rsplit(")", 1)[1].split()
            parents.setdefault(int(fields[1]), []).append(int(path.name))
    found, due = [], [process]
    while due:
        due += (children := parents.get(due.pop(), []))
        found += children
    return found


def _proportional(process: int) -> float:
    """MB."""
    with suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1000
    return 0.0


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    *,
    only: Annotated[list[Curve] | None, typer.Option(help="Some curves; repeat it.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the page.")] = Path("docs/results"),
) -> None:
    """Measure what is not measured yet, then write scale.csv, and scale.svg and the tables of scale.md from it."""
    if context.invoked_subcommand is not None:
        return
    kept = out / "scale.csv"
    found = _read(kept)
    for point in POINTS:
        if point.name in found or (only and point.curve not in only):
            continue
        say_aside(f"{point.name} ...")
        found[point.name] = _flat(run_point(point))
        _write(kept, found)
    found = _read(kept)
    draw(found, out / "scale.svg")
    fill(out / "scale.md", "\n\n".join(part(found) for part in (tables, screening, stages, engines)))


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
        return {"prepared": _child(point, "prepare", folder), **_child(point, "measure", folder)}


def _child(point: Point, what: str, folder: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        subprocess.run(  # noqa: S603 (this file)
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


Row = dict[str, str | float]


def _flat(found: Mapping[str, Any]) -> Row:
    """A line of the CSV file."""
    parts = {"prepared": found["prepared"], "stage": found["stages"]}
    plain = {name: value for name, value in found.items() if name not in ("prepared", "stages")}
    return plain | {f"{kind} {name}": value for kind, values in parts.items() for name, value in values.items()}


def _read(path: Path) -> dict[str, Row]:
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {
            line.pop("point"): {name: float(value) for name, value in line.items() if value}
            for line in csv.DictReader(file)
        }


def _write(path: Path, found: Mapping[str, Row]) -> None:
    names = ["point", *dict.fromkeys(name for row in found.values() for name in row)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, names, lineterminator="\n")
        out.writeheader()
        for point, row in found.items():
            out.writerow({"point": point} | {name: f"{value:.5g}" for name, value in row.items()})


@dataclass(frozen=True)
class Law:
    """A cost against what it is expected to grow with, and as what power at most."""

    cost: str
    columns: tuple[str, ...]
    power: float


LAWS: Final[Mapping[Curve, tuple[Law, ...]]] = {
    Curve.SITES: (
        Law("memory of the process", ("memory",), 1),
        Law("all processor time", ("seconds",), 1),
        Law("one measurement", ("measurement",), 1),
        Law("one round of training", ("round",), 0),
    ),
    Curve.UNITS: (
        Law("memory of the process", ("memory",), 1),
        Law("read and encode", ("stage encode",), 1),
        Law("count and noise", ("stage count and noise",), 1),
        Law("train and refine", ("stage train at sites", "stage refine"), 0),
        Law("draw the synthetic rows", ("stage sample",), 1),
    ),
    Curve.COLUMNS: (
        Law("memory of the process", ("memory",), 2),
        Law("read and encode", ("stage encode",), 1),
        Law("cells of all pairs", ("cells",), 2),
        Law("count and noise", ("stage count and noise",), 2),
        Law("check, add up, targets", ("stage check and add up", "stage targets"), 2),
        Law("train and refine", ("stage train at sites", "stage refine"), 2),
        Law("draw the synthetic rows", ("stage sample",), 1),
    ),
}
"""What each curve should cost."""


def _cost(law: Law, row: Row) -> float:
    return sum(float(row.get(name, 0.0)) for name in law.columns)


def _curve(curve: Curve, found: Mapping[str, Row]) -> tuple[np.ndarray, list[Row]]:
    """The measured points of a curve in this process: sites, units or columns, and their rows."""
    own = [point for point in POINTS if point.engine == "process" and point.name in found]
    # Where the curve of sites begins, it is a point of the curve of units.
    alike = {Curve.UNITS: [point for point in own if point.curve == Curve.SITES and point.sites == 4]}
    own = sorted(
        [*(point for point in own if point.curve == curve), *alike.get(curve, [])],
        key=lambda point: int(getattr(point, curve)),
    )
    return np.array([getattr(point, curve) for point in own]), [found[point.name] for point in own]


def exponent(sizes: np.ndarray, costs: Sequence[float]) -> float:
    """The power by which costs grow: the slope of the least-squares line through their logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(costs, 1e-9)), 1)[0])


def _said(cost: float) -> str:
    return f"{cost:,.0f}" if cost >= 1000 else f"{cost:.3g}"


def tables(found: Mapping[str, Row]) -> str:
    """Markdown of each curve: a line a cost, with the law that was expected and the one that was seen."""
    parts = []
    for curve, laws in LAWS.items():
        sizes, rows = _curve(curve, found)
        if len(sizes) < 2:
            continue
        lines = [
            f"| {curve} | {' | '.join(f'{size:,}' for size in sizes)} | expected | seen | from the last two |",
            f"|---|{'---|' * (len(sizes) + 3)}",
        ]
        for law in laws:
            costs = [_cost(law, row) for row in rows]
            said = " | ".join(map(_said, costs))
            unit = {"memory": "MB", "cells": "cells"}.get(law.columns[0], "s")
            seen, last = exponent(sizes, costs), exponent(sizes[-2:], costs[-2:])
            lines.append(f"| {law.cost}, {unit} | {said} | {curve}^{law.power:g} | {seen:.2f} | {last:.2f} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


_SCREENING: Final[Mapping[str, tuple[str, ...]]] = {
    "cells asked": ("asked",),
    "answers of a site, MB": ("answers",),
    "count and noise, s": ("stage count and noise",),
    "check, add up, targets, s": ("stage check and add up", "stage targets"),
    "all processor time, s": ("seconds",),
    "pairs: total variation": ("two_way",),
    "of shuffled columns": ("shuffled",),
    "AUC of boosting": ("auc",),
}


def screening(found: Mapping[str, Row]) -> str:
    """Markdown of what it costs and is worth to ask only some tables again: means over seeds, and seed by seed."""
    both: dict[str, list[list[list[float]]]] = {}
    for point in (one for one in POINTS if one.curve == Curve.SCREENING and one.again == 1):
        rows = [found[one.name] for one in (point, replace(point, again=_AGAIN)) if one.name in found]
        if len(rows) == 2:
            values = [[sum(float(row[part]) for part in parts) for parts in _SCREENING.values()] for row in rows]
            both.setdefault(f"| {point.units:,} | {point.columns}", []).append(values)
    lines = [f"| units | columns | again | {' | '.join(_SCREENING)} |", f"|---|---|---|{'---|' * len(_SCREENING)}"]
    for table, measured in both.items():
        seeds = np.array(measured)  # (seeds, all or some again, figures)
        for name, means in zip(("all", f"{_AGAIN:g}"), seeds.mean(axis=0), strict=True):
            lines.append(f"{table} | {name} | {' | '.join(map(_said, means))} |")
        times = [f"{one.mean():.3f} ({one.min():.3f} to {one.max():.3f})" for one in (seeds[:, 1] / seeds[:, 0]).T]
        lines.append(f"{table} | {_AGAIN:g} over all | {' | '.join(times)} |")
    return "\n".join(lines)


def stages(found: Mapping[str, Row]) -> str:
    """Markdown of where the processor time of the curve of sites goes, what one more site costs, and the overhead."""
    from simulations.bench.stopwatch import USEFUL  # noqa: PLC0415 (seconds)

    sizes, rows = _curve(Curve.SITES, found)
    names = [name for name in rows[-1] if name.startswith("stage ")]
    total = [sum(float(row.get(name, 0)) for name in names) for row in rows]
    lines = [
        f"| seconds of | {' | '.join(f'{size:,} sites' for size in sizes)} | one more site, ms |",
        f"|---|{'---|' * (len(sizes) + 1)}",
    ]
    for name in sorted(names, key=lambda name: -float(rows[-1].get(name, 0))):
        costs = [float(row.get(name, 0)) for row in rows]
        more = 1000 * (costs[-1] - costs[0]) / (sizes[-1] - sizes[0])
        lines.append(f"| {name.removeprefix('stage ')} | {' | '.join(f'{cost:.3g}' for cost in costs)} | {more:.3g} |")
    once = ("start a site", "encode", "validate", "sample")
    aside = [sum(float(row.get(f"stage {name}", 0)) for name in once) for row in rows]
    useful = [sum(float(row.get(f"stage {name}", 0)) for name in USEFUL if name not in once) for row in rows]
    shares = [1 - use / (whole - rest) for use, whole, rest in zip(useful, total, aside, strict=True)]
    lines.append(f"| share beside counting and training | {' | '.join(f'{share:.1%}' for share in shares)} | |")
    return "\n".join(lines)


def engines(found: Mapping[str, Row]) -> str:
    """Markdown of Flower's engine on Ray beside this process."""
    lines = ["| engine | sites | memory, MB | processor, s |", "|---|---|---|---|"]
    pairs = [(point, found[point.name]) for point in POINTS if point.curve == Curve.SITES and point.name in found]
    largest = max((point.sites for point, _ in pairs if point.engine == "flower"), default=0)
    lines += [
        f"| {point.engine} | {point.sites} | {row['memory']:,.0f} | {row['seconds']:,.0f} |"
        for point, row in pairs
        if point.sites <= largest
    ]
    return "\n".join(lines)


_BEGIN, _END = "<!-- measured -->\n", "<!-- end of what was measured -->\n"


def fill(page: Path, measured: str) -> None:
    """Put tables between the marks of a page; a new one where there is none."""
    text = page.read_text(encoding="utf-8") if page.exists() else f"{_BEGIN}{_END}"
    before, _, rest = text.partition(_BEGIN)
    page.write_text(f"{before}{_BEGIN}\n{measured}\n\n{_END}{rest.partition(_END)[2]}", encoding="utf-8")


def draw(found: Mapping[str, Row], path: Path) -> None:
    """One figure: processor time by stage over each curve, both axes in powers."""
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "privshare", "font.size": 8}):
        canvas = Figure(figsize=(9, 3), layout="constrained")
        for axes, (curve, laws) in zip(canvas.subplots(1, len(LAWS)), LAWS.items(), strict=True):
            sizes, rows = _curve(curve, found)
            if not rows:  # of an empty one there is no logarithm
                continue
            for law in laws:
                if law.columns[0] not in ("memory", "cells"):
                    axes.plot(sizes, [_cost(law, row) for row in rows], marker="o", markersize=3, label=law.cost)
            axes.set(xscale="log", yscale="log", xlabel=curve, ylabel="processor seconds", title=curve)
            axes.set_xticks(sizes, [f"{size:,}" for size in sizes], minor=False)
            axes.minorticks_off()
            axes.legend(fontsize=6)
        canvas.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    app()
