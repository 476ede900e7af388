"""Training of the density network: loss and errors in physical units and original coordinates."""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from ofdft_norm.checkpoint import MODEL_ENTRY
from ofdft_norm.data.basis import BasisInfo
from ofdft_norm.data.sample import find_molecule_index
from ofdft_norm.errors import ConfigError
from ofdft_norm.example.density_network import DensityNetwork
from ofdft_norm.example.metrics import LabelErrors, MeasuredModule, sum_over_molecules
from ofdft_norm.mixin import NormalizerMixin
from ofdft_norm.normalization.state import load_normalizer
from ofdft_norm.settings import NonNegative, Positive, PositiveInt, check_arguments

NORM_OFFSET = 1e-12


class DensityModule(NormalizerMixin, MeasuredModule):
    """Learns E'(p') with its gradient; the worked example of a model on normalised batches.

    The loss of a labelled sample is ``energy_weight |E_pred - E| + gradient_weight |d|``, in the unit of the labels: d
    is the difference of the gradients, projected, in original coordinates (`Normalizer.gradient_difference`). So the
    loss does not depend on reference, rescaling and energy scale. Samples without label do not count.

    The network is built in `setup`, from the data module's basis, or from the normaliser in a checkpoint.

    Args:
        width: Features of each atom; a multiple of `n_heads`.
        n_layers: Layers of attention.
        n_heads: Heads of each layer.
        n_gaussians: Gaussian features of a distance.
        coeff_scale: Divides the rescaled coefficients before they enter the network.
        energy_weight: Weight of the energies in the loss.
        gradient_weight: Weight of the gradients in the loss.
        learning_rate: Largest learning rate; the schedule warms up over a tenth of the steps and decays to zero.

    Raises:
        ConfigError: If a weight is negative, a size is not positive, or `n_heads` does not divide `width`.
    """

    metric_class = LabelErrors
    predicted = ("energy", "gradient")
    weight_decay = 1e-2

    def __init__(
        self,
        width: PositiveInt = 64,
        n_layers: PositiveInt = 3,
        n_heads: PositiveInt = 4,
        n_gaussians: PositiveInt = 32,
        coeff_scale: Positive = 1.0,
        energy_weight: NonNegative = 20.0,
        gradient_weight: NonNegative = 0.3,
        learning_rate: Positive = 3e-3,
    ) -> None:
        super().__init__()
        check_arguments(DensityModule.__init__, locals(), "model")
        if width % n_heads:
            raise ConfigError(f"model.width = {width}, model.n_heads = {n_heads}: expected a multiple of n_heads")
        self.save_hyperparameters()
        self._basis_info: BasisInfo | None = None
        self.network: DensityNetwork | None = None
        self.register_load_state_dict_pre_hook(_build_for_state)

    def build(self, basis_info: BasisInfo) -> None:
        """Builds the network for a basis, once; refuses another basis."""
        if self.network is None:
            names = ("width", "n_layers", "n_heads", "n_gaussians", "coeff_scale")
            sizes: dict[str, Any] = {name: self.hparams[name] for name in names}
            self._basis_info = basis_info
            self.network = DensityNetwork(basis_info, **sizes).to(self.device)
        elif basis_info != self._basis_info:
            raise ConfigError(
                f"the model was built for {self._basis_info}, but the labels have {basis_info}: give labels in the "
                "model's basis (config: data.source.basis_info) or train again (config: ckpt_path)"
            )

    def setup(self, stage: str) -> None:
        """Builds the network for the data module's basis; refuses data without density coefficients."""
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if not hasattr(datamodule, "basis_info"):
            return  # another package's data module: `build` is called by hand, or a checkpoint is loaded
        if datamodule.basis_info is None:
            raise ConfigError(
                f"{type(self).__name__} learns from density coefficients, and the samples have none: choose "
                "model=potential for energies and forces, or a model of your own (config: model)"
            )
        self.build(datamodule.basis_info)

    def forward(self, batch: Data) -> tuple[Tensor, Tensor]:
        """Returns (n_molecules,) E' and (n_basis,) g' = dE'/dp', differentiable in the parameters while training."""
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
        """Returns (n_molecules,) energies and (n_basis,) gradients of original coefficients, float64."""
        energy, gradient = self(batch)
        energy = self.normalizer.denormalize_energy(energy.detach(), batch)
        return energy, self.normalizer.denormalize_gradient(gradient.detach(), batch)

    def loss(self, batch: Data, energy: Tensor, gradient: Tensor) -> dict[str, Tensor]:
        """Returns the `loss` of normalised predictions and its terms: means over labelled samples."""
        labelled = batch.has_energy_label.reshape(-1)
        # masked, not multiplied: labels that are not used may be NaN, and 0 NaN is NaN
        errors = torch.where(labelled, energy - batch.energy_label.reshape(-1), 0.0) * self.normalizer.energy_scale
        difference = self.normalizer.gradient_difference(gradient, batch)
        difference = torch.where(labelled[find_molecule_index(batch)], difference, 0.0)
        # the offset keeps the square root differentiable at zero
        norms = (sum_over_molecules(difference.square(), batch) + NORM_OFFSET).sqrt() - math.sqrt(NORM_OFFSET)
        n_labelled = labelled.sum().clamp(min=1)
        terms = {"energy": errors.abs().sum() / n_labelled, "gradient": norms.sum() / n_labelled}
        loss = self.hparams["energy_weight"] * terms["energy"] + self.hparams["gradient_weight"] * terms["gradient"]
        return {"loss": loss, **terms}

    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        """Returns the loss of a batch."""
        losses = self.loss(batch, *self(batch))
        logged = {f"train/{name}": value.detach() for name, value in losses.items()}
        n = len(batch.has_energy_label)
        self.log("train/loss", logged.pop("train/loss"), on_step=False, on_epoch=True, prog_bar=True, batch_size=n)
        self.log_dict(logged, on_step=False, on_epoch=True, batch_size=n)
        return losses["loss"]


def _build_for_state(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Runs before a state dict is read: builds the network for the basis of the normaliser in it."""
    state = state_dict.get(prefix + MODEL_ENTRY)
    basis_info = load_normalizer(state).basis_info if state else None
    if basis_info is not None:
        cast(DensityModule, module).build(basis_info)
