"""Which figures of an evaluation the paper's tables show, and how several runs of one setting become one figure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from common.evaluation.figures import Figure, over_seeds
from common.evaluation.gates import primary
from simulations.methods import Method

Extract = Callable[[Mapping[str, Any]], float | None]


@dataclass(frozen=True)
class Setting:
    """Runs that differ in their seed alone."""

    scenario: str
    method: Method
    epsilon: float | None = None

    @property
    def folder(self) -> Path:
        """Of its runs."""
        name = self.method.value if self.epsilon is None else f"{self.method.value}-{self.epsilon:g}"
        return Path(self.scenario) / name


@dataclass(frozen=True)
class Cell:
    """One figure of an evaluation.

    id: of the column in the CSV.
    title: of the column.
    path: where it is in evaluation.json; a function where it is made of several.
    percent: whether it is shown in per cent.
    """

    id: str
    title: str
    path: str | Extract
    percent: bool = False

    def of(self, evaluation: Mapping[str, Any]) -> float | None:
        """The figure, None where the evaluation does not have it."""
        return at(evaluation, self.path) if isinstance(self.path, str) else self.path(evaluation)


def at(evaluation: Mapping[str, Any], path: str) -> float | None:
    """The figure at a path of names, None where there is none."""
    found: Any = evaluation
    for part in path.split("/"):
        if not isinstance(found, Mapping) or part not in found:
            return None
        found = found[part]
    return None if found is None else float(found)


def _score(name: str, *, which: str = "tstr") -> Extract:
    def extract(evaluation: Mapping[str, Any]) -> float | None:
        return at(evaluation, f"utility/{which}/{primary(evaluation['utility'])}/{name}")

    return extract


def _controlled(which: str, measure: str) -> Extract:
    def extract(evaluation: Mapping[str, Any]) -> float | None:
        return at(evaluation, f"utility/controlled/{which}/{primary(evaluation['utility'])}/{measure}")

    return extract


def _most(statistic: str, part: str = "value") -> Extract:
    """Of all membership attacks on everyone."""

    def extract(evaluation: Mapping[str, Any]) -> float | None:
        attacks = evaluation.get("attacks", {}).get("membership", {})
        found = [one["populations"]["everyone"][statistic][part] for one in attacks.values()]
        return max((value for value in found if value is not None), default=None)

    return extract


def _secret(part: str) -> Extract:
    """Of inferring the label, the secret that every study has."""

    def extract(evaluation: Mapping[str, Any]) -> float | None:
        games = evaluation.get("attacks", {}).get("attributes", {})
        label = next((game for name, game in games.items() if "=" not in name), None)
        return None if label is None else label[part]["value"]

    return extract


USEFULNESS: Final = (
    Cell("accuracy", "accuracy", _score("accuracy"), percent=True),
    Cell("auc", "AUC", _score("auc")),
    Cell("auprc", "AUPRC", _score("auprc")),
    Cell("f1", "F1", _score("f1")),
    Cell("recall", "recall", _score("recall"), percent=True),
    Cell("precision", "precision", _score("precision"), percent=True),
    Cell("balanced_accuracy", "balanced accuracy", _score("balanced_accuracy"), percent=True),
)
QUALITY: Final = (
    Cell("fd", "Fréchet distance", "fidelity/frechet/distance/value"),
    Cell("fd_floor", "its floor", "fidelity/frechet/floor/value"),
    Cell("fd_normalised", "0 real, 1 shuffled", "fidelity/frechet/normalised/value"),
    Cell("kernel", "kernel distance", "fidelity/frechet/kernel/mean"),
    Cell("gan_precision", "GAN precision", "fidelity/neighbours/synthetic/precision/value", percent=True),
    Cell("gan_recall", "GAN recall", "fidelity/neighbours/synthetic/recall/value", percent=True),
    Cell("two_way", "two-way distance", "fidelity/synthetic_vs_holdout/two_way_mean"),
)
ATTACKS: Final = (
    Cell(
        "mia_literal",
        "MIA as printed: telling synthetic from real",
        "fidelity/distinguisher/accuracy/value",
        percent=True,
    ),
    Cell("mia", "MIA success: members found at 10 % false alarms", _most("tpr_at_10"), percent=True),
    Cell("mia_advantage", "MIA advantage", _most("advantage"), percent=True),
    Cell("mia_auc", "MIA AUC", _most("auc")),
    Cell("aia", "AIA success, members", _secret("members"), percent=True),
    Cell("aia_controls", "controls", _secret("controls"), percent=True),
    Cell("aia_residual", "residual", _secret("residual"), percent=True),
    Cell("inversion", "inversion, members", "attacks/inversion/members/value"),
    Cell("inversion_controls", "controls", "attacks/inversion/controls/value"),
    Cell("inversion_excess", "excess", "attacks/inversion/excess/value"),
)
CONTROL: Final = (
    Cell("recall_plain", "recall, plain", _controlled("as_released", "recall"), percent=True),
    Cell("recall_equal", "recall, equal classes", _controlled("equal_classes", "recall"), percent=True),
    Cell("auprc_plain", "AUPRC, plain", _controlled("as_released", "auprc")),
    Cell("auprc_equal", "AUPRC, equal classes", _controlled("equal_classes", "auprc")),
)


def summarise(evaluations: Sequence[Mapping[str, Any]], cell: Cell) -> Figure:
    """A cell over the seeds of a setting."""
    values = [value for one in evaluations if (value := cell.of(one)) is not None]
    return over_seeds(values)
