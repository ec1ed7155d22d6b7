"""The verifier that is one file: it says what the other one says, of every release, and needs nothing of ours."""

import ast
import importlib.util
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from common.privacy.accountants import RdpAccountant, default_order
from common.privacy.budget import epsilon_of
from common.privacy.events import GaussianEvent
from common.privacy.witness import MOST_WITNESSES
from common.verification import verify_release
from tests.tamperings import (
    ATTACKER,
    PLAIN,
    SITES,
    TAMPERINGS,
    all_by_attacker,
    cheaper,
    copy,
    make_release,
    read,
    site_key,
)

PATH = Path(__file__).parents[2] / "deploy" / "verify_release.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("verify_release", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["verify_release"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


ALONE = load()


def test_both_verifiers_ask_for_as_many_witnesses() -> None:
    assert ALONE.MOST_WITNESSES == MOST_WITNESSES


def verdicts(folder: Path, keys: list[str] | None = None, sites: dict[str, str] | None = None) -> dict[str, list[str]]:
    """The checks that failed, by each verifier."""
    found, _ = ALONE.verify(folder, keys or [], sites or {})
    ours = verify_release(folder, keys=keys or [], site_keys=sites)
    return {
        "alone": [name for name, passed, _ in found if not passed],
        "ours": [one.check for one in ours.findings if not one.passed],
    }


def run(*words: object) -> subprocess.CompletedProcess[str]:
    """Isolated: neither this folder nor anything of the environment is on its path."""
    command = [sys.executable, "-I", str(PATH), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")


def test_it_imports_the_standard_library_and_cryptography_alone() -> None:
    tree = ast.parse(PATH.read_text(encoding="utf-8"))
    names = [name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) == {"cryptography"}


@pytest.mark.parametrize("name", ["published", "sampled"])
def test_both_accept_a_release_as_it_was_made(name: str, request: pytest.FixtureRequest) -> None:
    release = request.getfixturevalue(name)
    assert verdicts(release) == {"alone": [], "ours": []}
    assert verdicts(release, [read(release)["signature"]["key"]]) == {"alone": [], "ours": []}


@pytest.mark.parametrize("how", TAMPERINGS)
def test_both_refuse_what_was_tampered_with_by_the_same_check(published: Path, tmp_path: Path, how: str) -> None:
    tampering = TAMPERINGS[how]
    keys = [str(read(published)["signature"]["key"])] if tampering.is_pinned else []
    sites = {name: site_key(name).public for name in SITES} if tampering.sites_are_pinned else {}
    folder = copy(published, tmp_path / "release")
    tampering.do(folder)
    found = verdicts(folder, keys, sites)
    assert tampering.check in found["alone"]
    assert tampering.check in found["ours"]
    # Of a study that cannot be read, one computes epsilon and the other does not.
    assert found["alone"][0] == found["ours"][0]


def test_both_say_that_a_run_in_test_mode_is_void(tmp_path: Path) -> None:
    assert verdicts(make_release(tmp_path, PLAIN, noise_seed=4)) == {"alone": ["guarantee"], "ours": ["guarantee"]}


def test_there_are_thirty_tamperings_and_more() -> None:
    assert len(TAMPERINGS) >= 30


# as a program


def test_it_prints_a_line_a_check_and_ends_with_0(published: Path) -> None:
    done = run(published)
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert all(line.startswith("OK ") for line in lines[:10])
    assert lines[10] == "VALID"
    assert lines[11] == read(published)["guarantee"]["statement"]
    assert "The coordinator's key is NOT PINNED: it is the word of the certificate itself." in lines
    assert lines[-len(ALONE.NOT_COVERED) :] == [f"- {line}" for line in ALONE.NOT_COVERED]


def test_it_pins_keys_and_ends_with_1_where_they_are_others(published: Path, tmp_path: Path) -> None:
    key, sites = read(published)["signature"]["key"], [f"--site-key={name}={site_key(name).public}" for name in SITES]
    done = run(published, "--key", key, *sites)
    assert done.returncode == 0
    assert "The coordinator's key is pinned." in done.stdout
    assert "NOT PINNED" not in done.stdout
    folder = copy(published, tmp_path / "release")
    all_by_attacker(cheaper)(folder)
    assert run(folder).returncode == 0
    done = run(folder, "--key", key)
    assert done.returncode == 1
    assert f"FAILED  signature    the certificate names another key, {ATTACKER.public}" in done.stdout
    assert "INVALID: 1 of 10 checks failed" in done.stdout


@pytest.mark.parametrize("words", [(), (".", "--key", "ab"), (".", "--site-key", "north")], ids=str)
def test_called_wrongly_it_ends_with_2(words: tuple[str, ...]) -> None:
    assert run(*words).returncode == 2


def test_of_no_release_it_says_so_in_a_line(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("FAILED  certificate  certificate.json: cannot be read\n")


# epsilon


@pytest.mark.parametrize("mu", [1e-4, 1e-3, 0.01, 0.1, 0.268, 1.0, 3.0, 10.0, 50.0])
@pytest.mark.parametrize("delta", [1e-12, 1e-9, 1e-6, 1e-5, 1e-3, 0.1])
def test_its_epsilon_is_that_of_the_accountant(mu: float, delta: float) -> None:
    assert ALONE.gaussian_epsilon(mu**2, delta) == pytest.approx(epsilon_of(mu=mu, delta=delta), rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("order", [2, 3, 17, 64, 1024])
@pytest.mark.parametrize("sampling", [1e-4, 0.01, 0.5, 1.0])
@pytest.mark.parametrize("noise", [0.7, 3.0, 200.0])
def test_its_divergence_is_that_of_the_accountant(order: int, sampling: float, noise: float) -> None:
    accountant = RdpAccountant(order)
    event = GaussianEvent(
        account="train",
        squared_sensitivity=1,
        noise_stddev=noise,
        cells=1,
        scale=1,
        noise="csprng",
        sampling=sampling,
    )
    spent = ALONE.divergence(order, 1 / noise**2, sampling)
    assert spent == pytest.approx(accountant.spend(event), rel=1e-7, abs=1e-12)
    expected = accountant.epsilon(spent=spent, delta=1e-6)
    assert ALONE.epsilon_of(spent, order, 1e-6) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.1, 1e-5), (1.0, 1e-5), (1.0, 1e-6), (30.0, 1e-9), (8.0, 1e-3)])
def test_its_order_is_that_of_the_study(published: Path, epsilon: float, delta: float) -> None:
    release = ALONE.Release(published, {}, [], {})
    study = release.study
    study["privacy"].update(accountant="rdp", epsilon=epsilon, delta=delta)
    assert release.order == default_order(epsilon=epsilon, delta=delta)


def test_no_noise_is_no_guarantee() -> None:
    assert ALONE.gaussian_epsilon(1e12, 1e-5) == math.inf
