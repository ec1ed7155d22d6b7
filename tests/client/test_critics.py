"""A neural critic that stays at its site: what it learns from, what it is heard of, and what it does not look at."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.releases import OwnReleases
from client.site import Site
from common.data.tables import sizes_of
from common.models.critics import draw_fakes
from common.models.generator import initialise
from common.models.neural import (
    GRADIENT_SCALE,
    NeuralCritic,
    clipped_factors,
    critic_optimiser,
    critic_parameters,
    improve,
    initialise_critic,
    load_critic,
)
from common.models.verdicts import gate, judge, one_hot, verdicts_on
from common.privacy.noise import SeededNoise
from common.privacy.vectors import VectorContributions, VectorLayer, VectorMechanism
from common.wire.messages import Reply, Request
from common.wire.packing import CRITIC, GENERATOR, critic_shape_of, pack, shape_of, unpack
from tests.client.homes import (
    PRIVACY,
    ROWS,
    SINGLE,
    SIZES,
    STUDY,
    WINDOWED,
    Home,
    forbidden,
    local,
    make_home,
    refused,
)

LOCAL, LOCAL_WINDOWED = local(STUDY), local(WINDOWED)


def make_local(folder: Path) -> Home:
    return make_home(folder, study=LOCAL)


def critics_of(home: Home, *names: str) -> list[NeuralCritic]:
    """The critic after each of some releases, as it was kept."""
    shape = critic_shape_of(home.study, shape_of(home.study, sizes_of(home.bins)))
    found = []
    for name in names:
        critic = initialise_critic(shape, seed=7)
        load_critic(critic, unpack(CRITIC, kept_at(home, name)))
        found.append(critic)
    return found


def kept_at(home: Home, name: str) -> dict[str, np.ndarray]:
    """All that was kept of a release."""
    paths = (home.folder / "state" / "releases").glob("*.request")
    (path,) = (path for path in paths if Request.decode(path.read_bytes()).name == name)
    return dict(Reply.decode(path.with_suffix(".reply").read_bytes()).arrays)


def own_releases(home: Home) -> OwnReleases:
    """Of a site, all of them sealed."""
    return OwnReleases(home.folder / "state" / "releases", home.study, is_sealed=lambda _: True)


def taught(home: Home, *steps: int, share: float = 0.1) -> Site:
    """A site whose critic took steps of a measurement, each asked for as critic-0, critic-1, ...; opened anew each."""
    assert refused(home.open().handle(home.ask("one_way", options={"share": 0.3}).encode())) is None
    for number, step in enumerate(steps):
        asked = home.ask("critic", name=f"critic-{number}", options={"share": share, "step": step, "seed": 7 + number})
        assert refused(home.open().handle(asked.encode())) is None
    return home.open()


@pytest.mark.parametrize("study", [LOCAL, LOCAL_WINDOWED])
def test_a_critic_that_stays_learns_as_one_that_is_shared_would(tmp_path: Path, study: dict[str, Any]) -> None:
    short = {**study, "critic": {**study.get("critic", {}), "steps": 2}}
    home = make_home(tmp_path / "north", ROWS if study is LOCAL else SINGLE, study=short)
    taught(home, 0, 1, 0)
    shape = shape_of(home.study, sizes_of(home.bins))
    generator = initialise(shape, seed=0)
    first = own_releases(home).label_counts(home.ask("critic"), home.bins)
    critic = initialise_critic(critic_shape_of(home.study, shape), seed=7)
    network = home.study.critic
    optimiser = critic_optimiser(critic, learning_rate=network.learning_rate)
    for number, found in enumerate(critics_of(home, "critic-0", "critic-1", "critic-2")):
        if number == 2:  # another measurement
            optimiser = critic_optimiser(critic, learning_rate=network.learning_rate)
        fakes = draw_fakes(generator, first, seed=7 + number, device=torch.device("cpu"))
        counts = home.kept[f"run-1/critic-{number}"].astype(np.float64)
        clip_norm, units = network.clip_norm, float(first.sum())
        improve(critic, optimiser, counts, fakes, clip_norm=clip_norm, units=units, last=number == 1)
        expected, kept = critic_parameters(critic), critic_parameters(found)
        assert all(np.array_equal(kept[name], expected[name]) for name in expected)


def test_a_gradient_is_that_of_the_critic_as_it_stands(tmp_path: Path) -> None:
    home = make_local(tmp_path / "north")
    taught(home, 0, 1)
    vault = home.open()._vault
    (once,) = critics_of(home, "critic-0")
    charge = home.charges[-1]
    noise = SeededNoise(b"seed").draw(
        charge.event.cells, noise_stddev=charge.event.noise_stddev, context=charge.request
    )
    rows, shape = vault._single["train"], shape_of(home.study, sizes_of(home.bins))
    coded = vault._coded(rows, home.bins)
    parts = clipped_factors(once, *one_hot(coded, shape), coded.labels, clip_norm=home.study.critic.clip_norm)
    layers = tuple(VectorLayer(*layer) for layer in once.shape.contribution)
    total = VectorMechanism(layers, GRADIENT_SCALE).exact_sum(map(VectorContributions, parts))
    assert np.array_equal(home.kept["run-1/critic-1"] - noise, total)


LOUD = {"privacy": {**PRIVACY, "epsilon": 10_000}, "critic": {"width": 4, "learning_rate": 0.2}}
"""So little noise that a critic sees what is there."""


def make_loud(folder: Path, **critic: Any) -> Home:
    """A site of many units who differ from what a new generator makes."""
    rows = [(f"p{number}", "red", "3", "0.50", ("no", "yes")[number % 2]) for number in range(400)]
    study = {**LOCAL, **LOUD, "critic": {**LOUD["critic"], **critic}}
    return make_home(folder, rows, study=study, max_epsilon=10_000, total_epsilon=10_000)


def test_a_gate_opens_by_the_verdicts_of_the_site_alone(tmp_path: Path) -> None:
    home = make_loud(tmp_path / "north")
    site = taught(home, *range(5), share=0.01)
    assert refused(site.handle(home.ask("verdict").encode())) is None
    opened = unpack("opening.", kept_at(home, "verdict"))
    (critic,) = critics_of(home, "critic-4")
    counts = home.kept["run-1/verdict"].reshape(1, 2)
    event = home.charges[-1].event
    assert opened["passing"] == pytest.approx(counts[0, 1] / counts.sum())
    releases = own_releases(home)
    generator = initialise(shape_of(home.study, sizes_of(home.bins)), seed=0)
    label_counts = releases.label_counts(home.ask("verdict"), home.bins)
    fakes = judge(critic, *draw_fakes(generator, label_counts, seed=7, device=torch.device("cpu")))
    variance = (event.noise_stddev**2 + 1 / 12) / event.scale**2
    expected = gate(verdicts_on(counts / event.scale, variance, fakes), 1)
    assert {name: tuple(part) for name, part in opened.items()} == vars(expected)
    assert expected.weights[0] > 0.5


def test_a_generator_hears_the_critic_of_its_own_site_once_its_gate_is_open(tmp_path: Path) -> None:
    found = {}
    for name, critic, is_judged in (("heard", {}, True), ("deaf", {"strength": 0}, True), ("before", {}, False)):
        home = make_loud(tmp_path / name, **critic)
        site = taught(home, *range(5), share=0.01)
        if is_judged:
            assert refused(site.handle(home.ask("verdict").encode())) is None
        reply = Reply.decode(home.open(forbidden()).handle(home.ask("train").encode()))
        assert reply.refused is None
        found[name] = unpack(GENERATOR, reply.arrays)["heads.weight"]
    assert not np.array_equal(found["heard"], found["before"])
    assert np.array_equal(found["deaf"], found["before"])


def test_a_critic_that_a_coordinator_sends_is_not_looked_at(tmp_path: Path) -> None:
    home = make_local(tmp_path / "north")
    own = initialise_critic(critic_shape_of(home.study, shape_of(home.study, SIZES)), seed=3)
    sent = pack(CRITIC, critic_parameters(own))
    open_gate = {"weights": [1.0], "passing": [0.8], "passed": [0.3]}
    taught(home, 0)
    plain, told = (
        Reply.decode(home.open(forbidden()).handle(home.ask("train", **changes).encode()))
        for changes in ({}, {"arrays": sent, "options": open_gate})
    )
    assert all(np.array_equal(plain.arrays[name], told.arrays[name]) for name in plain.arrays)
    kept = []
    for number, arrays in enumerate(({}, sent)):
        other = make_local(tmp_path / str(number))
        taught(other)
        assert refused(other.open().handle(other.ask("critic", arrays=arrays).encode())) is None
        kept.append(other.kept["run-1/critic"])
    assert np.array_equal(*kept)


@pytest.mark.parametrize("kind", ["critic", "verdict"])
@pytest.mark.parametrize(
    "changes",
    [
        {"run": "run-2"},
        {"options": {"seed": None}},
        {"options": {"seed": -1}},
        {"options": {"seed": 1.5}},
        {"options": {"seed": 2**63}},
        {"arrays": {"generator.heads.bias": None}},
        {"arrays": {"generator.heads.bias": np.zeros(3, dtype=np.float32)}},
        {"arrays": {"bins.0": np.array([0, 1, 2, 3])}},
    ],
)
def test_what_a_critic_that_stays_cannot_learn_from_is_refused_before_anything_is_spent(
    tmp_path: Path, kind: str, changes: dict[str, Any]
) -> None:
    home = make_local(tmp_path / "north")
    site = taught(home, 0)
    before = home.charged
    assert refused(site.handle(home.ask(kind, name="bad", **changes).encode())) == "POLICY_REFUSED"
    assert home.charged == before


@pytest.mark.parametrize("step", [None, -1, 0.0, True, 10])
def test_a_step_that_no_measurement_has_is_refused(tmp_path: Path, step: object) -> None:
    home = make_local(tmp_path / "north")
    assert home.study.critic.steps == 10
    site = taught(home)
    assert refused(site.handle(home.ask("critic", options={"step": step}).encode())) == "POLICY_REFUSED"
    assert home.charged == ["run-1/one_way"]
