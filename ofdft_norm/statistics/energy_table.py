"""The second pass: one row a sample, on which every reference energy is a least-squares problem.

A row takes about 150 bytes: all ranks hold the table of the whole data set, as a single process would.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ofdft_norm.data.basis import MAX_ATOMIC_NUMBER, BasisInfo
from ofdft_norm.data.elements import formula
from ofdft_norm.data.sample import get_field
from ofdft_norm.errors import BatchError, StatisticsError
from ofdft_norm.statistics.moments import WeighedBatch, refuse_value
from ofdft_norm.statistics.reading import Reader, SampleBatch, fit_fields
from ofdft_norm.statistics.references import (
    ATOM_REFERENCES,
    LINEAR_REFERENCES,
    REFERENCES,
    FittedReference,
    fit_reference,
    linear_problem,
    residual_folder,
    row_factor,
)
from ofdft_norm.statistics.weighers import SampleWeigher, has_label, sample_weights

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Arrays = dict[str, npt.NDArray[Any]]

# Attributes of statistics with the molecules that each linear reference fits worst.
WORST_MOLECULES = {"linear_ref": "worst_molecules", "linear_ref_by_sample": "worst_molecules_by_sample"}
N_WORST = 10


@dataclass(frozen=True)
class WorstMolecule:
    """A sample that a reference fits badly; what is not known is None."""

    name: str
    formula: str
    target: float
    residual: float
    index: int | None = None  # in the data set of the fit
    scf_iteration: int | None = None


@dataclass(frozen=True)
class EnergyTable:
    """The S samples that have a positive weight for at least one of K weighers, on all ranks alike."""

    elements: IntArray  # (n_types,) atomic numbers of the columns of `composition`
    composition: Array  # (S, n_types) number of atoms
    energies: Array  # (S, n_targets)
    weights: Array  # (K, S)
    labelled: npt.NDArray[np.bool_]  # (S,) whether the energies may be used
    slopes: Array  # (K_ref, n_slopes, S) gradient.p for gradients of the reference weighers, which come first
    molecules: IntArray  # (S,) numbers of molecules
    names: npt.NDArray[Any]  # (S,) of molecules
    indices: IntArray  # (S,) numbers of samples
    iterations: IntArray  # (S,) SCF iterations; -1: unknown
    groups: npt.NDArray[Any]  # (S,) values of a field that groups samples
    by_molecule: bool  # whether `indices` count by molecule, and not by place in the data set

    def by_group(self) -> tuple[list[str], EnergyTable]:
        """Returns the names of all groups, and the table with a weigher for each group instead of its only weigher."""
        names = sorted(set(self.groups.tolist()))
        weights = self.weights * (self.groups == np.array(names, dtype=object)[:, None])
        return names, replace(self, weights=weights, slopes=np.repeat(self.slopes, len(names), axis=0))

    def counts(self) -> dict[str, IntArray]:
        """Returns the numbers of samples and atoms of positive weight, and of labelled samples, for each weigher."""
        given, labelled = self.weights > 0, (self.weights > 0) & self.labelled
        found = {
            "n_samples": given.sum(1),
            "n_atoms": given @ self.composition,
            "n_labelled_samples": labelled.sum(1),
            "n_labelled_samples_per_element": labelled @ (self.composition > 0).astype(np.float64),
        }
        return {name: values.astype(np.int64) for name, values in found.items()}


# --- reading ----------------------------------------------------------------------------------------------------------


def read_energy_table(
    reader: Reader,
    weighers: Sequence[SampleWeigher],
    energy_fields: Sequence[str] = ("energy_label",),
    basis_info: BasisInfo | None = None,
    gradients: Array | None = None,
    max_atomic_number: int = MAX_ATOMIC_NUMBER,
    by: str | None = None,
) -> EnergyTable:
    """Makes a pass over a data set and returns its table.

    Args:
        reader: Of the data set.
        weighers: K weighers, those of references first.
        energy_fields: Fields with one energy for each sample.
        basis_info: The density basis; None: samples without coefficients, with the elements that occur.
        gradients: (K_ref, n_slopes, n_basis) gradients for each reference weigher; None: K_ref is K, without slopes.
        max_atomic_number: Largest atomic number without a basis.
        by: Field that groups samples, see `EnergyTable.by_group`.
    """
    gradients = np.zeros((len(weighers), 0, 0)) if gradients is None else gradients
    parts: list[dict[str, Any]] = []

    def collect(batch: SampleBatch) -> None:
        weights = sample_weights(weighers, batch.data).numpy()
        labelled = has_label(batch.data, required=basis_info is not None).numpy()
        used = np.any(weights, axis=0)
        energies = np.stack([_energies(batch, name) for name in energy_fields])
        bad = np.argwhere(~np.isfinite(energies) & labelled & weights[: len(gradients)].any(0))
        for target, sample in bad[:1].tolist():
            refuse_value(batch, sample, energy_fields[target], float(energies[target, sample]))
        elements, composition = _composition(batch, basis_info, max_atomic_number, used)
        columns = {
            "composition": composition,
            "energies": energies.T,
            "weights": weights.T,
            "labelled": labelled,
            "slopes": _slopes(batch, gradients, basis_info),
            "molecules": batch.molecules,
            "names": np.array(batch.names, dtype=object),
            "indices": batch.indices,
            "iterations": batch.iterations,
            "groups": _texts(batch, by),
        }
        parts.append({"elements": elements, **{name: values[used] for name, values in columns.items()}})

    extra = ["pos", *(["coeffs"] if gradients.size else []), *([] if by is None else [by])]
    reader.for_each(fit_fields(weighers, extra, energy_fields), collect, "statistics: energies")
    found = [part for parts_of_rank in reader.ranks.gathered(parts) for part in parts_of_rank]
    elements = np.unique(np.concatenate([part["elements"] for part in found]))
    elements = elements if basis_info is None else basis_info.atomic_numbers
    for part in found:
        part["composition"] = part["composition"] @ (part.pop("elements")[:, None] == elements)
    joined = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
    order = np.argsort(joined["indices"], kind="stable")  # as in a single process
    joined = {name: values[order] for name, values in joined.items()}
    joined |= {"weights": joined["weights"].T.copy(), "slopes": joined["slopes"].transpose(1, 2, 0).copy()}
    return EnergyTable(elements, by_molecule=reader.whole_molecules, **joined)


def _energies(batch: SampleBatch, name: str) -> Array:
    values = batch.vector(name)
    if len(values) != batch.n_samples:
        raise BatchError(
            f"{batch.place(0)} and {batch.n_samples - 1} others: field {name!r} has {len(values)} values, expected one "
            "for each sample (config: data.source.energy_field)"
        )
    return values


def _texts(batch: SampleBatch, name: str | None) -> npt.NDArray[Any]:
    if name is None:
        return np.full(batch.n_samples, "", dtype=object)
    value = get_field(batch.data, name)
    if value is None:
        raise BatchError(f"{batch.place(0)} lacks the field {name!r}, which groups samples (config: data.reference.by)")
    values = [value] if isinstance(value, str) else value if isinstance(value, list) else value.reshape(-1).tolist()
    return np.array(list(map(str, values)), dtype=object)


def _composition(
    batch: SampleBatch, basis_info: BasisInfo | None, max_atomic_number: int, used: npt.NDArray[Any]
) -> tuple[IntArray, Array]:
    """Returns atomic numbers, and each sample's number of atoms of them."""
    numbers, sample = batch.atomic_numbers, batch.sample_of_atom
    if basis_info is None:
        elements = np.arange(1, max_atomic_number + 1)
        bad = np.flatnonzero(((numbers < 1) | (numbers > max_atomic_number)) & used[sample])
        if len(bad):
            raise StatisticsError(
                f"{batch.place(int(sample[bad[0]]))} has the atomic number {numbers[bad[0]]}; expected 1 ... "
                f"{max_atomic_number} (config: data.reference.max_num_elements)"
            )
        column = np.clip(numbers, 1, max_atomic_number) - 1
    else:
        elements, column = basis_info.atomic_numbers, basis_info.atom_indices(numbers)
    counts = np.bincount(sample * len(elements) + column, minlength=len(used) * len(elements))
    composition = counts.reshape(len(used), len(elements)).astype(np.float64)
    occurring = composition[used].any(0)
    return elements[occurring], composition[:, occurring]


