"""The paper's tables and figures, measured: `privshare tables --scenario bank --scenario icu --seeds 5 --out results`.

Every method runs over the same sites, splits and seeds, and is measured alike; what the paper says of a cell stands
beside what was measured, and beside the definition that an expert would use. A run whose evaluation is there is not
made again, so a table can be finished later.
"""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from threadpoolctl import threadpool_limits

from common.errors import CheckpointError, ExitCode, StudyError
from common.evaluation.figures import Figure, over_seeds
from common.evaluation.gates import primary
from common.evaluation.report import Level
from common.models.devices import device_named
from server.checkpoints import write_file
from simulations.experiment import Run, Scenario, choose, execute
from simulations.federation import Engine
from simulations.methods import Method, adapt
from simulations.paper_cells import ATTACKS, CONTROL, QUALITY, USEFULNESS, Cell, Setting, at, summarise
from simulations.paper_figures import draw_figures
from simulations.public import SOURCES, prepare

CURVE: Final = (0.5, 2.0, 4.0, 8.0)
"""Values of epsilon beside the study's own, for the curve of usefulness against privacy (paper, figure 4)."""

QUOTED: Final[Mapping[tuple[str, str, str], str]] = {
    ("privshare", "icu", "fd"): "18.7",
    ("gan", "icu", "fd"): "25.4",
    ("privshare", "icu", "accuracy"): "85.3 %",
    ("dp-lr", "icu", "accuracy"): "78.5 %",
    ("fl", "icu", "accuracy"): "81.2 %",
    ("real", "icu", "accuracy"): "88.4 % (3.1 above)",
    ("privshare", "icu", "mia"): "11.2 %",
    ("gan", "icu", "mia"): "21.8 %",
    ("privshare", "icu", "aia"): "14.5 %",
    ("privshare", "icu", "inversion"): "0.28",
    ("privshare", "bank", "auc"): "0.912",
    ("gan", "bank", "auc"): "0.875",
    ("fl", "bank", "auc"): "0.889",
    ("privshare", "bank", "mia"): "10.8 %",
    ("privshare", "bank", "aia"): "13.9 %",
}
"""What the publication says, by method, scenario and cell; all others it leaves open."""

_SOURCE: Final = (
    "Paper values are quoted from the publication (Deng 2026). Its definitions differ from ours, MIMIC-III is not "
    "shipped with this project (`icu` is a simulator of its shape), and its financial data were simulated by others."
)


@dataclass(frozen=True)
class Plan:
    """What is run.

    what: the options that chose the bases.
    bases: a run of each scenario, with its study, units and number of sites.
    seeds: runs of each method, with the seeds 0, 1, ...
    curve_seeds: runs of privshare at each epsilon of `CURVE`.
    methods: to run.
    level: of every evaluation.
    """

    what: str
    bases: Mapping[str, Run]
    seeds: int
    curve_seeds: int
    methods: Sequence[Method]
    level: Level

    def settings(self) -> list[tuple[Setting, int]]:
        """Every run, by setting and seed; the first seeds of all come first."""
        curve = [
            (Setting(scenario, Method.PRIVSHARE, epsilon), seed)
            for seed in range(self.curve_seeds)
            for scenario in self.bases
            for epsilon in CURVE
        ]
        main = [
            (Setting(scenario, method), seed)
            for seed in range(self.seeds)
            for scenario in self.bases
            for method in self.methods
        ]
        return main + curve


