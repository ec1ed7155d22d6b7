"""A small site for tests: its files, the requests that it may get, and what it says and keeps."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from client.policy import POLICY_SCHEMA, load_site_settings, sign_policy
from client.site import Site
from common.data.encoding import make_grids
from common.data.histograms import histogram_layout
from common.data.queries import catalogue, layout_of
from common.data.tables import TableLayout, one_way, sizes_of
from common.files import write_private
from common.models.generator import initialise
from common.models.monitor import BANDS, score_layout
from common.models.neural import critic_parameters, initialise_critic
from common.models.targets import Groups, Target, Targets, table_shapes
from common.models.training import parameters_of
from common.privacy.events import GaussianEvent
from common.privacy.ledger import Charge, read_ledger
from common.privacy.noise import NoiseSource, SeededNoise
from common.privacy.signatures import SigningKey
from common.privacy.witness import Attestation, Statement
from common.study import Study, parse_study
from common.wire.messages import KINDS, Reply, Request
from common.wire.packing import (
    CRITIC,
    GENERATOR,
    critic_shape_of,
    pack,
    pack_bins,
    pack_groups,
    pack_targets,
    shape_of,
)

KEY = bytes(range(32))
"""Of the choices about units."""
IDENTITY = SigningKey.from_seed(bytes(range(32, 64)))
"""Of the site north."""
COORDINATOR = SigningKey.from_seed(b"coordinator".ljust(32, b"."))
PEERS = {name: SigningKey.from_seed(name.encode().ljust(32, b".")) for name in ("east", "west")}
TODAY = date(2030, 5, 17)
# What spends; the last two on held-out units.
MEASUREMENTS = ("one_way", "tables", "embedding", "critic", "monitor", "verdict")
HELD_OUT = ("monitor", "verdict")
WITHOUT_BINS = ("describe", "witness", "confirm", "masks", "one_way")
WITH_BINS = sorted(set(KINDS) - set(WITHOUT_BINS))
PRIVACY = {"epsilon": 1, "delta": 1e-5, "holdout": 0.3}
STUDY: dict[str, Any] = {
    "schema": "privshare.study/1",
    "name": "toy",
    "unit": {"name": "patient", "key": "patient", "max_records": 2, "surplus": "drop"},
    "label": {"column": "ill", "positive": "yes"},
    "columns": {
        "colour": {"type": "categorical", "categories": ["red", "green", "blue"], "missing": True},
        "age": {"type": "integer", "min": 0, "max": 99, "cells": 20, "sparse": True, "missing": True},
        "amount": {"type": "continuous", "min": 0, "max": 10, "cells": 8},
        "ill": {"type": "categorical", "categories": ["no", "yes"]},
    },
    "privacy": PRIVACY,
    "rounds": {"local_steps": 3},
    "model": {"latent": 2, "width": 8, "blocks": 1, "batch": 8},
    "critic": {"width": 4},
}
# Cell to bin, a map a column: 3 colours and missing, 20 cells of age and missing, 8 cells of amount.
BINS = [np.array([0, 1, 1, 2]), np.append(np.arange(20) // 5, 4), np.arange(8) // 4]
SIZES = (3, 5, 2)
WINDOWED: dict[str, Any] = {
    **STUDY,
    "unit": {"name": "patient", "key": "patient"},
    "windows": {
        "layout": "events",
        "length": 4,
        "empty": "allow",
        "longer": "first",
        "time": {"column": "minute"},
        "channels": {
            "pulse": {"type": "integer", "min": 0, "max": 199, "cells": 20, "missing": True},
            "drug": {"type": "categorical", "categories": ["a", "b", "c"]},
        },
    },
}
# Of the channels: 20 cells of the pulse and missing, 3 drugs.
CHANNEL_BINS = [np.append(np.arange(20) // 10, 2), np.array([0, 1, 1])]

Row = tuple[str, ...]


def sampled(study: Mapping[str, Any], rate: float = 0.5) -> dict[str, Any]:
    """A study whose critic looks at some of the units each time, and whose accountant counts that."""
    return {
        **study,
        "privacy": {**study["privacy"], "accountant": "rdp"},
        "critic": {**study["critic"], "sampling": rate},
    }


def local(study: Mapping[str, Any]) -> dict[str, Any]:
    """A study whose discriminators stay at the sites."""
    return {**study, "discriminators": {"scope": "local"}}


def hidden(study: Mapping[str, Any]) -> dict[str, Any]:
    """A study whose releases are masked."""
    return {**study, "privacy": {**study["privacy"], "noise_trust": "masked"}}


def make_rows(units: int = 40) -> list[Row]:
    """Records of so many patients; the first owns most of them."""
    random = np.random.default_rng(0)
    owners = [*range(units), *([0] * units)]
    return [
        (
            f"p{owner}",
            str(random.choice(["red", "green", "blue", ""])),
            str(random.choice([3, 50, 99, ""])),
            f"{10 * random.random():.2f}",
            str(random.choice(["no", "yes"])),
        )
        for owner in owners
    ]


ROWS = make_rows()
# One row a patient, as a study with windows has it.
SINGLE = list({row[0]: row for row in ROWS}.values())
HEADER = "patient,colour,age,amount,ill"
SERIES = "patient,minute,pulse,drug"


def make_series(rows: Sequence[Sequence[str]]) -> list[Row]:
    """Rows of the long table of some patients, none to five each; a patient's own depend on nobody else."""
    found: list[Row] = []
    for row in rows:
        random = np.random.default_rng(list(row[0].encode()))
        for minute in range(int(random.integers(6))):
            pulse = str(random.choice([40, 80, 199, ""]))
            found.append((row[0], str(minute * 7), pulse, str(random.choice(["a", "b", "c"]))))
    return found


