"""The benchmark, run as a user runs it; nothing here asserts that anything is fast."""

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.institution.index import Index
from protocol.errors import BlindsightError, StorageError, UsageError
from protocol.packing import Layout
from protocol.params import PRIVATE, preset_by_name
from protocol.plan import GOALS, Costs, best, plans
from protocol.wire import MAX_ITEMS
from simulations.bench.corpus import RELEASE, Corpus
from simulations.bench.engine import Engine
from simulations.bench.faiss_peer import search
from simulations.bench.machine import _sum, read_seconds
from simulations.bench.openfhe_peer import openfhe_peer
from simulations.bench.peer import checked, spread
from simulations.bench.room import Room
from simulations.bench.seal_peers import seal_peers

PROMISED = {
    "server_over_faiss",
    "scan_bandwidth_fraction",
    "tenseal_mm_over_server",
    "tenseal_dot_over_server",
    "server_ms",
    "query_ms",
    "query_ahead_ms",
    "upload_bytes",
    "download_bytes",
    "rms_error",
    "recall_at_10",
    "resident_mb",
}
ITEMS, DIM = 700, 40
"""Of the run that most tests here look at: goals differ in what they choose for so many."""
PHASES = ["keygen", "encrypt", "parse", "scan", "randomness", "mask", "serialise", "server"]


