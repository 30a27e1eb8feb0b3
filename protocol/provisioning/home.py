"""A party's folder: its key, its certificate, and what it believes. Nobody else reads it."""

import os
from dataclasses import dataclass
from pathlib import Path

from protocol.audit import AuditLog
from protocol.certificates import Certificate
from protocol.credentials import Credentials
from protocol.errors import UsageError
from protocol.files import storage_error
from protocol.identity import Identity
from protocol.roster import Roster


@dataclass(frozen=True)
class Home:
    """The folder ``root`` of one party, mode 0700."""

    root: Path

    @property
    def identity(self) -> Path:
        """The folder with the three PEM files of ``Credentials``."""
        return self.root / "identity"

    @property
    def credentials(self) -> Credentials:
        """The three PEM files."""
        return Credentials.in_folder(self.identity)

    @property
    def authority(self) -> Path:
        """The certificate that the others' are checked against."""
        return self.credentials.authority

    @property
    def state(self) -> Path:
        """What running leaves: databases, caches, what is kept between rounds, logs."""
        return self.root / "state"

    @property
    def request(self) -> Path:
        """The request that leaves for the coordinator."""
        return self.root / "request.pem"

    @property
    def roster(self) -> Path:
        """The roster that this party believes."""
        return self.root / "roster.json"

    @property
    def audit(self) -> AuditLog:
        """What happened here."""
        return AuditLog(self.root / "audit.log")

    def log(self, name: str) -> Path:
        """Where a process's output goes."""
        return self.state / "logs" / f"{name}.log"

    def prepare(self) -> None:
        """Make the folder for its owner alone, whatever the umask. Raises UsageError, StorageError.

        A folder that is there and open to others is not closed here: it may be in use by them.
        """
        try:
            self.root.parent.mkdir(parents=True, exist_ok=True)
            self.root.mkdir(mode=0o700, exist_ok=True)
            if self.root.stat().st_mode & 0o077:
                if any(self.root.iterdir()):
                    raise UsageError(
                        f"{self.root} is open to others and not empty",
                        f"Name another folder, or close this one: chmod 700 {self.root}",
                    )
                self.root.chmod(0o700)
        except OSError as error:
            raise storage_error(self.root, error) from error

    def folder(self, name: str) -> Path:
        """Make the folder ``name`` in this one for its owner alone; return it."""
        path = self.root / name
        try:
            path.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise storage_error(path, error) from error
        return path

    def key(self) -> Identity:
        """A party's own key: the one that is there, or else a new one. Never overwrites."""
        path = self.credentials.private_key
        self.folder("identity")
        return Identity.load(path) if os.path.lexists(path) else Identity.create(path)

    def read_authority(self) -> Certificate:
        """The certificate of the authority that this party believes. Raises UsageError."""
        path = self.authority
        if not path.exists():
            raise UsageError(
                f"{self.root} belongs to no federation yet", "Install the startup kit first."
            )
        return Certificate.load(path)

    def read_roster(self) -> Roster:
        """Read and verify the roster. Raises UsageError, MalformedMessage."""
        return Roster.read(self.roster, self.read_authority().identity)
