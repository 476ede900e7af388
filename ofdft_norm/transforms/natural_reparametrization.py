"""Natural reparametrisation: coordinates in which the overlap of the density basis is the unit matrix."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from ofdft_norm.errors import BasisError, ConfigError
from ofdft_norm.transforms.basis_change import BasisChange, Step, Stretch
from ofdft_norm.transforms.basis_transforms import BasisTransform, register
from ofdft_norm.transforms.molecule import Molecule
from ofdft_norm.transforms.overlap import overlap_of

Orthogonalization = Literal["symmetric", "canonical"]


class NaturalReparametrization(BasisTransform):
    """p~ = M^T p, g~ = M^-1 g with M M^T = S, the overlap of the density basis; |p~|^2 is the density's L2 norm.

    S is the sample's field `overlap_matrix` (n_basis, n_basis), in the density basis, where there is one; else PySCF's
    integrals over the exponents of the sample's basis (extra ``labels``).

    ``symmetric``: M = S^(1/2), the orthogonalisation that changes the functions least, so that a coefficient keeps its
    atom and its meaning; it commutes with rotations, local frames and the order of atoms.

    ``canonical``: M = Q Lambda^(1/2), eigenvectors sorted by eigenvalue, smallest first. Of each eigenvector the entry
    of largest magnitude (the first of several) is positive. Where eigenvalues coincide, as in molecules with symmetry,
    their eigenvectors are arbitrary.

    Conditioning: an even-tempered basis of ratio 2.5 has eigenvalues of S from 1e-5 or so to 10. M^-1 magnifies a
    rounding error of a gradient by up to their inverse root, about 3e2: ten or more of sixteen digits remain.
    Source: Zhang et al., arXiv 2309.16578, section 4.3.

    Args:
        orthogonalization: ``symmetric`` or ``canonical``.
        min_eigenvalue: Smallest eigenvalue of S that is accepted: what lies below would be noise, and leaving it out
            could not be undone.

    Raises:
        ConfigError: If `orthogonalization` is neither of the two, or `min_eigenvalue` is negative.
    """

    def __init__(self, orthogonalization: Orthogonalization = "symmetric", min_eigenvalue: float = 1e-9) -> None:
        if orthogonalization not in get_args(Orthogonalization):
            raise ConfigError(
                f"orthogonalization = {orthogonalization!r}, expected one of {list(get_args(Orthogonalization))} "
                "(config: data.pre_transforms)"
            )
        if not min_eigenvalue >= 0:
            raise ConfigError(f"min_eigenvalue = {min_eigenvalue}, expected at least 0 (config: data.pre_transforms)")
        self.orthogonalization = orthogonalization
        self.min_eigenvalue = float(min_eigenvalue)

    @property
    def name(self) -> str:
        """``natural_symmetric`` or ``natural_canonical``."""
        return f"natural_{self.orthogonalization}"

    def step(self, molecule: Molecule, before: BasisChange) -> Stretch:
        """Returns M^T of the overlap in the coordinates before.

        Raises:
            BasisError: If the overlap is unknown, or has an eigenvalue below `min_eigenvalue`.
        """
        overlap = before.apply_to_form(torch.from_numpy(overlap_of(molecule)))
        try:
            return natural_coordinates(overlap.numpy(), self.orthogonalization, self.min_eigenvalue)
        except BasisError as error:
            raise BasisError(f"molecule {molecule.name!r}: {error}") from None

    def check(self, step: Step, molecule: Molecule) -> None:
        """Refuses an overlap whose smallest eigenvalue another instance accepted.

        Raises:
            BasisError: If it is below `min_eigenvalue`.
        """
        if isinstance(step, Stretch):
            _check_eigenvalue(float(step.scale[0]) ** 2, self.min_eigenvalue, f"molecule {molecule.name!r}: ")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.orthogonalization!r}, min_eigenvalue={self.min_eigenvalue})"


def natural_coordinates(
    overlap: npt.NDArray[np.float64], orthogonalization: Orthogonalization = "symmetric", min_eigenvalue: float = 1e-9
) -> Stretch:
    """Returns M^T for an overlap matrix S = M M^T; see `NaturalReparametrization`.

    Args:
        overlap: (n_basis, n_basis) S.
        orthogonalization: ``symmetric`` or ``canonical``.
        min_eigenvalue: Smallest eigenvalue that is accepted.

    Raises:
        BasisError: If S has a smaller eigenvalue.
    """
    values, vectors = np.linalg.eigh(overlap)
    _check_eigenvalue(float(values[0]), min_eigenvalue)
    scale = torch.from_numpy(np.sqrt(values))
    if orthogonalization == "symmetric":
        eigenvectors = torch.from_numpy(vectors)
        return Stretch(scale, eigenvectors, eigenvectors)
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0)
    return Stretch(scale, torch.from_numpy(vectors * np.sign(largest)), None)


def _check_eigenvalue(smallest: float, accepted: float, where: str = "") -> None:
    if not smallest >= accepted:
        raise BasisError(
            f"{where}the smallest eigenvalue of the density basis's overlap is {smallest:.2e}, expected at least "
            f"{accepted:.0e}: its inverse root would be noise. Are two atoms too close, or the exponents too "
            "dense? Accept it with a smaller min_eigenvalue (config: data.pre_transforms), or leave the molecule out "
            "(config: data.source.exclude)"
        )


register(NaturalReparametrization("symmetric", 0.0), NaturalReparametrization("canonical", 0.0))
