"""Encrypted scoring end to end, with and without encryption, and held against SEAL's own."""

import hashlib
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tenseal.sealapi as seal
from numpy.typing import NDArray

from client.institution.packed import PackedIndex, write_packed
from client.institution.question import Question
from client.institution.scorer import Scorer
from client.searcher.ckks import (
    _CIPHERTEXT,
    _PLAINTEXT,
    SealScheme,
    _context,
    _id,
    _MemoryFile,
)
from protocol.errors import StorageError
from protocol.insecure_twin import InsecureTwin
from protocol.packing import Layout
from protocol.params import FAST, PRIVATE, Preset
from protocol.ring import ring
from protocol.scheme import Scheme, Seeded
from protocol.seeds import expand

VECTORS = Path(__file__).parents[1] / "vectors"
SCHEMES: list[Scheme] = [InsecureTwin(), SealScheme()]
Floats = NDArray[np.float32]


def unit_vectors(count: int, dim: int, seed: int = 0) -> Floats:
    rows = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def packed(path: Path, layout: Layout, items: Floats) -> PackedIndex:
    write_packed(path / "packed.bin", layout, items)
    return PackedIndex(path / "packed.bin")


def decrypted(scheme: Scheme, index: PackedIndex, question: Floats) -> NDArray[np.float64]:
    layout, key = index.layout, scheme.keygen(index.layout.preset)
    chunks = key.encrypt_query(layout.question_polynomials(question))
    scorer = Scorer(index, 2)
    replies = list(scorer.score(key.public_keys(layout.public_keys), chunks))
    scorer.close()
    starts = [0, *range(4, layout.blocks, 8)]
    assert [reply.first_block for reply in replies] == starts
    scores = np.concatenate([key.decrypt_scores(layout, reply) for reply in replies])
    return scores.reshape(-1)


@pytest.mark.parametrize("scheme", SCHEMES, ids=["twin", "seal"])
@pytest.mark.parametrize(
    ("preset", "dim", "width", "items", "rms"),
    [
        (PRIVATE, 64, 32, 500, 2.7e-6),
        (PRIVATE, 50, 16, 257, 2.7e-6),
        (PRIVATE, 20, 1, 5000, 2.7e-6),
        (PRIVATE, 3, 4, 1, 2.7e-6),
        (FAST, 64, 128, 300, 2e-5),
    ],
)
def test_scores_are_inner_products(
    tmp_path: Path, scheme: Scheme, preset: Preset, dim: int, width: int, items: int, rms: float
) -> None:
    embeddings = unit_vectors(items, dim)
    index = packed(tmp_path, Layout(preset, dim, width, items), embeddings)
    for question in (embeddings[0], -embeddings[-1], unit_vectors(1, dim, seed=9)[0]):
        scores = decrypted(scheme, index, question)
        exact = embeddings.astype(np.float64) @ question.astype(np.float64)
        error = scores[:items] - exact
        assert items < 100 or np.sqrt((error**2).mean()) < rms
        assert np.abs(error).max() < 8 * rms
        assert np.abs(scores[items:]).max(initial=0) < 8 * rms, "empty places score zero"


def test_two_replies_to_one_question_share_no_randomness(tmp_path: Path) -> None:
    items = unit_vectors(300, 32)
    layout = Layout(PRIVATE, 32, 32, 300)
    index = packed(tmp_path, layout, items)
    key = SealScheme().keygen(PRIVATE)
    chunks = key.encrypt_query(layout.question_polynomials(items[0]))
    question = Question(layout, key.public_keys(layout.public_keys), chunks)
    first, second = (question.answer(index.blocks[:], 0) for _ in range(2))
    same = (first.c1 == second.c1).mean()
    assert same < 1e-3, "c1 is masked afresh: equal only by chance"
    assert (first.c0 == second.c0).mean() < 0.2, "flooding is drawn afresh"


def test_the_deterministic_part_agrees_with_seal_bit_for_bit(tmp_path: Path) -> None:
    """SEAL multiplies the same ciphertexts with the same plaintexts and adds them up."""
    layout = Layout(PRIVATE, 24, 8, 100)
    items = unit_vectors(100, 24)
    index = packed(tmp_path, layout, items)
    key = SealScheme().keygen(PRIVATE)
    chunks = key.encrypt_query(layout.question_polynomials(items[3]))
    question = Question(layout, key.public_keys(layout.public_keys), chunks)
    ours = ring(4096, PRIVATE.data_moduli).to_seal_order(question.multiply(index.blocks[:1])[0])
    assert np.array_equal(ours, _sum_of_products_by_seal(layout, items, chunks))


def _sum_of_products_by_seal(
    layout: Layout, items: Floats, chunks: list[Seeded]
) -> NDArray[np.uint64]:
    preset, context = layout.preset, _context(layout.preset)
    arithmetic = ring(preset.ring_degree, preset.data_moduli)
    residues = arithmetic.residues(layout.block_polynomials(items))
    arithmetic.forward(residues)
    parms_id, degree = _id(context.first_parms_id()), preset.ring_degree
    with _MemoryFile() as file:
        total = np.zeros((2, 3, degree), np.uint64)
        for chunk, block in zip(chunks, residues, strict=True):
            pair = np.stack([chunk.c0, expand(chunk.seed, degree, preset.data_moduli)])
            ciphertext, plaintext = seal.Ciphertext(), seal.Plaintext()
            head = _CIPHERTEXT.pack(parms_id, True, 2, degree, 3, 2.0**30, 1)
            file.load(ciphertext, context, head, pair)
            head = _PLAINTEXT.pack(parms_id, block.size, 2.0**10)
            file.load(plaintext, context, head, block)
            product = seal.Ciphertext()
            seal.Evaluator(context).multiply_plain(ciphertext, plaintext, product)
            saved = file.save(product)
            total += np.frombuffer(saved, "<u8", total.size, 97).reshape(total.shape)
    return total % np.array(preset.data_moduli, np.uint64)[:, None]


