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
    out = np.zeros(packed_bytes(residues.size, modulus), np.uint8)
    _pack(np.ascontiguousarray(residues).reshape(-1), (modulus - 1).bit_length(), out)
    return out.tobytes()


def unpack(data: bytes, count: int, modulus: int) -> U32:
    """Unpack ``count`` residues, uint32 [count]; every one is checked to be below ``modulus``.

    Raises :class:`MalformedMessage` for a wrong length, a residue out of range, or set padding.
    """
    expected = packed_bytes(count, modulus)
    if len(data) != expected:
        raise MalformedMessage(f"{count} residues take {expected} bytes, got {len(data)}")
    residues = np.empty(count, np.uint32)
    left_over = _unpack(np.frombuffer(data, np.uint8), (modulus - 1).bit_length(), residues)
    if left_over:
        raise MalformedMessage("the bits after the last residue are zero, got others")
    if count and int(residues.max()) >= modulus:
        raise MalformedMessage(f"a residue is below {modulus}, got {residues.max()}")
    return residues


@kernel
def _pack(residues, width, out):  # type: ignore[no-untyped-def]
    held, bits, at = np.uint64(0), 0, 0
    for residue in residues:
        held |= np.uint64(residue) << np.uint64(bits)
        bits += width
        while bits >= 8:
            out[at] = np.uint8(held & np.uint64(255))
            held >>= np.uint64(8)
            bits -= 8
            at += 1
    if bits:
        out[at] = np.uint8(held)


@kernel
def _unpack(data, width, residues):  # type: ignore[no-untyped-def]
    held, bits, at = np.uint64(0), 0, 0
    mask = (np.uint64(1) << np.uint64(width)) - np.uint64(1)
    for i in range(residues.size):
        while bits < width:
            held |= np.uint64(data[at]) << np.uint64(bits)
            bits += 8
            at += 1
        residues[i] = np.uint32(held & mask)
        held >>= np.uint64(width)
        bits -= width
    return held
