"""A throw-away authority for a federation on one machine: its key is gone with the process.

Real federations are provisioned: keys are made at each party and only requests leave it.
"""

import datetime
from pathlib import Path

from protocol.files import write_atomically
from protocol.identity import Identity
from protocol.roster import Role
from server.provisioning.authority import Authority

_LIFE = datetime.timedelta(days=30)
_LOOPBACK = ("localhost", "127.0.0.1")


class ThrowAwayAuthority:
    """Signs a certificate for each party of one local federation."""

    def __init__(self) -> None:
        self.identity = Identity.ephemeral()
        self._authority = Authority.create(self.identity, "local")

    def issue(self, name: str, folder: Path, role: Role = "institution") -> Path:
        """Write a fresh key and certificate for ``name``, valid on loopback, into ``folder``.

        What an earlier federation of this kind left there is replaced, its key as well.
        """
        identity = Identity.ephemeral()
        certificate = self._authority.issue(identity.public, name, role, _LOOPBACK, _LIFE)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Created for the owner alone before a byte is in it (mkstemp gives 0600).
        write_atomically(folder / "private-key.pem", identity.private_pem())
        write_atomically(folder / "certificate.pem", certificate.pem)
        write_atomically(folder / "authority.pem", self._authority.certificate.pem)
        return folder
