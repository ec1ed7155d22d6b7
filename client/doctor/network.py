"""The way to the coordinator, step by step: a name, a port, a certificate, and whether it lets this site in.

Nothing is activated: to ask is not to connect, and a site that runs is not disturbed.
"""

import http.client
import ipaddress
import socket
import ssl
from datetime import UTC, timedelta
from email.utils import parsedate_to_datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from client.doctor.checkup import Case, Check, Doubt, FaultError, NotChecked
from client.enrolment import check_certificate
from client.policy import SiteSettings
from client.tls import tls_context
from common.errors import ExitCode, MembershipError, UnreachableError, UntrustedError
from common.wire.membership import (
    WARN_DAYS,
    check_in_force,
    is_ip,
    read_ca,
    read_paper_file,
    split_address,
)

_SECONDS: Final = 10.0
_NOT_IN: Final = ExitCode.NOT_ADMITTED
_AHEAD, _BEHIND = timedelta(seconds=6), timedelta(seconds=300)
"""Flower refuses what was signed more than 5 seconds in its future or 5 minutes in its past; one more for the header,
which tells whole seconds."""
_SHUT_OUT: Final = frozenset({400, 401, 403, 495, 496})
"""What a proxy answers whose certificate check failed; to a member it answers that there is nothing at this address."""


def _host(case: Case) -> tuple[str, int]:
    assert case.settings.superlink is not None  # an earlier check
    return split_address(case.settings.superlink)


def _address(case: Case) -> str:
    if case.settings.superlink is None or case.settings.ca is None:
        raise MembershipError(
            f"{case.path}: superlink and ca: expected, to reach the coordinator", ExitCode.NOT_ADMITTED
        )
    return case.settings.superlink


def _ca(case: Case) -> str:
    assert case.settings.ca is not None  # an earlier check
    found = read_ca(read_paper_file(case.settings.ca))
    check_in_force(found, case.around.now())
    return f"{case.settings.ca}: in force until {found.not_valid_after_utc.date()}"


def _name(case: Case) -> str:
    host, _ = _host(case)
    if is_ip(host):
        return f"{host}: an address already"
    try:
        return f"{host}: {', '.join(case.around.resolve(host))}"
    except OSError:
        raise UnreachableError(f"{host}: no such name, or no name server answers") from None


def _port(case: Case) -> str:
    host, port = _host(case)
    try:
        socket.create_connection((host, port), timeout=_SECONDS).close()
    except OSError as error:
        raise UnreachableError(f"{host}:{port}: no connection ({error.strerror or type(error).__name__})") from None
    return f"{host}:{port}: open"


def _shown(case: Case) -> x509.Certificate:
    """The certificate that the server shows, before anything is believed; nothing is said to it."""
    host, port = _host(case)
    try:
        return x509.load_pem_x509_certificate(ssl.get_server_certificate((host, port), timeout=_SECONDS).encode())
    except (OSError, ValueError):
        raise UnreachableError(f"{host}:{port}: does not speak TLS") from None


def _servers_ca(case: Case) -> str:
    assert case.settings.ca is not None  # an earlier check
    found, ca = _shown(case), read_ca(read_paper_file(case.settings.ca))
    try:
        found.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        raise UntrustedError("the coordinator's certificate is not from the federation's CA") from None
    return "the coordinator's certificate is from the federation's CA"


def _servers_name(case: Case) -> str:
    host, _ = _host(case)
    try:
        names = _shown(case).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    if is_ip(host):
        is_named = ipaddress.ip_address(host) in names.get_values_for_type(x509.IPAddress)
    else:
        is_named = host.lower() in [name.lower() for name in names.get_values_for_type(x509.DNSName)]
    if not is_named:
        raise UnreachableError(f"{host} is not among the alternative names of the coordinator's certificate")
    return f"the certificate names {host}"


