"""Expansion of SEAL's 64-byte seeds to uniform polynomials (docs/protocol.md section 3.3).

An institution expands ``a`` itself and so knows that it is uniform; a searcher that could choose
``a`` could switch the masking of replies off. Only public data passes through here.

SEAL's generator is BLAKE2Xb (Aumasson et al. 2016) in blocks of 4,096 bytes. ``hashlib`` gives
its root hash but refuses the output nodes (depth 0), so their compression function is here.
"""

import hashlib

import numpy as np

from protocol.compiled import kernel
from protocol.errors import MalformedMessage
from protocol.ntt import U32, U64

SEED_BYTES = 64
_BLOCK_BYTES = 4096
_WORD_MAX = 2**64 - 1

_IV = np.frombuffer(
    bytes.fromhex(
        "08c9bcf367e6096a3ba7ca8485ae67bb2bf894fe72f36e3cf1361d5f3af54fa5"
        "d182e6ad7f520e511f6c3e2b8c68059b6bbd41fbabd9831f79217e1319cde05b"
    ),
    np.uint64,
)
_SIGMA = np.array(
    [
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
        [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
        [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4],
        [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
        [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13],
        [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
        [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11],
        [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
        [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5],
        [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
    ],
    np.int64,
)
_NODE_BYTES = 64
_NODES = _BLOCK_BYTES // _NODE_BYTES
# Digest length 64 and leaf length 64 with key, fan-out and depth 0; the node's number is added.
_NODE_PARAMETERS = np.uint64(_NODE_BYTES | _NODE_BYTES << 32)


def expand(seed: bytes, degree: int, moduli: tuple[int, ...]) -> U32:
    """Expand a 64-byte ``seed`` to uniform residues, uint32 [k, degree], in NTT form.

    Bit for bit SEAL 4.x's ``sample_poly_uniform``: one word a residue, prime by prime; a word
    that would bias the reduction is redrawn from the words that follow.
    Raises :class:`MalformedMessage` for a seed of another length.
    """
    if len(seed) != SEED_BYTES:
        raise MalformedMessage(f"a seed has {SEED_BYTES} bytes, got {len(seed)}")
    count = degree * len(moduli)
    words = _words(seed, 0, count)
    following, block = list(words[count:]), -(-count * 8 // _BLOCK_BYTES)
    candidates = words[:count].reshape(len(moduli), degree)
    residues = np.empty(candidates.shape, np.uint32)
    for row, modulus, out in zip(candidates, moduli, residues, strict=True):
        limit = np.uint64(_WORD_MAX - _WORD_MAX % modulus - 1)
        for i in np.flatnonzero(row >= limit):
            while row[i] >= limit:
                if not following:
                    following, block = list(_words(seed, block, 512)), block + 1
                row[i] = following.pop(0)
        # Not row % modulus: NumPy divides by one number in vectors, and takes rests one by one.
        out[:] = row - row // np.uint64(modulus) * np.uint64(modulus)
    return residues


def _words(seed: bytes, first_block: int, count: int) -> U64:
    blocks = -(-count * 8 // _BLOCK_BYTES)
    keyed = hashlib.blake2b(key=seed, fanout=1, depth=1, node_offset=_BLOCK_BYTES << 32)
    roots = b"".join(_root(keyed.copy(), first_block + i) for i in range(blocks))
    out = np.empty((blocks, _NODES * 8), np.uint64)
    _output_nodes(np.frombuffer(roots, np.uint64).reshape(blocks, 8), out)
    return out.reshape(-1)


def _root(keyed: hashlib.blake2b, block: int) -> bytes:
    keyed.update(block.to_bytes(8, "little"))
    return keyed.digest()


@kernel
def _output_nodes(roots, out):  # type: ignore[no-untyped-def]
    """BLAKE2b (RFC 7693, section 3.2) of each 64-byte root, as all of its output nodes at once.

    ``roots`` uint64 [n, 8]; ``out`` uint64 [n, nodes * 8]. Nodes differ in the initial vector
    alone, so a row of ``v`` holds one word of all of them, and vectors run along it.
    """
    v = np.empty((16, _NODES), np.uint64)
    for root in range(roots.shape[0]):
        m = np.zeros(16, np.uint64)
        m[:8] = roots[root]
        for word in range(8):
            v[word] = _IV[word]
            v[8 + word] = _IV[word]
        v[0] ^= _NODE_PARAMETERS
        for node in range(_NODES):
            v[1, node] ^= np.uint64(node) | np.uint64(_BLOCK_BYTES) << np.uint64(32)
        v[2] ^= np.uint64(_NODE_BYTES << 8)
        h = v[:8].copy()
        v[12] ^= np.uint64(_NODE_BYTES)
        v[14] = ~v[14]
        for r in range(12):
            s = _SIGMA[r % 10]
            _mix(v, 0, 4, 8, 12, m[s[0]], m[s[1]])
            _mix(v, 1, 5, 9, 13, m[s[2]], m[s[3]])
            _mix(v, 2, 6, 10, 14, m[s[4]], m[s[5]])
            _mix(v, 3, 7, 11, 15, m[s[6]], m[s[7]])
            _mix(v, 0, 5, 10, 15, m[s[8]], m[s[9]])
            _mix(v, 1, 6, 11, 12, m[s[10]], m[s[11]])
            _mix(v, 2, 7, 8, 13, m[s[12]], m[s[13]])
            _mix(v, 3, 4, 9, 14, m[s[14]], m[s[15]])
        for word in range(8):
            for node in range(_NODES):
                out[root, node * 8 + word] = h[word, node] ^ v[word, node] ^ v[8 + word, node]


@kernel
def _mix(v, a, b, c, d, x, y):  # type: ignore[no-untyped-def]
    for node in range(_NODES):
        p, q, r, s = v[a, node], v[b, node], v[c, node], v[d, node]
        p += q + x
        s = _rotate(s ^ p, 32)
        r += s
        q = _rotate(q ^ r, 24)
        p += q + y
        s = _rotate(s ^ p, 16)
        r += s
        v[a, node], v[b, node], v[c, node], v[d, node] = p, _rotate(q ^ r, 63), r, s


@kernel
def _rotate(word, bits):  # type: ignore[no-untyped-def]
    return (word >> np.uint64(bits)) | (word << np.uint64(64 - bits))
