"""The normaliser: reference, rescaling and energy scale composed, with exact inverses."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm.data.basis import BasisInfo
from ofdft_norm.data.sample import (
    DUAL_VECTORS,
    PER_FUNCTION,
    DataT,
    IntArray,
    count_molecules,
    find_molecule_index,
    get_field,
    is_sample,
    register_fields,
    set_field,
)
from ofdft_norm.errors import BatchError, ConfigError, NormalizationError
from ofdft_norm.normalization.base import (
    Affine,
    Fields,
    Float64Module,
    Reference,
    check_shape,
    describe,
    find_unknown,
    get_function_index,
    name_molecules,
    require_field,
)
from ofdft_norm.normalization.dimension_wise_rescaling import DimensionWiseRescaling
from ofdft_norm.normalization.training_range import RangeExcess, TrainingRange
from ofdft_norm.transforms.coordinates import change_coordinates, read_coordinates, to_coordinates
from ofdft_norm.transforms.project_gradient import project_gradient
from ofdft_norm.units import check_unit

# fields that `normalize` adds to a sample
ADDED_FIELDS = ("normalized", "integrals_rescaled", "energy_reference", "energy_reference_coeffs")


class Normalizer(Float64Module):
    """E' = (E - E_ref(p)) / s;  g' = (g - dE_ref/dp) / (s (lambda + epsilon));  p' = lambda (p - pbar).

    A network on p' that predicts E' gives g' by autograd (to epsilon). All arithmetic is float64, and the buffers stay
    float64 in every training precision.

    Samples are PyG's `Data`, or objects of another class with `keys()` and items, such as fairchem's `AtomicData`.

    `normalize` stores the reference energy of each molecule on the sample as `energy_reference` (float64), so that
    `denormalize_energy` is exact even after the coefficients have been cast to the training dtype. If the coefficients
    are moved later, as in density optimisation, the reference moves with them.

    Args:
        reference: `AtomRef`, `LinearReferences`, `DatasetReferences` or None.
        rescaling: `DimensionWiseRescaling` or None.
        energy_scale: s > 0 [`unit` per unit of normalised energy]; divides energies and gradients alike.
        seen_elements: (119,) bool by atomic number: the elements that the statistics were fitted on. Atoms of others
            are refused. None: no check.
        energy_field: Field of the energies.
        forces_field: Field of the forces, if any: (n_atom, 3), divided by `energy_scale` like the energy.
        basis_info: The density basis, for checks of the samples' indices; None: no such checks.
        coordinates: Coordinates in which the statistics were fitted; samples in others are refused. None: no check.
        training_range: Range of the training coefficients, for `range_excess`; None: not known.
        unit: Unit of all energies: ``hartree``, ``eV`` or ``kcal/mol``. Nothing is converted.
        stress_field: Field of the stress, if any: (n_molecules, 6) or (n_molecules, 3, 3), divided like the forces.

    Raises:
        ConfigError: If `energy_scale` is not a positive number, or the unit is unknown.
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
        stress_field: str | None = None,
    ) -> None:
        super().__init__()
        self.unit = check_unit(unit)
        self.register_float64("energy_scale", energy_scale)
        self.energy_scale = self.energy_scale.reshape(())
        if not 0 < float(self.energy_scale) < math.inf:
            what = f"energy_scale = {float(self.energy_scale)}"
            raise ConfigError(f"{what}: expected a positive number (config: data.energy_scale)")
        self.energy_field, self.forces_field, self.stress_field = energy_field, forces_field, stress_field
        self.basis_info, self.coordinates = basis_info, coordinates
        self.reference, self.rescaling, self.training_range = reference, rescaling, training_range
        self.register_buffer("seen_elements", None if seen_elements is None else seen_elements.clone().bool())

    # --- samples and batches --------------------------------------------------------------------------------------

    def normalize(
        self,
        sample_or_batch: DataT,
        check: bool = True,
        share: bool = False,
        dtype: torch.dtype = torch.float64,
    ) -> DataT:
        """Returns a normalised copy; the argument stays as it is.

        Vectors (`coeffs`, `ground_state_coeffs`), dual vectors (`gradient_label`, `dual_basis_integrals`), the energy
        and the forces are normalised if the sample has them. `energy_reference` [`unit`] and the flag `normalized`
        are added; with a rescaling, also the flag `integrals_rescaled`.

        Args:
            sample_or_batch: Raw, in physical units.
            check: Validate elements, indices, coefficients and positions (see `check`); set False only if they were
                validated before.
            share: Let the copy share unchanged fields with the argument instead of copying them.
            dtype: Dtype of the normalised fields; `energy_reference` stays float64.

        Returns:
            The copy.

        Raises:
            NormalizationError: If the sample is normalised already, is in other coordinates than the statistics, has an
                unseen element, complex fields, NaN coefficients or infinite positions, or lacks a field or has one of
                the wrong length.
            BatchError: If a batch lacks `coeffs_batch`, or its indices contradict each other.
        """
        raw = sample_or_batch
        if not is_sample(raw) or "normalized" in raw:
            raise make_state_error(raw, "is normalised already: give normalize() raw samples")
        if check:
            self.check(raw)
        is_named = self.coordinates is not None and get_field(raw, "coordinates") is not None
        if is_named and read_coordinates(raw) != self.coordinates:
            what = f"{read_coordinates(raw)!r}, expected {self.coordinates!r}, as in the statistics"
            keys = "(config: data.pre_transforms, data.statistics.path)"
            raise NormalizationError(f"{describe(raw)}: field 'coordinates' is {what} {keys}")
        n = count_molecules(raw)
        energy = self.energy_scale.new_zeros(n) if self.reference is None else self.reference.compute_energy(raw)
        fields = {"energy_reference": energy, "normalized": torch.ones(n, dtype=torch.bool, device=energy.device)}
        for name, affine in self._make_affines(raw, energy).items():
            fields[name] = affine.normalize(raw[name]).to(dtype)
        added: dict[str, str | None] = {"energy_reference": None, "normalized": None}
        if self.rescaling is not None:
            fields["integrals_rescaled"], added["integrals_rescaled"] = fields["normalized"].clone(), None
        if self.reference is not None and self.reference.depends_on_coeffs:
            fields["energy_reference_coeffs"], added["energy_reference_coeffs"] = fields["coeffs"].clone(), "coeffs"
        return register_fields(_copy_with_fields(raw, fields, share), added)

    def denormalize(self, sample_or_batch: DataT, coordinates: str | None = None) -> DataT:
        """Returns a copy in physical units, in float64: the inverse of `normalize`.

        The energy label belongs to the coefficients that were normalised, even if `coeffs` were moved since.

        Args:
            sample_or_batch: Normalised.
            coordinates: Coordinates of the returned coefficients, gradients and integrals: ``raw`` is the density basis
                itself; None: the coordinates that were normalised. The change of basis is made again from geometry and
                basis of each molecule; see `ofdft_norm.transforms`. Gradients that were projected in other coordinates
                differ from the projection of the raw label by a multiple of the integrals.

        Returns:
            The copy, without the fields that `normalize` added.

        Raises:
            NormalizationError: If the sample is not normalised.
        """
        batch = sample_or_batch
        if (energy_reference := get_field(batch, "energy_reference")) is None:
            raise make_state_error(batch)
        affines = self._make_affines(batch, energy_reference)
        out = _copy_with_fields(batch, {name: affine.denormalize(batch[name]) for name, affine in affines.items()})
        for name in ADDED_FIELDS:
            if name in out:
                del out[name]
        return out if coordinates is None else to_coordinates(out, coordinates)

    def _make_affines(self, batch: Fields, energy_reference: Tensor) -> dict[str, Affine]:
        """Checks the shapes of the fields that a batch has, and returns their affine maps: this class's formulas."""
        affines, n = {}, energy_reference.numel()
        if (energy := get_field(batch, self.energy_field)) is not None:
            check_shape(self.energy_field, energy, batch, (n,), (n, 1), () if n == 1 else (n,))
            affines[self.energy_field] = Affine(energy_reference, self.energy_scale)
        if self.forces_field is not None and (forces := get_field(batch, self.forces_field)) is not None:
            check_shape(self.forces_field, forces, batch, (find_molecule_index(batch, "pos").numel(), 3))
            affines[self.forces_field] = Affine(scale=self.energy_scale)  # references do not depend on positions
        if self.stress_field is not None and (stress := get_field(batch, self.stress_field)) is not None:
            check_shape(self.stress_field, stress, batch, (n, 6), (n, 3, 3))
            affines[self.stress_field] = Affine(scale=self.energy_scale)
        of_functions: dict[str, Affine] = {}
        for name in PER_FUNCTION:
            if (values := get_field(batch, name)) is not None:
                index = get_function_index(name, values, batch)
                of_functions = of_functions or self._make_function_affines(index)
                affines[name] = of_functions[name]
        if "coeffs" in affines:
            find_molecule_index(batch)  # raises BatchError if a batch lacks coeffs_batch
        return affines

    def _make_function_affines(self, index: Tensor) -> dict[str, Affine]:
        """Returns the affine map of each field of some basis functions."""
        affines = self.rescaling.make_affines(index) if self.rescaling else dict.fromkeys(PER_FUNCTION, Affine())
        scale = affines["gradient_label"].scale
        origin = None if self.reference is None else self.reference.find_gradient(index)
        affines["gradient_label"] = Affine(origin, self.energy_scale if scale is None else scale * self.energy_scale)
        return affines

    # --- single quantities ----------------------------------------------------------------------------------------

    def denormalize_energy(self, energy: Tensor, batch: Data) -> Tensor:
        """Returns energies in `unit`: E = s E' + E_ref(p), with p the present `coeffs` of the batch.

        Args:
            energy: (n_molecules,) or (n_molecules, 1) predicted E', any dtype.
            batch: The normalised batch that the energies were predicted for. Its `coeffs` may have been moved since it
                was normalised; otherwise E_ref is the stored one, to the last bit.

        Returns:
            Float64 [`unit`], in the argument's shape; differentiable with respect to `energy` and `batch.coeffs`.

        Raises:
            NormalizationError: If the batch is not normalised, or has another number of molecules.
        """
        stored, coeffs = get_field(batch, "energy_reference"), get_field(batch, "coeffs")
        if stored is None:
            raise make_state_error(batch)
        n = stored.numel()
        check_shape("energy", energy, batch, (n,), (n, 1), () if n == 1 else (n,))
        energies = energy.to(torch.float64) * self.energy_scale + stored.reshape(energy.shape)
        stored_coeffs = get_field(batch, "energy_reference_coeffs")
        if self.reference is None or coeffs is None or stored_coeffs is None:
            return energies
        # E_ref is linear in the coefficients; both have been cast alike, so that the cast's rounding cancels
        index = get_function_index("coeffs", coeffs, batch)
        moved = coeffs.to(torch.float64) - stored_coeffs.to(torch.float64)
        if self.rescaling is not None:
            moved = moved / self.rescaling.lambda_z.index_select(0, index)
        gradient = self.reference.find_gradient(index)
        if gradient is None:
            return energies
        change = torch.zeros_like(stored).index_add(0, find_molecule_index(batch), gradient * moved)
        return energies + change.reshape(energy.shape)

    def denormalize_gradient(self, gradient: Tensor, batch: Data, coordinates: str | None = None) -> Tensor:
        """Returns gradients with respect to the original coefficients.

        Args:
            gradient: (n_basis,) predicted g' = dE'/dp', any dtype.
            batch: The batch that it was predicted for.
            coordinates: As for `denormalize`.

        Returns:
            (n_basis,) float64 [`unit`].

        Raises:
            NormalizationError: If the gradient does not have one entry for each basis function of the batch.
        """
        return self._denormalize_field("gradient_label", gradient, batch, coordinates)

    def denormalize_coeffs(self, coeffs: Tensor, batch: Data, coordinates: str | None = None) -> Tensor:
        """Returns p = p' / lambda + pbar; arguments and result as for `denormalize_gradient`."""
        return self._denormalize_field("coeffs", coeffs, batch, coordinates)

    def denormalize_integrals(self, integrals: Tensor, batch: Data, coordinates: str | None = None) -> Tensor:
        """Returns w = lambda w' [electrons]; arguments and result as for `denormalize_gradient`."""
        return self._denormalize_field("dual_basis_integrals", integrals, batch, coordinates)

    def denormalize_forces(self, forces: Tensor, batch: Data) -> Tensor:
        """Returns forces F = s F', or a stress, in the argument's shape, float64; references depend on no positions."""
        return forces.to(torch.float64) * self.energy_scale

    denormalize_stress = denormalize_forces

    def _denormalize_field(
        self, field: str, values: Tensor, batch: Data, coordinates: str | None, difference: bool = False
    ) -> Tensor:
        affine = self._make_function_affines(get_function_index(field, values, batch))[field]
        values = affine.denormalize_difference(values) if difference else affine.denormalize(values)
        if coordinates is None:
            return values
        return change_coordinates(values, batch, field in DUAL_VECTORS, read_coordinates(batch), coordinates)

    def gradient_difference(self, gradient: Tensor, batch: Data, coordinates: str | None = None) -> Tensor:
        """Returns prediction minus label in original coordinates, projected onto constant electron number.

        P (g_predicted - g_label) with P g = g - w (w.g) / (w.w) for each molecule and the ORIGINAL integrals w.
        [M-OFDFT] and [STR25] compute losses and errors from it. A loss on normalised gradients has other weights.

        Args:
            gradient: (n_basis,) predicted g' = dE'/dp', any dtype.
            batch: The normalised batch that it was predicted for, with `gradient_label` and `dual_basis_integrals`.
            coordinates: Coordinates of the difference and of its projection, as for `denormalize`.

        Returns:
            (n_basis,) float64 [`unit`], differentiable with respect to `gradient`. If `has_energy_label` is false,
            the values have no meaning.

        Raises:
            NormalizationError: If the batch is not normalised or lacks one of these fields, or the gradient does not
                have one entry for each of its basis functions.
        """
        if get_field(batch, "normalized") is None:
            raise make_state_error(batch)
        label, integrals = (require_field(name, batch) for name in DUAL_VECTORS)
        get_function_index("gradient", gradient, batch)
        difference = gradient.to(torch.float64) - label.to(torch.float64)
        difference = self._denormalize_field("gradient_label", difference, batch, coordinates, difference=True)
        raw = Data(coeffs_batch=find_molecule_index(batch), ptr=get_field(batch, "ptr"))
        raw.dual_basis_integrals = self.denormalize_integrals(integrals, batch, coordinates)
        return project_gradient(difference, raw)

    def range_excess(self, sample_or_batch: Data) -> RangeExcess | None:
        """Returns the distances of the present `coeffs` of raw or normalised samples from the training range."""
        batch = sample_or_batch
        if self.training_range is None:
            return None
        coeffs = require_field("coeffs", batch)
        index = get_function_index("coeffs", coeffs, batch)
        raw = self.denormalize_coeffs(coeffs, batch) if "normalized" in batch else coeffs
        return self.training_range.excess(raw, index, find_molecule_index(batch), count_molecules(batch))

    # --- validation of a user's own samples -------------------------------------------------------------------------

    def check(self, batch: Data) -> None:
        """Validates elements, numbers and indices of a raw sample or batch.

        Raises:
            NormalizationError: If an element was not seen in fitting or has no reference energy, a coefficient or a
                position is not finite, or a field is complex.
            BatchError: If indices contradict each other, or the elements and the basis.
        """
        numbers = get_field(batch, "atomic_numbers")
        if self.reference is not None:
            self.reference.check_elements(batch)
        if self.seen_elements is not None and numbers is not None:
            unknown = find_unknown(self.seen_elements, numbers)
            if unknown.any():
                self.check_numbers(numbers[unknown], name_molecules(batch, unknown))
        for name in ("coeffs", "pos"):
            values = get_field(batch, name)
            # the sum of finite labels is finite, and faster than a look at each entry
            if values is not None and not torch.isfinite(values.detach().sum()) and not torch.isfinite(values).all():
                entry = int((~torch.isfinite(values.reshape(-1))).nonzero()[0])
                what = f"{values.reshape(-1)[entry].item()} at entry {entry}, expected finite numbers in every sample"
                raise NormalizationError(f"{describe(batch)}: {name!r} has {what}")
        check_indices(batch, self.basis_info)

    def check_numbers(self, numbers: Tensor, where: str = "the samples") -> None:
        """Raises NormalizationError for atomic numbers, from `where`, that were not seen or have no reference."""
        if self.reference is not None:
            self.reference.check_numbers(numbers, where)
        seen = self.seen_elements
        if seen is not None and (unseen := numbers[find_unknown(seen, numbers)].unique().tolist()):
            raise NormalizationError(
                f"{where}: field 'atomic_numbers' has the elements {unseen}, but the training split has "
                f"{seen.nonzero().squeeze(1).tolist()}: add molecules to it (config: data.split), or leave such "
                "coefficients unscaled (config: data.unseen_elements=identity)"
            )


