"""Whether a service of the federation answers, over HTTPS that its authority vouches for."""

import http.client
import socket
import ssl
from pathlib import Path

_SECONDS = 3.0


def status_of(
    host: str, port: int, authority: Path, path: str = "/health", name: str | None = None
) -> int:
    """The HTTP status that ``path`` is answered with.

    ``name`` is whom the certificate is to be of, if not ``host``. No proxy is asked, and no other
    authority believed. Raises OSError where nobody answers, among them ssl.SSLError where the
    other side is not whom the authority vouches for.
    """
    context = ssl.create_default_context(cafile=str(authority))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    connection = http.client.HTTPConnection(host, port, timeout=_SECONDS)
    try:
        plain = socket.create_connection((host, port), _SECONDS)
        connection.sock = context.wrap_socket(plain, server_hostname=name or host)
        connection.request("GET", path)
        return connection.getresponse().status
    except http.client.HTTPException as error:
        raise ConnectionError(f"no HTTP: {type(error).__name__}") from error
    finally:
        connection.close()


def problem_of(host: str, port: int, authority: Path, name: str | None = None) -> str | None:
    """Why it does not say that it is well; None when it does."""
    try:
        status = status_of(host, port, authority, name=name)
    except ssl.SSLCertVerificationError as error:
        return f"its certificate is refused: {error.verify_message}"
    except ssl.SSLError as error:
        return f"TLS fails: {error.reason}"
    except OSError as error:
        return f"it does not answer: {error.strerror or error}"
    return None if status == 200 else f"it answers with status {status}"
