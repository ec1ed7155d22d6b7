"""A small federation for tests of classifiers: people with a few records, or with a window each."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml

from client.records import parse_text, read_windows
from client.simulated_site import SiteFolder, make_site_folder
from common.data.windows import WindowedTable
from common.evaluation.figures import Population
from common.study import Study, parse_study
from server.exchange import Exchange
from simulations.baselines.classifiers import ClassifierCoordinator, ClassifierSite, TrainedClassifier, adapt
from simulations.federation import Engine, credentials_of, run_federation

CPU = torch.device("cpu")
_PLAIN: dict[str, Any] = {
    "name": "small",
    "unit": {"name": "person", "key": "person", "max_records": 2, "surplus": "drop"},
    "label": {"column": "outcome", "positive": "bad"},
    "columns": {
        "amount": {"type": "continuous", "min": 0, "max": 100, "decimals": 1, "cells": 20},
        "visits": {"type": "integer", "min": 0, "max": 9, "missing": True},
        "channel": {"type": "categorical", "categories": ["desk", "phone", "web"]},
        "outcome": {"type": "categorical", "categories": ["good", "bad"]},
    },
    "privacy": {"epsilon": 1, "delta": 1e-5, "holdout": 0.2},
    "rounds": {"count": 3, "trainers": 2},
    "model": {"max_bins": 4},
}
_WINDOWS: dict[str, Any] = {
    "layout": "grid",
    "length": 4,
    "step": 1,
    "start": 0,
    "time": {"column": "hour"},
    "channels": {
        "pulse": {"type": "continuous", "min": 0, "max": 200, "decimals": 0, "cells": 20, "missing": True},
        "state": {"type": "categorical", "categories": ["awake", "asleep"], "missing": True},
    },
}


def make_study(**sections: dict[str, Any]) -> Study:
    """The study of people, with some values of some sections replaced."""
    data = {
        name: {**part, **sections.get(name, {})} if isinstance(part, dict) else part for name, part in _PLAIN.items()
    }
    return parse_study(data | {name: part for name, part in sections.items() if name not in _PLAIN}, source="test")


STUDY = make_study()
WINDOWED = make_study(unit={"max_records": 1}, windows=_WINDOWS)


def draw(units: int, seed: int, *, records: int = 2, study: Study = STUDY) -> dict[str, pd.DataFrame]:
    """Tables of text: those of a bad outcome have larger amounts, come by phone, and a quicker pulse."""
    random = np.random.default_rng(seed)
    unit = np.repeat(np.arange(units), random.integers(1, records + 1, units))
    bad = random.random(len(unit)) < 0.3
    amounts = np.round(random.uniform(0, 50, len(unit)) + 30 * bad, 1)
    visits = np.where(random.random(len(unit)) < 0.1, "", random.integers(0, 10, len(unit)).astype(str))
    channels = np.where(random.random(len(unit)) < 0.5 * bad, "phone", random.choice(["desk", "web"], len(unit)))
    names = np.array([f"{seed}-{number}" for number in unit])
    outcomes = np.where(bad, "bad", "good")
    columns = {"person": names, "amount": amounts.astype(str), "visits": visits, "channel": channels}
    tables = {"table": pd.DataFrame({**columns, "outcome": outcomes}, dtype="str")}
    if study.windows is not None:
        steps = np.repeat(np.arange(len(unit)), 4)
        pulse = np.round(random.normal(80 + 40 * bad[steps], 10)).astype(int).astype(str)
        rows = {"person": names[steps], "hour": np.tile(np.arange(4), len(unit)).astype(str), "pulse": pulse}
        state = random.choice(["awake", "asleep", ""], len(steps))
        tables["series"] = pd.DataFrame({**rows, "state": state}, dtype="str")
    return tables


def population(tables: dict[str, pd.DataFrame], study: Study = STUDY) -> Population:
    """Parsed, as the evaluation has it."""
    records = parse_text(tables["table"], study)
    units, _ = pd.factorize(tables["table"]["person"])
    if "series" not in tables:
        return Population(WindowedTable.without_windows(records), units)
    return Population(WindowedTable(records, *read_windows(records, tables["series"], study)), units)


@dataclass(frozen=True)
class Federation:
    """Simulated sites of a study that was adapted to a method; `folder` is new."""

    folder: Path
    study: Study
    method: str
    sites: list[SiteFolder]

    @property
    def ledgers(self) -> list[Path]:
        return sorted((self.folder / "run" / "ledger").glob("*.jsonl"))

    def conduct(self, *, stop_at: str | None = None, seed: int = 0) -> TrainedClassifier:
        """Run, or go on; stops where a step of that name is on record."""
        found: list[TrainedClassifier] = []

        def on_step(line: dict[str, Any]) -> None:
            if line["step"] == stop_at:
                raise KeyboardInterrupt

        def run(exchange: Exchange) -> None:
            coordinator = ClassifierCoordinator(
                self.study,
                method=self.method,
                folder=self.folder / "run",
                run="run",
                seed=seed,
                credentials=credentials_of([site.name for site in self.sites], seed=0),
                device=CPU,
                on_step=on_step,
            )
            found.append(coordinator.run(exchange))

        run_federation(self.sites, run, Engine("process", "cpu", 1, noise_seed=3), site=ClassifierSite)
        return found[0]


def federate(folder: Path, method: str, tables: list[dict[str, pd.DataFrame]], study: Study = STUDY) -> Federation:
    """One site a table."""
    adapted = adapt(study, method)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(
        yaml.safe_dump(adapted.model_dump(mode="json", by_alias=True), sort_keys=False), encoding="utf-8"
    )
    names = [f"site_{number}" for number in range(len(tables))]
    sites = [
        make_site_folder(
            name,
            folder / "study.yaml",
            adapted,
            {kind: table.to_csv(index=False) for kind, table in own.items()},
            private=folder / "private",
            kept=folder / "run",
            seed=0,
            peers=[peer for peer in names if peer != name],
        )
        for name, own in zip(names, tables, strict=True)
    ]
    return Federation(folder, adapted, method, sites)
