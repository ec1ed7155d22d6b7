"""One site: a request comes in, is checked, charged, answered and sealed. The same object in simulation and live.

Order for everything that reads rows: policy -> ledger (on disk) -> noise -> sealed reply (on disk) -> answer. A request
that was answered before gets the same bytes again and spends nothing; one that was charged and never sealed is lost and
is not computed a second time.
"""

import hashlib
import logging
import os
import secrets
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from client.policy import SitePolicy, SiteSettings, load_site_settings
from client.records import read_series_text, read_table
from client.releases import OwnReleases
from client.trainer import read_critic, train_on_request
from client.vault import Vault
from common.data.encoding import make_grids
from common.data.queries import layout_of
from common.data.tables import sizes_of
from common.errors import ExitCode, LedgerError, PolicyError, PrivShareError, SchemaError
from common.files import write_durably
from common.privacy.events import GaussianEvent
from common.privacy.ledger import Ledger
from common.privacy.noise import GaussianNoise, NoiseSource
from common.study import load_study
from common.wire.messages import Reply, Request, refusal
from common.wire.packing import unpack_bins

_LOG = logging.getLogger(__name__)
_KEY_BYTES = 32


class Site:
    """A site that answers requests about its own rows.

    Guarantees: nothing that depends on a row leaves but what the vault released; a refusal carries the name of a rule,
    and the reason stays in this site's log.
    """

    def __init__(self, settings: SiteSettings, *, noise: NoiseSource, device: torch.device) -> None:
        """Open a site. The table is read on the first request that needs it.

        Raises:
            StudyError, PolicyError, LedgerError: the site cannot start.
        """
        self._settings = settings
        self._study = load_study(settings.study)
        self._policy = SitePolicy(settings, self._study)
        self._grids = (*make_grids(self._study.measured), *make_grids(self._study.channels))
        self._ledger = Ledger(
            settings.ledger, site=settings.site, study=self._study.digest(), squared_mu=self._policy.squared_mu
        )
        self._noise = noise
        self._device = device
        self._releases = OwnReleases(settings.state / "releases", self._study)

    @cached_property
    def _vault(self) -> Vault:
        table = read_table(self._settings.table, self._study)
        series = None
        if self._study.windows is not None:
            assert self._settings.series is not None  # the policy has seen to it
            series = read_series_text(self._settings.series, self._study)
        secret = _site_key(self._settings.state, may_make=not self._ledger.charges())
        return Vault(table, series, self._study, secret=secret, ledger=self._ledger, noise=self._noise)

    def handle(self, body: bytes) -> bytes:
        """The reply to one request; never raises on what a coordinator may send or on what the table may hold."""
        name = self._settings.site
        try:
            request = Request.decode(body)
            self._policy.check(request)
            answer: dict[str, Callable[[Request, str], bytes]] = {
                "describe": self._describe,
                "one_way": self._measure_one_way,
                "tables": self._measure_tables,
                "embedding": self._measure_embedding,
                "critic": self._measure_gradient,
                "monitor": self._measure_scores,
                "verdict": self._measure_verdicts,
                "train": self._train,
            }
            return answer[request.kind](request, hashlib.sha256(body).hexdigest())
        except SchemaError as error:
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
        del request, digest
        # A table that this site cannot use stops it at the roll call, before any site has spent.
        _ = self._vault
        facts = {"squared_mu": self._policy.squared_mu, "ledger_head": self._ledger.head()}
        return Reply(self._settings.site, facts).encode()

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
        spend, bins = self._policy.spend_of(request), self._bins(request)
        critic = read_critic(request, self._study, sizes_of(bins))
        return self._sealed(
            request,
            digest,
            lambda: self._vault.gradient(critic, bins, spend=spend, request=request.identity, digest=digest),
        )

    def _measure_verdicts(self, request: Request, digest: str) -> bytes:
        spend, bins = self._policy.spend_of(request), self._bins(request)
        critic = read_critic(request, self._study, sizes_of(bins))
        return self._sealed(
            request,
            digest,
            lambda: self._vault.verdicts(critic, bins, spend=spend, request=request.identity, digest=digest),
        )

    def _train(self, request: Request, digest: str) -> bytes:
        del digest
        self._policy.check_training(request)
        bins = self._bins(request)
        own = self._releases.targets(request, bins) if self._policy.is_local else None
        trained = train_on_request(request, self._study, sizes=sizes_of(bins), device=self._device, own=own)
        return Reply(self._settings.site, arrays=trained).encode()

    def _bins(self, request: Request) -> list[np.ndarray]:
        try:
            bins = unpack_bins(request.arrays, len(self._grids))
        except ValueError:
            raise PolicyError("request.bins: expected one map a column") from None
        return [self._policy.check_bins(bin_of, grid.n_cells) for bin_of, grid in zip(bins, self._grids, strict=True)]

    def _sealed(self, request: Request, digest: str, release: Callable[[], tuple[np.ndarray, GaussianEvent]]) -> bytes:
        """The reply that was sealed for this request, or a new one, sealed before it is returned."""
        path = self._settings.state / "replies" / hashlib.sha256(request.identity.encode()).hexdigest()
        for charge in self._ledger.charges():
            if charge.request == request.identity:
                if charge.request_digest != digest:
                    raise PolicyError("request: another request was answered under this name")
                if not path.exists():
                    raise LedgerError("request: was charged, and its reply was lost in a crash")
                return path.read_bytes()
        noised, event = release()
        facts = {"event": event.as_dict(), "ledger_head": self._ledger.head()}
        counts = {"counts": noised}
        kept = self._policy.keeps(request)
        body = Reply(self._settings.site, facts, {} if kept else counts).encode()
        try:
            if self._policy.is_local:
                self._releases.keep(request, Reply(self._settings.site, facts, counts))
            write_durably(path, body)
        except OSError as error:
            raise LedgerError(f"{path}: the reply cannot be sealed ({error.strerror})") from None
        return body


def open_site(path: Path, *, noise: NoiseSource | None = None, device: str = "cpu") -> Site:
    """A site from its site.yaml. Other noise than the default is for tests, and every event says so."""
    return Site(load_site_settings(path), noise=noise or GaussianNoise(), device=torch.device(device))


def _site_key(state: Path, *, may_make: bool) -> bytes:
    """The site's secret key, made on first use; readable by the site's user alone.

    Once something was charged a lost key is not replaced: another one splits units off otherwise, and a unit could then
    pay from both accounts.
    """
    path = state / "site.key"
    try:
        if path.exists():
            key = path.read_bytes()
            if len(key) == _KEY_BYTES and path.stat().st_mode & 0o077 == 0:
                return key
            raise PolicyError(f"{path}: expected {_KEY_BYTES} bytes that only the site's user can read (mode 0600)")
        if not may_make:
            raise PolicyError(f"{path}: the site's key is gone, and the ledger's charges rest on it; restore it")
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(key := secrets.token_bytes(_KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise PolicyError(f"{path}: the site's key cannot be read or made ({error.strerror})") from None
    return key
