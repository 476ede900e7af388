"""The normaliser: reference, rescaling and energy scale composed, with exact inverses."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from ofdft_norm.data.of_data import n_molecules
from ofdft_norm.errors import ConfigError, NormalizationError
from ofdft_norm.normalization.atom_ref import AtomRef
from ofdft_norm.normalization.dimension_wise_rescaling import DimensionWiseRescaling
from ofdft_norm.normalization.element_references import LinearReferences
from ofdft_norm.normalization.float64_module import Float64Module

DataT = TypeVar("DataT", bound=Data)

Reference = AtomRef | LinearReferences


class Normalizer(Float64Module):
    """E' = (E - E_ref(p)) / s;  g' = (g - dE_ref/dp) / (s (lambda + epsilon));  p' = lambda (p - pbar).

    A network on p' that predicts E' gives g' by autograd (to epsilon). All arithmetic is float64, and the buffers stay
    float64 whatever the module is cast to.

    `normalize` stores each molecule's reference energy on the sample as `energy_reference` (float64), so that
    `denormalize_energy` is exact even after the coefficients have been cast to the training dtype. It belongs to the
    coefficients that were normalised: for other coefficients, normalise the sample again.

    Args:
        reference: `AtomRef`, `LinearReferences`, or None.
        rescaling: `DimensionWiseRescaling`, or None.
        energy_scale: s > 0 [hartree per unit of normalised energy]; divides energies and gradients alike.
        seen_elements: (119,) bool by atomic number, the elements that the statistics were fitted on. Atoms of others
            are refused. None: no check.
        energy_field: Field that holds the energy, for data sets with names of their own.
        forces_field: Field that holds forces, if any: (n_atom, 3), divided by `energy_scale` like the energy.

    Raises:
        ConfigError: If `energy_scale` is not a positive number.
    """

    energy_scale: Tensor
    seen_elements: Tensor | None

    def __init__(
        self,
        reference: Reference | None = None,
        rescaling: DimensionWiseRescaling | None = None,
        energy_scale: float | Tensor = 1.0,
        seen_elements: Tensor | None = None,
        energy_field: str = "energy_label",
        forces_field: str | None = None,
    ) -> None:
        super().__init__()
        if not 0 < float(energy_scale) < float("inf"):
            raise ConfigError(
                f"energy_scale = {float(energy_scale)}: expected a positive number (config: data.energy_scale)"
            )
        self.energy_field = energy_field
        self.forces_field = forces_field
        self.reference = reference
        self.rescaling = rescaling
        self.register_float64("energy_scale", torch.as_tensor(energy_scale, dtype=torch.float64).reshape(()))
        self.register_buffer("seen_elements", None if seen_elements is None else seen_elements.clone().bool())

    # --- samples and batches ------------------------------------------------------------------------------------

    def normalize(self, sample_or_batch: DataT) -> DataT:
        """Returns a normalised copy; the argument stays as it is.

        Vectors (`coeffs`, `ground_state_coeffs`) and dual vectors (`gradient_label`, `dual_basis_integrals`) that the
        sample has are rescaled, `energy_label` is referenced and scaled. `energy_reference` [hartree] and the flag
        `normalized` are added.

        Raises:
            NormalizationError: If the sample is normalised already, or has an element that was not seen in fitting.
            BatchError: If a batch lacks `coeffs_batch`.
        """
        if _is_normalized(sample_or_batch):
            raise NormalizationError(
                "the sample is normalised already; normalising it again would shift its labels silently. Give "
                "normalize() raw samples: the data module's loaders yield normalised ones"
            )
        self._check_elements(sample_or_batch)
        raw = sample_or_batch
        out = copy.copy(raw)
        n = n_molecules(raw)
        if self.reference is not None:
            out.energy_reference = self.reference.energy(raw, raw.get("coeffs"))
        else:
            out.energy_reference = self.energy_scale.new_zeros(n)
        energy = raw.get(self.energy_field)
        if energy is not None:
            out[self.energy_field] = self._normalize_energy(energy, out.energy_reference)
        if self.forces_field is not None and raw.get(self.forces_field) is not None:
            out[self.forces_field] = raw[self.forces_field].to(torch.float64) / self.energy_scale
        if raw.get("gradient_label") is not None:
            out.gradient_label = self.normalize_gradient(raw.gradient_label, raw)
        if self.rescaling is not None:
            for field in ("coeffs", "ground_state_coeffs"):
                if raw.get(field) is not None:
                    out[field] = self.rescaling.scale_coeffs(raw[field], raw)
            if raw.get("dual_basis_integrals") is not None:
                # duals of vectors: w'.p' + w.pbar = N, so lambda itself, without epsilon
                integrals = raw.dual_basis_integrals.to(torch.float64)
                out.dual_basis_integrals = integrals / self.rescaling.lambda_z[raw.basis_function_ind]
        out.normalized = torch.ones(n, dtype=torch.bool, device=out.energy_reference.device)
        return out

    def denormalize(self, sample_or_batch: DataT) -> DataT:
        """Returns a copy in physical units, in float64: the inverse of `normalize`.

        Raises:
            NormalizationError: If the sample is not normalised.
        """
        batch = sample_or_batch
        self._require_normalized(batch)
        out = copy.copy(batch)
        for field in ("coeffs", "ground_state_coeffs"):
            if batch.get(field) is not None:
                out[field] = self.denormalize_coeffs(batch[field], batch)
        if batch.get("gradient_label") is not None:
            out.gradient_label = self.denormalize_gradient(batch.gradient_label, batch)
        if batch.get(self.energy_field) is not None:
            out[self.energy_field] = self.denormalize_energy(batch[self.energy_field], batch)
        if self.forces_field is not None and batch.get(self.forces_field) is not None:
            out[self.forces_field] = self.denormalize_forces(batch[self.forces_field], batch)
        if batch.get("dual_basis_integrals") is not None:
            out.dual_basis_integrals = self.denormalize_integrals(batch.dual_basis_integrals, batch)
        del out.energy_reference
        del out.normalized
        return out

    # --- single quantities --------------------------------------------------------------------------------------

    def _normalize_energy(self, energy: Tensor, reference: Tensor) -> Tensor:
        return (energy.to(torch.float64) - reference.reshape(energy.shape)) / self.energy_scale

    def normalize_gradient(self, gradient: Tensor, batch: Data) -> Tensor:
        """Returns g' = (g - dE_ref/dp) / (s (lambda + epsilon)), (n_basis,) float64."""
        slope = None if self.reference is None else self.reference.gradient(batch)
        gradient = gradient.to(torch.float64)
        gradient = (gradient if slope is None else gradient - slope) / self.energy_scale
        return gradient if self.rescaling is None else self.rescaling.scale_gradient(gradient, batch)

    def denormalize_energy(self, energy: Tensor, batch: Data) -> Tensor:
        """Returns energies in hartree: E = s E' + E_ref(p).

        Args:
            energy: (n_molecules,) or (n_molecules, 1), any dtype.
            batch: The normalised batch that the energies were predicted for.

        Returns:
            Float64 [hartree], in the argument's shape.

        Raises:
            NormalizationError: If the batch is not normalised.
        """
        self._require_normalized(batch)
        return energy.to(torch.float64) * self.energy_scale + batch.energy_reference.reshape(energy.shape)

    def denormalize_gradient(self, gradient: Tensor, batch: Data) -> Tensor:
        """Returns gradients with respect to the original coefficients, (n_basis,) float64 [hartree].

        Args:
            gradient: (n_basis,) predicted g' = dE'/dp', any dtype.
            batch: The batch it was predicted for.
        """
        gradient = gradient.to(torch.float64)
        if self.rescaling is not None:
            gradient = self.rescaling.unscale_gradient(gradient, batch)
        gradient = gradient * self.energy_scale
        slope = None if self.reference is None else self.reference.gradient(batch)
        return gradient if slope is None else gradient + slope

    def denormalize_gradient_difference(self, difference: Tensor, batch: Data) -> Tensor:
        """Returns the difference of two gradients in original coordinates: without the reference, which cancels."""
        difference = difference.to(torch.float64)
        if self.rescaling is not None:
            difference = self.rescaling.unscale_gradient(difference, batch)
        return difference * self.energy_scale

    def denormalize_forces(self, forces: Tensor, batch: Data) -> Tensor:
        """Returns forces F = s F', float64; references do not depend on positions."""
        return forces.to(torch.float64) * self.energy_scale

    def denormalize_coeffs(self, coeffs: Tensor, batch: Data) -> Tensor:
        """Returns p = p' / lambda + pbar, (n_basis,) float64."""
        if self.rescaling is None:
            return coeffs.to(torch.float64)
        return self.rescaling.unscale_coeffs(coeffs, batch)

    def denormalize_integrals(self, integrals: Tensor, batch: Data) -> Tensor:
        """Returns w = lambda w', (n_basis,) float64 [electrons]."""
        integrals = integrals.to(torch.float64)
        return integrals if self.rescaling is None else integrals * self.rescaling.lambda_z[batch.basis_function_ind]

    # --- guards -------------------------------------------------------------------------------------------------

    def _check_elements(self, batch: Data) -> None:
        numbers = batch.get("atomic_numbers")
        if self.seen_elements is None or numbers is None:
            return
        unseen = ~self.seen_elements[numbers]
        if unseen.any():
            elements = sorted(set(numbers[unseen].tolist()))
            raise NormalizationError(
                f"molecule {batch.get('mol_id')!r} has atoms of the elements {elements}, which no molecule of the "
                f"training split has (fitted on {self.seen_elements.nonzero().squeeze(1).tolist()}): their statistics are "
                "unknown. Add such molecules to the training split, or set data.unseen_elements=identity to leave their "
                "coefficients as they are"
            )

    def _require_normalized(self, batch: Data) -> None:
        if not _is_normalized(batch):
            raise NormalizationError(
                "the batch is not normalised: there is nothing to invert. Use the batches of OFDFTDataModule's loaders, "
                "or pass the sample through normalize() first"
            )


def _is_normalized(batch: Data) -> bool:
    flag = batch.get("normalized")
    return flag is not None and bool(torch.as_tensor(flag).any())


class NormalizeTransform(nn.Module):
    """PyG-style transform: applies a normaliser to each sample, then casts it to the training dtype.

    Args:
        normalizer: The normaliser.
        dtype: Dtype of coefficients, positions, integrals and normalised labels; `energy_reference` stays float64.
    """

    def __init__(self, normalizer: Normalizer, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.normalizer = normalizer
        self.dtype = dtype

    def forward(self, sample: DataT) -> DataT:
        """Returns the normalised sample; the argument stays as it is."""
        with torch.no_grad():
            return cast_floats(self.normalizer.normalize(sample), self.dtype)


def cast_floats(sample: DataT, dtype: torch.dtype) -> DataT:
    """Casts a sample's floating-point fields to `dtype`, in place, all but `energy_reference`."""
    for field, value in sample.items():
        if field != "energy_reference" and isinstance(value, Tensor) and value.is_floating_point():
            sample[field] = value.to(dtype)
    return sample
