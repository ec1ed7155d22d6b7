"""The coordinator as a Flower ServerApp: an exchange over a Flower grid, and nothing else of Flower."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import Context, Error, Message, MessageType, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import ErrorCode
from flwr.common.serde_utils import metadata_from_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectUnavailableError
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.superlink.grid import HttpGrid

from common.errors import ProtocolError
from common.wire.messages import MAX_BODY
from common.wire.parcels import gather, pack_body, unpack_body
from server.exchange import Exchange
from server.live import conduct as conduct_live
from server.live import credentials_of
from server.run_folder import read_start

_LOG = logging.getLogger(__name__)
_POLL = 0.2
_PAUSE = 2.0
"""Seconds before a node that failed is asked again."""
_SILENT = 60.0
"""Seconds before a node that says nothing is asked again, each time twice as many: a process that was started anew
knows of no message, nor does one whose connection was reset while it took it."""


@dataclass
class _Coming:
    """A reply that a node announced. late: its parts from the first on that was not there when it was looked for."""

    head: Metadata
    tree: ObjectTree
    late: list[str] = field(default_factory=list)


class BoundedGrid:
    """The grid of a SuperLink; Flower's own takes replies of any size, and a malformed one ends the run.

    Guarantees: of a reply no more is pulled than a message may be; one that is larger, or malformed, is there without
    content; a reply is to the message that the SuperLink says, whatever it says itself; nobody waits for the parts of
    another's reply, nor for those of a node that is gone.
    """

    def __init__(self, grid: HttpGrid) -> None:
        """Pulls for it; the rest it does itself."""
        self._grid = grid
        self._coming: dict[str, _Coming] = {}

    def get_node_ids(self) -> Iterable[int]:
        """Of nodes that are connected."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Identities of the messages that were sent."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """What came whole in reply to messages, one after the other, so that only one is held with its parts."""
        asked = set(message_ids)
        self._coming = {identity: reply for identity, reply in self._coming.items() if identity in asked}
        if unannounced := asked - self._coming.keys():
            # It says once that a reply is coming.
            found = self._client.PullMessages(PullAppMessagesRequest(message_ids=unannounced))
            for head, tree in zip(found.messages_list, found.message_object_trees, strict=True):
                metadata = metadata_from_proto(head.metadata)
                self._coming[metadata.reply_to_message_id] = _Coming(metadata, tree)
        yield from self._whole()
        if self._coming:
            connected = set(self._grid.get_node_ids())
            gone = {identity for identity, reply in self._coming.items() if reply.head.src_node_id not in connected}
            yield from self._whole()  # sent before it went
            for identity in gone & self._coming.keys():
                yield make_message(self._coming.pop(identity).head, error=Error(ErrorCode.MESSAGE_UNAVAILABLE))

    @property
    def _client(self) -> RuntimeHttpClient:
        return self._grid._runtime_client  # noqa: SLF001 (no public part of it pulls an object)

    def _whole(self) -> Iterator[Message]:
        """Of the replies that are coming, those that are there."""
        for identity, reply in list(self._coming.items()):
            try:
                message = self._reply(reply)
            except ObjectUnavailableError:
                continue
            del self._coming[identity]
            yield message

    def _reply(self, coming: _Coming) -> Message:
        head, node, run = coming.head, self._grid.node, self._grid.run.run_id
        pull = make_pull_object_fn_protobuf(self._client.PullObject, node, run)

        def noted(name: str) -> bytes:
            try:
                return pull(name)
            except ObjectUnavailableError:
                names = [part.object_id for part in iterate_object_tree(coming.tree)]
                coming.late = names[names.index(name) :]
                raise

        try:
            found = 0
            while coming.late and found <= MAX_BODY:  # what is there is not pulled again before the rest is
                found += len(pull(coming.late[0]))
                del coming.late[0]
            reply = gather(coming.tree, noted)
        except ObjectPullError:  # its node was cut off, and did not send it all in time
            return make_message(head, error=Error(ErrorCode.MESSAGE_UNAVAILABLE))
        except ProtocolError as fault:
            _LOG.warning("node=%d event=malformed reason=%s", head.src_node_id, fault)
            reply = make_message(head, content=RecordDict())
        self._client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=node, run_id=run, message_object_id=coming.tree.object_id)
        )
        reply.metadata.__dict__["_reply_to_message_id"] = head.reply_to_message_id
        return reply


