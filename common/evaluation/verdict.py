"""What an evaluation comes to, in words: is it useful, is it proven private, did an attack find a leak, are gates open.

Each word follows from figures by a rule that stands in the docstring and in the sentence beside the word. There is no
score: usefulness does not make up for a leak.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from common.evaluation import numerals
from common.evaluation.attacks.games import EVERYONE, RATES, STATISTICS, MembershipAttack, strongest
from common.evaluation.figures import Figure, most_advantage
from common.evaluation.gates import primary
from common.evaluation.labels import heading, label

METHODS: Final[Mapping[str, str]] = {
    "privshare": "made by privshare",
    "gan": "made by a standard federated GAN, which promises no privacy",
    "fl": "trained by federated averaging, which promises no privacy",
    "fl-dp": "trained by noised federated steps",
    "dp-lr": "trained as a logistic regression by noised federated steps",
    "local-only": "made by privshare at one site alone",
    "real": "the sites' own, as if they might be published",
}
"""How it was made, by the name of the method."""
GAMES: Final[Mapping[str, str]] = {
    "attributes": "attribute inference",
    "singling_out": "singling out",
    "linkability": "linkability",
    "inversion": "inversion",
    "extraction": "extraction",
}
"""Games about attributes and identity, by their names in the evaluation."""
CLASSIFIERS: Final = ("fl", "fl-dp", "dp-lr")
"""Methods that publish a classifier and no rows."""
UNPROTECTED: Final = ("gan", "fl", "real")
"""Methods that promise nothing."""

_LEAKS: Final = ("residual", "excess")

MUCH, SOME = 0.9, 0.5
"""Shares of what real rows teach beyond chance from which rows count as useful, and as useful in part."""
_TAUGHT: Final = 0.05
"""Area beyond chance that real rows must teach for the share of it to say anything."""
Tone = Literal["good", "plain", "alarm"]


@dataclass(frozen=True)
class Dial:
    """One answer.

    question: in a word or two.
    word: the answer.
    sentence: the figures that it follows from.
    clause: the answer as part of a sentence.
    tone: "alarm" where something is wrong or unprotected, "plain" where nothing is known.
    """

    question: str
    word: str
    sentence: str
    clause: str
    tone: Tone


def figure_of(data: object) -> Figure:
    """A figure read back from JSON; what is none has no value, and says so."""
    if not isinstance(data, Mapping) or "value" not in data:
        return Figure(reason="not in the evaluation")
    return Figure(**{name: data.get(name) for name in ("value", "low", "high", "chance", "ceiling", "n", "reason")})


def dials(
    evaluation: Mapping[str, Any], certificate: Mapping[str, Any] | None, *, hidden: Collection[str] = ()
) -> list[Dial]:
    """The four answers: useful, proven, attacked, gates.

    Args:
        evaluation: content of evaluation.json, or what of it may be shown.
        certificate: of certificate.json, if there is one.
        hidden: parts that were cut out of the evaluation, or cut short: nothing is said that would need them.
    """
    found = [usefulness(evaluation), proof(evaluation, certificate), leaks(evaluation), gating(evaluation)]
    kept = "What was found stays at the site."
    if "utility" in hidden:
        found[0] = Dial(found[0].question, "Not shown", kept, "of a use that is not shown", "plain")
    if not {"attacks", "controls"}.isdisjoint(hidden):
        found[2] = Dial(found[2].question, "Not shown", kept, "with attacks that are not shown", "plain")
    if "gates" in hidden:
        found[3] = replace(found[3], sentence=f"{found[3].sentence} Others stay at the site.")
        if not evaluation.get("gates"):
            found[3] = Dial(found[3].question, "Not shown", kept, "with gates that are not shown", "plain")
    return found


def usefulness(evaluation: Mapping[str, Any]) -> Dial:
    """How much of what real rows teach beyond chance was learned, by the classifier that gates look at too.

    From 0.9 of its area beyond chance: yes; from 0.5: in part; below: hardly. A classifier that was itself published
    stands beside the one that gates would look at among those that learned from real rows.
    """
    question = "Useful?"
    utility = evaluation.get("utility") or {}
    synthetic, real = (
        {name: scores for name, scores in (utility.get(side) or {}).items() if numerals.is_number(scores.get("auc"))}
        for side in ("tstr", "trtr")
    )
    if not synthetic:
        return Dial(question, "Not known", "No classifier was scored.", "of unknown use", "plain")
    both = {name: scores for name, scores in synthetic.items() if name in real}
    best = spoken_of(both or synthetic)
    said = f"{heading(best)} ranks unseen real rows with an AUC of {_area(synthetic[best])}"
    if not real:
        clause = "of measured use, without real rows to compare with"
        return Dial(question, "Measured", f"{said}.", clause, "plain")
    beside = best if best in real else spoken_of(real)
    what = "after learning from the sites' own rows" if best in real else f"{label(beside)} of the sites' own rows"
    said += f"; {what}, with {_area(real[beside])}."
    taught, reached = real[beside]["auc"] - 0.5, synthetic[best]["auc"] - 0.5
    if taught < _TAUGHT:
        return Dial(question, "Not telling", f"{said} Real rows teach next to nothing.", "of unknown use", "plain")
    share = max(0.0, reached / taught)
    said += f" That is {numerals.percent(share, digits=2)} of what real rows teach beyond chance."
    if share >= MUCH:
        return Dial(question, "Yes", said, "nearly as useful as real rows", "good")
    if share >= SOME:
        return Dial(question, "In part", said, "useful in part", "plain")
    return Dial(question, "Hardly", said, "hardly useful", "alarm")


def proof(evaluation: Mapping[str, Any], certificate: Mapping[str, Any] | None) -> Dial:
    """Whether a guarantee is stated, and what it leaves an attacker who was undecided."""
    question = "Private by proof?"
    guarantee = guarantee_of(evaluation, certificate)
    void = evaluation.get("void_because") or (certificate or {}).get("void_because")
    if void:
        return Dial(question, "Void", f"The guarantee is void: {void}.", "not private by proof", "alarm")
    if guarantee is None and _is_unstated(evaluation, certificate):
        said = "No certificate is at hand, which would state a guarantee or that there is none."
        return Dial(question, "Not stated", said, "without a certificate of privacy", "plain")
    if guarantee is None:
        said = "Nothing is promised by this method, whatever attacks find."
        return Dial(question, "No", said, "not private by proof", "alarm")
    unit, epsilon, delta = guarantee["unit"], guarantee["epsilon"], guarantee["delta"]
    budget = f"ε = {numerals.epsilon(epsilon)}, δ = {numerals.delta(delta)}"
    certainty = (1 + most_advantage(epsilon=epsilon, delta=delta)) / 2
    said = (
        f"{budget} for every {unit} at one site. Somebody who tosses a coin whether one took part is right half the "
        f"time; with all that was published, at most {numerals.percent(certainty)} of the time."
    )
    return Dial(question, "Yes", said, f"private by proof ({budget} for every {unit})", "good")


def leaks(evaluation: Mapping[str, Any]) -> Dial:
    """What the attacks found, over all that were tried.

    Contradiction: an interval lies wholly above what the guarantee allows. Leak: the strongest advantage of any
    population lies wholly above chance, or a residual risk above 0. Intervals are widened for as many as were tried.
    Where neither was found, but the evaluation failed controls of its own, nothing is known.
    """
    question = "Private by attack?"
    games = membership(evaluation)
    risks = list(residuals(evaluation))
    if not games and not risks:
        return Dial(question, "Not measured", "No attack was tried.", "not attacked", "plain")
    broken = [statistic for statistic in STATISTICS if _is_broken(games, statistic)]
    if broken:
        name, figure = strongest(games, statistic=broken[0])
        said = f"{_membership_said(name, broken[0], figure, len(games))} The implementation is at fault."
        return Dial(
            question, "Contradicts the proof", said, "in contradiction to the proof, which an attack exceeds", "alarm"
        )
    found, said = False, ""
    if games:
        name, figure = strongest(games, statistic="advantage")
        found = figure.low is not None and figure.low > 0
        shown = _best_known(games)
        said = _membership_said(*shown, len(games)) if shown and not found else ""
        said = said or _membership_said(name, "advantage", figure, len(games))
    worst = max(risks, key=lambda risk: risk[1].value or 0.0, default=None)
    if worst is not None:
        found = found or any(_widened_low(figure, len(risks)) > 0 for _, figure in risks)
        said += f" The largest of {len(risks)} residual risks is {shown_figure(worst[1])}, of {worst[0]}; 0 is no leak."
    if found:
        return Dial(question, "Leak found", said.strip(), "with a leak that an attack found", "alarm")
    failed = [label(control["id"]) for control in evaluation.get("controls") or [] if not is_open(control)]
    if failed:
        said += f" But the evaluation failed controls of its own: {', '.join(failed)}."
        return Dial(question, "Not known", said.strip(), "of unknown resistance to attacks", "plain")
    return Dial(question, "No leak found", said.strip(), "without a leak that any attack found", "good")


def gating(evaluation: Mapping[str, Any]) -> Dial:
    """Whether all gates are open."""
    question = "Gates"
    gates = evaluation.get("gates") or []
    closed = [gate["id"] for gate in gates if not is_open(gate)]
    if not gates:
        return Dial(question, "None", "No gate is set or shown.", "with no gate set", "plain")
    if closed:
        said = f"Closed: {', '.join(map(label, closed))}. A run that this happens to publishes nothing."
        return Dial(
            question,
            f"{len(closed)} of {len(gates)} closed",
            said,
            f"with {len(closed)} of {len(gates)} gates closed",
            "alarm",
        )
    clause = {1: "with its gate open", 2: "with both gates open"}.get(len(gates), f"with all {len(gates)} gates open")
    held = ", ".join(label(gate["id"]) for gate in gates)
    return Dial(question, "Open", f"What was asked for holds: {held}.", clause, "good")


def sentence(
    evaluation: Mapping[str, Any], certificate: Mapping[str, Any] | None, *, hidden: Collection[str] = ()
) -> str:
    """What this is and the four answers, as one sentence; arguments as of `dials`."""
    method = str(evaluation.get("method", "privshare"))
    rows = evaluation.get("rows") or {}
    name = evaluation.get("name") or ((certificate or {}).get("study") or {}).get("name") or "a study"
    if method in CLASSIFIERS:
        what = "A classifier"
    elif method == "real":
        what = "Real rows"
    else:
        amount = rows.get("synthetic")
        what = f"{numerals.count(amount)} synthetic rows" if numerals.is_number(amount) else "Synthetic rows"
    sites = len((certificate or {}).get("sites") or {})
    made = f"{what} for the study {name}, {METHODS.get(method, f'made by {method}')}"
    if sites:
        made += f" from the tables of {sites} site{'s' if sites > 1 else ''}"
    useful, proven, attacked, gates = (dial.clause for dial in dials(evaluation, certificate, hidden=hidden))
    return f"{made}: {useful}, {proven}, {attacked}, and {gates}."


def guarantee_of(evaluation: Mapping[str, Any], certificate: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The guarantee with its unit; None where none is stated, or where it is void."""
    if evaluation.get("void_because") or (certificate or {}).get("void_because"):
        return None
    stated = evaluation["guarantee"] if "guarantee" in evaluation else (certificate or {}).get("guarantee")
    if not stated:
        return None
    return {"unit": evaluation.get("unit") or (certificate or {}).get("unit") or "unit", **stated}


