"""A federation of stock Flower processes on this machine, over TLS: SuperLink, SuperNodes and `flwr run`.

It stands beside `simulations/live.py`, to see what Flower itself does when something breaks; no part of privshare takes
part in it, but the certificates and what is typed to look whether a run is over.
"""

import json
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from common.errors import PrivShareError, UnreachableError
from server.launch import SuperLink
from simulations.live import Place, Processes

APP: Final = Path(__file__).parent / "plain_flower"
"""The application, as `flwr run` takes it."""
ROUNDS: Final = 6
_POLL: Final = 1.0
_PATIENCE: Final = 180.0
"""Seconds without a round: Flower gives a silent node up after 60."""


@dataclass
class PlainFederation(Processes):
    """Stock processes, by the commands that Flower's documents have.

    certificates: folder with ca.crt, server.crt and server.key.
    port: of the SuperLink.
    nodes: port of each SuperNode's own interface on loopback, by its name.
    through: port by which a SuperNode reaches the SuperLink, of those that have another way to it.
    """

    certificates: Path
    port: int
    nodes: dict[str, int]
    through: dict[str, int]

    @property
    def out(self) -> Path:
        """File that has a line a round."""
        return self.folder / "rounds.jsonl"

    @property
    def database(self) -> Path:
        """The SuperLink's."""
        return self.folder / "state.db"

    def start(self) -> None:
        """The SuperLink, then its nodes."""
        self.start_superlink()
        for name in self.nodes:
            self.start_site(name)

    def start_superlink(self) -> None:
        """With its database on disk; it starts what it needs itself. Returns once it listens."""
        home = self.certificates
        words = ["flower-superlink", "--host", "127.0.0.1", "--port", self.port, "--database", self.database]
        words += ["--ssl-ca-certfile", home / "ca.crt", "--ssl-certfile", home / "server.crt"]
        words += ["--ssl-keyfile", home / "server.key", "--disable-runtime-dependency-installation"]
        self.spawn("superlink", Place(), list(map(str, words)))
        self.wait_for_port("superlink", Place(), "127.0.0.1", self.port)

    def start_site(self, name: str) -> None:
        """A SuperNode; it starts what it needs itself."""
        address = f"127.0.0.1:{self.through.get(name, self.port)}"
        words = ["flower-supernode", "--superlink", address, "--root-certificates", self.certificates / "ca.crt"]
        words += ["--host", "127.0.0.1", "--port", self.nodes[name]]
        self.spawn(name, Place(), list(map(str, words)))

    def conduct(self) -> None:
        """`flwr run`, until Flower says that the run is over.

        Raises:
            PrivShareError: it ended before its last round.
        """
        run = self._run()
        superlink = SuperLink(self.port, self.certificates / "ca.crt")
        done, since = 0, time.monotonic()
        while done < ROUNDS:
            with suppress(UnreachableError):  # whoever killed it starts it again
                if superlink.is_over(run) and len(self.rounds()) < ROUNDS:
                    raise PrivShareError(f"flwr run: over after {len(self.rounds())} of {ROUNDS} rounds")
            if len(self.rounds()) > done:
                done, since = len(self.rounds()), time.monotonic()
            if time.monotonic() - since > _PATIENCE:
                raise PrivShareError(f"flwr run: no round for {_PATIENCE:.0f} s after {done} of {ROUNDS}")
            time.sleep(_POLL)

    def rounds(self) -> list[dict[str, Any]]:
        """What the application wrote down: `round`, `replies` and `time` of each round that is done."""
        try:
            return [json.loads(line) for line in self.out.read_text(encoding="utf-8").splitlines()]
        except OSError:
            return []

    def _run(self) -> int:
        """Number of a run that was started.

        Raises:
            PrivShareError: it was not.
        """
        home = self.folder / "flwr"
        home.mkdir(exist_ok=True)
        connection = {"address": f"127.0.0.1:{self.port}", "root-certificates": str(self.certificates / "ca.crt")}
        lines = [f"{name} = {json.dumps(value)}" for name, value in connection.items()]
        text = "\n".join(['[superlink]\ndefault = "here"', "[superlink.here]", *lines])
        (home / "config.toml").write_text(text, encoding="utf-8")
        config = f'rounds={ROUNDS} out="{self.out}"'
        done = subprocess.run(  # noqa: S603 (Flower's own command)
            ["flwr", "run", str(APP), "here", "--run-config", config, "--format", "json"],  # noqa: S607
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        try:
            return int(json.loads(done.stdout[done.stdout.index("{") :])["run-id"])
        except (ValueError, KeyError, TypeError):
            raise PrivShareError(f"flwr run: {done.stdout.strip()} {done.stderr.strip()}") from None
