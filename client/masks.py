"""A site's key for the masks of the newest run, and the sites that it masks with; see `common.wire.secure_sum`.

Key and participants are in one file that only the site's account can read, from a run's first roll call until the run
is closed or another one begins. On disk, since a site that lost its key would make the sum worthless for which others
have sealed their answers by then, and all would have to release, and pay, anew.

Why that is sound: a mask is made of the key, the participants and the request by its name and digest, and the ledger
charges a name once and lets one answer to it be sealed; one that a crash took before that left for nobody. So whichever
process holds the key, each mask is seen once. A copy of the whole folder that is resumed has an older ledger, and the
witnesses refuse before anything is released. Should two copies make the one release each that witnesses cannot prevent,
the two vectors under one mask show the difference of their noise; where a release samples its units, of samples too.
What it costs: while the run lasts, whoever takes the file from the site can take the masks off what that site has sent
in the run. Each vector carries the site's full noise beneath its mask, so the guarantee is not touched.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from common.errors import ExitCode, LedgerError, PolicyError, ProtocolError
from common.files import sync_folder, write_private
from common.privacy.signatures import SigningKey
from common.wire.messages import MAX_COUNT, Request
from common.wire.secure_sum import MaskAnnouncement, MaskKey, Participants, check_range, masked

MASKS_SCHEMA = "privshare.masks/1"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mask:
    """What one release is hidden by; made before anything is spent, used once."""

    key: MaskKey
    participants: Participants
    request: str
    digest: str

    def hide(self, noised: np.ndarray) -> np.ndarray:
        """What the site sends of a noised vector, (cells,) uint64; the vector itself is wiped."""
        hidden = masked(noised, self.key, self.participants, request_identity=self.request, request_digest=self.digest)
        noised.fill(0)
        return hidden


@dataclass(frozen=True)
class _Slot:
    """What is kept of a run; without the key once it is closed."""

    own: MaskAnnouncement
    key: MaskKey | None
    participants: Participants | None = None


class Masks:
    """The one slot of a site: a new run takes the place of the one before.

    Guarantees: a key is used in one run of one study; what is announced is on disk first; participants are all members
    of the site's policy, as it stands when the site starts, and nobody else.
    """

    def __init__(self, path: Path, *, site: str, study: str, identity: SigningKey, peers: Mapping[str, str]) -> None:
        """Take up what was kept; a file that cannot be used is as good as none.

        Args:
            path: of the slot.
            site: this site's name.
            study: digest of the study.
            identity: this site's.
            peers: public keys of the other sites, by name.
        """
        self._path, self._site, self._study, self._identity = path, site, study, identity
        self._members = {**peers, site: identity.public}
        self._slot = self._read()

    def announce(self, run: str) -> MaskAnnouncement:
        """What the other sites must know of this one's key for a run; the key is made the first time.

        Raises:
            LedgerError: the disk fails.
        """
        if self._slot is None or self._slot.own.run != run:
            key = MaskKey.generate()
            own = key.announce(self._site, study=self._study, run=run, identity=self._identity)
            return self._keep(_Slot(own, key)).own
        return self._slot.own

    def take(self, run: str, announcements: Iterable[MaskAnnouncement]) -> Participants:
        """Take up the participants of a run.

        Raises:
            PolicyError: this site has no key for the run.
            TooFewSitesError, ProtocolError: as `Participants.verified`.
            LedgerError: the disk fails.
        """
        slot = self._of(run)
        participants = Participants.verified(announcements, own=slot.own, peers=self._members)
        if participants != slot.participants:
            self._keep(replace(slot, participants=participants))
        return participants

    def close(self, run: str) -> None:
        """Forget the key of a run; what it announced stays known, so that a run that is over can be taken up.

        Raises:
            LedgerError: the disk fails.
        """
        slot = self._of(run)
        if slot.key is not None:
            self._keep(replace(slot, key=None))

    def of(self, request: Request, digest: str) -> Mask:
        """The mask of a release that is about to be made.

        Raises:
            PolicyError: there is no key for the run, or no participants, or the request names others.
        """
        slot = self._of(request.run)
        if slot.key is None or slot.participants is None:
            raise PolicyError("masks: the run is closed, or its participants were not told", ExitCode.UNMASKED)
        if request.options.get("participants") != slot.participants.digest:
            raise PolicyError("request.participants: not those that this site masks with", ExitCode.UNMASKED)
        try:
            check_range(MAX_COUNT, sites=len(slot.participants.announcements))
        except ValueError:
            raise PolicyError("peers: more than a sum of masked numbers has room for") from None
        return Mask(slot.key, slot.participants, request.identity, digest)

    def _of(self, run: str) -> _Slot:
        if self._slot is None or self._slot.own.run != run:
            raise PolicyError("masks: this site has announced no key for the run", ExitCode.UNMASKED)
        return self._slot

    def _keep(self, slot: _Slot) -> _Slot:
        content = {
            "schema": MASKS_SCHEMA,
            "key": slot.key.private if slot.key is not None else None,
            "own": asdict(slot.own),
            "participants": [asdict(one) for one in slot.participants.announcements] if slot.participants else [],
        }
        fresh = self._path.with_name(self._path.name + ".part")
        try:
            fresh.unlink(missing_ok=True)
            write_private(fresh, json.dumps(content).encode())
            fresh.replace(self._path)
            sync_folder(self._path.parent)
        except OSError as error:
            raise LedgerError(f"{self._path}: cannot be written ({error.strerror})") from None
        self._slot = slot  # nothing is announced that a restart would forget
        return slot

    def _read(self) -> _Slot | None:
        if not self._path.exists():
            return None
        try:
            content = json.loads(self._path.read_bytes())
            own = MaskAnnouncement.from_dict(content["own"])
            key = MaskKey.from_private(content["key"]) if content["key"] is not None else None
            said = [MaskAnnouncement.from_dict(one) for one in content["participants"]]
            whole = content["schema"] == MASKS_SCHEMA and (key is None or key.public == own.public)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ProtocolError):
            whole = False
        if not whole or (own.site, own.study) != (self._site, self._study) or not own.is_by(self._identity.public):
            _LOG.warning("site=%s event=masks_forgotten", self._site)
            return None
        try:  # anew: the policy may name others by now
            return _Slot(own, key, Participants.verified(said, own=own, peers=self._members))
        except ProtocolError:
            return _Slot(own, key)
