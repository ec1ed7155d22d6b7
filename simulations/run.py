"""A whole federation on this machine: `python simulations/run.py --sites 4`.

Sites hold their own rows, what leaves them is noised and accounted, a generator learns from it, and a synthetic table
is published and measured. Without a table of your own it simulates cross-bank transactions.
"""

import functools
import json
import logging
import sys
import time
import traceback
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import torch
import typer
from click.core import ParameterSource
from pydantic import TypeAdapter
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from threadpoolctl import threadpool_limits

from common.commands import Commands
from common.errors import CheckpointError, ExitCode, OutputError, PrivShareError, StudyError
from common.evaluation.report import Level
from common.models.devices import device_named
from common.study import Study, load_study
from simulations.ablation import ablate
from simulations.experiment import Options, Results, Run, Scenario, choose, digest_of, execute
from simulations.federation import Engine
from simulations.methods import Method

_MOST_SEED = 2**32 - 1
_HOW_TO_GO_ON: Final = {"resume", "engine", "device", "threads", "level", "json_output"}
"""Parameters that a run which is resumed may be given; all others say what it is."""

app = Commands()
err = Console(stderr=True, emoji=False)


class EngineKind(StrEnum):
    """What carries messages: a call in this process, or Flower's simulation on Ray."""

    PROCESS = "process"
    FLOWER = "flower"


