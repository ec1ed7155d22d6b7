"""The content of evaluation.json: utility and fidelity, each beside what real rows would give.

Every figure is a query on real records that no privacy budget paid for. It is for simulations and public benchmarks;
it does not leave a site.
"""

from dataclasses import asdict

import pandas as pd

from common.evaluation.fidelity import measure_fidelity
from common.evaluation.utility import measure_utility
from common.study import Study

EVALUATION_SCHEMA = "privshare.evaluation/1"

DEFINITIONS = {
    "tstr": "A classifier is trained on the synthetic table and scored on the real hold-out.",
    "trtr": "The same classifier is trained on the real training table and scored on the same hold-out; what TSTR is "
    "measured against.",
    "logistic_regression": "L2-penalised logistic regression on one-hot categories and standardised numbers, settings "
    "fixed beforehand.",
    "gradient_boosting": "300 boosted trees on histograms, with categories and missing values as they are, settings "
    "fixed beforehand.",
    "auc": "Area under the ROC curve for the label's positive class; 0.5 is chance.",
    "auprc": "Average precision for the positive class; chance is its share of the hold-out.",
    "accuracy": "Share of the hold-out predicted rightly, at a threshold chosen on the training table alone: the one "
    "that predicts the positive class as often as it occurs there.",
    "f1": "Harmonic mean of precision and recall of the positive class, at the same threshold.",
    "recall": "Share of the positive records that are predicted positive, at the same threshold.",
    "precision": "Share of the records predicted positive that are, at the same threshold; 0 when there are none.",
    "majority_accuracy": "Accuracy of always guessing the more frequent of positive and not positive in the hold-out.",
    "one_way": "Total variation distance of the table of one column, numbers cut at deciles of the real training table "
    "with heavy values and missing apart; mean and maximum over all columns, the label included.",
    "two_way": "Total variation distance of the table of two columns, cut likewise; mean and maximum over all pairs.",
    "synthetic_vs_train": "Distance to the real records that the generator learned from.",
    "synthetic_vs_holdout": "Distance to real records that it did not learn from.",
    "floor_train_vs_holdout": "The same distance between two real tables: what is due to finite samples alone, not to "
    "the generator.",
    "reason": "Why a figure is null; null itself when there is nothing to explain.",
}
"""One sentence for each name in the report, so that the file can be read without this code."""


def evaluate(
    synthetic: pd.DataFrame, train: pd.DataFrame, holdout: pd.DataFrame, study: Study, *, seed: int
) -> dict[str, object]:
    """All measurements of one synthetic table, ready for JSON.

    Guarantees: plain dicts, str, int, finite float and None alone; whatever is None has its reason beside it; the same
    tables and seed give the same content.
    Edge cases: an empty table, or one without both sides of the label -> None and the reason, for what needs it.

    Args:
        synthetic: parsed table that the generator made.
        train: parsed table of the real records that the generator learned from, all sites together.
        holdout: parsed table of real records, of other units, that it did not learn from.
        study: the study of all three.
        seed: of the classifiers.
    """
    tables = {"synthetic": synthetic, "train": train, "holdout": holdout}
    return {
        "schema": EVALUATION_SCHEMA,
        "study": study.digest(),
        "seed": seed,
        "rows": {name: len(table) for name, table in tables.items()},
        "utility": {"tstr": _utility(synthetic, holdout, study, seed), "trtr": _utility(train, holdout, study, seed)},
        "fidelity": {
            "synthetic_vs_train": asdict(measure_fidelity(synthetic, train, study, edges_from=train)),
            "synthetic_vs_holdout": asdict(measure_fidelity(synthetic, holdout, study, edges_from=train)),
            "floor_train_vs_holdout": asdict(measure_fidelity(train, holdout, study, edges_from=train)),
        },
        "definitions": dict(DEFINITIONS),
    }


def _utility(train: pd.DataFrame, test: pd.DataFrame, study: Study, seed: int) -> dict[str, object]:
    return {name: asdict(scores) for name, scores in measure_utility(train, test, study, seed=seed).items()}
