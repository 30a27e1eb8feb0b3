"""A federation's authority and some parties, for tests of provisioning; keys are made once."""

import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

from protocol.certificates import Certificate
from protocol.identity import Identity
from protocol.provisioning.kit import Kit
from protocol.roster import Member, Role, Roster
from server.provisioning.authority import Authority

NOW = datetime.now(UTC)
AUTHORITY = Authority.create(Identity.ephemeral(), "lab", NOW)
# Of the same name: only its key tells it apart.
STRANGER = Authority.create(Identity.ephemeral(), "lab", NOW)
CLINIC, MUSEUM, BOB = (Identity.ephemeral() for _ in range(3))
ROLES: dict[str, tuple[Identity, Role]] = {
    "clinic": (CLINIC, "institution"),
    "museum": (MUSEUM, "institution"),
    "bob": (BOB, "searcher"),
}
DAY = timedelta(days=1)


def roster(*names: str, serial: int = 3, federation: str = "lab") -> Roster:
    """The roster with these parties."""
    members = [Member(name, ROLES[name][1], ROLES[name][0].public) for name in names or ROLES]
    return Roster(federation, serial, tuple(members))


def certificate(
    name: str, authority: Authority = AUTHORITY, hosts: tuple[str, ...] = ()
) -> Certificate:
    """A fresh one."""
    identity, role = ROLES[name]
    return authority.issue(identity.public, name, role, hosts)


def kit(
    name: str = "clinic", authority: Authority = AUTHORITY, serial: int = 3, **changes: object
) -> Kit:
    """The startup kit of a party."""
    parts: dict[str, object] = {
        "federation": "lab",
        "name": name,
        "role": ROLES[name][1],
        "coordinator": "fleet.example.org:8443",
        "authority": authority.certificate,
        "certificate": certificate(name, authority),
        "roster": roster(serial=serial).to_json(authority.identity),
    }
    return Kit(**(parts | changes))  # type: ignore[arg-type]


def modes(root: Path) -> dict[str, int]:
    """The permissions of everything below ``root``."""
    return {str(one.relative_to(root)): one.stat().st_mode & 0o777 for one in root.rglob("*")}


def full_disk(folder: Path, kilobytes: int = 64) -> bool:
    """Mount a disk of that size on ``folder``; False where that is not allowed."""
    if os.geteuid() != 0:
        return False
    options = ["-t", "tmpfs", "-o", f"size={kilobytes}k,mode=0700", "tmpfs", str(folder)]
    return not subprocess.run(["mount", *options], capture_output=True, check=False).returncode