@app.command()
def main(  # noqa: PLR0913 (one parameter an option)
    context: typer.Context,
    *,
    sites: Annotated[int, typer.Option(min=1, help="Number of sites.")] = 4,
    method: Annotated[
        Method,
        typer.Option(
            help="privshare, or what the field would do instead, over the same sites, measured alike: a federated GAN, "
            "federated learning without and with privacy, private logistic regression, one site alone, the real rows."
        ),
    ] = Method.PRIVSHARE,
    scenario: Annotated[
        Scenario,
        typer.Option(
            help="Embedded scenario. bank: transactions, one row each. accounts: the same banks' accounts with their "
            "last transactions in order. icu: intensive-care stays with hourly vital signs."
        ),
    ] = Scenario.BANK,
    units: Annotated[
        int | None, typer.Option(min=100, help="Accounts or stays of the embedded scenario. Default: its own size.")
    ] = None,
    study: Annotated[Path | None, typer.Option(help="Your own study file instead; needs --data.")] = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="Table of the study; repeat it to join several files.")
    ] = None,
    series: Annotated[
        list[Path] | None, typer.Option(help="Long table of a study with windows; repeat it to join several files.")
    ] = None,
    split_by: Annotated[
        str,
        typer.Option(
            "--split",
            help="Who holds what: iid, dirichlet:A (small A: unequal labels) or column:NAME. Default: iid, but the "
            "scenarios by bank or hospital.",
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
    level: Annotated[
        Level,
        typer.Option(
            "--evaluation",
            help="How much is measured: basic is usefulness and fidelity, quick adds attacks on 2,000 units, standard "
            "on 5,000. With --resume, a run that is there is measured again.",
        ),
    ] = Level.BASIC,
    ablation: Annotated[
        int | None,
        typer.Option(
            "--ablate", min=1, help="Instead of one run: so many seeds of each variant of discriminators and noise."
        ),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help='With --ablate: a variant such as "measured only/pid"; repeat it.')
    ] = None,
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
        _check_together(context)
        if resume is not None:
            run = resumed(resume)
        else:
            run = choose(
                scenario=scenario,
                study=study,
                data=data,
                series=series,
                units=units,
                sites=sites,
                how=split_by,
                epsilon=epsilon,
                delta=delta,
                seed=seed,
                quick=quick,
                test_noise_seed=test_noise_seed,
                method=method,
                out=out,
            )
        # torch has its own setting; this binds the classifiers of the evaluation.
        with threadpool_limits(threads):
            started = time.monotonic()
            chosen = device_named(device)
            if ablation is not None:
                on_run = functools.partial(err.print, style="dim", markup=False)
                table = ablate(
                    run,
                    seeds=ablation,
                    only=only or [],
                    engine=_engine(engine, chosen, threads, run.options),
                    device=chosen,
                    on_run=on_run,
                )
                typer.echo(table)
                return
            with _Progress(run.study) as on_step:
                results = execute(run, _engine(engine, chosen, threads, run.options), chosen, on_step, level=level)
        _report(run, results, seconds=time.monotonic() - started, json_output=json_output)
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


def _check_together(context: typer.Context) -> None:
    """No option is given that another one would silence.

    Raises:
        StudyError: one is.
    """
    options = {str(one.name): one.opts[0] for one in context.command.params}
    typed = ParameterSource.COMMANDLINE
    given = {name: option for name, option in options.items() if context.get_parameter_source(name) is typed}
    for name, option in given.items():
        if "resume" in given and name not in _HOW_TO_GO_ON:
            raise StudyError(f"{option}: not with --resume, which goes on with a run as it began", ExitCode.USAGE)
        if "study" in given and name in ("scenario", "units"):
            raise StudyError(f"{option}: of an embedded scenario; not with --study", ExitCode.USAGE)
    if "only" in given and "ablation" not in given:
        raise StudyError("--only: chooses variants of --ablate; give it too", ExitCode.USAGE)


def resumed(folder: Path) -> Run:
    """The run that a folder holds.

    Raises:
        OutputError, CheckpointError: it holds none, or its tables were changed.
    """
    try:
        options = TypeAdapter(Options).validate_json((folder / "options.json").read_bytes(), strict=True)
    except (OSError, ValueError):
        raise OutputError(f"{folder}: is not the folder of a run", ExitCode.RESUME_IMPOSSIBLE) from None
    for path, digest in zip([*options.data, *options.series], options.digests, strict=True):
        if digest_of(Path(path)) not in ("", digest):
            raise CheckpointError(f"{path}: the table was changed since the run began")
    return Run(load_study(folder / "study.lock.yaml"), options, folder, is_new=False)


def _engine(kind: EngineKind, device: torch.device, threads: int, options: Options) -> Engine:
    return Engine(kind.value, str(device), threads, options.test_noise_seed)


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


def _report(run: Run, results: Results, *, seconds: float, json_output: bool) -> None:
    folder, evaluation, certificate = run.folder, results.evaluation, results.certificate
    if json_output:
        parts = ("method", "utility", "fidelity", "windows", "attacks", "controls", "gates", "monitor")
        summary = {
            "folder": str(folder),
            "seconds": round(seconds, 1),
            "guarantee": certificate and certificate["guarantee"],
            **{part: evaluation.get(part) for part in parts},
        }
        typer.echo(json.dumps(summary, allow_nan=False))
        return
    console = Console()
    console.print(utility_table(evaluation["utility"], run.study.name))
    if "fidelity" in evaluation:
        distances = evaluation["fidelity"]["synthetic_vs_train"]
        floor = evaluation["fidelity"]["floor_train_vs_holdout"]
        console.print(
            f"total variation distance to the sites' rows: one-way {distances['one_way_mean']:.4f}, two-way "
            f"{distances['two_way_mean']:.4f}; two real tables differ by {floor['one_way_mean']:.4f} and "
            f"{floor['two_way_mean']:.4f}"
        )
    if strongest := evaluation.get("attacks", {}).get("strongest"):
        console.print(f"strongest of {strongest['tried']} membership attacks: {_attack(strongest)}")
    if certificate is None:
        console.print(f"NO GUARANTEE AND NO CERTIFICATE: {evaluation['description']}")
    else:
        guarantee = certificate["guarantee"]
        console.print(guarantee["statement"] if guarantee else f"NO GUARANTEE: {certificate['void_because']}")
        console.print(f"{evaluation['rows']['synthetic']} rows in {folder / 'synthetic.csv'}")
    console.print(f"what was measured is in {folder / 'report.html'}, after {seconds:.0f} s")


def utility_table(utility: dict[str, Any], name: str) -> Table:
    """Classifiers of published rows beside those of real ones, from an evaluation's `utility`."""
    table = Table(title=f"{name}: what was published beside real rows, tested on units that no site had")
    table.add_column("classifier")
    table.add_column("measure")
    for heading in ("published", "real", "difference"):
        table.add_column(heading, justify="right")
    for classifier, scores in utility["tstr"].items():
        beside = utility["trtr"].get(classifier, {})
        for measure in ("auc", "auprc", "accuracy", "f1", "recall"):
            ours, real = scores[measure], beside.get(measure)
            gap = ours - real if None not in (ours, real) else None
            table.add_row(classifier, measure, _number(ours), _number(real), _number(gap))
    return table


def _attack(strongest: dict[str, Any]) -> str:
    figure = strongest["tpr_at_10"]
    if figure["value"] is None:
        return f"not measured ({figure['reason']})"
    ceiling = "" if figure["ceiling"] is None else f", allowed {figure['ceiling']:.1%}"
    return (
        f"{strongest['attack'].replace('_', ' ')} finds {figure['value']:.1%} of members at 10 % false alarms "
        f"({figure['low']:.1%} to {figure['high']:.1%}; chance 10 %{ceiling})"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    app()
