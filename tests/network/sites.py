"""Sites that speak to a SuperLink of tests: the real Link, Agent and Site, in threads of this process."""

import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.servicer.fleet import fleet_handlers
from flwr.supernode import fleet_http_client

from client import agent, link
from client.agent import Agent
from client.door import Door
from client.health import Part
from client.keys import make_transport_key
from client.link import Link
from client.policy import SiteSettings, load_site_settings
from common.privacy.noise import SeededNoise
from server import app
from tests.client.homes import Home
from tests.members import Federation

CALL, HEARTBEAT = 1.5, 1.5
"""Seconds of a call, and between heartbeats."""
PATIENCE = 45.0
"""Seconds after which something hangs."""


class CountedNoise(SeededNoise):
    """Seeded, and remembers for what it was drawn."""

    def __init__(self) -> None:
        """Of no draw yet."""
        super().__init__(b"seed")
        self.draws: Counter[str] = Counter()

    def draw(self, size: int, *, noise_stddev: float, context: str) -> np.ndarray:
        """As the source it is of."""
        self.draws[context] += 1
        return super().draw(size, noise_stddev=noise_stddev, context=context)


class InThisProcess:
    """A worker whose site is in this process; `after` is called once an answer is there."""

    def __init__(self, door: Door, after: Callable[[], None]) -> None:
        """Of an open site."""
        self._door, self._after = door, after

    def start(self) -> None:
        """It is open."""

    def stop(self) -> None:
        """It has nothing to end."""

    def answer(self, envelope: bytes) -> bytes:
        """The site's."""
        found = self._door.answer(envelope)
        self._after()
        return found


@dataclass
class Told:
    """Health of a site: each part as it was told last, and how often each state of it was told."""

    last: dict[Part, str] = field(default_factory=dict)
    times: Counter[tuple[Part, str]] = field(default_factory=Counter)

    def tell(self, part: Part, state: str) -> None:
        """As the health that anybody may ask for."""
        self.last[part] = state
        self.times[part, state] += 1


@contextmanager
def hurried() -> Iterator[None]:
    """All waits shortened, of both sides alike."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(link, "_CALL_TIMEOUT", CALL)
        patch.setattr(link, "HEARTBEAT", HEARTBEAT)
        patch.setattr(link, "_GONE_FOR", 1.0)
        patch.setattr(link, "_FIRST_PAUSE", 0.1)
        patch.setattr(link, "_LONGEST_PAUSE", 0.5)
        patch.setattr(agent, "_QUICK", 0.3)
        patch.setattr(agent, "_IDLE", 0.4)
        patch.setattr(fleet_http_client, "HEARTBEAT_CALL_TIMEOUT", CALL)
        patch.setattr(fleet_handlers, "HEARTBEAT_MIN_INTERVAL", HEARTBEAT)
        patch.setattr(app, "_POLL", 0.25)
        patch.setattr(app, "_PAUSE", 0.3)
        patch.setattr(app, "_SILENT", 4.0)
        for part in ("task_id", "run_id", "node_id"):  # a Message asks who is speaking when it is made
            patch.setattr(TaskIdentity, f"_{part}", 1)
        yield


def settings_of(home: Home, federation: Federation, port: int) -> SiteSettings:
    """Of a site with a key of its own for Flower, and the certificate of a member."""
    joined = federation.settings("north")
    for name in ("tls.crt", "tls.key"):
        shutil.copy2(joined.state / name, home.folder / "state" / name)
    make_transport_key(home.folder / "state")
    changes = {"superlink": f"127.0.0.1:{port}", "ca": joined.ca}
    return load_site_settings(home.folder / "site.yaml").model_copy(update=changes)


class Serving:
    """A site that serves in a thread of its own.

    health: as it was told last.
    fault: what ended it early.
    """

    def __init__(self, settings: SiteSettings, door: Door, *, after: Callable[[], None] = lambda: None) -> None:
        """Start it; `after` is called once an answer is there."""
        self.health = Told()
        self.fault: BaseException | None = None
        self._is_stopping = threading.Event()
        self._agent = Agent(
            lambda: Link(settings, is_stopping=self._is_stopping),
            InThisProcess(door, after),  # type: ignore[arg-type]
            self.health,  # type: ignore[arg-type]
            site="north",
            is_stopping=self._is_stopping,
        )
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        """Whether it ended, by itself or because it was told to."""
        return not self._thread.is_alive()

    def stop(self) -> None:
        """Tell it to end, and wait for that."""
        self._is_stopping.set()
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        try:
            self._agent.run()
        except BaseException as fault:  # noqa: BLE001 (the test looks at it)
            self.fault = fault


def wait_for(is_so: Callable[[], bool]) -> None:
    """Until it is so."""
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)
