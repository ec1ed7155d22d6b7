"""What a check is, and how a list of them is gone through: all of them, also after one has failed."""

import shutil
import socket
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from client.inspection import Inspection
from client.keys import identity
from client.policy import PolicyFile, SitePolicy, SiteSettings, load_site_settings, read_policy
from common.errors import ExitCode, PolicyError, PrivShareError
from common.privacy.signatures import SigningKey
from common.study import Study, load_study


class Mark(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNED = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


class FaultError(PrivShareError):
    """Something is wrong, and is mended in another way than the check's usual one."""

    def __init__(self, message: str, code: ExitCode, *, mend: str) -> None:
        super().__init__(message, code)
        self.mend = mend


class Doubt(Exception):  # noqa: N818 (nothing is wrong)
    """A site can run so, and its steward should know."""


class NotChecked(Exception):  # noqa: N818 (nothing is wrong)
    """There was nothing to check with."""


@dataclass(frozen=True)
class Surroundings:
    """The machine, as far as checks look at it.

    now: the time. free: bytes that are free on a file's disk. memory: bytes that are free for programs, None where the
    system does not say. resolve: addresses of a host, OSError where there are none. flower: its release.
    """

    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    free: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free
    memory: Callable[[], int | None] = lambda: _free_memory()  # noqa: PLW0108 (defined below)
    resolve: Callable[[str], list[str]] = lambda host: sorted({str(i[4][0]) for i in socket.getaddrinfo(host, None)})
    flower: Callable[[], str] = lambda: version("flwr")


@dataclass(frozen=True)
class Case:
    """One site under examination. What a property needs to be true, an earlier check has found."""

    path: Path
    site: str
    around: Surroundings = field(default_factory=Surroundings)

    @cached_property
    def settings(self) -> SiteSettings:
        """Of the site file."""
        settings = load_site_settings(self.path)
        if settings.site != self.site:
            raise PolicyError(f"{self.path}: is the file of another site")
        return settings

    @cached_property
    def study(self) -> Study:
        """As it lies at the site."""
        return load_study(self.settings.study)

    @cached_property
    def policy(self) -> PolicyFile:
        """Whatever its signature."""
        return read_policy(self.settings.policy)

    @cached_property
    def key(self) -> SigningKey:
        """The site's own."""
        return identity(self.settings.state)

    @cached_property
    def bound(self) -> SitePolicy:
        """Policy and study together."""
        return SitePolicy(self.settings, self.policy, self.study, today=lambda: self.around.now().date())

    @cached_property
    def data(self) -> Inspection:
        """The tables, read on the first question."""
        return Inspection(self.settings, self.study)


@dataclass(frozen=True)
class Check:
    """One question.

    name: on its line.
    examine: says in one line what it found; raises PrivShareError, Doubt or NotChecked.
    mend: in one line, unless a `FaultError` knows better.
    needs: checks without which it makes no sense.
    """

    name: str
    examine: Callable[[Case], str]
    mend: str
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """What a check found. code: that a command ends with if this is the first to fail."""

    check: str
    mark: Mark
    says: str
    mend: str = ""
    code: ExitCode = ExitCode.OK

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "mark": str(self.mark), "code": int(self.code)}


def examine(
    case: Case, checks: Sequence[Check], *, on_result: Callable[[Result], None] = lambda _: None
) -> list[Result]:
    """Go through all checks; those that need one that failed are skipped."""
    found: dict[str, Result] = {}
    for check in checks:
        lacking = [name for name in check.needs if found[name].mark in (Mark.FAILED, Mark.SKIPPED)]
        found[check.name] = (
            Result(check.name, Mark.SKIPPED, f"needs: {', '.join(lacking)}") if lacking else _asked(check, case)
        )
        on_result(found[check.name])
    return list(found.values())


def first_failure(results: Sequence[Result]) -> ExitCode:
    """What a command ends with."""
    return next((result.code for result in results if result.mark == Mark.FAILED), ExitCode.OK)


def _asked(check: Check, case: Case) -> Result:
    try:
        return Result(check.name, Mark.OK, check.examine(case))
    except Doubt as doubt:
        return Result(check.name, Mark.WARNED, str(doubt), check.mend)
    except NotChecked as why:
        return Result(check.name, Mark.SKIPPED, f"not checked: {why}")
    except FaultError as fault:
        return Result(check.name, Mark.FAILED, str(fault), fault.mend, fault.code)
    except PrivShareError as error:
        return Result(check.name, Mark.FAILED, str(error), check.mend, error.code)
    except Exception as error:  # noqa: BLE001 (the checks after it are still made; its text may quote a cell)
        return Result(
            check.name, Mark.FAILED, f"the check broke ({type(error).__name__})", check.mend, ExitCode.INTERNAL
        )


def _free_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(found[0]) if found else None
