"""The slow and plain truth beside the engine: SEAL reads sums, masks are added one by one."""

import numpy as np
import tenseal.sealapi as seal
from numpy.typing import NDArray

from client.institution.randomness import Mask
from client.searcher.ckks import (
    _ARRAY,
    _CIPHERTEXT,
    _PLAINTEXT,
    SealKey,
    _id,
    _MemoryFile,
)
from protocol.packing import Layout
from protocol.params import Preset
from protocol.ring import U32, U64, Ring, ring
from protocol.scheme import Seeded
from protocol.seeds import expand

Integers = NDArray[np.object_]
"""Python's integers, of any size."""


def ring_of(preset: Preset) -> Ring:
    return ring(preset.ring_degree, preset.data_moduli)


def pair(ciphertext: Seeded, preset: Preset) -> U32:
    """(c0, a) of a ciphertext, uint32 [2, k, N] in NTT form."""
    return np.stack(
        [ciphertext.c0, expand(ciphertext.seed, preset.ring_degree, preset.data_moduli)]
    )


def coefficients(ntt: U32, preset: Preset) -> Integers:
    """NTT form uint32 [..., k, N] as centred integers modulo Q [..., N], by remainders."""
    plain, modulus = ntt.copy(), preset.data_modulus
    ring_of(preset).inverse(plain)
    total: Integers = np.zeros((*ntt.shape[:-2], ntt.shape[-1]), object)
    for i, q in enumerate(preset.data_moduli):
        rest = modulus // q
        total += plain[..., i, :].astype(object) * (rest * pow(rest, -1, q))
    return centred(total, modulus)


def centred(integers: Integers, modulus: int) -> Integers:
    """Representatives in [-modulus/2, modulus/2)."""
    return np.asarray((integers + modulus // 2) % modulus - modulus // 2, object)


def ntt_form(polynomials: Integers, preset: Preset) -> U32:
    """Integers of any size [..., N] as residues uint32 [..., k, N] in NTT form."""
    residues = np.stack([polynomials % q for q in preset.data_moduli], axis=-2).astype(np.uint32)
    ring_of(preset).forward(residues)
    return residues


def decrypted(key: SealKey, sums: U32, preset: Preset) -> Integers:
    """Decrypt sums uint32 [m, 2, k, N] in SEAL's NTT form by SEAL itself: integers [m, N]."""
    k, degree = sums.shape[2:]
    parms_id = _id(key._context.first_parms_id())
    head = _CIPHERTEXT.pack(parms_id, True, 2, degree, k, 2.0**preset.query_scale_bits, 1)
    messages = np.empty((len(sums), k, degree), np.uint32)
    with _MemoryFile() as file:
        for one, message in zip(sums, messages, strict=True):
            ciphertext, plaintext = seal.Ciphertext(), seal.Plaintext()
            file.load(ciphertext, key._context, head, one)
            key._decryptor.decrypt(ciphertext, plaintext)
            saved = file.save(plaintext)
            words = np.frombuffer(saved, "<u8", k * degree, _PLAINTEXT.size + _ARRAY.size)
            message[:] = words.reshape(k, degree)
    return coefficients(messages, preset)


def masked(sums: U32, keys: list[Seeded], mask: Mask, preset: Preset) -> U32:
    """Sums uint32 [m, 2, k, N] with the masks and c1's errors of ``mask``, but not flooded."""
    arithmetic = ring_of(preset)
    total: U64 = sums.astype(np.uint64)
    ternary = arithmetic.encode(mask.ternary.astype(np.int64))
    for number, key in enumerate(keys):
        total += ternary[:, number, None].astype(np.uint64) * pair(key, preset)
        total %= arithmetic.moduli[:, None]
    total[:, 1] += arithmetic.encode(mask.error.astype(np.int64))
    return (total % arithmetic.moduli[:, None]).astype(np.uint32)


def inner_products(items: NDArray[np.float32], question: Integers, layout: Layout) -> Integers:
    """Integer scores [n] of embeddings float32 [n, dim] and a question's coefficients [dim].

    Both rounded as they are packed: what the engine computes exactly, but for encryption.
    """
    scaled = np.rint(items.astype(np.float64) * 2.0**layout.preset.item_scale_bits)
    return np.asarray(scaled.astype(np.int64).astype(object) @ question, object)
