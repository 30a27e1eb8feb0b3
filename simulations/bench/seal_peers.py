"""TenSEAL and SEAL as they are commonly used for encrypted search: the peers of the engine.

Each answers one question, over plaintexts encoded beforehand where the library can. None
re-randomises its reply, so each gives more away than scores (docs/security.md). A sample is
measured: every document, call or block of a bigger index costs the same again.
"""

import time
from collections.abc import Callable, Sequence
from math import isqrt
from statistics import median
from typing import Any

import numpy as np
import tenseal
import tenseal.sealapi as seal
from numpy.typing import NDArray

from simulations.bench.peer import Peer, checked, spread

_TUTORIAL = {"poly_modulus_degree": 8192, "coeff_mod_bit_sizes": [60, 40, 40, 60]}
_TUTORIAL_SCALE = 2.0**40
_DEGREE, _BITS = 4096, [54, 55]
_QUESTION_SCALE, _ITEM_SCALE = 2.0**30, 2.0**22  # a score of 1.9 still fits into 54 bits
_DOT_SAMPLE, _REPEATS = 6, 3

Floats = NDArray[np.float32]


def seal_peers(
    vectors: Floats, question: Floats, threads: int, progress: Callable[[int], None]
) -> list[Peer]:
    """Measure all four on ``vectors`` float32 [n, dim] and ``question`` float32 [dim].

    Raises :class:`BlindsightError` if one of them does not decrypt to the right scores.
    """
    peers = []
    for measure in (_tenseal_dot, _tenseal_mm, _columns, _diagonals):
        peers.append(measure(vectors, question, threads))
        progress(len(peers))
    return peers


def _tenseal_question(question: Floats, threads: int) -> Any:
    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, **_TUTORIAL, n_threads=threads)
    context.global_scale = _TUTORIAL_SCALE
    context.generate_galois_keys()
    return tenseal.ckks_vector(context, question.tolist())


def _tenseal_dot(vectors: Floats, question: Floats, threads: int) -> Peer:
    """The tutorial: one encrypted inner product and one ciphertext for every document."""
    asked, sample = _tenseal_question(question, threads), vectors[:_DOT_SAMPLE]
    seconds, replies = zip(*(_timed(1, asked.dot, one.tolist()) for one in sample), strict=True)
    scores = np.array([reply.decrypt()[0] for reply in replies])
    told = f"{len(sample)} documents"
    return checked("TenSEAL dot", 1e6 * median(seconds), told, threads, scores, sample, question)


def _tenseal_mm(vectors: Floats, question: Floats, threads: int) -> Peer:
    """The encrypted question times a plaintext matrix with a document in every column."""
    batch = _TUTORIAL["poly_modulus_degree"] // 2  # type: ignore[operator]
    asked, sample = _tenseal_question(question, threads), vectors[:batch]
    matrix = tenseal.plain_tensor(sample.T.astype(np.float64))
    seconds, reply = _timed(1, asked.mm, matrix)
    scores = np.array(reply.decrypt())
    each = spread(seconds, batch, len(vectors))
    told = f"1 call, {len(sample):,} documents"
    return checked("TenSEAL mm", each, told, threads, scores, sample, question)


