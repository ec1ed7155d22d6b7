"""A whole federation on this machine: `python simulations/run.py --sites 4`.

Sites hold their own rows, what leaves them is noised and accounted, a generator learns from it, and a synthetic table
is published and measured. Without a table of your own it simulates cross-bank transactions.
"""

import hashlib
import json
import logging
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
import yaml
from pydantic import TypeAdapter
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from threadpoolctl import threadpool_limits

from client.records import parse_text, read_text
from common.data.units import check_surplus
from common.errors import CheckpointError, ExitCode, OutputError, PrivShareError, SchemaError, StudyError
from common.evaluation.report import evaluate
from common.study import Study, load_study
from server.checkpoints import write_file, write_json
from server.publish import draw_table, publish, rows_to_publish
from server.rounds import Coordinator, Trained
from simulations.federation import Engine, SiteFolder, make_site_folder, run_federation
from simulations.scenarios.bank import MOST_BANKS, simulate_transactions
from simulations.splits import set_aside, split, units_of

_SCENARIO = Path(__file__).parent / "studies" / "bank.yaml"
_TEST_SHARE = 0.2
_MOST_SEED = 2**32 - 1
_QUICK = {"count": 3, "refine_steps": 40, "local_steps": 5}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
err = Console(stderr=True, emoji=False)


class EngineKind(StrEnum):
    """What carries messages: a call in this process, or Flower's simulation on Ray."""

    PROCESS = "process"
    FLOWER = "flower"


@dataclass(frozen=True)
class Options:
    """Everything that fixes a run; written to options.json, and must be the same to resume it."""

    sites: int
    split: str
    seed: int
    quick: bool
    data: list[str]
    data_digests: list[str]
    accounts: int
    test_noise_seed: int | None


@dataclass(frozen=True)
class Run:
    """A run: its study, what fixes it, where it lives, and whether it has yet to be begun."""

    study: Study
    options: Options
    folder: Path
    is_new: bool

    @property
    def name(self) -> str:
        """Names the run for ever. In test mode the noise follows from it, so it must not depend on the folder."""
        seed = self.options.test_noise_seed
        return f"{self.study.name}-{self.folder.name if seed is None else f'test-{seed}'}"


@app.command()
def main(  # noqa: PLR0913 (one parameter an option)
    *,
    sites: Annotated[int, typer.Option(min=1, help="Number of sites.")] = 4,
    study: Annotated[
        Path | None, typer.Option(help="Study file; needs --data. Default: simulated bank transactions.")
    ] = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="Table of the study; repeat it to join several files.")
    ] = None,
    accounts: Annotated[int, typer.Option(min=100, help="Accounts of the embedded scenario.")] = 100_000,
    split_by: Annotated[
        str,
        typer.Option(
            "--split",
            help="Who holds what: iid, dirichlet:A (small A: unequal labels) or column:NAME. Default: iid, but the "
            "scenario by bank.",
        ),
    ] = "",
    epsilon: Annotated[float | None, typer.Option(help="Instead of the study's epsilon.")] = None,
    delta: Annotated[float | None, typer.Option(help="Instead of the study's delta.")] = None,
    engine: Annotated[
        EngineKind, typer.Option(help="process: at once, no Ray. flower: Flower's simulation.")
    ] = EngineKind.PROCESS,
    seed: Annotated[
        int, typer.Option(min=0, max=_MOST_SEED, help="Of splits, models and classifiers; never of privacy noise.")
    ] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="Compute threads.")] = 2,
    out: Annotated[Path | None, typer.Option(help="Folder of the run. Default: runs/STUDY/TIME.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Folder of an interrupted run to go on with.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few steps: to see it work, not for good data.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Result as one JSON object on stdout.")] = False,
    test_noise_seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=_MOST_SEED,
            help="TEST MODE: noise from a seed, to compare engines. Voids the guarantee; the certificate says so.",
        ),
    ] = None,
) -> None:
    """Run a federation of simulated sites and publish one synthetic table."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    run = None
    try:
        if resume is not None:
            run = _resumed(resume)
        else:
            chosen, paths = _chosen_study(study, data, epsilon=epsilon, delta=delta, quick=quick)
            default = "column:bank" if study is None and sites <= MOST_BANKS else "iid"
            names = [str(path) for path in paths]
            digests = [_digest(path) for path in paths]
            options = Options(sites, split_by or default, seed, quick, names, digests, accounts, test_noise_seed)
            run = Run(chosen, options, out or _default_folder(chosen), is_new=True)
        # torch has its own setting; this binds the classifiers of the evaluation.
        with threadpool_limits(threads):
            _run(run, engine=engine, device=device, threads=threads, json_output=json_output)
    except PrivShareError as error:
        err.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(int(error.code)) from None
    except KeyboardInterrupt:
        hint = f"; go on with --resume {run.folder}" if run is not None and run.folder.exists() else ""
        err.print(f"interrupted{hint}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(130) from None
    except Exception as error:  # noqa: BLE001 (its text may hold a cell: only its kind and place are told)
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = f"a fault of privshare: {type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
        err.print(f"error: {what}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(int(ExitCode.INTERNAL)) from None


def _chosen_study(
    path: Path | None, data: list[Path] | None, *, epsilon: float | None, delta: float | None, quick: bool
) -> tuple[Study, list[Path]]:
    if (path is None) != (not data):
        raise StudyError("--study and --data: give both, or neither for the embedded scenario", ExitCode.USAGE)
    study = load_study(path or _SCENARIO).with_overrides(
        privacy={"epsilon": epsilon, "delta": delta}, rounds=_QUICK if quick else {}
    )
    return study, list(data or [])


def _default_folder(study: Study) -> Path:
    return Path("runs") / study.name / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")


def _resumed(folder: Path) -> Run:
    try:
        options = TypeAdapter(Options).validate_json((folder / "options.json").read_bytes(), strict=True)
    except (OSError, ValueError):
        raise OutputError(f"{folder}: is not the folder of a run", ExitCode.RESUME_IMPOSSIBLE) from None
    for path, digest in zip(options.data, options.data_digests, strict=True):
        if _digest(Path(path)) not in ("", digest):
            raise CheckpointError(f"{path}: the table was changed since the run began")
    return Run(load_study(folder / "study.lock.yaml"), options, folder, is_new=False)


def _digest(path: Path) -> str:
    """SHA-256 of a file; empty where there is none, which reading it will say better."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def _open_folder(run: Run) -> None:
    """Make the folder of a new run, and write what is needed to resume it.

    Raises:
        OutputError: it holds something already, or cannot be written.
    """
    if not run.is_new:
        return
    folder = run.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        occupied = any(folder.iterdir())
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror})") from None
    if occupied:
        raise OutputError(f"{folder}: is not empty; choose another --out, or --resume it")
    write_file(folder / "study.lock.yaml", yaml.safe_dump(json.loads(run.study.canonical()), sort_keys=False).encode())
    write_json(folder / "options.json", vars(run.options))


