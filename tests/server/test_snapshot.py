"""What a run looks like from outside: every state, every figure from what is there, and nothing that a site keeps."""

import json
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from common.errors import CheckpointError, StudyError
from server.dashboard import Watch
from server.journal import Journal
from server.launch import prepare
from server.metrics import NAMES, as_metrics
from server.panels import render_page, render_sections
from server.provision import CERTIFICATE_DAYS
from server.run_folder import LOCK, ask, hold, is_held
from server.snapshot import MEANINGS, find_run, snapshot_of
from tests.members import NOW, make_members
from tests.runs import cut, grow

HALF = 9
"""Steps of the tiny run that make it half done."""


@pytest.fixture
def running(finished: Path, tmp_path: Path) -> Iterator[Path]:
    folder = cut(finished, tmp_path / "run", HALF)
    with hold(folder):
        yield folder


def look(folder: Path) -> dict[str, Any]:
    return snapshot_of(folder, now=NOW)


def leaves(part: Any, path: str = "") -> Iterator[str]:
    """The name of every field."""
    if isinstance(part, dict):
        for name, value in part.items():
            yield from leaves(value, f"{path}.{name}" if path else name)
    elif isinstance(part, list) and path != "noise[].clamped_by":
        for value in part:
            yield from leaves(value, f"{path}[]")
    else:
        yield path


@pytest.mark.parametrize("which", ["finished", "running"])
def test_a_snapshot_has_the_fields_that_are_documented_and_no_other(which: str, request: pytest.FixtureRequest) -> None:
    found = set(leaves(look(request.getfixturevalue(which))))
    assert found <= set(MEANINGS)
    # Those that a run without faults, or without a neural discriminator, has too; a list that is empty has none.
    assert set(MEANINGS) - found == set()
    assert all(sentence.endswith(".") for sentence in MEANINGS.values())


def test_what_a_finished_run_shows_is_what_its_files_say(finished: Path) -> None:
    found = look(finished)
    certificate = json.loads((finished / "certificate.json").read_text())
    assert (found["run"]["state"], found["run"]["code"], found["run"]["progress"]) == ("published", 0, 1)
    assert (found["run"]["stage"], found["run"]["round"]) == (3, 6)
    assert found["study"]["digest"] == certificate["study"]["digest"]
    for row in found["budget"]:
        own = certificate["sites"][row["site"]]
        assert row["spent"] == pytest.approx(own["spent"][row["account"]] / own["bound"])
        assert row["projected"] == row["spent"]
        if row["account"] == "train":
            assert row["epsilon_spent"] == pytest.approx(own["epsilon"], rel=1e-6)
    for site in found["sites"]:
        own = certificate["sites"][site["site"]]
        assert (site["ledger_sequence"], site["ledger_hash"]) == (
            own["ledger_head"]["sequence"],
            own["ledger_head"]["hash"],
        )
        assert (site["attested_by"], site["missed"], site["dropped"]) == (1, 0, 0)
    assert [gate["state"] for gate in found["gates"]][:1] in (["passed"], ["failed"])
    assert {gate["id"]: gate["state"] for gate in found["gates"]}["misfit"] == "passed"
    assert found["events"][-1]["event"] == "closed"


def test_a_run_that_is_half_done_says_what_is_to_come(finished: Path, running: Path) -> None:
    found, whole = look(running), look(finished)
    run = found["run"]
    assert run["state"] == "running"
    assert 0 < run["progress"] < 1
    assert run["eta_seconds"] > 0
    assert run["last_step_at"] == max(event["time"] for event in found["events"] if event["event"] == "step")
    for row, last in zip(found["budget"], whole["budget"], strict=True):
        assert row["spent"] < last["spent"]
        if row["account"] == "train":
            assert row["projected"] == pytest.approx(last["spent"], abs=1e-6)
    assert {gate["state"] for gate in found["gates"]} <= {"open", "simulation"}
    assert len(found["noise"]) < len(whole["noise"])


def test_the_controller_s_decisions_are_told_in_words(finished: Path) -> None:
    first, *later = look(finished)["noise"]
    assert first["why"].startswith("The first measurement")
    for before, now in zip([first, *later], later, strict=False):
        fell = re.match(r"Noise falls by (\d+) %: the plan asks for", now["why"])
        assert fell is not None
        assert int(fell[1]) == pytest.approx(100 * (1 - (before["share"] / now["share"]) ** 0.5), abs=0.51)


