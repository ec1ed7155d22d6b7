r"""Verify a privshare release with Python and `cryptography` alone: python verify_release.py RELEASE [--key HEX].

This file shares no code with the program that made the release, so that a mistake there is not repeated here. It reads
RELEASE/certificate.json and the files that it lists, goes nowhere else, and prints one line a check. Exit code: 0 if
all hold, 1 if not, 2 if it was called wrongly.

What is signed, by Ed25519 over b"privshare " + purpose + b"\0" + canonical JSON (sorted keys, no white space, ASCII):
  "certificate"  by the coordinator: the certificate without the digits of this signature
  "spending"     by each site: its name, the study, the head of its ledger, its bound and all events
  "statement"    by each site: the head of its ledger, the hash chain of all that it ever spent
  "attestation"  by other sites: the newest head of that ledger that they ever saw

Epsilon, recomputed: an event with sensitivity D and Gaussian noise of standard deviation s costs mu^2 = D^2 / s^2;
these add up. A unit is either trained on or held out, so a site's epsilon is that of its dearer account.
"""

import argparse
import array
import hashlib
import json
import math
import re
import struct
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

TABLE, SERIES = "synthetic.csv", "synthetic-windows.csv"
FACTS, WEIGHTS = "generator/generator.json", "generator/generator.safetensors"
CARDS = {"card.md", "croissant.json"}
RELATION = "add or remove one unit at one site"
ACCOUNTANT = "a filter: the sum of each account's spends stays below its bound, fixed before the first"
NOT_COVERED = [
    "A unit that is present at m sites has the composed loss of m sites: squared mu adds up.",
    "Properties of a whole population are not hidden: only the part that one unit plays in them is.",
    "A site that lies about its own data or its own noise is not detected by this certificate.",
    "That a site refuses to take part, because its table is not as the study says, is not hidden.",
    "Timing, message order and the existence of a run are not covered.",
    "The guarantee assumes that each site's own host is honest and that its ledger is complete.",
    "What a site spent after the entry of its ledger that is named here is not counted here; the site can tell.",
    "Whether a site was left out of this certificate, only the sites can tell: ask for each of them by its key.",
]
MASKED = [
    "Masks hide which site said what, if X25519, HKDF-SHA256, ChaCha20 and Ed25519 are what they are taken for.",
    "They hide it from whoever is no site, and from sites that work together while two others are not among them.",
    "The guarantee does not rest on masks: each site's noise is all that its claim needs.",
    "The sum over all sites is not hidden, and neither is what one site said from all others together.",
]
MOST_WITNESSES = 16  # other sites that each site asks to attest its ledger; in a smaller federation all
DRAW_ERROR = 2.0**-200  # of one noise draw, in total variation; taken off delta
TOLERANCE, DUST = 1e-6, 1e-9  # relative and absolute: what rounding may make of a number
Json = dict[str, Any]


class WrongError(Exception):
    """Why a check does not hold."""


def expect(condition: object, reason: str) -> None:
    """Stop a check unless something holds."""
    if not condition:
        raise WrongError(reason)


# --- reading


def read(folder: Path, name: str) -> bytes:
    """The bytes of a file."""
    try:
        expect(not (folder / name).exists() or (folder / name).is_file(), f"{name}: is not a file")
        return (folder / name).read_bytes()
    except (OSError, ValueError):
        raise WrongError(f"{name}: cannot be read") from None


def read_json(folder: Path, name: str) -> Json:
    """A JSON object that leaves no room for two readings: no key twice, no NaN, nothing beyond a float."""

    def unique(pairs: list[tuple[str, Any]]) -> Json:
        expect(len(dict(pairs)) == len(pairs), f"{name}: a key is there twice")
        return dict(pairs)

    def finite(text: str) -> float:
        expect(math.isfinite(float(text)), f"{name}: a number is beyond a float")
        return float(text)

    def refuse(word: str) -> NoReturn:
        raise WrongError(f"{name}: {word} is no number")

    body = read(folder, name)
    try:
        found = json.loads(body.decode(), object_pairs_hook=unique, parse_constant=refuse, parse_float=finite)
    except (ValueError, RecursionError):
        raise WrongError(f"{name}: is not JSON") from None
    expect(isinstance(found, dict), f"{name}: expected an object")
    return dict(found)


