"""How much a weigher has seen: samples, and atoms of each element."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class SampleCounts(Metric):
    """Counts samples of positive weight, their atoms of each element, and the samples that have each element.

    Args:
        n_weighers: K.
        n_types: Number of elements.
        **kwargs: Passed to `torchmetrics.Metric`.

    Example:
        >>> counts = SampleCounts(1, 2)
        >>> counts.update(torch.ones(1, 2), torch.tensor([[2.0, 1.0], [2.0, 0.0]]))
        >>> counts.compute()["n_atoms"].tolist(), counts.compute()["n_samples_per_element"].tolist()
        ([[4, 1]], [[2, 1]])
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, n_weighers: int, n_types: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.n_types = n_types
        counts = torch.zeros(n_weighers, 1 + 2 * n_types, dtype=torch.int64)
        self.add_state("counts", counts, dist_reduce_fx="sum")

    def update(self, weights: Tensor, composition: Tensor) -> None:
        """Takes in samples.

        Args:
            weights: (K, S).
            composition: (S, n_types) number of atoms of each element.
        """
        table = torch.cat([torch.ones_like(composition[:, :1]), composition, (composition > 0).to(composition)], dim=1)
        self.counts = self.counts + ((weights > 0).to(composition) @ table).to(self.counts)

    def compute(self) -> dict[str, Tensor]:
        """Returns `n_samples` (K,), `n_atoms` and `n_samples_per_element`, both (K, n_types)."""
        n_samples, n_atoms, n_per_element = self.counts.split([1, self.n_types, self.n_types], dim=1)
        return {"n_samples": n_samples[:, 0], "n_atoms": n_atoms, "n_samples_per_element": n_per_element}
