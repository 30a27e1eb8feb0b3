"""Who is at the door: from the certificate that TLS verified to a member of the roster.

A certificate of the authority says who somebody is; only the roster says that he still belongs, and
what he may do. A revoked party's certificate passes TLS until it expires: this is what refuses it.
"""

import os
import threading
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path

from protocol.certificates import Certificate
from protocol.errors import MalformedMessage, NotAdmitted, StorageError, UsageError
from protocol.roster import Member, Role, Roster


class Admission:
    """Asks the roster in a file; one that takes its place there counts from the next call on."""

    def __init__(self, authority: Certificate, roster: Path) -> None:
        """Read the roster. Raises UsageError if it is not there, MalformedMessage."""
        self._authority, self._path = authority, roster
        self._lock = threading.Lock()
        self._stamp = _stamp(roster)
        self._roster = Roster.read(roster, authority.identity)

    def admit(
        self, peer: Mapping[str, Iterable[bytes]], *roles: Role, now: datetime | None = None
    ) -> Member:
        """The member behind a call; ``peer`` is ``context.auth_context()`` of gRPC.

        Raises NotAdmitted unless it is in the roster with one of ``roles`` and came over TLS 1.3
        with a certificate that is valid now. Raises StorageError if the roster cannot be read.
        """
        # gRPC in Python cannot be told the least version of TLS; it says which one was agreed.
        if b"TLSv1.3" not in peer.get("ssl_tls_version", ()):
            raise NotAdmitted("expected a connection over TLS 1.3")
        pem = next(iter(peer.get("x509_pem_cert", ())), b"")
        try:
            certificate = Certificate.read(pem)
            certificate.check_issued_by(self._authority, now)
        except MalformedMessage as error:
            raise NotAdmitted(error.message, error.hint) from error
        roster = self.roster()
        member = roster.find(certificate.identity)
        if member is None:
            raise NotAdmitted(
                f"{certificate.name} is no member of {roster.federation} (any more)",
                "Its key was revoked or replaced, or the roster here is an old one.",
            )
        if member.role not in roles:
            raise NotAdmitted(
                f"{member.name} is {_article(member.role)}; this is for: {', '.join(roles)}"
            )
        return member

    def roster(self) -> Roster:
        """The roster as it stands. Raises StorageError if it cannot be read."""
        with self._lock:
            try:
                stamp = _stamp(self._path)
                if stamp != self._stamp:
                    found = Roster.read(self._path, self._authority.identity)
                    if found.serial < self._roster.serial:
                        raise ValueError(f"number {found.serial} follows {self._roster.serial}")
                    self._roster, self._stamp = found, stamp
            except (OSError, ValueError, MalformedMessage, UsageError) as error:
                # To whoever asks, the state of our files is nothing: no ProtocolError.
                raise StorageError(
                    f"{self._path} cannot be used: {error}", "Install the roster again."
                ) from error
            return self._roster


def _stamp(path: Path) -> tuple[int, int, int]:
    """What differs when another file takes the name."""
    try:
        found = os.stat(path)  # noqa: PTH116 - one call, on the path of every question
    except FileNotFoundError:
        return 0, 0, 0
    return found.st_ino, found.st_mtime_ns, found.st_size


def _article(role: Role) -> str:
    return f"an {role}" if role == "institution" else f"a {role}"
