"""An institution's search of its own images, in plaintext: it never leaves the process."""

import time
from pathlib import Path

import numpy as np
from PIL import Image

from client.institution.index import Index
from protocol.errors import ReleaseMismatch
from protocol.model.embedder import Embedder
from protocol.terminal import Outcome


def own_search(
    root: Path, embedder: Embedder, asked: str | Image.Image, k: int, data: Path | None = None
) -> Outcome:
    """Find the ``k`` items nearest to a sentence or to an image that fits the embedder.

    Names are given as paths in ``data``, if it is given. Raises :class:`ReleaseMismatch` if the
    index is of another release.
    """
    index = Index(root)
    if index.manifest.release_id != embedder.release_id:
        raise ReleaseMismatch(
            f"the index is of release {index.manifest.release_id}, this is {embedder.release_id}",
            "Give the index's release, or run blindsight index update.",
        )
    if isinstance(asked, str):
        question = embedder.texts([asked])
    else:
        question = embedder.pixels(np.asarray(asked).transpose(2, 0, 1)[None])
    began = time.perf_counter()
    scores, positions = index.search(question, k)
    milliseconds = 1e3 * (time.perf_counter() - began)
    # An approximate index may find fewer than k.
    hits = [(float(s), int(p)) for s, p in zip(scores[0], positions[0], strict=True) if p >= 0]
    items = index.items([position for _, position in hits])
    rows = [
        {
            "score": score,
            "position": position,
            "file_name": item.file_name if data is None else str(data / item.file_name),
            "caption": item.caption,
        }
        for (score, position), item in zip(hits, items, strict=True)
    ]
    lines = [f"{row['score']:.4f}  {row['file_name']}  {row['caption']}" for row in rows]
    return Outcome("\n".join(lines), {"milliseconds": milliseconds, "found": rows})
