"""What processor time buys: which points are asked for, and what the tables say of them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from simulations.bench import quality_over_time
from simulations.peers.compare import REAL

AREAS = {
    "real": [(0.90, None), (0.90, None)],
    "privshare-1": [(0.70, 10), (0.80, 12)],
    "privshare-10": [(0.86, 40), (0.88, 60)],
    "aim-1-15": [(0.60, 20), (0.60, 20)],
    "aim-4-60": [(0.82, 100), (0.82, 140)],
    "mst": [(0.50, 30), (0.50, 30)],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Cells of two seeds, all made; an environment that nothing is asked of."""
    monkeypatch.setattr(quality_over_time, "ROUNDS", (1, 10))
    monkeypatch.setattr(quality_over_time, "AIM", ((1.0, 15), (4.0, 60)))
    for name, values in AREAS.items():
        for seed, (area, seconds) in enumerate(values):
            path = tmp_path / "out" / "adult" / str(seed) / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            auc = {"gradient_boosting": area, "logistic_regression": 0.5}
            path.write_text(json.dumps({"auc": auc, "two_way": 0.1, "seconds": seconds, "peak": None}))
    python = tmp_path / "peers" / "dpmm" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    return tmp_path


def run(folder: Path, *options: str) -> str:
    arguments = [str(folder / "data"), "--out", str(folder / "out"), "--environments", str(folder / "peers")]
    arguments += ["--page", str(folder / "page"), "--seeds", "2", *options]
    result = CliRunner().invoke(quality_over_time.app, arguments)
    assert result.exit_code == 0, result.output
    return (folder / "page" / "quality-over-time.md").read_text()


def test_the_tables_say_what_each_point_reached_and_the_cheapest_that_reached_enough(folder: Path) -> None:
    text = run(folder, "--peer", "aim", "--peer", "mst")
    assert "| privshare | rounds: 10 | 2 | 0.870 ± 0.127 | 0.500 ± 0.000 | 50 |" in text
    assert "| AIM (dpmm) | rounds: 60, 4 MB | 2 | 0.820 ± 0.000 | 0.500 ± 0.000 | 120 |" in text
    assert "| boosting at least | privshare | AIM (dpmm) | MST (dpmm) |" in text
    assert "| 0.700, real rows less 0.2 | 11 s | 120 s | none |" in text
    assert "| 0.850, real rows less 0.05 | 50 s | none | none |" in text


def test_the_figure_has_a_line_for_each_curve_and_what_is_written_around_the_tables_stays(folder: Path) -> None:
    page = folder / "page" / "quality-over-time.md"
    page.parent.mkdir()
    page.write_text("# Before\n\n<!-- measured -->\n\nold\n\n<!-- end of what was measured -->\n\nAfter\n")
    text = run(folder, "--peer", "mst")
    assert text.startswith("# Before")
    assert text.endswith("After\n")
    assert "old" not in text
    assert "AIM" not in text
    drawn = (page.parent / "quality-over-time.svg").read_text()
    assert all(title in drawn for title in ("real rows", "privshare", "MST (dpmm)", "processor seconds"))


def test_each_point_of_aim_is_asked_for_its_own_size_and_rounds(folder: Path) -> None:
    asked = []

    class Task:
        def ask(self, *of: object) -> tuple[list[str], None]:
            asked.append(of)
            return [], None

    measured = quality_over_time.points(["aim", "mst"], folder)
    assert list(measured) == [name for name in AREAS if name != REAL]
    for name in ("aim-1-15", "aim-4-60", "mst"):
        measured[name].method(folder, Task())  # type: ignore[arg-type]
    assert asked == [
        ("aim", folder, folder, ("--aim-size", "1", "--aim-rounds", "15")),
        ("aim", folder, folder, ("--aim-size", "4", "--aim-rounds", "60")),
        ("mst", folder, folder, ()),
    ]


def test_a_data_set_that_is_not_known_is_said_in_one_line(folder: Path) -> None:
    result = CliRunner().invoke(quality_over_time.app, [str(folder), "--source", "adults"])
    assert result.exit_code > 0
    assert result.output.startswith("error: source=adults: expected one of adult, ")
    assert len(result.output.splitlines()) == 1
