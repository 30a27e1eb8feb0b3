"""Modular multiplication for primes below 2^27, in forms that vectorise.

Inlined into every kernel that computes with residues; nothing here divides.
"""

import numpy as np

from protocol.compiled import kernel


@kernel
def times(value, factor, quotient, q):  # type: ignore[no-untyped-def]
    """Return value * factor mod q, below 2q, for any uint32 ``value`` (Shoup; Harvey 2014).

    ``factor`` is below q and ``quotient`` is floor(factor * 2^32 / q).
    """
    wide = np.uint64(value)
    whole = (wide * np.uint64(quotient)) >> np.uint64(32)
    return np.uint32(wide * np.uint64(factor) - whole * np.uint64(q))


@kernel
def below(value, bound):  # type: ignore[no-untyped-def]
    """Return ``value`` below 2 * bound, less ``bound`` if that leaves it positive: uint32."""
    return min(np.uint32(value), np.uint32(np.uint32(value) - np.uint32(bound)))


@kernel
def reduce(value, q, negated_inverse, montgomery):  # type: ignore[no-untyped-def]
    """Return value * 2^-32 mod q, below q, for any uint64 ``value`` (Montgomery 1985).

    ``negated_inverse`` is -1/q mod 2^32, ``montgomery`` is 2^32 mod q. Folding leaves at most
    (2^32-1) * q, the Montgomery step adds at most as much: below 2q.
    """
    folded = (value >> np.uint64(32)) * montgomery + (value & np.uint64(0xFFFFFFFF))
    factor = np.uint64(np.uint32(folded) * negated_inverse & np.uint64(0xFFFFFFFF))
    return below(np.uint32((folded + factor * q) >> np.uint64(32)), q)
