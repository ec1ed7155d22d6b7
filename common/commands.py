"""Command lines that look alike: plain help, and no shell completion or decorated traceback."""

from collections.abc import Callable
from typing import Any

import click
import typer
from typer.core import TyperCommand, TyperGroup


class Commands(typer.Typer):
    """A typer application of this house.

    Typer puts a backslash before `[required]` for its coloured help, also where there is none: it is taken off again.
    """

    def __init__(self, **options: Any) -> None:
        """Take typer's options, with other defaults."""
        plain: dict[str, Any] = {"add_completion": False, "pretty_exceptions_enable": False, "rich_markup_mode": None}
        super().__init__(**{"cls": _Group, **plain, **options})

    def command(self, name: str | None = None, **options: Any) -> Callable[[Any], Any]:
        """As typer's."""
        return super().command(name, **{"cls": _Command, **options})


class _Command(TyperCommand):
    def get_help(self, ctx: click.Context) -> str:
        return _plain(super().get_help(ctx))


class _Group(TyperGroup):
    def get_help(self, ctx: click.Context) -> str:
        return _plain(super().get_help(ctx))


def _plain(text: str) -> str:
    return text.replace("\\[", "[")
