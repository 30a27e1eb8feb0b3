"""Residues on the wire: little-endian bit strings, as many bits each as the modulus has.

docs/protocol.md section 4.2. Bits of one residue follow those of the one before without a gap,
least significant first; the last byte is filled up with zeros.
"""

import numpy as np

from protocol.compiled import kernel
from protocol.errors import MalformedMessage
from protocol.ntt import U32


def packed_bytes(count: int, modulus: int) -> int:
    """Return the length of ``count`` residues modulo ``modulus``, in bytes."""
    return (count * (modulus - 1).bit_length() + 7) // 8


def pack(residues: U32, modulus: int) -> bytes:
    """Pack a contiguous uint32 array, all below ``modulus``, flattened in C order."""
    length = packed_bytes(residues.size, modulus)
    words = np.zeros(length // 4 + 1, np.uint32)
    _pack(np.ascontiguousarray(residues).reshape(-1), (modulus - 1).bit_length(), words)
    return words.tobytes()[:length]


def unpack(data: bytes, count: int, modulus: int) -> U32:
    """Unpack ``count`` residues, uint32 [count]; every one is checked to be below ``modulus``.

    Raises :class:`MalformedMessage` for a wrong length, a residue out of range, or set padding.
    """
    expected = packed_bytes(count, modulus)
    if len(data) != expected:
        raise MalformedMessage(f"{count} residues take {expected} bytes, got {len(data)}")
    width = (modulus - 1).bit_length()
    if count * width % 8 and data[-1] >> count * width % 8:
        raise MalformedMessage("the bits after the last residue are zero, got others")
    words = np.zeros(expected // 4 + 2, np.uint32)
    words.view(np.uint8)[:expected] = np.frombuffer(data, np.uint8)
    residues = np.empty(count, np.uint32)
    _unpack(words, width, residues)
    if count and int(residues.max()) >= modulus:
        raise MalformedMessage(f"a residue is below {modulus}, got {residues.max()}")
    return residues


@kernel
def _pack(residues, width, words):  # type: ignore[no-untyped-def]
    held, bits, at = np.uint64(0), 0, 0
    for residue in residues:
        held |= np.uint64(residue) << np.uint64(bits)
        bits += width
        if bits >= 32:
            words[at] = np.uint32(held)
            held >>= np.uint64(32)
            bits -= 32
            at += 1
    words[at] = np.uint32(held)


@kernel
def _unpack(words, width, residues):  # type: ignore[no-untyped-def]
    mask = (np.uint64(1) << np.uint64(width)) - np.uint64(1)
    for i in range(residues.size):
        at, bit = (i * width) >> 5, np.uint64((i * width) & 31)
        pair = np.uint64(words[at]) | np.uint64(words[at + 1]) << np.uint64(32)
        residues[i] = np.uint32((pair >> bit) & mask)