@dataclass(frozen=True)
class Home:
    """The folder of one site, and what a test asks of it; `maps` are its bins where they are not the usual ones."""

    folder: Path
    study: Study
    maps: list[np.ndarray] | None = None

    @property
    def bins(self) -> list[np.ndarray]:
        """The map from cells to bins of each column and channel."""
        if self.maps is not None:
            return self.maps
        if self.study.windows is None:
            return BINS
        steps = make_grids(self.study.measured)[-1]
        return [*BINS, np.arange(steps.n_cells), *CHANNEL_BINS]

    @property
    def tables(self) -> int:
        """Tables in the study's catalogue."""
        return len(catalogue(len(self.study.measured), self.study.windows))

    @property
    def score_weights(self) -> int:
        """Numbers in the weights of a linear score."""
        return sum(sizes_of(self.bins)) + BANDS - 1

    def open(self, noise: NoiseSource | None = None, *, today: Callable[[], date] = lambda: TODAY) -> Site:
        """The site, on a day."""
        return Site(
            load_site_settings(self.folder / "site.yaml"),
            noise=noise or SeededNoise(b"seed"),
            device=torch.device("cpu"),
            today=today,
        )

    def ask(self, kind: str, *, name: str = "", run: str = "run-1", **changes: Any) -> Request:
        """A request that is right, unless the changes say otherwise; None takes an array away."""
        options: dict[str, Any] = {"share": 0.25} if kind in MEASUREMENTS else {}
        arrays: dict[str, np.ndarray] = {} if kind in WITHOUT_BINS else pack_bins(self.bins)
        shape = shape_of(self.study, sizes_of(self.bins))
        if kind == "witness":
            options = {"heads": [], "nonces": {}}
        if kind == "confirm":
            options = {"attestations": []}
        if kind == "masks":
            options = {"announcements": []}
        if kind == "tables":
            arrays |= {"tables": np.arange(self.tables), "emphasis": np.ones(self.tables, dtype=np.int64)}
        if kind == "monitor":
            arrays["weights"] = np.linspace(-1, 1, self.score_weights)
        if kind in ("critic", "verdict") and self.is_local:
            arrays |= pack(GENERATOR, parameters_of(initialise(shape, seed=0)))
            options |= {"seed": 7} | ({"step": 0} if kind == "critic" else {})
        elif kind in ("critic", "verdict"):
            critic = initialise_critic(critic_shape_of(self.study, shape), seed=0)
            arrays |= pack(CRITIC, critic_parameters(critic))
        if kind == "train":
            groups = [np.arange(size) for size in sizes_of(self.bins)]
            arrays |= pack(GENERATOR, parameters_of(initialise(shape, seed=0)))
            arrays |= pack_groups(groups) if self.is_local else pack_targets(self.targets(groups))
            options = {"steps": 2, "learning_rates": [1e-3, 5e-4], "seed": 7}
        arrays |= changes.get("arrays", {})
        return Request(
            kind,
            changes.get("study", self.study.digest()),
            run,
            name or kind,
            {**options, **changes.get("options", {})},
            {name: array for name, array in arrays.items() if array is not None},
        )

    @property
    def is_local(self) -> bool:
        """Whether discriminators stay at the site."""
        return self.study.discriminators.scope == "local"

    def targets(self, groups: list[np.ndarray]) -> Targets:
        """Targets of every table, all alike."""
        joined = Groups.of(groups, len(self.study.measured))
        shapes = table_shapes(shape_of(self.study, sizes_of(self.bins)), joined)
        tables = {str(name): Target(np.ones((2, *shape)), np.ones(shape)) for name, shape in shapes.items()}
        return Targets(tables, np.ones(2), joined)

    @property
    def ledger(self) -> Path:
        """The file."""
        return self.folder / "ledger.jsonl"

    @property
    def key(self) -> Path:
        """The file of the secret that choices about units are keyed by."""
        return self.folder / "state" / "site.key"

    @property
    def charges(self) -> list[Charge]:
        """What the study was charged, in order."""
        return list(read_ledger(self.ledger).charges[self.study.digest()].values())

    @property
    def charged(self) -> list[str]:
        """The requests that were charged."""
        return [charge.request for charge in self.charges]

    @property
    def kept(self) -> dict[str, np.ndarray]:
        """Releases that stayed at the site, by request."""
        paths = sorted((self.folder / "state" / "releases").glob("*.request"))
        return {
            Request.decode(path.read_bytes()).identity: Reply.decode(path.with_suffix(".reply").read_bytes()).arrays[
                "counts"
            ]
            for path in paths
        }

    @property
    def state(self) -> dict[str, bytes]:
        """Every file of the site's own."""
        folder = self.folder / "state"
        return {
            str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
        }

    @property
    def sealed(self) -> dict[str, bytes]:
        """Replies by the names of their files."""
        replies = self.folder / "state" / "replies"
        return {path.name: path.read_bytes() for path in sorted(replies.iterdir())} if replies.exists() else {}