def test_the_state_of_a_run_follows_from_its_folder(finished: Path, running: Path) -> None:
    assert look(running)["run"]["state"] == "running"
    ask(running, "pause")
    assert look(running)["run"]["state"] == "pausing"
    Journal(running).note("paused")
    assert look(running)["run"]["state"] == "paused"
    ask(running, "stop")
    assert look(running)["run"]["state"] == "stopping"
    outcome = {"schema": "privshare.outcome/1", "code": 69, "message": "stopped"}
    for code, state in ((69, "stopped"), (54, "failed"), (0, "measured")):
        (running / "outcome.json").write_text(json.dumps({**outcome, "code": code}))
        assert look(running)["run"]["state"] == state
    shutil.copyfile(finished / "certificate.json", running / "certificate.json")
    assert look(running)["run"]["state"] == "published"


def test_a_run_that_nobody_conducts_any_more_says_how_to_go_on(finished: Path, tmp_path: Path) -> None:
    found = look(cut(finished, tmp_path / "run", HALF))
    assert (found["run"]["state"], found["run"]["eta_seconds"]) == ("lost", None)
    assert "`python simulations/run.py --resume`" in found["verdict"]["sentence"]


def test_time_in_which_a_run_was_paused_is_not_counted(running: Path) -> None:
    before = look(running)["run"]["eta_seconds"]
    events = [json.loads(line) for line in (running / "events.jsonl").read_text().splitlines()]
    at = next(at for at, event in enumerate(events) if event["event"] == "step")
    moment = datetime.fromisoformat(events[at]["time"])
    for event in events[at + 1 :]:
        event["time"] = (datetime.fromisoformat(event["time"]) + timedelta(hours=5)).isoformat()
    events[at + 1 : at + 1] = [
        {"time": moment.isoformat(), "event": "paused"},
        {"time": (moment + timedelta(hours=5)).isoformat(), "event": "resumed"},
    ]
    (running / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    assert look(running)["run"]["eta_seconds"] == pytest.approx(before, abs=1)


def test_a_site_that_does_not_answer_falls_behind_and_that_is_seen(running: Path) -> None:
    for _ in range(2):
        Journal(running).note(
            "answered", request="pairs-3", sites=["site_01"], heads={}, failed={"site_02": "NO_ANSWER"}
        )
    found = look(running)
    first, second = found["sites"]
    assert (first["missed"], first["dropped"]) == (0, 0)
    assert (second["missed"], second["dropped"], second["last_fault"]) == (2, 2, "NO_ANSWER")
    assert second["last_seen"] < first["last_seen"]
    assert found["verdict"]["tone"] == "attention"
    assert "No good answer from site_02" in found["verdict"]["sentence"]


def test_a_simulation_of_a_method_without_privacy_shows_no_quality_and_says_so(running: Path) -> None:
    options = json.loads((running / "options.json").read_text())
    (running / "options.json").write_text(json.dumps({**options, "method": "gan"}))
    found = look(running)
    assert (found["quality"]["frechet"], found["quality"]["validation"], found["quality"]["losses"]) == ([], [], [])
    assert found["verdict"]["tone"] == "alarm"
    assert "without privacy" in found["verdict"]["sentence"]


def test_a_distance_that_noise_hides_is_not_that_of_an_earlier_measurement(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    steps = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    decided = [step for step in steps if step["step"] == "noise"]
    for step, ratio in zip(decided, (1.0, 0.4321, None), strict=True):
        step["inputs"]["frechet_ratio"] = ratio
    (folder / "rounds.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    found = look(folder)
    assert [one["ratio"] for one in found["quality"]["frechet"]] == [1.0, 0.4321, None]
    page = render_page(found, render_sections(found))
    row = page[page.index("Fréchet ratio") :].partition("</tr>")[0]
    assert "not known" in row
    assert "0.432" not in row
    assert not re.search("^privshare_frechet_ratio", as_metrics(found).decode(), re.MULTILINE)


def test_what_is_no_run_is_refused_in_a_line(tmp_path: Path, running: Path) -> None:
    with pytest.raises(CheckpointError, match="neither the folder of a run nor a coordinator's home"):
        look(tmp_path / "none")
    (running / "rounds.jsonl").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON lines"):
        look(running)
    lock = running / "study.lock.yaml"
    lock.write_text(lock.read_text().replace("epsilon: 1.0", "epsilon: 2.0"))
    with pytest.raises(StudyError, match="its checkpoints are of another study"):
        look(running)


# --- a coordinator's home


def test_a_home_shows_its_members_before_a_run_and_then_its_newest_run(tmp_path: Path, finished: Path) -> None:
    fed = make_members(tmp_path / "fed")
    found = look(fed.home)
    assert (found["run"]["state"], found["verdict"]["word"]) == ("waiting", "Not begun")
    assert {site["site"]: site["status"] for site in found["sites"]} == {
        "east": "invited",
        "north": "admitted",
        "south": "admitted",
    }
    assert found["sites"][1]["certificate_days"] == CERTIFICATE_DAYS
    assert found["coordinator"]["certificate_days"] == CERTIFICATE_DAYS
    run = fed.home / "runs" / "one"
    given = {"run": "one", "seed": 0, "device": "cpu", "patience": 1.0, "timeout": 1.0}
    prepare(fed.folder / "study.yaml", fed.home, run, **given)  # type: ignore[arg-type]
    assert find_run(fed.home) == run
    assert look(fed.home)["run"]["state"] == "waiting"
    # Steps that nobody carries on any more.
    for name in ("rounds.jsonl", "events.jsonl"):
        shutil.copyfile(finished / name, run / name)
    assert look(fed.home)["run"]["state"] == look(run)["run"]["state"] == "lost"
    assert not is_held(run)


# --- what must not be shown


def test_nothing_of_a_site_s_own_and_nothing_measured_on_real_rows_is_on_page_stream_or_metrics(
    finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    secrets = [f"SECRET{number}" for number in range(9)]
    rows, replies, key, table, extra, line, evaluated, gate, option = secrets
    (folder / "sites" / "site_01" / "table.csv").write_text(f"person,outcome\n{rows},bad\n")
    for path in (folder / "sites" / "site_01" / "replies").iterdir():
        path.write_text(replies)
    (folder / "sites" / "site_01" / "identity.pem").write_text(key)
    ledger = folder / "ledger" / "site_01.jsonl"
    ledger.write_text(ledger.read_text() + json.dumps({"rows": table}) + "\n")
    (folder / "synthetic.csv").write_text(extra)
    steps = [json.loads(one) for one in (folder / "rounds.jsonl").read_text().splitlines()]
    steps[-1] |= {"private_loss": line, "inputs": {"real": line}}
    (folder / "rounds.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    Journal(folder).note("answered", request="train-9", sites=["site_01"], heads={}, failed={}, norms=line)
    (folder / "evaluation.json").write_text(json.dumps({"utility": evaluated, "gates": [{"id": gate}]}))
    options = json.loads((folder / "options.json").read_text())
    (folder / "options.json").write_text(json.dumps({**options, "data": [option]}))
    snapshot = look(folder)
    sections = render_sections(snapshot)
    said = [json.dumps(snapshot), render_page(snapshot, sections), as_metrics(snapshot).decode()]
    said += [render_page(snapshot, sections, saved=datetime.now(UTC)), Watch(folder).look().message]
    for secret in secrets:
        assert not [text for text in said if secret in text], secret


def test_names_from_outside_are_text_on_the_page(running: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    Journal(running).note("answered", request=evil, sites=[evil], heads={}, failed={"site_02": evil})
    outcome = {"schema": "privshare.outcome/1", "code": 54, "message": f"site {evil}: </script>"}
    (running / "outcome.json").write_text(json.dumps(outcome))
    snapshot = look(running)
    page = render_page(snapshot, render_sections(snapshot))
    assert "<img" not in page
    assert page.count("</script>") == 1
    assert "&lt;img src=x onerror=alert(1)&gt;" in page


# --- metrics


def test_metrics_are_gauges_with_help_and_say_what_the_snapshot_says(finished: Path) -> None:
    snapshot = look(finished)
    text = as_metrics(snapshot).decode()
    for name in NAMES:
        assert re.search(rf"^# HELP {name} \S.*\.$", text, re.MULTILINE), name
        assert f"# TYPE {name} gauge\n" in text
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(samples["privshare_round"]) == 6
    spent = {row["site"]: row["spent"] for row in snapshot["budget"] if row["account"] == "train"}
    for site, share in spent.items():
        assert float(samples[f'privshare_budget_spent_ratio{{account="train",site="{site}"}}']) == share
    assert float(samples['privshare_gate_passed{gate="misfit"}']) == 1
    assert 'state="published"' in text


def test_every_metric_is_in_the_documentation() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "coordinator.md").read_text(encoding="utf-8")
    assert [name for name in NAMES if f"`{name}`" not in text] == []
    documented = set(re.findall(r"`(privshare_[a-z_]+)`", text))
    assert documented == set(NAMES)


# --- the watch


def test_a_view_is_made_anew_when_a_step_comes_and_stays_the_same_otherwise(finished: Path, running: Path) -> None:
    watch = Watch(running)
    first = watch.look()
    assert watch.look() is first
    grow(finished, running, HALF + 1)
    second = watch.look()
    assert second is not first
    assert second.snapshot["events"] != first.snapshot["events"]
    (running / "rounds.jsonl").write_text("{")
    assert watch.look() is second
    (running / LOCK).write_bytes(b"")
    assert watch.look() is second