def test_a_fixed_question_gives_fixed_sums(tmp_path: Path) -> None:
    """Known answer: the institution's arithmetic does not change from version to version."""
    layout = Layout(PRIVATE, 16, 4, 40)
    grid = (np.arange(40 * 16, dtype=np.float32).reshape(40, 16) % 7 - 3) / 16
    index = packed(tmp_path, layout, grid)
    arithmetic = ring(4096, PRIVATE.data_moduli)
    residues = arithmetic.residues(layout.question_polynomials(grid[1]))
    arithmetic.forward(residues)
    chunks = [Seeded(c0, bytes([n]) * 64) for n, c0 in enumerate(residues)]
    question = Question(layout, [Seeded(np.zeros_like(residues[0]), bytes(64))], chunks)
    sums = arithmetic.to_seal_order(question.multiply(index.blocks[:]))
    known = json.loads((VECTORS / "scoring.json").read_text())
    assert hashlib.sha256(index.blocks.astype("<u4").tobytes()).hexdigest() == known["packed"]
    assert hashlib.sha256(sums.astype("<u4").tobytes()).hexdigest() == known["sums"]


def test_a_damaged_packed_index_is_found(tmp_path: Path) -> None:
    layout = Layout(PRIVATE, 8, 8, 10)
    packed(tmp_path, layout, unit_vectors(10, 8)).verify()
    path = tmp_path / "packed.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(StorageError, match="damaged"):
        PackedIndex(path).verify()
    for broken in (whole[:-4], whole + b"x", b"", b"nonsense" * 1000):
        path.write_bytes(broken)
        with pytest.raises(StorageError, match="not a usable packed index"):
            PackedIndex(path)


def test_work_stops_when_nobody_waits_for_it(tmp_path: Path) -> None:
    layout = Layout(PRIVATE, 8, 128, 32 * 64)
    index = packed(tmp_path, layout, unit_vectors(32 * 64, 8))
    key = InsecureTwin().keygen(PRIVATE)
    chunks = key.encrypt_query(layout.question_polynomials(unit_vectors(1, 8)[0]))
    answered = iter([True, True, False, False, False])
    scorer = Scorer(index, 1)
    replies = list(
        scorer.score(key.public_keys(layout.public_keys), chunks, lambda: next(answered))
    )
    scorer.close()
    assert len(replies) < layout.blocks // 8


def test_questions_that_wait_share_a_pass_and_get_their_own_answers(tmp_path: Path) -> None:
    """Ten at once, of which one leaves: each gets its own scores, whole and in order."""
    layout = Layout(PRIVATE, 8, 64, 64 * 40)
    items = unit_vectors(64 * 40, 8)
    index = packed(tmp_path, layout, items)
    scorer, wanted = Scorer(index, 2), unit_vectors(10, 8, seed=4)

    def ask(question: Floats) -> NDArray[np.float64]:
        key = InsecureTwin().keygen(PRIVATE)
        chunks = key.encrypt_query(layout.question_polynomials(question))
        replies = list(scorer.score(key.public_keys(layout.public_keys), chunks))
        starts = [0, *range(4, layout.blocks, 8)]
        assert [reply.first_block for reply in replies] == starts
        return np.concatenate([key.decrypt_scores(layout, one) for one in replies]).reshape(-1)

    key = InsecureTwin().keygen(PRIVATE)
    chunks = key.encrypt_query(layout.question_polynomials(wanted[0]))
    leaving = scorer.score(key.public_keys(layout.public_keys), chunks)
    with ThreadPoolExecutor(10) as pool:
        answers = pool.map(ask, wanted)
        next(leaving)
        leaving.close()  # type: ignore[attr-defined]
        for question, scores in zip(wanted, answers, strict=True):
            np.testing.assert_allclose(scores, items @ question, atol=3e-5)
    scorer.close()


def test_an_error_in_a_pass_reaches_whoever_asked(tmp_path: Path) -> None:
    layout = Layout(PRIVATE, 8, 64, 64)
    index = packed(tmp_path, layout, unit_vectors(64, 8))
    key, scorer = InsecureTwin().keygen(PRIVATE), Scorer(index, 1)
    chunks = key.encrypt_query(layout.question_polynomials(unit_vectors(1, 8)[0]))

    def broken() -> bool:
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"):
        list(scorer.score(key.public_keys(layout.public_keys), chunks, broken))
    assert list(scorer.score(key.public_keys(layout.public_keys), chunks)), "and it goes on"
    scorer.close()


def test_an_institution_never_loads_seal() -> None:
    """No byte of a searcher can reach a C++ deserialiser that is not in the process."""
    code = (
        "import sys, client.institution.service, client.institution.cli\n"
        "loaded = open('/proc/self/maps').read()\n"
        "assert not any('tenseal' in name or 'torch' in name for name in sys.modules)\n"
        "assert 'seal' not in loaded and 'torch' not in loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
