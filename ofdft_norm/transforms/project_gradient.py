"""Projection of gradients: a function, and a pre-transform of gradient labels."""

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform

from ofdft_norm.data.sample import DataT, as_float64, count_molecules, find_molecule_index, get_field
from ofdft_norm.errors import BatchError


def project_gradient(gradient: Tensor, sample_or_batch: Data) -> Tensor:
    """Removes the component of a gradient that changes the number of electrons, for each molecule.

    P g = g - w (w.g) / (w.w): the number of electrons w.p is fixed, so a gradient is only meaningful up to a
    multiple of the basis functions' integrals w ([M-OFDFT]). Use it on labels, and on the DIFFERENCE of predicted
    and true gradient, both in original (not rescaled) coordinates.

    Args:
        gradient: (n_basis,) [hartree].
        sample_or_batch: The sample or batch it belongs to, with its ORIGINAL `dual_basis_integrals`. On a normalised
            batch the integrals are rescaled; denormalise it first (`Normalizer.denormalize`).

    Returns:
        (n_basis,) [hartree], orthogonal to `dual_basis_integrals` in every molecule; in the gradient's dtype, computed
        in float64. If all integrals of a molecule are 0, its gradient is unchanged.

    Raises:
        BatchError: If the integrals are rescaled, `dual_basis_integrals` is missing or has another length than the
            gradient, or a batch has no `coeffs_batch`.
    """
    if "integrals_rescaled" in sample_or_batch:
        raise BatchError("'dual_basis_integrals' of a normalised batch are rescaled: first call Normalizer.denormalize")
    integrals = get_field(sample_or_batch, "dual_basis_integrals")
    if integrals is None:
        raise BatchError(
            "the sample lacks 'dual_basis_integrals', which a projection needs: write it into the labels "
            "(of_labels/spatial/dual_basis_integrals) or omit ProjectGradient (config: data.pre_transforms)"
        )
    if gradient.shape != integrals.shape:
        # (n_basis, 1) against (n_basis,) would broadcast to a matrix
        shape = tuple(integrals.shape)
        raise BatchError(f"gradient: shape {tuple(gradient.shape)}, expected {shape}, as of 'dual_basis_integrals'")
    index = find_molecule_index(sample_or_batch)
    g, w = as_float64(gradient, "gradient_label"), as_float64(integrals, "dual_basis_integrals")
    sums = g.new_zeros(2, count_molecules(sample_or_batch)).index_add(1, index, torch.stack([w * g, w * w]))
    share = sums[0] / torch.where(sums[1] > 0, sums[1], 1.0)
    return (g - w * share[index]).to(gradient.dtype)


class ProjectGradient(BaseTransform):
    """PyG transform: projects `gradient_label` with `project_gradient`. Works on samples and on batches."""

    works_on_batches = True
    reads = (("gradient_label", "dual_basis_integrals"),)

    def forward(self, data: DataT) -> DataT:
        """Returns the sample (already a copy of the caller's) with its gradient label projected."""
        if get_field(data, "gradient_label") is not None:
            data.gradient_label = project_gradient(data.gradient_label, data)
        return data
