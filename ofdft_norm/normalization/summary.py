"""Fitted statistics as a table for people."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.elements import symbol
from ofdft_norm.normalization.dimension_wise_rescaling import DimensionWiseRescaling
from ofdft_norm.normalization.lambda_sources import lambda_sources, sources_table
from ofdft_norm.normalization.reference_summary import r_squared
from ofdft_norm.statistics.dataset_statistics import DatasetStatistics
from ofdft_norm.statistics.references import OTHER_REFERENCES, REFERENCES
from ofdft_norm.tables import text_table
from ofdft_norm.units import ShownUnit, shown

_UNKNOWN = "-"
_SPREAD = ("std", "mae", "abs_max")
_MOST_ELEMENTS = 5  # side by side on a screen

SEEN_MEANINGS = {
    "weigher": "what gives each sample its weight in the statistics",
    "has_energy_label": "a weigher: samples with an energy label count, once each",
    "constant": "a weigher: every sample counts, once",
    "initial_guess_only": "a weigher: only the first density of each molecule counts",
    "ground_state_only": "a weigher: only the converged density of each molecule counts",
    "samples": "densities that count, several for a molecule",
    "molecules": "molecules that they belong to",
    "atoms": "atoms of that element in these samples",
}
ENERGY_MEANINGS = {
    "no reference": "the energies as labelled; MAE and max |.| are of their deviation from the mean",
    "atom_ref": "minus an energy for each element and the mean gradient times the coefficients",
    "scalar_atom_ref": "the same over coefficients of l = 0 alone, which does not change with rotations",
    "linear_ref": "minus one fitted energy for each element; every molecule counts once in the fit",
    "linear_ref_by_sample": "the same; every sample counts once in the fit",
    "given_ref": "minus the given energy of each element (data.reference.values or file)",
    "linear_ref_by_field": "minus energies fitted for each value of the field data.reference.by",
    "linear_ref_with_ridge": "minus one energy for each element, fitted with data.reference.ridge",
    "mean": "of what is left of the energies",
    "std": "their standard deviation: what a network has to learn",
    "MAE": "their mean absolute value",
    "max |.|": "their largest absolute value",
    "R2": "share of the energies' variance that the reference explains",
    "rank": "so many of the fitted energies are determined by the data",
    "condition": "by how much errors of the labels may be enlarged in the fitted energies",
}
GRADIENT_MEANINGS = {
    "largest gradient": "largest absolute component over all samples that count and all dimensions",
    "as labelled": "of the labels after data.pre_transforms",
    "after atom_ref": "after the mean gradient of each dimension is subtracted",
    "and rescaling": "and division by lambda, too: what a network sees with data/reference=atom_ref, but for "
    "data.energy_scale",
}
BRANCH_MEANINGS = {
    "lambda is set by": "lambda multiplies the coefficient of a dimension and divides its gradient",
    "dimensions": "so many basis functions, over all elements",
    "gradient": "the largest gradient is above data.rescaling.s_grad, and lambda makes it that",
    "coefficient": "lambda is smaller: the coefficient's spread would exceed data.rescaling.s_coeff",
    "unscaled": "the largest gradient is below data.rescaling.s_grad; lambda is 1",
}

# how a later run will see whether label files changed
_RECOGNISED_BY = {
    "mtime": "data files are recognised by size and modification time (data.statistics.fingerprint)",
    "contents": "data files are recognised by their contents (data.statistics.fingerprint)",
}


def summary_table(
    statistics: DatasetStatistics,
    basis_info: BasisInfo | None,
    rescaling: DimensionWiseRescaling | None = None,
    weigher_key: str = "has_energy_label",
) -> str:
    r"""Describes what was seen, what the references leave of the energies, and what the rescaling does.

    Args:
        statistics: Fitted statistics. What other programs did not store shows as ``-``.
        basis_info: The basis, which names the elements; None for data without density coefficients.
        rescaling: The rescaling made of them, if any.
        weigher_key: Whose statistics it was made of.

    Returns:
        Tables, and under each what its rows and columns are.

    Example:
        >>> import numpy as np
        >>> arrays = {"constant/n_samples": 3, "constant/energy/mean": -75.0, "constant/energy/std": 0.25}
        >>> statistics = DatasetStatistics.from_arrays({key: np.array(value) for key, value in arrays.items()})
        >>> print("\n".join(summary_table(statistics, None).split("\n\n")[1].splitlines()[:2]))
        constant [Ha]       mean      std  MAE  max |.|  R2  rank  condition
        no reference   -75.00000  0.25000    -        -   -     -          -
    """
    tables = [*_seen(statistics, basis_info), *_energies(statistics), _gradients(statistics, rescaling)]
    if rescaling is not None:
        tables.append(_branches(rescaling))
    if rescaling is not None and basis_info is not None:
        tables.append(_sources(statistics, rescaling, basis_info, weigher_key))
    tables.append(_RECOGNISED_BY.get(str(statistics.attributes.get("fingerprint_by")), ""))
    return "\n\n".join(table for table in tables if table)


def _number(statistics: DatasetStatistics, weigher: str, statistic: str) -> float | None:
    key = f"{weigher}/{statistic}"
    return float(statistics.load_statistic(weigher, statistic)) if key in statistics else None


def _count(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{int(value):,}"


def _unit(statistics: DatasetStatistics) -> ShownUnit:
    return shown(str(statistics.attributes.get("unit", "hartree")))


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


def _seen(statistics: DatasetStatistics, basis_info: BasisInfo | None) -> list[str]:
    """`seen_rows` as text: where there are many elements, in several tables."""
    header, *rows = seen_rows(statistics, basis_info)
    first = 3 + _MOST_ELEMENTS
    columns = [[*range(first)], *([0, *range(i, i + first - 1)] for i in range(first, len(header), first - 1))]
    parts = [[[row[c] for c in of_part if c < len(row)] for row in (header, *rows)] for of_part in columns]
    return [text_table(part[0], part[1:], meanings=SEEN_MEANINGS if part is parts[0] else None) for part in parts]


def _energies(statistics: DatasetStatistics) -> list[str]:
    """`energy_rows` as text, a table for each weigher."""
    tables = [table for weigher in statistics.weigher_keys() if (table := energy_rows(statistics, weigher))[1:]]
    return [
        text_table(table[0], table[1:], meanings=ENERGY_MEANINGS if table is tables[-1] else None) for table in tables
    ]


def energy_rows(statistics: DatasetStatistics, weigher: str) -> list[list[str]]:
    """Returns a weigher's energies before and after each reference, under a row of headings.

    Args:
        statistics: Statistics of the training split.
        weigher: The weigher's key.
    """
    unit = _unit(statistics)
    of_energies = [_number(statistics, weigher, f"energy/{name}") for name in ("std", "mean")]
    rows = [[f"{weigher} [{unit.symbol}]", "mean", "std", "MAE", "max |.|", "R2", "rank", "condition"]]
    for name in (None, *REFERENCES, *OTHER_REFERENCES):
        folder = "energy" if name is None else f"energy_minus_{name}"
        mean = _number(statistics, weigher, f"{folder}/mean")
        if mean is None:
            continue
        r2 = r_squared(_number(statistics, weigher, f"{folder}/rms"), *of_energies)
        condition = _number(statistics, weigher, f"{name}_condition_number")
        rows.append(
            [
                "no reference" if name is None else name,
                unit.energy(mean),
                *(unit.energy(_number(statistics, weigher, f"{folder}/{s}")) for s in _SPREAD),
                _UNKNOWN if r2 is None or math.isnan(r2) else f"{r2:.6f}",
                _count(_number(statistics, weigher, f"{name}_rank")),
                _UNKNOWN if condition is None else f"{condition:.3g}",
            ]
        )
    return rows


def _gradients(statistics: DatasetStatistics, rescaling: DimensionWiseRescaling | None) -> str:
    """Largest gradients before and after reference and rescaling; empty if they are not known."""
    dual = None if rescaling is None else rescaling.factors.gradient_unit.cpu().numpy()
    unit, rows = _unit(statistics), []
    for weigher in statistics.weigher_keys():
        if f"{weigher}/gradient_max_after_atom_ref" not in statistics:
            continue
        before = statistics.load_statistic(weigher, "gradient_label/abs_max")
        after = statistics.load_statistic(weigher, "gradient_max_after_atom_ref")
        fits = dual is not None and dual.shape == after.shape
        largest = (before.max(), after.max(), (after / dual).max() if fits else None)
        rows.append([weigher, *(unit.energy(None if x is None else float(x)) for x in largest)])
    if not rows:
        return ""
    header = [f"largest gradient [{unit.symbol}]", "as labelled", "after atom_ref", "and rescaling"]
    return text_table(header, rows, meanings=GRADIENT_MEANINGS)


def _branches(rescaling: DimensionWiseRescaling) -> str:
    """How many lambdas each of their limits sets."""
    rows = [[name, f"{count:,}"] for name, count in rescaling.branches().items()]
    return text_table(["lambda is set by", "dimensions"], rows, meanings=BRANCH_MEANINGS)


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