def _slopes(batch: SampleBatch, gradients: Array, basis_info: BasisInfo | None) -> Array:
    """Returns (S, K_ref, n_slopes) gradient.p."""
    n_samples, n_columns = batch.n_samples, gradients.shape[0] * gradients.shape[1]
    slopes = np.zeros((n_columns, n_samples))
    if basis_info is not None and n_columns:
        sorted_atoms = WeighedBatch(batch, np.ones((1, n_samples)), basis_info)
        flat = gradients.reshape(n_columns, -1)
        with np.errstate(all="ignore"):  # samples of weight 0 may hold anything
            for rows, matrix in sorted_atoms.matrices("coeffs", np.array([True])):
                of_atoms = matrix @ flat[:, rows.columns].T
                for total, values in zip(slopes, of_atoms.T, strict=True):
                    total += np.bincount(rows.samples, weights=values, minlength=n_samples)
    return slopes.reshape(*gradients.shape[:2], n_samples).transpose(2, 0, 1)


# --- statistics -------------------------------------------------------------------------------------------------------


def table_statistics(
    table: EnergyTable,
    keys: Sequence[str],
    names: Sequence[str] = REFERENCES,
    target: int = 0,
    with_bias: bool = True,
    ridge: float = 0.0,
    driver: str | None = None,
    n_worst: int | None = N_WORST,
) -> tuple[Arrays, dict[str, Any]]:
    """Fits references; returns arrays and attributes as `DatasetStatistics` stores them.

    Args:
        table: The table.
        keys: (K,) keys of the weighers.
        names: References to fit.
        target: Index of the energy.
        with_bias: Whether atomic references have a constant.
        ridge: Relative ridge of linear references.
        driver: LAPACK driver for linear references.
        n_worst: Number of worst molecules; None: neither these nor `mae` and `abs_max`.
    """
    counts, n_types = table.counts(), len(table.elements)
    arrays: dict[str, Any] = {f"{key}/{name}": counts[name][k] for k, key in enumerate(keys) for name in counts}
    for key in keys:
        _refuse_no_sample(key, arrays, key in keys[: len(table.slopes)])
    worst: dict[str, dict[str, Any]] = {attribute: {} for attribute in WORST_MOLECULES.values()}
    for k, (key, slopes) in enumerate(zip(keys, table.slopes, strict=False)):
        w = table.weights[k] * table.labelled
        used = np.flatnonzero(w)
        columns = np.ones(len(w)), table.composition, table.energies[:, target], *slopes
        rows, w = np.column_stack(columns)[used], w[used, None]
        means = _means(table.molecules[used], rows * w)
        samples, molecules = row_factor(rows * np.sqrt(w)), row_factor(means)
        composition, energy = molecules[:, 1 : 1 + n_types], molecules[:, 1 + n_types]
        factor = row_factor(samples[:, : 2 + n_types])
        arrays |= {
            f"{key}/n_molecules": len(means),
            f"{key}/n_molecules_per_element": (means[:, 1 : 1 + n_types] > 0).sum(0),
            f"{key}/energy_factor": factor,
            f"{key}/linear_ref_factor": linear_problem(composition, energy),
        }
        fitted = [FittedReference("none", np.zeros(n_types), factor[0, -1] / factor[0, 0])]
        for name in names:
            of_rows = samples if name == LINEAR_REFERENCES[1] else molecules
            fitted.append(fit_reference(name, of_rows, n_types, with_bias, ridge, driver))
        for reference in fitted:
            residuals = reference.residuals(rows)
            arrays |= _reference_arrays(key, reference, residuals, w[:, 0], n_worst is not None)
            if reference.name in WORST_MOLECULES and n_worst is not None:
                found = _worst_molecules(table, used, residuals, target, n_worst)
                worst[WORST_MOLECULES[reference.name]][key] = [asdict(molecule) for molecule in found]
    return {key: np.array(value) for key, value in arrays.items()}, worst


