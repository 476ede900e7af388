"""Errors of predictions, in hartree and in original coordinates, accumulated over samples and processes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data
from torchmetrics import Metric

from ofdft_norm.data.of_data import molecule_index, n_molecules
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.transforms.project_gradient import project_gradient

MILLI = 1e3  # mHa per hartree


def sums_over_molecules(values: Tensor, batch: Data) -> Tensor:
    """Adds up a per-function field over each molecule: (n_basis,) -> (n_molecules,)."""
    return values.new_zeros(n_molecules(batch)).index_add(0, molecule_index(batch), values)


def n_electrons(normalizer: Normalizer, batch: Data) -> Tensor:
    """Returns N = w.p of each molecule of a normalised batch, from the original w and p, (n_molecules,) float64."""
    integrals = normalizer.denormalize_integrals(batch.dual_basis_integrals, batch)
    return sums_over_molecules(integrals * normalizer.denormalize_coeffs(batch.coeffs, batch), batch)


def project_in_original_coordinates(normalizer: Normalizer, batch: Data, difference: Tensor) -> Tensor:
    """Projects a difference of gradients with the original integrals of a normalised batch.

    Args:
        normalizer: The batch's normaliser.
        batch: A normalised batch with `dual_basis_integrals`.
        difference: (n_basis,) [hartree], in original coordinates.

    Returns:
        (n_basis,) [hartree], differentiable in `difference`.
    """
    original = copy.copy(batch)
    original.dual_basis_integrals = normalizer.denormalize_integrals(batch.dual_basis_integrals, batch)
    return project_gradient(difference, original)


class LabelErrors(Metric):
    """Errors of predictions in hartree over all labelled samples, each sample counting once.

    `compute` returns, by name:
        energy_mae_mHa, energy_rmse_mHa: Mean absolute and root mean square error of the energy [mHa].
        energy_mae_per_electron_mHa: Mean of |error| / N [mHa per electron].
        gradient_mae_mHa: Mean absolute component of the projected gradient's error, over all components [mHa].
        gradient_norm_mHa: Mean over samples of the norm of the projected gradient's error [mHa].

    Without any labelled sample all are NaN.
    """

    full_state_update = False
    higher_is_better = False
    NAMES = (
        "energy_mae_mHa",
        "energy_rmse_mHa",
        "energy_mae_per_electron_mHa",
        "gradient_mae_mHa",
        "gradient_norm_mHa",
    )
    sums: Tensor
    n_samples: Tensor
    n_components: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("sums", torch.zeros(len(self.NAMES), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("n_samples", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("n_components", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, normalizer: Normalizer, batch: Data, energy: Tensor, gradient: Tensor) -> None:
        """Takes in a batch of predictions.

        Args:
            normalizer: The batch's normaliser.
            batch: A normalised batch with labels.
            energy: (n_molecules,) predicted energies [hartree].
            gradient: (n_basis,) predicted gradients with respect to the original coefficients [hartree].
        """
        labelled = batch.has_energy_label.reshape(-1)
        errors = (energy.detach() - normalizer.denormalize_energy(batch.energy_label.reshape(-1), batch))[labelled]
        electrons = n_electrons(normalizer, batch)[labelled]
        difference = gradient.detach() - normalizer.denormalize_gradient(batch.gradient_label, batch)
        difference = project_in_original_coordinates(normalizer, batch, difference)
        sizes = sums_over_molecules(torch.ones_like(difference), batch)
        self.sums += torch.stack(
            [
                errors.abs().sum(),
                errors.square().sum(),
                (errors.abs() / electrons).sum(),
                sums_over_molecules(difference.abs(), batch)[labelled].sum(),
                sums_over_molecules(difference.square(), batch)[labelled].sqrt().sum(),
            ]
        )
        self.n_samples += labelled.sum()
        self.n_components += sizes[labelled].sum().to(torch.int64)

    def compute(self) -> dict[str, Tensor]:
        """Returns the errors by name, see the class."""
        absolute, square, per_electron, components, norms = self.sums
        means = [absolute, (square * self.n_samples).sqrt(), per_electron, None, norms]
        values = [components / self.n_components if mean is None else mean / self.n_samples for mean in means]
        return {name: MILLI * value for name, value in zip(self.NAMES, values, strict=True)}
