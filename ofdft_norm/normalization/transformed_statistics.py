"""What a data set's statistics become when the data set is rescaled."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.errors import StatisticsError
from ofdft_norm.statistics.dataset_statistics import Array, DatasetStatistics

if TYPE_CHECKING:
    from ofdft_norm.normalization.dimension_wise_rescaling import DimensionWiseRescaling


def transform_statistics(
    statistics: DatasetStatistics, rescaling: DimensionWiseRescaling, basis_info: BasisInfo | None
) -> DatasetStatistics:
    """Applies a rescaling to all weighers' statistics; see `DimensionWiseRescaling.apply_to_dataset_statistics`.

    Raises:
        StatisticsError: If the elements' energies have to be updated and the basis is neither given nor stored.
    """
    lam, pbar = rescaling.lambda_z.cpu().numpy(), rescaling.coeff_biases.cpu().numpy()
    dual = lam + rescaling.epsilon
    new: dict[str, Array] = {key: statistics.load_statistic(*key.split("/", 1)) for key in statistics.keys_recursive()}
    for key in statistics.keys_recursive():
        weigher, statistic = key.split("/", 1)
        value = new[key]
        # where a weigher saw no atom of an element, its entries are neutral: there is nothing to shift
        shift = pbar * _seen_dimensions(statistics, weigher, basis_info)
        if statistic == "coeffs/mean":
            new[key] = lam * (value - shift)
        elif statistic == "coeffs/abs_max":
            if f"{weigher}/coeffs/minimum" in statistics:
                new[key] = _abs_max_after_shift(statistics, weigher, shift) * lam
            else:
                warnings.warn(f"{key!r} cannot be transformed without minimum and maximum: left out", stacklevel=3)
                del new[key]
        elif statistic in ("coeffs/std", "coeffs/minimum", "coeffs/maximum"):
            new[key] = lam * (value if statistic == "coeffs/std" else value - shift)
        elif statistic.startswith("initial_guess_delta/"):
            new[key] = lam * value
        elif statistic.startswith("gradient_label/") or statistic.startswith("gradient_max_after_"):
            new[key] = value / dual
    attributes = {**statistics.attributes, "rescaled_by": repr(rescaling)}
    for weigher in statistics.weigher_keys():
        for name in ("atom_ref", "scalar_atom_ref"):
            key = f"{weigher}/{name}_atom_type_bias"
            if key in statistics:
                basis = basis_info or _stored_basis(statistics)
                new[key] = new[key] + _energy_of_bias(statistics, weigher, name, pbar, basis)
    return DatasetStatistics.from_arrays(new, attributes)


def _abs_max_after_shift(statistics: DatasetStatistics, weigher: str, pbar: Array) -> Array:
    lowest = statistics.load_statistic(weigher, "coeffs/minimum")
    highest = statistics.load_statistic(weigher, "coeffs/maximum")
    return np.maximum(np.abs(lowest - pbar), np.abs(highest - pbar))


def _seen_dimensions(statistics: DatasetStatistics, weigher: str, basis_info: BasisInfo | None) -> Array:
    """Returns (n_basis,) 1 for functions of elements that the weigher saw, else 0; 1 where no counts are stored."""
    if f"{weigher}/n_atoms" not in statistics:
        return np.ones(1)
    basis = basis_info or _stored_basis(statistics)
    return np.repeat(statistics.load_statistic(weigher, "n_atoms") > 0, basis.basis_dim_per_atom).astype(np.float64)


def _stored_basis(statistics: DatasetStatistics) -> BasisInfo:
    stored = statistics.attributes.get("basis_info")
    if stored is None:
        raise StatisticsError(
            f"{statistics.path or 'statistics'}: which functions belong to which element is not stored in these "
            "statistics; pass basis_info"
        )
    return BasisInfo(**stored)


def _energy_of_bias(
    statistics: DatasetStatistics, weigher: str, name: str, pbar: Array, basis_info: BasisInfo
) -> Array:
    """Returns, per element, the energy gbar.pbar that leaves the linear term when coefficients are centred."""
    slope = statistics.load_statistic(weigher, "gradient_label/mean")
    if name == "scalar_atom_ref":
        slope = np.where(basis_info.l_per_basis_func == 0, slope, 0.0)
    return np.array([float(slope[i] @ pbar[i]) for i in basis_info.atom_ind_to_basis_function_ind])
