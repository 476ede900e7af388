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
from ofdft_norm.statistics.workspace import Workspace
from ofdft_norm.statistics.worst_molecules import merged, no_molecules, with_samples

# Where the results go: around the mean (no reference), and around each reference.
FOLDERS = ("energy", *(f"energy_minus_{name}" for name in REFERENCES))


class ResidualErrors(Metric):
    """Largest and mean absolute residual of energies around their mean (no reference) and around the references.

    And the molecules that ``linear_ref`` fits worst.

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
    worst: Tensor

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
        self.add_state("worst", no_molecules(len(self.weighers), basis_info), dist_reduce_fx=merged)
        self._workspace = Workspace()

    def cut(self, *batches: Data) -> BatchBlocks:
        """Weighs samples, zero without label, and cuts them into blocks, for `update`."""
        weights = torch.cat([labelled_weights(self.weighers, batch) for batch in batches], dim=1)
        return batch_blocks(batches, self.basis_info, weights, self._workspace)

    def update(self, batch: Data | BatchBlocks) -> None:
        """Takes in a batch of samples, on any device, or what `cut` made of several."""
        blocks = batch if isinstance(batch, BatchBlocks) else self.cut(batch)
        used = blocks.weights.any(0)
        if not used.any():
            return
        residual = self._residual(blocks)
        self._count_worst(blocks, residual[:, :, FOLDERS.index("energy_minus_linear_ref")])
        size, weight = residual[used].abs(), blocks.weights[:, used].T[:, :, None]
        largest = torch.where(weight > 0, size, 0.0).amax(0)
        self.largest = torch.maximum(self.largest, largest.to(self.largest))
        self.absolute = self.absolute + (size * weight).sum(0).to(self.absolute)
        self.weight = self.weight + blocks.weights.sum(1).to(self.weight)

    def _residual(self, blocks: BatchBlocks) -> Tensor:
        """Returns the (S, K, 1 + n_references) residuals of all samples."""
        sums = torch.zeros(blocks.weights.shape[1], self.basis_info.n_basis, dtype=torch.float64)
        sums_per_sample(blocks, torch.arange(len(sums)), out=sums)
        reference = sums @ self._slopes + blocks.composition @ self._biases[:-1] + self._biases[-1]
        return (blocks.energies()[:, None] - reference).reshape(len(sums), *self.largest.shape)

    def _count_worst(self, blocks: BatchBlocks, residual: Tensor) -> None:
        counted = torch.where(blocks.weights.T > 0, residual, torch.nan)
        so_far = self.worst.cpu()
        rows = [with_samples(worst, blocks, column) for worst, column in zip(so_far, counted.T, strict=True)]
        self.worst = torch.stack(rows).to(self.worst)

    def compute(self) -> dict[str, Tensor]:
        """Returns `abs_max` and `mae`, both (K, 1 + n_references): without reference, and with each.

        And `worst`, the (K, N_WORST, columns) rows of `worst_molecules`.
        """
        return {"abs_max": self.largest, "mae": self.absolute / self.weight[:, None], "worst": self.worst}

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Returns the results under the keys of `DatasetStatistics`."""
        results = self.compute()
        return {
            f"{weigher.summary_string()}/{folder}/{name}": np.array(float(results[name][k, column]))
            for name in ("abs_max", "mae")
            for k, weigher in enumerate(self.weighers)
            for column, folder in enumerate(FOLDERS)
        }

    def worst_rows(self) -> dict[str, npt.NDArray[np.float64]]:
        """Returns each weigher's rows of the worst molecules, see `worst_molecules.described`."""
        rows = self.compute()["worst"].cpu().numpy()
        return {weigher.summary_string(): r for weigher, r in zip(self.weighers, rows, strict=True)}


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
