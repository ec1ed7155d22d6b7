"""Sums that show no summand: sites add masks to their vectors that cancel once all of them are added up.

Each two sites of a run agree on a secret by X25519 and draw from it, for each request, one vector of uniform 64-bit
words. Of the two, the one whose name comes first adds it and the other subtracts it, modulo 2^64. The sum over all
sites is that of their vectors; of any fewer it is uniform, and so is what one site sends.

Guarantees: a mask is drawn for the transcript: study, run, name and digest of the request, and who takes part with
which keys. Sites that were told different things share no mask, so nothing can be made of what they send.
What it refuses: to add up without a site. There is no way to take a mask off again, so a run that lost a site asks all
of them anew, under another name, and each of them releases anew and pays for it.
What it cannot: keep a site that adds something else from spoiling the sum. And sites that put their knowledge together
see the sum of all others: how much noise that must carry is the accountant's business, not this module's.

Assumptions: X25519 is hard where shared secrets are hashed (oracle Diffie-Hellman), HKDF-SHA256 and ChaCha20 are
pseudorandom, and identity keys are those of the sites.
Source: Bonawitz et al. 2017, section 4, masks of pairs alone. RFC 7748, 5869, 8439.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from common.errors import ProtocolError, TooFewSitesError
from common.privacy.ledger import canonical
from common.privacy.signatures import SigningKey
from common.privacy.witness import _Signed

_MASK, _PARTICIPANTS = "privshare.mask/1", "privshare.participants/1"
_FIELD = 2**255 - 19
"""The prime of Curve25519: a public key is a number below it."""
_CHUNK = 2**16
"""Words of a mask that are in memory at a time."""
_ZEROS = bytes(8 * _CHUNK)


class MaskKey:
    """A site's private key for the masks of one run.

    Whoever keeps it while the run lasts sees to it that no mask is used twice, also by a machine that was restored
    from a backup; see `client.masks`.
    """

    def __init__(self, private: X25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes_raw().hex()

    @classmethod
    def generate(cls) -> Self:
        """A new key, from the operating system."""
        return cls(X25519PrivateKey.generate())

    @classmethod
    def from_private(cls, private: str) -> Self:
        """The key that `private` is of.

        Raises:
            ValueError: it is of none.
        """
        return cls(X25519PrivateKey.from_private_bytes(bytes.fromhex(private)))

    @property
    def private(self) -> str:
        """The private half, in hexadecimal: for the site's own disk, and nothing else."""
        return self._private.private_bytes_raw().hex()

    def announce(self, site: str, *, study: str, run: str, identity: SigningKey) -> "MaskAnnouncement":
        """What the other sites must know of it, signed by the site."""
        return MaskAnnouncement(site, study, run, self.public).signed(identity)

    def shared_with(self, public: str) -> bytes:
        """The secret that this key and the owner of a public one have in common; 32 bytes, to be hashed.

        Raises:
            ProtocolError: not a public key, or one of low order, whose secrets everybody knows.
        """
        try:
            return self._private.exchange(X25519PublicKey.from_public_bytes(_point_of(public)))
        except ValueError:  # the exchange refuses a secret of zeros
            raise ProtocolError("public: not a key that keeps a secret") from None


