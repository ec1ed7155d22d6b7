import copy
import math
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.evaluation import charts, labels, numerals, verdict
from common.evaluation.attacks.games import assess
from common.evaluation.figures import Figure, rate
from common.evaluation.page import open_part, write_page
from common.privacy.accountants import GdpAccountant
from common.privacy.events import GaussianEvent

EPSILON, DELTA = 1.0, 1e-6
SITES = ("north", "south", "west")
HOSTILE = '<script>alert("1")</script><img src=x onerror=alert(2)>'
VOID = {"meta", "link", "img", "br", "hr", "input"}
REASON = "not resolvable with 300 controls"
SECTIONS = [
    *("gates", "proof", "attacks", "noise", "utility"),
    *("fidelity", "windows", "shares", "controls", "provenance"),
]


# --- a run of which every section has something to say


def _release(
    step: str, share: float, *, cells: int = 900, account: str = "train"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A line of rounds.jsonl and the event that it stands for, at one site."""
    bound = GdpAccountant().bound(epsilon=EPSILON, delta=DELTA)
    stddev = GdpAccountant().noise_stddev(squared_sensitivity=3024, spend=share * bound * (1 - 1e-9), sampling=1.0)
    event = GaussianEvent(
        account="holdout" if account == "holdout" else "train",
        squared_sensitivity=3024,
        noise_stddev=stddev,
        cells=cells,
        scale=12,
        noise="csprng",
    )
    line = {"step": step, "cells": cells, "noise_stddev": dict.fromkeys(SITES, stddev / event.scale)}
    return line, event.as_dict()


@cache
def _releases() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [
        _release("one_way", 0.35),
        _release("pairs-1", 0.13, cells=3878),
        _release("monitor-1", 0.5, cells=40, account="holdout"),
        _release("pairs-2", 0.2, cells=3878),
        _release("critic-2-1", 0.02, cells=300),
        _release("critic-2-2", 0.02, cells=300),
        _release("pairs-3", 0.28, cells=3878),
        _release("monitor-2", 0.5, cells=40, account="holdout"),
    ]


def make_rounds() -> list[dict[str, Any]]:
    """As rounds.jsonl has them."""
    decided = [
        {
            "step": "noise",
            "stage": stage,
            "inputs": {"frechet_ratio": 1 / stage, "critic_accuracy": None, "validation_auc": 0.6},
            "share": 0.2 * stage,
            "error": 0.1 * stage,
            "proportional": 0.06 * stage,
            "integral": -0.02 * stage,
            "derivative": 0.01,
            "multiplier": 1 + 0.1 * stage,
            "clamped_by": ["slew"] if stage == 2 else [],
        }
        for stage in (1, 2, 3)
    ]
    trained = [
        {"step": "round", "round": number, "losses": {"marginals": 1 / number, "statistical": 2 / number}}
        for number in range(1, 11)
    ]
    return [*copy.deepcopy([line for line, _ in _releases()]), *decided, *trained]


def make_certificate() -> dict[str, Any]:
    """As certificate.json has it, of three sites."""
    bound = GdpAccountant().bound(epsilon=EPSILON, delta=DELTA)
    site = {
        "accountant": {"kind": "gdp"},
        "epsilon": 0.99999999956,
        "delta": DELTA,
        "bound": bound,
        "spent": {"train": bound, "holdout": bound / 2},
        "events": [event for _, event in _releases()],
    }
    return {
        "schema": "privshare.certificate/2",
        "study": {"name": "toy", "digest": "5" * 64},
        "run": "toy-1",
        "unit": "patient",
        "relation": "add or remove one unit at one site",
        "noise_trust": "local",
        "guarantee": {"epsilon": 0.99999999956, "delta": DELTA, "statement": "For every patient present at one site."},
        "void_because": None,
        "sites": {name: copy.deepcopy(site) for name in SITES},
        "not_covered": ["Timing is not covered.", "A site that lies is not detected."],
        "gates": [],
        "files": {"synthetic.csv": "a" * 64, "generator/generator.json": "b" * 64},
        "signature": None,
    }


def _membership(strength: float, seed: int, adversary: str) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    members, controls = random.normal(strength, 1, 2000), random.normal(0, 1, 2000)
    some = np.arange(2000) < 300
    assessed = assess(
        members,
        controls,
        adversary=adversary,
        groups={"outliers": (some, some), "rare_class": (~some, ~some)},
        epsilon=EPSILON,
        delta=DELTA,
        seed=seed,
    )
    return asdict(assessed)


def _residual(members: float, controls: float, n: int = 1500) -> dict[str, Any]:
    """A game that was won so often; the interval is that of the logarithm of a ratio."""
    ratio = (1 - members) / (1 - controls)
    half = 1.96 * math.sqrt(members / (1 - members) / n + controls / (1 - controls) / n)
    low, high = (1 - ratio * math.exp(side * half) for side in (1, -1))
    shares = [rate(round(share * n), n, chance=0.31) for share in (members, controls)]
    residual = Figure(1 - ratio, low, high, chance=0.0, n=n)
    figures = {
        "members": shares[0],
        "controls": shares[1],
        "residual": residual,
        "naive": Figure(0.31, 0.29, 0.33, n=n),
    }
    return {**{name: asdict(figure) for name, figure in figures.items()}, "n": n}


@cache
def _attacks() -> dict[str, Any]:
    holder, model = "holder of one synthetic table, who knows other people", "holder of the generator"
    return {
        "membership": {
            "dcr": _membership(0.0, 1, holder),
            "domias": _membership(0.04, 2, holder),
            "classifier": _membership(0.02, 3, holder),
            "latent_distance": _membership(-0.03, 4, model),
            "update_alignment": _membership(0.05, 5, "honest but curious coordinator"),
        },
        "strongest": {"attack": "dcr", "tried": 5, "tpr_at_10": {}},
        "duplicates": 17,
        "attacked": 2000,
        "attributes": {
            "ill": _residual(0.4, 0.39),
            "smokes": _residual(0.7, 0.71),
            "income": _residual(0.2, 0.19),
        },
        "singling_out": {"univariate": _residual(0.1, 0.11), "multivariate": _residual(0.15, 0.14)},
        "linkability": {"1": _residual(0.02, 0.02), "5": _residual(0.1, 0.1)},
        "inversion": {
            **{name: asdict(Figure(0.28, 0.27, 0.29)) for name in ("members", "controls", "naive")},
            "excess": asdict(Figure(0.001, -0.012, 0.014, chance=0.0)),
            "known": 6,
            "unknown": 9,
        },
        "extraction": {"record": {"synthetic_of_members": asdict(rate(0, 12_000)), "per_100k": 0.0}},
    }


def _scores(auc: float, *, slope: float | None = 0.9) -> dict[str, Any]:
    values = {
        "auc": auc,
        "auprc": auc / 2,
        "accuracy": 0.93,
        "balanced_accuracy": auc - 0.05,
        "f1": 0.4,
        "macro_f1": 0.66,
        "recall": 0.42,
        "precision": 0.38,
        "brier": 0.06,
    }
    intervals = {name: [value - 0.02, value + 0.02] for name, value in values.items()}
    reason = "calibration_slope: the scores of the two sides do not overlap" if slope is None else None
    more = {"calibration_slope": slope, "calibration_intercept": -0.1, "majority_accuracy": 0.92}
    return {**values, **more, "intervals": intervals, "reason": reason}


def _compared(base: float) -> dict[str, Any]:
    columns = {f"column_{number}": base * number for number in range(1, 25)} | {
        "a column of a very long name indeed": base
    }
    means = {"one_way_mean": base, "one_way_max": 3 * base, "two_way_mean": 2 * base, "two_way_max": 5 * base}
    more = {
        "missing_mean": base / 2,
        "missing": dict.fromkeys(columns, base / 2),
        "correlation_mean": None,
        "violations": 3,
        "violating": {"column_1": 3},
        "reason": "correlation: no two numeric columns vary",
    }
    return {**means, **more, "columns": columns}


def _series(base: float) -> dict[str, Any]:
    channel = {
        "lag_1_real": 0.8,
        "lag_1_synthetic": 0.8 - base,
        "lag_1_within_real": 0.5,
        "lag_1_within_synthetic": 0.4,
        "marginal": base,
        "missing": base / 3,
        "change": None,
        "reasons": {"change": "the channel is categorical"},
    }
    means = {"discriminative_score": base, "summaries_auc": 0.5 + base, "autocorrelation": base, "agreement": None}
    channels = {name: dict(channel) for name in ("heart_rate", "lactate", "ward")}
    return {**means, "channels": channels, "reasons": {"agreement": "no categorical channel"}}


def _frechet() -> dict[str, Any]:
    kernel = {"mean": 0.0123, "sd": 0.0011, "subset": 1000, "reason": None}
    return {
        "embedding": "tabular-1",
        "sha256": "c" * 64,
        "rows": 10_000,
        "distance": asdict(Figure(0.31, 0.28, 0.34, n=10_000)),
        "floor": asdict(Figure(0.05, 0.04, 0.06, n=10_000)),
        "ceiling": asdict(Figure(7.1, 6.8, 7.4, n=10_000)),
        "normalised": asdict(Figure(reason="the ceiling is not above the floor")),
        "kernel": kernel,
        "kernel_floor": {**kernel, "mean": -0.0001},
        "kernel_ceiling": {"mean": None, "sd": None, "subset": None, "reason": "fewer than 128 rows"},
    }


def _neighbours() -> dict[str, Any]:
    names = ("precision", "recall", "density", "coverage")
    support = {name: asdict(Figure(0.95 - at / 50, 0.94 - at / 50, 0.96 - at / 50)) for at, name in enumerate(names)}
    return {"embedding": "tabular-1", "sha256": "c" * 64, "k": 5, "rows": 2000, "synthetic": support, "floor": support}


def _stage(number: int) -> dict[str, Any]:
    told = {"auc": asdict(Figure(0.7 - number / 50, 0.6, 0.75, chance=0.5)), "rows": 2000}
    utility = {"logistic_regression": _scores(0.7), "gradient_boosting": _scores(0.7 + number / 50)}
    both = {"frechet": _frechet(), "distinguisher": told, "utility": utility}
    return {"stage": number, "noise_multiplier": 9.0 / number, "epsilon": number / 3, **both}


def _subgroups() -> dict[str, Any]:
    figure = asdict(Figure(0.8, 0.75, 0.85, n=400))
    gap = {**asdict(Figure(0.06, 0.0, 0.11, chance=0.04)), "column": "sex"}
    groups = [
        {"group": "f", "auc": figure, "recall": figure},
        {"group": None, "auc": asdict(Figure(reason=REASON)), "recall": figure},
    ]
    found = {
        "columns": {"sex": {"groups": groups, "auc_gap": gap, "recall_gap": gap}},
        "auc_gap": gap,
        "recall_gap": gap,
    }
    return {"tstr": {"gradient_boosting": found}, "trtr": {"gradient_boosting": copy.deepcopy(found)}}


def make_evaluation() -> dict[str, Any]:
    """As evaluation.json has it, with every section."""
    simulated = {"visibility": "simulation", "cost": "none, rows are simulated"}
    draws = {"mean": 0.79, "sd": 0.004, "n": 5, "reason": None}
    return {
        "schema": "privshare.evaluation/2",
        "study": "5" * 64,
        "name": "toy",
        "method": "privshare",
        "seed": 3,
        "level": "standard",
        "guarantee": {
            "epsilon": EPSILON,
            "delta": DELTA,
            "unit": "patient",
            "statement": "For every patient present at one site.",
        },
        "void_because": None,
        "rows": {"synthetic": 12000, "train": 12900, "test": 1260, "control": 1260, "reference": 630},
        "units": {"synthetic": 12000, "train": 3200, "test": 320, "control": 320, "reference": 160},
        "constraints": {"low <= high": 0, "sex=m implies pregnant=no": 3},
        "label_shares": {
            "requested": {"yes": 0.08, "no": 0.92},
            "delivered": {"yes": 0.0801, "no": 0.9199},
            "train": {"yes": 0.0777, "no": 0.9223},
        },
        "utility": {
            "tstr": {"logistic_regression": _scores(0.78), "gradient_boosting": _scores(0.8, slope=None)},
            "trtr": {"logistic_regression": _scores(0.82), "gradient_boosting": _scores(0.86)},
            "subgroups": _subgroups(),
            "controlled": {name: {"gradient_boosting": _scores(0.8)} for name in ("as_released", "equal_classes")},
            "equal_classes": {"gradient_boosting": _scores(0.8)},
            "draws": {
                "gradient_boosting": {"auc": draws, "auprc": {"mean": None, "sd": None, "n": 0, "reason": "no draw"}}
            },
        },
        "fidelity": {
            "synthetic_vs_train": _compared(0.011),
            "synthetic_vs_holdout": _compared(0.0123),
            "floor_train_vs_holdout": _compared(0.004),
            "frechet": _frechet(),
            "neighbours": _neighbours(),
            "distinguisher": {
                "auc": asdict(Figure(0.61, 0.59, 0.63, chance=0.5)),
                "accuracy": asdict(Figure(0.57, 0.55, 0.59, chance=0.5)),
                "rows": 2000,
            },
            "later": {"another_distance": 0.1234567},
        },
        "windows": {
            "synthetic_vs_holdout": _series(0.12),
            "floor_train_vs_holdout": _series(0.02),
            "prediction": {
                "tstr": {"error": 0.41, "channels": {"heart_rate": 0.3, "lactate": 0.5}, "reason": None},
                "trtr": {"error": 0.36, "channels": {"heart_rate": 0.28, "lactate": 0.44}, "reason": None},
            },
        },
        "attacks": copy.deepcopy(_attacks()),
        "controls": [
            {
                "id": "copier",
                "expected": "AUC above 0.95",
                "figure": asdict(Figure(0.9981, 0.997, 0.999)),
                "passed": True,
            },
            {"id": "fresh", "expected": "chance", "figure": asdict(Figure(reason=REASON)), "passed": False},
            {"id": "noise", "expected": "a number", "value": 0.25, "pass": True},
        ],
        "stages": [_stage(number) for number in (1, 2, 3)],
        "gates": [
            {
                "id": "utility_gap",
                "rule": "at most 0.1 AUC below real rows",
                "threshold": 0.1,
                "value": 0.06,
                "pass": True,
                "reason": None,
            },
            {
                "id": "membership_advantage",
                "rule": "at most 0.1",
                "threshold": 0.1,
                "value": -0.011,
                "pass": True,
                "reason": None,
            },
        ],
        "monitor": {"auc": 0.77, "standard_error": 0.02},
        "access": {
            name: dict(simulated)
            for name in (
                "rows",
                "units",
                "label_shares",
                "utility",
                "fidelity",
                "windows",
                "attacks",
                "controls",
                "gates",
            )
        }
        | {"monitor": {"visibility": "public", "cost": "half of the held-out units' budget"}},
        "definitions": {
            "auc": "Area under the ROC curve for the label's positive class; 0.5 is chance.",
            "tstr": "A classifier is trained on synthetic rows and scored on real ones.",
            "advantage": "The largest difference of true and false positive rate.",
        },
    }


class _Reader(HTMLParser):
    """What a browser would see: tags that close, identifiers, links, texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.headings: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    def found(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def values(self, attribute: str) -> list[str]:
        return [attributes[attribute] or "" for _, attributes in self.tags if attribute in attributes]


@cache
def _page(audience: str = "site") -> str:
    return write_page(make_evaluation(), make_certificate(), make_rounds(), audience=audience)  # type: ignore[arg-type]


def _read(evaluation: dict[str, Any], **given: Any) -> _Reader:
    return _Reader(
        write_page(evaluation, given.get("certificate"), given.get("rounds", []), **_only(given, "audience"))
    )


def _only(given: dict[str, Any], name: str) -> dict[str, Any]:
    return {name: given[name]} if name in given else {}


def _small() -> dict[str, Any]:
    """An evaluation that draws nothing."""
    return {"schema": "privshare.evaluation/2", "name": "toy"}


# --- the page as a whole


def test_every_section_is_there_in_order_and_linked() -> None:
    page = _Reader(_page())
    names = [attributes["id"] for attributes in page.found("section")]
    assert names == [*SECTIONS, "definitions"]
    links = [attributes["href"] for attributes in page.found("a")]
    assert [f"#{name}" for name in names] == [link for link in links if link in {f"#{name}" for name in names}]


def test_all_tags_close_and_identifiers_are_unique_and_reached() -> None:
    page = _Reader(_page())
    identifiers = page.values("id")
    assert len(set(identifiers)) == len(identifiers)
    targets = {link.removeprefix("#") for link in page.values("href")}
    assert all(link.startswith("#") for link in page.values("href"))
    for attribute in ("aria-labelledby", "aria-describedby"):
        targets |= set(page.values(attribute))
    assert targets <= set(identifiers)


def test_nothing_is_loaded_and_nothing_runs() -> None:
    page, text = _Reader(_page()), _page()
    assert {tag for tag, _ in page.tags}.isdisjoint(
        {"script", "link", "img", "iframe", "object", "embed", "form", "base"}
    )
    assert "://" not in text
    assert "@import" not in text
    assert all(found.startswith("#") for found in re.findall(r"url\(([^)]*)\)", text))
    assert page.values("src") == []
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    policies = [meta for meta in page.found("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policies[0]["content"].startswith("default-src 'none'; style-src 'unsafe-inline';")  # type: ignore[union-attr]


def test_page_and_charts_are_small() -> None:
    assert len(_page().encode()) < 400_000
    drawings = re.findall(r"<svg.*?</svg>", _page(), re.DOTALL)
    assert len(drawings) == 12
    assert max(len(drawing.encode()) for drawing in drawings) < 60_000


def test_charts_say_what_they_show_and_take_colours_from_the_page() -> None:
    page = _Reader(_page())
    for svg in page.found("svg"):
        assert svg["role"] == "img"
        assert svg["aria-labelledby"] != svg["aria-describedby"]
    assert len(page.found("desc")) == len(page.found("title")) - 1 == len(page.found("svg"))
    assert not re.search("#[0-9a-f]{6}|DejaVu", "".join(re.findall(r"<svg.*?</svg>", _page(), re.DOTALL)))
    assert "var(--accent)" in _page()
    assert "currentColor" in _page()


def test_the_three_strongest_attacks_are_drawn() -> None:
    drawn = re.search(r'<desc id="roc-chart-said">(.*?)</desc>', _page())
    assert drawn is not None
    names = [said.split(":")[0] for said in drawn[1].split("; ")]
    areas = {
        labels.label(name): attack["populations"]["everyone"]["auc"]
        for name, attack in _attacks()["membership"].items()
    }
    assert names == sorted(areas, key=lambda name: -areas[name]["value"])[:3]


def test_tables_have_captions_and_headers() -> None:
    page = _Reader(_page())
    figures = [figure for figure in page.found("figure") if "tabular" in (figure.get("class") or "")]
    assert len(figures) == len(page.found("table"))
    assert len(page.found("figcaption")) == len(page.found("figure"))
    assert {header["scope"] for header in page.found("th")} == {"row", "col"}
    assert page.headings.count("h1") == 1


def test_names_are_a_link_away_from_what_defines_them() -> None:
    evaluation = {**_small(), "fidelity": make_evaluation()["fidelity"]}
    evaluation["definitions"] = {"one_way": "One column.", "neighbours": "Balls.", "precision": "Of classifiers."}
    page = write_page(evaluation, None, [])
    for name in ("one-way tables, mean", "one-way tables, largest"):
        assert f'<a href="#term-1" title="One column.">{name}</a>' in page
    assert '<a href="#term-2" title="Balls.">precision</a>' in page
    assert "#term-3" not in page


def test_no_figure_reads_as_what_is_no_number() -> None:
    words = _Reader(_page()).words
    assert not re.search(r"\b(nan|None|inf|NaN|Infinity|Undefined|True|False)\b", words)


def test_the_same_arguments_give_the_same_page_and_are_left_as_they_were() -> None:
    given = make_evaluation(), make_certificate(), make_rounds()
    kept = copy.deepcopy(given)
    assert write_page(*given) == _page()
    assert given == kept


def test_settings_of_matplotlib_neither_change_nor_matter() -> None:
    import matplotlib as mpl  # noqa: PLC0415

    with mpl.rc_context({"font.size": 31, "axes.labelpad": 40, "xtick.major.size": 12}):
        before = dict(mpl.rcParams)
        drawn = charts.lines({"a": [(1, 2.0), (2, 3.0)]}, name="x", title="t", axes_labels=("s", "v"))
        assert dict(mpl.rcParams) == before
    assert drawn == charts.lines({"a": [(1, 2.0), (2, 3.0)]}, name="x", title="t", axes_labels=("s", "v"))


def test_what_is_no_evaluation_and_no_audience_is_refused() -> None:
    with pytest.raises(ValueError, match="schema"):
        write_page({"schema": "privshare.certificate/2"}, None, [])
    with pytest.raises(ValueError, match="audience"):
        write_page(_small(), None, [], audience="press")  # type: ignore[arg-type]


def test_matplotlib_is_loaded_by_charts_alone() -> None:
    said = "import sys, common.evaluation.page; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", said], check=False).returncode == 0


# --- names from outside


def test_names_from_outside_are_text() -> None:
    evaluation, certificate, rounds = make_evaluation(), make_certificate(), make_rounds()
    for key in ("name", "method", "level", "study"):
        evaluation[key] = HOSTILE
    evaluation["guarantee"]["statement"] = evaluation["guarantee"]["unit"] = HOSTILE
    evaluation["gates"][0] |= {"id": HOSTILE, "rule": HOSTILE, "reason": HOSTILE}
    evaluation["controls"][0] |= {"id": HOSTILE, "expected": HOSTILE}
    evaluation["definitions"] = {HOSTILE: HOSTILE, "auc": HOSTILE}
    evaluation["access"]["utility"] = {"visibility": HOSTILE, "cost": HOSTILE}
    attacks = evaluation["attacks"]
    attacks["membership"][HOSTILE] = {**attacks["membership"].pop("domias"), "adversary": HOSTILE}
    attacks["attributes"][HOSTILE] = attacks["attributes"]["ill"]
    for part in ("synthetic_vs_holdout", "floor_train_vs_holdout"):
        evaluation["fidelity"][part]["columns"][HOSTILE] = 0.5
        evaluation["windows"][part]["channels"][HOSTILE] = evaluation["windows"][part]["channels"]["ward"]
    evaluation["label_shares"]["requested"][HOSTILE] = 0.0
    evaluation["constraints"][HOSTILE] = 1
    evaluation["utility"]["tstr"][HOSTILE] = _scores(0.7)
    certificate["sites"][HOSTILE] = certificate["sites"].pop("west")
    certificate["files"][HOSTILE] = HOSTILE
    certificate["not_covered"].append(HOSTILE)
    rounds[0]["noise_stddev"][HOSTILE] = rounds[0]["noise_stddev"].pop("west")
    rounds.append({"step": "round", "round": 11, "losses": {HOSTILE: 1.0}})
    page = write_page(evaluation, certificate, rounds)
    read = _Reader(page)
    assert {tag for tag, _ in read.tags}.isdisjoint({"script", "img"})
    assert not [name for _, attributes in read.tags for name in attributes if name.startswith("on")]
    assert page.count("&lt;script&gt;") > 20
    assert HOSTILE in read.words


# --- what is not there


@pytest.mark.parametrize(
    ("part", "section"),
    [
        ("gates", "gates"),
        ("attacks", "attacks"),
        ("utility", "utility"),
        ("fidelity", "fidelity"),
        ("windows", "windows"),
        ("label_shares", "shares"),
        ("constraints", "shares"),
        ("controls", "controls"),
    ],
)
def test_a_part_that_is_not_there_has_no_section(part: str, section: str) -> None:
    evaluation = {**_small(), part: make_evaluation()[part]}
    assert section in {attributes.get("id") for attributes in _read(evaluation).found("section")}
    found = {attributes.get("id") for attributes in _read({**_small(), part: None}).found("section")}
    assert found == {"provenance"}


def test_a_page_of_next_to_nothing_says_that_nothing_is_known() -> None:
    words = _read(_small()).words
    for said in ("of unknown use", "without a certificate of privacy", "not attacked", "with no gate set"):
        assert said in words


def test_a_figure_without_value_prints_its_reason() -> None:
    words = _Reader(_page()).words
    for said in (REASON, "no categorical channel", "the channel is categorical", "the ceiling is not above the floor"):
        assert said in words
    assert "calibration_slope:" not in words
    assert "correlations, mean – no two numeric columns vary" in words  # noqa: RUF001
    assert "TPR at 0.1 % FPR: not resolvable with 2000 controls." in words


def test_attacks_that_could_not_be_tried_say_why() -> None:
    nothing = asdict(Figure(reason="no latent was searched"))
    attack = {
        "adversary": "nobody",
        "populations": {"everyone": dict.fromkeys(("auc", "advantage", "tpr_at_10"), nothing)},
        "roc": {"false_positive_rate": [], "true_positive_rate": []},
    }
    risk = {"members": nothing, "controls": nothing, "residual": nothing, "naive": None, "n": 0}
    page = _read({**_small(), "attacks": {"membership": {"latent": attack}, "inversion": risk}})
    assert "no latent was searched" in page.words
    assert page.found("svg") == []


# --- what stays at the site


def _site_only(*parts: str) -> dict[str, Any]:
    evaluation = make_evaluation()
    for part in parts:
        evaluation["access"][part] = {"visibility": "site", "cost": "a query on real rows"}
    return evaluation


def test_a_public_page_has_no_figure_that_stays_at_the_site_nor_a_sentence_about_one() -> None:
    evaluation = _site_only("utility", "attacks", "rows", "units", "label_shares", "stages", "gates")
    words = _read(evaluation, certificate=make_certificate(), rounds=make_rounds(), audience="public").words
    at_site = _read(evaluation, certificate=make_certificate(), rounds=make_rounds()).words
    for cut in ("0.860", "12,900", "7.77 %", "DOMIAS", "0.1 AUC below", "residual risk"):
        assert cut not in words
        assert cut in at_site
    for said in ("of a use that is not shown", "with attacks that are not shown", "with gates that are not shown"):
        assert said in words
    assert "This stays at the site." in words
    # What was published, or bought from held-out units, is still there.
    for said in ("12,000", "8.01 %", "an AUC of 0.770", "private by proof"):
        assert said in words


def test_without_a_word_on_access_nothing_of_real_rows_is_public() -> None:
    evaluation = make_evaluation()
    del evaluation["access"]
    kept, hidden = open_part(evaluation)
    assert kept.keys().isdisjoint({"utility", "fidelity", "windows", "attacks", "controls", "stages", "monitor"})
    assert kept["rows"] == {"synthetic": 12000}
    assert kept["gates"] == []
    assert {"utility", "attacks", "rows", "gates"} <= hidden


def test_a_part_that_access_does_not_name_is_as_private_as_the_most_private_that_it_does() -> None:
    evaluation = _site_only("attacks")
    del evaluation["access"]["fidelity"]
    kept, _ = open_part(evaluation)
    assert "fidelity" not in kept
    assert "utility" in kept
    del evaluation["attacks"], evaluation["access"]["attacks"]
    assert "fidelity" in open_part(evaluation)[0]


@pytest.mark.parametrize("entry", [{"visibility": "everybody"}, {"visibility": None}, {}])
def test_a_visibility_that_is_not_known_is_that_of_the_site(entry: dict[str, Any]) -> None:
    evaluation = make_evaluation()
    evaluation["access"]["utility"] = entry
    assert "utility" not in open_part(evaluation)[0]


def test_a_part_within_a_part_can_stay_at_the_site() -> None:
    evaluation = _site_only("attacks.membership", "attacks.nowhere.at_all")
    kept, hidden = open_part(evaluation)
    assert "membership" not in kept["attacks"]
    assert "attributes" in kept["attacks"]
    assert hidden >= {"attacks"}
    assert "membership" in evaluation["attacks"]


def test_a_gate_on_real_rows_is_as_private_as_they_are() -> None:
    gate = {"rule": "r", "threshold": 1.0, "value": 0.5, "passed": True}
    evaluation = _site_only("utility")
    evaluation["access"]["gates"] = {"visibility": "public", "cost": "none"}
    evaluation["gates"] = [
        {"id": "monitor_auc", "visibility": "public", **gate},
        {"id": "utility_gap", "visibility": "simulation", **gate},
        {"id": "own", "visibility": "site", **gate},
    ]
    kept, hidden = open_part(evaluation)
    assert [one["id"] for one in kept["gates"]] == ["monitor_auc"]
    assert "gates" in hidden
    evaluation["access"]["utility"]["visibility"] = "simulation"
    assert [one["id"] for one in open_part(evaluation)[0]["gates"]] == ["monitor_auc", "utility_gap"]


# --- budget


def test_each_event_is_charged_to_the_mechanism_that_released_it() -> None:
    words = _read(_small(), certificate=make_certificate(), rounds=make_rounds()).words
    for said in (
        "one-way tables training units 1 35.0 %",
        "statistical: pairs of columns training units 3 61.0 %",
        "neural: gradients training units 2 4.00 %",
        "monitor held-out units 2 100 %",
    ):
        assert said in words


def test_events_that_rounds_do_not_explain_are_charged_by_account() -> None:
    words = _read(_small(), certificate=make_certificate(), rounds=make_rounds()[1:]).words
    assert "releases on training units training units – 100 %" in words  # noqa: RUF001


def test_events_that_are_not_understood_leave_the_budget_out() -> None:
    certificate = make_certificate()
    certificate["sites"]["north"]["events"][0]["type"] = "laplace"
    page = _read(_small(), certificate=certificate, rounds=[])
    assert "Budget by mechanism" not in page.words
    assert "What each site spent" in page.words


def test_many_sites_share_two_columns_of_noise() -> None:
    rounds = make_rounds()
    for line in rounds:
        if "noise_stddev" in line:
            line["noise_stddev"] = {f"site_{at:02d}": 10.0 + at for at in range(30)}
    page = _read(_small(), rounds=rounds)
    assert "smallest largest" in page.words
    assert "site_07" not in page.words


# --- the four answers


def _useful(synthetic: float, real: float) -> verdict.Dial:
    scores = {"tstr": {"gradient_boosting": _scores(synthetic)}, "trtr": {"gradient_boosting": _scores(real)}}
    return verdict.usefulness({"utility": scores})


def test_usefulness_is_the_share_of_what_real_rows_teach() -> None:
    assert _useful(0.87, 0.9).word == "Yes"
    assert _useful(0.8, 0.9).word == "In part"
    assert _useful(0.69, 0.9).word == "Hardly"
    assert _useful(0.4, 0.9).sentence.endswith("That is 0 % of what real rows teach beyond chance.")
    assert _useful(0.51, 0.52).word == "Not telling"
    assert "75 %" in _useful(0.8, 0.9).sentence


def test_usefulness_speaks_of_the_classifier_that_gates_look_at() -> None:
    utility = make_evaluation()["utility"]
    assert verdict.usefulness({"utility": utility}).sentence.startswith("Gradient boosting")
    only = {side: {"other": utility[side]["gradient_boosting"]} for side in ("tstr", "trtr")}
    assert verdict.usefulness({"utility": only}).sentence.startswith("Other")
    assert verdict.usefulness({"utility": {"tstr": only["tstr"]}}).word == "Measured"
    released = verdict.usefulness({"utility": {"tstr": {"released": _scores(0.77)}, "trtr": utility["trtr"]}})
    assert released.word == "In part"
    assert "The released classifier" in released.sentence
    assert "gradient boosting of the sites' own rows, with 0.860" in released.sentence


def test_a_void_guarantee_proves_nothing() -> None:
    evaluation, certificate = make_evaluation(), make_certificate()
    assert verdict.proof(evaluation, certificate).word == "Yes"
    assert "73.1 %" in verdict.proof(evaluation, certificate).sentence
    certificate["void_because"] = "the noise is known"
    assert verdict.proof(evaluation, certificate).word == "Void"
    assert verdict.proof({**evaluation, "guarantee": None}, make_certificate()).word == "No"
    assert verdict.proof({}, make_certificate()).word == "Yes"
    assert verdict.proof({"method": "fl-dp"}, None).word == "Not stated"
    assert verdict.proof({"method": "gan"}, None).word == "No"


def _attacked(strength: float, **more: Any) -> verdict.Dial:
    games = {"weak": _membership(0.0, 1, "a"), "strong": _membership(strength, 2, "a")}
    return verdict.leaks({"attacks": {"membership": games, **more}})


def test_a_leak_is_what_an_interval_shows_for_all_attacks_together() -> None:
    assert _attacked(0.0).word == "No leak found"
    assert _attacked(0.5).word == "Leak found"
    assert "members" in _attacked(0.0).sentence
    assert _attacked(0.0, attributes={"ill": _residual(0.6, 0.3)}).word == "Leak found"
    assert _attacked(0.0, attributes={"ill": _residual(0.31, 0.3)}).word == "No leak found"
    assert verdict.leaks({}).word == "Not measured"


def test_a_residual_that_stands_out_alone_need_not_among_many() -> None:
    one = {"members": None, "controls": None, "residual": asdict(Figure(0.05, 0.002, 0.098)), "naive": None}
    none = {**one, "residual": asdict(Figure(0.0, -0.05, 0.05))}
    assert verdict.leaks({"attacks": {"attributes": {"a": one}}}).word == "Leak found"
    many = {str(at): none for at in range(20)} | {"a": one}
    assert verdict.leaks({"attacks": {"attributes": many}}).word == "No leak found"


def test_an_attack_above_the_ceiling_is_an_alarm() -> None:
    dial = _attacked(3.0)
    assert dial.word == "Contradicts the proof"
    assert dial.tone == "alarm"
    page = _read({**_small(), "attacks": {"membership": {"dcr": _membership(3.0, 1, "a")}}})
    assert "above the ceiling" in page.words


def test_no_leak_counts_only_if_the_controls_did() -> None:
    evaluation = {
        "attacks": {"membership": {"dcr": _membership(0.0, 1, "a")}},
        "controls": [{"id": "copier", "passed": False}],
    }
    assert verdict.leaks(evaluation).word == "Not known"
    assert "copier" in verdict.leaks(evaluation).sentence


def test_gates_are_counted() -> None:
    gates = make_evaluation()["gates"]
    assert verdict.gating({"gates": gates}).clause == "with both gates open"
    gates[0]["pass"] = False
    assert verdict.gating({"gates": gates}).word == "1 of 2 closed"
    assert "utility gap" in verdict.gating({"gates": gates}).sentence
    assert verdict.gating({"gates": [{"id": "a", "passed": True}]}).tone == "good"
    assert "fails" in _read({**_small(), "gates": gates}).words


def test_gates_that_may_be_shown_are_not_taken_for_all() -> None:
    shown = {"gates": [{"id": "monitor_auc", "passed": True}]}
    assert verdict.dials(shown, None, hidden={"gates"})[3].sentence.endswith("Others stay at the site.")
    assert verdict.dials(shown, None)[3].sentence.endswith("monitor AUC.")


def test_the_sentence_names_what_was_made_and_how() -> None:
    evaluation, certificate = make_evaluation(), make_certificate()
    said = verdict.sentence(evaluation, certificate)
    assert said.startswith("12,000 synthetic rows for the study toy, made by privshare from the tables of 3 sites: ")
    assert "nearly as useful" not in said
    assert verdict.sentence({**evaluation, "method": "dp-lr"}, None).startswith(
        "A classifier for the study toy, trained"
    )
    assert verdict.sentence({**evaluation, "method": "real"}, None).startswith("Real rows for the study toy")


# --- numbers


def test_a_promise_is_never_printed_stronger_than_it_is() -> None:
    for value in (0.1, 0.99999999956, 1.0001, 2.34567, 9.99951, 10.0, 123.456, 1e-3):
        assert float(numerals.epsilon(value)) >= value * (1 - 1e-8)
        assert float(numerals.epsilon(value)) <= value * 1.001 + 1e-9
    assert numerals.delta(1.234567e-6).startswith("1.24")


def test_numbers_that_are_none_are_a_dash() -> None:
    for nothing in (None, math.nan, math.inf, "text", True):
        assert numerals.number(nothing) == numerals.NOTHING
        assert numerals.percent(nothing) == numerals.NOTHING
    assert numerals.figure(0.5, None, 0.6) == numerals.figure(0.5, math.nan, 0.6) == ("0.500", "")
    assert numerals.figure(-0.0001, -0.2, 0.1)[0] == "0.000"
    assert numerals.figure(0.0, 0.0, 3e-5) == ("0", f"(0-{numerals.number(3e-5)})")


# --- charts


def test_a_chart_that_has_nothing_below_a_rate_begins_there() -> None:
    curve = ([1e-4, 1e-3, 1e-2, 0.1, 1.0], [0.0, 1e-3, 1e-2, 0.1, 1.0])
    drawn = charts.roc({"a": curve}, name="r", title="t", guarantee=(1.0, 1e-6), least=1e-3)
    assert "finds 0.1 of the members at a false positive rate of 0.1" in drawn
    assert ">0.0001<" not in drawn
    assert ">0.01<" in drawn


def test_long_labels_are_cut_in_drawings_and_whole_in_words() -> None:
    name = "a_column_of_a_name_that_goes_on_for_ever"
    drawn = charts.forest([charts.Row(name, {"": charts.Mark(0.2)})], name="f", title="t", axis="a")
    assert f"{name}: 0.2" in drawn
    assert f">{name}<" not in drawn


def test_labels_that_no_drawing_can_hold_are_drawn_all_the_same() -> None:
    drawn = charts.forest([charts.Row("a\x00b\x1b$c_$", {"": charts.Mark(0.2)})], name="f", title="t", axis="a")
    assert ">a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}$c_$<" in drawn


def test_sites_that_spent_nothing_have_no_chart_of_it() -> None:
    certificate = make_certificate()
    for site in certificate["sites"].values():
        site["events"] = []
    page = _read(_small(), certificate=certificate)
    assert page.found("svg") == []
    assert "What each site spent" in page.words


# --- in a browser

_BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(_BROWSER is None, reason="no browser is installed")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_the_page_without_complaint_and_without_scrolling_sideways(width: int, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(_page(), encoding="utf-8")
    # The page itself runs nothing: what measures it stands around it.
    (tmp_path / "around.html").write_text(
        f"<!doctype html><title>not loaded</title><iframe id=page width={width} height=900 src=report.html></iframe>"
        "<script>page.onload = () => { const root = page.contentDocument.documentElement;"
        "const drawings = page.contentDocument.querySelectorAll('svg').length;"
        "document.title = `${root.clientWidth} ${root.scrollWidth} ${drawings}`;"
        "}</script>",
        encoding="utf-8",
    )
    ran = subprocess.run(
        [
            str(_BROWSER),
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr"),
            *("--allow-file-access-from-files", "--virtual-time-budget=10000", "--dump-dom"),
            f"--user-data-dir={tmp_path / 'profile'}",
            (tmp_path / "around.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    measured = re.search(r"<title>(\d+) (\d+) (\d+)</title>", ran.stdout)
    if measured is None and ran.returncode != 0:
        pytest.skip("the browser does not start here")
    assert measured is not None, ran.stderr
    inside, whole, drawings = map(int, measured.groups())
    assert 0 < inside <= width
    assert whole <= inside
    assert drawings == 12
    assert "CONSOLE" not in ran.stderr
