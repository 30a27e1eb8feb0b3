"""Lattice reduction, as far as an attack on a few unknown numbers needs it."""

import numpy as np
from numpy.typing import NDArray

_SCALE = 1 << 30

Floats = NDArray[np.float64]


def solve(matrix: Floats, answers: Floats, modulus: float, largest: float) -> Floats:
    """Find small x with ``x @ matrix`` near ``answers`` modulo ``modulus``.

    ``matrix`` [unknowns, equations], ``answers`` [n, equations] within about one of the truth;
    ``largest`` bounds the size of x. Returns x [n, unknowns]: the truth wherever the equations
    carry more bits than x has, as Babai's nearest plane finds it in a basis reduced by LLL.
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
    """LLL (Lenstra, Lenstra and Lovász 1982) of the rows, orthogonalised in floats."""
    k = 1
    while k < len(basis):
        r = np.linalg.qr(basis[: k + 1].astype(np.float64).T, mode="r")
        for j in reversed(range(k)):
            times = round(r[j, k] / r[j, j])
            basis[k] -= times * basis[j]
            r[:, k] -= times * r[:, j]
        if r[k, k] ** 2 + r[k - 1, k] ** 2 >= 0.99 * r[k - 1, k - 1] ** 2:
            k += 1
        else:
            basis[[k - 1, k]] = basis[[k, k - 1]]
            k = max(k - 1, 1)
    return basis
