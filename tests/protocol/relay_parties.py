"""A coordinator's service in a thread, with members who may dial it; for tests."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from protocol.credentials import Credentials
from protocol.files import write_atomically
from protocol.identity import Identity
from protocol.roster import Member, Role, Roster
from server.directory.service import CoordinatorService
from server.directory.settings import Limits
from server.provisioning.authority import Authority

ROLES: dict[str, Role] = {
    "coordinator": "coordinator",
    "clinic": "institution",
    "museum": "institution",
    "bob": "searcher",
    "eve": "searcher",
}


class Lab:
    """An authority, a roster, and the three files of every member below ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.identity = Identity.ephemeral()
        self.authority = Authority.create(self.identity, "lab")
        self.roster = Roster("lab", 1, ())
        for name, role in ROLES.items():
            self.enrol(name, role)

    def enrol(self, name: str, role: Role, folder: str = "") -> Credentials:
        """A new key and certificate, in the roster instead of whoever had the name."""
        identity = Identity.ephemeral()
        found = self.certify(name, role, identity, folder or name)
        rest = tuple(one for one in self.roster.members if one.name != name)
        self.publish(*rest, Member(name, role, identity.public))
        return found

    def certify(self, name: str, role: Role, identity: Identity, folder: str) -> Credentials:
        hosts = ("localhost", "127.0.0.1")
        certificate = self.authority.issue(identity.public, name, role, hosts)
        place = self.root / folder
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(place / "private-key.pem", identity.private_pem())
        write_atomically(place / "certificate.pem", certificate.pem)
        write_atomically(place / "authority.pem", self.authority.certificate.pem)
        return Credentials.in_folder(place)

    def revoke(self, name: str) -> None:
        self.publish(*(one for one in self.roster.members if one.name != name))

    def publish(self, *members: Member) -> None:
        self.roster = replace(self.roster, serial=self.roster.serial + 1, members=members)
        self.roster.write(self.root / "roster.json", self.identity)

    def credentials(self, name: str) -> Credentials:
        return Credentials.in_folder(self.root / name)

    @contextmanager
    def coordinator(
        self, limits: Limits | None = None, address: str = "127.0.0.1:0"
    ) -> Iterator[str]:
        """Directory, relay and releases; yields their address."""
        ready, loop_ready = threading.Event(), threading.Event()
        found: dict[str, str] = {}
        loop = asyncio.new_event_loop()
        stop = asyncio.Event()

        def on_ready(address: str) -> None:
            found["address"] = address
            ready.set()

        async def main() -> None:
            loop_ready.set()
            service = CoordinatorService(
                self.credentials("coordinator"),
                self.root / "roster.json",
                self.root / "offers.json",
                address,
                limits,
                self.root / "releases",
            )
            await service.run(stop, on_ready)

        def run() -> None:
            asyncio.set_event_loop(loop)
            loop.run_until_complete(main())
            loop.close()

        thread = threading.Thread(target=run)
        thread.start()
        assert ready.wait(10)
        try:
            yield found["address"]
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join(20)
            assert not thread.is_alive()
