"""A small release by the project's own code, and what somebody may do to one: every verifier must refuse each."""

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import load_file, save_file

from client.simulated_site import identity_of
from common.certificate import VOID, Signer
from common.evaluation.report import Level
from common.privacy.events import GaussianEvent
from common.privacy.ledger import Head
from common.privacy.noise import DRAW_ERROR
from common.privacy.recount import recount, recount_spends
from common.privacy.signatures import SigningKey
from common.privacy.spending import Spending
from common.privacy.witness import Attestation, Statement
from simulations.experiment import Scenario, choose, execute
from simulations.federation import Engine, credentials_of

SITES = ("site_01", "site_02", "site_03")
FILES = (
    "certificate.json",
    "synthetic.csv",
    "generator/generator.json",
    "generator/generator.safetensors",
    "card.md",
    "croissant.json",
)
PLAIN = """\
schema: privshare.study/1
name: tiny
unit: {name: person, key: person}
label: {column: outcome, positive: bad}
columns:
  amount: {type: continuous, min: 0, max: 8, cells: 8}
  channel: {type: categorical, categories: [desk, phone, web]}
  outcome: {type: categorical, categories: [good, bad]}
privacy: {epsilon: 1, delta: 1.0e-5, holdout: 0}
discriminators: {semantic: 0.5}
noise: {rounds: 1, schedule: fixed}
rounds: {count: 1, trainers: 1, local_steps: 1, refine_steps: 1}
model: {latent: 2, width: 8, blocks: 1, batch: 8, max_bins: 4}
gates: {misfit: 1000}
"""
SAMPLED = (
    PLAIN.replace("holdout: 0", "holdout: 0.2, accountant: rdp, noise_trust: masked")
    .replace("{semantic: 0.5}", "{semantic: 0, neural: 0.5}\ncritic: {steps: 2, width: 4, sampling: 0.5}")
    .replace("{rounds: 1, schedule: fixed}", "{rounds: 2}")
    .replace("{count: 1,", "{count: 2,")
)
ATTACKER = SigningKey.from_seed(b"a" * 32)
"""Whoever signs what was changed: a coordinator that cheats, or a stranger."""


def make_release(folder: Path, study: str, *, noise_seed: int | None = None) -> Path:
    """Run a federation of three simulated sites, and keep of it what a data consumer gets."""
    random, people = np.random.default_rng(3), 300
    columns = {
        "person": [f"p{number}" for number in range(people)],
        "amount": random.uniform(0, 8, people).round(2),
        "channel": random.choice(["desk", "phone", "web"], people),
        "outcome": random.choice(["good", "bad"], people),
    }
    pd.DataFrame(columns).to_csv(folder / "table.csv", index=False)
    (folder / "study.yaml").write_text(study, encoding="utf-8")
    run = choose(
        scenario=Scenario.BANK,
        study=folder / "study.yaml",
        data=[folder / "table.csv"],
        series=None,
        units=None,
        sites=3,
        test_noise_seed=noise_seed,
        out=folder / "run",
    )
    engine = Engine("process", "cpu", 1, noise_seed)
    execute(run, engine, torch.device("cpu"), lambda step: None, level=Level.BASIC, gated=False)
    return copy(folder / "run", folder / "release")


def copy(release: Path, target: Path) -> Path:
    """What belongs to a release."""
    for name in FILES:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(release / name, target / name)
    return target


def site_key(name: str) -> SigningKey:
    """Of a simulated site of the seed 0."""
    found = identity_of(name, 0)
    assert found.public == credentials_of([name], seed=0).sites[name]
    return found


Change = Callable[[dict[str, Any]], Any]


def read(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "certificate.json").read_bytes()))


def write(folder: Path, certificate: dict[str, Any]) -> None:
    (folder / "certificate.json").write_text(json.dumps(certificate, indent=2), encoding="utf-8")


# --- ways to tamper: each makes what is done to a folder


def raw(change: Callable[[bytes], bytes], name: str = "certificate.json") -> Callable[[Path], None]:
    """The bytes of a file."""
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes())) and None


