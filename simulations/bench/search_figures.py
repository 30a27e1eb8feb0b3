"""From what was measured of whole searches to the figures that are reported, beside FAISS."""

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import faiss
import numpy as np
import psutil
from numpy.typing import NDArray

from client.institution.index import Index
from client.searcher.results import Results
from protocol.model.embedder import Embedder
from simulations.bench.search_corpus import SearchCorpus

FIRST_BAR_MS, FRESH_BAR_MS = 500.0, 5000.0
PHASES = ("embed", "keygen", "encrypt", "answer", "decrypt", "fetch")
_VERSIONS = ("blindsight", "faiss-cpu", "grpcio", "numpy", "tenseal", "torch")


@dataclass(frozen=True)
class Fresh:
    """A search in a process of its own: milliseconds, and of them the processor's."""

    milliseconds: float
    processor: float


@dataclass(frozen=True)
class Plain:
    """The same question without encryption: milliseconds in FAISS, and the best places."""

    milliseconds: float
    best: list[tuple[str, int]]


def plain_search(embedder: Embedder, corpus: SearchCorpus, sentence: str, k: int) -> Plain:
    """Search every index in plaintext, on one thread."""
    question, threads = embedder.texts([sentence]), faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    since = time.perf_counter()
    found = [one for name, index in corpus.indexes.items() for one in _of(name, index, question, k)]
    best = sorted(found, reverse=True)[:k]
    taken = 1e3 * (time.perf_counter() - since)
    faiss.omp_set_num_threads(threads)
    return Plain(taken, [(name, at) for _, name, at in best])


def _of(
    name: str, index: Index, question: NDArray[np.float32], k: int
) -> list[tuple[float, str, int]]:
    scores, positions = index.search(question, k)
    return [(float(s), name, int(at)) for s, at in zip(scores[0], positions[0], strict=True)]


def figures(
    warm: list[dict[str, float]], fresh: list[Fresh], plain: list[Plain], found: list[Results]
) -> dict[str, Any]:
    """What follows from ``warm`` milliseconds by phase, the fresh searches and the plain ones."""
    whole = {name: _spread([one[name] for one in warm]) for name in warm[0]}
    agree = [
        len({one.key for one in results} & set(same.best)) / len(same.best)
        for results, same in zip(found, plain, strict=True)
    ]
    told = [one.to_dict() for one in found]
    data: dict[str, Any] = {
        "first_pictures_ms": whole.pop("first_pictures"),
        "all_pictures_ms": whole.pop("all_pictures"),
        "phases_ms": {phase: whole[phase] for phase in PHASES},
        "fresh_process_ms": _spread([one.milliseconds for one in fresh]),
        "fresh_process_processor_ms": _spread([one.processor for one in fresh]),
        "faiss_ms": _spread([one.milliseconds for one in plain]),
        "recall_against_faiss": float(np.mean(agree)),
        "upload_bytes": int(np.median([one["upload_bytes"] for one in told])),
        "download_bytes": int(np.median([one["download_bytes"] for one in told])),
    }
    data["over_faiss"] = data["all_pictures_ms"]["median"] / data["faiss_ms"]["median"]
    data["within_bars"] = {
        "first_pictures": data["first_pictures_ms"]["median"] < FIRST_BAR_MS,
        "fresh_process": data["fresh_process_ms"]["median"] < FRESH_BAR_MS,
    }
    return data


def machine() -> dict[str, Any]:
    """What it was measured on."""
    return {
        "processor": platform.machine(),
        "cores": psutil.cpu_count(),
        "load_average": psutil.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _VERSIONS},
    }


def table(data: dict[str, Any]) -> str:
    """The figures for people."""
    settings, on = data["settings"], data["machine"]
    rows = [
        f"{settings['institutions']} institutions of {settings['items']:,} pictures, width "
        f"{settings['dim']}, {settings['queries']} searches for {settings['k']} pictures",
        f"{'ms':<34}{'median':>9}{'p95':>9}",
    ]

    def row(title: str, found: dict[str, float], bar: float | None = None) -> None:
        told = f"   bar {bar:,.0f}" if bar else ""
        rows.append(f"{title:<34}{found['median']:>9.1f}{found['p95']:>9.1f}{told}")

    row("call to first pictures, warm", data["first_pictures_ms"], FIRST_BAR_MS)
    row("call to all pictures, warm", data["all_pictures_ms"])
    for phase, found in data["phases_ms"].items():
        row(f"  {phase}" + ", slowest institution" * (phase != "embed"), found)
    row("a fresh process, start to end", data["fresh_process_ms"], FRESH_BAR_MS)
    row("  of it the processor's", data["fresh_process_processor_ms"])
    row("FAISS in plaintext, one thread", data["faiss_ms"])
    versions = ", ".join(f"{name} {one}" for name, one in on["versions"].items())
    rows += [
        f"{data['over_faiss']:.0f} times FAISS; {data['recall_against_faiss']:.1%} of its best "
        f"{settings['k']} are found; {data['upload_bytes']:,} bytes up, "
        f"{data['download_bytes']:,} down, over all institutions",
        f"{on['processor']}, {on['cores']} cores, load {on['load_average']:.1f}, "
        f"Python {on['python']}, {versions}",
    ]
    return "\n".join(rows)


def _spread(times: Sequence[float]) -> dict[str, float]:
    return {"median": float(np.median(times)), "p95": float(np.percentile(times, 95))}
