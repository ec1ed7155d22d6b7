"""Which site a command is for, and how all of them speak."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.policy import SiteSettings, load_site_settings
from common.errors import PolicyError, PrivShareError

_err = Console(stderr=True, emoji=False)


@dataclass(frozen=True)
class Place:
    """Which site, and its folder; `init` makes what is in it."""

    site: str
    folder: Path

    @property
    def file(self) -> Path:
        """Its site.yaml."""
        return self.folder / "site.yaml"

    def settings(self) -> SiteSettings:
        """What the site file says.

        Raises:
            StudyError, PolicyError: it is not valid, or another site's.
        """
        settings = load_site_settings(self.file)
        if settings.site != self.site:
            raise PolicyError(f"{self.file}: is the file of another site")
        return settings


def place_of(context: typer.Context) -> Place:
    """As the options before the command say."""
    place = context.obj
    assert isinstance(place, Place)
    return place


def settings_of(context: typer.Context) -> SiteSettings:
    """Of the site; a command that needs them ends here where they are not valid."""
    try:
        return place_of(context).settings()
    except PrivShareError as error:
        fail(error)


def now() -> datetime:
    """The time."""
    return datetime.now(UTC)


def say(*lines: str) -> None:
    """To stdout, a line each."""
    for line in lines:
        typer.echo(line)


def say_aside(line: str) -> None:
    """To stderr, beside a result."""
    _err.print(line, markup=False, highlight=False, soft_wrap=True)


def show(facts: dict[str, str], *, title: str) -> None:
    """A table of two columns."""
    table = Table(title=escape(title), show_header=False)
    table.add_column()
    table.add_column(overflow="fold")  # a digest is read whole or not at all
    for name, value in facts.items():
        table.add_row(escape(name), escape(value))
    Console().print(table)


def fail(error: PrivShareError) -> NoReturn:
    """End with an error's line and code."""
    _err.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(int(error.code)) from None
