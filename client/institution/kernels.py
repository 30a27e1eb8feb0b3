"""The arithmetic of encrypted scoring, compiled: every kernel releases the GIL.

Residues are uint32 below 2^27. A product of two takes 54 bits, so 1,024 of them sum in a uint64
without a reduction; one Montgomery reduction follows. What multiplies is kept in Montgomery form,
so that this reduction is the only one. NTT form is in lane order (``protocol.ntt``) here; blocks
and questions are cut into lines of it (``client.institution.dot``). ``constants`` are the ring's.
"""

import numpy as np

from client.institution.dot import LINE, dot
from protocol.compiled import kernel
from protocol.modular import below, reduce, times
from protocol.ntt import forward_lanes, inverse_lanes

_QUESTION_WORDS = 1 << 16
"""Words of the questions that are worked with at a time: they stay in the second-level cache."""


@kernel
def pack(coefficients, constants, record):  # type: ignore[no-untyped-def]
    """Transform small signed ``coefficients`` int32 [d1, N] to ``record`` uint32 [k, N/16, d1, 16].

    Word 2l + h of a line is lane 8h + l of its sixteen.
    """
    chunks, degree = coefficients.shape
    x, lanes = np.empty(degree, np.uint32), np.empty(degree, np.uint32)
    for g in range(chunks):
        for i in range(constants.moduli.size):
            q = np.uint32(constants.moduli[i])
            for j in range(degree):
                value = np.uint32(coefficients[g, j])
                x[j] = min(value, np.uint32(value + q))
            forward_lanes(x, lanes, i, constants)
            for s in range(degree // LINE):
                line = record[i, s, g]
                for half in range(LINE // 2):
                    line[2 * half] = lanes[s * LINE + half]
                    line[2 * half + 1] = lanes[s * LINE + LINE // 2 + half]


@kernel
def arrange(pair, chunk, constants, question):  # type: ignore[no-untyped-def]
    """Put a ciphertext ``pair`` uint32 [2, k, N], NTT form, where the scan reads it.

    ``question`` uint32 [k, N/16, d1, 2, 16] gets it as ``chunk``, in lines and Montgomery form.
    """
    _, primes, degree = pair.shape
    columns = constants.forward.tail.shape[2]
    rows, x = degree // columns, np.empty(degree, np.uint32)
    for i in range(primes):
        q, inverse = constants.moduli[i], constants.negated_inverses[i]
        fold, carry = constants.montgomery[i], constants.carry[i]
        for c in range(2):
            polynomial = pair[c, i]
            for j in range(degree):
                x[j] = reduce(np.uint64(polynomial[j]) * carry, q, inverse, fold)
            for s in range(degree // LINE):
                line = question[i, s, chunk, c]
                # A line's lanes are in one row: where the first one is, the others follow.
                first = s * LINE % columns * rows + s * LINE // columns
                for half in range(LINE // 2):
                    line[2 * half] = x[first + half * rows]
                    line[2 * half + 1] = x[first + (LINE // 2 + half) * rows]


@kernel
def scan(blocks, questions, chunks, constants, out):  # type: ignore[no-untyped-def]
    """Multiply a run of packed blocks with every question and sum over chunks: one pass.

    ``blocks`` uint64 [m, k, N/16 * d1 * 8] and ``questions`` uint64 [z, k, N/16 * d1 * 16], each
    word two residues; ``out`` uint32 [z, m, 2, k, N] in lane order.
    """
    count, runs, _, primes, degree = out.shape
    item_line, question_line = chunks * (LINE // 2), chunks * LINE
    group = min(max(_QUESTION_WORDS // (count * question_line), 1), degree // LINE)
    sums = np.empty(2 * group * LINE, np.uint64)
    for i in range(primes):
        q, inverse = constants.moduli[i], constants.negated_inverses[i]
        fold = constants.montgomery[i]
        for start in range(0, degree // LINE, group):
            lines = min(group, degree // LINE - start)
            for b in range(runs):
                for z in range(count):
                    for s in range(lines):
                        dot(  # type: ignore[call-arg]  # the first is numba's own
                            blocks[b, i],
                            (start + s) * item_line,
                            questions[z, i],
                            (start + s) * question_line,
                            chunks,
                            sums,
                            s * LINE,
                            (group + s) * LINE,
                        )
                    for c in range(2):
                        target = out[z, b, c, i, start * LINE : (start + lines) * LINE]
                        for j in range(lines * LINE):
                            target[j] = reduce(sums[c * group * LINE + j], q, inverse, fold)


@kernel
def rerandomise(sums, public, ternary, constants):  # type: ignore[no-untyped-def]
    """Add ``ternary * (b, a)`` for every key: a fresh encryption of zero but for its errors.

    ``sums`` uint32 [m, 2, k, N], in place; ``public`` uint32 [keys, 2, k, N] in Montgomery form;
    ``ternary`` int8 [m, keys, N] as coefficients; at most 1,024 keys.
    """
    runs, _, primes, degree = sums.shape
    x, mask = np.empty(degree, np.uint32), np.empty(degree, np.uint32)
    masked = np.empty((2, degree), np.uint64)
    for b in range(runs):
        for i in range(primes):
            q, inverse = constants.moduli[i], constants.negated_inverses[i]
            fold, small = constants.montgomery[i], np.uint32(constants.moduli[i])
            masked[:] = 0
            for key in range(public.shape[0]):
                drawn = ternary[b, key]
                for j in range(degree):
                    value = np.uint32(np.int32(drawn[j]))
                    x[j] = min(value, np.uint32(value + small))
                forward_lanes(x, mask, i, constants)
                for c in range(2):
                    total, factor = masked[c], public[key, c, i]
                    for j in range(degree):
                        total[j] += np.uint64(mask[j]) * np.uint64(factor[j])
            for c in range(2):
                total, target = masked[c], sums[b, c, i]
                for j in range(degree):
                    added = target[j] + reduce(total[j], q, inverse, fold)
                    target[j] = below(added, small)


@kernel
def switch_down(  # type: ignore[no-untyped-def]
    sums, flood, coarse, steps, error, constants, inverses, quotients, reply, c0, c1
):
    """Add noise, divide by all primes but the first with rounding, keep what is a score.

    ``sums`` uint32 [m, 2, k, N], overwritten; ``flood`` int64 [m, N/d2], below 2^61 in size;
    ``coarse`` int32 [m, N/d2] counts ``steps`` uint32 [k], each 2^32 times a step modulo its prime;
    ``error`` int8 [m, N]; ``inverses[j, i]`` = 1/q_j mod q_i beside its Shoup quotient; out:
    ``c0`` uint32 [m, N/d2] and ``c1`` uint32 [m, N], coefficients modulo the two of ``reply``.
    """
    runs, _, primes, degree = sums.shape
    scores = c0.shape[1]
    some, whole = np.empty((primes, scores), np.uint32), np.empty((primes, degree), np.uint32)
    for b in range(runs):
        for i in range(primes):
            q, inverse = constants.moduli[i], constants.negated_inverses[i]
            fold, carry = constants.montgomery[i], constants.carry[i]
            inverse_lanes(sums[b, 0, i], some[i], degree // scores, i, constants)
            inverse_lanes(sums[b, 1, i], whole[i], 1, i, constants)
            # A multiple of q above 2^61 makes every noise a positive word.
            lift = (np.uint64(1 << 61) // q + np.uint64(1)) * q
            for j in range(scores):
                noise = reduce(lift + np.uint64(flood[b, j]), q, inverse, fold)
                added = np.uint64(noise) * carry + (np.uint64(some[i, j]) << np.uint64(32))
                count = np.uint32(coarse[b, j])
                added += np.uint64(min(count, np.uint32(count + np.uint32(q)))) * np.uint64(
                    steps[i]
                )
                some[i, j] = reduce(added, q, inverse, fold)
            for j in range(degree):
                value = np.uint32(np.int32(error[b, j]))
                residue = min(value, np.uint32(value + np.uint32(q)))
                whole[i, j] = below(whole[i, j] + residue, np.uint32(q))
        _divide(some, constants.moduli, inverses, quotients, reply[0], c0[b])
        _divide(whole, constants.moduli, inverses, quotients, reply[1], c1[b])


@kernel
def _divide(residues, moduli, inverses, quotients, reply, out):  # type: ignore[no-untyped-def]
    """Divide by q_{k-1}, ..., q_1 in turn, then by q_0/reply, each with rounding to the nearest.

    ``reply`` is a power of two.
    Primes are of nearly one size (``protocol.params``), so a centred rest plus q is positive.
    """
    primes, count = residues.shape
    for last in range(primes - 1, 0, -1):
        top = np.uint32(moduli[last])
        for i in range(last):
            q = np.uint32(moduli[i])
            factor, quotient = inverses[last, i], quotients[last, i]
            for j in range(count):
                rest = residues[last, j]
                rest = np.uint32(rest - top) if rest > top >> np.uint32(1) else rest
                difference = np.uint32(residues[i, j] + q - rest)
                residues[i, j] = below(times(difference, factor, quotient, q), q)
    factor, mask = reply / np.float64(moduli[0]), np.uint32(reply - 1)
    for j in range(count):
        out[j] = np.uint32(np.float64(residues[0, j]) * factor + 0.5) & mask
