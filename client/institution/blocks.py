"""Blocks: embeddings as polynomials in NTT form, in the order in which the scan reads them.

A block is one record of uint32 ``[k, N/T, d1, T]``: for each prime and each tile of T
coefficients, the d1 chunks.
"""

import numpy as np
from numpy.typing import NDArray

from protocol.packing import Layout
from protocol.ring import U32, ring

_TILE_WORDS = 2048
_MIN_TILE = 16


def tile_width(layout: Layout) -> int:
    """Return T: coefficients a tile, so that d1 x T words of two polynomials stay in cache."""
    wide = _TILE_WORDS // layout.chunks
    return max(_MIN_TILE, 1 << max(wide, 1).bit_length() - 1)


def pack_block(layout: Layout, items: NDArray[np.float32]) -> U32:
    """Pack up to N/d2 embeddings float32 [m, dim] as one record ``[k, N/T, d1, T]``."""
    arithmetic = ring(layout.preset.ring_degree, layout.preset.data_moduli)
    polynomials = arithmetic.encode(layout.block_polynomials(items))
    split = polynomials.reshape(*polynomials.shape[:2], -1, tile_width(layout))
    return np.ascontiguousarray(split.transpose(1, 2, 0, 3))