# Every field of every object in a certificate, and what it may be: a number, a whole number, a text, an object, a list,
# a truth, a key (32 bytes in hexadecimal), a signature (64), or one of some texts. "?" lets null pass.
FORMS = {
    "certificate": "schema=privshare.certificate/2 study:object run:text unit:text relation:text noise_trust:text "
    "guarantee:?object void_because:?text accountant:text sites:object not_covered:list gates:list files:object "
    "signature:object",
    "study": "name:text digest:key",
    "guarantee": "epsilon:number delta:number limit_epsilon:number statement:text",
    "signature": "signer=coordinator|simulation key:key signature:signature",
    "site": "accountant:object epsilon:number delta:number sampler_delta:number bound:number spent:object key:key "
    "ledger_head:object attestations:list events:list signature:signature",
    "spent": "train:number holdout:number",
    "statement": "site:text ledger:text sequence:whole hash:text past:list signature:text",
    "attestation": "witness:text site:text ledger:text sequence:whole hash:text nonce:text signature:text",
    "event": "type=gaussian account=train|holdout squared_sensitivity:whole noise_stddev:number cells:whole "
    "scale:whole noise=csprng|test-seed",
    "gate": "id:text rule:text value:?number threshold:number pass:truth visibility=public",
}
TYPES = {"object": dict, "list": list, "truth": bool}


def is_kind(value: object, kind: str) -> bool:
    """Whether a value is what a field may be."""
    if kind.startswith("?"):
        return value is None or is_kind(value, kind[1:])
    if kind == "whole":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "number":
        return isinstance(value, float) or (is_kind(value, "whole") and abs(value) < 10**308)  # type: ignore[arg-type]
    if kind in ("key", "signature"):
        return isinstance(value, str) and re.fullmatch(f"[0-9a-f]{{{64 if kind == 'key' else 128}}}", value) is not None
    if kind == "text":
        return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)  # halves of letters
    return isinstance(value, TYPES[kind])


def check_form(value: Any, form: str, where: str) -> None:
    """Refuse an object with a field too many, too few, or not of its kind."""
    fields = [re.split("([:=])", field, maxsplit=1) for field in FORMS[form].split()]
    expect(isinstance(value, dict) and set(value) == {field[0] for field in fields}, f"{where}: has not its fields")
    for name, sign, kind in fields:
        is_fit = is_kind(value[name], kind) if sign == ":" else value[name] in kind.split("|")
        expect(is_fit, f"{where}.{name}: is not what it should be")


def check_forms(certificate: Json) -> None:
    """All of a certificate, so that what follows can take its types for granted."""
    check_form(certificate, "certificate", "certificate")
    for part in ("study", "signature", "guarantee"):
        if certificate[part] is not None:
            check_form(certificate[part], part, part)
    expect(certificate["sites"], "sites: expected one at least")
    for name, site in certificate["sites"].items():
        check_form(site, "site", f"sites.{name}")
        check_form(site["spent"], "spent", f"sites.{name}.spent")
        check_form(site["ledger_head"], "statement", f"sites.{name}.ledger_head")
        for one in site["attestations"]:
            check_form(one, "attestation", f"sites.{name}.attestations")
        for event in site["events"]:
            expect(isinstance(event, dict), f"sites.{name}.events: expected objects")
            check_form(without(event, "sampling"), "event", f"sites.{name}.events")
            is_positive = all(event[key] > 0 for key in ("squared_sensitivity", "noise_stddev", "cells", "scale"))
            sampling = event.get("sampling", 1.0)
            expect(is_positive and is_kind(sampling, "number") and 0 < sampling <= 1, f"sites.{name}.events: a number")
    for gate in certificate["gates"]:
        check_form(gate, "gate", "gates")
    expect(all(is_kind(one, "key") for one in certificate["files"].values()), "files: expected SHA-256 sums")


def without(data: Json, name: str) -> Json:
    """An object but for one field."""
    return {key: value for key, value in data.items() if key != name}


def is_signed(data: Json, signature: str, purpose: str, key: str) -> bool:
    """Whether the owner of a key signed an object for a purpose."""
    body = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    try:
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))
        public.verify(bytes.fromhex(signature), b"privshare " + purpose.encode() + b"\0" + body)
    except (InvalidSignature, ValueError):
        return False
    return is_kind(signature, "signature")


# --- epsilon


