"""Names of an evaluation as people read them."""

from collections.abc import Mapping
from typing import Final


def label(name: object) -> str:
    """A name of the evaluation as words.

    >>> label("gradient_boosting"), label("tpr_at_10")
    ('gradient boosting', 'TPR at 10 % FPR')
    """
    return LABELS.get(str(name), str(name).replace("_", " "))


def heading(name: object) -> str:
    """The words at the head of something.

    >>> heading("gradient_boosting"), heading("frechet")
    ('Gradient boosting', 'Fréchet distance')
    """
    said = label(name)
    return said[:1].upper() + said[1:]


LABELS: Final[Mapping[str, str]] = {
    "auc": "AUC",
    "auprc": "AUPRC",
    "f1": "F1",
    "macro_f1": "macro F1",
    "brier": "Brier score",
    "tpr_at_10": "TPR at 10 % FPR",
    "tpr_at_1": "TPR at 1 % FPR",
    "tpr_at_0_1": "TPR at 0.1 % FPR",
    "dcr": "distance to closest record",
    "dcr_difference": "distance difference",
    "domias": "DOMIAS",
    "attribute_residual": "residual risk",
    "tstr": "trained on synthetic",
    "trtr": "trained on real",
    "critic_accuracy": "discriminator accuracy",
    "frechet": "Fréchet distance",
    "kernel": "kernel distance",
    "frechet_ratio": "Fréchet ratio",
    "validation_auc": "validation AUC",
    "monitor_auc": "monitor AUC",
    "summaries_auc": "summaries AUC",
    "joint_auc": "joint AUC",
    "released": "the released classifier",
    "missing_mean": "shares of missing values, mean",
    "missing_max": "shares of missing values, largest",
    "missing_pattern": "patterns of missing values",
    "correlation_mean": "correlations, mean",
    "correlation_max": "correlations, largest",
    "rare_recall": "share of rare categories found",
    "violations": "violations of the schema",
    "one_way_mean": "one-way tables, mean",
    "one_way_max": "one-way tables, largest",
    "two_way_mean": "two-way tables, mean",
    "two_way_max": "two-way tables, largest",
    "one_way": "one-way tables",
    "pairs": "statistical: pairs of columns",
    "couplings": "temporal: couplings",
    "dynamics": "temporal: dynamics",
    "embedding": "semantic: embeddings",
    "critic": "neural: gradients",
    "verdict": "verdicts on the neural discriminator",
    "monitor": "monitor",
    "lag_1_real": "lag 1, real",
    "lag_1_synthetic": "lag 1, synthetic",
    "lag_1_within_real": "lag 1 within units, real",
    "lag_1_within_synthetic": "lag 1 within units, synthetic",
}
"""Names that do not read as words by themselves."""