def _refuse_no_sample(key: str, arrays: dict[str, Any], labelled: bool) -> None:
    n, n_labelled = arrays[f"{key}/n_samples"], arrays[f"{key}/n_labelled_samples"]
    if n == 0 or (labelled and n_labelled == 0):
        raise StatisticsError(
            f"the weigher {key!r} gives no sample{' with energy and gradient labels' if n else ''} of the training "
            "split a positive weight: choose another weigher (config: data.statistics.weighers, "
            "data.statistics.initial_guess_weighers) or check the split"
        )


def _means(keys: IntArray, rows: Array) -> Array:
    """Returns the mean rows of each key, of weighted rows that begin with the weight."""
    order = np.argsort(keys, kind="stable")
    first = np.unique(keys[order], return_index=True)[1]
    sums: Array = np.add.reduceat(rows[order], first)
    return sums / sums[:, :1]


def _reference_arrays(
    key: str, fitted: FittedReference, residuals: Array, weights: Array, extremes: bool
) -> dict[str, Any]:
    folder, mean = f"{key}/{residual_folder(fitted.name)}", float(np.average(residuals, weights=weights))
    std = math.sqrt(np.average(np.square(residuals - mean), weights=weights))
    arrays: dict[str, Any] = {f"{folder}/mean": mean, f"{folder}/std": std}
    if fitted.solution is None:
        arrays[f"{folder}/mean"] += fitted.t_global
    else:
        arrays |= {
            f"{folder}/rms": math.hypot(mean, std),
            f"{key}/{fitted.name}_atom_type_bias": fitted.t_z,
            f"{key}/{fitted.name}_rank": fitted.solution.rank,
            f"{key}/{fitted.name}_condition_number": fitted.solution.condition_number,
        }
    if fitted.name in ATOM_REFERENCES:
        arrays[f"{key}/{fitted.name}_global_bias"] = fitted.t_global
    if extremes:
        sizes = np.abs(residuals)
        arrays |= {f"{folder}/mae": np.average(sizes, weights=weights), f"{folder}/abs_max": sizes.max()}
    return arrays


def _worst_molecules(table: EnergyTable, used: IntArray, residuals: Array, target: int, n: int) -> list[WorstMolecule]:
    """Returns the samples with the largest residuals, at most one for each molecule."""
    order = np.argsort(-np.abs(residuals), kind="stable")
    first = np.sort(np.unique(table.molecules[used[order]], return_index=True)[1])[:n]
    found = []
    for i, sample in zip(order[first].tolist(), used[order[first]].tolist(), strict=True):
        iteration = int(table.iterations[sample])
        found.append(
            WorstMolecule(
                name=str(table.names[sample]),
                formula=formula(np.repeat(table.elements, table.composition[sample].astype(np.int64))),
                target=float(table.energies[sample, target]),
                residual=float(residuals[i]),
                index=None if table.by_molecule else int(table.indices[sample]),
                scf_iteration=None if iteration < 0 else iteration,
            )
        )
    return found
