"""What leaves a run: synthetic rows, the generator, the certificate. Made from the generator and releases alone."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import save

from common.certificate import SiteRecord, make_certificate
from common.data.binning import decode_table
from common.data.encoding import make_grids
from common.data.trajectories import decode_windows
from common.data.windows import WindowedTable, long_table
from common.evaluation.gates import Gate
from common.models.generator import draw_bins
from common.models.releases import Bins
from common.models.training import parameters_of
from common.study import Study
from server.checkpoints import write_file, write_json
from server.rounds import Trained

GENERATOR_SCHEMA = "privshare.generator/1"


def draw_units(
    trained: Trained,
    study: Study,
    *,
    rows: int,
    seed: int,
    device: torch.device,
    label_counts: np.ndarray | None = None,
) -> WindowedTable:
    """Synthetic units in the study's column order and dtypes; windows if the study has them.

    Args:
        trained: the end of a run.
        study: of the run.
        rows: how many.
        seed: the same seed gives the same rows.
        device: of the generator.
        label_counts: (classes,), shares of the label's classes, in any unit; None for those that were released.
    """
    random = np.random.default_rng(seed)
    counts = trained.targets.label_counts if label_counts is None else label_counts
    labels = random.permutation(np.repeat(np.arange(len(study.label_values)), whole_shares(counts, rows)))
    records, windows = draw_bins(trained.generator, labels, seed=seed, device=device)
    return decode_units(records, windows, labels, trained.bins, study, random)


def decode_units(
    records: np.ndarray,
    windows: np.ndarray | None,
    labels: np.ndarray,
    bins: Bins,
    study: Study,
    random: np.random.Generator,
) -> WindowedTable:
    """Units in the study's column order and dtypes from what a generator drew.

    Args:
        records: (units, columns) int64 bins of the measured columns.
        windows: (units, steps, channels) int64 bins, -1 beyond a unit's last step; None without windows.
        labels: (units,) int64.
        bins: of columns and channels.
        study: of the run.
        random: of the values inside bins.
    """
    columns = bins.columns
    table = decode_table(records, labels, make_grids(study.measured), bins.binnings[:columns], random)
    dtype = pd.CategoricalDtype(list(study.label_values))
    table[study.label.column] = pd.Categorical.from_codes(labels, dtype=dtype)
    table = table[list(study.columns)]
    if windows is None:
        return WindowedTable.without_windows(table)
    channels = make_grids(study.channels)
    values = decode_windows(windows, labels, channels, bins.binnings[columns:], bins.moves, random)
    return WindowedTable(table, values, (windows[:, :, 0] >= 0).sum(axis=1))


def rows_to_publish(trained: Trained, study: Study) -> int:
    """The study's number of rows, or the noised count of units."""
    return study.release.rows or max(1, round(float(trained.targets.label_counts.sum())))


def tables_of(units: WindowedTable, study: Study) -> dict[str, pd.DataFrame]:
    """The tables to publish, by file name; with windows a second, long one, joined by the unit key."""
    if study.windows is None:
        return {"synthetic.csv": units.records}
    assert study.unit.key is not None
    keys = [f"synthetic-{number:08d}" for number in range(len(units.records))]
    records = units.records.copy()
    records.insert(0, study.unit.key, keys)
    series = long_table(units.values, units.lengths, study.windows, unit_key=study.unit.key, units=keys)
    return {"synthetic.csv": records, "synthetic-windows.csv": series}


def publish(
    trained: Trained, study: Study, units: WindowedTable, folder: Path, *, gates: Sequence[Gate]
) -> dict[str, Any]:
    """Write the synthetic tables, generator/ and certificate.json; returns the certificate.

    Args:
        trained: the end of a run.
        study: of the run.
        units: as `draw_units` made them.
        folder: where to.
        gates: that were passed. The certificate shows those whose figures may be public.

    Raises:
        OutputError: the folder cannot be written.
    """
    files = {
        **{name: _as_csv(table) for name, table in tables_of(units, study).items()},
        "generator/generator.safetensors": bytes(save(_generator_arrays(trained))),
        "generator/generator.json": _generator_facts(trained, study),
    }
    for name, body in files.items():
        write_file(folder / name, body)
    state = trained.state
    certificate = make_certificate(
        study,
        run=state.run,
        sites={
            site: SiteRecord(state.events[site], account.bound, account.key, account.ledger_head, account.attestations)
            for site, account in state.accounts.items()
        },
        files={name: hashlib.sha256(body).hexdigest() for name, body in files.items()},
        gates=[gate.as_dict() for gate in gates if gate.visibility == "public"],
    )
    write_json(folder / "certificate.json", certificate)
    return certificate


def _as_csv(table: pd.DataFrame) -> bytes:
    return table.to_csv(index=False, lineterminator="\n").encode()


def whole_shares(counts: np.ndarray, rows: int) -> np.ndarray:
    """Whole rows of each class, by largest remainder; (classes,) int64."""
    exact = counts / counts.sum() * rows
    whole = np.floor(exact).astype(np.int64)
    most = np.argsort(-(exact - whole), kind="stable")[: rows - int(whole.sum())]
    whole[most] += 1
    return np.asarray(whole)


def _generator_arrays(trained: Trained) -> dict[str, np.ndarray]:
    arrays = parameters_of(trained.generator)
    for position, binning in enumerate(trained.bins.binnings):
        arrays[f"bins.{position}"] = binning.bin_of
        arrays[f"within.{position}"] = binning.within
    arrays["moves"] = trained.bins.moves
    arrays["label_counts"] = trained.targets.label_counts
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _generator_facts(trained: Trained, study: Study) -> bytes:
    facts = {
        "schema": GENERATOR_SCHEMA,
        "study": json.loads(study.canonical()),
        "shape": trained.generator.shape.as_dict(),
    }
    return (json.dumps(facts, indent=2, allow_nan=False) + "\n").encode()
