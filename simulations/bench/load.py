"""A service under load: the real process, its ledger and log on disk, and searchers around it.

Each searcher is a process of its own with a certificate of its own, and asks again as soon as it
has decrypted an answer. Three runs: all ask alike; the same with one question a pass; and one
greedy searcher with all loops but one, beside a modest one. Searchers share the machine with the
service, so what is measured is both sides of a question.
"""

import json
import multiprocessing
import tempfile
import time
from collections import Counter
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from client.institution.provisioning.settings import InstitutionSettings
from client.searcher.ckks import SealScheme
from client.searcher.remote import RemoteInstitution, Traffic
from protocol.credentials import Credentials
from protocol.errors import BlindsightError, LimitReached
from protocol.files import write_atomically
from protocol.identity import Identity
from protocol.params import preset_by_name
from protocol.roster import Member, Role, Roster
from protocol.terminal import Outcome, say
from server.provisioning.authority import Authority
from simulations.bench.corpus import RELEASE, Corpus
from simulations.bench.engine import NAME
from simulations.bench.service import memory_of
from simulations.process import ServiceProcess

_START_SECONDS = 300.0
_ANSWER_SECONDS = 120.0
_SAMPLES = 20
_HOSTS = ("localhost", "127.0.0.1")
_POLICY = """
[search]
searchers = ["*"]
queries-a-day = 1000000000
min-items = 1
"""


@dataclass(frozen=True)
class Loop:
    """One searcher's loop: who asks where, and for how long."""

    name: str
    address: str
    credentials: Path
    seconds: float
    question: list[float]


@dataclass(frozen=True)
class Asked:
    """What one question came to: its searcher, milliseconds, and "ok" or the error's code."""

    name: str
    milliseconds: float
    code: str


def ask(loop: Loop) -> list[Asked]:
    """Ask until the time is over; runs in a process of its own."""
    found, scheme = [], SealScheme()
    question = np.array(loop.question, np.float32)
    credentials = Credentials.in_folder(loop.credentials)
    remote = RemoteInstitution(NAME, loop.address, credentials, _ANSWER_SECONDS)
    with closing(remote):
        described = remote.describe(RELEASE)
        remote.score(described, question, scheme, Traffic())  # kernels are loaded, memory grown
        end = time.monotonic() + loop.seconds
        while (since := time.monotonic()) < end:
            code = "ok"
            try:
                remote.score(described, question, scheme, Traffic())
            except LimitReached as error:
                code = error.code
                time.sleep((error.retry_after_ms or 1000) / 1000)
            except BlindsightError as error:
                code = f"{error.code}: {error.message[:80]}"
            found.append(Asked(loop.name, 1e3 * (time.monotonic() - since), code))
    return found


@dataclass(frozen=True)
class LoadBench:
    """What is measured."""

    items: int
    dim: int
    searchers: int
    seconds: float
    preset: str
    threads: int

    def run(self) -> Outcome:
        """Measure everything. Raises :class:`BlindsightError` if the service does not start."""
        with tempfile.TemporaryDirectory(prefix="blindsight-load-") as name:
            home = _Home(Path(name), self.searchers)
            corpus = Corpus.draw(self.items, self.dim, 1)
            corpus.index(home.root / "index", preset_by_name(self.preset), lambda blocks: None)
            question = [float(value) for value in corpus.questions[0]]
            alike = [f"searcher-{i}" for i in range(self.searchers)]
            greedy = ["searcher-0"] * (self.searchers - 1) + ["searcher-1"]
            some = max(1.0, self.seconds / 3)
            together = self._load(home, question, alike, self.seconds, 8)
            alone = self._load(home, question, alike, some, 1)
            mixed = self._load(home, question, greedy, some, 8)
        data = {
            "settings": asdict(self),
            "together": together,
            "one_a_pass": alone,
            # Of processor time: what a second brings depends on who else is on the machine.
            "micro_batching_gain": alone["service_cpu_ms"] / together["service_cpu_ms"],
            "greedy_and_modest": mixed,
        }
        return Outcome(_table(data), data)

    def _load(
        self, home: "_Home", question: list[float], names: list[str], seconds: float, together: int
    ) -> dict[str, Any]:
        say(f"{len(names)} loops of {len(set(names))} searchers, {together} questions a pass")
        service = ServiceProcess(
            NAME, home.root / "service.log", home=home.root, port=0, threads=self.threads,
            together=together, each=max(8, self.searchers),
        )  # fmt: skip
        with service:
            address = service.address(_START_SECONDS)
            loops = [Loop(one, address, home.root / one, seconds, question) for one in names]
            before, memory = _processor_seconds(service.pid), []
            with multiprocessing.get_context("spawn").Pool(len(loops)) as pool:
                waiting = pool.map_async(ask, loops, 1)
                while not waiting.ready():
                    waiting.wait(seconds / _SAMPLES)
                    memory.append(memory_of(service.pid))
                asked = [one for found in waiting.get() for one in found]
            used = _processor_seconds(service.pid) - before
        # Each loop's first question is not counted, but answered.
        return _figures(asked, seconds, memory) | {
            "service_cpu_ms": 1e3 * used / (len(asked) + len(loops))
        }


