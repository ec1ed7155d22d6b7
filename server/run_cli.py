"""`privshare status`, `pause`, `resume`, `stop`, `dashboard`, `export-mlflow`: a run, seen and steered."""

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common.commands import Commands, fail, say_aside
from common.errors import CheckpointError, ExitCode, OutputError, PrivShareError
from server.checkpoints import write_file
from server.run_folder import ask, read_outcome, take_back
from server.snapshot import find_run, snapshot_of

app = Commands()
_Run = Annotated[Path, typer.Argument(help="Folder of a run, or the coordinator's home, whose newest run is taken.")]


@app.command()
def status(
    run: _Run,
    *,
    json_output: Annotated[bool, typer.Option("--json", help="Everything, as one JSON object.")] = False,
) -> None:
    """Where a run stands: stage, round, budget, who answered, certificates, how it ended."""
    try:
        found = snapshot_of(run, now=datetime.now(UTC))
    except PrivShareError as error:
        fail(error)
    if json_output:
        typer.echo(json.dumps(found, allow_nan=False))
        return
    console = Console()
    console.print(_overview(found))
    if found["sites"]:
        console.print(_sites(found))


@app.command()
def pause(run: _Run) -> None:
    """Have a run wait after the step that is going on. Nothing is asked of sites until `privshare resume`."""
    try:
        ask(folder := _run_in(run), "pause")
    except PrivShareError as error:
        fail(error)
    typer.echo(f"{folder}: pauses after the step that is going on; go on with: privshare resume {run}")


@app.command()
def resume(run: _Run) -> None:
    """Have a run that is paused go on, or take back a stop that was not honoured yet."""
    try:
        folder = _run_in(run)
        outcome = read_outcome(folder)
        if outcome is not None and outcome.code == ExitCode.STOPPED:
            raise CheckpointError(f"{folder}: its run is stopped; start it again, and it goes on where it was")
        wish = take_back(folder)
        if wish is None:
            raise CheckpointError(f"{folder}: nothing was asked of its run")
    except PrivShareError as error:
        fail(error)
    typer.echo(f"{folder}: goes on ({wish} is taken back)")


@app.command()
def stop(run: _Run) -> None:
    """Have a run end after the step that is going on, with code 69. Started again, it goes on where it was."""
    try:
        ask(folder := _run_in(run), "stop")
    except PrivShareError as error:
        fail(error)
    typer.echo(f"{folder}: stops after the step that is going on; started again, it goes on where it was")


@app.command()
def dashboard(
    run: _Run,
    *,
    host: Annotated[str, typer.Option(help="Address to listen at. Only loopback without --expose.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8600,
    token_file: Annotated[
        Path | None, typer.Option(help="Keep the token here, mode 0600. Default: a new one at every start.")
    ] = None,
    expose: Annotated[
        bool, typer.Option("--expose", help="Let others on the network reach it; without TLS, so put a proxy before.")
    ] = False,
    save: Annotated[Path | None, typer.Option(help="Write the page as one file instead, and end.")] = None,
) -> None:
    """Show a run on a page that follows it: read-only, for whoever has the address that is printed, until Ctrl-C.

    The same address has /metrics for Prometheus, /events.jsonl and /snapshot.json.
    """
    # The page needs seconds to import; the other commands do without.
    from server.dashboard import LOOPBACK, Watch, read_token, serve  # noqa: PLC0415

    try:
        if save is not None:
            _save(run, save)
            typer.echo(f"wrote {save}")
            return
        if host not in LOOPBACK and not expose:
            raise OutputError(f"host={host}: not loopback; give --expose if others are to reach it", ExitCode.USAGE)
        if host not in LOOPBACK:
            _say(f"warning: {host} is reached from the network, without TLS: the token can be read on the way")
        watch = Watch(run)
        watch.look()  # before anybody is sent there
        serve(watch, host=host, port=port, token=read_token(token_file), on_ready=_print_address)
    except PrivShareError as error:
        fail(error)


@app.command("export-mlflow")
def export_mlflow(
    run: _Run,
    *,
    tracking_uri: Annotated[
        str, typer.Option(envvar="MLFLOW_TRACKING_URI", help="sqlite:///FILE, or the https:// of a server.")
    ] = "sqlite:///mlflow.db",
    experiment: Annotated[str | None, typer.Option(help="Its name in MLflow. Default: the study's.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Log a run in MLflow: what the dashboard shows, and once it is published its certificate and data card.

    Typed again, it adds what has come since. Needs the extra `mlflow`.
    """
    # Before MLflow is imported: it would tell its makers of its use, talk while it works, and ask a server that is not
    # there for minutes.
    os.environ |= {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }
    from server.tracking import export  # noqa: PLC0415 (of an extra, and takes seconds)

    try:
        found = export(run, tracking_uri=tracking_uri, experiment=experiment, now=datetime.now(UTC))
    except PrivShareError as error:
        fail(error)
    if json_output:
        typer.echo(json.dumps(found.as_dict()))
        return
    typer.echo(f"run {found.run_id} of {found.experiment}: {found.points} new points, {len(found.artifacts)} files")


def _print_address(address: str) -> None:
    typer.echo(address)


def _save(run: Path, out: Path) -> None:
    from server.panels import render_page, render_sections  # noqa: PLC0415 (as above)

    now = datetime.now(UTC)
    found = snapshot_of(run, now=now)
    write_file(out, render_page(found, render_sections(found), saved=now).encode())


def _run_in(path: Path) -> Path:
    """The folder of a run.

    Raises:
        CheckpointError: there is none.
    """
    found = find_run(path)
    if found is None:
        raise CheckpointError(f"{path}: no run was started yet")
    return found


def _overview(found: Mapping[str, Any]) -> Table:
    run, verdict, days = found["run"], found["verdict"], found["coordinator"]["certificate_days"]
    table = Table(title=escape(f"{found['study']['name']}: {verdict['word']}"), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    rows = {
        "": verdict["sentence"],
        "measurement": f"{run['stage']} of {run['stages']}",
        "round": f"{run['round']} of {run['rounds']}",
        "budget used": "" if run["budget_used"] is None else f"{run['budget_used']:.1%}",
        "last step": " ".join(filter(None, [run["last_step"], run["last_step_at"]])),
        "seconds left": "" if run["eta_seconds"] is None else f"{run['eta_seconds']:.0f}",
        "exit code": "" if run["code"] is None else str(run["code"]),
        "own certificate": "" if days is None else f"{days} days",
        "study": found["study"]["digest"],
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, escape(value))
    return table


def _sites(found: Mapping[str, Any]) -> Table:
    table = Table(box=None)
    for heading in ("site", "last seen", "behind", "dropped", "budget", "ledger", "certificate"):
        table.add_column(heading)
    spent = {one["site"]: one["spent"] for one in found["budget"] if one["account"] == "train"}
    for site in found["sites"]:
        own, days = spent.get(site["site"]), site["certificate_days"]
        sequence, head = site["ledger_sequence"], site["ledger_hash"]
        table.add_row(
            escape(site["site"]),
            site["last_seen"] or "",
            str(site["missed"]),
            str(site["dropped"]),
            "" if own is None else f"{own:.1%}",
            "" if head is None else f"{sequence} {head[:12]}",
            "" if days is None else f"{days} days",
        )
    return table


def _say(line: str) -> None:
    say_aside(line)
