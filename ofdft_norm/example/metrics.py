"""Errors of predictions in physical units, accumulated over samples and processes."""

from __future__ import annotations

import hashlib
import uuid
from typing import Any, ClassVar, cast

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch_geometric.data import Data
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ofdft_norm.data.sample import molecule_index, n_molecules
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.statistics.weighers import GroundStateOnlySampleWeigher, has_label
from ofdft_norm.units import shown


def error_name(quantity: str, unit: str) -> str:
    """Returns the name of an error in logs and files, which ends in its unit.

    Examples:
        >>> error_name("energy_mae", "hartree"), error_name("energy_mae", "kcal/mol")
        ('energy_mae_mHa', 'energy_mae_kcal_per_mol')
    """
    return f"{quantity}_{shown(unit).suffix}"


def sums_over_molecules(values: Tensor, batch: Data) -> Tensor:
    """Sums a per-function field over each molecule: (n_basis,) -> (n_molecules,)."""
    return values.new_zeros(n_molecules(batch)).index_add(0, molecule_index(batch), values)


MODEL_KEY = "ofdft_norm_model"  # of a checkpoint: the class of its model


class PhysicalErrors(Metric):
    """Base class: errors of energies and their derivatives, in the small unit of the normaliser, such as mHa.

    Each labelled sample counts once. Samples without `mol_id` count as molecules of their own. `compute` returns the
    `QUANTITIES` of a subclass.
    """

    full_state_update = False
    higher_is_better = False
    QUANTITIES: ClassVar[tuple[str, ...]]
    DERIVATIVE: ClassVar[str]
    SIZE: ClassVar[str]
    rows: list[Tensor] | Tensor
    molecules: list[Tensor] | Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.unit = "hartree"  # `update` sets that of the batch's normaliser
        # of each labelled sample: error of the energy, size, sums of |derivative's error| and its square, components,
        # place (1 the ground state, 0 elsewhere on the SCF path, -1 off it), sum of |error of the stress|, components
        self.add_state("rows", [], dist_reduce_fx="cat")
        self.add_state("molecules", [], dist_reduce_fx="cat")

    @classmethod
    def names(cls, unit: str) -> tuple[str, ...]:
        """Returns the names of the errors in a unit."""
        return tuple(error_name(quantity, unit) for quantity in cls.QUANTITIES)

    def _add(self, normalizer: Normalizer, batch: Data, energy: Tensor, *others: Tensor) -> None:
        """Adds a normalised batch: (n_molecules,) denormalised energies, and the other columns of `rows`."""
        self.unit, labelled = normalizer.unit, has_label(batch, required=False).to(energy.device)
        true = normalizer.denormalize_energy(batch[normalizer.energy_field].reshape(-1), batch)
        columns = torch.stack([energy.detach() - true, *(other.to(true.dtype) for other in others)], dim=1)
        cast(list, self.rows).append(columns[labelled])
        cast(list, self.molecules).append(_molecule_keys(batch, labelled))

    def sizes(self) -> tuple[int, int]:
        """Returns how many molecules and labelled samples this process has seen so far."""
        rows, molecules = self._samples()
        return len(molecules.unique()), len(rows)

    def compute(self) -> dict[str, Tensor]:
        """Returns the errors by name; NaN without any labelled sample."""
        rows, molecules = self._samples()
        if len(rows) == 0:
            rows, molecules = rows.new_full((1, 8), torch.nan), molecules.new_zeros(1)
        errors, sizes, absolute, squares, components, place, of_stress, n_stress = rows.T
        path = errors[place >= 0]
        values = {
            "energy_mae": errors.abs().mean(),
            "energy_median": errors.abs().quantile(0.5),
            "energy_rmse": errors.square().mean().sqrt(),
            "energy_mae_ground_state": errors[place == 1].abs().mean(),
            "energy_mae_along_path": (path - means_by_group(path, molecules[place >= 0])).abs().mean(),
            f"energy_mae_per_{self.SIZE}": (errors.abs() / sizes).mean(),
            f"energy_rmse_per_{self.SIZE}": (errors / sizes).square().mean().sqrt(),
            f"{self.DERIVATIVE}_mae": absolute.sum() / components.sum(),
            f"{self.DERIVATIVE}_rmse": (squares.sum() / components.sum()).sqrt(),
            f"{self.DERIVATIVE}_norm": squares.sqrt().mean(),
            "stress_mae": of_stress.sum() / n_stress.sum(),
        }
        names = zip(self.names(self.unit), self.QUANTITIES, strict=True)
        return {name: shown(self.unit).factor * values[quantity] for name, quantity in names}

    def _samples(self) -> tuple[Tensor, Tensor]:
        """Returns the (n, 8) rows and (n,) molecules of all samples so far."""
        if len(self.rows) == 0:
            return torch.zeros(0, 8, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
        return dim_zero_cat(self.rows), dim_zero_cat(self.molecules)


class LabelErrors(PhysicalErrors):
    """Errors of energies and gradients.

    `compute` returns, here for hartree:
        energy_mae_mHa, energy_median_mHa, energy_rmse_mHa: Mean and median absolute error, and root mean square error,
            of the energy.
        energy_mae_ground_state_mHa: Mean absolute error of the energy of converged densities; NaN: there are none.
        energy_mae_along_path_mHa: Mean absolute error of the energy along SCF paths, after the mean error of each
            geometry is subtracted; densities of perturbed potentials are left out.
        energy_mae_per_electron_mHa: Mean of |error| / N.
        gradient_mae_mHa: Mean absolute component of the projected gradient's error.
        gradient_norm_mHa: Mean over samples of the norm of the projected gradient's error.
    """

    DERIVATIVE, SIZE = "gradient", "electron"
    QUANTITIES = (
        *("energy_mae", "energy_median", "energy_rmse", "energy_mae_ground_state", "energy_mae_along_path"),
        *("energy_mae_per_electron", "gradient_mae", "gradient_norm"),
    )

    def update(self, normalizer: Normalizer, batch: Data, energy: Tensor, difference: Tensor) -> None:
        """Adds a normalised batch, with (n_molecules,) denormalised energies and (n_basis,) `gradient_difference`."""
        coeffs, difference = normalizer.denormalize_coeffs(batch.coeffs, batch), difference.detach()
        electrons = normalizer.denormalize_integrals(batch.dual_basis_integrals, batch) * coeffs
        summed = (electrons, difference.abs(), difference.square(), torch.ones_like(difference))
        place = torch.zeros(len(energy))
        if batch.get("ground_state_coeffs") is not None:
            place = GroundStateOnlySampleWeigher().get_weights(batch)
        if batch.get("perturbed") is not None:
            place = torch.where(batch.perturbed.cpu(), -1.0, place)
        sums, no_stress = [sums_over_molecules(v, batch) for v in summed], torch.zeros_like(energy)
        self._add(normalizer, batch, energy, *sums, place.to(energy.device), no_stress, no_stress)


class EnergyForceErrors(PhysicalErrors):
    """Errors of energies, energies per atom, and components of forces and stress; positions are in angstrom.

    `compute` returns mean absolute errors and root mean square errors; of a stress that the data lack NaN.
    """

    DERIVATIVE, SIZE = "forces", "atom"
    QUANTITIES = (
        *("energy_mae", "energy_mae_per_atom", "energy_rmse_per_atom", "forces_mae", "forces_rmse", "stress_mae"),
    )

    def update(
        self, normalizer: Normalizer, batch: Data, energy: Tensor, forces: Tensor, stress: Tensor | None = None
    ) -> None:
        """Adds a normalised batch, with (n_molecules,) energies, (n_atom, 3) forces and (n_molecules, 6) stress.

        All are denormalised.
        """
        errors = forces.detach() - normalizer.denormalize_forces(batch[normalizer.forces_field], batch)
        molecule, zeros = molecule_index(batch, "pos"), errors.new_zeros(len(energy))
        n_atoms = torch.bincount(molecule, minlength=len(energy))
        absolute, squares = (zeros.index_add(0, molecule, e.sum(1)) for e in (errors.abs(), errors.square()))
        of_stress = n_stress = zeros
        if stress is not None and normalizer.stress_field is not None:
            difference = stress.detach() - normalizer.denormalize_stress(batch[normalizer.stress_field], batch)
            known = difference.isfinite()  # of periodic samples
            of_stress, n_stress = difference.abs().where(known, 0.0).sum(1), known.sum(1)
        self._add(normalizer, batch, energy, n_atoms, absolute, squares, 3 * n_atoms, zeros, of_stress, n_stress)

    @classmethod
    def names(cls, unit: str) -> tuple[str, ...]:
        """Returns the names of the errors in a unit."""
        ends = {"forces": "_per_angstrom", "stress": "_per_angstrom3"}
        return tuple(name + ends.get(name.split("_")[0], "") for name in super().names(unit))


class MeasuredModule(LightningModule):
    """Logs the errors of the validation and test split, over all processes, and the learning rate.

    Subclasses define `metric_class`, `predict` and the names of the `predicted` values, and have `self.normalizer`, see
    `ofdft_norm.NormalizerMixin`.
    """

    metric_class: ClassVar[type[PhysicalErrors]]
    predicted: ClassVar[tuple[str, ...]]
    normalizer: Any

    def __init__(self) -> None:
        super().__init__()
        self.metrics = nn.ModuleDict({"val_errors": self.metric_class(), "test_errors": self.metric_class()})

    def predict(self, batch: Data) -> tuple[Tensor, ...]:
        """Returns energies and their derivatives, denormalised."""
        raise NotImplementedError

    def compare(self, batch: Data) -> tuple[Tensor, ...]:
        """Returns predictions of a batch as the metric's `update` takes them."""
        return self.predict(batch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Writes the name of the class, by which `ofdft-norm predict` finds the models of this package."""
        checkpoint[MODEL_KEY] = f"{type(self).__module__}.{type(self).__qualname__}"

    def on_train_batch_start(self, batch: Data, batch_idx: int) -> None:
        """Logs the learning rate every `trainer.log_every_n_steps` steps."""
        self.log("train/learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"], on_step=True, on_epoch=False)

    def validation_step(self, batch: Data, batch_idx: int) -> None:
        """Accumulates a batch's errors."""
        self._errors().update(self.normalizer, batch, *self.compare(batch))

    def on_validation_epoch_end(self) -> None:
        """Logs the errors of the split."""
        metric = self._errors()
        metric.unit = self.normalizer.unit  # of a rank without samples
        errors = {name: value for name, value in metric.compute().items() if name[:6] != "stress" or value == value}
        self.log_dict({f"{self._split}/{name}": value.to(torch.float32) for name, value in errors.items()})
        metric.reset()

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    @property
    def _split(self) -> str:
        return "test" if self.trainer.testing else "val"

    def _errors(self) -> PhysicalErrors:
        return cast(PhysicalErrors, self.metrics[f"{self._split}_errors"])

    def predict_step(self, batch: Data, batch_idx: int) -> dict[str, Tensor]:
        """Returns the `predict`ed values by name."""
        return dict(zip(self.predicted, self.predict(batch), strict=True))


def means_by_group(values: Tensor, keys: Tensor) -> Tensor:
    """Returns, for each value, the mean of all values with the same key.

    Examples:
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