def log_upper_tail(x: float) -> float:
    """Logarithm of P(N(0, 1) > x); beyond 30 by the first terms of its asymptotic series."""
    if x < 30:
        return math.log(math.erfc(x / math.sqrt(2)) / 2)
    return -x * x / 2 - math.log(x * math.sqrt(2 * math.pi)) + math.log1p(-1 / x**2 + 3 / x**4 - 15 / x**6)


def gaussian_delta(mu: float, epsilon: float) -> float:
    """The delta that mu-GDP has at epsilon: Dong, Roth and Su 2022, Corollary 1."""
    first = math.exp(log_upper_tail(epsilon / mu - mu / 2))
    return first - math.exp(epsilon + log_upper_tail(epsilon / mu + mu / 2))


def gaussian_epsilon(squared_mu: float, delta: float) -> float:
    """The smallest epsilon for which that delta is enough, by bisection."""
    mu = math.sqrt(squared_mu)
    if mu == 0 or math.erf(mu / math.sqrt(8)) <= delta:
        return 0.0
    if mu > 1e4:
        return math.inf
    low, high = 0.0, 1.0
    while gaussian_delta(mu, high) > delta:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(mu, middle) > delta else (low, middle)
    return high


def divergence(order: int, squared_mu: float, sampling: float) -> float:
    """Rényi divergence of a Poisson-sampled Gaussian: Mironov, Talwar and Zhang 2019, by exact binomials."""
    if sampling == 1:
        return order * squared_mu / 2
    terms = []
    for i in range(order + 1):
        weight = math.log(math.comb(order, i)) + i * math.log(sampling) + (order - i) * math.log1p(-sampling)
        terms.append(weight + i * (i - 1) / 2 * squared_mu)
    top = max(terms)
    return max(0.0, top + math.log(math.fsum(math.exp(term - top) for term in terms))) / (order - 1)


def conversion(order: int, delta: float) -> float:
    """What makes epsilon of a Rényi divergence, added to it: Canonne, Kamath and Steinke 2020, Proposition 12."""
    return math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)


def epsilon_of(loss: float, order: int | None, delta: float) -> float:
    """Epsilon of a sum of squared mu, or of divergences at an order; nothing where delta pays for all of it."""
    if order is None:
        return gaussian_epsilon(loss, delta)
    return 0.0 if loss <= delta * delta * (1 + DUST) else max(0.0, loss + conversion(order, delta))


def losses_of(site: Json, order: int | None) -> dict[str, float]:
    """What each account of a site spent."""
    found: dict[str, list[float]] = {"train": [], "holdout": []}
    for event in site["events"]:
        squared_mu = event["squared_sensitivity"] / event["noise_stddev"] / event["noise_stddev"]
        loss = squared_mu if order is None else divergence(order, squared_mu, event.get("sampling", 1.0))
        found[event["account"]].append(loss)
    return {account: math.fsum(spends) for account, spends in found.items()}


def is_near(found: float, expected: float) -> bool:
    """Equal but for rounding."""
    return abs(found - expected) <= TOLERANCE * abs(expected) + DUST


# --- checks: each returns what it found, or raises WrongError


@dataclass(frozen=True)
class Release:
    """What is checked: a folder, its certificate with every field of its type, and keys that the caller vouches for."""

    folder: Path
    certificate: Json
    keys: list[str]
    site_keys: dict[str, str]

    @property
    def sites(self) -> dict[str, Json]:
        """Of the certificate, by name."""
        return dict(self.certificate["sites"])

    @cached_property
    def study(self) -> Json:
        """The study in the release, every default written out."""
        facts = read_json(self.folder, FACTS)
        expect(facts.get("schema") == "privshare.generator/2", f"{FACTS}: of another version")
        expect(isinstance(facts.get("study"), dict), f"{FACTS}: holds no study")
        return dict(facts["study"])

    @cached_property
    def order(self) -> int | None:
        """The Rényi order that follows from the study; None where it counts in Gaussian differential privacy."""
        privacy = self.study["privacy"]
        if privacy["accountant"] == "gdp":
            return None
        budgets = {order: privacy["epsilon"] - conversion(order, privacy["delta"]) for order in range(2, 1025)}
        return min((one for one in budgets if budgets[one] > 0), key=lambda order: (order / budgets[order], order))


def check_signature(release: Release) -> str:
    """By the coordinator, over all of the certificate."""
    said = release.certificate["signature"]
    expect(not release.keys or said["key"] in release.keys, f"the certificate names another key, {said['key']}")
    body = {**release.certificate, "signature": without(said, "signature")}
    expect(is_signed(body, said["signature"], "certificate", said["key"]), "the certificate is not what was signed")
    return f"the {said['signer']} {said['key']} signed all of the certificate"


