"""Command lines that look alike: plain help, results on stdout, and everything else on stderr, an error in one line."""

from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

import click
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperCommand, TyperGroup

from common.errors import PrivShareError

ASIDE: Final = Console(stderr=True, emoji=False)
"""Where what is no result goes."""


class Commands(typer.Typer):
    """A typer application of this house.

    An error of this project that a command lets through ends it as `fail` does. Typer puts a backslash before
    `[required]` for its coloured help, also where there is none: it is taken off again.
    """

    def __init__(self, **options: Any) -> None:
        """Take typer's options, with other defaults."""
        plain: dict[str, Any] = {"add_completion": False, "pretty_exceptions_enable": False, "rich_markup_mode": None}
        super().__init__(**{"cls": _Group, **plain, **options})

    def command(self, name: str | None = None, **options: Any) -> Callable[[Any], Any]:
        """As typer's."""
        return super().command(name, **{"cls": _Command, **options})


class _Command(TyperCommand):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PrivShareError as error:
            fail(error)

    def get_help(self, ctx: click.Context) -> str:
        return _plain(super().get_help(ctx))


class _Group(TyperGroup):
    def get_help(self, ctx: click.Context) -> str:
        return _plain(super().get_help(ctx))


def _plain(text: str) -> str:
    return text.replace("\\[", "[")


def say_aside(line: str) -> None:
    """To stderr, beside a result."""
    ASIDE.print(line, markup=False, highlight=False, soft_wrap=True)


def show(facts: Mapping[str, str], *, title: str) -> None:
    """A table of two columns, to stdout."""
    table = Table(title=escape(title), show_header=False)
    table.add_column()
    table.add_column(overflow="fold")  # a digest or a fingerprint is read whole or not at all
    for name, value in facts.items():
        table.add_row(escape(name), escape(value))
    Console().print(table)


def fail(error: PrivShareError) -> NoReturn:
    """End with an error's line and code."""
    ASIDE.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(int(error.code)) from None
