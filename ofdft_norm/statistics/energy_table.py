"""The second pass: a table with one row for each sample; every reference is a least-squares problem on it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ofdft_norm.data.basis import MAX_ATOMIC_NUMBER, BasisInfo
from ofdft_norm.data.elements import format_formula
from ofdft_norm.errors import StatisticsError
from ofdft_norm.statistics.moments import WeighedBatch, refuse_value, split_last_axis
from ofdft_norm.statistics.reading import Reader, SampleBatch
from ofdft_norm.statistics.references import (
    ATOM_REFERENCES,
    LINEAR_REFERENCES,
    REFERENCES,
    fit_reference,
    reduce_linear_problem,
    reduce_rows,
)
from ofdft_norm.statistics.weighers import SampleWeigher, find_labelled, weigh_samples

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Arrays = dict[str, npt.NDArray[Any]]

# Attributes of statistics with the molecules that each linear reference fits worst.
WORST_MOLECULES = {"linear_ref": "worst_molecules", "linear_ref_by_sample": "worst_molecules_by_sample"}
N_WORST = 10


@dataclass(frozen=True)
class WorstMolecule:
    """A sample that a reference fits badly; unknown values are None."""

    name: str
    formula: str
    target: float
    residual: float
    index: int | None = None  # in the data set of the fit
    scf_iteration: int | None = None


@dataclass(frozen=True)
class EnergyTable:
    """The S samples that have a positive weight for at least one of K weighers, the same on all ranks."""

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

    def split_by_group(self) -> tuple[list[str], EnergyTable]:
        """Returns the names of all groups, and the table with a weigher for each group instead of its only weigher."""
        names = sorted(set(self.groups.tolist()))
        weights = self.weights * (self.groups == np.array(names, dtype=object)[:, None])
        return names, replace(self, weights=weights, slopes=np.repeat(self.slopes, len(names), axis=0))

    def count_samples(self) -> dict[str, IntArray]:
        """Returns the numbers of samples and atoms of positive weight, and of labelled samples, for each weigher."""
        given, labelled = self.weights > 0, (self.weights > 0) & self.labelled
        found = {
            "n_samples": given.sum(1),
            "n_atoms": given @ self.composition,
            "n_labelled_samples": labelled.sum(1),
            "n_labelled_samples_per_element": labelled @ (self.composition > 0).astype(np.float64),
        }
        return {name: values.astype(np.int64) for name, values in found.items()}


def read_energy_table(
    reader: Reader,
    weighers: Sequence[SampleWeigher],
    energy_fields: Sequence[str] = ("energy_label",),
    basis_info: BasisInfo | None = None,
    gradients: Array | None = None,
    max_atomic_number: int = MAX_ATOMIC_NUMBER,
    by: str | None = None,
) -> EnergyTable:
    """Makes a pass over a data set and returns its table; without a basis, samples need no coefficients.

    The weighers of references come first, and have (K_ref, n_slopes, n_basis) gradients. `by` is a field of groups.
    """
    gradients = np.zeros((len(weighers), 0, 0)) if gradients is None else gradients
    parts: list[dict[str, Any]] = []

    def collect(batch: SampleBatch) -> None:
        weights = weigh_samples(weighers, batch.data).numpy()
        labelled = find_labelled(batch.data, required=basis_info is not None).numpy()
        used = np.any(weights, axis=0)
        energies = np.stack([batch.vector(name, one_number=True) for name in energy_fields])
        bad = np.argwhere(~np.isfinite(energies) & labelled & weights[: len(gradients)].any(0))
        for target, sample in bad[:1].tolist():
            refuse_value(batch, sample, energy_fields[target], float(energies[target, sample]))
        elements, composition = _count_elements(batch, basis_info, max_atomic_number, used)
        columns = {
            "composition": composition,
            "energies": energies.T,
            "weights": weights.T,
            "labelled": labelled,
            "slopes": _compute_slopes(batch, gradients, basis_info),
            "molecules": batch.molecules,
            "names": np.array(batch.names, dtype=object),
            "indices": batch.indices,
            "iterations": batch.iterations,
            "groups": np.array([""] * batch.n_samples if by is None else batch.texts(by), dtype=object),
        }
        parts.append({"elements": elements, **{name: values[used] for name, values in columns.items()}})

    fields = [*(["coeffs"] if gradients.size else []), *([] if by is None else [by])]
    fields += [] if reader.whole_molecules else ["pos"]  # distinguishes molecules without numbers
    of_ranks = reader.for_each(collect, parts, "statistics: energies", weighers, fields, energy_fields)
    found = list(itertools.chain(*of_ranks))
    elements = np.unique(np.concatenate([part["elements"] for part in found]))
    elements = elements if basis_info is None else basis_info.atomic_numbers
    for part in found:
        part["composition"] = part["composition"] @ (part.pop("elements")[:, None] == elements)
    joined = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
    order = np.argsort(joined["indices"], kind="stable")  # as in a single process
    joined = {name: values[order] for name, values in joined.items()}
    joined |= {"weights": joined["weights"].T.copy(), "slopes": joined["slopes"].transpose(1, 2, 0).copy()}
    return EnergyTable(elements, by_molecule=reader.whole_molecules, **joined)


def _count_elements(
    batch: SampleBatch, basis_info: BasisInfo | None, max_atomic_number: int, used: npt.NDArray[Any]
) -> tuple[IntArray, Array]:
    """Returns atomic numbers, and each sample's number of atoms of them."""
    numbers, sample = batch.atomic_numbers, batch.sample_of_atom
    if basis_info is None:
        elements = np.arange(1, max_atomic_number + 1)
        bad = np.flatnonzero(((numbers < 1) | (numbers > max_atomic_number)) & used[sample])
        if len(bad):
            what = f"has the atomic number {numbers[bad[0]]}; expected 1 ... {max_atomic_number}"
            place = batch.place(int(sample[bad[0]]))
            raise StatisticsError(f"{place} {what} (config: data.reference.max_num_elements)")
        column = np.clip(numbers, 1, max_atomic_number) - 1
    else:
        elements, column = basis_info.atomic_numbers, basis_info.atom_indices(numbers)
    counts = np.bincount(sample * len(elements) + column, minlength=len(used) * len(elements))
    composition = counts.reshape(len(used), len(elements)).astype(np.float64)
    occurring = composition[used].any(0)
    return elements[occurring], composition[:, occurring]


