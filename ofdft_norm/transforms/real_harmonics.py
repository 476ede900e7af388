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
    return harmonics_up_to(l, directions)[..., l * l :]


def harmonics_up_to(l_max: int, directions: Array) -> Array:
    """Evaluates the real spherical harmonics of l = 0 ... l_max, those of one l after those of the smaller ones.

    Args:
        l_max: Largest angular momentum.
        directions: (..., 3) unit vectors.

    Returns:
        (..., (l_max+1)^2), within an l m = -l ... l.
    """
    x, y, z = np.moveaxis(directions, -1, 0)
    values = np.empty(((l_max + 1) ** 2, *x.shape))
    around, in_plane = np.ones_like(x) + 0j, x + 1j * y
    for m in range(l_max + 1):
        # the associated Legendre functions P(l, m) / sin^m, polynomials in z, by their three-term recursion
        before, legendre = np.zeros_like(z), np.full_like(z, math.prod(range(1, 2 * m, 2)))
        for l in range(m, l_max + 1):
            factor = math.sqrt((2 if m else 1) * math.factorial(l - m) / math.factorial(l + m))
            np.multiply(factor * legendre, around.real, out=values[l * (l + 1) + m])
            if m:
                np.multiply(factor * legendre, around.imag, out=values[l * (l + 1) - m])
            before, legendre = legendre, ((2 * l + 1) * z * legendre - (l + m) * before) / (l + 1 - m)
        around = around * in_plane  # (x + iy)^m
    return np.moveaxis(values, 0, -1)


@lru_cache(maxsize=32)
def _sampled(l_max: int) -> tuple[Array, list[Array]]:
    """Returns directions, and what takes the harmonics' values there to the harmonics' coefficients, for each l."""
    n = 4 * (l_max + 1) ** 2
    heights, turns = 1 - (2 * np.arange(n) + 1) / n, np.arange(n) * math.pi * (3 - math.sqrt(5))  # Fibonacci's sphere
    radii = np.sqrt(1 - heights**2)
    directions = np.stack([radii * np.cos(turns), radii * np.sin(turns), heights], axis=-1)
    values = harmonics_up_to(l_max, directions)
    inverses = [np.linalg.pinv(values[:, l * l : (l + 1) ** 2]) for l in range(l_max + 1)]
    return directions, [np.asarray(inverse, dtype=np.float64) for inverse in inverses]


def rotations_of_harmonics(l_max: int, rotations: Array) -> list[Array]:
    """Returns the Wigner matrices D of real harmonics, Y(R r) = D Y(r), for l = 0 ... l_max.

    The coefficients of a function that is a sum c.Y(r) become D c where positions are given in rotated axes, R r.
    All harmonics of one l at enough directions determine the matrix: it is exact to rounding.

    Args:
        l_max: Largest angular momentum.
        rotations: (..., 3, 3) rotations R.

    Returns:
        For each l (..., 2l+1, 2l+1) orthogonal matrices, m = -l ... l in rows and columns.
    """
    directions, from_values = _sampled(l_max)
    values = harmonics_up_to(l_max, directions @ np.swapaxes(rotations, -1, -2))
    return [np.swapaxes(inverse @ values[..., l * l : (l + 1) ** 2], -1, -2) for l, inverse in enumerate(from_values)]