def plan_of(  # noqa: PLR0913 (one parameter an option of the command)
    *,
    scenarios: Sequence[str],
    study: Path | None,
    data: list[Path] | None,
    series: list[Path] | None,
    public: Path | None,
    sources: Sequence[str],
    out: Path,
    split: str,
    units: int | None,
    sites: int,
    seeds: int,
    curve_seeds: int,
    methods: Sequence[str],
    level: str,
) -> Plan:
    """The plan that a command's options mean.

    Raises:
        StudyError: a name is not known, or the study is not valid.
    """
    for option, known, given in (
        ("scenario", list(Scenario), scenarios),
        ("method", list(Method), methods),
        ("evaluation", [one for one in Level if one is not Level.BASIC], [level]),
        ("source", list(SOURCES), sources),
    ):
        for name in given:
            if name not in known:
                raise StudyError(f"{option}={name}: expected one of {', '.join(known)}", ExitCode.USAGE)
    if (study is not None) + (public is not None) + bool(scenarios) > 1:
        raise StudyError("--scenario, --study and --public: give one of them", ExitCode.USAGE)
    if sources and public is None:
        raise StudyError("--source: names data sets of --public", ExitCode.USAGE)
    common: dict[str, Any] = {"units": units, "sites": sites, "how": split}
    if public is not None:
        prepared = [prepare(name, public, out / "tables" / name) for name in sources or SOURCES]
        runs = [choose(scenario=Scenario.BANK, **vars(files), **common) for files in prepared]
        bases = {run.study.name: run for run in runs}
        what = " ".join(["--public DATA", *[f"--source {name}" for name in sources]])
    elif study is not None:
        run = choose(scenario=Scenario.BANK, study=study, data=data, series=series, **common)
        bases = {run.study.name: run}
        what = f"--study {run.study.name}.yaml"
    else:
        chosen = [Scenario(name) for name in scenarios or (Scenario.BANK, Scenario.ICU)]
        bases = {one.value: choose(scenario=one, study=None, data=data, series=series, **common) for one in chosen}
        what = " ".join(f"--scenario {one}" for one in chosen)
    return Plan(what, bases, seeds, curve_seeds, [Method(name) for name in methods or Method], Level(level))


def run_tables(plan: Plan, out: Path, *, device: str, threads: int, on_run: Callable[[str], None]) -> str:
    """Make the runs of a plan, and the tables of all that is in them; the Markdown."""
    chosen = device_named(device)
    out.mkdir(parents=True, exist_ok=True)
    with threadpool_limits(threads):
        engine = Engine("process", device, threads)
        found = run_all(plan, out, engine, chosen, on_run)
    return write_tables(found, out, command=_command_of(plan))


def _command_of(plan: Plan) -> str:
    """The command that makes the same tables, but for the privacy noise, which is drawn anew each time."""
    first = next(iter(plan.bases.values())).options
    units = [] if first.units is None else [f"--units {first.units}"]
    parts = ["privshare tables", plan.what, *units, f"--sites {first.sites} --seeds {plan.seeds}"]
    return f"{' '.join(parts)} --curve-seeds {plan.curve_seeds} --evaluation {plan.level.value}"


def run_all(
    plan: Plan, out: Path, engine: Engine, device: torch.device, on_run: Callable[[str], None]
) -> dict[Setting, list[dict[str, Any]]]:
    """Make the runs that are not there; the evaluations of each setting, by seed.

    Raises:
        CheckpointError: a folder holds a run of another study.
    """
    found: dict[Setting, list[dict[str, Any]]] = {}
    for setting, seed in plan.settings():
        base = plan.bases[setting.scenario]
        study = base.study
        if setting.epsilon is not None:
            study = study.with_overrides(privacy={"epsilon": setting.epsilon})
        folder = out / setting.folder / str(seed)
        options = replace(base.options, seed=seed, method=setting.method.value)
        # One that was stopped goes on from its last checkpoint.
        run = Run(adapt(setting.method, study), options, folder, is_new=not (folder / "options.json").exists())
        path = folder / "evaluation.json"
        if not path.exists():
            on_run(f"{setting.folder}, seed {seed}")
            execute(run, engine, device, lambda _: None, level=plan.level, gated=False, staged=True)
        evaluation: dict[str, Any] = json.loads(path.read_bytes())
        if evaluation["study"] != run.study.digest():
            raise CheckpointError(f"{folder}: holds a run of another study; choose another --out")
        found.setdefault(setting, []).append(evaluation)
    return found


_USEFULNESS_NOTE: Final = (
    "Classifiers are trained on what was published and tested on units that no site had; `fl`, `fl-dp` and `dp-lr` "
    "publish the classifier itself. Trees on columns, and on summaries of windows where there are any. Accuracy at a "
    "threshold chosen on the published rows; always guessing the more frequent class errs on the positive one alone, "
    "whose share is in table 2."
)
_NOT_AT_THIS_LEVEL: Final = "Not measured in these runs: it needs `--evaluation standard` or `deep`."
_QUALITY_NOTE: Final = (
    "The embedding is a fixed random network of the schema; a value is compared with its floor (real against real) and "
    "with other methods in the same scenario, never with a distance in another embedding. n/a: the method publishes a "
    "classifier, and no rows."
)
_ATTACKS_NOTE: Final = (
    "MIA as printed in the paper's table 3 is the accuracy of telling synthetic from real rows: chance 50 %, and a "
    "matter of quality. MIA success is the largest of all attacks on everyone: chance 10 %. AIA guesses the label of "
    "members from all else; what is guessed of controls as well is no leak. Inversion: hidden columns from known ones. "
    "The largest of many attacks lies above chance even where nothing leaks; the row of `real` is what publishing the "
    "rows themselves would give. n/a: a classifier is no table that could be told from real rows; `gan` and `real` "
    "publish no chances to invert."
)
_CONTROL_NOTE: Final = (
    "Both tables teach the same classifier, which calls as many test units positive as the plain table has positives: "
    "one that learned from equal classes would otherwise find more of them by calling more units positive."
)


