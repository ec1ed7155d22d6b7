"""An audit of the real site: its noise passes, weak noise is found out in every kind of release, nothing remains."""

import functools
import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner, Result

from client.audit import HELD_OUT_KINDS, ONE_RUN, TRAIN_KINDS, Audit, Finding, Plan, audit
from client.site import open_site
from common.errors import ExitCode, PolicyError, StudyError
from common.evaluation.audit import Evidence
from common.privacy.noise import SeededNoise
from common.study import load_study
from common.wire.messages import KINDS, Request, refusal
from simulations.cli import app

STUDY: dict[str, Any] = {
    "schema": "privshare.study/1",
    "name": "toy",
    "unit": {"name": "patient"},
    "label": {"column": "ill", "positive": "yes"},
    "columns": {
        "colour": {"type": "categorical", "categories": ["red", "green", "blue"], "missing": True},
        "age": {"type": "integer", "min": 0, "max": 99, "cells": 50, "missing": True},
        "amount": {"type": "continuous", "min": 0, "max": 10, "cells": 50},
        "dose": {"type": "continuous", "min": 0, "max": 10, "cells": 50},
        "ill": {"type": "categorical", "categories": ["no", "yes"]},
    },
    "privacy": {"epsilon": 1, "delta": 1e-5, "holdout": 0.4},
    "model": {"latent": 2, "width": 8, "blocks": 1, "batch": 8},
    "critic": {"width": 4},
}
WINDOWED: dict[str, Any] = {
    **STUDY,
    "unit": {"name": "patient", "key": "who"},
    "windows": {
        "layout": "events",
        "length": 12,
        "time": {"column": "at"},
        "channels": {"drug": {"type": "categorical", "categories": ["a", "b", "c"]}},
    },
}
KINDS_SENT = (*TRAIN_KINDS, *HELD_OUT_KINDS)
SMALL = Plan(units=8, canaries=6, repetitions=6)
LEAST = Plan(units=2, canaries=2, repetitions=2)


class Reduced:
    """Noise that says it comes from the system, and is smaller than stated; no two draws are alike."""

    kind: Literal["csprng", "test-seed"] = "csprng"

    def __init__(self, factor: float, seed: bytes = b"audit") -> None:
        self.factor, self.source, self.drawn = factor, SeededNoise(seed), itertools.count()

    def draw(self, size: int, *, noise_stddev: float, context: str) -> np.ndarray:
        return self.source.draw(size, noise_stddev=self.factor * noise_stddev, context=f"{next(self.drawn)}")

    def sample(self, size: int, *, rate: float, context: str) -> np.ndarray:
        return self.source.sample(size, rate=rate, context=f"{next(self.drawn)}")


class Repeated(Reduced):
    """Noise of the right size that is the same each time."""

    def draw(self, size: int, *, noise_stddev: float, context: str) -> np.ndarray:
        return self.source.draw(size, noise_stddev=noise_stddev, context="always")


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("studies")


@dataclass(frozen=True)
class Recorded:
    """An audit, the files of the audited sites, and what they were asked."""

    audit: Audit
    opened: list[Path]
    asked: list[Request]


class Overheard:
    """The site as it is, its noise from the system; what it is asked is written down."""

    def __init__(self, path: Path, opened: list[Path], asked: list[Request]) -> None:
        # One at a time lies in the folder of the audit.
        assert [one for one in path.parents[3].iterdir() if one.is_dir()] == [path.parents[2]]
        opened.append(path)
        self.site, self.asked = open_site(path), asked

    def handle(self, body: bytes) -> bytes:
        self.asked.append(Request.decode(body))
        return self.site.handle(body)


@pytest.fixture(scope="module")
def recorded(folder: Path) -> Recorded:
    """At a confidence at which chance contradicts no true claim in a billion runs."""
    opened: list[Path] = []
    asked: list[Request] = []
    start: Any = functools.partial(Overheard, opened=opened, asked=asked)
    return Recorded(audit(written(folder), replace(SMALL, confidence=1 - 1e-9), start=start), opened, asked)


@pytest.fixture(scope="module")
def honest(recorded: Recorded) -> Audit:
    return recorded.audit


@pytest.fixture(scope="module")
def weak(folder: Path) -> Audit:
    start = functools.partial(open_site, noise=Reduced(0.1))
    return audit(written(folder), Plan(units=8, canaries=60, repetitions=40), start=start)


# --- what is found


def test_no_claim_of_the_real_site_is_contradicted(honest: Audit) -> None:
    assert [finding.kind for finding in honest.findings] == [*KINDS_SENT, ONE_RUN]
    for finding in honest.findings:
        assert finding.evidence.epsilon_lower < finding.epsilon_claimed
        assert not finding.is_contradicted
    assert not honest.is_contradicted


