"""privshare at four sites beside what others make of all rows in one place: `python -m simulations.peers.compare DATA`.

Every cell is a command of its own: `simulations/run.py` as its users run it, or one peer in its own environment. The
same units teach, the same units that nobody had are asked, epsilon and delta are the study's, and rows are scored by
the classifiers and distances of every other evaluation. A cell that is there is not made again.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import pandas as pd
import typer
import yaml

from common.commands import Commands, fail, say_aside
from common.data.encoding import Grid, encode_table, make_grid
from common.data.schema import CategoricalColumn, Column, ContinuousColumn, IntegerColumn
from common.data.units import bound_units
from common.data.windows import WindowedTable
from common.errors import ExitCode, PrivShareError, StudyError
from common.evaluation.fidelity import measure_fidelity
from common.evaluation.figures import over_seeds
from common.evaluation.scores import score
from common.evaluation.utility import predict
from common.study import Study
from common.synthesis.synthesizer import Synthesizer
from server.checkpoints import write_file, write_json
from simulations.experiment import Scenario, choose, divide
from simulations.public import SOURCES, Files, prepare

app = Commands()

_HERE: Final = Path(__file__).parent
_SITES: Final = 4
_CELLS: Final = 32
"""Of a numeric column as a peer sees it, special values and missing beside them: evenly on the study's scale."""
_CLASSIFIERS: Final = ("gradient_boosting", "logistic_regression")
REAL: Final = "real"
_OURS: Final = "privshare"
_NONE: Final = "none"
_CHILD: Final = """
import json, resource, subprocess, sys
done = subprocess.run(sys.argv[2:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
json.dump({"seconds": used.ru_utime + used.ru_stime, "peak": used.ru_maxrss * 1024}, open(sys.argv[1], "w"))
sys.exit(done.returncode)
"""


@dataclass(frozen=True)
class Peer:
    """A synthesizer of others: the name of its environment, and how a reader knows it."""

    environment: str
    title: str


PEERS: Final[Mapping[str, Peer]] = {
    "aim": Peer("dpmm", "AIM (dpmm), 4 MB, 60 rounds"),
    "mst": Peer("dpmm", "MST (dpmm)"),
    "privbayes": Peer("dpmm", "PrivBayes (dpmm)"),
    "tabularargn": Peer("mostlyai", "TabularARGN, private (MOSTLY AI)"),
    "mst-smartnoise": Peer("smartnoise", "MST (SmartNoise)"),
    "dpctgan": Peer("smartnoise", "DP-CTGAN (SmartNoise)"),
}


@dataclass(frozen=True)
class Cell:
    """What one method made of one data set with one seed.

    auc: of each classifier, trained on its rows and asked on units that nobody had.
    two_way: mean total variation distance of all pairs of columns from the units that taught.
    seconds, peak: processor seconds of the whole command, and its resident bytes at most; None for real rows.
    """

    auc: dict[str, float]
    two_way: float
    seconds: float | None = None
    peak: int | None = None


Asked = tuple[list[str], Callable[[], pd.DataFrame]]
"""A command, and its rows when it is done."""
Method = Callable[[Path, "Task"], Asked]
"""What makes rows for a task, with files of its own in a folder."""


@app.command()
def main(
    data: Annotated[Path, typer.Argument(help="Folder with a folder of each data set.")],
    *,
    out: Annotated[Path, typer.Option(help="Folder of all that is made; what is there is not made again.")] = Path(
        "runs/peers"
    ),
    environments: Annotated[Path, typer.Option(help="Folder with an environment of each peer.")] = Path(".venv-peers"),
    source: Annotated[list[str] | None, typer.Option(help="Data sets; repeat it. Default: all.")] = None,
    peer: Annotated[list[str] | None, typer.Option(help="Peers; repeat it. Default: all; 'none' for none.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each, with the seeds 0, 1, ...")] = 3,
    limit: Annotated[int, typer.Option(min=1, help="Seconds after which a command is given up.")] = 3600,
) -> None:
    """Make every cell that is not there, then the table of all that are."""
    try:
        sources, peers = named("source", source, SOURCES), chosen_peers(peer, environments)
        methods = {_OURS: federated(), **{name: alone(name, environments) for name in peers}}
        for seed in range(seeds):
            for name in sources:
                make(name, seed, methods, data=data, folder=out / name / str(seed), limit=limit)
        text = table_of(out)
        write_file(out / "peers.md", text.encode())
    except PrivShareError as error:
        fail(error)
    typer.echo(text)


