"""Errors of predictions in physical units, accumulated over samples and processes."""

import hashlib
import math
import uuid
from functools import partial
from typing import Any, ClassVar, cast

import numpy as np
import torch
from lightning import LightningModule
from torch import Tensor
from torch_geometric.data import Data
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ofdft_norm.data.basis import BasisInfo
from ofdft_norm.data.sample import count_molecules, find_molecule_index
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.statistics.weighers import GroundStateOnlySampleWeigher, find_labelled
from ofdft_norm.transforms.project_gradient import project_gradient
from ofdft_norm.units import find_unit

MODEL_KEY = "ofdft_norm_model"  # checkpoint entry with the class of the model


def name_error(quantity: str, unit: str) -> str:
    """Returns the name of an error in logs and files, which ends in its unit.

    Examples:
        >>> name_error("energy_mae", "hartree"), name_error("energy_mae", "kcal/mol")
        ('energy_mae_mHa', 'energy_mae_kcal_per_mol')
    """
    return f"{quantity}_{find_unit(unit).suffix}"


def sum_over_molecules(values: Tensor, batch: Data, of: str = "coeffs") -> Tensor:
    """Sums a field, with an entry for each function or (`of` = "pos") each atom, over each molecule: (n_molecules,)."""
    by_entry = values.reshape(len(values), -1).sum(1)
    return values.new_zeros(count_molecules(batch)).index_add(0, find_molecule_index(batch, of), by_entry)


def get_atomic_numbers(batch: Data) -> Tensor:
    """Returns the (n_atom,) atomic numbers, which PyG's data sets call `z`."""
    return batch.z if batch.get("atomic_numbers") is None else batch.atomic_numbers


