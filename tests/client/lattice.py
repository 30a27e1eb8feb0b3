"""Lattice reduction, as far as an attack on a few unknown numbers needs it."""

import numpy as np
from numpy.typing import NDArray

_SCALE = 1 << 30
_LOVASZ = 0.75

Floats = NDArray[np.float64]


def solve(matrix: Floats, answers: Floats, modulus: float, largest: float) -> Floats:
    """Find small x with ``x @ matrix`` near ``answers`` modulo ``modulus``.

    ``matrix`` [unknowns, equations], ``answers`` [n, equations] within about one of the truth;
    ``largest`` bounds the size of x, and ``modulus`` is below 2^33. Returns x [n, unknowns]: the
    truth where the equations carry many more bits than x has, as Babai's nearest plane (1986)
    finds it in a basis reduced by LLL.
    """
    unknowns, equations = matrix.shape
    basis = np.zeros((unknowns + equations, unknowns + equations))
    basis[:unknowns, :unknowns] = np.eye(unknowns) / largest
    basis[:unknowns, unknowns:] = matrix
    basis[unknowns:, unknowns:] = modulus * np.eye(equations)
    exact = np.rint(basis * _SCALE).astype(np.int64).astype(object)
    reduced = _reduced(exact).astype(np.float64) / _SCALE
    q, r = np.linalg.qr(reduced.T)
    rest = np.zeros((len(answers), unknowns + equations))
    rest[:, unknowns:] = answers
    for j in reversed(range(len(reduced))):
        rest -= np.rint(rest @ q[:, j] / r[j, j])[:, None] * reduced[j]
    return -rest[:, :unknowns] * largest


def _reduced(basis: NDArray[np.object_]) -> NDArray[np.object_]:
    """LLL (Lenstra, Lenstra and Lovász 1982) of the rows, orthogonalised in floats.

    ``r`` and ``units`` are the QR decomposition of the rows before k: each step adds row k.
    """
    r, units, k = np.zeros((len(basis), len(basis))), np.zeros(basis.shape), 0
    while k < len(basis):
        along = units[:k] @ basis[k].astype(np.float64)
        for j in reversed(range(k)):
            if times := round(along[j] / r[j, j]):
                basis[k] -= times * basis[j]
                along -= times * r[:k, j]
        row = basis[k].astype(np.float64)
        r[:k, k] = units[:k] @ row
        rest = row - r[:k, k] @ units[:k]
        r[k, k] = np.linalg.norm(rest)
        units[k] = rest / r[k, k]
        if k and r[k, k] ** 2 + r[k - 1, k] ** 2 < _LOVASZ * r[k - 1, k - 1] ** 2:
            basis[[k - 1, k]] = basis[[k, k - 1]]
            k -= 1
        else:
            k += 1
    return basis
