"""Arithmetic in Z_q[X]/(X^N + 1) for primes below 2^27: public data only, never a secret key.

Residues are ``uint32``, NTT form is SEAL's, so that residues from SEAL are used as they come.
All kernels release the GIL.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from protocol.compiled import kernel
from protocol.modular import below, reduce
from protocol.ntt import U32, U64, Twiddles, forward_lanes, inverse_lanes, twiddles


class Constants(NamedTuple):
    """What kernels need to know of a ring, prime by prime.

    ``moduli`` uint64 [k]; ``negated_inverses`` uint64 [k], -1/q mod 2^32, and ``montgomery``
    uint64 [k], 2^32 mod q, for :func:`protocol.modular.reduce`; ``carry`` uint64 [k], 2^64 mod q:
    a product with it, reduced, is in Montgomery form; ``scale`` uint32 [k], 1/N, beside its Shoup
    quotient.
    """

    moduli: U64
    negated_inverses: U64
    montgomery: U64
    carry: U64
    forward: Twiddles
    inverse: Twiddles
    scale: U32
    scale_quotients: U32


@dataclass(frozen=True, eq=False)
class Ring:
    """One ring of ``degree`` N for each of k primes."""

    degree: int
    constants: Constants

    @property
    def moduli(self) -> U64:
        """The primes, uint64 [k]."""
        return self.constants.moduli

    @property
    def columns(self) -> int:
        """Lanes in a row of lane order (``protocol.ntt``)."""
        return int(self.constants.forward.tail.shape[2])

    def forward(self, polynomials: U32) -> None:
        """Transform ``[..., k, N]`` in place from coefficients to NTT form; all values < q."""
        _forward(self._flat(polynomials), self.constants)

    def inverse(self, polynomials: U32) -> None:
        """Transform ``[..., k, N]`` in place from NTT form to coefficients; all values < q."""
        _inverse(self._flat(polynomials), self.constants)

    def to_seal_order(self, lanes: U32) -> U32:
        """Return ``[..., N]`` in lane order (``protocol.ntt``) as NTT form."""
        grid = lanes.reshape(*lanes.shape[:-1], -1, self.columns)
        return np.ascontiguousarray(grid.swapaxes(-1, -2)).reshape(lanes.shape)

    def to_lane_order(self, polynomials: U32) -> U32:
        """Return ``[..., N]`` in NTT form in lane order."""
        grid = polynomials.reshape(*polynomials.shape[:-1], self.columns, -1)
        return np.ascontiguousarray(grid.swapaxes(-1, -2)).reshape(polynomials.shape)

    def residues(self, coefficients: NDArray[np.int64]) -> U32:
        """Reduce signed coefficients ``[..., N]`` to residues ``[..., k, N]``."""
        words = np.ascontiguousarray(coefficients, np.int64).reshape(-1, self.degree)
        residues = np.empty((len(words), len(self.moduli), self.degree), np.uint32)
        _residues(words.view(np.uint64), self.constants, residues)
        return residues.reshape(*coefficients.shape[:-1], len(self.moduli), self.degree)

    def encode(self, coefficients: NDArray[np.int64]) -> U32:
        """Turn signed coefficients ``[..., N]`` into residues ``[..., k, N]`` in NTT form."""
        residues = self.residues(coefficients)
        self.forward(residues)
        return residues

    def add(self, one: U32, other: U32) -> U32:
        """Add residues ``[..., k, N]``."""
        moduli = self.moduli.astype(np.uint32)[:, None]
        total: U32 = one + other
        reduced: U32 = np.minimum(total, total - moduli)  # below zero it wraps, and is the larger
        return reduced

    def to_montgomery(self, residues: U32) -> U32:
        """Multiply ``[..., k, N]`` by 2^32 mod q: the reduction after a product undoes it."""
        carried = np.ascontiguousarray(residues).copy()
        _carry(self._flat(carried), self.constants)
        return carried

    def _flat(self, polynomials: U32) -> U32:
        if not polynomials.flags.c_contiguous:
            raise ValueError("polynomials are transformed in place: a contiguous array is needed")
        return polynomials.reshape(-1, len(self.moduli), self.degree)


@lru_cache(maxsize=16)
def ring(degree: int, moduli: tuple[int, ...]) -> Ring:
    """Return the ring of ``degree`` over ``moduli``, which are primes that are 1 mod 2*degree."""
    bits = degree.bit_length() - 1
    order = [int(f"{i:0{bits}b}"[::-1], 2) for i in range(degree)]
    roots, inverses = [], []
    for modulus in moduli:
        root = _smallest_root(degree, modulus)
        powers = _powers(root, degree, modulus)
        back = _powers(pow(root, -1, modulus), degree, modulus)
        roots.append([powers[i] for i in order])
        inverses.append([back[i] for i in order])
    primes = np.array(moduli, np.uint64)
    scales = [pow(degree, -1, modulus) for modulus in moduli]
    constants = Constants(
        primes,
        np.array([-pow(modulus, -1, 2**32) % 2**32 for modulus in moduli], np.uint64),
        np.array([2**32 % modulus for modulus in moduli], np.uint64),
        np.array([2**64 % modulus for modulus in moduli], np.uint64),
        twiddles(np.array(roots, np.uint64), primes),
        twiddles(np.array(inverses, np.uint64), primes),
        np.array(scales, np.uint32),
        np.array([(s << 32) // q for s, q in zip(scales, moduli, strict=True)], np.uint32),
    )
    return Ring(degree, constants)


def _powers(base: int, count: int, modulus: int) -> list[int]:
    powers = [1]
    for _ in range(count - 1):
        powers.append(powers[-1] * base % modulus)
    return powers


def _smallest_root(degree: int, modulus: int) -> int:
    exponent = (modulus - 1) // (2 * degree)
    root = next(
        candidate
        for base in range(2, modulus)
        if pow(candidate := pow(base, exponent, modulus), degree, modulus) == modulus - 1
    )
    square = root * root % modulus
    return min(root * power % modulus for power in _powers(square, degree, modulus))


@kernel
def _forward(polynomials, constants):  # type: ignore[no-untyped-def]
    columns, rows = constants.forward.tail.shape[2], constants.forward.tail.shape[1] + 1
    lanes = np.empty(polynomials.shape[2], np.uint32)
    for p in range(polynomials.shape[0]):
        for i in range(constants.moduli.size):
            x = polynomials[p, i]
            forward_lanes(x, lanes, i, constants)
            for column in range(columns):
                for row in range(rows):
                    x[column * rows + row] = lanes[row * columns + column]


@kernel
def _inverse(polynomials, constants):  # type: ignore[no-untyped-def]
    columns, rows = constants.inverse.tail.shape[2], constants.inverse.tail.shape[1] + 1
    lanes = np.empty(polynomials.shape[2], np.uint32)
    for p in range(polynomials.shape[0]):
        for i in range(constants.moduli.size):
            x = polynomials[p, i]
            for column in range(columns):
                for row in range(rows):
                    lanes[row * columns + column] = x[column * rows + row]
            inverse_lanes(lanes, x, 1, i, constants)


@kernel
def _residues(words, constants, residues):  # type: ignore[no-untyped-def]
    for p in range(words.shape[0]):
        for i in range(constants.moduli.size):
            q, inverse = constants.moduli[i], constants.negated_inverses[i]
            fold, carry = constants.montgomery[i], constants.carry[i]
            for j in range(words.shape[1]):
                word = words[p, j]
                x = reduce(np.uint64(reduce(word, q, inverse, fold)) * carry, q, inverse, fold)
                # As a word a negative number is 2^64 too large.
                excess = (word >> np.uint64(63)) * carry
                residues[p, i, j] = below(x + np.uint32(q - excess), np.uint32(q))


@kernel
def _carry(polynomials, constants):  # type: ignore[no-untyped-def]
    for p in range(polynomials.shape[0]):
        for i in range(constants.moduli.size):
            q, inverse = constants.moduli[i], constants.negated_inverses[i]
            fold, carry = constants.montgomery[i], constants.carry[i]
            x = polynomials[p, i]
            for j in range(x.size):
                x[j] = reduce(np.uint64(x[j]) * carry, q, inverse, fold)
