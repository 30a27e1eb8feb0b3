"""The header of a packed index: what the file holds, and at which byte (``packed`` has the map)."""

import hashlib
import json
import re
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from client.institution.blocks import block_shape
from protocol.packing import Layout
from protocol.params import preset_by_name

PAGE = 4096
DIGEST_BYTES = hashlib.sha256().digest_size

_MAGIC = b"blindsight packed index 2\n"
_VERSION = re.compile(rb"blindsight packed index (\d{1,9})\n")


@dataclass(frozen=True)
class Header:
    """The layout of a packed index, and the SHA-256 of its embeddings in hexadecimal."""

    layout: Layout
    embeddings: str

    @classmethod
    def of(cls, layout: Layout, embeddings: NDArray[np.float32]) -> "Header":
        """Return the header of ``embeddings`` float32 [n, dim], in memory or mapped."""
        digest, rows = hashlib.sha256(), layout.block_items
        # A block at a time: they may be a file that is larger than the memory.
        for start in range(0, len(embeddings), rows):
            digest.update(np.ascontiguousarray(embeddings[start : start + rows]).data)
        return cls(layout, digest.hexdigest())

    def to_page(self) -> bytes:
        """Return the first page of the file."""
        fields = {
            "preset": self.layout.preset.name,
            "dim": self.layout.dim,
            "chunk_width": self.layout.chunk_width,
            "items": self.layout.items,
            "record": block_shape(self.layout),
            "embeddings": self.embeddings,
        }
        return (_MAGIC + json.dumps(fields).encode() + b"\n").ljust(PAGE, b"\0")

    @classmethod
    def from_page(cls, page: bytes) -> "Header":
        """Parse a first page, which is to the byte as :meth:`to_page` gives it.

        Raises ValueError, KeyError, TypeError, RecursionError or BlindsightError for any other.
        """
        if not page.startswith(_MAGIC):
            if other := _VERSION.match(page):
                raise ValueError(f"it is of version {int(other[1])}, expected version 2")
            raise ValueError("it does not begin as a packed index does")
        fields = json.loads(page[len(_MAGIC) :].rstrip(b"\0"))
        sizes = [fields[name] for name in ("dim", "chunk_width", "items")]
        if any(type(size) is not int for size in sizes):
            raise ValueError(f"its sizes are whole numbers, got {sizes}")
        layout = Layout(preset_by_name(fields["preset"]), *sizes)
        digest = bytes.fromhex(fields["embeddings"])
        header = cls(layout, digest.hex())
        if len(digest) != DIGEST_BYTES or header.to_page() != page:
            raise ValueError("its header is not as this version writes it")
        return header

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all records, uint32 [blocks, k, N/16, d1, 16]."""
        return (self.layout.blocks, *block_shape(self.layout))

    @property
    def record_bytes(self) -> int:
        """Bytes of one record."""
        return 4 * prod(block_shape(self.layout))

    @property
    def start(self) -> int:
        """Bytes before the first record: header and digests, whole pages."""
        return PAGE - (-DIGEST_BYTES * self.layout.blocks // PAGE) * PAGE

    @property
    def file_bytes(self) -> int:
        """Bytes of the whole file."""
        return self.record_at(self.layout.blocks)

    def digest_at(self, block: int) -> int:
        """Return the place of a block's digest."""
        return PAGE + DIGEST_BYTES * block

    def record_at(self, block: int) -> int:
        """Return the place of a block's record."""
        return self.start + self.record_bytes * block
