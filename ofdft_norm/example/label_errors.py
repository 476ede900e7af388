"""Errors of predictions, in original coordinates, accumulated over samples and processes."""

from __future__ import annotations

import copy
import hashlib
import uuid
from typing import Any, cast

import torch
from torch import Tensor
from torch_geometric.data import Data
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ofdft_norm.data.of_data import molecule_index, n_molecules
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.transforms.project_gradient import project_gradient
from ofdft_norm.units import shown


def sums_over_molecules(values: Tensor, batch: Data) -> Tensor:
    """Adds up a per-function field over each molecule: (n_basis,) -> (n_molecules,).

    Args:
        values: (n_basis,) values.
        batch: The batch that they belong to.
    """
    return values.new_zeros(n_molecules(batch)).index_add(0, molecule_index(batch), values)


def n_electrons(normalizer: Normalizer, batch: Data) -> Tensor:
    """Returns N = w.p of each molecule of a normalised batch, from the original w and p, (n_molecules,) float64.

    Args:
        normalizer: The normaliser that the batch went through.
        batch: A normalised batch.
    """
    integrals = normalizer.denormalize_integrals(batch.dual_basis_integrals, batch)
    return sums_over_molecules(integrals * normalizer.denormalize_coeffs(batch.coeffs, batch), batch)


def project_in_original_coordinates(normalizer: Normalizer, batch: Data, difference: Tensor) -> Tensor:
    """Projects a difference of gradients with the original integrals of a normalised batch.

    Args:
        normalizer: The batch's normaliser.
        batch: A normalised batch with `dual_basis_integrals`.
        difference: (n_basis,) in original coordinates.

    Returns:
        (n_basis,) differentiable in `difference`.
    """
    original = copy.copy(batch)
    original.dual_basis_integrals = normalizer.denormalize_integrals(batch.dual_basis_integrals, batch)
    del original.normalized
    return project_gradient(difference, original)


