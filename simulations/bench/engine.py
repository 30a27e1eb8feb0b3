"""Both sides of a question in this process, every phase on the clock."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from client.institution.blocks import pack_block
from client.institution.index import Index
from client.institution.question import Question
from client.institution.randomness import Stream
from client.institution.scorer import RUN_BLOCKS, Scorer
from client.searcher.ckks import SealScheme
from client.searcher.traffic import Traffic
from protocol import wire
from protocol.blindsight.v1 import retrieval_pb2 as pb
from protocol.packing import Layout
from protocol.scheme import SecretKey, Seeded

NAME = "bench"

_PACK_SAMPLE = 8


class Engine:
    """Asks one index, phase by phase on one thread and as a whole on ``threads``."""

    def __init__(self, index: Index, threads: int) -> None:
        self._blocks: NDArray[np.uint32] = index.packed.blocks
        self._scorer = Scorer(index.packed, threads)
        self._pool = ThreadPoolExecutor(threads, "scan")
        self._served = wire.IndexDescription(
            NAME, index.manifest.release_id, index.manifest.epoch, index.layout
        )

    def ask(self, question: NDArray[np.float32]) -> tuple[NDArray[np.float64], Traffic]:
        """Return the decrypted scores float64 [items] of an embedding float32 [dim].

        Phases of one thread: keygen, encrypt (to bytes), parse (and expand), scan, randomness,
        mask, serialise, decrypt (from bytes). ``server`` is what the institution computes for a
        question, parse to mask, by the service's own scorer on its threads.
        """
        layout, traffic = self._served.layout, Traffic()
        key, request = self._encrypt(question, traffic)
        now = time.perf_counter()
        asked = Question(layout, *self._parse(request))
        traffic.clock("parse", now)
        replies = list(self._answer(asked, traffic))
        now = time.perf_counter()
        for _ in self._scorer.score(*self._parse(request)):
            pass
        now = traffic.clock("server", now)
        scores = _decrypt(key, layout, replies)
        traffic.clock("decrypt", now)
        return scores, traffic

    def scan(self, question: NDArray[np.float32]) -> float:
        """Return the seconds that the scan alone takes on all threads, once warm."""
        _, request = self._encrypt(question, Traffic())
        asked = Question(self._served.layout, *self._parse(request))
        for _ in range(2):
            since = time.perf_counter()
            for _ in self._pool.map(lambda run: len(asked.multiply(run)), self._runs()):
                pass
        return time.perf_counter() - since

    def close(self) -> None:
        """Stop the threads."""
        self._scorer.close()
        self._pool.shutdown()

    def _encrypt(self, question: NDArray[np.float32], traffic: Traffic) -> tuple[SecretKey, bytes]:
        layout, now = self._served.layout, time.perf_counter()
        key = SealScheme().keygen(layout.preset)
        public_keys = key.public_keys(layout.public_keys)
        now = traffic.clock("keygen", now)
        chunks = key.encrypt_query(layout.question_polynomials(question))
        request = wire.score_request(self._served, public_keys, chunks).SerializeToString()
        traffic.clock("encrypt", now)
        return key, request

    def _parse(self, request: bytes) -> tuple[list[Seeded], list[Seeded]]:
        return wire.parse_score_request(pb.ScoreRequest.FromString(request), self._served)

    def _answer(self, asked: Question, traffic: Traffic) -> Iterator[bytes]:
        layout, now = self._served.layout, time.perf_counter()
        for number, run in enumerate(self._runs()):
            sums = asked.multiply(run)
            now = traffic.clock("scan", now)
            mask = Stream().mask(len(run), layout)
            now = traffic.clock("randomness", now)
            reply = asked.mask(number * RUN_BLOCKS, sums, mask)
            now = traffic.clock("mask", now)
            message = wire.score_response(layout, reply).SerializeToString()
            now = traffic.clock("serialise", now)
            yield message

    def _runs(self) -> Iterator[NDArray[np.uint32]]:
        for start in range(0, len(self._blocks), RUN_BLOCKS):
            yield self._blocks[start : start + RUN_BLOCKS]


def pack_seconds(layout: Layout, vectors: NDArray[np.float32]) -> float:
    """Return the seconds that one document takes to pack on one core, of a few blocks."""
    size = layout.block_items
    sample = vectors[: _PACK_SAMPLE * size]
    since = time.perf_counter()
    for start in range(0, len(sample), size):
        pack_block(layout, sample[start : start + size])
    return (time.perf_counter() - since) / len(sample)


def _decrypt(key: SecretKey, layout: Layout, replies: list[bytes]) -> NDArray[np.float64]:
    scores, next_block = [], 0
    for reply in replies:
        message = pb.ScoreResponse.FromString(reply)
        parsed = wire.parse_score_response(message, layout, next_block)
        scores.append(key.decrypt_scores(layout, parsed))
        next_block += len(parsed.c0)
    return np.concatenate(scores).reshape(-1)[: layout.items]
