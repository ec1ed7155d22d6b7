"""A SuperLink's database that a disk or a crash has damaged: Flower ends or forgets, and without the files all goes on.

No budget and no reply is in it. What is damaged is not mended but deleted, as the runbook says, and what
`privshare start` does before every run lets the members in anew.
"""

import os
import shutil
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from threading import Event

import pytest
from sqlalchemy.exc import DatabaseError

from client.link import Link
from common.errors import ExitCode, UnreachableError
from server import launch
from simulations.bench.faults import lose
from tests.members import Federation, make_members
from tests.network.superlinks import SuperLink, superlink

pytestmark = [
    pytest.mark.slow,
    # Of what serves Flower's interface, and of a database that nobody could close.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]
MEMBERS = {"north", "south"}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Of certificates that are in force now."""
    return make_members(tmp_path_factory.mktemp("federation"), now=datetime.now(UTC))


@pytest.fixture(scope="module")
def killed(federation: Federation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a SuperLink that knew the members leaves when it is killed: a database, most of it in the log beside it."""
    folder = tmp_path_factory.mktemp("killed")
    let_in(federation, tmp_path_factory.mktemp("running") / "superlink.db", folder)
    assert (folder / "superlink.db-wal").stat().st_size > 0
    return folder


def let_in(federation: Federation, database: Path, left: Path | None = None) -> None:
    """Start a SuperLink over a database; a coordinator registers its members, and one of them connects.

    Args:
        federation: of the members.
        database: may be there or not.
        left: where to copy its files while it runs.
    """
    with superlink(federation.home, database=database, is_open=True) as server:
        launch.SuperLink(server.port, federation.home / "ca.crt").register(federation.roster)
        nodes = server.state.get_node_info(statuses=["registered", "online", "offline"])
        assert len(nodes) == len(MEMBERS)
        settings = federation.settings("north").model_copy(update={"superlink": f"127.0.0.1:{server.port}"})
        Link(settings, is_stopping=Event()).open().close()
        if left is not None:
            for file in database.parent.glob("superlink.db*"):
                shutil.copyfile(file, left / file.name)


def folded(damage: Callable[[Path], object]) -> Callable[[Path], object]:
    """The same of a database that holds all of what was in its log."""

    def fold(database: Path) -> None:
        connection = sqlite3.connect(database)
        connection.execute("pragma wal_checkpoint(truncate)")
        connection.close()
        damage(database)

    return fold


def cut(path: Path, share: float) -> None:
    body = path.read_bytes()
    path.write_bytes(body[: int(share * len(body))])


def flip(*places: int) -> Callable[[Path], object]:
    """One bit at each of these places."""

    def change(path: Path) -> None:
        body = bytearray(path.read_bytes())
        for place in places:
            body[place] ^= 0x40
        path.write_bytes(body)

    return change


def log_of(database: Path) -> Path:
    return database.with_name(f"{database.name}-wal")


def mistake(path: Path) -> None:
    """One bit of each member's key, in its table and in the index, which the database cannot tell from other keys."""
    connection = sqlite3.connect(path)
    keys = [key for (key,) in connection.execute("select public_key from node").fetchall()]
    connection.close()
    assert len(keys) == len(MEMBERS)
    body = path.read_bytes()
    flip(*(place + 40 for key in keys for place in places(body, key)))(path)


def places(body: bytes, part: bytes) -> list[int]:
    return [at for at in range(len(body)) if body.startswith(part, at)]


FORGETS: dict[str, Callable[[Path], object]] = {
    "nothing is left": folded(lambda path: path.write_bytes(b"")),
    "nothing but its log": lambda path: path.write_bytes(b""),
    "a log of garbage": lambda path: log_of(path).write_bytes(os.urandom(32_768)),
}
ENDS: dict[str, Callable[[Path], object]] = {
    "half is left": folded(lambda path: cut(path, 0.5)),
    "a bit of the magic number": folded(flip(3)),
    "a bit of the page size": folded(flip(16)),
    "a bit of the first page": folded(flip(108)),
    "half of its log is left": lambda path: cut(log_of(path), 0.5),
    "a bit of some pages": folded(flip(*range(4096, 20 * 4096, 4096))),
}


@pytest.fixture
def database(killed: Path, tmp_path: Path) -> Path:
    """Of a SuperLink that was killed, to be damaged."""
    shutil.copytree(killed, tmp_path / "home")
    return tmp_path / "home" / "superlink.db"


@pytest.mark.parametrize("damage", FORGETS.values(), ids=FORGETS)
def test_a_superlink_that_forgot_the_members_lets_them_in_when_a_run_is_started(
    federation: Federation, database: Path, damage: Callable[[Path], object]
) -> None:
    damage(database)
    let_in(federation, database)


@pytest.mark.parametrize("damage", ENDS.values(), ids=ENDS)
def test_a_superlink_whose_database_is_damaged_ends_with_an_error_that_the_runbook_names(
    database: Path, damage: Callable[[Path], object]
) -> None:
    damage(database)
    with pytest.raises(DatabaseError) as error:
        SuperLink(database)
    runbook = (Path(__file__).parents[2] / "deploy" / "RUNBOOK.md").read_text()
    assert f"sqlalchemy.exc.{type(error.value).__name__}" in runbook


def test_what_the_database_does_not_notice_shuts_a_member_out_in_one_line_if_it_does(
    federation: Federation, database: Path
) -> None:
    folded(mistake)(database)
    refused = None
    try:
        let_in(federation, database)
    except UnreachableError as error:
        refused = error
    assert refused is None or (refused.code == ExitCode.NOT_ADMITTED and str(refused).isprintable())
    lose(database)
    let_in(federation, database)


def test_without_the_damaged_files_the_members_are_let_in_anew(federation: Federation, database: Path) -> None:
    ENDS["half is left"](database)
    lose(database)
    let_in(federation, database)
