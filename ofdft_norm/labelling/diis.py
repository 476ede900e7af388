"""Pulay's direct inversion in the iterative subspace, with its weights on record."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def pulay_weights(errors: list[Array]) -> Array:
    """Solves for the weights pi that minimise |sum_k pi_k e_k| under sum_k pi_k = 1.

    Args:
        errors: Error vectors of the iterations, each of the same shape.

    Returns:
        (len(errors),) weights; they sum to 1. Source: P. Pulay, J. Comput. Chem. 3, 556 (1982).
    """
    n = len(errors)
    vectors = np.stack([error.ravel() for error in errors])
    overlaps = vectors @ vectors.T
    # Late errors are 1e-6 of the first: without scaling, the constraint row would swamp them.
    scale = float(np.diag(overlaps).min())
    if scale <= 0.0:
        return np.asarray(np.eye(n)[int(np.diag(overlaps).argmin())])
    system = np.zeros((n + 1, n + 1))
    system[:n, :n] = overlaps / scale
    system[n, :n] = system[:n, n] = 1.0
    right = np.zeros(n + 1)
    right[n] = 1.0
    weights = np.linalg.lstsq(system, right, rcond=None)[0][:n]
    # lstsq cuts nearly dependent directions, which may leave the sum slightly off 1.
    return np.asarray(weights / weights.sum())


class RecordingDIIS:
    """Extrapolates Fock matrices and says with which weights it did.

    The gradient label of the next density is built with exactly these weights, so they must be known, and
    known for all earlier iterations: a weight of zero for those that left the subspace.

    Far from convergence the extrapolation is damped: it is mixed with the previous matrix (whose weights are
    known too). Undamped, the first steps rotate up to one electron pair into other orbitals, and energy
    differences over such a step say little about the gradients at its ends.

    Args:
        space: Number of latest iterations that take part.
        damping: Share of the previous matrix, 0 (none) ... 1.
        damping_threshold: Damping ends once the error's norm is below this, hartree.
    """

    def __init__(self, space: int = 8, damping: float = 0.0, damping_threshold: float = 0.0) -> None:
        self.space = space
        self.damping = damping
        self.damping_threshold = damping_threshold
        self._focks: list[Array] = []
        self._errors: list[Array] = []
        self._weights: Array = np.zeros(0)

    def extrapolate(self, fock: Array, error: Array) -> tuple[Array, Array]:
        """Adds one iteration and returns the extrapolated Fock matrix.

        Args:
            fock: (n_ao, n_ao) Fock matrix of this iteration, hartree.
            error: Its error, the commutator F Gamma S - S Gamma F in an orthogonal basis, hartree.

        Returns:
            The extrapolated Fock matrix sum_k pi_k F_k, and pi, (number of iterations so far,).
        """
        self._focks.append(fock)
        self._errors.append(error)
        first = max(0, len(self._focks) - self.space)
        weights = np.zeros(len(self._focks))
        weights[first:] = pulay_weights(self._errors[first:])
        if len(self._weights) and np.linalg.norm(error) > self.damping_threshold:
            weights *= 1.0 - self.damping
            weights[:-1] += self.damping * self._weights
        self._weights = weights
        return np.einsum("k,kab->ab", weights, np.stack(self._focks)), weights.copy()
