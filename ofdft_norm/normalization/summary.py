"""Statistics and normaliser as text: number of samples, residuals of the references, and scales."""

from textwrap import fill

import numpy as np

from ofdft_norm.data.basis import BasisInfo, name_dimension
from ofdft_norm.data.elements import find_symbol
from ofdft_norm.normalization.build_normalizer import find_residual
from ofdft_norm.normalization.dimension_wise_rescaling import DimensionWiseRescaling
from ofdft_norm.normalization.linear_references import DatasetReferences, LinearReferences
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.normalization.reference_report import format_number
from ofdft_norm.statistics.references import REFERENCES
from ofdft_norm.statistics.store import DatasetStatistics, WeigherStatistics
from ofdft_norm.tables import WIDTH, format_rows
from ofdft_norm.units import find_unit

REFERENCE_NAMES = {
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
    scale_unit: str = "",
) -> str:
    """Returns tables of the training split, of the references and of the rescaling; ``-`` for missing values.

    `scale_unit` is that of the energy scale, by default the normaliser's.
    """
    counts = [_describe_counts(statistics, key, basis_info) for key in statistics.weigher_keys()]
    parts = ["\n".join(counts), tabulate_references(statistics, weigher_key, normalizer)]
    if basis_info is not None:
        parts += _describe_rescaling(statistics[weigher_key], normalizer, basis_info)
    if isinstance(normalizer.reference, LinearReferences | DatasetReferences):
        parts.append(normalizer.reference.summary(normalizer.unit))
    if (scale := float(normalizer.energy_scale)) != 1:
        parts.append(f"energy scale: {scale:.6g} {scale_unit or normalizer.unit}")
    return "\n\n".join(part for part in parts if part)


def describe_normalizer(
    normalizer: Normalizer,
    statistics: DatasetStatistics,
    weigher_key: str,
    scale_unit: str = "",
    equivariant: bool = False,
) -> str:
    """Returns the reference with its rank and R2, the rescaling and the energy scale in one line."""
    weigher = statistics[weigher_key]
    name, residual = find_residual(statistics, weigher_key, normalizer.reference, normalizer.basis_info)
    rank, r2 = weigher.get(f"{name}_rank"), weigher.compute_r_squared(residual)
    fit = "" if rank is None or r2 is None else f" (rank {int(rank)}, R2 {r2:.6f})"
    kind = "equivariant" if equivariant else "dimension-wise"
    rescaling = "none" if normalizer.rescaling is None else kind
    return (
        f"normaliser: reference {REFERENCE_NAMES.get(name, name)}{fit}, rescaling {rescaling}, energy scale "
        f"{float(normalizer.energy_scale):.6g} {scale_unit or normalizer.unit}"
    )


