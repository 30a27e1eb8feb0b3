"""What a searcher may try, tried on this engine's real replies.

Each attack is also run with the defence taken away inside the test, where it must succeed: so
an attack that fails because it is a bad attack is noticed. docs/protocol.md, section 6.3.
"""

from dataclasses import replace
from math import log2, sqrt

import numpy as np
import pytest
from numpy.typing import NDArray

from client.institution.question import Question
from client.institution.randomness import Mask, Stream
from client.searcher.ckks import SealKey
from protocol.blindsight.v1 import retrieval_pb2 as pb
from protocol.errors import MalformedMessage
from protocol.packing import Layout
from protocol.params import PRIVATE
from protocol.ring import U32, ring
from protocol.scheme import EncryptedScores, Seeded
from protocol.wire import IndexDescription, parse_score_request, score_request
from tests.client.lattice import solve
from tests.client.oracle import (
    Integers,
    centred,
    coefficients,
    decrypted,
    inner_products,
    masked,
    ntt_form,
    pair,
    ring_of,
)
from tests.client.unit_items import Items, packed, unit_vectors

Floats = NDArray[np.float64]

LAYOUT = Layout(PRIVATE, 32, 32, 4096)
WHOLE = Layout(PRIVATE, 1, 1, 4096)
"""Of a reply with every coefficient of c0 in it."""
RING = ring_of(PRIVATE)
Q, N = PRIVATE.data_modulus, PRIVATE.ring_degree
FLOOD = 2**PRIVATE.flood_bits


@pytest.fixture(scope="module")
def items() -> Items:
    return unit_vectors(4096, 32)


@pytest.fixture(scope="module")
def blocks(items: Items) -> U32:
    return packed(LAYOUT, items)


def without(mask: Mask, *parts: str) -> Mask:
    """The mask with the defence taken out."""
    return replace(mask, **{part: np.zeros_like(getattr(mask, part)) for part in parts})


def encrypted(key: SealKey, polynomials: Integers) -> list[Seeded]:
    """Encrypt integers of any size modulo Q [d1, N]: what no honest encoder makes."""
    zeros = key.encrypt_query(np.zeros(polynomials.shape, np.int64))
    added = ntt_form(polynomials, PRIVATE)
    total = [
        (zero.c0.astype(np.uint64) + one) % RING.moduli[:, None]
        for zero, one in zip(zeros, added, strict=True)
    ]
    return [Seeded(c0.astype(np.uint32), zero.seed) for c0, zero in zip(total, zeros, strict=True)]


def constant(value: int) -> U32:
    """A constant polynomial of any size, in NTT form."""
    return np.array([[value % q] * N for q in PRIVATE.data_moduli], np.uint32)


def correlation(one: Floats, other: Floats) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def mean_cosine(found: Floats, items: Items) -> float:
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(items, axis=1)
    return float(((found * items).sum(1) / np.maximum(lengths, 1e-12)).mean())


def as_items(polynomial: Floats) -> Floats:
    """The items that a block's polynomial of d2 = 32 holds, float64 [128, 32]."""
    return polynomial.reshape(128, 32)[:, ::-1]


# --- the ratio leak: c1' = c1 * p, and the searcher knows c1


def ratio(c1: U32, known: U32, modulus: int) -> Floats:
    """Divide NTT forms [N] modulo one prime: the coefficients of c1 / known, centred."""
    inverse = [pow(int(b), -1, modulus) for b in known]
    polynomial = (c1.astype(np.uint64) * np.array(inverse, np.uint64) % np.uint64(modulus)).astype(
        np.uint32
    )[None]
    ring(N, (modulus,)).inverse(polynomial)
    return centred(polynomial[0].astype(object), modulus).astype(np.float64)


def divisible(key: SealKey, polynomials: NDArray[np.int64]) -> tuple[list[Seeded], U32]:
    """A question, and its ``a`` modulo the first prime: one that can be divided by.

    In one question of 30,000 some residue of ``a`` is 0: that one is asked again.
    """
    while True:
        chunks = key.encrypt_query(polynomials)
        known = pair(chunks[0], PRIVATE)[1, 0]
        if known.all():
            return chunks, known


