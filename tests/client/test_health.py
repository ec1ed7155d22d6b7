"""Whether a running site says that it is well, asked over gRPC on loopback."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from client.health import REASON, SERVING, STARTING, STOPPING, Health, Part, ask
from common.errors import ExitCode, PolicyError, UnreachableError

CONNECTION, WORKER = str(Part.CONNECTION), str(Part.WORKER)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def address() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def running(address: str) -> Iterator[Health]:
    with Health(address) as found:
        yield found


def check(address: str, service: str) -> tuple[str, str]:
    """What the standard protocol says: a status, and the reason beside it."""
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        response, call = health_pb2_grpc.HealthStub(channel).Check.with_call(request, timeout=5)
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
    return status, dict(call.trailing_metadata())[REASON]


def test_a_site_that_starts_is_not_well_yet(running: Health, address: str) -> None:
    assert ask(address) == {"": STARTING, CONNECTION: STARTING, WORKER: STARTING}
    for service in ("", CONNECTION, WORKER):
        assert check(address, service) == ("NOT_SERVING", STARTING)


def test_the_whole_is_well_when_every_part_is(running: Health, address: str) -> None:
    running.tell(Part.WORKER, SERVING)
    assert ask(address) == {"": STARTING, CONNECTION: STARTING, WORKER: SERVING}
    assert check(address, "") == ("NOT_SERVING", STARTING)
    assert check(address, WORKER) == ("SERVING", SERVING)
    running.tell(Part.CONNECTION, SERVING)
    assert ask(address) == dict.fromkeys(("", CONNECTION, WORKER), SERVING)
    assert check(address, "") == ("SERVING", SERVING)


@pytest.mark.parametrize("part", list(Part))
def test_the_reason_of_a_part_that_is_not_well_is_that_of_the_whole(running: Health, address: str, part: Part) -> None:
    for other in Part:
        running.tell(other, SERVING)
    running.tell(part, "NOT_ADMITTED")
    assert check(address, part) == check(address, "") == ("NOT_SERVING", "NOT_ADMITTED")
    assert ask(address)[""] == "NOT_ADMITTED"
    running.tell(part, SERVING)
    assert set(ask(address).values()) == {SERVING}


def test_a_service_that_is_none_is_not_found(running: Health, address: str) -> None:
    with pytest.raises(grpc.RpcError) as error:
        check(address, "privshare.budget")
    assert error.value.code() == grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]


def test_a_port_that_is_taken_is_refused_by_name(running: Health, address: str) -> None:
    with pytest.raises(PolicyError, match=rf"^health={address}: the port is taken or is not this machine's$"):
        Health(address).__enter__()
    running.tell(Part.WORKER, STOPPING)
    assert ask(address)[WORKER] == STOPPING  # the first one still answers


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(PolicyError, match=r"^health=192\.0\.2\.1:50051: "):
        Health("192.0.2.1:50051").__enter__()


def test_without_an_address_nobody_can_ask_and_states_are_told_all_the_same() -> None:
    with Health(None) as silent:
        silent.tell(Part.WORKER, SERVING)


def test_where_nobody_answers_that_is_said(address: str) -> None:
    with pytest.raises(UnreachableError, match=rf"^{address}: no site answers here$") as error:
        ask(address)
    assert error.value.code == ExitCode.UNREACHABLE


def test_after_the_end_nobody_answers_and_the_port_is_free(address: str) -> None:
    for _ in range(2):
        with Health(address):
            assert ask(address)[""] == STARTING
        with pytest.raises(UnreachableError):
            ask(address)


def test_what_answers_there_and_is_no_site_is_none(address: str) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    servicer = health.HealthServicer()
    for service in ("", *Part):
        servicer.set(service, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(address)
    server.start()
    try:
        with pytest.raises(UnreachableError, match="no site answers here"):
            ask(address)
    finally:
        server.stop(0).wait()
