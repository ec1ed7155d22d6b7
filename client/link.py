"""A site's link to a Flower SuperLink: the only file of a site that speaks Flower's protocol.

It pulls messages and pushes replies, and that is all: no app bundle is fetched, no run configuration is read, no task
is started. What came is bytes, and stays bytes until the site's door has seen a signature on it.
It uses parts of Flower that are not a public interface, so it refuses to start with a release that it was not tested
with.
"""

import hashlib
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Self, TypeVar

import httpx
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from google.protobuf.message import DecodeError

from client.keys import transport_key
from client.policy import SiteSettings
from client.presence import Presence
from client.tls import tls_context
from common.errors import ExitCode, ProtocolError, UnreachableError
from common.wire.parcels import gather, pack_body, unpack_body

TESTED: tuple[str, ...] = ("1.41",)
"""Releases of Flower that tests ran this file with."""
HEARTBEAT = 30.0
"""Seconds that the coordinator waits, twice, before it takes a silent site for gone."""
_CALL_TIMEOUT = 30.0
_MOST_ANSWER = 16 * 1024 * 1024
"""Bytes of one answer's body; what is larger travels in pieces of 5 MiB."""
_LONGEST_ANSWER = 300.0
"""Seconds that one answer's body may take, however steadily it comes."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 20.0
_GONE_FOR = 3.0
"""Seconds that a site stays away after a goodbye. Who waits for an answer of a process that died, or whose message was
lost on its way, must see meanwhile that the site is gone, to ask again: it looks several times a second."""
_BUSY = frozenset({408, 429, 502, 503, 504})
_MAYBE_TOLD = frozenset({502, 504})
"""Of a proxy: the server behind it may have been told, and has not answered, or not in time."""
_REFUSED = frozenset({400, 401, 404, 409})
_NOT_RUNNING = 403
_NOT_YET = 412
_Asked = TypeVar("_Asked")
_Found = TypeVar("_Found")


class BusyError(UnreachableError):
    """The network or the server fails for now; the same call may go through later.

    is_heard: whether the server may have done what was asked, and its answer be lost.
    """

    def __init__(self, message: str, *, is_heard: bool) -> None:
        super().__init__(message)
        self.is_heard = is_heard


class RunOverError(ProtocolError):
    """The run that a message belongs to has ended; nobody waits for an answer."""


@dataclass(frozen=True)
class Parcel:
    """A message that came: its body, and what its reply needs."""

    body: bytes
    message: Message


class Link:
    """One connection to a coordinator, and the heartbeat that keeps it.

    Guarantees: TLS 1.3, to a server whose certificate the federation's authority made; nothing that came is executed.
    """

    def __init__(self, settings: SiteSettings, *, is_stopping: threading.Event) -> None:
        """Read keys and certificates; connects to nothing.

        Args:
            settings: say where the coordinator is, and where the site's keys and certificate are.
            is_stopping: ends every wait.

        Raises:
            UnreachableError: this release of Flower was not tested, or a certificate cannot be used.
            PolicyError: a key cannot be used.
        """
        check_flower(version("flwr"))
        private = transport_key(settings.state)
        self._public = public_key_to_bytes(private.public_key())
        self._client = _BoundedClient(
            f"https://{settings.superlink}",
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(private, private.public_key()),
            ],
            verify=tls_context(settings),
            timeout=_CALL_TIMEOUT,
        )
        self._is_stopping = is_stopping
        self._spread = 0.75 + 0.5 * hashlib.sha256(self._public).digest()[0] / 255
        self._is_lost = threading.Event()
        self._presence = Presence(settings.state)
        self._node: Node | None = None
        self._heart: threading.Thread | None = None

    def open(self) -> Self:
        """Show who this is, once, and begin the heartbeat; before that, say goodbye for a process that could not.

        Whoever calls this holds the site.

        Raises:
            UnreachableError: nobody answers, the coordinator does not let this site in yet, or (code NOT_ADMITTED) it
                does not at all.
        """
        if (left := self._presence.left()) is not None:
            self._say_goodbye(left)
        request = ActivateNodeRequest(public_key=self._public, heartbeat_interval=HEARTBEAT)
        self._node = Node(node_id=_once(self._client.ActivateNode, request).node_id)
        self._presence.enter(self._node.node_id)
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()
        return self

    def close(self) -> None:
        """Say goodbye, if anybody listens, and end the heartbeat."""
        self._is_lost.set()
        if self._heart is not None:
            self._heart.join()
        if self._node is not None:
            self._say_goodbye(self._node.node_id)
        self._client.close()

    def _say_goodbye(self, node: int) -> None:
        """Stay away for a while if somebody heard it; where nobody did, the next connection says it."""
        try:
            _once(self._client.DeactivateNode, DeactivateNodeRequest(node_id=node))
        except BusyError:
            return
        except (UnreachableError, RunOverError):
            pass  # it was taken for gone
        else:
            self._is_stopping.wait(_GONE_FOR)
        self._presence.leave()

    def pull(self) -> Parcel | None:
        """The next message, or None where there is none.

        Raises:
            UnreachableError: the connection is lost, or may have taken a message along: the server gives each out once,
                and whoever sent it sends it again to a site that has been away.
            ProtocolError: what came is no message for a site.
        """
        if self._is_lost.is_set():
            raise UnreachableError("superlink: the connection is lost")
        response = self._call(self._client.PullMessages, PullMessagesRequest(node=self._node), is_repeatable=False)
        if not response.messages_list:
            return None
        head = message_from_proto(response.messages_list[0])
        return self._inflate(head.metadata.run_id, head.metadata.message_id, response.message_object_trees[0])

    def push(self, parcel: Parcel, body: bytes) -> None:
        """Send the reply to a message.

        Raises:
            UnreachableError: the connection is lost, or may have taken along what parts of the reply are wanted: of one
                that was taken up meanwhile, the server asks for none of them again.
            RunOverError: nobody waits for it.
        """
        if self._node is None or parcel.message.metadata.dst_node_id != self._node.node_id:
            # It was asked of this site under another number, which went with the SuperLink's database.
            raise RunOverError("run: is over")
        reply = _reply_to(parcel.message, body)
        with no_object_id_recompute():
            tree, objects = get_object_tree(reply), get_all_nested_objects(reply)
            contents = {identity: thing.deflate() for identity, thing in objects.items()}
        asked = PushMessagesRequest(
            node=self._node,
            messages_list=[message_to_proto(remove_content_from_message(reply))],
            message_object_trees=[tree],
            clientapp_runtime_list=[0.0],
        )
        response = self._call(self._client.PushMessages, asked, is_repeatable=False)
        for identity in response.objects_to_push:
            self._call(
                self._client.PushObject,
                PushObjectRequest(
                    node=self._node,
                    run_id=parcel.message.metadata.run_id,
                    object_id=identity,
                    object_content=contents[identity],
                    session_id=response.session_id,
                ),
            )

    def _inflate(self, run: int, identity: str, tree: ObjectTree) -> Parcel:
        message = gather(tree, lambda name: self._pull_object(run, name))
        self._call(
            self._client.ConfirmMessageReceived,
            ConfirmMessageReceivedRequest(node=self._node, run_id=run, message_object_id=identity),
        )
        message.metadata.__dict__["_message_id"] = identity
        return Parcel(unpack_body(message.content) if message.has_content() else b"", message)

    def _pull_object(self, run: int, name: str) -> bytes:
        request = PullObjectRequest(node=self._node, run_id=run, object_id=name)
        for pause in pauses(self._spread):
            response = self._call(self._client.PullObject, request)
            if not response.object_found:
                break
            if response.object_available:
                return bytes(response.object_content)
            if self._is_stopping.wait(pause):
                break
        raise ProtocolError("message: a part of it is not there")

    def _call(self, method: Callable[[_Asked], _Found], request: _Asked, *, is_repeatable: bool = True) -> _Found:
        """A call, repeated while the network or the server is busy, until the coordinator must have given up.

        Args:
            method: of Flower's client.
            request: to it.
            is_repeatable: whether a call that was heard may be made again.

        Raises:
            UnreachableError, RunOverError
        """
        patience = time.monotonic() + 2 * HEARTBEAT
        for pause in pauses(self._spread):
            try:
                return _once(method, request)
            except BusyError as fault:
                is_lost = fault.is_heard and not is_repeatable
                if is_lost or time.monotonic() > patience or self._is_stopping.wait(pause):
                    raise
        raise AssertionError  # pauses never end

    def _beat(self) -> None:
        """Until the link is closed, or the coordinator does not know this site any more."""
        request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT)
        while not self._is_lost.wait(HEARTBEAT * self._spread / 3):
            try:
                if _once(self._client.SendNodeHeartbeat, request).success:
                    continue
            except BusyError:
                continue  # pulling notices
            except (UnreachableError, RunOverError):
                pass
            self._is_lost.set()


class _BoundedClient(FleetHttpClient):
    """Flower's client, which alone would read an answer without end, and unpack a small one to any size."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._client.headers["accept-encoding"] = "identity"
        self._client.event_hooks = {"response": [self._bound]}

    @staticmethod
    def _bound(response: httpx.Response) -> None:
        """Before an answer's body is read."""
        if "content-encoding" in response.headers:
            raise httpx.DecodingError("packed, which nobody asked for")
        assert isinstance(response.stream, httpx.SyncByteStream)  # of a client that waits for answers
        response.stream = _BoundedBody(response.stream)


