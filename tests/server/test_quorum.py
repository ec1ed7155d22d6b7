"""Runs in which some sites fail: with a quorum the others carry on and it is on record, without one the run stops."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.door import Door
from client.simulated_site import make_site_folder
from client.site import open_site
from common.certificate import Signer
from common.errors import CheckpointError, ExitCode, PolicyError, PrivShareError, ProtocolError, UntrustedError
from common.privacy.ledger import Head, read_ledger
from common.privacy.noise import SeededNoise
from common.privacy.signatures import SigningKey
from common.privacy.spending import Spending
from common.privacy.witness import Statement, state_head
from common.study import Study, load_study
from common.synthesis.rows import draw_units
from common.wire.envelopes import Order, answer_to
from common.wire.messages import Reply, Request, refusal
from common.wire.packing import GENERATOR
from server.exchange import Credentials
from server.publish import publish, release_of
from server.rounds import Coordinator, Trained
from simulations.federation import credentials_of

SITES = ("ann", "bob", "cyd")
SEED = 3
STUDY = """\
schema: privshare.study/1
name: tiny
unit: {name: person, key: person}
label: {column: ill, positive: "yes"}
columns:
  colour: {type: categorical, categories: [red, green, blue]}
  amount: {type: continuous, min: 0, max: 8, cells: 8}
  ill: {type: categorical, categories: ["no", "yes"]}
privacy: {epsilon: 30, delta: 1.0e-5, holdout: 0}
discriminators: {semantic: 0.5}
noise: {rounds: %d, schedule: fixed}
rounds: {count: %d, trainers: 3, local_steps: 1, refine_steps: 1%s}
model: {latent: 2, width: 8, blocks: 1, batch: 8, max_bins: 4}
"""
RELEASES = ["one_way", "pairs-1", "embedding-1"]
UNITS = {"ann": 60, "bob": 120, "cyd": 180}
Fault = Callable[[Door, bytes, bytes], bytes | None]
"""Of the site's door, what it was sent and what it answered: what arrives."""


def table(site: str) -> str:
    random = np.random.default_rng(len(site) + UNITS[site])
    rows = [
        f"{site}{at},{random.choice(['red', 'green', 'blue'])},{8 * random.random():.2f},{random.choice(['no', 'yes'])}"
        for at in range(UNITS[site])
    ]
    return "\n".join(["person,colour,amount,ill", *rows]) + "\n"


