# syntax=docker/dockerfile:1
# The coordinator: common, server, and simulations, where the command `privshare` is. From the root of the repository:
#
#   docker build -f deploy/docker/coordinator.Dockerfile -t privshare-coordinator:0.1.0 .
#
# Which package index, and which build of torch, pip's own configuration says; see site.Dockerfile.
FROM python:3.11.13-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /opt/privshare
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY constraints.txt pyproject.toml README.md LICENSE ./
# simulations imports client too: the same commands audit a site's code and run whole federations.
COPY common common
COPY client client
COPY server server
COPY simulations simulations
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/privshare/bin/pip install --constraint constraints.txt torch && \
    /opt/privshare/bin/pip install --constraint constraints.txt . && \
    rm /opt/privshare/bin/privshare-client

FROM python:3.11.13-slim-bookworm
RUN groupadd --gid 10001 privshare && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin privshare
COPY --from=build /opt/privshare /opt/privshare
COPY deploy/docker/health.py /opt/privshare/health.py
COPY deploy/flower-app /opt/privshare/flower-app
# flower-superexec starts flwr-serverapp from PATH.
ENV PATH=/opt/privshare/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp \
    FLWR_HOME=/tmp/flwr \
    FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
USER 10001:10001
WORKDIR /coordinator
VOLUME ["/coordinator"]
STOPSIGNAL SIGTERM
# Of superlink and superexec, each started with --health-server-address 127.0.0.1:9093.
HEALTHCHECK --interval=30s --timeout=10s --start-period=90s --retries=3 \
    CMD ["python", "/opt/privshare/health.py", "127.0.0.1:9093"]
CMD ["privshare", "--help"]
