"""`privshare budget`, `status`, `pause`, `resume`, `stop` and `dashboard`, as an operator types them."""

import json
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from common.errors import ExitCode
from common.study import load_study
from server.cli import app
from server.forecast import plan_of, what_if
from server.run_folder import asked, hold
from tests.runs import STUDY, cut

EVERYWHERE = "0.0.0.0"  # noqa: S104 (what is refused)


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def running(finished: Path, tmp_path: Path) -> Iterator[Path]:
    folder = cut(finished, tmp_path / "run", 9)
    with hold(folder):
        yield folder


@pytest.fixture
def study(tmp_path: Path) -> Path:
    (tmp_path / "study.yaml").write_text(STUDY)
    return tmp_path / "study.yaml"


def fails(result: Result, code: ExitCode, why: str) -> None:
    assert (result.exit_code, result.stdout) == (code, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert why in line


# --- budget


def rows_of(*words: object) -> list[dict[str, Any]]:
    result = run("budget", *words, "--json")
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_the_budget_table_says_of_the_study_itself_what_its_plan_says(study: Path) -> None:
    one_way, pairs = rows_of(study, "--units", 1000, "--sites", 4)
    plan = plan_of(load_study(study), 4)
    assert pairs["noise"] == plan["noise_of_a_count_of_pairs_summed"]
    assert one_way["noise"] == pytest.approx(2 * float(plan["noise_of_a_one_way_count_at_a_site"]))
    assert pairs["share"] == pairs["noise"] / 1000
    assert pairs["relative_error"] == pytest.approx(pairs["noise"] / 10)
    assert one_way["first_relative_error"] == one_way["relative_error"] == one_way["last_relative_error"]
    # Of three measurements the last, with most of the budget, has least noise, and each more than all together.
    assert pairs["relative_error"] < pairs["last_relative_error"] < pairs["first_relative_error"]


def test_the_budget_table_has_a_row_for_every_combination_and_moves_as_privacy_does(study: Path) -> None:
    words = ("--epsilon", 0.5, "--epsilon", 2, "--units", 100, "--units", 10_000, "--sites", 2, "--sites", 8)
    found = rows_of(study, *words, "--rounds", 1, "--rounds", 4)
    assert len(found) == 2**4 * 2
    noise = {tuple(row[name] for name in ("release", "epsilon", "units", "sites", "rounds")): row for row in found}
    for (release, epsilon, units, sites, rounds), row in noise.items():
        assert row["noise"] == pytest.approx(noise[release, epsilon, 100, sites, rounds]["noise"])
        assert row["noise"] >= noise[release, 2.0, units, sites, rounds]["noise"]
        assert row["noise"] == pytest.approx(noise[release, epsilon, units, 2, rounds]["noise"] * (sites / 2) ** 0.5)
        assert row["noise"] == pytest.approx(noise[release, epsilon, units, sites, 1]["noise"])
        assert row["relative_error"] == pytest.approx(row["noise"] / (0.01 * units))


def test_a_measurement_that_may_not_spend_all_leaves_all_of_them_noisier(study: Path) -> None:
    whole = load_study(study)
    part = whole.with_overrides(noise={"max_share": 0.1})
    ask: dict[str, Any] = {"epsilons": [1.0], "units": [100], "sites": [1], "rounds": [3], "cell": 1.0}
    (_, pairs), (_, less) = what_if(whole, **ask), what_if(part, **ask)
    assert less["noise"] == pytest.approx(pairs["noise"] / 0.3**0.5)
    assert less["first_relative_error"] == pytest.approx(less["noise"] * 3**0.5 / 100)


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (("--cell", 0), ExitCode.USAGE, "cell"),
        (("--cell", 1.5), ExitCode.USAGE, "cell"),
        (("--rounds", 0), ExitCode.STUDY_INVALID, "noise.rounds"),
        (("--epsilon", -1), ExitCode.EPSILON_INVALID, "privacy.epsilon"),
    ],
)
def test_a_budget_that_no_study_may_have_is_refused(
    study: Path, words: tuple[object, ...], code: ExitCode, why: str
) -> None:
    fails(run("budget", study, *words), code, why)