_NUMBER: Final = Cell("number", "", "")
_PERCENT: Final = Cell("share", "", "", percent=True)


def write_tables(found: Mapping[Setting, Sequence[Mapping[str, Any]]], out: Path, *, command: str) -> str:
    """Write paper.md, paper.csv and the figures; returns the Markdown.

    Args:
        found: evaluations by setting, from `run_all`.
        out: folder.
        command: that made them.
    """
    scenarios = list(dict.fromkeys(setting.scenario for setting in found))
    parts = [
        "# The paper's tables and figures, measured",
        f"Made by `{command}`. Mean over seeds and its 95 % t-interval (half width after ±). {_SOURCE}",
        _table_1(found, scenarios),
        _table_2(found, scenarios),
        _comparison("## Usefulness downstream (paper, sections 4.3 and 4.4)", _USEFULNESS_NOTE, found, USEFULNESS),
        _against_real(found, scenarios),
        _comparison("## Quality of rows (paper, section 4.3)", _QUALITY_NOTE, found, QUALITY),
        _comparison("## Table 4: attacks", _ATTACKS_NOTE, found, ATTACKS),
        _comparison(
            "## Controllable generation and the rare class (paper, section 4.4)", _CONTROL_NOTE, found, CONTROL
        ),
        draw_figures(found, out),
    ]
    text = "\n\n".join(parts) + "\n"
    write_file(out / "paper.md", text.encode())
    write_file(out / "paper.csv", _csv(found).encode())
    return text


def _comparison(
    title: str, note: str, found: Mapping[Setting, Sequence[Mapping[str, Any]]], cells: Sequence[Cell]
) -> str:
    """A line a scenario and method, with the paper's figures where it has some."""
    settings = [setting for setting in found if setting.epsilon is None]
    used = [cell for cell in cells if any(summarise(found[one], cell).value is not None for one in settings)]
    if not used:
        return f"{title}\n\n{_NOT_AT_THIS_LEVEL}"
    lines = [
        f"| scenario | method | ε | seeds | {' | '.join(cell.title for cell in used)} | paper |",
        "|---|---|---|---|" + "---|" * (len(used) + 1),
    ]
    for setting in sorted(settings, key=lambda one: (one.scenario, list(Method).index(one.method))):
        evaluations = found[setting]
        figures = [_shown(summarise(evaluations, cell), cell) for cell in used]
        quoted = [
            f"{cell.title} {text}"
            for cell in used
            if (text := QUOTED.get((setting.method.value, setting.scenario, cell.id)))
        ]
        row = [setting.scenario, setting.method.value, _epsilon_of(evaluations[0]), str(len(evaluations)), *figures]
        lines.append(f"| {' | '.join(row)} | {'; '.join(quoted) or 'left open'} |")
    return f"{title}\n\n{note}\n\n" + "\n".join(lines)


def _epsilon_of(evaluation: Mapping[str, Any]) -> str:
    claim = evaluation["claim"]
    return "none" if claim["epsilon"] is None else f"{claim['epsilon']:g}"


def _shown(figure: Figure, cell: Cell) -> str:
    if figure.value is None:
        return "n/a"
    scale, digits = (100, 1) if cell.percent else (1, 3)
    half = "" if figure.high is None else f" ± {scale * (figure.high - figure.value):.{digits}f}"
    return f"{scale * figure.value:.{digits}f}{half}{' %' if cell.percent else ''}"


