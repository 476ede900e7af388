"""Training of the density network: loss on normalised energies and projected gradients, errors in hartree."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, cast

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch_geometric.data import Data

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.of_data import molecule_index
from ofdft_norm.errors import ConfigError
from ofdft_norm.example.density_network import DensityNetwork
from ofdft_norm.example.label_errors import LabelErrors, project_in_original_coordinates, sums_over_molecules
from ofdft_norm.mixin import NormalizerMixin
from ofdft_norm.settings import NonNegative, NonNegativeInt, Positive, PositiveInt, check_arguments

NORM_OFFSET = 1e-12


class DensityModule(NormalizerMixin, LightningModule):
    """Learns E'(p') with its gradient; the worked example of a model on normalised batches.

    The loss of a labelled sample is
    ``energy_weight |E'_pred - E'| / sqrt(n_atom) + gradient_weight |P (g_pred - g)| / s``: the gradients' difference
    is projected in original coordinates; s is the energy scale. Samples without label do not count.

    The network is built in `setup`, from the data module's basis, or from a checkpoint's.

    Args:
        width: Features of each atom.
        rank: Channels that the shells of each angular momentum are mixed to.
        n_layers: Rounds of messages between neighbours.
        n_radial: Radial basis functions of a distance.
        cutoff: Distance beyond which atoms do not see each other [bohr].
        coeff_scale: Rescaled coefficients are divided by this before they enter the network.
        energy_weight: Weight of the energies in the loss.
        gradient_weight: Weight of the gradients in the loss.
        learning_rate: Largest learning rate; the schedule warms up over a tenth of the steps and decays to zero.
        weight_decay: Of AdamW.

    Raises:
        ConfigError: If a weight is negative, or a size is not positive.
    """

    def __init__(
        self,
        width: PositiveInt = 64,
        rank: PositiveInt = 16,
        n_layers: NonNegativeInt = 2,
        n_radial: PositiveInt = 16,
        cutoff: Positive = 12.0,
        coeff_scale: Positive = 5.0,
        energy_weight: NonNegative = 1.0,
        gradient_weight: NonNegative = 0.3,
        learning_rate: Positive = 3e-3,
        weight_decay: NonNegative = 1e-2,
    ) -> None:
        super().__init__()
        check_arguments(DensityModule.__init__, locals(), "model")
        self.save_hyperparameters()
        self.energy_weight, self.gradient_weight = energy_weight, gradient_weight
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self._sizes = {
            "width": width,
            "rank": rank,
            "n_layers": n_layers,
            "n_radial": n_radial,
            "cutoff": cutoff,
            "coeff_scale": coeff_scale,
        }
        self._basis_info: BasisInfo | None = None
        self.network: DensityNetwork | None = None
        self.errors = nn.ModuleDict({"val_errors": LabelErrors(), "test_errors": LabelErrors()})

    # --- the network --------------------------------------------------------------------------------------------

    def build(self, basis_info: BasisInfo) -> None:
        """Builds the network for a basis; does nothing if it is built for that basis already.

        Args:
            basis_info: The density basis.

        Raises:
            ConfigError: If it is built for another basis.
        """
        if self.network is None:
            self._basis_info = basis_info
            self.network = DensityNetwork(basis_info, **cast(Any, self._sizes)).to(self.device)
        elif basis_info != self._basis_info:
            raise ConfigError(
                f"the model was built for {self._basis_info}, but the labels have {basis_info}: give labels in the "
                "model's basis (config: data.source.basis_info) or train anew (config: ckpt_path)"
            )

    def setup(self, stage: str) -> None:
        """Builds the network for the data module's basis.

        Raises:
            ConfigError: If its samples have no density coefficients.
        """
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if not hasattr(datamodule, "basis_info"):
            return  # somebody else's: `build` is called by hand, or by a checkpoint
        if datamodule.basis_info is None:
            raise ConfigError(
                f"{type(self).__name__} learns from density coefficients, and the samples have none: choose "
                "model=potential for energies and forces, or a model of your own (config: model)"
            )
        self.build(datamodule.basis_info)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Writes the basis, so that the network can be built on loading."""
        if self._basis_info is not None:
            checkpoint["basis_info"] = self._basis_info.to_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Builds the network that the checkpoint's weights belong to.

        Raises:
            ConfigError: If the checkpoint is not one of a model of density coefficients.
        """
        if "basis_info" not in checkpoint:
            raise ConfigError(
                f"the checkpoint has no 'basis_info', so that no {type(self).__name__} wrote it: expected the class of "
                "the model that did (config: model._target_)"
            )
        self.build(BasisInfo(**checkpoint["basis_info"]))

    def forward(self, batch: Data) -> tuple[Tensor, Tensor]:
        """Predicts normalised energies and their gradients.

        Args:
            batch: A normalised batch.

        Returns:
            (n_molecules,) E' and (n_basis,) g' = dE'/dp', differentiable in the parameters while training.

        Raises:
            ConfigError: If the network is not built yet.
        """
        if self.network is None:
            raise ConfigError("the network is not built: call model.build(basis_info), load a checkpoint, or train")
        # validation and prediction switch gradients off, but the gradient is a part of the prediction
        inference = torch.is_inference_mode_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            batch = batch.clone() if inference else batch
            coeffs = batch.coeffs.detach().requires_grad_()
            energy = self.network(batch, coeffs)
            (gradient,) = torch.autograd.grad(energy.sum(), coeffs, create_graph=self.training)
        return energy, gradient

    def predict(self, batch: Data) -> tuple[Tensor, Tensor]:
        """Returns (n_molecules,) energies and (n_basis,) gradients of original coefficients, float64.

        Args:
            batch: A normalised batch.
        """
        energy, gradient = self(batch)
        return (
            self.normalizer.denormalize_energy(energy.detach(), batch),
            self.normalizer.denormalize_gradient(gradient.detach(), batch),
        )

    # --- training -----------------------------------------------------------------------------------------------

    def loss(self, batch: Data, energy: Tensor, gradient: Tensor) -> dict[str, Tensor]:
        """Returns `loss` and its terms, `energy` and `gradient`: means over labelled samples, zero if there is none.

        Args:
            batch: The batch with its labels.
            energy: (n_molecules,) predicted normalised energies.
            gradient: (n_basis,) predicted normalised gradients.
        """
        labelled = batch.has_energy_label.reshape(-1)
        n_atoms = torch.bincount(molecule_index(batch, "pos"), minlength=len(labelled))
        # masked before any product: labels that are not to be used may be NaN, and 0 NaN is NaN
        energy_errors = torch.where(labelled, energy - batch.energy_label.reshape(-1), 0.0).abs() / n_atoms.sqrt()
        difference = torch.where(labelled[molecule_index(batch)], gradient - batch.gradient_label, 0.0)
        difference = self.normalizer.denormalize_gradient_difference(difference, batch)
        difference = project_in_original_coordinates(self.normalizer, batch, difference)
        squares = sums_over_molecules((difference / self.normalizer.energy_scale).square(), batch)
        # the offset keeps the square root differentiable at zero
        gradient_errors = (squares + NORM_OFFSET).sqrt() - math.sqrt(NORM_OFFSET)
        n_labelled = labelled.sum().clamp(min=1)
        terms = {
            "energy": energy_errors.sum() / n_labelled,
            "gradient": gradient_errors.sum() / n_labelled,
        }
        return {"loss": self.energy_weight * terms["energy"] + self.gradient_weight * terms["gradient"], **terms}

    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        """Returns the loss of a batch."""
        losses = self.loss(batch, *self(batch))
        logged = {f"train/{name}": value.detach() for name, value in losses.items()}
        n = len(batch.has_energy_label)
        self.log("train/loss", logged.pop("train/loss"), on_step=False, on_epoch=True, prog_bar=True, batch_size=n)
        self.log_dict(logged, on_step=False, on_epoch=True, batch_size=n)
        return losses["loss"]

    def on_train_batch_start(self, batch: Data, batch_idx: int) -> None:
        """Logs the learning rate of the step, as often as `trainer.log_every_n_steps` says."""
        self.log("train/learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"], on_step=True, on_epoch=False)

    def _evaluation_step(self, batch: Data, split: str) -> None:
        cast(LabelErrors, self.errors[f"{split}_errors"]).update(self.normalizer, batch, *self.predict(batch))

    def _log_errors(self, split: str) -> None:
        metric = cast(LabelErrors, self.errors[f"{split}_errors"])
        metric.unit = self.normalizer.unit  # a rank without samples has not heard of it
        self.log_dict({f"{split}/{name}": value.to(torch.float32) for name, value in metric.compute().items()})
        metric.reset()

    def validation_step(self, batch: Data, batch_idx: int) -> None:
        """Accumulates a batch's errors."""
        self._evaluation_step(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Logs the validation errors, over all processes."""
        self._log_errors("val")

    def test_step(self, batch: Data, batch_idx: int) -> None:
        """Accumulates a batch's errors."""
        self._evaluation_step(batch, "test")

    def on_test_epoch_end(self) -> None:
        """Logs the test errors, over all processes."""
        self._log_errors("test")

    def predict_step(self, batch: Data, batch_idx: int) -> dict[str, Tensor]:
        """Returns `energy` and `gradient`, see `predict`."""
        energy, gradient = self.predict(batch)
        return {"energy": energy, "gradient": gradient}

    def configure_optimizers(self) -> Any:
        """Returns AdamW with warm-up and cosine decay over all steps of the run."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        n_steps = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(warm_up_and_decay, n_steps=n_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def warm_up_and_decay(step: int, n_steps: int) -> float:
    """Returns the learning rate, as a share of the largest: a rise over a tenth of the steps, then half a cosine.

    Args:
        step: Number of the step, from 0.
        n_steps: Steps of the whole training.

    Example:
        >>> [round(warm_up_and_decay(step, 40), 3) for step in (0, 3, 22, 40, 50)]
        [0.25, 1.0, 0.5, 0.0, 0.0]
    """
    n_warm = max(1, n_steps // 10)
    if step < n_warm:
        return (step + 1) / n_warm
    done = min(1.0, (step - n_warm) / max(1, n_steps - n_warm))
    return 0.5 * (1 + math.cos(math.pi * done))
