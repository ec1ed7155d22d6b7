"""`privshare`: the coordinator's commands, and those that need a whole federation on this machine."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from client.commands.checks import show_audit
from common.commands import Commands, fail, say_aside
from common.errors import ExitCode, PrivShareError, StudyError
from common.synthesis.cli import app as consumer
from server.cli import app as coordinator

_MOST_SEED = 2**32 - 1

app = Commands(
    no_args_is_help=True,
    help=coordinator.info.help,
)
app.add_typer(coordinator)
app.add_typer(consumer)


@app.command()
def audit(
    study: Annotated[Path, typer.Argument(help="Study file.")],
    *,
    units: Annotated[int, typer.Option(min=1, help="Units in the simulated table.")] = 500,
    canaries: Annotated[int, typer.Option(min=2, help="Canaries planted in one run.")] = 1000,
    repetitions: Annotated[
        int, typer.Option(min=2, help="Replies with a unit, and without, a kind of release.")
    ] = 1000,
    confidence: Annotated[float, typer.Option(help="That no true claim is contradicted.")] = 0.95,
    seed: Annotated[int, typer.Option(min=0, max=_MOST_SEED, help="Of the rows; never of privacy noise.")] = 0,
    json_output: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Attack the replies of a site with simulated rows, and compare what that proves with what they claim.

    Ends with 23 where a claim is contradicted. An honest site's is, by chance, in one audit of twenty at most; a lower
    bound below the claim proves nothing beyond itself.
    """
    # What a simulation needs takes seconds to import; the other commands do without.
    from client.audit import Plan  # noqa: PLC0415
    from client.audit import audit as attack  # noqa: PLC0415

    started = time.monotonic()

    def on_step(what: str) -> None:
        say_aside(f"{time.monotonic() - started:5.0f} s  {what}")

    try:
        if not 0.75 < confidence < 1:
            raise StudyError(f"confidence={confidence}: expected above 0.75 and below 1", ExitCode.USAGE)
        found = attack(study, Plan(units, canaries, repetitions, seed, confidence), on_step=on_step)
    except PrivShareError as error:
        fail(error)
    if json_output:
        typer.echo(json.dumps(found.as_dict(), allow_nan=False))
    else:
        show_audit(found)
    if found.is_contradicted:
        raise typer.Exit(int(ExitCode.AUDIT_CONTRADICTED))


@app.command()
def tables(  # noqa: PLR0913 (one parameter an option)
    *,
    out: Annotated[Path, typer.Option(help="Folder of all runs, and of paper.md, paper.csv and the figures.")],
    scenario: Annotated[
        list[str] | None, typer.Option(help="bank, accounts or icu; repeat it. Default: bank, icu.")
    ] = None,
    study: Annotated[Path | None, typer.Option(help="Instead of scenarios: a study of your own; needs --data.")] = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="Table of the study; repeat it to join several files.")
    ] = None,
    series: Annotated[
        list[Path] | None, typer.Option(help="Long table of a study with windows; repeat it to join several files.")
    ] = None,
    public: Annotated[
        Path | None,
        typer.Option(help="Instead of scenarios: folder with a folder of each public data set, as `make peers` takes."),
    ] = None,
    source: Annotated[
        list[str] | None, typer.Option(help="Data sets in it; repeat it. Default: all that a study is shipped for.")
    ] = None,
    split: Annotated[str, typer.Option(help="Who holds what, as in simulations/run.py.")] = "",
    units: Annotated[int | None, typer.Option(min=100, help="Units of a scenario. Default: its own size.")] = None,
    sites: Annotated[int, typer.Option(min=1, help="Number of sites.")] = 4,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each method.")] = 5,
    curve_seeds: Annotated[int, typer.Option(min=0, help="Runs at each further epsilon.")] = 1,
    method: Annotated[list[str] | None, typer.Option(help="A method; repeat it. Default: all.")] = None,
    level: Annotated[str, typer.Option("--evaluation", help="quick, standard or deep.")] = "standard",
    threads: Annotated[int, typer.Option(min=1, help="Compute threads.")] = 2,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
) -> None:
    """Run all methods over several seeds, and write the paper's tables and figures with a value in every cell.

    What was run before into the same folder is taken from there, so it can be stopped and gone on with.
    """
    # What a simulation needs takes seconds to import; the other commands do without.
    from simulations.paper import plan_of, run_tables  # noqa: PLC0415

    started = time.monotonic()

    def on_run(what: str) -> None:
        say_aside(f"{time.monotonic() - started:6.0f} s  {what}")

    try:
        plan = plan_of(
            scenarios=scenario or [],
            study=study,
            data=data,
            series=series,
            public=public,
            sources=source or [],
            out=out,
            split=split,
            units=units,
            sites=sites,
            seeds=seeds,
            curve_seeds=curve_seeds,
            methods=method or [],
            level=level,
        )
        typer.echo(run_tables(plan, out, device=device, threads=threads, on_run=on_run))
    except PrivShareError as error:
        fail(error)


if __name__ == "__main__":
    app()
