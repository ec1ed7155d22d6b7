"""One site: a request comes in, is checked, charged, answered and sealed. The same object in simulation and live.

Order for everything that reads rows: policy -> ledger (on disk) -> noise -> mask, where the study has masks -> sealed
reply (on disk) -> answer. A request that was answered before gets the same bytes again and spends nothing; one that a
crash took between its charge and its seal, which left for nobody, is answered anew for that charge.
"""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from client.critics import Lesson, OwnCritics
from client.keys import identity, unit_secret
from client.masks import Mask, Masks
from client.policy import SitePolicy, SiteSettings, load_policy, load_site_settings, policy_digest, today_utc
from client.records import read_records
from client.releases import OwnReleases
from client.replies import Replies
from client.trainer import read_critic, train_on_request
from client.vault import Vault
from client.witnesses import Witnesses
from common.data.encoding import make_grids
from common.data.queries import layout_of
from common.data.tables import sizes_of
from common.errors import ExitCode, LedgerError, PolicyError, PrivShareError, SchemaError, SourceError
from common.models.devices import device_named
from common.models.neural import NeuralCritic
from common.privacy.events import GaussianEvent
from common.privacy.ledger import Head, Ledger
from common.privacy.noise import GaussianNoise, NoiseSource
from common.privacy.spending import Spending
from common.privacy.witness import Attestation, Statement
from common.study import load_study
from common.wire.messages import Reply, Request, refusal
from common.wire.packing import unpack_bins
from common.wire.secure_sum import MaskAnnouncement

_LOG = logging.getLogger(__name__)


