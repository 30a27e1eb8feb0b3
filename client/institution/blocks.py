"""Blocks: embeddings as polynomials in NTT form, in the order in which the scan reads them.

A block is one record of uint32 ``[k, N/16, d1, 16]``: for each prime and each line of sixteen
coefficients, the d1 chunks.
"""

import numpy as np
from numpy.typing import NDArray

from client.institution.dot import LINE
from client.institution.kernels import pack
from protocol.ntt import U32
from protocol.packing import Layout
from protocol.ring import ring


def block_shape(layout: Layout) -> tuple[int, int, int, int]:
    """Return the shape of a record."""
    preset = layout.preset
    return len(preset.data_moduli), preset.ring_degree // LINE, layout.chunks, LINE


def pack_block(layout: Layout, items: NDArray[np.float32]) -> U32:
    """Pack up to N/d2 embeddings float32 [m, dim] as one record."""
    arithmetic = ring(layout.preset.ring_degree, layout.preset.data_moduli)
    record = np.empty(block_shape(layout), np.uint32)
    pack(layout.block_polynomials(items), arithmetic.constants, record)
    return record
