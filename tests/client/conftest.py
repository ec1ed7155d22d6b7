"""Fixtures that the tests of a site share."""

from pathlib import Path

import pytest

from tests.client.homes import Home, make_either, make_home
from tests.postgres import READER, Server


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A site of a study without windows."""
    return make_home(tmp_path / "north")


@pytest.fixture(params=["records", "windows"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Home:
    """A site of a study without windows, or of one with them."""
    return make_either(tmp_path / "north", request.param)


@pytest.fixture(scope="session")
def ward(postgres: Server) -> Server:
    """A server with a database, and a user who may read what is granted."""
    postgres.execute("CREATE DATABASE ward", f"CREATE ROLE reader LOGIN PASSWORD '{READER}'")
    return postgres
