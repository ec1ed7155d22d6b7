"""Gates before publication: each compares one figure with a threshold of the study, and says what it found."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from common.errors import ReleaseError
from common.evaluation.figures import widening
from common.study import Study

_SHOWN: Final = "by the low end of intervals that hold for all at once"


@dataclass(frozen=True)
class Gate:
    """One gate and what it found.

    id: names it, as the key in the study's section `gates` does.
    rule: in words.
    value: what was compared; None where it is not known, which fails.
    threshold: of the study.
    passed: whether it lets through.
    visibility: "public" where the figure was bought or is known for nothing, "simulation" where it compares with real
        rows.
    """

    id: str
    rule: str
    value: float | None
    threshold: float
    passed: bool
    visibility: Literal["public", "simulation"]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"pass" if name == "passed" else name: value for name, value in asdict(self).items()}


def at_least(
    name: str, value: float | None, threshold: float, rule: str, visibility: Literal["public", "simulation"]
) -> Gate:
    """A gate that a large figure passes; one that is not known does not."""
    return Gate(name, rule, value, threshold, value is not None and value >= threshold, visibility)


def at_most(
    name: str, value: float | None, threshold: float, rule: str, visibility: Literal["public", "simulation"]
) -> Gate:
    """A gate that a small figure passes; one that is not known does not."""
    return Gate(name, rule, value, threshold, value is not None and value <= threshold, visibility)


def require(gates: Iterable[Gate]) -> None:
    """Stop where a gate is closed.

    Raises:
        ReleaseError: names each gate that is, and its rule.
    """
    closed = [gate for gate in gates if not gate.passed]
    if closed:
        said = "; ".join(f"{gate.id}: {_shown(gate.value)}, expected {gate.rule}" for gate in closed)
        raise ReleaseError(f"gates.{said}; nothing was published")


def _shown(value: float | None) -> str:
    return "not known" if value is None else f"{value:.4g}"


def gates_of_evaluation(study: Study, evaluation: Mapping[str, Any]) -> list[Gate]:
    """What the study's gates say of an evaluation; those whose figures are not in it are left out.

    A figure with an interval counts by its nearer end, and where many could close a gate their intervals are widened to
    hold together: a gate fails for what was shown, and not for the one of many that chance made large.
    """
    gates, found = study.gates, []
    if gates.utility_gap is not None:
        rule = f"at most {gates.utility_gap:g} of AUC below classifiers that were trained on real rows"
        found.append(at_most("utility_gap", _gap(evaluation["utility"]), gates.utility_gap, rule, "simulation"))
    attacks = evaluation.get("attacks")
    if attacks is None:
        return found
    if gates.membership_advantage is not None:
        rule = f"at most {gates.membership_advantage:g} for the advantage of any attack, {_SHOWN}"
        figures = [one["populations"]["everyone"]["advantage"] for one in attacks["membership"].values()]
        found.append(_not_shown("membership_advantage", figures, gates.membership_advantage, rule))
    if gates.attribute_residual is not None:
        rule = f"at most {gates.attribute_residual:g} beyond controls in any game, {_SHOWN}"
        games = [
            one for name in ("attributes", "singling_out", "linkability") for one in attacks.get(name, {}).values()
        ]
        figures = [one["residual"] for one in games]
        figures += [attacks["inversion"]["excess"]] if "inversion" in attacks else []
        found.append(_not_shown("attribute_residual", figures, gates.attribute_residual, rule))
    return found


def primary(utility: Mapping[str, Any]) -> str:
    """The classifier that verdicts speak of: the released one, or else the trees that see most."""
    known = utility["tstr"]
    order = ("released", "gradient_boosting_on_summaries", "gradient_boosting")
    return next(name for name in order if name in known)


def _gap(utility: Mapping[str, Any]) -> float | None:
    made, real = (utility[which][primary({"tstr": utility[which]})]["auc"] for which in ("tstr", "trtr"))
    return None if real is None or made is None else real - made


def _not_shown(name: str, figures: Sequence[Mapping[str, Any]], threshold: float, rule: str) -> Gate:
    """A gate on attacks: closed by what one of them showed; where too few units can play, none shows anything."""
    known = [one for one in figures if one["low"] is not None]
    lows = [one["value"] - widening(len(known)) * (one["value"] - one["low"]) for one in known]
    worst = max(lows, default=None)
    return Gate(name, rule, worst, threshold, worst is None or worst <= threshold, "simulation")