class LabelErrors(Metric):
    """Errors of predictions over all labelled samples, each sample counting once.

    `compute` returns, by name, here for hartree, errors in the small unit that the name ends in:
        energy_mae_mHa, energy_median_mHa, energy_rmse_mHa: Mean and median absolute error, and root mean square error,
            of the energy.
        energy_mae_within_molecule_mHa: Mean absolute error of the energy after each molecule's mean error is
            subtracted: what is wrong along the densities of one molecule, not between molecules.
        energy_mae_per_electron_mHa: Mean of |error| / N.
        gradient_mae_mHa: Mean absolute component of the projected gradient's error, over all components.
        gradient_norm_mHa: Mean over samples of the norm of the projected gradient's error.

    Without any labelled sample all are NaN. Samples without `mol_id` are molecules of their own.

    Args:
        **kwargs: Arguments of torchmetrics' `Metric`.

    Attributes:
        unit: Unit of the energies, which a batch's normaliser tells.
    """

    full_state_update = False
    higher_is_better = False
    QUANTITIES = (
        "energy_mae",
        "energy_median",
        "energy_rmse",
        "energy_mae_within_molecule",
        "energy_mae_per_electron",
        "gradient_mae",
        "gradient_norm",
    )
    rows: list[Tensor] | Tensor
    molecules: list[Tensor] | Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.unit = "hartree"
        # of each labelled sample: its energy's error, electrons, absolute and squared gradient errors, their number
        self.add_state("rows", [], dist_reduce_fx="cat")
        self.add_state("molecules", [], dist_reduce_fx="cat")

    def update(self, normalizer: Normalizer, batch: Data, energy: Tensor, gradient: Tensor) -> None:
        """Takes in a batch of predictions.

        Args:
            normalizer: The batch's normaliser.
            batch: A normalised batch with labels.
            energy: (n_molecules,) predicted energies.
            gradient: (n_basis,) predicted gradients with respect to the original coefficients.
        """
        self.unit = normalizer.unit
        labelled = batch.has_energy_label.reshape(-1)
        errors = energy.detach() - normalizer.denormalize_energy(batch.energy_label.reshape(-1), batch)
        difference = gradient.detach() - normalizer.denormalize_gradient(batch.gradient_label, batch)
        difference = project_in_original_coordinates(normalizer, batch, difference)
        columns = [
            errors,
            n_electrons(normalizer, batch),
            sums_over_molecules(difference.abs(), batch),
            sums_over_molecules(difference.square(), batch),
            sums_over_molecules(torch.ones_like(difference), batch),
        ]
        cast(list, self.rows).append(torch.stack(columns, dim=1)[labelled])
        cast(list, self.molecules).append(_molecule_keys(batch, labelled))

    @classmethod
    def names(cls, unit: str) -> tuple[str, ...]:
        """Returns the names of the errors of energies in a unit.

        Args:
            unit: A unit of `ofdft_norm.units.ENERGY_UNITS`.
        """
        return tuple(error_name(quantity, unit) for quantity in cls.QUANTITIES)

    def _samples(self) -> tuple[Tensor, Tensor]:
        """Returns the (n, 5) rows and (n,) molecules of all samples so far."""
        if len(self.rows) == 0:
            return torch.zeros(0, 5, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
        return dim_zero_cat(self.rows), dim_zero_cat(self.molecules)

    @property
    def n_samples(self) -> int:
        """Labelled samples so far, in this process."""
        return len(self._samples()[0])

    @property
    def n_molecules(self) -> int:
        """Different molecules that they belong to."""
        return len(self._samples()[1].unique())

    def compute(self) -> dict[str, Tensor]:
        """Returns the errors by name, see the class."""
        rows, molecules = self._samples()
        if len(rows) == 0:
            return dict.fromkeys(self.names(self.unit), torch.tensor(torch.nan, dtype=torch.float64))
        errors, electrons, absolute, squares, components = rows.T
        values = (
            errors.abs().mean(),
            errors.abs().quantile(0.5),
            errors.square().mean().sqrt(),
            (errors - means_by_group(errors, molecules)).abs().mean(),
            (errors.abs() / electrons).mean(),
            absolute.sum() / components.sum(),
            squares.sqrt().mean(),
        )
        factor = shown(self.unit).factor
        return {name: factor * value for name, value in zip(self.names(self.unit), values, strict=True)}


def error_name(quantity: str, unit: str) -> str:
    """Returns the name of an error, which ends in its unit.

    Args:
        quantity: Such as ``energy_mae``.
        unit: A unit of `ofdft_norm.units.ENERGY_UNITS`.

    Example:
        >>> error_name("energy_mae", "hartree"), error_name("energy_mae", "kcal/mol")
        ('energy_mae_mHa', 'energy_mae_kcal_per_mol')
    """
    return f"{quantity}_{shown(unit).suffix}"


def means_by_group(values: Tensor, keys: Tensor) -> Tensor:
    """Returns, for each value, the mean of all values with the same key.

    Args:
        values: (n,) values.
        keys: (n,) integers.

    Example:
        >>> means_by_group(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([7, 3, 3])).tolist()
        [1.0, 4.0, 4.0]
    """
    _, index, counts = keys.unique(return_inverse=True, return_counts=True)
    return (values.new_zeros(len(counts)).index_add(0, index, values) / counts)[index]


def _molecule_keys(batch: Data, labelled: Tensor) -> Tensor:
    """Returns a number for the molecule of each labelled sample, the same in every process."""
    names = batch.get("mol_id") or [uuid.uuid4().hex for _ in labelled]
    names = [names] if isinstance(names, str) else names
    digests = [hashlib.blake2b(name.encode(), digest_size=7).digest() for name in names]
    keys = [int.from_bytes(digest, "big") for digest in digests]
    return torch.tensor(keys, dtype=torch.int64, device=labelled.device)[labelled]