def _compute_slopes(batch: SampleBatch, gradients: Array, basis_info: BasisInfo | None) -> Array:
    """Returns (S, K_ref, n_slopes) gradient.p."""
    n_samples, n_columns = batch.n_samples, gradients.shape[0] * gradients.shape[1]
    if basis_info is None or not n_columns:
        return np.zeros((n_samples, *gradients.shape[:2]))
    runs, flat = WeighedBatch(batch, np.ones((1, n_samples)), basis_info), gradients.reshape(n_columns, -1).T
    functions = split_last_axis(basis_info.basis_function_ind(runs.atom_ind), runs.n_functions)
    with np.errstate(all="ignore"):  # values of samples with weight 0 are arbitrary
        slopes = [x @ flat[own] for x, own in zip(runs.matrices("coeffs"), functions, strict=True)]
    return np.concatenate(slopes).reshape(n_samples, *gradients.shape[:2])


def fit_table(
    table: EnergyTable,
    keys: Sequence[str],
    names: Sequence[str] = REFERENCES,
    target: int = 0,
    n_worst: int | None = N_WORST,
    **options: Any,
) -> tuple[Arrays, dict[str, Any]]:
    """Fits references to one energy for each weigher; returns arrays and attributes as `DatasetStatistics` stores them.

    Without `n_worst` there are no worst molecules, `mae` or `abs_max`. The `options` are those of `fit_reference`.
    """
    counts, n_types = table.count_samples(), len(table.elements)
    arrays: dict[str, Any] = {f"{key}/{name}": counts[name][k] for k, key in enumerate(keys) for name in counts}
    for k, key in enumerate(keys):
        n, n_labelled = counts["n_samples"][k], counts["n_labelled_samples"][k]
        if n == 0 or (k < len(table.slopes) and n_labelled == 0):
            what = f"the weigher {key!r} gives no sample{' with energy and gradient labels' if n else ''}"
            expected = "of the training split a positive weight (config: data.statistics.weighers, data.split)"
            raise StatisticsError(f"{what} {expected}")
    worst: dict[str, dict[str, Any]] = {attribute: {} for attribute in WORST_MOLECULES.values()}
    for k, (key, slopes) in enumerate(zip(keys, table.slopes, strict=False)):
        w = table.weights[k] * table.labelled
        used = np.flatnonzero(w)
        columns = np.ones(len(w)), table.composition, table.energies[:, target], *slopes
        rows, w = np.column_stack(columns)[used], w[used, None]
        means = _average_rows(table.molecules[used], rows * w)
        samples, molecules = reduce_rows(rows * np.sqrt(w)), reduce_rows(means)
        factor = reduce_rows(samples[:, : 2 + n_types])
        energies, mean = rows[:, 1 + n_types], factor[0, -1] / factor[0, 0]
        arrays |= {
            f"{key}/n_molecules": len(means),
            f"{key}/n_molecules_per_element": (means[:, 1 : 1 + n_types] > 0).sum(0),
            f"{key}/energy_factor": factor,
            f"{key}/linear_ref_factor": reduce_linear_problem(molecules[:, 1 : 1 + n_types], molecules[:, 1 + n_types]),
            **_summarize_residuals(f"{key}/energy", energies - mean, w[:, 0], n_worst is not None),
        }
        arrays[f"{key}/energy/mean"] += mean
        for name in names:
            of_rows, folder = samples if name == LINEAR_REFERENCES[1] else molecules, f"{key}/energy_minus_{name}"
            t_z, t_global, solution = fit_reference(name, of_rows, n_types, **options)
            residuals = energies - rows[:, 1 : 1 + n_types] @ t_z - t_global
            if name in ATOM_REFERENCES:
                residuals -= rows[:, 2 + n_types + ATOM_REFERENCES.index(name)]
                arrays[f"{key}/{name}_global_bias"] = t_global
            arrays |= _summarize_residuals(folder, residuals, w[:, 0], n_worst is not None)
            arrays |= {
                f"{folder}/rms": np.hypot(arrays[f"{folder}/mean"], arrays[f"{folder}/std"]),
                f"{key}/{name}_atom_type_bias": t_z,
                f"{key}/{name}_rank": solution.rank,
                f"{key}/{name}_condition_number": solution.condition_number,
            }
            if name in WORST_MOLECULES and n_worst is not None:
                worst[WORST_MOLECULES[name]][key] = _find_worst(table, used, residuals, target, n_worst)
    return {key: np.array(value) for key, value in arrays.items()}, worst


