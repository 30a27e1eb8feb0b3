"""The benchmark of encrypted scoring: one run, the same vectors for every engine."""

import tempfile
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median

import numpy as np
from numpy.typing import NDArray

from client.institution.index import Index
from client.searcher.answers import Answers
from client.searcher.ckks import SealScheme
from client.searcher.prepared import PreparedKeys
from client.searcher.traffic import Traffic
from protocol.params import preset_by_name
from protocol.terminal import Outcome, progress
from simulations.bench.corpus import RELEASE, Corpus
from simulations.bench.engine import NAME, Engine, pack_seconds
from simulations.bench.faiss_peer import Found, K, search
from simulations.bench.figures import figures
from simulations.bench.machine import Roofline, read_seconds
from simulations.bench.openfhe_peer import openfhe_peer
from simulations.bench.peer import Peer
from simulations.bench.room import Room
from simulations.bench.seal_peers import seal_peers
from simulations.bench.service import BenchService
from simulations.bench.table import render

_MB = 1e6

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ScoreBench:
    """What is measured; the first of ``queries + 1`` questions warms up and does not count."""

    items: int
    dim: int
    preset: str
    threads: int
    queries: int
    peers: bool
    goal: str = "bytes"

    def run(self) -> Outcome:
        """Measure everything; raises :class:`BlindsightError` where there is no room for it."""
        preset = preset_by_name(self.preset)
        with tempfile.TemporaryDirectory(prefix="blindsight-bench-") as name:
            root = Path(name)
            Room.in_folder(root).check(preset, self.items, self.dim, self.goal, self.queries)
            corpus = Corpus.draw(self.items, self.dim, self.queries + 1)
            since = time.perf_counter()
            with progress("indexing, blocks", None) as show:
                index = corpus.index(root / "index", preset, show, self.goal)
            built = time.perf_counter() - since
            found = search(index, corpus.questions[1:])
            with closing(Engine(index, self.threads)) as engine:
                here, answered = self._ask_here(engine, corpus)
                roofline = self._scan(engine, index, corpus)
            served, ahead, memory = self._ask_service(root, corpus)
        peers, pack = self._peers(corpus), pack_seconds(index.layout, corpus.vectors)
        # After all that is timed: the threads of a matrix product spin for a while.
        accuracy = _accuracy(corpus, answered, found)
        data = figures(here, served, ahead, found, peers, self.items)
        data |= {key: accuracy[key] for key in ("rms_error", "recall_at_10")}
        data["scan_bandwidth_fraction"] = roofline.fraction
        data["resident_mb"] = memory["resident_mb"]
        data["settings"] = asdict(self) | {
            "chunk_width": index.layout.chunk_width,
            "chunks": index.layout.chunks,
            "blocks": index.layout.blocks,
        }
        data["pack"] = {"index_s": built, "us_per_document_core": 1e6 * pack}
        data["roofline"] = roofline.figures()
        data["accuracy"], data["memory"] = accuracy, memory
        return Outcome(render(data), data)

    def _ask_here(self, engine: Engine, corpus: Corpus) -> tuple[list[Traffic], list[Floats]]:
        """Both sides of every question in this process: times, and scores float64 [items]."""
        asked, answered = [], []
        engine.ask(corpus.questions[0])
        with progress("questions in this process", self.queries) as show:
            for done, question in enumerate(corpus.questions[1:], 1):
                scores, traffic = engine.ask(question)
                _best(scores, traffic)
                asked.append(traffic)
                answered.append(scores)
                show(done)
        return asked, answered

    def _scan(self, engine: Engine, index: Index, corpus: Corpus) -> Roofline:
        """Read and scan in turn, so that a busy neighbour slows down both."""
        blocks, rounds = index.packed.blocks, []
        with progress("scanning against reading", self.queries) as show:
            for done, question in enumerate(corpus.questions):
                alone = together = read_seconds(blocks, 1)
                if self.threads > 1:
                    together = read_seconds(blocks, self.threads)
                rounds.append((alone, together, engine.scan(question)))
                show(done)
        alone, together, scan = (median(column) for column in zip(*rounds[1:], strict=True))
        return Roofline(blocks.nbytes, self.threads, alone, together, scan)

    def _ask_service(
        self, root: Path, corpus: Corpus
    ) -> tuple[list[Traffic], list[Traffic], dict[str, float]]:
        """Whole questions to a real service, without and with a key that was made ahead.

        Memory is watched while none is timed.
        """
        with BenchService(root, self.threads) as service, closing(service.connect()) as remote:
            described, scheme = remote.describe(RELEASE), SealScheme()
            asked: list[Traffic] = []
            ahead: list[Traffic] = []
            with service.watching() as samples:
                for question in corpus.questions[:2]:
                    remote.score(described, question, scheme, Traffic())
            with progress("questions over gRPC", self.queries) as show:
                for done, question in enumerate(corpus.questions[1:], 1):
                    for keys, timed in ((scheme, asked), (PreparedKeys(scheme), ahead)):
                        if isinstance(keys, PreparedKeys):
                            keys.prepare([described.layout]).join()
                        traffic = Traffic()
                        _best(remote.score(described, question, keys, traffic), traffic)
                        timed.append(traffic)
                    show(done)
        peak = max(samples)
        memory = {"idle": samples[0], "peak": peak, "resident": peak - samples[0]}
        return asked, ahead, {f"{key}_mb": value / _MB for key, value in memory.items()}

    def _peers(self, corpus: Corpus) -> list[Peer]:
        if not self.peers:
            return []
        question = corpus.questions[0]
        with progress("peers", None) as show:
            measured = seal_peers(corpus.vectors, question, self.threads, show)
        return [*measured, openfhe_peer(corpus.vectors, question)]


def _best(scores: Floats, traffic: Traffic) -> set[int]:
    """Rank as a searcher does, on the clock; return the positions of the best."""
    now = time.perf_counter()
    best = Answers({}, {NAME: scores}, {}, {}).best(K)
    traffic.clock("rank", now)
    return {position for _, position, _ in best}


def _accuracy(corpus: Corpus, answered: list[Floats], found: list[Found]) -> dict[str, float]:
    """Errors against double precision, and places against FAISS."""
    recalls, squares, worst = [], [], 0.0
    for question, scores, plain in zip(corpus.questions[1:], answered, found, strict=True):
        best = _best(scores, Traffic())
        recalls.append(len(best & plain.positions) / len(plain.positions))
        error = scores - corpus.exact(question)
        squares.append(float(error @ error) / len(error))
        worst = max(worst, float(np.abs(error).max()))
    return {
        "rms_error": float(np.sqrt(fmean(squares))),
        "max_error": worst,
        "recall_at_10": fmean(recalls),
    }