def named(option: str, given: Sequence[str] | None, known: Mapping[str, object]) -> list[str]:
    """What an option names; all there are where it is not given.

    Raises:
        StudyError: one is not known.
    """
    for name in given or ():
        if name not in known:
            raise StudyError(f"{option}={name}: expected one of {', '.join(known)}", ExitCode.USAGE)
    return list(given or known)


def chosen_peers(given: Sequence[str] | None, environments: Path) -> list[str]:
    """Peers that an option names, `none` for none; hours of work do not begin at whose end one is found to be absent.

    Raises:
        StudyError: one is not known, or its environment is not there.
    """
    peers = [] if given == [_NONE] else named("peer", given, PEERS)
    for name in peers:
        if not _python_of(name, environments).exists():
            raise StudyError(f"{environments / PEERS[name].environment}: no such environment; `make peers` makes it")
    return peers


def _python_of(peer: str, environments: Path) -> Path:
    return environments / PEERS[peer].environment / "bin" / "python"


def make(name: str, seed: int, methods: Mapping[str, Method], *, data: Path, folder: Path, limit: int) -> None:
    """The cells of one data set and seed that are not in a folder yet: of real rows, and of each method."""
    missing = [one for one in (REAL, *methods) if not (folder / f"{one}.json").exists()]
    if not missing:
        return
    folder.mkdir(parents=True, exist_ok=True)
    task = Task(_given(name, data, folder), seed)
    for method in missing:
        say_aside(f"{name}, seed {seed}: {method}")
        path = folder / f"{method}.json"
        if method == REAL:
            write_json(path, asdict(Cell(*task.score(task.taught))))
            continue
        command, made = methods[method](folder, task)
        used = _run(command, folder / "used.json", limit, folder / f"{method}.log")
        if used is None:
            say_aside(f"{name}, seed {seed}: {method} failed or took longer than {limit} s")
            continue
        write_json(path, asdict(Cell(*task.score(made()), *used)))


def _given(name: str, data: Path, folder: Path) -> Files:
    """The study with one record a unit, for all methods alike: a peer promises what it does of a record."""
    files = prepare(name, data, folder)
    return replace(files, study=_restated(files.study, folder, unit={"max_records": 1}))


def _restated(study: Path, folder: Path, **sections: Mapping[str, object]) -> Path:
    """A study file in a folder, with other values in some of its sections."""
    document = yaml.safe_load(study.read_text())
    for name, values in sections.items():
        document[name] = {**document.get(name, {}), **values}
    path = folder / "study.yaml"
    write_file(path, yaml.safe_dump(document, sort_keys=False).encode())
    return path


def _run(command: Sequence[str], used: Path, limit: int, log: Path) -> tuple[float, int] | None:
    """Run a command; the processor seconds and the bytes it used, or None where it failed or took too long."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("wb") as file:
        try:
            subprocess.run(  # noqa: S603 (no shell, and our own words)
                [sys.executable, "-c", _CHILD, str(used), *command],
                check=True,
                timeout=limit,
                stdout=file,
                stderr=file,
                env=environment,
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            return None
    found = json.loads(used.read_bytes())
    return float(found["seconds"]), int(found["peak"])


def federated(rounds: int | None = None) -> Method:
    """A whole federation; rounds: of training, instead of the study's."""

    def method(folder: Path, task: Task) -> Asked:
        given, run = task.given, folder / "run"
        shutil.rmtree(run, ignore_errors=True)  # one that was broken off
        study = given.study
        if rounds is not None:
            (folder / "rounds").mkdir(exist_ok=True)
            study = _restated(study, folder / "rounds", rounds={"count": rounds})
        command = [sys.executable, str(_HERE.parent / "run.py"), "--sites", str(_SITES), "--study", str(study)]
        for option, paths in (("--data", given.data), ("--series", given.series or [])):
            for path in paths:
                command += [option, str(path)]
        command += ["--seed", str(task.seed), "--threads", "1", "--out", str(run)]
        return command, lambda: flat(Synthesizer.load(run).sample_units(len(task.taught), seed=task.seed), task.source)

    return method


