"""Throw-away members of a federation on one machine: keys and a roster, for secure aggregation.

They are gone with the block. Real members make their own keys: see ``blindsight institution``.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from protocol.files import write_atomically
from protocol.identity import Identity
from protocol.roster import Member, Roster
from server.provisioning.authority import Authority

_FEDERATION = "simulation"
# In memory where the system has such a place: keys need not meet a disk.
_SHM = Path("/dev/shm")  # noqa: S108 - the folder in it is made by mkdtemp, for its owner alone


def member_name(number: int) -> str:
    """What institution ``number`` (from 1) is called in the roster."""
    return f"institution-{number}"


@contextmanager
def throw_away_members(count: int) -> Iterator[Path]:
    """A folder with ``authority.pem``, ``roster.json`` and each member's own folder by its name."""
    place = _SHM if os.access(_SHM, os.W_OK) else None
    with TemporaryDirectory(prefix="blindsight-", dir=place) as name:
        folder = Path(name)
        authority = Authority.create(Identity.ephemeral(), _FEDERATION)
        members = []
        for number in range(1, count + 1):
            own = folder / member_name(number)
            identity = Identity.create(own / "private-key.pem")
            write_atomically(own / "authority.pem", authority.certificate.pem)
            members.append(Member(member_name(number), "institution", identity.public))
        write_atomically(folder / "authority.pem", authority.certificate.pem)
        Roster(_FEDERATION, 1, tuple(members)).write(folder / "roster.json", authority.identity)
        yield folder
