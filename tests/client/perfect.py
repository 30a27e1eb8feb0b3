"""An encoder that embeds "museum 3" as that item's own embedding: what a perfect model would do."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RELEASE = "0123456789abcdef"


class PerfectEncoder:
    """Knows the embeddings of ``institutions``; other words get a direction of their own."""

    release_id = RELEASE
    fit = (8, None, "bilinear")

    def __init__(self, institutions: list) -> None:
        self._rows = {one.settings.name: one.embeddings for one in institutions}

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.stack([self._text(one) for one in texts])

    def pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Item i of an institution is painted red i, green 90 times the institution's number."""
        found = []
        for picture in pixels:
            red, green, _ = picture.reshape(3, -1).mean(axis=1).round().astype(int)
            rows = list(self._rows.values())[round(green / 90)]
            found.append(rows[min(red, len(rows) - 1)])
        return np.stack(found)

    def _text(self, text: str) -> NDArray[np.float32]:
        name, _, number = text.partition(" ")
        if name in self._rows and number.isdecimal():
            return self._rows[name][int(number)]
        width = next(iter(self._rows.values())).shape[1]
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
        row = np.random.default_rng(seed).standard_normal(width).astype(np.float32)
        return row / np.linalg.norm(row)


def plain_best(institutions: list, question: NDArray[np.float32], k: int) -> list[tuple[str, int]]:
    """The k best places in plaintext."""
    everything = sorted(
        (-float(score), one.settings.name, place)
        for one in institutions
        for place, score in enumerate(one.embeddings @ question)
    )
    return [(name, place) for _, name, place in everything[:k]]