def _run(run: Run, *, engine: EngineKind, device: str, threads: int, json_output: bool) -> None:
    started = time.monotonic()
    study, options, folder = run.study, run.options, run.folder
    chosen = _device(device)
    text = _read(study, options)
    _check_learnable(text, study)
    aside = set_aside(units_of(text, study), share=_TEST_SHARE, seed=options.seed)
    shared = text[~aside].reset_index(drop=True)
    positions = split(shared, study, sites=options.sites, how=options.split, seed=options.seed)
    _open_folder(run)
    with tempfile.TemporaryDirectory(prefix="privshare-") as private:
        sites = _site_folders(shared, positions, run, Path(private))
        trained = _conduct(run, sites, _engine(engine, chosen, threads, options), chosen)
    table = draw_table(trained, study, rows=rows_to_publish(trained, study), seed=options.seed, device=chosen)
    certificate = publish(trained, study, table, folder)
    err.print("measuring the synthetic table against real rows that no site had ...", style="dim")
    evaluation = evaluate(table, parse_text(shared, study), parse_text(text[aside], study), study, seed=options.seed)
    evaluation["monitor"] = trained.state.monitor
    write_json(folder / "evaluation.json", evaluation)
    _report(run, evaluation, certificate, seconds=time.monotonic() - started, json_output=json_output)


def _device(name: str) -> torch.device:
    usable = re.fullmatch(r"cpu|cuda(:\d+)?", name) is not None
    try:
        torch.zeros(1, device=name if usable else "cpu")
    except (RuntimeError, AssertionError):
        usable = False
    if not usable:
        raise StudyError(f"device={name}: not a device of this machine; expected cpu, cuda or cuda:N", ExitCode.USAGE)
    return torch.device(name)


def _engine(kind: EngineKind, device: torch.device, threads: int, options: Options) -> Engine:
    seed = options.test_noise_seed
    return Engine(kind.value, str(device), threads, None if seed is None else seed.to_bytes(16, "big"))


def _read(study: Study, options: Options) -> pd.DataFrame:
    if not options.data:
        return simulate_transactions(
            seed=options.seed, accounts=options.accounts, banks=max(4, min(options.sites, MOST_BANKS))
        )
    return pd.concat([read_text(Path(path), study) for path in options.data], ignore_index=True)


