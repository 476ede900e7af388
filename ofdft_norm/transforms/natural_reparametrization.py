"""Natural reparametrisation: coordinates in which the overlap of the density basis is the unit matrix."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ofdft_norm.errors import BasisError
from ofdft_norm.settings import NonNegative, check_arguments
from ofdft_norm.transforms.coordinates import BasisTransform, Molecule, Step, Steps, apply_steps, register
from ofdft_norm.transforms.overlap import compute_overlap

Orthogonalization = Literal["symmetric", "canonical"]


@dataclass(frozen=True)
class OverlapRoot(Step):
    """T = U diag(s) V^T with U = V if symmetric, else U = 1; its tensors are s^2, ascending, and the orthogonal V."""

    symmetric: bool

    def apply(self, rows: Tensor, dual: Tensor, inverse: bool) -> Tensor:
        """See `Step`."""
        squares, right = (tensor.to(rows.device) for tensor in self.tensors)
        scale = squares.sqrt()
        rows = rows @ right if self.symmetric or not inverse else rows
        rows = torch.where((dual == inverse)[:, None], rows * scale, rows / scale)
        return rows @ right.T if self.symmetric or inverse else rows


class NaturalReparametrization(BasisTransform):
    """p~ = M^T p, g~ = M^-1 g with M M^T = S, the overlap of the density basis; |p~|^2 is the density's L2 norm.

    S is the sample's field `overlap_matrix` (n_basis, n_basis), in the density basis, if it exists; else PySCF's
    integrals over the exponents of the sample's basis (extra ``labels``).

    ``symmetric``: M = S^(1/2), the orthogonalisation that changes the functions least, so that a coefficient keeps its
    atom and its meaning; it commutes with rotations, local frames and the order of atoms.

    ``canonical``: M = Q Lambda^(1/2), eigenvectors sorted by eigenvalue, smallest first. In each
    eigenvector the entry of largest magnitude (the first of several) is positive. Equal eigenvalues, as in symmetric
    molecules, have arbitrary eigenvectors.

    Conditioning: an even-tempered basis of ratio 2.5 has eigenvalues of S from 1e-5 or so to 10. M^-1 magnifies a
    rounding error of a gradient by up to their inverse root, about 3e2: ten or more of sixteen digits remain.
    Source: Zhang et al., arXiv 2309.16578, section 4.3.

    Args:
        orthogonalization: ``symmetric`` or ``canonical``.
        min_eigenvalue: Smallest eigenvalue of S that is accepted. Smaller eigenvalues are noise, and a change of basis
            that omits them has no inverse.

    Raises:
        ConfigError: If `orthogonalization` is neither of the two, or `min_eigenvalue` is negative.
    """

    def __init__(self, orthogonalization: Orthogonalization = "symmetric", min_eigenvalue: NonNegative = 1e-9) -> None:
        check_arguments(NaturalReparametrization.__init__, locals(), "data.pre_transforms")
        self.orthogonalization = orthogonalization
        self.min_eigenvalue = float(min_eigenvalue)

    @property
    def name(self) -> str:
        """``natural_symmetric`` or ``natural_canonical``."""
        return f"natural_{self.orthogonalization}"

    def step(self, molecule: Molecule, before: Steps) -> OverlapRoot:
        """Returns M^T of the overlap T^-T S T^-1, with T the steps before."""
        overlap = torch.from_numpy(compute_overlap(molecule))
        if before:
            dual = torch.ones(len(overlap), dtype=torch.bool)
            overlap = apply_steps(before, apply_steps(before, overlap, dual).T, dual)
        values, vectors = np.linalg.eigh(overlap.numpy())
        symmetric = self.orthogonalization == "symmetric"
        if not symmetric:
            vectors *= np.sign(np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0))
        return OverlapRoot((torch.from_numpy(values), torch.from_numpy(vectors)), symmetric)

    def check(self, step: Step, molecule: Molecule) -> None:
        """Refuses an overlap that is not positive definite, or too close to it."""
        smallest = float(step.tensors[0][0])
        if not (smallest >= self.min_eigenvalue and smallest > 0):
            what = "density basis's overlap" if molecule.overlap is None else "field 'overlap_matrix'"
            raise BasisError(
                f"molecule {molecule.name!r}: the smallest eigenvalue of the {what} is {smallest:.2e}, expected at "
                f"least {self.min_eigenvalue:.0e}: atoms are too close, or exponents too dense. Give a smaller "
                "min_eigenvalue (config: data.pre_transforms), or omit the molecule (config: data.source.exclude)"
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.orthogonalization!r}, min_eigenvalue={self.min_eigenvalue})"


register(NaturalReparametrization("symmetric", 0.0), NaturalReparametrization("canonical", 0.0))