class GridExchange:
    """Carries envelopes over a Flower grid; an address is a node id."""

    def __init__(
        self, grid: Grid | BoundedGrid, *, nodes: int, patience: float, timeout: float, is_lasting: bool
    ) -> None:
        """Wait for nodes, then carry.

        Args:
            grid: of Flower.
            nodes: how many must be connected.
            patience: how long to wait for them, in seconds.
            timeout: how long to wait for all replies to one set of envelopes, in seconds.
            is_lasting: whether a node that failed may be there again later.
        """
        self._is_lasting = is_lasting
        self._grid = grid
        self._nodes = nodes
        self._patience = patience
        self._timeout = timeout

    def sites(self) -> list[str]:
        """Node ids that are connected, in numeric order; those that came in time when some did not."""
        deadline = time.monotonic() + self._patience
        while len(found := list(self._grid.get_node_ids())) < self._nodes and time.monotonic() < deadline:
            time.sleep(_POLL)
        return [str(node) for node in sorted(found)]

    def ask(self, bodies: Mapping[str, bytes]) -> dict[str, bytes]:
        """Send and wait; a node that fails has no entry, or is asked again until time is up.

        What is no body of ours, or a larger one than is taken, is an answer too, and empty.

        A site may be gone for a minute, its process started anew or its network down. It answers what it answered
        before, so asking again costs nothing.
        """
        deadline = time.monotonic() + self._timeout
        # When each is asked, again too; without those that answered or failed for good.
        due = dict.fromkeys(bodies, 0.0)
        silence = dict.fromkeys(bodies, _SILENT)
        waiting: dict[str, str] = {}
        answers: dict[str, bytes] = {}
        while due and (now := time.monotonic()) < deadline:
            for address in [address for address, when in due.items() if when <= now]:
                waiting[self._push(address, bodies[address])] = address
                due[address] = now + silence[address] if self._is_lasting else math.inf
                silence[address] *= 2
            for identity, body in self._pull(list(waiting)).items():
                address = waiting.pop(identity)
                if body is None and self._is_lasting and address in due:
                    due[address], silence[address] = now + _PAUSE, _SILENT  # it was not silent
                elif due.pop(address, None) is not None and body is not None:
                    answers[address] = body
            if due:
                time.sleep(_POLL)
        return answers

    def _push(self, address: str, body: bytes) -> str:
        """Identity of the message that was sent."""
        message = Message(pack_body(body), dst_node_id=int(address), message_type=MessageType.QUERY)
        return next(iter(self._grid.push_messages([message])))

    def _pull(self, waiting: list[str]) -> dict[str, bytes | None]:
        """What came so far, by the message that it replies to; None where the node failed."""
        replies = self._grid.pull_messages(waiting) if waiting else []
        return {
            # Not by its source: where a node is gone, Flower answers in its name.
            reply.metadata.reply_to_message_id: None if reply.has_error() else unpack_body(reply.content)
            for reply in replies
        }


def make_server_app(
    conduct: Callable[[Exchange], None],
    *,
    nodes: int,
    patience: float = 120.0,
    timeout: float = 3600.0,
    is_lasting: bool = False,
) -> ServerApp:
    """An app that conducts one run over the grid that Flower gives it; the rest is as in `GridExchange`."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        conduct(GridExchange(grid, nodes=nodes, patience=patience, timeout=timeout, is_lasting=is_lasting))

    return app


def _make_live_app() -> ServerApp:
    """The app that a SuperLink's bundle names: it conducts the run whose folder the run's configuration tells.

    That configuration comes from `privshare start`, over the SuperLink's own loopback; no site sees it.
    """
    live = ServerApp()

    @live.main()
    def main(grid: Grid, context: Context) -> None:
        assert isinstance(grid, HttpGrid)  # of a SuperLink
        folder = Path(str(context.run_config["run"]))
        start = read_start(folder)
        credentials = credentials_of(start.home)
        exchange = GridExchange(
            BoundedGrid(grid),
            nodes=len(credentials.sites),
            patience=start.patience,
            timeout=start.timeout,
            is_lasting=True,
        )
        conduct_live(folder, exchange, credentials, start)

    return live


app = _make_live_app()