class PhysicalErrors(Metric):
    """Base class: errors of energies and their derivatives, in the small unit of the normaliser, such as mHa.

    Each labelled sample counts once. Samples without `mol_id` are separate molecules. `compute` returns the
    `QUANTITIES` of a subclass. `DERIVATIVE` is the name of the derivative, `OF` a field with one entry for each of its
    rows, and `SIZE` the size of a molecule by which energies are divided.
    """

    full_state_update = False
    higher_is_better = False
    QUANTITIES: ClassVar[tuple[str, ...]]
    DERIVATIVE: ClassVar[str]
    OF: ClassVar[str]
    SIZE: ClassVar[str]
    rows: list[Tensor] | Tensor
    molecules: list[Tensor] | Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.unit = "hartree"  # `update` sets that of the batch's normaliser
        # a row for each labelled sample: error of the energy, size; sums of absolute and of squared errors of the
        # derivative, number of its components; place (1: ground state, 0: elsewhere on the SCF path, -1: off the path);
        # sum of absolute errors of the stress, number of its components
        self.add_state("rows", [], dist_reduce_fx="cat")
        self.add_state("molecules", [], dist_reduce_fx="cat")

    @classmethod
    def names(cls, unit: str) -> tuple[str, ...]:
        """Returns the names of the errors in a unit."""
        return tuple(name_error(quantity, unit) for quantity in cls.QUANTITIES)

    @staticmethod
    def _compare(normalizer: Normalizer, batch: Data, predicted: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns labels and predictions of the derivative, (2, n, ...), the elements of its n entries, size and place.

        Size and place have one entry for each sample and are columns of `rows`.
        """
        raise NotImplementedError

    @classmethod
    def measure(
        cls,
        normalizer: Normalizer,
        batch: Data,
        energy: Tensor,
        derivative: Tensor,
        stress: Tensor | None = None,
        *,
        element: int | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compares predictions, denormalised, with the labels of a normalised batch, in the normaliser's unit.

        Energies and stress are (n_molecules,) and (n_molecules, 6); the derivatives are (n_basis,) gradients or
        (n_atom, 3) forces, of which only those of an `element`, if given, are measured. Returns, for n labelled samples
        and m components of their derivatives: (n, 8) `rows` and (n,) numbers of the molecules, the same in every
        process; labels and predictions of energies minus the reference, (2, n), and of derivatives, (2, m).
        """
        labelled = find_labelled(batch, required=False).to(energy.device)
        true = normalizer.denormalize_energy(batch[normalizer.energy_field].reshape(-1), batch)
        energies = torch.stack([true, energy.detach()])
        derivatives, elements, size, place = cls._compare(normalizer, batch, derivative.detach())
        errors = (derivatives[1] - derivatives[0]).reshape(len(elements), -1)
        counted = torch.ones_like(errors) * (elements == (elements if element is None else element))[:, None]
        each = (counted * errors.abs(), counted * errors.square(), counted)
        sums = [sum_over_molecules(values, batch, cls.OF) for values in each]
        of_stress = n_stress = torch.zeros_like(true)
        if stress is not None and normalizer.stress_field is not None:
            difference = stress.detach() - normalizer.denormalize_stress(batch[normalizer.stress_field], batch)
            known = difference.isfinite()  # NaN: not periodic
            of_stress, n_stress = difference.abs().where(known, 0.0).sum(1), known.sum(1)
        columns = (energies[1] - true, size, *sums, place, of_stress, n_stress)
        rows = torch.stack([column.to(true) for column in columns], dim=1)
        measured = labelled & (sums[2] > 0)
        pairs = derivatives[:, measured[find_molecule_index(batch, cls.OF)]].reshape(2, -1)
        energies = (energies - batch.energy_reference)[:, measured]
        return rows[measured], _hash_molecules(batch, measured), energies, pairs

    def update(self, normalizer: Normalizer, batch: Data, *predicted: Tensor) -> None:
        """Adds a normalised batch with predictions, see `measure`."""
        self.unit, (rows, molecules, *_) = normalizer.unit, self.measure(normalizer, batch, *predicted)
        cast(list, self.rows).append(rows)
        cast(list, self.molecules).append(molecules)

    def compute(self) -> dict[str, Tensor]:
        """Returns the errors by name; NaN without any labelled sample."""
        rows = dim_zero_cat(self.rows) if len(self.rows) else torch.zeros(0, 8, dtype=torch.float64)
        return self.compute_errors(self.unit, rows, dim_zero_cat(self.molecules) if len(self.rows) else torch.zeros(0))

    @classmethod
    def compute_errors(cls, unit: str, rows: Tensor, molecules: Tensor) -> dict[str, Tensor]:
        """Returns the errors of samples by name, from their `rows` and `molecules`."""
        if len(rows) == 0:
            rows, molecules = rows.new_full((1, 8), torch.nan), molecules.new_zeros(1)
        errors, sizes, absolute, squares, components, place, of_stress, n_stress = rows.T
        path = errors[place >= 0]
        values = {
            "energy_mae": errors.abs().mean(),
            "energy_median": errors.abs().quantile(0.5),
            "energy_rmse": errors.square().mean().sqrt(),
            "energy_mae_ground_state": errors[place == 1].abs().mean(),
            "energy_mae_along_path": (path - average_by_group(path, molecules[place >= 0])).abs().mean(),
            f"energy_mae_per_{cls.SIZE}": (errors.abs() / sizes).mean(),
            f"energy_rmse_per_{cls.SIZE}": (errors / sizes).square().mean().sqrt(),
            f"{cls.DERIVATIVE}_mae": absolute.sum() / components.sum(),
            f"{cls.DERIVATIVE}_rmse": (squares.sum() / components.sum()).sqrt(),
            f"{cls.DERIVATIVE}_norm": squares.sqrt().mean(),
            "stress_mae": of_stress.sum() / n_stress.sum(),
        }
        names, factor = zip(cls.names(unit), cls.QUANTITIES, strict=True), find_unit(unit).factor
        return {name: factor * values[quantity] for name, quantity in names}


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

    DERIVATIVE, OF, SIZE = "gradient", "coeffs", "electron"
    QUANTITIES = (
        *("energy_mae", "energy_median", "energy_rmse", "energy_mae_ground_state", "energy_mae_along_path"),
        *("energy_mae_per_electron", "gradient_mae", "gradient_norm"),
    )

    @staticmethod
    def _compare(normalizer: Normalizer, batch: Data, predicted: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compares gradients in original coordinates, projected."""
        original, basis_info = normalizer.denormalize(batch), cast(BasisInfo, normalizer.basis_info)
        gradients = torch.stack([project_gradient(g, original) for g in (original.gradient_label, predicted)])
        numbers = torch.from_numpy(np.repeat(basis_info.atomic_numbers, basis_info.basis_dim_per_atom))
        place = torch.zeros(count_molecules(batch))
        if batch.get("ground_state_coeffs") is not None:
            place = GroundStateOnlySampleWeigher().get_weights(batch)
        if batch.get("perturbed") is not None:
            place = torch.where(batch.perturbed.cpu(), -1.0, place)
        electrons = sum_over_molecules(original.dual_basis_integrals * original.coeffs, batch)
        return gradients, numbers.to(gradients.device)[batch.basis_function_ind], electrons, place


class EnergyForceErrors(PhysicalErrors):
    """Errors of energies, energies per atom, and components of forces and stress; positions are in angstrom.

    `compute` returns mean absolute errors and root mean square errors; of a stress that the data lack NaN.
    """

    DERIVATIVE, OF, SIZE = "forces", "pos", "atom"
    QUANTITIES = "energy_mae", "energy_mae_per_atom", "energy_rmse_per_atom", "forces_mae", "forces_rmse", "stress_mae"

    @staticmethod
    def _compare(normalizer: Normalizer, batch: Data, predicted: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compares forces."""
        label = normalizer.denormalize_forces(batch[normalizer.forces_field], batch)
        n_atoms = sum_over_molecules(torch.ones_like(label[:, 0]), batch, "pos")
        return torch.stack([label, predicted]), get_atomic_numbers(batch), n_atoms, torch.zeros_like(n_atoms)

    @classmethod
    def names(cls, unit: str) -> tuple[str, ...]:
        """Returns the names of the errors in a unit."""
        ends = {"forces": "_per_angstrom", "stress": "_per_angstrom3"}
        return tuple(name + ends.get(name.split("_")[0], "") for name in super().names(unit))


class MeasuredModule(LightningModule):
    """Logs the errors of the validation and test split, over all processes, and the learning rate.

    Subclasses define `metric_class`, `predict` and the names of the `predicted` values, and have `self.normalizer`, see
    `ofdft_norm.NormalizerMixin`. Their hyperparameters have `learning_rate`.
    """

    metric_class: ClassVar[type[PhysicalErrors]]
    predicted: ClassVar[tuple[str, ...]]
    weight_decay: ClassVar[float] = 0.0
    normalizer: Any

    def __init__(self) -> None:
        super().__init__()
        self.errors = self.metric_class()

    def predict(self, batch: Data) -> tuple[Tensor, ...]:
        """Returns energies and their derivatives, denormalised."""
        raise NotImplementedError

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Writes the name of the class, by which `ofdft-norm predict` finds the models of this package."""
        checkpoint[MODEL_KEY] = f"{type(self).__module__}.{type(self).__qualname__}"

    def on_train_batch_start(self, batch: Data, batch_idx: int) -> None:
        """Logs the learning rate every `trainer.log_every_n_steps` steps."""
        self.log("train/learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"], on_step=True, on_epoch=False)

    def validation_step(self, batch: Data, batch_idx: int) -> None:
        """Accumulates a batch's errors."""
        self.errors.update(self.normalizer, batch, *self.predict(batch))

    def on_validation_epoch_end(self) -> None:
        """Logs the errors of the split."""
        self.errors.unit = self.normalizer.unit  # without samples, too
        split = "test" if self.trainer.testing else "val"
        errors = {name: v for name, v in self.errors.compute().items() if not name.startswith("stress") or v == v}
        self.log_dict({f"{split}/{name}": value.to(torch.float32) for name, value in errors.items()})
        self.errors.reset()

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def predict_step(self, batch: Data, batch_idx: int) -> dict[str, Tensor]:
        """Returns the `predict`ed values by name."""
        return dict(zip(self.predicted, self.predict(batch), strict=True))

    def configure_optimizers(self) -> Any:
        """Returns AdamW with warm-up and cosine decay over all steps of the run."""
        rate = self.hparams["learning_rate"]
        optimizer = torch.optim.AdamW(self.parameters(), lr=rate, weight_decay=self.weight_decay)
        n_steps = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(warm_up_and_decay, n_steps=n_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def average_by_group(values: Tensor, keys: Tensor) -> Tensor:
    """Returns, for each value, the mean of all values with the same key.

    Examples:
        >>> average_by_group(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([7, 3, 3])).tolist()
        [1.0, 4.0, 4.0]
    """
    _, index, counts = keys.unique(return_inverse=True, return_counts=True)
    return (values.new_zeros(len(counts)).index_add(0, index, values) / counts)[index]


def warm_up_and_decay(step: int, n_steps: int) -> float:
    """Returns the learning rate, as a share of the largest: a rise over a tenth of the steps, then half a cosine.

    Examples:
        >>> [round(warm_up_and_decay(step, 40), 3) for step in (0, 3, 22, 40, 50)]
        [0.25, 1.0, 0.5, 0.0, 0.0]
    """
    n_warm = max(1, n_steps // 10)
    if step < n_warm:
        return (step + 1) / n_warm
    done = min(1.0, (step - n_warm) / max(1, n_steps - n_warm))
    return 0.5 * (1 + math.cos(math.pi * done))


def _hash_molecules(batch: Data, labelled: Tensor) -> Tensor:
    """Returns a number for the molecule of each labelled sample, the same in every process."""
    names = batch.get("mol_id") or [uuid.uuid4().hex for _ in labelled]
    names = [names] if isinstance(names, str) else names
    digests = [hashlib.blake2b(name.encode(), digest_size=7).digest() for name in names]
    keys = [int.from_bytes(digest, "big") for digest in digests]
    return torch.tensor(keys, dtype=torch.int64, device=labelled.device)[labelled]
