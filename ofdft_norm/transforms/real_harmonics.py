"""Real solid harmonics, and how they change when space is rotated.

The functions are ordered m = -l ... l; those of l = 1 are y, z, x. Signs are PySCF's for l > 1: no Condon-Shortley
phase, so that Y(l, m) is a positive multiple of Re (x + iy)^m for m >= 0 and of Im (x + iy)^|m| for m < 0.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def real_harmonics(l: int, directions: Array) -> Array:
    """Evaluates the 2l+1 real spherical harmonics, orthonormal up to one common factor.

    Args:
        l: Angular momentum.
        directions: (..., 3) unit vectors.

    Returns:
        (..., 2l+1), m = -l ... l.
    """
    x, y, z = np.moveaxis(directions, -1, 0)
    values = np.empty((*x.shape, 2 * l + 1))
    around = np.ones_like(x) + 0j  # (x + iy)^m
    for m in range(l + 1):
        factor = math.sqrt((2 if m else 1) * math.factorial(l - m) / math.factorial(l + m))
        legendre = factor * _legendre(l, m, z)
        values[..., l + m] = legendre * around.real
        if m:
            values[..., l - m] = legendre * around.imag
        around = around * (x + 1j * y)
    return values


def _legendre(l: int, m: int, z: Array) -> Array:
    """Evaluates the associated Legendre function P(l, m) / sin^m, a polynomial in z, by its three-term recursion."""
    before, value = np.zeros_like(z), np.full_like(z, math.prod(range(1, 2 * m, 2)))
    for n in range(m, l):
        before, value = value, ((2 * n + 1) * z * value - (n + m) * before) / (n - m + 1)
    return value


@lru_cache(maxsize=32)
def _sampled(l: int) -> tuple[Array, Array]:
    """Returns directions, and what takes the harmonics' values there to the harmonics' coefficients."""
    n = 4 * (l + 1) ** 2
    heights, turns = 1 - (2 * np.arange(n) + 1) / n, np.arange(n) * math.pi * (3 - math.sqrt(5))  # Fibonacci's sphere
    radii = np.sqrt(1 - heights**2)
    directions = np.stack([radii * np.cos(turns), radii * np.sin(turns), heights], axis=-1)
    return directions, np.asarray(np.linalg.pinv(real_harmonics(l, directions)), dtype=np.float64)


def rotation_of_harmonics(l: int, rotations: Array) -> Array:
    """Returns the Wigner matrices D of real harmonics, Y(R r) = D Y(r), for one angular momentum.

    The coefficients of a function that is a sum c.Y(r) become D c where positions are given in rotated axes, R r.
    All harmonics of one l at enough directions determine the matrix: it is exact to rounding.

    Args:
        l: Angular momentum.
        rotations: (..., 3, 3) rotations R.

    Returns:
        (..., 2l+1, 2l+1) orthogonal matrices, m = -l ... l in rows and columns.
    """
    directions, from_values = _sampled(l)
    rotated = np.einsum("...ij,nj->...ni", rotations, directions)
    return np.swapaxes(from_values @ real_harmonics(l, rotated), -1, -2)