def check_files(release: Release) -> str:
    """Those listed are there, and nothing else that could be taken for a part of the release."""
    folder, listed = release.folder, release.certificate["files"]
    for name, digest in listed.items():
        parts = PurePosixPath(name).parts
        is_plain = "\\" not in name and ".." not in parts and not name.startswith("/") and name == "/".join(parts) != ""
        expect(is_plain, f"{name}: not the name of a file of a release")
        expect(hashlib.sha256(read(folder, name)).hexdigest() == digest, f"{name}: is not the file that is listed")
    usable = [path for path in folder.glob("synthetic*") if path.suffix.lower() in (".csv", ".parquet")]
    usable += [path for path in (folder / "generator").rglob("*") if not path.is_dir()]
    extra = {path.relative_to(folder).as_posix() for path in usable} - set(listed)
    expect(not extra, f"{', '.join(sorted(extra))}: not in the certificate")
    return f"{len(listed)} files are those that are listed, and no other is there to be taken for one"


def check_study(release: Release) -> str:
    """The study in the release is the certificate's, and so is what follows from it."""
    study, said = release.study, release.certificate
    digest = hashlib.sha256(json.dumps(study, separators=(",", ":")).encode()).hexdigest()
    expect(digest == said["study"]["digest"], f"{FACTS}: its study is not the certificate's")
    privacy, is_masked = study["privacy"], study["privacy"]["noise_trust"] == "masked"
    accountant = {"kind": "gdp"} if release.order is None else {"kind": "rdp", "order": release.order}
    follows = {
        "study.name": (said["study"]["name"], study["name"]),
        "unit": (said["unit"], study["unit"]["name"]),
        "relation": (said["relation"], RELATION),
        "noise_trust": (said["noise_trust"], "local, sums masked" if is_masked else "local"),
        "accountant": (said["accountant"], ACCOUNTANT),
        "not_covered": (said["not_covered"], NOT_COVERED + (MASKED if is_masked else [])),
        "files": (set(said["files"]), {TABLE, FACTS, WEIGHTS} | CARDS | ({SERIES} if study["windows"] else set())),
    }
    for name, site in release.sites.items():
        follows[f"sites.{name}.accountant"] = (site["accountant"], accountant)
        follows[f"sites.{name}.delta"] = (site["delta"], privacy["delta"])
    if said["guarantee"] is not None:
        follows["guarantee.delta"] = (said["guarantee"]["delta"], privacy["delta"])
        follows["guarantee.limit_epsilon"] = (said["guarantee"]["limit_epsilon"], privacy["epsilon"])
    for name, (found, expected) in follows.items():
        expect(found == expected, f"{name}: is not what follows from the study")
    return f"{study['name']}, digest {digest}, and what the certificate says of it is so"


def check_generator(release: Release) -> str:
    """The weights are a whole safetensors file of finite numbers, with arrays for every column."""
    study, body = release.study, read(release.folder, WEIGHTS)
    length = struct.unpack("<Q", body[:8].ljust(8, b"\xff"))[0]
    header = json.loads(body[8 : 8 + length])
    arrays = sorted(without(header, "__metadata__").items(), key=lambda one: one[1]["data_offsets"])
    data, end, numbers = body[8 + length :], 0, 0
    for name, one in arrays:
        size, kind = {"F32": (4, "f"), "F64": (8, "d"), "I64": (8, "q")}[one["dtype"]]
        begin, stop = one["data_offsets"]
        expect(begin == end and stop - begin == size * math.prod(one["shape"]), f"{WEIGHTS}: {name}: is damaged")
        values = array.array(kind, data[begin:stop])
        if sys.byteorder == "big":
            values.byteswap()
        expect(all(map(math.isfinite, values)), f"{WEIGHTS}: {name}: is not finite")
        end, numbers = stop, numbers + len(values)
    expect(end == len(data), f"{WEIGHTS}: is not of the length that it says")
    columns = range(len(study["columns"]) - 1 + len((study["windows"] or {}).get("channels", {})))  # not the label
    needed = {"moves", "label_counts"} | {f"{what}.{at}" for what in ("bins", "within") for at in columns}
    expect(needed < {name for name, _ in arrays}, f"{WEIGHTS}: lacks arrays that the study needs")
    return f"{len(arrays)} arrays of {numbers} finite numbers"