def _table_1(found: Mapping[Setting, Sequence[Mapping[str, Any]]], scenarios: Sequence[str]) -> str:
    """The paper's table 1: what each level of noise gives and costs."""
    names = ("high (first)", "medium", "low (last)")
    lines = [
        "| scenario | noise | multiplier | Fréchet distance | discriminator accuracy | validation AUC | ε so far |",
        "|---|---|---|---|---|---|---|",
    ]
    for scenario in scenarios:
        runs = [one.get("stages", []) for one in found.get(Setting(scenario, Method.PRIVSHARE), [])]
        stages = min(map(len, runs), default=0)
        for stage in range(stages):
            name = names[stage] if stages == len(names) else str(stage + 1)

            def mean(path: str, stage: int = stage, runs: Sequence[Any] = runs) -> Figure:
                return over_seeds([v for run in runs if (v := at(run[stage], path)) is not None])

            best = f"utility/{primary({'tstr': runs[0][stage]['utility']})}/auc"
            cells = [
                _shown(mean("noise_multiplier"), _NUMBER),
                _shown(mean("frechet/distance/value"), _NUMBER),
                _shown(mean("distinguisher/accuracy/value"), _PERCENT),
                _shown(mean(best), _NUMBER),
                _shown(mean("epsilon"), _NUMBER),
            ]
            lines.append(f"| {scenario} | {name} | {' | '.join(cells)} |")
    note = (
        "The generator as each stage of the noise left it. Discriminator accuracy is that of telling its rows from "
        "real ones, 50 % where they cannot be told. The guarantee is the total at the end; no stage has one of its own."
    )
    if len(lines) == 2:
        return f"## Table 1: noise, quality and spending\n\n{_NOT_AT_THIS_LEVEL}"
    return f"## Table 1: noise, quality and spending\n\n{note}\n\n" + "\n".join(lines)


def _table_2(found: Mapping[Setting, Sequence[Mapping[str, Any]]], scenarios: Sequence[str]) -> str:
    """The paper's table 2: what the data are."""
    lines = [
        "| scenario | units | records | columns | categorical | numeric | channels x steps | positive class |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for scenario in scenarios:
        one = next(found[setting][0] for setting in found if setting.scenario == scenario)
        columns = one["columns"]
        windows = f"{columns['channels']} x {columns['steps']}" if columns["channels"] else "none"
        real = {name: count for name, count in one["rows"].items() if name != "synthetic"}
        lines.append(
            f"| {scenario} | {sum(one['units'].values())} {one['unit']}s | {sum(real.values())} | "
            f"{columns['features']} | {columns['categorical']} | {columns['numeric']} | {windows} | "
            f"{100 * one['positive_share']:.1f} % |"
        )
    return "## Table 2: the data\n\n" + "\n".join(lines)


def _against_real(found: Mapping[Setting, Sequence[Mapping[str, Any]]], scenarios: Sequence[str]) -> str:
    """The paper's headlines: points below real rows, and the ratio of Fréchet distances to the standard GAN's."""
    lines = []
    for scenario in scenarios:
        ours, real, gan = (
            found.get(Setting(scenario, method), []) for method in (Method.PRIVSHARE, Method.REAL, Method.GAN)
        )
        accuracy, distance = USEFULNESS[0], QUALITY[0]
        gaps = [_minus(accuracy.of(one), accuracy.of(two)) for one, two in zip(real, ours, strict=False)]
        ratios = [_over(distance.of(one), distance.of(two)) for one, two in zip(ours, gan, strict=False)]
        gap = over_seeds([100 * value for value in gaps if value is not None])
        ratio = over_seeds([value for value in ratios if value is not None])
        lines.append(
            f"| {scenario} | {_shown(gap, _NUMBER)} | {_shown(ratio, _NUMBER)} |",
        )
    head = (
        "| scenario | accuracy below real rows, points (paper: 3.1) | Fréchet distance over the GAN's (paper: 0.74) |"
    )
    return "## Against real rows and the standard GAN\n\n" + "\n".join([head, "|---|---|---|", *lines])


def _minus(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def _over(first: float | None, second: float | None) -> float | None:
    return None if first is None or not second else first / second


def _csv(found: Mapping[Setting, Sequence[Mapping[str, Any]]]) -> str:
    """Every cell of every run, a line each."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["scenario", "method", "epsilon", "seed", "cell", "value"])
    for setting, evaluations in found.items():
        for one in evaluations:
            for cell in (*USEFULNESS, *QUALITY, *ATTACKS, *CONTROL):
                value = cell.of(one)
                shown = "" if value is None else f"{value:.6g}"
                writer.writerow([setting.scenario, setting.method.value, _epsilon_of(one), one["seed"], cell.id, shown])
    return text.getvalue()
