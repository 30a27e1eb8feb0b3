"""A service under load: the real process, its ledger and log on disk, and searchers around it.

Each searcher is a process of its own with a certificate of its own, and asks again as soon as it
has decrypted an answer. Three runs: all ask alike; then, for a tenth of the time, the same with
one question a pass, and one greedy searcher with all loops but one beside a modest one. Searchers
share the machine with the service, so what is measured is both sides of a question.
"""

import multiprocessing
import tempfile
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from client.searcher.ckks import SealScheme
from client.searcher.remote import RemoteInstitution
from client.searcher.traffic import Traffic
from protocol.credentials import Credentials
from protocol.errors import BlindsightError, LimitReached
from protocol.params import preset_by_name
from protocol.terminal import Outcome, say
from simulations.bench.corpus import RELEASE, Corpus
from simulations.bench.engine import NAME
from simulations.bench.guarded_home import GuardedHome
from simulations.bench.load_figures import Asked, figures, table
from simulations.bench.service import memory_of
from simulations.process import ServiceProcess

_START_SECONDS = 300.0
_ANSWER_SECONDS = 120.0
_SAMPLES = 20
_LEAST_SECONDS = 20.0


@dataclass(frozen=True)
class Loop:
    """One searcher's loop: who asks where, and for how long."""

    name: str
    address: str
    credentials: Path
    seconds: float
    question: list[float]


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
            home = GuardedHome(Path(name), self.searchers)
            corpus = Corpus.draw(self.items, self.dim, 1)
            corpus.index(home.root / "index", preset_by_name(self.preset), lambda blocks: None)
            question = [float(value) for value in corpus.questions[0]]
            alike = [f"searcher-{i}" for i in range(self.searchers)]
            greedy = ["searcher-0"] * (self.searchers - 1) + ["searcher-1"]
            # What is compared settles soon; the long run is for memory and the slowest answers.
            some = min(self.seconds, max(_LEAST_SECONDS, self.seconds / 10))
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
        return Outcome(table(data), data)

    def _load(
        self,
        home: GuardedHome,
        question: list[float],
        names: list[str],
        seconds: float,
        together: int,
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
        return figures(asked, seconds, memory) | {
            "service_cpu_ms": 1e3 * used / (len(asked) + len(loops))
        }


def _processor_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)
