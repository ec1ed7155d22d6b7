"""Fixtures that several folders of tests share."""

import os

# Before torch and scikit-learn are imported, and for what tests start: tests are many small computations, and thread
# pools that wait for one another cost minutes.
os.environ["OMP_NUM_THREADS"] = "1"

from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[1]


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
