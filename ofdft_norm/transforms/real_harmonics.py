"""Real spherical harmonics, and how they change when space is rotated.

Functions of one l are ordered m = -l ... l. Signs are PySCF's: Y(l, m) is a positive multiple of Re (x + iy)^m for
m >= 0 and of Im (x + iy)^|m| for m < 0.
"""

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def evaluate_harmonics(l_max: int, directions: Array) -> Array:
    """Returns (..., (l_max+1)^2) Schmidt semi-normalised harmonics of l = 0 ... l_max at (..., 3) unit vectors."""
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
def _find_directions_and_inverses(l_max: int) -> tuple[Array, list[Array]]:
    """Returns directions and, for each l, the matrix from values at these directions to coefficients of harmonics."""
    n = 4 * (l_max + 1) ** 2
    heights, turns = 1 - (2 * np.arange(n) + 1) / n, np.arange(n) * math.pi * (3 - math.sqrt(5))  # Fibonacci's sphere
    radii = np.sqrt(1 - heights**2)
    directions = np.stack([radii * np.cos(turns), radii * np.sin(turns), heights], axis=-1)
    values = evaluate_harmonics(l_max, directions)
    return directions, [np.asarray(np.linalg.pinv(values[:, l * l : (l + 1) ** 2])) for l in range(l_max + 1)]


def compute_wigner_matrices(l_max: int, rotations: Array) -> list[Array]:
    """Returns the Wigner matrices D of (..., 3, 3) rotations R for l = 0 ... l_max: Y(R r) = D Y(r).

    The coefficients c of a function c.Y(r) become D c if positions are given in rotated axes, R r. The values of all
    harmonics of one l at enough directions determine the (..., 2l+1, 2l+1) matrix, exactly to rounding.
    """
    directions, inverses = _find_directions_and_inverses(l_max)
    values = evaluate_harmonics(l_max, directions @ np.swapaxes(rotations, -1, -2))
    return [np.swapaxes(inverse @ values[..., l * l : (l + 1) ** 2], -1, -2) for l, inverse in enumerate(inverses)]
