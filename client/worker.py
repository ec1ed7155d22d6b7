"""The process that computes, apart from the one that talks to the network: a long step never delays a heartbeat.

Between the two travel bytes alone: envelopes in, answers out. It ends with the process that talks, however that dies,
and none begins before the last one of the site has ended.
"""

import multiprocessing
import os
import signal
import threading
from contextlib import ExitStack
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch

from client.door import Door
from client.holding import Role, alone
from client.policy import load_site_settings
from client.site import open_site
from common.errors import ExitCode, PrivShareError
from common.privacy.noise import SeededNoise

_READY = b""
_PATIENCE = 5.0
"""Seconds that a worker of before, whose owner is gone, has to end."""


class WorkerLostError(Exception):
    """The process is gone: out of memory, or killed. What it was asked it may have charged, and can be asked again."""


class Worker:
    """A site in a process of its own."""

    def __init__(self, settings: Path, *, device: str, threads: int, noise_seed: int | None = None) -> None:
        """Describe it; `start` starts it.

        Args:
            settings: the site's site.yaml.
            device: where it trains.
            threads: that it computes with.
            noise_seed: for tests of the transport: voids the guarantee, and events say so.
        """
        self._arguments = (settings, device, threads, noise_seed)
        self._process: multiprocessing.process.BaseProcess | None = None
        self._line: Connection | None = None

    def start(self) -> None:
        """Open the site.

        Raises:
            PrivShareError: why it cannot be opened, with the code of the rule.
            WorkerLostError: the process did not get so far.
        """
        spawning = multiprocessing.get_context("spawn")  # nothing of this process is in it, no thread and no lock
        self._line, theirs = spawning.Pipe()
        self._process = spawning.Process(target=_work, args=(theirs, *self._arguments), daemon=True)
        self._process.start()
        theirs.close()
        said = self._receive()
        if said != _READY:
            code, _, text = said.decode().partition(" ")
            raise PrivShareError(text, ExitCode(int(code)))

    def answer(self, envelope: bytes) -> bytes:
        """The site's answer.

        Raises:
            WorkerLostError: the process is gone.
        """
        assert self._line is not None  # it was started
        try:
            self._line.send_bytes(envelope)
        except OSError:
            raise WorkerLostError from None
        return self._receive()

    def stop(self) -> None:
        """End the process; between two steps this loses nothing, and within one what a crash may lose."""
        if self._line is not None:
            self._line.close()
        if self._process is not None:
            self._process.kill()
            self._process.join()

    def _receive(self) -> bytes:
        assert self._line is not None  # it was started
        try:
            return self._line.recv_bytes()
        except (EOFError, OSError):
            raise WorkerLostError from None


def _work(line: Connection, settings: Path, device: str, threads: int, noise_seed: int | None) -> None:
    """Serve until the other end is closed; its owner decides when to stop, not a signal to the whole group."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_owner, daemon=True).start()
    torch.set_num_threads(threads)
    with ExitStack() as held:
        try:
            held.enter_context(alone(load_site_settings(settings).state, Role.COMPUTE, patience=_PATIENCE))
            site = open_site(settings, device=device)
            if noise_seed is not None:
                site = open_site(settings, noise=SeededNoise.of_site(site.name, noise_seed), device=device)
        except PrivShareError as error:
            line.send_bytes(f"{int(error.code)} {error}".encode())
            return
        _serve(line, Door(site))


def _serve(line: Connection, door: Door) -> None:
    line.send_bytes(_READY)
    while True:
        try:
            envelope = line.recv_bytes()
        except (EOFError, OSError):
            return
        line.send_bytes(door.answer(envelope))


def _end_with_owner() -> None:
    """In the middle of a step too: nobody would get what comes of it."""
    owner = multiprocessing.parent_process()
    assert owner is not None  # this is a worker's process
    wait([owner.sentinel])
    os._exit(1)