@dataclass
class Federation:
    """Sites in this process, an exchange that may spoil what some of them say, and a coordinator's folder."""

    folder: Path
    quorum: int | None = 2
    stages: int = 1
    rounds: int = 2
    faults: dict[tuple[str, str], Fault] = field(default_factory=dict)
    replies: dict[tuple[str, str], Reply] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    doors: dict[str, Door] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make the sites."""
        self.folder.mkdir(exist_ok=True)
        path = self.folder / "study.yaml"
        quorum = "" if self.quorum is None else f", quorum: {self.quorum}"
        path.write_text(STUDY % (self.stages, self.rounds, quorum))
        for site in SITES:
            made = make_site_folder(
                site,
                path,
                self.study,
                {"table": table(site)},
                private=self.folder / "private",
                kept=self.folder / "kept",
                seed=SEED,
                peers=set(SITES) - {site},
                witnesses=1,
            )
            self.doors[site] = Door(open_site(made.settings, noise=SeededNoise.of_site(site, 5)))

    @property
    def study(self) -> Study:
        return load_study(self.folder / "study.yaml")

    @property
    def credentials(self) -> Credentials:
        return credentials_of(SITES, seed=SEED)

    # --- the exchange

    def sites(self) -> list[str]:
        return list(SITES)

    def ask(self, bodies: Mapping[str, bytes]) -> dict[str, bytes]:
        found = {}
        for site, envelope in bodies.items():
            request = Request.decode(order_in(envelope)[1])
            self.asked.append((site, request.name))
            answer: bytes | None = self.doors[site].answer(envelope)
            assert answer is not None
            fault = self.faults.get((site, request.name))
            # Whose last answer was lost is confirmed anew and asked again; what may go wrong is the answer then.
            if fault is not None and body_of(answer).refused != "UNCONFIRMED":
                answer = fault(self.doors[site], envelope, answer)
            else:
                self.replies[site, request.name] = body_of(answer)
            if answer is not None:
                found[site] = answer
        return found

    # --- the coordinator

    def coordinator(self) -> Coordinator:
        return Coordinator(
            self.study,
            folder=self.folder,
            run="run",
            seed=SEED,
            credentials=self.credentials,
            device=torch.device("cpu"),
            on_step=lambda _: None,
        )

    def run(self) -> Trained:
        torch.set_num_threads(1)
        return self.coordinator().run(self)

    def publish(self) -> dict[str, Any]:
        """Run to the end; the certificate."""
        trained = self.run()
        units = draw_units(release_of(trained, self.study), rows=20, seed=SEED, device=torch.device("cpu"))
        return publish(
            trained, self.study, units, self.folder, gates=[], signer=Signer(self.credentials.key, "simulation")
        )

    def lines(self, step: str = "rejected") -> list[dict[str, Any]]:
        """Of rounds.jsonl."""
        found = map(json.loads, (self.folder / "rounds.jsonl").read_text().splitlines())
        return [line for line in found if line["step"] == step]

    @property
    def rejected(self) -> list[tuple[str, dict[str, str]]]:
        """Requests, and the codes of the sites that failed; but for those that were asked again."""
        kept = [
            (line["request"], {site: code for site, code in line["sites"].items() if code != "UNCONFIRMED"})
            for line in self.lines()
        ]
        return [(request, sites) for request, sites in kept if sites]

    def charged(self, site: str) -> list[str]:
        (charges,) = read_ledger(self.folder / "kept" / "ledger" / f"{site}.jsonl").charges.values()
        return [request.removeprefix("run/") for request in charges]

    def fails(self, site: str, fault: Fault, *requests: str) -> None:
        self.faults |= {(site, request): fault for request in requests}


def order_in(envelope: bytes) -> tuple[Order, bytes]:
    header = json.loads(envelope[4 : 4 + int.from_bytes(envelope[:4], "big")])
    key = credentials_of(SITES, seed=SEED).key
    return Order.open(envelope, public=key.public, study=header["study"], site=header["site"])


def body_of(answer: bytes) -> Reply:
    return Reply.decode(answer[4 + int.from_bytes(answer[:4], "big") + 64 :])


# --- what may go wrong


def signed(door: Door, envelope: bytes, body: bytes, *, key: SigningKey | None = None) -> bytes:
    """Well signed, whatever it says."""
    site = door._site
    given = {"study": site.study, "request": "", "site": site.name, "policy": "", "head": Head("", 0, "")}
    return answer_to(envelope, **given, body=body, key=key or site.key)


def silent(door: Door, envelope: bytes, answer: bytes) -> bytes | None:
    return None


def refused(door: Door, envelope: bytes, answer: bytes) -> bytes:
    return signed(door, envelope, refusal(door._site.name, ExitCode.BUDGET_REFUSED))


def malformed(door: Door, envelope: bytes, answer: bytes) -> bytes:
    return signed(door, envelope, b"\x80\x05K\x01.")


def by_another(door: Door, envelope: bytes, answer: bytes) -> bytes:
    return signed(door, envelope, body_of(answer).encode(), key=SigningKey.from_seed(b"z" * 32))


def flipped(door: Door, envelope: bytes, answer: bytes) -> bytes:
    return answer[:-1] + bytes([answer[-1] ^ 1])


def replayed(door: Door, envelope: bytes, answer: bytes) -> bytes:
    """The answer to the same request in an earlier order."""
    order, body = order_in(envelope)
    earlier = Order.of(body, study=order.study, site=order.site)
    return door.answer(earlier.seal(body, credentials_of(SITES, seed=SEED).key))


def changed(change: Callable[[Reply], Reply]) -> Fault:
    """The site's reply but for something, well signed."""

    def fault(door: Door, envelope: bytes, answer: bytes) -> bytes:
        return signed(door, envelope, change(body_of(answer)).encode())

    return fault