def test_each_release_is_audited_at_the_whole_budget_of_the_study(honest: Audit) -> None:
    for finding in honest.findings:
        assert finding.epsilon_claimed == pytest.approx(1.0, rel=1e-5)
        assert finding.epsilon_claimed <= 1.0
    assert (honest.study, honest.unit, honest.delta) == ("toy", "patient", 1e-5)


def test_the_units_that_are_looked_for_move_the_releases_as_much_as_is_stated_and_no_more(honest: Audit) -> None:
    for finding in honest.findings:
        assert 0.98 < finding.moved <= 1 + 1e-9


@pytest.mark.parametrize("kind", [*KINDS_SENT, ONE_RUN])
def test_a_tenth_of_the_noise_is_found_out_in_every_kind_of_release(weak: Audit, kind: str) -> None:
    (finding,) = (one for one in weak.findings if one.kind == kind)
    assert finding.epsilon_claimed == pytest.approx(1.0, rel=1e-5)
    assert finding.evidence.epsilon_lower > 1
    assert finding.is_contradicted
    assert weak.is_contradicted


def test_noise_that_is_the_same_each_time_is_found_out_and_so_at_sites_that_are_opened_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.audit._RELEASES", 5)
    start = functools.partial(open_site, noise=Repeated(1.0))
    found = audit(written(folder), replace(SMALL, repetitions=12), start=start)
    for finding in found.findings[:-1]:
        assert finding.evidence.epsilon_lower == finding.evidence.epsilon_detectable
        assert finding.is_contradicted


def test_windows_are_audited_too(folder: Path) -> None:
    start = functools.partial(open_site, noise=Reduced(0.03))
    found = audit(written(folder, **WINDOWED), replace(SMALL, repetitions=12), start=start)
    assert [finding.kind for finding in found.findings] == [*KINDS_SENT, ONE_RUN]
    assert all(finding.is_contradicted for finding in found.findings[:-1])
    # A window that stands still weighs as much as a unit may.
    assert all(0.95 < finding.moved <= 1 + 1e-9 for finding in found.findings)


def test_a_run_of_canaries_is_one_run_for_the_whole_budget(recorded: Recorded, folder: Path) -> None:
    last = recorded.asked[-3:]
    assert [request.kind for request in last] == ["one_way", "tables", "embedding"]
    assert sum(request.options["share"] for request in last) == pytest.approx(1, rel=1e-5)
    assert {request.study for request in last} == {load_study(written(folder)).digest()} == {recorded.audit.digest}
    # Of each other kind so many with the unit and so many without, and nothing else; each lot at one opened site.
    assert len(recorded.opened) == 2 * len(KINDS_SENT) + 1
    kinds = [request.kind for request in recorded.asked[:-3]]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == dict.fromkeys(KINDS_SENT, 2 * SMALL.repetitions)


def test_what_stays_at_a_site_and_what_it_does_not_have_is_not_audited(folder: Path) -> None:
    local = audit(written(folder, discriminators={"scope": "local"}), LEAST)
    assert [finding.kind for finding in local.findings] == ["one_way", "monitor", ONE_RUN]
    assert local.findings[-1].epsilon_claimed < 0.7  # the one-way tables alone
    alone = audit(written(folder, privacy={**STUDY["privacy"], "holdout": 0}), LEAST)
    assert [finding.kind for finding in alone.findings] == [*TRAIN_KINDS, ONE_RUN]


def test_a_study_that_counts_otherwise_is_audited_over_all_units(folder: Path) -> None:
    changed = {"privacy": {**STUDY["privacy"], "accountant": "rdp"}, "critic": {"width": 4, "sampling": 0.1}}
    path = written(folder, **changed)
    found = audit(path, LEAST)
    assert found.digest == load_study(path).digest()
    assert all(finding.epsilon_claimed == pytest.approx(1.0, rel=1e-5) for finding in found.findings)


def test_an_epsilon_near_the_largest_possible_leaves_room_for_single_replies(folder: Path) -> None:
    found = audit(written(folder, privacy={**STUDY["privacy"], "epsilon": 9_999}), LEAST)
    for finding in found.findings:
        assert finding.epsilon_claimed == pytest.approx(9_999, rel=1e-5)
        assert finding.evidence.epsilon_detectable < finding.epsilon_claimed


# --- what a finding is


EVIDENCE = Evidence(epsilon_lower=0.9, epsilon_lower_plain=0.5, epsilon_detectable=9.0, trials=100, confidence=0.99)


def test_a_claim_is_contradicted_by_a_larger_bound_or_by_a_unit_that_moves_too_much() -> None:
    finding = Finding("tables", 1.0, EVIDENCE, moved=1.0)
    assert not finding.is_contradicted
    assert replace(finding, epsilon_claimed=0.89).is_contradicted
    assert replace(finding, moved=1.001).is_contradicted
    whole = Audit("toy", "0", "patient", 1e-5, SMALL, (finding, finding))
    assert not whole.is_contradicted
    assert replace(whole, findings=(finding, replace(finding, moved=2.0))).is_contradicted


