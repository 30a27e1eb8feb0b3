"""Arithmetic in Z_q[X]/(X^N + 1) for primes below 2^27: public data only, never a secret key.

Residues are ``uint32``. The transform is the one of SEAL (Harvey's butterflies, arXiv:1205.2926):
NTT form is in bit-reversed order, under the smallest primitive 2N-th root of unity, so that
residues from SEAL are used as they come. All kernels release the GIL.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from protocol.compiled import kernel

U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Ring:
    """Precomputed constants of one ring per prime, as arrays that kernels take.

    ``moduli`` uint64 [k]; ``roots``/``inverse_roots`` uint32 [k, N] in bit-reversed order, each
    beside its Shoup quotient ``floor(root * 2^32 / q)``; ``scale`` = 1/N; ``negated_inverses``
    = -1/q mod 2^32 and ``montgomery`` = 2^32 mod q for Montgomery reduction.
    """

    degree: int
    moduli: U64
    roots: U32
    root_quotients: U32
    inverse_roots: U32
    inverse_root_quotients: U32
    scale: U64
    negated_inverses: U32
    montgomery: U64

    def forward(self, polynomials: U32) -> None:
        """Transform ``[..., k, N]`` in place from coefficients to NTT form; all values < q."""
        _forward(self._flat(polynomials), self.moduli, self.roots, self.root_quotients)

    def inverse(self, polynomials: U32) -> None:
        """Transform ``[..., k, N]`` in place from NTT form to coefficients; all values < q."""
        _inverse(
            self._flat(polynomials),
            self.moduli,
            self.inverse_roots,
            self.inverse_root_quotients,
            self.scale,
        )

    def _flat(self, polynomials: U32) -> U32:
        if not polynomials.flags.c_contiguous:
            raise ValueError("polynomials are transformed in place: a contiguous array is needed")
        return polynomials.reshape(-1, len(self.moduli), self.degree)

    def residues(self, coefficients: NDArray[np.int64]) -> U32:
        """Reduce signed coefficients ``[..., N]`` to residues ``[..., k, N]``."""
        signed = self.moduli.astype(np.int64)[:, None]
        return np.mod(coefficients[..., None, :], signed).astype(np.uint32)

    def encode(self, coefficients: NDArray[np.int64]) -> U32:
        """Turn signed coefficients ``[..., N]`` into residues ``[..., k, N]`` in NTT form."""
        residues = self.residues(coefficients)
        self.forward(residues)
        return residues

    def to_montgomery(self, residues: U32) -> U32:
        """Multiply ``[..., k, N]`` by 2^32 mod q: the reduction after a product undoes it."""
        product = residues.astype(np.uint64) * self.montgomery[:, None]
        return (product % self.moduli[:, None]).astype(np.uint32)


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
    table, inverse_table = np.array(roots, np.uint64), np.array(inverses, np.uint64)
    column = np.array(moduli, np.uint64)[:, None]
    return Ring(
        degree,
        np.array(moduli, np.uint64),
        table.astype(np.uint32),
        ((table << np.uint64(32)) // column).astype(np.uint32),
        inverse_table.astype(np.uint32),
        ((inverse_table << np.uint64(32)) // column).astype(np.uint32),
        np.array([pow(degree, -1, modulus) for modulus in moduli], np.uint64),
        np.array([-pow(modulus, -1, 2**32) % 2**32 for modulus in moduli], np.uint32),
        np.array([2**32 % modulus for modulus in moduli], np.uint64),
    )


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
def _forward(polynomials, moduli, roots, quotients):  # type: ignore[no-untyped-def]
    for p in range(polynomials.shape[0]):
        for i in range(moduli.size):
            forward_one(polynomials[p, i], np.uint32(moduli[i]), roots[i], quotients[i])


@kernel
def _inverse(polynomials, moduli, roots, quotients, scales):  # type: ignore[no-untyped-def]
    for p in range(polynomials.shape[0]):
        for i in range(moduli.size):
            inverse_one(
                polynomials[p, i], np.uint32(moduli[i]), roots[i], quotients[i], scales[i], 1
            )


@kernel
def forward_one(x, q, roots, quotients):  # type: ignore[no-untyped-def]
    """Cooley-Tukey with lazy values below 4q, reduced to below q at the end."""
    degree = x.size
    twice = np.uint32(2) * q
    t, m = degree, 1
    while m < degree:
        t >>= 1
        for i in range(m):
            w, wq = np.uint64(roots[m + i]), np.uint64(quotients[m + i])
            low = x[2 * i * t : 2 * i * t + t]
            high = x[2 * i * t + t : 2 * i * t + 2 * t]
            for j in range(t):
                u = low[j]
                u = min(u, np.uint32(u - twice))
                h = np.uint64(high[j])
                v = np.uint32(h * w - ((h * wq) >> np.uint64(32)) * np.uint64(q))
                low[j] = np.uint32(u + v)
                high[j] = np.uint32(u + twice - v)
        m <<= 1
    for j in range(degree):
        u = x[j]
        u = min(u, np.uint32(u - twice))
        x[j] = min(u, np.uint32(u - q))


@kernel
def inverse_one(x, q, roots, quotients, scale, stride):  # type: ignore[no-untyped-def]
    """Gentleman-Sande; with ``stride`` > 1 only coefficients ``stride-1 mod stride`` come out.

    The wanted coefficients have all low bits set, and the first stages decide the low bits, so
    those stages need only their lower outputs: about N operations instead of N/2 log N.
    """
    degree = x.size
    twice = np.uint32(2) * q
    t, m = 1, degree >> 1
    while m >= 1:
        if t < stride:
            for i in range(m):
                w, wq = np.uint64(roots[m + i]), np.uint64(quotients[m + i])
                low, high = 2 * i * t + t - 1, 2 * i * t + 2 * t - 1
                v = np.uint64(np.uint32(x[low] + twice - x[high]))
                x[high] = np.uint32(v * w - ((v * wq) >> np.uint64(32)) * np.uint64(q))
        else:
            for i in range(m):
                w, wq = np.uint64(roots[m + i]), np.uint64(quotients[m + i])
                low_half = x[2 * i * t : 2 * i * t + t]
                high_half = x[2 * i * t + t : 2 * i * t + 2 * t]
                for j in range(stride - 1, t, stride):
                    u, v = low_half[j], high_half[j]
                    total = np.uint32(u + v)
                    low_half[j] = min(total, np.uint32(total - twice))
                    d = np.uint64(np.uint32(u + twice - v))
                    high_half[j] = np.uint32(d * w - ((d * wq) >> np.uint64(32)) * np.uint64(q))
        t <<= 1
        m >>= 1
    for j in range(stride - 1, degree, stride):
        x[j] = np.uint32(np.uint64(x[j]) * scale % np.uint64(q))
