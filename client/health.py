"""Whether a running site is well, for whoever starts and watches processes: `grpc.health.v1` on loopback.

It says that the site is connected and that its worker is there; nothing of a study, a budget or a row.
"""

from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import Any, Final, Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from common.errors import ExitCode, PolicyError, UnreachableError

REASON: Final = "privshare-reason"
"""Key of the trailing metadata that says why."""
SERVING: Final = "SERVING"
STARTING: Final = "STARTING"
STOPPING: Final = "STOPPING"
_CALL_TIMEOUT = 5.0


class Part(StrEnum):
    """What can be asked for by name; the whole, which has no name, is well when every part is."""

    CONNECTION = "privshare.connection"
    WORKER = "privshare.worker"


class Health:
    """The endpoint of one site; a part's state is `SERVING`, or the name of the reason why it is not."""

    def __init__(self, address: str | None) -> None:
        """Prepare it; without an address nobody can ask.

        Args:
            address: host:port on loopback.
        """
        self._address = address
        self._servicer = _Servicer()
        self._server: grpc.Server | None = None
        for part in Part:
            self.tell(part, STARTING)

    def tell(self, part: Part, state: str) -> None:
        """Set what is said of a part, and with it of the whole."""
        self._servicer.reasons[part] = state
        worst = next((one for one in self._servicer.reasons.values() if one != SERVING), SERVING)
        self._servicer.whole = worst
        for service, reason in ((part, state), ("", worst)):
            status = health_pb2.HealthCheckResponse.ServingStatus
            self._servicer.set(service, status.SERVING if reason == SERVING else status.NOT_SERVING)

    def __enter__(self) -> Self:
        """Begin to answer.

        Raises:
            PolicyError: the address cannot be used.
        """
        if self._address is not None:
            self._server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
            health_pb2_grpc.add_HealthServicer_to_server(self._servicer, self._server)
            try:
                self._server.add_insecure_port(self._address)
            except RuntimeError:
                raise PolicyError(f"health={self._address}: the port is taken or is not this machine's") from None
            self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.stop(grace=0).wait()


class _Servicer(health.HealthServicer):  # type: ignore[misc]  # the package has no types
    """The standard one, with the reason in the trailing metadata."""

    def __init__(self) -> None:
        super().__init__()
        self.reasons: dict[str, str] = {}
        self.whole = STARTING

    def Check(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 (the service's own name)
        context.set_trailing_metadata(((REASON, self.reasons.get(request.service, self.whole)),))
        return super().Check(request, context)


def ask(address: str) -> dict[str, str]:
    """What a running site says of the whole (by the empty name) and of each part.

    Raises:
        UnreachableError: nobody answers.
    """
    found = {}
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        for part in ("", *Part):
            request = health_pb2.HealthCheckRequest(service=part)
            try:
                _, call = health_pb2_grpc.HealthStub(channel).Check.with_call(request, timeout=_CALL_TIMEOUT)
                found[str(part)] = dict(call.trailing_metadata() or ())[REASON]
            except (grpc.RpcError, KeyError):  # nobody, or somebody else
                raise UnreachableError(f"{address}: no site answers here", ExitCode.UNREACHABLE) from None
    return found