def _describe_counts(statistics: DatasetStatistics, weigher_key: str, basis_info: BasisInfo | None) -> str:
    weigher = statistics[weigher_key]
    counts = [(weigher.n_samples, "samples"), (weigher.n_molecules, "molecules")]
    words = [f"{n:,} {noun}" for n, noun in counts if n is not None]
    if weigher.n_atoms is not None and (basis_info is not None or "atomic_numbers" in statistics.attributes):
        elements = zip(statistics.elements(basis_info), weigher.n_atoms.tolist(), strict=True)
        words.append("atoms: " + ", ".join(f"{find_symbol(z)} {n:,}" for z, n in elements))
    return fill(f"{weigher_key}: {'; '.join(words)}", WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def tabulate_references(statistics: DatasetStatistics, weigher_key: str, normalizer: Normalizer) -> str:
    """Returns a table of the training energies minus each reference; empty if they are not stored."""
    weigher, unit = statistics[weigher_key], find_unit(normalizer.unit)
    used, residual = find_residual(statistics, weigher_key, normalizer.reference, normalizer.basis_info)
    residuals = {"none": weigher.energy, **{name: weigher.residual(name) for name in REFERENCES}, used: residual}
    rows = [
        [
            REFERENCE_NAMES.get(name, name),
            *(unit.format_energy(value) for value in (found.std, found.mae, found.abs_max)),
            "-" if name == "none" else format_number(weigher.compute_r_squared(found), ".6f"),
            format_number(weigher.get(f"{name}_rank"), ".0f"),
            "used" if name == used else "",
        ]
        for name, found in residuals.items()
        if found is not None
    ]
    title = f"training energies minus the reference [{unit.symbol}]:"
    table = format_rows(["reference", "std. dev.", "MAE", "max. error", "R2", "rank", ""], rows)
    return f"{title}\n{table}" if rows else ""


def _describe_rescaling(weigher: WeigherStatistics, normalizer: Normalizer, basis_info: BasisInfo) -> list[str]:
    """Returns sentences about the largest gradients and the limits of lambda, and a table of molecules."""
    before, after = weigher.get("gradient_label/abs_max"), weigher.get("gradient_max_after_atom_ref")
    if before is None or after is None:
        return []
    unit, rescaling = find_unit(normalizer.unit).symbol, normalizer.rescaling
    gradients = f"largest gradient [{unit}]: {before.max():.4g} in labels, {after.max():.4g} without their mean"
    if rescaling is None:
        return [gradients]
    rescaled = after / (rescaling.lambda_z.cpu().numpy() + rescaling.epsilon)
    n = {name: int(mask.sum()) for name, mask in rescaling.branches().items()}
    set_by = f"{n['gradient']} dimensions set by gradients, {n['coefficient']} by coefficients"
    limits = f"lambda: {set_by}, {n['unscaled']} are 1"
    return [f"{gradients}, {rescaled.max():.4g} rescaled\n{limits}", tabulate_lambda(weigher, rescaling, basis_info)]


def tabulate_lambda(weigher: WeigherStatistics, rescaling: DimensionWiseRescaling, basis_info: BasisInfo) -> str:
    """Returns a table of the molecules with the gradients that set lambda; empty where they are not known."""
    holders = find_lambda_holders(weigher, rescaling, basis_info)
    scale, rows = rescaling.lambda_z.cpu().numpy(), []
    for name in sorted(set(holders.values())):
        dimensions = [dimension for dimension, holder in holders.items() if holder == name]
        most = max(dimensions, key=scale.__getitem__)
        rows.append([name, str(len(dimensions)), f"{scale[most]:.4g}", name_dimension(basis_info, most)])
    rows.sort(key=lambda row: -int(row[1]))
    title = f"gradients of {len(rows)} molecules set lambda; the molecules with the most dimensions:"
    header = ["molecule", "dimensions", "largest lambda", "in dimension"]
    return f"{title}\n{format_rows(header, rows[:_MOST_MOLECULES])}" if rows else ""


def find_lambda_holders(
    weigher: WeigherStatistics, rescaling: DimensionWiseRescaling, basis_info: BasisInfo
) -> dict[int, str]:
    """Returns the name of the molecule with the largest gradient, for each dimension where this gradient sets lambda.

    A rescaling of other statistics has no such molecules. In the equivariant variant, the gradient may be the component
    of another dimension of the shell, and the mean is not subtracted for l > 0.
    """
    if weigher.gradient_holders is None:
        return {}
    gradient, names, shell = weigher.gradient_label, np.array(weigher.gradient_holders), basis_info.basis_func_to_shell
    limits = np.stack([weigher.load("gradient_label/minimum"), weigher.load("gradient_label/maximum")])
    found: dict[int, str] = {}
    for dimension in rescaling.branches()["gradient"].nonzero().squeeze(1).tolist():
        in_shell, largest = shell == shell[dimension], float(rescaling.max_grads[dimension])
        for origin in (gradient.mean, np.zeros(len(shell))):
            equal = np.isclose(np.abs(limits - origin)[:, in_shell], largest, rtol=1e-9, atol=0)
            if equal.any():
                found.setdefault(dimension, str(names[:, in_shell][equal][0]))
    return found
