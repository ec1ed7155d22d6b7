"""One experiment: a table divided over simulated sites, a federation over them, and what its outcome is worth.

The commands beside it choose an experiment and show it; what happens is here, once.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
import yaml

from client.records import parse_text, read_series_text, read_text, read_windows
from client.simulated_site import SiteFolder, make_site_folder, peers_of
from common.certificate import Signer, guarantee_statement
from common.data.units import check_surplus
from common.data.windows import WindowedTable, check_filled
from common.errors import ExitCode, OutputError, PrivShareError, ReleaseError, SchemaError, StudyError
from common.evaluation.attacks.coordinator_view import Releases
from common.evaluation.attacks.suite import Target, beyond_ceiling
from common.evaluation.attacks.white_box import Published
from common.evaluation.figures import Claim, People, Population
from common.evaluation.gates import gates_of_evaluation, require
from common.evaluation.page import write_page
from common.evaluation.report import Level, Subject, draws_of, evaluate, rows_taught
from common.privacy import budget
from common.privacy.signatures import SigningKey
from common.study import Study, load_study
from common.synthesis.draws import whole_shares
from server.checkpoints import write_file, write_json
from server.gates import gates_of
from server.publish import publish
from server.run_folder import asked, forget_outcome, hold, take_back, write_outcome
from server.run_state import RunState
from simulations.baselines.released import evaluate_classifier
from simulations.federation import Engine, credentials_of
from simulations.methods import DESCRIPTIONS, PRIVATE, Made, Method, adapt, conduct
from simulations.scenarios.bank import MOST_BANKS, simulate_accounts, simulate_transactions
from simulations.scenarios.icu import MOST_HOSPITALS, simulate_stays
from simulations.splits import Units, resembling, set_aside, split, units_of
from simulations.stages import measure_stages

_STUDIES = Path(__file__).parent / "studies"
_ASIDE: Final = (0.08, 0.08, 0.04)
"""Shares of all units that no site has: test, control, reference."""
_CONTROL: Final = 2
_STAGED: Final = (Level.STANDARD, Level.DEEP)
"""Levels at which the generator is measured at every stage."""
_QUICK: Final = {"count": 3, "refine_steps": 40, "local_steps": 5}

OnStep = Callable[[dict[str, Any]], None]


class Scenario(StrEnum):
    """What is simulated where no table is given."""

    BANK = "bank"
    ACCOUNTS = "accounts"
    ICU = "icu"


MEASURING: Final = "measuring what was made"
"""The step with which a run is over and its evaluation begins."""
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
    method: str = "privshare"


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
    method: Method = Method.PRIVSHARE,
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
        method=method.value,
    )
    return Run(adapt(method, chosen), options, out or _default_folder(chosen), is_new=True)


@dataclass(frozen=True)
class Divided(People):
    """A table divided over sites, and who is where.

    sites: CSV text of each site's tables, "table" and with windows "series", by its name.
    """

    sites: Mapping[str, Mapping[str, str]]


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
    members, test, control, reference = map(everybody.take, in_part)
    if options.method == Method.LOCAL_ONLY:
        name, rows = list(zip(sites, positions, strict=True))[options.seed % len(sites)]
        # At one bank alone members are its customers, and so must those be whom an attack is to tell from them.
        alike = resembling(
            tables.records,
            study,
            own=np.flatnonzero(part_of == 0)[rows],
            others=np.flatnonzero(part_of == _CONTROL),
            how=options.split,
            seed=options.seed,
        )
        return Divided(
            members.take(np.unique(members.units[rows])),
            test,
            everybody.take(np.unique(tables.units.number[alike])),
            reference,
            {name: sites[name]},
        )
    return Divided(members, test, control, reference, sites)


@dataclass(frozen=True)
class Results:
    """What a run ended with.

    certificate: None where what was made is not private, or is not published.
    """

    evaluation: dict[str, Any]
    certificate: dict[str, Any] | None


def execute(
    run: Run,
    engine: Engine,
    device: torch.device,
    on_step: OnStep,
    *,
    level: Level,
    gated: bool = True,
    staged: bool = False,
) -> Results:
    """Run a federation from the tables to the published folder.

    Args:
        run: what to run.
        engine: of the sites.
        device: of the coordinator.
        on_step: is told of every step.
        level: how much is measured of what was made.
        gated: whether a gate that fails stops publication; a comparison goes on, and says so.
        staged: whether every stage is measured at any level, and not from the standard one on.

    Raises:
        ReleaseError: a gate failed; the evaluation and the report are there.
        OutputError: another process runs it, or the folder cannot be written.
        PrivShareError: whatever stopped it.
    """
    divided = divide(run)
    open_folder(run)
    with hold(run.folder):
        forget_outcome(run.folder)
        try:
            results = _execute(run, divided, engine, device, on_step, level=level, gated=gated, staged=staged)
        except ReleaseError as error:
            # What was measured on real rows is in the evaluation alone.
            write_outcome(run.folder, error.code, "not published: evaluation.json says why")
            raise
        except PrivShareError as error:
            write_outcome(run.folder, error.code, str(error))
            raise
        write_outcome(run.folder, ExitCode.OK, "measured" if results.certificate is None else "published")
    return results


def _execute(
    run: Run,
    divided: Divided,
    engine: Engine,
    device: torch.device,
    on_step: OnStep,
    *,
    level: Level,
    gated: bool,
    staged: bool,
) -> Results:
    study, options, folder = run.study, run.options, run.folder
    method = Method(options.method)
    made = _make(run, method, divided, engine, device, on_step)
    units = None if made.draw is None else made.draw(made.rows, options.seed, None)
    evaluation = _evaluate(
        run,
        made,
        units,
        divided,
        level,
        device=device,
        processes=engine.threads,
        on_step=on_step,
        staged=staged or level in _STAGED,
    )
    gates = [*gates_of(study, made.state), *gates_of_evaluation(study, evaluation)] if method in PRIVATE else []
    evaluation["gates"] = [gate.as_dict() for gate in gates]
    certificate = None
    try:
        if method in PRIVATE and (beyond := beyond_ceiling(evaluation)):
            raise ReleaseError(f"attacks beyond what epsilon allows: {'; '.join(beyond)}", ExitCode.AUDIT_CONTRADICTED)
        if gated:
            require(gates)
        if made.trained is not None and units is not None:
            certificate = publish(made.trained, study, units, folder, gates=gates, signer=_signer(options))
    finally:
        write_json(folder / "evaluation.json", evaluation)
        page = write_page(evaluation, certificate, made.state.history)
        write_file(folder / "report.html", page.encode())
    return Results(evaluation, certificate)


def _signer(options: Options) -> Signer:
    """A key for one certificate, which nobody has afterwards; in test mode the same again, so that runs compare."""
    is_test = options.test_noise_seed is not None
    return Signer(credentials_of((), seed=options.seed).key if is_test else SigningKey.generate(), "simulation")


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
        if not path.is_file():  # a pipe never ends, nor do some devices
            return ""
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def open_folder(run: Run) -> None:
    """Make the folder of a new run, and write what is needed to resume it; let an old one that was stopped go on.

    Raises:
        OutputError: it holds something already, or cannot be written.
        CheckpointError: what was asked of it cannot be read.
    """
    if not run.is_new:
        if asked(run.folder) == "stop":
            take_back(run.folder)
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
    if study.windows is None:
        return
    check_filled(table.values, study.windows)
    for position, name in enumerate(study.channels):
        found = table.values[:, :, position]
        if len(np.unique(found[~np.isnan(found)])) < 2:
            raise SchemaError(
                f"{name}: the channel holds one value only; move it to `windows.ignore`", ExitCode.CONSTANT_COLUMN
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
    names = list(divided.sites)
    return [
        make_site_folder(
            name,
            run.folder / "study.lock.yaml",
            run.study,
            tables,
            private=private,
            kept=run.folder,
            seed=run.options.seed,
            peers=peers_of(name, names, run.study),
            witnesses=witnesses,
        )
        for name, tables in divided.sites.items()
    ]


def _evaluate(
    run: Run,
    made: Made,
    units: WindowedTable | None,
    divided: Divided,
    level: Level,
    *,
    device: torch.device,
    processes: int,
    on_step: OnStep,
    staged: bool,
) -> dict[str, Any]:
    """What was made, measured; the parts that say what it is of come last."""
    study, options = run.study, run.options
    method = Method(options.method)
    claim = Claim(study.privacy.epsilon if method in PRIVATE else None, study.privacy.delta)
    head = {
        "name": study.name,
        "method": method.value,
        "description": DESCRIPTIONS[method],
        "claim": asdict(claim),
    }

    def on_part(part: str) -> None:
        on_step({"step": f"measured {part}", "budget_used": made.state.budget_used})

    on_step({"step": MEASURING, "budget_used": made.state.budget_used})
    if units is None:
        assert made.classifier is not None
        measured = evaluate_classifier(made.classifier, divided, level=level, seed=options.seed, on_part=on_part)
    else:
        subject = _subject(run, made, units, claim, level, device)
        measured = evaluate(
            subject, divided, study, level=level, seed=options.seed, processes=processes, on_part=on_part
        )
        if made.trained is not None and staged:
            measured["stages"] = measure_stages(
                made.trained,
                divided,
                study,
                seed=options.seed,
                device=device,
                processes=processes,
                on_part=on_part,
            )
    if made.trained is not None:
        counts = made.trained.targets.label_counts
        shares = dict(zip(study.label_values, (counts / counts.sum()).tolist(), strict=True))
        measured["label_shares"] = {"requested": shares, **measured["label_shares"]}
    return {**measured, **head, "guarantee": _guarantee(study, made.state, claim), "monitor": made.state.monitor}


def _guarantee(study: Study, state: RunState, claim: Claim) -> dict[str, Any] | None:
    """What was promised and spent; None where nothing is, or where the noise is known."""
    spent = [account.spending.events for account in state.accounts.values()]
    events = [event for own in spent for event in own]
    if claim.epsilon is None or not events or any(event.noise != "csprng" for event in events):
        return None
    epsilon = max(
        study.accountant.epsilon(
            spent=budget.total([study.accountant.spend(event) for event in own if event.account == account]),
            delta=study.privacy.delta,
        )
        for own in spent
        for account in ("train", "holdout")
        if any(event.account == account for event in own)
    )
    return {
        "epsilon": float(epsilon),
        "delta": study.privacy.delta,
        "unit": study.unit.name,
        "statement": guarantee_statement(study, epsilon=float(epsilon)),
    }


def _subject(run: Run, made: Made, units: WindowedTable, claim: Claim, level: Level, device: torch.device) -> Subject:
    """What an attacker and a data consumer get, and what the coordinator saw."""
    assert made.draw is not None
    seed, equal = run.options.seed, np.ones(len(run.study.label_values))
    trained = made.trained
    target = Target(units, claim, device=str(device))
    if trained is not None:
        generator, bins = trained.generator, trained.bins
        target = replace(
            target,
            published=Published(generator, bins, trained.targets.label_counts),
            releases=Releases(trained.state.releases["one_way"], trained.targets, bins, generator),
        )
    more = [made.draw(made.rows, seed + 1 + number, None) for number in range(draws_of(level))]
    balanced = None if level is Level.BASIC else made.draw(rows_taught(made.rows, level), seed, equal)
    return Subject(target, more, balanced)


def _make(run: Run, method: Method, divided: Divided, engine: Engine, device: torch.device, on_step: OnStep) -> Made:
    """What the method of a run makes of the sites' tables."""
    if method is Method.REAL:
        return _as_they_are(run, divided)
    with tempfile.TemporaryDirectory(prefix="privshare-") as private:
        # On Ray a site lives for one message, too short to be confirmed by others.
        witnesses = 0 if engine.kind == "flower" else None
        return conduct(
            method,
            run.study,
            _site_folders(divided, run, Path(private), witnesses=witnesses),
            engine,
            folder=run.folder,
            run=run.name,
            seed=run.options.seed,
            device=device,
            on_step=on_step,
        )


def _as_they_are(run: Run, divided: Divided) -> Made:
    """The sites' own units, in another order, and as many of them drawn anew."""
    members, seed = divided.members.table, run.options.seed
    rows = len(members.records)

    def draw(size: int, number: int, counts: np.ndarray | None) -> WindowedTable:
        random = np.random.default_rng([seed, number, 5])
        if counts is None:
            return members.take(random.permutation(rows)[:size])
        labels = members.records[run.study.label.column].cat.codes.to_numpy()
        wanted = whole_shares(counts, size)
        chosen = [random.choice(np.flatnonzero(labels == label), size) for label, size in enumerate(wanted)]
        return members.take(random.permutation(np.concatenate(chosen)))

    return Made(RunState(run=run.name, seed=seed, study=run.study.digest()), rows, draw)
