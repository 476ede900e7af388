"""Reports of linear references: rank, standard errors, residuals, and a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from textwrap import fill
from typing import Any, cast

import numpy as np
from torch import Tensor

from ofdft_norm.data.elements import symbol
from ofdft_norm.errors import counted
from ofdft_norm.statistics.energy_table import WorstMolecule
from ofdft_norm.statistics.references import CountBy, linear_reference_name, solve_least_squares
from ofdft_norm.statistics.store import Array, DatasetStatistics
from ofdft_norm.tables import WIDTH, text_table
from ofdft_norm.units import ENERGY_UNITS, shown

_ZERO = 1e-9
_SHOWN_MOLECULES = 5


@dataclass(frozen=True)
class FitReport:
    """How references were fitted, in plain types for checkpoints; unknown values are None.

    Attributes:
        target: Name of the target.
        rows: Rows of the fit: ``samples``, or ``molecules`` (the mean over the samples of each).
        n_rows: Number of these.
        rank: Rank of their compositions.
        condition_number: Largest over smallest nonzero singular value of the compositions.
        degrees_of_freedom: n_rows - rank.
        mae: Mean absolute residual of the samples, weighted.
        rmse: Root mean square residual of the samples, weighted.
        r2: 1 - residual over total sum of squares; NaN if all targets are equal.
        ridge: Relative ridge of the fit.
        atomic_numbers: Elements of the fit; the lists below run parallel to it.
        standard_errors: sqrt(sigma^2 (R^T R)^+_ii), sigma^2 = residual sum of squares over degrees of freedom; NaN
            without degrees of freedom. The bias of a ridge is not part of it.
        n_atoms: Atoms of each element.
        n_molecules: Rows with each element.
        moved: Correction of each reference of a base; None without a base.
        fitted: References that a fit of all elements has, to compare; None: the references are these.
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
    fitted: list[float] | None = None
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

    MAE, RMSE, R2 and the worst molecules are those of the stored references, even if a ridge or a base changes them.
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
        r2=weigher.r_squared(residual),
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


def tabulate_elements(values: Tensor, seen: Tensor, fit: FitReport | None, unit: str = "") -> str:
    """Returns a table of references, (max_num_elements + 1,), with standard errors, and lines about their fit."""
    in_unit = unit_heading(unit)
    header = ["element", f"energy per atom{in_unit}"]
    rows = {z: [element_name(z), f"{float(values[z]):.6f}"] for z in seen.nonzero().squeeze(1).tolist() if z > 0}
    if fit is None:
        return "\n".join([text_table(header, list(rows.values())), "given values, not fitted"])
    if fit.fitted is not None:
        header = ["element", f"per atom{in_unit}", "fitted", "difference"]
    header += [f"std. error{in_unit}", "atoms", fit.rows, ""]
    numbers = (fit.standard_errors, fit.n_atoms, fit.n_molecules)
    for z, row in rows.items():
        i = fit.atomic_numbers.index(z) if z in fit.atomic_numbers else None
        if fit.fitted is not None:
            fitted = math.nan if i is None else fit.fitted[i]
            row += [_number(fitted, ".6f"), _number(fitted - float(values[z]), "+.3f")]
        row += [_number(None if i is None or column is None else column[i], ".2g") for column in numbers]
        free = i is not None and any(abs(combination[i]) >= _ZERO for combination in fit.null_space)
        row.append("not determined alone" if free else "")
    sentences = [fit.line(in_unit)]
    if fit.moved is not None:
        moves = (f"{element_name(z)} {by:+.3g}" for z, by in zip(fit.atomic_numbers, fit.moved, strict=True))
        sentences.append(f"correction of the base{in_unit}: {', '.join(moves)}")
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
