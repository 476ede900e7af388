"""Statistics and normaliser as text for people: what was seen, residuals of the references, and the scales."""

from __future__ import annotations

import math
from textwrap import fill

import numpy as np
import numpy.typing as npt

from ofdft_norm.data.basis import BasisInfo, dimension_name
from ofdft_norm.data.elements import symbol
from ofdft_norm.normalization.build_normalizer import find_residual
from ofdft_norm.normalization.dimension_wise_rescaling import DimensionWiseRescaling
from ofdft_norm.normalization.linear_references import DatasetReferences, LinearReferences
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.normalization.reference_report import r_squared
from ofdft_norm.statistics.references import REFERENCES
from ofdft_norm.statistics.store import DatasetStatistics, ResidualStatistics, WeigherStatistics
from ofdft_norm.tables import WIDTH, text_table
from ofdft_norm.units import shown

_NAMES = {
    "atom_ref": "atomic",
    "scalar_atom_ref": "atomic, l = 0 only",
    "linear_ref": "linear",
    "linear_ref_by_sample": "linear, by sample",
}
_MOST_MOLECULES = 6


def summarize(
    statistics: DatasetStatistics,
    basis_info: BasisInfo | None,
    normalizer: Normalizer,
    weigher_key: str = "has_energy_label",
) -> str:
    """Returns tables of the training split, of the references and of the rescaling; ``-`` where nothing is stored."""
    counts = [_describe_counts(statistics, key, basis_info) for key in statistics.weigher_keys()]
    parts = ["\n".join(counts), tabulate_references(statistics, weigher_key, normalizer)]
    if basis_info is not None:
        parts += _describe_rescaling(statistics[weigher_key], normalizer, basis_info)
    if isinstance(normalizer.reference, LinearReferences | DatasetReferences):
        parts.append(normalizer.reference.summary(normalizer.unit))
    return "\n\n".join(part for part in parts if part)


def describe_normalizer(normalizer: Normalizer, statistics: DatasetStatistics, weigher_key: str) -> str:
    """Returns the reference with its rank and R2, the rescaling and the energy scale in one line."""
    weigher = statistics[weigher_key]
    name, residual = find_residual(statistics, weigher_key, normalizer.reference, normalizer.basis_info)
    rank, r2 = weigher.get(f"{name}_rank"), _format_r2(residual, weigher)
    fit = "" if rank is None else f" (rank {int(rank)}, R2 {r2})"
    rescaling = "none" if normalizer.rescaling is None else "dimension-wise"
    return (
        f"normaliser: reference {_NAMES.get(name, name)}{fit}, rescaling {rescaling}, energy scale "
        f"{float(normalizer.energy_scale):.6g} {normalizer.unit}"
    )


