"""FAISS in plaintext on one thread: what is found, and what encryption costs beside it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from client.institution.index import Index

K = 10


@dataclass(frozen=True)
class Found:
    """The ten best of one question, or fewer where there are fewer, and the seconds it took."""

    positions: set[int]
    seconds: float


def search(index: Index, questions: NDArray[np.float32]) -> list[Found]:
    """Search every question float32 [m, dim] on one thread, once warm."""
    with _one_thread():
        index.search(questions[:1], K)
        return [_search(index, question) for question in questions]


def _search(index: Index, question: NDArray[np.float32]) -> Found:
    since = time.perf_counter()
    _, positions = index.search(question[None], K)
    return Found(set(positions[0].tolist()), time.perf_counter() - since)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
