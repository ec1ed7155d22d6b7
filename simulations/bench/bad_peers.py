"""What dishonest sites do to a published table: `python simulations/bench/bad_peers.py releases|generators`.

A toy federation, real coordinator and sites in one process; bad sites change what they send before they sign it. The
distance is the mean total variation over all pairs of columns from the honest sites' population; the AUC is that of a
logistic regression which learns from the published rows and is asked on fresh ones.
"""

import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Final, Literal

import numpy as np
import pandas as pd
import torch
import typer
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from client.door import Door
from client.simulated_site import make_site_folder
from client.site import Site, open_site
from common.commands import Commands
from common.privacy.events import GaussianEvent
from common.privacy.noise import SeededNoise
from common.study import load_study
from common.synthesis.rows import draw_units
from common.wire.messages import Reply, Request
from server.aggregation import REACH
from server.plausibility import DEVIATIONS, Form
from server.publish import release_of
from server.rounds import Coordinator
from simulations.federation import credentials_of

app = Commands()

_UNITS: Final = 250
"""Of each site."""
_ROWS: Final = 20_000
_STUDY: Final = """\
schema: privshare.study/1
name: toy
unit: {name: person, key: person}
label: {column: ill, positive: "yes"}
columns:
  a: {type: categorical, categories: [p, q, r, s]}
  b: {type: categorical, categories: [p, q, r, s]}
  c: {type: categorical, categories: [p, q, r]}
  d: {type: categorical, categories: [p, q, r, s, t, u]}
  ill: {type: categorical, categories: ["no", "yes"]}
privacy: {epsilon: 4, delta: 1.0e-5, holdout: 0}
discriminators: {scope: %(scope)s}
noise: {rounds: 1, schedule: fixed}
rounds:
  {count: 6, trainers: %(sites)d, local_steps: 20, refine_steps: 20, quorum: 1, site_units: 500,
  aggregation: %(aggregation)s}
model: {latent: 4, width: 32, blocks: 1, batch: 128}
"""
_CODES: Final = {"a": 4, "b": 4, "c": 3, "d": 6, "ill": 2}
Spoil = Callable[[Request, Reply], Reply]
"""Of what a site was asked and what it would say: what it says instead."""


@dataclass(frozen=True)
class Attack:
    """What bad sites do: to what they send, or to their rows, for so many times the units of an honest site."""

    spoil: Spoil | None = None
    poisoned: bool = False
    units: int = _UNITS


def _releases(change: Callable[[np.ndarray, float], np.ndarray]) -> Attack:
    """Change counts, told the noise of a cell in grid units."""

    def spoil(_: Request, reply: Reply) -> Reply:
        if "counts" not in reply.arrays:
            return reply
        event = GaussianEvent.from_dict(dict(reply.facts["event"]))
        return replace(reply, arrays={"counts": change(reply.arrays["counts"], event.noise_stddev)})

    return Attack(spoil)


def _generators(change: Callable[[np.ndarray, np.ndarray, float], np.ndarray]) -> Attack:
    """Change each parameter's move, told what was sent and how far it may move."""

    def spoil(request: Request, reply: Reply) -> Reply:
        if request.kind != "train":
            return reply
        reach = 0.999 * REACH * request.options["steps"] * max(request.options["learning_rates"])
        arrays = {}
        for name, array in reply.arrays.items():
            sent = request.arrays[name]
            moved = np.clip(change(sent, array - sent, reach), -reach, reach)
            arrays[name] = (sent + moved).astype(np.float32)
        return replace(reply, arrays=arrays)

    return Attack(spoil)


def _random(counts: np.ndarray, _: float) -> np.ndarray:
    most = int(np.abs(counts).max()) + 1
    return np.random.default_rng(len(counts)).integers(-most, most, len(counts))


def _within(counts: np.ndarray, noise: float) -> np.ndarray:
    """As far as the checks let through, the same at every bad site."""
    return np.asarray(counts + np.rint(2.5 * noise * (-1.0) ** np.arange(len(counts))).astype(np.int64))


def _direction(sent: np.ndarray, reach: float) -> np.ndarray:
    signs: np.ndarray = np.random.default_rng(sent.size).choice([-1.0, 1.0], sent.shape)
    return reach * signs


