"""What each discriminator and each noise schedule adds: `python simulations/run.py --scenario icu --ablate 3`.

Runs one scenario or study with parts of the discriminator cluster switched off, at equal budget, over several seeds,
and gives means with 95 % intervals, beside those of real data. It gives each seed's differences from the first variant
too, which tell more: the units that a seed deals to sites and hold-out are the same in both. Every run is an ordinary
run, in a folder of its own, and is not run again if its evaluation is there.
"""

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import torch
from scipy.stats import t as student

from common.errors import CheckpointError, ExitCode, StudyError
from common.evaluation.report import Level
from common.study import Study
from server.checkpoints import write_file, write_json
from simulations.experiment import Run, execute
from simulations.federation import Engine

VARIANTS: Mapping[str, Mapping[str, float | str]] = {
    "all": {"statistical": 1.0, "temporal": 1.0, "semantic": 0.1, "neural": 0.2},
    "without statistical": {"statistical": 0.0, "temporal": 1.0, "semantic": 0.1, "neural": 0.2},
    "without semantic": {"statistical": 1.0, "temporal": 1.0, "semantic": 0.0, "neural": 0.2},
    "without temporal": {"statistical": 1.0, "temporal": 0.0, "semantic": 0.1, "neural": 0.2},
    "measured only": {"statistical": 1.0, "temporal": 1.0, "semantic": 0.1, "neural": 0.0},
    "static only": {"statistical": 1.0, "temporal": 0.0, "semantic": 0.1, "neural": 0.0},
    "measured at each site": {"statistical": 1.0, "temporal": 1.0, "semantic": 0.1, "neural": 0.0, "scope": "local"},
    "all at each site": {"statistical": 1.0, "temporal": 1.0, "semantic": 0.1, "neural": 0.2, "scope": "local"},
    "neural only": {"statistical": 0.0, "temporal": 0.0, "semantic": 0.0, "neural": 1.0},
}
"""What the study's section `discriminators` holds.

"Static only" is "measured only" without the temporal one, which has all tables of windows but those of one channel: how
often it is in a bin, and how far it moves. "At each site" there are no sums over sites but those: a generator learns
from the answers of its own site, and against its critic, and generators are averaged.
"""

_HEADS: Mapping[str, str] = {"without semantic": "temporal", "without temporal": "semantic"}
"""Heads of the neural discriminator where one of its two parts is switched off."""

SCHEDULES = ("fixed", "stage", "pid")

REAL = "real data"
"""Names the row of what the sites' own units would have shown: the most that any variant could."""

_Figures: TypeAlias = dict[str, float | None]
"""What a run showed, by name; none where there was nothing to measure it on."""

_OF_WINDOWS = (
    *("discriminative_score", "summaries_auc", "autocorrelation", "agreement", "cross_correlation"),
    *("numeric_marginal", "categorical_marginal", "change"),
)


def ablate(
    base: Run, *, seeds: int, only: list[str], engine: Engine, device: torch.device, on_run: Callable[[str], None]
) -> str:
    """Compare variants at equal budget; writes ablation.json and ablation.md, returns the Markdown.

    Args:
        base: what is varied; its folder holds all runs.
        seeds: runs of each variant, with the seeds 0, 1, ...
        only: names like "measured only/pid"; empty for all.
        engine: of all runs.
        device: of all runs.
        on_run: is told what comes next.

    Raises:
        StudyError: a name is not known.
    """
    known = ["/".join(pair) for pair in itertools.product(VARIANTS, SCHEDULES)]
    for name in only:
        if name not in known:
            raise StudyError(f"only={name}: expected one of {', '.join(known)}", ExitCode.USAGE)
    found: dict[str, list[_Figures]] = {}
    evaluations: list[dict[str, Any]] = []
    for name in only or known:
        evaluations = []
        for seed in range(seeds):
            on_run(f"{name}, seed {seed}")
            evaluations.append(_evaluation(base, *name.split("/"), seed=seed, engine=engine, device=device))
        found[name] = [_figures(one) for one in evaluations]
    first, *others = found
    rows = [{"variant": name, **_summarised(figures)} for name, figures in found.items()]
    # Of the same tables and seeds, whatever the variant.
    rows.append({"variant": REAL, **_summarised([_figures(one, real=True) for one in evaluations])})
    differences = [{"variant": name, **_summarised(_differences(found[name], found[first]))} for name in others]
    table = _markdown("discriminators/noise", rows)
    if differences:
        table += "\n" + _markdown(f"less {first}, seed by seed", differences, compared=True)
    content = {"study": base.study.digest(), "seeds": seeds, "rows": rows, "differences": differences}
    write_json(base.folder / "ablation.json", content)
    write_file(base.folder / "ablation.md", table.encode())
    return table


