"""What a data set's statistics become when the data set is rescaled."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.errors import StatisticsError
from ofdft_norm.statistics.dataset_statistics import Array, DatasetStatistics
from ofdft_norm.statistics.references import reference_gradient

if TYPE_CHECKING:
    from ofdft_norm.normalization.dimension_wise_rescaling import DimensionWiseRescaling


def transform_statistics(
    statistics: DatasetStatistics, rescaling: DimensionWiseRescaling, basis_info: BasisInfo | None
) -> DatasetStatistics:
    """Applies a rescaling to all weighers' statistics; see `DimensionWiseRescaling.apply_to_dataset_statistics`.

    Args:
        statistics: Raw statistics.
        rescaling: What is applied to them.
        basis_info: The density basis; None: the stored one.

    Raises:
        StatisticsError: If the elements' energies have to be updated and the basis is neither given nor stored.
    """
    new: dict[str, Array] = {}
    for key in statistics.keys_recursive():
        weigher, statistic = key.split("/", 1)
        value = _transformed(statistics, weigher, statistic, rescaling, basis_info)
        if value is None:
            warnings.warn(f"{key!r} cannot be transformed without minimum and maximum: left out", stacklevel=3)
        else:
            new[key] = value
        if statistic.startswith("energy_minus_") and statistic.endswith("/std"):
            # STRUCTURES25's uncentred ones are read centred: with `rms` beside them they are not centred again
            rms = statistic.removesuffix("std") + "rms"
            new[f"{weigher}/{rms}"] = statistics.load_statistic(weigher, rms)
    return DatasetStatistics.from_arrays(new, {**statistics.attributes, "rescaled_by": repr(rescaling)})


def _transformed(
    statistics: DatasetStatistics,
    weigher: str,
    statistic: str,
    rescaling: DimensionWiseRescaling,
    basis_info: BasisInfo | None,
) -> Array | None:
    """Returns what becomes of one statistic; None if that is not known."""
    coeffs, gradient = rescaling.factors.coeffs, rescaling.factors.gradient
    pbar = rescaling.coeff_biases
    value = torch.as_tensor(statistics.load_statistic(weigher, statistic)).to(pbar.device)
    if statistic in ("coeffs/mean", "coeffs/minimum", "coeffs/maximum"):
        # where a weigher saw no atom of an element, its entries are neutral: there is nothing to shift
        value = coeffs._replace(origin=pbar * _seen(statistics, weigher, basis_info).to(pbar.device)).normalize(value)
    elif statistic == "coeffs/abs_max":
        limits = [f"coeffs/{name}" for name in ("minimum", "maximum")]
        if any(f"{weigher}/{name}" not in statistics for name in limits):
            return None
        low, high = (_transformed(statistics, weigher, name, rescaling, basis_info) for name in limits)
        return np.maximum(np.abs(cast(Array, low)), np.abs(cast(Array, high)))
    elif statistic == "coeffs/std" or statistic.startswith("initial_guess_delta/"):
        value = coeffs._replace(origin=None).normalize(value)  # of differences: the origin cancels
    elif statistic.startswith(("gradient_label/", "gradient_max_after_")):
        value = gradient.normalize(value)
    elif statistic in ("atom_ref_atom_type_bias", "scalar_atom_ref_atom_type_bias"):
        name = statistic.removesuffix("_atom_type_bias")
        value = value + _energy_of_bias(statistics, weigher, name, pbar, basis_info or _stored_basis(statistics))
    array: Array = value.cpu().numpy()
    return array


def _seen(statistics: DatasetStatistics, weigher: str, basis_info: BasisInfo | None) -> Tensor:
    """Returns (n_basis,) 1 for functions of elements that the weigher saw, else 0; 1 where no counts are stored."""
    if f"{weigher}/n_atoms" not in statistics:
        return torch.ones(1, dtype=torch.float64)
    basis = basis_info or _stored_basis(statistics)
    seen = np.repeat(statistics.load_statistic(weigher, "n_atoms") > 0, basis.basis_dim_per_atom)
    return torch.as_tensor(seen, dtype=torch.float64)


def _stored_basis(statistics: DatasetStatistics) -> BasisInfo:
    stored = statistics.attributes.get("basis_info")
    if stored is None:
        raise StatisticsError(
            f"{statistics.path or 'statistics'}: which functions belong to which element is not stored in these "
            "statistics; pass basis_info"
        )
    return BasisInfo(**stored)


def _energy_of_bias(
    statistics: DatasetStatistics, weigher: str, name: str, pbar: Tensor, basis_info: BasisInfo
) -> Tensor:
    """Returns, per element, the energy gbar.pbar that leaves the linear term when coefficients are centred."""
    mean = torch.as_tensor(statistics.load_statistic(weigher, "gradient_label/mean"))
    linear = reference_gradient(name, mean, basis_info).to(pbar.device) * pbar
    return torch.stack([linear[i].sum() for i in basis_info.atom_ind_to_basis_function_ind])
