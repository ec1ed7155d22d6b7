"""The bundle for a machine without a network, really made and installed: of two tiny packages, without an index."""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "deploy" / "air-gap"


def make_wheel(folder: Path, name: str, *, requires: str | None = None) -> None:
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": "VALUE = 1\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        + (f"Requires-Dist: {requires}\n" if requires else ""),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(path, text)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Where pip finds two wheels and nothing else."""
    index = tmp_path_factory.mktemp("index")
    make_wheel(index, "privshare_test_upper", requires="privshare_test_lower")
    make_wheel(index, "privshare_test_lower")
    return {
        **os.environ,
        "PYTHON": sys.executable,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(index),
        "PIP_CONFIG_FILE": os.devnull,
    }


@pytest.fixture(scope="module")
def bundle(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "bundle"
    command = ["bash", SCRIPTS / "bundle.sh", out, "privshare_test_upper"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert digest_of(out) in done.stdout
    return out


def digest_of(bundle: Path) -> str:
    return hashlib.sha256((bundle / "SHA256SUMS").read_bytes()).hexdigest()


def install(bundle: Path, target: Path, digest: str) -> subprocess.CompletedProcess[str]:
    # With an index of the machine's own that nobody may use.
    environment = {**os.environ, "PYTHON": sys.executable, "PIP_INDEX_URL": "http://127.0.0.1:1/"}
    command = ["bash", bundle / "install.sh", digest, target]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_a_bundle_holds_every_wheel_with_its_hash_and_installs_without_an_index(bundle: Path, tmp_path: Path) -> None:
    lines = (bundle / "requirements-hashed.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["privshare_test_lower==1.0", "privshare_test_upper==1.0"]
    for line, wheel in zip(lines, sorted((bundle / "wheels").iterdir()), strict=True):
        assert line.endswith(f" --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}")
    done = install(bundle, tmp_path / "target", digest_of(bundle))
    assert done.returncode == 0, done.stderr
    code = "import privshare_test_upper, privshare_test_lower"
    subprocess.run([tmp_path / "target" / "bin" / "python", "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("what", ["wheel", "list", "extra", "missing"])
def test_a_bundle_that_was_changed_on_the_way_installs_nothing(what: str, bundle: Path, tmp_path: Path) -> None:
    digest = digest_of(bundle)
    changed = shutil.copytree(bundle, tmp_path / "changed")
    wheel = changed / "wheels" / "privshare_test_lower-1.0-py3-none-any.whl"
    if what == "wheel":
        wheel.write_bytes(wheel.read_bytes() + b"\0")
    elif what == "list":
        with (changed / "SHA256SUMS").open("a") as file:
            file.write("\n")
    elif what == "extra":
        (changed / "wheels" / "other-1.0-py3-none-any.whl").write_bytes(b"")
    else:
        wheel.unlink()
    done = install(changed, tmp_path / "target", digest)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("install.sh: ")
    assert not (tmp_path / "target").exists()


def test_pip_itself_refuses_a_wheel_of_another_hash(bundle: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(bundle, tmp_path / "changed")
    make_wheel(changed / "wheels", "privshare_test_lower", requires="privshare_test_upper")
    done = install(changed, tmp_path / "target", "--unsigned")
    assert done.returncode == 1
    assert "HASH" in done.stderr.upper()
    assert not (tmp_path / "target").exists()


def test_pip_itself_refuses_a_list_without_hashes(bundle: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(bundle, tmp_path / "changed")
    (changed / "requirements-hashed.txt").write_text("privshare_test_lower==1.0\nprivshare_test_upper==1.0\n")
    done = install(changed, tmp_path / "target", "--unsigned")
    assert done.returncode == 1
    assert not (tmp_path / "target").exists()


def test_nothing_is_overwritten(bundle: Path, environment: dict[str, str], tmp_path: Path) -> None:
    command = ["bash", SCRIPTS / "bundle.sh", bundle, "privshare_test_upper"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (1, f"bundle.sh: {bundle}: is there already\n")
    done = install(bundle, tmp_path, digest_of(bundle))
    assert (done.returncode, done.stderr) == (1, f"install.sh: {tmp_path}: is there already\n")


def test_shellcheck_finds_no_fault() -> None:
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("no shellcheck here: apt-get install shellcheck")
    done = subprocess.run(
        [shellcheck, *sorted(SCRIPTS.glob("*.sh"))], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "")
