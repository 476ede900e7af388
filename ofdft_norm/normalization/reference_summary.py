"""What a reference can say of itself: where its values come from, how well they are determined, what they leave."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ofdft_norm.data.elements import hill_order, symbol
from ofdft_norm.errors import counted
from ofdft_norm.statistics.arrays import WORST_MOLECULES
from ofdft_norm.statistics.dataset_statistics import DatasetStatistics
from ofdft_norm.statistics.least_squares import solve_least_squares
from ofdft_norm.statistics.references import CountBy, linear_problem, linear_reference_name
from ofdft_norm.statistics.residuals import WorstMolecule
from ofdft_norm.tables import text_table

# Combinations of element counts are ratios of small integers; beyond this denominator they are shown as numbers.
_LARGEST_DENOMINATOR = 200
_ZERO = 1e-9
_PROBLEMS = {"molecule": "linear_ref_factor", "sample": "energy_factor"}
_MEANINGS = {
    "element": "each has one energy, times its number of atoms in a molecule",
    "reference": "the energy of one atom, which is subtracted from the labels",
    "std. error": "of the reference, as the scatter of the residuals says",
    "atoms": "atoms of the element in all samples",
    "molecules": "molecules with the element; samples, where every sample counts once",
    "worst molecules": "those of the largest residuals",
    "formula": "their atoms",
    "sample": "the molecule's worst one",
    "target": "its label",
    "residual": "its label minus the references",
}
# A standard deviation below this fraction of the mean is rounding.
_EQUAL = 1e-13


@dataclass(frozen=True)
class ElementReference:
    """One element's reference; what is not known is None.

    Attributes:
        atomic_number: Atomic number.
        symbol: Symbol.
        value: Reference of one atom [the target's unit].
        standard_error: Of `value`; infinitely uncertain values (see `determined`) have that of the minimum-norm one.
        n_atoms: Atoms in the samples of the fit.
        n_molecules: Samples of the fit with this element.
        determined: Whether the samples determine this value, rather than only its sum with other elements' values.
    """

    atomic_number: int
    symbol: str
    value: float
    standard_error: float | None = None
    n_atoms: int | None = None
    n_molecules: int | None = None
    determined: bool | None = None


@dataclass(frozen=True)
class FitReport:
    """How a reference was fitted, in plain types that a checkpoint can carry; what is not known is None.

    Attributes:
        target: Name of the target.
        n_samples: Rows of the fit: samples of positive weight, or molecules, see `rows`.
        rank: Rank of their compositions.
        condition_number: Largest over smallest singular value of the compositions that counts.
        degrees_of_freedom: n_samples - rank.
        mae: Mean absolute residual, weighted; None if it was not measured (`log_metrics=False`).
        rmse: Root mean square residual, weighted.
        r2: 1 - residual over total sum of squares; NaN where all targets are equal.
        ridge: Relative ridge of the fit.
        atomic_numbers: Elements of the fit; the lists below run parallel to it.
        standard_errors: Standard error of each reference, sqrt(sigma^2 (R^T R)^+_ii), sigma^2 = residual sum of
            squares over degrees of freedom; NaN without degrees of freedom. A ridge's bias is not part of it.
        n_atoms: Atoms of each element.
        n_molecules: Samples with each element.
        null_space: Orthonormal combinations of references that leave every sample's target as it is.
        worst: Samples of largest residual, worst first; where `rows` are molecules, one sample of each.
        rows: What counts once in the fit: ``samples``, or ``molecules`` (the mean over each one's samples).
        moved: How far each reference moved from the base that the fit corrected; None: there was none.
    """

    target: str | None = None
    n_samples: int | None = None
    rank: int | None = None
    condition_number: float | None = None
    degrees_of_freedom: int | None = None
    mae: float | None = None
    rmse: float | None = None
    r2: float | None = None
    ridge: float = 0.0
    atomic_numbers: list[int] = field(default_factory=list)
    standard_errors: list[float] | None = None
    n_atoms: list[int] | None = None
    n_molecules: list[int] | None = None
    null_space: list[list[float]] = field(default_factory=list)
    worst: list[WorstMolecule] = field(default_factory=list)
    rows: str = "samples"
    moved: list[float] | None = None

    @property
    def size(self) -> str:
        """How many rows the fit has, in words."""
        return f"- {self.rows}" if self.n_samples is None else counted(self.n_samples, self.rows.removesuffix("s"))

    def to_plain(self) -> dict[str, Any]:
        """Returns dictionaries, lists, numbers and strings alone."""
        return asdict(self)

    @classmethod
    def from_plain(cls, content: dict[str, Any]) -> FitReport:
        """Inverse of `to_plain`; keys of later versions are ignored.

        Args:
            content: What `to_plain` returned.
        """
        known = {key: value for key, value in content.items() if key in cls.__dataclass_fields__}
        return cls(**{**known, "worst": [WorstMolecule(**w) for w in known.get("worst", [])]})


@dataclass(frozen=True)
class ReferenceSummary:
    """A reference and its fit; `str()` is a table.

    Attributes:
        elements: Every element that has a reference.
        fit: How they were fitted; None for references that were given.
        indistinguishable: Combinations of elements that the samples cannot tell apart, in words.
        unit: Shown in the table's head.
    """

    elements: list[ElementReference]
    fit: FitReport | None
    indistinguishable: list[str]
    unit: str = ""

    def __str__(self) -> str:
        unit = f" [{self.unit}]" if self.unit else ""
        header = ["element", f"reference{unit}", f"std. error{unit}", "atoms", "molecules", ""]
        rows = [_element_row(e) for e in self.elements]
        if self.fit is None:
            lines = text_table(header[:2], [row[:2] for row in rows], meanings=_MEANINGS).splitlines()
            return "\n".join([*lines, "values as given: no fit is known"])
        lines = text_table(header, rows, meanings=_MEANINGS).splitlines()
        return "\n".join([*lines, *_fit_lines(self.fit, unit), *self._rank_lines(), *_worst_lines(self.fit, unit)])

    def _rank_lines(self) -> list[str]:
        if not self.indistinguishable:
            return []
        return [
            "The samples cannot tell some elements apart; of all references that fit alike, these have minimum norm:",
            *(f"  {text}" for text in self.indistinguishable),
        ]


def summarize_references(values: Tensor, seen: Tensor, fit: FitReport | None, unit: str = "") -> ReferenceSummary:
    """Puts values and fit side by side.

    Args:
        values: (max_num_elements + 1,) references.
        seen: (max_num_elements + 1,) which elements have one.
        fit: How they were fitted, if known.
        unit: The target's unit, for the table's head.
    """
    # a module without values "has" all elements with reference 0, which says nothing
    elements = [z for z in seen.nonzero().squeeze(1).tolist() if z > 0 and (bool(values.any()) or fit is not None)]
    position = {} if fit is None else {z: i for i, z in enumerate(fit.atomic_numbers)}

    def of(column: list[Any] | None, z: int) -> Any:
        return column[position[z]] if column is not None and z in position else None

    rows = [
        ElementReference(
            atomic_number=z,
            symbol=symbol(z) if z <= 118 else f"Z={z}",
            value=float(values[z]),
            standard_error=None if fit is None else of(fit.standard_errors, z),
            n_atoms=None if fit is None else of(fit.n_atoms, z),
            n_molecules=None if fit is None else of(fit.n_molecules, z),
            determined=None
            if fit is None or z not in position or len(fit.null_space) + (fit.rank or 0) < len(position)
            else all(abs(v[position[z]]) < _ZERO for v in fit.null_space),
        )
        for z in elements
    ]
    texts = [] if fit is None else describe_null_space(torch.tensor(fit.null_space), fit.atomic_numbers)
    return ReferenceSummary(rows, fit, texts, unit)


def report_from_statistics(
    statistics: DatasetStatistics,
    weigher_key: str,
    atomic_numbers: Sequence[int],
    count_by: CountBy = "molecule",
    ridge: float = 0.0,
    target: str | None = None,
) -> FitReport:
    """Returns what a data set's statistics know of the fit of linear references.

    MAE, RMSE, R2 and the worst molecules are of samples, whatever the rows of the fit; with a ridge that is not the
    statistics' own, those of the solution of minimum norm. Statistics of others may lack some or all of it.

    Args:
        statistics: The statistics.
        weigher_key: Whose.
        atomic_numbers: The elements of per-element statistics.
        count_by: Whether every molecule counts once in the fit, with the mean of its samples, or every sample.
        ridge: Relative ridge of the fit.
        target: Name of the energy.
    """

    def known(name: str) -> float | None:
        found = f"{weigher_key}/{name}" in statistics
        return float(statistics.load_statistic(weigher_key, name)) if found else None

    name, by_molecule = linear_reference_name(count_by), count_by == "molecule"
    n_atoms = statistics.load_statistic(weigher_key, "n_atoms")
    seen = n_atoms > 0
    n_rows, rank = known("n_molecules" if by_molecule else "n_labelled_samples"), known(f"{name}_rank")
    freedom = None if n_rows is None or rank is None else int(n_rows - rank)
    mean, std, rmse = known("energy/mean"), known("energy/std"), known(f"energy_minus_{name}/rms")
    report = FitReport(
        target=target,
        n_samples=None if n_rows is None else int(n_rows),
        rank=None if rank is None else int(rank),
        condition_number=known(f"{name}_condition_number"),
        degrees_of_freedom=freedom,
        mae=known(f"energy_minus_{name}/mae"),
        rmse=rmse,
        r2=r_squared(rmse, std, mean),
        ridge=ridge,
        atomic_numbers=[int(z) for z in np.asarray(atomic_numbers)[seen]],
        n_atoms=[int(n) for n in n_atoms[seen]],
        worst=[WorstMolecule(**w) for w in statistics.attributes.get(WORST_MOLECULES[name], {}).get(weigher_key, [])],
        rows="molecules" if by_molecule else "samples",
    )
    if freedom is None or not has_linear_problem(statistics, weigher_key, count_by):
        return report
    problem = stored_linear_problem(statistics, weigher_key, count_by)
    elements = torch.as_tensor(seen).nonzero().squeeze(1)
    left, right = problem[elements][:, elements], problem[elements, -1]
    solution = solve_least_squares(left, right, ridge)
    residual = float((right - left @ solution.x).square().sum() + problem[-1, -1].square())
    variance = residual / freedom if freedom > 0 else math.nan
    per_element = "n_molecules_per_element" if by_molecule else "n_labelled_samples_per_element"
    return replace(
        report,
        standard_errors=(solution.covariance.diagonal().clamp(min=0) * variance).sqrt().tolist(),
        n_molecules=[int(m) for m in statistics.load_statistic(weigher_key, per_element)[seen]],
        null_space=solution.null_space.tolist(),
    )


def has_linear_problem(statistics: DatasetStatistics, weigher_key: str, count_by: CountBy) -> bool:
    """Whether statistics hold what `stored_linear_problem` needs; those of other programs do not.

    Args:
        statistics: Statistics of any program.
        weigher_key: The weigher whose fit is meant.
        count_by: ``molecule`` or ``sample``.
    """
    return f"{weigher_key}/{_PROBLEMS[count_by]}" in statistics


def stored_linear_problem(statistics: DatasetStatistics, weigher_key: str, count_by: CountBy) -> Tensor:
    """Returns the (n_types + 1, n_types + 1) `linear_problem` of the fit to molecules, or to samples.

    Args:
        statistics: Statistics of a data set.
        weigher_key: The weigher whose fit is meant.
        count_by: ``molecule`` or ``sample``.

    Raises:
        StatisticsError: If the statistics lack it.
    """
    factor = torch.as_tensor(statistics.load_statistic(weigher_key, _PROBLEMS[count_by]))
    return factor if count_by == "molecule" else linear_problem(factor[:, 1:-1], factor[:, -1])


def r_squared(rmse: float | None, std: float | None, mean: float | None) -> float | None:
    """Returns 1 - rmse^2 / std^2; NaN where all energies are equal, to rounding.

    Args:
        rmse: Root mean square of what a reference leaves; None: not known.
        std: Standard deviation of the energies; None: not known.
        mean: Their mean.
    """
    if rmse is None or std is None:
        return None
    return 1 - (rmse / std) ** 2 if std > _EQUAL * abs(mean or 0.0) else math.nan


def describe_null_space(null_space: Tensor, atomic_numbers: list[int]) -> list[str]:
    """Says in words which combinations of elements never vary on their own.

    Args:
        null_space: (m, k) basis of the combinations c with sum c_Z n_Z = 0 in every molecule.
        atomic_numbers: The k elements.

    Returns:
        One sentence for each independent combination.

    Example:
        >>> describe_null_space(torch.tensor([[-1.0, 4.0]]), [1, 6])
        ['C and H only ever appear as 1:4']
    """
    if null_space.numel() == 0:
        return []
    columns = [atomic_numbers.index(z) for z in hill_order(atomic_numbers)]
    ordered = [atomic_numbers[c] for c in columns]
    rows = _row_echelon(null_space.to(torch.float64)[:, columns])
    return [_sentence(_as_integers(row.tolist()), ordered) for row in rows]


def _row_echelon(matrix: Tensor) -> Tensor:
    """Reduces a matrix by Gauss-Jordan elimination with full pivoting: few elements in each row, simple ratios."""
    rows = matrix.clone()
    free = torch.ones(rows.shape[1], dtype=torch.bool)
    for i in range(len(rows)):
        candidates = torch.where(free, rows[i:].abs(), -1.0)
        r, c = divmod(int(candidates.argmax()), rows.shape[1])
        rows[[i, i + r]] = rows[[i + r, i]]
        rows[i] /= rows[i, c].clone()
        others = torch.arange(len(rows)) != i
        rows[others] -= rows[others, c : c + 1] * rows[i]
        free[c] = False
    return torch.where(rows.abs() < _ZERO, 0.0, rows)


def _as_integers(row: list[float]) -> list[int] | list[float]:
    ratios = [Fraction(x).limit_denominator(_LARGEST_DENOMINATOR) for x in row]
    if any(abs(float(ratio) - x) > 1e-7 for ratio, x in zip(ratios, row, strict=True)):
        return row
    scale = math.lcm(*(ratio.denominator for ratio in ratios))
    integers = [int(ratio * scale) for ratio in ratios]
    divisor = math.gcd(*integers) or 1
    return [i // divisor for i in integers]


def _sentence(combination: list[int] | list[float], numbers: list[int]) -> str:
    terms = [(c, symbol(z)) for c, z in zip(combination, numbers, strict=True) if c != 0]
    if len(terms) == 2 and terms[0][0] * terms[1][0] < 0:
        (a, first), (b, second) = terms
        return f"{first} and {second} only ever appear as {abs(b):g}:{abs(a):g}"
    left = [(c, s) for c, s in terms if c > 0]
    right = [(-c, s) for c, s in terms if c < 0]
    if len(right) == 1 < len(left):
        left, right = right, left

    def side(parts: list[tuple[float, str]]) -> str:
        return " + ".join(f"n({s})" if c == 1 else f"{c:.6g} n({s})" for c, s in parts) or "0"

    return f"{side(left)} = {side(right)} in every molecule"


def _number(value: float | None, digits: str = ".3g") -> str:
    return "-" if value is None or math.isnan(value) else format(value, digits)


def _element_row(e: ElementReference) -> list[str]:
    counts = ["-" if n is None else str(n) for n in (e.n_atoms, e.n_molecules)]
    note = "not determined alone" if e.determined is False else ""
    return [e.symbol, f"{e.value:.6f}", _number(e.standard_error, ".2g"), *counts, note]


def _fit_lines(fit: FitReport, unit: str) -> list[str]:
    about = "" if fit.target is None else f" of {fit.target!r}"
    ridge = f", ridge {fit.ridge:g}" if fit.ridge else ""
    freedom = "" if fit.degrees_of_freedom is None else f", {fit.degrees_of_freedom} degrees of freedom"
    moved = [] if not fit.moved else [moved_text(fit.atomic_numbers, fit.moved, unit)]
    return [
        f"fit{about} on {fit.size}: rank {'-' if fit.rank is None else fit.rank} of "
        f"{len(fit.atomic_numbers)}, condition number {_number(fit.condition_number)}{freedom}{ridge}",
        f"residuals{unit}: MAE {_number(fit.mae)}, RMSE {_number(fit.rmse)}, R2 {_number(fit.r2, '.6f')}",
        *moved,
    ]


def moved_text(numbers: Sequence[int], moved: Sequence[float], unit: str = "") -> str:
    """Says how far references moved from those that a fit corrected.

    Args:
        numbers: Atomic numbers.
        moved: Change of each element's energy.
        unit: Unit in brackets, for the heading.

    Example:
        >>> moved_text([1, 8], [0.01, -0.25], " [hartree]")
        'moved from the base [hartree]: H +0.01, O -0.25'
    """
    return f"moved from the base{unit}: " + ", ".join(
        f"{symbol(z)} {by:+.3g}" for z, by in zip(numbers, moved, strict=True)
    )


def _worst_lines(fit: FitReport, unit: str) -> list[str]:
    if not fit.worst:
        return []
    rows = [[w.name or "-", w.formula, _place(w), f"{w.target:.6f}", f"{w.residual:+.3g}"] for w in fit.worst]
    header = ["worst molecules", "formula", "sample", f"target{unit}", f"residual{unit}"]
    return text_table(header, rows, meanings=_MEANINGS).splitlines()


def _place(molecule: WorstMolecule) -> str:
    if molecule.scf_iteration is not None:
        return f"SCF iteration {molecule.scf_iteration}"
    return "-" if molecule.index is None else str(molecule.index)
