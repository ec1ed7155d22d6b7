"""Files of a site that is simulated: as a real one would have them, its keys from a seed, so that it can be repeated.

For simulations, and for a site's own rehearsal. No real site has such keys: whoever knows the seed has them too.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml

from client.policy import POLICY_SCHEMA, sign_policy
from common.errors import OutputError
from common.files import write_private
from common.privacy.signatures import SigningKey
from common.privacy.witness import MOST_WITNESSES
from common.study import Study

COORDINATOR: Final = "(coordinator)"
"""Stands for the coordinator of simulated sites; no site can have this name."""


@dataclass(frozen=True)
class SiteFolder:
    """Where a simulated site lives: its private files, and what a run keeps of it."""

    name: str
    settings: Path


def make_site_folder(
    name: str,
    study_path: Path,
    study: Study,
    tables: Mapping[str, str],
    *,
    private: Path,
    kept: Path,
    seed: int,
    peers: Collection[str] = (),
    witnesses: int | None = None,
) -> SiteFolder:
    """Write a simulated site's files, as a real one would have them.

    Args:
        name: of the site.
        study_path: the study file.
        study: the same, for the digest that the site approves.
        tables: CSV text: "table", the site's records, and with windows "series", the long table.
        private: folder for the records and the site file; the caller deletes it.
        kept: the run's folder, for ledger, keys and sealed replies.
        seed: of the simulation; the site's keys follow from it, so that a run can be repeated.
        peers: names of the other sites, whose keys follow from the same seed.
        witnesses: how many of them must confirm the site's ledger; None for all.

    Raises:
        OutputError: a folder cannot be written.
    """
    state, folder = kept / "sites" / name, private / name
    settings = {
        "site": name,
        "source": {"type": "csv", **{kind: str(folder / f"{kind}.csv") for kind in tables}},
        "study": str(study_path),
        "policy": str(folder / "policy.yaml"),
        "ledger": str(kept / "ledger" / f"{name}.jsonl"),
        "state": str(state),
    }
    policy = {
        "schema": POLICY_SCHEMA,
        "site": name,
        "asset": "simulated",
        "approved": study.digest(),
        "max_epsilon": study.privacy.epsilon,
        "max_delta": study.privacy.delta,
        "total_epsilon": study.privacy.epsilon,
        "total_delta": study.privacy.delta,
        "coordinator": identity_of(COORDINATOR, seed).public,
        "peers": {peer: identity_of(peer, seed).public for peer in peers},
        "witnesses": witnesses,
    }
    identity = identity_of(name, seed)
    try:
        folder.mkdir(parents=True, mode=0o700)
        for kind, text in tables.items():
            (folder / f"{kind}.csv").write_text(text, encoding="utf-8")
        (folder / "site.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        (folder / "policy.yaml").write_text(yaml.safe_dump(policy, sort_keys=False), encoding="utf-8")
        sign_policy(folder / "policy.yaml", identity)
        for file, secret in (("site.key", unit_secret_of(name, seed=seed)), ("identity.pem", identity.as_pem())):
            if not (state / file).exists():
                write_private(state / file, secret)
    except OSError as error:
        raise OutputError(f"{state}: cannot be written ({error.strerror})") from None
    return SiteFolder(name, folder / "site.yaml")


def peers_of(name: str, names: Sequence[str], study: Study) -> list[str]:
    """Whom a simulated site knows: all others, or of many those beside it, as many as it would ask to be witnesses.

    With the keys of all others in each policy, policies would be what a simulation of a thousand sites is made of.
    Masks need them all.
    """
    place, half = names.index(name), MOST_WITNESSES // 2
    others = [*names[place + 1 :], *names[:place]]
    if len(others) <= MOST_WITNESSES or study.privacy.noise_trust == "masked":
        return others
    return [*others[:half], *others[-half:]]


def identity_of(name: str, seed: int) -> SigningKey:
    """What a simulated site, or the coordinator, signs with."""
    return SigningKey.from_seed(_secret_of(name, seed, b"identity"))


def unit_secret_of(name: str, *, seed: int) -> bytes:
    """What a simulated site's choices about units are keyed by."""
    return _secret_of(name, seed, b"units")


def _secret_of(name: str, seed: int, purpose: bytes) -> bytes:
    return hashlib.blake2b(name.encode(), key=seed.to_bytes(8, "big"), person=purpose, digest_size=32).digest()
