"""How a site speaks TLS: 1.3, with its own certificate, to a server whose certificate the federation's CA made."""

import ssl

from client.policy import SiteSettings
from common.errors import ExitCode, UnreachableError


def tls_context(settings: SiteSettings) -> ssl.SSLContext:
    """For every connection to the coordinator.

    Raises:
        UnreachableError: the CA, the site's certificate or its key cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.hostname_checks_common_name = False  # a name is an alternative name, or none
    certificate, key = settings.state / "tls.crt", settings.state / "tls.key"
    try:
        context.load_verify_locations(cafile=settings.ca)
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError):
        raise UnreachableError(
            f"{settings.ca}, {certificate}: not there, not certificates, or not of the site's key",
            ExitCode.NOT_ADMITTED,
        ) from None
    return context