ATTACKS: Final[dict[str, dict[str, Attack]]] = {
    "releases": {
        "none": Attack(),
        "sign flip": _releases(lambda counts, _: -counts),
        "ten times": _releases(lambda counts, _: 10 * counts),
        "random": _releases(_random),
        "colluding, within the checks": _releases(_within),
        "poisoned rows": Attack(poisoned=True),
        "poisoned rows, ten times as many": Attack(poisoned=True, units=10 * _UNITS),
    },
    "generators": {
        "none": Attack(),
        "sign flip": _generators(lambda _, moved, __: -moved),
        "sign flip, ten times": _generators(lambda _, moved, __: -10 * moved),
        "random": _generators(
            lambda sent, _, reach: np.random.default_rng(sent.size + int(1e6 * reach)).uniform(
                -reach, reach, sent.shape
            )
        ),
        "colluding": _generators(lambda sent, _, reach: _direction(sent, reach)),
    },
}


class Unguarded(Coordinator):
    """Believes every count and every event; what the checks are compared with."""

    def _check_counts(self, site: str, kind: str, reply: Reply, event: GaussianEvent, form: Form) -> None:
        pass


def most_moved(*, units: float, share: float, cells: int, classes: int, event: GaussianEvent, stddev: float) -> float:
    """The most that one site can move the shares of a summed table, in total variation, and pass the checks.

    Let x be what the site adds, T its total and S that of the others: the shares move by at most (|x|_1 + |T|) / 2 over
    S + T, and |x|_1 is T and twice what lies below zero. The rules bound T, and the norm of what lies below zero.

    Args:
        units: that the site states.
        share: these units in those of all sites.
        cells: of the table.
        classes: of the label.
        event: of the release.
        stddev: of the units that the site states in one class.
    """
    noise = event.noise_stddev / event.scale
    room = classes * DEVIATIONS * np.sqrt((noise**2 + 1 / 12 / event.scale**2) * cells / classes + stddev**2)
    below = np.sqrt(cells) * (noise * (np.sqrt(cells / 2) + DEVIATIONS) + np.sqrt(cells) / 2 / event.scale)
    return share * float(1 + (room + below) / units)


def population(rows: int, random: np.random.Generator, *, shift: float = 0.0) -> pd.DataFrame:
    """Units whose columns hang together and tell of the label, as codes; `shift` is what sites differ by."""
    hidden = random.normal(size=(rows, 2)) + shift
    noisy = hidden[:, [0, 1, 0, 1]] + 0.7 * random.normal(size=(rows, 4))
    codes = {
        name: np.digitize(noisy[:, at], np.linspace(-1.2, 1.2, _CODES[name] - 1)) for at, name in enumerate("abcd")
    }
    ill = random.random(rows) < 1 / (1 + np.exp(1 - 2 * hidden[:, 0] - hidden[:, 1]))
    return pd.DataFrame({**codes, "ill": ill.astype(int)})


def _poison(rows: int) -> pd.DataFrame:
    """All units alike, in the rarest cell."""
    return pd.DataFrame({name: [codes - 1 if name != "a" else 0] * rows for name, codes in _CODES.items()})


def _text(codes: pd.DataFrame, site: str) -> str:
    named = pd.DataFrame({name: [("no", "yes")[one] for one in codes["ill"]] if name == "ill" else
                          ["pqrstu"[one] for one in codes[name]] for name in _CODES})  # fmt: skip
    named.insert(0, "person", [f"{site}-{at}" for at in range(len(named))])
    return named.to_csv(index=False)


class _InProcess:
    """Doors of sites, asked by calls."""

    def __init__(self, doors: Mapping[str, Door]) -> None:
        self._doors = doors

    def sites(self) -> list[str]:
        return list(self._doors)

    def ask(self, bodies: Mapping[str, bytes]) -> dict[str, bytes]:
        return {site: self._doors[site].answer(body) for site, body in bodies.items()}


def _dishonest(spoil: Spoil) -> type[Site]:
    class Dishonest(Site):
        """Says something else than it should, and signs it."""

        def handle(self, body: bytes) -> bytes:
            reply = Reply.decode(super().handle(body))
            return (reply if reply.refused else spoil(Request.decode(body), reply)).encode()

    return Dishonest


@dataclass(frozen=True)
class Outcome:
    """What was published: its distance and its AUC, and how many of the bad sites were refused."""

    distance: float
    auc: float
    refused: int