@dataclass(frozen=True)
class MaskAnnouncement(_Signed):
    """What a site says of its key for the masks of one run, and signs with its identity.

    site: its name.
    study: digest of the study.
    run: name of the run.
    public: the public half of the key.
    """

    site: str
    study: str
    run: str
    public: str

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Read what came in a message.

        Raises:
            ProtocolError: not of this form.
        """
        said = super().from_dict(data)
        try:
            _point_of(said.public)
        except ValueError:
            raise ProtocolError("maskannouncement: not of its form") from None
        return said


@dataclass(frozen=True)
class Participants:
    """The sites that mask for each other, as one of them has verified their announcements; made by `verified`.

    announcements: one a site, in the order of their names.

    >>> identities = {"east": SigningKey.generate(), "north": SigningKey.generate()}
    >>> keys = {site: MaskKey.generate() for site in identities}
    >>> said = [keys[site].announce(site, study="1f", run="run", identity=identities[site]) for site in keys]
    >>> peers = {site: identity.public for site, identity in identities.items()}
    >>> both = Participants.verified(said, own=said[0], peers=peers)
    >>> asked = {"request_identity": "run/one_way", "request_digest": "2e"}
    >>> sent = {site: masked(np.array([1, -3]), key, both, **asked) for site, key in keys.items()}
    >>> unmasked_sum(sent, sent.keys(), cells=2, bound=3).tolist()
    [2, -6]
    """

    announcements: tuple[MaskAnnouncement, ...]

    @classmethod
    def verified(
        cls, announcements: Iterable[MaskAnnouncement], *, own: MaskAnnouncement, peers: Mapping[str, str]
    ) -> Self:
        """All sites of a run, and nobody else: a site that masked for fewer might mask for none but liars.

        Guarantees: exactly the sites of `peers` are there, each once, each with a key that its identity signed for this
        study and run, that no other has and that keeps a secret; the key in this site's name is the one it has now.

        Args:
            announcements: as they came; in any order.
            own: what this site announced last; names the study and the run.
            peers: public identity keys by name, as the site's policy has them, its own among them.

        Raises:
            TooFewSitesError: a site is missing, or there is only one.
            ProtocolError: anything else is not as it should be.
        """
        found: dict[str, MaskAnnouncement] = {}
        for one in announcements:
            _check_announcement(one, own=own, peers=peers)
            if one.site in found:
                raise ProtocolError(f"site {one.site}: announced two keys for masks")
            found[one.site] = one
        _check_names(found, peers)
        if found.get(own.site) != own:
            raise ProtocolError(f"site {own.site}: the announcement in its name is not its last one")
        if len({one.public for one in found.values()}) < len(found):
            raise ProtocolError("sites: two announced the same key for masks")
        return cls(tuple(found[site] for site in sorted(found)))

    @property
    def digest(self) -> str:
        """SHA-256 of what was announced; equal at all sites that were told the same."""
        said = [[one.site, one.study, one.run, one.public] for one in self.announcements]
        return hashlib.sha256(canonical({"purpose": _PARTICIPANTS, "announced": said})).hexdigest()

    def owner_of(self, key: MaskKey) -> MaskAnnouncement:
        """The announcement of a private key.

        Raises:
            ValueError: nobody announced it: a fault of ours.
        """
        owned = [one for one in self.announcements if one.public == key.public]
        if len(owned) != 1:
            raise ValueError("key: is not the one that was announced")
        return owned[0]


def masked(
    vector: np.ndarray, key: MaskKey, participants: Participants, *, request_identity: str, request_digest: str
) -> np.ndarray:
    """What a site sends of a noised vector, (cells,) uint64, a type that never passes for counts.

    Call it once for a request, and keep nothing but the result: two vectors under the same masks show their difference,
    and one vector under the masks of two sets of participants shows itself in the difference of two sums. Nothing here
    depends on how large the numbers are; that their sum fits is for `check_range` to say, from public figures, before
    anything is spent.

    Guarantees: uniform to whoever lacks the private keys of this site and one other participant.

    Args:
        vector: (cells,) int64, noised.
        key: this site's.
        participants: of the run.
        request_identity: by which the ledger knows the request.
        request_digest: of all that was asked.

    Raises:
        ValueError: not such a vector, or a key that was not announced: a fault of ours.
        ProtocolError: a participant's key keeps no secret; `Participants.verified` has seen to it.
    """
    if vector.dtype != np.int64 or vector.ndim != 1:
        raise ValueError("vector: expected whole numbers, in one row")
    own = participants.owner_of(key)
    total = vector.view(np.uint64).copy()
    for other in participants.announcements:
        if other.site == own.site:
            continue
        info = {
            "purpose": _MASK,
            "study": own.study,
            "run": own.run,
            "request": request_identity,
            "request_digest": request_digest,
            "pair": sorted([own.site, other.site]),
        }
        mask_key = _derive(key.shared_with(other.public), salt=bytes.fromhex(participants.digest), info=canonical(info))
        _add_mask(total, mask_key, is_first=own.site < other.site)
    return total


def unmasked_sum(vectors: Mapping[str, np.ndarray], names: Collection[str], *, cells: int, bound: int) -> np.ndarray:
    """The exact sum of what all sites masked, (cells,) int64.

    Edge cases: where masks do not cancel, since sites were told different things or one of them lied, the sum is
    uniform; a cell of it then passes with a chance of (2 * sites * bound + 1) / 2^64.

    Args:
        vectors: by site, as they came.
        names: of all participants.
        cells: length of each vector.
        bound: the largest size of a cell of one site; public.

    Raises:
        TooFewSitesError: a site is missing: nothing can be made of the others.
        ProtocolError: another site's vector, one of another type or length, or masks that do not cancel.
        ValueError: as `check_range`.
    """
    sites = set(names)
    check_range(bound, sites=len(sites))
    _check_names(vectors, sites)
    total = np.zeros(cells, dtype=np.uint64)
    for site in sorted(vectors):
        if vectors[site].dtype != np.uint64 or vectors[site].shape != (cells,):
            raise ProtocolError(f"site {site}: expected {cells} masked numbers")
        total += vectors[site]  # modulo 2^64
    added, most = total.view(np.int64), len(sites) * bound
    if bool(((added < -most) | (added > most)).any()):
        raise ProtocolError("sites: their masks do not cancel; they were not told the same, or one is at fault")
    return added


def check_range(bound: int, *, sites: int) -> None:
    """Refuse figures with which a sum could leave the signed 64-bit integers.

    Args:
        bound: the largest size of a cell of one site: what all its units can add, and the noise's 22 standard
            deviations. Public: were it taken from rows, a refusal would tell of them.
        sites: that are added up.

    Raises:
        ValueError: sites * bound is 2^63 or more, or the bound is negative.
    """
    if not 0 <= bound * sites < 2**63:
        raise ValueError(f"bound={bound}: expected from 0, and below 2^63 over {sites} sites")


def _check_announcement(one: MaskAnnouncement, *, own: MaskAnnouncement, peers: Mapping[str, str]) -> None:
    if one.site not in peers:
        raise ProtocolError(f"site {one.site}: is not among the participants")
    if not one.is_by(peers[one.site]):
        raise ProtocolError(f"site {one.site}: did not sign the key for masks that is said to be its own")
    if (one.study, one.run) != (own.study, own.run):
        raise ProtocolError(f"site {one.site}: its key for masks is of another study or run")
    # Whether a key is of low order does not depend on whose secret it is tried with: each is a multiple of 8.
    MaskKey.generate().shared_with(one.public)


def _check_names(found: Collection[str], expected: Collection[str]) -> None:
    if len(expected) < 2:
        raise TooFewSitesError("sites: a sum hides nothing of a site that is alone; at least 2 are needed")
    if missing := sorted(set(expected) - set(found)):
        raise TooFewSitesError(f"site {missing[0]}: is missing, and without it nothing can be added up")
    if more := sorted(set(found) - set(expected)):
        raise ProtocolError(f"site {more[0]}: is not among the participants")


def _point_of(public: str) -> bytes:
    """Of lower-case hexadecimal, and a number below the prime: X25519 takes several spellings of one key."""
    point = bytes.fromhex(public)
    if len(point) != 32 or point.hex() != public or int.from_bytes(point, "little") >= _FIELD:
        raise ValueError("not a public key")
    return point


def _derive(secret: bytes, *, salt: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(secret)


def _add_mask(total: np.ndarray, key: bytes, *, is_first: bool) -> None:
    """Add a mask to (cells,) uint64, or subtract it, in place: ChaCha20 under a key for this alone, from block 0."""
    encryptor = Cipher(algorithms.ChaCha20(key, b"\0" * 16), mode=None).encryptor()
    for start in range(0, len(total), _CHUNK):
        part = total[start : start + _CHUNK]
        words = np.frombuffer(encryptor.update(memoryview(_ZEROS)[: 8 * len(part)]), dtype="<u8")
        (np.add if is_first else np.subtract)(part, words, out=part)