def _average_rows(keys: IntArray, rows: Array) -> Array:
    """Returns the mean rows of each key, of weighted rows that begin with the weight."""
    order = np.argsort(keys, kind="stable")
    first = np.unique(keys[order], return_index=True)[1]
    sums: Array = np.add.reduceat(rows[order], first)
    return sums / sums[:, :1]


def _summarize_residuals(folder: str, residuals: Array, weights: Array, extremes: bool) -> dict[str, Any]:
    mean, sizes = np.average(residuals, weights=weights), np.abs(residuals)
    std = np.sqrt(np.average(np.square(residuals - mean), weights=weights))
    more = {f"{folder}/mae": np.average(sizes, weights=weights), f"{folder}/abs_max": sizes.max()}
    return {f"{folder}/mean": mean, f"{folder}/std": std, **(more if extremes else {})}


def _find_worst(table: EnergyTable, used: IntArray, residuals: Array, target: int, n: int) -> list[dict[str, Any]]:
    """Returns `WorstMolecule`s as plain data: the samples with the largest residuals, at most one for each molecule."""
    order = np.argsort(-np.abs(residuals), kind="stable")
    first = np.sort(np.unique(table.molecules[used[order]], return_index=True)[1])[:n]
    worst = []
    for i in order[first]:
        sample = used[i]
        atoms = np.repeat(table.elements, table.composition[sample].astype(np.int64))
        index = None if table.by_molecule else int(table.indices[sample])
        iteration = None if table.iterations[sample] < 0 else int(table.iterations[sample])
        energies = float(table.energies[sample, target]), float(residuals[i])
        worst.append(
            asdict(WorstMolecule(str(table.names[sample]), format_formula(atoms), *energies, index, iteration))
        )
    return worst
