"""The largest changes alone, and a memory of the others (top-k sparsification).

Sent are the ``share`` largest values by magnitude over all arrays together, as float16 with
their positions. What is not sent, and what float16 rounds away, is kept and added to the next
change (error feedback: Seide et al., Interspeech 2014; Karimireddy et al., arXiv:1901.09847):
every change arrives in the end, which is what makes so few values a round enough.

The record: "values", float16 [k], by ascending position among all n values, arrays in the order
of their sorted names; and the positions, in the smaller of two forms. Sparse (as in Roaring
bitmaps, Lemire et al., arXiv:1709.07821): "positions", uint16 [k], within blocks of 65,536, and
"counts", uint32 [n/65536], how many lie in each block. Dense: "bitmap", uint8 [n/8], the first
position in the highest bit. k, the form and the size follow from n and the share, so they say
nothing of what was learned. The positions do.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord

from protocol.errors import MalformedMessage
from protocol.model.compression.codec import require_finite
from protocol.model.compression.float16 import MAX_FLOAT16
from protocol.model.update import Arrays, expect_names, flatten, pack, read_array, unflatten

_BLOCK = 1 << 16


class TopK:
    """The largest ``share`` of all values; the rest is carried over to the next round."""

    def __init__(self, share: float) -> None:
        """``share`` is a fraction above 0, at most 1; at least one value is always sent."""
        if not 0 <= share <= 1:
            raise ValueError(f"share: expected 0 to 1, got {share}")
        self.share = share

    def encode(
        self, change: Arrays, residual: Arrays | None, generator: np.random.Generator
    ) -> tuple[ArrayRecord, Arrays]:
        """The record, and ``change`` plus ``residual`` less what the record says of them."""
        require_finite(change)
        wanted = flatten(change)
        if residual:
            wanted = wanted + flatten(residual)
        where = _largest(np.abs(wanted), self._count(wanted.size))
        values = np.clip(wanted[where], -MAX_FLOAT16, MAX_FLOAT16).astype(np.float16)
        left = wanted.copy()
        left[where] -= values.astype(np.float32)
        return pack({"values": values} | _positions(where, wanted.size)), unflatten(left, change)

    def decode(self, record: ArrayRecord, like: Arrays) -> Arrays:
        """The change that was sent, zero elsewhere. Raises MalformedMessage."""
        size = sum(values.size for values in like.values())
        count = self._count(size)
        read = _read_sparse if _is_sparse(count, size) else _read_bitmap
        positions = read(record, count, size)
        found = np.zeros(size, np.float32)
        found[positions] = read_array("values", record["values"], "float16", (count,))
        return unflatten(found, like)

    def _count(self, size: int) -> int:
        return min(size, max(1, round(self.share * size)))


def _largest(magnitudes: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64]:
    """Ascending positions of the ``count`` largest; of equal ones the first, on any machine."""
    if not count:
        return np.zeros(0, np.int64)
    threshold = np.partition(magnitudes, -count)[-count]
    chosen = magnitudes > threshold
    equal = np.flatnonzero(magnitudes == threshold)
    chosen[equal[: count - int(chosen.sum())]] = True
    return np.flatnonzero(chosen)


def _is_sparse(count: int, size: int) -> bool:
    return 2 * count + 4 * -(-size // _BLOCK) < -(-size // 8)


def _positions(where: npt.NDArray[np.int64], size: int) -> dict[str, npt.NDArray[Any]]:
    if _is_sparse(len(where), size):
        counts = np.bincount(where // _BLOCK, minlength=-(-size // _BLOCK))
        return {
            "positions": (where % _BLOCK).astype(np.uint16),
            "counts": counts.astype(np.uint32),
        }
    flags = np.zeros(size, np.bool_)
    flags[where] = True
    return {"bitmap": np.packbits(flags)}


def _read_sparse(record: ArrayRecord, count: int, size: int) -> npt.NDArray[np.int64]:
    expect_names(record, ("counts", "positions", "values"))
    blocks = -(-size // _BLOCK)
    counts = read_array("counts", record["counts"], "uint32", (blocks,)).astype(np.int64)
    if counts.sum() != count:
        raise MalformedMessage(f"array counts: expected {count} in all, got {counts.sum()}")
    low = read_array("positions", record["positions"], "uint16", (count,)).astype(np.int64)
    where = np.repeat(np.arange(blocks) * _BLOCK, counts) + low
    if (np.diff(where) <= 0).any():
        raise MalformedMessage("array positions: expected ascending ones, each once")
    if count and where[-1] >= size:
        raise MalformedMessage(f"array positions: expected some below {size}, got {where[-1]}")
    return where


def _read_bitmap(record: ArrayRecord, count: int, size: int) -> npt.NDArray[np.int64]:
    expect_names(record, ("bitmap", "values"))
    flags = np.unpackbits(read_array("bitmap", record["bitmap"], "uint8", (-(-size // 8),)))
    if flags[size:].any():
        raise MalformedMessage(f"array bitmap: expected positions below {size}")
    where = np.flatnonzero(flags)
    if len(where) != count:
        raise MalformedMessage(f"array bitmap: expected {count} positions, got {len(where)}")
    return where
