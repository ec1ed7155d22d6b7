"""The paper's figures 3 and 4, drawn from evaluations."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from common.evaluation.figures import Figure
from simulations.methods import Method
from simulations.paper_cells import ATTACKS, USEFULNESS, Cell, Setting, at, summarise

_STYLE: Final[dict[Any, Any]] = {"svg.fonttype": "none", "svg.hashsalt": "privshare", "font.size": 9}
_MARKS: Final = {
    Method.PRIVSHARE: ("o", "#1b6ca8"),
    Method.GAN: ("s", "#c0392b"),
    Method.FL: ("^", "#7f8c8d"),
    Method.FL_DP: ("v", "#8e44ad"),
    Method.DP_LR: ("D", "#b7950b"),
    Method.LOCAL_ONLY: ("P", "#5499c7"),
    Method.REAL: ("*", "#1e8449"),
}
Found = Mapping[Setting, Sequence[Mapping[str, Any]]]


def draw_figures(found: Found, out: Path) -> str:
    """Write figure-3 and figure-4 as SVG and PNG; the Markdown that shows them."""
    scenarios = list(dict.fromkeys(setting.scenario for setting in found))
    with mpl.rc_context(_STYLE):
        for name, draw in (("figure-3", _noise), ("figure-4", _trade)):
            canvas = Canvas(figsize=(8, 3 * len(scenarios)), layout="constrained")
            rows = canvas.subplots(len(scenarios), 2, squeeze=False)
            for scenario, axes in zip(scenarios, rows, strict=True):
                draw(found, scenario, axes[0], axes[1])
            for kind in ("svg", "png"):
                canvas.savefig(out / f"{name}.{kind}", dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return (
        "## Figure 3: noise and quality, stage by stage\n\n![Noise multiplier and quality by stage](figure-3.svg)\n\n"
        "## Figure 4: usefulness against privacy\n\n![AUC by epsilon, and accuracy by attack success](figure-4.svg)"
    )


def _noise(found: Found, scenario: str, left: Axes, right: Axes) -> None:
    """Noise and spending, and what it bought, by stage; a line a seed."""
    for one in found.get(Setting(scenario, Method.PRIVSHARE), []):
        stages = one.get("stages", [])
        numbers = [stage["stage"] for stage in stages]
        multipliers, distances = (
            np.array([at(stage, path) for stage in stages], dtype=np.float64)
            for path in ("noise_multiplier", "frechet/distance/value")
        )
        left.plot(numbers, multipliers, color="#1b6ca8", marker="o", linewidth=1)
        right.plot(numbers, distances, color="#c0392b", marker="o", linewidth=1)
    left.set(title=f"{scenario}: noise", xlabel="stage", ylabel="noise multiplier")
    right.set(title=f"{scenario}: distance to real rows", xlabel="stage", ylabel="Fréchet distance")
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _trade(found: Found, scenario: str, left: Axes, right: Axes) -> None:
    auc = next(cell for cell in USEFULNESS if cell.id == "auc")
    curve = []
    for setting, evaluations in found.items():
        if setting.scenario != scenario:
            continue
        marker, colour = _MARKS[setting.method]
        figure = summarise(evaluations, auc)
        epsilon = at(evaluations[0], "claim/epsilon")
        if setting.method is Method.PRIVSHARE and epsilon is not None and figure.value is not None:
            curve.append((epsilon, figure))
        elif setting.epsilon is None and figure.value is not None:
            left.axhline(figure.value, color=colour, linewidth=1, linestyle="--", label=setting.method.value)
        if setting.epsilon is None:
            _point(right, evaluations, marker, colour, setting.method.value)
    curve.sort(key=lambda one: one[0])
    epsilons, means, below, above = np.array([_spread(epsilon, figure) for epsilon, figure in curve]).reshape(-1, 4).T
    left.errorbar(epsilons, means, yerr=[below, above], color="#1b6ca8", marker="o", label="privshare")
    left.set(title=f"{scenario}: AUC by ε", xlabel="ε", ylabel="AUC on real units", xscale="log")
    left.set_xticks(epsilons, [f"{epsilon:g}" for epsilon in epsilons])
    left.minorticks_off()
    _legend(left)
    right.axvline(10, color="#999999", linewidth=1, linestyle=":")
    right.set(
        title=f"{scenario}: accuracy by attack", xlabel="members found at 10 % false alarms, %", ylabel="accuracy, %"
    )
    _legend(right)


def _point(axes: Axes, evaluations: Sequence[Mapping[str, Any]], marker: str, colour: str, name: str) -> None:
    x, y = (summarise(evaluations, cell) for cell in (_cell(ATTACKS, "mia"), _cell(USEFULNESS, "accuracy")))
    if x.value is not None and y.value is not None:
        axes.scatter([100 * x.value], [100 * y.value], marker=marker, color=colour, label=name)


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, loc="best")


def _spread(epsilon: float, figure: Figure) -> tuple[float, float, float, float]:
    """Epsilon, mean, and the ends of the interval from it; nothing where there is no interval."""
    value = figure.value or 0.0
    return epsilon, value, value - (value if figure.low is None else figure.low), (figure.high or value) - value


def _cell(cells: Sequence[Cell], name: str) -> Cell:
    return next(cell for cell in cells if cell.id == name)
