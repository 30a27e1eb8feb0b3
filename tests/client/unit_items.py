"""Items as an index holds them, for tests of the scheme: unit vectors, and blocks of them."""

import numpy as np
from numpy.typing import NDArray

from client.institution.blocks import pack_block
from protocol.packing import Layout
from protocol.ring import U32

Items = NDArray[np.float32]


def unit_vectors(count: int, dim: int) -> Items:
    """The same ones at every call, float32 [count, dim]; fewer are the first of more."""
    rows = np.random.default_rng(3).standard_normal((count, dim)).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def packed(layout: Layout, items: Items) -> U32:
    """The blocks of ``items``, the last one padded."""
    size = layout.block_items
    return np.stack([pack_block(layout, items[i : i + size]) for i in range(0, len(items), size)])
