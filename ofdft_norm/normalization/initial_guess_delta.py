"""The initial guess's deviation from the ground state, as a target that a network can predict."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm.errors import StatisticsError
from ofdft_norm.normalization.affine import Affine
from ofdft_norm.normalization.float64_module import Float64Module
from ofdft_norm.normalization.guards import check_vector, require_field
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.statistics.dataset_statistics import Array, DatasetStatistics


class InitialGuessDelta(Float64Module):
    """d' = (p - p* - mean) / std for each dimension: what a density lacks of the ground state's p*.

    A network that predicts d' turns the coefficients of an initial guess into those of the ground state: p* = p - d
    ([STR25]). Dimensions in which all training densities deviate alike (std 0) keep their unit.

    Args:
        mean: (n_basis,) mean of p - p*, concatenated over elements.
        std: (n_basis,) its standard deviation.

    Raises:
        StatisticsError: If a value is not finite, or a standard deviation is negative.

    Example:
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
        stds = np.asarray(std, dtype=np.float64)
        if not (
            np.isfinite(np.asarray(mean, dtype=np.float64)).all() and np.isfinite(stds).all() and (stds >= 0).all()
        ):
            raise StatisticsError("InitialGuessDelta: mean and std must be finite, std at least 0")
        self.register_float64("mean", mean)
        self.register_float64("unit", np.where(stds > 0, stds, 1.0))

    @classmethod
    def from_dataset_statistics(
        cls, dataset_statistics: DatasetStatistics, weigher_key: str = "initial_guess_only"
    ) -> InitialGuessDelta:
        """Takes the scales from a data set's statistics.

        Args:
            dataset_statistics: With those of `initial_guess_delta` (config: data.statistics.initial_guess_weighers).
            weigher_key: Whose statistics to use.

        Raises:
            StatisticsError: If they are missing.
        """
        mean, std = (
            dataset_statistics.load_statistic(weigher_key, f"initial_guess_delta/{name}") for name in ("mean", "std")
        )
        return cls(mean, std)

    def forward(self, data_sample: Data) -> Tensor:
        """Returns d' of a sample or batch that is not normalised, (n_basis,) float64.

        Raises:
            NormalizationError: If it lacks a field, or has one of the wrong length.
        """
        coeffs, ground_state = (
            require_field(name, data_sample, "the deviation from the ground state needs").to(torch.float64)
            for name in ("coeffs", "ground_state_coeffs")
        )
        return self._affine(coeffs - ground_state, data_sample).normalize(coeffs - ground_state)

    def of_normalized(self, batch: Data, normalizer: Normalizer) -> Tensor:
        """Returns d' of a normalised batch, (n_basis,) float64: the target for a LightningModule.

        Args:
            batch: A normalised batch with `ground_state_coeffs`.
            normalizer: The normaliser that it went through.
        """
        raw = {name: normalizer.denormalize_coeffs(batch[name], batch) for name in ("coeffs", "ground_state_coeffs")}
        delta = raw["coeffs"] - raw["ground_state_coeffs"]
        return self._affine(delta, batch).normalize(delta)

    def unscale(self, delta: Tensor, batch: Data) -> Tensor:
        """Returns d = p - p* of a prediction d', (n_basis,) float64: the exact inverse of `forward`.

        Args:
            delta: (n_basis,) predictions.
            batch: The batch that they belong to.
        """
        return self._affine(delta, batch).denormalize(delta)

    def ground_state_coeffs(self, delta: Tensor, batch: Data, normalizer: Normalizer | None = None) -> Tensor:
        """Returns p* = p - d of a prediction d', (n_basis,) float64, in the coordinates that statistics were taken in.

        Args:
            delta: (n_basis,) predicted d'.
            batch: The sample or batch it was predicted for.
            normalizer: Of a normalised batch; None: the batch is not normalised.
        """
        coeffs = batch.coeffs.to(torch.float64)
        if normalizer is not None:
            coeffs = normalizer.denormalize_coeffs(batch.coeffs, batch)
        return coeffs - self.unscale(delta, batch)

    def _affine(self, values: Tensor, batch: Data) -> Affine:
        index = check_vector("initial_guess_delta", values, batch)
        return Affine(self.mean.index_select(0, index), self.unit.index_select(0, index))
