"""A SuperLink in this process: Flower's own Fleet interface, its state and its store, behind TLS on loopback.

A program that asks makes its calls in this process, where Flower's own makes them over HTTP.
"""

import asyncio
import re
import socket
import ssl
import threading
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import uvicorn
from flwr.app import Message
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, TRANSPORT_TYPE_GRPC_RERE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID, TaskType
from flwr.supercore.run import Run
from flwr.superlink.config_loader import load_control_authn_plugin
from flwr.superlink.grid import HttpGrid
from flwr.superlink.main import create_app
from flwr.superlink.servicer.runtime import runtime_handlers

from server.app import BoundedGrid

Hook = Callable[[str, bool], None]
"""Of the path of a call that was carried out, and whether its answer holds anything: before the answer leaves."""


class SuperLink:
    """One run of it, and the sites that may join.

    port: of the Fleet interface.
    """

    def __init__(self, database: Path | None = None) -> None:
        """With whoever is in its database; by default it is in memory, and nobody is."""
        config: Any = SimpleNamespace(
            simulation=False,
            database=FLWR_IN_MEMORY_DB_NAME if database is None else str(database),
            superexec_auth_secret=None,
            artifact_provider=None,
            fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,
            authn_plugin=load_control_authn_plugin(),
            event_log_plugin=None,
            fleet_event_log_plugin=None,
            enable_supernode_auth=True,
        )
        nothing: Any = lambda *_: SimpleNamespace(startup=lambda: None, shutdown=lambda: None)  # noqa: E731
        self._app = create_app(config, nothing)
        self.state = self._app.state.linkstate_factory.state()
        self.run: int = self.state.create_run(
            *(None, None, None, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP)
        )
        (info,) = self.state.get_run_info(run_ids=[self.run])
        self._task = info.primary_task_id
        self.state.claim_task(self._task)
        self.state.activate_task(self._task)
        self._hooks: dict[bytes, Hook] = {}
        self.port = 0

    def admit(self, public: bytes, hook: Hook) -> int:
        """Let in a site; the number of its node.

        Args:
            public: its transport key.
            hook: is told of each of its calls.
        """
        self._hooks[public] = hook
        return int(self.state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, public, 0))

    def stay(self) -> None:
        """The program that asks is there still."""
        self.state.acknowledge_task_heartbeat(self._task)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        public = dict(scope["headers"]).get(FLEET_HTTP_PUBLIC_KEY_HEADER.encode(), b"")
        hook = self._hooks.get(b64decode(public))

        async def telling(message: Any) -> None:
            if hook is not None and message["type"] == "http.response.start" and message["status"] == 200:
                size = int(dict(message["headers"]).get(b"content-length", b"0"))
                await asyncio.to_thread(hook, scope["path"].rpartition("/")[2], size > 0)
            await send(message)

        await self._app(scope, receive, telling)


class Runtime:
    """What a program of a run calls, as Flower carries it out."""

    def __init__(self, superlink: SuperLink) -> None:
        """Of its one run."""
        self._superlink, self._task = superlink, SimpleNamespace(run_id=superlink.run)

    def __getattr__(self, name: str) -> Callable[[Any], Any]:
        """A call by its name on the wire: PullMessages, PushObject and so on."""
        carry_out = getattr(runtime_handlers, re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower())

        def call(request: Any) -> Any:
            self._superlink.stay()
            return carry_out(request, self._superlink.state, self._task)

        return call


class OwnNodes(BoundedGrid):
    """A coordinator's grid on which some nodes alone are seen."""

    def __init__(self, superlink: SuperLink, nodes: list[int]) -> None:
        """Of the SuperLink's one run."""
        grid = HttpGrid(token="of the run")
        grid.set_run(Run.create_empty(superlink.run))
        grid._client = Runtime(superlink)  # type: ignore[assignment]
        super().__init__(grid)
        self._nodes, self._run = nodes, superlink.run

    def get_node_ids(self) -> list[int]:
        """Of those that are there."""
        connected = set(super().get_node_ids())
        return [node for node in self._nodes if node in connected]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Of the SuperLink's run; there are several in this process."""
        for message in (found := list(messages)):
            message.metadata.__dict__["_run_id"] = self._run
        return super().push_messages(found)


@contextmanager
def superlink(home: Path, *, database: Path | None = None, is_open: bool = False) -> Iterator[SuperLink]:
    """One that shows a coordinator's certificate, and asks for one of its sites' unless it is open to all."""
    made = SuperLink(database)
    config = uvicorn.Config(
        made,
        host="127.0.0.1",
        ssl_certfile=str(home / "server.crt"),
        ssl_keyfile=str(home / "server.key"),
        ssl_ca_certs=str(home / "ca.crt"),
        ssl_cert_reqs=ssl.CERT_NONE if is_open else ssl.CERT_REQUIRED,
        log_config=None,
        ws="none",  # the library that speaks it warns when it is imported
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made.port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            yield made
        finally:
            server.should_exit = True
            thread.join()