def make_state_error(batch: Any, state: str | None = None) -> NormalizationError:
    """Returns the error for objects that are no sample, not normalised, or in another `state`."""
    if not is_sample(batch):
        what = f"expected a sample or batch (torch_geometric.data.Data, such as OFData), got a {type(batch).__name__}"
        return NormalizationError(what)
    state = state or "is not normalised: use the batches of OFDFTDataModule's loaders, or call normalize() first"
    return NormalizationError(f"{describe(batch)} {state}")


def check_indices(batch: Data, basis_info: BasisInfo | None) -> None:
    """Raises BatchError for indices of molecules, elements and functions that contradict each other or the basis.

    Atoms that were permuted among those of one element cannot be detected.
    """
    expected: dict[str, IntArray] = {}
    if get_field(batch, "batch") is not None:
        molecule = _read_integers(batch, "batch")
        n_atoms = next((len(batch[n]) for n in ("pos", "atomic_numbers", "z") if get_field(batch, n) is not None), 0)
        expected["batch"] = np.resize(np.sort(molecule.clip(0, count_molecules(batch) - 1)), n_atoms or len(molecule))
    if basis_info is not None and not any(get_field(batch, name) is None for name in ("atomic_numbers", "atom_ind")):
        atom_ind = basis_info.atom_indices(_read_integers(batch, "atomic_numbers"), describe(batch))
        expected |= {"atom_ind": atom_ind, "basis_function_ind": basis_info.basis_function_ind(atom_ind)}
        if "batch" in expected:
            expected["coeffs_batch"] = np.repeat(expected["batch"], basis_info.basis_dim_per_atom[atom_ind])
    for name, values in expected.items():
        found = values if get_field(batch, name) is None else _read_integers(batch, name)
        if found.shape != values.shape:
            what = f"{len(found)} entries, expected {len(values)}"
        elif len(wrong := np.flatnonzero(found != values)):
            what = f"{found[wrong[0]]} at entry {wrong[0]}, expected {values[wrong[0]]}"
        else:
            continue
        raise BatchError(
            f"{describe(batch)}: field {name!r} has {what} from the atoms of each molecule in order: build samples "
            "with OFData.construct_new and the basis of data.source.basis_info, join them with PyG's DataLoader"
        )


def _read_integers(batch: Data, name: str) -> IntArray:
    values: IntArray = batch[name].detach().cpu().numpy()
    if values.dtype.kind not in "iu" or values.ndim != 1:
        what = f"{values.dtype} of shape {values.shape}, expected (n,) integers"
        raise BatchError(f"{describe(batch)}: field {name!r} is {what}")
    return values


def _copy_with_fields(batch: DataT, fields: Mapping[str, Tensor], share: bool = False) -> DataT:
    """Returns a copy with some fields replaced; without `share` it has no memory in common with the argument."""
    # copies of other classes may share more than their tensors
    out = copy.deepcopy(batch) if not isinstance(batch, Data) else copy.copy(batch) if share else batch.clone()
    for name, value in fields.items():
        if value is not get_field(batch, name):
            set_field(out, name, value)
    return out
