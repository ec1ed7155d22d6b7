"""The check that containers run on themselves."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "docker" / "health.py"


@pytest.fixture
def address() -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(1))
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    servicer.set("privshare.connection", health_pb2.HealthCheckResponse.NOT_SERVING)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0).wait()


@pytest.mark.parametrize(("service", "code"), [([], 0), (["privshare.connection"], 1), (["privshare.unknown"], 1)])
def test_it_ends_as_the_endpoint_says(address: str, service: list[str], code: int) -> None:
    done = subprocess.run([sys.executable, SCRIPT, address, *service], check=False, timeout=20)
    assert done.returncode == code


def test_where_nobody_answers_it_ends_badly() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "127.0.0.1:1"], check=False, timeout=20)
    assert done.returncode == 1