class _Home:
    """An institution's folder with a federation of searchers around it."""

    def __init__(self, root: Path, searchers: int) -> None:
        self.root = root
        key = Identity.ephemeral()
        authority, members = Authority.create(key, "load"), []
        roles: dict[str, Role] = {f"searcher-{i}": "searcher" for i in range(max(2, searchers))}
        for name, role in (roles | {NAME: "institution"}).items():
            identity = Identity.ephemeral()
            folder = root / ("identity" if name == NAME else name)
            certificate = authority.issue(identity.public, name, role, _HOSTS)
            write_atomically(folder / "private-key.pem", identity.private_pem())
            write_atomically(folder / "certificate.pem", certificate.pem)
            write_atomically(folder / "authority.pem", authority.certificate.pem)
            members.append(Member(name, role, identity.public))
        Roster("load", 1, tuple(members)).write(root / "roster.json", key)
        write_atomically(root / "policy.toml", _POLICY)
        (root / "data").mkdir()
        settings = InstitutionSettings(name=NAME, coordinator="localhost:8443")
        settings.save(root / "institution.toml")


def _figures(asked: list[Asked], seconds: float, memory: list[int]) -> dict[str, Any]:
    answered = [one for one in asked if one.code == "ok"]
    by_name = {
        name: [one.milliseconds for one in answered if one.name == name]
        for name in sorted({one.name for one in asked})
    }
    return {
        "answered": len(answered),
        "a_second": len(answered) / seconds,
        "ms": _percentiles([one.milliseconds for one in answered]),
        "codes": dict(Counter(one.code for one in asked)),
        "by_searcher": {
            name: {"answered": len(times), "ms": _percentiles(times)}
            for name, times in by_name.items()
        },
        "memory_mb": [round(one / 1e6, 1) for one in memory],
    }


def _processor_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _percentiles(times: list[float]) -> dict[str, float]:
    if not times:
        return {}
    found = np.percentile(times, (50, 95, 99))
    return {name: float(one) for name, one in zip(("p50", "p95", "p99"), found, strict=True)}


def _table(data: dict[str, Any]) -> str:
    rows = [f"{'':<22}{'answered':>9}{'a second':>10}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}"]

    def row(title: str, answered: int, rate: float, ms: dict[str, float]) -> None:
        told = "".join(f"{ms[one]:>9.0f}" for one in ("p50", "p95", "p99")) if ms else ""
        rows.append(f"{title:<22}{answered:>9}{rate:>10.2f}{told}")

    for title, key in (("together", "together"), ("one a pass", "one_a_pass")):
        found = data[key]
        row(title, found["answered"], found["a_second"], found["ms"])
    mixed = data["greedy_and_modest"]
    for title, name in (("greedy", "searcher-0"), ("modest", "searcher-1")):
        found = mixed["by_searcher"].get(name, {"answered": 0, "ms": {}})
        share = found["answered"] / max(1, mixed["answered"])
        row(title, found["answered"], share * mixed["a_second"], found["ms"])
    memory = data["together"]["memory_mb"]
    each = (data[key]["service_cpu_ms"] for key in ("together", "one_a_pass"))
    rows.append(
        "processor ms of the service for a question: {:.0f} together, {:.0f} one a pass; ".format(
            *each
        )
        + f"micro-batching gain {data['micro_batching_gain']:.2f}"
    )
    rows.append(
        f"memory {memory[0]:.0f} MB first, {memory[-1]:.0f} MB last, {max(memory):.0f} most"
    )
    rows.append(f"codes {json.dumps(data['together']['codes'])}")
    return "\n".join(rows)