def make_home(
    folder: Path,
    rows: Sequence[Sequence[str]] = ROWS,
    *,
    header: str | None = HEADER,
    series: Sequence[Sequence[str]] | None = None,
    study: Mapping[str, Any] | None = None,
    site: str = "north",
    identity: SigningKey = IDENTITY,
    key: bytes | None = KEY,
    peers: Collection[str] = (),
    **policy: Any,
) -> Home:
    """Write a site's files: site.yaml, the study, the table, the long one if there are windows, the policy, the keys.

    Args:
        folder: of the site.
        rows: of the table.
        header: its first line.
        series: rows of the long table; `make_series` of the rows by default.
        study: as in its file.
        site: its name.
        identity: what it signs with.
        key: what its choices about units are keyed by; None for none yet.
        peers: some of `PEERS`.
        policy: what policy.yaml says otherwise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plain = dict(study or STUDY)
    approved = parse_study(plain, source="test")
    settings: dict[str, Any] = {
        "site": site,
        "source": {"type": "csv", "table": str(folder / "table.csv")},
        "study": str(folder / "study.yaml"),
        "policy": str(folder / "policy.yaml"),
        "ledger": str(folder / "ledger.jsonl"),
        "state": str(folder / "state"),
    }
    if approved.windows is not None:
        long = [SERIES, *map(",".join, make_series(rows) if series is None else series)]
        (folder / "series.csv").write_text("\n".join(long) + "\n", encoding="utf-8", errors="surrogateescape")
        settings["source"]["series"] = str(folder / "series.csv")
    lines = ([header] if header is not None else []) + [",".join(row) for row in rows]
    (folder / "table.csv").write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")
    write_yaml(folder / "study.yaml", plain)
    write_yaml(folder / "site.yaml", settings)
    home = Home(folder, approved)
    for path, secret in ((home.key, key), (folder / "state" / "identity.pem", identity.as_pem())):
        if secret is not None:
            path.unlink(missing_ok=True)
            write_private(path, secret)
    write_policy(
        home,
        identity,
        site=site,
        approved=approved.digest(),
        peers={peer: PEERS[peer].public for peer in peers},
        **policy,
    )
    return home


def write_policy(home: Home, identity: SigningKey = IDENTITY, **changes: Any) -> None:
    """Write and sign a policy that allows everything but what the changes say."""
    allowed: dict[str, Any] = {
        "schema": POLICY_SCHEMA,
        "site": "north",
        "asset": "ward",
        "approved": home.study.digest(),
        "max_epsilon": 10,
        "max_delta": 0.001,
        "total_epsilon": 10,
        "total_delta": 0.001,
        "coordinator": COORDINATOR.public,
    }
    write_yaml(home.folder / "policy.yaml", {**allowed, **changes})
    sign_policy(home.folder / "policy.yaml", identity)


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping, its order kept."""
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False), encoding="utf-8")


