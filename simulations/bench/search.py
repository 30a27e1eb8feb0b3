"""A whole search, as a person waits for it: from the call to the pictures on this machine.

Institutions serve as processes of their own over mutual TLS on loopback. The first search of a
fresh process is the command ``blindsight search`` from its start to its end, imports and model
included; the others are asked of one searcher that is warm, as in the shell or on the page.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from client.searcher.query import Query
from client.searcher.remote import RemoteInstitution
from client.searcher.results import Results
from client.searcher.searcher import Searcher
from protocol.credentials import Credentials
from protocol.errors import BlindsightError
from protocol.model.embedder import Embedder
from protocol.model.release import Release, read_release, write_release
from protocol.model.tower_settings import TowerSettings
from protocol.model.towers import TwoTowers
from protocol.params import preset_by_name
from protocol.terminal import Outcome, progress
from simulations.authority import ThrowAwayAuthority
from simulations.bench.room import Room
from simulations.bench.search_corpus import SearchCorpus, settle
from simulations.bench.search_figures import PHASES, Fresh, figures, machine, plain_search, table
from simulations.federation import LocalFederation
from simulations.process import ServiceProcess

_SECONDS = 120.0
_READING_SECONDS = 0.3
"""Between two searches somebody looks at the pictures, and keys are made ahead meanwhile."""


@dataclass(frozen=True)
class SearchBench:
    """``queries`` warm searches for ``k`` pictures, ``fresh`` ones in processes of their own."""

    institutions: int
    items: int
    drawings: int
    dim: int
    queries: int
    fresh: int
    k: int
    threads: int
    preset: str

    def run(self, release: Path | None = None) -> Outcome:
        """Measure with a ``release``, or with small towers that were never trained.

        Raises BlindsightError where there is no room, or a process does not start.
        """
        with ExitStack() as stack:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="blindsight-")))
            federation = LocalFederation(root)
            model = _untrained(root, self.dim) if release is None else read_release(release)
            embedder = Embedder(model)
            Room.in_folder(root).check(
                preset_by_name(self.preset),
                self.institutions * self.items,
                embedder.dim,
                "bytes",
                self.queries,
            )
            corpus = settle(
                federation,
                embedder,
                self.institutions,
                self.items,
                self.drawings,
                self.queries + 1,
                self.preset,
            )
            mine, addresses = self._served(stack, federation)
            fresh = [
                _fresh_search(one, addresses, model.path, root, self.k)
                for one in corpus.sentences[: self.fresh]
            ]
            remotes = [
                RemoteInstitution(name, address, mine, _SECONDS)
                for name, address in addresses.items()
            ]
            searcher = stack.enter_context(Searcher(embedder, remotes))
            warm, found = self._warm_searches(searcher, corpus)
            plain = [plain_search(embedder, corpus, one, self.k) for one in corpus.sentences]
        data = figures(warm, fresh, plain[1:], found)
        data |= {"settings": asdict(self) | {"dim": embedder.dim}, "machine": machine()}
        return Outcome(table(data), data)

    def _served(
        self, stack: ExitStack, federation: LocalFederation
    ) -> tuple[Credentials, dict[str, str]]:
        """Start all services; the searcher's credentials, and host:port by name."""
        authority, processes = ThrowAwayAuthority(), []
        mine = authority.issue("searcher", federation.root / "searcher/tls")
        for name in federation.names:
            home = federation.institution(name)
            process = ServiceProcess(
                name,
                home / "service.log",
                data=home / "data",
                index=home / "index",
                credentials=authority.issue(name, home / "tls"),
                release="thumbnail",
                threads=self.threads,
            )
            processes.append(stack.enter_context(process))
        return Credentials.in_folder(mine), {one.name: one.address(_SECONDS) for one in processes}

    def _warm_searches(
        self, searcher: Searcher, corpus: SearchCorpus
    ) -> tuple[list[dict[str, float]], list[Results]]:
        """Milliseconds of each search after the first, and what it found."""
        measured, results = [], []
        searcher.warm()
        with progress("searches", len(corpus.sentences)) as show:
            for done, sentence in enumerate(corpus.sentences, 1):
                time.sleep(_READING_SECONDS)
                milliseconds, found = _search(searcher, sentence, self.k)
                measured.append(milliseconds)
                results.append(found)
                show(done)
        return measured[1:], results[1:]


def _search(searcher: Searcher, sentence: str, k: int) -> tuple[dict[str, float], Results]:
    since, first = time.perf_counter(), 0.0
    for known in searcher.watch(Query(sentence), k=k):
        if not first and any(one.thumbnail for one in known):
            first = 1e3 * (time.perf_counter() - since)
    whole = 1e3 * (time.perf_counter() - since)
    if known.notes:
        raise BlindsightError(f"not every institution answered: {known.to_dict()['notes']}")
    # Institutions answer at once: a person waits for the slowest.
    parts = [one.milliseconds for one in known.traffic.values()]
    phases = {phase: max(one.get(phase, 0.0) for one in parts) for phase in PHASES[1:]}
    phases["embed"] = known.milliseconds["embed"]
    return {"first_pictures": first, "all_pictures": whole} | phases, known


def _fresh_search(
    sentence: str, addresses: dict[str, str], release: Path, root: Path, k: int
) -> Fresh:
    """The command, from its start to its end."""
    asked = [f"--institution={name}={address}" for name, address in addresses.items()]
    flags = ["--release", str(release), "--credentials", str(root / "searcher/tls")]
    flags += ["-k", str(k), "--json"]
    since, before = time.perf_counter(), _processor_seconds()
    done = subprocess.run(
        [sys.executable, "-m", "simulations.cli", "search", sentence, *asked, *flags],
        capture_output=True,
        timeout=_SECONDS,
    )
    taken = Fresh(1e3 * (time.perf_counter() - since), 1e3 * (_processor_seconds() - before))
    answer = json.loads(done.stdout or b"{}")
    if done.returncode or answer["data"]["notes"]:
        raise BlindsightError(f"a search failed: {done.stderr.decode(errors='replace')[-500:]}")
    return taken


def _processor_seconds() -> float:
    """Of child processes that have ended: the services have not."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _untrained(root: Path, dim: int) -> Release:
    return write_release(root / "releases", TwoTowers.initial(TowerSettings(dim=dim), 0), {})
