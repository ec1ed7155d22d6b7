# syntax=docker/dockerfile:1
# A site: common and client, and nothing of the coordinator. From the root of the repository:
#
#   docker build -f deploy/docker/site.Dockerfile -t privshare-site:0.1.0 .
#
# Which package index, and which build of torch, pip's own configuration says. Without one, torch may come with
# gigabytes for accelerators; hand yours over as a secret, so that it is in no layer:
#
#   docker build --secret id=pip,src=pip.conf ...
FROM python:3.11.13-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /opt/privshare
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY constraints.txt pyproject.toml README.md LICENSE ./
# The packages are found by their folders: what is not copied is not installed.
COPY common common
COPY client client
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/privshare/bin/pip install --constraint constraints.txt torch && \
    /opt/privshare/bin/pip install --constraint constraints.txt '.[sql]' && \
    rm /opt/privshare/bin/privshare

FROM python:3.11.13-slim-bookworm
RUN groupadd --gid 10001 privshare && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin privshare
COPY --from=build /opt/privshare /opt/privshare
COPY deploy/docker/health.py /opt/privshare/health.py
ENV PATH=/opt/privshare/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp \
    PRIVSHARE_SITES=/sites FLWR_HOME=/tmp/flwr \
    FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
USER 10001:10001
WORKDIR /
VOLUME ["/sites"]
STOPSIGNAL SIGTERM
# Runs on a read-only root: it writes in /sites and /tmp. No port is exposed; the health endpoint is on loopback.
HEALTHCHECK --interval=30s --timeout=10s --start-period=90s --retries=3 \
    CMD ["python", "/opt/privshare/health.py", "127.0.0.1:9100"]
ENTRYPOINT ["privshare-client"]
CMD ["--help"]
