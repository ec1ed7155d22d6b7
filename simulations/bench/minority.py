"""What a larger share of the rare class is worth: `python simulations/bench/minority.py RUN...`.

From each run's generator as many rows are drawn as they come, and with larger shares of the label's positive class; a
classifier learns from each, and is asked on real units that no site had for its recall at fixed precision.
"""

from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from sklearn.metrics import average_precision_score, precision_recall_curve

from common.commands import Commands
from common.evaluation.sequences import predict_label
from common.evaluation.utility import is_positive
from common.study import Study
from common.synthesis.synthesizer import Synthesizer
from simulations.experiment import divide
from simulations.run import resumed

app = Commands()

_CLASSIFIERS = ("gradient_boosting", "gradient_boosting_on_summaries", "logistic_regression")
_PRECISIONS = (0.1, 0.2, 0.3, 0.5)


@app.command()
def main(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs of one study, one a seed.")],
    *,
    rows: Annotated[int, typer.Option(help="Rows that a classifier learns from.")] = 10_000,
    shares: Annotated[list[float] | None, typer.Option("--share", help="Of the positive class; repeat it.")] = None,
) -> None:
    """Recall at fixed precision, from rows as they come and with more of the rare class."""
    asked = [None, *(shares or [0.1, 0.2, 0.35, 0.5])]
    found: dict[tuple[float | None, str], list[np.ndarray]] = {}
    for seed, folder in enumerate(runs):
        run = resumed(folder)
        study, test = run.study, divide(run).test.table
        synthesizer, truth = Synthesizer.load(folder), is_positive(test.records, study)
        for share in asked:
            proportions = {} if share is None else {study.label.column: _with(share, study)}
            drawn = synthesizer.sample_units(rows, proportions=proportions, seed=seed)
            for name, predicted in predict_label(drawn, test, study, seed=seed).items():
                if name in _CLASSIFIERS and predicted.scores is not None:
                    found.setdefault((share, name), []).append(_recalls(truth, predicted.scores))
    table = Table("positives", "classifier", *(f"recall at {one:.0%} precision" for one in _PRECISIONS), "AUPRC")
    for (share, name), own in found.items():
        beside = found[None, name]
        cells = [
            _said([float(values[at]) for values in own], [float(values[at]) for values in beside])
            for at in range(len(_PRECISIONS) + 1)
        ]
        table.add_row("as they come" if share is None else f"{share:.0%}", name, *cells)
    Console(width=170).print(table)


def _with(share: float, study: Study) -> dict[str, float]:
    """Shares of the label's classes, of the positive one as given."""
    rest = (1 - share) / (len(study.label_values) - 1)
    return dict.fromkeys(study.label_values, rest) | {study.label.positive: share}


def _recalls(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The most recall that a threshold with at least each precision has; then the area under that curve."""
    precision, recall, _ = precision_recall_curve(truth, scores)
    most = [float(recall[precision >= one].max(initial=0.0)) for one in _PRECISIONS]
    return np.array([*most, average_precision_score(truth, scores)])


def _said(own: list[float], beside: list[float]) -> str:
    """Mean and deviation over runs; how many are above the rows as they come, run by run."""
    spread = f" ± {stdev(own):.3f}" if len(own) > 1 else ""
    if own == beside:
        return f"{fmean(own):.3f}{spread}"
    better = sum(one > other for one, other in zip(own, beside, strict=True))
    return f"{fmean(own):.3f}{spread} ({better} of {len(own)} higher)"


if __name__ == "__main__":
    torch.set_num_threads(1)
    app()
