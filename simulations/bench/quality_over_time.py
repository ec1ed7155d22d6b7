"""What processor time buys, at the study's ε: `python -m simulations.bench.quality_over_time DATA`.

privshare with few and many rounds of training, AIM with a small and a large model, and other peers as they come, each a
command of its own as in `simulations.peers.compare`: how much boosted trees learn from the rows, by the seconds that
it took to make them. A cell that is there is not made again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Annotated, Final

import typer

from common.commands import Commands, fail
from common.errors import PrivShareError
from common.evaluation.figures import over_seeds
from simulations.bench.scale import fill
from simulations.peers.compare import (
    PEERS,
    REAL,
    Cell,
    Method,
    alone,
    cells_of,
    chosen_peers,
    federated,
    make,
    named,
    said,
)
from simulations.public import SOURCES

app = Commands()

ROUNDS: Final = (1, 2, 5, 10, 20)
"""Of privshare's training; 10 as it comes."""
AIM: Final = ((1.0, 15), (2.0, 30), (4.0, 60), (8.0, 120))
"""MB of its model and rounds: twice as much each time; the third as in `simulations.peers.compare`."""
_GAPS: Final = (0.2, 0.1, 0.05, 0.04, 0.03, 0.02)
"""Of AUC, below real rows."""
_BOOSTING: Final = "gradient_boosting"
_SCORED: Final = (_BOOSTING, "logistic_regression")
_AIM: Final = "aim"


@dataclass(frozen=True)
class Point:
    """One method with one setting.

    curve: what a reader knows the method by.
    setting: what varies on the curve; empty where nothing does.
    """

    curve: str
    setting: str
    method: Method


@dataclass(frozen=True)
class _Line:
    """A curve: the seconds and AUCs of its points, a value a seed, and the points' settings."""

    settings: list[str]
    cells: list[list[Cell]]

    @property
    def seconds(self) -> list[float]:
        """Of each point, the mean over seeds."""
        return [fmean(cell.seconds or 0.0 for cell in cells) for cells in self.cells]

    def areas(self, classifier: str) -> list[list[float]]:
        """Of each point."""
        return [[cell.auc[classifier] for cell in cells if classifier in cell.auc] for cells in self.cells]


def points(peers: Sequence[str], environments: Path) -> dict[str, Point]:
    """All that is measured, by the name of its cell."""
    found = {f"privshare-{count}": Point("privshare", f"rounds: {count}", federated(count)) for count in ROUNDS}
    for name in peers:
        if name == _AIM:
            for size, rounds in AIM:
                options = ("--aim-size", f"{size:g}", "--aim-rounds", str(rounds))
                method = alone(name, environments, *options)
                found[f"{name}-{size:g}-{rounds}"] = Point("AIM (dpmm)", f"rounds: {rounds}, {size:g} MB", method)
        else:
            found[name] = Point(PEERS[name].title, "", alone(name, environments))
    return found


@app.command()
def main(
    data: Annotated[Path, typer.Argument(help="Folder with a folder of each data set.")],
    *,
    out: Annotated[Path, typer.Option(help="Folder of all that is made; what is there is not made again.")] = Path(
        "runs/quality-over-time"
    ),
    page: Annotated[Path, typer.Option(help="Folder of the page and its figure.")] = Path("docs/results"),
    environments: Annotated[Path, typer.Option(help="Folder with an environment of each peer.")] = Path(".venv-peers"),
    source: Annotated[str, typer.Option(help="Data set.")] = "adult",
    peer: Annotated[list[str] | None, typer.Option(help="Peers; repeat it. Default: all; 'none' for none.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each, with the seeds 0, 1, ...")] = 3,
    limit: Annotated[int, typer.Option(min=1, help="Seconds after which a command is given up.")] = 3600,
) -> None:
    """Make every cell that is not there, then write quality-over-time.svg and the tables of quality-over-time.md."""
    try:
        (name,), peers = named("source", [source], SOURCES), chosen_peers(peer, environments)
        measured = points(peers, environments)
        methods = {key: point.method for key, point in measured.items()}
        for seed in range(seeds):
            make(name, seed, methods, data=data, folder=out / name / str(seed), limit=limit)
    except PrivShareError as error:
        fail(error)
    real, lines = list(cells_of(out / name, REAL).values()), _lines(out / name, measured)
    page.mkdir(parents=True, exist_ok=True)
    draw(name, real, lines, page / "quality-over-time.svg")
    fill(page / "quality-over-time.md", f"{table(name, real, lines)}\n\n{times(real, lines)}")


