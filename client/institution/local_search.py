"""FAISS's approximate indexes, for an institution's own search of a large collection.

Named by FAISS's factory strings (``IVF256,Flat``, ``OPQ16,IVF256,PQ16``, ``PCA64,Flat``), trained
on the institution's own embeddings (Douze et al., The Faiss library, 2024). Encrypted scoring
never reads them.
"""

import hashlib
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from client.institution.packed import REBUILD
from protocol.errors import DataError, StorageError, UsageError
from protocol.files import write_atomically

_PROBED = 16  # of this many lists of an inverted file one is searched


def train_search(factory: str, embeddings: NDArray[np.float32]) -> faiss.Index:
    """Return an index of ``factory`` trained on, and holding, ``embeddings`` float32 [n, dim].

    Raises :class:`UsageError` for a factory that FAISS does not know, :class:`DataError` for too
    few embeddings to train it.
    """
    try:
        index = faiss.index_factory(embeddings.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise UsageError(
            f"FAISS knows no index {factory!r} of width {embeddings.shape[1]}: {_said(error)}",
            "Take Flat, IVF256,Flat, PCA64,Flat or OPQ16,IVF256,PQ16, for instance.",
        ) from error
    try:
        index.train(embeddings)
    except RuntimeError as error:
        raise DataError(
            f"{len(embeddings):,} items are too few to train {factory}: {_said(error)}",
            "Take a factory with fewer lists or codes, or Flat.",
        ) from error
    fill_search(index, embeddings)
    return index


def fill_search(index: faiss.Index, embeddings: NDArray[np.float32]) -> None:
    """Let a trained index hold ``embeddings``, and none that it held before."""
    index.reset()
    index.add(embeddings)
    lists = faiss.try_extract_index_ivf(index)
    if lists is not None:
        lists.nprobe = max(1, lists.nlist // _PROBED)


def write_search(path: Path, index: faiss.Index) -> None:
    """Write an index; raise :class:`StorageError` for a full disk."""
    write_atomically(path, faiss.serialize_index(index).tobytes())


def read_search(path: Path, sha256: str) -> faiss.Index:
    """Read what :func:`write_search` wrote; raise :class:`StorageError` for anything else."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}", REBUILD) from error
    # FAISS crashes on some files that are not its own.
    if hashlib.sha256(content).hexdigest() != sha256:
        raise StorageError(f"{path} is damaged", "Run blindsight index verify --repair.")
    return faiss.deserialize_index(np.frombuffer(content, np.uint8))


def _said(error: RuntimeError) -> str:
    """What FAISS means, without the name of its source file."""
    return str(error).strip().splitlines()[-1].rsplit(": ", 1)[-1][:200]
