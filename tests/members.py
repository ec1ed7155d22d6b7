"""A coordinator and its sites before and after they joined, as files, for tests of membership."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from client.enrolment import enrol, enrolment_path, join, open_kit, rotate
from client.policy import SiteSettings, load_site_settings
from common.wire.membership import Admission, Enrolment, Kit
from server.provision import Roster, admit, provision, read_enrolment, read_roster
from tests.client.homes import STUDY, WINDOWED, write_yaml

NOW = datetime(2030, 5, 17, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
SITES = ("north", "south", "east")
ADDRESS = "fed.example.org:8443"


@dataclass
class Federation:
    """A coordinator's home, kits, and the folders of sites, all under one folder.

    folder: holds everything.
    now: when kits and enrolments are made; a test moves it on.
    kits: as provisioned.
    """

    folder: Path
    now: datetime = NOW
    kits: dict[str, Kit] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        """The coordinator's."""
        return self.folder / "coordinator"

    @property
    def roster(self) -> Roster:
        """Who is in."""
        return read_roster(self.home)

    def kit(self, site: str) -> Path:
        """The zip file of a site."""
        return self.folder / "kits" / f"{site}.zip"

    def settings(self, site: str) -> SiteSettings:
        """Of a site that was set up."""
        return load_site_settings(self.folder / "sites" / site / "site.yaml")

    def enrolment(self, site: str) -> Path:
        """What a site sends."""
        return enrolment_path(self.settings(site))

    def admission(self, site: str) -> Path:
        """What a site gets."""
        return self.home / "admissions" / f"{site}.json"

    def enrol(self, *sites: str) -> list[Enrolment]:
        """Set sites up from their kits."""
        source = {"type": "csv", "table": str(self.folder / "table.csv")}
        if (self.folder / "windows").exists():
            source["series"] = str(self.folder / "long.csv")
        return [
            enrol(
                open_kit(self.kit(site), site=site),
                self.folder / "sites" / site,
                source=source,
                now=self.now,
            )
            for site in sites
        ]

    def admit(self, *sites: str, **options: Any) -> Roster:
        """Admit sites with the enrolments that lie in their folders."""
        found = [read_enrolment(self.enrolment(site)) for site in sites]
        return admit(self.home, found, now=self.now, **options)

    def join(self, *sites: str) -> None:
        """Have sites take up their admissions."""
        for site in sites:
            join(self.settings(site), self.admission(site), now=self.now)

    def rotate(self, site: str) -> Enrolment:
        """An hour later, a site's next keys."""
        self.now += HOUR
        return rotate(self.settings(site), now=self.now)

    def paper(self, site: str) -> Admission:
        """A site's admission, read."""
        return Admission.decode(self.admission(site).read_bytes())


def make_federation(folder: Path, *, now: datetime = NOW, windows: bool = False, address: str = ADDRESS) -> Federation:
    """A coordinator with kits for three sites."""
    folder.mkdir(parents=True, exist_ok=True)
    if windows:
        (folder / "windows").touch()
    write_yaml(folder / "study.yaml", WINDOWED if windows else STUDY)
    made = Federation(folder, now)
    made.kits = provision(
        folder / "study.yaml", home=made.home, kits=folder / "kits", sites=SITES, address=address, now=now
    )
    return made


def make_members(
    folder: Path, *sites: str, now: datetime = NOW, windows: bool = False, address: str = ADDRESS
) -> Federation:
    """A federation of which some sites have joined; the first two by default."""
    made, sites = make_federation(folder, now=now, windows=windows, address=address), sites or SITES[:2]
    made.enrol(*sites)
    made.admit(*sites)
    made.join(*sites)
    return made