def _is_unstated(evaluation: Mapping[str, Any], certificate: Mapping[str, Any] | None) -> bool:
    return "guarantee" not in evaluation and certificate is None and evaluation.get("method") not in UNPROTECTED


def membership(evaluation: Mapping[str, Any]) -> dict[str, MembershipAttack]:
    """Each attack on each population as a game of its own, so that all that were tried count."""
    attacks = (evaluation.get("attacks") or {}).get("membership") or {}
    games = {}
    for name, attack in attacks.items():
        for population, figures in (attack.get("populations") or {}).items():
            on = label(name) if population == EVERYONE else f"{label(name)} on {label(population)}"
            read = {statistic: figure_of(figures.get(statistic)) for statistic in STATISTICS}
            games[on] = MembershipAttack(str(attack.get("adversary", "")), {EVERYONE: read}, {})
    return games


def residuals(evaluation: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    """What membership adds in each game about attributes and identity, where it could be measured."""
    for kind, games in (evaluation.get("attacks") or {}).items():
        for path, game in leaves(games, is_residual):
            figure = leak_of(game)
            if figure.value is not None:
                yield ", ".join(filter(None, (GAMES.get(kind, label(kind)), path_said(path)))), figure


def path_said(path: tuple[str, ...]) -> str:
    """Which of the games of a kind it is.

    >>> path_said(("5",)), path_said(("known", "blood_type")), path_said(())
    ('5 nearest', 'known, blood_type', '')
    """
    # Names of columns are shown as they are.
    return ", ".join(f"{part} nearest" if part.isdigit() else part for part in path)


def spoken_of(scores: Mapping[str, Any]) -> str:
    """The classifier of gates; if it is not among these, the one that does best.

    Raises:
        ValueError: there is none.
    """
    try:
        return primary({"tstr": scores})
    except StopIteration:
        return max(scores, key=lambda name: float((scores[name] or {}).get("auc") or 0.0))


def is_residual(data: Mapping[str, Any]) -> bool:
    """Whether it is a game of members beside controls, with what membership adds."""
    return {"members", "controls"} <= set(data) and any(isinstance(data.get(name), Mapping) for name in _LEAKS)


def leak_of(game: Mapping[str, Any]) -> Figure:
    """What membership adds in a game: the residual risk, or the difference itself."""
    return figure_of(next((game[name] for name in _LEAKS if isinstance(game.get(name), Mapping)), None))


def is_figure(data: Mapping[str, Any]) -> bool:
    """Whether it is the dict of a `Figure`."""
    return "value" in data and "reason" in data


def leaves(data: object, is_leaf: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All dicts of a kind in nested dicts, each with the keys that lead to it."""
    if not isinstance(data, Mapping):
        return
    if is_leaf(data):
        yield path, data
        return
    for key, inner in data.items():
        yield from leaves(inner, is_leaf, (*path, str(key)))


def is_open(gate: Mapping[str, Any]) -> bool:
    """Whether a gate lets through, or a control is as expected."""
    return bool(gate.get("pass", gate.get("passed", False)))


def shown_figure(figure: Figure, *, as_percent: bool = False) -> str:
    """A figure as text, with its interval."""
    return " ".join(numerals.figure(figure.value, figure.low, figure.high, as_percent=as_percent)).strip()


def _area(scores: Mapping[str, Any]) -> str:
    low, high = (scores.get("intervals") or {}).get("auc") or (None, None)
    return " ".join(numerals.figure(scores["auc"], low, high)).strip()


def _is_broken(games: Mapping[str, MembershipAttack], statistic: str) -> bool:
    if not games:
        return False
    _, figure = strongest(games, statistic=statistic)
    return figure.low is not None and figure.ceiling is not None and figure.low > figure.ceiling


def _best_known(games: Mapping[str, MembershipAttack]) -> tuple[str, str, Figure] | None:
    """The strongest attack at the smallest rate of false positives that these units resolve."""
    for statistic in ("tpr_at_1", "tpr_at_10"):
        name, figure = strongest(games, statistic=statistic)
        if figure.value is not None:
            return name, statistic, figure
    return None


def _membership_said(name: str, statistic: str, figure: Figure, tried: int) -> str:
    many = f"The strongest of {tried} membership games" if tried > 1 else "The membership game"
    if statistic in RATES:
        at = numerals.share(RATES[statistic])
        found = shown_figure(figure, as_percent=True)
        said = f"{many} ({name}) finds {found} of members at {at} false alarms; a guess {at}"
        ceiling = numerals.percent(figure.ceiling)
    else:
        chance = numerals.number(figure.chance)
        said = f"{many} ({name}) has the {label(statistic)} {shown_figure(figure)}; a guess {chance}"
        ceiling = numerals.number(figure.ceiling)
    return f"{said}." if figure.ceiling is None else f"{said}, and the guarantee allows {ceiling}."


def _widened_low(figure: Figure, tried: int) -> float:
    """Lower end of an interval that holds for so many figures at once; below 0 where there is none."""
    if figure.value is None or figure.low is None:
        return -1.0
    # A residual risk lies between the ends of an advantage, save where controls lose next to every game.
    kept = replace(figure, value=max(-1.0, figure.value), low=max(-1.0, figure.low))
    game = MembershipAttack("", {EVERYONE: {"advantage": kept}}, {})
    _, widened = strongest({str(number): game for number in range(tried)}, statistic="advantage")
    return -1.0 if widened.low is None else widened.low
