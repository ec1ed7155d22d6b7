"""A wire between a site and its coordinator that is spoiled and mended while it is in use: TCP in, TCP out.

It carries what it does not understand, since all of it is TLS. As a real network does, it loses nothing in the middle
of a connection that goes on: what it holds back arrives when the fault is over, or the connection is gone.
"""

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum

import numpy as np

_CHUNK = 4096
_TICK = 0.02


class Way(Enum):
    """Where bytes go."""

    UP = "to the coordinator"
    DOWN = "to the site"


class End(Enum):
    """How a connection is ended."""

    RESET = "reset"
    CLOSED = "closed"
    HALF = "half closed"


BOTH = frozenset(Way)


@dataclass(frozen=True)
class Fault:
    """What a wire does to the bytes of some ways; as made, nothing.

    ways: that it concerns.
    delay, jitter: seconds that each chunk waits, and at most so many more.
    rate: bytes a second.
    piece: bytes a chunk.
    is_held: nothing passes until the fault is over; with `flap`, now and then.
    flap: seconds of each half of a cycle of holding and passing.
    end: how a connection ends, after so many bytes.
    after: bytes, from the beginning of the fault, of each connection.
    is_flipped: whether a bit changes, after so many bytes.
    is_mute: whether new connections are accepted and nobody answers, the old ones being reset.
    """

    ways: frozenset[Way] = BOTH
    delay: float = 0.0
    jitter: float = 0.0
    rate: float | None = None
    piece: int = _CHUNK
    is_held: bool = False
    flap: float | None = None
    end: End | None = None
    after: int = 0
    is_flipped: bool = False
    is_mute: bool = False


WELL = Fault()


class Wire:
    """Between one listening port and one other.

    port: where a site connects.
    has_bitten: set once a fault met bytes or a connection.
    """

    def __init__(self, port: int, *, seed: int = 0) -> None:
        """Listens, carries nothing yet."""
        self._target = port
        self._random = np.random.default_rng(seed)
        self._fault, self._since = WELL, 0.0
        self._ends: list[socket.socket] = []
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self.has_bitten = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def spoil(self, fault: Fault) -> None:
        """From now on."""
        self._fault, self._since = fault, time.monotonic()
        if fault.is_mute:
            self._end_all()

    def mend(self) -> None:
        """From now on it does nothing but carry; what nobody answered is reset."""
        was, self._fault = self._fault, WELL
        if was.is_mute:
            self._end_all()

    def close(self) -> None:
        """With every connection."""
        self._is_over.set()
        self.mend()
        # An accept that waits is not woken by a close.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._end_all()

    def _end_all(self) -> None:
        with self._lock:
            ends, self._ends = self._ends, []
        for end in ends:
            _reset(end)

    def _keep(self, *ends: socket.socket) -> None:
        with self._lock:
            self._ends += ends

    def _accept(self) -> None:
        while not self._is_over.is_set():
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._fault.is_mute:
                self.has_bitten.set()
                self._keep(near)
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                _reset(near)
                continue
            self._keep(near, far)
            threading.Thread(target=self._carry, args=(near, far, Way.UP), daemon=True).start()
            threading.Thread(target=self._carry, args=(far, near, Way.DOWN), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, way: Way) -> None:
        met, seen = WELL, 0
        with suppress(OSError):
            while chunk := source.recv(_CHUNK):
                fault = self._fault
                if fault is not met:
                    met, seen = fault, 0
                if way not in fault.ways or fault is WELL:
                    sink.sendall(chunk)
                    continue
                self.has_bitten.set()
                if fault.end is not None and seen + len(chunk) >= fault.after:
                    sink.sendall(chunk[: max(fault.after - seen, 0)])
                    self._finish(fault, source, sink)
                    return
                if fault.is_flipped and seen + len(chunk) > fault.after >= seen:
                    changed = bytearray(chunk)
                    changed[fault.after - seen] ^= 1
                    chunk = bytes(changed)
                seen += len(chunk)
                self._pass(fault, chunk, sink)
            sink.shutdown(socket.SHUT_WR)  # an orderly end is carried too

    def _pass(self, fault: Fault, chunk: bytes, sink: socket.socket) -> None:
        """A chunk, as slowly as the fault has it; at once when it is over."""
        for at in range(0, len(chunk), fault.piece):
            piece = chunk[at : at + fault.piece]
            wait = fault.delay + fault.jitter * self._random.random()
            wait += len(piece) / fault.rate if fault.rate else 0.0
            self._wait(fault, wait)
            while self._is_holding(fault):
                time.sleep(_TICK)
            sink.sendall(piece)

    def _wait(self, fault: Fault, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self._fault is fault and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _TICK))

    def _is_holding(self, fault: Fault) -> bool:
        if self._fault is not fault or not fault.is_held:
            return False
        return fault.flap is None or int((time.monotonic() - self._since) / fault.flap) % 2 == 0

    def _finish(self, fault: Fault, source: socket.socket, sink: socket.socket) -> None:
        if fault.end is End.RESET:
            _reset(source)
            _reset(sink)
        elif fault.end is End.CLOSED:
            for end in (source, sink):
                end.shutdown(socket.SHUT_RDWR)
        else:
            sink.shutdown(socket.SHUT_WR)
            while source.recv(_CHUNK):  # and what is said after that, nobody hears
                pass


@contextmanager
def wire_to(port: int, *, seed: int = 0) -> Iterator[Wire]:
    """A wire, closed at the end."""
    wire = Wire(port, seed=seed)
    try:
        yield wire
    finally:
        wire.close()


def _reset(end: socket.socket) -> None:
    """At once, with what is under way lost."""
    with suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with suppress(OSError):
        end.shutdown(socket.SHUT_RD)  # sends nothing, and wakes the thread that reads, which keeps the socket open
    end.close()
