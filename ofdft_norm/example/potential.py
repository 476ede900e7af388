"""An interatomic potential: PyG's SchNet on energies and forces that are normalised with one scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn.models import SchNet
from torchmetrics import Metric

from ofdft_norm.data.of_data import molecule_index
from ofdft_norm.datamodule import OFDFTDataModule
from ofdft_norm.errors import ConfigError, counted
from ofdft_norm.example.geometry import pairs_within_molecules
from ofdft_norm.example.label_errors import error_name
from ofdft_norm.example.results import MEANINGS, MODEL, REFERENCE_ONLY, split_batches
from ofdft_norm.mixin import NormalizerMixin
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.settings import NonNegative, Positive, PositiveInt, check_arguments
from ofdft_norm.tables import text_table
from ofdft_norm.units import shown

_MEANINGS = {
    **MEANINGS,
    "E": "of the energies, over all structures",
    "E per atom": "the same, each divided by the structure's number of atoms",
    "F": "of the components of the forces, over all atoms",
}


class PairsWithin(nn.Module):
    """SchNet's neighbour list in plain torch, for molecules that repeat nowhere: PyG's own needs a compiled extension.

    Args:
        cutoff: Atoms further apart do not see each other.
    """

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff

    def forward(self, pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (2, n_pairs) senders and receivers, and their (n_pairs,) distances."""
        receivers, senders = pairs_within_molecules(batch)
        near = (pos[receivers] - pos[senders]).norm(dim=1) <= self.cutoff
        receivers, senders = receivers[near], senders[near]
        return torch.stack([senders, receivers]), (pos[receivers] - pos[senders]).norm(dim=1)


class EnergyForceErrors(Metric):
    """Mean absolute errors of energies, of energies per atom, and of the components of forces.

    Args:
        **kwargs: Arguments of torchmetrics' `Metric`.

    Attributes:
        unit: Unit of the energies, which a batch's normaliser tells; positions are in angstrom.
    """

    full_state_update = False
    higher_is_better = False
    QUANTITIES = ("energy_mae", "energy_mae_per_atom", "forces_mae")
    sums: Tensor
    counts: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.unit = "hartree"
        self.add_state("sums", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, normalizer: Normalizer, batch: Data, energy: Tensor, forces: Tensor) -> None:
        """Takes in a batch of predictions, in the normaliser's unit."""
        self.unit = normalizer.unit
        true = normalizer.denormalize_energy(batch[normalizer.energy_field].reshape(-1), batch)
        errors = (energy.detach() - true).abs()
        n_atoms = torch.bincount(molecule_index(batch, "pos"), minlength=len(errors))
        of_forces = (forces.detach() - normalizer.denormalize_forces(batch[normalizer.forces_field], batch)).abs()
        self.sums += torch.stack([errors.sum(), (errors / n_atoms).sum(), of_forces.sum()])
        self.counts += self.counts.new_tensor([len(errors), len(errors), of_forces.numel()])

    @classmethod
    def names(cls, unit: str) -> tuple[str, ...]:
        """Returns the names of the errors of energies in a unit.

        Args:
            unit: A unit of `ofdft_norm.units.ENERGY_UNITS`.
        """
        energy, per_atom, forces = (error_name(quantity, unit) for quantity in cls.QUANTITIES)
        return energy, per_atom, f"{forces}_per_angstrom"

    def compute(self) -> dict[str, Tensor]:
        """Returns the errors by name, in the small unit that the name says."""
        values = shown(self.unit).factor * self.sums / self.counts
        return dict(zip(self.names(self.unit), values, strict=True))


