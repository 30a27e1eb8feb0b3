"""Seed expansion against SEAL itself and against BLAKE2Xb written out plainly."""

import hashlib
import json
import struct
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tenseal.sealapi as seal
import zstandard
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from protocol.errors import MalformedMessage
from protocol.params import FAST, PRIVATE
from protocol.ring import U32
from protocol.seeds import expand

VECTORS = Path(__file__).parents[1] / "vectors" / "seed_expansion.json"
COUNTING = bytes(range(64))
SEEDS = st.binary(min_size=64, max_size=64)

ABOVE_HALF = 2**63 + 29
"""Some modulus for which a word is redrawn with probability one half."""

REDRAWN = (1085102592571318273, 1152921504606830593)
"""Primes of 60 bits, 1 mod 8192; SEAL redraws one word in 17 under the first."""


# --- SEAL's own expansion, through its files

HEADER = struct.Struct("<HBBBBHQ")  # magic, header size, version, compression, 0, total size
FIRST_WORD = 97
TAIL = 16 + 1 + 64  # header, type of the generator, seed


def context_of(moduli: tuple[int, ...], level: Any) -> Any:
    parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
    parameters.set_poly_modulus_degree(4096)
    parameters.set_coeff_modulus([seal.Modulus(modulus) for modulus in moduli])
    context = seal.SEALContext(parameters, True, level)
    assert context.parameters_set()
    return context


def saved(thing: Any, path: Path) -> bytes:
    thing.save(str(path))
    frame = path.read_bytes()[HEADER.size :]
    return zstandard.ZstdDecompressor().decompressobj().decompress(frame)


def expanded_by_seal(
    moduli: tuple[int, ...],
    folder: Path,
    seed: bytes | None = None,
    level: Any = seal.SEC_LEVEL_TYPE.TC128,
) -> tuple[bytes, list[list[int]]]:
    """Let SEAL encrypt, save the seed alone, load and expand it; return seed and residues.

    With ``seed`` its bytes take the place of SEAL's in the saved file. The last of ``moduli``
    is SEAL's special prime, which a ciphertext does not have.
    """
    context, k = context_of(moduli, level), len(moduli) - 1
    encryptor = seal.Encryptor(context, seal.KeyGenerator(context).secret_key())
    body = saved(encryptor.encrypt_zero_symmetric(), folder / "seeded")
    assert len(body) == FIRST_WORD + k * 4096 * 8 + TAIL  # c0 alone
    body = body[:-64] + (seed or body[-64:])
    head = HEADER.pack(0xA15E, HEADER.size, 4, 3, 0, 0, HEADER.size + len(body))
    (folder / "loaded").write_bytes(head + body)
    ciphertext = seal.Ciphertext()
    ciphertext.load(context, str(folder / "loaded"))
    full = saved(ciphertext, folder / "full")
    assert len(full) == FIRST_WORD + 2 * k * 4096 * 8  # c0 and c1
    words = np.frombuffer(full, "<u8", 2 * k * 4096, FIRST_WORD).reshape(2, k, 4096)
    return body[-64:], words[1].tolist()


@pytest.mark.parametrize("preset", [PRIVATE, FAST], ids=lambda preset: str(preset.name))
def test_expansion_is_seals(preset: Any, tmp_path: Path) -> None:
    for _ in range(2):
        seed, residues = expanded_by_seal(preset.moduli, tmp_path)
        assert expand(seed, 4096, preset.data_moduli).tolist() == residues


@pytest.mark.parametrize("seed", [bytes(64), b"\xff" * 64, COUNTING])
def test_expansion_of_a_chosen_seed_is_seals(seed: bytes, tmp_path: Path) -> None:
    used, residues = expanded_by_seal(PRIVATE.moduli, tmp_path, seed)
    assert used == seed
    assert expand(seed, 4096, PRIVATE.data_moduli).tolist() == residues


@pytest.mark.parametrize("data_moduli", [REDRAWN[:1], REDRAWN, REDRAWN[::-1]])
def test_redrawn_words_are_those_that_seal_redraws(
    data_moduli: tuple[int, ...], tmp_path: Path
) -> None:
    moduli = (*data_moduli, 1152921504606748673)
    seed, residues = expanded_by_seal(moduli, tmp_path, level=seal.SEC_LEVEL_TYPE.NONE)
    limit = 2**64 - 1 - (2**64 - 1) % REDRAWN[0] - 1
    words = list(islice(blake2xb_words(seed), 512))
    if data_moduli[0] == REDRAWN[0]:
        assert any(word >= limit for word in words)
    # The words are 64 bits; what expand returns of them is their low half.
    expected = [[residue & 0xFFFFFFFF for residue in row] for row in residues]
    assert expand(seed, 4096, data_moduli).tolist() == expected


