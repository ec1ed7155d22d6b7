"""A running site: it stays connected, hands what comes to its worker, and sends answers back, until it is stopped."""

import logging
import threading
import time
from collections.abc import Callable

from client.health import SERVING, STOPPING, Health, Part
from client.link import Link, Parcel, RunOverError, pauses
from client.worker import Worker, WorkerLostError
from common.errors import ExitCode, PrivShareError, ProtocolError, UnreachableError

_LOG = logging.getLogger(__name__)
_QUICK, _IDLE = 0.25, 3.0
"""Seconds between polls, while a run goes on and when nothing happens."""
_LIVELY = 60.0
"""Seconds after a message in which the next one may come."""
_STEADY = 10.0
"""Seconds that a connection lasts which was none to wait after."""
_REFUSED_FOR = 180.0
"""Seconds that a site goes on asking to be let in: an operator, or the time service, may see to it meanwhile."""


class Agent:
    """Carries between a coordinator and a worker.

    Guarantees: one message at a time; a stop ends after the running step, its answer sent; a lost connection, a lost
    worker and a coordinator that is not there are waited for, not died of.
    """

    def __init__(
        self, connect: Callable[[], Link], worker: Worker, health: Health, *, site: str, is_stopping: threading.Event
    ) -> None:
        """Prepare it.

        Args:
            connect: makes a link with the keys as they are now, not opened yet.
            worker: not started yet.
            health: is told how it goes.
            site: its name, for the log.
            is_stopping: ends it.
        """
        self._connect, self._worker, self._health = connect, worker, health
        self._site, self._is_stopping = site, is_stopping
        self._unsent: tuple[Parcel, bytes] | None = None

    def run(self) -> None:
        """Serve until stopped.

        Raises:
            PrivShareError: the site cannot be opened, its worker ends again and again, or it was not let in for three
                minutes.
        """
        self._start_worker()
        try:
            waits = pauses()
            while not self._is_stopping.is_set():
                begun = time.monotonic()
                self._serve_once()
                if time.monotonic() - begun > _STEADY:
                    waits = pauses()
                else:  # one who lets this site in and drops it at once is not called without a pause
                    self._is_stopping.wait(next(waits))
        finally:
            for part in Part:
                self._health.tell(part, STOPPING)
            self._worker.stop()

    def _start_worker(self) -> None:
        try:
            self._worker.start()
        except WorkerLostError:
            self._worker.stop()
            raise PrivShareError("worker: ended before the site was open; is there memory for it?") from None
        self._health.tell(Part.WORKER, SERVING)

    def _serve_once(self) -> None:
        """One connection, from the first try until it is lost."""
        link = self._opened()
        if link is None:
            return
        self._health.tell(Part.CONNECTION, SERVING)
        _LOG.info("site=%s event=connected", self._site)
        try:
            self._serve(link)
        except UnreachableError as fault:
            self._health.tell(Part.CONNECTION, fault.code.name)
            _LOG.warning("site=%s event=disconnected reason=%s", self._site, fault)
        finally:
            link.close()

    def _opened(self) -> Link | None:
        """A link to a coordinator that let this site in; None once the site is to stop.

        Raises:
            UnreachableError: it does not, and has not for long.
        """
        refused_since, said = None, ""
        for pause in pauses():
            link = self._connect()
            try:
                return link.open()
            except UnreachableError as fault:
                link.close()
                now = time.monotonic()
                refused_since = (refused_since or now) if fault.code == ExitCode.NOT_ADMITTED else None
                if refused_since is not None and now - refused_since > _REFUSED_FOR:
                    raise
                self._health.tell(Part.CONNECTION, fault.code.name)
                if str(fault) != said:
                    said = str(fault)
                    _LOG.warning("site=%s event=waiting reason=%s", self._site, said)
            if self._is_stopping.wait(pause):
                return None
        raise AssertionError  # pauses never end

    def _serve(self, link: Link) -> None:
        lively_until = 0.0
        while not self._is_stopping.is_set():
            try:
                if self._unsent is not None:
                    self._push(link)
                parcel = link.pull()
                if parcel is None:
                    self._is_stopping.wait(_QUICK if time.monotonic() < lively_until else _IDLE)
                    continue
                self._unsent = parcel, self._answer(parcel.body)
                self._push(link)
            except RunOverError:
                self._unsent = None
                _LOG.info("site=%s event=run_over", self._site)
            except ProtocolError as fault:
                _LOG.warning("site=%s event=malformed reason=%s", self._site, fault)
            lively_until = time.monotonic() + _LIVELY

    def _push(self, link: Link) -> None:
        """Send what is not sent yet; a connection that breaks meanwhile leaves it for the next one."""
        assert self._unsent is not None  # there is something
        link.push(*self._unsent)
        self._unsent = None

    def _answer(self, envelope: bytes) -> bytes:
        """The site's answer; nothing where its worker was lost, which has the coordinator ask again."""
        try:
            return self._worker.answer(envelope)
        except WorkerLostError:
            self._health.tell(Part.WORKER, "LOST")
            _LOG.warning("site=%s event=worker_lost", self._site)
            self._worker.stop()
            self._start_worker()
            return b""