def check_spending(release: Release) -> str:
    """Each site signed its events and its bound, at the head of its ledger."""
    for name, key in release.site_keys.items():
        is_there = release.sites.get(name, {}).get("key") == key
        expect(is_there, f"site {name}: is not in the certificate, or has another key there")
    for name, site in release.sites.items():
        check_head(name, site)
        body = {key: site["ledger_head"][key] for key in ("site", "ledger", "sequence", "hash")}
        body |= {"study": release.certificate["study"]["digest"], "bound": site["bound"], "events": site["events"]}
        expect(is_signed(body, site["signature"], "spending", site["key"]), f"site {name}: did not sign these events")
    return f"{len(release.sites)} sites signed {sum(len(one['events']) for one in release.sites.values())} events"


def check_head(name: str, site: Json) -> None:
    """A site signed the head of its ledger."""
    head = site["ledger_head"]
    is_own = head["site"] == name and is_signed(without(head, "signature"), head["signature"], "statement", site["key"])
    expect(is_own, f"site {name}: the head of its ledger is not signed by it")


def check_ledgers(release: Release) -> str:
    """Enough other sites attested each head, and none of them saw a newer or another one."""
    sites = release.sites
    parties = {release.certificate["signature"]["key"], *(site["key"] for site in sites.values())}
    expect(len(parties) == len(sites) + 1, "two parties have one key")
    needed = min(min(release.study["rounds"]["quorum"] or len(sites), len(sites)) - 1, MOST_WITNESSES)
    for name, site in sites.items():
        check_head(name, site)
        head, witnesses = site["ledger_head"], set()
        for one in site["attestations"]:
            by = one["witness"]
            is_another = one["site"] == name != by and by in sites and by not in witnesses
            expect(is_another, f"site {name}: an attestation that is not of another site, or is there twice")
            is_own = is_signed(without(one, "signature"), one["signature"], "attestation", sites[by]["key"])
            expect(is_own, f"site {name}: an attestation that {by} did not sign")
            if all(one[key] == head[key] for key in ("ledger", "sequence", "hash")):
                witnesses.add(by)
            else:
                expect(one["sequence"] < head["sequence"], f"site {name}: {by} saw another ledger, or a newer entry")
        expect(len(witnesses) >= needed, f"site {name}: {len(witnesses)} others attested its ledger, not {needed}")
    return f"the head of each ledger is attested by {needed} other sites or more"


def check_epsilon(release: Release) -> str:
    """Every number of every site follows from its events."""
    found = {}
    for name, site in release.sites.items():
        drawn = sum(event["cells"] for event in site["events"]) * DRAW_ERROR
        expect(site["sampler_delta"] == drawn, f"site {name}: sampler_delta does not follow from its events")
        losses = losses_of(site, release.order)
        for account, loss in losses.items():
            expect(is_near(site["spent"][account], loss), f"site {name}: {account} did not spend what is said")
            expect(loss <= site["bound"] * (1 + DUST), f"site {name}: {account} spent more than the bound")
        found[name] = epsilon_of(max(losses.values()), release.order, site["delta"] - drawn)
        claimed = site["epsilon"]
        expect(is_near(claimed, found[name]), f"site {name}: claims epsilon {claimed:.9g}, spent {found[name]:.9g}")
    if release.certificate["guarantee"] is not None:
        largest = max(site["epsilon"] for site in release.sites.values())
        expect(release.certificate["guarantee"]["epsilon"] == largest, "its epsilon is not the largest of the sites'")
        noises = {event["noise"] for site in release.sites.values() for event in site["events"]}
        expect(noises <= {"csprng"}, "a guarantee is stated, but some noise is not from a cryptographic source")
    return f"recomputed from all events: {', '.join(f'{name} {one:.6g}' for name, one in found.items())}"


def check_guarantee(release: Release) -> str:
    """There is one, within the study's limit, in words that say what its numbers say."""
    said, privacy, unit = release.certificate["guarantee"], release.study["privacy"], release.study["unit"]["name"]
    void = release.certificate["void_because"]
    expect(said is not None and void is None, f"void: {void or 'the certificate states none'}")
    expect(said["epsilon"] <= privacy["epsilon"] * (1 + DUST), f"epsilon {said['epsilon']:.9g} is above the study's")
    for name, site in release.sites.items():
        most = epsilon_of(site["bound"], release.order, site["delta"] - site["sampler_delta"])
        expect(most <= privacy["epsilon"] * (1 + TOLERANCE), f"site {name}: its bound allows more than the study")
    statement = (
        f"For every {unit} present at one site, everything that left the site is ({said['epsilon']:.6g}, "
        f"{privacy['delta']:g})-differentially private, add or remove one {unit} with all its records."
    )
    expect(said["statement"] == statement, "its statement does not say what its numbers say")
    return f"epsilon {said['epsilon']:.6g} is within the study's {privacy['epsilon']:g}, delta {privacy['delta']:g}"


