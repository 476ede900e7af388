"""Fitted statistics as a table for people."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.elements import symbol
from ofdft_norm.normalization.dimension_wise_rescaling import DimensionWiseRescaling
from ofdft_norm.normalization.lambda_sources import lambda_sources, sources_table
from ofdft_norm.statistics.dataset_statistics import DatasetStatistics
from ofdft_norm.statistics.references import REFERENCES
from ofdft_norm.tables import text_table
from ofdft_norm.units import shown

_UNKNOWN = "-"
_SPREAD = ("std", "mae", "abs_max")

ENERGY_HEADER = ("energy", "mean", "std", "MAE", "max |.|", "R2", "rank", "condition")

# how a later run will see whether label files changed
_RECOGNISED_BY = {
    "mtime": "label files are recognised by size and modification time (data.statistics.fingerprint)",
    "contents": "label files are recognised by their contents (data.statistics.fingerprint)",
}


def summary_table(
    statistics: DatasetStatistics,
    basis_info: BasisInfo | None,
    rescaling: DimensionWiseRescaling | None = None,
    weigher_key: str = "has_energy_label",
) -> str:
    """Describes what was seen, what the references leave of the energies, and what the rescaling does.

    Args:
        statistics: Fitted statistics. What other programs did not store shows as ``-``.
        basis_info: The basis, which names the elements; None for data without density coefficients.
        rescaling: The rescaling made of them, if any.
        weigher_key: Whose statistics it was made of.

    Returns:
        Several lines of text, energies with their units.

    Example:
        >>> import numpy as np
        >>> arrays = {"constant/n_samples": 3, "constant/energy/mean": -75.0, "constant/energy/std": 0.25}
        >>> statistics = DatasetStatistics.from_arrays({key: np.array(value) for key, value in arrays.items()})
        >>> print(summary_table(statistics, None).splitlines()[4])
        constant: no reference  -75.0000 Ha  250.00 mHa    -        -   -     -          -
    """
    seen, energies = seen_rows(statistics, basis_info), energy_rows(statistics)
    tables = [text_table(seen[0], seen[1:]), text_table(ENERGY_HEADER, energies) if energies else ""]
    tables.append(_gradients(statistics, rescaling))
    if rescaling is not None and basis_info is not None:
        tables.append(_sources(statistics, rescaling, basis_info, weigher_key))
    tables.append(_RECOGNISED_BY.get(str(statistics.attributes.get("fingerprint_by")), ""))
    return "\n\n".join(table for table in tables if table)


def _number(statistics: DatasetStatistics, weigher: str, statistic: str) -> float | None:
    key = f"{weigher}/{statistic}"
    return float(statistics.load_statistic(weigher, statistic)) if key in statistics else None


def _count(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{int(value):,}"


def _energy(statistics: DatasetStatistics, value: float | None) -> str:
    if value is None:
        return _UNKNOWN
    unit = shown(str(statistics.attributes.get("unit", "hartree")))
    if abs(value) >= 1:
        return f"{value:.4f} {unit.symbol}"
    return f"{round(unit.factor * value, 2) + 0.0:.2f} {unit.small}"


def seen_rows(statistics: DatasetStatistics, basis_info: BasisInfo | None) -> list[list[str]]:
    """Returns samples, molecules and atoms of each element, a row for each weigher, under a row of headings.

    Args:
        statistics: Statistics of the training split.
        basis_info: The density basis; None: no columns of elements.
    """
    elements = [] if basis_info is None else [symbol(int(z)) for z in basis_info.atomic_numbers]
    rows = []
    for weigher in statistics.weigher_keys():
        atoms: npt.NDArray[np.int64] | list[None] = [None] * len(elements)
        if elements and f"{weigher}/n_atoms" in statistics:
            atoms = statistics.load_statistic(weigher, "n_atoms")
        counts = (_number(statistics, weigher, "n_samples"), _number(statistics, weigher, "n_molecules"), *atoms)
        rows.append([weigher, *(_count(count) for count in counts)])
    return [["weigher", "samples", "molecules", *(f"{element} atoms" for element in elements)], *rows]


def energy_rows(statistics: DatasetStatistics) -> list[list[str]]:
    """Returns energies before and after each reference, a row of `ENERGY_HEADER` each.

    Args:
        statistics: Statistics of the training split.
    """
    rows = []
    for weigher in statistics.weigher_keys():
        spread = _number(statistics, weigher, "energy/std")
        for name in (None, *REFERENCES):
            folder = "energy" if name is None else f"energy_minus_{name}"
            mean = _number(statistics, weigher, f"{folder}/mean")
            if mean is None:
                continue
            rms = _number(statistics, weigher, f"{folder}/rms")
            rank = _number(statistics, weigher, f"{name}_rank")
            condition = _number(statistics, weigher, f"{name}_condition_number")
            rows.append(
                [
                    f"{weigher}: {'no reference' if name is None else name}",
                    _energy(statistics, mean),
                    *(_energy(statistics, _number(statistics, weigher, f"{folder}/{s}")) for s in _SPREAD),
                    f"{1 - (rms / spread) ** 2:.6f}" if rms is not None and spread else _UNKNOWN,
                    _count(rank),
                    _UNKNOWN if condition is None else f"{condition:.3g}",
                ]
            )
    return rows


def _gradients(statistics: DatasetStatistics, rescaling: DimensionWiseRescaling | None) -> str:
    """Largest gradients before and after reference and rescaling, and the branches of lambda."""
    dual = None if rescaling is None else rescaling.factors.gradient_unit.cpu().numpy()
    rows = []
    for weigher in statistics.weigher_keys():
        if f"{weigher}/gradient_max_after_atom_ref" not in statistics:
            continue
        before = statistics.load_statistic(weigher, "gradient_label/abs_max")
        after = statistics.load_statistic(weigher, "gradient_max_after_atom_ref")
        fits = dual is not None and dual.shape == after.shape
        largest = (before.max(), after.max(), (after / dual).max() if fits else None)
        rows.append([weigher, *(_energy(statistics, None if x is None else float(x)) for x in largest)])
    lines = [text_table(["largest gradient", "as labelled", "after atom_ref", "and rescaling"], rows)] if rows else []
    if rescaling is not None:
        branches = rescaling.branches()
        counts = ", ".join(f"{count:,} {name}" for name, count in branches.items())
        lines.append(f"lambda of {sum(branches.values()):,} dimensions is set by: {counts}")
    return "\n".join(lines)


def _sources(
    statistics: DatasetStatistics, rescaling: DimensionWiseRescaling, basis_info: BasisInfo, weigher_key: str
) -> str:
    """The molecules that lambda hangs on."""
    sources = lambda_sources(statistics, rescaling, basis_info, weigher_key)
    if sources is None:
        return (
            "which molecules set lambda is not known: these statistics do not say, as an older version or another "
            "program fitted them, or the rescaling is of others"
        )
    return sources_table(sources, basis_info)
