"""Gates, the guarantee and its price, what attacks found, and whether the attacks would have found anything."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from common.errors import LedgerError
from common.evaluation import charts, numerals, verdict
from common.evaluation.attacks.games import EVERYONE, RATES, STATISTICS
from common.evaluation.charts import Row
from common.evaluation.figures import Figure, most_advantage, most_true_positives
from common.evaluation.labels import label
from common.evaluation.sections.blocks import (
    NOTHING,
    Block,
    Cell,
    Chart,
    Folded,
    Listing,
    Prose,
    Run,
    Section,
    Table,
    attack_cell,
    beside,
    figure_cell,
    mark_of,
    remaining,
    section,
    stack,
    term,
    words,
)
from common.evaluation.steps import kind_of
from common.evaluation.verdict import GAMES, figure_of, is_residual, leaves
from common.privacy.accountants import accountant_from
from common.privacy.events import GaussianEvent

_PRIORS: Final = (0.01, 0.1, 0.5)
_SHOWN_SITES: Final = 12
"""Sites in a chart; the table has all."""
_SHOWN_CURVES: Final = 3
_SHOWN: Final = tuple(statistic for statistic in STATISTICS if statistic != "balanced_accuracy")
"""Statistics in a table: a balanced accuracy is (1 + advantage) / 2."""
_IN_TABLE: Final = ("members", "controls", "residual", "excess", "naive", "n")
"""What the table of games shows of one."""
_ACCOUNTS: Final = {"train": "training units", "holdout": "held-out units"}

_Spends = Mapping[str, Mapping[str, Mapping[str, float]]]
"""By site, account and mechanism, a share of the site's bound."""


def gates(run: Run) -> Section | None:
    """What had to hold before anything was published."""
    found = list(run.evaluation.get("gates") or []) or list(run.certificate.get("gates") or [])
    rows = []
    for gate in found:
        result = Cell("holds", tone="strong") if verdict.is_open(gate) else Cell("fails", tone="alarm")
        value = Cell(numerals.number(gate.get("value")), str(gate.get("reason") or ""))
        threshold = Cell(numerals.number(gate.get("threshold")))
        rows.append((term(str(gate["id"])), Cell(str(gate.get("rule") or "")), threshold, value, result))
    head = words("gate", "rule", "threshold", "value", "result")
    table = Table("Each gate must hold before anything is published", head, tuple(rows), texts=frozenset({1}))
    return section(run, "gates", "Gates", [table if rows else None], parts=("gates",))


# --- proof


def proof(run: Run) -> Section | None:
    """What the guarantee means, and what each site spent on it."""
    blocks: list[Block | None] = []
    if run.guarantee is not None:
        blocks.append(beside(_odds(run.guarantee), _limits(run.guarantee)))
    spends = _spends(run)
    if any(site["train"] for site in spends.values()):
        blocks.append(beside(_budget_chart(spends), _budget_table(run, spends)))
    blocks.append(_sites(run))
    covered = run.certificate.get("not_covered")
    if covered:
        blocks.append(Folded("What the guarantee does not cover", (Listing(tuple(map(str, covered))),)))
    return section(run, "proof", "Privacy by proof", blocks)


def _odds(guarantee: Mapping[str, Any]) -> Table:
    epsilon = guarantee["epsilon"]
    # Bayes, with a likelihood ratio of e^epsilon at most.
    posteriors = [prior / (prior + (1 - prior) * math.exp(-epsilon)) for prior in _PRIORS]
    rows = [
        (Cell(numerals.share(prior)), Cell(numerals.percent(posterior)))
        for prior, posterior in zip(_PRIORS, posteriors, strict=True)
    ]
    return Table(
        f"What ε = {numerals.epsilon(epsilon)} means: how sure one can become that one {guarantee['unit']} took part",
        words("sure before", "sure after, at most"),
        tuple(rows),
        note=f"Save with a chance of about δ = {numerals.delta(guarantee['delta'])}.",
    )