class Site:
    """A site that answers requests about its own rows.

    Guarantees: nothing that depends on a row leaves but what the vault released; a refusal carries the name of a rule,
    and the reason stays in this site's log.

    Attributes:
        name: of the site.
        study: digest of the study that it approved.
        key: that it signs with.
        coordinator: public key of whoever may ask.
        policy_digest: SHA-256 of its policy file.
    """

    def __init__(
        self,
        settings: SiteSettings,
        *,
        noise: NoiseSource,
        device: torch.device,
        today: Callable[[], date] = today_utc,
    ) -> None:
        """Open a site. The table is read on the first request that needs it.

        Args:
            settings: where everything is.
            noise: of every release.
            device: of the training.
            today: the date, by which the policy expires.

        Raises:
            StudyError, PolicyError, LedgerError: the site cannot start.
        """
        self._settings = settings
        self._study = load_study(settings.study)
        key = identity(settings.state)
        self.name, self.study, self.key = settings.site, self._study.digest(), key
        policy = load_policy(settings.policy, public=key.public)
        self.coordinator, self.policy_digest = policy.coordinator, policy_digest(settings.policy)
        self._policy = SitePolicy(settings, policy, self._study, today=today)
        self._grids = (*make_grids(self._study.measured), *make_grids(self._study.channels))
        self._ledger = Ledger(
            settings.ledger, asset=self._policy.asset, study=self.study, bound=self._policy.bound, key=key
        )
        self._witnesses = Witnesses(
            settings.state / "witness.json",
            site=settings.site,
            key=key,
            ledger=self._ledger,
            peers=policy.peers,
            needed=policy.witnesses,
        )
        self._masks = Masks(
            settings.state / "masks.json", site=settings.site, study=self.study, identity=key, peers=policy.peers
        )
        self._noise = noise
        self._device = device
        self._replies = Replies(settings.state)
        self._replies.check(self._ledger.charged())
        self._releases = OwnReleases(settings.state / "releases", self._study, is_sealed=self._ledger.is_sealed)
        self._critics = OwnCritics(self._study, self._releases, device)

    def head(self) -> Head:
        """The newest entry of the site's ledger."""
        return self._ledger.head()

    @cached_property
    def _vault(self) -> Vault:
        table, series = read_records(self._settings.source, self._study)
        secret = unit_secret(self._settings.state, may_make=not self._ledger.charged())
        return Vault(table, series, self._study, secret=secret, ledger=self._ledger, noise=self._noise)

    def handle(self, body: bytes) -> bytes:
        """The reply to one request; never raises on what a coordinator may send or on what the table may hold."""
        name = self._settings.site
        try:
            request = Request.decode(body)
            self._policy.check(request)
            answer: dict[str, Callable[[Request, str], bytes]] = {
                "describe": self._describe,
                "witness": self._witness,
                "confirm": self._confirm,
                "masks": self._agree_on_masks,
                "one_way": self._measure_one_way,
                "tables": self._measure_tables,
                "embedding": self._measure_embedding,
                "critic": self._measure_gradient,
                "monitor": self._measure_scores,
                "verdict": self._measure_verdicts,
                "train": self._train,
            }
            return answer[request.kind](request, hashlib.sha256(body).hexdigest())
        except (SchemaError, SourceError) as error:
            # Whether the table is as it should be depends on its rows, so even that stays here.
            _LOG.warning("site=%s event=table_refused reason=%s", name, error)
            return refusal(name, ExitCode.INTERNAL)
        except PrivShareError as error:
            _LOG.warning("site=%s event=refused rule=%s reason=%s", name, error.code.name, error)
            return refusal(name, error.code)
        except Exception as error:  # noqa: BLE001 (whatever went wrong, its text must not travel)
            _LOG.warning("site=%s event=failed error=%s", name, type(error).__name__)
            return refusal(name, ExitCode.INTERNAL)

    def _describe(self, request: Request, digest: str) -> bytes:
        del digest
        # A table that this site cannot use stops it at the roll call, before any site has spent.
        _ = self._vault
        facts = {
            "bound": self._policy.bound,
            "key": self.key.public,
            "nonce": self._witnesses.nonce,
            "witnesses": list(self._witnesses.asked),
            **self._ledger_facts(),
        }
        if self._policy.is_masked:
            facts["mask"] = asdict(self._masks.announce(request.run))
        return Reply(self._settings.site, facts).encode()

    def _witness(self, request: Request, digest: str) -> bytes:
        """Keep what other sites say of their ledgers, and attest what is known of each."""
        del digest
        stated = [Statement.from_dict(one) for one in self._policy.check_list(request, "heads")]
        self._witnesses.note(stated)
        attested = self._witnesses.attest(self._policy.check_nonces(request), of={one.site for one in stated})
        return Reply(self._settings.site, {"attestations": [one.as_dict() for one in attested]}).encode()

    def _confirm(self, request: Request, digest: str) -> bytes:
        """Take up what other sites attest of this site's ledger."""
        del digest
        attestations = map(Attestation.from_dict, self._policy.check_list(request, "attestations"))
        return Reply(self._settings.site, {"confirmed": self._witnesses.take(attestations)}).encode()

    def _agree_on_masks(self, request: Request, digest: str) -> bytes:
        """Take up who masks in the run, or, told of nobody, forget the key: the run is over."""
        del digest
        announcements = [MaskAnnouncement.from_dict(one) for one in self._policy.check_masks(request)]
        if not announcements:
            self._masks.close(request.run)
            return Reply(self._settings.site).encode()
        participants = self._masks.take(request.run, announcements)
        return Reply(self._settings.site, {"participants": participants.digest}).encode()

    def _measure_one_way(self, request: Request, digest: str) -> bytes:
        spend = self._policy.spend_of(request)
        return self._sealed(
            request, digest, lambda: self._vault.one_way(spend=spend, request=request.identity, digest=digest)
        )

    def _measure_tables(self, request: Request, digest: str) -> bytes:
        spend, bins = self._policy.spend_of(request), self._bins(request)
        queries, emphasis = self._policy.check_tables(request)
        self._policy.check_size(layout_of(queries, sizes_of(bins), len(self._study.label_values)).n_cells)
        return self._sealed(
            request,
            digest,
            lambda: self._vault.tables(queries, emphasis, bins, spend=spend, request=request.identity, digest=digest),
        )

    def _measure_scores(self, request: Request, digest: str) -> bytes:
        spend, bins = self._policy.spend_of(request), self._bins(request)
        weights = self._policy.check_weights(request, bins)
        return self._sealed(
            request,
            digest,
            lambda: self._vault.scores(bins, weights, spend=spend, request=request.identity, digest=digest),
        )

    def _measure_embedding(self, request: Request, digest: str) -> bytes:
        spend, bins = self._policy.spend_of(request), self._bins(request)
        return self._sealed(
            request, digest, lambda: self._vault.embedding(bins, spend=spend, request=request.identity, digest=digest)
        )

    def _measure_gradient(self, request: Request, digest: str) -> bytes:
        spend, bins, lesson = self._policy.spend_of(request), self._bins(request), None
        critic = self._critic(request, bins)
        if self._policy.is_local:
            seed, step = self._policy.check_seed(request), self._policy.check_step(request)
            lesson = self._critics.gradient_lesson(critic, request, bins, seed=seed, step=step)
        return self._sealed(
            request,
            digest,
            lambda: self._vault.gradient(critic, bins, spend=spend, request=request.identity, digest=digest),
            lesson,
        )

    def _measure_verdicts(self, request: Request, digest: str) -> bytes:
        spend, bins, lesson = self._policy.spend_of(request), self._bins(request), None
        critic = self._critic(request, bins)
        if self._policy.is_local:
            lesson = self._critics.verdict_lesson(critic, request, bins, seed=self._policy.check_seed(request))
        return self._sealed(
            request,
            digest,
            lambda: self._vault.verdicts(critic, bins, spend=spend, request=request.identity, digest=digest),
            lesson,
        )

    def _critic(self, request: Request, bins: list[np.ndarray]) -> NeuralCritic:
        """This site's own, where discriminators stay at the sites; else the one in the request."""
        if self._policy.is_local:
            return self._critics.current(request, bins, seed=self._policy.check_seed(request))
        return read_critic(request, self._study, sizes_of(bins))

    def _train(self, request: Request, digest: str) -> bytes:
        del digest
        self._policy.check_training(request)
        bins = self._bins(request)
        own = None
        if self._policy.is_local:
            own = self._releases.targets(request, bins), self._critics.adversary(request, bins)
        trained = train_on_request(request, self._study, sizes=sizes_of(bins), device=self._device, own=own)
        return Reply(self._settings.site, arrays=trained).encode()

    def _ledger_facts(self) -> dict[str, object]:
        """What this site signs of its ledger: its newest entry, and all that the study was charged up to there."""
        stated = self._witnesses.statement()
        head, events = self._ledger.spent()
        spending = Spending(self._settings.site, self.study, head, self._policy.bound, events).signed(self.key)
        return {"ledger_head": stated.as_dict(), "spending": spending.as_dict()}

    def _bins(self, request: Request) -> list[np.ndarray]:
        try:
            bins = unpack_bins(request.arrays, len(self._grids))
        except ValueError:
            raise PolicyError("request.bins: expected one map a column") from None
        return [self._policy.check_bins(bin_of, grid) for bin_of, grid in zip(bins, self._grids, strict=True)]

    def _sealed(
        self,
        request: Request,
        digest: str,
        release: Callable[[], tuple[np.ndarray, GaussianEvent]],
        lesson: Lesson | None = None,
    ) -> bytes:
        """The reply that was sealed for this request, or a new one, sealed before it is returned."""
        name = request.identity
        charged = self._ledger.charge_of(name)
        if charged is not None:
            charge, seal = charged
            if charge.request_digest != digest:
                raise PolicyError("request: another request was answered under this name")
            if seal is not None or not self._replies.is_unfinished(request.study, name, digest):
                return self._found(request, seal)
        self._witnesses.require()
        _ = self._vault  # a table that this site cannot use leaves nothing begun
        mask = self._masks.of(request, digest) if self._policy.is_masked else None
        if charged is None:
            self._replies.begin(request.study, name, digest)
        else:  # a crash fell between the charge and the reply, which nobody got
            self._ledger.reopen(name)
        try:
            body = self._answer(request, mask, *release(), lesson)
        except LedgerError:  # of the disk: what was charged may be answered anew
            raise
        except Exception:  # whatever it is, it may hang on the noise: another draw would tell of this one
            self._replies.end(request.study, name)
            raise
        self._ledger.seal(name, self._replies.write(request.study, name, body))
        self._replies.end(request.study, name)
        return body

    def _answer(
        self, request: Request, mask: Mask | None, noised: np.ndarray, event: GaussianEvent, lesson: Lesson | None
    ) -> bytes:
        """The reply that says what was released, and what this site keeps of it; not sealed yet."""
        facts: dict[str, object] = {"event": event.as_dict(), **self._ledger_facts()}
        if mask is not None:  # what is noised and not masked goes nowhere, not even to this site's own folder
            facts["participants"] = mask.participants.digest
            return Reply(self._settings.site, facts, {"masked": mask.hide(noised)}).encode()
        counts = {"counts": noised}
        if self._policy.is_local:
            learned = {} if lesson is None else lesson(noised, event)
            self._releases.keep(request, Reply(self._settings.site, facts, counts | learned))
        return Reply(self._settings.site, facts, {} if self._policy.keeps(request) else counts).encode()

    def _found(self, request: Request, seal: str | None) -> bytes:
        """The reply to a request that was charged before."""
        body = self._replies.read(request.study, request.identity)
        digest = hashlib.sha256(body).hexdigest()
        if seal is None:  # a crash fell between the reply and its seal; nobody was given another one
            self._replies.write(request.study, request.identity, body)  # again: its name may not be on disk
            self._ledger.seal(request.identity, digest)
            self._replies.end(request.study, request.identity)
        elif seal != digest:
            raise LedgerError("request: the reply is not the one that was sealed")
        return body


def open_site(path: Path, *, noise: NoiseSource | None = None, device: str = "cpu", site: type[Site] = Site) -> Site:
    """A site from its site.yaml.

    Other noise than the default is for tests, and every event says so; another kind of site for simulations.

    Raises:
        StudyError: the device is none of this machine.
    """
    return site(load_site_settings(path), noise=noise or GaussianNoise(), device=device_named(device))