def edited(change: Change) -> Callable[[Path], None]:
    """The certificate, not signed again."""

    def tamper(folder: Path) -> None:
        certificate = read(folder)
        change(certificate)
        write(folder, certificate)

    return tamper


def signed(change: Change) -> Callable[[Path], None]:
    """The certificate, signed again by whoever changed it."""

    def tamper(folder: Path) -> None:
        certificate = read(folder)
        change(certificate)
        write(folder, Signer(ATTACKER, "coordinator").sign(certificate))

    return tamper


def remade(name: str, change: Callable[[bytes], bytes], more: Change = lambda _: None) -> Callable[[Path], None]:
    """A file of the release, with its new sum in a certificate that was signed again."""

    def tamper(folder: Path) -> None:
        raw(change, name)(folder)

        def list_again(certificate: dict[str, Any]) -> None:
            certificate["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
            more(certificate)

        signed(list_again)(folder)

    return tamper


def recounted(certificate: dict[str, Any]) -> None:
    """Have every number follow from the events."""
    spends, epsilons = recount_spends(certificate), recount(certificate)
    for name, site in certificate["sites"].items():
        site["spent"], site["epsilon"] = spends[name], epsilons[name]
        site["sampler_delta"] = sum(event["cells"] for event in site["events"]) * DRAW_ERROR
    if certificate["guarantee"] is not None:
        claim(certificate, max(epsilons.values()))


def claim(certificate: dict[str, Any], epsilon: float) -> None:
    """Claim an epsilon in numbers and words."""
    guarantee = certificate["guarantee"]
    before = f"({guarantee['epsilon']:.6g}, "
    assert before in guarantee["statement"]
    guarantee["statement"] = guarantee["statement"].replace(before, f"({epsilon:.6g}, ")
    guarantee["epsilon"] = epsilon


def resign_sites(certificate: dict[str, Any], key_of: Callable[[str], SigningKey]) -> None:
    """Everything that sites sign, by other keys, or by their own if somebody had them."""
    sites = certificate["sites"]
    for name, site in sites.items():
        site["key"] = key_of(name).public
        head = Statement.from_dict(site["ledger_head"]).signed(key_of(name))
        site["ledger_head"] = vars(head)
        events = tuple(map(GaussianEvent.from_dict, site["events"]))
        place = Head(head.ledger, head.sequence, head.hash)
        said = Spending(name, certificate["study"]["digest"], place, site["bound"], events).signed(key_of(name))
        site["signature"] = said.signature
        attested = [Attestation.from_dict(one) for one in site["attestations"]]
        site["attestations"] = [vars(one.signed(key_of(one.witness))) for one in attested]


def all_by_attacker(change: Change) -> Callable[[Path], None]:
    """A certificate of sites that the attacker made up; nothing but pinned keys can tell."""

    def made_up(name: str) -> SigningKey:
        return SigningKey.from_seed(hashlib.sha256(name.encode()).digest())

    def tamper(certificate: dict[str, Any]) -> None:
        change(certificate)
        resign_sites(certificate, made_up)

    return signed(tamper)


def cheaper(certificate: dict[str, Any]) -> None:
    """Noise that was never drawn, and all that follows from it."""
    for site in certificate["sites"].values():
        for event in site["events"]:
            event["noise_stddev"] *= 2
    recounted(certificate)


def of_site(change: Change, name: str = SITES[0]) -> Change:
    return lambda certificate: change(certificate["sites"][name])


def put(**fields: Any) -> Change:
    return lambda data: data.update(fields)


def in_guarantee(**fields: Any) -> Change:
    return lambda certificate: certificate["guarantee"].update(fields)


def in_gate(**fields: Any) -> Change:
    return lambda certificate: certificate["gates"][0].update(fields)


def in_event(**fields: Any) -> Change:
    return of_site(lambda site: site["events"][0].update(fields))


def lowered(certificate: dict[str, Any]) -> None:
    for site in certificate["sites"].values():
        site["epsilon"] *= 0.9
    claim(certificate, certificate["guarantee"]["epsilon"] * 0.9)


def lowered_a_little(certificate: dict[str, Any]) -> None:
    for site in certificate["sites"].values():
        site["epsilon"] *= 0.99999
    claim(certificate, max(site["epsilon"] for site in certificate["sites"].values()))


def swap_keys(certificate: dict[str, Any]) -> None:
    one, other = (certificate["sites"][name] for name in SITES[:2])
    one["key"], other["key"] = other["key"], one["key"]


def swap_sites(certificate: dict[str, Any]) -> None:
    sites = certificate["sites"]
    sites[SITES[0]], sites[SITES[1]] = sites[SITES[1]], sites[SITES[0]]


def attest(**fields: Any) -> Change:
    """Another attestation of the first site's ledger, well signed by the second."""

    def change(site: dict[str, Any]) -> None:
        own = Attestation.from_dict(site["attestations"][0])
        site["attestations"][0] = vars(Attestation(**{**vars(own), **fields}).signed(site_key(own.witness)))

    return of_site(change)


def attest_older(site: dict[str, Any]) -> None:
    number, digest = site["ledger_head"]["past"][-1]
    own = Attestation.from_dict(site["attestations"][0])
    older = Attestation(**{**vars(own), "sequence": number, "hash": digest})
    site["attestations"][0] = vars(older.signed(site_key(own.witness)))


def older_head(site: dict[str, Any]) -> None:
    """What the site did sign, some entries ago, and fewer events with it."""
    number, digest = site["ledger_head"]["past"][-2]
    head = Statement.from_dict(site["ledger_head"])
    shown = tuple(pair for pair in head.past if pair[0] < number)
    site["ledger_head"] = vars(Statement(head.site, head.ledger, number, digest, shown).signed(site_key(head.site)))
    site["events"].pop()


def drop_site(certificate: dict[str, Any]) -> None:
    del certificate["sites"][SITES[2]]


def drop_site_well(certificate: dict[str, Any]) -> None:
    drop_site(certificate)
    for site in certificate["sites"].values():
        site["attestations"] = [one for one in site["attestations"] if one["witness"] != SITES[2]]
    claim(certificate, max(site["epsilon"] for site in certificate["sites"].values()))


def make_void(certificate: dict[str, Any]) -> None:
    certificate["guarantee"], certificate["void_because"] = None, VOID


def study_of(change: Change) -> Callable[[bytes], bytes]:
    def tamper(body: bytes) -> bytes:
        facts = json.loads(body)
        change(facts["study"])
        return json.dumps(facts, indent=2).encode()

    return tamper


def not_a_number(body: bytes) -> bytes:
    """The last weight of the file."""
    length = struct.unpack("<Q", body[:8])[0]
    begin, _ = json.loads(body[8 : 8 + length])["label_counts"]["data_offsets"]
    at = 8 + length + begin
    return body[:at] + struct.pack("<d", float("nan")) + body[at + 8 :]


def without_moves(folder: Path) -> None:
    path = folder / "generator/generator.safetensors"
    arrays = load_file(path)
    del arrays["moves"]
    save_file(arrays, path)
    remade("generator/generator.safetensors", lambda body: body)(folder)


def flip(body: bytes, at: int) -> bytes:
    return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]


