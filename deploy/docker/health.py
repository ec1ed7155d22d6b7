#!/usr/bin/env python3
"""Ends with 0 where the gRPC health service at an address says that a service is serving: health.py ADDRESS [SERVICE].

For container health checks. The endpoints listen on loopback alone, so the check runs inside the container.
"""

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


def is_serving(address: str, service: str, *, seconds: float = 5.0) -> bool:
    """Whether the endpoint answers in time, and says so."""
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=seconds)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


if __name__ == "__main__":
    sys.exit(0 if is_serving(sys.argv[1], *sys.argv[2:3] or [""]) else 1)