def _limits(guarantee: Mapping[str, Any]) -> Table:
    epsilon, delta = guarantee["epsilon"], guarantee["delta"]
    rows = [
        (
            Cell(f"members found at {numerals.share(rate)} false alarms"),
            Cell(numerals.share(rate)),
            Cell(numerals.percent(most_true_positives(rate, epsilon=epsilon, delta=delta))),
        )
        for rate in RATES.values()
    ]
    most = most_advantage(epsilon=epsilon, delta=delta)
    rows.append((term("advantage"), Cell("0"), Cell(numerals.number(most))))
    rows.append((Cell("right of two equally likely answers"), Cell("50 %"), Cell(numerals.percent((1 + most) / 2))))
    return Table("The most that any attack can reach", words("attack", "by guessing", "at most"), tuple(rows))


def _spends(run: Run) -> _Spends:
    """What every event of the certificate cost; empty where its events are not understood."""
    spends = {}
    for site, entry in (run.certificate.get("sites") or {}).items():
        try:
            accountant = accountant_from(entry["accountant"])
            events = [GaussianEvent.from_dict(event) for event in entry["events"]]
        except (LedgerError, KeyError):
            return {}
        own: dict[str, dict[str, float]] = {account: {} for account in _ACCOUNTS}
        for kind, event in zip(_kinds(site, events, run.rounds), events, strict=True):
            share = accountant.spend(event) / entry["bound"]
            own[event.account][kind] = own[event.account].get(kind, 0.0) + share
        spends[site] = own
    return spends