def make_either(folder: Path, which: str) -> Home:
    """A site of a study without windows ("records"), or of one with them."""
    return make_home(folder) if which == "records" else make_home(folder, SINGLE, study=WINDOWED)


def attested(
    facts: Mapping[str, Any], *, nonce: str, witnesses: Collection[str] = tuple(PEERS)
) -> list[dict[str, Any]]:
    """What peers attest, for a nonce, of the head that a reply states."""
    head = Statement.from_dict(facts["ledger_head"])
    found = [Attestation.of(peer, head.site, head, nonce).signed(PEERS[peer]) for peer in witnesses]
    return [asdict(one) for one in found]


def confirm(home: Home, site: Site, *, witnesses: Collection[str] = tuple(PEERS)) -> int:
    """Have peers confirm a site's newest head; how many have, says the site."""
    facts = Reply.decode(site.handle(home.ask("describe").encode())).facts
    given = attested(facts, nonce=facts["nonce"], witnesses=witnesses)
    reply = Reply.decode(site.handle(home.ask("confirm", options={"attestations": given}).encode()))
    return int(reply.facts["confirmed"])


@dataclass
class Clock:
    """What day it is."""

    day: date = TODAY

    def __call__(self) -> date:
        """The day."""
        return self.day


@dataclass
class Forbidden:
    """A source of noise that no request may reach."""

    kind: str = "test-seed"
    asked: list[str] = field(default_factory=list)

    def draw(self, size: int, *, noise_stddev: float, context: str) -> np.ndarray:
        """Never."""
        self.asked.append(context)
        raise AssertionError(f"{context}: noise was drawn")

    def sample(self, size: int, *, rate: float, context: str) -> np.ndarray:
        """Never either."""
        self.asked.append(context)
        raise AssertionError(f"{context}: units were sampled")


def forbidden() -> NoiseSource:
    """A `Forbidden` source, for whoever does not ask it what happened."""
    return Forbidden()  # type: ignore[return-value]


def refused(body: bytes) -> str | None:
    """The rule by which a reply refuses; such a reply holds nothing else."""
    reply = Reply.decode(body)
    assert reply.site == "north"
    if reply.refused is not None:
        assert dict(reply.facts) == {}
        assert dict(reply.arrays) == {}
    return reply.refused


def layouts(home: Home) -> dict[str, TableLayout]:
    """Of each measurement that counts."""
    study, sizes = home.study, sizes_of(home.bins)
    heads = 1 if study.windows is None else 2
    return {
        "one_way": histogram_layout(make_grids(study.measured), 2, make_grids(study.channels)),
        "tables": layout_of(catalogue(len(study.measured), study.windows), sizes, 2),
        "monitor": score_layout(),
        "verdict": one_way([2] * heads, 1),
    }


def below_noise(reply: Reply, request: str) -> np.ndarray:
    """The sums of a release: what came less the noise, which these tests know."""
    event = GaussianEvent.from_dict(dict(reply.facts["event"]))
    sums: np.ndarray = reply.arrays["counts"] - SeededNoise(b"seed").draw(
        event.cells, noise_stddev=event.noise_stddev, context=request
    )
    return sums
