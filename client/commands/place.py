"""Which site a command is for, and how all of them speak."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import typer

from client.policy import SiteSettings, load_site_settings
from common.commands import fail
from common.errors import PolicyError, PrivShareError


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