def spending(change: Callable[[Spending], Spending]) -> Fault:
    """The site's reply with something else on what it spent, signed by it."""

    def fault(door: Door, envelope: bytes, answer: bytes) -> bytes:
        reply = body_of(answer)
        said = change(Spending.from_dict(reply.facts["spending"])).signed(door._site.key)
        return signed(door, envelope, replace(reply, facts={**reply.facts, "spending": said.as_dict()}).encode())

    return fault


def counts(of: Callable[[np.ndarray], Any]) -> Fault:
    return changed(lambda reply: replace(reply, arrays={"counts": np.asarray(of(reply.arrays["counts"]))}))


def event(**changes: Any) -> Fault:
    return changed(lambda reply: replace(reply, facts={**reply.facts, "event": {**reply.facts["event"], **changes}}))


def facts(**changes: Any) -> Fault:
    return changed(lambda reply: replace(reply, facts={**reply.facts, **changes}))


def generator(of: Callable[[np.ndarray], np.ndarray]) -> Fault:
    """With every parameter made another."""
    return changed(lambda reply: replace(reply, arrays={name: of(array) for name, array in reply.arrays.items()}))


def one_parameter(value: float) -> Fault:
    def change(reply: Reply) -> Reply:
        arrays = {name: array.copy() for name, array in reply.arrays.items()}
        next(iter(arrays.values())).flat[0] += value
        return replace(reply, arrays=arrays)

    return changed(change)


def nan(array: np.ndarray) -> np.ndarray:
    return np.full_like(array, np.nan, dtype=np.float32 if array.dtype == np.int64 else array.dtype)


