"""A SuperLink in this process: Flower's own Fleet interface, its state and its store, behind TLS on loopback.

Only the program that asks is another: it speaks to the state, where Flower's own speaks to it over HTTP.
"""

import asyncio
import socket
import ssl
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import uvicorn
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, TRANSPORT_TYPE_GRPC_RERE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID, TaskType
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.superlink.config_loader import load_control_authn_plugin
from flwr.superlink.main import create_app

_UPLOAD = 30.0
"""Seconds that the parts of a reply may take."""
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


class StateGrid:
    """What a program of a run sees of it."""

    def __init__(self, superlink: SuperLink, nodes: list[int]) -> None:
        """Of some of the nodes."""
        self._superlink, self._state, self._nodes = superlink, superlink.state, nodes

    def get_node_ids(self) -> list[int]:
        """Of those that are there."""
        return [node for node in self._nodes if node in self._state.get_nodes(self._superlink.run)]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """With their objects."""
        found = []
        for message in messages:
            message.metadata.__dict__["_run_id"] = self._superlink.run
            message.metadata.__dict__["_message_id"] = message.object_id
            with no_object_id_recompute():
                tree, objects = get_object_tree(message), get_all_nested_objects(message)
                contents = {name: one.deflate() for name, one in objects.items()}
            session = self._state.start_session(self._superlink.run)
            bare = remove_content_from_message(message)
            # Its objects first: a site that is quick finds them all.
            self._state.preregister_object_tree(tree, session)
            for name, content in contents.items():
                self._state.store_object(self._superlink.run, session, name, content)
            self._state.store_message_ins(bare)
            found.append(message.metadata.message_id)
        return found

    def pull_messages(self, identities: Iterable[str]) -> list[Message]:
        """Replies that are there as a whole, and what Flower says of nodes that are gone."""
        self._superlink.stay()
        found: list[Message] = []
        for identity in identities:
            heads = self._state.get_message_res({identity}, self._superlink.run)
            found += [head if head.has_error() else self._whole(head) for head in heads]
        return found

    def _whole(self, head: Message) -> Message:
        name = head.metadata.message_id
        tree = self._state.object_store.get_object_tree(name)
        names = [one.object_id for one in iterate_object_tree(tree)]
        contents: dict[str, bytes] = {}
        given_up = time.monotonic() + _UPLOAD
        while len(contents) < len(names):  # a site may be cut off in the middle of them
            for one in names:
                if content := self._state.get_object(self._superlink.run, one):
                    contents[one] = content
            assert time.monotonic() < given_up, "a part of a reply never came"  # Flower waits for three minutes
            time.sleep(0.05)
            self._superlink.stay()
        message = inflate_object_from_contents(name, contents)
        assert isinstance(message, Message)
        return message


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
