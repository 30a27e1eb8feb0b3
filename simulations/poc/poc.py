"""A federation on one machine as it would be on several: provisioned, over TLS, real processes.

    DIR/coordinator/         the coordinator's folder
    DIR/institutions/NAME/   each institution's, with drawn scenes as its data
    DIR/searcher/            a searcher's
    DIR/poc.json             written last: a folder without it is not touched

One person plays all parties here, and so compares every fingerprint with itself.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from client.institution.deployment.place import Place as InstitutionPlace
from client.institution.pairs import read_pairs, write_pairs
from client.institution.policy import TEMPLATE
from client.institution.provisioning.home import InstitutionFolder
from client.institution.provisioning.installation import install
from client.institution.provisioning.settings import InstitutionSettings
from client.searcher.settings import set_directory
from protocol.child import tail
from protocol.errors import ServiceError, UsageError
from protocol.files import write_atomically
from protocol.hosts import endpoint
from protocol.provisioning.enrolment import install_kit, request_certificate, update_roster
from protocol.provisioning.home import Home
from protocol.roster import Role
from protocol.supervision import end, processes
from protocol.terminal import progress
from server.deployment.bundle import build_bundle
from server.deployment.control import Control
from server.deployment.place import Place
from server.deployment.status import status
from server.deployment.superlink import find_nginx
from server.provisioning.federation import Federation
from server.provisioning.home import CoordinatorHome
from server.provisioning.settings import FederationSettings
from simulations.institutions import by_name
from simulations.partition import parse_partition, partition
from simulations.scenes import write_scenes

_HOST = "127.0.0.1"
_MARK = "poc.json"
_START_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Poc:
    """The federation in the folder ``root``."""

    root: Path

    @classmethod
    def open(cls, root: Path) -> Self:
        """The federation there, or to be made there. Raises UsageError for somebody's folder."""
        poc = cls(root.resolve())
        if poc.root.exists() and not poc.made and any(poc.root.iterdir()):
            raise UsageError(
                f"{root} is not empty, and no federation for trying out",
                "Name another folder with --dir.",
            )
        return poc

    @property
    def made(self) -> bool:
        """Whether it is there."""
        return (self.root / _MARK).is_file()

    @property
    def coordinator(self) -> Path:
        """The coordinator's folder."""
        return self.root / "coordinator"

    @property
    def institutions(self) -> list[Path]:
        """The institutions' folders, by name."""
        folder = self.root / "institutions"
        return sorted(folder.iterdir()) if folder.is_dir() else []

    @property
    def searcher(self) -> Path:
        """The searcher's folder."""
        return self.root / "searcher"

    def make(self, institutions: int, scenes: int, seed: int) -> None:
        """Provision it with drawn scenes. Raises UsageError, StorageError."""
        find_nginx()  # before anything is written
        ports = iter(_free_ports(3 + 2 * institutions))
        settings = FederationSettings(
            name="poc",
            host=_HOST,
            port=next(ports),
            listen=_HOST,
            superlink_port=next(ports),
            directory_port=next(ports),
        )
        federation = Federation.create(CoordinatorHome(self.coordinator), settings)
        with progress("drawing scenes", scenes) as show:
            write_scenes(self.root / "scenes", scenes, institutions, seed, show)
        folder = read_pairs(self.root / "scenes")
        shares = by_name(partition(folder, parse_partition("site"), institutions, seed))
        for name, pairs in shares.items():
            home = InstitutionFolder(self.root / "institutions" / name)
            kit = _approve(federation, home, name, "institution")
            install(home.root, kit, federation.public.fingerprint)
            InstitutionSettings(
                name=name,
                coordinator=settings.coordinator,
                node_port=next(ports),
                service_port=next(ports),
                directory_port=settings.directory_port,
                reach="relay",
            ).save(home.settings)
            write_pairs(home.root / "data", pairs, folder)
        kit = _approve(federation, Home(self.searcher), "searcher", "searcher")
        authority = federation.public.fingerprint
        install_kit(Home(self.searcher), kit, "searcher", authority)
        set_directory(Home(self.searcher), endpoint(_HOST, settings.directory_port))
        for root in self.institutions:
            update_roster(Home(root), federation.home.roster)
        write_atomically(self.root / _MARK, json.dumps({"seed": seed}) + "\n")

    def start(self) -> None:
        """Start all of it, detached; returns when every institution is online.

        Each institution approves the bundle of this checkout, and indexes its pictures anew if
        there is a release by now. Raises ServiceError, and then nothing of it runs.
        """
        self._approve_bundle()
        with ExitStack() as undo:
            undo.callback(self.stop)
            self.start_party("coordinator", self.coordinator)
            for home in self.institutions:
                self._index(home)
                self.start_party("institution", home)
            with progress("waiting for the institutions", None):
                self.await_online()
            undo.pop_all()

    def stop(self) -> int:
        """End all of it, the coordinator last; returns how many parties ran."""
        return sum(end(home / "state") for home in (*self.institutions, self.coordinator))

    def delete(self) -> None:
        """Remove the folder that ``make`` made."""
        if self.made:
            shutil.rmtree(self.root)

    def status(self) -> dict[str, Any]:
        """The coordinator's status, and each institution's processes. Raises UsageError."""
        if not self.made:
            raise UsageError(f"there is no federation in {self.root}", "blindsight poc up")
        found = status(Place.open(self.coordinator))
        found["parties"] = {
            home.name: processes(home / "state") for home in (self.coordinator, *self.institutions)
        }
        return found

    def _index(self, home: Path) -> None:
        if not any(Place.open(self.coordinator).releases.glob("[0-9a-f]*")):
            return
        with progress(f"indexing the pictures of {home.name}", None):
            done = subprocess.run(
                [sys.executable, "-m", "simulations.cli", "index", "build", "--home", str(home)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env=self._environment(),
            )
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()[-500:]
            raise ServiceError(f"{home.name} cannot index its pictures: {said}")

    def _approve_bundle(self) -> None:
        bundle, count = build_bundle().sha256, len(self.institutions)
        policy = TEMPLATE.replace("bundles = []", f'bundles = ["{bundle}"]')
        policy = policy.replace("min-institutions = 3", f"min-institutions = {min(3, count)}")
        policy = policy.replace("searchers = []", 'searchers = ["*"]')
        policy = policy.replace("release = []", 'release = ["caption", "thumbnail"]')
        for home in self.institutions:
            path = InstitutionFolder(home).policy
            if bundle not in path.read_text():
                write_atomically(path, policy)

    def start_party(self, role: str, home: Path) -> None:
        """Start the processes of one party, detached. Raises ServiceError, in its own words."""
        log = home / "state" / "logs" / "up.log"
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with log.open("ab") as talk:
            process = subprocess.Popen(
                [sys.executable, "-m", "simulations.cli", role, "up", "--home", str(home)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=talk,
                start_new_session=True,
                env=self._environment(),
            )
        assert process.stdout is not None
        with process.stdout:
            if not process.stdout.readline():  # it says when it is ready, or ends
                process.wait()
                said = tail(log).strip()[-500:]
                raise ServiceError(f"{home.name} did not start: {said}", f"See {log}.")
        process.returncode = 0  # it is to outlive this process: no warning that it does

    def _environment(self) -> dict[str, str]:
        """Institutions share this machine's processors: each takes its part, and no more."""
        share = max(1, (os.cpu_count() or 1) // max(1, len(self.institutions)))
        return {"OMP_NUM_THREADS": str(share), **os.environ}

    def await_online(self) -> None:
        """Wait until every institution is. Raises ServiceError that names those that are not."""
        place, deadline = Place.open(self.coordinator), time.monotonic() + _START_SECONDS
        names = {InstitutionPlace.open(home).institution.name for home in self.institutions}
        while time.monotonic() < deadline:
            with Control(place.superlink, place.authority) as control:
                away = names - {node.name for node in control.nodes() if node.online}
            if not away:
                return
            time.sleep(0.5)
        raise ServiceError(
            f"not online after {_START_SECONDS:g} s: {', '.join(sorted(away))}",
            f"See state/logs in {self.root / 'institutions'}.",
        )


def _approve(federation: Federation, home: Home, name: str, role: Role) -> Path:
    request = request_certificate(home, name, [_HOST])
    return federation.approve(request, role, [_HOST]).kit


def _free_ports(count: int) -> list[int]:
    """Ports that nobody has now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((_HOST, 0))
        return [int(one.getsockname()[1]) for one in sockets]
