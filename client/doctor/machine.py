"""What the site stands on: its folder, its keys, its ports, and what is installed."""

import platform
import socket
import tempfile
from contextlib import closing
from typing import Final

from client.doctor.checkup import Case, Check, Doubt, FaultError
from client.holding import is_running
from client.keys import tls_key, transport_key, unit_secret
from common.errors import ExitCode, OutputError, PolicyError, PrivShareError
from common.privacy.ledger import read_ledger
from common.wire.membership import split_address


def _state_folder(case: Case) -> str:
    state = case.settings.state
    try:
        with tempfile.NamedTemporaryFile(dir=state, prefix="doctor.") as file:
            file.write(b"\0")
            file.flush()
    except OSError as error:
        raise OutputError(f"{state}: cannot be written ({error.strerror})") from None
    return f"{state}: writable"


def _disk_space(case: Case) -> str:
    # torch, for the sizes of networks.
    from client.preview import preview  # noqa: PLC0415

    found = preview(case.study, case.bound, site=case.settings.site, peers=len(case.policy.peers))
    kept = 2 * sum(line.times * line.bytes for line in found.lines if line.account)
    free = case.around.free(case.settings.state)
    said = f"{free / 2**20:,.0f} MiB free; the sealed replies of two runs need about {kept / 2**20:,.0f}"
    if free < kept:
        raise OutputError(said)
    return said


def _unit_key(case: Case) -> str:
    path, ledger = case.settings.state / "site.key", case.settings.ledger
    if not path.exists() and not (ledger.exists() and any(read_ledger(ledger).charges.values())):
        return "state/site.key: made on the first request"
    unit_secret(case.settings.state, may_make=False)
    return "state/site.key: there, private"


def _connection_keys(case: Case) -> str:
    transport_key(case.settings.state)
    tls_key(case.settings.state)
    return "transport.key, tls.key: there, private"


def _free_to_start(case: Case) -> str:
    if not is_running(case.settings.state):
        return "no other process runs this site"
    if case.settings.health is None:
        raise Doubt("a process runs this site; whether it is connected, only `health` in site.yaml would tell")
    from client.health import SERVING, ask  # noqa: PLC0415 (grpc)

    if ask(case.settings.health)[""] == SERVING:
        return "it is running, and connected"
    raise PolicyError(f"{case.settings.state}: a process runs this site, not connected", ExitCode.ALREADY_RUNNING)


def _health(case: Case) -> str:
    address = case.settings.health
    if address is None:
        return "site.yaml gives no `health`: nobody can ask"
    if is_running(case.settings.state):
        return f"{address}: the running site's"
    host, port = split_address(address)
    with closing(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            raise PolicyError(f"health={address}: the port is taken or is not this machine's") from None
    return f"{address}: free"


def _versions(case: Case) -> str:
    # Flower takes seconds to import; that it can be is part of the check.
    from client.link import TESTED, check_flower  # noqa: PLC0415

    found = case.around.flower()
    try:
        check_flower(found)
    except PrivShareError as error:
        raise FaultError(
            str(error), ExitCode.FLOWER_UNTESTED, mend=f"pip install 'flwr=={TESTED[0]}.*', or a newer privshare"
        ) from None
    return f"Python {platform.python_version()}, flwr {found}"


CHECKS: Final = (
    Check(
        "unit key",
        _unit_key,
        "chmod 600 state/site.key; if it is gone, restore it: the ledger's charges rest on it",
        ("ledger",),
    ),
    Check(
        "connection keys",
        _connection_keys,
        "chmod 600 state/transport.key state/tls.key; if one is gone: privshare-client rotate, then join",
        ("site file",),
    ),
    Check("state folder", _state_folder, "let the site's user write the state folder of site.yaml", ("site file",)),
    Check("disk space", _disk_space, "free some space, or move the state folder to a larger disk", ("limits",)),
    Check(
        "free to start",
        _free_to_start,
        "stop the other process before another starts; `status` says how it is",
        ("site file",),
    ),
    Check("health", _health, "give `health` in site.yaml another port on loopback", ("site file",)),
    Check("versions", _versions, "pip install privshare again, with its own constraints"),
)
