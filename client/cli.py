"""`privshare-client --site hospital_a`: what a data steward does at a site. Thin: parse, call one function, print."""

from pathlib import Path
from typing import Annotated

import typer

from client.commands import checks, consent, ledger, membership
from client.commands.place import Place, now, settings_of
from client.policy import SiteSettings
from common.commands import Commands, fail
from common.errors import PrivShareError
from common.exits import said_of

app = Commands(
    invoke_without_command=True,
    help="Run a site, until Ctrl-C. With a command: what it allows, what it has spent, and how it joins.",
)
for _part in (membership, checks, consent):
    app.add_typer(_part.app)
app.add_typer(ledger.app, name="ledger")


@app.callback()
def choose(
    context: typer.Context,
    *,
    site: Annotated[str, typer.Option(help="Name of the site; its folder holds site.yaml.")],
    sites: Annotated[
        Path, typer.Option(envvar="PRIVSHARE_SITES", help="Folder that holds a folder a site.", show_default=True)
    ] = Path("sites"),
    device: Annotated[str, typer.Option(help="Where to train: cpu, cuda or cuda:N.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="Compute threads.")] = 2,
    test_noise_seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=2**32 - 1,
            help="TEST MODE: noise from a seed, to compare transports. Voids the guarantee; the certificate says so.",
        ),
    ] = None,
) -> None:
    """Run a site, until Ctrl-C. With a command: what it allows, what it has spent, and how it joins."""
    context.obj = Place(site, sites / site)
    if context.invoked_subcommand is None:
        _run(settings_of(context), context.obj, device=device, threads=threads, noise_seed=test_noise_seed)


@app.command()
def explain(
    code: Annotated[str, typer.Argument(help="Exit code, by number or name.")],
    *,
    json_output: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """What an exit code means, its usual cause, and how to mend it."""
    try:
        typer.echo(said_of(code, as_json=json_output))
    except PrivShareError as error:
        fail(error)


def _run(settings: SiteSettings, place: Place, *, device: str, threads: int, noise_seed: int | None) -> None:
    # torch and Flower take seconds to import, and no other command needs them.
    from client.running import run_site  # noqa: PLC0415

    try:
        run_site(settings, place.file, device=device, threads=threads, noise_seed=noise_seed, now=now)
    except PrivShareError as error:
        fail(error)
