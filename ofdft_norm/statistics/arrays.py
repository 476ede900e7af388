"""Turns the fit's merged accumulators into the named arrays of `DatasetStatistics`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.errors import StatisticsError
from ofdft_norm.statistics.references import (
    LINEAR_REFERENCES,
    NO_REFERENCE,
    EnergyFitResult,
    FittedReference,
)

Arrays = dict[str, npt.NDArray[Any]]
Moments = Mapping[str, Tensor]
Counts = Mapping[str, Tensor]

# Attributes of statistics that name the molecules which each linear reference fits worst.
WORST_MOLECULES = {"linear_ref": "worst_molecules", "linear_ref_by_sample": "worst_molecules_by_sample"}

# Attribute of statistics with the samples that hold the gradients' extremes, by weigher.
EXTREME_SAMPLES = "extreme_samples"


def moment_arrays(key: str, field: str, moments: Moments, extrema: bool = False) -> Arrays:
    """Returns per-dimension statistics; a basis of one function is no exception, though torchmetrics squeezes it.

    Args:
        key: Key of the weigher.
        field: Name of the field.
        moments: Its moments, each (n_basis,).
        extrema: Whether minimum and maximum are kept, too.
    """
    names = ("mean", "std", "abs_max", *(("minimum", "maximum") if extrema else ()))
    return {f"{key}/{field}/{name}": moments[name].reshape(-1).numpy() for name in names}


def largest_gradient_arrays(key: str, gradient: Moments, basis_info: BasisInfo) -> Arrays:
    """Returns max |g - gbar|, from the extrema: everywhere, and where l = 0 alone (max |g| elsewhere).

    Args:
        key: Key of the weigher.
        gradient: Moments of the gradient.
        basis_info: The density basis, which says where l = 0.
    """
    gbar, minimum, maximum, abs_max = (gradient[n].reshape(-1) for n in ("mean", "minimum", "maximum", "abs_max"))
    largest = torch.maximum(maximum - gbar, gbar - minimum)
    scalar = torch.as_tensor(basis_info.l_per_basis_func == 0)
    return {
        f"{key}/gradient_max_after_atom_ref": largest.numpy(),
        f"{key}/gradient_max_after_scalar_atom_ref": torch.where(scalar, largest, abs_max).numpy(),
    }


def residual_folder(name: str) -> str:
    """Returns under which name statistics hold what a reference leaves of the energies.

    Args:
        name: Name of the reference.
    """
    return "energy" if name == NO_REFERENCE else f"energy_minus_{name}"


def energy_arrays(
    key: str, energies: EnergyFitResult, fitted: Mapping[str, FittedReference], seen: Tensor, target: int = 0
) -> Arrays:
    """Returns the energies' spread, and all references fitted to them with what they leave.

    Args:
        key: The weigher's.
        energies: What the fit kept of the energies.
        fitted: The references by name.
        seen: (n_types,) bool, the elements that are stored.
        target: Which energy.
    """
    mean, std = energies.spread(target)
    arrays: dict[str, Any] = {
        f"{key}/energy/mean": mean,
        f"{key}/energy/std": std,
        f"{key}/n_molecules": energies.n_molecules,
        f"{key}/n_molecules_per_element": energies.n_molecules_per_element[seen].numpy(),
    }
    arrays[f"{key}/energy_factor"] = energies.energy_factor(seen, target).numpy()
    if energies.n_molecules:  # a fit that counts samples does not look at them
        kept = torch.cat([seen, seen.new_ones(1)])
        arrays[f"{key}/linear_ref_factor"] = energies.linear_problem("molecule", target)[kept][:, kept].numpy()
    for name, reference in fitted.items():
        if reference.solution is None:
            continue
        arrays[f"{key}/{name}_atom_type_bias"] = reference.t_z[seen].numpy()
        if name not in LINEAR_REFERENCES:
            arrays[f"{key}/{name}_global_bias"] = reference.t_global
        arrays[f"{key}/{name}_rank"] = reference.solution.rank
        arrays[f"{key}/{name}_condition_number"] = reference.solution.condition_number
        folder = residual_folder(name)
        arrays[f"{key}/{folder}/mean"] = reference.mean
        arrays[f"{key}/{folder}/std"] = reference.std
        arrays[f"{key}/{folder}/rms"] = np.hypot(reference.mean, reference.std)
    return {name: np.array(value) for name, value in arrays.items()}


def residual_arrays(names: Sequence[tuple[str, str]], measured: Mapping[str, Tensor]) -> Arrays:
    """Returns what the second pass measured: `abs_max` and `mae` of each weigher's references.

    Args:
        names: Key of the weigher and name of the reference, of each column.
        measured: ``abs_max`` and ``mae``, one number for each column.
    """
    return {
        f"{key}/{residual_folder(name)}/{statistic}": np.array(float(measured[statistic][column]))
        for statistic in ("abs_max", "mae")
        for column, (key, name) in enumerate(names)
    }


def count_arrays(key: str, counts: Counts, seen: Tensor, given: int, labelled: int | None = None) -> Arrays:
    """Returns how many samples and atoms of each element a weigher has seen.

    Args:
        key: The weigher's.
        counts: Of `SampleCounts`.
        seen: (n_types,) bool, the elements that are stored.
        given: Row of the samples of positive weight.
        labelled: Row of those that have labels, too; None where none are needed.
    """
    arrays = {f"{key}/n_samples": counts["n_samples"][given], f"{key}/n_atoms": counts["n_atoms"][given][seen]}
    if labelled is not None:
        arrays[f"{key}/n_labelled_samples"] = counts["n_samples"][labelled]
        arrays[f"{key}/n_labelled_samples_per_element"] = counts["n_samples_per_element"][labelled][seen]
    return {name: value.numpy() for name, value in arrays.items()}


def check_counts(
    key: str,
    elements: Sequence[int],
    counts: Counts,
    given: int,
    labelled: int | None = None,
    min_atoms: int = 0,
    expected: bool = False,
) -> None:
    """Refuses a weigher that has seen nothing, or too few atoms of an element; warns of elements it has not seen.

    Args:
        key: The weigher's.
        elements: Atomic numbers.
        counts: Of `SampleCounts`.
        given: Row of the samples of positive weight.
        labelled: Row of those that have labels, too; None where none are needed.
        min_atoms: Smallest number of atoms of an element that occurs at all.
        expected: Whether all elements are expected to occur.

    Raises:
        StatisticsError: See above.
    """
    if int(counts["n_samples"][given]) == 0:
        raise StatisticsError(_no_weight_message(key, "sample"))
    if labelled is not None and int(counts["n_samples"][labelled]) == 0:
        raise StatisticsError(_no_weight_message(key, "sample with energy and gradient labels"))
    atoms = dict(zip(elements, counts["n_atoms"][given].tolist(), strict=True))
    few = {z: n for z, n in atoms.items() if 0 < n < min_atoms}
    if few:
        raise StatisticsError(
            f"the weigher {key!r} saw too few atoms of some elements (atomic number: atoms): {few}; expected at least "
            f"{min_atoms} of each: add such molecules to the training split or lower data.statistics.min_atoms_per_type"
        )
    absent = [z for z, n in atoms.items() if n == 0]
    if absent and expected:
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
