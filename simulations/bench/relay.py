"""What the relay costs: the same questions to one service, directly and through a coordinator.

Real processes on loopback: the service, directory and relay, and the institution's link. Questions
alternate between the two ways, so that a machine that slows down does so for both.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from client.searcher.ckks import SealScheme
from client.searcher.directory import Directory
from client.searcher.remote import RemoteInstitution
from client.searcher.traffic import Traffic
from protocol.credentials import Credentials
from protocol.directory_wire import Offer
from protocol.errors import ServiceError
from protocol.files import write_atomically
from protocol.identity import Identity
from protocol.params import preset_by_name
from protocol.roster import Member, Role, Roster
from protocol.terminal import Outcome, progress
from server.provisioning.authority import Authority
from simulations.bench.corpus import RELEASE, Corpus
from simulations.bench.engine import NAME
from simulations.bench.room import Room
from simulations.process import ServiceProcess

_SECONDS = 120.0
_RELAY = "simulations.bench.relay_process"
_PARTIES: dict[str, Role] = {
    "coordinator": "coordinator", NAME: "institution", "searcher": "searcher",
}  # fmt: skip


@dataclass(frozen=True)
class RelayBench:
    """``queries`` are counted each way, after one to warm up."""

    items: int
    dim: int
    preset: str
    threads: int
    queries: int

    def run(self) -> Outcome:
        """Measure; raises BlindsightError where there is no room, or a process does not start."""
        with ExitStack() as stack:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="blindsight-")))
            preset = preset_by_name(self.preset)
            Room.in_folder(root).check(preset, self.items, self.dim, "bytes", self.queries)
            corpus = Corpus.draw(self.items, self.dim, self.queries + 1)
            with progress("indexing, blocks", None) as show:
                corpus.index(root / "index", preset, show, "bytes")
            directory = _found(root)
            flags = {"data": root, "index": root / "index", "credentials": root / NAME}
            service = stack.enter_context(
                ServiceProcess(NAME, root / "service.log", **flags, threads=self.threads)
            )
            address = service.address(_SECONDS)
            relay = stack.enter_context(_started("coordinator", root, "127.0.0.1:0"))
            stack.enter_context(_started("link", root, relay, address))
            pem = (root / NAME / "certificate.pem").read_bytes()
            remotes = [
                stack.enter_context(closing(directory(relay).connect(offer, _SECONDS)))
                for offer in (
                    Offer(NAME, RELEASE, self.items, address, pem),
                    Offer(NAME, RELEASE, self.items, "", pem),
                )
            ]
            times: tuple[list[float], list[float]] = ([], [])
            for question in corpus.questions:
                for remote, taken in zip(remotes, times, strict=True):
                    taken.append(_ask(remote, question))
        direct, relayed = (1e3 * median(taken[1:]) for taken in times)
        data = {"direct_ms": direct, "relay_ms": relayed, "ratio": relayed / direct}
        text = f"direct {direct:.1f} ms, by relay {relayed:.1f} ms: {relayed / direct:.2f} times"
        return Outcome(text, data | {"settings": asdict(self)})


def _ask(remote: RemoteInstitution, question: NDArray[np.float32]) -> float:
    """Seconds from the description to the last score."""
    since = time.perf_counter()
    remote.score(remote.describe(RELEASE), question, SealScheme(), Traffic())
    return time.perf_counter() - since


def _found(root: Path) -> Callable[[str], Directory]:
    """Keys, certificates and the roster of a throw-away federation below ``root``."""
    key = Identity.ephemeral()
    authority = Authority.create(key, "bench")
    members = []
    for name, role in _PARTIES.items():
        own = Identity.ephemeral()
        folder = root / name
        folder.mkdir(mode=0o700)
        hosts = ("localhost", "127.0.0.1")
        certificate = authority.issue(own.public, name, role, hosts)
        write_atomically(folder / "private-key.pem", own.private_pem())
        write_atomically(folder / "certificate.pem", certificate.pem)
        write_atomically(folder / "authority.pem", authority.certificate.pem)
        members.append(Member(name, role, own.public))
    roster = Roster("bench", 1, tuple(members))
    roster.write(root / "roster.json", key)
    searcher = Credentials.in_folder(root / "searcher")
    return lambda address: Directory(address, searcher, roster)


@contextmanager
def _started(*arguments: str | Path) -> Iterator[str]:
    """A process of ``relay_process``, which says one word when it is ready: that is yielded."""
    process = subprocess.Popen(
        [sys.executable, "-m", _RELAY, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    with process:
        assert process.stdin is not None and process.stdout is not None
        try:
            word = process.stdout.readline().strip()
            if not word:
                raise ServiceError(f"{arguments[0]} did not start")
            yield word
        finally:
            process.stdin.close()  # it ends with that
            process.wait(20)