class _BoundedBody(httpx.SyncByteStream):
    """The body of an answer, given up where it grows too large or takes too long."""

    def __init__(self, body: httpx.SyncByteStream) -> None:
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        deadline, held = time.monotonic() + _LONGEST_ANSWER, 0
        for part in self._body:
            held += len(part)
            if held > _MOST_ANSWER:
                raise httpx.DecodingError("larger than the limit")
            if time.monotonic() > deadline:
                raise httpx.ReadTimeout("slower than the limit")
            yield part

    def close(self) -> None:
        self._body.close()


def check_flower(found: str) -> None:
    """Refuse a release of Flower that nobody tried.

    Raises:
        UnreachableError: with the code FLOWER_UNTESTED.
    """
    if ".".join(found.split(".")[:2]) not in TESTED:
        raise UnreachableError(
            f"flwr {found}: not tested with this release of privshare; install {' or '.join(TESTED)}",
            ExitCode.FLOWER_UNTESTED,
        )


def _once(method: Callable[[_Asked], _Found], request: _Asked) -> _Found:
    """One call; what it raises has no text from the other side.

    Raises:
        BusyError: nobody answers now.
        UnreachableError: a wrong answer, or (code NOT_ADMITTED) this site is not let in.
        RunOverError: the run is over.
    """
    try:
        return method(request)
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        if status == _NOT_RUNNING:
            raise RunOverError("run: is over") from None
        if status == _NOT_YET:
            raise UnreachableError(
                "superlink: does not let this site in before the coordinator's `privshare start`, while somebody else "
                "is connected as this site, nor for a minute after a crash of its machine"
            ) from None
        if status in _BUSY:
            raise BusyError(f"superlink: answers with status {status}", is_heard=status in _MAYBE_TOLD) from None
        if status not in _REFUSED:
            raise UnreachableError(f"superlink: answers with status {status}") from None
        raise UnreachableError(
            f"superlink: does not let this site in (status {status}); it may not be admitted, or its clock be wrong",
            ExitCode.NOT_ADMITTED,
        ) from None
    except httpx.ConnectError as error:
        raise BusyError(f"superlink: cannot be reached ({_why(error)})", is_heard=False) from None
    except (httpx.TransportError, ssl.SSLError, OSError) as error:
        is_heard = not isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout)
        raise BusyError(f"superlink: cannot be reached ({type(error).__name__})", is_heard=is_heard) from None
    except (httpx.RequestError, ValueError, RuntimeError, DecodeError):  # what cannot be unpacked, or leads in a circle
        raise UnreachableError("superlink: an answer that is none") from None


def _reply_to(message: Message, body: bytes) -> Message:
    """The reply, the same whenever it is made: over the next connection it is not taken for a second one.

    A second one is refused without a word, and the parts that the first one lacks would never be asked for.
    """
    reply = Message(pack_body(body), reply_to=message)
    asked, said = message.metadata, reply.metadata.__dict__
    said["_created_at"], said["_ttl"] = asked.created_at, asked.ttl
    said["_message_id"] = reply.object_id
    return reply


def _why(error: httpx.ConnectError) -> str:
    """The reason of a failed connection: TLS says why it refused a server."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message
        if isinstance(cause, ssl.SSLError):
            return f"TLS: {cause.reason}"
        cause = cause.__cause__ or cause.__context__
    return "no connection"


def pauses(spread: float = 1.0) -> Iterator[float]:
    """Seconds between tries, twice as long each time; `spread`, near 1, keeps sites from calling all at once."""
    pause = _FIRST_PAUSE
    while True:
        yield pause * spread
        pause = min(2 * pause, _LONGEST_PAUSE)
