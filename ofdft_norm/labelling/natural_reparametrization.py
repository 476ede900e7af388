"""Natural reparametrisation: coordinates in which the overlap of the density basis is the unit matrix.

With S the overlap and M = S^(1/2), coefficients become p~ = M p, and dual vectors g~ = M^-1 g, w~ = M^-1 w:
p.g, p.w and therefore energies, electron numbers and finite differences stay what they were. The symmetric
root is the orthogonalisation that changes the basis functions least, so that a coefficient keeps its meaning.

Conditioning: an even-tempered basis with ratio 2.5 has eigenvalues of S from 1e-5 or so (neighbouring
exponents, overlapping atoms) to 10. M^-1 magnifies a rounding error in g by up to their inverse root, about
3e2: ten or more of sixteen digits remain. Eigenvalues below `min_eigenvalue` are refused rather than cut,
since a cut is not invertible.
Source: Zhang et al., arXiv 2309.16578, section 4.3.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ofdft_norm.labelling.errors import LabellingError

Array = npt.NDArray[np.float64]


class NaturalReparametrization:
    """Symmetric natural reparametrisation of one molecule.

    Args:
        overlap: (n_basis, n_basis) S of the density basis.
        min_eigenvalue: Smallest eigenvalue of S that is accepted.

    Attributes:
        root: (n_basis, n_basis) M = S^(1/2).
        inverse_root: (n_basis, n_basis) M^-1.
        condition_number: Of S.

    Raises:
        LabellingError: If S is not positive definite enough.
    """

    def __init__(self, overlap: Array, min_eigenvalue: float = 1e-9) -> None:
        values, vectors = np.linalg.eigh(overlap)
        if values[0] < min_eigenvalue:
            raise LabellingError(
                f"the overlap of the density basis has the eigenvalue {values[0]:.2e}, expected at least "
                f"{min_eigenvalue:.0e}: its inverse root would be noise; are two atoms too close? "
                "(option natural_reparametrization)"
            )
        self.root: Array = (vectors * np.sqrt(values)) @ vectors.T
        self.inverse_root: Array = (vectors / np.sqrt(values)) @ vectors.T
        self.condition_number = float(values[-1] / values[0])

    def transform_coeffs(self, coeffs: Array) -> Array:
        """Returns p~ = M p; any leading dimensions."""
        return np.asarray(coeffs @ self.root)

    def transform_dual(self, dual: Array) -> Array:
        """Returns g~ = M^-1 g, for gradients and basis integrals; any leading dimensions."""
        return np.asarray(dual @ self.inverse_root)
