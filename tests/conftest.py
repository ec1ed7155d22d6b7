"""Fixtures that several folders of tests share."""

import os

# Before torch and scikit-learn are imported, and for what tests start: tests are many small computations, and thread
# pools that wait for one another cost minutes.
os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.postgres import Server

_ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small release of three simulated sites; not to be changed."""
    from tests.tamperings import PLAIN, make_release  # noqa: PLC0415 (torch, which few folders of tests need)

    return make_release(tmp_path_factory.mktemp("published"), PLAIN)


@pytest.fixture(scope="session")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one, whose study counts in Rényi divergences, samples, holds out and masks; not to be changed."""
    from tests.tamperings import SAMPLED, make_release  # noqa: PLC0415

    return make_release(tmp_path_factory.mktemp("sampled"), SAMPLED)


@pytest.fixture(scope="session")
def postgres() -> Iterator["Server"]:
    """A running PostgreSQL server; a test that stops it starts it again. Without the programs the test is skipped."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: the extra `sql`")
    from tests.postgres import programs, serving  # noqa: PLC0415 (psycopg is of an extra)

    found = programs()
    if found is None:
        pytest.skip("PostgreSQL is not installed: tests/install-programs.sh")
    with serving(found) as server:
        yield server


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny simulated run with real noise; not to be changed."""
    from tests.runs import choose_run, conduct  # noqa: PLC0415 (torch, which few folders of tests need)

    return conduct(choose_run(tmp_path_factory.mktemp("finished")))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of public data sets: PRIVSHARE_DATA, else the nearest `shared/data` beside the repository or above it.

    The data are not part of the repository: without them the test is skipped. A variable that points nowhere fails,
    since a check that was asked for must not pass unseen.
    """
    named = os.environ.get("PRIVSHARE_DATA")
    if named:
        if not Path(named).is_dir():
            pytest.fail(f"PRIVSHARE_DATA={named}: no such folder", pytrace=False)
        return Path(named)
    for folder in _ROOT.parents:
        if (folder / "shared" / "data").is_dir():
            return folder / "shared" / "data"
    pytest.skip("no real data: set PRIVSHARE_DATA, or put the data sets in ../shared/data")
