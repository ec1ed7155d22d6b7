"""One experiment: a table divided over simulated sites, a federation over them, and what its outcome is worth.

The commands beside it choose an experiment and show it; what happens is here, once.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
import yaml

from client.records import parse_text, read_series_text, read_text, read_windows
from common.data.units import check_surplus
from common.data.windows import WindowedTable
from common.errors import ExitCode, OutputError, SchemaError, StudyError
from common.evaluation.figures import Population
from common.evaluation.report import evaluate
from common.study import Study, load_study
from server.checkpoints import write_file, write_json
from server.publish import draw_units, publish, rows_to_publish
from server.rounds import Coordinator, Trained
from simulations.federation import Engine, SiteFolder, credentials_of, make_site_folder, run_federation
from simulations.scenarios.bank import MOST_BANKS, simulate_accounts, simulate_transactions
from simulations.scenarios.icu import MOST_HOSPITALS, simulate_stays
from simulations.splits import Units, set_aside, split, units_of

_STUDIES = Path(__file__).parent / "studies"
_ASIDE: Final = (0.08, 0.08, 0.04)
"""Shares of all units that no site has: test, control, reference."""
_QUICK: Final = {"count": 3, "refine_steps": 40, "local_steps": 5}

OnStep = Callable[[dict[str, Any]], None]


class Scenario(StrEnum):
    """What is simulated where no table is given."""

    BANK = "bank"
    ACCOUNTS = "accounts"
    ICU = "icu"


_UNITS: Final = {Scenario.BANK: 100_000, Scenario.ACCOUNTS: 100_000, Scenario.ICU: 53_500}
"""Units of each scenario, as many as the paper has or more."""


@dataclass(frozen=True)
class Options:
    """Everything that fixes a run; written to options.json, and must be the same to resume it."""

    sites: int
    split: str
    seed: int
    quick: bool
    scenario: str | None
    units: int | None
    data: list[str]
    series: list[str]
    digests: list[str]
    test_noise_seed: int | None


@dataclass(frozen=True)
class Run:
    """A run: its study, what fixes it, where it lives, and whether it has yet to be begun."""

    study: Study
    options: Options
    folder: Path
    is_new: bool

    @property
    def name(self) -> str:
        """Names the run for ever. In test mode the noise follows from it, so it must not depend on the folder."""
        seed = self.options.test_noise_seed
        return f"{self.study.name}-{self.folder.name if seed is None else f'test-{seed}'}"


def choose(  # noqa: PLR0913 (one parameter an option of the commands)
    *,
    scenario: Scenario,
    study: Path | None,
    data: list[Path] | None,
    series: list[Path] | None,
    units: int | None,
    sites: int,
    how: str = "",
    epsilon: float | None = None,
    delta: float | None = None,
    seed: int = 0,
    quick: bool = False,
    test_noise_seed: int | None = None,
    out: Path | None = None,
) -> Run:
    """A new run of an embedded scenario, or of a study of one's own with its tables.

    Raises:
        StudyError: the study is not valid, or a file that it needs was not given.
    """
    chosen = load_study(study or _STUDIES / f"{scenario}.yaml").with_overrides(
        privacy={"epsilon": epsilon, "delta": delta}, rounds=_QUICK if quick else {}
    )
    tables = _given(study, data, "--data")
    long = _given(study, series, "--series", needed=chosen.windows is not None)
    options = Options(
        sites=sites,
        split=how or (_home_split(scenario, sites) if study is None else "iid"),
        seed=seed,
        quick=quick,
        scenario=scenario.value if study is None else None,
        units=units,
        data=[str(path) for path in tables],
        series=[str(path) for path in long],
        digests=[digest_of(path) for path in (*tables, *long)],
        test_noise_seed=test_noise_seed,
    )
    return Run(chosen, options, out or _default_folder(chosen), is_new=True)


@dataclass(frozen=True)
class Divided:
    """A table divided over sites.

    sites: CSV text of each site's tables, "table" and with windows "series", by its name.
    members: all units that some site has.
    test: units that none has, for what is trained on synthetic rows.
    control: others, beside whom members are attacked.
    reference: others, that attackers may know.
    """

    sites: Mapping[str, Mapping[str, str]]
    members: Population
    test: Population
    control: Population
    reference: Population


def divide(run: Run) -> Divided:
    """Read or simulate the table of a run, set units aside, and give the others to sites.

    Raises:
        SchemaError, StudyError: the table is not as the study says, or cannot be divided so.
    """
    study, options = run.study, run.options
    tables = _read(study, options)
    whole = _parsed(tables, study)
    _check_learnable(whole, tables.units, study)
    part_of = set_aside(tables.units, shares=_ASIDE, seed=options.seed)
    records = tables.records[part_of == 0].reset_index(drop=True)
    positions = split(records, study, sites=options.sites, how=options.split, seed=options.seed)
    sites = {
        f"site_{number + 1:02d}": _tables_of(records.iloc[rows], tables.series, study)
        for number, rows in enumerate(positions)
    }
    everybody = Population(whole, tables.units.number)
    in_part = [np.unique(tables.units.number[part_of == part]) for part in range(len(_ASIDE) + 1)]
    return Divided(sites, *map(everybody.take, in_part))


def execute(run: Run, engine: Engine, device: torch.device, on_step: OnStep) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a federation from the tables to the published folder; the evaluation and the certificate.

    Raises:
        PrivShareError: whatever stopped it.
    """
    study, options, folder = run.study, run.options, run.folder
    divided = divide(run)
    open_folder(run)
    with tempfile.TemporaryDirectory(prefix="privshare-") as private:
        # On Ray a site lives for one message, too short to be confirmed by others.
        witnesses = 0 if engine.kind == "flower" else None
        sites = _site_folders(divided, run, Path(private), witnesses=witnesses)
        trained = _conduct(run, sites, engine, device, on_step)
    table = draw_units(trained, study, rows=rows_to_publish(trained, study), seed=options.seed, device=device)
    certificate = publish(trained, study, table, folder)
    on_step({"step": "evaluating", "budget_used": trained.state.budget_used})
    evaluation = evaluate(table, divided.members.table, divided.test.table, study, seed=options.seed)
    evaluation["monitor"] = trained.state.monitor
    write_json(folder / "evaluation.json", evaluation)
    return evaluation, certificate