def test_known_answer() -> None:
    vector = json.loads(VECTORS.read_text())
    moduli = tuple(vector["moduli"])
    expanded = expand(bytes.fromhex(vector["seed"]), vector["degree"], moduli)
    assert expanded.dtype == np.uint32
    assert expanded.shape == (len(moduli), vector["degree"])
    assert expanded[:, :8].tolist() == vector["first"]
    assert hashlib.sha256(expanded.astype("<u4").tobytes()).hexdigest() == vector["sha256"]


def test_the_known_answer_is_seals(tmp_path: Path) -> None:
    vector = json.loads(VECTORS.read_text())
    assert vector["degree"] == 4096
    moduli, seed = tuple(vector["moduli"]), bytes.fromhex(vector["seed"])
    _, residues = expanded_by_seal((*moduli, PRIVATE.moduli[-1]), tmp_path, seed)
    assert [row[:8] for row in residues] == vector["first"]
    digest = hashlib.sha256(np.array(residues, "<u4").tobytes()).hexdigest()
    assert digest == vector["sha256"]


# --- BLAKE2b (RFC 7693) with its whole parameter block, and BLAKE2Xb on top

IV = (
    0x6A09E667F3BCC908,
    0xBB67AE8584CAA73B,
    0x3C6EF372FE94F82B,
    0xA54FF53A5F1D36F1,
    0x510E527FADE682D1,
    0x9B05688C2B3E6C1F,
    0x1F83D9ABFB41BD6B,
    0x5BE0CD19137E2179,
)
SIGMA = (
    "0123456789abcdef",
    "ea489fd61c02b753",
    "b8c052fdae367194",
    "7931dcbe265a40f8",
    "905724afe1bc683d",
    "2c6a0b834d75fe19",
    "c51fed4a0763928b",
    "db7ec13950f4862a",
    "6fe9b308c2d714a5",
    "a2847615fb9e3cd0",
)
COLUMNS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15))
DIAGONALS = ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))
MASK = 2**64 - 1


def turned(word: int, bits: int) -> int:
    return (word >> bits) | (word << (64 - bits)) & MASK


def blake2b(
    message: bytes,
    key: bytes = b"",
    *,
    fanout: int = 1,
    depth: int = 1,
    leaf: int = 0,
    offset: int = 0,
    inner: int = 0,
) -> bytes:
    """64 bytes of BLAKE2b; ``offset`` is the node's, with BLAKE2X's output length above it."""
    parameters = struct.pack("<BBBBIQBB46x", 64, len(key), fanout, depth, leaf, offset, 0, inner)
    h = [a ^ b for a, b in zip(IV, struct.unpack("<8Q", parameters), strict=True)]
    data = key.ljust(128, b"\0") + message if key else message
    blocks = [data[i : i + 128] for i in range(0, len(data), 128)] or [b""]
    done = 0
    for number, block in enumerate(blocks, 1):
        done += len(block)
        m = struct.unpack("<16Q", block.ljust(128, b"\0"))
        v = [*h, *IV]
        v[12] ^= done
        if number == len(blocks):
            v[14] ^= MASK
        for r in range(12):
            order = [int(digit, 16) for digit in SIGMA[r % 10]]
            for i, (a, b, c, d) in enumerate(COLUMNS + DIAGONALS):
                v[a] = (v[a] + v[b] + m[order[2 * i]]) & MASK
                v[d] = turned(v[d] ^ v[a], 32)
                v[c] = (v[c] + v[d]) & MASK
                v[b] = turned(v[b] ^ v[c], 24)
                v[a] = (v[a] + v[b] + m[order[2 * i + 1]]) & MASK
                v[d] = turned(v[d] ^ v[a], 16)
                v[c] = (v[c] + v[d]) & MASK
                v[b] = turned(v[b] ^ v[c], 63)
        h = [x ^ v[i] ^ v[i + 8] for i, x in enumerate(h)]
    return struct.pack("<8Q", *h)


