"""Every bench runs, at its smallest size, and prints what its page shows. How long something takes is not asked."""

import csv
import json
import re
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from common.commands import Commands
from common.models.generator import Generator
from common.models.training import train
from simulations.bench import (
    bad_peers,
    critic_step,
    generator_step,
    interactions,
    mimic3,
    minority,
    release,
    sampling,
    scale,
    steps,
)
from simulations.bench.scale import Curve, Point
from tests.client.presets.test_mimic3 import HOSPITAL

NUMBER = re.compile(r"\d[\d,]*(\.\d+)?")


def said(app: Commands, *words: object) -> str:
    """What a bench prints."""
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def table(app: Commands, *words: object) -> list[list[str]]:
    """The cells of the table that a bench prints, without its head."""
    lines = [line for line in said(app, *words).splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def are_numbers(cells: list[str]) -> bool:
    return all(NUMBER.match(cell) for cell in cells)


# --- of one run that published


def test_each_step_is_shown_beside_the_least_that_it_takes(finished: Path) -> None:
    found = table(steps.app, finished, "--rows", 50, "--repeats", 1)
    assert [line[0] for line in found] == [
        "read and encode 96 records at a site",
        "a generator's step with 1,000 latents",
        "50 rows on demand",
        "sign a certificate",
        "verify a release",
    ]
    assert all(len(line) == 4 and are_numbers(line[1:]) for line in found)


def test_a_larger_share_of_the_rare_class_is_shown_beside_rows_as_they_come(finished: Path) -> None:
    found = table(minority.app, finished, "--rows", 200, "--share", 0.5)
    learners = ["logistic_regression", "gradient_boosting"]
    assert [line[:2] for line in found] == [list(pair) for pair in product(["as they come", "50%"], learners)]
    assert {len(line) for line in found} == {7}
    assert all(re.fullmatch(r"[01]\.\d{3}( \([01] of 1 higher\))?", cell) for line in found for cell in line[2:])


@pytest.mark.parametrize("fewest", [200, 20])
def test_rows_on_demand_are_shown_beside_rejection(
    fewest: int, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "_FEWEST", fewest)
    (line,) = table(sampling.app, finished, "--sets", 20, "--rows", 50)
    name, delivered, refused, compared, *distances, worse, speed = line
    assert name == "tiny"
    made = 20 - int(refused)
    assert delivered == f"{made} of {made}, each share to a row of 50"
    assert 0 <= int(worse) <= int(compared)
    if fewest == 200:  # more than the run has
        assert (compared, distances) == ("0", ["", "", ""])
    else:
        assert int(compared) > 0
        assert are_numbers(distances[:2])
    assert "s / " in speed


# --- of random numbers


def test_a_generator_is_stepped_with_every_kind_of_window(monkeypatch: pytest.MonkeyPatch) -> None:
    stepped: list[str | None] = []

    def noted(generator: Generator, *rest: Any) -> float:
        sequence = generator.shape.sequence
        stepped.append(None if sequence is None else sequence.kind)
        return train(generator, *rest)

    monkeypatch.setattr(generator_step, "train", noted)
    small = ("--batch", 8, "--columns", 3, "--bins", 3, "--channels", 2, "--channel-bins", 3, "--steps", 4)
    found = table(generator_step.app, *small, "--repeats", 1)
    assert [line[0] for line in found] == ["records", "records and grids", "records and events"]
    assert list(dict.fromkeys(stepped)) == [None, "paths", "states"]
    assert all(len(line) == 5 and are_numbers(line[1:]) for line in found)


def test_gradients_of_a_critic_are_taken_in_three_ways() -> None:
    small = ("--units", 32, "--steps", 4, "--record-bins", 20, "--step-bins", 20, "--width", 4, "--repeats", 1)
    expected = [list(pair) for pair in product(["windows", "records"], ["clipped in integers", "plain", "opacus"])]
    found = table(critic_step.app, *small)
    assert [line[:2] for line in found] == expected
    assert all(len(line) == 5 and are_numbers(line[2:]) for line in found)
    listed: list[dict[str, Any]] = json.loads(said(critic_step.app, *small, "--json"))
    assert [[one["case"], one["method"]] for one in listed] == expected
    assert {tuple(one) for one in listed} == {("case", "method", "units", "seconds", "units_per_second", "times_plain")}


def test_a_release_is_timed_whole_and_in_parts() -> None:
    small = ("--cells", 1000, "--units", 50, "--tables", 2, "--entries", 3, "--repeats", 1)
    found = table(release.app, *small)
    assert [line[0] for line in found] == [
        "a release",
        "numpy's Gaussian, rounded",
        "checked sums of 2 tables",
        "ledger, 3 charges",
    ]
    assert [line[1].split(" ", 1)[1].split(" (")[0] for line in found[:3]] == ["cells/s", "cells/s", "hits/s"]
    assert re.fullmatch(r"median [\d.]+ ms, 99th [\d.]+ ms", found[3][1])


# --- of federations


@pytest.mark.parametrize(
    ("what", "options", "guards"),
    [
        ("releases", (), [["mean", "no", "0"], ["mean", "yes", "1"]]),
        ("generators", ("--scope", "local"), [["mean", "yes", "0"], ["median", "yes", "0"]]),
    ],
)
def test_bad_sites_are_shown_with_and_without_what_is_done_about_them(
    what: str, options: tuple[str, ...], guards: list[list[str]]
) -> None:
    small = ("--sites", 2, "--bad", 1, "--attack", "sign flip", "--seeds", 1)
    found = table(bad_peers.app, what, *small, *options)
    assert [line[:6] for line in found] == [["2", "1", "sign flip", *guard] for guard in guards]
    assert all(0 <= float(cell) <= 1 for line in found for cell in line[6:])


@pytest.mark.slow
def test_discriminators_are_compared_and_no_run_is_made_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The report has tests of its own, and takes longer to draw than such a run.
    monkeypatch.setattr("simulations.experiment.write_page", lambda *_: "")
    name = "statistical, semantic, neural"
    small = ("--out", tmp_path, "--units", 1000, "--sites", 1, "--seeds", 1, "--rounds", 2, "--only", name)
    found = table(interactions.app, *small)
    assert [line[:2] for line in found] == [[name, "1"]]
    assert all(0 <= float(cell) <= 1 for cell in found[0][2:])
    monkeypatch.setattr(interactions, "execute", lambda *_, **__: pytest.fail("made again"))
    assert table(interactions.app, *small) == found


POINTS = (
    Point(Curve.SITES, sites=1, units=200),
    Point(Curve.SITES, sites=2, units=200),
    Point(Curve.COLUMNS, sites=1, units=200, columns=3),
    Point(Curve.SCREENING, sites=1, units=5000, columns=5),
    Point(Curve.SCREENING, sites=1, units=5000, columns=5, again=0.3),
)


def in_this_process(point: Point, what: str, folder: str) -> dict[str, Any]:
    """A step of a point, whose own process would take seconds to import what is imported here."""
    found: dict[str, Any] = json.loads(
        said(scale.app, "point", what, folder, json.dumps(asdict(point))).splitlines()[-1]
    )
    return found


def test_points_of_a_curve_are_measured_once_and_fill_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "POINTS", POINTS)
    monkeypatch.setattr(scale, "_SCREENED", {"count": 3, "local_steps": 1, "refine_steps": 2})
    monkeypatch.setattr(scale, "_child", in_this_process)
    said(scale.app, "--out", tmp_path)
    with (tmp_path / "scale.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["point"] for line in lines] == [point.name for point in POINTS]
    asked = [float(line["asked"]) for line in lines if line["asked"]]
    assert asked[1] < 0.8 * asked[0]
    laws = {name for curve in scale.LAWS.values() for law in curve for name in law.columns}
    assert laws <= set(lines[0])
    assert (tmp_path / "scale.svg").read_text(encoding="utf-8").startswith("<?xml")
    page = (tmp_path / "scale.md").read_text(encoding="utf-8")
    heads = (
        "| sites | 1 | 2 | expected |",
        "| 5,000 | 5 | all |",
        "| 5,000 | 5 | 0.3 over all |",
        "| seconds of | 1 sites | 2 sites |",
        "| engine | sites |",
    )
    assert all(head in page for head in heads)
    monkeypatch.setattr(scale, "_child", lambda *_: pytest.fail("measured again"))
    said(scale.app, "--out", tmp_path)
    assert (tmp_path / "scale.md").read_text(encoding="utf-8") == page


# --- of a hospital


def test_copies_of_a_hospital_are_written_and_read(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    for name, rows in HOSPITAL.items():
        rows.to_csv(tmp_path / "demo" / f"{name.upper()}.csv", index=False)
    stays = len(HOSPITAL["icustays"])
    made = said(mimic3.app, "make", "--demo", tmp_path / "demo", "--out", tmp_path / "whole", "--stays", 2 * stays)
    assert made.startswith(f"2 copies, {2 * stays} stays, ")

    def people(folder: Path) -> list[int]:
        (line, *_) = table(mimic3.app, "read", folder, "--hours", 2)
        return [int(number) for number in line[1].split(", ")]

    once, twice = people(tmp_path / "demo"), people(tmp_path / "whole")
    assert min(once) > 0
    assert twice == [2 * number for number in once]