def bench(folder: Path, *flags: str, before: str = "pass") -> subprocess.CompletedProcess[str]:
    """Run ``blindsight bench score`` with its temporary files in ``folder``."""
    code = f"{before}\nfrom simulations.cli import main\nmain()"
    return subprocess.run(
        [sys.executable, "-c", code, "bench", "score", *flags],
        env=os.environ | {"TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("bench")
    flags = ["--items", str(ITEMS), "--dim", str(DIM), "--queries", "2", "--threads", "2"]
    done = bench(folder, *flags, "--goal", "latency", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    envelope = json.loads(done.stdout)
    assert envelope["status"] == "ok"
    return envelope["data"], folder


def test_the_envelope_has_the_promised_figures(ran: tuple[dict[str, Any], Path]) -> None:
    data, _ = ran
    plain = {key for key, value in data.items() if not isinstance(value, dict | list)}
    assert plain == PROMISED
    assert all(data[key] > 0 for key in PROMISED - {"resident_mb"})
    assert data["resident_mb"] >= 0
    assert data["recall_at_10"] == 1.0
    assert data["rms_error"] < 1e-5
    assert data["rms_error"] < data["accuracy"]["max_error"] < 1e-4


def test_figures_belong_together(ran: tuple[dict[str, Any], Path]) -> None:
    data, _ = ran
    layout = Layout(PRIVATE, DIM, data["settings"]["chunk_width"], ITEMS)
    assert data["settings"]["blocks"] == layout.blocks
    # Real messages: residues and seeds as promised, and little around them.
    assert 0 < data["upload_bytes"] - layout.upload_bytes < 1000
    assert 0 < data["download_bytes"] - layout.download_bytes < 100
    here, served = data["phases"]["in_process"], data["phases"]["over_grpc"]
    assert list(here) == [*PHASES, "decrypt", "rank"]
    assert list(served) == ["keygen", "encrypt", "answer", "decrypt", "rank"]
    assert all(0 < one["min_ms"] <= one["median_ms"] for one in [*here.values(), *served.values()])
    assert data["server_ms"] == here["server"]["median_ms"]
    assert data["query_ms"] >= served["answer"]["min_ms"]
    polynomials = layout.blocks * layout.chunks * len(PRIVATE.data_moduli)
    assert data["roofline"]["bytes"] == 4 * PRIVATE.ring_degree * polynomials
    roofline = data["roofline"]["floor_ms"] / data["roofline"]["scan_ms"]
    assert data["scan_bandwidth_fraction"] == pytest.approx(roofline)
    assert data["memory"]["peak_mb"] >= data["memory"]["idle_mb"] > 1


def test_the_goal_chooses_the_layout(ran: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    data, _ = ran
    choices = plans(PRIVATE, DIM, ITEMS, Costs())
    widths = {goal: best(choices, goal).layout.chunk_width for goal in GOALS}
    assert widths["bytes"] != widths["latency"]
    assert data["settings"]["goal"] == "latency"
    assert data["settings"]["chunk_width"] == widths["latency"]
    unsaid = Corpus.draw(ITEMS, DIM, 1).index(tmp_path, PRIVATE, lambda blocks: None)
    assert unsaid.layout.chunk_width == widths["bytes"]


def test_every_peer_is_in_the_same_run(ran: tuple[dict[str, Any], Path]) -> None:
    data, _ = ran
    rows = {row["name"]: row for row in data["peers"]}
    assert list(rows)[:5] == [
        "FAISS IndexFlatIP",
        "TenSEAL dot",
        "TenSEAL mm",
        "SEAL columns",
        "SEAL diagonals, BSGS",
    ]
    each = 1e3 * data["server_ms"] / ITEMS
    for row in rows.values():
        if row["microseconds"] is not None:
            assert row["over_server"] == pytest.approx(row["microseconds"] / each)
    assert data["tenseal_mm_over_server"] == rows["TenSEAL mm"]["over_server"]
    assert data["tenseal_dot_over_server"] == rows["TenSEAL dot"]["over_server"]
    assert data["server_over_faiss"] == pytest.approx(1 / rows["FAISS IndexFlatIP"]["over_server"])


def test_nothing_is_left_behind(ran: tuple[dict[str, Any], Path]) -> None:
    _, folder = ran
    assert not list(folder.glob("blindsight-bench-*"))


def test_people_get_tables_and_no_peers_when_they_want_none(tmp_path: Path) -> None:
    flags = ["--items", "20", "--dim", "8", "--queries", "1", "--preset", "fast", "--no-peers"]
    done = bench(tmp_path, *flags)
    assert done.returncode == 0, done.stderr
    for word in ("Blindsight", "FAISS", "roofline", "over gRPC", "randomness", "at rest"):
        assert word in done.stdout
    assert "TenSEAL" not in done.stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--items", str(10**15)], "at most 134,217,728 items"),
        (["--items", "0"], "0 is not in the range"),
        (["--dim", "5000"], "1 to 1024 coordinates"),
        (["--preset", "none"], "parameter set 'none' is unknown"),
        (["--goal", "none"], "a goal is one of bytes, latency"),
        (["--items", str(MAX_ITEMS), "--dim", "1024"], "of memory"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path: Path, flags: list[str], words: str) -> None:
    done = bench(tmp_path, "--json", *flags)
    envelope = json.loads(done.stdout)
    assert done.returncode in (2, 3)
    assert envelope["status"] == "error"
    assert words in envelope["message"]
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_found_before_and_while_it_fills(tmp_path: Path) -> None:
    room = Room(tmp_path, disk=10**9, memory=10**12)
    room.check(PRIVATE, 10_000, 256, "bytes", 5)
    with pytest.raises(StorageError, match=r"takes 4\.3 GB in .*, 1\.0 GB are free") as full:
        room.check(PRIVATE, 1 << 20, 256, "bytes", 5)
    assert "TMPDIR" in full.value.hint
    # Enough for what FAISS writes, and not for the packed file.
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))"
    done = bench(tmp_path, "--items", "2000", "--dim", "32", "--json", before=limit)
    assert (done.returncode, json.loads(done.stdout)["error_code"]) == (6, "storage")
    assert not list(tmp_path.glob("blindsight-bench-*"))


@pytest.mark.parametrize("queries", [1, 5, 1000])
def test_memory_is_asked_for_the_vectors_once_and_for_every_score(
    tmp_path: Path, queries: int
) -> None:
    """Not for the files of the index, which are mapped."""
    items, dim = 1 << 20, 256
    held = 4 * items * dim + 8 * items * queries
    for goal in GOALS:
        Room(tmp_path, 10**13, held + 10**9 + 200 * items).check(PRIVATE, items, dim, goal, queries)
        with pytest.raises(UsageError, match=r"GB of memory, .* are available") as caught:
            Room(tmp_path, 10**13, held).check(PRIVATE, items, dim, goal, queries)
        assert "--queries" in caught.value.hint


def test_what_is_drawn_and_computed_takes_no_second_matrix() -> None:
    tracemalloc.start()
    try:
        corpus = Corpus.draw(50_000, 64, 1)
        corpus.exact(corpus.questions[0])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.4 * corpus.vectors.nbytes
    assert np.allclose(np.linalg.norm(corpus.vectors, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(("items", "dim"), [(1, 3), (40, 32), (2100, 50)])
def test_the_peers_answer_rightly(items: int, dim: int) -> None:
    """Every width and count: fewer than a block, more than one, not a power of two."""
    corpus = Corpus.draw(items, dim, 1)
    done: list[int] = []
    peers = seal_peers(corpus.vectors, corpus.questions[0], 1, done.append)
    assert done == [1, 2, 3, 4]
    for peer in peers:
        assert peer.microseconds is not None and peer.microseconds > 0
        assert peer.max_error is not None and 0 < peer.max_error < 2e-4


def test_a_peer_that_answers_wrongly_is_not_believed() -> None:
    corpus = Corpus.draw(5, 4, 1)
    right = corpus.exact(corpus.questions[0])
    assert checked("x", 1.0, "", 1, right, corpus.vectors, corpus.questions[0]).max_error == 0
    for wrong in (right / 2, right + 0.01 * np.eye(5)[4], np.full(5, np.nan)):
        with pytest.raises(BlindsightError, match="x answers wrongly"):
            checked("x", 1.0, "", 1, wrong, corpus.vectors, corpus.questions[0])


def test_openfhe_is_measured_or_said_to_be_missing() -> None:
    corpus = Corpus.draw(3, 20, 1)
    peer = openfhe_peer(corpus.vectors, corpus.questions[0])
    if peer.microseconds is None:
        assert peer.sample == "not installed"
    else:
        assert peer.max_error is not None


def test_batches_are_paid_whole() -> None:
    assert spread(1.0, 4096, 4096) == pytest.approx(1e6 / 4096)
    assert spread(1.0, 4096, 4097) == pytest.approx(2e6 / 4097)


def test_the_engine_agrees_with_the_index(tmp_path: Path) -> None:
    corpus = Corpus.draw(700, 40, 2)
    corpus.index(tmp_path, preset_by_name("private"), lambda blocks: None)
    index = Index(tmp_path)
    assert index.manifest.release_id == RELEASE
    engine = Engine(index, 2)
    for question, found in zip(corpus.questions, search(index, corpus.questions), strict=True):
        scores, _ = engine.ask(question)
        exact = corpus.vectors.astype(np.float64) @ question.astype(np.float64)
        assert np.array_equal(corpus.exact(question), exact)
        assert np.abs(scores - exact).max() < 1e-4
        assert found.positions == set(np.argsort(-exact)[:10].tolist())
    assert engine.scan(corpus.questions[0]) > 0
    engine.close()


def test_reading_touches_every_word() -> None:
    blocks = np.arange(48, dtype=np.uint32).reshape(1, 3, 2, 2, 4)
    words = blocks.reshape(-1).view(np.uint64)
    assert _sum(words) == words.sum()
    assert all(read_seconds(blocks, threads) > 0 for threads in (1, 2, 3))
