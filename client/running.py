"""How a site is started and stopped: what `privshare-client --site NAME` does."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import FrameType

from client.agent import Agent
from client.enrolment import check_certificate
from client.health import Health
from client.holding import alone
from client.link import Link
from client.policy import SiteSettings
from client.worker import Worker
from common.errors import ExitCode, MembershipError
from common.wire.membership import WARN_DAYS

_LOG = logging.getLogger(__name__)


def run_site(
    settings: SiteSettings,
    path: Path,
    *,
    device: str,
    threads: int,
    noise_seed: int | None,
    now: Callable[[], datetime],
) -> None:
    """Run a site in the foreground until Ctrl-C or SIGTERM, which wait for the running step; a second one does not.

    Args:
        settings: of the site.
        path: of its site.yaml.
        device: where it trains.
        threads: that it computes with.
        noise_seed: for tests of the transport; voids the guarantee.
        now: the time.

    Raises:
        PrivShareError: why it cannot run.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    for chatty in ("httpx", "httpcore", "flwr"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    if settings.superlink is None or settings.ca is None:
        raise MembershipError(f"{path}: superlink and ca: expected, to reach the coordinator", ExitCode.NOT_ADMITTED)
    is_stopping = threading.Event()

    def connect() -> Link:
        """With keys and certificate as they are now: a rotation needs no restart."""
        if (days := check_certificate(settings, now())) < WARN_DAYS:
            _LOG.warning("site=%s event=certificate_ends days=%d mend=rotate", settings.site, days)
        return Link(settings, is_stopping=is_stopping)

    with alone(settings.state), Health(settings.health) as health:
        _stop_on_signal(is_stopping)
        worker = Worker(path, device=device, threads=threads, noise_seed=noise_seed)
        Agent(connect, worker, health, site=settings.site, is_stopping=is_stopping).run()
    _LOG.info("site=%s event=stopped", settings.site)


def _stop_on_signal(is_stopping: threading.Event) -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        if is_stopping.is_set():
            os._exit(128 + number)  # what was charged is on disk, and a crash here is one like any other
        is_stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