def check_gates(release: Release) -> str:
    """The study's gates whose figures may be public were all passed."""
    asked, gates = release.study["gates"], release.certificate["gates"]
    expected = [(name, asked[name]) for name in ("monitor_auc", "misfit") if asked[name] is not None]
    expect([(gate["id"], gate["threshold"]) for gate in gates] == expected, "gates: are not those of the study")
    for gate in gates:
        value, threshold = gate["value"], gate["threshold"]
        fits = value is not None and (value >= threshold if gate["id"] == "monitor_auc" else value <= threshold)
        expect(gate["pass"] and fits, f"gates.{gate['id']}: was not passed")
    return f"{len(gates)} passed" if gates else "the study has none that may be public"


CHECKS = {
    "signature": check_signature,
    "files": check_files,
    "study": check_study,
    "generator": check_generator,
    "spending": check_spending,
    "ledgers": check_ledgers,
    "epsilon": check_epsilon,
    "guarantee": check_guarantee,
    "gates": check_gates,
}
MALFORMED = (ArithmeticError, ValueError, TypeError, KeyError, AttributeError, RecursionError)


def verify(folder: Path, keys: list[str], site_keys: dict[str, str]) -> tuple[list[tuple[str, bool, str]], Json]:
    """Name, outcome and reason of each check, and the certificate, empty if it cannot be read."""
    try:
        certificate = read_json(folder, "certificate.json")
        check_forms(certificate)
    except WrongError as wrong:
        return [("certificate", False, str(wrong))], {}
    found = [("certificate", True, f"{certificate['schema']}, run {certificate['run']}")]
    release = Release(folder, certificate, keys, site_keys)
    for name, check in CHECKS.items():
        try:
            found.append((name, True, check(release)))
        except WrongError as wrong:
            found.append((name, False, str(wrong)))
        except MALFORMED:
            found.append((name, False, "what is there cannot be computed with"))
    return found, certificate


def say(text: str) -> None:
    """Print a line, whatever is in a name."""
    sys.stdout.write("".join(letter if letter.isprintable() else " " for letter in text) + "\n")


def main() -> int:
    """Print a line a check, then what is guaranteed, by whose word, and what is not."""
    parser = argparse.ArgumentParser(description="Verify a privshare release, offline.")
    parser.add_argument("release", type=Path, help="folder with certificate.json in it")
    parser.add_argument("--key", action="append", default=[], help="the coordinator's public key, in hexadecimal")
    parser.add_argument("--site-key", action="append", default=[], help="a site's public key, as NAME=HEX")
    given = parser.parse_args()
    keys = [key.lower() for key in given.key]
    site_keys = {name: key.lower() for name, _, key in (one.partition("=") for one in given.site_key)}
    if not all(is_kind(key, "key") for key in [*keys, *site_keys.values()]):
        parser.error("expected keys of 64 hexadecimal digits")
    found, certificate = verify(given.release, keys, site_keys)
    for name, passed, reason in found:
        say(f"{'OK' if passed else 'FAILED':8}{name:13}{reason}")
    failed = sum(not passed for _, passed, _ in found)
    if failed:
        say(f"INVALID: {failed} of {len(found)} checks failed, and nothing is guaranteed")
        return 1
    say("VALID")
    say(certificate["guarantee"]["statement"])
    say(f"The coordinator's key is {'pinned.' if keys else 'NOT PINNED: it is the word of the certificate itself.'}")
    if unpinned := sorted(set(certificate["sites"]) - set(site_keys)):
        say(f"Keys of sites that are NOT PINNED, the word of whoever signed the certificate: {', '.join(unpinned)}")
    if certificate["signature"]["signer"] == "simulation":
        say("The sites were simulated: one party held all their rows and keys, and vouches for them alone.")
    say("Not guaranteed:")
    for line in certificate["not_covered"]:
        say(f"- {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