def _describe_counts(statistics: DatasetStatistics, weigher_key: str, basis_info: BasisInfo | None) -> str:
    weigher = statistics[weigher_key]
    counts = [(weigher.n_samples, "samples"), (weigher.n_molecules, "molecules")]
    words = [f"{n:,} {noun}" for n, noun in counts if n is not None]
    if weigher.n_atoms is not None and (basis_info is not None or "atomic_numbers" in statistics.attributes):
        elements = zip(statistics.elements(basis_info), weigher.n_atoms.tolist(), strict=True)
        words.append("atoms: " + ", ".join(f"{symbol(z)} {n:,}" for z, n in elements))
    return fill(f"{weigher_key}: {'; '.join(words)}", WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def tabulate_references(statistics: DatasetStatistics, weigher_key: str, normalizer: Normalizer) -> str:
    """Returns a table of the training energies minus each reference; empty where they are not stored."""
    weigher, unit = statistics[weigher_key], shown(normalizer.unit)
    used, residual = find_residual(statistics, weigher_key, normalizer.reference, normalizer.basis_info)
    residuals = {"none": weigher.energy, **{name: weigher.residual(name) for name in REFERENCES}, used: residual}
    rows = [
        [
            _NAMES.get(name, name),
            *(unit.energy(value) for value in (found.std, found.mae, found.abs_max)),
            "-" if name == "none" else _format_r2(found, weigher),
            "-" if (rank := weigher.get(f"{name}_rank")) is None else str(int(rank)),
            "used" if name == used else "",
        ]
        for name, found in residuals.items()
        if found is not None
    ]
    title = f"training energies minus the reference [{unit.symbol}]:"
    table = text_table(["reference", "std. dev.", "MAE", "max. error", "R2", "rank", ""], rows)
    return f"{title}\n{table}" if rows else ""


def _format_r2(residual: ResidualStatistics | None, weigher: WeigherStatistics) -> str:
    value = r_squared(residual, weigher.energy)
    return "-" if value is None or math.isnan(value) else f"{value:.6f}"


def _describe_rescaling(weigher: WeigherStatistics, normalizer: Normalizer, basis_info: BasisInfo) -> list[str]:
    """Returns sentences about the largest gradients and the limits of lambda, and a table of molecules."""
    before, after = weigher.get("gradient_label/abs_max"), weigher.get("gradient_max_after_atom_ref")
    if before is None or after is None:
        return []
    unit, rescaling = shown(normalizer.unit).symbol, normalizer.rescaling
    gradients = f"largest gradient [{unit}]: {before.max():.4g} in labels, {after.max():.4g} minus their mean"
    if rescaling is None:
        return [gradients]
    rescaled = after / (rescaling.lambda_z.cpu().numpy() + rescaling.epsilon)
    n = {name: int(mask.sum()) for name, mask in rescaling.branches().items()}
    limits = f"lambda: {n['gradient']} set by gradients, {n['coefficient']} by coefficients, {n['unscaled']} are 1"
    return [f"{gradients}, {rescaled.max():.4g} rescaled\n{limits}", tabulate_lambda(weigher, rescaling, basis_info)]


def tabulate_lambda(weigher: WeigherStatistics, rescaling: DimensionWiseRescaling, basis_info: BasisInfo) -> str:
    """Returns a table of the molecules with the gradients that set lambda; empty where they are not known."""
    holder, extremes = find_lambda_holders(weigher, rescaling, basis_info), weigher.gradient_extremes
    if holder is None or extremes is None or (holder < 0).all():
        return ""
    names = np.array([*extremes.names, ""], dtype=object)[holder]  # -1: none
    scale = rescaling.lambda_z.cpu().numpy()
    rows = []
    for name in dict.fromkeys(names[holder >= 0]):
        own = np.flatnonzero(names == name)
        most = int(own[scale[own].argmax()])
        rows.append([name, str(len(own)), f"{scale[most]:.4g}", dimension_name(basis_info, most)])
    rows.sort(key=lambda row: (-int(row[1]), row[0]))
    title = f"gradients of {len(rows)} molecules set lambda; those with the most dimensions:"
    header = ["molecule", "dimensions", "largest lambda", "in dimension"]
    return f"{title}\n{text_table(header, rows[:_MOST_MOLECULES])}"


def find_lambda_holders(
    weigher: WeigherStatistics, rescaling: DimensionWiseRescaling, basis_info: BasisInfo
) -> npt.NDArray[np.int64] | None:
    """Returns (n_basis,) the index in `gradient_extremes.names` of the sample with the gradient that sets lambda.

    It is -1 where lambda has another limit; None if the statistics lack extremes or the rescaling is of other ones.
    """
    low, high = (weigher.get(f"gradient_label_samples/{name}") for name in ("minimum", "maximum"))
    if low is None or high is None:
        return None
    gradient, shell = weigher.gradient_label, basis_info.basis_func_to_shell
    dimensions, by_gradient = np.arange(len(shell)), rescaling.branches()["gradient"].cpu().numpy()
    for group, is_centred in ((dimensions, True), (shell, basis_info.l_per_basis_func == 0)):
        origin = np.where(is_centred, gradient.mean, 0.0)
        below, above = origin - gradient.minimum, gradient.maximum - origin
        largest, holder = np.maximum(below, above), np.where(above >= below, high, low)
        # the component of the group (one dimension, or a shell) with the largest gradient
        order = np.lexsort((largest, group))
        of_group = order[np.searchsorted(group[order], group, side="right") - 1]
        if np.allclose(largest[of_group], rescaling.max_grads.cpu().numpy(), rtol=1e-9, atol=0):
            return np.where(by_gradient, holder[of_group], -1)
    return None