RELEASE_FAULTS: dict[str, tuple[Fault, str]] = {
    "silent": (silent, "NO_ANSWER"),
    "refused": (refused, "BUDGET_REFUSED"),
    "malformed": (malformed, "PROTOCOL"),
    "empty": (lambda *_: b"", "UNTRUSTED"),
    "signed by another": (by_another, "UNTRUSTED"),
    "flipped": (flipped, "UNTRUSTED"),
    "replayed": (replayed, "UNTRUSTED"),
    "in another's name": (changed(lambda reply: replace(reply, site="ann")), "PROTOCOL"),
    "floats": (counts(lambda found: found.astype(np.float64)), "PROTOCOL"),
    "narrow": (counts(lambda found: found.astype(np.int32)), "PROTOCOL"),
    "not finite": (counts(nan), "PROTOCOL"),
    "too short": (counts(lambda found: found[1:]), "PROTOCOL"),
    "too long": (counts(lambda found: [*found, 0]), "PROTOCOL"),
    "of two dimensions": (counts(lambda found: found[None]), "PROTOCOL"),
    "huge": (counts(lambda found: np.full_like(found, 2**50 + 1)), "PROTOCOL"),
    "huge below zero": (counts(lambda found: np.full_like(found, -(2**63))), "PROTOCOL"),
    "without counts": (changed(lambda reply: replace(reply, arrays={})), "PROTOCOL"),
    "without an event": (changed(lambda reply: replace(reply, facts={})), "PROTOCOL"),
    "an event of other cells": (event(cells=7), "PROTOCOL"),
    "an event of no scale": (event(scale=0), "PROTOCOL"),
    "no word on what it spent": (facts(spending=None), "PROTOCOL"),
    "less than it released": (
        spending(lambda said: replace(said, events=said.events[: min(1, len(said.events) - 1)])),
        "PROTOCOL",
    ),
    "its first event taken back": (spending(lambda said: replace(said, events=said.events[1:])), "PROTOCOL"),
    "its spending in another study": (spending(lambda said: replace(said, study="0" * 64)), "PROTOCOL"),
    "its spending by another bound": (spending(lambda said: replace(said, bound=1.0)), "PROTOCOL"),
    "its spending at another head": (
        spending(lambda said: replace(said, head=replace(said.head, hash="0" * 64))),
        "PROTOCOL",
    ),
    "a spending that is not signed": (
        changed(
            lambda reply: replace(
                reply, facts={**reply.facts, "spending": {**reply.facts["spending"], "signature": "0" * 128}}
            )
        ),
        "PROTOCOL",
    ),
    "a head of nobody": (facts(ledger_head="0" * 64), "PROTOCOL"),
    "a head that is not signed": (
        changed(
            lambda reply: replace(
                reply, facts={**reply.facts, "ledger_head": {**reply.facts["ledger_head"], "signature": "0" * 128}}
            )
        ),
        "PROTOCOL",
    ),
}
EVENT_FAULTS: dict[str, tuple[Fault, str]] = {
    "noise beyond what a float holds squared": (event(noise_stddev=1e200), "PROTOCOL"),
    "so little noise that no float holds its spend": (event(noise_stddev=1e-200), "PROTOCOL"),
    "less noise than was asked for": (event(noise_stddev=1e-3), "PROTOCOL"),
    "a sensitivity of 400 digits": (event(squared_sensitivity=10**400), "PROTOCOL"),
    "another account": (event(account="holdout"), "PROTOCOL"),
}
TRAINING_FAULTS: dict[str, tuple[Fault, str]] = {
    **{name: RELEASE_FAULTS[name] for name in ("silent", "refused", "malformed", "signed by another", "replayed")},
    "not finite": (generator(nan), "PROTOCOL"),
    "moved too far": (generator(lambda array: array + np.float32(1)), "PROTOCOL"),
    "one parameter moved too far": (one_parameter(1.0), "PROTOCOL"),
    "of another type": (generator(lambda array: array.astype(np.float64)), "PROTOCOL"),
    "of another shape": (generator(lambda array: array[None]), "PROTOCOL"),
    "transposed": (generator(lambda array: np.ascontiguousarray(array.T)), "PROTOCOL"),
    "no generator": (changed(lambda reply: replace(reply, arrays={})), "PROTOCOL"),
    "a layer too many": (
        changed(
            lambda reply: replace(reply, arrays={**reply.arrays, f"{GENERATOR}more": np.zeros(1, dtype=np.float32)})
        ),
        "PROTOCOL",
    ),
}


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_disks() -> Iterator[None]:
    """What survives a crash is the business of other tests; here each run would wait for a hundred files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture
def fed(tmp_path: Path) -> Federation:
    return Federation(tmp_path / "fed")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """A run in which nobody failed."""
    found = Federation(tmp_path_factory.mktemp("whole") / "fed")
    found.publish()
    return found


# --- with a quorum


def test_where_nobody_fails_nothing_is_on_record_and_all_are_in_the_certificate(whole: Federation) -> None:
    assert whole.rejected == []
    certificate = json.loads((whole.folder / "certificate.json").read_bytes())
    assert {site: len(entry["events"]) for site, entry in certificate["sites"].items()} == dict.fromkeys(SITES, 3)
    assert all(whole.charged(site) == RELEASES for site in SITES)


def test_a_site_that_fails_in_a_release_is_on_record_and_its_weight_filled_in(tmp_path: Path) -> None:
    # One run, of as many releases as there are faults.
    faults = {**RELEASE_FAULTS, **EVENT_FAULTS}
    stages = -(-len(faults) // 2)
    fed = Federation(tmp_path / "fed", stages=stages, rounds=1)
    names = [f"{kind}-{stage + 1}" for stage in range(stages) for kind in ("pairs", "embedding")][: len(faults)]
    for name, (fault, _) in zip(names, faults.values(), strict=True):
        fed.fails("bob", fault, name)
    certificate = fed.publish()
    found = dict(zip(faults, fed.rejected, strict=True))
    assert found == {how: (name, {"bob": faults[how][1]}) for how, name in zip(faults, names, strict=True)}
    state = fed.coordinator()._state
    factor = sum(state.units.values()) / (state.units["ann"] + state.units["cyd"])
    assert factor == pytest.approx(360 / 240, rel=0.1)
    for name in names:
        release, two = state.releases[name], [fed.replies[site, name] for site in ("ann", "cyd")]
        scale = two[0].facts["event"]["scale"]
        assert np.allclose(release.counts, sum(reply.arrays["counts"] for reply in two) / scale * factor, rtol=1e-12)
        variance = sum(reply.facts["event"]["noise_stddev"] ** 2 + 1 / 12 for reply in two) / scale**2
        assert release.variance == pytest.approx(variance * factor**2)
        assert set(release.events) == {"ann", "cyd"}
    # What never came was paid for all the same.
    events = {site: len(entry["events"]) for site, entry in certificate["sites"].items()}
    assert events == dict.fromkeys(SITES, 1 + 2 * stages)
    assert [len(fed.charged(site)) for site in SITES] == [1 + 2 * stages] * 3
    assert len(state.events["bob"]) == 1 + 2 * stages - len(faults)
    assert (fed.folder / "synthetic.csv").exists()


def test_what_a_site_weighs_is_what_its_noised_one_way_counts_say(whole: Federation) -> None:
    units = whole.coordinator()._state.units
    assert {site: round(found / UNITS[site], 1) for site, found in units.items()} == dict.fromkeys(SITES, 1.0)
    for site in SITES:
        reply = whole.replies[site, "one_way"]
        # The smallest table, colours by label, is the first one.
        assert units[site] == reply.arrays["counts"][: 3 * 2].sum() / reply.facts["event"]["scale"]


def test_a_site_that_fails_in_training_is_left_out_of_the_mean(tmp_path: Path) -> None:
    fed = Federation(tmp_path / "fed", rounds=len(TRAINING_FAULTS))
    for number, (fault, _) in enumerate(TRAINING_FAULTS.values(), start=1):
        fed.fails("bob", fault, f"train-{number}")
    certificate = fed.publish()
    found = dict(zip(TRAINING_FAULTS, fed.rejected, strict=True))
    assert found == {
        how: (f"train-{number}", {"bob": code}) for number, (how, (_, code)) in enumerate(TRAINING_FAULTS.items(), 1)
    }
    assert all(len(entry["events"]) == 3 for entry in certificate["sites"].values())


def test_the_mean_is_that_of_those_who_trained_well(whole: Federation, tmp_path: Path) -> None:
    # Without its own answer a site leaves the same generator whatever was wrong with what came instead.
    found = []
    for how in ("silent", "moved too far"):
        federation = Federation(tmp_path / how)
        federation.fails("bob", TRAINING_FAULTS[how][0], "train-1", "train-2")
        federation.publish()
        found.append(generator_of(federation))
    assert found[0] == found[1] != generator_of(whole)


def generator_of(federation: Federation) -> bytes:
    return (federation.folder / "generator" / "generator.safetensors").read_bytes()


def test_where_nobody_trains_well_the_coordinator_goes_on_alone(fed: Federation) -> None:
    for site in SITES:
        fed.fails(site, silent, "train-1")
    fed.publish()
    assert fed.rejected == [("train-1", dict.fromkeys(SITES, "NO_ANSWER"))]


def test_what_a_site_says_it_weighs_is_not_heard(whole: Federation, fed: Federation) -> None:
    claims = {"weight": 1000, "num-examples": 10**6, "units": 10**6, "counts": 10**6}
    weights = {"weight": np.array([1000.0]), "num_examples": np.array([10**6])}
    fed.fails("ann", facts(**claims), *RELEASES, "train-2")
    fed.fails("ann", changed(lambda reply: Reply("ann", claims, {**reply.arrays, **weights})), "train-1")
    fed.publish()
    assert fed.rejected == []
    for name in ("synthetic.csv", "generator/generator.safetensors"):
        assert (fed.folder / name).read_bytes() == (whole.folder / name).read_bytes()


@pytest.mark.parametrize("how", ["silent", "huge"])
def test_a_site_that_is_not_in_the_first_release_is_not_in_the_run(fed: Federation, how: str) -> None:
    fault, code = RELEASE_FAULTS[how]
    fed.fails("bob", fault, "one_way")
    certificate = fed.publish()
    assert fed.rejected[0] == ("one_way", {"bob": code})
    assert list(certificate["sites"]) == ["ann", "cyd"]
    assert set(fed.coordinator()._state.units) == {"ann", "cyd"}
    assert fed.charged("bob") == ["one_way"]  # and is asked for nothing more
    assert all(name in ("one_way", "describe", "witness", "confirm") for site, name in fed.asked if site == "bob")


def test_a_site_that_is_not_at_the_roll_call_is_not_in_the_run(fed: Federation) -> None:
    fed.fails("bob", silent, "describe")
    certificate = fed.publish()
    assert list(certificate["sites"]) == ["ann", "cyd"]
    assert [name for site, name in fed.asked if site == "bob"] == ["describe"]


def test_a_site_whose_answer_was_lost_is_confirmed_anew_and_asked_again(fed: Federation) -> None:
    fed.fails("bob", silent, "pairs-1")
    fed.publish()
    sites = [(line["request"], line["sites"]) for line in fed.lines()]
    assert sites == [("pairs-1", {"bob": "NO_ANSWER"}), ("embedding-1", {"bob": "UNCONFIRMED"})]
    assert set(fed.coordinator()._state.releases["embedding-1"].events) == set(SITES)


def test_a_site_may_fail_in_one_release_and_another_in_the_next(fed: Federation) -> None:
    fed.fails("bob", silent, "pairs-1")
    fed.fails("ann", malformed, "embedding-1", "train-2")
    certificate = fed.publish()
    assert fed.rejected == [
        ("pairs-1", {"bob": "NO_ANSWER"}),
        ("embedding-1", {"ann": "PROTOCOL"}),
        ("train-2", {"ann": "PROTOCOL"}),
    ]
    events = {site: len(entry["events"]) for site, entry in certificate["sites"].items()}
    assert events == {"ann": 3, "bob": 3, "cyd": 3}


@pytest.mark.parametrize(("how", "request_name"), [("silent", "witness"), ("malformed", "confirm")])
def test_a_site_that_witnesses_nothing_does_not_stop_the_others(fed: Federation, how: str, request_name: str) -> None:
    fed.fails("bob", RELEASE_FAULTS[how][0], request_name)
    certificate = fed.publish()
    assert (request_name, {"bob": RELEASE_FAULTS[how][1]}) in fed.rejected
    assert {"ann", "cyd"} <= set(certificate["sites"])


# --- what a site may say of itself that nobody can use


BAD_DESCRIPTIONS: dict[str, dict[str, Any]] = {
    "no bound": {"bound": None},
    "a bound of nothing": {"bound": 0},
    "a negative bound": {"bound": -1.0},
    "a bound that is no number": {"bound": "nan"},
    "a bound without end": {"bound": "inf"},
    "a bound of 400 digits": {"bound": 10**400},
    "another key": {"key": "0" * 64},
}


def test_a_site_that_does_not_say_its_budget_and_key_is_not_in_the_run(fed: Federation) -> None:
    for wrong in BAD_DESCRIPTIONS.values():
        fed.fails("bob", facts(**wrong), "describe")
        assert fed.coordinator()._call_roll(fed).names == ["ann", "cyd"]
    assert fed.rejected == [("describe", {"bob": "PROTOCOL"})] * len(BAD_DESCRIPTIONS)


def test_a_site_with_a_key_that_the_federation_does_not_know_is_not_in_the_run(fed: Federation) -> None:
    stranger = SigningKey.from_seed(b"z" * 32)

    def describe(reply: Reply) -> Reply:
        head = Statement.from_dict(reply.facts["ledger_head"]).signed(stranger)
        return replace(reply, facts={**reply.facts, "key": stranger.public, "ledger_head": vars(head)})

    fed.fails("bob", changed(describe), "describe")
    assert list(fed.publish()["sites"]) == ["ann", "cyd"]
    assert fed.rejected[0] == ("describe", {"bob": "PROTOCOL"})


def test_attestations_that_are_none_are_their_site_s_failure_alone(fed: Federation) -> None:
    wrong: list[Any] = [7, "east", [7], [{}], None, {"a": 1}]
    for attestations in wrong:
        fed.fails("bob", facts(attestations=attestations), "witness")
        coordinator = fed.coordinator()
        coordinator._pass_on(coordinator._call_roll(fed))
    assert fed.rejected == [("witness", {"bob": "PROTOCOL"})] * len(wrong)


def test_attestations_that_a_site_did_not_sign_do_not_reach_the_certificate(fed: Federation) -> None:
    def forged(reply: Reply) -> Reply:
        attested = [{**one, "sequence": one["sequence"] + 1} for one in reply.facts["attestations"]]
        return replace(reply, facts={**reply.facts, "attestations": attested})

    fed.fails("bob", changed(forged), "witness")
    sites = fed.publish()["sites"]
    assert {one["witness"] for site in sites.values() for one in site["attestations"]} == {"ann", "cyd"}
    assert ("witness", {"bob": "PROTOCOL"}) in fed.rejected


# --- below the quorum, and without one


@pytest.mark.parametrize("request_name", ["one_way", "embedding-1"])
def test_below_the_quorum_the_run_stops_with_the_first_site_s_code(fed: Federation, request_name: str) -> None:
    fed.fails("bob", refused, request_name)
    fed.fails("cyd", silent, request_name)
    with pytest.raises(PolicyError, match=r"^site bob: refused \(BUDGET_REFUSED\)") as error:
        fed.run()
    assert error.value.code == ExitCode.BUDGET_REFUSED
    assert fed.rejected[-1] == (request_name, {"bob": "BUDGET_REFUSED", "cyd": "NO_ANSWER"})


def test_below_the_quorum_at_the_roll_call_the_run_does_not_begin(fed: Federation) -> None:
    fed.fails("bob", silent, "describe")
    fed.fails("cyd", refused, "describe")
    with pytest.raises(PolicyError) as error:
        fed.run()
    assert error.value.code == ExitCode.BUDGET_REFUSED
    assert {name for _, name in fed.asked} == {"describe"}


@pytest.mark.parametrize("quorum", [None, 3])
def test_without_a_quorum_any_failure_stops_the_run_with_its_code(tmp_path: Path, quorum: int | None) -> None:
    fed = Federation(tmp_path / "fed", quorum=quorum)
    kinds = {"NO_ANSWER": ProtocolError, "BUDGET_REFUSED": PolicyError, "UNTRUSTED": UntrustedError}
    faults = list({**RELEASE_FAULTS, **EVENT_FAULTS}.values())
    for fault, code in faults if quorum is None else faults[:5]:
        fed.fails("bob", fault, "one_way")
        with pytest.raises(PrivShareError, match=r"^site bob: ") as error:
            fed.run()
        assert (type(error.value), error.value.code.name) == (kinds.get(code, ProtocolError), code)
        assert not (fed.folder / "rounds.jsonl").exists()
    assert all(fed.charged(site) == ["one_way"] for site in SITES)


@pytest.mark.parametrize("how", ["silent", "moved too far"])
def test_without_a_quorum_a_failure_in_training_stops_the_run_too(tmp_path: Path, how: str) -> None:
    fed = Federation(tmp_path / "fed", quorum=None)
    fed.fails("bob", TRAINING_FAULTS[how][0], "train-1")
    with pytest.raises(ProtocolError, match=r"^site bob: "):
        fed.run()
    assert fed.lines("round") == []


@pytest.mark.parametrize(("quorum", "request_name"), [(2, "one_way"), (2, "embedding-1"), (None, "embedding-1")])
def test_a_run_that_stopped_goes_on_when_the_sites_are_there_again(
    whole: Federation, tmp_path: Path, quorum: int | None, request_name: str
) -> None:
    fed = Federation(tmp_path / "fed", quorum=quorum)
    for site in ("bob", "cyd"):
        fed.fails(site, silent, request_name)
    with pytest.raises(ProtocolError, match=r"^site bob: did not answer$"):
        fed.run()
    fed.faults.clear()
    certificate = fed.publish()
    # Nothing was spent twice, and what came out is what comes out without a stop.
    assert all(fed.charged(site) == RELEASES for site in SITES)
    assert [len(entry["events"]) for entry in certificate["sites"].values()] == [3, 3, 3]
    if quorum is not None:
        assert (fed.folder / "synthetic.csv").read_bytes() == (whole.folder / "synthetic.csv").read_bytes()


def test_a_run_goes_on_without_a_site_that_it_began_with_if_a_quorum_is_there(fed: Federation) -> None:
    for site in ("bob", "cyd"):
        fed.fails(site, silent, "embedding-1")
    with pytest.raises(ProtocolError):
        fed.run()
    fed.faults.clear()
    for name in ("describe", "embedding-1", "train-1", "train-2"):
        fed.fails("bob", silent, name)
    certificate = fed.publish()
    events = {site: len(entry["events"]) for site, entry in certificate["sites"].items()}
    # Its weight stays: it was in the first release. What it spent since it was last heard of, nobody else can know.
    assert events == {"ann": 3, "bob": 2, "cyd": 3}
    assert set(fed.coordinator()._state.units) == set(SITES)


def test_a_run_that_began_without_a_site_does_not_take_it_up_later(fed: Federation) -> None:
    fed.fails("bob", silent, "describe")
    for site in ("ann", "cyd"):
        fed.fails(site, silent, "pairs-1")
    with pytest.raises(ProtocolError):
        fed.run()
    fed.faults.clear()
    assert list(fed.publish()["sites"]) == ["ann", "cyd"]
    assert {name for site, name in fed.asked if site == "bob"} == {"describe"}
    assert not read_ledger(fed.folder / "kept" / "ledger" / "bob.jsonl").charges[fed.study.digest()]


def test_a_run_does_not_go_on_with_other_sites_than_it_began_with(fed: Federation) -> None:
    fed.fails("bob", silent, "describe")
    for site in ("ann", "cyd"):
        fed.fails(site, silent, "pairs-1")
    with pytest.raises(ProtocolError):
        fed.run()
    fed.faults.clear()
    fed.fails("cyd", silent, "describe")
    with pytest.raises(CheckpointError, match="the run began with other sites"):
        fed.run()


@pytest.mark.parametrize("how", ["the same ledger, cut", "another ledger"])
def test_a_site_whose_ledger_went_back_is_refused_and_the_others_go_on(fed: Federation, how: str) -> None:
    for site in ("bob", "cyd"):
        fed.fails(site, silent, "embedding-1")
    with pytest.raises(ProtocolError):
        fed.run()
    fed.faults.clear()
    site = fed.doors["bob"]._site
    at = fed.coordinator()._state.accounts["bob"].ledger_head.sequence - 1
    older = state_head("bob", Head(site._ledger.head().ledger, at, site._ledger.hashes()[at]), site.key, past={})
    if how == "another ledger":
        older = replace(older, hash="0" * 64, sequence=at + 1).signed(site.key)
    fed.fails("bob", facts(ledger_head=asdict(older)), "describe")
    assert fed.coordinator()._call_roll(fed).names == ["ann", "cyd"]
    assert fed.rejected[-1] == ("describe", {"bob": "PROTOCOL"})
    assert list(fed.publish()["sites"]) == list(SITES)  # of what it had released before
