"""Coefficient packing: how embeddings become polynomials (docs/protocol.md section 3.1).

A question ``q`` in R^d is cut into d1 chunks of d2 coordinates. Chunk g is the polynomial
``sum_j q[g*d2 + j] X^j``. A block holds N/d2 items; its chunk g has coordinate ``g*d2 + j`` of
item k at coefficient ``k*d2 + d2-1-j``. In ``sum_g question_g * block_g`` the coefficient
``k*d2 + d2-1`` is then the inner product of the question with item k: products that wrap around
X^N + 1 end below it, and no other item reaches it.
"""

from dataclasses import dataclass
from math import ceil, log2

import numpy as np
from numpy.typing import NDArray

from protocol.bits import packed_bytes
from protocol.errors import UsageError
from protocol.params import Preset
from protocol.seeds import SEED_BYTES

MAX_DIM = 1024
"""So that d products of two 27-bit residues sum in 64 bits without a reduction."""

MAX_NORM = 1.001
"""Embeddings lie on the unit sphere; the margin is for float32."""

CHUNK_WIDTHS = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Layout:
    """How ``items`` embeddings of width ``dim`` are packed: ``chunk_width`` is d2."""

    preset: Preset
    dim: int
    chunk_width: int
    items: int

    def __post_init__(self) -> None:
        """Raise :class:`UsageError` unless every number is in range."""
        if not 1 <= self.dim <= MAX_DIM:
            raise UsageError(f"embeddings have 1 to {MAX_DIM} coordinates, got {self.dim}")
        if self.chunk_width not in CHUNK_WIDTHS:
            raise UsageError(f"chunk width is one of {CHUNK_WIDTHS}, got {self.chunk_width}")
        if not 1 <= self.items < 2**40:
            raise UsageError(f"an index holds 1 to 2^40 - 1 items, got {self.items}")

    @property
    def chunks(self) -> int:
        """d1: polynomials of a question, and of a block; the last is padded with zeros."""
        return -(-self.dim // self.chunk_width)

    @property
    def block_items(self) -> int:
        """N/d2: items in a block, and scores in its reply."""
        return self.preset.ring_degree // self.chunk_width

    @property
    def blocks(self) -> int:
        """Blocks of the index; empty places in the last one score zero."""
        return -(-self.items // self.block_items)

    @property
    def public_keys(self) -> int:
        """Public keys of a question, so that their masks keep the entropy of a whole one.

        A searcher who crafts its keys learns of the masks at most what the score coefficients
        can carry (docs/protocol.md section 6.3).
        """
        carried = self.preset.score_capacity_bits / self.chunk_width
        return 1 + ceil(carried / log2(3))

    @property
    def upload_bytes(self) -> int:
        """Bytes of a question: public keys and d1 ciphertexts, all seeded."""
        return (self.chunks + self.public_keys) * (sum(self.ciphertext_lengths) + SEED_BYTES)

    @property
    def ciphertext_lengths(self) -> list[int]:
        """Bytes of a ciphertext's c0, prime by prime."""
        moduli = self.preset.data_moduli
        return [packed_bytes(self.preset.ring_degree, modulus) for modulus in moduli]

    @property
    def download_bytes(self) -> int:
        """Bytes of a reply: c1 whole and the score coefficients of c0, of every block."""
        c0, c1 = self.preset.reply_moduli
        scores = packed_bytes(self.block_items, c0)
        return self.blocks * (scores + packed_bytes(self.preset.ring_degree, c1))

    def question_polynomials(self, question: NDArray[np.float32]) -> NDArray[np.int64]:
        """Encode one embedding float32 [dim] as coefficients int64 [d1, N] at question scale.

        Raises :class:`UsageError` for another shape, for NaN, or for a norm above 1.
        """
        checked = self._checked(question[None])
        chunks = np.zeros((self.chunks, self.preset.ring_degree), np.int64)
        scaled = np.rint(checked[0] * 2.0**self.preset.query_scale_bits).astype(np.int64)
        chunks[:, : self.chunk_width] = scaled
        return chunks

    def block_polynomials(self, items: NDArray[np.float32]) -> NDArray[np.int32]:
        """Encode up to N/d2 embeddings float32 [m, dim] as coefficients int32 [d1, N]."""
        if not 1 <= len(items) <= self.block_items:
            raise UsageError(f"a block holds 1 to {self.block_items} items, got {len(items)}")
        scaled = np.rint(self._checked(items) * 2.0**self.preset.item_scale_bits)
        chunks = np.zeros((self.chunks, self.block_items, self.chunk_width), np.int32)
        chunks[:, : len(items), ::-1] = scaled.transpose(1, 0, 2)
        return chunks.reshape(self.chunks, self.preset.ring_degree)

    def _checked(self, embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return finite vectors of norm at most 1, zero-padded, float64 [m, d1, d2]."""
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dim:
            raise UsageError(f"embeddings have {self.dim} coordinates, got {embeddings.shape}")
        exact = embeddings.astype(np.float64)
        norms = np.linalg.norm(exact, axis=1)
        if not (norms <= MAX_NORM).all():
            raise UsageError(f"embeddings have norm 1 at most, got {norms.max()}")
        padded = np.zeros((len(exact), self.chunks * self.chunk_width))
        padded[:, : self.dim] = exact
        return padded.reshape(len(exact), self.chunks, self.chunk_width)
