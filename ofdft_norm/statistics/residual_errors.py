"""The second pass: what fitted references leave of the energies, sample by sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch_geometric.data import Data
from torchmetrics import Metric

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.statistics.element_blocks import BatchBlocks, batch_blocks, sums_per_sample
from ofdft_norm.statistics.reference_energy import REFERENCES, reference_slope
from ofdft_norm.statistics.sample_weighers import SampleWeigher, labelled_weights

# Where the results go: around the mean (no reference), and around each reference.
FOLDERS = ("energy", *(f"energy_minus_{name}" for name in REFERENCES))


class ResidualErrors(Metric):
    """Largest and mean absolute residual of energies around their mean (no reference) and around the references.

    Args:
        basis_info: The basis.
        weighers: K sample weighers, whose references are in `arrays`.
        arrays: Fitted statistics by key.
        **kwargs: Passed to `torchmetrics.Metric`.
    """

    full_state_update = False
    largest: Tensor
    absolute: Tensor
    weight: Tensor

    def __init__(
        self,
        basis_info: BasisInfo,
        weighers: Sequence[SampleWeigher],
        arrays: Mapping[str, npt.NDArray[Any]],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.basis_info = basis_info
        self.weighers = list(weighers)
        references = [_references(arrays, w.summary_string(), basis_info) for w in weighers]
        self._slopes = torch.stack([slope for slopes, _ in references for slope in slopes], dim=1)
        self._biases = torch.stack([bias for _, biases in references for bias in biases], dim=1)
        shape = (len(self.weighers), len(FOLDERS))
        self.add_state("largest", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="max")
        self.add_state("absolute", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros(len(self.weighers), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, batch: Data | BatchBlocks) -> None:
        """Takes in a batch of samples, on any device, or blocks with this accumulator's weights, zero without label."""
        if isinstance(batch, BatchBlocks):
            blocks = batch
        else:
            blocks = batch_blocks([batch], self.basis_info, labelled_weights(self.weighers, batch))
        weights = blocks.weights
        used = weights.any(0)
        if not used.any():
            return
        sums = torch.zeros(weights.shape[1], self.basis_info.n_basis, dtype=torch.float64)
        sums_per_sample(blocks, torch.arange(len(sums)), out=sums)
        reference = sums @ self._slopes + blocks.composition @ self._biases[:-1] + self._biases[-1]
        residual = (blocks.energies()[:, None] - reference)[used].abs().reshape(int(used.sum()), *self.largest.shape)
        weight = weights[:, used].T[:, :, None]
        largest = torch.where(weight > 0, residual, 0.0).amax(0)
        self.largest = torch.maximum(self.largest, largest.to(self.largest))
        self.absolute = self.absolute + (residual * weight).sum(0).to(self.absolute)
        self.weight = self.weight + weights.sum(1).to(self.weight)

    def compute(self) -> dict[str, Tensor]:
        """Returns `abs_max` and `mae`, both (K, 1 + n_references): without reference, and with each."""
        return {"abs_max": self.largest, "mae": self.absolute / self.weight[:, None]}

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Returns the results under the keys of `DatasetStatistics`."""
        results = self.compute()
        return {
            f"{weigher.summary_string()}/{folder}/{name}": np.array(float(values[k, column]))
            for name, values in results.items()
            for k, weigher in enumerate(self.weighers)
            for column, folder in enumerate(FOLDERS)
        }


def _references(
    arrays: Mapping[str, npt.NDArray[Any]], key: str, basis_info: BasisInfo
) -> tuple[list[Tensor], list[Tensor]]:
    """Returns (n_basis,) slopes and (n_types + 1,) biases, the constant last, of the mean and of each reference."""
    gbar = torch.as_tensor(arrays[f"{key}/gradient_label/mean"])
    mean = np.zeros(basis_info.n_types + 1)
    mean[-1] = arrays[f"{key}/energy/mean"]
    slopes, biases = [torch.zeros_like(gbar)], [torch.as_tensor(mean)]
    for name in REFERENCES:
        constant = arrays.get(f"{key}/{name}_global_bias", np.array(0.0))
        slopes.append(reference_slope(name, gbar, basis_info))
        biases.append(torch.as_tensor(np.append(arrays[f"{key}/{name}_atom_type_bias"], constant)))
    return slopes, biases