def once(old: str, new: str) -> Callable[[bytes], bytes]:
    def change(body: bytes) -> bytes:
        assert old.encode() in body, old
        return body.replace(old.encode(), new.encode(), 1)

    return change


def unlist(folder: Path) -> None:
    (folder / "synthetic.csv").unlink()
    signed(lambda certificate: certificate["files"].pop("synthetic.csv"))(folder)


def exchange_tables(folder: Path) -> None:
    table = folder / "synthetic.csv"
    lines = table.read_bytes().splitlines(keepends=True)
    table.write_bytes(b"".join([lines[0], *lines[:0:-1]]))


@dataclass(frozen=True)
class Tampering:
    """What was done to a release, the check that must fail, and what the verifier is told."""

    do: Callable[[Path], object]
    check: str
    is_pinned: bool = False
    sites_are_pinned: bool = False


def extra(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / "synthetic.csv").read_bytes())


def pipe(name: str) -> Callable[[Path], object]:
    """A file that nobody ever reads to its end."""

    def tamper(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return tamper


def gone(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


_T = Tampering
_OF_WEIGHTS = "generator/generator.safetensors"
TAMPERINGS: dict[str, Tampering] = {
    # files
    "a flipped bit of the table": _T(raw(lambda body: flip(body, -3), "synthetic.csv"), "files"),
    "a flipped bit of the weights": _T(raw(lambda body: flip(body, -3), _OF_WEIGHTS), "files"),
    "a flipped bit of the study": _T(raw(once("desk", "desl"), "generator/generator.json"), "files"),
    "a flipped digit of the certificate": _T(raw(once('"epsilon": 0.9', '"epsilon": 0.8')), "signature"),
    "another epsilon on the data card": _T(raw(once("ε at most 1.0", "ε at most 0.1"), "card.md"), "files"),
    "a flipped bit of the metadata": _T(raw(lambda body: flip(body, -9), "croissant.json"), "files"),
    "no data card": _T(gone("card.md"), "files"),
    "rows in another order": _T(exchange_tables, "files"),
    "no table": _T(gone("synthetic.csv"), "files"),
    "a pipe for a table": _T(pipe("synthetic.csv"), "files"),
    "a pipe for a certificate": _T(pipe("certificate.json"), "certificate"),
    "no weights": _T(gone(_OF_WEIGHTS), "generator"),
    "no study": _T(gone("generator/generator.json"), "study"),
    "no certificate": _T(gone("certificate.json"), "certificate"),
    "another table beside it": _T(extra("synthetic-windows.csv"), "files"),
    "another table in capitals": _T(extra("synthetic2.CSV"), "files"),
    "another file beside the weights": _T(extra("generator/newer.safetensors"), "files"),
    "a table that is not listed any more": _T(unlist, "study"),
    "a file elsewhere is listed": _T(signed(lambda one: one["files"].update({"../study.yaml": "0" * 64})), "files"),
    "the folder itself is listed": _T(signed(lambda one: one["files"].update({"": "0" * 64})), "files"),
    "weights that are cut short": _T(remade(_OF_WEIGHTS, lambda body: body[:-4]), "generator"),
    "weights that are no file of weights": _T(remade(_OF_WEIGHTS, lambda body: b"\x80\x05K\x01."), "generator"),
    "a weight that is no number": _T(remade(_OF_WEIGHTS, not_a_number), "generator"),
    "weights without an array": _T(without_moves, "generator"),
    # events
    "the last event left out": _T(signed(of_site(lambda site: site["events"].pop())), "spending"),
    "the last event left out, all recounted": _T(
        signed(lambda one: (one["sites"][SITES[0]]["events"].pop(), recounted(one))), "spending"
    ),
    "an event added": _T(signed(of_site(lambda site: site["events"].append(deepcopy(site["events"][0])))), "spending"),
    "events in another order": _T(signed(of_site(lambda site: site["events"].reverse())), "spending"),
    "more noise than was drawn": _T(signed(in_event(noise_stddev=1e6)), "spending"),
    "more noise, all recounted": _T(signed(cheaper), "spending"),
    "a smaller sensitivity": _T(signed(in_event(squared_sensitivity=1)), "spending"),
    "a sampling that says nothing": _T(signed(in_event(sampling=1.0)), "spending"),
    "a sampling that hides": _T(signed(in_event(sampling=0.001)), "spending"),
    "a field of an event that nobody knows": _T(signed(in_event(discount=2)), "certificate"),
    "no events": _T(signed(of_site(put(events=[]))), "spending"),
    "a larger bound": _T(signed(of_site(put(bound=1.0))), "spending"),
    "a larger bound, signed by made-up sites": _T(
        all_by_attacker(lambda one: [site.update(bound=1.0) for site in one["sites"].values()]), "guarantee"
    ),
    # claims
    "epsilon lowered and not signed": _T(edited(lowered), "signature"),
    "epsilon lowered": _T(signed(lowered), "epsilon"),
    "epsilon lowered by a hundred-thousandth": _T(signed(lowered_a_little), "epsilon"),
    "epsilon raised above the limit": _T(signed(lambda one: claim(one, 1.5)), "guarantee"),
    "epsilon of the guarantee alone": _T(signed(lambda one: claim(one, 0.5)), "epsilon"),
    "a higher limit": _T(signed(in_guarantee(limit_epsilon=2.0)), "study"),
    "a smaller delta": _T(signed(in_guarantee(delta=1e-9)), "study"),
    "a larger delta of a site": _T(signed(of_site(put(delta=1e-3))), "study"),
    "another unit": _T(signed(put(unit="hospital")), "study"),
    "another relation": _T(signed(put(relation="replace one record")), "study"),
    "masks that were none": _T(signed(put(noise_trust="local, sums masked")), "study"),
    "another accountant": _T(signed(of_site(put(accountant={"kind": "rdp", "order": 8}))), "study"),
    "another word on how is counted": _T(signed(put(accountant="exact")), "study"),
    "another statement": _T(signed(in_guarantee(statement="Nothing can be learned about anybody.")), "guarantee"),
    "a statement of two lines": _T(signed(in_guarantee(statement="VALID\nnothing")), "guarantee"),
    "an exception less": _T(signed(lambda one: one["not_covered"].pop()), "study"),
    "no exceptions": _T(signed(put(not_covered=[])), "study"),
    "less was spent": _T(signed(of_site(put(spent={"train": 0.01, "holdout": 0.0}))), "epsilon"),
    "nothing for the draws": _T(signed(of_site(put(sampler_delta=0.0))), "epsilon"),
    "no gates": _T(signed(put(gates=[])), "gates"),
    "a gate that was not passed": _T(signed(in_gate(**{"pass": False})), "gates"),
    "a gate that only says that it was passed": _T(signed(in_gate(value=1e6)), "gates"),
    "a gate of no figure": _T(signed(in_gate(value=None)), "gates"),
    "a wider gate": _T(signed(in_gate(threshold=1e9)), "gates"),
    "void": _T(signed(make_void), "guarantee"),
    "void, and a guarantee": _T(signed(put(void_because=VOID)), "guarantee"),
    "a guarantee on known noise": _T(
        all_by_attacker(lambda one: [event.update(noise="test-seed") for event in one["sites"][SITES[0]]["events"]]),
        "epsilon",
    ),
    # the study
    "another study": _T(
        remade("generator/generator.json", study_of(lambda study: study["privacy"].update(epsilon=5.0))), "study"
    ),
    "another study, by its digest": _T(signed(lambda one: one["study"].update(digest="0" * 64)), "spending"),
    "another name of the study": _T(signed(lambda one: one["study"].update(name="other")), "study"),
    "a study with a key twice": _T(
        remade("generator/generator.json", once('"name": "tiny"', '"name": "tiny", "name": "tiny"')), "study"
    ),
    "a generator of another version": _T(
        remade("generator/generator.json", once("privshare.generator/2", "privshare.generator/3")), "study"
    ),
    # sites and their ledgers
    "two keys exchanged": _T(signed(swap_keys), "spending"),
    "two sites exchanged": _T(signed(swap_sites), "spending"),
    "a key of the attacker": _T(signed(of_site(put(key="a" * 64))), "spending"),
    "a site left out": _T(signed(drop_site), "ledgers"),
    "a site left out, with its attestations": _T(signed(drop_site_well), "spending", sites_are_pinned=True),
    "no sites": _T(signed(put(sites={})), "certificate"),
    "no attestations": _T(signed(of_site(put(attestations=[]))), "ledgers"),
    "an attestation less": _T(signed(of_site(lambda site: site["attestations"].pop())), "ledgers"),
    "an attestation twice": _T(
        signed(of_site(lambda site: site.update(attestations=[site["attestations"][0]] * 2))), "ledgers"
    ),
    "an attestation of an older head": _T(signed(of_site(attest_older)), "ledgers"),
    "an attestation of a newer head": _T(signed(attest(sequence=10**6, hash="f" * 64)), "ledgers"),
    "an attestation of another ledger": _T(signed(attest(ledger="f" * 64)), "ledgers"),
    "an attestation of another site": _T(signed(attest(site=SITES[2])), "ledgers"),
    "a forged attestation": _T(
        signed(of_site(lambda site: site["attestations"][0].update(signature="0" * 128))), "ledgers"
    ),
    "an attestation of its own": _T(
        signed(of_site(lambda site: site["attestations"][0].update(witness=SITES[0]))), "ledgers"
    ),
    "an older head": _T(signed(of_site(older_head)), "spending"),
    "a forged head": _T(signed(of_site(lambda site: site["ledger_head"].update(hash="f" * 64))), "ledgers"),
    "one party for all sites": _T(
        signed(lambda one: resign_sites(one, lambda name: SigningKey.from_seed(b"o" * 32))), "ledgers"
    ),
    # the coordinator
    "another run": _T(edited(put(run="other")), "signature"),
    "another kind of signer": _T(edited(lambda one: one["signature"].update(signer="coordinator")), "signature"),
    "the key of another": _T(edited(lambda one: one["signature"].update(key=ATTACKER.public)), "signature"),
    "no signature": _T(edited(put(signature=None)), "certificate"),
    "a signature that is no text": _T(edited(lambda one: one["signature"].update(signature=7)), "certificate"),
    "signed again by a stranger, with the key pinned": _T(signed(lambda one: None), "signature", is_pinned=True),
    "all made up, with the key pinned": _T(all_by_attacker(cheaper), "signature", is_pinned=True),
    "all made up, with the sites' keys pinned": _T(all_by_attacker(cheaper), "spending", sites_are_pinned=True),
    # the form
    "another version": _T(signed(put(schema="privshare.certificate/3")), "certificate"),
    "the version before": _T(signed(put(schema="privshare.certificate/1")), "certificate"),
    "a field that nobody knows": _T(signed(put(approved=True)), "certificate"),
    "a field less": _T(signed(lambda one: one.pop("relation")), "certificate"),
    "NaN": _T(raw(once('"limit_epsilon": 1.0', '"limit_epsilon": NaN')), "certificate"),
    "infinity": _T(raw(once('"limit_epsilon": 1.0', '"limit_epsilon": Infinity')), "certificate"),
    "a number beyond a float": _T(raw(once('"limit_epsilon": 1.0', '"limit_epsilon": 1e999')), "certificate"),
    "a number of 5000 digits": _T(raw(once('"limit_epsilon": 1.0', f'"limit_epsilon": {"9" * 5000}')), "certificate"),
    "a number of 400 digits": _T(signed(in_guarantee(limit_epsilon=10**400)), "certificate"),
    "an event of 400 digits": _T(signed(in_event(squared_sensitivity=10**400)), "spending"),
    "an event without noise": _T(signed(in_event(noise_stddev=0)), "certificate"),
    "an event of next to no noise": _T(signed(in_event(noise_stddev=5e-324)), "spending"),
    "a sequence of 400 digits": _T(
        signed(of_site(lambda site: site["ledger_head"].update(sequence=10**400))), "spending"
    ),
    "half a letter": _T(signed(put(run="\ud800")), "certificate"),
    "a key twice": _T(raw(once('"run":', '"run": "other", "run":')), "certificate"),
    "a truth for a number": _T(signed(of_site(put(epsilon=True))), "certificate"),
    "a text for a number": _T(signed(of_site(put(bound="1"))), "certificate"),
    "a text for a list": _T(signed(of_site(put(events="none"))), "certificate"),
    "a list for an object": _T(signed(put(sites=[])), "certificate"),
    "a number for an event": _T(signed(of_site(put(events=[7]))), "certificate"),
    "a list for an attestation": _T(signed(of_site(put(attestations=[[]]))), "certificate"),
    "a key in capitals": _T(signed(of_site(lambda site: site.update(key=site["key"].upper()))), "certificate"),
    "a list": _T(raw(lambda body: b"[" + body + b"]"), "certificate"),
    "nothing": _T(raw(lambda body: b""), "certificate"),
    "half of it": _T(raw(lambda body: body[: len(body) // 2]), "certificate"),
    "a thousand brackets": _T(raw(lambda body: b"[" * 100_000), "certificate"),
    "no text at all": _T(raw(lambda body: b"\xff\xfe" + body), "certificate"),
}
