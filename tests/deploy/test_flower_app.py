"""The bundle that starts a run: Flower takes it, and no code is in it."""

import io
import re
import tomllib
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Flower's way of using pathspec
ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "deploy" / "flower-app"


@pytest.fixture(scope="module")
def bundle() -> zipfile.ZipFile:
    from flwr.cli.build import build_fab_from_disk  # noqa: PLC0415

    return zipfile.ZipFile(io.BytesIO(build_fab_from_disk(APP)))


def test_flowers_own_validation_accepts_it_and_the_format_that_it_names(bundle: zipfile.ZipFile) -> None:
    from flwr.common.config import validate_config  # noqa: PLC0415

    config = tomllib.loads(bundle.read("pyproject.toml").decode())
    assert validate_config(config, check_module=False) == (True, [], [])
    assert config["tool"]["flwr"]["app"]["fab-format-version"] == 1
    assert config["tool"]["flwr"]["app"]["publisher"] == "privshare"


def test_it_holds_no_code(bundle: zipfile.ZipFile) -> None:
    assert sorted(bundle.namelist()) == [".info/CONTENT", "LICENSE", "README.md", "pyproject.toml"]


def test_its_components_are_the_installed_ones() -> None:
    app = tomllib.loads((APP / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert app["components"] == {"serverapp": "server.app:app", "clientapp": "client.app:app"}
    for component in app["components"].values():
        module, name = component.split(":")
        source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
        assert re.search(rf"^{name}\b.* = |^from .* import .*\b{name}\b", source, re.MULTILINE)


def test_a_run_may_set_one_key_and_no_more() -> None:
    app = tomllib.loads((APP / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert app["config"] == {"run": ""}


def test_it_depends_on_the_flower_that_privshare_depends_on_and_on_nothing_else() -> None:
    dependencies = tomllib.loads((APP / "pyproject.toml").read_text())["project"]["dependencies"]
    assert dependencies == ["flwr>=1.41.0,<1.42"]
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert "flwr>=1.41,<1.42" in ours