def _given(study: Path | None, paths: list[Path] | None, option: str, *, needed: bool = True) -> list[Path]:
    """The files that an option names; it goes with a study of one's own, and with windows where it is --series."""
    if bool(paths) != (study is not None and needed):
        windows = ", and with windows in it" if option == "--series" else ""
        raise StudyError(
            f"--study and {option}: give both{windows}, or neither for an embedded scenario", ExitCode.USAGE
        )
    return list(paths or [])


def _home_split(scenario: Scenario, sites: int) -> str:
    """By bank or by hospital, which are simulated to differ."""
    column, most = ("hospital", MOST_HOSPITALS) if scenario == Scenario.ICU else ("bank", MOST_BANKS)
    return f"column:{column}" if sites <= most else "iid"


def _default_folder(study: Study) -> Path:
    return Path("runs") / study.name / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")


def digest_of(path: Path) -> str:
    """SHA-256 of a file; empty where there is none, which reading it will say better."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def open_folder(run: Run) -> None:
    """Make the folder of a new run, and write what is needed to resume it.

    Raises:
        OutputError: it holds something already, or cannot be written.
    """
    if not run.is_new:
        return
    folder = run.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        occupied = any(folder.iterdir())
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror})") from None
    if occupied:
        raise OutputError(f"{folder}: is not empty; choose another --out, or --resume it")
    write_file(folder / "study.lock.yaml", yaml.safe_dump(json.loads(run.study.canonical()), sort_keys=False).encode())
    write_json(folder / "options.json", vars(run.options))


@dataclass(frozen=True)
class _Tables:
    """What a simulation divides over sites: text, the long table where the study has windows, and the units."""

    records: pd.DataFrame
    series: pd.DataFrame | None
    units: Units


def _read(study: Study, options: Options) -> _Tables:
    series = None
    if options.scenario is None:
        records = pd.concat([read_text(Path(path), study) for path in options.data], ignore_index=True)
        if study.windows is not None:
            series = pd.concat([read_series_text(Path(path), study) for path in options.series], ignore_index=True)
    else:
        records, series = _simulate(Scenario(options.scenario), options)
    return _Tables(records, series, units_of(records, study))


def _simulate(scenario: Scenario, options: Options) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    units = options.units or _UNITS[scenario]
    if scenario == Scenario.ICU:
        return simulate_stays(seed=options.seed, stays=units, hospitals=max(4, min(options.sites, MOST_HOSPITALS)))
    banks = max(4, min(options.sites, MOST_BANKS))
    if scenario == Scenario.ACCOUNTS:
        return simulate_accounts(seed=options.seed, accounts=units, banks=banks)
    return simulate_transactions(seed=options.seed, accounts=units, banks=banks), None


def _parsed(tables: _Tables, study: Study) -> WindowedTable:
    records = parse_text(tables.records, study)
    if tables.series is None:
        return WindowedTable.without_windows(records)
    return WindowedTable(records, *read_windows(records, tables.series, study))


def _check_learnable(table: WindowedTable, units: Units, study: Study) -> None:
    """Refuse a table from which nothing can be learned. Only a simulation can look at all sites' rows together.

    Raises:
        SchemaError: what the table lacks.
    """
    if study.unit.surplus == "refuse":
        check_surplus(units.number, key=study.unit.key, max_records=study.unit.max_records)
    if units.count < 2:
        raise SchemaError("table: at least two units are needed", ExitCode.TOO_FEW_UNITS)
    if table.records[study.label.column].nunique() < 2:
        raise SchemaError(f"{study.label.column}: the label has a single class", ExitCode.SINGLE_CLASS_LABEL)
    for name in study.columns:
        if table.records[name].nunique(dropna=False) < 2:
            raise SchemaError(f"{name}: the column holds one value only; move it to `ignore`", ExitCode.CONSTANT_COLUMN)
    _check_windows_learnable(table, study)


def _check_windows_learnable(table: WindowedTable, study: Study) -> None:
    for position, name in enumerate(study.channels):
        found = table.values[:, :, position]
        if len(np.unique(found[~np.isnan(found)])) < 2:
            raise SchemaError(
                f"{name}: the channel holds one value or none; move it to `windows.ignore`", ExitCode.CONSTANT_COLUMN
            )
    if study.windows is not None:
        reached = np.flatnonzero((~np.isnan(table.values)).any(axis=(0, 2)))
        if len(reached) == 0 or reached[-1] + 1 < study.windows.length:
            raise SchemaError(
                f"windows.length={study.windows.length}: no unit has so many steps", ExitCode.WINDOW_TOO_SHORT
            )


def _tables_of(own: pd.DataFrame, series: pd.DataFrame | None, study: Study) -> dict[str, str]:
    """A site's tables as text, in the layout that the whole table came in: a site reads its file by the same study."""
    layout, key = study.table, study.unit.key
    columns = list(layout.header or own.columns)
    tables = {"table": own.to_csv(index=False, sep=layout.delimiter, header=layout.header is None, columns=columns)}
    if series is not None:
        theirs = series[key].str.strip().isin(own[key].str.strip())
        tables["series"] = series[theirs].to_csv(index=False, sep=layout.delimiter)
    return tables


def _site_folders(divided: Divided, run: Run, private: Path, *, witnesses: int | None) -> list[SiteFolder]:
    return [
        make_site_folder(
            name,
            run.folder / "study.lock.yaml",
            run.study,
            tables,
            private=private,
            kept=run.folder,
            seed=run.options.seed,
            peers=[peer for peer in divided.sites if peer != name],
            witnesses=witnesses,
        )
        for name, tables in divided.sites.items()
    ]


def _conduct(run: Run, sites: list[SiteFolder], engine: Engine, device: torch.device, on_step: OnStep) -> Trained:
    results: list[Trained] = []
    coordinator = Coordinator(
        run.study,
        folder=run.folder,
        run=run.name,
        seed=run.options.seed,
        credentials=credentials_of([site.name for site in sites], seed=run.options.seed),
        device=device,
        on_step=on_step,
    )
    run_federation(sites, lambda exchange: results.append(coordinator.run(exchange)), engine)
    return results[0]
