"""How much a weigher has seen: samples, and atoms of each element."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data
from torchmetrics import Metric

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.statistics.element_blocks import BatchBlocks, composition, on_cpu
from ofdft_norm.statistics.sample_weighers import SampleWeigher, sample_weights


class SampleCounts(Metric):
    """Counts samples of positive weight and their atoms of each element.

    Args:
        basis_info: The basis.
        weighers: K sample weighers.
        **kwargs: Passed to `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from ofdft_norm import BasisInfo, ConstantSampleWeigher, OFData
        >>> basis_info = BasisInfo([1, 8], ["1x0e", "1x0e"])
        >>> water = OFData.construct_new(basis_info, torch.zeros(3, 3), [8, 1, 1], torch.zeros(3))
        >>> counts = SampleCounts(basis_info, [ConstantSampleWeigher()])
        >>> counts.update(water)
        >>> counts.compute()["constant"]["n_atoms"].tolist()
        [2, 1]
    """

    full_state_update = False
    n_samples: Tensor
    n_atoms: Tensor

    def __init__(self, basis_info: BasisInfo, weighers: Sequence[SampleWeigher], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.basis_info = basis_info
        self.weighers = list(weighers)
        self.add_state("n_samples", torch.zeros(len(self.weighers), dtype=torch.int64), dist_reduce_fx="sum")
        n_atoms = torch.zeros(len(self.weighers), basis_info.n_types, dtype=torch.int64)
        self.add_state("n_atoms", n_atoms, dist_reduce_fx="sum")

    def update(self, batch: Data | BatchBlocks, rows: slice = slice(None)) -> None:
        """Takes in a batch of samples, or the blocks they have been cut into, with `rows` of the blocks' weights."""
        if isinstance(batch, BatchBlocks):
            positive, counts = batch.weights[rows] > 0, batch.composition
        else:
            positive = sample_weights(self.weighers, batch) > 0
            counts = composition(on_cpu(batch), self.basis_info)
        self.n_samples = self.n_samples + positive.sum(1).to(self.n_samples)
        self.n_atoms = self.n_atoms + (positive.to(torch.float64) @ counts).to(self.n_atoms)

    def compute(self) -> dict[str, dict[str, Tensor]]:
        """Returns, per weigher key, `n_samples` () and `n_atoms` (n_types,)."""
        return {
            w.summary_string(): {"n_samples": self.n_samples[k], "n_atoms": self.n_atoms[k]}
            for k, w in enumerate(self.weighers)
        }