def _check_learnable(text: pd.DataFrame, study: Study) -> None:
    """Refuse a table from which nothing can be learned. Only a simulation can look at all sites' rows together.

    Raises:
        SchemaError: what the table lacks.
    """
    parsed = parse_text(text, study)
    units = units_of(text, study)
    if study.unit.surplus == "refuse":
        check_surplus(units.number, key=study.unit.key, max_records=study.unit.max_records)
    if units.count < 2:
        raise SchemaError("table: at least two units are needed", ExitCode.TOO_FEW_UNITS)
    if parsed[study.label.column].nunique() < 2:
        raise SchemaError(f"{study.label.column}: the label has a single class", ExitCode.SINGLE_CLASS_LABEL)
    for name in study.columns:
        if parsed[name].nunique(dropna=False) < 2:
            raise SchemaError(f"{name}: the column holds one value only; move it to `ignore`", ExitCode.CONSTANT_COLUMN)


def _site_folders(shared: pd.DataFrame, positions: list[np.ndarray], run: Run, private: Path) -> list[SiteFolder]:
    lock, layout = run.folder / "study.lock.yaml", run.study.table
    folders = []
    for number, rows in enumerate(positions):
        # The same layout as the table came in, so that a site reads its file by the same study.
        table = shared.iloc[rows].to_csv(
            index=False,
            sep=layout.delimiter,
            header=layout.header is None,
            columns=list(layout.header or shared.columns),
        )
        name, seed = f"site_{number + 1:02d}", run.options.seed
        folders.append(make_site_folder(name, lock, run.study, table, private=private, kept=run.folder, seed=seed))
    return folders


def _conduct(run: Run, sites: list[SiteFolder], engine: Engine, device: torch.device) -> Trained:
    results: list[Trained] = []
    with _Progress(run.study) as on_step:
        coordinator = Coordinator(
            run.study,
            folder=run.folder,
            run=run.name,
            seed=run.options.seed,
            sites=run.options.sites,
            device=device,
            on_step=on_step,
        )
        run_federation(sites, lambda exchange: results.append(coordinator.run(exchange)), engine)
    return results[0]


class _Progress:
    """Progress of a run on standard error: a bar on a terminal, a line a step elsewhere."""

    def __init__(self, study: Study) -> None:
        self._rounds = study.rounds.count
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=err,
        )
        self._task = self._bar.add_task("measuring", total=self._rounds, note="")
        self._started = time.monotonic()

    def __enter__(self) -> Callable[[dict[str, Any]], None]:
        if err.is_terminal:
            self._bar.start()
        return self._show

    def __exit__(self, *_: object) -> None:
        if err.is_terminal:
            self._bar.stop()

    def _show(self, line: dict[str, Any]) -> None:
        done = line.get("round")
        note = f"budget {line['budget_used']:.0%}"
        if line.get("loss") is not None:
            note += f"  loss {line['loss']:.3f}"
        if err.is_terminal:
            self._bar.update(self._task, description=line["step"].replace("_", " "), completed=done, note=note)
            return
        elapsed = time.monotonic() - self._started
        left = f", about {elapsed / done * (self._rounds - done):.0f} s left" if done else ""
        place = f" {done}/{self._rounds}" if done else ""
        err.print(
            f"{line['step'].replace('_', ' ')}{place}  {note}  {elapsed:.0f} s{left}", markup=False, highlight=False
        )


def _report(
    run: Run, evaluation: dict[str, Any], certificate: dict[str, Any], *, seconds: float, json_output: bool
) -> None:
    study, folder = run.study, run.folder
    if json_output:
        summary = {
            "folder": str(folder),
            "seconds": round(seconds, 1),
            "guarantee": certificate["guarantee"],
            "utility": evaluation["utility"],
            "fidelity": evaluation["fidelity"],
            "monitor": evaluation["monitor"],
        }
        typer.echo(json.dumps(summary, allow_nan=False))
        return
    console = Console()
    table = Table(title=f"{study.name}: trained on synthetic rows beside real rows, tested on units that no site had")
    table.add_column("classifier")
    table.add_column("measure")
    for heading in ("synthetic", "real", "difference"):
        table.add_column(heading, justify="right")
    for classifier, scores in evaluation["utility"]["tstr"].items():
        for measure in ("auc", "auprc", "accuracy", "f1", "recall"):
            ours, real = scores[measure], evaluation["utility"]["trtr"][classifier][measure]
            table.add_row(
                classifier,
                measure,
                _number(ours),
                _number(real),
                _number(ours - real if None not in (ours, real) else None),
            )
    console.print(table)
    distances = evaluation["fidelity"]["synthetic_vs_train"]
    floor = evaluation["fidelity"]["floor_train_vs_holdout"]
    console.print(
        f"total variation distance to the sites' rows: one-way {distances['one_way_mean']:.4f}, two-way "
        f"{distances['two_way_mean']:.4f}; two real tables differ by {floor['one_way_mean']:.4f} and "
        f"{floor['two_way_mean']:.4f}"
    )
    guarantee = certificate["guarantee"]
    console.print(guarantee["statement"] if guarantee else f"NO GUARANTEE: {certificate['void_because']}")
    console.print(f"{evaluation['rows']['synthetic']} rows in {folder / 'synthetic.csv'} after {seconds:.0f} s")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    app()