class PotentialModule(NormalizerMixin, LightningModule):
    """SchNet for normalised energies E'; forces are -dE'/dR, so that one scale serves both.

    Args:
        hidden_channels: Features of each atom.
        num_filters: Features of each pair.
        num_interactions: Rounds of messages between neighbours.
        num_gaussians: Radial basis functions of a distance.
        cutoff: [angstrom]; atoms further apart do not see each other.
        energy_weight: Of |E' error| / atoms in the loss.
        forces_weight: Of the mean |F' error| in the loss.
        learning_rate: Of Adam.
    """

    def __init__(
        self,
        hidden_channels: PositiveInt = 64,
        num_filters: PositiveInt = 64,
        num_interactions: PositiveInt = 3,
        num_gaussians: PositiveInt = 32,
        cutoff: Positive = 6.0,
        energy_weight: NonNegative = 1.0,
        forces_weight: NonNegative = 1.0,
        learning_rate: Positive = 2e-3,
    ) -> None:
        check_arguments(PotentialModule.__init__, locals(), "model")
        super().__init__()
        self.save_hyperparameters()
        self.network = SchNet(
            hidden_channels, num_filters, num_interactions, num_gaussians, cutoff, interaction_graph=PairsWithin(cutoff)
        )
        self.energy_weight, self.forces_weight = energy_weight, forces_weight
        self.learning_rate = learning_rate
        self.errors = nn.ModuleDict({"val_errors": EnergyForceErrors(), "test_errors": EnergyForceErrors()})

    def setup(self, stage: str) -> None:
        """Looks whether the data have what is to be learned.

        Raises:
            ConfigError: If a data module of this package reads no forces.
        """
        source = getattr(getattr(self.trainer, "datamodule", None), "source", None)
        if stage == "fit" and source is not None and getattr(source, "forces_field", None) is None:
            raise ConfigError(
                f"{type(self).__name__} learns energies and forces, and no forces are read: name them (config: "
                "data.source.forces, data.source.forces_field), or choose model=density for density coefficients"
            )

    def forward(self, batch: Data) -> tuple[Tensor, Tensor]:
        """Returns (n_molecules,) E' and (n_atom, 3) F' = -dE'/dR, differentiable in the parameters while training."""
        numbers = batch.z if batch.get("atomic_numbers") is None else batch.atomic_numbers
        # validation and prediction switch gradients off, but forces are gradients
        with torch.inference_mode(False), torch.enable_grad():
            pos, numbers, molecule = batch.pos.clone().requires_grad_(), numbers.clone(), batch.batch.clone()
            energy = self.network(numbers, pos, molecule).reshape(-1)
            (gradient,) = torch.autograd.grad(energy.sum(), pos, create_graph=self.training)
        return energy, -gradient

    def predict(self, batch: Data) -> tuple[Tensor, Tensor]:
        """Returns (n_molecules,) energies and (n_atom, 3) forces, float64, in the normaliser's unit.

        Args:
            batch: A normalised batch; its energies and forces may be missing.
        """
        energy, forces = self(batch)
        return (
            self.normalizer.denormalize_energy(energy.detach(), batch),
            self.normalizer.denormalize_forces(forces.detach(), batch),
        )

    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        """Returns the loss of a batch."""
        energy, forces = self(batch)
        n_atoms = torch.bincount(batch.batch, minlength=len(energy))
        true = batch[self.normalizer.energy_field].reshape(-1)
        of_energy = ((energy - true).abs() / n_atoms).mean()
        of_forces = (forces - batch[self.normalizer.forces_field]).abs().mean()
        loss = self.energy_weight * of_energy + self.forces_weight * of_forces
        self.log("train/loss", loss.detach(), on_step=False, on_epoch=True, prog_bar=True, batch_size=len(energy))
        return loss

    def on_train_batch_start(self, batch: Data, batch_idx: int) -> None:
        """Logs the learning rate of the step, as often as `trainer.log_every_n_steps` says."""
        self.log("train/learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"], on_step=True, on_epoch=False)

    def _log_errors(self, split: str) -> None:
        metric = cast(EnergyForceErrors, self.errors[f"{split}_errors"])
        metric.unit = self.normalizer.unit  # a rank without samples has not heard of it
        self.log_dict({f"{split}/{name}": value.to(torch.float32) for name, value in metric.compute().items()})
        metric.reset()

    def validation_step(self, batch: Data, batch_idx: int) -> None:
        """Accumulates a batch's errors."""
        cast(EnergyForceErrors, self.errors["val_errors"]).update(self.normalizer, batch, *self.predict(batch))

    def on_validation_epoch_end(self) -> None:
        """Logs the validation errors, over all processes."""
        self._log_errors("val")

    def test_step(self, batch: Data, batch_idx: int) -> None:
        """Accumulates a batch's errors."""
        cast(EnergyForceErrors, self.errors["test_errors"]).update(self.normalizer, batch, *self.predict(batch))

    def on_test_epoch_end(self) -> None:
        """Logs the test errors, over all processes."""
        self._log_errors("test")

    def predict_step(self, batch: Data, batch_idx: int) -> dict[str, Tensor]:
        """Returns `energy` and `forces`, see `predict`."""
        energy, forces = self.predict(batch)
        return {"energy": energy, "forces": forces}

    def configure_optimizers(self) -> Any:
        """Returns Adam, with a learning rate that falls to nothing along half a cosine."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.learning_rate)
        n_steps = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def results(self, datamodule: OFDFTDataModule, splits: Sequence[str]) -> tuple[str, dict[str, float]]:
        """Measures the potential, and its reference energies alone, on held-out splits.

        Args:
            datamodule: The data.
            splits: Which splits.

        Returns:
            A table, and the potential's errors as ``results/<split>/<error>``.
        """
        rows: list[list[str]] = []
        found: dict[str, float] = {}
        for split in splits:
            metrics = {REFERENCE_ONLY: EnergyForceErrors(), MODEL: EnergyForceErrors()}
            for batch in split_batches(datamodule, split):
                zero = torch.zeros_like(batch.energy_reference)
                energy = datamodule.normalizer.denormalize_energy(zero, batch)
                metrics[REFERENCE_ONLY].update(datamodule.normalizer, batch, energy, torch.zeros_like(batch.pos))
                metrics[MODEL].update(datamodule.normalizer, batch, *self.predict(batch))
            rows.append([f"{split}: {counted(int(metrics[MODEL].counts[0]), 'structure')}", "", "", ""])
            for name, metric in metrics.items():
                errors = {key: float(value) for key, value in metric.compute().items()}
                rows.append([name, *(f"{error:.1f}" for error in errors.values())])
                found |= {f"results/{split}/{key}": error for key, error in errors.items() if name == MODEL}
        small = shown(datamodule.unit).small
        header = ["mean absolute errors", f"E [{small}]", f"E per atom [{small}/atom]", f"F [{small}/angstrom]"]
        return text_table(header, rows, meanings=_MEANINGS), found
