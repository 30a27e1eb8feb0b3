"""Names and addresses of machines, as they stand in certificates and settings."""

import ipaddress
import re

from protocol.errors import UsageError

_LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)")
_OWN = ".blindsight.internal"
_HINT = "name it as clinic.example.org, or as an IP address"


def check_host(text: str) -> str:
    """Return a DNS name in small letters, or an IP address in its usual form. Raises UsageError.

    Neither a wildcard nor a name that could be read as a number, and no name of ``member_host``.
    """
    try:
        if "%" not in text:  # the zone of an IPv6 address: it means something on one machine alone
            return str(ipaddress.ip_address(text))
    except ValueError:
        pass
    labels = text.split(".")
    if (
        len(text) > 253
        or not all(_LABEL.fullmatch(label) for label in labels)
        or labels[-1].isdigit()
        or text.endswith(_OWN)
    ):
        raise UsageError(f"{text!r:.80} is no host", _HINT)
    return text


def is_address(host: str) -> bool:
    """Whether a checked host is an IP address."""
    return host.replace(".", "").isdigit() or ":" in host


def from_here(listen: str) -> str:
    """The host at which this machine reaches what listens on ``listen``: loopback for all."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen, listen)  # noqa: S104


def member_host(name: str) -> str:
    """The DNS name that every member's certificate holds beside its hosts.

    Whoever dials a member can ask for this one, so that it speaks to the member that it means and
    not to another who was confirmed for the same address (.internal is reserved for such use).
    """
    return name + _OWN


def endpoint(host: str, port: int) -> str:
    """HOST:PORT, with the brackets that an IPv6 address needs."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_endpoint(text: str) -> tuple[str, int]:
    """The host and the port of HOST:PORT. Raises UsageError."""
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 65536):
        raise UsageError(f"expected HOST:PORT, got {text!r:.80}", _HINT)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    return check_host(host), int(port)
