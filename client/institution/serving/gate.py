"""Who calls, and what the policy grants: asked anew for every call."""

import hashlib
import logging
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from client.institution.search_policy import EVERYBODY, FULL_BITS, Form, SearchPolicy
from client.institution.serving.watched_policy import WatchedPolicy
from protocol.admission import Admission
from protocol.certificates import Certificate
from protocol.errors import MalformedMessage, NotAdmitted
from protocol.provisioning.home import Home

log = logging.getLogger(__name__)
Peer = Mapping[str, Iterable[bytes]]
"""``context.auth_context()`` of gRPC."""


@dataclass(frozen=True, slots=True)
class Caller:
    """A searcher with a valid certificate, its public key (DER, and as fingerprint), its policy."""

    name: str
    key: bytes
    fingerprint: str
    policy: SearchPolicy

    @property
    def score_bits(self) -> int | None:
        """How exact its scores may be; None for as exact as they are."""
        bits = self.policy.score_bits
        return None if bits == FULL_BITS else bits


def certificate_digest(peer: Peer) -> str:
    """The first 16 digits of a certificate's SHA-256, as openssl prints it; "" for none."""
    try:
        pem = next(iter(peer.get("x509_pem_cert", ())), b"").decode("ascii")
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()[:16]
    except ValueError:
        return ""


class Gate(Protocol):
    """Lets callers in."""

    def admit(self, peer: Peer) -> Caller:
        """Who is calling. Raises NotAdmitted."""


class RosterGate(Gate):
    """Searchers of the federation's roster, under the policy of the institution's folder."""

    def __init__(self, home: Home, told: Callable[[str], None]) -> None:
        """Read authority, roster and policy. Raises UsageError, MalformedMessage."""
        self._admission = Admission(home.read_authority(), home.roster)
        self._policy = WatchedPolicy(home.root / "policy.toml", told)

    def admit(self, peer: Peer) -> Caller:
        """Who is calling. Raises NotAdmitted for all but searchers; StorageError."""
        member = self._admission.admit(peer, "searcher")
        identity = member.identity
        return Caller(member.name, identity.der, identity.fingerprint, self._policy.current())


class OpenGate(Gate):
    """Everybody with a certificate of the authority, without limit: for federations of one machine.

    There is no roster behind it, so nobody can be revoked.
    """

    def __init__(self, authority: Path, release: frozenset[Form]) -> None:
        log.warning("no --home: every certificate of %s may search without limit", authority)
        self._authority = Certificate.load(authority)
        self._policy = SearchPolicy.model_validate(
            {
                "searchers": [EVERYBODY],
                "score-bits": FULL_BITS,
                "release": release,
                "min-items": 1,
            }
        )

    def admit(self, peer: Peer) -> Caller:
        """Who is calling. Raises NotAdmitted."""
        if b"TLSv1.3" not in peer.get("ssl_tls_version", ()):
            raise NotAdmitted("expected a connection over TLS 1.3")
        try:
            certificate = Certificate.read(next(iter(peer.get("x509_pem_cert", ())), b""))
            certificate.check_issued_by(self._authority)
        except MalformedMessage as error:
            raise NotAdmitted(error.message, error.hint) from error
        identity = certificate.identity
        return Caller(certificate.name, identity.der, identity.fingerprint, self._policy)