def _kinds(site: str, events: Sequence[GaussianEvent], rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each event of a site was for: the run's releases and the site's events come in one order."""
    steps = [line for line in rounds if site in (line.get("noise_stddev") or {})]
    if [line.get("cells") for line in steps] == [event.cells for event in events]:
        return [kind_of(line) for line in steps]
    return [f"releases on {_ACCOUNTS[event.account]}" for event in events]


def _budget_chart(spends: _Spends) -> Chart:
    shown = list(spends)[:_SHOWN_SITES]
    bars = {site: {label(kind): share for kind, share in spends[site]["train"].items()} for site in shown}
    caption = "Budget of each site's training units by mechanism"
    if len(shown) < len(spends):
        caption += f"; the first {len(shown)} of {len(spends)} sites"
    drawn = charts.stacked(
        bars, name="budget-chart", title="Budget by site and mechanism", axis="share of the site's budget"
    )
    return Chart(caption, drawn)


def _budget_table(run: Run, spends: _Spends) -> Table:
    releases = [kind_of(line) for line in run.rounds if "noise_stddev" in line]
    rows = []
    for account, whose in _ACCOUNTS.items():
        for kind in dict.fromkeys(kind for site in spends.values() for kind in site[account]):
            shares = [numerals.percent(site[account].get(kind, 0.0)) for site in spends.values()]
            low, high = min(shares, key=_first_number), max(shares, key=_first_number)
            times = releases.count(kind)
            rows.append(
                (
                    term(kind, whose),
                    Cell(numerals.count(times)) if times else NOTHING,
                    Cell(low if low == high else f"{low} to {high}"),
                )
            )
    return Table(
        "Budget by mechanism",
        words("mechanism", "releases", "share of the budget"),
        tuple(rows),
        note="A unit trains or is held out, so it loses one of the two accounts, never both.",
    )


def _first_number(text: str) -> float:
    return float(text.split(maxsplit=1)[0].replace(",", ""))


def _sites(run: Run) -> Table | None:
    rows = []
    for site, entry in (run.certificate.get("sites") or {}).items():
        account, bound, spent = entry.get("accountant") or {}, entry.get("bound"), entry.get("spent") or {}
        used = [numerals.percent(spent[name] / bound if bound and name in spent else None) for name in _ACCOUNTS]
        counted = "Gaussian DP" if account.get("kind") == "gdp" else f"Rényi DP, order {account.get('order')}"
        numbers = [numerals.epsilon(entry["epsilon"]), numerals.delta(entry["delta"]), *used]
        events = numerals.count(len(entry.get("events") or []))
        rows.append((Cell(site), *map(Cell, numbers), Cell(events), Cell(counted)))
    if not rows:
        return None
    head = words("site", "ε spent", "δ", "of budget, training", "of budget, held out", "releases", "counted in")
    return Table("What each site spent", head, tuple(rows))


# --- attacks


def attacks(run: Run) -> Section | None:
    """What attackers made of what was published."""
    found = run.part("attacks")
    membership = found.get("membership") or {}
    blocks: list[Block | None] = []
    if membership:
        blocks.append(Prose(_membership_note(run, found)))
        blocks.append(_membership_table(membership, EVERYONE))
        blocks.append(beside(_roc(run, membership), _victims(membership)))
        others = dict.fromkeys(name for attack in membership.values() for name in attack.get("populations") or {})
        tables = tuple(_membership_table(membership, name) for name in others if name != EVERYONE)
        blocks.append(Folded("Membership attacks on victims of their own", tables) if tables else None)
    shown = {"membership", "strongest", "duplicates", "attacked"}
    others_found = _without_residuals({key: found[key] for key in found if key not in shown})
    blocks += _residuals(found, remaining(others_found, "Other figures", part="attacks"))
    return section(run, "attacks", "Privacy by attack", blocks, parts=("attacks",))


def _without_residuals(data: Mapping[str, Any]) -> dict[str, Any]:
    kept = {}
    for key, inner in data.items():
        if not isinstance(inner, Mapping):
            kept[key] = inner
        elif verdict.is_figure(inner):
            kept[key] = dict(inner)
        else:
            shown = _IN_TABLE if is_residual(inner) else ()
            kept[key] = _without_residuals({name: inner[name] for name in inner if name not in shown})
    return kept


def _membership_note(run: Run, found: Mapping[str, Any]) -> str:
    said = (
        f"A member is one {run.unit} that trained, a control one that did not. Each attack ranks both; a guess finds "
        "as large a share of members as it gives false alarms. A figure whose interval is wholly above chance is bold."
    )
    if run.guarantee is not None:
        said += " One wholly above the ceiling would be a fault of the implementation, not a bad score."
    if numerals.is_number(found.get("attacked")):
        said += f" {numerals.count(found['attacked'])} members and as many controls play."
    if found.get("duplicates"):
        said += f" {numerals.count(found['duplicates'])} units whose rows are on both sides were left out first."
    return said


def _membership_table(membership: Mapping[str, Any], population: str) -> Table:
    found = {
        name: {key: figure_of(attack["populations"][population].get(key)) for key in _SHOWN}
        for name, attack in membership.items()
        if population in (attack.get("populations") or {})
    }
    order = sorted(found, key=lambda name: -(found[name]["auc"].value or 0.0))
    shown: list[str] = []
    missing: list[str] = []
    for key in _SHOWN:
        reasons = {found[name][key].reason for name in order if found[name][key].value is None}
        is_unknown = all(found[name][key].value is None for name in order) and len(reasons) == 1
        (missing if is_unknown else shown).append(key)
    rows = []
    for words_of, level in (("a guess", "chance"), ("most that the guarantee allows", "ceiling")):
        values = [next((getattr(found[name][key], level) for name in order), None) for key in shown]
        if any(value is not None for value in values):
            cells = [_level_cell(key, value) for key, value in zip(shown, values, strict=True)]
            rows.append((Cell(words_of, tone="muted"), *cells))
    for name in order:
        cells = [attack_cell(found[name][key], as_percent=key in RATES) for key in shown]
        rows.append((term(name, str(membership[name].get("adversary") or "")), *cells))
    who = "" if population == EVERYONE else f" on {label(population)} alone"
    return Table(
        f"Membership attacks{who}, strongest first, with 95 % intervals",
        words("attack", *shown),
        tuple(rows),
        note=" ".join(f"{label(key)}: {found[order[0]][key].reason or 'not measured'}." for key in missing),
    )


def _level_cell(statistic: str, value: float | None) -> Cell:
    if value is None:
        return NOTHING
    is_chance = value in RATES.values()
    shown = numerals.share if is_chance else numerals.percent if statistic in RATES else numerals.number
    return Cell(shown(value), tone="muted")


def _auc(attack: Mapping[str, Any], population: str = EVERYONE) -> Figure:
    return figure_of(((attack.get("populations") or {}).get(population) or {}).get("auc"))


def _roc(run: Run, membership: Mapping[str, Any]) -> Chart | None:
    curves = {}
    for name in sorted(membership, key=lambda name: -(_auc(membership[name]).value or 0.0)):
        roc = membership[name].get("roc") or {}
        false, true = roc.get("false_positive_rate") or [], roc.get("true_positive_rate") or []
        if false and len(false) == len(true):
            curves[label(name)] = (false, true)
    if not curves:
        return None
    best = dict(list(curves.items())[:_SHOWN_CURVES])
    units = max((_auc(attack).n or 0 for attack in membership.values()), default=0)
    guarantee = None if run.guarantee is None else (run.guarantee["epsilon"], run.guarantee["delta"])
    caption = "Members found at each rate of false alarms, by the strongest attacks"
    return Chart(
        f"{caption}; the shaded part is out of reach" if guarantee else caption,
        charts.roc(
            best,
            name="roc-chart",
            title="ROC of membership attacks",
            guarantee=guarantee,
            # Half of the units are controls; of less than one of them nothing is seen.
            least=2 / units if units else None,
        ),
    )


def _victims(membership: Mapping[str, Any]) -> Chart | None:
    """AUC of each attack, of everyone beside victims of their own."""
    rows = []
    for name, attack in membership.items():
        marks = {label(key): mark_of(_auc(attack, key)) for key in attack.get("populations") or {}}
        known = {key: mark for key, mark in marks.items() if mark is not None}
        if known:
            rows.append(Row(label(name), known))
    if not rows:
        return None
    drawn = charts.forest(rows, name="victims-chart", title="AUC of attacks by population", axis="AUC", reference=0.5)
    return Chart("AUC of each attack by population, with 95 % intervals; the line is a guess", drawn)


def _residuals(found: Mapping[str, Any], others: Block | None) -> list[Block | None]:
    """Games of members beside controls: what membership adds; other figures beside the chart."""
    rows, marks = [], []
    for kind in found:
        for path, data in leaves(found[kind], is_residual):
            game, name = GAMES.get(kind, label(kind)), verdict.path_said(path)
            residual = verdict.leak_of(data)
            shares = [figure_cell(figure_of(data.get(side)), as_percent=True) for side in ("members", "controls")]
            naive = figure_cell(figure_of(data["naive"]), as_percent=True) if data.get("naive") else NOTHING
            rows.append((Cell(name or game, game if name else ""), *shares, naive, attack_cell(residual)))
            mark = mark_of(residual)
            if mark is not None:
                marks.append(Row(f"{game}: {name}" if name else game, {"": mark}))
    if not rows:
        return [others]
    note = Prose(
        "An attacker who holds good synthetic rows guesses well of everybody; that is knowledge about people, not of "
        "one. What leaks is the residual risk: of what is guessed wrong of controls, the share that is guessed "
        "right of members. It is 0 where nothing leaks."
    )
    table = Table(
        "Attributes and identity: success against members and against controls",
        words("game", "members", "controls", "naive", "residual"),
        tuple(rows),
        note="Naive: knows what people are like, but does not look at what was published. Where a game is scored by "
        "parts of a person, as inversion is, what membership adds is members less controls.",
    )
    if not marks:
        return [note, table, others]
    drawn = charts.forest(
        marks, name="residual-chart", title="Residual risk by game", axis="residual risk", reference=0.0
    )
    chart = Chart("Residual risk with 95 % intervals; the line is no leak", drawn)
    return [beside(chart, stack(note, others)), table]


# --- controls


def controls(run: Run) -> Section | None:
    """Whether attacks and distances say what they must of generators whose outcome is known."""
    rows = []
    for control in run.evaluation.get("controls") or []:
        found = control.get("figure")
        value = figure_cell(figure_of(found)) if found else Cell(numerals.number(control.get("value")))
        passed = verdict.is_open(control)
        result = Cell("as expected", tone="strong") if passed else Cell("not as expected", tone="alarm")
        rows.append((term(str(control["id"])), Cell(str(control.get("expected") or "")), value, result))
    head = words("control", "expected", "value", "result")
    blocks: list[Block | None] = [
        Prose("What is known beforehand: a generator that copies must be caught, and fresh real rows must not."),
        Table("Controls of the evaluation itself", head, tuple(rows), texts=frozenset({1})),
    ]
    return section(
        run, "controls", "Does the evaluation see what it should?", blocks if rows else [], parts=("controls",)
    )
