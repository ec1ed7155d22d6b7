"""The content of evaluation.json: utility and fidelity, each beside what real rows would give.

Every figure is a query on real records that no privacy budget paid for. It is for simulations and public benchmarks;
it does not leave a site.
"""

from dataclasses import asdict

from common.data.windows import WindowedTable
from common.evaluation.fidelity import measure_fidelity
from common.evaluation.sequences import measure_prediction, measure_sequence_fidelity, measure_sequence_utility
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


WINDOW_DEFINITIONS = {
    "gradient_boosting_static": "The boosted trees on the columns of the record alone.",
    "gradient_boosting_on_summaries": "The same trees on the columns and on summaries of every channel: mean, standard "
    "deviation, extremes, ends, slope, missing share, mean step; of categories their shares and changes.",
    "sequence_classifier": "A recurrent network over the steps of the window, with the columns at its last layer.",
    "discriminative_score": "|accuracy - 0.5| of a recurrent network that tells synthetic windows from real ones; 0 is "
    "chance.",
    "summaries_auc": "AUC of boosted trees that tell synthetic from real summaries of windows; 0.5 is chance.",
    "joint_auc": "The same with the columns of the record beside the summaries.",
    "autocorrelation": "Mean absolute difference of autocorrelations at lags 1 to 6, numeric channels, about the mean "
    "of all units.",
    "autocorrelation_within": "The same about the mean of each unit.",
    "agreement": "Mean absolute difference of the probability that two steps in a row agree, categorical channels.",
    "cross_correlation": "Mean absolute difference of correlations of two numeric channels at one step.",
    "numeric_marginal": "1-Wasserstein distance at each step over the standard deviation, mean of steps and channels.",
    "categorical_marginal": "Total variation distance at each step, mean over steps and channels.",
    "missing": "Difference of the shares of missing values at each step, mean over steps and channels.",
    "change": "1-Wasserstein distance of changes from step to step over their standard deviation, numeric channels.",
    "lag_1_real": "Autocorrelation at lag 1 of a channel; of categories the probability that two steps in a row agree; "
    "_synthetic: of the synthetic windows; _within: about the mean of each unit.",
    "marginal": "The distance at each step, of one channel.",
    "length": "Total variation distance of the numbers of steps.",
    "prediction": "Mean absolute error, in standard deviations, of a recurrent network that foretells the next step of "
    "real windows; trained on synthetic windows (tstr) or on real ones (trtr).",
}
"""The same for what studies with windows have beside."""


def evaluate(
    synthetic: WindowedTable, train: WindowedTable, holdout: WindowedTable, study: Study, *, seed: int
) -> dict[str, object]:
    """All measurements of one synthetic table, ready for JSON.

    Guarantees: plain dicts, str, int, finite float and None alone; whatever is None has its reason beside it; the same
    tables and seed give the same content.
    Edge cases: an empty table, or one without both sides of the label -> None and the reason, for what needs it.

    Args:
        synthetic: units that the generator made.
        train: the real units that the generator learned from, all sites together.
        holdout: real units that it did not learn from.
        study: the study of all three; without windows, their records alone are looked at.
        seed: of the classifiers.
    """
    tables = {"synthetic": synthetic, "train": train, "holdout": holdout}
    records = [table.records for table in tables.values()]
    report: dict[str, object] = {
        "schema": EVALUATION_SCHEMA,
        "study": study.digest(),
        "seed": seed,
        "rows": {name: len(table.records) for name, table in tables.items()},
        "utility": {"tstr": _utility(synthetic, holdout, study, seed), "trtr": _utility(train, holdout, study, seed)},
        "fidelity": {
            "synthetic_vs_train": asdict(measure_fidelity(records[0], records[1], study, edges_from=records[1])),
            "synthetic_vs_holdout": asdict(measure_fidelity(records[0], records[2], study, edges_from=records[1])),
            "floor_train_vs_holdout": asdict(measure_fidelity(records[1], records[2], study, edges_from=records[1])),
        },
    }
    if study.windows is not None:
        channels = study.channels
        report["windows"] = {
            "synthetic_vs_holdout": asdict(measure_sequence_fidelity(synthetic, holdout, study, channels, seed=seed)),
            "floor_train_vs_holdout": asdict(measure_sequence_fidelity(train, holdout, study, channels, seed=seed)),
            "prediction": {
                "tstr": asdict(measure_prediction(synthetic, holdout, channels, seed=seed)),
                "trtr": asdict(measure_prediction(train, holdout, channels, seed=seed)),
            },
        }
    report["definitions"] = dict(DEFINITIONS) if study.windows is None else DEFINITIONS | WINDOW_DEFINITIONS
    return report


def _utility(train: WindowedTable, test: WindowedTable, study: Study, seed: int) -> dict[str, object]:
    if study.windows is None:
        measured = measure_utility(train.records, test.records, study, seed=seed)
    else:
        measured = measure_sequence_utility(train, test, study, study.channels, seed=seed)
    return {name: asdict(scores) for name, scores in measured.items()}
