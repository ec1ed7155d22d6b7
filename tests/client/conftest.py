"""Fixtures that the tests of a site share."""

from pathlib import Path

import pytest

from tests.client.homes import Home, make_either, make_home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A site of a study without windows."""
    return make_home(tmp_path / "north")


@pytest.fixture(params=["records", "windows"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Home:
    """A site of a study without windows, or of one with them."""
    return make_either(tmp_path / "north", request.param)