def test_all_findings_together_have_the_confidence_that_is_asked_for(honest: Audit, weak: Audit) -> None:
    for found in (honest, weak):
        missed = sum(1 - finding.evidence.confidence for finding in found.findings)
        assert missed == pytest.approx(1 - found.plan.confidence, rel=1e-6)


def test_the_json_of_an_audit_holds_every_number(weak: Audit) -> None:
    told = json.loads(json.dumps(weak.as_dict(), allow_nan=False))
    assert told["contradicted"] is True
    assert told["plan"] == {"units": 8, "canaries": 60, "repetitions": 40, "seed": 0, "confidence": 0.95}
    assert [one["kind"] for one in told["findings"]] == [*KINDS_SENT, ONE_RUN]
    first, finding = told["findings"][0], weak.findings[0]
    assert first == {
        "kind": "one_way",
        "epsilon_claimed": finding.epsilon_claimed,
        "epsilon_lower": finding.evidence.epsilon_lower,
        "epsilon_lower_plain": finding.evidence.epsilon_lower_plain,
        "epsilon_detectable": finding.evidence.epsilon_detectable,
        "trials": 72,
        "confidence": finding.evidence.confidence,
        "moved": finding.moved,
        "contradicted": True,
    }


# --- what stops an audit


class Refusing:
    """A site that answers nothing."""

    def __init__(self, path: Path, opened: list[Path]) -> None:
        assert path.exists()
        opened.append(path)

    def handle(self, body: bytes) -> bytes:
        return refusal("audited", ExitCode.POLICY_REFUSED)


def test_a_site_that_refuses_stops_the_audit_and_an_audit_leaves_nothing_behind(
    recorded: Recorded, folder: Path
) -> None:
    opened: list[Path] = []
    start: Any = functools.partial(Refusing, opened=opened)
    with pytest.raises(PolicyError, match=r"one_way: the site refused to answer \(POLICY_REFUSED\)"):
        audit(written(folder), SMALL, start=start)
    assert len(opened) == 1
    # The folder of the audit, of the site in it, of its private files, of the site by name.
    assert not any(path.parents[3].exists() for path in (*opened, *recorded.opened))


def test_a_study_that_holds_out_next_to_nobody_cannot_be_audited(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.audit._TRIES", 5)
    with pytest.raises(StudyError, match=r"privacy\.holdout: none of 5"):
        audit(written(folder, privacy={**STUDY["privacy"], "holdout": 1e-9}), SMALL)


# --- the command


def command(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


ARGUMENTS = ("--units", "8", "--canaries", "6", "--repetitions", "12")


def test_the_command_tells_progress_on_one_stream_and_the_result_on_the_other(folder: Path) -> None:
    result = command("audit", written(folder), *ARGUMENTS, "--confidence", "0.999999999", "--seed", "3", "--json")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert told["contradicted"] is False
    assert told["plan"] == {"units": 8, "canaries": 6, "repetitions": 12, "seed": 3, "confidence": 0.999999999}
    for kind in (*KINDS_SENT, ONE_RUN):
        assert kind in result.stderr


def test_the_command_ends_with_its_own_code_where_the_sites_own_noise_is_broken(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.site.GaussianNoise", functools.partial(Reduced, 0.03))
    result = command("audit", written(folder), *ARGUMENTS)
    assert result.exit_code == ExitCode.AUDIT_CONTRADICTED == 23
    lines = {line.split()[1]: line for line in result.stdout.splitlines() if "│" in line}
    for kind in KINDS_SENT:
        assert "CONTRADICTED" in lines[kind]
    assert "beyond this" in lines[ONE_RUN]  # six canaries can prove no epsilon of 1
    assert "1.000" in lines["tables"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["absent.yaml"], ExitCode.STUDY_NOT_FOUND, "absent.yaml"),
        (["STUDY", "--confidence", "0.5"], ExitCode.USAGE, "confidence"),
        (["STUDY", "--confidence", "1"], ExitCode.USAGE, "confidence"),
    ],
)
def test_what_cannot_be_audited_ends_in_one_line(folder: Path, arguments: list[str], code: ExitCode, says: str) -> None:
    path = written(folder)
    result = command("audit", *(str(path) if one == "STUDY" else one for one in arguments))
    assert result.exit_code == code
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert says in line


def test_the_coordinators_commands_are_there_beside_it(folder: Path) -> None:
    result = command("check", written(folder), "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["guarantee"].startswith("(1, 1e-05)-DP")
    assert {"init", "check", "audit"} <= set(command("--help").stdout.split())


def test_every_kind_that_releases_is_audited() -> None:
    site_only = {"describe", "witness", "confirm", "masks", "train"}
    assert set(KINDS_SENT) == set(KINDS) - site_only