def alone(peer: str, environments: Path, *options: str) -> Method:
    """A peer that sees all rows in one place; options: of `synthesize.py`, that are its own."""

    def method(folder: Path, task: Task) -> Asked:
        return task.ask(peer, folder, environments, options)

    return method


class Task:
    """One data set, divided once: what all methods get, and are measured on.

    given: its files.
    taught: records that teach, one a unit; windows as columns beside them.
    """

    def __init__(self, given: Files, seed: int) -> None:
        self.given, self.seed = given, seed
        run = choose(scenario=Scenario.BANK, **asdict(given), units=None, sites=_SITES, seed=seed)
        study, divided = run.study, divide(run)
        self.source, self._study = study, flatten(study)
        members = divided.members.table
        bounded = bound_units(
            members.records, key=study.unit.key, max_records=1, drop_surplus=True, holdout=0.0, secret=b"peers"
        )
        self.taught = flat(members.take(np.sort(bounded.rows)), study)
        self._test = flat(divided.test.table, study)
        self._grids = [_coarse(name, column) for name, column in self._study.columns.items()]

    def score(self, rows: pd.DataFrame) -> tuple[dict[str, float], float]:
        """The areas of all classifiers, and the distance of pairs."""
        predicted = predict(rows, self._test, self._study, seed=self.seed)
        areas = {name: score(one, seed=self.seed).auc for name, one in predicted.items()}
        two_way = measure_fidelity(rows, self.taught, self._study, edges_from=self.taught).two_way_mean
        assert two_way is not None
        return {name: area for name, area in areas.items() if area is not None}, two_way

    def ask(self, peer: str, folder: Path, environments: Path, options: Sequence[str]) -> Asked:
        """The command that asks a peer, and its rows when it is done."""
        table, sizes, made = folder / "codes.csv", folder / "sizes.json", folder / f"{peer}.csv"
        names = [grid.name for grid in self._grids]
        pd.DataFrame(encode_table(self.taught, self._grids), columns=names).to_csv(table, index=False)
        write_json(sizes, {grid.name: grid.n_cells for grid in self._grids})
        privacy = self._study.privacy
        command = [
            str(_python_of(peer, environments)),
            str(_HERE / "synthesize.py"),
            peer,
            str(table),
            str(sizes),
            str(made),
        ]
        command += ["--epsilon", str(privacy.epsilon), "--delta", str(privacy.delta)]
        command += ["--rows", str(len(self.taught)), "--seed", str(self.seed), *options]
        return command, lambda: self._decode(pd.read_csv(made))

    def _decode(self, codes: pd.DataFrame) -> pd.DataFrame:
        """Values of a peer's codes, even inside a cell: it knows no more of them."""
        random = np.random.default_rng(self.seed)
        return pd.DataFrame({grid.name: grid.decode(codes[grid.name].to_numpy(), random) for grid in self._grids})


def flatten(study: Study) -> Study:
    """A study with the mean and the last value of each channel as columns, and no windows: for what knows only columns.

    Raises:
        ValueError: a channel is not a number.
    """
    if study.windows is None:
        return study
    columns: dict[str, Column] = dict(study.columns)
    for name, channel in study.channels.items():
        if not isinstance(channel, IntegerColumn | ContinuousColumn):
            raise ValueError(f"{name}: a channel of {channel.type} has no mean")
        kept = {key: getattr(channel, key) for key in ("min", "max", "scale", "scale_unit", "cells", "special")}
        for part in ("mean", "last"):
            columns[f"{name} {part}"] = ContinuousColumn(type="continuous", missing=True, **kept)
    return study.model_copy(update={"windows": None, "columns": columns})


