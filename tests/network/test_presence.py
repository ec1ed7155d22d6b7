"""A site whose process died is let in again at once, and nobody else in its place: Flower's SuperLink on loopback."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from client import link, presence
from client.link import Link
from client.policy import SiteSettings
from common.errors import ExitCode, UnreachableError
from server import launch
from tests.members import Federation, make_members
from tests.network.coordinators import serving
from tests.network.superlinks import SuperLink, superlink

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),  # of what serves the interface
    pytest.mark.skipif(not presence._BOOT.exists(), reason="nothing here tells one start of the machine from another"),
]
FILE = presence._FILE


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Of certificates that are in force now."""
    return make_members(tmp_path_factory.mktemp("federation"), now=datetime.now(UTC))


@pytest.fixture
def server(federation: Federation) -> Iterator[SuperLink]:
    """That knows the members."""
    with superlink(federation.home, is_open=True) as server:
        launch.SuperLink(server.port, federation.home / "ca.crt").register(federation.roster)
        yield server


@pytest.fixture
def settings(
    federation: Federation, server: SuperLink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> SiteSettings:
    """Of the site north, with a state of its own."""
    monkeypatch.setattr(link, "_GONE_FOR", 0.0)
    north = federation.settings("north")
    shutil.copytree(north.state, tmp_path / "state")
    return north.model_copy(update={"superlink": f"127.0.0.1:{server.port}", "state": tmp_path / "state"})


def connect(settings: SiteSettings) -> Link:
    found = Link(settings, is_stopping=Event())
    try:
        return found.open()
    except UnreachableError:
        found.close()
        raise


def die(connected: Link) -> None:
    """Its process does: nothing of it is heard any more."""
    connected._is_lost.set()
    connected._client.close()


def test_the_next_process_of_a_site_that_died_is_let_in_at_once(
    server: SuperLink, settings: SiteSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = connect(settings)
    die(first)
    gone: list[tuple[float, set[int]]] = []
    is_stopping = Event()

    def wait(pause: float) -> bool:
        gone.append((pause, server.state.get_nodes(server.run)))
        return False

    monkeypatch.setattr(is_stopping, "wait", wait)
    monkeypatch.setattr(link, "_GONE_FOR", 3.0)
    second = Link(settings, is_stopping=is_stopping).open()
    # Meanwhile whoever waits for an answer of the first one can see that it is gone.
    assert gone == [(3.0, set())]
    assert second._node == first._node
    assert second.pull() is None
    second.close()
    assert not (settings.state / FILE).exists()


def test_who_said_goodbye_leaves_nothing_behind_and_the_next_one_does_not_wait(
    settings: SiteSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(settings).close()
    assert not (settings.state / FILE).exists()
    monkeypatch.setattr(Link, "_say_goodbye", lambda *_: pytest.fail("there is nobody to say it for"))
    die(connect(settings))


def damaged(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """The file of a site, with something of it changed."""

    def damage(path: Path) -> None:
        found = json.loads(path.read_text())
        change(found)
        path.write_text(json.dumps(found))

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        damaged(lambda found: found["place"].__setitem__(0, "another start of the machine")),
        damaged(lambda found: found["place"].__setitem__(2, found["place"][2] + 1)),
        damaged(lambda found: found.update(node=-1)),
        damaged(lambda found: found.update(node="7")),
        damaged(lambda found: found.pop("node")),
        lambda path: path.write_text("[1"),
        lambda path: path.write_text("[1, 2]"),
        lambda path: path.write_bytes(os.urandom(100)),
        lambda path: path.unlink(),
    ],
)
def test_who_cannot_show_that_the_process_before_is_dead_waits_until_flower_takes_it_for_gone(
    settings: SiteSettings, damage: Callable[[Path], object]
) -> None:
    first = connect(settings)
    damage(settings.state / FILE)
    with pytest.raises(UnreachableError, match="for a minute after a crash of its machine") as error:
        connect(settings)
    assert error.value.code == ExitCode.UNREACHABLE  # and is not given up
    assert first.pull() is None
    first.close()


def test_a_copy_of_a_site_takes_nobody_s_place(settings: SiteSettings, tmp_path: Path) -> None:
    first = connect(settings)
    shutil.copytree(settings.state, tmp_path / "copy")
    with pytest.raises(UnreachableError, match="while somebody else is connected as this site"):
        connect(settings.model_copy(update={"state": tmp_path / "copy"}))
    assert first.pull() is None
    first.close()


def test_a_number_that_the_superlink_does_not_know_any_more_is_forgotten(settings: SiteSettings) -> None:
    die(connect(settings))
    damaged(lambda found: found.update(node=found["node"] ^ 1))(settings.state / FILE)
    with pytest.raises(UnreachableError):
        connect(settings)
    assert not (settings.state / FILE).exists()


def test_a_goodbye_that_nobody_heard_is_said_again(federation: Federation, settings: SiteSettings) -> None:
    connected = connect(settings)
    with serving(federation.home, statuses={"/v1/fleet/deactivate-node": 503}) as port:
        connected._client.close()
        elsewhere = Link(settings.model_copy(update={"superlink": f"127.0.0.1:{port}"}), is_stopping=Event())
        elsewhere._node = connected._node
        elsewhere.close()
    die(connected)
    assert (settings.state / FILE).exists()
    connect(settings).close()


def test_a_state_that_cannot_be_written_costs_time_and_nothing_else(
    settings: SiteSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    (settings.state / FILE).mkdir()
    connected = connect(settings)
    assert connected.pull() is None
    connected.close()
    connect(settings).close()
