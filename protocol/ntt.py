"""The number-theoretic transform, vectorised in every stage.

The butterflies are Harvey's (arXiv:1205.2926), the roots and the order are SEAL's: NTT form is
bit-reversed, under the smallest primitive 2N-th root of unity. The last four stages would work on
neighbours at distances 8 to 1, too near for vectors; so the polynomial is transposed before them
and stays so: **lane order**. SEAL's index ``i*R + r`` is lane ``r*(N/R) + i``, R = 16.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from protocol.compiled import kernel
from protocol.modular import below, times

U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]

_ROWS = 16


class Twiddles(NamedTuple):
    """Powers of a root per prime, each beside its Shoup quotient ``floor(root * 2^32 / q)``.

    ``head`` uint32 [k, N] in bit-reversed order, for stages over far neighbours; ``tail`` uint32
    [k, R-1, N/R], the same powers as the lanes of the other stages meet them: those of distance
    t in rows R/2t - 1 to R/t - 2.
    """

    head: U32
    head_quotients: U32
    tail: U32
    tail_quotients: U32


def twiddles(powers: U64, moduli: U64) -> Twiddles:
    """Prepare ``powers`` uint64 [k, N] of a root, in bit-reversed order."""
    primes, degree = powers.shape
    rows = min(_ROWS, degree)
    tail = np.empty((primes, rows - 1, degree // rows), np.uint64)
    first = 1
    while first < rows:
        stage = powers[:, degree // rows * first : degree // rows * 2 * first]
        tail[:, first - 1 : 2 * first - 1] = stage.reshape(primes, -1, first).swapaxes(1, 2)
        first *= 2
    heads, tails = ((table, _quotients(table, moduli)) for table in (powers, tail))
    return Twiddles(*(table.astype(np.uint32) for table in (*heads, *tails)))


def _quotients(factors: U64, moduli: U64) -> U64:
    column = moduli.reshape(-1, *(1,) * (factors.ndim - 1))
    return (factors << np.uint64(32)) // column


@kernel
def forward_lanes(x, lanes, prime, constants):  # type: ignore[no-untyped-def]
    """Transform coefficients ``x`` uint32 [N], overwritten, into ``lanes`` uint32 [N] below q.

    ``constants`` are the ring's.
    """
    powers, q = constants.forward, constants.moduli[prime]
    head, head_quotients = powers.head[prime], powers.head_quotients[prime]
    tail, tail_quotients = powers.tail[prime], powers.tail_quotients[prime]
    degree, twice = x.size, np.uint32(2) * np.uint32(q)
    columns, rows = tail.shape[1], tail.shape[0] + 1
    t, m = degree, 1
    while t > rows:
        t >>= 1
        for i in range(m):
            w, wq = head[m + i], head_quotients[m + i]
            low, high = x[2 * i * t : 2 * i * t + t], x[2 * i * t + t : 2 * i * t + 2 * t]
            for j in range(t):
                u, v = below(low[j], twice), times(high[j], w, wq, q)
                low[j] = np.uint32(u + v)
                high[j] = np.uint32(u + twice - v)
        m <<= 1
    grid = lanes.reshape(rows, columns)
    for i in range(columns):
        for r in range(rows):
            grid[r, i] = x[i * rows + r]
    t, m = rows >> 1, 1
    while t >= 1:
        for p in range(m):
            factors, quotients = tail[m - 1 + p], tail_quotients[m - 1 + p]
            for r in range(2 * p * t, 2 * p * t + t):
                low, high = grid[r], grid[r + t]
                for j in range(columns):
                    u, v = below(low[j], twice), times(high[j], factors[j], quotients[j], q)
                    low[j] = np.uint32(u + v)
                    high[j] = np.uint32(u + twice - v)
        t >>= 1
        m <<= 1
    for j in range(degree):
        lanes[j] = below(below(lanes[j], twice), q)


@kernel
def inverse_lanes(lanes, x, stride, prime, constants):  # type: ignore[no-untyped-def]
    """Transform ``lanes`` uint32 [N], overwritten, to coefficients stride-1 mod stride.

    ``x`` uint32 [N/stride] gets them below q. All these coefficients have low bits set that the
    first stages decide, so those stages need only their upper outputs: about N operations
    instead of N/2 log N. ``constants`` are the ring's.
    """
    powers, q = constants.inverse, constants.moduli[prime]
    head, head_quotients = powers.head[prime], powers.head_quotients[prime]
    tail, tail_quotients = powers.tail[prime], powers.tail_quotients[prime]
    twice = np.uint32(2) * np.uint32(q)
    columns, rows = tail.shape[1], tail.shape[0] + 1
    grid = lanes.reshape(rows, columns)
    t, m = 1, rows >> 1
    while t < rows:
        for p in range(m):
            factors, quotients = tail[m - 1 + p], tail_quotients[m - 1 + p]
            step = min(stride, t)
            for r in range(2 * p * t + step - 1, 2 * p * t + t, step):
                low, high = grid[r], grid[r + t]
                if t < stride:
                    for j in range(columns):
                        difference = np.uint32(low[j] + twice - high[j])
                        high[j] = times(difference, factors[j], quotients[j], q)
                else:
                    for j in range(columns):
                        u, v = low[j], high[j]
                        low[j] = below(np.uint32(u + v), twice)
                        high[j] = times(np.uint32(u + twice - v), factors[j], quotients[j], q)
        t <<= 1
        m >>= 1
    kept = min(stride, rows)
    count = rows // kept
    work = x if kept == stride else lanes
    for i in range(columns):
        for r in range(count):
            # Onto lanes itself only where one row is left, the last: it is not overwritten.
            work[i * count + r] = grid[r * kept + kept - 1, i]
    size = columns * count
    while size > x.size:
        size >>= 1
        for i in range(size):
            difference = np.uint32(work[2 * i] + twice - work[2 * i + 1])
            work[i] = times(difference, head[size + i], head_quotients[size + i], q)
    if kept < stride:
        x[:] = work[:size]
    t = count
    m = size // (2 * t)
    while m >= 1:
        for i in range(m):
            w, wq = head[m + i], head_quotients[m + i]
            low, high = x[2 * i * t : 2 * i * t + t], x[2 * i * t + t : 2 * i * t + 2 * t]
            for j in range(t):
                u, v = low[j], high[j]
                low[j] = below(np.uint32(u + v), twice)
                high[j] = times(np.uint32(u + twice - v), w, wq, q)
        t <<= 1
        m >>= 1
    scale, quotient = constants.scale[prime], constants.scale_quotients[prime]
    for j in range(x.size):
        x[j] = below(times(x[j], scale, quotient, q), q)