def blake2xb_words(seed: bytes) -> Iterator[int]:
    """SEAL's stream: BLAKE2Xb of 0, 1, ... under ``seed``, 4,096 bytes of each."""
    number = 0
    while True:
        root = blake2b(number.to_bytes(8, "little"), seed, offset=4096 << 32)
        for node in range(4096 // 64):
            offset = node | 4096 << 32
            yield from struct.unpack(
                "<8Q", blake2b(root, fanout=0, depth=0, leaf=64, offset=offset, inner=64)
            )
        number += 1


def expanded_plainly(seed: bytes, degree: int, moduli: tuple[int, ...]) -> list[list[int]]:
    stream = blake2xb_words(seed)
    rows = [list(islice(stream, degree)) for _ in moduli]
    for row, modulus in zip(rows, moduli, strict=True):
        limit = MASK - MASK % modulus - 1
        for i in range(degree):
            while row[i] >= limit:
                row[i] = next(stream)
            row[i] %= modulus
    return rows


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=400), st.binary(max_size=64), st.integers(0, 2**64 - 1))
@example(b"", b"", 0)
@example(b"a" * 128, b"", 4096 << 32)
@example(b"a" * 129, COUNTING, 1)
def test_the_plain_blake2b_is_hashlibs_where_that_goes(
    message: bytes, key: bytes, offset: int
) -> None:
    expected = hashlib.blake2b(
        message, key=key, fanout=0, depth=2, leaf_size=64, node_offset=offset, inner_size=64
    )
    got = blake2b(message, key, fanout=0, depth=2, leaf=64, offset=offset, inner=64)
    assert got == expected.digest()


@pytest.mark.parametrize("seed", [bytes(64), COUNTING])
def test_the_plain_words_are_those_of_seals_generator(seed: bytes) -> None:
    generator = seal.Blake2xbPRNG(list(struct.unpack("<8Q", seed)))
    halves = [generator.generate() for _ in range(2 * 600)]
    words = [low | high << 32 for low, high in zip(halves[::2], halves[1::2], strict=True)]
    assert list(islice(blake2xb_words(seed), 600)) == words


@settings(deadline=None, max_examples=15)
@given(SEEDS, st.sampled_from([8, 64, 256]))
def test_expansion_is_the_plain_one(seed: bytes, degree: int) -> None:
    moduli = PRIVATE.data_moduli
    assert expand(seed, degree, moduli).tolist() == expanded_plainly(seed, degree, moduli)


@settings(deadline=None, max_examples=15)
@given(SEEDS, st.sampled_from([64, 100, 250]), st.integers(1, 3))
@example(COUNTING, 512, 1)  # the first block is used up exactly
@example(COUNTING, 512, 3)
def test_words_that_would_bias_are_redrawn_in_order(seed: bytes, degree: int, count: int) -> None:
    moduli = (ABOVE_HALF, ABOVE_HALF + 2, 3 * 2**61)[:count]
    expected = expanded_plainly(seed, degree, moduli)
    unbiased = list(islice(blake2xb_words(seed), degree))
    assert expected[0] != [word % moduli[0] for word in unbiased], "nothing was redrawn"
    # Residues of such moduli have 64 bits; what expand returns of them is their low half.
    low = [[residue & 0xFFFFFFFF for residue in row] for row in expected]
    assert expand(seed, degree, moduli).tolist() == low


@settings(deadline=None, max_examples=15)
@given(SEEDS)
def test_the_first_word_that_is_redrawn(seed: bytes) -> None:
    first, *following = islice(blake2xb_words(seed), 40)
    assume(first >= 2**63)
    # Of the moduli above 2^63 only modulus-1 words are kept: 0 to modulus-2.
    kept = next(word for word in following if word < first)
    for modulus, expected in ((first + 2, first), (first + 1, kept)):
        assert expand(seed, 1, (modulus,)).tolist() == [[expected & 0xFFFFFFFF]]


# --- what else expansion promises


def test_residues_are_uniform_below_the_modulus() -> None:
    q = np.array(PRIVATE.data_moduli)[:, None]
    expanded: U32 = expand(COUNTING, 4096, PRIVATE.data_moduli)
    assert (expanded < q).all()
    # The mean of 4,096 uniform residues: a standard deviation is 0.0045 of the modulus.
    assert np.abs((expanded / q).mean(axis=1) - 0.5).max() < 0.03


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.integers(0, 511))
def test_every_bit_of_the_seed_counts(seed: bytes, bit: int) -> None:
    other = bytearray(seed)
    other[bit // 8] ^= 1 << bit % 8
    here, there = (expand(one, 64, FAST.data_moduli) for one in (seed, bytes(other)))
    assert (here != there).mean() > 0.95


@settings(deadline=None)
@given(st.binary(max_size=200).filter(lambda seed: len(seed) != 64))
@example(b"")
@example(bytes(63))
@example(bytes(65))
def test_a_seed_of_another_length_is_refused(seed: bytes) -> None:
    with pytest.raises(MalformedMessage, match=f"64 bytes, got {len(seed)}$"):
        expand(seed, 64, FAST.data_moduli)
