"""A second implementation of all statistics, by plain loops over samples and atoms."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from ofdft_norm import BasisInfo, OFData

Values = dict[str, Any]


def _moments(samples: Sequence[OFData], weights: Sequence[float], values: Sequence[Any], n_basis: int) -> Values:
    columns: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for sample, weight, vector in zip(samples, weights, values, strict=True):
        if weight > 0:
            for b, x in zip(sample.basis_function_ind.tolist(), np.asarray(vector).tolist(), strict=True):
                columns[b].append((weight, x))
    out = {name: np.zeros(n_basis) for name in ("mean", "std", "abs_max", "minimum", "maximum")}
    for b, pairs in columns.items():
        w, x = np.array(pairs).T
        mean = np.average(x, weights=w)
        out["mean"][b], out["std"][b] = mean, np.sqrt(np.average((x - mean) ** 2, weights=w))
        out["abs_max"][b], out["minimum"][b], out["maximum"][b] = np.abs(x).max(), x.min(), x.max()
    return out


def _identify(sample: OFData) -> Any:
    """A molecule is known by name, elements and positions; a sample without name is one."""
    geometry = *sample.atomic_numbers.tolist(), *sample.pos.flatten().tolist()
    return (sample.mol_id, geometry) if "mol_id" in sample else id(sample)


def _reference(
    samples: Sequence[OFData], weights: Sequence[float], basis_info: BasisInfo, slope: Any, bias: bool, by_sample: bool
) -> tuple[Any, float, list[float]]:
    """Returns the energies of the elements, the constant, and the residual of each sample."""
    reduced, composition, by_molecule = [], [], defaultdict(list)
    for i, sample in enumerate(samples):
        p, b = sample.coeffs.numpy(), sample.basis_function_ind.numpy()
        reduced.append(float(sample.energy_label) - float(slope[b] @ p))
        composition.append([(sample.atomic_numbers.numpy() == z).sum() for z in basis_info.atomic_numbers])
        if weights[i] > 0:
            by_molecule[i if by_sample else _identify(sample)].append(i)
    rows, targets = [], []
    for members in by_molecule.values():
        w = np.array([weights[i] for i in members])
        root = w[0] ** 0.5 if by_sample else 1.0  # a molecule counts once, a sample with its weight
        rows.append([root * n for n in composition[members[0]] + [1] * bias])
        targets.append(root * np.average([reduced[i] for i in members], weights=w))
    solution = np.linalg.lstsq(np.array(rows, dtype=float), np.array(targets), rcond=1e-12)[0]
    t, constant = solution[: basis_info.n_types], solution[-1] if bias else 0.0
    return t, constant, [r - float(np.array(c) @ t) - constant for r, c in zip(reduced, composition, strict=True)]


def naive_statistics(
    samples: Sequence[OFData], basis_info: BasisInfo, weights: Sequence[float], with_bias: bool = True
) -> Values:
    """All statistics of one weigher, by the definitions."""
    n_basis = basis_info.n_basis
    labelled = [w if s.has_energy_label.item() else 0.0 for w, s in zip(weights, samples, strict=True)]
    out: Values = {}
    coeffs = _moments(samples, weights, [s.coeffs for s in samples], n_basis)
    gradient = _moments(samples, labelled, [s.gradient_label for s in samples], n_basis)
    out.update({f"coeffs/{k}": v for k, v in coeffs.items()})
    out.update({f"gradient_label/{k}": v for k, v in gradient.items()})
    gbar, scalar = gradient["mean"], basis_info.l_per_basis_func == 0
    largest = np.zeros(n_basis)
    for sample, weight in zip(samples, labelled, strict=True):
        if weight > 0:
            b = sample.basis_function_ind.numpy()
            np.maximum.at(largest, b, np.abs(sample.gradient_label.numpy() - gbar[b]))
    out["gradient_max_after_atom_ref"] = largest
    out["gradient_max_after_scalar_atom_ref"] = np.where(scalar, largest, gradient["abs_max"])
    used = [i for i, w in enumerate(labelled) if w > 0]
    kept, kept_weights = [samples[i] for i in used], [labelled[i] for i in used]
    w = np.array(kept_weights)
    energies = np.array([float(s.energy_label) for s in kept])
    mean = np.average(energies, weights=w)
    residuals = {"energy": energies - mean}
    slopes = {"atom_ref": gbar, "scalar_atom_ref": np.where(scalar, gbar, 0)}
    slopes |= dict.fromkeys(("linear_ref", "linear_ref_by_sample"), np.zeros(n_basis))
    for name, slope in slopes.items():
        bias = with_bias and not name.startswith("linear_ref")
        t, constant, residual = _reference(kept, kept_weights, basis_info, slope, bias, name == "linear_ref_by_sample")
        out[f"{name}_atom_type_bias"] = t
        if not name.startswith("linear_ref"):
            out[f"{name}_global_bias"] = constant
        residuals[f"energy_minus_{name}"] = np.array(residual)
    for folder, residual in residuals.items():
        center = np.average(residual, weights=w)
        out[f"{folder}/mean"] = mean if folder == "energy" else center
        out[f"{folder}/std"] = np.sqrt(np.average((residual - center) ** 2, weights=w))
        out[f"{folder}/abs_max"] = np.abs(residual).max()
        out[f"{folder}/mae"] = np.average(np.abs(residual), weights=w)
        if folder != "energy":
            out[f"{folder}/rms"] = np.sqrt(np.average(residual**2, weights=w))
    out["n_samples"] = sum(weight > 0 for weight in weights)
    out["n_labelled_samples"] = len(used)
    out["n_molecules"] = len({_identify(s) for s in kept})
    counted = [s.atomic_numbers.numpy() for s, weight in zip(samples, weights, strict=True) if weight > 0]
    out["n_atoms"] = np.array([sum((n == z).sum() for n in counted) for z in basis_info.atomic_numbers])
    return out
