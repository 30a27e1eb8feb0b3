"""Handles of items: what a searcher fetches by, instead of positions (docs/protocol.md 4.3).

A handle is one block of AES-128 under a secret that the service gave with an answer: (position,
zeros). A block cipher is a permutation of blocks, so no two positions have one handle, and a
handle that was guessed, made for another question or by another searcher decrypts to no zeros (but
once in 2^64). The searcher makes handles itself, for winners and decoys alike: the service is not
asked for any, so it cannot tell which were wanted.
"""

import struct
from dataclasses import dataclass

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from protocol.errors import MalformedMessage

HANDLE_BYTES = 16
SECRET_BYTES = 16
TICKET_BYTES = 32
_BLOCK = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True, repr=False)
class Grant:
    """What lets one searcher fetch for a while: ``ticket`` goes back, ``secret`` makes handles."""

    ticket: bytes
    secret: bytes

    def handles(self, positions: list[int]) -> list[bytes]:
        """A handle of 16 bytes for each position, below 2^64."""
        made = self._cipher().encryptor()
        return [made.update(_BLOCK.pack(position, 0)) for position in positions]

    def positions(self, handles: list[bytes], items: int) -> list[int]:
        """The positions that handles stand for, all below ``items``. Raises MalformedMessage."""
        read, positions = self._cipher().decryptor(), []
        for handle in handles:
            if len(handle) != HANDLE_BYTES:
                raise MalformedMessage(f"a handle has {HANDLE_BYTES} bytes, got {len(handle)}")
            position, zeros = _BLOCK.unpack(read.update(handle))
            if zeros or position >= items:
                raise MalformedMessage(
                    "a handle is not one of this searcher's, or is too old", "Search again."
                )
            positions.append(position)
        return positions

    def _cipher(self) -> Cipher[modes.ECB]:
        # One block under a key of its own is no mode at all: what is wanted is the permutation.
        return Cipher(algorithms.AES(self.secret), modes.ECB())  # noqa: S305
