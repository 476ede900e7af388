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
    """Base class of errors in the small unit of the normaliser's energies, such as mHa."""

    full_state_update = False
    higher_is_better = False
    QUANTITIES: ClassVar[tuple[str, ...]]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.unit = "hartree"  # `update` sets that of the batch's normaliser

    @classmethod
    def names(cls, unit: str) -> tuple[str, ...]:
        """Returns the names of the errors in a unit."""
        return tuple(error_name(quantity, unit) for quantity in cls.QUANTITIES)

    def compute(self) -> dict[str, Tensor]:
        """Returns the errors by name; NaN without any labelled sample."""
        factor = shown(self.unit).factor
        return {name: factor * value for name, value in zip(self.names(self.unit), self._values(), strict=True)}

    def _values(self) -> Tensor:
        raise NotImplementedError

    def sizes(self) -> tuple[int, int]:
        """Returns the numbers of molecules and of labelled samples so far, in this process."""
        raise NotImplementedError


class LabelErrors(PhysicalErrors):
    """Errors of energies and gradients over all labelled samples; each sample counts once.

    `compute` returns, here for hartree:
        energy_mae_mHa, energy_median_mHa, energy_rmse_mHa: Mean and median absolute error, and root mean square error,
            of the energy.
        energy_mae_within_molecule_mHa: Mean absolute error of the energy after each molecule's mean error is
            subtracted: the error along the densities of a molecule.
        energy_mae_per_electron_mHa: Mean of |error| / N.
        gradient_mae_mHa: Mean absolute component of the projected gradient's error.
        gradient_norm_mHa: Mean over samples of the norm of the projected gradient's error.

    Samples without `mol_id` count as molecules of their own.
    """

    QUANTITIES = (
        *("energy_mae", "energy_median", "energy_rmse", "energy_mae_within_molecule", "energy_mae_per_electron"),
        *("gradient_mae", "gradient_norm"),
    )
    rows: list[Tensor] | Tensor
    molecules: list[Tensor] | Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # of each labelled sample: error of the energy, electrons, sums of |gradient error| and its square, components
        self.add_state("rows", [], dist_reduce_fx="cat")
        self.add_state("molecules", [], dist_reduce_fx="cat")

    def update(self, normalizer: Normalizer, batch: Data, energy: Tensor, difference: Tensor) -> None:
        """Adds a normalised batch, with (n_molecules,) denormalised energies and (n_basis,) `gradient_difference`."""
        self.unit = normalizer.unit
        labelled, difference = batch.has_energy_label.reshape(-1), difference.detach()
        coeffs = normalizer.denormalize_coeffs(batch.coeffs, batch)
        columns = [
            energy.detach() - normalizer.denormalize_energy(batch.energy_label.reshape(-1), batch),
            sums_over_molecules(normalizer.denormalize_integrals(batch.dual_basis_integrals, batch) * coeffs, batch),
            sums_over_molecules(difference.abs(), batch),
            sums_over_molecules(difference.square(), batch),
            sums_over_molecules(torch.ones_like(difference), batch),
        ]
        cast(list, self.rows).append(torch.stack(columns, dim=1)[labelled])
        cast(list, self.molecules).append(_molecule_keys(batch, labelled))

    def _samples(self) -> tuple[Tensor, Tensor]:
        """Returns the (n, 5) rows and (n,) molecules of all samples so far."""
        if len(self.rows) == 0:
            return torch.zeros(0, 5, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
        return dim_zero_cat(self.rows), dim_zero_cat(self.molecules)

    def sizes(self) -> tuple[int, int]:
        """Returns the numbers of molecules and of labelled samples so far, in this process."""
        rows, molecules = self._samples()
        return len(molecules.unique()), len(rows)

    def _values(self) -> Tensor:
        rows, molecules = self._samples()
        if len(rows) == 0:
            return rows.new_full((len(self.QUANTITIES),), torch.nan)
        errors, electrons, absolute, squares, components = rows.T
        within = (errors - means_by_group(errors, molecules)).abs().mean()
        values = [errors.abs().mean(), errors.abs().quantile(0.5), errors.square().mean().sqrt(), within]
        values += [(errors.abs() / electrons).mean(), absolute.sum() / components.sum(), squares.sqrt().mean()]
        return torch.stack(values)


class EnergyForceErrors(PhysicalErrors):
    """Mean absolute errors of energies, energies per atom, and components of forces; positions are in angstrom."""

    QUANTITIES = ("energy_mae", "energy_mae_per_atom", "forces_mae")
    sums: Tensor
    counts: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("sums", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, normalizer: Normalizer, batch: Data, energy: Tensor, forces: Tensor) -> None:
        """Adds a normalised batch, with (n_molecules,) energies and (n_atom, 3) forces, denormalised."""
        self.unit = normalizer.unit
        true = normalizer.denormalize_energy(batch[normalizer.energy_field].reshape(-1), batch)
        errors = (energy.detach() - true).abs()
        n_atoms = torch.bincount(molecule_index(batch, "pos"), minlength=len(errors))
        of_forces = (forces.detach() - normalizer.denormalize_forces(batch[normalizer.forces_field], batch)).abs()
        self.sums += torch.stack([errors.sum(), (errors / n_atoms).sum(), of_forces.sum()])
        self.counts += self.counts.new_tensor([len(errors), len(errors), of_forces.numel()])

    @classmethod
    def names(cls, unit: str) -> tuple[str, ...]:
        """Returns the names of the errors in a unit."""
        energy, per_atom, forces = super().names(unit)
        return energy, per_atom, f"{forces}_per_angstrom"

    def sizes(self) -> tuple[int, int]:
        """Returns the number of structures twice."""
        return int(self.counts[0]), int(self.counts[0])

    def _values(self) -> Tensor:
        return self.sums / self.counts


class MeasuredModule(LightningModule):
    """Logs the errors of the validation and test split, over all processes, and the learning rate.

    Subclasses define `metric_class` and `compare`, and have `self.normalizer`, see `ofdft_norm.NormalizerMixin`.
    """

    metric_class: ClassVar[type[PhysicalErrors]]
    normalizer: Any

    def __init__(self) -> None:
        super().__init__()
        self.metrics = nn.ModuleDict({"val_errors": self.metric_class(), "test_errors": self.metric_class()})

    def compare(self, batch: Data) -> tuple[Tensor, Tensor]:
        """Returns predictions of a batch as the metric's `update` takes them."""
        raise NotImplementedError

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Writes the name of the class, by which `ofdft-norm predict` finds the models of this package."""
        checkpoint[MODEL_KEY] = f"{type(self).__module__}.{type(self).__qualname__}"

    def on_train_batch_start(self, batch: Data, batch_idx: int) -> None:
        """Logs the learning rate every `trainer.log_every_n_steps` steps."""
        self.log("train/learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"], on_step=True, on_epoch=False)

    def validation_step(self, batch: Data, batch_idx: int) -> None:
        """Accumulates a batch's errors."""
        self._metric("val").update(self.normalizer, batch, *self.compare(batch))

    def test_step(self, batch: Data, batch_idx: int) -> None:
        """Accumulates a batch's errors."""
        self._metric("test").update(self.normalizer, batch, *self.compare(batch))

    def on_validation_epoch_end(self) -> None:
        """Logs the validation errors."""
        self._log_errors("val")

    def on_test_epoch_end(self) -> None:
        """Logs the test errors."""
        self._log_errors("test")

    def _metric(self, split: str) -> PhysicalErrors:
        return cast(PhysicalErrors, self.metrics[f"{split}_errors"])

    def _log_errors(self, split: str) -> None:
        metric = self._metric(split)
        metric.unit = self.normalizer.unit  # of a rank without samples
        self.log_dict({f"{split}/{name}": value.to(torch.float32) for name, value in metric.compute().items()})
        metric.reset()


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
