"""The record of what was spent: `ledger show`, `ledger verify`."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.commands.place import settings_of
from client.keys import identity
from client.replies import Replies
from common.commands import Commands, fail
from common.errors import LedgerError, PrivShareError
from common.privacy.ledger import Book, read_ledger

app = Commands(no_args_is_help=True, help="The record of what was spent.")


@app.command()
def show(
    context: typer.Context, *, json_output: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False
) -> None:
    """Every release that was paid for, and what is left of each budget."""
    settings = settings_of(context)
    try:
        book = read_ledger(settings.ledger)
    except PrivShareError as error:
        fail(error)
    if json_output:
        typer.echo(json.dumps(_as_dict(book), allow_nan=False))
        return
    console = Console()
    for study in book.bounds:
        console.print(_charges_of(book, study))
    for line in budget_lines(book):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


@app.command()
def verify(context: typer.Context) -> None:
    """Check every entry: chain, signatures, budgets, seals, and that every sealed reply is there unchanged."""
    settings = settings_of(context)
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
        fail(error)
    sealed = sum(len(seals) for seals in book.seals.values())
    charged = sum(len(charges) for charges in book.charges.values())
    typer.echo(f"whole: {len(book.hashes)} entries, {charged} charges, {sealed} sealed replies")
    for line in budget_lines(book):
        typer.echo(line)
    typer.echo("that it is the newest ledger, no file can show: other sites confirm it when a run begins")


def _seals(book: Book) -> list[tuple[str, str, str]]:
    return [(study, request, digest) for study, seals in book.seals.items() for request, digest in seals.items()]


def budget_lines(book: Book) -> list[str]:
    """How much of each budget is spent, a sentence each."""
    lines = [
        f"study {study[:12]}: {float(book.worst(study)) / bound:.2%} of its budget is spent"
        for study, bound in book.bounds.items()
    ]
    spent = float(sum(map(book.worst, book.bounds)))
    return [*lines, f"all studies: {spent / book.asset['bound']:.2%} of what this data may ever pay is spent"]


def _charges_of(book: Book, study: str) -> Table:
    table = Table(title=escape(f"{book.asset['site']}: {book.asset['asset']}, study {study[:12]}"))
    table.add_column("request", overflow="fold")  # the end of its name says which release it was
    for name in ("account", "noise / change", "cells", "of the budget", "sealed"):
        table.add_column(name, no_wrap=True)
    for charge in book.charges[study].values():
        event = charge.event
        table.add_row(
            escape(charge.request),
            event.account,
            f"{event.noise_stddev / event.squared_sensitivity**0.5:.4g}",
            f"{event.cells:,}",
            f"{book.spend_of(event) / book.bounds[study]:.1%}",
            "yes" if charge.request in book.seals[study] else "no",
        )
    return table


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
