"""Reports of linear references: how well they are determined, their residuals, and a table of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from textwrap import fill
from typing import Any, cast

import numpy as np
from torch import Tensor

from ofdft_norm.data.elements import hill_order, symbol
from ofdft_norm.errors import counted
from ofdft_norm.statistics.energy_table import WorstMolecule
from ofdft_norm.statistics.references import CountBy, linear_reference_name, solve_least_squares
from ofdft_norm.statistics.store import Array, DatasetStatistics, ResidualStatistics
from ofdft_norm.tables import WIDTH, text_table
from ofdft_norm.units import ENERGY_UNITS, shown

# combinations of element counts are ratios of small integers; with larger denominators they are shown as numbers
_LARGEST_DENOMINATOR = 200
_ZERO = 1e-9
# a standard deviation below this fraction of the mean is rounding
_EQUAL = 1e-13
_SHOWN_MOLECULES = 5


@dataclass(frozen=True)
class FitReport:
    """How references were fitted, in plain types that a checkpoint can carry; what is not known is None.

    Attributes:
        target: Name of the target.
        rows: What counts once in the fit: ``samples``, or ``molecules`` (the mean over the samples of each).
        n_rows: Number of these.
        rank: Rank of their compositions.
        condition_number: Largest over smallest nonzero singular value of the compositions.
        degrees_of_freedom: n_rows - rank.
        mae: Mean absolute residual of the samples, weighted.
        rmse: Root mean square residual of the samples, weighted.
        r2: 1 - residual over total sum of squares; NaN where all targets are equal.
        ridge: Relative ridge of the fit.
        atomic_numbers: Elements of the fit; the lists below run parallel to it.
        standard_errors: sqrt(sigma^2 (R^T R)^+_ii), sigma^2 = residual sum of squares over degrees of freedom; NaN
            without degrees of freedom. The bias of a ridge is not part of it.
        n_atoms: Atoms of each element.
        n_molecules: Rows with each element.
        moved: Correction of each reference of a base; None without a base.
        null_space: Orthonormal combinations of references that do not change the target of any sample.
        worst: Samples with the largest residuals, at most one of each molecule, worst first.
    """

    target: str | None = None
    rows: str = "samples"
    n_rows: int | None = None
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
    moved: list[float] | None = None
    null_space: list[list[float]] = field(default_factory=list)
    worst: list[WorstMolecule] = field(default_factory=list)

    @classmethod
    def from_plain(cls, content: dict[str, Any]) -> FitReport:
        """Inverse of `dataclasses.asdict`."""
        return cls(**{**content, "worst": [WorstMolecule(**entry) for entry in content["worst"]]})

    def line(self, unit: str = "") -> str:
        """Returns size, rank and errors of the fit in one line; `unit` in brackets."""
        size = "" if self.n_rows is None else f" on {counted(self.n_rows, self.rows.removesuffix('s'))}"
        ridge = f", ridge {self.ridge:g}" if self.ridge else ""
        return (
            f"fit{size}: rank {_number(self.rank)} of {len(self.atomic_numbers)}, R2 {_number(self.r2, '.6f')}, "
            f"MAE {_number(self.mae)}, RMSE {_number(self.rmse)}{unit}{ridge}"
        )


def report_fit(
    statistics: DatasetStatistics,
    weigher_key: str,
    atomic_numbers: Sequence[int],
    count_by: CountBy,
    ridge: float = 0.0,
) -> FitReport:
    """Returns the report of the linear references in dataset statistics, which may lack some of it.

    MAE, RMSE, R2 and the worst molecules are those of the stored references, even where a ridge or a base changes them.
    """
    weigher, by_molecule = statistics[weigher_key], count_by == "molecule"
    fitted = weigher.reference(linear_reference_name(count_by))
    if fitted is None:
        return FitReport()
    residual, n_atoms = fitted.residual, weigher.load("n_atoms")
    seen = np.flatnonzero(n_atoms)
    n_rows = weigher.n_molecules if by_molecule else weigher.n_labelled_samples
    freedom = None if n_rows is None or fitted.rank is None else n_rows - fitted.rank
    report = FitReport(
        rows=f"{count_by}s",
        n_rows=n_rows,
        rank=fitted.rank,
        condition_number=fitted.condition_number,
        degrees_of_freedom=freedom,
        mae=None if residual is None else residual.mae,
        rmse=None if residual is None else residual.rms,
        r2=r_squared(residual, weigher.energy),
        ridge=ridge,
        atomic_numbers=np.array(atomic_numbers)[seen].tolist(),
        n_atoms=n_atoms[seen].tolist(),
        worst=fitted.worst,
    )
    problem = weigher.linear_problem(count_by)
    if freedom is None or problem is None:
        return report
    left, right = problem[np.ix_(seen, seen)], problem[seen, -1]
    solution = solve_least_squares(left, right, ridge)
    residual_sum = float(((right - left @ solution.x) ** 2).sum() + problem[-1, -1] ** 2)
    variance = residual_sum / freedom if freedom > 0 else math.nan
    counts = weigher.n_molecules_per_element if by_molecule else weigher.n_labelled_samples_per_element
    return replace(
        report,
        standard_errors=np.sqrt(solution.covariance.diagonal().clip(min=0) * variance).tolist(),
        n_molecules=None if counts is None else counts[seen].tolist(),
        null_space=solution.null_space.tolist(),
    )


def load_linear_problem(statistics: DatasetStatistics, weigher_key: str, count_by: CountBy) -> Array:
    """Returns the reduced least-squares problem of linear references; raises MissingStatisticError without one."""
    statistics.load_statistic(weigher_key, "linear_ref_factor" if count_by == "molecule" else "energy_factor")
    return cast(Array, statistics[weigher_key].linear_problem(count_by))


def r_squared(residual: ResidualStatistics | None, energy: ResidualStatistics | None) -> float | None:
    """Returns 1 - rms^2 / std^2 of the residuals and the energies; NaN where all energies are equal to rounding."""
    if residual is None or energy is None:
        return None
    return 1 - (residual.rms / energy.std) ** 2 if energy.std > _EQUAL * abs(energy.mean) else math.nan


def tabulate_elements(values: Tensor, seen: Tensor, fit: FitReport | None, unit: str = "") -> str:
    """Returns a table of references, (max_num_elements + 1,), with standard errors, and lines about their fit."""
    in_unit = unit_heading(unit)
    header = ["element", f"energy{in_unit}"]
    rows = {z: [element_name(z), f"{float(values[z]):.6f}"] for z in seen.nonzero().squeeze(1).tolist() if z > 0}
    if fit is None:
        return "\n".join([text_table(header, list(rows.values())), "given values, not fitted"])
    header += [f"std. error{in_unit}", "atoms", fit.rows, ""]
    numbers = (fit.standard_errors, fit.n_atoms, fit.n_molecules)
    for z, row in rows.items():
        i = fit.atomic_numbers.index(z) if z in fit.atomic_numbers else None
        row += [_number(None if i is None or column is None else column[i], ".2g") for column in numbers]
        free = i is not None and any(abs(combination[i]) >= _ZERO for combination in fit.null_space)
        row.append("not determined alone" if free else "")
    sentences = [fit.line(in_unit)]
    if fit.moved is not None:
        moves = (f"{element_name(z)} {by:+.3g}" for z, by in zip(fit.atomic_numbers, fit.moved, strict=True))
        sentences.append(f"correction of the base{in_unit}: {', '.join(moves)}")
    combinations = describe_null_space(np.array(fit.null_space), fit.atomic_numbers)
    sentences += [f"undetermined, minimum norm chosen: {text}" for text in combinations]
    lines = [text_table(header, list(rows.values())), *(fill(s, WIDTH, subsequent_indent="  ") for s in sentences)]
    if fit.worst:
        headings = ["largest residuals", "formula", "sample", f"target{in_unit}", f"residual{in_unit}"]
        cells = []
        for w in fit.worst[:_SHOWN_MOLECULES]:
            place = _number(w.index) if w.scf_iteration is None else f"SCF iteration {w.scf_iteration}"
            cells.append([w.name or "-", w.formula, place, f"{w.target:.6f}", f"{w.residual:+.3g}"])
        lines.append(text_table(headings, cells))
    return "\n".join(lines)


def unit_heading(unit: str) -> str:
    """Returns a unit's symbol in brackets for headings, ``" [Ha]"``; empty for none."""
    return f" [{shown(unit).symbol if unit in ENERGY_UNITS else unit}]" if unit else ""