def _lines(folder: Path, measured: Mapping[str, Point]) -> dict[str, _Line]:
    """The curves of what is there, by title, each in the order of its settings."""
    lines: dict[str, _Line] = {}
    for key, point in measured.items():
        if cells := list(cells_of(folder, key).values()):
            line = lines.setdefault(point.curve, _Line([], []))
            line.settings.append(point.setting)
            line.cells.append(cells)
    return lines


def table(name: str, real: Sequence[Cell], lines: Mapping[str, _Line]) -> str:
    """Markdown with a row for each point."""
    head = f"| {name} | | seeds | boosting | logistic regression | CPU s |\n|---|---|---|---|---|---|"
    whole = [said([cell.auc[one] for cell in real]) for one in _SCORED]
    rows = [f"| real rows | | {len(real)} | {' | '.join(whole)} | |"]
    for title, line in lines.items():
        areas = [[said(values) for values in line.areas(one)] for one in _SCORED]
        cost = [f"{value:,.0f}" for value in line.seconds]
        seeds = [str(len(cells)) for cells in line.cells]
        columns = zip([title] * len(cost), line.settings, seeds, *areas, cost, strict=True)
        rows += [f"| {' | '.join(row)} |" for row in columns]
    return "\n".join([head, *rows])


def times(real: Sequence[Cell], lines: Mapping[str, _Line]) -> str:
    """Markdown of the least seconds, among the points of each curve, that bring boosting near to real rows."""
    whole = fmean(cell.auc[_BOOSTING] for cell in real)
    rows = [f"| boosting at least | {' | '.join(lines)} |", f"|---|{'---|' * len(lines)}"]
    for gap in _GAPS:
        cells = [_first(line, whole - gap) for line in lines.values()]
        rows.append(f"| {whole - gap:.3f}, real rows less {gap:g} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _first(line: _Line, area: float) -> str:
    """CPU seconds of the cheapest point whose mean is at least so high."""
    means = [fmean(values) if values else 0.0 for values in line.areas(_BOOSTING)]
    enough = [seconds for seconds, mean in zip(line.seconds, means, strict=True) if mean >= area]
    return f"{min(enough):,.0f} s" if enough else "none"


def draw(name: str, real: Sequence[Cell], lines: Mapping[str, _Line], path: Path) -> None:
    """One figure: AUC of boosting by processor seconds, a line a curve, with the intervals over seeds."""
    import matplotlib as mpl  # noqa: PLC0415 (seconds)
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib.ticker import LogFormatter  # noqa: PLC0415

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "privshare", "font.size": 8}):
        canvas = Figure(figsize=(7, 4), layout="constrained")
        axes = canvas.subplots()
        axes.axhline(fmean(cell.auc[_BOOSTING] for cell in real), color="black", linestyle="--", label="real rows")
        lowest = 1.0
        for (title, line), marker in zip(lines.items(), cycle("osD^vP*X"), strict=False):
            figures = [over_seeds(values) for values in line.areas(_BOOSTING)]
            means = [figure.value or 0.0 for figure in figures]
            lowest = min(lowest, *means)
            halves = [(figure.high or mean) - mean for figure, mean in zip(figures, means, strict=True)]
            axes.errorbar(line.seconds, means, yerr=halves, marker=marker, markersize=4, capsize=2, label=title)
        # Intervals of two seeds may reach beyond what an AUC can be.
        axes.set_ylim(lowest - 0.02, 1.0)
        axes.set(xscale="log", xlabel="processor seconds", ylabel="AUC of boosting on real units", title=name)
        axes.xaxis.set_major_formatter(LogFormatter())
        axes.xaxis.set_minor_formatter(LogFormatter())
        axes.legend(fontsize=7)
        canvas.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    app()
