"""The packed form of an index: what encrypted scoring reads, memory-mapped from disk.

A file is a header (magic, layout, checksum) and then ``blocks`` records of uint32
``[k, N/T, d1, T]``: for each prime and each tile of T coefficients in NTT form, the d1 chunks.
A block is one contiguous record, so that adding or removing items re-packs only the blocks they
touch; a tile is contiguous so that the scan streams memory while the question's tile stays in
the first-level cache.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.institution.blocks import pack_block, tile_width
from protocol.errors import StorageError
from protocol.files import replace_atomically
from protocol.packing import Layout
from protocol.params import preset_by_name
from protocol.ring import U32

REBUILD = "Build it again: blindsight institution index."

_MAGIC = b"blindsight packed index 1\n"
_HEADER_BYTES = 4096


def write_packed(
    path: Path,
    layout: Layout,
    embeddings: NDArray[np.float32],
    progress: Callable[[int], None] = lambda blocks: None,
) -> None:
    """Pack ``embeddings`` float32 [n, dim] into ``path``; ``progress`` gets blocks done so far.

    The file takes its name only when it is whole and on disk. Raises :class:`StorageError`.
    """
    size, digest = layout.block_items, hashlib.sha256()
    with replace_atomically(path) as file:
        file.write(bytes(_HEADER_BYTES))
        for block in range(layout.blocks):
            items = embeddings[block * size : (block + 1) * size]
            record = pack_block(layout, items).tobytes()
            digest.update(record)
            file.write(record)
            progress(block + 1)
        header = {
            "preset": layout.preset.name,
            "dim": layout.dim,
            "chunk_width": layout.chunk_width,
            "items": layout.items,
            "sha256": digest.hexdigest(),
        }
        file.seek(0)
        file.write(_MAGIC + json.dumps(header).encode() + b"\n")


class PackedIndex:
    """A packed index, mapped read-only: ``blocks`` uint32 [blocks, k, N/T, d1, T]."""

    def __init__(self, path: Path) -> None:
        """Map ``path``; raise :class:`StorageError` if it is not whole."""
        self.path = path
        try:
            with path.open("rb") as file:
                head = file.read(_HEADER_BYTES)
            if len(head) < _HEADER_BYTES or not head.startswith(_MAGIC):
                raise ValueError("it does not begin as a packed index does")
            header = json.loads(head[len(_MAGIC) :].rstrip(b"\0"))
            preset = preset_by_name(header["preset"])
            self.layout = Layout(preset, header["dim"], header["chunk_width"], header["items"])
            self._sha256 = str(header["sha256"])
            tile = tile_width(self.layout)
            tiles = preset.ring_degree // tile
            k = len(preset.data_moduli)
            shape = (self.layout.blocks, k, tiles, self.layout.chunks, tile)
            expected = _HEADER_BYTES + 4 * int(np.prod(shape))
            found = path.stat().st_size
            if found != expected:
                raise ValueError(f"it has {found} bytes, expected {expected}")
            self.blocks: U32 = np.memmap(path, np.uint32, "r", _HEADER_BYTES, shape)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StorageError(
                f"{path.name} is not a usable packed index: {error}",
                REBUILD,
            ) from error

    def verify(self) -> None:
        """Read the whole file against its checksum; raise :class:`StorageError` if it differs."""
        digest = hashlib.sha256()
        for block in self.blocks:
            digest.update(block.tobytes())
        if digest.hexdigest() != self._sha256:
            raise StorageError(
                f"{self.path.name} is damaged: its checksum differs",
                REBUILD,
            )
