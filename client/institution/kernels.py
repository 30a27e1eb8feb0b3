"""The arithmetic of encrypted scoring, compiled: every kernel releases the GIL.

Residues are uint32 below 2^27. A product of two takes 54 bits, so 1,024 of them sum in a uint64
without a reduction; one Montgomery reduction follows (Montgomery 1985). Polynomials that are
multiplied often are kept in Montgomery form, so that this reduction is the only one.
"""

import numpy as np

from protocol.compiled import kernel
from protocol.ring import forward_one, inverse_one


@kernel
def _reduce(value, q, negated_inverse, montgomery):  # type: ignore[no-untyped-def]
    """Return value * 2^-32 mod q, below q, for any uint64 ``value`` and q below 2^27.

    Folding leaves at most (2^32-1) * q, the Montgomery step adds at most as much: below 2q.
    """
    folded = (value >> np.uint64(32)) * montgomery + (value & np.uint64(0xFFFFFFFF))
    factor = np.uint64(np.uint32(folded) * negated_inverse & np.uint64(0xFFFFFFFF))
    reduced = np.uint32((folded + factor * q) >> np.uint64(32))
    return min(reduced, np.uint32(reduced - np.uint32(q)))


@kernel
def scan(blocks, question, moduli, negated_inverses, montgomery, out):  # type: ignore[no-untyped-def]
    """Multiply a run of packed blocks with the question and sum over chunks.

    ``blocks`` uint32 [m, k, N/T, d1, T]; ``question`` uint32 [k, N/T, d1, 2, T] in Montgomery
    form; ``out`` uint32 [m, 2, k, N] in NTT form.
    """
    runs, primes, tiles, chunks, tile = blocks.shape
    first = np.empty(tile, np.uint64)
    second = np.empty(tile, np.uint64)
    for i in range(primes):
        q, inverse, fold = moduli[i], np.uint64(negated_inverses[i]), montgomery[i]
        for s in range(tiles):
            for b in range(runs):
                first[:] = 0
                second[:] = 0
                for g in range(chunks):
                    row = blocks[b, i, s, g]
                    left = question[i, s, g, 0]
                    right = question[i, s, g, 1]
                    for t in range(tile):
                        item = np.uint64(row[t])
                        first[t] += item * np.uint64(left[t])
                        second[t] += item * np.uint64(right[t])
                for t in range(tile):
                    out[b, 0, i, s * tile + t] = _reduce(first[t], q, inverse, fold)
                    out[b, 1, i, s * tile + t] = _reduce(second[t], q, inverse, fold)


@kernel
def rerandomise(  # type: ignore[no-untyped-def]
    sums, public, ternary, moduli, negated_inverses, montgomery, roots, quotients
):
    """Add ``ternary * (b, a)`` for every key: a fresh encryption of zero but for its errors.

    ``sums`` uint32 [m, 2, k, N] in NTT form, in place; ``public`` uint32 [keys, 2, k, N] in
    Montgomery form; ``ternary`` int8 [m, keys, N] as coefficients.
    """
    runs, _, primes, degree = sums.shape
    mask = np.empty(degree, np.uint32)
    for b, key in np.ndindex(runs, public.shape[0]):
        for i in range(primes):
            q, inverse, fold = moduli[i], np.uint64(negated_inverses[i]), montgomery[i]
            small = np.uint32(q)
            for j in range(degree):
                value = ternary[b, key, j]
                mask[j] = np.uint32(value) if value >= 0 else small - np.uint32(1)
            forward_one(mask, small, roots[i], quotients[i])
            for c in range(2):
                target = sums[b, c, i]
                factor = public[key, c, i]
                for j in range(degree):
                    product = np.uint64(mask[j]) * np.uint64(factor[j])
                    total = np.uint32(target[j] + _reduce(product, q, inverse, fold))
                    target[j] = min(total, np.uint32(total - small))


@kernel
def switch_down(  # type: ignore[no-untyped-def]
    sums, flood, error, stride, moduli, inverses, roots, quotients, scales, c0, c1
):
    """Add noise, divide by all primes but the first with rounding, keep what is a score.

    ``sums`` uint32 [m, 2, k, N] in NTT form, overwritten; ``flood`` int64 [m, N/stride];
    ``error`` int8 [m, N]; ``inverses[j, i]`` = 1/q_j mod q_i; out: ``c0`` uint32 [m, N/stride]
    and ``c1`` uint32 [m, N], coefficients modulo the first prime.
    """
    runs, _, primes, degree = sums.shape
    for b in range(runs):
        for i in range(primes):
            q = np.uint32(moduli[i])
            inverse_one(sums[b, 0, i], q, roots[i], quotients[i], scales[i], stride)
            inverse_one(sums[b, 1, i], q, roots[i], quotients[i], scales[i], 1)
            signed = np.int64(moduli[i])
            scores = sums[b, 0, i, stride - 1 :: stride]
            for j in range(scores.size):
                scores[j] = np.uint32((np.int64(scores[j]) + flood[b, j] % signed) % signed)
            whole = sums[b, 1, i]
            for j in range(degree):
                value = np.int64(whole[j]) + np.int64(error[b, j])
                value += signed if value < 0 else 0
                whole[j] = np.uint32(value - signed if value >= signed else value)
        _divide(sums[b, 0, :, stride - 1 :: stride], moduli, inverses, c0[b])
        _divide(sums[b, 1], moduli, inverses, c1[b])


@kernel
def _divide(residues, moduli, inverses, out):  # type: ignore[no-untyped-def]
    """Divide by q_{k-1}, ..., q_1 in turn, each with rounding to the nearest."""
    primes, count = residues.shape
    for last in range(primes - 1, 0, -1):
        top = np.int64(moduli[last])
        for i in range(last):
            q = np.int64(moduli[i])
            inverse = np.int64(inverses[last, i])
            for j in range(count):
                rest = np.int64(residues[last, j])
                rest -= top if rest > top // 2 else 0
                difference = np.int64(residues[i, j]) - rest
                residues[i, j] = np.uint32(difference % q * inverse % q)
    out[:] = residues[0]
