"""The normaliser: reference, rescaling and energy scale composed, with exact inverses."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.fields import DUAL_VECTORS, PER_FUNCTION, VECTORS
from ofdft_norm.data.of_data import get_field, molecule_index, n_molecules, with_added_fields
from ofdft_norm.errors import ConfigError, NormalizationError
from ofdft_norm.normalization.affine import Affine
from ofdft_norm.normalization.dimension_wise_rescaling import DimensionWiseRescaling
from ofdft_norm.normalization.float64_module import Float64Module
from ofdft_norm.normalization.guards import (
    check_coordinates,
    check_energy,
    check_fields,
    check_is_sample,
    check_seen_elements,
    check_values,
    check_vector,
    require_field,
)
from ofdft_norm.normalization.reference import Fields, Reference
from ofdft_norm.normalization.training_range import RangeExcess, TrainingRange
from ofdft_norm.transforms.basis_transforms import change_coordinates, coordinates_of, to_coordinates
from ofdft_norm.units import check_unit

DataT = TypeVar("DataT", bound=Data)

# What `normalize` adds to a sample.
ADDED_FIELDS = ("normalized", "energy_reference", "energy_reference_coeffs")


class Normalizer(Float64Module):
    """E' = (E - E_ref(p)) / s;  g' = (g - dE_ref/dp) / (s (lambda + epsilon));  p' = lambda (p - pbar).

    A network on p' that predicts E' gives g' by autograd (to epsilon). All arithmetic is float64, and the buffers stay
    float64 whatever the module is cast to.

    Samples are PyG's `Data`, or of another class with `keys()` and items, such as fairchem's `AtomicData`.

    `normalize` stores each molecule's reference energy on the sample as `energy_reference` (float64), so that
    `denormalize_energy` is exact even after the coefficients have been cast to the training dtype. Where the
    coefficients are then moved, as density optimisation does, the reference moves with them.

    Args:
        reference: `AtomRef`, `LinearReferences`, or None.
        rescaling: `DimensionWiseRescaling`, or None.
        energy_scale: s > 0 [`unit` per unit of normalised energy]; divides energies and gradients alike.
        seen_elements: (119,) bool by atomic number, the elements that the statistics were fitted on. Atoms of others
            are refused. None: no check.
        energy_field: Field that holds the energy, for data sets with names of their own.
        forces_field: Field that holds forces, if any: (n_atom, 3), divided by `energy_scale` like the energy.
        basis_info: The density basis, against which the indices of samples are checked; None: they are not.
        coordinates: What the statistics' vectors were given in; samples that say otherwise are refused. None: no check.
        training_range: The training split's range of coefficients, for `range_excess`; None: not known.
        unit: Unit of all energies that go in and come out: ``hartree``, ``eV`` or ``kcal/mol``. Nothing is converted.

    Raises:
        ConfigError: If `energy_scale` is not a positive number, or there is no such unit.
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
        basis_info: BasisInfo | None = None,
        coordinates: str | None = None,
        training_range: TrainingRange | None = None,
        unit: str = "hartree",
    ) -> None:
        super().__init__()
        self.unit = check_unit(unit)
        if not 0 < float(energy_scale) < float("inf"):
            raise ConfigError(
                f"energy_scale = {float(energy_scale)}: expected a positive number (config: data.energy_scale)"
            )
        self.energy_field = energy_field
        self.forces_field = forces_field
        self.basis_info = basis_info
        self.coordinates = coordinates
        self.reference = reference
        self.rescaling = rescaling
        self.training_range = training_range
        self.register_float64("energy_scale", torch.as_tensor(energy_scale, dtype=torch.float64).reshape(()))
        self.register_buffer("seen_elements", None if seen_elements is None else seen_elements.clone().bool())

    # --- samples and batches ------------------------------------------------------------------------------------

    def normalize(
        self,
        sample_or_batch: DataT,
        check_values: bool = True,
        share: bool = False,
        dtype: torch.dtype = torch.float64,
    ) -> DataT:
        """Returns a normalised copy; the argument stays as it is.

        Vectors (`coeffs`, `ground_state_coeffs`) and dual vectors (`gradient_label`, `dual_basis_integrals`) that the
        sample has are rescaled, `energy_label` is referenced and scaled. `energy_reference` [`unit`] and the flag
        `normalized` are added.

        Args:
            sample_or_batch: Raw, in physical units.
            check_values: Whether elements, indices and coefficients are checked (see `check`); False where that was
                done before.
            share: Whether fields that stay as they are are the argument's own, not copies.
            dtype: What the normalised fields are cast to; `energy_reference` stays float64.

        Returns:
            The copy; it shares no other memory with the argument.

        Raises:
            NormalizationError: If the sample is normalised already, has an element that was not seen in fitting, NaN
                coefficients, or lacks a field or has one of the wrong length.
            BatchError: If a batch lacks `coeffs_batch`, or its indices contradict each other.
        """
        raw = sample_or_batch
        check_is_sample(raw)
        if "normalized" in raw:
            raise NormalizationError(
                "the sample is normalised already; normalising it again would shift its labels silently. Give "
                "normalize() raw samples: the data module's loaders yield normalised ones"
            )
        if check_values:
            self.check(raw)
        check_coordinates(self.coordinates, raw)
        n = n_molecules(raw)
        out = _with_fields(raw, self.normalize_fields(self.fields_of(raw), n, dtype), share)
        out["normalized"] = torch.ones(n, dtype=torch.bool, device=out["energy_reference"].device)
        added: dict[str, str | None] = {"energy_reference": None, "normalized": None}
        if self.reference is not None and self.reference.depends_on_coeffs:
            out["energy_reference_coeffs"] = out["coeffs"].clone()
            added["energy_reference_coeffs"] = "coeffs"
        return with_added_fields(out, added)

    def fields_of(self, raw: Data) -> dict[str, Tensor]:
        """Returns the fields of a raw sample or batch that `normalize_fields` reads, checked.

        Args:
            raw: A raw sample or batch.
        """
        fields = {name: raw[name] for name in self._transformed(raw)}
        check_fields(fields, raw, self.energy_field, n_molecules(raw), self.forces_field)
        if "coeffs" in fields:
            molecule_index(raw)
        if get_field(raw, "basis_function_ind") is not None:
            fields["basis_function_ind"] = raw["basis_function_ind"]
        return fields if self.reference is None else {**fields, **self.reference.fields_of(raw)}

    def normalize_fields(
        self, fields: Mapping[str, Tensor], n_molecules: int, dtype: torch.dtype = torch.float64
    ) -> dict[str, Tensor]:
        """The arithmetic of `normalize` alone: tensors in, tensors out, compiled by torch without a graph break.

        Args:
            fields: From `fields_of`.
            n_molecules: Number of molecules.
            dtype: What the normalised fields are cast to.

        Returns:
            The normalised fields, and `energy_reference` in float64.
        """
        if self.reference is None:
            energy = self.energy_scale.new_zeros(n_molecules)
        else:
            gradient = self.reference.gradient_of(fields)
            fields = fields if gradient is None else {**fields, "reference_gradient": gradient}
            energy = self.reference.energy_of(fields, n_molecules)
        fields = {**fields, "energy_reference": energy}
        affines = self.affines(self._transformed(fields), fields)
        normalized = {name: affine.normalize(fields[name], dtype) for name, affine in affines.items()}
        return {**normalized, "energy_reference": energy}

    def denormalize(self, sample_or_batch: DataT, coordinates: str | None = None) -> DataT:
        """Returns a copy in physical units, in float64: the inverse of `normalize`.

        The energy label stays that of the coefficients that were normalised, wherever `coeffs` were moved since.

        Args:
            sample_or_batch: Normalised.
            coordinates: What to return coefficients, gradients and integrals in: ``raw`` is the density basis as it is;
                None: the coordinates that were normalised. The change of basis is made again from geometry and basis,
                molecule by molecule; see `ofdft_norm.transforms`. Gradients that were projected in other coordinates
                differ from the raw label's projection by a multiple of the integrals.

        Raises:
            NormalizationError: If the sample is not normalised.
        """
        batch = sample_or_batch
        self._require_normalized(batch)
        affines = self.affines(self._transformed(batch), batch)
        out = _with_fields(batch, {name: affine.denormalize(batch[name]) for name, affine in affines.items()})
        for name in ADDED_FIELDS:
            if name in out:
                del out[name]
        return out if coordinates is None else to_coordinates(out, coordinates)

    def affines(self, names: Sequence[str], fields: Fields) -> dict[str, Affine]:
        """Returns origin and unit of fields: the formulas of this class, for both directions.

        Args:
            names: Some of the fields that are transformed; what several of them need is looked up once.
            fields: A sample or batch, or its tensors: `basis_function_ind`, and `energy_reference` for the energy.
        """
        # references do not depend on positions
        affines = {name: Affine(unit=self.energy_scale) for name in names if name == self.forces_field}
        if self.energy_field in names:
            affines[self.energy_field] = Affine(fields["energy_reference"], self.energy_scale)
        vectors, integrals, gradient = Affine(), Affine(), Affine(unit=self.energy_scale)
        if self.rescaling is not None and not affines.keys() >= set(names):
            factors = self.rescaling.factors.at(fields["basis_function_ind"])
            vectors, integrals = factors.coeffs, factors.integrals
            gradient = Affine(unit=factors.gradient_unit * self.energy_scale)
        if self.reference is not None and "gradient_label" in names:
            gradient = gradient._replace(origin=self.reference.gradient_of(fields))
        of_functions = {**dict.fromkeys(VECTORS, vectors), "gradient_label": gradient}
        return affines | {name: of_functions.get(name, integrals) for name in names if name in PER_FUNCTION}

    def affine(self, name: str, fields: Fields) -> Affine:
        """Returns origin and unit of one field; see `affines`.

        Args:
            name: Name of the field.
            fields: What `fields_of` returned.
        """
        return self.affines([name], fields)[name]

    def _transformed(self, fields: Fields) -> list[str]:
        """Returns the names of the fields that are transformed, as far as they are there."""
        names = (self.energy_field, self.forces_field, *PER_FUNCTION)
        return [name for name in names if name is not None and get_field(fields, name) is not None]

    # --- single quantities --------------------------------------------------------------------------------------

    def denormalize_energy(self, energy: Tensor, batch: Data) -> Tensor:
        """Returns energies in `unit`: E = s E' + E_ref(p), with p the batch's present `coeffs`.

        Args:
            energy: (n_molecules,) or (n_molecules, 1), any dtype.
            batch: The normalised batch that the energies were predicted for. Its `coeffs` may have been moved since it
                was normalised; as long as they were not, E_ref is the stored one, to the last bit.

        Returns:
            Float64 [`unit`], in the argument's shape; differentiable with respect to `energy` and `batch.coeffs`.

        Raises:
            NormalizationError: If the batch is not normalised, or has another number of molecules.
        """
        self._require_normalized(batch)
        check_energy("energy", energy, batch["energy_reference"].numel(), batch)
        energies = self.affine(self.energy_field, batch).denormalize(energy)
        change = self._reference_change(batch)
        return energies if change is None else energies + change.reshape(energy.shape)

    def _reference_change(self, batch: Data) -> Tensor | None:
        """Returns E_ref(p) less the stored one: gbar.(p - p_stored), 0 where the coefficients were not moved.

        E_ref is linear in the coefficients, and the stored ones were cast as the present ones were: the difference
        has neither's rounding.
        """
        coeffs, stored = get_field(batch, "coeffs"), get_field(batch, "energy_reference_coeffs")
        if self.reference is None or coeffs is None or stored is None:
            return None
        index = check_vector("coeffs", coeffs, batch)
        gradient = self.reference.gradient_of({"basis_function_ind": index})
        if gradient is None:
            return None
        moved = coeffs.to(torch.float64) - stored.to(torch.float64)
        change = gradient * self.affine("coeffs", batch).denormalize_difference(moved)
        return torch.zeros_like(batch["energy_reference"]).index_add(0, molecule_index(batch), change)

    def denormalize_gradient(self, gradient: Tensor, batch: Data, coordinates: str | None = None) -> Tensor:
        """Returns gradients with respect to the original coefficients, (n_basis,) float64 [`unit`].

        Args:
            gradient: (n_basis,) predicted g' = dE'/dp', any dtype.
            batch: The batch it was predicted for.
            coordinates: As for `denormalize`.

        Raises:
            NormalizationError: If the gradient does not have one entry for each basis function of the batch.
        """
        check_vector("gradient", gradient, batch)
        return _in_coordinates(
            self.affine("gradient_label", batch).denormalize(gradient), "gradient_label", batch, coordinates
        )

    def denormalize_gradient_difference(
        self, difference: Tensor, batch: Data, coordinates: str | None = None
    ) -> Tensor:
        """Returns the difference of two gradients in original coordinates: without the reference, which cancels.

        Args:
            difference: (n_basis,) difference of two normalised gradients.
            batch: The batch that they belong to.
            coordinates: As in `denormalize_gradient`.
        """
        check_vector("gradient difference", difference, batch)
        difference = self.affine("gradient_label", batch).denormalize_difference(difference)
        return _in_coordinates(difference, "gradient_label", batch, coordinates)

    def denormalize_forces(self, forces: Tensor, batch: Data) -> Tensor:
        """Returns forces F = s F', float64; references do not depend on positions.

        Args:
            forces: (n_atom, 3) normalised forces.
            batch: The batch that they belong to.
        """
        return Affine(unit=self.energy_scale).denormalize(forces)

    def denormalize_coeffs(self, coeffs: Tensor, batch: Data, coordinates: str | None = None) -> Tensor:
        """Returns p = p' / lambda + pbar, (n_basis,) float64; raises as `denormalize_gradient`.

        Args:
            coeffs: (n_basis,) normalised coefficients.
            batch: The batch that they belong to.
            coordinates: As in `denormalize_gradient`.
        """
        check_vector("coeffs", coeffs, batch)
        return _in_coordinates(self.affine("coeffs", batch).denormalize(coeffs), "coeffs", batch, coordinates)

    def denormalize_integrals(self, integrals: Tensor, batch: Data, coordinates: str | None = None) -> Tensor:
        """Returns w = lambda w', (n_basis,) float64 [electrons]; raises as `denormalize_gradient`.

        Args:
            integrals: (n_basis,) normalised integrals of the basis functions.
            batch: The batch that they belong to.
            coordinates: As in `denormalize_gradient`.
        """
        check_vector("dual_basis_integrals", integrals, batch)
        integrals = self.affine("dual_basis_integrals", batch).denormalize(integrals)
        return _in_coordinates(integrals, "dual_basis_integrals", batch, coordinates)

    # --- how much a prediction is an extrapolation ---------------------------------------------------------------

    def range_excess(self, sample_or_batch: Data) -> RangeExcess | None:
        """Returns how far samples leave the training split's range of coefficients; None where it is not known.

        Args:
            sample_or_batch: Normalised or raw; its present `coeffs` count.

        Raises:
            NormalizationError: If the sample lacks coefficients or indices.
        """
        batch = sample_or_batch
        if self.training_range is None:
            return None
        coeffs = require_field("coeffs", batch, "is compared with the training range")
        index = check_vector("coeffs", coeffs, batch)
        raw = self.affine("coeffs", batch).denormalize(coeffs) if "normalized" in batch else coeffs
        return self.training_range.excess(raw, index, molecule_index(batch), n_molecules(batch))

    # --- guards -------------------------------------------------------------------------------------------------

    def check(self, batch: Data) -> None:
        """Refuses a raw sample or batch whose values cannot be right; see also `ofdft_norm.normalization.guards`.

        Args:
            batch: A raw sample or batch.

        Raises:
            NormalizationError: If an element was not seen in fitting or has no reference energy, or a coefficient is
                not finite.
            BatchError: If indices contradict each other, or the elements and the basis.
        """
        if self.reference is not None:
            self.reference.check_elements(batch)
        if self.seen_elements is not None and "atomic_numbers" in batch:
            check_seen_elements(self.seen_elements, batch)
        check_values(batch, self.basis_info)

    def _require_normalized(self, batch: Data) -> None:
        check_is_sample(batch)
        if "normalized" not in batch:
            raise NormalizationError(
                "the batch is not normalised: there is nothing to invert. Use the batches of OFDFTDataModule's "
                "loaders, or pass the sample through normalize() first"
            )


def _in_coordinates(values: Tensor, field: str, batch: Data, coordinates: str | None) -> Tensor:
    """Brings values of a field into the coordinates that are asked for; None: they stay as they are."""
    if coordinates is None:
        return values
    return change_coordinates(values, batch, field in DUAL_VECTORS, coordinates_of(batch), coordinates)


def _with_fields(batch: DataT, fields: Mapping[str, Tensor], share: bool = False) -> DataT:
    """Returns a copy with some fields replaced; it shares memory with the argument only where that is asked for."""
    if isinstance(batch, Data):
        out = copy.copy(batch)
        for name, value in batch.items():
            if not share and name not in fields and isinstance(value, Tensor):
                out[name] = value.clone()
    else:  # copies of other classes may share more than their tensors
        out = copy.deepcopy(batch)
    for name, value in fields.items():
        out[name] = value.clone() if not share and value is get_field(batch, name) else value
    return out
