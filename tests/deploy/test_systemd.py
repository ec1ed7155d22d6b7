"""Units: systemd reads them without complaint, and what they leave open is little."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from common.errors import ExitCode

UNITS = Path(__file__).resolve().parents[2] / "deploy" / "systemd"
NAMES = (
    "privshare-site@.service",
    "privshare-superlink.service",
    "privshare-superexec.service",
    "privshare-proxy.service",
)
MOST_EXPOSURE = 1.2
"""Of 10, by systemd's own count; a service without any setting has 9.6."""


@pytest.fixture(scope="module")
def analyze() -> str:
    found = shutil.which("systemd-analyze")
    if found is None:
        pytest.skip("no systemd-analyze here: apt-get install systemd")
    return found


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The units, with programs that are here in the place of those that are not."""
    folder = tmp_path_factory.mktemp("units")
    for name in NAMES:
        text = re.sub(r"(/opt/privshare/bin/[\w-]+|/usr/sbin/nginx)", "/bin/true", (UNITS / name).read_text())
        (folder / name.replace("@", "@hospital_a")).write_text(text)
    return folder


def test_the_units_are_these() -> None:
    assert {path.name for path in UNITS.iterdir()} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_systemd_accepts_it(name: str, analyze: str, installed: Path) -> None:
    path = installed / name.replace("@", "@hospital_a")
    done = subprocess.run(
        [analyze, "verify", "--man=no", path], capture_output=True, text=True, check=False, timeout=60
    )
    about = [line for line in done.stderr.splitlines() if str(path) in line or path.name in line]
    assert (done.returncode, about) == (0, [])


@pytest.mark.parametrize("name", NAMES)
def test_what_it_leaves_open_is_little(name: str, analyze: str, installed: Path) -> None:
    path = installed / name.replace("@", "@hospital_a")
    command = [analyze, "security", "--offline=true", "--no-pager", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    (score,) = re.findall(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert float(score) <= MOST_EXPOSURE, done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_it_is_bound_restarts_and_ends_in_time(name: str) -> None:
    text = (UNITS / name).read_text()
    for line in (
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "Restart=on-failure",
        "LimitCORE=0",
        "UMask=0077",
        "SystemCallFilter=@system-service",
    ):
        assert f"\n{line}\n" in text
    for key in ("MemoryMax", "TasksMax", "RestartSec", "TimeoutStopSec", "RestrictAddressFamilies"):
        assert re.search(rf"^{key}=\S", text, re.MULTILINE)
    assert re.search(r"^(DynamicUser=yes|User=privshare)", text, re.MULTILINE)


def test_a_site_has_time_to_end_its_step_and_does_not_start_again_where_a_human_must_act() -> None:
    text = (UNITS / NAMES[0]).read_text()
    assert "\nTimeoutStopSec=15min\n" in text
    (codes,) = re.findall(r"^RestartPreventExitStatus=(.+)$", text, re.MULTILINE)
    named = {ExitCode(int(code)).name for code in codes.split()}
    human = {
        "USAGE",
        "STUDY_NOT_FOUND",
        "STUDY_INVALID",
        "EPSILON_INVALID",
        "DELTA_INVALID",
        "BUDGET_REFUSED",
        "POLICY_REFUSED",
        "LEDGER_INVALID",
        "UNTRUSTED",
        "NOT_ADMITTED",
        "CERTIFICATE_EXPIRED",
        "FLOWER_UNTESTED",
        "ALREADY_RUNNING",
        "KIT_INVALID",
    }
    assert named == human
    assert {"UNREACHABLE", "NO_ANSWER"} <= {code.name for code in ExitCode} - named


def test_no_process_of_the_coordinator_reads_the_key_of_its_authority() -> None:
    for name in NAMES[1:]:
        (hidden,) = re.findall(r"^InaccessiblePaths=(.+)$", (UNITS / name).read_text(), re.MULTILINE)
        key = Path("/var/lib/privshare/coordinator/ca.key")
        assert any(Path(path.lstrip("-")) in (key, *key.parents) for path in hidden.split())
        assert not re.search(r"^LoadCredential=.*ca\.key", (UNITS / name).read_text(), re.MULTILINE)


def test_superlink_and_superexec_reach_nobody_but_this_host() -> None:
    for name in NAMES[:3]:
        assert "\nIPAddressDeny=any\nIPAddressAllow=localhost\n" in (UNITS / name).read_text()


def test_the_superlink_is_started_with_every_lock() -> None:
    text = (UNITS / "privshare-superlink.service").read_text()
    for flag in (
        "--host 127.0.0.1",
        "--enable-supernode-auth",
        "--isolation process",
        "--superexec-auth-secret-file ",
        "--disable-runtime-dependency-installation",
    ):
        assert flag in text
    assert "--insecure" not in text


def test_the_proxys_unit_replaces_every_mark_of_the_template() -> None:
    template = UNITS.parent / "proxy" / "nginx.conf.template"
    marks = set(re.findall(r"@[A-Z]+@", template.read_text()))
    assert set(re.findall(r"@[A-Z]+@", (UNITS / "privshare-proxy.service").read_text())) == marks
