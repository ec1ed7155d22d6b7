"""One sentence for each name in evaluation.json, so that the file can be read without this code."""

DEFINITIONS = {
    "tstr": "A classifier is trained on the synthetic table and scored on the real hold-out.",
    "trtr": "The same classifier is trained on the real training table and scored on the same hold-out; what TSTR is "
    "measured against.",
    "logistic_regression": "L2-penalised logistic regression on one-hot categories and standardised numbers, "
    "settings fixed beforehand.",
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
    "one_way": "Total variation distance of the table of one column, numbers cut at deciles of the real training "
    "table with heavy values and missing apart; mean and maximum over all columns, the label included.",
    "two_way": "Total variation distance of the table of two columns, cut likewise; mean and maximum over all pairs.",
    "synthetic_vs_train": "Distance to the real records that the generator learned from.",
    "synthetic_vs_holdout": "Distance to real records that it did not learn from.",
    "floor_train_vs_holdout": "The same distance between two real tables: what is due to finite samples alone, not "
    "to the generator.",
    "reason": "Why a figure is null; null itself when there is nothing to explain.",
    "balanced_accuracy": "Mean of the shares of positive and of other records that are predicted rightly; 0.5 for "
    "whatever does not look at the record.",
    "macro_f1": "Mean of the f1 of both sides, at the same threshold.",
    "brier": "Mean squared error of the scores as probabilities; always saying the share p of positives gives p (1 - "
    "p).",
    "calibration_slope": "Slope of the logistic regression of the outcome on the logit of the score; below 1 scores "
    "are too extreme.",
    "calibration_intercept": "What must be added to all logits for the scores to say as many positives as there are.",
    "intervals": "Ends of the 95 % interval of each score, by drawing the units of the hold-out again.",
    "subgroups": "AUC and recall in groups of the hold-out, by public columns, and the largest gap between two.",
    "draws": "The scores over several synthetic tables of one generator.",
    "controlled": "Scores at one share of positive predictions, for a classifier that was taught by the table as "
    "released and by one with equal classes.",
    "equal_classes": "Scores of classifiers that were taught by a synthetic table with all label classes equally "
    "often.",
    "released": "The classifier that was itself published.",
    "frechet": "Fréchet distance of two tables in a fixed, public embedding, its floor (real against real) and its "
    "ceiling (real against real with shuffled columns).",
    "kernel": "Unbiased squared maximum mean discrepancy with a cubic kernel, in the same embedding.",
    "neighbours": "Precision, recall, density and coverage by the five nearest neighbours, in the same embedding.",
    "distinguisher": "How well boosted trees tell synthetic from real rows, by cross-validation; chance is 0.5.",
    "missing_mean": "Difference of the shares of missing values, mean over columns.",
    "membership": "Attacks that score units by how likely they were trained on, members against controls.",
    "advantage": "True positive rate less false positive rate, at a threshold chosen on other units; chance is 0.",
    "tpr_at_10": "Share of members found when a tenth of the controls is accused; chance is 10 %.",
    "tpr_at_1": "The same at one control in a hundred.",
    "tpr_at_0_1": "The same at one control in a thousand.",
    "ceiling": "The most that the claimed epsilon and delta allow any attack.",
    "chance": "What somebody who knows nothing reaches.",
    "attributes": "How often a hidden column is guessed of members and of controls, and what remains: (members - "
    "controls) / (1 - controls).",
    "residual": "The share of what is not guessed of controls that is guessed of members; chance is 0.",
    "singling_out": "How often a description that fits one synthetic record alone fits one member alone, and one "
    "control.",
    "linkability": "How often two halves of a unit's columns find the same synthetic record.",
    "inversion": "How many hidden columns of a person the released generator gives away from known ones.",
    "extraction": "How often a synthetic row equals that of one real unit.",
    "stages": "The generator as each stage of the noise left it, with the epsilon spent so far.",
}
"""Of every report."""


WINDOW_DEFINITIONS = {
    "gradient_boosting_static": "The boosted trees on the columns of the record alone.",
    "gradient_boosting_on_summaries": "The same trees on the columns and on summaries of every channel: mean, "
    "standard deviation, extremes, ends, slope, missing share, mean step; of categories their shares and changes.",
    "sequence_classifier": "A recurrent network over the steps of the window, with the columns at its last layer.",
    "discriminative_score": "|accuracy - 0.5| of a recurrent network that tells synthetic windows from real ones; 0 "
    "is chance.",
    "summaries_auc": "AUC of boosted trees that tell synthetic from real summaries of windows; 0.5 is chance.",
    "joint_auc": "The same with the columns of the record beside the summaries.",
    "autocorrelation": "Mean absolute difference of autocorrelations at lags 1 to 6, numeric channels, about the "
    "mean of all units.",
    "autocorrelation_within": "The same about the mean of each unit.",
    "agreement": "Mean absolute difference of the probability that two steps in a row agree, categorical channels.",
    "cross_correlation": "Mean absolute difference of correlations of two numeric channels at one step.",
    "numeric_marginal": "1-Wasserstein distance at each step over the standard deviation, mean of steps and channels.",
    "categorical_marginal": "Total variation distance at each step, mean over steps and channels.",
    "missing": "Difference of the shares of missing values at each step, mean over steps and channels.",
    "change": "1-Wasserstein distance of changes from step to step over their standard deviation, numeric channels.",
    "lag_1_real": "Autocorrelation at lag 1 of a channel; of categories the probability that two steps in a row "
    "agree; _synthetic: of the synthetic windows; _within: about the mean of each unit.",
    "marginal": "The distance at each step, of one channel.",
    "length": "Total variation distance of the numbers of steps.",
    "prediction": "Mean absolute error, in standard deviations, of a recurrent network that foretells the next step "
    "of real windows; trained on synthetic windows (tstr) or on real ones (trtr).",
}
"""The same for what studies with windows have beside."""