class _Seal:
    """A SEAL context without rescaling, one key, and what is needed to ask with it."""

    slots = _DEGREE // 2

    def __init__(self, steps: Sequence[int] = ()) -> None:
        parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
        parameters.set_poly_modulus_degree(_DEGREE)
        parameters.set_coeff_modulus(seal.CoeffModulus.Create(_DEGREE, _BITS))
        context = seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC128)
        keys = seal.KeyGenerator(context)
        self._encoder = seal.CKKSEncoder(context)
        self._encryptor = seal.Encryptor(context, keys.secret_key())
        self._decryptor = seal.Decryptor(context, keys.secret_key())
        self._evaluator = seal.Evaluator(context)
        self._rotations = seal.GaloisKeys()
        if steps:
            # SEAL takes Galois elements here, not steps.
            elements = [pow(3, step, 2 * _DEGREE) for step in steps]
            keys.create_galois_keys(elements, self._rotations)

    def encode(self, slots: NDArray[np.float64] | float, scale: float = _ITEM_SCALE) -> Any:
        plaintext = seal.Plaintext()
        values = slots.tolist() if isinstance(slots, np.ndarray) else slots
        self._encoder.encode(values, scale, plaintext)
        return plaintext

    def encrypt(self, slots: NDArray[np.float64] | float) -> Any:
        ciphertext = seal.Ciphertext()
        self._encryptor.encrypt_symmetric(self.encode(slots, _QUESTION_SCALE), ciphertext)
        return ciphertext

    def decrypt(self, ciphertext: Any) -> NDArray[np.float64]:
        plaintext = seal.Plaintext()
        self._decryptor.decrypt(ciphertext, plaintext)
        return np.array(self._encoder.decode_double(plaintext))

    def rotated(self, ciphertext: Any, step: int) -> Any:
        turned = seal.Ciphertext()
        self._evaluator.rotate_vector(ciphertext, step, self._rotations, turned)
        return turned

    def sum_of_products(self, ciphertexts: list[Any], plaintexts: list[Any]) -> Any:
        total, product = seal.Ciphertext(), seal.Ciphertext()
        self._evaluator.multiply_plain(ciphertexts[0], plaintexts[0], total)
        for ciphertext, plaintext in zip(ciphertexts[1:], plaintexts[1:], strict=True):
            self._evaluator.multiply_plain(ciphertext, plaintext, product)
            self._evaluator.add_inplace(total, product)
        return total

    def add(self, total: Any, more: Any) -> None:
        self._evaluator.add_inplace(total, more)


def _columns(vectors: Floats, question: Floats, threads: int) -> Peer:
    """A ciphertext for every coordinate of the question, a document in every slot."""
    engine, sample = _Seal(), vectors[: _Seal.slots].astype(np.float64)
    asked = [engine.encrypt(float(coordinate)) for coordinate in question]
    columns = [engine.encode(np.ascontiguousarray(column)) for column in sample.T]
    seconds, reply = _timed(_REPEATS, engine.sum_of_products, asked, columns)
    scores = engine.decrypt(reply)[: len(sample)]
    each = spread(seconds, engine.slots, len(vectors))
    told = f"1 block, {len(sample):,} documents"
    return checked("SEAL columns", each, told, 1, scores, vectors[: len(sample)], question)


def _diagonals(vectors: Floats, question: Floats, threads: int) -> Peer:
    """Generalised diagonals, baby steps and giant steps (Halevi and Shoup 2014).

    Slot k of the question's rotation by r meets coordinate ``(k+r) mod D`` of document k. The
    baby rotations are paid once a question, the giant ones once a block: the more blocks, the
    more of them are babies. A key for every step, since noise adds up along repeated steps.
    """
    items, dim = vectors.shape
    width = 1 << (dim - 1).bit_length()
    blocks = -(-items // _Seal.slots)
    babies = min(width, 1 << isqrt(width * blocks).bit_length() - 1)
    giants = range(0, width, babies)
    engine, sample = _Seal([*range(1, babies), *giants[1:]]), vectors[: _Seal.slots]
    rows = np.zeros((_Seal.slots, width))
    rows[:, :dim] = np.resize(sample, (_Seal.slots, dim))  # a block costs what a full one does
    place = np.arange(_Seal.slots)
    diagonals = [rows[place, (place + r) % width] for r in range(width)]
    plaintexts = [
        [engine.encode(np.roll(one, start)) for one in diagonals[start : start + babies]]
        for start in giants
    ]
    asked = np.zeros(width)
    asked[:dim] = question
    encrypted = engine.encrypt(np.tile(asked, _Seal.slots // width))

    def rotate() -> list[Any]:
        return [encrypted, *(engine.rotated(encrypted, step) for step in range(1, babies))]

    def answer(turned: list[Any]) -> Any:
        total = engine.sum_of_products(turned, plaintexts[0])
        for start, giant in zip(giants[1:], plaintexts[1:], strict=True):
            engine.add(total, engine.rotated(engine.sum_of_products(turned, giant), start))
        return total

    once, turned = _timed(_REPEATS, rotate)
    each_block, reply = _timed(_REPEATS, answer, turned)
    scores = engine.decrypt(reply)[: len(sample)]
    each = 1e6 * once / items + spread(each_block, _Seal.slots, items)
    told = f"1 block, {len(sample):,} documents"
    return checked("SEAL diagonals, BSGS", each, told, 1, scores, sample, question)


def _timed(repeats: int, function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    seconds = []
    for _ in range(repeats):
        since = time.perf_counter()
        result = function(*arguments)
        seconds.append(time.perf_counter() - since)
    return median(seconds), result
