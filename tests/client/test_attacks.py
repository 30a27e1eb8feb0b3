"""The two leaks of textbook encrypted search, tried on this engine's real replies.

Each attack is also run with the defence taken away inside the test, where it must succeed: so
an attack that fails because it is a bad attack is noticed.
"""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from client.institution.kernels import rerandomise
from client.institution.packed import PackedIndex, write_packed
from client.institution.question import Question
from client.institution.randomness import Mask, Stream
from client.searcher.ckks import SealScheme
from protocol.packing import Layout
from protocol.params import PRIVATE
from protocol.ring import U32, ring
from protocol.scheme import EncryptedScores, SecretKey, Seeded
from protocol.seeds import expand

LAYOUT = Layout(PRIVATE, 32, 32, 128)
RING = ring(PRIVATE.ring_degree, PRIVATE.data_moduli)
Floats = NDArray[np.float32]


@pytest.fixture(scope="module")
def items() -> Floats:
    rows = np.random.default_rng(3).standard_normal((128, 32)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def blocks(items: Floats, tmp_path_factory: pytest.TempPathFactory) -> U32:
    path: Path = tmp_path_factory.mktemp("index") / "packed.bin"
    write_packed(path, LAYOUT, items)
    return PackedIndex(path).blocks


def ask(items: Floats) -> tuple[SecretKey, list[Seeded]]:
    key = SealScheme().keygen(PRIVATE)
    return key, key.encrypt_query(LAYOUT.question_polynomials(items[7]))


def unflooded(scores: int) -> Mask:
    keys = (1, LAYOUT.public_keys, PRIVATE.ring_degree)
    error = np.zeros((1, PRIVATE.ring_degree), np.int8)
    return Mask(np.zeros(keys, np.int8), error, np.zeros((1, scores), np.int64))


def mean_cosine(found: NDArray[np.float64], items: Floats) -> float:
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(items, axis=1)
    return float(((found * items).sum(1) / np.maximum(lengths, 1e-12)).mean())


def as_items(polynomial: NDArray[np.float64]) -> NDArray[np.float64]:
    return polynomial.reshape(128, 32)[:, ::-1]


def divide_by_known(c1: U32, question_c1: U32) -> NDArray[np.float64]:
    """The ratio attack: c1' = c1 * p pointwise, and the searcher knows c1. Modulo one prime."""
    modulus = PRIVATE.data_moduli[0]
    ratio = [
        int(a) * pow(int(b), -1, modulus) % modulus for a, b in zip(c1, question_c1, strict=True)
    ]
    one = ring(PRIVATE.ring_degree, (modulus,))
    polynomial = np.array(ratio, np.uint32)[None]
    one.inverse(polynomial)
    centred = polynomial[0].astype(np.float64)
    centred[centred > modulus / 2] -= modulus
    return as_items(centred)


def test_ratio_leak_before_masking_gives_every_embedding(blocks: U32, items: Floats) -> None:
    key, chunks = ask(items)
    sums = Question(LAYOUT, key.public_keys(LAYOUT.public_keys), chunks).multiply(blocks)
    known = expand(chunks[0].seed, PRIVATE.ring_degree, PRIVATE.data_moduli)
    assert mean_cosine(divide_by_known(sums[0, 1, 0], known[0]), items) > 0.99


def test_ratio_leak_after_masking_gives_nothing(blocks: U32, items: Floats) -> None:
    """The same sums with a fresh Enc(0) added; what is sent is these, rounded on top."""
    key, chunks = ask(items)
    keys = key.public_keys(LAYOUT.public_keys)
    known = expand(chunks[0].seed, PRIVATE.ring_degree, PRIVATE.data_moduli)
    sums = Question(LAYOUT, keys, chunks).multiply(blocks)
    pairs = [[one.c0, expand(one.seed, RING.degree, PRIVATE.data_moduli)] for one in keys]
    rerandomise(
        sums,
        RING.to_montgomery(np.array(pairs, np.uint32)),
        Stream().mask(1, LAYOUT).ternary,
        RING.moduli,
        RING.negated_inverses,
        RING.montgomery,
        RING.roots,
        RING.root_quotients,
    )
    assert mean_cosine(divide_by_known(sums[0, 1, 0], known[0]), items) < 0.1


def constant(value: int) -> U32:
    """A constant polynomial of any size, in NTT form."""
    return np.array([[value % q] * RING.degree for q in PRIVATE.data_moduli], np.uint32)


DIGITS = 12
"""Ternary digits of masks that a crafted key can put into one flooded score of `private`."""


@pytest.mark.parametrize(("honest_number_of_keys", "exposed"), [(False, True), (True, False)])
def test_crafted_public_keys_do_not_unmask_a_reply(
    tmp_path: Path, honest_number_of_keys: bool, exposed: bool
) -> None:
    """Chosen b: constants 2^60 * 3^i make every score spell out digits of the masks.

    At chunk width 1 all coefficients are scores, so with one key (or twelve) the attacker reads
    the masks whole and takes them off c1. The number of keys that is asked for leaves some over.
    """
    layout = Layout(PRIVATE, 2, 1, 4096)
    rows = np.random.default_rng(5).standard_normal((4096, 2)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    write_packed(tmp_path / "packed.bin", layout, rows)
    count = layout.public_keys if honest_number_of_keys else DIGITS
    crafted = [2**60 * 3**i if i < DIGITS else 0 for i in range(count)]
    keys = [Seeded(constant(b), bytes([i]) * 64) for i, b in enumerate(crafted)]
    zero = np.zeros((3, RING.degree), np.uint32)
    chunks = [Seeded(zero, bytes([200 + g]) * 64) for g in range(2)]
    question = Question(layout, keys, chunks)
    sums = question.multiply(PackedIndex(tmp_path / "packed.bin").blocks[:])
    drawn = Stream().mask(1, layout)
    drawn = Mask(drawn.ternary[:, :count], drawn.error, drawn.flood)
    reply = question.mask(0, sums.copy(), drawn)

    spelled = reply.c0[0].astype(np.int64)
    spelled[spelled > PRIVATE.reply_modulus // 2] -= PRIVATE.reply_modulus
    step = 2**60 / (PRIVATE.data_modulus // PRIVATE.reply_modulus)
    number = np.rint(spelled / step).astype(np.int64)
    read = np.zeros((1, count, RING.degree), np.int8)
    for i in range(DIGITS):
        digit = (number + 1) % 3 - 1
        read[0, i], number = digit, (number - digit) // 3
    assert np.array_equal(read[:, :DIGITS], drawn.ternary[:, :DIGITS]), "the masks are read"

    quiet = Mask(read, np.zeros_like(drawn.error), np.zeros_like(drawn.flood))
    guess = question.mask(0, sums.copy(), quiet).c1[0].astype(np.int64)
    gap = np.abs(reply.c1[0].astype(np.int64) - guess)
    gap = np.minimum(gap, PRIVATE.reply_modulus - gap)
    agreeing = float((gap <= 1).mean())
    assert agreeing > 0.99 if exposed else agreeing < 0.01


def other_coefficients(key: SecretKey, reply_c0: U32, reply_c1: U32) -> NDArray[np.float64]:
    """Decrypt all N coefficients of a reply whose c0 is whole."""
    whole = Layout(PRIVATE, 1, 1, 4096)
    return key.decrypt_scores(whole, EncryptedScores(0, reply_c0[None], reply_c1[None]))[0]


def test_slot_leak_partial_sums_never_leave(blocks: U32, items: Floats) -> None:
    """Other coefficients hold partial sums of q*x; with c0 whole they give x, so c0 is cut.

    The attack: coefficient k*d2 + j of the product holds sums over part of an item's
    coordinates. For a question of one coordinate it is the item itself, reversed.
    """
    key = SealScheme().keygen(PRIVATE)
    one_coordinate = np.zeros(32, np.float32)
    one_coordinate[0] = 1.0
    chunks = key.encrypt_query(LAYOUT.question_polynomials(one_coordinate))
    question = Question(LAYOUT, key.public_keys(LAYOUT.public_keys), chunks)

    keys = key.public_keys(LAYOUT.public_keys)
    whole = Question(Layout(PRIVATE, 32, 1, 4096), keys, chunks * 32)
    leaky = whole.mask(0, question.multiply(blocks), unflooded(4096))
    found = other_coefficients(key, leaky.c0[0], leaky.c1[0])
    assert mean_cosine(as_items(found), items) > 0.99, "c0 whole would leak every item"

    honest = question.answer(blocks, 0)
    assert honest.c0.shape == (1, 128), "one coefficient of c0 for each item, no other"
    padded = np.zeros(4096, np.uint32)
    padded[31::32] = honest.c0[0]
    found = as_items(other_coefficients(key, padded, honest.c1[0]))
    assert mean_cosine(found[:, 1:], items[:, 1:]) < 0.1


def test_flooding_covers_computation_noise(blocks: U32, items: Floats) -> None:
    """The noise of an unflooded score, measured, stays below its derived bound."""
    key, chunks = ask(items)
    question = Question(LAYOUT, key.public_keys(LAYOUT.public_keys), chunks)
    exact = np.rint(items.astype(np.float64) * 2**PRIVATE.item_scale_bits)
    asked = np.rint(items[7].astype(np.float64) * 2.0**PRIVATE.query_scale_bits)
    reply = question.mask(0, question.multiply(blocks), unflooded(128))
    scores = key.decrypt_scores(LAYOUT, reply)[0]
    noise = (scores - exact @ asked / 2.0**PRIVATE.score_scale_bits) * PRIVATE.reply_scale
    # After switching down what is left is rounding (6 sigma of sqrt(2N/3/12 + 1/12)): the
    # computation noise itself is below one unit of the reply.
    assert np.abs(noise).max() < 6 * np.sqrt(4096 * 2 / 3 / 12) + 1