def test_ratio_leak(blocks: U32, items: Items) -> None:
    """Bare sums give every embedding by one division; masked ones, and the reply, give none.

    The reply is the masked sums, rounded: so the engine's masks are these, and nothing else.
    """
    modulus, key = PRIVATE.reply_modulus, SealKey(PRIVATE)
    chunks, known = divisible(key, LAYOUT.question_polynomials(items[7]))
    keys = key.public_keys(2)
    question, mask = Question(LAYOUT, keys, chunks), Stream().mask(1, LAYOUT)
    lanes = question.multiply(blocks[:1])
    sums = RING.to_seal_order(lanes)
    hidden = masked(sums, keys, mask, PRIVATE)
    reply = question.mask(0, lanes, mask)

    c1 = reply.lifted(PRIVATE, modulus)[1][:, None].copy()
    ring(N, (modulus,)).forward(c1)
    first = items[:128]
    assert mean_cosine(as_items(ratio(sums[0, 1, 0], known, modulus)), first) > 0.99
    assert mean_cosine(as_items(ratio(hidden[0, 1, 0], known, modulus)), first) < 0.1
    assert mean_cosine(as_items(ratio(c1[0, 0], known, modulus)), first) < 0.1

    exact = coefficients(hidden, PRIVATE)[0]
    exact[0, 31::32] += mask.flood[0]
    sent = zip(
        (reply.c0[0], reply.c1[0]), (exact[0, 31::32], exact[1]), PRIVATE.reply_moduli, strict=True
    )
    for found, integers, modulus in sent:
        gap = centred(found.astype(object) - (integers * modulus + Q // 2) // Q, modulus)
        assert np.abs(gap).max() <= 1
        assert (gap == 0).mean() > 0.9


# Rounding alone hides a full block, of which a division finds nothing. It does not hide a block
# of which all items but a few are known: those few are a small lattice problem.

SPARSE = Layout(PRIVATE, 8, 8, 512 * 512)


@pytest.fixture(scope="module")
def sparse_items() -> Items:
    """512 blocks of which the searcher knows all items but the first: here, that they are zero."""
    rows = np.zeros((512, 512, 8), np.float32)
    rows[:, 0] = unit_vectors(512, 8)
    return rows.reshape(-1, 8)


@pytest.fixture(scope="module")
def sparse(sparse_items: Items) -> U32:
    return packed(SPARSE, sparse_items)


def unknown_items(c1: U32, ciphertext: U32) -> Floats:
    """Recover the first item of each block from c1 [m, N] and the question's own c1 [k, N].

    Coefficient t of c1 is the sum of x_i * a[t - (7 - i)] over the item's eight coordinates.
    """
    a = coefficients(ciphertext, PRIVATE)
    equations = np.arange(100, 112)
    shifted = np.array([a[equations - (7 - i)] for i in range(8)], object)
    step = Q / PRIVATE.reply_moduli[1]
    matrix = (shifted / step).astype(np.float64)
    modulus = float(PRIVATE.reply_moduli[1])
    return solve(matrix, c1[:, equations].astype(np.float64), modulus, 2.0**PRIVATE.item_scale_bits)


def cosines_from_c1(sparse: U32, keys: list[Seeded], chunks: list[Seeded]) -> tuple[float, float]:
    """Recovered cosine without the masks, and with them, from otherwise real replies."""
    question, mask = Question(SPARSE, keys, chunks), Stream().mask(len(sparse), SPARSE)
    sums, known, truth = (
        question.multiply(sparse),
        pair(chunks[0], PRIVATE)[1],
        unit_vectors(512, 8),
    )
    bare = question.mask(0, sums.copy(), without(mask, "ternary", "error"))
    real = question.mask(0, sums, mask)
    return (
        mean_cosine(unknown_items(bare.c1, known), truth),
        mean_cosine(unknown_items(real.c1, known), truth),
    )


def test_rounding_alone_is_no_defence(sparse: U32) -> None:
    """An honest question: c1' = c1 * p rounded to 25 bits, and a lattice finds p behind it.

    What bounds it is the mask, u * a + e1 for every key: c1' is then an RLWE sample.
    """
    key = SealKey(PRIVATE)
    chunks = key.encrypt_query(SPARSE.question_polynomials(unit_vectors(1, 8)[0]))
    bare, real = cosines_from_c1(sparse, key.public_keys(SPARSE.public_keys), chunks)
    assert bare > 0.99
    assert real < 0.1


def test_replies_share_no_mask(sparse: U32) -> None:
    """Two questions under one mask: it drops out of the difference of the replies.

    Every run of blocks draws its own masks, so the difference is masked twice.
    """
    key = SealKey(PRIVATE)
    keys = key.public_keys(SPARSE.public_keys)
    polynomials = SPARSE.question_polynomials(unit_vectors(1, 8)[0])
    chunks = [key.encrypt_query(polynomials) for _ in range(2)]
    questions = [Question(SPARSE, keys, one) for one in chunks]
    first, second = (pair(one[0], PRIVATE)[1].astype(np.int64) for one in chunks)
    known = ((first - second) % RING.moduli.astype(np.int64)[:, None]).astype(np.uint32)

    def recovered(replies: list[EncryptedScores]) -> float:
        c1, other = (reply.c1.astype(np.int64) for reply in replies)
        difference = ((c1 - other) % PRIVATE.reply_moduli[1]).astype(np.uint32)
        return mean_cosine(unknown_items(difference, known), unit_vectors(512, 8))

    shared = Stream().mask(len(sparse), SPARSE)
    assert recovered([one.mask(0, one.multiply(sparse), shared) for one in questions]) > 0.99
    assert recovered([one.answer(sparse, 0) for one in questions]) < 0.1


# --- the slot leak: other coefficients than scores hold partial sums


def other_coefficients(key: SealKey, reply: EncryptedScores) -> Floats:
    """Decrypt all N coefficients of a reply of one block whose c0 is whole."""
    return np.asarray(key.decrypt_scores(WHOLE, reply)[0], np.float64)


def test_slot_leak(blocks: U32, items: Items) -> None:
    """For a question of one coordinate the coefficients between the scores are the item itself.

    They are so in the sums, and in a reply that is masked, flooded and switched down whole.
    What bounds it: one coefficient of c0 leaves for each item; without c0 the rest is c1 * s.
    """
    key, first = SealKey(PRIVATE), items[:128]
    asked = LAYOUT.question_polynomials(np.eye(1, 32, dtype=np.float32)[0])
    chunks = key.encrypt_query(asked)
    keys = key.public_keys(WHOLE.public_keys)
    question = Question(LAYOUT, keys[:2], chunks)
    sums = question.multiply(blocks[:1])
    inside = decrypted(key, RING.to_seal_order(sums), PRIVATE)[0].astype(np.float64)
    assert mean_cosine(as_items(inside), first) > 0.99

    whole = Question(WHOLE, keys, chunks).mask(0, sums, Stream().mask(1, WHOLE))
    found = as_items(other_coefficients(key, whole))
    assert mean_cosine(found, first) > 0.99, "c0 whole would leak every item"

    honest = question.answer(blocks[:1], 0)
    assert honest.c0.shape == (1, 128), "one coefficient of c0 for each item, no other"
    padded = np.zeros((1, N), np.uint32)
    padded[:, 31::32] = honest.c0
    found = as_items(other_coefficients(key, EncryptedScores(0, padded, honest.c1)))
    assert correlation(found[:, 0], first[:, 0].astype(np.float64)) > 0.99, "the scores"
    assert mean_cosine(found[:, 1:], first[:, 1:]) < 0.1


# --- chosen c0


def test_a_question_of_zeros(sparse: U32, sparse_items: Items) -> None:
    """c0 = 0 gives the searcher c0' = sum u*b + flooding: the same bits whatever is indexed.

    c1' = a*p + sum u*a + e1 is what it is for an honest question, and what bounds it is the same.
    """
    key = SealKey(PRIVATE)
    keys = key.public_keys(SPARSE.public_keys)
    zeros = [Seeded(np.zeros((3, N), np.uint32), bytes(range(64)))]
    question, mask = Question(SPARSE, keys, zeros), Stream().mask(1, SPARSE)
    other = packed(SPARSE, -sparse_items[:512])
    one, two = (question.mask(0, question.multiply(x), mask) for x in (sparse[:1], other))
    assert np.array_equal(one.c0, two.c0)
    assert not np.array_equal(one.c1, two.c1)
    bare, real = cosines_from_c1(sparse, keys, zeros)
    assert bare > 0.99
    assert real < 0.1


def test_a_constant_question_under_public_keys_of_zero(
    sparse: U32, blocks: U32, items: Items
) -> None:
    """b = 0 takes the masks off c0, and c0 = 2^60 shows the first coordinate of each item bare.

    That is what an honest question of (1, 0, 0, ...) gives, to the same precision. The other
    coefficients, which would be the other coordinates, do not leave (slot leak). c1 stays
    masked: every ``a`` is the expansion of a seed, whatever b is.
    """
    zero = np.zeros((3, N), np.uint32)
    keys = [Seeded(zero, bytes([i]) * 64) for i in range(WHOLE.public_keys)]
    chunks = [Seeded(constant(2**PRIVATE.query_scale_bits), bytes(range(64)))]

    def bare(reply: EncryptedScores) -> Floats:
        modulus = PRIVATE.reply_modulus
        found = centred(reply.lifted(PRIVATE, modulus)[0][0].astype(object), modulus)
        return found.astype(np.float64) / PRIVATE.reply_scale

    first, question = items[:128], Question(LAYOUT, keys[:2], chunks)
    sums = question.multiply(blocks[:1])
    whole = Question(WHOLE, keys, chunks).mask(0, sums, Stream().mask(1, WHOLE))
    assert mean_cosine(as_items(bare(whole)), first) > 0.99, "c0 whole would leak every item"

    found = bare(question.answer(blocks[:1], 0))
    assert found.shape == (128,)
    # Item rounding, flooding, and a unit of c0.
    assert np.abs(found - first[:, 0]).max() < 2.0**-18 + 2 * FLOOD / 2.0**PRIVATE.score_scale_bits
    exposed, hidden = cosines_from_c1(sparse, keys[: SPARSE.public_keys], chunks)
    assert exposed > 0.99
    assert hidden < 0.1


def answers(question: Question, blocks: U32, key: SealKey) -> Integers:
    """Real replies, decrypted: scores [n] as integers modulo Q, as far as they are told."""
    scores = key.decrypt_scores(LAYOUT, question.answer(blocks, 0)).reshape(-1)
    return np.array([int(score) for score in scores * 2.0**PRIVATE.score_scale_bits], object)


def readable_bits(noise: Integers) -> float:
    """Bits of a score that uniform noise of the same spread would leave."""
    return log2(Q / (noise.astype(np.float64).std() * sqrt(12)))


@pytest.mark.parametrize("more", [0, 7, 14, 20])
def test_a_larger_scale_reads_other_bits_and_not_more(more: int, blocks: U32, items: Items) -> None:
    """A question at 2^more times its scale: the score wraps around, and lower bits come up.

    So the searcher chooses which bits of a score it sees. It sees log2(Q) - flood - 1 = 21 of
    them at most, at any scale: of what lies below the flooding's width of 2^59 the reply says
    nothing, for uniform noise of that width makes the rest modulo 2^59 uniform.
    """
    key = SealKey(PRIVATE)
    asked = np.asarray(LAYOUT.question_polynomials(items[7]).astype(object) * 2**more, object)
    question = Question(LAYOUT, key.public_keys(2), encrypted(key, asked))
    scores = inner_products(items, asked[0, :32], LAYOUT)

    def locked(found: Integers, period: int) -> float:
        """1 if the rest modulo ``period`` follows the true one, 0 if it knows nothing of it."""
        turns = (centred(found - scores, Q) % period / period).astype(np.float64)
        return float(np.abs(np.exp(2j * np.pi * turns).mean()))

    sums = decrypted(key, RING.to_seal_order(question.multiply(blocks)), PRIVATE)[
        :, 31::32
    ].reshape(-1)
    flooded = sums + Stream().mask(len(blocks), LAYOUT).flood.reshape(-1)
    real = answers(question, blocks, key)
    by_chance = 5 / sqrt(len(scores))
    for period in (2 * FLOOD, FLOOD, FLOOD >> 10):
        assert locked(sums, period) > 0.99, "bare sums tell these bits"
        assert locked(flooded, period) < by_chance, "flooding alone hides them"
        assert locked(real, period) < by_chance
    assert readable_bits(centred(sums - scores, Q)) > 40
    capacity = PRIVATE.score_capacity_bits
    assert capacity - 4 < readable_bits(centred(real - scores, Q)) <= capacity


def test_several_coordinates_in_one_score(items: Items) -> None:
    """Weights Q/4, Q/8, Q/16, ... put the signs of many coordinates into one number.

    Of sign vectors (1 bit a coordinate) an honest question reads a sum, this one reads the first
    coordinates each by itself: as many as a score has bits, 21 at most, and no more.
    """
    signs = np.where(items > 0, 1, -1).astype(object)
    codes = (signs / sqrt(32)).astype(np.float32)
    magnitude = round(float(codes.max()) * 2**PRIVATE.item_scale_bits)
    weights = [Q // 4 // magnitude >> j for j in range(32)]
    asked = np.zeros((1, N), object)
    asked[0, :32] = weights
    key, blocks = SealKey(PRIVATE), packed(LAYOUT, codes)
    question = Question(LAYOUT, key.public_keys(2), encrypted(key, asked))

    def bits_read(found: Integers) -> float:
        """Information of all coordinates, each read when the ones before it are known."""
        total = 0.0
        for j, weight in enumerate(weights):
            wrong = float((np.where(found > 0, 1, -1) != signs[:, j]).mean())
            total += 1 - (
                -wrong * log2(wrong) - (1 - wrong) * log2(1 - wrong) if 0 < wrong < 1 else 0
            )
            found = centred(found - signs[:, j] * weight * magnitude, Q)
        return total

    sums = decrypted(key, RING.to_seal_order(question.multiply(blocks)), PRIVATE)
    assert bits_read(sums[:, 31::32].reshape(-1)) == 32, "bare sums give the whole item"
    assert 16 < bits_read(answers(question, blocks, key)) <= PRIVATE.score_capacity_bits


# --- chosen public keys


DIGITS = 12
"""Ternary digits of masks that a crafted key can put into one flooded score of `private`."""
BARE = Layout(PRIVATE, 2, 1, 4096)
"""Every coefficient of c0 is a score: the best case for reading masks."""


def agreement(question: Question, sums: U32, reply: EncryptedScores, read: Mask) -> float:
    """The share of c1 that is explained by a guess of the masks: 1 where they are known."""
    guess = question.mask(0, sums.copy(), read).c1.astype(np.int64)
    gap = centred((reply.c1.astype(np.int64) - guess).astype(object), PRIVATE.reply_moduli[1])
    return float((np.abs(gap) <= 1).mean())


def as_number(reply: EncryptedScores, step: int) -> NDArray[np.int64]:
    """Scores of one block as multiples of ``step``, int64 [N]."""
    residues = centred(reply.c0[0].astype(object), PRIVATE.reply_moduli[0])
    exact = residues * (Q / PRIVATE.reply_moduli[0] / step)
    return np.asarray(np.rint(exact.astype(np.float64)), np.int64)


@pytest.mark.parametrize(("keys", "exposed"), [(DIGITS, True), (BARE.public_keys, False)])
def test_crafted_public_keys_do_not_unmask_a_reply(keys: int, exposed: bool) -> None:
    """Chosen b: constants Q/3^12 * 3^i make every score spell out digits of the masks.

    At chunk width 1 all coefficients are scores, so with twelve keys the attacker reads the
    masks whole and takes them off c1. The number of keys that is asked for leaves some over.
    """
    blocks, step = packed(BARE, unit_vectors(4096, 2)), Q // 3**DIGITS
    crafted = [step * 3**i if i < DIGITS else 0 for i in range(keys)]
    public = [Seeded(constant(b), bytes([i]) * 64) for i, b in enumerate(crafted)]
    zero = np.zeros((3, N), np.uint32)
    question = Question(BARE, public, [Seeded(zero, bytes([200 + g]) * 64) for g in range(2)])
    drawn = Stream().mask(1, BARE)
    drawn = replace(drawn, ternary=np.ascontiguousarray(drawn.ternary[:, :keys]))
    sums = question.multiply(blocks)
    reply = question.mask(0, sums.copy(), drawn)

    number, read = as_number(reply, step), np.zeros_like(drawn.ternary)
    for i in range(DIGITS):
        read[0, i] = digit = (number + 1) % 3 - 1
        number = (number - digit) // 3
    assert np.array_equal(read[:, :DIGITS], drawn.ternary[:, :DIGITS]), "the masks are read"
    quiet = replace(without(drawn, "error", "flood"), ternary=read)
    agreeing = agreement(question, sums, reply, quiet)
    assert agreeing > 0.99 if exposed else agreeing < 0.01


@pytest.mark.parametrize(("seeds", "exposed"), [(1, True), (BARE.public_keys, False)])
def test_public_keys_of_one_seed_would_unmask_a_reply(seeds: int, exposed: bool) -> None:
    """One seed for all keys, and b constant: the mask is (sum u_i) * (b, a), one polynomial.

    Its coefficients are a number from -15 to 15 each, which a score tells whole: the masks come
    off. With a seed for each key the same scores tell the sum and not what c1 needs.
    """
    keys, blocks = BARE.public_keys, packed(BARE, unit_vectors(4096, 2))
    step, zero = Q // (2 * keys + 2), np.zeros((3, N), np.uint32)
    public = [Seeded(constant(step), bytes([i % seeds]) * 64) for i in range(keys)]
    question = Question(BARE, public, [Seeded(zero, bytes([200 + g]) * 64) for g in range(2)])
    drawn, sums = Stream().mask(1, BARE), question.multiply(blocks)
    reply = question.mask(0, sums.copy(), drawn)
    read = np.zeros_like(drawn.ternary)
    read[0, 0] = as_number(reply, step)
    assert np.array_equal(read.sum(1), drawn.ternary.sum(1)), "the sum of the masks is read"
    quiet = replace(without(drawn, "error", "flood"), ternary=read)
    agreeing = agreement(question, sums, reply, quiet)
    assert agreeing > 0.99 if exposed else agreeing < 0.01


@pytest.mark.parametrize("length", [0, 63, 65])
@pytest.mark.parametrize("kind", ["public_keys", "chunks"])
def test_a_seed_of_another_length_is_refused(length: int, kind: str) -> None:
    """A seed is all that the searcher says of ``a``; of another length it says more, or less."""
    message, described = honest_message()
    parse_score_request(message, described)
    getattr(message, kind)[0].seed = bytes(length)
    with pytest.raises(MalformedMessage, match="a seed has 64 bytes"):
        parse_score_request(message, described)


@pytest.mark.parametrize(("one", "other"), [((0, 0), (0, 1)), ((0, 0), (1, 0)), ((1, 0), (1, 1))])
def test_a_seed_twice_is_refused(one: tuple[int, int], other: tuple[int, int]) -> None:
    """Twice among keys unmasks a reply (above). A key's seed on a chunk makes c1 = (p + u) * a:
    no attack is known, but masks and question are then not independent, as the bound assumes."""
    message, described = honest_message()
    ciphertexts = (message.public_keys, message.chunks)
    ciphertexts[one[0]][one[1]].seed = ciphertexts[other[0]][other[1]].seed
    with pytest.raises(MalformedMessage, match="a seed of its own"):
        parse_score_request(message, described)


def honest_message() -> tuple[pb.ScoreRequest, IndexDescription]:
    layout = Layout(PRIVATE, 64, 32, 128)
    described = IndexDescription("museum", "0123456789abcdef", 1, layout)
    key = SealKey(PRIVATE)
    chunks = key.encrypt_query(layout.question_polynomials(unit_vectors(1, 64)[0]))
    return score_request(described, key.public_keys(layout.public_keys), chunks), described


# --- replays and mixtures


def test_replays_lower_the_noise_by_the_root_of_their_number(blocks: U32, items: Items) -> None:
    """The same message 16 times: 16 independent replies, whose mean has a quarter of the noise.

    It gives two bits of a score more, as 16 other questions would: a budget must count replays.
    In privacy, m replies lose log2(m) bits of the distance of section 6.2, as m scores do.
    If replies shared their noise, a second one would give nothing, and masks would drop out of
    differences (above).
    """
    key = SealKey(PRIVATE)
    asked = LAYOUT.question_polynomials(items[7]).astype(object)
    question = Question(LAYOUT, key.public_keys(2), encrypted(key, asked))
    scores = inner_products(items, asked[0, :32], LAYOUT)
    replies = [answers(question, blocks, key) for _ in range(16)]
    noise = np.array([centred(one - scores, Q) for one in replies]).astype(np.float64)
    among = np.corrcoef(noise) - np.eye(16)
    assert np.abs(among).max() < 6 / sqrt(len(scores)), "no two replies share noise"
    one, mean = noise.std(), noise.mean(0).std()
    assert mean == pytest.approx(one / 4, rel=0.1)
    # Of uniform noise the middle of the extremes tells more than the mean; rounding blunts it.
    middle = (noise.max(0) + noise.min(0)).std() / 2
    assert middle > mean * 0.9


def test_keys_of_one_pair_with_chunks_of_another(blocks: U32, items: Items) -> None:
    """The masks do not cancel under either key: what decrypts is noise, and nothing of items."""
    one, other = SealKey(PRIVATE), SealKey(PRIVATE)
    chunks = one.encrypt_query(LAYOUT.question_polynomials(items[7]))
    exact = (items @ items[7]).astype(np.float64)
    mixed = Question(LAYOUT, other.public_keys(2), chunks).answer(blocks, 0)
    for key in (one, other):
        assert abs(correlation(key.decrypt_scores(LAYOUT, mixed), exact)) < 0.1
    honest = Question(LAYOUT, one.public_keys(2), chunks).answer(blocks, 0)
    assert correlation(one.decrypt_scores(LAYOUT, honest), exact) > 0.99
