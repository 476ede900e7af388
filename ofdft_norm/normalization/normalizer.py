"""The normaliser: reference, rescaling and energy scale composed, with exact inverses."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm.data.fields import PER_FUNCTION, VECTORS
from ofdft_norm.data.of_data import molecule_index, n_molecules, with_sample_fields
from ofdft_norm.errors import ConfigError, NormalizationError
from ofdft_norm.normalization.atom_ref import AtomRef
from ofdft_norm.normalization.dimension_wise_rescaling import DimensionWiseRescaling
from ofdft_norm.normalization.element_references import LinearReferences
from ofdft_norm.normalization.float64_module import Float64Module
from ofdft_norm.normalization.guards import (
    check_energy,
    check_fields,
    check_seen_elements,
    check_vector,
    require_field,
)

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

    def normalize(self, sample_or_batch: DataT, check_elements: bool = True) -> DataT:
        """Returns a normalised copy; the argument stays as it is.

        Vectors (`coeffs`, `ground_state_coeffs`) and dual vectors (`gradient_label`, `dual_basis_integrals`) that the
        sample has are rescaled, `energy_label` is referenced and scaled. `energy_reference` [hartree] and the flag
        `normalized` are added.

        Args:
            sample_or_batch: Raw, in physical units.
            check_elements: Whether unknown elements are refused; False where that was done before.

        Raises:
            NormalizationError: If the sample is normalised already, has an element that was not seen in fitting, or
                lacks a field or has one of the wrong length.
            BatchError: If a batch lacks `coeffs_batch`.
        """
        raw = sample_or_batch
        if "normalized" in raw:
            raise NormalizationError(
                "the sample is normalised already; normalising it again would shift its labels silently. Give "
                "normalize() raw samples: the data module's loaders yield normalised ones"
            )
        if check_elements:
            self.check_elements(raw)
        return self._with_normalized_fields(raw)

    def _with_normalized_fields(self, raw: DataT) -> DataT:
        out = copy.copy(raw)
        n = n_molecules(raw)
        for name, value in self.normalize_fields(self.inputs(raw), n).items():
            out[name] = value
        out.normalized = torch.ones(n, dtype=torch.bool, device=out.energy_reference.device)
        return with_sample_fields(out, ("energy_reference", "normalized"))

    def inputs(self, raw: Data) -> dict[str, Tensor]:
        """Returns the fields of a raw sample or batch that `normalize_fields` reads, with its indices."""
        names = (*PER_FUNCTION, "basis_function_ind", "atom_ind", self.energy_field)
        fields = {name: raw[name] for name in names if raw.get(name) is not None}
        if self.forces_field is not None and raw.get(self.forces_field) is not None:
            fields[self.forces_field] = raw[self.forces_field]
        if "coeffs" in fields:
            fields["coeffs_batch"] = molecule_index(raw)
        check_fields(fields, raw, self.energy_field, n_molecules(raw))
        if isinstance(self.reference, AtomRef):
            for name in ("coeffs", "atom_ind"):
                require_field(name, raw, "the atomic reference needs")
        if self.reference is not None:
            fields["batch"] = molecule_index(raw, "pos")
        if isinstance(self.reference, LinearReferences):
            fields["atomic_numbers"] = self.reference.atomic_numbers(raw)
        return fields

    def normalize_fields(self, fields: Mapping[str, Tensor], n_molecules: int) -> dict[str, Tensor]:
        """The arithmetic of `normalize` alone: tensors in, tensors out, compiled by torch without a graph break.

        Args:
            fields: From `inputs`.
            n_molecules: Number of molecules.

        Returns:
            The normalised fields, and `energy_reference`.
        """
        out: dict[str, Tensor] = {}
        if self.reference is None:
            out["energy_reference"] = self.energy_scale.new_zeros(n_molecules)
        else:
            out["energy_reference"] = self.reference.energy_of(fields, n_molecules)
        if self.energy_field in fields:
            energy = fields[self.energy_field].to(torch.float64)
            out[self.energy_field] = (energy - out["energy_reference"].reshape(energy.shape)) / self.energy_scale
        if self.forces_field is not None and self.forces_field in fields:
            out[self.forces_field] = fields[self.forces_field].to(torch.float64) / self.energy_scale
        if "basis_function_ind" not in fields:
            return out
        index = fields["basis_function_ind"]
        if "gradient_label" in fields:
            gradient = fields["gradient_label"].to(torch.float64)
            if isinstance(self.reference, AtomRef):
                gradient = gradient - self.reference.g_z[index]
            out["gradient_label"] = gradient / self.energy_scale
        if self.rescaling is not None:
            scale, bias = self.rescaling.lambda_z[index], self.rescaling.coeff_biases[index]
            for name in VECTORS:
                if name in fields:
                    out[name] = scale * (fields[name].to(torch.float64) - bias)
            if "gradient_label" in fields:
                out["gradient_label"] = out["gradient_label"] / (scale + self.rescaling.epsilon)
            if "dual_basis_integrals" in fields:
                # duals of vectors: w'.p' + w.pbar = N, so lambda itself, without epsilon
                out["dual_basis_integrals"] = fields["dual_basis_integrals"].to(torch.float64) / scale
        return out

    def denormalize(self, sample_or_batch: DataT) -> DataT:
        """Returns a copy in physical units, in float64: the inverse of `normalize`.

        Raises:
            NormalizationError: If the sample is not normalised.
        """
        batch = sample_or_batch
        self._require_normalized(batch)
        out = copy.copy(batch)
        for field in VECTORS:
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

    def denormalize_energy(self, energy: Tensor, batch: Data) -> Tensor:
        """Returns energies in hartree: E = s E' + E_ref(p).

        Args:
            energy: (n_molecules,) or (n_molecules, 1), any dtype.
            batch: The normalised batch that the energies were predicted for.

        Returns:
            Float64 [hartree], in the argument's shape.

        Raises:
            NormalizationError: If the batch is not normalised, or has another number of molecules.
        """
        self._require_normalized(batch)
        check_energy("energy", energy, batch.energy_reference.numel(), batch)
        return energy.to(torch.float64) * self.energy_scale + batch.energy_reference.reshape(energy.shape)

    def denormalize_gradient(self, gradient: Tensor, batch: Data) -> Tensor:
        """Returns gradients with respect to the original coefficients, (n_basis,) float64 [hartree].

        Args:
            gradient: (n_basis,) predicted g' = dE'/dp', any dtype.
            batch: The batch it was predicted for.

        Raises:
            NormalizationError: If the gradient does not have one entry for each basis function of the batch.
        """
        check_vector("gradient", gradient, batch)
        gradient = gradient.to(torch.float64)
        if self.rescaling is not None:
            gradient = self.rescaling.unscale_gradient(gradient, batch)
        gradient = gradient * self.energy_scale
        return gradient + self.reference.gradient(batch) if isinstance(self.reference, AtomRef) else gradient

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
        index = check_vector("dual_basis_integrals", integrals, batch)
        integrals = integrals.to(torch.float64)
        return integrals if self.rescaling is None else integrals * self.rescaling.lambda_z[index]

    # --- guards -------------------------------------------------------------------------------------------------

    def check_elements(self, batch: Data) -> None:
        """Refuses atoms whose statistics or reference are unknown.

        Raises:
            NormalizationError: If an element was not seen in fitting, or has no reference energy.
        """
        if isinstance(self.reference, LinearReferences):
            self.reference.check_elements(self.reference.atomic_numbers(batch))
        if self.seen_elements is not None and "atomic_numbers" in batch:
            check_seen_elements(self.seen_elements, batch)

    def _require_normalized(self, batch: Data) -> None:
        if "normalized" not in batch:
            raise NormalizationError(
                "the batch is not normalised: there is nothing to invert. Use the batches of OFDFTDataModule's "
                "loaders, or pass the sample through normalize() first"
            )