def _evaluation(
    base: Run, variant: str, schedule: str, *, seed: int, engine: Engine, device: torch.device
) -> dict[str, Any]:
    """The evaluation of one run, made now or found."""
    study = _varied(base.study, variant, schedule)
    folder = base.folder / f"{variant.replace(' ', '-')}-{schedule}-{seed}"
    run = Run(study, replace(base.options, seed=seed), folder, is_new=True)
    path = folder / "evaluation.json"
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_bytes())
        if found["study"] != study.digest():
            raise CheckpointError(f"{folder}: holds a run of another study; choose another --out")
        return found
    return execute(run, engine, device, lambda _: None, level=Level.BASIC, gated=False).evaluation


def _varied(study: Study, variant: str, schedule: str) -> Study:
    """A study with parts of its discriminators switched off."""
    weights, heads = dict(VARIANTS[variant]), _HEADS.get(variant, "both")
    if heads == "temporal" and study.windows is None:
        # Nothing is left of the neural one.
        weights["neural"], heads = 0.0, "both"
    return study.with_overrides(discriminators=weights, critic={"heads": heads}, noise={"schedule": schedule})


def _figures(evaluation: Mapping[str, Any], *, real: bool = False) -> _Figures:
    """What is compared: each figure by name; of the synthetic rows, or of the sites' real ones in their place."""
    learner = "trtr" if real else "tstr"
    figures = {
        f"TSTR AUC, {name.replace('_', ' ')}": scores["auc"] for name, scores in evaluation["utility"][learner].items()
    }
    compared = "floor_train_vs_holdout" if real else "synthetic_vs_holdout"
    figures["two-way distance"] = evaluation["fidelity"][compared]["two_way_mean"]
    if "windows" in evaluation:
        windows = evaluation["windows"][compared]
        figures |= {name.replace("_", " "): windows[name] for name in _OF_WINDOWS}
        figures["prediction error"] = evaluation["windows"]["prediction"][learner]["error"]
    return figures


def _differences(found: list[_Figures], first: list[_Figures]) -> list[_Figures]:
    """Seed by seed; none where either has no figure."""
    return [
        {name: None if one is None or (other := beside[name]) is None else one - other for name, one in figures.items()}
        for figures, beside in zip(found, first, strict=True)
    ]


def _summarised(found: list[_Figures]) -> dict[str, tuple[float, float | None] | None]:
    """Mean and half width of the 95 % t-interval over seeds; no interval from one seed, nothing where none has it."""
    summary: dict[str, tuple[float, float | None] | None] = {}
    for name in found[0]:
        values = np.array([one[name] for one in found if one[name] is not None], dtype=np.float64)
        if not len(values):
            summary[name] = None
            continue
        half = None
        if len(values) > 1:
            half = float(student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
        summary[name] = (float(values.mean()), half)
    return summary


def _markdown(title: str, rows: list[dict[str, Any]], *, compared: bool = False) -> str:
    """A table, a line a variant and schedule; of differences, a star where the interval does not hold zero."""
    names = [name for name in rows[0] if name != "variant"]
    lines = [f"| {title} | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    lines += [f"| {row['variant']} | {' | '.join(_cell(row[name], compared) for name in names)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: tuple[float, float | None] | None, compared: bool) -> str:
    if value is None:
        return "-"
    mean, half = value
    shown = f"{mean:+.4f}" if compared else f"{mean:.4f}"
    if half is None:
        return shown
    return f"{shown} ± {half:.4f}{' *' if compared and abs(mean) > half else ''}"