def run(
    attack: Attack,
    *,
    sites: int,
    bad: int,
    seed: int,
    aggregation: str,
    scope: str,
    guarded: bool,
    uneven: float,
    folder: Path,
) -> Outcome:
    """One run of the federation; the first sites are bad."""
    torch.set_num_threads(1)
    path = folder / "study.yaml"
    path.write_text(_STUDY % {"scope": scope, "sites": sites, "aggregation": aggregation})
    study = load_study(path)
    random = np.random.default_rng(seed)
    names = [f"s{at:02}" for at in range(sites)]
    shifts = np.linspace(-uneven, uneven, sites)
    doors: dict[str, Door] = {}
    for at, name in enumerate(names):
        rows = population(_UNITS, random, shift=shifts[at])
        is_bad = at < bad
        made = make_site_folder(
            name,
            path,
            study,
            {"table": _text(_poison(attack.units) if is_bad and attack.poisoned else rows, name)},
            private=folder / "private",
            kept=folder / "kept",
            seed=seed,
            peers=set(names) - {name},
            witnesses=1,
        )
        kind = _dishonest(attack.spoil) if is_bad and attack.spoil else Site
        doors[name] = Door(open_site(made.settings, noise=SeededNoise.of_site(name, seed), site=kind))
    refused: set[str] = set()
    trained = (Coordinator if guarded else Unguarded)(
        study,
        folder=folder,
        run="run",
        seed=seed,
        credentials=credentials_of(names, seed=seed),
        device=torch.device("cpu"),
        on_step=lambda line: refused.update(line["sites"] if line["step"] == "rejected" else ()),
    ).run(_InProcess(doors))
    drawn = draw_units(release_of(trained, study), rows=_ROWS, seed=seed, device=torch.device("cpu"))
    codes = pd.DataFrame({name: drawn.records[name].cat.codes for name in _CODES})
    fresh = np.random.default_rng(12345)
    truth = pd.concat([population(_ROWS // sites, fresh, shift=shift) for shift in shifts], ignore_index=True)
    return Outcome(_distance(codes, truth), _auc(codes, truth), len(refused))


def _distance(found: pd.DataFrame, truth: pd.DataFrame) -> float:
    def shares(table: pd.DataFrame, pair: tuple[str, str]) -> np.ndarray:
        sizes = tuple(_CODES[name] for name in pair)
        flat = np.ravel_multi_index(tuple(table[name].to_numpy(np.int64) for name in pair), sizes)
        return np.bincount(flat, minlength=int(np.prod(sizes))) / len(table)

    return fmean(float(np.abs(shares(found, pair) - shares(truth, pair)).sum() / 2) for pair in combinations(_CODES, 2))


def _auc(found: pd.DataFrame, truth: pd.DataFrame) -> float:
    if found["ill"].nunique() < 2:
        return 0.5

    def features(table: pd.DataFrame) -> np.ndarray:
        return np.concatenate([np.eye(codes)[table[name]] for name, codes in _CODES.items() if name != "ill"], axis=1)

    model = LogisticRegression(max_iter=200).fit(features(found), found["ill"])
    return float(roc_auc_score(truth["ill"], model.predict_proba(features(truth))[:, 1]))


@app.command()
def main(
    what: Annotated[Literal["releases", "generators"], typer.Argument(help="What bad sites lie about.")],
    *,
    sites: Annotated[list[int] | None, typer.Option(help="Sites; repeat it.")] = None,
    bad: Annotated[list[int] | None, typer.Option(help="Bad ones of each; as many times as --sites.")] = None,
    scope: Annotated[Literal["shared", "local"], typer.Option(help="discriminators.scope of the study.")] = "shared",
    attacks: Annotated[list[str] | None, typer.Option("--attack", help="Some alone; repeat it.")] = None,
    uneven: Annotated[float, typer.Option(help="By how much the sites' populations are shifted, at most.")] = 0.0,
    seeds: Annotated[int, typer.Option(help="Runs of each kind.")] = 2,
) -> None:
    """Distance and AUC of the published table, with and without bad sites, with and without what is done about them."""
    guards = {"releases": [("mean", False), ("mean", True)], "generators": [("mean", True), ("median", True)]}[what]
    table = Table("sites", "bad", "attack", "aggregation", "checks", "refused", "distance", "AUC")
    for count, wrong in zip(sites or [4, 8, 16], bad or [1, 3, 7], strict=True):
        for name in attacks or ATTACKS[what]:
            for aggregation, guarded in guards:
                found: list[Outcome] = []
                for seed in range(seeds):
                    with tempfile.TemporaryDirectory() as folder:
                        own = wrong if name != "none" else 0
                        found.append(
                            run(
                                ATTACKS[what][name], sites=count, bad=own, seed=seed, aggregation=aggregation,
                                scope=scope, guarded=guarded, uneven=uneven, folder=Path(folder),
                            )
                        )  # fmt: skip
                table.add_row(
                    str(count),
                    str(own),
                    name,
                    aggregation,
                    "yes" if guarded else "no",
                    f"{fmean(one.refused for one in found):g}",
                    _said([one.distance for one in found]),
                    _said([one.auc for one in found]),
                )
    Console(width=140).print(table)


def _said(values: Collection[float]) -> str:
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


if __name__ == "__main__":
    app()
