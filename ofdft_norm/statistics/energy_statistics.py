"""Statistics of energies alone, before and after a reference: for data without density coefficients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data
from torchmetrics import Metric

from ofdft_norm.data.of_data import molecule_index, n_molecules
from ofdft_norm.errors import BatchError
from ofdft_norm.statistics.batches import batch_source, for_each_batch
from ofdft_norm.statistics.dataset_statistics import DatasetStatistics
from ofdft_norm.statistics.distributed import current_ranks
from ofdft_norm.statistics.moments import M2, MAXIMUM, MEAN, MINIMUM, WEIGHT, empty_moments, merge_moments

WEIGHER_KEY = "constant"


class EnergyMoments(Metric):
    """Moments of energies, and of what a reference leaves of them; every sample counts once.

    Args:
        energy_field: Field that holds the energy of each sample.
        reference: Returns the reference energies of a batch, (n_samples,); None: 0.
        **kwargs: Passed to `torchmetrics.Metric`.
    """

    full_state_update = False
    moments: Tensor
    absolute: Tensor
    n_atoms: Tensor

    def __init__(self, energy_field: str, reference: Callable[[Data], Tensor] | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.energy_field = energy_field
        self.reference = reference
        self.add_state("moments", empty_moments(1, 2), dist_reduce_fx=merge_moments)
        self.add_state("absolute", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("n_atoms", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, batch: Data) -> None:
        """Takes in a batch of samples."""
        energy = batch.get(self.energy_field)
        if energy is None:
            raise BatchError(f"the samples lack the field {self.energy_field!r} (config: data.source.energy_field)")
        energy = energy.to(torch.float64).reshape(n_molecules(batch))
        residual = energy if self.reference is None else energy - self.reference(batch)
        values = torch.stack([energy, residual], dim=1)
        mean = values.mean(0)
        state = empty_moments(1, 2)
        state[WEIGHT], state[MEAN], state[M2] = len(values), mean, (values - mean).square().sum(0)
        state[MINIMUM], state[MAXIMUM] = values.amin(0), values.amax(0)
        self.moments = merge_moments(torch.stack([self.moments, state]))
        self.absolute = self.absolute + residual.abs().sum()
        self.n_atoms = self.n_atoms + len(molecule_index(batch, "pos"))

    def compute(self) -> dict[str, Tensor]:
        """Returns the (5, 2) `moments` of energies and residuals, the residuals' `mae`, and the `n_atoms`."""
        return {
            "moments": self.moments[:, 0],
            "mae": self.absolute / self.moments[WEIGHT, 0, 0],
            "n_atoms": self.n_atoms,
        }


def energy_statistics(dataset: Any, energy_field: str, reference: Callable[[Data], Tensor] | None) -> DatasetStatistics:
    """Measures energies and referenced energies in one pass, sharded over the ranks of torch.distributed.

    Args:
        dataset: Samples with the energy.
        energy_field: Its field.
        reference: Returns the linear reference energies of a batch; None: 0.

    Returns:
        Statistics in memory, under the weigher ``constant``.

    Raises:
        StatisticsError: If the data set is empty.
        BatchError: If the samples lack the energy.
    """
    ranks = current_ranks()
    source = batch_source(dataset, ranks)
    metric = EnergyMoments(energy_field, reference, process_group=ranks.group, sync_on_compute=source.sharded)
    for_each_batch(source, ranks, metric.update)
    result = metric.compute()
    weight, mean, m2, low, high = (row.numpy() for row in result["moments"])
    std = np.sqrt(m2 / weight)
    residual = f"{WEIGHER_KEY}/energy_minus_linear_ref"
    return DatasetStatistics.from_arrays(
        {
            f"{WEIGHER_KEY}/energy/mean": mean[0],
            f"{WEIGHER_KEY}/energy/std": std[0],
            f"{residual}/mean": mean[1],
            f"{residual}/std": std[1],
            f"{residual}/rms": np.hypot(mean[1], std[1]),
            f"{residual}/abs_max": np.maximum(abs(low[1]), abs(high[1])),
            f"{residual}/mae": result["mae"].numpy(),
            f"{WEIGHER_KEY}/n_samples": np.array(int(weight[0])),
            f"{WEIGHER_KEY}/n_atoms": np.array([int(result["n_atoms"])]),
        }
    )