def test_the_budget_table_is_readable(study: Path) -> None:
    result = run("budget", study)
    assert result.exit_code == 0
    assert "pairs" in result.stdout
    assert "100,000" in result.stdout


# --- status


def test_status_says_where_a_run_stands(running: Path, finished: Path) -> None:
    result = run("status", running)
    assert result.exit_code == 0, result.stderr
    for words in ("tiny: Running", "of 6", "site_01", "site_02"):
        assert words in result.stdout
    assert "tiny: Published" in run("status", finished).stdout
    found = json.loads(run("status", running, "--json").stdout)
    assert found["schema"] == "privshare.snapshot/1"
    assert found["run"]["state"] == "running"


def test_status_of_what_is_no_run_is_one_line(tmp_path: Path) -> None:
    fails(run("status", tmp_path), ExitCode.RESUME_IMPOSSIBLE, "neither the folder of a run")


# --- pause, resume, stop


def test_pause_resume_and_stop_ask_and_take_back(running: Path) -> None:
    fails(run("resume", running), ExitCode.RESUME_IMPOSSIBLE, "nothing was asked of its run")
    assert run("pause", running).exit_code == 0
    assert asked(running) == "pause"
    assert run("resume", running).exit_code == 0
    assert asked(running) is None
    assert run("stop", running).exit_code == 0
    assert asked(running) == "stop"
    assert "stop is taken back" in run("resume", running).stdout
    assert asked(running) is None


@pytest.mark.parametrize("verb", ["pause", "stop"])
def test_nothing_is_asked_of_a_run_that_has_ended(finished: Path, verb: str) -> None:
    fails(run(verb, finished), ExitCode.RESUME_IMPOSSIBLE, "its run has ended")
    assert asked(finished) is None


def test_a_run_that_is_stopped_is_not_resumed_but_started(running: Path) -> None:
    (running / "outcome.json").write_text('{"schema": "privshare.outcome/1", "code": 69, "message": "stopped"}')
    fails(run("resume", running), ExitCode.RESUME_IMPOSSIBLE, "start it again")


# --- dashboard


def test_a_page_is_not_shown_to_the_network_unless_that_is_said(running: Path) -> None:
    fails(run("dashboard", running, "--host", EVERYWHERE), ExitCode.USAGE, "--expose")


def test_a_page_that_is_shown_to_the_network_comes_with_a_warning(
    running: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[str] = []
    monkeypatch.setattr("server.dashboard.serve", lambda *_, host, **__: served.append(host))
    result = run("dashboard", running, "--host", EVERYWHERE, "--expose")
    assert (result.exit_code, served) == (0, [EVERYWHERE])
    assert "warning: 0.0.0.0 is reached from the network, without TLS" in result.stderr
    assert run("dashboard", running).stderr == ""


def test_a_page_of_nothing_is_not_served(tmp_path: Path) -> None:
    token = tmp_path / "token"
    fails(run("dashboard", tmp_path / "none", "--token-file", token), ExitCode.RESUME_IMPOSSIBLE, "neither the folder")
    assert not token.exists()


def test_a_port_that_is_taken_is_told_in_a_line(running: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = run("dashboard", running, "--port", taken.getsockname()[1])
    assert result.exit_code == ExitCode.OUTPUT_NOT_WRITABLE
    assert "cannot listen there (Address already in use); choose another --port" in result.stderr


def test_a_token_file_is_its_owner_s_alone(running: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    monkeypatch.setattr("server.dashboard.serve", lambda *_, token, **__: given.append(token))
    for _ in range(2):
        assert run("dashboard", running, "--token-file", tmp_path / "token").exit_code == 0
    assert given == [(tmp_path / "token").read_text()] * 2
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
