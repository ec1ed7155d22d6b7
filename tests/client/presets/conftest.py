"""Fixtures that tests of presets share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def demo(real_data: Path) -> Path:
    """The MIMIC-III Clinical Database Demo v1.4."""
    folder = real_data / "mimic3-demo-1.4"
    if not (folder / "PATIENTS.csv").is_file():
        pytest.skip(f"no real data: {folder} is absent")
    return folder