def element_name(z: int) -> str:
    """Returns the symbol of an atomic number, ``Z=130`` beyond the known ones."""
    return symbol(z) if z <= 118 else f"Z={z}"


def _number(value: float | None, digits: str = ".3g") -> str:
    if value is None or math.isnan(value):
        return "-"
    return str(value) if isinstance(value, int) else format(value, digits)


def describe_null_space(null_space: Array, atomic_numbers: Sequence[int]) -> list[str]:
    """Returns one sentence for each independent combination of elements that has the same count in every molecule.

    `null_space` is an (m, k) basis of the combinations c with sum c_Z n_Z = 0 in every molecule, for k elements.

    Examples:
        >>> describe_null_space(np.array([[-1.0, 4.0]]), [1, 6])
        ['C and H only ever appear as 1:4']
    """
    if not null_space.size:
        return []
    columns = [atomic_numbers.index(z) for z in hill_order(atomic_numbers)]
    names = [element_name(atomic_numbers[c]) for c in columns]
    return [_sentence(_as_integers(row.tolist()), names) for row in _row_echelon(null_space[:, columns])]


def _row_echelon(matrix: Array) -> Array:
    """Reduces a matrix by Gauss-Jordan elimination with full pivoting: few elements in each row, simple ratios."""
    rows = matrix.astype(np.float64)
    free = np.ones(rows.shape[1], dtype=bool)
    for i in range(len(rows)):
        r, c = divmod(int(np.where(free, np.abs(rows[i:]), -1.0).argmax()), rows.shape[1])
        rows[[i, i + r]] = rows[[i + r, i]]
        rows[i] /= rows[i, c]
        others = np.arange(len(rows)) != i
        rows[others] -= rows[others, c : c + 1] * rows[i]
        free[c] = False
    return np.where(np.abs(rows) < _ZERO, 0.0, rows)


def _as_integers(row: list[float]) -> Sequence[float]:
    """Returns the smallest integers in the same proportion; the row itself where there are none."""
    ratios = [Fraction(x).limit_denominator(_LARGEST_DENOMINATOR) for x in row]
    if any(abs(float(ratio) - x) > 1e-7 for ratio, x in zip(ratios, row, strict=True)):
        return row
    scale = Fraction(math.lcm(*(r.denominator for r in ratios)), math.gcd(*(r.numerator for r in ratios)))
    return [int(ratio * scale) for ratio in ratios]


def _sentence(combination: Sequence[float], names: Sequence[str]) -> str:
    terms = [(c, name) for c, name in zip(combination, names, strict=True) if c != 0]
    left, right = [(c, s) for c, s in terms if c > 0], [(-c, s) for c, s in terms if c < 0]
    if len(left) == len(right) == 1:
        (a, first), (b, second) = terms
        return f"{first} and {second} only ever appear as {abs(b):g}:{abs(a):g}"
    sides = [" + ".join(f"n({s})" if c == 1 else f"{c:.6g} n({s})" for c, s in side) or "0" for side in (left, right)]
    return " = ".join(reversed(sides) if len(right) == 1 else sides) + " in every molecule"
