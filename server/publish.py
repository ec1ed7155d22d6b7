"""What leaves a run: synthetic rows, the generator, the certificate. Made from the generator and releases alone."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import save

from common.certificate import make_certificate
from common.data.binning import decode_table
from common.data.encoding import make_grids
from common.models.generator import draw_bins
from common.models.training import parameters_of
from common.study import Study
from server.checkpoints import write_file, write_json
from server.rounds import Trained

GENERATOR_SCHEMA = "privshare.generator/1"


def draw_table(trained: Trained, study: Study, *, rows: int, seed: int, device: torch.device) -> pd.DataFrame:
    """Synthetic rows in the study's column order and dtypes, label shares as released.

    Args:
        trained: the end of a run.
        study: of the run.
        rows: how many.
        seed: the same seed gives the same rows.
        device: of the generator.
    """
    random = np.random.default_rng(seed)
    labels = random.permutation(
        np.repeat(np.arange(len(study.label_values)), _shares(trained.targets.label_counts, rows))
    )
    bins = draw_bins(trained.generator, labels, seed=seed, device=device)
    table = decode_table(bins, labels, make_grids(study.features), trained.bins.binnings, random)
    dtype = pd.CategoricalDtype(list(study.label_values))
    table[study.label.column] = pd.Categorical.from_codes(labels, dtype=dtype)
    return table[list(study.columns)]


def rows_to_publish(trained: Trained, study: Study) -> int:
    """The study's number of rows, or the noised count of units."""
    return study.release.rows or max(1, round(float(trained.targets.label_counts.sum())))


def publish(trained: Trained, study: Study, table: pd.DataFrame, folder: Path) -> dict[str, Any]:
    """Write synthetic.csv, generator/ and certificate.json; returns the certificate.

    Raises:
        OutputError: the folder cannot be written.
    """
    files = {
        "synthetic.csv": table.to_csv(index=False, lineterminator="\n").encode(),
        "generator/generator.safetensors": bytes(save(_generator_arrays(trained))),
        "generator/generator.json": _generator_facts(trained, study),
    }
    for name, body in files.items():
        write_file(folder / name, body)
    state = trained.state
    certificate = make_certificate(
        study,
        run=state.run,
        events=state.events,
        budgets={site: account.squared_mu for site, account in state.accounts.items()},
        ledger_heads={site: account.ledger_head for site, account in state.accounts.items()},
        files={name: hashlib.sha256(body).hexdigest() for name, body in files.items()},
    )
    write_json(folder / "certificate.json", certificate)
    return certificate


def _shares(counts: np.ndarray, rows: int) -> np.ndarray:
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
    arrays["label_counts"] = trained.targets.label_counts
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _generator_facts(trained: Trained, study: Study) -> bytes:
    facts = {
        "schema": GENERATOR_SCHEMA,
        "study": json.loads(study.canonical()),
        "shape": trained.generator.shape.as_dict(),
    }
    return (json.dumps(facts, indent=2, allow_nan=False) + "\n").encode()
