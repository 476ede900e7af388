"""The second look at the data of a composition fit: what the references leave, sample by sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics import Metric


class ResidualSurvey(Metric):
    """Mean absolute residual of fitted references, and the samples they fit worst.

    Args:
        references: (max_num_elements + 1, T).
        n_worst: How many samples to remember for each target.
        **kwargs: Passed to `torchmetrics.Metric`.
    """

    full_state_update = False
    absolute: Tensor
    weight: Tensor
    worst: Tensor

    def __init__(self, references: Tensor, n_worst: int = 10, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._references = references
        self.n_worst = n_worst
        n_targets = references.shape[1]
        self.add_state("absolute", torch.zeros(n_targets, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("weight", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        # residual and index of each sample; index -1: none yet
        worst = torch.zeros(n_targets, n_worst, 2, dtype=torch.float64)
        worst[:, :, 1] = -1
        self.add_state("worst", worst, dist_reduce_fx=self._merge_worst)

    def update(self, counts: Tensor, targets: Tensor, weights: Tensor, index: Tensor) -> None:
        """Takes in molecules; arguments as in `CompositionFit.update`, with the (S,) indices of the samples."""
        # numpy: torch would start its threads for each of these small steps, which costs more than the steps
        residual = targets.numpy() - counts.numpy() @ self._references[: counts.shape[1]].numpy()
        w = weights.numpy()
        self.absolute = self.absolute + torch.from_numpy(w @ np.abs(residual))
        self.weight = self.weight + float(w.sum())
        candidates = [
            _worst_of(np.concatenate([self.worst[t].numpy(), np.stack([column, index.numpy()], axis=1)]), self.n_worst)
            for t, column in enumerate(residual.T)
        ]
        self.worst = torch.from_numpy(np.stack(candidates))

    def _merge_worst(self, states: Tensor) -> Tensor:
        stacked = states.transpose(0, 1).reshape(states.shape[1], -1, 2).numpy()
        return torch.from_numpy(np.stack([_worst_of(candidates, self.n_worst) for candidates in stacked]))

    def compute(self) -> dict[str, Tensor]:
        """Returns `mae` (T,) and `worst` (T, n_worst, 2): residual (target less reference) and index, -1 if none.

        torchmetrics makes a `mae` of a single target a scalar.
        """
        return {"mae": self.absolute / self.weight, "worst": self.worst}


def _worst_of(candidates: npt.NDArray[np.float64], n: int) -> npt.NDArray[np.float64]:
    """Keeps the n (residual, index) of largest residual; among equal ones those of lowest index."""
    residual, index = candidates.T
    size = np.where(index >= 0, np.abs(residual), -1.0)
    return candidates[np.lexsort((index, -size))[:n]]
