"""The initial guess's deviation from the ground state, as a target that a network can predict."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm.errors import StatisticsError
from ofdft_norm.normalization.base import Affine, Float64Module, get_function_index, require_field
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.statistics.store import Array, DatasetStatistics

_FIELDS = ("coeffs", "ground_state_coeffs")


class InitialGuessDelta(Float64Module):
    """d' = (p - p* - mean) / std for each dimension: the deviation of a density from the ground state p*.

    A network that predicts d' turns the coefficients of an initial guess into those of the ground state: p* = p - d
    ([STR25]). Dimensions in which all training densities deviate alike (std 0) are not scaled.

    Args:
        mean: (n_basis,) mean of p - p*, concatenated over elements.
        std: (n_basis,) its standard deviation.

    Raises:
        StatisticsError: If a value is not finite, or a standard deviation is negative.

    Examples:
        >>> delta = InitialGuessDelta([0.5, 0.0], [2.0, 0.0])
        >>> index = torch.tensor([0, 1])
        >>> p, ground_state = torch.tensor([3.0, 1.0]), torch.tensor([0.5, 0.0])
        >>> sample = Data(coeffs=p, ground_state_coeffs=ground_state, basis_function_ind=index)
        >>> delta(sample).tolist()
        [1.0, 1.0]
        >>> delta.ground_state_coeffs(delta(sample), sample).tolist()
        [0.5, 0.0]
    """

    mean: Tensor
    unit: Tensor

    def __init__(self, mean: Tensor | Array | list[float], std: Tensor | Array | list[float]) -> None:
        super().__init__()
        means, stds = np.asarray(mean, dtype=np.float64), np.asarray(std, dtype=np.float64)
        if not (np.isfinite(means).all() and np.isfinite(stds).all() and (stds >= 0).all()):
            raise StatisticsError("InitialGuessDelta: mean and std must be finite, std at least 0")
        self.register_float64("mean", means)
        self.register_float64("unit", np.where(stds > 0, stds, 1.0))

    @classmethod
    def from_dataset_statistics(
        cls, dataset_statistics: DatasetStatistics, weigher_key: str = "initial_guess_only"
    ) -> InitialGuessDelta:
        """Takes mean and scale from dataset statistics.

        Args:
            dataset_statistics: With those of `initial_guess_delta` (config: data.statistics.initial_guess_weighers).
            weigher_key: Key of the weigher of these statistics.

        Raises:
            StatisticsError: If they are missing.
        """
        names = ("initial_guess_delta/mean", "initial_guess_delta/std")
        return cls(*(dataset_statistics.load_statistic(weigher_key, name) for name in names))

    def forward(self, data_sample: Data) -> Tensor:
        """Returns d' of a raw sample or batch, (n_basis,) float64; raises NormalizationError for missing fields."""
        p, ground_state = (require_field(name, data_sample).to(torch.float64) for name in _FIELDS)
        return self._affine(p - ground_state, data_sample).normalize(p - ground_state)

    def of_normalized(self, batch: Data, normalizer: Normalizer) -> Tensor:
        """Returns d' of a batch that the normaliser was applied to, (n_basis,) float64: a LightningModule's target."""
        p, ground_state = (normalizer.denormalize_coeffs(batch[name], batch) for name in _FIELDS)
        return self._affine(p - ground_state, batch).normalize(p - ground_state)

    def unscale(self, delta: Tensor, batch: Data) -> Tensor:
        """Returns d = p - p* of predictions d', both (n_basis,), in float64: the exact inverse of `forward`."""
        return self._affine(delta, batch).denormalize(delta)

    def ground_state_coeffs(self, delta: Tensor, batch: Data, normalizer: Normalizer | None = None) -> Tensor:
        """Returns p* = p - d of a prediction d', in the coordinates of the statistics.

        Args:
            delta: (n_basis,) predicted d'.
            batch: The sample or batch that it was predicted for.
            normalizer: The normaliser of a normalised batch; None: the batch is not normalised.

        Returns:
            (n_basis,) float64.
        """
        p = batch.coeffs if normalizer is None else normalizer.denormalize_coeffs(batch.coeffs, batch)
        return p.to(torch.float64) - self.unscale(delta, batch)

    def _affine(self, values: Tensor, batch: Data) -> Affine:
        index = get_function_index("initial_guess_delta", values, batch)
        return Affine(self.mean.index_select(0, index), self.unit.index_select(0, index))
