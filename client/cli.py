"""`privshare-client --site hospital_a`: what a data steward does at a site. Thin: parse, call one function, print."""

import json
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.keys import identity, make_identity
from client.policy import (
    PolicyFile,
    SitePolicy,
    SiteSettings,
    load_site_settings,
    read_policy,
    sign_policy,
    today_utc,
)
from client.replies import Replies
from common.errors import LedgerError, PolicyError, PrivShareError
from common.privacy.ledger import Book, read_ledger
from common.study import Study, load_study

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="What a site allows, and what it has spent.",
)
ledger_app = typer.Typer(no_args_is_help=True, help="The record of what was spent.")
app.add_typer(ledger_app, name="ledger")
_err = Console(stderr=True, emoji=False)


@app.callback()
def choose(
    context: typer.Context,
    *,
    site: Annotated[str, typer.Option(help="Name of the site; its folder holds site.yaml.")],
    sites: Annotated[
        Path, typer.Option(envvar="PRIVSHARE_SITES", help="Folder that holds a folder a site.", show_default=True)
    ] = Path("sites"),
) -> None:
    """What a site allows, and what it has spent."""
    path = sites / site / "site.yaml"
    try:
        settings = load_site_settings(path)
        if settings.site != site:
            raise PolicyError(f"{path}: is the file of another site")
    except PrivShareError as error:
        _fail(error)
    context.obj = settings


@app.command()
def approve(
    context: typer.Context, *, yes: Annotated[bool, typer.Option("--yes", help="Do not ask; sign.")] = False
) -> None:
    """Show what the policy and its study allow, and sign the policy."""
    settings = _settings(context)
    try:
        study, policy = load_study(settings.study), read_policy(settings.policy)
        bound = SitePolicy(settings, policy, study, today=today_utc)
    except PrivShareError as error:
        _fail(error)
    _show({**_terms(study, policy), "noise_at_least": _floor(policy), "bound": f"{bound.bound:.6g}"}, title=study.name)
    if not yes and not typer.confirm("Sign this?", err=True):
        raise typer.Exit(1)
    try:
        key = make_identity(settings.state)
        sign_policy(settings.policy, key)
    except OSError as error:
        _fail(PolicyError(f"{settings.policy}: cannot be signed ({error.strerror})"))
    except PrivShareError as error:
        _fail(error)
    typer.echo(f"signed {settings.policy} as {key.public}")


@ledger_app.command()
def show(
    context: typer.Context, *, json_output: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False
) -> None:
    """Every release that was paid for, and what is left of each budget."""
    settings = _settings(context)
    try:
        book = read_ledger(settings.ledger)
    except PrivShareError as error:
        _fail(error)
    if json_output:
        typer.echo(json.dumps(_as_dict(book), allow_nan=False))
        return
    table = Table(title=escape(f"{book.asset['site']}: {book.asset['asset']}"))
    for name in ("study", "request", "account", "noise / change", "cells", "spend", "sealed"):
        table.add_column(name)
    for study, charges in book.charges.items():
        for charge in charges.values():
            event = charge.event
            table.add_row(
                study[:12],
                escape(charge.request),
                event.account,
                f"{event.noise_stddev / event.squared_sensitivity**0.5:.4g}",
                f"{event.cells:,}",
                f"{book.spend_of(event):.4g}",
                "yes" if charge.request in book.seals[study] else "no",
            )
    console = Console()
    console.print(table)
    for line in _lines(book):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


@ledger_app.command()
def verify(context: typer.Context) -> None:
    """Check every entry: chain, signatures, budgets, seals, and that every sealed reply is there unchanged."""
    settings = _settings(context)
    try:
        book = read_ledger(settings.ledger)
        key = identity(settings.state)
        if book.public != key.public:
            raise LedgerError(f"{settings.ledger}: was signed with another key than this site's")
        replies = Replies(settings.state)
        missing = sum(not replies.is_whole(*seal) for seal in _seals(book))
        if missing:
            raise LedgerError(f"{settings.state}: {missing} sealed replies are missing or were changed")
    except PrivShareError as error:
        _fail(error)
    sealed = sum(len(seals) for seals in book.seals.values())
    charged = sum(len(charges) for charges in book.charges.values())
    typer.echo(f"whole: {len(book.hashes)} entries, {charged} charges, {sealed} sealed replies")
    for line in _lines(book):
        typer.echo(line)
    typer.echo("that it is the newest ledger, no file can show: other sites confirm it when a run begins")


def _settings(context: typer.Context) -> SiteSettings:
    settings = context.obj
    assert isinstance(settings, SiteSettings)
    return settings


def _terms(study: Study, policy: PolicyFile) -> dict[str, str]:
    privacy = study.privacy
    epsilon, delta = min(privacy.epsilon, policy.max_epsilon), min(privacy.delta, policy.max_delta)
    return {
        "purpose": study.purpose,
        "digest": study.digest(),
        "protects": f"each {study.unit.name}, by {study.unit.key or 'record'}: add or remove one",
        "this_study": f"at most epsilon {epsilon:g}, delta {delta:g}",
        "all_studies": f"at most epsilon {policy.total_epsilon:g}, delta {policy.total_delta:g}, for ever",
        "columns": ", ".join([*study.columns, *study.channels]),
        "until": str(policy.expires or "no end"),
        "confirmed_by": ", ".join(sorted(policy.peers)) or "nobody: a ledger that was restored is not noticed",
    }


def _floor(policy: PolicyFile) -> str:
    return f"{policy.least_noise:g} times what one unit changes" if policy.least_noise else "no least noise"


def _show(facts: dict[str, str], *, title: str) -> None:
    table = Table(title=escape(title), show_header=False)
    table.add_column()
    table.add_column(overflow="fold")  # a digest is read whole or not at all
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), escape(value))
    Console().print(table)


def _seals(book: Book) -> list[tuple[str, str, str]]:
    return [(study, request, digest) for study, seals in book.seals.items() for request, digest in seals.items()]


def _lines(book: Book) -> list[str]:
    lines = [
        f"study {study[:12]}: {float(book.worst(study)) / bound:.2%} of its budget is spent"
        for study, bound in book.bounds.items()
    ]
    spent = float(sum(map(book.worst, book.bounds)))
    return [*lines, f"all studies: {spent / book.asset['bound']:.2%} of what this data may ever pay is spent"]


def _as_dict(book: Book) -> dict[str, object]:
    return {
        **book.asset,
        "head": {"sequence": book.head.sequence, "hash": book.head.hash},
        "studies": {
            study: {
                "bound": bound,
                "spent": {account: float(book.spent[study, account]) for account in ("train", "holdout")},
                "charges": [
                    {
                        "request": charge.request,
                        "event": charge.event.as_dict(),
                        "spend": book.spend_of(charge.event),
                        "sealed": charge.request in book.seals[study],
                    }
                    for charge in book.charges[study].values()
                ],
            }
            for study, bound in book.bounds.items()
        },
    }


def _fail(error: PrivShareError) -> NoReturn:
    _err.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(int(error.code)) from None
