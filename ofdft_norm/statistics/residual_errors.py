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
from ofdft_norm.statistics.element_blocks import composition, sample_kinds, sums_per_sample
from ofdft_norm.statistics.moments import has_label
from ofdft_norm.statistics.sample_weighers import SampleWeigher, sample_weights

REFERENCES = ("atom_ref", "scalar_atom_ref")


class ResidualErrors(Metric):
    """Largest and mean absolute residual of energies around their mean (no reference) and around two references.

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
        slopes, biases = zip(
            *(self._reference(arrays, w.summary_string(), name) for w in weighers for name in (None, *REFERENCES)),
            strict=True,
        )
        self._slopes = torch.stack(slopes, dim=1)  # (n_basis, K * 3)
        self._biases = torch.stack(biases, dim=1)  # (n_types + 1, K * 3)
        shape = (len(self.weighers), 1 + len(REFERENCES))
        self.add_state("largest", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="max")
        self.add_state("absolute", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros(len(self.weighers), dtype=torch.float64), dist_reduce_fx="sum")

    def _reference(self, arrays: Mapping[str, npt.NDArray[Any]], key: str, name: str | None) -> tuple[Tensor, Tensor]:
        if name is None:
            bias = np.zeros(self.basis_info.n_types + 1)
            bias[-1] = arrays[f"{key}/energy/mean"]
            return torch.zeros(self.basis_info.n_basis, dtype=torch.float64), torch.as_tensor(bias)
        slope = torch.as_tensor(arrays[f"{key}/gradient_label/mean"])
        if name == "scalar_atom_ref":
            slope = torch.where(torch.as_tensor(self.basis_info.l_per_basis_func == 0), slope, 0.0)
        bias = np.append(arrays[f"{key}/{name}_atom_type_bias"], arrays[f"{key}/{name}_global_bias"])
        return slope, torch.as_tensor(bias)

    def update(self, batch: Data) -> None:
        """Takes in a batch of samples."""
        weights = sample_weights(self.weighers, batch) * has_label(batch)
        used = weights.any(0)
        if not used.any():
            return
        n_samples = weights.shape[1]
        sums = torch.zeros(n_samples, self.basis_info.n_basis, dtype=torch.float64)
        for kind in sample_kinds(batch, self.basis_info, weights):
            sums += sums_per_sample(kind, batch.coeffs.to(torch.float64), n_samples, self.basis_info.n_basis)
        counts = composition(batch, self.basis_info)
        reference = sums @ self._slopes + counts @ self._biases[:-1] + self._biases[-1]
        energy = batch.energy_label.to(torch.float64).reshape(-1, 1)
        residual = (energy - reference)[used].abs().reshape(int(used.sum()), *self.largest.shape)
        weight = weights[:, used].T[:, :, None]
        self.largest = torch.maximum(self.largest, torch.where(weight > 0, residual, 0.0).amax(0))
        self.absolute = self.absolute + (residual * weight).sum(0)
        self.weight = self.weight + weights.sum(1)

    def compute(self) -> dict[str, Tensor]:
        """Returns `abs_max` and `mae`, both (K, 3): without reference, and with each of `REFERENCES`."""
        return {"abs_max": self.largest, "mae": self.absolute / self.weight[:, None]}

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Returns the results under the keys of `DatasetStatistics`."""
        results = self.compute()
        folders = ("energy", *(f"energy_minus_{name}" for name in REFERENCES))
        return {
            f"{weigher.summary_string()}/{folder}/{name}": np.array(float(values[k, column]))
            for name, values in results.items()
            for k, weigher in enumerate(self.weighers)
            for column, folder in enumerate(folders)
        }