def _servers_days(case: Case) -> str:
    found, now = _shown(case), case.around.now()
    check_in_force(found, now)
    return _told((found.not_valid_after_utc - now) // timedelta(days=1), "the coordinator's certificate")


def _certificate(case: Case) -> str:
    days = check_certificate(case.settings, case.around.now())
    return _told(days, "this site's certificate")


def _told(days: int, what: str) -> str:
    said = f"{what} is in force for {days} days more"
    if days < WARN_DAYS:
        raise Doubt(f"{said}: that is soon")
    return said


def _let_in(case: Case) -> str:
    status, _ = _answer(case.settings)
    if status in _SHUT_OUT:
        raise UnreachableError(f"the coordinator's door refuses this site's certificate (status {status})", _NOT_IN)
    return "the coordinator's door takes this site's certificate; whether its node key is known, only starting shows"


def _answer(settings: SiteSettings) -> tuple[int, str | None]:
    """Status and date of the answer to a question that asks for nothing.

    Raises:
        UnreachableError: the handshake fails, with the code NOT_ADMITTED, or there is no answer.
    """
    assert settings.superlink is not None  # an earlier check
    host, port = split_address(settings.superlink)
    asked = http.client.HTTPSConnection(host, port, timeout=_SECONDS, context=tls_context(settings))
    try:
        asked.request("GET", "/")
        answer = asked.getresponse()
        return answer.status, answer.getheader("date")
    except ssl.SSLError as error:
        raise UnreachableError(f"the TLS handshake fails ({error.reason})", _NOT_IN) from None
    except (OSError, http.client.HTTPException) as error:
        # A server that refuses a certificate may hang up before it says so.
        raise UnreachableError(f"no answer over TLS ({type(error).__name__})", _NOT_IN) from None
    finally:
        asked.close()


def _clock(case: Case) -> str:
    _, date = _answer(case.settings)
    if date is None:
        raise NotChecked("the coordinator tells no time")
    try:
        theirs = parsedate_to_datetime(date)
    except ValueError:
        raise NotChecked("the coordinator tells no time that can be read") from None
    apart = case.around.now() - (theirs if theirs.tzinfo else theirs.replace(tzinfo=UTC))
    said = (
        f"{abs(apart.total_seconds()):,.0f} seconds {'ahead of' if apart > timedelta() else 'behind'} the coordinator's"
    )
    if apart > _AHEAD or -apart > _BEHIND:
        raise FaultError(
            said, ExitCode.NOT_ADMITTED, mend="set this machine's clock, and keep it so (chrony or systemd-timesyncd)"
        )
    return said


CHECKS: Final = (
    Check("coordinator", _address, "set `superlink` and `ca` in site.yaml as the kit has them", ("site file",)),
    Check("federation's CA", _ca, "take ca.crt from the kit again, or ask for a new kit", ("coordinator",)),
    Check(
        "certificate",
        _certificate,
        "privshare-client rotate, send enrolment.json, then privshare-client join",
        ("connection keys", "federation's CA"),
    ),
    Check("name", _name, "ask the network's administrators for the name, or correct `superlink`", ("coordinator",)),
    Check(
        "port",
        _port,
        "let this machine connect to that port in the firewall; ask whether the coordinator is up",
        ("name",),
    ),
    Check(
        "coordinator's CA",
        _servers_ca,
        "compare the CA's fingerprint by telephone: a wrong ca.crt, another server, or somebody between",
        ("port", "federation's CA"),
    ),
    Check(
        "coordinator's name",
        _servers_name,
        "the coordinator: privshare renew with that address; or correct `superlink`",
        ("coordinator's CA",),
    ),
    Check("coordinator's certificate", _servers_days, "the coordinator: privshare renew", ("coordinator's CA",)),
    Check(
        "let in",
        _let_in,
        "ask the coordinator: privshare members; is this site admitted, and not revoked? then join again",
        ("certificate", "coordinator's name", "coordinator's certificate"),
    ),
    Check("clock", _clock, "set this machine's clock", ("let in",)),
)