def flat(table: WindowedTable, study: Study) -> pd.DataFrame:
    """Records with the columns of `flatten`: missing where a unit has no value of the channel."""
    columns = {}
    for position, name in enumerate(study.channels):
        values = table.values[:, :, position]
        there = ~np.isnan(values)
        steps = there.sum(axis=1)
        last = values.shape[1] - 1 - np.argmax(there[:, ::-1], axis=1)
        total = np.where(there, values, 0.0).sum(axis=1)
        columns[f"{name} mean"] = np.where(steps > 0, total / np.maximum(steps, 1), np.nan)
        columns[f"{name} last"] = values[np.arange(len(values)), last]
    return table.records.assign(**columns)


def _coarse(name: str, column: Column) -> Grid:
    """The cells of a column as peers see it."""
    is_category = isinstance(column, CategoricalColumn)
    return make_grid(name, column if is_category else column.model_copy(update={"cells": _CELLS}))


_NOTE: Final = f"""\
AUC of classifiers that learned from each method's rows, asked on real units that nobody had; `distance` is the mean
total variation over all pairs of columns, numbers cut at real deciles. Mean over seeds, with the half width of its
95 % t-interval. The *lead* is privshare's area less the method's with the same seed, so with the same units taught and
asked: what differs between divisions is not in it. ε, δ and unit are the study's, one record a unit. privshare runs
{_SITES} sites, each with noise of its own that suffices alone; peers see all rows in one place. Peers get columns as
codes of the study's public cells, at most {_CELLS} of a number, evenly on its scale, and special values of their own:
more than they would know by themselves. They know no windows: of physionet2012 they get the mean and the last value
of each channel as columns; privshare makes windows, of which the same columns are taken. Processor time is that of a
whole command on one thread; what privshare measures of its own table is in it.
"""


def table_of(out: Path) -> str:
    """Everything that is there, as Markdown."""
    parts = [_NOTE]
    for name in SOURCES:
        found = {method: cells_of(out / name, method) for method in (REAL, _OURS, *PEERS)}
        found = {method: cells for method, cells in found.items() if cells}
        if found:
            parts.append(_section(name, found))
    return "\n".join(parts)


def cells_of(folder: Path, method: str) -> dict[int, Cell]:
    """What a method made of the data set of a folder, by seed, as far as it is there."""
    paths = sorted(folder.glob(f"*/{method}.json"), key=lambda path: int(path.parent.name))
    return {int(path.parent.name): Cell(**json.loads(path.read_bytes())) for path in paths}


def _section(name: str, found: Mapping[str, Mapping[int, Cell]]) -> str:
    titles = {REAL: "real rows", _OURS: f"**privshare**, {_SITES} sites"}
    lines = [
        f"## {name}\n",
        "| method | seeds | boosting | lead | logistic regression | lead | distance | CPU s | MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for method, by_seed in found.items():
        title, cells = titles.get(method) or PEERS[method].title, by_seed.values()
        auc = []
        for one in _CLASSIFIERS:
            auc.append(said([cell.auc[one] for cell in cells if one in cell.auc]))
            auc.append(said(_leads(found.get(_OURS, {}), by_seed, one), sign="+") if method in PEERS else "")
        seconds = [cell.seconds for cell in cells if cell.seconds is not None]
        peaks = [cell.peak for cell in cells if cell.peak is not None]
        cost = [f"{np.mean(seconds):,.0f}" if seconds else "", f"{max(peaks) / 2**20:,.0f}" if peaks else ""]
        row = [title, str(len(cells)), *auc, said([cell.two_way for cell in cells]), *cost]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def _leads(ours: Mapping[int, Cell], theirs: Mapping[int, Cell], classifier: str) -> list[float]:
    """By how much our rows teach a classifier more, for each seed that both have."""
    areas = [(ours[seed].auc, theirs[seed].auc) for seed in ours.keys() & theirs.keys()]
    return [own[classifier] - other[classifier] for own, other in areas if classifier in own and classifier in other]


def said(values: list[float], *, sign: str = "-") -> str:
    """Mean and half width of its 95 % t-interval; nothing where there is none.

    Args:
        values: of runs.
        sign: of a mean, as in a format: `+` to have it in front of positive ones too.
    """
    figure = over_seeds(values)
    if figure.value is None:
        return ""
    half = "" if figure.high is None else f" ± {figure.high - figure.value:.3f}"
    return f"{figure.value:{sign}.3f}{half}"


if __name__ == "__main__":
    app()
