"""Turns the fit's merged accumulators into the named arrays of `DatasetStatistics`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.errors import StatisticsError
from ofdft_norm.statistics.energy_fit_result import EnergyFitResult
from ofdft_norm.statistics.reference_energy import REFERENCES, reference_has_bias, reference_slope

Arrays = dict[str, npt.NDArray[Any]]
Moments = Mapping[str, Tensor]


def moment_arrays(prefix: str, moments: Moments, names: tuple[str, ...]) -> Arrays:
    """Returns per-dimension statistics; a basis of one function is no exception, though torchmetrics squeezes it."""
    return {f"{prefix}/{name}": moments[name].reshape(-1).numpy() for name in names}


def largest_gradients(key: str, gradient: Moments, basis_info: BasisInfo) -> Arrays:
    """Returns max |g - gbar|, from the extrema: everywhere, and where l = 0 alone (max |g| elsewhere)."""
    gbar, minimum, maximum, abs_max = (gradient[n].reshape(-1) for n in ("mean", "minimum", "maximum", "abs_max"))
    largest = torch.maximum(maximum - gbar, gbar - minimum)
    scalar = torch.as_tensor(basis_info.l_per_basis_func == 0)
    return {
        f"{key}/gradient_max_after_atom_ref": largest.numpy(),
        f"{key}/gradient_max_after_scalar_atom_ref": torch.where(scalar, largest, abs_max).numpy(),
    }


def energy_arrays(key: str, energies: EnergyFitResult, gbar: Tensor, basis_info: BasisInfo, with_bias: bool) -> Arrays:
    """Returns the energies' spread, and all references fitted to them with what they leave."""
    mean, std = energies.spread()
    arrays: dict[str, Any] = {
        f"{key}/energy/mean": mean,
        f"{key}/energy/std": std,
        f"{key}/n_molecules": energies.n_molecules,
        f"{key}/n_molecules_per_element": energies.n_molecules_per_element.numpy(),
        f"{key}/linear_ref_factor": energies.composition_factor().numpy(),
    }
    for name in REFERENCES:
        has_bias = reference_has_bias(name, with_bias)
        fitted = energies.reference(reference_slope(name, gbar, basis_info), has_bias)
        arrays[f"{key}/{name}_atom_type_bias"] = fitted.t_z.numpy()
        if name != "linear_ref":
            arrays[f"{key}/{name}_global_bias"] = fitted.t_global
        arrays[f"{key}/{name}_rank"] = fitted.solution.rank
        arrays[f"{key}/{name}_condition_number"] = fitted.solution.condition_number
        arrays[f"{key}/energy_minus_{name}/mean"] = fitted.mean
        arrays[f"{key}/energy_minus_{name}/std"] = fitted.std
        arrays[f"{key}/energy_minus_{name}/rms"] = np.hypot(fitted.mean, fitted.std)
    return {name: np.array(value) for name, value in arrays.items()}


def check_counts(
    key: str, basis_info: BasisInfo, n_samples: Tensor, n_atoms: Tensor, gradient: Moments | None, min_atoms: int
) -> None:
    """Refuses a weigher that has seen nothing, or too few atoms of an element; warns of elements it has not seen.

    Args:
        key: The weigher's.
        basis_info: The basis.
        n_samples: () samples of positive weight.
        n_atoms: (n_types,) atoms in them.
        gradient: The gradient's moments, where energy references are fitted with this weigher.
        min_atoms: Smallest number of atoms of an element that occurs at all.

    Raises:
        StatisticsError: See above.
    """
    if int(n_samples) == 0:
        raise StatisticsError(_no_weight_message(key, "sample"))
    if gradient is not None and not (gradient["weight"] > 0).any():
        raise StatisticsError(_no_weight_message(key, "sample with energy and gradient labels"))
    atoms = dict(zip(basis_info.atomic_numbers.tolist(), n_atoms.reshape(-1).tolist(), strict=True))
    few = {z: n for z, n in atoms.items() if 0 < n < min_atoms}
    if few:
        raise StatisticsError(
            f"the weigher {key!r} saw too few atoms of some elements (atomic number: atoms): {few}; expected at least "
            f"{min_atoms} of each: add such molecules to the training split or lower data.statistics.min_atoms_per_type"
        )
    absent = [z for z, n in atoms.items() if n == 0]
    if absent and gradient is not None:
        warnings.warn(
            f"the basis has the elements {absent}, of which the weigher {key!r} saw no atom: their entries are neutral "
            "(mean 0, lambda 1), and normalising such an atom is an error unless unseen_elements='identity'",
            stacklevel=2,
        )


def _no_weight_message(key: str, what: str) -> str:
    return (
        f"the weigher {key!r} gives no {what} of the training split a positive weight: choose another weigher "
        "(config: data.statistics.weighers, data.statistics.initial_guess_weighers) or check the split"
    )
