"""Fitted statistics as a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.elements import symbol
from ofdft_norm.statistics.dataset_statistics import DatasetStatistics
from ofdft_norm.statistics.reference_energy import REFERENCES

_UNKNOWN = "-"


class Rescaling(Protocol):
    """What a table needs of a rescaling, such as `DimensionWiseRescaling`."""

    def branches(self) -> dict[str, int]:
        """Returns how many dimensions each branch of lambda decides."""


def summary_table(
    statistics: DatasetStatistics, basis_info: BasisInfo | None, rescaling: Rescaling | None = None
) -> str:
    """Describes what was seen, what the references leave of the energies, and what the rescaling does.

    Args:
        statistics: Fitted statistics. What other programs did not store shows as ``-``.
        basis_info: The basis, which names the elements; None for data without density coefficients.
        rescaling: The rescaling made of them, if any.

    Returns:
        Several lines of text, energies with their units.

    Example:
        >>> import numpy as np
        >>> arrays = {"constant/n_samples": 3, "constant/energy/mean": -75.0, "constant/energy/std": 0.25}
        >>> statistics = DatasetStatistics.from_arrays({key: np.array(value) for key, value in arrays.items()})
        >>> print(summary_table(statistics, None).splitlines()[4])
        constant: no reference  -75.0000 Ha  250.00 mHa    -        -   -     -          -
    """
    parts = [_seen(statistics, basis_info), _energies(statistics)]
    parts += [_gradients(statistics, rescaling)]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _number(statistics: DatasetStatistics, weigher: str, statistic: str) -> float | None:
    key = f"{weigher}/{statistic}"
    return float(statistics.load_statistic(weigher, statistic)) if key in statistics else None


def _count(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{int(value):,}"


def _energy(value: float | None) -> str:
    if value is None:
        return _UNKNOWN
    return f"{value:.4f} Ha" if abs(value) >= 1 else f"{round(1e3 * value, 2) + 0.0:.2f} mHa"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Joins columns: the first to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]


def _seen(statistics: DatasetStatistics, basis_info: BasisInfo | None) -> list[str]:
    """Samples, molecules and atoms of each element, one line for each weigher."""
    elements = [] if basis_info is None else [symbol(int(z)) for z in basis_info.atomic_numbers]
    rows = [["weigher", "samples", "molecules", *(f"{element} atoms" for element in elements)]]
    for weigher in statistics.weigher_keys():
        atoms: npt.NDArray[np.int64] | list[None] = [None] * len(elements)
        if elements and f"{weigher}/n_atoms" in statistics:
            atoms = statistics.load_statistic(weigher, "n_atoms")
        counts = (_number(statistics, weigher, "n_samples"), _number(statistics, weigher, "n_molecules"), *atoms)
        rows.append([weigher, *(_count(count) for count in counts)])
    return _aligned(rows)


def _energies(statistics: DatasetStatistics) -> list[str]:
    """Energies before and after each reference, one line each."""
    rows = [["energy", "mean", "std", "MAE", "max |.|", "R2", "rank", "condition"]]
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
                    _energy(mean),
                    *(_energy(_number(statistics, weigher, f"{folder}/{s}")) for s in ("std", "mae", "abs_max")),
                    f"{1 - (rms / spread) ** 2:.6f}" if rms is not None and spread else _UNKNOWN,
                    _count(rank),
                    _UNKNOWN if condition is None else f"{condition:.3g}",
                ]
            )
    return _aligned(rows) if len(rows) > 1 else []


def _gradients(statistics: DatasetStatistics, rescaling: Rescaling | None) -> list[str]:
    """Largest gradients before and after reference and rescaling, and the branches of lambda."""
    dual = None
    if rescaling is not None and hasattr(rescaling, "lambda_z"):
        dual = rescaling.lambda_z.cpu().numpy() + getattr(rescaling, "epsilon", 0.0)
    rows = [["largest gradient", "as labelled", "after atom_ref", "and rescaling"]]
    for weigher in statistics.weigher_keys():
        if f"{weigher}/gradient_max_after_atom_ref" not in statistics:
            continue
        before = statistics.load_statistic(weigher, "gradient_label/abs_max")
        after = statistics.load_statistic(weigher, "gradient_max_after_atom_ref")
        fits = dual is not None and dual.shape == after.shape
        rescaled = _energy(float((after / dual).max())) if fits else _UNKNOWN
        rows.append([weigher, _energy(float(before.max())), _energy(float(after.max())), rescaled])
    lines = _aligned(rows) if len(rows) > 1 else []
    if rescaling is not None and hasattr(rescaling, "branches"):
        branches = rescaling.branches()
        counts = ", ".join(f"{count:,} {name}" for name, count in branches.items())
        lines.append(f"lambda of {sum(branches.values()):,} dimensions is set by: {counts}")
    return lines
